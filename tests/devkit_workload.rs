//! The workload against a real server: what it says of itself is what the change stream reports.
#![allow(clippy::unwrap_used)] // helpers of tests are tests

use std::collections::BTreeMap;

use argon::devkit::workload::{self, Profile, Stats, Workload};
use argon::devkit::{Mongod, MongodOptions};
use mongodb::Database;
use mongodb::bson::{Document, doc};
use mongodb::change_stream::event::{ChangeStreamEvent, OperationType};

/// Applies `count` operations and returns what was counted and how many events of which type the stream had.
async fn applied(db: &Database, seed: u64, profile: Profile, count: usize) -> (Stats, BTreeMap<String, u64>) {
    workload::prepare(db, &profile).await.unwrap();
    let mut stream = db.watch().await.unwrap();
    let operations: Vec<_> = Workload::new(seed, 0, profile).unwrap().take(count).collect();
    let mut stats = Stats::default();
    for chunk in operations.chunks(700) {
        stats += workload::apply(db, chunk).await.unwrap();
    }
    db.collection::<Document>("end").insert_one(doc! {}).await.unwrap();
    let mut seen = BTreeMap::new();
    loop {
        let Some(event) = stream.next_if_any().await.unwrap() else { continue };
        let event: ChangeStreamEvent<Document> = event;
        if event.ns.as_ref().and_then(|ns| ns.coll.as_deref()) == Some("end") {
            return (stats, seen);
        }
        let kind = match event.operation_type {
            OperationType::Insert => "insert",
            OperationType::Update | OperationType::Replace => "modify",
            OperationType::Delete => "delete",
            _ => "unexpected",
        };
        *seen.entry(kind.to_owned()).or_default() += 1;
    }
}

#[tokio::test]
async fn the_changes_counted_are_those_that_the_stream_reports() {
    let mongod = Mongod::start(MongodOptions::default()).await.unwrap();
    let client = mongod.client().await.unwrap();
    let corpus = vec![doc! { "title": "x", "lines": 5, "place": "y", "count": "many" }, doc! { "a": 1 }];
    let profiles = [
        ("default", 3000, Profile::default()),
        ("everything", 3000, Profile::everything()),
        ("repeated", 3000, Profile { transaction: 1, keys: 100, ..Profile::repeated() }),
        ("corpus", 3000, Profile { corpus: Some(corpus), keys: 30, ..Profile::everything() }),
        ("transactions", 300, Profile { transaction: 500, keys: 50, ..Profile::everything() }),
    ];
    for (name, operations, profile) in profiles {
        let (stats, seen) = applied(&client.database(name), 11, profile, operations).await;
        let of = |kind: &str| seen.get(kind).copied().unwrap_or(0);
        let counted = (stats.inserted, stats.modified, stats.deleted);
        assert_eq!(counted, (of("insert"), of("modify"), of("delete")), "{name}: {stats:?}");
        assert_eq!(of("unexpected"), 0, "{name}: {seen:?}");
        assert_eq!((stats.operations, stats.changes), (operations as u64, of("insert") + of("modify") + of("delete")), "{name}");
        assert!(stats.changes * 3 > stats.operations * 2, "{name}: too little happens: {stats:?}");
    }
}

#[tokio::test]
async fn in_the_repeated_profile_every_operation_is_one_change() {
    let mongod = Mongod::start(MongodOptions::default()).await.unwrap();
    let db = mongod.client().await.unwrap().database("repeated");
    let profile = Profile::repeated();
    workload::prepare(&db, &profile).await.unwrap();
    let operations: Vec<_> = Workload::new(1, 0, profile).unwrap().take(20_000).collect();
    let stats = workload::apply(&db, &operations).await.unwrap();
    assert_eq!((stats.changes, stats.inserted, stats.modified), (20_000, 300, 19_700));
}

#[tokio::test]
async fn two_lanes_at_once_do_not_disturb_each_other() {
    let mongod = Mongod::start(MongodOptions::default()).await.unwrap();
    let db = mongod.client().await.unwrap().database("lanes");
    workload::prepare(&db, &Profile::everything()).await.unwrap();
    workload::prepare(&db, &Profile::everything()).await.unwrap();
    let lane = |lane| {
        let db = db.clone();
        tokio::spawn(async move {
            let operations: Vec<_> = Workload::new(1, lane, Profile::everything()).unwrap().take(2000).collect();
            workload::apply(&db, &operations).await.unwrap()
        })
    };
    let (first, second) = tokio::join!(lane(0), lane(1));
    let (first, second) = (first.unwrap(), second.unwrap());
    let mut documents = 0;
    for i in 0..3 {
        documents += db.collection::<Document>(&Profile::collection(i)).count_documents(doc! {}).await.unwrap();
    }
    assert_eq!(documents, first.inserted + second.inserted - first.deleted - second.deleted);
}
