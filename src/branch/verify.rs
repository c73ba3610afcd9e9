//! Owns: checking a branch: its own objects (`bucket`), its rows, every byte and the fold of it (`deep`), that fold against a live database (`live`), and a restored copy (`copy`).
//! Does not own: printing or exit codes; a report that is not `identical` is exit code 4.

mod bucket;
mod capped;
mod catalogues;
mod copy;
mod deep;
mod hash;
mod live;

use std::path::PathBuf;
use std::sync::Arc;

use serde::Serialize;

use super::history::{History, Progress};
use crate::fault::Result;
use crate::ledger::{Ledger, SegmentKind, SegmentRow};

pub(in crate::branch) use catalogues::same_fields;
pub use copy::{Compared, Then, compare_copy};
pub use live::{AgainstOptions, against};

/// Rows read from the ledger at a time, which is also how many objects are looked at before the next page.
const PAGE: usize = 500;
/// Differences listed; the count goes on.
const MAX_DIFFERENCES: usize = 100;
/// HEAD requests at a time.
const HEADS: usize = 16;

/// What a verification found.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct VerifyReport {
    pub branch: String,
    /// Nothing differs.
    pub identical: bool,
    /// The first hundred.
    pub differences: Vec<Difference>,
    pub difference_count: u64,
    pub segments: u64,
    pub changes: u64,
    pub stored_bytes: u64,
    /// Bases that history may start from.
    pub bases: u64,
    /// Documents compared, on the side of the history.
    pub documents: u64,
    /// Point at which a live database was compared.
    pub at: Option<String>,
    pub notes: Vec<String>,
}

/// One thing that is not as it should be.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Difference {
    /// Object, collection or field of the branch.
    pub place: String,
    pub what: String,
}

impl VerifyReport {
    fn new(branch: &str) -> Self {
        Self { branch: branch.to_owned(), identical: true, ..Self::default() }
    }

    /// Notes a difference.
    pub fn differs(&mut self, place: impl Into<String>, what: impl Into<String>) {
        self.identical = false;
        self.difference_count += 1;
        if self.differences.len() < MAX_DIFFERENCES {
            self.differences.push(Difference { place: place.into(), what: what.into() });
        }
    }
}

/// Memory and disk for the fold of a deep verification.
#[derive(Debug, Clone)]
pub struct DeepOptions {
    pub budget: u64,
    pub temp_dir: PathBuf,
}

/// Structure: the branch's own objects, rows dense from 1 to the head, epochs not going back, totals equal, every object there with its size.
/// With `deep` every object is read, its checksums and chain of tokens are checked, every change is decoded and folded.
pub async fn structure(
    history: &History,
    ledger: &dyn Ledger,
    deep: Option<&DeepOptions>,
    progress: Arc<Progress>,
) -> Result<VerifyReport> {
    let mut report = VerifyReport::new(&history.branch.name);
    let bucket = bucket::check(history, ledger, &mut report).await?;
    let epoch_begins = check_rows(history, ledger, &mut report).await?;
    bucket.check_epoch_start(history, epoch_begins, &mut report);
    // Also where something was found already: reading says where in an object the damage is.
    if let Some(options) = deep {
        deep::check(history, options, &mut report, progress).await?;
    }
    Ok(report)
}

/// Returns the first seq of the branch's epoch, where a segment has it.
async fn check_rows(history: &History, ledger: &dyn Ledger, report: &mut VerifyReport) -> Result<Option<u64>> {
    let branch = &history.branch;
    let (mut next, mut epoch, mut epoch_begins) = (branch.first_own_seq(), 0, None);
    while next <= branch.head.seq {
        // Rows beyond the head are there whenever segments are committed out of order or while this runs: the head says where this ends.
        let mut page = ledger.segments(&branch.id, next, PAGE).await?;
        page.retain(|row| row.first_seq <= branch.head.seq);
        let before = next;
        for row in &page {
            if row.first_seq != next || row.last_seq < row.first_seq {
                report.differs(&row.key, format!("covers seq:{}..{}, expected to begin at seq:{next}", row.first_seq, row.last_seq));
            }
            if row.epoch < epoch {
                report.differs(&row.key, format!("is of epoch {} after epoch {epoch}", row.epoch));
            }
            if row.epoch == branch.epoch {
                epoch_begins = epoch_begins.or(Some(row.first_seq));
            }
            next = row.last_seq.saturating_add(1).max(next);
            epoch = row.epoch;
            report.count(row);
        }
        for rows in page.chunks(HEADS) {
            check_objects(history, rows, report).await?;
        }
        if next == before {
            break;
        }
    }
    // Segments that were committed ahead of the head are in the totals too, so more is fine.
    let totals = branch.totals;
    let (known, found) = ((totals.segments, totals.changes, totals.stored_bytes), (report.segments, report.changes, report.stored_bytes));
    if known.0 < found.0 || (known.0 == found.0 && known != found) {
        report.differs("totals", format!("the branch says {known:?} (segments, changes, stored bytes), its segments add up to {found:?}"));
    }
    if next != branch.head.seq + 1 {
        report.differs("head", format!("the head is seq:{}, segments end at seq:{}", branch.head.seq, next.saturating_sub(1)));
    }
    Ok(epoch_begins)
}

impl VerifyReport {
    fn count(&mut self, row: &SegmentRow) {
        self.segments += 1;
        self.stored_bytes += row.stored_bytes;
        if row.kind == SegmentKind::Changes {
            self.changes += row.last_seq.saturating_sub(row.first_seq) + 1;
        } else {
            self.notes.push(format!("gap at seq:{}..{} ({})", row.first_seq, row.last_seq, row.key));
        }
        if row.kind == SegmentKind::Changes && row.holes > 0 {
            self.notes.push(format!("{} has {} changes that cannot be applied", row.key, row.holes));
        }
    }
}

async fn check_objects(history: &History, rows: &[SegmentRow], report: &mut VerifyReport) -> Result<()> {
    let heads = rows.iter().map(|row| async move { (row, history.object(&row.key).await) });
    for (row, found) in futures_util::future::join_all(heads).await {
        match found? {
            None => report.differs(&row.key, "the object is missing"),
            Some(info) if info.size != row.stored_bytes => {
                report.differs(&row.key, format!("the object has {} bytes, its row says {}", info.size, row.stored_bytes));
            }
            Some(info) if info.sha256.is_some_and(|sha256| super::layout::hex(&sha256) != row.sha256) => {
                report.differs(&row.key, "the object was put with another sha256 than its row says");
            }
            Some(_) => {}
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests;
