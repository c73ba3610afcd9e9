//! `POST /api/v1/branches` and what else changes a branch: forking, archiving, deleting.
//!
//! Owns: what is asked for and confirmed. Does not own: where a fork may be (`branch::fork`), the rules of deletion (`ledger`), the JSON of a branch (`branch::view`).

use std::time::Duration;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::api::Api;
use super::call::{Call, Created, Json, NoBody, whole};
use super::jobs::within;
use super::problem::Problem;
use crate::branch::fork::fork;
use crate::branch::history::History;
use crate::branch::layout::project_of;
use crate::branch::mirror::publish;
use crate::branch::point::Point;
use crate::branch::view::BranchView;
use crate::ledger::Branch;

/// A year.
const MOST_SECONDS: u64 = 31_536_000;

/// `POST /api/v1/branches`
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct NewBranchRequest {
    /// `project/branch`, of the project of its parent.
    #[schemars(regex(pattern = r"^[A-Za-z0-9_-][A-Za-z0-9._-]{0,99}/[A-Za-z0-9_-][A-Za-z0-9._-]{0,99}$"))]
    pub name: String,
    /// The parent, by name or id.
    pub from: String,
    /// Where it is forked: `head`, `seq:N`, an RFC 3339 time, or `ts:SECONDS.INC`; the head, if not given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(extend("anyOf" = [
        { "type": "null" },
        { "pattern": "^(head|seq:[0-9]{1,18}|ts:[0-9]{1,9}\\.[0-9]{1,9})$" },
        { "format": "date-time" },
    ]))]
    pub at: Option<String>,
    /// It deletes itself after so many seconds.
    #[serde(default, skip_serializing_if = "Option::is_none", deserialize_with = "whole")]
    #[schemars(range(min = 1, max = 31536000))]
    pub ttl_seconds: Option<u64>,
}

/// `POST /api/v1/branches/{id}/archive`
#[derive(Debug, Clone, Copy, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct ArchiveQuery {
    /// Take it back.
    #[serde(default)]
    pub undo: bool,
}

/// `DELETE /api/v1/branches/{id}`
#[derive(Debug, Clone, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct DeleteQuery {
    /// The name of the branch once more: its history goes after a grace.
    #[serde(default)]
    pub confirm: Option<String>,
}

pub(super) async fn create(call: Call<super::call::NoQuery, Json<NewBranchRequest>>) -> Result<Created<BranchView>, Problem> {
    let Call { api, body: Json(wanted), .. } = call;
    let from = find(&api, &wanted.from).await?;
    if project_of(&wanted.name) != project_of(&from.name) {
        return Err(Problem::conflict(format!("{} is of another project than {}, whose objects it shares", wanted.name, from.name)));
    }
    let at = match &wanted.at {
        Some(text) => text.parse::<Point>()?,
        None => Point::Head,
    };
    let ttl = match wanted.ttl_seconds {
        Some(seconds) => Some(Duration::from_secs(within("ttl_seconds", seconds, 1, MOST_SECONDS)?)),
        None => None,
    };
    let history = History::open(api.ledger.clone(), api.store.clone(), &from.id).await?;
    let made = fork(&history, &wanted.name, at, ttl).await?;
    tracing::info!(branch = %made.name, from = %from.name, by = %call.caller.name, "branch created");
    changed(&api, &made, "created").await.map(|body| Created { created: true, body })
}

pub(super) async fn archive(call: Call<ArchiveQuery, NoBody>) -> Result<Json<BranchView>, Problem> {
    let branch = find(&call.api, &call.id).await?;
    call.api.ledger.archive_branch(&branch.id, !call.query.undo).await?;
    tracing::info!(branch = %branch.name, undo = call.query.undo, by = %call.caller.name, "branch archived");
    publish(&call.api.ledger, &call.api.store, &branch.id).await?;
    changed(&call.api, &branch, if call.query.undo { "active" } else { "archived" }).await.map(Json)
}

pub(super) async fn delete(call: Call<DeleteQuery, NoBody>) -> Result<Json<BranchView>, Problem> {
    let branch = find(&call.api, &call.id).await?;
    if call.query.confirm.as_deref() != Some(branch.name.as_str()) {
        let said = format!("deleting a branch removes its history after a grace: repeat its name, confirm={}", branch.name);
        return Err(Problem::new(axum::http::StatusCode::CONFLICT, "confirmation_needed", said));
    }
    call.api.ledger.delete_branch(&branch.id).await?;
    tracing::warn!(branch = %branch.name, by = %call.caller.name, "branch deleted");
    publish(&call.api.ledger, &call.api.store, &branch.id).await?;
    changed(&call.api, &branch, "deleted").await.map(Json)
}

async fn changed(api: &Api, branch: &Branch, what: &str) -> Result<BranchView, Problem> {
    api.events.publish("branch", &serde_json::json!({ "branch": branch.name, "id": branch.id, "what": what }));
    Ok(BranchView::load(&*api.ledger, &branch.id).await?)
}

/// By id or name.
async fn find(api: &Api, given: &str) -> Result<Branch, Problem> {
    let found = match api.ledger.branch_named(given).await? {
        Some(branch) => Some(branch),
        None => api.ledger.branch(given).await?,
    };
    found.ok_or_else(|| Problem::not_found(format!("there is no branch {given:?}")))
}
