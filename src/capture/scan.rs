//! Reading a collection that is in use, chunk by chunk, each as it was at one cluster time (correctness.md 11, 13).
//!
//! Owns: one read: its time, where it begins, what ends it, and following the collection when it is renamed. Does not own: which chunks there are and what becomes of
//! them (`jobs::snapshot`), how fast they may follow each other (`rate`).
//!
//! SUBTLE: `{_id: {$gt: last}}` cannot walk a collection: it stays within the type of `last`, and finds nothing behind NaN. The walk goes along the index on `_id`
//! instead (`min` and `hint`), whose order is that of all types, of the collection's collation too, and takes what it has seen last once more if it is
//! still there. Without an upper bound such a walk ends before an `_id` of MaxKey (seen on 6.0), which is looked for by itself.

mod rate;

use std::time::Duration;

use bson::raw::RawBsonRef;
use bson::{RawDocument, RawDocumentBuf, doc, rawdoc};
use futures_util::StreamExt;
use mongodb::options::{ReadPreference, SelectionCriteria};
use mongodb::raw_batch_cursor::{RawBatch, RawBatchCursor};
use mongodb::{ClientSession, Database};
use tokio_util::sync::CancellationToken;

pub use rate::Rate;

use crate::branch::catalogue::Uuid;
use crate::change::{ClusterTime, id_document, uuid_of_bson};
use crate::config::ReadFrom;
use crate::fault::{Fault, Result};
use crate::ledger::{MongoPhase, classify_mongo_error, mongo_error_code};
use crate::runtime::clock;

/// Documents of one reply at most; 16 MiB end it before where they are larger.
const REPLY_DOCUMENTS: i32 = 20_000;
/// How long the server may work on one read: it may wait for a secondary to catch up, and all replies of a cursor count together.
const READ_MS: i32 = 600_000;
/// How long it may take for what it answers from memory.
const ANSWER_MS: i32 = 60_000;
/// Reads in a row that were cut off by changes of the catalogue before the collection counts as never at rest.
const MAX_AGAIN: u32 = 20;
/// What is worth another try, since the collection, or what can be seen of it, has changed under the reader: NamespaceNotFound, CursorNotFound,
/// MaxTimeMSExpired, CappedPositionLost (its writers went round faster), QueryPlanKilled, SnapshotTooOld, SnapshotUnavailable, CollectionUUIDMismatch.
const CHANGED: [i32; 8] = [26, 43, 50, 136, 175, 239, 246, 361];

/// A chunk ends at the first of these; it has at least one document.
#[derive(Debug, Clone, Copy)]
pub struct ChunkLimits {
    pub bytes: u64,
    pub documents: u64,
    pub time: Duration,
}

/// How a chunk ended.
#[derive(Debug, Clone, PartialEq)]
pub struct ChunkEnd {
    /// Every change up to this time is in it, and no later one unless it is fuzzy.
    pub read_at: ClusterTime,
    /// No later change is in it.
    pub until: ClusterTime,
    /// `{_id}` of the last document: where the next chunk goes on.
    pub last: Option<RawDocumentBuf>,
    /// The end of the collection was reached.
    pub done: bool,
    pub documents: u64,
    pub bytes: u64,
    /// The collection could not be read at one time (capped): later changes may be in it or not, up to `until` of the last chunk.
    pub fuzzy: bool,
}

impl ChunkEnd {
    /// Of a collection in which nothing is left.
    pub fn nothing(at: ClusterTime) -> Self {
        Self { read_at: at, until: at, last: None, done: true, documents: 0, bytes: 0, fuzzy: false }
    }
}

/// What came of a read.
#[derive(Debug, Clone, PartialEq)]
pub enum ScanOutcome {
    Chunk(ChunkEnd),
    /// It was cut off, what was handed out of it does not count: ask again for the same chunk.
    Again,
    /// The collection was dropped, or renamed into another database, at this time at the latest. What was handed out of it does not count.
    Gone(ClusterTime),
}

/// A collection that is read.
pub struct Scan {
    db: Database,
    session: ClientSession,
    uuid: Uuid,
    /// Its name as of the last read.
    name: String,
    criteria: SelectionCriteria,
    capped: Option<Capped>,
    again: u32,
}

/// Capped collections refuse snapshot reads: one cursor reads all of them, in the order of insertion.
#[derive(Default)]
struct Capped {
    open: Option<(RawBatchCursor, ClusterTime)>,
}

impl Scan {
    pub async fn new(db: &Database, uuid: Uuid, name: &str, capped: bool, from: ReadFrom) -> Result<Self> {
        let session = db.client().start_session().await.map_err(|e| fault("open a session", &e))?;
        let preference = match from {
            ReadFrom::Primary => ReadPreference::Primary,
            ReadFrom::Secondary => ReadPreference::SecondaryPreferred { options: None },
            ReadFrom::Nearest => ReadPreference::Nearest { options: None },
        };
        let criteria = SelectionCriteria::ReadPreference(preference);
        let capped = capped.then(Capped::default);
        Ok(Self { db: db.clone(), session, uuid, name: name.to_owned(), criteria, capped, again: 0 })
    }

    /// Documents and bytes, as the server keeps count.
    pub async fn estimate(&mut self) -> Result<(u64, u64)> {
        let stats = self.db.run_command(doc! {"collStats": &self.name, "maxTimeMS": ANSWER_MS}).await;
        let stats = stats.map_err(|e| fault("estimate the size", &e))?;
        let number = |field| {
            let value = stats.get_i64(field).or_else(|_| stats.get_i32(field).map(i64::from));
            #[allow(clippy::cast_possible_truncation)] // an estimate
            value.or_else(|_| stats.get_f64(field).map(|n| n as i64)).ok().and_then(|n| u64::try_from(n).ok()).unwrap_or(0)
        };
        Ok((number("count"), number("size")))
    }

    /// Hands the documents behind `after` to `each`, as they were at a time that is not before `not_before`.
    ///
    /// The driver's futures are never dropped half way: a stop is looked at between replies.
    pub async fn chunk(
        &mut self,
        not_before: ClusterTime,
        after: Option<&RawDocument>,
        limits: &ChunkLimits,
        cancel: &CancellationToken,
        each: impl FnMut(&RawDocument) -> Result<()> + Send,
    ) -> Result<ScanOutcome> {
        let read = match self.capped.is_some() {
            true => self.read_capped(not_before, limits, cancel, each).await,
            false => self.read_at_a_time(not_before, after, limits, cancel, each).await,
        };
        match read {
            Ok(end) => {
                self.again = 0;
                Ok(ScanOutcome::Chunk(end))
            }
            Err(Halt::Fault(fault)) => Err(fault),
            Err(Halt::Driver(error)) if mongo_error_code(&error).is_some_and(|code| CHANGED.contains(&code)) => self.changed(&error).await,
            Err(Halt::Driver(error)) => Err(fault(&format!("read {:?}", self.name), &error)),
        }
    }

    /// The collection has changed under the reader: looks for it.
    async fn changed(&mut self, error: &mongodb::error::Error) -> Result<ScanOutcome> {
        self.again += 1;
        if self.again > MAX_AGAIN {
            return Err(fault(&format!("read {:?}, which never rests", self.name), error));
        }
        let mut command = doc! {"listCollections": 1, "filter": {"info.uuid": uuid_of(&self.uuid)}, "cursor": {}};
        command.insert("maxTimeMS", ANSWER_MS);
        let reply = self.db.run_command(command).await.map_err(|e| fault("look for a collection", &e))?;
        let found = reply.get_document("cursor").and_then(|c| c.get_array("firstBatch")).ok().and_then(|batch| {
            let entry = batch.first()?.as_document()?;
            let uuid = entry.get_document("info").ok()?.get("uuid").and_then(uuid_of_bson)?;
            (uuid == self.uuid).then(|| entry.get_str("name").ok().map(str::to_owned))?
        });
        if let Some(capped) = &mut self.capped {
            capped.open = None;
        }
        match found {
            Some(name) => {
                self.name = name;
                Ok(ScanOutcome::Again)
            }
            None => match self.now().await {
                Ok(at) => Ok(ScanOutcome::Gone(at)),
                Err(Halt::Fault(fault)) => Err(fault),
                Err(Halt::Driver(error)) => Err(fault("ask for the time", &error)),
            },
        }
    }

    /// The server's time now; what is read at it waits until a majority has it.
    async fn now(&mut self) -> Result<ClusterTime, Halt> {
        let primary = SelectionCriteria::ReadPreference(ReadPreference::Primary);
        let reply = self.db.run_command(doc! {"ping": 1}).selection_criteria(primary).session(&mut self.session).await?;
        let time =
            reply.get_timestamp("operationTime").map_err(|_| Fault::rejected("the server tells no operationTime: is it a replica set?"))?;
        Ok(time.into())
    }

    async fn read_at_a_time(
        &mut self,
        not_before: ClusterTime,
        after: Option<&RawDocument>,
        limits: &ChunkLimits,
        cancel: &CancellationToken,
        mut each: impl FnMut(&RawDocument) -> Result<()> + Send,
    ) -> Result<ChunkEnd, Halt> {
        let read_at = self.now().await?.max(not_before);
        if after.is_some_and(is_max_key) {
            return Ok(ChunkEnd::nothing(read_at)); // nothing comes after it, and `min` refuses it
        }
        let concern = rawdoc! {"level": "snapshot", "atClusterTime": bson::Timestamp::from(read_at)};
        let mut find = self.find(concern.clone());
        find.append(bson::cstr!("maxTimeMS"), READ_MS);
        find.append(bson::cstr!("hint"), rawdoc! {"_id": 1});
        if let Some(after) = after {
            find.append(bson::cstr!("min"), after);
        }
        let mut cursor = open(&self.db, &self.criteria, find).await?;
        let mut end = ChunkEnd { read_at, until: read_at, done: false, ..ChunkEnd::nothing(read_at) };
        let began = clock::now();
        while let Some(reply) = cursor.next().await {
            let reply = reply?;
            stopped(cancel)?;
            let mut last = None;
            for document in documents(&reply)? {
                let document = document?;
                if end.documents == 0 && after.is_some_and(|after| is_same_id(after, document)) {
                    continue;
                }
                each(document)?;
                end.count(document);
                last = Some(document);
                if end.bytes >= limits.bytes || end.documents >= limits.documents {
                    end.ends_at(document)?;
                    return Ok(end);
                }
            }
            last.map_or(Ok(()), |last| end.ends_at(last))?;
            if end.documents > 0 && began.elapsed() >= limits.time {
                return Ok(end);
            }
        }
        if after.is_some() && !end.last.as_deref().is_some_and(is_max_key) {
            let mut find = self.find(concern);
            find.append(bson::cstr!("maxTimeMS"), ANSWER_MS);
            find.append(bson::cstr!("filter"), rawdoc! {"_id": bson::raw::RawBsonRef::MaxKey});
            let mut cursor = open(&self.db, &self.criteria, find).await?;
            while let Some(reply) = cursor.next().await {
                for document in documents(&reply?)? {
                    let document = document?;
                    each(document)?;
                    end.count(document);
                    end.ends_at(document)?;
                }
            }
        }
        end.done = true;
        Ok(end)
    }

    /// All of a reply is taken: the cursor cannot be set back.
    async fn read_capped(
        &mut self,
        not_before: ClusterTime,
        limits: &ChunkLimits,
        cancel: &CancellationToken,
        mut each: impl FnMut(&RawDocument) -> Result<()> + Send,
    ) -> Result<ChunkEnd, Halt> {
        let (mut cursor, read_at) = match self.capped.as_mut().and_then(|capped| capped.open.take()) {
            Some(open) => open,
            None => {
                let read_at = self.now().await?.max(not_before);
                let concern = rawdoc! {"level": "majority", "afterClusterTime": bson::Timestamp::from(read_at)};
                let find = self.find(concern);
                let (db, criteria) = (self.db.clone(), self.criteria.clone());
                (open(&db, &criteria, find).await?, read_at)
            }
        };
        let mut end = ChunkEnd { fuzzy: true, done: false, ..ChunkEnd::nothing(read_at) };
        while let Some(reply) = cursor.next().await {
            let reply = reply?;
            stopped(cancel)?;
            let mut last = None;
            for document in documents(&reply)? {
                let document = document?;
                each(document)?;
                end.count(document);
                last = Some(document);
            }
            last.map_or(Ok(()), |last| end.ends_at(last))?;
            if end.bytes >= limits.bytes || end.documents >= limits.documents {
                if let Some(capped) = &mut self.capped {
                    capped.open = Some((cursor, read_at));
                }
                return Ok(end);
            }
        }
        end.done = true;
        end.until = self.now().await?;
        Ok(end)
    }

    fn find(&self, concern: RawDocumentBuf) -> RawDocumentBuf {
        rawdoc! {
            "find": self.name.as_str(),
            "collectionUUID": uuid_of(&self.uuid),
            "readConcern": concern,
            "batchSize": REPLY_DOCUMENTS,
        }
    }
}

async fn open(db: &Database, criteria: &SelectionCriteria, find: RawDocumentBuf) -> Result<RawBatchCursor, Halt> {
    let command = db.run_raw_cursor_command(find).selection_criteria(criteria.clone());
    Ok(command.batch_size(u32::try_from(REPLY_DOCUMENTS).unwrap_or(u32::MAX)).batch().await?)
}

impl ChunkEnd {
    fn count(&mut self, document: &RawDocument) {
        self.documents += 1;
        self.bytes += document.as_bytes().len() as u64;
    }

    fn ends_at(&mut self, document: &RawDocument) -> Result<(), Halt> {
        self.last = Some(id_document(document).ok_or_else(|| Fault::corrupt("a document has no _id"))?);
        Ok(())
    }
}

/// Why a read stopped.
enum Halt {
    Driver(mongodb::error::Error),
    Fault(Fault),
}

impl From<mongodb::error::Error> for Halt {
    fn from(e: mongodb::error::Error) -> Self {
        Self::Driver(e)
    }
}

impl From<Fault> for Halt {
    fn from(fault: Fault) -> Self {
        Self::Fault(fault)
    }
}

fn stopped(cancel: &CancellationToken) -> Result<()> {
    if cancel.is_cancelled() { Err(Fault::cancelled("the copy was stopped; it goes on from here")) } else { Ok(()) }
}

fn documents(reply: &RawBatch) -> Result<impl Iterator<Item = Result<&RawDocument>>> {
    let cursor =
        reply.as_raw_document().get_document("cursor").map_err(|e| Fault::corrupt(format!("find: a reply without cursor: {e}")))?;
    let batch = cursor.get_array("nextBatch").or_else(|_| cursor.get_array("firstBatch"));
    let batch = batch.map_err(|e| Fault::corrupt(format!("find: a reply without batch: {e}")))?;
    Ok(batch.into_iter().map(|item| match item {
        Ok(RawBsonRef::Document(document)) => Ok(document),
        Ok(_) => Err(Fault::corrupt("find: a reply with something else than documents")),
        Err(e) => Err(Fault::corrupt(format!("find: a damaged reply: {e}"))),
    }))
}

/// Whether a document has this very `_id`, byte for byte. One that was replaced by an equal number of another type is read again, which does no harm.
fn is_same_id(last: &RawDocument, document: &RawDocument) -> bool {
    matches!((id_document(last), id_document(document)), (Some(a), Some(b)) if a.as_bytes() == b.as_bytes())
}

fn is_max_key(last: &RawDocument) -> bool {
    last.as_bytes() == rawdoc! {"_id": bson::raw::RawBsonRef::MaxKey}.as_bytes()
}

fn uuid_of(uuid: &Uuid) -> bson::Binary {
    bson::Binary { subtype: bson::spec::BinarySubtype::Uuid, bytes: uuid.to_vec() }
}

fn fault(doing: &str, error: &mongodb::error::Error) -> Fault {
    classify_mongo_error(error, MongoPhase::Run).at(doing)
}
