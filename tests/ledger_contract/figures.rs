//! Figures of the queue, the wishes of operators, who leads.

use std::collections::BTreeMap;
use std::time::Duration;

use argon::ledger::*;

use crate::bench::{Bench, beat, commit, lease, segment};
use crate::queue::new_job;

const MS: Duration = Duration::from_millis(1);
const HOUR: Duration = Duration::from_secs(3_600);

fn of(kind: JobKind, n: u64) -> BTreeMap<JobKind, u64> {
    BTreeMap::from([(kind, n)])
}

pub(crate) async fn the_queue_is_counted_by_state_and_kind(b: Bench) {
    assert_eq!(b.ledger.queue_stats().await.unwrap(), QueueStats::default());
    let mut line = b.line("e1").await;
    b.put_noops(4).await;
    let first = b.claim_kind("e1", JobKind::Noop, 2).await;
    b.ledger.fail(&lease(&first[0]), &Failed::Dead { error: "x".to_owned() }).await.unwrap();
    b.pass(30 * MS).await;
    line.put(1).await;
    b.ledger.enqueue(&[NewJob { delay: HOUR, ..new_job(JobKind::Cleanup) }]).await.unwrap();
    b.ledger.refresh_queue_stats().await.unwrap();
    let stats = b.ledger.queue_stats().await.unwrap();
    assert_eq!(stats.ready.by_kind, BTreeMap::from([(JobKind::Noop, 2), (JobKind::Sync, 1)]));
    assert_eq!((stats.ready.total(), stats.ready.as_of_ms, stats.ready.at_least), (3, None, false), "few are counted");
    assert_eq!((stats.running.by_kind, stats.dead.by_kind), (of(JobKind::Noop, 1), of(JobKind::Noop, 1)));
    assert_eq!(stats.scheduled.by_kind, of(JobKind::Cleanup, 1));
    assert_eq!(stats.oldest_ready.keys().copied().collect::<Vec<_>>(), [JobKind::Sync, JobKind::Noop]);
    assert!(stats.oldest_ready[&JobKind::Noop] >= 30 * MS, "{:?}", stats.oldest_ready);
    assert!(stats.oldest_ready[&JobKind::Sync] < stats.oldest_ready[&JobKind::Noop]);
}

pub(crate) async fn no_end_of_a_process_loses_or_doubles_a_count(b: Bench) {
    let counters = async || b.ledger.queue_stats().await.unwrap().counters;
    let mut line = b.line("e1").await;
    b.beat("e1").await;
    b.beat("e2").await;
    for engine in ["e1", "e2"] {
        b.put_noops(3).await;
        line.put(1).await;
        let noops = b.claim_kind(engine, JobKind::Noop, 3).await;
        assert_eq!(b.finish(engine, &noops[..1]).await, [Finished::Now]);
        b.ledger.fail(&lease(&noops[1]), &Failed::Retry { delay: HOUR, error: "x".to_owned() }).await.unwrap();
        b.ledger.fail(&lease(&noops[2]), &Failed::Dead { error: "x".to_owned() }).await.unwrap();
        let sync = b.claim(engine, 1).await;
        b.ledger.commit(&[commit(&sync[0])]).await.unwrap();
        b.ledger.commit(&[commit(&sync[0])]).await.unwrap();
        b.ledger.retry_job(&noops[2].id).await.unwrap();
        b.ledger.cancel_job(&noops[2].id).await.unwrap();
    }
    line.put(1).await;
    let discarded = b.claim("e1", 1).await.remove(0);
    b.ledger.fail(&lease(&discarded), &Failed::Dead { error: "x".to_owned() }).await.unwrap();
    b.ledger.discard_job(&discarded.id, &segment(&discarded, SegmentKind::Gap)).await.unwrap();
    let expected = Counters {
        done: BTreeMap::from([(JobKind::Noop, 2), (JobKind::Sync, 2)]),
        failed: BTreeMap::from([(JobKind::Noop, 4), (JobKind::Sync, 1)]),
        dead: BTreeMap::from([(JobKind::Noop, 2), (JobKind::Sync, 1)]),
        cancelled: BTreeMap::from([(JobKind::Noop, 2), (JobKind::Sync, 1)]),
        revived: of(JobKind::Noop, 2),
    };
    assert_eq!(counters().await, expected);
    // One dies, one leaves, one is a zombie that goes on counting after its document is gone.
    b.ledger.rescue("e2", None, &["e1".to_owned()]).await.unwrap();
    assert_eq!(counters().await, expected);
    b.faulty.script(LedgerCall::Retire, Mishap::AnswerLost);
    b.faulty.retire("e2").await.unwrap_err();
    b.faulty.retire("e2").await.unwrap();
    assert_eq!(counters().await, expected);
    b.put_noops(1).await;
    let late = b.claim_kind("e1", JobKind::Noop, 1).await;
    assert_eq!(b.finish("e1", &late).await, [Finished::Now]);
    let expected = Counters { done: BTreeMap::from([(JobKind::Noop, 3), (JobKind::Sync, 2)]), ..expected };
    assert_eq!(counters().await, expected);
    b.ledger.rescue("e3", None, &[]).await.unwrap();
    b.ledger.rescue("e3", None, &[]).await.unwrap();
    assert_eq!(counters().await, expected);
    // Finished jobs go; what they were counted as stays.
    b.pass(2 * MS).await;
    assert!(b.ledger.sweep_jobs(Duration::ZERO, 100).await.unwrap() > 0);
    assert_eq!(counters().await, expected);
}

pub(crate) async fn a_crash_loop_is_counted_as_dead(b: Bench) {
    b.put_noops(1).await;
    for n in 0..3 {
        let engine = format!("dies{n}");
        b.beat(&engine).await;
        assert_eq!(b.claim_with(&ClaimRequest::new(&engine, &[JobKind::Noop], 1).alone(true).start(1)).await.len(), 1);
        b.ledger.rescue("e1", None, &[engine]).await.unwrap();
    }
    let counters = b.ledger.queue_stats().await.unwrap().counters;
    assert_eq!((counters.dead, counters.failed), (of(JobKind::Noop, 1), BTreeMap::new()));
}

pub(crate) async fn one_engine_leads_until_its_lease_ends(b: Bench) {
    let lease = Duration::from_millis(400);
    assert_eq!(b.ledger.leader().await.unwrap(), None);
    let racers = (0..8).map(|n| {
        let ledger = b.ledger.clone();
        tokio::spawn(async move { ledger.lead(&format!("$e{n}"), HOUR).await.unwrap() })
    });
    let mut led = 0;
    for racer in racers.collect::<Vec<_>>() {
        led += usize::from(racer.await.unwrap());
    }
    assert_eq!(led, 1);
    let first = b.ledger.leader().await.unwrap().unwrap();
    b.ledger.step_down("nobody").await.unwrap();
    assert!(!b.ledger.lead("e2", lease).await.unwrap());
    b.ledger.step_down(&first).await.unwrap();
    assert_eq!(b.ledger.leader().await.unwrap(), None);
    assert!(b.ledger.lead("e2", lease).await.unwrap());
    assert!(b.ledger.lead("e2", lease).await.unwrap(), "it renews");
    assert!(!b.ledger.lead("e3", lease).await.unwrap());
    b.pass(lease).await;
    assert_eq!(b.ledger.leader().await.unwrap(), None, "it did not renew in time");
    assert!(b.ledger.lead("e3", HOUR).await.unwrap());
    assert!(!b.ledger.lead("e2", HOUR).await.unwrap(), "and is the leader no more");
    // Death and leave free it at once.
    b.beat("e3").await;
    b.ledger.rescue("e4", None, &["e3".to_owned()]).await.unwrap();
    assert!(b.ledger.lead("e4", HOUR).await.unwrap());
    b.ledger.retire("e4").await.unwrap();
    assert!(b.ledger.lead("e5", HOUR).await.unwrap());
    b.ledger.retire("e4").await.unwrap();
    assert_eq!(b.ledger.leader().await.unwrap().as_deref(), Some("e5"));
}

pub(crate) async fn wishes_reach_every_engine(b: Bench) {
    assert_eq!(b.ledger.controls().await.unwrap(), Controls::default());
    let before = b.ledger.now_ms().await.unwrap();
    let targets = [PauseTarget::All, PauseTarget::Kind(JobKind::Cleanup), PauseTarget::Branch("b/1".to_owned())];
    for target in &targets {
        b.ledger.set_pause(target, true, "$me").await.unwrap();
        b.ledger.set_pause(target, true, "another").await.unwrap();
    }
    let pauses = b.ledger.pauses().await.unwrap();
    assert_eq!(pauses.0.keys().cloned().collect::<Vec<_>>(), targets);
    assert!(pauses.0.values().all(|note| note.by == "$me" && note.at_ms >= before), "the first note stays: {pauses:?}");
    b.ledger.set_pause(&targets[0], false, "another").await.unwrap();
    b.ledger.set_pause(&targets[0], false, "another").await.unwrap();
    assert_eq!(b.ledger.pauses().await.unwrap().0.len(), 2);

    b.ledger.set_scale(Some(8), Some(Duration::from_millis(500)), "$me").await.unwrap();
    let wish = b.ledger.controls().await.unwrap().scale.unwrap();
    assert_eq!((wish.target, wish.by.as_str()), (8, "$me"));
    assert!(wish.left.unwrap() <= Duration::from_millis(500) && wish.at_ms >= before);
    b.pass(Duration::from_millis(500)).await;
    assert_eq!(b.ledger.controls().await.unwrap().scale, None, "its time is over");
    b.ledger.set_scale(Some(3), None, "me").await.unwrap();
    let newer = b.ledger.controls().await.unwrap().scale.unwrap();
    assert_eq!((newer.target, newer.left), (3, None));
    assert!(newer.at_ms > wish.at_ms, "a new wish is told from an old one");
    b.ledger.set_scale(None, None, "me").await.unwrap();
    assert_eq!(b.ledger.controls().await.unwrap().scale, None);
    assert_eq!(b.ledger.pauses().await.unwrap().0.len(), 2, "pauses are no matter of it");
}

pub(crate) async fn a_heartbeat_tells_what_its_process_does(b: Bench) {
    let worker = WorkerRow {
        name: "sync-worker-0".to_owned(),
        kind: Some(JobKind::Sync),
        processed: 3,
        p99_ms: 4.5,
        busy: true,
        ..WorkerRow::default()
    };
    let status = EngineStatus {
        version: "$version".to_owned(),
        pool: PoolRow { target: 5, current: 4, min: 1, max: 20, pin: Some(PinRow { target: 5, until_ms: Some(9) }) },
        workers: vec![worker; 24],
        slots: vec![SlotRow { kind: JobKind::Cleanup, capacity: 1, busy: 0 }],
        attempts: Attempts { succeeded: 3, ..Attempts::default() },
        avg_wait_ms: 1.25,
        ..EngineStatus::default()
    };
    let told = EngineBeat { status: Some(status.clone()), ..beat("e1") };
    assert!(b.ledger.heartbeat(&told, true).await.unwrap());
    assert_eq!(b.ledger.engines().await.unwrap()[0].status, Some(status));
    assert!(b.ledger.heartbeat(&beat("e1"), false).await.unwrap());
    assert_eq!(b.ledger.engines().await.unwrap()[0].status, None, "one that says nothing is no old news");
}

pub(crate) async fn counts_are_exact_when_many_count_at_once(b: Bench) {
    b.put_noops(120).await;
    let workers = (0..6).map(|n| {
        let ledger = b.ledger.clone();
        tokio::spawn(async move {
            // Two tasks each for three engines: they count in the same documents.
            let (engine, mut done, mut failed) = (format!("e{}", n % 3), 0u64, 0u64);
            while ledger.depth().await.unwrap().ready > 0 {
                let jobs = ledger.claim(&ClaimRequest::new(&engine, &[JobKind::Noop], 5).start(5)).await.unwrap();
                let (bad, good) = jobs.split_at(jobs.len() / 3);
                for job in bad {
                    let how = Failed::Retry { delay: HOUR, error: "x".to_owned() };
                    failed += u64::from(ledger.fail(&lease(job), &how).await.unwrap());
                }
                let ends: Vec<Finish> = good.iter().map(|job| Finish { lease: lease(job), kind: job.kind }).collect();
                done += ledger.finish(&engine, &ends).await.unwrap().iter().filter(|o| **o == Finished::Now).count() as u64;
            }
            (done, failed)
        })
    });
    let (mut done, mut failed) = (0, 0);
    for worker in workers.collect::<Vec<_>>() {
        let (d, f) = worker.await.unwrap();
        (done, failed) = (done + d, failed + f);
    }
    assert_eq!(done + failed, 120);
    let counters = b.ledger.queue_stats().await.unwrap().counters;
    assert_eq!((counters.done, counters.failed), (of(JobKind::Noop, done), of(JobKind::Noop, failed)));
    assert_eq!(b.ledger.depth().await.unwrap(), QueueDepth { scheduled: failed, ready: 0, running: 0, dead: 0 });
}
