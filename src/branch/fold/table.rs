//! Owns: the states of all documents, in memory up to a budget and beyond it in partition files.
//! Does not own: what a change does to a state (`state`), reading the partitions back (`output`).
//!
//! SUBTLE: a partition that has been spilled once has lost the knowledge which keys exist. From then on a diff on an absent key is
//! kept as it is and a delete leaves a mark; both meet their base when the file is replayed, in the order in which they were spilled.
//! Before the first spill an absent key means that the document does not exist, and the change is refused at once.

use std::collections::HashMap;
use std::path::PathBuf;

use xxhash_rust::xxh3::xxh3_64_with_seed;

use super::spill::SpillFile;
use super::state::{Entry, Misfit, step};
use crate::change::ChangeRef;
use crate::fault::Result;

/// Charged for every state beside key and document: map slot, boxes, allocator.
pub(super) const OVERHEAD: u64 = 144;
/// Most partitions: one open file each, and a chunk each while spilling.
pub(super) const MAX_PARTITIONS: u64 = 256;

/// States of one collection within a partition.
#[derive(Debug, Default)]
pub(super) struct CollectionPart {
    pub(super) states: HashMap<Box<[u8]>, Entry>,
    bytes: u64,
}

/// One hash class of keys.
#[derive(Debug, Default)]
pub(super) struct Partition {
    pub(super) colls: HashMap<u32, CollectionPart>,
    pub(super) file: Option<SpillFile>,
}

#[derive(Debug)]
pub(super) struct Table {
    pub(super) partitions: Vec<Partition>,
    pub(super) dir: PathBuf,
    pub(super) budget: u64,
    bytes: u64,
    /// How often memory was emptied into files.
    pub(super) spills: u64,
}

/// Where a key belongs; the low bits choose the partition, higher ones the split of a large one.
pub(super) fn hash(coll: u32, key: &[u8]) -> u64 {
    xxh3_64_with_seed(key, u64::from(coll))
}

impl Table {
    /// `expected` bytes of history choose the number of partitions, so that one of them fits the budget when it is read back.
    pub(super) fn new(dir: PathBuf, budget: u64, expected: u64) -> Self {
        let budget = budget.max(1);
        // Twice, for keys and overhead.
        let count = (expected.saturating_mul(2) / budget + 1).clamp(1, MAX_PARTITIONS).next_power_of_two();
        let partitions = (0..count).map(|_| Partition::default()).collect();
        Self { partitions, dir, budget, bytes: 0, spills: 0 }
    }

    /// Applies a change of a document; the inner error is one of history. `again`: the document may hold it already.
    pub(super) fn apply(&mut self, coll: u32, key: &[u8], seq: u64, change: &ChangeRef<'_>, again: bool) -> Result<Result<(), Misfit>> {
        self.with(coll, key, seq, |state, spilled| step(state, seq, change, spilled, again))
    }

    /// A document as it was read, whatever is known of it.
    pub(super) fn put(&mut self, coll: u32, key: &[u8], entry: Entry) -> Result<()> {
        self.with(coll, key, 0, |state, _| *state = Some(entry))
    }

    fn with<T>(&mut self, coll: u32, key: &[u8], seq: u64, change: impl FnOnce(&mut Option<Entry>, bool) -> T) -> Result<T> {
        let mask = self.partitions.len() - 1;
        #[allow(clippy::cast_possible_truncation)] // only the low bits are wanted
        let partition = &mut self.partitions[hash(coll, key) as usize & mask];
        let spilled = partition.file.is_some();
        let part = partition.colls.entry(coll).or_default();
        let charge = key.len() as u64 + OVERHEAD;
        let (before, after, outcome) = match part.states.get_mut(key) {
            Some(slot) => {
                let before = slot.cost() + charge;
                let mut state = Some(std::mem::replace(slot, Entry::Deleted { seq, expects: false }));
                let outcome = change(&mut state, spilled);
                match state {
                    Some(state) => {
                        *slot = state;
                        (before, slot.cost() + charge, outcome)
                    }
                    None => {
                        part.states.remove(key);
                        (before, 0, outcome)
                    }
                }
            }
            None => {
                let mut state = None;
                let outcome = change(&mut state, spilled);
                let after = state.map_or(0, |state| {
                    let cost = state.cost() + charge;
                    part.states.insert(key.into(), state);
                    cost
                });
                (0, after, outcome)
            }
        };
        part.bytes = (part.bytes + after).saturating_sub(before);
        self.bytes = (self.bytes + after).saturating_sub(before);
        if self.bytes > self.budget {
            self.spill()?;
        }
        Ok(outcome)
    }

    /// Forgets a collection; what is in files is skipped when they are read.
    pub(super) fn drop_collection(&mut self, coll: u32) {
        for partition in &mut self.partitions {
            if let Some(part) = partition.colls.remove(&coll) {
                self.bytes = self.bytes.saturating_sub(part.bytes);
            }
        }
    }

    /// Bytes charged against the budget.
    #[cfg(test)]
    pub(super) fn in_memory(&self) -> u64 {
        self.bytes
    }

    fn spill(&mut self) -> Result<()> {
        self.spills += 1;
        for partition in &mut self.partitions {
            if partition.colls.values().all(|part| part.states.is_empty()) {
                continue;
            }
            let file = match &mut partition.file {
                Some(file) => file,
                slot => slot.insert(SpillFile::create(&self.dir)?),
            };
            for (coll, part) in partition.colls.drain() {
                for (key, entry) in part.states {
                    file.push(coll, &key, &entry)?;
                }
            }
            file.flush()?;
        }
        self.bytes = 0;
        Ok(())
    }
}
