//! Upkeep of one process: its heartbeat, and the loops beside it (`lead`, `rescue`, `controls`).
//!
//! Owns: starting and ending them, the heartbeat, noticing that our own lease is lost, giving back lost claims. Does not own: what they do (`ledger`).

use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use super::lead::Leading;
use super::peers::Peers;
use super::streak::{Rhythm, Streak};
use super::view::{EngineHandle, Life};
use crate::config::EngineSettings;
use crate::fault::{Fault, Result};
use crate::ledger::{EngineBeat, SharedLedger};
use crate::pool::{InWork, SharedPauses};
use crate::queue::RetryPolicy;
use crate::runtime::{clock, random};

/// Jobs claimed here without our knowing (the answer was lost), and jobs taken away from us, are looked for this often.
const RECONCILE_EVERY: Duration = Duration::from_secs(10);
const RECONCILE_CALMLY: u32 = 3;
/// After such a look that failed.
const RECONCILE_AGAIN: Duration = Duration::from_secs(1);
const REPORT_EVERY: Duration = Duration::from_secs(60);
/// Histograms keep single values until then: thousands of short jobs a second are some hundred kilobytes.
const METERS_EVERY: Duration = Duration::from_secs(3);
/// At the end, how long calls under way are waited for, and how long signing off may take.
const FINISH_TIME: Duration = Duration::from_secs(3);

/// What the upkeep of an engine needs to know of it.
pub(crate) struct Of<'a> {
    pub ledger: &'a SharedLedger,
    pub me: &'a EngineBeat,
    pub settings: &'a EngineSettings,
    pub retry: RetryPolicy,
    pub view: &'a EngineHandle,
    pub life: &'a Arc<Life>,
    pub peers: &'a Peers,
    pub pauses: &'a SharedPauses,
    pub in_work: &'a InWork,
}

/// Running upkeep.
pub(crate) struct Upkeep {
    tasks: JoinSet<()>,
    lost: CancellationToken,
    done: CancellationToken,
}

impl Upkeep {
    /// Writes the first heartbeat and starts the rest.
    pub(crate) async fn start(of: &Of<'_>) -> Result<Self> {
        let (lost, done) = (CancellationToken::new(), CancellationToken::new());
        let part = Part::new(of.ledger, of.me, of.settings.lease, of.life.clone(), of.peers.clone(), done.clone());
        part.ledger.heartbeat(&part.beat_document(of.view), true).await?;
        part.look_at_controls(of.pauses, of.view).await?;
        part.rescue(clock::now).await;
        let bell = of.life.work.clone();
        let mut tasks = JoinSet::new();
        tasks.spawn(part.clone().beat(of.view.clone(), lost.clone()));
        tasks.spawn(part.clone().lead_loop());
        tasks.spawn(part.clone().rescue_loop());
        tasks.spawn(part.clone().controls_loop(of.pauses.clone(), of.view.clone()));
        tasks.spawn(part.clone().cancel_loop(of.in_work.clone()));
        tasks.spawn(part.clone().reconcile_loop(of.in_work.clone()));
        tasks.spawn(part.clone().promote_loop(bell));
        tasks.spawn(part.clone().stuck_loop(of.settings.stuck_after(), of.retry));
        tasks.spawn(part.clone().heads_loop());
        tasks.spawn(part.clone().figures_loop());
        tasks.spawn(part.clone().sweep_loop(of.settings.job_cleanup));
        tasks.spawn(part.clone().keeper_loop(of.settings.bases.clone()));
        tasks.spawn(part.clone().meters_loop());
        tasks.spawn(part.report_loop());
        Ok(Self { tasks, lost, done })
    }

    /// Completes when this process may no longer act: `Ok` when its lease is lost, a fault when a part of the upkeep has ended on its own.
    pub(crate) async fn over(&mut self) -> Result<()> {
        tokio::select! {
            biased;
            () = self.lost.cancelled() => Ok(()),
            ended = self.tasks.join_next() => Err(super::ended_early(ended.map(|ended| ended.map(|()| "upkeep")))),
        }
    }

    /// Whether the lease has been lost.
    pub(crate) fn is_lost(&self) -> bool {
        self.lost.is_cancelled()
    }

    /// The orderly end: the process's document goes, so that others need not wait for the lease.
    pub(crate) async fn finish(mut self, ledger: &SharedLedger, me: &EngineBeat) {
        self.done.cancel();
        let joined = async { while self.tasks.join_next().await.is_some() {} };
        if tokio::time::timeout(FINISH_TIME, joined).await.is_err() {
            // Calls of the ledger may be dropped at any time.
            self.tasks.abort_all();
        }
        let retire = ledger.retire(&me.id);
        match tokio::time::timeout(FINISH_TIME, retire).await {
            Ok(Ok(())) => {}
            Ok(Err(fault)) => tracing::warn!(error = %fault, "could not sign off; others take over when the lease ends"),
            Err(_) => tracing::warn!("could not sign off in time; others take over when the lease ends"),
        }
    }
}

/// What every loop of the upkeep has.
#[derive(Clone)]
pub(super) struct Part {
    pub(super) ledger: SharedLedger,
    pub(super) me: EngineBeat,
    pub(super) lease: Duration,
    pub(super) rhythm: Rhythm,
    pub(super) streak: Arc<Mutex<Streak>>,
    pub(super) leading: Leading,
    pub(super) peers: Peers,
    pub(super) life: Arc<Life>,
    done: CancellationToken,
}

impl Part {
    fn new(ledger: &SharedLedger, me: &EngineBeat, lease: Duration, life: Arc<Life>, peers: Peers, done: CancellationToken) -> Self {
        let rhythm = Rhythm::new(lease);
        let streak = Arc::new(Mutex::new(Streak::new(rhythm)));
        Self { ledger: ledger.clone(), me: me.clone(), lease, rhythm, streak, leading: Leading::default(), peers, life, done }
    }

    /// True when the pause has passed, false when it is over.
    pub(super) async fn pause(&self, time: Duration) -> bool {
        tokio::select! {
            () = tokio::time::sleep(time) => true,
            () = self.done.cancelled() => false,
        }
    }

    /// About `every`, and `times` as long while the engine is idle. True when the pause has passed, false when it is over.
    pub(super) async fn pause_calmly(&self, every: Duration, times: u32) -> bool {
        self.pause(random::jitter(self.life.calm.stretch(every, times))).await
    }

    /// As [`Self::pause`], and over as soon as the engine drains, the first time: others are to know of it at once.
    async fn pause_or_drain(&self, time: Duration, told: bool) -> bool {
        tokio::select! {
            passed = self.pause(time) => passed,
            () = self.life.stop.draining(), if !told => true,
        }
    }

    fn beat_document(&self, view: &EngineHandle) -> EngineBeat {
        EngineBeat { status: Some(view.status()), ..self.me.clone() }
    }

    /// SUBTLE: a heartbeat that fails is no reason to stop. Others may take over when the last one on record is a lease old *and* they have been
    /// heard all that time (`streak`); if nobody could write, nobody has, and this process goes on. It does not have to know: every write that
    /// matters carries a lease or a fence. So it gives up only when it reads that its document is gone.
    async fn beat(self, view: EngineHandle, lost: CancellationToken) {
        let stop = &self.life.stop;
        let mut renewed: Instant = clock::now();
        let (mut pause, mut told) = (Duration::ZERO, false);
        while self.pause_or_drain(pause, told).await {
            let sent = clock::now();
            told = stop.is_draining();
            let beat = self.beat_document(&view);
            // Bounded: a call that hangs must not take the time of the next ones.
            let answer = tokio::time::timeout(self.rhythm.limit(), self.ledger.heartbeat(&beat, false)).await;
            pause = self.rhythm.every().saturating_sub(sent.elapsed());
            match answer.unwrap_or_else(|_| Err(Fault::unknown("MongoDB has not answered in time"))) {
                Ok(true) => {
                    renewed = sent;
                    self.streak.lock().beaten(sent, clock::now());
                    *self.life.beat.lock() = Some(sent);
                }
                Ok(false) => {
                    tracing::error!("others took this process for dead");
                    lost.cancel();
                }
                Err(fault) => {
                    tracing::warn!(error = %fault, "heartbeat failed");
                    pause = self.rhythm.again();
                }
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
        match tokio::time::timeout(self.rhythm.limit(), self.ledger.engines()).await {
            Ok(Ok(engines)) => !engines.iter().any(|e| e.id == self.me.id),
            Ok(Err(_)) | Err(_) => false,
        }
    }

    async fn reconcile_loop(self, in_work: InWork) {
        let mut every = RECONCILE_EVERY;
        while self.pause_calmly(every, RECONCILE_CALMLY).await {
            every = RECONCILE_EVERY;
            match in_work.reconcile(&self.ledger, &self.me.id).await {
                Ok(0) => {}
                Ok(_) => self.life.work.notify_one(),
                Err(fault) => {
                    tracing::debug!(error = %fault, "could not look for lost claims, or not give all of them back");
                    every = RECONCILE_AGAIN;
                }
            }
        }
    }

    async fn meters_loop(self) {
        while self.pause(METERS_EVERY).await {
            self.life.meters.upkeep();
        }
    }

    async fn report_loop(self) {
        let mut before = 0;
        while self.pause(REPORT_EVERY).await {
            let done = self.life.pool.attempts();
            if done.succeeded != before {
                let workers = self.life.pool.current();
                tracing::info!(done.succeeded, done.failed, done.given_back, done.fenced, workers, "jobs so far");
                before = done.succeeded;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Slots;
    use crate::jobs::Registry;
    use crate::ledger::{EngineId, Ledger, MemoryLedger};
    use crate::pool::Pool;
    use crate::runtime::shutdown::Shutdown;

    const LEASE: Duration = Duration::from_secs(15);

    fn engine(id: &str) -> EngineBeat {
        EngineBeat { id: id.into(), host: id.into(), boot: "boot".into(), pid: 1, beat_ms: 0, status: None }
    }

    fn part(ledger: &SharedLedger, me: &str) -> Part {
        let peers = Peers::new(me.into(), LEASE);
        let life = Life {
            engine: me.into(),
            pool: Pool::new(&Registry::default(), 1, Slots::default()),
            captures: Default::default(),
            capture_rows: Default::default(),
            leads: Default::default(),
            sick: Default::default(),
            beat: Default::default(),
            work: Default::default(),
            calm: Default::default(),
            stop: Shutdown::new(),
            memory: crate::pool::MemoryBudget::new(1),
            cpu: crate::runtime::cpu::CpuPool::new(1, 1).unwrap(),
            meters: Default::default(),
        };
        Part::new(ledger, &engine(me), LEASE, Arc::new(life), peers, CancellationToken::new())
    }

    async fn ids(ledger: &MemoryLedger) -> Vec<EngineId> {
        ledger.engines().await.unwrap().into_iter().map(|e| e.id).collect()
    }

    #[tokio::test]
    async fn rule_26_after_an_outage_nobody_is_taken_for_dead_and_then_only_who_really_is() {
        let memory = Arc::new(MemoryLedger::new());
        let ledger: SharedLedger = memory.clone();
        let part = part(&ledger, "me");
        for id in ["me", "other"] {
            ledger.heartbeat(&engine(id), true).await.unwrap();
        }
        // A steady rhythm for two leases, then nothing can be written for two more.
        let start = clock::now();
        let mut now = start;
        while now < start + 2 * LEASE {
            part.streak.lock().beaten(now, now);
            now += LEASE / 5;
        }
        memory.advance(2 * LEASE);
        now += 2 * LEASE;
        part.rescue(|| now).await;
        assert_eq!(ids(&memory).await, ["me", "other"], "who rescues first after an outage");
        // The heartbeats of this one come through again, and those of the other do not.
        let back = now;
        while now < back + LEASE {
            part.streak.lock().beaten(now, now);
            part.rescue(|| now).await;
            assert_eq!(ids(&memory).await, ["me", "other"], "it may only have been slower");
            now += LEASE / 5;
        }
        part.streak.lock().beaten(now, now);
        part.rescue(|| now).await;
        assert_eq!(ids(&memory).await, ["me"], "its own heartbeat is as old as the other's on record");
    }

    #[tokio::test]
    async fn the_end_is_not_held_up_by_a_call_that_is_not_answered() {
        let faulty = Arc::new(crate::ledger::FaultyLedger::new(Arc::new(MemoryLedger::new()), crate::ledger::LedgerFaults::none()));
        let ledger: SharedLedger = faulty.clone();
        let mut tasks = JoinSet::new();
        faulty.freeze(crate::ledger::LedgerCall::Promote, true);
        tasks.spawn({
            let ledger = ledger.clone();
            async move {
                let _ = ledger.promote().await;
            }
        });
        let upkeep = Upkeep { tasks, lost: CancellationToken::new(), done: CancellationToken::new() };
        upkeep.finish(&ledger, &engine("me")).await;
    }
}
