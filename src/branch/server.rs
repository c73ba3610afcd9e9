//! Owns: the codes that everything under `branch` tells apart when it talks to a source or target database.
//! Does not own: what an error of the driver means (`ledger`).

use mongodb::error::Error;

use crate::fault::Fault;
use crate::ledger::{MongoPhase, classify_mongo_error};

/// NamespaceNotFound: dropped in between.
pub(super) const NAMESPACE_NOT_FOUND: i32 = 26;
/// CollectionUUIDMismatch: dropped or renamed in between.
pub(super) const COLLECTION_UUID_MISMATCH: i32 = 361;
/// SnapshotTooOld.
pub(super) const SNAPSHOT_TOO_OLD: i32 = 239;
/// SnapshotUnavailable: the collection changed since, or cannot be read at a time (capped).
pub(super) const SNAPSHOT_UNAVAILABLE: i32 = 246;

/// The server's error code, where there is one.
pub(super) use crate::ledger::mongo_error_code as code;

/// What the error means, said with what was being done: classified where the ledger's errors are, without secrets.
pub(super) fn fault(doing: &str, error: &Error) -> Fault {
    classify_mongo_error(error, MongoPhase::Run).at(doing)
}
