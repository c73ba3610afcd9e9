//! Owns: a closed batch, and how it becomes a checkpoint. Does not own: when it closes (`assemble`) or storing it (`checkpoint`).

use bson::RawDocumentBuf;
use bytes::Bytes;

use crate::change::ClusterTime;
use crate::ledger::{BranchId, Checkpoint, Ends, NewBatch, Position, SyncSpec};
use crate::segment::RawBlock;

/// Largest part of a payload document; a MongoDB document holds 16 MiB.
pub(crate) const PAYLOAD_PART_BYTES: usize = 8 << 20;

/// Consecutive changes of one capture, closed.
#[derive(Debug)]
pub struct Batch {
    /// Encoded changes; empty never.
    pub blocks: Vec<RawBlock>,
    pub first_seq: u64,
    pub last_seq: u64,
    pub first_time: ClusterTime,
    pub last_time: ClusterTime,
    pub last_wall_ms: Option<i64>,
    /// Resumes right before the first change: the end token of the batch before.
    pub start_token: RawDocumentBuf,
    /// Resumes right after the last change.
    pub end_token: RawDocumentBuf,
    pub starts_inside: bool,
    pub ends: Ends,
    /// Transaction of the last change, if any.
    pub last_txn: Option<RawDocumentBuf>,
    /// Server's event bytes without token and envelope.
    pub raw_bytes: u64,
}

/// Which capture a batch belongs to and in whose name it is stored.
#[derive(Debug, Clone)]
pub struct Owner {
    pub capture: String,
    pub branch: BranchId,
    /// Numbering epoch of the bucket.
    pub epoch: u64,
    /// Ownership of the capture.
    pub fence: u64,
}

impl Batch {
    /// Changes in the batch.
    pub fn count(&self) -> u64 {
        self.last_seq + 1 - self.first_seq
    }

    /// Uncompressed encoded bytes.
    pub fn block_bytes(&self) -> u64 {
        self.blocks.iter().map(|b| b.bytes.len() as u64).sum()
    }

    /// The one transaction that makes this batch durable.
    pub fn into_checkpoint(self, owner: &Owner, job: String, batch: String, parts: Vec<Bytes>) -> Checkpoint {
        let block_bytes = self.block_bytes();
        let after =
            Position { token: self.end_token.clone(), chain: self.end_token.clone(), next_seq: self.last_seq + 1, last_txn: self.last_txn };
        let spec = SyncSpec {
            batch,
            epoch: owner.epoch,
            first_seq: self.first_seq,
            last_seq: self.last_seq,
            first_time: self.first_time,
            last_time: self.last_time,
            last_wall_ms: self.last_wall_ms,
            start_token: self.start_token,
            end_token: self.end_token,
            starts_inside: self.starts_inside,
            ends: self.ends,
            raw_bytes: self.raw_bytes,
            block_bytes,
            payload_bytes: parts.iter().map(|p| p.len() as u64).sum(),
            payload_parts: u32::try_from(parts.len()).unwrap_or(u32::MAX),
        };
        Checkpoint {
            capture: owner.capture.clone(),
            fence: owner.fence,
            expected_next_seq: self.first_seq,
            after,
            batch: Some(NewBatch { job, branch: owner.branch.clone(), spec, parts }),
        }
    }
}
