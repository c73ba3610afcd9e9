//! Owns: turning a raw change event into a row, and a row back into a readable event.
//! Does not own: the order or fate of rows (`capture`), DDL (`branch`), the diffs inside (`delta`, `description`).
//!
//! This is the hottest code of capture: one pass over the top-level elements, nothing decoded below them, no allocation for
//! a plain data event. A row is compact only if the event is exactly what we know; any other field, type or combination
//! keeps the whole event ([`Op::Event`]), so that nothing a newer server says is lost.
//!
//! On 6.0 an update holds `rawUpdateDescription: {$v: 2, diff: {..}}` in place of `updateDescription` when the stream asks
//! for it, and `txnNumber` and `lsid` (in this order, before `_id`) only inside a transaction.

use super::raw::{self, Element, tag};
use super::{ChangeRef, ClusterTime, Op};
use crate::fault::{Fault, Result};
use bson::{Document, RawDocument, doc};

/// Buffers that [`parse_event`] builds documents in; reused from event to event.
#[derive(Debug, Default)]
pub struct Scratch {
    txn: Vec<u8>,
    body: Vec<u8>,
}

/// An event as read: its token, the names, and the row.
#[derive(Debug, Clone, Copy)]
pub struct EventView<'a> {
    /// `_id` of the event, whole.
    pub token: &'a RawDocument,
    /// `operationType`.
    pub op_type: &'a str,
    /// `ns.db`; empty where the event has no namespace (`invalidate`).
    pub db: &'a str,
    /// The row.
    pub change: ChangeRef<'a>,
}

/// Top-level fields of an event, as far as they have the type they should have.
#[derive(Default)]
struct Fields<'a> {
    token: Option<Element<'a>>,
    op_type: Option<&'a str>,
    time: Option<ClusterTime>,
    wall_ms: Option<i64>,
    ns: Option<&'a RawDocument>,
    key: Option<&'a RawDocument>,
    full: Option<&'a RawDocument>,
    uuid: Option<[u8; 16]>,
    raw_update: Option<&'a RawDocument>,
    description: Option<&'a RawDocument>,
    lsid: Option<Element<'a>>,
    txn_number: Option<Element<'a>>,
    /// A field that we do not know, or know under another type, or that came twice.
    strange: bool,
}

/// Reads an event of a stream on `db`. `Corrupt` if it is no BSON, or has no token, operation type or cluster time.
pub fn parse_event<'a>(event: &'a RawDocument, db: &str, scratch: &'a mut Scratch) -> Result<EventView<'a>> {
    let fields = Fields::read(event)?;
    let Some((token, token_doc)) = fields.token.and_then(|t| Some((t, t.document()?))) else {
        return Err(Fault::corrupt("a change event has no resume token (_id)"));
    };
    let op_type = fields.op_type.ok_or_else(|| Fault::corrupt("a change event has no operationType"))?;
    let time = fields.time.ok_or_else(|| Fault::corrupt(format!("a change event of type {op_type} has no clusterTime")))?;
    let ns = Namespace::read(fields.ns);
    let Scratch { txn, body } = scratch;
    let txn = match (fields.lsid, fields.txn_number) {
        (Some(lsid), Some(number)) => Some(write_txn(txn, &lsid, &number)?),
        _ => None,
    };
    let compact = if !fields.strange && ns.exact && ns.db == db && fields.lsid.is_some() == fields.txn_number.is_some() {
        fields.data_change(op_type, false)
    } else {
        None
    };
    let (op, key, row_body) = match compact {
        Some((op, key, row_body)) => (op, key, row_body),
        None => (Op::Event, None, Some(write_without_token(body, event.as_bytes(), &token)?)),
    };
    let change = ChangeRef { op, coll: ns.coll, uuid: fields.uuid, time, wall_ms: fields.wall_ms, txn, key, body: row_body };
    Ok(EventView { token: token_doc, op_type, db: ns.db, change })
}

/// The data change inside the body of an [`Op::Event`] row: `None` if it is not one (DDL, unknown types), `Corrupt` if its
/// type is that of a data change but what is needed to apply it is missing or unknown; then it is a hole.
/// `txn` is not filled: the row has it.
pub fn parse_stored_event(body: &RawDocument) -> Result<Option<ChangeRef<'_>>> {
    let fields = Fields::read(body)?;
    let op_type = fields.op_type.ok_or_else(|| Fault::corrupt("a stored event has no operationType"))?;
    if !is_data(op_type) {
        return Ok(None);
    }
    let ns = Namespace::read(fields.ns);
    let known = fields.data_change(op_type, true).filter(|_| !ns.coll.is_empty());
    let (op, key, row_body) =
        known.ok_or_else(|| Fault::corrupt(format!("a stored event of type {op_type} has a form that this version cannot apply")))?;
    let time = fields.time.unwrap_or_default();
    Ok(Some(ChangeRef { op, coll: ns.coll, uuid: fields.uuid, time, wall_ms: fields.wall_ms, txn: None, key, body: row_body }))
}

/// Whether events of this type are changes of documents.
pub fn is_data(op_type: &str) -> bool {
    matches!(op_type, "insert" | "replace" | "update" | "delete")
}

/// `operationType` of an event, or of the body of an [`Op::Event`] row.
pub fn operation_type(body: &RawDocument) -> Option<&str> {
    raw::find(body.as_bytes(), b"operationType").ok()??.str()
}

impl<'a> Fields<'a> {
    fn read(event: &'a RawDocument) -> Result<Self> {
        let no_bson = |bad: raw::Malformed| Fault::corrupt(format!("a change event is no BSON at byte {}", bad.0));
        let mut fields = Self::default();
        for element in raw::elements(event.as_bytes()).map_err(no_bson)? {
            fields.take(element.map_err(no_bson)?);
        }
        Ok(fields)
    }

    fn take(&mut self, e: Element<'a>) {
        let fresh = match e.name {
            b"_id" => set(&mut self.token, Some(e)),
            b"operationType" => set(&mut self.op_type, e.str()),
            b"clusterTime" => set(&mut self.time, timestamp(&e)),
            b"wallTime" => set(&mut self.wall_ms, number(&e, tag::DATE)),
            b"ns" => set(&mut self.ns, e.document()),
            b"documentKey" => set(&mut self.key, e.document()),
            b"fullDocument" => set(&mut self.full, e.document()),
            b"collectionUUID" => set(&mut self.uuid, uuid(&e)),
            b"rawUpdateDescription" => set(&mut self.raw_update, e.document()),
            b"updateDescription" => set(&mut self.description, e.document()),
            b"lsid" => set(&mut self.lsid, e.document().map(|_| e)),
            b"txnNumber" => set(&mut self.txn_number, number(&e, tag::INT64).map(|_| e)),
            _ => false,
        };
        self.strange |= !fresh;
    }

    /// Operation, key and body of a data change. `lenient` looks away from fields that are there but not needed.
    fn data_change(&self, op_type: &str, lenient: bool) -> Option<(Op, Option<&'a RawDocument>, Option<&'a RawDocument>)> {
        let updates = self.raw_update.is_some() || self.description.is_some();
        match op_type {
            "insert" | "replace" if lenient || !updates => {
                let (key, full) = (self.key, self.full?);
                if key.is_none() && !lenient {
                    return None;
                }
                let op = if op_type == "insert" { Op::Insert } else { Op::Replace };
                Some((op, key.filter(|key| !is_id_of(key, full)), Some(full)))
            }
            "update" if lenient || self.full.is_none() && self.raw_update.is_some() != self.description.is_some() => {
                let diff = self.raw_update.and_then(v2_diff);
                match (diff, self.description) {
                    (Some(diff), _) => Some((Op::Update, Some(self.key?), Some(diff))),
                    (None, Some(description)) => Some((Op::Described, Some(self.key?), Some(description))),
                    (None, None) => None,
                }
            }
            "delete" if lenient || !updates && self.full.is_none() => Some((Op::Delete, Some(self.key?), None)),
            _ => None,
        }
    }
}

/// Fills a slot once; false if it was filled already or there is nothing to fill it with.
fn set<T>(slot: &mut Option<T>, value: Option<T>) -> bool {
    let fresh = slot.is_none() && value.is_some();
    if slot.is_none() {
        *slot = value;
    }
    fresh
}

fn number(e: &Element<'_>, tag: u8) -> Option<i64> {
    if e.tag == tag { Some(i64::from_le_bytes(e.value.try_into().ok()?)) } else { None }
}

/// Increment first, then seconds, both little-endian.
fn timestamp(e: &Element<'_>) -> Option<ClusterTime> {
    if e.tag != tag::TIMESTAMP {
        return None;
    }
    let (increment, seconds) = e.value.split_first_chunk::<4>()?;
    Some(ClusterTime { t: u32::from_le_bytes(seconds.try_into().ok()?), i: u32::from_le_bytes(*increment) })
}

/// Binary of subtype 4 and length 16.
fn uuid(e: &Element<'_>) -> Option<[u8; 16]> {
    match e.value {
        [16, 0, 0, 0, 4, uuid @ ..] if e.tag == tag::BINARY => uuid.try_into().ok(),
        _ => None,
    }
}

struct Namespace<'a> {
    db: &'a str,
    coll: &'a str,
    /// `db` and `coll` in this order, and nothing else.
    exact: bool,
}

impl<'a> Namespace<'a> {
    fn read(ns: Option<&'a RawDocument>) -> Self {
        let mut found = Self { db: "", coll: "", exact: false };
        let Some(elements) = ns.and_then(|ns| raw::elements(ns.as_bytes()).ok()) else { return found };
        let mut known = true;
        for (n, element) in elements.enumerate() {
            match element.ok().map(|e| (e.name, e.str())) {
                Some((b"db", Some(db))) if n == 0 => found.db = db,
                Some((b"coll", Some(coll))) if n == 1 => found.coll = coll,
                _ => known = false,
            }
        }
        found.exact = known && !found.coll.is_empty();
        found
    }
}

/// The diff of `{$v: 2, diff: {..}}` and nothing else.
fn v2_diff(raw_update: &RawDocument) -> Option<&RawDocument> {
    let mut elements = raw::elements(raw_update.as_bytes()).ok()?;
    let version = elements.next()?.ok()?;
    let diff = elements.next()?.ok()?;
    let exact = version.name == b"$v" && version.i32() == Some(2) && diff.name == b"diff" && elements.next().is_none();
    if exact { diff.document() } else { None }
}

/// Whether a document key says no more than the document's own `_id`, byte for byte.
fn is_id_of(key: &RawDocument, full: &RawDocument) -> bool {
    let Some(mut in_key) = raw::elements(key.as_bytes()).ok() else { return false };
    let Some(Ok(id)) = in_key.next() else { return false };
    if id.name != b"_id" || in_key.next().is_some() {
        return false;
    }
    matches!(raw::find(full.as_bytes(), b"_id"), Ok(Some(own)) if own.whole == id.whole)
}

fn write_txn<'a>(out: &'a mut Vec<u8>, lsid: &Element<'_>, number: &Element<'_>) -> Result<&'a RawDocument> {
    out.clear();
    let at = raw::open(out);
    out.extend_from_slice(lsid.whole);
    out.extend_from_slice(number.whole);
    raw::close(out, at);
    as_document(out)
}

/// The event without its token, which is most of a small event and is kept once per batch.
fn write_without_token<'a>(out: &'a mut Vec<u8>, event: &[u8], token: &Element<'_>) -> Result<&'a RawDocument> {
    out.clear();
    let at = raw::open(out);
    for element in raw::elements(event).into_iter().flatten().flatten() {
        if !std::ptr::eq(element.whole, token.whole) {
            out.extend_from_slice(element.whole);
        }
    }
    raw::close(out, at);
    as_document(out)
}

fn as_document(bytes: &[u8]) -> Result<&RawDocument> {
    RawDocument::from_bytes(bytes).map_err(|e| Fault::corrupt(format!("a change event could not be re-encoded: {e}")))
}

/// An event as a person wants to read it, without the token: for logs and for the auditor, not for a hot path.
pub fn rebuild_event(change: &ChangeRef<'_>, db: &str) -> Result<Document> {
    let read = |d: &RawDocument| Document::try_from(d).map_err(|e| Fault::corrupt(format!("a stored change is no BSON: {e}")));
    if let (Op::Event, Some(body)) = (change.op, change.body) {
        return read(body);
    }
    let mut event = change.txn.map(read).transpose()?.unwrap_or_default();
    let op_type = match change.op {
        Op::Insert => "insert",
        Op::Replace => "replace",
        Op::Update | Op::Described => "update",
        Op::Delete => "delete",
        Op::Event => return Err(Fault::corrupt("a stored event has no body")),
    };
    event.insert("operationType", op_type);
    event.insert("clusterTime", bson::Timestamp::from(change.time));
    if let Some(uuid) = change.uuid {
        event.insert("collectionUUID", bson::Binary { subtype: bson::spec::BinarySubtype::Uuid, bytes: uuid.to_vec() });
    }
    if let Some(ms) = change.wall_ms {
        event.insert("wallTime", bson::DateTime::from_millis(ms));
    }
    let body = change.body.map(read).transpose()?;
    let own_key = || Some(doc! { "_id": body.as_ref()?.get("_id")?.clone() });
    let key = change.key.map(read).transpose()?.or_else(own_key);
    event.insert("ns", doc! { "db": db, "coll": change.coll });
    if let Some(key) = key {
        event.insert("documentKey", key);
    }
    match (change.op, body) {
        (Op::Insert | Op::Replace, Some(full)) => event.insert("fullDocument", full),
        (Op::Update, Some(diff)) => event.insert("rawUpdateDescription", doc! { "$v": 2, "diff": diff }),
        (Op::Described, Some(description)) => event.insert("updateDescription", description),
        _ => None,
    };
    Ok(event)
}

#[cfg(test)]
#[path = "event_tests.rs"]
mod tests;
