//! Owns: the end of attempts without success, the operator's hand on jobs, listing, counting and sweeping.
//! Does not own: claiming (`claim`) and committing (`commit`).

use std::time::Duration;

use async_trait::async_trait;
use bson::{Bson, Document, doc};
use futures_util::TryStreamExt;
use mongodb::ClientSession;
use mongodb::options::{Hint, ReturnDocument, UpdateModifications};

use super::super::rules::{self, Health};
use super::super::{
    Branch, BranchStatus, Capture, CaptureState, Failed, Job, JobFilter, JobKind, JobLease, JobState, QueueDepth, SegmentKind, SegmentRow,
};
use super::classify::fault_of;
use super::indexes::{JOBS_DEAD, JOBS_READY, JOBS_RUNNING, JOBS_SCHEDULED};
use super::rows::{held_by, now, reschedule, with_error, word, words};
use super::txn::{Body, Halt, Then};
use super::{Inner, millis};
use crate::fault::Result;
use crate::queue::{self, JobEvent};

/// Documents that one delete of a sweep removes: each is an oplog entry.
const SWEEP_CHUNK: usize = 500;

impl Inner {
    pub(super) async fn fail(&self, lease: &JobLease, how: &Failed) -> Result<bool> {
        let guard = held_by(lease);
        let update = failed_update(how);
        if matches!(how, Failed::Dead { .. }) {
            let mut body = DeadTxn { inner: self, guard, update };
            if self.transact(&mut body).await? {
                return Ok(true);
            }
        } else {
            let done = self.jobs_coll().update_one(guard, update).await.map_err(fault_of)?;
            if done.matched_count > 0 {
                return Ok(true);
            }
        }
        // Our own earlier call, whose answer was lost?
        let ended = doc! { "_id": &lease.id, "ended": &lease.token };
        Ok(self.jobs_coll().clone_with_type::<Document>().find_one(ended).await.map_err(fault_of)?.is_some())
    }

    pub(super) async fn retry_job(&self, id: &str) -> Result<bool> {
        self.transact(&mut RetryTxn { inner: self, id }).await
    }

    pub(super) async fn job(&self, id: &str) -> Result<Option<Job>> {
        self.jobs_coll().find_one(doc! { "_id": id }).await.map_err(fault_of)
    }

    pub(super) async fn jobs(&self, filter: &JobFilter, max: usize) -> Result<Vec<Job>> {
        if max == 0 {
            return Ok(Vec::new());
        }
        let mut query = Document::new();
        if let Some(state) = filter.state {
            query.insert("state", word(state));
        }
        if let Some(kind) = filter.kind {
            query.insert("kind", word(kind));
        }
        if let Some(branch) = &filter.branch {
            query.insert("branch", branch);
        }
        // Always a bound on the id: listing walks ids in order, so a page costs a page.
        query.insert("_id", doc! { "$gt": filter.after.as_deref().unwrap_or("") });
        let limit = i64::try_from(max).unwrap_or(i64::MAX);
        let cursor = self.jobs_coll().find(query).sort(doc! { "_id": 1 }).limit(limit).await.map_err(fault_of)?;
        cursor.try_collect().await.map_err(fault_of)
    }

    /// Counts over the partial index of each state, which holds nothing else and is not fetched from.
    pub(super) async fn depth(&self) -> Result<QueueDepth> {
        let (scheduled, ready, running, dead) = tokio::try_join!(
            self.count(JobState::Scheduled, JOBS_SCHEDULED),
            self.count(JobState::Ready, JOBS_READY),
            self.count(JobState::Running, JOBS_RUNNING),
            self.count(JobState::Dead, JOBS_DEAD),
        )?;
        Ok(QueueDepth { scheduled, ready, running, dead })
    }

    async fn count(&self, state: JobState, index: &str) -> Result<u64> {
        let hint = Hint::Name(index.to_owned());
        let of = doc! { "state": word(state) };
        self.jobs_coll().count_documents(of).hint(hint).limit(rules::DEPTH_LIMIT + 1).await.map_err(fault_of)
    }

    pub(super) async fn sweep_jobs(&self, age: Duration, max: usize) -> Result<u64> {
        let before = self.now_ms().await?.saturating_sub(millis(age));
        let over = doc! {
            "state": { "$in": words(&[JobState::Done, JobState::Cancelled]) }, "finished_ms": { "$lt": before },
        };
        let (mut swept, mut left) = (0u64, max);
        while left > 0 {
            let chunk = left.min(SWEEP_CHUNK);
            let cursor = self
                .jobs_coll()
                .clone_with_type::<Document>()
                .find(over.clone())
                .sort(doc! { "finished_ms": 1, "_id": 1 })
                .projection(doc! { "_id": 1 })
                .limit(i64::try_from(chunk).unwrap_or(i64::MAX))
                .await
                .map_err(fault_of)?;
            let found: Vec<Document> = cursor.try_collect().await.map_err(fault_of)?;
            left -= chunk;
            let ids: Vec<&Bson> = found.iter().filter_map(|d| d.get("_id")).collect();
            if ids.is_empty() {
                break;
            }
            let mut these = over.clone();
            these.insert("_id", doc! { "$in": ids });
            let hint = Hint::Keys(doc! { "_id": 1 });
            swept += self.jobs_coll().delete_many(these).hint(hint).await.map_err(fault_of)?.deleted_count;
        }
        Ok(swept)
    }

    /// Status and reason of a branch from what is stored, in the caller's transaction.
    ///
    /// SUBTLE: the branch document is written first and always. Two operators that revive the last two dead jobs side by side would each see
    /// the other's job dead and leave the branch stalled; the write makes them conflict.
    pub(super) async fn settle_status(&self, session: &mut ClientSession, id: &str) -> Result<(), Halt> {
        let touch = doc! { "$inc": { "status_revision": 1i64 } };
        let branch: Option<Branch> = self.branches_coll().find_one_and_update(doc! { "_id": id }, touch).session(&mut *session).await?;
        let Some(branch) = branch else { return Ok(()) };
        let dead = doc! { "state": word(JobState::Dead), "branch": id, "kind": word(JobKind::Sync) };
        let dead: Option<Job> = self.jobs_coll().find_one(dead).session(&mut *session).await?;
        let gap = doc! { "kind": word(SegmentKind::Gap), "branch": id };
        let gap: Option<SegmentRow> = self.segments_coll().find_one(gap).sort(doc! { "first_seq": 1 }).session(&mut *session).await?;
        let failed = doc! { "branch": id, "state": word(CaptureState::Failed) };
        let failed: Option<Capture> = self.captures_coll().find_one(failed).session(&mut *session).await?;
        let (status, reason) = rules::status(&Health {
            archived: branch.status == BranchStatus::Archived,
            failed: failed.map(|c| c.reason.unwrap_or_default()),
            dead: dead.map(|j| (j.id, j.errors.last().map(|e| e.error.clone()).unwrap_or_default())),
            gap: gap.map(|g| (g.first_seq, g.last_seq)),
        });
        let set = doc! { "$set": { "status": word(status), "reason": reason } };
        self.branches_coll().update_one(doc! { "_id": id }, set).session(session).await?;
        Ok(())
    }
}

/// The update of a job whose attempt ended without success.
fn failed_update(how: &Failed) -> UpdateModifications {
    let mut set = doc! { "ended": "$lease.token", "lease": Bson::Null };
    let (event, error) = match how {
        Failed::Retry { delay, error } => {
            set.extend(reschedule(millis(*delay)));
            (JobEvent::Postponed, Some(error))
        }
        Failed::GiveBack { delay, error } => {
            set.extend(reschedule(millis(*delay)));
            set.insert("attempt", doc! { "$subtract": ["$attempt", 1] });
            (if delay.is_zero() { JobEvent::Returned } else { JobEvent::Postponed }, error.as_ref())
        }
        Failed::Dead { error } => {
            set.insert("finished_ms", now());
            (JobEvent::Doomed, Some(error))
        }
    };
    if let Some(state) = queue::transition(JobState::Running, event) {
        set.insert("state", word(state));
    }
    if let Some(error) = error {
        set.extend(with_error("$lease.engine".into(), error));
    }
    UpdateModifications::Pipeline(vec![doc! { "$set": set }])
}

struct DeadTxn<'a> {
    inner: &'a Inner,
    guard: Document,
    update: UpdateModifications,
}

#[async_trait]
impl Body for DeadTxn<'_> {
    type Out = bool;

    async fn run(&mut self, session: &mut ClientSession) -> Result<Then<bool>, Halt> {
        let jobs = self.inner.jobs_coll();
        let dead: Option<Job> = jobs
            .find_one_and_update(self.guard.clone(), self.update.clone())
            .return_document(ReturnDocument::After)
            .session(&mut *session)
            .await?;
        let Some(job) = dead else { return Ok(Then::Abort(false)) };
        self.inner.settle_status(session, &job.branch).await?;
        Ok(Then::Commit(true))
    }
}

struct RetryTxn<'a> {
    inner: &'a Inner,
    id: &'a str,
}

#[async_trait]
impl Body for RetryTxn<'_> {
    type Out = bool;

    async fn run(&mut self, session: &mut ClientSession) -> Result<Then<bool>, Halt> {
        let guard = doc! { "_id": self.id, "state": { "$in": words(&queue::states_before(JobEvent::Revived)) } };
        let mut set = reschedule(0);
        set.extend(doc! { "state": word(JobState::Ready), "attempt": 0, "crashes": 0, "finished_ms": Bson::Null });
        let update = UpdateModifications::Pipeline(vec![doc! { "$set": set }]);
        let revived: Option<Job> = self.inner.jobs_coll().find_one_and_update(guard, update).session(&mut *session).await?;
        let Some(job) = revived else { return Ok(Then::Abort(false)) };
        self.inner.settle_status(session, &job.branch).await?;
        Ok(Then::Commit(true))
    }
}
