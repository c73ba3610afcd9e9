//! Owns: the ledger in MongoDB: every write is one atomic statement or one majority transaction, every time in it is the server's.
//! Does not own: decisions (`super::rules`, `queue`), or when to repeat (callers; only conflicts within a transaction are repeated here).
//!
//! Reading order: `connect`, `indexes`, `txn`, `batch`, `checkpoint`, `enqueue`, `claim`, `commit`, `finish`, `jobs`, `operate`, `counters`, `stats`, `controls`, `engines`, `sessions`,
//! `captures`, `classify`, `facts`.

mod bases;
mod batch;
mod branches;
mod captures;
mod checkpoint;
mod claim;
mod classify;
mod commit;
mod connect;
mod controls;
mod counters;
mod engines;
mod enqueue;
mod facts;
mod finish;
mod head;
mod indexes;
mod jobs;
mod operate;
mod oplog_share;
mod rights;
mod rows;
mod secrets;
mod sessions;
mod stats;
mod txn;

use std::future::Future;
use std::sync::Arc;
use std::time::{Duration, Instant};

use async_trait::async_trait;
use bson::{RawDocumentBuf, doc};
use bytes::Bytes;
use mongodb::{Client, Collection, Database};
use parking_lot::Mutex;

pub use self::classify::{Phase, classify};
pub(crate) use self::classify::{START_ANEW, code, scrub};
pub use self::connect::{ConnectOptions, Topology, connect_client};
pub use self::facts::{ServerFacts, has_id, is_experimental, oldest_in_oplog, same_source, server_facts};
pub use self::oplog_share::{OplogShare, oplog_share};
pub use self::rights::{MissingRights, grant_command, missing_rights};
pub use self::secrets::secret_option;
use super::*;
use crate::fault::Fault;

/// The ledger in a database of a replica set.
#[derive(Debug, Clone)]
pub struct MongoLedger {
    inner: Arc<Inner>,
    /// Overall limit of one call; after it the outcome is unknown.
    deadline: Duration,
}

/// What the parts of this module work on.
#[derive(Debug)]
struct Inner {
    client: Client,
    /// Majority concerns, primary only.
    db: Database,
    /// Processes whose work was taken over a short while ago (`sessions`).
    rescued: Mutex<Vec<(EngineId, Instant)>>,
    heads: head::Heads,
}

impl Inner {
    fn captures_coll(&self) -> Collection<Capture> {
        self.db.collection("captures")
    }
    fn branches_coll(&self) -> Collection<Branch> {
        self.db.collection("branches")
    }
    fn segments_coll(&self) -> Collection<SegmentRow> {
        self.db.collection("segments")
    }
    fn jobs_coll(&self) -> Collection<Job> {
        self.db.collection("jobs")
    }
    fn payloads_coll(&self) -> Collection<RawDocumentBuf> {
        self.db.collection("job_payloads")
    }
    fn bases_coll(&self) -> Collection<Base> {
        self.db.collection("bases")
    }
    fn chunks_coll(&self) -> Collection<BaseChunk> {
        self.db.collection("base_chunks")
    }
    fn engines_coll(&self) -> Collection<EngineBeat> {
        self.db.collection("engines")
    }

    async fn now_ms(&self) -> Result<i64> {
        let hello = self.db.run_command(doc! { "hello": 1 }).await.map_err(classify::fault_of)?;
        let now = hello.get_datetime("localTime").map_err(|_| Fault::unknown("MongoDB: hello came without localTime"))?;
        Ok(now.timestamp_millis())
    }
}

/// Bounded, so that arithmetic on the server stays in range.
fn millis(d: Duration) -> i64 {
    const TEN_YEARS: i64 = 10 * 366 * 24 * 3_600_000;
    i64::try_from(d.as_millis()).unwrap_or(TEN_YEARS).min(TEN_YEARS)
}

/// One call of [`Inner`] through [`MongoLedger::within`], with owned arguments.
macro_rules! call {
    ($self:ident, $what:literal, |$inner:ident| $work:expr $(; $arg:ident = $owned:expr)*) => {{
        let $inner = Arc::clone(&$self.inner);
        $(let $arg = $owned;)*
        $self.within($what, async move { $work.await }).await
    }};
}

impl MongoLedger {
    /// The client, for those who read the same cluster.
    pub fn client(&self) -> &Client {
        &self.inner.client
    }

    /// Whether [`Ledger::prepare`] has ever been here; asks without writing.
    pub async fn is_prepared(&self) -> Result<bool> {
        call!(self, "look for the metadata database", |i| i.is_prepared())
    }

    /// Runs a call in a task of its own, with a limit.
    ///
    /// SUBTLE: the caller may drop its future at any time (timeout, select, abort), and dropping a driver future in the middle of a call can leave
    /// the driver inconsistent. So the task is never cancelled: it runs on to its own end, and whoever asked hears `Unknown`.
    async fn within<T, F>(&self, what: &'static str, work: F) -> Result<T>
    where
        T: Send + 'static,
        F: Future<Output = Result<T>> + Send + 'static,
    {
        match tokio::time::timeout(self.deadline, tokio::spawn(Box::pin(work))).await {
            Ok(Ok(outcome)) => outcome.map_err(|f| f.at(what)),
            Ok(Err(join)) => Err(Fault::unknown(format!("{what}: the call ended without an answer: {join}"))),
            Err(_) => Err(Fault::unknown(format!("{what}: MongoDB has not answered within {:?}", self.deadline))),
        }
    }
}

#[async_trait]
impl Ledger for MongoLedger {
    async fn prepare(&self) -> Result<()> {
        call!(self, "prepare the metadata database", |i| i.prepare())
    }
    async fn now_ms(&self) -> Result<i64> {
        call!(self, "read the server's clock", |i| i.now_ms())
    }
    async fn create_capture(&self, new: &NewCapture) -> Result<()> {
        call!(self, "create the capture", |i| i.create_capture(&new); new = new.clone())
    }
    async fn captures(&self) -> Result<Vec<Capture>> {
        call!(self, "list captures", |i| i.captures())
    }
    async fn capture(&self, id: &str) -> Result<Option<Capture>> {
        call!(self, "read the capture", |i| i.capture(&id); id = id.to_owned())
    }
    async fn capture_of(&self, branch: &str) -> Result<Option<Capture>> {
        call!(self, "read the capture", |i| i.capture_of(&branch); branch = branch.to_owned())
    }
    async fn own_capture(&self, id: &str, engine: &str) -> Result<Option<Capture>> {
        call!(self, "own the capture", |i| i.own_capture(&id, &engine); id = id.to_owned(); engine = engine.to_owned())
    }
    async fn release_capture(&self, id: &str, fence: u64) -> Result<()> {
        call!(self, "release the capture", |i| i.release_capture(&id, fence); id = id.to_owned())
    }
    async fn set_capture_state(&self, id: &str, state: CaptureState, reason: Option<&str>) -> Result<()> {
        call!(self, "set the capture's state", |i| i.set_capture_state(&id, state, reason.as_deref());
            id = id.to_owned(); reason = reason.map(str::to_owned))
    }
    async fn set_capture_source(&self, id: &str, source: &Source) -> Result<()> {
        call!(self, "set the capture's source", |i| i.set_capture_source(&id, &source); id = id.to_owned(); source = source.clone())
    }
    async fn note_identity(&self, id: &str, fence: u64, known: &str, seen: &str) -> Result<()> {
        call!(self, "note the source's id", |i| i.note_identity(&id, fence, &known, &seen); id = id.to_owned(); known = known.to_owned(); seen = seen.to_owned())
    }
    async fn fail_capture(&self, id: &str, engine: &str, fence: u64, reason: &str) -> Result<bool> {
        call!(self, "set the capture's state", |i| i.fail_capture(&id, &engine, fence, &reason);
            id = id.to_owned(); engine = engine.to_owned(); reason = reason.to_owned())
    }
    async fn note_capture(&self, id: &str, fence: u64, reason: Option<&str>) -> Result<()> {
        call!(self, "note on the capture", |i| i.note_capture(&id, fence, reason.as_deref());
            id = id.to_owned(); reason = reason.map(str::to_owned))
    }
    async fn note_coverage(&self, id: &str, fence: u64, coverage: &Coverage) -> Result<()> {
        call!(self, "note on the branch", |i| i.note_coverage(&id, fence, &coverage); id = id.to_owned(); coverage = coverage.clone())
    }
    async fn checkpoint(&self, write: &Checkpoint) -> Result<Checkpointed> {
        call!(self, "checkpoint", |i| i.checkpoint(&write); write = write.clone())
    }
    async fn enqueue(&self, jobs: &[NewJob]) -> Result<Vec<Enqueued>> {
        call!(self, "enqueue jobs", |i| i.enqueue(&jobs); jobs = jobs.to_vec())
    }
    async fn promote(&self) -> Result<u64> {
        call!(self, "promote jobs", |i| i.promote())
    }
    async fn claim(&self, request: &ClaimRequest) -> Result<Vec<Job>> {
        call!(self, "claim jobs", |i| i.claim(&request); request = request.clone())
    }
    async fn suspect_waits(&self, kinds: &[JobKind], patience: Duration) -> Result<bool> {
        call!(self, "look for suspects", |i| i.suspect_waits(&kinds, patience); kinds = kinds.to_vec())
    }
    async fn start_many(&self, leases: &[JobLease]) -> Result<Vec<bool>> {
        call!(self, "start jobs", |i| i.start_many(&leases); leases = leases.to_vec())
    }
    async fn cancel_requests(&self, engine: &str) -> Result<Vec<JobId>> {
        call!(self, "look for jobs to stop", |i| i.cancel_requests(&engine); engine = engine.to_owned())
    }
    async fn stuck(&self, older_than: Duration, max: usize) -> Result<Vec<Job>> {
        call!(self, "look for stuck jobs", |i| i.stuck(older_than, max))
    }
    async fn payload(&self, job: &str) -> Result<Vec<Bytes>> {
        call!(self, "read the payload", |i| i.payload(&job); job = job.to_owned())
    }
    async fn commit(&self, commits: &[SegmentCommit]) -> Result<Vec<Committed>> {
        call!(self, "commit segments", |i| i.commit(&commits); commits = commits.to_vec())
    }
    async fn finish(&self, engine: &str, ends: &[Finish]) -> Result<Vec<Finished>> {
        call!(self, "finish jobs", |i| i.finish(&engine, &ends); engine = engine.to_owned(); ends = ends.to_vec())
    }
    async fn advance_heads(&self) -> Result<u64> {
        call!(self, "advance heads", |i| i.advance_heads())
    }
    async fn fail(&self, lease: &JobLease, how: &Failed) -> Result<bool> {
        call!(self, "end an attempt", |i| i.fail(&lease, &how); lease = lease.clone(); how = how.clone())
    }
    async fn heartbeat(&self, beat: &EngineBeat, first: bool) -> Result<bool> {
        call!(self, "heartbeat", |i| i.heartbeat(&beat, first); beat = beat.clone())
    }
    async fn engines(&self) -> Result<Vec<EngineBeat>> {
        call!(self, "list engines", |i| i.engines())
    }
    async fn rescue(&self, by: &str, silent_before_ms: Option<i64>, known_dead: &[EngineId]) -> Result<Rescued> {
        call!(self, "rescue", |i| i.rescue(&by, silent_before_ms, &known_dead); by = by.to_owned(); known_dead = known_dead.to_vec())
    }
    async fn lead(&self, engine: &str, lease: Duration) -> Result<bool> {
        call!(self, "take the lead", |i| i.lead(&engine, lease); engine = engine.to_owned())
    }
    async fn step_down(&self, engine: &str) -> Result<()> {
        call!(self, "give up the lead", |i| i.step_down(&engine); engine = engine.to_owned())
    }
    async fn leader(&self) -> Result<Option<EngineId>> {
        call!(self, "read who leads", |i| i.leader())
    }
    async fn retire(&self, engine: &str) -> Result<()> {
        call!(self, "retire the engine", |i| i.retire(&engine); engine = engine.to_owned())
    }
    async fn sweep_jobs(&self, age: Duration, max: usize) -> Result<u64> {
        call!(self, "sweep finished jobs", |i| i.sweep_jobs(age, max))
    }
    async fn depth(&self) -> Result<QueueDepth> {
        call!(self, "count jobs", |i| i.depth())
    }
    async fn queue_stats(&self) -> Result<QueueStats> {
        call!(self, "read the queue's figures", |i| i.queue_stats())
    }
    async fn refresh_queue_stats(&self) -> Result<()> {
        call!(self, "count the queue", |i| i.refresh_queue_stats())
    }
    async fn jobs(&self, filter: &JobFilter, max: usize) -> Result<Vec<Job>> {
        call!(self, "list jobs", |i| i.jobs(&filter, max); filter = filter.clone())
    }
    async fn job(&self, id: &str) -> Result<Option<Job>> {
        call!(self, "read the job", |i| i.job(&id); id = id.to_owned())
    }
    async fn retry_job(&self, id: &str) -> Result<bool> {
        call!(self, "retry the job", |i| i.retry_job(&id); id = id.to_owned())
    }
    async fn discard_job(&self, id: &str, gap: &SegmentRow) -> Result<bool> {
        call!(self, "discard the job", |i| i.discard_job(&id, &gap); id = id.to_owned(); gap = gap.clone())
    }
    async fn cancel_job(&self, id: &str) -> Result<Cancelled> {
        call!(self, "cancel the job", |i| i.cancel_job(&id); id = id.to_owned())
    }
    async fn bulk(&self, action: Bulk, filter: &JobFilter, max: usize, dry_run: bool) -> Result<BulkOutcome> {
        call!(self, "change jobs", |i| i.bulk(action, &filter, max, dry_run); filter = filter.clone())
    }
    async fn controls(&self) -> Result<Controls> {
        call!(self, "read the operators' wishes", |i| i.controls())
    }
    async fn set_pause(&self, what: &PauseTarget, paused: bool, by: &str) -> Result<()> {
        call!(self, "set the pause", |i| i.set_pause(&what, paused, &by); what = what.clone(); by = by.to_owned())
    }
    async fn set_scale(&self, target: Option<u16>, hold: Option<Duration>, by: &str) -> Result<()> {
        call!(self, "set the size of pools", |i| i.set_scale(target, hold, &by); by = by.to_owned())
    }
    async fn branches(&self) -> Result<Vec<Branch>> {
        call!(self, "list branches", |i| i.branches())
    }
    async fn branches_after(&self, after: Option<&str>, max: usize) -> Result<Vec<Branch>> {
        call!(self, "list branches", |i| i.branches_after(after.as_deref(), max); after = after.map(str::to_owned))
    }
    async fn branches_of(&self, ids: &[BranchId]) -> Result<Vec<Branch>> {
        call!(self, "read branches", |i| i.branches_of(&ids); ids = ids.to_vec())
    }
    async fn branch_counts(&self) -> Result<Vec<(BranchStatus, u64)>> {
        call!(self, "count branches", |i| i.branch_counts())
    }
    async fn branch(&self, id: &str) -> Result<Option<Branch>> {
        call!(self, "read the branch", |i| i.branch(&id); id = id.to_owned())
    }
    async fn branch_named(&self, name: &str) -> Result<Option<Branch>> {
        call!(self, "read the branch", |i| i.branch_named(&name); name = name.to_owned())
    }
    async fn segments(&self, branch: &str, from_seq: u64, max: usize) -> Result<Vec<SegmentRow>> {
        call!(self, "list segments", |i| i.segments(&branch, from_seq, max); branch = branch.to_owned())
    }
    async fn segments_before(&self, branch: &str, from_seq: u64, max: usize) -> Result<Vec<SegmentRow>> {
        call!(self, "list segments", |i| i.segments_before(&branch, from_seq, max); branch = branch.to_owned())
    }
    async fn ddl_segments(&self, branch: &str, from_seq: u64, max: usize) -> Result<Vec<SegmentRow>> {
        call!(self, "list segments", |i| i.ddl_segments(&branch, from_seq, max); branch = branch.to_owned())
    }
    async fn losses(&self, branch: &str, from_seq: u64, max: usize) -> Result<Vec<SegmentRow>> {
        call!(self, "read the gaps", |i| i.losses(&branch, from_seq, max); branch = branch.to_owned())
    }
    async fn record_gap(&self, gap: &CaptureGap) -> Result<Checkpointed> {
        call!(self, "record a gap", |i| i.record_gap(&gap); gap = gap.clone())
    }
    async fn touch(&self, lease: &JobLease, progressed: bool) -> Result<bool> {
        call!(self, "touch the job", |i| i.touch(&lease, progressed); lease = lease.clone())
    }
    async fn create_branch(&self, branch: &Branch, ttl: Option<Duration>) -> Result<()> {
        call!(self, "create the branch", |i| i.create_branch(&branch, ttl.map(millis)); branch = branch.clone())
    }
    async fn children(&self, branch: &str, max: usize) -> Result<Vec<Branch>> {
        call!(self, "list children of the branch", |i| i.children(&branch, max); branch = branch.to_owned())
    }
    async fn branches_due(&self, now_ms: i64, deleted_before_ms: i64) -> Result<Vec<Branch>> {
        call!(self, "look for branches whose time is over", |i| i.branches_due(now_ms, deleted_before_ms))
    }
    async fn rename_branch(&self, id: &str, name: &str) -> Result<()> {
        call!(self, "rename the branch", |i| i.rename_branch(&id, &name); id = id.to_owned(); name = name.to_owned())
    }
    async fn archive_branch(&self, id: &str, archived: bool) -> Result<()> {
        call!(self, "archive the branch", |i| i.archive_branch(&id, archived); id = id.to_owned())
    }
    async fn delete_branch(&self, id: &str) -> Result<bool> {
        call!(self, "delete the branch", |i| i.delete_branch(&id); id = id.to_owned())
    }
    async fn purge_branch(&self, id: &str) -> Result<bool> {
        call!(self, "remove the branch", |i| i.purge_branch(&id); id = id.to_owned())
    }
    async fn attach_capture(&self, new: &Attach) -> Result<()> {
        call!(self, "attach the capture", |i| i.attach_capture(&new); new = new.clone())
    }
    async fn note_proven(&self, branch: &str, proven: &Proven) -> Result<()> {
        call!(self, "note what is proven", |i| i.note_proven(&branch, &proven); branch = branch.to_owned(); proven = proven.clone())
    }
    async fn bases(&self, branch: &str) -> Result<Vec<Base>> {
        call!(self, "list bases", |i| i.bases_of(doc! { "branch": branch }); branch = branch.to_owned())
    }
    async fn base(&self, id: &str) -> Result<Option<Base>> {
        call!(self, "read the base", |i| i.base(&id); id = id.to_owned())
    }
    async fn bases_in(&self, state: BaseState) -> Result<Vec<Base>> {
        call!(self, "list bases", |i| i.bases_of(doc! { "state": rows::word(state) }))
    }
    async fn create_base(&self, base: &Base) -> Result<()> {
        call!(self, "create the base", |i| i.create_base(&base); base = base.clone())
    }
    async fn finish_base(&self, base: &Base) -> Result<bool> {
        call!(self, "finish the base", |i| i.finish_base(&base); base = base.clone())
    }
    async fn abandon_base(&self, id: &str, reason: &str) -> Result<bool> {
        call!(self, "give up the base", |i| i.abandon_base(&id, &reason); id = id.to_owned(); reason = reason.to_owned())
    }
    async fn note_base(&self, id: &str, expected: Option<(u64, u64)>, reason: Option<&str>) -> Result<()> {
        call!(self, "note on the base", |i| i.note_base(&id, expected, reason.as_deref()); id = id.to_owned(); reason = reason.map(str::to_owned))
    }
    async fn add_chunks(&self, chunks: &[BaseChunk]) -> Result<bool> {
        call!(self, "add to the base", |i| i.add_chunks(&chunks); chunks = chunks.to_vec())
    }
    async fn chunks(&self, base: &str, after: Option<&str>, max: usize) -> Result<Vec<BaseChunk>> {
        call!(self, "list the base's parts", |i| i.chunks(&base, after.as_deref(), max); base = base.to_owned(); after = after.map(str::to_owned))
    }
    async fn last_chunk(&self, base: &str, uuid: &str) -> Result<Option<BaseChunk>> {
        call!(self, "read the base's last part", |i| i.last_chunk(&base, &uuid); base = base.to_owned(); uuid = uuid.to_owned())
    }
    async fn remove_base(&self, id: &str) -> Result<bool> {
        call!(self, "remove the base", |i| i.remove_base(&id); id = id.to_owned())
    }
    async fn remove_chunks(&self, base: &str) -> Result<()> {
        call!(self, "forget the base's parts", |i| i.remove_chunks(&base); base = base.to_owned())
    }
    async fn import_segments(&self, rows: &[SegmentRow]) -> Result<()> {
        call!(self, "import segments", |i| i.import_segments(&rows); rows = rows.to_vec())
    }
    async fn import_branch(&self, import: &Import) -> Result<bool> {
        call!(self, "import the branch", |i| i.import_branch(&import); import = import.clone())
    }
    async fn position(&self, capture: &str) -> Result<Option<(RawDocumentBuf, u64)>> {
        let found = call!(self, "read the position", |i| i.capture(&id); id = capture.to_owned())?;
        Ok(found.map(|c| (c.position.token, c.position.next_seq)))
    }
}
