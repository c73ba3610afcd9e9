//! The auditor of promise 1: nothing lost, nothing twice, in order.
//!
//! Owns: comparing the server's own change stream, event by event, with what lies in the bucket. Reads only MongoDB and the store; decides nothing with the
//! engine's own bookkeeping except which objects count as committed. Does not own: restoring (`branch::restore`), comparing databases (`oracle`).

use std::collections::BTreeMap;

use bson::{Bson, Document, RawDocument, RawDocumentBuf, doc};
use futures_util::{StreamExt, TryStreamExt};
use mongodb::Client;
use sha2::{Digest, Sha256};

use crate::branch::documents::BaseManifest;
use crate::branch::layout;
use crate::change::{ChangeRef, rebuild_event};
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
    let first = metadata.collection::<Document>("bases").find_one(doc! { "branch": &id, "seq": 0 }).await.map_err(fault)?;
    let first = first.ok_or_else(|| Fault::missing(format!("{} has no first base", subject.branch)))?;
    let base = field(&first, "_id")?;
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
    client: Client,
}

impl Stream {
    async fn open(client: &Client, manifest: &BaseManifest) -> Result<Self> {
        let cursor = Self::cursor(client, &manifest.db, &manifest.token).await?;
        Ok(Self { cursor, db: manifest.db.clone(), waiting: Default::default(), client: client.clone() })
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
        difference(&event, stored, &self.db)
    }
}

/// What a stored change says otherwise than the server's event. The event itself is compared, all of its fields but the token, so that what
/// the engine's parser would drop is noticed.
pub fn difference(event: &RawDocument, stored: &ChangeRef<'_>, db: &str) -> Result<Option<String>> {
    let sorted = |event: Document| event.into_iter().filter(|(name, _)| name != "_id").collect::<BTreeMap<String, Bson>>();
    let said = sorted(Document::try_from(event).map_err(|e| Fault::corrupt(e.to_string()))?);
    let kept = sorted(rebuild_event(stored, db)?);
    // As text, because equality of documents does not look at the order of fields.
    let shown = |field: Option<&Bson>| field.map_or_else(|| "nothing".to_owned(), |field| format!("{field:?}"));
    let names = said.keys().chain(kept.keys());
    let differing = names.map(|name| (name, shown(said.get(name)), shown(kept.get(name)))).find(|(_, said, kept)| said != kept);
    Ok(differing
        .map(|(name, said, kept)| format!("{name} is {said} at the server, {kept} in history ({:?} at {})", stored.op, stored.time)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::change::{Op, Scratch, parse_event};
    use bson::rawdoc;

    #[test]
    fn a_field_that_is_dropped_or_altered_is_noticed() {
        let event = rawdoc! {
            "_id": {"_data": "8265000000000000012B0229296E04"},
            "operationType": "update",
            "clusterTime": bson::Timestamp { time: 5, increment: 1 },
            "collectionUUID": bson::Binary { subtype: bson::spec::BinarySubtype::Uuid, bytes: vec![7; 16] },
            "wallTime": bson::DateTime::from_millis(5_000),
            "lsid": {"id": 1},
            "txnNumber": 3_i64,
            "ns": {"db": "shop", "coll": "c"},
            "documentKey": {"_id": 1},
            "rawUpdateDescription": {"$v": 2, "diff": {"u": {"a": 1, "b": 2}}},
        };
        let mut scratch = Scratch::default();
        let view = parse_event(&event, "shop", &mut scratch).unwrap();
        let change = view.change;
        assert_eq!(difference(&event, &change, "shop").unwrap(), None);
        let (key, body) = (rawdoc! {"_id": 1_i64}, rawdoc! {"u": {"b": 2, "a": 1}});
        for (wrong, names) in [
            (ChangeRef { txn: None, ..change }, "lsid"),
            (ChangeRef { uuid: None, ..change }, "collectionUUID"),
            (ChangeRef { wall_ms: None, ..change }, "wallTime"),
            (ChangeRef { key: None, ..change }, "documentKey"),
            (ChangeRef { key: Some(&key), ..change }, "documentKey"),
            (ChangeRef { body: Some(&body), ..change }, "rawUpdateDescription"),
            (ChangeRef { coll: "d", ..change }, "ns"),
            (ChangeRef { op: Op::Described, ..change }, "rawUpdateDescription"),
        ] {
            let said = difference(&event, &wrong, "shop").unwrap();
            assert!(said.as_ref().is_some_and(|said| said.contains(names)), "{names}: {said:?}");
        }
    }
}
