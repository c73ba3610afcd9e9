//! Uploads that must end exactly once with the right bytes, whatever the store does (correctness.md 20, 21, 28).

use std::sync::Arc;
use std::time::Duration;

use argon::fault::{Kind, Result};
use argon::runtime::backoff::Backoff;
use argon::runtime::clock;
use argon::store::{
    FaultPlan, FaultyStore, FileStore, GetFault, MemoryStore, ObjectStore, PutFault, PutOutcome, PutReport, RetryPolicy, Store,
    put_idempotent,
};
use bytes::Bytes;
use futures_util::future::join_all;
use tokio_util::sync::CancellationToken;

use crate::contract::keys;
use crate::{body, tag};

const FAST: RetryPolicy = RetryPolicy {
    backoff: Backoff { base: Duration::from_micros(100), cap: Duration::from_millis(2) },
    attempts: 40,
    max_retry_after: Duration::from_secs(5),
    time: Duration::from_secs(60),
};

async fn upload(store: &dyn ObjectStore, key: &str, body: &Bytes, policy: &RetryPolicy) -> Result<PutReport> {
    put_idempotent(store, key, body.clone(), &tag(body, &format!("id of {key}")), policy, &CancellationToken::new()).await
}

fn faulty(plan: FaultPlan) -> (Store, FaultyStore) {
    let inner: Store = Arc::new(MemoryStore::new());
    (inner.clone(), FaultyStore::new(inner, plan))
}

/// 30 % of the puts fail in one of five ways, and reads fail and lie too.
fn thirty_percent(seed: u64) -> FaultPlan {
    FaultPlan {
        seed,
        fail_before: 0.06,
        lost_request: 0.06,
        lost_answer: 0.08,
        refused_though_free: 0.05,
        altered: 0.05,
        wrong_body: 0.03,
        truncated: 0.03,
        slow: 0.1,
        delay: Duration::from_secs(1),
        unverified: true,
        ..FaultPlan::default()
    }
}

pub(crate) async fn faults_never_lose_or_damage_an_object(inner: Store, puts: u64) {
    // A directory verifies its puts and keeps no put id: nothing alters an upload on its way there.
    let directory = inner.describe().starts_with("file:");
    let seed = 20_261_123;
    let plan = thirty_percent(seed);
    let plan = if directory { FaultPlan { altered: 0.0, lost_answer: 0.13, unverified: false, ..plan } } else { plan };
    let store = FaultyStore::new(inner.clone(), plan);
    let (mut adopted, mut repaired) = (0, 0);
    for i in 0..puts {
        let (key, sent) = (format!("mass/{i:04}"), body(i, 3000));
        let report = upload(&store, &key, &sent, &FAST).await.unwrap_or_else(|fault| panic!("seed {seed}, put {i}: {fault}"));
        assert_ne!(report.outcome, PutOutcome::Conflict, "seed {seed}, put {i}: a false conflict");
        adopted += u32::from(report.outcome == PutOutcome::Adopted);
        repaired += report.repaired;
    }
    let expected: Vec<String> = (0..puts).map(|i| format!("mass/{i:04}")).collect();
    assert_eq!(keys(&inner, "mass/", 1000).await, expected, "every object exactly once");
    for i in 0..puts {
        assert_eq!(inner.get(&expected[usize::try_from(i).unwrap()], None).await.unwrap(), body(i, 3000), "seed {seed}, put {i}");
    }
    let counts = store.counts();
    println!("{puts} puts, seed {seed}: {adopted} adopted, {repaired} repaired, injected {counts:?}");
    let injected = [counts.failed, counts.lost_requests, counts.lost_answers, counts.refused, u64::from(adopted)];
    assert!(injected.iter().all(|&n| n > 0), "the faults must have happened: {counts:?}");
    assert!(directory || (counts.altered > 0 && counts.damaged_reads > 0 && repaired > 0), "these too: {counts:?}");
}

#[tokio::test]
async fn five_hundred_puts_with_thirty_percent_faults_end_exactly_once() {
    faults_never_lose_or_damage_an_object(Arc::new(MemoryStore::new()), 500).await;
}

#[tokio::test]
async fn a_directory_takes_the_same_faults() {
    let dir = tempfile::tempdir().unwrap();
    faults_never_lose_or_damage_an_object(Arc::new(FileStore::open(dir.path()).unwrap()), 200).await;
}

#[tokio::test]
async fn rule_21_a_put_whose_answer_was_lost_is_adopted() {
    let (inner, store) = faulty(FaultPlan::default());
    let sent = body(1, 100);
    store.next_put(PutFault::LostAnswer);
    let report = upload(&store, "k", &sent, &FAST).await.unwrap();
    assert_eq!(report, PutReport { outcome: PutOutcome::Adopted, attempts: 1, unclear: 1, repaired: 0 });
    assert_eq!(inner.get("k", None).await.unwrap(), sent);
}

#[tokio::test]
async fn rule_28_what_an_attempt_without_checksums_left_damaged_is_not_adopted_with_checksums() {
    let (inner, careless) = faulty(FaultPlan { unverified: true, ..FaultPlan::default() });
    let sent = body(1, 100);
    careless.next_put(PutFault::Altered);
    careless.put_new("k", sent.clone(), &tag(&sent, "an attempt that died before it read back")).await.unwrap();
    assert_ne!(inner.get("k", None).await.unwrap(), sent);
    let report = upload(&*inner, "k", &sent, &FAST).await.unwrap();
    assert_eq!((report.outcome, report.repaired), (PutOutcome::Adopted, 1));
    assert_eq!(inner.get("k", None).await.unwrap(), sent);
}

#[tokio::test]
async fn rule_21_a_torn_object_of_an_earlier_attempt_is_replaced_and_no_conflict() {
    for unverified in [false, true] {
        let (inner, store) = faulty(FaultPlan { unverified, ..FaultPlan::default() });
        let sent = body(9, 3000);
        // Cut off on the way by an attempt that died: its metadata name the whole.
        inner.put_new("k", sent.slice(..1000), &tag(&sent, "an earlier one")).await.unwrap();
        let report = upload(&store, "k", &sent, &FAST).await.unwrap();
        assert_eq!((report.outcome, report.repaired), (PutOutcome::Adopted, 1), "unverified: {unverified}");
        assert_eq!(inner.get("k", None).await.unwrap(), sent);
    }
}

#[tokio::test]
async fn a_request_that_was_lost_is_repeated() {
    let (inner, store) = faulty(FaultPlan::default());
    let sent = body(1, 100);
    store.next_put(PutFault::LostRequest);
    store.next_put(PutFault::FailBefore(None));
    store.next_put(PutFault::RefusedThoughFree);
    let report = upload(&store, "k", &sent, &FAST).await.unwrap();
    assert_eq!(report, PutReport { outcome: PutOutcome::Stored, attempts: 4, unclear: 1, repaired: 0 });
    assert_eq!(inner.get("k", None).await.unwrap(), sent);
}

#[tokio::test]
async fn rule_21_identical_bytes_of_somebody_else_are_adopted_and_others_are_a_conflict() {
    let (inner, store) = faulty(FaultPlan::default());
    let (ours, theirs) = (body(1, 100), body(2, 100));
    inner.put_new("same", ours.clone(), &tag(&ours, "theirs")).await.unwrap();
    inner.put_new("other", theirs.clone(), &tag(&theirs, "theirs")).await.unwrap();
    assert_eq!(upload(&store, "same", &ours, &FAST).await.unwrap().outcome, PutOutcome::Adopted);
    assert_eq!(upload(&store, "other", &ours, &FAST).await.unwrap().outcome, PutOutcome::Conflict);
    store.next_put(PutFault::LostAnswer);
    assert_eq!(upload(&store, "other", &ours, &FAST).await.unwrap().outcome, PutOutcome::Conflict);
    assert_eq!(inner.get("other", None).await.unwrap(), theirs, "never overwritten");
}

#[tokio::test]
async fn rule_28_without_checksums_an_altered_upload_is_found_and_sent_again() {
    let (inner, store) = faulty(FaultPlan { unverified: true, ..FaultPlan::default() });
    let sent = body(1, 100);
    store.next_put(PutFault::Altered);
    let report = upload(&store, "k", &sent, &FAST).await.unwrap();
    assert_eq!((report.outcome, report.repaired), (PutOutcome::Stored, 1));
    assert_eq!(inner.get("k", None).await.unwrap(), sent);
    // Altered and its answer lost: the put id is ours, the bytes are not.
    let altered = body(2, 100);
    inner.put_new("j", altered, &tag(&sent, "id of j")).await.unwrap();
    let report = upload(&store, "j", &sent, &FAST).await.unwrap();
    assert_eq!((report.outcome, report.repaired), (PutOutcome::Adopted, 1));
    assert_eq!(inner.get("j", None).await.unwrap(), sent);
}

#[tokio::test]
async fn an_upload_whose_look_fails_is_not_reported_as_not_having_happened() {
    let (_, store) = faulty(FaultPlan { unverified: true, ..FaultPlan::default() });
    store.next_get(GetFault::Fail);
    let fault = upload(&store, "k", &body(1, 10), &RetryPolicy { attempts: 1, ..FAST }).await.unwrap_err();
    assert_eq!(fault.kind, Kind::Unknown);
}

#[tokio::test]
async fn attempts_end_with_the_last_fault_and_unknown_if_any_may_have_happened() {
    let three = RetryPolicy { attempts: 3, ..FAST };
    let (_, store) = faulty(FaultPlan { fail_before: 1.0, ..FaultPlan::default() });
    let fault = upload(&store, "k", &body(1, 10), &three).await.unwrap_err();
    assert_eq!(fault.kind, Kind::Transient);
    assert!(fault.what.contains("after 3 attempts"), "{fault}");
    store.next_put(PutFault::LostRequest);
    assert_eq!(upload(&store, "k", &body(1, 10), &three).await.unwrap_err().kind, Kind::Unknown);
    assert_eq!(store.counts().calls, 3 + 4, "a lost request costs a look, which fails here");
}

#[tokio::test]
async fn what_cannot_heal_is_not_repeated() {
    let (_, store) = faulty(FaultPlan::default());
    store.next_put(PutFault::Rejected);
    assert_eq!(upload(&store, "k", &body(1, 10), &FAST).await.unwrap_err().kind, Kind::Rejected);
    assert_eq!(store.counts().calls, 1);
}

#[tokio::test]
async fn a_wish_to_wait_is_obeyed_unless_it_is_too_long() {
    let (_, store) = faulty(FaultPlan::default());
    store.next_put(PutFault::FailBefore(Some(Duration::from_millis(150))));
    let begun = clock::now();
    upload(&store, "k", &body(1, 10), &FAST).await.unwrap();
    assert!(begun.elapsed() >= Duration::from_millis(150));
    store.next_put(PutFault::FailBefore(Some(Duration::from_secs(3600))));
    let fault = upload(&store, "j", &body(1, 10), &FAST).await.unwrap_err();
    assert_eq!((fault.kind, fault.retry_after), (Kind::Transient, Some(Duration::from_secs(3600))));
}

#[tokio::test]
async fn a_store_that_never_answers_is_given_up_in_time() {
    let (inner, store) = faulty(FaultPlan::default());
    store.freeze(true);
    let policy = RetryPolicy { time: Duration::from_millis(50), ..FAST };
    let fault = upload(&store, "k", &body(1, 10), &policy).await.unwrap_err();
    assert_eq!(fault.kind, Kind::Unknown, "{fault}");
    assert!(fault.what.contains("within 50ms"), "{fault}");
    assert_eq!(store.counts().calls, 1);
    store.freeze(false);
    assert_eq!(upload(&store, "k", &body(1, 10), &policy).await.unwrap().outcome, PutOutcome::Stored);
    assert!(inner.head("k").await.unwrap().is_some());
    // A pause that would go beyond the time is not waited for either.
    let hour = Duration::from_secs(3_600);
    let policy = RetryPolicy { max_retry_after: hour, ..policy };
    store.next_put(PutFault::FailBefore(Some(hour)));
    assert_eq!(upload(&store, "other", &body(2, 10), &policy).await.unwrap_err().kind, Kind::Transient);
}

#[tokio::test]
async fn cancelling_ends_a_pause_at_once() {
    let (_, store) = faulty(FaultPlan { fail_before: 1.0, ..FaultPlan::default() });
    let hour = Duration::from_secs(3600);
    let slow = RetryPolicy { backoff: Backoff { base: hour, cap: hour }, ..FAST };
    let (cancel, sent) = (CancellationToken::new(), body(1, 10));
    let tags = tag(&sent, "t");
    let stop = async {
        while store.counts().failed == 0 {
            tokio::task::yield_now().await;
        }
        cancel.cancel();
    };
    let (ended, ()) = tokio::join!(put_idempotent(&store, "k", sent, &tags, &slow, &cancel), stop);
    assert_eq!(ended.unwrap_err().kind, Kind::Cancelled);
}

#[tokio::test(flavor = "multi_thread")]
async fn of_many_uploads_of_different_bytes_under_faults_one_wins() {
    let (inner, store) = faulty(thirty_percent(7));
    let store = Arc::new(store);
    for round in 0..20 {
        let key = format!("race/{round}");
        let tasks = (0..16u64).map(|i| {
            let (store, key, sent) = (store.clone(), key.clone(), body(i, 500));
            tokio::spawn(async move {
                let tags = tag(&sent, &format!("racer {i}"));
                put_idempotent(store.as_ref(), &key, sent, &tags, &FAST, &CancellationToken::new()).await.unwrap().outcome
            })
        });
        let outcomes: Vec<PutOutcome> = join_all(tasks).await.into_iter().map(Result::unwrap).collect();
        let winners: Vec<u64> = (0u64..).zip(&outcomes).filter(|(_, outcome)| **outcome != PutOutcome::Conflict).map(|(i, _)| i).collect();
        assert_eq!(winners.len(), 1, "round {round}: {outcomes:?}");
        assert_eq!(inner.get(&key, None).await.unwrap(), body(winners[0], 500));
    }
}

#[tokio::test]
async fn a_seed_repeats_a_run() {
    let run = async |seed| {
        let (_, store) = faulty(thirty_percent(seed));
        for i in 0..50 {
            upload(&store, &format!("k{i}"), &body(i, 50), &FAST).await.unwrap();
        }
        store.counts()
    };
    let first = run(5).await;
    assert_eq!(first, run(5).await);
    assert_ne!(first, run(6).await);
}

#[tokio::test]
async fn a_stale_listing_lacks_the_newest_and_stays_in_order() {
    let (inner, store) = faulty(FaultPlan { stale_list: 1.0, ..FaultPlan::default() });
    for i in 0..20 {
        store.put_new(&format!("k{i:02}"), body(i, 1), &tag(b"", "t")).await.unwrap();
    }
    let store: Store = Arc::new(store);
    assert_eq!(keys(&inner, "", 5).await.len(), 20);
    let expected: Vec<String> = (0..12).map(|i| format!("k{i:02}")).collect();
    assert_eq!(keys(&store, "", 5).await, expected);
}
