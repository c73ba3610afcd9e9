//! Owns: the catalogue of a database (collections by UUID, views by name) and how DDL events change it. Pure but for `read`.
//! Does not own: which events there are and what is in them (`change`), documents (`fold` follows them by the same UUID), creating what a
//! catalogue says (`restore`).
//!
//! What the server sends was tried on mongod 6.0.5: `create` carries all options and the `_id` index; a view's `create` and
//! `modify` carry its whole definition and no UUID; `dropDatabase` is preceded by drops of collections but not of views;
//! a rename over a target names the lost collection in `operationDescription.dropTarget`; a rename into another database is a plain drop here.

mod differ;
mod modify;
mod read;

use std::collections::BTreeMap;

use bson::{Document, RawDocument};
use serde::{Deserialize, Serialize};

pub use differ::differ;
pub use read::{read_catalogue, read_first_catalogue};

use crate::change::{BUCKETS, ClusterTime, Ddl, DdlEvent, Observed, is_on_buckets, parse_ddl};
use crate::fault::{Fault, Result};
use crate::ledger::Selection;

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
    /// These collections go on under other UUIDs (old, new); the documents of others are gone.
    Moved { moved: Vec<(Uuid, Uuid)>, dropped: Vec<Uuid> },
    /// An event that this version does not understand, and why; it is in history whole.
    Unrecognised(String),
}

impl Catalogue {
    /// Without what is not captured.
    pub fn retain(&mut self, selection: &Selection) {
        self.collections.retain(|_, c| selection.takes(&c.name));
        self.views.retain(|name, _| selection.takes(name));
    }

    /// The collection of this name, views excluded.
    pub fn collection_named(&self, name: &str) -> Option<&Collection> {
        self.collections.values().find(|c| c.name == name)
    }

    /// Applies a DDL event: the stored event, which is the server's without `_id`.
    pub fn apply(&mut self, event: &RawDocument) -> Result<Effect> {
        let (event, ddl) = match parse_ddl(event) {
            Ok(known) => known,
            Err(why) => return Ok(Effect::Unrecognised(why)),
        };
        let tolerant = event.time <= self.listed_at;
        match ddl {
            Ddl::Nothing => Ok(Effect::None),
            Ddl::Create(options) => self.create(&event, options, tolerant),
            Ddl::CreateIndexes(specs) => self.create_indexes(&event, specs, tolerant),
            Ddl::DropIndexes(specs) => self.drop_indexes(&event, &specs, tolerant),
            Ddl::Modify(changes) => modify::modify(self, &event, changes, tolerant),
            Ddl::ModifyView(options) => self.modify_view(&event, options, tolerant),
            Ddl::Rename { to, lost } => self.rename(&event, to, lost, tolerant),
            Ddl::Drop => self.drop(&event, tolerant),
            Ddl::DropDatabase => {
                self.views.clear();
                Ok(Effect::Dropped(std::mem::take(&mut self.collections).into_keys().collect()))
            }
            Ddl::Observed(observed) => Ok(self.observe(observed)),
        }
    }

    /// What was seen counts, whatever history says.
    fn observe(&mut self, seen: Observed) -> Effect {
        let mut before = std::mem::take(&mut self.collections);
        if seen.whole {
            self.views.clear();
        } else {
            self.collections = std::mem::take(&mut before);
        }
        let mut moved = Vec::new();
        for c in seen.collections {
            if let Some(from) = c.from {
                before.remove(&from);
                self.collections.remove(&from);
                moved.push((from, c.uuid));
            }
            before.remove(&c.uuid);
            let kind = kind_of_name(&c.name);
            self.collections.insert(c.uuid, Collection { name: c.name, uuid: c.uuid, kind, options: c.options, indexes: c.indexes });
        }
        for (name, options) in seen.views {
            let kind = if is_on_buckets(&options) { Kind::Timeseries } else { Kind::View };
            self.views.insert(name.clone(), View { name, kind, options });
        }
        let mut dropped: Vec<Uuid> = before.into_keys().collect();
        dropped.extend(seen.dropped.into_iter().filter(|uuid| self.collections.remove(uuid).is_some()));
        for name in seen.dropped_views {
            self.views.remove(&name);
        }
        if seen.whole {
            self.listed_at = seen.listed_at; // perhaps of another source, whose clock may be behind
        }
        Effect::Moved { moved, dropped }
    }

    fn create(&mut self, event: &DdlEvent<'_>, mut options: Document, tolerant: bool) -> Result<Effect> {
        let Some(uuid) = event.uuid else {
            let kind = if is_on_buckets(&options) { Kind::Timeseries } else { Kind::View };
            self.views.insert(event.coll.to_owned(), View { name: event.coll.to_owned(), kind, options });
            return Ok(Effect::None);
        };
        if self.collections.contains_key(&uuid) {
            return if tolerant { Ok(Effect::None) } else { Err(misfit(event, "creates a collection that exists")) };
        }
        if !tolerant && self.collection_named(event.coll).is_some() {
            return Err(misfit(event, "creates a collection under a name that is taken"));
        }
        options.remove("idIndex");
        let kind = kind_of_name(event.coll);
        self.collections.insert(uuid, Collection { name: event.coll.to_owned(), uuid, kind, options, indexes: Vec::new() });
        Ok(Effect::None)
    }

    fn create_indexes(&mut self, event: &DdlEvent<'_>, specs: Vec<Document>, tolerant: bool) -> Result<Effect> {
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

    fn drop_indexes(&mut self, event: &DdlEvent<'_>, specs: &[Document], tolerant: bool) -> Result<Effect> {
        let Some(collection) = self.find(event, tolerant)? else { return Ok(Effect::None) };
        for spec in specs {
            let before = collection.indexes.len();
            collection.indexes.retain(|known| index_name(known) != index_name(spec));
            if before == collection.indexes.len() && !tolerant {
                return Err(misfit(event, &format!("drops index {:?} that does not exist", index_name(spec))));
            }
        }
        Ok(Effect::None)
    }

    /// A view's event carries the whole new definition.
    fn modify_view(&mut self, event: &DdlEvent<'_>, options: Document, tolerant: bool) -> Result<Effect> {
        let kind = match self.views.get(event.coll) {
            Some(view) => view.kind,
            None if tolerant => Kind::View,
            None => return Err(misfit(event, "is about a view that does not exist")),
        };
        self.views.insert(event.coll.to_owned(), View { name: event.coll.to_owned(), kind, options });
        Ok(Effect::None)
    }

    fn rename(&mut self, event: &DdlEvent<'_>, to: String, lost: Option<Uuid>, tolerant: bool) -> Result<Effect> {
        let mut dropped = Vec::new();
        if let Some(lost) = lost {
            if self.collections.remove(&lost).is_none() && !tolerant {
                return Err(misfit(event, "replaces a collection that does not exist"));
            }
            dropped.push(lost);
        }
        if let Some(collection) = self.find(event, tolerant)? {
            collection.kind = kind_of_name(&to);
            collection.name = to;
            // `$out` and others write into a temporary collection and rename it: left set, the server would drop it at its next start.
            collection.options.remove("temp");
        }
        Ok(if dropped.is_empty() { Effect::None } else { Effect::Dropped(dropped) })
    }

    fn drop(&mut self, event: &DdlEvent<'_>, tolerant: bool) -> Result<Effect> {
        let Some(uuid) = event.uuid else {
            if self.views.remove(event.coll).is_none() && !tolerant {
                return Err(misfit(event, "drops a view that does not exist"));
            }
            return Ok(Effect::None);
        };
        if self.collections.remove(&uuid).is_none() && !tolerant {
            return Err(misfit(event, "drops a collection that does not exist"));
        }
        Ok(Effect::Dropped(vec![uuid]))
    }

    /// The event's collection; `None` when it is unknown and may be.
    fn find(&mut self, event: &DdlEvent<'_>, tolerant: bool) -> Result<Option<&mut Collection>> {
        let found = event.uuid.and_then(|uuid| self.collections.get_mut(&uuid));
        if found.is_none() && !tolerant {
            return Err(misfit(event, "is about a collection that does not exist"));
        }
        Ok(found)
    }
}

/// An event that can be applied, but not to this catalogue.
fn misfit(event: &DdlEvent<'_>, what: &str) -> Fault {
    Fault::corrupt(format!("{} event of collection {:?} at {} {what}", event.op_type, event.coll, event.time))
}

fn index_name(spec: &Document) -> &str {
    spec.get_str("name").unwrap_or("")
}

fn kind_of_name(name: &str) -> Kind {
    if name.starts_with(BUCKETS) { Kind::Timeseries } else { Kind::Collection }
}

#[cfg(test)]
mod tests;
