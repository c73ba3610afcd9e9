//! Owns: the core of load generation, shared by the demo, the tests and the load generator: an endless, seeded sequence of
//! operations ([`Workload`]), what they look like ([`Operation`]), and applying them at full speed ([`apply`]).
//! Does not own pacing, threads or reports (the load generator's) or the documents themselves ([`documents`]).
//!
//! The sequence depends on seed, lane and profile only, never on the server. Workloads that run at the same time against one
//! database have different lanes, so that they never touch each other's documents.

mod apply;
pub mod documents;

use mongodb::bson::{Bson, Document};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

pub use apply::{Stats, apply, prepare};
use documents::{Maker, Modification, UpdateKind};

use crate::fault::{Fault, Result};

/// What a workload does, how often, on what. Weights are relative to each other.
#[derive(Debug, Clone)]
pub struct Profile {
    /// Weight of inserts.
    pub insert: u32,
    /// Weight of updates, of the kinds of [`UpdateKind`].
    pub update: u32,
    /// Weight of replacements by a new document.
    pub replace: u32,
    /// Weight of deletes.
    pub delete: u32,
    /// Weight of transactions of 2 to 5 of the above, over several collections.
    pub transaction: u32,
    /// Approximate BSON size of a made-up document; documents below about 300 bytes lose their variety, not their fields.
    pub doc_bytes: usize,
    /// How many collections.
    pub collections: usize,
    /// How many documents per collection are known to the workload and so can be changed; beyond, an insert makes it forget one.
    pub keys: usize,
    /// An order system: `keys` documents are inserted, then the same updates come over and over (other weights but `transaction` are unused).
    pub repeated: bool,
    /// `_id`s of every type that an `_id` may have, instead of integers.
    pub mixed_ids: bool,
    /// Real documents to insert, in turn, under new `_id`s, instead of made-up ones.
    pub corpus: Option<Vec<Document>>,
}

impl Default for Profile {
    fn default() -> Self {
        let weights = Self { insert: 40, update: 40, replace: 8, delete: 10, transaction: 2, ..Self::inserts(400) };
        Self { collections: 3, ..weights }
    }
}

impl Profile {
    /// Inserts only, into one collection.
    pub fn inserts(doc_bytes: usize) -> Self {
        let none = Self {
            insert: 1,
            update: 0,
            replace: 0,
            delete: 0,
            transaction: 0,
            doc_bytes,
            collections: 1,
            keys: 10_000,
            repeated: false,
            mixed_ids: false,
            corpus: None,
        };
        Self { ..none }
    }

    /// A few hundred hot documents that get the same updates over and over.
    pub fn repeated() -> Self {
        Self { repeated: true, insert: 0, update: 1, keys: 300, ..Self::inserts(400) }
    }

    /// Every kind of operation, update and `_id`, on few documents: for finding what a fold gets wrong.
    pub fn everything() -> Self {
        Self { update: 60, insert: 20, keys: 200, transaction: 5, mixed_ids: true, ..Self::default() }
    }

    /// Name of the collection with this number.
    pub fn collection(i: usize) -> String {
        format!("load{i}")
    }

    fn check(&self) -> Result<()> {
        let parts = [self.insert, self.update, self.replace, self.delete, self.transaction];
        let weights: u64 = parts.iter().map(|weight| u64::from(*weight)).sum();
        let wrong = |what: &str| Err(Fault::config(format!("workload profile: {what}")));
        match self {
            _ if weights == 0 || weights > u64::from(u32::MAX) => wrong("the weights must add up to something from 1 to 4294967295"),
            Self { collections: 0, .. } | Self { keys: 0, .. } => wrong("it needs at least one collection and one key"),
            Self { doc_bytes, .. } if *doc_bytes > 15 << 20 => wrong("documents are at most 15 MiB"),
            Self { corpus: Some(corpus), .. } if corpus.is_empty() => wrong("the corpus is empty"),
            _ => Ok(()),
        }
    }
}

/// One write.
#[derive(Debug, Clone, PartialEq)]
pub enum Operation {
    /// A new document.
    Insert {
        /// Where.
        collection: usize,
        /// The document, `_id` first.
        document: Document,
    },
    /// A change of one document, which may turn out to change nothing.
    Update {
        /// Where.
        collection: usize,
        /// Which document.
        id: Bson,
        /// Which kind, for statistics.
        kind: UpdateKind,
        /// More conditions on the document, empty mostly.
        only_if: Document,
        /// The update document or pipeline.
        update: Modification,
    },
    /// Another document under the same `_id`.
    Replace {
        /// Where.
        collection: usize,
        /// The document, `_id` first.
        document: Document,
    },
    /// The end of a document.
    Delete {
        /// Where.
        collection: usize,
        /// Which document.
        id: Bson,
    },
    /// Some of the above, all or nothing.
    Transaction(
        /// The parts, never transactions themselves.
        Vec<Operation>,
    ),
}

/// A document that the workload knows.
#[derive(Debug, Clone, Copy)]
struct Key {
    number: u64,
    /// How often it was updated; the repeated profile's place in its cycle.
    step: u32,
}

/// The sequence. An iterator that never ends.
#[derive(Debug)]
pub struct Workload {
    profile: Profile,
    rng: StdRng,
    lane: u32,
    maker: Maker,
    /// Per collection.
    known: Vec<Vec<Key>>,
    next_number: u64,
}

impl Workload {
    /// A sequence; the same arguments give the same one.
    pub fn new(seed: u64, lane: u32, profile: Profile) -> Result<Self> {
        profile.check()?;
        let rng = StdRng::seed_from_u64(seed ^ (u64::from(lane) << 40));
        let maker = Maker::new(&profile, lane);
        let known = vec![Vec::new(); profile.collections];
        Ok(Self { profile, rng, lane, maker, known, next_number: 0 })
    }

    /// The profile.
    pub fn profile(&self) -> &Profile {
        &self.profile
    }

    /// The next operation.
    pub fn next_operation(&mut self) -> Operation {
        let profile = &self.profile;
        let single =
            if profile.repeated { profile.update.max(1) } else { profile.insert + profile.update + profile.replace + profile.delete };
        let weights = single.saturating_add(profile.transaction);
        if self.rng.random_range(0..weights) >= single {
            let count = self.rng.random_range(2..=5);
            return Operation::Transaction((0..count).map(|_| self.single()).collect());
        }
        self.single()
    }

    fn single(&mut self) -> Operation {
        let collection = self.rng.random_range(0..self.profile.collections);
        if self.profile.repeated {
            return self.repeated(collection);
        }
        let Profile { insert, update, replace, delete, .. } = self.profile;
        let total = insert + update + replace + delete;
        let drawn = if total == 0 { 0 } else { self.rng.random_range(0..total) };
        let known = self.known[collection].len();
        if drawn < insert || known == 0 || total == 0 {
            return self.insert(collection);
        }
        let at = self.rng.random_range(0..known);
        if drawn < insert + update {
            return self.update(collection, at);
        }
        if drawn < insert + update + replace {
            let number = self.known[collection][at].number;
            return Operation::Replace { collection, document: self.maker.document(&mut self.rng, number) };
        }
        let key = self.known[collection].swap_remove(at);
        Operation::Delete { collection, id: documents::id(self.lane, key.number, self.profile.mixed_ids) }
    }

    fn insert(&mut self, collection: usize) -> Operation {
        let number = self.next_number;
        self.next_number += 1;
        let known = &mut self.known[collection];
        let key = Key { number, step: 0 };
        if known.len() < self.profile.keys {
            known.push(key);
        } else {
            let forgotten = self.rng.random_range(0..known.len());
            known[forgotten] = key;
        }
        Operation::Insert { collection, document: self.maker.document(&mut self.rng, number) }
    }

    fn update(&mut self, collection: usize, at: usize) -> Operation {
        let key = &mut self.known[collection][at];
        key.step = key.step.wrapping_add(1);
        let Key { number, step } = *key;
        let (kind, only_if, update) = self.maker.update(&mut self.rng, step);
        Operation::Update { collection, id: documents::id(self.lane, number, self.profile.mixed_ids), kind, only_if, update }
    }

    fn repeated(&mut self, collection: usize) -> Operation {
        if self.known[collection].len() < self.profile.keys {
            return self.insert(collection);
        }
        let at = self.rng.random_range(0..self.profile.keys);
        let key = &mut self.known[collection][at];
        key.step = key.step.wrapping_add(1);
        let Key { number, step } = *key;
        let (kind, update) = self.maker.cycle(step);
        Operation::Update {
            collection,
            id: documents::id(self.lane, number, self.profile.mixed_ids),
            kind,
            only_if: Document::new(),
            update,
        }
    }
}

impl Iterator for Workload {
    type Item = Operation;

    fn next(&mut self) -> Option<Operation> {
        Some(self.next_operation())
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    fn taken(seed: u64, lane: u32, profile: Profile, count: usize) -> Vec<Operation> {
        Workload::new(seed, lane, profile).unwrap().take(count).collect()
    }

    fn flat(operations: Vec<Operation>) -> Vec<Operation> {
        let parts = |operation| if let Operation::Transaction(parts) = operation { parts } else { vec![operation] };
        operations.into_iter().flat_map(parts).collect()
    }

    #[test]
    fn the_same_seed_gives_the_same_sequence_and_another_one_another() {
        for profile in [Profile::default(), Profile::repeated(), Profile::everything()] {
            assert_eq!(taken(7, 1, profile.clone(), 500), taken(7, 1, profile.clone(), 500));
            assert_ne!(taken(7, 1, profile.clone(), 500), taken(8, 1, profile, 500));
        }
    }

    #[test]
    fn lanes_never_touch_each_others_documents() {
        let ids =
            |lane| -> HashSet<String> {
                let inserted = flat(taken(7, lane, Profile::everything(), 2000)).into_iter();
                inserted
                    .filter_map(|operation| {
                        if let Operation::Insert { document, .. } = operation { Some(document.get("_id")?.to_string()) } else { None }
                    })
                    .collect()
            };
        assert!(ids(0).len() > 300 && ids(0).is_disjoint(&ids(1)));
    }

    #[test]
    fn only_living_documents_are_changed_and_none_is_inserted_twice() {
        for profile in [Profile::default(), Profile { keys: 5, ..Profile::everything() }, Profile::repeated()] {
            let mut living = HashSet::new();
            for operation in flat(taken(3, 0, profile, 5000)) {
                let held = match &operation {
                    Operation::Insert { collection, document } => living.insert((*collection, document.get("_id").unwrap().to_string())),
                    Operation::Replace { collection, document } => {
                        living.contains(&(*collection, document.get("_id").unwrap().to_string()))
                    }
                    Operation::Update { collection, id, .. } => living.contains(&(*collection, id.to_string())),
                    Operation::Delete { collection, id } => living.remove(&(*collection, id.to_string())),
                    Operation::Transaction(_) => false,
                };
                assert!(held, "{operation:?}");
            }
        }
    }

    #[test]
    fn every_kind_of_operation_and_update_occurs() {
        let operations = taken(1, 0, Profile::everything(), 5000);
        let names: HashSet<_> = operations.iter().map(std::mem::discriminant).collect();
        assert_eq!(names.len(), 5);
        let kind = |operation: Operation| if let Operation::Update { kind, .. } = operation { Some(kind) } else { None };
        let kinds: HashSet<_> = flat(operations).into_iter().filter_map(kind).collect();
        assert_eq!(kinds.len(), UpdateKind::ALL.len());
    }

    #[test]
    fn the_repeated_profile_uses_few_documents_and_few_different_updates() {
        let operations = flat(taken(1, 0, Profile::repeated(), 10_000));
        let inserts = operations.iter().filter(|operation| matches!(operation, Operation::Insert { .. })).count();
        assert_eq!(inserts, 300);
        let shapes: HashSet<String> = operations
            .iter()
            .filter_map(|operation| if let Operation::Update { update, .. } = operation { Some(format!("{update:?}")) } else { None })
            .collect();
        assert!(shapes.len() <= 10, "{shapes:?}");
    }

    #[test]
    fn impossible_profiles_are_refused_in_words() {
        let wrong = [
            Profile { insert: 0, ..Profile::inserts(100) },
            Profile { insert: u32::MAX, update: 1, ..Profile::inserts(100) },
            Profile { collections: 0, ..Profile::default() },
            Profile { keys: 0, ..Profile::default() },
            Profile { corpus: Some(Vec::new()), ..Profile::default() },
        ];
        for profile in wrong {
            assert_eq!(Workload::new(1, 0, profile).unwrap_err().kind, crate::fault::Kind::Config);
        }
    }
}
