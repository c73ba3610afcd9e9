//! The wiring: creates every link, starts every stage, owns drain and abort.
//!
//! Owns: one engine process: its heartbeat, the captures it follows, the pool, and the order in which all of that stops.
//! Does not own: what any stage does.
//!
//! ```text
//!                                                                        ┌─▶ worker × n ─[commits]─▶ Committer
//!  capture manager ─▶ CaptureRun (ingest ▶ assemble ▶ checkpoint) ═▶ queue ═▶ Claimer ─[inboxes]─┤        ├─[marks]─▶ Marker
//!                                                                        └─▶ … (Crew) └─[finishes]─▶ Finisher
//! ```
//!
//! Stopping: *draining* stops the captures and the claimer, which gives back at once what no worker has begun; workers end when their inbox is
//! closed and empty, committer, marker and finisher when the last worker is gone. At the deadline *aborting* gives leases back without counting
//! the attempt. A stage that ends before it was told to is a bug: the engine aborts with a fault, so that a supervisor starts it anew, instead of
//! living on with a part missing. The same goes for a computation that does not stop when it is told to.

mod arrivals;
mod attempt;
mod captures;
mod compare;
mod controls;
mod keeper;
mod lead;
mod mirror;
mod peers;
mod rescue;
mod scale;
mod spread;
mod streak;
mod upkeep;
mod view;

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::Notify;
use tokio::task::JoinSet;

use crate::capture::{AssemblePolicy, CaptureSettings};
use crate::config::EngineSettings;
use crate::fault::{Fault, Result};
use crate::jobs::{KINDS, KindSpec, Parts, Registry};
use crate::ledger::{EngineBeat, SharedLedger};
use crate::pool::{Claimer, Crew, Finisher, InWork, Marker, MemoryBudget, Pool, Runner, SharedPauses, Sick, Worker};
use crate::queue::RetryPolicy;
use crate::runtime::backoff::Backoff;
use crate::runtime::calm::Calm;
use crate::runtime::cpu::CpuPool;
use crate::runtime::identity;
use crate::runtime::shutdown::Shutdown;
use crate::store::Store;
use crate::sync::Committer;
use crate::telemetry::meters::LinkName;

use captures::Captures;
pub use captures::SourceOpener;
use peers::Peers;
use scale::ScaleLoop;
use upkeep::{Of, Upkeep};
use view::Life;
pub use view::{CaptureRows, EngineFacts, EngineHandle, Pressure};

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
    /// What jobs there are, as a rule [`KINDS`].
    pub kinds: &'static [KindSpec],
    /// Where it is seen from.
    pub view: EngineHandle,
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
    /// An engine with the kinds of jobs of this version and a view of its own.
    pub fn new(ledger: SharedLedger, store: Store, sources: Arc<dyn SourceOpener>, settings: EngineSettings, stop: Shutdown) -> Self {
        let view = EngineHandle::new(&settings, stop.clone());
        Self { ledger, store, sources, settings, kinds: KINDS, view, stop }
    }

    /// Runs until `stop` is drained from outside or the lease is lost.
    pub async fn run(self) -> Result<EngineEnd> {
        self.run_as(identity::this_process()).await
    }

    /// As [`Self::run`], under a given identity: several engines in one process must not take each other for earlier lives of it.
    pub async fn run_as(self, me: EngineBeat) -> Result<EngineEnd> {
        let threads = std::thread::available_parallelism().map_or(2, std::num::NonZero::get);
        let meters = self.view.meters().clone();
        let cpu = CpuPool::new(threads, threads * CPU_UNITS_PER_THREAD)?.metered(meters.link(LinkName::Cpu).clone());
        let in_work = InWork::default();
        let pauses = SharedPauses::default();
        let peers = Peers::new(me.id.clone(), self.settings.lease);
        let (committer, commits) = Committer::new(self.ledger.clone(), &meters);
        let (marker, marks) = Marker::new(self.ledger.clone(), in_work.clone(), &meters);
        let registry = Registry::new(self.kinds, &self.parts(cpu.clone(), commits, marks.clone()));
        let pool = Pool::new(&registry, self.settings.pool_size, self.settings.slots);
        let memory = MemoryBudget::new(self.settings.memory_budget);
        let life = self.life(&me, &pool, memory.clone(), cpu.clone());
        self.view.attach(life.clone());

        // The heartbeat comes first: nothing is owned by a process that is not known to live.
        let (ledger, settings, view, retry) = (&self.ledger, &self.settings, &self.view, self.retry());
        let of = Of { ledger, me: &me, settings, retry, view, life: &life, peers: &peers, pauses: &pauses, in_work: &in_work };
        let started = Upkeep::start(&of).await;
        let mut upkeep = started.inspect_err(|_| self.view.detach())?;
        tracing::info!(engine = %me.id, workers = pool.target(), store = %self.store.describe(), "engine started");

        let runner = Runner::new(registry, settings.process_timeout, memory, marks, self.stop.clone(), life.sick.clone());
        let mut stages = self.start_pool(&me, &life, runner, &pauses, in_work);
        stages.spawn(named("committer", committer.run()));
        stages.spawn(named("marker", marker.run()));
        let (ledger, stop) = (self.ledger.clone(), self.stop.clone());
        let scale = ScaleLoop { ledger, pool, peers: peers.clone(), pauses, view: self.view.clone(), stop };
        stages.spawn(named("scaler", scale.run()));
        stages.spawn(named("capture manager", self.captures(&me, &life, cpu, peers).run()));
        let end = self.stop_in_order(stages, &mut upkeep, &life.sick).await;
        upkeep.finish(&self.ledger, &me).await;
        self.view.detach();
        tracing::info!(engine = %me.id, ?end, "engine stopped");
        end
    }

    fn life(&self, me: &EngineBeat, pool: &Pool, memory: MemoryBudget, cpu: CpuPool) -> Arc<Life> {
        Arc::new(Life {
            engine: me.id.clone(),
            pool: pool.clone(),
            captures: Default::default(),
            capture_rows: Default::default(),
            leads: Default::default(),
            sick: Sick::default(),
            beat: Default::default(),
            work: Arc::default(),
            calm: Calm::default(),
            stop: self.stop.clone(),
            memory,
            cpu,
            meters: self.view.meters().clone(),
        })
    }

    fn parts(&self, cpu: CpuPool, commits: crate::sync::CommitHandle, marks: crate::pool::MarkHandle) -> Parts {
        // Half: a store that hangs is known for an outage before the time of the attempt is over.
        let upload_time = self.settings.process_timeout / 2;
        Parts {
            ledger: self.ledger.clone(),
            store: self.store.clone(),
            cpu,
            commits,
            marks,
            upload_time,
            sources: self.sources.clone(),
            settings: self.settings.bases.clone(),
            // The other half is for the jobs of the stream.
            fold_memory: self.settings.memory_budget / 2,
            stop: self.stop.clone(),
            meters: self.view.meters().clone(),
        }
    }

    fn retry(&self) -> RetryPolicy {
        let s = &self.settings;
        RetryPolicy { retries: s.retry_count, backoff: Backoff { base: s.retry_delay, cap: s.retry_max_delay } }
    }

    fn captures(&self, me: &EngineBeat, life: &Arc<Life>, cpu: CpuPool, peers: Peers) -> Captures {
        let s = &self.settings;
        let policy = AssemblePolicy { batch_size: u64::from(s.batch_size), batch_timeout: s.batch_timeout, max_bytes: s.batch_max_bytes };
        Captures {
            ledger: self.ledger.clone(),
            store: self.store.clone(),
            sources: self.sources.clone(),
            cpu,
            settings: CaptureSettings { policy, queue_max_bytes: s.queue_max_bytes, catalogue_interval: s.bases.catalogue_interval },
            engine: me.id.clone(),
            bell: life.work.clone(),
            peers,
            life: life.clone(),
            stop: self.stop.clone(),
        }
    }

    fn start_pool(
        &self,
        me: &EngineBeat,
        life: &Arc<Life>,
        runner: Runner,
        pauses: &SharedPauses,
        in_work: InWork,
    ) -> JoinSet<&'static str> {
        let room = Arc::new(Notify::new());
        let (classes, changed) = life.pool.parts();
        let (finisher, finishes) = Finisher::new(self.ledger.clone(), me.id.clone(), room.clone(), self.stop.clone(), &life.meters);
        let template = classes.iter().map(|class| Worker {
            class: class.clone(),
            runner: runner.clone(),
            finishes: finishes.clone(),
            ledger: self.ledger.clone(),
            retry: self.retry(),
            room: room.clone(),
            stop: self.stop.clone(),
            meters: life.meters.clone(),
        });
        let crew = Crew { template: template.collect(), changed: changed.clone() };
        let claimer = Claimer {
            ledger: self.ledger.clone(),
            engine: me.id.clone(),
            classes,
            pauses: pauses.clone(),
            work: life.work.clone(),
            calm: life.calm.clone(),
            room,
            closed: changed,
            in_work,
            stop: self.stop.clone(),
            meters: life.meters.clone(),
        };
        let mut stages = JoinSet::new();
        stages.spawn(named("crew", crew.run()));
        stages.spawn(named("claimer", claimer.run()));
        stages.spawn(named("finisher", finisher.run()));
        stages
    }

    /// Waits for the stop, then for the stages, which end in the order in which their inputs do.
    async fn stop_in_order(&self, mut stages: JoinSet<&'static str>, upkeep: &mut Upkeep, sick: &Sick) -> Result<EngineEnd> {
        let broken = tokio::select! {
            biased;
            () = self.stop.draining() => None,
            ended = stages.join_next() => Some(ended_early(ended)),
            fault = sick.reported() => Some(fault),
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
