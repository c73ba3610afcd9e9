//! Owns: a server, metadata, a store, engines, and comparing what is restored with the source. Does not own: what is expected.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use argon::branch::history::{History, Progress};
use argon::branch::point::Point;
use argon::branch::restore::{RestoreOptions, RestoreReport, restore};
use argon::branch::verify::{DeepOptions, structure};
use argon::capture::source::MongoSources;
use argon::capture::{StartRequest, Started, start};
use argon::change::ClusterTime;
use argon::config::EngineSettings;
use argon::devkit::{Mongod, MongodOptions, oracle};
use argon::engine::{Engine, EngineEnd};
use argon::fault::Result;
use argon::ledger::{Base, BaseState, ConnectOptions, MongoLedger, Selection, SharedLedger, connect_client, server_facts};
use argon::runtime::shutdown::Shutdown;
use argon::store::{self, Store, StoreOptions};
use bson::doc;
use clap::Parser;
use mongodb::{Client, Database};
use tokio::task::JoinHandle;

pub(crate) const BRANCH: &str = "test/main";

#[derive(Parser)]
struct Defaults {
    #[command(flatten)]
    settings: EngineSettings,
}

pub(crate) struct World {
    pub(crate) mongod: Mongod,
    pub(crate) client: Client,
    pub(crate) ledger: SharedLedger,
    pub(crate) store: Store,
    pub(crate) dir: tempfile::TempDir,
}

/// A running engine.
pub(crate) struct Running {
    stop: Shutdown,
    engine: JoinHandle<Result<EngineEnd>>,
}

impl Running {
    pub(crate) async fn drain(self) {
        self.stop.drain();
        assert_eq!(self.engine.await.unwrap().unwrap(), EngineEnd::Drained);
    }
}

impl World {
    pub(crate) async fn new() -> Self {
        Self::with(MongodOptions::default()).await
    }

    pub(crate) async fn with(mut options: MongodOptions) -> Self {
        // The TTL monitor would delete between two hashes.
        options.params.push(("ttlMonitorEnabled".to_owned(), "false".to_owned()));
        let mongod = Mongod::start(options).await.unwrap();
        let client = connect_client(&mongod.uri(), &ConnectOptions::default()).await.unwrap();
        let ledger: SharedLedger = Arc::new(MongoLedger::connect(&mongod.uri(), "argon", ConnectOptions::default()).await.unwrap());
        ledger.prepare().await.unwrap();
        let dir = tempfile::tempdir().unwrap();
        let store = store::open(&format!("file://{}", dir.path().display()), &StoreOptions::default()).await.unwrap();
        Self { mongod, client, ledger, store, dir }
    }

    pub(crate) fn source(&self) -> Database {
        self.client.database("shop")
    }

    pub(crate) async fn start(&self) -> Started {
        self.start_some(Selection::default()).await
    }

    /// The same for some of the collections.
    pub(crate) async fn start_some(&self, selection: Selection) -> Started {
        let request = StartRequest {
            branch: BRANCH.into(),
            db: "shop".into(),
            source_uri: None,
            selection,
            metadata_uri: self.mongod.uri(),
            metadata_db: "argon".into(),
        };
        start(&self.ledger, &self.store, &server_facts(&self.client).await.unwrap(), &request).await.unwrap()
    }

    pub(crate) fn engine(&self, more: &[&str]) -> Running {
        let stop = Shutdown::new();
        let args = ["test", "--batch-timeout", "100ms"].iter().chain(more);
        let settings = Defaults::try_parse_from(args).unwrap().settings;
        let sources = Arc::new(MongoSources { default: self.mongod.uri() });
        let engine = Engine::new(self.ledger.clone(), self.store.clone(), sources, settings, stop.clone());
        Running { stop, engine: tokio::spawn(engine.run()) }
    }

    pub(crate) async fn history(&self, branch: &str) -> History {
        History::open(self.ledger.clone(), self.store.clone(), branch).await.unwrap()
    }

    /// The server's time now.
    pub(crate) async fn now(&self) -> ClusterTime {
        let now = self.client.database("admin").run_command(doc! { "hello": 1 }).await.unwrap();
        now.get_timestamp("operationTime").unwrap().into()
    }

    /// Waits until everything that is in the stream now is committed.
    pub(crate) async fn caught_up(&self, branch: &str) {
        let due = self.now().await;
        wait_for("the stream to be captured", async || self.history(branch).await.captured_until.is_some_and(|until| until >= due)).await;
    }

    /// Waits until a branch has so many complete bases, and its newest can be used.
    pub(crate) async fn bases(&self, branch: &str, count: usize) -> Vec<Base> {
        let id = self.ledger.branch_named(branch).await.unwrap().unwrap().id;
        let complete = async || {
            let bases = self.ledger.bases(&id).await.unwrap();
            bases.into_iter().filter(|base| base.state == BaseState::Complete).collect::<Vec<_>>()
        };
        wait_for(&format!("{count} bases"), async || complete().await.len() >= count).await;
        let bases = complete().await;
        let due = bases.iter().map(|base| base.consistent_at).max().unwrap();
        wait_for("the base to be usable", async || self.history(branch).await.captured_until.is_some_and(|until| until >= due)).await;
        bases
    }

    pub(crate) async fn restore(&self, branch: &str, at: Point, to: &str) -> Result<RestoreReport> {
        // Both ways, one after the other.
        static RESTORES: AtomicU64 = AtomicU64::new(0);
        let early = Some(RESTORES.fetch_add(1, Ordering::Relaxed).is_multiple_of(2));
        let options =
            RestoreOptions { drop: true, early, budget: 64 << 20, temp_dir: self.dir.path().to_path_buf(), ..RestoreOptions::new(at) };
        restore(&self.history(branch).await, &self.client.database(to), &options, Arc::new(Progress::default())).await
    }

    /// Differences between a database and what a branch is at a point.
    pub(crate) async fn differences(&self, branch: &str, at: Point, with: &Database) -> Vec<String> {
        self.client.database("restored").drop().await.unwrap();
        self.restore(branch, at, "restored").await.unwrap();
        oracle::snapshot(with).await.unwrap().differences(&oracle::snapshot(&self.client.database("restored")).await.unwrap())
    }

    pub(crate) async fn verify(&self, branch: &str) {
        let history = self.history(branch).await;
        let deep = DeepOptions { budget: 1 << 20, temp_dir: self.dir.path().to_path_buf() };
        let report = structure(&history, &*self.ledger, Some(&deep), Arc::default()).await.unwrap();
        assert!(report.identical, "{report:#?}");
    }
}

pub(crate) async fn wait_for(what: &str, mut done: impl AsyncFnMut() -> bool) {
    let began = argon::runtime::clock::now();
    while !done().await {
        assert!(began.elapsed() < Duration::from_secs(120), "waited two minutes for {what}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}
