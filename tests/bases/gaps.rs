//! What the source no longer serves becomes a gap with exact bounds, and a new base ends it.

use argon::branch::layout::segment_l0;
use argon::branch::point::Point;
use argon::branch::view::BranchView;
use argon::devkit::MongodOptions;
use argon::jobs::cleanup;
use argon::ledger::{Base, BaseOrigin, BaseState, BranchStatus, JobFilter, JobKind, JobState};
use argon::store::PutTag;
use bson::{Document, doc};

use crate::world::{BRANCH, World, wait_for};

/// Writes until the oplog has rolled past what is known.
async fn roll(world: &World) {
    let oplog = world.client.database("local").collection::<Document>("oplog.rs");
    let known = world.ledger.captures().await.unwrap()[0].position.clone();
    let known = argon::change::token_time(&known.token).unwrap();
    let noise = world.client.database("noise").collection::<Document>("noise");
    loop {
        noise.insert_many((0..40).map(|n| doc! {"n": n, "pad": "x".repeat(200_000)})).await.unwrap();
        noise.drop().await.unwrap();
        let oldest = oplog.find_one(doc! {}).sort(doc! {"$natural": 1}).await.unwrap().unwrap();
        if argon::change::ClusterTime::from(oldest.get_timestamp("ts").unwrap()) > known {
            return;
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_oplog_that_has_rolled_over_makes_a_gap_and_a_new_base_by_itself() {
    let options = MongodOptions { oplog_mb: 16, ..MongodOptions::default() };
    let world = World::with(options).await;
    let db = world.source();
    world.start().await;
    let engine = world.engine(&[]);
    db.collection("orders").insert_many((0..500).map(|n| doc! {"_id": n})).await.unwrap();
    world.caught_up(BRANCH).await;
    engine.drain().await;
    let before = world.history(BRANCH).await.branch.head.seq;

    db.collection::<Document>("orders").delete_many(doc! {"_id": {"$lt": 100}}).await.unwrap();
    db.collection("lost").insert_one(doc! {"_id": 1}).await.unwrap();
    roll(&world).await;
    let engine = world.engine(&[]);
    let bases = world.bases(BRANCH, 2).await;
    assert_eq!((bases[1].origin, bases[1].seq), (BaseOrigin::Copy, before + 1));
    db.collection("orders").insert_one(doc! {"_id": "after"}).await.unwrap();
    world.caught_up(BRANCH).await;
    assert_eq!(world.differences(BRANCH, Point::Head, &db).await, Vec::<String>::new());
    world.verify(BRANCH).await;

    // What can be restored is told, and what is between is refused with it.
    let view = BranchView::load(&*world.ledger, BRANCH).await.unwrap();
    assert_eq!((view.status, view.earlier.len()), (BranchStatus::Active, 1), "{view:?}");
    assert_eq!(view.earlier[0].to, format!("seq:{before}"));
    world.restore(BRANCH, Point::Seq(before), "then").await.unwrap();
    let gap = world.ledger.losses(&view.id, 0, 10).await.unwrap().remove(0);
    for inside in [gap.first_time, gap.last_time.before()] {
        let refused = world.restore(BRANCH, Point::Time(inside), "never").await.unwrap_err();
        assert!(refused.what.contains(&view.earlier[0].to), "{inside}: {refused}");
    }
    engine.drain().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_bases_leave_behind_that_were_given_up_is_removed() {
    let world = World::new().await;
    let db = world.source();
    db.collection("orders").insert_many((0..50).map(|n| doc! {"_id": n})).await.unwrap();
    let id = world.start().await.branch.id;
    let engine = world.engine(&["--delete-grace", "0"]);
    let kept = world.bases(BRANCH, 1).await.remove(0);
    // A copy that was given up, and a fold that was cut off before it had a row.
    let given_up = Base { origin: BaseOrigin::Copy, state: BaseState::Copying, ..Base::empty("given-up", &id, kept.time, String::new()) };
    world.ledger.create_base(&given_up).await.unwrap();
    world.ledger.abandon_base("given-up", "a test").await.unwrap();
    let prefix = format!("projects/test/branches/{id}/bases/");
    let tag = PutTag { sha256: [1; 32], put_id: "x".into() };
    for base in ["given-up", "cut-off", "whole"] {
        world.store.put_new(&format!("{prefix}{:016x}-{base}/x.seg", 7), b"x".to_vec().into(), &tag).await.unwrap();
    }
    // One with a manifest may be what a rebuild could not use: it is left to people.
    let manifest = format!("{prefix}{:016x}-whole/manifest.json", 7);
    world.store.put_new(&manifest, b"{}".to_vec().into(), &tag).await.unwrap();
    wait_for("their objects to go", async || world.ledger.base("given-up").await.unwrap().is_none()).await;
    let left = world.store.list(&prefix, None, 100).await.unwrap();
    let is_kept = |key: &str| key.contains(&kept.id) || key.contains("-whole/");
    assert!(left.len() >= 4 && left.iter().all(|object| is_kept(&object.key)), "{left:?}");
    world.verify(BRANCH).await;
    assert_eq!(world.differences(BRANCH, Point::Head, &db).await, Vec::<String>::new());
    engine.drain().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn uploads_that_were_never_committed_are_removed_and_nothing_else() {
    let world = World::new().await;
    let db = world.source();
    let id = world.start().await.branch.id;
    let engine = world.engine(&["--delete-grace", "0"]);
    for n in 0..3 {
        db.collection("orders").insert_many((0..50).map(|i| doc! {"_id": n * 50 + i})).await.unwrap();
        world.caught_up(BRANCH).await;
    }
    let rows = world.ledger.segments(&id, 1, 100).await.unwrap();
    let (row, head) = (&rows[rows.len() / 2], rows.last().unwrap().last_seq);
    let put = async |epoch: u64, first: u64, last: u64| {
        let key = segment_l0("test", &id, epoch, first, last, &[7; 32]);
        world.store.put_new(&key, b"x".to_vec().into(), &PutTag { sha256: [7; 32], put_id: "x".into() }).await.unwrap();
        key
    };
    // Of the job of a row, in the middle of one, across several; and what is not committed yet, and what another epoch has left.
    let mut orphans = vec![
        put(row.epoch, row.first_seq, row.last_seq).await,
        put(row.epoch, row.first_seq, row.first_seq).await,
        put(row.epoch, 1, head).await,
    ];
    let kept = [put(row.epoch, head, head + 1).await, put(row.epoch, head + 1, head + 5).await, put(row.epoch + 1, 1, 5).await];
    assert!(cleanup::enqueue(&world.ledger, &id).await.unwrap());
    wait_for("the orphans to go", async || {
        for key in &orphans {
            if world.store.head(key).await.unwrap().is_some() {
                return false;
            }
        }
        true
    })
    .await;
    engine.drain().await;
    for key in kept.iter().chain(rows.iter().map(|row| &row.key)) {
        assert!(world.store.head(key).await.unwrap().is_some(), "{key}");
    }

    // Within the grace nothing is touched.
    orphans.clear();
    orphans.push(put(row.epoch, row.first_seq, row.first_seq).await);
    let engine = world.engine(&["--delete-grace", "1h"]);
    cleanup::enqueue(&world.ledger, &id).await.unwrap();
    wait_for("the job to end", async || {
        world
            .ledger
            .jobs(&JobFilter { kind: Some(JobKind::Cleanup), ..JobFilter::default() }, 10)
            .await
            .unwrap()
            .iter()
            .all(|job| job.state == JobState::Done)
    })
    .await;
    assert!(world.store.head(&orphans[0]).await.unwrap().is_some());
    world.verify(BRANCH).await;
    engine.drain().await;
}
