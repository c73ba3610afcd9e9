//! The bucket is enough (promise 3): the metadata database is lost, and comes back from the store alone, on a real MongoDB and a real S3 service.
//!
//! The long form of the measurement: `ARGON_SEGMENTS=10000 cargo test --test rebuild segments_are_read -- --nocapture`.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)] // helpers of tests are tests

mod many;
mod world;

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use argon::devkit::{ArgonProcess, audit, oracle};
use argon::runtime::{clock, random};
use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};
use serde_json::json;

use world::{BRANCH, LIMIT, Shown, World, binary};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_metadata_is_lost_and_everything_goes_on() {
    let world = World::new("lost").await;
    world.json(&["capture", "start", BRANCH, "--source-db", &world.name]).await;
    let mut engine = Shown(world.capturing_engine().await);
    world.load(1, 6).await;
    world.caught_up().await;
    world.dump("lost_dump").await;
    world.load(2, 6).await;
    world.caught_up().await;
    world.json(&["branch", "create", "shop/dev", "--from", BRANCH]).await;
    let (was, rows) = (world.branches(&[]).await, world.segment_keys(&world.metadata).await);
    assert!(rows.len() > 2 && was.len() == 2);
    engine.0.kill9();
    world.drop_metadata().await;

    restored_from_the_store_alone(&world).await;
    rebuilt(&world, &was, &rows).await;
    going_on(&world).await;
    the_old_metadata_is_fenced(&world).await;
}

/// Restore and verification need no metadata, by the flag or where no MongoDB is given at all.
async fn restored_from_the_store_alone(world: &World) {
    let source = world.snapshot().await;
    let none = world.argon_with(&["restore", BRANCH, "--to-db", "lost_back"], &[]).await;
    assert!(none.code == 1 && none.stderr.contains("argon rebuild"), "{none:?}");
    let without = [("ARGON_MONGODB_URI", ""), ("TARGET", world.uri.as_str())];
    for (to, args, env) in [("lost_back1", &["--no-metadata"][..], &[][..]), ("lost_back2", &["--to-uri", "env:TARGET"], &without)] {
        let output = world.argon_with(&[&["restore", BRANCH, "--to-db", to], args].concat(), env).await;
        assert_eq!(output.code, 0, "{output:?}");
        let back = oracle::snapshot(&world.client.database(to)).await.unwrap();
        assert_eq!(source.differences(&back), Vec::<String>::new());
    }
    let verified = world.argon_with(&["verify", BRANCH, "--deep", "--against-db", "lost_back1", "--no-metadata"], &[]).await;
    assert!(verified.code == 0 && verified.stdout.contains("store alone"), "{verified:?}");
    let verified = world.argon_with(&["verify", "shop/dev", "--deep"], &without).await;
    assert_eq!(verified.code, 0, "{verified:?}");
    let log = world.argon_with(&["log", BRANCH, "--limit", "3", "--no-metadata"], &[]).await;
    assert!(log.code == 0 && log.stdout.lines().count() >= 3, "{log:?}");
    let unknown = world.argon_with(&["verify", "shop/typo", "--no-metadata"], &[]).await;
    assert!(unknown.code == 1 && unknown.stderr.contains("shop/typo") && unknown.stderr.contains(BRANCH), "{unknown:?}");
    // What the bucket does not know is refused.
    let later = world.argon_with(&["restore", BRANCH, "--to-db", "lost_x", "--at", "2100-01-01T00:00:00Z", "--no-metadata"], &[]).await;
    assert!(later.code == 1 && later.stderr.contains("has not been captured yet"), "{later:?}");
}

/// The same branches, heads and totals; a dry run says so before.
async fn rebuilt(world: &World, was: &[serde_json::Value], rows: &[String]) {
    assert_eq!(world.branches(&[("ARGON_MONGODB_URI", "")]).await, was, "read from the bucket");
    let dry = world.json_with(&["rebuild", "--dry-run"], &[("ARGON_MONGODB_URI", "")]).await;
    assert_eq!((&dry["rebuilt"], &dry["dry_run"]), (&json!(true), &json!(true)));
    assert!(!world.client.list_database_names().await.unwrap().contains(&world.metadata), "a dry run makes nothing");
    let report = world.json(&["rebuild"]).await;
    assert_eq!((&report["rebuilt"], &report["damaged"], &report["orphans"]["count"]), (&json!(true), &json!([]), &json!(0)), "{report}");
    assert_eq!((&report["branches"][0]["epoch"], &report["branches"][0]["orphans"]["count"]), (&json!(2), &json!(0)), "{report}");
    assert_eq!(world.branches(&[]).await, was);
    assert_eq!(world.segment_keys(&world.metadata).await, rows);
    // Again is harmless.
    let again = world.json(&["rebuild"]).await;
    assert_eq!((&again["branches"][0]["already"], &again["branches"][0]["epoch"]), (&json!(true), &json!(2)), "{again}");
}

/// Captures resume where the bucket ends: what was written meanwhile is not lost.
async fn going_on(world: &World) {
    world.load(3, 4).await;
    let mut engine = Shown(world.capturing_engine().await);
    world.load(4, 4).await;
    world.caught_up().await;
    let output = world.argon_with(&["verify", BRANCH, "--deep"], &[]).await;
    assert_eq!(output.code, 0, "{output:?}");
    world.verify().await;
    let subject = audit::Subject { client: &world.client, metadata_db: &world.metadata, branch: BRANCH, store: world.store.clone() };
    let audit = audit::audit(&subject).await.unwrap();
    assert_eq!(audit.problems, Vec::<String>::new());
    let exit = engine.0.terminate(LIMIT).await.unwrap();
    assert_eq!(exit.code, 0);
    // And it can be lost again.
    let (was, rows) = (world.branches(&[]).await, world.segment_keys(&world.metadata).await);
    world.drop_metadata().await;
    let report = world.json(&["rebuild"]).await;
    assert_eq!(report["branches"][0]["epoch"], json!(3), "{report}");
    assert_eq!((world.branches(&[]).await, world.segment_keys(&world.metadata).await), (was, rows));
}

/// A dump of the metadata from before does not number the branch any more, and is not rebuilt into.
async fn the_old_metadata_is_fenced(world: &World) {
    let old = [("ARGON_METADATA_DB", "lost_dump"), ("ARGON_HTTP_ADDR", "127.0.0.1:0")];
    let mut engine = Shown(world.engine(&old));
    engine.0.wait_line("numbered by other metadata", LIMIT).await.unwrap();
    let begun = clock::now();
    let status = loop {
        let listed = world.json_with(&["branch", "list"], &old).await;
        let status = listed["branches"][0]["status"].clone();
        if status == json!("failed") || begun.elapsed() > LIMIT {
            break status;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    };
    assert_eq!(status, json!("failed"));
    engine.0.kill9();
    let refused = world.argon_with(&["rebuild"], &old).await;
    assert!(refused.code == 1 && refused.stderr.contains("out of date"), "{refused:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_metadata_is_lost_under_load_and_no_change_is() {
    let world = World::new("load").await;
    world.json(&["capture", "start", BRANCH, "--source-db", &world.name]).await;
    let engine = Shown(world.capturing_engine().await);
    let over = AtomicBool::new(false);
    let disaster = async {
        let (mut engine, mut head) = (engine, 0);
        for round in 0..3u64 {
            world.committed(head + 300).await;
            engine.0.kill9();
            world.drop_metadata().await;
            let report = world.json(&["rebuild"]).await;
            let branch = &report["branches"][0];
            head = branch["head"]["seq"].as_u64().unwrap();
            println!("round {round}: head {head}, {} segments were not history", branch["orphans"]["count"]);
            assert_eq!((&report["rebuilt"], &branch["epoch"]), (&json!(true), &json!(round + 2)), "{report}");
            engine = Shown(world.capturing_engine().await);
        }
        over.store(true, Ordering::Relaxed);
        engine
    };
    let (_, mut engine) = tokio::join!(world.load_while(5, 10, || !over.load(Ordering::Relaxed)), disaster);
    world.caught_up().await;
    world.verify().await;
    let subject = audit::Subject { client: &world.client, metadata_db: &world.metadata, branch: BRANCH, store: world.store.clone() };
    let audit = audit::audit(&subject).await.unwrap();
    assert_eq!(audit.problems, Vec::<String>::new());
    let source = world.snapshot().await;
    let output = world.argon_with(&["restore", BRANCH, "--to-db", "load_back", "--no-metadata"], &[]).await;
    assert_eq!(output.code, 0, "{output:?}");
    let back = oracle::snapshot(&world.client.database("load_back")).await.unwrap();
    assert_eq!(source.differences(&back), Vec::<String>::new());
    let exit = engine.0.terminate(LIMIT).await.unwrap();
    assert_eq!(exit.code, 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_rebuild_that_is_killed_at_random_moments_ends_right() {
    let seed = std::env::var("ARGON_SEED").ok().and_then(|seed| seed.parse().ok());
    let seed = seed.unwrap_or_else(|| u64::from_str_radix(&random::id()[..8], 16).unwrap());
    println!("seed {seed}");
    let mut rng = SmallRng::seed_from_u64(seed);
    let world = World::new("killed").await;
    let first = many::segments(&world, "shop/main", 600).await;
    many::segments(&world, "shop/side", 400).await;
    world.drop_metadata().await;
    let begun = clock::now();
    let whole = world.json_with(&["rebuild"], &[("ARGON_METADATA_DB", "killed_whole")]).await;
    let time = begun.elapsed();
    let want = world.segment_keys("killed_whole").await;
    assert_eq!((want.len(), &whole["branches"].as_array().unwrap().len()), (1_000, &2));
    let (mut kills, mut runs) = (0, 0);
    while kills < 6 {
        let mut process = ArgonProcess::start(binary(), ["rebuild"], &world.env(&[])).unwrap();
        tokio::time::sleep(time.mul_f64(rng.random_range(0.1..1.0))).await;
        if process.exited().is_none() {
            kills += 1;
        } else {
            world.drop_metadata().await; // it was faster: what is whole already can no longer be cut off
        }
        process.kill9();
        runs += 1;
        assert!(runs < 60, "it always ends before it is killed");
    }
    let report = world.json(&["rebuild"]).await;
    assert_eq!(world.segment_keys(&world.metadata).await, want, "after {kills} kills");
    for (n, branch) in report["branches"].as_array().unwrap().iter().enumerate() {
        for same in ["name", "head", "totals", "status", "capture", "bases"] {
            assert_eq!(branch[same], whole["branches"][n][same], "{same}");
        }
    }
    // The bucket's last word is this database's: its engines may capture.
    let id = report["branches"][0]["id"].as_str().unwrap();
    let epoch = report["branches"][0]["epoch"].as_u64().unwrap();
    let next = argon::branch::layout::epoch("shop", id, epoch + 1);
    assert_eq!(world.store.head(&next).await.unwrap(), None, "epoch {epoch} is the last");
    let verified = world.argon_with(&["verify", &first, "--deep"], &[]).await;
    assert_eq!(verified.code, 0, "{verified:?}");
    println!("{kills} of {runs} runs were killed; a whole one takes {time:?}");
}
