//! What has become ready for this engine, out of its claims and of counts that may be old.
//!
//! Owns: the arithmetic. Pure: what was counted and the time go in. Does not own: counting (`ledger`), what follows (`pool::scaler`).
//!
//! SUBTLE: what was claimed or still waits has arrived. A short queue is counted at each look, so that sum is exact. A deep one is not: its figure is
//! refreshed every ten seconds or so and stands still in between, while claims go on; their sum would be arrivals that never were. There what arrives
//! is taken from one refresh to the next, and carried on at that rate until the one after.

use std::time::Duration;

/// Ready jobs of this engine's share, as the queue has told.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Waiting {
    pub jobs: u64,
    /// Counted at this time of the server; `None`: just now.
    pub as_of_ms: Option<i64>,
    /// Only that there are so many at least is known.
    pub at_least: bool,
}

/// Sums since the engine's start.
#[derive(Debug, Default)]
pub(super) struct Arrivals {
    /// What an exact sum is off from the total by, since totals never jump where only a figure is mended.
    offset: f64,
    deep: Option<Deep>,
}

/// A queue that is too deep to be counted at each look.
#[derive(Debug, Clone, Copy)]
struct Deep {
    waiting: Waiting,
    at: Duration,
    claimed: u64,
    /// The total then.
    total: f64,
    /// Jobs a second that have arrived since.
    rate: f64,
}

impl Deep {
    fn since(&self, at: Duration) -> f64 {
        self.rate * at.saturating_sub(self.at).as_secs_f64()
    }
}

impl Arrivals {
    /// Takes a look at `at`, with `claimed` jobs claimed so far; returns what has arrived so far, and what waits now.
    pub(super) fn look(&mut self, at: Duration, claimed: u64, waiting: Waiting) -> (u64, u64) {
        if waiting.as_of_ms.is_none() && !waiting.at_least {
            if let Some(deep) = self.deep.take() {
                self.offset = deep.total + deep.since(at) - real(claimed + waiting.jobs);
            }
            return (count(real(claimed + waiting.jobs) + self.offset), waiting.jobs);
        }
        let deep = match self.deep {
            None => Deep { waiting, at, claimed, total: real(claimed + waiting.jobs) + self.offset, rate: 0.0 },
            Some(deep) if deep.waiting.as_of_ms == waiting.as_of_ms && deep.waiting.at_least == waiting.at_least => deep,
            Some(before) => {
                let total = before.total + before.since(at);
                let seconds = at.saturating_sub(before.at).as_secs_f64();
                let is_known = !before.waiting.at_least && !waiting.at_least && seconds > 0.0;
                let arrived = real(waiting.jobs) - real(before.waiting.jobs) + real(claimed) - real(before.claimed);
                Deep { waiting, at, claimed, total, rate: if is_known { (arrived / seconds).max(0.0) } else { before.rate } }
            }
        };
        self.deep = Some(deep);
        let left = real(deep.waiting.jobs) - (real(claimed) - real(deep.claimed)) + deep.since(at);
        let backlog = if waiting.at_least { waiting.jobs } else { count(left) };
        (count(deep.total + deep.since(at)), backlog)
    }
}

#[allow(clippy::cast_precision_loss)] // far below 2^52
fn real(n: u64) -> f64 {
    n as f64
}

#[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)] // a count of jobs
fn count(n: f64) -> u64 {
    n.max(0.0) as u64
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A queue that tells its depth as the ledger does: exactly up to 10,000, else as of the last refresh.
    struct Queue {
        waits: u64,
        arrived: u64,
        claimed: u64,
        refreshed: Option<(i64, u64)>,
    }

    impl Queue {
        fn new(waits: u64) -> Self {
            Self { waits, arrived: waits, claimed: 0, refreshed: None }
        }

        fn second(&mut self, at: u64, arrive: u64, claim: u64) -> Waiting {
            let claim = claim.min(self.waits + arrive);
            self.waits = self.waits + arrive - claim;
            self.arrived += arrive;
            self.claimed += claim;
            if at.is_multiple_of(10) {
                self.refreshed = Some((i64::try_from(at).unwrap(), self.waits));
            }
            match (self.waits > 10_000, self.refreshed) {
                (false, _) => Waiting { jobs: self.waits, ..Waiting::default() },
                (true, Some((at, jobs))) => Waiting { jobs, as_of_ms: Some(at), at_least: false },
                (true, None) => Waiting { jobs: 10_001, as_of_ms: None, at_least: true },
            }
        }
    }

    fn run(queue: &mut Queue, seconds: std::ops::RangeInclusive<u64>, arrive: u64, claim: u64) -> Vec<(u64, u64, u64)> {
        let mut arrivals = Arrivals::default();
        let mut all = Vec::new();
        for at in seconds {
            let waiting = queue.second(at, arrive, claim);
            let (arrived, backlog) = arrivals.look(Duration::from_secs(at), queue.claimed, waiting);
            all.push((arrived, backlog, queue.waits));
        }
        all
    }

    #[test]
    fn what_is_claimed_out_of_a_deep_queue_has_not_arrived_meanwhile() {
        let all = run(&mut Queue::new(50_000), 1..=45, 0, 1_000);
        for pair in all.windows(2) {
            assert_eq!(pair[0].0, pair[1].0, "nothing arrives: {pair:?}");
        }
        // From the first refresh on the backlog is known, and follows the claims in between.
        for (_, backlog, waits) in &all[10..] {
            assert_eq!(backlog, waits);
        }
        assert_eq!(all[3].1, 10_001, "at least so many");
    }

    #[test]
    fn the_rate_at_which_a_deep_queue_is_filled_is_found_and_never_jumps() {
        let all = run(&mut Queue::new(40_000), 1..=60, 700, 500);
        for pair in all[31..].windows(2) {
            assert!((690..=710).contains(&(pair[1].0 - pair[0].0)), "{pair:?}");
            assert!(pair[1].1.abs_diff(pair[1].2) < 50, "{pair:?}");
        }
        assert!(all.windows(2).all(|pair| pair[1].0 - pair[0].0 <= 710));
    }

    #[test]
    fn from_deep_to_short_and_back_nothing_is_counted_twice() {
        let mut queue = Queue::new(0);
        let mut arrivals = Arrivals::default();
        let mut look = |queue: &mut Queue, at: u64, arrive: u64, claim: u64| {
            let waiting = queue.second(at, arrive, claim);
            arrivals.look(Duration::from_secs(at), queue.claimed, waiting).0
        };
        assert_eq!(look(&mut queue, 1, 100, 50), 100);
        let burst = look(&mut queue, 2, 30_000, 500);
        assert!((10_000..=30_100).contains(&burst), "it shows at once: {burst}");
        let mut last = burst;
        for at in 3..=70 {
            let now = look(&mut queue, at, 0, 500);
            assert!(now >= last && now - last <= 1, "second {at}: {last} to {now}");
            last = now;
        }
        assert_eq!(queue.waits, 0);
        assert_eq!(look(&mut queue, 71, 300, 500), last + 300);
    }
}
