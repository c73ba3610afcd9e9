//! Owns: a branch as users see it, one object for `--json` and REST (docs: the command line).
//! Does not own: the rows (`ledger`), what `captured_until` means (`point`).

use schemars::JsonSchema;
use serde::Serialize;

use super::point::{captured_until, rfc3339};
use crate::change::{ClusterTime, token_time};
use crate::fault::{Fault, Result};
use crate::ledger::{
    Branch, BranchStatus, Ends, Fidelity, JobFilter, JobKind, JobState, Ledger, SegmentKind, SegmentRow, Totals, is_experimental,
};

/// The JSON object of a branch.
#[derive(Debug, Clone, PartialEq, Serialize, JsonSchema)]
pub struct BranchView {
    pub id: String,
    pub name: String,
    pub status: BranchStatus,
    /// Why it is not `active`; where it is, what its head waits for.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// `project/branch@seq:N` of a fork; none so far.
    pub parent: Option<String>,
    pub fidelity: Fidelity,
    /// What history does not hold, each with the reason (correctness.md 2); absent when it holds everything.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub uncovered: Vec<String>,
    /// The source is a sharded cluster: the promises are for replica sets (correctness.md 8). Absent when it is not.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub experimental: bool,
    pub head: HeadView,
    /// Every change up to this time is committed.
    pub captured_until: Option<ClusterTime>,
    pub restorable: Restorable,
    pub totals: TotalsView,
}

/// The end of the committed history.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, JsonSchema)]
pub struct HeadView {
    pub seq: u64,
    pub cluster_time: ClusterTime,
    /// RFC 3339 by the server's clock; absent before the first change.
    pub time: Option<String>,
}

/// Points between which a restore works.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, JsonSchema)]
pub struct Restorable {
    pub from: String,
    pub to: String,
}

/// What a branch adds up to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, JsonSchema)]
pub struct TotalsView {
    pub changes: u64,
    pub raw_bytes: u64,
    pub stored_bytes: u64,
    pub segments: u64,
}

impl From<Totals> for TotalsView {
    fn from(t: Totals) -> Self {
        Self { changes: t.changes, raw_bytes: t.raw_bytes, stored_bytes: t.stored_bytes, segments: t.segments }
    }
}

impl BranchView {
    /// `position` is the time of the checkpoint's token and the next seq; `boundary` the last known end of a transaction at or before the head,
    /// and before `loss`, the first segment that a restore does not cross by itself.
    pub fn new(branch: &Branch, position: Option<(ClusterTime, u64)>, boundary: u64, loss: Option<&SegmentRow>) -> Self {
        let head = branch.head;
        let until = captured_until(position, head.seq, head.time, None);
        let time = (head.seq > 0).then(|| rfc3339(head.wall_ms.unwrap_or_else(|| i64::from(head.time.t) * 1000)));
        let from = format!("seq:{}", u64::from(boundary > 0));
        let reasons = branch.reason.clone().into_iter().chain(loss.map(|row| why_it_ends(row, boundary)));
        let reason = reasons.reduce(|a, b| format!("{a}; {b}"));
        Self {
            id: branch.id.clone(),
            name: branch.name.clone(),
            status: branch.status,
            reason,
            parent: None,
            fidelity: branch.fidelity,
            uncovered: branch.uncovered.clone(),
            experimental: false,
            head: HeadView { seq: head.seq, cluster_time: head.time, time },
            captured_until: until,
            restorable: Restorable { from, to: format!("seq:{boundary}") },
            totals: branch.totals.into(),
        }
    }

    /// Reads position, then branch, by name or id.
    pub async fn load(ledger: &dyn Ledger, name: &str) -> Result<Self> {
        let missing = || Fault::missing(format!("there is no branch {name:?}"));
        let id = match ledger.branch_named(name).await? {
            Some(branch) => branch.id,
            None => ledger.branch(name).await?.ok_or_else(missing)?.id,
        };
        let (mut position, mut experimental) = (None, false);
        if let Some(capture) = ledger.captures().await?.into_iter().find(|c| c.branch == id) {
            experimental = is_experimental(&capture.source.identity);
            if let Some((token, next_seq)) = ledger.position(&capture.id).await? {
                position = Some((token_time(&token)?, next_seq));
            }
        }
        let branch = ledger.branch(&id).await?.ok_or_else(missing)?;
        let loss = ledger.first_loss(&id).await?.filter(|row| row.first_seq <= branch.head.seq);
        let boundary = match &loss {
            Some(row) => boundary(ledger, &id, row.first_seq - 1, !row.starts_inside).await?,
            None => {
                let until = captured_until(position, branch.head.seq, branch.head.time, None);
                let closed = until.is_some_and(|until| until >= branch.head.time);
                boundary(ledger, &id, branch.head.seq, closed).await?
            }
        };
        let mut view = Self { experimental, ..Self::new(&branch, position, boundary, loss.as_ref()) };
        if let Some((_, next_seq)) = position
            && let Some(waits) = waits_for(ledger, &branch, next_seq).await?
        {
            view.reason = Some(view.reason.map_or_else(|| waits.clone(), |reason| format!("{reason}; {waits}")));
        }
        Ok(view)
    }
}

/// Why the head of a branch stands still although nothing is lost: the last error of the oldest job that waits, which will be run again. `next_seq` is
/// that of its capture: a branch with nothing in the queue costs no read, any other an indexed one for each state.
///
/// # Errors
/// Those of the ledger.
pub async fn waits_for(ledger: &dyn Ledger, branch: &Branch, next_seq: u64) -> Result<Option<String>> {
    // Behind a dead job the others' errors explain nothing; the status names that job.
    if next_seq <= branch.head.seq.saturating_add(1) || branch.status == BranchStatus::Stalled {
        return Ok(None);
    }
    let mut oldest = None;
    for state in [JobState::Scheduled, JobState::Ready, JobState::Running] {
        let filter = JobFilter { state: Some(state), kind: Some(JobKind::Sync), branch: Some(branch.id.clone()), ..JobFilter::default() };
        let first = ledger.jobs(&filter, 1).await?.pop();
        oldest = oldest.into_iter().chain(first).min_by(|a, b| a.id.cmp(&b.id));
    }
    let Some((job, spec)) = oldest.as_ref().and_then(|job| Some((job, job.sync.as_ref()?))) else { return Ok(None) };
    let told = |error: &str| format!("waiting at seq:{}, job {} is run again by itself: {error}", spec.first_seq, job.id);
    Ok(job.errors.last().map(|last| told(&last.error)))
}

fn why_it_ends(loss: &SegmentRow, boundary: u64) -> String {
    let (first, last) = (loss.first_seq, loss.last_seq);
    let what = match loss.kind {
        SegmentKind::Gap => format!("the gap at seq:{first} to seq:{last}"),
        SegmentKind::Changes => format!("{} changes from seq:{first} to seq:{last} that this version cannot apply", loss.holes),
    };
    format!("points after seq:{boundary} are behind {what}: restoring one needs --across-gap")
}

/// The last end of a transaction at or before `end` that rows prove, or `end` itself where it is `closed` (correctness.md 6). Without reading
/// objects it may be a segment short of what a restore finds, never past it.
async fn boundary(ledger: &dyn Ledger, branch: &str, mut end: u64, mut closed: bool) -> Result<u64> {
    while end > 0 && !closed {
        let Some(row) = ledger.segments(branch, end, 1).await?.into_iter().next() else { break };
        if row.last_seq == end && row.ends == Ends::Closed {
            break;
        }
        // What is before a segment that does not start inside a transaction is closed.
        closed = !row.starts_inside;
        end = row.first_seq.saturating_sub(1).min(end);
    }
    Ok(end)
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::time::Duration;

    use super::*;
    use crate::branch::fold::FoldOptions;
    use crate::branch::point::Bound;
    use crate::branch::restore::fold;
    use crate::branch::testing::{Bed, Change, ID, NAME, lease};
    use crate::change::Op;
    use crate::ledger::{ClaimRequest, Failed, Head, JobKind};
    use serde_json::json;

    #[tokio::test]
    async fn what_is_restorable_ends_before_the_first_gap_and_the_reason_is_said() {
        // The gap begins with a transaction, or inside of one that began before it.
        for (before, ends, lost, to) in [("..", Ends::Closed, ".a", 3), (".bb", Ends::Open, "b.", 1)] {
            let mut bed = Bed::new().await;
            bed.add(".", Ends::Closed).await;
            bed.add(before, ends).await;
            bed.lose(lost, Ends::Open).await;
            bed.add("a...", Ends::Closed).await;
            bed.lose("..", Ends::Closed).await;
            let view = BranchView::load(&*bed.ledger, NAME).await.unwrap();
            assert_eq!(view.status, BranchStatus::Gap);
            assert_eq!((view.restorable.from.as_str(), view.restorable.to), ("seq:1", format!("seq:{to}")), "{before} {lost}");
            let reason = view.reason.unwrap();
            assert!(reason.contains(&format!("points after seq:{to} are behind the gap at seq:")), "{reason}");
        }
    }

    #[tokio::test]
    async fn what_is_restorable_ends_before_an_event_that_nobody_knows_and_a_restore_agrees() {
        let mut bed = Bed::new().await;
        bed.add("..", Ends::Closed).await;
        let change = |op, id| Change { txn: '.', op, id };
        let job = bed.queue_changes(&[change(Op::Insert, 3), change(Op::Event, 4), change(Op::Insert, 5)], Ends::Closed).await;
        bed.commit(&job).await;
        let loss = bed.ledger.first_loss(ID).await.unwrap().unwrap();
        assert_eq!((loss.first_seq, loss.holes), (3, 1));
        let view = BranchView::load(&*bed.ledger, NAME).await.unwrap();
        assert_eq!(view.restorable.to, "seq:2");
        let reason = view.reason.unwrap();
        assert!(reason.contains("1 changes from seq:3 to seq:5 that this version cannot apply"), "{reason}");
        let history = bed.history().await;
        for (until, works) in [(2, true), (3, false), (5, false)] {
            let options =
                FoldOptions { budget: 1 << 20, dir: std::env::temp_dir(), expected: 0, until: Bound::Seq(until), tolerant: false };
            assert_eq!(fold(&history, &options, Arc::default()).await.is_ok(), works, "seq:{until}");
        }
    }

    #[tokio::test]
    async fn a_head_that_waits_for_the_store_says_so_and_stays_active() {
        let mut bed = Bed::new().await;
        bed.add("..", Ends::Closed).await;
        let reason = async |bed: &Bed| {
            let view = BranchView::load(&*bed.ledger, NAME).await.unwrap();
            assert_eq!(view.status, BranchStatus::Active);
            view.reason
        };
        assert_eq!(reason(&bed).await, None);
        let job = bed.queue("..", Ends::Closed).await;
        assert_eq!(reason(&bed).await, None, "a job that runs and has not failed is nothing to tell");
        // Given back until later, given back at once, and in work again.
        let give_back = |seconds| Failed::GiveBack { delay: Duration::from_secs(seconds), error: Some("s3://shop is away".into()) };
        assert!(bed.ledger.fail(&lease(&job), &give_back(60)).await.unwrap());
        let told = reason(&bed).await.unwrap();
        assert!(told.contains("waiting at seq:3") && told.contains(&job.id) && told.contains("s3://shop is away"), "{told}");
        assert!(bed.ledger.retry_job(&job.id).await.unwrap());
        assert_eq!(reason(&bed).await.as_ref(), Some(&told));
        let job = bed.ledger.claim(&ClaimRequest::new("e1", &[JobKind::Sync], 1)).await.unwrap().remove(0);
        assert_eq!(reason(&bed).await.as_ref(), Some(&told));
        bed.commit(&job).await;
        assert_eq!(reason(&bed).await, None);
        // Behind a dead job nothing else is told.
        let (dead, later) = (bed.queue(".", Ends::Closed).await, bed.queue(".", Ends::Closed).await);
        bed.kill(&dead).await;
        assert!(bed.ledger.fail(&lease(&later), &give_back(60)).await.unwrap());
        let view = BranchView::load(&*bed.ledger, NAME).await.unwrap();
        assert!(view.status == BranchStatus::Stalled && !view.reason.as_ref().unwrap().contains("waiting"), "{view:?}");
    }

    #[test]
    fn the_json_is_the_documented_one() {
        let branch = Branch {
            id: "i".into(),
            name: "shop/main".into(),
            source_db: "shop".into(),
            status: BranchStatus::Active,
            reason: None,
            fidelity: Fidelity::Exact,
            uncovered: Vec::new(),
            epoch: 1,
            head: Head { seq: 81_234, time: ClusterTime { t: 1_795_467_772, i: 11 }, wall_ms: Some(1_795_467_772_123) },
            totals: Totals { changes: 81_234, raw_bytes: 51_234_567, stored_bytes: 2_345_678, segments: 97 },
            base: "b".into(),
            base_time: ClusterTime::default(),
            base_sha256: String::new(),
            settled_bytes: 0,
            created_ms: 0,
        };
        let view = BranchView::new(&branch, Some((ClusterTime { t: 1_795_467_790, i: 2 }, 81_235)), 81_234, None);
        let expected = json!({"id": "i", "name": "shop/main", "status": "active", "parent": null, "fidelity": "exact",
            "head": {"seq": 81_234, "cluster_time": {"t": 1_795_467_772_u32, "i": 11}, "time": "2026-11-23T21:02:52Z"},
            "captured_until": {"t": 1_795_467_790_u32, "i": 1},
            "restorable": {"from": "seq:1", "to": "seq:81234"},
            "totals": {"changes": 81_234, "raw_bytes": 51_234_567, "stored_bytes": 2_345_678, "segments": 97}});
        assert_eq!(serde_json::to_value(&view).unwrap(), expected);
        let marked = BranchView { uncovered: vec!["x: why".into()], experimental: true, ..view };
        let marked = serde_json::to_value(&marked).unwrap();
        assert_eq!((&marked["uncovered"], &marked["experimental"]), (&json!(["x: why"]), &json!(true)));
    }
}
