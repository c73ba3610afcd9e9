//! A database that is in use is copied while it is written to, whatever is in it and whoever dies meanwhile.

use argon::branch::point::Point;
use argon::jobs::snapshot;
use argon::ledger::{BaseOrigin, BaseState};

use crate::source::{Writer, fill};
use crate::world::{BRANCH, World, wait_for};

#[tokio::test(flavor = "multi_thread")]
async fn rules_10_to_13_a_database_in_use_comes_back_as_it_is() {
    let world = World::new().await;
    let (db, documents) = (world.source(), 20_000);
    fill(&db, documents).await;
    let writer = Writer::start(&world.client, "shop", documents, 0);
    let started = world.start().await;
    assert_eq!(started.base.unwrap().state, BaseState::Copying);
    let before = world.restore(BRANCH, Point::Head, "early").await.unwrap_err();
    assert!(before.what.contains("still being copied"), "{before}");
    let engine = world.engine(&[]);
    let bases = world.bases(BRANCH, 1).await;
    assert_eq!((bases[0].origin, bases[0].seq), (BaseOrigin::Copy, 0));
    assert!(bases[0].documents > 20_000 && bases[0].objects >= 8, "{bases:?}");
    // At the consistency point, and before the writer had done what it did while it was copied.
    let consistent = bases[0].consistent_at;
    world.restore(BRANCH, Point::Time(consistent), "then").await.unwrap();
    let early = world.restore(BRANCH, Point::Seq(1), "early").await.unwrap_err();
    assert!(early.what.contains(&consistent.to_string()), "{early}");
    assert!(writer.stop().await > 10);
    world.caught_up(BRANCH).await;
    assert_eq!(world.differences(BRANCH, Point::Head, &db).await, Vec::<String>::new());
    world.verify(BRANCH).await;

    // The same from a base that was folded from the bucket, and from what came after it.
    let id = world.ledger.branch_named(BRANCH).await.unwrap().unwrap().id;
    assert!(snapshot::enqueue_fold(&world.ledger, &id).await.unwrap());
    let bases = world.bases(BRANCH, 2).await;
    assert_eq!((bases[1].origin, bases[1].seq), (BaseOrigin::Fold, world.history(BRANCH).await.branch.head.seq));
    assert_eq!(world.differences(BRANCH, Point::Head, &db).await, Vec::<String>::new());
    let writer = Writer::start(&world.client, "shop", documents, 1_000);
    wait_for("more history", async || world.history(BRANCH).await.branch.head.seq > bases[1].seq + 100).await;
    writer.stop().await;
    world.caught_up(BRANCH).await;
    assert_eq!(world.differences(BRANCH, Point::Head, &db).await, Vec::<String>::new());
    world.verify(BRANCH).await;
    engine.drain().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_copy_that_was_cut_off_goes_on_behind_the_last_chunk() {
    let world = World::new().await;
    let (db, documents) = (world.source(), 60_000);
    fill(&db, documents).await;
    let started = world.start().await;
    let base = started.base.unwrap();
    // Slow enough to be cut off in the middle, several times.
    let writer = Writer::start(&world.client, "shop", documents, 0);
    let mut seen = 0;
    for _ in 0..3 {
        let engine = world.engine(&["--base-rate", "4MiB", "--base-readers", "1"]);
        wait_for("another chunk", async || world.ledger.base(&base.id).await.unwrap().unwrap().documents > seen).await;
        engine.drain().await;
        let now = world.ledger.base(&base.id).await.unwrap().unwrap();
        assert!(now.documents > seen && now.expected_documents > 60_000, "{now:?}");
        if now.state == BaseState::Complete {
            break;
        }
        seen = now.documents;
    }
    let engine = world.engine(&[]);
    world.bases(BRANCH, 1).await;
    writer.stop().await;
    world.caught_up(BRANCH).await;
    assert_eq!(world.differences(BRANCH, Point::Head, &db).await, Vec::<String>::new());
    world.verify(BRANCH).await;
    engine.drain().await;
}
