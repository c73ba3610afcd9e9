//! kill -9 at random moments of a base copy, of a restore and of a checkout: run again, each ends right.

use std::time::Duration;

use argon::devkit::oracle;
use argon::ledger::{Base, BaseState};
use argon::runtime::{clock, random};
use mongodb::Database;
use mongodb::bson::{Document, doc};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

use crate::kill::number;
use crate::load::{Load, Mix};
use crate::world::{BRANCH, World, drain, until};

/// Kills of each: few in CI, 20 before a release (`ARGON_KILLS=20`).
fn kills() -> u64 {
    number("ARGON_KILLS").unwrap_or(4)
}

fn seed() -> u64 {
    number("ARGON_SEED").unwrap_or_else(|| u64::from_str_radix(&random::id()[..8], 16).unwrap())
}

/// What there is before the capture starts.
async fn fill(db: &Database, documents: i32) {
    let stock = db.collection::<Document>("stock");
    for from in (0..documents).step_by(5_000) {
        stock.insert_many((from..from + 5_000).map(|n| doc! { "_id": n, "x": n, "y": 1, "pad": "x".repeat(200) })).await.unwrap();
    }
    db.run_command(doc! {"createIndexes": "stock", "indexes": [{"key": {"x": 1}, "name": "x", "unique": true}]}).await.unwrap();
}

async fn base(world: &World) -> Option<Base> {
    world.ledger.bases(&world.branch().await.id).await.ok()?.into_iter().next()
}

async fn complete(world: &World) {
    until("the base is complete", || async { base(world).await.filter(|base| base.state == BaseState::Complete) }).await;
}

/// Runs a command over and over, killing it at a random moment, and at last to its end.
async fn killed_and_run_again(world: &World, rng: &mut StdRng, args: &[&str], whole: Duration) -> u64 {
    let mut killed = 0;
    while killed < kills() {
        let mut process = world.start(args);
        let moment = whole.mul_f64(rng.random_range(0.02..0.8));
        if let Ok(exit) = process.wait(moment).await {
            assert_eq!(exit.code, 0, "argon {args:?} after {killed} kills: {}", process.log_tail(3_000));
            return killed; // what was left of it took less than the moment
        }
        process.kill9();
        killed += 1;
    }
    let last = world.argon(args).await;
    assert_eq!(last.code, 0, "argon {args:?} after {killed} kills: {last:?}");
    killed
}

async fn assert_same(a: &Database, b: &Database) {
    let (a, b) = (oracle::snapshot(a).await.unwrap(), oracle::snapshot(b).await.unwrap());
    assert!(!a.hashes.is_empty());
    assert_eq!(a.differences(&b), Vec::<String>::new());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_base_copy_that_is_killed_again_and_again_ends_right() {
    let (seed, world) = (seed(), World::new("killcopy").await);
    let mut rng = StdRng::seed_from_u64(seed);
    let documents = i32::try_from(10_000 * kills()).unwrap().max(40_000);
    fill(&world.source(), documents).await;
    world.start_capture().await;
    let load = Load::start(&world.source(), Mix { seed, ddl: true, tolerant: false }).await;
    let (mut done, mut during) = (0, 0);
    // Slow enough to be hit in the middle: 2.4 MB a kill at 1 MB/s.
    let slow = [("ARGON_BASE_RATE", "1MiB"), ("ARGON_BASE_READERS", "1")];
    while done < kills() {
        let mut engine = world.engine(&slow);
        tokio::time::sleep(Duration::from_millis(rng.random_range(500..6_000))).await;
        assert_eq!(engine.exited(), None, "{}", engine.log_tail(3_000));
        engine.kill9();
        done += 1;
        during += u64::from(base(&world).await.is_some_and(|base| base.state == BaseState::Copying));
    }
    let mut engine = world.engine(&[]);
    load.stop().await;
    // What was alone at three deaths in a row without getting on is condemned although it is innocent here; an operator revives it.
    crate::kill::revive(&world).await;
    complete(&world).await;
    let checked = world.check().await;
    let base = base(&world).await.unwrap();
    assert!(base.documents >= documents.unsigned_abs().into(), "{base:?}");
    drain(&mut engine).await;
    println!("base copy: {done} kills, {during} of them before it was complete, {} changes, seed {seed}", checked.audit.changes);
    assert!(during > 0, "no kill came while it was copied: seed {seed}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_restore_and_a_checkout_that_are_killed_again_and_again_end_right() {
    let (seed, world) = (seed(), World::new("killback").await);
    let mut rng = StdRng::seed_from_u64(seed);
    fill(&world.source(), 20_000).await;
    world.start_capture().await;
    let mut engine = world.engine(&[]);
    let load = Load::start(&world.source(), Mix { seed, ddl: true, tolerant: false }).await;
    complete(&world).await;
    world.progress(500).await;
    load.stop().await;
    world.caught_up().await;

    let began = clock::now();
    let first = world.client.database("killback_first");
    assert_eq!(world.argon(&["restore", BRANCH, "--to-db", first.name()]).await.code, 0);
    let whole = began.elapsed();
    let target = world.client.database("killback_to");
    let restored = killed_and_run_again(&world, &mut rng, &["restore", BRANCH, "--to-db", target.name()], whole).await;
    assert_same(&first, &target).await;

    let out = world.client.database("killback_out");
    let args = ["branch", "checkout", "crash/try", "--from", BRANCH, "--to-db", out.name()];
    let checked_out = killed_and_run_again(&world, &mut rng, &args, whole).await;
    assert_same(&first, &out).await;
    // What is written there is the branch's own history from now on.
    out.collection::<Document>("stock").update_many(doc! {"_id": {"$lt": 100}}, doc! {"$set": {"y": 2}}).await.unwrap();
    out.collection("own").insert_one(doc! {"_id": 1}).await.unwrap();
    let fork = world.ledger.branch_named("crash/try").await.unwrap().unwrap();
    until("the branch follows its own database", || async {
        world.ledger.branch(&fork.id).await.ok()?.filter(|now| now.head.seq >= fork.head.seq + 101)
    })
    .await;
    let verified = world.argon(&["verify", "crash/try", "--deep", "--against-db", out.name()]).await;
    assert_eq!(verified.code, 0, "{verified:?}");
    let verified = world.argon(&["verify", BRANCH, "--deep"]).await;
    assert_eq!(verified.code, 0, "{verified:?}");
    drain(&mut engine).await;
    println!("{restored} kills of a restore and {checked_out} of a checkout of {whole:.1?}, seed {seed}");
}
