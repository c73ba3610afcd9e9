//! Proves that a branch can be restored, by doing it (`branch::drill`).
//!
//! Owns: one attempt at the engine, and that a difference ends as a dead job, which an operator sees. Does not own: the drill itself, when it is due (`engine::keeper`).

use std::sync::Arc;

use async_trait::async_trait;

use super::snapshot::stay_alive;
use super::{Handler, Outcome, Parts, Watch};
use crate::branch::drill::{DrillOptions, drill, scratch_name};
use crate::branch::history::History;
use crate::fault::{Fault, Result};
use crate::ledger::{Enqueued, Job, JobKind, JobLease, NewJob, SharedLedger, Source};
use crate::runtime::random;

/// Differences that a dead job tells.
const TOLD: usize = 5;

/// Asks for a drill of a branch. False when it is asked for already.
pub async fn enqueue(ledger: &SharedLedger, branch: &str) -> Result<bool> {
    let new = NewJob::new(random::ordered_id(), JobKind::Drill);
    let job = NewJob { branch: Some(branch.to_owned()), unique_key: Some(unique_key(branch)), ..new };
    let outcome = ledger.enqueue(std::slice::from_ref(&job)).await?;
    Ok(!matches!(outcome.first(), Some(Enqueued::Duplicate { .. })))
}

/// The key of a branch's drill.
pub fn unique_key(branch: &str) -> String {
    format!("drill/{branch}")
}

#[derive(Debug)]
struct Drill(Parts);

pub(super) fn handler(parts: &Parts) -> Arc<dyn Handler> {
    Arc::new(Drill(parts.clone()))
}

#[async_trait]
impl Handler for Drill {
    async fn run(&self, job: &Job, lease: &JobLease, watch: &Watch) -> Result<Outcome> {
        stay_alive(&self.0, lease, watch, Box::pin(self.attempt(job, watch))).await
    }
}

impl Drill {
    async fn attempt(&self, job: &Job, watch: &Watch) -> Result<Outcome> {
        let parts = &self.0;
        let branch = parts.ledger.branch(&job.branch).await?.filter(|branch| branch.deleted_ms.is_none());
        let Some(branch) = branch else { return Ok(Outcome::Done) };
        let history = History::open(parts.ledger.clone(), parts.store.clone(), &branch.id).await?;
        // The job's own name, so that what a killed attempt has left is dropped by the next.
        let place = Source::new(parts.settings.drill_uri.clone(), scratch_name(&job.id), String::new());
        let scratch = parts.sources.database(&place).await.map_err(|f| f.at("where drills restore to"))?;
        let source = match &history.capture {
            Some(capture) => Some(parts.sources.database(&capture.source).await.map_err(|f| f.at("source"))?),
            None => None,
        };
        let (budget, temp_dir) = (parts.fold_memory, parts.settings.spill_dir());
        let options = DrillOptions { scratch: scratch.clone(), source, at: None, budget, temp_dir };
        let outcome = tokio::select! {
            outcome = drill(&history, &options, Arc::default()) => outcome,
            () = watch.cancel.cancelled() => {
                let _ = scratch.drop().await;
                return Err(Fault::cancelled("the drill was stopped"));
            }
        };
        let report = outcome?;
        if !report.compared.identical {
            let told: Vec<String> = report.compared.differences.iter().take(TOLD).map(|d| format!("{}: {}", d.place, d.what)).collect();
            return Err(Fault::corrupt(format!(
                "a restore of {} to seq:{} differs ({} differences): {}; argon verify {} --deep tells more",
                branch.name,
                report.seq,
                report.compared.difference_count,
                told.join("; "),
                branch.name
            )));
        }
        tracing::info!(branch = %branch.name, seq = report.seq, documents = report.documents, with = %report.compared_with, "restorable: proven by a drill");
        Ok(Outcome::Done)
    }
}
