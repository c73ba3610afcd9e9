//! Owns: the head of a segment: magic, version, and the header document with its checksum.
//! Does not own: what the fields mean to history (`ledger::model`, correctness.md 6, 19, 20).

use bson::raw::cstr;
use bson::{DateTime, RawDocument, RawDocumentBuf, Timestamp};
use xxhash_rust::xxh3::xxh3_64;

use super::wire::Cursor;
use crate::change::ClusterTime;
use crate::fault::{Fault, Result};
use crate::ledger::{Ends, SegmentKind};

/// First bytes of every segment.
pub(super) const MAGIC: &[u8; 8] = b"ARGNSEG1";
/// The version in head and trailer.
pub(super) const VERSION: u32 = 1;
/// Magic, version u32, header length u32.
const FIXED: usize = 16;
/// The longest header document (bytes): two resume tokens, each as long as a BSON document of the server may be (a token holds the `_id` in
/// hex, twice its length), and 1 MiB for the rest. Nearly every header is below 1 KiB; nothing is allocated for one that is not there.
const MAX_HEADER_BYTES: usize = 33 << 20;

/// What a segment says about itself without its blocks.
#[derive(Debug, Clone, PartialEq)]
pub struct SegmentHeader {
    /// Changes, a recorded hole, or documents of a base.
    pub kind: SegmentKind,
    /// Id of the branch.
    pub branch: String,
    /// Numbering epoch.
    pub epoch: u64,
    /// First sequence number; a gap has one too.
    pub first_seq: u64,
    /// Last sequence number, inclusive.
    pub last_seq: u64,
    /// Cluster time of the first change.
    pub first_time: ClusterTime,
    /// Cluster time of the last change.
    pub last_time: ClusterTime,
    /// Server wall clock of the last change, ms since the epoch.
    pub last_wall_ms: Option<i64>,
    /// Resume token after which the first change comes.
    pub start_token: RawDocumentBuf,
    /// Resume token after the last change: the next segment's start token.
    pub end_token: RawDocumentBuf,
    /// The first change goes on with a transaction of the segment before.
    pub starts_inside: bool,
    /// How the last change lies to its transaction.
    pub ends: Ends,
    /// The source database.
    pub db: String,
    /// Why there is a gap.
    pub reason: Option<String>,
}

impl SegmentHeader {
    /// Reads the head of a segment from its first bytes; also the offset at which blocks begin. `object` names it in faults.
    /// Bytes that end too early are `Corrupt`: a reader of ranges asks for 64 KiB, which is nearly always ample, and falls back to the whole.
    pub fn read(object: &str, start: &[u8]) -> Result<(Self, u64)> {
        Self::read_start(start).map_err(|e| e.at(object))
    }

    fn read_start(start: &[u8]) -> Result<(Self, u64)> {
        let mut cursor = Cursor::new(start, "segment header");
        if cursor.take(MAGIC.len())? != MAGIC {
            return Err(Fault::corrupt("byte 0: this is no segment"));
        }
        let version = cursor.u32()?;
        if version != VERSION {
            return Err(Fault::corrupt(format!("byte 8: segment version {version} is not known to this version")));
        }
        let len = cursor.len32()?;
        if len > MAX_HEADER_BYTES {
            return Err(cursor.fault(&format!("header of {len} bytes is over the limit of {MAX_HEADER_BYTES}")));
        }
        let document = cursor.take(len)?;
        let hashed = xxh3_64(&start[..FIXED + len]);
        if cursor.u64()? != hashed {
            return Err(cursor.fault("checksum of the header does not match"));
        }
        let bad = |e: &dyn std::fmt::Display| Fault::corrupt(format!("header document at byte {FIXED}: {e}"));
        let document = RawDocument::from_bytes(document).map_err(|e| bad(&e))?;
        let header = Self::from_document(document).map_err(|e| bad(&e))?;
        if header.first_seq > header.last_seq {
            return Err(bad(&"sequence numbers run backwards"));
        }
        Ok((header, cursor.position() as u64))
    }

    /// The head of a segment, to the byte.
    pub(super) fn write(&self) -> Result<Vec<u8>> {
        let document = self.to_document()?;
        let bytes = document.as_bytes();
        let len = u32::try_from(bytes.len()).ok().filter(|_| bytes.len() <= MAX_HEADER_BYTES);
        let len = len.ok_or_else(|| Fault::rejected(format!("segment header of {} bytes is over {MAX_HEADER_BYTES}", bytes.len())))?;
        let mut out = Vec::with_capacity(FIXED + bytes.len() + 8);
        out.extend_from_slice(MAGIC);
        out.extend_from_slice(&VERSION.to_le_bytes());
        out.extend_from_slice(&len.to_le_bytes());
        out.extend_from_slice(bytes);
        out.extend_from_slice(&xxh3_64(&out).to_le_bytes());
        Ok(out)
    }

    fn to_document(&self) -> Result<RawDocumentBuf> {
        let number = |n: u64| i64::try_from(n).map_err(|_| Fault::rejected(format!("{n} does not fit a segment header")));
        let mut doc = RawDocumentBuf::new();
        doc.append(cstr!("kind"), kind_name(self.kind));
        doc.append(cstr!("branch"), self.branch.as_str());
        doc.append(cstr!("epoch"), number(self.epoch)?);
        doc.append(cstr!("first_seq"), number(self.first_seq)?);
        doc.append(cstr!("last_seq"), number(self.last_seq)?);
        doc.append(cstr!("first_time"), Timestamp::from(self.first_time));
        doc.append(cstr!("last_time"), Timestamp::from(self.last_time));
        if let Some(ms) = self.last_wall_ms {
            doc.append(cstr!("last_wall"), DateTime::from_millis(ms));
        }
        doc.append(cstr!("start_token"), &*self.start_token);
        doc.append(cstr!("end_token"), &*self.end_token);
        doc.append(cstr!("starts_inside"), self.starts_inside);
        doc.append(cstr!("ends"), ends_name(self.ends));
        doc.append(cstr!("db"), self.db.as_str());
        if let Some(reason) = &self.reason {
            doc.append(cstr!("reason"), reason.as_str());
        }
        Ok(doc)
    }

    /// Fields that we do not know are passed over: a later writer of version 1 may add some.
    fn from_document(doc: &RawDocument) -> Result<Self, String> {
        let text = |key| doc.get_str(key).map(str::to_owned).map_err(|e| e.to_string());
        let number = |key| doc.get_i64(key).map_err(|e| e.to_string()).and_then(|n| u64::try_from(n).map_err(|e| format!("{key}: {e}")));
        let time = |key| doc.get_timestamp(key).map(ClusterTime::from).map_err(|e| e.to_string());
        let token = |key| doc.get_document(key).map(RawDocument::to_owned).map_err(|e| e.to_string());
        let has = |key: &str| doc.get(key).map(|v| v.is_some()).map_err(|e| e.to_string());
        Ok(Self {
            kind: kind_of(&text("kind")?)?,
            branch: text("branch")?,
            epoch: number("epoch")?,
            first_seq: number("first_seq")?,
            last_seq: number("last_seq")?,
            first_time: time("first_time")?,
            last_time: time("last_time")?,
            last_wall_ms: if has("last_wall")? {
                Some(doc.get_datetime("last_wall").map_err(|e| e.to_string())?.timestamp_millis())
            } else {
                None
            },
            start_token: token("start_token")?,
            end_token: token("end_token")?,
            starts_inside: doc.get_bool("starts_inside").map_err(|e| e.to_string())?,
            ends: ends_of(&text("ends")?)?,
            db: text("db")?,
            reason: if has("reason")? { Some(text("reason")?) } else { None },
        })
    }
}

fn kind_name(kind: SegmentKind) -> &'static str {
    match kind {
        SegmentKind::Changes => "changes",
        SegmentKind::Gap => "gap",
        SegmentKind::Base => "base",
    }
}

fn kind_of(name: &str) -> Result<SegmentKind, String> {
    match name {
        "changes" => Ok(SegmentKind::Changes),
        "gap" => Ok(SegmentKind::Gap),
        "base" => Ok(SegmentKind::Base),
        _ => Err(format!("kind {name:?} is not known to this version")),
    }
}

fn ends_name(ends: Ends) -> &'static str {
    match ends {
        Ends::Closed => "closed",
        Ends::Open => "open",
        Ends::Unknown => "unknown",
    }
}

fn ends_of(name: &str) -> Result<Ends, String> {
    match name {
        "closed" => Ok(Ends::Closed),
        "open" => Ok(Ends::Open),
        "unknown" => Ok(Ends::Unknown),
        _ => Err(format!("ends {name:?} is not known to this version")),
    }
}
