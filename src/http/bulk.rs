//! `/api/v1/jobs/retry` and `/cancel`: what a filter finds, at once.
//!
//! Owns: the JSON, and that nothing is cancelled by leaving a filter out. Does not own: what is done to which job (`ledger::bulk`).

use axum::http::StatusCode;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::call::{Call, Json, NoQuery, whole};
use super::jobs::{branch_filter, within};
use super::problem::Problem;
use crate::ledger::{Bulk, BulkOutcome, JobFilter, JobKind, JobState};

/// Jobs that one call does, at most: its time stays far below that of a request.
const MOST: u32 = 100_000;

/// `POST /api/v1/jobs/retry`, `POST /api/v1/jobs/cancel`
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct BulkRequest {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub state: Option<JobState>,
    /// Sync jobs are never cancelled in bulk; they are listed for discarding if they are named here.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub kind: Option<JobKind>,
    /// Name or id of a branch.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub branch: Option<String>,
    /// Only jobs that run at this engine.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub engine: Option<String>,
    /// Only jobs whose last error has this text in it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
    /// Stop after so many, 10,000 unless said otherwise.
    #[serde(default, skip_serializing_if = "Option::is_none", deserialize_with = "whole")]
    #[schemars(range(min = 1, max = 100000))]
    pub limit: Option<u32>,
    /// Only say what would be done.
    #[serde(default)]
    pub dry_run: bool,
}

/// What a bulk call did, or would do.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct BulkAnswer {
    pub dry_run: bool,
    /// Jobs found that it may be done to.
    pub matched: u64,
    /// Jobs whose state has changed.
    pub changed: u64,
    /// Running jobs that were asked to stop.
    pub requested: u64,
    /// Jobs that another one with the same unique key keeps from running again.
    pub hindered: u64,
    /// The first of the jobs found.
    pub sample: Vec<String>,
    /// Sync jobs among them, to be discarded one by one.
    pub discard: Vec<String>,
    /// It stopped at the limit: there may be more, so call again.
    pub more: bool,
}

impl BulkAnswer {
    /// What a bulk call did.
    pub fn new(done: BulkOutcome, dry_run: bool) -> Self {
        Self {
            dry_run,
            matched: done.matched,
            changed: done.changed,
            requested: done.requested,
            hindered: done.hindered,
            sample: done.sample,
            discard: done.discard,
            more: done.more,
        }
    }
}

pub(super) async fn retry_many(call: Call<NoQuery, Json<BulkRequest>>) -> Result<Json<BulkAnswer>, Problem> {
    bulk(Bulk::Retry, call).await
}

pub(super) async fn cancel_many(call: Call<NoQuery, Json<BulkRequest>>) -> Result<Json<BulkAnswer>, Problem> {
    bulk(Bulk::Cancel, call).await
}

async fn bulk(action: Bulk, call: Call<NoQuery, Json<BulkRequest>>) -> Result<Json<BulkAnswer>, Problem> {
    let Json(asked) = call.body;
    let limit = within("limit", asked.limit.unwrap_or(10_000), 1, MOST)?;
    let is_open =
        asked.state.is_none() && asked.kind.is_none() && asked.branch.is_none() && asked.engine.is_none() && asked.error.is_none();
    if action == Bulk::Cancel && is_open {
        let said = "this would cancel every job but sync jobs: name what to cancel by state, kind, branch, engine or error";
        return Err(Problem::new(StatusCode::CONFLICT, "confirmation_needed", said));
    }
    let branch = branch_filter(&call.api, asked.branch).await?;
    let filter = JobFilter { state: asked.state, kind: asked.kind, branch, engine: asked.engine, error: asked.error, after: None };
    let done = call.api.ledger.bulk(action, &filter, limit as usize, asked.dry_run).await?;
    if !asked.dry_run {
        call.api.engine.wake();
        tracing::info!(?action, ?filter, changed = done.changed, requested = done.requested, by = %call.caller.name, "jobs changed by an operator");
    }
    Ok(Json(BulkAnswer::new(done, asked.dry_run)))
}
