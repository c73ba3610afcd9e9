//! Owns: several update statements in one command. The driver has that for servers from 8.0 on only.
//! Does not own: what is updated, or what a statement that was refused means.

use bson::{Bson, Document, doc};
use mongodb::ClientSession;
use mongodb::error::Error;
use serde::Deserialize;

use super::Inner;
use super::classify::fault_of;
use super::txn::Halt;
use crate::fault::{Fault, Result};

/// What an update command did, statement by statement where it matters.
#[derive(Debug, Default, Deserialize)]
pub(super) struct Updated {
    /// Documents that fitted, inserted ones included.
    #[serde(rename = "n", default)]
    pub(super) matched: u64,
    #[serde(default)]
    pub(super) upserted: Vec<Upserted>,
    #[serde(default, rename = "writeErrors")]
    pub(super) errors: Vec<Refused>,
    #[serde(default, rename = "writeConcernError")]
    concern: Option<Concern>,
}

/// A statement that has inserted.
#[derive(Debug, Deserialize)]
pub(super) struct Upserted {
    pub(super) index: usize,
}

/// A statement that was refused; the others have gone on.
#[derive(Debug, Deserialize)]
pub(super) struct Refused {
    pub(super) index: usize,
    pub(super) code: i32,
    #[serde(default)]
    pub(super) errmsg: String,
}

#[derive(Debug, Deserialize)]
struct Concern {
    #[serde(default)]
    code: i32,
    #[serde(default)]
    errmsg: String,
}

/// How safe an update has to be before its answer comes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Safe {
    Majority,
    /// What a failover may lose.
    Primary,
}

/// One statement: all documents of a filter by ids.
pub(super) fn update_many(filter: Document, set: Document) -> Document {
    doc! { "q": filter, "u": [{ "$set": set }], "multi": true, "hint": { "_id": 1 } }
}

impl Inner {
    /// Each statement on its own: one that is refused does not stop the others.
    pub(super) async fn update_all(&self, coll: &str, statements: Vec<Document>, safe: Safe) -> Result<Updated> {
        if statements.is_empty() {
            return Ok(Updated::default());
        }
        let mut command = command(coll, statements);
        let w: Bson = if safe == Safe::Majority { "majority".into() } else { 1.into() };
        command.insert("writeConcern", doc! { "w": w });
        let done = read(self.db.run_command(command).await.map_err(fault_of)?)?;
        match done.concern {
            // Not safe yet, and nobody knows whether it will be.
            Some(concern) => Err(Fault::unknown(format!("MongoDB: {} (code {})", concern.errmsg, concern.code))),
            None => Ok(done),
        }
    }

    /// The same as part of a transaction, where a statement that is refused ends it.
    pub(super) async fn update_all_in(&self, session: &mut ClientSession, coll: &str, statements: Vec<Document>) -> Result<Updated, Halt> {
        if statements.is_empty() {
            return Ok(Updated::default());
        }
        let reply = self.db.run_command(command(coll, statements)).session(session).await;
        let done = read(reply.map_err(|e: Error| Halt::Driver(e))?)?;
        match done.errors.first() {
            Some(refused) => Err(Fault::unknown(format!("MongoDB: {} (code {})", refused.errmsg, refused.code)).into()),
            None => Ok(done),
        }
    }
}

fn command(coll: &str, statements: Vec<Document>) -> Document {
    doc! { "update": coll, "updates": statements, "ordered": false }
}

fn read(reply: Document) -> Result<Updated> {
    bson::deserialize_from_document(reply)
        .map_err(|e| Fault::unknown(format!("MongoDB: an update was answered in a way that cannot be read: {e}")))
}
