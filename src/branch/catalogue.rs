//! Owns: the catalogue of a database (collections by UUID, views by name) and how DDL events change it. Pure but for `read`.
//! Does not own: documents (`fold` follows them by the same UUID), creating what a catalogue says (`restore`).
//!
//! What the server sends was tried on mongod 6.0.5: `create` carries all options and the `_id` index; a view's `create` and
//! `modify` carry its whole definition and no UUID; `dropDatabase` is preceded by drops of collections but not of views;
//! a rename over a target names the lost collection in `operationDescription.dropTarget`; a rename into another database is a plain drop here.

mod modify;
mod read;

use std::collections::BTreeMap;

use bson::{Document, RawBsonRef, RawDocument};
use serde::{Deserialize, Serialize};

pub use read::{read_catalogue, read_empty_catalogue};

use crate::change::ClusterTime;
use crate::fault::{Fault, Result};

/// A collection's UUID as the server gives it.
pub type Uuid = [u8; 16];

/// What a name stands for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Kind {
    Collection,
    View,
    /// The view of a time-series collection, or its `system.buckets.` collection: recorded, not restored.
    Timeseries,
}

/// A collection.
#[derive(Debug, Clone, PartialEq)]
pub struct Collection {
    pub name: String,
    pub uuid: Uuid,
    pub kind: Kind,
    /// As `listCollections` shows them, which is also what `create` takes.
    pub options: Document,
    /// As `listIndexes` shows them, in order of creation, without `_id_` and without the entry of a clustered index.
    pub indexes: Vec<Document>,
}

impl Collection {
    /// Whether documents must be written in the order in which they were inserted.
    pub fn is_capped(&self) -> bool {
        self.options.get_bool("capped").unwrap_or(false)
    }
}

/// A view, or the view part of a time-series collection.
#[derive(Debug, Clone, PartialEq)]
pub struct View {
    pub name: String,
    pub kind: Kind,
    /// `viewOn`, `pipeline`, `collation`.
    pub options: Document,
}

/// Everything a database holds besides documents.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Catalogue {
    pub collections: BTreeMap<Uuid, Collection>,
    pub views: BTreeMap<String, View>,
    /// Events up to this time may be in the listing already: they are applied tolerantly, later ones strictly.
    pub listed_at: ClusterTime,
}

/// What an event does to documents.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Effect {
    /// Nothing: documents follow the UUID.
    None,
    /// The documents of these collections are gone.
    Dropped(Vec<Uuid>),
    /// An event that this version does not understand, and why; it is in history whole.
    Unrecognised(String),
}

/// Prefix of the collection below a time-series view.
const BUCKETS: &str = "system.buckets.";

impl Catalogue {
    /// The collection of this name, views excluded.
    pub fn collection_named(&self, name: &str) -> Option<&Collection> {
        self.collections.values().find(|c| c.name == name)
    }

    /// Applies a DDL event: the stored event, which is the server's without `_id`.
    pub fn apply(&mut self, event: &RawDocument) -> Result<Effect> {
        let event = Ddl::parse(event)?;
        let tolerant = event.time <= self.listed_at;
        match event.kind {
            "create" => self.create(&event, tolerant),
            "createIndexes" => self.create_indexes(&event, tolerant),
            "dropIndexes" => self.drop_indexes(&event, tolerant),
            "modify" => modify::modify(self, &event, tolerant),
            "rename" => self.rename(&event, tolerant),
            "drop" => self.drop(&event, tolerant),
            "dropDatabase" => {
                self.views.clear();
                Ok(Effect::Dropped(std::mem::take(&mut self.collections).into_keys().collect()))
            }
            // The stream ends here and is opened again after it; the catalogue has changed before.
            "invalidate" => Ok(Effect::None),
            other => Ok(Effect::Unrecognised(format!("event of unknown type {other:?}"))),
        }
    }

    fn create(&mut self, event: &Ddl<'_>, tolerant: bool) -> Result<Effect> {
        let mut options = event.description()?;
        let Some(uuid) = event.uuid else {
            let kind = if options.get_str("viewOn").is_ok_and(|on| on.starts_with(BUCKETS)) { Kind::Timeseries } else { Kind::View };
            self.views.insert(event.coll.to_owned(), View { name: event.coll.to_owned(), kind, options });
            return Ok(Effect::None);
        };
        if self.collections.contains_key(&uuid) {
            return if tolerant { Ok(Effect::None) } else { Err(event.corrupt("creates a collection that exists")) };
        }
        if !tolerant && self.collection_named(event.coll).is_some() {
            return Err(event.corrupt("creates a collection under a name that is taken"));
        }
        options.remove("idIndex");
        let kind = kind_of_name(event.coll);
        self.collections.insert(uuid, Collection { name: event.coll.to_owned(), uuid, kind, options, indexes: Vec::new() });
        Ok(Effect::None)
    }

    fn create_indexes(&mut self, event: &Ddl<'_>, tolerant: bool) -> Result<Effect> {
        let specs = event.index_specs()?;
        let Some(collection) = self.find(event, tolerant)? else { return Ok(Effect::None) };
        for spec in specs {
            let name = index_name(&spec);
            if name == "_id_" {
                continue;
            }
            match collection.indexes.iter_mut().find(|known| index_name(known) == name) {
                Some(known) => *known = spec,
                None => collection.indexes.push(spec),
            }
        }
        Ok(Effect::None)
    }

    fn drop_indexes(&mut self, event: &Ddl<'_>, tolerant: bool) -> Result<Effect> {
        let specs = event.index_specs()?;
        let Some(collection) = self.find(event, tolerant)? else { return Ok(Effect::None) };
        for spec in specs {
            let before = collection.indexes.len();
            collection.indexes.retain(|known| index_name(known) != index_name(&spec));
            if before == collection.indexes.len() && !tolerant {
                return Err(event.corrupt(&format!("drops index {:?} that does not exist", index_name(&spec))));
            }
        }
        Ok(Effect::None)
    }

    fn rename(&mut self, event: &Ddl<'_>, tolerant: bool) -> Result<Effect> {
        let description = event.description()?;
        let to = description.get_document("to").and_then(|to| to.get_str("coll")).map_err(|_| event.corrupt("has no target name"))?;
        let lost = description.get("dropTarget").and_then(uuid_of_bson);
        let mut dropped = Vec::new();
        if let Some(lost) = lost {
            if self.collections.remove(&lost).is_none() && !tolerant {
                return Err(event.corrupt("replaces a collection that does not exist"));
            }
            dropped.push(lost);
        }
        let to = to.to_owned();
        if let Some(collection) = self.find(event, tolerant)? {
            collection.kind = kind_of_name(&to);
            collection.name = to;
            // `$out` and others write into a temporary collection and rename it: left set, the server would drop it at its next start.
            collection.options.remove("temp");
        }
        Ok(if dropped.is_empty() { Effect::None } else { Effect::Dropped(dropped) })
    }

    fn drop(&mut self, event: &Ddl<'_>, tolerant: bool) -> Result<Effect> {
        let Some(uuid) = event.uuid else {
            if self.views.remove(event.coll).is_none() && !tolerant {
                return Err(event.corrupt("drops a view that does not exist"));
            }
            return Ok(Effect::None);
        };
        if self.collections.remove(&uuid).is_none() && !tolerant {
            return Err(event.corrupt("drops a collection that does not exist"));
        }
        Ok(Effect::Dropped(vec![uuid]))
    }

    /// The event's collection; `None` when it is unknown and may be.
    fn find(&mut self, event: &Ddl<'_>, tolerant: bool) -> Result<Option<&mut Collection>> {
        let found = event.uuid.and_then(|uuid| self.collections.get_mut(&uuid));
        if found.is_none() && !tolerant {
            return Err(event.corrupt("is about a collection that does not exist"));
        }
        Ok(found)
    }
}

/// The parts of a DDL event.
struct Ddl<'a> {
    kind: &'a str,
    coll: &'a str,
    uuid: Option<Uuid>,
    time: ClusterTime,
    description: Option<&'a RawDocument>,
}

impl<'a> Ddl<'a> {
    fn parse(event: &'a RawDocument) -> Result<Self> {
        let mut ddl = Self { kind: "", coll: "", uuid: None, time: ClusterTime::default(), description: None };
        for element in event {
            let (name, value) = element.map_err(|e| Fault::corrupt(format!("stored event is not BSON: {e}")))?;
            match (name.as_str(), value) {
                ("operationType", RawBsonRef::String(kind)) => ddl.kind = kind,
                ("ns", RawBsonRef::Document(ns)) => ddl.coll = ns.get_str("coll").unwrap_or(""),
                ("collectionUUID", RawBsonRef::Binary(binary)) => ddl.uuid = binary.bytes.try_into().ok(),
                ("clusterTime", RawBsonRef::Timestamp(time)) => ddl.time = time.into(),
                ("operationDescription", RawBsonRef::Document(description)) => ddl.description = Some(description),
                _ => {}
            }
        }
        if ddl.kind.is_empty() { Err(Fault::corrupt("stored event has no operationType")) } else { Ok(ddl) }
    }

    fn description(&self) -> Result<Document> {
        let Some(description) = self.description else { return Err(self.corrupt("has no operationDescription")) };
        Document::try_from(description).map_err(|e| self.corrupt(&format!("has a damaged operationDescription: {e}")))
    }

    fn index_specs(&self) -> Result<Vec<Document>> {
        let mut description = self.description()?;
        let Some(bson::Bson::Array(specs)) = description.remove("indexes") else { return Err(self.corrupt("names no indexes")) };
        specs
            .into_iter()
            .map(|spec| match spec {
                bson::Bson::Document(spec) if !index_name(&spec).is_empty() => Ok(spec),
                _ => Err(self.corrupt("has an index without a name")),
            })
            .collect()
    }

    fn corrupt(&self, what: &str) -> Fault {
        Fault::corrupt(format!("{} event of collection {:?} at {} {what}", self.kind, self.coll, self.time))
    }
}

fn index_name(spec: &Document) -> &str {
    spec.get_str("name").unwrap_or("")
}

fn uuid_of_bson(value: &bson::Bson) -> Option<Uuid> {
    match value {
        bson::Bson::Binary(binary) => binary.bytes.as_slice().try_into().ok(),
        _ => None,
    }
}

fn kind_of_name(name: &str) -> Kind {
    if name.starts_with(BUCKETS) { Kind::Timeseries } else { Kind::Collection }
}

#[cfg(test)]
mod tests;
