//! Making a branch from any point of any branch: one document and one small object, whatever the size of what it shares (design: a branch is a pointer).
//!
//! Owns: where a fork may be, and the order of the two writes. Does not own: the transaction (`ledger`), giving a branch a database (`checkout`).

use std::time::Duration;

use sha2::{Digest, Sha256};
use tokio_util::sync::CancellationToken;

use super::documents::{self, BranchDocument};
use super::history::{History, Located};
use super::layout::{self, BranchName};
use super::point::Point;
use crate::fault::{Fault, Kind, Result};
use crate::ledger::{Branch, Head, Parent, SharedLedger};
use crate::runtime::{clock, random};
use crate::store::{PutOutcome, PutTag, RetryPolicy, Store, put_idempotent};

/// Forks a branch off `from` at a point. `ttl`: it deletes itself after that.
pub async fn fork(from: &History, name: &str, at: Point, ttl: Option<Duration>) -> Result<Branch> {
    let name = BranchName::parse(name)?;
    let (at, is_sound) = place(from, at).await?;
    let based =
        from.base_for(&at).ok_or_else(|| Fault::rejected(format!("seq:{} is before every base of {}", at.seq, from.branch.name)))?;
    if !is_sound {
        from.refuse_loss(based, at.seq).await?;
    }
    // The branch that holds the point: one further down the line may be deleted without it.
    let parts = from.line().parts();
    let parent = &parts[from.line().part_of(at.seq)].branch;
    let time = at.time.unwrap_or_default().max(based.base.consistent_at);
    let now_ms = clock::wall_ms();
    let branch = Branch {
        parent: Some(Parent { id: parent.id.clone(), seq: at.seq, time }),
        head: Head { seq: at.seq, time, wall_ms: None },
        fidelity: parent.fidelity,
        uncovered: parent.uncovered.clone(),
        // For the bucket; in the metadata both are by the server's clock.
        created_ms: now_ms,
        expires_ms: ttl.map(|ttl| now_ms.saturating_add(i64::try_from(ttl.as_millis()).unwrap_or(i64::MAX))),
        ..Branch::new(&random::id(), name.as_str(), &parent.source_db)
    };
    if name.project() != from.project() {
        return Err(Fault::config(format!(
            "{} is of another project than {}: a branch shares objects with its parent, which are kept by project",
            name.as_str(),
            from.branch.name
        )));
    }
    store(from.ledger(), from.store(), &branch, ttl).await
}

/// The head by the metadata alone where that is enough, every other point as a restore finds it; whether nothing is known to be lost before it.
async fn place(from: &History, at: Point) -> Result<(Located, bool)> {
    let head = &from.branch.head;
    if at == Point::Head
        && let Some(stretch) = from.line().stretches(&**from.ledger()).await?.last()
        && stretch.to == head.seq
        && stretch.loss.is_none()
    {
        // Nothing has happened yet: there is no change whose time it could be.
        return Ok((Located { seq: head.seq, time: (head.seq > 0).then_some(head.time), next_time: None }, true));
    }
    Ok((from.locate(at).await?, false))
}

/// Both at once: each takes a round trip, and neither is worth waiting for alone. Where the metadata refuses, the object goes again; where only the
/// object fails, the branch is there and its object is written by whoever publishes it next.
async fn store(ledger: &SharedLedger, store: &Store, branch: &Branch, ttl: Option<Duration>) -> Result<Branch> {
    let key = layout::branch_json(layout::project_of(&branch.name), &branch.id);
    let body = documents::to_json(&BranchDocument::new(branch, None, &[]))?;
    let tag = PutTag { sha256: Sha256::digest(&body).into(), put_id: random::id() };
    let (policy, cancel) = (RetryPolicy::default(), CancellationToken::new());
    let put = put_idempotent(&**store, &key, body.into(), &tag, &policy, &cancel);
    let (created, stored) = tokio::join!(create(ledger, branch, ttl), put);
    match (created, stored) {
        (Ok(created), Ok(report)) if report.outcome != PutOutcome::Conflict => Ok(created),
        (Ok(created), Ok(_)) => {
            Err(Fault::corrupt(format!("{key} holds other bytes: branch {} cannot be told from the bucket", created.name)))
        }
        (Ok(created), Err(fault)) => {
            tracing::warn!(branch = %created.name, error = %fault, "branch.json is not in the bucket yet");
            Ok(created)
        }
        (Err(fault), _) => {
            let _ = store.delete(&key).await;
            Err(fault)
        }
    }
}

/// A lost answer is told apart from a taken name by our own id.
async fn create(ledger: &SharedLedger, branch: &Branch, ttl: Option<Duration>) -> Result<Branch> {
    match ledger.create_branch(branch, ttl).await {
        Ok(()) => {}
        Err(fault) if matches!(fault.kind, Kind::Unknown | Kind::Transient) => {
            return ledger.branch(&branch.id).await?.ok_or(fault);
        }
        Err(fault) => return Err(fault),
    }
    Ok(branch.clone())
}
