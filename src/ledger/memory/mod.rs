//! Owns: the memory twin of the ledger: one lock is one transaction, and the server's clock can be moved by a test.
//! Does not own: what a write does to the rows (`state`, `queue`), faults (`faulty`).

mod branches;
mod queue;
mod state;

use std::time::Duration;

use async_trait::async_trait;
use bson::RawDocumentBuf;
use bytes::Bytes;
use parking_lot::Mutex;

use self::state::State;
use super::*;
use crate::runtime::{clock, random};

/// Where a virtual server clock starts: some time in 2023.
const START_MS: i64 = 1_700_000_000_000;

/// A ledger in memory that answers as the real one does.
#[derive(Debug)]
pub struct MemoryLedger {
    state: Mutex<State>,
    clock: Mutex<ServerClock>,
}

#[derive(Debug, Clone, Copy)]
struct ServerClock {
    /// Time passes by itself too.
    live: bool,
    /// Virtual time, or what tests have added to the live one.
    ms: i64,
}

impl Default for MemoryLedger {
    fn default() -> Self {
        Self::new()
    }
}

impl MemoryLedger {
    /// Its server clock stands still until [`Self::advance`].
    pub fn new() -> Self {
        Self { state: Mutex::default(), clock: Mutex::new(ServerClock { live: false, ms: START_MS }) }
    }

    /// Its server clock runs like this machine's.
    pub fn live() -> Self {
        Self { state: Mutex::default(), clock: Mutex::new(ServerClock { live: true, ms: 0 }) }
    }

    /// Moves the server's clock forward.
    pub fn advance(&self, by: Duration) {
        let mut clock = self.clock.lock();
        clock.ms = clock.ms.saturating_add(millis(by));
    }

    fn now(&self) -> i64 {
        let clock = *self.clock.lock();
        if clock.live { clock::wall_ms().saturating_add(clock.ms) } else { clock.ms }
    }

    /// One transaction.
    fn run<T>(&self, body: impl FnOnce(&mut State, i64) -> T) -> T {
        let now = self.now();
        body(&mut self.state.lock(), now)
    }

    /// Payload documents that are stored, for tests of what is left behind.
    pub fn payload_count(&self) -> usize {
        self.state.lock().payloads.len()
    }
}

fn millis(d: Duration) -> i64 {
    i64::try_from(d.as_millis()).unwrap_or(i64::MAX)
}

#[async_trait]
impl Ledger for MemoryLedger {
    async fn prepare(&self) -> Result<()> {
        Ok(())
    }
    async fn now_ms(&self) -> Result<i64> {
        Ok(self.now())
    }
    async fn create_capture(&self, new: &NewCapture) -> Result<()> {
        self.run(|s, now| s.create_capture(new, now))
    }
    async fn captures(&self) -> Result<Vec<Capture>> {
        Ok(self.run(|s, _| s.captures_by_name()))
    }
    async fn capture(&self, id: &str) -> Result<Option<Capture>> {
        Ok(self.run(|s, _| s.captures.get(id).cloned()))
    }
    async fn capture_of(&self, branch: &str) -> Result<Option<Capture>> {
        Ok(self.run(|s, _| s.captures.values().find(|c| c.branch == branch).cloned()))
    }
    async fn own_capture(&self, id: &str, engine: &str) -> Result<Option<Capture>> {
        Ok(self.run(|s, _| s.own_capture(id, engine)))
    }
    async fn release_capture(&self, id: &str, fence: u64) -> Result<()> {
        self.run(|s, _| s.release_capture(id, fence));
        Ok(())
    }
    async fn set_capture_state(&self, id: &str, state: CaptureState, reason: Option<&str>) -> Result<()> {
        self.run(|s, _| s.set_capture_state(id, state, reason))
    }
    async fn set_capture_source(&self, id: &str, source: &Source) -> Result<()> {
        self.run(|s, _| s.set_capture_source(id, source))
    }
    async fn note_identity(&self, id: &str, fence: u64, known: &str, seen: &str) -> Result<()> {
        self.run(|s, _| s.note_identity(id, fence, known, seen));
        Ok(())
    }
    async fn fail_capture(&self, id: &str, engine: &str, fence: u64, reason: &str) -> Result<bool> {
        Ok(self.run(|s, _| s.fail_capture(id, engine, fence, reason)))
    }
    async fn note_capture(&self, id: &str, fence: u64, reason: Option<&str>) -> Result<()> {
        self.run(|s, _| s.note_capture(id, fence, reason));
        Ok(())
    }
    async fn note_coverage(&self, id: &str, fence: u64, coverage: &Coverage) -> Result<()> {
        self.run(|s, _| s.note_coverage(id, fence, coverage));
        Ok(())
    }
    async fn checkpoint(&self, write: &Checkpoint) -> Result<Checkpointed> {
        self.run(|s, now| s.checkpoint(write, now))
    }
    async fn enqueue(&self, jobs: &[NewJob]) -> Result<Vec<Enqueued>> {
        self.run(|s, now| s.enqueue(jobs, now))
    }
    async fn promote(&self) -> Result<u64> {
        Ok(self.run(State::promote))
    }
    async fn claim(&self, request: &ClaimRequest) -> Result<Vec<Job>> {
        let token = random::id();
        Ok(self.run(|s, now| s.claim(request, &token, now)))
    }
    async fn suspect_waits(&self, kinds: &[JobKind], patience: Duration) -> Result<bool> {
        Ok(self.run(|s, now| s.suspect_waits(kinds, patience, now)))
    }
    async fn start_many(&self, leases: &[JobLease]) -> Result<Vec<bool>> {
        Ok(self.run(|s, now| leases.iter().map(|lease| s.start(lease, now)).collect()))
    }
    async fn cancel_requests(&self, engine: &str) -> Result<Vec<JobId>> {
        Ok(self.run(|s, _| s.cancel_requests(engine)))
    }
    async fn stuck(&self, older_than: Duration, max: usize) -> Result<Vec<Job>> {
        Ok(self.run(|s, now| s.stuck(now.saturating_sub(millis(older_than)), max)))
    }
    async fn payload(&self, job: &str) -> Result<Vec<Bytes>> {
        self.run(|s, _| s.payload(job))
    }
    async fn commit(&self, commits: &[SegmentCommit]) -> Result<Vec<Committed>> {
        self.run(|s, now| s.commit(commits, now))
    }
    async fn finish(&self, engine: &str, ends: &[Finish]) -> Result<Vec<Finished>> {
        self.run(|s, now| s.finish(engine, ends, now))
    }
    async fn advance_heads(&self) -> Result<u64> {
        Ok(self.run(|s, _| s.advance_heads()))
    }
    async fn fail(&self, lease: &JobLease, how: &Failed) -> Result<bool> {
        self.run(|s, now| s.fail(lease, how, now))
    }
    async fn heartbeat(&self, beat: &EngineBeat, first: bool) -> Result<bool> {
        Ok(self.run(|s, now| s.heartbeat(beat, first, now)))
    }
    async fn engines(&self) -> Result<Vec<EngineBeat>> {
        Ok(self.run(|s, _| s.engines.values().cloned().collect()))
    }
    async fn rescue(&self, by: &str, silent_before_ms: Option<i64>, known_dead: &[EngineId]) -> Result<Rescued> {
        self.run(|s, now| s.rescue(by, silent_before_ms, known_dead, now))
    }
    async fn lead(&self, engine: &str, lease: Duration) -> Result<bool> {
        Ok(self.run(|s, now| s.lead(engine, millis(lease), now)))
    }
    async fn step_down(&self, engine: &str) -> Result<()> {
        self.run(|s, _| s.step_down(engine));
        Ok(())
    }
    async fn leader(&self) -> Result<Option<EngineId>> {
        Ok(self.run(|s, now| s.leader.as_ref().filter(|(_, until)| *until > now).map(|(holder, _)| holder.clone())))
    }
    async fn retire(&self, engine: &str) -> Result<()> {
        self.run(|s, _| s.remove_engine(engine));
        Ok(())
    }
    async fn sweep_jobs(&self, age: Duration, max: usize) -> Result<u64> {
        Ok(self.run(|s, now| s.sweep(now.saturating_sub(millis(age)), max)))
    }
    async fn depth(&self) -> Result<QueueDepth> {
        Ok(self.run(|s, _| s.depth()))
    }
    async fn queue_stats(&self) -> Result<QueueStats> {
        Ok(self.run(|s, now| s.queue_stats(now)))
    }
    async fn refresh_queue_stats(&self) -> Result<()> {
        self.run(State::refresh_queue_stats);
        Ok(())
    }
    async fn jobs(&self, filter: &JobFilter, max: usize) -> Result<Vec<Job>> {
        let newest = |job: &Job| Job { errors: job.errors.last().cloned().into_iter().collect(), ..job.clone() };
        Ok(self.run(|s, _| s.jobs.values().filter(|j| rules::listed(j, filter)).take(max).map(newest).collect()))
    }
    async fn job(&self, id: &str) -> Result<Option<Job>> {
        Ok(self.run(|s, _| s.jobs.get(id).cloned()))
    }
    async fn retry_job(&self, id: &str) -> Result<bool> {
        self.run(|s, now| s.retry_job(id, now))
    }
    async fn discard_job(&self, id: &str, gap: &SegmentRow) -> Result<bool> {
        self.run(|s, now| s.discard_job(id, gap, now))
    }
    async fn cancel_job(&self, id: &str) -> Result<Cancelled> {
        self.run(|s, now| s.cancel_job(id, now))
    }
    async fn bulk(&self, action: Bulk, filter: &JobFilter, max: usize, dry_run: bool) -> Result<BulkOutcome> {
        self.run(|s, now| s.bulk(action, filter, max, dry_run, now))
    }
    async fn controls(&self) -> Result<Controls> {
        Ok(self.run(|s, now| s.controls(now)))
    }
    async fn set_pause(&self, what: &PauseTarget, paused: bool, by: &str) -> Result<()> {
        self.run(|s, now| s.set_pause(what, paused, by, now));
        Ok(())
    }
    async fn set_scale(&self, target: Option<u16>, hold: Option<Duration>, by: &str) -> Result<()> {
        self.run(|s, now| s.set_scale(target, hold, by, now));
        Ok(())
    }
    async fn branches(&self) -> Result<Vec<Branch>> {
        Ok(self.run(|s, _| s.branches_by_name()))
    }
    async fn branches_after(&self, after: Option<&str>, max: usize) -> Result<Vec<Branch>> {
        let all = self.run(|s, _| s.branches_by_name());
        Ok(all.into_iter().filter(|b| after.is_none_or(|after| b.name.as_str() > after)).take(max).collect())
    }
    async fn branches_of(&self, ids: &[BranchId]) -> Result<Vec<Branch>> {
        Ok(self.run(|s, _| ids.iter().filter_map(|id| s.branches.get(id).cloned()).collect()))
    }
    async fn branch_counts(&self) -> Result<Vec<(BranchStatus, u64)>> {
        let mut counts: Vec<(BranchStatus, u64)> = Vec::new();
        for branch in self.run(|s, _| s.branches_by_name()) {
            match counts.iter_mut().find(|(status, _)| *status == branch.status) {
                Some((_, count)) => *count += 1,
                None => counts.push((branch.status, 1)),
            }
        }
        Ok(counts)
    }
    async fn branch(&self, id: &str) -> Result<Option<Branch>> {
        Ok(self.run(|s, _| s.branches.get(id).cloned()))
    }
    async fn branch_named(&self, name: &str) -> Result<Option<Branch>> {
        Ok(self.run(|s, _| s.branches.values().find(|b| b.name == name).cloned()))
    }
    async fn segments(&self, branch: &str, from_seq: u64, max: usize) -> Result<Vec<SegmentRow>> {
        Ok(self.run(|s, _| s.segments_from(branch, from_seq, max)))
    }
    async fn segments_before(&self, branch: &str, from_seq: u64, max: usize) -> Result<Vec<SegmentRow>> {
        Ok(self.run(|s, _| s.segments_before(branch, from_seq, max)))
    }
    async fn ddl_segments(&self, branch: &str, from_seq: u64, max: usize) -> Result<Vec<SegmentRow>> {
        Ok(self.run(|s, _| s.ddl_segments(branch, from_seq, max)))
    }
    async fn losses(&self, branch: &str, from_seq: u64, max: usize) -> Result<Vec<SegmentRow>> {
        Ok(self.run(|s, _| s.losses(branch, from_seq, max)))
    }
    async fn record_gap(&self, gap: &CaptureGap) -> Result<Checkpointed> {
        self.run(|s, now| s.record_gap(gap, now))
    }
    async fn touch(&self, lease: &JobLease, progressed: bool) -> Result<bool> {
        Ok(self.run(|s, now| s.touch(lease, progressed, now)))
    }
    async fn create_branch(&self, branch: &Branch, ttl: Option<Duration>) -> Result<()> {
        self.run(|s, now| s.create_branch(branch, ttl.map(millis), now))
    }
    async fn children(&self, branch: &str, max: usize) -> Result<Vec<Branch>> {
        Ok(self.run(|s, _| s.children(branch, max)))
    }
    async fn branches_due(&self, now_ms: i64, deleted_before_ms: i64) -> Result<Vec<Branch>> {
        Ok(self.run(|s, _| s.branches_due(now_ms, deleted_before_ms)))
    }
    async fn rename_branch(&self, id: &str, name: &str) -> Result<()> {
        self.run(|s, _| s.rename_branch(id, name))
    }
    async fn archive_branch(&self, id: &str, archived: bool) -> Result<()> {
        self.run(|s, _| s.archive_branch(id, archived))
    }
    async fn delete_branch(&self, id: &str) -> Result<bool> {
        self.run(|s, now| s.delete_branch(id, now))
    }
    async fn purge_branch(&self, id: &str) -> Result<bool> {
        self.run(|s, _| s.purge_branch(id))
    }
    async fn attach_capture(&self, new: &Attach) -> Result<()> {
        self.run(|s, now| s.attach_capture(new, now))
    }
    async fn note_proven(&self, branch: &str, proven: &Proven) -> Result<()> {
        self.run(|s, _| s.note_proven(branch, proven));
        Ok(())
    }
    async fn bases(&self, branch: &str) -> Result<Vec<Base>> {
        Ok(self.run(|s, _| s.bases_where(|base| base.branch == branch)))
    }
    async fn base(&self, id: &str) -> Result<Option<Base>> {
        Ok(self.run(|s, _| s.bases.get(id).cloned()))
    }
    async fn bases_in(&self, state: BaseState) -> Result<Vec<Base>> {
        Ok(self.run(|s, _| s.bases_where(|base| base.state == state)))
    }
    async fn create_base(&self, base: &Base) -> Result<()> {
        self.run(|s, now| s.create_base(base, now));
        Ok(())
    }
    async fn finish_base(&self, base: &Base) -> Result<bool> {
        Ok(self.run(|s, now| s.finish_base(base, now)))
    }
    async fn abandon_base(&self, id: &str, reason: &str) -> Result<bool> {
        Ok(self.run(|s, now| s.abandon_base(id, reason, now)))
    }
    async fn note_base(&self, id: &str, expected: Option<(u64, u64)>, reason: Option<&str>) -> Result<()> {
        self.run(|s, _| s.note_base(id, expected, reason));
        Ok(())
    }
    async fn add_chunks(&self, chunks: &[BaseChunk]) -> Result<bool> {
        Ok(self.run(|s, _| s.add_chunks(chunks)))
    }
    async fn chunks(&self, base: &str, after: Option<&str>, max: usize) -> Result<Vec<BaseChunk>> {
        Ok(self.run(|s, _| s.chunks_of(base, after, max)))
    }
    async fn last_chunk(&self, base: &str, uuid: &str) -> Result<Option<BaseChunk>> {
        Ok(self.run(|s, _| s.last_chunk(base, uuid)))
    }
    async fn remove_base(&self, id: &str) -> Result<bool> {
        Ok(self.run(|s, _| s.remove_base(id)))
    }
    async fn remove_chunks(&self, base: &str) -> Result<()> {
        self.run(|s, _| s.chunks.retain(|_, chunk| chunk.base != base));
        Ok(())
    }
    async fn import_segments(&self, rows: &[SegmentRow]) -> Result<()> {
        self.run(|s, _| s.import_segments(rows));
        Ok(())
    }
    async fn import_branch(&self, import: &Import) -> Result<bool> {
        Ok(self.run(|s, _| s.import_branch(import)))
    }
    async fn position(&self, capture: &str) -> Result<Option<(RawDocumentBuf, u64)>> {
        Ok(self.run(|s, _| s.captures.get(capture).map(|c| (c.position.token.clone(), c.position.next_seq))))
    }
}
