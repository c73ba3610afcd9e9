//! Owns: what the calls of the ledger take and answer. Does not own: the rows themselves (`model`, `job`), or what a call does (`Ledger`).

use std::collections::BTreeMap;
use std::time::Duration;

use bson::RawDocumentBuf;
use bytes::Bytes;

use super::{
    Base, Branch, BranchId, Capture, CaptureId, Counters, EngineId, JobId, JobKind, JobLease, JobState, Pauses, Position, Priority,
    SegmentRow, SyncSpec,
};

/// A capture, its branch and its first base, created in one transaction.
#[derive(Debug, Clone)]
pub struct NewCapture {
    pub capture: Capture,
    pub branch: Branch,
    pub base: Base,
}

/// A hole in a capture's history.
#[derive(Debug, Clone)]
pub struct CaptureGap {
    pub capture: CaptureId,
    pub fence: u64,
    pub expected_next_seq: u64,
    /// Behind the gap.
    pub after: Position,
    /// Of kind `gap`, with the one seq that is expected next.
    pub row: SegmentRow,
}

/// A capture for a branch that has none.
#[derive(Debug, Clone)]
pub struct Attach {
    pub capture: Capture,
    /// What history goes on with: it begins right behind the branch's head and ends where the capture begins.
    pub row: SegmentRow,
    pub source_db: String,
    /// The database goes with the branch.
    pub drop_db: bool,
    /// The branch deletes itself after this.
    pub ttl: Option<Duration>,
}

/// A branch as a rebuild has found it in the bucket.
#[derive(Debug, Clone)]
pub struct Import {
    pub branch: Branch,
    pub capture: Option<Capture>,
    pub bases: Vec<Base>,
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

/// Outcome of [`Ledger::checkpoint`](super::Ledger::checkpoint).
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
    /// The worker has stopped because an operator asked for it ([`Job::cancel_requested`](super::Job::cancel_requested)).
    Cancelled,
}

/// What [`Ledger::rescue`](super::Ledger::rescue) did.
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

/// Which jobs.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct JobFilter {
    pub state: Option<JobState>,
    pub kind: Option<JobKind>,
    pub branch: Option<BranchId>,
    /// Only jobs that run at this engine.
    pub engine: Option<EngineId>,
    /// Only jobs whose last error has this text in it, whatever the case of its ASCII letters.
    pub error: Option<String>,
    /// Only jobs with ids after this one (paging).
    pub after: Option<JobId>,
}

/// A claim.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ClaimRequest {
    pub engine: EngineId,
    pub kinds: Vec<JobKind>,
    pub limit: usize,
    /// Nothing of this engine is running: a suspect that comes first is claimed, and then it alone.
    pub alone: bool,
    /// So many of the jobs, the first ones, go straight to a free worker: they come marked as started, and need no [`Ledger::start_many`](super::Ledger::start_many).
    pub start: usize,
    /// Paused kinds are left out. Jobs of paused branches that are met are parked, so that they are looked at once and not by every claim.
    pub pauses: Pauses,
    /// The claim before was full: what is first in line need not be looked for from the very beginning. A job that comes in before the others, such
    /// as one of a higher priority, may be found up to a second later.
    pub goes_on: bool,
}

impl ClaimRequest {
    /// A claim of up to `limit` jobs that wait for a worker, in company, with nothing paused.
    pub fn new(engine: &str, kinds: &[JobKind], limit: usize) -> Self {
        Self { engine: engine.to_owned(), kinds: kinds.to_vec(), limit, alone: false, start: 0, pauses: Pauses::default(), goes_on: false }
    }

    /// The same, when nothing of the engine is running.
    #[must_use]
    pub fn alone(self, alone: bool) -> Self {
        Self { alone, ..self }
    }

    /// The same, with so many jobs started at once.
    #[must_use]
    pub fn start(self, start: usize) -> Self {
        Self { start, ..self }
    }

    /// The same, after a claim that was full.
    #[must_use]
    pub fn goes_on(self, goes_on: bool) -> Self {
        Self { goes_on, ..self }
    }

    /// The same, with these pauses.
    #[must_use]
    pub fn pauses(self, pauses: Pauses) -> Self {
        Self { pauses, ..self }
    }
}

/// A job of a kind other than sync on its way into the queue.
#[derive(Debug, Clone, PartialEq)]
pub struct NewJob {
    /// Chosen by the caller, so that a repeat is recognised: `runtime::random::ordered_id`.
    pub id: JobId,
    pub kind: JobKind,
    pub branch: Option<BranchId>,
    /// Instead of that of its kind.
    pub priority: Option<Priority>,
    /// Not before this much server time has passed.
    pub delay: Duration,
    pub params: Option<RawDocumentBuf>,
    pub unique_key: Option<String>,
    /// Instead of `JOB_RETRY_COUNT`.
    pub retries: Option<u32>,
}

impl NewJob {
    /// A job that may run at once.
    pub fn new(id: JobId, kind: JobKind) -> Self {
        Self { id, kind, branch: None, priority: None, delay: Duration::ZERO, params: None, unique_key: None, retries: None }
    }
}

/// Outcome of one [`NewJob`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Enqueued {
    /// Stored now.
    Stored,
    /// A job with this id is there already: an earlier call of ours.
    Already,
    /// Another job with the same unique key is scheduled, ready or running.
    Duplicate { job: JobId },
}

/// A job without a segment that has succeeded.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Finish {
    pub lease: JobLease,
    /// The job's own: it is counted under it.
    pub kind: JobKind,
}

/// Outcome of one [`Finish`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Finished {
    /// Now.
    Now,
    /// By an earlier call of the same lease whose answer was lost.
    Already,
    /// The lease is no longer ours, or the job is not running: drop the work.
    Fenced,
}

/// Outcome of [`Ledger::cancel_job`](super::Ledger::cancel_job).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Cancelled {
    /// It waited or was dead, and is cancelled now.
    Now,
    /// It runs: its worker has been asked to stop.
    Requested,
    /// It was cancelled before.
    Already,
    /// It is done.
    TooLate,
}

/// What to do with every job that a filter finds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Bulk {
    /// As [`Ledger::retry_job`](super::Ledger::retry_job). A filter without a state means the dead ones.
    Retry,
    /// As [`Ledger::cancel_job`](super::Ledger::cancel_job). Sync jobs are found only by a filter that names their kind, and then only listed, since each
    /// of them leaves a gap ([`Ledger::discard_job`](super::Ledger::discard_job)). A filter without a state means all that can be cancelled.
    Cancel,
}

/// What [`Ledger::bulk`](super::Ledger::bulk) did, or would do.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct BulkOutcome {
    /// Jobs found that the action may be done to, at most `max`.
    pub matched: u64,
    /// Jobs whose state has changed; none in a dry run.
    pub changed: u64,
    /// Running jobs that were asked to stop.
    pub requested: u64,
    /// Jobs that another one with the same unique key keeps from running again.
    pub hindered: u64,
    /// The first of the jobs found, at most [`BULK_SAMPLE`].
    pub sample: Vec<JobId>,
    /// Sync jobs among them that are to be discarded one by one.
    pub discard: Vec<JobId>,
    /// It stopped at `max`, or at its time: there may be more, so call again.
    pub more: bool,
}

/// Jobs that a bulk action names.
pub const BULK_SAMPLE: usize = 20;

/// Jobs of one state.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct StateCount {
    pub by_kind: BTreeMap<JobKind, u64>,
    /// Server time of a figure that was refreshed in the background; `None` when it was counted for this answer.
    pub as_of_ms: Option<i64>,
    /// Not even a background figure exists: there are at least so many.
    pub at_least: bool,
}

impl StateCount {
    /// Of all kinds.
    pub fn total(&self) -> u64 {
        self.by_kind.values().sum()
    }
}

/// The queue in figures, none of which costs a scan.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct QueueStats {
    /// Parked jobs included.
    pub scheduled: StateCount,
    pub ready: StateCount,
    pub running: StateCount,
    pub dead: StateCount,
    /// Lifetime figures: all engines that ever were.
    pub counters: Counters,
    /// How long the job that is next in line has been ready, by kind.
    pub oldest_ready: BTreeMap<JobKind, Duration>,
}
