//! Restore: targets and points that are refused, and points in the past against what the server itself remembers of them.

use argon::branch::point::rfc3339;
use argon::devkit::workload::{self, Profile, Workload};
use bson::{Document, Timestamp, doc};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

use crate::place::{BRANCH, Place, assert_refused};

#[tokio::test]
async fn a_restore_that_may_not_be_is_refused_before_the_first_write() {
    let place = Place::new("refuse").await;
    let engine = place.begin().await;
    place.source.collection("orders").insert_many((0..10).map(|i| doc! {"_id": i})).await.unwrap();
    let head = place.catch_up().await;
    place.stop(engine).await;

    let target = place.database("full");
    target.collection("orders").insert_one(doc! {"_id": "mine"}).await.unwrap();
    let to_db = target.name();
    assert_refused(&place.argon(&["restore", BRANCH, "--to-db", to_db]).await, 1, &[to_db, "orders", "--drop"]);
    assert_refused(&place.argon(&["restore", BRANCH, "--to-db", to_db, "--drop"]).await, 2, &[to_db, "--yes"]);
    assert_refused(&place.argon(&["restore", BRANCH, "--to-db", &place.metadata]).await, 2, &[&place.metadata, "metadata", "--to-db"]);
    let alias = place.uri.replace("127.0.0.1", "localhost");
    let output = place.argon_with(&["restore", BRANCH, "--to-db", &place.metadata, "--to-uri", "env:ALIAS"], &[("ALIAS", &alias)]).await;
    assert_refused(&output, 2, &[&place.metadata, "metadata", "--to-db"]);
    let fresh = place.database("fresh");
    for (point, code, says) in [
        (&*format!("seq:{}", head + 1), 1, &["not committed yet", "head"][..]),
        ("ts:1.1", 1, &["before the base"]),
        ("1999-12-31T23:59:59Z", 1, &["1999-12-31T23:59:59Z", "before the base"]),
        ("2105-01-01T00:00:00Z", 1, &["not been captured yet"]),
        ("ts:4294967295.1", 1, &["not been captured yet"]),
        ("seq:-1", 2, &["seq:N"]),
        ("2026-11-23", 2, &["2026-11-23T21:02:52Z"]),
        ("", 2, &["seq:N"]),
    ] {
        assert_refused(&place.argon(&["restore", BRANCH, "--to-db", fresh.name(), "--at", point]).await, code, says);
    }
    let kept = target.collection::<Document>("orders").find_one(doc! {}).await.unwrap().unwrap();
    assert_eq!(kept, doc! {"_id": "mine"}, "what was there is there");
    assert_eq!(target.list_collection_names().await.unwrap(), ["orders"]);
    assert!(fresh.list_collection_names().await.unwrap().is_empty());

    let dry = place.json(&["restore", BRANCH, "--to-db", to_db, "--drop", "--dry-run"]).await;
    assert_eq!((&dry["dry_run"], &dry["documents"]), (&true.into(), &11.into()), "{dry}");
    assert_eq!(target.list_collection_names().await.unwrap(), ["orders"]);
    let done = place.json(&["restore", BRANCH, "--to-db", to_db, "--drop", "--yes"]).await;
    assert_eq!(done["seq"], head, "{done}");
    assert_eq!(target.collection::<Document>("orders").count_documents(doc! {}).await.unwrap(), 10);
}

#[tokio::test]
async fn single_collections_and_views_are_restored_by_name() {
    let place = Place::new("some").await;
    let engine = place.begin().await;
    for name in ["orders", "customers", "logs"] {
        place.source.collection(name).insert_many((0..10).map(|i| doc! {"_id": i})).await.unwrap();
    }
    place.source.run_command(doc! {"create": "recent", "viewOn": "orders", "pipeline": []}).await.unwrap();
    place.catch_up().await;
    place.stop(engine).await;

    let target = place.database("some");
    let restore = ["restore", BRANCH, "--to-db", target.name(), "--collection", "orders"];
    let unknown = place.argon(&[&restore[..], &["--collection", "oders"]].concat()).await;
    assert_refused(&unknown, 1, &["oders", "no collection or view"]);
    assert!(target.list_collection_names().await.unwrap().is_empty(), "refused before the first write");
    // What is not named may be in the way as it likes.
    target.collection("logs").insert_one(doc! {"_id": "mine"}).await.unwrap();
    let done = place.json(&[&restore[..], &["--collection", "recent"]].concat()).await;
    assert_eq!((&done["documents"], &done["views"]), (&10.into(), &serde_json::json!(["recent"])), "{done}");
    let mut names = target.list_collection_names().await.unwrap();
    names.retain(|name| !name.starts_with("system."));
    names.sort();
    assert_eq!(names, ["logs", "orders", "recent"]);
    assert_eq!(target.collection::<Document>("logs").count_documents(doc! {}).await.unwrap(), 1);
}

/// Hash of each collection now, or as it was at a time.
async fn hashes(db: &mongodb::Database, at: Option<Timestamp>) -> Document {
    let mut command = doc! {"dbHash": 1};
    if let Some(at) = at {
        command.insert("$_internalReadAtClusterTime", at);
    }
    db.run_command(command).await.unwrap().get_document("collections").unwrap().clone()
}

#[tokio::test]
async fn ten_random_points_are_what_the_server_remembers_of_them() {
    const SEED: u64 = 7;
    let place = Place::new("points").await;
    let engine = place.begin().await;
    // All collections exist before the first point: the server cannot look back past DDL (correctness.md 30).
    let profile = Profile { keys: 100, doc_bytes: 300, ..Profile::everything() };
    let mut load = Workload::new(SEED, 0, profile.clone()).unwrap();
    workload::prepare(&place.source, &profile).await.unwrap();
    place.mark().await;
    for _ in 0..20 {
        let operations: Vec<_> = (0..100).map(|_| load.next_operation()).collect();
        workload::apply(&place.source, &operations).await.unwrap();
    }
    let head = place.catch_up().await;
    // What changed when, from the server's own log: a transaction is one entry.
    let oplog = place.client.database("local").collection::<Document>("oplog.rs");
    let ns =
        mongodb::bson::Regex { pattern: format!("^{}\\.load", place.source.name()).try_into().unwrap(), options: "".try_into().unwrap() };
    let all = oplog.find(doc! {"$or": [{"ns": &ns}, {"o.applyOps.ns": &ns}], "op": {"$ne": "n"}}).projection(doc! {"ts": 1, "op": 1}).await;
    let entries: Vec<Document> = futures_util::TryStreamExt::try_collect(all.unwrap()).await.unwrap();
    let times: Vec<Timestamp> = entries.iter().map(|entry| entry.get_timestamp("ts").unwrap()).collect();
    assert!(times.len() > 1_000, "{}", times.len());

    let mut random = StdRng::seed_from_u64(SEED);
    for n in 0..10 {
        let at = times[random.random_range(0..times.len())];
        let point = format!("ts:{}.{}", at.time, at.increment);
        let target = place.database(&format!("p{n}"));
        // Both ways to say it.
        let (branch, rest) = if n % 2 == 0 { (format!("{BRANCH}@{point}"), vec![]) } else { (BRANCH.to_owned(), vec!["--at", &point]) };
        let report = place.json(&[&["restore", &branch, "--to-db", target.name()], &rest[..]].concat()).await;
        assert_eq!(hashes(&target, None).await, hashes(&place.source, Some(at)).await, "seed {SEED}, {point}");
        // The same point by its number.
        let seq = report["seq"].as_u64().unwrap();
        assert!(seq > 0 && seq <= head, "{report}");
        let by_seq = place.database(&format!("s{n}"));
        let again = place.json(&["restore", &format!("{BRANCH}@seq:{seq}"), "--to-db", by_seq.name()]).await;
        assert_eq!(again["seq"], seq, "{point} is a boundary");
        assert_eq!(hashes(&by_seq, None).await, hashes(&target, None).await, "seed {SEED}, {point} as seq:{seq}");
    }
    place.stop(engine).await;
}

#[tokio::test]
async fn a_second_by_the_clock_is_the_whole_second() {
    let place = Place::new("second").await;
    let engine = place.begin().await;
    let a = place.source.collection("a");
    a.insert_many((0..10).map(|i| doc! {"_id": i})).await.unwrap();
    let second = place.mark().await.time;
    // The next second has begun when a write is of it.
    while place.mark().await.time == second {}
    a.insert_one(doc! {"_id": "later"}).await.unwrap();
    let head = place.catch_up().await;
    place.stop(engine).await;
    let (target, at) = (place.database("then"), rfc3339(i64::from(second) * 1_000));
    let report = place.json(&["restore", BRANCH, "--to-db", target.name(), "--at", &at]).await;
    assert!(report["at"] == at.as_str() && report["seq"].as_u64().unwrap() < head, "{report}");
    assert_eq!(target.collection::<Document>("a").count_documents(doc! {}).await.unwrap(), 10, "{report}");
}

#[tokio::test]
async fn options_of_restore_and_verify_do_what_they_say() {
    let place = Place::new("options").await;
    let engine = place.begin().await;
    let ttl = doc! {"createIndexes": "a", "indexes": [{"key": {"at": 1}, "name": "gone", "expireAfterSeconds": 3_600}]};
    place.source.run_command(ttl).await.unwrap();
    // More than the smallest budget, so that the fold needs its directory.
    for id in 0..5 {
        place.source.collection("a").insert_many((0..8).map(|i| doc! {"_id": id * 8 + i, "x": "y".repeat(1_000_000)})).await.unwrap();
    }
    place.catch_up().await;
    let expires = async |suffix: &str, more: &[&str]| {
        let target = place.database(suffix);
        let report = place.json(&[&["restore", BRANCH, "--to-db", target.name()], more].concat()).await;
        assert_eq!(report["ttl"], serde_json::json!(["a.gone"]), "{report}");
        let listed = target.run_command(doc! {"listIndexes": "a"}).await.unwrap();
        let indexes = listed.get_document("cursor").unwrap().get_array("firstBatch").unwrap().clone();
        assert_eq!(indexes.len(), 2, "{indexes:?}");
        indexes.iter().any(|index| index.as_document().unwrap().contains_key("expireAfterSeconds"))
    };
    assert!(expires("with", &[]).await);
    let (spill, nowhere) = (place.dir.path().to_str().unwrap(), "/nonexistent/spill");
    assert!(!expires("without", &["--no-ttl", "--memory-budget", "32MiB", "--temp-dir", spill]).await);
    let never = place.database("never");
    let lost = ["restore", BRANCH, "--to-db", never.name(), "--memory-budget", "32MiB", "--temp-dir", nowhere];
    assert_refused(&place.argon(&lost).await, 1, &[nowhere]);

    let there = place.database("with");
    let against = ["verify", BRANCH, "--against-db", there.name(), "--against-uri", "env:THERE"];
    assert_refused(&place.argon(&against).await, 2, &["THERE"]);
    let nowhere = "mongodb://127.0.0.1:1/?serverSelectionTimeoutMS=300";
    assert_refused(&place.argon_with(&against, &[("THERE", nowhere)]).await, 1, &["--against-db", "not reachable"]);
    let output = place.argon_with(&against, &[("THERE", &place.uri)]).await;
    assert!(output.code == 0 && output.stdout.contains("verified: identical"), "{output:?}");
    place.stop(engine).await;
}
