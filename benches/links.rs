//! What the links cost beside their speed of light: `runtime::link` beside a bare tokio channel, the round trip through the CPU pool beside a bare
//! rayon spawn. `cargo bench --bench links`; the ratios of one run are printed last.

#![allow(clippy::expect_used)] // a benchmark may stop

use std::hint::black_box;
use std::time::Duration;

use argon::runtime::clock;
use argon::runtime::cpu::CpuPool;
use argon::runtime::link::link;
use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use tokio::runtime::Runtime;
use tokio::sync::{mpsc, oneshot};

/// Messages of one run.
const MESSAGES: u64 = 10_000;
/// Room of the links compared: small, as in the engine, so that waiting for room is part of it.
const ROOM: usize = 8;
/// Round trips of one run.
const TRIPS: u64 = 500;

async fn through_link() -> u64 {
    let (tx, mut rx) = link::<u64>("bench", ROOM);
    let sender = tokio::spawn(async move {
        for i in 0..MESSAGES {
            tx.send(i).await.expect("the other end is there");
        }
    });
    let mut sum = 0;
    while let Some(i) = rx.recv().await {
        sum += i;
    }
    sender.await.expect("it sends");
    sum
}

async fn through_channel() -> u64 {
    let (tx, mut rx) = mpsc::channel::<u64>(ROOM);
    let sender = tokio::spawn(async move {
        for i in 0..MESSAGES {
            tx.send(i).await.expect("the other end is there");
        }
    });
    let mut sum = 0;
    while let Some(i) = rx.recv().await {
        sum += i;
    }
    sender.await.expect("it sends");
    sum
}

async fn through_pool(pool: &CpuPool) -> u64 {
    let mut sum = 0;
    for i in 0..TRIPS {
        sum += pool.run("bench", move |_| Ok(black_box(i))).await.expect("it runs");
    }
    sum
}

async fn through_rayon(pool: &rayon::ThreadPool) -> u64 {
    let mut sum = 0;
    for i in 0..TRIPS {
        let (tx, rx) = oneshot::channel();
        pool.spawn(move || {
            let _ = tx.send(black_box(i)); // the receiver waits right below
        });
        sum += rx.await.expect("it runs");
    }
    sum
}

struct Bench {
    runtime: Runtime,
    pool: CpuPool,
    rayon: rayon::ThreadPool,
}

fn benches(c: &mut Criterion) {
    let threads = 2;
    let bench = Bench {
        runtime: tokio::runtime::Builder::new_multi_thread().worker_threads(2).build().expect("a runtime"),
        pool: CpuPool::new(threads, threads * 2).expect("a pool"),
        rayon: rayon::ThreadPoolBuilder::new().num_threads(threads).build().expect("a pool"),
    };
    let Bench { runtime, pool, rayon } = &bench;
    let mut group = c.benchmark_group("messages");
    group.throughput(Throughput::Elements(MESSAGES));
    group.bench_function("link", |b| b.iter(|| runtime.block_on(through_link())));
    group.bench_function("link: tokio mpsc", |b| b.iter(|| runtime.block_on(through_channel())));
    group.finish();
    let mut group = c.benchmark_group("round trips");
    group.throughput(Throughput::Elements(TRIPS));
    group.bench_function("CPU pool", |b| b.iter(|| runtime.block_on(through_pool(pool))));
    group.bench_function("CPU pool: rayon", |b| b.iter(|| runtime.block_on(through_rayon(rayon))));
    group.finish();
    ratios(&bench);
}

/// The mean of runs of 500 ms in all.
fn time<T>(mut run: impl FnMut() -> T) -> Duration {
    let (began, mut runs) = (clock::now(), 0);
    while began.elapsed() < Duration::from_millis(500) || runs < 3 {
        black_box(run());
        runs += 1;
    }
    began.elapsed() / runs
}

/// Each thing beside the least time it could take, one after the other, since absolute figures drift on shared machines.
fn ratios(Bench { runtime, pool, rayon }: &Bench) {
    println!("\n{:24} {:>14} {:>16} {:>16}", "links", "per second", "speed of light", "ratio_to_ceiling");
    let line = |what: &str, count: u64, ours: Duration, light: Duration| {
        let rate = |d: Duration| count as f64 / d.as_secs_f64();
        println!("{what:24} {:14.0} {:16.0} {:16.3}", rate(ours), rate(light), light.as_secs_f64() / ours.as_secs_f64());
    };
    line("link (tokio mpsc)", MESSAGES, time(|| runtime.block_on(through_link())), time(|| runtime.block_on(through_channel())));
    line("CPU pool (rayon spawn)", TRIPS, time(|| runtime.block_on(through_pool(pool))), time(|| runtime.block_on(through_rayon(rayon))));
}

criterion_group! {
    name = links;
    config = Criterion::default().sample_size(20).warm_up_time(Duration::from_millis(500)).measurement_time(Duration::from_secs(2));
    targets = benches
}
criterion_main!(links);
