//! Owns: sorting documents by collection and a key of bytes, in runs on disk when they do not fit.
//! Does not own: which documents and keys those are: the order of insertion in capped collections (`output`), the canonical key (`look::diff`).

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::fs::File;
use std::path::{Path, PathBuf};

use bson::RawDocumentBuf;

use super::spill::{CHUNK, Record, SpillFile, SpillReader};
use super::state::{Entry, Put};
use super::table::OVERHEAD;
use crate::fault::{Fault, Result};

/// Most runs: one open file each, and one chunk in memory each while they are read together.
const MAX_RUNS: u64 = 64;

/// A document and its place.
#[derive(Debug, Clone, PartialEq)]
pub struct OrderedItem {
    pub coll: u32,
    pub key: Box<[u8]>,
    pub doc: RawDocumentBuf,
}

impl OrderedItem {
    fn cost(&self) -> u64 {
        self.doc.as_bytes().len() as u64 + self.key.len() as u64 + OVERHEAD
    }
}

/// Collects documents.
#[derive(Debug)]
pub struct OrderedSorter {
    dir: PathBuf,
    budget: u64,
    bytes: u64,
    pending: Vec<OrderedItem>,
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

/// Collection, key and run of what comes next of a run.
type Next = (u32, Box<[u8]>, usize);

/// Hands them out in order.
#[derive(Debug)]
pub struct Ordered {
    runs: Vec<Run>,
    heap: BinaryHeap<Reverse<Next>>,
}

#[derive(Debug)]
enum Run {
    Memory(std::vec::IntoIter<OrderedItem>, Option<OrderedItem>),
    File(SpillReader<File>, Option<OrderedItem>),
}

impl OrderedSorter {
    /// Holds `budget` bytes of documents, and about as many of chunks when runs are read.
    pub fn new(dir: &Path, budget: u64) -> Self {
        let most = (budget / CHUNK as u64).clamp(2, MAX_RUNS);
        Self { dir: dir.to_owned(), budget, bytes: 0, pending: Vec::new(), runs: Vec::new(), most: usize::try_from(most).unwrap_or(2) }
    }

    pub fn push(&mut self, coll: u32, key: &[u8], doc: RawDocumentBuf) -> Result<()> {
        let item = OrderedItem { coll, key: key.into(), doc };
        self.bytes += item.cost();
        self.pending.push(item);
        if self.bytes <= self.budget {
            return Ok(());
        }
        if self.runs.len() >= self.most {
            self.merge()?;
        }
        let mut run = SortedFile { file: SpillFile::create(&self.dir)?, documents: 0 };
        for item in self.take_sorted() {
            run.push(item)?;
        }
        run.file.flush()?;
        self.runs.push(run);
        Ok(())
    }

    fn take_sorted(&mut self) -> Vec<OrderedItem> {
        self.bytes = 0;
        let mut pending = std::mem::take(&mut self.pending);
        pending.sort_unstable_by(|a, b| (a.coll, &a.key).cmp(&(b.coll, &b.key)));
        pending
    }

    /// Makes one run of the shorter half, so that a document is moved about as often as the number of runs would be halved to nothing.
    fn merge(&mut self) -> Result<()> {
        self.runs.sort_unstable_by_key(|run| run.documents);
        let longer = self.runs.split_off(self.runs.len() / 2 + 1);
        let shorter = std::mem::replace(&mut self.runs, longer);
        let mut all = Ordered::new(shorter.into_iter().map(SortedFile::read).collect::<Result<_>>()?)?;
        let mut merged = SortedFile { file: SpillFile::create(&self.dir)?, documents: 0 };
        while let Some(item) = all.next()? {
            merged.push(item)?;
        }
        merged.file.flush()?;
        self.runs.push(merged);
        Ok(())
    }

    pub fn finish(mut self) -> Result<Ordered> {
        let mut runs = vec![Run::Memory(self.take_sorted().into_iter(), None)];
        for file in self.runs {
            runs.push(file.read()?);
        }
        Ordered::new(runs)
    }
}

impl SortedFile {
    fn push(&mut self, item: OrderedItem) -> Result<()> {
        let entry = Entry::Put(Put { doc: item.doc, born: None, seq: 0 });
        self.documents += 1;
        self.file.push(item.coll, &item.key, &entry)
    }

    fn read(self) -> Result<Run> {
        Ok(Run::File(self.file.into_reader()?, None))
    }
}

impl Ordered {
    fn new(mut runs: Vec<Run>) -> Result<Self> {
        let mut heap = BinaryHeap::new();
        for (i, run) in runs.iter_mut().enumerate() {
            if let Some((coll, key)) = run.advance()? {
                heap.push(Reverse((coll, key, i)));
            }
        }
        Ok(Self { runs, heap })
    }

    /// The next document; `None` at the end.
    #[allow(clippy::should_implement_trait)] // it may fail
    pub fn next(&mut self) -> Result<Option<OrderedItem>> {
        let Some(Reverse((_, _, i))) = self.heap.pop() else { return Ok(None) };
        let run = &mut self.runs[i];
        let Some(item) = run.take() else { return Err(Fault::corrupt("a sorted run lost a document")) };
        if let Some((coll, key)) = run.advance()? {
            self.heap.push(Reverse((coll, key, i)));
        }
        Ok(Some(item))
    }

    /// At most `max` documents and about a quarter of `budget` bytes; `None` at the end.
    pub(super) fn next_batch(&mut self, max: usize, budget: u64) -> Result<Option<Vec<OrderedItem>>> {
        let (mut batch, mut bytes) = (Vec::new(), 0u64);
        while batch.len() < max && bytes <= budget / 4 {
            let Some(item) = self.next()? else { break };
            bytes += item.cost();
            batch.push(item);
        }
        Ok(if batch.is_empty() { None } else { Some(batch) })
    }
}

impl Run {
    /// Loads the next document and tells its place in the order.
    fn advance(&mut self) -> Result<Option<(u32, Box<[u8]>)>> {
        let front = match self {
            Self::Memory(items, front) => {
                *front = items.next();
                front
            }
            Self::File(reader, front) => {
                *front = match reader.next()? {
                    Some(Record { coll, key, entry: Entry::Put(Put { doc, .. }) }) => Some(OrderedItem { coll, key, doc }),
                    Some(_) => return Err(Fault::corrupt("a sorted run holds something else")),
                    None => None,
                };
                front
            }
        };
        Ok(front.as_ref().map(|item| (item.coll, item.key.clone())))
    }

    fn take(&mut self) -> Option<OrderedItem> {
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
            let mut sorter = OrderedSorter { most, ..OrderedSorter::new(dir.path(), budget) };
            for n in 0..COUNT {
                // Every number once, in no order.
                let born = n * 2_741 % COUNT;
                let coll = u32::try_from(born % 2).unwrap();
                sorter.push(coll, &born.to_be_bytes(), rawdoc! {"_id": i64::try_from(born).unwrap()}).unwrap();
                assert!(sorter.runs.len() <= most, "{} runs, {most} allowed", sorter.runs.len());
            }
            let mut sorted = sorter.finish().unwrap();
            assert!((2..=most + 1).contains(&sorted.runs.len()));
            let mut seen = Vec::new();
            while let Some(batch) = sorted.next_batch(1_000, u64::MAX).unwrap() {
                seen.extend(
                    batch.into_iter().map(|d| (d.coll, u64::from_be_bytes((*d.key).try_into().unwrap()), d.doc.get_i64("_id").unwrap())),
                );
            }
            let of = |coll: u32| (0..COUNT).filter(move |n| n % 2 == u64::from(coll)).map(move |n| (coll, n, i64::try_from(n).unwrap()));
            assert_eq!(seen, of(0).chain(of(1)).collect::<Vec<_>>());
        }
    }

    #[test]
    fn the_bound_of_runs_follows_the_budget() {
        let most = |budget| OrderedSorter::new(Path::new("."), budget).most;
        assert_eq!([0, 1 << 20, 16 << 20, 1 << 40].map(most), [2, 2, 16, 64]);
    }
}
