//! A job that does nothing, for as long and as badly as it is told to: what operators try a queue, a pool and their alerts with.
//!
//! Owns: its parameters and obeying them. Does not own: what a failure leads to (`pool`, `queue`).

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bson::RawDocument;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{Handler, Outcome, Parts, Watch};
use crate::fault::{Fault, Result};
use crate::ledger::{Job, JobLease};
use crate::runtime::random;

/// Longest duration. `WORKER_PROCESS_TIMEOUT` ends an attempt before that where it is shorter.
pub const MAX_DURATION: Duration = Duration::from_secs(3_600);

/// What a failing attempt fails with.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum NoopFault {
    /// As an outage: uses up no attempt.
    Transient,
    /// As an error: uses up an attempt.
    #[default]
    Unknown,
    /// As what can never work: dead at once.
    Rejected,
}

/// `{duration_ms, failure_rate, fault, panic}`, all optional.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NoopParams {
    /// 0 to 3,600,000.
    #[serde(default)]
    pub duration_ms: u64,
    /// Share of the attempts that fail, 0 to 1; where it is not given: all if `fault` or `panic` is, else none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub failure_rate: Option<f64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub fault: Option<NoopFault>,
    /// Failing attempts panic.
    #[serde(default)]
    pub panic: bool,
}

impl NoopParams {
    /// Reads and checks the parameters of a job; a job without any does nothing at all.
    pub fn parse(params: Option<&RawDocument>) -> Result<Self> {
        let Some(params) = params else { return Ok(Self::default()) };
        let parsed: Self =
            bson::deserialize_from_slice(params.as_bytes()).map_err(|e| Fault::rejected(format!("the parameters of a noop job: {e}")))?;
        parsed.check()?;
        Ok(parsed)
    }

    /// Whether the values are in range.
    pub fn check(&self) -> Result<()> {
        let limit = u64::try_from(MAX_DURATION.as_millis()).unwrap_or(u64::MAX);
        if self.duration_ms > limit {
            return Err(Fault::rejected(format!("duration_ms is {}: allowed are 0 to {limit}", self.duration_ms)));
        }
        match self.failure_rate {
            Some(rate) if !(0.0..=1.0).contains(&rate) => Err(Fault::rejected(format!("failure_rate is {rate}: allowed are 0 to 1"))),
            _ => Ok(()),
        }
    }

    fn failure_rate(&self) -> f64 {
        let asked_for = self.panic || self.fault.is_some();
        self.failure_rate.unwrap_or(if asked_for { 1.0 } else { 0.0 })
    }

    /// The end of an attempt, given a fraction in `0.0..1.0`.
    fn end(&self, unit: f64) -> Result<Outcome> {
        if unit >= self.failure_rate() {
            return Ok(Outcome::Done);
        }
        const WHAT: &str = "this noop job was told to fail";
        #[expect(clippy::panic, reason = "it is what was asked for")]
        if self.panic {
            panic!("{WHAT}");
        }
        Err(match self.fault.unwrap_or_default() {
            NoopFault::Transient => Fault::transient(WHAT),
            NoopFault::Unknown => Fault::unknown(WHAT),
            NoopFault::Rejected => Fault::rejected(WHAT),
        })
    }
}

#[derive(Debug)]
struct Noop;

pub(super) fn handler(_: &Parts) -> Arc<dyn Handler> {
    Arc::new(Noop)
}

#[async_trait]
impl Handler for Noop {
    async fn run(&self, job: &Job, _: &JobLease, watch: &Watch) -> Result<Outcome> {
        let params = NoopParams::parse(job.params.as_deref())?;
        if params.duration_ms > 0 {
            tokio::select! {
                () = tokio::time::sleep(Duration::from_millis(params.duration_ms)) => {}
                () = watch.cancel.cancelled() => return Err(Fault::cancelled("the noop job was told to stop")),
            }
        }
        params.end(random::unit())
    }
}

#[cfg(test)]
mod tests {
    use bson::{Document, doc};

    use super::*;
    use crate::fault::Kind;

    fn parse(params: &Document) -> Result<NoopParams> {
        NoopParams::parse(Some(&bson::RawDocumentBuf::try_from(params).unwrap()))
    }

    #[test]
    fn parameters_out_of_range_or_unknown_are_refused_by_name() {
        assert_eq!(NoopParams::parse(None).unwrap(), NoopParams::default());
        assert_eq!(parse(&doc! { "duration_ms": 3_600_000, "failure_rate": 1 }).unwrap().failure_rate(), 1.0);
        for (params, word) in [
            (doc! { "duration_ms": 3_600_001 }, "duration_ms"),
            (doc! { "duration_ms": -1 }, "parameters"),
            (doc! { "failure_rate": 1.1 }, "failure_rate"),
            (doc! { "failure_rate": f64::NAN }, "failure_rate"),
            (doc! { "fault": "fenced" }, "fenced"),
            (doc! { "duration": 5 }, "duration"),
        ] {
            let fault = parse(&params).unwrap_err();
            assert!(fault.kind == Kind::Rejected && fault.what.contains(word), "{params}: {fault}");
        }
    }

    #[test]
    fn an_attempt_fails_as_often_and_as_badly_as_asked() {
        let half = parse(&doc! { "failure_rate": 0.5 }).unwrap();
        assert_eq!(half.end(0.5).unwrap(), Outcome::Done);
        assert_eq!(half.end(0.49).unwrap_err().kind, Kind::Unknown);
        for (fault, kind) in [("transient", Kind::Transient), ("unknown", Kind::Unknown), ("rejected", Kind::Rejected)] {
            assert_eq!(parse(&doc! { "fault": fault }).unwrap().end(0.99).unwrap_err().kind, kind);
        }
        let never = parse(&doc! { "fault": "rejected", "failure_rate": 0.0 }).unwrap();
        assert_eq!(never.end(0.0).unwrap(), Outcome::Done);
        let panics = parse(&doc! { "panic": true }).unwrap();
        assert!(std::panic::catch_unwind(|| panics.end(0.0)).is_err());
    }
}
