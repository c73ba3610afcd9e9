//! Owns: the key filter of a block, a Bloom filter over (collection, canonical key), and the hash that it is made of.
//! Does not own: the canonical form of a key (`change::canonical_key`).

use xxhash_rust::xxh3::xxh3_64;

/// Positions per key. With eight bits a key, one lookup in fifty of an absent key says "maybe": a byte a key is what a filter may
/// cost beside keys that compress to about ten bytes, and a wrong "maybe" costs one block read.
const POSITIONS: u64 = 5;

/// The smallest filter in bytes. Zero bytes mean "no filter: any key may be here".
const MIN_BYTES: usize = 8;

/// The hash of a key: xxh3-64 of what [`write_collection`] writes and the canonical key.
pub(crate) fn key_hash(scratch: &mut Vec<u8>, coll: &str, uuid: Option<&[u8; 16]>, canonical: &[u8]) -> u64 {
    scratch.clear();
    write_collection(scratch, coll, uuid);
    scratch.extend_from_slice(canonical);
    xxh3_64(scratch)
}

/// `01` and the UUID, or `00`, the length of the name as u32 and the name: a renamed collection keeps its keys.
pub(super) fn write_collection(out: &mut Vec<u8>, coll: &str, uuid: Option<&[u8; 16]>) {
    if let Some(uuid) = uuid {
        out.push(1);
        out.extend_from_slice(uuid);
    } else {
        out.push(0);
        out.extend_from_slice(&u32::try_from(coll.len()).unwrap_or(u32::MAX).to_le_bytes());
        out.extend_from_slice(coll.as_bytes());
    }
}

/// A filter of eight bits per distinct key, of an even number of bytes.
pub(super) fn build(mut hashes: Vec<u64>) -> Vec<u8> {
    hashes.sort_unstable();
    hashes.dedup();
    let mut bits = vec![0u8; hashes.len().next_multiple_of(2).max(MIN_BYTES)];
    for hash in hashes {
        insert(&mut bits, hash);
    }
    bits
}

/// The same keys in half the bytes: a position modulo half the bits is that of the whole filter, modulo half the bits. One lookup in six says "maybe" then.
pub(super) fn halved(mut bits: Vec<u8>) -> Vec<u8> {
    if bits.len() < 2 * MIN_BYTES || !bits.len().is_multiple_of(2) {
        return bits;
    }
    let upper = bits.split_off(bits.len() / 2);
    bits.iter_mut().zip(upper).for_each(|(byte, other)| *byte |= other);
    bits
}

/// Puts a key into a filter that is not empty.
pub(crate) fn insert(bits: &mut [u8], hash: u64) {
    for (byte, mask) in positions(hash, bits.len()) {
        bits[byte] |= mask;
    }
}

/// False only if no key of this hash went in.
pub(crate) fn may_contain(bits: &[u8], hash: u64) -> bool {
    bits.is_empty() || positions(hash, bits.len()).all(|(byte, mask)| bits[byte] & mask != 0)
}

/// Whether a document of a collection may be in a filter, by the UUID or by the name that its rows have.
pub(crate) fn may_contain_document(bits: &[u8], name: &str, uuid: &[u8; 16], canonical: &[u8]) -> bool {
    let mut scratch = Vec::new();
    let mut may = |uuid| may_contain(bits, key_hash(&mut scratch, name, uuid, canonical));
    may(Some(uuid)) || may(None)
}

/// Position n is (low half + n * (high half | 1)) modulo the number of bits; bit b is bit b % 8, from the lowest, of byte b / 8.
fn positions(hash: u64, bytes: usize) -> impl Iterator<Item = (usize, u8)> {
    let (low, high) = (hash & 0xffff_ffff, (hash >> 32) | 1);
    let bits = bytes as u64 * 8;
    (0..POSITIONS).map(move |n| {
        let bit = (low + n * high) % bits;
        #[allow(clippy::cast_possible_truncation)] // below the number of bytes
        let byte = (bit / 8) as usize;
        (byte, 1 << (bit % 8))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hash(n: u64) -> u64 {
        key_hash(&mut Vec::new(), "c", Some(&[7; 16]), &n.to_le_bytes())
    }

    #[test]
    fn what_went_in_is_found_and_few_others_are() {
        for count in [0u64, 1, 7, 100, 5000] {
            let bits = build((0..count).chain(0..count).map(hash).collect());
            assert_eq!(bits.len() as u64, count.next_multiple_of(2).max(8));
            let wrong = |bits: &[u8]| (1 << 20..(1 << 20) + 10_000).filter(|&n| may_contain(bits, hash(n))).count();
            assert!((0..count).all(|n| may_contain(&bits, hash(n))));
            assert!(wrong(&bits) < 400, "{} of 10,000 with {count} keys", wrong(&bits));
            let half = halved(bits.clone());
            assert_eq!(half.len(), if bits.len() < 16 { bits.len() } else { bits.len() / 2 });
            assert!((0..count).all(|n| may_contain(&half, hash(n))));
            assert!(wrong(&half) < 2_500, "{} of 10,000 with {count} keys in half", wrong(&half));
        }
        assert!(may_contain(&[], 1), "no filter excludes nothing");
    }

    #[test]
    fn collections_of_one_name_are_told_apart_by_uuid_and_a_rename_changes_nothing() {
        let hash = |coll, uuid| key_hash(&mut Vec::new(), coll, uuid, b"k");
        assert_eq!(hash("a", Some(&[1; 16])), hash("b", Some(&[1; 16])));
        assert_ne!(hash("a", Some(&[1; 16])), hash("a", Some(&[2; 16])));
        assert_ne!(hash("a", None), hash("b", None));
    }
}
