//! The queue: claims, ends without success, the operator's hand.

use std::collections::HashSet;
use std::time::Duration;

use argon::fault::Kind;
use argon::ledger::*;

use crate::bench::{Bench, commit, lease, segment};

const MS: Duration = Duration::from_millis(1);

pub(crate) async fn claims_come_in_order_with_lease_and_attempt(b: Bench) {
    let mut line = b.line("e1").await;
    let mut ids = Vec::new();
    for _ in 0..5 {
        ids.push(line.put(1).await);
        b.pass(2 * MS).await;
    }
    assert!(b.claim("e1", 0).await.is_empty());
    assert!(b.claim_with(&ClaimRequest::new("e1", &[], 9).alone(true)).await.is_empty());
    let first = b.claim("e1", 2).await;
    let rest = b.claim("e2", 9).await;
    let got: Vec<_> = first.iter().chain(&rest).map(|j| j.id.clone()).collect();
    assert_eq!(got, ids);
    for job in &first {
        assert_eq!((job.state, job.attempt), (JobState::Running, 1));
        let lease = job.lease.as_ref().unwrap();
        assert_eq!(lease.engine, "e1");
        assert_eq!(&b.job(&job.id).await, job, "what a claim returns is what is stored");
    }
    assert_ne!(lease(&first[0]).token, lease(&rest[0]).token);
    assert!(b.claim("e1", 9).await.is_empty());
}

pub(crate) async fn sixteen_claimers_claim_each_of_two_hundred_jobs_once(b: Bench) {
    let mut line = b.line("e1").await;
    let mut stored = HashSet::new();
    for _ in 0..200 {
        stored.insert(line.put(1).await);
    }
    let claimers = (0..16).map(|n| {
        let ledger = b.ledger.clone();
        tokio::spawn(async move {
            let (engine, mut mine, mut empty) = (format!("e{n}"), Vec::new(), 0);
            // A claim may come back empty because others took all it saw: only a queue without ready jobs ends the loop.
            while ledger.depth().await.unwrap().ready > 0 {
                let got = ledger.claim(&ClaimRequest::new(&engine, &[JobKind::Sync], 7)).await.unwrap();
                empty += usize::from(got.is_empty());
                assert!(empty < 500, "no progress");
                mine.extend(got);
            }
            for job in &mine {
                assert_eq!(job.lease.as_ref().unwrap().engine, engine);
                assert_eq!(job.attempt, 1);
            }
            mine.into_iter().map(|j| j.id).collect::<Vec<_>>()
        })
    });
    let mut claimed = Vec::new();
    for claimer in claimers.collect::<Vec<_>>() {
        claimed.extend(claimer.await.unwrap());
    }
    assert_eq!(claimed.len(), 200);
    b.settle().await;
    assert_eq!(claimed.into_iter().collect::<HashSet<_>>(), stored);
    assert_eq!(b.ledger.depth().await.unwrap().running, 200);
}

/// Lets `engine`'s process die while it runs everything it has claimed.
async fn die(b: &Bench, engine: &str) -> Rescued {
    b.beat(engine).await;
    b.ledger.rescue("rescuer", crate::bench::silent_for(&*b.ledger, Duration::from_secs(3_600)).await, &[engine.to_owned()]).await.unwrap()
}

pub(crate) async fn rule_26_a_suspect_is_claimed_only_alone(b: Bench) {
    let mut line = b.line("e0").await;
    b.beat("e0").await;
    let suspect = line.put(1).await;
    for n in 0..2 {
        let engine = format!("dies{n}");
        assert_eq!(b.claim(&engine, 1).await.len(), 1);
        die(&b, &engine).await;
    }
    assert_eq!(b.job(&suspect).await.crashes, 2);
    b.pass(2 * MS).await;
    let innocent = line.put(1).await;
    let busy = b.claim_with(&ClaimRequest::new("e1", &[JobKind::Sync], 9)).await;
    assert_eq!(busy.iter().map(|j| &j.id).collect::<Vec<_>>(), [&innocent], "not beside others");
    b.ledger.fail(&lease(&busy[0]), &Failed::GiveBack { delay: Duration::ZERO, error: None }).await.unwrap();
    let alone = b.claim_with(&ClaimRequest::new("e1", &[JobKind::Sync], 9).alone(true)).await;
    assert_eq!(alone.iter().map(|j| &j.id).collect::<Vec<_>>(), [&suspect], "and nothing beside it");
    let other = b.claim_with(&ClaimRequest::new("e2", &[JobKind::Sync], 9).alone(true)).await;
    assert_eq!(other.iter().map(|j| &j.id).collect::<Vec<_>>(), [&innocent]);
    assert!(b.claim_with(&ClaimRequest::new("e3", &[JobKind::Sync], 9).alone(true)).await.is_empty());
}

pub(crate) async fn a_retry_waits_for_its_time_by_the_servers_clock(b: Bench) {
    let mut line = b.line("e1").await;
    let id = line.put(1).await;
    let job = b.claim("e1", 1).await.remove(0);
    let now = b.ledger.now_ms().await.unwrap();
    let how = Failed::Retry { delay: Duration::from_millis(300), error: "no\nway".to_owned() };
    assert!(b.ledger.fail(&lease(&job), &how).await.unwrap());
    let job = b.job(&id).await;
    assert_eq!((job.state, job.attempt, job.lease.clone()), (JobState::Scheduled, 1, None));
    assert!((now + 300..now + 5_000).contains(&job.run_at_ms), "{} {now}", job.run_at_ms);
    assert_eq!(job.error_count, 1);
    assert_eq!((job.errors[0].attempt, job.errors[0].engine.as_str(), job.errors[0].error.as_str()), (1, "e1", "no way"));
    assert_eq!(b.ledger.promote().await.unwrap(), 0, "not yet");
    assert!(b.claim("e1", 1).await.is_empty());
    b.pass(Duration::from_millis(300)).await;
    assert_eq!(b.ledger.promote().await.unwrap(), 1);
    let again = b.claim("e1", 1).await.remove(0);
    assert_eq!((again.id.clone(), again.attempt), (id, 2));
    assert_ne!(lease(&again), lease(&job_with_lease(&again, "x")), "sanity of the helper");
}

fn job_with_lease(job: &Job, token: &str) -> Job {
    let mut job = job.clone();
    job.lease.as_mut().unwrap().token = token.to_owned();
    job
}

pub(crate) async fn rule_27_job_times_are_the_servers(b: Bench) {
    let mut line = b.line("e1").await;
    let before = b.ledger.now_ms().await.unwrap();
    let id = line.put(1).await;
    let after = b.ledger.now_ms().await.unwrap();
    let job = b.job(&id).await;
    for ms in [job.run_at_ms, job.created_ms] {
        assert!((before..=after).contains(&ms), "{before} {ms} {after}");
    }
    let boost = argon::queue::boost_ms(argon::queue::Priority::of(JobKind::Sync));
    assert_eq!(job.sched_key, job.run_at_ms - boost);
    let job = b.claim("e1", 1).await.remove(0);
    assert!(job.lease.as_ref().unwrap().claimed_ms >= before);
    b.ledger.fail(&lease(&job), &Failed::Retry { delay: 10 * MS, error: "x".to_owned() }).await.unwrap();
    let job = b.job(&id).await;
    assert_eq!(job.sched_key, job.run_at_ms - boost, "a retry keeps the boost");
}

pub(crate) async fn a_job_given_back_has_not_used_its_attempt(b: Bench) {
    let mut line = b.line("e1").await;
    let id = line.put(1).await;
    let job = b.claim("e1", 1).await.remove(0);
    assert!(b.ledger.fail(&lease(&job), &Failed::GiveBack { delay: Duration::ZERO, error: None }).await.unwrap());
    let stored = b.job(&id).await;
    assert_eq!((stored.state, stored.attempt, stored.error_count), (JobState::Ready, 0, 0), "at once");
    assert_eq!((stored.run_at_ms, stored.sched_key), (job.run_at_ms, job.sched_key), "it keeps its place in line");
    let job = b.claim("e1", 1).await.remove(0);
    let outage = Failed::GiveBack { delay: Duration::from_millis(50), error: Some("503".to_owned()) };
    assert!(b.ledger.fail(&lease(&job), &outage).await.unwrap());
    let stored = b.job(&id).await;
    assert_eq!((stored.state, stored.attempt, stored.error_count), (JobState::Scheduled, 0, 1));
    assert_eq!(stored.errors[0].error, "503");
}

pub(crate) async fn a_stale_lease_ends_nothing_and_a_lost_answer_is_told_again(b: Bench) {
    let mut line = b.line("e1").await;
    let id = line.put(1).await;
    let old = b.claim("e1", 1).await.remove(0);
    let give_back = Failed::GiveBack { delay: Duration::ZERO, error: None };
    b.faulty.script(LedgerCall::Fail, Mishap::AnswerLost);
    assert_eq!(b.faulty.fail(&lease(&old), &give_back).await.unwrap_err().kind, Kind::Unknown);
    assert!(b.faulty.fail(&lease(&old), &give_back).await.unwrap(), "it was ours and it is done");
    let new = b.claim("e2", 1).await.remove(0);
    assert_eq!(new.attempt, old.attempt, "only the token tells them apart");
    for how in [Failed::Retry { delay: MS, error: "x".to_owned() }, Failed::Dead { error: "x".to_owned() }] {
        let stranger = JobLease { token: "stranger".to_owned(), ..lease(&new) };
        assert!(!b.ledger.fail(&stranger, &how).await.unwrap());
        let wrong_attempt = JobLease { attempt: new.attempt + 1, ..lease(&new) };
        assert!(!b.ledger.fail(&wrong_attempt, &how).await.unwrap());
    }
    assert_eq!(b.job(&id).await, new, "nothing has changed");
    let none = JobLease { id: "none".to_owned(), ..lease(&new) };
    assert!(!b.ledger.fail(&none, &give_back).await.unwrap());
}

pub(crate) async fn the_error_history_keeps_the_newest(b: Bench) {
    let mut line = b.line("e1").await;
    let id = line.put(1).await;
    for n in 0..MAX_JOB_ERRORS + 5 {
        let job = b.claim("e1", 1).await.remove(0);
        b.ledger.fail(&lease(&job), &Failed::GiveBack { delay: Duration::ZERO, error: Some(format!("$error {n}")) }).await.unwrap();
    }
    let job = b.job(&id).await;
    assert_eq!(job.errors.len(), MAX_JOB_ERRORS);
    assert_eq!(job.error_count as usize, MAX_JOB_ERRORS + 5);
    assert_eq!(job.errors.last().unwrap().error, format!("$error {}", MAX_JOB_ERRORS + 4));
    assert_eq!(job.errors[0].error, "$error 5");
    let listed = b.ledger.jobs(&JobFilter::default(), 10).await.unwrap().remove(0);
    assert_eq!(listed, Job { errors: vec![job.errors.last().cloned().unwrap()], ..job }, "a list has the newest only");
}

async fn kill_next(b: &Bench) -> String {
    let job = b.claim("e1", 1).await.remove(0);
    assert!(b.ledger.fail(&lease(&job), &Failed::Dead { error: "access denied".to_owned() }).await.unwrap());
    job.id
}

pub(crate) async fn a_dead_sync_job_stalls_its_branch_until_it_is_retried(b: Bench) {
    let mut line = b.line("e1").await;
    line.put(1).await;
    b.pass(2 * MS).await;
    line.put(1).await;
    let (one, two) = (kill_next(&b).await, kill_next(&b).await);
    let branch = b.branch(&line.branch).await;
    assert_eq!(branch.status, BranchStatus::Stalled);
    let reason = branch.reason.unwrap();
    assert!(reason.contains(&one) || reason.contains(&two), "{reason}");
    assert!(reason.contains("access denied"));
    let dead = b.job(&one).await;
    assert_eq!(dead.state, JobState::Dead);
    assert!(dead.finished_ms.is_some() && dead.lease.is_none());
    assert_eq!(b.ledger.payload(&one).await.unwrap().len(), 2, "a dead job keeps its payload");

    assert!(b.ledger.retry_job(&one).await.unwrap());
    assert!(!b.ledger.retry_job(&one).await.unwrap(), "it is ready now");
    assert_eq!(b.branch(&line.branch).await.status, BranchStatus::Stalled, "the other one is still dead");
    assert!(b.ledger.retry_job(&two).await.unwrap());
    let branch = b.branch(&line.branch).await;
    assert_eq!((branch.status, branch.reason), (BranchStatus::Active, None));
    let job = b.job(&one).await;
    assert_eq!((job.state, job.attempt, job.crashes, job.finished_ms, job.error_count), (JobState::Ready, 0, 0, None, 1));
    assert!(!b.ledger.retry_job("none").await.unwrap());
}

pub(crate) async fn two_operators_revive_the_last_two_dead_jobs_and_the_branch_is_active(b: Bench) {
    for _ in 0..5 {
        let mut line = b.line("e1").await;
        line.put(1).await;
        line.put(1).await;
        let (one, two) = (kill_next(&b).await, kill_next(&b).await);
        let (a, c) = tokio::join!(b.ledger.retry_job(&one), b.ledger.retry_job(&two));
        assert!(a.unwrap() && c.unwrap());
        assert_eq!(b.branch(&line.branch).await.status, BranchStatus::Active);
        b.claim("e1", 9).await;
    }
}

pub(crate) async fn rule_25_a_discarded_job_leaves_a_gap_with_its_bounds(b: Bench) {
    let mut line = b.line("e1").await;
    for changes in [3, 4, 5] {
        line.put(changes).await;
        b.pass(2 * MS).await;
    }
    let dead = kill_next(&b).await;
    let jobs = b.claim("e1", 2).await;
    b.ledger.commit(&jobs.iter().map(commit).collect::<Vec<_>>()).await.unwrap();
    assert_eq!(b.branch(&line.branch).await.head.seq, 0, "the dead job holds the head");

    assert_eq!(b.ledger.losses(&line.branch, 0, 1).await.unwrap(), []);
    let job = b.job(&dead).await;
    let gap = segment(&job, SegmentKind::Gap);
    for wrong in [
        SegmentRow { last_seq: gap.last_seq + 1, ..gap.clone() },
        SegmentRow { kind: SegmentKind::Changes, ..gap.clone() },
        SegmentRow { branch: "other".to_owned(), ..gap.clone() },
    ] {
        assert_eq!(b.ledger.discard_job(&dead, &wrong).await.unwrap_err().kind, Kind::Rejected);
    }
    b.faulty.script(LedgerCall::DiscardJob, Mishap::AnswerLost);
    assert_eq!(b.faulty.discard_job(&dead, &gap).await.unwrap_err().kind, Kind::Unknown);
    assert!(b.faulty.discard_job(&dead, &gap).await.unwrap());
    let branch = b.branch(&line.branch).await;
    assert_eq!(branch.status, BranchStatus::Gap);
    assert!(branch.reason.unwrap().contains("1 to 3"));
    assert_eq!(branch.head.seq, 12, "the head goes on over the gap");
    assert_eq!(branch.totals, Totals { changes: 9, raw_bytes: 1_200, stored_bytes: 30, segments: 3 });
    assert_eq!(branch.settled_bytes, 4_500);
    assert_eq!(b.job(&dead).await.state, JobState::Cancelled);
    assert_eq!(b.ledger.payload(&dead).await.unwrap_err().kind, Kind::Missing);
    let first = &b.ledger.segments(&line.branch, 1, 9).await.unwrap()[0];
    assert_eq!((first.kind, first.first_seq, first.last_seq), (SegmentKind::Gap, 1, 3));
    assert_eq!(b.ledger.losses(&line.branch, 0, 1).await.unwrap().first(), Some(first));
    assert_eq!(b.ledger.losses("other", 0, 1).await.unwrap(), []);
    // The status of a branch with a gap survives a capture that fails and runs again.
    b.ledger.set_capture_state(&line.capture, CaptureState::Failed, Some("x")).await.unwrap();
    b.ledger.set_capture_state(&line.capture, CaptureState::Running, None).await.unwrap();
    assert_eq!(b.branch(&line.branch).await.status, BranchStatus::Gap);

    line.put(1).await;
    let running = b.claim("e1", 1).await.remove(0);
    let gap = segment(&running, SegmentKind::Gap);
    assert!(!b.ledger.discard_job(&running.id, &gap).await.unwrap(), "its owner may be about to commit");
    assert!(!b.ledger.discard_job("none", &gap).await.unwrap());
}

pub(crate) async fn rule_25_a_job_that_ends_inside_a_transaction_can_be_discarded(b: Bench) {
    for (starts_inside, ends) in [(false, Ends::Open), (true, Ends::Unknown), (true, Ends::Open), (true, Ends::Closed)] {
        let mut line = b.line("e1").await;
        let mut write = line.checkpoint(2);
        let spec = &mut write.batch.as_mut().unwrap().spec;
        (spec.starts_inside, spec.ends) = (starts_inside, ends);
        assert_eq!(b.ledger.checkpoint(&write).await.unwrap(), Checkpointed::Stored);
        line.next_seq += 2;
        let dead = kill_next(&b).await;
        assert!(b.ledger.discard_job(&dead, &segment(&b.job(&dead).await, SegmentKind::Gap)).await.unwrap());
        let row = b.ledger.segments(&line.branch, 1, 9).await.unwrap().remove(0);
        assert_eq!((row.starts_inside, row.ends), (starts_inside, ends), "readers find boundaries by these");
        assert_eq!(b.branch(&line.branch).await.head.seq, 2);
    }
}

pub(crate) async fn finished_jobs_are_swept_and_dead_ones_never(b: Bench) {
    let mut line = b.line("e1").await;
    for _ in 0..7 {
        line.put(1).await;
        b.pass(2 * MS).await;
    }
    let dead = kill_next(&b).await;
    let done = b.claim("e1", 5).await;
    b.ledger.commit(&done.iter().map(commit).collect::<Vec<_>>()).await.unwrap();
    let age = Duration::from_millis(400);
    assert_eq!(b.ledger.sweep_jobs(age, 100).await.unwrap(), 0, "too young");
    b.pass(age).await;
    assert_eq!(b.ledger.sweep_jobs(age, 2).await.unwrap(), 2);
    assert_eq!(b.ledger.sweep_jobs(age, 100).await.unwrap(), 3);
    let left = b.ledger.jobs(&JobFilter::default(), 100).await.unwrap();
    assert_eq!(left.iter().map(|j| j.state).collect::<Vec<_>>(), [JobState::Dead, JobState::Ready]);
    assert_eq!(left[0].id, dead);
}

pub(crate) async fn jobs_are_counted_and_listed(b: Bench) {
    let (mut line, mut other) = (b.line("e1").await, b.line("e1").await);
    let mut ids = Vec::new();
    for _ in 0..4 {
        ids.push(line.put(1).await);
        b.pass(2 * MS).await;
    }
    let elsewhere = other.put(1).await;
    let dead = kill_next(&b).await;
    let job = b.claim("e1", 1).await.remove(0);
    b.ledger.fail(&lease(&job), &Failed::Retry { delay: Duration::from_secs(60), error: "x".to_owned() }).await.unwrap();
    b.claim("e1", 1).await;
    let depth = b.ledger.depth().await.unwrap();
    assert_eq!(depth, QueueDepth { scheduled: 1, ready: 2, running: 1, dead: 1 });

    let list = |filter: JobFilter, max| {
        let ledger = b.ledger.clone();
        async move { ledger.jobs(&filter, max).await.unwrap().into_iter().map(|j| j.id).collect::<Vec<_>>() }
    };
    ids.push(elsewhere.clone());
    ids.sort();
    assert_eq!(list(JobFilter::default(), 100).await, ids);
    assert_eq!(list(JobFilter::default(), 2).await, ids[..2]);
    assert_eq!(list(JobFilter { after: Some(ids[1].clone()), ..JobFilter::default() }, 2).await, ids[2..4]);
    assert_eq!(list(JobFilter { branch: Some(other.branch.clone()), ..JobFilter::default() }, 9).await, [elsewhere]);
    assert_eq!(list(JobFilter { state: Some(JobState::Dead), kind: Some(JobKind::Sync), ..JobFilter::default() }, 9).await, [dead]);
    assert!(list(JobFilter::default(), 0).await.is_empty());
}
