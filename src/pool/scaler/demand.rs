//! How many workers the load asks for: Little's law, the backlog within its time, and a forecast that may raise but never lower.
//!
//! Owns: arithmetic on rates, with how far chance alone may move them. Does not own: bounds, hysteresis, congestion (`super`).

use std::time::Duration;

use super::history::{History, real};

/// Share of the workers that is to be busy: what is left absorbs chance, and drains what has piled up meanwhile.
pub(super) const AIM: f64 = 0.85;
/// More than this share busy by the load alone asks for more workers.
pub(super) const TIGHT: f64 = 0.95;
/// The same right after growth: a size found in haste is better mended now than stumbled over later.
pub(super) const SNUG: f64 = 0.89;
/// Less than this share busy, for a while, lets workers go.
pub(super) const LOOSE: f64 = 0.6;

/// Standard deviations that are taken for a change and not for chance.
const CERTAIN: f64 = 3.0;
/// The same where a backlog or a trend says so too.
const PROBABLE: f64 = 1.5;
/// Over this time, in seconds, the slow figure is taken, by which workers are let go; over twice the service time where jobs are long.
const SLOW: f64 = 10.0;
const SLOWEST: f64 = 60.0;

/// The trend is taken over four parts of this length. It holds if each is above the one before, by amounts that differ by no more than this
/// factor.
const PART: f64 = 8.0;
const EVEN: f64 = 4.0;
/// The forecast looks this far ahead.
const HORIZON: f64 = 10.0;
/// And is never more than this times the present.
const BOLDEST: f64 = 1.5;

/// A backlog of long jobs cannot be gone faster than a few of them one after the other.
const JOBS_IN_A_ROW: f64 = 3.0;

/// What the load asks for.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub(super) struct Demand {
    pub arrival_rate: f64,
    pub forecast_rate: f64,
    pub service: f64,
    /// Time in which the backlog is to be gone.
    pub drain: f64,
    /// Workers that are busy with what arrives.
    pub load: f64,
    /// The same, each time the more certain not to be chance.
    pub likely_load: f64,
    pub probable_load: f64,
    pub certain_load: f64,
    /// Workers that the backlog keeps busy, if it is to be gone in its time.
    pub waiting: f64,
    /// Workers that the forecast adds to the load.
    pub rise: f64,
    /// The load over a longer time, with the backlog, and that time.
    pub slow_load: f64,
    pub slow: f64,
}

impl Demand {
    /// What it is by the history.
    pub(super) fn of(history: &History, backlog: u64, drain_target: Duration) -> Self {
        let arrivals = history.arrivals();
        let rise = rise(history).min((BOLDEST - 1.0) * arrivals.value);
        let forecast_rate = arrivals.value + rise;
        let drain = drain_target.as_secs_f64();
        let Some(service) = history.service() else {
            return Self { arrival_rate: arrivals.value, forecast_rate, drain, ..Self::default() };
        };
        let s = service.value;
        let drain = drain.max(JOBS_IN_A_ROW * s).max(0.001);
        let waiting = real(backlog) * s / drain;
        let slow = (2.0 * s).clamp(SLOW, SLOWEST);
        let chance = (1.0 / arrivals.jobs.max(1.0) + 1.0 / service.jobs.max(1.0)).sqrt();
        let load = arrivals.value * s;
        let at_least = |deviations: f64| load * (1.0 - deviations * chance).max(0.0);
        Self {
            arrival_rate: arrivals.value,
            forecast_rate,
            service: s,
            drain,
            load,
            likely_load: at_least(1.0),
            probable_load: at_least(PROBABLE),
            certain_load: at_least(CERTAIN),
            waiting,
            rise: rise * s,
            slow_load: history.over(slow).arrival_rate() * s + waiting,
            slow,
        }
    }

    /// Workers that all of it asks for, before any limit.
    pub(super) fn wanted(&self) -> f64 {
        self.workers_for(self.load)
    }

    /// The same with a load of which as much is taken as is likely: what is missing shows soon, what is too much stays long.
    pub(super) fn likely(&self) -> f64 {
        self.workers_for(self.likely_load)
    }

    fn workers_for(&self, load: f64) -> f64 {
        ((load + self.rise) / AIM).max(load + self.waiting)
    }
}

/// By how much the arrival rate is higher at the horizon, if it has been rising evenly; 0 else. A step is no trend: it rises once.
fn rise(history: &History) -> f64 {
    let now = history.now();
    if history.length() < 4.0 * PART {
        return 0.0;
    }
    let mut rates = [0.0; 4];
    let mut to = now;
    for rate in rates.iter_mut().rev() {
        *rate = history.part(to - PART, to).arrival_rate();
        to -= PART;
    }
    let steps = [rates[1] - rates[0], rates[2] - rates[1], rates[3] - rates[2]];
    let least = steps.into_iter().fold(f64::INFINITY, f64::min);
    let most = steps.into_iter().fold(0.0, f64::max);
    // Chance moves the rate of one part by this much.
    let chance = (rates[3].max(0.0) / PART).sqrt();
    let is_trend = least > 0.0 && most <= EVEN * least && rates[3] - rates[0] >= CERTAIN * chance;
    if is_trend { least / PART * HORIZON } else { 0.0 }
}
