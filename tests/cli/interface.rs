//! Every command with `--json`: one object of the agreed fields; `verify --against-db` under load and against another database.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use argon::devkit::workload::{self, Profile, Workload};
use argon::runtime::clock;
use bson::{Document, doc};
use serde_json::{Value, json};

use crate::place::{BRANCH, Place, assert_refused};

/// Every field is there, and of a type that a program may rely on (`?` may be null).
fn assert_fields(value: &Value, fields: &[(&str, &str)]) {
    for (path, kind) in fields {
        let found = path.split('.').try_fold(value, |at, part| at.get(part)).unwrap_or_else(|| panic!("no {path} in {value}"));
        let (nullable, kind) = kind.strip_prefix('?').map_or((false, *kind), |kind| (true, kind));
        let is = match kind {
            "string" => found.is_string(),
            "count" => found.is_u64(),
            "list" => found.is_array(),
            "bool" => found.is_boolean(),
            "object" => found.is_object(),
            other => panic!("{other}"),
        };
        assert!(is || nullable && found.is_null(), "{path} is no {kind}: {value}");
    }
}

const BRANCH_FIELDS: [(&str, &str); 18] = [
    ("id", "string"),
    ("name", "string"),
    ("status", "string"),
    ("parent", "?string"),
    ("head", "object"),
    ("head.seq", "count"),
    ("head.cluster_time", "object"),
    ("head.cluster_time.t", "count"),
    ("head.cluster_time.i", "count"),
    ("head.time", "?string"),
    ("captured_until.t", "count"),
    ("captured_until.i", "count"),
    ("restorable.from", "string"),
    ("restorable.to", "string"),
    ("totals.changes", "count"),
    ("totals.raw_bytes", "count"),
    ("totals.stored_bytes", "count"),
    ("totals.segments", "count"),
];

#[tokio::test]
async fn every_command_prints_one_object_with_json() {
    let place = Place::new("json").await;
    let source = place.source.name();
    let doctor = place.json(&["doctor", "--source-db", source]).await;
    assert_fields(&doctor, &[("ok", "bool"), ("checks", "list")]);
    assert!(doctor["checks"].as_array().unwrap().len() >= 8, "{doctor}");
    assert_fields(&doctor["checks"][0], &[("name", "string"), ("verdict", "string"), ("detail", "string")]);

    let started = place.json(&["capture", "start", BRANCH, "--source-db", source]).await;
    let capture = [
        ("id", "string"),
        ("branch", "string"),
        ("branch_id", "string"),
        ("source.db", "string"),
        ("source.identity", "string"),
        ("state", "string"),
        ("queued_seq", "count"),
        ("engine", "?string"),
        ("reason", "?string"),
    ];
    assert_fields(&started, &[("capture", "object"), ("resumed", "bool"), ("uncovered", "list"), ("engines", "count")]);
    assert_fields(&started["capture"], &capture);
    assert_eq!(place.json(&["jobs", "list"]).await, json!({"jobs": [], "next": null}));
    // Before the first change: nothing to restore but the first catalogue.
    let fresh = place.json(&["branch", "show", BRANCH]).await;
    assert_fields(&fresh, &BRANCH_FIELDS);
    assert_eq!((&fresh["head"]["seq"], &fresh["restorable"]), (&json!(0), &json!({"from": "seq:0", "to": "seq:0"})), "{fresh}");

    let engine = place.engine().await;
    place.source.collection("a").insert_many((0..50).map(|i| doc! {"_id": i})).await.unwrap();
    let head = place.catch_up().await;
    let shown = place.json(&["branch", "show", BRANCH]).await;
    assert_fields(&shown, &BRANCH_FIELDS);
    assert_eq!((shown["name"].as_str(), shown["status"].as_str()), (Some(BRANCH), Some("active")), "{shown}");
    assert_eq!((&shown["head"]["seq"], &shown["totals"]["changes"]), (&json!(head), &json!(head)), "{shown}");
    assert_eq!(shown["restorable"], json!({"from": "seq:1", "to": format!("seq:{head}")}), "{shown}");
    let time = shown["head"]["time"].as_str().unwrap();
    assert!(time.len() == 20 && time.ends_with('Z'), "{shown}");
    let listed = place.json(&["branch", "list"]).await;
    assert_eq!(listed["branches"].as_array().unwrap().len(), 1);
    assert_eq!(listed["branches"][0]["id"], shown["id"]);
    let captures = place.json(&["capture", "list"]).await;
    assert_fields(&captures["captures"][0], &capture);
    assert!(captures["captures"][0]["engine"].is_string() && captures["captures"][0]["state"] == "running", "{captures}");

    let jobs = place.json(&["jobs", "list", "--branch", BRANCH, "--state", "done", "--limit", "1"]).await;
    assert_eq!(jobs["jobs"].as_array().unwrap().len(), 1);
    let job = &jobs["jobs"][0];
    assert_fields(
        job,
        &[
            ("id", "string"),
            ("kind", "string"),
            ("state", "string"),
            ("branch", "string"),
            ("attempt", "count"),
            ("errors", "list"),
            ("sync.first_seq", "count"),
            ("sync.last_seq", "count"),
        ],
    );
    let id = job["id"].as_str().unwrap();
    assert_eq!(place.json(&["jobs", "show", id]).await["id"], job["id"]);
    assert_eq!(place.json(&["jobs", "retry", "--all-dead"]).await["changed"], json!(0));
    assert_refused(&place.argon(&["jobs", "retry", id]).await, 1, &[id, "done"]);
    assert_refused(&place.argon(&["jobs", "discard", id]).await, 2, &[id, "--yes"]);
    assert_refused(&place.argon(&["jobs", "discard", id, "--yes"]).await, 1, &[id, "done"]);

    let bulk = [
        ("dry_run", "bool"),
        ("matched", "count"),
        ("changed", "count"),
        ("requested", "count"),
        ("hindered", "count"),
        ("sample", "list"),
        ("discard", "list"),
        ("more", "bool"),
    ];
    for args in [&["jobs", "retry", "--all-dead"][..], &["jobs", "cancel", "--kind", "noop", "--dry-run"]] {
        assert_fields(&place.json(args).await, &bulk);
    }
    let submitted = place.json(&["jobs", "submit", "--delay", "1h"]).await;
    assert_fields(&submitted, &[("ids", "list"), ("created", "count")]);
    let cancelled = place.json(&["jobs", "cancel", submitted["ids"][0].as_str().unwrap()]).await;
    assert_fields(&cancelled, &[("outcome", "string"), ("job.id", "string"), ("job.state", "string"), ("job.params", "object")]);
    assert_eq!(place.json(&["queue", "show"]).await, json!({"pauses": []}));
    let status = place.json(&["status"]).await;
    let fields = [
        ("captures", "list"),
        ("branches", "list"),
        ("queue.pending_jobs", "count"),
        ("queue.running_jobs", "count"),
        ("queue.failed_jobs", "count"),
        ("queue.completed_jobs", "count"),
        ("queue.jobs_by_type.sync", "count"),
        ("pauses.pauses", "list"),
        ("engines", "list"),
        ("scaler", "?object"),
        ("health", "?object"),
        ("problems", "list"),
    ];
    assert_fields(&status, &fields);
    assert_eq!((&status["branches"][0]["id"], &status["captures"][0]["id"]), (&shown["id"], &captures["captures"][0]["id"]), "{status}");

    let report = [
        ("branch", "string"),
        ("identical", "bool"),
        ("differences", "list"),
        ("difference_count", "count"),
        ("segments", "count"),
        ("changes", "count"),
        ("notes", "list"),
        ("at", "?string"),
    ];
    for args in [&["verify", BRANCH][..], &["verify", BRANCH, "--deep"], &["verify", BRANCH, "--against-db", source]] {
        let verified = place.json(args).await;
        assert_fields(&verified, &report);
        assert!(verified["identical"] == true && verified["changes"].as_u64() >= Some(head), "{verified}");
    }
    let restored = place.json(&["restore", BRANCH, "--to-db", place.database("copy").name()]).await;
    assert_fields(
        &restored,
        &[
            ("branch", "string"),
            ("at", "string"),
            ("seq", "count"),
            ("db", "string"),
            ("dry_run", "bool"),
            ("collections", "list"),
            ("views", "list"),
            ("documents", "count"),
            ("bytes", "count"),
            ("notes", "list"),
        ],
    );
    assert_fields(&restored["collections"][0], &[("name", "string"), ("documents", "count"), ("bytes", "count"), ("indexes", "count")]);

    let stopped = place.json(&["capture", "stop", BRANCH]).await;
    assert_fields(&stopped, &capture);
    assert_eq!(stopped["state"], "stopped");
    let missing = place.argon(&["branch", "show", "shop/typo", "--json"]).await;
    assert_eq!((missing.code, missing.stdout.as_str()), (1, ""));
    let error: Value = serde_json::from_str(&missing.stderr).unwrap();
    assert_fields(&error, &[("error.code", "string"), ("error.message", "string")]);
    // People get the same without a brace.
    for args in [
        &["branch", "list"][..],
        &["branch", "show", BRANCH],
        &["capture", "list"],
        &["jobs", "list"],
        &["jobs", "show", id],
        &["jobs", "cancel", "--kind", "noop", "--dry-run"],
        &["queue", "show"],
        &["status"],
        &["doctor"],
        &["verify", BRANCH],
    ] {
        let text = place.ok(args).await;
        assert!(!text.contains('{') && !text.trim().is_empty() && !text.contains('\u{1b}'), "{args:?}: {text}");
    }
    place.stop(engine).await;
}

/// A mistyped name must not become a database, and who may only read can read.
#[tokio::test]
async fn commands_that_read_write_nothing() {
    let place = Place::new("reads").await;
    place.start_capture().await;
    let typo = format!("{}_typo", place.metadata);
    for args in [
        &["branch", "list"][..],
        &["branch", "show", BRANCH],
        &["capture", "list"],
        &["capture", "stop", BRANCH],
        &["jobs", "list"],
        &["jobs", "retry", "--all-dead"],
        &["jobs", "cancel", "--kind", "noop"],
        &["jobs", "submit"],
        &["queue", "show"],
        &["queue", "pause", "--all"],
        &["capture", "pause", BRANCH],
        &["status"],
        &["verify", BRANCH],
        &["restore", BRANCH, "--to-db", "x"],
    ] {
        let output = place.argon_with(args, &[("ARGON_METADATA_DB", &typo)]).await;
        assert_refused(&output, 1, &["no Argon metadata in database", &typo, "argon capture start"]);
    }
    assert!(!place.client.list_database_names().await.unwrap().contains(&typo));
    // The server of these tests asks for no login, so the proof that nothing is written is that nothing of the database changes.
    let metadata = place.client.database(&place.metadata);
    let before = metadata.run_command(doc! {"dbHash": 1}).await.unwrap();
    metadata.collection::<Document>("segments").drop_index("losses").await.unwrap();
    for args in [
        &["branch", "list"][..],
        &["branch", "show", BRANCH],
        &["capture", "list"],
        &["jobs", "list"],
        &["jobs", "retry", "--all-dead", "--dry-run"],
        &["queue", "show"],
        &["status"],
        &["verify", BRANCH],
    ] {
        place.ok(args).await;
    }
    let after = metadata.run_command(doc! {"dbHash": 1}).await.unwrap();
    assert_eq!(before.get("md5"), after.get("md5"));
    let indexes = metadata.collection::<Document>("segments").list_index_names().await.unwrap();
    assert!(!indexes.contains(&"losses".to_owned()), "an index was made: {indexes:?}");
}

#[tokio::test]
async fn a_stopped_capture_goes_on_where_it_stopped() {
    let place = Place::new("stop").await;
    let engine = place.begin().await;
    let coll = place.source.collection::<Document>("a");
    coll.insert_one(doc! {"_id": 1}).await.unwrap();
    let before = place.catch_up().await;
    place.ok(&["capture", "stop", BRANCH]).await;
    coll.insert_one(doc! {"_id": 2}).await.unwrap();
    let resumed = place.json(&["capture", "start", BRANCH, "--source-db", place.source.name()]).await;
    assert_eq!(resumed["resumed"], true, "{resumed}");
    let after = place.catch_up().await;
    assert_eq!(after, before + 2, "the insert and the marker");
    place.stop(engine).await;
    place.assert_audit_is_clean().await;
}

#[tokio::test]
async fn a_live_database_equals_its_history_under_load_and_another_does_not() {
    let place = Place::new("live").await;
    let engine = place.begin().await;
    let profile = Profile { keys: 100, doc_bytes: 300, ..Profile::everything() };
    workload::prepare(&place.source, &profile).await.unwrap();
    let mut load = Workload::new(11, 0, profile).unwrap();
    let source = place.source.clone();
    let (stop, mut stopped) = tokio::sync::oneshot::channel::<()>();
    let written = Arc::new(AtomicU64::new(0));
    let counted = written.clone();
    let writer = tokio::spawn(async move {
        while matches!(stopped.try_recv(), Err(tokio::sync::oneshot::error::TryRecvError::Empty)) {
            let operations: Vec<_> = (0..10).map(|_| load.next_operation()).collect();
            counted.fetch_add(workload::apply(&source, &operations).await.unwrap().changes, Ordering::Relaxed);
            tokio::time::sleep(Duration::from_millis(50)).await; // light: about 200 writes a second
        }
    });
    for round in 0.. {
        if round >= 2 && written.load(Ordering::Relaxed) > 100 {
            break;
        }
        let begun = clock::now();
        let report = place.json(&["verify", BRANCH, "--deep", "--against-db", place.source.name(), "--wait", "60s"]).await;
        assert!(report["identical"] == true && report["at"].is_string(), "{report}");
        println!("verified {} documents under load in {:?}", report["documents"], begun.elapsed());
    }
    stop.send(()).unwrap();
    writer.await.unwrap();

    place.source.collection("exact").insert_many((0..200).map(|i| doc! {"_id": i, "n": i})).await.unwrap();
    place.source.run_command(doc! {"createIndexes": "exact", "indexes": [{"key": {"n": 1}, "name": "n"}]}).await.unwrap();
    place.catch_up().await;
    let other = place.database("other");
    place.ok(&["restore", BRANCH, "--to-db", other.name()]).await;
    let same = place.json(&["verify", BRANCH, "--against-db", other.name()]).await;
    assert!(same["identical"] == true && same["documents"].as_u64() > Some(200), "a restored copy is the branch's head: {same}");
    let exact = other.collection::<Document>("exact");
    exact.update_one(doc! {"_id": 17}, doc! {"$set": {"n": 17_i64}}).await.unwrap(); // another type only
    exact.delete_one(doc! {"_id": 23}).await.unwrap();
    exact.insert_one(doc! {"_id": "extra"}).await.unwrap();
    exact.drop_index("n").await.unwrap();
    other.create_collection("surplus").await.unwrap();
    let output = place.argon(&["verify", BRANCH, "--against-db", other.name()]).await;
    assert_eq!((output.code, output.stderr.as_str()), (4, ""), "{output:?}");
    for named in [
        "exact: indexes",
        "_id 17 differs",
        "_id 23 is only in history",
        "_id \"extra\" is only in the database",
        "surplus: is in the database",
        "verified: DIFFERENT",
    ] {
        assert!(output.stdout.contains(named), "{named}: {output:?}");
    }
    place.stop(engine).await;
}
