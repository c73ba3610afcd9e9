//! Captures that stop: on request, because their place in the oplog is gone, because the source is another one.

use argon::ledger::{BaseState, BranchStatus, CaptureState};
use mongodb::Client;
use mongodb::bson::{Document, doc};
use serde_json::json;

use crate::load::{Load, Mix};
use crate::world::{BRANCH, Engine, World, drain, other_deployment, until};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn capture_stop_and_start_goes_on() {
    let world = World::new("stopped").await;
    assert_eq!(world.start_capture().await["resumed"], json!(false));
    let mut engine = world.engine(&[]);
    let load = Load::start(&world.source(), Mix { seed: 6, ddl: true, tolerant: false }).await;
    world.progress(300).await;

    assert_eq!(world.json(&["capture", "stop", BRANCH]).await["state"], json!("stopped"));
    until("the engine lets the capture go", || async { world.capture().await.owner.is_none().then_some(()) }).await;
    let queued = world.queued().await.unwrap();
    let count = || async { world.source().collection::<Document>("load0").estimated_document_count().await.unwrap() };
    let before = count().await;
    until("the source has more while nobody captures", || async { (count().await >= before + 20).then_some(()) }).await;
    assert_eq!(world.queued().await, Some(queued), "a stopped capture stores nothing");

    assert_eq!(world.start_capture().await["resumed"], json!(true));
    world.progress(300).await;
    load.stop().await;
    world.check().await;
    drain(&mut engine).await;
}

/// Waits for the failure, and shows that the engine goes on with others and does not try again and again.
async fn failed_visibly(world: &World, engine: &mut Engine, bystander: &str) -> String {
    let reason = until("the capture has failed", || async {
        let capture = world.capture().await;
        (capture.state == CaptureState::Failed).then(|| capture.reason.unwrap_or_default())
    })
    .await;
    let branch = world.json(&["branch", "show", BRANCH]).await;
    assert_eq!(branch["status"], json!("failed"));
    assert!(branch["reason"].as_str().unwrap().contains(&reason), "{branch}");
    assert_eq!(world.branch().await.status, BranchStatus::Failed);
    let listed = world.json(&["capture", "list"]).await;
    assert_eq!((&listed["captures"][0]["state"], &listed["captures"][0]["reason"]), (&json!("failed"), &json!(reason)));

    // The same engine takes another capture and works on it, so it has looked at this one several times.
    until("nobody owns the failed capture", || async { world.capture().await.owner.is_none().then_some(()) }).await;
    let fence = world.capture().await.fence;
    let started = world.json(&["capture", "start", "crash/bystander", "--source-db", bystander]).await;
    let other = world.client.database(bystander).collection::<Document>("c");
    for _ in 0..3 {
        other.insert_one(doc! {}).await.unwrap();
        until("the other capture works", || async {
            let branch = world.ledger.branch(started["capture"]["branch_id"].as_str()?).await.ok()??;
            (branch.head.seq > other.count_documents(doc! {}).await.unwrap()).then_some(())
        })
        .await;
    }
    assert_eq!(engine.exited(), None, "{}", engine.log_tail(3000));
    assert_eq!(world.capture().await.fence, fence, "nobody has taken the failed capture again");
    assert_eq!(engine.stderr().matches("capture failed").count(), 1, "{}", engine.log_tail(3000));
    reason
}

/// Writes elsewhere until the oplog no longer reaches back to `stood`. It is cut at checkpoints only, which else come once a minute.
async fn roll(client: &Client, stood: mongodb::bson::Timestamp) {
    let oplog = client.database("local").collection::<Document>("oplog.rs");
    let filler = client.database("filler").collection::<Document>("c");
    until("the oplog has rolled over", || async {
        let batch: Vec<Document> = (0..30).map(|_| doc! { "x": "x".repeat(100_000) }).collect();
        filler.insert_many(batch).await.unwrap();
        client.database("admin").run_command(doc! { "fsync": 1 }).await.unwrap();
        let first = oplog.find_one(doc! {}).sort(doc! { "$natural": 1 }).await.unwrap().unwrap();
        (first.get_timestamp("ts").unwrap() > stood).then_some(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn oplog_rolled_over_is_a_gap_that_a_new_base_ends() {
    let world = World::new("rolled").await;
    let other = other_deployment().await;
    let client = Client::with_uri_str(other.uri()).await.unwrap();
    let source = client.database("rolled").collection::<Document>("c");
    let start = ["capture", "start", BRANCH, "--source-db", "rolled", "--source-uri", &other.uri()];
    world.json(&start).await;
    let mut engine = world.engine(&[]);
    source.insert_one(doc! { "_id": 1 }).await.unwrap();
    until("the first changes are committed", || async { world.head().await.filter(|head| *head == 2) }).await;
    drain(&mut engine).await;

    // Nobody follows, and the oplog forgets the place where the capture stood; what was written meanwhile is in no stream.
    source.insert_one(doc! { "_id": 2 }).await.unwrap();
    roll(&client, world.branch().await.head.time.into()).await;
    let mut engine = world.engine(&[]);
    let id = world.branch().await.id;
    until("a new base is made", || async {
        let bases = world.ledger.bases(&id).await.ok()?;
        bases.into_iter().find(|base| base.seq == 3 && base.state == BaseState::Complete)
    })
    .await;
    let lost = world.ledger.losses(&id, 1, 10).await.unwrap();
    assert!(lost.len() == 1 && (lost[0].first_seq, lost[0].last_seq) == (3, 3), "{lost:?}");
    source.insert_one(doc! { "_id": 3 }).await.unwrap();
    until("history goes on", || async { world.branch().await.head.seq.checked_sub(4) }).await;
    assert_eq!(world.branch().await.status, BranchStatus::Active, "what is lost is behind the new base");
    let back = world.target();
    assert_eq!(world.argon(&["restore", BRANCH, "--to-db", back.name()]).await.code, 0);
    assert_eq!(back.collection::<Document>("c").count_documents(doc! {}).await.unwrap(), 3);
    assert_eq!(world.argon(&["verify", BRANCH, "--deep"]).await.code, 0);

    // Whoever starts a stopped capture again is told what it will lead to.
    world.json(&["capture", "stop", BRANCH]).await;
    drain(&mut engine).await;
    roll(&client, world.branch().await.head.time.into()).await;
    let again = world.json(&start).await;
    assert!(again["notes"].to_string().contains("gap"), "{again}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn rule_7_another_deployment_behind_the_uri_is_refused() {
    let world = World::new("moved").await;
    let dir = tempfile::tempdir().unwrap();
    let (file, reference) = (dir.path().join("uri"), format!("file:{}", dir.path().join("uri").display()));
    std::fs::write(&file, world.uri()).unwrap();
    world.json(&["capture", "start", BRANCH, "--source-db", "moved", "--source-uri", &reference]).await;
    let mut engine = world.engine(&[]);
    world.source().collection("c").insert_one(doc! { "_id": 1 }).await.unwrap();
    until("the first changes are committed", || async { world.head().await.filter(|head| *head == 2) }).await;
    drain(&mut engine).await;

    // Its high-water tokens would be accepted there, silently, and its history would be another one's.
    std::fs::write(&file, other_deployment().await.uri()).unwrap();
    let mut engine = world.engine(&[]);
    let reason = failed_visibly(&world, &mut engine, "moved_by").await;
    assert!(reason.contains("another deployment"), "{reason}");
    assert_eq!(world.head().await, Some(2));
    drain(&mut engine).await;
}
