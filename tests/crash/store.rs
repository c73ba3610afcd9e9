//! The store is away, or loses its answers.

use argon::devkit::Mode;
use argon::ledger::JobState;
use serde_json::Value;

use crate::load::{Load, Mix};
use crate::world::{BRANCH, World, drain, until};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn store_outage() {
    let mut world = World::new("outage").await;
    let proxy = world.proxied().await;
    world.start_capture().await;
    // No retry at all: an outage that used up attempts would kill jobs.
    let mut engine = world.engine(&[("JOB_RETRY_COUNT", "0")]);
    let load = Load::start(&world.source(), Mix { seed: 5, ddl: true, tolerant: false }).await;
    world.progress(300).await;

    proxy.set(Mode::Refuse);
    let errors = || async { world.jobs(None).await.iter().map(|j| j.error_count).sum::<u32>() };
    until("jobs have failed for a while", || async { (errors().await >= 5).then_some(()) }).await;
    let (head, queued) = (world.head().await.unwrap(), world.queued().await.unwrap());
    until("capture goes on meanwhile", || async { world.queued().await.filter(|now| *now > queued + 300) }).await;
    assert_eq!(world.head().await, Some(head), "nothing is committed without a store");
    // Everything is as it should be, and yet whoever asks is told what is waited for.
    let reason = |shown: &Value| shown["reason"].as_str().unwrap_or_default().to_owned();
    let shown = world.json(&["branch", "show", BRANCH]).await;
    let listed = world.json(&["capture", "list"]).await;
    for waits in [&shown, &listed["captures"][0]] {
        assert!(reason(waits).contains("waiting at seq:") && reason(waits).contains("s3://"), "{waits}");
    }
    assert_eq!((shown["status"].as_str(), listed["captures"][0]["state"].as_str()), (Some("active"), Some("running")));
    for job in world.jobs(None).await {
        assert!(job.attempt <= 1 && job.crashes == 0 && job.state != JobState::Dead, "{job:?}");
    }
    proxy.set(Mode::Pass);
    let backlog = world.queued().await.unwrap();
    until("the backlog is committed", || async { world.head().await.filter(|head| *head >= backlog) }).await;

    // Stored, but the answer is lost: the same attempt finds its own object and adopts it.
    let mark = world.queued().await.unwrap();
    let before = proxy.hits();
    proxy.set_when(Mode::DropAnswer, b"PUT /", 5);
    until("five answers are lost", || async { (proxy.hits() >= before + 5).then_some(()) }).await;
    load.stop().await;
    let checked = world.check().await;
    assert_eq!(checked.audit.orphans, 0, "what was stored was adopted");
    for job in world.jobs(None).await {
        let after = job.sync.as_ref().is_some_and(|s| s.first_seq > mark);
        assert!(job.attempt == 1 && (!after || job.error_count == 0), "{job:?}");
    }
    assert_eq!(reason(&world.json(&["branch", "show", BRANCH]).await), "");
    drain(&mut engine).await;
}
