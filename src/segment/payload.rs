//! Owns: the form in which the blocks of a batch wait in the job queue. Lives minutes, so it has its own version and no index.
//! Does not own: where parts are stored, or how large a part may be (the caller's document limit).
//!
//! One byte stream (per block: first seq u64, count u32, raw length u32, stored length u32, xxh3-64 of the raw bytes u64, zstd frame)
//! cut into parts, because a single block may be larger than a part. Each part: [`PART_HEAD`] bytes, then its piece of the stream.

use bytes::Bytes;
use rayon::prelude::*;
use xxhash_rust::xxh3::xxh3_64;

use super::PackedBlock;
use super::block::MAX_BLOCK_BYTES;
use super::wire::Cursor;
use crate::fault::{Fault, Result};

const MAGIC: &[u8; 8] = b"ARGNPAY1";
/// Magic 8, part u32, parts u32, stream length u64, xxh3-64 of the stream u64 (parts of different batches never mix),
/// xxh3-64 u64 of the head before it and the piece after it.
const PART_HEAD: usize = 40;
/// Bytes before each frame.
const BLOCK_HEAD: usize = 28;

/// Packs blocks into parts of at most `max_part` bytes. Any order of blocks; none gives one part.
pub fn pack_payload(blocks: &[PackedBlock], max_part: usize) -> Result<Vec<Bytes>> {
    let piece = max_part
        .checked_sub(PART_HEAD)
        .filter(|&n| n > 0)
        .ok_or_else(|| Fault::config(format!("a payload part of {max_part} bytes has no room; it needs more than {PART_HEAD}")))?;
    let mut stream = Vec::with_capacity(blocks.iter().map(|b| b.frame().len() + BLOCK_HEAD).sum());
    for block in blocks {
        let (raw, frame) = (block.raw(), block.frame());
        stream.extend_from_slice(&raw.first_seq.to_le_bytes());
        stream.extend_from_slice(&raw.count.to_le_bytes());
        stream.extend_from_slice(&len32(raw.bytes.len())?.to_le_bytes());
        stream.extend_from_slice(&len32(frame.len())?.to_le_bytes());
        stream.extend_from_slice(&block.raw_hash().to_le_bytes());
        stream.extend_from_slice(frame);
    }
    let hash = xxh3_64(&stream);
    let count = len32(stream.len().div_ceil(piece).max(1))?;
    let mut rest = &stream[..];
    (0..count)
        .map(|n| {
            let (piece, after) = rest.split_at(piece.min(rest.len()));
            rest = after;
            let mut part = Vec::with_capacity(PART_HEAD + piece.len());
            part.extend_from_slice(MAGIC);
            part.extend_from_slice(&n.to_le_bytes());
            part.extend_from_slice(&count.to_le_bytes());
            part.extend_from_slice(&(stream.len() as u64).to_le_bytes());
            part.extend_from_slice(&hash.to_le_bytes());
            part.extend_from_slice(&part_hash(&part, piece).to_le_bytes());
            part.extend_from_slice(piece);
            Ok(Bytes::from(part))
        })
        .collect()
}

/// The blocks of [`pack_payload`], each decoded and found right. `parts` are all parts in order; `max_bytes` bounds the uncompressed
/// bytes of all blocks together. Parallel over blocks where it is called inside a rayon pool.
pub fn unpack_payload(parts: &[Bytes], max_bytes: u64) -> Result<Vec<PackedBlock>> {
    let stream = join(parts)?;
    let mut cursor = Cursor::new(&stream, "payload");
    let (mut packed, mut total) = (Vec::new(), 0u64);
    while !cursor.is_empty() {
        let (first_seq, count) = (cursor.u64()?, cursor.u32()?);
        let (raw_len, stored_len) = (cursor.len32()?, cursor.len32()?);
        let hash = cursor.u64()?;
        total += raw_len as u64;
        if total > max_bytes {
            return Err(cursor.fault(&format!("blocks of {total} bytes and more are over the limit of {max_bytes}")));
        }
        let frame = stream.slice_ref(cursor.take(stored_len)?);
        packed.push((first_seq, count, raw_len, hash, frame, cursor.position()));
    }
    let unpack = |(first_seq, count, raw_len, hash, frame, end)| {
        PackedBlock::unpack(first_seq, count, raw_len, hash, frame).map_err(|e| e.at(format!("payload before byte {end}")))
    };
    packed.into_par_iter().map(unpack).collect()
}

/// Checks every part and gives the stream; copies only where there is more than one part.
fn join(parts: &[Bytes]) -> Result<Bytes> {
    let mut identity = None;
    let mut len_so_far = 0usize;
    for (n, part) in parts.iter().enumerate() {
        let place = || format!("payload part {} of {}", n + 1, parts.len());
        let mut head = Cursor::new(part, "part");
        if head.take(MAGIC.len()).map_err(|e| e.at(place()))? != MAGIC {
            return Err(Fault::corrupt("magic or version is not known").at(place()));
        }
        let mut read = || Ok((head.len32()?, head.len32()?, head.u64()?, head.u64()?, head.u64()?));
        let (number, count, len, hash, own) = read().map_err(|e: Fault| e.at(place()))?;
        let (before, piece) = (&part[..PART_HEAD - 8], &part[PART_HEAD..]);
        if part_hash(before, piece) != own {
            return Err(Fault::corrupt("checksum does not match").at(place()));
        }
        if number != n || count != parts.len() || *identity.get_or_insert((len, hash)) != (len, hash) {
            return Err(Fault::corrupt(format!("is part {} of {count} of some payload", number + 1)).at(place()));
        }
        len_so_far += piece.len();
    }
    let stream = match parts {
        [] => return Err(Fault::corrupt("payload has no parts")),
        [only] => only.slice(PART_HEAD..),
        parts => {
            let mut stream = Vec::with_capacity(len_so_far);
            parts.iter().for_each(|part| stream.extend_from_slice(&part[PART_HEAD..]));
            stream.into()
        }
    };
    if identity != Some((stream.len() as u64, xxh3_64(&stream))) {
        return Err(Fault::corrupt(format!("payload of {} bytes is not what was packed", stream.len())));
    }
    Ok(stream)
}

fn part_hash(head: &[u8], piece: &[u8]) -> u64 {
    let mut hash = xxhash_rust::xxh3::Xxh3::new();
    hash.update(head);
    hash.update(piece);
    hash.digest()
}

fn len32(len: usize) -> Result<u32> {
    u32::try_from(len).map_err(|_| Fault::rejected(format!("{len} bytes do not fit a payload (a block has at most {MAX_BLOCK_BYTES})")))
}
