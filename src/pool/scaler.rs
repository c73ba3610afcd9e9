//! How many workers there shall be: a pure function of (state, measurements, now).
//!
//! Owns: the order of the rules, hysteresis, bounds, pins. Does not own: rates (`history`), what the load asks for (`demand`), what MongoDB
//! and the store take in (`congestion`); measuring, starting and stopping workers (`pool`); keeping and showing decisions (`engine`).
//!
//! The rule on one page, with how it does on eight loads: `docs/scaler.md`.

mod congestion;
mod decision;
mod demand;
mod history;

use std::cmp::Ordering;
use std::collections::VecDeque;
use std::time::Duration;

pub use decision::{Decision, Direction, Inputs, Limit, Measured, Reason, ScalerSettings};

use congestion::{Congestion, ErrorsSay, Verdict, whole};
use demand::{AIM, Demand, LOOSE, SNUG, TIGHT};
use history::History;

/// Looks in a row that must ask for more workers: a change may have begun in the middle of the first one, whose rate then says too little.
const LOOKS: u32 = 2;

/// A backlog counts from this many workers on that would have to work it off in its time.
const LATE: f64 = 0.25;
/// A size found in haste is looked at again in this time after it, in seconds, without waiting for more certainty.
const REFINE_FROM: f64 = 2.0;
const REFINE_TO: f64 = 7.0;

/// Workers are not let go before this many times the service time, but for the longest hold, in seconds.
const HOLD_JOBS: f64 = 4.0;
const LONGEST_HOLD: f64 = 300.0;

/// The size for a time, by an operator's order.
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
    history: History,
    congestion: Congestion,
    /// Looks in a row that asked for more.
    pressed: u32,
    /// Slow loads of the last looks, for letting workers go: when, how many workers they keep busy.
    loads: VecDeque<(f64, f64)>,
    changed: f64,
    /// Since when fewer have been enough for long enough.
    enough: Option<f64>,
    /// When the pool last grew by what a second or two said.
    grown: Option<f64>,
    /// What a dry run said last.
    said: u16,
}

/// A target, why, and what kept it from being another one.
#[derive(Debug, Clone, Copy)]
struct Choice {
    target: u16,
    reason: Reason,
    limited_by: Option<Limit>,
}

fn choice(target: u16, reason: Reason, limited_by: Option<Limit>) -> Choice {
    Choice { target, reason, limited_by }
}

impl Scaler {
    /// A scaler that has seen nothing and wants the base size.
    pub fn new(settings: ScalerSettings) -> Self {
        Self {
            target: settings.base,
            pin: None,
            history: History::default(),
            congestion: Congestion::default(),
            pressed: 0,
            loads: VecDeque::new(),
            changed: 0.0,
            enough: None,
            grown: None,
            said: settings.base,
            settings,
        }
    }

    /// Workers that there shall be by the last decision.
    pub fn target(&self) -> u16 {
        self.target
    }

    /// Holds the size at `target`, within the bounds, until `until` or [`Scaler::release`]; nothing if that is over at `at`. Takes effect with the
    /// next step; returns the size.
    pub fn pin(&mut self, at: Duration, target: u16, until: Option<Duration>) -> u16 {
        let target = self.within(target);
        if until.is_none_or(|until| until > at) {
            self.pin = Some(Pin { target, until });
        }
        target
    }

    /// The size that is pinned, and when that ends.
    pub fn pinned(&self) -> Option<(u16, Option<Duration>)> {
        self.pin.map(|pin| (pin.target, pin.until))
    }

    /// Ends a pin: the size is the scaler's again from the next step on.
    pub fn release(&mut self) {
        self.pin = None;
    }

    /// Decides. Meant to be called about once a second; a call now and then that comes late or early does no harm.
    pub fn step(&mut self, m: &Measured) -> Decision {
        if self.pin.is_some_and(|pin| pin.until.is_some_and(|until| m.at >= until)) {
            self.pin = None;
        }
        let is_news = self.history.push(m);
        let demand = Demand::of(&self.history, m.backlog, self.settings.drain_target);
        let is_dry = self.settings.dry_run && self.settings.enabled && self.pin.is_none();
        if is_dry {
            // What would be done is judged by what is there.
            self.target = m.workers.clamp(self.settings.min, self.settings.max);
        }
        if is_news {
            self.remember(&demand);
        }
        let known = is_dry.then(|| (self.congestion.clone(), self.grown));
        let chosen = self.choose(m, &demand, is_news);
        let direction = match chosen.target.cmp(&self.target) {
            Ordering::Greater => Direction::Up,
            Ordering::Less => Direction::Down,
            Ordering::Equal => Direction::Hold,
        };
        let acts = direction != Direction::Hold && !is_dry;
        let changed = acts || (is_dry && chosen.target != self.said);
        self.said = chosen.target;
        if let Some(known) = known.filter(|_| direction != Direction::Hold) {
            // Nothing follows from a change that is not made.
            (self.congestion, self.grown) = known;
        }
        if acts {
            self.target = chosen.target;
            self.changed = self.history.now();
            self.history.resized();
            self.pressed = 0;
            self.enough = None;
        }
        let inputs = self.inputs(m, &demand);
        Decision {
            at: m.at,
            target: chosen.target,
            actual: m.workers,
            changed,
            direction,
            reason: chosen.reason,
            limited_by: chosen.limited_by,
            inputs,
            dry_run: is_dry,
        }
    }

    /// The rules, the strongest first.
    fn choose(&mut self, m: &Measured, demand: &Demand, is_news: bool) -> Choice {
        if let Some(pin) = self.pin {
            self.congestion.interrupt();
            return choice(pin.target, Reason::Pinned, Some(Limit::Pin));
        }
        if !self.settings.enabled {
            return choice(self.settings.base, Reason::Disabled, Some(Limit::Disabled));
        }
        if !is_news {
            let reason = if self.history.length() > 0.0 { Reason::Steady } else { Reason::Start };
            return choice(self.target.max(self.floor()), reason, None);
        }
        if self.history.stalled_since().is_some() {
            self.congestion.interrupt();
            self.pressed = 0;
            return choice(self.target, Reason::Outage, Some(Limit::Outage));
        }
        self.congestion.review(&self.history, demand.wanted(), self.target);
        let errors = self.congestion.on_errors(&self.history, self.target, self.settings.min);
        if let Some(cap) = self.congestion.cap()
            && errors == ErrorsSay::Rising
        {
            self.pressed = 0;
            return choice(self.target.min(cap), Reason::Errors, Some(Limit::Congestion));
        }
        match self.congestion.judge(&self.history) {
            Verdict::NoGain(size) => return choice(self.within(size), Reason::NoGain, Some(Limit::Congestion)),
            Verdict::Restore(size) => return choice(self.within(size), Reason::Restore, None),
            Verdict::Open => return choice(self.target, Reason::Steady, Some(Limit::Settling)),
            Verdict::Fine => {}
        }
        let floor = self.floor();
        if self.target < floor {
            self.congestion.changed(&self.history, self.target, floor);
            return choice(floor, Reason::Bounds, Some(Limit::Base));
        }
        self.slower(m).or_else(|| self.more(m, demand)).unwrap_or_else(|| self.fewer(demand))
    }

    /// More workers, if the load asks for them.
    fn more(&mut self, m: &Measured, demand: &Demand) -> Option<Choice> {
        let size = f64::from(self.target);
        let since_growth = self.grown.map_or(f64::INFINITY, |at| self.history.now() - at);
        let reason = if demand.certain_load > TIGHT * size {
            Reason::Load
        } else if m.backlog > 0 && demand.probable_load + demand.waiting > size + LATE {
            Reason::Backlog
        } else if demand.rise > 0.0 && demand.probable_load + demand.rise > TIGHT * size {
            Reason::Forecast
        } else if (REFINE_FROM..REFINE_TO).contains(&since_growth) && demand.load > SNUG * size {
            Reason::Load
        } else {
            self.pressed = 0;
            return None;
        };
        self.pressed += 1;
        let (most, limit) = self.ceiling();
        if self.target >= most {
            return Some(choice(self.target, reason, Some(limit)));
        }
        if self.pressed < LOOKS || self.history.falters() {
            return Some(choice(self.target, reason, Some(Limit::Settling)));
        }
        let is_refined = since_growth < REFINE_TO;
        let wanted = if is_refined { demand.wanted() } else { demand.likely() };
        let wanted = whole(wanted.ceil()).max(self.target + 1);
        let target = wanted.min(most);
        self.congestion.changed(&self.history, self.target, target);
        if !is_refined {
            self.grown = Some(self.history.now());
        }
        Some(choice(target, reason, (wanted > most).then_some(limit)))
    }

    /// Fewer workers on trial, if these do less than when they were chosen and more are not to be had.
    fn slower(&mut self, m: &Measured) -> Option<Choice> {
        if m.backlog == 0 || self.target < self.ceiling().0 {
            return None;
        }
        let target = self.congestion.try_fewer(&self.history, self.target, self.settings.min)?;
        Some(choice(target, Reason::SlowService, Some(Limit::Congestion)))
    }

    /// Fewer workers, if they have been enough for long enough.
    fn fewer(&mut self, demand: &Demand) -> Choice {
        let floor = self.floor();
        // Each of them tells of some time before it as well.
        let hold = self.hold(demand);
        let from = self.history.now() - hold + demand.slow.min(hold);
        let most = self.loads.iter().filter(|(at, _)| *at >= from).map(|(_, load)| *load).fold(0.0, f64::max);
        let enough = whole((most / AIM).ceil()).max(floor);
        let has_excess = demand.slow_load + demand.rise <= LOOSE * f64::from(self.target) && self.target > floor;
        if !has_excess {
            let size = f64::from(self.target);
            let limit = if demand.wanted() > size {
                let (most, limit) = self.ceiling();
                Some(if self.target >= most { limit } else { Limit::DeadBand })
            } else if demand.wanted() >= size - 1.0 {
                None
            } else if self.target <= floor {
                Some(if floor == self.settings.min { Limit::Min } else { Limit::Base })
            } else {
                Some(Limit::DeadBand)
            };
            return choice(self.target, Reason::Steady, limit);
        }
        let is_long_enough = self.history.now() - self.changed >= hold && most <= LOOSE * f64::from(self.target);
        // While the load still falls the time is not up yet, within reason: one step down instead of three.
        let still_falls = enough > whole((demand.slow_load / AIM).ceil()).max(floor) + 1;
        if is_long_enough {
            self.enough.get_or_insert(self.history.now());
        } else {
            self.enough = None;
        }
        let waits = still_falls && self.enough.is_some_and(|since| self.history.now() - since < demand.slow);
        if !is_long_enough || waits || enough >= self.target {
            return choice(self.target, Reason::Steady, Some(Limit::HoldDown));
        }
        self.congestion.changed(&self.history, self.target, enough);
        choice(enough, Reason::Idle, (enough == floor).then_some(Limit::Base))
    }

    /// Seconds for which fewer workers must have been enough: no shorter than a few jobs take, or chance alone would look like it.
    fn hold(&self, demand: &Demand) -> f64 {
        self.settings.hold_down.as_secs_f64().max(HOLD_JOBS * demand.service).min(LONGEST_HOLD)
    }

    /// Least that the load may lead to.
    fn floor(&self) -> u16 {
        self.congestion.cap().map_or(self.settings.base, |cap| self.settings.base.min(cap)).max(self.settings.min)
    }

    /// Most, and what says so.
    fn ceiling(&self) -> (u16, Limit) {
        match self.congestion.cap() {
            Some(cap) if cap < self.settings.max => (cap.max(self.settings.min), Limit::Congestion),
            _ => (self.settings.max, Limit::Max),
        }
    }

    fn within(&self, size: u16) -> u16 {
        size.clamp(self.settings.min, self.settings.max)
    }

    fn remember(&mut self, demand: &Demand) {
        let now = self.history.now();
        let hold = self.hold(demand);
        while self.loads.front().is_some_and(|(at, _)| *at <= now - hold) || self.loads.len() >= 1_000 {
            self.loads.pop_front();
        }
        self.loads.push_back((now, demand.slow_load + demand.rise));
    }

    fn inputs(&self, m: &Measured, demand: &Demand) -> Inputs {
        let newest = self.history.over(3.0);
        Inputs {
            arrival_rate: demand.arrival_rate,
            forecast_rate: demand.forecast_rate,
            throughput: newest.throughput(),
            service_time: Duration::from_secs_f64(demand.service.clamp(0.0, 1e9)),
            utilisation: newest.utilisation(),
            backlog: m.backlog,
            drain_target: Duration::from_secs_f64(demand.drain.clamp(0.0, 1e9)),
            error_share: newest.error_share(),
            wanted: demand.wanted(),
            congestion_cap: self.congestion.cap(),
        }
    }
}

#[cfg(test)]
#[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)] // counts of a plant
mod tests;
