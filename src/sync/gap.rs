//! Discarding a sync job: its range becomes a recorded gap (correctness.md 25), never a silent hole.
//!
//! Owns: the gap segment of a job and the order object first, metadata second. Does not own: the transaction (`ledger`).

use bytes::Bytes;
use std::sync::atomic::AtomicBool;
use tokio_util::sync::CancellationToken;

use crate::branch::layout;
use crate::fault::{Fault, Result};
use crate::ledger::{Job, JobState, SegmentKind, SegmentRow, SharedLedger, SyncSpec};
use crate::queue::{self, JobEvent};
use crate::runtime::random;
use crate::segment::{SegmentHeader, encode};
use crate::store::{PutOutcome, PutTag, RetryPolicy, Store, put_idempotent};

use super::job::{header, row};

/// Gives up the changes of a dead or waiting sync job: history gets a gap of exactly their range. False when the job's state does not allow it
/// (it is running or done); nothing is left in the store then.
pub async fn discard(ledger: &SharedLedger, store: &Store, job: &Job, reason: &str) -> Result<bool> {
    let spec = job.sync.as_ref().ok_or_else(|| Fault::rejected(format!("job {} is not a sync job", job.id)))?;
    let branch = ledger.branch(&job.branch).await?;
    let branch = branch.ok_or_else(|| Fault::missing(format!("branch {} of this job does not exist", job.branch)))?;
    // The object comes before the transaction that may refuse it, so what is sure to be refused is refused here.
    let state = ledger.job(&job.id).await?.map_or(job.state, |now| now.state);
    if state == JobState::Cancelled {
        return is_gap(ledger, &job.branch, spec).await;
    }
    if queue::transition(state, JobEvent::Discarded).is_none() {
        return Ok(false);
    }
    // With an id of its own in it, the object is this call's alone: nobody else's row can name it when it has to be taken back.
    let put_id = random::id();
    let reason = Some(format!("{reason} ({put_id})"));
    let header = SegmentHeader { kind: SegmentKind::Gap, reason, ..header(job, spec, &branch.source_db) };
    let encoded = encode(&header, &[], &AtomicBool::new(false))?;
    let key = layout::segment_l0(layout::project_of(&branch.name), &branch.id, spec.epoch, spec.first_seq, spec.last_seq, &encoded.sha256);
    let tag = PutTag { sha256: encoded.sha256, put_id };
    let body: Bytes = encoded.bytes.clone();
    let put = put_idempotent(&**store, &key, body, &tag, &RetryPolicy::default(), &CancellationToken::new()).await?;
    if put.outcome == PutOutcome::Conflict {
        return Err(Fault::corrupt(format!("{key} holds other bytes; verify the branch")));
    }
    // Range, times and flags are those of the segment it stands in for.
    let holes = spec.last_seq + 1 - spec.first_seq;
    let row = SegmentRow { kind: SegmentKind::Gap, has_ddl: false, holes, raw_bytes: 0, ..row(job, spec, key.clone(), &encoded) };
    let discarded = ledger.discard_job(&job.id, &row).await?;
    if !discarded {
        // Its range may be committed: a gap object for it would contradict history to whoever reads the bucket alone.
        store.delete(&key).await?;
        return is_gap(ledger, &job.branch, spec).await; // somebody else's call may have been the first
    }
    Ok(true)
}

/// Whether the range of a cancelled job is a gap already: an earlier call, perhaps one whose answer was lost.
async fn is_gap(ledger: &SharedLedger, branch: &str, spec: &SyncSpec) -> Result<bool> {
    let row = ledger.segments(branch, spec.first_seq, 1).await?.into_iter().next();
    Ok(row.is_some_and(|row| (row.kind, row.first_seq, row.last_seq) == (SegmentKind::Gap, spec.first_seq, spec.last_seq)))
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::branch::testing::{Bed, ID, PROJECT, lease};
    use crate::ledger::{Ends, Failed, Ledger};
    use crate::store::{FaultPlan, FaultyStore, ObjectStore};

    async fn objects(bed: &Bed) -> Vec<String> {
        let prefix = format!("{}segments/", layout::branch_prefix(PROJECT, ID));
        bed.store.list(&prefix, None, 100).await.unwrap().into_iter().map(|o| o.key).collect()
    }

    #[tokio::test]
    async fn a_job_that_runs_or_is_done_is_refused_and_leaves_nothing_in_the_store() {
        let mut bed = Bed::new().await;
        let job = bed.queue("..", Ends::Closed).await;
        assert!(!bed.discard(&job).await, "it runs");
        assert_eq!(objects(&bed).await, Vec::<String>::new());
        bed.commit(&job).await;
        assert!(!bed.discard(&job).await, "it is done");
        assert_eq!(objects(&bed).await, [bed.rows().await[0].key.clone()]);
    }

    #[tokio::test]
    async fn a_job_that_begins_and_ends_inside_of_transactions_becomes_a_gap_once() {
        for ends in [Ends::Open, Ends::Unknown] {
            let mut bed = Bed::new().await;
            bed.add(".a", Ends::Open).await;
            let job = bed.queue("aab", ends).await;
            bed.kill(&job).await;
            assert!(bed.discard(&job).await);
            assert!(bed.discard(&job).await, "asking again is harmless");
            let rows = bed.rows().await;
            assert_eq!((rows.len(), rows[1].kind, rows[1].starts_inside, rows[1].ends), (2, SegmentKind::Gap, true, ends));
            assert_eq!(objects(&bed).await.len(), 2);
            bed.add("bb.", Ends::Closed).await;
            assert_eq!(bed.history().await.branch.head.seq, 8);
        }
    }

    #[tokio::test]
    async fn of_two_calls_at_once_one_takes_its_object_back() {
        let mut bed = Bed::new().await;
        let job = bed.queue("..", Ends::Closed).await;
        bed.kill(&job).await;
        // Slow, so that both have asked for the state before either has its answer from the ledger.
        let slow = Arc::new(FaultyStore::new(bed.store.clone(), FaultPlan { slow: 1.0, ..FaultPlan::default() }));
        let store: Store = slow.clone();
        let ledger: SharedLedger = bed.ledger.clone();
        let (one, two) = tokio::join!(discard(&ledger, &store, &job, "a"), discard(&ledger, &store, &job, "a"));
        assert!(one.unwrap() && two.unwrap());
        assert_eq!(slow.counts().calls, 3, "two puts and a delete");
        assert_eq!(objects(&bed).await, [bed.rows().await[0].key.clone()]);
    }

    #[tokio::test]
    async fn a_job_whose_tokens_hold_a_large_id_is_committed_and_can_be_discarded() {
        let mut bed = Bed::new().await;
        bed.token_bytes = 1_200_000;
        bed.add("..", Ends::Closed).await;
        bed.lose("..", Ends::Closed).await;
        bed.token_bytes = 0;
        bed.add("..", Ends::Closed).await;
        let kinds: Vec<_> = bed.rows().await.iter().map(|row| row.kind).collect();
        assert_eq!(kinds, [SegmentKind::Changes, SegmentKind::Gap, SegmentKind::Changes]);
        assert_eq!(bed.history().await.branch.head.seq, 6);
    }

    #[tokio::test]
    async fn a_waiting_job_can_be_discarded() {
        let mut bed = Bed::new().await;
        let job = bed.queue("..", Ends::Closed).await;
        let later = Failed::Retry { delay: std::time::Duration::from_secs(60), error: "no".into() };
        assert!(bed.ledger.fail(&lease(&job), &later).await.unwrap());
        assert!(bed.discard(&job).await);
    }
}
