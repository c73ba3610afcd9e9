//! What stands before tiny_http on the control socket.
//!
//! Owns: the socket's connections: how many, how long, and that only complete requests of one meaning get through. Does not own: the socket
//! file (`socket`), answers (`control`).
//!
//! SUBTLE: tiny_http has no time limits, starts a thread for every connection and now and then leaves one without (tasks are counted against
//! threads that are about to be taken), accepts several shapes of a body's frame, and allocates the length that a request announces when it is
//! dropped unread, which aborts the process if that is absurd. So each request is read here, whole and within a time, judged, and passed on
//! anew over a socket in a directory of this user's alone: what tiny_http sees is a short request with one length, which is all there, and the
//! last on its connection.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use axum::http::StatusCode;

use super::problem::Problem;
use super::routes::{BODY_BYTES, CALL_TIME};
use crate::runtime::clock;

/// Connections at once, each with a thread.
const MOST: usize = 32;
/// Time for a whole request: it comes from this machine.
const REQUEST_TIME: Duration = Duration::from_secs(5);
/// Time in which the client has to take some of the answer.
const WRITE_TIME: Duration = Duration::from_secs(5);
const HEAD_BYTES: usize = 16 << 10;
const HEADERS: usize = 64;
/// These threads copy bytes.
const STACK: usize = 256 << 10;

/// The guard of one socket.
#[derive(Debug, Clone)]
pub(super) struct Guard {
    /// Where tiny_http listens.
    pub(super) inner: PathBuf,
    pub(super) open: Arc<AtomicUsize>,
}

/// What of a request goes on.
#[derive(Debug, PartialEq, Eq)]
struct Judged {
    head: String,
    head_bytes: usize,
    body_bytes: usize,
}

impl Guard {
    /// Serves a connection on a thread of its own, or tells it that there are too many.
    pub(super) fn take(&self, client: UnixStream) {
        if self.open.fetch_add(1, Ordering::Relaxed) >= MOST {
            self.open.fetch_sub(1, Ordering::Relaxed);
            refuse(&client, &Problem::busy("as many connections as this socket takes"));
            return;
        }
        let guard = self.clone();
        let serve = move || {
            if let Err(error) = guard.serve(&client) {
                tracing::debug!(%error, "a connection of the control socket ended");
            }
            guard.open.fetch_sub(1, Ordering::Relaxed);
        };
        let thread = std::thread::Builder::new().name("argon-control-client".into()).stack_size(STACK);
        if thread.spawn(serve).is_err() {
            self.open.fetch_sub(1, Ordering::Relaxed); // the client sees its connection closed
        }
    }

    fn serve(&self, client: &UnixStream) -> std::io::Result<()> {
        client.set_write_timeout(Some(WRITE_TIME))?;
        let until = clock::now() + REQUEST_TIME;
        let problem = match read_request(client, until) {
            Ok(Ok(request)) => return self.pass_on(client, &request),
            Ok(Err(problem)) => problem,
            Err(e) if matches!(e.kind(), std::io::ErrorKind::TimedOut | std::io::ErrorKind::WouldBlock) => {
                Problem::new(StatusCode::REQUEST_TIMEOUT, "timeout", "the request has not arrived in time")
            }
            Err(e) => return Err(e),
        };
        refuse(client, &problem);
        Ok(())
    }

    fn pass_on(&self, mut client: &UnixStream, request: &[u8]) -> std::io::Result<()> {
        let mut inner = UnixStream::connect(&self.inner)?;
        inner.set_read_timeout(Some(CALL_TIME * 2))?;
        inner.write_all(request)?;
        let mut buffer = [0; 16 << 10];
        loop {
            match inner.read(&mut buffer)? {
                0 => return client.flush(),
                n => client.write_all(&buffer[..n])?,
            }
        }
    }
}

/// A whole request as it goes on, or what is wrong with it.
fn read_request(client: &UnixStream, until: Instant) -> std::io::Result<Result<Vec<u8>, Problem>> {
    let mut read = Vec::new();
    let judged = loop {
        match judge(&read) {
            Ok(Some(judged)) => break judged,
            Ok(None) if read.len() > HEAD_BYTES => {
                return Ok(Err(Problem::new(StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE, "bad_request", "the head is too large")));
            }
            Ok(None) => more(client, &mut read, until)?,
            Err(problem) => return Ok(Err(problem)),
        }
    };
    while read.len() < judged.head_bytes + judged.body_bytes {
        more(client, &mut read, until)?;
    }
    let mut request = judged.head.into_bytes();
    request.extend_from_slice(&read[judged.head_bytes..judged.head_bytes + judged.body_bytes]);
    Ok(Ok(request))
}

fn more(mut client: &UnixStream, read: &mut Vec<u8>, until: Instant) -> std::io::Result<()> {
    let left = until.saturating_duration_since(clock::now());
    if left.is_zero() {
        return Err(std::io::ErrorKind::TimedOut.into());
    }
    client.set_read_timeout(Some(left))?;
    let mut buffer = [0; 4 << 10];
    match client.read(&mut buffer)? {
        0 => Err(std::io::ErrorKind::UnexpectedEof.into()),
        n => {
            read.extend_from_slice(&buffer[..n]);
            Ok(())
        }
    }
}

/// What a head says; `None` while it is not all there.
fn judge(bytes: &[u8]) -> Result<Option<Judged>, Problem> {
    let mut headers = [httparse::EMPTY_HEADER; HEADERS];
    let mut request = httparse::Request::new(&mut headers);
    let head_bytes = match request.parse(bytes) {
        Ok(httparse::Status::Complete(n)) => n,
        Ok(httparse::Status::Partial) => return Ok(None),
        Err(e) => return Err(Problem::bad_request(format!("this is no request: {e}"))),
    };
    let (method, target) = (request.method.unwrap_or_default(), request.path.unwrap_or_default());
    if !target.starts_with('/') || !target.bytes().all(|b| b.is_ascii_graphic()) {
        return Err(Problem::bad_request("the target of a request is a path that begins with /"));
    }
    let named = |name: &'static str| request.headers.iter().filter(move |h| h.name.eq_ignore_ascii_case(name)).map(|h| h.value);
    if ["Transfer-Encoding", "Expect", "Upgrade"].into_iter().any(|name| named(name).next().is_some()) {
        let said = "send a Content-Length, and nothing else that frames a body";
        return Err(Problem::new(StatusCode::LENGTH_REQUIRED, "length_required", said));
    }
    let mut lengths = named("Content-Length");
    let body_bytes = match (lengths.next().map(length), lengths.next()) {
        (None, _) => 0,
        (Some(Some(n)), None) if n <= BODY_BYTES => n,
        (Some(Some(_)), None) => {
            let said = format!("a body may have {BODY_BYTES} bytes");
            return Err(Problem::new(StatusCode::PAYLOAD_TOO_LARGE, "payload_too_large", said));
        }
        (Some(_), _) => return Err(Problem::bad_request("one Content-Length, in digits")),
    };
    let content_type = named("Content-Type").next().and_then(|v| std::str::from_utf8(v).ok()).filter(|v| v.is_ascii());
    let mut head = format!("{method} {target} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nContent-Length: {body_bytes}\r\n");
    if let Some(content_type) = content_type {
        head += &format!("Content-Type: {content_type}\r\n");
    }
    Ok(Some(Judged { head: head + "\r\n", head_bytes, body_bytes }))
}

/// Digits only: what parsers differ on (signs, spaces, lists) is none.
fn length(value: &[u8]) -> Option<usize> {
    let digits = std::str::from_utf8(value).ok().filter(|v| !v.is_empty() && v.bytes().all(|b| b.is_ascii_digit()))?;
    // More digits than a number has is more than any limit, too.
    Some(digits.parse().unwrap_or(usize::MAX))
}

fn refuse(mut client: &UnixStream, problem: &Problem) {
    let body = serde_json::json!({ "error": { "code": problem.code, "message": problem.message } }).to_string();
    let head = format!(
        "HTTP/1.1 {}\r\nContent-Type: application/json\r\nContent-Length: {}\r\nConnection: close\r\n\r\n",
        problem.status,
        body.len()
    );
    let _ = client.set_write_timeout(Some(WRITE_TIME));
    let _ = client.write_all((head + &body).as_bytes()); // it may have gone
    let _ = client.shutdown(std::net::Shutdown::Write);
}

/// An accepting thread that ends is woken by a connection.
pub(super) fn wake(path: &Path) {
    let _ = UnixStream::connect(path);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_has_one_meaning_goes_on_and_it_is_written_anew() {
        let head = "POST /api/v1/jobs?a=b HTTP/1.1\r\nhost: x\r\nX-Y: z\r\ncontent-TYPE: application/json\r\nContent-Length: 2\r\n\r\n{}";
        let judged = judge(head.as_bytes()).unwrap().unwrap();
        assert_eq!((judged.head_bytes, judged.body_bytes), (head.len() - 2, 2));
        assert_eq!(
            judged.head,
            "POST /api/v1/jobs?a=b HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nContent-Length: 2\r\nContent-Type: application/json\r\n\r\n"
        );
        assert_eq!(judge(&head.as_bytes()[..40]).unwrap(), None);
        for (wrong, status) in [
            ("Content-Length: 1\r\nContent-Length: 1", 400),
            ("Content-Length: +1", 400),
            ("Content-Length: 1, 1", 400),
            ("Content-Length: ", 400),
            ("Content-Length: 1048577", 413),
            ("Content-Length: 18446744073709551616", 413),
            ("Transfer-Encoding: chunked", 411),
            ("Transfer-Encoding : chunked", 400),
            ("Expect: 100-continue\r\nContent-Length: 1", 411),
            ("Connection: upgrade\r\nUpgrade: x", 411),
        ] {
            let text = format!("POST /x HTTP/1.1\r\n{wrong}\r\n\r\n");
            assert_eq!(judge(text.as_bytes()).unwrap_err().status.as_u16(), status, "{wrong}");
        }
        for wrong in [
            "GET x HTTP/1.1\r\n\r\n",
            "GET http://x/ HTTP/1.1\r\n\r\n",
            "GET /\u{e9} HTTP/1.1\r\n\r\n",
            "\0\r\n\r\n",
            "GET / HTTP/2.0\r\n\r\n",
            "GET /\r\n\r\n",
        ] {
            assert_eq!(judge(wrong.as_bytes()).unwrap_err().status.as_u16(), 400, "{wrong:?}");
        }
    }
}
