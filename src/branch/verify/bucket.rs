//! Owns: checking the objects that make a bucket readable without metadata: manifests of bases, `branch.json` and the epoch (correctness.md 19, 20).
//! Does not own: segments (`verify`, `deep`).

use super::VerifyReport;
use crate::branch::documents::{BaseRef, BranchDocument, EpochDocument, read_branch, read_epoch};
use crate::branch::history::History;
use crate::branch::layout;
use crate::branch::line::Based;
use crate::fault::{Kind, Result};
use crate::ledger::{Base, BaseState, Ledger, same_source};

/// What was readable.
pub(super) struct Bucket {
    epoch: Option<EpochDocument>,
}

pub(super) async fn check(history: &History, ledger: &dyn Ledger, report: &mut VerifyReport) -> Result<Bucket> {
    let (project, branch) = (history.project(), &history.branch);
    for based in history.line().bases() {
        check_base(history, based, report).await?;
    }
    let bases = ledger.bases(&branch.id).await?;
    let key = layout::branch_json(project, &branch.id);
    if let Some(read) = read(history, &key, read_branch, report).await? {
        check_branch(history, &read, &bases, &key, report);
    }
    // A branch into which nothing is captured has none until it is.
    if history.capture.is_none() && branch.parent.is_some() {
        return Ok(Bucket { epoch: None });
    }
    // Engines refuse to run without theirs, and beside a later one.
    let epoch = read(history, &layout::epoch(project, &branch.id, branch.epoch), read_epoch, report).await?;
    let later = layout::epoch(project, &branch.id, branch.epoch + 1);
    if history.object(&later).await?.is_some() {
        report.differs(later, format!("other metadata numbers this branch: here it is of epoch {}", branch.epoch));
    }
    Ok(Bucket { epoch })
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

async fn check_base(history: &History, based: &Based, report: &mut VerifyReport) -> Result<()> {
    let base = &based.base;
    let db = &history.line().parts()[based.part].branch.source_db;
    match history.manifest(based).await {
        Ok(read) => {
            let said = (&read.id, read.seq, read.origin, read.time, read.consistent_at, &read.db);
            let known = (&base.id, base.seq, base.origin, base.time, base.consistent_at, db);
            if said != known {
                let what =
                    format!("manifest is of (base, seq, origin, time, consistent at, database) {said:?}, the metadata says {known:?}");
                report.differs("base", what);
            }
            let sum = |of: fn(&crate::branch::documents::BasePart) -> u64| read.parts.iter().map(of).sum::<u64>();
            let said = (read.parts.len() as u64, sum(|p| p.documents), sum(|p| p.raw_bytes), sum(|p| p.stored_bytes));
            let known = (base.objects, base.documents, base.raw_bytes, base.stored_bytes);
            if said != known {
                let what = format!("manifest has (objects, documents, bytes, stored bytes) {said:?}, the metadata says {known:?}");
                report.differs("base", what);
            }
            report.bases += 1;
            Ok(())
        }
        Err(fault) if fault.kind == Kind::Corrupt => {
            report.differs("base", fault.what);
            Ok(())
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

/// What does not change by itself. State and fidelity of the capture move on in the metadata.
fn check_branch(history: &History, read: &BranchDocument, bases: &[Base], key: &str, report: &mut VerifyReport) {
    let branch = &history.branch;
    let mut same = |field: &str, said: &dyn std::fmt::Debug, known: &dyn std::fmt::Debug| {
        let (said, known) = (format!("{said:?}"), format!("{known:?}"));
        if said != known {
            report.differs(key, format!("{field} is {said}, the branch says {known}"));
        }
    };
    same("id", &read.id, &branch.id);
    same("name", &read.name, &branch.name);
    same("parent", &read.parent, &branch.parent);
    same("epoch", &read.epoch, &branch.epoch);
    same("retained_from", &read.retained_from, &history.known().retained_from);
    same("db", &read.db, &branch.source_db);
    // One that has just become complete is in the metadata first.
    for said in read.bases.iter().filter(|said| !said.copying) {
        let known = bases.iter().find(|base| base.id == said.id && base.state == BaseState::Complete);
        let known = known.map(|base| BaseRef { id: base.id.clone(), seq: base.seq, sha256: base.sha256.clone(), copying: false });
        same("base", &Some(said), &known.as_ref());
    }
    same("capture", &read.capture.as_ref().map(|c| &c.id), &history.capture.as_ref().map(|c| &c.id));
    if let (Some(said), Some(known)) = (&read.capture, &history.capture) {
        same("source.db", &said.source.db, &known.source.db);
        // An id that was seen later is in the metadata first.
        if !same_source(&said.source.identity, &known.source.identity) {
            same("source.identity", &said.source.identity, &known.source.identity);
        }
    }
}
