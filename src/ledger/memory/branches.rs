//! Owns: branches and bases in memory and what each write does to them. Does not own: captures and segments (`state`), the queue (`queue`).

use super::state::{State, name_taken, no_capture};
use crate::fault::{Fault, Result};
use crate::ledger::*;

impl State {
    pub(super) fn record_gap(&mut self, gap: &CaptureGap, now: i64) -> Result<Checkpointed> {
        rules::check_capture_gap(gap)?;
        let claimed = self.range_claimed(&gap.row);
        let capture = self.captures.get_mut(&gap.capture).ok_or_else(|| no_capture(&gap.capture))?;
        let fits =
            capture.state == CaptureState::Running && capture.fence == gap.fence && capture.position.next_seq == gap.expected_next_seq;
        if !fits || claimed {
            return Ok(rules::gap_refused(capture, gap));
        }
        capture.position = gap.after.clone();
        capture.checkpoint_ms = now;
        capture.last_batch = Some(gap.row.key.clone());
        self.add_segment(&gap.row, 0, now);
        self.settle_status(&gap.row.branch);
        Ok(Checkpointed::Stored)
    }

    pub(super) fn touch(&mut self, lease: &JobLease, progressed: bool, now: i64) -> bool {
        let Some(job) = self.jobs.get_mut(&lease.id).filter(|job| rules::holds(job, lease)) else { return false };
        if let Some(lease) = &mut job.lease {
            lease.started = true;
            lease.started_ms = Some(now);
        }
        if progressed {
            job.crashes = 0;
        }
        true
    }

    pub(super) fn create_branch(&mut self, branch: &Branch, ttl_ms: Option<i64>, now: i64) -> Result<()> {
        if self.branches.contains_key(&branch.id) {
            return Ok(()); // our own earlier call
        }
        let parent = branch.parent.as_ref().and_then(|parent| self.branches.get(&parent.id));
        if parent.is_none_or(|parent| parent.deleted_ms.is_some()) {
            return Err(Fault::rejected(format!("the parent of {} is deleted", branch.name)));
        }
        if self.branches.values().any(|b| b.name == branch.name) {
            return Err(name_taken(&branch.name));
        }
        let expires_ms = ttl_ms.map(|ttl| now.saturating_add(ttl));
        self.branches.insert(branch.id.clone(), Branch { created_ms: now, expires_ms, ..branch.clone() });
        Ok(())
    }

    pub(super) fn children(&self, branch: &str, max: usize) -> Vec<Branch> {
        let of = |b: &&Branch| b.deleted_ms.is_none() && b.parent.as_ref().is_some_and(|parent| parent.id == branch);
        let mut all: Vec<Branch> = self.branches.values().filter(of).cloned().collect();
        all.sort_by(|a, b| a.name.cmp(&b.name));
        all.truncate(max);
        all
    }

    pub(super) fn branches_due(&self, now_ms: i64, deleted_before_ms: i64) -> Vec<Branch> {
        let is_due = |b: &&Branch| match b.deleted_ms {
            Some(at) => at <= deleted_before_ms,
            None => b.expires_ms.is_some_and(|at| at <= now_ms),
        };
        self.branches.values().filter(is_due).cloned().collect()
    }

    pub(super) fn rename_branch(&mut self, id: &str, name: &str) -> Result<()> {
        if self.branches.values().any(|b| b.name == name && b.id != id) {
            return Err(name_taken(name));
        }
        let branch = self.branches.get_mut(id).filter(|b| b.deleted_ms.is_none()).ok_or_else(|| no_branch(id))?;
        name.clone_into(&mut branch.name);
        self.captures.values_mut().filter(|c| c.branch == id).for_each(|c| name.clone_into(&mut c.branch_name));
        Ok(())
    }

    pub(super) fn archive_branch(&mut self, id: &str, archived: bool) -> Result<()> {
        let branch = self.branches.get_mut(id).filter(|b| b.deleted_ms.is_none()).ok_or_else(|| no_branch(id))?;
        branch.status = if archived { BranchStatus::Archived } else { BranchStatus::Active };
        if archived {
            self.stop_capture_of(id, "the branch is archived");
        }
        self.settle_status(id);
        Ok(())
    }

    fn stop_capture_of(&mut self, branch: &str, reason: &str) {
        for capture in self.captures.values_mut().filter(|c| c.branch == branch) {
            capture.state = CaptureState::Stopped;
            capture.reason = Some(reason.to_owned());
        }
    }

    pub(super) fn delete_branch(&mut self, id: &str, now: i64) -> Result<bool> {
        let children: Vec<String> = self.children(id, 5).into_iter().map(|b| b.name).collect();
        let branch = self.branches.get_mut(id).ok_or_else(|| no_branch(id))?;
        if branch.deleted_ms.is_some() {
            return Ok(false);
        }
        if !children.is_empty() {
            return Err(rules::has_children(branch, &children));
        }
        branch.name = rules::deleted_name(branch);
        branch.deleted_ms = Some(now);
        self.stop_capture_of(id, "the branch is deleted");
        self.settle_status(id);
        Ok(true)
    }

    pub(super) fn purge_branch(&mut self, id: &str) -> Result<bool> {
        let Some(branch) = self.branches.get(id) else { return Ok(true) };
        if branch.deleted_ms.is_none() {
            return Err(Fault::rejected(format!("branch {} is not deleted", branch.name)));
        }
        let bases: Vec<BaseId> = self.bases.values().filter(|b| b.branch == id).map(|b| b.id.clone()).collect();
        self.chunks.retain(|_, chunk| !bases.contains(&chunk.base));
        self.bases.retain(|_, base| base.branch != id);
        self.by_seq.retain(|(branch, ..), _| branch != id);
        self.segments.retain(|_, row| row.branch != id);
        let jobs: Vec<JobId> =
            self.jobs.values().filter(|j| j.branch == id && j.state != JobState::Running).map(|j| j.id.clone()).collect();
        for job in &jobs {
            self.jobs.remove(job);
            self.payloads.remove(job);
            self.ended.remove(job);
        }
        self.captures.retain(|_, capture| capture.branch != id);
        self.branches.remove(id);
        Ok(true)
    }

    pub(super) fn attach_capture(&mut self, new: &Attach, now: i64) -> Result<()> {
        let capture = &new.capture;
        if self.captures.contains_key(&capture.id) {
            return Ok(()); // our own earlier call
        }
        let claimed = self.range_claimed(&new.row);
        let has_one = self.captures.values().any(|c| c.branch == capture.branch);
        let branch = self.branches.get_mut(&capture.branch).ok_or_else(|| no_branch(&capture.branch))?;
        rules::check_attach(branch, new)?;
        if has_one || claimed {
            return Err(Fault::rejected(format!("branch {} has a capture already", branch.name)));
        }
        branch.source_db.clone_from(&new.source_db);
        branch.drop_db = new.drop_db;
        if let Some(ttl) = new.ttl {
            branch.expires_ms = Some(now.saturating_add(i64::try_from(ttl.as_millis()).unwrap_or(i64::MAX)));
        }
        self.captures.insert(capture.id.clone(), Capture { checkpoint_ms: now, ..capture.clone() });
        self.add_segment(&new.row, 0, now);
        Ok(())
    }

    pub(super) fn note_proven(&mut self, branch: &str, proven: &Proven) {
        if let Some(branch) = self.branches.get_mut(branch)
            && branch.proven.as_ref().is_none_or(|known| known.seq <= proven.seq)
        {
            branch.proven = Some(proven.clone());
        }
    }

    pub(super) fn bases_where(&self, which: impl Fn(&Base) -> bool) -> Vec<Base> {
        let mut all: Vec<Base> = self.bases.values().filter(|base| which(base)).cloned().collect();
        all.sort_by(|a, b| (a.seq, a.created_ms, &a.id).cmp(&(b.seq, b.created_ms, &b.id)));
        all
    }

    pub(super) fn create_base(&mut self, base: &Base, now: i64) {
        let branch = base.branch.clone();
        self.bases.entry(base.id.clone()).or_insert_with(|| Base { created_ms: now, ..base.clone() });
        self.settle_status(&branch);
    }

    pub(super) fn finish_base(&mut self, base: &Base, now: i64) -> bool {
        let Some(stored) = self.bases.get_mut(&base.id) else { return false };
        match stored.state {
            BaseState::Abandoned => return false,
            BaseState::Complete => return stored.sha256 == base.sha256,
            BaseState::Copying => {}
        }
        *stored = Base { state: BaseState::Complete, created_ms: stored.created_ms, finished_ms: Some(now), reason: None, ..base.clone() };
        let branch = base.branch.clone();
        self.settle_status(&branch);
        true
    }

    pub(super) fn abandon_base(&mut self, id: &str, reason: &str, now: i64) -> bool {
        let Some(base) = self.bases.get_mut(id).filter(|base| base.state == BaseState::Copying) else { return false };
        (base.state, base.reason, base.finished_ms) = (BaseState::Abandoned, Some(reason.to_owned()), Some(now));
        true
    }

    pub(super) fn note_base(&mut self, id: &str, expected: Option<(u64, u64)>, reason: Option<&str>) {
        let Some(base) = self.bases.get_mut(id).filter(|base| base.state == BaseState::Copying) else { return };
        if let Some((documents, bytes)) = expected {
            (base.expected_documents, base.expected_bytes) = (documents, bytes);
        }
        base.reason = reason.map(str::to_owned);
    }

    pub(super) fn add_chunks(&mut self, chunks: &[BaseChunk]) -> bool {
        let Some(first) = chunks.first() else { return true };
        let copying = |base: &&mut Base| base.state == BaseState::Copying;
        let Some(base) = self.bases.get_mut(&first.base).filter(copying) else { return false };
        if chunks.iter().any(|chunk| self.chunks.contains_key(&chunk.id)) {
            return chunks.iter().all(|chunk| self.chunks.get(&chunk.id) == Some(chunk)); // our own earlier call
        }
        for chunk in chunks {
            base.documents += chunk.documents;
            base.raw_bytes += chunk.raw_bytes;
            base.stored_bytes += chunk.stored_bytes;
            base.objects += u64::from(chunk.object.is_some());
            base.consistent_at = base.consistent_at.max(chunk.until);
            self.chunks.insert(chunk.id.clone(), chunk.clone());
        }
        true
    }

    pub(super) fn chunks_of(&self, base: &str, after: Option<&str>, max: usize) -> Vec<BaseChunk> {
        let of = |chunk: &&BaseChunk| chunk.base == base && after.is_none_or(|after| chunk.id.as_str() > after);
        self.chunks.values().filter(of).take(max).cloned().collect()
    }

    pub(super) fn last_chunk(&self, base: &str, uuid: &str) -> Option<BaseChunk> {
        self.chunks.values().rfind(|chunk| chunk.base == base && chunk.uuid == uuid).cloned()
    }

    pub(super) fn import_segments(&mut self, rows: &[SegmentRow]) {
        for row in rows {
            if !self.range_claimed(row) {
                self.store_segment(row.clone());
            }
        }
    }

    pub(super) fn remove_base(&mut self, id: &str) -> bool {
        match self.bases.get(id) {
            Some(base) if base.state != BaseState::Abandoned => false,
            _ => {
                self.bases.remove(id);
                self.chunks.retain(|_, chunk| chunk.base != id);
                true
            }
        }
    }

    pub(super) fn import_branch(&mut self, import: &Import) -> bool {
        if self.branches.contains_key(&import.branch.id) {
            return false;
        }
        self.branches.insert(import.branch.id.clone(), import.branch.clone());
        if let Some(capture) = &import.capture {
            self.captures.insert(capture.id.clone(), capture.clone());
        }
        for base in &import.bases {
            self.bases.insert(base.id.clone(), base.clone());
        }
        self.settle_status(&import.branch.id);
        true
    }
}

fn no_branch(id: &str) -> Fault {
    Fault::missing(format!("branch {id} does not exist"))
}
