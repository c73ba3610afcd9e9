//! Owns: writing the folded documents: batches, parallel writers, order in capped collections, documents that an insert would alter.
//! Does not own: what the documents are (`fold`), collections and indexes (`indexes`).
//!
//! ```text
//! fold output (blocking thread) ══ 4 batches ══▶ writers (several, any order)
//!                               ══ 2 batches ══▶ one writer, capped collections in order, after the others
//! ```

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use bson::raw::RawBsonRef;
use bson::spec::ElementType;
use bson::{RawDocument, RawDocumentBuf, rawdoc};
use mongodb::Database;
use mongodb::error::Error;
use mongodb::options::WriteConcern;
use tokio::sync::{Mutex, mpsc};

use crate::branch::catalogue::{Collection, Uuid};
use crate::branch::fold::Folded;
use crate::branch::history::Progress;
use crate::branch::server;
use crate::fault::{Fault, Result};

/// A batch closes at these; far below the server's 48 MB and 100,000, so that several writers share the work of a small restore.
const BATCH_BYTES: usize = 8 << 20;
const BATCH_DOCUMENTS: usize = 2_000;

/// Documents and bytes by collection name.
#[derive(Debug, Default)]
pub(super) struct Counted {
    pub(super) by_name: BTreeMap<String, (u64, u64)>,
    pub(super) left_out: u64,
}

#[derive(Debug)]
struct Batch {
    coll: String,
    docs: Vec<RawDocumentBuf>,
}

/// What the producer knows of a collection index.
struct Names(Vec<Option<(String, bool)>>);

impl Names {
    fn new(uuids: &[Uuid], wanted: &[Collection]) -> Self {
        let of = |uuid: &Uuid| wanted.iter().find(|c| c.uuid == *uuid).map(|c| (c.name.clone(), c.is_capped()));
        Self(uuids.iter().map(of).collect())
    }

    fn get(&self, coll: u32) -> Option<&(String, bool)> {
        self.0.get(coll as usize).and_then(Option::as_ref)
    }
}

/// Counts what would be written.
pub(super) async fn count(folded: Folded, wanted: &[Collection]) -> Result<Counted> {
    let names = Names::new(&folded.collections, wanted);
    run_blocking(move || produce(folded, &names, |_, _| Ok(()))).await
}

/// Writes all documents; returns what was written.
pub(super) async fn documents(
    folded: Folded,
    wanted: &[Collection],
    target: &Database,
    writers: usize,
    progress: Arc<Progress>,
) -> Result<Counted> {
    let names = Names::new(&folded.collections, wanted);
    let (plain, from_plain) = mpsc::channel::<Batch>(4); // keeps the writers busy while the fold replays a partition
    let (ordered, mut from_ordered) = mpsc::channel::<Batch>(2);
    let producing = tokio::spawn(run_blocking(move || {
        let mut plain = Some(plain);
        produce(folded, &names, |batch, capped| {
            let sent = if capped {
                plain = None; // the other writers end, then this one's turn comes
                ordered.blocking_send(batch)
            } else {
                match &plain {
                    Some(plain) => plain.blocking_send(batch),
                    None => return Err(Fault::corrupt("documents came out of order")),
                }
            };
            sent.map_err(|_| Fault::cancelled("the writers have stopped"))
        })
    }));
    let shared = Arc::new(Mutex::new(from_plain));
    let tasks: Vec<_> = (0..writers.max(1)).map(|_| tokio::spawn(write_shared(shared.clone(), target.clone(), progress.clone()))).collect();
    drop(shared); // with the last writer gone the producer notices
    let mut outcome = Ok(());
    for task in tasks {
        let ended = task.await.map_err(|e| Fault::corrupt(format!("a writer panicked: {e}"))).and_then(|r| r);
        outcome = outcome.and(ended);
    }
    while outcome.is_ok() {
        let Some(batch) = from_ordered.recv().await else { break };
        outcome = write(&batch, target, true, &progress).await;
    }
    drop(from_ordered);
    let produced = producing.await.map_err(|e| Fault::corrupt(format!("folding panicked: {e}"))).and_then(|r| r);
    outcome?;
    produced
}

async fn run_blocking<T: Send + 'static>(work: impl FnOnce() -> Result<T> + Send + 'static) -> Result<T> {
    tokio::task::spawn_blocking(work).await.map_err(|e| Fault::corrupt(format!("folding panicked: {e}")))?
}

/// Groups the fold's output into batches by collection.
fn produce(mut folded: Folded, names: &Names, mut send: impl FnMut(Batch, bool) -> Result<()>) -> Result<Counted> {
    let mut counted = Counted::default();
    while let Some(documents) = folded.documents.next_batch()? {
        let mut open: BTreeMap<u32, (Vec<RawDocumentBuf>, usize)> = BTreeMap::new();
        for document in documents {
            let Some((name, capped)) = names.get(document.coll) else { continue };
            let len = document.doc.as_bytes().len();
            let count = counted.by_name.entry(name.clone()).or_default();
            *count = (count.0 + 1, count.1 + len as u64);
            let (docs, bytes) = open.entry(document.coll).or_default();
            docs.push(document.doc);
            *bytes += len;
            if *bytes >= BATCH_BYTES || docs.len() >= BATCH_DOCUMENTS {
                *bytes = 0;
                send(Batch { coll: name.clone(), docs: std::mem::take(docs) }, *capped)?;
            }
        }
        for (coll, (docs, _)) in open {
            if let Some((name, capped)) = names.get(coll).filter(|_| !docs.is_empty()) {
                send(Batch { coll: name.clone(), docs }, *capped)?;
            }
        }
    }
    counted.left_out = folded.documents.left_out();
    Ok(counted)
}

async fn write_shared(from: Arc<Mutex<mpsc::Receiver<Batch>>>, target: Database, progress: Arc<Progress>) -> Result<()> {
    loop {
        let batch = from.lock().await.recv().await;
        let Some(batch) = batch else { return Ok(()) };
        let written = write(&batch, &target, false, &progress).await;
        if written.is_err() {
            from.lock().await.close(); // the others and the producer stop too
        }
        written?;
    }
}

/// Writes a batch in its order: runs of plain documents by insert, special ones each by itself.
async fn write(batch: &Batch, target: &Database, ordered: bool, progress: &Progress) -> Result<()> {
    let fault = |e: Error| server::fault(&format!("write into {:?}", batch.coll), &e);
    let collection = target.collection::<RawDocumentBuf>(&batch.coll);
    for run in batch.docs.chunk_by(|a, b| !insert_alters(a) && !insert_alters(b)) {
        if let [special] = run
            && insert_alters(special)
        {
            target.run_raw_command(upsert_literal(&batch.coll, special)?).await.map_err(fault).and_then(check_write_errors)?;
        } else {
            let insert =
                collection.insert_many(run).ordered(ordered).bypass_document_validation(true).write_concern(WriteConcern::majority());
            insert.await.map_err(fault)?;
        }
    }
    progress.documents.fetch_add(batch.docs.len() as u64, Ordering::Relaxed);
    progress.document_bytes.fetch_add(batch.docs.iter().map(|d| d.as_bytes().len() as u64).sum(), Ordering::Relaxed);
    Ok(())
}

/// The server turns an empty timestamp at the top of an inserted document into the current time (correctness.md 17).
fn insert_alters(doc: &RawDocument) -> bool {
    doc.iter_elements().filter_map(Result::ok).any(|element| {
        element.element_type() == ElementType::Timestamp
            && matches!(element.value(), Ok(RawBsonRef::Timestamp(ts)) if ts.time == 0 && ts.increment == 0)
    })
}

/// An update that stores the document as it is: a pipeline's literal is not looked into.
fn upsert_literal(coll: &str, doc: &RawDocument) -> Result<RawDocumentBuf> {
    let id = doc.get("_id").ok().flatten().ok_or_else(|| Fault::corrupt(format!("a document of {coll:?} has no _id")))?;
    let mut eq = RawDocumentBuf::new();
    eq.append(bson::raw::cstr!("$eq"), id);
    let update = rawdoc! {
        "q": {"_id": eq},
        "u": [{"$replaceWith": {"$literal": doc.to_owned()}}],
        "upsert": true,
    };
    Ok(rawdoc! {"update": coll, "updates": [update], "bypassDocumentValidation": true, "writeConcern": {"w": "majority"}})
}

fn check_write_errors(reply: bson::Document) -> Result<()> {
    let error = reply.get_array("writeErrors").ok().and_then(|errors| errors.first()).map(ToString::to_string);
    let concern = reply.get_document("writeConcernError").ok().map(ToString::to_string);
    match error.or(concern) {
        Some(what) => Err(Fault::rejected(format!("write of a document with an empty timestamp: {what}"))),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use bson::Timestamp;

    #[test]
    fn rule_17_only_empty_timestamps_at_the_top_need_the_detour() {
        let zero = Timestamp { time: 0, increment: 0 };
        let cases = [
            (rawdoc! {"_id": 1, "t": zero}, true),
            (rawdoc! {"_id": zero}, true),
            (rawdoc! {"_id": 1, "t": {"u": zero}}, false),
            (rawdoc! {"_id": 1, "t": [zero]}, false),
            (rawdoc! {"_id": 1, "t": Timestamp { time: 0, increment: 1 }}, false),
            (rawdoc! {"_id": 1}, false),
        ];
        for (doc, expected) in cases {
            assert_eq!(insert_alters(&doc), expected, "{doc:?}");
        }
    }
}
