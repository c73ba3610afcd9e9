//! Owns: captures and branches as documents. Does not own: checkpoints (`checkpoint`), heads and totals (`commit`).

use async_trait::async_trait;
use bson::{Bson, Document, doc};
use futures_util::TryStreamExt;
use mongodb::ClientSession;
use mongodb::options::{ReturnDocument, UpdateModifications};

use super::super::{Branch, BranchId, BranchStatus, Capture, CaptureState, Coverage, Fidelity, NewCapture, SegmentRow, Source};
use super::Inner;
use super::classify::{fault_of, is_duplicate};
use super::rows::{document, int, literal, now, word, words};
use super::txn::{Body, Halt, Then};
use crate::fault::{Fault, Result};

impl Inner {
    pub(super) async fn create_capture(&self, new: &NewCapture) -> Result<()> {
        let taken = || Fault::rejected(format!("branch {} exists already", new.branch.name));
        let mut body = CreateTxn { inner: self, new, taken: false };
        match self.transact(&mut body).await {
            Ok(true) => Ok(()),
            Ok(false) => Err(taken()),
            Err(_) if body.taken => Err(taken()),
            Err(f) => Err(f),
        }
    }

    pub(super) async fn captures(&self) -> Result<Vec<Capture>> {
        let cursor = self.captures_coll().find(doc! {}).sort(doc! { "branch_name": 1 }).await.map_err(fault_of)?;
        cursor.try_collect().await.map_err(fault_of)
    }

    pub(super) async fn capture(&self, id: &str) -> Result<Option<Capture>> {
        self.captures_coll().find_one(doc! { "_id": id }).await.map_err(fault_of)
    }

    pub(super) async fn capture_of(&self, branch: &str) -> Result<Option<Capture>> {
        self.captures_coll().find_one(doc! { "branch": branch }).await.map_err(fault_of)
    }

    pub(super) async fn own_capture(&self, id: &str, engine: &str) -> Result<Option<Capture>> {
        let free = doc! { "_id": id, "state": word(CaptureState::Running), "owner": { "$in": [Bson::Null, engine] } };
        let take = doc! { "$set": { "owner": engine }, "$inc": { "fence": 1i64 } };
        self.captures_coll().find_one_and_update(free, take).return_document(ReturnDocument::After).await.map_err(fault_of)
    }

    pub(super) async fn release_capture(&self, id: &str, fence: u64) -> Result<()> {
        let ours = doc! { "_id": id, "fence": int(fence) };
        self.captures_coll().update_one(ours, doc! { "$set": { "owner": Bson::Null } }).await.map_err(fault_of)?;
        Ok(())
    }

    pub(super) async fn set_capture_state(&self, id: &str, state: CaptureState, reason: Option<&str>) -> Result<()> {
        let mut body = StateTxn { inner: self, which: doc! { "_id": id }, state, reason };
        if self.transact(&mut body).await? { Ok(()) } else { Err(Fault::missing(format!("capture {id} does not exist"))) }
    }

    pub(super) async fn set_capture_source(&self, id: &str, source: &Source) -> Result<()> {
        let set = doc! { "$set": { "source": document(source)? } };
        let done = self.captures_coll().update_one(doc! { "_id": id }, set).await.map_err(fault_of)?;
        if done.matched_count > 0 { Ok(()) } else { Err(Fault::missing(format!("capture {id} does not exist"))) }
    }

    pub(super) async fn note_identity(&self, id: &str, fence: u64, known: &str, seen: &str) -> Result<()> {
        let ours = doc! { "_id": id, "fence": int(fence), "source.identity": known };
        self.captures_coll().update_one(ours, doc! { "$set": { "source.identity": seen } }).await.map_err(fault_of)?;
        Ok(())
    }

    /// Also from `failed` to `failed`: a repeat of our own call whose answer was lost.
    pub(super) async fn fail_capture(&self, id: &str, engine: &str, fence: u64, reason: &str) -> Result<bool> {
        let states = words(&[CaptureState::Running, CaptureState::Failed]);
        let ours = doc! { "_id": id, "owner": engine, "fence": int(fence), "state": { "$in": states } };
        let mut body = StateTxn { inner: self, which: ours, state: CaptureState::Failed, reason: Some(reason) };
        self.transact(&mut body).await
    }

    pub(super) async fn note_capture(&self, id: &str, fence: u64, reason: Option<&str>) -> Result<()> {
        let ours = doc! { "_id": id, "fence": int(fence), "state": word(CaptureState::Running) };
        let Some(capture) = self.captures_coll().find_one(ours.clone()).await.map_err(fault_of)? else { return Ok(()) };
        // Nothing is written that is there already: each write moves the stream when the metadata lives on the same cluster.
        if capture.reason.as_deref() != reason {
            self.captures_coll().update_one(ours, doc! { "$set": { "reason": reason } }).await.map_err(fault_of)?;
        }
        Ok(())
    }

    pub(super) async fn note_coverage(&self, id: &str, fence: u64, coverage: &Coverage) -> Result<()> {
        if *coverage == Coverage::full() {
            return Ok(()); // nothing gets better by it
        }
        let ours = doc! { "_id": id, "fence": int(fence), "state": word(CaptureState::Running) };
        let Some(capture) = self.captures_coll().find_one(ours).await.map_err(fault_of)? else { return Ok(()) };
        let mut worse = doc! { "$addToSet": { "uncovered": { "$each": &coverage.uncovered } } };
        let mut known = doc! { "uncovered": { "$all": &coverage.uncovered } };
        if coverage.uncovered.is_empty() {
            (worse, known) = (doc! {}, doc! {});
        }
        if coverage.fidelity == Fidelity::OrderMayDiffer {
            worse.insert("$set", doc! { "fidelity": word(coverage.fidelity) });
            known.insert("fidelity", word(coverage.fidelity));
        }
        let other = doc! { "_id": &capture.branch, "$nor": [known] };
        self.branches_coll().update_one(other, worse).await.map_err(fault_of)?;
        Ok(())
    }

    pub(super) async fn branches(&self) -> Result<Vec<Branch>> {
        let cursor = self.branches_coll().find(doc! {}).sort(doc! { "name": 1 }).await.map_err(fault_of)?;
        cursor.try_collect().await.map_err(fault_of)
    }

    pub(super) async fn branches_after(&self, after: Option<&str>, max: usize) -> Result<Vec<Branch>> {
        if max == 0 {
            return Ok(Vec::new());
        }
        let which = after.map_or_else(Document::new, |after| doc! { "name": { "$gt": after } });
        let limit = i64::try_from(max).unwrap_or(i64::MAX);
        let cursor = self.branches_coll().find(which).sort(doc! { "name": 1 }).limit(limit).await.map_err(fault_of)?;
        cursor.try_collect().await.map_err(fault_of)
    }

    pub(super) async fn branches_of(&self, ids: &[BranchId]) -> Result<Vec<Branch>> {
        let cursor = self.branches_coll().find(doc! { "_id": { "$in": ids } }).await.map_err(fault_of)?;
        cursor.try_collect().await.map_err(fault_of)
    }

    /// Reads the branches, in the server: there are thousands at most, and one answer for all who ask.
    pub(super) async fn branch_counts(&self) -> Result<Vec<(BranchStatus, u64)>> {
        let group = doc! { "$group": { "_id": "$status", "count": { "$sum": 1i64 } } };
        let rows: Vec<Counted> = {
            let cursor = self.branches_coll().aggregate([group]).with_type().await.map_err(fault_of)?;
            cursor.try_collect().await.map_err(fault_of)?
        };
        Ok(rows.into_iter().map(|row| (row.status, row.count)).collect())
    }

    pub(super) async fn branch(&self, id: &str) -> Result<Option<Branch>> {
        self.branches_coll().find_one(doc! { "_id": id }).await.map_err(fault_of)
    }

    pub(super) async fn branch_named(&self, name: &str) -> Result<Option<Branch>> {
        self.branches_coll().find_one(doc! { "name": name }).await.map_err(fault_of)
    }

    /// Read in the order of their ends, which is that of their starts as long as they do not overlap; a page then costs a page.
    pub(super) async fn segments(&self, branch: &str, from_seq: u64, max: usize) -> Result<Vec<SegmentRow>> {
        if max == 0 {
            return Ok(Vec::new());
        }
        let from = doc! { "branch": branch, "last_seq": { "$gte": int(from_seq) } };
        let limit = i64::try_from(max).unwrap_or(i64::MAX);
        let sort = doc! { "last_seq": 1, "level": 1 };
        let cursor = self.segments_coll().find(from).projection(without_filter()).sort(sort).limit(limit).await.map_err(fault_of)?;
        let mut rows: Vec<SegmentRow> = cursor.try_collect().await.map_err(fault_of)?;
        rows.sort_by_key(|s| (s.first_seq, s.last_seq));
        Ok(rows)
    }

    /// The one that holds `from_seq` is found by its end, which is at or behind it; then those before it follow each other.
    pub(super) async fn segments_before(&self, branch: &str, from_seq: u64, max: usize) -> Result<Vec<SegmentRow>> {
        let from = doc! { "branch": branch, "last_seq": { "$gte": int(from_seq) } };
        let holds = self.segments_coll().find_one(from).sort(doc! { "last_seq": 1, "level": 1 }).await.map_err(fault_of)?;
        let mut rows: Vec<SegmentRow> = holds.into_iter().filter(|row: &SegmentRow| row.first_seq <= from_seq).collect();
        let before = rows.first().map_or(from_seq.saturating_add(1), |row| row.first_seq);
        let which = doc! { "branch": branch, "last_seq": { "$lt": int(before) } };
        let limit = i64::try_from(max.max(1)).unwrap_or(i64::MAX);
        let cursor = self.segments_coll().find(which).sort(doc! { "last_seq": -1, "level": -1 }).limit(limit).await.map_err(fault_of)?;
        rows.extend(cursor.try_collect::<Vec<SegmentRow>>().await.map_err(fault_of)?);
        rows.truncate(max);
        Ok(rows)
    }

    pub(super) async fn ddl_segments(&self, branch: &str, from_seq: u64, max: usize) -> Result<Vec<SegmentRow>> {
        let from = doc! { "branch": branch, "has_ddl": true, "last_seq": { "$gte": int(from_seq) } };
        let limit = i64::try_from(max.max(1)).unwrap_or(i64::MAX);
        let cursor = self
            .segments_coll()
            .find(from)
            .projection(without_filter())
            .sort(doc! { "last_seq": 1 })
            .limit(limit)
            .await
            .map_err(fault_of)?;
        cursor.try_collect().await.map_err(fault_of)
    }

    pub(super) async fn losses(&self, branch: &str, from_seq: u64, max: usize) -> Result<Vec<SegmentRow>> {
        let lost = doc! { "branch": branch, "holes": { "$gt": 0 }, "first_seq": { "$gte": int(from_seq) } };
        let limit = i64::try_from(max.max(1)).unwrap_or(i64::MAX);
        let cursor = self
            .segments_coll()
            .find(lost)
            .projection(without_filter())
            .sort(doc! { "first_seq": 1 })
            .limit(limit)
            .await
            .map_err(fault_of)?;
        cursor.try_collect().await.map_err(fault_of)
    }
}

#[derive(serde::Deserialize)]
struct Counted {
    #[serde(rename = "_id")]
    status: BranchStatus,
    count: u64,
}

/// Of segments: only who looks for a document wants their filters.
fn without_filter() -> Document {
    doc! { "filter": 0 }
}

struct CreateTxn<'a> {
    inner: &'a Inner,
    new: &'a NewCapture,
    taken: bool,
}

#[async_trait]
impl Body for CreateTxn<'_> {
    /// False when the name is taken.
    type Out = bool;

    async fn run(&mut self, session: &mut ClientSession) -> Result<Then<bool>, Halt> {
        let (inner, NewCapture { capture, branch, base }) = (self.inner, self.new);
        let either = doc! { "$or": [{ "_id": &branch.id }, { "name": &branch.name }] };
        if let Some(found) = inner.branches_coll().find_one(either).session(&mut *session).await? {
            let ours = doc! { "_id": &capture.id, "branch": &found.id };
            let capture = inner.captures_coll().find_one(ours).session(session).await?;
            return Ok(Then::Abort(found.id == branch.id && capture.is_some())); // our own earlier call
        }
        let with_time = |row: Bson, field: &str| -> Result<UpdateModifications> {
            let merged = doc! { "$mergeObjects": [row, { field: now() }] };
            Ok(UpdateModifications::Pipeline(vec![doc! { "$replaceWith": merged }]))
        };
        let rows = with_time(literal(branch)?, "created_ms")?;
        let written = inner.branches_coll().update_one(doc! { "_id": &branch.id }, rows).upsert(true).session(&mut *session).await;
        self.taken = written.as_ref().is_err_and(is_duplicate);
        written?;
        let rows = with_time(literal(capture)?, "checkpoint_ms")?;
        inner.captures_coll().update_one(doc! { "_id": &capture.id }, rows).upsert(true).session(&mut *session).await?;
        let rows = with_time(literal(base)?, "created_ms")?;
        inner.bases_coll().update_one(doc! { "_id": &base.id }, rows).upsert(true).session(session).await?;
        Ok(Then::Commit(true))
    }
}

struct StateTxn<'a> {
    inner: &'a Inner,
    which: Document,
    state: CaptureState,
    reason: Option<&'a str>,
}

#[async_trait]
impl Body for StateTxn<'_> {
    type Out = bool;

    async fn run(&mut self, session: &mut ClientSession) -> Result<Then<bool>, Halt> {
        let set = doc! { "$set": { "state": word(self.state), "reason": self.reason } };
        let found: Option<Capture> = self.inner.captures_coll().find_one_and_update(self.which.clone(), set).session(&mut *session).await?;
        let Some(capture) = found else { return Ok(Then::Abort(false)) };
        self.inner.settle_status(session, &capture.branch).await?;
        Ok(Then::Commit(true))
    }
}
