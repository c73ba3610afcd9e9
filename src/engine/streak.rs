//! Owns: whether this engine may judge others by their silence. Pure: times go in. Does not own: beating or rescuing (`upkeep`).
//!
//! SUBTLE: silence proves death only to somebody who would have heard. When the metadata is away for longer than a lease (an election takes
//! ten seconds or more), every heartbeat on record is old afterwards, and whoever looks first would take all the others for dead, each of
//! their jobs for one that kills its process. So an engine judges only after a whole lease in which its own heartbeats came through without
//! a gap. In that time every living engine has been able to write one: the rhythm below adds up to one lease at the very worst (a pause, a
//! gap that is not noticed here, one call that hangs over its end, and the pause before the next try).

use std::time::{Duration, Instant};

/// The rhythm of heartbeats, in parts of the lease.
#[derive(Debug, Clone, Copy)]
pub(super) struct Rhythm {
    lease: Duration,
}

impl Rhythm {
    pub(super) fn new(lease: Duration) -> Self {
        Self { lease }
    }

    /// From one heartbeat that came through to the next.
    pub(super) fn every(self) -> Duration {
        self.lease / 5
    }

    /// Longest time of one call.
    pub(super) fn limit(self) -> Duration {
        self.lease / 4
    }

    /// After one that did not come through.
    pub(super) fn again(self) -> Duration {
        self.lease / 20
    }

    /// Longest time between sending one heartbeat and having the answer of the next that is no gap.
    fn gap(self) -> Duration {
        self.lease / 2
    }
}

/// Heartbeats of this engine that came through without a gap.
#[derive(Debug)]
pub(super) struct Streak {
    rhythm: Rhythm,
    /// Answer of the first one.
    since: Option<Instant>,
    /// When the last one was sent.
    last_sent: Option<Instant>,
}

impl Streak {
    pub(super) fn new(rhythm: Rhythm) -> Self {
        Self { rhythm, since: None, last_sent: None }
    }

    /// One came through.
    pub(super) fn beaten(&mut self, sent: Instant, answered: Instant) {
        let goes_on = self.last_sent.is_some_and(|last| answered.saturating_duration_since(last) <= self.rhythm.gap());
        if !goes_on {
            self.since = Some(answered);
        }
        self.last_sent = Some(sent);
    }

    /// Silence of others is proof now: it has been possible to be heard for a whole lease, up to this moment.
    pub(super) fn may_judge(&self, now: Instant) -> bool {
        let (Some(since), Some(last)) = (self.since, self.last_sent) else { return false };
        now.saturating_duration_since(since) >= self.rhythm.lease && now.saturating_duration_since(last) <= self.rhythm.gap()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::runtime::clock;

    const SECOND: Duration = Duration::from_secs(1);

    /// Heartbeats sent and answered at these seconds, then the question at another, with a lease of ten.
    fn judges(beats: &[(u32, u32)], at: u32) -> bool {
        let start = clock::now();
        let mut streak = Streak::new(Rhythm::new(10 * SECOND));
        for (sent, answered) in beats {
            streak.beaten(start + *sent * SECOND, start + *answered * SECOND);
        }
        streak.may_judge(start + at * SECOND)
    }

    #[test]
    fn silence_is_proof_only_after_a_lease_without_a_gap() {
        let steady: Vec<(u32, u32)> = (0..=5).map(|n| (2 * n, 2 * n)).collect();
        let after_an_outage = |ends: u32| -> Vec<(u32, u32)> {
            let back = (0..5).map(|n| (ends + 2 * n, ends + 2 * n));
            steady.iter().copied().chain(back).collect()
        };
        for (what, beats, at, may) in [
            ("before the first heartbeat", vec![], 100, false),
            ("a young engine", vec![(0, 0), (2, 2)], 3, false),
            ("after a lease", steady.clone(), 10, true),
            ("a heartbeat that was slow but no gap", vec![(0, 0), (2, 5), (5, 7), (7, 9)], 10, true),
            ("its own last heartbeat is old", steady.clone(), 16, false),
            ("right after an outage", after_an_outage(30)[..7].to_vec(), 30, false),
            ("less than a lease after an outage", after_an_outage(30), 39, false),
            ("a lease after an outage", [after_an_outage(30), vec![(40, 40)]].concat(), 40, true),
            ("an answer that came after a gap", vec![(0, 0), (2, 8), (8, 8), (10, 10)], 11, false),
        ] {
            assert_eq!(judges(&beats, at), may, "{what}");
        }
    }

    #[test]
    fn a_living_engine_is_heard_within_a_lease_whatever_gap_another_has_not_noticed() {
        let lease = 600 * SECOND;
        let rhythm = Rhythm::new(lease);
        assert!(rhythm.every() + rhythm.gap() + rhythm.limit() + rhythm.again() <= lease);
        assert!(rhythm.every() + rhythm.limit() < rhythm.gap(), "an ordinary slow heartbeat is no gap");
    }
}
