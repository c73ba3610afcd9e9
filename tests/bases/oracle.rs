//! Any moment against the server's own memory of it (correctness.md 30): random points of a history under load with transactions, every increment of a second,
//! the edges of transactions, and points of a history full of DDL with the hash taken live.
//!
//! The long form, before a release: `ARGON_ORACLE_CHANGES=500000 ARGON_ORACLE_POINTS=50 cargo test --release --test bases oracle -- --nocapture`.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use argon::branch::point::Point;
use argon::change::ClusterTime;
use argon::devkit::workload::{self, Profile, Workload};
use argon::devkit::{MongodOptions, oracle};
use argon::runtime::clock;
use bson::{Bson, Document, Timestamp, doc};
use futures_util::TryStreamExt;
use mongodb::Database;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

use crate::world::{BRANCH, World};

fn number(variable: &str, otherwise: u64) -> u64 {
    std::env::var(variable).ok().map_or(otherwise, |text| text.parse().unwrap_or_else(|_| panic!("{variable}={text} is not a number")))
}

async fn hashes(db: &Database, at: Option<Timestamp>) -> Document {
    let mut command = doc! {"dbHash": 1};
    if let Some(at) = at {
        command.insert("$_internalReadAtClusterTime", at);
    }
    db.run_command(command).await.unwrap().get_document("collections").unwrap().clone()
}

/// Writes until `changes` are acknowledged.
async fn load(db: Database, profile: Profile, seed: u64, lane: u32, changes: u64, stop: Arc<AtomicBool>) {
    let mut load = Workload::new(seed, lane, profile).unwrap();
    let mut done = 0;
    while done < changes && !stop.load(Ordering::Relaxed) {
        let operations: Vec<_> = (0..200).map(|_| load.next_operation()).collect();
        done += workload::apply(&db, &operations).await.unwrap().changes;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn any_moment_is_what_the_server_remembers_of_it() {
    let (changes, points) = (number("ARGON_ORACLE_CHANGES", 20_000), number("ARGON_ORACLE_POINTS", 12));
    let seed = number("ARGON_SEED", u64::from_str_radix(&argon::runtime::random::id()[..8], 16).unwrap());
    println!("oracle: {changes} changes, {points} points, seed {seed}");
    let window = vec![("minSnapshotHistoryWindowInSeconds".to_owned(), "7200".to_owned())];
    let world = World::with(MongodOptions { params: window, oplog_mb: 4_000, ..MongodOptions::default() }).await;
    let db = world.source();
    let profile = Profile { keys: 1_000, doc_bytes: 300, ..Profile::everything() };
    workload::prepare(&db, &profile).await.unwrap();
    db.collection("paced").insert_one(doc! {"_id": "first"}).await.unwrap();
    load(db.clone(), profile.clone(), seed, 9, 2_000, Arc::default()).await;

    // The base is taken while the load runs.
    world.start().await;
    let stop = Arc::new(AtomicBool::new(false));
    let loads: Vec<_> = (0..2).map(|lane| tokio::spawn(load(db.clone(), profile.clone(), seed, lane, changes / 2, stop.clone()))).collect();
    let engine = world.engine(&[]);
    let base = world.bases(BRANCH, 1).await.remove(0);
    for load in loads {
        load.await.unwrap();
    }
    // Seconds that hold some 40 changes each.
    let paced = db.collection::<Document>("paced");
    let mut tick = tokio::time::interval(Duration::from_millis(25));
    for n in 0..130 {
        tick.tick().await;
        paced.update_one(doc! {"_id": "first"}, doc! {"$set": {"n": n}}).await.unwrap();
    }
    world.caught_up(BRANCH).await;
    let loaded = world.history(BRANCH).await.branch.head.seq;

    let oplog = world.client.database("local").collection::<Document>("oplog.rs");
    let after = Timestamp::from(base.consistent_at);
    let ours = doc! {"ts": {"$gte": after}, "op": {"$ne": "n"}, "$or": [{"ns": {"$regex": "^shop\\."}}, {"o.applyOps.ns": {"$regex": "^shop\\."}}]};
    let entries: Vec<Document> = oplog
        .find(ours)
        .projection(doc! {"ts": 1, "ns": 1, "o.applyOps.ns": 1})
        .sort(doc! {"ts": 1})
        .await
        .unwrap()
        .try_collect()
        .await
        .unwrap();
    let time = |entry: &Document| entry.get_timestamp("ts").unwrap();
    let times: Vec<Timestamp> = entries.iter().map(time).collect();
    assert!(times.len() > 1_000, "{}", times.len());
    let mut rng = StdRng::seed_from_u64(seed);
    let mut wanted: Vec<Timestamp> = (0..points).map(|_| times[rng.random_range(0..times.len())]).collect();
    wanted.push(after);
    // Right before, at and behind transactions.
    let transactions: Vec<Timestamp> =
        entries.iter().filter(|e| e.get_document("o").is_ok_and(|o| o.contains_key("applyOps"))).map(time).collect();
    assert!(!transactions.is_empty());
    for _ in 0..points / 4 {
        let at = transactions[rng.random_range(0..transactions.len())];
        wanted.extend([ClusterTime::from(at).before().into(), at, Timestamp { time: at.time, increment: at.increment + 1 }]);
    }
    // Every increment of one second with 30 to 50 changes, one before and one behind them too.
    let busy = (0..).map(|back| times[times.len() - 1].time - back).take(60).find_map(|second| {
        let of: Vec<u32> = times.iter().filter(|at| at.time == second).map(|at| at.increment).collect();
        ((30..=50).contains(&of.len())).then(|| (second, of[0], of[of.len() - 1]))
    });
    let (second, first, last) = busy.expect("a second with 30 to 50 changes");
    wanted.extend((first.saturating_sub(1)..=last + 1).map(|increment| Timestamp { time: second, increment }));

    let until = Timestamp::from(world.history(BRANCH).await.captured_until.unwrap());
    wanted.retain(|at| *at >= after && *at <= until);
    let began = clock::now();
    for (n, at) in wanted.iter().enumerate() {
        let restored = world.client.database("restored");
        restored.drop().await.unwrap();
        let report = world.restore(BRANCH, Point::Time((*at).into()), "restored").await.unwrap();
        assert!(report.seq <= loaded);
        assert_eq!(hashes(&restored, None).await, hashes(&db, Some(*at)).await, "seed {seed}, point {n} of {}: {at}", wanted.len());
    }
    println!("oracle: {loaded} changes, {} points equal in {:.1?}, base of {} documents", wanted.len(), began.elapsed(), base.documents);
    stop.store(true, Ordering::Relaxed);
    engine.drain().await;
}

/// Creates, fills, indexes, renames, changes and drops.
async fn define(world: &World, db: &Database, round: i32) {
    let options = match round % 3 {
        0 => doc! {"validator": {"n": {"$gte": 0}}, "validationLevel": "moderate"},
        1 => doc! {"collation": {"locale": "de", "strength": 1}},
        _ => doc! {"capped": true, "size": 100_000},
    };
    let name = format!("c{round}");
    let mut create = doc! {"create": &name};
    create.extend(options);
    db.run_command(create).await.unwrap();
    db.collection(&name).insert_many((0..20).map(|n| doc! {"_id": n, "n": n, "round": round})).await.unwrap();
    let index = doc! {"key": {"n": if round % 2 == 0 { 1 } else { -1 }}, "name": "n", "unique": round % 4 == 0};
    db.run_command(doc! {"createIndexes": &name, "indexes": [index, {"key": {"round": 1}, "name": "round"}]}).await.unwrap();
    let admin = world.client.database("admin");
    let full = |coll: &str| format!("{}.{coll}", db.name());
    if round > 1 {
        let mut rename = doc! {"renameCollection": full(&format!("c{}", round - 1)), "to": full(&format!("d{}", round % 4))};
        rename.insert("dropTarget", true);
        admin.run_command(rename).await.unwrap();
    }
    match round % 5 {
        0 => drop(db.run_command(doc! {"dropIndexes": &name, "index": "round"}).await.unwrap()),
        1 => drop(
            db.run_command(doc! {"collMod": &name, "validator": {"n": {"$type": ["int", "long"]}}, "validationAction": "warn"})
                .await
                .unwrap(),
        ),
        2 => drop(
            db.run_command(doc! {"create": format!("v{round}"), "viewOn": &name, "pipeline": [{"$match": {"n": round}}]}).await.unwrap(),
        ),
        3 => drop(db.run_command(doc! {"collMod": format!("v{}", round - 1), "viewOn": &name, "pipeline": []}).await.unwrap()),
        _ => drop(db.run_command(doc! {"drop": format!("v{}", round - 2)}).await.unwrap()),
    }
    let fixed = db.collection::<Document>("fixed");
    fixed
        .replace_one(doc! {"_id": round % 7}, doc! {"_id": Bson::Int64(i64::from(round % 7)), "z": round, "a": 1})
        .upsert(true)
        .await
        .unwrap();
    let mut session = world.client.start_session().await.unwrap();
    session.start_transaction().await.unwrap();
    fixed.insert_one(doc! {"_id": format!("t{round}")}).session(&mut session).await.unwrap();
    if round % 3 != 2 {
        db.collection::<Document>(&name).delete_many(doc! {"_id": {"$lt": 5}}).session(&mut session).await.unwrap();
    }
    session.commit_transaction().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_history_full_of_ddl_is_right_at_every_stage() {
    let world = World::new().await;
    let db = world.source();
    db.collection("fixed").insert_many((0..7).map(|n| doc! {"_id": n, "a": 0})).await.unwrap();
    world.start().await;
    let engine = world.engine(&[]);
    world.bases(BRANCH, 1).await;
    // The server cannot look back past DDL: the hash is taken live, with nobody writing.
    let mut stages = Vec::new();
    for round in 1..=20 {
        define(&world, &db, round).await;
        let at = world.now().await;
        stages.push((at, oracle::snapshot(&db).await.unwrap()));
    }
    world.caught_up(BRANCH).await;
    for (round, (at, then)) in stages.iter().enumerate() {
        let restored = world.client.database("restored");
        restored.drop().await.unwrap();
        world.restore(BRANCH, Point::Time(*at), "restored").await.unwrap();
        let back = oracle::snapshot(&restored).await.unwrap();
        assert_eq!(then.differences(&back), Vec::<String>::new(), "stage {} at {at}", round + 1);
    }
    engine.drain().await;
}
