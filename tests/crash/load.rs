//! Owns: writing to a source while faults strike: a mix of every operation, transactions, and DDL in between. Does not own: the operations
//! (`devkit::workload`).

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use argon::devkit::workload::{self, Profile, Workload};
use mongodb::Database;
use mongodb::bson::{Document, doc};
use tokio::task::JoinHandle;

/// Operations of one call, and the pause after it: a load that leaves the machine room for everybody.
const CHUNK: usize = 40;
const PAUSE: Duration = Duration::from_millis(15);
const DDL_PAUSE: Duration = Duration::from_millis(120);

/// What is written.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Mix {
    pub(crate) seed: u64,
    /// Creates, renames and drops collections beside the rest.
    pub(crate) ddl: bool,
    /// Errors do not stop the load: the server itself is under attack.
    pub(crate) tolerant: bool,
}

/// A running load. It goes on until it is stopped.
pub(crate) struct Load {
    stop: Arc<AtomicBool>,
    tasks: Vec<JoinHandle<u64>>,
}

impl Load {
    pub(crate) async fn start(db: &Database, mix: Mix) -> Self {
        let profile = Profile { keys: 150, ..Profile::everything() };
        workload::prepare(db, &profile).await.unwrap();
        let stop = Arc::new(AtomicBool::new(false));
        let mut tasks: Vec<_> = (0..2).map(|lane| tokio::spawn(writes(db.clone(), profile.clone(), mix, lane, stop.clone()))).collect();
        if mix.ddl {
            tasks.push(tokio::spawn(definitions(db.clone(), mix.tolerant, stop.clone())));
        }
        Self { stop, tasks }
    }

    /// Stops, and returns how many changes the server has acknowledged.
    pub(crate) async fn stop(self) -> u64 {
        self.stop.store(true, Ordering::Relaxed);
        let mut changes = 0;
        for task in self.tasks {
            changes += task.await.expect("the load");
        }
        changes
    }
}

async fn writes(db: Database, profile: Profile, mix: Mix, lane: u32, stop: Arc<AtomicBool>) -> u64 {
    let mut load = Workload::new(mix.seed, lane, profile).unwrap();
    let mut changes = 0;
    while !stop.load(Ordering::Relaxed) {
        let operations: Vec<_> = (0..CHUNK).map(|_| load.next_operation()).collect();
        match workload::apply(&db, &operations).await {
            Ok(stats) => changes += stats.changes,
            Err(fault) => assert!(mix.tolerant, "{fault}"),
        }
        tokio::time::sleep(PAUSE).await;
    }
    changes
}

/// A collection is born with options, filled, indexed, renamed, and two rounds later dropped.
async fn definitions(db: Database, tolerant: bool, stop: Arc<AtomicBool>) -> u64 {
    let mut round = 0i64;
    let mut changes = 0;
    while !stop.load(Ordering::Relaxed) {
        round += 1;
        match define(&db, round).await {
            Ok(made) => changes += made,
            Err(error) => assert!(tolerant, "{error}"),
        }
        tokio::time::sleep(DDL_PAUSE).await;
    }
    changes
}

async fn define(db: &Database, round: i64) -> mongodb::error::Result<u64> {
    let (young, old) = (format!("young{round}"), format!("old{round}"));
    let options = match round % 3 {
        0 => doc! { "validator": { "n": { "$type": "long" } }, "validationLevel": "moderate" },
        1 => doc! { "collation": { "locale": "de", "strength": 1 } },
        _ => doc! {},
    };
    let mut create = doc! { "create": &young };
    create.extend(options);
    db.run_command(create).await?;
    let documents: Vec<Document> = (0..5i64).map(|n| doc! { "_id": n, "n": n, "round": round }).collect();
    db.collection::<Document>(&young).insert_many(documents).await?;
    db.run_command(doc! { "createIndexes": &young, "indexes": [{ "key": { "n": -1 }, "name": "by_n", "unique": true }] }).await?;
    let to = |name: &str| format!("{}.{name}", db.name());
    db.client().database("admin").run_command(doc! { "renameCollection": to(&young), "to": to(&old) }).await?;
    db.collection::<Document>(&old).update_many(doc! {}, doc! { "$set": { "renamed": true } }).await?;
    if round > 2 {
        db.collection::<Document>(&format!("old{}", round - 2)).drop().await?;
    }
    Ok(13)
}
