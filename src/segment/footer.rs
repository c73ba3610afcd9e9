//! Owns: the footer (index of blocks) and the trailer at the very end that finds and checks it.
//! Does not own: the blocks themselves (`codec`, `rows`), or reading ranges of an object (the caller, with a store).

use xxhash_rust::xxh3::xxh3_64;

use super::header::VERSION;
use super::wire::Cursor;
use super::{MAX_BLOCK_BYTES, RawBlock, codec, filter};
use crate::change::{CanonicalKey, ClusterTime};
use crate::fault::{Fault, Result};

/// Last bytes of every segment.
const MAGIC: &[u8; 8] = b"ARGNEND1";
/// Bytes of the trailer: footer offset u64, footer length u64, xxh3-64 of the footer u64, xxh3-64 of all bytes before u64,
/// version u32, zero u32, magic 8.
pub(super) const TRAILER_LEN: usize = 48;
/// Bytes at the end that the total checksum does not cover: itself, version, zeros and magic, which have one legal value each.
const AFTER_TOTAL: usize = 24;
/// The longest footer (bytes). Bounds what a ranged reader fetches on the word of a trailer.
const MAX_FOOTER_BYTES: u64 = 64 << 20;
/// The most collections of a footer: an entry takes ten times its bytes in memory once it is read.
const MAX_COLLECTIONS: usize = 1 << 20;
/// A range that holds every usual header, and at the other end every usual footer (bytes).
pub const TAIL_BYTES: u64 = 64 << 10;
/// Holds a block with a small filter or none, or most of it, and the footer behind it (bytes).
const LEAST_TAIL_BYTES: u64 = 24 << 10;

/// How much of the end of an object of so many bytes nearly always holds its whole footer, whose filters are about a twentieth of it: a look at many
/// small segments takes longer by what it fetches in vain.
#[must_use]
pub fn tail_bytes(object_size: u64) -> u64 {
    (object_size / 8).clamp(LEAST_TAIL_BYTES, TAIL_BYTES)
}

/// Fixed bytes of a block's entry; its collections and its filter follow.
const ENTRY_LEN: usize = 80;
const HAS_DDL: u8 = 1;

/// What a segment adds up to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Summary {
    /// Rows.
    pub changes: u64,
    /// Bytes of keys and bodies: the server's events without token and envelope.
    pub raw_bytes: u64,
    /// Some row is no data change: a catalogue has to read it.
    pub has_ddl: bool,
    /// Rows that cannot be applied, because their diff or event has a form that the writer did not know.
    pub holes: u64,
}

/// The index of a segment.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Footer {
    /// In order of seq.
    pub blocks: Vec<BlockEntry>,
    /// Name and UUID of every collection with a row in the segment; an empty name stands for the database.
    pub collections: Vec<(String, Option<[u8; 16]>)>,
    /// Totals.
    pub summary: Summary,
}

/// Where a block is and what is in it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BlockEntry {
    /// First byte in the object.
    pub offset: u64,
    /// Bytes in the object.
    pub stored_len: u32,
    /// Bytes uncompressed, at most [`MAX_BLOCK_BYTES`].
    pub raw_len: u32,
    /// First sequence number.
    pub first_seq: u64,
    /// Rows, at least one.
    pub count: u32,
    /// The earliest cluster time of its rows.
    pub first_time: ClusterTime,
    /// The latest.
    pub last_time: ClusterTime,
    /// xxh3-64 of the stored bytes: checked before a decompressor sees them.
    pub stored_hash: u64,
    /// xxh3-64 of the uncompressed bytes.
    pub raw_hash: u64,
    /// Rows that cannot be applied.
    pub holes: u32,
    /// Codec of the stored bytes; 1 is one zstd frame.
    pub codec: u8,
    /// Some row is no data change.
    pub has_ddl: bool,
    /// Indexes into [`Footer::collections`], ascending.
    pub collections: Vec<u32>,
    /// Key filter; empty means that any key may be in the block.
    pub filter: Vec<u8>,
}

/// What the end of an object told.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum TailResult {
    /// The whole footer.
    Footer(Footer),
    /// The footer begins at this offset, before the bytes that were given: read from there to the end and ask again.
    NeedMore(u64),
}

/// The trailer's own fields.
pub(super) struct Trailer {
    pub(super) footer_offset: u64,
    footer_len: u64,
    footer_hash: u64,
    total_hash: u64,
}

impl Trailer {
    pub(super) fn read(end: &[u8]) -> Result<Self> {
        let at =
            end.len().checked_sub(TRAILER_LEN).ok_or_else(|| Fault::corrupt(format!("{} bytes are too few for a segment", end.len())))?;
        let mut cursor = Cursor::new(&end[at..], "trailer");
        let (footer_offset, footer_len) = (cursor.u64()?, cursor.u64()?);
        let (footer_hash, total_hash) = (cursor.u64()?, cursor.u64()?);
        let version = cursor.u32()?;
        cursor.zeros(4)?;
        if cursor.take(MAGIC.len())? != MAGIC {
            return Err(Fault::corrupt("the end is not that of a segment: truncated, or something else"));
        }
        if version != VERSION {
            return Err(Fault::corrupt(format!("segment version {version} is not known to this version")));
        }
        if footer_len > MAX_FOOTER_BYTES {
            return Err(Fault::corrupt(format!("footer of {footer_len} bytes is over the limit of {MAX_FOOTER_BYTES}")));
        }
        Ok(Self { footer_offset, footer_len, footer_hash, total_hash })
    }

    /// Every byte of the object against the total checksum.
    pub(super) fn check_total(&self, object: &[u8]) -> Result<()> {
        let covered = &object[..object.len().saturating_sub(AFTER_TOTAL)];
        if xxh3_64(covered) != self.total_hash {
            return Err(Fault::corrupt(format!("total checksum over bytes 0..{} does not match", covered.len())));
        }
        Ok(())
    }

    /// The footer must end where the trailer begins.
    fn check_place(&self, object_size: u64) -> Result<()> {
        let end = self.footer_offset.checked_add(self.footer_len).and_then(|end| end.checked_add(TRAILER_LEN as u64));
        if end == Some(object_size) {
            return Ok(());
        }
        Err(Fault::corrupt(format!(
            "footer at byte {} of {} bytes does not end an object of {object_size}",
            self.footer_offset, self.footer_len
        )))
    }
}

impl Footer {
    /// Reads the footer from the last bytes of an object. `object` names it in faults; `tail` are its last bytes, any number.
    pub fn from_tail(object: &str, object_size: u64, tail: &[u8]) -> Result<TailResult> {
        Self::read_tail(object_size, tail).map_err(|e| e.at(object))
    }

    pub(super) fn read_tail(object_size: u64, tail: &[u8]) -> Result<TailResult> {
        let before = object_size.checked_sub(tail.len() as u64);
        let before = before.ok_or_else(|| Fault::corrupt(format!("{} last bytes of an object of {object_size}", tail.len())))?;
        let trailer = Trailer::read(tail)?;
        trailer.check_place(object_size)?;
        let Some(start) = trailer.footer_offset.checked_sub(before) else {
            return Ok(TailResult::NeedMore(trailer.footer_offset));
        };
        let start = usize::try_from(start).unwrap_or(usize::MAX);
        let bytes = tail.get(start..tail.len() - TRAILER_LEN).ok_or_else(|| Fault::corrupt("the footer is not where the trailer says"))?;
        if xxh3_64(bytes) != trailer.footer_hash {
            return Err(Fault::corrupt(format!("checksum of the footer at byte {} does not match", trailer.footer_offset)));
        }
        let footer = Self::read(bytes, trailer.footer_offset).map_err(|e| e.at(format_args!("offset {}", trailer.footer_offset)))?;
        Ok(TailResult::Footer(footer))
    }

    fn read(bytes: &[u8], footer_offset: u64) -> Result<Self> {
        let mut cursor = Cursor::new(bytes, "footer");
        let (collections, blocks) = (cursor.len32()?, cursor.len32()?);
        let mut summary =
            Summary { changes: cursor.u64()?, raw_bytes: cursor.u64()?, holes: cursor.u64()?, has_ddl: read_flags(cursor.u8()?, &cursor)? };
        cursor.zeros(7)?;
        // Five bytes are the least of a collection, so that a count cannot ask for more than the footer's own size.
        if collections > (cursor.left() / 5).min(MAX_COLLECTIONS) || blocks > cursor.left() / ENTRY_LEN {
            return Err(cursor.fault(&format!("{collections} collections and {blocks} blocks in {} bytes", cursor.left())));
        }
        let mut footer = Self { collections: Vec::with_capacity(collections), blocks: Vec::with_capacity(blocks), summary };
        for _ in 0..collections {
            let len = cursor.len32()?;
            let name = cursor.text(len)?.to_owned();
            let uuid = match cursor.u8()? {
                0 => None,
                1 => Some(cursor.uuid()?),
                flag => return Err(cursor.fault(&format!("UUID flag {flag}"))),
            };
            footer.collections.push((name, uuid));
        }
        for _ in 0..blocks {
            footer.blocks.push(BlockEntry::read(&mut cursor, collections)?);
        }
        cursor.finish()?;
        footer.check_chain(footer_offset, &cursor)?;
        // What can be added up is, so that totals and entries cannot disagree.
        summary.changes = footer.blocks.iter().map(|b| u64::from(b.count)).sum();
        summary.holes = footer.blocks.iter().map(|b| u64::from(b.holes)).sum();
        summary.has_ddl = footer.blocks.iter().any(|b| b.has_ddl);
        if summary != footer.summary {
            return Err(cursor.fault("totals are not the sum of the blocks"));
        }
        Ok(footer)
    }

    /// Blocks lie back to back up to the footer, and their sequence numbers do too.
    fn check_chain(&self, footer_offset: u64, cursor: &Cursor<'_>) -> Result<()> {
        for (n, block) in self.blocks.iter().enumerate() {
            let next = self.blocks.get(n + 1);
            let end = block.offset.checked_add(u64::from(block.stored_len));
            let end_seq = block.first_seq.checked_add(u64::from(block.count));
            if end != Some(next.map_or(footer_offset, |b| b.offset))
                || end_seq.is_none()
                || next.is_some_and(|b| Some(b.first_seq) != end_seq)
            {
                return Err(cursor.fault(&format!("block {n} does not end where the next thing begins")));
            }
        }
        Ok(())
    }

    /// The footer and the trailer of an object whose bytes so far are `out`.
    pub(super) fn write(&self, out: &mut Vec<u8>) -> Result<()> {
        let start = out.len();
        out.extend_from_slice(&len32(self.collections.len())?.to_le_bytes());
        out.extend_from_slice(&len32(self.blocks.len())?.to_le_bytes());
        let s = &self.summary;
        [s.changes, s.raw_bytes, s.holes].iter().for_each(|n| out.extend_from_slice(&n.to_le_bytes()));
        out.extend_from_slice(&[u8::from(s.has_ddl) * HAS_DDL, 0, 0, 0, 0, 0, 0, 0]);
        for (name, uuid) in &self.collections {
            out.extend_from_slice(&len32(name.len())?.to_le_bytes());
            out.extend_from_slice(name.as_bytes());
            out.push(u8::from(uuid.is_some()));
            out.extend_from_slice(uuid.as_ref().map_or(&[], |u| &u[..]));
        }
        for block in &self.blocks {
            block.write(out)?;
        }
        let footer = &out[start..];
        let (len, hash) = (footer.len() as u64, xxh3_64(footer));
        if self.collections.len() > MAX_COLLECTIONS {
            return Err(Fault::rejected(format!(
                "{} collections in one segment, over the limit of {MAX_COLLECTIONS}",
                self.collections.len()
            )));
        }
        if len > MAX_FOOTER_BYTES {
            return Err(Fault::rejected(format!("segment footer of {len} bytes is over the limit of {MAX_FOOTER_BYTES}: fewer blocks")));
        }
        for n in [start as u64, len, hash] {
            out.extend_from_slice(&n.to_le_bytes());
        }
        out.extend_from_slice(&xxh3_64(out).to_le_bytes());
        out.extend_from_slice(&VERSION.to_le_bytes());
        out.extend_from_slice(&[0; 4]);
        out.extend_from_slice(MAGIC);
        Ok(())
    }
}

impl BlockEntry {
    /// The block from its stored bytes, checked before and after decompression. `object` names it in faults.
    pub fn decode(&self, object: &str, stored: &[u8]) -> Result<RawBlock> {
        self.decode_stored(stored).map_err(|e| e.at(format_args!("{object}: block at byte {}", self.offset)))
    }

    fn decode_stored(&self, stored: &[u8]) -> Result<RawBlock> {
        if stored.len() as u64 != u64::from(self.stored_len) {
            return Err(Fault::corrupt(format!("{} bytes were read, {} expected", stored.len(), self.stored_len)));
        }
        if xxh3_64(stored) != self.stored_hash {
            return Err(Fault::corrupt(format!("checksum of its {} bytes does not match", self.stored_len)));
        }
        if self.codec != codec::ZSTD {
            return Err(Fault::corrupt(format!("codec {} is not known to this version", self.codec)));
        }
        let raw = codec::decompress(stored, self.raw_len as usize)?;
        if xxh3_64(&raw) != self.raw_hash {
            return Err(Fault::corrupt("checksum of the uncompressed bytes does not match"));
        }
        Ok(RawBlock { first_seq: self.first_seq, count: self.count, bytes: raw.into() })
    }

    /// Whether the block may hold a change of the document `key` in the collection named `name` with `uuid`; false is certain.
    /// Rows that came without a UUID count by name. A rename of the collection is DDL: ask [`Self::has_ddl`] for that.
    pub fn may_contain(&self, footer: &Footer, name: &str, uuid: Option<&[u8; 16]>, key: &CanonicalKey) -> bool {
        let mut scratch = Vec::new();
        let collections = self.collections.iter().filter_map(|&n| footer.collections.get(n as usize));
        collections
            .filter(|(n, u)| if let (Some(u), Some(uuid)) = (u, uuid) { u == uuid } else { n == name })
            .any(|(n, u)| filter::may_contain(&self.filter, filter::key_hash(&mut scratch, n, u.as_ref(), key.as_bytes())))
    }

    fn read(cursor: &mut Cursor<'_>, known: usize) -> Result<Self> {
        let mut entry = Self {
            offset: cursor.u64()?,
            stored_len: cursor.u32()?,
            raw_len: cursor.u32()?,
            first_seq: cursor.u64()?,
            count: cursor.u32()?,
            first_time: read_time(cursor)?,
            last_time: read_time(cursor)?,
            stored_hash: cursor.u64()?,
            raw_hash: cursor.u64()?,
            holes: cursor.u32()?,
            codec: cursor.u8()?,
            has_ddl: read_flags(cursor.u8()?, cursor)?,
            collections: Vec::new(),
            filter: Vec::new(),
        };
        cursor.zeros(2)?;
        if entry.count == 0 || entry.raw_len as usize > MAX_BLOCK_BYTES || entry.holes > entry.count {
            return Err(cursor.fault(&format!("a block of {} rows, {} bytes, {} holes", entry.count, entry.raw_len, entry.holes)));
        }
        let (collections, filter) = (cursor.len32()?, cursor.len32()?);
        if collections > cursor.left() / 4 {
            return Err(cursor.fault(&format!("{collections} collections in {} bytes", cursor.left())));
        }
        for _ in 0..collections {
            let n = cursor.u32()?;
            if n as usize >= known {
                return Err(cursor.fault(&format!("collection {n} of {known}")));
            }
            entry.collections.push(n);
        }
        entry.filter = cursor.take(filter)?.to_vec();
        Ok(entry)
    }

    fn write(&self, out: &mut Vec<u8>) -> Result<()> {
        out.extend_from_slice(&self.offset.to_le_bytes());
        out.extend_from_slice(&self.stored_len.to_le_bytes());
        out.extend_from_slice(&self.raw_len.to_le_bytes());
        out.extend_from_slice(&self.first_seq.to_le_bytes());
        for n in [self.count, self.first_time.t, self.first_time.i, self.last_time.t, self.last_time.i] {
            out.extend_from_slice(&n.to_le_bytes());
        }
        out.extend_from_slice(&self.stored_hash.to_le_bytes());
        out.extend_from_slice(&self.raw_hash.to_le_bytes());
        out.extend_from_slice(&self.holes.to_le_bytes());
        out.extend_from_slice(&[self.codec, u8::from(self.has_ddl) * HAS_DDL, 0, 0]);
        for n in [len32(self.collections.len())?, len32(self.filter.len())?] {
            out.extend_from_slice(&n.to_le_bytes());
        }
        self.collections.iter().for_each(|n| out.extend_from_slice(&n.to_le_bytes()));
        out.extend_from_slice(&self.filter);
        Ok(())
    }
}

fn read_time(cursor: &mut Cursor<'_>) -> Result<ClusterTime> {
    Ok(ClusterTime { t: cursor.u32()?, i: cursor.u32()? })
}

fn read_flags(flags: u8, cursor: &Cursor<'_>) -> Result<bool> {
    if flags & !HAS_DDL != 0 {
        return Err(cursor.fault(&format!("flags {flags:#04x} are not known to this version")));
    }
    Ok(flags & HAS_DDL != 0)
}

fn len32(len: usize) -> Result<u32> {
    u32::try_from(len).map_err(|_| Fault::rejected(format!("{len} does not fit a segment footer")))
}
