//! The change feed: where changes come from.
//!
//! Owns: the port and its item, one server reply. Does not own: resuming (`ingest`), meaning of events (`change`).

use std::sync::Arc;

use async_trait::async_trait;
use bson::{RawDocument, RawDocumentBuf};
use mongodb::raw_batch_cursor::RawBatch;

use crate::change::ClusterTime;
use crate::fault::{Fault, Result};
use crate::ledger::Coverage;

/// A feed shared by tasks.
pub type SharedFeed = Arc<dyn ChangeFeed>;

/// A source that can be followed.
#[async_trait]
pub trait ChangeFeed: Send + Sync + std::fmt::Debug {
    /// Identity of the deployment (correctness.md 7): a token of another one must never be used.
    async fn identity(&self) -> Result<String>;
    /// Opens the stream right after `token`, or at the present. `HistoryLost` when the token is no longer served.
    async fn open(&self, after: Option<&RawDocument>) -> Result<Box<dyn FeedCursor>>;
    /// From when on the source keeps changes: a position before it is lost. `None` where that cannot be read.
    async fn oldest_kept(&self) -> Result<Option<ClusterTime>> {
        Ok(None)
    }
}

/// An open stream. After any error it is dropped and a new one opened (correctness.md 4).
#[async_trait]
pub trait FeedCursor: Send {
    /// The next reply; on a quiet source an empty one with a fresh token, about every second.
    async fn next(&mut self) -> Result<Reply>;
    /// What the server agreed to send.
    fn coverage(&self) -> Coverage;
}

/// One reply of the server: consecutive events and the token after them.
#[derive(Debug, Clone)]
pub struct Reply(Bytes);

#[derive(Debug, Clone)]
enum Bytes {
    /// As the driver received it: no copy.
    Driver(RawBatch),
    /// Made by a twin.
    Own(RawDocumentBuf),
}

impl From<RawBatch> for Reply {
    fn from(batch: RawBatch) -> Self {
        Self(Bytes::Driver(batch))
    }
}

impl Reply {
    /// Wraps the whole reply document `{cursor: {firstBatch|nextBatch, postBatchResumeToken}}`.
    pub fn new(reply: RawDocumentBuf) -> Self {
        Self(Bytes::Own(reply))
    }

    fn document(&self) -> &RawDocument {
        match &self.0 {
            Bytes::Driver(batch) => batch.as_raw_document(),
            Bytes::Own(reply) => reply,
        }
    }

    fn cursor(&self) -> Result<&RawDocument> {
        self.document().get_document("cursor").map_err(|e| Fault::corrupt(format!("change stream reply without cursor: {e}")))
    }

    /// The events in order.
    pub fn events(&self) -> Result<impl Iterator<Item = Result<&RawDocument>>> {
        let cursor = self.cursor()?;
        let batch = cursor
            .get_array("nextBatch")
            .or_else(|_| cursor.get_array("firstBatch"))
            .map_err(|e| Fault::corrupt(format!("change stream reply without batch: {e}")))?;
        Ok(batch.into_iter().map(|item| match item {
            Ok(item) => item.as_document().ok_or_else(|| Fault::corrupt("change stream event is not a document")),
            Err(e) => Err(Fault::corrupt(format!("change stream event is damaged: {e}"))),
        }))
    }

    /// `postBatchResumeToken`: resumes after the whole reply.
    pub fn token(&self) -> Result<&RawDocument> {
        self.cursor()?
            .get_document("postBatchResumeToken")
            .map_err(|_| Fault::rejected("the server sends no postBatchResumeToken: MongoDB 6.0 or newer is needed"))
    }

    /// The newest time that the server knew when it answered.
    pub fn server_time(&self) -> Option<ClusterTime> {
        let time = self.document().get_timestamp("operationTime").ok()?;
        Some(ClusterTime { t: time.time, i: time.increment })
    }

    /// Bytes held.
    pub fn len(&self) -> usize {
        self.document().as_bytes().len()
    }

    /// Whether it holds no event.
    pub fn is_empty(&self) -> bool {
        self.events().map_or(true, |mut events| events.next().is_none())
    }
}
