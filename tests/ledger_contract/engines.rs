//! Heartbeats, rescue, crash loops.

use std::time::Duration;

use argon::ledger::*;

use crate::bench::{Bench, beat};

const MS: Duration = Duration::from_millis(1);
const LEASE: Duration = Duration::from_millis(400);

pub(crate) async fn only_the_first_heartbeat_creates_the_document(b: Bench) {
    assert!(!b.ledger.heartbeat(&beat("e1"), false).await.unwrap(), "there is none");
    assert!(b.ledger.engines().await.unwrap().is_empty());
    let before = b.ledger.now_ms().await.unwrap();
    assert!(b.ledger.heartbeat(&beat("e1"), true).await.unwrap());
    let first = b.ledger.engines().await.unwrap().remove(0);
    assert!(first.beat_ms >= before, "server time, whatever the caller says");
    assert_eq!(first, EngineBeat { beat_ms: first.beat_ms, ..beat("e1") });
    b.pass(5 * MS).await;
    assert!(b.ledger.heartbeat(&beat("e1"), false).await.unwrap());
    assert!(b.ledger.engines().await.unwrap()[0].beat_ms > first.beat_ms);
    b.ledger.retire("e1").await.unwrap();
    b.ledger.retire("e1").await.unwrap();
    assert!(!b.ledger.heartbeat(&beat("e1"), false).await.unwrap(), "others took us for dead: step down");
    assert!(b.ledger.engines().await.unwrap().is_empty());
}

pub(crate) async fn the_silent_are_rescued_and_the_living_are_not(b: Bench) {
    let (mut silent, mut living) = (b.line("silent").await, b.line("living").await);
    b.beat("silent").await;
    b.beat("living").await;
    let lost = silent.put(1).await;
    assert_eq!(b.claim("silent", 1).await.len(), 1);
    let kept = living.put(1).await;
    assert_eq!(b.claim("living", 1).await.len(), 1);
    b.pass(LEASE).await;
    assert!(b.ledger.heartbeat(&beat("living"), false).await.unwrap());
    let rescued = b.ledger.rescue("rescuer", crate::bench::silent_for(&*b.ledger, LEASE).await, &[]).await.unwrap();
    assert_eq!(rescued, Rescued { engines: vec!["silent".to_owned()], jobs: 1, captures: 1 });
    assert_eq!(
        b.ledger.rescue("rescuer", crate::bench::silent_for(&*b.ledger, LEASE).await, &[]).await.unwrap(),
        Rescued::default(),
        "once"
    );

    let job = b.job(&lost).await;
    assert_eq!((job.state, job.attempt, job.crashes, job.lease.clone()), (JobState::Ready, 0, 1, None));
    assert_eq!((job.error_count, job.errors[0].engine.as_str(), job.errors[0].attempt), (1, "silent", 1));
    let capture = b.ledger.capture(&silent.capture).await.unwrap().unwrap();
    assert_eq!(capture.owner, None);
    assert!(capture.fence > silent.fence, "a zombie is fenced at once");
    assert!(!b.ledger.heartbeat(&beat("silent"), false).await.unwrap());

    assert_eq!(b.job(&kept).await.state, JobState::Running);
    assert_eq!(b.ledger.capture(&living.capture).await.unwrap().unwrap().owner.as_deref(), Some("living"));
}

pub(crate) async fn the_known_dead_are_rescued_at_once(b: Bench) {
    let mut line = b.line("e1").await;
    b.beat("e1").await;
    line.put(1).await;
    b.claim("e1", 1).await;
    let hour = Duration::from_secs(3_600);
    assert_eq!(
        b.ledger.rescue("rescuer", crate::bench::silent_for(&*b.ledger, hour).await, &["other".to_owned()]).await.unwrap(),
        Rescued::default()
    );
    let rescued = b.ledger.rescue("rescuer", crate::bench::silent_for(&*b.ledger, hour).await, &["e1".to_owned()]).await.unwrap();
    assert_eq!(rescued, Rescued { engines: vec!["e1".to_owned()], jobs: 1, captures: 1 });
}

pub(crate) async fn rule_26_only_a_death_alone_condemns(b: Bench) {
    let mut line = b.line("owner").await;
    b.beat("owner").await;
    for _ in 0..10 {
        line.put(1).await;
    }
    let hour = Duration::from_secs(3_600);
    // Ten jobs in one process that is killed again and again: none is condemned.
    for n in 0..2 {
        let engine = format!("busy{n}");
        b.beat(&engine).await;
        assert_eq!(b.claim(&engine, 10).await.len(), 10);
        b.ledger.rescue("rescuer", crate::bench::silent_for(&*b.ledger, hour).await, &[engine]).await.unwrap();
    }
    assert_eq!(b.ledger.depth().await.unwrap().ready, 10);
    // Now all are suspects: one at a time, and the one that dies alone is dead.
    b.beat("alone").await;
    let mut suspect = b.claim_with(&ClaimRequest::new("alone", &[JobKind::Sync], 10).alone(true)).await;
    assert_eq!(suspect.len(), 1);
    b.start(&mut suspect[0]).await;
    b.ledger.rescue("rescuer", crate::bench::silent_for(&*b.ledger, hour).await, &["alone".to_owned()]).await.unwrap();
    let dead = b.job(&suspect[0].id).await;
    assert_eq!((dead.state, dead.crashes, dead.error_count), (JobState::Dead, 3, 3));
    assert!(dead.errors.last().unwrap().error.contains("crash_loop"));
    let branch = b.branch(&line.branch).await;
    assert_eq!(branch.status, BranchStatus::Stalled);
    assert!(branch.reason.unwrap().contains(&dead.id));
    assert_eq!(b.ledger.depth().await.unwrap(), QueueDepth { scheduled: 0, ready: 9, running: 0, dead: 1 });
    assert!(b.ledger.retry_job(&dead.id).await.unwrap());
    assert_eq!(b.job(&dead.id).await.crashes, 0, "an operator's retry is a new start");
}

pub(crate) async fn what_an_engine_without_a_document_holds_is_freed(b: Bench) {
    let mut line = b.line("gone").await;
    b.beat("gone").await;
    let id = line.put(1).await;
    b.ledger.retire("gone").await.unwrap();
    // A zombie claims after its document was removed, and has not noticed yet.
    assert_eq!(b.claim("gone", 1).await.len(), 1);
    let rescued = b.ledger.rescue("rescuer", crate::bench::silent_for(&*b.ledger, LEASE).await, &[]).await.unwrap();
    assert_eq!(rescued, Rescued { engines: vec![], jobs: 1, captures: 1 });
    let job = b.job(&id).await;
    assert_eq!((job.state, job.crashes), (JobState::Ready, 0), "leaving is not a crash");
}

pub(crate) async fn rule_26_only_jobs_that_had_started_have_crashed(b: Bench) {
    let mut line = b.line("owner").await;
    b.beat("owner").await;
    for _ in 0..3 {
        line.put(1).await;
    }
    let mut again = None;
    for n in 0..3 {
        let engine = format!("dies{n}");
        b.beat(&engine).await;
        // Suspects first: the one that starts is the same in every life.
        let mut claimed = b.claim_with(&ClaimRequest::new(&engine, &[JobKind::Sync], 1).alone(n == 2)).await;
        claimed.extend(b.claim_with(&ClaimRequest::new(&engine, &[JobKind::Sync], 9)).await);
        assert_eq!(claimed.len(), 3);
        b.start(&mut claimed[0]).await;
        assert_eq!(*again.get_or_insert(claimed[0].id.clone()), claimed[0].id);
        assert_eq!(b.ledger.rescue("owner", None, &[engine]).await.unwrap().jobs, 3);
        for job in &claimed[1..] {
            let job = b.job(&job.id).await;
            assert_eq!((job.state, job.attempt, job.crashes, job.error_count), (JobState::Ready, 0, 0, n + 1));
            assert!(job.errors.last().unwrap().error.contains("before it had begun"), "{job:?}");
        }
        assert_eq!(b.job(&claimed[0].id).await.crashes, n + 1);
    }
    // Others that only waited in its process were no company.
    assert_eq!(b.job(&again.unwrap()).await.state, JobState::Dead);
}

pub(crate) async fn a_mark_of_a_stale_lease_is_refused(b: Bench) {
    let mut line = b.line("e1").await;
    line.put(1).await;
    b.beat("e1").await;
    let old = b.claim("e1", 1).await.remove(0);
    assert!(b.ledger.start(&crate::bench::lease(&old)).await.unwrap(), "told again after a lost answer");
    b.ledger.rescue("e2", None, &["e1".to_owned()]).await.unwrap();
    assert!(!b.ledger.start(&crate::bench::lease(&old)).await.unwrap(), "it is ready again");
    let new = b.claim_with(&ClaimRequest::new("e2", &[JobKind::Sync], 1)).await.remove(0);
    assert!(!b.ledger.start(&crate::bench::lease(&old)).await.unwrap(), "it is another's");
    assert!(!b.job(&new.id).await.lease.unwrap().started);
}

pub(crate) async fn an_engine_never_judges_itself_and_silence_only_when_asked(b: Bench) {
    let mut line = b.line("me").await;
    b.beat("me").await;
    b.beat("other").await;
    line.put(1).await;
    b.claim("me", 1).await;
    b.pass(LEASE).await;
    assert_eq!(b.ledger.rescue("me", None, &[]).await.unwrap(), Rescued::default(), "nobody may be judged by silence");
    let rescued = b.ledger.rescue("me", crate::bench::silent_for(&*b.ledger, LEASE).await, &["me".to_owned()]).await.unwrap();
    assert_eq!(rescued, Rescued { engines: vec!["other".to_owned()], jobs: 0, captures: 0 });
    b.ledger.retire("me").await.unwrap();
    assert_eq!(
        b.ledger.rescue("me", crate::bench::silent_for(&*b.ledger, LEASE).await, &[]).await.unwrap(),
        Rescued::default(),
        "others do that"
    );
    assert!(!b.ledger.heartbeat(&beat("me"), false).await.unwrap());
}

pub(crate) async fn a_suspect_that_has_waited_is_noticed(b: Bench) {
    let mut line = b.line("e0").await;
    b.beat("e0").await;
    let patience = Duration::from_millis(300);
    let waits = async || b.ledger.suspect_waits(&[JobKind::Sync], patience).await.unwrap();
    assert!(!waits().await, "an empty queue");
    let suspect = line.put(1).await;
    for n in 0..2 {
        let engine = format!("dies{n}");
        b.beat(&engine).await;
        b.claim(&engine, 1).await;
        b.ledger.rescue("e0", None, &[engine]).await.unwrap();
    }
    b.pass(patience).await;
    line.put(1).await;
    assert!(waits().await, "it has waited since it was stored");
    let alone = b.claim_with(&ClaimRequest::new("e0", &[JobKind::Sync], 9).alone(true)).await;
    assert_eq!(alone.iter().map(|j| &j.id).collect::<Vec<_>>(), [&suspect]);
    b.pass(patience).await;
    assert!(!waits().await, "an innocent job may wait as long as it likes");
}
