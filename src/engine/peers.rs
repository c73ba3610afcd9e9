//! The engines that live, as this one sees them.
//!
//! Owns: the last list of engines and who of it counts. Does not own: when it is read (`upkeep`, `captures`), or who is rescued (`ledger`).

use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;

use crate::ledger::{EngineBeat, EngineId};

/// Shared by whoever shares work with others.
#[derive(Debug, Clone)]
pub(super) struct Peers {
    me: EngineId,
    lease: Duration,
    living: Arc<Mutex<Vec<EngineId>>>,
}

impl Peers {
    pub(super) fn new(me: EngineId, lease: Duration) -> Self {
        Self { living: Arc::new(Mutex::new(vec![me.clone()])), me, lease }
    }

    /// A list that was just read.
    pub(super) fn seen(&self, engines: &[EngineBeat]) {
        let mut living = living(engines, self.lease);
        if !living.contains(&self.me) {
            living.push(self.me.clone()); // for itself it lives
        }
        *self.living.lock() = living;
    }

    /// Engines that take work, this one included.
    pub(super) fn living(&self) -> Vec<EngineId> {
        self.living.lock().clone()
    }

    /// How many share the queue.
    pub(super) fn count(&self) -> u64 {
        self.living.lock().len().max(1) as u64
    }
}

/// Those that take work: heard within a lease before the newest heartbeat, and not stopping. No clock is needed: this one's own heartbeat is among them.
fn living(engines: &[EngineBeat], lease: Duration) -> Vec<EngineId> {
    let newest = engines.iter().map(|e| e.beat_ms).max().unwrap_or_default();
    let lease_ms = i64::try_from(lease.as_millis()).unwrap_or(i64::MAX);
    let takes_work = |e: &&EngineBeat| newest.saturating_sub(e.beat_ms) <= lease_ms && !e.status.as_ref().is_some_and(|s| s.draining);
    engines.iter().filter(takes_work).map(|e| e.id.clone()).collect()
}

/// Engines that have been silent for much longer than a lease and are still there: whoever should have rescued them has not.
pub(super) fn overdue(engines: &[EngineBeat], lease: Duration) -> bool {
    let newest = engines.iter().map(|e| e.beat_ms).max().unwrap_or_default();
    let limit_ms = i64::try_from((lease * 2).as_millis()).unwrap_or(i64::MAX);
    engines.iter().any(|e| newest.saturating_sub(e.beat_ms) > limit_ms)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ledger::EngineStatus;

    const LEASE: Duration = Duration::from_secs(15);

    fn engine(id: &str, beat_ms: i64, draining: bool) -> EngineBeat {
        let status = EngineStatus { draining, ..EngineStatus::default() };
        EngineBeat { id: id.into(), host: "h".into(), boot: "b".into(), pid: 1, beat_ms, status: Some(status) }
    }

    #[test]
    fn the_silent_and_the_stopping_take_no_work_and_oneself_always_does() {
        let engines = [engine("a", 100_000, false), engine("b", 84_999, false), engine("c", 99_000, true), engine("d", 85_000, false)];
        assert_eq!(living(&engines, LEASE), ["a", "d"]);
        assert!(!overdue(&engines, LEASE));
        assert!(overdue(&[engine("a", 100_000, false), engine("b", 69_999, false)], LEASE));
        let peers = Peers::new("me".into(), LEASE);
        assert_eq!(peers.count(), 1);
        peers.seen(&engines);
        assert_eq!(peers.living(), ["a", "d", "me"]);
    }
}
