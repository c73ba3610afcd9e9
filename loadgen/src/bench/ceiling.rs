//! The speed of light: the bare raw cursor of the driver over the backlog, events counted and dropped.
//!
//! Owns: reading the backlog with the options of the engine's own stream. Does not own comparing.

use std::time::Duration;

use argon::devkit::engine::cpu_seconds;
use argon::fault::{Fault, Result};
use argon::runtime::clock;
use bson::{Document, RawDocument, doc};
use futures_util::StreamExt;
use mongodb::error::Error;
use mongodb::options::ReadConcern;
use mongodb::raw_batch_cursor::RawBatchCursor;
use mongodb::{Client, Database};

use super::machine::Machine;

/// Reply sizes that are tried: the engine's (`capture::mongo`) and the driver's default, which leaves it to the server.
pub(super) const REPLY_EVENTS: [Option<u32>; 2] = [Some(4_000), None];
/// A backlog that stops coming is an error, not a hang.
const LIMIT: Duration = Duration::from_secs(600);

/// One reading of the backlog.
#[derive(Debug, Clone, Copy)]
pub(super) struct Reading {
    pub reply_events: Option<u32>,
    pub elapsed: Duration,
    /// CPU seconds of this process, the driver mostly.
    pub cpu_s: f64,
    /// Cores that other work on the machine took meanwhile.
    pub others: f64,
    /// CPU seconds of mongod.
    pub mongod_cpu_s: f64,
}

/// Reads `changes` events of `db` after `token`.
pub(super) async fn read(
    client: &Client,
    mongod: Option<u32>,
    db: &str,
    token: &Document,
    changes: u64,
    reply_events: Option<u32>,
) -> Result<Reading> {
    let cpu = || (cpu_seconds(std::process::id()).unwrap_or(0.0), mongod.and_then(cpu_seconds).unwrap_or(0.0));
    let before = cpu();
    let machine = Machine::now();
    let start = clock::now();
    let counted = tokio::time::timeout(LIMIT, count(&client.database(db), token, changes, reply_events)).await;
    let counted =
        counted.unwrap_or_else(|_| Err(Fault::transient(format!("the bare cursor did not deliver the backlog within {LIMIT:?}"))))?;
    let elapsed = start.elapsed();
    if counted != changes {
        return Err(Fault::corrupt(format!("the bare cursor delivered {counted} events, {changes} were written")));
    }
    let after = cpu();
    let (cpu_s, mongod_cpu_s) = (after.0 - before.0, after.1 - before.1);
    Ok(Reading { reply_events, elapsed, cpu_s, mongod_cpu_s, others: machine.others_since(cpu_s + mongod_cpu_s) })
}

async fn count(db: &Database, token: &Document, changes: u64, reply_events: Option<u32>) -> Result<u64> {
    let mut cursor = open(db, Some(token), reply_events).await?;
    let mut counted = 0;
    while counted < changes {
        let batch = cursor.next().await.ok_or_else(|| Fault::transient("the server closed the change stream"))?.map_err(failed)?;
        for event in batch.doc_slices().map_err(failed)? {
            // Touching each event is what counting them costs.
            event.map_err(|error| Fault::corrupt(error.to_string()))?;
            counted += 1;
        }
    }
    Ok(counted)
}

/// A token of now: what is written from here on comes after it.
pub(super) async fn token(db: &Database) -> Result<Document> {
    let mut cursor = open(db, None, None).await?;
    let batch = cursor.next().await.ok_or_else(|| Fault::transient("the server closed the change stream"))?.map_err(failed)?;
    let reply: &RawDocument = batch.as_raw_document();
    let token = reply.get_document("cursor").and_then(|cursor| cursor.get_document("postBatchResumeToken"));
    let token = token.map_err(|error| Fault::rejected(format!("the server sends no resume token: {error}")))?;
    Document::try_from(token).map_err(|error| Fault::corrupt(error.to_string()))
}

async fn open(db: &Database, after: Option<&Document>, reply_events: Option<u32>) -> Result<RawBatchCursor> {
    let mut stage =
        doc! { "showExpandedEvents": true, "showRawUpdateDescription": true, "showMigrationEvents": true, "showSystemEvents": true };
    if let Some(token) = after {
        stage.insert("startAfter", token.clone());
    }
    let stream = db.aggregate([doc! { "$changeStream": stage }]).read_concern(ReadConcern::majority());
    let stream = stream.max_await_time(Duration::from_millis(100));
    match reply_events {
        Some(events) => stream.batch_size(events).batch().await,
        None => stream.batch().await,
    }
    .map_err(failed)
}

#[allow(clippy::needless_pass_by_value)] // the shape of map_err
fn failed(error: Error) -> Fault {
    Fault::unknown(format!("the bare cursor: {error}"))
}
