//! One attempt at one capture, in a task of its own: take it, prepare it, run it, put its end on record, release it.
//!
//! Owns: which faults fail a capture for everyone and which only keep this engine from it; the check of the branch's epoch. Does not own: when an
//! attempt is made (`captures`), how a capture runs (`capture`).

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use tokio::sync::mpsc;

use super::captures::{Captures, Ended};
use super::compare::Compare;
use crate::branch::{documents, layout};
use crate::capture::feed::{ChangeFeed, SharedFeed};
use crate::capture::{CaptureEnd, CaptureRun, Seen, record_gap};
use crate::fault::{Fault, Kind, Result};
use crate::ledger::{Branch, Capture, has_id, same_source};
use crate::runtime::backoff::Backoff;
use crate::runtime::clock;
use crate::runtime::random;
use crate::runtime::shutdown::Shutdown;

/// How long a capture waits for the store to show the branch's epoch before it begins without: the queue bridges an outage of the store, the
/// oplog only so much of it.
const EPOCH_WAIT: Duration = Duration::from_secs(2);
/// Pauses between looks at the epoch while the store is away.
const EPOCH_AGAIN: Backoff = Backoff { base: Duration::from_millis(500), cap: Duration::from_secs(10) };
/// Reads of an epoch object that come back damaged before it is taken to be damaged itself.
const DAMAGED_READS: u32 = 3;
/// A capture that ran this long and broke off is taken again at once: its earlier failures are over.
const LONG_RUN: Duration = Duration::from_secs(60);
/// Pause before a failed capture is put on record again.
const RECORD_AGAIN: Duration = Duration::from_secs(1);

/// One attempt.
pub(super) struct Attempt {
    pub of: Captures,
    pub id: String,
    /// `project/branch`, for the log.
    pub branch: String,
    pub stop: Shutdown,
    /// Told to the manager as soon as it is known: it releases the capture of a task that panicked.
    pub fence: Arc<AtomicU64>,
}

impl Attempt {
    /// Ends when the capture does not run here any more.
    pub(super) async fn run(self, pause: Duration) -> Ended {
        tokio::select! {
            () = tokio::time::sleep(pause) => {}
            () = self.stop.draining() => return Ended::Again,
        }
        let owned = match self.of.ledger.own_capture(&self.id, &self.of.engine).await {
            Ok(Some(owned)) => owned,
            Ok(None) => return Ended::Settled,
            Err(fault) => {
                tracing::warn!(branch = %self.branch, error = %fault, "could not take the capture");
                return Ended::Again;
            }
        };
        self.fence.store(owned.fence, Ordering::Relaxed);
        let ended = self.follow(owned).await;
        if let Err(fault) = self.of.ledger.release_capture(&self.id, self.fence()).await {
            tracing::warn!(error = %fault, "could not release the capture; it is free when this process ends");
        }
        ended
    }

    fn fence(&self) -> u64 {
        self.fence.load(Ordering::Relaxed)
    }

    async fn follow(&self, owned: Capture) -> Ended {
        // SUBTLE: in a task of its own, since connecting is the driver's work and must not be dropped half way when the stop comes.
        let preparing = tokio::spawn(prepare(self.of.clone(), owned, self.stop.clone()));
        let prepared = tokio::select! {
            prepared = preparing => prepared.unwrap_or_else(|e| Err(Fault::unknown(format!("preparing the capture panicked: {e}")))),
            () = self.stop.draining() => return Ended::Settled,
        };
        let (run, branch, found) = match prepared {
            Ok(prepared) => prepared,
            Err(fault) => return self.cannot_start(&fault).await,
        };
        let epoch = self.check_epoch_until_answered(&branch);
        tokio::pin!(epoch);
        let known = match tokio::time::timeout(EPOCH_WAIT, &mut epoch).await {
            Ok(Ok(())) => true,
            Ok(Err(fault)) => return self.cannot_start(&fault).await,
            Err(_) => {
                tracing::warn!(branch = %self.branch, "the store does not show the branch's epoch: capturing into the queue meanwhile");
                false
            }
        };
        tracing::info!(branch = %self.branch, db = %run.capture.source.db, fence = run.capture.fence, next_seq = run.capture.position.next_seq, "capture started here");
        let feed = run.feed.clone();
        let comparing = Compare {
            ledger: self.of.ledger.clone(),
            store: self.of.store.clone(),
            sources: self.of.sources.clone(),
            capture: run.capture.clone(),
            interval: self.of.settings.catalogue_interval,
            found,
        };
        // In a task of its own, which ends by itself: what the driver does must not be dropped half way.
        tokio::spawn(comparing.run());
        let began = clock::now();
        let running = run.run();
        tokio::pin!(running);
        let end = tokio::select! {
            end = &mut running => end,
            verdict = &mut epoch, if !known => match verdict {
                Ok(()) => running.await,
                Err(fault) => {
                    self.stop.drain();
                    running.await;
                    CaptureEnd::Failed(fault)
                }
            },
        };
        let end = match end {
            CaptureEnd::Failed(fault) if fault.kind == Kind::HistoryLost => self.lost(&branch, &feed, fault).await,
            end => end,
        };
        match self.ended(end).await {
            Ended::Again if began.elapsed() >= LONG_RUN => Ended::Settled,
            ended => ended,
        }
    }

    /// What the source no longer serves becomes a recorded gap, and the capture goes on behind it.
    async fn lost(&self, branch: &Branch, feed: &SharedFeed, fault: Fault) -> CaptureEnd {
        let recorded = async {
            let capture = self.of.ledger.capture(&self.id).await?;
            let capture = capture.filter(|c| c.fence == self.fence()).ok_or_else(|| Fault::fenced("the capture is another's by now"))?;
            record_gap(&self.of.ledger, &self.of.store, feed, branch, &capture, &fault).await
        };
        match recorded.await {
            Ok(true) => {
                self.of.life.meters.gap(&branch.name);
                tracing::error!(branch = %self.branch, error = %fault, "a part of history is lost: a gap is recorded, and a new base is made");
                CaptureEnd::Failed(Fault::transient(format!("history has a gap: {}", fault.what)))
            }
            Ok(false) => CaptureEnd::SteppedDown,
            Err(fault) => CaptureEnd::Failed(fault),
        }
    }

    /// SUBTLE: only what every engine would meet fails the capture. A variable that is not set here, a certificate that is not on this machine or
    /// credentials that are being rotated are waited for in sight, and the capture is free for an engine that has them.
    async fn cannot_start(&self, fault: &Fault) -> Ended {
        tracing::warn!(branch = %self.branch, error = %fault, "the capture cannot start");
        if is_final(fault) {
            self.record(fault).await;
            return Ended::Settled;
        }
        self.note(fault).await;
        Ended::Again
    }

    async fn note(&self, why: &Fault) {
        if let Err(fault) = self.of.ledger.note_capture(&self.id, self.fence(), Some(&why.what)).await {
            tracing::debug!(error = %fault, "could not note why the capture waits");
        }
    }

    async fn ended(&self, end: CaptureEnd) -> Ended {
        match end {
            CaptureEnd::Drained => tracing::info!(branch = %self.branch, "capture drained"),
            CaptureEnd::SteppedDown => tracing::warn!(branch = %self.branch, "stepped down: the capture is another's or was stopped"),
            CaptureEnd::Failed(fault) if !is_final(&fault) => {
                tracing::warn!(branch = %self.branch, error = %fault, "capture interrupted, will be taken again");
                self.note(&fault).await;
                return Ended::Again;
            }
            CaptureEnd::Failed(fault) => {
                tracing::error!(branch = %self.branch, error = %fault, "capture failed");
                self.record(&fault).await;
            }
        }
        Ended::Settled
    }

    /// Repeats until it is on record or the engine aborts: a failed capture must be visible.
    async fn record(&self, why: &Fault) {
        loop {
            match self.of.ledger.fail_capture(&self.id, &self.of.engine, self.fence(), &why.what).await {
                Ok(true) => return,
                Ok(false) => {
                    tracing::warn!(branch = %self.branch, "the failure is not recorded: the capture is another's or was stopped");
                    return;
                }
                Err(fault) if !fault.may_heal() || self.stop.is_aborting() => {
                    tracing::error!(error = %fault, "could not record that the capture failed");
                    return;
                }
                Err(_) => tokio::time::sleep(random::jitter(RECORD_AGAIN)).await,
            }
        }
    }

    /// Until the store has shown it: fails only where somebody else numbers the branch, or what is there stays damaged. Whatever else the store
    /// says, refused credentials and a missing bucket too, a person mends while the queue takes what is captured.
    async fn check_epoch_until_answered(&self, branch: &Branch) -> Result<()> {
        let (mut failures, mut damaged) = (0u32, 0u32);
        loop {
            let fault = match self.check_epoch(branch).await {
                Ok(()) => return Ok(()),
                Err(fault) if fault.kind == Kind::Corrupt && damaged + 1 < DAMAGED_READS => {
                    damaged += 1;
                    fault
                }
                Err(fault) if is_final(&fault) => return Err(fault),
                Err(fault) => fault,
            };
            failures = failures.saturating_add(1);
            tracing::warn!(branch = %self.branch, error = %fault, "could not check the branch's epoch, looking again");
            tokio::time::sleep(EPOCH_AGAIN.delay(failures, random::unit())).await;
        }
    }

    /// Whoever took the bucket over has the next epoch (correctness.md 20): this metadata must not number its segments any more.
    async fn check_epoch(&self, branch: &Branch) -> Result<()> {
        let store = &self.of.store;
        let project = layout::project_of(&branch.name);
        let mine = layout::epoch(project, &branch.id, branch.epoch);
        let bytes = store.get(&mine, None).await.map_err(|f| f.at("reading the branch's epoch"))?;
        documents::read_epoch(&mine, &bytes)?;
        if store.head(&layout::epoch(project, &branch.id, branch.epoch + 1)).await?.is_some() {
            return Err(Fault::fenced(format!(
                "the bucket's history of {} is numbered by other metadata since epoch {}: this metadata database is out of date",
                branch.name,
                branch.epoch + 1
            )));
        }
        Ok(())
    }
}

/// What every engine would meet, now and later: it fails the capture for all of them.
fn is_final(fault: &Fault) -> bool {
    matches!(fault.kind, Kind::Fenced | Kind::Corrupt | Kind::HistoryLost)
}

async fn prepare(of: Captures, capture: Capture, stop: Shutdown) -> Result<(CaptureRun, Branch, mpsc::Sender<Seen>)> {
    let branch = of.ledger.branch(&capture.branch).await?;
    let branch = branch.ok_or_else(|| Fault::corrupt(format!("the branch of capture {} does not exist", capture.id)))?;
    let feed = of.sources.open(&capture.source).await?;
    let capture = with_id(&of, &*feed, capture).await?;
    let (found, seen) = mpsc::channel(1);
    let epoch = branch.epoch;
    let meters = of.life.meters.clone();
    let run = CaptureRun { ledger: of.ledger, feed, cpu: of.cpu, capture, epoch, settings: of.settings, bell: of.bell, seen, stop, meters };
    Ok((run, branch, found))
}

/// A source that did not show its id to whoever started the capture may show it here: from then on another deployment of the same name is
/// noticed (correctness.md 7).
async fn with_id(of: &Captures, feed: &dyn ChangeFeed, mut capture: Capture) -> Result<Capture> {
    if has_id(&capture.source.identity) {
        return Ok(capture);
    }
    let seen = feed.identity().await?;
    if has_id(&seen) && same_source(&capture.source.identity, &seen) {
        of.ledger.note_identity(&capture.id, capture.fence, &capture.source.identity, &seen).await?;
        capture.source.identity = seen;
        tracing::info!(branch = %capture.branch_name, identity = %capture.source.identity, "the source shows its id now");
    }
    Ok(capture)
}
