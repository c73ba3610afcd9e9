//! `/api/v1/jobs`: listing, looking, retrying, cancelling, submitting.
//!
//! Owns: the JSON of a job, paging, what an operator may do to which. Does not own: many at once (`bulk`), states (`queue`), the rows (`ledger`), gaps (`sync`).

use std::time::Duration;

use axum::http::StatusCode;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::api::Api;
use super::auth::Scope;
use super::call::{Call, Created, Json, NoBody, NoQuery, whole};
use super::problem::Problem;
use crate::fault::Fault;
use crate::jobs::noop::{NoopFault, NoopParams};
use crate::ledger::{Cancelled, Enqueued, Job, JobError, JobFilter, JobKind, JobState, NewJob, Priority};
use crate::runtime::random;
use crate::sync::discard;

/// Jobs on a page, unless asked otherwise, and at most.
const PAGE: u32 = 100;
const MOST: u32 = 1_000;
/// Longest delay of a submitted job.
const MOST_SECONDS: u64 = 31 * 24 * 3_600;
/// What confirms that history may be lost.
const CONFIRM: &str = "discard";

/// A job. Tokens and payload stay inside.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct JobView {
    pub id: String,
    pub kind: JobKind,
    pub state: JobState,
    pub priority: Priority,
    /// Id of its branch, if it is of one.
    pub branch: Option<String>,
    pub created_ms: i64,
    pub run_at_ms: i64,
    pub finished_ms: Option<i64>,
    /// Attempts that count.
    pub attempt: u32,
    /// Process deaths while it ran.
    pub crashes: u32,
    pub error_count: u32,
    /// The last errors, newest last; in a list only the newest.
    pub errors: Vec<JobErrorView>,
    /// Where it runs.
    pub engine: Option<String>,
    pub unique_key: Option<String>,
    pub retries: Option<u32>,
    /// An operator wants it to stop.
    pub cancel_requested: bool,
    /// It waits until its branch is no longer paused.
    pub parked: bool,
    /// What a sync job turns into a segment.
    pub sync: Option<SyncView>,
    /// What a job of another kind was submitted with, as extended JSON.
    pub params: Option<serde_json::Value>,
}

/// The range of a sync job.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct SyncView {
    pub first_seq: u64,
    pub last_seq: u64,
    pub raw_bytes: u64,
    pub payload_bytes: u64,
}

/// One failed attempt.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct JobErrorView {
    pub attempt: u32,
    pub at_ms: i64,
    pub engine: String,
    pub error: String,
}

impl From<JobError> for JobErrorView {
    fn from(e: JobError) -> Self {
        Self { attempt: e.attempt, at_ms: e.at_ms, engine: e.engine, error: e.error }
    }
}

impl From<Job> for JobView {
    fn from(job: Job) -> Self {
        let sync = job.sync.as_ref().map(|s| SyncView {
            first_seq: s.first_seq,
            last_seq: s.last_seq,
            raw_bytes: s.raw_bytes,
            payload_bytes: s.payload_bytes,
        });
        let params = job.params.as_ref().and_then(|p| bson::Document::try_from(p.as_ref()).ok());
        Self {
            branch: job.branch_id().map(str::to_owned),
            id: job.id,
            kind: job.kind,
            state: job.state,
            priority: job.priority,
            created_ms: job.created_ms,
            run_at_ms: job.run_at_ms,
            finished_ms: job.finished_ms,
            attempt: job.attempt,
            crashes: job.crashes,
            error_count: job.error_count,
            errors: job.errors.into_iter().map(Into::into).collect(),
            engine: job.lease.map(|lease| lease.engine),
            unique_key: job.unique_key,
            retries: job.retries,
            cancel_requested: job.cancel_requested,
            parked: job.parked,
            sync,
            params: params.and_then(|p| serde_json::to_value(p).ok()),
        }
    }
}

/// Which jobs.
#[derive(Debug, Clone, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct JobsQuery {
    #[serde(default)]
    pub state: Option<JobState>,
    #[serde(default)]
    pub kind: Option<JobKind>,
    /// Name or id of a branch.
    #[serde(default)]
    pub branch: Option<String>,
    /// Only jobs that run at this engine.
    #[serde(default)]
    pub engine: Option<String>,
    /// Only jobs whose last error has this text in it.
    #[serde(default)]
    pub error: Option<String>,
    /// Only jobs after this id: the `next` of the page before.
    #[serde(default)]
    pub after: Option<String>,
    /// Jobs on a page, 100 unless said otherwise.
    #[serde(default)]
    #[schemars(range(min = 1, max = 1000))]
    pub limit: Option<u32>,
}

/// A page of jobs in the order of their creation.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct JobsPage {
    pub jobs: Vec<JobView>,
    /// What to give as `after` for the next page; absent at the end.
    pub next: Option<String>,
}

/// Query of `DELETE /api/v1/jobs/{id}`.
#[derive(Debug, Clone, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct DeleteQuery {
    /// `discard`: the changes of this sync job are lost to history for good, and that is meant.
    #[serde(default)]
    pub confirm: Option<String>,
}

/// What became of a job.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct JobChange {
    pub outcome: JobOutcome,
    pub job: JobView,
}

/// What a call did to a job.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum JobOutcome {
    /// It is ready again, its attempts are forgotten.
    Retried,
    /// It is cancelled.
    Cancelled,
    /// It runs; its worker has been asked to stop.
    CancelRequested,
    /// Its range is a recorded gap now.
    Discarded,
}

/// `POST /api/v1/jobs`
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
#[schemars(extend("anyOf" = [
    { "properties": { "count": { "enum": [null, 1] } } },
    { "properties": { "id": { "type": "null" }, "unique_key": { "type": "null" } } },
]))]
pub struct NewJobRequest {
    pub kind: SubmitKind,
    /// A UUID of the caller's own, so that a repeat is recognised.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(extend("format" = "uuid"))]
    pub id: Option<String>,
    /// Not before so many seconds have passed.
    #[serde(default, skip_serializing_if = "Option::is_none", deserialize_with = "whole")]
    #[schemars(range(min = 0, max = 2678400))]
    pub delay_seconds: Option<u64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub priority: Option<Priority>,
    /// At most one job with this key waits or runs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 200))]
    pub unique_key: Option<String>,
    /// Attempts after the first.
    #[serde(default, skip_serializing_if = "Option::is_none", deserialize_with = "whole")]
    #[schemars(range(min = 0, max = 100))]
    pub retries: Option<u32>,
    /// Name or id of a branch that the job belongs to: it pauses with it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub branch: Option<String>,
    /// How long it takes.
    #[serde(default, skip_serializing_if = "Option::is_none", deserialize_with = "whole")]
    #[schemars(range(min = 0, max = 3600000))]
    pub duration_ms: Option<u64>,
    /// Share of its attempts that fail, 0 to 1; where it is not given: all if `fault` or `panic` is, else none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0.0, max = 1.0))]
    pub failure_rate: Option<f64>,
    /// What a failing attempt fails with.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub fault: Option<NoopFault>,
    /// Failing attempts panic.
    #[serde(default)]
    pub panic: bool,
    /// How many of them, each a job of its own.
    #[serde(default, skip_serializing_if = "Option::is_none", deserialize_with = "whole")]
    #[schemars(range(min = 1, max = 1000))]
    pub count: Option<u32>,
}

/// Kinds that anybody may submit. The others are the engine's own.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum SubmitKind {
    /// Does nothing for a while, and fails as often as asked.
    #[default]
    Noop,
}

/// What was submitted.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Submitted {
    /// The new jobs, or the one that was there.
    pub ids: Vec<String>,
    /// Stored by this call.
    pub created: u64,
}

pub(super) async fn list(call: Call<JobsQuery, NoBody>) -> Result<Json<JobsPage>, Problem> {
    let q = call.query;
    let limit = within("limit", q.limit.unwrap_or(PAGE), 1, MOST)?;
    let filter = JobFilter {
        state: q.state,
        kind: q.kind,
        branch: branch_filter(&call.api, q.branch).await?,
        engine: q.engine,
        error: q.error,
        after: q.after,
    };
    let jobs = call.api.ledger.jobs(&filter, limit as usize).await?;
    let next = (jobs.len() == limit as usize).then(|| jobs.last().map(|job| job.id.clone())).flatten();
    Ok(Json(JobsPage { jobs: jobs.into_iter().map(Into::into).collect(), next }))
}

pub(super) async fn get(call: Call<NoQuery, NoBody>) -> Result<Json<JobView>, Problem> {
    Ok(Json(find(&call.api, &call.id).await?.into()))
}

pub(super) async fn retry(call: Call<NoQuery, NoBody>) -> Result<Json<JobChange>, Problem> {
    let job = find(&call.api, &call.id).await?;
    if !call.api.ledger.retry_job(&job.id).await? {
        return Err(Problem::conflict(format!("job {} is {}: only dead and scheduled jobs can be retried", job.id, job.state)));
    }
    call.api.engine.wake();
    changed(&call.api, &job.id, JobOutcome::Retried, &call.caller.name).await
}

/// Cancels; a sync job is discarded, which loses history and therefore needs a word and the right to it.
pub(super) async fn delete(call: Call<DeleteQuery, NoBody>) -> Result<Json<JobChange>, Problem> {
    let (api, job) = (&call.api, find(&call.api, &call.id).await?);
    if job.kind == JobKind::Sync {
        return discard_sync(&call, &job).await;
    }
    let outcome = match api.ledger.cancel_job(&job.id).await? {
        Cancelled::Now | Cancelled::Already => JobOutcome::Cancelled,
        Cancelled::Requested => JobOutcome::CancelRequested,
        Cancelled::TooLate => return Err(Problem::conflict(format!("job {} is done", job.id))),
    };
    changed(api, &job.id, outcome, &call.caller.name).await
}

async fn discard_sync(call: &Call<DeleteQuery, NoBody>, job: &Job) -> Result<Json<JobChange>, Problem> {
    if call.caller.scope < Scope::Admin {
        return Err(Problem::forbidden(format!("job {} is a sync job: discarding it loses history, which takes the scope admin", job.id)));
    }
    let spec = job.sync.as_ref().ok_or_else(|| Fault::corrupt(format!("sync job {} has no range", job.id)))?;
    if call.query.confirm.as_deref() != Some(CONFIRM) {
        let changes = spec.last_seq + 1 - spec.first_seq;
        return Err(Problem::new(
            StatusCode::CONFLICT,
            "confirmation_needed",
            format!(
                "discarding job {} loses seq:{} to seq:{} ({changes} changes) of this branch for good: repeat with ?confirm={CONFIRM}",
                job.id, spec.first_seq, spec.last_seq
            ),
        ));
    }
    let reason = format!("job {} was discarded by the operator ({})", job.id, call.caller.name);
    if !discard(&call.api.ledger, &call.api.store, job, &reason).await? {
        return Err(Problem::conflict(format!("job {} is {}: only dead and waiting jobs can be discarded", job.id, job.state)));
    }
    changed(&call.api, &job.id, JobOutcome::Discarded, &call.caller.name).await
}

async fn changed(api: &Api, id: &str, outcome: JobOutcome, by: &str) -> Result<Json<JobChange>, Problem> {
    tracing::info!(job = id, ?outcome, by, "job changed by an operator");
    api.events.publish("job", &serde_json::json!({ "job": id, "outcome": outcome, "by": by }));
    Ok(Json(JobChange { outcome, job: find(api, id).await?.into() }))
}

pub(super) async fn submit(call: Call<NoQuery, Json<NewJobRequest>>) -> Result<Created<Submitted>, Problem> {
    let Json(asked) = call.body;
    let branch = branch_filter(&call.api, asked.branch.clone()).await?;
    let jobs = asked.jobs(branch)?;
    let outcomes = call.api.ledger.enqueue(&jobs).await?;
    call.api.engine.wake();
    let body = Submitted::new(&jobs, outcomes);
    Ok(Created { created: body.created > 0, body })
}

impl NewJobRequest {
    /// The jobs that are asked for, of the branch with this id. `Config` for what is out of range.
    pub fn jobs(self, branch: Option<String>) -> Result<Vec<NewJob>, Fault> {
        let refuse = |what: String| Err(Fault::config(what));
        let count = self.count.unwrap_or(1);
        let delay = self.delay_seconds.unwrap_or(0);
        if !(1..=MOST).contains(&count) {
            return refuse(format!("count: {count}; allowed are 1 to {MOST}"));
        }
        if delay > MOST_SECONDS {
            return refuse(format!("delay_seconds: {delay}; allowed are 0 to {MOST_SECONDS}"));
        }
        if self.retries.is_some_and(|retries| retries > 100) {
            return refuse("retries: allowed are 0 to 100".into());
        }
        if self.unique_key.as_ref().is_some_and(|key| key.is_empty() || key.chars().count() > 200) {
            return refuse("unique_key: 1 to 200 characters".into());
        }
        if count > 1 && (self.id.is_some() || self.unique_key.is_some()) {
            return refuse("count: several jobs cannot share an id or a unique_key".into());
        }
        let params = NoopParams {
            duration_ms: self.duration_ms.unwrap_or_default(),
            failure_rate: self.failure_rate,
            fault: self.fault,
            panic: self.panic,
        };
        params.check().map_err(|fault| Fault::config(fault.what))?;
        let params = bson::serialize_to_raw_document_buf(&params).map_err(|e| Fault::corrupt(e.to_string()))?;
        let id = self.id.map(|id| uuid::Uuid::parse_str(&id).map_err(|e| Fault::config(format!("id: {e}")))).transpose()?;
        let kind = match self.kind {
            SubmitKind::Noop => JobKind::Noop,
        };
        let one = |_| NewJob {
            branch: branch.clone(),
            priority: self.priority,
            delay: Duration::from_secs(delay),
            params: Some(params.clone()),
            unique_key: self.unique_key.clone(),
            retries: self.retries,
            ..NewJob::new(id.map_or_else(random::ordered_id, |id| id.to_string()), kind)
        };
        Ok((0..count).map(one).collect())
    }
}

impl Submitted {
    /// What became of `jobs`.
    pub fn new(jobs: &[NewJob], outcomes: Vec<Enqueued>) -> Self {
        let created = outcomes.iter().filter(|outcome| **outcome == Enqueued::Stored).count() as u64;
        let ids = jobs.iter().zip(outcomes).map(|(job, outcome)| match outcome {
            Enqueued::Stored | Enqueued::Already => job.id.clone(),
            Enqueued::Duplicate { job } => job,
        });
        Self { ids: ids.collect(), created }
    }
}

async fn find(api: &Api, id: &str) -> Result<Job, Problem> {
    api.ledger
        .job(id)
        .await?
        .ok_or_else(|| Problem::not_found(format!("there is no job {id:?}: finished ones are removed after JOB_CLEANUP_INTERVAL")))
}

/// The id of a branch given by name or id.
pub(super) async fn branch_id(api: &Api, given: &str) -> Result<String, Problem> {
    let found = match api.ledger.branch_named(given).await? {
        Some(branch) => Some(branch),
        None => api.ledger.branch(given).await?,
    };
    found.map(|branch| branch.id).ok_or_else(|| Problem::not_found(format!("there is no branch {given:?}")))
}

/// The same for a filter.
pub(super) async fn branch_filter(api: &Api, given: Option<String>) -> Result<Option<String>, Problem> {
    match given {
        Some(given) => branch_id(api, &given).await.map(Some),
        None => Ok(None),
    }
}

/// A value within its bounds, or 400.
pub(super) fn within<T: PartialOrd + std::fmt::Display>(name: &str, value: T, min: T, max: T) -> Result<T, Problem> {
    if value >= min && value <= max {
        return Ok(value);
    }
    Err(Problem::bad_request(format!("{name}: {value} is not in {min} to {max}")))
}
