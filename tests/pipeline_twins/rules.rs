//! Single rules, each with the one fault it is about.

use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use argon::engine::EngineEnd;
use argon::fault::Result;
use argon::ledger::*;
use argon::store::{FaultPlan, MemoryStore, ObjectInfo, ObjectStore, Put, PutFault, PutTag};
use async_trait::async_trait;
use bytes::Bytes;

use crate::world::{Mix, Process, World, settings};

#[test]
fn a_calm_run_commits_everything_and_drains() {
    let world = World::new();
    let engine = world.spawn("calm", Mix::default());
    world.insert(500);
    world.transaction(300);
    world.settle();
    assert_eq!(engine.drain(), EngineEnd::Drained);
    world.check();
    assert!(world.runtime.block_on(world.ledger.engines()).unwrap().is_empty(), "it has signed off");
    assert_eq!(world.capture().owner, None);
}

#[test]
fn rule_9_an_engine_recognises_its_own_checkpoint_whose_answer_was_lost() {
    let world = World::new();
    let engine = world.spawn("one", Mix::default());
    for _ in 0..10 {
        engine.ledger.script(LedgerCall::Checkpoint, Mishap::AnswerLost);
        let before = world.feed.len();
        world.insert(25);
        world.wait("the checkpoint is repeated", || world.capture().position.next_seq > before as u64 + 1);
    }
    world.settle();
    assert_eq!(engine.ledger.injected(), 10);
    assert_eq!(world.capture().fence, 1, "it never stepped down");
    assert_eq!(engine.drain(), EngineEnd::Drained);
    world.check();
}

#[test]
fn rule_21_an_object_whose_engine_died_before_its_commit_is_adopted() {
    let world = World::new();
    let first = world.spawn("first", Mix::default());
    for _ in 0..1_000 {
        first.ledger.script(LedgerCall::Commit, Mishap::Before);
    }
    world.insert(10);
    world.wait("an object is there", || !world.runtime.block_on(world.objects()).is_empty());
    first.kill();
    assert_eq!(world.branch().head.seq, 0);
    let key = world.runtime.block_on(world.objects()).remove(0);
    let put_id = || world.runtime.block_on(world.store.head(&key)).unwrap().unwrap().put_id;
    let of_the_first = put_id();
    let second = world.spawn("second", Mix::default());
    world.settle();
    assert_eq!(put_id(), of_the_first, "adopted, not written again");
    second.drain();
    world.check();
}

#[test]
fn rule_21_an_upload_whose_answer_was_lost_is_adopted_at_once() {
    let world = World::new();
    let engine = world.spawn("one", Mix::default());
    for _ in 0..5 {
        engine.store.next_put(PutFault::LostAnswer);
    }
    world.insert(200);
    world.settle();
    assert_eq!(engine.store.counts().lost_answers, 5);
    assert!(world.jobs(JobState::Done).iter().all(|j| j.error_count == 0), "no attempt failed for it");
    engine.drain();
    world.check();
}

#[test]
fn rule_28_without_checksums_an_altered_upload_is_found_before_its_payload_is_gone() {
    let world = World::new();
    let plan = FaultPlan { unverified: true, ..FaultPlan::default() };
    let engine = world.spawn("one", Mix { store: plan, ..Mix::default() });
    for _ in 0..5 {
        engine.store.next_put(PutFault::Altered);
    }
    world.insert(200);
    world.settle();
    assert_eq!(engine.store.counts().altered, 5);
    engine.drain();
    world.check();
}

#[test]
fn a_store_that_never_answers_uses_up_no_attempts() {
    let world = World::new();
    let strict = argon::config::EngineSettings { retry_count: 0, process_timeout: Duration::from_secs(3), ..settings() };
    let engine = world.spawn_with("one", Mix::default(), strict, world.store.clone());
    engine.store.freeze(true);
    world.insert(50);
    // By the end of the upload's time the first time, or by that of the whole attempt.
    world.wait("a job was given back twice", || world.all_jobs().iter().any(|j| j.error_count >= 2));
    assert_eq!(world.jobs(JobState::Dead), []);
    engine.store.freeze(false);
    world.settle();
    assert!(world.jobs(JobState::Done).iter().all(|j| j.attempt == 1), "{:#?}", world.jobs(JobState::Done));
    engine.drain();
    world.check();
}

#[test]
fn a_store_that_refuses_or_is_not_found_uses_up_no_attempts() {
    let world = World::new();
    let strict = argon::config::EngineSettings { retry_count: 0, ..settings() };
    let engine = world.spawn_with("one", Mix::default(), strict, world.store.clone());
    for fault in [PutFault::Missing, PutFault::Rejected, PutFault::Missing] {
        engine.store.next_put(fault);
    }
    world.insert(50);
    world.settle();
    assert_eq!(engine.store.counts().failed, 3);
    assert_eq!(world.jobs(JobState::Dead), []);
    let done = world.jobs(JobState::Done);
    assert!(done.iter().all(|j| j.attempt == 1) && done.iter().any(|j| j.error_count > 0), "{done:#?}");
    engine.drain();
    world.check();
}

#[test]
fn a_ledger_that_never_answers_uses_up_no_attempts() {
    let world = World::new();
    let strict = argon::config::EngineSettings { retry_count: 0, process_timeout: Duration::from_secs(2), ..settings() };
    let engine = world.spawn_with("one", Mix::default(), strict, world.store.clone());
    engine.ledger.freeze(LedgerCall::Commit, true);
    world.insert(50);
    world.wait("a job was given back", || world.all_jobs().iter().any(|j| j.error_count >= 1));
    assert_eq!(world.jobs(JobState::Dead), []);
    engine.ledger.freeze(LedgerCall::Commit, false);
    world.settle();
    engine.drain();
    world.check();
}

#[test]
fn rule_26_metadata_that_is_away_for_two_leases_kills_nobody() {
    nobody_is_killed(|engine, away| engine.ledger.set_outage(away));
}

/// As an election does: calls wait for a primary, and go on at the moment when there is one and every heartbeat on record is old.
#[test]
fn rule_26_metadata_that_does_not_answer_for_two_leases_kills_nobody() {
    nobody_is_killed(|engine, away| {
        for call in [LedgerCall::Read, LedgerCall::Rescue, LedgerCall::Heartbeat] {
            engine.ledger.freeze(call, away);
        }
    });
}

fn nobody_is_killed(set_away: fn(&Process, bool)) {
    let world = World::new();
    let engines: Vec<_> = ["one", "two"].into_iter().map(|name| world.spawn(name, Mix::default())).collect();
    world.insert(100);
    world.settle();
    let ids = || world.runtime.block_on(world.ledger.engines()).unwrap().into_iter().map(|e| e.id).collect::<Vec<_>>();
    let silence = || {
        world.runtime.block_on(async {
            let now = world.ledger.now_ms().await.unwrap();
            world.ledger.engines().await.unwrap().iter().map(|e| now - e.beat_ms).min().unwrap()
        })
    };
    engines.iter().for_each(|e| set_away(e, true));
    world.insert(100);
    let lease = i64::try_from(settings().lease.as_millis()).unwrap();
    world.wait("nobody was heard for two leases", || silence() > 2 * lease);
    engines.iter().for_each(|e| set_away(e, false));
    world.settle();
    world.wait("everybody is heard again", || silence() < lease / 2);
    assert_eq!(ids(), ["one", "two"]);
    assert!(world.all_jobs().iter().all(|j| j.crashes == 0), "{:#?}", world.all_jobs());
    assert_eq!(world.capture().fence, 1, "the capture has stayed where it was");
    // One that is really dead is noticed by the other.
    let [one, two] = <[_; 2]>::try_from(engines).unwrap_or_else(|_| panic!("two engines"));
    one.kill();
    world.wait("the dead one is rescued", || ids() == ["two"]);
    world.insert(100);
    world.settle();
    two.drain();
    world.check();
}

#[test]
fn a_part_that_dies_takes_its_engine_with_it() {
    let world = World::new();
    for call in [LedgerCall::Claim, LedgerCall::Commit, LedgerCall::Heartbeat, LedgerCall::Promote] {
        let engine = world.spawn(&format!("{call:?}"), Mix::default());
        engine.ledger.script(call, Mishap::Panic);
        world.insert(20);
        let fault = engine.end().unwrap_err();
        assert!(fault.what.contains("ended unexpectedly") && fault.what.contains("injected"), "{call:?}: {fault}");
        assert_eq!(world.runtime.block_on(world.ledger.engines()).unwrap(), [], "{call:?}: it has signed off");
    }
    // What it leaves behind is nobody's crash.
    let engine = world.spawn("whole", Mix::default());
    world.settle();
    assert!(world.all_jobs().iter().all(|j| j.crashes == 0));
    engine.drain();
    world.check();
}

#[test]
fn a_full_queue_does_not_hold_up_a_stop() {
    let world = World::new();
    // Nothing is committed while the store is away, and the queue takes only a few batches.
    let small = argon::config::EngineSettings {
        process_timeout: Duration::from_secs(2),
        queue_max_bytes: 4 << 10,
        shutdown_timeout: Duration::from_secs(60),
        ..settings()
    };
    let engine = world.spawn_with(
        "one",
        Mix { store: FaultPlan { lost_request: 1.0, ..FaultPlan::default() }, ..Mix::default() },
        small,
        world.store.clone(),
    );
    world.insert(1_000);
    world.wait("the queue is full, visibly", || world.capture().reason.is_some_and(|reason| reason.contains("the queue is full")));
    assert!(world.capture().position.next_seq <= 1_000);
    assert_eq!(engine.drain(), EngineEnd::Drained);
    assert_eq!(world.capture().owner, None);
    let engine = world.spawn("two", Mix::default());
    world.settle();
    world.wait("it waits no more", || world.capture().reason.is_none());
    engine.drain();
    world.check();
}

/// A store on which the first upload of one segment never ends: the job that kills its process, or seems to.
#[derive(Debug)]
struct Tarpit {
    inner: Arc<MemoryStore>,
    part: &'static str,
    stuck: AtomicU64,
}

#[async_trait]
impl ObjectStore for Tarpit {
    async fn put_new(&self, key: &str, body: Bytes, tag: &PutTag) -> Result<Put> {
        if key.contains(self.part) {
            self.stuck.fetch_add(1, Ordering::SeqCst);
            std::future::pending::<()>().await;
        }
        self.inner.put_new(key, body, tag).await
    }
    async fn replace(&self, key: &str, body: Bytes, tag: &PutTag, version: &str) -> Result<Put> {
        self.inner.replace(key, body, tag, version).await
    }
    async fn get(&self, key: &str, range: Option<Range<u64>>) -> Result<Bytes> {
        self.inner.get(key, range).await
    }
    async fn head(&self, key: &str) -> Result<Option<ObjectInfo>> {
        self.inner.head(key).await
    }
    async fn list(&self, prefix: &str, after: Option<&str>, max: usize) -> Result<Vec<ObjectInfo>> {
        self.inner.list(prefix, after, max).await
    }
    async fn delete(&self, key: &str) -> Result<()> {
        self.inner.delete(key).await
    }
    fn verifies_puts(&self) -> bool {
        true
    }
    fn describe(&self) -> String {
        "tarpit:".into()
    }
}

#[test]
fn rule_26_only_the_job_that_takes_its_process_down_alone_becomes_dead() {
    let world = World::new();
    // The segment that begins with seq 1 is the poison; the others are innocent bystanders.
    let tarpit = Arc::new(Tarpit { inner: world.store.clone(), part: "1-0000000000000001-", stuck: AtomicU64::new(0) });
    world.insert(300);
    for life in 1..=3 {
        let engine = world.spawn_with(&format!("life-{life}"), Mix::default(), settings(), tarpit.clone());
        world.wait("the poison is in work", || tarpit.stuck.load(Ordering::SeqCst) == life);
        let poison = world.jobs(JobState::Running).into_iter().find(|j| j.sync.as_ref().is_some_and(|s| s.first_seq == 1)).unwrap();
        assert_eq!(u64::from(poison.crashes), life - 1);
        if life == 3 {
            assert_eq!(world.jobs(JobState::Running).len(), 1, "a suspect runs alone");
        }
        engine.kill();
        world.insert(100);
    }
    let engine = world.spawn_with("after", Mix::default(), settings(), tarpit.clone());
    world.wait("the poison is dead", || world.jobs(JobState::Dead).len() == 1);
    let dead = world.jobs(JobState::Dead).remove(0);
    assert!(dead.errors.last().unwrap().error.contains("crash_loop"), "{:?}", dead.errors);
    assert_eq!(world.branch().status, BranchStatus::Stalled);
    // Capture and the other jobs go on; the head waits.
    world.insert(50);
    let all = world.feed.len() as u64;
    world.wait("the rest is committed", || world.branch().totals.changes == all - (dead.sync.as_ref().unwrap().last_seq));
    assert_eq!((world.branch().head.seq, world.jobs(JobState::Dead).len()), (0, 1));
    engine.drain();
    // The cause is mended, the operator retries.
    assert!(world.runtime.block_on(world.ledger.retry_job(&dead.id)).unwrap());
    let engine = world.spawn("mended", Mix::default());
    world.settle();
    engine.drain();
    world.check();
}

#[test]
fn a_claim_whose_answer_was_lost_is_given_back_by_a_living_engine() {
    let world = World::new();
    // Long enough that nobody takes it for dead when the server's clock is moved.
    let patient = argon::config::EngineSettings { lease: Duration::from_secs(600), ..settings() };
    let engine = world.spawn_with("one", Mix::default(), patient, world.store.clone());
    world.insert(10);
    world.settle();
    engine.ledger.script(LedgerCall::Claim, Mishap::AnswerLost);
    world.insert(10);
    // A claim that finds nothing loses its answer too: what counts is that jobs were claimed unheard.
    world.wait("the answer is lost", || engine.ledger.injected() == 1);
    if world.jobs(JobState::Running).is_empty() {
        engine.ledger.script(LedgerCall::Claim, Mishap::AnswerLost);
        world.insert(10);
    }
    world.wait("a job is claimed unheard", || !world.jobs(JobState::Running).is_empty());
    world.ledger.advance(Duration::from_secs(11));
    world.settle();
    let given_back: Vec<Job> = world.jobs(JobState::Done).into_iter().filter(|j| j.error_count > 0).collect();
    assert_eq!(given_back.len(), 1, "{given_back:?}");
    assert_eq!((given_back[0].attempt, given_back[0].error_count), (1, 1), "the unheard attempt does not count");
    engine.drain();
    world.check();
}

#[test]
fn an_attempt_in_work_is_not_taken_for_a_lost_claim() {
    let world = World::new();
    let tarpit = Arc::new(Tarpit { inner: world.store.clone(), part: "1-0000000000000001-", stuck: AtomicU64::new(0) });
    let patient =
        argon::config::EngineSettings { lease: Duration::from_secs(600), process_timeout: Duration::from_secs(600), ..settings() };
    let engine = world.spawn_with("one", Mix::default(), patient, tarpit.clone());
    world.insert(10);
    world.wait("the job hangs", || tarpit.stuck.load(Ordering::SeqCst) == 1);
    world.ledger.advance(Duration::from_secs(60));
    let lease = world.jobs(JobState::Running).remove(0).lease;
    // Longer than the look for lost claims takes.
    std::thread::sleep(Duration::from_secs(14));
    assert_eq!(world.jobs(JobState::Running).remove(0).lease, lease);
    engine.kill();
}

#[test]
fn rule_7_another_deployment_behind_the_same_address_stops_the_capture_visibly() {
    let world = World::new();
    let engine = world.spawn("one", Mix::default());
    world.insert(10);
    world.settle();
    world.feed.set_identity("rs:set-2:2");
    engine.feed.break_after(0);
    world.wait("the capture has failed", || world.capture().state == CaptureState::Failed);
    assert!(world.capture().reason.unwrap().contains("set-2"));
    assert_eq!(world.branch().status, BranchStatus::Failed);
    engine.drain();
}
