//! Owns: what a process death does to the jobs it was running (correctness.md 26). Does not own: how a death is recognised.

use std::time::Duration;

/// After this many deaths a job is suspected of killing its process and runs alone.
pub const SUSPECT_CRASHES: u32 = 2;

/// What becomes of a running job whose process died.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AfterCrash {
    /// Back to `ready`, with this many crashes; the attempt does not count.
    Requeue { crashes: u32 },
    /// It was a suspect and nothing else ran there: it is the killer.
    Dead { crashes: u32 },
}

/// Runs only when nothing else runs at the same engine.
pub fn is_suspect(crashes: u32) -> bool {
    crashes >= SUSPECT_CRASHES
}

/// A suspect that has been ready since `run_at_ms` for longer than `patience`: from now on nothing else is claimed until it has run alone,
/// since a queue that is never empty would let it wait for ever.
pub fn suspect_is_due(crashes: u32, run_at_ms: i64, now_ms: i64, patience: Duration) -> bool {
    let patience = i64::try_from(patience.as_millis()).unwrap_or(i64::MAX);
    is_suspect(crashes) && now_ms.saturating_sub(run_at_ms) > patience
}

/// `crashes` before this death; `alone`: it was the only job that had started in that process.
///
/// SUBTLE: two deaths are not enough to condemn a job. Fifty `kill -9` of a busy process would make fifty dead jobs, none of them guilty. A
/// suspect that was not alone stays a suspect.
pub fn after_crash(crashes: u32, alone: bool) -> AfterCrash {
    let now = crashes.saturating_add(1);
    if is_suspect(crashes) && alone { AfterCrash::Dead { crashes: now } } else { AfterCrash::Requeue { crashes: now } }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn rule_26_the_third_death_alone_condemns() {
        for (crashes, alone, expected) in [
            (0, true, AfterCrash::Requeue { crashes: 1 }),
            (0, false, AfterCrash::Requeue { crashes: 1 }),
            (1, true, AfterCrash::Requeue { crashes: 2 }),
            (1, false, AfterCrash::Requeue { crashes: 2 }),
            (2, false, AfterCrash::Requeue { crashes: 3 }),
            (2, true, AfterCrash::Dead { crashes: 3 }),
            (7, true, AfterCrash::Dead { crashes: 8 }),
        ] {
            assert_eq!(after_crash(crashes, alone), expected, "{crashes} {alone}");
        }
    }

    #[test]
    fn a_suspect_is_due_when_its_patience_is_over_and_others_never_are() {
        let patience = Duration::from_secs(30);
        for (crashes, waited_ms, due) in [(2, 30_001, true), (9, i64::MAX, true), (2, 30_000, false), (2, -5, false), (1, 90_000, false)] {
            assert_eq!(suspect_is_due(crashes, 0, waited_ms, patience), due, "{crashes} {waited_ms}");
        }
    }

    proptest! {
        #[test]
        fn rule_26_in_company_no_number_of_deaths_condemns(crashes: u32) {
            let requeued = matches!(after_crash(crashes, false), AfterCrash::Requeue { .. });
            prop_assert!(requeued);
        }
    }
}
