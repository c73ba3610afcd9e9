//! `/metrics`: figures are set when somebody asks for them.
//!
//! Owns: taking them from the engine's status and the queue's figures. Does not own: names (`telemetry::metrics`), measuring.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::Mutex;

use super::api::Api;
use super::call::{Call, MetricsText, NoBody, NoQuery};
use super::pipeline::Pipeline;
use super::problem::Problem;
use super::workers::real;
use crate::branch::point::captured_until;
use crate::change::{ClusterTime, token_time};
use crate::fault::{Fault, Result};
use crate::ledger::{Branch, BranchStatus, Capture, CaptureState, JobKind, QueueStats, StateCount};
use crate::runtime::clock;
use crate::runtime::process::ProcessFigures;
use crate::telemetry::metrics::{self as names, Metrics};

/// Figures of MongoDB are asked for at most so often, however many scrape.
const FRESH: Duration = Duration::from_secs(1);
/// Branches that have series of their own: those that are captured, up to so many. More would burden whoever scrapes.
const MOST_BRANCHES: usize = 500;
/// A scrape answers without them when MongoDB takes longer: what the process itself knows is needed most then.
const ASK_TIME: Duration = Duration::from_secs(2);
/// And then nobody asks again for this long: whoever waits in line behind a question that fails must not ask it anew.
const FAILED: Duration = Duration::from_secs(5);

/// The queue's figures and the captures, as last read.
#[derive(Debug, Default)]
pub(super) struct Scraper {
    last: Mutex<Last>,
}

#[derive(Debug, Default)]
struct Last {
    read: Option<(Instant, Arc<Stored>)>,
    failed: Option<Instant>,
}

/// What comes from MongoDB.
#[derive(Debug)]
pub(super) struct Stored {
    stats: QueueStats,
    /// Each with its branch.
    captures: Vec<(Capture, Option<Branch>)>,
    counts: Vec<(BranchStatus, u64)>,
    /// The server's clock.
    now_ms: i64,
}

impl Scraper {
    /// One asks, the others wait for its answer.
    async fn stored(&self, api: &Api) -> Result<Arc<Stored>> {
        let mut last = self.last.lock().await;
        if let Some((at, stored)) = &last.read
            && at.elapsed() < FRESH
        {
            return Ok(stored.clone());
        }
        if last.failed.is_some_and(|at| at.elapsed() < FAILED) {
            return Err(Fault::transient("MongoDB has just not answered"));
        }
        let asked = Self::ask(api).await;
        last.failed = asked.is_err().then(clock::now);
        let stored = asked?;
        last.read = Some((clock::now(), stored.clone()));
        Ok(stored)
    }

    async fn ask(api: &Api) -> Result<Arc<Stored>> {
        let ledger = api.ledger.clone();
        // A task of its own: a driver's future is never dropped half way.
        let asked = tokio::spawn(async move {
            let (stats, now_ms) = (ledger.queue_stats().await?, ledger.now_ms().await?);
            let captures = ledger.captures().await?;
            let ids: Vec<_> = captures.iter().map(|capture| capture.branch.clone()).collect();
            let mut branches: BTreeMap<_, _> = ledger.branches_of(&ids).await?.into_iter().map(|b| (b.id.clone(), b)).collect();
            let captures = captures.into_iter().map(|capture| {
                let branch = branches.remove(&capture.branch);
                (capture, branch)
            });
            Ok::<_, Fault>(Stored { stats, captures: captures.collect(), counts: ledger.branch_counts().await?, now_ms })
        });
        let answer = tokio::time::timeout(ASK_TIME, asked).await.map_err(|_| Fault::transient("MongoDB has not answered in time"))?;
        Ok(Arc::new(answer.map_err(|e| Fault::unknown(e.to_string()))??))
    }

    /// The queue's figures, at most a second old.
    pub(super) async fn stats(&self, api: &Api) -> Result<QueueStats> {
        Ok(self.stored(api).await?.stats.clone())
    }
}

const STATES: [(CaptureState, &str); 4] = [
    (CaptureState::Running, "running"),
    (CaptureState::Stopped, "stopped"),
    (CaptureState::Failed, "failed"),
    (CaptureState::Paused, "paused"),
];

const STATUSES: [(BranchStatus, &str); 6] = [
    (BranchStatus::Active, "active"),
    (BranchStatus::Stalled, "stalled"),
    (BranchStatus::Gap, "gap"),
    (BranchStatus::Failed, "failed"),
    (BranchStatus::Archived, "archived"),
    (BranchStatus::Deleted, "deleted"),
];

pub(super) async fn scrape(call: Call<NoQuery, NoBody>) -> Result<MetricsText, Problem> {
    let api = &call.api;
    set_own(api, &api.metrics);
    match api.scraper.stored(api).await {
        Ok(stored) => set_stored(api, &stored, &api.metrics),
        Err(fault) => tracing::debug!(error = %fault, "metrics without the figures of MongoDB"),
    }
    Ok(MetricsText(api.metrics.render()))
}

/// What the process knows of itself.
fn set_own(api: &Api, m: &Metrics) {
    let status = api.engine.status();
    m.set(&names::BUILD, &[env!("CARGO_PKG_VERSION")], 1.0);
    m.set(&names::UPTIME, &[], api.started.elapsed().as_secs_f64());
    let health = api.health();
    m.set(&names::HEALTH, &["all"], health.status.level());
    for (name, check) in health.checks.all() {
        m.set(&names::HEALTH, &[name], check.status.level());
    }
    let is_sync = |kind: Option<JobKind>| kind.is_none_or(|kind| kind == JobKind::Sync);
    let busy = status.workers.iter().filter(|w| is_sync(w.kind) && w.busy).count() as u64;
    m.set(&names::WORKERS, &["running"], f64::from(status.pool.current));
    m.set(&names::WORKERS, &["busy"], real(busy));
    m.set(&names::WORKERS_TARGET, &[], f64::from(status.pool.target));
    m.set(&names::WORKERS_LIMIT, &["min"], f64::from(status.pool.min));
    m.set(&names::WORKERS_LIMIT, &["max"], f64::from(status.pool.max));
    m.set(&names::WORKERS_PINNED, &[], f64::from(u8::from(status.pool.pin.is_some())));
    m.set(&names::CAPTURES_OWNED, &[], f64::from(status.captures));
    m.set(&names::RUNTIME_LAG, &[], api.pulse.worst().as_secs_f64());
    if let Some(free) = *api.probes.free.read() {
        m.set(&names::STORE_FREE, &[], real(free));
    }
    let process = ProcessFigures::read();
    m.set(&names::PROCESS_MEMORY, &[], real(process.resident_bytes));
    m.total(&names::PROCESS_CPU, &[], process.cpu_seconds);
    m.set(&names::PROCESS_THREADS, &[], real(process.threads));
    m.set(&names::PROCESS_FILES, &[], real(process.open_files));
    set_pressure(&Pipeline::of(api), m);
    for (branch, capture) in api.engine.meters().captures().iter().take(MOST_BRANCHES) {
        m.set(&names::CAPTURE_READ_DELAY, &[branch], capture.read_delay().as_secs_f64());
        if let Some(left) = capture.oplog() {
            m.set(&names::OPLOG_WINDOW, &[branch], left.as_secs_f64());
        }
    }
    m.set(&names::LEADER, &[], f64::from(u8::from(api.engine.pressure().leads)));
}

fn set_pressure(pipeline: &Pipeline, m: &Metrics) {
    for link in &pipeline.links {
        m.set(&names::LINK_DEPTH, &[link.link], real(link.depth));
        m.set(&names::LINK_CAPACITY, &[link.link], real(link.capacity));
    }
    m.set(&names::MEMORY_BUDGET, &["used"], real(pipeline.memory.used));
    m.set(&names::MEMORY_BUDGET, &["limit"], real(pipeline.memory.limit));
}

fn set_stored(api: &Api, stored: &Stored, m: &Metrics) {
    let stats = &stored.stats;
    let of = |count: &StateCount, kind: &JobKind| real(count.by_kind.get(kind).copied().unwrap_or_default());
    for kind in &JobKind::ALL {
        let name = kind.name();
        for (state, count) in [("scheduled", &stats.scheduled), ("ready", &stats.ready), ("running", &stats.running), ("dead", &stats.dead)]
        {
            m.set(&names::JOBS, &[state, name], of(count, kind));
        }
        m.total(&names::JOBS_COMPLETED, &[name], stats.counters.done.get(kind).copied().unwrap_or_default());
        m.total(&names::JOBS_CANCELLED, &[name], stats.counters.cancelled.get(kind).copied().unwrap_or_default());
        m.set(&names::OLDEST_READY, &[name], stats.oldest_ready.get(kind).copied().unwrap_or_default().as_secs_f64());
    }
    for (state, name) in STATES {
        m.set(&names::CAPTURES, &[name], real(stored.captures.iter().filter(|(c, _)| c.state == state).count() as u64));
    }
    let waiting = |c: &Capture| c.state == CaptureState::Running && c.reason.is_some();
    m.set(&names::CAPTURES_WAITING, &[], real(stored.captures.iter().filter(|(c, _)| waiting(c)).count() as u64));
    for (status, name) in STATUSES {
        let count = stored.counts.iter().find(|(known, _)| *known == status).map_or(0, |(_, count)| *count);
        m.set(&names::BRANCHES, &[name], real(count));
    }
    let fullest = stored.captures.iter().filter_map(|(c, b)| Some(c.queued_bytes.saturating_sub(b.as_ref()?.settled_bytes))).max();
    m.set(&names::QUEUE_PAYLOAD, &["used"], real(fullest.unwrap_or_default()));
    m.set(&names::QUEUE_PAYLOAD, &["limit"], real(api.engine.pressure().queue_limit));
    for (capture, branch) in stored.captures.iter().filter_map(|(c, b)| Some((c, b.as_ref()?))).take(MOST_BRANCHES) {
        set_branch(capture, branch, stored.now_ms, m);
    }
}

fn set_branch(capture: &Capture, branch: &Branch, now_ms: i64, m: &Metrics) {
    let name: &[&str] = &[&branch.name];
    for (status, word) in STATUSES {
        m.set(&names::BRANCH_STATUS, &[&branch.name, word], f64::from(u8::from(branch.status == status)));
    }
    m.set(&names::BRANCH_HEAD, name, real(branch.head.seq));
    m.set(&names::BRANCH_CHANGES, name, real(branch.totals.changes));
    m.set(&names::BRANCH_RAW, name, real(branch.totals.raw_bytes));
    m.set(&names::BRANCH_STORED, name, real(branch.totals.stored_bytes));
    m.set(&names::BRANCH_SEGMENTS, name, real(branch.totals.segments));
    if let Some(until) = until(capture, branch) {
        m.set(&names::BRANCH_RESTORABLE, name, f64::from(until.t));
        if capture.state == CaptureState::Running {
            m.set(&names::CAPTURE_COMMIT_DELAY, name, real(behind(until, now_ms)));
        }
    }
    if let Some(proven) = &branch.proven {
        m.set(&names::BRANCH_PROVEN, name, real(u64::try_from(proven.at_ms / 1_000).unwrap_or(0)));
    }
}

/// Every change up to this time is committed.
pub(super) fn until(capture: &Capture, branch: &Branch) -> Option<ClusterTime> {
    let position = Some((token_time(&capture.position.token).ok()?, capture.position.next_seq));
    captured_until(position, branch.head.seq, branch.head.time, None)
}

/// Seconds of the metadata server's clock since then.
pub(super) fn behind(until: ClusterTime, now_ms: i64) -> u64 {
    u64::try_from(now_ms / 1_000 - i64::from(until.t)).unwrap_or(0)
}
