//! Owns: ending the transactions that a dead process has left open. Does not own: who is dead (`engines`).
//!
//! SUBTLE: MongoDB does not end a transaction when its client is gone, but when it is `transactionLifetimeLimitSeconds` (60) old. Until then it
//! holds what it has written: the capture and jobs of a process that was killed in the middle of a checkpoint or commit could not be
//! taken from it for a minute. So whoever rescues looks for open transactions by the name under which the process connected, and kills their
//! sessions. A user may see and kill the sessions of the same user without further rights; where that is refused, time does it.
//! A statement that was still on its way (in a socket, in a proxy) can open such a transaction after that, so those who were rescued are
//! remembered for a while and looked at again in every round.

use std::time::Duration;

use bson::{Bson, Document, doc};
use futures_util::TryStreamExt;

use super::super::EngineId;
use super::Inner;
use super::classify::fault_of;
use crate::fault::Result;
use crate::runtime::{clock, identity};

/// Longer than the server keeps an open transaction.
const REMEMBERED: Duration = Duration::from_secs(70);
/// More died within a minute than anybody runs: the oldest are forgotten.
const MAX_REMEMBERED: usize = 100;

impl Inner {
    /// Looks again, in later rounds, for what this process has left open.
    pub(super) fn remember_rescued(&self, engine: &str) {
        let mut rescued = self.rescued.lock();
        if rescued.len() >= MAX_REMEMBERED {
            rescued.remove(0);
        }
        rescued.push((engine.to_owned(), clock::now()));
    }

    /// Ends what processes that were rescued lately have opened since.
    pub(super) async fn end_late_transactions(&self) {
        let engines: Vec<EngineId> = {
            let mut rescued = self.rescued.lock();
            rescued.retain(|(_, at)| at.elapsed() < REMEMBERED);
            rescued.iter().map(|(engine, _)| engine.clone()).collect()
        };
        self.end_transactions(&engines).await;
    }

    /// Ends what the process of `engine` has left open; never fails, since it only makes the rescue faster.
    pub(super) async fn end_transactions_of(&self, engine: &str) {
        self.end_transactions(&[engine.to_owned()]).await;
    }

    async fn end_transactions(&self, engines: &[EngineId]) {
        // An earlier engine of this very process: its connections are ours.
        let tags: Vec<&str> =
            engines.iter().filter_map(|engine| identity::tag_of(engine)).filter(|tag| *tag != identity::process_tag()).collect();
        if tags.is_empty() {
            return;
        }
        match self.kill_open(&tags).await {
            Ok(0) => {}
            Ok(ended) => tracing::info!(?engines, ended, "ended the transactions that a dead process had left open"),
            Err(fault) => {
                tracing::debug!(?engines, error = %fault, "could not end the transactions of a dead process; the server does after a minute")
            }
        }
    }

    async fn kill_open(&self, tags: &[&str]) -> Result<usize> {
        let admin = self.client.database("admin");
        let all = doc! { "$currentOp": { "idleSessions": true, "allUsers": false } };
        let open = doc! { "$match": { "transaction": { "$exists": true }, "lsid.id": { "$exists": true } } };
        let wanted = doc! { "$project": { "appName": 1, "id": "$lsid.id" } };
        let found: Vec<Document> = admin.aggregate([all, open, wanted]).await.map_err(fault_of)?.try_collect().await.map_err(fault_of)?;
        let theirs =
            |op: &Document| op.get_str("appName").is_ok_and(|name| name.split(' ').next_back().is_some_and(|tag| tags.contains(&tag)));
        let sessions: Vec<Bson> =
            found.iter().filter(|op| theirs(op)).filter_map(|op| op.get("id")).map(|id| doc! { "id": id.clone() }.into()).collect();
        let count = sessions.len();
        if count > 0 {
            admin.run_command(doc! { "killSessions": sessions }).await.map_err(fault_of)?;
        }
        Ok(count)
    }
}
