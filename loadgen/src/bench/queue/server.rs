//! Owns: what mongod counts while something is measured, and what each statement of a claim looked at. Does not own what is measured.

use argon::fault::{Fault, Result};
use bson::{Bson, Document, doc};
use futures_util::TryStreamExt;
use mongodb::Database;
use mongodb::error::Error;
use serde::Serialize;

use super::super::{ratio, real};

/// Sums since mongod was started.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Counted {
    conflicts: i64,
    aborted: i64,
    keys: i64,
    documents: i64,
}

/// What that was for each job.
#[derive(Debug, Clone, Copy, Default, Serialize)]
pub(super) struct PerJob {
    /// Writes that met another one and were begun again by the server, in 1,000 jobs.
    pub write_conflicts_per_1000_jobs: f64,
    /// Transactions that were rolled back, in 1,000 jobs.
    pub aborted_transactions_per_1000_jobs: f64,
    /// Index keys that all statements have examined, by job.
    pub keys_examined_per_job: f64,
    /// Documents that they have fetched, by job.
    pub docs_examined_per_job: f64,
}

impl Counted {
    /// Now.
    pub(super) async fn now(db: &Database) -> Result<Self> {
        let status = db.run_command(doc! { "serverStatus": 1 }).await.map_err(failed)?;
        Ok(Self::of(&status))
    }

    fn of(status: &Document) -> Self {
        let at = |path: &str| path.split('.').try_fold(status, |doc, part| doc.get_document(part)).ok();
        let read = |path: &str, name: &str| at(path).and_then(|doc| doc.get(name)).map_or(0, number);
        Self {
            conflicts: read("metrics.operation", "writeConflicts"),
            aborted: read("transactions", "totalAborted"),
            keys: read("metrics.queryExecutor", "scanned"),
            documents: read("metrics.queryExecutor", "scannedObjects"),
        }
    }

    /// What has been counted since `before`, for each of `jobs`.
    pub(super) fn per_job(self, before: Self, jobs: u64) -> PerJob {
        let each = |now: i64, then: i64| ratio(real(u64::try_from(now - then).unwrap_or(0)), real(jobs));
        PerJob {
            write_conflicts_per_1000_jobs: each(self.conflicts, before.conflicts) * 1_000.0,
            aborted_transactions_per_1000_jobs: each(self.aborted, before.aborted) * 1_000.0,
            keys_examined_per_job: each(self.keys, before.keys),
            docs_examined_per_job: each(self.documents, before.documents),
        }
    }
}

/// One statement as mongod has profiled it.
#[derive(Debug, Clone, Serialize)]
pub(super) struct Statement {
    /// `jobs.find`, `jobs.update`, `counters.update`, ...
    pub statement: String,
    pub plan: String,
    pub keys_examined: i64,
    pub docs_examined: i64,
    /// Documents returned or changed.
    pub found: i64,
    /// Index keys inserted and deleted.
    pub keys_written: i64,
    pub ms: i64,
}

/// What the explanation of a claim's search says.
#[derive(Debug, Clone, Serialize)]
pub(super) struct Explained {
    pub stages: Vec<String>,
    pub keys_examined: i64,
    pub docs_examined: i64,
    pub returned: i64,
}

/// Everything that is sent to a database is noted from here on, until [`stop_profile`].
pub(super) async fn profile(db: &Database) -> Result<()> {
    stop_profile(db).await?;
    db.run_command(doc! { "drop": "system.profile" })
        .await
        .or_else(|error| if code(&error) == Some(26) { Ok(doc! {}) } else { Err(failed(error)) })?;
    db.run_command(doc! { "profile": 2 }).await.map(drop).map_err(failed)
}

/// Nothing is noted any more.
pub(super) async fn stop_profile(db: &Database) -> Result<()> {
    db.run_command(doc! { "profile": 0 }).await.map(drop).map_err(failed)
}

/// The statements that have been noted, in order, and the first search among them, explained anew.
pub(super) async fn profiled(db: &Database) -> Result<(Vec<Statement>, Option<Explained>)> {
    let profile = db.collection::<Document>("system.profile");
    let rows: Vec<Document> =
        profile.find(doc! {}).sort(doc! { "$natural": 1 }).await.map_err(failed)?.try_collect().await.map_err(failed)?;
    let statements: Vec<Statement> = rows.iter().filter_map(|row| statement(db.name(), row)).collect();
    let search = rows
        .iter()
        .filter_map(|row| row.get_document("command").ok())
        .find(|command| command.get_str("find").is_ok_and(|coll| coll == "jobs"));
    let explained = match search {
        Some(search) => Some(explain(db, search).await?),
        None => None,
    };
    Ok((statements, explained))
}

fn statement(db: &str, row: &Document) -> Option<Statement> {
    let coll = row.get_str("ns").ok()?.strip_prefix(db)?.strip_prefix('.')?;
    if coll.starts_with("system.") {
        return None;
    }
    let op = match (row.get_str("op").ok()?, row.get_document("command").ok()) {
        ("command", Some(command)) => command.keys().next()?.clone(),
        ("query", _) => "find".to_owned(),
        (op, _) => op.to_owned(),
    };
    let of = |name: &str| row.get(name).map_or(0, number);
    Some(Statement {
        statement: format!("{coll}.{op}"),
        plan: row.get_str("planSummary").unwrap_or_default().to_owned(),
        keys_examined: of("keysExamined"),
        docs_examined: of("docsExamined"),
        found: of("nreturned").max(of("nModified")),
        keys_written: of("keysInserted") + of("keysDeleted"),
        ms: of("millis"),
    })
}

/// The same search as was sent, with the statistics of its execution.
async fn explain(db: &Database, search: &Document) -> Result<Explained> {
    let kept = ["find", "filter", "sort", "projection", "hint", "limit"];
    let search: Document = kept.into_iter().filter_map(|name| Some((name.to_owned(), search.get(name)?.clone()))).collect();
    let told = db.run_command(doc! { "explain": search, "verbosity": "executionStats" }).await.map_err(failed)?;
    let stats = told.get_document("executionStats").map_err(|error| Fault::unknown(format!("an explanation without figures: {error}")))?;
    let of = |name: &str| stats.get(name).map_or(0, number);
    let mut stages = Vec::new();
    let mut stage = stats.get_document("executionStages").ok();
    while let Some(inner) = stage {
        stages.push(inner.get_str("stage").unwrap_or_default().to_owned());
        stage = inner.get_document("inputStage").ok();
    }
    Ok(Explained { stages, keys_examined: of("totalKeysExamined"), docs_examined: of("totalDocsExamined"), returned: of("nReturned") })
}

#[allow(clippy::cast_possible_truncation)] // counts that some versions send as doubles
fn number(value: &Bson) -> i64 {
    match value {
        Bson::Int32(n) => i64::from(*n),
        Bson::Int64(n) => *n,
        Bson::Double(n) => *n as i64,
        _ => 0,
    }
}

fn code(error: &Error) -> Option<i32> {
    match &*error.kind {
        mongodb::error::ErrorKind::Command(command) => Some(command.code),
        _ => None,
    }
}

#[allow(clippy::needless_pass_by_value)] // the shape of map_err
fn failed(error: Error) -> Fault {
    Fault::unknown(format!("asking mongod for its figures: {error}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    #[allow(clippy::float_cmp)] // quotients of small whole numbers
    fn figures_of_the_server_are_counted_for_each_job() {
        let status = |n: i64| {
            doc! { "metrics": { "operation": { "writeConflicts": n }, "queryExecutor": { "scanned": 10 * n, "scannedObjects": n } }, "transactions": { "totalAborted": 1 } }
        };
        let each = Counted::of(&status(30)).per_job(Counted::of(&status(10)), 10);
        assert_eq!((each.write_conflicts_per_1000_jobs, each.keys_examined_per_job, each.docs_examined_per_job), (2_000.0, 20.0, 2.0));
        assert_eq!(Counted::of(&doc! {}).per_job(Counted::default(), 0).keys_examined_per_job, 0.0);
    }

    #[test]
    fn a_profiled_statement_says_what_it_looked_at() {
        let row = doc! {
            "op": "update", "ns": "q.jobs", "command": { "q": { "_id": 1 } }, "keysExamined": 8, "docsExamined": 8, "nModified": 8, "keysInserted": 8, "keysDeleted": 8,
            "millis": 1, "planSummary": "IXSCAN { _id: 1 }",
        };
        let Statement { statement: name, keys_examined, found, keys_written, ms, .. } = statement("q", &row).unwrap();
        assert_eq!((name.as_str(), keys_examined, found, keys_written, ms), ("jobs.update", 8, 8, 16, 1));
        assert!(statement("q", &doc! { "op": "query", "ns": "q.system.profile" }).is_none());
    }
}
