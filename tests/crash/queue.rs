//! A job that cannot succeed: what the operator sees, and the two ways out.

use argon::devkit::{Mode, Proxy};
use argon::ledger::{Job, JobState};
use mongodb::bson::spec::BinarySubtype;
use mongodb::bson::{Binary, Document, doc};
use serde_json::json;

use crate::world::{BRANCH, Engine, World, drain, until};

/// Documents of one batch.
const BURST: i64 = 50;
const BURSTS: i64 = 6;

/// A capture with `BURSTS` batches of inserts, one of whose jobs is dead because its payload is damaged; all others are committed.
struct Stalled {
    world: World,
    engine: Engine,
    job: Job,
    payload: Document,
    /// Passes everything by now, but the engine still goes through it.
    _proxy: Proxy,
}

async fn stalled(name: &str) -> Stalled {
    let mut world = World::new(name).await;
    let proxy = world.proxied().await;
    world.start_capture().await;
    let mut engine = world.engine(&[]);
    world.source().run_command(doc! { "create": "c" }).await.unwrap();
    until("the creation is committed", || async { world.head().await.filter(|head| *head == 1) }).await;

    // Without a store the batches wait in the queue, and without an engine none of them is in work while it is damaged.
    proxy.set(Mode::Refuse);
    for burst in 0..BURSTS {
        let documents = (0..BURST).map(|n| doc! { "_id": burst * BURST + n });
        world.source().collection::<Document>("c").insert_many(documents).await.unwrap();
        let due = 1 + u64::try_from((burst + 1) * BURST).unwrap();
        until("the burst is in the queue", || async { world.queued().await.filter(|seq| *seq == due) }).await;
    }
    engine.kill9();
    let waiting = world.jobs(None).await.into_iter().filter(|j| j.state != JobState::Done);
    let victim = waiting.min_by_key(|j| j.sync.as_ref().unwrap().first_seq.abs_diff(100)).unwrap();
    let payloads = world.metadata().collection::<Document>("job_payloads");
    let mine = doc! { "_id.job": &victim.id };
    let payload = payloads.find_one(mine.clone()).await.unwrap().unwrap();
    let mut bytes = payload.get_binary_generic("data").unwrap().clone();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 0x10;
    let damaged = Binary { subtype: BinarySubtype::Generic, bytes };
    payloads.update_one(mine, doc! { "$set": { "data": damaged } }).await.unwrap();
    proxy.set(Mode::Pass);
    let engine = world.engine(&[]);

    let job = until("the job is dead", || async { world.jobs(Some(JobState::Dead)).await.pop() }).await;
    assert_eq!(job.id, victim.id);
    until("all others are committed", || async {
        let others = world.jobs(None).await.iter().filter(|j| j.id != job.id).all(|j| j.state == JobState::Done);
        others.then_some(())
    })
    .await;
    let first = job.sync.as_ref().unwrap().first_seq;
    assert_eq!(world.head().await, Some(first - 1), "the head is held");

    let shown = world.json(&["branch", "show", BRANCH]).await;
    assert_eq!(shown["status"], json!("stalled"));
    assert!(shown["reason"].as_str().unwrap().contains(&job.id), "{shown}");
    let listed = world.json(&["jobs", "list", "--state", "dead"]).await;
    assert_eq!((listed["jobs"].as_array().unwrap().len(), &listed["jobs"][0]["id"]), (1, &json!(job.id)));
    let detail = world.json(&["jobs", "show", &job.id]).await;
    assert_eq!((&detail["state"], &detail["attempt"], &detail["sync"]["first_seq"]), (&json!("dead"), &json!(1), &json!(first)));
    assert!(detail["errors"].as_array().unwrap().last().unwrap()["error"].as_str().unwrap().contains("payload"), "{detail}");

    // Capture goes on all the same.
    let queued = world.queued().await.unwrap();
    world.source().collection("c").insert_one(doc! { "_id": "later" }).await.unwrap();
    until("capture goes on", || async { world.queued().await.filter(|seq| *seq == queued + 1) }).await;
    Stalled { world, engine, job, payload, _proxy: proxy }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_dead_sync_job_stalls_the_branch_and_retry_heals_it() {
    let Stalled { world, mut engine, job, payload, _proxy } = stalled("retried").await;
    // A retry that cannot help ends where it began.
    world.json(&["jobs", "retry", &job.id]).await;
    until("the job is dead again", || async {
        let again = world.ledger.job(&job.id).await.unwrap().unwrap();
        (again.state == JobState::Dead && again.error_count > job.error_count).then_some(())
    })
    .await;

    let payloads = world.metadata().collection::<Document>("job_payloads");
    payloads.replace_one(doc! { "_id": payload.get("_id").unwrap() }, &payload).await.unwrap();
    let retried = world.json(&["jobs", "retry", "--all-dead"]).await;
    assert_eq!((&retried["matched"], &retried["changed"]), (&json!(1), &json!(1)), "{retried}");
    world.check().await;
    assert_eq!(world.json(&["branch", "show", BRANCH]).await["status"], json!("active"));
    drain(&mut engine).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn discard_makes_a_recorded_gap() {
    let Stalled { world, mut engine, job, _proxy, .. } = stalled("discarded").await;
    let spec = job.sync.as_ref().unwrap();
    let (first, last) = (spec.first_seq, spec.last_seq);
    let refused = world.argon(&["jobs", "discard", &job.id]).await;
    assert!(refused.code == 2 && refused.stderr.contains("--yes") && refused.stderr.contains(&format!("seq:{first}")), "{refused:?}");
    assert_eq!(world.ledger.job(&job.id).await.unwrap().unwrap().state, JobState::Dead);

    let discarded = world.json(&["jobs", "discard", &job.id, "--yes"]).await;
    assert_eq!((&discarded["outcome"], &discarded["job"]["id"]), (&json!("discarded"), &json!(job.id)), "{discarded}");
    let range = &discarded["job"]["sync"];
    assert_eq!((&range["first_seq"], &range["last_seq"]), (&json!(first), &json!(last)), "{discarded}");
    world.caught_up().await;
    let shown = world.json(&["branch", "show", BRANCH]).await;
    assert_eq!(shown["status"], json!("gap"));
    assert!(shown["reason"].as_str().unwrap().contains(&first.to_string()), "{shown}");
    assert_eq!(shown["restorable"], json!({ "from": "seq:1", "to": format!("seq:{}", first - 1) }), "{shown}");

    let target = world.target();
    let refused = world.argon(&["restore", BRANCH, "--to-db", target.name()]).await;
    assert!(refused.code == 1 && refused.stderr.contains("gap") && refused.stderr.contains("--across-gap"), "{refused:?}");
    assert_eq!(target.list_collection_names().await.unwrap(), Vec::<String>::new(), "a refused restore writes nothing");
    // Before the gap history is whole.
    let before = world.client.database("discarded_before");
    world.json(&["restore", BRANCH, "--to-db", before.name(), "--at", &format!("seq:{}", first - 1)]).await;
    assert_eq!(before.collection::<Document>("c").count_documents(doc! {}).await.unwrap(), first - 2);

    let report = world.json(&["restore", BRANCH, "--to-db", target.name(), "--across-gap"]).await;
    assert_eq!(report["left_out"], json!(last + 1 - first), "{report}");
    assert!(report["notes"].to_string().contains(&format!("seq:{first} to seq:{last}, a recorded gap")), "{report}");
    let all = world.source().collection::<Document>("c").count_documents(doc! {}).await.unwrap();
    assert_eq!(target.collection::<Document>("c").count_documents(doc! {}).await.unwrap(), all - (last + 1 - first));
    drain(&mut engine).await;
}
