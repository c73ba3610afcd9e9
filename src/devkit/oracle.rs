//! The oracle of demo and tests: whether two databases are the same, asked of MongoDB itself.
//!
//! Owns: `dbHash` per collection (every byte of every document), options, indexes, views, the order of fields in all of them. Does not own: history; it reads only MongoDB, and
//! shares no code with restore, so that the two cannot be wrong together.

use std::collections::BTreeMap;

use bson::{Bson, Document, RawDocumentBuf, doc};
use futures_util::TryStreamExt;
use mongodb::Database;

use crate::fault::Result;
use crate::ledger::{MongoPhase, classify_mongo_error};

/// What is compared.
#[derive(Debug, Clone, PartialEq)]
pub struct Snapshot {
    /// Collection -> hash of all its documents.
    pub hashes: BTreeMap<String, String>,
    /// Collection or view -> type and options.
    pub options: BTreeMap<String, Document>,
    /// Collection -> its indexes by name.
    pub indexes: BTreeMap<String, BTreeMap<String, Document>>,
}

fn fault(e: mongodb::error::Error) -> crate::fault::Fault {
    classify_mongo_error(&e, MongoPhase::Run)
}

/// Reads a database as it is now; nobody may write to it meanwhile. `system.*` is left out, except `system.js`, which users fill.
pub async fn snapshot(db: &Database) -> Result<Snapshot> {
    let reply = db.run_command(doc! { "dbHash": 1 }).await.map_err(fault)?;
    let hashes = reply.get_document("collections").cloned().unwrap_or_default();
    let hashes = hashes.into_iter().filter(|(name, _)| !name.starts_with("system."));
    let mut snapshot = Snapshot {
        hashes: hashes.map(|(name, hash)| (name, hash.as_str().unwrap_or_default().to_string())).collect(),
        options: BTreeMap::new(),
        indexes: BTreeMap::new(),
    };
    let entries: Vec<Document> =
        db.run_cursor_command(doc! { "listCollections": 1 }).await.map_err(fault)?.try_collect().await.map_err(fault)?;
    for entry in entries {
        let name = entry.get_str("name").unwrap_or_default().to_string();
        if name == "system.js" {
            // dbHash leaves it out.
            snapshot.hashes.insert(name.clone(), stored_functions(db).await?);
        } else if name.starts_with("system.") {
            continue;
        }
        let kind = entry.get("type").cloned().unwrap_or(Bson::Null);
        let options = entry.get("options").cloned().unwrap_or(Bson::Null);
        snapshot.options.insert(name.clone(), doc! { "type": kind.clone(), "options": options });
        if kind.as_str() == Some("collection") {
            let listed: Vec<Document> =
                db.run_cursor_command(doc! { "listIndexes": &name }).await.map_err(fault)?.try_collect().await.map_err(fault)?;
            let by_name = listed.into_iter().map(|index| (index.get_str("name").unwrap_or_default().to_string(), index));
            snapshot.indexes.insert(name, by_name.collect());
        }
    }
    Ok(snapshot)
}

/// Every byte of `system.js`, by `_id`.
async fn stored_functions(db: &Database) -> Result<String> {
    let found = db.collection::<RawDocumentBuf>("system.js").find(doc! {}).sort(doc! { "_id": 1 }).await.map_err(fault)?;
    let all: Vec<RawDocumentBuf> = found.try_collect().await.map_err(fault)?;
    Ok(format!("{all:?}"))
}

impl Snapshot {
    /// Every difference in words; empty means identical.
    pub fn differences(&self, other: &Self) -> Vec<String> {
        let mut found = Vec::new();
        differ("documents", &self.hashes, &other.hashes, &mut found);
        differ("options", &self.options, &other.options, &mut found);
        differ("indexes", &self.indexes, &other.indexes, &mut found);
        found
    }
}

/// By its text, which shows types and keeps the order of fields: equality of documents does not look at the order.
fn differ<V: std::fmt::Debug>(what: &str, a: &BTreeMap<String, V>, b: &BTreeMap<String, V>, found: &mut Vec<String>) {
    for (name, value) in a {
        match b.get(name) {
            None => found.push(format!("{what} of {name}: only in the first")),
            Some(other) if format!("{other:?}") != format!("{value:?}") => {
                found.push(format!("{what} of {name} differ: {value:?} and {other:?}"));
            }
            Some(_) => {}
        }
    }
    found.extend(b.keys().filter(|name| !a.contains_key(*name)).map(|name| format!("{what} of {name}: only in the second")));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn order_and_types_count_in_options_and_indexes() {
        let with = |options: Document, index: Document| Snapshot {
            hashes: BTreeMap::new(),
            options: [("c".to_owned(), options)].into(),
            indexes: [("c".to_owned(), [("i".to_owned(), index)].into())].into(),
        };
        let same = with(doc! {"validator": {"a": 1, "b": 2}}, doc! {"key": {"x": 1, "y": 1}});
        assert_eq!(same.differences(&same.clone()), Vec::<String>::new());
        let options = with(doc! {"validator": {"b": 2, "a": 1}}, doc! {"key": {"x": 1, "y": 1}});
        let key = with(doc! {"validator": {"a": 1, "b": 2}}, doc! {"key": {"y": 1, "x": 1}});
        let types = with(doc! {"validator": {"a": 1_i64, "b": 2}}, doc! {"key": {"x": 1, "y": 1}});
        for (other, says) in [(options, "options"), (key, "indexes"), (types, "options")] {
            let found = same.differences(&other);
            assert!(found.len() == 1 && found[0].starts_with(says), "{found:?}");
        }
    }
}
