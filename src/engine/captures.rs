//! The captures of one engine: takes those that have no owner, runs them, puts their end on record.
//!
//! Owns: which captures run here, each in a task of its own from the taking to the release, with its own pauses: a source or store that does
//! not answer holds up no other capture. Does not own: how one runs (`capture`), when an owner counts as dead (`ledger::rescue`).

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use tokio::sync::Notify;
use tokio::task::{Id, JoinError, JoinSet};

use super::attempt::Attempt;
use super::mirror::Mirror;
use crate::capture::CaptureSettings;
use crate::capture::feed::SharedFeed;
use crate::fault::Result;
use crate::ledger::{Capture, CaptureState, EngineId, SharedLedger, Source};
use crate::runtime::backoff::Backoff;
use crate::runtime::cpu::CpuPool;
use crate::runtime::random;
use crate::runtime::shutdown::Shutdown;
use crate::store::Store;

/// How often captures without an owner are looked for: a new capture starts within this time.
const LOOK: Duration = Duration::from_secs(1);
/// Pauses between attempts at one capture that cannot start or breaks off.
const AGAIN: Backoff = Backoff { base: Duration::from_millis(500), cap: Duration::from_secs(10) };
/// How long the last writing of `branch.json` may hold up the end of the process; the next engine writes what is missing.
const LAST_WORDS: Duration = Duration::from_secs(3);

/// Opens the feed of a source; the real one connects to MongoDB.
#[async_trait]
pub trait SourceOpener: Send + Sync {
    async fn open(&self, source: &Source) -> Result<SharedFeed>;
}

/// The manager.
#[derive(Clone)]
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

/// How an attempt at a capture ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Ended {
    /// Nothing is wrong with it, or nothing more can be done.
    Settled,
    /// It could not start, or broke off: again after a pause.
    Again,
}

/// The captures that have a task here.
#[derive(Default)]
struct Here {
    tasks: JoinSet<Ended>,
    by_task: HashMap<Id, Task>,
    /// Attempts in a row that ended in [`Ended::Again`].
    failures: HashMap<String, u32>,
}

struct Task {
    capture: String,
    stop: Shutdown,
    /// 0 until it is ours.
    fence: Arc<AtomicU64>,
}

impl Captures {
    /// Runs until the engine drains and every capture has stored what it had read.
    pub(crate) async fn run(self) {
        let mut mirror = Mirror::new(self.ledger.clone(), self.store.clone());
        let mirroring = {
            let stop = self.stop.clone();
            tokio::spawn(async move {
                mirror.run(&stop).await;
                mirror
            })
        };
        let mut here = Here::default();
        while !self.stop.is_draining() {
            tokio::select! {
                found = self.ledger.captures() => match found {
                    Ok(captures) => captures.into_iter().for_each(|capture| self.look_at(capture, &mut here)),
                    Err(fault) => tracing::warn!(error = %fault, "could not look for captures"),
                },
                () = self.stop.draining() => break,
            }
            tokio::select! {
                () = tokio::time::sleep(random::jitter(LOOK)) => {}
                () = self.stop.draining() => {}
                Some(ended) = here.tasks.join_next_with_id() => self.ended(ended, &mut here),
            }
        }
        while let Some(ended) = here.tasks.join_next_with_id().await {
            self.ended(ended, &mut here);
        }
        if let Ok(mut mirror) = mirroring.await
            && tokio::time::timeout(LAST_WORDS, mirror.step()).await.is_err()
        {
            tracing::warn!("branch.json may be behind the metadata until an engine runs again");
        }
    }

    fn look_at(&self, capture: Capture, here: &mut Here) {
        let task = here.by_task.values().find(|task| task.capture == capture.id);
        match (task, capture.state) {
            // The operator stopped or paused it: drain it here; the fence makes sure that nothing more is stored.
            (Some(task), CaptureState::Stopped | CaptureState::Paused | CaptureState::Failed) => task.stop.drain(),
            (Some(_), CaptureState::Running) | (None, CaptureState::Stopped | CaptureState::Paused | CaptureState::Failed) => {}
            // Ours although it does not run here: the answer of a take, or of a release, was lost.
            (None, CaptureState::Running) if capture.owner.as_ref().is_none_or(|owner| *owner == self.engine) => self.begin(capture, here),
            (None, CaptureState::Running) => {}
        }
    }

    fn begin(&self, capture: Capture, here: &mut Here) {
        let task = Task { capture: capture.id.clone(), stop: self.stop.child(), fence: Arc::default() };
        let pause = match here.failures.get(&capture.id) {
            Some(failures) => AGAIN.delay(*failures, random::unit()),
            None => Duration::ZERO,
        };
        let attempt =
            Attempt { of: self.clone(), id: capture.id, branch: capture.branch_name, stop: task.stop.clone(), fence: task.fence.clone() };
        let handle = here.tasks.spawn(attempt.run(pause));
        here.by_task.insert(handle.id(), task);
    }

    fn ended(&self, ended: Result<(Id, Ended), JoinError>, here: &mut Here) {
        let (id, end) = match &ended {
            Ok((id, end)) => (*id, *end),
            Err(panic) => (panic.id(), Ended::Again),
        };
        let Some(task) = here.by_task.remove(&id) else { return };
        match end {
            Ended::Settled => {
                here.failures.remove(&task.capture);
            }
            Ended::Again => {
                let failures = here.failures.entry(task.capture.clone()).or_default();
                *failures = failures.saturating_add(1);
            }
        }
        if let Err(panic) = ended {
            tracing::error!(capture = %task.capture, error = %panic, "the capture panicked, will be taken again");
            let (ledger, fence) = (self.ledger.clone(), task.fence.load(Ordering::Relaxed));
            here.tasks.spawn(async move {
                if let Err(fault) = ledger.release_capture(&task.capture, fence).await {
                    tracing::warn!(error = %fault, "could not release the capture; it is free when this process ends");
                }
                Ended::Settled
            });
        }
    }
}
