//! When operations are due. Pure: time comes in as nanoseconds since the start.
//!
//! Owns: the open-loop schedule of one of several writers. It never depends on how fast the server answers: that is what keeps
//! coordinated omission out of the latencies. Does not own sleeping or sending.

const SECOND_NS: u128 = 1_000_000_000;

/// Operations `0, 1, 2, ...` of the whole run are due at `i / rate`, rounded up to the next tick; writer `lane` of `lanes` has those
/// with `i % lanes == lane`.
#[derive(Debug, Clone, Copy)]
pub(super) struct Schedule {
    rate: u32,
    lanes: u32,
    lane: u32,
    tick_ns: u64,
}

impl Schedule {
    /// `rate` operations per second over all lanes; a tick of 0 spreads them evenly.
    pub(super) fn new(rate: u32, lanes: u32, lane: u32, tick_ns: u64) -> Self {
        Self { rate: rate.max(1), lanes: lanes.max(1), lane, tick_ns }
    }

    /// When this lane's operation `n` is due.
    pub(super) fn due_ns(&self, n: u64) -> u64 {
        let i = u128::from(n) * u128::from(self.lanes) + u128::from(self.lane);
        let ideal = (i * SECOND_NS).div_ceil(u128::from(self.rate));
        let due = if self.tick_ns == 0 { ideal } else { ideal.div_ceil(u128::from(self.tick_ns)) * u128::from(self.tick_ns) };
        u64::try_from(due).unwrap_or(u64::MAX)
    }

    /// How many operations of this lane are due up to and including `now_ns`.
    pub(super) fn due_by(&self, now_ns: u64) -> u64 {
        let burst = if self.tick_ns == 0 { now_ns } else { now_ns - now_ns % self.tick_ns };
        let all = u128::from(burst) * u128::from(self.rate) / SECOND_NS + 1;
        let own = (all + u128::from(self.lanes) - 1 - u128::from(self.lane)) / u128::from(self.lanes);
        u64::try_from(own).unwrap_or(u64::MAX)
    }
}

/// Lane `lane`'s share of `count` operations dealt out in turn.
pub(super) fn share(count: u64, lanes: u32, lane: u32) -> u64 {
    let (lanes, lane) = (u64::from(lanes.max(1)), u64::from(lane));
    count / lanes + u64::from(lane < count % lanes)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_rate_is_spread_evenly_without_a_tick_and_in_bursts_with_one() {
        let even = Schedule::new(1000, 2, 1, 0);
        assert_eq!([even.due_ns(0), even.due_ns(1), even.due_ns(2)], [1_000_000, 3_000_000, 5_000_000]);
        let bursts = Schedule::new(1000, 1, 0, 5_000_000);
        assert_eq!([0, 1, 5, 6].map(|n| bursts.due_ns(n)), [0, 5_000_000, 5_000_000, 10_000_000]);
        assert_eq!([0, 4_999_999, 5_000_000].map(|now| bursts.due_by(now)), [1, 1, 6]);
    }

    #[test]
    fn after_a_stall_everything_that_was_due_meanwhile_is_due_at_its_own_time() {
        let schedule = Schedule::new(10_000, 1, 0, 0);
        let sent_before = schedule.due_by(1_000_000_000);
        let due_after = schedule.due_by(3_000_000_000); // the server slept for two seconds
        assert_eq!(due_after - sent_before, 20_000);
        assert_eq!(schedule.due_ns(sent_before), 1_000_100_000, "the first one waited for almost all of the stall");
    }

    #[test]
    fn a_rate_that_does_not_divide_a_second_does_not_drift() {
        let schedule = Schedule::new(7, 1, 0, 0);
        assert_eq!(schedule.due_by(86_400 * 1_000_000_000), 7 * 86_400 + 1);
    }

    proptest! {
        #[test]
        fn due_by_counts_exactly_what_due_ns_says(rate in 1u32..100_000, lanes in 1u32..8, lane in 0u32..8, tick in 0u64..20_000_000, now in 0u64..3_000_000_000) {
            let schedule = Schedule::new(rate, lanes, lane % lanes, tick);
            let count = schedule.due_by(now);
            if count > 0 {
                prop_assert!(schedule.due_ns(count - 1) <= now);
            }
            prop_assert!(schedule.due_ns(count) > now);
        }

        #[test]
        fn the_lanes_together_have_every_operation_once(rate in 1u32..100_000, lanes in 1u32..8, tick in 0u64..20_000_000, now in 0u64..3_000_000_000) {
            let all: u64 = (0..lanes).map(|lane| Schedule::new(rate, lanes, lane, tick).due_by(now)).sum();
            prop_assert_eq!(all, Schedule::new(rate, 1, 0, tick).due_by(now));
        }

        #[test]
        fn shares_add_up_and_differ_by_one_at_most(count in 0u64..1_000_000, lanes in 1u32..100) {
            let shares: Vec<u64> = (0..lanes).map(|lane| share(count, lanes, lane)).collect();
            prop_assert_eq!(shares.iter().sum::<u64>(), count);
            prop_assert!(shares[0] - shares[shares.len() - 1] <= 1);
        }
    }
}
