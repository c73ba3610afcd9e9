//! Discarding a sync job: its range becomes a recorded gap (correctness.md 25), never a silent hole.
//!
//! Owns: the gap segment of a job and the order object first, metadata second. Does not own: the transaction (`ledger`).

use std::sync::atomic::AtomicBool;
use std::time::Duration;

use tokio_util::sync::CancellationToken;

use crate::branch::layout;
use crate::fault::{Fault, Kind, Result};
use crate::ledger::{Branch, Job, JobState, SegmentKind, SegmentRow, SharedLedger, SyncSpec};
use crate::queue::{self, JobEvent};
use crate::runtime::backoff::Backoff;
use crate::runtime::random;
use crate::segment::{Encoded, SegmentHeader, encode};
use crate::store::{PutOutcome, PutTag, RetryPolicy, Store, put_idempotent};

use super::job::{header, row};

/// Tries to learn the outcome of the transaction, and to take the object back.
const TRIES: u32 = 6;
const PAUSE: Backoff = Backoff { base: Duration::from_millis(100), cap: Duration::from_secs(2) };

/// Gives up the changes of a dead or waiting sync job: history gets a gap of exactly their range. False when the job's state does not allow it
/// (it is running or done); nothing is left in the store then.
///
/// # Errors
/// When it did not happen, nothing is left in the store either. Where that is not known the fault says so, and asking again tells.
pub async fn discard(ledger: &SharedLedger, store: &Store, job: &Job, reason: &str) -> Result<bool> {
    let spec = job.sync.as_ref().ok_or_else(|| Fault::rejected(format!("job {} is not a sync job", job.id)))?;
    let branch = ledger.branch(&job.branch).await?;
    let branch = branch.ok_or_else(|| Fault::missing(format!("branch {} of this job does not exist", job.branch)))?;
    let gap = Gap::of(job, spec, &branch, reason)?;
    // The object comes before the transaction that may refuse it, so what is sure to be refused is refused here.
    let state = ledger.job(&job.id).await?.map_or(job.state, |now| now.state);
    if state == JobState::Cancelled {
        return is_gap(ledger, &job.branch, spec).await;
    }
    if queue::transition(state, JobEvent::Discarded).is_none() {
        // An earlier call that never learned its outcome may have left it.
        gap.take_back(ledger, store).await?;
        return Ok(false);
    }
    if let Err(fault) = gap.put(store).await {
        let _ = gap.take_back(ledger, store).await; // it may have landed all the same; the fault of the put is the one to tell
        return Err(fault);
    }
    match gap.record(ledger, job).await {
        Ok(true) => gap.keep(store).await.map(|()| true),
        Ok(false) => {
            gap.take_back(ledger, store).await?;
            is_gap(ledger, &job.branch, spec).await // somebody else's call may have been the first
        }
        Err((fault, Open::No)) => match gap.take_back(ledger, store).await {
            Ok(()) => Err(fault),
            Err(left) => Err(fault.at(format!("nothing is given up, but {} could not be removed ({left}): discard again", gap.row.key))),
        },
        Err((fault, Open::Yes)) => Err(fault
            .at(format!("whether changes {} to {} are given up is not known, discard again to learn it", spec.first_seq, spec.last_seq))),
    }
}

/// Whether what failed may have happened.
enum Open {
    Yes,
    No,
}

/// The gap of a job: the same object and the same row however often it is asked for.
struct Gap {
    row: SegmentRow,
    encoded: Encoded,
}

impl Gap {
    fn of(job: &Job, spec: &SyncSpec, branch: &Branch, reason: &str) -> Result<Self> {
        // With the job's id in it nobody but a call for this job has this object.
        let reason = if reason.contains(&job.id) { reason.to_owned() } else { format!("{reason} (job {})", job.id) };
        let header = SegmentHeader { kind: SegmentKind::Gap, reason: Some(reason), ..header(job, spec, &branch.source_db) };
        let encoded = encode(&header, &[], &AtomicBool::new(false))?;
        let project = layout::project_of(&branch.name);
        let key = layout::segment_l0(project, &branch.id, spec.epoch, spec.first_seq, spec.last_seq, &encoded.sha256);
        // Range, times and flags are those of the segment it stands in for.
        let holes = spec.last_seq + 1 - spec.first_seq;
        let row = SegmentRow { kind: SegmentKind::Gap, has_ddl: false, holes, raw_bytes: 0, ..row(job, spec, key, &encoded) };
        Ok(Self { row, encoded })
    }

    async fn put(&self, store: &Store) -> Result<()> {
        let tag = PutTag { sha256: self.encoded.sha256, put_id: random::id() };
        let body = self.encoded.bytes.clone();
        let put = put_idempotent(&**store, &self.row.key, body, &tag, &RetryPolicy::default(), &CancellationToken::new()).await?;
        if put.outcome == PutOutcome::Conflict {
            return Err(Fault::corrupt(format!("{} holds other bytes; verify the branch", self.row.key)));
        }
        Ok(())
    }

    /// Asks until it is answered, with the same row every time: the ledger recognises its own.
    async fn record(&self, ledger: &SharedLedger, job: &Job) -> Result<bool, (Fault, Open)> {
        let (mut open, mut tries) = (Open::No, 0);
        loop {
            tries += 1;
            let fault = match ledger.discard_job(&job.id, &self.row).await {
                Ok(discarded) => return Ok(discarded),
                Err(fault) => fault,
            };
            if matches!(fault.kind, Kind::Unknown | Kind::Cancelled) {
                open = Open::Yes;
            }
            if !fault.may_heal() || tries >= TRIES {
                return Err((fault, open));
            }
            tracing::debug!(job = %job.id, error = %fault, tries, "discard not confirmed, repeating");
            tokio::time::sleep(PAUSE.delay(tries, random::unit())).await;
        }
    }

    /// Its range may be committed: a gap object for it would contradict history to whoever reads the bucket alone.
    ///
    /// SUBTLE: every call for this job has this object, so one that runs beside may have it in a row, or be about to. Who deletes looks at the
    /// rows afterwards, who was accepted looks at the object afterwards ([`Self::keep`]): one of them sees the other and puts it back.
    async fn take_back(&self, ledger: &SharedLedger, store: &Store) -> Result<()> {
        let mut tries = 0;
        loop {
            tries += 1;
            match self.delete_unless_named(ledger, store).await {
                Err(fault) if fault.may_heal() && tries < TRIES => tokio::time::sleep(PAUSE.delay(tries, random::unit())).await,
                outcome => return outcome,
            }
        }
    }

    async fn delete_unless_named(&self, ledger: &SharedLedger, store: &Store) -> Result<()> {
        if self.is_named(ledger).await? {
            return Ok(());
        }
        store.delete(&self.row.key).await?;
        if self.is_named(ledger).await? { self.put(store).await } else { Ok(()) }
    }

    async fn is_named(&self, ledger: &SharedLedger) -> Result<bool> {
        Ok(ledger.segments(&self.row.branch, self.row.first_seq, 1).await?.iter().any(|row| row.key == self.row.key))
    }

    /// A row names it from now on.
    async fn keep(&self, store: &Store) -> Result<()> {
        match store.head(&self.row.key).await {
            Ok(None) => self.put(store).await,
            // That it was stored is known; the look is for a call that runs beside.
            Ok(Some(_)) | Err(_) => Ok(()),
        }
    }
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
    use crate::ledger::{ClaimRequest, Ends, Failed, FaultyLedger, JobKind, Ledger, LedgerCall, LedgerFaults, Mishap};
    use crate::store::{FaultPlan, FaultyStore, ObjectStore, PutFault};

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
    async fn two_calls_at_once_agree_on_one_object() {
        let mut bed = Bed::new().await;
        let job = bed.queue("..", Ends::Closed).await;
        bed.kill(&job).await;
        // Slow, so that both have asked for the state before either has its answer from the ledger.
        let slow = Arc::new(FaultyStore::new(bed.store.clone(), FaultPlan { slow: 1.0, ..FaultPlan::default() }));
        let store: Store = slow.clone();
        let ledger: SharedLedger = bed.ledger.clone();
        let (one, two) = tokio::join!(discard(&ledger, &store, &job, "a"), discard(&ledger, &store, &job, "a"));
        assert!(one.unwrap() && two.unwrap());
        let (one, two) = tokio::join!(discard(&ledger, &store, &job, "a"), discard(&ledger, &store, &job, "another reason"));
        assert!(one.unwrap() && two.unwrap());
        assert_eq!(objects(&bed).await, [bed.rows().await[0].key.clone()]);
    }

    /// A ledger whose next discards go wrong in this way.
    fn failing(bed: &Bed, mishap: Mishap, times: u32) -> (SharedLedger, Arc<FaultyLedger>) {
        let faulty = Arc::new(FaultyLedger::new(bed.ledger.clone(), LedgerFaults::none()));
        (0..times).for_each(|_| faulty.script(LedgerCall::DiscardJob, mishap));
        (faulty.clone(), faulty)
    }

    async fn run_again(bed: &Bed, job: &Job) {
        assert!(bed.ledger.retry_job(&job.id).await.unwrap());
        let job = bed.ledger.claim(&ClaimRequest::new("e1", &[JobKind::Sync], 1)).await.unwrap().remove(0);
        bed.commit(&job).await;
        assert_eq!(objects(bed).await, [bed.rows().await[0].key.clone()]);
    }

    #[tokio::test]
    async fn a_discard_that_never_happens_leaves_nothing_beside_the_commit_that_follows() {
        let mut bed = Bed::new().await;
        let job = bed.queue("..", Ends::Closed).await;
        bed.kill(&job).await;
        let store: Store = bed.store.clone();
        let (ledger, faulty) = failing(&bed, Mishap::Before, TRIES);
        assert_eq!(discard(&ledger, &store, &job, "a").await.unwrap_err().kind, Kind::Transient);
        assert_eq!(faulty.injected(), u64::from(TRIES));
        assert_eq!(objects(&bed).await, Vec::<String>::new());
        run_again(&bed, &job).await;
    }

    #[tokio::test]
    async fn a_discard_whose_answer_is_lost_is_asked_for_again() {
        for (mishap, times) in [(Mishap::AnswerLost, 1), (Mishap::AnswerLost, TRIES - 1), (Mishap::Before, TRIES - 1)] {
            let mut bed = Bed::new().await;
            let job = bed.queue("..", Ends::Closed).await;
            bed.kill(&job).await;
            let store: Store = bed.store.clone();
            assert!(discard(&failing(&bed, mishap, times).0, &store, &job, "a").await.unwrap(), "{mishap:?} {times}");
            assert_eq!(objects(&bed).await, [bed.rows().await[0].key.clone()]);
        }
    }

    #[tokio::test]
    async fn while_the_outcome_is_open_the_object_stays_and_the_next_call_tells() {
        let mut bed = Bed::new().await;
        let job = bed.queue("..", Ends::Closed).await;
        bed.kill(&job).await;
        let store: Store = bed.store.clone();
        let fault = discard(&failing(&bed, Mishap::AnswerLost, TRIES).0, &store, &job, "a").await.unwrap_err();
        assert!(fault.kind == Kind::Unknown && fault.what.contains("discard again"), "{fault}");
        assert_eq!(objects(&bed).await, [bed.rows().await[0].key.clone()]);
        assert!(bed.discard(&job).await);
    }

    #[tokio::test]
    async fn a_call_that_is_refused_removes_what_an_earlier_one_has_left() {
        let mut bed = Bed::new().await;
        let job = bed.queue("..", Ends::Closed).await;
        bed.kill(&job).await;
        let faulty = Arc::new(FaultyStore::new(bed.store.clone(), FaultPlan::default()));
        let (ledger, store): (SharedLedger, Store) = (failing(&bed, Mishap::Before, TRIES).0, faulty.clone());
        // The put passes, no delete does.
        let gap = Gap::of(&job, job.sync.as_ref().unwrap(), &bed.ledger.branch(ID).await.unwrap().unwrap(), "a").unwrap();
        gap.put(&store).await.unwrap();
        faulty.next_put(PutFault::RefusedThoughFree);
        (0..TRIES).for_each(|_| faulty.next_put(PutFault::LostRequest));
        let fault = discard(&ledger, &store, &job, "a").await.unwrap_err();
        assert!(fault.what.contains("could not be removed"), "{fault}");
        assert_eq!(objects(&bed).await.len(), 1);
        assert!(bed.ledger.retry_job(&job.id).await.unwrap());
        let job = bed.ledger.claim(&ClaimRequest::new("e1", &[JobKind::Sync], 1)).await.unwrap().remove(0);
        assert!(!discard(&ledger, &store, &job, "a").await.unwrap(), "it runs");
        assert_eq!(objects(&bed).await, Vec::<String>::new());
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
