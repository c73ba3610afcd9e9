//! A ledger to test, with a branch to write to.

use std::sync::Arc;
use std::time::Duration;

use argon::change::ClusterTime;
use argon::devkit::{Mongod, MongodOptions};
use argon::ledger::*;
use argon::runtime::random;
use bson::{RawDocumentBuf, rawdoc};
use bytes::Bytes;
use tokio::sync::OnceCell;

/// One server for all tests of the process, each with a database of its own; it goes with the process.
static SERVER: OnceCell<Mongod> = OnceCell::const_new();

pub(crate) async fn server() -> &'static Mongod {
    SERVER.get_or_init(|| async { Mongod::start(MongodOptions::default()).await.unwrap() }).await
}

pub(crate) struct Bench {
    pub(crate) ledger: SharedLedger,
    /// The same ledger behind faults.
    pub(crate) faulty: Arc<FaultyLedger>,
    memory: Option<Arc<MemoryLedger>>,
}

impl Bench {
    pub(crate) fn memory() -> Self {
        let memory = Arc::new(MemoryLedger::new());
        Self::over(memory.clone(), Some(memory))
    }

    pub(crate) fn faulty() -> Self {
        let memory = Arc::new(MemoryLedger::new());
        Self::over(Arc::new(FaultyLedger::new(memory.clone(), LedgerFaults::none())), Some(memory))
    }

    pub(crate) async fn mongo() -> Self {
        let db = format!("argon_{}", random::id().replace('-', ""));
        let ledger = MongoLedger::connect(&server().await.uri(), &db, ConnectOptions::default()).await.unwrap();
        ledger.prepare().await.unwrap();
        ledger.prepare().await.unwrap();
        Self::over(Arc::new(ledger), None)
    }

    pub(crate) fn over(ledger: SharedLedger, memory: Option<Arc<MemoryLedger>>) -> Self {
        let faulty = Arc::new(FaultyLedger::new(ledger.clone(), LedgerFaults::none()));
        Self { ledger, faulty, memory }
    }

    /// Lets server time pass: a virtual clock is moved; a real one cannot be, so that is the one place that waits.
    pub(crate) async fn pass(&self, by: Duration) {
        match &self.memory {
            Some(memory) => memory.advance(by + Duration::from_millis(1)),
            None => tokio::time::sleep(by + Duration::from_millis(5)).await,
        }
    }

    /// A branch with a running capture, owned by `engine`.
    pub(crate) async fn line(&self, engine: &str) -> Line {
        let (capture, branch) = (random::id(), random::id());
        let new = new_capture(&capture, &branch, &format!("shop/{branch}"));
        self.ledger.create_capture(&new).await.unwrap();
        let owned = self.ledger.own_capture(&capture, engine).await.unwrap().unwrap();
        Line { ledger: self.ledger.clone(), capture, branch, fence: owned.fence, next_seq: 1 }
    }

    pub(crate) async fn beat(&self, engine: &str) {
        assert!(self.ledger.heartbeat(&beat(engine), true).await.unwrap());
    }

    /// Claims and begins with what it got.
    pub(crate) async fn claim(&self, engine: &str, limit: usize) -> Vec<Job> {
        self.claim_kind(engine, JobKind::Sync, limit).await
    }

    /// Claims jobs of a kind and begins with them.
    pub(crate) async fn claim_kind(&self, engine: &str, kind: JobKind, limit: usize) -> Vec<Job> {
        let request = ClaimRequest::new(engine, &[kind], limit).start(limit);
        self.claim_with(&request).await
    }

    /// Claims, and waits until lists show it.
    pub(crate) async fn claim_with(&self, request: &ClaimRequest) -> Vec<Job> {
        let jobs = self.ledger.claim(request).await.unwrap();
        self.settle().await;
        jobs
    }

    /// Stores noop jobs.
    pub(crate) async fn put_noops(&self, n: usize) {
        let jobs: Vec<NewJob> = (0..n).map(|_| NewJob::new(random::ordered_id(), JobKind::Noop)).collect();
        assert!(self.ledger.enqueue(&jobs).await.unwrap().iter().all(|outcome| *outcome == Enqueued::Stored));
    }

    pub(crate) fn ends(&self, jobs: &[Job]) -> Vec<Finish> {
        jobs.iter().map(|job| Finish { lease: lease(job), kind: job.kind }).collect()
    }

    pub(crate) async fn finish(&self, engine: &str, jobs: &[Job]) -> Vec<Finished> {
        self.ledger.finish(engine, &self.ends(jobs)).await.unwrap()
    }

    pub(crate) async fn start(&self, job: &mut Job) {
        assert!(self.ledger.start(&lease(job)).await.unwrap());
        self.settle().await;
        job.lease = self.job(&job.id).await.lease;
    }

    /// Waits until a majority has what was written before: claims and starts are answered earlier, and lists are of the majority.
    pub(crate) async fn settle(&self) {
        self.ledger.set_scale(None, None, "").await.unwrap();
    }

    pub(crate) async fn job(&self, id: &str) -> Job {
        self.ledger.job(id).await.unwrap().unwrap()
    }

    pub(crate) async fn branch(&self, id: &str) -> Branch {
        self.ledger.branch(id).await.unwrap().unwrap()
    }
}

/// A branch being written to.
pub(crate) struct Line {
    pub(crate) ledger: SharedLedger,
    pub(crate) capture: String,
    pub(crate) branch: String,
    pub(crate) fence: u64,
    pub(crate) next_seq: u64,
}

impl Line {
    /// A checkpoint of `changes` changes; `next_seq` is not moved.
    pub(crate) fn checkpoint(&self, changes: u64) -> Checkpoint {
        let (first_seq, last_seq) = (self.next_seq, self.next_seq + changes - 1);
        let parts = vec![Bytes::from(vec![7u8; 1_000]), Bytes::from(vec![8u8; 500])];
        let spec = SyncSpec {
            batch: random::id(),
            epoch: 1,
            first_seq,
            last_seq,
            first_time: time(first_seq),
            last_time: time(last_seq),
            last_wall_ms: Some(wall(last_seq)),
            start_token: token(first_seq - 1),
            end_token: token(last_seq),
            starts_inside: false,
            ends: Ends::Closed,
            raw_bytes: changes * 100,
            block_bytes: changes * 110,
            payload_bytes: 1_500,
            payload_parts: 2,
        };
        let batch = NewBatch { job: random::ordered_id(), branch: self.branch.clone(), spec, parts };
        let after = Position {
            token: token(last_seq),
            chain: token(last_seq),
            next_seq: last_seq + 1,
            last_txn: Some(rawdoc! { "txnNumber": 4i64 }),
        };
        Checkpoint { capture: self.capture.clone(), fence: self.fence, expected_next_seq: first_seq, after, batch: Some(batch) }
    }

    /// Stores a batch; its job's id.
    pub(crate) async fn put(&mut self, changes: u64) -> String {
        let write = self.checkpoint(changes);
        assert_eq!(self.ledger.checkpoint(&write).await.unwrap(), Checkpointed::Stored);
        self.next_seq += changes;
        write.batch.unwrap().job
    }
}

pub(crate) fn new_capture(capture: &str, branch: &str, name: &str) -> NewCapture {
    let branch = Branch::new(branch, name, "db");
    let source = Source::new(None, "$shop".to_owned(), "rs:rs0:aa".to_owned());
    let capture = Capture::new(capture, &branch, source, token(0), 1);
    let base = Base::empty(&format!("base-{}", branch.id), &branch.id, time(0), "ab".to_owned());
    NewCapture { capture, branch, base }
}

pub(crate) fn beat(engine: &str) -> EngineBeat {
    EngineBeat { id: engine.to_owned(), host: "$host".to_owned(), boot: "b".to_owned(), pid: 1, beat_ms: 0, status: None }
}

pub(crate) fn lease(job: &Job) -> JobLease {
    JobLease { id: job.id.clone(), token: job.lease.as_ref().unwrap().token.clone(), attempt: job.attempt }
}

/// The segment of a claimed job.
pub(crate) fn commit(job: &Job) -> SegmentCommit {
    SegmentCommit {
        lease: lease(job),
        segment: segment(job, SegmentKind::Changes),
        payload_bytes: job.sync.as_ref().unwrap().payload_bytes,
    }
}

pub(crate) fn segment(job: &Job, kind: SegmentKind) -> SegmentRow {
    let s = job.sync.as_ref().unwrap();
    SegmentRow {
        key: format!("{}/{:016x}-{:016x}", job.branch, s.first_seq, s.last_seq),
        branch: job.branch.clone(),
        kind,
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
        holes: if kind == SegmentKind::Gap { s.last_seq + 1 - s.first_seq } else { 0 },
        raw_bytes: s.raw_bytes,
        stored_bytes: 10,
        sha256: "ab".to_owned(),
        committed_ms: 0,
        filter: Some(RowFilter(vec![0x80, 1, 0, 255])),
    }
}

pub(crate) fn time(seq: u64) -> ClusterTime {
    ClusterTime { t: 1_700_000_000 + u32::try_from(seq).unwrap(), i: 1 }
}

pub(crate) fn wall(seq: u64) -> i64 {
    i64::try_from(seq).unwrap() * 1_000
}

pub(crate) fn token(seq: u64) -> RawDocumentBuf {
    rawdoc! { "_data": format!("82{seq:016x}") }
}

/// The moment by server time before which an engine must have beaten last to count as silent for `time`.
pub(crate) async fn silent_for<L: Ledger + ?Sized>(ledger: &L, time: Duration) -> Option<i64> {
    Some(ledger.now_ms().await.unwrap() - i64::try_from(time.as_millis()).unwrap())
}
