//! `/api/v1/queue`: pausing kinds, branches or everything.
//!
//! Owns: the JSON of pauses. Does not own: obeying them (`ledger`, `pool`).

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::api::Api;
use super::call::{Call, Json, NoBody, NoQuery};
use super::jobs::branch_id;
use super::problem::Problem;
use crate::ledger::{JobKind, PauseTarget, Pauses};

/// What to pause or resume: exactly one of these.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum PauseRequest {
    Kind(JobKind),
    /// Name or id of a branch: its jobs. Its capture goes on.
    Branch(String),
    /// `true`: every job.
    All(#[schemars(extend("const" = true))] bool),
}

/// What is paused. Running jobs are not touched by a pause.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct PausesView {
    pub pauses: Vec<PauseView>,
}

/// One pause: one of `all`, `kind` and `branch` says what.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct PauseView {
    pub all: bool,
    pub kind: Option<JobKind>,
    /// Id of the branch.
    pub branch: Option<String>,
    pub by: String,
    pub at_ms: i64,
}

pub(super) async fn show(call: Call<NoQuery, NoBody>) -> Result<Json<PausesView>, Problem> {
    Ok(Json(view(&call.api).await?))
}

pub(super) async fn pause(call: Call<NoQuery, Json<PauseRequest>>) -> Result<Json<PausesView>, Problem> {
    set(call, true).await
}

pub(super) async fn resume(call: Call<NoQuery, Json<PauseRequest>>) -> Result<Json<PausesView>, Problem> {
    set(call, false).await
}

async fn set(call: Call<NoQuery, Json<PauseRequest>>, paused: bool) -> Result<Json<PausesView>, Problem> {
    let Json(asked) = call.body;
    let target = match asked {
        PauseRequest::Kind(kind) => PauseTarget::Kind(kind),
        PauseRequest::Branch(branch) => PauseTarget::Branch(branch_id(&call.api, &branch).await?),
        PauseRequest::All(true) => PauseTarget::All,
        PauseRequest::All(false) => return Err(Problem::bad_request("say what: exactly one of kind, branch and all: true")),
    };
    call.api.ledger.set_pause(&target, paused, &call.caller.name).await?;
    call.api.engine.wake();
    tracing::info!(?target, paused, by = %call.caller.name, "queue paused or resumed by an operator");
    let view = view(&call.api).await?;
    call.api.events.publish("pauses", &view);
    Ok(Json(view))
}

async fn view(api: &Api) -> Result<PausesView, Problem> {
    Ok(api.ledger.pauses().await?.into())
}

impl From<Pauses> for PausesView {
    fn from(pauses: Pauses) -> Self {
        let pauses = pauses.0.into_iter().map(|(target, note)| {
            let (all, kind, branch) = match target {
                PauseTarget::All => (true, None, None),
                PauseTarget::Kind(kind) => (false, Some(kind), None),
                PauseTarget::Branch(id) => (false, None, Some(id)),
            };
            PauseView { all, kind, branch, by: note.by, at_ms: note.at_ms }
        });
        Self { pauses: pauses.collect() }
    }
}
