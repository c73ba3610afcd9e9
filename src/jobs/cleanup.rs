//! What nobody needs any more goes: a branch whose time is over is deleted, and once its grace is over its objects and rows are removed; what bases that were given up
//! and uploads that were never committed have left in the bucket goes after the same grace.
//!
//! Owns: the order objects first, rows last, so that a removal that was cut off goes on. Does not own: when it is due (`engine::keeper`), what nobody
//! refers to (`sweep`), finished jobs (`engine::lead`).

mod sweep;

use std::sync::Arc;

use async_trait::async_trait;
use bson::RawDocument;
use serde::{Deserialize, Serialize};

use super::snapshot::stay_alive;
use super::{Handler, Outcome, Parts, Watch};
use crate::branch::layout;
use crate::branch::mirror::publish;
use crate::fault::{Fault, Result};
use crate::ledger::{Branch, Capture, CaptureState, Enqueued, Job, JobKind, JobLease, NewJob, SharedLedger};
use crate::runtime::random;

/// Objects of one listing.
const PAGE: usize = 1_000;
/// Databases that are never dropped, whatever a branch says of them.
const SERVERS_OWN: [&str; 3] = ["admin", "config", "local"];

/// `{branch}`
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Params {
    branch: String,
}

/// Asks for what is due of a branch. False when it is asked for already.
pub async fn enqueue(ledger: &SharedLedger, branch: &str) -> Result<bool> {
    let params = bson::rawdoc! {"branch": branch};
    let new = NewJob::new(random::ordered_id(), JobKind::Cleanup);
    let job = NewJob { branch: Some(branch.to_owned()), params: Some(params), unique_key: Some(format!("cleanup/{branch}")), ..new };
    let outcome = ledger.enqueue(std::slice::from_ref(&job)).await?;
    Ok(!matches!(outcome.first(), Some(Enqueued::Duplicate { .. })))
}

#[derive(Debug)]
struct Cleanup(Parts);

pub(super) fn handler(parts: &Parts) -> Arc<dyn Handler> {
    Arc::new(Cleanup(parts.clone()))
}

#[async_trait]
impl Handler for Cleanup {
    async fn run(&self, job: &Job, lease: &JobLease, watch: &Watch) -> Result<Outcome> {
        let params = parse(job.params.as_deref())?;
        let parts = &self.0;
        let work = async {
            let Some(branch) = parts.ledger.branch(&params.branch).await? else { return Ok(Outcome::Done) };
            let now_ms = parts.ledger.now_ms().await?;
            let grace_ms = i64::try_from(parts.settings.delete_grace.as_millis()).unwrap_or(i64::MAX);
            match branch.deleted_ms {
                None if branch.expires_ms.is_some_and(|at| at <= now_ms) => expire(parts, &branch).await?,
                Some(at) if at.saturating_add(grace_ms) <= now_ms => purge(parts, &branch, watch).await?,
                Some(_) => {}
                None if !sweep::is_ours(parts, &branch).await? => {}
                None => {
                    let before_ms = now_ms.saturating_sub(grace_ms);
                    sweep::bases(parts, &branch, before_ms, watch).await?;
                    sweep::segments(parts, &branch, before_ms, watch).await?;
                }
            }
            Ok(Outcome::Done)
        };
        stay_alive(parts, lease, watch, work).await
    }
}

fn parse(params: Option<&RawDocument>) -> Result<Params> {
    let params = params.ok_or_else(|| Fault::rejected("a cleanup job needs parameters"))?;
    bson::deserialize_from_slice(params.as_bytes()).map_err(|e| Fault::rejected(format!("the parameters of a cleanup job: {e}")))
}

/// Its time is over: the branch is deleted, and the database that a checkout made for it goes first. One that others were forked from stays, in sight.
async fn expire(parts: &Parts, branch: &Branch) -> Result<()> {
    let capture = parts.ledger.capture_of(&branch.id).await?;
    let children = parts.ledger.children(&branch.id, 1).await?;
    if let Some(child) = children.first() {
        return Err(Fault::transient(format!(
            "the time of {} is over, but {} was forked from it: delete that first",
            branch.name, child.name
        )));
    }
    // SUBTLE: the database goes before the branch, and never later: an expiry that is cut off goes on here within seconds, and behind the deletion somebody
    // else may make a database of that name.
    if let Some(capture) = capture {
        let why = Some("the time of its branch is over");
        parts.ledger.set_capture_state(&capture.id, CaptureState::Stopped, why).await?;
        drop_database(parts, branch, capture).await?;
    }
    parts.ledger.delete_branch(&branch.id).await?;
    let _ = publish(&parts.ledger, &parts.store, &branch.id).await;
    tracing::info!(branch = %branch.name, "deleted a branch whose time is over");
    Ok(())
}

/// The database that a checkout with a time to live has made.
async fn drop_database(parts: &Parts, branch: &Branch, capture: Capture) -> Result<()> {
    if branch.drop_db && !SERVERS_OWN.contains(&capture.source.db.as_str()) {
        let db = parts.sources.database(&capture.source).await?;
        db.drop()
            .await
            .map_err(|e| crate::ledger::classify_mongo_error(&e, crate::ledger::MongoPhase::Run).at("drop the database of the branch"))?;
        tracing::info!(branch = %branch.name, db = %capture.source.db, "dropped the database of a branch whose time is over");
    }
    Ok(())
}

/// Refuses to go on once the job is stopped.
fn go_on(watch: &Watch) -> Result<()> {
    if watch.cancel.is_cancelled() { Err(Fault::cancelled("the removal was stopped; it goes on from here")) } else { Ok(()) }
}

/// Objects, then rows. `branch.json` goes last of the objects: until then a rebuild knows that the rest is not wanted.
async fn purge(parts: &Parts, branch: &Branch, watch: &Watch) -> Result<()> {
    let project = layout::project_of(&branch.name);
    let prefix = layout::branch_prefix(project, &branch.id);
    let last = layout::branch_json(project, &branch.id);
    let mut removed = 0u64;
    loop {
        let page = parts.store.list(&prefix, None, PAGE).await?;
        let keys: Vec<&String> = page.iter().map(|object| &object.key).filter(|key| **key != last).collect();
        if keys.is_empty() {
            break;
        }
        for key in keys {
            go_on(watch)?;
            parts.store.delete(key).await?;
            removed += 1;
        }
    }
    parts.store.delete(&last).await?;
    while !parts.ledger.purge_branch(&branch.id).await? {
        go_on(watch)?;
    }
    tracing::info!(branch = %branch.name, objects = removed + 1, "removed what a deleted branch held");
    Ok(())
}
