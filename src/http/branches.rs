//! `/api/v1/branches`: what there is and what it adds up to.
//!
//! Owns: paging and the statistics of a branch. Does not own: the JSON of a branch (`branch::view`).

use futures_util::stream::{self, StreamExt, TryStreamExt};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::call::{Call, Json, NoBody, NoQuery};
use super::jobs::within;
use super::problem::Problem;
use super::workers::{real, rounded};
use crate::branch::view::{BranchView, HeadView};
use crate::change::ClusterTime;
use crate::fault::Fault;
use crate::ledger::SharedLedger;

/// Branches and captures on a page, unless asked otherwise, and at most.
const PAGE: u32 = 50;
const MOST: u32 = 200;
/// Branches of a page that are read at a time: each takes some questions.
const LOADS: usize = 8;

/// Paging by name.
#[derive(Debug, Clone, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct PageQuery {
    /// Only those after this name: the `next` of the page before.
    #[serde(default)]
    pub after: Option<String>,
    /// How many, 50 unless said otherwise.
    #[serde(default)]
    #[schemars(range(min = 1, max = 200))]
    pub limit: Option<u32>,
}

impl PageQuery {
    fn limit(&self) -> Result<usize, Problem> {
        Ok(within("limit", self.limit.unwrap_or(PAGE), 1, MOST)? as usize)
    }

    /// Sorts by name and cuts out a page; also what to ask for next.
    pub(super) fn page<T>(&self, mut all: Vec<T>, name: impl Fn(&T) -> &str) -> Result<(Vec<T>, Option<String>), Problem> {
        let limit = self.limit()?;
        all.sort_by(|a, b| name(a).cmp(name(b)));
        if let Some(after) = &self.after {
            all.retain(|one| name(one) > after.as_str());
        }
        let more = all.len() > limit;
        all.truncate(limit);
        let next = all.last().filter(|_| more).map(|last| name(last).to_owned());
        Ok((all, next))
    }
}

/// `GET /api/v1/branches`
#[derive(Debug, Clone, PartialEq, Serialize, JsonSchema)]
pub struct BranchesPage {
    pub branches: Vec<BranchView>,
    /// What to give as `after` for the next page; absent at the end.
    pub next: Option<String>,
}

/// `GET /api/v1/branches/{id}/stats`
#[derive(Debug, Clone, PartialEq, Serialize, JsonSchema)]
pub struct BranchStats {
    /// `project/branch`
    pub branch: String,
    pub changes: u64,
    /// The server's event bytes without token and envelope, so that the ratio does not flatter.
    pub raw_bytes: u64,
    pub stored_bytes: u64,
    /// `raw_bytes / stored_bytes`; null before anything is stored.
    pub compression_ratio: Option<f64>,
    pub segments: u64,
    pub levels: Vec<Level>,
    pub head: HeadView,
    pub captured_until: Option<ClusterTime>,
    /// Seconds by which `captured_until` is behind the metadata server's clock.
    pub lag_seconds: Option<u64>,
    /// Share of `raw_bytes` that is saved, percent; null before anything is stored.
    pub saved_percent: Option<f64>,
}

/// Segments of one level of compaction.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, JsonSchema)]
pub struct Level {
    pub level: u32,
    pub segments: u64,
    pub stored_bytes: u64,
}

pub(super) async fn list(call: Call<PageQuery, NoBody>) -> Result<Json<BranchesPage>, Problem> {
    let limit = call.query.limit()?;
    let ledger = &call.api.ledger;
    let mut page = ledger.branches_after(call.query.after.as_deref(), limit + 1).await?;
    let more = page.len() > limit;
    page.truncate(limit);
    let next = page.last().filter(|_| more).map(|last| last.name.clone());
    // Owned: a stream over borrows makes the future less general than a handler needs.
    let loads: Vec<_> = page.into_iter().map(|branch| load(ledger.clone(), branch.id)).collect();
    let branches = stream::iter(loads).buffered(LOADS).try_collect().await?;
    Ok(Json(BranchesPage { branches, next }))
}

async fn load(ledger: SharedLedger, id: String) -> Result<BranchView, Fault> {
    BranchView::load(&*ledger, &id).await
}

pub(super) async fn get(call: Call<NoQuery, NoBody>) -> Result<Json<BranchView>, Problem> {
    Ok(Json(BranchView::load(&*call.api.ledger, &call.id).await?))
}

pub(super) async fn stats(call: Call<NoQuery, NoBody>) -> Result<Json<BranchStats>, Problem> {
    let view = BranchView::load(&*call.api.ledger, &call.id).await?;
    let now_ms = call.api.ledger.now_ms().await?;
    let totals = view.totals;
    let stored = totals.stored_bytes > 0 && totals.raw_bytes > 0;
    let (raw, kept) = (real(totals.raw_bytes), real(totals.stored_bytes));
    // Every segment is of level 0 until there is compaction, so the totals are the level's.
    let level = Level { level: 0, segments: totals.segments, stored_bytes: totals.stored_bytes };
    Ok(Json(BranchStats {
        branch: view.name,
        changes: totals.changes,
        raw_bytes: totals.raw_bytes,
        stored_bytes: totals.stored_bytes,
        compression_ratio: stored.then(|| rounded(raw / kept, 2)),
        segments: totals.segments,
        levels: vec![level],
        head: view.head,
        captured_until: view.captured_until,
        lag_seconds: view.captured_until.map(|until| u64::try_from(now_ms / 1000 - i64::from(until.t)).unwrap_or(0)),
        saved_percent: stored.then(|| rounded(100.0 * (1.0 - kept / raw), 2)),
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pages_follow_each_other_and_end() {
        let all: Vec<String> = ["c", "a", "b", "e", "d"].map(String::from).to_vec();
        let mut seen = Vec::new();
        let mut after = None;
        loop {
            let query = PageQuery { after: after.clone(), limit: Some(2) };
            let (page, next) = query.page(all.clone(), |name| name).unwrap();
            seen.extend(page);
            if next.is_none() {
                break;
            }
            after = next;
        }
        assert_eq!(seen, ["a", "b", "c", "d", "e"]);
        assert!(PageQuery { after: None, limit: Some(0) }.page(all.clone(), |name| name).is_err());
        assert!(PageQuery { after: None, limit: Some(201) }.page(all, |name| name).is_err());
    }
}
