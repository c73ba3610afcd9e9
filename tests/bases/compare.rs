//! What the stream of a source does not tell of its catalogue is found by comparing.

use argon::branch::point::Point;
use argon::capture::MongoFeed;
use argon::capture::feed::ChangeFeed;
use argon::ledger::BaseOrigin;
use bson::{Document, doc};

use crate::source::{Writer, fill};
use crate::world::{BRANCH, World, wait_for};

#[tokio::test(flavor = "multi_thread")]
async fn rule_14_what_the_stream_does_not_tell_is_found_and_recorded() {
    let world = World::new().await;
    let db = world.source();
    fill(&db, 1_000).await;
    world.start().await;
    let engine = world.engine(&["--catalogue-interval", "500ms"]);
    world.bases(BRANCH, 1).await;
    Writer::start(&world.client, "shop", 1_000, 0).stop().await;
    world.caught_up(BRANCH).await;
    let head = world.history(BRANCH).await.branch.head.seq;
    engine.drain().await;
    assert_eq!(world.history(BRANCH).await.branch.head.seq, head, "a catalogue that is told needs nothing recorded");

    // A part of the stream that says nothing: what happens here is passed over by moving the position behind it.
    db.run_command(doc! {"createIndexes": "orders", "indexes": [{"key": {"new": 1}, "name": "new_1", "sparse": true}]}).await.unwrap();
    db.run_command(doc! {"dropIndexes": "orders", "index": "x"}).await.unwrap();
    db.run_command(doc! {"collMod": "checked", "validator": {"n": {"$gte": -5}}, "validationLevel": "strict"}).await.unwrap();
    db.run_command(doc! {"create": "view", "viewOn": "mixed", "pipeline": []}).await.unwrap();
    db.run_command(doc! {"drop": "seen"}).await.unwrap();
    db.run_command(doc! {"drop": "collated"}).await.unwrap();
    let admin = world.client.database("admin");
    admin.run_command(doc! {"renameCollection": "shop.clustered", "to": "shop.moved"}).await.unwrap();
    let feed = MongoFeed::new(world.client.clone(), "shop");
    let mut cursor = feed.open(None).await.unwrap();
    let token = Document::try_from(cursor.next().await.unwrap().token().unwrap()).unwrap();
    let captures = world.client.database("argon").collection::<Document>("captures");
    captures.update_one(doc! {}, doc! {"$set": {"position.token": token}}).await.unwrap();

    let engine = world.engine(&["--catalogue-interval", "500ms"]);
    wait_for("what was not told", async || world.history(BRANCH).await.branch.head.seq > head).await;
    world.caught_up(BRANCH).await;
    assert_eq!(world.differences(BRANCH, Point::Head, &db).await, Vec::<String>::new());
    assert_eq!(world.history(BRANCH).await.branch.head.seq, head + 1, "it is said once");

    // History goes on, and a collection that came by itself is copied.
    Writer::start(&world.client, "shop", 1_000, 100).stop().await;
    world.caught_up(BRANCH).await;
    engine.drain().await;
    db.collection("hidden").insert_many((0..50).map(|n| doc! {"_id": n})).await.unwrap();
    let mut cursor = feed.open(None).await.unwrap();
    let token = Document::try_from(cursor.next().await.unwrap().token().unwrap()).unwrap();
    captures.update_one(doc! {}, doc! {"$set": {"position.token": token}}).await.unwrap();
    let engine = world.engine(&["--catalogue-interval", "500ms"]);
    let bases = world.bases(BRANCH, 2).await;
    assert_eq!(bases[1].origin, BaseOrigin::Copy);
    let writer = Writer::start(&world.client, "shop", 1_000, 200);
    writer.stop().await;
    world.caught_up(BRANCH).await;
    assert_eq!(world.differences(BRANCH, Point::Head, &db).await, Vec::<String>::new());
    world.verify(BRANCH).await;
    engine.drain().await;
}
