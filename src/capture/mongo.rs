//! The change feed of a MongoDB database: raw batches of a database-level change stream.
//!
//! Owns: the stream's options and their probing (correctness.md 1, 2), one attempt at opening and reading. Does not own: resuming.

use async_trait::async_trait;
use bson::{Document, RawDocument, doc};
use futures_util::StreamExt;
use mongodb::Client;
use mongodb::options::{ReadConcern, SelectionCriteria};
use mongodb::raw_batch_cursor::RawBatchCursor;

use crate::fault::{Fault, Kind, Result};
use crate::ledger::{Fidelity, MongoPhase, classify_mongo_error, server_facts};

use super::feed::{ChangeFeed, FeedCursor, Reply};

/// Events of one reply: enough to amortise the round trip, few enough that three replies in flight stay small.
const REPLY_EVENTS: u32 = 4_000;
/// How long the server holds an empty getMore: a quiet database costs one request a second.
const MAX_AWAIT: std::time::Duration = std::time::Duration::from_secs(1);

/// A server that says nothing for this long is taken for gone; it answers every second, but may be busy electing.
const SILENCE: std::time::Duration = std::time::Duration::from_secs(30);

/// What we ask of the stream, from the most to the least; the server refuses options it does not know.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Ask {
    /// Raw diffs, and what the stream hides otherwise.
    Everything,
    /// Raw diffs only.
    RawDiffs,
    /// Documented options only.
    Documented,
}

/// A followed database.
#[derive(Debug)]
pub struct MongoFeed {
    client: Client,
    db: String,
}

impl MongoFeed {
    /// Follows `db` through `client`.
    pub fn new(client: Client, db: &str) -> Self {
        Self { client, db: db.to_string() }
    }

    async fn aggregate(&self, after: Option<&RawDocument>, ask: Ask) -> Result<RawBatchCursor> {
        let mut stage = doc! { "showExpandedEvents": true };
        if ask != Ask::Documented {
            stage.insert("showRawUpdateDescription", true);
        }
        if ask == Ask::Everything {
            stage.insert("showMigrationEvents", true);
            stage.insert("showSystemEvents", true);
        }
        if let Some(token) = after {
            let token = Document::try_from(token).map_err(|e| Fault::corrupt(format!("stored resume token is damaged: {e}")))?;
            stage.insert("startAfter", token);
        }
        self.client
            .database(&self.db)
            .aggregate([doc! { "$changeStream": stage }])
            .batch_size(REPLY_EVENTS)
            .max_await_time(MAX_AWAIT)
            .read_concern(ReadConcern::majority())
            .selection_criteria(SelectionCriteria::ReadPreference(mongodb::options::ReadPreference::Primary))
            .batch()
            .await
            .map_err(|e| classify_mongo_error(&e, MongoPhase::Open))
    }
}

/// The server knows the command but not this option, or does not let us use it.
fn refuses_option(fault: &Fault) -> bool {
    fault.kind == Kind::Rejected || fault.what.contains("BSON field") || fault.what.contains("unknown field")
}

#[async_trait]
impl ChangeFeed for MongoFeed {
    async fn identity(&self) -> Result<String> {
        Ok(server_facts(&self.client).await?.identity)
    }

    async fn open(&self, after: Option<&RawDocument>) -> Result<Box<dyn FeedCursor>> {
        let mut refused = None;
        for ask in [Ask::Everything, Ask::RawDiffs, Ask::Documented] {
            match self.aggregate(after, ask).await {
                Ok(cursor) => {
                    let fidelity = if ask == Ask::Documented { Fidelity::OrderMayDiffer } else { Fidelity::Exact };
                    return Ok(Box::new(MongoCursor { cursor: Some(cursor), fidelity }));
                }
                Err(fault) if refuses_option(&fault) => refused = refused.or(Some(fault)),
                Err(fault) => return Err(fault),
            }
        }
        // The first refusal is the informative one: without the right to open a stream all three are alike.
        Err(refused.unwrap_or_else(|| Fault::unknown("the change stream did not open")))
    }
}

struct MongoCursor {
    /// Absent while a read is under way, and for good after one was abandoned.
    cursor: Option<RawBatchCursor>,
    fidelity: Fidelity,
}

#[async_trait]
impl FeedCursor for MongoCursor {
    /// SUBTLE: the driver has no time limit of its own, and its futures must not be dropped half way. So the read runs in a task; when the server,
    /// which answers every second, is silent for long, the task is abandoned with its cursor.
    async fn next(&mut self) -> Result<Reply> {
        let Some(mut cursor) = self.cursor.take() else { return Err(Fault::transient("the change stream was given up")) };
        let read = tokio::spawn(async move {
            let next = cursor.next().await;
            (cursor, next)
        });
        let (cursor, next) = match tokio::time::timeout(SILENCE, read).await {
            Ok(Ok(done)) => done,
            Ok(Err(e)) => return Err(Fault::unknown(format!("reading the change stream panicked: {e}"))),
            Err(_) => return Err(Fault::transient(format!("the server has not answered for {} s", SILENCE.as_secs()))),
        };
        match next {
            Some(Ok(batch)) => {
                self.cursor = Some(cursor);
                Ok(Reply::from(batch))
            }
            Some(Err(e)) => Err(classify_mongo_error(&e, MongoPhase::Run)),
            None => Err(Fault::transient("the server closed the change stream")),
        }
    }

    fn fidelity(&self) -> Fidelity {
        self.fidelity
    }
}
