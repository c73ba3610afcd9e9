//! Owns: rows as BSON, and the few expressions that all writes share. Does not own: which writes there are.

use bson::{Bson, Document, doc};
use serde::Serialize;

use crate::fault::{Fault, Result};
use crate::queue;

use super::super::{JobLease, JobState, MAX_JOB_ERRORS, Priority};

/// A row as a document. Through raw bytes, so that nothing is reinterpreted on the way.
pub(super) fn document<T: Serialize>(row: &T) -> Result<Document> {
    let raw = bson::serialize_to_raw_document_buf(row).map_err(|e| Fault::rejected(format!("row cannot be stored: {e}")))?;
    Document::try_from(raw).map_err(|e| Fault::rejected(format!("row cannot be stored: {e}")))
}

/// A row as a constant inside a pipeline: nothing in it is taken for an expression.
pub(super) fn literal<T: Serialize>(row: &T) -> Result<Bson> {
    Ok(doc! { "$literal": document(row)? }.into())
}

/// A text as a constant inside a pipeline.
pub(super) fn text(s: &str) -> Bson {
    doc! { "$literal": s }.into()
}

/// The word of a state or kind.
pub(super) fn word<T: Serialize>(t: T) -> Bson {
    bson::serialize_to_bson(&t).unwrap_or(Bson::Null)
}

/// Several of them.
pub(super) fn words<T: Serialize + Copy>(all: &[T]) -> Vec<Bson> {
    all.iter().map(|t| word(*t)).collect()
}

/// The server's now in ms (correctness.md 27).
pub(super) fn now() -> Bson {
    doc! { "$toLong": "$$NOW" }.into()
}

/// The server's now plus a delay in ms.
pub(super) fn later(delay_ms: i64) -> Bson {
    doc! { "$add": [now(), delay_ms] }.into()
}

/// `run_at_ms` and `sched_key` of a job of any kind that may run again after `delay_ms`: its boost stays what it was.
pub(super) fn reschedule(delay_ms: i64) -> Document {
    let boost = doc! { "$subtract": ["$run_at_ms", "$sched_key"] };
    doc! { "run_at_ms": later(delay_ms), "sched_key": { "$subtract": [later(delay_ms), boost] } }
}

/// `run_at_ms` and `sched_key` of a new job that may run after `delay_ms`.
pub(super) fn schedule(priority: Priority, delay_ms: i64) -> Document {
    let boost = queue::boost_ms(priority);
    doc! { "run_at_ms": later(delay_ms), "sched_key": { "$subtract": [later(delay_ms), boost] } }
}

/// The error history of a job with one entry more, and its count.
pub(super) fn with_error(engine: Bson, error: &str) -> Document {
    let entry = doc! { "attempt": "$attempt", "at_ms": now(), "engine": engine, "error": text(&queue::clip_error(error)) };
    let keep = -i64::try_from(MAX_JOB_ERRORS).unwrap_or(i64::MAX);
    doc! {
        "errors": { "$slice": [{ "$concatArrays": ["$errors", [entry]] }, keep] },
        "error_count": { "$add": ["$error_count", 1] },
    }
}

/// The job while it runs under this lease; the condition of every write of its attempt.
pub(super) fn held_by(lease: &JobLease) -> Document {
    doc! { "_id": &lease.id, "state": word(JobState::Running), "lease.token": &lease.token, "attempt": lease.attempt }
}

/// Numbers are stored as signed 64 bit.
pub(super) fn int(n: u64) -> i64 {
    i64::try_from(n).unwrap_or(i64::MAX)
}
