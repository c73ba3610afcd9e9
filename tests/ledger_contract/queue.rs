//! Jobs of all kinds: storing, order, unique keys, pauses, starts, grouped ends, cancellation.

use std::collections::BTreeMap;
use std::time::Duration;

use argon::fault::Kind;
use argon::ledger::*;
use argon::queue::{boost_ms, sched_key};
use argon::runtime::random;
use bson::rawdoc;

use crate::bench::{Bench, beat, lease};

const MS: Duration = Duration::from_millis(1);
const HOUR: Duration = Duration::from_secs(3_600);

pub(crate) fn new_job(kind: JobKind) -> NewJob {
    NewJob::new(random::ordered_id(), kind)
}

pub(crate) async fn what_is_enqueued_is_stored_once(b: Bench) {
    let params = rawdoc! { "duration_ms": 5, "$odd": "$kind" };
    let new = NewJob {
        branch: Some("b1".to_owned()),
        params: Some(params.clone()),
        retries: Some(7),
        unique_key: Some("$key".to_owned()),
        ..new_job(JobKind::Noop)
    };
    let other = new_job(JobKind::Cleanup);
    let both = [new.clone(), other.clone()];
    b.faulty.script(LedgerCall::Enqueue, Mishap::AnswerLost);
    assert_eq!(b.faulty.enqueue(&both).await.unwrap_err().kind, Kind::Unknown);
    let stored = b.job(&new.id).await;
    assert_eq!(b.faulty.enqueue(&both).await.unwrap(), [Enqueued::Already, Enqueued::Already], "it was ours");
    assert_eq!(b.job(&new.id).await, stored, "and nothing of it changes");
    assert_eq!((stored.state, stored.kind, stored.branch_id()), (JobState::Ready, JobKind::Noop, Some("b1")));
    assert_eq!((stored.params, stored.retries, stored.unique_key.as_deref()), (Some(params), Some(7), Some("$key")));
    assert_eq!(b.job(&other.id).await.branch_id(), None);
    // The same job twice in one call, and again after it has run.
    let third = new_job(JobKind::Noop);
    assert_eq!(b.ledger.enqueue(&[third.clone(), third.clone()]).await.unwrap(), [Enqueued::Stored, Enqueued::Already]);
    let claimed = b.claim_kind("e1", JobKind::Noop, 9).await;
    assert_eq!(claimed.len(), 2);
    assert_eq!(b.ledger.enqueue(&[third]).await.unwrap(), [Enqueued::Already]);
    assert!(b.ledger.enqueue(&[]).await.unwrap().is_empty());
}

pub(crate) async fn rule_27_times_of_enqueued_jobs_are_the_servers(b: Bench) {
    let (now_job, later) = (new_job(JobKind::Noop), NewJob { delay: Duration::from_millis(300), ..new_job(JobKind::Noop) });
    let high = NewJob { priority: Some(Priority::High), ..new_job(JobKind::Cleanup) };
    let before = b.ledger.now_ms().await.unwrap();
    b.ledger.enqueue(&[now_job.clone(), later.clone(), high.clone()]).await.unwrap();
    let after = b.ledger.now_ms().await.unwrap();
    for (new, delay, priority, state) in [
        (&now_job, 0, Priority::of(JobKind::Noop), JobState::Ready),
        (&later, 300, Priority::of(JobKind::Noop), JobState::Scheduled),
        (&high, 0, Priority::High, JobState::Ready),
    ] {
        let job = b.job(&new.id).await;
        assert!((before..=after).contains(&job.created_ms), "{before} {} {after}", job.created_ms);
        assert_eq!((job.run_at_ms, job.state, job.priority), (job.created_ms + delay, state, priority));
        assert_eq!(job.sched_key, sched_key(job.run_at_ms, priority));
    }
    assert_eq!(b.ledger.promote().await.unwrap(), 0, "not yet");
    b.pass(Duration::from_millis(300)).await;
    assert_eq!(b.ledger.promote().await.unwrap(), 1);
    assert_eq!(b.job(&later.id).await.state, JobState::Ready);
}

pub(crate) async fn what_cannot_be_a_job_is_refused_and_nothing_is_stored(b: Bench) {
    let good = new_job(JobKind::Noop);
    for bad in [
        new_job(JobKind::Sync),
        NewJob { id: String::new(), ..new_job(JobKind::Noop) },
        NewJob { unique_key: Some(String::new()), ..new_job(JobKind::Noop) },
        NewJob { unique_key: Some("k".repeat(600)), ..new_job(JobKind::Noop) },
        NewJob { params: Some(rawdoc! { "x": "y".repeat(70_000) }), ..new_job(JobKind::Noop) },
    ] {
        assert_eq!(b.ledger.enqueue(&[good.clone(), bad]).await.unwrap_err().kind, Kind::Rejected);
    }
    let many: Vec<NewJob> = (0..=MAX_ENQUEUE).map(|_| new_job(JobKind::Noop)).collect();
    assert_eq!(b.ledger.enqueue(&many).await.unwrap_err().kind, Kind::Rejected);
    assert_eq!(b.ledger.job(&good.id).await.unwrap(), None);
}

pub(crate) async fn the_higher_priority_is_claimed_first(b: Bench) {
    let of = |priority| NewJob { priority: Some(priority), ..new_job(JobKind::Noop) };
    let jobs = [of(Priority::Low), of(Priority::Normal), of(Priority::High), of(Priority::Normal)];
    for job in &jobs {
        b.ledger.enqueue(std::slice::from_ref(job)).await.unwrap();
        b.pass(2 * MS).await;
    }
    // Kinds share one line: a cleanup is low by itself.
    let (cleanup, notification) = (new_job(JobKind::Cleanup), new_job(JobKind::Notification));
    b.ledger.enqueue(&[cleanup.clone(), notification.clone()]).await.unwrap();
    let all = b.claim_with(&ClaimRequest::new("e1", &JobKind::ALL, 9)).await;
    let got: Vec<&str> = all.iter().map(|j| j.id.as_str()).collect();
    let expected = [&jobs[2], &notification, &jobs[1], &jobs[3], &jobs[0], &cleanup].map(|j| j.id.as_str());
    assert_eq!(got, expected);
    // A retry keeps the priority.
    b.ledger.fail(&lease(&all[0]), &Failed::Retry { delay: 10 * MS, error: "x".to_owned() }).await.unwrap();
    let job = b.job(&all[0].id).await;
    assert_eq!(job.run_at_ms - job.sched_key, boost_ms(Priority::High));
}

pub(crate) async fn a_unique_key_is_held_while_its_job_waits_or_runs(b: Bench) {
    let keyed = || NewJob { unique_key: Some("nightly".to_owned()), ..new_job(JobKind::Cleanup) };
    let put = async |new: &NewJob| b.ledger.enqueue(std::slice::from_ref(new)).await.unwrap().remove(0);
    let (first, second) = (NewJob { delay: HOUR, ..keyed() }, keyed());
    assert_eq!(put(&first).await, Enqueued::Stored);
    let taken = Enqueued::Duplicate { job: first.id.clone() };
    assert_eq!(put(&second).await, taken, "scheduled");
    assert_eq!(put(&first).await, Enqueued::Already, "a repeat is no duplicate");
    assert!(b.ledger.retry_job(&first.id).await.unwrap());
    assert_eq!(put(&second).await, taken, "ready");
    let job = b.claim_kind("e1", JobKind::Cleanup, 1).await.remove(0);
    assert_eq!(put(&second).await, taken, "running");
    // Dead: the key is free, and the dead one may not come back while another has it.
    b.ledger.fail(&lease(&job), &Failed::Dead { error: "x".to_owned() }).await.unwrap();
    assert_eq!(put(&second).await, Enqueued::Stored);
    assert_eq!(b.ledger.retry_job(&first.id).await.unwrap_err().kind, Kind::Rejected);
    assert_eq!(b.job(&first.id).await.state, JobState::Dead);
    let other = b.claim_kind("e1", JobKind::Cleanup, 1).await;
    assert_eq!(b.finish("e1", &other).await, [Finished::Now]);
    assert!(b.ledger.retry_job(&first.id).await.unwrap());
    // One call with the same key twice: the first has it. Keys of others are no matter.
    let (x, y) = (NewJob { unique_key: Some("x".to_owned()), ..keyed() }, NewJob { unique_key: Some("x".to_owned()), ..keyed() });
    let z = NewJob { unique_key: Some("z".to_owned()), ..keyed() };
    let outcomes = b.ledger.enqueue(&[x.clone(), y, z, new_job(JobKind::Cleanup)]).await.unwrap();
    assert_eq!(outcomes, [Enqueued::Stored, Enqueued::Duplicate { job: x.id }, Enqueued::Stored, Enqueued::Stored]);
}

pub(crate) async fn sixteen_calls_at_once_store_one_job_of_a_key(b: Bench) {
    let calls = (0..16).map(|_| {
        let ledger = b.ledger.clone();
        let job = NewJob { unique_key: Some("one".to_owned()), ..new_job(JobKind::Noop) };
        tokio::spawn(async move { ledger.enqueue(&[job]).await.unwrap().remove(0) })
    });
    let mut stored = 0;
    for call in calls.collect::<Vec<_>>() {
        stored += usize::from(call.await.unwrap() == Enqueued::Stored);
    }
    assert_eq!((stored, b.ledger.depth().await.unwrap().ready), (1, 1));
}

pub(crate) async fn a_claim_marks_as_started_what_goes_to_a_free_worker(b: Bench) {
    b.put_noops(5).await;
    let jobs = b.claim_with(&ClaimRequest::new("e1", &[JobKind::Noop], 5).start(2)).await;
    let started: Vec<bool> = jobs.iter().map(|j| j.lease.as_ref().unwrap().started).collect();
    assert_eq!(started, [true, true, false, false, false], "the first in line");
    for job in &jobs {
        assert_eq!(&b.job(&job.id).await, job);
        let lease = job.lease.as_ref().unwrap();
        assert_eq!(lease.started_ms, lease.started.then_some(lease.claimed_ms));
    }
    let mut leases: Vec<JobLease> = jobs.iter().skip(1).map(lease).collect();
    leases[3].attempt += 1;
    let before = b.job(&jobs[1].id).await;
    b.pass(2 * MS).await;
    assert_eq!(b.ledger.start_many(&leases).await.unwrap(), [true, true, true, false]);
    b.settle().await;
    assert_eq!(b.job(&jobs[1].id).await, before, "a start is when it was");
    let second = b.job(&jobs[2].id).await.lease.unwrap();
    assert!(second.started && second.started_ms.unwrap() > second.claimed_ms);
    assert!(!b.job(&jobs[4].id).await.lease.unwrap().started);
    b.faulty.script(LedgerCall::Start, Mishap::AnswerLost);
    assert_eq!(b.faulty.start_many(&leases[..2]).await.unwrap_err().kind, Kind::Unknown);
    assert_eq!(b.faulty.start_many(&leases[..2]).await.unwrap(), [true, true]);
    assert!(b.ledger.start_many(&[]).await.unwrap().is_empty());
    // Only what has started has crashed.
    b.beat("e1").await;
    assert_eq!(b.ledger.rescue("e2", None, &["e1".to_owned()]).await.unwrap().jobs, 5);
    let mut crashes = Vec::new();
    for job in &jobs {
        crashes.push(b.job(&job.id).await.crashes);
    }
    assert_eq!(crashes, [1, 1, 1, 1, 0]);
}

pub(crate) async fn jobs_are_finished_together_and_counted_once(b: Bench) {
    b.put_noops(4).await;
    b.ledger.enqueue(&[new_job(JobKind::Cleanup)]).await.unwrap();
    let (one, two) = (b.claim_kind("e1", JobKind::Noop, 2).await, b.claim_kind("e1", JobKind::Noop, 9).await);
    let other = b.claim_kind("e1", JobKind::Cleanup, 1).await;
    let all: Vec<Job> = [one, two, other].concat();
    b.ledger.fail(&lease(&all[1]), &Failed::GiveBack { delay: Duration::ZERO, error: None }).await.unwrap();
    let ends = b.ends(&all);
    b.faulty.script(LedgerCall::Finish, Mishap::AnswerLost);
    assert_eq!(b.faulty.finish("e1", &ends[..1]).await.unwrap_err().kind, Kind::Unknown);
    let done = b.job(&all[0].id).await;
    assert!(done.state == JobState::Done && done.lease.is_none() && done.finished_ms.is_some());
    let outcomes = b.ledger.finish("e1", &ends).await.unwrap();
    assert_eq!(outcomes, [Finished::Already, Finished::Fenced, Finished::Now, Finished::Now, Finished::Now]);
    assert_eq!(b.job(&all[0].id).await, done, "nothing is done twice");
    assert_eq!(b.job(&all[1].id).await.state, JobState::Ready, "it was given back");
    let stats = b.ledger.queue_stats().await.unwrap();
    assert_eq!(stats.counters.done, BTreeMap::from([(JobKind::Noop, 3), (JobKind::Cleanup, 1)]));
    // A stale lease, a wrong attempt, a wrong kind, a job that is gone: fenced, and the others are not touched.
    b.put_noops(1).await;
    let again = b.claim_kind("e2", JobKind::Noop, 9).await;
    assert_eq!(again.len(), 2);
    let mut wrong = b.ends(&again);
    wrong[0].lease.attempt += 1;
    wrong[1].kind = JobKind::Cleanup;
    wrong.push(ends[2].clone());
    wrong.push(Finish { lease: JobLease { id: "none".to_owned(), token: "t".to_owned(), attempt: 1 }, kind: JobKind::Noop });
    let outcomes = b.ledger.finish("e2", &wrong).await.unwrap();
    assert_eq!(outcomes, [Finished::Fenced, Finished::Fenced, Finished::Already, Finished::Fenced]);
    assert_eq!(b.ledger.depth().await.unwrap().running, 2);
    for odd in &wrong[..2] {
        assert_eq!(b.ledger.finish("e2", std::slice::from_ref(odd)).await.unwrap(), [Finished::Fenced], "{odd:?}");
    }
    // An old attempt of a job whose new attempt is in the same call.
    b.ledger.fail(&lease(&again[0]), &Failed::GiveBack { delay: Duration::ZERO, error: None }).await.unwrap();
    let new = b.claim_kind("e2", JobKind::Noop, 1).await;
    assert_eq!(new[0].id, again[0].id);
    assert_eq!(b.finish("e2", &[again[0].clone(), again[1].clone()]).await, [Finished::Fenced, Finished::Now]);
    assert_eq!(b.finish("e2", &new).await, [Finished::Now]);
    assert!(b.ledger.finish("e2", &[]).await.unwrap().is_empty());
}

pub(crate) async fn a_finish_that_cannot_be_is_refused(b: Bench) {
    let mut line = b.line("e1").await;
    line.put(1).await;
    b.put_noops(1).await;
    let sync = b.claim("e1", 1).await.remove(0);
    let noop = b.claim_kind("e1", JobKind::Noop, 1).await.remove(0);
    let [a, c] = [&sync, &noop].map(|job| Finish { lease: lease(job), kind: job.kind });
    assert_eq!(b.ledger.finish("e1", &[c.clone(), a.clone()]).await.unwrap_err().kind, Kind::Rejected, "its end is a commit");
    assert_eq!(b.ledger.finish("e1", &[c.clone(), c.clone()]).await.unwrap_err().kind, Kind::Rejected);
    let disguised = Finish { kind: JobKind::Noop, ..a };
    assert_eq!(b.ledger.finish("e1", &[disguised, c]).await.unwrap(), [Finished::Fenced, Finished::Now]);
    assert_eq!(b.job(&sync.id).await.state, JobState::Running);
}

pub(crate) async fn a_paused_kind_is_left_out_of_claims(b: Bench) {
    b.put_noops(2).await;
    let cleanup = new_job(JobKind::Cleanup);
    b.ledger.enqueue(std::slice::from_ref(&cleanup)).await.unwrap();
    b.ledger.set_pause(&PauseTarget::Kind(JobKind::Noop), true, "me").await.unwrap();
    let request = async || ClaimRequest::new("e1", &JobKind::ALL, 9).pauses(b.ledger.pauses().await.unwrap());
    let got = b.claim_with(&request().await).await;
    assert_eq!(got.iter().map(|j| &j.id).collect::<Vec<_>>(), [&cleanup.id]);
    assert_eq!(b.ledger.depth().await.unwrap().ready, 2, "they wait where they are");
    b.ledger.set_pause(&PauseTarget::Kind(JobKind::Noop), false, "me").await.unwrap();
    b.ledger.set_pause(&PauseTarget::All, true, "me").await.unwrap();
    assert!(b.claim_with(&request().await.alone(true)).await.is_empty());
    b.ledger.set_pause(&PauseTarget::All, false, "me").await.unwrap();
    assert_eq!(b.claim_with(&request().await).await.len(), 2);
}

pub(crate) async fn jobs_of_a_paused_branch_are_parked_and_come_back(b: Bench) {
    let (mut held, mut free) = (b.line("e1").await, b.line("e1").await);
    let mut parked = Vec::new();
    for _ in 0..3 {
        parked.push(held.put(1).await);
        b.pass(2 * MS).await;
    }
    let other = free.put(1).await;
    let pause = PauseTarget::Branch(held.branch.clone());
    b.ledger.set_pause(&pause, true, "me").await.unwrap();
    let pauses = b.ledger.pauses().await.unwrap();
    let request = ClaimRequest::new("e1", &[JobKind::Sync], 2).pauses(pauses);
    let got = b.claim_with(&request).await;
    assert_eq!(got.iter().map(|j| &j.id).collect::<Vec<_>>(), [&other], "others are not held up by those before them");
    let before = b.job(&parked[0]).await;
    assert_eq!((before.state, before.parked, before.attempt), (JobState::Scheduled, true, 0));
    assert_eq!(b.ledger.depth().await.unwrap(), QueueDepth { scheduled: 3, ready: 0, running: 1, dead: 0 });
    b.pass(5 * MS).await;
    assert_eq!(b.ledger.promote().await.unwrap(), 0, "their time has come, but not they");
    // One that comes meanwhile is met by the next claim; a retry by an operator does not get around the pause.
    parked.push(held.put(1).await);
    assert!(b.ledger.retry_job(&parked[0]).await.unwrap());
    assert!(b.claim_with(&request.clone().alone(true)).await.is_empty());
    assert_eq!(b.ledger.depth().await.unwrap().scheduled, 4);

    b.ledger.set_pause(&pause, false, "me").await.unwrap();
    let depth = b.ledger.depth().await.unwrap();
    assert_eq!((depth.scheduled, depth.ready), (0, 4), "all at once");
    // A claimer that has not heard of the end parks them again; the leader brings them back.
    assert!(b.claim_with(&request).await.is_empty());
    assert_eq!(b.ledger.promote().await.unwrap(), 4);
    let again = b.claim("e1", 9).await;
    assert_eq!(again.len(), 4);
    assert!(again.iter().all(|j| !j.parked));
    let second = again.iter().find(|j| j.id == parked[1]).unwrap();
    assert_eq!(second.sched_key, b.job(&parked[1]).await.sched_key, "and keeps its place in line");
}

pub(crate) async fn a_job_is_cancelled_where_it_is(b: Bench) {
    b.put_noops(4).await;
    let jobs = b.claim_kind("e1", JobKind::Noop, 3).await;
    b.ledger.fail(&lease(&jobs[0]), &Failed::Retry { delay: HOUR, error: "x".to_owned() }).await.unwrap();
    b.ledger.fail(&lease(&jobs[1]), &Failed::Dead { error: "x".to_owned() }).await.unwrap();
    let ready = b.ledger.jobs(&JobFilter { state: Some(JobState::Ready), ..JobFilter::default() }, 9).await.unwrap().remove(0);
    for id in [&ready.id, &jobs[0].id, &jobs[1].id] {
        assert_eq!(b.ledger.cancel_job(id).await.unwrap(), Cancelled::Now);
        assert_eq!(b.ledger.cancel_job(id).await.unwrap(), Cancelled::Already);
        let job = b.job(id).await;
        assert!(job.state == JobState::Cancelled && job.finished_ms.is_some() && job.lease.is_none());
    }
    assert_eq!(b.job(&jobs[1].id).await.error_count, 1, "its history stays");
    // A running one is asked, and its worker ends it.
    assert!(b.ledger.cancel_requests("e1").await.unwrap().is_empty());
    b.faulty.script(LedgerCall::CancelJob, Mishap::AnswerLost);
    assert_eq!(b.faulty.cancel_job(&jobs[2].id).await.unwrap_err().kind, Kind::Unknown);
    assert_eq!(b.faulty.cancel_job(&jobs[2].id).await.unwrap(), Cancelled::Requested);
    assert_eq!(b.ledger.cancel_requests("e1").await.unwrap(), [jobs[2].id.clone()]);
    assert!(b.ledger.cancel_requests("e2").await.unwrap().is_empty());
    let running = b.job(&jobs[2].id).await;
    assert!(running.cancel_requested && running.state == JobState::Running);
    assert!(b.ledger.fail(&lease(&running), &Failed::Cancelled).await.unwrap());
    assert!(b.ledger.fail(&lease(&running), &Failed::Cancelled).await.unwrap(), "it was ours");
    let job = b.job(&jobs[2].id).await;
    assert!(job.state == JobState::Cancelled && job.finished_ms.is_some() && job.lease.is_none() && job.error_count == 0);
    assert!(b.ledger.cancel_requests("e1").await.unwrap().is_empty());
    // One that was faster is done.
    b.put_noops(1).await;
    let fast = b.claim_kind("e1", JobKind::Noop, 1).await;
    b.ledger.cancel_job(&fast[0].id).await.unwrap();
    assert_eq!(b.finish("e1", &fast).await, [Finished::Now]);
    assert_eq!(b.ledger.cancel_job(&fast[0].id).await.unwrap(), Cancelled::TooLate);
    assert_eq!(b.ledger.cancel_job("none").await.unwrap_err().kind, Kind::Missing);
    assert_eq!(b.ledger.queue_stats().await.unwrap().counters.cancelled, BTreeMap::from([(JobKind::Noop, 4)]));
}

pub(crate) async fn rule_25_a_sync_job_is_not_cancelled_like_others(b: Bench) {
    let mut line = b.line("e1").await;
    let id = line.put(1).await;
    assert_eq!(b.ledger.cancel_job(&id).await.unwrap_err().kind, Kind::Rejected);
    let job = b.claim("e1", 1).await.remove(0);
    assert_eq!(b.ledger.cancel_job(&id).await.unwrap_err().kind, Kind::Rejected);
    assert_eq!(b.ledger.fail(&lease(&job), &Failed::Cancelled).await.unwrap_err().kind, Kind::Rejected);
    assert_eq!(b.job(&id).await, job, "nothing has happened");
}

pub(crate) async fn whatever_ends_a_job_that_was_to_stop_cancels_it(b: Bench) {
    let error = || "x".to_owned();
    let ends = [
        Failed::Retry { delay: HOUR, error: error() },
        Failed::GiveBack { delay: Duration::ZERO, error: None },
        Failed::GiveBack { delay: HOUR, error: Some(error()) },
        Failed::Dead { error: error() },
    ];
    for how in &ends {
        b.put_noops(1).await;
        let job = b.claim_kind("e1", JobKind::Noop, 1).await.remove(0);
        assert_eq!(b.ledger.cancel_job(&job.id).await.unwrap(), Cancelled::Requested);
        assert!(b.ledger.fail(&lease(&job), how).await.unwrap());
        let job = b.job(&job.id).await;
        assert!(job.state == JobState::Cancelled && job.finished_ms.is_some() && job.lease.is_none(), "{how:?}: {job:?}");
    }
    // Its process dies, for the first time and for the last.
    for deaths in [1, 3] {
        b.put_noops(1).await;
        let mut id = String::new();
        for n in 0..deaths {
            let engine = format!("dies{deaths}-{n}");
            b.beat(&engine).await;
            let job = b.claim_with(&ClaimRequest::new(&engine, &[JobKind::Noop], 1).alone(true).start(1)).await.remove(0);
            id = job.id;
            if n + 1 == deaths {
                b.ledger.cancel_job(&id).await.unwrap();
            }
            b.ledger.rescue("e1", None, &[engine]).await.unwrap();
        }
        let job = b.job(&id).await;
        assert!(job.state == JobState::Cancelled && job.finished_ms.is_some() && job.lease.is_none(), "{deaths}: {job:?}");
        assert_eq!(job.crashes, deaths);
    }
    assert_eq!(b.ledger.queue_stats().await.unwrap().counters.cancelled, BTreeMap::from([(JobKind::Noop, 6)]));
    assert_eq!(b.ledger.depth().await.unwrap(), QueueDepth::default());
}

pub(crate) async fn a_stuck_job_is_found_and_its_worker_fenced(b: Bench) {
    let limit = Duration::from_millis(400);
    b.beat("e1").await;
    b.put_noops(2).await;
    let old = b.claim_kind("e1", JobKind::Noop, 1).await;
    b.pass(limit).await;
    let young = b.claim_kind("e1", JobKind::Noop, 1).await;
    assert!(b.ledger.heartbeat(&beat("e1"), false).await.unwrap(), "its process lives");
    assert!(b.ledger.stuck(HOUR, 9).await.unwrap().is_empty());
    let found = b.ledger.stuck(limit, 9).await.unwrap();
    assert_eq!(found.iter().map(|j| &j.id).collect::<Vec<_>>(), [&old[0].id]);
    assert!(b.ledger.stuck(limit, 0).await.unwrap().is_empty());
    let policy =
        argon::queue::RetryPolicy { retries: 3, backoff: argon::runtime::backoff::Backoff { base: Duration::from_secs(30), cap: HOUR } };
    let how = policy.after_stuck(&found[0], limit, 0.5);
    assert!(b.ledger.fail(&found[0].held().unwrap(), &how).await.unwrap());
    let job = b.job(&old[0].id).await;
    assert_eq!((job.state, job.attempt, job.error_count), (JobState::Scheduled, 1, 1), "the attempt counts");
    assert!(job.errors[0].error.contains("JOB_STUCK_TIMEOUT"), "{:?}", job.errors);
    assert_eq!(b.finish("e1", &old).await, [Finished::Fenced], "what its worker does later is nothing");
    assert_eq!(b.finish("e1", &young).await, [Finished::Now]);
    assert_eq!(b.ledger.queue_stats().await.unwrap().counters.failed, BTreeMap::from([(JobKind::Noop, 1)]));
}
