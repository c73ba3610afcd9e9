//! Owns: the rows of a branch, its capture and its bases, from `branch.json` and the chain that was chosen. Pure.
//! Does not own: which segments those are (`chain`), reading (`read`, `bases`).

use bson::RawDocumentBuf;

use super::bases::BaseFound;
use super::chain::Found;
use crate::branch::documents::{BranchDocument, CaptureDocument};
use crate::ledger::{Base, Branch, Capture, CaptureState, Head, Position, SegmentKind, Totals};

/// What history adds up to.
pub(super) fn totals(chain: &[Found]) -> Totals {
    let mut totals = Totals::default();
    for of in chain {
        totals.changes += if of.kind == SegmentKind::Changes { of.name.last - of.name.first + 1 } else { 0 };
        totals.raw_bytes += of.raw_bytes;
        totals.stored_bytes += of.stored_bytes;
        totals.segments += 1;
    }
    totals
}

pub(super) fn head(of: &BranchDocument, chain: &[Found]) -> Head {
    match (chain.last(), &of.parent) {
        (Some(last), _) => Head { seq: last.name.last, time: last.last_time, wall_ms: last.last_wall_ms },
        (None, Some(fork)) => Head { seq: fork.seq, time: fork.time, wall_ms: None },
        (None, None) => Head::default(),
    }
}

/// The branch as the metadata had it, with the name that it gets.
pub(super) fn branch(of: &BranchDocument, name: &str, chain: &[Found], taken: u64) -> Branch {
    Branch {
        status: of.status,
        fidelity: of.fidelity,
        uncovered: of.uncovered.clone(),
        // The highest that anything of the branch is of.
        epoch: chain.iter().map(|found| found.name.epoch).fold(of.epoch.max(taken), u64::max),
        head: head(of, chain),
        totals: totals(chain),
        parent: of.parent.clone(),
        expires_ms: of.expires_ms,
        deleted_ms: of.deleted_ms,
        drop_db: of.drop_db,
        created_ms: of.created_ms,
        ..Branch::new(&of.id, name, &of.db)
    }
}

/// Where a capture goes on.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Goes {
    pub(super) token: RawDocumentBuf,
    pub(super) last_txn: Option<RawDocumentBuf>,
}

/// Its capture, at the end of history: what was in the queue is read from the source again.
pub(super) fn capture(of: &CaptureDocument, branch: &Branch, goes: Goes, now_ms: i64) -> Capture {
    let fresh = Capture::new(&of.id, branch, of.source.clone(), goes.token, branch.head.seq + 1);
    let reason = (of.state == CaptureState::Failed).then(|| "it had failed before the metadata was rebuilt".to_owned());
    let position = Position { last_txn: goes.last_txn, ..fresh.position.clone() };
    Capture { state: of.state, reason, position, checkpoint_ms: now_ms, ..fresh }
}

/// Those that history still leads to: behind its end the same numbers will be given to other changes.
pub(super) fn kept(bases: Vec<BaseFound>, head: u64) -> (Vec<Base>, Vec<Base>) {
    bases.into_iter().map(|found| found.base).partition(|base| base.seq <= head)
}
