//! Owns: the sync job as a handler. Does not own: what it does (`sync`).

use std::sync::Arc;

use async_trait::async_trait;

use super::{Handler, Outcome, Parts, Watch};
use crate::fault::Result;
use crate::ledger::{Job, JobLease};
use crate::sync::{SyncJob, Targets};

pub(super) fn handler(parts: &Parts) -> Arc<dyn Handler> {
    let Parts { ledger, store, cpu, commits, marks, upload_time, meters, .. } = parts.clone();
    Arc::new(SyncJob { ledger, store, cpu, commits, marks, targets: Targets::default(), upload_time, meters })
}

#[async_trait]
impl Handler for SyncJob {
    async fn run(&self, job: &Job, lease: &JobLease, watch: &Watch) -> Result<Outcome> {
        Self::run(self, job, lease, watch).await
    }
}
