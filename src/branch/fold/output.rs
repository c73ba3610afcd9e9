//! Owns: the documents at the end of a fold, partition by partition, each small enough for the budget; capped ones last and in order of insertion.
//! Does not own: how states came to be (`table`, `state`).

use std::collections::{HashMap, VecDeque};

use super::sorted::{Ordered, OrderedSorter};
use super::spill::{Record, SpillFile};
use super::state::{Entry, Misfit, Put, merge};
use super::table::{CollectionPart, MAX_PARTITIONS, OVERHEAD, Partition, Table, hash};
use super::{Document, Tolerance};
use crate::fault::{Fault, Result};

/// Ways into which a partition that does not fit is split; four bits of the hash each time.
const SPLIT_BITS: u32 = 4;
/// Eight bits chose the partition; what is left of 64 bits allows this many splits.
const MAX_SPLITS: u32 = 12;
/// Documents of capped collections handed out at a time.
const SORTED_BATCH: usize = 1_000;

/// What may come out: for each collection index, its kind of output.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Fate {
    /// The collection does not exist at the point.
    Gone,
    Plain,
    /// Insertion order matters (correctness.md 17).
    Capped,
}

/// Whole documents of a partition, by collection and key.
type States = HashMap<(u32, Box<[u8]>), Put>;

/// The documents of the fold. Each call of [`Output::next_batch`] holds at most about the budget.
#[derive(Debug)]
pub struct Output {
    todo: VecDeque<Todo>,
    fates: Vec<Fate>,
    dir: std::path::PathBuf,
    budget: u64,
    tolerance: Tolerance,
    sorter: Option<OrderedSorter>,
    sorted: Option<Ordered>,
}

#[derive(Debug)]
enum Todo {
    Partition(Partition),
    /// One hash class of a partition that was too large, after this many splits.
    File {
        file: SpillFile,
        splits: u32,
    },
}

impl Output {
    pub(super) fn new(table: Table, fates: Vec<Fate>, tolerance: Tolerance) -> Result<Self> {
        let Table { partitions, dir, budget, .. } = table;
        let todo = partitions.into_iter().map(Todo::Partition).collect();
        let sorter = OrderedSorter::new(&dir, budget / 4);
        Ok(Self { todo, fates, dir, budget, tolerance, sorter: Some(sorter), sorted: None })
    }

    /// The next documents, in no order except that those of capped collections come last, by collection and insertion. `None` at the end.
    pub fn next_batch(&mut self) -> Result<Option<Vec<Document>>> {
        while let Some(todo) = self.todo.pop_front() {
            let documents = match todo {
                Todo::Partition(Partition { colls, file: None }) => self.replay_memory(colls)?,
                Todo::Partition(Partition { colls, file: Some(mut file) }) => {
                    append(&mut file, colls)?;
                    self.replay_file(file, 0)?
                }
                Todo::File { file, splits } => self.replay_file(file, splits)?,
            };
            if !documents.is_empty() {
                return Ok(Some(documents));
            }
        }
        if let Some(sorter) = self.sorter.take() {
            self.sorted = Some(sorter.finish()?);
        }
        match &mut self.sorted {
            Some(sorted) => {
                let batch = sorted.next_batch(SORTED_BATCH, self.budget)?;
                let born = |key: &[u8]| key.try_into().map_or(0, u64::from_be_bytes);
                Ok(batch.map(|items| items.into_iter().map(|i| Document { coll: i.coll, born: born(&i.key), doc: i.doc }).collect()))
            }
            None => Ok(None),
        }
    }

    /// Changes that did not fit and were left out; always 0 in a strict fold.
    pub fn left_out(&self) -> u64 {
        self.tolerance.left_out
    }

    fn replay_memory(&mut self, colls: HashMap<u32, CollectionPart>) -> Result<Vec<Document>> {
        let mut documents = Vec::new();
        for (coll, part) in colls {
            for (_, entry) in part.states {
                if let Entry::Put(put) = entry {
                    self.emit(coll, put, &mut documents)?;
                }
            }
        }
        Ok(documents)
    }

    /// Replays a partition; when it does not fit the budget, splits it by the next bits of the hash and starts again with the parts.
    fn replay_file(&mut self, mut file: SpillFile, splits: u32) -> Result<Vec<Document>> {
        let Some(states) = self.replay(&mut file, splits < MAX_SPLITS)? else {
            self.split(file, splits)?;
            return Ok(Vec::new());
        };
        let mut documents = Vec::new();
        for ((coll, _), put) in states {
            self.emit(coll, put, &mut documents)?;
        }
        Ok(documents)
    }

    /// `None` when the states outgrow the budget and may be split.
    fn replay(&mut self, file: &mut SpillFile, may_split: bool) -> Result<Option<States>> {
        let mut states = States::new();
        let (mut bytes, before) = (0u64, self.tolerance.left_out);
        let mut reader = file.read()?;
        while let Some(Record { coll, key, entry }) = reader.next()? {
            if self.fates.get(coll as usize).copied().unwrap_or(Fate::Gone) == Fate::Gone {
                continue;
            }
            let cost = key.len() as u64 + OVERHEAD;
            let at = (coll, key);
            let mut state = states.remove(&at);
            bytes = bytes.saturating_sub(state.as_ref().map_or(0, |put| put.doc.as_bytes().len() as u64 + cost));
            merge(&mut state, entry, &mut |misfit| self.tolerance.misfit(&misfit))?;
            if let Some(put) = state {
                bytes += put.doc.as_bytes().len() as u64 + cost;
                states.insert(at, put);
            }
            if bytes > self.budget && states.len() > 1 && may_split {
                self.tolerance.left_out = before; // the parts count them again
                return Ok(None);
            }
        }
        Ok(Some(states))
    }

    fn split(&mut self, mut file: SpillFile, splits: u32) -> Result<()> {
        let ways = 1usize << SPLIT_BITS;
        let mut parts = (0..ways).map(|_| SpillFile::create(&self.dir)).collect::<Result<Vec<_>>>()?;
        let shift = MAX_PARTITIONS.ilog2() + splits * SPLIT_BITS;
        let mut reader = file.read()?;
        while let Some(record) = reader.next()? {
            #[allow(clippy::cast_possible_truncation)] // only four bits are wanted
            let way = (hash(record.coll, &record.key) >> shift) as usize & (ways - 1);
            parts[way].push(record.coll, &record.key, &record.entry)?;
        }
        for mut part in parts.into_iter().rev() {
            part.flush()?;
            self.todo.push_front(Todo::File { file: part, splits: splits + 1 });
        }
        Ok(())
    }

    fn emit(&mut self, coll: u32, put: Put, documents: &mut Vec<Document>) -> Result<()> {
        let document = Document { coll, born: put.born.unwrap_or(put.seq), doc: put.doc };
        match (self.fates.get(coll as usize).copied().unwrap_or(Fate::Gone), &mut self.sorter) {
            (Fate::Gone, _) => {}
            (Fate::Plain, _) => documents.push(document),
            (Fate::Capped, Some(sorter)) => sorter.push(coll, &document.born.to_be_bytes(), document.doc)?,
            (Fate::Capped, None) => return Err(Fault::corrupt("a capped document came after the sorted ones")),
        }
        Ok(())
    }
}

/// What is in memory is the latest: it goes to the end of the file.
fn append(file: &mut SpillFile, colls: HashMap<u32, CollectionPart>) -> Result<()> {
    for (coll, part) in colls {
        for (key, entry) in part.states {
            file.push(coll, &key, &entry)?;
        }
    }
    file.flush()
}

impl Tolerance {
    /// Refuses the change, or counts it and goes on; one of the time of the base is left out without a word.
    pub(super) fn misfit(&mut self, misfit: &Misfit) -> Result<()> {
        if misfit.seq <= self.during_base {
            return Ok(());
        }
        if !self.allowed {
            return Err(Fault::corrupt(format!("change seq:{} {}", misfit.seq, misfit.why)));
        }
        self.left_out += 1;
        Ok(())
    }
}
