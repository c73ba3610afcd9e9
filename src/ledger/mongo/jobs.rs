//! Owns: reading jobs, sweeping finished ones, and the status of a branch that follows from its dead ones.
//! Does not own: claiming (`claim`), the ends of attempts (`finish`, `commit`), the operator's hand (`operate`).

use std::time::Duration;

use bson::{Bson, Document, doc};
use futures_util::TryStreamExt;
use mongodb::ClientSession;
use mongodb::error::Error;
use mongodb::options::Hint;

use super::super::rules::{self, Health};
use super::super::{
    Base, BaseState, Branch, BranchStatus, Capture, CaptureState, Job, JobFilter, JobKind, JobState, SegmentKind, SegmentRow,
};
use super::classify::{code, fault_of};
use super::indexes::{JOBS_DEAD, JOBS_DEAD_OF_BRANCH, JOBS_READY, JOBS_RUNNING, JOBS_SCHEDULED};
use super::rows::{int, text, word, words};
use super::txn::Halt;
use super::{Inner, millis};
use crate::fault::{Fault, Result};

/// How long the server may look for a page: a filter that fits next to nothing among millions of finished jobs must not keep it busy.
const LIST_TIME: Duration = Duration::from_secs(10);
/// The server's code of a statement that took longer than it was allowed to.
const MAX_TIME_EXPIRED: i32 = 50;
/// Documents that one delete of a sweep removes: each is an oplog entry.
const SWEEP_CHUNK: usize = 500;

impl Inner {
    pub(super) async fn job(&self, id: &str) -> Result<Option<Job>> {
        self.jobs_coll().find_one(doc! { "_id": id }).await.map_err(fault_of)
    }

    pub(super) async fn jobs(&self, filter: &JobFilter, max: usize) -> Result<Vec<Job>> {
        let nowhere = filter.engine.is_some() && filter.state.is_some_and(|state| state != JobState::Running);
        if max == 0 || nowhere {
            return Ok(Vec::new());
        }
        let mut query = query(filter);
        // Always a bound on the id: listing walks ids in order, so a page costs a page.
        query.insert("_id", doc! { "$gt": filter.after.as_deref().unwrap_or("") });
        let limit = i64::try_from(max).unwrap_or(i64::MAX);
        if let Some(index) = sorted_elsewhere(filter) {
            // By time, not by id: the ids are sorted from the index, and the page is read by them.
            let ids = self.sorted_ids(query.clone(), index, limit).await?;
            query.insert("_id", doc! { "$in": ids });
        }
        let jobs = self.jobs_coll();
        let newest = doc! { "errors": { "$slice": -1 } };
        let page = jobs.find(query).hint(page_hint(filter)).sort(doc! { "_id": 1 }).projection(newest).limit(limit).max_time(LIST_TIME);
        let cursor = page.await.map_err(too_long)?;
        cursor.try_collect().await.map_err(too_long)
    }

    async fn sorted_ids(&self, query: Document, index: &str, limit: i64) -> Result<Vec<Bson>> {
        let cursor = self
            .jobs_coll()
            .clone_with_type::<Document>()
            .find(query)
            .hint(Hint::Name(index.to_owned()))
            .sort(doc! { "_id": 1 })
            .projection(doc! { "_id": 1 })
            .limit(limit)
            .max_time(LIST_TIME)
            .await
            .map_err(too_long)?;
        let found: Vec<Document> = cursor.try_collect().await.map_err(too_long)?;
        Ok(found.into_iter().filter_map(|mut d| d.remove("_id")).collect())
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
        // What a later base has is not missed any more.
        let complete = doc! { "branch": id, "state": word(BaseState::Complete) };
        let base: Option<Base> = self.bases_coll().find_one(complete).sort(doc! { "seq": -1 }).session(&mut *session).await?;
        let since = int(base.map_or(0, |base| base.seq));
        let gap = doc! { "kind": word(SegmentKind::Gap), "branch": id, "first_seq": { "$gt": since } };
        let gap: Option<SegmentRow> = self.segments_coll().find_one(gap).sort(doc! { "first_seq": 1 }).session(&mut *session).await?;
        let failed = doc! { "branch": id, "state": word(CaptureState::Failed) };
        let failed: Option<Capture> = self.captures_coll().find_one(failed).session(&mut *session).await?;
        let (status, reason) = rules::status(&Health {
            deleted: branch.deleted_ms.is_some(),
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

fn too_long(error: Error) -> Fault {
    if code(&error) == Some(MAX_TIME_EXPIRED) {
        return Fault::rejected(format!(
            "looking for such jobs takes longer than {LIST_TIME:?}: narrow the filter by a state, or page on from a later job"
        ));
    }
    fault_of(error)
}

/// The conditions of a filter, without its place among the pages.
pub(super) fn query(filter: &JobFilter) -> Document {
    let mut query = Document::new();
    // Nothing but a running job is at an engine.
    if let Some(state) = filter.state.or(filter.engine.as_ref().map(|_| JobState::Running)) {
        query.insert("state", word(state));
    }
    if let Some(kind) = filter.kind {
        query.insert("kind", word(kind));
    }
    if let Some(branch) = &filter.branch {
        query.insert("branch", branch);
    }
    if let Some(engine) = &filter.engine {
        query.insert("lease.engine", engine);
    }
    if let Some(error) = &filter.error {
        let last = doc! { "$toLower": { "$ifNull": [{ "$last": "$errors.error" }, ""] } };
        let at = doc! { "$indexOfCP": [last, text(&error.to_ascii_lowercase())] };
        query.insert("$expr", doc! { "$gte": [at, 0] });
    }
    query
}

/// The index of a state whose jobs lie in another order than that of their ids.
fn sorted_elsewhere(filter: &JobFilter) -> Option<&'static str> {
    match filter.state {
        Some(JobState::Ready) => Some(JOBS_READY),
        Some(JobState::Scheduled) => Some(JOBS_SCHEDULED),
        _ => None,
    }
}

/// Where a page is read from: few jobs run or are dead, and their indexes have no others.
fn page_hint(filter: &JobFilter) -> Hint {
    let name = |name: &str| Hint::Name(name.to_owned());
    match filter.state {
        None if filter.engine.is_some() => name(JOBS_RUNNING),
        Some(JobState::Running) => name(JOBS_RUNNING),
        Some(JobState::Dead) if filter.branch.is_some() => name(JOBS_DEAD_OF_BRANCH),
        Some(JobState::Dead) => name(JOBS_DEAD),
        _ => Hint::Keys(doc! { "_id": 1 }),
    }
}
