//! The pool over the memory twins: noop jobs by the thousand, growing and shrinking, pauses, cancellation, stuck jobs, later kinds.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use argon::config::{Autoscale, EngineSettings};
use argon::engine::EngineEnd;
use argon::fault::Result;
use argon::jobs::noop::{NoopFault, NoopParams};
use argon::jobs::{Handler, KINDS, KindSpec, Mark, Outcome, Overtime, Parts, SlotClass, Watch};
use argon::ledger::*;
use argon::runtime::{clock, random};
use async_trait::async_trait;

use crate::world::{Mix, Process, World, settings};

impl World {
    /// Puts noop jobs into the queue and returns their ids.
    fn noops(&self, count: usize, params: &NoopParams) -> Vec<JobId> {
        let params = bson::serialize_to_raw_document_buf(params).unwrap();
        let one = |_| NewJob { params: Some(params.clone()), ..NewJob::new(random::ordered_id(), JobKind::Noop) };
        let jobs: Vec<NewJob> = (0..count).map(one).collect();
        for chunk in jobs.chunks(MAX_ENQUEUE) {
            let stored = self.runtime.block_on(self.ledger.enqueue(chunk)).unwrap();
            assert!(stored.iter().all(|one| *one == Enqueued::Stored));
        }
        jobs.into_iter().map(|job| job.id).collect()
    }

    fn count(&self, state: JobState) -> usize {
        self.jobs(state).len()
    }

    pub(crate) fn job(&self, id: &str) -> Job {
        self.runtime.block_on(self.ledger.job(id)).unwrap().unwrap()
    }
}

fn lasting(ms: u64) -> NoopParams {
    NoopParams { duration_ms: ms, ..NoopParams::default() }
}

/// Sized by hand alone.
pub(crate) fn fixed(size: u16) -> EngineSettings {
    EngineSettings { pool_size: size, autoscale: Autoscale::Off, ..settings() }
}

fn busy(engine: &Process) -> usize {
    engine.view.status().workers.iter().filter(|row| row.busy).count()
}

#[test]
fn short_jobs_run_by_the_thousand_and_are_counted_for_good() {
    let world = World::new();
    let engine = world.spawn_with("one", Mix::default(), fixed(4), world.store.clone());
    let ids = world.noops(3_000, &lasting(0));
    engine.view.wake();
    world.wait("all are done", || world.count(JobState::Done) == ids.len());
    let status = engine.view.status();
    assert_eq!((status.attempts.succeeded, status.attempts.failed, status.attempts.fenced), (3_000, 0, 0));
    assert_eq!(status.workers.iter().map(|row| row.processed).sum::<u64>(), 3_000);
    assert_eq!(
        status.workers.iter().map(|row| row.name.as_str()).collect::<Vec<_>>(),
        ["sync-worker-0", "sync-worker-1", "sync-worker-2", "sync-worker-3", "cleanup-worker-0", "snapshot-worker-0", "snapshot-worker-1"]
    );
    assert!(status.workers[..4].iter().all(|row| row.p99_ms >= row.p50_ms && row.last_active_ms.is_some()));
    assert_eq!(
        status.slots.iter().map(|slot| (slot.kind, slot.capacity)).collect::<Vec<_>>(),
        [(JobKind::Compression, 2), (JobKind::Notification, 1), (JobKind::Cleanup, 1), (JobKind::Snapshot, 2)]
    );
    // The heartbeat tells the others.
    world.wait("the heartbeat says so", || {
        let engines = world.runtime.block_on(world.ledger.engines()).unwrap();
        engines[0].status.as_ref().is_some_and(|status| status.attempts.succeeded == 3_000 && status.workers.len() == 7)
    });
    engine.drain();
    let stats = world.runtime.block_on(world.ledger.queue_stats()).unwrap();
    assert_eq!(stats.counters.done.get(&JobKind::Noop), Some(&3_000), "it has signed off, the figure stays");
    world.check();
}

/// A later kind: one handler, one line.
#[derive(Debug)]
struct Later;

/// Attempts of it that run now, and the most that ever did.
static NOW: AtomicUsize = AtomicUsize::new(0);
static MOST: AtomicUsize = AtomicUsize::new(0);

#[async_trait]
impl Handler for Later {
    async fn run(&self, _: &Job, _: &JobLease, _: &Watch) -> Result<Outcome> {
        MOST.fetch_max(NOW.fetch_add(1, Ordering::SeqCst) + 1, Ordering::SeqCst);
        tokio::time::sleep(Duration::from_millis(100)).await;
        NOW.fetch_sub(1, Ordering::SeqCst);
        Ok(Outcome::Done)
    }
}

fn later(_: &Parts) -> Arc<dyn Handler> {
    Arc::new(Later)
}

static WITH_A_LATER_KIND: [KindSpec; 3] = [
    KINDS[0],
    KINDS[1],
    KindSpec {
        kind: JobKind::Compression,
        class: SlotClass::Compression,
        timeout: None,
        mark: Mark::Before,
        overtime: Overtime::Counts,
        handler: Some(later),
    },
];

#[test]
fn a_kind_has_slots_of_its_own_which_no_backlog_of_others_takes() {
    let world = World::new();
    let compressions = |count: usize| {
        let jobs: Vec<NewJob> = (0..count).map(|_| NewJob::new(random::ordered_id(), JobKind::Compression)).collect();
        world.runtime.block_on(world.ledger.enqueue(&jobs)).unwrap();
    };
    let done = |kind: JobKind| world.jobs(JobState::Done).iter().filter(|job| job.kind == kind).count();
    // A version that does not know the kind leaves its jobs alone.
    let old = world.spawn_with("old", Mix::default(), fixed(1), world.store.clone());
    compressions(6);
    world.noops(1, &lasting(0));
    old.view.wake();
    world.wait("what it knows is done", || done(JobKind::Noop) == 1);
    std::thread::sleep(Duration::from_millis(1_500));
    let sync = old.view.status().workers.iter().filter(|row| row.name.starts_with("sync-")).count();
    assert_eq!((world.count(JobState::Ready), sync), (6, 1));
    old.drain();
    let new = world.spawn_kinds("new", fixed(1), &WITH_A_LATER_KIND);
    world.noops(500, &lasting(20));
    new.view.wake();
    world.wait("they are done", || done(JobKind::Compression) == 6);
    assert!(done(JobKind::Noop) < 400, "long before the backlog of the others is");
    assert_eq!(MOST.load(Ordering::SeqCst), 2, "two at a time");
    let names: Vec<String> = new.view.status().workers.into_iter().map(|row| row.name).collect();
    assert_eq!(names, ["sync-worker-0", "compression-worker-0", "compression-worker-1"]);
    new.kill();
}

#[test]
fn lost_answers_repeat_no_job_and_lose_none() {
    let world = World::new();
    let faults = LedgerFaults { seed: 7, before: 0.1, lost: 0.1, reads: 0.1 };
    let engine = world.spawn_with("one", Mix { ledger: Some(faults), ..Mix::default() }, fixed(4), world.store.clone());
    world.noops(2_000, &lasting(1));
    engine.view.wake();
    // Claims whose answer was lost are given back when ten seconds of the server have passed.
    world.wait("all are done", || {
        world.ledger.advance(Duration::from_millis(10));
        world.count(JobState::Done) == 2_000
    });
    assert!(engine.ledger.injected() > 0);
    engine.ledger.set_faults(LedgerFaults::none());
    engine.drain();
    let stats = world.runtime.block_on(world.ledger.queue_stats()).unwrap();
    assert_eq!(stats.counters.done.get(&JobKind::Noop), Some(&2_000));
}

#[test]
fn the_pool_grows_and_shrinks_and_a_busy_worker_finishes_its_job() {
    let world = World::new();
    let engine = world.spawn_with("one", Mix::default(), fixed(2), world.store.clone());
    world.noops(12, &lasting(3_000));
    engine.view.wake();
    world.wait("both are busy", || busy(&engine) == 2);
    assert_eq!(engine.view.scale(6, None).unwrap().target, 6);
    world.wait("six are busy", || busy(&engine) == 6);
    let pool = engine.view.scale(1, None).unwrap();
    assert_eq!((pool.target, pool.pin.unwrap().target), (1, 1));
    assert_eq!(engine.view.status().pool.current, 6, "they are at it");
    world.wait("one is left", || engine.view.status().pool.current == 1);
    assert!(world.count(JobState::Done) >= 5, "none was interrupted");
    engine.view.release_pin();
    world.wait("the base size again", || engine.view.status().pool.current == 2);
    let refused = engine.view.scale(21, None).unwrap_err();
    assert!(refused.what.contains("1 to 20"), "{refused}");
    assert_eq!(engine.view.status().pool.target, 2, "nothing has changed");
    world.wait("all are done", || world.count(JobState::Done) == 12);
    assert!(world.jobs(JobState::Done).iter().all(|job| job.attempt == 1 && job.error_count == 0));
    engine.drain();
    world.check();
}

#[test]
fn the_pool_follows_the_load_and_says_why() {
    let world = World::new();
    let follows = EngineSettings { pool_size: 2, pool_max: 8, ..settings() };
    let engine = world.spawn_with("one", Mix::default(), follows, world.store.clone());
    world.noops(3_000, &lasting(50));
    engine.view.wake();
    world.wait("it has grown", || engine.view.status().pool.current > 4);
    let decisions = engine.view.decisions();
    assert!(decisions.iter().any(|d| d.changed && d.target > d.actual && d.inputs.backlog > 0), "{decisions:#?}");
    assert!(decisions.iter().all(|d| d.target <= 8), "never beyond the bound");
    engine.kill();
}

#[test]
fn a_dry_run_decides_and_changes_nothing() {
    let world = World::new();
    let dry = EngineSettings { pool_size: 2, autoscale: Autoscale::DryRun, ..settings() };
    let engine = world.spawn_with("one", Mix::default(), dry, world.store.clone());
    world.noops(3_000, &lasting(50));
    engine.view.wake();
    world.wait("it would grow", || engine.view.decisions().iter().any(|d| d.dry_run && d.target > 2));
    assert_eq!(engine.view.status().pool.target, 2);
    engine.kill();
}

#[test]
fn a_paused_kind_waits_and_others_do_not() {
    let world = World::new();
    let engine = world.spawn("one", Mix::default());
    world.runtime.block_on(world.ledger.set_pause(&PauseTarget::Kind(JobKind::Noop), true, "me")).unwrap();
    std::thread::sleep(Duration::from_secs(3)); // it has been read
    world.noops(10, &lasting(0));
    engine.view.wake();
    world.insert(50);
    world.settle();
    assert_eq!(world.count(JobState::Ready), 10);
    world.runtime.block_on(world.ledger.set_pause(&PauseTarget::Kind(JobKind::Noop), false, "me")).unwrap();
    world.wait("all are done", || world.jobs(JobState::Done).iter().filter(|job| job.kind == JobKind::Noop).count() == 10);
    engine.drain();
    world.check();
}

#[test]
fn jobs_of_a_paused_branch_are_parked_and_run_when_it_is_resumed() {
    let world = World::new();
    let engine = world.spawn("one", Mix::default());
    let branch = PauseTarget::Branch(crate::world::BRANCH.into());
    world.runtime.block_on(world.ledger.set_pause(&branch, true, "me")).unwrap();
    std::thread::sleep(Duration::from_secs(3));
    world.insert(50);
    world.wait("they are parked", || world.jobs(JobState::Scheduled).iter().filter(|job| job.parked).count() > 0);
    assert_eq!(world.branch().head.seq, 0);
    world.runtime.block_on(world.ledger.set_pause(&branch, false, "me")).unwrap();
    world.settle();
    engine.drain();
    world.check();
}

#[test]
fn a_running_job_that_an_operator_cancels_stops_within_seconds() {
    let world = World::new();
    let engine = world.spawn_with("one", Mix::default(), fixed(1), world.store.clone());
    let id = world.noops(1, &lasting(3_600_000)).remove(0);
    engine.view.wake();
    world.wait("it runs", || busy(&engine) == 1);
    assert_eq!(engine.view.status().workers[0].job.as_ref(), Some(&id));
    let began = clock::now();
    assert_eq!(world.runtime.block_on(world.ledger.cancel_job(&id)).unwrap(), Cancelled::Requested);
    world.wait("it is cancelled", || world.job(&id).state == JobState::Cancelled);
    assert!(began.elapsed() < Duration::from_secs(5), "{:?}", began.elapsed());
    // The worker is free, and nothing counts as a failure.
    world.noops(1, &lasting(0));
    world.wait("the next one is done", || world.count(JobState::Done) == 1);
    assert_eq!(engine.view.status().attempts.failed, 0);
    engine.drain();
}

#[test]
fn a_job_that_is_stuck_in_a_living_engine_is_taken_away_and_the_worker_is_freed() {
    let world = World::new();
    // Its worker does not end the attempt when the server's clock is moved.
    let patient = EngineSettings { lease: Duration::from_secs(4), process_timeout: Duration::from_secs(3_600), ..fixed(1) };
    let engine = world.spawn_with("one", Mix::default(), patient.clone(), world.store.clone());
    let id = world.noops(1, &lasting(3_600_000)).remove(0);
    engine.view.wake();
    world.wait("it runs", || world.job(&id).lease.is_some_and(|lease| lease.started));
    world.ledger.advance(patient.stuck_after() + Duration::from_secs(1));
    world.wait("it is taken away", || world.job(&id).error_count == 1);
    let job = world.job(&id);
    assert!(job.errors[0].error.contains("JOB_STUCK_TIMEOUT"), "{:?}", job.errors);
    // Its worker is told, and takes it anew (the delay of a retry is short here).
    world.wait("it is free and runs it again", || world.job(&id).attempt == 2);
    assert_eq!(engine.view.status().attempts.fenced, 1);
    engine.kill();
}

#[test]
fn a_failing_job_is_a_failed_attempt_and_nothing_else() {
    let world = World::new();
    let engine = world.spawn_with("one", Mix::default(), EngineSettings { retry_count: 1, ..fixed(2) }, world.store.clone());
    let failing = |fault: Option<NoopFault>, panic| NoopParams { fault, panic, ..NoopParams::default() };
    let unknown = world.noops(1, &failing(Some(NoopFault::Unknown), false)).remove(0);
    let rejected = world.noops(1, &failing(Some(NoopFault::Rejected), false)).remove(0);
    let panics = world.noops(1, &failing(None, true)).remove(0);
    let outage = world.noops(1, &failing(Some(NoopFault::Transient), false)).remove(0);
    let own = NewJob {
        params: Some(bson::serialize_to_raw_document_buf(&failing(Some(NoopFault::Unknown), false)).unwrap()),
        retries: Some(3),
        ..NewJob::new(random::ordered_id(), JobKind::Noop)
    };
    world.runtime.block_on(world.ledger.enqueue(std::slice::from_ref(&own))).unwrap();
    let wrong = NewJob { params: Some(bson::rawdoc! { "duration_ms": "long" }), ..NewJob::new(random::ordered_id(), JobKind::Noop) };
    world.runtime.block_on(world.ledger.enqueue(std::slice::from_ref(&wrong))).unwrap();
    engine.view.wake();
    world.wait("five are dead", || world.count(JobState::Dead) == 5);
    for (id, attempts, word) in [
        (&unknown, 2, "told to fail"),
        (&rejected, 1, "told to fail"),
        (&panics, 2, "panicked"),
        (&own.id, 4, "told to fail"),
        (&wrong.id, 1, "parameters"),
    ] {
        let job = world.job(id);
        assert_eq!(job.attempt, attempts, "{:?}", job.errors);
        assert!(job.errors.last().unwrap().error.contains(word), "{:?}", job.errors);
    }
    world.wait("an outage goes on", || world.job(&outage).error_count >= 3);
    assert!(world.job(&outage).attempt <= 1, "and uses up no attempt");
    let row = engine.view.status().attempts;
    assert_eq!(row.failed, 2 + 1 + 2 + 4 + 1);
    world.insert(20);
    world.settle();
    engine.drain();
}

#[test]
fn a_job_that_hangs_is_ended_by_its_time_limit() {
    let world = World::new();
    let strict = EngineSettings { process_timeout: Duration::from_secs(1), retry_count: 0, ..fixed(1) };
    let engine = world.spawn_with("one", Mix::default(), strict, world.store.clone());
    let id = world.noops(1, &lasting(3_600_000)).remove(0);
    engine.view.wake();
    world.wait("it is dead", || world.job(&id).state == JobState::Dead);
    assert!(world.job(&id).errors[0].error.contains("WORKER_PROCESS_TIMEOUT"));
    engine.drain();
}

#[test]
fn a_drain_finishes_what_runs_and_gives_back_what_waits() {
    let world = World::new();
    let engine = world.spawn_with("one", Mix::default(), fixed(1), world.store.clone());
    // Short enough that some are claimed ahead.
    world.noops(20, &lasting(400));
    engine.view.wake();
    world.wait("some are done, one runs, some wait", || world.count(JobState::Done) >= 1 && world.count(JobState::Running) >= 2);
    assert_eq!(engine.drain(), EngineEnd::Drained);
    assert_eq!(world.count(JobState::Running), 0);
    assert!(world.jobs(JobState::Ready).iter().all(|job| job.attempt == 0 && job.error_count == 0));
    assert_eq!(world.count(JobState::Ready) + world.count(JobState::Done), 20);
}

#[test]
fn an_abort_gives_back_what_runs() {
    let world = World::new();
    let hasty = EngineSettings { shutdown_timeout: Duration::from_secs(1), ..fixed(2) };
    let engine = world.spawn_with("one", Mix::default(), hasty, world.store.clone());
    let ids = world.noops(2, &lasting(3_600_000));
    engine.view.wake();
    world.wait("both run", || busy(&engine) == 2);
    assert_eq!(engine.drain(), EngineEnd::DeadlinePassed);
    for id in ids {
        let job = world.job(&id);
        assert_eq!((job.state, job.attempt, job.error_count), (JobState::Ready, 0, 0));
    }
}
