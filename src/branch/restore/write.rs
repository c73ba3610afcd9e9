//! Owns: writing the folded documents: batches, parallel writers, order in capped collections, documents that an insert would alter.
//! Does not own: what the documents are (`fold`), collections and indexes (`indexes`).
//!
//! ```text
//! fold, early and late (blocking thread) ══ 4 batches ══▶ writers (several, any order)
//!                                        ══ 2 batches ══▶ one writer, capped collections in order, after the others
//! ```

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::sync::atomic::Ordering;

use bson::raw::RawBsonRef;
use bson::spec::ElementType;
use bson::{RawDocument, RawDocumentBuf, rawdoc};
use mongodb::Database;
use mongodb::error::Error;
use mongodb::options::WriteConcern;
use tokio::sync::{Mutex, mpsc};
use tokio_util::task::AbortOnDropHandle;

use crate::branch::catalogue::{Collection, Uuid};
use crate::branch::fold::{Folded, Sink};
use crate::branch::history::Progress;
use crate::branch::server;
use crate::fault::{Fault, Result};

/// A batch closes at these; far below the server's 48 MB and 100,000, so that several writers share the work of a small restore.
const BATCH_BYTES: usize = 8 << 20;
const BATCH_DOCUMENTS: usize = 2_000;
/// Bytes of batches that are not full yet, all collections together.
const OPEN_BYTES: usize = 16 << 20;

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

/// Takes a batch; whether it is of a capped collection.
type Send = Box<dyn FnMut(Batch, bool) -> Result<()> + std::marker::Send>;

/// Groups documents into batches by collection.
struct Producer {
    /// Name in the target, and whether it is capped, of what is wanted.
    names: HashMap<Uuid, (String, bool)>,
    open: BTreeMap<Uuid, (Vec<RawDocumentBuf>, usize)>,
    /// Bytes of all open batches.
    bytes: usize,
    /// Capped collections have begun: nothing else comes any more.
    in_order: bool,
    counted: Counted,
    send: Option<Send>,
}

impl Producer {
    fn new(wanted: &[Collection], send: Send) -> Self {
        let names = wanted.iter().map(|c| (c.uuid, (c.name.clone(), c.is_capped()))).collect();
        Self { names, open: BTreeMap::new(), bytes: 0, in_order: false, counted: Counted::default(), send: Some(send) }
    }

    fn take(&mut self, uuid: &Uuid, doc: RawDocumentBuf) -> Result<()> {
        let Some((name, capped)) = self.names.get(uuid) else { return Ok(()) };
        if *capped && !self.in_order {
            // The other writers end with the first of these.
            self.in_order = true;
            self.flush()?;
            return self.take(uuid, doc);
        }
        let len = doc.as_bytes().len();
        match self.counted.by_name.get_mut(name) {
            Some(count) => *count = (count.0 + 1, count.1 + len as u64),
            None => drop(self.counted.by_name.insert(name.clone(), (1, len as u64))),
        }
        let (docs, bytes) = self.open.entry(*uuid).or_default();
        docs.push(doc);
        *bytes += len;
        self.bytes += len;
        if *bytes >= BATCH_BYTES || docs.len() >= BATCH_DOCUMENTS {
            self.close(*uuid)?;
        }
        // Many collections at a time: none of them gets far.
        if self.bytes >= OPEN_BYTES { self.flush() } else { Ok(()) }
    }

    fn close(&mut self, uuid: Uuid) -> Result<()> {
        let (Some((docs, bytes)), Some((name, capped))) = (self.open.remove(&uuid), self.names.get(&uuid)) else { return Ok(()) };
        self.bytes -= bytes;
        let send = self.send.as_mut().ok_or_else(|| Fault::cancelled("the writers have stopped"))?;
        send(Batch { coll: name.clone(), docs }, *capped)
    }

    fn flush(&mut self) -> Result<()> {
        let open: Vec<Uuid> = self.open.keys().copied().collect();
        open.into_iter().try_for_each(|uuid| self.close(uuid))
    }

    /// What a fold has kept until its end, the last of it.
    fn drain(&mut self, mut folded: Folded) -> Result<Counted> {
        while let Some(documents) = folded.documents.next_batch()? {
            for document in documents {
                if let Some(uuid) = folded.collections.get(document.coll as usize) {
                    self.take(uuid, document.doc)?;
                }
            }
        }
        self.flush()?;
        self.send = None; // the writers end
        self.counted.left_out = folded.documents.left_out();
        Ok(std::mem::take(&mut self.counted))
    }
}

/// Counts what would be written.
pub(super) async fn count(folded: Folded, wanted: &[Collection]) -> Result<Counted> {
    let mut producer = Producer::new(wanted, Box::new(|_, _| Ok(())));
    run_blocking(move || producer.drain(folded)).await
}

/// Writers at work.
pub(super) struct Writing {
    producer: Arc<parking_lot::Mutex<Producer>>,
    /// Stopped when nobody waits for them: what they write into may be dropped next.
    writers: Vec<AbortOnDropHandle<Result<()>>>,
    ordered: mpsc::Receiver<Batch>,
    target: Database,
    progress: Arc<Progress>,
}

impl Writing {
    pub(super) fn start(wanted: &[Collection], target: &Database, writers: usize, progress: Arc<Progress>) -> Self {
        let (plain, from_plain) = mpsc::channel::<Batch>(4); // keeps the writers busy while the fold replays a partition
        let (ordered, from_ordered) = mpsc::channel::<Batch>(2);
        let mut plain = Some(plain);
        let send = move |batch, capped| {
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
        };
        let producer = Arc::new(parking_lot::Mutex::new(Producer::new(wanted, Box::new(send))));
        // With the last writer gone the producer notices.
        let shared = Arc::new(Mutex::new(from_plain));
        let write = || AbortOnDropHandle::new(tokio::spawn(write_shared(shared.clone(), target.clone(), progress.clone())));
        let writers = (0..writers.max(1)).map(|_| write()).collect();
        Self { producer, writers, ordered: from_ordered, target: target.clone(), progress }
    }

    /// Takes documents on a thread that may block.
    pub(super) fn sink(&self) -> Sink {
        let producer = self.producer.clone();
        Box::new(move |uuid, doc| producer.lock().take(uuid, doc.to_owned()))
    }

    /// Writes what the fold has kept, and waits until everything is written; what was written. Why the writers have stopped counts for more than that
    /// the fold could not go on for it.
    pub(super) async fn finish(self, folded: Result<Folded>) -> Result<Counted> {
        let Self { producer, writers, ordered: mut from_ordered, target, progress } = self;
        let producing = tokio::spawn(run_blocking(move || {
            let mut producer = producer.lock();
            let drained = folded.and_then(|folded| producer.drain(folded));
            producer.send = None;
            drained
        }));
        let mut outcome = Ok(());
        for task in writers {
            let ended = task.await.map_err(|e| Fault::corrupt(format!("a writer panicked: {e}"))).and_then(|r| r);
            outcome = outcome.and(ended);
        }
        while outcome.is_ok() {
            let Some(batch) = from_ordered.recv().await else { break };
            outcome = write(&batch, &target, true, &progress).await;
        }
        drop(from_ordered);
        let produced = producing.await.map_err(|e| Fault::corrupt(format!("folding panicked: {e}"))).and_then(|r| r);
        outcome?;
        produced
    }
}

async fn run_blocking<T: std::marker::Send + 'static>(work: impl FnOnce() -> Result<T> + std::marker::Send + 'static) -> Result<T> {
    tokio::task::spawn_blocking(work).await.map_err(|e| Fault::corrupt(format!("folding panicked: {e}")))?
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
