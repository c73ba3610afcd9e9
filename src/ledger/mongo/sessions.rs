//! Owns: ending the transactions that a dead process has left open. Does not own: who is dead (`engines`).
//!
//! SUBTLE: MongoDB does not end a transaction when its client is gone, but when it is `transactionLifetimeLimitSeconds` (60) old. Until then it
//! holds what it has written: the capture and jobs of a process that was killed in the middle of a checkpoint or commit could not be
//! taken from it for a minute. So whoever rescues looks for open transactions by the name under which the process connected, and kills their
//! sessions. A user may see and kill the sessions of the same user without further rights; where that is refused, time does it.

use bson::{Bson, Document, doc};
use futures_util::TryStreamExt;

use super::Inner;
use super::classify::fault_of;
use crate::fault::Result;
use crate::runtime::identity;

impl Inner {
    /// Ends what the process of `engine` has left open; never fails, since it only makes the rescue faster.
    pub(super) async fn end_transactions_of(&self, engine: &str) {
        // An earlier engine of this very process: its connections are ours.
        let Some(tag) = identity::tag_of(engine).filter(|tag| *tag != identity::process_tag()) else { return };
        match self.kill_open(tag).await {
            Ok(0) => {}
            Ok(ended) => tracing::info!(engine, ended, "ended the transactions that a dead process had left open"),
            Err(fault) => {
                tracing::debug!(engine, error = %fault, "could not end the transactions of a dead process; the server does after a minute")
            }
        }
    }

    async fn kill_open(&self, tag: &str) -> Result<usize> {
        let admin = self.client.database("admin");
        let all = doc! { "$currentOp": { "idleSessions": true, "allUsers": false } };
        let open = doc! { "$match": { "transaction": { "$exists": true }, "lsid.id": { "$exists": true } } };
        let wanted = doc! { "$project": { "appName": 1, "id": "$lsid.id" } };
        let found: Vec<Document> = admin.aggregate([all, open, wanted]).await.map_err(fault_of)?.try_collect().await.map_err(fault_of)?;
        let theirs = |op: &Document| op.get_str("appName").is_ok_and(|name| name.split(' ').next_back() == Some(tag));
        let sessions: Vec<Bson> =
            found.iter().filter(|op| theirs(op)).filter_map(|op| op.get("id")).map(|id| doc! { "id": id.clone() }.into()).collect();
        let count = sessions.len();
        if count > 0 {
            admin.run_command(doc! { "killSessions": sessions }).await.map_err(fault_of)?;
        }
        Ok(count)
    }
}
