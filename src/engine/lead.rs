//! What one engine does for all: leadership by a lease with server time, and the maintenance that goes with it.
//!
//! Owns: who leads as far as this engine knows, and the rhythm of the leader's work. Does not own: the work (`ledger`), rescue (`rescue`), which
//! others fall back on when no leader does it.
//!
//! Everything that a leader does is a guarded write that may be repeated, so two that think they lead for a moment do no harm, only work.

use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use tokio::sync::Notify;

use super::upkeep::Part;
use crate::ledger::Job;
use crate::queue::RetryPolicy;
use crate::runtime::{clock, random};

/// Scheduled jobs become ready within this time, and on an idle engine within a few seconds.
const PROMOTE_EVERY: Duration = Duration::from_secs(1);
const PROMOTE_CALMLY: u32 = 5;
/// Heads that a commit has left behind what is committed are looked for this often.
const HEADS_EVERY: Duration = Duration::from_secs(10);
const HEADS_CALMLY: u32 = 3;
const SWEEP_EVERY: Duration = Duration::from_secs(60);
const SWEEP_JOBS: usize = 10_000;
/// Between two such steps while there is more to remove: others want to use the server too.
const SWEEP_PAUSE: Duration = Duration::from_millis(200);
/// Exact figures of a deep queue are this old at most, or older where counting takes long: it may take a twentieth of one CPU of the server.
const FIGURES_EVERY: Duration = Duration::from_secs(10);
const FIGURES_SHARE: u32 = 20;
/// Figures of a queue in which nothing moves.
const FIGURES_CALMLY: u32 = 4;
/// Stuck jobs of one look.
const STUCK_JOBS: usize = 100;

/// Whether this engine leads. It stops believing so by its own clock before the lease is over, whatever it is told or not.
#[derive(Debug, Clone, Default)]
pub(super) struct Leading(Arc<Mutex<Option<Instant>>>);

impl Leading {
    fn set(&self, until: Option<Instant>) {
        *self.0.lock() = until;
    }

    pub(super) fn leads(&self, now: Instant) -> bool {
        self.0.lock().is_some_and(|until| now < until)
    }
}

impl Part {
    pub(super) fn leads(&self) -> bool {
        self.leading.leads(clock::now())
    }

    /// Half a lease: a leader that dies is replaced before its own jobs may be rescued, so that its death delays nothing.
    fn leadership(&self) -> Duration {
        self.lease / 2
    }

    pub(super) async fn lead_loop(self) {
        let mut led = false;
        loop {
            let sent = clock::now();
            let answer = tokio::time::timeout(self.rhythm.limit(), self.ledger.lead(&self.me.id, self.leadership())).await;
            match answer {
                Ok(Ok(true)) => self.leading.set(Some(sent + self.leadership())),
                Ok(Ok(false)) => self.leading.set(None),
                Ok(Err(fault)) => tracing::debug!(error = %fault, "could not ask for the leadership"),
                Err(_) => tracing::debug!("the leadership was not answered for in time"),
            }
            let leads = self.leads();
            self.life.leads.store(leads, std::sync::atomic::Ordering::Relaxed);
            if leads != led {
                tracing::info!(leads, "leadership of the maintenance has changed");
                led = leads;
            }
            // Three times before it is over.
            if !self.pause(random::jitter(self.leadership() / 3)).await {
                return;
            }
        }
    }

    pub(super) async fn promote_loop(self, bell: Arc<Notify>) {
        while self.pause_calmly(PROMOTE_EVERY, PROMOTE_CALMLY).await {
            if !self.leads() {
                continue;
            }
            match self.ledger.promote().await {
                Ok(0) => {}
                Ok(_) => bell.notify_one(),
                Err(fault) => tracing::debug!(error = %fault, "could not promote scheduled jobs"),
            }
        }
    }

    pub(super) async fn heads_loop(self) {
        while self.pause_calmly(HEADS_EVERY, HEADS_CALMLY).await {
            if !self.leads() {
                continue;
            }
            match self.ledger.advance_heads().await {
                Ok(0) => {}
                Ok(moved) => tracing::debug!(moved, "moved heads on over what was committed"),
                Err(fault) => tracing::debug!(error = %fault, "could not look for heads that lag"),
            }
        }
    }

    pub(super) async fn sweep_loop(self, age: Duration) {
        while self.pause(random::jitter(SWEEP_EVERY)).await {
            if !self.leads() {
                continue;
            }
            while self.sweep(age).await >= SWEEP_JOBS && self.leads() && self.pause(SWEEP_PAUSE).await {}
        }
    }

    /// How many finished jobs it has removed.
    async fn sweep(&self, age: Duration) -> usize {
        match self.ledger.sweep_jobs(age, SWEEP_JOBS).await {
            Ok(0) => 0,
            Ok(removed) => {
                tracing::debug!(removed, "removed finished jobs");
                usize::try_from(removed).unwrap_or(usize::MAX)
            }
            Err(fault) => {
                tracing::debug!(error = %fault, "could not remove finished jobs");
                0
            }
        }
    }

    pub(super) async fn figures_loop(self) {
        let mut pause = FIGURES_EVERY;
        while self.pause_calmly(pause, FIGURES_CALMLY).await {
            if !self.leads() {
                continue;
            }
            let began = clock::now();
            if let Err(fault) = self.ledger.refresh_queue_stats().await {
                tracing::debug!(error = %fault, "could not refresh the figures of the queue");
            }
            pause = FIGURES_EVERY.max(began.elapsed() * FIGURES_SHARE);
        }
    }

    pub(super) async fn stuck_loop(self, limit: Duration, retry: RetryPolicy) {
        let every = (limit / 10).clamp(Duration::from_secs(1), Duration::from_secs(30));
        while self.pause(random::jitter(every)).await {
            // After an outage, or a suspended machine, a living engine must have had the time to say how its attempts have ended.
            if !self.leads() || !self.streak.lock().may_judge(clock::now()) {
                continue;
            }
            match self.ledger.stuck(limit, STUCK_JOBS).await {
                Ok(stuck) => {
                    for job in &stuck {
                        self.take_away(job, limit, retry).await;
                    }
                }
                Err(fault) => tracing::debug!(error = %fault, "could not look for stuck jobs"),
            }
        }
    }

    /// Its engine learns of it by the fence of whatever it writes for the job, or when it compares what it has in work with the queue.
    async fn take_away(&self, job: &Job, limit: Duration, retry: RetryPolicy) {
        let Some(lease) = job.held() else { return };
        let engine = job.lease.as_ref().map_or("", |lease| lease.engine.as_str());
        match self.ledger.fail(&lease, &retry.after_stuck(job, limit, random::unit())).await {
            Ok(true) => tracing::warn!(job = %job.id, engine, "took away a job that has run for longer than JOB_STUCK_TIMEOUT"),
            Ok(false) => {}
            Err(fault) => tracing::debug!(job = %job.id, error = %fault, "could not take away a stuck job"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nobody_leads_beyond_what_was_promised() {
        let (leading, now) = (Leading::default(), clock::now());
        assert!(!leading.leads(now));
        leading.set(Some(now + Duration::from_secs(5)));
        assert!(leading.leads(now + Duration::from_secs(4)));
        assert!(!leading.leads(now + Duration::from_secs(5)));
        leading.set(None);
        assert!(!leading.leads(now));
    }
}
