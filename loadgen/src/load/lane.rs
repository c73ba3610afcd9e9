//! Owns: one writer: waits until operations are due, sends them, notes how long each took. Does not own when they are due
//! ([`super::pacing`]) or what they are (`argon::devkit::workload`).

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use argon::devkit::Workload;
use argon::devkit::workload::{self, Stats};
use argon::fault::{Fault, Result};
use argon::runtime::clock;
use argon::runtime::shutdown::Shutdown;
use mongodb::Database;

use super::latency::Latencies;
use super::pacing::Schedule;

/// After a failed command, so that an unreachable server is not asked thousands of times a second.
const PAUSE_AFTER_FAILURE: Duration = Duration::from_millis(250);

/// One writer.
pub(super) struct Lane {
    pub db: Database,
    pub workload: Workload,
    /// `None`: as fast as it goes.
    pub schedule: Option<Schedule>,
    pub start: Instant,
    /// When to stop, from the start.
    pub duration: Duration,
    /// Operations at most.
    pub count: u64,
    /// Operations sent together at most.
    pub batch: u64,
    pub keep_going: bool,
    pub stop: Shutdown,
    /// Operations sent by all writers, for the progress line.
    pub sent: Arc<AtomicU64>,
}

/// What a writer did.
pub(super) struct LaneEnd {
    pub stats: Stats,
    pub latencies: Latencies,
    /// Due but not sent when the time was over.
    pub unsent: u64,
    /// Commands or transactions that failed.
    pub failures: u64,
    /// The first failure.
    pub failure: Option<Fault>,
}

impl Lane {
    /// Runs to the end of its time or count, to the stop, or to the first failure.
    pub(super) async fn run(mut self) -> LaneEnd {
        let mut end = LaneEnd { stats: Stats::default(), latencies: Latencies::new(), unsent: 0, failures: 0, failure: None };
        let mut next = 0;
        while next < self.count && !self.stop.is_draining() {
            let now = self.start.elapsed();
            if now >= self.duration {
                break;
            }
            let due = self.due_by(nanos(now));
            if due <= next {
                self.wait_for(next).await;
                continue;
            }
            let take = (due - next).min(self.batch);
            if let Err(fault) = self.send(next, take, &mut end).await {
                end.failures += 1;
                end.failure.get_or_insert(fault);
                if !self.keep_going {
                    break;
                }
                tokio::time::sleep(PAUSE_AFTER_FAILURE).await;
            }
            next += take;
        }
        if self.schedule.is_some() {
            end.unsent = self.due_by(nanos(self.start.elapsed().min(self.duration))).saturating_sub(next);
        }
        end
    }

    fn due_by(&self, now_ns: u64) -> u64 {
        self.schedule.map_or(u64::MAX, |schedule| schedule.due_by(now_ns)).min(self.count)
    }

    /// Sleeps until operation `next` is due, the time is over or the stop comes.
    async fn wait_for(&self, next: u64) {
        let due = self.schedule.map_or(0, |schedule| schedule.due_ns(next));
        let until = self.start + Duration::from_nanos(due).min(self.duration);
        tokio::select! {
            () = tokio::time::sleep_until(until.into()) => {}
            () = self.stop.draining() => {}
        }
    }

    /// Sends operations `first..first + take`. Latency runs from when each was due, or from sending where nothing is ever due.
    async fn send(&mut self, first: u64, take: u64, end: &mut LaneEnd) -> Result<()> {
        let sending = nanos(self.start.elapsed());
        let operations: Vec<_> = (0..take).map(|_| self.workload.next_operation()).collect();
        end.stats += Box::pin(workload::apply(&self.db, &operations)).await?;
        let done = nanos(self.start.elapsed());
        for n in first..first + take {
            let due = self.schedule.map_or(sending, |schedule| schedule.due_ns(n));
            end.latencies.record(done.saturating_sub(due) / 1000, 1);
        }
        self.sent.fetch_add(take, Ordering::Relaxed);
        Ok(())
    }
}

fn nanos(time: Duration) -> u64 {
    u64::try_from(time.as_nanos()).unwrap_or(u64::MAX)
}

/// Now, as the start of lanes.
pub(super) fn now() -> Instant {
    clock::now()
}
