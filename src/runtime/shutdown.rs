//! Levels of stopping: Running -> Draining (sources stop, the rest ends as its input ends) -> Aborting (leases given back).
//!
//! Owns: the two signals. Does not own: who obeys them (`engine`).

use tokio_util::sync::CancellationToken;

/// Shared by every stage of an engine.
#[derive(Clone, Debug, Default)]
pub struct Shutdown {
    drain: CancellationToken,
    abort: CancellationToken,
}

impl Shutdown {
    /// Running.
    pub fn new() -> Self {
        Self::default()
    }

    /// Asks the sources to stop.
    pub fn drain(&self) {
        self.drain.cancel();
    }

    /// Asks everything to stop now.
    pub fn abort(&self) {
        self.drain.cancel();
        self.abort.cancel();
    }

    /// Sources should stop.
    pub fn is_draining(&self) -> bool {
        self.drain.is_cancelled()
    }

    /// Everything should stop.
    pub fn is_aborting(&self) -> bool {
        self.abort.is_cancelled()
    }

    /// Completes when sources should stop.
    pub async fn draining(&self) {
        self.drain.cancelled().await;
    }

    /// Completes when everything should stop.
    pub async fn aborting(&self) {
        self.abort.cancelled().await;
    }

    /// A level below this one: ends with its parent, can be ended alone (one capture of an engine).
    #[must_use]
    pub fn child(&self) -> Self {
        Self { drain: self.drain.child_token(), abort: self.abort.child_token() }
    }
}
