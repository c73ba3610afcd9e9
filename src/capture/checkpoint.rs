//! Checkpoint: makes batches durable in the queue, one transaction at a time.
//!
//! Owns: compressing the payload, repeating a checkpoint until its outcome is known (correctness.md 9), waiting while the
//! backlog is over its limit. Does not own: the transaction itself (`ledger`), when batches close (`assemble`).

use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use rayon::prelude::*;
use tokio::sync::{Notify, OwnedSemaphorePermit};

use crate::fault::{Fault, Result};
use crate::ledger::{Checkpoint, Checkpointed, Position, SharedLedger};
use crate::runtime::backoff::Backoff;
use crate::runtime::clock;
use crate::runtime::cpu::CpuPool;
use crate::runtime::link::LinkRx;
use crate::runtime::random;
use crate::runtime::shutdown::Shutdown;
use crate::segment::{PackedBlock, pack_payload};
use crate::telemetry::meters::{Meters, Stage};

use super::batch::{Batch, Owner, PAYLOAD_PART_BYTES};
use super::waits::{By, Waits};

const REPEAT: Backoff = Backoff { base: Duration::from_millis(50), cap: Duration::from_secs(5) };
/// How often the backlog is looked at while capture waits for it.
const BACKLOG_LOOK: Duration = Duration::from_millis(200);

/// A batch or an idle position, with the permit that marks a checkpoint as in flight.
#[derive(Debug)]
pub(crate) enum ToStore {
    Batch(Box<Batch>, OwnedSemaphorePermit),
    Idle(Position, OwnedSemaphorePermit),
}

/// How the stage ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum StoreEnd {
    /// Its input ended and everything is stored.
    Drained,
    /// Somebody else owns the capture.
    Fenced,
    /// The operator stopped the capture.
    NotRunning,
    /// Told to give up.
    Aborted,
    /// Told to stop while the queue was full: what was read last is not stored.
    Full,
}

/// The stage.
#[derive(Debug)]
pub(crate) struct CheckpointStage {
    pub ledger: SharedLedger,
    pub cpu: CpuPool,
    pub owner: Owner,
    pub waits: Waits,
    /// Rung after every stored batch: the claimer of this process need not poll.
    pub bell: Arc<Notify>,
    /// Unprocessed payload at which capture waits.
    pub queue_max_bytes: u64,
    /// Payload bytes this capture has ever queued.
    pub queued_bytes: u64,
    pub stop: Shutdown,
    pub meters: Meters,
}

impl CheckpointStage {
    /// Stores what comes until the input ends or ownership is lost.
    pub(crate) async fn run(mut self, mut input: LinkRx<ToStore>) -> Result<StoreEnd> {
        // The backlog as of the last look; settled bytes only grow, so this errs on the safe side.
        let mut settled = 0u64;
        while let Some(item) = input.recv().await {
            let (checkpoint, _permit, bytes) = match item {
                ToStore::Idle(position, permit) => (self.idle(position), permit, 0),
                ToStore::Batch(batch, permit) => {
                    let checkpoint = self.pack(*batch).await?;
                    let bytes = checkpoint.batch.as_ref().map_or(0, |b| b.spec.payload_bytes);
                    if let Some(end) = self.wait_for_room(bytes, &mut settled).await? {
                        return Ok(end);
                    }
                    (checkpoint, permit, bytes)
                }
            };
            let began = clock::now();
            let stored = self.store(&checkpoint).await?;
            if let Some(batch) = &checkpoint.batch {
                self.meters.stage(Stage::Checkpoint).done(began.elapsed(), batch.spec.changes(), bytes);
            }
            match stored {
                Some(Checkpointed::Stored | Checkpointed::Already) => {}
                Some(Checkpointed::Fenced) => return Ok(StoreEnd::Fenced),
                Some(Checkpointed::NotRunning) => return Ok(StoreEnd::NotRunning),
                None => return Ok(StoreEnd::Aborted),
            }
            self.queued_bytes += bytes;
            if bytes > 0 {
                self.bell.notify_one();
            }
        }
        Ok(StoreEnd::Drained)
    }

    fn idle(&self, after: Position) -> Checkpoint {
        let expected_next_seq = after.next_seq;
        Checkpoint { capture: self.owner.capture.clone(), fence: self.owner.fence, expected_next_seq, after, batch: None }
    }

    async fn pack(&self, batch: Batch) -> Result<Checkpoint> {
        let blocks = batch.blocks.clone();
        let pack = move |_: &AtomicBool| {
            let packed = blocks.into_par_iter().map(PackedBlock::pack).collect::<Result<Vec<_>>>()?;
            pack_payload(&packed, PAYLOAD_PART_BYTES)
        };
        let parts = self.cpu.run("pack payload", pack).await?;
        Ok(batch.into_checkpoint(&self.owner, random::ordered_id(), random::id(), parts))
    }

    /// Waits while the queue holds more than its limit; says how to end when told to stop meanwhile.
    ///
    /// A stop drops the batch instead of storing it over the limit: the checkpoint has not moved, so the next engine reads the same changes
    /// again, and the workers, who claim nothing more by now, would not make room before the deadline.
    async fn wait_for_room(&self, bytes: u64, settled: &mut u64) -> Result<Option<StoreEnd>> {
        let mut told = false;
        // A single batch always passes an empty queue, however small the limit.
        while self.queued_bytes.saturating_sub(*settled) > 0 && self.queued_bytes.saturating_sub(*settled) + bytes > self.queue_max_bytes {
            match self.ledger.branch(&self.owner.branch).await {
                Ok(Some(branch)) => *settled = branch.settled_bytes,
                Ok(None) => return Err(Fault::missing(format!("branch {} is gone", self.owner.branch))),
                Err(fault) if fault.may_heal() => {}
                Err(fault) => return Err(fault),
            }
            let backlog = self.queued_bytes.saturating_sub(*settled);
            if backlog + bytes <= self.queue_max_bytes {
                break;
            }
            if !told {
                tracing::warn!(backlog, limit = self.queue_max_bytes, "capture waits for the workers: the queue is full");
                told = true;
                self.waits.set(By::Queue, Some("the queue is full: waiting for the workers")).await;
            }
            tokio::select! {
                () = tokio::time::sleep(random::jitter(BACKLOG_LOOK)) => {}
                () = self.stop.draining() => {
                    tracing::info!(backlog, "the queue is full: what was read last will be read again");
                    return Ok(Some(if self.stop.is_aborting() { StoreEnd::Aborted } else { StoreEnd::Full }));
                }
            }
        }
        if told {
            self.waits.set(By::Queue, None).await;
        }
        Ok(None)
    }

    /// Repeats until the outcome is known; `None` when told to give up. A repeat is harmless: the ledger recognises the batch.
    async fn store(&self, checkpoint: &Checkpoint) -> Result<Option<Checkpointed>> {
        let mut attempt = 0u32;
        loop {
            match self.ledger.checkpoint(checkpoint).await {
                Ok(outcome) => return Ok(Some(outcome)),
                Err(fault) if fault.may_heal() => {
                    let pause = REPEAT.delay(attempt, random::unit());
                    attempt = attempt.saturating_add(1);
                    tracing::warn!(error = %fault, attempt, "checkpoint not confirmed, repeating");
                    tokio::select! {
                        () = tokio::time::sleep(pause) => {}
                        () = self.stop.aborting() => return Ok(None),
                    }
                }
                Err(fault) => return Err(fault),
            }
        }
    }
}
