//! Owns: which documents of a base are final, since no change behind the base touches them: they need not be kept until the fold ends.
//! Does not own: reading those changes (`replay`), what becomes of the documents (`restore`).

use std::collections::HashSet;

use crate::branch::catalogue::Uuid;
use crate::segment::filter;

/// Bits for each change: one in two hundred of the documents that nothing touches is held back for nothing.
const BITS_PER_CHANGE: u64 = 12;
/// Largest filter, which beyond ten million changes holds back more and more.
const MAX_BYTES: u64 = 16 << 20;

/// What the changes behind a base touch.
#[derive(Debug)]
pub struct Settled {
    /// Whose documents may go at once.
    collections: HashSet<Uuid>,
    /// A Bloom filter: a document that it holds back by mistake takes the long way and comes out the same.
    touched: Vec<u8>,
    scratch: Vec<u8>,
}

impl Settled {
    /// Of these collections; nothing of at most so many changes has been seen yet.
    pub fn new(collections: HashSet<Uuid>, changes: u64) -> Self {
        let bytes = (changes.saturating_mul(BITS_PER_CHANGE) / 8).clamp(64, MAX_BYTES);
        Self { collections, touched: vec![0; usize::try_from(bytes).unwrap_or(64)], scratch: Vec::new() }
    }

    /// Bytes of memory.
    pub fn bytes(&self) -> u64 {
        self.touched.len() as u64
    }

    /// A change of this document is to come.
    pub fn touch(&mut self, uuid: Uuid, key: &[u8]) {
        let hash = filter::key_hash(&mut self.scratch, "", Some(&uuid), key);
        filter::insert(&mut self.touched, hash);
    }

    /// Documents of this collection cannot be told apart by their keys alone: it is dropped, and perhaps made again.
    pub fn hold(&mut self, uuid: &Uuid) {
        self.collections.remove(uuid);
    }

    /// The same of all of them.
    pub fn hold_all(&mut self) {
        self.collections.clear();
    }

    /// Whether a document of a base is what it will be at the end.
    pub fn has(&mut self, uuid: &Uuid, key: &[u8]) -> bool {
        self.collections.contains(uuid) && !filter::may_contain(&self.touched, filter::key_hash(&mut self.scratch, "", Some(uuid), key))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_touched_is_never_settled_and_most_of_the_rest_is() {
        let (a, b) = ([1; 16], [2; 16]);
        let mut settled = Settled::new(HashSet::from([a]), 10_000);
        (0..10_000u64).for_each(|n| settled.touch(a, &n.to_le_bytes()));
        assert!((0..10_000u64).all(|n| !settled.has(&a, &n.to_le_bytes())));
        let held = (10_000..20_000u64).filter(|n| !settled.has(&a, &n.to_le_bytes())).count();
        assert!(held < 150, "{held} of 10,000");
        assert!(!settled.has(&b, b"x"), "it was not asked for");
        settled.hold(&a);
        assert!(!settled.has(&a, &20_000u64.to_le_bytes()));
    }
}
