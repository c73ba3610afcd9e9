//! Owns: checking the objects that make a bucket readable without metadata: the base's manifest, `branch.json` and the epoch (correctness.md 19, 20).
//! Does not own: segments (`verify`, `deep`).

use super::VerifyReport;
use crate::branch::documents::{BaseManifest, BranchDocument, EpochDocument, read_branch, read_epoch};
use crate::branch::history::History;
use crate::branch::layout;
use crate::fault::{Kind, Result};
use crate::ledger::same_source;

/// What was readable.
pub(super) struct Bucket {
    pub(super) base: Option<BaseManifest>,
    epoch: Option<EpochDocument>,
}

pub(super) async fn check(history: &History, report: &mut VerifyReport) -> Result<Bucket> {
    let (project, branch) = (history.project(), &history.branch);
    let base = check_base(history, report).await?;
    let key = layout::branch_json(project, &branch.id);
    if let Some(read) = read(history, &key, read_branch, report).await? {
        check_branch(history, &read, &key, report);
    }
    // Engines refuse to run without theirs, and beside a later one.
    let epoch = read(history, &layout::epoch(project, &branch.id, branch.epoch), read_epoch, report).await?;
    let later = layout::epoch(project, &branch.id, branch.epoch + 1);
    if history.object(&later).await?.is_some() {
        report.differs(later, format!("other metadata numbers this branch: here it is of epoch {}", branch.epoch));
    }
    Ok(Bucket { base, epoch })
}

impl Bucket {
    /// `begins`: the first seq that a segment of the branch's epoch has; without one, the epoch begins behind the head.
    pub(super) fn check_epoch_start(&self, history: &History, begins: Option<u64>, report: &mut VerifyReport) {
        let branch = &history.branch;
        let begins = begins.unwrap_or(branch.head.seq + 1);
        if let Some(epoch) = self.epoch.as_ref().filter(|epoch| epoch.starts_at != begins) {
            let key = layout::epoch(history.project(), &branch.id, branch.epoch);
            report.differs(key, format!("says that the epoch starts at seq:{}, its segments begin at seq:{begins}", epoch.starts_at));
        }
    }
}

async fn check_base(history: &History, report: &mut VerifyReport) -> Result<Option<BaseManifest>> {
    let branch = &history.branch;
    match history.base().await {
        Ok(base) => {
            let (said, known) = ((&base.id, base.time, &base.db), (&branch.base, branch.base_time, &branch.source_db));
            if said != known {
                report.differs("base", format!("manifest is of (base, time, database) {said:?}, the branch says {known:?}"));
            }
            Ok(Some(base))
        }
        Err(fault) if fault.kind == Kind::Corrupt => {
            report.differs("base", fault.what);
            Ok(None)
        }
        Err(fault) => Err(fault),
    }
}

/// `None`, and a difference, for what is missing or does not read; other faults are of the store.
async fn read<T>(history: &History, key: &str, parse: impl Fn(&str, &[u8]) -> Result<T>, report: &mut VerifyReport) -> Result<Option<T>> {
    let parsed = match history.read_object(key).await {
        Ok(bytes) => parse(key, &bytes),
        Err(fault) if fault.kind == Kind::Corrupt => Err(fault),
        Err(fault) => return Err(fault),
    };
    Ok(parsed.map_err(|fault| report.differs(key, fault.what)).ok())
}

/// What never changes. State and fidelity of the capture move on in the metadata.
fn check_branch(history: &History, read: &BranchDocument, key: &str, report: &mut VerifyReport) {
    let branch = &history.branch;
    let mut same = |field: &str, said: &dyn std::fmt::Debug, known: &dyn std::fmt::Debug| {
        let (said, known) = (format!("{said:?}"), format!("{known:?}"));
        if said != known {
            report.differs(key, format!("{field} is {said}, the branch says {known}"));
        }
    };
    same("id", &read.id, &branch.id);
    same("name", &read.name, &branch.name);
    same("epoch", &read.epoch, &branch.epoch);
    same("retained_from", &read.retained_from, &history.known().retained_from);
    same("base", &(&read.base, read.base_seq, read.base_time), &(&branch.base, 0u64, branch.base_time));
    same("base_sha256", &read.base_sha256, &branch.base_sha256);
    same("source.db", &read.source.db, &branch.source_db);
    if let Some(capture) = &history.capture {
        same("capture", &read.capture, &capture.id);
        // An id that was seen later is in the metadata first.
        if !same_source(&read.source.identity, &capture.source.identity) {
            same("source.identity", &read.source.identity, &capture.source.identity);
        }
    }
}
