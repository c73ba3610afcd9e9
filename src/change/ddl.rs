//! Owns: the one list of events besides changes of documents that this version can apply: their types, and what `collMod` may change. Pure.
//! Does not own: applying them (`branch::catalogue`), counting those that cannot be (`segment`), telling of them (`capture`).
//!
//! SUBTLE: writer and reader of history ask here, so that what a restore would refuse is a hole in the index the moment it is written, and
//! nobody learns of it from the restore.

use bson::{Bson, Document, RawBsonRef, RawDocument};

use super::ClusterTime;

/// Prefix of the collection below a time-series view.
pub const BUCKETS: &str = "system.buckets.";
/// Where the server keeps the definitions of views.
const VIEWS: &str = "system.views";
/// Collection in a target database that exists while a restore into it is incomplete. Never a part of history.
pub const MARKER: &str = "argon_restore";
/// Type of the events that no server sends: what a comparison of catalogues has found, or a checkout has made ([`Ddl::Observed`]).
pub const OBSERVED: &str = "argonObserved";

/// Whether changes of documents in a collection are kept and never applied, whatever is in them: buckets, which are not restored, the mark of a restore, and
/// definitions of views. Newer servers show the latter beside the `create`, `modify` and `drop` of the view itself.
pub fn is_passed_over(coll: &str) -> bool {
    coll == VIEWS || coll == MARKER || coll.starts_with(BUCKETS)
}

/// Whether a view of these options is that of a time-series collection.
pub fn is_on_buckets(options: &Document) -> bool {
    options.get_str("viewOn").is_ok_and(|on| on.starts_with(BUCKETS))
}

/// Which event it is, for messages and for finding its collection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DdlEvent<'a> {
    /// `operationType`.
    pub op_type: &'a str,
    /// Empty for what is about the whole database.
    pub coll: &'a str,
    /// Absent for views.
    pub uuid: Option<[u8; 16]>,
    pub time: ClusterTime,
}

/// What it does.
#[derive(Debug, Clone, PartialEq)]
pub enum Ddl {
    /// Nothing to documents or catalogue: the steps of an index build before its `createIndexes`, the end of a transaction, `invalidate`, and
    /// whatever happens to `system.views`.
    Nothing,
    /// With all options; a view where the event has no UUID.
    Create(Document),
    /// Each has a name.
    CreateIndexes(Vec<Document>),
    /// Each has a name.
    DropIndexes(Vec<Document>),
    /// `collMod` of a collection.
    Modify(Vec<Modification>),
    /// `collMod` of a view: its whole new definition.
    ModifyView(Document),
    Rename {
        to: String,
        /// The collection that had the new name and is gone.
        lost: Option<[u8; 16]>,
    },
    Drop,
    DropDatabase,
    Observed(Observed),
}

/// How a catalogue was found to be.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Observed {
    pub collections: Vec<ObservedCollection>,
    /// Name, `viewOn`, `pipeline`, `collation`.
    pub views: Vec<(String, Document)>,
    pub dropped: Vec<[u8; 16]>,
    pub dropped_views: Vec<String>,
    /// There is nothing else.
    pub whole: bool,
    /// When: events up to this time may be in it already.
    pub listed_at: ClusterTime,
}

/// A collection as it was found.
#[derive(Debug, Clone, PartialEq)]
pub struct ObservedCollection {
    pub uuid: [u8; 16],
    /// Its UUID in history so far: a checkout made it again.
    pub from: Option<[u8; 16]>,
    pub name: String,
    pub options: Document,
    pub indexes: Vec<Document>,
}

impl Observed {
    /// The body of the row that keeps it.
    pub fn to_event(&self, db: &str, time: ClusterTime) -> Document {
        let uuid = |bytes: &[u8; 16]| Bson::Binary(bson::Binary { subtype: bson::spec::BinarySubtype::Uuid, bytes: bytes.to_vec() });
        let collections = self.collections.iter().map(|c| {
            let mut doc = bson::doc! {"name": &c.name, "uuid": uuid(&c.uuid)};
            if let Some(from) = &c.from {
                doc.insert("from", uuid(from));
            }
            doc.insert("options", c.options.clone());
            doc.insert("indexes", c.indexes.clone());
            doc
        });
        let views = self.views.iter().map(|(name, options)| bson::doc! {"name": name, "options": options.clone()});
        bson::doc! {
            "operationType": OBSERVED,
            "clusterTime": bson::Timestamp::from(time),
            "ns": {"db": db},
            "operationDescription": {
                "listedAt": bson::Timestamp::from(self.listed_at),
                "whole": self.whole,
                "collections": collections.collect::<Vec<_>>(),
                "views": views.collect::<Vec<_>>(),
                "dropped": self.dropped.iter().map(uuid).collect::<Vec<_>>(),
                "droppedViews": self.dropped_views.clone(),
            },
        }
    }

    /// Whether it says nothing.
    pub fn is_empty(&self) -> bool {
        self.collections.is_empty() && self.views.is_empty() && self.dropped.is_empty() && self.dropped_views.is_empty() && !self.whole
    }

    fn read(description: &Document) -> Option<Self> {
        let documents = |field| -> Option<Vec<&Document>> { description.get_array(field).ok()?.iter().map(Bson::as_document).collect() };
        let collection = |c: &Document| {
            let indexes: Option<Vec<Document>> = c.get_array("indexes").ok()?.iter().map(|i| i.as_document().cloned()).collect();
            Some(ObservedCollection {
                uuid: uuid_of_bson(c.get("uuid")?)?,
                from: c.get("from").and_then(uuid_of_bson),
                name: c.get_str("name").ok()?.to_owned(),
                options: c.get_document("options").ok()?.clone(),
                indexes: indexes?,
            })
        };
        let view = |v: &Document| Some((v.get_str("name").ok()?.to_owned(), v.get_document("options").ok()?.clone()));
        Some(Self {
            collections: documents("collections")?.into_iter().map(collection).collect::<Option<_>>()?,
            views: documents("views")?.into_iter().map(view).collect::<Option<_>>()?,
            dropped: description.get_array("dropped").ok()?.iter().map(uuid_of_bson).collect::<Option<_>>()?,
            dropped_views: description
                .get_array("droppedViews")
                .ok()?
                .iter()
                .map(|n| n.as_str().map(str::to_owned))
                .collect::<Option<_>>()?,
            whole: description.get_bool("whole").ok()?,
            listed_at: description.get_timestamp("listedAt").ok()?.into(),
        })
    }
}

/// One thing that `collMod` changes.
#[derive(Debug, Clone, PartialEq)]
pub enum Modification {
    /// Empty: none any more.
    Validator(Document),
    ValidationLevel(Bson),
    ValidationAction(Bson),
    ChangeStreamPreAndPostImages(Document),
    RecordPreImages(bool),
    /// `None`: off.
    ExpireAfterSeconds(Option<Bson>),
    CappedSize(i64),
    CappedMax(i64),
    /// Of buckets, which are recorded and not restored.
    Timeseries,
    Index {
        name: String,
        options: Vec<IndexOption>,
    },
}

/// What `collMod` changes of an index.
#[derive(Debug, Clone, PartialEq)]
pub enum IndexOption {
    ExpireAfterSeconds(Bson),
    Hidden(bool),
    PrepareUnique(bool),
    Unique(bool),
}

/// Reads the stored form of an event that is no data change. `Err` says why this version cannot apply it, whatever the state of the database.
pub fn parse_ddl(event: &RawDocument) -> Result<(DdlEvent<'_>, Ddl), String> {
    let (event, description) = read(event)?;
    let ddl = Description { of: event, description };
    let action = match event.op_type {
        "startIndexBuild" | "abortIndexBuild" | "endOfTransaction" | "invalidate" => Ddl::Nothing,
        "dropDatabase" => Ddl::DropDatabase,
        _ if event.coll == MARKER => Ddl::Nothing,
        OBSERVED => Ddl::Observed(Observed::read(&ddl.document()?).ok_or_else(|| ddl.bad("of a form that is not known"))?),
        "create" | "createIndexes" | "dropIndexes" | "modify" | "rename" | "drop" if event.coll == VIEWS => Ddl::Nothing,
        "create" => Ddl::Create(ddl.document()?),
        "createIndexes" => Ddl::CreateIndexes(ddl.indexes()?),
        "dropIndexes" => Ddl::DropIndexes(ddl.indexes()?),
        "modify" if event.uuid.is_none() => Ddl::ModifyView(ddl.document()?),
        "modify" => Ddl::Modify(ddl.modifications()?),
        "rename" => ddl.rename()?,
        "drop" => Ddl::Drop,
        other => return Err(format!("an event of unknown type {other:?}")),
    };
    Ok((event, action))
}

fn read(event: &RawDocument) -> Result<(DdlEvent<'_>, Option<&RawDocument>), String> {
    let mut read = DdlEvent { op_type: "", coll: "", uuid: None, time: ClusterTime::default() };
    let mut description = None;
    for element in event {
        let (name, value) = element.map_err(|e| format!("an event that is not BSON: {e}"))?;
        match (name.as_str(), value) {
            ("operationType", RawBsonRef::String(op_type)) => read.op_type = op_type,
            ("ns", RawBsonRef::Document(ns)) => read.coll = ns.get_str("coll").unwrap_or(""),
            ("collectionUUID", RawBsonRef::Binary(binary)) => read.uuid = binary.bytes.try_into().ok(),
            ("clusterTime", RawBsonRef::Timestamp(time)) => read.time = time.into(),
            ("operationDescription", RawBsonRef::Document(document)) => description = Some(document),
            _ => {}
        }
    }
    if read.op_type.is_empty() { Err("an event without operationType".into()) } else { Ok((read, description)) }
}

/// `operationDescription` and whose it is.
struct Description<'a> {
    of: DdlEvent<'a>,
    description: Option<&'a RawDocument>,
}

impl Description<'_> {
    fn bad(&self, what: &str) -> String {
        format!("a {} event of collection {:?} at {} {what}", self.of.op_type, self.of.coll, self.of.time)
    }

    fn document(&self) -> Result<Document, String> {
        let Some(description) = self.description else { return Err(self.bad("without operationDescription")) };
        Document::try_from(description).map_err(|e| self.bad(&format!("with a damaged operationDescription: {e}")))
    }

    fn indexes(&self) -> Result<Vec<Document>, String> {
        let mut description = self.document()?;
        let Some(Bson::Array(specs)) = description.remove("indexes") else { return Err(self.bad("that names no indexes")) };
        specs
            .into_iter()
            .map(|spec| match spec {
                Bson::Document(spec) if spec.get_str("name").is_ok_and(|name| !name.is_empty()) => Ok(spec),
                _ => Err(self.bad("with an index without a name")),
            })
            .collect()
    }

    fn rename(&self) -> Result<Ddl, String> {
        let description = self.document()?;
        let to = description.get_document("to").and_then(|to| to.get_str("coll")).map_err(|_| self.bad("without a target name"))?;
        let lost = description.get("dropTarget").and_then(uuid_of_bson);
        Ok(Ddl::Rename { to: to.to_owned(), lost })
    }

    fn modifications(&self) -> Result<Vec<Modification>, String> {
        let (mut all, mut unknown) = (Vec::new(), Vec::new());
        for (field, value) in self.document()? {
            match modification(&field, value) {
                Ok(change) => all.push(change),
                Err(names) => unknown.extend(names),
            }
        }
        if unknown.is_empty() { Ok(all) } else { Err(self.bad(&format!("with unknown fields {}", unknown.join(", ")))) }
    }
}

/// `Err` names what this version does not know.
fn modification(field: &str, value: Bson) -> Result<Modification, Vec<String>> {
    let unknown = || vec![field.to_owned()];
    Ok(match (field, value) {
        ("validator", Bson::Document(validator)) => Modification::Validator(validator),
        ("validationLevel", level) => Modification::ValidationLevel(level),
        ("validationAction", action) => Modification::ValidationAction(action),
        ("changeStreamPreAndPostImages", Bson::Document(images)) => Modification::ChangeStreamPreAndPostImages(images),
        ("recordPreImages", on) => Modification::RecordPreImages(truthy(&on)),
        ("expireAfterSeconds", Bson::String(off)) if off == "off" => Modification::ExpireAfterSeconds(None),
        ("expireAfterSeconds", seconds) => Modification::ExpireAfterSeconds(Some(seconds)),
        ("cappedSize", size) => Modification::CappedSize(integer(&size).ok_or_else(unknown)?),
        ("cappedMax", max) => Modification::CappedMax(integer(&max).ok_or_else(unknown)?),
        ("timeseries", _) => Modification::Timeseries,
        ("index", Bson::Document(index)) => index_modification(index)?,
        _ => return Err(unknown()),
    })
}

fn index_modification(change: Document) -> Result<Modification, Vec<String>> {
    let (mut name, mut options, mut unknown) = (None, Vec::new(), Vec::new());
    for (field, value) in change {
        match (field.as_str(), value) {
            ("name", Bson::String(of)) => name = Some(of),
            ("keyPattern", _) => {}
            ("expireAfterSeconds", seconds) => options.push(IndexOption::ExpireAfterSeconds(seconds)),
            ("hidden", on) => options.push(IndexOption::Hidden(truthy(&on))),
            ("prepareUnique", on) => options.push(IndexOption::PrepareUnique(truthy(&on))),
            ("unique", on) => options.push(IndexOption::Unique(truthy(&on))),
            _ => unknown.push(format!("index.{field}")),
        }
    }
    match name {
        Some(name) if unknown.is_empty() => Ok(Modification::Index { name, options }),
        Some(_) => Err(unknown),
        None => Err(vec!["index without a name".into()]),
    }
}

/// A UUID as the server gives it.
pub fn uuid_of_bson(value: &Bson) -> Option<[u8; 16]> {
    match value {
        Bson::Binary(binary) => binary.bytes.as_slice().try_into().ok(),
        _ => None,
    }
}

fn truthy(value: &Bson) -> bool {
    match value {
        Bson::Boolean(on) => *on,
        other => integer(other).is_some_and(|n| n != 0),
    }
}

fn integer(value: &Bson) -> Option<i64> {
    match value {
        Bson::Int32(n) => Some(i64::from(*n)),
        Bson::Int64(n) => Some(*n),
        #[allow(clippy::cast_possible_truncation)] // saturates, and the server itself stores an integer
        Bson::Double(n) if n.is_finite() => Some(*n as i64),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use bson::{RawDocumentBuf, doc, spec::BinarySubtype};

    /// `collection`: it has a UUID.
    fn event(op_type: &str, coll: &str, collection: bool, description: Option<Document>) -> RawDocumentBuf {
        let mut event =
            doc! {"operationType": op_type, "clusterTime": bson::Timestamp { time: 11, increment: 1 }, "ns": {"db": "d", "coll": coll}};
        if collection {
            event.insert("collectionUUID", bson::Binary { subtype: BinarySubtype::Uuid, bytes: vec![1; 16] });
        }
        if let Some(description) = description {
            event.insert("operationDescription", description);
        }
        RawDocumentBuf::try_from(&event).unwrap()
    }

    #[test]
    fn what_cannot_be_applied_is_told_with_its_name() {
        let unnamed = doc! {"indexes": [{"key": {"a": 1}}]};
        let cases = [
            (event("shinyNew", "c", true, None), "unknown type \"shinyNew\""),
            (event("shardCollection", "c", true, Some(doc! {})), "unknown type \"shardCollection\""),
            (event("create", "c", true, None), "without operationDescription"),
            (event("createIndexes", "c", true, Some(doc! {})), "names no indexes"),
            (event("createIndexes", "c", true, Some(unnamed.clone())), "without a name"),
            (event("dropIndexes", "c", true, Some(unnamed)), "without a name"),
            (event("rename", "c", true, Some(doc! {})), "without a target name"),
            (event("modify", "c", true, Some(doc! {"validator": {}, "shiny": 1, "newer": 2})), "unknown fields shiny, newer"),
            (event("modify", "c", true, Some(doc! {"cappedSize": "large"})), "unknown fields cappedSize"),
            (event("modify", "c", true, Some(doc! {"index": {"name": "i", "shiny": true}})), "unknown fields index.shiny"),
            (event("modify", "c", true, Some(doc! {"index": {"hidden": true}})), "index without a name"),
            (event("modify", "v", false, None), "without operationDescription"),
            (RawDocumentBuf::try_from(&doc! {"x": 1}).unwrap(), "without operationType"),
        ];
        for (event, what) in cases {
            let why = parse_ddl(&event).unwrap_err();
            assert!(why.contains(what), "{event:?}: {why}");
        }
    }

    #[test]
    fn what_newer_servers_say_beside_it_is_known_to_mean_nothing() {
        for op_type in ["startIndexBuild", "abortIndexBuild", "endOfTransaction", "invalidate"] {
            assert_eq!(parse_ddl(&event(op_type, "c", true, None)).unwrap().1, Ddl::Nothing, "{op_type}");
        }
        for op_type in ["create", "createIndexes", "modify", "drop"] {
            assert_eq!(parse_ddl(&event(op_type, "system.views", true, None)).unwrap().1, Ddl::Nothing, "{op_type}");
        }
        for (coll, passed_over) in [("system.views", true), ("system.buckets.t", true), ("system.js", false), ("views", false)] {
            assert_eq!(is_passed_over(coll), passed_over, "{coll}");
        }
    }
}
