//! Finding what the stream of a source does not tell of its catalogue (correctness.md 14): listings are compared with the folded catalogue, and what differs becomes
//! a change of its own in history.
//!
//! Owns: when it is compared, and up to which change the comparison holds. Does not own: what differs (`branch::catalogue::differ`), where in history it goes
//! (`capture::assemble`, which drops what has been overtaken by events).

use std::time::Duration;

use tokio::sync::mpsc;

use super::captures::SourceOpener;
use crate::branch::catalogue::{Catalogue, differ, read_catalogue};
use crate::branch::history::History;
use crate::branch::point::{Bound, Point};
use crate::branch::replay;
use crate::capture::Seen;
use crate::change::ClusterTime;
use crate::fault::{Kind, Result};
use crate::jobs::snapshot;
use crate::ledger::{Capture, SharedLedger};
use crate::runtime::{clock, random};
use crate::store::Store;

/// How long history may take to reach the listing; then it is compared another time.
const PATIENCE: Duration = Duration::from_secs(60);
const POLL: Duration = Duration::from_millis(500);

/// Compares one capture's source with its history for as long as it runs here.
pub(super) struct Compare {
    pub(super) ledger: SharedLedger,
    pub(super) store: Store,
    pub(super) sources: std::sync::Arc<dyn SourceOpener>,
    pub(super) capture: Capture,
    pub(super) interval: Duration,
    pub(super) found: mpsc::Sender<Seen>,
}

impl Compare {
    /// Until nobody listens. A failure is looked at again at the next interval.
    pub(super) async fn run(self) {
        if self.interval.is_zero() {
            return;
        }
        loop {
            tokio::select! {
                () = tokio::time::sleep(random::jitter(self.interval)) => {}
                () = self.found.closed() => return,
            }
            match self.once().await {
                Ok(Some(seen)) => {
                    let new = seen.observed.collections.len();
                    tracing::warn!(
                        branch = %self.capture.branch_name, collections = new, dropped = seen.observed.dropped.len(), views = seen.observed.views.len(),
                        "the source's catalogue differs from what its stream told: recorded as observed"
                    );
                    if self.found.send(seen).await.is_err() {
                        return;
                    }
                }
                Ok(None) => {}
                Err(fault) => tracing::debug!(branch = %self.capture.branch_name, error = %fault, "could not compare catalogues"),
            }
        }
    }

    /// What differs, if anything, and can be said for sure.
    async fn once(&self) -> Result<Option<Seen>> {
        let db = self.sources.database(&self.capture.source).await?;
        let (mut live, time) = read_catalogue(&db).await?;
        let (mut again, _) = read_catalogue(&db).await?;
        live.retain(&self.capture.source.selection);
        again.retain(&self.capture.source.selection);
        // What changed meanwhile is in the stream.
        if live.collections != again.collections || live.views != again.views {
            return Ok(None);
        }
        let Some(history) = self.reached(time).await? else { return Ok(None) };
        let (at, ours) = match self.folded(&history, time).await {
            // Before the first base, or behind a gap: there is nothing to compare with yet.
            Err(fault) if fault.kind == Kind::Rejected => return Ok(None),
            folded => folded?,
        };
        let observed = differ(&live, &ours, time);
        if observed.is_empty() {
            return Ok(None);
        }
        // Of a collection that came by itself the documents are not in history either: only a copy has them.
        let came = observed.collections.iter().any(|c| !ours.collections.contains_key(&c.uuid));
        if came && !snapshot::enqueue_anew(&self.ledger, &self.capture.branch).await? {
            return Ok(None); // another copy is being made, which may have begun too early
        }
        Ok(Some(Seen { observed, as_of: at }))
    }

    async fn folded(&self, history: &History, time: ClusterTime) -> Result<(u64, Catalogue)> {
        let at = history.locate(Point::Time(time)).await?;
        Ok((at.seq, replay::catalogue(history, Bound::Seq(at.seq), false).await?))
    }

    /// History, once everything up to `time` is in it.
    async fn reached(&self, time: ClusterTime) -> Result<Option<History>> {
        let began = clock::now();
        loop {
            let history = History::open(self.ledger.clone(), self.store.clone(), &self.capture.branch).await?;
            if history.captured_until.is_some_and(|until| until >= time) {
                return Ok(Some(history));
            }
            if began.elapsed() >= PATIENCE {
                return Ok(None);
            }
            tokio::time::sleep(POLL).await;
        }
    }
}
