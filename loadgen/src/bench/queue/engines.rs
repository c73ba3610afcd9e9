//! Whole engines: `argon run` processes that do no-op jobs, seen from outside.
//!
//! Owns: starting them, and the time in which all of them work. That time begins when each has ended a job, so that starting a process is not in
//! it, and begins and ends at moments at which the count of finished jobs was seen to change.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use argon::devkit::ArgonProcess;
use argon::devkit::engine::{CONTROL_SOCKET, cpu_seconds};
use argon::fault::{Fault, Result};
use argon::http::client::{Client, Target};
use argon::ledger::{JobKind, Ledger, MAX_ENQUEUE, NewJob};
use argon::runtime::{clock, random};
use bson::doc;
use futures_util::TryStreamExt;
use mongodb::Collection;
use serde::{Deserialize, Serialize};

use super::super::machine::Machine;
use super::super::rig::{Line, Rig};
use super::super::{ratio, real};
use super::fill::{self, failed};
use super::lane::micros;
use super::plan::EngineCell;
use super::server::{Counted, PerJob};
use crate::load::latency::{Latencies, Percentiles};

/// How often the counters are read.
const POLL: Duration = Duration::from_millis(10);
/// How often the interface is asked.
const ASKED: usize = 20;
/// Jobs done before every engine has begun.
const STAGGER: u64 = 5_000;
/// Without any progress for this long something is stuck.
const STALL: Duration = Duration::from_secs(60);

/// What a measurement of whole engines found.
#[derive(Debug, Serialize)]
pub(super) struct EnginesFound {
    pub cell: EngineCell,
    /// While all engines worked.
    pub jobs: u64,
    pub elapsed_s: f64,
    pub jobs_per_s: f64,
    /// From the first process to the first end of a job of the last one.
    pub start_up_ms: f64,
    /// From the creation of a job to its end on record, where jobs are made while they are done.
    pub delay_ms: Option<Percentiles>,
    /// How fast jobs were made there.
    pub enqueued_per_s: Option<f64>,
    pub engine_cpu_us_per_job: f64,
    pub mongod_cpu_us_per_job: f64,
    /// Of this process: looking, asking and making jobs.
    pub own_cpu_us_per_job: f64,
    /// Cores that other work on the machine took meanwhile.
    pub others_cores: f64,
    /// The largest engine.
    pub peak_rss_bytes: u64,
    /// `GET /api/v1/workers/queue` on the control socket of the first engine, while it does what is left.
    pub endpoint_ms: Percentiles,
    pub server: PerJob,
}

/// CPU seconds and counters at one moment.
struct Moment {
    at: Instant,
    done: u64,
    engines_s: f64,
    mongod_s: f64,
    own_s: f64,
    machine: Machine,
    counted: Counted,
}

/// Running engines.
struct Engines<'a> {
    rig: &'a Rig,
    queue: &'a fill::Queue,
    processes: Vec<ArgonProcess>,
    /// Engines that had counted before.
    known: BTreeSet<String>,
    began: Instant,
}

/// Measures one setting.
pub(super) async fn measure(rig: &Rig, line: &Line, queue: &mut fill::Queue, cell: EngineCell, jobs: u64) -> Result<EnginesFound> {
    if cell.depth > 0 {
        queue.fill(cell.depth + jobs + STAGGER.min(jobs)).await?;
    }
    let mut engines = Engines::start(rig, line, queue, cell).await?;
    let found = if cell.depth > 0 { engines.drain(cell, jobs).await } else { engines.keep_up(cell, jobs).await };
    // What is wrong with an engine says more than that the figures did not come.
    engines.stop().await?;
    let found = found?;
    match queue.count("running", "running_by_lease").await? {
        0 => Ok(found),
        left => Err(Fault::corrupt(format!("{left} jobs are still running after their engines have stopped"))),
    }
}

impl<'a> Engines<'a> {
    async fn start(rig: &'a Rig, line: &Line, queue: &'a fill::Queue, cell: EngineCell) -> Result<Self> {
        let known = counters(queue).await?.1;
        let settings = [("WORKER_POOL_SIZE", cell.workers.to_string()), ("WORKER_AUTOSCALE", "false".to_owned())];
        let settings = settings.map(|(name, value)| (name.to_owned(), value));
        let began = clock::now();
        let processes = (0..cell.processes).map(|_| rig.start_engine_with(line, &settings)).collect::<Result<Vec<_>>>()?;
        Ok(Self { rig, queue, processes, known, began })
    }

    /// From a queue that is so much deeper than the depth that it has the depth at the end.
    async fn drain(&mut self, cell: EngineCell, jobs: u64) -> Result<EnginesFound> {
        let first = self.all_at_work(cell.processes).await?;
        let start_up = self.began.elapsed();
        let until = first.done + jobs;
        let last = self.until(until).await?;
        let endpoint = self.ask().await?;
        Ok(self.found(cell, &first, &last, start_up, endpoint))
    }

    /// Jobs are made as fast as one client can, and done meanwhile.
    async fn keep_up(&mut self, cell: EngineCell, jobs: u64) -> Result<EnginesFound> {
        self.ready(cell.processes).await?;
        let start_up = self.began.elapsed();
        let since_ms = self.queue.ledger.now_ms().await?;
        let first = self.moment(counters(self.queue).await?.0).await?;
        let ledger = self.queue.ledger.clone();
        let making = tokio::spawn(async move {
            let start = clock::now();
            let mut left = usize::try_from(jobs).unwrap_or(usize::MAX);
            while left > 0 {
                let take = left.min(MAX_ENQUEUE);
                let new: Vec<NewJob> = (0..take).map(|_| NewJob::new(random::ordered_id(), JobKind::Noop)).collect();
                ledger.enqueue(&new).await?;
                left -= take;
            }
            Ok::<_, Fault>(start.elapsed())
        });
        let last = self.until(first.done + jobs).await?;
        let made = making.await.map_err(|error| Fault::unknown(error.to_string()))??;
        let endpoint = self.ask().await?;
        let mut found = self.found(cell, &first, &last, start_up, endpoint);
        found.delay_ms = Some(delays(self.queue, since_ms).await?);
        found.enqueued_per_s = Some(ratio(real(jobs), made.as_secs_f64()));
        Ok(found)
    }

    /// Waits until every engine has workers.
    async fn ready(&mut self, processes: usize) -> Result<()> {
        let deadline = clock::now() + STALL;
        loop {
            let beats = self.queue.ledger.engines().await?;
            if beats.iter().filter(|beat| beat.status.is_some()).count() >= processes {
                return Ok(());
            }
            self.check(deadline, "has not begun")?;
            tokio::time::sleep(POLL).await;
        }
    }

    /// Waits until every engine has ended a job, and then for the next change of the count.
    async fn all_at_work(&mut self, processes: usize) -> Result<Moment> {
        let deadline = clock::now() + STALL;
        let mut before = None;
        loop {
            let (done, engines) = counters(self.queue).await?;
            if engines.difference(&self.known).count() >= processes {
                match before {
                    Some(seen) if done > seen => return self.moment(done).await,
                    _ => before = Some(done),
                }
            }
            self.check(deadline, "has done no job")?;
            tokio::time::sleep(POLL).await;
        }
    }

    /// Asks the interface of the first engine, while all of them go on with what is left. After what is measured: the figures of a deep queue cost
    /// mongod some ten milliseconds.
    async fn ask(&mut self) -> Result<Percentiles> {
        let socket = self.processes.first().map(|engine| engine.dir().join(CONTROL_SOCKET)).unwrap_or_default();
        let client = Client::new(&Target::Socket(socket))?;
        let mut latencies = Latencies::new();
        for _ in 0..ASKED {
            let at = clock::now();
            client.get::<serde_json::Value>("/api/v1/workers/queue").await?;
            latencies.record(micros(at), 1);
        }
        Ok(latencies.percentiles())
    }

    async fn until(&mut self, until: u64) -> Result<Moment> {
        let (mut seen, mut deadline) = (0, clock::now() + STALL);
        loop {
            let (done, _) = counters(self.queue).await?;
            if done >= until {
                return self.moment(done).await;
            }
            if done > seen {
                (seen, deadline) = (done, clock::now() + STALL);
            }
            self.check(deadline, "has stopped doing jobs")?;
            tokio::time::sleep(POLL).await;
        }
    }

    fn check(&mut self, deadline: Instant, what: &str) -> Result<()> {
        for engine in &mut self.processes {
            if let Some(exit) = engine.exited() {
                let log = engine.log_tail(3_000);
                return Err(Fault::unknown(format!("argon run ended with exit code {}: {}", exit.code, log.trim())));
            }
        }
        if clock::now() < deadline {
            return Ok(());
        }
        let log = self.processes.first().map(|engine| engine.log_tail(3_000)).unwrap_or_default();
        Err(Fault::transient(format!("argon run {what} within {STALL:?}; its log ends with: {}", log.trim())))
    }

    /// Right after the count of finished jobs was seen to be `done`.
    async fn moment(&self, done: u64) -> Result<Moment> {
        let at = clock::now();
        let [mongod_s, own_s] = [self.rig.mongod.pid(0), Some(std::process::id())].map(|pid| pid.and_then(cpu_seconds).unwrap_or(0.0));
        let engines_s = self.processes.iter().filter_map(ArgonProcess::cpu_seconds).sum();
        let machine = Machine::now();
        Ok(Moment { at, done, engines_s, mongod_s, own_s, machine, counted: Counted::now(&self.queue.db).await? })
    }

    fn found(&self, cell: EngineCell, first: &Moment, last: &Moment, start_up: Duration, endpoint_ms: Percentiles) -> EnginesFound {
        let jobs = last.done - first.done;
        let elapsed_s = last.at.saturating_duration_since(first.at).as_secs_f64();
        let spent = [last.engines_s - first.engines_s, last.mongod_s - first.mongod_s, last.own_s - first.own_s];
        let [engine_cpu_us_per_job, mongod_cpu_us_per_job, own_cpu_us_per_job] = spent.map(|s| ratio(s * 1e6, real(jobs)));
        EnginesFound {
            cell,
            jobs,
            elapsed_s,
            jobs_per_s: ratio(real(jobs), elapsed_s),
            start_up_ms: start_up.as_secs_f64() * 1_000.0,
            delay_ms: None,
            enqueued_per_s: None,
            engine_cpu_us_per_job,
            mongod_cpu_us_per_job,
            own_cpu_us_per_job,
            others_cores: first.machine.others_since(spent.iter().sum()),
            peak_rss_bytes: self.processes.iter().filter_map(ArgonProcess::peak_rss).max().unwrap_or_default(),
            endpoint_ms,
            server: last.counted.per_job(first.counted, jobs),
        }
    }

    async fn stop(mut self) -> Result<()> {
        for engine in &mut self.processes {
            self.rig.stop_engine(engine).await?;
        }
        Ok(())
    }
}

/// No-op jobs done so far, by anybody, and the engines that have done some and not gone.
async fn counters(queue: &fill::Queue) -> Result<(u64, BTreeSet<String>)> {
    #[derive(Deserialize)]
    struct Row {
        engine: Option<String>,
        done: Option<Done>,
    }
    #[derive(Deserialize)]
    struct Done {
        noop: Option<i64>,
    }
    let rows: Collection<Row> = queue.db.collection("counters");
    let found: Vec<Row> = rows.find(doc! {}).await.map_err(failed)?.try_collect().await.map_err(failed)?;
    let (mut done, mut engines) = (0, BTreeSet::new());
    for row in found {
        let jobs = row.done.and_then(|done| done.noop).unwrap_or_default();
        done += u64::try_from(jobs).unwrap_or_default();
        engines.extend(row.engine.filter(|_| jobs > 0));
    }
    Ok((done, engines))
}

/// How long the jobs that have ended since then took, from their creation on.
async fn delays(queue: &fill::Queue, since_ms: i64) -> Result<Percentiles> {
    #[derive(Deserialize)]
    struct Row {
        created_ms: i64,
        finished_ms: i64,
    }
    let rows: Collection<Row> = queue.db.collection("jobs");
    let done = doc! { "state": "done", "finished_ms": { "$gte": since_ms } };
    let fields = doc! { "created_ms": 1, "finished_ms": 1 };
    let mut found = rows.find(done).projection(fields).await.map_err(failed)?;
    let mut latencies = Latencies::new();
    while let Some(row) = found.try_next().await.map_err(failed)? {
        if row.created_ms >= since_ms {
            latencies.record(u64::try_from((row.finished_ms - row.created_ms) * 1_000).unwrap_or_default(), 1);
        }
    }
    Ok(latencies.percentiles())
}
