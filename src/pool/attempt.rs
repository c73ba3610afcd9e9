//! One attempt of one job: everything around its handler.
//!
//! Owns: memory, start mark, time limit, panic, being told to stop, and noticing a unit that does not come back. Does not own: what the job does
//! (`jobs`), what becomes of a failure (`worker`, `queue::RetryPolicy`).

use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use tracing::Instrument;

use super::budget::{MemoryBudget, cost_of};
use super::in_work::{Halt, Why};
use super::mark::MarkHandle;
use crate::fault::{Fault, Kind, Result};
use crate::jobs::{Mark, Outcome, Overtime, Registry, Watch};
use crate::ledger::{Job, JobLease};
use crate::runtime::shutdown::Shutdown;

/// An attempt whose start is marked late is marked after this time: thousands of short ones end before.
const LONG: Duration = Duration::from_millis(100);
/// A job that is to run waits this long for memory that others hold, then it is given back: the time counts against `JOB_STUCK_TIMEOUT`, which
/// is at least a minute longer than an attempt may take.
const MEMORY_WAIT: Duration = Duration::from_secs(30);
/// How long an attempt that an operator has stopped may take to say that it was done already.
const LAST_WORD: Duration = Duration::from_secs(2);
/// A CPU unit looks whether it is to stop once per block, that is, after milliseconds. One that has not come back after this time never will,
/// and holds a thread and its memory.
const COME_BACK: Duration = Duration::from_secs(60);

/// How an attempt ended.
#[derive(Debug)]
pub(crate) enum End {
    Ended(Outcome),
    /// An operator has stopped it.
    Cancelled,
    Failed(Fault),
}

/// A part of this process that cannot be mended: it must end.
#[derive(Debug, Clone, Default)]
pub(crate) struct Sick {
    token: CancellationToken,
    why: Arc<Mutex<Option<String>>>,
}

impl Sick {
    /// The first reason stays.
    pub(crate) fn report(&self, why: String) {
        self.why.lock().get_or_insert(why);
        self.token.cancel();
    }

    /// Why, if it is.
    pub(crate) fn why(&self) -> Option<String> {
        self.why.lock().clone()
    }

    /// Completes when it is.
    pub(crate) async fn reported(&self) -> Fault {
        self.token.cancelled().await;
        Fault::unknown(self.why().unwrap_or_default())
    }
}

/// What every attempt needs.
#[derive(Debug, Clone)]
pub(crate) struct Runner {
    pub registry: Registry,
    pub process_timeout: Duration,
    pub memory: MemoryBudget,
    pub marks: MarkHandle,
    pub stop: Shutdown,
    pub sick: Sick,
    pub come_back: Duration,
}

impl Runner {
    pub(crate) fn new(
        registry: Registry,
        process_timeout: Duration,
        memory: MemoryBudget,
        marks: MarkHandle,
        stop: Shutdown,
        sick: Sick,
    ) -> Self {
        Self { registry, process_timeout, memory, marks, stop, sick, come_back: COME_BACK }
    }

    /// SUBTLE: the job runs in a task of its own. A time limit then abandons the task instead of dropping driver futures half
    /// way; an abandoned task can do no harm, since its commit carries a lease that is no longer the job's. It is told to stop, and keeps
    /// its memory permit until it has.
    pub(crate) async fn run(&self, job: &Arc<Job>, lease: &JobLease, halt: &Halt) -> End {
        let Some(kind) = self.registry.get(job.kind) else {
            return End::Failed(Fault::transient(format!("this engine has no handler for {} jobs", job.kind)));
        };
        if self.stop.is_aborting() {
            return End::Failed(stopped());
        }
        let memory = tokio::select! {
            permit = self.memory.take(cost_of(job)) => permit,
            () = self.stop.aborting() => return End::Failed(stopped()),
            why = halt.halted() => return End::halted(why),
            // After longer it would be taken for stuck, although it is others that hold the memory.
            () = tokio::time::sleep(MEMORY_WAIT) => return End::Failed(Fault::cancelled("no memory was free for this job in time")),
        };
        let started = job.lease.as_ref().is_some_and(|lease| lease.started);
        if kind.spec.mark == Mark::Before && !started {
            match self.marks.mark(lease).await {
                Ok(true) => {}
                Ok(false) => return End::Ended(Outcome::Fenced),
                Err(fault) => return End::Failed(Fault { kind: Kind::Transient, ..fault }),
            }
        }
        let watch = Watch::default();
        let guard = watch.cancel.clone().drop_guard();
        let mut task = tokio::spawn({
            let (handler, job, lease, watch) = (kind.handler.clone(), job.clone(), lease.clone(), watch.clone());
            async move {
                let _memory = memory;
                handler.run(&job, &lease, &watch).await
            }
            .in_current_span()
        });
        let (limit, of) = match kind.spec.timeout {
            Some(limit) => (limit, "the time limit of its kind"),
            None => (self.process_timeout, "WORKER_PROCESS_TIMEOUT"),
        };
        let mark_late = kind.spec.mark == Mark::IfLong && !started;
        let end = tokio::select! {
            ended = &mut task => return End::of(ended),
            () = tokio::time::sleep(limit) => End::Failed(overdue(limit, of, kind.spec.overtime, watch.is_computing())),
            () = self.stop.aborting() => End::Failed(stopped()),
            why = halt.halted() => {
                watch.cancel.cancel();
                self.last_word(&mut task, why).await
            }
            never = self.mark_late(lease, mark_late) => match never {},
        };
        drop(guard);
        self.see_it_end(job, task, watch);
        end
    }

    /// Its work may have been done just before.
    async fn last_word(&self, task: &mut JoinHandle<Result<Outcome>>, why: Why) -> End {
        tokio::select! {
            ended = task => match ended {
                Ok(Ok(outcome)) => End::Ended(outcome),
                _ => End::halted(why),
            },
            () = tokio::time::sleep(LAST_WORD) => End::halted(why),
            () = self.stop.aborting() => End::halted(why),
        }
    }

    async fn mark_late(&self, lease: &JobLease, late: bool) -> std::convert::Infallible {
        if late {
            tokio::time::sleep(LONG).await;
            self.marks.mark_aside(lease).await;
        }
        std::future::pending().await
    }

    /// Watches a task that nobody waits for any more. One that waits for a driver comes back when the driver gives up, and what waits for ever is
    /// dropped with the memory that it holds; one that computes and does not look whether it is to stop is a bug that costs a thread: the process
    /// ends, and with it the thread.
    fn see_it_end(&self, job: &Arc<Job>, mut task: JoinHandle<Result<Outcome>>, watch: Watch) {
        if task.is_finished() {
            return;
        }
        let (job, sick, time) = (job.clone(), self.sick.clone(), self.come_back);
        tokio::spawn(async move {
            if tokio::time::timeout(time, &mut task).await.is_ok() {
                return;
            }
            let time = humantime::format_duration(time);
            if watch.is_computing() {
                sick.report(format!("the computing of {} job {} has not stopped within {time} of being told to", job.kind, job.id));
            } else {
                tracing::error!(job = %job.id, kind = %job.kind, "an attempt has not stopped within {time} of being told to, and is dropped");
                task.abort();
            }
        });
    }
}

impl End {
    fn of(ended: std::result::Result<Result<Outcome>, tokio::task::JoinError>) -> Self {
        match ended {
            Ok(Ok(outcome)) => Self::Ended(outcome),
            Ok(Err(fault)) if fault.kind == Kind::Fenced => Self::Ended(Outcome::Fenced),
            Ok(Err(fault)) => Self::Failed(fault),
            Err(panic) => Self::Failed(Fault::unknown(format!("the job panicked: {panic}"))),
        }
    }

    fn halted(why: Why) -> Self {
        match why {
            Why::Asked => Self::Cancelled,
            Why::Lost => Self::Ended(Outcome::Fenced),
        }
    }
}

fn stopped() -> Fault {
    Fault::cancelled("the engine is stopping")
}

/// An attempt whose time is over. Computing takes no longer for an outage, so there the job itself is the cause and the attempt counts; where a
/// kind says so, everything else was waiting for MongoDB or the store.
fn overdue(limit: Duration, of: &str, overtime: Overtime, computing: bool) -> Fault {
    let limit = format!("{of} ({})", humantime::format_duration(limit));
    match overtime {
        Overtime::Counts => Fault::unknown(format!("not done after {limit}")),
        Overtime::CountsIfComputing if computing => Fault::unknown(format!("still computing after {limit}")),
        Overtime::CountsIfComputing => Fault::transient(format!("MongoDB or the store kept the job waiting beyond {limit}")),
    }
}

#[cfg(test)]
#[path = "attempt_tests.rs"]
mod tests;
