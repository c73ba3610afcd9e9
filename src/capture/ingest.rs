//! Ingest: reads replies of the change stream and keeps reading, whatever happens to the connection.
//!
//! Owns: the resume loop: which errors end it, how long it waits, the source's identity at every open (correctness.md 4, 7).
//! Does not own: the events' meaning (`assemble`), the stored checkpoint (`checkpoint`).

use std::sync::Arc;
use std::time::Duration;

use bson::RawDocumentBuf;

use crate::fault::{Fault, Kind, Result};
use crate::ledger::{Coverage, START_ANEW, has_id, same_source};
use crate::runtime::backoff::Backoff;
use crate::runtime::clock;
use crate::runtime::link::LinkTx;
use crate::runtime::random;
use crate::runtime::shutdown::Shutdown;

use super::feed::{FeedCursor, Reply, SharedFeed};
use crate::change::token_time;
use crate::telemetry::meters::{CaptureMeter, Meters, Stage};

/// Pauses between reopenings: quick after a stepdown, never at full speed.
const REOPEN: Backoff = Backoff { base: Duration::from_millis(200), cap: Duration::from_secs(10) };

/// A stream that has lived this long is healthy although nothing happens in it.
const HEALTHY_AFTER: Duration = Duration::from_secs(5);

/// What ingest tells the rest of the capture.
#[derive(Debug)]
pub(crate) enum Ingested {
    /// Consecutive events.
    Reply(Reply),
    /// The stream is open (again): what the server agreed to send.
    Opened(Coverage),
    /// It gives events, or has been quiet for long enough: nothing is waited for any more.
    Healthy,
    /// It is not open, for this reason; ingest goes on trying.
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
    /// Streams in a row that broke before they were healthy.
    failures: u32,
    /// The source has an id that it does not show at present.
    id_hidden: bool,
    metered: Option<(Meters, Arc<CaptureMeter>)>,
    /// The stream has been open before.
    was_open: bool,
}

impl Ingest {
    pub(crate) fn new(feed: SharedFeed, identity: String, resume: RawDocumentBuf, out: LinkTx<Ingested>, stop: Shutdown) -> Self {
        Self { feed, identity, resume, out, stop, failures: 0, id_hidden: false, metered: None, was_open: false }
    }

    /// With meters for what is read.
    pub(crate) fn metered(mut self, meters: Meters, capture: Arc<CaptureMeter>) -> Self {
        self.metered = Some((meters, capture));
        self
    }

    /// `waited`: the reply was asked for when the one before had brought everything there was.
    /// Whether the next one is waited for, too.
    fn count(&self, reply: &Reply, spent: Duration, waited: bool) -> bool {
        let Some((meters, capture)) = &self.metered else { return true };
        // A token that cannot be read is somebody else's to refuse.
        let Some(at) = reply.token().ok().and_then(|token| token_time(token).ok()) else { return true };
        let behind = match reply.server_time() {
            Some(server) if !reply.is_empty() => Duration::from_secs(u64::from(server.t.saturating_sub(at.t))),
            _ => Duration::ZERO,
        };
        capture.is_at(at.t, behind);
        if !reply.is_empty() {
            // Waiting for something to happen is no work.
            meters.stage(Stage::Ingest).done(if waited { Duration::ZERO } else { spent }, 0, reply.len() as u64);
        }
        behind.is_zero()
    }

    /// Ends with `Ok` when stopped, else with the fatal fault.
    ///
    /// SUBTLE: a driver future is never dropped half way (that can leave the driver inconsistent); the stop is looked at between
    /// replies, and a quiet stream answers every second.
    pub(crate) async fn run(mut self) -> Result<()> {
        while !self.stop.is_draining() {
            match self.follow().await {
                Ok(()) => return Ok(()),
                Err(fault) if is_fatal(&fault) => return Err(fault),
                Err(fault) => {
                    self.failures = self.failures.saturating_add(1);
                    let pause = REOPEN.delay(self.failures, random::unit());
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
    async fn follow(&mut self) -> Result<()> {
        let identity = self.feed.identity().await?;
        self.recognise(&identity)?;
        let mut cursor: Box<dyn FeedCursor> = self.feed.open(Some(&self.resume)).await?;
        if self.out.send(Ingested::Opened(cursor.coverage())).await.is_err() {
            return Ok(());
        }
        if let Some((_, capture)) = self.metered.as_ref().filter(|_| self.was_open) {
            capture.resumed();
        }
        self.was_open = true;
        let (opened, mut healthy, mut waits) = (clock::now(), false, true);
        while !self.stop.is_draining() {
            let asked = clock::now();
            let reply = cursor.next().await?;
            waits = self.count(&reply, asked.elapsed(), waits);
            // The first reply comes with the opening and says nothing: a stream that breaks at its first read answers it too.
            if !healthy && (!reply.is_empty() || opened.elapsed() >= HEALTHY_AFTER) {
                healthy = true;
                self.failures = 0;
                if self.out.send(Ingested::Healthy).await.is_err() {
                    return Ok(());
                }
            }
            let token = reply.token()?.to_owned();
            if self.out.send(Ingested::Reply(reply)).await.is_err() {
                return Ok(());
            }
            self.resume = token;
        }
        Ok(())
    }

    /// Refuses another deployment. Where the id cannot be read any more only the name is left to compare: true the first time, which is told.
    fn recognise(&mut self, seen: &str) -> Result<bool> {
        check_identity(&self.identity, seen)?;
        let hidden = has_id(&self.identity) && !has_id(seen);
        let news = hidden && !self.id_hidden;
        if news {
            tracing::warn!(
                known = %self.identity,
                "the source does not show its id any more, so another deployment of the same name would not be noticed: grant clusterMonitor on admin, or read on local"
            );
        }
        self.id_hidden = hidden;
        Ok(news)
    }
}

/// Refuses a deployment other than the one that the capture was started on.
pub(super) fn check_identity(stored: &str, seen: &str) -> Result<()> {
    if same_source(stored, seen) {
        return Ok(());
    }
    Err(Fault::history_lost(format!(
        "the source is another deployment now ({seen}, the capture was started on {stored}): its history cannot continue here. Correct the source's URI, or {START_ANEW}"
    )))
}

/// Reopening cannot help: the capture stops in a visible state. What an operator can put right (credentials, rights, settings of this
/// engine) is waited for instead, visibly: the position may still be there when they have.
fn is_fatal(fault: &Fault) -> bool {
    matches!(fault.kind, Kind::HistoryLost | Kind::Corrupt)
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use bson::doc;

    use super::super::{FaultyFeed, FeedFaults, MemoryFeed};
    use super::*;
    use crate::runtime::link::{LinkRx, link};

    const SOURCE: &str = "rs:set-1:1";

    fn ingest(feed: &MemoryFeed) -> (Ingest, Arc<FaultyFeed>, LinkRx<Ingested>) {
        let faulty = Arc::new(FaultyFeed::new(Arc::new(feed.clone()), FeedFaults::default()));
        let (out, replies) = link("replies", 16);
        (Ingest::new(faulty.clone(), SOURCE.into(), feed.present(), out, Shutdown::new()), faulty, replies)
    }

    fn told(replies: &mut LinkRx<Ingested>) -> Vec<&'static str> {
        let word = |item| match item {
            Ingested::Opened(_) => "opened",
            Ingested::Healthy => "healthy",
            Ingested::Waiting(_) => "waiting",
            Ingested::Reply(reply) if reply.is_empty() => "nothing",
            Ingested::Reply(_) => "events",
        };
        std::iter::from_fn(|| replies.try_recv()).map(word).collect()
    }

    #[tokio::test]
    async fn a_stream_that_breaks_at_its_first_read_every_time_is_never_taken_for_healthy() {
        let feed = MemoryFeed::new("shop", SOURCE);
        let (mut ingest, faulty, mut replies) = ingest(&feed);
        ingest.failures = 7;
        for _ in 0..5 {
            faulty.break_after(1);
            assert!(ingest.follow().await.unwrap_err().may_heal());
            assert_eq!(told(&mut replies), ["opened", "nothing"]);
            assert_eq!(ingest.failures, 7, "the pauses go on growing");
        }
        feed.insert("orders", &doc! { "_id": 1 }).unwrap();
        faulty.break_after(1);
        assert!(ingest.follow().await.unwrap_err().may_heal());
        assert_eq!(told(&mut replies), ["opened", "healthy", "events"]);
        assert_eq!(ingest.failures, 0);
    }

    #[test]
    fn rule_7_an_id_that_cannot_be_read_any_more_is_told_once() {
        let (mut ingest, _, _replies) = ingest(&MemoryFeed::new("shop", SOURCE));
        let told = ["rs:set-1:1", "rs:set-1", "rs:set-1", "rs:set-1:1", "rs:set-1"].map(|seen| ingest.recognise(seen).unwrap());
        assert_eq!(told, [false, true, false, false, true]);
        assert_eq!(ingest.recognise("rs:set-1:2").unwrap_err().kind, Kind::HistoryLost);
    }

    #[test]
    fn only_what_no_operator_can_put_right_is_fatal() {
        for fault in [Fault::history_lost("x"), Fault::corrupt("x")] {
            assert!(is_fatal(&fault), "{:?}", fault.kind);
        }
        for fault in [Fault::rejected("x"), Fault::config("x"), Fault::transient("x"), Fault::unknown("x"), Fault::missing("x")] {
            assert!(!is_fatal(&fault), "{:?}", fault.kind);
        }
        let other = check_identity("rs:a:1", "rs:a:2").unwrap_err();
        assert!(
            other.kind == Kind::HistoryLost && other.what.contains("Correct the source's URI") && other.what.contains(START_ANEW),
            "{other}"
        );
    }
}
