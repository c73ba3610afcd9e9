//! `/health`, `/ready`: is the engine well, and may work be sent to it.
//!
//! Owns: the checks, what they add up to, asking MongoDB and the store now and then. Does not own: what the engine says of captures and
//! workers ([`EngineView::checks`](super::EngineView::checks)).
//!
//! Everything is read from memory: the answer is as quick when MongoDB hangs, and the control socket gives it from a thread of its own when the
//! async runtime does.

use std::sync::Arc;
use std::time::Duration;

use parking_lot::RwLock;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use tokio_util::sync::CancellationToken;

use super::api::{Api, EngineView};
use super::call::{Call, NoBody, NoQuery, Verdict};
use super::problem::Problem;
use crate::fault::{Fault, Result};
use crate::ledger::{Capture, CaptureState, SharedLedger};
use crate::runtime::random;
use crate::store::Store;

/// Time between looks at MongoDB, and how long one may take: what is away is seen within the sum. A look reads the rows of captures, unless
/// the engine has just done so.
const ASK_MONGODB: Duration = Duration::from_secs(3);
const MONGODB_TIME: Duration = Duration::from_secs(3);
/// The same for the store; a listing of one object costs about 1.4 cents a day on S3.
const ASK_STORE: Duration = Duration::from_secs(30);
const STORE_TIME: Duration = Duration::from_secs(10);
/// Delay of the runtime that is worth a word, and the one at which nothing works any more.
const LAG_DEGRADED: Duration = Duration::from_secs(1);
const LAG_UNHEALTHY: Duration = Duration::from_secs(5);

/// How a part or the whole is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Condition {
    #[default]
    Ok,
    /// Works, less well or with delay; heals by itself or needs a look.
    Degraded,
    /// Does not work: the process should be started anew.
    Unhealthy,
}

impl Condition {
    /// 1, 0.5, 0.
    pub(super) fn level(self) -> f64 {
        match self {
            Self::Ok => 1.0,
            Self::Degraded => 0.5,
            Self::Unhealthy => 0.0,
        }
    }
}

/// One part.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
pub struct Check {
    pub status: Condition,
    /// Why it is not ok.
    pub reason: Option<String>,
}

impl Check {
    pub fn ok() -> Self {
        Self::default()
    }

    pub fn degraded(reason: impl Into<String>) -> Self {
        Self { status: Condition::Degraded, reason: Some(reason.into()) }
    }

    pub fn unhealthy(reason: impl Into<String>) -> Self {
        Self { status: Condition::Unhealthy, reason: Some(reason.into()) }
    }
}

/// The parts.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Checks {
    pub mongodb: Check,
    pub store: Check,
    pub captures: Check,
    pub workers: Check,
    pub runtime: Check,
}

impl Checks {
    /// With their names.
    pub fn all(&self) -> [(&'static str, &Check); 5] {
        [
            ("mongodb", &self.mongodb),
            ("store", &self.store),
            ("captures", &self.captures),
            ("workers", &self.workers),
            ("runtime", &self.runtime),
        ]
    }

    /// The worst of them.
    pub fn overall(&self) -> Condition {
        self.all().iter().map(|(_, check)| check.status).max().unwrap_or_default()
    }
}

/// `GET /health`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Health {
    pub status: Condition,
    pub version: String,
    pub uptime_seconds: u64,
    pub checks: Checks,
}

/// `GET /ready`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Ready {
    pub ready: bool,
    /// Why not.
    pub reason: Option<String>,
}

/// What was last seen of MongoDB and the store.
#[derive(Debug, Clone)]
pub(super) struct Probes {
    mongodb: Arc<RwLock<Check>>,
    store: Arc<RwLock<Check>>,
    captures: Arc<RwLock<Check>>,
    /// Free bytes of the store, where they have an end.
    pub(super) free: Arc<RwLock<Option<u64>>>,
}

impl Probes {
    /// Asks until `stop`.
    pub(super) fn start(ledger: &SharedLedger, store: &Store, engine: &Arc<dyn EngineView>, stop: &CancellationToken) -> Self {
        let captures = Arc::new(RwLock::new(Check::ok()));
        let ask_mongodb = {
            let (ledger, engine, captures) = (ledger.clone(), engine.clone(), captures.clone());
            move || {
                let (ledger, captures) = (ledger.clone(), captures.clone());
                // What the engine has just been answered need not be asked again.
                let fresh = engine.capture_rows().filter(|(at, _)| at.elapsed() < ASK_MONGODB);
                async move {
                    // While MongoDB is away, what was last seen of them stays.
                    let rows = match fresh {
                        Some((_, rows)) => rows,
                        None => Arc::new(ledger.captures().await?),
                    };
                    *captures.write() = judge(&rows);
                    Ok(())
                }
            }
        };
        let free = Arc::<RwLock<Option<u64>>>::default();
        let ask_store = {
            let (store, free) = (store.clone(), free.clone());
            move || {
                let (store, free) = (store.clone(), free.clone());
                async move {
                    store.list(".argon-probe/health", None, 1).await?;
                    // A file system that hangs holds this one thread, and nobody who scrapes.
                    *free.write() = tokio::task::spawn_blocking(move || store.free_bytes()).await.unwrap_or(None);
                    Ok(())
                }
            }
        };
        Self {
            mongodb: probe("MongoDB", ASK_MONGODB, MONGODB_TIME, stop.clone(), ask_mongodb),
            store: probe("the store", ASK_STORE, STORE_TIME, stop.clone(), ask_store),
            captures,
            free,
        }
    }
}

/// Captures that do not get on, of any engine: one that has failed, or runs and says what it waits for.
fn judge(captures: &[Capture]) -> Check {
    let ill = captures.iter().filter_map(|c| {
        let reason = c.reason.as_deref();
        match c.state {
            CaptureState::Failed => Some(format!("{} has failed: {}", c.branch_name, reason.unwrap_or("no reason given"))),
            CaptureState::Running => reason.map(|reason| format!("{} waits: {reason}", c.branch_name)),
            CaptureState::Stopped | CaptureState::Paused => None,
        }
    });
    let ill: Vec<String> = ill.take(10).collect();
    if ill.is_empty() { Check::ok() } else { Check::degraded(ill.join("; ")) }
}

/// One question, again and again. It is a task of its own that is left behind when it takes too long: dropping a driver's future half way
/// would leave the driver in doubt. The next question waits for it, so that at most one is left behind.
fn probe<F, R>(name: &'static str, every: Duration, limit: Duration, stop: CancellationToken, ask: F) -> Arc<RwLock<Check>>
where
    F: Fn() -> R + Send + 'static,
    R: Future<Output = Result<()>> + Send + 'static,
{
    let seen = Arc::new(RwLock::new(Check::ok()));
    let note = seen.clone();
    let asking = async move {
        loop {
            let mut task = tokio::spawn(ask());
            let answer = match tokio::time::timeout(limit, &mut task).await {
                Ok(ended) => ended.unwrap_or_else(|e| Err(Fault::unknown(e.to_string()))),
                Err(_) => {
                    *note.write() = Check::degraded(format!("{name} has not answered for {}", humantime::format_duration(limit)));
                    task.await.unwrap_or_else(|e| Err(Fault::unknown(e.to_string())))
                }
            };
            *note.write() = answer.map_or_else(|fault| Check::degraded(fault.what), |()| Check::ok());
            tokio::time::sleep(random::jitter(every)).await;
        }
    };
    tokio::spawn(async move {
        tokio::select! {
            () = asking => {}
            () = stop.cancelled() => {}
        }
    });
    seen
}

impl Api {
    /// The health of the process now.
    pub fn health(&self) -> Health {
        let engine = self.engine.checks();
        let rows = self.probes.captures.read().clone();
        let captures = if engine.captures.status >= rows.status { engine.captures } else { rows };
        let checks = Checks {
            mongodb: self.probes.mongodb.read().clone(),
            store: self.probes.store.read().clone(),
            captures,
            workers: engine.workers,
            runtime: runtime(self.pulse.lag()),
        };
        Health {
            status: checks.overall(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            uptime_seconds: self.started.elapsed().as_secs(),
            checks,
        }
    }

    /// Whether to send work: not while stopping, nor while MongoDB does not answer. A store that is away is bridged by the queue.
    pub fn ready(&self) -> Ready {
        let health = self.health();
        let reason = if self.engine.is_draining() {
            Some("stopping".to_owned())
        } else if health.checks.mongodb.status != Condition::Ok {
            Some(format!("mongodb: {}", health.checks.mongodb.reason.unwrap_or_default()))
        } else {
            let unhealthy = health.checks.all().into_iter().find(|(_, check)| check.status == Condition::Unhealthy);
            unhealthy.map(|(name, check)| format!("{name}: {}", check.reason.clone().unwrap_or_default()))
        };
        Ready { ready: reason.is_none(), reason }
    }
}

fn runtime(lag: Duration) -> Check {
    let said = format!("tasks have not run for {:.1} s", lag.as_secs_f64());
    if lag >= LAG_UNHEALTHY {
        Check::unhealthy(said)
    } else if lag >= LAG_DEGRADED {
        Check::degraded(said)
    } else {
        Check::ok()
    }
}

pub(super) async fn health(call: Call<NoQuery, NoBody>) -> Result<Verdict<Health>, Problem> {
    let health = call.api.health();
    Ok(Verdict { well: health.status != Condition::Unhealthy, body: health })
}

pub(super) async fn ready(call: Call<NoQuery, NoBody>) -> Result<Verdict<Ready>, Problem> {
    let ready = call.api.ready();
    Ok(Verdict { well: ready.ready, body: ready })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_whole_is_as_ill_as_its_worst_part() {
        let mut checks =
            Checks { mongodb: Check::ok(), store: Check::ok(), captures: Check::ok(), workers: Check::ok(), runtime: Check::ok() };
        assert_eq!(checks.overall(), Condition::Ok);
        checks.store = Check::degraded("slow");
        assert_eq!(checks.overall(), Condition::Degraded);
        checks.runtime = runtime(Duration::from_secs(6));
        assert_eq!(checks.overall(), Condition::Unhealthy);
        assert!(checks.runtime.reason.unwrap().contains("6.0 s"));
        assert_eq!(runtime(Duration::from_millis(20)), Check::ok());
    }

    #[tokio::test]
    async fn what_hangs_is_said_and_what_comes_back_is_seen() {
        let (stop, hangs) = (CancellationToken::new(), Arc::new(tokio::sync::Semaphore::new(0)));
        let gate = hangs.clone();
        let seen = probe("MongoDB", Duration::from_millis(10), Duration::from_millis(50), stop.clone(), move || {
            let gate = gate.clone();
            async move { gate.acquire().await.map(drop).map_err(|_| Fault::transient("closed")) }
        });
        let until = async |wanted: Check| {
            while *seen.read() != wanted {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        let all = async {
            until(Check::degraded("MongoDB has not answered for 50ms")).await;
            hangs.add_permits(1);
            until(Check::ok()).await;
            hangs.close();
            until(Check::degraded("closed")).await;
        };
        tokio::time::timeout(Duration::from_secs(20), all).await.unwrap();
        stop.cancel();
    }
}
