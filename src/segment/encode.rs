//! Owns: making a segment from a header and raw blocks, and proving that what was made reads back.
//! Does not own: threads (it is called inside a rayon pool and uses that), keys or uploads.

use std::sync::atomic::{AtomicBool, Ordering};

use bytes::Bytes;
use rayon::prelude::*;
use sha2::{Digest, Sha256};
use xxhash_rust::xxh3::xxh3_64;

use super::scan::{Scan, scan};
use super::{BlockEntry, Footer, MAX_BLOCK_BYTES, RawBlock, SegmentFile, SegmentHeader, Summary, codec};
use crate::fault::{Fault, Result};
use crate::ledger::SegmentKind;

/// The level of fresh segments: the best ratio that keeps up with ingest.
pub const DEFAULT_LEVEL: i32 = 3;

/// How to encode.
#[derive(Debug, Clone, Copy)]
pub struct EncodeOptions<'a> {
    /// zstd level.
    pub level: i32,
    /// Looked at before every block: set means stop.
    pub cancel: &'a AtomicBool,
}

/// A finished segment.
#[derive(Debug, Clone)]
pub struct Encoded {
    /// The whole object.
    pub bytes: Bytes,
    /// SHA-256 of `bytes`; part of the object's key.
    pub sha256: [u8; 32],
    /// Totals, as in the footer.
    pub summary: Summary,
}

/// Encodes a segment. CPU only, parallel over blocks; the same input gives the same bytes for one version of zstd.
pub fn encode(header: &SegmentHeader, blocks: &[RawBlock], options: &EncodeOptions<'_>) -> Result<Encoded> {
    check_blocks(header, blocks)?;
    let mut out = header.write()?;
    let done = blocks.par_iter().map(|block| encode_block(block, options)).collect::<Result<Vec<_>>>()?;
    out.reserve(done.iter().map(|(_, stored, _)| stored.len()).sum::<usize>() + 4096);
    let mut footer = Footer::default();
    let mut names: Vec<_> = done.iter().flat_map(|(scan, ..)| &scan.collections).cloned().collect();
    names.sort();
    names.dedup();
    for (block, (scan, stored, raw_hash)) in blocks.iter().zip(&done) {
        footer.summary.changes += u64::from(block.count);
        footer.summary.raw_bytes += scan.raw_bytes;
        footer.summary.has_ddl |= scan.has_ddl;
        footer.summary.holes += u64::from(scan.holes);
        footer.blocks.push(entry(block, scan, stored, *raw_hash, out.len() as u64, &names)?);
        out.extend_from_slice(stored);
    }
    footer.collections = names;
    footer.write(&mut out)?;
    let bytes = Bytes::from(out);
    Ok(Encoded { sha256: Sha256::digest(&bytes).into(), bytes, summary: footer.summary })
}

/// Decodes a segment as a reader would and compares it with what went in, byte by byte. Anything but equality is `Corrupt`.
pub fn verify_encoded(encoded: &Encoded, header: &SegmentHeader, blocks: &[RawBlock]) -> Result<()> {
    let file = SegmentFile::parse("encoded segment", encoded.bytes.clone())?;
    if file.header() != header || file.footer().summary != encoded.summary || file.block_count() != blocks.len() {
        return Err(Fault::corrupt("encoded segment: header or footer is not what was asked for"));
    }
    blocks.par_iter().enumerate().try_for_each(|(n, block)| {
        if file.block(n)? == *block { Ok(()) } else { Err(Fault::corrupt(format!("encoded segment: block {n} differs from its input"))) }
    })
}

fn check_blocks(header: &SegmentHeader, blocks: &[RawBlock]) -> Result<()> {
    let wrong = |why: String| Err(Fault::rejected(format!("segment seq {}..={}: {why}", header.first_seq, header.last_seq)));
    if header.kind == SegmentKind::Gap {
        return if blocks.is_empty() { Ok(()) } else { wrong(format!("a gap with {} blocks", blocks.len())) };
    }
    let mut next = header.first_seq;
    for block in blocks {
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

fn encode_block(block: &RawBlock, options: &EncodeOptions<'_>) -> Result<(Scan, Vec<u8>, u64)> {
    if options.cancel.load(Ordering::Relaxed) {
        return Err(Fault::cancelled("encoding was stopped"));
    }
    let scan = scan(block).map_err(|e| e.at(format_args!("block from seq {}", block.first_seq)))?;
    Ok((scan, codec::compress(&block.bytes, options.level)?, xxh3_64(&block.bytes)))
}

fn entry(
    block: &RawBlock,
    scan: &Scan,
    stored: &[u8],
    raw_hash: u64,
    offset: u64,
    names: &[(String, Option<[u8; 16]>)],
) -> Result<BlockEntry> {
    let len32 = |len: usize| u32::try_from(len).map_err(|_| Fault::rejected(format!("a block of {len} bytes is over {MAX_BLOCK_BYTES}")));
    let collections = scan.collections.iter().filter_map(|c| names.binary_search(c).ok()).map(len32).collect::<Result<_>>()?;
    Ok(BlockEntry {
        offset,
        stored_len: len32(stored.len())?,
        raw_len: len32(block.bytes.len())?,
        first_seq: block.first_seq,
        count: block.count,
        first_time: scan.first_time,
        last_time: scan.last_time,
        stored_hash: xxh3_64(stored),
        raw_hash,
        holes: scan.holes,
        codec: codec::ZSTD,
        has_ddl: scan.has_ddl,
        collections,
        filter: scan.filter.clone(),
    })
}
