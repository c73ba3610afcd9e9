//! Owns: listing a live database into a [`Catalogue`], and the proof that it was empty.
//! Does not own: what changes it later (`apply`).

use std::collections::HashMap;

use bson::{Bson, Document, doc};
use mongodb::options::{ReadPreference, SelectionCriteria};
use mongodb::{ClientSession, Database};

use super::{Catalogue, Collection, Kind, Uuid, View, index_name, kind_of_name};
use crate::branch::server::{self, COLLECTION_UUID_MISMATCH, NAMESPACE_NOT_FOUND};
use crate::change::{ClusterTime, MARKER, uuid_of_bson};
use crate::fault::{Fault, Result};

/// Entries per reply; also what a reply is checked against.
const PAGE: i32 = 1_000;
/// More collections than a mongod can serve.
const MAX_ENTRIES: usize = 1_000_000;

/// How long a read waits for a majority of members.
const MAJORITY_WAIT_MS: i32 = 30_000;
/// Listings of a database that is being changed under the reader; more mean that the collections never rest.
const MAX_LISTINGS: u32 = 20;

/// Lists collections, options, indexes and views. The time is the server's after the last read: everything that happened later
/// is in the stream after it, and what happened before may be in the listing or not, so folding is tolerant up to it (correctness.md 10).
pub async fn read_catalogue(db: &Database) -> Result<(Catalogue, ClusterTime)> {
    let mut lister = Lister::new(db).await?;
    let catalogue = lister.catalogue().await?;
    lister.finish(catalogue).await
}

/// As [`read_catalogue`], at the start of a capture; also whether the database has documents, which then have to be copied. `token_time` is that of the
/// resume token that history starts at.
///
/// SUBTLE: a document is either in the stream after the token or seen here, else it is in neither and lost without a word. So the look at documents is
/// on the primary, at a majority of members, causally after everything that the token leaves out: a secondary may lag, and a stream opens
/// behind writes that no majority has yet.
pub async fn read_first_catalogue(db: &Database, token_time: ClusterTime) -> Result<(Catalogue, ClusterTime, bool)> {
    let mut lister = Lister::new(db).await?;
    for _ in 0..MAX_LISTINGS {
        let catalogue = lister.catalogue().await?;
        if let Some(documents) = lister.has_documents(&catalogue, token_time).await? {
            let (catalogue, time) = lister.finish(catalogue).await?;
            return Ok((catalogue, time, documents));
        }
    }
    Err(Fault::transient(format!("collections of {} are dropped or renamed all the time: start again when they rest", db.name())))
}

/// Whether a collection belongs to the database and not to the server: of `system.*` only what is replicated and holds documents of users.
fn is_listed(name: &str) -> bool {
    name != MARKER && !name.starts_with("system.") || name == "system.js" || name.starts_with("system.buckets.")
}

/// One entry of `listCollections`.
struct Listed {
    name: String,
    kind: Kind,
    options: Document,
    uuid: Option<Uuid>,
}

impl Listed {
    fn parse(mut entry: Document) -> Result<Self> {
        let bad = |what: &str| Fault::rejected(format!("listCollections: an entry has no {what}; is this a MongoDB server?"));
        let name = entry.get_str("name").map_err(|_| bad("name"))?.to_owned();
        let kind = match entry.get_str("type") {
            Ok("view") => Kind::View,
            Ok("timeseries") => Kind::Timeseries,
            _ => Kind::Collection,
        };
        let uuid = entry.get_document("info").ok().and_then(|info| info.get("uuid")).and_then(uuid_of_bson);
        let options = match entry.remove("options") {
            Some(Bson::Document(options)) => options,
            _ => Document::new(),
        };
        if kind == Kind::Collection && uuid.is_none() {
            return Err(bad(&format!("uuid (collection {name:?})")));
        }
        Ok(Self { name, kind, options, uuid })
    }
}

/// Runs listing commands in one session (a cursor belongs to the session that opened it) and keeps the greatest operation time.
struct Lister<'a> {
    db: &'a Database,
    session: ClientSession,
    time: ClusterTime,
}

impl<'a> Lister<'a> {
    async fn new(db: &'a Database) -> Result<Self> {
        let session = db.client().start_session().await.map_err(|e| server::fault("open a session", &e))?;
        Ok(Self { db, session, time: ClusterTime::default() })
    }

    async fn catalogue(&mut self) -> Result<Catalogue> {
        let mut catalogue = Catalogue::default();
        for listed in self.listing().await? {
            match (listed.kind, listed.uuid) {
                (Kind::Collection, Some(uuid)) => {
                    let kind = kind_of_name(&listed.name);
                    let indexes = Vec::new();
                    catalogue.collections.insert(uuid, Collection { name: listed.name, uuid, kind, options: listed.options, indexes });
                }
                (kind, _) => {
                    catalogue.views.insert(listed.name.clone(), View { name: listed.name, kind, options: listed.options });
                }
            }
        }
        self.read_indexes(&mut catalogue).await?;
        Ok(catalogue)
    }

    /// SUBTLE: `listIndexes` by UUID wants a right (`useUUID`) that neither `read` nor `readWrite` has, so it goes by name, and whose indexes those
    /// are is what the listings before and after agree on. A collection that was renamed meanwhile is asked for again under its new name, one that
    /// is gone is left out, and one that is new is in the stream.
    async fn read_indexes(&mut self, catalogue: &mut Catalogue) -> Result<()> {
        let mut open: Vec<(Uuid, String)> = catalogue.collections.values().map(|c| (c.uuid, c.name.clone())).collect();
        for _ in 0..MAX_LISTINGS {
            if open.is_empty() {
                return Ok(());
            }
            let mut read = Vec::with_capacity(open.len());
            for (uuid, name) in open.drain(..) {
                let indexes = self.indexes(&name).await?;
                read.push((uuid, name, indexes));
            }
            let now: HashMap<Uuid, String> = self.listing().await?.into_iter().filter_map(|l| Some((l.uuid?, l.name))).collect();
            for (uuid, name, indexes) in read {
                match (now.get(&uuid), indexes, catalogue.collections.get_mut(&uuid)) {
                    (Some(still), Some(indexes), Some(collection)) if *still == name => collection.indexes = indexes,
                    (Some(renamed), ..) => open.push((uuid, renamed.clone())),
                    (None, ..) => {
                        catalogue.collections.remove(&uuid);
                    }
                }
            }
        }
        Err(Fault::transient(format!("collections of {} are renamed all the time: start again when they rest", self.db.name())))
    }

    /// Collections and views, without those that belong to the server.
    async fn listing(&mut self) -> Result<Vec<Listed>> {
        let entries = self.all(doc! {"listCollections": 1, "cursor": {"batchSize": PAGE}}).await?.unwrap_or_default();
        let listed = entries.into_iter().map(Listed::parse).collect::<Result<Vec<Listed>>>()?;
        Ok(listed.into_iter().filter(|listed| is_listed(&listed.name)).collect())
    }

    /// Asks for the time once more, at the very end: a collection that was gone when its turn came answered without one.
    async fn finish(mut self, mut catalogue: Catalogue) -> Result<(Catalogue, ClusterTime)> {
        self.run(doc! {"ping": 1}).await.map_err(|e| server::fault("ping", &e))?;
        catalogue.listed_at = self.time;
        Ok((catalogue, self.time))
    }

    /// Whether a collection that is restored has a document; `None` when one has been dropped or renamed since it was listed.
    async fn has_documents(&mut self, catalogue: &Catalogue, token_time: ClusterTime) -> Result<Option<bool>> {
        // Exclusive: the token leaves out what is before its time.
        let concern = doc! {"level": "majority", "afterClusterTime": bson::Timestamp::from(token_time.before())};
        for collection in catalogue.collections.values().filter(|c| c.kind == Kind::Collection) {
            let uuid = bson::Binary { subtype: bson::spec::BinarySubtype::Uuid, bytes: collection.uuid.to_vec() };
            let find = doc! {
                "find": &collection.name, "projection": {"_id": 1}, "limit": 1, "singleBatch": true, "collectionUUID": uuid, "readConcern": concern.clone(),
                "maxTimeMS": MAJORITY_WAIT_MS,
            };
            let reply = match self.run(find).await {
                Ok(reply) => reply,
                Err(e) if server::code(&e) == Some(COLLECTION_UUID_MISMATCH) => return Ok(None),
                Err(e) => return Err(server::fault(&format!("reading collection {:?}", collection.name), &e)),
            };
            if reply.get_document("cursor").and_then(|c| c.get_array("firstBatch")).is_ok_and(|batch| !batch.is_empty()) {
                return Ok(Some(true));
            }
        }
        Ok(Some(false))
    }

    /// On the primary, whatever the URI prefers: a secondary may lag behind the token.
    async fn run(&mut self, command: Document) -> Result<Document, mongodb::error::Error> {
        let primary = SelectionCriteria::ReadPreference(ReadPreference::Primary);
        let reply = self.db.run_command(command).selection_criteria(primary).session(&mut self.session).await?;
        if let Ok(time) = reply.get_timestamp("operationTime") {
            self.time = self.time.max(time.into());
        }
        Ok(reply)
    }

    /// All entries of a listing, page by page; `None` when the namespace is gone.
    async fn all(&mut self, command: Document) -> Result<Option<Vec<Document>>> {
        let name = command.keys().next().cloned().unwrap_or_default();
        let mut entries = Vec::new();
        let mut next = command;
        loop {
            let mut reply = match self.run(next).await {
                Ok(reply) => reply,
                Err(e) if server::code(&e) == Some(NAMESPACE_NOT_FOUND) => return Ok(None),
                Err(e) => return Err(server::fault(&name, &e)),
            };
            let Some(Bson::Document(mut cursor)) = reply.remove("cursor") else {
                return Err(Fault::rejected(format!("{name}: the reply has no cursor")));
            };
            let batch = cursor.remove("firstBatch").or_else(|| cursor.remove("nextBatch"));
            let Some(Bson::Array(batch)) = batch else { return Err(Fault::rejected(format!("{name}: the reply has no batch"))) };
            entries.extend(batch.into_iter().filter_map(|entry| if let Bson::Document(entry) = entry { Some(entry) } else { None }));
            if entries.len() > MAX_ENTRIES {
                return Err(Fault::rejected(format!("{name}: more than {MAX_ENTRIES} entries")));
            }
            let id = cursor.get_i64("id").unwrap_or(0);
            if id == 0 {
                return Ok(Some(entries));
            }
            let ns = cursor.get_str("ns").unwrap_or_default();
            let coll = ns.split_once('.').map_or("", |(_, coll)| coll).to_owned();
            next = doc! {"getMore": id, "collection": coll, "batchSize": PAGE};
        }
    }

    /// `None` when there is no such collection.
    async fn indexes(&mut self, name: &str) -> Result<Option<Vec<Document>>> {
        if name.starts_with("system.buckets.") {
            return Ok(Some(Vec::new())); // recorded, not restored
        }
        let command = doc! {"listIndexes": name, "includeBuildUUIDs": true, "cursor": {"batchSize": PAGE}};
        let Some(specs) = self.all(command).await.map_err(|f| f.at(format!("indexes of {name:?}")))? else { return Ok(None) };
        let wanted = |spec: &Document| {
            // Builds in progress come as {spec, buildUUID}; their createIndexes event comes when they are done.
            !spec.contains_key("buildUUID") && index_name(spec) != "_id_" && !spec.get_bool("clustered").unwrap_or(false)
        };
        Ok(Some(specs.into_iter().filter(wanted).collect()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_server_keeps_for_itself_is_not_listed() {
        for (name, listed) in [("orders", true), ("system.js", true), ("system.buckets.t", true), ("systematic", true)] {
            assert_eq!(is_listed(name), listed, "{name}");
        }
        for name in ["system.profile", "system.views"] {
            assert!(!is_listed(name), "{name}");
        }
    }
}
