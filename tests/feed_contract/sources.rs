//! What the suite does to a source, for the twin and for a real server.

use std::sync::Arc;
use std::time::Duration;

use argon::capture::feed::{ChangeFeed, SharedFeed};
use argon::capture::{FaultyFeed, FeedFaults, MemoryFeed, MongoFeed};
use argon::devkit::Mongod;
use async_trait::async_trait;
use bson::{Document, RawDocument, doc};
use mongodb::Client;

pub(crate) const DB: &str = "shop";

#[async_trait]
pub(crate) trait Source: Send + Sync {
    fn feed(&self) -> SharedFeed;
    async fn insert(&self, coll: &str, id: i32);
    async fn update(&self, coll: &str, id: i32);
    async fn delete(&self, coll: &str, id: i32);
    /// Inserts of one transaction.
    async fn transaction(&self, coll: &str, ids: std::ops::Range<i32>);
    /// A collection, or the whole database.
    async fn drop(&self, coll: Option<&str>);
    /// Something happens at the deployment, but not in the database.
    async fn elsewhere(&self);
    /// History goes on until `token` is no longer served.
    async fn lose(&self, token: &RawDocument);
}

pub(crate) struct Memory {
    pub(crate) feed: MemoryFeed,
    shared: SharedFeed,
}

impl Memory {
    pub(crate) fn new(identity: &str) -> Self {
        let feed = MemoryFeed::new(DB, identity);
        Self { shared: Arc::new(feed.clone()), feed }
    }

    pub(crate) fn wrapped(self) -> Self {
        Self { shared: Arc::new(FaultyFeed::new(self.shared, FeedFaults::default())), ..self }
    }
}

fn insert(coll: &str, id: i32) -> Document {
    let full = doc! { "_id": id, "text": "some words" };
    doc! { "operationType": "insert", "fullDocument": full, "ns": { "db": DB, "coll": coll }, "documentKey": { "_id": id } }
}

#[async_trait]
impl Source for Memory {
    fn feed(&self) -> SharedFeed {
        self.shared.clone()
    }
    async fn insert(&self, coll: &str, id: i32) {
        self.feed.push(&insert(coll, id)).unwrap();
    }
    async fn update(&self, coll: &str, id: i32) {
        let diff = doc! { "$v": 2, "diff": { "u": { "n": 1 } } };
        let ns = doc! { "db": DB, "coll": coll };
        let event = doc! { "operationType": "update", "ns": ns, "documentKey": { "_id": id }, "rawUpdateDescription": diff };
        self.feed.push(&event).unwrap();
    }
    async fn delete(&self, coll: &str, id: i32) {
        let ns = doc! { "db": DB, "coll": coll };
        self.feed.push(&doc! { "operationType": "delete", "ns": ns, "documentKey": { "_id": id } }).unwrap();
    }
    async fn transaction(&self, coll: &str, ids: std::ops::Range<i32>) {
        let all: Vec<Document> = ids.map(|id| insert(coll, id)).collect();
        self.feed.transaction(&all).unwrap();
    }
    async fn drop(&self, coll: Option<&str>) {
        self.feed.drop(coll).unwrap();
    }
    async fn elsewhere(&self) {
        self.feed.tick();
    }
    async fn lose(&self, token: &RawDocument) {
        self.insert("orders", 1_000_000).await;
        self.feed.trim(self.feed.len());
        assert!(self.feed.open(Some(token)).await.is_err());
    }
}

pub(crate) struct Real {
    client: Client,
    _mongod: Mongod,
}

impl Real {
    pub(crate) async fn new(mongod: Mongod) -> Self {
        Self { client: mongod.client().await.unwrap(), _mongod: mongod }
    }

    fn coll(&self, name: &str) -> mongodb::Collection<Document> {
        self.client.database(DB).collection(name)
    }
}

#[async_trait]
impl Source for Real {
    fn feed(&self) -> SharedFeed {
        Arc::new(MongoFeed::new(self.client.clone(), DB))
    }
    async fn insert(&self, coll: &str, id: i32) {
        self.coll(coll).insert_one(doc! { "_id": id, "text": "some words" }).await.unwrap();
    }
    async fn update(&self, coll: &str, id: i32) {
        self.coll(coll).update_one(doc! { "_id": id }, doc! { "$set": { "n": 1 } }).await.unwrap();
    }
    async fn delete(&self, coll: &str, id: i32) {
        self.coll(coll).delete_one(doc! { "_id": id }).await.unwrap();
    }
    async fn transaction(&self, coll: &str, ids: std::ops::Range<i32>) {
        let mut session = self.client.start_session().await.unwrap();
        session.start_transaction().await.unwrap();
        let all: Vec<Document> = ids.map(|id| doc! { "_id": id, "text": "some words" }).collect();
        self.coll(coll).insert_many(all).session(&mut session).await.unwrap();
        session.commit_transaction().await.unwrap();
    }
    async fn drop(&self, coll: Option<&str>) {
        match coll {
            Some(coll) => self.coll(coll).drop().await.unwrap(),
            None => self.client.database(DB).drop().await.unwrap(),
        }
    }
    async fn elsewhere(&self) {
        self.client.database("elsewhere").collection("c").insert_one(doc! { "a": 1 }).await.unwrap();
    }
    /// SUBTLE: the server truncates only up to its last stable checkpoint, and the first comes a minute after the start; so most of
    /// this is waiting. (A forged old token proves nothing: a set whose oplog still begins with its initiation serves any time.)
    async fn lose(&self, token: &RawDocument) {
        let elsewhere = self.client.database("elsewhere").collection::<Document>("filler");
        let filler = "x".repeat(1 << 20);
        elsewhere.insert_many(vec![doc! { "filler": &filler }; 40]).await.unwrap();
        for _ in 0..120 {
            elsewhere.insert_one(doc! { "filler": &filler }).await.unwrap();
            if self.feed().open(Some(token)).await.is_err() {
                return;
            }
            tokio::time::sleep(Duration::from_secs(1)).await;
        }
        panic!("the oplog did not roll over in two minutes");
    }
}
