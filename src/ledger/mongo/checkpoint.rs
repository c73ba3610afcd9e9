//! Owns: the transaction that stores a batch. Does not own: what is in a batch (`capture::assemble`).

use async_trait::async_trait;
use bson::spec::BinarySubtype;
use bson::{Bson, RawBinaryRef, RawDocumentBuf, doc, rawdoc};
use bytes::Bytes;
use mongodb::ClientSession;
use mongodb::options::UpdateModifications;

use super::super::rules;
use super::super::{Capture, CaptureState, Checkpoint, Checkpointed, NewBatch};
use super::Inner;
use super::rows::{int, literal, now, schedule, text, word};
use super::txn::{Body, Halt, Then};
use crate::fault::{Fault, Result};

impl Inner {
    pub(super) async fn checkpoint(&self, write: &Checkpoint) -> Result<Checkpointed> {
        rules::check_checkpoint(write)?;
        let payload = write.batch.as_ref().map(payload_rows).transpose()?.unwrap_or_default();
        let mut body = CheckpointTxn { inner: self, write, payload };
        self.transact(&mut body).await
    }

    /// Why the condition did not hold; read outside the transaction, which has seen enough.
    async fn why_refused(&self, session: &mut ClientSession, write: &Checkpoint) -> Result<Checkpointed, Halt> {
        let capture: Option<Capture> = self.captures_coll().find_one(doc! { "_id": &write.capture }).session(session).await?;
        match capture {
            Some(c) => Ok(rules::refused(&c, write)),
            None => Err(Fault::missing(format!("capture {} does not exist", write.capture)).into()),
        }
    }
}

struct CheckpointTxn<'a> {
    inner: &'a Inner,
    write: &'a Checkpoint,
    /// Built once: a megabyte is not copied again for a second round.
    payload: Vec<RawDocumentBuf>,
}

#[async_trait]
impl Body for CheckpointTxn<'_> {
    type Out = Checkpointed;

    async fn run(&mut self, session: &mut ClientSession) -> Result<Then<Checkpointed>, Halt> {
        let (inner, write) = (self.inner, self.write);
        // The capture first: a fenced owner stops here, before a megabyte is sent.
        let condition = doc! {
            "_id": &write.capture, "state": word(CaptureState::Running),
            "fence": int(write.fence), "position.next_seq": int(write.expected_next_seq),
        };
        let moved = inner.captures_coll().update_one(condition, capture_update(write)?).session(&mut *session).await?;
        if moved.matched_count == 0 {
            return Ok(Then::Abort(inner.why_refused(session, write).await?));
        }
        if let Some(batch) = &write.batch {
            inner.jobs_coll().update_one(doc! { "_id": &batch.job }, job_upsert(batch)?).upsert(true).session(&mut *session).await?;
            if !self.payload.is_empty() {
                inner.payloads_coll().insert_many(&self.payload).session(&mut *session).await?;
            }
        }
        Ok(Then::Commit(Checkpointed::Stored))
    }
}

fn capture_update(write: &Checkpoint) -> Result<UpdateModifications> {
    let mut set = doc! { "position": literal(&write.after)?, "checkpoint_ms": now() };
    if let Some(batch) = &write.batch {
        set.insert("last_batch", text(&batch.spec.batch));
        set.insert("queued_bytes", doc! { "$add": ["$queued_bytes", int(batch.spec.payload_bytes)] });
    }
    Ok(UpdateModifications::Pipeline(vec![doc! { "$set": set }]))
}

/// The job by pipeline upsert: an insert cannot use the server's clock (correctness.md 27).
fn job_upsert(batch: &NewBatch) -> Result<UpdateModifications> {
    let row = rules::sync_row(batch);
    let mut times = schedule(row.priority, 0);
    times.insert("created_ms", now());
    let merged: Bson = doc! { "$mergeObjects": [literal(&row)?, times] }.into();
    Ok(UpdateModifications::Pipeline(vec![doc! { "$replaceWith": merged }]))
}

/// `{_id: {job, part}, data}` of every part.
fn payload_rows(batch: &NewBatch) -> Result<Vec<RawDocumentBuf>> {
    batch.parts.iter().enumerate().map(|(i, part)| payload_row(&batch.job, i, part)).collect()
}

fn payload_row(job: &str, part: usize, data: &Bytes) -> Result<RawDocumentBuf> {
    let part = i32::try_from(part).map_err(|_| Fault::rejected("a payload has too many parts"))?;
    let mut row = rawdoc! { "_id": { "job": job, "part": part } };
    row.append(bson::cstr!("data"), RawBinaryRef { subtype: BinarySubtype::Generic, bytes: data });
    Ok(row)
}
