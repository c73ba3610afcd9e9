//! Owns: the rules that are compared. Does not own the load, or how well they do.

use std::collections::VecDeque;
use std::time::Duration;

use argon::pool::scaler::{Decision, Measured, Scaler, ScalerSettings};

use super::sim::Policy;

/// Bounds that all policies share.
#[derive(Debug, Clone, Copy)]
pub(super) struct Bounds {
    pub min: u16,
    pub base: u16,
    pub max: u16,
}

/// Which rule.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Rule {
    Argon,
    Fixed(u16),
    /// The queue is long: more; it is short: fewer.
    Threshold,
    /// The rule of a Kubernetes HorizontalPodAutoscaler on utilisation, with its default behaviour.
    Hpa,
}

/// In the order of the table.
pub(super) const RULES: [Rule; 5] = [Rule::Argon, Rule::Fixed(5), Rule::Fixed(20), Rule::Threshold, Rule::Hpa];

impl Rule {
    pub(super) fn name(self) -> String {
        match self {
            Rule::Argon => "argon".to_owned(),
            Rule::Fixed(n) => format!("fixed {n}"),
            Rule::Threshold => "depth > 1000".to_owned(),
            Rule::Hpa => "like HPA".to_owned(),
        }
    }

    /// Ready to run.
    pub(super) fn policy(self, bounds: Bounds) -> Box<dyn Policy> {
        match self {
            Rule::Argon => Box::new(Argon::new(bounds)),
            Rule::Fixed(n) => Box::new(Fixed(n)),
            Rule::Threshold => Box::new(Threshold { bounds, target: bounds.base, last: Duration::ZERO }),
            Rule::Hpa => Box::new(Hpa::new(bounds)),
        }
    }

    /// Workers that it starts with.
    pub(super) fn first(self, bounds: Bounds) -> u16 {
        match self {
            Rule::Fixed(n) => n,
            _ => bounds.base,
        }
    }
}

/// The engine's own scaler.
pub(super) struct Argon {
    scaler: Scaler,
    pub decisions: Vec<Decision>,
}

impl Argon {
    pub(super) fn new(bounds: Bounds) -> Self {
        Self { scaler: Scaler::new(ScalerSettings::new(bounds.min, bounds.max, bounds.base)), decisions: Vec::new() }
    }
}

impl Policy for Argon {
    fn look(&mut self, seen: &Measured) -> u16 {
        let decision = self.scaler.step(seen);
        let target = decision.target;
        self.decisions.push(decision);
        target
    }
}

struct Fixed(u16);

impl Policy for Fixed {
    fn look(&mut self, _: &Measured) -> u16 {
        self.0
    }
}

/// Looked at every 15 s: two more workers over 1,000 jobs, one fewer under 100.
struct Threshold {
    bounds: Bounds,
    target: u16,
    last: Duration,
}

/// Between two looks of the rules that are compared.
const SYNC: Duration = Duration::from_secs(15);

impl Policy for Threshold {
    fn look(&mut self, seen: &Measured) -> u16 {
        if seen.at >= self.last + SYNC {
            self.last = seen.at;
            if seen.backlog > 1_000 {
                self.target = (self.target + 2).min(self.bounds.max);
            } else if seen.backlog < 100 {
                self.target = (self.target - 1).max(self.bounds.base);
            }
        }
        self.target
    }
}

/// `desired = ceil(current * utilisation / target)` every 15 s, on the average of the last 15 s; nothing within 10 % of the target; at
/// most twice as many or 4 more at once; down to the highest that was desired within the last 5 minutes.
struct Hpa {
    bounds: Bounds,
    target: u16,
    last: Duration,
    last_work: Duration,
    offered: f64,
    before: Duration,
    desired: VecDeque<(Duration, u16)>,
}

impl Hpa {
    const UTILISATION: f64 = 0.7;
    const TOLERANCE: f64 = 0.1;
    const WINDOW: Duration = Duration::from_secs(300);

    fn new(bounds: Bounds) -> Self {
        Self {
            bounds,
            target: bounds.base,
            last: Duration::ZERO,
            last_work: Duration::ZERO,
            offered: 0.0,
            before: Duration::ZERO,
            desired: VecDeque::new(),
        }
    }
}

impl Policy for Hpa {
    #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)] // limited to the bounds
    fn look(&mut self, seen: &Measured) -> u16 {
        self.offered += f64::from(seen.workers) * seen.at.saturating_sub(self.before).as_secs_f64();
        self.before = seen.at;
        if seen.at < self.last + SYNC {
            return self.target;
        }
        let work = seen.busy + seen.running.iter().sum::<Duration>();
        let utilisation = (work.saturating_sub(self.last_work).as_secs_f64() / self.offered).min(1.0);
        (self.last, self.last_work, self.offered) = (seen.at, work, 0.0);
        let ratio = utilisation / Self::UTILISATION;
        let desired = if (ratio - 1.0).abs() <= Self::TOLERANCE { self.target } else { (f64::from(self.target) * ratio).ceil() as u16 };
        let desired = desired.min((self.target * 2).max(self.target + 4)).clamp(self.bounds.base, self.bounds.max);
        self.desired.push_back((seen.at, desired));
        self.desired.retain(|(at, _)| *at + Self::WINDOW > seen.at);
        let highest = self.desired.iter().map(|(_, n)| *n).max().unwrap_or(desired);
        self.target = if desired > self.target { desired } else { highest.min(self.target) };
        self.target
    }
}
