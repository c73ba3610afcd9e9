//! The interface over HTTP: on the network for everybody with a token, on a Unix socket for the command line.
//!
//! Owns: one table of routes ([`routes`](self::table)), handlers that are plain functions from request to answer (one file a topic), two
//! listeners and a socket that serve them, tokens, TLS, and the OpenAPI document. Does not own: what the engine does ([`EngineView`]), what is
//! stored (`ledger`), the names of metrics (`telemetry`).
//!
//! ```text
//!  network ─▶ connections (caps) ─▶ TLS ─▶ hyper (head: 5 s, 16 KiB) ─▶ front (Host, token, rate) ─▶ routes (scope, body, time) ─▶ handler
//!  metrics address ─▶ connections ─▶ hyper ─▶ /health /ready /metrics
//!  control socket ─▶ guard ─▶ tiny_http, own threads ─▶ /health from memory, the rest ─▶ routes
//! ```

mod api;
mod auth;
mod branches;
mod branching;
mod bulk;
mod call;
mod captures;
pub mod client;
mod connections;
pub mod control;
mod events;
mod front;
mod guard;
mod health;
mod jobs;
mod limit;
mod metrics;
mod network;
mod openapi;
mod page;
mod patient;
mod pipeline;
mod problem;
mod queue;
mod real;
mod routes;
mod scaling;
mod socket;
mod tls;
mod twin;
mod watched;
mod workers;

pub use api::{Api, EngineChecks, EngineView};
pub use auth::{Caller, Scope, Tokens};
pub use branches::{BranchStats, BranchesPage, Level};
pub use branching::NewBranchRequest;
pub use bulk::{BulkAnswer, BulkRequest};
pub use call::Route;
pub use captures::{CaptureView, CapturesPage};
pub use connections::Caps;
pub use health::{Check, Checks, Condition, Health, Ready};
pub use jobs::{JobChange, JobErrorView, JobOutcome, JobView, JobsPage, NewJobRequest, SubmitKind, Submitted, SyncView};
pub use openapi::document as openapi_document;
pub use problem::{ErrorAnswer, ErrorBody, Problem};
pub use queue::{PauseRequest, PauseView, PausesView};
pub use routes::{METRICS_PATHS, table};
pub use scaling::{DecisionView, ScalerView};
pub use twin::TwinEngine;
pub use workers::{Engine, Pin, Pool, Queue, ScaleAnswer, ScaleRequest, ScaleScope, Summary, Worker, WorkersStats};

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use tokio::task::JoinSet;

use crate::config::HttpSettings;
use crate::fault::Result;

use front::Front;
use network::{Bound, Server};
use tls::{Files, Tls};
use watched::Watched;

/// What listens. Stopping it ([`Listeners::stop`]) lets answers end; dropping it does not wait for them.
#[derive(Debug)]
pub struct Listeners {
    /// The API's address, with the port that was really bound.
    pub addr: Option<SocketAddr>,
    /// The metrics' own address.
    pub metrics_addr: Option<SocketAddr>,
    control: Option<control::ControlSocket>,
    api: Arc<Api>,
    tasks: JoinSet<()>,
}

/// Whether an address could be listened on now: `text` is the value of `variable`.
pub async fn may_listen(variable: &str, text: &str) -> Result<()> {
    network::bind(variable, text).await.map(drop)
}

/// Binds everything that the settings name, then serves it. Nothing is served when one of them cannot be.
pub async fn start(api: &Arc<Api>, settings: &HttpSettings) -> Result<Listeners> {
    // Marked before they are read: a change in between is one to read again.
    let token_files = Watched::new(settings.api_tokens_file.clone());
    let tokens = Arc::new(Tokens::load(settings)?);
    let files = Files::of(settings)?;
    let certificates = Watched::new(files.iter().flat_map(Files::all));
    let tls = files.map(Tls::load).transpose()?.map(Arc::new);
    let bound = match settings.addr.as_ref().filter(|addr| *addr != "off") {
        Some(addr) => Some(network::bind("ARGON_HTTP_ADDR", addr).await?),
        None => None,
    };
    let trusted = tls.as_ref().is_some_and(|tls| tls.knows_clients());
    if let Some(bound) = &bound {
        auth::check_open(bound.addr, tokens.is_open() && !trusted, settings.allow_unauthenticated)?;
    }
    let metrics = match &settings.metrics_addr {
        Some(addr) => Some(network::bind("ARGON_METRICS_ADDR", addr).await?),
        None => None,
    };
    let control = match control_path(settings, bound.as_ref()) {
        Some((path, own_dir)) => Some(control::ControlSocket::start(api, &path, own_dir)?),
        None => None,
    };
    let mut listeners = Listeners {
        addr: bound.as_ref().map(|b| b.addr),
        metrics_addr: metrics.as_ref().map(|b| b.addr),
        control,
        api: api.clone(),
        tasks: JoinSet::new(),
    };
    if let Some(bound) = bound {
        listeners.tasks.spawn(watch((token_files, tokens.clone()), (certificates, tls.clone()), api.stop.clone()));
        listeners.serve_api(bound, settings, &tokens, tls, trusted);
    }
    if let Some(bound) = metrics {
        listeners.serve_metrics(bound, settings);
    }
    if let Some(control) = &listeners.control {
        tracing::info!(socket = %control.path().display(), "control socket");
    }
    Ok(listeners)
}

/// Where the control socket shall be, and whether its directory is ours to make.
fn control_path(settings: &HttpSettings, bound: Option<&Bound>) -> Option<(PathBuf, bool)> {
    match (&settings.control_socket, bound) {
        (Some(path), _) if path.as_os_str() == "off" => None,
        (Some(path), _) => Some((path.clone(), false)),
        (None, Some(bound)) => Some((control::default_path(bound.addr.port()), true)),
        // Without a port there is no name for it; the process id is one.
        (None, None) => Some((control::runtime_dir().join(format!("control-pid-{}.sock", std::process::id())), true)),
    }
}

impl Listeners {
    fn serve_api(&mut self, bound: Bound, settings: &HttpSettings, tokens: &Arc<Tokens>, tls: Option<Arc<Tls>>, trusted: bool) {
        let api = &self.api;
        let router = routes::router(api, routes::table());
        let front = Front::api(router, api.metrics.clone(), tokens.clone(), settings.api_rate, bound.addr, trusted);
        let scheme = if tls.is_some() { "https" } else { "http" };
        tracing::info!(url = %format!("{scheme}://{}", bound.addr), token = !tokens.is_open(), client_certificates = trusted, "API listens");
        let caps = Caps { total: settings.max_connections, per_client: settings.max_connections_per_client };
        self.serve("api", front, bound, tls, caps);
    }

    fn serve_metrics(&mut self, bound: Bound, settings: &HttpSettings) {
        let public = routes::table().into_iter().filter(|route| METRICS_PATHS.contains(&route.path)).collect();
        let front = Front::public(routes::router(&self.api, public), self.api.metrics.clone());
        tracing::info!(url = %format!("http://{}", bound.addr), "metrics listen");
        let caps = Caps { total: settings.max_connections, per_client: settings.max_connections_per_client };
        self.serve("metrics", front, bound, None, caps);
    }

    fn serve(&mut self, name: &'static str, front: Front, bound: Bound, tls: Option<Arc<Tls>>, caps: Caps) {
        let (metrics, stop) = (self.api.metrics.clone(), self.api.stop.clone());
        let server = Server { name, front: Arc::new(front), tls, caps, metrics, stop };
        self.tasks.spawn(server.run(bound.listener));
    }

    /// Where the control socket is.
    pub fn control(&self) -> Option<&Path> {
        self.control.as_ref().map(control::ControlSocket::path)
    }

    /// Accepts nothing more, lets answers end, removes the socket.
    pub async fn stop(mut self) {
        self.api.stop.cancel();
        while self.tasks.join_next().await.is_some() {}
        let control = self.control.take();
        // It waits for threads, which may be waiting for this runtime.
        let _ = tokio::task::spawn_blocking(move || drop(control)).await;
    }
}

/// Reads tokens and certificates again when their files change.
async fn watch(
    (mut token_files, tokens): (Watched, Arc<Tokens>),
    (mut certificates, tls): (Watched, Option<Arc<Tls>>),
    stop: tokio_util::sync::CancellationToken,
) {
    loop {
        tokio::select! {
            () = tokio::time::sleep(watched::LOOK_AGAIN) => {}
            () = stop.cancelled() => return,
        }
        // A mounted secret may hang with its network file system: not on a thread of the runtime.
        let (tokens, tls) = (tokens.clone(), tls.clone());
        let looked = tokio::task::spawn_blocking(move || {
            if token_files.has_changed() {
                tokens.read_again();
            }
            if let Some(tls) = tls
                && certificates.has_changed()
            {
                tls.read_again();
            }
            (token_files, certificates)
        });
        match looked.await {
            Ok(watched) => (token_files, certificates) = watched,
            Err(_) => return,
        }
    }
}
