//! Owns: the collections and their indexes, one table. Does not own: the queries they serve.

use std::time::Duration;

use bson::{Document, doc};
use mongodb::IndexModel;
use mongodb::options::{CommitQuorum, IndexOptions};

use super::Inner;
use super::classify::{code, fault_of};
use super::enqueue::ALIVE;
use super::rows::words;
use crate::fault::Result;

pub(super) const JOBS_READY: &str = "ready_in_order";
pub(super) const JOBS_SCHEDULED: &str = "scheduled_by_time";
pub(super) const JOBS_PARKED: &str = "parked_by_branch";
pub(super) const JOBS_RUNNING: &str = "running_by_lease";
pub(super) const JOBS_DEAD: &str = "dead_by_id";
pub(super) const JOBS_DEAD_OF_BRANCH: &str = "dead_by_branch";
pub(super) const JOBS_UNIQUE: &str = "unique_key";
pub(super) const BRANCHES_BEHIND: &str = "head_behind";

/// Indexes of earlier versions: they would cost as much as those that replaced them.
const RETIRED: [(&str, &str); 5] =
    [("jobs", "ready"), ("jobs", "scheduled"), ("jobs", "running_by_token"), ("jobs", "running_by_engine"), ("jobs", "dead")];

/// All collections of the metadata database.
const COLLECTIONS: [&str; 12] = [
    "captures",
    "branches",
    "bases",
    "base_chunks",
    "segments",
    "jobs",
    "job_payloads",
    "engines",
    "counters",
    "controls",
    "leases",
    "stats",
];

struct Index {
    coll: &'static str,
    name: &'static str,
    keys: Document,
    /// Partial on this.
    only: Option<Document>,
    unique: bool,
}

/// Indexes of jobs are partial on the state they serve and begin with it: a finished job costs nothing, counting needs no
/// document, and the planner sees at once that they fit.
fn indexes() -> Vec<Index> {
    let index = |coll, name, keys, only| Index { coll, name, keys, only, unique: false };
    let unique = |coll, name, keys| Index { coll, name, keys, only: None, unique: true };
    let jobs = |name, state: &str, keys| index("jobs", name, keys, Some(doc! { "state": state }));
    vec![
        // Claims: everything that they look at is in the index. By kind first, so that a kind that nobody takes is never walked over.
        jobs(JOBS_READY, "ready", doc! { "state": 1, "kind": 1, "sched_key": 1, "_id": 1, "crashes": 1, "branch": 1 }),
        // Parked jobs lie apart, out of the promoter's way.
        jobs(JOBS_SCHEDULED, "scheduled", doc! { "state": 1, "parked": 1, "run_at_ms": 1, "kind": 1, "_id": 1 }),
        index("jobs", JOBS_PARKED, doc! { "parked": 1, "branch": 1 }, Some(doc! { "parked": true })),
        // One for both questions, whose a job is and what a claim got, since every claim and every end pays for it.
        jobs(JOBS_RUNNING, "running", doc! { "state": 1, "lease.engine": 1, "lease.token": 1 }),
        jobs(JOBS_DEAD, "dead", doc! { "state": 1, "_id": 1, "kind": 1 }),
        jobs(JOBS_DEAD_OF_BRANCH, "dead", doc! { "state": 1, "branch": 1, "kind": 1, "_id": 1 }),
        Index {
            unique: true,
            ..index(
                "jobs",
                JOBS_UNIQUE,
                doc! { "unique_key": 1 },
                Some(doc! { "unique_key": { "$exists": true }, "state": { "$in": words(&ALIVE) } }),
            )
        },
        index(
            "jobs",
            "finished",
            doc! { "state": 1, "finished_ms": 1, "_id": 1 },
            Some(doc! { "state": { "$in": ["done", "cancelled"] } }),
        ),
        unique("branches", "name", doc! { "name": 1 }),
        index("branches", BRANCHES_BEHIND, doc! { "head_behind": 1 }, Some(doc! { "head_behind": true })),
        index("branches", "parent", doc! { "parent.id": 1, "deleted_ms": 1 }, Some(doc! { "parent.id": { "$exists": true } })),
        index("branches", "deleted", doc! { "deleted_ms": 1 }, Some(doc! { "deleted_ms": { "$gt": 0 } })),
        index("branches", "expires", doc! { "expires_ms": 1 }, Some(doc! { "expires_ms": { "$gt": 0 } })),
        index("bases", "branch", doc! { "branch": 1, "seq": 1 }, None),
        index("bases", "copying", doc! { "state": 1 }, Some(doc! { "state": "copying" })),
        index("captures", "branch", doc! { "branch": 1 }, None),
        index("captures", "owner", doc! { "owner": 1 }, None),
        index("counters", "engine", doc! { "engine": 1 }, None),
        // The walk of the head, reading from a seq, and the promise that no range is in a level of an epoch twice.
        unique("segments", "range", doc! { "branch": 1, "last_seq": 1, "level": 1, "epoch": 1 }),
        index("segments", "losses", doc! { "branch": 1, "first_seq": 1 }, Some(doc! { "holes": { "$gt": 0 } })),
        index("segments", "ddl", doc! { "branch": 1, "last_seq": 1 }, Some(doc! { "has_ddl": true })),
        index("segments", "gaps", doc! { "kind": 1, "branch": 1, "first_seq": 1 }, Some(doc! { "kind": "gap" })),
    ]
}

impl Inner {
    /// The names alone, which every role that may read the database may list.
    pub(super) async fn is_prepared(&self) -> Result<bool> {
        let names = self.db.list_collection_names().await.map_err(fault_of)?;
        Ok(names.iter().any(|name| name == "branches"))
    }

    pub(super) async fn prepare(&self) -> Result<()> {
        // Created by hand: a transaction should not have to.
        for name in COLLECTIONS {
            match self.db.create_collection(name).await {
                Err(e) if code(&e) == Some(48) => {} // exists
                other => other.map_err(fault_of)?,
            }
        }
        let all = indexes();
        for coll in COLLECTIONS {
            let models: Vec<IndexModel> = all.iter().filter(|i| i.coll == coll).map(model).collect();
            if !models.is_empty() {
                self.db
                    .collection::<Document>(coll)
                    .create_indexes(models)
                    // A member that is down must not keep the engine from starting.
                    .commit_quorum(CommitQuorum::Majority)
                    .max_time(Duration::from_secs(60))
                    .await
                    .map_err(|e| fault_of(e).at(format!("indexes of {}.{coll}", self.db.name())))?;
            }
        }
        for (coll, name) in RETIRED {
            // Looked for first: even a drop of what is not there waits for the transactions on the collection, one of a dead process among them.
            let names = self.db.collection::<Document>(coll).list_index_names().await.map_err(fault_of)?;
            if !names.iter().any(|known| known == name) {
                continue;
            }
            match self.db.collection::<Document>(coll).drop_index(name).await {
                Err(e) if code(&e) == Some(27) => {} // it is not there
                other => other.map_err(|e| fault_of(e).at(format!("indexes of {}.{coll}", self.db.name())))?,
            }
        }
        Ok(())
    }
}

fn model(index: &Index) -> IndexModel {
    let mut options = IndexOptions::builder().name(index.name.to_owned()).build();
    options.unique = index.unique.then_some(true);
    options.partial_filter_expression = index.only.clone();
    IndexModel::builder().keys(index.keys.clone()).options(options).build()
}
