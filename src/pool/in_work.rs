//! The attempts that this pool knows of: from the answer of a claim until their outcome is on record.
//!
//! Owns: the set, and the giving back of claims that are not in it. Does not own: how often that is looked for (`engine::upkeep`).
//!
//! SUBTLE: a claim may land although its answer is lost. Nobody here works on such a job, and nobody else may rescue it, since its
//! process lives: without this it would stay `running` for good. The same goes for an attempt whose end could not be recorded.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;

use crate::fault::Result;
use crate::ledger::{Failed, Job, JobFilter, JobId, JobLease, JobState, SharedLedger};

/// A claim older than this (server time) whose answer has not come will not come: the driver gives up before.
const ANSWER_TIME: Duration = Duration::from_secs(10);
/// Jobs of one look; running jobs are at most a few per worker.
const PAGE: usize = 1_000;

/// Shared by claimer and upkeep. An attempt is a job and the token of its lease: a job may be claimed anew while an old attempt still ends.
#[derive(Debug, Clone, Default)]
pub struct InWork(Arc<Mutex<HashSet<(JobId, String)>>>);

/// Held while an attempt is in work.
#[derive(Debug)]
pub struct InWorkGuard {
    set: InWork,
    attempt: (JobId, String),
}

impl Drop for InWorkGuard {
    fn drop(&mut self) {
        self.set.0.lock().remove(&self.attempt);
    }
}

impl InWork {
    /// Marks a claimed job.
    pub fn enter(&self, job: &Job) -> InWorkGuard {
        let attempt = (job.id.clone(), job.lease.as_ref().map(|l| l.token.clone()).unwrap_or_default());
        self.0.lock().insert(attempt.clone());
        InWorkGuard { set: self.clone(), attempt }
    }

    /// Gives back the jobs that run in this engine's name, were claimed a while ago, and are not in work; returns how many.
    pub async fn give_back_lost(&self, ledger: &SharedLedger, engine: &str) -> Result<u64> {
        let now = ledger.now_ms().await?;
        let oldest = now.saturating_sub(i64::try_from(ANSWER_TIME.as_millis()).unwrap_or(i64::MAX));
        let running = ledger.jobs(&JobFilter { state: Some(JobState::Running), ..JobFilter::default() }, PAGE).await?;
        let mut given_back = 0;
        for job in running {
            let Some(lease) = job.lease.filter(|l| l.engine == engine && l.claimed_ms < oldest) else { continue };
            let attempt = (job.id.clone(), lease.token.clone());
            if self.0.lock().contains(&attempt) {
                continue;
            }
            // Fenced by the lease: an attempt that has ended since the list was read is not touched.
            let lease = JobLease { id: job.id, token: lease.token, attempt: job.attempt };
            let how = Failed::GiveBack { delay: Duration::ZERO, error: Some("the answer of the claim was lost".to_owned()) };
            if ledger.fail(&lease, &how).await? {
                tracing::warn!(job = %lease.id, "gave back a job that was claimed here without our knowing");
                given_back += 1;
            }
        }
        Ok(given_back)
    }
}
