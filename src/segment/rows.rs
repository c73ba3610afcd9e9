//! Owns: reading the rows of a block back, in order of seq, borrowed from the block.
//! Does not own: checksums (`codec`, `file`); a block that lies is an error here too, never a panic.

use bson::RawDocument;

use super::block::{
    HAS_BODY, HAS_KEY, HAS_WALL, KNOWN_FLAGS, MAX_BLOCK_BYTES, MAX_TABLE, ROW_COLUMNS_V1, RawBlock, SHAPE_LEN, TXN_NEXT, TXN_NONE, TXN_SAME,
};
use super::wire::{Cursor, unzigzag};
use crate::change::{ChangeRef, ClusterTime, Op};
use crate::fault::{Fault, Result};

/// Name and UUID.
type Collection<'a> = (&'a str, Option<[u8; 16]>);

/// Streams the rows of one block.
#[derive(Debug)]
pub struct Rows<'a> {
    next_seq: u64,
    left: u32,
    collections: Vec<Collection<'a>>,
    shapes: Vec<Shape<'a>>,
    row_shapes: Cursor<'a>,
    times: Cursor<'a>,
    walls: Cursor<'a>,
    marks: Option<Cursor<'a>>,
    txns: Cursor<'a>,
    last_time: u64,
    last_wall: i64,
    last_txn: Option<&'a RawDocument>,
    /// Set by the first error and after the last row.
    over: bool,
}

#[derive(Debug)]
struct Shape<'a> {
    collection: u32,
    op: Op,
    flags: u8,
    keys: Column<'a>,
    bodies: Column<'a>,
}

/// Documents of one shape; `refs` is absent if none repeats.
#[derive(Debug)]
struct Column<'a> {
    refs: Option<Cursor<'a>>,
    docs: Cursor<'a>,
    seen: Vec<&'a RawDocument>,
}

/// A row as the index maker sees it.
#[derive(Debug)]
pub(super) struct Step<'a> {
    /// Index into [`Rows::collections`].
    pub(super) collection: u32,
    pub(super) seq: u64,
    pub(super) change: ChangeRef<'a>,
    /// False if a row of this collection and op had the very same key before.
    pub(super) new_key: bool,
    /// The same of the body.
    pub(super) new_body: bool,
}

impl<'a> Rows<'a> {
    /// Checks the head, the lengths of all sections, and both tables.
    pub(super) fn new(block: &'a RawBlock) -> Result<Self> {
        let bytes = &block.bytes[..];
        if bytes.len() > MAX_BLOCK_BYTES {
            return Err(Fault::corrupt(format!("block of {} bytes is over the limit of {MAX_BLOCK_BYTES}", bytes.len())));
        }
        let mut head = Cursor::new(bytes, "block");
        let format = head.u8()?;
        if format != ROW_COLUMNS_V1 {
            return Err(Fault::corrupt(format!("block at byte 0: format {format} is not known to this version")));
        }
        head.zeros(3)?;
        let (count, first_seq) = (head.u32()?, head.u64()?);
        if (count, first_seq) != (block.count, block.first_seq) || count == 0 {
            return Err(Fault::corrupt(format!(
                "block at byte 4: {count} rows from seq {first_seq}, expected {} from {}",
                block.count, block.first_seq
            )));
        }
        if first_seq.checked_add(u64::from(count)).is_none() {
            return Err(Fault::corrupt("block at byte 8: sequence numbers run over"));
        }
        let (collections, shapes) = (head.len32()?, head.len32()?);
        if collections.max(shapes) > MAX_TABLE {
            return Err(head.fault(&format!("{collections} collections and {shapes} shapes, over the limit of {MAX_TABLE}")));
        }
        let mut lens = [0; 6];
        for len in &mut lens {
            *len = head.len32()?;
        }
        let names = head.section(lens[0], "collections")?;
        let row_shapes = head.section(lens[1], "row shapes")?;
        let times = head.section(lens[2], "times")?;
        let walls = head.section(lens[3], "wall times")?;
        let marks = head.section(lens[4], "transaction marks")?;
        let txns = head.section(lens[5], "transactions")?;
        let collections = read_collections(names, collections)?;
        let shapes = read_shapes(head, shapes, collections.len())?;
        Ok(Self {
            next_seq: first_seq,
            left: count,
            collections,
            shapes,
            row_shapes,
            times,
            walls,
            marks: (!marks.is_empty()).then_some(marks),
            txns,
            last_time: 0,
            last_wall: 0,
            last_txn: None,
            over: false,
        })
    }

    /// The collections of the block; [`Step::collection`] indexes them. An entry may come twice, or have no row.
    pub(super) fn collections(&self) -> &[Collection<'a>] {
        &self.collections
    }

    /// The next row; after the last one everything must be used up.
    pub(super) fn step(&mut self) -> Result<Option<Step<'a>>> {
        if self.left == 0 {
            self.finish()?;
            return Ok(None);
        }
        let number = self.row_shapes.varint()?;
        let Some(shape) = usize::try_from(number).ok().and_then(|n| self.shapes.get_mut(n)) else {
            return Err(self.row_shapes.fault(&format!("shape {number} of {}", self.shapes.len())));
        };
        let delta = unzigzag(self.times.varint()?);
        self.last_time = self.last_time.wrapping_add(delta.cast_unsigned());
        let mut wall_ms = None;
        if shape.flags & HAS_WALL != 0 {
            self.last_wall = self.last_wall.wrapping_add(unzigzag(self.walls.varint()?));
            wall_ms = Some(self.last_wall);
        }
        let (key, new_key) = if shape.flags & HAS_KEY != 0 { shape.keys.next()? } else { (None, true) };
        let (body, new_body) = if shape.flags & HAS_BODY != 0 { shape.bodies.next()? } else { (None, true) };
        let txn = match &mut self.marks {
            None => None,
            Some(marks) => match marks.u8()? {
                TXN_NONE => None,
                TXN_SAME if self.last_txn.is_some() => self.last_txn,
                TXN_NEXT => {
                    self.last_txn = Some(self.txns.doc()?);
                    self.last_txn
                }
                mark => return Err(marks.fault(&format!("mark {mark} has no meaning here"))),
            },
        };
        let (coll, uuid) = self.collections[shape.collection as usize];
        let time = ClusterTime { t: (self.last_time >> 32) as u32, i: (self.last_time & 0xffff_ffff) as u32 };
        let seq = self.next_seq;
        self.next_seq += 1;
        self.left -= 1;
        let change = ChangeRef { op: shape.op, coll, uuid, time, wall_ms, txn, key, body };
        Ok(Some(Step { collection: shape.collection, seq, change, new_key, new_body }))
    }

    fn finish(&self) -> Result<()> {
        for cursor in [&self.row_shapes, &self.times, &self.walls, &self.txns].into_iter().chain(&self.marks) {
            cursor.finish()?;
        }
        for column in self.shapes.iter().flat_map(|s| [&s.keys, &s.bodies]) {
            column.docs.finish()?;
            column.refs.as_ref().map_or(Ok(()), Cursor::finish)?;
        }
        Ok(())
    }
}

impl<'a> Iterator for Rows<'a> {
    type Item = Result<(u64, ChangeRef<'a>)>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.over {
            return None;
        }
        let row = self.step().map(|row| row.map(|step| (step.seq, step.change)));
        self.over = !matches!(row, Ok(Some(_)));
        row.transpose()
    }
}

impl<'a> Column<'a> {
    /// The document of the next row, and whether it is new to the column.
    fn next(&mut self) -> Result<(Option<&'a RawDocument>, bool)> {
        let Some(refs) = &mut self.refs else {
            return Ok((Some(self.docs.doc()?), true));
        };
        let number = refs.varint()?;
        if number == 0 {
            let doc = self.docs.doc()?;
            self.seen.push(doc);
            return Ok((Some(doc), true));
        }
        match usize::try_from(number - 1).ok().and_then(|n| self.seen.get(n)) {
            Some(&doc) => Ok((Some(doc), false)),
            None => Err(refs.fault(&format!("document {number} of {} so far", self.seen.len()))),
        }
    }
}

fn read_collections(mut names: Cursor<'_>, count: usize) -> Result<Vec<Collection<'_>>> {
    // An entry has at least a length and a flag.
    if count > names.left() / 2 {
        return Err(names.fault(&format!("{count} collections in {} bytes", names.left())));
    }
    let mut collections = Vec::with_capacity(count);
    for _ in 0..count {
        let len = names.varint()?;
        let len = usize::try_from(len).map_err(|_| names.fault("a name is too long"))?;
        let name = names.text(len)?;
        let uuid = match names.u8()? {
            0 => None,
            1 => Some(names.uuid()?),
            flag => return Err(names.fault(&format!("UUID flag {flag}"))),
        };
        collections.push((name, uuid));
    }
    names.finish()?;
    Ok(collections)
}

fn read_shapes(mut rest: Cursor<'_>, count: usize, collections: usize) -> Result<Vec<Shape<'_>>> {
    let len = count.checked_mul(SHAPE_LEN).ok_or_else(|| rest.fault("too many shapes"))?;
    let mut table = rest.section(len, "shape table")?;
    let mut shapes = Vec::with_capacity(count);
    for _ in 0..count {
        let collection = table.u32()?;
        if collection as usize >= collections {
            return Err(table.fault(&format!("collection {collection} of {collections}")));
        }
        let (op, flags) = (table.u8()?, table.u8()?);
        let op = Op::from_u8(op).ok_or_else(|| table.fault(&format!("op {op} is not known to this version")))?;
        if flags & !KNOWN_FLAGS != 0 {
            return Err(table.fault(&format!("flags {flags:#04x} are not known to this version")));
        }
        table.zeros(2)?;
        let mut column = |refs, docs| -> Result<Column<'_>> {
            let refs = rest.section(table.len32()?, refs)?;
            let docs = rest.section(table.len32()?, docs)?;
            Ok(Column { refs: (!refs.is_empty()).then_some(refs), docs, seen: Vec::new() })
        };
        let keys = column("key references", "keys")?;
        let bodies = column("body references", "bodies")?;
        shapes.push(Shape { collection, op, flags, keys, bodies });
    }
    rest.finish()?;
    Ok(shapes)
}
