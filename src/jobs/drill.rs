//! Stub.
use crate::fault::Result;
use crate::ledger::{Enqueued, JobKind, NewJob, SharedLedger};
use crate::runtime::random;

/// Asks for a drill of a branch. False when it is asked for already.
pub async fn enqueue(ledger: &SharedLedger, branch: &str) -> Result<bool> {
    let new = NewJob::new(random::ordered_id(), JobKind::Drill);
    let job = NewJob { branch: Some(branch.to_owned()), unique_key: Some(format!("drill/{branch}")), ..new };
    let outcome = ledger.enqueue(std::slice::from_ref(&job)).await?;
    Ok(!matches!(outcome.first(), Some(Enqueued::Duplicate { .. })))
}
