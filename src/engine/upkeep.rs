//! Upkeep of one process: heartbeat, rescue of the dead, giving back of lost claims, promotion of due jobs, heads that lag,
//! removal of old jobs.
//!
//! Owns: the rhythm of these, and noticing that our own lease is lost. Does not own: what they do (`ledger`).

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use tokio::sync::Notify;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::config::EngineSettings;
use crate::fault::{Fault, Result};
use crate::ledger::{EngineBeat, EngineId, SharedLedger};
use crate::pool::{InWork, WorkerStats};
use crate::runtime::shutdown::Shutdown;
use crate::runtime::{clock, identity, random};

use super::streak::{Rhythm, Streak};

/// Scheduled jobs become ready within this time.
const PROMOTE_EVERY: Duration = Duration::from_secs(1);
/// Dead processes are looked for this often; with the default lease of 15 s a job is back within 20 s.
const RESCUE_EVERY: Duration = Duration::from_secs(4);
/// Jobs claimed here without our knowing (the answer was lost) are looked for this often.
const LOST_CLAIMS_EVERY: Duration = Duration::from_secs(10);
/// Heads that a commit has left behind what is committed are looked for this often.
const HEADS_EVERY: Duration = Duration::from_secs(10);
const SWEEP_EVERY: Duration = Duration::from_secs(60);
const SWEEP_JOBS: usize = 10_000;
const REPORT_EVERY: Duration = Duration::from_secs(60);
/// At the end, how long calls under way are waited for, and how long signing off may take.
const FINISH_TIME: Duration = Duration::from_secs(3);

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
        let part = Part::new(ledger, me, settings.lease, done.clone());
        part.rescue(clock::now).await;
        let mut tasks = JoinSet::new();
        tasks.spawn(part.clone().beat(lost.clone(), stop.clone()));
        tasks.spawn(part.clone().rescue_loop());
        tasks.spawn(part.clone().promote_loop(bell.clone()));
        tasks.spawn(part.clone().lost_claims_loop(in_work, bell));
        tasks.spawn(part.clone().heads_loop());
        tasks.spawn(part.clone().sweep_loop(settings.job_cleanup));
        tasks.spawn(part.report_loop(stats));
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

#[derive(Clone)]
struct Part {
    ledger: SharedLedger,
    me: EngineBeat,
    lease: Duration,
    rhythm: Rhythm,
    streak: Arc<Mutex<Streak>>,
    done: CancellationToken,
}

impl Part {
    fn new(ledger: &SharedLedger, me: &EngineBeat, lease: Duration, done: CancellationToken) -> Self {
        let rhythm = Rhythm::new(lease);
        let streak = Arc::new(Mutex::new(Streak::new(rhythm)));
        Self { ledger: ledger.clone(), me: me.clone(), lease, rhythm, streak, done }
    }

    /// True when the pause has passed, false when it is over.
    async fn pause(&self, time: Duration) -> bool {
        tokio::select! {
            () = tokio::time::sleep(time) => true,
            () = self.done.cancelled() => false,
        }
    }

    /// SUBTLE: a heartbeat that fails is no reason to stop. Others may take over when the last one on record is a lease old *and* they have been
    /// heard all that time (`streak`); if nobody could write, nobody has, and this process goes on. It does not have to know: every write that
    /// matters carries a lease or a fence. So it gives up only when it reads that its document is gone.
    async fn beat(self, lost: CancellationToken, stop: Shutdown) {
        let mut renewed: Instant = clock::now();
        let mut pause = Duration::ZERO;
        while self.pause(pause).await {
            let sent = clock::now();
            // Bounded: a call that hangs must not take the time of the next ones.
            let answer = tokio::time::timeout(self.rhythm.limit(), self.ledger.heartbeat(&self.me, false)).await;
            pause = self.rhythm.every().saturating_sub(sent.elapsed());
            match answer.unwrap_or_else(|_| Err(Fault::unknown("MongoDB has not answered in time"))) {
                Ok(true) => {
                    renewed = sent;
                    self.streak.lock().beaten(sent, clock::now());
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

    /// SUBTLE: the server's time is read first and the right to judge asked after it, so the verdict is about a moment at which others could be
    /// heard. A call after it that hangs through an outage changes nothing: nobody who beat before that moment is judged, however late it ends.
    async fn rescue(&self, now: impl Fn() -> Instant) {
        let (at_ms, engines) = match (self.ledger.now_ms().await, self.ledger.engines().await) {
            (Ok(at_ms), Ok(engines)) => (at_ms, engines),
            (Err(fault), _) | (_, Err(fault)) => {
                tracing::debug!(error = %fault, "could not look for dead processes");
                return;
            }
        };
        let lease_ms = i64::try_from(self.lease.as_millis()).unwrap_or(i64::MAX);
        let silent_before_ms = self.streak.lock().may_judge(now()).then(|| at_ms.saturating_sub(lease_ms));
        let known_dead: Vec<EngineId> = engines.into_iter().filter(|e| identity::is_known_dead(&self.me, e)).map(|e| e.id).collect();
        match self.ledger.rescue(&self.me.id, silent_before_ms, &known_dead).await {
            Ok(rescued) if !rescued.engines.is_empty() => {
                tracing::warn!(engines = ?rescued.engines, jobs = rescued.jobs, captures = rescued.captures, "took over from dead processes");
            }
            Ok(_) => {}
            Err(fault) => tracing::debug!(error = %fault, "could not look for dead processes"),
        }
    }

    async fn rescue_loop(self) {
        while self.pause(random::jitter(RESCUE_EVERY)).await {
            self.rescue(clock::now).await;
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

    async fn heads_loop(self) {
        while self.pause(random::jitter(HEADS_EVERY)).await {
            match self.ledger.advance_heads().await {
                Ok(0) => {}
                Ok(moved) => tracing::debug!(moved, "moved heads on over what was committed"),
                Err(fault) => tracing::debug!(error = %fault, "could not look for heads that lag"),
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ledger::{Ledger, MemoryLedger};

    const LEASE: Duration = Duration::from_secs(15);

    fn engine(id: &str) -> EngineBeat {
        EngineBeat { id: id.into(), host: id.into(), boot: "boot".into(), pid: 1, beat_ms: 0, status: None }
    }

    async fn ids(ledger: &MemoryLedger) -> Vec<EngineId> {
        ledger.engines().await.unwrap().into_iter().map(|e| e.id).collect()
    }

    #[tokio::test]
    async fn rule_26_after_an_outage_nobody_is_taken_for_dead_and_then_only_who_really_is() {
        let memory = Arc::new(MemoryLedger::new());
        let ledger: SharedLedger = memory.clone();
        let part = Part::new(&ledger, &engine("me"), LEASE, CancellationToken::new());
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
