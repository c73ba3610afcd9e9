//! Owns: what the writes of the queue do to the rows in memory. Does not own: commits and rescues (`state`), locking and time (`super`).

use std::collections::BTreeMap;
use std::time::Duration;

use super::millis;
use super::state::{ByKind, State};
use crate::fault::{Fault, Result};
use crate::ledger::rules;
use crate::ledger::status::Tally;
use crate::ledger::*;
use crate::queue::{self, JobEvent};

/// Whose counters are nobody's in particular: operators and rescuers.
pub(super) const SHARED: &str = "shared";

impl State {
    pub(super) fn enqueue(&mut self, jobs: &[NewJob], now: i64) -> Result<Vec<Enqueued>> {
        rules::check_new(jobs)?;
        Ok(jobs.iter().map(|new| self.enqueue_one(new, now)).collect())
    }

    fn enqueue_one(&mut self, new: &NewJob, now: i64) -> Enqueued {
        if self.jobs.contains_key(&new.id) {
            return Enqueued::Already;
        }
        if let Some(job) = new.unique_key.as_deref().and_then(|key| self.holder(key)) {
            return Enqueued::Duplicate { job };
        }
        let mut row = rules::new_row(new);
        row.created_ms = now;
        row.run_at_ms = now.saturating_add(millis(new.delay));
        row.sched_key = queue::sched_key(row.run_at_ms, row.priority);
        self.jobs.insert(row.id.clone(), row);
        Enqueued::Stored
    }

    /// The job that has a unique key now.
    fn holder(&self, key: &str) -> Option<JobId> {
        let alive = |job: &&Job| matches!(job.state, JobState::Scheduled | JobState::Ready | JobState::Running);
        self.jobs.values().filter(alive).find(|job| job.unique_key.as_deref() == Some(key)).map(|job| job.id.clone())
    }

    pub(super) fn promote(&mut self, now: i64) -> u64 {
        let held: Vec<&BranchId> = self.pauses.branches().collect();
        let may_run = |job: &Job| if job.parked { !held.contains(&&job.branch) } else { job.run_at_ms <= now };
        let mut promoted = 0;
        for job in self.jobs.values_mut().filter(|job| may_run(job)) {
            if let Some(state) = queue::transition(job.state, JobEvent::Due) {
                (job.state, job.parked) = (state, false);
                promoted += 1;
            }
        }
        promoted
    }

    pub(super) fn claim(&mut self, request: &ClaimRequest, token: &str, now: i64) -> Vec<Job> {
        let kinds = request.pauses.open(&request.kinds);
        let mut parked = 0;
        let ready = loop {
            let beyond = parked == rules::MAX_PARKS;
            let ready = self.candidates(&kinds, request, beyond);
            let held = |id: &JobId| self.jobs.get(id).is_some_and(|job| request.pauses.holds_branch(&job.branch));
            if beyond || !ready.iter().any(held) {
                break ready;
            }
            self.park(&kinds, &request.pauses);
            parked += 1;
        };
        let mut claimed = Vec::with_capacity(ready.len());
        for (n, id) in ready.into_iter().enumerate() {
            let Some(job) = self.jobs.get_mut(&id) else { continue };
            let Some(state) = queue::transition(job.state, JobEvent::Claimed) else { continue };
            job.state = state;
            job.attempt += 1;
            let started = n < request.start;
            let started_ms = started.then_some(now);
            job.lease = Some(Lease { engine: request.engine.clone(), token: token.to_owned(), claimed_ms: now, started, started_ms });
            claimed.push(job.clone());
        }
        claimed
    }

    fn in_line(&self, kinds: &[JobKind]) -> Vec<&Job> {
        let mut ready: Vec<&Job> = self.jobs.values().filter(|j| j.state == JobState::Ready && kinds.contains(&j.kind)).collect();
        ready.sort_by_key(|j| (j.sched_key, &j.id));
        ready
    }

    fn candidates(&self, kinds: &[JobKind], request: &ClaimRequest, beyond: bool) -> Vec<JobId> {
        let mut ready = self.in_line(kinds);
        ready.retain(|j| !beyond || !request.pauses.holds_branch(&j.branch));
        if request.alone && ready.first().is_some_and(|j| queue::is_suspect(j.crashes)) {
            ready.truncate(1);
        } else {
            ready.retain(|j| !queue::is_suspect(j.crashes));
        }
        ready.into_iter().take(request.limit).map(|j| j.id.clone()).collect()
    }

    /// Those that come first in line, as many as one look of the real one sees.
    fn park(&mut self, kinds: &[JobKind], pauses: &Pauses) {
        let held = self.in_line(kinds).into_iter().take(rules::CHUNK).filter(|j| pauses.holds_branch(&j.branch));
        for id in held.map(|j| j.id.clone()).collect::<Vec<_>>() {
            let Some(job) = self.jobs.get_mut(&id) else { continue };
            if let Some(state) = queue::transition(job.state, JobEvent::Parked) {
                (job.state, job.parked) = (state, true);
            }
        }
    }

    pub(super) fn suspect_waits(&self, kinds: &[JobKind], patience: Duration, now: i64) -> bool {
        self.in_line(kinds).first().is_some_and(|j| queue::suspect_is_due(j.crashes, j.run_at_ms, now, patience))
    }

    pub(super) fn start(&mut self, lease: &JobLease, now: i64) -> bool {
        let Some(job) = self.jobs.get_mut(&lease.id).filter(|j| rules::holds(j, lease)) else { return false };
        if let Some(lease) = job.lease.as_mut().filter(|lease| !lease.started) {
            (lease.started, lease.started_ms) = (true, Some(now));
        }
        true
    }

    pub(super) fn cancel_requests(&self, engine: &str) -> Vec<JobId> {
        self.running_at(engine).filter(|job| job.cancel_requested).map(|job| job.id.clone()).collect()
    }

    pub(super) fn running_at(&self, engine: &str) -> impl Iterator<Item = &Job> {
        self.jobs.values().filter(move |j| j.state == JobState::Running && j.lease.as_ref().is_some_and(|l| l.engine == engine))
    }

    pub(super) fn stuck(&self, before_ms: i64, max: usize) -> Vec<Job> {
        let since = |job: &&Job| job.lease.as_ref().is_some_and(|l| l.started_ms.unwrap_or(l.claimed_ms) < before_ms);
        self.jobs.values().filter(|j| j.state == JobState::Running).filter(since).take(max).cloned().collect()
    }

    pub(super) fn finish(&mut self, engine: &str, ends: &[Finish], now: i64) -> Result<Vec<Finished>> {
        rules::check_finishes(ends)?;
        let mut outcomes = Vec::with_capacity(ends.len());
        for end in ends {
            let ended = self.ended.get(&end.lease.id).map(String::as_str);
            let outcome = rules::judge_finish(end, self.jobs.get(&end.lease.id), ended);
            if outcome == Finished::Now {
                self.end(&end.lease.id, JobEvent::Committed, Some(&end.lease.token), now);
                self.count(engine, Tally::Done, end.kind);
            }
            outcomes.push(outcome);
        }
        Ok(outcomes)
    }

    pub(super) fn fail(&mut self, lease: &JobLease, how: &Failed, now: i64) -> Result<bool> {
        let ended_by_us = self.ended.get(&lease.id) == Some(&lease.token);
        let Some(job) = self.jobs.get_mut(&lease.id) else { return Ok(false) };
        if !rules::holds(job, lease) {
            return Ok(ended_by_us);
        }
        if job.kind == JobKind::Sync && *how == Failed::Cancelled {
            return Err(rules::is_sync(&lease.id));
        }
        let (mut event, delay, error) = rules::ending(how);
        if job.cancel_requested {
            event = JobEvent::Stopped;
        }
        let engine = job.lease.take().map(|l| l.engine).unwrap_or_default();
        if let Some(error) = error {
            let entry = JobError { attempt: job.attempt, at_ms: now, engine: engine.clone(), error: queue::clip_error(error) };
            queue::push_error(&mut job.errors, &mut job.error_count, entry);
        }
        if let Failed::GiveBack { .. } = how {
            job.attempt = job.attempt.saturating_sub(1);
        }
        let (kind, branch) = (job.kind, job.branch.clone());
        self.ended.insert(lease.id.clone(), lease.token.clone());
        if matches!(how, Failed::Retry { .. } | Failed::Dead { .. }) {
            self.count(&engine, Tally::Failed, kind);
        }
        match event {
            JobEvent::Doomed | JobEvent::Stopped => {
                self.count(&engine, if event == JobEvent::Doomed { Tally::Dead } else { Tally::Cancelled }, kind);
                self.end(&lease.id, event, None, now);
                self.settle_status(&branch);
            }
            _ => {
                let Some(job) = self.jobs.get_mut(&lease.id) else { return Ok(false) };
                job.state = queue::transition(job.state, event).unwrap_or(job.state);
                if event != JobEvent::Returned {
                    job.run_at_ms = now.saturating_add(millis(delay));
                    job.sched_key = queue::sched_key(job.run_at_ms, job.priority);
                }
            }
        }
        Ok(true)
    }

    pub(super) fn retry_job(&mut self, id: &str, now: i64) -> Result<bool> {
        let Some(job) = self.jobs.get(id) else { return Ok(false) };
        let Some(state) = queue::transition(job.state, JobEvent::Revived) else { return Ok(false) };
        if job.unique_key.as_deref().and_then(|key| self.holder(key)).is_some_and(|holder| holder != id) {
            return Err(rules::key_taken(id));
        }
        let Some(job) = self.jobs.get_mut(id) else { return Ok(false) };
        job.state = state;
        (job.attempt, job.crashes, job.finished_ms) = (0, 0, None);
        (job.cancel_requested, job.parked) = (false, false);
        job.run_at_ms = now;
        job.sched_key = queue::sched_key(now, job.priority);
        let (kind, branch) = (job.kind, job.branch.clone());
        self.count(SHARED, Tally::Revived, kind);
        self.settle_status(&branch);
        Ok(true)
    }

    pub(super) fn cancel_job(&mut self, id: &str, now: i64) -> Result<Cancelled> {
        let job = self.jobs.get_mut(id).ok_or_else(|| Fault::missing(format!("there is no job {id}")))?;
        if job.kind == JobKind::Sync {
            return Err(rules::is_sync(id));
        }
        match job.state {
            JobState::Running => {
                job.cancel_requested = true;
                Ok(Cancelled::Requested)
            }
            JobState::Cancelled => Ok(Cancelled::Already),
            JobState::Done => Ok(Cancelled::TooLate),
            JobState::Scheduled | JobState::Ready | JobState::Dead => {
                let kind = job.kind;
                self.end(id, JobEvent::Discarded, None, now);
                self.count(SHARED, Tally::Cancelled, kind);
                Ok(Cancelled::Now)
            }
        }
    }

    pub(super) fn bulk(&mut self, action: Bulk, filter: &JobFilter, max: usize, dry_run: bool, now: i64) -> Result<BulkOutcome> {
        let states = rules::bulk_states(action, filter);
        let filter = JobFilter { after: None, ..filter.clone() };
        let wanted = |job: &&Job| {
            rules::listed(job, &filter)
                && states.contains(&job.state)
                && rules::bulk_takes(action, &filter, job.kind)
                && !(action == Bulk::Cancel && job.cancel_requested)
        };
        let mut found: Vec<(JobId, JobKind)> =
            self.jobs.values().filter(wanted).take(max.saturating_add(1)).map(|j| (j.id.clone(), j.kind)).collect();
        let mut out = BulkOutcome { more: found.len() > max, ..BulkOutcome::default() };
        found.truncate(max);
        out.matched = found.len() as u64;
        out.sample = found.iter().map(|(id, _)| id.clone()).take(BULK_SAMPLE).collect();
        for (id, kind) in found {
            match action {
                Bulk::Cancel if kind == JobKind::Sync => out.discard.push(id),
                _ if dry_run => {}
                Bulk::Cancel => match self.cancel_job(&id, now)? {
                    Cancelled::Now => out.changed += 1,
                    Cancelled::Requested => out.requested += 1,
                    Cancelled::Already | Cancelled::TooLate => {}
                },
                Bulk::Retry => match self.retry_job(&id, now) {
                    Ok(true) => out.changed += 1,
                    Ok(false) => {}
                    Err(_) => out.hindered += 1,
                },
            }
        }
        Ok(out)
    }

    pub(super) fn depth(&self) -> QueueDepth {
        let count = |state| (self.jobs.values().filter(|j| j.state == state).count() as u64).min(rules::DEPTH_LIMIT + 1);
        QueueDepth {
            scheduled: count(JobState::Scheduled),
            ready: count(JobState::Ready),
            running: count(JobState::Running),
            dead: count(JobState::Dead),
        }
    }

    pub(super) fn queue_stats(&self, now: i64) -> QueueStats {
        let count = |state| {
            let by_kind = self.by_kind(state);
            let total: u64 = by_kind.values().sum();
            match (&self.refreshed, total > rules::DEPTH_LIMIT) {
                (_, false) => StateCount { by_kind, ..StateCount::default() },
                (Some((at, counts)), true) if counts.contains_key(&state) => {
                    StateCount { by_kind: counts.get(&state).cloned().unwrap_or_default(), as_of_ms: Some(*at), at_least: false }
                }
                (_, true) => StateCount { by_kind, as_of_ms: None, at_least: true },
            }
        };
        let mut oldest_ready = BTreeMap::new();
        for kind in JobKind::ALL {
            let ready = self.jobs.values().filter(|j| j.state == JobState::Ready && j.kind == kind);
            if let Some(first) = ready.min_by(|a, b| (a.sched_key, &a.id).cmp(&(b.sched_key, &b.id))) {
                oldest_ready.insert(kind, rules::waited(first.run_at_ms, now));
            }
        }
        QueueStats {
            scheduled: count(JobState::Scheduled),
            ready: count(JobState::Ready),
            running: count(JobState::Running),
            dead: count(JobState::Dead),
            counters: self.counters.values().fold(Counters::default(), |mut sum, c| {
                sum.add(c);
                sum
            }),
            oldest_ready,
        }
    }

    pub(super) fn refresh_queue_stats(&mut self, now: i64) {
        let states = [JobState::Scheduled, JobState::Ready, JobState::Running, JobState::Dead];
        let counts = states.into_iter().map(|state| (state, self.by_kind(state)));
        let deep = counts.filter(|(_, by_kind)| by_kind.values().sum::<u64>() > rules::DEPTH_LIMIT).collect();
        self.refreshed = Some((now, deep));
    }

    fn by_kind(&self, state: JobState) -> ByKind {
        let mut by_kind = ByKind::new();
        for job in self.jobs.values().filter(|job| job.state == state) {
            *by_kind.entry(job.kind).or_default() += 1;
        }
        by_kind
    }

    /// Counts one job of a kind.
    pub(super) fn count(&mut self, whose: &str, tally: Tally, kind: JobKind) {
        self.counters.entry(whose.to_owned()).or_default().count(tally, kind, 1);
    }

    /// What an engine has counted becomes part of the total.
    pub(super) fn fold_counters(&mut self, engine: &str) {
        if let Some(counters) = self.counters.remove(engine) {
            self.counters.entry(SHARED.to_owned()).or_default().add(&counters);
        }
    }

    pub(super) fn lead(&mut self, engine: &str, lease_ms: i64, now: i64) -> bool {
        let free = self.leader.as_ref().is_none_or(|(holder, until)| holder == engine || *until <= now);
        if free {
            self.leader = Some((engine.to_owned(), now.saturating_add(lease_ms)));
        }
        free
    }

    pub(super) fn step_down(&mut self, engine: &str) {
        self.leader = self.leader.take().filter(|(holder, _)| holder != engine);
    }

    pub(super) fn controls(&self, now: i64) -> Controls {
        let left = |until: i64| Duration::from_millis(u64::try_from(until.saturating_sub(now)).unwrap_or_default());
        let scale = self.scale.as_ref().filter(|(_, until)| until.is_none_or(|until| until > now));
        Controls { pauses: self.pauses.clone(), scale: scale.map(|(wish, until)| ScaleWish { left: until.map(left), ..wish.clone() }) }
    }

    pub(super) fn set_pause(&mut self, what: &PauseTarget, paused: bool, by: &str, now: i64) {
        if paused {
            self.pauses.0.entry(what.clone()).or_insert_with(|| PauseNote { by: by.to_owned(), at_ms: now });
        } else {
            self.pauses.0.remove(what);
            self.unpark();
        }
    }

    fn unpark(&mut self) {
        let held: Vec<BranchId> = self.pauses.branches().cloned().collect();
        for job in self.jobs.values_mut().filter(|job| job.parked && !held.contains(&job.branch)) {
            if let Some(state) = queue::transition(job.state, JobEvent::Due) {
                (job.state, job.parked) = (state, false);
            }
        }
    }

    pub(super) fn set_scale(&mut self, target: Option<u16>, hold: Option<Duration>, by: &str, now: i64) {
        self.scale = target.map(|target| {
            let wish = ScaleWish { target, left: None, by: by.to_owned(), at_ms: now };
            (wish, hold.map(|hold| now.saturating_add(millis(hold))))
        });
    }
}
