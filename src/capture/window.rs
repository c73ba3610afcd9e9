//! Owns: looking now and then how much oplog is left behind a capture's position. Does not own: what is made of it (alerts, the status page).

use std::sync::Arc;
use std::time::Duration;

use super::feed::SharedFeed;
use crate::runtime::random;
use crate::telemetry::meters::CaptureMeter;

/// Time between looks: an oplog that is worth having lasts for hours.
const EVERY: Duration = Duration::from_secs(60);
/// The first look, when the stream is open.
const FIRST: Duration = Duration::from_secs(2);

/// Until it is dropped. A look that fails tells nothing new.
pub(super) async fn watch_oplog(feed: SharedFeed, meter: Arc<CaptureMeter>) {
    let mut pause = FIRST;
    loop {
        tokio::time::sleep(random::jitter(pause)).await;
        pause = EVERY;
        match feed.oldest_kept().await {
            Ok(oldest) => {
                let left = oldest.map(|oldest| Duration::from_secs(meter.position().saturating_sub(u64::from(oldest.t))));
                meter.has_oplog(left.filter(|_| meter.position() > 0));
            }
            Err(fault) => tracing::debug!(error = %fault, "could not look at the oplog"),
        }
    }
}
