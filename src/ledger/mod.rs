//! The ledger: everything that Argon stores in MongoDB, drawn along transactions.
//!
//! Owns: the port ([`Ledger`]), the rows (`model`, `job`, `status`, `controls`), what calls take and answer (`calls`), the real implementation (`mongo`), the memory twin and the faulty wrapper.
//! Does not own: decisions (`queue`, `capture::assemble`, `branch`): each method is one atomic write or one read.
//!
//! Every write that finishes something is conditional on its owner; every method may be repeated after an
//! [`Unknown`](crate::fault::Kind::Unknown) outcome and then reports what already happened.

mod base;
mod calls;
mod controls;
mod faulty;
mod job;
mod memory;
mod model;
mod mongo;
mod rules;
mod selection;
mod status;

pub use base::*;
pub use calls::*;
pub use controls::*;
pub use faulty::{FaultyLedger, LedgerCall, LedgerFaults, Mishap};
pub use job::*;
pub use memory::MemoryLedger;
pub use model::*;
pub use mongo::{
    ConnectOptions, MissingRights, MongoLedger, OplogShare, Phase as MongoPhase, ServerFacts, Topology, classify as classify_mongo_error,
    connect_client, grant_command, has_id, is_experimental, missing_rights, oldest_in_oplog, oplog_share, same_source, secret_option,
    server_facts,
};
pub(crate) use mongo::{START_ANEW, code as mongo_error_code, scrub};
pub use selection::{Selection, fits};
pub use status::*;

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bson::RawDocumentBuf;
use bytes::Bytes;

use crate::fault::Result;

/// Most jobs of one [`Ledger::enqueue`].
pub const MAX_ENQUEUE: usize = 1_000;
/// Most jobs of one [`Ledger::finish`]: one short transaction.
pub const MAX_FINISH: usize = 1_000;

/// A ledger shared by tasks.
pub type SharedLedger = Arc<dyn Ledger>;

/// Everything that is stored in the metadata database.
#[async_trait]
pub trait Ledger: Send + Sync + std::fmt::Debug {
    /// Creates collections and indexes; idempotent.
    async fn prepare(&self) -> Result<()>;
    /// The server's clock in ms since the epoch.
    async fn now_ms(&self) -> Result<i64>;

    /// Stores capture, branch and first base. `Rejected` when the branch's name is taken. `created_ms`, `checkpoint_ms` are set by server time.
    async fn create_capture(&self, new: &NewCapture) -> Result<()>;
    /// All captures, by branch name.
    async fn captures(&self) -> Result<Vec<Capture>>;
    async fn capture(&self, id: &str) -> Result<Option<Capture>>;
    /// The capture that feeds a branch.
    async fn capture_of(&self, branch: &str) -> Result<Option<Capture>>;
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
    /// A hole in what the source still serves: in one transaction the gap's row, the position behind it and the branch's status, under the same
    /// conditions as a checkpoint.
    async fn record_gap(&self, gap: &CaptureGap) -> Result<Checkpointed>;

    /// Stores jobs of kinds other than sync, each on its own, at most [`MAX_ENQUEUE`] a call. Outcomes in the order given; a repeat is harmless.
    /// `Rejected` for a sync job, and for params or keys that are too large: then nothing was stored.
    async fn enqueue(&self, jobs: &[NewJob]) -> Result<Vec<Enqueued>>;
    /// Turns `scheduled` jobs that are due, and parked ones whose branch is no longer paused, into `ready`; returns how many. At most some ten
    /// thousand a call: the next one goes on. The leader's.
    async fn promote(&self) -> Result<u64>;
    /// Claims ready jobs in `sched_key` order. A job with two or more crashes is claimed only if it would be the only one running at this engine
    /// ([`ClaimRequest::alone`]), and then alone.
    async fn claim(&self, request: &ClaimRequest) -> Result<Vec<Job>>;
    /// Whether the first ready job of these kinds is a suspect that has waited longer than `patience` (server time), see [`queue::suspect_is_due`](crate::queue::suspect_is_due).
    async fn suspect_waits(&self, kinds: &[JobKind], patience: Duration) -> Result<bool>;
    /// Notes that workers have begun with claimed jobs, in one write; false where the lease is no longer ours. What is lost of it in a failover only
    /// spares a job a crash.
    async fn start_many(&self, leases: &[JobLease]) -> Result<Vec<bool>>;
    /// [`Self::start_many`] of one.
    async fn start(&self, lease: &JobLease) -> Result<bool> {
        Ok(self.start_many(std::slice::from_ref(lease)).await?.first().copied().unwrap_or_default())
    }
    /// Says that the worker of a long job is alive: [`Self::stuck`] counts from here. False when the lease is no longer ours.
    /// One that has `progressed` is none that kills its process: the deaths that it met before no longer count (correctness.md 26).
    async fn touch(&self, lease: &JobLease, progressed: bool) -> Result<bool>;
    /// The jobs running at this engine that an operator has asked to stop: one look at an index. Their workers end them by [`Failed::Cancelled`].
    async fn cancel_requests(&self, engine: &str) -> Result<Vec<JobId>>;
    /// Jobs that have run for longer than this (server time) without an outcome, at most `max`. Whoever finds one ends the attempt with its
    /// lease ([`Job::held`], `RetryPolicy::after_stuck`), and whatever its worker does later is fenced.
    async fn stuck(&self, older_than: Duration, max: usize) -> Result<Vec<Job>>;
    /// Payload parts of a job in order. `Missing` when there are fewer than the job says.
    async fn payload(&self, job: &str) -> Result<Vec<Bytes>>;
    /// One majority transaction per branch: segment rows, totals, head over the contiguous prefix, jobs done, payloads deleted.
    /// All commits of a call are of one branch. Outcomes in the order given.
    async fn commit(&self, commits: &[SegmentCommit]) -> Result<Vec<Committed>>;
    /// Ends jobs of `engine` that need no segment and have succeeded, together and counted, at most [`MAX_FINISH`] a call. Outcomes in the order given.
    /// `Rejected` for a sync job: its end is a commit.
    async fn finish(&self, engine: &str, ends: &[Finish]) -> Result<Vec<Finished>>;
    /// Moves heads on over what is committed, where a commit had too much to walk and no other has come since; returns how many moved.
    async fn advance_heads(&self) -> Result<u64>;
    /// Ends an attempt; false when the lease was no longer ours. A job that an operator has asked to stop is cancelled by it, whatever `how` says.
    async fn fail(&self, lease: &JobLease, how: &Failed) -> Result<bool>;

    /// Writes this process's heartbeat by server time. False when the document was removed: others took us for dead, step down.
    async fn heartbeat(&self, beat: &EngineBeat, first: bool) -> Result<bool>;
    /// All engine documents.
    async fn engines(&self) -> Result<Vec<EngineBeat>>;
    /// Requeues running jobs and frees captures of the engines in `known_dead` and, where given, of those whose last heartbeat is older than
    /// `silent_before_ms` of server time, never of `by` itself; then removes their documents. Jobs that had started get `crashes + 1`; one whose process died three times
    /// (the third time as the only one that had started) becomes dead: `crash_loop`. What belongs to an engine without a document is freed too.
    async fn rescue(&self, by: &str, silent_before_ms: Option<i64>, known_dead: &[EngineId]) -> Result<Rescued>;
    /// Takes or renews the leadership for so long (server time): true while it is ours. At any time at most one engine is told so.
    async fn lead(&self, engine: &str, lease: Duration) -> Result<bool>;
    /// Gives up the leadership, if it is ours.
    async fn step_down(&self, engine: &str) -> Result<()>;
    /// Who leads, if the lease still runs.
    async fn leader(&self) -> Result<Option<EngineId>>;
    /// Orderly end of this process: removes its document and leadership, and adds its counters to the total; leases must have been given back.
    async fn retire(&self, engine: &str) -> Result<()>;
    /// Removes `done` and `cancelled` jobs finished longer ago than `age`, at most `max`.
    async fn sweep_jobs(&self, age: Duration, max: usize) -> Result<u64>;

    /// Exact up to 10,000 a state, then 10,001.
    async fn depth(&self) -> Result<QueueDepth>;
    /// The queue in figures. Exact up to 10,000 jobs a state, beyond that from [`Self::refresh_queue_stats`].
    async fn queue_stats(&self) -> Result<QueueStats>;
    /// Counts what [`Self::queue_stats`] does not: states with more than 10,000 jobs. Takes up to a second per million. The leader's.
    async fn refresh_queue_stats(&self) -> Result<()>;
    /// Jobs by id (creation order), at most `max`, each with its newest error only: [`Self::job`] has them all.
    async fn jobs(&self, filter: &JobFilter, max: usize) -> Result<Vec<Job>>;
    async fn job(&self, id: &str) -> Result<Option<Job>>;
    /// `dead` or `scheduled` -> `ready` with attempts and crashes reset; clears the branch's `stalled` when no dead sync job is left. False when the state does not allow it.
    /// `Rejected` when another job with its unique key has come meanwhile.
    async fn retry_job(&self, id: &str) -> Result<bool>;
    /// Discards a dead or waiting sync job: in one transaction the gap segment's row takes its range, the branch becomes `gap`, the payload goes, the job is `cancelled`.
    async fn discard_job(&self, id: &str, gap: &SegmentRow) -> Result<bool>;
    /// Cancels a job that waits or is dead, and asks the worker of a running one to stop. `Missing` when there is none, `Rejected` for a sync job: that is
    /// [`Self::discard_job`]'s, since it leaves a gap (correctness.md 25).
    async fn cancel_job(&self, id: &str) -> Result<Cancelled>;
    /// Does `action` to the jobs that `filter` finds, at most `max`, in chunks of one transaction each: what a call that fails had done is done, and a repeat
    /// goes on. `filter.after` is ignored. A dry run only looks.
    async fn bulk(&self, action: Bulk, filter: &JobFilter, max: usize, dry_run: bool) -> Result<BulkOutcome>;

    /// What operators wish of all engines.
    async fn controls(&self) -> Result<Controls>;
    /// [`Controls::pauses`] alone.
    async fn pauses(&self) -> Result<Pauses> {
        Ok(self.controls().await?.pauses)
    }
    /// Pauses or resumes. The end of a branch's pause makes its parked jobs ready, what is too much for one call by and by ([`Self::promote`]).
    async fn set_pause(&self, what: &PauseTarget, paused: bool, by: &str) -> Result<()>;
    /// The size of every engine's pool, for `hold` of server time or until it is released; `None` releases.
    async fn set_scale(&self, target: Option<u16>, hold: Option<Duration>, by: &str) -> Result<()>;

    /// All branches, deleted ones included, by name.
    async fn branches(&self) -> Result<Vec<Branch>>;
    /// A page of [`Self::branches`]: at most `max` of those whose name comes after `after`.
    async fn branches_after(&self, after: Option<&str>, max: usize) -> Result<Vec<Branch>>;
    /// Those with these ids, in no order.
    async fn branches_of(&self, ids: &[BranchId]) -> Result<Vec<Branch>>;
    /// How many branches there are of each status; those of which there is none are left out.
    async fn branch_counts(&self) -> Result<Vec<(BranchStatus, u64)>>;
    async fn branch(&self, id: &str) -> Result<Option<Branch>>;
    async fn branch_named(&self, name: &str) -> Result<Option<Branch>>;
    /// Segments of a branch that end at or after `from_seq`, by first seq, at most `max`.
    async fn segments(&self, branch: &str, from_seq: u64, max: usize) -> Result<Vec<SegmentRow>>;
    /// Segments of a branch that begin at or before `from_seq`, the newest first, at most `max`, with their filters.
    async fn segments_before(&self, branch: &str, from_seq: u64, max: usize) -> Result<Vec<SegmentRow>>;
    /// Segments of a branch that change its catalogue and end at or after `from_seq`, in order, at most `max`.
    async fn ddl_segments(&self, branch: &str, from_seq: u64, max: usize) -> Result<Vec<SegmentRow>>;
    /// Segments of a branch of which something is lost, a recorded gap or changes that cannot be applied, that begin at or after `from_seq`, in order,
    /// at most `max`.
    async fn losses(&self, branch: &str, from_seq: u64, max: usize) -> Result<Vec<SegmentRow>>;
    /// The whole token of the stored position; what `captured_until` is computed from.
    async fn position(&self, capture: &str) -> Result<Option<(RawDocumentBuf, u64)>>;

    /// Stores a branch that is forked from another one ([`Branch::parent`]), to delete itself after `ttl`. `Rejected` when the name is taken or the parent
    /// is deleted. The parent's document is written too, so that it is not deleted at the same time (correctness.md 23).
    async fn create_branch(&self, branch: &Branch, ttl: Option<Duration>) -> Result<()>;
    /// Branches forked from this one that are not deleted, at most `max`.
    async fn children(&self, branch: &str, max: usize) -> Result<Vec<Branch>>;
    /// Branches that are not deleted and expire at or before `now_ms`, and those that were deleted at or before `deleted_before_ms`.
    async fn branches_due(&self, now_ms: i64, deleted_before_ms: i64) -> Result<Vec<Branch>>;
    /// `Rejected` when the name is taken, `Missing` when there is no such branch.
    async fn rename_branch(&self, id: &str, name: &str) -> Result<()>;
    /// Archives, which stops the capture, or takes it back.
    async fn archive_branch(&self, id: &str, archived: bool) -> Result<()>;
    /// Marks a branch as deleted, stops its capture and frees its name. `Rejected` while it has children. True when it was not deleted already.
    async fn delete_branch(&self, id: &str) -> Result<bool>;
    /// Removes the rows of a deleted branch, the branch's own last; at most some thousand a call. True when nothing is left.
    async fn purge_branch(&self, id: &str) -> Result<bool>;
    /// Gives a branch a capture, and the segment that its history begins with there. `Rejected` when it has one, or its head has moved.
    async fn attach_capture(&self, new: &Attach) -> Result<()>;
    /// Keeps what a drill has proven, if it is newer than what is there.
    async fn note_proven(&self, branch: &str, proven: &Proven) -> Result<()>;

    /// Bases of a branch by seq, those given up included.
    async fn bases(&self, branch: &str) -> Result<Vec<Base>>;
    async fn base(&self, id: &str) -> Result<Option<Base>>;
    /// All bases in a state.
    async fn bases_in(&self, state: BaseState) -> Result<Vec<Base>>;
    /// Stores a new base; a repeat is harmless. `created_ms` is set by server time.
    async fn create_base(&self, base: &Base) -> Result<()>;
    /// `copying` -> `complete`, with the figures of `base`; the branch's status follows. False when it was given up meanwhile.
    async fn finish_base(&self, base: &Base) -> Result<bool>;
    /// `copying` -> `abandoned`. False when it is not being made.
    async fn abandon_base(&self, id: &str, reason: &str) -> Result<bool>;
    /// Notes what the copying of a base waits for, and what there is to copy.
    async fn note_base(&self, id: &str, expected: Option<(u64, u64)>, reason: Option<&str>) -> Result<()>;
    /// Stores stretches of one base, all or none, and adds them to it. False when one of them has been copied by somebody else, or the base is no longer
    /// being made.
    async fn add_chunks(&self, chunks: &[BaseChunk]) -> Result<bool>;
    /// Stretches of a base in order of collection and number, after the id `after`, at most `max`.
    async fn chunks(&self, base: &str, after: Option<&str>, max: usize) -> Result<Vec<BaseChunk>>;
    /// The last stretch of a collection.
    async fn last_chunk(&self, base: &str, uuid: &str) -> Result<Option<BaseChunk>>;
    /// Removes the row of a base that was given up, and its stretches. False when it is not given up.
    async fn remove_base(&self, id: &str) -> Result<bool>;
    /// Forgets the stretches of a base.
    async fn remove_chunks(&self, base: &str) -> Result<()>;

    /// Stores rows of segments that a rebuild has found, leaving those that are there.
    async fn import_segments(&self, rows: &[SegmentRow]) -> Result<()>;
    /// Stores a branch that a rebuild has found, with its capture and bases, in one transaction. False when there is one of that id.
    async fn import_branch(&self, import: &Import) -> Result<bool>;
}
