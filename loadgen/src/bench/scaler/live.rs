//! `bench scaler --live`: a load of noop jobs on a real engine, seen through its control socket.
//!
//! Owns: making jobs at the rate of a load, and what the engine says of its workers each second. Does not own: judging it (`figures`).
//!
//! A noop job sleeps, so workers do not get into each other's way here: what is measured is the engine's own loop (claims, counts of the queue, the
//! scaler, starting and stopping workers) on a real clock and a real MongoDB, not congestion.

use std::time::{Duration, Instant};

use argon::devkit::ArgonProcess;
use argon::devkit::engine::CONTROL_SOCKET;
use argon::fault::{Fault, Result};
use argon::http::client::{Client, Target};
use argon::ledger::{JobKind, Ledger, MAX_ENQUEUE, MongoLedger, NewJob};
use argon::runtime::{clock, random};
use bson::rawdoc;
use serde::Deserialize;

use super::backend::Backend;
use super::loads::Load;
use super::policies::Bounds;
use super::sim::{Second, Trace};
use crate::args::Servers;
use crate::bench::rig::{Line, Rig};
use crate::bench::{real, say};

/// Jobs become due this far apart: so many a second need few commands.
const TICK: Duration = Duration::from_millis(20);
const START_LIMIT: Duration = Duration::from_secs(60);
const CALL_LIMIT: Duration = Duration::from_secs(20);

/// What is read of `GET /api/v1/scaler`.
#[derive(Debug, Deserialize)]
struct Seen {
    pool: SeenPool,
    decisions: Vec<SeenDecision>,
}

#[derive(Debug, Deserialize)]
struct SeenPool {
    target: u16,
    current: u16,
}

#[derive(Debug, Deserialize)]
struct SeenDecision {
    inputs: SeenInputs,
}

#[derive(Debug, Deserialize)]
struct SeenInputs {
    backlog: u64,
}

/// Runs a load; every second of the load is a second.
pub(super) async fn run(servers: &Servers, load: &Load, backend: &Backend, bounds: Bounds) -> Result<Trace> {
    if load.outage.is_some() {
        return Err(Fault::config(format!("--live --load {}: noop jobs need no store that could be gone", load.name)));
    }
    let mut servers = servers.clone();
    let sizes = [("WORKER_POOL_MIN", bounds.min), ("WORKER_POOL_SIZE", bounds.base), ("WORKER_POOL_MAX", bounds.max)];
    servers.settings.extend(sizes.map(|(name, n)| (name.to_owned(), n.to_string())));
    let rig = Rig::start(&servers).await?;
    let line = Line::new(1);
    let mut engine = rig.start_engine(&line)?;
    let client = Client::new(&Target::Socket(engine.dir().join(CONTROL_SOCKET)))?;
    wait_ready(&client, &mut engine).await?;
    let ledger = MongoLedger::over(rig.client.clone(), &line.metadata_db, CALL_LIMIT)?;

    say(&format!("{}: {} s of jobs of {:.0} ms on a real engine", load.name, load.seconds, backend.service * 1_000.0));
    let start = clock::now();
    let capacity = backend.capacity(bounds.max);
    let (made, trace) = tokio::join!(make(&ledger, load, backend, capacity, start), watch(&client, load, capacity, start));
    made?;
    rig.stop_engine(&mut engine).await?;
    trace
}

async fn wait_ready(client: &Client, engine: &mut ArgonProcess) -> Result<()> {
    let deadline = clock::now() + START_LIMIT;
    loop {
        match client.get::<Seen>("/api/v1/scaler?limit=1").await {
            Ok(seen) if seen.pool.current > 0 => return Ok(()),
            _ if clock::now() < deadline && engine.exited().is_none() => tokio::time::sleep(Duration::from_millis(100)).await,
            Ok(_) => return Err(Fault::transient(format!("argon run has no workers: {}", engine.log_tail(2_000).trim()))),
            Err(fault) => return Err(Fault::transient(format!("{}: {}", fault.what, engine.log_tail(2_000).trim()))),
        }
    }
}

/// Makes the jobs that have become due, group by group; what could not be made in time is made late, not left out.
async fn make(ledger: &MongoLedger, load: &Load, backend: &Backend, capacity: f64, start: Instant) -> Result<()> {
    let (mut t, mut due) = (0.0, 0.0);
    let mut burst = load.burst;
    while t < load.seconds {
        let now = start.elapsed().as_secs_f64().min(load.seconds);
        while t < now {
            t += TICK.as_secs_f64();
            due += load.rate(t, capacity) * TICK.as_secs_f64();
            if let Some((_, jobs)) = burst.take_if(|(at, _)| *at <= t) {
                due += f64::from(jobs);
            }
        }
        let duration_ms = Duration::from_secs_f64(backend.service * load.weight(t)).as_millis();
        let params = rawdoc! { "duration_ms": i64::try_from(duration_ms).unwrap_or(i64::MAX) };
        while due >= 1.0 {
            let jobs: Vec<NewJob> = (0..MAX_ENQUEUE)
                .take_while(|_| {
                    let is_due = due >= 1.0;
                    due -= if is_due { 1.0 } else { 0.0 };
                    is_due
                })
                .map(|_| NewJob { params: Some(params.clone()), ..NewJob::new(random::ordered_id(), JobKind::Noop) })
                .collect();
            ledger.enqueue(&jobs).await?;
        }
        tokio::time::sleep(TICK).await;
    }
    Ok(())
}

/// A look each second.
async fn watch(client: &Client, load: &Load, capacity: f64, start: Instant) -> Result<Trace> {
    let mut trace = Trace::default();
    let mut tick = tokio::time::interval(Duration::from_secs(1));
    tick.tick().await;
    let mut last = 0.0;
    loop {
        tick.tick().await;
        let at = start.elapsed().as_secs_f64();
        if at > load.seconds {
            return Ok(trace);
        }
        let seen: Seen = client.get("/api/v1/scaler?limit=1").await?;
        let backlog = seen.decisions.first().map_or(0, |decision| decision.inputs.backlog);
        let target = seen.pool.target;
        trace.worker_seconds += real(u64::from(seen.pool.current)) * (at - last);
        trace.seconds.push(Second { at, rate: load.rate(at, capacity), target, backlog, completed: 0 });
        last = at;
    }
}
