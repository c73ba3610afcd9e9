//! The control socket: whose it is, what it answers, and that it does so when the runtime does not.

use std::io::{Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use argon::runtime::clock;

use argon::fault::Kind;
use argon::http::client::{Client, Target};
use argon::http::control::ControlSocket;
use argon::http::{self, Api, Condition, JobChange, JobsPage, NewJobRequest, ScaleAnswer, ScaleRequest, Submitted, TwinEngine};
use argon::ledger::{MemoryLedger, SharedLedger};
use argon::store::{MemoryStore, Store};
use serde_json::json;
use tokio_util::sync::CancellationToken;

use crate::served::Served;
use crate::wire::{self, Reply};
use crate::world::{World, settings};

fn client(path: &Path) -> Client {
    Client::new(&Target::Socket(path.to_owned())).unwrap()
}

/// Bytes on the socket, from a thread.
fn raw(path: &Path, bytes: &[u8]) -> Option<Reply> {
    let mut stream = UnixStream::connect(path).ok()?;
    stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
    let _ = stream.write_all(bytes); // it may have been refused before
    let mut read = Vec::new();
    let _ = stream.read_to_end(&mut read);
    Reply::parse(&read)
}

#[tokio::test(flavor = "multi_thread")]
async fn it_is_the_owners_alone_and_takes_no_token() {
    let world = World::with(|settings| settings.api_token = Some(argon::config::Secret::from("0123456789abcdef"))).await;
    let path = world.listeners.control().unwrap().to_owned();
    assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o7777, 0o600);
    let client = client(&path);
    assert_eq!(client.health().await.unwrap().status, Condition::Ok);
    let scaled: ScaleAnswer =
        client.post("/api/v1/workers/scale", &ScaleRequest { target_workers: Some(3), ..ScaleRequest::default() }).await.unwrap();
    assert_eq!(scaled.target_workers, 3);
    let new: Submitted = client.post("/api/v1/jobs", &NewJobRequest { count: Some(3), ..NewJobRequest::default() }).await.unwrap();
    assert_eq!((new.created, new.ids.len()), (3, 3));
    let jobs: JobsPage = client.get("/api/v1/jobs?kind=noop&limit=2").await.unwrap();
    assert_eq!((jobs.jobs.len(), jobs.next.as_ref()), (2, Some(&jobs.jobs[1].id)));
    let gone: JobChange = client.delete(&format!("/api/v1/jobs/{}?confirm=discard", world.dead)).await.unwrap();
    assert_eq!(gone.outcome, http::JobOutcome::Discarded, "its caller is admin");
    let error = client.get::<JobsPage>("/api/v1/jobs?limit=0").await.unwrap_err();
    assert!(error.kind == Kind::Config && error.what.contains("limit"), "{error}");
    assert_eq!(client.get::<JobsPage>("/api/v1/jobs/none").await.unwrap_err().kind, Kind::Missing);
    let events = client.get::<serde_json::Value>("/api/v1/events").await.unwrap_err();
    assert!(events.what.contains("network"), "{events}");
    world.listeners.stop().await;
    assert!(!path.exists(), "it is removed");
    let error = client.health().await.unwrap_err();
    assert!(error.what.contains("argon run"), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_socket_that_is_left_behind_is_replaced_and_anything_else_is_not() {
    let world = World::new().await;
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("a.sock");
    drop(UnixListener::bind(&path).unwrap()); // what kill -9 leaves
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o777)).unwrap();
    let first = ControlSocket::start(&world.api, &path, false).unwrap();
    assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
    let error = ControlSocket::start(&world.api, &path, false).unwrap_err();
    assert!(error.kind == Kind::Config && error.what.contains("another engine"), "{error}");
    assert!(client(&path).health().await.is_ok(), "the first one goes on");
    tokio::task::spawn_blocking(move || drop(first)).await.unwrap();
    assert!(!path.exists());
    assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1, "only the lock is left");

    std::fs::write(&path, "something of the user's").unwrap();
    let error = ControlSocket::start(&world.api, &path, false).unwrap_err();
    assert!(error.what.contains("not a socket") && path.exists(), "{error}");
    std::fs::remove_file(&path).unwrap();
    let foreign = UnixListener::bind(&path).unwrap();
    let error = ControlSocket::start(&world.api, &path, false).unwrap_err();
    assert!(error.what.contains("another program serves it"), "{error}");
    drop(foreign);

    let long = dir.path().join("x".repeat(120));
    assert!(ControlSocket::start(&world.api, &long, false).unwrap_err().what.contains("99 bytes"));
    let shared = dir.path().join("shared");
    std::fs::create_dir(&shared).unwrap();
    std::fs::set_permissions(&shared, std::fs::Permissions::from_mode(0o777)).unwrap();
    let error = ControlSocket::start(&world.api, &shared.join("a.sock"), true).unwrap_err();
    assert!(error.what.contains("this user's alone"), "somebody else could put a socket of his own there: {error}");
    let own = dir.path().join("own").join("a.sock");
    let socket = ControlSocket::start(&world.api, &own, true).unwrap();
    assert_eq!(std::fs::metadata(own.parent().unwrap()).unwrap().permissions().mode() & 0o777, 0o700);
    tokio::task::spawn_blocking(move || drop(socket)).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn it_ends_although_somebody_has_removed_its_file() {
    let world = World::new().await;
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("a.sock");
    let socket = ControlSocket::start(&world.api, &path, false).unwrap();
    std::fs::remove_dir_all(dir.path()).unwrap();
    let ended = tokio::task::spawn_blocking(move || drop(socket));
    tokio::time::timeout(Duration::from_secs(20), ended).await.expect("it ends").unwrap();
}

/// Every thread of the runtime is blocked, as by a bug: the network is silent, the socket says so.
#[test]
fn it_answers_while_the_runtime_is_blocked() {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    let dir = tempfile::tempdir().unwrap();
    let ledger: SharedLedger = Arc::new(MemoryLedger::live());
    let store: Store = Arc::new(MemoryStore::new());
    let (api, listeners) = runtime.block_on(async {
        let api = Api::start(ledger, store, Arc::new(TwinEngine::new("engine-1")), CancellationToken::new());
        let listeners = http::start(&api, &settings(&dir)).await.unwrap();
        (api, listeners)
    });
    let path = listeners.control().unwrap().to_owned();
    let ask = |target: &str| raw(&path, &wire::request("GET", target, None, None)).unwrap();
    assert_eq!(ask("/health").json()["status"], "ok");
    assert_eq!(ask("/api/v1/queue").status, 200);

    for _ in 0..2 {
        runtime.spawn(async { std::thread::sleep(Duration::from_secs(10)) });
    }
    std::thread::sleep(Duration::from_secs(6));
    let began = clock::now();
    let health = ask("/health");
    assert!(began.elapsed() < Duration::from_secs(1), "{:?}", began.elapsed());
    assert_eq!((health.status, &health.json()["status"]), (503, &json!("unhealthy")));
    let reason = health.json()["checks"]["runtime"]["reason"].as_str().unwrap().to_owned();
    assert!(reason.contains("tasks have not run for"), "{reason}");
    let stats = ask("/api/v1/workers/stats");
    assert_eq!((stats.status, stats.code().as_str()), (503, "busy"));
    assert!(stats.text().contains("runtime"), "{}", stats.text());

    std::thread::sleep(Duration::from_secs(6));
    assert_eq!(ask("/health").json()["status"], "ok", "it recovers with the runtime");
    assert_eq!(ask("/api/v1/queue").status, 200);
    runtime.block_on(listeners.stop());
    drop(api);
}

/// What tiny_http would not survive or would wait for, on a process of its own.
#[test]
fn bad_bytes_and_silent_clients_leave_it_answering() {
    let mut served = Served::start();
    let path = std::path::PathBuf::from(&served.socket);
    let silent: Vec<_> = (0..20).map(|_| UnixStream::connect(&path).unwrap()).collect();
    let mut half = UnixStream::connect(&path).unwrap();
    half.write_all(b"POST /api/v1/jobs HTTP/1.1\r\nContent-Type: application/json\r\nContent-Length: 800\r\n\r\n{").unwrap();
    let json = "Content-Type: application/json\r\n";
    for bytes in [
        format!("POST /api/v1/jobs HTTP/1.1\r\n{json}Content-Length: 18446744073709551615\r\n\r\n{{}}"),
        format!("POST /api/v1/jobs HTTP/1.1\r\n{json}Content-Length: 4611686018427387904\r\n\r\n{{}}"),
        format!("POST /api/v1/jobs HTTP/1.1\r\n{json}Content-Length: 1048577\r\n\r\n{{}}"),
        format!("POST /api/v1/jobs HTTP/1.1\r\n{json}Content-Length: 2\r\nContent-Length: 99999999999999\r\n\r\n{{}}"),
        format!("POST /api/v1/jobs HTTP/1.1\r\n{json}Transfer-Encoding: chunked\r\n\r\nffffffffffffffff\r\n{{}}"),
        format!("POST /api/v1/jobs HTTP/1.1\r\n{json}Expect: 100-continue\r\nContent-Length: 4611686018427387904\r\n\r\n"),
        "GET /health HTTP/1.1\r\nConnection: upgrade\r\nContent-Length: 4611686018427387904\r\n\r\n".to_owned(),
    ] {
        let stream = UnixStream::connect(&path).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
        let mut buffer = [0; 1024];
        (&stream).write_all(bytes.as_bytes()).unwrap();
        let n = (&stream).read(&mut buffer).unwrap();
        let status = String::from_utf8_lossy(&buffer[..n]).split(' ').nth(1).map(str::to_owned);
        assert!(status.as_deref().is_some_and(|s| s.starts_with('4')), "{bytes:?}: {}", String::from_utf8_lossy(&buffer[..n]));
        drop(stream);
        assert!(served.is_alive(), "{bytes:?}");
    }
    for bytes in
        ["\0\0\0\r\n\r\n", "GET\r\n\r\n", "GET health HTTP/1.1\r\n\r\n", "G\u{e9}T / HTTP/1.1\r\n\r\n", "GET /%00%ff HTTP/1.1\r\n\r\n"]
    {
        raw(&path, format!("{}Connection: close\r\n\r\n", bytes.trim_end_matches("\r\n").to_owned() + "\r\n").as_bytes());
    }
    let began = clock::now();
    let health = raw(&path, &wire::request("GET", "/health", None, None)).unwrap();
    let jobs = raw(&path, &wire::request("GET", "/api/v1/jobs", None, None)).unwrap();
    assert_eq!([health.status, jobs.status], [200, 200]);
    assert!(began.elapsed() < Duration::from_secs(1), "{:?}", began.elapsed());
    let mut buffer = [0; 1024];
    let n = half.read(&mut buffer).unwrap();
    assert!(buffer[..n].starts_with(b"HTTP/1.1 408"), "{}", String::from_utf8_lossy(&buffer[..n]));
    drop(silent);

    // More at once than it takes: told so, and served again when there is room.
    let crowd: Vec<_> = (0..40).map(|_| UnixStream::connect(&path).unwrap()).collect();
    let refused = raw(&path, &wire::request("GET", "/health", None, None)).unwrap();
    assert_eq!((refused.status, refused.code().as_str()), (503, "busy"));
    drop(crowd);
    std::thread::sleep(Duration::from_millis(500));
    assert_eq!(raw(&path, &wire::request("GET", "/health", None, None)).unwrap().status, 200);
    assert!(served.is_alive());
}
