//! Owns: lifetime figures, written in the transaction of what they count. Does not own: what is counted (each transaction says it).
//!
//! Each engine has one document for each of its writers, so that none of them waits for another's transaction: `{_id: "<engine>/commit", engine, done:
//! {sync: n}, …}`. When the engine has gone, they are added to the one of [`TOTAL`], which is also where operators and rescuers count.

use bson::{Document, doc};
use futures_util::TryStreamExt;
use mongodb::{ClientSession, Collection};

use super::super::Counters;
use super::Inner;
use super::classify::fault_of;
use super::rows::int;
use super::txn::Halt;
use crate::fault::Result;

/// Id of the document of everybody who has gone, and of operators.
const TOTAL: &str = "total";

/// Who counts.
#[derive(Debug, Clone, Copy)]
pub(super) enum Writer<'a> {
    /// The committer of an engine.
    Commit(&'a str),
    /// The ends of an engine's other jobs.
    Finish(&'a str),
    /// The failures of an engine.
    Fail(&'a str),
    /// Operators and rescuers.
    Anybody,
}

impl Writer<'_> {
    fn document(self) -> (String, Document) {
        let (engine, part) = match self {
            Self::Commit(engine) => (engine, "commit"),
            Self::Finish(engine) => (engine, "finish"),
            Self::Fail(engine) => (engine, "fail"),
            Self::Anybody => return (TOTAL.to_owned(), doc! {}),
        };
        (format!("{engine}/{part}"), doc! { "engine": engine })
    }
}

impl Inner {
    pub(super) fn counters_coll(&self) -> Collection<Document> {
        self.db.collection("counters")
    }

    /// Adds to the figures of a writer. The last statement of a transaction: whoever counts in the same document waits until it is over.
    pub(super) async fn count(&self, session: &mut ClientSession, who: Writer<'_>, what: &Counters) -> Result<(), Halt> {
        let inc: Document = what.entries().into_iter().map(|(field, kind, n)| (format!("{field}.{kind}"), int(n).into())).collect();
        if inc.is_empty() {
            return Ok(());
        }
        let (id, set) = who.document();
        let mut update = doc! { "$inc": inc };
        if !set.is_empty() {
            update.insert("$setOnInsert", set);
        }
        self.counters_coll().update_one(doc! { "_id": id }, update).upsert(true).session(session).await?;
        Ok(())
    }

    /// Makes what an engine has counted part of the total; the sum over all documents stays what it is.
    pub(super) async fn fold_counters(&self, session: &mut ClientSession, engine: &str) -> Result<(), Halt> {
        let theirs = doc! { "engine": engine };
        let mut cursor = self.counters_coll().clone_with_type::<Counters>().find(theirs.clone()).session(&mut *session).await?;
        let rows: Vec<Counters> = cursor.stream(&mut *session).try_collect().await?;
        if rows.is_empty() {
            return Ok(());
        }
        self.counters_coll().delete_many(theirs).session(&mut *session).await?;
        self.count(session, Writer::Anybody, &sum(rows)).await
    }

    /// Of everybody: a few documents for each engine that lives.
    pub(super) async fn counters(&self) -> Result<Counters> {
        let cursor = self.counters_coll().clone_with_type::<Counters>().find(doc! { "_id": { "$gt": "" } }).await.map_err(fault_of)?;
        Ok(sum(cursor.try_collect::<Vec<Counters>>().await.map_err(fault_of)?))
    }

    /// Engines that have counted something.
    pub(super) async fn counted(&self) -> Result<Vec<bson::Bson>> {
        self.counters_coll().distinct("engine", doc! { "engine": { "$gt": "" } }).await.map_err(fault_of)
    }
}

fn sum(rows: Vec<Counters>) -> Counters {
    rows.iter().fold(Counters::default(), |mut sum, row| {
        sum.add(row);
        sum
    })
}
