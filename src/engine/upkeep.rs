//! Upkeep of one process: heartbeat, rescue of the dead, giving back of lost claims, promotion of due jobs, removal of old ones.
//!
//! Owns: the rhythm of these, and noticing that our own lease is lost. Does not own: what they do (`ledger`).

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use tokio::sync::Notify;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::config::EngineSettings;
use crate::fault::Result;
use crate::ledger::{EngineBeat, EngineId, SharedLedger};
use crate::pool::{InWork, WorkerStats};
use crate::runtime::shutdown::Shutdown;
use crate::runtime::{clock, identity, random};

/// Scheduled jobs become ready within this time.
const PROMOTE_EVERY: Duration = Duration::from_secs(1);
/// Dead processes are looked for this often; with the default lease of 15 s a job is back within 20 s.
const RESCUE_EVERY: Duration = Duration::from_secs(4);
/// Jobs claimed here without our knowing (the answer was lost) are looked for this often.
const LOST_CLAIMS_EVERY: Duration = Duration::from_secs(10);
const SWEEP_EVERY: Duration = Duration::from_secs(60);
const SWEEP_JOBS: usize = 10_000;
const REPORT_EVERY: Duration = Duration::from_secs(60);

/// Running upkeep.
pub(crate) struct Upkeep {
    tasks: JoinSet<()>,
    lost: CancellationToken,
    done: CancellationToken,
}

impl Upkeep {
    /// Writes the first heartbeat and starts the rest.
    pub(crate) async fn start(
        ledger: &SharedLedger,
        me: &EngineBeat,
        settings: &EngineSettings,
        stats: Arc<WorkerStats>,
        bell: Arc<Notify>,
        in_work: InWork,
        stop: &Shutdown,
    ) -> Result<Self> {
        ledger.heartbeat(me, true).await?;
        let (lost, done) = (CancellationToken::new(), CancellationToken::new());
        let part = Part { ledger: ledger.clone(), me: me.clone(), lease: settings.lease, done: done.clone() };
        part.rescue().await;
        let mut tasks = JoinSet::new();
        tasks.spawn(part.clone().beat(lost.clone(), stop.clone()));
        tasks.spawn(part.clone().rescue_loop());
        tasks.spawn(part.clone().promote_loop(bell.clone()));
        tasks.spawn(part.clone().lost_claims_loop(in_work, bell));
        tasks.spawn(part.clone().sweep_loop(settings.job_cleanup));
        tasks.spawn(part.report_loop(stats));
        Ok(Self { tasks, lost, done })
    }

    /// Completes when this process may no longer act.
    pub(crate) async fn lost(&self) {
        self.lost.cancelled().await;
    }

    /// Whether [`Self::lost`] has happened.
    pub(crate) fn is_lost(&self) -> bool {
        self.lost.is_cancelled()
    }

    /// The orderly end: the process's document goes, so that others need not wait for the lease.
    pub(crate) async fn finish(mut self, ledger: &SharedLedger, me: &EngineBeat) {
        self.done.cancel();
        while self.tasks.join_next().await.is_some() {}
        let retire = ledger.retire(&me.id);
        match tokio::time::timeout(Duration::from_secs(5), retire).await {
            Ok(Ok(())) => {}
            Ok(Err(fault)) => tracing::warn!(error = %fault, "could not sign off; others take over when the lease ends"),
            Err(_) => tracing::warn!("could not sign off in time; others take over when the lease ends"),
        }
    }
}

#[derive(Clone)]
struct Part {
    ledger: SharedLedger,
    me: EngineBeat,
    lease: Duration,
    done: CancellationToken,
}

impl Part {
    /// True when the pause has passed, false when it is over.
    async fn pause(&self, time: Duration) -> bool {
        tokio::select! {
            () = tokio::time::sleep(time) => true,
            () = self.done.cancelled() => false,
        }
    }

    /// SUBTLE: the lease ends at the server `lease` after the *last heartbeat was written there*. The clock here starts when that heartbeat was
    /// *sent*, so this process always gives up before another may rescue its jobs.
    async fn beat(self, lost: CancellationToken, stop: Shutdown) {
        let mut renewed: Instant = clock::now();
        let every = self.lease / 3;
        while self.pause(every).await {
            let sent = clock::now();
            match self.ledger.heartbeat(&self.me, false).await {
                Ok(true) => renewed = sent,
                Ok(false) => {
                    tracing::error!("others took this process for dead");
                    lost.cancel();
                }
                Err(fault) => tracing::warn!(error = %fault, "heartbeat failed"),
            }
            // While draining the work in hand is fenced anyway; an engine that only waits for the server keeps waiting.
            if renewed.elapsed() > self.lease && !stop.is_draining() && self.was_rescued().await {
                lost.cancel();
            }
            if lost.is_cancelled() {
                return;
            }
        }
    }

    /// After a long silence of the server nobody else may have been able to act either: ask before giving up.
    async fn was_rescued(&self) -> bool {
        match self.ledger.engines().await {
            Ok(engines) => !engines.iter().any(|e| e.id == self.me.id),
            Err(_) => false,
        }
    }

    async fn rescue(&self) {
        let known_dead: Vec<EngineId> = match self.ledger.engines().await {
            Ok(engines) => engines.into_iter().filter(|e| identity::is_known_dead(&self.me, e)).map(|e| e.id).collect(),
            Err(_) => Vec::new(),
        };
        match self.ledger.rescue(self.lease, &known_dead).await {
            Ok(rescued) if !rescued.engines.is_empty() => {
                tracing::warn!(engines = ?rescued.engines, jobs = rescued.jobs, captures = rescued.captures, "took over from dead processes");
            }
            Ok(_) => {}
            Err(fault) => tracing::debug!(error = %fault, "could not look for dead processes"),
        }
    }

    async fn rescue_loop(self) {
        while self.pause(random::jitter(RESCUE_EVERY)).await {
            self.rescue().await;
        }
    }

    async fn promote_loop(self, bell: Arc<Notify>) {
        while self.pause(random::jitter(PROMOTE_EVERY)).await {
            match self.ledger.promote().await {
                Ok(0) => {}
                Ok(_) => bell.notify_one(),
                Err(fault) => tracing::debug!(error = %fault, "could not promote scheduled jobs"),
            }
        }
    }

    async fn lost_claims_loop(self, in_work: InWork, bell: Arc<Notify>) {
        while self.pause(random::jitter(LOST_CLAIMS_EVERY)).await {
            match in_work.give_back_lost(&self.ledger, &self.me.id).await {
                Ok(0) => {}
                Ok(_) => bell.notify_one(),
                Err(fault) => tracing::debug!(error = %fault, "could not look for lost claims"),
            }
        }
    }

    async fn sweep_loop(self, age: Duration) {
        while self.pause(random::jitter(SWEEP_EVERY)).await {
            match self.ledger.sweep_jobs(age, SWEEP_JOBS).await {
                Ok(0) => {}
                Ok(removed) => tracing::debug!(removed, "removed finished jobs"),
                Err(fault) => tracing::debug!(error = %fault, "could not remove finished jobs"),
            }
        }
    }

    async fn report_loop(self, stats: Arc<WorkerStats>) {
        let mut before = 0;
        while self.pause(REPORT_EVERY).await {
            let succeeded = stats.succeeded.load(Ordering::Relaxed);
            if succeeded != before {
                let failed = stats.failed.load(Ordering::Relaxed);
                let (given_back, fenced) = (stats.given_back.load(Ordering::Relaxed), stats.fenced.load(Ordering::Relaxed));
                tracing::info!(succeeded, failed, given_back, fenced, "jobs so far");
                before = succeeded;
            }
        }
    }
}
