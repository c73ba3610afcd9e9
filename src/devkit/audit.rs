//! The auditor of promise 1: nothing lost, nothing twice, in order.
//!
//! Owns: comparing the server's own change stream, event by event, with what lies in the bucket. Reads only MongoDB and the store; decides nothing with the
//! engine's own bookkeeping except which objects count as committed. Does not own: restoring (`branch::restore`), comparing databases (`oracle`).

use bson::{Document, RawDocument, RawDocumentBuf, doc};
use futures_util::{StreamExt, TryStreamExt};
use mongodb::Client;
use sha2::{Digest, Sha256};

use crate::branch::documents::BaseManifest;
use crate::branch::layout;
use crate::change::{ChangeRef, Scratch, parse_event};
use crate::fault::{Fault, Result};
use crate::ledger::{MongoPhase, SegmentKind, classify_mongo_error};
use crate::segment::SegmentFile;
use crate::store::Store;

/// What the auditor saw.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Audit {
    /// Changes compared, byte for byte.
    pub changes: u64,
    pub segments: u64,
    /// Segment objects that no committed row names (a kill between upload and commit leaves some).
    pub orphans: u64,
    /// Every deviation, at most the first hundred.
    pub problems: Vec<String>,
}

/// Where to look.
#[derive(Debug, Clone)]
pub struct Subject<'a> {
    /// Deployment that holds source and metadata.
    pub client: &'a Client,
    pub metadata_db: &'a str,
    pub branch: &'a str,
    pub store: Store,
}

fn fault(e: mongodb::error::Error) -> Fault {
    classify_mongo_error(&e, MongoPhase::Run)
}

fn field<'a>(row: &'a Document, name: &str) -> Result<&'a str> {
    row.get_str(name).map_err(|e| Fault::corrupt(format!("row without {name}: {e}")))
}

fn number(row: &Document, name: &str) -> u64 {
    row.get(name).and_then(|n| n.as_i64().or(n.as_i32().map(i64::from))).and_then(|n| u64::try_from(n).ok()).unwrap_or(0)
}

/// Audits a branch up to its head. The oplog must still reach back to the start of the capture, and nobody may write meanwhile.
pub async fn audit(subject: &Subject<'_>) -> Result<Audit> {
    let metadata = subject.client.database(subject.metadata_db);
    let branch = metadata.collection::<Document>("branches").find_one(doc! { "name": subject.branch }).await.map_err(fault)?;
    let branch = branch.ok_or_else(|| Fault::missing(format!("no branch {}", subject.branch)))?;
    let id = field(&branch, "_id")?.to_string();
    let base = field(&branch, "base")?;
    let key = layout::base_manifest(layout::project_of(subject.branch), &id, 0, base);
    let manifest = BaseManifest::from_json(&key, &subject.store.get(&key, None).await?)?;
    let rows: Vec<Document> = metadata
        .collection::<Document>("segments")
        .find(doc! { "branch": &id })
        .sort(doc! { "first_seq": 1 })
        .await
        .map_err(fault)?
        .try_collect()
        .await
        .map_err(fault)?;
    let mut stream = Stream::open(subject.client, &manifest).await?;
    let mut audit = Audit::default();
    let mut next_seq = 1;
    for row in &rows {
        next_seq = check_segment(subject, row, next_seq, &mut stream, &mut audit).await?;
        if audit.problems.len() >= 100 {
            return Ok(audit);
        }
    }
    let head = branch.get_document("head").map(|h| number(h, "seq")).unwrap_or(0);
    if head + 1 != next_seq {
        audit.problems.push(format!("the head says seq {head}, the segments end before seq {next_seq}"));
    }
    if let Some(event) = stream.next_if_any().await? {
        audit.problems.push(format!("the server has an event behind the head: {event:?}"));
    }
    audit.orphans = orphans(subject, &id, &rows).await?;
    Ok(audit)
}

async fn check_segment(subject: &Subject<'_>, row: &Document, next_seq: u64, stream: &mut Stream, audit: &mut Audit) -> Result<u64> {
    let key = field(row, "_id")?;
    let (first, last) = (number(row, "first_seq"), number(row, "last_seq"));
    if first != next_seq {
        audit.problems.push(format!("{key} begins at seq {first}, due is {next_seq}"));
    }
    let bytes = subject.store.get(key, None).await?;
    if layout::hex(&Sha256::digest(&bytes)) != field(row, "sha256")? {
        audit.problems.push(format!("{key}: the bytes are not those that were committed"));
    }
    let file = SegmentFile::parse(key, bytes)?;
    audit.segments += 1;
    if file.header().kind == SegmentKind::Gap {
        audit.problems.push(format!("{key} is a gap"));
        return Ok(last + 1);
    }
    let mut seq = first;
    for i in 0..file.block_count() {
        let block = file.block(i)?;
        for stored in block.rows()? {
            let (at, change) = stored?;
            if at != seq {
                audit.problems.push(format!("{key}: seq {at} where {seq} is due"));
            }
            seq += 1;
            audit.changes += 1;
            match stream.compare_next(&change).await? {
                None => {}
                Some(problem) => {
                    audit.problems.push(format!("{key}, seq {at}: {problem}"));
                    if audit.problems.len() >= 100 {
                        return Ok(seq);
                    }
                }
            }
        }
    }
    if seq != last + 1 {
        audit.problems.push(format!("{key} ends before seq {seq}, its row says {last}"));
    }
    Ok(last + 1)
}

async fn orphans(subject: &Subject<'_>, id: &str, rows: &[Document]) -> Result<u64> {
    let prefix = format!("{}segments/", layout::branch_prefix(layout::project_of(subject.branch), id));
    let known: std::collections::HashSet<&str> = rows.iter().filter_map(|r| r.get_str("_id").ok()).collect();
    let (mut orphans, mut after) = (0, None);
    loop {
        let page = subject.store.list(&prefix, after.as_deref(), 1000).await?;
        orphans += page.iter().filter(|o| !known.contains(o.key.as_str())).count() as u64;
        if page.len() < 1000 {
            return Ok(orphans);
        }
        after = page.last().map(|o| o.key.clone());
    }
}

/// The server's own account of the same history.
struct Stream {
    cursor: mongodb::raw_batch_cursor::RawBatchCursor,
    db: String,
    waiting: std::collections::VecDeque<RawDocumentBuf>,
    scratch: Scratch,
    client: Client,
}

impl Stream {
    async fn open(client: &Client, manifest: &BaseManifest) -> Result<Self> {
        let cursor = Self::cursor(client, &manifest.db, &manifest.token).await?;
        Ok(Self { cursor, db: manifest.db.clone(), waiting: Default::default(), scratch: Scratch::default(), client: client.clone() })
    }

    async fn cursor(client: &Client, db: &str, after: &RawDocument) -> Result<mongodb::raw_batch_cursor::RawBatchCursor> {
        let after = Document::try_from(after).map_err(|e| Fault::corrupt(e.to_string()))?;
        let stage = doc! { "$changeStream": {
            "startAfter": after, "showExpandedEvents": true, "showRawUpdateDescription": true,
            "showMigrationEvents": true, "showSystemEvents": true,
        } };
        client.database(db).aggregate([stage]).batch().await.map_err(fault)
    }

    /// The next event, or `None` when the stream has nothing more.
    async fn next_if_any(&mut self) -> Result<Option<RawDocumentBuf>> {
        let mut empty = 0;
        while self.waiting.is_empty() && empty < 3 {
            let Some(batch) = self.cursor.next().await else { return Ok(None) };
            let batch = batch.map_err(fault)?;
            let before = self.waiting.len();
            for event in batch.doc_slices().map_err(fault)? {
                let event = event.map_err(|e| Fault::corrupt(e.to_string()))?;
                self.waiting.extend(event.as_document().map(ToOwned::to_owned));
            }
            if self.waiting.len() == before {
                empty += 1;
            }
        }
        let next = self.waiting.pop_front();
        if let Some(event) = &next
            && event.get_str("operationType").is_ok_and(|t| t == "invalidate")
        {
            // The stream ends here; the engine too goes on after the invalidation.
            let token = event.get_document("_id").map_err(|e| Fault::corrupt(e.to_string()))?;
            self.cursor = Self::cursor(&self.client, &self.db, token).await?;
        }
        Ok(next)
    }

    /// `None` when the next event of the server is this very change.
    async fn compare_next(&mut self, stored: &ChangeRef<'_>) -> Result<Option<String>> {
        let Some(event) = self.next_if_any().await? else {
            return Ok(Some("the server has no such event: it is in history twice or out of nowhere".into()));
        };
        let view = parse_event(&event, &self.db, &mut self.scratch)?;
        let c = &view.change;
        let bytes = |d: Option<&RawDocument>| d.map(|d| d.as_bytes().to_vec());
        let same = c.op == stored.op
            && c.coll == stored.coll
            && c.uuid == stored.uuid
            && c.time == stored.time
            && c.wall_ms == stored.wall_ms
            && bytes(c.txn) == bytes(stored.txn)
            && bytes(c.key) == bytes(stored.key)
            && bytes(c.body) == bytes(stored.body);
        Ok((!same).then(|| {
            format!(
                "the server says {:?} on {} at {}, history says {:?} on {} at {}",
                c.op, c.coll, c.time, stored.op, stored.coll, stored.time
            )
        }))
    }
}
