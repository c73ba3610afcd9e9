//! Owns: what every test stands on: servers shared by all, a database, metadata and prefix of its own for each, engines as processes,
//! waiting for events, and the check at the end of every run. Does not own: faults and load.

use std::ops::{Deref, DerefMut};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use argon::devkit::audit::{self, Audit, Subject};
use argon::devkit::engine::run_to_end;
use argon::devkit::{ArgonProcess, Mongod, MongodOptions, Output, Proxy, Weed, oracle};
use argon::ledger::{Branch, BranchStatus, Capture, ConnectOptions, Job, JobFilter, JobState, MongoLedger, SharedLedger};
use argon::runtime::clock;
use argon::store::{S3Keys, Store, StoreOptions, open};
use mongodb::bson::oid::ObjectId;
use mongodb::bson::{Document, Timestamp, doc};
use mongodb::{Client, Database};
use serde_json::Value;
use tokio::sync::OnceCell;

pub(crate) const BRANCH: &str = "crash/main";
const BUCKET: &str = "crash";
/// The only collection that the check writes to.
const MARKER: &str = "zz_marker";
/// Longest wait for anything; far more than a busy machine needs.
pub(crate) const LIMIT: Duration = Duration::from_secs(120);

fn binary() -> &'static Path {
    Path::new(env!("CARGO_BIN_EXE_argon"))
}

/// A replica set of one and an S3 service for all tests; they end with this process.
async fn mongod() -> &'static Mongod {
    static MONGOD: OnceCell<Mongod> = OnceCell::const_new();
    MONGOD.get_or_init(|| async { Mongod::start(MongodOptions { oplog_mb: 2_000, ..Default::default() }).await.unwrap() }).await
}

async fn weed() -> &'static Weed {
    static WEED: OnceCell<Weed> = OnceCell::const_new();
    WEED.get_or_init(|| async {
        let weed = Weed::start().await.unwrap();
        weed.create_bucket(BUCKET).await.unwrap();
        weed
    })
    .await
}

/// A second deployment whose oplog rolls over after a few megabytes.
pub(crate) async fn other_deployment() -> &'static Mongod {
    static OTHER: OnceCell<Mongod> = OnceCell::const_new();
    OTHER.get_or_init(|| async { Mongod::start(MongodOptions { oplog_mb: 16, ..Default::default() }).await.unwrap() }).await
}

/// Polls until `look` has something; a panic that names `what` after [`LIMIT`].
pub(crate) async fn until<T, F: Future<Output = Option<T>>>(what: &str, mut look: impl FnMut() -> F) -> T {
    let start = clock::now();
    loop {
        if let Some(seen) = look().await {
            return seen;
        }
        assert!(start.elapsed() < LIMIT, "waited {LIMIT:?} for this: {what}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// One source database with its metadata database and its part of the bucket.
pub(crate) struct World {
    name: String,
    uri: String,
    pub(crate) client: Client,
    pub(crate) ledger: SharedLedger,
    /// Settings of engines and commands.
    env: Vec<(String, String)>,
    /// Where engines find the store, if not where commands do.
    endpoint: Option<String>,
    store: Store,
}

/// A running engine; a failing test prints the end of its log.
pub(crate) struct Engine(ArgonProcess);

impl Deref for Engine {
    type Target = ArgonProcess;
    fn deref(&self) -> &ArgonProcess {
        &self.0
    }
}

impl DerefMut for Engine {
    fn deref_mut(&mut self) -> &mut ArgonProcess {
        &mut self.0
    }
}

impl Drop for Engine {
    fn drop(&mut self) {
        if std::thread::panicking() {
            println!("log of engine {}:\n{}", self.pid(), self.log_tail(6_000));
        }
    }
}

/// What the check saw.
pub(crate) struct Checked {
    pub(crate) audit: Audit,
}

impl World {
    /// On the shared servers. `name` must be the test's own.
    pub(crate) async fn new(name: &str) -> Self {
        Self::on(name, &mongod().await.uri()).await
    }

    /// Source and metadata in the deployment at `uri`, objects in the shared store.
    pub(crate) async fn on(name: &str, uri: &str) -> Self {
        let weed = weed().await;
        let client = Client::with_uri_str(uri).await.unwrap();
        let metadata = format!("{name}_meta");
        let ledger = Arc::new(MongoLedger::connect(uri, &metadata, ConnectOptions::default()).await.unwrap());
        let mut env = weed.env(BUCKET, name);
        let settings = [
            ("ARGON_MONGODB_URI", uri),
            ("ARGON_METADATA_DB", &metadata),
            ("ARGON_LEASE", "3s"),
            ("WORKER_BATCH_TIMEOUT", "200ms"),
            ("JOB_RETRY_DELAY", "200ms"),
            ("JOB_RETRY_MAX_DELAY", "1s"),
            ("ARGON_LOG", "argon=debug,warn"),
        ];
        env.extend(settings.map(|(name, value)| (name.to_owned(), value.to_owned())));
        let s3_keys = Some(S3Keys { access_key: weed.access_key().to_owned(), secret_key: weed.secret_key().to_owned() });
        let options = StoreOptions { endpoint: Some(weed.endpoint()), s3_keys, ..Default::default() };
        let store = open(&weed.store_url(BUCKET, name), &options).await.unwrap();
        Self { name: name.to_owned(), uri: uri.to_owned(), client, ledger, env, endpoint: None, store }
    }

    /// Puts a proxy between engines started from now on and the store.
    pub(crate) async fn proxied(&mut self) -> Proxy {
        let proxy = Proxy::start(weed().await.address()).await.unwrap();
        self.endpoint = Some(format!("http://{}", proxy.address()));
        proxy
    }

    /// A proxy in front of the shared MongoDB, for an engine that connects to it directly.
    pub(crate) async fn proxy_to_mongod(&self) -> Proxy {
        Proxy::start(mongod().await.address(0)).await.unwrap()
    }

    pub(crate) fn source(&self) -> Database {
        self.client.database(&self.name)
    }

    pub(crate) fn metadata(&self) -> Database {
        self.client.database(&format!("{}_meta", self.name))
    }

    pub(crate) fn uri(&self) -> &str {
        &self.uri
    }

    /// Name of the database that the last check restores into.
    pub(crate) fn target(&self) -> Database {
        self.client.database(&format!("{}_back", self.name))
    }

    /// Starts an engine; settings given win.
    pub(crate) fn engine(&self, settings: &[(&str, &str)]) -> Engine {
        let mut env = self.env.clone();
        let proxied = self.endpoint.iter().map(|endpoint| ("ARGON_S3_ENDPOINT", endpoint.as_str()));
        let settings: Vec<(&str, &str)> = proxied.chain(settings.iter().copied()).collect();
        env.retain(|(name, _)| settings.iter().all(|(given, _)| given != name));
        env.extend(settings.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())));
        Engine(ArgonProcess::start(binary(), ["run"], &env).unwrap())
    }

    /// Starts a command, so that it can be killed.
    pub(crate) fn start(&self, args: &[&str]) -> Engine {
        Engine(ArgonProcess::start(binary(), args.iter().copied(), &self.env).unwrap())
    }

    /// Runs a command to its end, whatever its exit code.
    pub(crate) async fn argon(&self, args: &[&str]) -> Output {
        run_to_end(binary(), args.iter().copied(), &self.env, LIMIT).await.unwrap()
    }

    /// Runs a command that must succeed, and returns its JSON.
    pub(crate) async fn json(&self, args: &[&str]) -> Value {
        let output = self.argon(&[args, &["--json"]].concat()).await;
        assert_eq!(output.code, 0, "argon {args:?}: {output:?}");
        serde_json::from_str(&output.stdout).unwrap_or_else(|e| panic!("argon {args:?}: {e}: {output:?}"))
    }

    /// Starts to capture the source.
    pub(crate) async fn start_capture(&self) -> Value {
        self.json(&["capture", "start", BRANCH, "--source-db", &self.name]).await
    }

    pub(crate) async fn branch(&self) -> Branch {
        self.ledger.branch_named(BRANCH).await.unwrap().expect("the branch")
    }

    pub(crate) async fn capture(&self) -> Capture {
        self.ledger.captures().await.unwrap().into_iter().find(|c| c.branch_name == BRANCH).expect("the capture")
    }

    pub(crate) async fn jobs(&self, state: Option<JobState>) -> Vec<Job> {
        self.ledger.jobs(&JobFilter { state, ..Default::default() }, 10_000).await.unwrap()
    }

    /// The last seq in the queue or in history; errors (a server that is away) are none.
    pub(crate) async fn queued(&self) -> Option<u64> {
        let captures = self.ledger.captures().await.ok()?;
        captures.into_iter().find(|c| c.branch_name == BRANCH).map(|c| c.position.next_seq - 1)
    }

    pub(crate) async fn head(&self) -> Option<u64> {
        self.ledger.branch_named(BRANCH).await.ok()?.map(|b| b.head.seq)
    }

    /// How many engines are on record, and who owns the capture.
    pub(crate) async fn ledger_is_left(&self) -> (usize, Option<String>) {
        (self.ledger.engines().await.unwrap().len(), self.capture().await.owner)
    }

    /// Changes in segments behind the head (committed out of order).
    pub(crate) async fn committed_beyond(&self, head: u64) -> u64 {
        let rows = self.ledger.segments(&self.branch().await.id, head + 1, 10_000).await.unwrap();
        rows.iter().map(|row| row.last_seq + 1 - row.first_seq).sum()
    }

    /// Waits until `more` changes beyond the present head are committed: everything on the way works.
    pub(crate) async fn progress(&self, more: u64) {
        let from = until("a head", || self.head()).await;
        let what = format!("{more} changes after seq {from} are committed");
        until(&what, || async { self.head().await.filter(|head| *head >= from + more) }).await;
    }

    /// The engine that owns the capture, once there is one among these.
    pub(crate) async fn owner_among(&self, engines: &[Engine]) -> usize {
        until("an owner of the capture", || async {
            let owner = self.ledger.captures().await.ok()?.into_iter().find_map(|c| c.owner)?;
            engines.iter().position(|e| owner.contains(&format!("-{}-", e.pid())))
        })
        .await
    }

    /// Writes a marker behind everything and returns its cluster time.
    async fn mark(&self) -> Timestamp {
        let id = ObjectId::new();
        self.source().collection(MARKER).insert_one(doc! { "_id": id }).await.unwrap();
        let oplog = self.client.database("local").collection::<Document>("oplog.rs");
        let entry = oplog
            .find_one(doc! { "ns": format!("{}.{MARKER}", self.name), "o._id": id })
            .sort(doc! { "$natural": -1 })
            .await
            .unwrap()
            .expect("the marker's oplog entry");
        entry.get_timestamp("ts").unwrap()
    }

    /// Waits until everything written so far is committed. The source must be quiet.
    pub(crate) async fn caught_up(&self) {
        let mark = self.mark().await;
        let seen = || async {
            let branch = self.ledger.branch_named(BRANCH).await.ok()??;
            (Timestamp::from(branch.head.time) >= mark).then_some(())
        };
        let start = clock::now();
        while seen().await.is_none() {
            if start.elapsed() > LIMIT {
                let (branch, capture) = (self.branch().await, self.capture().await);
                let jobs: Vec<_> = self.jobs(None).await.into_iter().filter(|j| j.state != JobState::Done).collect();
                panic!("history has not caught up in {LIMIT:?}: {branch:?}, {capture:?}, jobs: {jobs:?}");
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    /// The end of every run: caught up, every change once and in order, every byte intact, and what comes back is what went in.
    pub(crate) async fn check(&self) -> Checked {
        let start = clock::now();
        let mut phases = Vec::new();
        self.caught_up().await;
        phases.push(start.elapsed());
        let branch = self.branch().await;
        assert_eq!((branch.status, &branch.reason), (BranchStatus::Active, &None));
        assert_eq!(self.jobs(Some(JobState::Dead)).await, []);
        let subject =
            Subject { client: &self.client, metadata_db: &format!("{}_meta", self.name), branch: BRANCH, store: self.store.clone() };
        let audit = audit::audit(&subject).await.unwrap();
        phases.push(start.elapsed());
        assert_eq!(audit.problems, Vec::<String>::new());
        assert_eq!((audit.changes, audit.changes), (branch.head.seq, branch.totals.changes));
        assert_eq!(audit.segments, branch.totals.segments);

        let verified = self.argon(&["verify", BRANCH, "--deep"]).await;
        assert_eq!(verified.code, 0, "{verified:?}");
        phases.push(start.elapsed());
        let target = self.target();
        let restored = self.argon(&["restore", BRANCH, "--to-db", target.name()]).await;
        assert_eq!(restored.code, 0, "{restored:?}");
        let (was, is) = (oracle::snapshot(&self.source()).await.unwrap(), oracle::snapshot(&target).await.unwrap());
        assert!(!was.hashes.is_empty());
        assert_eq!(was.differences(&is), Vec::<String>::new());
        phases.push(start.elapsed());
        println!("{}: {} changes; caught up, audited, verified, restored after {phases:.1?}", self.name, audit.changes);
        Checked { audit }
    }
}

/// SIGTERM; it must drain and exit with 0.
pub(crate) async fn drain(engine: &mut Engine) {
    let exit = engine.terminate(LIMIT).await.unwrap();
    assert_eq!(exit.code, 0, "{}", engine.log_tail(3000));
}
