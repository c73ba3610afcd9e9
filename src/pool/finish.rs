//! Successes that need no segment: those that wait together are put on record together.
//!
//! Owns: grouping, and repeating until it is known. Does not own: the write (`ledger::finish`).
//!
//! A worker hands its success over and takes the next job: a short job would else wait for the round trip of its record longer than it took. The
//! attempt stays in work until the record is known, so nobody takes it for lost. There is no timer: while one write is in flight the next
//! group gathers, so an idle engine records at once and a busy one in groups.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use tokio::sync::Notify;
use tracing::Span;

use super::class::Class;
use super::in_work::InWorkGuard;
use super::stats::{Tally, WorkerCell};
use crate::fault::Fault;
use crate::ledger::{EngineId, Finish, Finished, SharedLedger};
use crate::runtime::backoff::Backoff;
use crate::runtime::link::{LinkRx, LinkTx};
use crate::runtime::random;
use crate::runtime::shutdown::Shutdown;
use crate::telemetry::meters::{LinkName, Meters, Outcome};
use crate::telemetry::traces;

/// Waiting successes: when the metadata is away, workers wait here with what they have done, and no more is claimed.
const WAITING: usize = 1_024;
/// Successes of one write: a short transaction.
const GROUP: usize = 512;
/// Pauses while a group cannot be recorded.
const AGAIN: Backoff = Backoff { base: Duration::from_millis(50), cap: Duration::from_secs(5) };

/// One success on its way.
#[derive(Debug)]
pub(crate) struct Success {
    pub finish: Finish,
    pub class: Arc<Class>,
    pub cell: Arc<WorkerCell>,
    pub in_work: InWorkGuard,
    pub trace: Span,
}

/// Hands successes to the finisher.
#[derive(Debug, Clone)]
pub(crate) struct FinishHandle(LinkTx<Success>);

impl FinishHandle {
    /// Waits for room only.
    pub(crate) async fn finish(&self, success: Success) {
        success.class.stats.finishing.fetch_add(1, Ordering::Relaxed);
        if let Err(success) = self.0.send(success).await {
            // The stage ends after its handles, or has panicked: then the engine stops, and the job is taken up again after its lease.
            success.class.stats.finishing.fetch_sub(1, Ordering::Relaxed);
        }
    }
}

/// The stage; ends when the last handle is gone.
#[derive(Debug)]
pub(crate) struct Finisher {
    ledger: SharedLedger,
    engine: EngineId,
    inbox: LinkRx<Success>,
    /// Rung when what was in work is on record.
    room: Arc<Notify>,
    stop: Shutdown,
    meters: Meters,
}

impl Finisher {
    /// A finisher and its handle.
    pub(crate) fn new(ledger: SharedLedger, engine: EngineId, room: Arc<Notify>, stop: Shutdown, meters: &Meters) -> (Self, FinishHandle) {
        let (tx, inbox) = meters.link(LinkName::Finishes).link(WAITING);
        (Self { ledger, engine, inbox, room, stop, meters: meters.clone() }, FinishHandle(tx))
    }

    /// Serves until every handle is gone.
    pub(crate) async fn run(mut self) {
        while let Some(first) = self.inbox.recv().await {
            let mut group = vec![first];
            while group.len() < GROUP
                && let Some(next) = self.inbox.try_recv()
            {
                group.push(next);
            }
            self.step(group).await;
        }
    }

    async fn step(&self, group: Vec<Success>) {
        let ends: Vec<Finish> = group.iter().map(|s| s.finish.clone()).collect();
        let outcomes = self.record(&ends).await;
        for (i, success) in group.into_iter().enumerate() {
            let stats = &success.class.stats;
            match outcomes.as_ref().map(|all| all.get(i)) {
                Ok(Some(Finished::Now | Finished::Already)) => {
                    stats.succeeded.fetch_add(1, Ordering::Relaxed);
                    self.ended(&success, Outcome::Succeeded);
                    success.cell.tally(Tally::Succeeded);
                }
                Ok(Some(Finished::Fenced)) => {
                    stats.fenced.fetch_add(1, Ordering::Relaxed);
                    self.ended(&success, Outcome::Fenced);
                    tracing::warn!(job = %success.finish.lease.id, worker = %success.cell.name, "the job belongs to another attempt now; this result is dropped");
                }
                // It is not in work any more: it is given back when that is noticed.
                Ok(None) => tracing::warn!(job = %success.finish.lease.id, "the ledger answered fewer ends than asked"),
                Err(fault) => {
                    tracing::warn!(job = %success.finish.lease.id, error = %fault, "could not record a success, the job will be done again")
                }
            }
            stats.finishing.fetch_sub(1, Ordering::Relaxed);
            drop(success.in_work);
        }
        // A job that had to run alone is over now.
        self.room.notify_one();
    }

    fn ended(&self, success: &Success, outcome: Outcome) {
        traces::ended(&success.trace, outcome.name(), None);
        if let Some(kind) = self.meters.kind(success.finish.kind) {
            kind.ended(outcome);
        }
    }

    /// Until it is known, or the engine aborts: the ledger recognises its own write.
    async fn record(&self, ends: &[Finish]) -> Result<Vec<Finished>, Fault> {
        let mut attempt = 0u32;
        loop {
            attempt = attempt.saturating_add(1);
            match self.ledger.finish(&self.engine, ends).await {
                Err(fault) if fault.may_heal() && !self.stop.is_aborting() => {
                    tracing::warn!(error = %fault, jobs = ends.len(), "could not record successes, repeating");
                    tokio::select! {
                        () = tokio::time::sleep(AGAIN.delay(attempt, random::unit())) => {}
                        () = self.stop.aborting() => {}
                    }
                }
                known => return known,
            }
        }
    }
}
