//! Owns: the order of claims. Does not own: the index that serves it.

use crate::ledger::{JobKind, Priority};

impl Priority {
    /// The priority of a kind.
    pub fn of(kind: JobKind) -> Self {
        match kind {
            // Noop jobs measure what the queue does with the stream's.
            JobKind::Sync | JobKind::Noop => Self::Normal,
            JobKind::Notification => Self::High,
            JobKind::Compression | JobKind::Cleanup | JobKind::Snapshot | JobKind::Drill => Self::Low,
        }
    }
}

/// How much earlier than its `run_at` a job counts, in ms. A boost is bounded, so priorities age: a job of any priority
/// that has waited longer than the greatest boost goes before every newer one, and nothing starves.
pub fn boost_ms(priority: Priority) -> i64 {
    match priority {
        Priority::Low => 0,
        Priority::Normal => 60_000,
        Priority::High => 600_000,
    }
}

/// The one sort key of claims.
pub fn sched_key(run_at_ms: i64, priority: Priority) -> i64 {
    run_at_ms.saturating_sub(boost_ms(priority))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const ALL: [Priority; 3] = [Priority::Low, Priority::Normal, Priority::High];

    #[test]
    fn at_one_moment_the_higher_priority_goes_first() {
        assert!(sched_key(5, Priority::High) < sched_key(5, Priority::Normal));
        assert!(sched_key(5, Priority::Normal) < sched_key(5, Priority::Low));
    }

    proptest! {
        #[test]
        fn within_a_priority_the_order_is_that_of_time(a: i64, b: i64, p in 0..3usize) {
            prop_assume!(a > i64::MIN / 2 && b > i64::MIN / 2);
            prop_assert_eq!(a.cmp(&b), sched_key(a, ALL[p]).cmp(&sched_key(b, ALL[p])));
        }

        #[test]
        fn nothing_starves(old in 0..i64::MAX / 2, wait in 600_001..1_000_000_000i64, p in 0..3usize, q in 0..3usize) {
            // Whatever comes later than the greatest boost comes behind, whatever its priority.
            prop_assert!(sched_key(old, ALL[p]) < sched_key(old + wait, ALL[q]));
        }
    }
}
