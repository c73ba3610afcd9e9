//! Owns: the memory twin of the change feed: one scripted history, shared by all of its cursors, with tokens, times and replies like the server's.
//! Does not own: misbehaving (`faulty`), or what becomes of the events.
//!
//! A token is `{_data: "82" seconds increment ..}` in hex, so that tokens sort like the server's. A high-water token of a time sorts before every
//! event of that very time: as at the server its time is exclusive (correctness.md 5). As there, a high-water token of another deployment
//! is accepted silently, and one of an event that never was is not.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use bson::{Binary, DateTime, Document, RawArrayBuf, RawDocument, RawDocumentBuf, Timestamp, doc, rawdoc, spec::BinarySubtype};
use parking_lot::Mutex;
use tokio::sync::Notify;

use crate::change::ClusterTime;
use crate::fault::{Fault, Result};
use crate::ledger::Coverage;

use super::feed::{ChangeFeed, FeedCursor, Reply};

/// Where the source's clock starts: some time in 2023.
const START: ClusterTime = ClusterTime { t: 1_700_000_000, i: 1 };
/// Events of a reply unless told otherwise.
const REPLY_EVENTS: usize = 1_000;
/// Pause before an empty reply unless told otherwise; the real server holds it for a second.
const QUIET: Duration = Duration::from_millis(20);

/// A source in memory.
#[derive(Debug, Clone)]
pub struct MemoryFeed {
    db: String,
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    log: Mutex<Log>,
    grown: Notify,
    opens: AtomicU64,
}

#[derive(Debug)]
struct Log {
    identity: String,
    coverage: Coverage,
    events: Vec<Event>,
    /// The source's clock: every new event is at this time or later, and later than the event before.
    now: ClusterTime,
    /// Positions up to this key are no longer served; empty: since the beginning.
    lost: String,
    reply_events: usize,
    quiet: Duration,
    transactions: i64,
}

#[derive(Debug, Clone)]
struct Event {
    /// `_data` of its token.
    key: String,
    raw: RawDocumentBuf,
    closes: bool,
}

impl MemoryFeed {
    /// An empty source with a database `db`; `identity` names the deployment.
    pub fn new(db: &str, identity: &str) -> Self {
        let log = Log {
            identity: identity.to_owned(),
            coverage: Coverage::full(),
            events: Vec::new(),
            now: START,
            lost: high_water(START.before()),
            reply_events: REPLY_EVENTS,
            quiet: QUIET,
            transactions: 0,
        };
        Self { db: db.to_owned(), shared: Arc::new(Shared { log: Mutex::new(log), grown: Notify::new(), opens: AtomicU64::new(0) }) }
    }

    /// Most events of a reply from now on; at least one.
    pub fn set_reply_events(&self, most: usize) {
        self.shared.log.lock().reply_events = most.max(1);
    }

    /// Pause before an empty reply from now on.
    pub fn set_quiet(&self, pause: Duration) {
        self.shared.log.lock().quiet = pause;
    }

    /// The address leads to another deployment from now on.
    pub fn set_identity(&self, identity: &str) {
        self.shared.log.lock().identity = identity.to_owned();
    }

    /// What the source agrees to send, for streams opened from now on.
    pub fn set_coverage(&self, coverage: Coverage) {
        self.shared.log.lock().coverage = coverage;
    }

    /// Writes one document; returns the event's token.
    pub fn insert(&self, coll: &str, full: &Document) -> Result<RawDocumentBuf> {
        let mut fields = doc! { "operationType": "insert", "fullDocument": full.clone(), "ns": { "db": &self.db, "coll": coll } };
        if let Some(id) = full.get("_id") {
            fields.insert("documentKey", doc! { "_id": id.clone() });
        }
        self.push(&fields)
    }

    /// Anything that happens alone: the event's fields except `_id`, times and UUID, which are added. Returns its token.
    pub fn push(&self, fields: &Document) -> Result<RawDocumentBuf> {
        Ok(self.append(std::slice::from_ref(fields), false)?.swap_remove(0))
    }

    /// Several events of one transaction: one time, one `lsid` and `txnNumber`. Returns their tokens.
    pub fn transaction(&self, all: &[Document]) -> Result<Vec<RawDocumentBuf>> {
        self.append(all, true)
    }

    /// `drop` of a collection, or `dropDatabase` with the `invalidate` that closes every stream when `coll` is `None`.
    pub fn drop(&self, coll: Option<&str>) -> Result<RawDocumentBuf> {
        match coll {
            Some(coll) => self.push(&doc! { "operationType": "drop", "ns": { "db": &self.db, "coll": coll } }),
            None => {
                let both = [doc! { "operationType": "dropDatabase", "ns": { "db": &self.db } }, doc! { "operationType": "invalidate" }];
                Ok(self.append(&both, false)?.swap_remove(0))
            }
        }
    }

    /// A time-series collection as the server shows it: its buckets, then the view on them, which has no UUID. Returns the view's token.
    pub fn create_timeseries(&self, name: &str) -> Result<RawDocumentBuf> {
        let create = |coll: &str, description: Document| {
            self.push(&doc! { "operationType": "create", "ns": { "db": &self.db, "coll": coll }, "operationDescription": description })
        };
        let (buckets, options) = (format!("system.buckets.{name}"), doc! { "timeField": "t" });
        create(&buckets, doc! { "timeseries": options.clone() })?;
        create(name, doc! { "viewOn": buckets, "pipeline": [{ "$_internalUnpackBucket": options }] })
    }

    /// The source's clock moves on without an event here: writes elsewhere, or the server's own.
    pub fn tick(&self) {
        self.shared.log.lock().tick();
        self.shared.grown.notify_waiters();
    }

    /// The oplog rolls over the first `events` events: positions before or at the last of them are gone.
    pub fn trim(&self, events: usize) {
        let mut log = self.shared.log.lock();
        if let Some(key) = events.checked_sub(1).and_then(|last| log.events.get(last)).map(|e| e.key.clone()) {
            log.lost = key;
            log.tick(); // the oplog never holds nothing: the present is served
        }
    }

    /// Every event so far, also those that are trimmed.
    pub fn history(&self) -> Vec<RawDocumentBuf> {
        self.shared.log.lock().events.iter().map(|e| e.raw.clone()).collect()
    }

    /// Number of events so far.
    pub fn len(&self) -> usize {
        self.shared.log.lock().events.len()
    }

    /// Whether nothing has happened yet.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// How often a stream was opened, so that a test can tell that it tested resuming.
    pub fn opens(&self) -> u64 {
        self.shared.opens.load(Ordering::Relaxed)
    }

    /// The token of the present: resumes before whatever comes next.
    pub fn present(&self) -> RawDocumentBuf {
        let log = self.shared.log.lock();
        token(&log.end_key(log.events.len()))
    }

    fn append(&self, all: &[Document], as_transaction: bool) -> Result<Vec<RawDocumentBuf>> {
        let mut log = self.shared.log.lock();
        log.transactions += i64::from(as_transaction);
        let txn = as_transaction.then_some(log.transactions);
        let time = log.next_time();
        log.now = time;
        let mut tokens = Vec::with_capacity(all.len());
        for (n, fields) in all.iter().enumerate() {
            let key = event_key(time, n);
            let event = Event {
                raw: encode(&key, time, txn, fields)?,
                closes: fields.get_str("operationType").is_ok_and(|t| t == "invalidate"),
                key,
            };
            tokens.push(token(&event.key));
            log.events.push(event);
        }
        drop(log);
        self.shared.grown.notify_waiters();
        Ok(tokens)
    }
}

impl Log {
    /// The time of the next event: now, unless an event has it already.
    fn next_time(&self) -> ClusterTime {
        match self.events.last() {
            Some(last) if last.key > high_water(self.now) => after(self.now),
            _ => self.now,
        }
    }

    fn tick(&mut self) {
        self.now = after(self.now);
    }

    /// Key of the position after the first `seen` events: high-water where the end is reached and the clock is past it, else the last event's.
    fn end_key(&self, seen: usize) -> String {
        match seen.checked_sub(1).and_then(|last| self.events.get(last)) {
            Some(last) if seen < self.events.len() || last.key > high_water(self.now) => last.key.clone(),
            _ => high_water(self.now),
        }
    }

    fn check_position(&self, key: &str) -> Result<()> {
        if *key <= *self.lost {
            return Err(Fault::history_lost("the oplog has rolled past the resume token"));
        }
        let of_event = key.len() > HIGH_WATER_LEN;
        if of_event && self.events.binary_search_by(|e| (*e.key).cmp(key)).is_err() {
            return Err(Fault::history_lost("the resume token was not found in the oplog"));
        }
        Ok(())
    }
}

#[async_trait]
impl ChangeFeed for MemoryFeed {
    async fn identity(&self) -> Result<String> {
        Ok(self.shared.log.lock().identity.clone())
    }

    async fn open(&self, after: Option<&RawDocument>) -> Result<Box<dyn FeedCursor>> {
        self.shared.opens.fetch_add(1, Ordering::Relaxed);
        let log = self.shared.log.lock();
        let after = match after {
            None => log.end_key(log.events.len()),
            Some(token) => token.get_str("_data").map_err(|_| Fault::history_lost("this is no resume token"))?.to_owned(),
        };
        log.check_position(&after)?;
        Ok(Box::new(MemoryCursor { shared: self.shared.clone(), coverage: log.coverage.clone(), after, first: true, closed: false }))
    }
}

struct MemoryCursor {
    shared: Arc<Shared>,
    coverage: Coverage,
    /// Key of the position.
    after: String,
    /// The answer to opening comes at once, like the server's.
    first: bool,
    closed: bool,
}

impl MemoryCursor {
    async fn wait_for_events(&self) {
        let grown = self.shared.grown.notified();
        tokio::pin!(grown);
        grown.as_mut().enable();
        let quiet = {
            let log = self.shared.log.lock();
            if log.events.last().is_some_and(|e| e.key > self.after) {
                return;
            }
            log.quiet
        };
        tokio::select! {
            () = grown => {}
            () = tokio::time::sleep(quiet) => {}
        }
    }
}

#[async_trait]
impl FeedCursor for MemoryCursor {
    async fn next(&mut self) -> Result<Reply> {
        if self.closed {
            return Err(Fault::transient("the server closed the change stream"));
        }
        if !std::mem::take(&mut self.first) {
            self.wait_for_events().await;
        }
        let mut log = self.shared.log.lock();
        log.check_position(&self.after)?;
        let from = log.events.partition_point(|e| e.key <= self.after);
        let due = log.events.get(from..).unwrap_or_default();
        let closing = due.iter().position(|e| e.closes).map_or(due.len(), |at| at + 1);
        let events: Vec<Event> = due.iter().take(closing.min(log.reply_events)).cloned().collect();
        self.closed = events.last().is_some_and(|e| e.closes);
        if events.is_empty() {
            log.tick();
        }
        // A position of the future stays where it is until the clock has passed it.
        let end = if self.closed { events.last().map(|e| e.key.clone()).unwrap_or_default() } else { log.end_key(from + events.len()) };
        self.after = end.max(std::mem::take(&mut self.after));
        reply(events.iter().map(|e| &*e.raw), &token(&self.after))
    }

    fn coverage(&self) -> Coverage {
        self.coverage.clone()
    }
}

/// A reply as the server sends it.
fn reply<'a>(events: impl Iterator<Item = &'a RawDocument>, token: &RawDocument) -> Result<Reply> {
    let mut batch = RawArrayBuf::new();
    events.for_each(|e| batch.push(e));
    Ok(Reply::new(rawdoc! { "cursor": { "nextBatch": batch, "postBatchResumeToken": token.to_owned() } }))
}

const HIGH_WATER_LEN: usize = 2 + 8 + 8 + 2;

fn high_water(time: ClusterTime) -> String {
    format!("82{:08X}{:08X}00", time.t, time.i)
}

fn event_key(time: ClusterTime, n: usize) -> String {
    format!("82{:08X}{:08X}46{n:08X}", time.t, time.i)
}

fn token(key: &str) -> RawDocumentBuf {
    rawdoc! { "_data": key }
}

fn after(time: ClusterTime) -> ClusterTime {
    match time.i.checked_add(1) {
        Some(i) => ClusterTime { i, ..time },
        None => ClusterTime { t: time.t.saturating_add(1), i: 1 },
    }
}

/// The fields in the order of MongoDB 6.0.
fn encode(key: &str, time: ClusterTime, txn: Option<i64>, fields: &Document) -> Result<RawDocumentBuf> {
    let uuid = |n: u8| Binary { subtype: BinarySubtype::Uuid, bytes: vec![n; 16] };
    let mut event = doc! { "_id": { "_data": key } };
    event.insert("operationType", fields.get_str("operationType").unwrap_or("unknown"));
    event.insert("clusterTime", Timestamp::from(time));
    let is_view = fields.get_document("operationDescription").is_ok_and(|d| d.contains_key("viewOn"));
    if !is_view && fields.get_document("ns").is_ok_and(|ns| ns.contains_key("coll")) {
        event.insert("collectionUUID", uuid(7));
    }
    event.insert("wallTime", DateTime::from_millis(i64::from(time.t) * 1000));
    if let Some(number) = txn {
        event.insert("lsid", doc! { "id": uuid(9), "uid": Binary { subtype: BinarySubtype::Generic, bytes: vec![1; 32] } });
        event.insert("txnNumber", number);
    }
    event.extend(fields.iter().filter(|(name, _)| *name != "operationType").map(|(name, value)| (name.clone(), value.clone())));
    RawDocumentBuf::try_from(&event).map_err(|e| Fault::corrupt(format!("not an event: {e}")))
}
