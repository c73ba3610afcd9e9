//! Owns: what a target database holds before a restore, whether that may be replaced, and the marker of an incomplete restore.
//! Does not own: what is written (`write`, `indexes`).

use std::collections::BTreeSet;

use bson::{Document, doc};
use mongodb::Database;
use mongodb::options::WriteConcern;

use super::{RestoreReport, Wanted};
use crate::branch::catalogue::{Kind, read_catalogue};
use crate::branch::server;
use crate::fault::{Fault, Result};

/// Collection in the target that exists while a restore is incomplete; its document lists what the restore writes.
pub use crate::change::MARKER;

/// Bytes of `database.collection` that the server takes.
const MAX_NAMESPACE: usize = 255;

/// What has to go before the first write.
#[derive(Debug)]
pub(super) struct Plan {
    drop: BTreeSet<String>,
    /// Something of it is not what an earlier restore has begun.
    replaces: bool,
    resumes: bool,
}

/// Looks at the target: refuses documents and views in the way, unless they are the half of a killed restore or `drop` is given.
pub(super) async fn check(target: &Database, wanted: &Wanted, drop: bool) -> Result<Plan> {
    let fault = |e| server::fault(&format!("look at target {:?}", target.name()), &e);
    let (catalogue, _) = read_catalogue(target).await?;
    let marker = target.collection::<Document>(MARKER).find_one(doc! {"_id": "restore"}).await.map_err(fault)?;
    let begun: BTreeSet<String> = marker.as_ref().map(begun_names).unwrap_or_default();
    let names: BTreeSet<&str> = wanted.names().collect();
    let longest = names.iter().map(|name| target.name().len() + 1 + name.len()).max().unwrap_or(0);
    if longest > MAX_NAMESPACE {
        return Err(Fault::rejected(format!(
            "target database {:?}: with its longest collection name that makes {longest} bytes, MongoDB takes {MAX_NAMESPACE}: choose a shorter name",
            target.name()
        )));
    }
    let mut plan = Plan { drop: BTreeSet::new(), replaces: false, resumes: marker.is_some() };
    let mut in_the_way = Vec::new();
    for view in catalogue.views.values().filter(|v| names.contains(v.name.as_str())) {
        if view.kind == Kind::Timeseries || !begun.contains(&view.name) {
            in_the_way.push(format!("{} (a view)", view.name));
        }
        plan.drop.insert(view.name.clone());
    }
    for collection in catalogue.collections.values().filter(|c| names.contains(c.name.as_str())) {
        let any = target.collection::<Document>(&collection.name).find_one(doc! {}).projection(doc! {"_id": 1}).await.map_err(fault)?;
        if any.is_some() && !begun.contains(&collection.name) {
            in_the_way.push(collection.name.clone());
        }
        plan.drop.insert(collection.name.clone());
    }
    // A different restore was begun here: what it leaves half is dropped only on request.
    let exists = |name: &String| catalogue.views.contains_key(name) || catalogue.collection_named(name).is_some();
    for name in begun.iter().filter(|name| !names.contains(name.as_str()) && exists(name)) {
        in_the_way.push(format!("{name} (half of another restore)"));
        plan.drop.insert(name.clone());
    }
    if !in_the_way.is_empty() && !drop {
        let db = target.name();
        let more = if in_the_way.len() > 5 { format!(" and {} more", in_the_way.len() - 5) } else { String::new() };
        in_the_way.truncate(5);
        let list = in_the_way.join(", ");
        return Err(Fault::rejected(format!("target database {db:?} already has {list}{more}: choose another database, or give --drop")));
    }
    plan.replaces = !in_the_way.is_empty();
    Ok(plan)
}

fn begun_names(marker: &Document) -> BTreeSet<String> {
    let names = marker.get_array("names").map(Vec::as_slice).unwrap_or_default();
    names.iter().filter_map(|name| name.as_str().map(str::to_owned)).collect()
}

impl Wanted {
    pub(super) fn names(&self) -> impl Iterator<Item = &str> {
        self.collections.iter().map(|c| c.name.as_str()).chain(self.views.iter().map(|v| v.name.as_str()))
    }
}

impl Plan {
    /// Whether what somebody has there goes.
    pub(super) fn replaces(&self) -> bool {
        self.replaces
    }

    /// The server lets nobody drop a collection of its own (system.js): it is emptied, and is there already when it is to be made.
    pub(super) fn keeps_empty(&self, name: &str) -> bool {
        name.starts_with("system.") && self.drop.contains(name)
    }

    /// What would happen, for a dry run.
    pub(super) fn describe(&self) -> Vec<String> {
        self.drop.iter().map(|name| format!("would drop {name} in the target")).collect()
    }

    /// Writes the marker, then drops what is in the way.
    pub(super) async fn begin(&self, target: &Database, wanted: &Wanted, report: &RestoreReport) -> Result<()> {
        let fault = |e| server::fault(&format!("prepare target {:?}", target.name()), &e);
        let markers = target.collection::<Document>(MARKER);
        // Names of an earlier half stay listed until they are dropped.
        let names: BTreeSet<String> = wanted.names().map(str::to_owned).chain(self.drop.iter().cloned()).collect();
        let marker = doc! {
            "_id": "restore",
            "note": "an argon restore into this database is not complete; run it again",
            "branch": &report.branch,
            "at": &report.at,
            "names": names.into_iter().collect::<Vec<_>>(),
        };
        let replace = markers.replace_one(doc! {"_id": "restore"}, marker).upsert(true).write_concern(WriteConcern::majority());
        replace.await.map_err(fault)?;
        for name in &self.drop {
            let collection = target.collection::<Document>(name);
            if self.keeps_empty(name) {
                collection.delete_many(doc! {}).write_concern(WriteConcern::majority()).await.map_err(fault)?;
            } else {
                collection.drop().write_concern(WriteConcern::majority()).await.map_err(fault)?;
            }
        }
        if self.resumes {
            tracing::info!(db = target.name(), "an earlier restore was incomplete, starting over");
        }
        Ok(())
    }
}

/// Removes the marker: the restore is complete and majority committed.
pub(super) async fn end(target: &Database) -> Result<()> {
    let markers = target.collection::<Document>(MARKER);
    markers.drop().write_concern(WriteConcern::majority()).await.map_err(|e| server::fault("remove the marker of the restore", &e))
}

pub(super) async fn is_marked(target: &Database) -> Result<bool> {
    let found = target.collection::<Document>(MARKER).find_one(doc! {"_id": "restore"}).await;
    Ok(found.map_err(|e| server::fault(&format!("look at target {:?}", target.name()), &e))?.is_some())
}
