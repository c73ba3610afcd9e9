//! Owns: the rows in memory and what each write does to them, all or nothing. Does not own: the queue's writes (`queue`), locking and time (`super`).

use std::collections::{BTreeMap, BTreeSet, HashMap};

use bytes::Bytes;

use super::queue::SHARED;
use crate::fault::{Fault, Result};
use crate::ledger::rules::{self, Found, Health, Step};
use crate::ledger::status::Tally;
use crate::ledger::*;
use crate::queue::{self, AfterCrash, JobEvent};

/// Jobs of each kind.
pub(super) type ByKind = BTreeMap<JobKind, u64>;

#[derive(Debug, Default)]
pub(super) struct State {
    pub(super) captures: BTreeMap<CaptureId, Capture>,
    pub(super) branches: BTreeMap<BranchId, Branch>,
    pub(super) segments: BTreeMap<String, SegmentRow>,
    /// Keys of segments by branch, last seq and level, so that a page of them costs a page.
    pub(super) by_seq: BTreeMap<(BranchId, u64, u32, u64), String>,
    pub(super) bases: BTreeMap<BaseId, Base>,
    pub(super) chunks: BTreeMap<String, BaseChunk>,
    pub(super) jobs: BTreeMap<JobId, Job>,
    pub(super) payloads: HashMap<JobId, Vec<Bytes>>,
    pub(super) engines: BTreeMap<EngineId, EngineBeat>,
    /// Token of the lease that ended a job's last attempt.
    pub(super) ended: HashMap<JobId, String>,
    /// By engine.
    pub(super) counters: BTreeMap<String, Counters>,
    /// Figures of a refresh, and when that was.
    pub(super) refreshed: Option<(i64, BTreeMap<JobState, ByKind>)>,
    /// Who leads, and until when.
    pub(super) leader: Option<(EngineId, i64)>,
    pub(super) pauses: Pauses,
    /// The wish, and when it ends.
    pub(super) scale: Option<(ScaleWish, Option<i64>)>,
}

impl State {
    pub(super) fn create_capture(&mut self, new: &NewCapture, now: i64) -> Result<()> {
        let (capture, branch) = (&new.capture, &new.branch);
        if self.captures.contains_key(&capture.id) && self.branches.contains_key(&branch.id) {
            return Ok(()); // our own earlier call
        }
        if self.branches.contains_key(&branch.id) || self.branches.values().any(|b| b.name == branch.name) {
            return Err(name_taken(&branch.name));
        }
        self.captures.insert(capture.id.clone(), Capture { checkpoint_ms: now, ..capture.clone() });
        self.branches.insert(branch.id.clone(), Branch { created_ms: now, ..branch.clone() });
        self.create_base(&new.base, now);
        Ok(())
    }

    pub(super) fn captures_by_name(&self) -> Vec<Capture> {
        let mut all: Vec<_> = self.captures.values().cloned().collect();
        all.sort_by(|a, b| a.branch_name.cmp(&b.branch_name));
        all
    }

    pub(super) fn branches_by_name(&self) -> Vec<Branch> {
        let mut all: Vec<_> = self.branches.values().cloned().collect();
        all.sort_by(|a, b| a.name.cmp(&b.name));
        all
    }

    pub(super) fn own_capture(&mut self, id: &str, engine: &str) -> Option<Capture> {
        let capture = self.captures.get_mut(id)?;
        let free = capture.owner.as_deref().is_none_or(|o| o == engine);
        if capture.state != CaptureState::Running || !free {
            return None;
        }
        capture.owner = Some(engine.to_owned());
        capture.fence += 1;
        Some(capture.clone())
    }

    pub(super) fn release_capture(&mut self, id: &str, fence: u64) {
        if let Some(capture) = self.captures.get_mut(id).filter(|c| c.fence == fence) {
            capture.owner = None;
        }
    }

    pub(super) fn set_capture_state(&mut self, id: &str, state: CaptureState, reason: Option<&str>) -> Result<()> {
        let capture = self.captures.get_mut(id).ok_or_else(|| no_capture(id))?;
        capture.state = state;
        capture.reason = reason.map(str::to_owned);
        let branch = capture.branch.clone();
        self.settle_status(&branch);
        Ok(())
    }

    pub(super) fn set_capture_source(&mut self, id: &str, source: &Source) -> Result<()> {
        self.captures.get_mut(id).ok_or_else(|| no_capture(id))?.source = source.clone();
        Ok(())
    }

    pub(super) fn note_identity(&mut self, id: &str, fence: u64, known: &str, seen: &str) {
        if let Some(capture) = self.captures.get_mut(id).filter(|c| c.fence == fence && c.source.identity == known) {
            seen.clone_into(&mut capture.source.identity);
        }
    }

    pub(super) fn fail_capture(&mut self, id: &str, engine: &str, fence: u64, reason: &str) -> bool {
        let Some(capture) = self.captures.get_mut(id).filter(|c| c.fence == fence && c.owner.as_deref() == Some(engine)) else {
            return false;
        };
        if capture.state == CaptureState::Running {
            capture.state = CaptureState::Failed;
            capture.reason = Some(reason.to_owned());
            let branch = capture.branch.clone();
            self.settle_status(&branch);
            return true;
        }
        capture.state == CaptureState::Failed // our own earlier call
    }

    pub(super) fn note_capture(&mut self, id: &str, fence: u64, reason: Option<&str>) {
        if let Some(capture) = self.captures.get_mut(id).filter(|c| c.fence == fence && c.state == CaptureState::Running) {
            capture.reason = reason.map(str::to_owned);
        }
    }

    pub(super) fn note_coverage(&mut self, id: &str, fence: u64, coverage: &Coverage) {
        let Some(capture) = self.captures.get(id).filter(|c| c.fence == fence && c.state == CaptureState::Running) else { return };
        let Some(branch) = self.branches.get_mut(&capture.branch) else { return };
        if coverage.fidelity == Fidelity::OrderMayDiffer {
            branch.fidelity = Fidelity::OrderMayDiffer;
        }
        for what in &coverage.uncovered {
            if !branch.uncovered.contains(what) {
                branch.uncovered.push(what.clone());
            }
        }
    }

    pub(super) fn checkpoint(&mut self, write: &Checkpoint, now: i64) -> Result<Checkpointed> {
        rules::check_checkpoint(write)?;
        let capture = self.captures.get_mut(&write.capture).ok_or_else(|| no_capture(&write.capture))?;
        let fits =
            capture.state == CaptureState::Running && capture.fence == write.fence && capture.position.next_seq == write.expected_next_seq;
        if !fits {
            return Ok(rules::refused(capture, write));
        }
        capture.position = write.after.clone();
        capture.checkpoint_ms = now;
        if let Some(batch) = &write.batch {
            capture.last_batch = Some(batch.spec.batch.clone());
            capture.queued_bytes += batch.spec.payload_bytes;
            let mut job = rules::sync_row(batch);
            (job.run_at_ms, job.created_ms) = (now, now);
            job.sched_key = queue::sched_key(now, job.priority);
            self.jobs.insert(batch.job.clone(), job);
            self.payloads.insert(batch.job.clone(), batch.parts.clone());
        }
        Ok(Checkpointed::Stored)
    }

    pub(super) fn payload(&self, id: &str) -> Result<Vec<Bytes>> {
        let job = self.jobs.get(id).ok_or_else(|| Fault::missing(format!("job {id} does not exist")))?;
        let expected = job.sync.as_ref().map_or(0, |s| s.payload_parts as usize);
        let parts = self.payloads.get(id).cloned().unwrap_or_default();
        if parts.len() < expected {
            return Err(Fault::missing(format!("job {id}: {} of {expected} payload parts are stored", parts.len())));
        }
        Ok(parts)
    }

    pub(super) fn commit(&mut self, commits: &[SegmentCommit], now: i64) -> Result<Vec<Committed>> {
        rules::check_commits(commits)?;
        let mut outcomes = Vec::with_capacity(commits.len());
        for c in commits {
            let claimed = self.range_claimed(&c.segment);
            let found = Found { job: self.jobs.get(&c.lease.id), ended: self.ended.get(&c.lease.id).map(String::as_str), claimed };
            outcomes.push(rules::judge(c, &found));
        }
        let Some(first) = commits.first() else { return Ok(outcomes) };
        if !self.branches.contains_key(&first.segment.branch) {
            return Err(Fault::missing(format!("branch {} does not exist", first.segment.branch)));
        }
        for (c, _) in commits.iter().zip(&outcomes).filter(|(_, o)| **o == Committed::Now) {
            let engine = self.jobs.get(&c.lease.id).and_then(|j| j.lease.as_ref()).map(|l| l.engine.clone()).unwrap_or_default();
            self.count(&engine, Tally::Done, JobKind::Sync);
            self.end(&c.lease.id, JobEvent::Committed, Some(&c.lease.token), now);
            self.add_segment(&c.segment, c.payload_bytes, now);
        }
        Ok(outcomes)
    }

    pub(super) fn range_claimed(&self, row: &SegmentRow) -> bool {
        let place = (row.branch.clone(), row.last_seq, row.level, row.epoch);
        self.segments.contains_key(&row.key) || self.by_seq.contains_key(&place)
    }

    /// Ends a job for good: payload gone, lease gone, token noted.
    pub(super) fn end(&mut self, id: &str, event: JobEvent, token: Option<&str>, now: i64) {
        let Some(job) = self.jobs.get_mut(id) else { return };
        let Some(state) = queue::transition(job.state, event) else { return };
        job.state = state;
        job.finished_ms = Some(now);
        (job.lease, job.parked) = (None, false);
        if state != JobState::Dead {
            self.payloads.remove(id);
        }
        if let Some(token) = token {
            self.ended.insert(id.to_owned(), token.to_owned());
        }
    }

    pub(super) fn add_segment(&mut self, row: &SegmentRow, payload_bytes: u64, now: i64) {
        self.store_segment(SegmentRow { committed_ms: now, ..row.clone() });
        let steps = self.steps(&row.branch, self.branches.get(&row.branch).map_or(0, |branch| branch.head.seq));
        let Some(branch) = self.branches.get_mut(&row.branch) else { return };
        if row.kind == SegmentKind::Changes {
            branch.totals.changes += row.last_seq - row.first_seq + 1;
        }
        branch.totals.raw_bytes += row.raw_bytes;
        branch.totals.stored_bytes += row.stored_bytes;
        branch.totals.segments += 1;
        branch.settled_bytes += payload_bytes;
        branch.head = rules::advance(branch.head, steps).0;
    }

    pub(super) fn store_segment(&mut self, row: SegmentRow) {
        self.by_seq.insert((row.branch.clone(), row.last_seq, row.level, row.epoch), row.key.clone());
        self.segments.insert(row.key.clone(), row);
    }

    /// Segments of a branch that end at or after `from_seq`, by last seq.
    fn segments_after<'a>(&'a self, branch: &str, from_seq: u64) -> impl Iterator<Item = &'a SegmentRow> {
        let range = (branch.to_owned(), from_seq, 0, 0)..=(branch.to_owned(), u64::MAX, u32::MAX, u64::MAX);
        self.by_seq.range(range).filter_map(|(_, key)| self.segments.get(key))
    }

    fn steps(&self, branch: &str, from_seq: u64) -> Vec<Step> {
        self.segments_after(branch, from_seq).map(Step::from).collect()
    }

    pub(super) fn segments_before(&self, branch: &str, from_seq: u64, max: usize) -> Vec<SegmentRow> {
        let mut rows: Vec<SegmentRow> = self.segments_after(branch, 0).filter(|s| s.first_seq <= from_seq).cloned().collect();
        rows.sort_by_key(|s| std::cmp::Reverse((s.last_seq, s.level)));
        rows.truncate(max);
        rows
    }

    pub(super) fn ddl_segments(&self, branch: &str, from_seq: u64, max: usize) -> Vec<SegmentRow> {
        self.segments_after(branch, from_seq).filter(|s| s.has_ddl).take(max).map(without_filter).collect()
    }

    pub(super) fn losses(&self, branch: &str, from_seq: u64, max: usize) -> Vec<SegmentRow> {
        let mut lost: Vec<_> =
            self.segments_after(branch, 0).filter(|s| s.holes > 0 && s.first_seq >= from_seq).map(without_filter).collect();
        lost.sort_by_key(|s| s.first_seq);
        lost.truncate(max);
        lost
    }

    pub(super) fn advance_heads(&mut self) -> u64 {
        let ids: Vec<BranchId> = self.branches.keys().cloned().collect();
        let mut moved = 0;
        for id in ids {
            let steps = self.steps(&id, 0);
            let Some(branch) = self.branches.get_mut(&id) else { continue };
            let head = rules::advance(branch.head, steps).0;
            moved += u64::from(head != branch.head);
            branch.head = head;
        }
        moved
    }

    pub(super) fn heartbeat(&mut self, beat: &EngineBeat, first: bool, now: i64) -> bool {
        if !first && !self.engines.contains_key(&beat.id) {
            return false;
        }
        self.engines.insert(beat.id.clone(), EngineBeat { beat_ms: now, ..beat.clone() });
        true
    }

    pub(super) fn rescue(&mut self, by: &str, oldest_ms: Option<i64>, known_dead: &[EngineId], now: i64) -> Result<Rescued> {
        let mut out = Rescued::default();
        let silent = |e: &EngineBeat| oldest_ms.is_some_and(|oldest| e.beat_ms < oldest) || known_dead.contains(&e.id);
        let dead: Vec<EngineId> = self.engines.values().filter(|e| e.id != by && silent(e)).map(|e| e.id.clone()).collect();
        for engine in &dead {
            self.rescue_engine(engine, true, now, &mut out);
            self.remove_engine(engine);
        }
        out.engines = dead;
        // What is owned by a process without a document belongs to nobody.
        let owners = self.jobs.values().filter_map(|j| j.lease.as_ref().map(|l| l.engine.clone()));
        let owners = owners.chain(self.captures.values().filter_map(|c| c.owner.clone()));
        let counted = self.counters.keys().filter(|whose| *whose != SHARED).cloned();
        let orphans: BTreeSet<EngineId> = owners.chain(counted).collect();
        for engine in orphans.into_iter().filter(|e| e != by && !self.engines.contains_key(e)).collect::<Vec<_>>() {
            self.rescue_engine(&engine, known_dead.contains(&engine), now, &mut out);
            self.fold_counters(&engine);
        }
        Ok(out)
    }

    /// The document, the leadership, and what it has counted go together.
    pub(super) fn remove_engine(&mut self, engine: &str) {
        self.engines.remove(engine);
        self.step_down(engine);
        self.fold_counters(engine);
    }

    fn rescue_engine(&mut self, engine: &str, died: bool, now: i64, out: &mut Rescued) {
        let running: Vec<JobId> = self.running_at(engine).map(|j| j.id.clone()).collect();
        let had_started = |job: &Job| job.lease.as_ref().is_some_and(|l| l.started);
        let alone = running.iter().filter(|id| self.jobs.get(*id).is_some_and(had_started)).count() == 1;
        for id in running {
            let Some(job) = self.jobs.get_mut(&id) else { continue };
            let started = had_started(job);
            let after = if died && started { queue::after_crash(job.crashes, alone) } else { AfterCrash::Requeue { crashes: job.crashes } };
            let error = match after {
                AfterCrash::Dead { crashes } => {
                    format!("crash_loop: {crashes} processes died while running this job, the last one with it alone")
                }
                AfterCrash::Requeue { .. } if died && started => "the process died while running this job".to_owned(),
                AfterCrash::Requeue { .. } if died => "the process died before it had begun this job".to_owned(),
                AfterCrash::Requeue { .. } => "the process had left while running this job".to_owned(),
            };
            let entry = JobError { attempt: job.attempt, at_ms: now, engine: engine.to_owned(), error };
            queue::push_error(&mut job.errors, &mut job.error_count, entry);
            out.jobs += 1;
            let (kind, branch, stop) = (job.kind, job.branch.clone(), job.cancel_requested);
            match after {
                AfterCrash::Dead { crashes } => {
                    job.crashes = crashes;
                    self.end(&id, if stop { JobEvent::Stopped } else { JobEvent::Doomed }, None, now);
                    self.count(SHARED, if stop { Tally::Cancelled } else { Tally::Dead }, kind);
                    self.settle_status(&branch);
                }
                AfterCrash::Requeue { crashes } => {
                    (job.crashes, job.attempt) = (crashes, job.attempt.saturating_sub(1));
                    if stop {
                        self.end(&id, JobEvent::Stopped, None, now);
                        self.count(SHARED, Tally::Cancelled, kind);
                    } else {
                        (job.lease, job.state) = (None, JobState::Ready);
                    }
                }
            }
        }
        for capture in self.captures.values_mut().filter(|c| c.owner.as_deref() == Some(engine)) {
            capture.owner = None;
            capture.fence += 1; // a zombie learns at its next checkpoint
            out.captures += 1;
        }
    }

    pub(super) fn sweep(&mut self, before_ms: i64, max: usize) -> u64 {
        let mut over: Vec<(i64, JobId)> = self
            .jobs
            .values()
            .filter(|j| matches!(j.state, JobState::Done | JobState::Cancelled))
            .filter_map(|j| j.finished_ms.filter(|f| *f < before_ms).map(|f| (f, j.id.clone())))
            .collect();
        over.sort(); // the oldest first
        let ids: Vec<JobId> = over.into_iter().take(max).map(|(_, id)| id).collect();
        for id in &ids {
            self.jobs.remove(id);
            self.ended.remove(id);
        }
        ids.len() as u64
    }

    pub(super) fn discard_job(&mut self, id: &str, gap: &SegmentRow, now: i64) -> Result<bool> {
        let Some(job) = self.jobs.get(id) else { return Ok(false) };
        rules::check_gap(job, gap)?;
        if job.state == JobState::Cancelled && self.segments.contains_key(&gap.key) {
            return Ok(true); // our own earlier call
        }
        if queue::transition(job.state, JobEvent::Discarded).is_none() || self.range_claimed(gap) {
            return Ok(false);
        }
        let payload_bytes = job.sync.as_ref().map_or(0, |s| s.payload_bytes);
        let kind = job.kind;
        self.end(id, JobEvent::Discarded, None, now);
        self.count(SHARED, Tally::Cancelled, kind);
        self.add_segment(gap, payload_bytes, now);
        self.settle_status(&gap.branch);
        Ok(true)
    }

    pub(super) fn segments_from(&self, branch: &str, from_seq: u64, max: usize) -> Vec<SegmentRow> {
        let mut rows: Vec<SegmentRow> = self.segments_after(branch, from_seq).take(max).map(without_filter).collect();
        rows.sort_by_key(|s| (s.first_seq, s.last_seq));
        rows
    }

    /// Status and reason of a branch from what is stored.
    pub(super) fn settle_status(&mut self, id: &str) {
        let dead = self.jobs.values().find(|j| j.branch == id && j.state == JobState::Dead && j.kind == JobKind::Sync);
        // What a later base has is not missed any more.
        let since = self.bases.values().filter(|b| b.branch == id && b.state == BaseState::Complete).map(|b| b.seq).max().unwrap_or(0);
        let gap = self.segments_after(id, since + 1).filter(|s| s.kind == SegmentKind::Gap).min_by_key(|s| s.first_seq);
        let failed = self.captures.values().find(|c| c.branch == id && c.state == CaptureState::Failed);
        let mut health = Health {
            failed: failed.map(|c| c.reason.clone().unwrap_or_default()),
            dead: dead.map(|j| (j.id.clone(), j.errors.last().map(|e| e.error.clone()).unwrap_or_default())),
            gap: gap.map(|s| (s.first_seq, s.last_seq)),
            ..Health::default()
        };
        let Some(branch) = self.branches.get_mut(id) else { return };
        health.archived = branch.status == BranchStatus::Archived;
        health.deleted = branch.deleted_ms.is_some();
        (branch.status, branch.reason) = rules::status(&health);
    }
}

pub(super) fn no_capture(id: &str) -> Fault {
    Fault::missing(format!("capture {id} does not exist"))
}

pub(super) fn name_taken(name: &str) -> Fault {
    Fault::rejected(format!("branch {name} exists already"))
}

/// Only who looks for a document wants the filters.
fn without_filter(row: &SegmentRow) -> SegmentRow {
    SegmentRow { filter: None, ..row.clone() }
}
