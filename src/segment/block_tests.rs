//! Tests of building and reading raw blocks.

use bson::rawdoc;
use bytes::Bytes;
use proptest::prelude::*;

use super::testing::{Row, any_row, block, hot_updates, inserts, noise, oid, rows_of, stream};
use super::*;
use crate::change::{ClusterTime, Op};
use crate::fault::Kind;

fn stored(rows: &[Row]) -> usize {
    super::codec::compress(&block(1, rows).bytes).unwrap().len()
}

fn raw(rows: &[Row]) -> usize {
    usize::try_from(rows.iter().map(|r| r.view().raw_bytes()).sum::<u64>()).unwrap()
}

proptest! {
    #[test]
    fn rows_come_back_in_order_and_byte_for_byte(first in 0..u64::MAX / 2, rows in prop::collection::vec(any_row(), 1..60)) {
        let block = block(first, &rows);
        prop_assert_eq!(block.count as usize, rows.len());
        prop_assert_eq!(rows_of(&block), rows);
    }

    #[test]
    fn damaged_blocks_never_panic(rows in prop::collection::vec(any_row(), 1..20), hits in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..4)) {
        let good = block(5, &rows);
        let mut bytes = good.bytes.to_vec();
        for (at, value) in hits {
            let n = at.index(bytes.len());
            bytes[n] = value;
        }
        let bad = RawBlock { bytes: bytes.into(), ..good };
        if let Ok(rows) = bad.rows() {
            let n = rows.take_while(Result::is_ok).count();
            prop_assert!(n <= bad.count as usize);
        }
    }
}

#[test]
fn every_truncation_of_a_block_is_refused() {
    let good = block(1, &hot_updates(40, 5));
    for len in 0..good.bytes.len() {
        let bad = RawBlock { bytes: good.bytes.slice(..len), ..good.clone() };
        assert_eq!(bad.rows().unwrap_err().kind, Kind::Corrupt, "cut at {len}");
    }
}

#[test]
fn counts_that_lie_are_refused_before_anything_is_allocated() {
    let good = block(1, &inserts(3));
    for at in [0, 1, 4, 8, 16, 20, 24, 28, 32, 36, 40, 44] {
        let mut bytes = good.bytes.to_vec();
        bytes[at..at + 4].copy_from_slice(&[0xff; 4]);
        let bad = RawBlock { bytes: bytes.into(), ..good.clone() };
        let fault = bad.rows().unwrap_err();
        assert_eq!(fault.kind, Kind::Corrupt);
        assert!(fault.what.contains("byte"), "{}", fault.what);
    }
    let bad = RawBlock { count: 2, ..good.clone() };
    assert!(bad.rows().is_err());
    assert!(RawBlock { bytes: Bytes::new(), ..good }.rows().is_err());
}

#[test]
fn nothing_follows_an_error() {
    let good = block(1, &hot_updates(10, 3));
    let mut bytes = good.bytes.to_vec();
    let last = bytes.len() - 1;
    bytes[last] = 7; // the terminator of the only body
    let bad = RawBlock { bytes: bytes.into(), ..good };
    let rows: Vec<_> = bad.rows().unwrap().collect();
    assert_eq!(rows.len(), 1);
    assert!(rows[0].is_err());
}

#[test]
fn empty_block_is_refused_by_readers() {
    assert!(BlockBuilder::new(1).is_empty());
    assert!(BlockBuilder::new(1).finish().rows().is_err());
}

#[test]
fn transactions_that_alternate_with_single_changes_come_back() {
    let mut rows = inserts(9);
    for (n, txn) in [(2, 1), (3, 1), (5, 2), (6, 2), (7, 1)] {
        rows[n].txn = Some(rawdoc! {"lsid": {"id": "s"}, "txnNumber": i64::from(txn)});
    }
    assert_eq!(rows_of(&block(1, &rows)), rows);
}

#[test]
fn one_row_may_be_larger_than_a_block_but_not_than_the_limit() {
    let big = |mib: usize| stream(1, |_| (Op::Insert, None, Some(rawdoc! {"_id": 1, "b": "x".repeat(mib << 20)})));
    let mut builder = BlockBuilder::new(1);
    for _ in 0..3 {
        builder.push(&big(16)[0].view()).unwrap();
    }
    let len = builder.encoded_len();
    assert_eq!(builder.push(&big(17)[0].view()).unwrap_err().kind, Kind::Rejected);
    assert_eq!((builder.count(), builder.encoded_len()), (3, len), "a refused row leaves no trace");
    assert_eq!(rows_of(&builder.finish()).len(), 3);
}

#[test]
fn repeated_operations_end_at_five_percent() {
    let rows = hot_updates(12_000, 200);
    let (stored, raw) = (stored(&rows), raw(&rows));
    println!(
        "hot updates: {stored} of {raw} bytes, {:.2} %, {:.2} bytes a change",
        100.0 * stored as f64 / raw as f64,
        stored as f64 / 12e3
    );
    assert!(stored * 20 <= raw, "{stored} of {raw}");
}

#[test]
fn repeated_operations_with_a_few_different_diffs_end_at_five_percent() {
    let states = ["new", "paid", "packed", "shipped", "done"];
    let rows = stream(12_000, |i| {
        let status = states[usize::try_from(noise(9, i) % 5).unwrap()];
        let key = rawdoc! {"_id": oid(noise(7, i) % 200)};
        (Op::Update, Some(key), Some(rawdoc! {"u": {"status": status, "n": 17}}))
    });
    let (stored, raw) = (stored(&rows), raw(&rows));
    println!("five diffs: {stored} of {raw} bytes, {:.2} %", 100.0 * stored as f64 / raw as f64);
    assert!(stored * 20 <= raw, "{stored} of {raw}");
}

#[test]
fn metadata_of_a_regular_stream_is_well_under_two_bytes_a_change() {
    let rows = stream(10_000, |_| (Op::Delete, Some(rawdoc! {"_id": 1}), None));
    let stored = stored(&rows);
    println!("metadata: {:.3} bytes a change", stored as f64 / 1e4);
    assert!(stored < 10_000, "{stored}");
}

#[test]
fn inserts_compress_as_well_as_their_bodies_alone() {
    let rows = inserts(4000);
    let bodies: Vec<u8> = rows.iter().flat_map(|r| r.body.as_ref().unwrap().as_bytes().to_vec()).collect();
    let alone = super::codec::compress(&bodies).unwrap().len();
    let stored = stored(&rows);
    println!(
        "inserts: raw {}, bodies alone {alone}, block {stored}: {:.2} bytes of metadata a change",
        raw(&rows),
        (stored - alone) as f64 / 4e3
    );
    assert!(stored < alone + 4000, "{stored} against {alone}");
}

#[test]
fn times_that_run_backwards_come_back() {
    let mut rows = inserts(4);
    rows[1].time = ClusterTime { t: u32::MAX, i: u32::MAX };
    rows[2].time = ClusterTime::default();
    rows[2].wall_ms = Some(i64::MIN);
    rows[3].wall_ms = Some(i64::MAX);
    assert_eq!(rows_of(&block(u64::MAX - 10, &rows)), rows);
}

fn blocks() -> Vec<PackedBlock> {
    let raw = [block(1, &hot_updates(500, 20)), block(501, &inserts(300)), block(801, &inserts(1))];
    raw.into_iter().map(|b| PackedBlock::pack(b).unwrap()).collect()
}

fn same(a: &[PackedBlock], b: &[PackedBlock]) -> bool {
    a.len() == b.len() && a.iter().zip(b).all(|(a, b)| (a.raw(), a.frame()) == (b.raw(), b.frame()))
}

#[test]
fn payload_comes_back_whatever_the_size_of_its_parts() {
    for max_part in [41, 100, 1000, 8 << 20] {
        let parts = pack_payload(&blocks(), max_part).unwrap();
        assert!(parts.iter().all(|p| p.len() <= max_part));
        assert!(max_part > 1000 || parts.len() > 1, "a block is split over parts");
        let unpacked = unpack_payload(&parts, 8 << 20).unwrap();
        assert!(same(&unpacked, &blocks()) && unpacked.iter().all(PackedBlock::is_proven));
    }
    assert_eq!(unpack_payload(&pack_payload(&[], 100).unwrap(), 0).unwrap(), []);
    assert_eq!(pack_payload(&blocks(), 40).unwrap_err().kind, Kind::Config);
}

#[test]
fn payload_is_bounded_by_its_uncompressed_size() {
    let parts = pack_payload(&blocks(), 8 << 20).unwrap();
    let total: u64 = blocks().iter().map(|b| b.raw().bytes.len() as u64).sum();
    assert!(unpack_payload(&parts, total).is_ok());
    assert_eq!(unpack_payload(&parts, total - 1).unwrap_err().kind, Kind::Corrupt);
}

#[test]
fn parts_that_are_missing_swapped_damaged_or_of_another_payload_are_refused() {
    let parts = pack_payload(&blocks(), 600).unwrap();
    let other = pack_payload(&blocks()[..2], 600).unwrap();
    assert!(parts.len() > 3);
    let mut swapped = parts.clone();
    swapped.swap(0, 1);
    let mut foreign = parts.clone();
    foreign[1] = other[1].clone();
    let mut cut = parts.clone();
    cut[2] = cut[2].slice(..cut[2].len() - 1);
    for bad in [&parts[1..], &parts[..parts.len() - 1], &swapped, &foreign, &cut, &[], &[Bytes::new()]] {
        assert_eq!(unpack_payload(bad, 8 << 20).unwrap_err().kind, Kind::Corrupt);
    }
    for bit in 0..parts[1].len() * 8 {
        let mut bytes = parts[1].to_vec();
        bytes[bit / 8] ^= 1 << (bit % 8);
        let mut bad = parts.clone();
        bad[1] = bytes.into();
        assert_eq!(unpack_payload(&bad, 8 << 20).unwrap_err().kind, Kind::Corrupt, "bit {bit}");
    }
}

#[test]
fn tables_that_would_take_ten_times_their_bytes_in_memory_are_refused() {
    let (collections, shapes) = (1usize << 21, 2usize << 20);
    let mut bytes = vec![1, 0, 0, 0, 1, 0, 0, 0, 9, 0, 0, 0, 0, 0, 0, 0];
    for n in [u32::try_from(collections).unwrap(), u32::try_from(shapes).unwrap(), u32::try_from(collections * 2).unwrap(), 0, 0, 0, 0, 0] {
        bytes.extend_from_slice(&n.to_le_bytes());
    }
    bytes.resize(bytes.len() + collections * 2 + shapes * 24, 0);
    let fault = RawBlock { first_seq: 9, count: 1, bytes: bytes.into() }.rows().unwrap_err();
    assert!(fault.kind == Kind::Corrupt && fault.what.contains("over the limit of 65536"), "{fault}");
}
