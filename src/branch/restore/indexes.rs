//! Owns: turning catalogue entries into commands that make the same collection and indexes again.
//! Does not own: running a restore (`restore`).

use bson::{Document, doc};
use mongodb::Database;

use crate::branch::catalogue::Collection;
use crate::branch::server;
use crate::fault::Result;

/// What `create` gets. A clustered collection's expiry is set at the end, else documents vanish while they are written.
pub(super) fn create_options(collection: &Collection) -> Document {
    let mut options = collection.options.clone();
    options.remove("expireAfterSeconds");
    options
}

/// Indexes in order of creation, as `createIndexes` takes them.
pub(super) fn specs(collection: &Collection, no_ttl: bool) -> Vec<Document> {
    let collated = collection.options.contains_key("collation");
    let spec = |known: &Document| {
        let mut spec = known.clone();
        spec.remove("ns"); // written by servers before 4.4
        if no_ttl {
            spec.remove("expireAfterSeconds");
        }
        // The server shows an index with simple collation without one, but would give it the collection's when it is made.
        if collated && !spec.contains_key("collation") {
            spec.insert("collation", doc! {"locale": "simple"});
        }
        spec
    };
    collection.indexes.iter().map(spec).collect()
}

/// `collection.index` for every index that expires documents, `collection` for a clustered one.
pub(super) fn ttl_names(collections: &[Collection]) -> Vec<String> {
    let mut names = Vec::new();
    for collection in collections {
        if collection.options.contains_key("expireAfterSeconds") {
            names.push(collection.name.clone());
        }
        let ttl = collection.indexes.iter().filter(|spec| spec.contains_key("expireAfterSeconds"));
        names.extend(ttl.map(|spec| format!("{}.{}", collection.name, spec.get_str("name").unwrap_or("?"))));
    }
    names
}

/// All indexes of a collection in one build, after its documents: one pass over the data, and unique and TTL indexes see the final state only.
pub(super) async fn build(target: &Database, collection: &Collection, no_ttl: bool) -> Result<()> {
    let name = &collection.name;
    let specs = specs(collection, no_ttl);
    if !specs.is_empty() {
        let command = doc! {"createIndexes": name, "indexes": specs, "writeConcern": {"w": "majority"}};
        target.run_command(command).await.map_err(|e| server::fault(&format!("build the indexes of {name:?}"), &e))?;
    }
    if no_ttl { Ok(()) } else { expire_clustered(target, collection).await }
}

/// Lets documents expire that were restored without it.
pub(super) async fn expire(target: &Database, collection: &Collection) -> Result<()> {
    for spec in &collection.indexes {
        if let (Some(seconds), Ok(index)) = (spec.get("expireAfterSeconds"), spec.get_str("name")) {
            let index = doc! {"name": index, "expireAfterSeconds": seconds.clone()};
            modify(target, &collection.name, doc! {"index": index}).await?;
        }
    }
    expire_clustered(target, collection).await
}

async fn expire_clustered(target: &Database, collection: &Collection) -> Result<()> {
    match collection.options.get("expireAfterSeconds") {
        Some(seconds) => modify(target, &collection.name, doc! {"expireAfterSeconds": seconds.clone()}).await,
        None => Ok(()),
    }
}

async fn modify(target: &Database, name: &str, what: Document) -> Result<()> {
    let mut command = doc! {"collMod": name, "writeConcern": {"w": "majority"}};
    command.extend(what);
    let outcome = target.run_command(command).await;
    outcome.map(|_| ()).map_err(|e| server::fault(&format!("set the expiry of {name:?}"), &e))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::branch::catalogue::Kind;

    fn collection(options: Document, indexes: Vec<Document>) -> Collection {
        Collection { name: "c".into(), uuid: [1; 16], kind: Kind::Collection, options, indexes }
    }

    #[test]
    fn rule_16_a_simple_index_in_a_collated_collection_is_asked_for_as_simple() {
        let indexes = vec![doc! {"key": {"a": 1}, "name": "a"}, doc! {"key": {"b": 1}, "name": "b", "collation": {"locale": "de"}}];
        let made = specs(&collection(doc! {"collation": {"locale": "de"}}, indexes.clone()), false);
        assert_eq!(made[0], doc! {"key": {"a": 1}, "name": "a", "collation": {"locale": "simple"}});
        assert_eq!(made[1], indexes[1]);
        assert_eq!(specs(&collection(doc! {}, indexes.clone()), false), indexes);
    }

    #[test]
    fn ttl_is_named_and_can_be_left_out() {
        let ttl = collection(doc! {"expireAfterSeconds": 5}, vec![doc! {"key": {"t": 1}, "name": "t", "expireAfterSeconds": 9}]);
        assert_eq!(ttl_names(std::slice::from_ref(&ttl)), ["c", "c.t"]);
        assert_eq!(specs(&ttl, true), [doc! {"key": {"t": 1}, "name": "t"}]);
        assert!(create_options(&ttl).is_empty());
    }
}
