//! A base is made: read from the source while it is in use (correctness.md 10 to 13), or folded from history in the bucket.
//!
//! Owns: what a snapshot job is told, which of the two it is, and staying alive while it takes long. Does not own: the copy (`copy`), the fold (`fold`).

mod copy;
mod fold;

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bson::RawDocument;
use serde::{Deserialize, Serialize};

use super::{Handler, Outcome, Parts, Watch};
use crate::branch::mirror::publish;
use crate::fault::{Fault, Result};
use crate::ledger::{Base, BranchId, Enqueued, Job, JobKind, JobLease, NewJob, SharedLedger};
use crate::runtime::{clock, random};

/// What the job is told; exactly one of them.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "snake_case")]
pub enum SnapshotParams {
    /// Copy this base, as its plan says.
    Base(String),
    /// Plan a new base of this branch and copy it: history has lost something.
    Copy(BranchId),
    /// The same although nothing is lost: the source has documents that were never in its stream.
    Anew(BranchId),
    /// Fold this branch's history into a base.
    Fold(BranchId),
}

impl SnapshotParams {
    pub fn parse(params: Option<&RawDocument>) -> Result<Self> {
        let params = params.ok_or_else(|| Fault::rejected("a snapshot job needs parameters"))?;
        bson::deserialize_from_slice(params.as_bytes()).map_err(|e| Fault::rejected(format!("the parameters of a snapshot job: {e}")))
    }

    fn job(&self, branch: &str) -> Result<NewJob> {
        let params = bson::serialize_to_raw_document_buf(self).map_err(|e| Fault::corrupt(format!("parameters of a job: {e}")))?;
        let key = match self {
            Self::Base(_) | Self::Copy(_) | Self::Anew(_) => copy_key(branch),
            Self::Fold(_) => fold_key(branch),
        };
        let new = NewJob::new(random::ordered_id(), JobKind::Snapshot);
        Ok(NewJob { branch: Some(branch.to_owned()), params: Some(params), unique_key: Some(key), ..new })
    }
}

/// The key of the job that copies the source of a branch.
pub fn copy_key(branch: &str) -> String {
    format!("copy/{branch}")
}

/// The key of the job that folds the history of a branch.
pub fn fold_key(branch: &str) -> String {
    format!("fold/{branch}")
}

/// Asks for the copy of a base; at most one job of a branch copies. False when there is one.
pub async fn enqueue_copy(ledger: &SharedLedger, base: &Base) -> Result<bool> {
    enqueue(ledger, SnapshotParams::Base(base.id.clone()).job(&base.branch)?).await
}

/// Asks for a new base of a branch, read from its source.
pub async fn enqueue_new(ledger: &SharedLedger, branch: &str) -> Result<bool> {
    enqueue(ledger, SnapshotParams::Copy(branch.to_owned()).job(branch)?).await
}

/// Asks for a new base of a branch, read from its source, whether history has lost something or not.
pub async fn enqueue_anew(ledger: &SharedLedger, branch: &str) -> Result<bool> {
    enqueue(ledger, SnapshotParams::Anew(branch.to_owned()).job(branch)?).await
}

/// Asks for a new base of a branch, folded from its history.
pub async fn enqueue_fold(ledger: &SharedLedger, branch: &str) -> Result<bool> {
    enqueue(ledger, SnapshotParams::Fold(branch.to_owned()).job(branch)?).await
}

async fn enqueue(ledger: &SharedLedger, job: NewJob) -> Result<bool> {
    let outcome = ledger.enqueue(std::slice::from_ref(&job)).await?;
    Ok(!matches!(outcome.first(), Some(Enqueued::Duplicate { .. })))
}

#[derive(Debug)]
struct Snapshot(Parts);

pub(super) fn handler(parts: &Parts) -> Arc<dyn Handler> {
    Arc::new(Snapshot(parts.clone()))
}

#[async_trait]
impl Handler for Snapshot {
    async fn run(&self, job: &Job, lease: &JobLease, watch: &Watch) -> Result<Outcome> {
        let params = SnapshotParams::parse(job.params.as_deref())?;
        let parts = &self.0;
        let work = async {
            let branch = match &params {
                SnapshotParams::Base(base) => copy::run(parts, base, watch).await?,
                SnapshotParams::Copy(branch) => copy::run_new(parts, branch, false, watch).await?,
                SnapshotParams::Anew(branch) => copy::run_new(parts, branch, true, watch).await?,
                SnapshotParams::Fold(branch) => fold::run(parts, branch, watch).await?,
            };
            if let Some(branch) = branch {
                // What the metadata says counts, and the engine repeats this.
                let _ = publish(&parts.ledger, &parts.store, &branch).await;
            }
            Ok(Outcome::Done)
        };
        stay_alive(parts, lease, watch, work).await
    }
}

/// How often a long job says that it is alive: well below `JOB_STUCK_TIMEOUT`.
const TOUCH: Duration = Duration::from_secs(20);
/// How soon again, where it gets on.
const TOUCH_AGAIN: Duration = Duration::from_secs(1);

/// Runs work that takes as long as it takes: says that it lives meanwhile, and stops it when the job is somebody else's or the engine drains. What is
/// done by then is on record, and the next attempt goes on there.
pub(super) async fn stay_alive<T>(parts: &Parts, lease: &JobLease, watch: &Watch, work: impl Future<Output = Result<T>>) -> Result<T> {
    tokio::pin!(work);
    let mut touched = clock::now();
    loop {
        let progressed = tokio::select! {
            outcome = &mut work => return outcome,
            () = tokio::time::sleep(TOUCH) => false,
            () = watch.progress() => true,
            () = parts.stop.draining() => {
                watch.cancel.cancel();
                return work.await.map_err(|fault| Fault::cancelled(format!("the engine stops: {}", fault.what)));
            }
        };
        if progressed && touched.elapsed() < TOUCH_AGAIN {
            continue;
        }
        touched = clock::now();
        match parts.ledger.touch(lease, progressed).await {
            Ok(true) => {}
            Ok(false) => {
                watch.cancel.cancel();
                let _ = work.await;
                return Err(Fault::fenced("the job is another attempt's by now"));
            }
            Err(fault) => tracing::debug!(job = %lease.id, error = %fault, "could not say that the job is alive"),
        }
    }
}
