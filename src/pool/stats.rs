//! What workers and classes have done: counted as it happens, readable at any time without stopping anything.
//!
//! Owns: the figures. Does not own: what is shown where (`ledger::EngineStatus`, `engine::view`).

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use hdrhistogram::Histogram;
use parking_lot::Mutex;

use crate::jobs::SlotClass;
use crate::ledger::JobId;
use crate::runtime::clock;

/// Longest time that a histogram tells from longer ones.
const LONGEST: Duration = Duration::from_secs(3_600);
/// Two digits: a percentile is off by a hundredth at most, and a histogram has 27 KB.
const DIGITS: u8 = 2;

/// How an attempt ended, for the counters. An outage, a stop, a cancelled job and a lost lease are neither.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Tally {
    Succeeded,
    Failed,
}

/// One worker, from its first start on; it keeps its figures when the pool shrinks and grows again.
#[derive(Debug)]
pub(crate) struct WorkerCell {
    pub name: String,
    pub class: SlotClass,
    alive: AtomicBool,
    retiring: AtomicBool,
    figures: Mutex<Figures>,
}

/// What a worker is doing.
#[derive(Debug, Clone)]
pub(crate) struct Current {
    pub job: JobId,
    pub since: Instant,
}

#[derive(Debug)]
struct Figures {
    /// `None` would mean that the bounds above are no bounds.
    times: Option<Histogram<u64>>,
    processed: u64,
    succeeded: u64,
    failed: u64,
    busy: Duration,
    last_active_ms: Option<i64>,
    current: Option<Current>,
}

/// The figures of a worker at one moment.
#[derive(Debug, Clone)]
pub(crate) struct WorkerFigures {
    pub succeeded: u64,
    pub failed: u64,
    pub avg: Duration,
    pub p50: Duration,
    pub p99: Duration,
    pub last_active_ms: Option<i64>,
    pub current: Option<Current>,
}

impl WorkerCell {
    pub(crate) fn new(class: SlotClass, index: usize) -> Self {
        let longest = u64::try_from(LONGEST.as_micros()).unwrap_or(u64::MAX);
        let times = Histogram::new_with_bounds(1, longest, DIGITS).ok();
        let figures = Figures { times, processed: 0, succeeded: 0, failed: 0, busy: Duration::ZERO, last_active_ms: None, current: None };
        Self {
            name: format!("{}-worker-{index}", class.name()),
            class,
            alive: AtomicBool::new(false),
            retiring: AtomicBool::new(false),
            figures: Mutex::new(figures),
        }
    }

    pub(crate) fn is_alive(&self) -> bool {
        self.alive.load(Ordering::Acquire)
    }

    pub(crate) fn set_alive(&self, alive: bool) {
        self.alive.store(alive, Ordering::Release);
    }

    pub(crate) fn is_retiring(&self) -> bool {
        self.retiring.load(Ordering::Acquire)
    }

    pub(crate) fn set_retiring(&self, retiring: bool) {
        self.retiring.store(retiring, Ordering::Release);
    }

    pub(crate) fn is_busy(&self) -> bool {
        self.figures.lock().current.is_some()
    }

    pub(crate) fn age(&self, now: Instant) -> Option<Duration> {
        self.figures.lock().current.as_ref().map(|c| now.saturating_duration_since(c.since))
    }

    pub(crate) fn begin(&self, job: &JobId, now: Instant) {
        let mut f = self.figures.lock();
        f.current = Some(Current { job: job.clone(), since: now });
        f.last_active_ms = Some(clock::wall_ms());
    }

    /// The worker is free again after `spent`. What came of it may be told later, see [`Self::tally`].
    pub(crate) fn end(&self, spent: Duration) {
        let mut f = self.figures.lock();
        f.current = None;
        f.processed += 1;
        f.busy += spent;
        if let Some(times) = &mut f.times {
            times.saturating_record(u64::try_from(spent.as_micros()).unwrap_or(u64::MAX).max(1));
        }
        f.last_active_ms = Some(clock::wall_ms());
    }

    pub(crate) fn tally(&self, tally: Tally) {
        let mut f = self.figures.lock();
        match tally {
            Tally::Succeeded => f.succeeded += 1,
            Tally::Failed => f.failed += 1,
        }
    }

    pub(crate) fn figures(&self) -> WorkerFigures {
        let f = self.figures.lock();
        let times = f.times.as_ref().filter(|times| !times.is_empty());
        let at = |quantile: f64| times.map_or(Duration::ZERO, |times| Duration::from_micros(times.value_at_quantile(quantile)));
        WorkerFigures {
            succeeded: f.succeeded,
            failed: f.failed,
            avg: mean(f.busy, f.processed).unwrap_or_default(),
            p50: at(0.5),
            p99: at(0.99),
            last_active_ms: f.last_active_ms,
            current: f.current.clone(),
        }
    }
}

/// What the workers of one class have done together.
#[derive(Debug, Default)]
pub(crate) struct ClassStats {
    /// Attempts that are at a worker now.
    pub running: AtomicU64,
    /// Successes whose record is on its way.
    pub finishing: AtomicU64,
    /// Jobs claimed, less those given back unbegun.
    pub claimed: AtomicU64,
    busy_us: AtomicU64,
    pub succeeded: AtomicU64,
    pub failed: AtomicU64,
    /// Outages and stops.
    pub given_back: AtomicU64,
    pub fenced: AtomicU64,
    pub adopted: AtomicU64,
    pub stored_bytes: AtomicU64,
    /// The last claim did not find the end of the queue.
    pub more: AtomicBool,
    recent: Mutex<Recent>,
}

/// Means of what has been lately.
#[derive(Debug, Default)]
struct Recent {
    time: Decayed,
    wait: Decayed,
}

/// The time of jobs is followed closely: how many are claimed depends on it.
const TIME_MEMORY: Duration = Duration::from_secs(2);
const WAIT_MEMORY: Duration = Duration::from_secs(60);

impl ClassStats {
    /// An attempt has begun after its job had been ready for `wait`.
    pub(crate) fn begun(&self, wait: Duration, now: Instant) {
        self.running.fetch_add(1, Ordering::Relaxed);
        self.recent.lock().wait.add(wait, now, WAIT_MEMORY);
    }

    /// It has ended, whatever came of it.
    pub(crate) fn ended(&self, spent: Duration, now: Instant) {
        self.running.fetch_sub(1, Ordering::Relaxed);
        self.busy_us.fetch_add(u64::try_from(spent.as_micros()).unwrap_or(u64::MAX), Ordering::Relaxed);
        self.recent.lock().time.add(spent, now, TIME_MEMORY);
    }

    /// Worker time of the attempts that have ended.
    pub(crate) fn busy(&self) -> Duration {
        Duration::from_micros(self.busy_us.load(Ordering::Relaxed))
    }

    /// Mean time of the last jobs.
    pub(crate) fn mean_time(&self) -> Option<Duration> {
        self.recent.lock().time.mean()
    }

    /// Mean wait of the last jobs, and by how many it is known, so that classes can be added up.
    pub(crate) fn wait(&self) -> (Duration, f64) {
        let recent = self.recent.lock();
        (recent.wait.mean().unwrap_or_default(), recent.wait.weight)
    }
}

/// A mean in which old values count less and less.
#[derive(Debug, Clone, Copy, Default)]
struct Decayed {
    sum_s: f64,
    weight: f64,
    at: Option<Instant>,
}

impl Decayed {
    fn add(&mut self, value: Duration, now: Instant, memory: Duration) {
        let since = self.at.map_or(Duration::ZERO, |at| now.saturating_duration_since(at));
        let left = (-since.as_secs_f64() / memory.as_secs_f64()).exp();
        self.sum_s = self.sum_s * left + value.as_secs_f64();
        self.weight = self.weight * left + 1.0;
        self.at = Some(now);
    }

    fn mean(&self) -> Option<Duration> {
        (self.weight > 0.0).then(|| Duration::try_from_secs_f64(self.sum_s / self.weight).unwrap_or_default())
    }
}

/// `total / n`, for any `n`.
fn mean(total: Duration, n: u64) -> Option<Duration> {
    let nanos = total.as_nanos().checked_div(u128::from(n))?;
    Some(Duration::from_nanos(u64::try_from(nanos).unwrap_or(u64::MAX)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_worker_tells_what_it_has_done_and_does() {
        let cell = WorkerCell::new(SlotClass::Sync, 3);
        assert_eq!(cell.name, "sync-worker-3");
        assert_eq!(cell.figures().p99, Duration::ZERO, "nothing yet");
        let now = clock::now();
        for n in 1..=100u64 {
            cell.begin(&"j".to_owned(), now);
            cell.end(Duration::from_millis(n));
            cell.tally(if n > 90 { Tally::Failed } else { Tally::Succeeded });
        }
        let f = cell.figures();
        assert_eq!((f.succeeded, f.failed), (90, 10));
        assert_eq!(f.avg, Duration::from_micros(50_500));
        let near = |at: Duration, ms: u64| at.abs_diff(Duration::from_millis(ms)) <= Duration::from_millis(ms) / 50;
        assert!(near(f.p50, 50) && near(f.p99, 99), "{f:?}");
        assert!(f.current.is_none() && f.last_active_ms.is_some());
        cell.begin(&"k".to_owned(), now);
        assert_eq!(cell.figures().current.unwrap().job, "k");
        assert_eq!(cell.age(now + Duration::from_secs(2)), Some(Duration::from_secs(2)));
    }

    #[test]
    fn what_was_long_ago_counts_little() {
        let (mut mean, start) = (Decayed::default(), clock::now());
        assert_eq!(mean.mean(), None);
        for _ in 0..100 {
            mean.add(Duration::from_millis(1), start, TIME_MEMORY);
        }
        assert_eq!(mean.mean().unwrap().as_micros().abs_diff(1_000), 0);
        mean.add(Duration::from_secs(10), start + 10 * TIME_MEMORY, TIME_MEMORY);
        assert!(mean.mean().unwrap() > Duration::from_secs(9), "{:?}", mean.mean());
    }
}
