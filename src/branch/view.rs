//! Owns: a branch as users see it, one object for `--json` and REST (docs: the command line).
//! Does not own: the rows (`ledger`), what `captured_until` means (`point`).

use serde::Serialize;

use super::point::{captured_until, rfc3339};
use crate::change::{ClusterTime, token_time};
use crate::fault::{Fault, Result};
use crate::ledger::{Branch, BranchStatus, Ends, Fidelity, Ledger, Totals, is_experimental};

/// The JSON object of a branch.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct BranchView {
    pub id: String,
    pub name: String,
    pub status: BranchStatus,
    /// Why it is not `active`.
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
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct HeadView {
    pub seq: u64,
    pub cluster_time: ClusterTime,
    /// RFC 3339 by the server's clock; absent before the first change.
    pub time: Option<String>,
}

/// Points between which a restore works.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Restorable {
    pub from: String,
    pub to: String,
}

/// What a branch adds up to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
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
    /// `position` is the time of the checkpoint's token and the next seq; `boundary` the last known end of a transaction at or before the head.
    pub fn new(branch: &Branch, position: Option<(ClusterTime, u64)>, boundary: u64) -> Self {
        let head = branch.head;
        let until = captured_until(position, head.seq, head.time, None);
        let time = (head.seq > 0).then(|| rfc3339(head.wall_ms.unwrap_or_else(|| i64::from(head.time.t) * 1000)));
        let from = format!("seq:{}", u64::from(boundary > 0));
        Self {
            id: branch.id.clone(),
            name: branch.name.clone(),
            status: branch.status,
            reason: branch.reason.clone(),
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
        let boundary = boundary(ledger, &branch, position).await?;
        Ok(Self { experimental, ..Self::new(&branch, position, boundary) })
    }
}

/// The last end of a transaction that rows and position prove (correctness.md 6). Without reading objects it may be a segment short of
/// what a restore finds, never past it.
async fn boundary(ledger: &dyn Ledger, branch: &Branch, position: Option<(ClusterTime, u64)>) -> Result<u64> {
    let head = branch.head;
    let until = captured_until(position, head.seq, head.time, None);
    let mut end = head.seq;
    let mut closed = until.is_some_and(|until| until >= head.time);
    while end > 0 && !closed {
        let Some(row) = ledger.segments(&branch.id, end, 1).await?.into_iter().next() else { break };
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
    use super::*;
    use crate::ledger::Head;
    use serde_json::json;

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
            settled_bytes: 0,
            created_ms: 0,
        };
        let view = BranchView::new(&branch, Some((ClusterTime { t: 1_795_467_790, i: 2 }, 81_235)), 81_234);
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
