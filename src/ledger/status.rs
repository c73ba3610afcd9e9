//! Owns: what a process says of itself in its heartbeat, so that any process can show all of them.
//! Does not own: measuring it (`pool`, `engine`), or how it is shown (`http`, `cli`).

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::{JobId, JobKind};

/// One process. At most 20 workers and a few slots, so a few KB.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct EngineStatus {
    /// Version of the program.
    pub version: String,
    /// When the process began, by its own clock, in ms since the epoch: for display.
    pub started_ms: i64,
    /// It is stopping: it takes nothing new.
    pub draining: bool,
    pub pool: PoolRow,
    /// Sync workers first, then those of the other slots.
    pub workers: Vec<WorkerRow>,
    /// Places for the kinds that have their own.
    pub slots: Vec<SlotRow>,
    /// Attempts since the process began.
    pub attempts: Attempts,
    /// Those of the sync workers, the ones that exist no more included.
    pub sync_attempts: Attempts,
    /// Captures that this process follows.
    pub captures: u32,
    /// Average wait of recent jobs between the moment at which they could run and the begin of their attempt, in ms.
    pub avg_wait_ms: f64,
    /// How late timers of this process fire, in ms: high when it has too little CPU.
    pub runtime_lag_ms: f64,
    /// Its `ARGON_LEASE`: silent for longer it counts as dead.
    pub lease_ms: i64,
}

/// The size of the pool of sync workers.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct PoolRow {
    /// The size wanted.
    pub target: u16,
    /// Workers that exist now: more than the target while busy ones finish.
    pub current: u16,
    pub min: u16,
    pub max: u16,
    /// An operator holds the size.
    pub pin: Option<PinRow>,
}

/// A size held by an operator.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct PinRow {
    pub target: u16,
    /// When it ends by itself, ms since the epoch.
    pub until_ms: Option<i64>,
}

/// One worker since it was started.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct WorkerRow {
    /// `sync-worker-0`.
    pub name: String,
    /// The kind it is there for; sync workers run noop jobs too.
    pub kind: Option<JobKind>,
    pub processed: u64,
    pub succeeded: u64,
    pub failed: u64,
    pub avg_ms: f64,
    pub p50_ms: f64,
    pub p99_ms: f64,
    /// End of its last attempt, or now while it is busy; ms since the epoch.
    pub last_active_ms: Option<i64>,
    pub busy: bool,
    /// What it is busy with.
    pub job: Option<JobId>,
}

/// Places of one kind.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SlotRow {
    pub kind: JobKind,
    pub capacity: u16,
    pub busy: u16,
}

/// Attempts of one process. Lifetime figures that survive a process are [`Counters`].
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Attempts {
    pub succeeded: u64,
    pub failed: u64,
    pub given_back: u64,
    /// Results that were dropped, because the job was another attempt's by then.
    pub fenced: u64,
    /// Uploads that were found to have landed although their answer was lost.
    pub adopted: u64,
}

/// Lifetime figures by kind, written in the same transaction as what they count: no death of a process loses or doubles one.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Counters {
    /// Jobs done.
    pub done: BTreeMap<JobKind, u64>,
    /// Attempts that failed and counted.
    pub failed: BTreeMap<JobKind, u64>,
    /// Times that a job became dead.
    pub dead: BTreeMap<JobKind, u64>,
    /// Jobs cancelled, discarded ones included.
    pub cancelled: BTreeMap<JobKind, u64>,
    /// Times that an operator revived a job.
    pub revived: BTreeMap<JobKind, u64>,
}

/// One of the [`Counters`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Tally {
    Done,
    Failed,
    Dead,
    Cancelled,
    Revived,
}

impl Tally {
    const ALL: [Self; 5] = [Self::Done, Self::Failed, Self::Dead, Self::Cancelled, Self::Revived];

    /// The field of the document.
    pub(super) fn field(self) -> &'static str {
        match self {
            Self::Done => "done",
            Self::Failed => "failed",
            Self::Dead => "dead",
            Self::Cancelled => "cancelled",
            Self::Revived => "revived",
        }
    }
}

impl Counters {
    /// Adds another process's.
    pub fn add(&mut self, other: &Self) {
        let mut theirs = other.clone();
        for tally in Tally::ALL {
            for (kind, n) in std::mem::take(theirs.of(tally)) {
                self.count(tally, kind, n);
            }
        }
    }

    /// Adds `n` jobs of a kind.
    pub(super) fn count(&mut self, tally: Tally, kind: JobKind, n: u64) {
        if n > 0 {
            *self.of(tally).entry(kind).or_default() += n;
        }
    }

    /// What is not nothing: `(field, kind, n)`.
    pub(super) fn entries(&self) -> Vec<(&'static str, JobKind, u64)> {
        let mut all = self.clone();
        Tally::ALL
            .into_iter()
            .flat_map(|tally| std::mem::take(all.of(tally)).into_iter().map(move |(kind, n)| (tally.field(), kind, n)))
            .collect()
    }

    fn of(&mut self, tally: Tally) -> &mut BTreeMap<JobKind, u64> {
        match tally {
            Tally::Done => &mut self.done,
            Tally::Failed => &mut self.failed,
            Tally::Dead => &mut self.dead,
            Tally::Cancelled => &mut self.cancelled,
            Tally::Revived => &mut self.revived,
        }
    }
}
