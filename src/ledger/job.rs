//! Owns: the rows of the queue as Rust types, in the words of the documents themselves.
//! Does not own: how they are stored or fenced (`mongo`, `memory`), what states may follow which and in what order jobs go (`queue`).

use std::str::FromStr;

use bson::RawDocumentBuf;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{BranchId, Ends, EngineId, JobId};
use crate::change::ClusterTime;

/// Kind of a job. Later kinds add a variant, a line in [`JobKind::ALL`] and a handler.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum JobKind {
    /// A batch of changes becomes a segment. Stored by a checkpoint, ended by a commit, never by [`Finish`](super::Finish).
    Sync,
    /// Segments become fewer and smaller.
    Compression,
    /// Somebody is told of an event.
    Notification,
    /// What nobody needs any more goes.
    Cleanup,
    /// A base is made: read from the source, or folded from history.
    Snapshot,
    /// A restore is made and compared, and goes.
    Drill,
    /// Does nothing, for a while, and fails as often as asked: tests and benchmarks.
    Noop,
}

impl JobKind {
    /// Every kind.
    pub const ALL: [Self; 7] = [Self::Sync, Self::Compression, Self::Notification, Self::Cleanup, Self::Snapshot, Self::Drill, Self::Noop];

    /// The word of documents, interfaces and settings.
    pub fn name(self) -> &'static str {
        match self {
            Self::Sync => "sync",
            Self::Compression => "compression",
            Self::Notification => "notification",
            Self::Cleanup => "cleanup",
            Self::Snapshot => "snapshot",
            Self::Drill => "drill",
            Self::Noop => "noop",
        }
    }
}

impl std::fmt::Display for JobKind {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for JobKind {
    type Err = String;

    fn from_str(s: &str) -> Result<Self, String> {
        Self::ALL.into_iter().find(|kind| kind.name() == s).ok_or_else(|| {
            let all = Self::ALL.map(Self::name).join(", ");
            format!("there is no kind of job called {s:?}: allowed are {all}")
        })
    }
}

/// State of a job; which may follow which is `queue::transition`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum JobState {
    /// Later: at `run_at_ms`, or, while its branch is paused, when that ends ([`Job::parked`]).
    Scheduled,
    Ready,
    Running,
    Done,
    Dead,
    Cancelled,
}

impl JobState {
    /// Every state, in the order of a job's life.
    pub const ALL: [Self; 6] = [Self::Scheduled, Self::Ready, Self::Running, Self::Done, Self::Dead, Self::Cancelled];

    /// The word of documents and interfaces.
    pub fn name(self) -> &'static str {
        match self {
            Self::Scheduled => "scheduled",
            Self::Ready => "ready",
            Self::Running => "running",
            Self::Done => "done",
            Self::Dead => "dead",
            Self::Cancelled => "cancelled",
        }
    }
}

impl std::fmt::Display for JobState {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for JobState {
    type Err = String;

    fn from_str(s: &str) -> Result<Self, String> {
        Self::ALL.into_iter().find(|state| state.name() == s).ok_or_else(|| {
            let all = Self::ALL.map(Self::name).join(", ");
            format!("there is no state of a job called {s:?}: allowed are {all}")
        })
    }
}

/// How much a job is preferred; what it is worth in time is `queue::boost_ms`, and what a kind gets is `Priority::of`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Priority {
    /// Bulk work that nobody waits for.
    Low,
    /// The stream itself.
    #[default]
    Normal,
    /// Small and awaited by a person.
    High,
}

/// What a sync job turns into a segment. Everything the segment header needs is here or in the payload.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct SyncSpec {
    pub batch: String,
    pub epoch: u64,
    pub first_seq: u64,
    pub last_seq: u64,
    pub first_time: ClusterTime,
    pub last_time: ClusterTime,
    pub last_wall_ms: Option<i64>,
    pub start_token: RawDocumentBuf,
    pub end_token: RawDocumentBuf,
    pub starts_inside: bool,
    pub ends: Ends,
    pub raw_bytes: u64,
    /// Uncompressed bytes of the encoded blocks: what the memory budget is charged with.
    pub block_bytes: u64,
    /// Compressed bytes stored beside the job, and in how many parts.
    pub payload_bytes: u64,
    pub payload_parts: u32,
}

impl SyncSpec {
    /// Changes of the batch.
    pub fn changes(&self) -> u64 {
        (self.last_seq.saturating_add(1)).saturating_sub(self.first_seq)
    }
}

/// One failed attempt.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct JobError {
    pub attempt: u32,
    pub at_ms: i64,
    pub engine: EngineId,
    pub error: String,
}

/// Time-limited ownership of a running job.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Lease {
    pub engine: EngineId,
    /// Fresh for every claim call.
    pub token: String,
    pub claimed_ms: i64,
    /// A worker has begun; until then the job only waits in its process and cannot have killed it (correctness.md 26).
    #[serde(default)]
    pub started: bool,
    /// When it has: what `JOB_STUCK_TIMEOUT` counts from.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub started_ms: Option<i64>,
}

/// One unit of the durable queue.
///
/// What later versions added is absent in older rows, and in rows that do not need it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Job {
    #[serde(rename = "_id")]
    pub id: JobId,
    pub kind: JobKind,
    /// Empty when the job is of no branch.
    #[serde(default)]
    pub branch: BranchId,
    pub state: JobState,
    #[serde(default)]
    pub priority: Priority,
    /// Not before this server time (ms since the epoch).
    pub run_at_ms: i64,
    /// `run_at - boost(priority)`: the one sort key of claims.
    pub sched_key: i64,
    pub created_ms: i64,
    /// When it reached `done`, `dead` or `cancelled`.
    pub finished_ms: Option<i64>,
    /// Attempts started that count.
    pub attempt: u32,
    /// Process deaths while it was running (correctness.md 26).
    pub crashes: u32,
    pub lease: Option<Lease>,
    /// The last errors, newest last, at most [`MAX_JOB_ERRORS`]; `error_count` is the whole number.
    pub errors: Vec<JobError>,
    pub error_count: u32,
    pub sync: Option<SyncSpec>,
    /// What the handler of a kind other than sync needs to know; only the handler reads it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub params: Option<RawDocumentBuf>,
    /// At most one job with this key is scheduled, ready or running.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub unique_key: Option<String>,
    /// Attempts after the first, where it is not `JOB_RETRY_COUNT`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub retries: Option<u32>,
    /// An operator wants it to stop while it runs: its worker ends it as cancelled, and so does everything else that ends the attempt without success.
    #[serde(default, skip_serializing_if = "is_false")]
    pub cancel_requested: bool,
    /// Scheduled until its branch is no longer paused, whatever `run_at_ms` says.
    #[serde(default, skip_serializing_if = "is_false")]
    pub parked: bool,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "the signature that serde asks for")]
fn is_false(b: &bool) -> bool {
    !*b
}

impl Job {
    /// The branch, if the job is of one.
    pub fn branch_id(&self) -> Option<&str> {
        (!self.branch.is_empty()).then_some(self.branch.as_str())
    }

    /// The lease of a running job, as finishing writes present it.
    pub fn held(&self) -> Option<JobLease> {
        let lease = self.lease.as_ref()?;
        Some(JobLease { id: self.id.clone(), token: lease.token.clone(), attempt: self.attempt })
    }
}

/// A document that grows without bound reaches 16 MB; the newest errors are the useful ones.
pub const MAX_JOB_ERRORS: usize = 50;

/// Proof of ownership presented with every finishing write.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct JobLease {
    pub id: JobId,
    pub token: String,
    pub attempt: u32,
}

#[cfg(test)]
mod tests {
    use bson::{doc, rawdoc};

    use super::*;

    #[test]
    fn words_are_those_of_the_documents() {
        for kind in JobKind::ALL {
            assert_eq!(bson::serialize_to_bson(&kind).unwrap().as_str(), Some(kind.name()));
            assert_eq!(kind.name().parse(), Ok(kind));
        }
        for state in JobState::ALL {
            assert_eq!(bson::serialize_to_bson(&state).unwrap().as_str(), Some(state.name()));
            assert_eq!(state.name().parse(), Ok(state));
        }
        assert!("synch".parse::<JobKind>().unwrap_err().contains("sync, compression"));
        assert!("gone".parse::<JobState>().unwrap_err().contains("scheduled"));
    }

    /// What the first version stored: no priority, no mark of a start, nothing of what came later.
    #[test]
    fn rows_of_the_first_version_are_read() {
        let row = rawdoc! {
            "_id": "j1", "kind": "sync", "branch": "b1", "state": "running", "run_at_ms": 1i64, "sched_key": -59_999i64,
            "created_ms": 1i64, "finished_ms": null, "attempt": 1, "crashes": 0,
            "lease": { "engine": "e1", "token": "t", "claimed_ms": 5i64 },
            "errors": [], "error_count": 0, "sync": null,
        };
        let job: Job = bson::deserialize_from_slice(row.as_bytes()).unwrap();
        assert_eq!((job.priority, job.unique_key.as_ref(), job.retries, job.parked), (Priority::Normal, None, None, false));
        let lease = job.lease.as_ref().unwrap();
        assert!(!lease.started && lease.started_ms.is_none());
        assert_eq!(job.branch_id(), Some("b1"));
        assert_eq!(job.held(), Some(JobLease { id: "j1".into(), token: "t".into(), attempt: 1 }));
    }

    #[test]
    fn what_a_row_does_not_need_is_not_stored() {
        let row = rawdoc! {
            "_id": "j1", "kind": "noop", "state": "ready", "run_at_ms": 1i64, "sched_key": 1i64, "created_ms": 1i64, "finished_ms": null,
            "attempt": 0, "crashes": 0, "lease": null, "errors": [], "error_count": 0, "sync": null,
        };
        let job: Job = bson::deserialize_from_slice(row.as_bytes()).unwrap();
        assert_eq!(job.branch_id(), None);
        let stored = bson::serialize_to_document(&job).unwrap();
        for field in ["params", "unique_key", "retries", "cancel_requested", "parked"] {
            assert!(!stored.contains_key(field), "{field}");
        }
        let whole = Job {
            cancel_requested: true,
            parked: true,
            retries: Some(1),
            unique_key: Some("k".into()),
            params: Some(rawdoc! { "a": 1 }),
            ..job
        };
        let stored = bson::serialize_to_document(&whole).unwrap();
        assert_eq!(stored.get_document("params").unwrap(), &doc! { "a": 1 });
        assert_eq!(bson::deserialize_from_document::<Job>(stored).unwrap(), whole);
    }
}
