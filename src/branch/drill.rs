//! A drill: a restore to a random recent point, into a database of its own, that is compared and dropped again. What it proves is noted on the branch.
//!
//! Owns: which point, the order of the steps, and that nothing is left behind. Does not own: restoring (`restore`), comparing (`verify`), when it is due (`engine::keeper`).

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use mongodb::Database;
use serde::Serialize;

use super::history::{History, Located, Progress};
use super::point::Point;
use super::restore::{RestoreOptions, restore};
use super::server;
use super::verify::{AgainstOptions, Then, VerifyReport, compare_copy};
use crate::change::ClusterTime;
use crate::fault::{Fault, Result};
use crate::ledger::Proven;
use crate::runtime::random;

/// Databases of drills begin with this; nothing else may.
pub const SCRATCH: &str = "argon_drill_";
/// How far back a point is taken from: the server keeps what was then for 300 s, unless it is told otherwise, and the restore takes its time too.
const RECENT_S: u32 = 200;

/// Where and how.
#[derive(Debug, Clone)]
pub struct DrillOptions {
    /// Its name begins with [`SCRATCH`]; dropped before and after.
    pub scratch: Database,
    /// The database that is captured, if it can be reached.
    pub source: Option<Database>,
    /// A point of one's own instead of a random one.
    pub at: Option<Point>,
    /// Bytes of memory for the fold.
    pub budget: u64,
    pub temp_dir: PathBuf,
}

/// What came of it.
#[derive(Debug, Clone, Serialize)]
pub struct DrillReport {
    pub branch: String,
    /// The point: everything up to this change.
    pub seq: u64,
    /// Its cluster time.
    pub time: String,
    pub documents: u64,
    pub bytes: u64,
    /// Restoring alone, in seconds.
    pub restore_seconds: f64,
    /// What the copy was compared with.
    pub compared_with: String,
    pub compared: VerifyReport,
}

/// A database name for one drill.
pub fn scratch_name(id: &str) -> String {
    let word: String = id.chars().filter(char::is_ascii_alphanumeric).collect();
    format!("{SCRATCH}{}", &word[word.len().saturating_sub(16)..])
}

/// Restores and compares; notes what is proven where nothing differs. The scratch database is dropped however it ends, unless the caller stops polling.
pub async fn drill(history: &History, options: &DrillOptions, progress: Arc<Progress>) -> Result<DrillReport> {
    if !options.scratch.name().starts_with(SCRATCH) {
        return Err(Fault::config(format!("a drill writes to a database of its own, not to {:?}", options.scratch.name())));
    }
    drop_scratch(&options.scratch).await?;
    let outcome = run(history, options, progress).await;
    let dropped = drop_scratch(&options.scratch).await;
    let report = outcome?;
    dropped?;
    Ok(report)
}

async fn run(history: &History, options: &DrillOptions, progress: Arc<Progress>) -> Result<DrillReport> {
    let at = match options.at {
        Some(point) => history.locate(point).await?,
        None => pick(history, random::unit()).await?,
    };
    let restoring = RestoreOptions {
        no_ttl: true,
        budget: options.budget,
        temp_dir: options.temp_dir.clone(),
        ..RestoreOptions::new(Point::Seq(at.seq))
    };
    let began = crate::runtime::clock::now();
    let restored = restore(history, &options.scratch, &restoring, progress).await?;
    let restore_seconds = began.elapsed().as_secs_f64();
    let against = AgainstOptions {
        db: options.scratch.clone(),
        patience: Duration::ZERO,
        budget: options.budget,
        temp_dir: options.temp_dir.clone(),
    };
    let time = source_time(history, &at);
    let source = options.source.as_ref().zip(time).map(|(db, time)| Then { db, time });
    let compared = compare_copy(history, at.seq, &against, source).await?;
    let compared_with = match compared.with_source {
        0 => "history".to_owned(),
        n => format!("history, and {n} of {} collections with the source at {}", compared.collections, time.unwrap_or_default()),
    };
    let report = compared.report;
    if report.identical {
        let at_ms = history.ledger().now_ms().await?;
        let proven =
            Proven { seq: at.seq, time: at.time.unwrap_or_default(), at_ms, with: compared_with.clone(), documents: restored.documents };
        history.ledger().note_proven(&history.branch.id, &proven).await?;
    }
    Ok(DrillReport {
        branch: history.branch.name.clone(),
        seq: at.seq,
        time: at.time.unwrap_or_default().to_string(),
        documents: restored.documents,
        bytes: restored.bytes,
        restore_seconds,
        compared_with,
        compared: report,
    })
}

/// A point of the last minutes, or the last one where nothing has happened in them. `unit`: which, from 0 to 1.
async fn pick(history: &History, unit: f64) -> Result<Located> {
    let stretch = history.line().stretches(&**history.ledger()).await?.pop();
    let stretch = stretch.ok_or_else(|| Fault::transient(format!("{} has nothing to restore yet", history.branch.name)))?;
    let last = history.locate(Point::Seq(stretch.to)).await?;
    let recent = last.time.map(|time| Point::Time(ClusterTime { t: time.t.saturating_sub(RECENT_S), i: 0 }));
    let from = match recent {
        Some(point) => history.locate(point).await.map_or(last.seq, |from| from.seq),
        None => last.seq,
    };
    // What is before the beginning of the stretch is refused, and then the beginning will do.
    let first = match stretch.from {
        Point::Seq(seq) => seq,
        point => history.locate(point).await?.seq,
    };
    // What is proven already proves nothing more, and what is noted only rises.
    let proven = history.branch.proven.as_ref().map_or(0, |proven| proven.seq);
    let from = from.max(first).max(proven).min(last.seq);
    #[allow(clippy::cast_precision_loss, clippy::cast_possible_truncation, clippy::cast_sign_loss)] // a random place
    let seq = from + ((last.seq - from) as f64 * unit).round() as u64;
    if seq >= last.seq { Ok(last) } else { history.locate(Point::Seq(seq)).await }
}

/// When the source was as history is at the point; `None` where it is of another source.
fn source_time(history: &History, at: &Located) -> Option<ClusterTime> {
    if at.seq + 1 < history.branch.first_own_seq() {
        return None;
    }
    let head = history.branch.head.seq;
    // A quiet source is as it was at its last change, which may be too long ago to be read.
    if at.seq == head { history.captured_until.max(at.time) } else { at.time }
}

async fn drop_scratch(scratch: &Database) -> Result<()> {
    scratch.drop().await.map_err(|e| server::fault(&format!("drop {:?}", scratch.name()), &e))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_scratch_database_has_a_legal_name_of_its_own() {
        let name = scratch_name("0190f3a2-77aa-7bcd-8eef-0123456789ab");
        assert_eq!(name, "argon_drill_8eef0123456789ab");
        assert!(scratch_name("x").starts_with(SCRATCH) && name.len() < 64);
    }
}
