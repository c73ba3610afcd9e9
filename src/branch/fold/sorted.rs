//! Owns: sorting the documents of capped collections by collection and insertion, in runs on disk when they do not fit.
//! Does not own: which documents those are (`output`).

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::fs::File;
use std::path::{Path, PathBuf};

use super::Document;
use super::spill::{Record, SpillFile, SpillReader};
use super::state::{Entry, Put};
use super::table::OVERHEAD;
use crate::fault::{Fault, Result};

/// Collects documents.
#[derive(Debug)]
pub(super) struct Sorter {
    dir: PathBuf,
    budget: u64,
    bytes: u64,
    pending: Vec<Document>,
    runs: Vec<SpillFile>,
}

/// Hands them out in order.
#[derive(Debug)]
pub(super) struct Sorted {
    runs: Vec<Run>,
    heap: BinaryHeap<Reverse<(u32, u64, usize)>>,
}

#[derive(Debug)]
enum Run {
    Memory(std::vec::IntoIter<Document>, Option<Document>),
    File(SpillReader<File>, Option<Document>),
}

impl Sorter {
    pub(super) fn new(dir: &Path, budget: u64) -> Self {
        Self { dir: dir.to_owned(), budget, bytes: 0, pending: Vec::new(), runs: Vec::new() }
    }

    pub(super) fn push(&mut self, document: Document) -> Result<()> {
        self.bytes += document.doc.as_bytes().len() as u64 + OVERHEAD;
        self.pending.push(document);
        if self.bytes <= self.budget {
            return Ok(());
        }
        let mut run = SpillFile::create(&self.dir)?;
        for document in self.take_sorted() {
            let entry = Entry::Put(Put { doc: document.doc, born: Some(document.born), seq: document.born });
            run.push(document.coll, &[], &entry)?;
        }
        run.flush()?;
        self.runs.push(run);
        Ok(())
    }

    fn take_sorted(&mut self) -> Vec<Document> {
        self.bytes = 0;
        let mut pending = std::mem::take(&mut self.pending);
        pending.sort_unstable_by_key(|d| (d.coll, d.born));
        pending
    }

    pub(super) fn finish(mut self) -> Result<Sorted> {
        let mut runs = vec![Run::Memory(self.take_sorted().into_iter(), None)];
        for file in self.runs {
            runs.push(Run::File(file.into_reader()?, None));
        }
        let mut heap = BinaryHeap::new();
        for (i, run) in runs.iter_mut().enumerate() {
            if let Some(key) = run.advance()? {
                heap.push(Reverse((key.0, key.1, i)));
            }
        }
        Ok(Sorted { runs, heap })
    }
}

impl Sorted {
    /// At most `max` documents and about a quarter of `budget` bytes; `None` at the end.
    pub(super) fn next_batch(&mut self, max: usize, budget: u64) -> Result<Option<Vec<Document>>> {
        let (mut batch, mut bytes) = (Vec::new(), 0u64);
        while batch.len() < max && bytes <= budget / 4 {
            let Some(Reverse((_, _, i))) = self.heap.pop() else { break };
            let run = &mut self.runs[i];
            let Some(document) = run.take() else { return Err(Fault::corrupt("a sorted run lost a document")) };
            if let Some(key) = run.advance()? {
                self.heap.push(Reverse((key.0, key.1, i)));
            }
            bytes += document.doc.as_bytes().len() as u64 + OVERHEAD;
            batch.push(document);
        }
        Ok(if batch.is_empty() { None } else { Some(batch) })
    }
}

impl Run {
    /// Loads the next document and tells its place in the order.
    fn advance(&mut self) -> Result<Option<(u32, u64)>> {
        let front = match self {
            Self::Memory(documents, front) => {
                *front = documents.next();
                front
            }
            Self::File(reader, front) => {
                *front = match reader.next()? {
                    Some(Record { coll, entry: Entry::Put(Put { doc, born: Some(born), .. }), .. }) => Some(Document { coll, born, doc }),
                    Some(_) => return Err(Fault::corrupt("a sorted run holds something else")),
                    None => None,
                };
                front
            }
        };
        Ok(front.as_ref().map(|d| (d.coll, d.born)))
    }

    fn take(&mut self) -> Option<Document> {
        match self {
            Self::Memory(_, front) | Self::File(_, front) => front.take(),
        }
    }
}
