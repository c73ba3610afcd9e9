//! `branch.json` follows the metadata: what a capture's end, a gap or a poorer stream changed is written to the bucket too (correctness.md 19).
//!
//! Owns: noticing what has changed, and repeating until it is written. Does not own: the write (`branch::mirror`).

use std::collections::HashMap;
use std::time::Duration;

use crate::branch::documents::BranchDocument;
use crate::branch::mirror::publish;
use crate::fault::{Kind, Result};
use crate::ledger::{BranchId, SharedLedger};
use crate::runtime::calm::Calm;
use crate::runtime::random;
use crate::runtime::shutdown::Shutdown;
use crate::store::Store;

/// How often the metadata is looked at: a small read, and two for each capture.
const LOOK: Duration = Duration::from_secs(2);
const LOOK_CALMLY: u32 = 5;
/// How long one write may take before the store counts as away.
const WRITING: Duration = Duration::from_secs(20);

/// The stage.
pub(super) struct Mirror {
    ledger: SharedLedger,
    store: Store,
    calm: Calm,
    /// What the bucket says, as far as this engine knows; empty at first, so that an engine that starts writes what others left behind.
    written: HashMap<BranchId, BranchDocument>,
}

impl Mirror {
    pub(super) fn new(ledger: SharedLedger, store: Store, calm: Calm) -> Self {
        Self { ledger, store, calm, written: HashMap::new() }
    }

    /// Until the engine drains.
    pub(super) async fn run(&mut self, stop: &Shutdown) {
        while !stop.is_draining() {
            tokio::select! {
                () = self.step() => {}
                () = stop.draining() => return,
            }
            tokio::select! {
                () = tokio::time::sleep(random::jitter(self.calm.stretch(LOOK, LOOK_CALMLY))) => {}
                () = stop.draining() => {}
            }
        }
    }

    /// Writes what has changed since the last step.
    pub(super) async fn step(&mut self) {
        if let Err(fault) = self.write_changed().await {
            tracing::warn!(error = %fault, "could not bring branch.json in step with the metadata, will try again");
        }
    }

    /// Branches that somebody captures: what happens to the others happens by commands, which write themselves.
    async fn write_changed(&mut self) -> Result<()> {
        for capture in self.ledger.captures().await? {
            let Some(branch) = self.ledger.branch(&capture.branch).await? else { continue };
            let wanted = BranchDocument::new(&branch, Some(&capture), &self.ledger.bases(&branch.id).await?);
            if self.written.get(&branch.id) == Some(&wanted) {
                continue;
            }
            match tokio::time::timeout(WRITING, publish(&self.ledger, &self.store, &branch.id)).await {
                Ok(Ok(())) => {}
                // Not ours to write, now or later.
                Ok(Err(fault)) if matches!(fault.kind, Kind::Fenced | Kind::Rejected) => {
                    tracing::warn!(branch = %branch.name, error = %fault, "branch.json stays behind the metadata");
                }
                Ok(Err(fault)) => return Err(fault),
                Err(_) => return Ok(()),
            }
            self.written.insert(branch.id, wanted);
        }
        Ok(())
    }
}
