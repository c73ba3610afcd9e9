//! Some of the collections: what is left out is neither copied nor followed, and a rename that crosses the line is right on both sides.

use argon::branch::point::Point;
use argon::ledger::Selection;
use bson::{Document, doc};

use crate::source::fill;
use crate::world::{BRANCH, World, wait_for};

async fn restored(world: &World) -> Vec<String> {
    let to = world.client.database("restored");
    to.drop().await.unwrap();
    world.restore(BRANCH, Point::Head, "restored").await.unwrap();
    let mut names = to.list_collection_names().await.unwrap();
    names.sort();
    names
}

async fn count(world: &World, coll: &str) -> u64 {
    world.client.database("restored").collection::<Document>(coll).count_documents(doc! {}).await.unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_left_out_is_left_out_and_renames_cross_the_line_safely() {
    let world = World::new().await;
    let (db, admin) = (world.source(), world.client.database("admin"));
    fill(&db, 1_000).await;
    let selection = Selection { include: vec!["orders".into(), "log_*".into(), "checked".into()], exclude: vec!["log_debug".into()] };
    world.start_some(selection).await;
    let engine = world.engine(&["--catalogue-interval", "500ms"]);
    world.bases(BRANCH, 1).await;
    for coll in ["orders", "log_a", "log_debug", "mixed", "other"] {
        db.collection(coll).insert_many((5_000..5_010).map(|n| doc! {"_id": n})).await.unwrap();
    }
    world.caught_up(BRANCH).await;
    assert_eq!(restored(&world).await, ["checked", "log_a", "orders"]);
    assert_eq!((count(&world, "orders").await, count(&world, "log_a").await), (1_010, 10));

    // Out: the collection is gone from history. Among what is left out: nothing happens.
    let rename = async |from: &str, to: &str| {
        admin.run_command(doc! {"renameCollection": format!("shop.{from}"), "to": format!("shop.{to}")}).await.unwrap();
    };
    rename("log_a", "elsewhere").await;
    rename("other", "another").await;
    db.collection("elsewhere").insert_one(doc! {"_id": 1}).await.unwrap();
    world.caught_up(BRANCH).await;
    assert_eq!(restored(&world).await, ["checked", "orders"]);

    // In: what it holds was never captured, so history has a gap there, and a new base has the collection whole.
    rename("elsewhere", "log_b").await;
    db.collection("log_b").insert_one(doc! {"_id": 2}).await.unwrap();
    world.bases(BRANCH, 2).await;
    db.collection("log_b").insert_one(doc! {"_id": 3}).await.unwrap();
    world.caught_up(BRANCH).await;
    wait_for("the new base", async || world.restore(BRANCH, Point::Head, "restored").await.is_ok()).await;
    assert_eq!(restored(&world).await, ["checked", "log_b", "orders"]);
    assert_eq!(count(&world, "log_b").await, 13);
    assert_eq!(world.history(BRANCH).await.branch.status, argon::ledger::BranchStatus::Active);
    world.verify(BRANCH).await;
    engine.drain().await;
}
