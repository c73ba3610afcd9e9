//! How often somebody looks who may find nothing: less often while nothing happens, so that an idle engine costs its servers next to nothing.
//!
//! Owns: when work was last seen, and by how much a rhythm slows down then. Does not own: any rhythm, or what counts as work (`pool::claim` says so).
//!
//! What this process makes itself rings a bell and waits for no rhythm; what others make is found a few seconds later by an engine that was idle.

use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::Mutex;

use super::clock;

/// After this time without work an engine is idle.
const QUIET: Duration = Duration::from_secs(10);

/// Shared by the loops of one engine. A new engine counts as busy at first: whoever starts one is about to use it.
#[derive(Debug, Clone)]
pub struct Calm(Arc<Mutex<Instant>>);

impl Default for Calm {
    fn default() -> Self {
        Self(Arc::new(Mutex::new(clock::now())))
    }
}

impl Calm {
    /// Of an engine that has had no work for long.
    #[cfg(test)]
    pub(crate) fn idle() -> Self {
        Self(Arc::new(Mutex::new(clock::now().checked_sub(QUIET).unwrap_or_else(clock::now))))
    }

    /// There is work.
    pub fn disturb(&self) {
        *self.0.lock() = clock::now();
    }

    /// There has been none for a while.
    pub fn is_idle(&self) -> bool {
        self.0.lock().elapsed() >= QUIET
    }

    /// The time between two looks, `times` as long while the engine is idle.
    pub fn stretch(&self, every: Duration, times: u32) -> Duration {
        if self.is_idle() { every * times } else { every }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn looks_are_rarer_once_nothing_has_happened_for_a_while() {
        let second = Duration::from_secs(1);
        assert_eq!(Calm::default().stretch(second, 4), second, "whoever starts an engine is about to use it");
        let calm = Calm::idle();
        assert_eq!((calm.is_idle(), calm.stretch(second, 4)), (true, 4 * second));
        calm.disturb();
        assert_eq!((calm.is_idle(), calm.stretch(second, 4)), (false, second));
    }
}
