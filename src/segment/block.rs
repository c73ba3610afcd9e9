//! Owns: the layout of a raw block and the [`RawBlock`] that carries one.
//! Does not own: writing it (`builder`), reading it (`rows`), or compressing it (`codec`).
//!
//! Metadata beside documents ruins compression, so a block is split in columns:
//!
//! ```text
//! head  : format u8 = 1, zero u8 x 3, count u32, first seq u64, collections u32, shapes u32,
//!         then the byte lengths of the next six sections, u32 each                                    = 48 bytes
//! sections: collections, row shapes, times, walls, transaction marks, transactions
//! shape table: 24 bytes each: collection u32, op u8, flags u8, zero u16, and four lengths u32 of
//! shape sections, per shape: key references, keys, body references, bodies
//! ```
//!
//! A *shape* is (collection, op, which parts are present); a row is mostly one byte that names its shape. Documents of one shape
//! lie side by side, since they resemble each other. A document that came before in the same column is a reference to it.

use bytes::Bytes;

use super::rows::Rows;
use crate::fault::Result;

/// A block is closed when its encoded size reaches this (bytes). Larger blocks compress little better and cost a point read more.
pub const BLOCK_BYTES: usize = 1 << 20;

/// No block is larger (bytes, uncompressed): bounds what a reader allocates. One change of the server is at most 16 MiB and a bit.
pub const MAX_BLOCK_BYTES: usize = 64 << 20;

/// No block has more collections, nor more shapes: an entry takes ten times its bytes in memory once it is read. A block of
/// [`BLOCK_BYTES`] has room for a third of it.
pub(super) const MAX_TABLE: usize = 1 << 16;

/// The format byte of row-columns v1. Others will follow (documents shredded into columns).
pub(super) const ROW_COLUMNS_V1: u8 = 1;
/// Bytes of the fixed head.
pub(super) const HEAD_LEN: usize = 48;
/// Bytes of an entry of the shape table.
pub(super) const SHAPE_LEN: usize = 24;

/// Rows of the shape have a key.
pub(super) const HAS_KEY: u8 = 1;
/// Rows of the shape have a body.
pub(super) const HAS_BODY: u8 = 2;
/// Rows of the shape have a wall time.
pub(super) const HAS_WALL: u8 = 4;
/// All flags of this version.
pub(super) const KNOWN_FLAGS: u8 = HAS_KEY | HAS_BODY | HAS_WALL;

/// The row is in no transaction.
pub(super) const TXN_NONE: u8 = 0;
/// The row is in the transaction last named.
pub(super) const TXN_SAME: u8 = 1;
/// The row is in the next transaction of the transactions section.
pub(super) const TXN_NEXT: u8 = 2;

/// An uncompressed encoded block, about [`BLOCK_BYTES`]; one row may make it longer, up to [`MAX_BLOCK_BYTES`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RawBlock {
    /// Sequence number of the first row.
    pub first_seq: u64,
    /// Rows, at least one.
    pub count: u32,
    /// The block, see `docs/segment-format.md`.
    pub bytes: Bytes,
}

impl RawBlock {
    /// The rows in order of seq. The head is checked here, the rest as it is reached; after an error nothing follows.
    pub fn rows(&self) -> Result<Rows<'_>> {
        Rows::new(self)
    }

    /// Sequence number of the last row.
    pub fn last_seq(&self) -> u64 {
        self.first_seq.saturating_add(u64::from(self.count.saturating_sub(1)))
    }
}
