//! Owns: the rows of bases (full copies of a database that history may start from) and of what was copied so far, in the words of the documents.
//! Does not own: how they are stored (`mongo`, `memory`), what is in their objects (`branch::documents`, `segment`), making them (`jobs`).

use bson::RawDocumentBuf;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::BranchId;
use crate::change::ClusterTime;

/// A base's id: a UUID in its text form, part of its object keys.
pub type BaseId = String;

/// Where a base comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum BaseOrigin {
    /// The source had no documents: a catalogue alone.
    Empty,
    /// Read from the source, chunk by chunk, while it was in use.
    Copy,
    /// Made from history in the bucket: the state after change `seq`.
    Fold,
}

/// How far a base is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum BaseState {
    /// Being made: nothing can be restored from it.
    Copying,
    /// Its manifest is in the bucket.
    Complete,
    /// Given up, see `reason`; its objects go with the next cleanup.
    Abandoned,
}

/// A full copy of a database.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Base {
    #[serde(rename = "_id")]
    pub id: BaseId,
    pub branch: BranchId,
    pub origin: BaseOrigin,
    pub state: BaseState,
    /// Changes up to this one are before it: what follows is folded onto it. 0 at the start of a branch.
    pub seq: u64,
    /// Time of the catalogue's listing; DDL folding is tolerant up to it.
    pub time: ClusterTime,
    /// From this time on it can be restored: the latest time at which a part of it was read. While it is being made, as far as it is known.
    pub consistent_at: ClusterTime,
    /// SHA-256 of its manifest in lower-case hex, of its plan while it is being copied: its own text cannot vouch for itself.
    pub sha256: String,
    pub documents: u64,
    /// Bytes of the documents.
    pub raw_bytes: u64,
    /// Bytes of its objects of documents.
    pub stored_bytes: u64,
    pub objects: u64,
    /// What there is to copy, as the source estimates it.
    #[serde(default)]
    pub expected_documents: u64,
    #[serde(default)]
    pub expected_bytes: u64,
    /// Why it was given up, or what it waits for.
    #[serde(default)]
    pub reason: Option<String>,
    pub created_ms: i64,
    /// When it became complete or was given up.
    #[serde(default)]
    pub finished_ms: Option<i64>,
}

/// A stretch of one collection in key order, copied in one read: one object, or none where nothing was found.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct BaseChunk {
    /// [`chunk_id`]: two that copy the same stretch meet here, and one of them wins.
    #[serde(rename = "_id")]
    pub id: String,
    pub base: BaseId,
    /// UUID of the collection, 32 hex digits.
    pub uuid: String,
    /// From 0, in order of keys.
    pub n: u32,
    /// Every change up to this time is in it, none later; of a fuzzy one, every change up to here and perhaps some later ones.
    pub read_at: ClusterTime,
    /// Nothing later is in it.
    pub until: ClusterTime,
    /// The collection could not be read at one time (capped).
    #[serde(default)]
    pub fuzzy: bool,
    /// `{_id}` of the last document: where the next stretch goes on.
    pub last: Option<RawDocumentBuf>,
    /// The end of the collection was reached, or it is gone.
    pub done: bool,
    /// Hash part of the object's key; absent where no document was found.
    pub object: Option<String>,
    pub sha256: String,
    pub documents: u64,
    pub raw_bytes: u64,
    pub stored_bytes: u64,
}

/// The id of the `n`-th stretch of a collection in a base.
pub fn chunk_id(base: &str, uuid: &str, n: u32) -> String {
    format!("{base}/{uuid}/{n:08}")
}

impl Base {
    /// Whether it was given up at or before this time of the server.
    pub fn was_given_up_by(&self, time_ms: i64) -> bool {
        self.state == BaseState::Abandoned && self.finished_ms.is_some_and(|at| at <= time_ms)
    }

    /// The catalogue of a database without documents, from which history starts.
    pub fn empty(id: &str, branch: &str, time: ClusterTime, sha256: String) -> Self {
        Self {
            id: id.to_owned(),
            branch: branch.to_owned(),
            origin: BaseOrigin::Empty,
            state: BaseState::Complete,
            seq: 0,
            time,
            consistent_at: time,
            sha256,
            documents: 0,
            raw_bytes: 0,
            stored_bytes: 0,
            objects: 0,
            expected_documents: 0,
            expected_bytes: 0,
            reason: None,
            created_ms: 0,
            finished_ms: None,
        }
    }
}
