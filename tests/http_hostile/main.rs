//! Bytes that are no requests, and clients that never finish one: against a process of its own, whose memory is watched. A binary of its own,
//! so that nothing else runs beside it.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)] // helpers of tests are tests

#[path = "../http/served.rs"]
mod served;
#[allow(dead_code)]
#[path = "../http/wire.rs"]
mod wire;
#[allow(dead_code)]
#[path = "../http/world.rs"]
mod world;

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use argon::runtime::clock;

use rand::rngs::SmallRng;
use rand::seq::IndexedRandom;
use rand::{Rng, SeedableRng};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::served::Served;
use crate::wire::{exchange, send};

const MALFORMED: usize = 20_000;
const SLOW: usize = 1_000;
/// Clients that send at once.
const SIDE_BY_SIDE: usize = 32;
/// Memory that the process may grow by.
const GROWTH: u64 = 64 << 20;
/// `/health` while all of that goes on: some ten times what is seen.
const P99: Duration = Duration::from_millis(100);
/// One after the other: each measures.
static ALONE: tokio::sync::Mutex<()> = tokio::sync::Mutex::const_new(());

/// One wrong request; the same for the same seed.
fn malformed(rng: &mut SmallRng) -> Vec<u8> {
    let paths = ["/health", "/api/v1/jobs", "/api/v1/workers/scale", "/api/v1/queue/pause", "/metrics", "/api/v1/jobs/x/retry"];
    let path = *paths.choose(rng).unwrap();
    let lengths = [
        "-1",
        "+5",
        "5,5",
        "0x10",
        "18446744073709551615",
        "9223372036854775807",
        "99999999999999999999999",
        "1e9",
        " ",
        "5 5",
        "٣",
        "4294967296",
    ];
    let length = *lengths.choose(rng).unwrap();
    let host = "Host: localhost\r\n";
    let json = "Content-Type: application/json\r\n";
    match rng.random_range(0..18) {
        0 => format!("POST {path} HTTP/1.1\r\n{host}{json}Content-Length: {length}\r\n\r\n{{}}").into_bytes(),
        1 => format!("POST {path} HTTP/1.1\r\n{host}{json}Content-Length: 2\r\nContent-Length: {}\r\n\r\n{{}}", rng.random_range(0..9))
            .into_bytes(),
        2 => format!(
            "POST {path} HTTP/1.1\r\n{host}{json}Content-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\nGET /health HTTP/1.1\r\n"
        )
        .into_bytes(),
        3 => format!(
            "POST {path} HTTP/1.1\r\n{host}{json}Transfer-Encoding: {}\r\n\r\n",
            ["gzip, chunked", "chunked, identity", "xchunked", "chunked\r\nTransfer-Encoding: chunked"].choose(rng).unwrap()
        )
        .into_bytes(),
        4 => format!(
            "POST {path} HTTP/1.1\r\n{host}{json}Transfer-Encoding: chunked\r\n\r\n{}\r\n{{}}\r\n",
            ["-1", "fffffffffffffffff", "2;\0", "zz", "", "7fffffffffffffff"].choose(rng).unwrap()
        )
        .into_bytes(),
        5 => format!("GET {path}\0 HTTP/1.1\r\n{host}\r\n").into_bytes(),
        6 => format!("GET {path} HTTP/1.1\r\n{host}X\0Y: \0\r\n\r\n").into_bytes(),
        7 => format!(
            "{} {path} HTTP/1.1\r\n{host}\r\n",
            ["G\u{e9}T", "GET GET", "", "get", "BREW", "PRI", "TRACE", "CONNECT", "M".repeat(9_000).as_str()].choose(rng).unwrap()
        )
        .into_bytes(),
        8 => {
            // An endless head: as much as the server takes.
            let mut bytes = format!("GET {path} HTTP/1.1\r\n{host}").into_bytes();
            for i in 0..rng.random_range(50..3_000) {
                bytes.extend_from_slice(format!("X-{i}: {}\r\n", "y".repeat(rng.random_range(0..60))).as_bytes());
            }
            bytes
        }
        9 => format!("GET {path}\r\n").into_bytes(),
        10 => format!("GET {path} HTTP/{}\r\n{host}\r\n", ["0.9", "1.2", "2.0", "3", "1.1.1", "x"].choose(rng).unwrap()).into_bytes(),
        11 => format!("GET {path} HTTP/1.1\r\n\r\n").into_bytes(),
        12 => format!("GET {path} HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n").into_bytes(),
        13 => (0..rng.random_range(1..4_000)).map(|_| rng.random()).collect(),
        14 => format!(
            "POST {path} HTTP/1.1\r\n{host}{json}Content-Length: 2\r\n\r\n{}",
            ["[[[[[[[[", "{\"a\":", "\u{0}\u{0}", "{}garbage that is the next request\r\n\r\n"].choose(rng).unwrap()
        )
        .into_bytes(),
        15 => format!(
            "GET {} HTTP/1.1\r\n{host}\r\n",
            [
                "*",
                "http://evil/health",
                "//",
                "/%",
                "/%00",
                "/api/v1/jobs/%ff",
                "/..%2f..",
                "/?%",
                "health",
                "/api/v1/jobs?limit=%00",
                "/api/v1/jobs?state=ready&state=dead"
            ]
            .choose(rng)
            .unwrap()
        )
        .into_bytes(),
        16 => format!("GET {path} HTTP/1.1\n{host}\n : \r\n\tfold\r\n\r\n").into_bytes(),
        _ => {
            // A good one with a byte changed somewhere.
            let body = serde_json::json!({ "target_workers": 5 });
            let mut bytes = wire::request("POST", path, Some("token"), Some(&body));
            for _ in 0..rng.random_range(1..4) {
                let at = rng.random_range(0..bytes.len());
                bytes[at] = rng.random();
            }
            bytes
        }
    }
}

/// Asks for health again and again until told to stop, each time on a new connection; sorted times. No answer is one that never came.
async fn watch_health(addr: SocketAddr, mut stop: tokio::sync::oneshot::Receiver<()>) -> Vec<Duration> {
    let mut times = Vec::new();
    while stop.try_recv().is_err() {
        let began = clock::now();
        let stream = TcpStream::connect(addr).await.unwrap();
        let read = exchange(stream, &wire::request("GET", "/health", None, None), Duration::from_secs(40)).await;
        let answered = wire::Reply::parse(&read).is_some_and(|reply| reply.status == 200);
        times.push(if answered { began.elapsed() } else { Duration::MAX });
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    times.sort();
    times
}

fn p99(times: &[Duration]) -> Duration {
    times[times.len() * 99 / 100]
}

#[tokio::test(flavor = "multi_thread")]
async fn twenty_thousand_malformed_requests_break_nothing() {
    let _alone = ALONE.lock().await;
    let seed: u64 = std::env::var("ARGON_TEST_SEED").ok().and_then(|s| s.parse().ok()).unwrap_or(20_251_125);
    let mut served = Served::start();
    let addr = served.addr;
    for _ in 0..100 {
        send(addr, "GET", "/health", None, None).await; // allocators have grown to their usual size
    }
    let before = served.rss();
    let (stop, stopped) = tokio::sync::oneshot::channel();
    let (stop_metrics, stopped_metrics) = tokio::sync::oneshot::channel();
    let health = tokio::spawn(watch_health(addr, stopped));
    let metrics = tokio::spawn(watch_health(served.metrics, stopped_metrics));
    let began = clock::now();
    let senders: Vec<_> = (0..SIDE_BY_SIDE as u64)
        .map(|n| {
            tokio::spawn(async move {
                let mut rng = SmallRng::seed_from_u64(seed + n);
                let mut statuses = std::collections::BTreeMap::<u16, usize>::new();
                for _ in 0..MALFORMED / SIDE_BY_SIDE {
                    let bytes = malformed(&mut rng);
                    let Ok(stream) = TcpStream::connect(addr).await else { continue };
                    // Most end at once; what waits for more would take the server's five seconds, which are tested elsewhere.
                    let read = exchange(stream, &bytes, Duration::from_millis(50)).await;
                    let status = wire::Reply::parse(&read).map_or(0, |reply| reply.status);
                    *statuses.entry(status).or_default() += 1;
                }
                statuses
            })
        })
        .collect();
    let mut statuses = std::collections::BTreeMap::<u16, usize>::new();
    for sender in senders {
        for (status, n) in sender.await.unwrap() {
            *statuses.entry(status).or_default() += n;
        }
    }
    let took = began.elapsed();
    stop.send(()).unwrap();
    stop_metrics.send(()).unwrap();
    let (health, metrics) = (health.await.unwrap(), metrics.await.unwrap());
    let growth = served.rss().saturating_sub(before);
    println!(
        "{MALFORMED} malformed requests, seed {seed}, {took:.1?}: statuses {statuses:?}; /health p99 {:?} of {}, metrics address p99 {:?}; memory grew by {} KiB",
        p99(&health),
        health.len(),
        p99(&metrics),
        growth / 1024
    );
    assert!(served.is_alive());
    assert!(growth < GROWTH, "{growth}");
    assert!(statuses.keys().all(|status| *status < 500), "a wrong request is no fault of the server: {statuses:?}");
    assert!(health.len() > 50 && p99(&health) < P99 && p99(&metrics) < P99, "{:?}", p99(&health));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_thousand_slow_connections_starve_nobody() {
    let _alone = ALONE.lock().await;
    let mut served = Served::start();
    let addr = served.addr;
    for _ in 0..100 {
        send(addr, "GET", "/health", None, None).await;
    }
    let before = served.rss();
    let (stop, stopped) = tokio::sync::oneshot::channel();
    let (stop_metrics, stopped_metrics) = tokio::sync::oneshot::channel();
    let health = tokio::spawn(watch_health(addr, stopped));
    let metrics = tokio::spawn(watch_health(served.metrics, stopped_metrics));
    let until = clock::now() + Duration::from_secs(12);
    let kept = Arc::new(std::sync::atomic::AtomicUsize::new(0));
    let slow: Vec<_> = (0..SLOW)
        .map(|i| {
            let kept = kept.clone();
            tokio::spawn(async move {
                tokio::time::sleep(Duration::from_millis(i as u64)).await;
                while clock::now() < until {
                    let Ok(mut stream) = TcpStream::connect(addr).await else { continue };
                    kept.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
                    let head: &[u8] = match i % 3 {
                        0 => b"",
                        1 => b"GET /health HTTP/1.1\r\nHost: localhost\r\n",
                        _ => b"POST /api/v1/jobs HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: 1000\r\n\r\n{",
                    };
                    let _ = stream.write_all(head).await;
                    // A byte now and then, until the server has had enough.
                    let mut buffer = [0; 512];
                    while clock::now() < until {
                        match tokio::time::timeout(Duration::from_secs(1), stream.read(&mut buffer)).await {
                            Ok(Ok(n)) if n > 0 => {}
                            Ok(_) => break,
                            Err(_) if stream.write_all(if i % 3 == 1 { b"X: y\r\n" } else { b" " }).await.is_err() => break,
                            Err(_) => {}
                        }
                    }
                    tokio::time::sleep(Duration::from_secs(3)).await;
                }
            })
        })
        .collect();
    tokio::time::sleep(Duration::from_secs(10)).await;
    let growth = served.rss().saturating_sub(before);
    for one in slow {
        one.await.unwrap();
    }
    stop.send(()).unwrap();
    stop_metrics.send(()).unwrap();
    let (health, metrics) = (health.await.unwrap(), metrics.await.unwrap());
    println!(
        "{SLOW} slow clients, {} connections: /health p99 {:?} of {}, metrics address p99 {:?} of {}; memory grew by {} KiB",
        kept.load(std::sync::atomic::Ordering::Relaxed),
        p99(&health),
        health.len(),
        p99(&metrics),
        metrics.len(),
        growth / 1024
    );
    assert!(served.is_alive());
    assert!(growth < GROWTH, "{growth}");
    assert!(health.len() > 50 && p99(&health) < P99 && p99(&metrics) < P99, "{:?}", p99(&health));
}
