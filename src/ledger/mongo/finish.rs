//! Owns: the ends of attempts that need no segment: success in groups, failure, giving back, cancellation.
//! Does not own: commits (`commit`), what a failure leads to (`queue::retry`).

use async_trait::async_trait;
use bson::{Bson, Document, doc};
use futures_util::TryStreamExt;
use mongodb::ClientSession;
use mongodb::options::UpdateModifications;

use super::super::rules;
use super::super::status::Tally;
use super::super::{Counters, Failed, Finish, Finished, Job, JobKind, JobLease, JobState};
use super::batch::update_many;
use super::classify::fault_of;
use super::commit::StoredJob;
use super::counters::Writer;
use super::rows::{held_by, now, reschedule, text, with_error, word};
use super::txn::{Body, Halt, Then};
use super::{Inner, millis};
use crate::fault::{Fault, Result};
use crate::queue::{self, JobEvent};

impl Inner {
    pub(super) async fn finish(&self, engine: &str, ends: &[Finish]) -> Result<Vec<Finished>> {
        rules::check_finishes(ends)?;
        if ends.is_empty() {
            return Ok(Vec::new());
        }
        let mut body = FinishTxn { inner: self, engine, ends, look: false };
        if let Some(outcomes) = self.transact(&mut body).await? {
            return Ok(outcomes);
        }
        // Some are not ours any more, or were ended before: find out which, and leave those out.
        body.look = true;
        self.transact(&mut body).await?.ok_or_else(|| Fault::unknown("jobs changed while their end was being written"))
    }

    pub(super) async fn fail(&self, lease: &JobLease, how: &Failed) -> Result<bool> {
        let mut guard = held_by(lease);
        let update = failed_update(how);
        // Nothing to count and nothing else to write: one statement.
        if matches!(how, Failed::GiveBack { .. }) {
            guard.insert("cancel_requested", doc! { "$ne": true });
            if self.jobs_coll().update_one(guard.clone(), update.clone()).await.map_err(fault_of)?.matched_count > 0 {
                return Ok(true);
            }
            guard.remove("cancel_requested");
        }
        let mut body = FailTxn { inner: self, lease, how, guard, update };
        if self.transact(&mut body).await? {
            return Ok(true);
        }
        // Our own earlier call, whose answer was lost?
        let ended = doc! { "_id": &lease.id, "ended": &lease.token };
        Ok(self.jobs_coll().clone_with_type::<Document>().find_one(ended).await.map_err(fault_of)?.is_some())
    }
}

/// The jobs and the count of them, together.
struct FinishTxn<'a> {
    inner: &'a Inner,
    engine: &'a str,
    ends: &'a [Finish],
    /// Read the jobs before writing; off at first, since it costs a round trip and is hardly ever needed.
    look: bool,
}

#[async_trait]
impl Body for FinishTxn<'_> {
    /// `None` when some of the jobs were not found running under their lease, and nobody has looked yet which.
    type Out = Option<Vec<Finished>>;

    async fn run(&mut self, session: &mut ClientSession) -> Result<Then<Self::Out>, Halt> {
        let outcomes = if self.look { self.judge(session).await? } else { vec![Finished::Now; self.ends.len()] };
        let live: Vec<&Finish> = self.ends.iter().zip(&outcomes).filter(|(_, o)| **o == Finished::Now).map(|(end, _)| end).collect();
        if live.is_empty() {
            return Ok(Then::Abort(Some(outcomes)));
        }
        let done = self.inner.update_all_in(session, "jobs", finish_statements(&live)).await?;
        if done.matched != live.len() as u64 {
            return Ok(Then::Abort(None));
        }
        let mut counters = Counters::default();
        live.iter().for_each(|end| counters.count(Tally::Done, end.kind, 1));
        self.inner.count(session, Writer::Finish(self.engine), &counters).await?;
        Ok(Then::Commit(Some(outcomes)))
    }
}

impl FinishTxn<'_> {
    async fn judge(&self, session: &mut ClientSession) -> Result<Vec<Finished>, Halt> {
        let ids: Vec<&str> = self.ends.iter().map(|end| end.lease.id.as_str()).collect();
        let mut cursor =
            self.inner.jobs_coll().clone_with_type::<StoredJob>().find(doc! { "_id": { "$in": ids } }).session(&mut *session).await?;
        let stored: Vec<StoredJob> = cursor.stream(session).try_collect().await?;
        let judge = |end: &Finish| {
            let stored = stored.iter().find(|s| s.job.id == end.lease.id);
            rules::judge_finish(end, stored.map(|s| &s.job), stored.and_then(|s| s.ended.as_deref()))
        };
        Ok(self.ends.iter().map(judge).collect())
    }
}

/// One statement for the jobs of one claim, attempt and kind: a group has few.
fn finish_statements(ends: &[&Finish]) -> Vec<Document> {
    let mut groups: Vec<(&str, u32, JobKind, Vec<&str>)> = Vec::new();
    for end in ends {
        let (token, attempt) = (end.lease.token.as_str(), end.lease.attempt);
        match groups.iter_mut().find(|(t, a, k, _)| (*t, *a, *k) == (token, attempt, end.kind)) {
            Some((.., ids)) => ids.push(&end.lease.id),
            None => groups.push((token, attempt, end.kind, vec![&end.lease.id])),
        }
    }
    let state = queue::transition(JobState::Running, JobEvent::Committed).unwrap_or(JobState::Done);
    let statement = |(token, attempt, kind, ids): (&str, u32, JobKind, Vec<&str>)| {
        let filter = doc! {
            "_id": { "$in": ids }, "state": word(JobState::Running), "lease.token": token, "attempt": attempt, "kind": word(kind),
        };
        update_many(filter, doc! { "state": word(state), "finished_ms": now(), "ended": text(token), "lease": Bson::Null })
    };
    groups.into_iter().map(statement).collect()
}

/// The update of a job whose attempt ended without success; one that an operator wanted to stop is cancelled by it.
fn failed_update(how: &Failed) -> UpdateModifications {
    let (event, delay, error) = rules::ending(how);
    let mut set = doc! { "ended": "$lease.token", "lease": Bson::Null };
    match event {
        JobEvent::Doomed | JobEvent::Stopped => {
            set.insert("finished_ms", now());
        }
        // Not begun, or stopped for no fault of its own: it keeps its place in line.
        JobEvent::Returned => {}
        _ => set.extend(reschedule(millis(delay))),
    }
    if matches!(how, Failed::GiveBack { .. }) {
        set.insert("attempt", doc! { "$subtract": ["$attempt", 1] });
    }
    if let Some(state) = queue::transition(JobState::Running, event) {
        set.insert("state", word(state));
    }
    if let Some(error) = error {
        set.extend(with_error("$lease.engine".into(), error));
    }
    UpdateModifications::Pipeline(vec![doc! { "$set": set }, unless_wanted()])
}

/// The stage that cancels what was to run again or to be kept, when an operator has asked for it.
pub(super) fn unless_wanted() -> Document {
    let unwanted = doc! { "$eq": ["$cancel_requested", true] };
    let or = |then: Bson, field: &str| doc! { "$cond": [unwanted.clone(), then, field] };
    doc! { "$set": { "state": or(word(JobState::Cancelled), "$state"), "finished_ms": or(now(), "$finished_ms") } }
}

struct FailTxn<'a> {
    inner: &'a Inner,
    lease: &'a JobLease,
    how: &'a Failed,
    guard: Document,
    update: UpdateModifications,
}

#[async_trait]
impl Body for FailTxn<'_> {
    type Out = bool;

    async fn run(&mut self, session: &mut ClientSession) -> Result<Then<bool>, Halt> {
        let inner = self.inner;
        let before: Option<Job> =
            inner.jobs_coll().find_one_and_update(self.guard.clone(), self.update.clone()).session(&mut *session).await?;
        let Some(job) = before else { return Ok(Then::Abort(false)) };
        if job.kind == JobKind::Sync && *self.how == Failed::Cancelled {
            return Err(rules::is_sync(&self.lease.id).into());
        }
        let mut counters = Counters::default();
        if matches!(self.how, Failed::Retry { .. } | Failed::Dead { .. }) {
            counters.count(Tally::Failed, job.kind, 1);
        }
        if job.cancel_requested || *self.how == Failed::Cancelled {
            counters.count(Tally::Cancelled, job.kind, 1);
        } else if matches!(self.how, Failed::Dead { .. }) {
            counters.count(Tally::Dead, job.kind, 1);
            inner.settle_status(session, &job.branch).await?;
        }
        let engine = job.lease.as_ref().map_or("", |lease| lease.engine.as_str());
        inner.count(session, Writer::Fail(engine), &counters).await?;
        Ok(Then::Commit(true))
    }
}
