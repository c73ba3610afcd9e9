//! `/api/v1/captures`: what is followed, pausing and resuming.
//!
//! Owns: the JSON of a capture, which state an operator may change to which. Does not own: starting and stopping one (`capture`).

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::api::Api;
use super::branches::PageQuery;
use super::call::{Call, Json, NoBody, NoQuery};
use super::metrics;
use super::problem::Problem;
use crate::capture::set_paused;
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
    /// Everything older than this is in committed segments; absent where nothing is known yet, and where nobody has asked the clock.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub delay_seconds: Option<u64>,
    /// Oplog left behind its position: how long it could stand still. Known to the engine that follows it, where it may read the oplog.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub oplog_window_seconds: Option<u64>,
}

/// Where a capture reads.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct SourceView {
    /// `env:NAME`, `file:PATH`, a URI without password, or null for the engine's own.
    pub uri: Option<String>,
    pub db: String,
    pub identity: String,
    /// Only these collections, by name or pattern; all, if there are none.
    #[serde(default)]
    pub include: Vec<String>,
    /// Not these.
    #[serde(default)]
    pub exclude: Vec<String>,
}

impl From<Capture> for CaptureView {
    fn from(c: Capture) -> Self {
        Self {
            id: c.id,
            branch: c.branch_name,
            branch_id: c.branch,
            source: SourceView {
                uri: c.source.uri,
                db: c.source.db,
                identity: c.source.identity,
                include: c.source.selection.include,
                exclude: c.source.selection.exclude,
            },
            state: c.state,
            reason: c.reason,
            queued_seq: c.position.next_seq.saturating_sub(1),
            engine: c.owner,
            checkpoint_ms: c.checkpoint_ms,
            delay_seconds: None,
            oplog_window_seconds: None,
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
    let ledger = &call.api.ledger;
    let (page, next) = call.query.page(ledger.captures().await?, |capture| &capture.branch_name)?;
    let ids: Vec<_> = page.iter().map(|capture| capture.branch.clone()).collect();
    let (branches, now_ms) = (ledger.branches_of(&ids).await?, ledger.now_ms().await?);
    let ours = call.api.engine.meters().captures();
    let view = |capture: Capture| {
        let branch = branches.iter().find(|branch| branch.id == capture.branch);
        let delay = branch.and_then(|branch| metrics::until(&capture, branch)).map(|until| metrics::behind(until, now_ms));
        let meter = ours.iter().find(|(name, _)| *name == capture.branch_name).map(|(_, meter)| meter);
        let window = meter.and_then(|meter| meter.oplog()).map(|left| left.as_secs());
        CaptureView { delay_seconds: delay, oplog_window_seconds: window, ..CaptureView::from(capture) }
    };
    Ok(Json(CapturesPage { captures: page.into_iter().map(view).collect(), next }))
}

pub(super) async fn pause(call: Call<NoQuery, NoBody>) -> Result<Json<CaptureView>, Problem> {
    change(&call, true).await
}

pub(super) async fn resume(call: Call<NoQuery, NoBody>) -> Result<Json<CaptureView>, Problem> {
    change(&call, false).await
}

async fn change(call: &Call<NoQuery, NoBody>, paused: bool) -> Result<Json<CaptureView>, Problem> {
    let capture = find(&call.api, &call.id).await?;
    let was = capture.state;
    let capture = set_paused(&call.api.ledger, capture, paused, &call.caller.name).await?;
    if capture.state != was {
        let event = serde_json::json!({ "capture": capture.id, "branch": capture.branch_name, "state": capture.state });
        call.api.events.publish("capture", &event);
    }
    Ok(Json(capture.into()))
}

/// By its own id, or by name or id of its branch.
async fn find(api: &Api, given: &str) -> Result<Capture, Problem> {
    let captures = api.ledger.captures().await?;
    let found = captures.into_iter().find(|c| c.id == given || c.branch == given || c.branch_name == given);
    found.ok_or_else(|| Problem::not_found(format!("there is no capture {given:?}")))
}
