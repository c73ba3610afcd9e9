//! Owns: comparing two databases as the server sees them: documents by `dbHash` per collection, options, indexes, views.
//! Does not own: comparing a database with history (`branch::verify`).

use std::collections::{BTreeMap, BTreeSet};

use bson::{Bson, Document, doc};
use mongodb::Database;

use crate::branch::catalogue::{Catalogue, read_catalogue};
use crate::fault::{Fault, Result};

/// What differs, one line each; empty when the databases are the same. `system.*` collections are left out except `system.js`.
pub async fn differences(a: &Database, b: &Database) -> Result<Vec<String>> {
    let (left, right) = (shape(a).await?, shape(b).await?);
    let names: BTreeSet<&String> = left.keys().chain(right.keys()).collect();
    let mut found = Vec::new();
    for name in names {
        match (left.get(name), right.get(name)) {
            (Some(x), Some(y)) if x == y => {}
            (x, y) => found.push(format!("{name}:\n  {} has {}\n  {} has {}", a.name(), shown(x), b.name(), shown(y))),
        }
    }
    Ok(found)
}

fn shown(shape: Option<&String>) -> &str {
    shape.map_or("nothing", String::as_str)
}

/// One text per collection or view that says everything about it.
async fn shape(db: &Database) -> Result<BTreeMap<String, String>> {
    let (catalogue, _) = read_catalogue(db).await?;
    let hashes = db_hash(db).await?;
    let mut shapes = BTreeMap::new();
    for collection in catalogue.collections.values().filter(|c| !c.name.starts_with("system.") || c.name == "system.js") {
        let hash = match hashes.get(&collection.name) {
            Some(hash) => hash.clone(),
            None => count(db, &collection.name).await?, // dbHash leaves system.js out
        };
        let indexes: Vec<String> = collection.indexes.iter().map(ToString::to_string).collect();
        // Text keeps the order of fields, which equality of documents does not.
        shapes.insert(collection.name.clone(), format!("{hash}, options {}, indexes {indexes:?}", collection.options));
    }
    add_views(&catalogue, &mut shapes);
    Ok(shapes)
}

fn add_views(catalogue: &Catalogue, shapes: &mut BTreeMap<String, String>) {
    for view in catalogue.views.values() {
        shapes.insert(view.name.clone(), format!("{:?} {}", view.kind, view.options));
    }
}

/// The server's hash of each collection.
async fn db_hash(db: &Database) -> Result<BTreeMap<String, String>> {
    let reply = db.run_command(doc! {"dbHash": 1}).await.map_err(|e| Fault::unknown(format!("dbHash of {:?}: {e}", db.name())))?;
    let hashes: &Document = reply.get_document("collections").map_err(|e| Fault::rejected(format!("dbHash: {e}")))?;
    Ok(hashes
        .iter()
        .filter_map(|(name, hash)| if let Bson::String(hash) = hash { Some((name.clone(), format!("hash {hash}"))) } else { None })
        .collect())
}

async fn count(db: &Database, name: &str) -> Result<String> {
    let count = db.collection::<Document>(name).count_documents(doc! {}).await;
    count.map(|n| format!("{n} documents")).map_err(|e| Fault::unknown(format!("count {name:?}: {e}")))
}
