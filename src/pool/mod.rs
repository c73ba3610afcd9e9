//! The pool: takes jobs from the queue and runs them on workers, whose number follows the load.
//!
//! Owns: claiming (`claim`, `window`), workers by class and their figures (`class`, `crew`, `worker`, `stats`), attempts (`attempt`, `in_work`), the
//! memory budget of jobs in work (`budget`), grouped start marks and successes (`mark`, `finish`), how many workers there shall be (`scaler`).
//! Does not own: what a job does (`jobs`, `sync`), job states (`queue`), the other processes' jobs (`ledger::rescue`).
//!
//! ```text
//!            ┌─[inbox sync]────────▶ sync-worker-0 … 19 ──┬──[finishes]──▶ Finisher
//!  Claimer ──┼─[inbox compression]─▶ compression-worker-… │
//!            └─ …                                          └──[commits]───▶ sync::Committer
//! ```

mod attempt;
mod budget;
mod claim;
mod class;
mod crew;
mod finish;
mod in_work;
mod inbox;
mod mark;
pub mod scaler;
mod stats;
#[cfg(test)]
mod testing;
mod window;
mod worker;

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use tokio::sync::Notify;

use crate::config::Slots;
use crate::jobs::{Registry, SlotClass};
use crate::ledger::{Attempts, JobKind, SlotRow, WorkerRow};

pub(crate) use attempt::{Runner, Sick};
pub use budget::{MemoryBudget, MemoryPermit};
pub(crate) use claim::{Claimer, SharedPauses};
use class::Class;
pub(crate) use crew::Crew;
pub(crate) use finish::Finisher;
pub use in_work::{Halt, InWork, InWorkGuard, Why};
pub use mark::{MarkHandle, Marker};
pub(crate) use worker::Worker;

/// The workers of one engine, to look at and to resize; cheap to clone.
#[derive(Debug, Clone)]
pub struct Pool {
    classes: Arc<Vec<Arc<Class>>>,
    /// Tells the crew of a new target.
    changed: Arc<Notify>,
}

/// What the scaler measures of the sync workers.
#[derive(Debug, Clone, Default, PartialEq)]
pub(crate) struct Load {
    /// Jobs taken from the queue, less those given back unbegun.
    pub claimed: u64,
    pub succeeded: u64,
    pub busy: Duration,
    /// Ages of the running attempts.
    pub running: Vec<Duration>,
    /// Jobs that are claimed and wait for a worker.
    pub waiting: u64,
    pub workers: u16,
    pub errors: u64,
    /// The last claim did not find the end of the queue.
    pub more: bool,
}

impl Pool {
    /// The classes of which the registry knows a kind, and those it does not, with nobody in them.
    pub fn new(registry: &Registry, size: u16, slots: Slots) -> Self {
        let classes = SlotClass::ALL.map(|class| {
            let target = match class {
                SlotClass::Sync => size,
                SlotClass::Compression => slots.compression,
                SlotClass::Notification => slots.notification,
                SlotClass::Cleanup => slots.cleanup,
                SlotClass::Snapshot => slots.snapshot,
            };
            Arc::new(Class::new(class, registry.kinds_of(class), usize::from(target)))
        });
        Self { classes: Arc::new(classes.to_vec()), changed: Arc::default() }
    }

    /// How many sync workers there shall be: more are started, too many stop, idle ones first, a busy one after its job.
    pub fn set_target(&self, target: u16) {
        if self.class(SlotClass::Sync, |class| class.set_target(usize::from(target))) == Some(true) {
            self.changed.notify_one();
        }
    }

    /// Sync workers that there shall be.
    pub fn target(&self) -> u16 {
        self.class(SlotClass::Sync, |class| short(class.target())).unwrap_or_default()
    }

    /// Sync workers that there are, those that finish their last job included.
    pub fn current(&self) -> u16 {
        self.class(SlotClass::Sync, |class| short(class.alive().len())).unwrap_or_default()
    }

    /// One row for each worker that exists.
    pub fn rows(&self) -> Vec<WorkerRow> {
        self.classes.iter().flat_map(|class| class.alive()).map(|cell| row(&cell)).collect()
    }

    /// One row for each kind with places of its own.
    pub fn slots(&self) -> Vec<SlotRow> {
        let own = self.classes.iter().filter(|class| class.class != SlotClass::Sync);
        own.map(|class| SlotRow { kind: kind_of(class.class), capacity: short(class.target()), busy: short(class.running()) }).collect()
    }

    /// Attempts of all workers, those that exist no more included.
    pub fn attempts(&self) -> Attempts {
        self.attempts_of(|_| true)
    }

    /// The same of the sync workers.
    pub fn sync_attempts(&self) -> Attempts {
        self.attempts_of(|class| class == SlotClass::Sync)
    }

    fn attempts_of(&self, wanted: impl Fn(SlotClass) -> bool) -> Attempts {
        let mut all = Attempts::default();
        for stats in self.classes.iter().filter(|class| wanted(class.class)).map(|class| &class.stats) {
            all.succeeded += stats.succeeded.load(Ordering::Relaxed);
            all.failed += stats.failed.load(Ordering::Relaxed);
            all.given_back += stats.given_back.load(Ordering::Relaxed);
            all.fenced += stats.fenced.load(Ordering::Relaxed);
            all.adopted += stats.adopted.load(Ordering::Relaxed);
        }
        all
    }

    /// Mean wait of recent jobs between the moment at which they could run and the begin of their attempt.
    pub fn average_wait(&self) -> Duration {
        let waits: Vec<(Duration, f64)> = self.classes.iter().map(|class| class.stats.wait()).collect();
        let weight: f64 = waits.iter().map(|(_, weight)| weight).sum();
        let sum: f64 = waits.iter().map(|(wait, weight)| wait.as_secs_f64() * weight).sum();
        if weight > 0.0 { Duration::try_from_secs_f64(sum / weight).unwrap_or_default() } else { Duration::ZERO }
    }

    pub(crate) fn load(&self, now: Instant) -> Load {
        self.class(SlotClass::Sync, |class| {
            let (stats, alive) = (&class.stats, class.alive());
            Load {
                claimed: stats.claimed.load(Ordering::Relaxed),
                succeeded: stats.succeeded.load(Ordering::Relaxed),
                busy: stats.busy(),
                running: alive.iter().filter_map(|cell| cell.age(now)).collect(),
                waiting: class.inbox.len() as u64,
                workers: short(alive.len()),
                errors: stats.failed.load(Ordering::Relaxed) + stats.given_back.load(Ordering::Relaxed),
                more: stats.more.load(Ordering::Relaxed),
            }
        })
        .unwrap_or_default()
    }

    /// Jobs that are claimed and wait for a worker, and how many may.
    pub(crate) fn claimed(&self) -> (u64, u64) {
        let now = crate::runtime::clock::now();
        let waiting: usize = self.classes.iter().map(|class| class.inbox.len()).sum();
        let room: usize = self.classes.iter().map(|class| class.wanted(now)).sum();
        (waiting as u64, (waiting + room) as u64)
    }

    /// What the sync workers can do in this version.
    pub(crate) fn sync_kinds(&self) -> Vec<JobKind> {
        self.class(SlotClass::Sync, |class| class.kinds.clone()).unwrap_or_default()
    }

    /// For the claimer and the crew.
    pub(crate) fn parts(&self) -> (Vec<Arc<Class>>, Arc<Notify>) {
        (self.classes.to_vec(), self.changed.clone())
    }

    fn class<T>(&self, class: SlotClass, of: impl FnOnce(&Class) -> T) -> Option<T> {
        self.classes.iter().find(|c| c.class == class).map(|c| of(c))
    }
}

fn row(cell: &stats::WorkerCell) -> WorkerRow {
    let figures = cell.figures();
    let ms = |time: Duration| time.as_secs_f64() * 1_000.0;
    let busy = figures.current.is_some();
    WorkerRow {
        name: cell.name.clone(),
        kind: Some(kind_of(cell.class)),
        // Attempts that an outage, a stop or an operator has ended are neither: their jobs come again.
        processed: figures.succeeded + figures.failed,
        succeeded: figures.succeeded,
        failed: figures.failed,
        avg_ms: ms(figures.avg),
        p50_ms: ms(figures.p50),
        p99_ms: ms(figures.p99),
        last_active_ms: if busy { Some(crate::runtime::clock::wall_ms()) } else { figures.last_active_ms },
        busy,
        job: figures.current.map(|current| current.job),
    }
}

/// The kind that a class is there for.
fn kind_of(class: SlotClass) -> JobKind {
    match class {
        SlotClass::Sync => JobKind::Sync,
        SlotClass::Compression => JobKind::Compression,
        SlotClass::Notification => JobKind::Notification,
        SlotClass::Cleanup => JobKind::Cleanup,
        SlotClass::Snapshot => JobKind::Snapshot,
    }
}

fn short(n: usize) -> u16 {
    u16::try_from(n).unwrap_or(u16::MAX)
}
