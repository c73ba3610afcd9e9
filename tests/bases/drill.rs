//! A drill proves what it says, sees what is wrong, and leaves nothing behind.

use std::sync::Arc;
use std::time::Duration;

use argon::branch::drill::{DrillOptions, drill, scratch_name};
use argon::branch::point::Point;
use argon::branch::view::BranchView;
use argon::jobs::drill as job;
use argon::ledger::{JobFilter, JobKind, JobState};
use bson::{Document, doc};

use crate::source::{Writer, fill};
use crate::world::{BRANCH, World, wait_for};

async fn databases(world: &World) -> Vec<String> {
    let all = world.client.list_database_names().await.unwrap();
    all.into_iter().filter(|name| name.starts_with("argon_drill_")).collect()
}

fn options(world: &World, id: &str) -> DrillOptions {
    let scratch = world.client.database(&scratch_name(id));
    DrillOptions { scratch, source: Some(world.source()), at: None, budget: 64 << 20, temp_dir: world.dir.path().to_path_buf() }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_drill_proves_a_point_and_a_damaged_base_does_not_pass() {
    let world = World::new().await;
    let db = world.source();
    fill(&db, 3_000).await;
    world.start().await;
    let engine = world.engine(&[]);
    world.bases(BRANCH, 1).await;
    Writer::start(&world.client, "shop", 3_000, 0).stop().await;
    world.caught_up(BRANCH).await;
    let id = world.ledger.branch_named(BRANCH).await.unwrap().unwrap().id;

    // As a job, while the source is written to: its point is in the past, and so is what it is compared with.
    let writer = Writer::start(&world.client, "shop", 3_000, 1_000);
    assert!(job::enqueue(&world.ledger, &id).await.unwrap());
    let drills = JobFilter { kind: Some(JobKind::Drill), ..JobFilter::default() };
    let began = argon::runtime::clock::now();
    while world.ledger.branch(&id).await.unwrap().unwrap().proven.is_none() {
        let jobs = world.ledger.jobs(&drills, 5).await.unwrap();
        let is_over = jobs.iter().any(|job| job.state == JobState::Dead) || began.elapsed() > Duration::from_secs(300);
        assert!(!is_over, "the drill has proven nothing: {jobs:#?}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    writer.stop().await;
    let proven = world.ledger.branch(&id).await.unwrap().unwrap().proven.unwrap();
    assert!(proven.documents > 3_000 && proven.with.contains("with the source at"), "{proven:?}");
    assert_eq!(databases(&world).await, Vec::<String>::new());
    assert_eq!(BranchView::load(&*world.ledger, &id).await.unwrap().proven.unwrap().seq, proven.seq);
    world.caught_up(BRANCH).await;

    // A document that the stream never told of: the source differs from history, and the drill says where.
    let quiet = drill(&world.history(BRANCH).await, &options(&world, "one"), Arc::default()).await.unwrap();
    assert!(quiet.compared.identical && quiet.compared_with.contains("with the source"), "{quiet:?}");
    // Between an insert into a full capped collection and the removal of its oldest, history has one more than any copy can.
    db.collection("capped").insert_one(doc! {"_id": "one more", "n": 1}).await.unwrap();
    world.caught_up(BRANCH).await;
    let history = world.history(BRANCH).await;
    let between = DrillOptions { at: Some(Point::Seq(history.line().head() - 1)), ..options(&world, "between") };
    let found = drill(&history, &between, Arc::default()).await.unwrap();
    assert!(found.compared.identical, "{found:?}");

    engine.drain().await;
    db.collection::<Document>("checked").update_one(doc! {"_id": 7}, doc! {"$set": {"n": 700}}).await.unwrap();
    let history = world.history(BRANCH).await;
    // What has been captured says nothing of that change, so history stays as it was; a source that is "then" what it is now differs.
    let then = world.now().await;
    let mut lied = history.clone();
    lied.captured_until = Some(then);
    let before = world.ledger.branch(&id).await.unwrap().unwrap().proven;
    let at_head = DrillOptions { at: Some(Point::Head), ..options(&world, "two") };
    let found = drill(&lied, &at_head, Arc::default()).await.unwrap();
    let places: Vec<&str> = found.compared.differences.iter().map(|d| d.place.as_str()).collect();
    assert!(!found.compared.identical && places == ["checked"], "{found:?}");
    assert_eq!(world.ledger.branch(&id).await.unwrap().unwrap().proven, before, "nothing is proven by it");

    // A part of the base is damaged: the job is dead, names it, and is not asked for again.
    let base = std::fs::read_dir(world.dir.path().join(format!("projects/test/branches/{id}/bases"))).unwrap().next().unwrap().unwrap();
    let part =
        std::fs::read_dir(base.path()).unwrap().map(|f| f.unwrap().path()).find(|f| f.extension().is_some_and(|e| e == "seg")).unwrap();
    let mut bytes = std::fs::read(&part).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    std::fs::write(&part, bytes).unwrap();
    let engine = world.engine(&[]);
    assert!(job::enqueue(&world.ledger, &id).await.unwrap());
    let dead = JobFilter { state: Some(JobState::Dead), kind: Some(JobKind::Drill), ..JobFilter::default() };
    wait_for("a dead drill", async || !world.ledger.jobs(&dead, 5).await.unwrap().is_empty()).await;
    let jobs = world.ledger.jobs(&dead, 5).await.unwrap();
    let name = part.file_name().unwrap().to_str().unwrap();
    assert!(jobs[0].errors.iter().any(|e| e.error.contains(name)), "{:?}", jobs[0].errors);
    assert_eq!(databases(&world).await, Vec::<String>::new());
    engine.drain().await;
}
