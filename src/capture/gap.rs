//! A hole in what the source still serves: the oplog has rolled past the checkpoint, or holds an event that no stream can pass. History gets a gap with exact
//! bounds, and goes on from the present; a new base makes what follows restorable (see `engine::keeper`).
//!
//! Owns: the gap's segment, the order object first and metadata second, and the breaker. Does not own: the transaction (`ledger`), the new base.

use std::sync::atomic::AtomicBool;

use bson::RawDocumentBuf;

use super::feed::SharedFeed;
use super::start::put;
use crate::branch::layout;
use crate::change::token_time;
use crate::fault::{Fault, Kind, Result};
use crate::ledger::{
    Base, BaseState, Branch, Capture, CaptureGap, Checkpointed, Ends, Position, SegmentKind, SegmentRow, SharedLedger, same_source,
};
use crate::segment::{SegmentHeader, encode};
use crate::store::Store;

/// Gaps in a row without a base between them after which the capture stops: the oplog is too short for a base to be copied at all.
const BREAKER: usize = 2;

/// Records that everything from the capture's checkpoint to now is lost. `Ok(false)` when the capture is another's by now.
///
/// # Errors
/// `HistoryLost` where it must not go on by itself: the source is another deployment, or gaps follow each other.
pub async fn record_gap(
    ledger: &SharedLedger,
    store: &Store,
    feed: &SharedFeed,
    branch: &Branch,
    capture: &Capture,
    why: &Fault,
) -> Result<bool> {
    let seen = feed.identity().await?;
    if !same_source(&capture.source.identity, &seen) {
        return Err(Fault::history_lost(why.what.clone()));
    }
    let bases = ledger.bases(&branch.id).await?;
    if gaps_in_a_row(ledger, branch, &bases).await? >= BREAKER {
        return Err(Fault::history_lost(format!(
            "{} (for the {BREAKER}. time without a base between: the source's oplog is shorter than copying a base takes; make the oplog larger, or read with more ARGON_BASE_READERS, then argon capture start again)",
            why.what
        )));
    }
    let mut cursor = feed.open(None).await?;
    let token = cursor.next().await?.token()?.to_owned();
    drop(cursor);
    let gap = Gap::new(branch, capture, token, &why.what)?;
    // Somebody else may have put the same gap: another token makes another object.
    put(store, &gap.row.key, gap.body.clone()).await?;
    let write = CaptureGap {
        capture: capture.id.clone(),
        fence: capture.fence,
        expected_next_seq: capture.position.next_seq,
        after: gap.after.clone(),
        row: gap.row.clone(),
    };
    let outcome = match ledger.record_gap(&write).await {
        Err(fault) if fault.kind == Kind::Unknown => ledger.record_gap(&write).await,
        outcome => outcome,
    };
    match outcome? {
        Checkpointed::Stored | Checkpointed::Already => Ok(true),
        Checkpointed::Fenced | Checkpointed::NotRunning => {
            let _ = store.delete(&gap.row.key).await; // no row names it
            Ok(false)
        }
    }
}

/// Recorded gaps behind the last base that was completed.
async fn gaps_in_a_row(ledger: &SharedLedger, branch: &Branch, bases: &[Base]) -> Result<usize> {
    let since = bases.iter().filter(|base| base.state == BaseState::Complete).map(|base| base.seq).max();
    let lost = ledger.losses(&branch.id, since.map_or(0, |seq| seq + 1), BREAKER + 1).await?;
    Ok(lost.iter().filter(|row| row.kind == SegmentKind::Gap).count())
}

struct Gap {
    row: SegmentRow,
    body: Vec<u8>,
    after: Position,
}

impl Gap {
    /// One seq, from the end of what was captured to the present.
    fn new(branch: &Branch, capture: &Capture, token: RawDocumentBuf, why: &str) -> Result<Self> {
        let position = &capture.position;
        let seq = position.next_seq;
        let header = SegmentHeader {
            kind: SegmentKind::Gap,
            branch: branch.id.clone(),
            epoch: branch.epoch,
            first_seq: seq,
            last_seq: seq,
            first_time: token_time(&position.token)?,
            last_time: token_time(&token)?,
            last_wall_ms: None,
            start_token: position.chain.clone(),
            end_token: token.clone(),
            // What was being read may have been in the middle of a transaction; where the stream goes on it is not.
            starts_inside: position.last_txn.is_some(),
            ends: Ends::Closed,
            db: branch.source_db.clone(),
            reason: Some(why.to_owned()),
        };
        let encoded = encode(&header, &[], &AtomicBool::new(false))?;
        let project = layout::project_of(&branch.name);
        let row = SegmentRow {
            key: layout::segment_l0(project, &branch.id, branch.epoch, seq, seq, &encoded.sha256),
            branch: branch.id.clone(),
            kind: SegmentKind::Gap,
            epoch: branch.epoch,
            level: 0,
            first_seq: seq,
            last_seq: seq,
            first_time: header.first_time,
            last_time: header.last_time,
            last_wall_ms: None,
            starts_inside: header.starts_inside,
            ends: header.ends,
            has_ddl: false,
            holes: 1,
            raw_bytes: 0,
            stored_bytes: encoded.bytes.len() as u64,
            sha256: layout::hex(&encoded.sha256),
            committed_ms: 0,
            filter: None,
        };
        let after = Position { token: token.clone(), chain: token, next_seq: seq + 1, last_txn: None };
        Ok(Self { row, body: encoded.bytes.to_vec(), after })
    }
}
