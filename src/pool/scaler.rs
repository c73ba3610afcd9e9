//! How many workers there shall be: a pure function of (state, measurements, now).
//!
//! Owns: the rule. Does not own: measuring and starting or stopping workers (`pool`), keeping and showing decisions (`engine`).

mod decision;

use std::time::Duration;

pub use decision::{Decision, Direction, Inputs, Limit, Measured, Reason, ScalerSettings};

/// The target for a time, by an operator's order.
#[derive(Debug, Clone, Copy, PartialEq)]
struct Pin {
    target: u16,
    until: Option<Duration>,
}

/// The scaler. The same calls give the same decisions.
#[derive(Debug, Clone)]
pub struct Scaler {
    settings: ScalerSettings,
    target: u16,
    pin: Option<Pin>,
    last: Option<Measured>,
    enough_since: Option<Duration>,
    service_time: Option<Duration>,
}

impl Scaler {
    /// A scaler that has seen nothing.
    pub fn new(settings: ScalerSettings) -> Self {
        Self { target: settings.base, settings, pin: None, last: None, enough_since: None, service_time: None }
    }

    /// Workers that there shall be by the last decision.
    pub fn target(&self) -> u16 {
        self.target
    }

    /// Holds the size at `target`, within the bounds, until `until` or [`Scaler::release`]; takes effect with the next step. Returns the size.
    pub fn pin(&mut self, _at: Duration, target: u16, until: Option<Duration>) -> u16 {
        let target = target.clamp(self.settings.min, self.settings.max);
        self.pin = Some(Pin { target, until });
        target
    }

    /// The size pinned and when that ends.
    pub fn pinned(&self) -> Option<(u16, Option<Duration>)> {
        self.pin.map(|pin| (pin.target, pin.until))
    }

    /// Ends a pin.
    pub fn release(&mut self) {
        self.pin = None;
    }

    /// Decides. Meant to be called about once a second; any other rhythm works.
    pub fn step(&mut self, m: &Measured) -> Decision {
        if self.pin.is_some_and(|pin| pin.until.is_some_and(|until| m.at >= until)) {
            self.pin = None;
        }
        let last = self.last.replace(m.clone());
        let mut inputs = Inputs { backlog: m.backlog, drain_target: self.settings.drain_target, ..Inputs::default() };
        if let Some(last) = last {
            let dt = m.at.saturating_sub(last.at).as_secs_f64().max(0.001);
            let done = m.completed.saturating_sub(last.completed);
            inputs.arrival_rate = real(m.arrived.saturating_sub(last.arrived)) / dt;
            inputs.throughput = real(done) / dt;
            if done > 0 {
                self.service_time = Some(m.busy.saturating_sub(last.busy).div_f64(real(done)));
            }
            let service = self.service_time.unwrap_or_default();
            inputs.service_time = service;
            let load = inputs.arrival_rate * service.as_secs_f64();
            inputs.wanted = (load / 0.8).max(load + real(m.backlog) * service.as_secs_f64() / self.settings.drain_target.as_secs_f64());
        }
        let (target, reason, limited_by) = self.choose(m, &inputs);
        let dry_run = self.settings.dry_run && self.pin.is_none();
        let direction = match target.cmp(&self.target) {
            std::cmp::Ordering::Greater => Direction::Up,
            std::cmp::Ordering::Less => Direction::Down,
            std::cmp::Ordering::Equal => Direction::Hold,
        };
        let changed = !dry_run && target != self.target;
        if !dry_run {
            self.target = target;
        }
        Decision { at: m.at, target, actual: m.workers, changed, direction, reason, limited_by, inputs, dry_run }
    }

    #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)] // clamped to the bounds
    fn choose(&mut self, m: &Measured, inputs: &Inputs) -> (u16, Reason, Option<Limit>) {
        let s = &self.settings;
        if let Some(pin) = self.pin {
            return (pin.target, Reason::Pinned, Some(Limit::Pin));
        }
        if !s.enabled {
            return (s.base, Reason::Disabled, Some(Limit::Disabled));
        }
        let wanted = inputs.wanted.ceil().clamp(f64::from(s.base), f64::from(s.max)) as u16;
        if wanted > self.target {
            self.enough_since = None;
            return (wanted, Reason::Load, (inputs.wanted > f64::from(s.max)).then_some(Limit::Max));
        }
        if wanted + 1 < self.target || wanted == s.base && self.target > s.base {
            let since = *self.enough_since.get_or_insert(m.at);
            if m.at.saturating_sub(since) >= s.hold_down {
                self.enough_since = None;
                return (wanted, Reason::Idle, None);
            }
            return (self.target, Reason::Steady, Some(Limit::HoldDown));
        }
        self.enough_since = None;
        (self.target, Reason::Steady, None)
    }
}

/// A count as a floating point number.
#[allow(clippy::cast_precision_loss)] // far below 2^52
fn real(n: u64) -> f64 {
    n as f64
}
