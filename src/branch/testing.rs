//! Owns: a branch in memory for the tests of this module: real rows, real segments, committed, discarded or left waiting one by one.
//! Does not own: what is expected. Not compiled into the engine.

use std::sync::Arc;

use bson::{RawDocumentBuf, doc, rawdoc};
use sha2::{Digest, Sha256};

use super::catalogue::{Catalogue, Collection, Kind};
use super::documents::{self, BaseManifest, BranchDocument, EpochDocument};
use super::history::History;
use super::layout;
use crate::change::{ChangeRef, ClusterTime, Op};
use crate::jobs::{Outcome, Watch};
use crate::ledger::*;
use crate::pool::{InWork, Marker};
use crate::runtime::cpu::CpuPool;
use crate::runtime::random;
use crate::segment::{BlockBuilder, PackedBlock, pack_payload};
use crate::store::{MemoryStore, ObjectStore, PutTag};
use crate::sync::{Committer, SyncJob, Targets, discard};
use crate::telemetry::meters::Meters;

pub(crate) const NAME: &str = "test/main";
pub(crate) const ID: &str = "b1";
pub(crate) const PROJECT: &str = "test";
const CAPTURE: &str = "c1";
const UUID: [u8; 16] = [7; 16];
/// When the base was listed; change N is of second `BASE.t + N`.
const BASE: ClusterTime = ClusterTime { t: 100, i: 1 };

/// One change: its transaction's letter, or `.` for none, and what it does; an [`Op::Event`] is of a type that nobody knows.
#[derive(Debug, Clone)]
pub(crate) struct Change {
    pub(crate) txn: char,
    pub(crate) op: Op,
    pub(crate) id: i32,
}

/// A branch, its bucket and its queue.
pub(crate) struct Bed {
    pub(crate) ledger: Arc<MemoryLedger>,
    pub(crate) store: Arc<MemoryStore>,
    sync: SyncJob,
    fence: u64,
    next_seq: u64,
    token: RawDocumentBuf,
    last_txn: Option<char>,
    /// Bytes that tokens of batches to come are longer than others.
    pub(crate) token_bytes: usize,
}

fn time(seq: u64) -> ClusterTime {
    ClusterTime { t: BASE.t + u32::try_from(seq).unwrap(), i: 1 }
}

fn token(time: ClusterTime, more: usize) -> RawDocumentBuf {
    rawdoc! {"_data": format!("82{:08X}{:08X}00{}", time.t, time.i, "0".repeat(more))}
}

fn txn(letter: char) -> Option<RawDocumentBuf> {
    (letter != '.').then(|| rawdoc! {"lsid": letter.to_string(), "txnNumber": 1_i64})
}

impl Bed {
    pub(crate) async fn new() -> Self {
        Self::with_base(|_| ()).await
    }

    /// With another base than history goes with.
    pub(crate) async fn with_base(edit: impl FnOnce(&mut BaseManifest)) -> Self {
        let (ledger, store) = (Arc::new(MemoryLedger::new()), Arc::new(MemoryStore::new()));
        let (committer, commits) = Committer::new(ledger.clone(), &Meters::default());
        tokio::spawn(committer.run());
        let (marker, marks) = Marker::new(ledger.clone(), InWork::default(), &Meters::default());
        tokio::spawn(marker.run());
        let sync = SyncJob {
            ledger: ledger.clone(),
            store: store.clone(),
            cpu: CpuPool::new(1, 1).unwrap(),
            commits,
            marks,
            targets: Targets::default(),
            upload_time: std::time::Duration::from_secs(60),
            meters: Meters::default(),
        };
        let collection = Collection {
            name: "c".into(),
            uuid: UUID,
            kind: Kind::Collection,
            options: doc! {"validator": {"n": {"$gt": 1}}},
            indexes: vec![doc! {"v": 2, "key": {"_id": 1}, "name": "_id_"}],
        };
        let catalogue = Catalogue { collections: [(UUID, collection)].into(), listed_at: BASE, ..Catalogue::default() };
        let mut manifest = BaseManifest {
            id: "base0".into(),
            origin: BaseOrigin::Empty,
            seq: 0,
            time: BASE,
            consistent_at: BASE,
            db: "d".into(),
            token: token(BASE, 0),
            catalogue,
            parts: Vec::new(),
        };
        edit(&mut manifest);
        let mut bed = Self { ledger, store, sync, fence: 0, next_seq: 1, token: token(BASE, 0), last_txn: None, token_bytes: 0 };
        bed.create(&manifest).await;
        bed
    }

    async fn create(&mut self, manifest: &BaseManifest) {
        let base = manifest.to_json().unwrap();
        let branch = Branch::new(ID, NAME, "d");
        let source = Source::new(None, "d".into(), "rs:r:1".into());
        let capture = Capture::new(CAPTURE, &branch, source, self.token.clone(), 1);
        let row = Base::empty("base0", ID, BASE, layout::hex(&Sha256::digest(&base)));
        let epoch = EpochDocument { format: documents::FORMAT, owner: CAPTURE.into(), starts_at: 1, after: None };
        self.put(&layout::base_manifest(PROJECT, ID, 0, "base0"), base).await;
        self.put(&layout::epoch(PROJECT, ID, 1), documents::to_json(&epoch).unwrap()).await;
        self.put(
            &layout::branch_json(PROJECT, ID),
            documents::to_json(&BranchDocument::new(&branch, Some(&capture), std::slice::from_ref(&row))).unwrap(),
        )
        .await;
        self.ledger.create_capture(&NewCapture { capture, branch, base: row }).await.unwrap();
        self.fence = self.ledger.own_capture(CAPTURE, "e1").await.unwrap().unwrap().fence;
    }

    /// Stores an object, in the place of whatever is there.
    pub(crate) async fn put(&self, key: &str, body: Vec<u8>) {
        self.store.delete(key).await.unwrap();
        let tag = PutTag { sha256: Sha256::digest(&body).into(), put_id: "test".into() };
        self.store.put_new(key, body.into(), &tag).await.unwrap();
    }

    pub(crate) async fn get(&self, key: &str) -> Vec<u8> {
        self.store.get(key, None).await.unwrap().to_vec()
    }

    pub(crate) async fn history(&self) -> History {
        History::open(self.ledger.clone(), self.store.clone(), NAME).await.unwrap()
    }

    pub(crate) async fn rows(&self) -> Vec<SegmentRow> {
        self.ledger.segments(ID, 0, 10_000).await.unwrap()
    }

    /// Inserts of new documents, one for each letter (see [`Change::txn`]); the job runs.
    pub(crate) async fn queue(&mut self, history: &str, ends: Ends) -> Job {
        let first = i32::try_from(self.next_seq).unwrap();
        let changes: Vec<_> = (first..).zip(history.chars()).map(|(id, txn)| Change { txn, op: Op::Insert, id }).collect();
        self.queue_changes(&changes, ends).await
    }

    pub(crate) async fn queue_changes(&mut self, changes: &[Change], ends: Ends) -> Job {
        let first_seq = self.next_seq;
        let mut builder = BlockBuilder::new(first_seq);
        let mut raw_bytes = 0;
        for (seq, change) in (first_seq..).zip(changes) {
            let (key, txn) = (rawdoc! {"_id": change.id}, txn(change.txn));
            let body = match change.op {
                Op::Update => Some(rawdoc! {"u": {"n": 1}}),
                Op::Delete => None,
                Op::Event => Some(rawdoc! {"operationType": "neverSeenBefore", "ns": {"db": "d", "coll": "c"}}),
                _ => Some(rawdoc! {"_id": change.id, "n": 0}),
            };
            let key = (!matches!(change.op, Op::Insert | Op::Replace | Op::Event)).then_some(&*key);
            let row = ChangeRef {
                op: change.op,
                coll: "c",
                uuid: Some(UUID),
                time: time(seq),
                wall_ms: None,
                txn: txn.as_deref(),
                key,
                body: body.as_deref(),
            };
            raw_bytes += row.raw_bytes();
            builder.push(&row).unwrap();
        }
        let last_seq = first_seq + changes.len() as u64 - 1;
        let block = builder.finish();
        let block_bytes = block.bytes.len() as u64;
        let parts = pack_payload(&[PackedBlock::pack(block).unwrap()], 1 << 20).unwrap();
        let starts_inside = changes[0].txn != '.' && self.last_txn == Some(changes[0].txn);
        let start_token = std::mem::replace(&mut self.token, token(time(last_seq), self.token_bytes));
        let spec = SyncSpec {
            batch: random::id(),
            epoch: 1,
            first_seq,
            last_seq,
            first_time: time(first_seq),
            last_time: time(last_seq),
            last_wall_ms: None,
            start_token,
            end_token: self.token.clone(),
            starts_inside,
            ends,
            raw_bytes,
            block_bytes,
            payload_bytes: parts.iter().map(|p| p.len() as u64).sum(),
            payload_parts: u32::try_from(parts.len()).unwrap(),
        };
        self.last_txn = changes.last().map(|c| c.txn);
        self.next_seq = last_seq + 1;
        let after = Position { token: self.token.clone(), chain: self.token.clone(), next_seq: self.next_seq, last_txn: None };
        let batch = NewBatch { job: random::ordered_id(), branch: ID.into(), spec, parts };
        let write = Checkpoint { capture: CAPTURE.into(), fence: self.fence, expected_next_seq: first_seq, after, batch: Some(batch) };
        assert_eq!(self.ledger.checkpoint(&write).await.unwrap(), Checkpointed::Stored);
        self.ledger.claim(&ClaimRequest::new("e1", &[JobKind::Sync], 1)).await.unwrap().remove(0)
    }

    /// Puts the segment of a running job into history.
    pub(crate) async fn commit(&self, job: &Job) {
        let outcome = self.sync.run(job, &lease(job), &Watch::default()).await.unwrap();
        assert!(matches!(outcome, Outcome::Committed { .. }));
    }

    /// Queues and commits.
    pub(crate) async fn add(&mut self, history: &str, ends: Ends) {
        let job = self.queue(history, ends).await;
        self.commit(&job).await;
    }

    /// Queues changes and gives them up.
    pub(crate) async fn lose(&mut self, history: &str, ends: Ends) {
        let job = self.queue(history, ends).await;
        self.kill(&job).await;
        assert!(self.discard(&job).await);
    }

    pub(crate) async fn kill(&self, job: &Job) {
        assert!(self.ledger.fail(&lease(job), &Failed::Dead { error: "no".into() }).await.unwrap());
    }

    pub(crate) async fn discard(&self, job: &Job) -> bool {
        let (ledger, store): (SharedLedger, crate::store::Store) = (self.ledger.clone(), self.store.clone());
        discard(&ledger, &store, job, "given up").await.unwrap()
    }
}

pub(crate) fn lease(job: &Job) -> JobLease {
    JobLease { id: job.id.clone(), token: job.lease.clone().unwrap().token, attempt: job.attempt }
}
