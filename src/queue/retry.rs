//! Owns: what a failed attempt leads to, how long to wait, and what is kept of its error. Does not own: clocks and randomness (arguments).

use std::time::Duration;

use crate::fault::{Fault, Kind};
use crate::ledger::{Failed, Job, JobError, MAX_JOB_ERRORS};
use crate::runtime::backoff::Backoff;

/// Longest error text kept of an attempt; fifty of them stay far below a document's 16 MB.
pub const MAX_ERROR_CHARS: usize = 1_000;

/// An outage is tried again at least this often, so that work goes on within a minute of its end.
const OUTAGE_CAP: Duration = Duration::from_secs(30);
/// A `Retry-After` is obeyed up to this: a proxy that names a day must not hold a branch for a day.
const LONGEST_ASKED: Duration = Duration::from_secs(120);

/// `JOB_RETRY_COUNT`, `JOB_RETRY_DELAY`, `JOB_RETRY_MAX_DELAY`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RetryPolicy {
    /// Attempts after the first.
    pub retries: u32,
    /// Delays between them.
    pub backoff: Backoff,
}

impl RetryPolicy {
    /// The policy of one job, which may have its own number of retries.
    #[must_use]
    pub fn of(self, job: &Job) -> Self {
        Self { retries: job.retries.unwrap_or(self.retries), ..self }
    }

    /// What becomes of a job that has run for longer than `limit` (`JOB_STUCK_TIMEOUT`) in a process that lives: the attempt is over and counts.
    pub fn after_stuck(&self, job: &Job, limit: Duration, unit: f64) -> Failed {
        let engine = job.lease.as_ref().map_or("", |lease| lease.engine.as_str());
        let limit = humantime::format_duration(limit);
        let fault = Fault::unknown(format!("no outcome within JOB_STUCK_TIMEOUT ({limit}): taken from {engine}, which may still be at it"));
        self.of(job).after(job.attempt, job.error_count, &fault, unit)
    }

    /// What becomes of a job whose attempt number `attempt` failed, after `error_count` earlier errors.
    pub fn after(&self, attempt: u32, error_count: u32, fault: &Fault, unit: f64) -> Failed {
        let error = clip_error(&fault.what);
        let asked = fault.retry_after.unwrap_or(Duration::ZERO).min(LONGEST_ASKED);
        match fault.kind {
            Kind::Cancelled => Failed::GiveBack { delay: Duration::ZERO, error: None },
            // It did not happen and may work later: an outage does not use up attempts.
            Kind::Transient => {
                let delay = self.backoff.delay(error_count.saturating_add(1), unit).min(OUTAGE_CAP);
                Failed::GiveBack { delay: delay.max(asked), error: Some(error) }
            }
            // A repeat would do the same.
            Kind::Rejected | Kind::Corrupt | Kind::Config => Failed::Dead { error },
            Kind::Unknown | Kind::Fenced | Kind::Missing | Kind::HistoryLost => {
                if attempt > self.retries {
                    Failed::Dead { error }
                } else {
                    Failed::Retry { delay: self.backoff.delay(attempt, unit).max(asked), error }
                }
            }
        }
    }
}

/// One line of bounded length.
pub fn clip_error(error: &str) -> String {
    error.chars().map(|c| if c.is_control() { ' ' } else { c }).take(MAX_ERROR_CHARS).collect()
}

/// Appends to the history, which keeps the newest [`MAX_JOB_ERRORS`], and counts.
pub fn push_error(errors: &mut Vec<JobError>, count: &mut u32, error: JobError) {
    errors.push(error);
    let excess = errors.len().saturating_sub(MAX_JOB_ERRORS);
    errors.drain(..excess);
    *count = count.saturating_add(1);
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const POLICY: RetryPolicy =
        RetryPolicy { retries: 3, backoff: Backoff { base: Duration::from_secs(30), cap: Duration::from_secs(600) } };

    #[test]
    fn three_retries_are_four_attempts() {
        let fault = Fault::unknown("the answer was lost");
        for attempt in 1..=3 {
            assert!(matches!(POLICY.after(attempt, 0, &fault, 0.5), Failed::Retry { .. }), "{attempt}");
        }
        assert_eq!(POLICY.after(4, 3, &fault, 0.5), Failed::Dead { error: "the answer was lost".into() });
    }

    #[test]
    fn errors_that_cannot_heal_are_dead_at_once_and_outages_never() {
        for fault in [Fault::rejected("x"), Fault::corrupt("x"), Fault::config("x")] {
            assert!(matches!(POLICY.after(1, 0, &fault, 0.5), Failed::Dead { .. }), "{fault:?}");
        }
        assert!(matches!(POLICY.after(400, 400, &Fault::transient("503"), 0.5), Failed::GiveBack { error: Some(_), .. }));
        assert_eq!(POLICY.after(1, 0, &Fault::cancelled("stop"), 0.5), Failed::GiveBack { delay: Duration::ZERO, error: None });
    }

    fn job(attempt: u32, retries: Option<u32>) -> Job {
        let row = bson::rawdoc! {
            "_id": "j1", "kind": "noop", "state": "running", "run_at_ms": 1i64, "sched_key": 1i64, "created_ms": 1i64, "finished_ms": null,
            "attempt": i64::from(attempt), "crashes": 0, "lease": { "engine": "e1", "token": "t", "claimed_ms": 1i64 },
            "errors": [], "error_count": 0, "sync": null,
        };
        Job { retries, ..bson::deserialize_from_slice(row.as_bytes()).unwrap() }
    }

    #[test]
    fn a_job_may_have_its_own_number_of_retries() {
        let fault = Fault::unknown("x");
        for (attempt, retries, dead) in [(1, Some(0), true), (4, None, true), (4, Some(9), false), (3, None, false)] {
            let job = job(attempt, retries);
            let after = POLICY.of(&job).after(job.attempt, 0, &fault, 0.5);
            assert_eq!(matches!(after, Failed::Dead { .. }), dead, "{attempt} {retries:?}");
        }
    }

    #[test]
    fn a_stuck_attempt_counts_and_says_where_it_was() {
        let limit = Duration::from_secs(600);
        let Failed::Retry { error, .. } = POLICY.after_stuck(&job(1, None), limit, 0.5) else { panic!("it is tried again") };
        assert!(error.contains("JOB_STUCK_TIMEOUT (10m)") && error.contains("e1"), "{error}");
        assert!(matches!(POLICY.after_stuck(&job(4, None), limit, 0.5), Failed::Dead { .. }));
        assert!(matches!(POLICY.after_stuck(&job(1, Some(0)), limit, 0.5), Failed::Dead { .. }));
    }

    #[test]
    fn delays_grow_with_attempts_and_outages_are_tried_again_within_half_a_minute() {
        let retried = POLICY.after(3, 0, &Fault::unknown("x"), 1.0);
        assert_eq!(retried, Failed::Retry { delay: Duration::from_secs(120), error: "x".into() });
        let outage = POLICY.after(1, 9, &Fault::transient("x"), 1.0);
        assert_eq!(outage, Failed::GiveBack { delay: OUTAGE_CAP, error: Some("x".into()) });
    }

    #[test]
    fn retry_after_is_obeyed_within_reason() {
        let mut fault = Fault::transient("429");
        fault.retry_after = Some(Duration::from_secs(77));
        assert_eq!(POLICY.after(1, 0, &fault, 0.0), Failed::GiveBack { delay: Duration::from_secs(77), error: Some("429".into()) });
        fault.retry_after = Some(Duration::from_secs(86_400));
        assert_eq!(POLICY.after(1, 0, &fault, 0.0), Failed::GiveBack { delay: LONGEST_ASKED, error: Some("429".into()) }, "within reason");
    }

    #[test]
    fn errors_are_one_line_of_bounded_length() {
        let clipped = clip_error(&format!("a\nb\u{0}{}", "é".repeat(5_000)));
        assert!(clipped.starts_with("a b é"));
        assert_eq!(clipped.chars().count(), MAX_ERROR_CHARS);
    }

    proptest! {
        #[test]
        fn the_newest_errors_are_kept_and_all_are_counted(n in 0..200u32) {
            let (mut errors, mut count) = (Vec::new(), 0);
            for attempt in 0..n {
                push_error(&mut errors, &mut count, JobError { attempt, at_ms: 0, engine: "e".into(), error: "x".into() });
            }
            prop_assert_eq!(count, n);
            prop_assert_eq!(errors.len(), (n as usize).min(MAX_JOB_ERRORS));
            prop_assert_eq!(errors.last().map(|e| e.attempt), n.checked_sub(1));
        }
    }
}
