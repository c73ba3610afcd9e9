//! Owns: bases and their parts as documents. Does not own: making them (`jobs`), what they are worth (`branch`).

use async_trait::async_trait;
use bson::{Document, doc};
use futures_util::TryStreamExt;
use mongodb::ClientSession;
use mongodb::options::UpdateModifications;

use super::super::{Base, BaseChunk, BaseState};
use super::Inner;
use super::classify::{fault_of, is_duplicate};
use super::rows::{document, int, literal, now, word};
use super::txn::{Body, Halt, Then};
use crate::fault::Result;

impl Inner {
    pub(super) async fn bases_of(&self, which: Document) -> Result<Vec<Base>> {
        let order = doc! { "seq": 1, "created_ms": 1, "_id": 1 };
        let cursor = self.bases_coll().find(which).sort(order).await.map_err(fault_of)?;
        cursor.try_collect().await.map_err(fault_of)
    }

    pub(super) async fn base(&self, id: &str) -> Result<Option<Base>> {
        self.bases_coll().find_one(doc! { "_id": id }).await.map_err(fault_of)
    }

    pub(super) async fn create_base(&self, base: &Base) -> Result<()> {
        let rows = doc! { "$mergeObjects": [literal(base)?, { "created_ms": now() }] };
        let absent = doc! { "$eq": [{ "$type": "$state" }, "missing"] };
        let set = UpdateModifications::Pipeline(vec![doc! { "$replaceWith": { "$cond": [absent, rows, "$$ROOT"] } }]);
        self.bases_coll().update_one(doc! { "_id": &base.id }, set).upsert(true).await.map_err(fault_of)?;
        if base.state == BaseState::Complete { self.transact(&mut SettleTxn { inner: self, branch: &base.branch }).await } else { Ok(()) }
    }

    pub(super) async fn finish_base(&self, base: &Base) -> Result<bool> {
        self.transact(&mut FinishTxn { inner: self, base }).await
    }

    pub(super) async fn abandon_base(&self, id: &str, reason: &str) -> Result<bool> {
        let set = doc! { "state": word(BaseState::Abandoned), "reason": super::rows::text(reason), "finished_ms": now() };
        let set = UpdateModifications::Pipeline(vec![doc! { "$set": set }]);
        let done = self.bases_coll().update_one(copying(id), set).await.map_err(fault_of)?;
        Ok(done.matched_count > 0)
    }

    pub(super) async fn note_base(&self, id: &str, expected: Option<(u64, u64)>, reason: Option<&str>) -> Result<()> {
        let mut set = doc! { "reason": reason };
        if let Some((documents, bytes)) = expected {
            set.extend(doc! { "expected_documents": int(documents), "expected_bytes": int(bytes) });
        }
        self.bases_coll().update_one(copying(id), doc! { "$set": set }).await.map_err(fault_of)?;
        Ok(())
    }

    pub(super) async fn add_chunks(&self, chunks: &[BaseChunk]) -> Result<bool> {
        let Some(first) = chunks.first() else { return Ok(true) };
        let mut body = ChunkTxn { inner: self, chunks, base: &first.base, taken: false };
        match self.transact(&mut body).await {
            Err(_) if body.taken => {
                for chunk in chunks {
                    let stored = self.chunks_coll().find_one(doc! { "_id": &chunk.id }).await.map_err(fault_of)?;
                    if stored.as_ref() != Some(chunk) {
                        return Ok(false);
                    }
                }
                Ok(true) // our own earlier call
            }
            outcome => outcome,
        }
    }

    /// Ids of parts begin with that of their base, so they lie together in the one index that every collection has.
    pub(super) async fn chunks(&self, base: &str, after: Option<&str>, max: usize) -> Result<Vec<BaseChunk>> {
        let from = after.map_or_else(|| format!("{base}/"), str::to_owned);
        let which = doc! { "_id": { "$gt": from, "$lt": format!("{base}0") } }; // '0' is the character after '/'
        let limit = i64::try_from(max.max(1)).unwrap_or(i64::MAX);
        let cursor = self.chunks_coll().find(which).sort(doc! { "_id": 1 }).limit(limit).await.map_err(fault_of)?;
        cursor.try_collect().await.map_err(fault_of)
    }

    pub(super) async fn last_chunk(&self, base: &str, uuid: &str) -> Result<Option<BaseChunk>> {
        let which = doc! { "_id": { "$gt": format!("{base}/{uuid}/"), "$lt": format!("{base}/{uuid}0") } };
        self.chunks_coll().find_one(which).sort(doc! { "_id": -1 }).await.map_err(fault_of)
    }

    pub(super) async fn remove_base(&self, id: &str) -> Result<bool> {
        let given_up = doc! { "_id": id, "state": word(BaseState::Abandoned) };
        if self.bases_coll().find_one(given_up.clone()).await.map_err(fault_of)?.is_none() {
            return Ok(self.base(id).await?.is_none());
        }
        self.remove_chunks(id).await?;
        self.bases_coll().delete_one(given_up).await.map_err(fault_of)?;
        Ok(true)
    }

    pub(super) async fn remove_chunks(&self, base: &str) -> Result<()> {
        let which = doc! { "_id": { "$gt": format!("{base}/"), "$lt": format!("{base}0") } };
        self.chunks_coll().delete_many(which).await.map_err(fault_of)?;
        Ok(())
    }
}

/// A base while it is being made.
fn copying(id: &str) -> Document {
    doc! { "_id": id, "state": word(BaseState::Copying) }
}

struct SettleTxn<'a> {
    inner: &'a Inner,
    branch: &'a str,
}

#[async_trait]
impl Body for SettleTxn<'_> {
    type Out = ();

    async fn run(&mut self, session: &mut ClientSession) -> Result<Then<()>, Halt> {
        self.inner.settle_status(session, self.branch).await?;
        Ok(Then::Commit(()))
    }
}

struct FinishTxn<'a> {
    inner: &'a Inner,
    base: &'a Base,
}

#[async_trait]
impl Body for FinishTxn<'_> {
    type Out = bool;

    async fn run(&mut self, session: &mut ClientSession) -> Result<Then<bool>, Halt> {
        let (inner, base) = (self.inner, self.base);
        let row = Base { state: BaseState::Complete, reason: None, ..base.clone() };
        let times = doc! { "created_ms": "$created_ms", "finished_ms": now() };
        let set = UpdateModifications::Pipeline(vec![doc! { "$replaceWith": { "$mergeObjects": [literal(&row)?, times] } }]);
        let done = inner.bases_coll().update_one(copying(&base.id), set).session(&mut *session).await?;
        if done.matched_count == 0 {
            let stored = inner.bases_coll().find_one(doc! { "_id": &base.id }).session(session).await?;
            let ours = |stored: Base| stored.state == BaseState::Complete && stored.sha256 == base.sha256;
            return Ok(Then::Abort(stored.is_some_and(ours))); // our own earlier call
        }
        inner.settle_status(session, &base.branch).await?;
        Ok(Then::Commit(true))
    }
}

struct ChunkTxn<'a> {
    inner: &'a Inner,
    chunks: &'a [BaseChunk],
    base: &'a str,
    /// Somebody has stored one of them.
    taken: bool,
}

#[async_trait]
impl Body for ChunkTxn<'_> {
    type Out = bool;

    async fn run(&mut self, session: &mut ClientSession) -> Result<Then<bool>, Halt> {
        let inner = self.inner;
        let rows: Result<Vec<Document>> = self.chunks.iter().map(document).collect();
        let stored = inner.chunks_coll().clone_with_type::<Document>().insert_many(rows?).session(&mut *session).await;
        self.taken = stored.as_ref().is_err_and(is_duplicate);
        stored?;
        let found = inner.bases_coll().find_one(copying(self.base)).session(&mut *session).await?;
        let Some(base) = found else { return Ok(Then::Abort(false)) };
        let sum = |of: fn(&BaseChunk) -> u64| int(self.chunks.iter().map(of).sum());
        let until = self.chunks.iter().map(|chunk| chunk.until).max().unwrap_or_default().max(base.consistent_at);
        let add = doc! {
            "$inc": {
                "documents": sum(|c| c.documents), "raw_bytes": sum(|c| c.raw_bytes), "stored_bytes": sum(|c| c.stored_bytes),
                "objects": sum(|c| u64::from(c.object.is_some())),
            },
            "$set": { "consistent_at": document(&until)? },
        };
        inner.bases_coll().update_one(copying(self.base), add).session(session).await?;
        Ok(Then::Commit(true))
    }
}
