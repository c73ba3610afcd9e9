//! The object of a branch in the interface (`--json`, REST), built from its rows.
//!
//! Owns: its shape. Does not own: printing (`cli`), the rows (`ledger`).

use serde::Serialize;

use super::point::{captured_until, rfc3339};
use crate::change::{ClusterTime, token_time};
use crate::fault::Result;
use crate::ledger::{Branch, BranchStatus, Capture, CaptureState, Fidelity, Ledger, Totals};

/// A branch as users see it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct BranchView {
    pub id: String,
    pub name: String,
    pub status: String,
    /// Why the status is not `active`.
    pub reason: Option<String>,
    pub parent: Option<String>,
    /// Absent until something is committed.
    pub head: Option<HeadView>,
    /// Every change up to this cluster time is committed.
    pub captured_until: Option<ClusterTime>,
    pub restorable: Option<RangeView>,
    pub totals: Totals,
    pub fidelity: Fidelity,
    pub source_db: String,
    pub capture: Option<CaptureState>,
}

/// The end of the committed history.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct HeadView {
    pub seq: u64,
    pub cluster_time: ClusterTime,
    /// Server's wall clock, RFC 3339.
    pub time: Option<String>,
}

/// Points between which a restore is possible.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct RangeView {
    pub from: String,
    pub to: String,
}

impl BranchView {
    /// Reads what is needed beside the branch's row. The position is read before the head was, so `captured_until` errs on the safe side.
    pub async fn read(ledger: &dyn Ledger, branch: &Branch, capture: Option<&Capture>) -> Result<Self> {
        let position = match capture {
            Some(capture) => Some((token_time(&capture.position.token)?, capture.position.next_seq)),
            None => None,
        };
        let next = ledger.segments(&branch.id, branch.head.seq + 1, 1).await?;
        let next_time = next.first().filter(|s| s.first_seq == branch.head.seq + 1).map(|s| s.first_time);
        let head = branch.head;
        Ok(Self {
            id: branch.id.clone(),
            name: branch.name.clone(),
            status: status_name(branch.status).to_string(),
            reason: branch.reason.clone(),
            parent: None,
            head: (head.seq > 0).then(|| HeadView { seq: head.seq, cluster_time: head.time, time: head.wall_ms.map(rfc3339) }),
            captured_until: captured_until(position, head.seq, head.time, next_time),
            restorable: (head.seq > 0).then(|| RangeView { from: "seq:1".into(), to: format!("seq:{}", head.seq) }),
            totals: branch.totals,
            fidelity: branch.fidelity,
            source_db: branch.source_db.clone(),
            capture: capture.map(|c| c.state),
        })
    }
}

/// The word of a status.
pub fn status_name(status: BranchStatus) -> &'static str {
    match status {
        BranchStatus::Active => "active",
        BranchStatus::Stalled => "stalled",
        BranchStatus::Gap => "gap",
        BranchStatus::Failed => "failed",
        BranchStatus::Archived => "archived",
    }
}
