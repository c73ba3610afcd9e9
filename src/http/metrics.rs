//! `/metrics`: figures are set when somebody asks for them.
//!
//! Owns: taking them from the engine's status and the queue's figures. Does not own: names (`telemetry::metrics`), measuring.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::Mutex;

use super::api::Api;
use super::call::{Call, MetricsText, NoBody, NoQuery};
use super::problem::Problem;
use super::workers::real;
use crate::fault::{Fault, Result};
use crate::ledger::{CaptureState, JobKind, QueueStats};
use crate::runtime::clock;
use crate::telemetry::metrics::{self as names, Metrics};

/// Figures of MongoDB are asked for at most so often, however many scrape.
const FRESH: Duration = Duration::from_secs(1);
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
    captures: BTreeMap<&'static str, u64>,
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
            let stats = ledger.queue_stats().await?;
            let mut captures = BTreeMap::from(STATES.map(|(_, name)| (name, 0)));
            for capture in ledger.captures().await? {
                if let Some((_, name)) = STATES.iter().find(|(state, _)| *state == capture.state) {
                    *captures.entry(*name).or_default() += 1;
                }
            }
            Ok::<_, Fault>(Stored { stats, captures })
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

pub(super) async fn scrape(call: Call<NoQuery, NoBody>) -> Result<MetricsText, Problem> {
    let api = &call.api;
    set_own(api, &api.metrics);
    match api.scraper.stored(api).await {
        Ok(stored) => set_stored(&stored, &api.metrics),
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
    m.set(&names::WORKERS_PINNED, &[], f64::from(u8::from(status.pool.pin.is_some())));
    m.total(&names::JOBS_PROCESSED, &[], status.attempts.succeeded + status.attempts.failed);
    m.total(&names::JOBS_FAILED, &[], status.attempts.failed);
    m.set(&names::CAPTURES_OWNED, &[], f64::from(status.captures));
    m.set(&names::RUNTIME_LAG, &[], api.pulse.worst().as_secs_f64());
}

fn set_stored(stored: &Stored, m: &Metrics) {
    let stats = &stored.stats;
    for (state, counts) in [("scheduled", &stats.scheduled), ("ready", &stats.ready), ("running", &stats.running), ("dead", &stats.dead)] {
        m.set(&names::JOBS, &[state], real(counts.total()));
    }
    for kind in JobKind::ALL {
        m.total(&names::JOBS_COMPLETED, &[kind.name()], stats.counters.done.get(&kind).copied().unwrap_or_default());
    }
    m.set(&names::OLDEST_READY, &[], stats.oldest_ready.values().max().copied().unwrap_or_default().as_secs_f64());
    for (state, n) in &stored.captures {
        m.set(&names::CAPTURES, &[state], real(*n));
    }
}
