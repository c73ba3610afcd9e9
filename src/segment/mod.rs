//! The segment file format, version 1. Pure: no clock, no randomness, no I/O.
//!
//! Owns: the raw block ([`BlockBuilder`] writes it, [`RawBlock::rows`] reads it), its compressed form ([`PackedBlock`]), the payload
//! of a queued batch ([`pack_payload`], [`unpack_payload`]), the segment object ([`encode`], [`verify_encoded`], [`SegmentFile`]) and its key filter.
//! Does not own: object keys (`branch::layout`), what rows mean (`change`), where bytes are kept (`store`, `ledger`).
//!
//! `docs/segment-format.md` says it all to the byte. Reading order: `block` (layout), `builder`, `rows`; then `packed`, `payload`;
//! then `header`, `footer`, `encode`, `file`. Every reader here treats its input as hostile: lengths are bounded before anything is allocated, and what is
//! wrong is a fault of kind `Corrupt` that names the offset.

mod block;
#[cfg(test)]
mod block_tests;
mod builder;
mod codec;
mod encode;
mod file;
#[cfg(test)]
mod file_tests;
pub(crate) mod filter;
mod footer;
mod header;
mod packed;
mod payload;
mod rows;
mod scan;
#[cfg(test)]
mod testing;
mod wire;

pub use block::{BLOCK_BYTES, MAX_BLOCK_BYTES, RawBlock};
pub use builder::BlockBuilder;
pub use encode::{Encoded, encode, verify_encoded};
pub use file::SegmentFile;
pub(crate) use filter::may_contain_document;
pub use footer::{BlockEntry, Footer, Summary, TAIL_BYTES, TailResult, tail_bytes};
pub use header::SegmentHeader;
pub use packed::PackedBlock;
pub use payload::{pack_payload, unpack_payload};
pub use rows::Rows;
