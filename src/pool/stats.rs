//! What workers and classes have done: counted as it happens, readable at any time without stopping anything.
//!
//! Owns: the figures. Does not own: what is shown where (`ledger::EngineStatus`, `engine::view`).

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use hdrhistogram::Histogram;
use parking_lot::Mutex;

use crate::jobs::SlotClass;
use crate::ledger::{JobId, JobKind};
use crate::runtime::clock;

/// Longest time that a histogram tells from longer ones.
const LONGEST: Duration = Duration::from_secs(3_600);
/// Two digits: a percentile is off by a hundredth at most, and a histogram has 27 KB.
const DIGITS: u8 = 2;

/// How an attempt ended, for the counters.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Tally {
    Succeeded,
    Failed,
    /// Neither: an outage, a stop, a cancelled job, a lost lease.
    Neither,
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
    pub kind: JobKind,
    pub since: Instant,
}

#[derive(Debug)]
struct Figures {
    times: Histogram<u64>,
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
    pub processed: u64,
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
        let times = Histogram::new_with_bounds(1, longest, DIGITS).unwrap_or_else(|_| Histogram::from(&tiny()));
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

    pub(crate) fn begin(&self, job: &JobId, kind: JobKind, now: Instant) {
        let mut f = self.figures.lock();
        f.current = Some(Current { job: job.clone(), kind, since: now });
        f.last_active_ms = Some(clock::wall_ms());
    }

    /// The worker is free again after `spent`. What came of it may be told later, see [`Self::tally`].
    pub(crate) fn end(&self, spent: Duration) {
        let mut f = self.figures.lock();
        f.current = None;
        f.processed += 1;
        f.busy += spent;
        f.times.saturating_record(u64::try_from(spent.as_micros()).unwrap_or(u64::MAX).max(1));
        f.last_active_ms = Some(clock::wall_ms());
    }

    pub(crate) fn tally(&self, tally: Tally) {
        let mut f = self.figures.lock();
        match tally {
            Tally::Succeeded => f.succeeded += 1,
            Tally::Failed => f.failed += 1,
            Tally::Neither => {}
        }
    }

    pub(crate) fn figures(&self) -> WorkerFigures {
        let f = self.figures.lock();
        let at = |quantile: f64| Duration::from_micros(f.times.value_at_quantile(quantile));
        let none = f.times.is_empty();
        WorkerFigures {
            processed: f.processed,
            succeeded: f.succeeded,
            failed: f.failed,
            avg: u32::try_from(f.processed).ok().filter(|n| *n > 0).map_or(Duration::ZERO, |n| f.busy / n),
            p50: if none { Duration::ZERO } else { at(0.5) },
            p99: if none { Duration::ZERO } else { at(0.99) },
            last_active_ms: f.last_active_ms,
            current: f.current.clone(),
        }
    }
}
