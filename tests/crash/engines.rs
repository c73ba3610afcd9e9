//! Two engines on one queue, and every way in which one stops.

use std::time::Duration;

use argon::devkit::{Mode, Proxy};
use argon::ledger::JobState;
use argon::runtime::clock;

use crate::load::{Load, Mix};
use crate::world::{Engine, LIMIT, World, drain, until};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_engines_share_the_queue_and_a_stopped_one_is_fenced() {
    let mut world = World::new("fence").await;
    let proxy = world.proxied().await;
    world.start_capture().await;
    let mut engines: Vec<Engine> = (0..2).map(|_| world.engine(&[("WORKER_POOL_SIZE", "1")])).collect();
    let load = Load::start(&world.source(), Mix { seed: 2, ddl: true, tolerant: false }).await;
    // A slow store: one engine alone cannot keep up, so both must be seen at work.
    proxy.set(Mode::Delay(Duration::from_millis(150)));
    for engine in &engines {
        let pid = format!("-{}-", engine.pid());
        until("both engines run jobs", || async {
            let running = world.jobs(Some(JobState::Running)).await;
            running.iter().any(|j| j.lease.as_ref().is_some_and(|l| l.engine.contains(&pid))).then_some(())
        })
        .await;
    }

    // The owner of the capture is frozen while it runs a job, and the other one takes both over.
    let owner = world.owner_among(&engines).await;
    let frozen = format!("-{}-", engines[owner].pid());
    until("the owner runs a job", || async {
        let running = world.jobs(Some(JobState::Running)).await;
        running.iter().any(|j| j.lease.as_ref().is_some_and(|l| l.engine.contains(&frozen))).then_some(())
    })
    .await;
    engines[owner].pause().unwrap();
    until("the other engine owns the capture", || async {
        let other = format!("-{}-", engines[1 - owner].pid());
        world.capture().await.owner.filter(|o| o.contains(&other))
    })
    .await;
    proxy.set(Mode::Pass);
    world.progress(200).await;

    engines[owner].resume().unwrap();
    engines[owner].wait_line("others took this process for dead", LIMIT).await.unwrap();
    engines[owner].wait_line("starting again as a new engine", LIMIT).await.unwrap();
    world.progress(200).await;
    let written = load.stop().await;
    let checked = world.check().await;
    assert!(checked.audit.changes >= written);
    for engine in &mut engines {
        drain(engine).await;
    }
    assert_eq!(world.ledger_is_left().await, (0, None), "nobody is left, nothing is owned");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sigterm_drains() {
    let mut world = World::new("term").await;
    let proxy = world.proxied().await;
    world.start_capture().await;
    let load = Load::start(&world.source(), Mix { seed: 3, ddl: false, tolerant: false }).await;

    // In the middle of the load: what was read is committed or in the queue, nothing is left running or owned.
    let mut engine = world.engine(&[]);
    world.progress(300).await;
    drain(&mut engine).await;
    assert_eq!(world.ledger_is_left().await, (0, None));
    assert_eq!(world.jobs(Some(JobState::Running)).await, []);
    let (head, queued) = (world.head().await.unwrap(), world.queued().await.unwrap());
    let waiting = world.jobs(Some(JobState::Ready)).await;
    let missing: u64 = (head + 1..=queued).filter(|seq| !covered(&waiting, *seq)).count() as u64;
    assert_eq!(missing, world.committed_beyond(head).await, "everything read is in history or in the queue");

    // The store hangs: a drain cannot end, so the deadline does it, and attempts are not used up.
    let mut engine = world.engine(&[("ARGON_SHUTDOWN_TIMEOUT", "1s")]);
    world.progress(300).await;
    hang(&proxy).await;
    let exit = engine.terminate(LIMIT).await.unwrap();
    assert_eq!(exit.code, 3, "{}", engine.log_tail(3000));
    given_back(&world).await;

    // A long deadline, but the operator signals again.
    proxy.set(Mode::Pass);
    let mut engine = world.engine(&[("ARGON_SHUTDOWN_TIMEOUT", "10m")]);
    world.progress(300).await;
    hang(&proxy).await;
    let _ = engine.terminate(Duration::ZERO).await;
    engine.wait_line("draining", LIMIT).await.unwrap();
    let second = clock::now();
    assert_eq!(engine.terminate(LIMIT).await.unwrap().code, 3, "{}", engine.log_tail(3000));
    assert!(second.elapsed() < Duration::from_secs(20), "the second signal took {:?}", second.elapsed());
    given_back(&world).await;

    proxy.set(Mode::Pass);
    load.stop().await;
    let mut engine = world.engine(&[]);
    world.check().await;
    drain(&mut engine).await;
}

/// From now on the store answers after a minute; returns when a job waits for it.
async fn hang(proxy: &Proxy) {
    let before = proxy.hits();
    proxy.set(Mode::Delay(Duration::from_secs(60)));
    until("a job waits for the store", || async { (proxy.hits() > before).then_some(()) }).await;
}

fn covered(jobs: &[argon::ledger::Job], seq: u64) -> bool {
    jobs.iter().filter_map(|j| j.sync.as_ref()).any(|s| (s.first_seq..=s.last_seq).contains(&seq))
}

/// After a deadline: leases are given back, and no attempt has been counted.
async fn given_back(world: &World) {
    assert_eq!(world.ledger_is_left().await, (0, None));
    for job in world.jobs(None).await.iter().filter(|j| j.state != JobState::Done) {
        assert!(matches!(job.state, JobState::Ready | JobState::Scheduled) && job.attempt == 0 && job.crashes == 0, "{job:?}");
    }
}
