//! Owns: what happens to branches besides their growth: forks, names, archive, deletion, attached captures, imports.
//! Does not own: heads and totals (`commit`), captures (`captures`), bases (`bases`).

use async_trait::async_trait;
use bson::{Bson, Document, doc};
use futures_util::TryStreamExt;
use mongodb::ClientSession;
use mongodb::options::{Hint, UpdateModifications};

use super::super::rules;
use super::super::{
    Attach, Branch, BranchStatus, Capture, CaptureGap, CaptureState, Checkpointed, Import, Job, JobLease, JobState, Proven, SegmentRow,
};
use super::Inner;
use super::classify::{fault_of, is_duplicate};
use super::rows::{document, held_by, int, literal, now, word};
use super::txn::{Body, Halt, Then};
use crate::fault::{Fault, Result};

/// Rows that one call of a purge removes of a kind.
const PURGE_ROWS: i64 = 5_000;

impl Inner {
    pub(super) async fn record_gap(&self, gap: &CaptureGap) -> Result<Checkpointed> {
        rules::check_capture_gap(gap)?;
        self.transact(&mut GapTxn { inner: self, gap }).await
    }

    pub(super) async fn touch(&self, lease: &JobLease, progressed: bool) -> Result<bool> {
        let mut set = doc! { "lease.started": true, "lease.started_ms": now() };
        if progressed {
            set.insert("crashes", 0);
        }
        let set = UpdateModifications::Pipeline(vec![doc! { "$set": set }]);
        Ok(self.jobs_coll().update_one(held_by(lease), set).await.map_err(fault_of)?.matched_count > 0)
    }

    pub(super) async fn create_branch(&self, branch: &Branch, ttl_ms: Option<i64>) -> Result<()> {
        let taken = || Fault::rejected(format!("branch {} exists already", branch.name));
        let mut body = ForkTxn { inner: self, branch, ttl_ms, taken: false };
        match self.transact(&mut body).await {
            Ok(true) => Ok(()),
            Ok(false) => Err(taken()),
            Err(_) if body.taken => Err(taken()),
            Err(fault) => Err(fault),
        }
    }

    pub(super) async fn children(&self, branch: &str, max: usize) -> Result<Vec<Branch>> {
        let limit = i64::try_from(max.max(1)).unwrap_or(i64::MAX);
        let cursor = self.branches_coll().find(children_of(branch)).sort(doc! { "name": 1 }).limit(limit).await.map_err(fault_of)?;
        cursor.try_collect().await.map_err(fault_of)
    }

    pub(super) async fn branches_due(&self, now_ms: i64, deleted_before_ms: i64) -> Result<Vec<Branch>> {
        let mut due = Vec::new();
        for which in [
            doc! { "deleted_ms": { "$gt": 0, "$lte": deleted_before_ms } },
            doc! { "deleted_ms": Bson::Null, "expires_ms": { "$gt": 0, "$lte": now_ms } },
        ] {
            let cursor = self.branches_coll().find(which).limit(PURGE_ROWS).await.map_err(fault_of)?;
            due.extend(cursor.try_collect::<Vec<Branch>>().await.map_err(fault_of)?);
        }
        Ok(due)
    }

    pub(super) async fn rename_branch(&self, id: &str, name: &str) -> Result<()> {
        let mut body = RenameTxn { inner: self, id, name, taken: false };
        match self.transact(&mut body).await {
            Err(_) if body.taken => Err(Fault::rejected(format!("branch {name} exists already"))),
            outcome => outcome,
        }
    }

    pub(super) async fn archive_branch(&self, id: &str, archived: bool) -> Result<()> {
        self.transact(&mut ArchiveTxn { inner: self, id, archived }).await
    }

    pub(super) async fn delete_branch(&self, id: &str) -> Result<bool> {
        self.transact(&mut DeleteTxn { inner: self, id }).await
    }

    /// The branch's own row goes last: until then a purge that was cut off is found and goes on.
    pub(super) async fn purge_branch(&self, id: &str) -> Result<bool> {
        let Some(branch) = self.branch(id).await? else { return Ok(true) };
        if branch.deleted_ms.is_none() {
            return Err(Fault::rejected(format!("branch {} is not deleted", branch.name)));
        }
        for base in self.bases_of(doc! { "branch": id }).await? {
            self.remove_chunks(&base.id).await?;
        }
        let of = doc! { "branch": id };
        let mut left = self.purge_rows("bases", of.clone()).await?;
        left |= self.purge_rows("segments", of.clone()).await?;
        let jobs = doc! { "branch": id, "state": { "$ne": word(JobState::Running) } };
        let found: Vec<Job> = {
            let cursor = self.jobs_coll().find(jobs.clone()).limit(PURGE_ROWS).await.map_err(fault_of)?;
            cursor.try_collect().await.map_err(fault_of)?
        };
        for job in found.iter().filter(|job| job.sync.is_some()) {
            let ids = super::claim::payload_ids(&job.id, job.sync.as_ref().map_or(0, |sync| sync.payload_parts));
            self.payloads_coll().delete_many(doc! { "_id": { "$in": ids } }).await.map_err(fault_of)?;
        }
        left |= self.purge_rows("jobs", jobs).await?;
        if left {
            return Ok(false);
        }
        self.captures_coll().delete_many(of).await.map_err(fault_of)?;
        self.branches_coll().delete_one(doc! { "_id": id, "deleted_ms": { "$ne": Bson::Null } }).await.map_err(fault_of)?;
        Ok(true)
    }

    /// True when there may be more.
    async fn purge_rows(&self, coll: &str, which: Document) -> Result<bool> {
        let rows = self.db.collection::<Document>(coll);
        let found = rows.find(which.clone()).projection(doc! { "_id": 1 }).limit(PURGE_ROWS).await.map_err(fault_of)?;
        let found: Vec<Document> = found.try_collect().await.map_err(fault_of)?;
        let ids: Vec<&Bson> = found.iter().filter_map(|row| row.get("_id")).collect();
        if ids.is_empty() {
            return Ok(false);
        }
        let full = i64::try_from(ids.len()).unwrap_or(i64::MAX) >= PURGE_ROWS;
        let mut these = which;
        these.insert("_id", doc! { "$in": ids });
        rows.delete_many(these).hint(Hint::Keys(doc! { "_id": 1 })).await.map_err(fault_of)?;
        Ok(full)
    }

    pub(super) async fn attach_capture(&self, new: &Attach) -> Result<()> {
        let mut body = AttachTxn { inner: self, new, taken: false };
        match self.transact(&mut body).await {
            Err(_) if body.taken => Err(Fault::rejected(format!("the range of {} is taken: start again", new.row.key))),
            outcome => outcome,
        }
    }

    pub(super) async fn note_proven(&self, branch: &str, proven: &Proven) -> Result<()> {
        let older = doc! { "_id": branch, "$or": [{ "proven": Bson::Null }, { "proven.seq": { "$lte": int(proven.seq) } }] };
        self.branches_coll().update_one(older, doc! { "$set": { "proven": document(proven)? } }).await.map_err(fault_of)?;
        Ok(())
    }

    pub(super) async fn import_segments(&self, rows: &[SegmentRow]) -> Result<()> {
        if rows.is_empty() {
            return Ok(());
        }
        let stored: Result<Vec<Document>> = rows.iter().map(document).collect();
        let all = self.segments_coll().clone_with_type::<Document>();
        match all.insert_many(stored?).ordered(false).await {
            Err(e) if is_duplicate(&e) => Ok(()), // an earlier rebuild that was cut off
            other => other.map(|_| ()).map_err(fault_of),
        }
    }

    pub(super) async fn import_branch(&self, import: &Import) -> Result<bool> {
        self.transact(&mut ImportTxn { inner: self, import }).await
    }

    /// Stops the capture of a branch, in the caller's transaction: the checkpoint's condition fails from then on.
    async fn stop_capture(&self, session: &mut ClientSession, branch: &str, reason: &str) -> Result<(), Halt> {
        let set = doc! { "$set": { "state": word(CaptureState::Stopped), "reason": reason } };
        self.captures_coll().update_many(doc! { "branch": branch }, set).session(session).await?;
        Ok(())
    }
}

fn children_of(branch: &str) -> Document {
    doc! { "parent.id": branch, "deleted_ms": Bson::Null }
}

fn no_branch(id: &str) -> Halt {
    Fault::missing(format!("branch {id} does not exist")).into()
}

struct GapTxn<'a> {
    inner: &'a Inner,
    gap: &'a CaptureGap,
}

#[async_trait]
impl Body for GapTxn<'_> {
    type Out = Checkpointed;

    async fn run(&mut self, session: &mut ClientSession) -> Result<Then<Checkpointed>, Halt> {
        let (inner, gap) = (self.inner, self.gap);
        let condition = doc! {
            "_id": &gap.capture, "state": word(CaptureState::Running), "fence": int(gap.fence), "position.next_seq": int(gap.expected_next_seq),
        };
        let set = doc! { "position": literal(&gap.after)?, "checkpoint_ms": now(), "last_batch": super::rows::text(&gap.row.key) };
        let set = UpdateModifications::Pipeline(vec![doc! { "$set": set }]);
        let moved = inner.captures_coll().update_one(condition, set).session(&mut *session).await?;
        if moved.matched_count == 0 {
            let capture: Option<Capture> = inner.captures_coll().find_one(doc! { "_id": &gap.capture }).session(session).await?;
            let capture = capture.ok_or_else(|| Fault::missing(format!("capture {} does not exist", gap.capture)))?;
            return Ok(Then::Abort(rules::gap_refused(&capture, gap)));
        }
        inner.add_segments(session, &[&gap.row], 0).await?;
        inner.settle_status(session, &gap.row.branch).await?;
        Ok(Then::Commit(Checkpointed::Stored))
    }
}

struct ForkTxn<'a> {
    inner: &'a Inner,
    branch: &'a Branch,
    ttl_ms: Option<i64>,
    taken: bool,
}

#[async_trait]
impl Body for ForkTxn<'_> {
    /// False when the name is taken.
    type Out = bool;

    async fn run(&mut self, session: &mut ClientSession) -> Result<Then<bool>, Halt> {
        let (inner, branch) = (self.inner, self.branch);
        let parent = branch.parent.as_ref().ok_or_else(|| Fault::rejected(format!("branch {} has no parent", branch.name)))?;
        // SUBTLE (correctness.md 23): written, not only read: a deletion of the parent at the same moment conflicts with it.
        let alive = doc! { "_id": &parent.id, "deleted_ms": Bson::Null };
        let marked = inner.branches_coll().update_one(alive, doc! { "$inc": { "forks": 1i64 } }).session(&mut *session).await?;
        if marked.matched_count == 0 {
            return Err(Fault::rejected(format!("the parent of {} is deleted", branch.name)).into());
        }
        let expires = self.ttl_ms.map_or(Bson::Null, |ttl| doc! { "$add": [now(), ttl] }.into());
        let row = doc! { "$mergeObjects": [literal(branch)?, { "created_ms": now(), "expires_ms": expires }] };
        let absent = doc! { "$eq": [{ "$type": "$name" }, "missing"] };
        let set = UpdateModifications::Pipeline(vec![doc! { "$replaceWith": { "$cond": [absent, row, "$$ROOT"] } }]);
        let written = inner.branches_coll().update_one(doc! { "_id": &branch.id }, set).upsert(true).session(session).await;
        self.taken = written.as_ref().is_err_and(is_duplicate);
        written?;
        Ok(Then::Commit(true))
    }
}

struct RenameTxn<'a> {
    inner: &'a Inner,
    id: &'a str,
    name: &'a str,
    taken: bool,
}

#[async_trait]
impl Body for RenameTxn<'_> {
    type Out = ();

    async fn run(&mut self, session: &mut ClientSession) -> Result<Then<()>, Halt> {
        let alive = doc! { "_id": self.id, "deleted_ms": Bson::Null };
        let set = doc! { "$set": { "name": self.name } };
        let done = self.inner.branches_coll().update_one(alive, set).session(&mut *session).await;
        self.taken = done.as_ref().is_err_and(is_duplicate);
        if done?.matched_count == 0 {
            return Err(no_branch(self.id));
        }
        let set = doc! { "$set": { "branch_name": self.name } };
        self.inner.captures_coll().update_many(doc! { "branch": self.id }, set).session(session).await?;
        Ok(Then::Commit(()))
    }
}

struct ArchiveTxn<'a> {
    inner: &'a Inner,
    id: &'a str,
    archived: bool,
}

#[async_trait]
impl Body for ArchiveTxn<'_> {
    type Out = ();

    async fn run(&mut self, session: &mut ClientSession) -> Result<Then<()>, Halt> {
        let status = if self.archived { BranchStatus::Archived } else { BranchStatus::Active };
        let alive = doc! { "_id": self.id, "deleted_ms": Bson::Null };
        let set = doc! { "$set": { "status": word(status) } };
        if self.inner.branches_coll().update_one(alive, set).session(&mut *session).await?.matched_count == 0 {
            return Err(no_branch(self.id));
        }
        if self.archived {
            self.inner.stop_capture(session, self.id, "the branch is archived").await?;
        }
        self.inner.settle_status(session, self.id).await?;
        Ok(Then::Commit(()))
    }
}

struct DeleteTxn<'a> {
    inner: &'a Inner,
    id: &'a str,
}

#[async_trait]
impl Body for DeleteTxn<'_> {
    type Out = bool;

    async fn run(&mut self, session: &mut ClientSession) -> Result<Then<bool>, Halt> {
        let inner = self.inner;
        // Written first: a fork at the same moment conflicts with it.
        let touch = doc! { "$inc": { "forks": 0i64, "status_revision": 1i64 } };
        let found: Option<Branch> =
            inner.branches_coll().find_one_and_update(doc! { "_id": self.id }, touch).session(&mut *session).await?;
        let branch = found.ok_or_else(|| no_branch(self.id))?;
        if branch.deleted_ms.is_some() {
            return Ok(Then::Abort(false));
        }
        let mut cursor = inner.branches_coll().find(children_of(self.id)).limit(5).session(&mut *session).await?;
        let children: Vec<Branch> = cursor.stream(session).try_collect().await?;
        if !children.is_empty() {
            let names: Vec<String> = children.into_iter().map(|child| child.name).collect();
            return Err(rules::has_children(&branch, &names).into());
        }
        let set = doc! { "name": super::rows::text(&rules::deleted_name(&branch)), "deleted_ms": now() };
        let set = UpdateModifications::Pipeline(vec![doc! { "$set": set }]);
        inner.branches_coll().update_one(doc! { "_id": self.id }, set).session(&mut *session).await?;
        inner.stop_capture(session, self.id, "the branch is deleted").await?;
        inner.settle_status(session, self.id).await?;
        Ok(Then::Commit(true))
    }
}

struct AttachTxn<'a> {
    inner: &'a Inner,
    new: &'a Attach,
    taken: bool,
}

#[async_trait]
impl Body for AttachTxn<'_> {
    type Out = ();

    async fn run(&mut self, session: &mut ClientSession) -> Result<Then<()>, Halt> {
        let (inner, new) = (self.inner, self.new);
        let capture = &new.capture;
        if inner.captures_coll().find_one(doc! { "_id": &capture.id }).session(&mut *session).await?.is_some() {
            return Ok(Then::Abort(())); // our own earlier call
        }
        let mut set = doc! { "source_db": super::rows::text(&new.source_db), "drop_db": new.drop_db };
        if let Some(ttl) = new.ttl {
            set.insert("expires_ms", super::rows::later(super::millis(ttl)));
        }
        let set = UpdateModifications::Pipeline(vec![doc! { "$set": set }]);
        let found: Option<Branch> =
            inner.branches_coll().find_one_and_update(doc! { "_id": &capture.branch }, set).session(&mut *session).await?;
        let branch = found.ok_or_else(|| no_branch(&capture.branch))?;
        rules::check_attach(&branch, new)?;
        if inner.captures_coll().find_one(doc! { "branch": &branch.id }).session(&mut *session).await?.is_some() {
            return Err(Fault::rejected(format!("branch {} has a capture already", branch.name)).into());
        }
        let row = doc! { "$mergeObjects": [literal(capture)?, { "checkpoint_ms": now() }] };
        let row = UpdateModifications::Pipeline(vec![doc! { "$replaceWith": row }]);
        inner.captures_coll().update_one(doc! { "_id": &capture.id }, row).upsert(true).session(&mut *session).await?;
        let added = inner.add_segments(session, &[&new.row], 0).await;
        self.taken = matches!(&added, Err(Halt::Driver(e)) if is_duplicate(e));
        added?;
        Ok(Then::Commit(()))
    }
}

struct ImportTxn<'a> {
    inner: &'a Inner,
    import: &'a Import,
}

#[async_trait]
impl Body for ImportTxn<'_> {
    type Out = bool;

    async fn run(&mut self, session: &mut ClientSession) -> Result<Then<bool>, Halt> {
        let (inner, Import { branch, capture, bases }) = (self.inner, self.import);
        if inner.branches_coll().find_one(doc! { "_id": &branch.id }).session(&mut *session).await?.is_some() {
            return Ok(Then::Abort(false));
        }
        let insert = |coll: &str| inner.db.collection::<Document>(coll);
        insert("branches").insert_one(document(branch)?).session(&mut *session).await?;
        if let Some(capture) = capture {
            insert("captures").insert_one(document(capture)?).session(&mut *session).await?;
        }
        for base in bases {
            inner.bases_coll().replace_one(doc! { "_id": &base.id }, base).upsert(true).session(&mut *session).await?;
        }
        inner.settle_status(session, &branch.id).await?;
        Ok(Then::Commit(true))
    }
}
