//! Owns: sorting the documents of capped collections by collection and insertion, in runs on disk when they do not fit.
//! Does not own: which documents those are (`output`).

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::fs::File;
use std::path::{Path, PathBuf};

use super::Document;
use super::spill::{CHUNK, Record, SpillFile, SpillReader};
use super::state::{Entry, Put};
use super::table::OVERHEAD;
use crate::fault::{Fault, Result};

/// Most runs: one open file each, and one chunk in memory each while they are read together.
const MAX_RUNS: u64 = 64;

/// Collects documents.
#[derive(Debug)]
pub(super) struct Sorter {
    dir: PathBuf,
    budget: u64,
    bytes: u64,
    pending: Vec<Document>,
    runs: Vec<SortedFile>,
    /// Runs at which some are merged.
    most: usize,
}

/// A run on disk.
#[derive(Debug)]
struct SortedFile {
    file: SpillFile,
    documents: u64,
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
    /// Holds `budget` bytes of documents, and about as many of chunks when runs are read.
    pub(super) fn new(dir: &Path, budget: u64) -> Self {
        let most = (budget / CHUNK as u64).clamp(2, MAX_RUNS);
        Self { dir: dir.to_owned(), budget, bytes: 0, pending: Vec::new(), runs: Vec::new(), most: usize::try_from(most).unwrap_or(2) }
    }

    pub(super) fn push(&mut self, document: Document) -> Result<()> {
        self.bytes += document.doc.as_bytes().len() as u64 + OVERHEAD;
        self.pending.push(document);
        if self.bytes <= self.budget {
            return Ok(());
        }
        if self.runs.len() >= self.most {
            self.merge()?;
        }
        let mut run = SortedFile { file: SpillFile::create(&self.dir)?, documents: 0 };
        for document in self.take_sorted() {
            run.push(document)?;
        }
        run.file.flush()?;
        self.runs.push(run);
        Ok(())
    }

    fn take_sorted(&mut self) -> Vec<Document> {
        self.bytes = 0;
        let mut pending = std::mem::take(&mut self.pending);
        pending.sort_unstable_by_key(|d| (d.coll, d.born));
        pending
    }

    /// Makes one run of the shorter half, so that a document is moved about as often as the number of runs would be halved to nothing.
    fn merge(&mut self) -> Result<()> {
        self.runs.sort_unstable_by_key(|run| run.documents);
        let longer = self.runs.split_off(self.runs.len() / 2 + 1);
        let shorter = std::mem::replace(&mut self.runs, longer);
        let mut all = Sorted::new(shorter.into_iter().map(SortedFile::read).collect::<Result<_>>()?)?;
        let mut merged = SortedFile { file: SpillFile::create(&self.dir)?, documents: 0 };
        while let Some(document) = all.next()? {
            merged.push(document)?;
        }
        merged.file.flush()?;
        self.runs.push(merged);
        Ok(())
    }

    pub(super) fn finish(mut self) -> Result<Sorted> {
        let mut runs = vec![Run::Memory(self.take_sorted().into_iter(), None)];
        for file in self.runs {
            runs.push(file.read()?);
        }
        Sorted::new(runs)
    }
}

impl SortedFile {
    fn push(&mut self, document: Document) -> Result<()> {
        let entry = Entry::Put(Put { doc: document.doc, born: Some(document.born), seq: document.born });
        self.documents += 1;
        self.file.push(document.coll, &[], &entry)
    }

    fn read(self) -> Result<Run> {
        Ok(Run::File(self.file.into_reader()?, None))
    }
}

impl Sorted {
    fn new(mut runs: Vec<Run>) -> Result<Self> {
        let mut heap = BinaryHeap::new();
        for (i, run) in runs.iter_mut().enumerate() {
            if let Some(key) = run.advance()? {
                heap.push(Reverse((key.0, key.1, i)));
            }
        }
        Ok(Self { runs, heap })
    }

    fn next(&mut self) -> Result<Option<Document>> {
        let Some(Reverse((_, _, i))) = self.heap.pop() else { return Ok(None) };
        let run = &mut self.runs[i];
        let Some(document) = run.take() else { return Err(Fault::corrupt("a sorted run lost a document")) };
        if let Some(key) = run.advance()? {
            self.heap.push(Reverse((key.0, key.1, i)));
        }
        Ok(Some(document))
    }

    /// At most `max` documents and about a quarter of `budget` bytes; `None` at the end.
    pub(super) fn next_batch(&mut self, max: usize, budget: u64) -> Result<Option<Vec<Document>>> {
        let (mut batch, mut bytes) = (Vec::new(), 0u64);
        while batch.len() < max && bytes <= budget / 4 {
            let Some(document) = self.next()? else { break };
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

#[cfg(test)]
mod tests {
    use super::*;
    use bson::rawdoc;

    #[test]
    fn open_runs_stay_bounded_and_documents_come_in_order() {
        const COUNT: u64 = 5_000;
        let dir = tempfile::tempdir().unwrap();
        for (budget, most) in [(20_000, 2), (20_000, 7), (20_000, 64)] {
            let mut sorter = Sorter { most, ..Sorter::new(dir.path(), budget) };
            for n in 0..COUNT {
                // Every number once, in no order.
                let born = n * 2_741 % COUNT;
                let coll = u32::try_from(born % 2).unwrap();
                sorter.push(Document { coll, born, doc: rawdoc! {"_id": i64::try_from(born).unwrap()} }).unwrap();
                assert!(sorter.runs.len() <= most, "{} runs, {most} allowed", sorter.runs.len());
            }
            let mut sorted = sorter.finish().unwrap();
            assert!((2..=most + 1).contains(&sorted.runs.len()));
            let mut seen = Vec::new();
            while let Some(batch) = sorted.next_batch(1_000, u64::MAX).unwrap() {
                seen.extend(batch.into_iter().map(|d| (d.coll, d.born, d.doc.get_i64("_id").unwrap())));
            }
            let of = |coll: u32| (0..COUNT).filter(move |n| n % 2 == u64::from(coll)).map(move |n| (coll, n, i64::try_from(n).unwrap()));
            assert_eq!(seen, of(0).chain(of(1)).collect::<Vec<_>>());
        }
    }

    #[test]
    fn the_bound_of_runs_follows_the_budget() {
        let most = |budget| Sorter::new(Path::new("."), budget).most;
        assert_eq!([0, 1 << 20, 16 << 20, 1 << 40].map(most), [2, 2, 16, 64]);
    }
}
