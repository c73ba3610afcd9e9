//! Why a running capture waits, as the metadata shows it.
//!
//! Owns: the two reasons there may be at a time (the source is not to be had, the queue is full), which of them is told, and telling it.
//! Does not own: knowing them (`ingest`, `checkpoint`).

use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;

use crate::ledger::{CaptureId, SharedLedger};

/// How long telling may take: it is worth little, and the stages wait behind it.
const TELLING: Duration = Duration::from_secs(5);

/// Who waits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum By {
    /// The stream is not open. The graver one: the oplog moves on meanwhile whatever the workers do.
    Source,
    /// The queue takes no more.
    Queue,
}

/// Shared by the stages of one capture.
#[derive(Debug, Clone)]
pub(crate) struct Waits(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    ledger: SharedLedger,
    capture: CaptureId,
    fence: u64,
    now: Mutex<Reasons>,
    /// What the metadata is known to show; unknown at first, and whoever owned the capture before may have left something there.
    told: tokio::sync::Mutex<Option<Option<String>>>,
}

#[derive(Debug, Default)]
struct Reasons {
    source: Option<String>,
    queue: Option<String>,
}

impl Waits {
    pub(crate) fn new(ledger: SharedLedger, capture: CaptureId, fence: u64) -> Self {
        Self(Arc::new(Inner { ledger, capture, fence, now: Mutex::default(), told: tokio::sync::Mutex::default() }))
    }

    /// Notes what one of the two waits for, or that it no longer does, and tells the graver reason that is left. Failing to tell is no failure of the
    /// capture; the next call makes up for it.
    pub(crate) async fn set(&self, by: By, reason: Option<&str>) {
        {
            let mut now = self.0.now.lock();
            let mine = match by {
                By::Source => &mut now.source,
                By::Queue => &mut now.queue,
            };
            *mine = reason.map(str::to_owned);
        }
        if tokio::time::timeout(TELLING, self.tell()).await.is_err() {
            tracing::debug!("noting why the capture waits took too long");
        }
    }

    async fn tell(&self) {
        let inner = &*self.0;
        let mut told = inner.told.lock().await;
        let graver = {
            let now = inner.now.lock();
            now.source.clone().or_else(|| now.queue.clone())
        };
        if told.as_ref() == Some(&graver) {
            return;
        }
        // Until it is answered nobody knows what is shown.
        *told = None;
        match inner.ledger.note_capture(&inner.capture, inner.fence, graver.as_deref()).await {
            Ok(()) => *told = Some(graver),
            Err(fault) => tracing::debug!(error = %fault, "could not note why the capture waits"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::branch::testing::Bed;
    use crate::ledger::{FaultyLedger, Ledger, LedgerCall, LedgerFaults, Mishap};

    #[tokio::test]
    async fn a_source_that_is_back_does_not_hide_that_the_queue_is_full() {
        let bed = Bed::new().await;
        let capture = bed.ledger.captures().await.unwrap().remove(0);
        let reason = async || bed.ledger.capture(&capture.id).await.unwrap().unwrap().reason;
        let ledger = Arc::new(FaultyLedger::new(bed.ledger.clone(), LedgerFaults::none()));
        bed.ledger.note_capture(&capture.id, capture.fence, Some("left by whoever was here before")).await.unwrap();
        let waits = Waits::new(ledger.clone(), capture.id.clone(), capture.fence);
        for (by, set, shown) in [
            (By::Source, None, None),
            (By::Queue, Some("full"), Some("full")),
            (By::Source, Some("no primary"), Some("no primary")),
            (By::Queue, None, Some("no primary")),
            (By::Queue, Some("full"), Some("no primary")),
            (By::Source, None, Some("full")),
            (By::Queue, None, None),
        ] {
            waits.set(by, set).await;
            assert_eq!(reason().await.as_deref(), shown, "{by:?} {set:?}");
        }
        for mishap in [Mishap::Before, Mishap::AnswerLost] {
            ledger.script(LedgerCall::NoteCapture, mishap);
            waits.set(By::Source, Some("no primary")).await;
            waits.set(By::Source, None).await;
            assert_eq!(reason().await, None, "{mishap:?}");
            ledger.script(LedgerCall::NoteCapture, mishap);
            waits.set(By::Queue, Some("full")).await;
            waits.set(By::Queue, Some("full")).await;
            assert_eq!(reason().await.as_deref(), Some("full"), "{mishap:?}");
            waits.set(By::Queue, None).await;
        }
    }
}
