//! Owns: a wrapper that makes any store misbehave, by seeded rates or one scripted fault at a time: failing before, storing but losing the
//! answer, never answering, damaging bodies, listing what was true a moment ago. Does not own any object, or sleeping: slowness is virtual.
//!
//! Faults are drawn in the order of calls: with one task a seed repeats a run exactly, with several it repeats the mix.

use std::collections::VecDeque;
use std::ops::Range;
use std::time::Duration;

use async_trait::async_trait;
use bytes::{Bytes, BytesMut};
use parking_lot::Mutex;
use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};
use tokio::sync::watch;

use super::{ObjectInfo, ObjectStore, Put, PutTag, Store};
use crate::fault::{Fault, Result};

/// What may happen to a put, replace or delete.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PutFault {
    /// Nothing is done, `Transient` is answered (with a wish to wait, if given).
    FailBefore(Option<Duration>),
    /// Nothing is done, `Unknown` is answered.
    LostRequest,
    /// It is done, `Unknown` is answered.
    LostAnswer,
    /// It is said to be refused although the key is free; nothing is done.
    RefusedThoughFree,
    /// Other bytes than those sent are stored, and success is answered. Only where the store does not verify puts.
    Altered,
    /// A failure that does not heal.
    Rejected,
    /// Nothing is done, `Missing` is answered, as by an ingress that knows of no backend.
    Missing,
}

/// What may happen to a read (get, head, list).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum GetFault {
    /// `Transient` is answered.
    Fail,
    /// One bit of the body is flipped.
    WrongBody,
    /// The body ends early.
    Truncated,
    /// A listing without the newest objects.
    StaleList,
}

/// Rates of faults in `0.0..=1.0`; what is not named does not happen.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct FaultPlan {
    /// Seeds the choice.
    pub seed: u64,
    /// Any operation: [`PutFault::FailBefore`] or [`GetFault::Fail`].
    pub fail_before: f64,
    /// Writes: [`PutFault::LostRequest`].
    pub lost_request: f64,
    /// Writes: [`PutFault::LostAnswer`].
    pub lost_answer: f64,
    /// [`PutFault::RefusedThoughFree`].
    pub refused_though_free: f64,
    /// [`PutFault::Altered`].
    pub altered: f64,
    /// [`GetFault::WrongBody`].
    pub wrong_body: f64,
    /// [`GetFault::Truncated`].
    pub truncated: f64,
    /// [`GetFault::StaleList`].
    pub stale_list: f64,
    /// Any operation gives way to other tasks for a while and counts [`FaultPlan::delay`] as lost.
    pub slow: f64,
    /// Virtual time of a slow operation.
    pub delay: Duration,
    /// Overrides [`ObjectStore::verifies_puts`] with false, as without checksums.
    pub unverified: bool,
}

/// How many faults were really injected, so that a test can show that it tested something.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct FaultCounts {
    /// Operations begun.
    pub calls: u64,
    /// [`PutFault::FailBefore`], [`PutFault::Rejected`], [`PutFault::Missing`] and [`GetFault::Fail`].
    pub failed: u64,
    /// [`PutFault::LostRequest`].
    pub lost_requests: u64,
    /// [`PutFault::LostAnswer`].
    pub lost_answers: u64,
    /// [`PutFault::RefusedThoughFree`].
    pub refused: u64,
    /// [`PutFault::Altered`].
    pub altered: u64,
    /// [`GetFault::WrongBody`] and [`GetFault::Truncated`].
    pub damaged_reads: u64,
    /// [`GetFault::StaleList`].
    pub stale_lists: u64,
    /// Virtual time spent being slow.
    pub virtual_delay: Duration,
}

/// How many of the newest objects a stale listing lacks.
const STALE_DEPTH: usize = 8;

/// A store that misbehaves.
#[derive(Debug)]
pub struct FaultyStore {
    inner: Store,
    plan: FaultPlan,
    state: Mutex<State>,
    /// Calls wait while this is true.
    frozen: watch::Sender<bool>,
}

#[derive(Debug)]
struct State {
    rng: SmallRng,
    puts: VecDeque<PutFault>,
    gets: VecDeque<GetFault>,
    newest: VecDeque<String>,
    counts: FaultCounts,
}

impl FaultyStore {
    /// Wraps `inner`.
    pub fn new(inner: Store, plan: FaultPlan) -> Self {
        let rng = SmallRng::seed_from_u64(plan.seed);
        let state = State { rng, puts: VecDeque::new(), gets: VecDeque::new(), newest: VecDeque::new(), counts: FaultCounts::default() };
        Self { inner, plan, state: Mutex::new(state), frozen: watch::Sender::new(false) }
    }

    /// The next put, replace or delete that has no scripted fault before it fails like this.
    pub fn next_put(&self, fault: PutFault) {
        self.state.lock().puts.push_back(fault);
    }

    /// The next get, head or list that has no scripted fault before it fails like this.
    pub fn next_get(&self, fault: GetFault) {
        self.state.lock().gets.push_back(fault);
    }

    /// While on, no call is answered: connections are taken, and nothing comes. When it is turned off the waiting calls go on.
    pub fn freeze(&self, on: bool) {
        self.frozen.send_replace(on);
    }

    /// What was injected so far.
    pub fn counts(&self) -> FaultCounts {
        self.state.lock().counts
    }

    /// Counts the call, is slow if so drawn, waits while frozen.
    async fn begin(&self) {
        let slow = {
            let mut state = self.state.lock();
            state.counts.calls += 1;
            let slow = state.draw(self.plan.slow);
            if slow {
                state.counts.virtual_delay += self.plan.delay;
            }
            slow
        };
        for _ in 0..if slow { 16 } else { 0 } {
            tokio::task::yield_now().await;
        }
        // It fails only when the sender is gone, which `self` holds.
        let _ = self.frozen.subscribe().wait_for(|frozen| !frozen).await;
    }

    fn draw_put(&self) -> Option<PutFault> {
        let mut state = self.state.lock();
        let drawn = state.puts.pop_front().or_else(|| {
            let plan = &self.plan;
            let table = [
                (plan.fail_before, PutFault::FailBefore(None)),
                (plan.lost_request, PutFault::LostRequest),
                (plan.lost_answer, PutFault::LostAnswer),
                (plan.refused_though_free, PutFault::RefusedThoughFree),
                (plan.altered, PutFault::Altered),
            ];
            state.choose(&table)
        })?;
        let counts = &mut state.counts;
        match drawn {
            PutFault::FailBefore(_) | PutFault::Rejected | PutFault::Missing => counts.failed += 1,
            PutFault::LostRequest => counts.lost_requests += 1,
            PutFault::LostAnswer => counts.lost_answers += 1,
            PutFault::RefusedThoughFree => counts.refused += 1,
            PutFault::Altered => counts.altered += 1,
        }
        Some(drawn)
    }

    fn draw_get(&self, possible: &[(f64, GetFault)]) -> Option<GetFault> {
        let mut state = self.state.lock();
        let drawn = match state.gets.pop_front() {
            Some(scripted) => scripted,
            None => state.choose(&[(self.plan.fail_before, GetFault::Fail)]).or_else(|| state.choose(possible))?,
        };
        match drawn {
            GetFault::Fail => state.counts.failed += 1,
            GetFault::WrongBody | GetFault::Truncated => state.counts.damaged_reads += 1,
            GetFault::StaleList => state.counts.stale_lists += 1,
        }
        Some(drawn)
    }

    /// A put or replace: `write` sends a body to the wrapped store.
    async fn write<F>(&self, key: &str, body: Bytes, write: impl FnOnce(Bytes) -> F) -> Result<Put>
    where
        F: Future<Output = Result<Put>>,
    {
        self.begin().await;
        let fault = self.draw_put();
        match fault {
            Some(PutFault::FailBefore(wait)) => {
                return Err(Fault { retry_after: wait, ..Fault::transient(format!("injected: put of {key} failed before it happened")) });
            }
            Some(PutFault::LostRequest) => return Err(Fault::unknown(format!("injected: request to put {key} was lost"))),
            Some(PutFault::RefusedThoughFree) => return Ok(Put::Refused),
            Some(PutFault::Rejected) => return Err(Fault::rejected(format!("injected: put of {key} was rejected"))),
            Some(PutFault::Missing) => return Err(Fault::missing(format!("injected: there is nothing to put {key} into"))),
            _ => {}
        }
        let body = if fault == Some(PutFault::Altered) && !self.verifies_puts() { self.flip(body) } else { body };
        let put = write(body).await?;
        let mut state = self.state.lock();
        if put == Put::Stored {
            state.newest.push_back(key.to_owned());
            if state.newest.len() > STALE_DEPTH {
                state.newest.pop_front();
            }
        }
        if fault == Some(PutFault::LostAnswer) {
            Err(Fault::unknown(format!("injected: the answer to the put of {key} was lost")))
        } else {
            Ok(put)
        }
    }

    fn flip(&self, body: Bytes) -> Bytes {
        if body.is_empty() {
            return Bytes::from_static(b"!");
        }
        let (at, bit) = {
            let mut state = self.state.lock();
            (state.rng.random_range(0..body.len()), state.rng.random_range(0..8))
        };
        let mut body = BytesMut::from(body);
        body[at] ^= 1 << bit;
        body.freeze()
    }
}

impl State {
    fn draw(&mut self, rate: f64) -> bool {
        rate > 0.0 && self.rng.random_bool(rate.min(1.0))
    }

    /// One draw decides, so that the rates of a table add up.
    fn choose<T: Copy>(&mut self, table: &[(f64, T)]) -> Option<T> {
        if table.iter().all(|(rate, _)| *rate <= 0.0) {
            return None;
        }
        let mut at: f64 = self.rng.random_range(0.0..1.0);
        for (rate, fault) in table {
            if at < *rate {
                return Some(*fault);
            }
            at -= rate;
        }
        None
    }
}

#[async_trait]
impl ObjectStore for FaultyStore {
    async fn put_new(&self, key: &str, body: Bytes, tag: &PutTag) -> Result<Put> {
        self.write(key, body, |body| self.inner.put_new(key, body, tag)).await
    }

    async fn replace(&self, key: &str, body: Bytes, tag: &PutTag, version: &str) -> Result<Put> {
        self.write(key, body, |body| self.inner.replace(key, body, tag, version)).await
    }

    async fn get(&self, key: &str, range: Option<Range<u64>>) -> Result<Bytes> {
        self.begin().await;
        let fault = self.draw_get(&[(self.plan.wrong_body, GetFault::WrongBody), (self.plan.truncated, GetFault::Truncated)]);
        if fault == Some(GetFault::Fail) {
            return Err(Fault::transient(format!("injected: get of {key} failed")));
        }
        let body = self.inner.get(key, range).await?;
        Ok(match fault {
            Some(GetFault::WrongBody) => self.flip(body),
            Some(GetFault::Truncated) => body.slice(..body.len() / 2),
            _ => body,
        })
    }

    async fn head(&self, key: &str) -> Result<Option<ObjectInfo>> {
        self.begin().await;
        match self.draw_get(&[]) {
            Some(GetFault::Fail) => Err(Fault::transient(format!("injected: head of {key} failed"))),
            _ => self.inner.head(key).await,
        }
    }

    async fn list(&self, prefix: &str, after: Option<&str>, max: usize) -> Result<Vec<ObjectInfo>> {
        self.begin().await;
        let hidden: Vec<String> = match self.draw_get(&[(self.plan.stale_list, GetFault::StaleList)]) {
            Some(GetFault::Fail) => return Err(Fault::transient(format!("injected: list of {prefix:?} failed"))),
            Some(GetFault::StaleList) => self.state.lock().newest.iter().cloned().collect(),
            _ => Vec::new(),
        };
        // Pages stay full while there is more, so a short page still means the end, as of a moment ago.
        let (mut page, mut after) = (Vec::new(), after.map(str::to_owned));
        loop {
            let part = self.inner.list(prefix, after.as_deref(), max).await?;
            let last = part.len() < max;
            after = part.last().map(|info| info.key.clone());
            page.extend(part.into_iter().filter(|info| !hidden.contains(&info.key)));
            if last || page.len() >= max {
                page.truncate(max);
                return Ok(page);
            }
        }
    }

    async fn delete(&self, key: &str) -> Result<()> {
        self.begin().await;
        match self.draw_put() {
            Some(PutFault::FailBefore(wait)) => {
                Err(Fault { retry_after: wait, ..Fault::transient(format!("injected: delete of {key} failed")) })
            }
            Some(PutFault::LostRequest) => Err(Fault::unknown(format!("injected: request to delete {key} was lost"))),
            Some(PutFault::Rejected) => Err(Fault::rejected(format!("injected: delete of {key} was rejected"))),
            Some(PutFault::Missing) => Err(Fault::missing(format!("injected: there is nothing to delete {key} from"))),
            Some(PutFault::LostAnswer) => {
                self.inner.delete(key).await?;
                Err(Fault::unknown(format!("injected: the answer to the delete of {key} was lost")))
            }
            _ => self.inner.delete(key).await,
        }
    }

    fn verifies_puts(&self) -> bool {
        !self.plan.unverified && self.inner.verifies_puts()
    }

    fn describe(&self) -> String {
        format!("{} (with injected faults)", self.inner.describe())
    }
}
