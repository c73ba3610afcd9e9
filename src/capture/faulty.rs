//! Owns: a wrapper that makes any change feed misbehave, by seeded rates or by script: refusing to open, breaking (before a reply is read, or with
//! the reply lost on its way), hanging until it is released. Does not own any event: what it passes on it passes on once and unaltered.

use std::sync::Arc;

use async_trait::async_trait;
use bson::RawDocument;
use parking_lot::Mutex;
use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};
use tokio::sync::watch;

use super::feed::{ChangeFeed, FeedCursor, Reply, SharedFeed};
use crate::fault::{Fault, Result};
use crate::ledger::Coverage;

/// Rates of faults in `0.0..=1.0`; what is not named does not happen.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct FeedFaults {
    /// Seeds the choice.
    pub seed: u64,
    /// Opens (and looks at the identity) that fail, `Transient`.
    pub refused: f64,
    /// Reads that break before anything is read, `Transient`.
    pub broken: f64,
    /// Reads whose reply is lost, `Unknown`.
    pub lost: f64,
}

/// A feed that misbehaves.
#[derive(Debug)]
pub struct FaultyFeed {
    inner: SharedFeed,
    plan: Arc<Plan>,
}

#[derive(Debug)]
struct Plan {
    state: Mutex<State>,
    hanging: watch::Sender<bool>,
}

#[derive(Debug)]
struct State {
    faults: FeedFaults,
    rng: SmallRng,
    /// The next opens are refused.
    refuse: u32,
    /// All opens are refused in this way.
    refuse_with: Option<Fault>,
    /// Replies until the next scripted break.
    break_after: Option<u64>,
    injected: u64,
}

impl FaultyFeed {
    /// Wraps `inner`.
    pub fn new(inner: SharedFeed, faults: FeedFaults) -> Self {
        let state =
            State { faults, rng: SmallRng::seed_from_u64(faults.seed), refuse: 0, refuse_with: None, break_after: None, injected: 0 };
        Self { inner, plan: Arc::new(Plan { state: Mutex::new(state), hanging: watch::Sender::new(false) }) }
    }

    /// Changes the rates from now on; the sequence of draws goes on.
    pub fn set_faults(&self, faults: FeedFaults) {
        self.plan.state.lock().faults = faults;
    }

    /// The next `opens` opens are refused.
    pub fn refuse(&self, opens: u32) {
        self.plan.state.lock().refuse = opens;
    }

    /// Every open is refused in this way, until it is given `None`.
    pub fn refuse_with(&self, fault: Option<Fault>) {
        self.plan.state.lock().refuse_with = fault;
    }

    /// After this many more replies the stream breaks, once.
    pub fn break_after(&self, replies: u64) {
        self.plan.state.lock().break_after = Some(replies);
    }

    /// Opens and reads answer nothing until [`Self::release`].
    pub fn hang(&self) {
        self.plan.hanging.send_replace(true);
    }

    /// Ends [`Self::hang`].
    pub fn release(&self) {
        self.plan.hanging.send_replace(false);
    }

    /// Faults so far, so that a test can tell that it tested something.
    pub fn injected(&self) -> u64 {
        self.plan.state.lock().injected
    }
}

/// What goes wrong with a read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Broken {
    Before,
    Lost,
}

impl Plan {
    async fn pass(&self) {
        // The sender lives in `self`: waiting cannot fail.
        let _ = self.hanging.subscribe().wait_for(|hanging| !*hanging).await;
    }

    fn draw_open(&self) -> Result<()> {
        let mut state = self.state.lock();
        let dice: f64 = state.rng.random_range(0.0..1.0);
        let scripted = state.refuse > 0;
        state.refuse = state.refuse.saturating_sub(1);
        if scripted || dice < state.faults.refused {
            state.injected += 1;
            return Err(Fault::transient("injected: the source does not answer"));
        }
        if let Some(fault) = state.refuse_with.clone() {
            state.injected += 1;
            return Err(fault);
        }
        Ok(())
    }

    fn draw_read(&self) -> Option<Broken> {
        let mut state = self.state.lock();
        let dice: f64 = state.rng.random_range(0.0..1.0);
        let scripted = state.break_after == Some(0);
        state.break_after = state.break_after.and_then(|n| n.checked_sub(1));
        let FeedFaults { broken, lost, .. } = state.faults;
        let drawn = match () {
            () if scripted || dice < broken => Some(Broken::Before),
            () if dice < broken + lost => Some(Broken::Lost),
            () => None,
        };
        state.injected += u64::from(drawn.is_some());
        drawn
    }
}

#[async_trait]
impl ChangeFeed for FaultyFeed {
    async fn identity(&self) -> Result<String> {
        self.plan.pass().await;
        self.plan.draw_open()?;
        self.inner.identity().await
    }

    async fn open(&self, after: Option<&RawDocument>) -> Result<Box<dyn FeedCursor>> {
        self.plan.pass().await;
        self.plan.draw_open()?;
        let inner = self.inner.open(after).await?;
        Ok(Box::new(FaultyCursor { inner, plan: self.plan.clone(), broken: false }))
    }
}

struct FaultyCursor {
    inner: Box<dyn FeedCursor>,
    plan: Arc<Plan>,
    broken: bool,
}

#[async_trait]
impl FeedCursor for FaultyCursor {
    async fn next(&mut self) -> Result<Reply> {
        self.plan.pass().await;
        // A broken stream stays broken: whoever goes on reading it would miss what was lost.
        if self.broken {
            return Err(Fault::unknown("injected: the stream broke before"));
        }
        let drawn = self.plan.draw_read();
        self.broken = drawn.is_some();
        match drawn {
            None => self.inner.next().await,
            Some(Broken::Before) => Err(Fault::transient("injected: the stream broke")),
            Some(Broken::Lost) => {
                self.inner.next().await?;
                Err(Fault::unknown("injected: the stream broke and a reply with it"))
            }
        }
    }

    fn coverage(&self) -> Coverage {
        self.inner.coverage()
    }
}
