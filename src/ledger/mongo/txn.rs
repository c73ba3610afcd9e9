//! Owns: running a transaction until its outcome is known or time is up. Does not own: what is in it.

use std::time::Duration;

use async_trait::async_trait;
use mongodb::ClientSession;
use mongodb::error::{Error, ErrorKind, TRANSIENT_TRANSACTION_ERROR, UNKNOWN_TRANSACTION_COMMIT_RESULT};
use mongodb::options::{ReadConcern, ReadPreference, SelectionCriteria, WriteConcern};

use super::Inner;
use super::classify::fault_of;
use crate::fault::{Fault, Result};
use crate::runtime::random;

/// Conflicts of a busy branch settle within a few rounds; this many mean that something else is wrong.
const MAX_ROUNDS: u32 = 100;
/// Tries to learn the outcome of one commit.
const MAX_COMMIT_TRIES: u32 = 10;

/// What a body wants.
pub(super) enum Then<T> {
    /// Commit, then this is the answer.
    Commit(T),
    /// Nothing to write: roll back, this is the answer.
    Abort(T),
}

/// Why a body stopped: the driver's error keeps its labels.
pub(super) enum Halt {
    Driver(Error),
    Fault(Fault),
}

impl From<Error> for Halt {
    fn from(e: Error) -> Self {
        Self::Driver(e)
    }
}

impl From<Fault> for Halt {
    fn from(f: Fault) -> Self {
        Self::Fault(f)
    }
}

/// The statements of a transaction. They may run several times, each time from scratch.
#[async_trait]
pub(super) trait Body: Send {
    type Out: Send;
    async fn run(&mut self, session: &mut ClientSession) -> Result<Then<Self::Out>, Halt>;
}

impl Inner {
    /// Runs a majority transaction. An error of kind `Unknown` means that the commit may have happened.
    pub(super) async fn transact<B: Body>(&self, body: &mut B) -> Result<B::Out> {
        let mut session = self.client.start_session().await.map_err(fault_of)?;
        let mut round = 0;
        loop {
            round += 1;
            session
                .start_transaction()
                .read_concern(ReadConcern::majority())
                .write_concern(WriteConcern::majority())
                .selection_criteria(SelectionCriteria::ReadPreference(ReadPreference::Primary))
                .await
                .map_err(fault_of)?;
            let error = match body.run(&mut session).await {
                Ok(Then::Commit(out)) => match commit(&mut session).await {
                    Ok(()) => return Ok(out),
                    Err(e) => e,
                },
                Ok(Then::Abort(out)) => {
                    // The server forgets it anyway when the session goes; its answer changes nothing.
                    let _ = session.abort_transaction().await;
                    return Ok(out);
                }
                Err(Halt::Fault(f)) => {
                    let _ = session.abort_transaction().await;
                    return Err(f);
                }
                Err(Halt::Driver(e)) => {
                    let _ = session.abort_transaction().await;
                    e
                }
            };
            // Without a server there is no point in going round: whoever called has a backoff of its own.
            let outage = matches!(&*error.kind, ErrorKind::ServerSelection { .. });
            if outage || round >= MAX_ROUNDS || !error.contains_label(TRANSIENT_TRANSACTION_ERROR) {
                return Err(fault_of(error));
            }
            pause(round).await;
        }
    }
}

/// Commits, and asks again while the outcome is unknown (a repeat of a commit is harmless).
async fn commit(session: &mut ClientSession) -> Result<(), Error> {
    let mut tries = 0;
    loop {
        tries += 1;
        match session.commit_transaction().await {
            Err(e) if e.contains_label(UNKNOWN_TRANSACTION_COMMIT_RESULT) && tries < MAX_COMMIT_TRIES => pause(tries).await,
            outcome => return outcome,
        }
    }
}

/// Full jitter up to 100 ms: long enough to let a conflicting transaction end, short against a lease.
async fn pause(round: u32) {
    let ceiling = 2u64.saturating_pow(round.min(6)).min(100);
    tokio::time::sleep(Duration::from_millis(ceiling).mul_f64(random::unit())).await;
}
