//! The wiring: creates every link, starts every stage, owns drain and abort.
//!
//! Owns: one engine process: its heartbeat, the captures it follows, the pool, and the order in which all of that stops.
//! Does not own: what any stage does.
//!
//! ```text
//!  capture manager ─▶ CaptureRun (ingest ▶ assemble ▶ checkpoint) ═▶ queue ═▶ Claimer ─[claimed]▶ Worker × n ─[commits]▶ Committer
//! ```
//!
//! Stopping: *draining* stops the captures and the claimer; workers end when the claimer's link is empty, the committer when the last
//! worker is gone. At the deadline *aborting* gives leases back without counting the attempt. A stage that ends before it was told to is a
//! bug: the engine aborts with a fault, so that a supervisor starts it anew, instead of living on with a part missing.

mod attempt;
mod captures;
mod mirror;
mod streak;
mod upkeep;

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{Mutex, Notify};
use tokio::task::JoinSet;

use crate::capture::{AssemblePolicy, CaptureSettings};
use crate::config::EngineSettings;
use crate::fault::{Fault, Result};
use crate::ledger::{EngineBeat, SharedLedger};
use crate::pool::{ClaimSettings, Claimed, Claimer, InWork, MemoryBudget, Worker, WorkerSettings, WorkerStats};
use crate::queue::RetryPolicy;
use crate::runtime::backoff::Backoff;
use crate::runtime::cpu::CpuPool;
use crate::runtime::identity;
use crate::runtime::link::link;
use crate::runtime::shutdown::Shutdown;
use crate::store::Store;
use crate::sync::{Committer, SyncJob, Targets};

use captures::Captures;
pub use captures::SourceOpener;
use upkeep::Upkeep;

/// Jobs claimed beyond the free workers: hides the claim's round trip, small enough that another engine finds work too.
const PREFETCH: usize = 2;
/// CPU units waiting or running per CPU: one runs while one waits.
const CPU_UNITS_PER_THREAD: usize = 2;
/// After an abort, how long the giving back of leases may take.
const GIVE_BACK_TIME: Duration = Duration::from_secs(5);

/// An engine that has not started.
pub struct Engine {
    pub ledger: SharedLedger,
    pub store: Store,
    pub sources: Arc<dyn SourceOpener>,
    pub settings: EngineSettings,
    pub stop: Shutdown,
}

/// How an engine ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum EngineEnd {
    /// Everything read was stored, everything claimed was finished.
    Drained,
    /// The deadline passed; leases were given back.
    DeadlinePassed,
    /// Others took this process for dead, or it could not renew its lease in time.
    LeaseLost,
}

impl Engine {
    /// Runs until `stop` is drained from outside or the lease is lost.
    pub async fn run(self) -> Result<EngineEnd> {
        self.run_as(identity::this_process()).await
    }

    /// As [`Self::run`], under a given identity: several engines in one process must not take each other for earlier lives of it.
    pub async fn run_as(self, me: EngineBeat) -> Result<EngineEnd> {
        let threads = std::thread::available_parallelism().map_or(2, std::num::NonZero::get);
        let cpu = CpuPool::new(threads, threads * CPU_UNITS_PER_THREAD)?;
        let stats = Arc::new(WorkerStats::default());
        let bell = Arc::new(Notify::new());
        let in_work = InWork::default();

        // The heartbeat comes first: nothing is owned by a process that is not known to live.
        let mut upkeep = Upkeep::start(&self.ledger, &me, &self.settings, stats.clone(), bell.clone(), in_work.clone(), &self.stop).await?;
        tracing::info!(engine = %me.id, workers = self.settings.pool_size, store = %self.store.describe(), "engine started");

        let mut stages = self.start_pool(&me, &cpu, &stats, &bell, in_work);
        let captures = Captures {
            ledger: self.ledger.clone(),
            store: self.store.clone(),
            sources: self.sources.clone(),
            cpu,
            settings: self.capture_settings(),
            engine: me.id.clone(),
            bell: bell.clone(),
            stop: self.stop.clone(),
        };
        stages.spawn(named("capture manager", captures.run()));
        let end = self.stop_in_order(stages, &mut upkeep).await;
        upkeep.finish(&self.ledger, &me).await;
        tracing::info!(engine = %me.id, ?end, "engine stopped");
        end
    }

    fn capture_settings(&self) -> CaptureSettings {
        let s = &self.settings;
        let policy = AssemblePolicy { batch_size: u64::from(s.batch_size), batch_timeout: s.batch_timeout, max_bytes: s.batch_max_bytes };
        CaptureSettings { policy, queue_max_bytes: s.queue_max_bytes }
    }

    fn start_pool(
        &self,
        me: &EngineBeat,
        cpu: &CpuPool,
        stats: &Arc<WorkerStats>,
        bell: &Arc<Notify>,
        in_work: InWork,
    ) -> JoinSet<&'static str> {
        let s = &self.settings;
        let workers = usize::from(s.pool_size);
        let (committer, commits) = Committer::new(self.ledger.clone());
        let (claimed_tx, claimed_rx) = link::<Claimed>("claimed", workers + PREFETCH);
        let claimer = Claimer {
            ledger: self.ledger.clone(),
            settings: ClaimSettings { engine: me.id.clone(), slots: workers + PREFETCH },
            bell: bell.clone(),
            out: claimed_tx,
            in_work,
            stop: self.stop.clone(),
        };
        // Half: a store that hangs is known for an outage before the time of the attempt is over.
        let upload_time = s.process_timeout / 2;
        let sync = SyncJob {
            ledger: self.ledger.clone(),
            store: self.store.clone(),
            cpu: cpu.clone(),
            commits,
            targets: Targets::default(),
            upload_time,
        };
        let retry = RetryPolicy { retries: s.retry_count, backoff: Backoff { base: s.retry_delay, cap: s.retry_max_delay } };
        let memory = MemoryBudget::new(s.memory_budget);
        let inbox = Arc::new(Mutex::new(claimed_rx));
        let mut pool = JoinSet::new();
        for i in 0..workers {
            let worker = Worker {
                name: format!("sync-worker-{i}"),
                sync: sync.clone(),
                ledger: self.ledger.clone(),
                settings: WorkerSettings { process_timeout: s.process_timeout, retry },
                memory: memory.clone(),
                stats: stats.clone(),
                bell: bell.clone(),
                stop: self.stop.clone(),
            };
            pool.spawn(named("worker", worker.run(inbox.clone())));
        }
        pool.spawn(named("claimer", claimer.run()));
        pool.spawn(named("committer", committer.run()));
        pool
    }

    /// Waits for the stop, then for the stages, which end in the order in which their inputs do.
    async fn stop_in_order(&self, mut stages: JoinSet<&'static str>, upkeep: &mut Upkeep) -> Result<EngineEnd> {
        let broken = tokio::select! {
            biased;
            () = self.stop.draining() => None,
            ended = stages.join_next() => Some(ended_early(ended)),
            over = upkeep.over() => match over {
                Ok(()) => {
                    tracing::error!("the lease of this process could not be renewed: stopping, others take over");
                    self.stop.abort();
                    None
                }
                Err(fault) => Some(fault),
            },
        };
        if let Some(fault) = broken {
            tracing::error!(error = %fault, "giving leases back and stopping");
            self.stop.abort();
            let rest = async { while stages.join_next().await.is_some() {} };
            let _ = tokio::time::timeout(GIVE_BACK_TIME, rest).await;
            return Err(fault);
        }
        tracing::info!(timeout_s = self.settings.shutdown_timeout.as_secs(), "draining");
        let drained = async {
            let mut panicked = None;
            while let Some(ended) = stages.join_next().await {
                panicked = panicked.or(ended.err());
            }
            match panicked {
                Some(e) => Err(ended_early(Some(Err(e)))),
                None => Ok(()),
            }
        };
        tokio::pin!(drained);
        tokio::select! {
            biased;
            // First: an abort ends the stages as well, but what they held is given back, not finished.
            () = self.stop.aborting() => tracing::warn!("giving leases back at once"),
            ended = &mut drained => {
                ended?;
                return Ok(EngineEnd::Drained);
            }
            () = tokio::time::sleep(self.settings.shutdown_timeout) => tracing::warn!("the deadline has passed: giving leases back"),
        }
        self.stop.abort();
        let _ = tokio::time::timeout(GIVE_BACK_TIME, drained).await;
        Ok(if upkeep.is_lost() { EngineEnd::LeaseLost } else { EngineEnd::DeadlinePassed })
    }
}

/// A stage with its name.
async fn named(name: &'static str, stage: impl Future<Output = ()>) -> &'static str {
    stage.await;
    name
}

/// The fault of a stage that ended although nobody had told it to.
fn ended_early(ended: Option<std::result::Result<&'static str, tokio::task::JoinError>>) -> Fault {
    let what = match ended {
        Some(Ok(name)) => format!("the {name} ended"),
        Some(Err(panic)) => panic.to_string(),
        None => "nothing runs".to_owned(),
    };
    Fault::unknown(format!("a part of the engine ended unexpectedly: {what}"))
}
