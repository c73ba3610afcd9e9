//! What a capped collection keeps of the documents that are written into it. Pure.
//!
//! Owns: which of the oldest go, as MongoDB decides it. Does not own: reading documents (`live`), what is compared (`copy`).
//!
//! SUBTLE: an insert into a full capped collection and the removal of the oldest are two changes with two cluster times. Between them a source has one
//! document more than its options allow, and so has history at that point. A copy cannot: the server removes the oldest again when it is written.

use std::collections::BTreeMap;

use bson::{Bson, Document};

use super::hash::Hashes;
use crate::branch::catalogue::{Catalogue, Uuid};

/// Oldest documents that are kept in mind: far more than go between two changes.
const OLDEST: usize = 10_000;

/// What is seen of one collection, oldest documents first.
#[derive(Debug)]
pub(super) struct Capped {
    max: u64,
    size: u64,
    documents: u64,
    bytes: u64,
    /// Bucket, hash and size.
    oldest: Vec<(usize, u128, u64)>,
}

impl Capped {
    /// The capped collections of a catalogue.
    pub(super) fn of(catalogue: &Catalogue) -> BTreeMap<Uuid, Self> {
        let capped = catalogue.collections.values().filter(|collection| collection.is_capped());
        capped.map(|collection| (collection.uuid, Self::with(&collection.options))).collect()
    }

    fn with(options: &Document) -> Self {
        // Without a limit, or with 0, there is none.
        let limit = |name: &str| number(options.get(name)).filter(|limit| *limit > 0).unwrap_or(u64::MAX);
        Self { max: limit("max"), size: limit("size"), documents: 0, bytes: 0, oldest: Vec::new() }
    }

    /// One more document, in the order in which they were inserted.
    pub(super) fn saw(&mut self, (bucket, hash): (usize, u128), bytes: u64) {
        (self.documents, self.bytes) = (self.documents + 1, self.bytes.saturating_add(bytes));
        if self.oldest.len() < OLDEST {
            self.oldest.push((bucket, hash, bytes));
        }
    }

    /// Takes those out of the sums that the collection does not keep.
    pub(super) fn evict(&self, uuid: &Uuid, hashes: &mut Hashes) {
        let Some(sums) = hashes.get_mut(uuid) else { return };
        let (mut documents, mut bytes) = (self.documents, self.bytes);
        for (bucket, hash, size) in &self.oldest {
            if documents <= self.max && bytes <= self.size {
                break;
            }
            let (count, sum) = &mut sums[*bucket];
            (*count, *sum) = (*count - 1, sum.wrapping_sub(*hash));
            (documents, bytes) = (documents - 1, bytes - size);
        }
    }
}

fn number(value: Option<&Bson>) -> Option<u64> {
    match value? {
        Bson::Int32(n) => u64::try_from(*n).ok(),
        Bson::Int64(n) => u64::try_from(*n).ok(),
        #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)] // a size in bytes
        Bson::Double(n) if *n >= 0.0 => Some(*n as u64),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::branch::verify::hash::add;
    use crate::branch::verify::live::{counted, nothing};
    use bson::{doc, rawdoc};

    /// What is left of so many documents of 21 bytes, by their ids.
    fn left(options: &Document, documents: i32) -> Vec<i32> {
        let (mut capped, mut key, uuid) = (Capped::with(options), Vec::new(), [1; 16]);
        let mut hashes = Hashes::from([(uuid, nothing())]);
        let docs: Vec<_> = (0..documents).map(|i| rawdoc! {"_id": i, "v": 1}).collect();
        for doc in &docs {
            let added = add(hashes.get_mut(&uuid).unwrap(), doc, false, &mut key);
            capped.saw(added, doc.as_bytes().len() as u64);
        }
        capped.evict(&uuid, &mut hashes);
        let sums = &hashes[&uuid];
        let n = usize::try_from(counted(sums)).unwrap();
        // The newest so many make up the same sums.
        let mut newest = nothing();
        docs.iter().skip(docs.len() - n).for_each(|doc| {
            add(&mut newest, doc, false, &mut key);
        });
        assert_eq!(*sums, newest);
        (documents - i32::try_from(n).unwrap()..documents).collect()
    }

    #[test]
    fn the_oldest_go_until_number_and_size_are_kept() {
        assert_eq!(rawdoc! {"_id": 0, "v": 1}.as_bytes().len(), 21);
        for (options, documents, kept) in [
            (doc! {"size": 4096, "max": 3}, 4, vec![1, 2, 3]),
            (doc! {"size": 4096, "max": 3}, 3, vec![0, 1, 2]),
            (doc! {"size": 63_i64}, 5, vec![2, 3, 4]),
            (doc! {"size": 62.0, "max": 0}, 3, vec![1, 2]),
            (doc! {"size": 4096}, 3, vec![0, 1, 2]),
        ] {
            assert_eq!(left(&options, documents), kept, "{options}");
        }
    }
}
