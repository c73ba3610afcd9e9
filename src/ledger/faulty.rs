//! Owns: a ledger that misbehaves on request: calls that fail before anything happens, calls that
//! happen but whose answer is lost, and calls that are not answered for a while.
//! Does not own: any row; it wraps a ledger that does.

use std::collections::{HashSet, VecDeque};
use std::future::Future;
use std::time::Duration;

use async_trait::async_trait;
use bson::RawDocumentBuf;
use bytes::Bytes;
use parking_lot::Mutex;
use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};
use tokio::sync::watch;

use super::*;
use crate::fault::Fault;

/// How often writes go wrong; a seed repeats a run as far as its calls come in the same order.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct LedgerFaults {
    pub seed: u64,
    /// Fraction of writes that fail before they happen (`Transient`).
    pub before: f64,
    /// Fraction of writes that happen, with the answer lost (`Unknown`).
    pub lost: f64,
    /// Fraction of reads that fail (`Transient`).
    pub reads: f64,
}

impl LedgerFaults {
    /// Nothing goes wrong unless a script says so.
    pub fn none() -> Self {
        Self { seed: 0, before: 0.0, lost: 0.0, reads: 0.0 }
    }
}

/// What goes wrong with one call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mishap {
    /// It fails and did not happen.
    Before,
    /// It happens, and the caller hears `Unknown`.
    AnswerLost,
    /// The caller panics.
    Panic,
}

/// The calls that write, and all reads as one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum LedgerCall {
    Prepare,
    CreateCapture,
    OwnCapture,
    ReleaseCapture,
    SetCaptureState,
    FailCapture,
    NoteCapture,
    Checkpoint,
    Enqueue,
    Promote,
    Claim,
    Start,
    Commit,
    Finish,
    AdvanceHeads,
    Fail,
    Heartbeat,
    Rescue,
    Lead,
    Retire,
    SweepJobs,
    RetryJob,
    DiscardJob,
    CancelJob,
    Bulk,
    RefreshStats,
    /// Pauses and the size of pools.
    SetControl,
    RecordGap,
    Touch,
    /// Creation, names and states of branches.
    SetBranch,
    AttachCapture,
    /// Bases and their stretches.
    SetBase,
    AddChunk,
    Import,
    Read,
}

/// Wraps a ledger.
#[derive(Debug)]
pub struct FaultyLedger {
    inner: SharedLedger,
    state: Mutex<Plan>,
    /// Calls of these kinds wait.
    frozen: watch::Sender<HashSet<LedgerCall>>,
}

#[derive(Debug)]
struct Plan {
    faults: LedgerFaults,
    rng: SmallRng,
    script: VecDeque<(LedgerCall, Mishap)>,
    /// Every call fails while it lasts.
    outage: bool,
    injected: u64,
}

impl FaultyLedger {
    pub fn new(inner: SharedLedger, faults: LedgerFaults) -> Self {
        let rng = SmallRng::seed_from_u64(faults.seed);
        Self {
            inner,
            state: Mutex::new(Plan { faults, rng, script: VecDeque::new(), outage: false, injected: 0 }),
            frozen: watch::Sender::default(),
        }
    }

    /// The next call of this kind goes wrong in this way, once. Scripts of one kind happen in the order given.
    pub fn script(&self, call: LedgerCall, mishap: Mishap) {
        self.state.lock().script.push_back((call, mishap));
    }

    /// Changes the rates from now on (a run ends with the faults off); the sequence of draws goes on.
    pub fn set_faults(&self, faults: LedgerFaults) {
        self.state.lock().faults = faults;
    }

    /// While on, every call fails as if no server could be reached.
    pub fn set_outage(&self, on: bool) {
        self.state.lock().outage = on;
    }

    /// While on, calls of this kind are not answered; when it is turned off the waiting ones go on.
    pub fn freeze(&self, call: LedgerCall, on: bool) {
        self.frozen.send_modify(|frozen| {
            if on {
                frozen.insert(call)
            } else {
                frozen.remove(&call)
            };
        });
    }

    /// Mishaps so far, so that a test can tell that it tested something.
    pub fn injected(&self) -> u64 {
        self.state.lock().injected
    }

    fn draw(&self, call: LedgerCall) -> Option<Mishap> {
        let mut plan = self.state.lock();
        let scripted = plan.script.iter().position(|(c, _)| *c == call).and_then(|at| plan.script.remove(at)).map(|(_, m)| m);
        // Always one draw a call, so that a script or an outage does not shift the sequence of the seed.
        let dice: f64 = plan.rng.random_range(0.0..1.0);
        let f = plan.faults;
        let drawn = match call {
            LedgerCall::Read if dice < f.reads => Some(Mishap::Before),
            LedgerCall::Read => None,
            _ if dice < f.before => Some(Mishap::Before),
            _ if dice < f.before + f.lost => Some(Mishap::AnswerLost),
            _ => None,
        };
        let mishap = if plan.outage { Some(Mishap::Before) } else { scripted.or(drawn) };
        plan.injected += u64::from(mishap.is_some());
        mishap
    }

    async fn through<T>(&self, call: LedgerCall, work: impl Future<Output = Result<T>> + Send) -> Result<T> {
        let mishap = self.draw(call);
        // It fails only when the sender is gone, which `self` holds.
        let _ = self.frozen.subscribe().wait_for(|frozen| !frozen.contains(&call)).await;
        match mishap {
            None => work.await,
            #[expect(clippy::panic, reason = "a bug of the caller is what is asked for")]
            Some(Mishap::Panic) => panic!("injected: {call:?} panicked"),
            Some(Mishap::Before) => Err(Fault::transient(format!("injected: {call:?} did not happen"))),
            Some(Mishap::AnswerLost) => {
                // A real failure is told as it is: there is no answer to lose.
                work.await?;
                Err(Fault::unknown(format!("injected: the answer of {call:?} was lost")))
            }
        }
    }
}

use LedgerCall as C;

#[async_trait]
impl Ledger for FaultyLedger {
    async fn prepare(&self) -> Result<()> {
        self.through(C::Prepare, self.inner.prepare()).await
    }
    async fn now_ms(&self) -> Result<i64> {
        self.through(C::Read, self.inner.now_ms()).await
    }
    async fn create_capture(&self, new: &NewCapture) -> Result<()> {
        self.through(C::CreateCapture, self.inner.create_capture(new)).await
    }
    async fn captures(&self) -> Result<Vec<Capture>> {
        self.through(C::Read, self.inner.captures()).await
    }
    async fn capture(&self, id: &str) -> Result<Option<Capture>> {
        self.through(C::Read, self.inner.capture(id)).await
    }
    async fn capture_of(&self, branch: &str) -> Result<Option<Capture>> {
        self.through(C::Read, self.inner.capture_of(branch)).await
    }
    async fn own_capture(&self, id: &str, engine: &str) -> Result<Option<Capture>> {
        self.through(C::OwnCapture, self.inner.own_capture(id, engine)).await
    }
    async fn release_capture(&self, id: &str, fence: u64) -> Result<()> {
        self.through(C::ReleaseCapture, self.inner.release_capture(id, fence)).await
    }
    async fn set_capture_state(&self, id: &str, state: CaptureState, reason: Option<&str>) -> Result<()> {
        self.through(C::SetCaptureState, self.inner.set_capture_state(id, state, reason)).await
    }
    async fn set_capture_source(&self, id: &str, source: &Source) -> Result<()> {
        self.through(C::SetCaptureState, self.inner.set_capture_source(id, source)).await
    }
    async fn note_identity(&self, id: &str, fence: u64, known: &str, seen: &str) -> Result<()> {
        self.through(C::SetCaptureState, self.inner.note_identity(id, fence, known, seen)).await
    }
    async fn fail_capture(&self, id: &str, engine: &str, fence: u64, reason: &str) -> Result<bool> {
        self.through(C::FailCapture, self.inner.fail_capture(id, engine, fence, reason)).await
    }
    async fn note_capture(&self, id: &str, fence: u64, reason: Option<&str>) -> Result<()> {
        self.through(C::NoteCapture, self.inner.note_capture(id, fence, reason)).await
    }
    async fn note_coverage(&self, id: &str, fence: u64, coverage: &Coverage) -> Result<()> {
        self.through(C::NoteCapture, self.inner.note_coverage(id, fence, coverage)).await
    }
    async fn checkpoint(&self, write: &Checkpoint) -> Result<Checkpointed> {
        self.through(C::Checkpoint, self.inner.checkpoint(write)).await
    }
    async fn enqueue(&self, jobs: &[NewJob]) -> Result<Vec<Enqueued>> {
        self.through(C::Enqueue, self.inner.enqueue(jobs)).await
    }
    async fn promote(&self) -> Result<u64> {
        self.through(C::Promote, self.inner.promote()).await
    }
    async fn claim(&self, request: &ClaimRequest) -> Result<Vec<Job>> {
        self.through(C::Claim, self.inner.claim(request)).await
    }
    async fn suspect_waits(&self, kinds: &[JobKind], patience: Duration) -> Result<bool> {
        self.through(C::Read, self.inner.suspect_waits(kinds, patience)).await
    }
    async fn start_many(&self, leases: &[JobLease]) -> Result<Vec<bool>> {
        self.through(C::Start, self.inner.start_many(leases)).await
    }
    async fn cancel_requests(&self, engine: &str) -> Result<Vec<JobId>> {
        self.through(C::Read, self.inner.cancel_requests(engine)).await
    }
    async fn stuck(&self, older_than: Duration, max: usize) -> Result<Vec<Job>> {
        self.through(C::Read, self.inner.stuck(older_than, max)).await
    }
    async fn payload(&self, job: &str) -> Result<Vec<Bytes>> {
        self.through(C::Read, self.inner.payload(job)).await
    }
    async fn commit(&self, commits: &[SegmentCommit]) -> Result<Vec<Committed>> {
        self.through(C::Commit, self.inner.commit(commits)).await
    }
    async fn finish(&self, engine: &str, ends: &[Finish]) -> Result<Vec<Finished>> {
        self.through(C::Finish, self.inner.finish(engine, ends)).await
    }
    async fn advance_heads(&self) -> Result<u64> {
        self.through(C::AdvanceHeads, self.inner.advance_heads()).await
    }
    async fn fail(&self, lease: &JobLease, how: &Failed) -> Result<bool> {
        self.through(C::Fail, self.inner.fail(lease, how)).await
    }
    async fn heartbeat(&self, beat: &EngineBeat, first: bool) -> Result<bool> {
        self.through(C::Heartbeat, self.inner.heartbeat(beat, first)).await
    }
    async fn engines(&self) -> Result<Vec<EngineBeat>> {
        self.through(C::Read, self.inner.engines()).await
    }
    async fn rescue(&self, by: &str, silent_before_ms: Option<i64>, known_dead: &[EngineId]) -> Result<Rescued> {
        self.through(C::Rescue, self.inner.rescue(by, silent_before_ms, known_dead)).await
    }
    async fn lead(&self, engine: &str, lease: Duration) -> Result<bool> {
        self.through(C::Lead, self.inner.lead(engine, lease)).await
    }
    async fn step_down(&self, engine: &str) -> Result<()> {
        self.through(C::Lead, self.inner.step_down(engine)).await
    }
    async fn leader(&self) -> Result<Option<EngineId>> {
        self.through(C::Read, self.inner.leader()).await
    }
    async fn retire(&self, engine: &str) -> Result<()> {
        self.through(C::Retire, self.inner.retire(engine)).await
    }
    async fn sweep_jobs(&self, age: Duration, max: usize) -> Result<u64> {
        self.through(C::SweepJobs, self.inner.sweep_jobs(age, max)).await
    }
    async fn depth(&self) -> Result<QueueDepth> {
        self.through(C::Read, self.inner.depth()).await
    }
    async fn queue_stats(&self) -> Result<QueueStats> {
        self.through(C::Read, self.inner.queue_stats()).await
    }
    async fn refresh_queue_stats(&self) -> Result<()> {
        self.through(C::RefreshStats, self.inner.refresh_queue_stats()).await
    }
    async fn jobs(&self, filter: &JobFilter, max: usize) -> Result<Vec<Job>> {
        self.through(C::Read, self.inner.jobs(filter, max)).await
    }
    async fn job(&self, id: &str) -> Result<Option<Job>> {
        self.through(C::Read, self.inner.job(id)).await
    }
    async fn retry_job(&self, id: &str) -> Result<bool> {
        self.through(C::RetryJob, self.inner.retry_job(id)).await
    }
    async fn discard_job(&self, id: &str, gap: &SegmentRow) -> Result<bool> {
        self.through(C::DiscardJob, self.inner.discard_job(id, gap)).await
    }
    async fn cancel_job(&self, id: &str) -> Result<Cancelled> {
        self.through(C::CancelJob, self.inner.cancel_job(id)).await
    }
    async fn bulk(&self, action: Bulk, filter: &JobFilter, max: usize, dry_run: bool) -> Result<BulkOutcome> {
        let call = if dry_run { C::Read } else { C::Bulk };
        self.through(call, self.inner.bulk(action, filter, max, dry_run)).await
    }
    async fn controls(&self) -> Result<Controls> {
        self.through(C::Read, self.inner.controls()).await
    }
    async fn set_pause(&self, what: &PauseTarget, paused: bool, by: &str) -> Result<()> {
        self.through(C::SetControl, self.inner.set_pause(what, paused, by)).await
    }
    async fn set_scale(&self, target: Option<u16>, hold: Option<Duration>, by: &str) -> Result<()> {
        self.through(C::SetControl, self.inner.set_scale(target, hold, by)).await
    }
    async fn branches(&self) -> Result<Vec<Branch>> {
        self.through(C::Read, self.inner.branches()).await
    }
    async fn branches_after(&self, after: Option<&str>, max: usize) -> Result<Vec<Branch>> {
        self.through(C::Read, self.inner.branches_after(after, max)).await
    }
    async fn branches_of(&self, ids: &[BranchId]) -> Result<Vec<Branch>> {
        self.through(C::Read, self.inner.branches_of(ids)).await
    }
    async fn branch_counts(&self) -> Result<Vec<(BranchStatus, u64)>> {
        self.through(C::Read, self.inner.branch_counts()).await
    }
    async fn branch(&self, id: &str) -> Result<Option<Branch>> {
        self.through(C::Read, self.inner.branch(id)).await
    }
    async fn branch_named(&self, name: &str) -> Result<Option<Branch>> {
        self.through(C::Read, self.inner.branch_named(name)).await
    }
    async fn segments(&self, branch: &str, from_seq: u64, max: usize) -> Result<Vec<SegmentRow>> {
        self.through(C::Read, self.inner.segments(branch, from_seq, max)).await
    }
    async fn segments_before(&self, branch: &str, from_seq: u64, max: usize) -> Result<Vec<SegmentRow>> {
        self.through(C::Read, self.inner.segments_before(branch, from_seq, max)).await
    }
    async fn ddl_segments(&self, branch: &str, from_seq: u64, max: usize) -> Result<Vec<SegmentRow>> {
        self.through(C::Read, self.inner.ddl_segments(branch, from_seq, max)).await
    }
    async fn losses(&self, branch: &str, from_seq: u64, max: usize) -> Result<Vec<SegmentRow>> {
        self.through(C::Read, self.inner.losses(branch, from_seq, max)).await
    }
    async fn record_gap(&self, gap: &CaptureGap) -> Result<Checkpointed> {
        self.through(C::RecordGap, self.inner.record_gap(gap)).await
    }
    async fn touch(&self, lease: &JobLease, progressed: bool) -> Result<bool> {
        self.through(C::Touch, self.inner.touch(lease, progressed)).await
    }
    async fn create_branch(&self, branch: &Branch, ttl: Option<Duration>) -> Result<()> {
        self.through(C::SetBranch, self.inner.create_branch(branch, ttl)).await
    }
    async fn children(&self, branch: &str, max: usize) -> Result<Vec<Branch>> {
        self.through(C::Read, self.inner.children(branch, max)).await
    }
    async fn branches_due(&self, now_ms: i64, deleted_before_ms: i64) -> Result<Vec<Branch>> {
        self.through(C::Read, self.inner.branches_due(now_ms, deleted_before_ms)).await
    }
    async fn rename_branch(&self, id: &str, name: &str) -> Result<()> {
        self.through(C::SetBranch, self.inner.rename_branch(id, name)).await
    }
    async fn archive_branch(&self, id: &str, archived: bool) -> Result<()> {
        self.through(C::SetBranch, self.inner.archive_branch(id, archived)).await
    }
    async fn delete_branch(&self, id: &str) -> Result<bool> {
        self.through(C::SetBranch, self.inner.delete_branch(id)).await
    }
    async fn purge_branch(&self, id: &str) -> Result<bool> {
        self.through(C::SetBranch, self.inner.purge_branch(id)).await
    }
    async fn attach_capture(&self, new: &Attach) -> Result<()> {
        self.through(C::AttachCapture, self.inner.attach_capture(new)).await
    }
    async fn note_proven(&self, branch: &str, proven: &Proven) -> Result<()> {
        self.through(C::SetBranch, self.inner.note_proven(branch, proven)).await
    }
    async fn bases(&self, branch: &str) -> Result<Vec<Base>> {
        self.through(C::Read, self.inner.bases(branch)).await
    }
    async fn base(&self, id: &str) -> Result<Option<Base>> {
        self.through(C::Read, self.inner.base(id)).await
    }
    async fn bases_in(&self, state: BaseState) -> Result<Vec<Base>> {
        self.through(C::Read, self.inner.bases_in(state)).await
    }
    async fn create_base(&self, base: &Base) -> Result<()> {
        self.through(C::SetBase, self.inner.create_base(base)).await
    }
    async fn finish_base(&self, base: &Base) -> Result<bool> {
        self.through(C::SetBase, self.inner.finish_base(base)).await
    }
    async fn abandon_base(&self, id: &str, reason: &str) -> Result<bool> {
        self.through(C::SetBase, self.inner.abandon_base(id, reason)).await
    }
    async fn note_base(&self, id: &str, expected: Option<(u64, u64)>, reason: Option<&str>) -> Result<()> {
        self.through(C::SetBase, self.inner.note_base(id, expected, reason)).await
    }
    async fn add_chunks(&self, chunks: &[BaseChunk]) -> Result<bool> {
        self.through(C::AddChunk, self.inner.add_chunks(chunks)).await
    }
    async fn chunks(&self, base: &str, after: Option<&str>, max: usize) -> Result<Vec<BaseChunk>> {
        self.through(C::Read, self.inner.chunks(base, after, max)).await
    }
    async fn last_chunk(&self, base: &str, uuid: &str) -> Result<Option<BaseChunk>> {
        self.through(C::Read, self.inner.last_chunk(base, uuid)).await
    }
    async fn remove_base(&self, id: &str) -> Result<bool> {
        self.through(C::SetBase, self.inner.remove_base(id)).await
    }
    async fn remove_chunks(&self, base: &str) -> Result<()> {
        self.through(C::SetBase, self.inner.remove_chunks(base)).await
    }
    async fn import_segments(&self, rows: &[SegmentRow]) -> Result<()> {
        self.through(C::Import, self.inner.import_segments(rows)).await
    }
    async fn import_branch(&self, import: &Import) -> Result<bool> {
        self.through(C::Import, self.inner.import_branch(import)).await
    }
    async fn position(&self, capture: &str) -> Result<Option<(RawDocumentBuf, u64)>> {
        self.through(C::Read, self.inner.position(capture)).await
    }
}
