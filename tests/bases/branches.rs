//! Forks, checkouts and what is left of them.

use std::sync::Arc;
use std::time::Duration;

use argon::branch::checkout::{CheckoutOptions, checkout};
use argon::branch::fork::fork;
use argon::branch::history::Progress;
use argon::branch::look::{LogOptions, log};
use argon::branch::point::Point;
use argon::branch::restore::RestoreOptions;
use argon::devkit::oracle;
use argon::fault::Result;
use argon::ledger::{BranchStatus, Source, server_facts};
use bson::{Document, doc};

use crate::source::{Writer, fill};
use crate::world::{BRANCH, World, wait_for};

async fn check_out(world: &World, branch: &str, db: &str, ttl: Option<Duration>) {
    try_check_out(world, branch, db, ttl).await.unwrap();
}

async fn try_check_out(world: &World, branch: &str, db: &str, ttl: Option<Duration>) -> Result<()> {
    let source = Source::new(None, db.into(), server_facts(&world.client).await.unwrap().identity);
    let options =
        CheckoutOptions { restore: RestoreOptions { temp_dir: world.dir.path().into(), ..RestoreOptions::new(Point::Head) }, source, ttl };
    let history = world.history(branch).await;
    checkout(&history, &world.client.database(db), &options, Arc::new(Progress::default())).await.map(drop)
}

#[tokio::test(flavor = "multi_thread")]
async fn rule_18_a_checkout_continues_its_branch_and_forks_of_it_see_all_of_it() {
    let world = World::new().await;
    let db = world.source();
    fill(&db, 2_000).await;
    world.start().await;
    let engine = world.engine(&[]);
    world.bases(BRANCH, 1).await;
    db.collection("orders").insert_one(doc! {"_id": "before the fork"}).await.unwrap();
    world.caught_up(BRANCH).await;
    let dev = fork(&world.history(BRANCH).await, "test/dev", Point::Head, None).await.unwrap();
    assert_eq!(dev.head.seq, world.history(BRANCH).await.branch.head.seq);
    let objects = world.store.list(&format!("projects/test/branches/{}/", dev.id), None, 10).await.unwrap();
    assert_eq!(objects.len(), 1, "a branch is one object: {objects:?}");
    assert_eq!(world.differences("test/dev", Point::Head, &db).await, Vec::<String>::new());

    // What happens in the parent does not happen in the child, and the other way round.
    db.collection("orders").insert_one(doc! {"_id": "after the fork"}).await.unwrap();
    // Somebody's own collection would be in history without its documents, and go with a branch that has a time to live.
    let notes = world.client.database("shop_dev").collection::<Document>("notes");
    notes.insert_one(doc! {"_id": 1}).await.unwrap();
    let refused = try_check_out(&world, "test/dev", "shop_dev", None).await.unwrap_err();
    assert!(refused.what.contains("notes") && refused.what.contains("another --to-db"), "{refused}");
    assert_eq!(notes.count_documents(doc! {}).await.unwrap(), 1);
    notes.drop().await.unwrap();
    check_out(&world, "test/dev", "shop_dev", None).await;
    let copy = world.client.database("shop_dev");
    let writer = Writer::start(&world.client, "shop_dev", 2_000, 0);
    wait_for("history of its own", async || world.history("test/dev").await.branch.head.seq > dev.head.seq + 200).await;
    writer.stop().await;
    world.caught_up("test/dev").await;
    world.caught_up(BRANCH).await;
    assert_eq!(world.differences("test/dev", Point::Head, &copy).await, Vec::<String>::new());
    assert_eq!(world.differences(BRANCH, Point::Head, &db).await, Vec::<String>::new());
    world.verify("test/dev").await;
    let orders = copy.collection::<Document>("orders");
    assert!(orders.find_one(doc! {"_id": "after the fork"}).await.unwrap().is_none());

    // A fork of the fork: at a point of its own, and at one that it shares with its grandparent.
    let head = world.history("test/dev").await.branch.head.seq;
    let grandchild = fork(&world.history("test/dev").await, "test/deeper", Point::Seq(head - 50), None).await.unwrap();
    assert_eq!(grandchild.parent.as_ref().unwrap().id, dev.id);
    world.restore("test/dev", Point::Seq(grandchild.head.seq), "then").await.unwrap();
    assert_eq!(world.differences("test/deeper", Point::Head, &world.client.database("then")).await, Vec::<String>::new());
    let shared = fork(&world.history("test/dev").await, "test/shared", Point::Seq(dev.head.seq), None).await.unwrap();
    let main = world.ledger.branch_named(BRANCH).await.unwrap().unwrap();
    assert_eq!(shared.parent.as_ref().unwrap().id, main.id, "it does not need the branch it was asked of");

    // Deleting: not while somebody was forked from it.
    let refused = world.ledger.delete_branch(&dev.id).await.unwrap_err();
    assert!(refused.what.contains("test/deeper"), "{refused}");
    assert!(world.ledger.delete_branch(&grandchild.id).await.unwrap());
    assert!(world.ledger.delete_branch(&dev.id).await.unwrap());
    assert!(!world.ledger.delete_branch(&dev.id).await.unwrap(), "once");
    let late = fork(&world.history(&dev.id).await, "test/late", Point::Head, None).await.unwrap_err();
    assert!(late.what.contains("deleted"), "{late}");
    assert_eq!(world.ledger.branch(&dev.id).await.unwrap().unwrap().status, BranchStatus::Deleted);
    assert!(world.ledger.branch_named("test/dev").await.unwrap().is_none(), "the name is free");
    world.restore("test/shared", Point::Head, "shared").await.unwrap();
    engine.drain().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_branch_with_a_time_to_live_takes_its_database_and_its_objects_along() {
    let world = World::new().await;
    let db = world.source();
    db.collection("orders").insert_one(doc! {"_id": 1}).await.unwrap();
    world.start().await;
    let engine = world.engine(&["--delete-grace", "0"]);
    world.bases(BRANCH, 1).await;
    let made = fork(&world.history(BRANCH).await, "test/short", Point::Head, None).await.unwrap();
    check_out(&world, "test/short", "shop_short", Some(Duration::from_secs(2))).await;
    let copy = world.client.database("shop_short");
    assert_eq!(oracle::snapshot(&copy).await.unwrap().hashes.len(), 1);
    wait_for("the branch to go", async || world.ledger.branch(&made.id).await.unwrap().is_none()).await;
    assert!(copy.list_collection_names().await.unwrap().is_empty());
    assert!(world.store.list(&format!("projects/test/branches/{}/", made.id), None, 10).await.unwrap().is_empty());
    assert!(world.ledger.capture_of(&made.id).await.unwrap().is_none());
    world.caught_up(BRANCH).await;
    assert_eq!(world.differences(BRANCH, Point::Head, &db).await, Vec::<String>::new());
    engine.drain().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn rule_18_what_expires_after_a_checkout_is_history_of_the_branch() {
    let world = World::new().await;
    let admin = world.client.database("admin");
    // Documents whose time is over must stay until the checkout.
    admin.run_command(doc! {"setParameter": 1, "ttlMonitorEnabled": false}).await.unwrap();
    let db = world.source();
    let clustered = doc! {"create": "clustered", "clusteredIndex": {"key": {"_id": 1}, "unique": true}, "expireAfterSeconds": 3_600i64};
    db.run_command(clustered).await.unwrap();
    let index = doc! {"createIndexes": "sessions", "indexes": [{"key": {"at": 1}, "name": "at", "expireAfterSeconds": 60}]};
    db.run_command(index).await.unwrap();
    let session = |n: i32| doc! {"_id": n, "at": bson::DateTime::from_millis(0)};
    db.collection("sessions").insert_many((0..50).map(session)).await.unwrap();
    world.start().await;
    let engine = world.engine(&[]);
    world.bases(BRANCH, 1).await;
    world.caught_up(BRANCH).await;
    fork(&world.history(BRANCH).await, "test/dev", Point::Head, None).await.unwrap();
    check_out(&world, "test/dev", "shop_dev", None).await;
    admin.run_command(doc! {"setParameter": 1, "ttlMonitorSleepSecs": 1}).await.unwrap();
    admin.run_command(doc! {"setParameter": 1, "ttlMonitorEnabled": true}).await.unwrap();
    let copy = world.client.database("shop_dev");
    let sessions = copy.collection::<Document>("sessions");
    wait_for("the sessions to expire", async || sessions.count_documents(doc! {}).await.unwrap() == 0).await;
    world.caught_up("test/dev").await;
    assert_eq!(world.differences("test/dev", Point::Head, &copy).await, Vec::<String>::new());

    // The expiry itself was set when the branch was captured already.
    let mut events = Vec::new();
    let dev = world.history("test/dev").await;
    log(&dev, &LogOptions::default(), |_, event| {
        events.push((event.get_str("operationType").unwrap_or("?").to_owned(), event.get_document("ns").cloned().unwrap_or_default()));
        Ok(true)
    })
    .await
    .unwrap();
    let of =
        |what: &str, coll: &str| events.iter().filter(|(op, ns)| op == what && ns.get_str("coll").is_ok_and(|name| name == coll)).count();
    let own = |coll: &str| (of("modify", coll), of("delete", coll));
    assert_eq!((own("sessions"), own("clustered")), ((1, 50), (1, 0)), "{events:?}");
    engine.drain().await;
}
