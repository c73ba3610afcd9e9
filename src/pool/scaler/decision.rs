//! What the scaler is told, and what it says.
//!
//! Owns: the settings, the measurements, a decision with its reason, its limit and its inputs, and how these read in JSON.
//! Does not own: how a decision is found (`super`).

use std::time::Duration;

use schemars::JsonSchema;
use serde::{Serialize, Serializer};

/// What the operator set.
#[derive(Debug, Clone, PartialEq)]
pub struct ScalerSettings {
    /// Never fewer workers (`WORKER_POOL_MIN`).
    pub min: u16,
    /// Never more (`WORKER_POOL_MAX`).
    pub max: u16,
    /// Size at start and when idle (`WORKER_POOL_SIZE`); fewer only under congestion or by a pin.
    pub base: u16,
    /// `WORKER_AUTOSCALE`: without it the pool has its base size, or the pinned one.
    pub enabled: bool,
    /// Decides and says, changes nothing. A pin is an order, not a decision, and is followed all the same.
    pub dry_run: bool,
    /// A backlog is to be gone after this time. Shorter: more workers for every burst; longer: jobs wait.
    pub drain_target: Duration,
    /// How long fewer workers must have been enough before any stop. Shorter: more changes; longer: more idle workers.
    pub hold_down: Duration,
}

impl ScalerSettings {
    /// Bounds as given, everything else as it is by default. Bounds that contradict each other are mended: at least one worker,
    /// `max` not under `min`, `base` between them.
    pub fn new(min: u16, max: u16, base: u16) -> Self {
        let min = min.max(1);
        let max = max.max(min);
        Self {
            min,
            max,
            base: base.clamp(min, max),
            enabled: true,
            dry_run: false,
            drain_target: Duration::from_secs(15),
            hold_down: Duration::from_secs(30),
        }
    }
}

/// What the pool measures; counts are cumulative since the engine's start. A count that went back is taken as unchanged.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Measured {
    /// Since the engine's start, by a clock that never goes back.
    pub at: Duration,
    /// Jobs that became ready for this engine (of a queue that several engines share: its share); one that is tried again, each time.
    pub arrived: u64,
    /// Jobs that this engine has finished; attempts that failed or were given back are no part of it.
    pub completed: u64,
    /// Worker time of the attempts that have ended, however they ended.
    pub busy: Duration,
    /// Ages of the jobs that run now, since their start on a worker.
    pub running: Vec<Duration>,
    /// Ready jobs that nobody runs: this engine's share.
    pub backlog: u64,
    /// Workers that run now, idle ones too.
    pub workers: u16,
    /// Attempts that failed, were given back, or wait for an outage to end.
    pub errors: u64,
}

/// What the scaler wants, once a step.
#[derive(Debug, Clone, PartialEq, Serialize, JsonSchema)]
pub struct Decision {
    /// Since the engine's start.
    #[serde(rename = "at_ms", serialize_with = "millis")]
    #[schemars(with = "u64")]
    pub at: Duration,
    /// Workers that there shall be; in a dry run, those that there would be.
    pub target: u16,
    /// Workers that there were at the measurement.
    pub actual: u16,
    /// The target is not the one of the step before: the pool has something to do, or in a dry run would have.
    pub changed: bool,
    pub direction: Direction,
    pub reason: Reason,
    /// What kept the target from being `inputs.wanted`.
    pub limited_by: Option<Limit>,
    pub inputs: Inputs,
    /// Said, not done.
    pub dry_run: bool,
}

/// Where the target moves.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Direction {
    Up,
    Down,
    Hold,
}

impl Direction {
    /// As in JSON and in metrics.
    pub fn name(self) -> &'static str {
        match self {
            Self::Up => "up",
            Self::Down => "down",
            Self::Hold => "hold",
        }
    }
}

/// Why the target is what it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Reason {
    /// Nothing is known yet: the base size.
    Start,
    /// The workers fit the load.
    Steady,
    /// More work arrives than these workers can do.
    Load,
    /// The backlog would take longer than the drain target.
    Backlog,
    /// Arrivals have been rising evenly: the load of the near future does not fit.
    Forecast,
    /// Fewer workers have been enough for a while.
    Idle,
    /// Attempts fail more often than before.
    Errors,
    /// Nothing is finished although jobs run: more workers would only wait as well.
    Outage,
    /// The last increase brought next to nothing.
    NoGain,
    /// Jobs take longer than before the pool grew: fewer workers may do as much.
    SlowService,
    /// Fewer workers did less: their number is restored.
    Restore,
    /// An operator's order.
    Pinned,
    /// Scaling is switched off.
    Disabled,
    /// The target was outside of the bounds or under the base size.
    Bounds,
}

impl Reason {
    /// As in JSON and in metrics.
    pub fn name(self) -> &'static str {
        match self {
            Self::Start => "start",
            Self::Steady => "steady",
            Self::Load => "load",
            Self::Backlog => "backlog",
            Self::Forecast => "forecast",
            Self::Idle => "idle",
            Self::Errors => "errors",
            Self::Outage => "outage",
            Self::NoGain => "no_gain",
            Self::SlowService => "slow_service",
            Self::Restore => "restore",
            Self::Pinned => "pinned",
            Self::Disabled => "disabled",
            Self::Bounds => "bounds",
        }
    }
}

/// What a target was limited by.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Limit {
    /// `WORKER_POOL_MIN`
    Min,
    /// `WORKER_POOL_MAX`
    Max,
    /// `WORKER_POOL_SIZE`, under which nothing but congestion and a pin leads.
    Base,
    /// What MongoDB and the store took in, as last tried.
    Congestion,
    /// Nothing completes.
    Outage,
    /// The difference is too small to act on.
    DeadBand,
    /// Fewer would do, not yet for long enough.
    HoldDown,
    /// The last change is not measured yet.
    Settling,
    Pin,
    Disabled,
}

/// The figures of a decision.
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize, JsonSchema)]
pub struct Inputs {
    /// Jobs a second that become ready.
    pub arrival_rate: f64,
    /// Jobs a second soon, if arrivals rise evenly; never under `arrival_rate`.
    pub forecast_rate: f64,
    /// Jobs a second finished.
    pub throughput: f64,
    /// Worker time of a job.
    #[serde(rename = "service_time_ms", serialize_with = "millis")]
    #[schemars(with = "u64")]
    pub service_time: Duration,
    /// Busy share of the workers, 0 to 1.
    pub utilisation: f64,
    pub backlog: u64,
    /// Time in which the backlog is to be gone.
    #[serde(rename = "drain_target_ms", serialize_with = "millis")]
    #[schemars(with = "u64")]
    pub drain_target: Duration,
    /// Failed share of the attempts that ended, 0 to 1.
    pub error_share: f64,
    /// Workers that load, backlog and forecast ask for, before any limit.
    pub wanted: f64,
    /// Most workers while congestion lasts.
    pub congestion_cap: Option<u16>,
}

#[allow(clippy::cast_possible_truncation)] // 2^64 ms
fn millis<S: Serializer>(time: &Duration, out: S) -> Result<S::Ok, S::Error> {
    out.serialize_u64(time.as_millis() as u64)
}
