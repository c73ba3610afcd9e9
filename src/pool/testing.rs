//! Jobs for tests of the pool.

use super::InWork;
use super::claim::Claimed;
use crate::ledger::{Job, JobKind, JobState, Lease, Priority};
use crate::runtime::clock;

/// A noop job that runs here.
pub(crate) fn job(id: &str) -> Job {
    Job {
        id: id.to_owned(),
        kind: JobKind::Noop,
        branch: String::new(),
        state: JobState::Running,
        priority: Priority::Normal,
        run_at_ms: 0,
        sched_key: 0,
        created_ms: 0,
        finished_ms: None,
        attempt: 1,
        crashes: 0,
        lease: Some(Lease { engine: "me".into(), token: format!("t-{id}"), claimed_ms: 0, started: false, started_ms: None }),
        errors: Vec::new(),
        error_count: 0,
        sync: None,
        params: None,
        unique_key: None,
        retries: None,
        cancel_requested: false,
        parked: false,
    }
}

/// A claimed job.
pub(crate) fn claimed(id: &str) -> Claimed {
    let job = job(id);
    Claimed { in_work: InWork::default().enter(&job), job, at: clock::now(), trace: tracing::Span::none() }
}
