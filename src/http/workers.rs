//! `/api/v1/workers/*`: who works, what the queue holds, how many shall work.
//!
//! Owns: these answers, whose first fields are those of the original description. Does not own: the figures (`ledger`, `pool`).

use std::collections::BTreeMap;
use std::time::Duration;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::api::Api;
use super::call::{Call, Json, NoBody, NoQuery, whole};
use super::problem::Problem;
use crate::branch::point::rfc3339;
use crate::fault::{Fault, Result};
use crate::ledger::{Attempts, EngineStatus, JobKind, PinRow, PoolRow, QueueStats, StateCount, WorkerRow};
use crate::runtime::clock;

/// Fewest and most sync workers of an engine.
const WORKERS: std::ops::RangeInclusive<i64> = 1..=20;
/// Longest time for a pin that ends by itself: a month.
const MOST_MINUTES: u64 = 31 * 24 * 60;
/// How long an answer waits for new workers.
const GROWTH_TIME: Duration = Duration::from_secs(1);
/// How long the other engines' figures may take before only our own are shown.
const OTHERS_TIME: Duration = Duration::from_secs(2);

/// `GET /api/v1/workers/stats`
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct WorkersStats {
    /// Sync workers of all engines.
    pub workers: Vec<Worker>,
    pub summary: Summary,
    /// Workers of the other kinds, of all engines.
    pub slots: Vec<Worker>,
    pub engines: Vec<Engine>,
    /// MongoDB did not say in time what the other engines do: these are this engine's figures alone.
    pub partial: bool,
}

/// One worker since it was started.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Worker {
    pub worker_id: String,
    pub jobs_processed: u64,
    pub jobs_succeeded: u64,
    pub jobs_failed: u64,
    /// Milliseconds.
    pub avg_process_time: f64,
    /// End of its last attempt, or now while it is busy; its engine's start before the first.
    pub last_active_at: String,
    /// It is alive.
    pub is_active: bool,
    /// It works on a job at this moment.
    pub busy: bool,
    pub engine: String,
    pub kind: Option<JobKind>,
    /// Milliseconds.
    pub p50_process_time: f64,
    /// Milliseconds.
    pub p99_process_time: f64,
    pub job: Option<String>,
}

/// All sync workers together.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Summary {
    pub total_workers: u64,
    pub active_workers: u64,
    pub total_processed: u64,
    pub total_succeeded: u64,
    pub total_failed: u64,
    /// Percent; 100 while nothing has been processed.
    pub success_rate: f64,
    pub busy_workers: u64,
}

/// One engine.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Engine {
    pub engine: String,
    pub host: String,
    pub pid: u32,
    pub version: String,
    pub started_at: String,
    /// It is the one that answers.
    pub this: bool,
    /// Its heartbeat is recent.
    pub alive: bool,
    pub draining: bool,
    pub pool: Pool,
    /// Captures that it follows.
    pub captures: u32,
}

/// The size of a pool of sync workers.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Pool {
    pub target: u16,
    pub current: u16,
    pub min: u16,
    pub max: u16,
    /// An operator holds the size.
    pub pin: Option<Pin>,
}

/// A size held by an operator.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Pin {
    pub target: u16,
    /// When it ends by itself.
    pub until: Option<String>,
}

impl From<&PoolRow> for Pool {
    fn from(row: &PoolRow) -> Self {
        let pin = row.pin.as_ref().map(|pin: &PinRow| Pin { target: pin.target, until: pin.until_ms.map(rfc3339) });
        Self { target: row.target, current: row.current, min: row.min, max: row.max, pin }
    }
}

/// `GET /api/v1/workers/queue`
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Queue {
    /// All jobs that ever were: pending, running, completed, failed and cancelled.
    pub total_jobs: u64,
    /// Scheduled and ready.
    pub pending_jobs: u64,
    pub running_jobs: u64,
    /// Lifetime figure: finished jobs that have been cleaned up count.
    pub completed_jobs: u64,
    /// Dead: they wait for an operator.
    pub failed_jobs: u64,
    /// The same jobs by kind.
    pub jobs_by_type: BTreeMap<JobKind, u64>,
    /// Seconds between the moment at which a job could run and the begin of its attempt, recent jobs of this engine.
    pub avg_wait_time: f64,
    pub scheduled_jobs: u64,
    pub ready_jobs: u64,
    /// Lifetime figure.
    pub cancelled_jobs: u64,
    /// Seconds that the job which is next in line has waited.
    pub oldest_ready_seconds: f64,
    /// A figure is older than this answer: it was counted in the background at this time.
    pub as_of: Option<String>,
    /// Some state holds more jobs than have been counted yet: the figures are lower bounds.
    pub at_least: bool,
}

/// `POST /api/v1/workers/scale`
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
#[schemars(extend("oneOf" = [
    { "required": ["target_workers"], "properties": { "target_workers": { "type": "integer" }, "release": { "const": false } } },
    { "required": ["release"], "properties": { "release": { "const": true }, "target_workers": { "type": "null" }, "minutes": { "type": "null" } } },
]))]
pub struct ScaleRequest {
    /// Sync workers of the engine, 1 to 20, until released.
    #[serde(default, skip_serializing_if = "Option::is_none", deserialize_with = "whole")]
    #[schemars(range(min = 1, max = 20))]
    pub target_workers: Option<i64>,
    /// The pin ends by itself after so many minutes.
    #[serde(default, skip_serializing_if = "Option::is_none", deserialize_with = "whole")]
    #[schemars(range(min = 1, max = 44640))]
    pub minutes: Option<u64>,
    /// Ends the pin instead: the scaler decides again.
    #[serde(default)]
    pub release: bool,
}

/// Whose workers.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum ScaleScope {
    /// The engine that answers.
    #[default]
    Engine,
    /// Every engine, those that start later too.
    All,
}

/// Query of `/api/v1/workers/scale`.
#[derive(Debug, Clone, Copy, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct ScaleQuery {
    #[serde(default)]
    pub scope: ScaleScope,
}

/// Answer of `/api/v1/workers/scale`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct ScaleAnswer {
    pub message: String,
    pub target_workers: u16,
    /// Workers of this engine now: busy ones finish their job first.
    pub current_workers: u16,
    pub scope: ScaleScope,
    pub engine: String,
    pub pin: Option<Pin>,
}

pub(super) async fn stats(call: Call<NoQuery, NoBody>) -> Result<Json<WorkersStats>, Problem> {
    let (engines, partial) = engines(&call.api).await;
    let mut stats = WorkersStats { workers: Vec::new(), summary: summary(&[], &[]), slots: Vec::new(), engines: Vec::new(), partial };
    let mut attempts = Vec::new();
    for engine in engines {
        attempts.push(engine.status.sync_attempts.clone());
        for row in &engine.status.workers {
            let list = if row.kind.is_none_or(|kind| kind == JobKind::Sync) { &mut stats.workers } else { &mut stats.slots };
            list.push(worker(row, &engine));
        }
        stats.engines.push(Engine {
            host: engine.host,
            pid: engine.pid,
            version: engine.status.version,
            started_at: rfc3339(engine.status.started_ms),
            this: engine.this,
            alive: engine.alive,
            draining: engine.status.draining,
            pool: (&engine.status.pool).into(),
            captures: engine.status.captures,
            engine: engine.id,
        });
    }
    stats.summary = summary(&stats.workers, &attempts);
    Ok(Json(stats))
}

/// What is known of one engine.
struct Known {
    id: String,
    host: String,
    pid: u32,
    this: bool,
    alive: bool,
    status: EngineStatus,
}

/// All engines, our own first and as it is now. The call is left behind, not dropped, when it takes too long.
async fn engines(api: &Api) -> (Vec<Known>, bool) {
    let id = api.engine.id();
    let me = crate::runtime::identity::this_process();
    let own = Known { id: id.clone(), host: me.host, pid: me.pid, this: true, alive: true, status: api.engine.status() };
    let ledger = api.ledger.clone();
    let asked = tokio::time::timeout(OTHERS_TIME, tokio::spawn(async move { ledger.engines().await })).await;
    let Ok(Ok(Ok(beats))) = asked else { return (vec![own], true) };
    let newest = beats.iter().map(|beat| beat.beat_ms).max().unwrap_or_default();
    let others = beats.into_iter().filter(|beat| beat.id != id).map(|beat| Known {
        alive: beat.is_heard(newest),
        id: beat.id,
        host: beat.host,
        pid: beat.pid,
        this: false,
        status: beat.status.unwrap_or_default(),
    });
    let all = std::iter::once(own).chain(others).collect();
    (all, false)
}

fn worker(row: &WorkerRow, engine: &Known) -> Worker {
    Worker {
        worker_id: row.name.clone(),
        jobs_processed: row.processed,
        jobs_succeeded: row.succeeded,
        jobs_failed: row.failed,
        avg_process_time: rounded(row.avg_ms, 1),
        last_active_at: rfc3339(row.last_active_ms.unwrap_or(engine.status.started_ms)),
        is_active: engine.alive,
        busy: row.busy,
        engine: engine.id.clone(),
        kind: row.kind,
        p50_process_time: rounded(row.p50_ms, 2),
        p99_process_time: rounded(row.p99_ms, 2),
        job: row.job.clone(),
    }
}

/// Workers that there are, and what the engines' sync workers have done, those that exist no more included.
fn summary(workers: &[Worker], attempts: &[Attempts]) -> Summary {
    let sum = |of: fn(&Worker) -> u64| workers.iter().map(of).sum::<u64>();
    let (succeeded, failed) = attempts.iter().fold((0, 0), |(succeeded, failed), of| (succeeded + of.succeeded, failed + of.failed));
    let processed = succeeded + failed;
    Summary {
        total_workers: workers.len() as u64,
        active_workers: sum(|w| u64::from(w.is_active)),
        total_processed: processed,
        total_succeeded: succeeded,
        total_failed: failed,
        success_rate: if processed == 0 { 100.0 } else { rounded(100.0 * real(succeeded) / real(processed), 2) },
        busy_workers: sum(|w| u64::from(w.busy)),
    }
}

pub(super) async fn queue(call: Call<NoQuery, NoBody>) -> Result<Json<Queue>, Problem> {
    let stats = call.api.ledger.queue_stats().await?;
    Ok(Json(Queue::new(&stats, call.api.engine.status().avg_wait_ms)))
}

impl Queue {
    /// What the ledger knows, and the average wait that the engine has seen.
    pub fn new(stats: &QueueStats, avg_wait_ms: f64) -> Self {
        let states: [&StateCount; 4] = [&stats.scheduled, &stats.ready, &stats.running, &stats.dead];
        let lifetime = [&stats.counters.done, &stats.counters.cancelled];
        let mut by_kind: BTreeMap<JobKind, u64> = BTreeMap::new();
        for counts in states.iter().map(|state| &state.by_kind).chain(lifetime) {
            for (kind, n) in counts {
                *by_kind.entry(*kind).or_default() += n;
            }
        }
        let (completed, cancelled) = (stats.counters.done.values().sum(), stats.counters.cancelled.values().sum());
        let as_of = states.iter().filter_map(|state| state.as_of_ms).min();
        Queue {
            total_jobs: by_kind.values().sum(),
            pending_jobs: stats.scheduled.total() + stats.ready.total(),
            running_jobs: stats.running.total(),
            completed_jobs: completed,
            failed_jobs: stats.dead.total(),
            jobs_by_type: by_kind,
            avg_wait_time: rounded(avg_wait_ms / 1000.0, 3),
            scheduled_jobs: stats.scheduled.total(),
            ready_jobs: stats.ready.total(),
            cancelled_jobs: cancelled,
            oldest_ready_seconds: rounded(stats.oldest_ready.values().max().copied().unwrap_or_default().as_secs_f64(), 3),
            as_of: as_of.map(rfc3339),
            at_least: states.iter().any(|state| state.at_least),
        }
    }
}

pub(super) async fn scale(call: Call<ScaleQuery, Json<ScaleRequest>>) -> Result<Json<ScaleAnswer>, Problem> {
    let Json(asked) = &call.body;
    let target = match (asked.target_workers, asked.release) {
        (None, true) if asked.minutes.is_none() => None,
        (Some(target), false) => Some(checked(target)?),
        _ => {
            return Err(Problem::bad_request(
                "give either target_workers (1 to 20, and minutes if it shall end by itself) or release: true",
            ));
        }
    };
    if asked.minutes.is_some_and(|m| !(1..=MOST_MINUTES).contains(&m)) {
        return Err(Problem::bad_request(format!("minutes: allowed are 1 to {MOST_MINUTES}")));
    }
    let hold = asked.minutes.map(|m| Duration::from_secs(m * 60));
    Ok(Json(set_scale(&call.api, call.query.scope, target, hold, &call.caller.name).await?))
}

pub(super) async fn release(call: Call<ScaleQuery, NoBody>) -> Result<Json<ScaleAnswer>, Problem> {
    Ok(Json(set_scale(&call.api, call.query.scope, None, None, &call.caller.name).await?))
}

fn checked(target: i64) -> Result<u16, Problem> {
    let fits = WORKERS.contains(&target).then(|| u16::try_from(target).ok()).flatten();
    fits.ok_or_else(|| Problem::bad_request(format!("target_workers: {target} is not in 1..20; nothing has changed")))
}

/// The own engine first: a number that its settings exclude must not become every engine's.
async fn set_scale(api: &Api, scope: ScaleScope, target: Option<u16>, hold: Option<Duration>, by: &str) -> Result<ScaleAnswer, Fault> {
    let mut row = match target {
        Some(target) => api.engine.scale(target, hold)?,
        None => api.engine.release_pin()?,
    };
    // A worker starts within milliseconds, so the answer waits for it; a busy one that is to go may take minutes.
    let until = clock::now() + GROWTH_TIME;
    while target.is_some_and(|target| row.current < target) && clock::now() < until {
        tokio::time::sleep(Duration::from_millis(10)).await;
        row = api.engine.status().pool;
    }
    if scope == ScaleScope::All {
        api.ledger.set_scale(target, hold, by).await.map_err(|fault| fault.at("this engine has changed, the others have not been told"))?;
    }
    tracing::info!(target, hold_s = hold.map(|h| h.as_secs()), ?scope, by, "number of workers set by an operator");
    api.events
        .publish("scale", &serde_json::json!({ "target_workers": target, "scope": scope, "by": by, "time": rfc3339(clock::wall_ms()) }));
    Ok(ScaleAnswer {
        message: if target.is_some() { "workers scaled successfully" } else { "workers released successfully" }.into(),
        target_workers: target.unwrap_or(row.target),
        current_workers: row.current,
        scope,
        engine: api.engine.id(),
        pin: Pool::from(&row).pin,
    })
}

/// `value` with so many decimals; what is not finite is nothing.
pub(super) fn rounded(value: f64, decimals: i32) -> f64 {
    if !value.is_finite() {
        return 0.0;
    }
    let factor = 10f64.powi(decimals);
    (value * factor).round() / factor
}

/// A count as a floating point number.
#[allow(clippy::cast_precision_loss)] // far below 2^52
pub(super) fn real(n: u64) -> f64 {
    n as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_queue_adds_up_by_state_and_by_kind() {
        let count = |n: u64| StateCount { by_kind: BTreeMap::from([(JobKind::Sync, n)]), ..StateCount::default() };
        let mut stats = QueueStats { scheduled: count(5), ready: count(10), running: count(5), dead: count(5), ..QueueStats::default() };
        stats.counters.done.insert(JobKind::Sync, 900);
        stats.counters.done.insert(JobKind::Noop, 75);
        stats.counters.cancelled.insert(JobKind::Noop, 2);
        stats.dead.as_of_ms = Some(0);
        let queue = Queue::new(&stats, 1_234.6);
        assert_eq!((queue.pending_jobs, queue.running_jobs, queue.completed_jobs, queue.failed_jobs), (15, 5, 975, 5));
        assert_eq!((queue.total_jobs, queue.cancelled_jobs), (1002, 2));
        assert_eq!(queue.jobs_by_type.values().sum::<u64>(), queue.total_jobs);
        assert_eq!((queue.avg_wait_time, queue.as_of.as_deref()), (1.235, Some("1970-01-01T00:00:00Z")));
    }

    #[test]
    fn rates_are_rounded_and_never_not_a_number() {
        assert_eq!(rounded(100.0 * 745.0 / 750.0, 2), 99.33);
        assert_eq!(rounded(f64::NAN, 1), 0.0);
        assert_eq!(rounded(f64::INFINITY, 1), 0.0);
        assert_eq!(summary(&[], &[]).success_rate, 100.0);
    }

    #[test]
    fn an_outage_lowers_no_success_rate_and_workers_that_are_gone_still_count() {
        let of = |succeeded, failed, given_back| Attempts { succeeded, failed, given_back, ..Attempts::default() };
        let summary = summary(&[], &[of(9, 1, 500), of(90, 0, 3)]);
        assert_eq!((summary.total_processed, summary.total_succeeded, summary.total_failed), (100, 99, 1));
        assert_eq!(summary.success_rate, 99.0);
    }
}
