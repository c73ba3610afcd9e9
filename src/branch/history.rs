//! Owns: reading the history of a line from the bucket in order: fetching and checking objects a few at a time, decoding them off the async threads,
//! and finding what a point means. Does not own: which branches the line goes through (`line`), what is done with the changes (`fold`, `verify`).
//!
//! ```text
//! rows (pages) ──▶ fetch + check sha256 + decode (several, bounded by bytes) ══ 2 segments ══▶ consumer on one blocking thread, in order
//! ```

mod load;
mod locate;
mod rows;
mod snap;

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use bson::RawDocumentBuf;
use bytes::Bytes;
use sha2::{Digest, Sha256};
use tokio::sync::mpsc;
use tokio::task::JoinHandle;

use super::documents::BaseManifest;
use super::fold::Flow;
use super::layout::{self, hex};
use super::line::{Based, Line};
use super::point::Bound;
use crate::change::ClusterTime;
use crate::fault::{Fault, Result};
use crate::ledger::{Branch, Capture, SegmentRow, SharedLedger};
use crate::store::Store;

#[cfg(test)]
pub(in crate::branch) use load::decode;
pub use load::{Decoded, Loaded};
pub(in crate::branch) use load::{get, open as open_object};
pub use locate::Located;
use rows::{Rows, Wanted};

/// Stored and raw bytes of segments between ledger and consumer. One is always let through.
const IN_FLIGHT_BYTES: u64 = 64 << 20;
/// Objects fetched at a time: hides the latency of the store, a few are enough for its bandwidth.
const IN_FLIGHT: usize = 8;

/// Figures of a running restore or verification, for a progress bar.
#[derive(Debug, Default)]
pub struct Progress {
    pub segments: AtomicU64,
    /// Bytes of objects read.
    pub stored_bytes: AtomicU64,
    pub changes: AtomicU64,
    /// Documents of a base that were read.
    pub base_documents: AtomicU64,
    /// About how many documents are to be written; 0 while that is not known.
    pub expected_documents: AtomicU64,
    /// Documents and their bytes written to the target (or compared).
    pub documents: AtomicU64,
    pub document_bytes: AtomicU64,
}

/// Takes segments in order, on a thread that may compute and block.
pub trait Consumer: Send + 'static {
    fn segment(&mut self, loaded: &Loaded) -> Result<Flow>;
}

/// What part of history to read.
#[derive(Debug, Clone, Copy)]
pub struct Range {
    pub from_seq: u64,
    /// Changes after this are not read.
    pub until: Bound,
    pub gaps: Gaps,
}

/// What to do at a recorded gap, or at a segment with holes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Gaps {
    /// Stop with a refusal.
    Refuse,
    /// Go on; the gap's own object is not read, so it may even be missing.
    Cross,
    /// Go on, and read the gap's object too.
    Check,
    /// Go on, and read only segments that change the catalogue.
    Ddl,
}

/// A branch as it was when it was opened.
#[derive(Debug, Clone)]
pub struct History {
    ledger: SharedLedger,
    store: Store,
    line: Line,
    pub branch: Branch,
    pub capture: Option<Capture>,
    pub captured_until: Option<ClusterTime>,
}

impl History {
    /// Of a branch by name or id.
    pub async fn open(ledger: SharedLedger, store: Store, name: &str) -> Result<Self> {
        let line = Line::open(&*ledger, name).await?;
        let (branch, capture, captured_until) = (line.own().branch.clone(), line.capture.clone(), line.captured_until);
        Ok(Self { ledger, store, line, branch, capture, captured_until })
    }

    /// The part of the name that is in keys.
    pub fn project(&self) -> &str {
        layout::project_of(&self.branch.name)
    }

    /// The branches that history goes through.
    pub fn line(&self) -> &Line {
        &self.line
    }

    pub fn ledger(&self) -> &SharedLedger {
        &self.ledger
    }

    pub fn store(&self) -> &Store {
        &self.store
    }

    /// The manifest of a base.
    pub async fn manifest(&self, based: &Based) -> Result<BaseManifest> {
        let (base, branch) = (&based.base, &self.line.parts()[based.part].branch);
        let key = layout::base_manifest(layout::project_of(&branch.name), &branch.id, base.seq, &base.id);
        let bytes = self.read_object(&key).await?;
        let sha256 = hex(&Sha256::digest(&bytes));
        if sha256 != base.sha256 {
            return Err(Fault::corrupt(format!(
                "{key}: object has sha256 {sha256}, the metadata says {}: the catalogue in it cannot be trusted",
                base.sha256
            )));
        }
        BaseManifest::from_json(&key, &bytes)
    }

    /// The whole of an object of this branch; `Corrupt` when it is missing.
    pub(super) async fn read_object(&self, key: &str) -> Result<Bytes> {
        get(&self.store, key).await
    }

    /// Metadata of an object.
    pub async fn object(&self, key: &str) -> Result<Option<crate::store::ObjectInfo>> {
        self.store.head(key).await.map_err(|f| f.at(format!("object {key}")))
    }

    /// Feeds the range to the consumer and gives it back.
    pub async fn read<C: Consumer>(&self, range: Range, mut consumer: C, progress: Arc<Progress>) -> Result<C> {
        // Two decoded segments wait at most: the consumer is the slow side, memory is counted by IN_FLIGHT_BYTES.
        let (to, mut from) = mpsc::channel::<Loaded>(2);
        let consuming = tokio::task::spawn_blocking(move || {
            let mut chain = Chain::default();
            while let Some(loaded) = from.blocking_recv() {
                chain.check(&loaded)?;
                let flow = consumer.segment(&loaded)?;
                progress.segments.fetch_add(1, Ordering::Relaxed);
                progress.stored_bytes.fetch_add(loaded.row.stored_bytes, Ordering::Relaxed);
                progress.changes.fetch_add((loaded.last + 1).saturating_sub(loaded.first), Ordering::Relaxed);
                if flow == Flow::Done {
                    break;
                }
            }
            Ok::<C, Fault>(consumer)
        });
        let feeding = self.feed(range, to).await;
        let consumed = consuming.await.map_err(|e| Fault::corrupt(format!("reading history panicked: {e}")))?;
        // A consumer that is done or has failed closes the channel; that is no fault of the feeding side.
        let consumer = consumed?;
        feeding?;
        Ok(consumer)
    }

    async fn feed(&self, range: Range, to: mpsc::Sender<Loaded>) -> Result<()> {
        let until = match range.until {
            Bound::Seq(until) => until,
            Bound::Time(time) => self.seq_at(time).await?.seq,
        };
        let mut rows = Rows::new(self, range.from_seq, until, range.gaps);
        let mut flying: VecDeque<(u64, JoinHandle<Result<Loaded>>)> = VecDeque::new();
        let mut bytes = 0;
        let mut waiting = rows.next().await?;
        while waiting.is_some() || !flying.is_empty() {
            while let Some(wanted) =
                waiting.take_if(|w| flying.is_empty() || (flying.len() < IN_FLIGHT && bytes + cost(&w.row) <= IN_FLIGHT_BYTES))
            {
                let cost = cost(&wanted.row);
                bytes += cost;
                flying.push_back((cost, tokio::spawn(load::load(self.store.clone(), wanted, range.gaps))));
                waiting = rows.next().await?;
            }
            let Some((cost, task)) = flying.pop_front() else { break };
            let loaded = task.await.map_err(|e| Fault::corrupt(format!("decoding a segment panicked: {e}")))??;
            bytes -= cost;
            if to.send(loaded).await.is_err() {
                break;
            }
        }
        Ok(())
    }

    /// The segment that holds a change, decoded; the segment may hold more.
    async fn segment_of(&self, row: SegmentRow, part: usize) -> Result<Loaded> {
        let (first, last) = (row.first_seq, row.last_seq.min(self.line.parts()[part].last));
        load::load(self.store.clone(), Wanted { row, first, last, part }, Gaps::Cross).await
    }
}

fn cost(row: &SegmentRow) -> u64 {
    row.stored_bytes.saturating_add(row.raw_bytes)
}

/// Each segment starts after the token at which the one before it ended, within a part of the line: another part may be of another source.
#[derive(Debug, Default)]
struct Chain {
    part: usize,
    /// Where it goes on: what is passed over in between ends nothing.
    next: u64,
    last_end: Option<RawDocumentBuf>,
}

impl Chain {
    fn check(&mut self, loaded: &Loaded) -> Result<()> {
        if loaded.part != self.part || loaded.row.first_seq != self.next {
            (self.part, self.last_end) = (loaded.part, None);
        }
        self.next = loaded.row.last_seq + 1;
        let Some(file) = &loaded.file else {
            self.last_end = None;
            return Ok(());
        };
        if self.last_end.as_ref().is_some_and(|end| *end != file.start_token) {
            return Err(Fault::corrupt(format!("{}: its start token is not the end token of the segment before it", loaded.row.key)));
        }
        self.last_end = Some(file.end_token.clone());
        Ok(())
    }
}
