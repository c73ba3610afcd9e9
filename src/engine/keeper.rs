//! What one engine, the leader, sees to for all branches: new bases, drills, branches whose time is over, and what deleted ones leave behind.
//!
//! Owns: what is due and when (pure: [`due`]), and asking for it by jobs. Does not own: the work (`jobs`), leadership (`lead`).
//!
//! Every job has a key of its own while it waits or runs, so asking again changes nothing; two that think they lead for a moment do no harm.

use std::time::{Duration, Instant};

use super::upkeep::Part;
use crate::config::BaseSettings;
use crate::fault::Result;
use crate::jobs::{cleanup, drill, snapshot};
use crate::ledger::{Base, BaseOrigin, BaseState, Branch, Capture, CaptureState, JobFilter, JobKind, JobState, SegmentRow, SharedLedger};
use crate::runtime::clock;

/// How often the branches that are captured are looked at: three small reads each.
const LOOK: Duration = Duration::from_secs(10);
/// So many times as long on an idle engine.
const LOOK_CALMLY: u32 = 3;
/// How often all branches are looked at, for those whose time is over: one read.
const LOOK_AT_ALL: Duration = Duration::from_secs(30);

/// How often buckets are searched for what was cut off, at least so long apart: a listing of each branch, and its rows.
const SWEEP: Duration = Duration::from_secs(3_600);
/// Dead jobs of a branch that are looked through.
const MAX_DEAD: usize = 50;

/// What is known of a branch that is captured.
#[derive(Debug, Clone)]
struct Seen {
    branch: Branch,
    capture: Capture,
    /// By seq.
    bases: Vec<Base>,
    /// What is lost behind the newest base that is not given up.
    loss: Option<SegmentRow>,
}

/// What it needs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Due {
    /// A copy of the source: history has lost something, or a copy was begun and nobody is at it.
    Copy,
    /// A fold of history.
    Fold,
    Drill,
}

/// Pure: `now_ms` is the server's.
fn due(seen: &Seen, settings: &BaseSettings, now_ms: i64) -> Vec<Due> {
    let mut all = Vec::new();
    if seen.capture.state != CaptureState::Running {
        return all;
    }
    let copying = seen.bases.iter().any(|base| base.state == BaseState::Copying && base.origin == BaseOrigin::Copy);
    let newest = seen.bases.iter().rfind(|base| base.state == BaseState::Complete);
    // The only one was given up: nothing can be restored until there is another. A child has those of its parent.
    let none = newest.is_none() && seen.branch.parent.is_none();
    if seen.loss.is_some() || copying || none {
        all.push(Due::Copy);
        return all; // what is folded or tried before that is over soon
    }
    let Some(newest) = newest else { return all };
    let since = |at_ms: i64| Duration::from_millis(u64::try_from(now_ms.saturating_sub(at_ms)).unwrap_or_default());
    let moved = seen.branch.head.seq > newest.seq;
    if moved && !settings.base_interval.is_zero() && since(newest.finished_ms.unwrap_or(newest.created_ms)) >= settings.base_interval {
        all.push(Due::Fold);
    }
    let tried = seen.branch.proven.as_ref().map_or(seen.branch.created_ms, |proven| proven.at_ms);
    if !settings.drill_interval.is_zero() && seen.branch.head.seq > 0 && since(tried) >= settings.drill_interval {
        all.push(Due::Drill);
    }
    all
}

impl Part {
    pub(super) async fn keeper_loop(self, settings: BaseSettings) {
        let mut all_seen: Option<Instant> = None;
        let mut swept = clock::now();
        while self.pause_calmly(LOOK, LOOK_CALMLY).await {
            if !self.leads() {
                continue;
            }
            let sweep = swept.elapsed() >= SWEEP.max(settings.delete_grace);
            if sweep {
                swept = clock::now();
            }
            if let Err(fault) = look(&self.ledger, &settings, sweep).await {
                tracing::debug!(error = %fault, "could not see to the bases");
            }
            if all_seen.is_none_or(|at| at.elapsed() >= LOOK_AT_ALL) {
                all_seen = Some(clock::now());
                if let Err(fault) = look_at_all(&self.ledger, &settings).await {
                    tracing::debug!(error = %fault, "could not see to branches whose time is over");
                }
            }
        }
    }
}

/// `sweep`: what has been cut off is looked for too.
async fn look(ledger: &SharedLedger, settings: &BaseSettings, sweep: bool) -> Result<()> {
    let now_ms = ledger.now_ms().await?;
    for capture in ledger.captures().await? {
        if capture.state != CaptureState::Running {
            continue;
        }
        let Some(branch) = ledger.branch(&capture.branch).await? else { continue };
        let bases = ledger.bases(&branch.id).await?;
        let before_ms = now_ms.saturating_sub(i64::try_from(settings.delete_grace.as_millis()).unwrap_or(i64::MAX));
        // What was cut off without a row is looked for as often.
        if sweep || bases.iter().any(|base| base.was_given_up_by(before_ms)) {
            cleanup::enqueue(ledger, &branch.id).await?;
        }
        let newest = bases.iter().filter(|base| base.state != BaseState::Abandoned).map(|base| base.seq).max();
        let from = newest.unwrap_or(0).max(branch.first_own_seq() - 1) + 1;
        let loss = ledger.losses(&branch.id, from, 1).await?.pop();
        let seen = Seen { branch, capture, bases, loss };
        for due in due(&seen, settings, now_ms) {
            let id = &seen.branch.id;
            if is_given_up(ledger, id, due).await? {
                continue;
            }
            let new = match due {
                Due::Copy => snapshot::enqueue_new(ledger, id).await?,
                Due::Fold => snapshot::enqueue_fold(ledger, id).await?,
                Due::Drill => drill::enqueue(ledger, id).await?,
            };
            if new {
                tracing::info!(branch = %seen.branch.name, ?due, "asked for a job");
            }
        }
    }
    Ok(())
}

/// A job of that kind has failed for good: an operator retries or cancels it, and to ask again would only make more of them.
async fn is_given_up(ledger: &SharedLedger, branch: &str, due: Due) -> Result<bool> {
    let (kind, key) = match due {
        Due::Copy => (JobKind::Snapshot, snapshot::copy_key(branch)),
        Due::Fold => (JobKind::Snapshot, snapshot::fold_key(branch)),
        Due::Drill => (JobKind::Drill, drill::unique_key(branch)),
    };
    let dead = JobFilter { state: Some(JobState::Dead), kind: Some(kind), branch: Some(branch.to_owned()), ..JobFilter::default() };
    Ok(ledger.jobs(&dead, MAX_DEAD).await?.iter().any(|job| job.unique_key.as_ref() == Some(&key)))
}

/// Deletes branches whose time is over, and asks for the removal of what deleted ones hold once their grace is over.
async fn look_at_all(ledger: &SharedLedger, settings: &BaseSettings) -> Result<()> {
    let now_ms = ledger.now_ms().await?;
    let grace_ms = i64::try_from(settings.delete_grace.as_millis()).unwrap_or(i64::MAX);
    for branch in ledger.branches_due(now_ms, now_ms.saturating_sub(grace_ms)).await? {
        if branch.deleted_ms.is_some() || branch.expires_ms.is_some() {
            cleanup::enqueue(ledger, &branch.id).await?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::change::ClusterTime;
    use crate::ledger::{Head, Proven, SegmentKind, Source};

    const HOUR_MS: i64 = 3_600_000;

    fn seen() -> Seen {
        let mut branch = Branch::new("b", "p/b", "d");
        branch.head = Head { seq: 10, ..Head::default() };
        let source = Source::new(None, "d".into(), "rs".into());
        let capture = Capture::new("c", &branch, source, bson::rawdoc! {}, 11);
        Seen { bases: vec![Base::empty("x", "b", ClusterTime::default(), String::new())], branch, capture, loss: None }
    }

    fn settings() -> BaseSettings {
        BaseSettings { drill_interval: Duration::from_secs(2 * 3_600), ..BaseSettings::default() }
    }

    fn loss() -> SegmentRow {
        let row = bson::rawdoc! {
            "_id": "k", "branch": "b", "kind": "gap", "epoch": 1i64, "level": 0, "first_seq": 5i64, "last_seq": 5i64,
            "first_time": {"t": 1, "i": 1}, "last_time": {"t": 2, "i": 1}, "last_wall_ms": null, "starts_inside": false, "ends": "closed",
            "has_ddl": false, "holes": 1i64, "raw_bytes": 0i64, "stored_bytes": 1i64, "sha256": "", "committed_ms": 0i64,
        };
        let row: SegmentRow = bson::deserialize_from_slice(row.as_bytes()).unwrap();
        assert_eq!(row.kind, SegmentKind::Gap);
        row
    }

    #[test]
    fn what_is_lost_asks_for_a_copy_and_for_nothing_else() {
        let lost = Seen { loss: Some(loss()), ..seen() };
        assert_eq!(due(&lost, &settings(), 100 * 24 * HOUR_MS), [Due::Copy]);
        let mut paused = lost;
        paused.capture.state = CaptureState::Paused;
        assert_eq!(due(&paused, &settings(), 100 * 24 * HOUR_MS), [], "nobody reads the source");
    }

    #[test]
    fn a_copy_that_was_begun_is_asked_for_until_it_is_done() {
        let mut seen = seen();
        (seen.bases[0].state, seen.bases[0].origin) = (BaseState::Copying, BaseOrigin::Copy);
        assert_eq!(due(&seen, &settings(), 100 * 24 * HOUR_MS), [Due::Copy]);
        seen.bases[0].state = BaseState::Abandoned;
        assert_eq!(due(&seen, &settings(), 100 * 24 * HOUR_MS), [Due::Copy], "there is nothing to fold onto");
        seen.branch.parent = Some(crate::ledger::Parent { id: "a".into(), seq: 4, time: ClusterTime::default() });
        assert_eq!(due(&seen, &settings(), 100 * 24 * HOUR_MS), [], "its parent has one");
    }

    #[test]
    fn folds_and_drills_come_at_their_intervals_and_only_where_something_happened() {
        let mut seen = seen();
        assert_eq!(due(&seen, &settings(), HOUR_MS), []);
        assert_eq!(due(&seen, &settings(), 2 * HOUR_MS), [Due::Drill]);
        seen.branch.proven = Some(Proven { seq: 1, time: ClusterTime::default(), at_ms: HOUR_MS, with: String::new(), documents: 0 });
        assert_eq!(due(&seen, &settings(), 2 * HOUR_MS), []);
        assert_eq!(due(&seen, &settings(), 24 * HOUR_MS), [Due::Fold, Due::Drill]);
        seen.bases[0].seq = 10;
        assert_eq!(due(&seen, &settings(), 24 * HOUR_MS), [Due::Drill], "the base is at the head");
        let off = BaseSettings { base_interval: Duration::ZERO, drill_interval: Duration::ZERO, ..settings() };
        seen.bases[0].seq = 0;
        assert_eq!(due(&seen, &off, i64::MAX), []);
    }
}
