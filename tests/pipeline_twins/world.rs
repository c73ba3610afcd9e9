//! A source, a ledger and a store in memory, and engines that live and die on them.

use std::sync::Arc;
use std::time::Duration;

use argon::branch::{documents, layout};
use argon::capture::feed::SharedFeed;
use argon::capture::{FaultyFeed, FeedFaults, MemoryFeed};
use argon::config::{Autoscale, EngineSettings, Slots};
use argon::engine::{Engine, EngineEnd, EngineHandle, SourceOpener};
use argon::fault::Result;
use argon::jobs::{KINDS, KindSpec};
use argon::ledger::*;
use argon::runtime::clock;
use argon::runtime::shutdown::Shutdown;
use argon::store::{FaultPlan, FaultyStore, MemoryStore, ObjectStore, PutTag, Store};
use async_trait::async_trait;
use bson::{Document, RawDocumentBuf, doc};
use sha2::{Digest, Sha256};
use tokio::runtime::Runtime;
use tokio::task::JoinHandle;

pub(crate) const DB: &str = "shop";
pub(crate) const BRANCH: &str = "b1";
pub(crate) const NAME: &str = "test/main";
pub(crate) const PROJECT: &str = "test";
pub(crate) const CAPTURE: &str = "c1";
/// With the faults off everything is settled within this time, else the test fails.
const PATIENCE: Duration = Duration::from_secs(60);

pub(crate) struct World {
    pub(crate) feed: MemoryFeed,
    pub(crate) ledger: Arc<MemoryLedger>,
    pub(crate) store: Arc<MemoryStore>,
    pub(crate) start: RawDocumentBuf,
    /// For questions of the test itself; engines have runtimes of their own.
    pub(crate) runtime: Runtime,
}

/// What one engine has to put up with.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Mix {
    pub(crate) feed: FeedFaults,
    pub(crate) store: FaultPlan,
    pub(crate) ledger: Option<LedgerFaults>,
}

impl Mix {
    /// A share of everything that can go wrong; `unverified`: a store that does not check uploads, and damages some.
    pub(crate) fn bad(seed: u64, unverified: bool) -> Self {
        Self {
            feed: FeedFaults { seed, refused: 0.2, broken: 0.05, lost: 0.05 },
            ledger: Some(LedgerFaults { seed, before: 0.1, lost: 0.1, reads: 0.1 }),
            store: FaultPlan {
                seed,
                fail_before: 0.1,
                lost_request: 0.1,
                lost_answer: 0.1,
                refused_though_free: 0.05,
                altered: if unverified { 0.2 } else { 0.0 },
                slow: 0.3,
                unverified,
                ..FaultPlan::default()
            },
        }
    }
}

/// An engine with a runtime of its own, so that it can be killed whole.
pub(crate) struct Process {
    runtime: Runtime,
    pub(crate) stop: Shutdown,
    engine: JoinHandle<Result<EngineEnd>>,
    pub(crate) view: EngineHandle,
    pub(crate) feed: Arc<FaultyFeed>,
    pub(crate) store: Arc<FaultyStore>,
    pub(crate) ledger: Arc<FaultyLedger>,
}

impl Process {
    /// As kill -9: nothing is awaited, nothing is told to anybody.
    pub(crate) fn kill(self) {
        self.runtime.shutdown_background();
    }

    /// As SIGTERM.
    pub(crate) fn drain(self) -> EngineEnd {
        self.stop.drain();
        let end = self.runtime.block_on(self.engine).unwrap().unwrap();
        self.runtime.shutdown_background();
        end
    }

    /// Waits for an end that nobody asked for.
    pub(crate) fn end(self) -> Result<EngineEnd> {
        let end = self.runtime.block_on(async { tokio::time::timeout(PATIENCE, self.engine).await });
        self.runtime.shutdown_background();
        end.expect("the engine lives on").unwrap()
    }

    pub(crate) fn is_finished(&self) -> bool {
        self.engine.is_finished()
    }
}

#[derive(Debug)]
struct Opener(Arc<FaultyFeed>);

#[async_trait]
impl SourceOpener for Opener {
    async fn open(&self, _source: &Source) -> Result<SharedFeed> {
        Ok(self.0.clone())
    }
}

pub(crate) fn settings() -> EngineSettings {
    EngineSettings {
        pool_size: 3,
        pool_min: 1,
        pool_max: 20,
        autoscale: Autoscale::On,
        slots: Slots::default(),
        batch_size: 10,
        batch_timeout: Duration::from_millis(50),
        batch_max_bytes: 4 << 10,
        process_timeout: Duration::from_secs(20),
        retry_count: 3,
        retry_delay: Duration::from_millis(50),
        retry_max_delay: Duration::from_millis(200),
        job_cleanup: Duration::from_secs(3_600),
        job_stuck: Duration::from_secs(600),
        lease: Duration::from_millis(1_500),
        queue_max_bytes: 1 << 20,
        memory_budget: 64 << 20,
        shutdown_timeout: Duration::from_secs(20),
        bases: argon::config::BaseSettings::default(),
    }
}

impl World {
    pub(crate) fn new() -> Self {
        let feed = MemoryFeed::new(DB, "rs:set-1:1");
        feed.set_reply_events(37);
        let start = feed.present();
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        let world = Self { start, feed, ledger: Arc::new(MemoryLedger::live()), store: Arc::new(MemoryStore::new()), runtime };
        world.runtime.block_on(world.create());
        world
    }

    /// What `capture start` leaves behind, as far as an engine looks at it.
    async fn create(&self) {
        let branch = Branch::new(BRANCH, NAME, DB);
        let source = Source::new(None, DB.into(), "rs:set-1:1".into());
        let capture = Capture::new(CAPTURE, &branch, source, self.start.clone(), 1);
        let base = Base::empty("base", BRANCH, Default::default(), String::new());
        let object = documents::to_json(&documents::BranchDocument::new(&branch, Some(&capture), std::slice::from_ref(&base))).unwrap();
        self.ledger.create_capture(&NewCapture { capture, branch, base }).await.unwrap();
        let tag = PutTag { sha256: Sha256::digest(&object).into(), put_id: "start".into() };
        self.store.put_new(&layout::branch_json(PROJECT, BRANCH), object.into(), &tag).await.unwrap();
        let epoch = documents::EpochDocument { format: documents::FORMAT, owner: CAPTURE.into(), starts_at: 1, after: None };
        let body = documents::to_json(&epoch).unwrap();
        let tag = PutTag { sha256: Sha256::digest(&body).into(), put_id: "start".into() };
        self.store.put_new(&layout::epoch(PROJECT, BRANCH, 1), body.into(), &tag).await.unwrap();
    }

    pub(crate) fn spawn(&self, name: &str, mix: Mix) -> Process {
        self.spawn_with(name, mix, settings(), self.store.clone())
    }

    pub(crate) fn spawn_with(&self, name: &str, mix: Mix, settings: EngineSettings, store: Store) -> Process {
        self.spawn_over(name, mix, settings, store, |feed| Arc::new(Opener(feed)))
    }

    /// With its own way to open sources.
    pub(crate) fn spawn_over(
        &self,
        name: &str,
        mix: Mix,
        settings: EngineSettings,
        store: Store,
        sources: impl FnOnce(Arc<FaultyFeed>) -> Arc<dyn SourceOpener>,
    ) -> Process {
        self.launch(name, mix, settings, store, sources, KINDS)
    }

    /// With kinds of jobs of its own.
    pub(crate) fn spawn_kinds(&self, name: &str, settings: EngineSettings, kinds: &'static [KindSpec]) -> Process {
        self.launch(name, Mix::default(), settings, self.store.clone(), |feed| Arc::new(Opener(feed)), kinds)
    }

    fn launch(
        &self,
        name: &str,
        mix: Mix,
        settings: EngineSettings,
        store: Store,
        sources: impl FnOnce(Arc<FaultyFeed>) -> Arc<dyn SourceOpener>,
        kinds: &'static [KindSpec],
    ) -> Process {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
        let feed = Arc::new(FaultyFeed::new(Arc::new(self.feed.clone()), mix.feed));
        let store = Arc::new(FaultyStore::new(store, mix.store));
        // The first heartbeat must not fail: an engine that cannot sign on does not start.
        let ledger = Arc::new(FaultyLedger::new(
            self.ledger.clone(),
            LedgerFaults { seed: mix.ledger.map_or(0, |f| f.seed), ..LedgerFaults::none() },
        ));
        let stop = Shutdown::new();
        let engine = Engine::new(ledger.clone(), store.clone(), sources(feed.clone()), settings, stop.clone());
        let engine = Engine { kinds, ..engine };
        let view = engine.view.clone();
        // Hosts of their own: on one host a second engine with this pid would prove the first one dead.
        let me = EngineBeat { id: name.into(), host: name.into(), boot: "boot".into(), pid: 1, beat_ms: 0, status: None };
        let engine = runtime.spawn(engine.run_as(me));
        self.wait(&format!("{name} signs on"), || {
            self.runtime.block_on(async { self.ledger.engines().await.unwrap().iter().any(|e| e.id == name) })
        });
        if let Some(faults) = mix.ledger {
            ledger.set_faults(faults);
        }
        Process { runtime, stop, engine, view, feed, store, ledger }
    }

    /// Waits until `done`; a test that waits for ever fails with what it waits for.
    pub(crate) fn wait(&self, what: &str, mut done: impl FnMut() -> bool) {
        let began = clock::now();
        while !done() {
            assert!(began.elapsed() < PATIENCE, "waited in vain until {what}: {}", self.describe());
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    pub(crate) fn branch(&self) -> Branch {
        self.runtime.block_on(self.ledger.branch(BRANCH)).unwrap().unwrap()
    }

    pub(crate) fn capture(&self) -> Capture {
        self.runtime.block_on(self.ledger.capture(CAPTURE)).unwrap().unwrap()
    }

    pub(crate) fn all_jobs(&self) -> Vec<Job> {
        self.runtime.block_on(self.ledger.jobs(&JobFilter::default(), 100_000)).unwrap()
    }

    pub(crate) fn jobs(&self, state: JobState) -> Vec<Job> {
        let filter = JobFilter { state: Some(state), ..JobFilter::default() };
        self.runtime.block_on(self.ledger.jobs(&filter, 100_000)).unwrap()
    }

    /// Waits until every event of the source is committed.
    pub(crate) fn settle(&self) {
        let all = self.feed.len() as u64;
        self.wait("everything is committed", || self.branch().head.seq == all);
    }

    /// What the bucket says of the branch.
    pub(crate) fn branch_json(&self) -> documents::BranchDocument {
        let key = layout::branch_json(PROJECT, BRANCH);
        documents::read_branch(&key, &self.runtime.block_on(self.store.get(&key, None)).unwrap()).unwrap()
    }

    fn describe(&self) -> String {
        let capture = self.capture();
        let depth = self.runtime.block_on(self.ledger.depth()).unwrap();
        let jobs: Vec<Job> = [JobState::Running, JobState::Ready, JobState::Scheduled, JobState::Dead]
            .into_iter()
            .flat_map(|s| self.jobs(s))
            .take(3)
            .collect();
        format!(
            "{} events, next seq {}, head {:?}, owner {:?}, state {:?} ({:?}), queue {depth:?}, first jobs {jobs:#?}",
            self.feed.len(),
            capture.position.next_seq,
            self.branch().head,
            capture.owner,
            capture.state,
            capture.reason,
        )
    }

    /// Inserts that come one by one.
    pub(crate) fn insert(&self, count: usize) {
        for _ in 0..count {
            self.feed.push(&insert(self.feed.len())).unwrap();
        }
    }

    pub(crate) fn transaction(&self, count: usize) {
        let from = self.feed.len();
        let all: Vec<Document> = (from..from + count).map(insert).collect();
        self.feed.transaction(&all).unwrap();
    }
}

fn insert(id: usize) -> Document {
    let id = i32::try_from(id).unwrap();
    // Different enough that it does not compress to nothing.
    let full = doc! { "_id": id, "n": i64::from(id) * 7_919, "text": format!("{:x}", Sha256::digest(id.to_le_bytes())) };
    doc! { "operationType": "insert", "fullDocument": full, "ns": { "db": DB, "coll": "orders" }, "documentKey": { "_id": id } }
}
