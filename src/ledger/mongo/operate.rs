//! Owns: the operator's hand on jobs: retry and cancel, one by one and by filter.
//! Does not own: discarding a sync job (`commit`: it leaves a gap), what may be done to which state (`queue`, `rules`).

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use async_trait::async_trait;
use bson::{Bson, Document, doc};
use futures_util::TryStreamExt;
use mongodb::ClientSession;
use mongodb::options::{Hint, UpdateModifications};
use serde::Deserialize;

use super::super::rules;
use super::super::status::Tally;
use super::super::{BULK_SAMPLE, BranchId, Bulk, BulkOutcome, Cancelled, Counters, Job, JobFilter, JobId, JobKind, JobState};
use super::Inner;
use super::classify::{fault_of, is_duplicate};
use super::counters::Writer;
use super::indexes::{JOBS_DEAD, JOBS_READY, JOBS_RUNNING, JOBS_SCHEDULED};
use super::jobs::query;
use super::rows::{now, reschedule, word, words};
use super::txn::{Body, Halt, Then};
use crate::fault::{Fault, Result};
use crate::queue::{self, JobEvent};
use crate::runtime::clock;

/// Jobs of one transaction of a bulk action.
const BULK_CHUNK: usize = 500;
/// After this time a bulk action ends and says that there may be more: well below the limit of a call.
const BULK_TIME: Duration = Duration::from_secs(10);

impl Inner {
    pub(super) async fn retry_job(&self, id: &str) -> Result<bool> {
        let mut body = RetryTxn { inner: self, id, hindered: false };
        match self.transact(&mut body).await {
            Err(_) if body.hindered => Err(rules::key_taken(id)),
            outcome => outcome,
        }
    }

    pub(super) async fn cancel_job(&self, id: &str) -> Result<Cancelled> {
        self.transact(&mut CancelTxn { inner: self, id }).await
    }

    pub(super) async fn bulk(&self, action: Bulk, filter: &JobFilter, max: usize, dry_run: bool) -> Result<BulkOutcome> {
        let end = clock::now() + BULK_TIME;
        let mut out = BulkOutcome::default();
        // A job that moves on while we work is met again in a later state: these come in the order of its life.
        for state in rules::bulk_states(action, filter) {
            let mut query = query(&JobFilter { state: Some(state), ..filter.clone() });
            if action == Bulk::Cancel {
                query.insert("cancel_requested", doc! { "$ne": true });
            }
            let rows = self.jobs_coll().clone_with_type::<Found>();
            let cursor = rows.find(query).hint(Hint::Name(index_of(state).to_owned())).projection(doc! { "kind": 1, "branch": 1 });
            let mut cursor = cursor.batch_size(u32::try_from(BULK_CHUNK).unwrap_or(u32::MAX)).await.map_err(fault_of)?;
            let mut chunk: Vec<Found> = Vec::new();
            while let Some(found) = cursor.try_next().await.map_err(fault_of)? {
                if !rules::bulk_takes(action, filter, found.kind) {
                    continue;
                }
                if out.matched >= max as u64 || clock::now() >= end {
                    out.more = true;
                    break;
                }
                out.matched += 1;
                if out.sample.len() < BULK_SAMPLE {
                    out.sample.push(found.id.clone());
                }
                if action == Bulk::Cancel && found.kind == JobKind::Sync {
                    out.discard.push(found.id);
                } else if !dry_run {
                    chunk.push(found);
                }
                if chunk.len() >= BULK_CHUNK {
                    self.bulk_chunk(action, state, &std::mem::take(&mut chunk), &mut out).await?;
                }
            }
            self.bulk_chunk(action, state, &chunk, &mut out).await?;
            if out.more {
                break;
            }
        }
        Ok(out)
    }

    async fn bulk_chunk(&self, action: Bulk, state: JobState, chunk: &[Found], out: &mut BulkOutcome) -> Result<()> {
        if chunk.is_empty() {
            return Ok(());
        }
        if state == JobState::Running {
            let ids: Vec<&str> = chunk.iter().map(|found| found.id.as_str()).collect();
            let theirs = doc! { "_id": { "$in": ids }, "state": word(JobState::Running) };
            let asked = doc! { "$set": { "cancel_requested": true } };
            out.requested +=
                self.jobs_coll().update_many(theirs, asked).hint(Hint::Keys(doc! { "_id": 1 })).await.map_err(fault_of)?.matched_count;
            return Ok(());
        }
        let mut body = BulkTxn { inner: self, action, state, chunk, hindered: false };
        match self.transact(&mut body).await {
            Ok(changed) => out.changed += changed,
            // One of them has a unique key that is taken: find out which, and leave it.
            Err(_) if body.hindered => {
                for found in chunk {
                    match self.retry_job(&found.id).await {
                        Ok(changed) => out.changed += u64::from(changed),
                        Err(fault) if fault.kind == crate::fault::Kind::Rejected => out.hindered += 1,
                        Err(fault) => return Err(fault),
                    }
                }
            }
            Err(fault) => return Err(fault),
        }
        Ok(())
    }
}

/// What a bulk action needs to know of a job.
#[derive(Debug, Deserialize)]
struct Found {
    #[serde(rename = "_id")]
    id: JobId,
    kind: JobKind,
    branch: BranchId,
}

/// Where the jobs of a state lie without others.
fn index_of(state: JobState) -> &'static str {
    match state {
        JobState::Scheduled => JOBS_SCHEDULED,
        JobState::Ready => JOBS_READY,
        JobState::Running => JOBS_RUNNING,
        JobState::Dead => JOBS_DEAD,
        JobState::Done | JobState::Cancelled => "finished",
    }
}

/// What makes a job run again as if it were new; its history stays.
fn revived() -> Document {
    let mut set = reschedule(0);
    set.extend(doc! {
        "state": word(JobState::Ready), "attempt": 0, "crashes": 0, "finished_ms": Bson::Null,
        "parked": "$$REMOVE", "cancel_requested": "$$REMOVE",
    });
    set
}

/// What ends a job that does not run.
fn cancelled() -> Document {
    doc! { "state": word(JobState::Cancelled), "finished_ms": now(), "parked": "$$REMOVE" }
}

struct RetryTxn<'a> {
    inner: &'a Inner,
    id: &'a str,
    /// The unique index refused it.
    hindered: bool,
}

#[async_trait]
impl Body for RetryTxn<'_> {
    type Out = bool;

    async fn run(&mut self, session: &mut ClientSession) -> Result<Then<bool>, Halt> {
        let guard = doc! { "_id": self.id, "state": { "$in": words(&queue::states_before(JobEvent::Revived)) } };
        let update = UpdateModifications::Pipeline(vec![doc! { "$set": revived() }]);
        let stored = self.inner.jobs_coll().find_one_and_update(guard, update).session(&mut *session).await;
        self.hindered = stored.as_ref().is_err_and(is_duplicate);
        let Some(job): Option<Job> = stored? else { return Ok(Then::Abort(false)) };
        self.inner.settle_status(session, &job.branch).await?;
        let mut counters = Counters::default();
        counters.count(Tally::Revived, job.kind, 1);
        self.inner.count(session, Writer::Anybody, &counters).await?;
        Ok(Then::Commit(true))
    }
}

struct CancelTxn<'a> {
    inner: &'a Inner,
    id: &'a str,
}

#[async_trait]
impl Body for CancelTxn<'_> {
    type Out = Cancelled;

    async fn run(&mut self, session: &mut ClientSession) -> Result<Then<Cancelled>, Halt> {
        let jobs = self.inner.jobs_coll();
        let this = doc! { "_id": self.id };
        let job = jobs.find_one(this.clone()).session(&mut *session).await?;
        let job = job.ok_or_else(|| Fault::missing(format!("there is no job {}", self.id)))?;
        if job.kind == JobKind::Sync {
            return Err(rules::is_sync(self.id).into());
        }
        match job.state {
            JobState::Running if job.cancel_requested => Ok(Then::Abort(Cancelled::Requested)),
            JobState::Running => {
                jobs.update_one(this, doc! { "$set": { "cancel_requested": true } }).session(session).await?;
                Ok(Then::Commit(Cancelled::Requested))
            }
            JobState::Cancelled => Ok(Then::Abort(Cancelled::Already)),
            JobState::Done => Ok(Then::Abort(Cancelled::TooLate)),
            JobState::Scheduled | JobState::Ready | JobState::Dead => {
                let update = UpdateModifications::Pipeline(vec![doc! { "$set": cancelled() }]);
                jobs.update_one(this, update).session(&mut *session).await?;
                let mut counters = Counters::default();
                counters.count(Tally::Cancelled, job.kind, 1);
                self.inner.count(session, Writer::Anybody, &counters).await?;
                Ok(Then::Commit(Cancelled::Now))
            }
        }
    }
}

struct BulkTxn<'a> {
    inner: &'a Inner,
    action: Bulk,
    /// All of them were found in this one; those that have left it are left alone.
    state: JobState,
    chunk: &'a [Found],
    /// The unique index refused one of them.
    hindered: bool,
}

#[async_trait]
impl Body for BulkTxn<'_> {
    type Out = u64;

    async fn run(&mut self, session: &mut ClientSession) -> Result<Then<u64>, Halt> {
        let (set, tally) = match self.action {
            Bulk::Retry => (revived(), Tally::Revived),
            Bulk::Cancel => (cancelled(), Tally::Cancelled),
        };
        let mut by_kind: BTreeMap<JobKind, Vec<&str>> = BTreeMap::new();
        for found in self.chunk {
            by_kind.entry(found.kind).or_default().push(&found.id);
        }
        let mut counters = Counters::default();
        let mut changed = 0;
        for (kind, ids) in by_kind {
            let guard = doc! { "_id": { "$in": ids }, "state": word(self.state) };
            let update = UpdateModifications::Pipeline(vec![doc! { "$set": set.clone() }]);
            let hint = Hint::Keys(doc! { "_id": 1 });
            let done = self.inner.jobs_coll().update_many(guard, update).hint(hint).session(&mut *session).await;
            self.hindered = done.as_ref().is_err_and(is_duplicate);
            let n = done?.modified_count;
            counters.count(tally, kind, n);
            changed += n;
        }
        if changed == 0 {
            return Ok(Then::Abort(0));
        }
        // Only dead sync jobs have made a status.
        let sync = self.chunk.iter().filter(|found| self.state == JobState::Dead && found.kind == JobKind::Sync);
        for branch in sync.map(|found| found.branch.as_str()).collect::<BTreeSet<_>>() {
            self.inner.settle_status(session, branch).await?;
        }
        self.inner.count(session, Writer::Anybody, &counters).await?;
        Ok(Then::Commit(changed))
    }
}
