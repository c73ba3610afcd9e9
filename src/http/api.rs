//! What handlers stand on: one struct, the same for every listener.
//!
//! Owns: [`Api`], the view of the running engine ([`EngineView`]) that handlers ask, and the bounds on what requests may hold at once.
//! Does not own: handlers, listeners, the engine.

use std::fmt::Debug;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;

use super::events::EventHub;
use super::health::{Check, Probes};
use super::metrics::Scraper;
use crate::engine::{CaptureRows, Pressure};
use crate::fault::Result;
use crate::ledger::{EngineStatus, PoolRow, SharedLedger};
use crate::pool::scaler::Decision;
use crate::runtime::clock;
use crate::runtime::pulse::Pulse;
use crate::store::Store;
use crate::telemetry::meters::Meters;
use crate::telemetry::metrics::Metrics;

/// Calls in work at once, over all listeners: each may hold a connection to MongoDB.
const MOST_CALLS: usize = 64;
const MOST_LOCAL_CALLS: usize = 16;
/// Bytes of request bodies in memory at once.
const BODY_BYTES: usize = 16 << 20;
/// Streams of events open at once.
const MOST_STREAMS: usize = 32;

/// What the process of this API says of its engine. Every method answers from memory, at once, on any thread.
pub trait EngineView: Send + Sync + Debug {
    /// The engine's id, as leases carry it.
    fn id(&self) -> String;
    /// As its heartbeat says it, but now.
    fn status(&self) -> EngineStatus;
    /// The scaler's last decisions, oldest first.
    fn decisions(&self) -> Vec<Decision>;
    /// Pins the number of sync workers, for a time or until released. `Config` for a number that the settings exclude; then nothing changes.
    fn scale(&self, target: u16, hold: Option<Duration>) -> Result<PoolRow>;
    /// Ends a pin.
    fn release_pin(&self) -> Result<PoolRow>;
    /// What the engine knows of its own parts.
    fn checks(&self) -> EngineChecks;
    /// The rows of all captures as the engine has last looked at them, and when: who asks for them anew pays for it.
    fn capture_rows(&self) -> Option<CaptureRows> {
        None
    }
    /// There may be new jobs: look now, not at the next turn.
    fn wake(&self);
    /// It is stopping.
    fn is_draining(&self) -> bool;
    /// What the process counts.
    fn meters(&self) -> &Meters;
    /// How full its bounded parts are.
    fn pressure(&self) -> Pressure;
}

/// Parts of an engine that it judges itself.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct EngineChecks {
    /// What the engine says of following captures; what their rows say is looked at besides.
    pub captures: Check,
    /// Workers run, and none hangs beyond what it can be stopped from.
    pub workers: Check,
}

/// Everything that handlers use.
#[derive(Debug)]
pub struct Api {
    pub ledger: SharedLedger,
    pub store: Store,
    pub engine: Arc<dyn EngineView>,
    pub metrics: Metrics,
    pub pulse: Arc<Pulse>,
    pub events: EventHub,
    /// Ends streams, and everything that this API does in the background.
    pub stop: CancellationToken,
    pub started: Instant,
    pub(super) probes: Probes,
    pub(super) scraper: Scraper,
    pub(super) calls: Arc<Semaphore>,
    pub(super) local_calls: Arc<Semaphore>,
    pub(super) bodies: Arc<Semaphore>,
    pub(super) streams: Arc<Semaphore>,
}

impl Api {
    /// Starts what runs in the background (the pulse, the probes, the events); it ends with `stop`.
    pub fn start(ledger: SharedLedger, store: Store, engine: Arc<dyn EngineView>, stop: CancellationToken) -> Arc<Self> {
        let api = Arc::new(Self {
            probes: Probes::start(&ledger, &store, &engine, &stop),
            ledger,
            store,
            metrics: engine.meters().metrics().clone(),
            engine,
            pulse: Pulse::start(),
            events: EventHub::new(),
            stop,
            started: clock::now(),
            scraper: Scraper::default(),
            calls: Arc::new(Semaphore::new(MOST_CALLS)),
            local_calls: Arc::new(Semaphore::new(MOST_LOCAL_CALLS)),
            bodies: Arc::new(Semaphore::new(BODY_BYTES)),
            streams: Arc::new(Semaphore::new(MOST_STREAMS)),
        });
        super::events::start(&api);
        api
    }
}
