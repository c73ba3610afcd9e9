//! Ingest: reads replies of the change stream and keeps reading, whatever happens to the connection.
//!
//! Owns: the resume loop: which errors end it, how long it waits, the source's identity at every open (correctness.md 4, 7).
//! Does not own: the events' meaning (`assemble`), the stored checkpoint (`checkpoint`).

use std::time::Duration;

use bson::RawDocumentBuf;

use crate::fault::{Fault, Kind, Result};
use crate::ledger::{Fidelity, same_source};
use crate::runtime::backoff::Backoff;
use crate::runtime::link::LinkTx;
use crate::runtime::random;
use crate::runtime::shutdown::Shutdown;

use super::feed::{FeedCursor, Reply, SharedFeed};

/// Pauses between reopenings: quick after a stepdown, never at full speed.
const REOPEN: Backoff = Backoff { base: Duration::from_millis(200), cap: Duration::from_secs(10) };

/// What ingest tells the rest of the capture.
#[derive(Debug)]
pub(crate) enum Ingested {
    /// Consecutive events.
    Reply(Reply),
    /// The stream is open (again): what the server agreed to send.
    Opened(Fidelity),
    /// It is not, for this reason; ingest goes on trying.
    Waiting(String),
}

/// Reads until it is told to stop, the other end is gone, or the position is lost.
#[derive(Debug)]
pub(crate) struct Ingest {
    feed: SharedFeed,
    /// Identity of the deployment the capture was started on.
    identity: String,
    resume: RawDocumentBuf,
    out: LinkTx<Ingested>,
    stop: Shutdown,
}

impl Ingest {
    pub(crate) fn new(feed: SharedFeed, identity: String, resume: RawDocumentBuf, out: LinkTx<Ingested>, stop: Shutdown) -> Self {
        Self { feed, identity, resume, out, stop }
    }

    /// Ends with `Ok` when stopped, else with the fatal fault.
    ///
    /// SUBTLE: a driver future is never dropped half way (that can leave the driver inconsistent); the stop is looked at between
    /// replies, and a quiet stream answers every second.
    pub(crate) async fn run(mut self) -> Result<()> {
        let mut failures = 0u32;
        while !self.stop.is_draining() {
            match self.follow(&mut failures).await {
                Ok(()) => return Ok(()),
                Err(fault) if is_fatal(&fault) => return Err(fault),
                Err(fault) => {
                    let pause = REOPEN.delay(failures, random::unit());
                    failures = failures.saturating_add(1);
                    tracing::warn!(error = %fault, pause = %humantime::format_duration(pause), "change stream interrupted, reopening");
                    if self.out.send(Ingested::Waiting(fault.what)).await.is_err() {
                        return Ok(());
                    }
                    tokio::select! {
                        () = tokio::time::sleep(pause) => {}
                        () = self.stop.draining() => {}
                    }
                }
            }
        }
        Ok(())
    }

    /// One open stream, until it breaks (`Err`) or the work is over (`Ok`).
    async fn follow(&mut self, failures: &mut u32) -> Result<()> {
        let identity = self.feed.identity().await?;
        if !same_source(&self.identity, &identity) {
            return Err(Fault::history_lost(format!(
                "the source is another deployment now ({identity}, the capture was started on {}): its history cannot continue here; start a new capture",
                self.identity
            )));
        }
        let mut cursor: Box<dyn FeedCursor> = self.feed.open(Some(&self.resume)).await?;
        if self.out.send(Ingested::Opened(cursor.fidelity())).await.is_err() {
            return Ok(());
        }
        while !self.stop.is_draining() {
            let reply = cursor.next().await?;
            *failures = 0;
            let token = reply.token()?.to_owned();
            if self.out.send(Ingested::Reply(reply)).await.is_err() {
                return Ok(());
            }
            self.resume = token;
        }
        Ok(())
    }
}

/// Reopening cannot help: the capture stops in a visible state.
fn is_fatal(fault: &Fault) -> bool {
    matches!(fault.kind, Kind::HistoryLost | Kind::Rejected | Kind::Corrupt | Kind::Config)
}
