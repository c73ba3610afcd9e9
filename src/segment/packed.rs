//! Owns: a block together with its compressed form, made once, when its batch is queued. Does not own the forms that carry it: the
//! payload of a queued batch (`payload`) and the segment (`encode`).
//!
//! A block is compressed once and the same frame goes through the queue into the segment. It saves the second compression, and it
//! makes a repeated attempt harmless in every respect: whichever engine, of whichever version, encodes a batch makes the same bytes,
//! so the key of the object, which names its content, is the same too.

use bytes::Bytes;
use xxhash_rust::xxh3::xxh3_64;

use super::{RawBlock, codec};
use crate::fault::{Fault, Result};

/// A block and its zstd frame.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PackedBlock {
    raw: RawBlock,
    frame: Bytes,
    raw_hash: u64,
    /// `raw` is what the frame was decoded to, and has the hash that it had before it was compressed.
    proven: bool,
}

impl PackedBlock {
    /// Compresses a block.
    pub fn pack(raw: RawBlock) -> Result<Self> {
        let frame = Bytes::from(codec::compress(&raw.bytes)?);
        Ok(Self { raw_hash: xxh3_64(&raw.bytes), raw, frame, proven: false })
    }

    /// Decompresses a frame: its bytes must be `raw_len` many and have the hash they had before compression.
    pub(super) fn unpack(first_seq: u64, count: u32, raw_len: usize, raw_hash: u64, frame: Bytes) -> Result<Self> {
        let bytes = codec::decompress(&frame, raw_len)?;
        if xxh3_64(&bytes) != raw_hash {
            return Err(Fault::corrupt(format!("checksum of the block from seq {first_seq} does not match")));
        }
        Ok(Self { raw: RawBlock { first_seq, count, bytes: bytes.into() }, frame, raw_hash, proven: true })
    }

    /// The block.
    pub fn raw(&self) -> &RawBlock {
        &self.raw
    }

    /// Its compressed form.
    pub fn frame(&self) -> &Bytes {
        &self.frame
    }

    /// xxh3-64 of the uncompressed bytes.
    pub(super) fn raw_hash(&self) -> u64 {
        self.raw_hash
    }

    /// Whether the frame has been decoded and found right.
    pub(super) fn is_proven(&self) -> bool {
        self.proven
    }
}
