//! The captures of one engine: takes those that have no owner, runs them, puts their end on record.
//!
//! Owns: which captures run here. Does not own: how one runs (`capture`), when an owner counts as dead (`ledger::rescue`).

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use tokio::sync::Notify;
use tokio::task::{Id, JoinSet};

use crate::branch::{documents, layout};
use crate::capture::feed::SharedFeed;
use crate::capture::{CaptureEnd, CaptureRun, CaptureSettings};
use crate::fault::{Fault, Kind, Result};
use crate::ledger::{Branch, Capture, CaptureState, EngineId, SharedLedger, Source};
use crate::runtime::cpu::CpuPool;
use crate::runtime::random;
use crate::runtime::shutdown::Shutdown;
use crate::store::Store;

/// How often captures without an owner are looked for: a new capture starts within this time.
const LOOK: Duration = Duration::from_secs(1);

/// Opens the feed of a source; the real one connects to MongoDB.
#[async_trait]
pub trait SourceOpener: Send + Sync {
    async fn open(&self, source: &Source) -> Result<SharedFeed>;
}

/// The manager.
pub(crate) struct Captures {
    pub ledger: SharedLedger,
    pub store: Store,
    pub sources: Arc<dyn SourceOpener>,
    pub cpu: CpuPool,
    pub settings: CaptureSettings,
    pub engine: EngineId,
    pub bell: Arc<Notify>,
    pub stop: Shutdown,
}

struct Running {
    capture: String,
    fence: u64,
    stop: Shutdown,
}

impl Captures {
    /// Runs until the engine drains and every capture has stored what it had read.
    pub(crate) async fn run(self) {
        let mut tasks: JoinSet<CaptureEnd> = JoinSet::new();
        let mut running: HashMap<Id, Running> = HashMap::new();
        while !self.stop.is_draining() {
            self.look(&mut tasks, &mut running).await;
            tokio::select! {
                () = tokio::time::sleep(random::jitter(LOOK)) => {}
                () = self.stop.draining() => {}
                Some(ended) = tasks.join_next_with_id() => self.ended(ended, &mut running).await,
            }
        }
        while let Some(ended) = tasks.join_next_with_id().await {
            self.ended(ended, &mut running).await;
        }
    }

    async fn look(&self, tasks: &mut JoinSet<CaptureEnd>, running: &mut HashMap<Id, Running>) {
        let captures = match self.ledger.captures().await {
            Ok(captures) => captures,
            Err(fault) => {
                tracing::warn!(error = %fault, "could not look for captures");
                return;
            }
        };
        for capture in captures {
            let here = running.values().find(|r| r.capture == capture.id);
            match (here, capture.state) {
                // The operator stopped it: drain it here; the fence makes sure that nothing more is stored.
                (Some(here), CaptureState::Stopped | CaptureState::Failed) => here.stop.drain(),
                (Some(_), CaptureState::Running) | (None, CaptureState::Stopped | CaptureState::Failed) => {}
                // Ours although it does not run here: the answer of a take, or of a release, was lost.
                (None, CaptureState::Running) if capture.owner.as_ref().is_none_or(|owner| *owner == self.engine) => {
                    self.take(&capture, tasks, running).await;
                }
                (None, CaptureState::Running) => {}
            }
        }
    }

    async fn take(&self, capture: &Capture, tasks: &mut JoinSet<CaptureEnd>, running: &mut HashMap<Id, Running>) {
        let owned = match self.ledger.own_capture(&capture.id, &self.engine).await {
            Ok(Some(owned)) => owned,
            Ok(None) => return,
            Err(fault) => {
                tracing::warn!(branch = %capture.branch_name, error = %fault, "could not take the capture");
                return;
            }
        };
        let stop = self.stop.child();
        let entry = Running { capture: owned.id.clone(), fence: owned.fence, stop: stop.clone() };
        match self.prepare(owned, stop).await {
            Ok(run) => {
                tracing::info!(branch = %run.capture.branch_name, db = %run.capture.source.db, fence = run.capture.fence, next_seq = run.capture.position.next_seq, "capture started here");
                let handle = tasks.spawn(run.run());
                running.insert(handle.id(), entry);
            }
            Err(fault) => {
                tracing::warn!(branch = %capture.branch_name, error = %fault, "the capture cannot start");
                if matches!(fault.kind, Kind::Fenced | Kind::Config | Kind::Corrupt | Kind::HistoryLost) {
                    self.record(&entry, CaptureState::Failed, Some(&fault.what)).await;
                } else if let Err(fault) = self.ledger.note_capture(&entry.capture, entry.fence, Some(&fault.what), None).await {
                    tracing::debug!(error = %fault, "could not note why the capture waits");
                }
                self.release(&entry).await;
            }
        }
    }

    async fn prepare(&self, capture: Capture, stop: Shutdown) -> Result<CaptureRun> {
        let branch = self.ledger.branch(&capture.branch).await?;
        let branch = branch.ok_or_else(|| Fault::corrupt(format!("the branch of capture {} does not exist", capture.id)))?;
        self.check_epoch(&branch).await?;
        let feed = self.sources.open(&capture.source).await?;
        Ok(CaptureRun {
            ledger: self.ledger.clone(),
            feed,
            cpu: self.cpu.clone(),
            capture,
            epoch: branch.epoch,
            settings: self.settings,
            bell: self.bell.clone(),
            stop,
        })
    }

    /// Whoever took the bucket over has the next epoch (correctness.md 20): this metadata must not number its segments any more.
    async fn check_epoch(&self, branch: &Branch) -> Result<()> {
        let project = layout::project_of(&branch.name);
        let mine = layout::epoch(project, &branch.id, branch.epoch);
        let bytes = self.store.get(&mine, None).await.map_err(|f| f.at("reading the branch's epoch"))?;
        documents::read_epoch(&mine, &bytes)?;
        if self.store.head(&layout::epoch(project, &branch.id, branch.epoch + 1)).await?.is_some() {
            return Err(Fault::fenced(format!(
                "the bucket's history of {} is numbered by other metadata since epoch {}: this metadata database is out of date",
                branch.name,
                branch.epoch + 1
            )));
        }
        Ok(())
    }

    async fn ended(&self, ended: Result<(Id, CaptureEnd), tokio::task::JoinError>, running: &mut HashMap<Id, Running>) {
        let (id, end) = match ended {
            Ok((id, end)) => (id, end),
            Err(panic) => (panic.id(), CaptureEnd::Failed(Fault::unknown(format!("the capture panicked: {panic}")))),
        };
        let Some(entry) = running.remove(&id) else { return };
        match end {
            CaptureEnd::Drained => tracing::info!(capture = %entry.capture, "capture drained"),
            CaptureEnd::SteppedDown => tracing::warn!(capture = %entry.capture, "stepped down: the capture is another's or was stopped"),
            CaptureEnd::Failed(fault) if fault.may_heal() || fault.kind == Kind::Cancelled => {
                tracing::warn!(capture = %entry.capture, error = %fault, "capture interrupted, will be taken again");
            }
            CaptureEnd::Failed(fault) => {
                tracing::error!(capture = %entry.capture, error = %fault, "capture failed");
                self.record(&entry, CaptureState::Failed, Some(&fault.what)).await;
            }
        }
        self.release(&entry).await;
    }

    /// Repeats until it is on record or the engine aborts: a failed capture must be visible.
    async fn record(&self, entry: &Running, state: CaptureState, reason: Option<&str>) {
        while let Err(fault) = self.ledger.set_capture_state(&entry.capture, state, reason).await {
            if !fault.may_heal() || self.stop.is_aborting() {
                tracing::error!(error = %fault, "could not record that the capture failed");
                return;
            }
            tokio::time::sleep(random::jitter(LOOK)).await;
        }
    }

    async fn release(&self, entry: &Running) {
        if let Err(fault) = self.ledger.release_capture(&entry.capture, entry.fence).await {
            tracing::warn!(error = %fault, "could not release the capture; it is free when this process ends");
        }
    }
}
