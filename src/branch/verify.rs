//! Owns: checking a branch: its structure in the bucket, every byte of it (`deep`), and its fold against a live database (`live`).
//! Does not own: printing or exit codes; a report that is not `identical` is exit code 4.

mod live;

use std::sync::Arc;

use serde::Serialize;

use super::fold::Flow;
use super::history::{Consumer, Gaps, History, Loaded, Progress, Range};
use super::point::Bound;
use crate::fault::{Fault, Kind, Result};
use crate::ledger::{Ledger, SegmentKind, SegmentRow};

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

    fn differs(&mut self, place: impl Into<String>, what: impl Into<String>) {
        self.identical = false;
        self.difference_count += 1;
        if self.differences.len() < MAX_DIFFERENCES {
            self.differences.push(Difference { place: place.into(), what: what.into() });
        }
    }
}

/// Structure: rows dense from 1 to the head, epochs not going back, totals equal, every object there with its size. With `deep` every object is
/// read, its checksums and chain of tokens are checked and every change is decoded.
pub async fn structure(history: &History, ledger: &dyn Ledger, deep: bool, progress: Arc<Progress>) -> Result<VerifyReport> {
    let mut report = VerifyReport::new(&history.branch.name);
    check_base(history, &mut report).await?;
    check_rows(history, ledger, &mut report).await?;
    // Also where something was found already: reading says where in an object the damage is.
    if deep && history.branch.head.seq > 0 {
        check_deep(history, &mut report, progress).await?;
    }
    Ok(report)
}

async fn check_base(history: &History, report: &mut VerifyReport) -> Result<()> {
    match history.base().await {
        Ok(base) if base.id == history.branch.base && base.time == history.branch.base_time => {}
        Ok(base) => report.differs("base", format!("manifest is of base {} at {}, the branch names another", base.id, base.time)),
        Err(fault) if fault.kind == Kind::Corrupt => report.differs("base", fault.what),
        Err(fault) => return Err(fault),
    }
    Ok(())
}

async fn check_rows(history: &History, ledger: &dyn Ledger, report: &mut VerifyReport) -> Result<()> {
    let branch = &history.branch;
    let (mut next, mut epoch) = (1, 0);
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
        report.differs("head", format!("the head is seq:{}, segments end at seq:{}", branch.head.seq, next - 1));
    }
    Ok(())
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
        if row.holes > 0 {
            self.notes.push(format!("{} has {} changes that cannot be applied", row.key, row.holes));
        }
    }
}

async fn check_objects(history: &History, rows: &[SegmentRow], report: &mut VerifyReport) -> Result<()> {
    let heads = rows.iter().filter(|row| row.kind == SegmentKind::Changes).map(|row| async move { (row, history.object(&row.key).await) });
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

/// Reads everything. It stops at the first object that is damaged: what is behind it is then unknown anyway.
async fn check_deep(history: &History, report: &mut VerifyReport, progress: Arc<Progress>) -> Result<()> {
    #[derive(Default)]
    struct Deep {
        changes: u64,
        wrong: Vec<(String, String)>,
    }
    impl Consumer for Deep {
        fn segment(&mut self, loaded: &Loaded) -> Result<Flow> {
            let (mut raw, mut count, row) = (0, 0, &loaded.row);
            let mut next = row.first_seq;
            loaded.each(|seq, change| {
                if seq != next {
                    return Err(Fault::corrupt(format!("row seq:{seq} where seq:{next} was expected")));
                }
                if change.time < row.first_time || change.time > row.last_time {
                    return Err(Fault::corrupt(format!("row seq:{seq} is of {}, outside of its segment's times", change.time)));
                }
                next += 1;
                count += 1;
                raw += change.raw_bytes();
                Ok(Flow::Continue)
            })?;
            self.changes += count;
            if let Some(file) = &loaded.file {
                let summary = file.summary;
                if (summary.changes, summary.raw_bytes) != (count, raw) || raw != row.raw_bytes || summary.holes != row.holes {
                    let what = format!(
                        "{count} changes and {raw} bytes, its footer says {summary:?}, its row {} bytes and {} holes",
                        row.raw_bytes, row.holes
                    );
                    self.wrong.push((row.key.clone(), what));
                }
            }
            Ok(Flow::Continue)
        }
    }
    let range = Range { from_seq: 1, until: Bound::Seq(history.branch.head.seq), gaps: Gaps::Check };
    match history.read(range, Deep::default(), progress).await {
        Ok(deep) => {
            for (place, what) in deep.wrong {
                report.differs(place, what);
            }
            if deep.changes != report.changes {
                report.differs("changes", format!("{} were decoded, rows say {}", deep.changes, report.changes));
            }
        }
        Err(fault) if fault.kind == Kind::Corrupt => report.differs("history", fault.what),
        Err(fault) => return Err(fault),
    }
    Ok(())
}

#[cfg(test)]
mod tests;
