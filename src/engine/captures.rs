//! The captures of one engine: takes its share of those that have no owner, runs them, puts their end on record.
//!
//! Owns: the captures that run here, each in a task of its own from the taking to the release, with its own pauses: a source or store that does
//! not answer holds up no other capture. Does not own: which of them run here (`spread`), how one runs (`capture`), when an owner counts as
//! dead (`ledger::rescue`).

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use tokio::sync::Notify;
use tokio::task::{Id, JoinError, JoinSet};

use super::attempt::Attempt;
use super::mirror::Mirror;
use super::peers::Peers;
use super::spread::{Seen, Spread};
use super::view::Life;
use crate::capture::CaptureSettings;
use crate::capture::feed::SharedFeed;
use crate::fault::{Fault, Result};
use crate::ledger::{Capture, CaptureState, EngineId, SharedLedger, Source};
use crate::runtime::backoff::Backoff;
use crate::runtime::cpu::CpuPool;
use crate::runtime::shutdown::Shutdown;
use crate::runtime::{clock, random};
use crate::store::Store;

/// How often captures without an owner are looked for: a new capture starts within this time, and on an idle engine within twice as long.
const LOOK: Duration = Duration::from_secs(1);
const LOOK_CALMLY: u32 = 2;
/// Pauses between attempts at one capture that cannot start or breaks off.
const AGAIN: Backoff = Backoff { base: Duration::from_millis(500), cap: Duration::from_secs(10) };
/// How long the last writing of `branch.json` may hold up the end of the process; the next engine writes what is missing.
const LAST_WORDS: Duration = Duration::from_secs(3);

/// Opens the feed of a source; the real one connects to MongoDB.
#[async_trait]
pub trait SourceOpener: Send + Sync + std::fmt::Debug {
    async fn open(&self, source: &Source) -> Result<SharedFeed>;
    /// The captured database itself, for those who copy it or compare with it.
    async fn database(&self, source: &Source) -> Result<mongodb::Database> {
        Err(Fault::transient(format!("the database {} cannot be read here", source.db)))
    }
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
    pub peers: Peers,
    pub life: Arc<Life>,
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
        let mut mirror = Mirror::new(self.ledger.clone(), self.store.clone(), self.life.calm.clone());
        let mirroring = {
            let stop = self.stop.clone();
            tokio::spawn(async move {
                mirror.run(&stop).await;
                mirror
            })
        };
        let mut here = Here::default();
        let mut spread = Spread::new(self.engine.clone());
        while !self.stop.is_draining() {
            let asked = clock::now();
            tokio::select! {
                found = self.ledger.captures() => match found {
                    Ok(captures) => {
                        *self.life.capture_rows.lock() = Some((asked, Arc::new(captures.clone())));
                        self.look_at(captures, &mut spread, &mut here).await;
                    }
                    Err(fault) => tracing::warn!(error = %fault, "could not look for captures"),
                },
                () = self.stop.draining() => break,
            }
            tokio::select! {
                () = tokio::time::sleep(random::jitter(self.life.calm.stretch(LOOK, LOOK_CALMLY))) => {}
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

    async fn look_at(&self, captures: Vec<Capture>, spread: &mut Spread, here: &mut Here) {
        let wanted: Vec<Capture> = captures.into_iter().filter(|capture| capture.state == CaptureState::Running).collect();
        // The operator stopped or paused it: drain it here; the fence makes sure that nothing more is stored.
        here.by_task.values().filter(|task| !wanted.iter().any(|capture| capture.id == task.capture)).for_each(|task| task.stop.drain());
        let is_here = |id: &str| here.by_task.values().any(|task| task.capture == id);
        let seen: Vec<Seen> = wanted.iter().map(|c| Seen { id: c.id.clone(), owner: c.owner.clone(), here: is_here(&c.id) }).collect();
        if seen.iter().any(|capture| capture.owner.is_none() && !capture.here) {
            self.look_for_others().await;
        }
        let plan = spread.look(clock::now(), &self.peers.living(), &seen);
        if let Some(task) = plan.give.as_ref().and_then(|id| here.by_task.values().find(|task| task.capture == *id)) {
            tracing::info!(capture = %task.capture, "giving a capture to an engine that has fewer");
            task.stop.drain();
        }
        for capture in wanted.into_iter().filter(|capture| plan.take.contains(&capture.id)) {
            self.begin(capture, here);
        }
        self.life.captures.store(u32::try_from(here.by_task.len()).unwrap_or(u32::MAX), Ordering::Relaxed);
    }

    /// Whose share is free is seen at once: an engine that stops says so in its last heartbeats.
    async fn look_for_others(&self) {
        tokio::select! {
            found = self.ledger.engines() => match found {
                Ok(engines) => self.peers.seen(&engines),
                Err(fault) => tracing::debug!(error = %fault, "could not look for other engines"),
            },
            () = self.stop.draining() => {}
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
