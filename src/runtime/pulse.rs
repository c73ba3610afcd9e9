//! Whether the async runtime still runs its tasks, to be read from any thread.
//!
//! Owns: a task that notes the time, and how late it is. Does not own what is said about it (`http::health`).

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use super::clock;

/// Time between beats: short beside the second at which a stall is worth a word, long enough to cost nothing.
const PERIOD: Duration = Duration::from_millis(200);
/// Beats after which the worst lag is forgotten, if none as bad has come: longer than the usual minute between scrapes would hide that it is over.
const REMEMBERED: u32 = 150;

/// The pulse of the runtime on which it was started.
#[derive(Debug)]
pub struct Pulse {
    base: Instant,
    /// Microseconds since `base` at the last beat.
    beat: AtomicU64,
    worst: AtomicU64,
}

impl Pulse {
    /// Starts on the current runtime; ends with its last handle.
    pub fn start() -> Arc<Self> {
        let pulse = Arc::new(Self { base: clock::now(), beat: AtomicU64::new(0), worst: AtomicU64::new(0) });
        let weak = Arc::downgrade(&pulse);
        tokio::spawn(async move {
            let mut since_worst = 0;
            loop {
                tokio::time::sleep(PERIOD).await;
                let Some(pulse) = weak.upgrade() else { return };
                let late = micros(pulse.lag());
                since_worst += 1;
                if late >= pulse.worst.load(Ordering::Relaxed) || since_worst > REMEMBERED {
                    pulse.worst.store(late, Ordering::Relaxed);
                    since_worst = 0;
                }
                pulse.beat.store(micros(pulse.base.elapsed()), Ordering::Relaxed);
            }
        });
        pulse
    }

    /// How late the next beat is: next to nothing while the runtime runs, and growing while it does not.
    pub fn lag(&self) -> Duration {
        let since = micros(self.base.elapsed()).saturating_sub(self.beat.load(Ordering::Relaxed));
        Duration::from_micros(since).saturating_sub(PERIOD)
    }

    /// The worst lag of the last half minute or so.
    pub fn worst(&self) -> Duration {
        self.lag().max(Duration::from_micros(self.worst.load(Ordering::Relaxed)))
    }
}

fn micros(time: Duration) -> u64 {
    u64::try_from(time.as_micros()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_blocked_runtime_is_seen_from_another_thread_and_remembered_for_a_while() {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        let pulse = runtime.block_on(async { Pulse::start() });
        std::thread::sleep(PERIOD * 2);
        assert!(pulse.lag() < Duration::from_secs(1), "{:?}", pulse.lag());
        runtime.spawn(async { std::thread::sleep(Duration::from_millis(1500)) });
        std::thread::sleep(Duration::from_millis(1200));
        assert!(pulse.lag() > Duration::from_millis(500), "{:?}", pulse.lag());
        std::thread::sleep(Duration::from_secs(1));
        assert!(pulse.lag() < Duration::from_millis(500) && pulse.worst() > Duration::from_millis(500), "{pulse:?}");
    }
}
