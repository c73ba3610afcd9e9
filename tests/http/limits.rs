//! Bounds that an honest client may meet.

use std::time::Duration;

use argon::runtime::clock;

use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::schema;
use crate::wire::{self, exchange, raw, send};
use crate::world::World;

#[tokio::test(flavor = "multi_thread")]
async fn more_requests_than_the_rate_are_told_when_to_come_back_and_health_is_not_counted() {
    let world = World::with(|settings| settings.api_rate = 5).await;
    let mut statuses = Vec::new();
    for _ in 0..15 {
        let reply = world.get("/api/v1/queue").await;
        schema::check("GET", "/api/v1/queue", &reply);
        if reply.status == 429 {
            assert_eq!((reply.code().as_str(), reply.header("retry-after")), ("too_many_requests", Some("1")));
        }
        statuses.push(reply.status);
    }
    assert!(statuses[..10].iter().all(|s| *s == 200) && statuses.contains(&429), "a burst of twice the rate: {statuses:?}");
    for _ in 0..30 {
        assert_eq!(world.get("/health").await.status, 200);
        assert_eq!(send(world.metrics_addr(), "GET", "/metrics", None, None).await.status, 200);
    }
    tokio::time::sleep(Duration::from_millis(1_100)).await;
    assert_eq!(world.get("/api/v1/queue").await.status, 200);
}

#[tokio::test(flavor = "multi_thread")]
async fn guessing_tokens_is_limited_and_costs_the_owner_of_one_nothing() {
    let world = World::with(|settings| {
        settings.api_rate = 5;
        settings.api_token = Some(argon::config::Secret::from("a-good-long-token"));
    })
    .await;
    let mut refused = 0;
    for i in 0..40 {
        let status = send(world.addr(), "GET", "/api/v1/queue", Some(&format!("guess-{i}")), None).await.status;
        assert!([401, 429].contains(&status));
        refused += u32::from(status == 429);
    }
    assert!(refused > 10, "{refused}");
    assert_eq!(send(world.addr(), "GET", "/api/v1/queue", Some("a-good-long-token"), None).await.status, 200);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_head_or_a_body_that_is_too_large_is_refused() {
    let world = World::new().await;
    let head = format!("GET /health HTTP/1.1\r\nHost: localhost\r\nX: {}\r\n\r\n", "x".repeat(17 << 10));
    assert_eq!(raw(world.addr(), head.as_bytes()).await.unwrap().status, 431);
    let fits = format!("GET /health HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nX: {}\r\n\r\n", "x".repeat(15 << 10));
    assert_eq!(raw(world.addr(), fits.as_bytes()).await.unwrap().status, 200);
    let announced = "POST /api/v1/jobs HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: 1048577\r\n\r\n";
    let reply = raw(world.addr(), announced.as_bytes()).await.unwrap();
    assert_eq!((reply.status, reply.code().as_str()), (413, "payload_too_large"));
    schema::check("POST", "/api/v1/jobs", &reply);
    let mut chunked =
        b"POST /api/v1/jobs HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n".to_vec();
    for _ in 0..20 {
        chunked.extend_from_slice(b"10000\r\n");
        chunked.extend_from_slice(&[b' '; 0x10000]);
        chunked.extend_from_slice(b"\r\n");
    }
    // The server may close before everything is sent, and then the answer may be lost on the way.
    if let Some(reply) = raw(world.addr(), &chunked).await {
        assert_eq!(reply.status, 413);
    }
    let fine = json!({ "kind": "noop" }).to_string();
    let body = format!("{fine}{}", " ".repeat((1 << 20) - fine.len()));
    let most = format!(
        "POST /api/v1/jobs HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n{body}",
        body.len()
    );
    assert_eq!(raw(world.addr(), most.as_bytes()).await.unwrap().status, 201);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_slow_head_and_a_slow_body_meet_their_deadlines() {
    let world = World::new().await;
    let timed = async |bytes: &'static str| {
        let (began, stream) = (clock::now(), TcpStream::connect(world.addr()).await.unwrap());
        let read = exchange(stream, bytes.as_bytes(), Duration::from_secs(30)).await;
        (began.elapsed(), wire::Reply::parse(&read).map(|r| r.status))
    };
    let body = "POST /api/v1/jobs HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: 100\r\n\r\n{";
    let (silent, head, body) = tokio::join!(timed(""), timed("GET /health HTTP/1.1\r\nHost: lo"), timed(body));
    for (time, status) in [silent, head] {
        assert!((4..8).contains(&time.as_secs()), "{time:?}");
        assert!(status.is_none_or(|s| s == 408), "{status:?}");
    }
    assert!((9..13).contains(&body.0.as_secs()), "{body:?}");
    assert_eq!(body.1, Some(408));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_connection_is_used_again_and_closed_when_it_rests() {
    let world = World::new().await;
    let mut stream = TcpStream::connect(world.addr()).await.unwrap();
    let mut buffer = vec![0; 4096];
    for _ in 0..3 {
        stream.write_all(b"GET /ready HTTP/1.1\r\nHost: localhost\r\n\r\n").await.unwrap();
        let n = stream.read(&mut buffer).await.unwrap();
        assert!(buffer[..n].starts_with(b"HTTP/1.1 200"));
    }
    let began = clock::now();
    assert_eq!(tokio::time::timeout(Duration::from_secs(20), stream.read(&mut buffer)).await.unwrap().unwrap_or(0), 0);
    assert!((4..8).contains(&began.elapsed().as_secs()), "{:?}", began.elapsed());
}

#[tokio::test(flavor = "multi_thread")]
async fn at_the_cap_the_oldest_silent_connection_goes_and_a_stream_of_events_stays() {
    let world = World::with(|settings| settings.max_connections_per_client = 8).await;
    let mut stream = TcpStream::connect(world.addr()).await.unwrap();
    stream.write_all(&wire::request("GET", "/api/v1/events", None, None)).await.unwrap();
    let mut buffer = vec![0; 4096];
    assert!(stream.read(&mut buffer).await.unwrap() > 0);
    let mut silent = Vec::new();
    for _ in 0..20 {
        silent.push(TcpStream::connect(world.addr()).await.unwrap());
        assert_eq!(world.get("/health").await.status, 200, "with {} silent ones", silent.len());
    }
    assert_eq!(tokio::time::timeout(Duration::from_secs(2), silent[0].read(&mut buffer)).await.unwrap().unwrap_or(0), 0, "dropped");
    world.post("/api/v1/queue/pause", &json!({ "kind": "noop" })).await;
    let more = tokio::time::timeout(Duration::from_secs(5), stream.read(&mut buffer)).await.unwrap().unwrap();
    assert!(more > 0, "whoever is being answered stays");
    let text = world.get("/metrics").await.text();
    assert!(text.contains("argon_http_connections_refused_total{why=\"dropped\"}"), "{text}");
}

#[tokio::test(flavor = "multi_thread")]
async fn streams_of_events_are_bounded() {
    let world = World::new().await;
    let mut streams = Vec::new();
    for _ in 0..32 {
        let mut stream = TcpStream::connect(world.addr()).await.unwrap();
        stream.write_all(&wire::request("GET", "/api/v1/events", None, None)).await.unwrap();
        let mut buffer = vec![0; 1024];
        assert!(stream.read(&mut buffer).await.unwrap() > 0);
        streams.push(stream);
    }
    let reply = world.get("/api/v1/events").await;
    assert_eq!((reply.status, reply.code().as_str()), (503, "busy"));
    streams.truncate(31);
    crate::world::until("a place", Duration::from_secs(20), async || {
        let stream = TcpStream::connect(world.addr()).await.unwrap();
        let read = exchange(stream, &wire::request("GET", "/api/v1/events", None, None), Duration::from_millis(500)).await;
        read.starts_with(b"HTTP/1.1 200")
    })
    .await;
}
