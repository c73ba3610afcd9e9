//! Owns: what is seen of an engine from outside: the rows in its metadata database. Does not own waiting policies of a benchmark.

use std::time::Duration;

use argon::fault::{Fault, Result};
use argon::ledger::{CaptureState, Head, SegmentRow, Totals};
use bson::{Document, doc};
use futures_util::TryStreamExt;
use mongodb::error::Error;
use mongodb::options::ReadConcern;
use mongodb::{Collection, Database};
use serde::Deserialize;

/// How often rows are looked at; a drain of 200,000 changes takes about two seconds, so this is half a percent at most.
pub(super) const POLL: Duration = Duration::from_millis(5);

/// The metadata of one branch.
#[derive(Debug, Clone)]
pub(super) struct Watch {
    captures: Collection<CaptureSeen>,
    branches: Collection<BranchSeen>,
    segments: Collection<SegmentRow>,
    name: String,
}

/// What a capture shows.
#[derive(Debug, Deserialize)]
pub(super) struct CaptureSeen {
    pub owner: Option<String>,
    state: CaptureState,
    reason: Option<String>,
    position: PositionSeen,
}

#[derive(Debug, Deserialize)]
struct PositionSeen {
    next_seq: u64,
}

/// What a branch shows.
#[derive(Debug, Deserialize)]
pub(super) struct BranchSeen {
    #[serde(rename = "_id")]
    pub id: String,
    pub head: Head,
    pub totals: Totals,
    /// Payload bytes that went through the queue: the same blocks, compressed for the queue.
    pub settled_bytes: u64,
}

#[derive(Debug, Deserialize)]
struct HeadSeen {
    head: Head,
}

impl CaptureSeen {
    /// Something is in the queue.
    pub(super) fn has_checkpoint(&self) -> bool {
        self.position.next_seq > 1
    }
}

impl Watch {
    /// Watches the branch called `name`.
    pub(super) fn new(metadata: &Database, name: &str) -> Self {
        let collection_options = || mongodb::options::CollectionOptions::builder().read_concern(ReadConcern::majority()).build();
        Self {
            captures: metadata.collection_with_options("captures", collection_options()),
            branches: metadata.collection_with_options("branches", collection_options()),
            segments: metadata.collection_with_options("segments", collection_options()),
            name: name.to_owned(),
        }
    }

    /// The capture; one that has failed is an error with its reason.
    pub(super) async fn capture(&self) -> Result<CaptureSeen> {
        let fields = doc! { "owner": 1, "state": 1, "reason": 1, "position.next_seq": 1 };
        let found = self.captures.find_one(doc! { "branch_name": &self.name }).projection(fields).await.map_err(failed)?;
        let seen = found.ok_or_else(|| Fault::missing(format!("there is no capture of {}", self.name)))?;
        match (&seen.state, &seen.reason) {
            (CaptureState::Running, _) => Ok(seen),
            (_, reason) => {
                Err(Fault::rejected(format!("the capture of {} ended: {}", self.name, reason.as_deref().unwrap_or("no reason given"))))
            }
        }
    }

    /// The highest seq up to which everything is committed, as a majority sees it.
    pub(super) async fn head(&self) -> Result<u64> {
        let heads: Collection<HeadSeen> = self.branches.clone_with_type();
        let found = heads.find_one(doc! { "name": &self.name }).projection(doc! { "head": 1 }).await.map_err(failed)?;
        Ok(found.ok_or_else(|| self.no_branch())?.head.seq)
    }

    /// The whole branch.
    pub(super) async fn branch(&self) -> Result<BranchSeen> {
        self.branches.find_one(doc! { "name": &self.name }).await.map_err(failed)?.ok_or_else(|| self.no_branch())
    }

    /// Its segments, in order.
    pub(super) async fn segments(&self) -> Result<Vec<SegmentRow>> {
        let branch = self.branch().await?.id;
        let rows = self.segments.find(doc! { "branch": branch }).sort(doc! { "first_seq": 1 }).await.map_err(failed)?;
        rows.try_collect().await.map_err(failed)
    }

    /// Why jobs failed, if any did: the newest errors.
    pub(super) async fn job_errors(&self, metadata: &Database) -> String {
        let failed = doc! { "error_count": { "$gt": 0 } };
        let jobs: Collection<Document> = metadata.collection("jobs");
        match jobs.find_one(failed).projection(doc! { "state": 1, "errors": { "$slice": -1 } }).await {
            Ok(Some(job)) => format!("; a job failed: {job}"),
            _ => String::new(),
        }
    }

    fn no_branch(&self) -> Fault {
        Fault::missing(format!("there is no branch {}", self.name))
    }
}

#[allow(clippy::needless_pass_by_value)] // the shape of map_err
fn failed(error: Error) -> Fault {
    Fault::unknown(format!("reading the metadata: {error}"))
}
