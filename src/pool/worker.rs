//! A worker: takes one job at a time, from its class's inbox to the record of its end.
//!
//! Owns: the loop, the worker's figures, and what becomes of a failure. Does not own: the attempt (`attempt`), recording successes (`finish`).

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use tokio::sync::Notify;
use tracing::Instrument;

use super::attempt::{End, Runner};
use super::claim::Claimed;
use super::class::Class;
use super::finish::{FinishHandle, Success};
use super::stats::{Tally, WorkerCell};
use crate::fault::Fault;
use crate::jobs::Outcome;
use crate::ledger::{Failed, Finish, Job, JobLease, SharedLedger};
use crate::queue::RetryPolicy;
use crate::runtime::backoff::Backoff;
use crate::runtime::shutdown::Shutdown;
use crate::runtime::{clock, random};
use crate::telemetry::meters::{self, KindMeter, Meters};
use crate::telemetry::traces;

/// Pauses while the outcome of an attempt cannot be recorded.
const RECORD: Backoff = Backoff { base: Duration::from_millis(100), cap: Duration::from_secs(5) };

/// What every worker of a class is made of.
#[derive(Debug, Clone)]
pub(crate) struct Worker {
    pub class: Arc<Class>,
    pub runner: Runner,
    pub finishes: FinishHandle,
    pub ledger: SharedLedger,
    pub retry: RetryPolicy,
    /// Rung when there may be room for more jobs.
    pub room: Arc<Notify>,
    pub stop: Shutdown,
    pub meters: Meters,
}

/// A worker exists while it lives, however it ends.
struct Alive(Arc<WorkerCell>);

impl Drop for Alive {
    fn drop(&mut self) {
        self.0.set_alive(false);
    }
}

impl Worker {
    /// Runs until it is told to leave, or the claimer is gone and nothing waits.
    pub(crate) async fn run(self, cell: Arc<WorkerCell>) {
        let alive = Alive(cell);
        let cell = &alive.0;
        while let Some(claimed) = self.class.inbox.take(|| cell.is_retiring()).await {
            self.step(cell, claimed).await;
            if self.class.is_low() {
                self.room.notify_one();
            }
        }
    }

    /// One attempt of one job.
    async fn step(&self, cell: &Arc<WorkerCell>, claimed: Claimed) {
        let Claimed { job, at, in_work, trace } = claimed;
        let Some(lease) = job.held() else { return };
        let began = clock::now();
        let (waited, kind) = (waited(&job, began.saturating_duration_since(at)), self.meters.kind(job.kind));
        self.class.stats.begun(waited, began);
        if let Some(kind) = kind {
            kind.wait.record(waited);
        }
        let ended = |outcome| kind.into_iter().for_each(|kind| kind.ended(outcome));
        cell.begin(&job.id, began);
        let job = Arc::new(job);
        let end = self.runner.run(&job, &lease, &in_work.halt).instrument(trace.clone()).await;
        let free = Busy { worker: self, cell, began, kind };
        match end {
            End::Ended(Outcome::Done) => {
                drop(free); // what is left is to put it on record, together with others
                let finish = Finish { lease, kind: job.kind };
                self.finishes.finish(Success { finish, class: self.class.clone(), cell: cell.clone(), in_work, trace }).await;
            }
            End::Ended(Outcome::Committed { stored_bytes, adopted }) => {
                let stats = &self.class.stats;
                stats.succeeded.fetch_add(1, Ordering::Relaxed);
                stats.stored_bytes.fetch_add(stored_bytes, Ordering::Relaxed);
                stats.adopted.fetch_add(u64::from(adopted), Ordering::Relaxed);
                cell.tally(Tally::Succeeded);
                ended(meters::Outcome::Succeeded);
                traces::ended(&trace, meters::Outcome::Succeeded.name(), None);
            }
            End::Ended(Outcome::Fenced) => {
                ended(meters::Outcome::Fenced);
                traces::ended(&trace, meters::Outcome::Fenced.name(), None);
                self.class.stats.fenced.fetch_add(1, Ordering::Relaxed);
                tracing::warn!(job = %job.id, worker = %cell.name, "the job belongs to another attempt now; this result is dropped");
            }
            End::Cancelled => {
                tracing::info!(job = %job.id, worker = %cell.name, "stopped the job, as an operator asked");
                traces::ended(&trace, "cancelled", None);
                self.record(&lease, &Failed::Cancelled).await;
            }
            End::Failed(fault) => {
                traces::ended(&trace, "failed", Some(&fault.what));
                self.failed(cell, &job, &lease, &fault, kind).await;
            }
        }
    }

    async fn failed(&self, cell: &WorkerCell, job: &Job, lease: &JobLease, fault: &Fault, kind: Option<&KindMeter>) {
        let how = self.retry.of(job).after(job.attempt, job.error_count, fault, random::unit());
        if let Some(kind) = kind {
            kind.failed(&how);
        }
        let stats = &self.class.stats;
        match &how {
            Failed::GiveBack { delay, .. } => {
                stats.given_back.fetch_add(1, Ordering::Relaxed);
                tracing::warn!(job = %job.id, error = %fault, delay = %humantime::format_duration(*delay), "job given back");
            }
            Failed::Retry { delay, .. } => {
                stats.failed.fetch_add(1, Ordering::Relaxed);
                cell.tally(Tally::Failed);
                tracing::warn!(job = %job.id, attempt = job.attempt, error = %fault, delay = %humantime::format_duration(*delay), "attempt failed, will be repeated");
            }
            Failed::Cancelled => tracing::info!(job = %job.id, "job cancelled"),
            Failed::Dead { .. } => {
                stats.failed.fetch_add(1, Ordering::Relaxed);
                cell.tally(Tally::Failed);
                tracing::error!(job = %job.id, attempt = job.attempt, error = %fault, "job is dead: see `argon jobs show`, then `argon jobs retry`");
            }
        }
        self.record(lease, &how).await;
    }

    /// Nothing else frees the lease of a living process, so this is repeated until it is known or the process stops.
    async fn record(&self, lease: &JobLease, how: &Failed) {
        for attempt in 1u32.. {
            match self.ledger.fail(lease, how).await {
                Ok(_) => return,
                Err(fault) if fault.may_heal() && !self.stop.is_aborting() => {
                    tracing::warn!(job = %lease.id, error = %fault, "could not record the end of an attempt, repeating");
                    tokio::time::sleep(RECORD.delay(attempt, random::unit())).await;
                }
                Err(fault) => {
                    tracing::warn!(job = %lease.id, error = %fault, "could not record the end of an attempt");
                    return;
                }
            }
        }
    }
}

/// The worker is busy while it lives.
struct Busy<'a> {
    worker: &'a Worker,
    cell: &'a WorkerCell,
    began: Instant,
    kind: Option<&'a KindMeter>,
}

impl Drop for Busy<'_> {
    fn drop(&mut self) {
        let now = clock::now();
        let spent = now.saturating_duration_since(self.began);
        self.cell.end(spent);
        if let Some(kind) = self.kind {
            kind.run.record(spent);
        }
        self.worker.class.stats.ended(spent, now);
    }
}

/// How long a job could have run and did not: until its claim by the server's time, and here since.
fn waited(job: &Job, here: Duration) -> Duration {
    let claimed_ms = job.lease.as_ref().map_or(job.run_at_ms, |lease| lease.claimed_ms);
    Duration::from_millis(u64::try_from(claimed_ms.saturating_sub(job.run_at_ms)).unwrap_or(0)) + here
}
