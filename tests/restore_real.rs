//! Restore against a real server: a history recorded by hand from its change stream, folded and written into another database of the
//! same server, and compared by dbHash, options, indexes and views.
#![allow(clippy::unwrap_used, clippy::panic, clippy::expect_used)] // helpers of tests are tests

#[path = "restore_real/recorder.rs"]
mod recorder;
#[path = "restore_real/source.rs"]
mod source;

use std::sync::Arc;
use std::time::Duration;

use argon::branch::history::Progress;
use argon::branch::point::Point;
use argon::branch::restore::{MARKER, RestoreOptions, RestoreReport, restore};
use argon::branch::verify::{AgainstOptions, DeepOptions, VerifyReport, against, structure};
use argon::change::ClusterTime;
use argon::devkit::{Mongod, MongodOptions, oracle};
use argon::fault::{Kind, Result};
use bson::{Document, doc};
use mongodb::{Client, Database};
use recorder::{BRANCH, Recorder};

fn options(at: Point) -> RestoreOptions {
    RestoreOptions {
        at,
        collections: vec![],
        drop: false,
        across_gap: false,
        no_ttl: false,
        dry_run: false,
        budget: 64 << 20,
        temp_dir: std::env::temp_dir(),
        writers: 3,
        ..RestoreOptions::new(Point::Head)
    }
}

async fn restore_to(recorder: &Recorder, target: &Database, options: RestoreOptions) -> Result<RestoreReport> {
    restore(&recorder.history().await, target, &options, Arc::new(Progress::default())).await
}

async fn assert_same(a: &Database, b: &Database, when: &str) {
    let differences = oracle::snapshot(a).await.unwrap().differences(&oracle::snapshot(b).await.unwrap());
    assert!(differences.is_empty(), "{when}:\n{}", differences.join("\n"));
}

async fn start() -> (Mongod, Client, Recorder) {
    // The TTL monitor would delete between taking two hashes.
    let params = vec![("ttlMonitorEnabled".to_owned(), "false".to_owned())];
    let mongod = Mongod::start(MongodOptions { params, ..MongodOptions::default() }).await.unwrap();
    let client = mongod.client().await.unwrap();
    let recorder = Recorder::start(&client, "source").await;
    (mongod, client, recorder)
}

#[tokio::test(flavor = "multi_thread")]
async fn every_kind_of_ddl_and_document_comes_back_at_every_stage() {
    let (_mongod, client, mut recorder) = start().await;
    let mut stages = Vec::new();
    for (i, stage) in source::STAGES.iter().enumerate() {
        source::run(&client, &recorder.db, *stage).await;
        let head = recorder.catch_up().await;
        let target = client.database(&format!("stage{i}"));
        // A budget of 30 KB spills; every second stage folds in memory.
        let budget = if i % 2 == 0 { 30_000 } else { 64 << 20 };
        let report = restore_to(&recorder, &target, RestoreOptions { budget, ..options(Point::Head) }).await.unwrap();
        assert_eq!(report.seq, head, "{report:?}");
        assert_same(&recorder.db, &target, &format!("after stage {stage:?}")).await;
        stages.push((head, target));
    }
    // Each stage again from the whole history, now as a point in the past.
    for (head, then) in &stages {
        let now = client.database(&format!("{}_later", then.name()));
        let report = restore_to(&recorder, &now, options(Point::Seq(*head))).await.unwrap();
        assert_eq!(report.seq, *head);
        assert_same(then, &now, &format!("seq:{head} restored later")).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn rule_6_points_inside_a_transaction_snap_down_and_times_cut_exactly() {
    let (_mongod, client, mut recorder) = start().await;
    let coll = recorder.db.collection::<Document>("t");
    coll.insert_one(doc! {"_id": "before"}).await.unwrap();
    let before = recorder.catch_up().await;
    let mut session = client.start_session().await.unwrap();
    session.start_transaction().await.unwrap();
    for i in 0..100 {
        coll.insert_one(doc! {"_id": i}).session(&mut session).await.unwrap();
    }
    session.commit_transaction().await.unwrap();
    recorder.catch_up().await;
    let inside = client.database("inside");
    let report = restore_to(&recorder, &inside, options(Point::Seq(before + 77))).await.unwrap();
    assert_eq!(report.seq, before);
    let whole = client.database("whole");
    let report = restore_to(&recorder, &whole, options(Point::Seq(before + 100))).await.unwrap();
    assert_eq!(report.seq, before + 100);
    assert_eq!(whole.collection::<Document>("t").count_documents(doc! {}).await.unwrap(), 101);

    let history = recorder.history().await;
    let head = history.branch.head.time;
    let too_late = restore_to(&recorder, &client.database("late"), options(Point::Time(head))).await.unwrap_err();
    assert_eq!(too_late.kind, Kind::Rejected, "changes of the head's own time may still come: {too_late}");
    let just = restore_to(&recorder, &client.database("just"), options(Point::Time(head.before()))).await.unwrap();
    assert_eq!(just.seq, history.branch.head.seq - 1);
    let early =
        restore_to(&recorder, &client.database("early"), options(Point::Time(history.line().bases()[0].base.consistent_at.before()))).await;
    assert_eq!(early.unwrap_err().kind, Kind::Rejected);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_target_with_documents_is_refused_and_a_killed_restore_starts_over() {
    let (_mongod, client, mut recorder) = start().await;
    recorder.db.collection("a").insert_many((0..50).map(|i| doc! {"_id": i})).await.unwrap();
    recorder.db.create_collection("empty").await.unwrap();
    recorder.catch_up().await;
    let target = client.database("target");
    target.collection("other").insert_one(doc! {"_id": 1}).await.unwrap();
    target.create_collection("empty").await.unwrap();
    target.collection("a").insert_one(doc! {"_id": "mine"}).await.unwrap();

    let fault = restore_to(&recorder, &target, options(Point::Head)).await.unwrap_err();
    assert!(fault.what.contains('a') && fault.what.contains("--drop"), "{fault}");
    assert_eq!(target.collection::<Document>("a").count_documents(doc! {}).await.unwrap(), 1, "nothing was touched");
    let dry = restore_to(&recorder, &target, RestoreOptions { drop: true, dry_run: true, ..options(Point::Head) }).await.unwrap();
    assert_eq!(dry.documents, 51);
    assert_eq!(target.collection::<Document>("a").count_documents(doc! {}).await.unwrap(), 1, "nothing was touched");

    // As a restore killed while it wrote leaves it.
    target.collection::<Document>("a").drop().await.unwrap();
    target.collection("a").insert_one(doc! {"_id": 0}).await.unwrap();
    target.collection(MARKER).insert_one(doc! {"_id": "restore", "names": ["a", "empty", "fence"]}).await.unwrap();
    restore_to(&recorder, &target, options(Point::Head)).await.unwrap();
    assert_eq!(target.collection::<Document>("a").count_documents(doc! {}).await.unwrap(), 50);
    assert_eq!(target.collection::<Document>("other").count_documents(doc! {}).await.unwrap(), 1, "others are left alone");
    assert!(!target.list_collection_names().await.unwrap().contains(&MARKER.to_owned()));

    restore_to(&recorder, &target, RestoreOptions { drop: true, collections: vec!["a".into()], ..options(Point::Seq(2)) }).await.unwrap();
    assert_eq!(target.collection::<Document>("a").count_documents(doc! {}).await.unwrap(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn damaged_and_missing_objects_stop_the_restore_before_the_first_write() {
    let (_mongod, client, mut recorder) = start().await;
    recorder.db.collection("a").insert_many((0..200).map(|i| doc! {"_id": i})).await.unwrap();
    recorder.catch_up().await;
    let keys: Vec<String> =
        recorder.store.list("projects/", None, 100).await.unwrap().into_iter().map(|o| o.key).filter(|k| k.ends_with(".seg")).collect();
    let key = &keys[keys.len() / 2];
    let body = recorder.store.get(key, None).await.unwrap();
    let target = client.database("target");
    let mut flipped = body.to_vec();
    flipped[body.len() / 2] ^= 1;
    for damage in [None, Some(flipped), Some(body[..body.len() - 1].to_vec())] {
        recorder.store.delete(key).await.unwrap();
        if let Some(damage) = damage {
            recorder::put(&recorder.store, key, damage.into()).await;
        }
        let fault = restore_to(&recorder, &target, options(Point::Head)).await.unwrap_err();
        assert_eq!(fault.kind, Kind::Corrupt, "{fault}");
        assert!(fault.what.contains(key), "{fault}");
        assert!(target.list_collection_names().await.unwrap().is_empty(), "the target is untouched");
    }
    recorder.store.delete(key).await.unwrap();
    recorder::put(&recorder.store, key, body).await;
    restore_to(&recorder, &target, options(Point::Head)).await.unwrap();
    assert_same(&recorder.db, &target, "after the object came back").await;
}

async fn verify_live(recorder: &Recorder) -> Result<VerifyReport> {
    let options =
        AgainstOptions { db: recorder.db.clone(), patience: Duration::from_secs(1), budget: 1 << 20, temp_dir: std::env::temp_dir() };
    against(recorder.ledger.clone(), recorder.store.clone(), BRANCH, &options, Arc::new(Progress::default())).await
}

async fn verify_structure(recorder: &Recorder, deep: bool) -> VerifyReport {
    let deep = deep.then(|| DeepOptions { budget: 1 << 20, temp_dir: std::env::temp_dir() });
    structure(&recorder.history().await, recorder.ledger.as_ref(), deep.as_ref(), Arc::new(Progress::default())).await.unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn verification_agrees_with_the_source_and_names_what_does_not() {
    let (_mongod, client, mut recorder) = start().await;
    for stage in &source::STAGES[..9] {
        source::run(&client, &recorder.db, *stage).await;
    }
    recorder.catch_up().await;
    for deep in [false, true] {
        let report = verify_structure(&recorder, deep).await;
        assert!(report.identical && report.segments > 5, "{report:?}");
    }
    let waiting = verify_live(&recorder).await.unwrap_err();
    assert!(waiting.what.contains("is captured up to"), "{waiting}");
    let far = ClusterTime { t: u32::MAX, i: 1 };
    recorder.idle_until(far).await;
    let report = verify_live(&recorder).await.unwrap();
    assert!(report.identical && report.documents > 300, "{report:#?}");

    // The capture claims to know everything, but these changes are not in it.
    let updated = recorder.db.collection::<Document>("updated");
    updated.delete_one(doc! {"_id": 2}).await.unwrap();
    updated.update_one(doc! {"_id": 4}, doc! {"$set": {"sneaky": 1}}).await.unwrap();
    recorder.db.run_command(doc! {"collMod": "empty", "validationLevel": "off"}).await.unwrap();
    recorder.db.run_command(doc! {"createIndexes": "empty", "indexes": [{"key": {"n": 1}, "name": "n"}]}).await.unwrap();
    recorder.db.run_command(doc! {"create": "more"}).await.unwrap();
    let report = verify_live(&recorder).await.unwrap();
    assert!(!report.identical);
    let all: Vec<String> = report.differences.iter().map(|d| format!("{}: {}", d.place, d.what)).collect();
    for expected in ["updated: documents differ", "updated: _id ", "empty: options", "empty: indexes", "more: is in the database"] {
        assert!(all.iter().any(|line| line.starts_with(expected)), "{expected} not in {all:#?}");
    }

    // A history that contradicts itself is a difference too, not an error.
    recorder.forge_delete("updated").await;
    recorder.idle_until(far).await;
    assert!(verify_structure(&recorder, false).await.identical);
    let inconsistent = |report: VerifyReport| report.differences.iter().any(|d| d.what.contains("deletes a document that does not exist"));
    assert!(inconsistent(verify_live(&recorder).await.unwrap()));
    assert!(inconsistent(verify_structure(&recorder, true).await));

    // Damage in the bucket is found by the deep check, a missing object by the plain one.
    let keys: Vec<String> =
        recorder.store.list("projects/", None, 1_000).await.unwrap().into_iter().map(|o| o.key).filter(|k| k.ends_with(".seg")).collect();
    let body = recorder.store.get(&keys[1], None).await.unwrap();
    let mut flipped = body.to_vec();
    flipped[body.len() / 2] ^= 4;
    recorder.store.delete(&keys[1]).await.unwrap();
    let report = verify_structure(&recorder, false).await;
    assert!(report.differences.iter().any(|d| d.place == keys[1]), "{report:?}");
    recorder::put(&recorder.store, &keys[1], flipped.into()).await;
    let report = verify_structure(&recorder, true).await;
    assert!(!report.identical && report.differences.iter().any(|d| d.place == keys[1] || d.what.contains(&keys[1])), "{report:?}");
}
