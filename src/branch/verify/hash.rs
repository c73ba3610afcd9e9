//! Owns: adding documents up to hashes that do not depend on the order in which they come. Pure.
//! Does not own: whose documents they are (`live`).

use std::collections::{BTreeMap, BTreeSet};

use bson::raw::RawBsonRef;
use bson::{RawArray, RawDocument, RawDocumentBuf};
use xxhash_rust::xxh3::{xxh3_64, xxh3_128};

use crate::branch::catalogue::Uuid;
use crate::change::write_canonical_id;

/// Buckets per collection: a differing one is re-read, so more of them make the second pass cheaper.
pub(super) const BUCKETS: usize = 256;

/// Count and sum per bucket of a collection.
pub(super) type Sums = Vec<(u64, u128)>;
/// One side's documents.
pub(super) type Hashes = BTreeMap<Uuid, Sums>;

/// Adds a document to its bucket; buckets go by canonical key, so that both sides agree on them. The bucket, and the hash that was added.
pub(super) fn add(sums: &mut [(u64, u128)], doc: &RawDocument, sorted: bool, key: &mut Vec<u8>) -> (usize, u128) {
    let (bucket, hash) = (bucket(doc, key), hash(doc, sorted));
    let (count, sum) = &mut sums[bucket];
    *count += 1;
    *sum = sum.wrapping_add(hash);
    (bucket, hash)
}

pub(super) fn bucket(doc: &RawDocument, key: &mut Vec<u8>) -> usize {
    key.clear();
    write_canonical_id(doc, key);
    #[allow(clippy::cast_possible_truncation)] // only the low bits are wanted
    let low = xxh3_64(key) as usize;
    low % BUCKETS
}

pub(super) fn hash(doc: &RawDocument, sorted: bool) -> u128 {
    if sorted { xxh3_128(&sort_fields(doc)) } else { xxh3_128(doc.as_bytes()) }
}

/// A form of a document that does not depend on the order of its fields: a hash over sorted hashes, recursively.
fn sort_fields(doc: &RawDocument) -> Vec<u8> {
    let fields: BTreeSet<Vec<u8>> =
        doc.iter().flatten().map(|(name, value)| [name.as_str().as_bytes(), &[0], &sort_value(value)].concat()).collect();
    fields.into_iter().flat_map(|field| xxh3_128(&field).to_le_bytes()).collect()
}

fn sort_value(value: RawBsonRef<'_>) -> Vec<u8> {
    match value {
        RawBsonRef::Document(inner) => [vec![3], sort_fields(inner)].concat(),
        RawBsonRef::Array(items) => sort_array(items),
        other => {
            let mut holder = RawDocumentBuf::new();
            holder.append(bson::raw::cstr!("v"), other);
            holder.into_bytes()
        }
    }
}

fn sort_array(items: &RawArray) -> Vec<u8> {
    let items = items.into_iter().flatten().flat_map(|item| xxh3_128(&sort_value(item)).to_le_bytes());
    [4].into_iter().chain(items).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use bson::rawdoc;

    #[test]
    fn order_of_fields_counts_only_where_history_knows_it() {
        let (a, b) =
            (rawdoc! {"_id": 1, "x": {"p": 1, "q": [1, {"r": 1, "s": 2}]}}, rawdoc! {"x": {"q": [1, {"s": 2, "r": 1}], "p": 1}, "_id": 1});
        assert_eq!(hash(&a, true), hash(&b, true));
        assert_ne!(hash(&a, false), hash(&b, false));
        for other in [
            rawdoc! {"_id": 1, "x": {"p": 1, "q": [{"r": 1, "s": 2}, 1]}},
            rawdoc! {"_id": 1, "x": {"p": 1_i64, "q": [1, {"r": 1, "s": 2}]}},
            rawdoc! {"_id": 1, "x": {"p": 1, "q": [1, {"r": 1}]}},
        ] {
            assert_ne!(hash(&a, true), hash(&other, true), "{other:?}");
        }
    }

    #[test]
    fn sums_do_not_depend_on_the_order_of_documents_and_see_swapped_values() {
        let docs = [rawdoc! {"_id": 1, "v": 1}, rawdoc! {"_id": 2, "v": 2}, rawdoc! {"_id": 3, "v": 1}];
        let sum = |docs: &[RawDocumentBuf]| {
            let (mut sums, mut key) = (vec![(0, 0); BUCKETS], Vec::new());
            docs.iter().for_each(|doc| {
                add(&mut sums, doc, false, &mut key);
            });
            sums
        };
        let mut turned = docs.clone();
        turned.reverse();
        assert_eq!(sum(&docs), sum(&turned));
        assert_ne!(sum(&docs), sum(&[rawdoc! {"_id": 1, "v": 2}, rawdoc! {"_id": 2, "v": 1}, rawdoc! {"_id": 3, "v": 1}]));
    }
}
