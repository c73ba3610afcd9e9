//! The control socket: the interface for the command line of the same user, on threads of its own.
//!
//! Owns: the socket file, serving it, answering when the async runtime does not. Does not own: the routes (`routes`), the client (`client`).
//!
//! Who can open the file (mode 0600) could as well read the engine's memory, so there is no token. `/health` and `/ready` are answered by the
//! receiving thread from memory, whatever the runtime does; everything else goes to the router on the runtime through a few threads, and when
//! the runtime is stalled the answer says so after a moment.
//!
//! SUBTLE: tiny_http serves this socket and never the network. It has no time limits, starts a thread for every connection (here: of one
//! user), and when a request is dropped whose body was not read it allocates the length that was announced, which aborts the process when
//! that is absurd. It reads bodies of up to [`BODY_BYTES`] itself before it hands a request over; nothing larger is ever taken, and such a
//! request is answered and then forgotten instead of dropped ([`forget`]): its connection and thread stay until the process ends, so after
//! [`FORGOTTEN`] of them the socket is closed.

use std::io::Read;
use std::os::unix::fs::{DirBuilderExt, FileTypeExt, MetadataExt, PermissionsExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::http::header::{CONTENT_TYPE, HOST, HeaderName};
use axum::http::{HeaderMap, Request, StatusCode};
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use http_body_util::BodyExt;
use tower_service::Service;

use super::api::Api;
use super::auth::Caller;
use super::call;
use super::health::Condition;
use super::problem::Problem;
use super::routes::{self, CALL_TIME};
use crate::fault::{Fault, Result};
use crate::runtime::random;

/// Bytes of a body: what tiny_http reads by itself. The requests of the command line are a tenth of it.
const BODY_BYTES: usize = 1_024;
/// Threads that wait for the runtime, and requests that wait for a thread.
const THREADS: usize = 4;
const WAITING: usize = 16;
/// Requests with a body that was not taken, before the socket is closed.
const FORGOTTEN: u32 = 16;
/// Delay of the runtime after which nobody waits for it any longer, and how often that is looked at.
const STALLED: Duration = Duration::from_secs(2);
const LOOK: Duration = Duration::from_millis(250);
/// A path of a Unix socket has at most so many bytes (Linux: 108 with the final zero).
const MOST_PATH: usize = 107;

/// Where the socket of the engine with this HTTP port is, if `ARGON_CONTROL_SOCKET` does not say it.
pub fn default_path(port: u16) -> PathBuf {
    runtime_dir().join(format!("control-{port}.sock"))
}

/// The user's own directory for such things.
pub fn runtime_dir() -> PathBuf {
    let uid = rustix::process::getuid().as_raw();
    let given = std::env::var_os("XDG_RUNTIME_DIR").map(PathBuf::from).filter(|dir| dir.is_absolute() && dir.is_dir());
    let usual = || Some(PathBuf::from(format!("/run/user/{uid}"))).filter(|dir| dir.is_dir());
    match given.or_else(usual) {
        Some(dir) => dir.join("argon"),
        None => std::env::temp_dir().join(format!("argon-{uid}")),
    }
}

/// A served socket. Dropping it closes and removes it.
#[derive(Debug)]
pub struct ControlSocket {
    path: PathBuf,
    stop: Arc<AtomicBool>,
    receiver: Option<std::thread::JoinHandle<()>>,
    /// Held while the path is ours.
    _lock: std::fs::File,
}

impl ControlSocket {
    /// Binds `path` and serves it. `own_dir`: the directory is ours to make. To be called on the runtime that the router runs on.
    pub fn start(api: &Arc<Api>, path: &Path, own_dir: bool) -> Result<Self> {
        if own_dir && let Some(dir) = path.parent() {
            make_private(dir)?;
        }
        let lock = lock(path)?;
        let listener = bind(path)?;
        let stop = Arc::new(AtomicBool::new(false));
        let receiver = Receiver {
            api: api.clone(),
            router: routes::router(api, routes::table()),
            runtime: tokio::runtime::Handle::current(),
            stop: stop.clone(),
            path: path.to_owned(),
        };
        let failed = |e: &dyn std::fmt::Display| Fault::transient(format!("control socket {}: {e}", path.display()));
        let server = tiny_http::Server::from_listener(listener, None).map_err(|e| failed(&e))?;
        let thread =
            std::thread::Builder::new().name("argon-control".into()).spawn(move || receiver.run(&server)).map_err(|e| failed(&e))?;
        Ok(Self { path: path.to_owned(), stop, receiver: Some(thread), _lock: lock })
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }
}

impl Drop for ControlSocket {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        // The receiver looks at the flag; tiny_http's accepting thread sees that it shall end when somebody connects.
        if let Some(receiver) = self.receiver.take() {
            let _ = receiver.join();
        }
        let _ = UnixStream::connect(&self.path);
        let _ = std::fs::remove_file(&self.path);
    }
}

/// Makes the directory for sockets, or sees that it is one that nobody else can write to: under /tmp somebody else may have been first.
fn make_private(dir: &Path) -> Result<()> {
    let bad = |why: String| Fault::config(format!("the directory {} of the control socket {why}; set ARGON_CONTROL_SOCKET", dir.display()));
    match std::fs::DirBuilder::new().mode(0o700).create(dir) {
        Ok(()) => return Ok(()),
        Err(e) if e.kind() == std::io::ErrorKind::AlreadyExists => {}
        Err(e) => return Err(bad(format!("cannot be made: {e}"))),
    }
    let found = std::fs::symlink_metadata(dir).map_err(|e| bad(format!("cannot be read: {e}")))?;
    if !found.is_dir() || found.uid() != rustix::process::getuid().as_raw() || found.mode() & 0o077 != 0 {
        return Err(bad("is not a directory that is this user's alone (mode 0700)".into()));
    }
    Ok(())
}

/// Whoever holds the lock beside the socket owns the path. A file that is left behind locks nothing once its process has died.
fn lock(path: &Path) -> Result<std::fs::File> {
    let bad = |e: &dyn std::fmt::Display| Fault::config(format!("control socket {}: {e}; set ARGON_CONTROL_SOCKET", path.display()));
    if path.as_os_str().len() > MOST_PATH {
        return Err(bad(&format!("the path has more than {MOST_PATH} bytes")));
    }
    let mut beside = path.as_os_str().to_owned();
    beside.push(".lock");
    let mut options = std::fs::OpenOptions::new();
    std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
    let file = options.write(true).create(true).truncate(false).open(&beside).map_err(|e| bad(&e))?;
    match rustix::fs::flock(&file, rustix::fs::FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => Ok(file),
        Err(rustix::io::Errno::WOULDBLOCK) => Err(bad(&"another engine of this machine has it")),
        Err(e) => Err(bad(&e)),
    }
}

/// Binds under a fresh name in a directory that nobody else can enter, then moves the socket to its place: at no moment could anybody else
/// open it, whatever the umask is, and what was there is replaced at once. It is a socket that nobody serves, or the start is refused.
fn bind(path: &Path) -> Result<UnixListener> {
    let bad = |e: &dyn std::fmt::Display| Fault::config(format!("control socket {}: {e}; set ARGON_CONTROL_SOCKET", path.display()));
    match std::fs::symlink_metadata(path) {
        Ok(found) if !found.file_type().is_socket() => return Err(bad(&"there is something else, which is not a socket")),
        Ok(_) if UnixStream::connect(path).is_ok() => return Err(bad(&"another program serves it")),
        _ => {}
    }
    let id = random::id();
    let short = &id[..8];
    let dir = path.parent().filter(|dir| !dir.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let fresh = dir.join(format!(".a{short}"));
    std::fs::DirBuilder::new().mode(0o700).create(&fresh).map_err(|e| bad(&e))?;
    let inside = fresh.join("s");
    let bound = (|| {
        let listener = UnixListener::bind(&inside)?;
        std::fs::set_permissions(&inside, std::fs::Permissions::from_mode(0o600))?;
        std::fs::rename(&inside, path)?;
        Ok::<_, std::io::Error>(listener)
    })();
    let _ = std::fs::remove_file(&inside);
    let _ = std::fs::remove_dir(&fresh);
    bound.map_err(|e| bad(&e))
}

struct Receiver {
    api: Arc<Api>,
    router: Router,
    runtime: tokio::runtime::Handle,
    stop: Arc<AtomicBool>,
    path: PathBuf,
}

impl Receiver {
    fn run(self, server: &tiny_http::Server) {
        let (send, inbox) = crossbeam_channel::bounded::<tiny_http::Request>(WAITING);
        let threads: Vec<_> = (0..THREADS).filter_map(|i| self.asker(i, inbox.clone())).collect();
        let mut forgotten = 0;
        while !self.stop.load(Ordering::Relaxed) {
            let request = match server.recv_timeout(LOOK) {
                Ok(Some(request)) => request,
                Ok(None) => continue,
                Err(error) => {
                    tracing::error!(%error, socket = %self.path.display(), "the control socket is closed: it could not be read");
                    break;
                }
            };
            if let Err(problem) = check_body(&request) {
                forgotten += 1;
                forget(request, problem);
                if forgotten == FORGOTTEN {
                    tracing::error!(socket = %self.path.display(), "the control socket is closed: too many requests with a body that it does not take");
                    break;
                }
                continue;
            }
            match self.at_once(&request) {
                Some(response) => respond(request, response),
                None => {
                    if let Err(refused) = send.try_send(request) {
                        respond(refused.into_inner(), Problem::busy("as many requests wait as this socket takes").into_response());
                    }
                }
            }
        }
        drop(send);
        for thread in threads {
            let _ = thread.join();
        }
    }

    /// What needs nobody else.
    fn at_once(&self, request: &tiny_http::Request) -> Option<Response> {
        if *request.method() != tiny_http::Method::Get {
            return None;
        }
        let status = |well: bool| if well { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
        match request.url().split('?').next()? {
            "/health" => {
                let health = self.api.health();
                Some(call::json(status(health.status != Condition::Unhealthy), &health))
            }
            "/ready" => {
                let ready = self.api.ready();
                Some(call::json(status(ready.ready), &ready))
            }
            _ => None,
        }
    }

    fn asker(&self, i: usize, inbox: crossbeam_channel::Receiver<tiny_http::Request>) -> Option<std::thread::JoinHandle<()>> {
        let (api, router, runtime) = (self.api.clone(), self.router.clone(), self.runtime.clone());
        let ask = move || {
            for mut request in inbox {
                let response =
                    translate(&mut request).map_or_else(IntoResponse::into_response, |translated| ask(&api, &router, &runtime, translated));
                respond(request, response);
            }
        };
        std::thread::Builder::new().name(format!("argon-control-{i}")).spawn(ask).ok()
    }
}

/// The router's answer, from the runtime; or that it is stalled.
fn ask(api: &Api, router: &Router, runtime: &tokio::runtime::Handle, request: Request<Body>) -> Response {
    let (send, answer) = crossbeam_channel::bounded(1);
    let mut router = router.clone();
    runtime.spawn(async move {
        let response = match router.call(request).await {
            Ok(response) => response,
            Err(never) => match never {},
        };
        let _ = send.send(whole(response).await); // of capacity 1 and sent to once: this does not block
    });
    let began = crate::runtime::clock::now();
    loop {
        match answer.recv_timeout(LOOK) {
            Ok(response) => return response,
            Err(crossbeam_channel::RecvTimeoutError::Disconnected) => return Problem::busy("the engine is stopping").into_response(),
            Err(crossbeam_channel::RecvTimeoutError::Timeout) => {}
        }
        let lag = api.pulse.lag();
        if lag > STALLED {
            return Problem::busy(format!("the async runtime has not run for {:.1} s; /health still answers here", lag.as_secs_f64()))
                .into_response();
        }
        if began.elapsed() > CALL_TIME + STALLED {
            return Problem::new(StatusCode::GATEWAY_TIMEOUT, "timeout", "not done in time; it may still happen").into_response();
        }
    }
}

/// With its body read, so that a thread can write it. A stream has no end that could be waited for.
async fn whole(response: Response) -> Response {
    let (parts, body) = response.into_parts();
    if parts.headers.get(CONTENT_TYPE).is_some_and(|t| t.as_bytes() == b"text/event-stream") {
        return Problem::new(StatusCode::NOT_IMPLEMENTED, "not_implemented", "events are streamed on the network listener only")
            .into_response();
    }
    match body.collect().await {
        Ok(body) => Response::from_parts(parts, Body::from(body.to_bytes())),
        Err(e) => Problem::new(StatusCode::INTERNAL_SERVER_ERROR, "unknown", e.to_string()).into_response(),
    }
}

/// A request whose body tiny_http has not read itself is not taken, see the module's documentation.
fn check_body(request: &tiny_http::Request) -> std::result::Result<(), Problem> {
    let named = |name: &'static str| request.headers().iter().filter(move |h| h.field.equiv(name));
    if named("Transfer-Encoding").next().is_some() || named("Expect").next().is_some() || named("Upgrade").next().is_some() {
        return Err(Problem::new(
            StatusCode::LENGTH_REQUIRED,
            "length_required",
            "send a Content-Length, and nothing else that frames a body",
        ));
    }
    if named("Connection").any(|h| h.value.as_str().to_ascii_lowercase().contains("upgrade")) {
        return Err(Problem::bad_request("there is nothing to upgrade to"));
    }
    let mut lengths = named("Content-Length");
    let fits = lengths.next().is_none_or(|h| h.value.as_str().parse::<usize>().is_ok_and(|n| n <= BODY_BYTES));
    if !fits || lengths.next().is_some() {
        let said = format!("a body may have {BODY_BYTES} bytes here, announced once");
        return Err(Problem::new(StatusCode::PAYLOAD_TOO_LARGE, "payload_too_large", said));
    }
    Ok(())
}

/// Answers, and keeps tiny_http from dropping the reader of the body.
fn forget(request: tiny_http::Request, problem: Problem) {
    let (status, code, message) = (problem.status.as_u16(), problem.code, problem.message);
    let text = serde_json::json!({ "error": { "code": code, "message": message } }).to_string();
    let response = tiny_http::Response::from_string(text).with_status_code(status);
    std::mem::forget(request.upgrade("close", response));
}

/// A request as the router takes it.
fn translate(request: &mut tiny_http::Request) -> std::result::Result<Request<Body>, Problem> {
    let mut headers = HeaderMap::new();
    for header in request.headers() {
        let name = HeaderName::from_bytes(header.field.as_str().as_str().as_bytes());
        if let (Ok(name), Ok(value)) = (name, header.value.as_str().parse())
            && name != HOST
        {
            headers.append(name, value);
        }
    }
    let mut body = Vec::new();
    let read = request.as_reader().take(BODY_BYTES as u64).read_to_end(&mut body);
    read.map_err(|e| Problem::bad_request(format!("the body broke off: {e}")))?;
    let built = Request::builder().method(request.method().as_str()).uri(request.url()).body(Body::from(Bytes::from(body)));
    let mut built = built.map_err(|e| Problem::bad_request(format!("{e}")))?;
    if !built.uri().path().starts_with('/') {
        return Err(Problem::bad_request("the target of a request is a path that begins with /"));
    }
    *built.headers_mut() = headers;
    built.extensions_mut().insert(Caller::local());
    Ok(built)
}

fn respond(request: tiny_http::Request, response: Response) {
    let (parts, body) = response.into_parts();
    // Every body that gets here is whole: reading it waits for nothing.
    let body = futures_util::FutureExt::now_or_never(body.collect()).and_then(std::result::Result::ok).map(|b| b.to_bytes());
    let body = body.unwrap_or_default();
    let mut out = tiny_http::Response::from_data(body.as_ref()).with_status_code(parts.status.as_u16());
    for (name, value) in &parts.headers {
        if let Ok(header) = tiny_http::Header::from_bytes(name.as_str(), value.as_bytes()) {
            out.add_header(header);
        }
    }
    if let Err(error) = request.respond(out) {
        tracing::debug!(%error, "an answer on the control socket was not taken");
    }
}
