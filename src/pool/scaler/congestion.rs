//! What MongoDB and the store take in: a cap above which workers bring nothing.
//!
//! Owns: judging whether the last change of the size did what it should, and the cap that follows.
//! Does not own: how many workers the load asks for (`demand`).
//!
//! Three signs of congestion, each judged only while all workers are busy, since idle ones prove nothing:
//! - *no gain*: an increase brought less than a tenth more throughput (less than half of the share by which the size grew, where that is
//!   smaller). Then the size between is tried, until one is found that does bring its share; that is the cap.
//! - *slow service*: jobs take half as long again as before the pool grew to its size, or as when that was last tried, and growing is no way out.
//!   Then a quarter fewer are tried, and kept if they get as much done, but for a tenth.
//! - *errors*: attempts fail more often than they used to. Then a quarter fewer, down to half.
//!
//! SUBTLE: throughput of n jobs is known to about 1/sqrt(n). A judgement waits until the difference that it looks for is larger than that.

use super::history::{History, Span};

/// An increase must bring this share.
const GAIN: f64 = 0.1;
/// A larger size than this times the one before is judged; smaller steps add up until they are.
const JUDGED: f64 = 1.3;
/// But not over more seconds than these: jobs and backend may have changed since.
const SMALL_STEPS: f64 = 120.0;
/// Sizes closer than this are not tried one after the other.
const APART: f64 = 1.15;
/// Fewer workers must do as much, but for this share.
const LOSS: f64 = 0.09;
/// Growth within this time, in seconds, is one: what counts is the service time before its first step.
const ONE_GROWTH: f64 = 15.0;
/// Seconds after a change that are not counted: new workers have no result yet.
const WARM: f64 = 1.0;
/// Shortest and longest time after a change until it is judged.
const SOONEST: f64 = 3.0;
const LATEST: f64 = 15.0;
/// Workers that count as all busy.
pub(super) const ALL_BUSY: f64 = 0.95;
/// A quarter fewer.
const LESS: f64 = 0.75;
/// A service time that is higher by this factor at the same size is a sign.
const SLOWER: f64 = 1.5;
/// Looked at for it.
const SLOW_LOOK: f64 = 5.0;
/// A cap is dropped when the size that it allows does more or less than it did by this share: the backend or the jobs are not what they were;
const OTHERWISE: f64 = 0.1;
/// looked at over this time, in seconds, as is what a size did before it is changed;
const LONG_LOOK: f64 = 20.0;
/// when it has not been needed for this long;
const UNNEEDED: f64 = 60.0;
/// and after this long in any case: what was congested then may not be now. Twice as long each time that it still was, up to the most.
const FORGET: f64 = 300.0;
const FORGET_LATEST: f64 = 1_800.0;

/// A change of the size whose effect is being measured.
#[derive(Debug, Clone, Copy, PartialEq)]
struct Trial {
    kind: Kind,
    from: u16,
    to: u16,
    since: f64,
    /// Throughput of `from` and how many jobs tell of it.
    before: f64,
    before_jobs: f64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    More,
    Fewer,
}

/// More workers than this bring nothing.
#[derive(Debug, Clone, Copy, PartialEq)]
struct Cap {
    size: u16,
    since: f64,
    needed: f64,
    /// What this size did.
    throughput: f64,
    /// Forgotten after this time.
    lasts: f64,
}

/// What to do about the last change.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Verdict {
    /// No trial, or it went well.
    Fine,
    /// Not known yet.
    Open,
    /// The increase brought nothing: this size.
    NoGain(u16),
    /// Fewer workers did less: this size again.
    Restore(u16),
}

/// What is known of congestion.
#[derive(Debug, Clone, Default)]
pub(super) struct Congestion {
    trial: Option<Trial>,
    cap: Option<Cap>,
    /// Service time before the pool grew to its present size, or as it was when that was last tried.
    usual: Option<f64>,
    errors: Option<Errors>,
    /// The size before increases that were each too small to judge, how it did, and when.
    small_steps: Option<(u16, f64, f64, f64)>,
    changed: f64,
    /// How long the last cap lasted, if it was forgotten for its age.
    lasted: Option<f64>,
}

/// Failing attempts have made the pool smaller.
#[derive(Debug, Clone, Copy)]
struct Errors {
    /// The size when they began.
    from: u16,
    cap: u16,
    /// Last time that the cap moved.
    moved: f64,
}

impl Congestion {
    /// Most workers that bring anything, as far as is known.
    pub(super) fn cap(&self) -> Option<u16> {
        self.cap.map(|cap| cap.size).into_iter().chain(self.errors.map(|errors| errors.cap)).min()
    }

    /// The size has been changed for another reason than a verdict of here.
    pub(super) fn changed(&mut self, history: &History, from: u16, to: u16) {
        let service = history.service();
        let comparable = service.map_or(0.0, |service| service.seconds);
        let before = history.all_busy(LONG_LOOK.min(comparable), self.changed + WARM);
        self.trial = None;
        let goes_on = to > from && history.now() - self.changed < ONE_GROWTH;
        let usual = service.map(|service| service.value);
        self.usual = if goes_on { usual.into_iter().chain(self.usual).reduce(f64::min) } else { usual };
        self.changed = history.now();
        // A service time that has just changed says that throughput has, too.
        if to <= from || before.completed <= 0.0 || comparable < SOONEST {
            self.small_steps = None;
            return;
        }
        self.small_steps = self.small_steps.filter(|(.., at)| history.now() - at < SMALL_STEPS);
        let (from, throughput, jobs, _) = *self.small_steps.get_or_insert((from, before.throughput(), before.completed, history.now()));
        if f64::from(to) >= JUDGED * f64::from(from) {
            self.small_steps = None;
            self.trial = Some(Trial { kind: Kind::More, from, to, since: self.changed, before: throughput, before_jobs: jobs });
        }
    }

    /// Nothing that is measured now can be compared with before.
    pub(super) fn interrupt(&mut self) {
        self.trial = None;
        self.small_steps = None;
    }

    /// What came of the last change.
    pub(super) fn judge(&mut self, history: &History) -> Verdict {
        let Some(trial) = self.trial else { return Verdict::Fine };
        let now = history.now();
        let elapsed = now - trial.since;
        if elapsed < 2.0 * WARM {
            return Verdict::Open;
        }
        let after = history.since(trial.since + WARM);
        if history.over(0.0).utilisation() < ALL_BUSY {
            // Workers are free: these are enough, and how much more they could do is not known.
            self.trial = None;
            if trial.kind == Kind::Fewer {
                self.limit(trial.to, after, now);
            }
            return Verdict::Fine;
        }
        if elapsed < SOONEST || after.completed <= 0.0 {
            return if elapsed < LATEST { Verdict::Open } else { self.end(Verdict::Fine) };
        }
        let gain = after.throughput() / trial.before - 1.0;
        let growth = f64::from(trial.to) / f64::from(trial.from) - 1.0;
        let wanted = if growth > 0.0 { GAIN.min(growth / 2.0) } else { -LOSS };
        let chance = 1.5 * (1.0 / trial.before_jobs + 1.0 / after.completed).sqrt();
        let enough = gain >= wanted;
        if !enough && gain > wanted - chance {
            // A bad verdict needs certainty.
            if elapsed < LATEST {
                return Verdict::Open;
            }
            if trial.kind == Kind::More {
                return self.end(Verdict::Fine);
            }
        }
        match trial.kind {
            Kind::More if enough => {
                if self.cap.is_some() {
                    self.limit(trial.to, after, now); // found by halving: the sizes above have been tried
                }
                self.end(Verdict::Fine)
            }
            Kind::More => self.no_gain(trial, now),
            Kind::Fewer if enough => {
                self.limit(trial.to, after, now);
                self.end(Verdict::Fine)
            }
            Kind::Fewer => {
                self.changed = now;
                self.usual = None;
                self.limit_at(trial.from, trial.before, now);
                self.end(Verdict::Restore(trial.from))
            }
        }
    }

    fn end(&mut self, verdict: Verdict) -> Verdict {
        self.trial = None;
        verdict
    }

    /// Half way back, or the whole way if that is not far.
    fn no_gain(&mut self, trial: Trial, now: f64) -> Verdict {
        let between = whole((f64::from(trial.from) * f64::from(trial.to)).sqrt());
        let to = if f64::from(between) >= APART * f64::from(trial.from) && between < trial.to { between } else { trial.from };
        self.changed = now;
        self.limit_at(to, trial.before, now);
        self.trial = (to > trial.from).then_some(Trial { to, since: now, ..trial });
        Verdict::NoGain(to)
    }

    fn limit(&mut self, size: u16, did: Span, now: f64) {
        self.limit_at(size, did.throughput(), now);
    }

    fn limit_at(&mut self, size: u16, throughput: f64, now: f64) {
        let lasts = self.lasted.map_or(FORGET, |lasted| (2.0 * lasted).min(FORGET_LATEST));
        self.cap = Some(Cap { size, since: now, needed: now, throughput, lasts });
    }

    /// Tries fewer workers when each job takes longer than it should and more are not to be had.
    pub(super) fn try_fewer(&mut self, history: &History, size: u16, min: u16) -> Option<u16> {
        const JOBS: f64 = 50.0;
        if self.trial.is_some() || size <= min || history.now() - self.changed < SLOW_LOOK + WARM {
            return None;
        }
        let span = history.over(SLOW_LOOK);
        if history.all_busy(SLOW_LOOK, self.changed).seconds + 0.1 < span.seconds || span.completed < JOBS {
            return None;
        }
        // One that has just changed says that throughput has, too: there is nothing yet to compare with.
        let service = history.service().filter(|service| service.seconds + 0.1 >= span.seconds)?.value;
        let usual = *self.usual.get_or_insert(service);
        if service < SLOWER * usual {
            return None;
        }
        let to = whole((f64::from(size) * LESS).floor()).max(min);
        self.changed = history.now();
        let (before, before_jobs) = (span.throughput(), span.completed);
        self.trial = Some(Trial { kind: Kind::Fewer, from: size, to, since: self.changed, before, before_jobs });
        Some(to)
    }

    /// Makes the pool smaller while attempts fail more often than they used to, and lets it grow again step by step afterwards.
    pub(super) fn on_errors(&mut self, history: &History, size: u16, min: u16) -> ErrorsSay {
        const RECENT: f64 = 5.0;
        const BEFORE: f64 = 60.0;
        const RARE: f64 = 0.1;
        const FEWEST: f64 = 3.0;
        const PAUSE: f64 = 10.0;
        let now = history.now();
        // What failed in an outage says nothing of the time after it.
        let recent = history.since((now - RECENT).max(history.resumed()));
        let usual = history.part(now - RECENT - BEFORE, now - RECENT).error_share();
        let rising = recent.errors >= FEWEST && recent.error_share() > RARE + 2.0 * usual;
        match &mut self.errors {
            None if rising => {
                let to = whole((f64::from(size) * LESS).floor()).max(min);
                self.errors = Some(Errors { from: size, cap: to.min(size), moved: now });
            }
            None => return ErrorsSay::Nothing,
            Some(errors) if now - errors.moved < PAUSE => {}
            Some(errors) if rising => {
                let least = errors.from.div_ceil(2).max(min);
                errors.cap = whole((f64::from(errors.cap) * LESS).floor()).max(least).min(errors.cap);
                errors.moved = now;
            }
            Some(errors) => {
                errors.cap = errors.cap.saturating_add((errors.cap / 4).max(1));
                errors.moved = now;
                if errors.cap >= errors.from {
                    self.errors = None;
                }
            }
        }
        if rising { ErrorsSay::Rising } else { ErrorsSay::Nothing }
    }

    /// Drops a cap that is old, not needed, or that the backend has outgrown.
    pub(super) fn review(&mut self, history: &History, wanted: f64, size: u16) {
        let Some(cap) = &mut self.cap else { return };
        let now = history.now();
        if wanted > f64::from(cap.size) {
            cap.needed = now;
        }
        let span = history.all_busy(LONG_LOOK, cap.since + WARM);
        let chance = 2.0 / span.completed.max(1.0).sqrt();
        let differs = (span.throughput() / cap.throughput - 1.0).abs() > OTHERWISE + chance;
        let is_other = span.seconds >= SOONEST && size == cap.size && differs;
        let is_old = now - cap.since > cap.lasts;
        if self.trial.is_none() && (is_other || is_old || now - cap.needed > UNNEEDED) {
            self.lasted = (is_old && !is_other).then_some(cap.lasts);
            self.cap = None;
            self.usual = None;
        }
    }
}

/// Whether failing attempts forbid to grow.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum ErrorsSay {
    Nothing,
    Rising,
}

/// A size as a whole number.
#[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)] // limited to the type just before
pub(super) fn whole(size: f64) -> u16 {
    size.clamp(0.0, f64::from(u16::MAX)) as u16
}
