//! The change feed of a MongoDB database: raw batches of a database-level change stream.
//!
//! Owns: the stream's options and their probing (correctness.md 1, 2), one attempt at opening and reading. Does not own: resuming.

use async_trait::async_trait;
use bson::{Document, RawDocument, doc};
use futures_util::StreamExt;
use mongodb::Client;
use mongodb::options::{ReadConcern, SelectionCriteria};
use mongodb::raw_batch_cursor::RawBatchCursor;

use crate::change::ClusterTime;
use crate::fault::{Fault, Kind, Result};
use crate::ledger::{Coverage, Fidelity, MongoPhase, classify_mongo_error, oldest_in_oplog, server_facts};

use super::feed::{ChangeFeed, FeedCursor, Reply};

/// Events of one reply: enough to amortise the round trip, few enough that three replies in flight stay small.
const REPLY_EVENTS: u32 = 4_000;
/// How long the server holds an empty getMore: what a quiet database costs. Events end it at once.
const MAX_AWAIT: std::time::Duration = std::time::Duration::from_secs(2);

/// A server that says nothing for this long is taken for gone; it answers every other second, but may be busy electing.
const SILENCE: std::time::Duration = std::time::Duration::from_secs(30);

/// What we ask of the stream; the server refuses options it does not know, or that the user may not use.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Ask {
    /// `showRawUpdateDescription`: the server's own diffs (correctness.md 1).
    raw_diffs: bool,
    /// `showMigrationEvents`, `showSystemEvents`: what the stream hides otherwise (correctness.md 2).
    hidden: bool,
}

/// From the most to the least: exact diffs matter to every document, what is hidden to a few.
const ASKS: [Ask; 4] = [
    Ask { raw_diffs: true, hidden: true },
    Ask { raw_diffs: true, hidden: false },
    Ask { raw_diffs: false, hidden: true },
    Ask { raw_diffs: false, hidden: false },
];

/// Told of a branch of which a stretch was read without what the stream hides.
const HIDDEN: &str = "collections filled by cloneCollectionAsCapped or convertToCapped, time-series collections, system.js: the source refuses showMigrationEvents and showSystemEvents";

impl Ask {
    fn coverage(self) -> Coverage {
        Coverage {
            fidelity: if self.raw_diffs { Fidelity::Exact } else { Fidelity::OrderMayDiffer },
            uncovered: if self.hidden { Vec::new() } else { vec![HIDDEN.to_owned()] },
        }
    }
}

/// Opens with the most that the server agrees to, and says what that is.
async fn open_with_most<C, F>(mut open: impl FnMut(Ask) -> F) -> Result<(C, Coverage)>
where
    F: Future<Output = Result<C>>,
{
    let mut refused = None;
    for ask in ASKS {
        match open(ask).await {
            Ok(cursor) => return Ok((cursor, ask.coverage())),
            Err(fault) if refuses_option(&fault) => refused = refused.or(Some(fault)),
            Err(fault) => return Err(fault),
        }
    }
    // The first refusal is the informative one: without the right to open a stream all are alike.
    Err(refused.unwrap_or_else(|| Fault::unknown("the change stream did not open")))
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
        if ask.raw_diffs {
            stage.insert("showRawUpdateDescription", true);
        }
        if ask.hidden {
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

    async fn oldest_kept(&self) -> Result<Option<ClusterTime>> {
        let client = self.client.clone();
        let asked = tokio::spawn(async move { oldest_in_oplog(&client).await });
        asked.await.map_err(|e| Fault::unknown(format!("looking at the oplog panicked: {e}")))?
    }

    async fn open(&self, after: Option<&RawDocument>) -> Result<Box<dyn FeedCursor>> {
        let (cursor, coverage) = open_with_most(|ask| self.aggregate(after, ask)).await?;
        Ok(Box::new(MongoCursor { cursor: Some(cursor), coverage }))
    }
}

struct MongoCursor {
    /// Absent while a read is under way, and for good after one was abandoned.
    cursor: Option<RawBatchCursor>,
    coverage: Coverage,
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
            Some(Err(e)) => Err(classify_mongo_error(&e, MongoPhase::Read)),
            None => Err(Fault::transient("the server closed the change stream")),
        }
    }

    fn coverage(&self) -> Coverage {
        self.coverage.clone()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn unknown_option() -> Fault {
        Fault::rejected("MongoDB: BSON field '$changeStream.showX' is an unknown field (code 40415)")
    }

    #[tokio::test]
    async fn rules_1_and_2_what_the_server_refuses_is_marked() {
        for (raw_diffs, hidden, asked) in [(true, true, 1), (true, false, 2), (false, true, 3), (false, false, 4)] {
            let mut asks = 0;
            let opened = open_with_most(|ask| {
                asks += 1;
                let takes = (raw_diffs || !ask.raw_diffs) && (hidden || !ask.hidden);
                async move { if takes { Ok(ask) } else { Err(unknown_option()) } }
            });
            let (ask, coverage) = opened.await.unwrap();
            assert_eq!((ask, asks), (Ask { raw_diffs, hidden }, asked));
            assert_eq!(coverage.fidelity == Fidelity::Exact, raw_diffs);
            assert_eq!(coverage.uncovered.is_empty(), hidden);
            assert_eq!(coverage == Coverage::full(), raw_diffs && hidden);
        }
    }

    #[tokio::test]
    async fn a_refusal_of_all_is_told_by_the_first_and_an_outage_is_no_refusal() {
        let mut asks = 0;
        let mut open = |fault: fn(i32) -> Fault| {
            asks += 1;
            let fault = fault(asks);
            async move { Err::<(), _>(fault) }
        };
        let all = open_with_most(|_| open(|n| Fault::rejected(format!("no right, {n}")))).await.unwrap_err();
        assert_eq!(all.what, "no right, 1");
        let outage = open_with_most(|_| open(|n| Fault::transient(format!("no primary, {n}")))).await.unwrap_err();
        assert_eq!((outage.what.as_str(), outage.kind), ("no primary, 5", Kind::Transient));
        assert_eq!(asks, 5);
    }
}
