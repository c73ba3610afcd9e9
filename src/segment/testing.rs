//! Owns: rows for the tests of this module, made from a seed. Not compiled into the engine.

use bson::{RawDocument, RawDocumentBuf, oid::ObjectId, rawdoc};
use proptest::prelude::*;
use xxhash_rust::xxh3::xxh3_64_with_seed;

use super::{BlockBuilder, PackedBlock, RawBlock};
use crate::change::{ChangeRef, ClusterTime, Op};

/// A row that owns its parts.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Row {
    pub(super) op: Op,
    pub(super) coll: String,
    pub(super) uuid: Option<[u8; 16]>,
    pub(super) time: ClusterTime,
    pub(super) wall_ms: Option<i64>,
    pub(super) txn: Option<RawDocumentBuf>,
    pub(super) key: Option<RawDocumentBuf>,
    pub(super) body: Option<RawDocumentBuf>,
}

impl Row {
    pub(super) fn view(&self) -> ChangeRef<'_> {
        ChangeRef {
            op: self.op,
            coll: &self.coll,
            uuid: self.uuid,
            time: self.time,
            wall_ms: self.wall_ms,
            txn: self.txn.as_deref(),
            key: self.key.as_deref(),
            body: self.body.as_deref(),
        }
    }

    pub(super) fn of(c: &ChangeRef<'_>) -> Self {
        let own = |d: Option<&RawDocument>| d.map(RawDocument::to_owned);
        let (txn, key, body) = (own(c.txn), own(c.key), own(c.body));
        Self { op: c.op, coll: c.coll.to_owned(), uuid: c.uuid, time: c.time, wall_ms: c.wall_ms, txn, key, body }
    }
}

/// One block of `rows`.
pub(super) fn block(first_seq: u64, rows: &[Row]) -> RawBlock {
    let mut builder = BlockBuilder::new(first_seq);
    for row in rows {
        builder.push(&row.view()).unwrap();
    }
    let len = builder.encoded_len();
    let block = builder.finish();
    assert_eq!(block.bytes.len(), len, "encoded_len must be exact");
    block
}

/// The same, compressed.
pub(super) fn packed(first_seq: u64, rows: &[Row]) -> PackedBlock {
    PackedBlock::pack(block(first_seq, rows)).unwrap()
}

/// Rows of a block, with dense sequence numbers.
pub(super) fn rows_of(block: &RawBlock) -> Vec<Row> {
    let mut next = block.first_seq;
    let rows = block.rows().unwrap().map(|row| {
        let (seq, change) = row.unwrap();
        assert_eq!(seq, next);
        next += 1;
        Row::of(&change)
    });
    rows.collect()
}

/// The `n`-th number of a seed: the same on every machine and in every release of every crate.
pub(super) fn noise(seed: u64, n: u64) -> u64 {
    xxh3_64_with_seed(&n.to_le_bytes(), seed)
}

/// The `n`-th document id of a collection: one process, one counter, as drivers make them.
pub(super) fn oid(n: u64) -> ObjectId {
    let counter = (0x00a1_b2c3 + n).to_be_bytes();
    let seconds = (1_795_000_000 + n / 700).to_be_bytes();
    let mut bytes = [0x5c; 12];
    bytes[..4].copy_from_slice(&seconds[4..]);
    bytes[9..].copy_from_slice(&counter[5..]);
    ObjectId::from_bytes(bytes)
}

/// A regular stream at some thousand changes a second; `make` gives op, key and body of each.
pub(super) fn stream(n: u64, mut make: impl FnMut(u64) -> (Op, Option<RawDocumentBuf>, Option<RawDocumentBuf>)) -> Vec<Row> {
    let row = |i: u64| {
        let (op, key, body) = make(i);
        let time = ClusterTime { t: u32::try_from(1_795_467_772 + i / 4000).unwrap(), i: u32::try_from(1 + i % 4000).unwrap() };
        // The wall clock of an event is read before its cluster time is taken: it jitters, also backwards.
        let wall_ms = Some(i64::try_from(1_795_467_772_000 + i / 4 + noise(11, i) % 3).unwrap());
        Row { op, coll: "orders".into(), uuid: Some([0x3e; 16]), time, wall_ms, txn: None, key, body }
    };
    (0..n).map(row).collect()
}

/// The repeated operation: `hot` documents updated in random order with one diff.
pub(super) fn hot_updates(n: u64, hot: u64) -> Vec<Row> {
    stream(n, |i| {
        let key = rawdoc! {"_id": oid(noise(7, i) % hot)};
        (Op::Update, Some(key), Some(rawdoc! {"u": {"status": "paid", "n": 17}}))
    })
}

/// Inserts of small documents.
pub(super) fn inserts(n: u64) -> Vec<Row> {
    let names = ["Ada", "Grace", "Edsger", "Barbara", "Donald", "Tony", "Leslie", "Frances"];
    let at = |seed, i| usize::try_from(noise(seed, i) % 8).unwrap();
    stream(n, |i| {
        let body = rawdoc! {
            "_id": oid(i), "customer": names[at(1, i)], "status": "new", "amount": i32::try_from(noise(2, i) % 10_000).unwrap(),
            "items": [{"sku": format!("SKU-{:05}", noise(3, i) % 500), "qty": 1}, {"sku": format!("SKU-{:05}", noise(4, i) % 500), "qty": 2}],
            "address": {"street": format!("{} Main Street", noise(5, i) % 200), "city": "Zürich", "country": "CH"},
            "note": "leave at the door, please",
        };
        (Op::Insert, None, Some(body))
    })
}

fn any_doc() -> impl Strategy<Value = RawDocumentBuf> {
    prop_oneof![
        (0..20i32).prop_map(|n| rawdoc! {"_id": n}),
        any::<i64>().prop_map(|n| rawdoc! {"_id": n, "x": "y"}),
        ".{0,40}".prop_map(|s| rawdoc! {"u": {"s": s}}),
        Just(rawdoc! {}),
        (0..3usize).prop_map(|n| rawdoc! {"_id": "big", "b": "z".repeat(n * 400)}),
    ]
}

/// Any combination of parts, also ones the capture never makes.
pub(super) fn any_row() -> impl Strategy<Value = Row> {
    let who = (
        1..=6u8,
        prop_oneof![Just(String::new()), "[a-c]", ".{0,12}"],
        proptest::option::of(prop_oneof![Just([1; 16]), any::<[u8; 16]>()]),
    );
    let time = prop_oneof![(0..4u32, 0..9u32), any::<(u32, u32)>()];
    let wall = prop_oneof![Just(None), (0..9i64).prop_map(Some), any::<i64>().prop_map(Some)];
    let txn = proptest::option::of((0..2i64).prop_map(|n| rawdoc! {"lsid": {"id": n}, "txnNumber": n}));
    (who, time, wall, txn, proptest::option::of(any_doc()), proptest::option::of(any_doc())).prop_map(
        |((op, coll, uuid), (t, i), wall_ms, txn, key, body)| Row {
            op: Op::from_u8(op).unwrap(),
            coll,
            uuid,
            time: ClusterTime { t, i },
            wall_ms,
            txn,
            key,
            body,
        },
    )
}
