//! Owns: a TCP proxy in front of MongoDB or S3 that does to connections what networks do, switched at run time.
//! Does not own understanding of either protocol, but for letting HTTP's `100 Continue` pass: it is no answer.
//!
//! A client of a replica set learns the members' own addresses and goes around the proxy: connect with `directConnection=true`.

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::{JoinHandle, JoinSet};

use crate::fault::{Fault, Result};

/// What happens to connections.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    /// Nothing.
    Pass,
    /// New connections are reset at once, existing ones are cut.
    Refuse,
    /// Every piece of an answer comes this much later.
    Delay(Duration),
    /// The connection is cut after this many bytes of answers on it, counted from when the fault took hold of it.
    CutAfter(u64),
    /// The request goes through, and the connection is cut when the answer comes: it happened, but you do not know.
    DropAnswer,
    /// The lowest bit of this byte of the answers (counted as for `CutAfter`) is flipped.
    FlipBit(u64),
}

/// A mode, and what it is limited to.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Order {
    mode: Mode,
    /// It takes hold of a connection when a request on it contains these bytes; empty: at once.
    when: Arc<[u8]>,
}

#[derive(Debug)]
struct Control {
    order: watch::Sender<Order>,
    /// How many more times the fault strikes before the mode is `Pass` again.
    left: AtomicU64,
    hits: AtomicU64,
    target: SocketAddr,
}

impl Control {
    /// Claims one strike; false when others have used them up.
    fn strike(&self) -> bool {
        let claimed = self.left.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |left| left.checked_sub(1));
        if claimed == Ok(1) {
            self.order.send_replace(Order { mode: Mode::Pass, when: Arc::from([]) });
        }
        if claimed.is_ok() {
            self.hits.fetch_add(1, Ordering::SeqCst);
        }
        claimed.is_ok()
    }
}

/// A running proxy. Dropping cuts everything.
#[derive(Debug)]
pub struct Proxy {
    address: SocketAddr,
    control: Arc<Control>,
    accepting: JoinHandle<()>,
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.accepting.abort();
    }
}

impl Proxy {
    /// Listens on a free port of 127.0.0.1 and forwards to `target`, passing everything at first.
    pub async fn start(target: SocketAddr) -> Result<Self> {
        let fault = |error: std::io::Error| Fault::transient(format!("the devkit's proxy cannot listen: {error}"));
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.map_err(fault)?;
        let address = listener.local_addr().map_err(fault)?;
        let (order, _) = watch::channel(Order { mode: Mode::Pass, when: Arc::from([]) });
        let control = Arc::new(Control { order, left: AtomicU64::new(0), hits: AtomicU64::new(0), target });
        let accepting = tokio::spawn(accept(listener, Arc::clone(&control)));
        Ok(Self { address, control, accepting })
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Switches the mode, for new connections and existing ones, until it is switched again.
    pub fn set(&self, mode: Mode) {
        self.set_when(mode, b"", u64::MAX);
    }

    /// Switches the mode for `times` strikes (a cut, a flip, a dropped answer, a delayed piece, a refused connection), only on connections
    /// on which a request contains `when` from now on (for example `b"commitTransaction"` or `b"PUT /bucket"`;
    /// they are looked for in each piece read, so keep them near the start of a request).
    pub fn set_when(&self, mode: Mode, when: &[u8], times: u64) {
        self.control.left.store(times, Ordering::SeqCst);
        self.control.order.send_replace(Order { mode, when: Arc::from(when) });
    }

    /// How many times a fault has struck since the start.
    pub fn hits(&self) -> u64 {
        self.control.hits.load(Ordering::SeqCst)
    }
}

async fn accept(listener: TcpListener, control: Arc<Control>) {
    let mut connections = JoinSet::new(); // dropped with this task, and then they end too
    loop {
        let Ok((client, _)) = listener.accept().await else { return };
        while connections.try_join_next().is_some() {}
        connections.spawn(serve(client, Arc::clone(&control)));
    }
}

/// One connection, until either side or a fault ends it; both sides see a reset when a fault does.
async fn serve(client: TcpStream, control: Arc<Control>) {
    let _ = client.set_zero_linger();
    if control.order.borrow().mode == Mode::Refuse && control.strike() {
        return;
    }
    let Ok(server) = TcpStream::connect(control.target).await else { return };
    let _ = (client.set_nodelay(true), server.set_nodelay(true));
    let mut orders = control.order.subscribe();
    // Held until requests show otherwise; the order may be older than the connection.
    let armed = Arc::new(AtomicU64::new(0));
    let (from_client, to_client) = client.into_split();
    let (from_server, to_server) = server.into_split();
    let refused = async {
        if orders.wait_for(|order| order.mode == Mode::Refuse).await.is_err() || !control.strike() {
            std::future::pending::<()>().await;
        }
    };
    tokio::select! {
        () = requests(from_client, to_server, &control, &armed) => {}
        _ = answers(from_server, to_client, &control, &armed) => {}
        () = refused => {}
    }
}

/// Forwards requests, and notes how many of them were meant by the current order.
async fn requests(mut from: OwnedReadHalf, mut to: OwnedWriteHalf, control: &Control, armed: &AtomicU64) {
    let mut buffer = vec![0; 64 << 10];
    let mut orders = control.order.subscribe();
    loop {
        let Ok(read @ 1..) = from.read(&mut buffer).await else { return };
        if orders.has_changed().unwrap_or(false) {
            orders.mark_unchanged();
            armed.store(0, Ordering::SeqCst); // requests before the switch do not count
        }
        let when = Arc::clone(&control.order.borrow().when);
        if !when.is_empty() && buffer[..read].windows(when.len()).any(|window| window == &*when) {
            armed.fetch_add(1, Ordering::SeqCst);
        }
        if to.write_all(&buffer[..read]).await.is_err() {
            return;
        }
    }
}

/// Forwards answers with what the current order does to them. `None` when the connection has ended.
async fn answers(mut from: OwnedReadHalf, mut to: OwnedWriteHalf, control: &Control, armed: &AtomicU64) -> Option<()> {
    let mut buffer = vec![0; 64 << 10];
    let mut orders = control.order.subscribe();
    let mut passed = 0_u64; // bytes since the fault took hold
    loop {
        let read = from.read(&mut buffer).await.ok().filter(|read| *read > 0)?;
        let order = orders.borrow_and_update().clone();
        let held = order.when.is_empty() || armed.load(Ordering::SeqCst) > 0;
        let mut piece = &mut buffer[..read];
        if !held || order.mode == Mode::Pass {
            passed = 0;
            to.write_all(piece).await.ok()?;
            continue;
        }
        let end = passed + piece.len() as u64;
        match order.mode {
            Mode::Delay(pause) if control.strike() => tokio::time::sleep(pause).await,
            Mode::DropAnswer => {
                let skip = continue_len(piece);
                to.write_all(&piece[..skip]).await.ok()?;
                piece = &mut piece[skip..];
                if !piece.is_empty() && control.strike() {
                    return None;
                }
            }
            Mode::CutAfter(limit) if end >= limit && control.strike() => {
                let keep = usize::try_from(limit.saturating_sub(passed)).unwrap_or(0).min(piece.len());
                to.write_all(&piece[..keep]).await.ok()?;
                to.flush().await.ok()?;
                return None;
            }
            Mode::FlipBit(at) if (passed..end).contains(&at) && control.strike() => {
                piece[usize::try_from(at - passed).unwrap_or(0)] ^= 1;
            }
            _ => {}
        }
        passed = end;
        to.write_all(piece).await.ok()?;
    }
}

/// Length of an interim `100 Continue` at the start of an answer.
fn continue_len(answer: &[u8]) -> usize {
    let interim = answer.starts_with(b"HTTP/1.1 100 ");
    let end = answer.windows(4).position(|window| window == b"\r\n\r\n");
    if interim { end.map_or(0, |end| end + 4) } else { 0 }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A server that answers every `n` bytes it gets with `n` bytes `a`.
    async fn echo() -> (SocketAddr, JoinHandle<()>) {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let address = listener.local_addr().unwrap();
        let serve = async move {
            let mut tasks = JoinSet::new();
            loop {
                let (mut stream, _) = listener.accept().await.unwrap();
                tasks.spawn(async move {
                    let mut buffer = [0; 1024];
                    while let Ok(read @ 1..) = stream.read(&mut buffer).await {
                        stream.write_all(&vec![b'a'; read]).await.unwrap();
                    }
                });
            }
        };
        (address, tokio::spawn(serve))
    }

    async fn ask(stream: &mut TcpStream, request: &[u8]) -> std::io::Result<Vec<u8>> {
        stream.write_all(request).await?;
        let mut answer = vec![0; request.len()];
        stream.read_exact(&mut answer).await?;
        Ok(answer)
    }

    #[tokio::test]
    async fn each_mode_does_what_it_says_and_passing_is_clean_again() {
        let (target, _server) = echo().await;
        let proxy = Proxy::start(target).await.unwrap();
        let connect = || TcpStream::connect(proxy.address());
        let mut stream = connect().await.unwrap();
        assert_eq!(ask(&mut stream, b"1234").await.unwrap(), b"aaaa");

        proxy.set(Mode::FlipBit(6));
        assert_eq!(ask(&mut stream, b"1234").await.unwrap(), b"aaaa");
        assert_eq!(ask(&mut stream, b"1234").await.unwrap(), b"aa`a");

        proxy.set(Mode::Pass);
        assert_eq!(ask(&mut stream, b"1234").await.unwrap(), b"aaaa");

        proxy.set(Mode::CutAfter(3));
        let mut got = Vec::new();
        stream.write_all(b"12345").await.unwrap();
        let _ = stream.read_to_end(&mut got).await;
        assert!(got.len() <= 3, "{got:?}"); // a reset may take the last bytes with it

        proxy.set(Mode::DropAnswer);
        let mut stream = connect().await.unwrap();
        assert!(ask(&mut stream, b"1234").await.is_err());

        let delay = Duration::from_millis(80);
        proxy.set(Mode::Delay(delay));
        let mut stream = connect().await.unwrap();
        let start = crate::runtime::clock::now();
        assert_eq!(ask(&mut stream, b"1234").await.unwrap(), b"aaaa");
        assert!(start.elapsed() >= delay);

        proxy.set(Mode::Refuse);
        assert!(ask(&mut stream, b"1234").await.is_err(), "existing connections are cut");
        let refused = async { ask(&mut connect().await?, b"1234").await };
        assert!(refused.await.is_err());
        assert_eq!(proxy.hits(), 6);

        proxy.set(Mode::Pass);
        assert_eq!(ask(&mut connect().await.unwrap(), b"1234").await.unwrap(), b"aaaa");
    }

    #[tokio::test]
    async fn a_limited_fault_strikes_only_the_requests_meant_and_only_so_often() {
        let (target, _server) = echo().await;
        let proxy = Proxy::start(target).await.unwrap();
        proxy.set_when(Mode::DropAnswer, b"commit", 1);
        let mut other = TcpStream::connect(proxy.address()).await.unwrap();
        let mut meant = TcpStream::connect(proxy.address()).await.unwrap();
        assert!(ask(&mut other, b"insert").await.is_ok());
        assert!(ask(&mut meant, b"insert").await.is_ok());
        assert!(ask(&mut meant, b"a commit").await.is_err());
        let mut meant = TcpStream::connect(proxy.address()).await.unwrap();
        assert!(ask(&mut meant, b"a commit").await.is_ok());
        assert!(ask(&mut other, b"a commit").await.is_ok());
        assert_eq!(proxy.hits(), 1);
    }

    #[test]
    fn an_interim_answer_is_no_answer() {
        assert_eq!(continue_len(b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\r\n"), 25);
        assert_eq!(continue_len(b"HTTP/1.1 200 OK\r\n\r\n"), 0);
        assert_eq!(continue_len(b""), 0);
    }
}
