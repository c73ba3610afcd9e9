//! One class of workers: what waits for them, who they are, what they have done.
//!
//! Owns: the list of workers and the choice of who starts and who stops when the target changes. Does not own: the tasks themselves (`crew`).

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use parking_lot::Mutex;

use super::inbox::Inbox;
use super::stats::{ClassStats, WorkerCell};
use super::window;
use crate::jobs::SlotClass;
use crate::ledger::JobKind;

/// Shared by claimer, crew, workers and whoever shows them.
#[derive(Debug)]
pub(crate) struct Class {
    pub class: SlotClass,
    /// What its workers can do in this version.
    pub kinds: Vec<JobKind>,
    pub inbox: Inbox,
    pub stats: ClassStats,
    /// By index; a worker that has stopped keeps its place and its figures.
    cells: Mutex<Vec<Arc<WorkerCell>>>,
    target: AtomicUsize,
    /// With so many jobs waiting, or fewer, it is time to claim.
    low_water: AtomicUsize,
}

impl Class {
    pub(crate) fn new(class: SlotClass, kinds: Vec<JobKind>, target: usize) -> Self {
        Self {
            class,
            kinds,
            inbox: Inbox::default(),
            stats: ClassStats::default(),
            cells: Mutex::default(),
            target: AtomicUsize::new(target),
            low_water: AtomicUsize::new(0),
        }
    }

    pub(crate) fn target(&self) -> usize {
        self.target.load(Ordering::Relaxed)
    }

    /// True when it is another one.
    pub(crate) fn set_target(&self, target: usize) -> bool {
        self.target.swap(target, Ordering::Relaxed) != target
    }

    /// Workers that exist, those that are about to stop included.
    pub(crate) fn alive(&self) -> Vec<Arc<WorkerCell>> {
        self.cells.lock().iter().filter(|cell| cell.is_alive()).cloned().collect()
    }

    pub(crate) fn running(&self) -> usize {
        usize::try_from(self.stats.running.load(Ordering::Relaxed)).unwrap_or(usize::MAX)
    }

    /// How many of a claim's jobs find a worker that waits.
    pub(crate) fn idle(&self) -> usize {
        self.target().saturating_sub(self.running() + self.inbox.len())
    }

    /// Whether the claimer has something to do after the end of an attempt.
    pub(crate) fn is_low(&self) -> bool {
        self.inbox.len() <= self.low_water.load(Ordering::Relaxed) || self.running() == 0
    }

    /// Jobs to claim now.
    pub(crate) fn wanted(&self, now: Instant) -> usize {
        let workers = self.target();
        if self.kinds.is_empty() || workers == 0 {
            return 0;
        }
        // Jobs that have run for long already say more than those that have ended.
        let ages: Vec<Duration> = self.alive().iter().filter_map(|cell| cell.age(now)).collect();
        let running = u32::try_from(ages.len()).ok().and_then(|n| ages.iter().sum::<Duration>().checked_div(n));
        let prefetch = window::prefetch(workers, self.stats.mean_time().max(running));
        self.low_water.store(prefetch / 2, Ordering::Relaxed);
        window::to_claim(workers, self.running(), self.inbox.len(), prefetch)
    }

    /// Makes as many stay as there shall be: returns the workers to start, and tells the ones too many to stop.
    pub(crate) fn adjust(&self) -> Vec<Arc<WorkerCell>> {
        let mut cells = self.cells.lock();
        let target = self.target();
        let mut staying = cells.iter().filter(|c| c.is_alive() && !c.is_retiring()).count();
        // First those that have not gone yet, the lowest first.
        for cell in cells.iter().filter(|c| c.is_alive() && c.is_retiring()) {
            if staying < target {
                cell.set_retiring(false);
                staying += 1;
            }
        }
        let mut start = Vec::new();
        for index in 0.. {
            if staying >= target {
                break;
            }
            if cells.len() == index {
                cells.push(Arc::new(WorkerCell::new(self.class, index)));
            }
            let Some(cell) = cells.get(index).filter(|c| !c.is_alive()) else { continue };
            cell.set_retiring(false);
            cell.set_alive(true);
            start.push(cell.clone());
            staying += 1;
        }
        // Idle ones stop now, busy ones after their job; among equals the highest first, so that names stay low.
        for busy in [false, true] {
            for cell in cells.iter().rev().filter(|c| c.is_alive() && !c.is_retiring() && c.is_busy() == busy) {
                if staying > target {
                    cell.set_retiring(true);
                    staying -= 1;
                }
            }
        }
        drop(cells);
        self.inbox.look_again();
        start
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::runtime::clock;

    fn names(cells: &[Arc<WorkerCell>]) -> Vec<String> {
        cells.iter().map(|c| c.name.clone()).collect()
    }

    fn retiring(class: &Class) -> Vec<String> {
        names(&class.alive().into_iter().filter(|c| c.is_retiring()).collect::<Vec<_>>())
    }

    #[test]
    fn idle_workers_stop_first_and_a_busy_one_may_stay_after_all() {
        let class = Class::new(SlotClass::Sync, vec![JobKind::Sync], 4);
        let cells = class.adjust();
        assert_eq!(names(&cells), ["sync-worker-0", "sync-worker-1", "sync-worker-2", "sync-worker-3"]);
        for busy in [0, 3] {
            cells[busy].begin(&"j".to_owned(), clock::now());
        }
        class.set_target(3);
        assert!(class.adjust().is_empty());
        assert_eq!(retiring(&class), ["sync-worker-2"]);
        class.set_target(1);
        class.adjust();
        assert_eq!(retiring(&class), ["sync-worker-1", "sync-worker-2", "sync-worker-3"]);
        // The idle ones go, the busy one is still at its job when more are wanted again.
        for gone in [1, 2] {
            cells[gone].set_alive(false);
        }
        class.set_target(3);
        assert_eq!(names(&class.adjust()), ["sync-worker-1"], "numbers are used again");
        assert_eq!(retiring(&class), [] as [&str; 0]);
        assert_eq!(class.alive().len(), 3);
    }

    #[test]
    fn a_class_without_kinds_or_workers_claims_nothing() {
        let now = clock::now();
        assert_eq!(Class::new(SlotClass::Cleanup, vec![], 1).wanted(now), 0);
        assert_eq!(Class::new(SlotClass::Cleanup, vec![JobKind::Cleanup], 0).wanted(now), 0);
        assert_eq!(Class::new(SlotClass::Cleanup, vec![JobKind::Cleanup], 1).wanted(now), 3);
    }
}
