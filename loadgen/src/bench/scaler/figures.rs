//! Owns: how well a policy did, out of what was recorded. Does not own the run.

use serde::Serialize;

use super::backend::Backend;
use super::loads::{Change, Load, Phase};
use super::policies::Bounds;
use super::real;
use super::sim::{LOOK, Second, Trace};

/// The backlog of one who knows everything is gone in this time: the drain target of Argon's scaler.
const ORACLE_DRAIN: f64 = 15.0;

/// A run in figures.
#[derive(Debug, Clone, Serialize)]
pub(super) struct Figures {
    /// Seconds from a rise of the load to the last increase; the worst rise. Absent: the backlog was still growing when the phase ended.
    pub settling_s: Option<f64>,
    /// Workers at most above those that stayed, after a rise that lasts; the worst rise.
    pub overshoot: Option<u16>,
    /// Changes of the size.
    pub decisions: usize,
    /// Changes against the direction of the change before.
    pub reversals: usize,
    /// Seconds from a rise until the backlog is back at a second's arrivals; the worst rise. Absent: never.
    pub drain_s: Option<f64>,
    /// The least it could be: the backend at its best from the first moment on.
    pub drain_bound_s: f64,
    pub worker_seconds: f64,
    /// Of one who knows rate and service time of the moment and uses the fewest workers that keep the backlog bounded.
    pub oracle_worker_seconds: f64,
    /// From becoming ready to the start of the attempt that did the job; only the simulation knows it.
    pub wait_p99_s: Option<f64>,
    pub most_backlog: u64,
    pub most_workers: u16,
    pub completed: u64,
    /// More backlog at the end than can be done in a minute.
    pub unbounded: bool,
}

impl Figures {
    /// Of a run.
    pub(super) fn of(load: &Load, backend: &Backend, bounds: Bounds, trace: &Trace) -> Self {
        let targets: Vec<u16> = trace.seconds.iter().map(|second| second.target).collect();
        let (decisions, reversals) = changes(&targets);
        let capacity = backend.capacity(bounds.max);
        let phases: Vec<(Phase, Vec<Second>)> = load
            .phases()
            .into_iter()
            .filter(|phase| phase.change != Change::Falls)
            .map(|phase| (phase, trace.seconds.iter().filter(|s| phase.holds(s.at)).copied().collect()))
            .collect();
        let worst = |of: &dyn Fn(&Phase, &[Second]) -> Option<f64>| {
            phases
                .iter()
                .map(|(phase, seconds)| of(phase, seconds))
                .try_fold(None, |worst: Option<f64>, one| one.map(|one| Some(worst.map_or(one, |worst| worst.max(one)))))
        };
        let overshoot =
            phases.iter().filter(|(phase, _)| phase.change == Change::Rises).filter_map(|(_, seconds)| above_the_last(seconds)).max();
        let last = trace.seconds.last().copied().unwrap_or_default();
        Self {
            settling_s: worst(&|phase, seconds| drained(phase, seconds).and(settled(phase, seconds))).flatten(),
            overshoot,
            decisions,
            reversals,
            drain_s: worst(&drained).flatten(),
            drain_bound_s: phases.iter().map(|(phase, seconds)| bound(load, phase, seconds, capacity)).fold(0.0, f64::max),
            worker_seconds: trace.worker_seconds,
            oracle_worker_seconds: oracle(load, backend, bounds),
            wait_p99_s: quantile(&trace.waits, 0.99),
            most_backlog: trace.seconds.iter().map(|second| second.backlog).max().unwrap_or(0),
            most_workers: targets.iter().copied().max().unwrap_or(0),
            completed: last.completed,
            unbounded: real(last.backlog) > 60.0 * capacity.min(last.rate.max(1.0)),
        }
    }

    /// Worker time against the oracle's.
    pub(super) fn cost(&self) -> f64 {
        self.worker_seconds / self.oracle_worker_seconds.max(1.0)
    }
}

/// How often the size changed, and how often against the change before.
pub(super) fn changes(targets: &[u16]) -> (usize, usize) {
    let ups: Vec<bool> = targets.windows(2).filter(|pair| pair[0] != pair[1]).map(|pair| pair[1] > pair[0]).collect();
    (ups.len(), ups.windows(2).filter(|pair| pair[0] != pair[1]).count())
}

/// Seconds from the beginning of a phase to its last increase.
fn settled(phase: &Phase, seconds: &[Second]) -> Option<f64> {
    let last = seconds.windows(2).rfind(|pair| pair[1].target > pair[0].target);
    Some(last.map_or(0.0, |pair| pair[1].at - phase.from))
}

/// The highest size of a phase above the one at its end.
fn above_the_last(seconds: &[Second]) -> Option<u16> {
    let most = seconds.iter().map(|second| second.target).max()?;
    Some(most - seconds.last()?.target)
}

/// Seconds from the beginning of a phase until the backlog, once it has been more than a second's arrivals, is no more than that again.
fn drained(phase: &Phase, seconds: &[Second]) -> Option<f64> {
    let is_late = |second: &&Second| real(second.backlog) > second.rate.max(1.0);
    let Some(late) = seconds.iter().position(|second| is_late(&second)) else { return Some(0.0) };
    let done = seconds.iter().skip(late).find(|second| !is_late(second))?;
    Some(done.at - phase.from)
}

/// The least that can be, out of the backlog that is there when a phase begins.
fn bound(load: &Load, phase: &Phase, seconds: &[Second], capacity: f64) -> f64 {
    let Some(first) = seconds.first().filter(|_| phase.change == Change::Backlog) else { return 0.0 };
    let burst = load.burst.map_or(0.0, |(_, jobs)| f64::from(jobs));
    // Down to a second's arrivals, as `drained` looks for.
    (real(first.backlog).max(burst) - first.rate).max(0.0) / (capacity - first.rate).max(f64::MIN_POSITIVE)
}

/// Worker time of the one who knows everything.
fn oracle(load: &Load, backend: &Backend, bounds: Bounds) -> f64 {
    let (mut t, mut backlog, mut spent) = (0.0, 0.0, 0.0);
    let mut burst = load.burst;
    while t < load.seconds {
        if let Some((_, jobs)) = burst.take_if(|(at, _)| *at <= t) {
            backlog += f64::from(jobs);
        }
        let (rate, weight) = (load.rate(t, backend.capacity(bounds.max)), load.weight(t));
        let (mut workers, mut done) = (bounds.base, 0.0);
        if !load.is_out(t) {
            workers = backend.needed(rate + backlog / ORACLE_DRAIN, weight, bounds.max).max(bounds.base);
            done = backend.throughput(f64::from(workers), weight);
        }
        backlog = (backlog + (rate - done) * LOOK).max(0.0);
        spent += f64::from(workers) * LOOK;
        t += LOOK;
    }
    spent
}

/// The value under which this share of the ordered values lies.
#[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss, clippy::cast_precision_loss)] // an index
fn quantile(ordered: &[f64], share: f64) -> Option<f64> {
    let at = (ordered.len().saturating_sub(1) as f64 * share).round() as usize;
    ordered.get(at).copied()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reversal_is_a_change_against_the_one_before() {
        for (targets, wanted) in
            [(&[5, 5, 5][..], (0, 0)), (&[5, 9, 12, 12], (2, 0)), (&[5, 9, 7, 7, 5], (3, 1)), (&[5, 6, 5, 6], (3, 2)), (&[], (0, 0))]
        {
            assert_eq!(changes(targets), wanted, "{targets:?}");
        }
    }
}
