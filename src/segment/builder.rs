//! Owns: collecting rows column by column into a block. Runs on the ingest path: little more than copying.
//! Does not own: when a block is closed, which is the caller's decision by [`BlockBuilder::encoded_len`].

use std::collections::HashMap;

use bson::RawDocument;
use bytes::Bytes;
use xxhash_rust::xxh3::{xxh3_64, xxh3_64_with_seed};

use super::block::{
    HAS_BODY, HAS_KEY, HAS_WALL, HEAD_LEN, MAX_BLOCK_BYTES, MAX_TABLE, ROW_COLUMNS_V1, RawBlock, SHAPE_LEN, TXN_NEXT, TXN_NONE, TXN_SAME,
};
use super::wire::{MAX_VARINT, put_varint, zigzag};
use crate::change::{ChangeRef, ClusterTime, Op};
use crate::fault::{Fault, Result};

/// Bodies of updates up to this size (bytes) are looked up among earlier ones; longer ones seldom repeat and zstd finds those that do.
const MAX_REPEATED_BODY: usize = 512;

/// Shapes of one collection: six ops, eight sets of flags.
const SHAPES_PER_COLLECTION: usize = 6 * 8;

/// Collects rows into one block.
#[derive(Debug)]
pub struct BlockBuilder {
    first_seq: u64,
    count: u32,
    /// Exactly what `finish` will write, kept as rows come in.
    len: usize,
    last_time: u64,
    last_wall: i64,
    collections: Vec<Collection>,
    by_hash: HashMap<u64, u32>,
    shapes: Vec<Shape>,
    row_shapes: Vec<u8>,
    times: Vec<u8>,
    walls: Vec<u8>,
    /// Empty until the first row that is in a transaction, then one mark a row.
    marks: Vec<u8>,
    txns: Vec<u8>,
    last_txn_at: usize,
    recent: Recent,
}

#[derive(Debug)]
struct Collection {
    name: Box<str>,
    uuid: Option<[u8; 16]>,
    /// Shape number plus one by op and flags; 0 is none yet.
    shapes: [u32; SHAPES_PER_COLLECTION],
}

#[derive(Debug)]
struct Shape {
    collection: u32,
    op: Op,
    flags: u8,
    keys: Column,
    bodies: Column,
}

/// Documents of one shape. `refs` stays empty until one repeats.
#[derive(Debug, Default)]
struct Column {
    rows: u32,
    distinct: u32,
    refs: Vec<u8>,
    docs: Vec<u8>,
}

impl BlockBuilder {
    /// An empty block whose first row will have number `first_seq`.
    pub fn new(first_seq: u64) -> Self {
        Self {
            first_seq,
            count: 0,
            len: HEAD_LEN,
            last_time: 0,
            last_wall: 0,
            collections: Vec::new(),
            by_hash: HashMap::new(),
            shapes: Vec::new(),
            row_shapes: Vec::new(),
            times: Vec::new(),
            walls: Vec::new(),
            marks: Vec::new(),
            txns: Vec::new(),
            last_txn_at: 0,
            recent: Recent::default(),
        }
    }

    /// Rows so far.
    pub fn count(&self) -> u32 {
        self.count
    }

    /// Bytes that [`Self::finish`] would write now.
    pub fn encoded_len(&self) -> usize {
        self.len
    }

    /// No row yet.
    pub fn is_empty(&self) -> bool {
        self.count == 0
    }

    /// Appends a row. A row that would make the block too large for any reader is refused and leaves the block as it was.
    pub fn push(&mut self, c: &ChangeRef<'_>) -> Result<()> {
        self.check_room(c)?;
        let shape = self.shape_of(c);
        let before = self.row_shapes.len() + self.times.len() + self.walls.len();
        put_varint(&mut self.row_shapes, u64::from(shape));
        let time = pack_time(c.time);
        put_varint(&mut self.times, zigzag(time.wrapping_sub(self.last_time).cast_signed()));
        self.last_time = time;
        if let Some(wall) = c.wall_ms {
            put_varint(&mut self.walls, zigzag(wall.wrapping_sub(self.last_wall)));
            self.last_wall = wall;
        }
        self.len += self.row_shapes.len() + self.times.len() + self.walls.len() - before;
        self.push_txn(c.txn);
        let Shape { op, keys, bodies, .. } = &mut self.shapes[shape as usize];
        if let Some(key) = c.key {
            self.len += keys.push(key.as_bytes(), Some((&mut self.recent, shape << 1)));
        }
        if let Some(body) = c.body {
            let body = body.as_bytes();
            let may_repeat = matches!(op, Op::Update | Op::Described) && body.len() <= MAX_REPEATED_BODY;
            self.len += bodies.push(body, may_repeat.then_some((&mut self.recent, (shape << 1) | 1)));
        }
        self.count += 1;
        Ok(())
    }

    fn check_room(&self, c: &ChangeRef<'_>) -> Result<()> {
        let len = |d: Option<&RawDocument>| d.map_or(0, |d| d.as_bytes().len());
        // Varints of shape, time, wall, name length and two references; the row that starts a column of marks or references fills it up.
        let meta = 16 + 1 + SHAPE_LEN + 6 * MAX_VARINT + 3 * (self.count as usize + 1);
        let most = self.len.saturating_add(len(c.key)).saturating_add(len(c.body)).saturating_add(len(c.txn));
        if most.saturating_add(c.coll.len()).saturating_add(meta) > MAX_BLOCK_BYTES
            || self.count == u32::MAX
            || self.shapes.len() >= MAX_TABLE
        {
            return Err(Fault::rejected(format!(
                "a change of {} bytes does not fit a block of {} bytes (limit {MAX_BLOCK_BYTES}) and {} shapes (limit {MAX_TABLE})",
                c.raw_bytes(),
                self.len,
                self.shapes.len()
            )));
        }
        Ok(())
    }

    fn shape_of(&mut self, c: &ChangeRef<'_>) -> u32 {
        let mut flags = 0;
        for (flag, present) in [(HAS_KEY, c.key.is_some()), (HAS_BODY, c.body.is_some()), (HAS_WALL, c.wall_ms.is_some())] {
            flags |= if present { flag } else { 0 };
        }
        let collection = self.collection_of(c.coll, c.uuid);
        let slot = &mut self.collections[collection as usize].shapes[(c.op as usize - 1) * 8 + usize::from(flags)];
        if *slot == 0 {
            self.shapes.push(Shape { collection, op: c.op, flags, keys: Column::default(), bodies: Column::default() });
            *slot = count32(self.shapes.len());
            self.len += SHAPE_LEN;
        }
        *slot - 1
    }

    /// Two collections of one hash are both entered: an entry that comes twice is legal, a wrong one would not be.
    fn collection_of(&mut self, name: &str, uuid: Option<[u8; 16]>) -> u32 {
        let hash = xxh3_64_with_seed(name.as_bytes(), uuid.map_or(0, uuid_seed));
        if let Some(&n) = self.by_hash.get(&hash) {
            let known = &self.collections[n as usize];
            if &*known.name == name && known.uuid == uuid {
                return n;
            }
        }
        let n = count32(self.collections.len());
        let mut scratch = Vec::with_capacity(MAX_VARINT);
        put_varint(&mut scratch, name.len() as u64);
        self.len += scratch.len() + name.len() + 1 + uuid.map_or(0, |u| u.len());
        self.collections.push(Collection { name: name.into(), uuid, shapes: [0; SHAPES_PER_COLLECTION] });
        self.by_hash.insert(hash, n);
        n
    }

    /// Rows of one transaction follow each other in the stream, so a row is compared with the last transaction only.
    fn push_txn(&mut self, txn: Option<&RawDocument>) {
        let mark = match txn.map(RawDocument::as_bytes) {
            None if self.marks.is_empty() => return,
            None => TXN_NONE,
            Some(txn) if !self.txns.is_empty() && self.txns[self.last_txn_at..] == *txn => TXN_SAME,
            Some(txn) => {
                self.last_txn_at = self.txns.len();
                self.txns.extend_from_slice(txn);
                self.len += txn.len();
                TXN_NEXT
            }
        };
        if self.marks.is_empty() {
            self.marks.resize(self.count as usize, TXN_NONE);
            self.len += self.marks.len();
        }
        self.marks.push(mark);
        self.len += 1;
    }

    /// The block. An empty builder gives a block of no rows, which no reader accepts: ask [`Self::is_empty`] first.
    pub fn finish(self) -> RawBlock {
        let mut out = Vec::with_capacity(self.len);
        let mut names = Vec::new();
        for c in &self.collections {
            put_varint(&mut names, c.name.len() as u64);
            names.extend_from_slice(c.name.as_bytes());
            names.push(u8::from(c.uuid.is_some()));
            names.extend_from_slice(c.uuid.as_ref().map_or(&[], |u| &u[..]));
        }
        out.extend_from_slice(&[ROW_COLUMNS_V1, 0, 0, 0]);
        out.extend_from_slice(&self.count.to_le_bytes());
        out.extend_from_slice(&self.first_seq.to_le_bytes());
        put_len(&mut out, self.collections.len());
        put_len(&mut out, self.shapes.len());
        let sections = [&names, &self.row_shapes, &self.times, &self.walls, &self.marks, &self.txns];
        sections.iter().for_each(|s| put_len(&mut out, s.len()));
        sections.iter().for_each(|s| out.extend_from_slice(s));
        for s in &self.shapes {
            out.extend_from_slice(&s.collection.to_le_bytes());
            out.extend_from_slice(&[s.op as u8, s.flags, 0, 0]);
            s.sections().iter().for_each(|s| put_len(&mut out, s.len()));
        }
        self.shapes.iter().flat_map(Shape::sections).for_each(|s| out.extend_from_slice(s));
        RawBlock { first_seq: self.first_seq, count: self.count, bytes: Bytes::from(out) }
    }
}

impl Shape {
    fn sections(&self) -> [&Vec<u8>; 4] {
        [&self.keys.refs, &self.keys.docs, &self.bodies.refs, &self.bodies.docs]
    }
}

impl Column {
    /// Appends a document, or a reference to it if `recent` knows it; the bytes added.
    fn push(&mut self, doc: &[u8], recent: Option<(&mut Recent, u32)>) -> usize {
        let before = self.refs.len() + self.docs.len();
        let known = recent.and_then(|(recent, column)| recent.find_or_note(column, doc, &self.docs, self.distinct));
        if let Some(n) = known {
            if self.refs.is_empty() {
                self.refs.resize(self.rows as usize, 0);
            }
            put_varint(&mut self.refs, u64::from(n) + 1);
        } else {
            if !self.refs.is_empty() {
                self.refs.push(0);
            }
            self.docs.extend_from_slice(doc);
            self.distinct += 1;
        }
        self.rows += 1;
        self.refs.len() + self.docs.len() - before
    }
}

/// Where documents came before: a table of fixed size with short probes, so that no choice of keys makes it slow or large.
/// It may forget; then a document is written once more, which is legal.
#[derive(Debug, Default)]
struct Recent {
    slots: Vec<Slot>,
}

/// `number` is the document's place in its column plus one; 0 is an empty slot.
#[derive(Debug, Clone, Copy, Default)]
struct Slot {
    tag: u32,
    column: u32,
    offset: u32,
    number: u32,
}

impl Recent {
    /// 16 bytes each, 256 KiB in all: holds the hot documents of a block and stays in the second-level cache.
    const SLOTS: usize = 1 << 14;
    const PROBES: usize = 4;

    /// The number of `doc` in the column, or `None` after noting it as number `next`, about to be appended to `docs`.
    fn find_or_note(&mut self, column: u32, doc: &[u8], docs: &[u8], next: u32) -> Option<u32> {
        if self.slots.is_empty() {
            self.slots = vec![Slot::default(); Self::SLOTS];
        }
        let hash = xxh3_64_with_seed(doc, u64::from(column));
        let tag = (hash >> 32) as u32;
        #[allow(clippy::cast_possible_truncation)] // masked to the size of the table
        let home = hash as usize & (Self::SLOTS - 1) & !(Self::PROBES - 1);
        let bucket = &mut self.slots[home..home + Self::PROBES];
        let mut free = next as usize & (Self::PROBES - 1);
        for (n, slot) in bucket.iter().enumerate() {
            if slot.number == 0 {
                free = n;
                break;
            }
            if slot.tag == tag && slot.column == column && docs.get(slot.offset as usize..).is_some_and(|d| d.starts_with(doc)) {
                return Some(slot.number - 1);
            }
        }
        bucket[free] = Slot { tag, column, offset: count32(docs.len()), number: next + 1 };
        None
    }
}

/// Seconds above, increment below: one difference says it all, mostly in one byte.
pub(super) fn pack_time(time: ClusterTime) -> u64 {
    (u64::from(time.t) << 32) | u64::from(time.i)
}

/// Never 0, the seed of a collection without UUID.
fn uuid_seed(uuid: [u8; 16]) -> u64 {
    xxh3_64(&uuid) | 1
}

/// Every length in a block is at most [`MAX_BLOCK_BYTES`], see `check_room`.
#[allow(clippy::cast_possible_truncation)]
fn count32(n: usize) -> u32 {
    debug_assert!(n <= MAX_BLOCK_BYTES);
    n as u32
}

fn put_len(out: &mut Vec<u8>, len: usize) {
    out.extend_from_slice(&count32(len).to_le_bytes());
}
