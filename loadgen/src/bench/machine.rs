//! Owns: how much of the machine others used while something was measured, so that a figure from a busy machine is seen as one.
//! Does not own the CPU times of our own processes.

use std::time::{Duration, Instant};

use argon::runtime::clock;

/// The machine at one moment.
#[derive(Debug, Clone, Copy)]
pub(super) struct Machine {
    at: Instant,
    busy_s: f64,
}

impl Machine {
    /// Now.
    pub(super) fn now() -> Self {
        let stat = std::fs::read_to_string("/proc/stat").unwrap_or_default();
        Self { at: clock::now(), busy_s: busy(&stat).unwrap_or(0.0) }
    }

    /// Cores that neither idled nor worked for `ours_s` CPU seconds since then. What the hypervisor took counts too.
    pub(super) fn others_since(self, ours_s: f64) -> f64 {
        others(Self::now().busy_s - self.busy_s, ours_s, self.at.elapsed())
    }
}

/// Never below zero: clocks of ticks do not agree to the tick.
fn others(busy_s: f64, ours_s: f64, elapsed: Duration) -> f64 {
    ((busy_s - ours_s) / elapsed.as_secs_f64().max(1e-3)).max(0.0)
}

/// Seconds of all cores that were not idle nor waiting for a disk, from the first line of /proc/stat in ticks of 1/100 s:
/// user nice system idle iowait irq softirq steal.
fn busy(stat: &str) -> Option<f64> {
    let mut fields = stat.lines().next()?.split_whitespace();
    (fields.next() == Some("cpu")).then_some(())?;
    let ticks: Vec<u64> = fields.map_while(|field| field.parse().ok()).collect();
    let counted = [0, 1, 2, 5, 6, 7].map(|i| ticks.get(i).copied().unwrap_or(0));
    Some(super::real(counted.iter().sum()) / 100.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    #[allow(clippy::float_cmp)] // sums of whole hundredths
    fn idle_and_waiting_for_a_disk_are_not_work_and_stolen_time_is() {
        assert_eq!(busy("cpu  100 10 50 9000 700 1 2 37 500 0\ncpu0 1"), Some(2.0));
        assert_eq!((busy("intr 1"), busy("")), (None, None));
    }

    #[test]
    #[allow(clippy::float_cmp)]
    fn others_have_what_is_left() {
        assert_eq!(others(6.0, 4.0, Duration::from_secs(4)), 0.5);
        assert_eq!(others(3.9, 4.0, Duration::from_secs(4)), 0.0);
    }
}
