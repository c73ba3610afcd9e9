//! Traces of jobs at a collector, of the real engine: what it sends over OTLP, and that it goes on without one. Built with the feature `otel`.
#![cfg(feature = "otel")]
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)] // helpers of tests are tests

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use argon::devkit::engine::run_to_end;
use argon::devkit::{ArgonProcess, Mongod, MongodOptions};
use bson::{Document, doc};
use parking_lot::Mutex;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

const LIMIT: Duration = Duration::from_secs(120);

fn binary() -> &'static Path {
    Path::new(env!("CARGO_BIN_EXE_argon"))
}

/// Takes whatever is posted; the bodies, after the path.
#[derive(Clone, Default)]
struct Collector(Arc<Mutex<Vec<u8>>>);

impl Collector {
    async fn start() -> (Self, String) {
        let (collector, listener) = (Self::default(), TcpListener::bind("127.0.0.1:0").await.unwrap());
        let endpoint = format!("http://{}", listener.local_addr().unwrap());
        let taking = collector.clone();
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                tokio::spawn(taking.clone().serve(stream));
            }
        });
        (collector, endpoint)
    }

    async fn serve(self, mut stream: TcpStream) {
        let mut request = Vec::new();
        while stream.read_buf(&mut request).await.is_ok_and(|n| n > 0) {
            let Some(head) = request.windows(4).position(|w| w == b"\r\n\r\n") else { continue };
            let text = String::from_utf8_lossy(&request[..head]).to_ascii_lowercase();
            let length: usize = text.split_once("content-length: ").unwrap().1.lines().next().unwrap().parse().unwrap();
            if request.len() < head + 4 + length {
                continue;
            }
            assert!(text.starts_with("post /v1/traces "), "{text}");
            self.0.lock().extend(request.drain(..head + 4 + length));
            stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Type: application/x-protobuf\r\nContent-Length: 0\r\n\r\n").await.unwrap();
        }
    }

    /// How often a text is in what came, which is protocol buffers with plain strings.
    fn count(&self, text: &str) -> usize {
        self.0.lock().windows(text.len()).filter(|w| *w == text.as_bytes()).count()
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn each_job_is_a_trace_from_its_claim_to_its_commit() {
    let mongod = Mongod::start(MongodOptions::default()).await.unwrap();
    let dir = tempfile::tempdir().unwrap();
    let (collector, endpoint) = Collector::start().await;
    let env = |endpoint: &str| {
        let own = [
            ("ARGON_MONGODB_URI", mongod.uri()),
            ("ARGON_STORE_URL", format!("file://{}/store", dir.path().display())),
            ("ARGON_CONTROL_SOCKET", "off".into()),
            ("ARGON_HTTP_ADDR", "127.0.0.1:0".into()),
            ("WORKER_BATCH_TIMEOUT", "100ms".into()),
            ("OTEL_EXPORTER_OTLP_ENDPOINT", endpoint.to_owned()),
            ("OTEL_EXPORTER_OTLP_HEADERS", "authorization=Bearer otelS3CRET".into()),
            ("ARGON_LOG", "trace".into()),
        ];
        own.map(|(name, value)| (name.to_owned(), value)).to_vec()
    };
    let ok = async |args: &[&str]| {
        let output = run_to_end(binary(), args, &env(&endpoint), LIMIT).await.unwrap();
        assert_eq!(output.code, 0, "{output:?}");
        output.stdout
    };
    ok(&["capture", "start", "shop/main", "--source-db", "shop"]).await;
    let mut engine = ArgonProcess::start(binary(), ["run"], &env(&endpoint)).unwrap();
    engine.wait_line("capture started here", LIMIT).await.unwrap();
    let client = mongod.client().await.unwrap();
    client.database("shop").collection::<Document>("a").insert_many((0..100).map(|i| doc! {"_id": i})).await.unwrap();
    ok(&["jobs", "submit", "--count", "2", "--failure-rate", "0"]).await;
    let jobs = client.database("argon").collection::<Document>("jobs");
    let done_of = async |kind: &str| jobs.count_documents(doc! {"kind": kind, "state": "done"}).await.unwrap();
    // More than so many, and none that is not.
    let done = async |engine: &ArgonProcess, kind: &str, before: u64| {
        let began = argon::runtime::clock::now();
        while done_of(kind).await <= before || jobs.count_documents(doc! {"kind": kind, "state": {"$ne": "done"}}).await.unwrap() > 0 {
            assert!(began.elapsed() < LIMIT, "{}", engine.log_tail(3_000));
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    done(&engine, "sync", 0).await;
    done(&engine, "noop", 0).await;
    assert_eq!(engine.terminate(LIMIT).await.unwrap().code, 0, "{}", engine.log_tail(3_000));
    assert!(!engine.stderr().contains("traces were not sent"), "{}", engine.log_tail(3_000));
    assert!(collector.count("Bearer otelS3CRET") > 0, "the collector is told");
    assert_eq!(engine.stderr().lines().find(|line| line.contains("S3CRET")), None, "and the log is not");
    let mut syncs = 0;
    for kind in ["sync", "noop"] {
        let mut cursor = jobs.find(doc! {"kind": kind}).await.unwrap();
        while cursor.advance().await.unwrap() {
            let job: Document = cursor.deserialize_current().unwrap();
            assert_eq!(collector.count(job.get_str("_id").unwrap()), 1, "a trace of {job}");
            syncs += usize::from(kind == "sync");
        }
    }
    assert!(syncs > 0);
    for step in ["payload", "encode", "upload", "commit"] {
        assert_eq!(collector.count(step), syncs, "{step}");
    }
    assert_eq!(collector.count("succeeded"), syncs + 2);
    assert!(collector.count("shop") == 0, "the log is not in it");

    // A collector that is away holds up nobody, nor one that takes everything and never answers.
    let silent = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    for (n, endpoint) in ["http://127.0.0.1:1".to_owned(), format!("http://{}", silent.local_addr().unwrap())].into_iter().enumerate() {
        let mut engine = ArgonProcess::start(binary(), ["run"], &env(&endpoint)).unwrap();
        engine.wait_line("capture started here", LIMIT).await.unwrap();
        let before = done_of("sync").await;
        client.database("shop").collection::<Document>("a").insert_one(doc! {"_id": format!("x{n}")}).await.unwrap();
        done(&engine, "sync", before).await;
        assert_eq!(engine.terminate(LIMIT).await.unwrap().code, 0, "{}", engine.log_tail(3_000));
        assert!(engine.stderr().contains("the last traces were not sent"), "{endpoint}: {}", engine.log_tail(3_000));
    }
}
