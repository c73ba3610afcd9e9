//! Owns: the hold that whoever runs an attempt has on it. Does not own: when an attempt is stopped (`pool::attempt`).

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

/// Shared by an attempt and whoever runs it.
#[derive(Debug, Clone, Default)]
pub struct Watch {
    /// The attempt is over: its CPU unit, its upload and its repeats of a commit stop.
    pub cancel: CancellationToken,
    computing: Arc<AtomicBool>,
    progress: Arc<Notify>,
}

impl Watch {
    /// A CPU unit of the attempt is running.
    pub fn is_computing(&self) -> bool {
        self.computing.load(Ordering::Relaxed)
    }

    /// Something is done that the next attempt need not do again.
    pub fn progressed(&self) {
        self.progress.notify_one();
    }

    /// Until the attempt has got on since the last call.
    pub async fn progress(&self) {
        self.progress.notified().await;
    }

    /// Held by a CPU unit while it runs.
    pub fn computing(&self) -> Computing {
        Computing::mark(self.computing.clone())
    }
}

/// A CPU unit runs while it lives.
#[derive(Debug)]
pub struct Computing(Arc<AtomicBool>);

impl Computing {
    fn mark(flag: Arc<AtomicBool>) -> Self {
        flag.store(true, Ordering::Relaxed);
        Self(flag)
    }
}

impl Drop for Computing {
    fn drop(&mut self) {
        self.0.store(false, Ordering::Relaxed);
    }
}
