//! Owns: reading a whole segment. Every byte of the object is under a checksum, and lies in exactly one part of it.
//! Does not own: fetching it, or reading by ranges ([`SegmentHeader::read`], [`Footer::from_tail`], [`BlockEntry::decode`]).

use bytes::Bytes;

use super::footer::Trailer;
use super::{BlockEntry, Footer, PackedBlock, RawBlock, SegmentHeader, TailResult, codec};
use crate::fault::{Fault, Result};
use crate::ledger::SegmentKind;

/// A parsed segment; blocks are decoded one at a time.
#[derive(Debug, Clone)]
pub struct SegmentFile {
    object: String,
    bytes: Bytes,
    header: SegmentHeader,
    footer: Footer,
}

impl SegmentFile {
    /// Checks the whole object by its total checksum, then header, footer and that they fit together. `object` names it in faults.
    pub fn parse(object: &str, bytes: Bytes) -> Result<Self> {
        let (header, footer) = Self::read(&bytes).map_err(|e| Self::find_damage(object, &bytes).unwrap_or_else(|| e.at(object)))?;
        Ok(Self { object: object.to_owned(), bytes, header, footer })
    }

    /// The first part of a damaged object whose own checksum fails, with its offset; `None` when every part agrees with itself.
    /// `object` names it in the fault.
    pub fn find_damage(object: &str, bytes: &[u8]) -> Option<Fault> {
        if let Err(fault) = SegmentHeader::read(object, bytes) {
            return Some(fault);
        }
        let footer = match Footer::from_tail(object, bytes.len() as u64, bytes) {
            Ok(TailResult::Footer(footer)) => footer,
            Ok(TailResult::NeedMore(at)) => return Some(Fault::corrupt(format!("{object}: the footer is not at byte {at}"))),
            Err(fault) => return Some(fault),
        };
        footer.blocks.iter().find_map(|entry| {
            let start = usize::try_from(entry.offset).unwrap_or(usize::MAX);
            let stored = bytes.get(start..start.saturating_add(entry.stored_len as usize)).unwrap_or_default();
            entry.decode(object, stored).err()
        })
    }

    pub(super) fn read(bytes: &[u8]) -> Result<(SegmentHeader, Footer)> {
        let trailer = Trailer::read(bytes)?;
        trailer.check_total(bytes)?;
        let (header, blocks_at) = SegmentHeader::read("header", bytes)?;
        let TailResult::Footer(footer) = Footer::read_tail(bytes.len() as u64, bytes)? else {
            return Err(Fault::corrupt("the footer begins before the object"));
        };
        let first_at = footer.blocks.first().map_or(trailer.footer_offset, |b| b.offset);
        if first_at != blocks_at {
            return Err(Fault::corrupt(format!("byte {blocks_at}: something between the header and what follows at {first_at}")));
        }
        let range = footer.blocks.first().zip(footer.blocks.last()).map(|(a, b)| (a.first_seq, b.first_seq + u64::from(b.count) - 1));
        let wanted = (header.kind != SegmentKind::Gap).then_some((header.first_seq, header.last_seq));
        if range != wanted {
            return Err(Fault::corrupt(format!("blocks hold seq {range:?}, the header says {wanted:?}")));
        }
        Ok((header, footer))
    }

    /// What the segment says about itself.
    pub fn header(&self) -> &SegmentHeader {
        &self.header
    }

    /// The index.
    pub fn footer(&self) -> &Footer {
        &self.footer
    }

    /// Blocks; a gap has none.
    pub fn block_count(&self) -> usize {
        self.footer.blocks.len()
    }

    /// Block `i`, checked by both of its checksums.
    pub fn block(&self, i: usize) -> Result<RawBlock> {
        let entry = self.footer.blocks.get(i);
        let entry = entry.ok_or_else(|| Fault::missing(format!("{}: block {i} of {}", self.object, self.block_count())))?;
        entry.decode(&self.object, self.stored(entry))
    }

    /// Whether block `i` is this one, in its stored form and as the index describes it.
    pub(super) fn holds_frame(&self, i: usize, block: &PackedBlock) -> bool {
        let raw = block.raw();
        self.footer.blocks.get(i).is_some_and(|entry| {
            self.stored(entry) == block.frame()
                && (entry.codec, entry.raw_hash) == (codec::ZSTD, block.raw_hash())
                && (entry.first_seq, entry.count, entry.raw_len as usize) == (raw.first_seq, raw.count, raw.bytes.len())
        })
    }

    /// The footer's chain of blocks was checked to lie inside the object.
    fn stored(&self, entry: &BlockEntry) -> &[u8] {
        let start = usize::try_from(entry.offset).unwrap_or(usize::MAX);
        self.bytes.get(start..start.saturating_add(entry.stored_len as usize)).unwrap_or_default()
    }
}
