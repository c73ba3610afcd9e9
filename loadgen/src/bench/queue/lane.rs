//! The ledger alone: claims, marks and ends as the pool asks for them, one after the other, with the queue kept at its depth.
//!
//! Owns: claimers and their latencies. Does not own: engines (`engines`), how deep the queue is to begin with (`fill`).

use std::time::{Duration, Instant};

use argon::fault::{Fault, Result};
use argon::ledger::{ClaimRequest, Finish, Finished, Job, JobKind, JobLease, Ledger, MAX_ENQUEUE, MongoLedger, NewJob};
use argon::runtime::{clock, random};
use serde::Serialize;
use tokio::task::JoinSet;

use super::super::rig::Rig;
use super::super::{ratio, real};
use super::plan::{Claims, LedgerCell};
use super::server::{self, Counted, Explained, PerJob, Statement};
use super::{CALL_LIMIT, fill};
use crate::load::latency::{Latencies, Percentiles};

/// Successes of one write, as in the pool (`pool::finish`).
const FINISH_GROUP: usize = 512;
/// Claims of a measurement at least, however long they take.
const LEAST_CLAIMS: u64 = 20;

/// What a measurement of the ledger alone found.
#[derive(Debug, Serialize)]
pub(super) struct LedgerFound {
    pub cell: LedgerCell,
    /// Jobs that one claim asks for.
    pub asked: usize,
    pub jobs: u64,
    /// Of the claims that found something.
    pub jobs_per_claim: f64,
    /// Claiming, marking and ending, one after the other. Of one claimer without its filling up; of several with it, since while one fills up the
    /// others have the server for themselves.
    pub jobs_per_s: f64,
    pub claim_ms: Percentiles,
    /// Claims that others had left nothing for; their time is among the others'.
    pub empty_claims: u64,
    /// The mark of those that had to wait for a worker.
    pub start_ms: Percentiles,
    /// The end of up to 512 jobs.
    pub finish_ms: Percentiles,
    /// Storing the jobs that keep the queue at its depth.
    pub enqueue_ms: Percentiles,
    pub server: PerJob,
}

/// Latencies of one claimer.
#[derive(Debug, Clone)]
struct Times {
    claim: Latencies,
    start: Latencies,
    finish: Latencies,
    enqueue: Latencies,
    claims: u64,
    empty: u64,
    jobs: u64,
    /// Without filling up.
    spent: Duration,
}

impl Times {
    fn new() -> Self {
        let [claim, start, finish, enqueue] = std::array::from_fn(|_| Latencies::new());
        Self { claim, start, finish, enqueue, claims: 0, empty: 0, jobs: 0, spent: Duration::ZERO }
    }

    fn merge(&mut self, other: &Self) {
        let Self { claim, start, finish, enqueue, claims, empty, jobs, spent: _ } = other;
        self.claim.merge(claim);
        self.start.merge(start);
        self.finish.merge(finish);
        self.enqueue.merge(enqueue);
        self.claims += claims;
        self.empty += empty;
        self.jobs += jobs;
    }
}

/// A claimer: what an engine is to the ledger.
#[derive(Debug)]
struct Lane {
    ledger: MongoLedger,
    engine: String,
    claims: Claims,
    workers: usize,
    times: Times,
}

impl Lane {
    fn new(ledger: MongoLedger, claims: Claims, workers: usize) -> Self {
        Self { ledger, engine: format!("bench-{}", random::id()), claims, workers, times: Times::new() }
    }

    /// A claim and everything up to the ends of its jobs, and as many new jobs.
    async fn step(&mut self) -> Result<()> {
        let done = self.work().await?;
        self.refill(done).await
    }

    /// A claim and everything up to the ends of its jobs; returns how many there were.
    async fn work(&mut self) -> Result<usize> {
        // The queue is kept at its depth: each claim goes on from the one before, as those of the pool do.
        let request = ClaimRequest::new(&self.engine, &[JobKind::Noop], self.claims.asked(self.workers)).start(self.workers).goes_on(true);
        let began = clock::now();
        let jobs = self.ledger.claim(&request).await?;
        self.times.claim.record(micros(began), 1);
        if jobs.is_empty() {
            self.times.empty += 1;
            self.times.spent += began.elapsed();
            return Ok(0);
        }
        self.times.claims += 1;
        self.times.jobs += jobs.len() as u64;
        // Short jobs end before their mark is due; of the others, those that have waited for a worker are marked when they begin.
        let waited: Vec<JobLease> = jobs.iter().skip(self.workers).filter_map(Job::held).collect();
        if self.claims == Claims::Few && !waited.is_empty() {
            let at = clock::now();
            self.ledger.start_many(&waited).await?;
            self.times.start.record(micros(at), 1);
        }
        let ends: Vec<Finish> = jobs.iter().filter_map(|job| Some(Finish { lease: job.held()?, kind: job.kind })).collect();
        for group in ends.chunks(FINISH_GROUP) {
            let at = clock::now();
            let outcomes = self.ledger.finish(&self.engine, group).await?;
            self.times.finish.record(micros(at), 1);
            if outcomes.iter().any(|outcome| *outcome != Finished::Now) {
                return Err(Fault::corrupt("a job that was claimed here has been ended by somebody else"));
            }
        }
        self.times.spent += began.elapsed();
        Ok(jobs.len())
    }

    async fn refill(&mut self, count: usize) -> Result<()> {
        let new: Vec<NewJob> = (0..count).map(|_| NewJob::new(random::ordered_id(), JobKind::Noop)).collect();
        for group in new.chunks(MAX_ENQUEUE) {
            let at = clock::now();
            self.ledger.enqueue(group).await?;
            self.times.enqueue.record(micros(at), 1);
        }
        Ok(())
    }

    async fn run(mut self, time: Duration) -> Result<Times> {
        let start = clock::now();
        while start.elapsed() < time || (self.times.claims < LEAST_CLAIMS && start.elapsed() < CALL_LIMIT) {
            self.step().await?;
        }
        // Its counters become part of the total.
        self.ledger.retire(&self.engine).await?;
        Ok(self.times)
    }
}

/// Measures one setting. The queue must be as deep as it says.
pub(super) async fn measure(rig: &Rig, queue: &mut fill::Queue, cell: LedgerCell, time: Duration) -> Result<LedgerFound> {
    queue.fill(cell.claims.present(cell.depth, cell.workers)).await?;
    let before = Counted::now(&queue.db).await?;
    let mut lanes = JoinSet::new();
    for _ in 0..cell.claimers {
        // A client each, as processes have.
        let ledger = MongoLedger::over(rig.mongod.client().await?, queue.db.name(), CALL_LIMIT)?;
        lanes.spawn(Lane::new(ledger, cell.claims, cell.workers).run(time));
    }
    let mut all = Times::new();
    let (began, mut spent) = (clock::now(), Duration::ZERO);
    while let Some(ended) = lanes.join_next().await {
        let times = ended.map_err(|error| Fault::unknown(error.to_string()))??;
        spent = if cell.claimers > 1 { began.elapsed() } else { times.spent };
        all.merge(&times);
    }
    let jobs_per_s = ratio(real(all.jobs), spent.as_secs_f64());
    let server = Counted::now(&queue.db).await?.per_job(before, all.jobs);
    Ok(LedgerFound {
        cell,
        asked: cell.claims.asked(cell.workers),
        jobs: all.jobs,
        jobs_per_claim: ratio(real(all.jobs), real(all.claims)),
        jobs_per_s,
        claim_ms: all.claim.percentiles(),
        empty_claims: all.empty,
        start_ms: all.start.percentiles(),
        finish_ms: all.finish.percentiles(),
        enqueue_ms: all.enqueue.percentiles(),
        server,
    })
}

/// Claims of one depth and of another, in turn: whatever else happens to the machine happens to both.
#[derive(Debug, Serialize)]
pub(super) struct Compared {
    pub claims: Claims,
    /// The deep queue has been filled and emptied for minutes.
    pub worn: bool,
    pub shallow: u64,
    pub deep: u64,
    pub shallow_claim_ms: Percentiles,
    pub deep_claim_ms: Percentiles,
    /// Of the medians.
    pub ratio: f64,
    pub ratio_of_means: f64,
}

/// Compares two queues, which are filled up before.
pub(super) async fn compare(
    shallow: (&mut fill::Queue, u64),
    deep: (&mut fill::Queue, u64),
    claims: Claims,
    count: usize,
) -> Result<Compared> {
    let workers = super::plan::WORKERS;
    let depths = (shallow.1, deep.1);
    let mut lanes = Vec::new();
    for (queue, depth) in [shallow, deep] {
        queue.fill(depth).await?;
        lanes.push(Lane::new(queue.ledger.clone(), claims, workers));
    }
    for _ in 0..count {
        for lane in &mut lanes {
            lane.step().await?;
        }
    }
    let mut found = Vec::new();
    for lane in lanes {
        lane.ledger.retire(&lane.engine).await?;
        found.push(lane.times.claim.percentiles());
    }
    let [shallow_claim_ms, deep_claim_ms] = found[..] else { return Err(Fault::unknown("two queues were to be compared")) };
    Ok(Compared {
        claims,
        worn: false,
        shallow: depths.0,
        deep: depths.1,
        shallow_claim_ms,
        deep_claim_ms,
        ratio: ratio(deep_claim_ms.p50, shallow_claim_ms.p50),
        ratio_of_means: ratio(deep_claim_ms.mean, shallow_claim_ms.mean),
    })
}

/// What a claim and the ends of its jobs cost mongod, statement by statement.
#[derive(Debug, Serialize)]
pub(super) struct Looked {
    pub depth: u64,
    pub claims: Claims,
    pub statements: Vec<Statement>,
    /// The search of the claim.
    pub explained: Option<Explained>,
}

/// Has mongod note the statements of one claim, mark and end.
pub(super) async fn look(queue: &fill::Queue, depth: u64, claims: Claims) -> Result<Looked> {
    let mut lane = Lane::new(queue.ledger.clone(), claims, super::plan::WORKERS);
    // The first statement of a client on a plan that is not cached costs more.
    lane.step().await?;
    server::profile(&queue.db).await?;
    let done = lane.work().await;
    server::stop_profile(&queue.db).await?;
    // As deep as before: the explanation runs the search once more.
    lane.refill(done?).await?;
    let (statements, explained) = server::profiled(&queue.db).await?;
    lane.ledger.retire(&lane.engine).await?;
    Ok(Looked { depth, claims, statements, explained })
}

/// Latencies of the queue's figures, as the interface asks for them.
pub(super) async fn stats(ledger: &MongoLedger, calls: usize) -> Result<Percentiles> {
    let mut latencies = Latencies::new();
    for _ in 0..calls {
        let at = clock::now();
        ledger.queue_stats().await?;
        latencies.record(micros(at), 1);
    }
    Ok(latencies.percentiles())
}

pub(super) fn micros(since: Instant) -> u64 {
    u64::try_from(since.elapsed().as_micros()).unwrap_or(u64::MAX)
}
