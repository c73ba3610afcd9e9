//! A served interface over a memory ledger, a memory store and an engine that only says it works.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use argon::config::HttpSettings;
use argon::http::{self, Api, Listeners, TwinEngine};
use argon::ledger::*;
use argon::runtime::random;
use argon::store::{MemoryStore, Store};
use bson::{RawDocumentBuf, rawdoc};
use bytes::Bytes;
use serde_json::Value;
use tokio_util::sync::CancellationToken;

use crate::wire::{self, Reply};

/// Name of the branch that every world has.
pub(crate) const BRANCH: &str = "shop/main";

pub(crate) struct World {
    pub(crate) ledger: SharedLedger,
    pub(crate) engine: Arc<TwinEngine>,
    pub(crate) api: Arc<Api>,
    pub(crate) listeners: Listeners,
    pub(crate) dir: tempfile::TempDir,
    /// A branch, its capture, and a sync job that is dead.
    pub(crate) branch: String,
    pub(crate) capture: String,
    pub(crate) dead: String,
}

/// Free ports, a control socket in a directory of the test's own.
pub(crate) fn settings(dir: &tempfile::TempDir) -> HttpSettings {
    HttpSettings {
        addr: Some("127.0.0.1:0".into()),
        metrics_addr: Some("127.0.0.1:0".into()),
        control_socket: Some(dir.path().join("control.sock")),
        api_rate: 0,
        ..HttpSettings::default()
    }
}

impl World {
    pub(crate) async fn new() -> Self {
        Self::with(|_| ()).await
    }

    pub(crate) async fn with(change: impl FnOnce(&mut HttpSettings)) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let mut settings = settings(&dir);
        change(&mut settings);
        let ledger: SharedLedger = Arc::new(MemoryLedger::live());
        let store: Store = Arc::new(MemoryStore::new());
        let engine = Arc::new(TwinEngine::new("engine-1"));
        let (capture, branch, dead) = fill(&ledger).await;
        let api = Api::start(ledger.clone(), store, engine.clone(), CancellationToken::new());
        let listeners = http::start(&api, &settings).await.unwrap();
        Self { ledger, engine, api, listeners, dir, branch, capture, dead }
    }

    pub(crate) fn addr(&self) -> SocketAddr {
        self.listeners.addr.unwrap()
    }

    pub(crate) fn metrics_addr(&self) -> SocketAddr {
        self.listeners.metrics_addr.unwrap()
    }

    pub(crate) async fn get(&self, path: &str) -> Reply {
        wire::send(self.addr(), "GET", path, None, None).await
    }

    pub(crate) async fn post(&self, path: &str, body: &Value) -> Reply {
        wire::send(self.addr(), "POST", path, None, Some(body)).await
    }

    pub(crate) async fn delete(&self, path: &str) -> Reply {
        wire::send(self.addr(), "DELETE", path, None, None).await
    }

    /// A dead job of kind noop.
    pub(crate) async fn dead_noop(&self) -> String {
        let id = random::ordered_id();
        self.ledger.enqueue(&[NewJob::new(id.clone(), JobKind::Noop)]).await.unwrap();
        fail(&self.ledger, JobKind::Noop).await;
        id
    }
}

/// A branch with one committed segment and one dead job.
async fn fill(ledger: &SharedLedger) -> (String, String, String) {
    ledger.prepare().await.unwrap();
    let beat = EngineBeat { id: "engine-1".into(), host: "h".into(), boot: "b".into(), pid: 1, beat_ms: 0, status: None };
    assert!(ledger.heartbeat(&beat, true).await.unwrap());
    let status =
        EngineStatus { workers: vec![WorkerRow { name: "sync-worker-0".into(), ..WorkerRow::default() }], ..EngineStatus::default() };
    let other = EngineBeat { id: "engine-2".into(), status: Some(status), ..beat };
    assert!(ledger.heartbeat(&other, true).await.unwrap());
    let (capture, branch) = (random::id(), random::id());
    ledger.create_capture(&new_capture(&capture, &branch)).await.unwrap();
    let owned = ledger.own_capture(&capture, "engine-1").await.unwrap().unwrap();
    let mut jobs = Vec::new();
    for (first_seq, last_seq) in [(1, 10), (11, 20)] {
        let write = checkpoint(&capture, &branch, owned.fence, first_seq, last_seq);
        assert_eq!(ledger.checkpoint(&write).await.unwrap(), Checkpointed::Stored);
        jobs.push(write.batch.unwrap().job);
    }
    let done = ledger.claim(&ClaimRequest::new("engine-1", &[JobKind::Sync], 1).start(1)).await.unwrap().remove(0);
    let commit = SegmentCommit { lease: done.held().unwrap(), segment: segment(&done), payload_bytes: 100 };
    assert_eq!(ledger.commit(&[commit]).await.unwrap(), [Committed::Now]);
    fail(ledger, JobKind::Sync).await;
    (capture, branch, jobs.remove(1))
}

async fn fail(ledger: &SharedLedger, kind: JobKind) {
    let job = ledger.claim(&ClaimRequest::new("engine-1", &[kind], 1).start(1)).await.unwrap().remove(0);
    assert!(ledger.fail(&job.held().unwrap(), &Failed::Dead { error: "told to".into() }).await.unwrap());
}

fn checkpoint(capture: &str, branch: &str, fence: u64, first_seq: u64, last_seq: u64) -> Checkpoint {
    let changes = last_seq + 1 - first_seq;
    let spec = SyncSpec {
        batch: random::id(),
        epoch: 1,
        first_seq,
        last_seq,
        first_time: time(first_seq),
        last_time: time(last_seq),
        last_wall_ms: Some(1_700_000_000_000),
        start_token: token(first_seq - 1),
        end_token: token(last_seq),
        starts_inside: false,
        ends: Ends::Closed,
        raw_bytes: changes * 100,
        block_bytes: changes * 110,
        payload_bytes: 100,
        payload_parts: 1,
    };
    let parts = vec![Bytes::from(vec![7u8; 100])];
    let batch = NewBatch { job: random::ordered_id(), branch: branch.to_owned(), spec, parts };
    let after = Position { token: token(last_seq), chain: token(last_seq), next_seq: last_seq + 1, last_txn: None };
    Checkpoint { capture: capture.to_owned(), fence, expected_next_seq: first_seq, after, batch: Some(batch) }
}

fn segment(job: &Job) -> SegmentRow {
    let s = job.sync.as_ref().unwrap();
    SegmentRow {
        key: format!("{}/{:016x}", job.branch, s.first_seq),
        branch: job.branch.clone(),
        kind: SegmentKind::Changes,
        epoch: s.epoch,
        level: 0,
        first_seq: s.first_seq,
        last_seq: s.last_seq,
        first_time: s.first_time,
        last_time: s.last_time,
        last_wall_ms: s.last_wall_ms,
        starts_inside: s.starts_inside,
        ends: s.ends,
        has_ddl: false,
        holes: 0,
        raw_bytes: s.raw_bytes,
        stored_bytes: 40,
        sha256: "ab".to_owned(),
        committed_ms: 0,
        filter: None,
    }
}

fn new_capture(capture: &str, branch: &str) -> NewCapture {
    let branch = Branch::new(branch, BRANCH, "shop");
    let source = Source::new(None, "shop".to_owned(), "rs:rs0:aa".to_owned());
    let capture = Capture::new(capture, &branch, source, token(0), 1);
    let base = Base::empty(&format!("base-{}", branch.id), &branch.id, time(0), "ab".to_owned());
    NewCapture { capture, branch, base }
}

fn time(seq: u64) -> argon::change::ClusterTime {
    argon::change::ClusterTime { t: 1_700_000_000 + u32::try_from(seq).unwrap(), i: 1 }
}

/// As the server writes them: a byte that says what follows, then seconds and increment.
fn token(seq: u64) -> RawDocumentBuf {
    rawdoc! { "_data": format!("82{:08X}{:08X}", 1_700_000_000 + seq, 1) }
}

/// Waits until something is so.
pub(crate) async fn until(what: &str, limit: Duration, mut so: impl AsyncFnMut() -> bool) {
    let waiting = async {
        while !so().await {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(limit, waiting).await.unwrap_or_else(|_| panic!("{what}: not within {limit:?}"));
}
