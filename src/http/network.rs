//! The listeners on the network: axum's router on hyper's HTTP/1, with a bound for everything that a client could use up.
//!
//! Owns: accepting, time limits of connections, TLS on them, ending. Does not own: caps (`connections`), requests (`front`), routes.
//!
//! | what | bound | why |
//! |---|---|---|
//! | connections of a client, of all | settings | files and memory of the process; see `connections` for who goes |
//! | TLS handshake, head of a request, pause between requests | 5 s | a slow or silent client holds a place no longer |
//! | head | 16 KiB | a cookie jar fits, a flood of headers does not |
//! | body | 1 MiB each, 16 MiB together | see `routes` |
//! | a write that the client does not take | 30 s | see `patient` |

use std::convert::Infallible;
use std::net::SocketAddr;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use axum::body::Body;
use axum::http::Request;
use bytes::Bytes;
use http_body::{Body as HttpBody, Frame, SizeHint};
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use super::connections::{Admission, Caps, Connections, Ticket};
use super::front::Front;
use super::patient::Patient;
use super::tls::Tls;
use crate::fault::{Fault, Result};
use crate::runtime::clock;
use crate::telemetry::metrics::{HTTP_CONNECTIONS, HTTP_REFUSED, Metrics};

/// Time for the head of a request, for a handshake, and between requests.
const HEAD_TIME: Duration = Duration::from_secs(5);
/// Connections that the kernel holds until they are accepted. With the usual 128 a burst of slow clients makes the next client's connect wait for
/// a second, until its system tries again.
const BACKLOG: u32 = 4_096;
/// Bytes of a head.
const HEAD_BYTES: usize = 16 << 10;
/// Time in which a client has to take something of what is written.
const WRITE_TIME: Duration = Duration::from_secs(30);
/// After the end of accepting, how long answers may take.
const LAST_ANSWERS: Duration = Duration::from_secs(3);
/// A gauge that nobody sets is taken for one of something that is gone.
const COUNT_AGAIN: Duration = Duration::from_secs(20);
/// Pause after an accept that failed: out of files, most likely, and the next would fail as well.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// A listener that is bound, and does not accept yet.
#[derive(Debug)]
pub(super) struct Bound {
    pub(super) listener: TcpListener,
    pub(super) addr: SocketAddr,
}

/// The same place, one port further.
fn next_port(addresses: &[SocketAddr], text: &str) -> String {
    let port = addresses.first().map_or(8080, SocketAddr::port);
    let host = text.rsplit_once(':').map_or(text, |(host, _)| host);
    format!("{host}:{}", port.checked_add(1).unwrap_or(8080))
}

/// Binds `text`, the value of `variable`.
pub(super) async fn bind(variable: &str, text: &str) -> Result<Bound> {
    let resolved = tokio::net::lookup_host(text).await.map(Iterator::collect::<Vec<_>>);
    let addresses = match resolved {
        Ok(addresses) if !addresses.is_empty() => addresses,
        Ok(_) => return Err(Fault::config(format!("{variable}={text} is no address of this machine"))),
        Err(e) => return Err(Fault::config(format!("{variable}={text} is not host:port, such as 127.0.0.1:8080: {e}"))),
    };
    let listener = listen(&addresses).map_err(|e| match e.kind() {
        std::io::ErrorKind::AddrInUse => Fault::rejected(format!(
            "{variable}={text} is in use: another program, perhaps another argon run, listens there; stop it or choose another port"
        ))
        .next(format!("export {variable}={}", next_port(&addresses, text))),
        std::io::ErrorKind::AddrNotAvailable => Fault::config(format!("{variable}={text} is not an address of this machine")),
        std::io::ErrorKind::PermissionDenied => {
            Fault::config(format!("{variable}={text} may not be bound by this user: ports below 1024 need a right of their own"))
        }
        _ => Fault::rejected(format!("{variable}={text} cannot be bound: {e}")),
    })?;
    let addr = listener.local_addr().map_err(|e| Fault::unknown(format!("{variable}={text}: {e}")))?;
    Ok(Bound { listener, addr })
}

/// On the first of these addresses that can be bound.
fn listen(addresses: &[SocketAddr]) -> std::io::Result<TcpListener> {
    let mut failed = std::io::ErrorKind::InvalidInput.into();
    for addr in addresses {
        let bound = (|| {
            let socket = if addr.is_ipv4() { TcpSocket::new_v4()? } else { TcpSocket::new_v6()? };
            socket.set_reuseaddr(true)?; // a restart must not wait for connections of the process before
            socket.bind(*addr)?;
            socket.listen(BACKLOG)
        })();
        match bound {
            Ok(listener) => return Ok(listener),
            Err(e) => failed = e,
        }
    }
    Err(failed)
}

/// A listener and what it serves.
#[derive(Debug)]
pub(super) struct Server {
    pub(super) name: &'static str,
    pub(super) front: Arc<Front>,
    pub(super) tls: Option<Arc<Tls>>,
    pub(super) caps: Caps,
    pub(super) metrics: Metrics,
    pub(super) stop: CancellationToken,
}

impl Server {
    /// Accepts until `stop`, then lets answers end.
    pub(super) async fn run(self, listener: TcpListener) {
        let connections = Connections::new(self.caps);
        let mut tasks = JoinSet::new();
        loop {
            let accepted = tokio::select! {
                biased;
                () = self.stop.cancelled() => break,
                Some(_) = tasks.join_next(), if !tasks.is_empty() => {
                    self.count(&connections);
                    continue;
                }
                () = tokio::time::sleep(COUNT_AGAIN) => {
                    self.count(&connections);
                    continue;
                }
                accepted = listener.accept() => accepted,
            };
            match accepted {
                Ok((stream, peer)) => self.admit(stream, peer, &connections, &mut tasks).await,
                Err(error) => {
                    tracing::warn!(listener = self.name, %error, "a connection could not be accepted");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                }
            }
            self.count(&connections);
        }
        drop(listener);
        let rest = async { while tasks.join_next().await.is_some() {} };
        let _ = tokio::time::timeout(LAST_ANSWERS, rest).await; // what is left ends with the set
    }

    #[allow(clippy::cast_precision_loss)] // a few hundred
    fn count(&self, connections: &Connections) {
        self.metrics.set(&HTTP_CONNECTIONS, &[self.name], connections.open() as f64);
    }

    async fn admit(&self, stream: TcpStream, peer: SocketAddr, connections: &Arc<Connections>, tasks: &mut JoinSet<()>) {
        let (ticket, dropped) = loop {
            match connections.admit(peer.ip(), clock::now()) {
                Admission::In { ticket, dropped } => break (ticket, dropped),
                Admission::Later(wait) => tokio::time::sleep(wait).await,
                Admission::Full => {
                    self.metrics.count(&HTTP_REFUSED, &["full"]);
                    return; // every place is being answered: closing is the quickest answer, and costs no memory
                }
            }
        };
        if dropped {
            self.metrics.count(&HTTP_REFUSED, &["dropped"]);
        }
        let _ = stream.set_nodelay(true); // answers are small and written whole
        let connection = Connection {
            front: self.front.clone(),
            metrics: self.metrics.clone(),
            peer,
            ticket: Arc::new(ticket),
            stop: self.stop.clone(),
        };
        match self.tls.clone() {
            None => tasks.spawn(connection.serve(stream)),
            Some(tls) => tasks.spawn(connection.shake_hands(stream, tls)),
        };
    }
}

struct Connection {
    front: Arc<Front>,
    metrics: Metrics,
    peer: SocketAddr,
    ticket: Arc<Ticket>,
    stop: CancellationToken,
}

impl Connection {
    async fn shake_hands(self, stream: TcpStream, tls: Arc<Tls>) {
        self.ticket.looked_at(); // a handshake takes several turns anyway
        let shaken = tokio::select! {
            biased;
            () = self.ticket.gone.cancelled() => return,
            () = self.stop.cancelled() => return,
            shaken = tokio::time::timeout(HEAD_TIME, tls.acceptor().accept(stream)) => shaken,
        };
        match shaken {
            Ok(Ok(stream)) => Box::pin(self.serve(stream)).await,
            Ok(Err(error)) => {
                self.metrics.count(&HTTP_REFUSED, &["tls"]);
                tracing::debug!(peer = %self.peer, %error, "TLS handshake failed");
            }
            Err(_) => self.metrics.count(&HTTP_REFUSED, &["slow"]),
        }
    }

    async fn serve<S: AsyncRead + AsyncWrite + Unpin + Send + 'static>(self, stream: S) {
        let Self { front, metrics, peer, ticket, stop } = self;
        let place = ticket.clone();
        let service = service_fn(move |request: Request<Incoming>| {
            place.busy();
            let (front, place) = (front.clone(), place.clone());
            async move {
                let mut request = request.map(Body::new);
                request.extensions_mut().insert(place.clone()); // a request whose body is missing is not complete either
                let response = front.answer(peer.ip(), request).await;
                Ok::<_, Infallible>(response.map(|body| Answered { body, place: Place(place) }))
            }
        });
        let connection = http1::Builder::new()
            .timer(TokioTimer::new())
            .header_read_timeout(HEAD_TIME)
            .max_buf_size(HEAD_BYTES)
            .max_header_size(HEAD_BYTES)
            .serve_connection(TokioIo::new(Patient::new(stream, WRITE_TIME)), service);
        let mut connection = pin!(connection);
        // Once, so that the table of connections knows that what had arrived has been read.
        if let Some(ended) = futures_util::FutureExt::now_or_never(connection.as_mut()) {
            return report(&metrics, peer, ended);
        }
        ticket.looked_at();
        let mut stopping = false;
        let ended = loop {
            tokio::select! {
                biased;
                () = ticket.gone.cancelled() => return,
                () = stop.cancelled(), if !stopping => {
                    stopping = true;
                    connection.as_mut().graceful_shutdown();
                }
                ended = connection.as_mut() => break ended,
            }
        };
        report(&metrics, peer, ended);
    }
}

fn report(metrics: &Metrics, peer: SocketAddr, ended: hyper::Result<()>) {
    if let Err(error) = ended {
        let why = if error.is_timeout() {
            "slow"
        } else if error.is_parse() {
            "malformed"
        } else {
            "broken"
        };
        metrics.count(&HTTP_REFUSED, &[why]);
        tracing::debug!(%peer, %error, "connection ended");
    }
}

/// The body of an answer: while it lasts, its connection is one that is being answered.
struct Answered {
    body: Body,
    place: Place,
}

struct Place(Arc<Ticket>);

impl Drop for Place {
    fn drop(&mut self) {
        self.0.waiting(clock::now());
    }
}

impl HttpBody for Answered {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<std::result::Result<Frame<Bytes>, axum::Error>>> {
        let _ = &self.place;
        Pin::new(&mut self.body).poll_frame(cx)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}
