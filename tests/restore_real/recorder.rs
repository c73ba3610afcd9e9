//! A capture by hand: reads the change stream of a database in a loop and writes segments and rows, without the engine.

use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use argon::branch::catalogue::read_catalogue;
use argon::branch::documents::{self, BaseManifest, BranchDocument, EpochDocument};
use argon::branch::history::History;
use argon::branch::layout;
use argon::change::{ChangeRef, ClusterTime, Scratch, parse_event};
use argon::ledger::*;
use argon::segment::{BlockBuilder, PackedBlock, SegmentHeader, encode};
use argon::store::{MemoryStore, PutTag, Store};
use bson::raw::RawBsonRef;
use bson::{RawDocument, RawDocumentBuf, doc, rawdoc};
use bytes::Bytes;
use mongodb::{Client, Cursor, Database};
use sha2::{Digest, Sha256};

/// Rows per segment: small, so that a test has many and cuts transactions.
const ROWS: u32 = 40;
pub(crate) const BRANCH: &str = "test/main";
const ID: &str = "b0000000-0000-0000-0000-000000000001";

pub(crate) struct Recorder {
    pub(crate) db: Database,
    pub(crate) ledger: SharedLedger,
    pub(crate) store: Store,
    fence: u64,
    cursor: Cursor<RawDocumentBuf>,
    rows: Option<Open>,
    pub(crate) next_seq: u64,
    token: RawDocumentBuf,
    last_txn: Option<RawDocumentBuf>,
    fences: i32,
}

/// A segment being filled.
struct Open {
    builder: BlockBuilder,
    first_seq: u64,
    first_time: ClusterTime,
    last_time: ClusterTime,
    raw_bytes: u64,
    start_token: RawDocumentBuf,
    starts_inside: bool,
}

async fn open(db: &Database, after: Option<&RawDocumentBuf>) -> Cursor<RawDocumentBuf> {
    let mut options =
        doc! {"showExpandedEvents": true, "showRawUpdateDescription": true, "showMigrationEvents": true, "showSystemEvents": true};
    if let Some(token) = after {
        options.insert("startAfter", bson::Document::try_from(token.as_ref()).unwrap());
    }
    db.aggregate([doc! {"$changeStream": options}]).with_type::<RawDocumentBuf>().await.unwrap()
}

impl Recorder {
    /// Token, then catalogue, as a capture starts.
    pub(crate) async fn start(client: &Client, db: &str) -> Self {
        let db = client.database(db);
        let mut stream = client.database("elsewhere").aggregate([doc! {"$changeStream": {}}]).with_type::<RawDocumentBuf>().await.unwrap();
        // The token of another stream at this time is a token of this one too: high-water tokens carry only a time.
        client.database("elsewhere").collection("x").insert_one(doc! {}).await.unwrap();
        stream.advance().await.unwrap();
        let token = stream.current().get_document("_id").unwrap().to_owned();
        let cursor = open(&db, None).await;
        let (catalogue, time) = read_catalogue(&db).await.unwrap();
        let ledger: SharedLedger = Arc::new(MemoryLedger::live());
        let store: Store = Arc::new(MemoryStore::new());
        let manifest = BaseManifest {
            id: "base0".into(),
            origin: BaseOrigin::Empty,
            seq: 0,
            time,
            consistent_at: time,
            db: db.name().into(),
            token: token.clone(),
            catalogue,
            parts: Vec::new(),
        };
        let manifest = manifest.to_json().unwrap();
        let branch = Branch::new(ID, BRANCH, db.name());
        let source = Source::new(None, db.name().into(), server_facts(client).await.unwrap().identity);
        let capture = Capture::new("c1", &branch, source, token.clone(), 1);
        let base = Base::empty("base0", ID, time, layout::hex(&Sha256::digest(&manifest)));
        let epoch = EpochDocument { format: documents::FORMAT, owner: "c1".into(), starts_at: 1, after: None };
        for (key, body) in [
            (layout::base_manifest("test", ID, 0, "base0"), manifest),
            (layout::epoch("test", ID, 1), documents::to_json(&epoch).unwrap()),
            (
                layout::branch_json("test", ID),
                documents::to_json(&BranchDocument::new(&branch, Some(&capture), std::slice::from_ref(&base))).unwrap(),
            ),
        ] {
            put(&store, &key, Bytes::from(body)).await;
        }
        ledger.create_capture(&NewCapture { capture, branch, base }).await.unwrap();
        let fence = ledger.own_capture("c1", "e1").await.unwrap().unwrap().fence;
        Self { db, ledger, store, fence, cursor, rows: None, next_seq: 1, token, last_txn: None, fences: 0 }
    }

    /// Records everything that was written so far, and commits it. Returns the head.
    pub(crate) async fn catch_up(&mut self) -> u64 {
        self.fences += 1;
        self.db.collection("fence").insert_one(doc! {"_id": self.fences}).await.unwrap();
        loop {
            let alive = self.cursor.advance().await.unwrap();
            assert!(alive, "the stream ended");
            let event = self.cursor.current().to_owned();
            let over = event.get_str("operationType").unwrap() == "insert"
                && event.get_document("ns").unwrap().get_str("coll").unwrap() == "fence"
                && event.get_document("documentKey").unwrap().get("_id").unwrap() == Some(RawBsonRef::Int32(self.fences));
            let invalidated = event.get_str("operationType").unwrap() == "invalidate";
            self.record(&event).await;
            if invalidated {
                self.cursor = open(&self.db, Some(&self.token)).await;
            }
            if over {
                self.commit().await;
                return self.next_seq - 1;
            }
        }
    }

    async fn record(&mut self, event: &RawDocument) {
        let mut scratch = Scratch::default();
        let view = parse_event(event, self.db.name(), &mut scratch).unwrap();
        let change: ChangeRef<'_> = view.change;
        let open = self.rows.get_or_insert_with(|| Open {
            builder: BlockBuilder::new(self.next_seq),
            first_seq: self.next_seq,
            first_time: change.time,
            last_time: change.time,
            raw_bytes: 0,
            start_token: self.token.clone(),
            starts_inside: change.txn.is_some() && change.txn.map(RawDocument::to_owned) == self.last_txn,
        });
        open.builder.push(&change).unwrap();
        open.last_time = change.time;
        open.raw_bytes += change.raw_bytes();
        self.token = view.token.to_owned();
        self.last_txn = change.txn.map(RawDocument::to_owned);
        self.next_seq += 1;
        if open.builder.count() >= ROWS {
            self.commit().await;
        }
    }

    async fn commit(&mut self) {
        let Some(open) = self.rows.take() else { return };
        let block = PackedBlock::pack(open.builder.finish()).unwrap();
        let block_bytes = block.raw().bytes.len() as u64;
        let ends = if self.last_txn.is_some() { Ends::Unknown } else { Ends::Closed };
        let header = SegmentHeader {
            kind: SegmentKind::Changes,
            branch: ID.into(),
            epoch: 1,
            first_seq: open.first_seq,
            last_seq: self.next_seq - 1,
            first_time: open.first_time,
            last_time: open.last_time,
            last_wall_ms: None,
            start_token: open.start_token.clone(),
            end_token: self.token.clone(),
            starts_inside: open.starts_inside,
            ends,
            db: self.db.name().into(),
            reason: None,
        };
        let encoded = encode(&header, &[block], &AtomicBool::new(false)).unwrap();
        let key = layout::segment_l0("test", ID, 1, header.first_seq, header.last_seq, &encoded.sha256);
        put(&self.store, &key, encoded.bytes.clone()).await;
        let job = format!("job-{:016}", header.first_seq);
        let spec = SyncSpec {
            batch: job.clone(),
            epoch: 1,
            first_seq: header.first_seq,
            last_seq: header.last_seq,
            first_time: header.first_time,
            last_time: header.last_time,
            last_wall_ms: None,
            start_token: header.start_token.clone(),
            end_token: header.end_token.clone(),
            starts_inside: header.starts_inside,
            ends,
            raw_bytes: open.raw_bytes,
            block_bytes,
            payload_bytes: 1,
            payload_parts: 1,
        };
        let after =
            Position { token: self.token.clone(), chain: self.token.clone(), next_seq: self.next_seq, last_txn: self.last_txn.clone() };
        let batch = NewBatch { job: job.clone(), branch: ID.into(), spec, parts: vec![Bytes::from_static(b"x")] };
        let write = Checkpoint { capture: "c1".into(), fence: self.fence, expected_next_seq: header.first_seq, after, batch: Some(batch) };
        assert_eq!(self.ledger.checkpoint(&write).await.unwrap(), Checkpointed::Stored);
        let claimed = self.ledger.claim(&ClaimRequest::new("e1", &[JobKind::Sync], 1)).await.unwrap();
        let lease = JobLease { id: job, token: claimed[0].lease.clone().unwrap().token, attempt: claimed[0].attempt };
        let segment = SegmentRow {
            key,
            branch: ID.into(),
            kind: SegmentKind::Changes,
            epoch: 1,
            level: 0,
            first_seq: header.first_seq,
            last_seq: header.last_seq,
            first_time: header.first_time,
            last_time: header.last_time,
            last_wall_ms: None,
            starts_inside: header.starts_inside,
            ends,
            has_ddl: encoded.summary.has_ddl,
            holes: encoded.summary.holes,
            raw_bytes: open.raw_bytes,
            stored_bytes: encoded.bytes.len() as u64,
            sha256: layout::hex(&encoded.sha256),
            committed_ms: 0,
            filter: None,
        };
        let outcome = self.ledger.commit(&[SegmentCommit { lease, segment, payload_bytes: 1 }]).await.unwrap();
        assert_eq!(outcome, [Committed::Now]);
    }

    /// Records a delete that the source never made, of a document that never was, at the time of the head.
    pub(crate) async fn forge_delete(&mut self, coll: &str) {
        let time = self.history().await.branch.head.time;
        let event = rawdoc! {
            "_id": {"_data": format!("82{:08X}{:08X}2B0229296E04", time.t, time.i)},
            "operationType": "delete",
            "clusterTime": bson::Timestamp::from(time),
            "ns": {"db": self.db.name(), "coll": coll},
            "documentKey": {"_id": "never"},
        };
        self.record(&event).await;
        self.commit().await;
    }

    /// Moves the token on a quiet stream, as an idle engine does, to `time`.
    pub(crate) async fn idle_until(&mut self, time: ClusterTime) {
        let token = rawdoc! {"_data": format!("82{:08X}{:08X}2B0229296E04", time.t, time.i)};
        let after = Position { token: token.clone(), chain: token.clone(), next_seq: self.next_seq, last_txn: self.last_txn.clone() };
        let write = Checkpoint { capture: "c1".into(), fence: self.fence, expected_next_seq: self.next_seq, after, batch: None };
        assert_eq!(self.ledger.checkpoint(&write).await.unwrap(), Checkpointed::Stored);
    }

    pub(crate) async fn history(&self) -> History {
        History::open(self.ledger.clone(), self.store.clone(), BRANCH).await.unwrap()
    }
}

pub(crate) async fn put(store: &Store, key: &str, body: Bytes) {
    use sha2::Digest;
    let tag = PutTag { sha256: sha2::Sha256::digest(&body).into(), put_id: "p".into() };
    store.put_new(key, body, &tag).await.unwrap();
}
