//! `/api/v1/scaler`: what the scaler decided and why.
//!
//! Owns: the page of decisions. Does not own: the decisions (`pool::scaler`).

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::call::{Call, Json, NoBody};
use super::jobs::within;
use super::problem::Problem;
use super::workers::Pool;
use crate::branch::point::rfc3339;
use crate::pool::scaler::Decision;

/// Decisions that are kept.
const MOST: u32 = 256;

/// Query of `GET /api/v1/scaler`.
#[derive(Debug, Clone, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct ScalerQuery {
    /// How many decisions, 60 unless said otherwise.
    #[serde(default)]
    #[schemars(range(min = 1, max = 256))]
    pub limit: Option<u32>,
    /// Only those that changed the target.
    #[serde(default)]
    pub changed: bool,
}

/// `GET /api/v1/scaler`: of the engine that answers.
#[derive(Debug, Clone, PartialEq, Serialize, JsonSchema)]
pub struct ScalerView {
    pub engine: String,
    pub pool: Pool,
    /// Newest first.
    pub decisions: Vec<DecisionView>,
}

/// A decision with the time of day.
#[derive(Debug, Clone, PartialEq, Serialize, JsonSchema)]
pub struct DecisionView {
    pub time: String,
    #[serde(flatten)]
    pub decision: Decision,
}

pub(super) async fn show(call: Call<ScalerQuery, NoBody>) -> Result<Json<ScalerView>, Problem> {
    let limit = within("limit", call.query.limit.unwrap_or(60), 1, MOST)?;
    let status = call.api.engine.status();
    let decisions = call.api.engine.decisions().into_iter().rev();
    let decisions = decisions.filter(|d| d.changed || !call.query.changed).take(limit as usize).map(|d| view(d, status.started_ms));
    Ok(Json(ScalerView { engine: call.api.engine.id(), pool: (&status.pool).into(), decisions: decisions.collect() }))
}

pub(super) fn view(decision: Decision, started_ms: i64) -> DecisionView {
    let since = i64::try_from(decision.at.as_millis()).unwrap_or(i64::MAX);
    DecisionView { time: rfc3339(started_ms.saturating_add(since)), decision }
}
