//! Strays: jobs that were claimed in this process's name without its knowing.
//!
//! Owns: noticing them. Does not own: the claim (`ledger`), who runs a job (`worker`).
//!
//! SUBTLE: a claim whose answer is lost may have taken jobs, and it may land as late as the ledger's own limit for a call. Their lease is that
//! of a living process, so nobody rescues them, and the head of the branch would be held until this process ends. So for a while after a claim
//! has failed, what is running in our name is compared with what is in work here. There is one claimer per process and it does one thing at a
//! time, so a running job that it does not hold is a stray.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::Mutex;

use crate::fault::Result;
use crate::ledger::{Job, JobFilter, JobId, JobKind, JobState, SharedLedger};

/// Longer than any call of a ledger goes on.
const DOUBT: Duration = Duration::from_secs(60);
/// Between two looks.
const LOOK: Duration = Duration::from_secs(1);
/// Jobs looked at: far more than run at once.
const MAX: usize = 1_000;

/// What is in work here, and until when there may be more.
#[derive(Debug, Default)]
pub(super) struct Strays {
    held: Arc<Mutex<HashSet<JobId>>>,
    doubt: Option<Doubt>,
}

#[derive(Debug)]
struct Doubt {
    until: Instant,
    next_look: Instant,
}

/// A job in work here, until this is dropped.
#[derive(Debug)]
pub struct Held {
    job: JobId,
    held: Arc<Mutex<HashSet<JobId>>>,
}

impl Drop for Held {
    fn drop(&mut self) {
        self.held.lock().remove(&self.job);
    }
}

impl Strays {
    /// Marks a job as in work.
    pub(super) fn hold(&self, job: &str) -> Held {
        self.held.lock().insert(job.to_owned());
        Held { job: job.to_owned(), held: self.held.clone() }
    }

    /// A claim has failed: from now on for a while there may be strays.
    pub(super) fn suspect(&mut self, now: Instant) {
        self.doubt = Some(Doubt { until: now + DOUBT, next_look: now });
    }

    /// The strays of `engine`, if it is time to look, at most `limit`.
    pub(super) async fn look(&mut self, ledger: &SharedLedger, engine: &str, limit: usize, now: Instant) -> Result<Vec<Job>> {
        match &mut self.doubt {
            Some(doubt) if now >= doubt.next_look => doubt.next_look = now + LOOK,
            _ => return Ok(Vec::new()),
        }
        // Before the list is read: what ends meanwhile is in here still, and so is no stray.
        let held = self.held.lock().clone();
        let running = JobFilter { state: Some(JobState::Running), kind: Some(JobKind::Sync), ..JobFilter::default() };
        let mut jobs = ledger.jobs(&running, MAX).await?;
        jobs.retain(|job| job.lease.as_ref().is_some_and(|lease| lease.engine == engine) && !held.contains(&job.id));
        if jobs.is_empty() && self.doubt.as_ref().is_some_and(|doubt| now >= doubt.until) {
            self.doubt = None;
        }
        jobs.truncate(limit);
        Ok(jobs)
    }
}
