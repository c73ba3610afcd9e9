//! Owns: reading a whole segment. Every byte of the object is under a checksum, and lies in exactly one part of it.
//! Does not own: fetching it, or reading by ranges ([`SegmentHeader::read`], [`Footer::from_tail`], [`BlockEntry::decode`]).

use bytes::Bytes;

use super::footer::Trailer;
use super::{Footer, RawBlock, SegmentHeader, TailResult};
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
        let (header, footer) = Self::read(&bytes).map_err(|e| e.at(object))?;
        Ok(Self { object: object.to_owned(), bytes, header, footer })
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
        let wanted = (header.kind == SegmentKind::Changes).then_some((header.first_seq, header.last_seq));
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
        // The footer's chain of blocks was checked to lie inside the object.
        let start = usize::try_from(entry.offset).unwrap_or(usize::MAX);
        let stored = self.bytes.get(start..start.saturating_add(entry.stored_len as usize)).unwrap_or_default();
        entry.decode(&self.object, stored)
    }
}
