//! What operators wish of all engines, and of running jobs: polled, since they may say it anywhere.
//!
//! Owns: the rhythm, and passing it on. Does not own: obeying (`pool`, `view`).

use std::time::Duration;

use super::upkeep::Part;
use super::view::EngineHandle;
use crate::fault::Result;
use crate::pool::{InWork, SharedPauses};
use crate::runtime::random;

/// Pauses and sizes are obeyed within about this time, and by an idle engine, which has nothing to pause, within three times as long.
const CONTROLS_EVERY: Duration = Duration::from_secs(2);
const CONTROLS_CALMLY: u32 = 3;
/// A running job that shall stop is told so within about this time: one look at an index, while something runs.
const CANCEL_EVERY: Duration = Duration::from_secs(2);

impl Part {
    /// The first look comes before the first claim, and must succeed: what is paused stays so when an engine starts.
    pub(super) async fn look_at_controls(&self, pauses: &SharedPauses, view: &EngineHandle) -> Result<()> {
        let controls = self.ledger.controls().await?;
        *pauses.lock() = controls.pauses;
        view.obey(controls.scale.as_ref());
        Ok(())
    }

    pub(super) async fn controls_loop(self, pauses: SharedPauses, view: EngineHandle) {
        while self.pause_calmly(CONTROLS_EVERY, CONTROLS_CALMLY).await {
            // What was wished last stays.
            if let Err(fault) = self.look_at_controls(&pauses, &view).await {
                tracing::debug!(error = %fault, "could not look for pauses and sizes");
            }
        }
    }

    pub(super) async fn cancel_loop(self, in_work: InWork) {
        while self.pause(random::jitter(CANCEL_EVERY)).await {
            if in_work.is_empty() {
                continue;
            }
            match self.ledger.cancel_requests(&self.me.id).await {
                Ok(jobs) if jobs.is_empty() => {}
                Ok(jobs) => in_work.asked(&jobs),
                Err(fault) => tracing::debug!(error = %fault, "could not look for jobs that are to stop"),
            }
        }
    }
}
