//! Captures that cannot start, wait or fail: what that does to themselves, to others, and to what the bucket says.

use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};

use argon::branch::mirror::publish;
use argon::capture::FaultyFeed;
use argon::capture::feed::SharedFeed;
use argon::engine::{EngineEnd, SourceOpener};
use argon::fault::{Fault, Result};
use argon::ledger::*;
use argon::store::{MemoryStore, ObjectInfo, ObjectStore, Put, PutTag, Store};
use async_trait::async_trait;
use bytes::Bytes;

use crate::world::{BRANCH, CAPTURE, DB, Mix, World, settings};

/// A store that can be away, or give an epoch back damaged.
#[derive(Debug)]
struct Outage {
    inner: Arc<MemoryStore>,
    away: AtomicBool,
    /// Refuses credentials.
    refuses: AtomicBool,
    /// Reads of an epoch that come back damaged.
    bad_epochs: AtomicU32,
}

impl Outage {
    fn of(world: &World) -> Arc<Self> {
        Arc::new(Self {
            inner: world.store.clone(),
            away: AtomicBool::new(true),
            refuses: AtomicBool::new(false),
            bad_epochs: AtomicU32::new(0),
        })
    }

    fn pass(&self) -> Result<&MemoryStore> {
        match (self.away.load(Ordering::SeqCst), self.refuses.load(Ordering::SeqCst)) {
            (true, _) => Err(Fault::transient("the store is away")),
            (false, true) => Err(Fault::rejected("403: the key is not known")),
            (false, false) => Ok(&self.inner),
        }
    }
}

#[async_trait]
impl ObjectStore for Outage {
    async fn put_new(&self, key: &str, body: Bytes, tag: &PutTag) -> Result<Put> {
        self.pass()?.put_new(key, body, tag).await
    }
    async fn replace(&self, key: &str, body: Bytes, tag: &PutTag, version: &str) -> Result<Put> {
        self.pass()?.replace(key, body, tag, version).await
    }
    async fn get(&self, key: &str, range: Option<Range<u64>>) -> Result<Bytes> {
        let bad = |left: u32| if key.contains("/epoch/") { left.checked_sub(1) } else { None };
        if self.bad_epochs.fetch_update(Ordering::SeqCst, Ordering::SeqCst, bad).is_ok() {
            return Ok(Bytes::from_static(b"{"));
        }
        self.pass()?.get(key, range).await
    }
    async fn head(&self, key: &str) -> Result<Option<ObjectInfo>> {
        self.pass()?.head(key).await
    }
    async fn list(&self, prefix: &str, after: Option<&str>, max: usize) -> Result<Vec<ObjectInfo>> {
        self.pass()?.list(prefix, after, max).await
    }
    async fn delete(&self, key: &str) -> Result<()> {
        self.pass()?.delete(key).await
    }
    fn verifies_puts(&self) -> bool {
        self.inner.verifies_puts()
    }
    fn describe(&self) -> String {
        self.inner.describe()
    }
}

/// Opens sources of other databases in a way of its own.
#[derive(Debug)]
struct Others {
    feed: Arc<FaultyFeed>,
    db: &'static str,
    /// `None`: connecting never ends.
    fault: Option<Fault>,
}

#[async_trait]
impl SourceOpener for Others {
    async fn open(&self, source: &Source) -> Result<SharedFeed> {
        match &self.fault {
            _ if source.db != self.db => Ok(self.feed.clone()),
            Some(fault) => Err(fault.clone()),
            None => std::future::pending().await,
        }
    }
}

#[test]
fn a_store_that_is_away_when_a_capture_is_taken_is_bridged_by_the_queue() {
    let world = World::new();
    let store = Outage::of(&world);
    let engine = world.spawn_with("one", Mix::default(), settings(), store.clone());
    world.insert(50);
    world.wait("everything is queued", || world.capture().position.next_seq == 51);
    assert_eq!(world.branch().head.seq, 0, "nothing is uploaded");
    // It comes back with other keys: a person mends that, and the capture goes on meanwhile.
    store.refuses.store(true, Ordering::SeqCst);
    store.away.store(false, Ordering::SeqCst);
    world.insert(50);
    world.wait("the next ones are queued too", || world.capture().position.next_seq == 101);
    assert_eq!((world.capture().state, world.branch().head.seq), (CaptureState::Running, 0));
    store.refuses.store(false, Ordering::SeqCst);
    // The jobs may have used their attempts up by now: that is theirs to settle, not the capture's.
    world.wait("all is committed or dead", || {
        for job in world.jobs(JobState::Dead) {
            world.runtime.block_on(world.ledger.retry_job(&job.id)).unwrap();
        }
        world.branch().head.seq == 100
    });
    assert_eq!(engine.drain(), EngineEnd::Drained);
    world.check();
}

#[test]
fn a_source_that_never_answers_holds_up_neither_others_nor_the_drain() {
    let world = World::new();
    let (slow_branch, slow) = (world.branch(), world.capture());
    let branch = Branch { id: "b0".into(), name: "test/a-first".into(), source_db: "slow".into(), ..slow_branch };
    let source = Source { db: "slow".into(), ..slow.source.clone() };
    let capture = Capture { id: "c0".into(), branch: "b0".into(), branch_name: branch.name.clone(), source, ..slow };
    world
        .runtime
        .block_on(world.ledger.create_capture(&NewCapture {
            base: argon::ledger::Base::empty(&argon::runtime::random::id(), &branch.id, Default::default(), String::new()),
            capture,
            branch,
        }))
        .unwrap();
    let engine =
        world.spawn_over("one", Mix::default(), settings(), world.store.clone(), |feed| Arc::new(Others { feed, db: "slow", fault: None }));
    world.insert(50);
    world.settle();
    let owner = |id: &str| world.runtime.block_on(world.ledger.capture(id)).unwrap().unwrap().owner;
    assert!(owner("c0").is_some(), "it is being connected");
    world.runtime.block_on(world.ledger.set_capture_state("c0", CaptureState::Stopped, None)).unwrap();
    world.wait("the stop is obeyed", || owner("c0").is_none());
    world.runtime.block_on(world.ledger.set_capture_state("c0", CaptureState::Running, None)).unwrap();
    world.wait("it is taken again", || owner("c0").is_some());
    assert_eq!(engine.drain(), EngineEnd::Drained);
    assert_eq!(owner("c0"), None);
}

#[test]
fn an_engine_that_lacks_a_setting_of_a_source_leaves_the_capture_to_others() {
    let world = World::new();
    let unset = Fault::config("the source's URI is in the variable SHOP_URI, which is not set for this process");
    let poor = world
        .spawn_over("poor", Mix::default(), settings(), world.store.clone(), |feed| Arc::new(Others { feed, db: DB, fault: Some(unset) }));
    world.wait("it waits in sight", || world.capture().reason.is_some_and(|r| r.contains("SHOP_URI")));
    assert_eq!(world.capture().state, CaptureState::Running);
    let rich = world.spawn("rich", Mix::default());
    world.insert(50);
    world.settle();
    world.wait("nothing is waited for", || world.capture().reason.is_none());
    assert_eq!(world.capture().owner.as_deref(), Some("rich"));
    poor.drain();
    rich.drain();
    world.check();
}

#[test]
fn credentials_that_are_rotated_are_waited_for_in_sight() {
    let world = World::new();
    let engine = world.spawn("one", Mix::default());
    world.insert(10);
    world.settle();
    engine.feed.refuse_with(Some(Fault::rejected("MongoDB refused the credentials")));
    engine.feed.break_after(0);
    world.wait("the reason is shown", || world.capture().reason.is_some_and(|r| r.contains("refused the credentials")));
    assert_eq!(world.capture().state, CaptureState::Running);
    engine.feed.refuse_with(None);
    world.insert(10);
    world.settle();
    world.wait("nothing is waited for", || world.capture().reason.is_none());
    engine.drain();
    world.check();
}

#[test]
fn rule_20_an_epoch_that_was_read_badly_is_read_again() {
    let world = World::new();
    let store = Outage::of(&world);
    store.away.store(false, Ordering::SeqCst);
    store.bad_epochs.store(2, Ordering::SeqCst);
    let engine = world.spawn_with("one", Mix::default(), settings(), store.clone());
    world.insert(10);
    world.settle();
    assert_eq!(store.bad_epochs.load(Ordering::SeqCst), 0);
    assert_eq!(world.capture().state, CaptureState::Running);
    engine.drain();
    world.check();
}

#[test]
fn rule_19_the_bucket_says_what_became_of_a_capture() {
    let world = World::new();
    world.feed.set_coverage(Coverage { fidelity: Fidelity::OrderMayDiffer, uncovered: vec!["some: refused".into()] });
    let engine = world.spawn("one", Mix::default());
    world.insert(10);
    world.settle();
    world.wait("the bucket knows what the stream hides", || world.branch_json().uncovered == ["some: refused"]);
    assert_eq!((world.branch_json().fidelity, world.branch().fidelity), (Fidelity::OrderMayDiffer, Fidelity::OrderMayDiffer));
    let version = world.branch_json().version;
    world.feed.set_identity("rs:set-2:2");
    engine.feed.break_after(0);
    world.wait("the bucket knows of the failure", || world.branch_json().capture.unwrap().state == CaptureState::Failed);
    assert_eq!(world.branch_json().status, BranchStatus::Failed);
    assert!(world.branch_json().version > version);
    engine.drain();
}

#[test]
fn rule_2_a_time_series_collection_made_after_the_start_is_on_the_branch_before_its_changes() {
    let world = World::new();
    let engine = world.spawn("one", Mix::default());
    world.insert(10);
    world.settle();
    assert_eq!(world.branch().uncovered, Vec::<String>::new());
    engine.ledger.script(LedgerCall::NoteCapture, Mishap::AnswerLost);
    world.feed.create_timeseries("weather").unwrap();
    world.insert(10);
    world.settle();
    let named = ["weather: time-series, recorded but not restored by this version"];
    assert_eq!(world.branch().uncovered, named);
    world.wait("the bucket knows it too", || world.branch_json().uncovered == named);
    world.feed.create_timeseries("weather").unwrap();
    world.settle();
    assert_eq!(world.branch().uncovered, named, "once");
    engine.drain();
    world.check();
}

#[test]
fn rule_19_each_change_is_one_version_and_none_is_written_twice() {
    let world = World::new();
    let ledger: SharedLedger = world.ledger.clone();
    let store: Store = world.store.clone();
    let publish = || world.runtime.block_on(publish(&ledger, &store, BRANCH)).unwrap();
    publish();
    assert_eq!(world.branch_json().version, 1, "nothing has changed");
    world.runtime.block_on(ledger.set_capture_state(CAPTURE, CaptureState::Stopped, None)).unwrap();
    for _ in 0..2 {
        publish();
        assert_eq!((world.branch_json().capture.unwrap().state, world.branch_json().version), (CaptureState::Stopped, 2));
    }
    world.runtime.block_on(ledger.set_capture_state(CAPTURE, CaptureState::Running, None)).unwrap();
    publish();
    assert_eq!((world.branch_json().capture.unwrap().state, world.branch_json().version), (CaptureState::Running, 3));
}

#[test]
fn rule_7_an_id_that_is_seen_later_is_kept_and_checked_from_then_on() {
    let world = World::new();
    let nameless = Source { identity: "rs:set-1".into(), ..world.capture().source };
    world.runtime.block_on(world.ledger.set_capture_source(CAPTURE, &nameless)).unwrap();
    let engine = world.spawn("one", Mix::default());
    world.wait("the id is kept", || world.capture().source.identity == "rs:set-1:1");
    world.feed.set_identity("rs:set-1:2");
    engine.feed.break_after(0);
    world.wait("the capture has failed", || world.capture().state == CaptureState::Failed);
    engine.drain();
}

#[test]
fn what_the_source_no_longer_serves_becomes_a_gap_and_two_without_a_base_between_stop_the_capture() {
    let world = World::new();
    for gaps in 1..=3 {
        world.insert(5);
        let engine = world.spawn("one", Mix::default());
        // Five changes a round, and a number for every gap before.
        let head = 5 * gaps + (gaps - 1);
        world.wait("what is there is captured", || world.branch().head.seq == head);
        engine.drain();
        let end = world.capture().position.next_seq;
        assert_eq!(end, head + 1);
        // Nobody looks while this happens and is forgotten.
        world.insert(7);
        world.feed.trim(world.feed.len());
        let engine = world.spawn("two", Mix::default());
        let losses = || world.runtime.block_on(world.ledger.losses(BRANCH, 0, 10)).unwrap();
        if gaps < 3 {
            world.wait("a gap", || losses().len() as u64 == gaps);
            let gap = losses().pop().unwrap();
            assert_eq!((gap.kind, gap.first_seq, gap.last_seq), (SegmentKind::Gap, end, end));
            assert_eq!((world.branch().status, world.capture().state), (BranchStatus::Gap, CaptureState::Running));
        } else {
            world.wait("the breaker", || world.capture().state == CaptureState::Failed);
            assert!(world.capture().reason.unwrap().contains("oplog") && losses().len() == 2);
        }
        engine.drain();
    }
}
