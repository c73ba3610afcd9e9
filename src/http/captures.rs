//! `/api/v1/captures`: what is followed, pausing and resuming.
//!
//! Owns: the JSON of a capture, which state an operator may change to which. Does not own: starting and stopping one (`capture`).

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::api::Api;
use super::branches::PageQuery;
use super::call::{Call, Json, NoBody, NoQuery};
use super::problem::Problem;
use crate::ledger::{Capture, CaptureState};

/// A capture. Tokens stay inside.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct CaptureView {
    pub id: String,
    /// `project/branch`
    pub branch: String,
    pub branch_id: String,
    pub source: SourceView,
    pub state: CaptureState,
    /// Why it is not running, or what it waits for.
    pub reason: Option<String>,
    /// Everything up to this change is in the queue or further.
    pub queued_seq: u64,
    /// The engine that follows it.
    pub engine: Option<String>,
    /// When the checkpoint last moved, by the server's clock.
    pub checkpoint_ms: i64,
}

/// Where a capture reads.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct SourceView {
    /// `env:NAME`, `file:PATH`, a URI without password, or null for the engine's own.
    pub uri: Option<String>,
    pub db: String,
    pub identity: String,
}

impl From<Capture> for CaptureView {
    fn from(c: Capture) -> Self {
        Self {
            id: c.id,
            branch: c.branch_name,
            branch_id: c.branch,
            source: SourceView { uri: c.source.uri, db: c.source.db, identity: c.source.identity },
            state: c.state,
            reason: c.reason,
            queued_seq: c.position.next_seq.saturating_sub(1),
            engine: c.owner,
            checkpoint_ms: c.checkpoint_ms,
        }
    }
}

/// `GET /api/v1/captures`
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct CapturesPage {
    pub captures: Vec<CaptureView>,
    /// What to give as `after` for the next page; absent at the end.
    pub next: Option<String>,
}

pub(super) async fn list(call: Call<PageQuery, NoBody>) -> Result<Json<CapturesPage>, Problem> {
    let (page, next) = call.query.page(call.api.ledger.captures().await?, |capture| &capture.branch_name)?;
    Ok(Json(CapturesPage { captures: page.into_iter().map(Into::into).collect(), next }))
}

pub(super) async fn pause(call: Call<NoQuery, NoBody>) -> Result<Json<CaptureView>, Problem> {
    change(&call, CaptureState::Paused, &[CaptureState::Running, CaptureState::Paused]).await
}

pub(super) async fn resume(call: Call<NoQuery, NoBody>) -> Result<Json<CaptureView>, Problem> {
    change(&call, CaptureState::Running, &[CaptureState::Paused, CaptureState::Running]).await
}

/// To where it is already is no error: a repeat must be harmless.
async fn change(call: &Call<NoQuery, NoBody>, to: CaptureState, from: &[CaptureState]) -> Result<Json<CaptureView>, Problem> {
    let capture = find(&call.api, &call.id).await?;
    if !from.contains(&capture.state) {
        let state = format!("{:?}", capture.state).to_lowercase();
        return Err(Problem::conflict(format!(
            "the capture of {} is {state}: only running and paused ones can be paused and resumed; argon capture start goes on with a stopped one",
            capture.branch_name
        )));
    }
    if capture.state != to {
        let reason = (to == CaptureState::Paused).then(|| format!("paused by the operator ({})", call.caller.name));
        call.api.ledger.set_capture_state(&capture.id, to, reason.as_deref()).await?;
        tracing::info!(capture = %capture.id, branch = %capture.branch_name, ?to, by = %call.caller.name, "capture changed by an operator");
        call.api.events.publish("capture", &serde_json::json!({ "capture": capture.id, "branch": capture.branch_name, "state": to }));
    }
    Ok(Json(find(&call.api, &capture.id).await?.into()))
}

/// By its own id, or by name or id of its branch.
async fn find(api: &Api, given: &str) -> Result<Capture, Problem> {
    let captures = api.ledger.captures().await?;
    let found = captures.into_iter().find(|c| c.id == given || c.branch == given || c.branch_name == given);
    found.ok_or_else(|| Problem::not_found(format!("there is no capture {given:?}")))
}
