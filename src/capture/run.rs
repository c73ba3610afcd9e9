//! One capture at work: wires ingest -> assemble -> checkpoint and says how it ended.
//!
//! Owns: the two links between the stages and the loop that turns replies, time and free checkpoint slots into batches.
//! Does not own: which captures this engine follows (`engine`).

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{Notify, Semaphore, mpsc};
use tokio::task::JoinHandle;
use tokio::time::Instant;
use tokio_util::task::AbortOnDropHandle;

use crate::fault::{Fault, Result};
use crate::ledger::{Capture, Coverage, SharedLedger};
use crate::runtime::clock;
use crate::runtime::cpu::CpuPool;
use crate::runtime::link::{LinkRx, LinkTx};
use crate::runtime::random;
use crate::runtime::shutdown::Shutdown;
use crate::telemetry::meters::{LinkName, Meters, Stage};

use super::assemble::{AssemblePolicy, Assembler, Due, Seen};
use super::batch::{Batch, Owner};
use super::checkpoint::{CheckpointStage, StoreEnd, ToStore};
use super::feed::SharedFeed;
use super::ingest::{Ingest, Ingested};
use super::notice::{Notice, uncovered_timeseries};
use super::waits::{By, Waits};
use super::window::watch_oplog;

/// Replies waiting between ingest and assemble: one is read while one is parsed. A reply may hold 16 MiB.
const REPLIES: usize = 1;
/// Batches waiting between assemble and checkpoint: the slot semaphore already allows only one in flight.
const BATCHES: usize = 1;

/// Settings of one capture.
#[derive(Debug, Clone, Copy)]
pub struct CaptureSettings {
    pub policy: AssemblePolicy,
    pub queue_max_bytes: u64,
    /// How often the catalogue is compared with the source's; 0: never.
    pub catalogue_interval: Duration,
}

/// How a capture ended here.
#[derive(Debug)]
pub enum CaptureEnd {
    /// Told to stop; everything read is stored, or will be read again because the queue was full.
    Drained,
    /// Another engine owns it, or the operator stopped it: nothing to do.
    SteppedDown,
    /// It cannot go on: the state becomes `failed` with this reason.
    Failed(Fault),
}

/// Everything one capture needs.
#[derive(Debug)]
pub struct CaptureRun {
    pub ledger: SharedLedger,
    pub feed: SharedFeed,
    pub cpu: CpuPool,
    pub capture: Capture,
    pub epoch: u64,
    pub settings: CaptureSettings,
    pub bell: Arc<Notify>,
    /// What comparisons with the source have found.
    pub seen: mpsc::Receiver<Seen>,
    pub stop: Shutdown,
    pub meters: Meters,
}

impl CaptureRun {
    /// Runs the three stages until they end.
    pub async fn run(self) -> CaptureEnd {
        let meters = self.meters;
        let (replies_tx, replies_rx) = meters.link(LinkName::Replies).link(REPLIES);
        let (batches_tx, batches_rx) = meters.link(LinkName::Batches).link(BATCHES);
        let watched = meters.capture(&self.capture.branch_name);
        let meter = watched.meter.clone();
        let window = AbortOnDropHandle::new(tokio::spawn(watch_oplog(self.feed.clone(), meter.clone())));
        // Ingest ends when either the capture or the stages behind it stop.
        let reading = self.stop.child();
        let capture = &self.capture;
        let owner = Owner { capture: capture.id.clone(), branch: capture.branch.clone(), epoch: self.epoch, fence: capture.fence };
        let ingest = Ingest::new(self.feed, capture.source.identity.clone(), capture.position.token.clone(), replies_tx, reading.clone())
            .metered(meters.clone(), meter.clone());
        let waits = Waits::new(self.ledger.clone(), capture.id.clone(), capture.fence);
        let store = CheckpointStage {
            ledger: self.ledger.clone(),
            cpu: self.cpu,
            owner,
            waits: waits.clone(),
            bell: self.bell,
            queue_max_bytes: self.settings.queue_max_bytes,
            queued_bytes: capture.queued_bytes,
            stop: self.stop.clone(),
            meters: meters.clone(),
        };
        let source = &capture.source;
        let assembler = Assembler::new(&source.db, self.settings.policy, &capture.position, clock::now()).selecting(&source.selection);
        let assemble = AssembleStage {
            assembler: Some(assembler),
            slot: Arc::new(Semaphore::new(1)),
            out: batches_tx,
            waits,
            seen: self.seen,
            pending: None,
            meters,
            notes: Notes {
                ledger: self.ledger,
                capture: capture.id.clone(),
                branch: capture.branch_name.clone(),
                fence: capture.fence,
                stop: reading.clone(),
            },
        };
        let ingest: JoinHandle<Result<()>> = tokio::spawn(ingest.run());
        let store: JoinHandle<Result<StoreEnd>> = tokio::spawn(store.run(batches_rx));
        let assembled = assemble.run(replies_rx).await;
        reading.drain();
        let read = ingest.await.unwrap_or_else(|e| Err(Fault::rejected(format!("ingest ended unexpectedly: {e}"))));
        let stored = store.await.unwrap_or_else(|e| Err(Fault::rejected(format!("checkpoint ended unexpectedly: {e}"))));
        drop((window, watched));
        match (stored, read, assembled) {
            (Ok(StoreEnd::Full), ..) => CaptureEnd::Drained,
            (Ok(StoreEnd::Fenced | StoreEnd::NotRunning | StoreEnd::Aborted), ..) => CaptureEnd::SteppedDown,
            (Err(fault), ..) | (_, Err(fault), _) | (_, _, Err(fault)) => CaptureEnd::Failed(fault),
            (Ok(StoreEnd::Drained), Ok(()), Ok(())) => CaptureEnd::Drained,
        }
    }
}

/// The loop between the two links.
struct AssembleStage {
    /// Moved to a blocking thread for each reply: parsing megabytes does not run on a tokio worker.
    assembler: Option<Assembler>,
    /// One checkpoint in flight; the permit rides in the message.
    slot: Arc<Semaphore>,
    out: LinkTx<ToStore>,
    waits: Waits,
    seen: mpsc::Receiver<Seen>,
    /// Waits for its place between two batches.
    pending: Option<Seen>,
    notes: Notes,
    meters: Meters,
}

impl AssembleStage {
    async fn run(mut self, mut replies: LinkRx<Ingested>) -> Result<()> {
        let mut open = true;
        while open {
            let wait = self.next_wait();
            tokio::select! {
                // While a full batch waits for its slot no reply is taken: this is the backpressure to the stream.
                item = replies.recv(), if !matches!(wait, Wait::Slot(_)) => match item {
                    Some(Ingested::Reply(reply)) => if !self.take(reply).await? {
                        return Ok(());
                    },
                    Some(Ingested::Opened(coverage)) => if !self.notes.opened(&coverage).await {
                        return Ok(());
                    },
                    Some(Ingested::Healthy) => self.waits.set(By::Source, None).await,
                    Some(Ingested::Waiting(reason)) => self.waits.set(By::Source, Some(&reason)).await,
                    None => open = false,
                },
                Some(seen) = self.seen.recv(), if self.pending.is_none() => self.pending = Some(seen),
                () = sleep_until(wait.deadline()) => {}
                permit = self.slot.clone().acquire_owned(), if matches!(wait, Wait::Slot(_) | Wait::Either(_)) => drop(permit),
                () = self.out.closed() => return Ok(()),
            }
            if !self.close_if_due().await {
                return Ok(());
            }
        }
        // The input has ended: what is held is stored too.
        if let Some(batch) = self.assembler.as_mut().and_then(Assembler::close) {
            self.send(batch).await;
        }
        Ok(())
    }

    fn next_wait(&self) -> Wait {
        let Some(assembler) = &self.assembler else { return Wait::Reply };
        let busy = self.slot.available_permits() == 0;
        match assembler.due(clock::now(), busy) {
            Due::Empty => Wait::Reply,
            Due::Now if assembler.is_full() => Wait::Slot(()),
            Due::Now => Wait::Either(()),
            Due::At(at) => Wait::Until(at.into()),
        }
    }

    /// False when it is time to stop, with what the reply brought still untold: nothing more may be stored then.
    async fn take(&mut self, reply: super::feed::Reply) -> Result<bool> {
        let Some(mut assembler) = self.assembler.take() else { return Ok(true) };
        let now = clock::now();
        let meters = self.meters.clone();
        let closed = if reply.is_empty() {
            let closed = assembler.feed(&reply, now)?;
            self.assembler = Some(assembler);
            closed
        } else {
            let fed = tokio::task::spawn_blocking(move || {
                let (began, first) = (clock::now(), assembler.next_seq());
                let closed = assembler.feed(&reply, now);
                let changes = assembler.next_seq() - first;
                meters.stage(Stage::Assemble).done(began.elapsed(), changes, reply.len() as u64);
                meters.stage(Stage::Ingest).passed(changes); // ingest does not look into what it reads
                (assembler, closed)
            });
            let (assembler, closed) = fed.await.map_err(|e| Fault::rejected(format!("assemble panicked: {e}")))?;
            self.assembler = Some(assembler);
            closed?
        };
        let notices = self.assembler.as_mut().map(Assembler::take_notices).unwrap_or_default();
        if !self.notes.passed(notices).await {
            return Ok(false);
        }
        for batch in closed {
            if !self.send(batch).await {
                break;
            }
        }
        Ok(true)
    }

    /// Closes the open batch, or stores an idle token, if it is time and the slot is free; false when the next stage is gone.
    async fn close_if_due(&mut self) -> bool {
        let now = clock::now();
        let Some(assembler) = &mut self.assembler else { return true };
        let Ok(permit) = self.slot.clone().try_acquire_owned() else { return true };
        let message = match assembler.due(now, false) {
            Due::Now => assembler.close().map(|batch| ToStore::Batch(Box::new(batch), permit)),
            Due::Empty => assembler.idle_position(now).map(|position| ToStore::Idle(position, permit)),
            Due::At(_) => {
                drop(permit);
                None
            }
        };
        let sent = match message {
            Some(message) => self.out.send(message).await.is_ok(),
            None => true,
        };
        sent && self.inject().await
    }

    /// Puts what a comparison has found behind the batch that has just been closed; false when the next stage is gone.
    async fn inject(&mut self) -> bool {
        let Some(assembler) = &mut self.assembler else { return true };
        let Some(seen) = self.pending.take() else { return true };
        match assembler.inject(seen) {
            Ok(Some(batch)) => self.send(batch).await,
            Ok(None) => true,
            Err(seen) => {
                self.pending = Some(seen);
                true
            }
        }
    }

    async fn send(&mut self, batch: Batch) -> bool {
        let Ok(permit) = self.slot.clone().acquire_owned().await else { return false };
        self.out.send(ToStore::Batch(Box::new(batch), permit)).await.is_ok()
    }
}

/// What the loop waits for besides the next reply.
enum Wait {
    Reply,
    Until(Instant),
    /// A free slot, or more replies meanwhile.
    Either(()),
    /// A free slot only: the batch is full.
    Slot(()),
}

impl Wait {
    fn deadline(&self) -> Option<Instant> {
        match self {
            Self::Until(at) => Some(*at),
            _ => None,
        }
    }
}

async fn sleep_until(deadline: Option<Instant>) {
    match deadline {
        Some(at) => tokio::time::sleep_until(at).await,
        None => std::future::pending().await,
    }
}

/// Pause before what must be told is told again.
const TELL_AGAIN: Duration = Duration::from_secs(1);
/// How long one try may take.
const TELLING: Duration = Duration::from_secs(10);

/// Tells the metadata what the source sends.
struct Notes {
    ledger: SharedLedger,
    capture: String,
    branch: String,
    fence: u64,
    stop: Shutdown,
}

impl Notes {
    /// Until it is told: what is read with less than everything must not be stored unmarked. False when it is time to stop.
    async fn opened(&self, coverage: &Coverage) -> bool {
        while *coverage != Coverage::full() && !self.tell(self.ledger.note_coverage(&self.capture, self.fence, coverage)).await {
            tokio::select! {
                () = tokio::time::sleep(random::jitter(TELL_AGAIN)) => {}
                () = self.stop.draining() => return false,
            }
        }
        true
    }

    /// Tells of what has just been read; what the branch does not cover is on it before any of it is stored. False when it is time to stop.
    async fn passed(&self, notices: Vec<Notice>) -> bool {
        let mut uncovered = Vec::new();
        for notice in notices {
            match notice {
                Notice::Unknown { op_type, seq, why } => tracing::warn!(
                    branch = %self.branch, op_type, seq, why,
                    "an event that this version cannot apply: it is kept, but restores stop before it"
                ),
                Notice::Timeseries(name) => {
                    tracing::warn!(branch = %self.branch, collection = %name, "a time-series collection is recorded but not restored by this version");
                    uncovered.push(uncovered_timeseries(&name));
                }
            }
        }
        self.opened(&Coverage { uncovered, ..Coverage::full() }).await
    }

    async fn tell(&self, note: impl Future<Output = Result<()>>) -> bool {
        match tokio::time::timeout(TELLING, note).await {
            Ok(Ok(())) => true,
            Ok(Err(fault)) => {
                tracing::debug!(error = %fault, "could not note what the source sends");
                false
            }
            Err(_) => false,
        }
    }
}
