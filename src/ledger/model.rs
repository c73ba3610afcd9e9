//! Owns: the rows of captures, branches, segments and engines as Rust types, in the words of the documents themselves. Those of the queue are in `job`.
//! Does not own: how they are stored or fenced (`mongo`, `memory`), or what job states may follow which (`queue`).

use bson::RawDocumentBuf;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{EngineStatus, Selection};
use crate::change::ClusterTime;

/// A branch's id: a UUID in its text form, part of every object key.
pub type BranchId = String;
/// A capture's id: a UUID in its text form.
pub type CaptureId = String;
/// A process: fresh for every start.
pub type EngineId = String;
/// A job's id: a UUID v7 in its text form, so that ids sort by creation.
pub type JobId = String;

/// What the operator wants of a capture and what became of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum CaptureState {
    /// An engine should follow the stream.
    Running,
    /// Stopped by the operator; may be started again and then resumes at its checkpoint.
    Stopped,
    /// Stopped by a fatal error, see `reason`.
    Failed,
    /// Held for a while by the operator: nobody reads, the checkpoint stays, and a resume goes on from there.
    Paused,
}

/// How exact updates are in history (correctness.md 1).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum Fidelity {
    /// The server's own raw diffs: field order, dots and arrays are exact.
    #[serde(rename = "exact")]
    Exact,
    /// Only `updateDescription`: values are exact, field order may differ.
    #[serde(rename = "order may differ")]
    OrderMayDiffer,
}

/// What a source agreed to send over one open stream.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Coverage {
    pub fidelity: Fidelity,
    /// What the stream hides, each with the reason (correctness.md 2).
    pub uncovered: Vec<String>,
}

impl Coverage {
    /// Everything that a stream can show.
    pub fn full() -> Self {
        Self { fidelity: Fidelity::Exact, uncovered: Vec::new() }
    }
}

/// Where a capture reads.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Source {
    /// `env:NAME`, `file:PATH`, a URI without password, or absent: the engine's own `ARGON_MONGODB_URI`.
    pub uri: Option<String>,
    /// The captured database.
    pub db: String,
    /// Replica set id or cluster id, checked at every open (correctness.md 7).
    pub identity: String,
    /// Which of its collections.
    #[serde(default, skip_serializing_if = "Selection::is_all")]
    pub selection: Selection,
}

impl Source {
    /// A whole database.
    pub fn new(uri: Option<String>, db: String, identity: String) -> Self {
        Self { uri, db, identity, selection: Selection::default() }
    }
}

/// The checkpoint of a capture: everything up to here is in the queue or further.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Position {
    /// Resume token of the last change stored, or a later high-water token when nothing is pending.
    pub token: RawDocumentBuf,
    /// End token of the last batch: the start token of the next, so that segments chain although idle tokens move on (correctness.md 20).
    pub chain: RawDocumentBuf,
    /// Sequence number of the next change; the first is 1.
    pub next_seq: u64,
    /// `{lsid, txnNumber}` of the last change if it was part of a transaction: tells whether the next batch starts inside.
    pub last_txn: Option<RawDocumentBuf>,
}

/// One followed database.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Capture {
    #[serde(rename = "_id")]
    pub id: CaptureId,
    pub branch: BranchId,
    pub branch_name: String,
    pub source: Source,
    pub state: CaptureState,
    /// Why it is not running, or what it is waiting for.
    pub reason: Option<String>,
    pub position: Position,
    /// Ownership counter: each owner gets the next; checkpoints are conditional on it.
    pub fence: u64,
    pub owner: Option<EngineId>,
    /// Id of the last batch stored, so that an engine recognises its own write (correctness.md 9).
    pub last_batch: Option<String>,
    /// Payload bytes ever put into the queue by this capture; minus [`Branch::settled_bytes`] it is the backlog.
    pub queued_bytes: u64,
    /// When the checkpoint last moved, server time in ms since the epoch.
    pub checkpoint_ms: i64,
}

/// Status of a branch as users see it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum BranchStatus {
    Active,
    /// A dead sync job holds the head.
    Stalled,
    /// History has a recorded gap.
    Gap,
    /// The capture has failed.
    Failed,
    /// Nothing is captured into it any more; everything can still be restored.
    Archived,
    /// Its objects go after a grace.
    Deleted,
}

/// Where a branch was forked: it goes on after change `seq` of its parent.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Parent {
    pub id: BranchId,
    pub seq: u64,
    /// Cluster time of change `seq` at the parent's source.
    pub time: ClusterTime,
}

/// A restore that was made and compared.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Proven {
    /// The point that was restored: everything up to this change.
    pub seq: u64,
    pub time: ClusterTime,
    /// When, server time in ms since the epoch.
    pub at_ms: i64,
    /// What it was compared with.
    pub with: String,
    pub documents: u64,
}

/// What a branch adds up to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Totals {
    pub changes: u64,
    /// Server's event bytes without token and envelope.
    pub raw_bytes: u64,
    /// Bytes of segment objects.
    pub stored_bytes: u64,
    pub segments: u64,
}

/// The end of the contiguous committed history of a branch.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Head {
    /// Highest seq such that 1..=seq are committed; 0 at first.
    pub seq: u64,
    /// Cluster time of change `seq`.
    pub time: ClusterTime,
    /// Server wall clock of change `seq` in ms, for display.
    pub wall_ms: Option<i64>,
}

/// A named line of history.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Branch {
    #[serde(rename = "_id")]
    pub id: BranchId,
    /// `project/branch`, unique.
    pub name: String,
    /// Name of the captured database.
    pub source_db: String,
    pub status: BranchStatus,
    pub reason: Option<String>,
    /// The least exact that any stretch of history was read with.
    pub fidelity: Fidelity,
    /// What some stretch of history does not hold, each with the reason (correctness.md 2).
    #[serde(default)]
    pub uncovered: Vec<String>,
    /// Numbering epoch in the bucket (correctness.md 20).
    pub epoch: u64,
    pub head: Head,
    pub totals: Totals,
    /// Where it was forked; absent for a branch that began with a capture.
    #[serde(default)]
    pub parent: Option<Parent>,
    /// When it deletes itself, server time in ms since the epoch.
    #[serde(default)]
    pub expires_ms: Option<i64>,
    /// When it was deleted; its objects go after a grace.
    #[serde(default)]
    pub deleted_ms: Option<i64>,
    /// The captured database was made by a checkout with a time to live: it goes with the branch.
    #[serde(default)]
    pub drop_db: bool,
    /// The last drill that succeeded.
    #[serde(default)]
    pub proven: Option<Proven>,
    /// Payload bytes of this branch's sync jobs that were committed or discarded.
    pub settled_bytes: u64,
    pub created_ms: i64,
}

/// How the last change of a segment lies to its transaction (correctness.md 6).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Ends {
    /// The segment ends at a transaction boundary.
    Closed,
    /// The transaction goes on in the next segment.
    Open,
    /// Not known when it was written: the next segment or a later token tells.
    Unknown,
}

/// Kind of a segment.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum SegmentKind {
    /// Changes.
    Changes,
    /// A recorded hole in history with exact bounds (correctness.md 19, 25).
    Gap,
    /// Documents of a base, as inserts numbered from 1 on; never a part of history itself.
    Base,
}

/// A committed segment.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct SegmentRow {
    /// Object key relative to the store's prefix.
    #[serde(rename = "_id")]
    pub key: String,
    pub branch: BranchId,
    pub kind: SegmentKind,
    pub epoch: u64,
    pub level: u32,
    pub first_seq: u64,
    pub last_seq: u64,
    pub first_time: ClusterTime,
    pub last_time: ClusterTime,
    pub last_wall_ms: Option<i64>,
    pub starts_inside: bool,
    pub ends: Ends,
    pub has_ddl: bool,
    /// Changes that are lost or whose diff has sections we do not know (all of a gap): restore across them is refused.
    pub holes: u64,
    pub raw_bytes: u64,
    pub stored_bytes: u64,
    pub sha256: String,
    pub committed_ms: i64,
    /// The key filter of a segment that has one block: most lookups then need not read it. Only [`Ledger::segments_before`](super::Ledger::segments_before)
    /// tells it, and rows that were made from the bucket have none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub filter: Option<RowFilter>,
}

impl SegmentRow {
    /// Changes of the segment.
    pub fn changes(&self) -> u64 {
        (self.last_seq.saturating_add(1)).saturating_sub(self.first_seq)
    }
}

/// The bytes of a key filter, see `docs/segment-format.md`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct RowFilter(#[serde(with = "serde_bytes")] pub Vec<u8>);

/// Liveness of a process.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct EngineBeat {
    #[serde(rename = "_id")]
    pub id: EngineId,
    pub host: String,
    /// Boot id of the host: a pid of another boot is never alive.
    pub boot: String,
    pub pid: u32,
    /// Server time of the last heartbeat; written by the server.
    #[serde(default)]
    pub beat_ms: i64,
    /// What the process says of itself; goes along with every heartbeat.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub status: Option<EngineStatus>,
}

impl EngineBeat {
    /// Whether it has been heard within its own lease, at `now_ms` of the server: for display, nobody is judged by it.
    pub fn is_heard(&self, now_ms: i64) -> bool {
        let lease_ms = self.status.as_ref().map(|status| status.lease_ms).filter(|ms| *ms > 0);
        now_ms.saturating_sub(self.beat_ms) < lease_ms.unwrap_or(15_000)
    }
}

impl Capture {
    /// A capture that begins at a token, with the first change to number `next_seq`.
    pub fn new(id: &str, branch: &Branch, source: Source, token: RawDocumentBuf, next_seq: u64) -> Self {
        Self {
            id: id.to_owned(),
            branch: branch.id.clone(),
            branch_name: branch.name.clone(),
            source,
            state: CaptureState::Running,
            reason: None,
            position: Position { token: token.clone(), chain: token, next_seq, last_txn: None },
            fence: 0,
            owner: None,
            last_batch: None,
            queued_bytes: 0,
            checkpoint_ms: 0,
        }
    }
}

impl Branch {
    /// A branch with nothing in it.
    pub fn new(id: &str, name: &str, source_db: &str) -> Self {
        Self {
            id: id.to_owned(),
            name: name.to_owned(),
            source_db: source_db.to_owned(),
            status: BranchStatus::Active,
            reason: None,
            fidelity: Fidelity::Exact,
            uncovered: Vec::new(),
            epoch: 1,
            head: Head::default(),
            totals: Totals::default(),
            parent: None,
            expires_ms: None,
            deleted_ms: None,
            drop_db: false,
            proven: None,
            settled_bytes: 0,
            created_ms: 0,
        }
    }

    /// First seq that is its own: what is before belongs to its parent.
    pub fn first_own_seq(&self) -> u64 {
        self.parent.as_ref().map_or(1, |parent| parent.seq + 1)
    }
}
