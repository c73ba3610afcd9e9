//! Owns: a branch as users see it, one object for `--json` and REST (docs: the command line).
//! Does not own: the rows (`ledger`), what `captured_until` means (`point`).

use schemars::JsonSchema;
use serde::Serialize;

use super::line::{Line, Stretch};
use super::point::rfc3339;
use crate::change::ClusterTime;
use crate::fault::Result;
use crate::ledger::{
    Base, BaseOrigin, BaseState, Branch, BranchStatus, Fidelity, Head, JobFilter, JobKind, JobState, Ledger, Proven, SegmentKind,
    SegmentRow, Totals, is_experimental,
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
    /// `project/branch@seq:N` of a fork.
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
    /// The latest stretch of which every point can be restored; absent while there is none.
    pub restorable: Option<Restorable>,
    /// Those before it, each ended by a loss.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub earlier: Vec<Restorable>,
    /// A base that is being copied from the source.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub base: Option<BaseView>,
    /// The latest restore that was made and compared.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub proven: Option<Proven>,
    pub created: String,
    /// When it deletes itself.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub expires: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub deleted: Option<String>,
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

impl HeadView {
    pub(super) fn of(head: &Head) -> Self {
        let time = (head.seq > 0).then(|| rfc3339(head.wall_ms.unwrap_or_else(|| i64::from(head.time.t) * 1000)));
        Self { seq: head.seq, cluster_time: head.time, time }
    }
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
    /// Of a branch whose line was read, with what of it can be restored.
    fn new(line: &Line, stretches: &[Stretch]) -> Self {
        let branch = &line.own().branch;
        let (last, earlier) = match stretches.split_last() {
            Some((last, earlier)) => (Some(last), earlier),
            None => (None, &[][..]),
        };
        let ends = last.and_then(|stretch| Some(why_it_ends(stretch.loss.as_ref()?, stretch.to)));
        let reason = branch.reason.clone().into_iter().chain(ends).reduce(|a, b| format!("{a}; {b}"));
        let parent = branch.parent.as_ref().map(|fork| {
            let name = line.parts().iter().rev().nth(1).map_or(fork.id.as_str(), |part| part.branch.name.as_str());
            format!("{name}@seq:{}", fork.seq)
        });
        Self {
            id: branch.id.clone(),
            name: branch.name.clone(),
            status: branch.status,
            reason,
            parent,
            fidelity: branch.fidelity,
            uncovered: branch.uncovered.clone(),
            experimental: line.capture.as_ref().is_some_and(|c| is_experimental(&c.source.identity)),
            head: HeadView::of(&branch.head),
            captured_until: line.captured_until,
            restorable: last.map(Restorable::from),
            earlier: earlier.iter().map(Restorable::from).collect(),
            base: None,
            proven: branch.proven.clone(),
            created: rfc3339(branch.created_ms),
            expires: branch.expires_ms.map(rfc3339),
            deleted: branch.deleted_ms.map(rfc3339),
            totals: branch.totals.into(),
        }
    }

    /// Of a branch by name or id.
    pub async fn load(ledger: &dyn Ledger, name: &str) -> Result<Self> {
        let line = Line::open(ledger, name).await?;
        let stretches = line.stretches(ledger).await?;
        let mut view = Self::new(&line, &stretches);
        let branch = &line.own().branch;
        let bases = ledger.bases(&branch.id).await?;
        view.base = bases.iter().rev().find(|base| base.state == BaseState::Copying && base.origin == BaseOrigin::Copy).map(BaseView::from);
        let mut more = Vec::new();
        if let Some(base) = &view.base {
            more.push(base.to_string());
        }
        if let Some(capture) = &line.capture {
            more.extend(waits_for(ledger, branch, capture.position.next_seq).await?);
        }
        view.reason = view.reason.into_iter().chain(more).reduce(|a, b| format!("{a}; {b}"));
        Ok(view)
    }
}

impl From<&Stretch> for Restorable {
    fn from(stretch: &Stretch) -> Self {
        Self { from: stretch.from.to_string(), to: format!("seq:{}", stretch.to) }
    }
}

/// A base that is being copied.
#[derive(Debug, Clone, PartialEq, Serialize, JsonSchema)]
pub struct BaseView {
    pub id: String,
    pub documents: u64,
    pub bytes: u64,
    /// What the source estimates there is; 0 while it is not known.
    pub expected_documents: u64,
    pub expected_bytes: u64,
    pub percent: f64,
    /// What it waits for.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
}

impl From<&Base> for BaseView {
    fn from(base: &Base) -> Self {
        let whole = base.expected_bytes.max(base.raw_bytes).max(1);
        #[allow(clippy::cast_precision_loss)] // for display
        let percent = if base.expected_bytes == 0 { 0.0 } else { (1_000.0 * base.raw_bytes as f64 / whole as f64).floor() / 10.0 };
        Self {
            id: base.id.clone(),
            documents: base.documents,
            bytes: base.raw_bytes,
            expected_documents: base.expected_documents,
            expected_bytes: base.expected_bytes,
            percent,
            reason: base.reason.clone(),
        }
    }
}

impl std::fmt::Display for BaseView {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "base copy {} %, {} of about {} documents", self.percent, self.documents, self.expected_documents)?;
        match &self.reason {
            Some(reason) => write!(f, ", waiting: {reason}"),
            None => Ok(()),
        }
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
        SegmentKind::Changes | SegmentKind::Base => {
            format!("{} changes from seq:{first} to seq:{last} that this version cannot apply", loss.holes)
        }
    };
    format!("points after seq:{boundary} are behind {what}: restoring one needs --across-gap")
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::time::Duration;

    use super::*;
    use crate::branch::fold::FoldOptions;
    use crate::branch::point::Bound;
    use crate::branch::replay::fold;
    use crate::branch::testing::{Bed, Change, ID, NAME, lease};
    use crate::change::Op;
    use crate::ledger::{ClaimRequest, Ends, Failed, JobKind};
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
            let stretch = view.restorable.unwrap();
            assert_eq!((stretch.from.as_str(), stretch.to), ("seq:1", format!("seq:{to}")), "{before} {lost}");
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
        let loss = bed.ledger.losses(ID, 0, 1).await.unwrap().remove(0);
        assert_eq!((loss.first_seq, loss.holes), (3, 1));
        let view = BranchView::load(&*bed.ledger, NAME).await.unwrap();
        assert_eq!(view.restorable.unwrap().to, "seq:2");
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

    #[tokio::test]
    async fn the_json_is_the_documented_one() {
        let mut bed = Bed::new().await;
        bed.add("..", Ends::Closed).await;
        let view = BranchView::load(&*bed.ledger, NAME).await.unwrap();
        let json = serde_json::to_value(&view).unwrap();
        assert_eq!(
            (&json["id"], &json["name"], &json["status"], &json["parent"]),
            (&json!("b1"), &json!("test/main"), &json!("active"), &json!(null))
        );
        assert_eq!(
            (&json["fidelity"], &json["head"]["seq"], &json["head"]["cluster_time"]),
            (&json!("exact"), &json!(2), &json!({"t": 102, "i": 1}))
        );
        assert_eq!((&json["head"]["time"], &json["captured_until"]), (&json!("1970-01-01T00:01:42Z"), &json!({"t": 102, "i": 0})));
        assert_eq!(json["restorable"], json!({"from": "seq:1", "to": "seq:2"}));
        assert_eq!((&json["totals"]["changes"], &json["totals"]["segments"]), (&json!(2), &json!(1)));
        let absent = ["reason", "uncovered", "experimental", "earlier", "base", "proven", "expires", "deleted"];
        assert!(absent.iter().all(|field| json.get(field).is_none()), "{json}");
    }
}
