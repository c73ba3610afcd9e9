//! Rules of a capture that need a real server and a whole engine, run inside this process on a directory store.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)] // helpers of tests are tests

use std::sync::Arc;
use std::time::Duration;

use argon::branch::catalogue::read_first_catalogue;
use argon::branch::history::{History, Progress};
use argon::branch::point::Point;
use argon::branch::restore::{RestoreOptions, restore};
use argon::branch::{documents, layout};
use argon::capture::feed::{ChangeFeed, SharedFeed};
use argon::capture::source::MongoSources;
use argon::capture::{MongoFeed, StartRequest, Started, start};
use argon::config::EngineSettings;
use argon::devkit::audit::{Subject, audit};
use argon::devkit::{Mongod, MongodOptions, oracle};
use argon::engine::{Engine, EngineEnd, SourceOpener};
use argon::fault::Kind;
use argon::ledger::{CaptureState, ConnectOptions, Fidelity, MongoLedger, Selection, SharedLedger, Source, connect_client, server_facts};
use argon::runtime::shutdown::Shutdown;
use argon::store::{self, PutTag, Store, StoreOptions};
use async_trait::async_trait;
use bson::{Document, doc};
use clap::Parser;
use mongodb::event::EventHandler;
use mongodb::event::command::CommandEvent;
use mongodb::options::ClientOptions;
use mongodb::{Client, Database};
use parking_lot::Mutex;

#[derive(Parser)]
struct Defaults {
    #[command(flatten)]
    settings: EngineSettings,
}

struct World {
    mongod: Mongod,
    client: Client,
    ledger: SharedLedger,
    store: Store,
    dir: tempfile::TempDir,
}

const BRANCH: &str = "test/main";

impl World {
    async fn new() -> Self {
        let mongod = Mongod::start(MongodOptions::default()).await.unwrap();
        let client = connect_client(&mongod.uri(), &ConnectOptions::default()).await.unwrap();
        let ledger: SharedLedger = Arc::new(MongoLedger::connect(&mongod.uri(), "argon", ConnectOptions::default()).await.unwrap());
        ledger.prepare().await.unwrap();
        let dir = tempfile::tempdir().unwrap();
        let store = store::open(&format!("file://{}", dir.path().display()), &StoreOptions::default()).await.unwrap();
        Self { mongod, client, ledger, store, dir }
    }

    fn source(&self) -> Database {
        self.client.database("shop")
    }

    async fn start(&self) -> Started {
        self.start_over(None).await.unwrap()
    }

    async fn start_over(&self, source_uri: Option<String>) -> argon::fault::Result<Started> {
        let request = StartRequest {
            selection: Selection::default(),
            branch: BRANCH.into(),
            db: "shop".into(),
            source_uri,
            metadata_uri: self.mongod.uri(),
            metadata_db: "argon".into(),
        };
        start(&self.ledger, &self.store, &server_facts(&self.client).await.unwrap(), &request).await
    }

    fn engine(&self) -> (Shutdown, tokio::task::JoinHandle<argon::fault::Result<EngineEnd>>) {
        self.engine_over(Arc::new(MongoSources { default: self.mongod.uri() }))
    }

    fn engine_over(&self, sources: Arc<dyn SourceOpener>) -> (Shutdown, tokio::task::JoinHandle<argon::fault::Result<EngineEnd>>) {
        let stop = Shutdown::new();
        let settings = Defaults::try_parse_from(["test", "--batch-timeout", "100ms"]).unwrap().settings;
        let engine = Engine::new(self.ledger.clone(), self.store.clone(), sources, settings, stop.clone());
        (stop, tokio::spawn(engine.run()))
    }

    /// Runs an engine until everything that is in the stream now is committed.
    async fn capture_all(&self) {
        let (stop, engine) = self.engine();
        self.caught_up().await;
        stop.drain();
        assert_eq!(engine.await.unwrap().unwrap(), EngineEnd::Drained);
    }

    /// Waits until everything that is in the stream now is committed.
    async fn caught_up(&self) {
        let now = self.client.database("admin").run_command(doc! { "hello": 1 }).await.unwrap();
        let due: argon::change::ClusterTime = now.get_timestamp("operationTime").unwrap().into();
        wait_for("the stream to be captured", async || {
            History::open(self.ledger.clone(), self.store.clone(), BRANCH).await.unwrap().captured_until.is_some_and(|until| until >= due)
        })
        .await;
    }

    /// The next commands of [`followed`] clients fail.
    async fn fail(&self, times: i32, mut data: Document) {
        data.insert("appName", FOLLOWED);
        let point = doc! { "configureFailPoint": "failCommand", "mode": { "times": times }, "data": data };
        self.client.database("admin").run_command(point).await.unwrap();
    }

    async fn restored(&self) -> Vec<String> {
        let history = History::open(self.ledger.clone(), self.store.clone(), BRANCH).await.unwrap();
        let target = self.client.database("shop_restored");
        let options = RestoreOptions {
            at: Point::Head,
            collections: Vec::new(),
            drop: true,
            across_gap: false,
            no_ttl: false,
            dry_run: false,
            budget: 64 << 20,
            temp_dir: self.dir.path().to_path_buf(),
            writers: 2,
            ..RestoreOptions::new(Point::Head)
        };
        restore(&history, &target, &options, Arc::new(Progress::default())).await.unwrap();
        oracle::snapshot(&self.source()).await.unwrap().differences(&oracle::snapshot(&target).await.unwrap())
    }
}

async fn wait_for(what: &str, mut done: impl AsyncFnMut() -> bool) {
    let began = argon::runtime::clock::now();
    while !done().await {
        assert!(began.elapsed() < Duration::from_secs(60), "waited a minute for {what}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

async fn run(db: &Database, command: Document) {
    db.run_command(command.clone()).await.unwrap_or_else(|e| panic!("{command}: {e}"));
}

#[tokio::test(flavor = "multi_thread")]
async fn rules_2_and_10_what_the_stream_hides_and_what_was_there_before_come_back() {
    let world = World::new().await;
    let db = world.source();
    // Before the capture: empty collections send inserts later, but never a create (rule 10).
    run(&db, doc! { "create": "before", "collation": { "locale": "de" }, "validator": { "n": { "$gte": 0 } } }).await;
    run(&db, doc! { "createIndexes": "before", "indexes": [{ "key": { "n": 1 }, "name": "n", "unique": true }] }).await;
    run(&db, doc! { "create": "seen", "viewOn": "before", "pipeline": [{ "$match": { "n": 1 } }] }).await;
    let started = world.start().await;
    assert_eq!(started.capture.state, CaptureState::Running);
    // From the moment it returned, everything counts.
    for n in 0..200 {
        db.collection("before").insert_one(doc! { "n": n, "pad": "x".repeat(50) }).await.unwrap();
    }
    run(&db, doc! { "cloneCollectionAsCapped": "before", "toCollection": "clone", "size": 4096 }).await;
    db.collection::<Document>("to_cap").insert_many((0..50).map(|n| doc! { "_id": n, "pad": "y".repeat(40) })).await.unwrap();
    run(&db, doc! { "convertToCapped": "to_cap", "size": 1_000_000 }).await;
    db.collection::<Document>("to_cap").insert_one(doc! { "_id": "later" }).await.unwrap();
    db.collection::<Document>("before").aggregate([doc! { "$match": { "n": { "$lt": 7 } } }, doc! { "$out": "out" }]).await.unwrap();
    db.collection::<Document>("system.js").insert_one(doc! { "_id": "f", "value": "function(){}" }).await.unwrap();
    world.capture_all().await;
    assert_eq!(world.restored().await, Vec::<String>::new());
    let subject = Subject { client: &world.client, metadata_db: "argon", branch: BRANCH, store: world.store.clone() };
    let audit = audit(&subject).await.unwrap();
    assert_eq!(audit.problems, Vec::<String>::new());
    assert!(audit.changes > 450, "{audit:?}");
}

/// A client that prefers secondaries, and every command that it sends.
async fn watched(uri: &str) -> (Client, Arc<Mutex<Vec<Document>>>) {
    let sent = Arc::new(Mutex::new(Vec::new()));
    let mut options = ClientOptions::parse(format!("{uri}&readPreference=secondaryPreferred")).await.unwrap();
    let seen = sent.clone();
    options.command_event_handler = Some(EventHandler::callback(move |event| {
        if let CommandEvent::Started(started) = event {
            seen.lock().push(started.command);
        }
    }));
    (Client::with_options(options).unwrap(), sent)
}

/// Name of clients whose commands can be made to fail, and only theirs.
const FOLLOWED: &str = "followed";

/// What a client sent, with the ids of its requests, and which of them failed.
#[derive(Debug, Default)]
struct Wire {
    sent: Vec<(i32, Document)>,
    failed: Vec<i32>,
}

/// A client that sources are read through, and what is on its wire.
async fn followed(uri: &str) -> (Client, Arc<Mutex<Wire>>) {
    let wire = Arc::new(Mutex::new(Wire::default()));
    let mut options = ClientOptions::parse(uri).await.unwrap();
    options.app_name = Some(FOLLOWED.to_owned());
    let seen = wire.clone();
    options.command_event_handler = Some(EventHandler::callback(move |event| match event {
        CommandEvent::Started(started) => seen.lock().sent.push((started.request_id, started.command)),
        CommandEvent::Failed(failed) => seen.lock().failed.push(failed.request_id),
        _ => {}
    }));
    (Client::with_options(options).unwrap(), wire)
}

/// Reads every source through one client.
#[derive(Debug)]
struct Through(Client);

#[async_trait]
impl SourceOpener for Through {
    async fn open(&self, source: &Source) -> argon::fault::Result<SharedFeed> {
        Ok(Arc::new(MongoFeed::new(self.0.clone(), &source.db)))
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn rule_4_a_stream_is_opened_with_start_after_and_a_cursor_that_failed_is_dropped() {
    let world = World::new().await;
    let started = world.start().await;
    let (client, wire) = followed(&world.mongod.uri()).await;
    let (stop, engine) = world.engine_over(Arc::new(Through(client)));
    let orders = world.source().collection::<Document>("orders");
    let faults = [
        doc! { "errorCode": 43 },    // the cursor is not found
        doc! { "errorCode": 11600 }, // interrupted at shutdown
        doc! { "errorCode": 10107 }, // no primary any more
        doc! { "closeConnection": true },
    ];
    // Quicker than waiting for a token of a quiet stream.
    let committed = async |seq: u64| {
        wait_for(&format!("seq {seq}"), async || world.ledger.branch(&started.branch.id).await.unwrap().unwrap().head.seq >= seq).await;
    };
    let mut seq = 1; // the collection itself
    for (n, fault) in (0i32..).zip(faults) {
        orders.insert_one(doc! { "_id": n }).await.unwrap();
        committed(seq + 1).await;
        let before = wire.lock().failed.len();
        let mut data = doc! { "failCommands": ["getMore"] };
        data.extend(fault.clone());
        world.fail(1, data).await;
        wait_for(&format!("{fault} to happen"), async || wire.lock().failed.len() > before).await;
        orders.insert_one(doc! { "_id": n + 100 }).await.unwrap();
        seq += 2;
        committed(seq).await;
    }
    // The server itself ends the stream.
    world.source().drop().await.unwrap();
    orders.insert_one(doc! { "_id": "again" }).await.unwrap();
    world.caught_up().await;
    stop.drain();
    assert_eq!(engine.await.unwrap().unwrap(), EngineEnd::Drained);
    assert_eq!(world.restored().await, Vec::<String>::new());

    let wire = wire.lock();
    let stage =
        |command: &Document| command.get_array("pipeline").ok()?.first()?.as_document()?.get_document("$changeStream").ok().cloned();
    let opens: Vec<Document> = wire.sent.iter().filter_map(|(_, command)| stage(command)).collect();
    assert!(opens.len() >= 6, "the first, one after each error, one after the drop: {opens:?}");
    for open in &opens {
        assert!(open.contains_key("startAfter"), "{open}");
        assert!(!open.contains_key("resumeAfter") && !open.contains_key("startAtOperationTime"), "{open}");
    }
    let cursor_of = |command: &Document| command.get_i64("getMore").ok();
    let mut broken = 0;
    for failed in &wire.failed {
        let at = wire.sent.iter().position(|(id, _)| id == failed).unwrap();
        let Some(cursor) = cursor_of(&wire.sent[at].1) else { continue };
        broken += 1;
        assert!(wire.sent[at + 1..].iter().all(|(_, command)| cursor_of(command) != Some(cursor)), "cursor {cursor} was read again");
    }
    assert!(broken >= 4, "{broken} reads failed");
}

#[tokio::test(flavor = "multi_thread")]
async fn rules_1_and_2_what_a_real_server_refuses_is_read_with_less_and_the_branch_says_so() {
    let refusal = || doc! { "failCommands": ["aggregate"], "errorCode": 40415 };
    let world = World::new().await;
    let started = world.start().await;
    let (client, _) = followed(&world.mongod.uri()).await;
    let feed = MongoFeed::new(client.clone(), "shop");
    let orders = world.source().collection::<Document>("orders");
    orders.insert_one(doc! { "_id": 0, "n": 0 }).await.unwrap();
    for (refused, exact, hidden) in [(0, true, true), (1, true, false), (2, false, true), (3, false, false)] {
        if refused > 0 {
            world.fail(refused, refusal()).await;
        }
        let mut cursor = feed.open(None).await.unwrap();
        let coverage = cursor.coverage();
        assert_eq!((coverage.fidelity == Fidelity::Exact, coverage.uncovered.is_empty()), (exact, hidden), "{refused}: {coverage:?}");
        orders.update_one(doc! { "_id": 0 }, doc! { "$inc": { "n": 1 } }).await.unwrap();
        let update = loop {
            let reply = cursor.next().await.unwrap();
            let mut events = reply.events().unwrap().map(Result::unwrap);
            if let Some(event) = events.find(|event| event.get_str("operationType").is_ok_and(|kind| kind == "update")) {
                break event.to_owned();
            }
        };
        assert_eq!(update.get_document("rawUpdateDescription").is_ok(), exact, "{refused}: {update:?}");
    }
    world.fail(4, refusal()).await;
    let fault = feed.open(None).await.err().unwrap();
    assert!(fault.kind == Kind::Rejected && fault.what.contains("40415"), "{fault}");

    // A branch stays as inexact as its worst stretch, whatever later streams give.
    for (refused, exact) in [(1, true), (2, false), (0, false)] {
        if refused > 0 {
            world.fail(refused, refusal()).await;
        }
        let (stop, engine) = world.engine_over(Arc::new(Through(client.clone())));
        orders.update_one(doc! { "_id": 0 }, doc! { "$inc": { "n": 1 } }).await.unwrap();
        world.caught_up().await;
        stop.drain();
        assert_eq!(engine.await.unwrap().unwrap(), EngineEnd::Drained);
        let branch = world.ledger.branch(&started.branch.id).await.unwrap().unwrap();
        assert_eq!((branch.fidelity == Fidelity::Exact, branch.uncovered.len()), (exact, 1), "{refused}: {branch:?}");
    }
    assert_eq!(world.restored().await, Vec::<String>::new());
}

#[tokio::test(flavor = "multi_thread")]
async fn rule_10_the_emptiness_check_reads_on_the_primary_causally_after_the_token() {
    let world = World::new().await;
    run(&world.source(), doc! { "profile": 2 }).await;
    for n in 0..3 {
        run(&world.source(), doc! { "create": format!("empty{n}") }).await;
    }
    let (client, sent) = watched(&world.mongod.uri()).await;
    let now = client.database("admin").run_command(doc! { "hello": 1 }).await.unwrap();
    let now: argon::change::ClusterTime = now.get_timestamp("operationTime").unwrap().into();
    sent.lock().clear();
    let (catalogue, time, documents) = read_first_catalogue(&client.database("shop"), now).await.unwrap();
    assert!(!documents);
    assert_eq!(catalogue.collections.len(), 3, "what the profiler writes is the server's own: {catalogue:?}");
    assert!(time >= now && catalogue.listed_at == time);
    let commands = std::mem::take(&mut *sent.lock());
    let finds: Vec<_> = commands.iter().filter(|c| c.contains_key("find")).collect();
    assert_eq!(finds.len(), 3);
    for find in finds {
        let concern = find.get_document("readConcern").unwrap();
        assert_eq!(concern.get_str("level").unwrap(), "majority");
        assert_eq!(concern.get_timestamp("afterClusterTime").unwrap(), now.before().into());
    }
    for command in &commands {
        let preference = command.get_document("$readPreference").ok();
        assert!(preference.is_none_or(|p| p.get_str("mode").is_ok_and(|mode| mode == "primary")), "{command}");
    }
    assert!(commands.last().unwrap().contains_key("ping"), "the time of the base is that of the end, whatever was dropped on the way");

    world.source().collection("empty1").insert_one(doc! { "_id": 1 }).await.unwrap();
    let (_, _, documents) = read_first_catalogue(&client.database("shop"), now).await.unwrap();
    assert!(documents, "there is something to copy");
}

#[tokio::test(flavor = "multi_thread")]
async fn rule_19_the_bucket_says_what_the_branch_is_before_the_first_change() {
    let world = World::new().await;
    run(&world.source(), doc! { "create": "empty", "capped": true, "size": 4096 }).await;
    let started = world.start().await;
    let key = layout::branch_json("test", &started.branch.id);
    let stored = documents::read_branch(&key, &world.store.get(&key, None).await.unwrap()).unwrap();
    assert_eq!((stored.name.as_str(), stored.db.as_str()), (BRANCH, "shop"));
    assert_eq!(stored.capture.as_ref().unwrap().source.identity, started.capture.source.identity);
    let key = layout::base_manifest("test", &started.branch.id, 0, &started.base.as_ref().unwrap().id);
    let manifest = documents::BaseManifest::from_json(&key, &world.store.get(&key, None).await.unwrap()).unwrap();
    let names: Vec<_> = manifest.catalogue.collections.values().map(|c| (c.name.as_str(), c.is_capped())).collect();
    assert_eq!(names, [("empty", true)]);
    assert_eq!(manifest.token, started.capture.position.token);
    let key = layout::epoch("test", &started.branch.id, 1);
    assert_eq!(documents::read_epoch(&key, &world.store.get(&key, None).await.unwrap()).unwrap().starts_at, 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_capture_that_is_started_again_goes_on_through_the_uri_that_is_given_now() {
    let world = World::new().await;
    let first = world.start().await;
    let path = world.dir.path().join("uri");
    std::fs::write(&path, world.mongod.uri()).unwrap();
    let reference = format!("file:{}", path.display());
    world.ledger.set_capture_state(&first.capture.id, CaptureState::Stopped, None).await.unwrap();
    let again = world.start_over(Some(reference.clone())).await.unwrap();
    assert!(again.resumed && again.notes.concat().contains(&reference), "{again:?}");
    let stored = world.ledger.capture(&first.capture.id).await.unwrap().unwrap();
    assert_eq!((stored.state, stored.source.uri), (CaptureState::Running, Some(reference.clone())));
    assert_eq!((stored.source.identity, stored.position), (first.capture.source.identity, first.capture.position));
    let same = world.start_over(Some(reference)).await.unwrap();
    assert_eq!(same.notes, Vec::<String>::new(), "nothing has changed");
    world.source().collection("orders").insert_one(doc! { "_id": 1 }).await.unwrap();
    world.capture_all().await;
    assert_eq!(world.restored().await, Vec::<String>::new());
    wait_for("the bucket says it", async || {
        let key = layout::branch_json("test", &first.branch.id);
        let stored = documents::read_branch(&key, &world.store.get(&key, None).await.unwrap()).unwrap();
        stored.capture.as_ref().unwrap().source.uri.is_some() && stored.version == 2
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn rule_20_metadata_that_a_newer_epoch_has_replaced_stops_to_number() {
    let world = World::new().await;
    let started = world.start().await;
    let newer = documents::EpochDocument { format: documents::FORMAT, owner: "a rebuild elsewhere".into(), starts_at: 1, after: None };
    let body = documents::to_json(&newer).unwrap();
    let tag = PutTag { sha256: [0; 32], put_id: "test".into() };
    world.store.put_new(&layout::epoch("test", &started.branch.id, 2), body.into(), &tag).await.unwrap();
    let (stop, engine) = world.engine();
    wait_for("the capture to fail", async || {
        world.ledger.capture(&started.capture.id).await.unwrap().unwrap().state == CaptureState::Failed
    })
    .await;
    let capture = world.ledger.capture(&started.capture.id).await.unwrap().unwrap();
    assert!(capture.reason.as_ref().is_some_and(|r| r.contains("epoch 2")), "{capture:?}");
    let branch = world.ledger.branch(&started.branch.id).await.unwrap().unwrap();
    assert_ne!(branch.status, argon::ledger::BranchStatus::Active);
    stop.drain();
    engine.await.unwrap().unwrap();
}
