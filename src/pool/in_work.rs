//! The attempts that this pool knows of: from the answer of a claim until their outcome is on record.
//!
//! Owns: the set, telling an attempt to stop, and the giving back of claims that are not in it. Does not own: how often that is looked for
//! (`engine::upkeep`), or stopping (`attempt`).
//!
//! SUBTLE: a claim may land although its answer is lost. Nobody here works on such a job, and nobody else may rescue it, since its
//! process lives: without this it would stay `running` for good. The same goes for an attempt whose end could not be recorded.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use tokio_util::sync::CancellationToken;

use crate::fault::Result;
use crate::ledger::{Failed, Job, JobFilter, JobId, JobLease, JobState, SharedLedger};

/// A claim older than this (server time) whose answer has not come will not come: the driver gives up before.
const ANSWER_TIME: Duration = Duration::from_secs(10);
/// Jobs of one look: more than one engine ever holds, see `window`.
const PAGE: usize = 4_000;

/// An attempt is a job and the token of its lease: a job may be claimed anew while an old attempt still ends.
type AttemptId = (JobId, String);

/// Shared by claimer, workers and upkeep.
#[derive(Debug, Clone, Default)]
pub struct InWork(Arc<Mutex<HashMap<AttemptId, Entry>>>);

#[derive(Debug)]
struct Entry {
    halt: Halt,
    /// The last look did not find it in the ledger.
    missing: bool,
}

/// Why an attempt is to stop before its end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Why {
    /// An operator asked for it.
    Asked,
    /// The job is no longer ours: it was taken away.
    Lost,
}

/// Tells one attempt to stop.
#[derive(Debug, Clone, Default)]
pub struct Halt {
    token: CancellationToken,
    lost: Arc<AtomicBool>,
}

impl Halt {
    fn halt(&self, why: Why) {
        self.lost.fetch_or(why == Why::Lost, Ordering::Release);
        self.token.cancel();
    }

    /// Completes when the attempt is to stop.
    pub async fn halted(&self) -> Why {
        self.token.cancelled().await;
        if self.lost.load(Ordering::Acquire) { Why::Lost } else { Why::Asked }
    }
}

/// Held while an attempt is in work.
#[derive(Debug)]
pub struct InWorkGuard {
    set: InWork,
    attempt: AttemptId,
    pub halt: Halt,
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
        let halt = Halt::default();
        self.0.lock().insert(attempt.clone(), Entry { halt: halt.clone(), missing: false });
        InWorkGuard { set: self.clone(), attempt, halt }
    }

    /// Nothing is in work.
    pub fn is_empty(&self) -> bool {
        self.0.lock().is_empty()
    }

    /// The attempt of this lease is not ours any more.
    pub fn lost(&self, lease: &JobLease) {
        if let Some(entry) = self.0.lock().get(&(lease.id.clone(), lease.token.clone())) {
            entry.halt.halt(Why::Lost);
        }
    }

    /// An operator wants these jobs to stop.
    pub fn asked(&self, jobs: &[JobId]) {
        let jobs: HashSet<&JobId> = jobs.iter().collect();
        for (_, entry) in self.0.lock().iter().filter(|((id, _), _)| jobs.contains(id)) {
            entry.halt.halt(Why::Asked);
        }
    }

    /// Compares with what runs in this engine's name: attempts that are not ours any more are told to stop, and jobs that were claimed a while
    /// ago and are not in work are given back. Returns how many were; a fault when one could not be, and then the next look should be soon.
    pub async fn reconcile(&self, ledger: &SharedLedger, engine: &str) -> Result<u64> {
        let known: Vec<AttemptId> = self.0.lock().keys().cloned().collect();
        let now = ledger.now_ms().await?;
        let oldest = now.saturating_sub(i64::try_from(ANSWER_TIME.as_millis()).unwrap_or(i64::MAX));
        let filter = JobFilter { state: Some(JobState::Running), engine: Some(engine.to_owned()), ..JobFilter::default() };
        let running = ledger.jobs(&filter, PAGE).await?;
        if running.len() < PAGE {
            self.tell_the_lost(known, &running);
        }
        let (mut given_back, mut failed) = (0, None);
        for job in running {
            let (Some(held), Some(lease)) = (job.held(), job.lease) else { continue };
            if lease.engine != engine || lease.claimed_ms >= oldest || self.0.lock().contains_key(&(held.id.clone(), held.token.clone())) {
                continue;
            }
            // Fenced by the lease: an attempt that has ended since the list was read is not touched.
            let how = Failed::GiveBack { delay: Duration::ZERO, error: Some("the answer of the claim was lost".to_owned()) };
            match ledger.fail(&held, &how).await {
                Ok(true) => {
                    tracing::warn!(job = %held.id, "gave back a job that was claimed here without our knowing");
                    given_back += 1;
                }
                Ok(false) => {}
                // One claim may have brought hundreds: the others do not wait for it.
                Err(fault) => failed = Some(fault),
            }
        }
        failed.map_or(Ok(given_back), Err)
    }

    /// What was in work before the list was read and is not in it was taken away, or has ended and waits for the answer that says so. Who is
    /// missing twice does not wait for that.
    fn tell_the_lost(&self, known: Vec<AttemptId>, running: &[Job]) {
        let running: HashSet<AttemptId> = running.iter().filter_map(Job::held).map(|held| (held.id, held.token)).collect();
        let mut set = self.0.lock();
        for attempt in known {
            let Some(entry) = set.get_mut(&attempt) else { continue };
            let missing = !running.contains(&attempt);
            if missing && entry.missing {
                entry.halt.halt(Why::Lost);
            }
            entry.missing = missing;
        }
    }
}
