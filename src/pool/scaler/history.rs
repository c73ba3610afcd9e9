//! What was measured in the last two minutes, and rates over any part of it.
//!
//! Owns: turning cumulative counts into rates and service times, and which seconds say nothing of the service time.
//! Does not own: what follows from them (`demand`, `congestion`).

use std::collections::VecDeque;

use super::congestion::ALL_BUSY;
use super::decision::Measured;

/// Looks closer together than this are one.
const CLOSEST: f64 = 0.5;
/// Looks kept: two minutes at one a second.
const KEPT: usize = 128;
/// Jobs that should have ended by the service time known so far and have not: with chance e^-8 it is no coincidence.
const STALLED_JOBS: f64 = 8.0;

/// Times back from now, in seconds.
const WINDOWS: [f64; 9] = [1.0, 2.0, 3.0, 5.0, 8.0, 13.0, 21.0, 30.0, 120.0];
/// Jobs that make a figure certain to 3 %: no need to look further back.
const ENOUGH: f64 = 1000.0;
/// Further back than this only for want of even a few jobs.
const LONG: f64 = 30.0;
const FEW: f64 = 10.0;
/// Jobs that are worth more than any number from when the pool had another size.
const SOME: f64 = 50.0;
/// Standard deviations that are a change and not chance.
const CHANGED: f64 = 3.0;

/// Sums since the start.
#[derive(Debug, Clone, Copy, Default)]
struct Sums {
    at: f64,
    arrived: f64,
    completed: f64,
    errors: f64,
    /// Worker time of jobs, counted as it passes: running jobs by their age.
    work: f64,
    /// Worker time that there was.
    offered: f64,
    /// `work` and ended attempts, failed ones too, of the seconds in which jobs ended as usual.
    clean_work: f64,
    clean_completed: f64,
}

/// What passed between two looks.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub(super) struct Span {
    pub seconds: f64,
    pub arrived: f64,
    pub completed: f64,
    pub errors: f64,
    pub work: f64,
    pub offered: f64,
    clean_work: f64,
    clean_completed: f64,
}

impl Span {
    /// Jobs a second that became ready.
    pub(super) fn arrival_rate(&self) -> f64 {
        ratio(self.arrived, self.seconds)
    }

    /// Jobs a second that ended.
    pub(super) fn throughput(&self) -> f64 {
        ratio(self.completed, self.seconds)
    }

    /// Busy share of the workers.
    pub(super) fn utilisation(&self) -> f64 {
        ratio(self.work, self.offered).min(1.0)
    }

    /// Failed share of the attempts that ended.
    pub(super) fn error_share(&self) -> f64 {
        ratio(self.errors, self.errors + self.completed)
    }
}

/// A figure and how many jobs tell of it: it is certain to about `1 / sqrt(jobs)`.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Estimate {
    pub value: f64,
    pub jobs: f64,
    /// Over this time.
    pub seconds: f64,
}

/// Counts as they were given.
#[derive(Debug, Clone, Copy)]
struct Raw {
    arrived: u64,
    completed: u64,
    errors: u64,
    /// Worker time of the attempts that ended, and of all.
    ended: f64,
    work: f64,
    workers: f64,
}

impl Raw {
    fn of(m: &Measured) -> Self {
        let ended = m.busy.as_secs_f64();
        let running: f64 = m.running.iter().map(std::time::Duration::as_secs_f64).sum();
        Self { arrived: m.arrived, completed: m.completed, errors: m.errors, ended, work: ended + running, workers: f64::from(m.workers) }
    }
}

/// Jobs run and none has ended.
#[derive(Debug, Clone, Copy)]
struct Stall {
    since: f64,
    /// It is no coincidence.
    is_certain: bool,
}

/// The last two minutes.
#[derive(Debug, Clone, Default)]
pub(super) struct History {
    sums: VecDeque<Sums>,
    /// The counts of the newest look as they were given.
    raw: Option<Raw>,
    /// Age of the oldest job that runs.
    oldest: f64,
    /// Service time as last known, for times when nothing completes.
    known: Option<f64>,
    stall: Option<Stall>,
    /// When the pool got its present size.
    resized: f64,
    /// When jobs ended again after a stall.
    resumed: f64,
}

impl History {
    /// Takes a look; false if no time has passed since the last one.
    pub(super) fn push(&mut self, m: &Measured) -> bool {
        let (at, raw) = (m.at.as_secs_f64(), Raw::of(m));
        let Some(before) = self.raw else {
            self.raw = Some(raw);
            self.sums.push_back(Sums { at, ..Sums::default() });
            return false;
        };
        let last = self.sums.back().copied().unwrap_or_default();
        let seconds = at - last.at;
        if seconds <= 0.0 {
            return false; // what has changed belongs to the next look
        }
        self.raw = Some(raw);
        self.oldest = m.running.iter().max().map_or(0.0, std::time::Duration::as_secs_f64);
        let offered = raw.workers.max(before.workers) * seconds;
        let grown = |now: u64, then: u64| real(now.saturating_sub(then));
        let mut next = Sums {
            at,
            arrived: last.arrived + grown(raw.arrived, before.arrived),
            completed: last.completed + grown(raw.completed, before.completed),
            errors: last.errors + grown(raw.errors, before.errors),
            work: last.work + (raw.work - before.work).clamp(0.0, offered),
            offered: last.offered + offered,
            ..last
        };
        self.judge_course(&last, &mut next, (raw.ended - before.ended).max(0.0));
        let too_close = self.sums.iter().rev().nth(1).is_some_and(|earlier| at - earlier.at < CLOSEST);
        if too_close {
            self.sums.pop_back();
        }
        self.sums.push_back(next);
        if self.sums.len() > KEPT {
            self.sums.pop_front();
        }
        if let Some(service) = self.service() {
            self.known = Some(service.value);
        }
        true
    }

    /// Keeps times in which nothing ended although it should have out of the service time: they tell nothing of how long jobs take.
    ///
    /// SUBTLE: jobs may really take so much longer than those before that it looks the same. So the first jobs that end after a stall count with
    /// their own time (`ended`), however long it is. If they were only held up, the next look shows another service time, and that is the newest.
    fn judge_course(&mut self, last: &Sums, next: &mut Sums, ended: f64) {
        let (work, completed, errors) = (next.work - last.work, next.completed - last.completed, next.errors - last.errors);
        let was_stalled = self.stalled_since().is_some();
        if completed > 0.0 || (work <= 0.0 && errors <= 0.0) {
            self.stall = None;
        } else {
            self.stall.get_or_insert(Stall { since: last.at, is_certain: false });
        }
        if was_stalled && self.stall.is_none() {
            self.resumed = next.at;
        }
        next.clean_work += if was_stalled { ended } else { work };
        // A failed attempt is worker time as well, and its job arrives again.
        next.clean_completed += completed + errors;
        let Some(stall) = self.stall else { return };
        let from = self.sums.iter().find(|sums| sums.at >= stall.since).copied().unwrap_or(*last);
        if was_stalled || next.errors > from.errors || self.expected(next.work - from.work) >= STALLED_JOBS {
            self.stall = Some(Stall { is_certain: true, ..stall });
            for sums in self.sums.iter_mut().filter(|sums| sums.at > stall.since).chain([next]) {
                (sums.clean_work, sums.clean_completed) = (from.clean_work, from.clean_completed);
            }
        }
    }

    /// Jobs that end within this much worker time, by what is known.
    fn expected(&self, work: f64) -> f64 {
        self.known.map_or(0.0, |known| ratio(work, known))
    }

    /// The pool has another size as of now: service times may differ.
    pub(super) fn resized(&mut self) {
        self.resized = self.now();
    }

    /// Since when jobs should have ended and have not: some failed, or so many are overdue that it is no coincidence.
    pub(super) fn stalled_since(&self) -> Option<f64> {
        self.stall.filter(|stall| stall.is_certain).map(|stall| stall.since)
    }

    /// When jobs ended again after the last stall.
    pub(super) fn resumed(&self) -> f64 {
        self.resumed
    }

    /// Nothing ended since the look before, and three jobs should have.
    pub(super) fn falters(&self) -> bool {
        let newest = self.over(0.0);
        newest.completed <= 0.0 && self.expected(newest.work) >= 3.0
    }

    /// What passed in about the last `seconds`: at least the newest look.
    pub(super) fn over(&self, seconds: f64) -> Span {
        self.since(self.sums.back().map_or(0.0, |newest| newest.at) - seconds)
    }

    /// What passed since the look at or just before `at`.
    pub(super) fn since(&self, at: f64) -> Span {
        // A look a little late still counts as that moment.
        let from = self.sums.iter().rev().skip(1).find(|sums| sums.at <= at + 0.05).or(self.sums.front());
        self.sums.back().zip(from).map_or_else(Span::default, |(to, from)| between(from, to))
    }

    /// What passed in the last seconds, not before `from`, in which all workers were busy all the time.
    pub(super) fn all_busy(&self, seconds: f64, from: f64) -> Span {
        let Some(newest) = self.sums.back() else { return Span::default() };
        let mut start = newest;
        for sums in self.sums.iter().rev().skip(1) {
            let is_busy = between(sums, start).utilisation() >= ALL_BUSY;
            if !is_busy || sums.at + 0.05 < from || newest.at - sums.at > seconds + 0.05 {
                break;
            }
            start = sums;
        }
        between(start, newest)
    }

    /// What passed from `from` to `to`, both moments.
    pub(super) fn part(&self, from: f64, to: f64) -> Span {
        let find = |at: f64| self.sums.iter().rev().find(|sums| sums.at <= at + 0.05).or(self.sums.front());
        find(from).zip(find(to)).map_or_else(Span::default, |(from, to)| between(from, to))
    }

    /// When the newest look was.
    pub(super) fn now(&self) -> f64 {
        self.sums.back().map_or(0.0, |newest| newest.at)
    }

    /// Seconds that are known.
    pub(super) fn length(&self) -> f64 {
        self.sums.front().map_or(0.0, |oldest| self.now() - oldest.at)
    }

    /// Jobs a second that become ready, as of now.
    pub(super) fn arrivals(&self) -> Estimate {
        self.newest_rate(0.0, |span| (span.arrived, span.seconds))
    }

    /// Service time as of now; without a finished job, what is known from earlier or the age of the oldest one that runs, whichever is more.
    pub(super) fn service(&self) -> Option<Estimate> {
        let finished = self.newest_rate(self.resized, |span| (span.clean_completed, span.clean_work));
        if finished.jobs > 0.0 {
            return Some(Estimate { value: ratio(1.0, finished.value), ..finished });
        }
        let oldest = if self.stalled_since().is_some() { 0.0 } else { self.oldest };
        let value = self.known.unwrap_or(0.0).max(oldest);
        (value > 0.0).then_some(Estimate { value, jobs: 1.0, seconds: 0.0 })
    }

    /// Jobs per what passes, over the time since it last changed by more than chance: as much of it as tells enough, and from before `since`
    /// only for want of jobs.
    fn newest_rate(&self, since: f64, of: impl Fn(&Span) -> (f64, f64)) -> Estimate {
        let now = self.now();
        let mut newest = Estimate { value: 0.0, jobs: 0.0, seconds: 0.0 };
        let (mut jobs, mut passed) = (0.0, 0.0);
        for seconds in WINDOWS {
            let span = self.over(seconds);
            if now - span.seconds + 0.05 < since && jobs >= SOME {
                break;
            }
            let (all_jobs, all_passed) = of(&span);
            let older = (all_jobs - jobs, all_passed - passed);
            if older.1 > 0.0 && passed > 0.0 {
                let difference = jobs / passed - older.0 / older.1;
                let chance = (jobs.max(1.0) / (passed * passed) + older.0.max(1.0) / (older.1 * older.1)).sqrt();
                if difference.abs() > CHANGED * chance {
                    break;
                }
            }
            (jobs, passed) = (all_jobs, all_passed);
            newest = Estimate { value: ratio(jobs, passed), jobs, seconds: span.seconds };
            if jobs >= ENOUGH || (seconds >= LONG && jobs >= FEW) || span.seconds + 0.5 < seconds {
                break;
            }
        }
        newest
    }
}

fn between(from: &Sums, to: &Sums) -> Span {
    Span {
        seconds: to.at - from.at,
        arrived: to.arrived - from.arrived,
        completed: to.completed - from.completed,
        errors: to.errors - from.errors,
        work: to.work - from.work,
        offered: to.offered - from.offered,
        clean_work: to.clean_work - from.clean_work,
        clean_completed: to.clean_completed - from.clean_completed,
    }
}

/// `n / of`, or 0 of nothing.
pub(super) fn ratio(n: f64, of: f64) -> f64 {
    if of > 0.0 { n / of } else { 0.0 }
}

/// A count as a floating point number.
#[allow(clippy::cast_precision_loss)] // far below 2^52
pub(super) fn real(n: u64) -> f64 {
    n as f64
}
