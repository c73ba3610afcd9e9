//! Claim: one claimer per process feeds all workers, so that claimers never meet on one document.
//!
//! Owns: how many jobs to claim and when to look again. Does not own: the claim itself (`ledger`), running jobs (`worker`).

use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore};

use crate::ledger::{ClaimRequest, EngineId, Job, JobKind, SharedLedger};
use crate::queue;
use crate::runtime::clock;
use crate::runtime::link::LinkTx;
use crate::runtime::random;
use crate::runtime::shutdown::Shutdown;

use super::in_work::{InWork, InWorkGuard};

/// Another process may have queued something: look this often without being rung.
const POLL: Duration = Duration::from_secs(1);
/// After a failed look.
const POLL_AFTER_FAULT: Duration = Duration::from_secs(1);

/// A suspect that has been ready for this long runs next, alone, however full the queue is.
const SUSPECT_PATIENCE: Duration = Duration::from_secs(30);
/// A waiting suspect is looked for this often: one entry of an index.
const SUSPECT_LOOK: Duration = Duration::from_secs(1);

/// A claimed job on its way to a worker, with its place in the pool.
#[derive(Debug)]
pub struct Claimed {
    pub job: Job,
    /// Freed when the worker is done with the job.
    pub slot: OwnedSemaphorePermit,
    /// Held until the outcome is on record.
    pub in_work: InWorkGuard,
}

/// Settings of the claimer.
#[derive(Debug, Clone)]
pub struct ClaimSettings {
    pub engine: EngineId,
    /// Free workers plus a small prefetch.
    pub slots: usize,
}

/// What the claimer knows of suspects that wait.
#[derive(Debug, Default)]
struct Suspects {
    looked: Option<Instant>,
    /// One is due: no more claims until the pool is idle.
    held: bool,
}

/// The source of the pool: stops first when the engine drains.
#[derive(Debug)]
pub struct Claimer {
    pub ledger: SharedLedger,
    pub settings: ClaimSettings,
    /// Rung by captures of this process and by finished jobs.
    pub bell: Arc<Notify>,
    pub out: LinkTx<Claimed>,
    pub in_work: InWork,
    pub stop: Shutdown,
}

impl Claimer {
    /// Claims until the engine drains.
    pub async fn run(self) {
        let mut suspects = Suspects::default();
        let slots = Arc::new(Semaphore::new(self.settings.slots));
        while !self.stop.is_draining() {
            let first = tokio::select! {
                permit = slots.clone().acquire_owned() => permit,
                () = self.stop.draining() => return,
            };
            let Ok(first) = first else { return };
            let mut permits = vec![first];
            while let Ok(more) = slots.clone().try_acquire_owned() {
                permits.push(more);
            }
            let idle = permits.len() == self.settings.slots;
            let pause = match self.step(&mut permits, idle, &mut suspects).await {
                Ok(0) => Some(random::jitter(POLL)),
                Ok(_) => None,
                Err(()) => Some(random::jitter(POLL_AFTER_FAULT)),
            };
            drop(permits);
            if let Some(pause) = pause {
                tokio::select! {
                    () = tokio::time::sleep(pause) => {}
                    () = self.bell.notified() => {}
                    () = self.stop.draining() => return,
                }
            }
        }
    }

    /// Claims for the free slots; returns how many jobs went to workers. A suspected job may run only when nothing of this pool is running (`idle`).
    async fn step(&self, permits: &mut Vec<OwnedSemaphorePermit>, idle: bool, suspects: &mut Suspects) -> Result<usize, ()> {
        if self.is_held(suspects).await {
            if !idle {
                return Ok(0); // the bell rings when a slot is free again
            }
            suspects.held = false;
            return self.claim_alone(permits).await;
        }
        let jobs = match self.ledger.claim(&ClaimRequest::new(&self.settings.engine, &[JobKind::Sync], permits.len())).await {
            Ok(jobs) => jobs,
            Err(fault) => {
                tracing::warn!(error = %fault, "could not look for jobs");
                return Err(());
            }
        };
        if jobs.is_empty() && idle {
            return self.claim_alone(permits).await;
        }
        let claimed = jobs.len();
        // All of them before the first may wait for room.
        let jobs: Vec<_> = jobs.into_iter().map(|job| (self.in_work.enter(&job), job)).collect();
        for (in_work, job) in jobs {
            let Some(slot) = permits.pop() else { break };
            if self.out.send(Claimed { job, slot, in_work }).await.is_err() {
                return Err(());
            }
        }
        Ok(claimed)
    }

    /// Whether a suspect has waited so long that nothing else may be claimed until it has run.
    async fn is_held(&self, suspects: &mut Suspects) -> bool {
        if !suspects.held && suspects.looked.is_none_or(|at| at.elapsed() >= SUSPECT_LOOK) {
            suspects.looked = Some(clock::now());
            suspects.held = self.ledger.suspect_waits(&[JobKind::Sync], SUSPECT_PATIENCE).await.unwrap_or(false);
            if suspects.held {
                tracing::info!("a job whose processes died has waited long enough: it runs as soon as the workers are free");
            }
        }
        suspects.held
    }

    /// A suspect if one comes first, with every slot until it has ended.
    async fn claim_alone(&self, permits: &mut Vec<OwnedSemaphorePermit>) -> Result<usize, ()> {
        let jobs = self.ledger.claim(&ClaimRequest::new(&self.settings.engine, &[JobKind::Sync], 1).alone(true)).await.unwrap_or_default();
        self.run_alone(jobs, permits).await
    }

    async fn run_alone(&self, jobs: Vec<Job>, permits: &mut Vec<OwnedSemaphorePermit>) -> Result<usize, ()> {
        let claimed = jobs.len();
        for job in jobs {
            let Some(mut slot) = permits.pop() else { break };
            for other in permits.drain(..) {
                slot.merge(other);
            }
            if queue::is_suspect(job.crashes) {
                tracing::warn!(job = %job.id, crashes = job.crashes, "running alone a job whose processes died");
            }
            let in_work = self.in_work.enter(&job);
            if self.out.send(Claimed { job, slot, in_work }).await.is_err() {
                return Err(());
            }
        }
        Ok(claimed)
    }
}
