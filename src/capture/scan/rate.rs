//! Owns: how fast a source is read on average. Does not own: what is read.

use std::time::{Duration, Instant};

use parking_lot::Mutex;

use crate::runtime::clock;

/// A limit in bytes a second that several readers share.
#[derive(Debug)]
pub struct Rate {
    bytes_per_second: u64,
    /// When everything that was read so far has been paid for.
    free_at: Mutex<Option<Instant>>,
}

impl Rate {
    /// 0: no limit.
    pub fn new(bytes_per_second: u64) -> Self {
        Self { bytes_per_second, free_at: Mutex::new(None) }
    }

    /// Waits for what `bytes`, just read, are worth.
    pub async fn take(&self, bytes: u64) {
        let wait = self.wait(clock::now(), bytes);
        if !wait.is_zero() {
            tokio::time::sleep(wait).await;
        }
    }

    /// Time that was not used is lost: a pause of the reader is no reason to read faster afterwards.
    fn wait(&self, now: Instant, bytes: u64) -> Duration {
        if self.bytes_per_second == 0 {
            return Duration::ZERO;
        }
        #[allow(clippy::cast_precision_loss)] // bytes of a chunk, and a rate
        let worth = Duration::from_secs_f64(bytes as f64 / self.bytes_per_second as f64);
        let mut free_at = self.free_at.lock();
        let until = free_at.map_or(now, |at| at.max(now)) + worth;
        *free_at = Some(until);
        until.saturating_duration_since(now)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn readers_share_the_rate_and_do_not_catch_up() {
        let (rate, start) = (Rate::new(1_000), clock::now());
        let second = Duration::from_secs(1);
        assert_eq!(rate.wait(start, 1_000), second);
        assert_eq!(rate.wait(start, 500), second * 3 / 2, "another reader waits behind the first");
        assert_eq!(rate.wait(start + second * 10, 1_000), second, "idle time is not saved up");
        assert_eq!(Rate::new(0).wait(start, u64::MAX), Duration::ZERO);
    }
}
