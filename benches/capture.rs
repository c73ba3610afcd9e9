//! What assembling costs beside its speed of light: a reply of 4,000 inserts parsed and turned into blocks, and a copy of the same bytes.
//! `cargo bench --bench capture`; the ratios of one run are printed last.

#![allow(clippy::expect_used)] // a benchmark may stop

use std::hint::black_box;
use std::time::{Duration, Instant};

use argon::capture::feed::{ChangeFeed, Reply};
use argon::capture::{AssemblePolicy, Assembler, Batch, MemoryFeed};
use argon::ledger::Position;
use argon::runtime::clock;
use bson::{RawDocumentBuf, doc};
use criterion::{Criterion, Throughput, criterion_group, criterion_main};

const EVENTS: usize = 4_000;
/// Bytes of a document.
const SIZES: [usize; 2] = [200, 1_000];
const POLICY: AssemblePolicy = AssemblePolicy { batch_size: 100, batch_timeout: Duration::from_secs(5), max_bytes: 4 << 20 };

struct Case {
    size: usize,
    reply: Reply,
    /// The reply's events one behind the other.
    bytes: Vec<u8>,
    position: Position,
}

/// Letters that do not repeat from document to document.
fn text(seed: usize, len: usize) -> String {
    let mut state = seed as u64 + 1;
    let letter = |state: &mut u64| {
        *state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        char::from(b"abcdefghijklmnopqrstuvwxyz012345"[(*state >> 59) as usize])
    };
    (0..len).map(|_| letter(&mut state)).collect()
}

fn case(runtime: &tokio::runtime::Runtime, size: usize) -> Case {
    let feed = MemoryFeed::new("shop", "set-1");
    feed.set_reply_events(EVENTS);
    let start = feed.present();
    for i in 0..EVENTS {
        let (id, n) = (bson::oid::ObjectId::new(), i64::try_from(i).unwrap_or(0));
        let full = doc! { "_id": id, "n": n, "customer": text(i, 12), "text": "" };
        let padding = size.saturating_sub(bson::serialize_to_vec(&full).map_or(0, |b| b.len()));
        let full = doc! { "_id": id, "n": n, "customer": text(i, 12), "text": text(i, padding) };
        feed.insert("orders", &full).expect("an insert");
    }
    let reply = runtime.block_on(async { feed.open(Some(&start)).await.expect("it opens").next().await.expect("a reply") });
    let bytes = feed.history().iter().flat_map(|e: &RawDocumentBuf| e.as_bytes().to_vec()).collect();
    Case { size, reply, bytes, position: Position { chain: start.clone(), token: start, next_seq: 1, last_txn: None } }
}

/// A fresh assembler takes the whole reply.
fn assemble(case: &Case, now: Instant) -> (Vec<Batch>, Option<Batch>) {
    let mut assembler = Assembler::new("shop", POLICY, &case.position, now);
    let closed = assembler.feed(&case.reply, now).expect("events that parse");
    (closed, assembler.close())
}

/// The least that anybody could do with the events: copy their bytes to one place.
fn copy(case: &Case) -> Vec<u8> {
    let mut out = Vec::with_capacity(case.bytes.len());
    out.extend_from_slice(black_box(&case.bytes));
    out
}

fn benches(c: &mut Criterion) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().expect("a runtime");
    let cases = SIZES.map(|size| case(&runtime, size));
    let now = clock::now();
    for case in &cases {
        let mut group = c.benchmark_group(format!("inserts of {} bytes", case.size));
        group.throughput(Throughput::Elements(EVENTS as u64));
        group.bench_function("assemble", |b| b.iter(|| assemble(case, now)));
        group.bench_function("assemble: memcpy", |b| b.iter(|| copy(case)));
        group.finish();
    }
    ratios(&cases, now);
}

/// The mean of runs of 200 ms in all.
fn time<T>(mut run: impl FnMut() -> T) -> Duration {
    let (began, mut runs) = (clock::now(), 0);
    while began.elapsed() < Duration::from_millis(200) || runs < 3 {
        black_box(run());
        runs += 1;
    }
    began.elapsed() / runs
}

/// Each thing beside the least time it could take, one after the other, since absolute figures drift on shared machines.
fn ratios(cases: &[Case], now: Instant) {
    println!("\n{:24} {:>18} {:>18} {:>16}", "assemble", "changes/s", "memcpy, changes/s", "ratio_to_ceiling");
    for case in cases {
        let (ours, light) = (time(|| assemble(case, now)), time(|| copy(case)));
        let rate = |d: Duration| EVENTS as f64 / d.as_secs_f64();
        let ratio = light.as_secs_f64() / ours.as_secs_f64();
        println!("{:24} {:18.0} {:18.0} {ratio:16.3}", format!("inserts of {} bytes", case.size), rate(ours), rate(light));
    }
}

criterion_group! {
    name = capture;
    config = Criterion::default().sample_size(20).warm_up_time(Duration::from_millis(500)).measurement_time(Duration::from_secs(2));
    targets = benches
}
criterion_main!(capture);
