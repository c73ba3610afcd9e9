//! The kinds of jobs: one table from a kind to its handler, the workers it runs on, and the rules of its attempts.
//!
//! Owns: [`KINDS`], what a handler is, and the handlers themselves, one file each. Does not own: claiming, time limits, retries, statistics
//! (`pool`), or states and priorities (`queue`).
//!
//! A new kind is a file with a [`Handler`] and a line in [`KINDS`]. A kind without a handler is not claimed by this version: its jobs wait for
//! an engine that knows it, as in a rolling upgrade.

pub mod cleanup;
pub mod drill;
pub mod noop;
pub mod snapshot;
mod sync;
mod watch;

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;

use crate::config::BaseSettings;
use crate::engine::SourceOpener;
use crate::fault::Result;
use crate::ledger::{Job, JobKind, JobLease, SharedLedger};
use crate::pool::MarkHandle;
use crate::runtime::cpu::CpuPool;
use crate::runtime::shutdown::Shutdown;
use crate::store::Store;
use crate::sync::CommitHandle;
use crate::telemetry::meters::Meters;

pub use watch::{Computing, Watch};

/// What one attempt led to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// The work is done; the pool puts it on record, together with others.
    Done,
    /// The work is done and was put on record in the transaction that committed it.
    Committed { stored_bytes: u64, adopted: bool },
    /// Somebody else owns the job now; its result is theirs.
    Fenced,
}

/// Does the work of one kind.
#[async_trait]
pub trait Handler: Send + Sync + std::fmt::Debug {
    /// One attempt. It ends soon after `watch.cancel`; what it returns then is looked at only if it is a success. Faults say what becomes of the
    /// job: `Transient` never uses up an attempt, `Unknown` does, everything that cannot heal is the end of it.
    async fn run(&self, job: &Job, lease: &JobLease, watch: &Watch) -> Result<Outcome>;
}

/// The workers that a kind runs on. Each class claims for itself, so that none waits behind another's backlog.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum SlotClass {
    /// The sync workers, whose number follows the load.
    Sync,
    Compression,
    Notification,
    Cleanup,
    /// Bases and drills: long, and never in the way of the stream.
    Snapshot,
}

impl SlotClass {
    /// All classes, in the order in which they are shown.
    pub const ALL: [Self; 5] = [Self::Sync, Self::Compression, Self::Notification, Self::Cleanup, Self::Snapshot];

    /// Its name in `WORKER_SLOTS` and the first part of its workers' names.
    pub fn name(self) -> &'static str {
        match self {
            Self::Sync => "sync",
            Self::Compression => "compression",
            Self::Notification => "notification",
            Self::Cleanup => "cleanup",
            Self::Snapshot => "snapshot",
        }
    }
}

/// When it is put on record that a worker has begun (correctness.md 26).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mark {
    /// By the handler, beside its first reads and before anything is computed.
    ByHandler,
    /// Before the handler runs.
    Before,
    /// Only once the attempt has taken a moment: such a job cannot kill its process, and thousands of them a second end before that.
    IfLong,
}

/// What it means that an attempt has used up its time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Overtime {
    /// A failed attempt.
    Counts,
    /// A failed attempt if it was computing. Else MongoDB or the store kept it waiting, and an outage never uses up attempts.
    CountsIfComputing,
}

/// What handlers are made of.
#[derive(Debug, Clone)]
pub struct Parts {
    pub ledger: SharedLedger,
    pub store: Store,
    pub cpu: CpuPool,
    pub commits: CommitHandle,
    pub marks: MarkHandle,
    /// Longest time of one upload, its repeats included.
    pub upload_time: Duration,
    /// For those who read a source.
    pub sources: Arc<dyn SourceOpener>,
    pub settings: BaseSettings,
    /// Bytes that one fold may hold in memory.
    pub fold_memory: u64,
    /// Long jobs end soon after the engine begins to drain.
    pub stop: Shutdown,
    pub meters: Meters,
}

/// Makes the handler of a kind for one engine.
pub type MakeHandler = fn(&Parts) -> Arc<dyn Handler>;

/// One line of the table.
#[derive(Debug, Clone, Copy)]
pub struct KindSpec {
    pub kind: JobKind,
    pub class: SlotClass,
    /// Longest time of an attempt, well below `JOB_STUCK_TIMEOUT`; `None`: `WORKER_PROCESS_TIMEOUT`.
    pub timeout: Option<Duration>,
    pub mark: Mark,
    pub overtime: Overtime,
    pub handler: Option<MakeHandler>,
}

/// Jobs that take as long as it takes say themselves that they live ([`snapshot`]); this is for one that says so for ever.
const LONG: Duration = Duration::from_secs(30 * 86_400);

/// The table.
#[rustfmt::skip]
pub const KINDS: &[KindSpec] = &[
    KindSpec { kind: JobKind::Sync, class: SlotClass::Sync, timeout: None, mark: Mark::ByHandler, overtime: Overtime::CountsIfComputing, handler: Some(sync::handler) },
    KindSpec { kind: JobKind::Noop, class: SlotClass::Sync, timeout: None, mark: Mark::IfLong, overtime: Overtime::Counts, handler: Some(noop::handler) },
    KindSpec { kind: JobKind::Compression, class: SlotClass::Compression, timeout: None, mark: Mark::Before, overtime: Overtime::Counts, handler: None },
    KindSpec { kind: JobKind::Notification, class: SlotClass::Notification, timeout: None, mark: Mark::Before, overtime: Overtime::Counts, handler: None },
    KindSpec { kind: JobKind::Cleanup, class: SlotClass::Cleanup, timeout: Some(LONG), mark: Mark::Before, overtime: Overtime::CountsIfComputing, handler: Some(cleanup::handler) },
    KindSpec { kind: JobKind::Snapshot, class: SlotClass::Snapshot, timeout: Some(LONG), mark: Mark::Before, overtime: Overtime::CountsIfComputing, handler: Some(snapshot::handler) },
    KindSpec { kind: JobKind::Drill, class: SlotClass::Snapshot, timeout: Some(LONG), mark: Mark::Before, overtime: Overtime::CountsIfComputing, handler: Some(drill::handler) },
];

/// A kind with its handler.
#[derive(Debug, Clone)]
pub struct Kind {
    pub spec: KindSpec,
    pub handler: Arc<dyn Handler>,
}

/// The handlers of one engine.
#[derive(Debug, Clone, Default)]
pub struct Registry(Arc<Vec<Kind>>);

impl Registry {
    /// A handler for each line that has one.
    pub fn new(kinds: &[KindSpec], parts: &Parts) -> Self {
        let made = kinds.iter().filter_map(|spec| Some(Kind { spec: *spec, handler: spec.handler?(parts) }));
        Self(Arc::new(made.collect()))
    }

    /// The handler of a kind, if this version has one.
    pub fn get(&self, kind: JobKind) -> Option<&Kind> {
        self.0.iter().find(|k| k.spec.kind == kind)
    }

    /// What workers of a class can do.
    pub fn kinds_of(&self, class: SlotClass) -> Vec<JobKind> {
        self.0.iter().filter(|k| k.spec.class == class).map(|k| k.spec.kind).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_kind_of_job_has_exactly_one_line() {
        for kind in JobKind::ALL {
            assert_eq!(KINDS.iter().filter(|spec| spec.kind == kind).count(), 1, "{kind:?}");
        }
        assert_eq!(KINDS.len(), JobKind::ALL.len());
    }
}
