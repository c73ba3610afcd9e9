//! The ledger: everything that Argon stores in MongoDB, drawn along transactions.
//!
//! Owns: the port ([`Ledger`]), the rows (`model`), the real implementation (`mongo`), the memory twin and the faulty wrapper.
//! Does not own: decisions (`queue`, `capture::assemble`, `branch`): each method is one atomic write or one read.
//!
//! Every write that finishes something is conditional on its owner; every method may be repeated after an
//! [`Unknown`](crate::fault::Kind::Unknown) outcome and then reports what already happened.

mod faulty;
mod memory;
mod model;
mod mongo;

mod rules;

pub use faulty::{FaultyLedger, LedgerCall, LedgerFaults, Mishap};
pub use memory::MemoryLedger;
pub use model::*;
pub use mongo::{
    ConnectOptions, MongoLedger, Phase as MongoPhase, ServerFacts, Topology, classify as classify_mongo_error, connect_client, has_id,
    is_experimental, same_source, secret_option, server_facts,
};
pub(crate) use mongo::{START_ANEW, code as mongo_error_code, scrub};

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bson::RawDocumentBuf;
use bytes::Bytes;

use crate::fault::Result;

/// A ledger shared by tasks.
pub type SharedLedger = Arc<dyn Ledger>;

/// A capture, its branch and base 0, created in one transaction.
#[derive(Debug, Clone)]
pub struct NewCapture {
    pub capture: Capture,
    pub branch: Branch,
}

/// A batch on its way into the queue.
#[derive(Debug, Clone)]
pub struct Checkpoint {
    pub capture: CaptureId,
    /// The owner's fence; the write happens only while it is the capture's.
    pub fence: u64,
    /// The position before: the write happens only if `next_seq` is still this.
    pub expected_next_seq: u64,
    pub after: Position,
    pub batch: Option<NewBatch>,
}

/// Job and payload of a checkpoint; absent when only the token moves (idle).
#[derive(Debug, Clone)]
pub struct NewBatch {
    pub job: JobId,
    pub branch: BranchId,
    pub spec: SyncSpec,
    /// Compressed payload, each part at most 8 MiB.
    pub parts: Vec<Bytes>,
}

/// Outcome of [`Ledger::checkpoint`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Checkpointed {
    /// Stored now.
    Stored,
    /// This very batch was stored by an earlier call whose answer was lost.
    Already,
    /// Another owner has taken the capture or moved its position: step down.
    Fenced,
    /// The capture is no longer `running`: the operator stopped it.
    NotRunning,
}

/// A segment to be committed with its job.
#[derive(Debug, Clone)]
pub struct SegmentCommit {
    pub lease: JobLease,
    pub segment: SegmentRow,
    /// Payload bytes the queue gets back.
    pub payload_bytes: u64,
}

/// Outcome of one commit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Committed {
    /// Now.
    Now,
    /// By an earlier call of the same lease whose answer was lost.
    Already,
    /// The lease is no longer ours, or the job is not running, or a row claims the key: drop the work.
    Fenced,
    /// The segment does not have the job's range: it must never be committed. The other commits of the call are not touched by it.
    Misfit,
}

/// What becomes of a job whose attempt ended without success.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Failed {
    /// Again after this delay (server time); the attempt counts.
    Retry { delay: Duration, error: String },
    /// Again after this delay; the attempt does not count (an outage, a shutdown).
    GiveBack { delay: Duration, error: Option<String> },
    /// Never again without an operator; the branch becomes `stalled` in the same transaction.
    Dead { error: String },
}

/// What [`Ledger::rescue`] did.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Rescued {
    pub engines: Vec<EngineId>,
    pub jobs: u64,
    pub captures: u64,
}

/// Depth of the queue by state.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct QueueDepth {
    pub scheduled: u64,
    pub ready: u64,
    pub running: u64,
    pub dead: u64,
}

/// Which jobs to list.
#[derive(Debug, Clone, Default)]
pub struct JobFilter {
    pub state: Option<JobState>,
    pub kind: Option<JobKind>,
    pub branch: Option<BranchId>,
    /// Only jobs with ids after this one (paging).
    pub after: Option<JobId>,
}

/// Everything that is stored in the metadata database.
#[async_trait]
pub trait Ledger: Send + Sync + std::fmt::Debug {
    /// Creates collections and indexes; idempotent.
    async fn prepare(&self) -> Result<()>;
    /// The server's clock in ms since the epoch.
    async fn now_ms(&self) -> Result<i64>;

    /// Stores capture and branch. `Rejected` when the branch's name is taken. `created_ms`, `checkpoint_ms` are set by server time.
    async fn create_capture(&self, new: &NewCapture) -> Result<()>;
    /// All captures, by branch name.
    async fn captures(&self) -> Result<Vec<Capture>>;
    async fn capture(&self, id: &str) -> Result<Option<Capture>>;
    /// Takes a running capture that has no owner (or is already ours): sets the owner and the next fence. `None` when it is taken or not running.
    async fn own_capture(&self, id: &str, engine: &str) -> Result<Option<Capture>>;
    /// Gives up ownership if the fence is still ours.
    async fn release_capture(&self, id: &str, fence: u64) -> Result<()>;
    /// The operator's change of state, with a reason for people. `failed` sets the branch's status too, `running` clears it (unless it is stalled or has a gap).
    async fn set_capture_state(&self, id: &str, state: CaptureState, reason: Option<&str>) -> Result<()>;
    /// Where a capture reads from now on: another way to the same source, or an identity that has become exact.
    async fn set_capture_source(&self, id: &str, source: &Source) -> Result<()>;
    /// Keeps the id of a source that had not shown one: changes `known` to `seen` for the owner with this fence, and nothing else of the source,
    /// which an operator may be changing at the same time.
    async fn note_identity(&self, id: &str, fence: u64, known: &str, seen: &str) -> Result<()>;
    /// The engine's `failed`: only while the capture runs and is this engine's by this fence. False when it is not, and then nothing has changed.
    async fn fail_capture(&self, id: &str, engine: &str, fence: u64, reason: &str) -> Result<bool>;
    /// Notes why a running capture waits (or that it no longer does), while the fence is ours.
    async fn note_capture(&self, id: &str, fence: u64, reason: Option<&str>) -> Result<()>;
    /// Notes on the branch of a running capture what its source sends, while the fence is ours. A branch only ever gets worse: what was read
    /// with less stays in history.
    async fn note_coverage(&self, id: &str, fence: u64, coverage: &Coverage) -> Result<()>;
    /// One majority transaction: job + payload + position, conditional on running state, fence and next seq.
    async fn checkpoint(&self, write: &Checkpoint) -> Result<Checkpointed>;

    /// Turns `scheduled` jobs that are due into `ready`; returns how many.
    async fn promote(&self) -> Result<u64>;
    /// Claims up to `limit` ready jobs of these kinds in `sched_key` order. A job with two or more crashes is claimed only if it would be the only one
    /// running at this engine (`alone`), and then alone.
    async fn claim(&self, engine: &str, kinds: &[JobKind], limit: usize, alone: bool) -> Result<Vec<Job>>;
    /// Whether the first ready job of these kinds is a suspect that has waited longer than `patience` (server time), see [`queue::suspect_is_due`](crate::queue::suspect_is_due).
    async fn suspect_waits(&self, kinds: &[JobKind], patience: Duration) -> Result<bool>;
    /// Notes that a worker has begun with a claimed job; false when the lease is no longer ours. What is lost of it in a failover only spares the job a crash.
    async fn start(&self, lease: &JobLease) -> Result<bool>;
    /// Payload parts of a job in order. `Missing` when there are fewer than the job says.
    async fn payload(&self, job: &str) -> Result<Vec<Bytes>>;
    /// One majority transaction per branch: segment rows, totals, head over the contiguous prefix, jobs done, payloads deleted.
    /// All commits of a call are of one branch. Outcomes in the order given.
    async fn commit(&self, commits: &[SegmentCommit]) -> Result<Vec<Committed>>;
    /// Moves heads on over what is committed, where a commit had too much to walk and no other has come since; returns how many moved.
    async fn advance_heads(&self) -> Result<u64>;
    /// Ends an attempt; false when the lease was no longer ours.
    async fn fail(&self, lease: &JobLease, how: &Failed) -> Result<bool>;

    /// Writes this process's heartbeat by server time. False when the document was removed: others took us for dead, step down.
    async fn heartbeat(&self, beat: &EngineBeat, first: bool) -> Result<bool>;
    /// All engine documents.
    async fn engines(&self) -> Result<Vec<EngineBeat>>;
    /// Requeues running jobs and frees captures of the engines in `known_dead` and, where given, of those whose last heartbeat is older than
    /// `silent_before_ms` of server time, never of `by` itself; then removes their documents. Jobs that had started get `crashes + 1`; one whose process died three times
    /// (the third time as the only one that had started) becomes dead: `crash_loop`. What belongs to an engine without a document is freed too.
    async fn rescue(&self, by: &str, silent_before_ms: Option<i64>, known_dead: &[EngineId]) -> Result<Rescued>;
    /// Orderly end of this process: removes its document; leases must have been given back.
    async fn retire(&self, engine: &str) -> Result<()>;
    /// Removes `done` and `cancelled` jobs finished longer ago than `age`, at most `max`.
    async fn sweep_jobs(&self, age: Duration, max: usize) -> Result<u64>;

    /// Exact up to 10,000 a state, then 10,001.
    async fn depth(&self) -> Result<QueueDepth>;
    /// Jobs by id (creation order), at most `max`.
    async fn jobs(&self, filter: &JobFilter, max: usize) -> Result<Vec<Job>>;
    async fn job(&self, id: &str) -> Result<Option<Job>>;
    /// `dead` or `scheduled` -> `ready` with attempts and crashes reset; clears the branch's `stalled` when no dead sync job is left. False when the state does not allow it.
    async fn retry_job(&self, id: &str) -> Result<bool>;
    /// Discards a dead or waiting sync job: in one transaction the gap segment's row takes its range, the branch becomes `gap`, the payload goes, the job is `cancelled`.
    async fn discard_job(&self, id: &str, gap: &SegmentRow) -> Result<bool>;

    async fn branches(&self) -> Result<Vec<Branch>>;
    async fn branch(&self, id: &str) -> Result<Option<Branch>>;
    async fn branch_named(&self, name: &str) -> Result<Option<Branch>>;
    /// Segments of a branch that end at or after `from_seq`, by first seq, at most `max`.
    async fn segments(&self, branch: &str, from_seq: u64, max: usize) -> Result<Vec<SegmentRow>>;
    /// The first segment of a branch of which something is lost: a recorded gap, or changes that cannot be applied.
    async fn first_loss(&self, branch: &str) -> Result<Option<SegmentRow>>;
    /// The whole token of the stored position; what `captured_until` is computed from.
    async fn position(&self, capture: &str) -> Result<Option<(RawDocumentBuf, u64)>>;
}
