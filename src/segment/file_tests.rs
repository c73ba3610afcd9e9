//! Tests of whole segments: round trips, what the index says, and damage.

use std::sync::atomic::AtomicBool;

use bson::{RawDocumentBuf, rawdoc};
use proptest::prelude::*;

use super::footer::{TRAILER_LEN, Trailer};
use super::testing::{Row, any_row, hot_updates, inserts, oid, packed, rows_of};
use super::*;
use crate::change::{ClusterTime, Op, canonical_id, parse_stored_event};
use crate::fault::{Kind, Result};
use crate::ledger::{Ends, SegmentKind};

static GO: AtomicBool = AtomicBool::new(false);

fn header(first_seq: u64, last_seq: u64) -> SegmentHeader {
    SegmentHeader {
        kind: SegmentKind::Changes,
        branch: "0b0c2f6e-6f0a-4a2e-9d55-1f8f3a8f9b11".into(),
        epoch: 3,
        first_seq,
        last_seq,
        first_time: ClusterTime { t: 1_795_467_772, i: 1 },
        last_time: ClusterTime { t: 1_795_467_773, i: 9 },
        last_wall_ms: Some(1_795_467_773_120),
        start_token: rawdoc! {"_data": "826B03E1BC000000012B0229296E04"},
        end_token: rawdoc! {"_data": "826B03E1BD000000092B0229296E04"},
        starts_inside: false,
        ends: Ends::Closed,
        db: "shop".into(),
        reason: None,
    }
}

/// A segment of `rows`, at most `per_block` in a block.
fn segment(rows: &[Row], per_block: usize) -> (SegmentHeader, Vec<PackedBlock>, Encoded) {
    let mut seq = 100;
    let mut blocks = Vec::new();
    for rows in rows.chunks(per_block) {
        blocks.push(packed(seq, rows));
        seq += rows.len() as u64;
    }
    let header = header(100, seq - 1);
    let encoded = encode(&header, &blocks, &GO).unwrap();
    (header, blocks, encoded)
}

fn entry_of(rows: &[Row]) -> (BlockEntry, Footer) {
    let (_, _, encoded) = segment(rows, rows.len());
    let file = SegmentFile::parse("o", encoded.bytes).unwrap();
    (file.footer().blocks[0].clone(), file.footer().clone())
}

proptest! {
    #[test]
    fn segments_come_back(rows in prop::collection::vec(any_row(), 1..80), per_block in 1..30usize, reason in proptest::option::of(".*")) {
        let mut blocks = Vec::new();
        for rows in rows.chunks(per_block) {
            blocks.push(packed(blocks.last().map_or(7, |b: &PackedBlock| b.raw().last_seq() + 1), rows));
        }
        let header = SegmentHeader { reason, last_wall_ms: None, ends: Ends::Open, ..header(7, 6 + rows.len() as u64) };
        let encoded = encode(&header, &blocks, &GO).unwrap();
        verify_encoded(&encoded, &header, &blocks).unwrap();
        let file = SegmentFile::parse("o", encoded.bytes).unwrap();
        prop_assert_eq!(file.header(), &header);
        prop_assert_eq!(encoded.summary.changes, rows.len() as u64);
        prop_assert_eq!(encoded.summary.raw_bytes, rows.iter().map(|r| r.view().raw_bytes()).sum::<u64>());
        let read: Vec<Row> = (0..file.block_count()).flat_map(|n| rows_of(&file.block(n).unwrap())).collect();
        prop_assert_eq!(read, rows);
    }

    #[test]
    fn hostile_bytes_under_right_checksums_never_panic(hits in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..5)) {
        let (.., encoded) = segment(&hot_updates(60, 9), 25);
        let mut bytes = encoded.bytes.to_vec();
        let end = bytes.len() - TRAILER_LEN;
        let footer_at = usize::try_from(Trailer::read(&bytes).unwrap().footer_offset).unwrap();
        for (at, value) in hits {
            bytes[footer_at + at.index(end - footer_at)] = value;
        }
        let hash = xxhash_rust::xxh3::xxh3_64(&bytes[footer_at..end]);
        bytes[end + 16..end + 24].copy_from_slice(&hash.to_le_bytes());
        let total = xxhash_rust::xxh3::xxh3_64(&bytes[..end + 24]);
        bytes[end + 24..end + 32].copy_from_slice(&total.to_le_bytes());
        if let Ok(file) = SegmentFile::parse("o", bytes.into()) {
            for n in 0..file.block_count() {
                let _ = file.block(n).and_then(|b| b.rows()?.collect::<Result<Vec<_>>>().map(|rows| rows.len()));
            }
        }
    }
}

#[test]
fn a_gap_is_a_segment_without_blocks() {
    let header = SegmentHeader { kind: SegmentKind::Gap, reason: Some("the oplog rolled over".into()), ..header(5, 5) };
    let encoded = encode(&header, &[], &GO).unwrap();
    verify_encoded(&encoded, &header, &[]).unwrap();
    let file = SegmentFile::parse("o", encoded.bytes).unwrap();
    assert_eq!((file.header(), file.block_count(), encoded.summary), (&header, 0, Summary::default()));
    assert_eq!(file.block(0).unwrap_err().kind, Kind::Missing);
}

#[test]
fn blocks_that_do_not_fit_the_header_are_refused() {
    let blocks = [packed(1, &inserts(3)), packed(4, &inserts(2))];
    let gap = SegmentHeader { kind: SegmentKind::Gap, ..header(1, 5) };
    for (header, blocks) in [
        (header(1, 4), &blocks[..]),
        (header(1, 6), &blocks[..]),
        (header(2, 5), &blocks[..]),
        (header(1, 3), &blocks[1..]),
        (header(1, 1), &[]),
        (gap, &blocks[..]),
        (SegmentHeader { epoch: u64::MAX, ..header(1, 5) }, &blocks[..]),
    ] {
        assert_eq!(encode(&header, blocks, &GO).unwrap_err().kind, Kind::Rejected);
    }
}

#[test]
fn encoding_stops_when_told() {
    let stop = AtomicBool::new(true);
    assert_eq!(encode(&header(1, 3), &[packed(1, &inserts(3))], &stop).unwrap_err().kind, Kind::Cancelled);
}

/// Blocks as a worker has them.
fn proven(blocks: &[PackedBlock]) -> Vec<PackedBlock> {
    unpack_payload(&pack_payload(blocks, 8 << 20).unwrap(), 8 << 20).unwrap()
}

#[test]
fn verification_finds_any_difference() {
    for through_the_queue in [false, true] {
        verification_finds_differences(if through_the_queue { proven } else { <[PackedBlock]>::to_vec });
    }
}

fn verification_finds_differences(way: fn(&[PackedBlock]) -> Vec<PackedBlock>) {
    let (good, blocks, encoded) = segment(&hot_updates(60, 9), 30);
    let blocks = way(&blocks);
    verify_encoded(&encoded, &good, &blocks).unwrap();
    let other = way(&segment(&inserts(60), 30).1);
    let summary = Summary { holes: 1, ..encoded.summary };
    assert!(verify_encoded(&encoded, &good, &[blocks[0].clone(), other[1].clone()]).is_err());
    assert!(verify_encoded(&encoded, &good, &blocks[..1]).is_err());
    assert!(verify_encoded(&encoded, &SegmentHeader { epoch: 4, ..good.clone() }, &blocks).is_err());
    assert!(verify_encoded(&Encoded { summary, ..encoded.clone() }, &good, &blocks).is_err());
    assert!(verify_encoded(&Encoded { bytes: encoded.bytes.slice(1..), ..encoded }, &good, &blocks).is_err());
}

#[test]
fn rule_16_the_index_says_which_blocks_have_ddl() {
    let mut rows = inserts(9);
    let event = |kind: &str| rawdoc! {"operationType": kind, "ns": {"db": "shop", "coll": "orders"}};
    let data = rawdoc! {
        "operationType": "delete", "ns": {"db": "shop", "coll": "orders"}, "documentKey": {"_id": 1}, "newInSomeVersion": true,
    };
    for (n, body) in [(1, data), (4, event("create")), (7, event("neverSeenBefore"))] {
        rows[n] = Row { op: Op::Event, body: Some(body), ..rows[n].clone() };
    }
    let (.., encoded) = segment(&rows, 3);
    assert!(encoded.summary.has_ddl);
    let file = SegmentFile::parse("o", encoded.bytes).unwrap();
    assert_eq!(file.footer().blocks.iter().map(|b| b.has_ddl).collect::<Vec<_>>(), [false, true, true]);
}

#[test]
fn rule_1_a_diff_that_cannot_be_applied_is_a_hole() {
    let mut rows = hot_updates(6, 3);
    rows[4].body = Some(rawdoc! {"u": {"a": 1}, "zz": {"b": 1}});
    rows[5].body = Some(rawdoc! {"u": "not a document"});
    let (.., encoded) = segment(&rows, 3);
    assert_eq!(encoded.summary.holes, 2);
    let file = SegmentFile::parse("o", encoded.bytes).unwrap();
    assert_eq!(file.footer().blocks.iter().map(|b| b.holes).collect::<Vec<_>>(), [0, 2]);
}

#[test]
fn what_a_fold_cannot_apply_is_a_hole_and_what_it_passes_over_is_none() {
    use crate::branch::catalogue::{Catalogue, Effect};
    let event = |body: RawDocumentBuf| Row { op: Op::Event, body: Some(body), ..inserts(1).remove(0) };
    let data = |op, key: Option<RawDocumentBuf>, body: Option<RawDocumentBuf>| Row { op, key, body, ..inserts(1).remove(0) };
    let uuid = bson::Binary { subtype: bson::spec::BinarySubtype::Uuid, bytes: vec![1; 16] };
    let id = || Some(rawdoc! {"_id": 1});
    let shiny =
        rawdoc! {"operationType": "modify", "collectionUUID": uuid, "ns": {"db": "d", "coll": "c"}, "operationDescription": {"shiny": 1}};
    let inside = |coll: &str, op| Row { coll: coll.into(), ..data(op, id(), Some(rawdoc! {"zz": {"b": 1}})) };
    let cases = [
        (event(rawdoc! {"operationType": "neverSeenBefore", "ns": {"db": "d", "coll": "c"}}), 1),
        (event(shiny), 1),
        (event(rawdoc! {"no": "type"}), 1),
        (event(rawdoc! {"operationType": "update", "ns": {"db": "d", "coll": "c"}, "documentKey": {"_id": 1}}), 1),
        (data(Op::Described, id(), Some(rawdoc! {"updatedFields": {"a": 1}, "shiny": 1})), 1),
        (data(Op::Delete, None, None), 1),
        (data(Op::Insert, id(), None), 1),
        (event(rawdoc! {"operationType": "startIndexBuild", "ns": {"db": "d", "coll": "c"}}), 0),
        (event(rawdoc! {"operationType": "abortIndexBuild", "ns": {"db": "d", "coll": "c"}}), 0),
        (event(rawdoc! {"operationType": "endOfTransaction"}), 0),
        (data(Op::Described, id(), Some(rawdoc! {"updatedFields": {"a": 1}})), 0),
        (inside("system.views", Op::Update), 0),
        (inside("system.buckets.t", Op::Update), 0),
        (inside("orders", Op::Update), 1),
    ];
    for (row, holes) in cases {
        let rows = [&inserts(2)[..], std::slice::from_ref(&row)].concat();
        let (.., encoded) = segment(&rows, 3);
        assert_eq!(encoded.summary.holes, holes, "{row:?}");
        // The catalogue says the same of every event that is DDL.
        if let (Op::Event, Some(body)) = (row.op, &row.body)
            && parse_stored_event(body).is_ok_and(|data| data.is_none())
        {
            let effect = Catalogue::default().apply(body).unwrap();
            assert_eq!(matches!(effect, Effect::Unrecognised(_)), holes > 0, "{row:?}");
        }
    }
}

#[test]
fn a_hole_that_comes_again_is_counted_again() {
    let mut rows = hot_updates(90, 3);
    for n in [5, 20, 21, 70] {
        rows[n].body = Some(rawdoc! {"zz": {"b": 1}});
    }
    for n in [7, 30] {
        rows[n].key = Some(rawdoc! {"names": "nothing"});
    }
    let (.., encoded) = segment(&rows, 90);
    assert_eq!(encoded.summary.holes, 6);
}

#[test]
fn the_key_filter_finds_what_is_there_and_follows_the_uuid() {
    let key = |n| canonical_id(&rawdoc! {"_id": oid(n)}).unwrap();
    let (entry, footer) = entry_of(&inserts(2000));
    let uuid = Some([0x3e; 16]);
    assert!((0..2000).all(|n| entry.may_contain(&footer, "renamed", uuid.as_ref(), &key(n))));
    assert!((0..2000).all(|n| entry.may_contain(&footer, "orders", None, &key(n))), "without a UUID the name decides");
    assert!(!entry.may_contain(&footer, "orders", Some(&[1; 16]), &key(1)), "another collection of this name");
    assert!((5000..6000).filter(|&n| entry.may_contain(&footer, "orders", uuid.as_ref(), &key(n))).count() < 60);
}

#[test]
fn small_blocks_have_small_filters_and_tiny_ones_none() {
    let stranger = canonical_id(&rawdoc! {"_id": "never seen"}).unwrap();
    let (tiny, footer) = entry_of(&inserts(20));
    assert!(tiny.stored_len <= 2 << 10 && tiny.filter.is_empty() && tiny.may_contain(&footer, "orders", None, &stranger));
    let (small, _) = entry_of(&inserts(500));
    assert!(small.stored_len > 2 << 10 && small.stored_len <= 32 << 10, "{}", small.stored_len);
    assert_eq!(small.filter.len(), 250, "four bits a key");
    let (large, _) = entry_of(&inserts(5_000));
    assert!(large.stored_len > 32 << 10, "{}", large.stored_len);
    assert_eq!(large.filter.len(), 5_000);
}

#[test]
fn rows_without_a_document_switch_the_filter_off() {
    let mut rows = inserts(2000);
    rows[2].body = Some(rawdoc! {"no": "id"});
    let (entry, footer) = entry_of(&rows);
    let stranger = canonical_id(&rawdoc! {"_id": "never seen"}).unwrap();
    assert!(entry.filter.is_empty() && entry.may_contain(&footer, "orders", None, &stranger));
}

#[test]
fn the_index_covers_times_and_collections() {
    let mut rows = inserts(6);
    rows[1].time = ClusterTime { t: 9, i: 1 };
    rows[2].coll = "a".into();
    rows[5].uuid = None;
    let (entry, footer) = entry_of(&rows);
    assert_eq!((entry.first_time, entry.last_time), (ClusterTime { t: 9, i: 1 }, rows[5].time));
    let uuid = Some([0x3e; 16]);
    assert_eq!(footer.collections, [("a".into(), uuid), ("orders".into(), None), ("orders".into(), uuid)]);
    assert_eq!(entry.collections, [0, 1, 2]);
}

#[test]
fn one_ranged_read_of_the_tail_finds_the_footer() {
    let (.., encoded) = segment(&inserts(400), 50);
    let size = encoded.bytes.len() as u64;
    let file = SegmentFile::parse("o", encoded.bytes.clone()).unwrap();
    let footer_at = Trailer::read(&encoded.bytes).unwrap().footer_offset;
    for from in 0..encoded.bytes.len() - TRAILER_LEN {
        let told = Footer::from_tail("o", size, &encoded.bytes[from..]).unwrap();
        if from as u64 <= footer_at {
            assert_eq!(told, TailResult::Footer(file.footer().clone()));
        } else {
            assert_eq!(told, TailResult::NeedMore(footer_at));
        }
    }
    assert!(Footer::from_tail("o", size + 1, &encoded.bytes).is_err());
    assert!(Footer::from_tail("o", size, &encoded.bytes[encoded.bytes.len() - TRAILER_LEN + 1..]).is_err());
    let (header, at) = SegmentHeader::read("o", &encoded.bytes[..2048]).unwrap();
    assert_eq!((&header, at), (file.header(), file.footer().blocks[0].offset));
}

#[test]
fn a_claim_of_a_huge_block_is_refused_before_it_is_allocated() {
    let (mut entry, _) = entry_of(&inserts(5));
    entry.raw_len = u32::MAX;
    let (.., encoded) = segment(&inserts(5), 5);
    let start = usize::try_from(entry.offset).unwrap();
    let fault = entry.decode("o", &encoded.bytes[start..start + entry.stored_len as usize]).unwrap_err();
    assert!(fault.what.contains("limit"), "{}", fault.what);
    entry.raw_len = 10; // a bomb: more comes out than was promised
    assert_eq!(entry.decode("o", &encoded.bytes[start..start + entry.stored_len as usize]).unwrap_err().kind, Kind::Corrupt);
}

/// A resume token holds the `_id` of its change in hex: one of 600 KB makes a token of 1.2 MB.
#[test]
fn a_header_with_a_large_token_comes_back_and_a_claim_beyond_the_object_is_refused() {
    let (small, blocks, _) = segment(&inserts(9), 5);
    let token = |len: usize| rawdoc! {"_data": format!("826B03E1BD00000009{}", "AB".repeat(len / 2))};
    for (start, end) in [(100, 1_200_000), (1_200_000, 1_200_000), (16 << 20, 16 << 20)] {
        let header = SegmentHeader { start_token: token(start), end_token: token(end), ..small.clone() };
        let encoded = encode(&header, &blocks, &GO).unwrap();
        verify_encoded(&encoded, &header, &blocks).unwrap();
        assert_eq!(SegmentFile::parse("o", encoded.bytes.clone()).unwrap().header(), &header);
        let cut = SegmentHeader::read("o", &encoded.bytes[..64 << 10]).unwrap_err();
        assert!(cut.kind == Kind::Corrupt && cut.what.contains("left"), "{}", cut.what);
    }
    let mut lies = encode(&small, &blocks, &GO).unwrap().bytes.to_vec();
    lies[12..16].copy_from_slice(&u32::MAX.to_le_bytes());
    assert!(SegmentHeader::read("o", &lies).unwrap_err().what.contains("limit"));
}

/// About 64 KiB in one object, of several blocks.
fn target() -> Vec<u8> {
    let (.., encoded) = segment(&inserts(2950), 1000);
    assert!((60 << 10..72 << 10).contains(&encoded.bytes.len()), "{}", encoded.bytes.len());
    encoded.bytes.to_vec()
}

#[test]
fn every_truncation_is_detected() {
    let bytes = bytes::Bytes::from(target());
    for len in 0..bytes.len() {
        assert_eq!(SegmentFile::parse("o", bytes.slice(..len)).unwrap_err().kind, Kind::Corrupt, "cut at {len}");
    }
}

#[test]
fn every_bit_flip_is_detected_when_the_whole_is_read() {
    let mut bytes = target();
    for bit in 0..bytes.len() * 8 {
        bytes[bit / 8] ^= 1 << (bit % 8);
        assert!(SegmentFile::read(&bytes).is_err(), "bit {bit}");
        bytes[bit / 8] ^= 1 << (bit % 8);
    }
    SegmentFile::read(&bytes).unwrap();
}

/// A reader of ranges never sees the total checksum: each part has to defend itself.
#[test]
fn every_bit_flip_is_detected_by_the_part_it_is_in() {
    let mut bytes = target();
    let size = bytes.len() as u64;
    let (_, blocks_at) = SegmentHeader::read("o", &bytes).unwrap();
    let TailResult::Footer(footer) = Footer::from_tail("o", size, &bytes).unwrap() else { panic!("the whole has a footer") };
    let at = |n: u64| usize::try_from(n).unwrap();
    let footer_at = at(Trailer::read(&bytes).unwrap().footer_offset);
    let total = bytes.len() - 24..bytes.len() - 16;
    let mut flip = |byte: usize, read: &dyn Fn(&[u8]) -> bool| {
        for bit in 0..8 {
            bytes[byte] ^= 1 << bit;
            assert!(!read(&bytes), "byte {byte} bit {bit}");
            bytes[byte] ^= 1 << bit;
        }
    };
    (0..at(blocks_at)).for_each(|n| flip(n, &|b| SegmentHeader::read("o", b).is_ok()));
    for block in &footer.blocks {
        let range = at(block.offset)..at(block.offset) + block.stored_len as usize;
        range.clone().for_each(|n| flip(n, &|b| block.decode("o", &b[range.clone()]).is_ok()));
    }
    // Only the total checksum itself is of no use to a reader of ranges, and none to its answer.
    let end = (footer_at..at(size)).filter(|n| !total.contains(n));
    end.for_each(|n| flip(n, &|b| Footer::from_tail("o", size, &b[footer_at..]).is_ok()));
}

#[test]
fn faults_name_object_and_offset() {
    let mut bytes = target();
    let file = SegmentFile::parse("some/key.seg", bytes.clone().into()).unwrap();
    let entry = file.footer().blocks[1].clone();
    let start = usize::try_from(entry.offset).unwrap();
    bytes[start + 3] ^= 1;
    let fault = entry.decode("some/key.seg", &bytes[start..start + entry.stored_len as usize]).unwrap_err();
    assert!(fault.what.starts_with(&format!("some/key.seg: block at byte {start}")), "{}", fault.what);
    let whole = SegmentFile::parse("some/key.seg", bytes.into()).unwrap_err();
    assert_eq!(whole.what, fault.what, "the whole object is read to the damage, not to its total checksum");
}

/// The promise of the original description, on whole objects: header, index, filter and all.
#[test]
fn repeated_operations_end_at_five_percent_of_their_raw_bytes() {
    for n in [5000, 20_000, 70_000] {
        let rows = hot_updates(n, 200);
        let (.., encoded) = segment(&rows, 24_000);
        let (stored, raw) = (encoded.bytes.len() as u64, encoded.summary.raw_bytes);
        println!("{n} hot updates: {stored} of {raw} bytes, {:.2} %", 100.0 * stored as f64 / raw as f64);
        assert!(stored * 20 <= raw, "{stored} of {raw}");
    }
}
