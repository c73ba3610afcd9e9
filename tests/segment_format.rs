//! Segment format v1 is what `docs/segment-format.md` says: the golden files are read here by those bytes alone, with none of the
//! engine's readers, and the engine reads and still writes the same.
//!
//! The files under `tests/golden/segment-v1` are never made anew: objects in buckets are as old as they are. A later version of the
//! format gets a directory of its own, filled once by `ARGON_GOLDEN=write cargo test --test segment_format`.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::cast_possible_truncation)] // the reader here complains by panicking

use std::fmt::Write as _;
use std::path::PathBuf;
use std::sync::atomic::AtomicBool;

use argon::change::{ChangeRef, ClusterTime, Op, canonical_id};
use argon::ledger::{Ends, SegmentKind};
use argon::segment::{BlockBuilder, PackedBlock, RawBlock, SegmentFile, SegmentHeader, encode, verify_encoded};
use bson::{Decimal128, RawDocumentBuf, oid::ObjectId, rawdoc};
use xxhash_rust::xxh3::xxh3_64;

#[derive(Clone)]
struct Row {
    op: Op,
    coll: &'static str,
    uuid: Option<[u8; 16]>,
    time: (u32, u32),
    wall: Option<i64>,
    txn: Option<i64>,
    key: Option<RawDocumentBuf>,
    body: Option<RawDocumentBuf>,
}

fn oid(n: u8) -> ObjectId {
    ObjectId::from_bytes([0x65, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, n])
}

/// Every op, every part present and absent, repeated documents, transactions, keys of several types, one hole.
fn rows() -> Vec<Row> {
    let base = Row {
        op: Op::Insert,
        coll: "orders",
        uuid: Some([0x3e; 16]),
        time: (1_795_467_772, 1),
        wall: Some(1_795_467_772_345),
        txn: None,
        key: None,
        body: None,
    };
    let id = |n| Some(rawdoc! {"_id": oid(n)});
    let paid = || Some(rawdoc! {"u": {"status": "paid"}});
    let create = rawdoc! {"operationType": "create", "ns": {"db": "shop", "coll": "orders"}, "operationDescription": {"idIndex": {"v": 2}}};
    let later = rawdoc! {
        "operationType": "delete", "ns": {"db": "shop", "coll": "orders"}, "collectionUUID": bson::Binary { subtype: bson::spec::BinarySubtype::Uuid, bytes: vec![0x3e; 16] }, "documentKey": {"_id": oid(9)}, "fieldOfALaterVersion": 1,
    };
    let zero: Decimal128 = "-0".parse().expect("a decimal");
    let mut rows = vec![
        Row { op: Op::Event, body: Some(create), ..base.clone() },
        Row { body: Some(rawdoc! {"_id": oid(1), "status": "new", "n": 1}), ..base.clone() },
        Row { body: Some(rawdoc! {"_id": oid(2), "status": "new", "n": 2}), time: (1_795_467_772, 2), ..base.clone() },
        Row { op: Op::Update, key: id(1), body: paid(), time: (1_795_467_772, 3), ..base.clone() },
        Row { op: Op::Update, key: id(2), body: paid(), txn: Some(7), time: (1_795_467_773, 1), ..base.clone() },
        Row { op: Op::Update, key: id(1), body: paid(), txn: Some(7), time: (1_795_467_773, 1), ..base.clone() },
        Row { op: Op::Delete, key: id(2), txn: Some(8), time: (1_795_467_773, 2), wall: Some(1_795_467_771_000), ..base.clone() },
        Row {
            op: Op::Insert,
            key: Some(rawdoc! {"region": "eu", "_id": 1}),
            body: Some(rawdoc! {"_id": 1, "region": "eu"}),
            ..base.clone()
        },
        Row { op: Op::Replace, body: Some(rawdoc! {"_id": 1i64, "x": f64::NAN}), wall: None, ..base.clone() },
        Row { op: Op::Replace, body: Some(rawdoc! {"_id": zero, "x": 1}), coll: "zahlen-ü", uuid: None, ..base.clone() },
        Row {
            op: Op::Described,
            key: Some(rawdoc! {"_id": "k"}),
            body: Some(rawdoc! {"updatedFields": {"a.b": 1}, "removedFields": [], "truncatedArrays": []}),
            ..base.clone()
        },
        Row { op: Op::Event, body: Some(later), ..base.clone() },
        Row { op: Op::Update, key: id(1), body: Some(rawdoc! {"u": {"n": 3}, "zz": {"x": 1}}), ..base.clone() },
        Row {
            op: Op::Event,
            coll: "",
            uuid: None,
            body: Some(rawdoc! {"operationType": "dropDatabase", "ns": {"db": "shop"}}),
            ..base.clone()
        },
    ];
    let first_of_second_block = rows.len();
    rows.extend((0..40).map(|n| Row { op: Op::Update, key: id(n % 5), body: paid(), time: (1_795_467_774, u32::from(n)), ..base.clone() }));
    assert_eq!(first_of_second_block, SPLIT);
    rows
}

/// Rows in the first block.
const SPLIT: usize = 14;
const FIRST_SEQ: u64 = 0x1_0000_0001;

fn build(seq: u64, rows: &[Row]) -> RawBlock {
    let mut builder = BlockBuilder::new(seq);
    for r in rows {
        let txn = r.txn.map(|n| rawdoc! {"lsid": {"id": "session"}, "txnNumber": n});
        let time = ClusterTime { t: r.time.0, i: r.time.1 };
        let change = ChangeRef {
            op: r.op,
            coll: r.coll,
            uuid: r.uuid,
            time,
            wall_ms: r.wall,
            txn: txn.as_deref(),
            key: r.key.as_deref(),
            body: r.body.as_deref(),
        };
        builder.push(&change).unwrap();
    }
    builder.finish()
}

fn header(kind: SegmentKind) -> SegmentHeader {
    SegmentHeader {
        kind,
        branch: "0b0c2f6e-6f0a-4a2e-9d55-1f8f3a8f9b11".into(),
        epoch: 2,
        first_seq: FIRST_SEQ,
        last_seq: FIRST_SEQ + 53,
        first_time: ClusterTime { t: 1_795_467_772, i: 1 },
        last_time: ClusterTime { t: 1_795_467_774, i: 39 },
        last_wall_ms: (kind == SegmentKind::Changes).then_some(1_795_467_772_345),
        start_token: rawdoc! {"_data": "826B048B3C000000012B0229296E04"},
        end_token: rawdoc! {"_data": "826B048B3E000000272B0229296E04"},
        starts_inside: true,
        ends: if kind == SegmentKind::Changes { Ends::Unknown } else { Ends::Closed },
        db: "shop".into(),
        reason: (kind == SegmentKind::Gap).then(|| "the oplog rolled past the checkpoint".into()),
    }
}

/// The object as the engine writes it today.
fn encode_now(kind: SegmentKind) -> Vec<u8> {
    let rows = rows();
    let mut blocks = vec![build(FIRST_SEQ, &rows[..SPLIT]), build(FIRST_SEQ + SPLIT as u64, &rows[SPLIT..])];
    blocks.truncate(if kind == SegmentKind::Gap { 0 } else { 2 });
    let blocks: Vec<PackedBlock> = blocks.into_iter().map(|b| PackedBlock::pack(b).unwrap()).collect();
    let encoded = encode(&header(kind), &blocks, &AtomicBool::new(false)).unwrap();
    verify_encoded(&encoded, &header(kind), &blocks).unwrap();
    encoded.bytes.to_vec()
}

fn golden(name: &str, make: impl FnOnce() -> Vec<u8>) -> Vec<u8> {
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/golden/segment-v1").join(name);
    if !path.exists() && std::env::var("ARGON_GOLDEN").is_ok_and(|v| v == "write") {
        std::fs::write(&path, make()).unwrap();
    }
    std::fs::read(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()))
}

/// A reader made of `docs/segment-format.md` alone. It panics where a reader should complain.
mod by_the_book {
    use super::xxh3_64;
    use std::fmt::Write as _;

    pub(crate) struct Block {
        pub(crate) filter: Vec<u8>,
        pub(crate) rows: String,
    }

    struct In<'a>(&'a [u8]);

    impl<'a> In<'a> {
        fn take(&mut self, n: usize) -> &'a [u8] {
            let (a, b) = self.0.split_at(n);
            self.0 = b;
            a
        }
        fn u8(&mut self) -> u8 {
            self.take(1)[0]
        }
        fn u32(&mut self) -> usize {
            u32::from_le_bytes(self.take(4).try_into().unwrap()) as usize
        }
        fn u64(&mut self) -> u64 {
            u64::from_le_bytes(self.take(8).try_into().unwrap())
        }
        fn varint(&mut self) -> u64 {
            let (mut value, mut shift) = (0, 0);
            loop {
                let byte = self.u8();
                value |= u64::from(byte & 0x7f) << shift;
                shift += 7;
                if byte < 0x80 {
                    return value;
                }
            }
        }
        fn zigzag(&mut self) -> i64 {
            let n = self.varint();
            (n >> 1).cast_signed() ^ -((n & 1).cast_signed())
        }
        fn doc(&mut self) -> &'a [u8] {
            let len = u32::from_le_bytes(self.0[..4].try_into().unwrap()) as usize;
            self.take(len)
        }
        fn name(&mut self, len: usize) -> String {
            let name = String::from_utf8(self.take(len).to_vec()).unwrap();
            match self.u8() {
                0 => format!("{name:?}"),
                1 => format!("{name:?}/{}", hex(self.take(16))),
                n => panic!("UUID flag {n}"),
            }
        }
    }

    fn hex(bytes: &[u8]) -> String {
        bytes.iter().fold(String::new(), |mut s, b| {
            write!(s, "{b:02x}").unwrap();
            s
        })
    }

    /// The segment as text, and its blocks.
    pub(crate) fn read(object: &[u8]) -> (String, Vec<Block>) {
        let mut out = String::new();
        let size = object.len();
        let mut trailer = In(&object[size - 48..]);
        let (footer_offset, footer_len) = (trailer.u64() as usize, trailer.u64() as usize);
        let (footer_hash, total) = (trailer.u64(), trailer.u64());
        assert_eq!((trailer.u32(), trailer.u32(), trailer.0), (1, 0, &b"ARGNEND1"[..]));
        assert_eq!(total, xxh3_64(&object[..size - 24]));
        assert_eq!(footer_offset + footer_len + 48, size);

        let mut head = In(object);
        assert_eq!((head.take(8), head.u32()), (&b"ARGNSEG1"[..], 1));
        let header_len = head.u32();
        let document = bson::Document::from_reader(head.take(header_len)).unwrap();
        assert_eq!(head.u64(), xxh3_64(&object[..16 + header_len]));
        for (name, value) in document {
            writeln!(out, "{name}: {value}").unwrap();
        }

        let mut footer = In(&object[footer_offset..footer_offset + footer_len]);
        assert_eq!(footer_hash, xxh3_64(footer.0));
        let (collections, blocks) = (footer.u32(), footer.u32());
        let (changes, raw_bytes, holes, flags) = (footer.u64(), footer.u64(), footer.u64(), footer.u8());
        assert_eq!(footer.take(7), [0; 7]);
        writeln!(out, "changes {changes}, raw bytes {raw_bytes}, holes {holes}, flags {flags}").unwrap();
        for n in 0..collections {
            let len = footer.u32();
            writeln!(out, "collection {n}: {}", footer.name(len)).unwrap();
        }
        let mut at = 16 + header_len + 8;
        let mut all = Vec::new();
        for n in 0..blocks {
            let (offset, stored_len, raw_len) = (footer.u64() as usize, footer.u32(), footer.u32());
            let (first_seq, count) = (footer.u64(), footer.u32());
            let (t0, i0, t1, i1) = (footer.u32(), footer.u32(), footer.u32(), footer.u32());
            let (stored_hash, raw_hash, holes) = (footer.u64(), footer.u64(), footer.u32());
            let (codec, flags) = (footer.u8(), footer.u8());
            assert_eq!(footer.take(2), [0; 2]);
            let (collections, filter_len) = (footer.u32(), footer.u32());
            let collections: Vec<_> = (0..collections).map(|_| footer.u32()).collect();
            let filter = footer.take(filter_len).to_vec();
            writeln!(
                out,
                "block {n}: seq {first_seq}, {count} rows, {t0}.{i0} to {t1}.{i1}, holes {holes}, flags {flags}, {collections:?}"
            )
            .unwrap();
            writeln!(out, "filter {}", hex(&filter)).unwrap();
            assert_eq!((offset, codec), (at, 1));
            at += stored_len;
            let stored = &object[offset..at];
            assert_eq!(xxh3_64(stored), stored_hash);
            let raw = zstd::bulk::decompress(stored, raw_len).unwrap();
            assert_eq!((raw.len(), xxh3_64(&raw)), (raw_len, raw_hash));
            all.push(Block { filter, rows: block(&raw, first_seq, count) });
        }
        assert_eq!(at, footer_offset);
        assert!(footer.0.is_empty());
        (out, all)
    }

    struct Column<'a> {
        refs: In<'a>,
        repeats: bool,
        docs: In<'a>,
        seen: Vec<&'a [u8]>,
    }

    impl<'a> Column<'a> {
        fn new(rest: &mut In<'a>, refs: usize, docs: usize) -> Self {
            Self { refs: In(rest.take(refs)), repeats: refs > 0, docs: In(rest.take(docs)), seen: Vec::new() }
        }
        fn next(&mut self) -> String {
            let n = if self.repeats { self.refs.varint() } else { 0 };
            if n == 0 {
                self.seen.push(self.docs.doc());
            }
            hex(if n == 0 { self.seen[self.seen.len() - 1] } else { self.seen[n as usize - 1] })
        }
    }

    fn block(raw: &[u8], first_seq: u64, count: usize) -> String {
        let mut rest = In(raw);
        assert_eq!(rest.take(4), [1, 0, 0, 0]);
        assert_eq!((rest.u32(), rest.u64()), (count, first_seq));
        let (collections, shapes) = (rest.u32(), rest.u32());
        let lens: Vec<_> = (0..6).map(|_| rest.u32()).collect();
        let mut sections: Vec<_> = lens.iter().map(|&len| In(rest.take(len))).collect();
        let [names, row_shapes, times, walls, marks, txns] = &mut sections[..] else { unreachable!() };
        let names: Vec<_> = (0..collections)
            .map(|_| {
                let len = names.varint() as usize;
                names.name(len)
            })
            .collect();
        let table: Vec<_> = (0..shapes)
            .map(|_| {
                let (collection, op, flags) = (rest.u32(), rest.u8(), rest.u8());
                assert_eq!(rest.take(2), [0; 2]);
                (collection, op, flags, [rest.u32(), rest.u32(), rest.u32(), rest.u32()])
            })
            .collect();
        let mut columns: Vec<_> =
            table.iter().map(|(.., l)| (Column::new(&mut rest, l[0], l[1]), Column::new(&mut rest, l[2], l[3]))).collect();
        assert!(rest.0.is_empty());
        let in_txns = lens[4] > 0;
        let (mut time, mut wall, mut txn) = (0u64, 0i64, String::new());
        let mut out = String::new();
        for n in 0..count as u64 {
            let shape = row_shapes.varint() as usize;
            let (collection, op, flags, _) = table[shape];
            time = time.wrapping_add(times.zigzag().cast_unsigned());
            write!(out, "{} op {op} {} ts {}.{}", first_seq + n, names[collection], time >> 32, time & 0xffff_ffff).unwrap();
            if flags & 4 != 0 {
                wall = wall.wrapping_add(walls.zigzag());
                write!(out, " wall {wall}").unwrap();
            }
            let mark = if in_txns { marks.u8() } else { 0 };
            if mark == 2 {
                txn = hex(txns.doc());
            }
            if mark > 0 {
                write!(out, " txn {txn}").unwrap();
            }
            if flags & 1 != 0 {
                write!(out, " key {}", columns[shape].0.next()).unwrap();
            }
            if flags & 2 != 0 {
                write!(out, " body {}", columns[shape].1.next()).unwrap();
            }
            out.push('\n');
        }
        out
    }

    /// Whether the filter may hold a key, by its hashed bytes.
    pub(crate) fn filter_has(filter: &[u8], hashed: &[u8]) -> bool {
        let hash = xxh3_64(hashed);
        let (low, high) = (hash & 0xffff_ffff, (hash >> 32) | 1);
        (0..5).map(|n| (low + n * high) % (filter.len() as u64 * 8)).all(|bit| filter[bit as usize / 8] & (1 << (bit % 8)) != 0)
    }
}

fn text(object: &[u8]) -> String {
    let (mut text, blocks) = by_the_book::read(object);
    blocks.iter().for_each(|b| write!(text, "{}", b.rows).unwrap());
    text
}

const KINDS: [(&str, SegmentKind); 2] = [("changes", SegmentKind::Changes), ("gap", SegmentKind::Gap)];

#[test]
fn golden_files_are_read_by_the_bytes_in_the_documentation() {
    for (name, kind) in KINDS {
        let object = golden(&format!("{name}.seg"), || encode_now(kind));
        let text = text(&object);
        let wanted = golden(&format!("{name}.txt"), || text.clone().into_bytes());
        assert_eq!(text, String::from_utf8(wanted).unwrap(), "{name}");
    }
}

#[test]
fn the_engine_reads_the_golden_files_and_finds_the_rows_that_went_in() {
    for (name, kind) in KINDS {
        let file = SegmentFile::parse(name, golden(&format!("{name}.seg"), || encode_now(kind)).into()).unwrap();
        assert_eq!(file.header(), &header(kind));
        let blocks: Vec<_> = (0..file.block_count()).map(|n| file.block(n).unwrap()).collect();
        let mut read = blocks.iter().flat_map(|b| b.rows().unwrap().map(Result::unwrap));
        for (n, row) in rows().iter().enumerate().filter(|_| kind == SegmentKind::Changes) {
            let (seq, change) = read.next().unwrap();
            assert_eq!((seq, change.op, change.coll, change.uuid), (FIRST_SEQ + n as u64, row.op, row.coll, row.uuid));
            assert_eq!(((change.time.t, change.time.i), change.wall_ms), (row.time, row.wall));
            assert_eq!(change.txn.map(|t| t.get_i64("txnNumber").unwrap()), row.txn);
            assert_eq!((change.key, change.body), (row.key.as_deref(), row.body.as_deref()));
        }
        assert!(read.next().is_none());
    }
}

/// Compared as decoded: another version of zstd may compress to other bytes. The engine writes no filter for blocks as small as these;
/// the golden file has one, for the next test.
#[test]
fn the_engine_still_writes_what_the_golden_files_hold() {
    let without_filters = |object: &[u8]| text(object).lines().filter(|line| !line.starts_with("filter ")).collect::<Vec<_>>().join("\n");
    for (name, kind) in KINDS {
        let now = encode_now(kind);
        assert_eq!(without_filters(&now), without_filters(&golden(&format!("{name}.seg"), || now.clone())), "{name}");
    }
}

/// A resume token holds the `_id` of its change in hex: the limit of a header is no limit of an `_id`.
#[test]
fn a_header_with_a_token_of_megabytes_is_read_by_the_bytes_in_the_documentation() {
    let long = rawdoc! {"_data": format!("826B048B3E00000027{}", "AB".repeat(600_000))};
    let header = SegmentHeader { end_token: long.clone(), ..header(SegmentKind::Gap) };
    let object = encode(&header, &[], &AtomicBool::new(false)).unwrap().bytes;
    let end = text(&object).lines().find(|line| line.starts_with("end_token: ")).unwrap().len();
    assert!(end > 1_200_000, "{end}");
    assert_eq!(SegmentFile::parse("long", object).unwrap().header().end_token, long);
}

#[test]
fn rule_15_the_key_filter_of_the_golden_file_knows_keys_in_canonical_form() {
    let object = golden("changes.seg", || encode_now(SegmentKind::Changes));
    let (_, blocks) = by_the_book::read(&object);
    let filter = &blocks[0].filter;
    let by_uuid = |key: &[u8]| [&[1][..], &[0x3e; 16], key].concat();
    let by_name = |key: &[u8]| [&[0][..], &9u32.to_le_bytes(), "zahlen-ü".as_bytes(), key].concat();
    let object_id = |n: u8| [&[9][..], &oid(n).bytes()].concat();
    let one = [4, 5, 0, 0, 0, 0, 1, 1];
    for n in [1, 2, 9] {
        assert!(by_the_book::filter_has(filter, &by_uuid(&object_id(n))), "{n}");
    }
    assert!(by_the_book::filter_has(filter, &by_uuid(&one)), "1 and NumberLong(1)");
    assert!(by_the_book::filter_has(filter, &by_name(&[4, 3])), "Decimal -0");
    assert!(by_the_book::filter_has(filter, &by_uuid(&[5, 1, 0, 0, 0, b'k'])), "a string");
    assert!(!(100..200).all(|n| by_the_book::filter_has(filter, &by_uuid(&object_id(n)))));
    for (id, key) in [(rawdoc! {"_id": 1.0}, &one[..]), (rawdoc! {"_id": -0.0}, &[4, 3]), (rawdoc! {"_id": oid(9)}, &object_id(9))] {
        assert_eq!(canonical_id(&id).unwrap().as_bytes(), key);
    }
    let file = SegmentFile::parse("golden", object.into()).unwrap();
    let (entry, footer) = (&file.footer().blocks[0], file.footer());
    let engine_has = |id: RawDocumentBuf| entry.may_contain(footer, "renamed", Some(&[0x3e; 16]), &canonical_id(&id).unwrap());
    assert!([rawdoc! {"_id": oid(1)}, rawdoc! {"_id": 1.0}, rawdoc! {"_id": "k"}].into_iter().all(engine_has));
    assert!(!(100..200).all(|n| engine_has(rawdoc! {"_id": oid(n)})));
}
