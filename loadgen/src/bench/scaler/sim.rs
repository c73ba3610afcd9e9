//! Owns: jobs, workers and time of the simulation: events in order, nothing else decides. Does not own how many workers there shall be.
//!
//! All busy workers share the backend, so they all go equally fast; the work that each has had since time 0 is one number (`virtual time`),
//! and a job ends when that number has grown by its own work. So a change of speed costs nothing, however many jobs run.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap, VecDeque};
use std::time::Duration;

use argon::pool::scaler::Measured;

use super::backend::Backend;
use super::loads::Load;
use super::random::Random;

/// Between two looks of a policy.
pub(super) const LOOK: f64 = 1.0;
/// An attempt fails after this long without the store, and the job is tried again after up to [`RETRY_CAP`], as the queue does it.
const ATTEMPT_LIMIT: f64 = 2.0;
const RETRY_FIRST: f64 = 1.0;
const RETRY_CAP: f64 = 30.0;

/// A finite moment, ordered.
#[derive(Debug, Clone, Copy, PartialEq)]
struct Moment(f64);

impl Eq for Moment {}
impl Ord for Moment {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        self.0.total_cmp(&other.0)
    }
}
impl PartialOrd for Moment {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

#[derive(Debug, Clone, Copy)]
struct Job {
    arrived: f64,
    failures: i32,
}

#[derive(Debug, Clone, Copy)]
struct Attempt {
    job: Job,
    started: f64,
}

/// What was there at the end of one second.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Second {
    pub at: f64,
    pub rate: f64,
    pub target: u16,
    pub backlog: u64,
    pub completed: u64,
}

/// A run.
#[derive(Debug, Clone, Default)]
pub(super) struct Trace {
    pub seconds: Vec<Second>,
    /// Seconds from becoming ready to the start of the attempt that did the job, in order.
    pub waits: Vec<f64>,
    pub worker_seconds: f64,
}

/// What a policy sees; its answer is the target from then on.
pub(super) trait Policy {
    fn look(&mut self, seen: &Measured) -> u16;
}

struct Simulation<'a> {
    load: &'a Load,
    backend: &'a Backend,
    capacity: f64,
    random: Random,
    now: f64,
    /// Work that a worker busy since the start would have done.
    virtual_now: f64,
    target: u16,
    ready: VecDeque<Job>,
    running: BTreeMap<u64, Attempt>,
    ends: BinaryHeap<Reverse<(Moment, u64)>>,
    failures: BinaryHeap<Reverse<(Moment, u64)>>,
    returns: BinaryHeap<Reverse<(Moment, i32, u64)>>,
    waiting: BTreeMap<u64, Job>,
    next_arrival: f64,
    next_id: u64,
    arrived: u64,
    completed: u64,
    errors: u64,
    busy: f64,
    trace: Trace,
}

/// Runs a load under a policy, which starts with `base` workers.
pub(super) fn run(load: &Load, backend: &Backend, policy: &mut dyn Policy, base: u16, max: u16, seed: u64) -> Trace {
    let capacity = backend.capacity(max);
    let mut sim = Simulation {
        load,
        backend,
        capacity,
        random: Random::new(seed, 1),
        now: 0.0,
        virtual_now: 0.0,
        target: base,
        ready: VecDeque::new(),
        running: BTreeMap::new(),
        ends: BinaryHeap::new(),
        failures: BinaryHeap::new(),
        returns: BinaryHeap::new(),
        waiting: BTreeMap::new(),
        next_arrival: 0.0,
        next_id: 0,
        arrived: 0,
        completed: 0,
        errors: 0,
        busy: 0.0,
        trace: Trace::default(),
    };
    sim.next_arrival = sim.draw_arrival(0.0);
    let mut boundaries: Vec<f64> = load.outage.into_iter().flat_map(|(from, to)| [from, to]).chain(load.burst.map(|(at, _)| at)).collect();
    boundaries.sort_by(f64::total_cmp);
    let mut boundaries = VecDeque::from(boundaries);
    let mut next_look = LOOK;
    while next_look <= load.seconds {
        let next = sim.next_event().min(next_look).min(boundaries.front().copied().unwrap_or(f64::INFINITY));
        sim.advance(next);
        if boundaries.front() == Some(&next) {
            boundaries.pop_front();
            sim.boundary();
        } else if next == next_look {
            sim.target = policy.look(&sim.measured());
            sim.record();
            next_look += LOOK;
        } else {
            sim.event();
        }
        sim.start_jobs();
    }
    sim.trace.waits.sort_by(f64::total_cmp);
    sim.trace
}

impl Simulation<'_> {
    /// The next arrival after `t`: drawn at the highest rate, taken with the share that the rate of the moment has of it.
    fn draw_arrival(&mut self, mut t: f64) -> f64 {
        let peak = self.load.peak(self.capacity);
        if peak <= 0.0 {
            return f64::INFINITY;
        }
        loop {
            t += self.random.exponential() / peak;
            if t > self.load.seconds || self.random.unit() * peak <= self.load.rate(t, self.capacity) {
                return t;
            }
        }
    }

    fn slowdown(&self) -> f64 {
        self.backend.slowdown(as_f64(self.running.len()))
    }

    fn next_event(&self) -> f64 {
        let mut next = self.next_arrival;
        if let Some(Reverse((Moment(at), _))) = self.failures.peek() {
            next = next.min(*at);
        }
        if let Some(Reverse((Moment(at), ..))) = self.returns.peek() {
            next = next.min(*at);
        }
        if let (Some(Reverse((Moment(at), _))), false) = (self.ends.peek(), self.load.is_out(self.now)) {
            next = next.min(self.now + (at - self.virtual_now).max(0.0) * self.slowdown());
        }
        next
    }

    fn advance(&mut self, to: f64) {
        let seconds = to - self.now;
        self.trace.worker_seconds += seconds * f64::from(self.workers());
        if !self.load.is_out(self.now) {
            self.virtual_now += seconds / self.slowdown();
        }
        self.now = to;
    }

    /// The store goes, comes back, or a burst arrives.
    fn boundary(&mut self) {
        if let Some((at, jobs)) = self.load.burst
            && at == self.now
        {
            for _ in 0..jobs {
                self.arrive();
            }
        }
        self.failures.clear();
        if self.load.is_out(self.now) {
            self.failures.extend(self.running.keys().map(|id| Reverse((Moment(self.now + ATTEMPT_LIMIT), *id))));
        }
    }

    /// The one event that is due now.
    fn event(&mut self) {
        if self.next_arrival <= self.now {
            self.arrive();
            self.next_arrival = self.draw_arrival(self.now);
        } else if self.failures.peek().is_some_and(|Reverse((Moment(at), _))| *at <= self.now) {
            if let Some(Reverse((_, id))) = self.failures.pop() {
                self.fail(id);
            }
        } else if self.returns.peek().is_some_and(|Reverse((Moment(at), ..))| *at <= self.now) {
            if let Some(job) = self.returns.pop().and_then(|Reverse((.., id))| self.waiting.remove(&id)) {
                // To whoever counts, it has arrived again.
                self.arrived += 1;
                self.ready.push_back(job);
            }
        } else if let Some(Reverse((Moment(at), id))) = self.ends.pop() {
            self.virtual_now = self.virtual_now.max(at);
            if let Some(attempt) = self.running.remove(&id) {
                self.completed += 1;
                self.busy += self.now - attempt.started;
                self.trace.waits.push(attempt.started - attempt.job.arrived);
            }
        }
    }

    fn arrive(&mut self) {
        self.arrived += 1;
        self.ready.push_back(Job { arrived: self.now, failures: 0 });
    }

    fn fail(&mut self, id: u64) {
        let Some(Attempt { mut job, started }) = self.running.remove(&id) else { return };
        self.ends.retain(|Reverse((_, other))| *other != id);
        self.errors += 1;
        self.busy += self.now - started;
        job.failures += 1;
        let delay = (RETRY_FIRST * 2f64.powi(job.failures)).min(RETRY_CAP) * self.random.unit();
        self.returns.push(Reverse((Moment(self.now + delay), job.failures, id)));
        self.waiting.insert(id, job);
    }

    /// Free workers take jobs.
    fn start_jobs(&mut self) {
        while self.running.len() < usize::from(self.target) {
            let Some(job) = self.ready.pop_front() else { return };
            let id = self.next_id;
            self.next_id += 1;
            let work = self.backend.service * self.backend.spread.draw(&mut self.random) * self.load.weight(self.now);
            self.running.insert(id, Attempt { job, started: self.now });
            self.ends.push(Reverse((Moment(self.virtual_now + work), id)));
            if self.load.is_out(self.now) {
                self.failures.push(Reverse((Moment(self.now + ATTEMPT_LIMIT), id)));
            }
        }
    }

    /// A busy worker that is to stop finishes its job first.
    fn workers(&self) -> u16 {
        u16::try_from(self.running.len()).unwrap_or(u16::MAX).max(self.target)
    }

    fn measured(&self) -> Measured {
        Measured {
            at: Duration::from_secs_f64(self.now),
            arrived: self.arrived,
            completed: self.completed,
            busy: Duration::from_secs_f64(self.busy),
            running: self.running.values().map(|attempt| Duration::from_secs_f64(self.now - attempt.started)).collect(),
            backlog: self.ready.len() as u64,
            workers: self.workers(),
            errors: self.errors,
        }
    }

    fn record(&mut self) {
        let second = Second {
            at: self.now,
            rate: self.load.rate(self.now, self.capacity),
            target: self.target,
            backlog: self.ready.len() as u64 + self.waiting.len() as u64,
            completed: self.completed,
        };
        self.trace.seconds.push(second);
    }
}

#[allow(clippy::cast_precision_loss)] // at most a few thousand
fn as_f64(n: usize) -> f64 {
    n as f64
}
