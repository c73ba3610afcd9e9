//! Owns: turning errors of the driver into faults for everything under `branch` that talks to a source or target database.
//! Does not own: the metadata database's errors (`ledger`).

use mongodb::error::{Error, ErrorKind, WriteFailure};

use crate::fault::{Fault, Kind};

/// NamespaceNotFound: dropped in between.
pub(super) const NAMESPACE_NOT_FOUND: i32 = 26;
/// CollectionUUIDMismatch: dropped or renamed in between.
pub(super) const COLLECTION_UUID_MISMATCH: i32 = 361;
/// SnapshotTooOld.
pub(super) const SNAPSHOT_TOO_OLD: i32 = 239;
/// SnapshotUnavailable: the collection changed since, or cannot be read at a time (capped).
pub(super) const SNAPSHOT_UNAVAILABLE: i32 = 246;

/// The server's error code, where there is one.
pub(super) fn code(error: &Error) -> Option<i32> {
    match error.kind.as_ref() {
        ErrorKind::Command(command) => Some(command.code),
        ErrorKind::Write(WriteFailure::WriteError(write)) => Some(write.code),
        ErrorKind::InsertMany(many) => many.write_errors.as_ref().and_then(|errors| errors.first()).map(|e| e.code),
        _ => None,
    }
}

/// Classifies: rights and refusals are `Rejected`, networks and elections `Unknown`.
pub(super) fn fault(doing: &str, error: &Error) -> Fault {
    let what = format!("{doing}: {error}");
    let kind = match (error.kind.as_ref(), code(error)) {
        // Time limit, not primary, shutdown, stepdown, network inside the cluster, write conflict.
        (_, Some(6 | 7 | 50 | 89 | 91 | 112 | 189 | 262 | 9001 | 10107 | 11600 | 11602 | 13435 | 13436)) => Kind::Unknown,
        (_, Some(_)) => Kind::Rejected,
        (ErrorKind::Authentication { .. } | ErrorKind::InvalidTlsConfig { .. }, None) => Kind::Rejected,
        (ErrorKind::InvalidArgument { .. }, None) => Kind::Config,
        _ => Kind::Unknown,
    };
    Fault { kind, what, retry_after: None }
}
