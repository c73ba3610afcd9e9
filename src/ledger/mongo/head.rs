//! Where the queue begins, as far as a claimer that goes on needs to know.
//!
//! Owns: how long that is believed. Does not own: the search (`claim`).
//!
//! SUBTLE: what has been claimed stays in the index for as long as MongoDB keeps history (`minSnapshotHistoryWindowInSeconds`, five minutes), and a
//! search from the beginning walks over all of it: after some hundred thousand jobs that is most of what a small claim costs. So a claimer whose last
//! claim was full begins where that one found its first job. A job that comes in before that place (a higher priority, one that was given back) is
//! seen when the next search begins at the very beginning: after [`BELIEVED`], or at once when there is not enough behind the place.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use parking_lot::Mutex;

use super::super::JobKind;

/// How much later a job may be found for it.
const BELIEVED: Duration = Duration::from_secs(1);

/// Places by the kinds that are claimed together.
#[derive(Debug, Default)]
pub(super) struct Heads(Mutex<BTreeMap<Vec<JobKind>, Head>>);

#[derive(Debug, Clone, Copy)]
struct Head {
    key: i64,
    /// When a search began at the very beginning.
    searched: Instant,
}

impl Heads {
    /// Nothing of these kinds lies before this key.
    pub(super) fn of(&self, kinds: &[JobKind], now: Instant) -> Option<i64> {
        let head = self.0.lock().get(kinds).copied()?;
        (now.saturating_duration_since(head.searched) < BELIEVED).then_some(head.key)
    }

    /// A search has found as much as it looked for, the first with this key; `from_start`: it began at the very beginning.
    pub(super) fn found(&self, kinds: &[JobKind], key: i64, from_start: bool, now: Instant) {
        let mut heads = self.0.lock();
        match heads.get_mut(kinds) {
            Some(head) => *head = Head { key, searched: if from_start { now } else { head.searched } },
            None if from_start => drop(heads.insert(kinds.to_vec(), Head { key, searched: now })),
            None => {}
        }
    }

    /// A search has found the end of the queue.
    pub(super) fn forget(&self, kinds: &[JobKind]) {
        self.0.lock().remove(kinds);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::runtime::clock;

    #[test]
    fn a_place_is_believed_for_a_second_after_a_search_from_the_start() {
        let (heads, now) = (Heads::default(), clock::now());
        let kinds = [JobKind::Sync, JobKind::Noop];
        assert_eq!(heads.of(&kinds, now), None);
        heads.found(&kinds, 5, false, now);
        assert_eq!(heads.of(&kinds, now), None, "only a whole search says what lies at the beginning");
        heads.found(&kinds, 7, true, now);
        heads.found(&kinds, 9, false, now + BELIEVED / 2);
        assert_eq!(heads.of(&kinds, now + BELIEVED / 2), Some(9));
        assert_eq!(heads.of(&kinds[..1], now), None, "of other kinds nothing is known");
        assert_eq!(heads.of(&kinds, now + BELIEVED), None, "however often it moved");
        heads.forget(&kinds);
        assert_eq!(heads.of(&kinds, now), None);
    }
}
