//! Start marks: those that wait together go together, in one write.
//!
//! Owns: grouping. Does not own: when a mark is due (`jobs::Mark`), what it is good for (`queue::after_crash`).
//! There is no timer: while one write is in flight the next group gathers.

use tokio::sync::oneshot;

use super::in_work::InWork;
use crate::fault::{Fault, Result};
use crate::ledger::{JobLease, SharedLedger};
use crate::runtime::link::{LinkRx, LinkTx};
use crate::telemetry::meters::{LinkName, Meters};

/// Waiting marks: every worker has at most one.
const WAITING: usize = 64;

type Mark = (JobLease, Option<oneshot::Sender<Result<bool>>>);

/// Hands marks to the marker.
#[derive(Debug, Clone)]
pub struct MarkHandle(LinkTx<Mark>);

impl MarkHandle {
    /// Marks and waits for the outcome; false when the job is not ours any more.
    pub async fn mark(&self, lease: &JobLease) -> Result<bool> {
        let (tx, rx) = oneshot::channel();
        let gone = || Fault::cancelled("the marker has stopped");
        self.0.send((lease.clone(), Some(tx))).await.map_err(|_| gone())?;
        rx.await.map_err(|_| gone())?
    }

    /// Marks without waiting; an attempt that turns out not to be ours is told to stop.
    pub(crate) async fn mark_aside(&self, lease: &JobLease) {
        // Gone only when nothing can be marked any more.
        let _ = self.0.send((lease.clone(), None)).await;
    }
}

/// The stage; ends when the last handle is gone.
#[derive(Debug)]
pub struct Marker {
    ledger: SharedLedger,
    in_work: InWork,
    inbox: LinkRx<Mark>,
}

impl Marker {
    /// A marker and its handle.
    pub fn new(ledger: SharedLedger, in_work: InWork, meters: &Meters) -> (Self, MarkHandle) {
        let (tx, inbox) = meters.link(LinkName::Marks).link(WAITING);
        (Self { ledger, in_work, inbox }, MarkHandle(tx))
    }

    /// Serves until every handle is gone.
    pub async fn run(mut self) {
        while let Some(first) = self.inbox.recv().await {
            let mut group = vec![first];
            while group.len() < WAITING
                && let Some(next) = self.inbox.try_recv()
            {
                group.push(next);
            }
            // Whoever has stopped waiting has given its lease back, or lost it.
            group.retain(|(_, answer)| answer.as_ref().is_none_or(|answer| !answer.is_closed()));
            if !group.is_empty() {
                self.step(group).await;
            }
        }
    }

    async fn step(&self, group: Vec<Mark>) {
        let (leases, answers): (Vec<_>, Vec<_>) = group.into_iter().unzip();
        let outcome = self.ledger.start_many(&leases).await;
        for (i, (lease, answer)) in leases.iter().zip(answers).enumerate() {
            let one = match &outcome {
                Ok(all) => all.get(i).copied().ok_or_else(|| Fault::unknown("the ledger answered fewer marks than asked")),
                Err(fault) => Err(fault.clone()),
            };
            match (answer, one) {
                (Some(answer), one) => drop(answer.send(one)),
                (None, Ok(false)) => self.in_work.lost(lease),
                // What is not marked only spares the job a crash.
                (None, Ok(true) | Err(_)) => {}
            }
        }
    }
}
