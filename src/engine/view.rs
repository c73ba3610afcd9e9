//! What others may see of the running engine, and the little they may do to it: read at any time, from any thread, without stopping anything.
//!
//! Owns: the handle, the scaler with its decisions, and pins. Does not own: how it is shown (`http`, `cli`), or resizing (`pool`).
//!
//! A handle outlives the engine behind it: when a lease is lost the process goes on as a new engine, with the same pin and the same list of decisions.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use tokio::sync::Notify;

use crate::config::{Autoscale, EngineSettings};
use crate::fault::{Fault, Result};
use crate::ledger::{Capture, EngineId, EngineStatus, PinRow, PoolRow, ScaleWish};
use crate::pool::scaler::{Decision, Measured, Scaler, ScalerSettings};
use crate::pool::{MemoryBudget, Pool, Sick};
use crate::runtime::calm::Calm;
use crate::runtime::clock;
use crate::runtime::cpu::CpuPool;
use crate::runtime::pulse::Pulse;
use crate::runtime::shutdown::Shutdown;
use crate::telemetry::meters::Meters;
use crate::telemetry::metrics::SCALER_DECISIONS;

/// Decisions kept: stretches in which the same was decided for the same reason count as one.
const DECISIONS: usize = 256;

/// A view of the engine of this process; cheap to clone.
#[derive(Debug, Clone)]
pub struct EngineHandle(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    started: Instant,
    started_ms: i64,
    scaling: Mutex<Scaling>,
    bounds: ScalerSettings,
    lease: Duration,
    decisions: Mutex<VecDeque<Decision>>,
    pulse: Mutex<Option<Arc<Pulse>>>,
    life: Mutex<Option<Arc<Life>>>,
    stop: Shutdown,
    queue_limit: u64,
    meters: Meters,
}

#[derive(Debug)]
struct Scaling {
    scaler: Scaler,
    /// The wish for all engines that was last obeyed, by its time.
    wish: Option<i64>,
    /// The pin is that wish's.
    by_wish: bool,
}

/// Rows of captures, and when they were asked for.
pub type CaptureRows = (Instant, Arc<Vec<Capture>>);

/// One engine, from its first heartbeat to its end.
#[derive(Debug)]
pub(crate) struct Life {
    pub engine: EngineId,
    pub pool: Pool,
    pub captures: AtomicU32,
    /// The rows of all captures as they were last looked at, and when.
    pub capture_rows: Mutex<Option<CaptureRows>>,
    pub leads: AtomicBool,
    pub sick: Sick,
    /// When the last heartbeat that came through was sent.
    pub beat: Mutex<Option<Instant>>,
    /// Rung when there may be new jobs.
    pub work: Arc<Notify>,
    pub calm: Calm,
    pub stop: Shutdown,
    pub memory: MemoryBudget,
    pub cpu: CpuPool,
    pub meters: Meters,
}

/// How full the parts of an engine are that are bounded by configuration.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Pressure {
    /// Bytes of jobs in work, and what they may take.
    pub memory_used: u64,
    pub memory_limit: u64,
    /// Jobs that are claimed and wait for a worker, and how many may.
    pub claimed: u64,
    pub claimed_limit: u64,
    /// Units that wait for a CPU thread or run on one, and how many may.
    pub cpu: u64,
    pub cpu_limit: u64,
    /// Unprocessed payload at which captures wait.
    pub queue_limit: u64,
    /// It leads the maintenance of the metadata.
    pub leads: bool,
}

/// What a health check can know without asking anybody.
#[derive(Debug, Clone, PartialEq)]
pub struct EngineFacts {
    /// `None` while none runs: it has not begun, or has ended.
    pub engine: Option<EngineId>,
    pub draining: bool,
    /// It leads the maintenance of the metadata.
    pub leads: bool,
    /// Since the last heartbeat that came through.
    pub heartbeat_age: Option<Duration>,
    /// Sync workers that exist, and that there shall be.
    pub workers: u16,
    pub target_workers: u16,
    /// Captures that run here.
    pub captures: u32,
    /// Why this process is about to end: a part of it cannot be mended.
    pub sick: Option<String>,
    pub runtime_lag: Duration,
}

impl EngineHandle {
    /// A handle to engines that are still to start with these settings. `stop` is the stop of the process.
    pub fn new(settings: &EngineSettings, stop: Shutdown) -> Self {
        let bounds = ScalerSettings {
            enabled: settings.autoscale != Autoscale::Off,
            dry_run: settings.autoscale == Autoscale::DryRun,
            ..ScalerSettings::new(settings.pool_min, settings.pool_max, settings.pool_size)
        };
        Self(Arc::new(Inner {
            started: clock::now(),
            started_ms: clock::wall_ms(),
            scaling: Mutex::new(Scaling { scaler: Scaler::new(bounds.clone()), wish: None, by_wish: false }),
            bounds,
            lease: settings.lease,
            decisions: Mutex::default(),
            pulse: Mutex::default(),
            life: Mutex::default(),
            stop,
            queue_limit: settings.queue_max_bytes,
            meters: Meters::default(),
        }))
    }

    /// The rows of all captures as the engine has last looked at them.
    pub fn capture_rows(&self) -> Option<CaptureRows> {
        self.life()?.capture_rows.lock().clone()
    }

    /// The engine as it is now: what its next heartbeat tells the others.
    pub fn status(&self) -> EngineStatus {
        let life = self.life();
        let pool = life.as_ref().map(|life| &life.pool);
        EngineStatus {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            started_ms: self.0.started_ms,
            draining: life.as_ref().map_or(self.is_draining(), |life| life.stop.is_draining()),
            pool: self.pool_row(),
            workers: pool.map(Pool::rows).unwrap_or_default(),
            slots: pool.map(Pool::slots).unwrap_or_default(),
            attempts: pool.map(Pool::attempts).unwrap_or_default(),
            sync_attempts: pool.map(Pool::sync_attempts).unwrap_or_default(),
            captures: life.as_ref().map_or(0, |life| life.captures.load(Ordering::Relaxed)),
            avg_wait_ms: pool.map_or(Duration::ZERO, Pool::average_wait).as_secs_f64() * 1_000.0,
            runtime_lag_ms: self.runtime_lag().as_secs_f64() * 1_000.0,
            lease_ms: i64::try_from(self.0.lease.as_millis()).unwrap_or(i64::MAX),
        }
    }

    /// What this process counts.
    pub fn meters(&self) -> &Meters {
        &self.0.meters
    }

    /// How full its bounded parts are.
    pub fn pressure(&self) -> Pressure {
        let queue_limit = self.0.queue_limit;
        let Some(life) = self.life() else { return Pressure { queue_limit, ..Pressure::default() } };
        let ((claimed, claimed_limit), (cpu, cpu_limit)) = (life.pool.claimed(), life.cpu.load());
        Pressure {
            memory_used: life.memory.used(),
            memory_limit: life.memory.limit(),
            claimed,
            claimed_limit,
            cpu: cpu as u64,
            cpu_limit: cpu_limit as u64,
            queue_limit,
            leads: life.leads.load(Ordering::Relaxed),
        }
    }

    /// What the scaler has decided, oldest first.
    pub fn decisions(&self) -> Vec<Decision> {
        self.0.decisions.lock().iter().cloned().collect()
    }

    /// Pins the number of sync workers, for `hold` or until it is released. Outside of the bounds it is `Rejected`, and nothing changes.
    pub fn scale(&self, target: u16, hold: Option<Duration>) -> Result<PoolRow> {
        let (min, max) = (self.0.bounds.min, self.0.bounds.max);
        if !(min..=max).contains(&target) {
            return Err(Fault::rejected(format!("{target} workers: allowed are {min} to {max} (WORKER_POOL_MIN, WORKER_POOL_MAX)")));
        }
        self.pin(target, hold, false);
        Ok(self.pool_row())
    }

    /// Ends a pin, whoever has set it; the size follows the load again.
    pub fn release_pin(&self) -> PoolRow {
        let mut scaling = self.0.scaling.lock();
        scaling.scaler.release();
        scaling.by_wish = false;
        drop(scaling);
        tracing::info!("the number of workers is no longer pinned");
        self.pool_row()
    }

    /// How late the timers of this process are.
    pub fn runtime_lag(&self) -> Duration {
        self.0.pulse.lock().as_ref().map_or(Duration::ZERO, |pulse| pulse.lag())
    }

    /// The worst of that in the last half minute.
    pub fn worst_runtime_lag(&self) -> Duration {
        self.0.pulse.lock().as_ref().map_or(Duration::ZERO, |pulse| pulse.worst())
    }

    /// What a health check needs.
    pub fn facts(&self) -> EngineFacts {
        let life = self.life();
        let life = life.as_deref();
        EngineFacts {
            engine: life.map(|life| life.engine.clone()),
            draining: self.is_draining(),
            leads: life.is_some_and(|life| life.leads.load(Ordering::Relaxed)),
            heartbeat_age: life.and_then(|life| life.beat.lock().map(|at| at.elapsed())),
            workers: life.map_or(0, |life| life.pool.current()),
            target_workers: life.map_or(0, |life| life.pool.target()),
            captures: life.map_or(0, |life| life.captures.load(Ordering::Relaxed)),
            sick: life.and_then(|life| life.sick.why()),
            runtime_lag: self.runtime_lag(),
        }
    }

    /// The process has been told to stop.
    pub fn is_draining(&self) -> bool {
        self.0.stop.is_draining()
    }

    /// Tells the claimer that this process has put jobs into the queue, so that they need not wait for its next look.
    pub fn wake(&self) {
        if let Some(life) = self.life() {
            life.work.notify_one();
        }
    }

    pub(super) fn attach(&self, life: Arc<Life>) {
        self.0.pulse.lock().get_or_insert_with(Pulse::start);
        life.pool.set_target(self.0.scaling.lock().scaler.target());
        *self.0.life.lock() = Some(life);
    }

    pub(super) fn detach(&self) {
        *self.0.life.lock() = None;
    }

    /// Since the handle was made: the time of the scaler.
    pub(super) fn uptime(&self) -> Duration {
        self.0.started.elapsed()
    }

    /// One step of the scaler; the pool is resized and the decision kept.
    pub(super) fn decide(&self, measured: &Measured) {
        let decision = self.0.scaling.lock().scaler.step(measured);
        if let Some(life) = self.life() {
            life.pool.set_target(if decision.dry_run { self.0.bounds.base } else { decision.target });
        }
        self.0.meters.metrics().count(&SCALER_DECISIONS, &[decision.direction.name(), decision.reason.name()]);
        if decision.changed {
            tracing::info!(
                target_workers = decision.target,
                workers = decision.actual,
                reason = ?decision.reason,
                limited_by = ?decision.limited_by,
                backlog = decision.inputs.backlog,
                arrivals_s = decision.inputs.arrival_rate,
                job_ms = decision.inputs.service_time.as_secs_f64() * 1_000.0,
                dry_run = decision.dry_run,
                "{}",
                if decision.dry_run { "the number of workers would change" } else { "the number of workers changes" }
            );
        }
        keep(&mut self.0.decisions.lock(), decision);
    }

    /// Obeys a wish for all engines, once: whoever is asked here later knows better, until there is a new wish.
    pub(super) fn obey(&self, wish: Option<&ScaleWish>) {
        let (was, by_wish) = {
            let scaling = self.0.scaling.lock();
            (scaling.wish, scaling.by_wish)
        };
        match wish {
            Some(wish) if was != Some(wish.at_ms) => {
                let target = wish.target.clamp(self.0.bounds.min, self.0.bounds.max);
                tracing::info!(target_workers = target, by = %wish.by, "the number of workers is set for all engines");
                self.pin(target, wish.left, true);
                self.0.scaling.lock().wish = Some(wish.at_ms);
            }
            Some(_) => {}
            None => {
                if by_wish {
                    self.release_pin();
                }
                self.0.scaling.lock().wish = None;
            }
        }
    }

    fn pin(&self, target: u16, hold: Option<Duration>, by_wish: bool) {
        let at = self.uptime();
        {
            let mut scaling = self.0.scaling.lock();
            scaling.scaler.pin(at, target, hold.map(|hold| at + hold));
            scaling.by_wish = by_wish;
        }
        // At once, and as a decision with the next step.
        if let Some(life) = self.life() {
            life.pool.set_target(target);
        }
    }

    fn pool_row(&self) -> PoolRow {
        let life = self.life();
        let pin = self.0.scaling.lock().scaler.pinned();
        let wall = |until: Duration| self.0.started_ms.saturating_add(i64::try_from(until.as_millis()).unwrap_or(i64::MAX));
        PoolRow {
            target: life.as_ref().map_or(0, |life| life.pool.target()),
            current: life.as_ref().map_or(0, |life| life.pool.current()),
            min: self.0.bounds.min,
            max: self.0.bounds.max,
            pin: pin.map(|(target, until)| PinRow { target, until_ms: until.map(wall) }),
        }
    }

    fn life(&self) -> Option<Arc<Life>> {
        self.0.life.lock().clone()
    }
}

/// The newest of a stretch in which nothing changes stands for it.
fn keep(decisions: &mut VecDeque<Decision>, new: Decision) {
    let same = |old: &Decision| {
        !old.changed && !new.changed && (old.target, old.reason, old.limited_by) == (new.target, new.reason, new.limited_by)
    };
    if decisions.back().is_some_and(same) {
        decisions.pop_back();
    }
    decisions.push_back(new);
    while decisions.len() > DECISIONS {
        // A change is kept for longer than what was said in between.
        let first = decisions.iter().take(DECISIONS).position(|old| !old.changed).unwrap_or(0);
        decisions.remove(first);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pool::scaler::{Direction, Inputs, Reason};

    fn decision(at_s: u64, target: u16, changed: bool) -> Decision {
        Decision {
            at: Duration::from_secs(at_s),
            target,
            actual: target,
            changed,
            direction: Direction::Hold,
            reason: Reason::Steady,
            limited_by: None,
            inputs: Inputs::default(),
            dry_run: false,
        }
    }

    #[test]
    fn changes_are_kept_and_stretches_without_one_are_one_entry() {
        let mut kept = VecDeque::new();
        for at in 0..10 {
            keep(&mut kept, decision(at, 5, false));
        }
        keep(&mut kept, decision(10, 6, true));
        keep(&mut kept, decision(11, 7, true));
        keep(&mut kept, decision(12, 7, false));
        assert_eq!(kept.iter().map(|d| d.at.as_secs()).collect::<Vec<_>>(), [9, 10, 11, 12]);
        for at in 0..1_000 {
            keep(&mut kept, decision(at, 1, true));
        }
        assert_eq!(kept.len(), DECISIONS);
    }
}
