//! Owns: what the tests stand on: one MongoDB and one S3 service for all, and per test a source, metadata and a prefix of its own; a load; dumps of metadata.
//! Does not own: what is expected.

use std::path::Path;
use std::time::Duration;

use argon::devkit::engine::run_to_end;
use argon::devkit::workload::{self, Profile, Workload};
use argon::devkit::{ArgonProcess, Mongod, MongodOptions, Output, Weed, oracle};
use argon::runtime::clock;
use argon::store::{S3Keys, Store, StoreOptions, open};
use futures_util::TryStreamExt;
use mongodb::bson::oid::ObjectId;
use mongodb::bson::{Document, Timestamp, doc};
use mongodb::{Client, Database};
use serde_json::Value;
use tokio::sync::OnceCell;

pub(crate) const BRANCH: &str = "shop/main";
const BUCKET: &str = "rebuild";
pub(crate) const LIMIT: Duration = Duration::from_secs(120);

pub(crate) fn binary() -> &'static Path {
    Path::new(env!("CARGO_BIN_EXE_argon"))
}

async fn mongod() -> &'static Mongod {
    static MONGOD: OnceCell<Mongod> = OnceCell::const_new();
    // What a killed engine leaves open holds up the drop of the metadata for so long; 60 s is the default.
    let params = vec![("transactionLifetimeLimitSeconds".to_owned(), "5".to_owned())];
    MONGOD.get_or_init(|| async { Mongod::start(MongodOptions { oplog_mb: 2_000, params, ..Default::default() }).await.unwrap() }).await
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

pub(crate) struct World {
    pub(crate) name: String,
    pub(crate) uri: String,
    pub(crate) client: Client,
    pub(crate) store: Store,
    pub(crate) metadata: String,
    env: Vec<(String, String)>,
}

impl World {
    pub(crate) async fn new(name: &str) -> Self {
        let (weed, uri) = (weed().await, mongod().await.uri());
        let client = Client::with_uri_str(&uri).await.unwrap();
        let metadata = format!("{name}_meta");
        let mut env = weed.env(BUCKET, name);
        let settings = [
            ("ARGON_MONGODB_URI", uri.as_str()),
            ("ARGON_METADATA_DB", &metadata),
            ("ARGON_LEASE", "3s"),
            ("WORKER_BATCH_TIMEOUT", "100ms"),
            ("WORKER_BATCH_SIZE", "20"),
            ("ARGON_LOG", "argon=debug,warn"),
        ];
        env.extend(settings.map(|(name, value)| (name.to_owned(), value.to_owned())));
        let s3_keys = Some(S3Keys { access_key: weed.access_key().to_owned(), secret_key: weed.secret_key().to_owned() });
        let options = StoreOptions { endpoint: Some(weed.endpoint()), s3_keys, ..Default::default() };
        let store = open(&weed.store_url(BUCKET, name), &options).await.unwrap();
        Self { name: name.to_owned(), uri, client, store, metadata, env }
    }

    pub(crate) fn source(&self) -> Database {
        self.client.database(&self.name)
    }

    pub(crate) fn env(&self, more: &[(&str, &str)]) -> Vec<(String, String)> {
        let mut env = self.env.clone();
        env.retain(|(name, _)| more.iter().all(|(given, _)| given != name));
        // An empty one takes the variable away.
        env.extend(more.iter().filter(|(_, value)| !value.is_empty()).map(|(name, value)| ((*name).to_owned(), (*value).to_owned())));
        env
    }

    pub(crate) async fn argon_with(&self, args: &[&str], more: &[(&str, &str)]) -> Output {
        run_to_end(binary(), args.iter().copied(), &self.env(more), LIMIT).await.unwrap()
    }

    /// A command that must succeed; its JSON.
    pub(crate) async fn json(&self, args: &[&str]) -> Value {
        self.json_with(args, &[]).await
    }

    pub(crate) async fn json_with(&self, args: &[&str], more: &[(&str, &str)]) -> Value {
        let output = self.argon_with(&[args, &["--json"]].concat(), more).await;
        assert_eq!(output.code, 0, "argon {args:?}: {output:?}");
        serde_json::from_str(&output.stdout).unwrap_or_else(|e| panic!("argon {args:?}: {e}: {output:?}"))
    }

    pub(crate) fn engine(&self, more: &[(&str, &str)]) -> ArgonProcess {
        ArgonProcess::start(binary(), ["run"], &self.env(more)).unwrap()
    }

    pub(crate) async fn capturing_engine(&self) -> ArgonProcess {
        let mut engine = self.engine(&[]);
        engine.wait_line("capture started here", LIMIT).await.unwrap();
        engine
    }

    /// Some hundred changes of every kind.
    pub(crate) async fn load(&self, seed: u32, rounds: usize) {
        self.load_while(seed, rounds, || false).await;
    }

    /// At least so many rounds, and on while it is wanted.
    pub(crate) async fn load_while(&self, seed: u32, rounds: usize, wanted: impl Fn() -> bool) {
        let db = self.source();
        let profile = Profile { keys: 150, ..Profile::everything() };
        workload::prepare(&db, &profile).await.unwrap();
        // The lane is part of every _id: two loads do not meet.
        let mut load = Workload::new(seed.into(), seed, profile).unwrap();
        let mut round = 0;
        while round < rounds || wanted() {
            let operations: Vec<_> = (0..40).map(|_| load.next_operation()).collect();
            workload::apply(&db, &operations).await.unwrap();
            round += 1;
        }
        let extra = db.collection::<Document>(&format!("extra_{seed}"));
        extra.create_index(mongodb::IndexModel::builder().keys(doc! { "n": 1 }).build()).await.unwrap();
        extra.insert_many((0..10).map(|n| doc! { "_id": n, "n": n })).await.unwrap();
    }

    /// Waits until so many changes are in history.
    pub(crate) async fn committed(&self, changes: u64) {
        let branches = self.client.database(&self.metadata).collection::<Document>("branches");
        let begun = clock::now();
        loop {
            let branch = branches.find_one(doc! { "name": BRANCH }).await.unwrap().unwrap();
            let head = branch.get_document("head").unwrap();
            if head.get_i64("seq").is_ok_and(|seq| u64::try_from(seq).unwrap() >= changes) {
                return;
            }
            assert!(begun.elapsed() < LIMIT, "not committed in {LIMIT:?}: {branch}");
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    /// Waits until everything written so far is committed.
    pub(crate) async fn caught_up(&self) {
        let id = ObjectId::new();
        self.source().collection("zz_marker").insert_one(doc! { "_id": id }).await.unwrap();
        let oplog = self.client.database("local").collection::<Document>("oplog.rs");
        let ours = doc! { "ns": format!("{}.zz_marker", self.name), "o._id": id };
        let mark: Timestamp = oplog.find_one(ours).sort(doc! { "$natural": -1 }).await.unwrap().unwrap().get_timestamp("ts").unwrap();
        let branches = self.client.database(&self.metadata).collection::<Document>("branches");
        let begun = clock::now();
        loop {
            let branch = branches.find_one(doc! { "name": BRANCH }).await.unwrap().unwrap();
            let time = branch.get_document("head").unwrap().get_document("time").unwrap();
            let number = |name: &str| time.get_i64(name).or_else(|_| time.get_i32(name).map(i64::from)).unwrap();
            if (number("t"), number("i")) >= (i64::from(mark.time), i64::from(mark.increment)) {
                return;
            }
            assert!(begun.elapsed() < LIMIT, "not captured in {LIMIT:?}: {branch}");
            tokio::time::sleep(Duration::from_millis(25)).await;
        }
    }

    pub(crate) async fn snapshot(&self) -> oracle::Snapshot {
        oracle::snapshot(&self.source()).await.unwrap()
    }

    /// Every collection of the metadata, in a database of another name.
    pub(crate) async fn dump(&self, to: &str) {
        let (from, to) = (self.client.database(&self.metadata), self.client.database(to));
        for name in from.list_collection_names().await.unwrap() {
            let rows: Vec<Document> = from.collection(&name).find(doc! {}).await.unwrap().try_collect().await.unwrap();
            if !rows.is_empty() {
                to.collection(&name).insert_many(rows).await.unwrap();
            }
        }
    }

    pub(crate) async fn drop_metadata(&self) {
        self.client.database(&self.metadata).drop().await.unwrap();
    }

    /// Branches as users see them, without what is no longer so or not in the bucket.
    pub(crate) async fn branches(&self, more: &[(&str, &str)]) -> Vec<Value> {
        let listed = self.json_with(&["branch", "list"], more).await;
        let mut all = listed["branches"].as_array().unwrap().clone();
        for branch in &mut all {
            let row = branch.as_object_mut().unwrap();
            // Idle tokens move on in the metadata alone; forks are dated by another clock.
            row.remove("captured_until");
            row.remove("created");
        }
        assert!(!all.is_empty());
        all
    }

    /// Documents of a metadata collection that say what history is.
    pub(crate) async fn segment_keys(&self, metadata: &str) -> Vec<String> {
        let rows = self.client.database(metadata).collection::<Document>("segments");
        let rows: Vec<Document> = rows.find(doc! {}).sort(doc! { "branch": 1, "last_seq": 1 }).await.unwrap().try_collect().await.unwrap();
        let without = |mut row: Document| {
            row.remove("committed_ms");
            row.remove("filter"); // only saves reading objects, which whoever has no filter reads
            row.to_string()
        };
        rows.into_iter().map(without).collect()
    }

    /// `argon verify --deep` and against the source; both say identical.
    pub(crate) async fn verify(&self) {
        for args in [&["verify", BRANCH, "--deep"][..], &["verify", BRANCH, "--against-db", &self.name]] {
            let output = self.argon_with(args, &[]).await;
            assert!(output.code == 0 && output.stdout.contains("verified: identical"), "{args:?}: {output:?}");
        }
    }
}

/// A failing test prints the end of the engine's log.
pub(crate) struct Shown(pub(crate) ArgonProcess);

impl Drop for Shown {
    fn drop(&mut self) {
        if std::thread::panicking() {
            println!("log of engine {}:\n{}", self.0.pid(), self.0.log_tail(6_000));
        }
    }
}
