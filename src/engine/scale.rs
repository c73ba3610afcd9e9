//! Measures the load once a second and lets the scaler decide.
//!
//! Owns: turning the pool's figures and the queue's into measurements. Does not own: arrivals (`arrivals`), the decision (`pool::scaler`),
//! resizing (`pool`).

use std::time::Duration;

use crate::ledger::{JobKind, Pauses, QueueStats, SharedLedger, StateCount};
use crate::pool::scaler::Measured;
use crate::pool::{Load, Pool, SharedPauses};
use crate::runtime::clock;
use crate::runtime::shutdown::Shutdown;

use super::arrivals::{Arrivals, Waiting};
use super::peers::Peers;
use super::view::EngineHandle;

/// The scaler's rhythm.
const EVERY: Duration = Duration::from_secs(1);
/// A measurement that takes longer than this is made without the backlog: the queue answers late when it is busiest.
const ANSWER: Duration = Duration::from_millis(800);

/// The stage.
pub(super) struct ScaleLoop {
    pub ledger: SharedLedger,
    pub pool: Pool,
    pub peers: Peers,
    pub pauses: SharedPauses,
    pub view: EngineHandle,
    pub stop: Shutdown,
}

impl ScaleLoop {
    /// Until the engine drains: from then on there is only less to do.
    pub(super) async fn run(self) {
        let (mut arrivals, mut waiting) = (Arrivals::default(), Waiting::default());
        let mut tick = tokio::time::interval(EVERY);
        tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                _ = tick.tick() => {}
                () = self.stop.draining() => return,
            }
            // The time is that of the pool's figures: the queue may take long to answer.
            let (load, at) = (self.pool.load(clock::now()), self.view.uptime());
            if let Some(found) = self.backlog(&load).await {
                waiting = found;
            }
            self.view.decide(&measured(&load, at, arrivals.look(at, load.claimed, waiting)));
        }
    }

    /// Ready jobs that nobody has claimed: this engine's share. `None` when the queue does not say so in time.
    ///
    /// An idle queue is not asked: the last claim has found its end. While all workers are busy that may have been long ago.
    async fn backlog(&self, load: &Load) -> Option<Waiting> {
        if !load.more && load.running.len() < usize::from(load.workers) {
            return Some(Waiting::default());
        }
        let stats = tokio::time::timeout(ANSWER, self.ledger.queue_stats()).await.ok()?.ok()?;
        let ready = ready(&stats, &self.pool.sync_kinds(), &self.pauses.lock());
        let StateCount { as_of_ms, at_least, .. } = stats.ready;
        Some(Waiting { jobs: ready.div_ceil(self.peers.count()), as_of_ms, at_least })
    }
}

/// Ready jobs that sync workers may take.
fn ready(stats: &QueueStats, kinds: &[JobKind], pauses: &Pauses) -> u64 {
    pauses.open(kinds).iter().filter_map(|kind| stats.ready.by_kind.get(kind)).sum()
}

fn measured(load: &Load, at: Duration, (arrived, backlog): (u64, u64)) -> Measured {
    Measured {
        at,
        arrived,
        completed: load.succeeded,
        busy: load.busy,
        running: load.running.clone(),
        backlog: backlog + load.waiting,
        workers: load.workers,
        errors: load.errors,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ledger::{PauseNote, PauseTarget};

    #[test]
    fn the_backlog_is_what_sync_workers_may_take_and_what_waits_here() {
        let mut stats = QueueStats::default();
        stats.ready.by_kind = [(JobKind::Sync, 100), (JobKind::Noop, 10), (JobKind::Compression, 1_000)].into();
        let kinds = [JobKind::Sync, JobKind::Noop];
        let mut pauses = Pauses::default();
        assert_eq!(ready(&stats, &kinds, &pauses), 110);
        pauses.0.insert(PauseTarget::Kind(JobKind::Sync), PauseNote { by: "me".into(), at_ms: 0 });
        assert_eq!(ready(&stats, &kinds, &pauses), 10);
        let load = Load { claimed: 50, succeeded: 40, errors: 2, waiting: 4, workers: 5, ..Load::default() };
        let m = measured(&load, Duration::from_secs(9), (57, 7));
        assert_eq!((m.arrived, m.completed, m.errors, m.backlog, m.workers), (57, 40, 2, 11, 5));
    }
}
