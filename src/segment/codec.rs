//! Owns: the codecs of stored blocks and their bounds. One so far: zstd. Does not own checksums or layout.

use std::cell::RefCell;

use zstd::bulk::{Compressor, Decompressor};

use super::block::MAX_BLOCK_BYTES;
use crate::fault::{Fault, Result};

/// The codec byte of one zstd frame.
pub(super) const ZSTD: u8 = 1;

/// Contexts above this level are several times larger and their speed makes setting one up cheap by comparison: not kept.
const MAX_KEPT_LEVEL: i32 = 9;

thread_local! {
    /// One context a thread: setting one up costs as much as compressing some ten KiB.
    static COMPRESSOR: RefCell<Option<(i32, Compressor<'static>)>> = const { RefCell::new(None) };
    static DECOMPRESSOR: RefCell<Option<Decompressor<'static>>> = const { RefCell::new(None) };
}

/// `raw` as one zstd frame.
pub(super) fn compress(raw: &[u8], level: i32) -> Result<Vec<u8>> {
    COMPRESSOR.with_borrow_mut(|kept| {
        let mut compressor = match kept.take() {
            Some((at, compressor)) if at == level => compressor,
            _ => Compressor::new(level).map_err(|e| Fault::rejected(format!("zstd level {level}: {e}")))?,
        };
        let out = compressor.compress(raw).map_err(|e| Fault::unknown(format!("zstd could not compress {} bytes: {e}", raw.len())))?;
        if level <= MAX_KEPT_LEVEL {
            *kept = Some((level, compressor));
        }
        Ok(out)
    })
}

/// The `raw_len` bytes of a frame; anything longer or shorter is a fault, and nothing larger than the limit is allocated.
pub(super) fn decompress(stored: &[u8], raw_len: usize) -> Result<Vec<u8>> {
    if raw_len > MAX_BLOCK_BYTES {
        return Err(Fault::corrupt(format!("block claims {raw_len} bytes, over the limit of {MAX_BLOCK_BYTES}")));
    }
    DECOMPRESSOR.with_borrow_mut(|kept| {
        let mut decompressor = match kept.take() {
            Some(decompressor) => decompressor,
            None => Decompressor::new().map_err(|e| Fault::unknown(format!("zstd decompressor: {e}")))?,
        };
        let raw = decompressor.decompress(stored, raw_len).map_err(|e| Fault::corrupt(format!("zstd frame: {e}")))?;
        *kept = Some(decompressor);
        if raw.len() != raw_len {
            return Err(Fault::corrupt(format!("zstd frame holds {} bytes, {raw_len} expected", raw.len())));
        }
        Ok(raw)
    })
}
