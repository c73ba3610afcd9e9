//! Owns: making a segment from a header and raw blocks, and proving that what was made reads back.
//! Does not own: threads (it is called inside a rayon pool and uses that), keys or uploads.

use std::sync::atomic::{AtomicBool, Ordering};

use bytes::Bytes;
use rayon::prelude::*;
use sha2::{Digest, Sha256};
use xxhash_rust::xxh3::xxh3_64;

use super::scan::{Scan, scan};
use super::{BlockEntry, Footer, MAX_BLOCK_BYTES, PackedBlock, SegmentFile, SegmentHeader, Summary, codec, filter};
use crate::fault::{Fault, Result};
use crate::ledger::{RowFilter, SegmentKind};

/// A finished segment.
#[derive(Debug, Clone)]
pub struct Encoded {
    /// The whole object.
    pub bytes: Bytes,
    /// SHA-256 of `bytes`; part of the object's key.
    pub sha256: [u8; 32],
    /// Totals, as in the footer.
    pub summary: Summary,
    /// The key filter of the only block, where that is small.
    pub filter: Option<RowFilter>,
}

/// Longest filter that is kept beside the metadata of a segment too (bytes): that of a small block.
const MAX_ROW_FILTER: usize = 2 << 10;

fn row_filter(footer: &Footer) -> Option<RowFilter> {
    let [block] = footer.blocks.as_slice() else { return None };
    (1..=MAX_ROW_FILTER).contains(&block.filter.len()).then(|| RowFilter(block.filter.clone()))
}

/// Encodes a segment. CPU only, parallel over blocks where it is called inside a rayon pool; the same input gives the same bytes.
/// `cancel` is looked at before every block: set means stop.
pub fn encode(header: &SegmentHeader, blocks: &[PackedBlock], cancel: &AtomicBool) -> Result<Encoded> {
    check_blocks(header, blocks)?;
    let mut out = header.write()?;
    let scans = blocks.par_iter().map(|block| scan_block(block, cancel)).collect::<Result<Vec<_>>>()?;
    out.reserve(blocks.iter().map(|b| b.frame().len()).sum::<usize>() + 4096);
    let mut footer = Footer::default();
    let mut names: Vec<_> = scans.iter().flat_map(|scan| &scan.collections).cloned().collect();
    names.sort();
    names.dedup();
    for (block, scan) in blocks.iter().zip(scans) {
        footer.summary.changes += u64::from(block.raw().count);
        footer.summary.raw_bytes += scan.raw_bytes;
        footer.summary.has_ddl |= scan.has_ddl;
        footer.summary.holes += u64::from(scan.holes);
        footer.blocks.push(entry(block, scan, out.len() as u64, &names)?);
        out.extend_from_slice(block.frame());
    }
    footer.collections = names;
    footer.write(&mut out)?;
    let bytes = Bytes::from(out);
    Ok(Encoded { sha256: Sha256::digest(&bytes).into(), bytes, summary: footer.summary, filter: row_filter(&footer) })
}

/// Reads a segment as a reader would and compares it with what went in, byte by byte. Anything but equality is `Corrupt`. A block
/// whose frame has been decoded already, as [`super::unpack_payload`] does, is compared in that form: equal bytes decode to equal blocks.
pub fn verify_encoded(encoded: &Encoded, header: &SegmentHeader, blocks: &[PackedBlock]) -> Result<()> {
    let file = SegmentFile::parse("encoded segment", encoded.bytes.clone())?;
    if file.header() != header || file.footer().summary != encoded.summary || file.block_count() != blocks.len() {
        return Err(Fault::corrupt("encoded segment: header or footer is not what was asked for"));
    }
    blocks.par_iter().enumerate().try_for_each(|(n, block)| {
        let same = if block.is_proven() { file.holds_frame(n, block) } else { file.block(n)? == *block.raw() };
        if same { Ok(()) } else { Err(Fault::corrupt(format!("encoded segment: block {n} differs from its input"))) }
    })
}

fn check_blocks(header: &SegmentHeader, blocks: &[PackedBlock]) -> Result<()> {
    let wrong = |why: String| Err(Fault::rejected(format!("segment seq {}..={}: {why}", header.first_seq, header.last_seq)));
    if header.kind == SegmentKind::Gap {
        return if blocks.is_empty() { Ok(()) } else { wrong(format!("a gap with {} blocks", blocks.len())) };
    }
    let mut next = header.first_seq;
    for block in blocks.iter().map(PackedBlock::raw) {
        if block.first_seq != next || block.count == 0 {
            return wrong(format!("a block of {} rows from seq {} where {next} is due", block.count, block.first_seq));
        }
        next = next.saturating_add(u64::from(block.count));
    }
    if blocks.is_empty() || header.last_seq.checked_add(1) != Some(next) {
        return wrong(format!("blocks end before seq {next}"));
    }
    Ok(())
}

fn scan_block(block: &PackedBlock, cancel: &AtomicBool) -> Result<Scan> {
    if cancel.load(Ordering::Relaxed) {
        return Err(Fault::cancelled("encoding was stopped"));
    }
    let block = block.raw();
    scan(block).map_err(|e| e.at(format_args!("block from seq {}", block.first_seq)))
}

/// A key filter saves reading and decoding a block, and a small block comes along with the end of its object, which a reader has to fetch for the footer anyway.
/// So a block of up to this many stored bytes has a filter of half the size, which keeps a filter at a small part of its block and still saves five of six.
const SMALL_BLOCK: usize = 32 << 10;
/// A block that is decoded as fast as its filter is asked.
const TINY_BLOCK: usize = 2 << 10;

fn filter_for(frame: &[u8], whole: Vec<u8>) -> Vec<u8> {
    if frame.len() <= TINY_BLOCK {
        Vec::new()
    } else if frame.len() <= SMALL_BLOCK {
        filter::halved(whole)
    } else {
        whole
    }
}

fn entry(block: &PackedBlock, scan: Scan, offset: u64, names: &[(String, Option<[u8; 16]>)]) -> Result<BlockEntry> {
    let len32 = |len: usize| u32::try_from(len).map_err(|_| Fault::rejected(format!("a block of {len} bytes is over {MAX_BLOCK_BYTES}")));
    let collections = scan.collections.iter().filter_map(|c| names.binary_search(c).ok()).map(len32).collect::<Result<_>>()?;
    let (raw, frame) = (block.raw(), block.frame());
    Ok(BlockEntry {
        offset,
        stored_len: len32(frame.len())?,
        raw_len: len32(raw.bytes.len())?,
        first_seq: raw.first_seq,
        count: raw.count,
        first_time: scan.first_time,
        last_time: scan.last_time,
        stored_hash: xxh3_64(frame),
        raw_hash: block.raw_hash(),
        holes: scan.holes,
        codec: codec::ZSTD,
        has_ddl: scan.has_ddl,
        collections,
        filter: filter_for(frame, scan.filter),
    })
}
