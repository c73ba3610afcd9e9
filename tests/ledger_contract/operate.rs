//! The operator's hand on many jobs: lists and actions by filter.

use std::collections::BTreeMap;
use std::time::Duration;

use argon::fault::Kind;
use argon::ledger::*;

use crate::bench::{Bench, lease};
use crate::queue::new_job;

const HOUR: Duration = Duration::from_secs(3_600);

/// Makes the next noop job dead, with this error.
async fn kill(b: &Bench, error: &str) -> JobId {
    let job = b.claim_kind("e1", JobKind::Noop, 1).await.remove(0);
    assert!(b.ledger.fail(&lease(&job), &Failed::Dead { error: error.to_owned() }).await.unwrap());
    job.id
}

pub(crate) async fn jobs_are_found_by_state_engine_and_error(b: Bench) {
    b.put_noops(8).await;
    let (denied, full) = (kill(&b, "S3: Access DENIED ($x)").await, kill(&b, "disk full").await);
    let running = b.claim_kind("e1", JobKind::Noop, 2).await;
    let elsewhere = b.claim_kind("e2", JobKind::Noop, 1).await;
    b.ledger.fail(&lease(&running[1]), &Failed::Retry { delay: HOUR, error: "access denied once".to_owned() }).await.unwrap();
    let later = NewJob { delay: HOUR, branch: Some("b1".to_owned()), ..new_job(JobKind::Cleanup) };
    b.ledger.enqueue(std::slice::from_ref(&later)).await.unwrap();
    let list = async |filter: JobFilter| b.ledger.jobs(&filter, 99).await.unwrap().into_iter().map(|j| j.id).collect::<Vec<_>>();
    let any = JobFilter::default;
    let sorted = |mut ids: Vec<JobId>| {
        ids.sort();
        ids
    };
    let error = |text: &str| Some(text.to_owned());
    assert_eq!(list(JobFilter { error: error("access denied"), ..any() }).await, sorted(vec![denied.clone(), running[1].id.clone()]));
    assert_eq!(
        list(JobFilter { error: error("ACCESS denied ($X"), state: Some(JobState::Dead), ..any() }).await,
        std::slice::from_ref(&denied)
    );
    assert_eq!(
        list(JobFilter { error: error("f"), state: Some(JobState::Dead), kind: Some(JobKind::Noop), ..any() }).await,
        std::slice::from_ref(&full)
    );
    assert!(list(JobFilter { error: error("f"), state: Some(JobState::Ready), ..any() }).await.is_empty());
    assert_eq!(list(JobFilter { engine: error("e1"), ..any() }).await, [running[0].id.clone()]);
    assert_eq!(list(JobFilter { engine: error("e2"), state: Some(JobState::Running), ..any() }).await, [elsewhere[0].id.clone()]);
    assert!(list(JobFilter { engine: error("e1"), state: Some(JobState::Dead), ..any() }).await.is_empty());
    assert_eq!(list(JobFilter { state: Some(JobState::Scheduled), ..any() }).await, sorted(vec![running[1].id.clone(), later.id.clone()]));
    assert_eq!(list(JobFilter { state: Some(JobState::Scheduled), branch: error("b1"), ..any() }).await, std::slice::from_ref(&later.id));
    assert_eq!(
        list(JobFilter { state: Some(JobState::Dead), branch: error(""), ..any() }).await,
        sorted(vec![denied, full]),
        "of no branch"
    );
    // Pages of a state that lies in another order are in the order of ids too.
    let ready = list(JobFilter { state: Some(JobState::Ready), ..any() }).await;
    assert_eq!((ready.len(), sorted(ready.clone())), (3, ready.clone()));
    let page = JobFilter { state: Some(JobState::Ready), after: Some(ready[0].clone()), ..any() };
    let page = b.ledger.jobs(&page, 1).await.unwrap();
    assert_eq!(page[0].id, ready[1]);
}

pub(crate) async fn many_jobs_are_retried_by_filter(b: Bench) {
    let mut line = b.line("e1").await;
    b.put_noops(3).await;
    for error in ["denied", "denied", "full"] {
        kill(&b, error).await;
    }
    line.put(1).await;
    let sync = b.claim("e1", 1).await.remove(0);
    b.ledger.fail(&lease(&sync), &Failed::Dead { error: "denied".to_owned() }).await.unwrap();
    let later = NewJob { delay: HOUR, ..new_job(JobKind::Noop) };
    b.ledger.enqueue(std::slice::from_ref(&later)).await.unwrap();
    let denied = JobFilter { error: Some("denied".to_owned()), ..JobFilter::default() };

    let dry = b.ledger.bulk(Bulk::Retry, &denied, 100, true).await.unwrap();
    assert_eq!((dry.matched, dry.changed, dry.sample.len(), dry.more), (3, 0, 3, false), "{dry:?}");
    assert_eq!(b.ledger.depth().await.unwrap().dead, 4, "it has only looked");
    assert_eq!(b.branch(&line.branch).await.status, BranchStatus::Stalled);
    let first = b.ledger.bulk(Bulk::Retry, &denied, 1, false).await.unwrap();
    assert_eq!((first.matched, first.changed, first.more), (1, 1, true));
    b.faulty.script(LedgerCall::Bulk, Mishap::AnswerLost);
    assert_eq!(b.faulty.bulk(Bulk::Retry, &denied, 100, false).await.unwrap_err().kind, Kind::Unknown);
    let again = b.faulty.bulk(Bulk::Retry, &denied, 100, false).await.unwrap();
    assert_eq!((again.matched, again.changed), (0, 0), "a repeat finds nothing left");
    assert_eq!(b.ledger.depth().await.unwrap(), QueueDepth { scheduled: 1, ready: 3, running: 0, dead: 1 });
    assert_eq!(b.branch(&line.branch).await.status, BranchStatus::Active, "the head is no longer held");
    let job = b.job(&sync.id).await;
    assert_eq!((job.state, job.attempt, job.crashes, job.finished_ms), (JobState::Ready, 0, 0, None));
    // What is scheduled is revived only if that is said.
    let scheduled = JobFilter { state: Some(JobState::Scheduled), ..JobFilter::default() };
    assert_eq!(b.ledger.bulk(Bulk::Retry, &scheduled, 100, false).await.unwrap().changed, 1);
    assert_eq!(b.job(&later.id).await.state, JobState::Ready);
    for state in [JobState::Ready, JobState::Done, JobState::Running, JobState::Cancelled] {
        let filter = JobFilter { state: Some(state), ..JobFilter::default() };
        assert_eq!(b.ledger.bulk(Bulk::Retry, &filter, 100, false).await.unwrap(), BulkOutcome::default(), "{state}");
    }
    let revived = b.ledger.queue_stats().await.unwrap().counters.revived;
    assert_eq!(revived, BTreeMap::from([(JobKind::Noop, 3), (JobKind::Sync, 1)]));
}

pub(crate) async fn a_taken_key_hinders_one_job_and_not_the_others(b: Bench) {
    let keyed = || NewJob { unique_key: Some("k".to_owned()), ..new_job(JobKind::Noop) };
    b.ledger.enqueue(&[keyed()]).await.unwrap();
    kill(&b, "x").await;
    b.put_noops(2).await;
    kill(&b, "x").await;
    kill(&b, "x").await;
    b.ledger.enqueue(&[keyed()]).await.unwrap();
    let all = b.ledger.bulk(Bulk::Retry, &JobFilter::default(), 100, false).await.unwrap();
    assert_eq!((all.matched, all.changed, all.hindered), (3, 2, 1));
    assert_eq!(b.ledger.depth().await.unwrap(), QueueDepth { scheduled: 0, ready: 3, running: 0, dead: 1 });
}

pub(crate) async fn rule_25_a_filter_cancels_sync_jobs_only_if_it_names_them(b: Bench) {
    let mut line = b.line("e1").await;
    let (first, second) = (line.put(1).await, line.put(1).await);
    let dead = b.claim("e1", 1).await.remove(0);
    b.ledger.fail(&lease(&dead), &Failed::Dead { error: "x".to_owned() }).await.unwrap();
    b.put_noops(3).await;
    kill(&b, "x").await;
    let running = b.claim_kind("e1", JobKind::Noop, 1).await.remove(0);
    b.ledger.enqueue(&[NewJob { delay: HOUR, ..new_job(JobKind::Cleanup) }]).await.unwrap();
    let dry = b.ledger.bulk(Bulk::Cancel, &JobFilter::default(), 100, true).await.unwrap();
    assert_eq!((dry.matched, dry.changed, dry.requested, dry.discard.len()), (4, 0, 0, 0), "{dry:?}");
    let all = b.ledger.bulk(Bulk::Cancel, &JobFilter::default(), 100, false).await.unwrap();
    assert_eq!((all.matched, all.changed, all.requested, all.discard.len()), (4, 3, 1, 0), "{all:?}");
    assert_eq!(b.ledger.depth().await.unwrap(), QueueDepth { scheduled: 0, ready: 1, running: 1, dead: 1 });
    assert_eq!(b.ledger.cancel_requests("e1").await.unwrap(), [running.id]);
    let again = b.ledger.bulk(Bulk::Cancel, &JobFilter::default(), 100, false).await.unwrap();
    assert_eq!(again, BulkOutcome::default(), "who was asked is not asked again");
    // Named, they are listed: each needs a gap of its own.
    let sync = JobFilter { kind: Some(JobKind::Sync), ..JobFilter::default() };
    for dry_run in [true, false] {
        let mut named = b.ledger.bulk(Bulk::Cancel, &sync, 100, dry_run).await.unwrap();
        named.discard.sort();
        let mut both = vec![first.clone(), second.clone()];
        both.sort();
        assert_eq!((named.matched, named.changed, named.discard), (2, 0, both));
    }
    assert_eq!(b.ledger.depth().await.unwrap().dead, 1, "nothing has happened to them");
    assert_eq!(b.ledger.queue_stats().await.unwrap().counters.cancelled, BTreeMap::from([(JobKind::Noop, 2), (JobKind::Cleanup, 1)]));
}

pub(crate) async fn a_bulk_action_works_through_more_than_one_chunk(b: Bench) {
    for _ in 0..3 {
        b.put_noops(400).await;
    }
    let waiting = JobFilter { state: Some(JobState::Ready), kind: Some(JobKind::Noop), ..JobFilter::default() };
    let some = b.ledger.bulk(Bulk::Cancel, &waiting, 900, false).await.unwrap();
    assert_eq!((some.matched, some.changed, some.sample.len(), some.more), (900, 900, BULK_SAMPLE, true));
    let rest = b.ledger.bulk(Bulk::Cancel, &waiting, 900, false).await.unwrap();
    assert_eq!((rest.changed, rest.more), (300, false));
    assert_eq!(b.ledger.queue_stats().await.unwrap().counters.cancelled, BTreeMap::from([(JobKind::Noop, 1_200)]));
}
