//! The one place that reads clocks. Monotonic time paces work; wall time is for display and file names only, never for history.
#![allow(clippy::disallowed_methods)]

use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

/// Monotonic now.
pub fn now() -> Instant {
    Instant::now()
}

/// Wall clock in milliseconds since the epoch, for display only.
pub fn wall_ms() -> i64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or(Duration::ZERO);
    i64::try_from(since.as_millis()).unwrap_or(i64::MAX)
}
