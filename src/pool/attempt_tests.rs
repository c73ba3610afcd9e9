//! Attempts with handlers that do what handlers should not.

use std::sync::atomic::{AtomicU32, Ordering};

use async_trait::async_trait;
use tokio::sync::oneshot;

use super::*;
use crate::jobs::{Handler, KindSpec, Parts, SlotClass};
use crate::ledger::{Failed, JobKind, Ledger, MemoryLedger, NewJob, SharedLedger};
use crate::pool::{InWork, Marker};
use crate::queue::RetryPolicy;
use crate::runtime::backoff::Backoff;
use crate::runtime::cpu::CpuPool;
use crate::store::MemoryStore;
use crate::sync::Committer;
use crate::telemetry::meters::Meters;

/// Does what the job's unique key says.
#[derive(Debug)]
struct Bad {
    cpu: CpuPool,
}

static UNITS: AtomicU32 = AtomicU32::new(0);

#[async_trait]
impl Handler for Bad {
    async fn run(&self, job: &Job, _: &JobLease, watch: &Watch) -> Result<Outcome> {
        match job.unique_key.as_deref().unwrap_or_default() {
            "panics" => panic!("bad luck"),
            "leaks" => Err(std::io::Error::other("a leaked error")).map_err(|e| Fault::unknown(e.to_string())),
            "fenced" => Err(Fault::fenced("somebody else's")),
            "hangs" => std::future::pending().await,
            "obeys" => {
                watch.cancel.cancelled().await;
                Err(Fault::cancelled("stopped"))
            }
            "was done already" => {
                watch.cancel.cancelled().await;
                Ok(Outcome::Done)
            }
            "computes" => {
                let marked = watch.clone();
                let unit = move |_: &std::sync::atomic::AtomicBool| {
                    let _computing = marked.computing();
                    UNITS.fetch_add(1, Ordering::SeqCst);
                    std::thread::sleep(Duration::from_secs(3));
                    Ok(())
                };
                self.cpu.run_until("unit", &watch.cancel, unit).await?;
                Ok(Outcome::Done)
            }
            _ => Ok(Outcome::Done),
        }
    }
}

fn bad(parts: &Parts) -> Arc<dyn Handler> {
    Arc::new(Bad { cpu: parts.cpu.clone() })
}

const LIMIT: Duration = Duration::from_millis(300);

struct Bed {
    ledger: Arc<MemoryLedger>,
    runner: Runner,
    in_work: InWork,
}

impl Bed {
    fn new(mark: Mark, overtime: Overtime) -> Self {
        let ledger = Arc::new(MemoryLedger::new());
        let shared: SharedLedger = ledger.clone();
        let in_work = InWork::default();
        let (committer, commits) = Committer::new(shared.clone(), &Meters::default());
        let (marker, marks) = Marker::new(shared.clone(), in_work.clone(), &Meters::default());
        tokio::spawn(committer.run());
        tokio::spawn(marker.run());
        let cpu = CpuPool::new(1, 1).unwrap();
        let parts = Parts {
            ledger: shared,
            store: Arc::new(MemoryStore::new()),
            cpu,
            commits,
            marks: marks.clone(),
            upload_time: LIMIT,
            sources: Arc::new(crate::capture::source::MongoSources { default: String::new() }),
            settings: crate::config::BaseSettings::default(),
            fold_memory: 1 << 20,
            stop: crate::runtime::shutdown::Shutdown::new(),
            meters: Meters::default(),
        };
        let kind = KindSpec { kind: JobKind::Noop, class: SlotClass::Sync, timeout: Some(LIMIT), mark, overtime, handler: Some(bad) };
        let registry = Registry::new(&[kind], &parts);
        let runner = Runner::new(registry, Duration::from_secs(60), MemoryBudget::new(1 << 20), marks, Shutdown::new(), Sick::default());
        Self { ledger, runner, in_work }
    }

    async fn claim(&self, what: &str) -> Arc<Job> {
        let id = crate::runtime::random::ordered_id();
        self.ledger.enqueue(&[NewJob { unique_key: Some(what.to_owned()), ..NewJob::new(id, JobKind::Noop) }]).await.unwrap();
        Arc::new(self.ledger.claim(&crate::ledger::ClaimRequest::new("me", &[JobKind::Noop], 1)).await.unwrap().remove(0))
    }

    async fn run(&self, what: &str) -> End {
        let job = self.claim(what).await;
        let guard = self.in_work.enter(&job);
        self.runner.run(&job, &job.held().unwrap(), &guard.halt).await
    }
}

#[tokio::test]
async fn whatever_a_handler_does_is_a_failed_attempt_and_nothing_else() {
    let bed = Bed::new(Mark::IfLong, Overtime::Counts);
    for (what, word) in [("panics", "bad luck"), ("leaks", "a leaked error"), ("hangs", "not done after")] {
        let End::Failed(fault) = bed.run(what).await else { panic!("{what} did not fail") };
        assert!(fault.kind == Kind::Unknown && fault.what.contains(word), "{what}: {fault}");
    }
    assert!(matches!(bed.run("fenced").await, End::Ended(Outcome::Fenced)));
    assert!(matches!(bed.run("is well").await, End::Ended(Outcome::Done)));
}

#[tokio::test]
async fn only_time_spent_computing_uses_up_an_attempt_where_a_kind_says_so() {
    let policy = RetryPolicy { retries: 0, backoff: Backoff { base: LIMIT, cap: LIMIT } };
    for (overtime, computing, counts) in
        [(Overtime::Counts, false, true), (Overtime::CountsIfComputing, true, true), (Overtime::CountsIfComputing, false, false)]
    {
        let after = policy.after(1, 0, &overdue(LIMIT, "", overtime, computing), 0.5);
        let counted = matches!(after, Failed::Dead { .. });
        assert!(
            counted == counts && (counted || matches!(after, Failed::GiveBack { error: Some(_), .. })),
            "{overtime:?} {computing}: {after:?}"
        );
    }
    let End::Failed(fault) = Bed::new(Mark::IfLong, Overtime::CountsIfComputing).run("hangs").await else { panic!("it did not fail") };
    assert_eq!(fault.kind, Kind::Transient);
}

#[tokio::test]
async fn an_operator_stops_an_attempt_unless_it_was_done_already() {
    for (what, why, done) in [("obeys", Why::Asked, false), ("was done already", Why::Asked, true), ("obeys", Why::Lost, false)] {
        let bed = Bed::new(Mark::IfLong, Overtime::Counts);
        let job = bed.claim(what).await;
        let guard = bed.in_work.enter(&job);
        match why {
            Why::Asked => bed.in_work.asked(std::slice::from_ref(&job.id)),
            Why::Lost => bed.in_work.lost(&job.held().unwrap()),
        }
        // Before it begins: whatever it would do.
        let held = job.held().unwrap();
        let halted = bed.runner.run(&job, &held, &guard.halt);
        let end = tokio::time::timeout(LIMIT, halted).await.unwrap();
        match (&end, why, done) {
            (End::Cancelled, Why::Asked, _)
            | (End::Ended(Outcome::Done), Why::Asked, true)
            | (End::Ended(Outcome::Fenced), Why::Lost, _) => {}
            _ => panic!("{what} {why:?}: {end:?}"),
        }
        // While it runs.
        let guard = bed.in_work.enter(&job);
        let in_work = bed.in_work.clone();
        let halting = async {
            tokio::time::sleep(LIMIT / 6).await;
            match why {
                Why::Asked => in_work.asked(std::slice::from_ref(&job.id)),
                Why::Lost => in_work.lost(&held),
            }
        };
        let (end, ()) = tokio::join!(bed.runner.run(&job, &held, &guard.halt), halting);
        match (&end, why, done) {
            (End::Cancelled, Why::Asked, false)
            | (End::Ended(Outcome::Done), Why::Asked, true)
            | (End::Ended(Outcome::Fenced), Why::Lost, _) => {}
            _ => panic!("{what} {why:?} while running: {end:?}"),
        }
    }
}

#[tokio::test]
async fn a_stop_gives_back_what_runs() {
    let bed = Bed::new(Mark::IfLong, Overtime::Counts);
    bed.runner.stop.abort();
    let End::Failed(fault) = bed.run("hangs").await else { panic!("it did not end") };
    assert_eq!(fault.kind, Kind::Cancelled);
}

#[tokio::test]
async fn an_attempt_is_marked_as_its_kind_says() {
    let started = async |bed: &Bed, job: &Job| bed.ledger.job(&job.id).await.unwrap().unwrap().lease.unwrap().started;
    for (mark, what, marked) in [(Mark::Before, "is well", true), (Mark::IfLong, "is well", false), (Mark::IfLong, "hangs", true)] {
        let bed = Bed::new(mark, Overtime::Counts);
        let job = bed.claim(what).await;
        let guard = bed.in_work.enter(&job);
        bed.runner.run(&job, &job.held().unwrap(), &guard.halt).await;
        assert_eq!(started(&bed, &job).await, marked, "{mark:?} {what}");
    }
    // Taken away before it has begun.
    let bed = Bed::new(Mark::Before, Overtime::Counts);
    let job = bed.claim("is well").await;
    bed.ledger.fail(&job.held().unwrap(), &Failed::GiveBack { delay: Duration::ZERO, error: None }).await.unwrap();
    let guard = bed.in_work.enter(&job);
    assert!(matches!(bed.runner.run(&job, &job.held().unwrap(), &guard.halt).await, End::Ended(Outcome::Fenced)));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn a_computation_that_does_not_stop_is_the_end_of_the_process_and_one_that_does_is_not() {
    let mut bed = Bed::new(Mark::IfLong, Overtime::Counts);
    let sick = bed.runner.sick.clone();
    bed.runner.come_back = Duration::from_millis(200);
    assert!(matches!(bed.run("hangs").await, End::Failed(_)), "it waits, and computes nothing");
    assert!(bed.runner.memory.used() > 0, "as long as it may come back");
    let freed = async {
        while bed.runner.memory.used() > 0 {
            tokio::time::sleep(Duration::from_millis(10)).await
        }
    };
    tokio::time::timeout(Duration::from_secs(10), freed).await.unwrap();
    assert_eq!(sick.why(), None);
    assert!(matches!(bed.run("computes").await, End::Failed(_)));
    assert_eq!(UNITS.load(Ordering::SeqCst), 1);
    let (tx, rx) = oneshot::channel();
    tokio::spawn({
        let sick = sick.clone();
        async move { tx.send(sick.reported().await) }
    });
    let fault = tokio::time::timeout(Duration::from_secs(10), rx).await.unwrap().unwrap();
    assert!(fault.what.contains("has not stopped within 200ms"), "{fault}");
}
