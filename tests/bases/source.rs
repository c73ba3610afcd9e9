//! Owns: a database as users have them, and a writer that does to it what a copy that is not careful gets wrong.

use std::str::FromStr;
use std::sync::Arc;
use std::sync::atomic::{AtomicI32, Ordering};

use bson::{Bson, Document, doc};
use mongodb::{Client, Database};
use tokio::task::JoinHandle;

/// Every type that may be an `_id`, mixed in one collection.
pub(crate) fn ids() -> Vec<Bson> {
    vec![
        Bson::MinKey,
        Bson::Null,
        Bson::Double(f64::NAN),
        Bson::Double(f64::NEG_INFINITY),
        Bson::Int32(-1),
        Bson::Double(-0.0),
        Bson::Int64(1),
        Bson::Double(1.5),
        Bson::Decimal128(bson::Decimal128::from_str("2.50").unwrap()),
        Bson::Int64(i64::MAX),
        Bson::String(String::new()),
        Bson::String("grün".into()),
        Bson::Document(doc! {"b": 1, "a": 2}),
        Bson::Binary(bson::Binary { subtype: bson::spec::BinarySubtype::Generic, bytes: vec![1, 2, 3] }),
        Bson::ObjectId(bson::oid::ObjectId::from_bytes([7; 12])),
        Bson::Boolean(false),
        Bson::DateTime(bson::DateTime::from_millis(i64::MIN)),
        Bson::Timestamp(bson::Timestamp { time: 5, increment: 6 }),
        Bson::MaxKey,
    ]
}

async fn run(db: &Database, command: Document) {
    db.run_command(command.clone()).await.unwrap_or_else(|e| panic!("{command}: {e}"));
}

/// Collections of every kind with documents in them.
pub(crate) async fn fill(db: &Database, documents: i32) {
    run(db, doc! {"create": "collated", "collation": {"locale": "de", "strength": 2}}).await;
    run(db, doc! {"create": "clustered", "clusteredIndex": {"key": {"_id": 1}, "unique": true}}).await;
    run(db, doc! {"create": "capped", "capped": true, "size": 4 << 20, "max": 500}).await;
    run(db, doc! {"create": "checked", "validator": {"n": {"$gte": 0}}}).await;
    run(db, doc! {"create": "seen", "viewOn": "orders", "pipeline": [{"$match": {"n": 1}}]}).await;
    run(db, doc! {"create": "empty"}).await;
    let orders = db.collection::<Document>("orders");
    for chunk in (0..documents).collect::<Vec<_>>().chunks(5_000) {
        orders.insert_many(chunk.iter().map(|n| doc! {"_id": n, "x": n, "y": 1, "pad": "x".repeat(120)})).await.unwrap();
    }
    db.collection("mixed").insert_many(ids().into_iter().map(|id| doc! {"_id": id, "v": 1})).await.unwrap();
    for coll in ["collated", "clustered"] {
        let names = (0..500).map(|n| doc! {"_id": format!("Käse {n}"), "n": n});
        db.collection(coll).insert_many(names).await.unwrap();
    }
    // More than it holds: the order of insertion is what counts.
    db.collection("capped").insert_many((0..800).map(|n| doc! {"_id": 1_000 - n, "n": n})).await.unwrap();
    db.collection("checked").insert_many((0..50).map(|n| doc! {"_id": n, "n": n})).await.unwrap();
    db.collection("old").insert_many((0..50).map(|n| doc! {"_id": n})).await.unwrap();
    db.collection("gone").insert_many((0..50).map(|n| doc! {"_id": n})).await.unwrap();
    run(db, doc! {"createIndexes": "orders", "indexes": [{"key": {"x": 1}, "name": "x"}, {"key": {"y": 1}, "name": "y", "expireAfterSeconds": 100}]}).await;
}

/// Writes until it is told to stop.
pub(crate) struct Writer {
    first: i32,
    /// Rounds after which it ends.
    end: Arc<AtomicI32>,
    task: JoinHandle<i32>,
}

impl Writer {
    pub(crate) fn start(client: &Client, db: &str, documents: i32, first: i32) -> Self {
        let end = Arc::new(AtomicI32::new(i32::MAX));
        let (client, db, seen) = (client.clone(), db.to_owned(), end.clone());
        let task = tokio::spawn(async move {
            let mut round = first;
            while round < seen.load(Ordering::Relaxed) {
                step(&client, &client.database(&db), documents, round).await;
                round += 1;
            }
            round
        });
        Self { first, end, task }
    }

    /// After as many rounds as it takes to have done everything once; how often it went round.
    pub(crate) async fn stop(self) -> i32 {
        self.end.store(self.first + 12, Ordering::Relaxed);
        self.task.await.unwrap()
    }
}

/// Field order that depends on when a document is read, documents that come and go, a transaction over two collections, DDL.
async fn step(client: &Client, db: &Database, documents: i32, round: i32) {
    let orders = db.collection::<Document>("orders");
    for n in 0..8 {
        // Spread over all keys, so that some are behind the copy and some before it.
        let id = (round * 7_919 + n * (documents / 8)) % documents;
        orders.update_one(doc! {"_id": id}, doc! {"$unset": {"y": 1}}).await.unwrap();
        orders.update_one(doc! {"_id": id}, doc! {"$set": {"y": round}}).await.unwrap();
        orders.update_one(doc! {"_id": id}, doc! {"$set": {format!("w{}", round % 3): n}}).await.unwrap();
    }
    orders.insert_one(doc! {"_id": documents + round, "new": round}).await.unwrap();
    orders.delete_one(doc! {"_id": documents + round - 3}).await.unwrap();
    orders.delete_one(doc! {"_id": (round * 31) % documents}).await.unwrap();
    let capped = db.collection::<Document>("capped");
    capped.insert_one(doc! {"_id": 2_000 + round, "n": round}).await.unwrap();
    capped.update_one(doc! {"_id": 2_000 + round}, doc! {"$set": {"late": round}}).await.unwrap();
    let mut session = client.start_session().await.unwrap();
    session.start_transaction().await.unwrap();
    db.collection::<Document>("mixed").update_one(doc! {"_id": 1}, doc! {"$set": {"v": round}}).session(&mut session).await.unwrap();
    orders
        .replace_one(doc! {"_id": documents + round}, doc! {"_id": documents + round, "again": round})
        .session(&mut session)
        .await
        .unwrap();
    session.commit_transaction().await.unwrap();
    match round {
        3 => run(db, doc! {"createIndexes": "checked", "indexes": [{"key": {"n": -1}, "name": "n_-1"}]}).await,
        5 => {
            run(&client.database("admin"), doc! {"renameCollection": format!("{}.old", db.name()), "to": format!("{}.renamed", db.name())})
                .await
        }
        6 => db.collection::<Document>("gone").drop().await.unwrap(),
        7 => {
            db.collection("gone").insert_one(doc! {"_id": "another"}).await.unwrap();
        }
        9 => run(db, doc! {"collMod": "checked", "validationLevel": "off"}).await,
        _ => {}
    }
}
