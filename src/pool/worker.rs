//! A worker: takes one job at a time from claim to commit.
//!
//! Owns: the attempt around a job (memory, time limit, panic, lost lease, what becomes of a failure) and the worker's counters.
//! Does not own: the steps of the job (`sync`).

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use tokio::sync::{Mutex, Notify};

use crate::fault::{Fault, Kind, Result};
use crate::ledger::{Failed, Job, JobLease, SharedLedger};
use crate::queue::RetryPolicy;
use crate::runtime::backoff::Backoff;
use crate::runtime::link::LinkRx;
use crate::runtime::shutdown::Shutdown;
use crate::runtime::{clock, random};
use crate::sync::{SyncJob, SyncOutcome, Watch};

use super::budget::{MemoryBudget, cost_of};
use super::claim::Claimed;

/// Pauses while the outcome of an attempt cannot be recorded.
const RECORD: Backoff = Backoff { base: Duration::from_millis(100), cap: Duration::from_secs(5) };

/// Settings of every worker.
#[derive(Debug, Clone, Copy)]
pub struct WorkerSettings {
    pub process_timeout: Duration,
    pub retry: RetryPolicy,
}

/// Counters of the pool; reading them is free.
#[derive(Debug, Default)]
pub struct WorkerStats {
    pub succeeded: AtomicU64,
    pub failed: AtomicU64,
    pub given_back: AtomicU64,
    pub fenced: AtomicU64,
    pub adopted: AtomicU64,
    pub busy: AtomicU64,
    pub busy_us: AtomicU64,
    pub stored_bytes: AtomicU64,
}

/// One of 1..20 takers of jobs.
#[derive(Debug, Clone)]
pub struct Worker {
    pub name: String,
    pub sync: SyncJob,
    pub ledger: SharedLedger,
    pub settings: WorkerSettings,
    pub memory: MemoryBudget,
    pub stats: Arc<WorkerStats>,
    /// Rung when a slot is free again.
    pub bell: Arc<Notify>,
    pub stop: Shutdown,
}

impl Worker {
    /// Runs until the claimer is gone and everything claimed has ended.
    pub async fn run(self, jobs: Arc<Mutex<LinkRx<Claimed>>>) {
        loop {
            let next = jobs.lock().await.recv().await;
            let Some(Claimed { job, slot, in_work }) = next else { return };
            self.stats.busy.fetch_add(1, Ordering::Relaxed);
            let began = clock::now();
            self.step(job).await;
            let spent = u64::try_from(began.elapsed().as_micros()).unwrap_or(u64::MAX);
            self.stats.busy_us.fetch_add(spent, Ordering::Relaxed);
            self.stats.busy.fetch_sub(1, Ordering::Relaxed);
            drop((in_work, slot));
            self.bell.notify_one();
        }
    }

    /// One attempt of one job.
    async fn step(&self, job: Job) {
        let Some(token) = job.lease.as_ref().map(|l| l.token.clone()) else { return };
        let lease = JobLease { id: job.id.clone(), token, attempt: job.attempt };
        let outcome = if self.stop.is_aborting() { Err(stopped()) } else { self.attempt(&job, &lease).await };
        match outcome {
            Ok(SyncOutcome::Committed { stored_bytes, adopted }) => {
                self.stats.succeeded.fetch_add(1, Ordering::Relaxed);
                self.stats.stored_bytes.fetch_add(stored_bytes, Ordering::Relaxed);
                self.stats.adopted.fetch_add(u64::from(adopted), Ordering::Relaxed);
            }
            Ok(SyncOutcome::Fenced) => self.lost(&job),
            Err(fault) if fault.kind == Kind::Fenced => self.lost(&job),
            Err(fault) => self.failed(&job, &lease, &fault).await,
        }
    }

    fn lost(&self, job: &Job) {
        self.stats.fenced.fetch_add(1, Ordering::Relaxed);
        tracing::warn!(job = %job.id, worker = %self.name, "the job belongs to another attempt now; this result is dropped");
    }

    /// SUBTLE: the job runs in a task of its own. A time limit then abandons the task instead of dropping driver futures half
    /// way; an abandoned task can do no harm, since its commit carries a lease that is no longer the job's. It is told to stop, and keeps
    /// its memory permit until it has.
    async fn attempt(&self, job: &Job, lease: &JobLease) -> Result<SyncOutcome> {
        let memory = tokio::select! {
            permit = self.memory.take(cost_of(job)) => permit,
            () = self.stop.aborting() => return Err(stopped()),
        };
        let watch = Watch::default();
        let guard = watch.cancel.clone().drop_guard();
        let task = tokio::spawn({
            let (sync, job, lease, watch) = (self.sync.clone(), job.clone(), lease.clone(), watch.clone());
            async move {
                let _memory = memory;
                sync.run(&job, &lease, &watch).await
            }
        });
        let outcome = tokio::select! {
            ended = task => ended.unwrap_or_else(|e| Err(Fault::unknown(format!("the job panicked: {e}")))),
            () = tokio::time::sleep(self.settings.process_timeout) => Err(overdue(self.settings.process_timeout, watch.is_computing())),
            () = self.stop.aborting() => Err(stopped()),
        };
        drop(guard);
        outcome
    }

    async fn failed(&self, job: &Job, lease: &JobLease, fault: &Fault) {
        let how = self.settings.retry.after(job.attempt, job.error_count, fault, random::unit());
        match &how {
            Failed::GiveBack { delay, .. } => {
                self.stats.given_back.fetch_add(1, Ordering::Relaxed);
                tracing::warn!(job = %job.id, error = %fault, delay = %humantime::format_duration(*delay), "job given back");
            }
            Failed::Retry { delay, .. } => {
                self.stats.failed.fetch_add(1, Ordering::Relaxed);
                tracing::warn!(job = %job.id, attempt = job.attempt, error = %fault, delay = %humantime::format_duration(*delay), "attempt failed, will be repeated");
            }
            Failed::Cancelled => tracing::info!(job = %job.id, "job cancelled"),
            Failed::Dead { .. } => {
                self.stats.failed.fetch_add(1, Ordering::Relaxed);
                tracing::error!(job = %job.id, attempt = job.attempt, error = %fault, "job is dead: see `argon jobs show`, then `argon jobs retry`");
            }
        }
        // Nothing else frees the lease of a living process, so this is repeated until it is known or the process stops.
        for attempt in 1u32.. {
            match self.ledger.fail(lease, &how).await {
                Ok(_) => return,
                Err(fault) if fault.may_heal() && !self.stop.is_aborting() => {
                    tracing::warn!(job = %job.id, error = %fault, "could not record the failure, repeating");
                    tokio::time::sleep(RECORD.delay(attempt, random::unit())).await;
                }
                Err(fault) => {
                    tracing::warn!(job = %job.id, error = %fault, "could not record the failure");
                    return;
                }
            }
        }
    }
}

fn stopped() -> Fault {
    Fault::cancelled("the engine is stopping")
}

/// An attempt whose time is over. Computing takes no longer for an outage, so there the job itself is the cause and the attempt counts;
/// everywhere else it was waiting for MongoDB or the store.
fn overdue(limit: Duration, computing: bool) -> Fault {
    let limit = humantime::format_duration(limit);
    if computing {
        Fault::unknown(format!("still computing after WORKER_PROCESS_TIMEOUT ({limit})"))
    } else {
        Fault::transient(format!("MongoDB or the store kept the job waiting beyond WORKER_PROCESS_TIMEOUT ({limit})"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_time_spent_computing_uses_up_an_attempt() {
        let policy = RetryPolicy { retries: 0, backoff: RECORD };
        let limit = Duration::from_secs(300);
        assert!(matches!(policy.after(1, 0, &overdue(limit, true), 0.5), Failed::Dead { .. }));
        assert!(matches!(policy.after(1, 0, &overdue(limit, false), 0.5), Failed::GiveBack { error: Some(_), .. }));
    }
}
