//! Owns: how many jobs are claimed at a time and how many may wait in this engine. Pure. Does not own: the claim.

use std::time::Duration;

/// Work that may wait in this engine. Long enough that no worker waits for the round trip of a claim, short enough that another engine without
/// work finds the rest of the queue soon, and that a job of higher priority waits behind little.
const HOLD: Duration = Duration::from_millis(100);
/// Waiting jobs, although one worker holds that much work: hides the round trip of a claim.
const LEAST: usize = 2;
/// From here on the round trip is nothing, and a job had better wait where any engine can take it.
const LONG: Duration = Duration::from_secs(1);
/// Waiting jobs, however short they are: what one claim may bring, and what a crash would make others wait for.
const MOST: usize = 1_000;

/// Jobs that may wait for `workers`, given the mean time of a job as far as it is known.
pub(crate) fn prefetch(workers: usize, mean: Option<Duration>) -> usize {
    let Some(mean) = mean else { return LEAST };
    if mean >= LONG {
        return 0;
    }
    let each = HOLD.as_nanos() / mean.as_nanos().max(1);
    usize::try_from(each).unwrap_or(usize::MAX).saturating_mul(workers).clamp(LEAST, MOST)
}

/// Jobs to claim now: 0 while more than half of what may wait does, so that short jobs are claimed by the hundred and not one by one.
pub(crate) fn to_claim(workers: usize, running: usize, waiting: usize, prefetch: usize) -> usize {
    let held = running + waiting;
    let room = (workers + prefetch).saturating_sub(held);
    let workers_wait = held < workers;
    if workers_wait || waiting * 2 <= prefetch { room } else { 0 }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn long_jobs_are_not_claimed_ahead_and_short_ones_by_a_tenth_of_a_second() {
        let ms = Duration::from_millis;
        for (workers, mean, expected) in [
            (5, None, 2),
            (5, Some(ms(60_000)), 0),
            (5, Some(ms(999)), 2),
            (5, Some(ms(50)), 10),
            (5, Some(ms(10)), 50),
            (20, Some(ms(1)), 1_000),
            (8, Some(Duration::ZERO), 1_000),
            (0, Some(ms(1)), 2),
        ] {
            assert_eq!(prefetch(workers, mean), expected, "{workers} {mean:?}");
        }
    }

    #[test]
    fn claims_are_made_when_a_worker_would_wait_and_else_in_bulk() {
        for (workers, running, waiting, prefetch, expected, what) in [
            (5, 0, 0, 2, 7, "all are free"),
            (5, 5, 1, 2, 1, "one place is free"),
            (5, 5, 2, 2, 0, "full"),
            (8, 8, 300, 512, 0, "more than half waits"),
            (8, 8, 256, 512, 256, "half waits"),
            (8, 3, 0, 512, 517, "workers wait"),
            (2, 5, 1, 2, 0, "fewer workers than run: the pool shrinks"),
            (5, 3, 0, 0, 2, "long jobs: one for each worker that waits"),
            (5, 5, 0, 0, 0, "long jobs: none ahead"),
            (0, 0, 0, 2, 2, "a pool that has no worker yet"),
        ] {
            assert_eq!(to_claim(workers, running, waiting, prefetch), expected, "{what}");
        }
    }
}
