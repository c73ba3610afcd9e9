//! Claim: one claimer per process feeds all workers, so that claimers never meet on one document.
//!
//! Owns: when to look and for which class, suspects, and giving back what has waited too long. Does not own: how many jobs (`window`), the claim
//! itself (`ledger`), running jobs (`worker`).
//!
//! Each class of workers claims for itself, in turn, and only as much as it has room for: a backlog of one class takes no place from another. Only an
//! idle engine asks for one job of any class: there is mostly none, and that costs one request.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use futures_util::StreamExt;
use parking_lot::Mutex;
use tokio::sync::Notify;
use tracing::Span;

use super::class::Class;
use super::in_work::{InWork, InWorkGuard};
use crate::fault::Result;
use crate::ledger::{ClaimRequest, EngineId, Failed, Job, JobKind, Pauses, SharedLedger, SyncSpec};
use crate::queue;
use crate::runtime::calm::Calm;
use crate::runtime::shutdown::Shutdown;
use crate::runtime::{clock, random};
use crate::telemetry::meters::{Meters, Stage};
use crate::telemetry::traces;

/// Another process may have queued something: look this often without being rung.
const POLL: Duration = Duration::from_secs(1);
/// So many times as long for an engine that has had nothing to do.
const POLL_CALMLY: u32 = 5;
/// After a failed look.
const POLL_AFTER_FAULT: Duration = Duration::from_secs(1);
/// A suspect that has been ready for this long runs next, alone, however full the queue is.
const SUSPECT_PATIENCE: Duration = Duration::from_secs(30);
/// A waiting suspect is looked for this often while something runs: one entry of an index.
const SUSPECT_LOOK: Duration = Duration::from_secs(1);
/// A job that has waited here for this long was claimed too early, since those before it take longer than those before them: another engine may
/// have a free worker.
const STALE: Duration = Duration::from_secs(2);
/// Jobs that are given back at the same time.
const GIVE_BACK: usize = 16;

/// A claimed job on its way to a worker.
#[derive(Debug)]
pub(crate) struct Claimed {
    pub job: Job,
    /// When its claim was answered.
    pub at: Instant,
    /// Held until the outcome is on record.
    pub in_work: InWorkGuard,
    /// From its claim until then.
    pub trace: Span,
}

/// What operators have paused, as last read.
pub(crate) type SharedPauses = Arc<Mutex<Pauses>>;

/// When to look for a class again.
#[derive(Debug, Clone, Copy)]
struct Look {
    at: Instant,
    /// The last claim was as good as full: there is more.
    more: bool,
}

/// What the claimer knows of suspects that wait.
#[derive(Debug, Default)]
struct Suspects {
    looked: Option<Instant>,
    /// One of this class (by index) is due: no more claims until the pool is idle.
    held: Option<usize>,
    /// One runs: no more claims until it has ended.
    alone: bool,
}

/// The source of the pool: stops first when the engine drains.
#[derive(Debug)]
pub(crate) struct Claimer {
    pub ledger: SharedLedger,
    pub engine: EngineId,
    pub classes: Vec<Arc<Class>>,
    pub pauses: SharedPauses,
    /// Rung when there may be new jobs: by captures of this process, and by whoever makes jobs ready.
    pub work: Arc<Notify>,
    pub calm: Calm,
    /// Rung when there may be room.
    pub room: Arc<Notify>,
    /// Rung when the inboxes are closed.
    pub closed: Arc<Notify>,
    pub in_work: InWork,
    pub stop: Shutdown,
    pub meters: Meters,
}

impl Claimer {
    /// Claims until the engine drains, then gives back at once what no worker has begun.
    pub(crate) async fn run(self) {
        // However this ends: workers that wait must not wait for ever.
        let closing = Closing { classes: &self.classes, closed: &self.closed };
        let mut suspects = Suspects::default();
        let mut looks = vec![Look { at: clock::now(), more: false }; self.classes.len()];
        while !self.stop.is_draining() {
            let wait = tokio::select! {
                wait = self.step(&mut looks, &mut suspects) => wait,
                // Not by a drain: what a claim brings is heard, and given back.
                () = self.stop.aborting() => break,
            };
            tokio::select! {
                () = tokio::time::sleep(wait) => {}
                () = self.room.notified() => {}
                () = self.work.notified() => {
                    self.calm.disturb();
                    looks.iter_mut().for_each(|look| look.at = clock::now());
                }
                () = self.stop.draining() => {}
            }
        }
        let waiting: Vec<Claimed> = self.classes.iter().flat_map(|class| class.inbox.close()).collect();
        drop(closing);
        self.give_back(waiting).await;
    }

    /// Claims for every class that has room and may find something; returns how long nothing will have changed by itself.
    async fn step(&self, looks: &mut [Look], suspects: &mut Suspects) -> Duration {
        self.give_back_stale().await;
        let idle = self.in_work.is_empty();
        suspects.alone &= !idle;
        if !idle {
            self.calm.disturb(); // be it the same job for hours
        }
        if suspects.held.is_none() && !idle {
            suspects.held = self.due_suspect(suspects).await;
        }
        if suspects.alone || (suspects.held.is_some() && !idle) {
            return POLL; // rung when nothing runs any more
        }
        let only = suspects.held.take();
        let pauses = self.pauses.lock().clone();
        if idle && only.is_none() && self.calm.is_idle() {
            self.claim_any(looks, &pauses, suspects).await;
            return self.until_next(looks);
        }
        for (i, (class, look)) in self.classes.iter().zip(looks.iter_mut()).enumerate() {
            let now = clock::now();
            let wanted = class.wanted(now);
            let due = if let Some(only) = only { i == only } else { look.more || now >= look.at };
            if wanted == 0 || !due {
                continue;
            }
            // Asked anew: what the class before has claimed runs now.
            let idle = self.in_work.is_empty();
            *look = match self.claim(&[class], wanted, idle, &pauses, suspects).await {
                Ok(claimed) => {
                    let more = claimed > 0 && claimed * 2 >= wanted;
                    class.stats.more.store(more, Ordering::Relaxed);
                    Look { at: clock::now() + random::jitter(self.calm.stretch(POLL, POLL_CALMLY)), more }
                }
                Err(fault) => {
                    tracing::warn!(error = %fault, "could not look for jobs");
                    Look { at: clock::now() + random::jitter(POLL_AFTER_FAULT), more: false }
                }
            };
            if suspects.alone {
                return POLL;
            }
        }
        self.until_next(looks)
    }

    /// One job of any class, while nothing runs here. Where there is one, each class looks for itself right after it.
    async fn claim_any(&self, looks: &mut [Look], pauses: &Pauses, suspects: &mut Suspects) {
        let now = clock::now();
        if looks.iter().all(|look| now < look.at) {
            return;
        }
        let open: Vec<&Class> = self.classes.iter().map(Arc::as_ref).filter(|class| class.wanted(now) > 0).collect();
        let next = match self.claim(&open, 1, true, pauses, suspects).await {
            Ok(0) => clock::now() + random::jitter(self.calm.stretch(POLL, POLL_CALMLY)),
            Ok(_) => now,
            Err(fault) => {
                tracing::warn!(error = %fault, "could not look for jobs");
                clock::now() + random::jitter(POLL_AFTER_FAULT)
            }
        };
        looks.fill(Look { at: next, more: false });
    }

    /// Until a class that has room is to be looked for; what has no room waits for the bell.
    fn until_next(&self, looks: &[Look]) -> Duration {
        let now = clock::now();
        let with_room = self.classes.iter().zip(looks).filter(|(class, _)| class.wanted(now) > 0);
        let next = with_room.map(|(_, look)| if look.more { Duration::ZERO } else { look.at.saturating_duration_since(now) }).min();
        next.unwrap_or(POLL).min(POLL.mul_f64(1.25) * POLL_CALMLY)
    }

    /// Returns how many jobs went to workers. When nothing of this engine runs, a suspect that comes first is taken, and nothing with it.
    async fn claim(&self, classes: &[&Class], wanted: usize, idle: bool, pauses: &Pauses, suspects: &mut Suspects) -> Result<usize> {
        let kinds: Vec<JobKind> = classes.iter().flat_map(|class| class.kinds.iter().copied()).collect();
        let start = classes.iter().map(|class| class.idle()).min().unwrap_or_default().min(wanted);
        let goes_on = classes.iter().all(|class| class.stats.more.load(Ordering::Relaxed));
        let request = ClaimRequest::new(&self.engine, &kinds, wanted).alone(idle).start(start).goes_on(goes_on).pauses(pauses.clone());
        let began = clock::now();
        let jobs = self.ledger.claim(&request).await?;
        let at = clock::now();
        if !jobs.is_empty() {
            let sync = || jobs.iter().filter_map(|job| job.sync.as_ref());
            let changes = sync().map(SyncSpec::changes).sum();
            self.meters.stage(Stage::Claim).done(at - began, changes, sync().map(|spec| spec.payload_bytes).sum());
        }
        if let Some(suspect) = jobs.iter().find(|job| queue::is_suspect(job.crashes)) {
            tracing::warn!(job = %suspect.id, crashes = suspect.crashes, "running alone a job whose processes died");
            suspects.alone = true;
        }
        let count = jobs.len();
        if count > 0 {
            self.calm.disturb();
        }
        let mut claimed: Vec<Claimed> =
            jobs.into_iter().map(|job| Claimed { at, in_work: self.in_work.enter(&job), trace: traces::of_job(&job), job }).collect();
        for class in classes {
            let (theirs, others) = claimed.into_iter().partition::<Vec<_>, _>(|claimed| class.kinds.contains(&claimed.job.kind));
            claimed = others;
            class.stats.claimed.fetch_add(theirs.len() as u64, Ordering::Relaxed);
            self.give_back(class.inbox.push(theirs)).await;
        }
        Ok(count)
    }

    /// The class in which a suspect has waited so long that nothing else may be claimed until it has run.
    async fn due_suspect(&self, suspects: &mut Suspects) -> Option<usize> {
        if suspects.looked.is_some_and(|at| at.elapsed() < SUSPECT_LOOK) {
            return None;
        }
        suspects.looked = Some(clock::now());
        for (i, class) in self.classes.iter().enumerate() {
            let kinds = self.pauses.lock().open(&class.kinds);
            if kinds.is_empty() || class.target() == 0 {
                continue;
            }
            if self.ledger.suspect_waits(&kinds, SUSPECT_PATIENCE).await.unwrap_or(false) {
                tracing::info!("a job whose processes died has waited long enough: it runs as soon as the workers are free");
                return Some(i);
            }
        }
        None
    }

    async fn give_back_stale(&self) {
        let Some(then) = clock::now().checked_sub(STALE) else { return };
        let stale: Vec<Claimed> = self.classes.iter().flat_map(|class| class.inbox.take_older(then)).collect();
        if !stale.is_empty() {
            tracing::debug!(jobs = stale.len(), "giving back jobs that have waited here for too long");
            self.give_back(stale).await;
        }
    }

    /// The attempts do not count: nobody has begun them. At the end of the engine this is bounded by its giving-back time.
    async fn give_back(&self, jobs: Vec<Claimed>) {
        let all = futures_util::stream::iter(jobs).for_each_concurrent(GIVE_BACK, |claimed| async move {
            let Some(lease) = claimed.job.held() else { return };
            if let Some(class) = self.classes.iter().find(|class| class.kinds.contains(&claimed.job.kind)) {
                class.stats.claimed.fetch_sub(1, Ordering::Relaxed);
            }
            let how = Failed::GiveBack { delay: Duration::ZERO, error: None };
            // What cannot be given back is not in work any more, and is found by that.
            if let Err(fault) = self.ledger.fail(&lease, &how).await {
                tracing::warn!(job = %lease.id, error = %fault, "could not give a job back that nobody has begun");
            }
        });
        all.await;
    }
}

/// Closes every inbox when it goes, be it by a panic.
struct Closing<'a> {
    classes: &'a [Arc<Class>],
    closed: &'a Notify,
}

impl Drop for Closing<'_> {
    fn drop(&mut self) {
        for class in self.classes {
            drop(class.inbox.close());
        }
        self.closed.notify_one();
    }
}

#[cfg(test)]
#[path = "claim_tests.rs"]
mod tests;
