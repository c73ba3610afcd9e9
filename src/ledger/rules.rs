//! Owns: the decisions that the real ledger and its twin must take alike. Pure.
//! Does not own: reading or writing rows (`mongo`, `memory`), or job states and retries (`queue`).

use std::time::Duration;

use super::{
    Attach, Branch, BranchStatus, Bulk, Capture, CaptureGap, Checkpoint, Checkpointed, Committed, Failed, Finish, Finished, Head, Job,
    JobFilter, JobKind, JobLease, JobState, MAX_ENQUEUE, MAX_FINISH, NewJob, Priority, SegmentCommit, SegmentKind, SegmentRow,
};
use crate::fault::{Fault, Result};
use crate::queue::{self, JobEvent};

/// Most commits of one call: a transaction stays far below its 60 s and a few MB of oplog.
pub(super) const MAX_COMMITS: usize = 256;
/// Most parts of a payload: a batch has one, or a few after a huge change.
pub(super) const MAX_PARTS: usize = 256;
/// Most bytes of a job's params: they are read with every claim.
pub(super) const MAX_PARAMS: usize = 64 << 10;
/// Longest unique key and job id, in bytes: they are keys of an index.
pub(super) const MAX_KEY: usize = 500;
/// Jobs of a chunk: one transaction of a bulk action, one write of a promotion.
pub(super) const CHUNK: usize = 1_000;
/// Chunks of one promotion; the next one goes on.
pub(super) const MAX_CHUNKS: usize = 20;
/// Chunks of jobs of paused branches that one claim puts aside; the next goes on.
pub(super) const MAX_PARKS: usize = 10;
/// Depth is exact up to here, then one more.
pub(super) const DEPTH_LIMIT: u64 = 10_000;

/// Why a capture did not match the condition of a checkpoint. Asked only after the conditional write found nothing.
///
/// SUBTLE (correctness.md 9): our own write, whose answer was lost, is one of the things that make the condition fail. The batch id tells,
/// and it is looked at first: a batch that is stored is stored, whoever owns the capture by now.
pub(super) fn refused(capture: &Capture, write: &Checkpoint) -> Checkpointed {
    let ours = write.batch.as_ref().is_some_and(|b| capture.last_batch.as_deref() == Some(b.spec.batch.as_str()));
    if ours && capture.position.next_seq == write.after.next_seq {
        Checkpointed::Already
    } else if capture.state != super::CaptureState::Running {
        Checkpointed::NotRunning
    } else {
        Checkpointed::Fenced
    }
}

/// A checkpoint must say one thing: the batch starts where the position is and ends where the next one starts.
pub(super) fn check_checkpoint(write: &Checkpoint) -> Result<()> {
    let fits = match &write.batch {
        None => write.after.next_seq == write.expected_next_seq,
        Some(b) => {
            b.spec.first_seq == write.expected_next_seq
                && b.spec.last_seq >= b.spec.first_seq
                && write.after.next_seq == b.spec.last_seq.saturating_add(1)
                && b.parts.len() <= MAX_PARTS
                && u32::try_from(b.parts.len()).is_ok_and(|n| n == b.spec.payload_parts)
                && b.parts.iter().map(|p| p.len() as u64).sum::<u64>() == b.spec.payload_bytes
        }
    };
    if fits { Ok(()) } else { Err(Fault::rejected("checkpoint: batch, position and payload do not fit together")) }
}

/// Why a capture did not match the condition of a gap: our own write, whose answer was lost, is looked for first. A gap's key names its content.
pub(super) fn gap_refused(capture: &Capture, gap: &CaptureGap) -> Checkpointed {
    if capture.last_batch.as_deref() == Some(gap.row.key.as_str()) && capture.position.next_seq == gap.after.next_seq {
        Checkpointed::Already
    } else if capture.state != super::CaptureState::Running {
        Checkpointed::NotRunning
    } else {
        Checkpointed::Fenced
    }
}

/// A gap has the one seq that is expected next, and the position goes on behind it.
pub(super) fn check_capture_gap(gap: &CaptureGap) -> Result<()> {
    let row = &gap.row;
    let fits = row.kind == SegmentKind::Gap
        && (row.first_seq, row.last_seq) == (gap.expected_next_seq, gap.expected_next_seq)
        && gap.after.next_seq == row.last_seq.saturating_add(1);
    if fits { Ok(()) } else { Err(Fault::rejected(format!("gap {}: range and position do not fit together", row.key))) }
}

/// What a checkout attaches begins right behind the head, and the capture right behind it.
pub(super) fn check_attach(branch: &Branch, new: &Attach) -> Result<()> {
    if branch.deleted_ms.is_some() || branch.status == BranchStatus::Archived {
        return Err(Fault::rejected(format!("branch {} is archived or deleted: nothing can be captured into it", branch.name)));
    }
    if new.row.first_seq != branch.head.seq.saturating_add(1) || new.capture.position.next_seq != new.row.last_seq.saturating_add(1) {
        return Err(Fault::rejected(format!("branch {} has moved on to seq:{}: start again", branch.name, branch.head.seq)));
    }
    Ok(())
}

/// The name of a deleted branch: its own is free again. No name that is given can look like it.
pub(super) fn deleted_name(branch: &Branch) -> String {
    format!("{}#{}", branch.name, branch.id)
}

/// Why a branch is not deleted.
pub(super) fn has_children(branch: &Branch, children: &[String]) -> Fault {
    let names = children.join(", ");
    Fault::rejected(format!("branch {} is the parent of {names}: delete those first", branch.name))
}

/// What a commit finds of its job.
pub(super) struct Found<'a> {
    pub(super) job: Option<&'a Job>,
    /// Token of the lease that ended the job's last attempt.
    pub(super) ended: Option<&'a str>,
    /// A row has the segment's key or range already.
    pub(super) claimed: bool,
}

/// Outcome of one commit given what is stored.
pub(super) fn judge(commit: &SegmentCommit, found: &Found<'_>) -> Committed {
    let Some(job) = found.job else { return Committed::Fenced };
    if job.state == JobState::Done && found.ended == Some(commit.lease.token.as_str()) {
        return Committed::Already;
    }
    if !holds(job, &commit.lease) || found.claimed {
        return Committed::Fenced;
    }
    let row = &commit.segment;
    let fits = job.sync.as_ref().is_some_and(|s| s.first_seq == row.first_seq && s.last_seq == row.last_seq && job.branch == row.branch);
    if fits { Committed::Now } else { Committed::Misfit }
}

/// The lease is the job's, and the job runs.
pub(super) fn holds(job: &Job, lease: &JobLease) -> bool {
    job.state == JobState::Running && job.attempt == lease.attempt && job.lease.as_ref().is_some_and(|l| l.token == lease.token)
}

/// All commits of a call are of one branch, and of different jobs and keys.
pub(super) fn check_commits(commits: &[SegmentCommit]) -> Result<()> {
    if commits.len() > MAX_COMMITS {
        return Err(Fault::rejected(format!("commit: {} segments in one call, at most {MAX_COMMITS}", commits.len())));
    }
    for (i, one) in commits.iter().enumerate() {
        for other in commits.iter().skip(i + 1) {
            if one.segment.branch != other.segment.branch {
                return Err(Fault::rejected("commit: segments of two branches in one call"));
            }
            if one.lease.id == other.lease.id || one.segment.key == other.segment.key {
                return Err(Fault::rejected(format!("commit: job {} or key {} twice in one call", one.lease.id, one.segment.key)));
            }
        }
    }
    Ok(())
}

/// One step of the walk: what of a segment the head needs.
#[derive(Debug, Clone, Copy)]
pub(super) struct Step {
    pub(super) first_seq: u64,
    pub(super) last_seq: u64,
    pub(super) time: crate::change::ClusterTime,
    pub(super) wall_ms: Option<i64>,
}

impl From<&SegmentRow> for Step {
    fn from(row: &SegmentRow) -> Self {
        Self { first_seq: row.first_seq, last_seq: row.last_seq, time: row.last_time, wall_ms: row.last_wall_ms }
    }
}

/// Moves the head over `steps` (by last seq) as far as they are contiguous; false in the pair when a hole stopped it.
pub(super) fn advance(mut head: Head, steps: impl IntoIterator<Item = Step>) -> (Head, bool) {
    for step in steps {
        if step.last_seq <= head.seq {
            continue;
        }
        // A compacted segment may begin before the head; what matters is that nothing is missing between.
        if step.first_seq > head.seq.saturating_add(1) {
            return (head, false);
        }
        head = Head { seq: step.last_seq, time: step.time, wall_ms: step.wall_ms };
    }
    (head, true)
}

/// What the status of a branch follows from.
#[derive(Debug, Clone, Default)]
pub(super) struct Health {
    pub(super) deleted: bool,
    pub(super) archived: bool,
    /// The capture has failed, with this reason.
    pub(super) failed: Option<String>,
    /// A dead sync job holds the head: id and last error.
    pub(super) dead: Option<(String, String)>,
    /// A recorded gap.
    pub(super) gap: Option<(u64, u64)>,
}

/// Status and reason of a branch: the gravest first, and every reason is told.
pub(super) fn status(health: &Health) -> (BranchStatus, Option<String>) {
    if health.deleted {
        return (BranchStatus::Deleted, None);
    }
    if health.archived {
        return (BranchStatus::Archived, None);
    }
    let mut found: Vec<(BranchStatus, String)> = Vec::new();
    if let Some(reason) = &health.failed {
        found.push((BranchStatus::Failed, format!("capture failed: {reason}")));
    }
    if let Some((job, error)) = &health.dead {
        found.push((
            BranchStatus::Stalled,
            format!("job {job} is dead and holds the head: {error}; `argon jobs retry {job}` or discard it"),
        ));
    }
    if let Some((first, last)) = health.gap {
        found.push((BranchStatus::Gap, format!("changes {first} to {last} are not in history")));
    }
    let status = found.first().map_or(BranchStatus::Active, |(s, _)| *s);
    let reason = found.into_iter().map(|(_, r)| r).reduce(|a, b| format!("{a}; {b}"));
    (status, reason)
}

/// The gap that replaces a job has exactly the job's range. It keeps the flags of the batch: that a lost range ends inside of a transaction is what
/// tells readers where the next boundary is.
pub(super) fn check_gap(job: &Job, gap: &SegmentRow) -> Result<()> {
    let spec = job.sync.as_ref().ok_or_else(|| Fault::rejected(format!("job {} is not a sync job: it has no range to discard", job.id)))?;
    let exact =
        gap.kind == SegmentKind::Gap && gap.branch == job.branch && gap.first_seq == spec.first_seq && gap.last_seq == spec.last_seq;
    if exact { Ok(()) } else { Err(Fault::rejected(format!("gap {} does not have the range of job {}", gap.key, job.id))) }
}

/// Whether a job is listed.
pub(super) fn listed(job: &Job, filter: &JobFilter) -> bool {
    filter.state.is_none_or(|s| job.state == s)
        && filter.kind.is_none_or(|k| job.kind == k)
        && filter.branch.as_ref().is_none_or(|b| job.branch == *b)
        && filter.engine.as_ref().is_none_or(|e| job.lease.as_ref().is_some_and(|l| l.engine == *e))
        && filter.error.as_ref().is_none_or(|text| last_error_has(job, text))
        && filter.after.as_ref().is_none_or(|a| job.id > *a)
}

fn last_error_has(job: &Job, text: &str) -> bool {
    let last = job.errors.last().map(|e| e.error.to_ascii_lowercase()).unwrap_or_default();
    last.contains(&text.to_ascii_lowercase())
}

/// New jobs are of other kinds than sync and of bounded size.
pub(super) fn check_new(jobs: &[NewJob]) -> Result<()> {
    if jobs.len() > MAX_ENQUEUE {
        return Err(Fault::rejected(format!("enqueue: {} jobs in one call, at most {MAX_ENQUEUE}", jobs.len())));
    }
    for job in jobs {
        if job.kind == JobKind::Sync {
            return Err(Fault::rejected("a sync job comes with its batch, by a checkpoint"));
        }
        if job.id.is_empty() || job.id.len() > MAX_KEY {
            return Err(Fault::rejected(format!("the id of a job has 1 to {MAX_KEY} bytes")));
        }
        if job.unique_key.as_ref().is_some_and(|key| key.is_empty() || key.len() > MAX_KEY) {
            return Err(Fault::rejected(format!("job {}: a unique key has 1 to {MAX_KEY} bytes", job.id)));
        }
        if let Some(params) = job.params.as_ref().filter(|params| params.as_bytes().len() > MAX_PARAMS) {
            return Err(Fault::rejected(format!("job {}: {} bytes of params, at most {MAX_PARAMS}", job.id, params.as_bytes().len())));
        }
    }
    Ok(())
}

/// The row of a new job; its times are set by whoever stores it.
pub(super) fn new_row(new: &NewJob) -> Job {
    Job {
        id: new.id.clone(),
        kind: new.kind,
        branch: new.branch.clone().unwrap_or_default(),
        state: if new.delay.is_zero() { JobState::Ready } else { JobState::Scheduled },
        priority: new.priority.unwrap_or(Priority::of(new.kind)),
        run_at_ms: 0,
        sched_key: 0,
        created_ms: 0,
        finished_ms: None,
        attempt: 0,
        crashes: 0,
        lease: None,
        errors: Vec::new(),
        error_count: 0,
        sync: None,
        params: new.params.clone(),
        unique_key: new.unique_key.clone(),
        retries: new.retries,
        cancel_requested: false,
        parked: false,
    }
}

/// The row of a batch; its times are set by whoever stores it.
pub(super) fn sync_row(batch: &super::NewBatch) -> Job {
    let new = NewJob { branch: Some(batch.branch.clone()), ..NewJob::new(batch.job.clone(), JobKind::Sync) };
    Job { sync: Some(batch.spec.clone()), ..new_row(&new) }
}

/// Finishes are of jobs without a segment, each once.
pub(super) fn check_finishes(ends: &[Finish]) -> Result<()> {
    if ends.len() > MAX_FINISH {
        return Err(Fault::rejected(format!("finish: {} jobs in one call, at most {MAX_FINISH}", ends.len())));
    }
    if let Some(sync) = ends.iter().find(|end| end.kind == JobKind::Sync) {
        return Err(Fault::rejected(format!("finish: job {} is a sync job, its end is a commit", sync.lease.id)));
    }
    let mut ids: Vec<&str> = ends.iter().map(|end| end.lease.id.as_str()).collect();
    ids.sort_unstable();
    match ids.windows(2).find(|pair| pair[0] == pair[1]) {
        Some(pair) => Err(Fault::rejected(format!("finish: job {} twice in one call", pair[0]))),
        None => Ok(()),
    }
}

/// Outcome of one finish given its job and the token that ended the job's last attempt.
pub(super) fn judge_finish(end: &Finish, job: Option<&Job>, ended: Option<&str>) -> Finished {
    match job {
        Some(job) if job.state == JobState::Done && ended == Some(end.lease.token.as_str()) => Finished::Already,
        Some(job) if holds(job, &end.lease) && job.kind == end.kind => Finished::Now,
        _ => Finished::Fenced,
    }
}

/// What an end without success is to the job: the event, the delay, the error for the history.
pub(super) fn ending(how: &Failed) -> (JobEvent, Duration, Option<&str>) {
    match how {
        Failed::Retry { delay, error } => (JobEvent::Postponed, *delay, Some(error)),
        Failed::GiveBack { delay, error } if delay.is_zero() => (JobEvent::Returned, *delay, error.as_deref()),
        Failed::GiveBack { delay, error } => (JobEvent::Postponed, *delay, error.as_deref()),
        Failed::Dead { error } => (JobEvent::Doomed, Duration::ZERO, Some(error)),
        Failed::Cancelled => (JobEvent::Stopped, Duration::ZERO, None),
    }
}

/// The states of the jobs that a bulk action may be done to, as far as the filter wants them.
pub(super) fn bulk_states(action: Bulk, filter: &JobFilter) -> Vec<JobState> {
    let mut allowed = match action {
        Bulk::Retry if filter.state.is_none() => vec![JobState::Dead],
        Bulk::Retry => queue::states_before(JobEvent::Revived),
        Bulk::Cancel => queue::states_before(JobEvent::Discarded),
    };
    if action == Bulk::Cancel && filter.kind != Some(JobKind::Sync) {
        allowed.push(JobState::Running);
    }
    allowed.retain(|state| filter.state.is_none_or(|wanted| wanted == *state));
    if filter.engine.is_some() {
        allowed.retain(|state| *state == JobState::Running); // nothing else is at an engine
    }
    allowed
}

/// Sync jobs are cancelled only by who names them (correctness.md 25); a retry loses nothing.
pub(super) fn bulk_takes(action: Bulk, filter: &JobFilter, kind: JobKind) -> bool {
    filter.kind.map_or(action == Bulk::Retry || kind != JobKind::Sync, |wanted| wanted == kind)
}

/// How long a job that could run since then has waited.
pub(super) fn waited(run_at_ms: i64, now_ms: i64) -> Duration {
    Duration::from_millis(u64::try_from(now_ms.saturating_sub(run_at_ms)).unwrap_or_default())
}

/// Why a sync job is not cancelled like others.
pub(super) fn is_sync(id: &str) -> Fault {
    Fault::rejected(format!("job {id} is a sync job: cancelling it leaves a gap in history, so it has to be discarded"))
}

/// Why an operator's retry is refused although the state allows it.
pub(super) fn key_taken(id: &str) -> Fault {
    Fault::rejected(format!("job {id} has a unique key, and another job with that key is waiting or running"))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::change::ClusterTime;

    fn step(first_seq: u64, last_seq: u64) -> Step {
        Step { first_seq, last_seq, time: ClusterTime { t: u32::try_from(last_seq).unwrap(), i: 1 }, wall_ms: None }
    }

    #[test]
    fn the_head_stops_at_the_first_hole() {
        let head = |steps: &[(u64, u64)]| advance(Head::default(), steps.iter().map(|(a, b)| step(*a, *b)));
        assert_eq!(head(&[]).0.seq, 0);
        assert_eq!(head(&[(1, 3), (4, 4), (5, 9)]).0.seq, 9);
        assert_eq!((head(&[(1, 3), (5, 9)]).0.seq, head(&[(1, 3), (5, 9)]).1), (3, false));
        assert_eq!(head(&[(2, 3)]).0.seq, 0);
        assert_eq!(head(&[(1, 3), (1, 6), (7, 7)]).0.seq, 7, "a compacted segment may reach back");
    }

    #[test]
    fn the_gravest_status_is_shown_and_every_reason_told() {
        let mut health = Health::default();
        assert_eq!(status(&health), (BranchStatus::Active, None));
        health.gap = Some((5, 9));
        assert_eq!(status(&health).0, BranchStatus::Gap);
        health.dead = Some(("j1".into(), "access denied".into()));
        assert_eq!(status(&health).0, BranchStatus::Stalled);
        health.failed = Some("oplog gone".into());
        let (shown, reason) = status(&health);
        assert_eq!(shown, BranchStatus::Failed);
        for word in ["oplog gone", "j1", "access denied", "5 to 9"] {
            assert!(reason.as_ref().unwrap().contains(word), "{reason:?} lacks {word}");
        }
        health.archived = true;
        assert_eq!(status(&health).0, BranchStatus::Archived);
    }

    proptest! {
        #[test]
        fn the_head_is_the_end_of_the_contiguous_prefix(lens in prop::collection::vec((1..5u64, any::<bool>()), 0..30)) {
            let (mut next, mut steps, mut expected, mut whole) = (1, Vec::new(), 0, true);
            for (len, present) in lens {
                let (first, last) = (next, next + len - 1);
                next += len;
                whole &= present;
                if present { steps.push(step(first, last)); }
                if whole { expected = last; }
            }
            prop_assert_eq!(advance(Head::default(), steps).0.seq, expected);
        }
    }
}
