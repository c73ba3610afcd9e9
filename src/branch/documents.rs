//! Owns: the JSON objects of a branch in the bucket (`branch.json`, `epoch/<n>`, a base's `manifest.json`): their shape, writing and reading. Pure.
//! Does not own: their keys (`layout`), when they are written (`capture`), what a catalogue means (`catalogue`).
//!
//! BSON inside JSON is kept twice: `bson` (hex of the bytes) is what is read back, because extended JSON cannot tell a document
//! that looks like `{"$oid": ..}` (a pipeline may hold one) from an ObjectId; `json` is canonical extended JSON in field order, for people.

use std::collections::BTreeMap;

use bson::{Bson, Document, RawDocumentBuf};
use serde::ser::{SerializeMap, SerializeSeq};
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use serde_json::json;

use super::catalogue::{Catalogue, Collection, Kind, Uuid, View};
use super::layout::{hex, unhex};
use crate::change::ClusterTime;
use crate::fault::{Fault, Result};
use crate::ledger::{Base, BaseOrigin, BaseState, Branch, BranchStatus, Capture, CaptureState, Fidelity, Parent, Source};

/// The number in `format`: readers refuse others.
pub const FORMAT: u32 = 2;
/// A branch or epoch object is a few hundred bytes; more is not ours.
pub const MAX_SMALL_OBJECT: usize = 1 << 20;
/// A catalogue of 10,000 collections with ten indexes each is about 60 MB.
pub const MAX_MANIFEST: usize = 256 << 20;
/// Deepest BSON shown as JSON; the server's own limit is 200 levels.
const MAX_DEPTH: usize = 220;

/// Identity, source and state of a branch, so that the bucket is enough (correctness.md 19).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct BranchDocument {
    /// [`FORMAT`].
    pub format: u32,
    /// Counts changes of this object; each change is a put with If-Match.
    pub version: u64,
    pub id: String,
    /// `project/branch`.
    pub name: String,
    pub parent: Option<Parent>,
    /// Name of the captured database.
    pub db: String,
    /// Absent while nothing is captured into it.
    pub capture: Option<CaptureDocument>,
    #[serde(default = "active")]
    pub status: BranchStatus,
    /// First seq that is still in the bucket.
    pub retained_from: u64,
    pub fidelity: Fidelity,
    /// What history does not hold, each with the reason (correctness.md 2).
    #[serde(default)]
    pub uncovered: Vec<String>,
    pub epoch: u64,
    /// Those that history may start from, by seq.
    pub bases: Vec<BaseRef>,
    pub created_ms: i64,
    #[serde(default)]
    pub expires_ms: Option<i64>,
    #[serde(default)]
    pub deleted_ms: Option<i64>,
    #[serde(default)]
    pub drop_db: bool,
}

/// Who feeds a branch.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CaptureDocument {
    pub id: String,
    pub source: Source,
    pub state: CaptureState,
}

/// A complete base, or one that is being copied.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct BaseRef {
    pub id: String,
    pub seq: u64,
    /// SHA-256 of its manifest in lower-case hex, of its plan while it is being copied: its own text cannot vouch for itself.
    pub sha256: String,
    #[serde(default)]
    pub copying: bool,
}

impl BranchDocument {
    /// The object of a branch that has just been made: version 1.
    pub fn new(branch: &Branch, capture: Option<&Capture>, bases: &[Base]) -> Self {
        let refer = |base: &Base| BaseRef {
            id: base.id.clone(),
            seq: base.seq,
            sha256: base.sha256.clone(),
            copying: base.state == BaseState::Copying,
        };
        Self {
            format: FORMAT,
            version: 1,
            id: branch.id.clone(),
            name: branch.name.clone(),
            parent: branch.parent.clone(),
            db: branch.source_db.clone(),
            capture: capture.map(|c| CaptureDocument { id: c.id.clone(), source: c.source.clone(), state: c.state }),
            status: branch.status,
            retained_from: 1,
            fidelity: branch.fidelity,
            uncovered: branch.uncovered.clone(),
            epoch: branch.epoch,
            // A fold that is under way can be made again; what is being read from the source cannot.
            bases: bases.iter().filter(|b| is_kept(b)).map(refer).collect(),
            created_ms: branch.created_ms,
            expires_ms: branch.expires_ms,
            deleted_ms: branch.deleted_ms,
            drop_db: branch.drop_db,
        }
    }

    /// As it follows on what is stored: what only the bucket says stays, and the version is the stored one until something is changed.
    #[must_use]
    pub fn after(self, stored: Option<&Self>) -> Self {
        let Some(stored) = stored else { return self };
        Self { version: stored.version, retained_from: stored.retained_from, created_ms: stored.created_ms, ..self }
    }
}

fn is_kept(base: &Base) -> bool {
    match base.state {
        BaseState::Complete => true,
        BaseState::Copying => base.origin == BaseOrigin::Copy,
        BaseState::Abandoned => false,
    }
}

fn active() -> BranchStatus {
    BranchStatus::Active
}

/// Who numbers a branch from which seq on (correctness.md 20).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct EpochDocument {
    pub format: u32,
    /// The engine or tool that took the epoch.
    pub owner: String,
    /// Segments of older epochs at or after this seq are hidden.
    pub starts_at: u64,
    /// Key of the segment that history ended with when it was taken: whatever else ends there comes too late. Absent where history began.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub after: Option<String>,
}

/// A base: the catalogue of a database at a time, and where its documents are. Written after everything it names. A plan is the same without documents.
#[derive(Debug, Clone, PartialEq)]
pub struct BaseManifest {
    pub id: String,
    pub origin: BaseOrigin,
    /// Changes up to this seq are before the base: what follows is folded onto it. 0 for base 0.
    pub seq: u64,
    /// Time of the listing; DDL folding is tolerant up to it.
    pub time: ClusterTime,
    /// From here on it can be restored: the latest time at which a part was read.
    pub consistent_at: ClusterTime,
    /// The source database.
    pub db: String,
    /// Resume token that history goes on from after change `seq`.
    pub token: RawDocumentBuf,
    pub catalogue: Catalogue,
    /// In the order in which they are folded: by time, then collection, then place in it.
    pub parts: Vec<BasePart>,
}

/// An object of documents of one collection: a segment of kind `base`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct BasePart {
    /// UUID of the collection, 32 hex digits.
    pub uuid: String,
    /// Hash part of its key.
    pub object: String,
    pub sha256: String,
    pub documents: u64,
    pub raw_bytes: u64,
    pub stored_bytes: u64,
    /// Every change up to this time is in it, and none later unless it is fuzzy.
    pub read_at: ClusterTime,
    /// It could not be read at one time (capped).
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub fuzzy: bool,
}

#[derive(Serialize, Deserialize)]
struct ManifestJson {
    format: u32,
    id: String,
    origin: BaseOrigin,
    seq: u64,
    time: ClusterTime,
    consistent_at: ClusterTime,
    db: String,
    token: Stored,
    collections: Vec<CollectionJson>,
    views: Vec<ViewJson>,
    parts: Vec<BasePart>,
}

#[derive(Serialize, Deserialize)]
struct CollectionJson {
    name: String,
    uuid: String,
    kind: Kind,
    options: Stored,
    indexes: Vec<Stored>,
}

#[derive(Serialize, Deserialize)]
struct ViewJson {
    name: String,
    kind: Kind,
    options: Stored,
}

/// BSON as hex and, for people, as JSON.
struct Stored(Document);

impl Serialize for Stored {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        let bytes = self.0.to_vec().map_err(serde::ser::Error::custom)?;
        let mut map = to.serialize_map(Some(2))?;
        map.serialize_entry("bson", &hex(&bytes))?;
        map.serialize_entry("json", &ShownDocument(&self.0, 0))?;
        map.end()
    }
}

impl<'de> Deserialize<'de> for Stored {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        #[derive(Deserialize)]
        struct Hex {
            bson: String,
        }
        let bytes = unhex(&Hex::deserialize(from)?.bson).ok_or_else(|| serde::de::Error::custom("bson is not lower-case hex"))?;
        Document::from_reader(bytes.as_slice()).map(Self).map_err(|e| serde::de::Error::custom(format!("bson: {e}")))
    }
}

/// Canonical extended JSON in field order (`serde_json::Value` would sort the fields).
struct ShownDocument<'a>(&'a Document, usize);
struct Shown<'a>(&'a Bson, usize);

impl Serialize for ShownDocument<'_> {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        let mut map = to.serialize_map(Some(self.0.len()))?;
        for (key, value) in self.0 {
            map.serialize_entry(key, &Shown(value, self.1 + 1))?;
        }
        map.end()
    }
}

impl Serialize for Shown<'_> {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        match self.0 {
            _ if self.1 > MAX_DEPTH => to.serialize_str("nested too deeply to show"),
            Bson::Document(inner) => ShownDocument(inner, self.1).serialize(to),
            Bson::Array(items) => {
                let mut seq = to.serialize_seq(Some(items.len()))?;
                for item in items {
                    seq.serialize_element(&Shown(item, self.1 + 1))?;
                }
                seq.end()
            }
            scalar => show_scalar(scalar, self.1).serialize(to),
        }
    }
}

/// A scalar as canonical extended JSON.
fn show_scalar(value: &Bson, depth: usize) -> serde_json::Value {
    let one = |key: &str, value: String| json!({ key: value });
    match value {
        Bson::String(text) => json!(text),
        Bson::Boolean(on) => json!(on),
        Bson::Null => serde_json::Value::Null,
        Bson::Int32(n) => one("$numberInt", n.to_string()),
        Bson::Int64(n) => one("$numberLong", n.to_string()),
        Bson::Double(n) => one("$numberDouble", show_double(*n)),
        Bson::Decimal128(n) => one("$numberDecimal", n.to_string()),
        Bson::ObjectId(id) => one("$oid", id.to_hex()),
        Bson::Symbol(text) => one("$symbol", text.clone()),
        Bson::JavaScriptCode(code) => one("$code", code.clone()),
        Bson::DateTime(at) => json!({"$date": one("$numberLong", at.timestamp_millis().to_string())}),
        Bson::Timestamp(ts) => json!({"$timestamp": {"t": ts.time, "i": ts.increment}}),
        Bson::RegularExpression(regex) => {
            json!({"$regularExpression": {"pattern": regex.pattern.as_str(), "options": regex.options.as_str()}})
        }
        Bson::JavaScriptCodeWithScope(code) => {
            json!({"$code": code.code, "$scope": serde_json::to_value(ShownDocument(&code.scope, depth + 1)).unwrap_or_default()})
        }
        // Hexadecimal where the standard has base64: the bytes that are read back are in `bson`, and hex is easier on the eye.
        Bson::Binary(binary) => json!({"$binary": {"hex": hex(&binary.bytes), "subType": format!("{:02x}", u8::from(binary.subtype))}}),
        Bson::MinKey => json!({"$minKey": 1}),
        Bson::MaxKey => json!({"$maxKey": 1}),
        Bson::Undefined => json!({"$undefined": true}),
        other => json!({"$other": other.to_string()}),
    }
}

fn show_double(n: f64) -> String {
    if n.is_nan() {
        "NaN".to_owned()
    } else if n.is_infinite() {
        if n > 0.0 { "Infinity" } else { "-Infinity" }.to_owned()
    } else {
        format!("{n:?}")
    }
}

/// Text of one of these objects, pretty, with a final newline.
pub fn to_json<T: Serialize>(value: &T) -> Result<Vec<u8>> {
    let mut text = serde_json::to_vec_pretty(value).map_err(|e| Fault::corrupt(format!("cannot write JSON: {e}")))?;
    text.push(b'\n');
    Ok(text)
}

/// Reads `branch.json`.
pub fn read_branch(object: &str, bytes: &[u8]) -> Result<BranchDocument> {
    let read: BranchDocument = read_json(object, bytes, MAX_SMALL_OBJECT)?;
    check_format(object, read.format)?;
    Ok(read)
}

/// Reads `epoch/<n>`.
pub fn read_epoch(object: &str, bytes: &[u8]) -> Result<EpochDocument> {
    let read: EpochDocument = read_json(object, bytes, MAX_SMALL_OBJECT)?;
    check_format(object, read.format)?;
    Ok(read)
}

impl BaseManifest {
    /// The bytes of `manifest.json`.
    pub fn to_json(&self) -> Result<Vec<u8>> {
        let token = Document::try_from(self.token.as_ref()).map_err(|e| Fault::corrupt(format!("resume token is not BSON: {e}")))?;
        let collections = self.catalogue.collections.values().map(|c| CollectionJson {
            name: c.name.clone(),
            uuid: hex(&c.uuid),
            kind: c.kind,
            options: Stored(c.options.clone()),
            indexes: c.indexes.iter().cloned().map(Stored).collect(),
        });
        let views = self.catalogue.views.values();
        to_json(&ManifestJson {
            format: FORMAT,
            id: self.id.clone(),
            origin: self.origin,
            seq: self.seq,
            time: self.time,
            consistent_at: self.consistent_at,
            db: self.db.clone(),
            token: Stored(token),
            parts: self.parts.clone(),
            collections: collections.collect(),
            views: views.map(|v| ViewJson { name: v.name.clone(), kind: v.kind, options: Stored(v.options.clone()) }).collect(),
        })
    }

    /// Reads `manifest.json`; the catalogue is tolerant up to the manifest's time.
    pub fn from_json(object: &str, bytes: &[u8]) -> Result<Self> {
        let read: ManifestJson = read_json(object, bytes, MAX_MANIFEST)?;
        check_format(object, read.format)?;
        let mut collections = BTreeMap::new();
        for c in read.collections {
            let uuid: Uuid = unhex(&c.uuid)
                .and_then(|bytes| bytes.try_into().ok())
                .ok_or_else(|| Fault::corrupt(format!("{object}: uuid of collection {:?} is not 32 hex digits", c.name)))?;
            let indexes = c.indexes.into_iter().map(|i| i.0).collect();
            let collection = Collection { name: c.name, uuid, kind: c.kind, options: c.options.0, indexes };
            if collections.insert(uuid, collection).is_some() {
                return Err(Fault::corrupt(format!("{object}: collection uuid {} appears twice", hex(&uuid))));
            }
        }
        let views = read.views.into_iter().map(|v| (v.name.clone(), View { name: v.name, kind: v.kind, options: v.options.0 })).collect();
        let token = RawDocumentBuf::try_from(&read.token.0).map_err(|e| Fault::corrupt(format!("{object}: token: {e}")))?;
        let catalogue = Catalogue { collections, views, listed_at: read.time };
        Ok(Self {
            id: read.id,
            origin: read.origin,
            seq: read.seq,
            time: read.time,
            consistent_at: read.consistent_at,
            db: read.db,
            token,
            catalogue,
            parts: read.parts,
        })
    }
}

fn check_format(object: &str, format: u32) -> Result<()> {
    if format == FORMAT {
        return Ok(());
    }
    Err(Fault::rejected(format!("{object} has format {format}, this program reads {FORMAT}: use a newer version")))
}

fn read_json<T: serde::de::DeserializeOwned>(object: &str, bytes: &[u8], max: usize) -> Result<T> {
    if bytes.len() > max {
        return Err(Fault::corrupt(format!("{object} has {} bytes, more than the {max} that are allowed", bytes.len())));
    }
    serde_json::from_slice(bytes).map_err(|e| Fault::corrupt(format!("{object} is damaged: {e}")))
}

#[cfg(test)]
mod tests {
    use super::*;
    use bson::{doc, rawdoc};

    fn manifest() -> BaseManifest {
        let uuid = [7; 16];
        let options = doc! {"validator": {"z": {"$gt": 1_i64}, "a": {"$oid": "not an id"}}, "capped": true, "size": 4096.0, "when": bson::DateTime::MIN};
        let collection = Collection {
            name: "a.b".into(),
            uuid,
            kind: Kind::Collection,
            options,
            indexes: vec![doc! {"v": 2, "key": {"z": 1, "a": -1}, "name": "z_1_a_-1"}],
        };
        let view = View {
            name: "v".into(),
            kind: Kind::View,
            options: doc! {"viewOn": "a.b", "pipeline": [{"$match": {"x": {"$numberLong": "1"}}}]},
        };
        let listed_at = ClusterTime { t: 5, i: 6 };
        let catalogue = Catalogue { collections: [(uuid, collection)].into(), views: [("v".into(), view)].into(), listed_at };
        let part = BasePart {
            uuid: hex(&uuid),
            object: "ab".into(),
            sha256: "cd".into(),
            documents: 3,
            raw_bytes: 4,
            stored_bytes: 5,
            read_at: listed_at,
            fuzzy: true,
        };
        BaseManifest {
            id: "b0".into(),
            origin: BaseOrigin::Copy,
            seq: 0,
            time: listed_at,
            consistent_at: listed_at,
            db: "shop".into(),
            token: rawdoc! {"_data": "82"},
            catalogue,
            parts: vec![part],
        }
    }

    #[test]
    fn a_manifest_keeps_every_type_and_the_order_of_fields() {
        let manifest = manifest();
        let json = manifest.to_json().unwrap();
        let back = BaseManifest::from_json("m", &json).unwrap();
        assert_eq!(back, manifest);
        let (before, after) = (&manifest.catalogue.collections[&[7; 16]], &back.catalogue.collections[&[7; 16]]);
        assert_eq!(before.options.to_vec().unwrap(), after.options.to_vec().unwrap(), "equality of documents ignores order, bytes do not");
        assert_eq!(before.indexes[0].to_vec().unwrap(), after.indexes[0].to_vec().unwrap());
        let text = String::from_utf8(json).unwrap();
        assert!(text.find("\"$numberLong\": \"1\"").is_some() && text.find("\"z\"").unwrap() < text.find("\"a\"").unwrap(), "{text}");
    }

    #[test]
    fn damaged_and_foreign_objects_are_refused_with_their_name() {
        let json = String::from_utf8(manifest().to_json().unwrap()).unwrap();
        let cases = [
            json.replace("\"format\": 2", "\"format\": 1"),
            json[..json.len() / 2].to_owned(),
            json.replace("\"bson\": \"", "\"bson\": \"zz"),
            json.replace(&"07".repeat(16), "07"),
            "[]".to_owned(),
            String::new(),
        ];
        for case in cases {
            let fault = BaseManifest::from_json("base/m", case.as_bytes()).unwrap_err();
            assert!(fault.what.contains("base/m"), "{}", fault.what);
        }
        let fault = read_epoch("epoch/1", &vec![b' '; MAX_SMALL_OBJECT + 1]).unwrap_err();
        assert!(fault.what.contains("epoch/1"), "{}", fault.what);
    }

    #[test]
    fn epoch_and_branch_objects_round_trip() {
        let epoch = EpochDocument { format: FORMAT, owner: "e".into(), starts_at: 9, after: None };
        assert_eq!(read_epoch("e", &to_json(&epoch).unwrap()).unwrap(), epoch);
        let mut row = Branch::new("i", "p/b", "d");
        row.parent = Some(Parent { id: "x".into(), seq: 4, time: ClusterTime { t: 1, i: 1 } });
        row.uncovered.push("x: why".into());
        let source = Source::new(Some("env:X".into()), "d".into(), "r".into());
        let capture = Capture::new("c", &row, source, rawdoc! {}, 5);
        let base = Base::empty("b", "i", ClusterTime { t: 2, i: 3 }, "ab".into());
        let branch = BranchDocument::new(&row, Some(&capture), &[base]);
        assert_eq!(branch.bases.len(), 1);
        assert_eq!(read_branch("b", &to_json(&branch).unwrap()).unwrap(), branch);
    }
}
