//! Owns: reading a branch's history from the bucket in order: paging rows, fetching and checking objects a few at a time, decoding them off the
//! async threads, and finding transaction boundaries. Does not own: what is done with the changes (`fold`, `verify`).
//!
//! ```text
//! rows (pages) ──▶ fetch + check sha256 + decode (several, bounded by bytes) ══ 2 segments ══▶ consumer on one blocking thread, in order
//! ```

mod snap;

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bson::RawDocumentBuf;
use bytes::Bytes;
use sha2::{Digest, Sha256};
use tokio::sync::mpsc;
use tokio::task::JoinHandle;

use super::documents::BaseManifest;
use super::fold::Flow;
use super::layout::{self, hex};
use super::point::{Bound, Known, Point, captured_until};
use crate::change::{ChangeRef, ClusterTime, token_time};
use crate::fault::{Fault, Kind, Result};
use crate::ledger::{Branch, Capture, SegmentKind, SegmentRow, SharedLedger};
use crate::runtime::random::jitter;
use crate::segment::{RawBlock, SegmentFile};
use crate::store::Store;

/// Rows per page of the ledger.
const PAGE: usize = 500;
/// Stored and raw bytes of segments between ledger and consumer. One is always let through.
const IN_FLIGHT_BYTES: u64 = 64 << 20;
/// Objects fetched at a time: hides the latency of the store, a few are enough for its bandwidth.
const IN_FLIGHT: usize = 8;
/// Attempts for one object before the whole read fails.
const ATTEMPTS: u32 = 5;

/// Figures of a running restore or verification, for a progress bar.
#[derive(Debug, Default)]
pub struct Progress {
    pub segments: AtomicU64,
    /// Bytes of objects read.
    pub stored_bytes: AtomicU64,
    pub changes: AtomicU64,
    /// Documents and their bytes written to the target (or compared).
    pub documents: AtomicU64,
    pub document_bytes: AtomicU64,
}

/// A decoded segment.
#[derive(Debug)]
pub struct Loaded {
    pub row: SegmentRow,
    /// Absent for a gap that is crossed; of one that is checked it has no blocks.
    pub file: Option<Decoded>,
}

/// What was in the object.
#[derive(Debug)]
pub struct Decoded {
    pub start_token: RawDocumentBuf,
    pub end_token: RawDocumentBuf,
    pub blocks: Vec<RawBlock>,
    pub summary: crate::segment::Summary,
}

/// Takes segments in order, on a thread that may compute and block.
pub trait Consumer: Send + 'static {
    fn segment(&mut self, loaded: &Loaded) -> Result<Flow>;
}

impl Loaded {
    /// Calls `each` for every change; faults name object, block and, from the caller's text, the change.
    pub fn each(&self, mut each: impl FnMut(u64, &ChangeRef<'_>) -> Result<Flow>) -> Result<Flow> {
        let Some(file) = &self.file else { return Ok(Flow::Continue) };
        for (i, block) in file.blocks.iter().enumerate() {
            let place = || format!("{}, block {i}", self.row.key);
            for row in block.rows().map_err(|f| f.at(place()))? {
                let (seq, change) = row.map_err(|f| f.at(place()))?;
                if each(seq, &change).map_err(|f| f.at(place()))? == Flow::Done {
                    return Ok(Flow::Done);
                }
            }
        }
        Ok(Flow::Continue)
    }
}

/// What part of history to read.
#[derive(Debug, Clone, Copy)]
pub struct Range {
    pub from_seq: u64,
    /// Segments that begin after this are not read.
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
}

/// A branch as it was when it was opened.
#[derive(Debug, Clone)]
pub struct History {
    ledger: SharedLedger,
    store: Store,
    pub branch: Branch,
    pub capture: Option<Capture>,
    pub captured_until: Option<ClusterTime>,
}

impl History {
    /// Reads position, then branch, so that `captured_until` errs on the safe side.
    pub async fn open(ledger: SharedLedger, store: Store, name: &str) -> Result<Self> {
        let missing = || Fault::missing(format!("there is no branch {name:?}"));
        let id = match ledger.branch_named(name).await? {
            Some(branch) => branch.id,
            None => ledger.branch(name).await?.ok_or_else(missing)?.id,
        };
        let capture = ledger.captures().await?.into_iter().find(|c| c.branch == id);
        let position = match &capture {
            Some(capture) => ledger.position(&capture.id).await?,
            None => None,
        };
        let branch = ledger.branch(&id).await?.ok_or_else(missing)?;
        let position = match position {
            Some((token, next_seq)) => Some((token_time(&token)?, next_seq)),
            None => None,
        };
        let captured_until = captured_until(position, branch.head.seq, branch.head.time, None);
        Ok(Self { ledger, store, branch, capture, captured_until })
    }

    /// The part of the name that is in keys.
    pub fn project(&self) -> &str {
        layout::project_of(&self.branch.name)
    }

    /// The base that history starts from.
    pub async fn base(&self) -> Result<BaseManifest> {
        let key = layout::base_manifest(self.project(), &self.branch.id, 0, &self.branch.base);
        let bytes = self.read_object(&key).await?;
        let sha256 = hex(&Sha256::digest(&bytes));
        if sha256 != self.branch.base_sha256 {
            return Err(Fault::corrupt(format!(
                "{key}: object has sha256 {sha256}, the branch says {}: the catalogue in it cannot be trusted",
                self.branch.base_sha256
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

    /// What a point is resolved against.
    pub fn known(&self) -> Known {
        Known {
            head: self.branch.head.seq,
            captured_until: self.captured_until.unwrap_or_default(),
            base_time: self.branch.base_time,
            retained_from: 1,
        }
    }

    /// How far to read for a point: checked against what is known and snapped down to the end of a transaction (correctness.md 6).
    pub async fn resolve(&self, point: Point) -> Result<Bound> {
        match point.resolve(&self.known())? {
            Bound::Seq(seq) => {
                let snapped = snap::snap(self, seq).await?;
                if let Some(next) = snapped.next_time.filter(|next| *next <= self.branch.base_time) {
                    let base = self.branch.base_time;
                    return Err(Fault::rejected(format!("{point} is before the base at {base}: change seq:{} is of {next}", seq + 1)));
                }
                Ok(Bound::Seq(snapped.seq))
            }
            time => Ok(time),
        }
    }

    /// Feeds the range to the consumer and gives it back.
    pub async fn read<C: Consumer>(&self, range: Range, mut consumer: C, progress: Arc<Progress>) -> Result<C> {
        // Two decoded segments wait at most: the consumer is the slow side, memory is counted by IN_FLIGHT_BYTES.
        let (to, mut from) = mpsc::channel::<Loaded>(2);
        let consuming = tokio::task::spawn_blocking(move || {
            let mut last_end: Option<RawDocumentBuf> = None;
            while let Some(loaded) = from.blocking_recv() {
                check_chain(&mut last_end, &loaded)?;
                let flow = consumer.segment(&loaded)?;
                progress.segments.fetch_add(1, Ordering::Relaxed);
                progress.stored_bytes.fetch_add(loaded.row.stored_bytes, Ordering::Relaxed);
                progress.changes.fetch_add(loaded.row.last_seq - loaded.row.first_seq + 1, Ordering::Relaxed);
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
        let mut rows = Rows::new(self, range);
        let mut flying: VecDeque<(u64, JoinHandle<Result<Loaded>>)> = VecDeque::new();
        let mut bytes = 0;
        let mut waiting = rows.next().await?;
        while waiting.is_some() || !flying.is_empty() {
            while let Some(row) =
                waiting.take_if(|row| flying.is_empty() || (flying.len() < IN_FLIGHT && bytes + cost(row) <= IN_FLIGHT_BYTES))
            {
                bytes += cost(&row);
                flying.push_back((cost(&row), tokio::spawn(load(self.store.clone(), row, range.gaps))));
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
}

fn cost(row: &SegmentRow) -> u64 {
    row.stored_bytes.saturating_add(row.raw_bytes)
}

/// The rows of a range, page by page, checked to be dense and of epochs that do not go back (correctness.md 20).
struct Rows<'a> {
    history: &'a History,
    range: Range,
    page: VecDeque<SegmentRow>,
    next_seq: u64,
    epoch: u64,
    first: bool,
}

impl<'a> Rows<'a> {
    fn new(history: &'a History, range: Range) -> Self {
        Self { history, range, page: VecDeque::new(), next_seq: range.from_seq.max(1), epoch: 0, first: true }
    }

    async fn next(&mut self) -> Result<Option<SegmentRow>> {
        let head = self.history.branch.head.seq;
        if self.next_seq > head || matches!(self.range.until, Bound::Seq(until) if self.next_seq > until) {
            return Ok(None);
        }
        if self.page.is_empty() {
            self.page = self.history.ledger.segments(&self.history.branch.id, self.next_seq, PAGE).await?.into();
        }
        let name = &self.history.branch.name;
        let hole = |what: String| Err(Fault::corrupt(format!("history of {name} is not dense: {what}")));
        let Some(row) = self.page.pop_front() else {
            return hole(format!("no segment holds seq:{}, but the head is seq:{head}", self.next_seq));
        };
        let fits = if self.first { row.first_seq <= self.next_seq } else { row.first_seq == self.next_seq };
        if !fits || row.last_seq < row.first_seq || row.last_seq < self.next_seq {
            return hole(format!("after seq:{} comes {} with seq:{}..{}", self.next_seq - 1, row.key, row.first_seq, row.last_seq));
        }
        if row.epoch < self.epoch {
            return hole(format!("{} is of epoch {}, after epoch {}", row.key, row.epoch, self.epoch));
        }
        if matches!(self.range.until, Bound::Time(until) if row.first_time > until) {
            return Ok(None);
        }
        if row.kind == SegmentKind::Gap && self.range.gaps == Gaps::Refuse {
            let (first, last) = (row.first_seq, row.last_seq);
            return Err(Fault::rejected(format!(
                "history of {name} has a gap at seq:{first}..{last} ({}); --across-gap goes on without it",
                row.key
            )));
        }
        if row.holes > 0 && self.range.gaps == Gaps::Refuse {
            let (holes, key) = (row.holes, &row.key);
            return Err(Fault::rejected(format!(
                "{key} has {holes} changes that this version cannot apply; --across-gap goes on without them"
            )));
        }
        (self.next_seq, self.epoch, self.first) = (row.last_seq + 1, row.epoch, false);
        Ok(Some(row))
    }
}

/// Each segment starts after the token at which the one before it ended.
fn check_chain(last_end: &mut Option<RawDocumentBuf>, loaded: &Loaded) -> Result<()> {
    let Some(file) = &loaded.file else {
        *last_end = None;
        return Ok(());
    };
    if last_end.as_ref().is_some_and(|end| *end != file.start_token) {
        return Err(Fault::corrupt(format!("{}: its start token is not the end token of the segment before it", loaded.row.key)));
    }
    *last_end = Some(file.end_token.clone());
    Ok(())
}

/// Fetches, checks and decodes one segment.
async fn load(store: Store, row: SegmentRow, gaps: Gaps) -> Result<Loaded> {
    if row.kind == SegmentKind::Gap && gaps != Gaps::Check {
        return Ok(Loaded { row, file: None });
    }
    let bytes = get(&store, &row.key).await?;
    let decoding = tokio::task::spawn_blocking(move || decode(&row, bytes).map(|file| Loaded { row, file: Some(file) }));
    decoding.await.map_err(|e| Fault::corrupt(format!("decoding a segment panicked: {e}")))?
}

/// Checks object against row, and decodes every block. CPU only.
pub(super) fn decode(row: &SegmentRow, bytes: Bytes) -> Result<Decoded> {
    let key = &row.key;
    let bad = |what: String| Err(Fault::corrupt(format!("{key}: {what}")));
    if bytes.len() as u64 != row.stored_bytes {
        return bad(format!("object has {} bytes, its row says {}", bytes.len(), row.stored_bytes));
    }
    let sha256 = hex(&Sha256::digest(&bytes));
    if sha256 != row.sha256 {
        let other = || Fault::corrupt(format!("{key}: object has sha256 {sha256}, its row says {}: it is another segment", row.sha256));
        return Err(SegmentFile::find_damage(key, &bytes).unwrap_or_else(other));
    }
    let file = SegmentFile::parse(key, bytes)?;
    let header = file.header();
    let said = (header.kind, header.branch.as_str(), header.epoch, header.first_seq, header.last_seq, header.first_time, header.last_time);
    let known = (row.kind, row.branch.as_str(), row.epoch, row.first_seq, row.last_seq, row.first_time, row.last_time);
    if said != known {
        return bad(format!("header says {said:?}, its row says {known:?}"));
    }
    // Boundaries of transactions are found by these.
    let (said, known) = ((header.starts_inside, header.ends), (row.starts_inside, row.ends));
    if said != known {
        return bad(format!("header says (starts inside, ends) {said:?}, its row says {known:?}"));
    }
    let blocks = (0..file.block_count()).map(|i| file.block(i)).collect::<Result<Vec<_>>>()?;
    let mut next = row.first_seq;
    for (i, block) in blocks.iter().enumerate() {
        if block.first_seq != next {
            return bad(format!("block {i} begins at seq:{}, expected seq:{next}", block.first_seq));
        }
        next += u64::from(block.count);
    }
    if row.kind == SegmentKind::Changes && next != row.last_seq + 1 {
        return bad(format!("blocks end at seq:{}, its row says seq:{}", next - 1, row.last_seq));
    }
    let summary = file.footer().summary;
    Ok(Decoded { start_token: header.start_token.clone(), end_token: header.end_token.clone(), blocks, summary })
}

/// A whole object, with patience for a store that fails for a moment.
pub(super) async fn get(store: &Store, key: &str) -> Result<Bytes> {
    let mut attempt = 1;
    loop {
        match store.get(key, None).await {
            Ok(bytes) => return Ok(bytes),
            Err(fault) if fault.may_heal() && attempt < ATTEMPTS => {
                let pause = fault.retry_after.unwrap_or(Duration::from_millis(100 << attempt));
                tokio::time::sleep(jitter(pause)).await;
                attempt += 1;
            }
            Err(fault) if fault.kind == Kind::Missing => {
                return Err(Fault::corrupt(format!("object {key} is not in {}", store.describe())));
            }
            Err(fault) => return Err(fault.at(format!("object {key}"))),
        }
    }
}
