//! Discarding a sync job: its range becomes a recorded gap (correctness.md 25), never a silent hole.
//!
//! Owns: the gap segment of a job and the order object first, metadata second. Does not own: the transaction (`ledger`).

use bytes::Bytes;
use std::sync::atomic::AtomicBool;
use tokio_util::sync::CancellationToken;

use crate::branch::layout;
use crate::fault::{Fault, Result};
use crate::ledger::{Job, SegmentKind, SegmentRow, SharedLedger};
use crate::runtime::random;
use crate::segment::{SegmentHeader, encode};
use crate::store::{PutOutcome, PutTag, RetryPolicy, Store, put_idempotent};

use super::job::{header, row};

/// Gives up the changes of a dead or waiting sync job: history gets a gap of exactly their range. False when the job's state does not allow it (it is running or done).
pub async fn discard(ledger: &SharedLedger, store: &Store, job: &Job, reason: &str) -> Result<bool> {
    let spec = job.sync.as_ref().ok_or_else(|| Fault::rejected(format!("job {} is not a sync job", job.id)))?;
    let branch = ledger.branch(&job.branch).await?;
    let branch = branch.ok_or_else(|| Fault::missing(format!("branch {} of this job does not exist", job.branch)))?;
    let header = SegmentHeader { kind: SegmentKind::Gap, reason: Some(reason.to_string()), ..header(job, spec, &branch.source_db) };
    let encoded = encode(&header, &[], &AtomicBool::new(false))?;
    let key = layout::segment_l0(layout::project_of(&branch.name), &branch.id, spec.epoch, spec.first_seq, spec.last_seq, &encoded.sha256);
    let tag = PutTag { sha256: encoded.sha256, put_id: random::id() };
    let body: Bytes = encoded.bytes.clone();
    let put = put_idempotent(&**store, &key, body, &tag, &RetryPolicy::default(), &CancellationToken::new()).await?;
    if put.outcome == PutOutcome::Conflict {
        return Err(Fault::corrupt(format!("{key} holds other bytes; verify the branch")));
    }
    // Range, times and flags are those of the segment it stands in for.
    let holes = spec.last_seq + 1 - spec.first_seq;
    let row = SegmentRow { kind: SegmentKind::Gap, has_ddl: false, holes, raw_bytes: 0, ..row(job, spec, key, &encoded) };
    ledger.discard_job(&job.id, &row).await
}
