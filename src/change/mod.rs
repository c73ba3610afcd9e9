//! A change as raw BSON. Pure: no clock, no I/O.
//!
//! Owns: the row form of a change ([`ChangeRef`]), parsing of change events into rows (`event`), the server's raw diff
//! and the fallback diff (`delta`, `description`), which other events can be applied (`ddl`), the canonical key of a document (`canonical`),
//! resume tokens (`token`).
//! Does not own: where rows are stored (`segment`) or how they are folded into documents (`branch`).

mod canonical;
mod ddl;
mod delta;
mod description;
mod event;
mod raw;
mod token;

pub use canonical::{CanonicalKey, canonical_id, canonical_key, id_document, write_canonical_id};
pub use ddl::{
    BUCKETS, Ddl, DdlEvent, IndexOption, MARKER, Modification, OBSERVED, Observed, ObservedCollection, is_on_buckets, is_passed_over,
    parse_ddl, uuid_of_bson,
};
pub use delta::{DeltaError, apply_delta, apply_delta_tolerant, check_delta};
pub use description::{apply_update_description, check_update_description};
pub use event::{EventView, Scratch, is_data, operation_type, parse_event, parse_stored_event, rebuild_event};
pub use token::{Token, token_time};

use bson::RawDocument;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// The server's cluster time: seconds and increment. The only clock of history.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize, JsonSchema)]
pub struct ClusterTime {
    /// Seconds since the epoch.
    pub t: u32,
    /// Increment within the second, from 1.
    pub i: u32,
}

impl ClusterTime {
    /// The time just before this one.
    #[must_use]
    pub fn before(self) -> Self {
        match (self.t, self.i) {
            (0, 0) => self,
            (t, 0) => Self { t: t - 1, i: u32::MAX },
            (t, i) => Self { t, i: i - 1 },
        }
    }
}

impl From<bson::Timestamp> for ClusterTime {
    fn from(ts: bson::Timestamp) -> Self {
        Self { t: ts.time, i: ts.increment }
    }
}

impl From<ClusterTime> for bson::Timestamp {
    fn from(ts: ClusterTime) -> Self {
        Self { time: ts.t, increment: ts.i }
    }
}

impl std::fmt::Display for ClusterTime {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "ts:{}.{}", self.t, self.i)
    }
}

/// What a row holds. The numbers are part of segment format v1.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum Op {
    /// `body` is the full document; `key` is absent unless the document key is more than `{_id}`.
    Insert = 1,
    /// `key` names the document, `body` is the server's own `$v: 2` diff.
    Update = 2,
    /// `key` names the document, `body` is `updateDescription`: exact in values, not in field order.
    Described = 3,
    /// `body` is the full document; `key` as for an insert.
    Replace = 4,
    /// `key` names the document; no body.
    Delete = 5,
    /// `body` is the whole event without its token: DDL, unknown types, and data events with fields we do not know.
    Event = 6,
}

impl Op {
    /// The op of a number in a file.
    pub fn from_u8(n: u8) -> Option<Self> {
        Some(match n {
            1 => Self::Insert,
            2 => Self::Update,
            3 => Self::Described,
            4 => Self::Replace,
            5 => Self::Delete,
            6 => Self::Event,
            _ => return None,
        })
    }
}

/// One change as a row, borrowed from an event or from a decoded block.
#[derive(Debug, Clone, Copy)]
pub struct ChangeRef<'a> {
    /// What the row holds.
    pub op: Op,
    /// Collection name without the database; empty for database-wide events.
    pub coll: &'a str,
    /// The collection's UUID where the server tells it.
    pub uuid: Option<[u8; 16]>,
    /// Commit time at the server.
    pub time: ClusterTime,
    /// Wall clock of the server in milliseconds since the epoch.
    pub wall_ms: Option<i64>,
    /// `{lsid, txnNumber}` of the transaction this change belongs to.
    pub txn: Option<&'a RawDocument>,
    /// Document key.
    pub key: Option<&'a RawDocument>,
    /// See [`Op`].
    pub body: Option<&'a RawDocument>,
}

impl ChangeRef<'_> {
    /// Bytes of the server's event that this row keeps: body and key, without token and envelope.
    pub fn raw_bytes(&self) -> u64 {
        let len = |d: Option<&RawDocument>| d.map_or(0, |d| d.as_bytes().len() as u64);
        len(self.key) + len(self.body)
    }

    /// Writes the canonical key of the document that a data change is about: that of its key, or else of the document itself. False, with
    /// nothing in `out`, if it names none: then nobody can apply it.
    pub fn write_document_key(&self, out: &mut Vec<u8>) -> bool {
        out.clear();
        let whole = if matches!(self.op, Op::Insert | Op::Replace) { self.body } else { None };
        self.key.is_some_and(|key| write_canonical_id(key, out)) || whole.is_some_and(|body| write_canonical_id(body, out))
    }

    /// Whether this version can apply the body of a data change to the document that it was made for. What is malformed counts like what
    /// is unknown: it must show when it is written, not at a restore.
    pub fn is_applicable(&self) -> bool {
        match self.op {
            Op::Insert | Op::Replace => self.body.is_some(),
            Op::Update => self.body.is_some_and(|diff| check_delta(diff).is_ok()),
            Op::Described => self.body.is_some_and(|description| check_update_description(description).is_ok()),
            Op::Delete => true,
            Op::Event => false,
        }
    }
}
