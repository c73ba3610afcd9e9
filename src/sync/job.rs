//! One sync job: load its payload, encode and decode back on the CPU pool, upload, commit.
//!
//! Owns: the order of the steps and what each failure means for the job. Does not own: when the job runs, its lease (`pool`).

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use bson::RawDocumentBuf;
use bytes::Bytes;
use parking_lot::Mutex;
use tokio_util::sync::CancellationToken;
use tracing::Instrument;

use crate::branch::layout;
use crate::fault::{Fault, Kind, Result};
use crate::jobs::{Outcome, Watch};
use crate::ledger::{BranchId, Committed, Job, JobLease, SegmentCommit, SegmentKind, SegmentRow, SharedLedger, SyncSpec};
use crate::pool::MarkHandle;
use crate::runtime::backoff::Backoff;
use crate::runtime::clock;
use crate::runtime::cpu::CpuPool;
use crate::runtime::random;
use crate::segment::{Encoded, PackedBlock, SegmentHeader, encode, unpack_payload, verify_encoded};
use crate::store::{PutOutcome, PutTag, RetryPolicy, Store, put_idempotent};

use super::commit::CommitHandle;
use crate::telemetry::meters::{Meters, Stage};
use crate::telemetry::traces::step;

/// Repeats of a commit whose outcome is unclear, before the job is given back.
const COMMIT_ATTEMPTS: u32 = 8;
const COMMIT_PAUSE: Backoff = Backoff { base: Duration::from_millis(50), cap: Duration::from_secs(2) };

/// Branches whose [`Target`] is remembered, about 200 bytes each; beyond it all are looked up anew.
const MAX_TARGETS: usize = 1_000;

/// What names a segment's place, looked up once per branch: neither name nor database of a branch ever changes.
#[derive(Debug, Clone)]
pub(crate) struct Target {
    pub project: String,
    pub db: String,
}

/// Targets by branch.
#[derive(Debug, Clone, Default)]
pub(crate) struct Targets(Arc<Mutex<HashMap<BranchId, Target>>>);

/// Everything a sync job needs.
#[derive(Debug, Clone)]
pub struct SyncJob {
    pub ledger: SharedLedger,
    pub store: Store,
    pub cpu: CpuPool,
    pub commits: CommitHandle,
    pub marks: MarkHandle,
    /// Shared by the workers.
    pub(crate) targets: Targets,
    /// Longest time of one upload, its repeats included: well below the time of the whole attempt.
    pub upload_time: Duration,
    pub meters: Meters,
}

impl SyncJob {
    /// Runs one attempt. Faults that a later attempt may heal are `Transient`: an outage never uses up attempts.
    pub async fn run(&self, job: &Job, lease: &JobLease, watch: &Watch) -> Result<Outcome> {
        let spec = job.sync.as_ref().ok_or_else(|| Fault::corrupt(format!("job {} has no sync part", job.id)))?;
        // The mark costs no time of its own, and is there before anything is computed.
        let begin = async { tokio::join!(self.started(job, lease), self.target(&job.branch), self.ledger.payload(&job.id)) };
        let (started, target, parts) = begin.instrument(step!("payload")).await;
        if !started.map_err(outage)? {
            return Ok(Outcome::Fenced);
        }
        let (target, parts) = (target?, parts.map_err(outage)?);
        let encoded = self.encode(job, spec, &target, parts, watch).instrument(step!("encode")).await?;
        let key = layout::segment_l0(&target.project, &job.branch, spec.epoch, spec.first_seq, spec.last_seq, &encoded.sha256);
        let adopted = self.upload(&key, &encoded, spec.changes(), &watch.cancel).instrument(step!("upload")).await?;
        let stored_bytes = encoded.bytes.len() as u64;
        let commit = SegmentCommit { lease: lease.clone(), segment: row(job, spec, key, &encoded), payload_bytes: spec.payload_bytes };
        Ok(match self.commit(commit, &watch.cancel).instrument(step!("commit")).await? {
            Committed::Now | Committed::Already => Outcome::Committed { stored_bytes, adopted },
            Committed::Fenced => Outcome::Fenced,
            Committed::Misfit => {
                return Err(Fault::corrupt(format!(
                    "the segment of changes {} to {} does not have the range of job {}: it is a bug, please report it",
                    spec.first_seq, spec.last_seq, job.id
                )));
            }
        })
    }

    /// A claim that went straight to this worker has brought the mark.
    async fn started(&self, job: &Job, lease: &JobLease) -> Result<bool> {
        if job.lease.as_ref().is_some_and(|lease| lease.started) { Ok(true) } else { self.marks.mark(lease).await }
    }

    async fn target(&self, branch: &str) -> Result<Target> {
        if let Some(known) = self.targets.0.lock().get(branch) {
            return Ok(known.clone());
        }
        let found = self.ledger.branch(branch).await.map_err(outage)?;
        let found = found.ok_or_else(|| Fault::missing(format!("branch {branch} of this job does not exist")))?;
        let target = Target { project: layout::project_of(&found.name).to_string(), db: found.source_db };
        let mut targets = self.targets.0.lock();
        if targets.len() >= MAX_TARGETS {
            targets.clear();
        }
        targets.insert(branch.to_owned(), target.clone());
        Ok(target)
    }

    async fn encode(&self, job: &Job, spec: &SyncSpec, target: &Target, parts: Vec<Bytes>, watch: &Watch) -> Result<Encoded> {
        let header = header(job, spec, &target.db);
        let limit = spec.block_bytes;
        let marked = watch.clone();
        let meters = self.meters.clone();
        let (changes, payload) = (spec.changes(), spec.payload_bytes);
        self.cpu
            .run_until("encode", &watch.cancel, move |cancel| {
                let (_computing, began) = (marked.computing(), clock::now());
                let blocks = unpack_payload(&parts, limit)?;
                drop(parts);
                check_range(&header, &blocks)?;
                let encoded = encode(&header, &blocks, cancel)?;
                // A compressor bug must not reach the bucket: unpacking has decoded every block, this proves that what was decoded is
                // what goes out, and the payload still exists.
                verify_encoded(&encoded, &header, &blocks)?;
                meters.stage(Stage::Encode).done(began.elapsed(), changes, payload);
                Ok(encoded)
            })
            .await
    }

    async fn upload(&self, key: &str, encoded: &Encoded, changes: u64, cancel: &CancellationToken) -> Result<bool> {
        let tag = PutTag { sha256: encoded.sha256, put_id: random::id() };
        let policy = RetryPolicy { time: self.upload_time, ..RetryPolicy::default() };
        let began = clock::now();
        let report = put_idempotent(&*self.store, key, encoded.bytes.clone(), &tag, &policy, cancel).await.map_err(store_outage)?;
        self.meters.stage(Stage::Upload).done(began.elapsed(), changes, encoded.bytes.len() as u64);
        self.meters.retried_uploads(report.attempts.saturating_sub(1), report.unclear);
        match report.outcome {
            PutOutcome::Stored => Ok(false),
            PutOutcome::Adopted => Ok(true),
            PutOutcome::Conflict => Err(Fault::corrupt(format!(
                "{key} in {} holds other bytes under a key that names its content: the object is damaged; verify the branch",
                self.store.describe()
            ))),
        }
    }

    async fn commit(&self, commit: SegmentCommit, cancel: &CancellationToken) -> Result<Committed> {
        let repeats = async {
            let mut attempt = 1;
            loop {
                match self.commits.commit(commit.clone()).await {
                    Err(fault) if fault.may_heal() && attempt < COMMIT_ATTEMPTS => {
                        tracing::debug!(error = %fault, attempt, "commit not confirmed, repeating");
                        tokio::time::sleep(COMMIT_PAUSE.delay(attempt, random::unit())).await;
                        attempt += 1;
                    }
                    other => return other.map_err(outage),
                }
            }
        };
        tokio::select! {
            outcome = repeats => outcome,
            // The committer may hold it still; then the lease decides.
            () = cancel.cancelled() => Err(Fault::cancelled("the commit was stopped; it may have happened")),
        }
    }
}

/// An upload, a read or a commit is safe to repeat, so an unclear outcome of one is an outage to the job. Refusals of the outside
/// (rights, a missing bucket) heal when a person mends them: the job waits, visibly, instead of dying.
fn outage(fault: Fault) -> Fault {
    match fault.kind {
        Kind::Unknown | Kind::Rejected => Fault { kind: Kind::Transient, ..fault },
        _ => fault,
    }
}

/// Nothing that an upload needs can be missing but the store itself: whoever answers so stands in its place.
fn store_outage(fault: Fault) -> Fault {
    match fault.kind {
        Kind::Missing => Fault { kind: Kind::Transient, ..fault },
        _ => outage(fault),
    }
}

pub(super) fn header(job: &Job, spec: &SyncSpec, db: &str) -> SegmentHeader {
    SegmentHeader {
        kind: SegmentKind::Changes,
        branch: job.branch.clone(),
        epoch: spec.epoch,
        first_seq: spec.first_seq,
        last_seq: spec.last_seq,
        first_time: spec.first_time,
        last_time: spec.last_time,
        last_wall_ms: spec.last_wall_ms,
        start_token: RawDocumentBuf::clone(&spec.start_token),
        end_token: RawDocumentBuf::clone(&spec.end_token),
        starts_inside: spec.starts_inside,
        ends: spec.ends,
        db: db.to_string(),
        reason: None,
    }
}

/// The payload must hold exactly the changes that the job promises.
fn check_range(header: &SegmentHeader, blocks: &[PackedBlock]) -> Result<()> {
    let mut next = header.first_seq;
    for block in blocks.iter().map(PackedBlock::raw) {
        if block.first_seq != next {
            return Err(Fault::corrupt(format!("payload: a block starts at seq {} where {next} is due", block.first_seq)));
        }
        next += u64::from(block.count);
    }
    if next != header.last_seq + 1 {
        return Err(Fault::corrupt(format!("payload ends at seq {} where {} is due", next.saturating_sub(1), header.last_seq)));
    }
    Ok(())
}

pub(super) fn row(job: &Job, spec: &SyncSpec, key: String, encoded: &Encoded) -> SegmentRow {
    SegmentRow {
        key,
        branch: job.branch.clone(),
        kind: SegmentKind::Changes,
        epoch: spec.epoch,
        level: 0,
        first_seq: spec.first_seq,
        last_seq: spec.last_seq,
        first_time: spec.first_time,
        last_time: spec.last_time,
        last_wall_ms: spec.last_wall_ms,
        starts_inside: spec.starts_inside,
        ends: spec.ends,
        has_ddl: encoded.summary.has_ddl,
        holes: encoded.summary.holes,
        raw_bytes: spec.raw_bytes,
        stored_bytes: encoded.bytes.len() as u64,
        sha256: layout::hex(&encoded.sha256),
        committed_ms: 0,
        filter: encoded.filter.clone(),
    }
}
