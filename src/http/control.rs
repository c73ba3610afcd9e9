//! The control socket: the interface for the command line of the same user, on threads of its own.
//!
//! Owns: the socket file, serving it, answering when the async runtime does not. Does not own: the routes (`routes`), the client (`client`).
//!
//! Who can open the file (mode 0600) could as well read the engine's memory, so there is no token. `/health` and `/ready` are answered by the
//! receiving thread from memory, whatever the runtime does; everything else goes to the router on the runtime through a few threads, and when
//! the runtime is stalled the answer says so after a moment.
//!
//! What reaches tiny_http are short, complete requests: it serves no network, and is never alone with a client (`guard`, which says why).

use std::io::Read;
use std::os::unix::net::UnixListener;
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
use super::guard::{self, Guard};
use super::health::Condition;
use super::problem::Problem;
use super::routes::{self, BODY_BYTES, CALL_TIME};
use super::socket::Place;
use crate::fault::{Fault, Result};

pub use super::socket::{default_path, runtime_dir};

/// Threads that wait for the runtime, and requests that wait for a thread.
const THREADS: usize = 4;
const WAITING: usize = 16;
/// Delay of the runtime after which nobody waits for it any longer, and how often that is looked at.
const STALLED: Duration = Duration::from_secs(2);
const LOOK: Duration = Duration::from_millis(250);
/// A request that is under way when the socket closes has been given this long at least.
const LAST_ANSWER: Duration = Duration::from_secs(3);
/// A served socket. Dropping it closes and removes it.
#[derive(Debug)]
pub struct ControlSocket {
    place: Place,
    /// To be shut down: a thread waits at it.
    listener: Arc<UnixListener>,
    stop: Arc<AtomicBool>,
    threads: Vec<std::thread::JoinHandle<()>>,
}

impl ControlSocket {
    /// Binds `path` and serves it. `own_dir`: the directory is ours to make. To be called on the runtime that the router runs on.
    pub fn start(api: &Arc<Api>, path: &Path, own_dir: bool) -> Result<Self> {
        let place = Place::take(path, own_dir)?;
        let (listener, inside, inner) = place.bind()?;
        let stop = Arc::new(AtomicBool::new(false));
        let receiver = Receiver {
            api: api.clone(),
            router: routes::router(api, routes::table()),
            runtime: tokio::runtime::Handle::current(),
            stop: stop.clone(),
            path: path.to_owned(),
        };
        let guard = Guard { inner, open: Arc::default() };
        let failed = |e: &dyn std::fmt::Display| Fault::transient(format!("control socket {}: {e}", path.display()));
        let server = tiny_http::Server::from_listener(inside, None).map_err(|e| failed(&e))?;
        let listener = Arc::new(listener);
        let mut socket = Self { place, listener: listener.clone(), stop: stop.clone(), threads: Vec::new() };
        let accepting = std::thread::Builder::new().name("argon-control".into());
        socket.threads.push(accepting.spawn(move || accept(&listener, &guard, &stop)).map_err(|e| failed(&e))?);
        let receiving = std::thread::Builder::new().name("argon-control-in".into());
        socket.threads.push(receiving.spawn(move || receiver.run(&server)).map_err(|e| failed(&e))?);
        Ok(socket)
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        self.place.path()
    }
}

impl Drop for ControlSocket {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        // By the socket itself: its file may be gone (a cleaned directory), and then nobody can connect any more. Where a system does not wake a
        // thread by that, a connection does.
        let _ = rustix::net::shutdown(&*self.listener, rustix::net::Shutdown::Both);
        guard::wake(self.place.path());
        for thread in self.threads.drain(..) {
            let _ = thread.join();
        }
        self.place.remove();
    }
}

fn accept(listener: &UnixListener, guard: &Guard, stop: &AtomicBool) {
    loop {
        let accepted = listener.accept();
        if stop.load(Ordering::Relaxed) {
            return;
        }
        match accepted {
            Ok((client, _)) => guard.take(client),
            Err(error) => {
                tracing::warn!(%error, "a connection of the control socket could not be accepted");
                std::thread::sleep(LOOK); // out of files, most likely, and the next would fail as well
            }
        }
    }
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
        while !self.stop.load(Ordering::Relaxed) {
            let request = match server.recv_timeout(LOOK) {
                Ok(Some(request)) => request,
                Ok(None) => continue,
                Err(error) => {
                    tracing::error!(%error, socket = %self.path.display(), "the control socket is closed: it could not be read");
                    break;
                }
            };
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
        let (api, router, runtime, stop) = (self.api.clone(), self.router.clone(), self.runtime.clone(), self.stop.clone());
        let ask = move || {
            for mut request in inbox {
                if stop.load(Ordering::Relaxed) {
                    respond(request, Problem::busy("the engine is stopping").into_response());
                    continue;
                }
                let response = translate(&mut request)
                    .map_or_else(IntoResponse::into_response, |translated| ask(&api, &router, &runtime, &stop, translated));
                respond(request, response);
            }
        };
        std::thread::Builder::new().name(format!("argon-control-{i}")).spawn(ask).ok()
    }
}

/// The router's answer, from the runtime; or that it is stalled.
fn ask(api: &Api, router: &Router, runtime: &tokio::runtime::Handle, stop: &AtomicBool, request: Request<Body>) -> Response {
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
        if stop.load(Ordering::Relaxed) && began.elapsed() > LAST_ANSWER {
            return Problem::busy("the engine is stopping; it may still happen").into_response();
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
