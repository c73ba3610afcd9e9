//! What the segment format costs beside its speed of light: copying for building, zstd alone for packing, decompressing and
//! comparing for unpacking, SHA-256 for encoding. `cargo bench --bench segment`; the ratios of one run are printed last.

#![allow(clippy::expect_used, clippy::cast_possible_truncation)] // a benchmark may stop, and makes its own small numbers

use std::hint::black_box;
use std::sync::atomic::AtomicBool;
use std::time::{Duration, Instant};

use argon::change::{ChangeRef, ClusterTime, Op};
use argon::ledger::{Ends, SegmentKind};
use argon::segment::{
    BLOCK_BYTES, BlockBuilder, PackedBlock, RawBlock, SegmentHeader, encode, pack_payload, unpack_payload, verify_encoded,
};
use bson::{RawDocument, RawDocumentBuf, oid::ObjectId, rawdoc};
use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use rayon::prelude::*;
use xxhash_rust::xxh3::xxh3_64_with_seed;

static GO: AtomicBool = AtomicBool::new(false);
const BLOCKS: usize = 4;

type Row = (Op, Option<RawDocumentBuf>, Option<RawDocumentBuf>);

fn noise(seed: u64, n: u64) -> u64 {
    xxh3_64_with_seed(&n.to_le_bytes(), seed)
}

fn oid(n: u64) -> ObjectId {
    let mut bytes = [0x5c; 12];
    bytes[..4].copy_from_slice(&(1_795_000_000 + n / 700).to_be_bytes()[4..]);
    bytes[9..].copy_from_slice(&(0x00a1_b2c3 + n).to_be_bytes()[5..]);
    ObjectId::from_bytes(bytes)
}

/// Documents of about 250 bytes.
fn inserts(n: u64) -> Vec<Row> {
    let row = |i: u64| {
        let body = rawdoc! {
            "_id": oid(i), "customer": format!("customer {}", noise(1, i) % 900), "status": "new", "amount": (noise(2, i) % 10_000) as i64,
            "items": [{"sku": format!("SKU-{:05}", noise(3, i) % 500), "qty": 1}, {"sku": format!("SKU-{:05}", noise(4, i) % 500), "qty": 2}],
            "address": {"street": format!("{} Main Street", noise(5, i) % 200), "city": "Zürich", "country": "CH"},
        };
        (Op::Insert, None, Some(body))
    };
    (0..n).map(row).collect()
}

/// Two hundred documents updated in random order with one diff: 59 bytes a row.
fn hot_updates(n: u64) -> Vec<Row> {
    let row = |i| (Op::Update, Some(rawdoc! {"_id": oid(noise(7, i) % 200)}), Some(rawdoc! {"u": {"status": "paid", "n": 17}}));
    (0..n).map(row).collect()
}

/// As above, each of another document and with another diff: nothing repeats.
fn cold_updates(n: u64) -> Vec<Row> {
    let row = |i| (Op::Update, Some(rawdoc! {"_id": oid(i)}), Some(rawdoc! {"u": {"status": "paid", "n": i as i64}}));
    (0..n).map(row).collect()
}

fn view(i: usize, (op, key, body): &Row) -> ChangeRef<'_> {
    ChangeRef {
        op: *op,
        coll: "orders",
        uuid: Some([0x3e; 16]),
        time: ClusterTime { t: 1_795_467_772 + (i / 4000) as u32, i: 1 + (i % 4000) as u32 },
        wall_ms: Some(1_795_467_772_000 + i as i64 / 4),
        txn: None,
        key: key.as_deref(),
        body: body.as_deref(),
    }
}

fn build(rows: &[Row]) -> Vec<RawBlock> {
    let mut blocks = Vec::new();
    let mut builder = BlockBuilder::new(1);
    for (i, row) in rows.iter().enumerate() {
        builder.push(&view(i, row)).expect("rows are small");
        if builder.encoded_len() >= BLOCK_BYTES {
            blocks.push(std::mem::replace(&mut builder, BlockBuilder::new(i as u64 + 2)).finish());
        }
    }
    if !builder.is_empty() {
        blocks.push(builder.finish());
    }
    blocks
}

/// The least that anybody could do with the rows: copy their bytes to one place, block by block.
fn copy(rows: &[Row]) -> usize {
    let (mut out, mut total) = (Vec::with_capacity(BLOCK_BYTES + 4096), 0);
    for (_, key, body) in rows {
        for doc in key.iter().chain(body) {
            out.extend_from_slice(black_box(RawDocument::as_bytes(doc)));
        }
        if out.len() >= BLOCK_BYTES {
            total += out.len();
            black_box(std::mem::replace(&mut out, Vec::with_capacity(BLOCK_BYTES + 4096)));
        }
    }
    total + out.len()
}

fn header(blocks: &[RawBlock]) -> SegmentHeader {
    SegmentHeader {
        kind: SegmentKind::Changes,
        branch: "0b0c2f6e-6f0a-4a2e-9d55-1f8f3a8f9b11".into(),
        epoch: 1,
        first_seq: blocks[0].first_seq,
        last_seq: blocks[blocks.len() - 1].last_seq(),
        first_time: ClusterTime::default(),
        last_time: ClusterTime::default(),
        last_wall_ms: None,
        start_token: rawdoc! {"_data": "82"},
        end_token: rawdoc! {"_data": "82"},
        starts_inside: false,
        ends: Ends::Closed,
        db: "shop".into(),
        reason: None,
    }
}

fn zstd_alone(blocks: &[RawBlock], level: i32) -> Vec<Vec<u8>> {
    let compress = |c: &mut zstd::bulk::Compressor<'static>, b: &RawBlock| c.compress(&b.bytes).expect("zstd compresses");
    blocks.par_iter().map_init(|| zstd::bulk::Compressor::new(level).expect("a level of zstd"), compress).collect()
}

fn unzstd_alone(frames: &[Vec<u8>], blocks: &[RawBlock]) -> bool {
    frames.par_iter().zip(blocks).all(|(f, b)| zstd::bulk::decompress(f, b.bytes.len()).expect("its own frame") == b.bytes)
}

/// What capture does with blocks.
fn queued(blocks: &[RawBlock]) -> Vec<bytes::Bytes> {
    let packed = blocks.par_iter().map(|b| PackedBlock::pack(b.clone())).collect::<Result<Vec<_>, _>>().expect("zstd compresses");
    pack_payload(&packed, 8 << 20).expect("it packs")
}

/// What a worker does after unpacking.
fn encode_and_verify(header: &SegmentHeader, packed: &[PackedBlock]) {
    let encoded = encode(header, packed, &GO).expect("it encodes");
    verify_encoded(&encoded, header, packed).expect("it is what went in");
}

/// The hash that names the object is the least that anybody has to do.
fn hash_alone(packed: &[PackedBlock]) -> sha2::digest::Output<sha2::Sha256> {
    let mut hash = sha2::Sha256::default();
    packed.iter().for_each(|b| sha2::Digest::update(&mut hash, b.frame()));
    sha2::Digest::finalize(hash)
}

struct Case {
    name: &'static str,
    rows: Vec<Row>,
}

fn cases() -> Vec<Case> {
    let target = (BLOCKS * BLOCK_BYTES) as u64;
    vec![
        Case { name: "inserts", rows: inserts(target / 260) },
        Case { name: "hot updates", rows: hot_updates(target / 42) },
        Case { name: "cold updates", rows: cold_updates(target / 65) },
    ]
}

fn benches(c: &mut Criterion) {
    // One thread, so that both sides of a pair have the same: encoding uses the pool that it is called in.
    let pool = rayon::ThreadPoolBuilder::new().num_threads(1).build().expect("a thread");
    for Case { name, rows } in cases() {
        let mut group = c.benchmark_group(format!("{name}, rows"));
        group.throughput(Throughput::Elements(rows.len() as u64));
        group.bench_function("build", |b| b.iter(|| build(&rows)));
        group.bench_function("build: memcpy", |b| b.iter(|| copy(&rows)));
        let blocks = build(&rows);
        group.bench_function("read", |b| b.iter(|| read(&blocks)));
        group.finish();
        let mut group = c.benchmark_group(format!("{name}, bytes"));
        group.throughput(Throughput::Bytes(blocks.iter().map(|b| b.bytes.len() as u64).sum()));
        let header = header(&blocks);
        let frames = zstd_alone(&blocks, 3);
        let parts = queued(&blocks);
        let packed = unpack_payload(&parts, 1 << 30).expect("its own payload");
        group.bench_function("pack", |b| b.iter(|| pool.install(|| queued(&blocks))));
        group.bench_function("pack: zstd 3", |b| b.iter(|| pool.install(|| zstd_alone(&blocks, 3))));
        group.bench_function("unpack", |b| b.iter(|| pool.install(|| unpack_payload(&parts, 1 << 30))));
        group.bench_function("unpack: unzstd and compare", |b| b.iter(|| pool.install(|| unzstd_alone(&frames, &blocks))));
        group.bench_function("encode and verify", |b| b.iter(|| pool.install(|| encode_and_verify(&header, &packed))));
        group.bench_function("encode and verify: sha-256", |b| b.iter(|| hash_alone(&packed)));
        group.finish();
    }
    pool.install(ratios);
}

fn read(blocks: &[RawBlock]) -> u64 {
    let rows = blocks.iter().flat_map(|b| b.rows().expect("its own block"));
    rows.map(|row| row.expect("its own row").1.raw_bytes()).sum()
}

/// The mean of runs of 200 ms in all, in time on the processor where the system tells it (by ticks of some ms): other work on a
/// shared machine then counts for less.
fn time<T>(mut run: impl FnMut() -> T) -> Duration {
    let (start, mut runs) = (now(), 0);
    while now().saturating_sub(start) < Duration::from_millis(200) || runs < 3 {
        black_box(run());
        runs += 1;
    }
    now().saturating_sub(start) / runs
}

#[allow(clippy::disallowed_methods)] // a benchmark reads the clock
fn now() -> Duration {
    static START: std::sync::OnceLock<Instant> = std::sync::OnceLock::new();
    let spent = std::fs::read_to_string("/proc/thread-self/schedstat").ok();
    let spent = spent.and_then(|s| s.split(' ').next()?.parse().ok());
    spent.map_or_else(|| START.get_or_init(Instant::now).elapsed(), Duration::from_nanos)
}

/// Each thing beside the least time it could take, one after the other, since absolute figures drift on shared machines.
fn ratios() {
    println!("\n{:34} {:>14} {:>16} {:>15}", "one thread", "", "speed of light", "ratio_to_ceiling");
    for Case { name, rows } in cases() {
        let blocks = build(&rows);
        let header = header(&blocks);
        let frames = zstd_alone(&blocks, 3);
        let parts = queued(&blocks);
        let packed = unpack_payload(&parts, 1 << 30).expect("its own payload");
        let encoded = encode(&header, &packed, &GO).expect("it encodes");
        let raw: u64 = rows.iter().enumerate().map(|(i, row)| view(i, row).raw_bytes()).sum();
        let bytes: usize = blocks.iter().map(|b| b.bytes.len()).sum();
        let line = |what: &str, amount: f64, unit: &str, ours: Duration, light: Duration| {
            let rate = |d: Duration| amount / 1e6 / d.as_secs_f64();
            let ratio = light.as_secs_f64() / ours.as_secs_f64();
            println!("{:34} {:9.2} {unit} {:11.2} {unit} {ratio:15.2}", format!("{name}: {what}"), rate(ours), rate(light));
        };
        let zstd3 = time(|| zstd_alone(&blocks, 3));
        line("build", rows.len() as f64, "Mrow", time(|| build(&rows)), time(|| copy(&rows)));
        line("read (light: build's memcpy)", rows.len() as f64, "Mrow", time(|| read(&blocks)), time(|| copy(&rows)));
        line("pack", bytes as f64, "MB/s", time(|| queued(&blocks)), zstd3);
        line("unpack", bytes as f64, "MB/s", time(|| unpack_payload(&parts, 1 << 30)), time(|| unzstd_alone(&frames, &blocks)));
        line("encode and verify", bytes as f64, "MB/s", time(|| encode_and_verify(&header, &packed)), time(|| hash_alone(&packed)));
        let per = |n: usize| n as f64 / rows.len() as f64;
        println!(
            "{name}: {:.1} bytes a change in the event, {:.2} in the segment ({:.2} %), {:.2} in the payload\n",
            raw as f64 / rows.len() as f64,
            per(encoded.bytes.len()),
            100.0 * encoded.bytes.len() as f64 / raw as f64,
            per(parts.iter().map(bytes::Bytes::len).sum()),
        );
    }
}

criterion_group! {
    name = segment;
    config = Criterion::default().sample_size(20).warm_up_time(Duration::from_millis(500)).measurement_time(Duration::from_secs(2));
    targets = benches
}
criterion_main!(segment);
