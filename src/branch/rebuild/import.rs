//! Owns: making metadata from a bucket: in memory to read from, or in a database to go on with; taking the next epoch of what is captured.
//! Does not own: what is in the bucket (`rebuild`), the transactions (`ledger`).
//!
//! SUBTLE: the order for each branch. The epoch first: from then on what old metadata still puts at or behind its start is hidden, so the history that was
//! chosen stays the history. Rows before the branch, since a branch that is there is taken to be whole. `branch.json` last: it says the epoch to whoever
//! writes it next. A run that was killed anywhere is run again, takes one more epoch where it had none on record, and ends the same.

use std::collections::{BTreeMap, BTreeSet};

use serde::Serialize;
use sha2::{Digest, Sha256};
use tokio_util::sync::CancellationToken;

use super::{Bucket, Known, Orphans, Problem, Restored};
use crate::branch::documents::{self, EpochDocument};
use crate::branch::layout;
use crate::branch::mirror::publish;
use crate::branch::view::{HeadView, TotalsView};
use crate::fault::{Fault, Result};
use crate::ledger::{Branch, BranchStatus, CaptureState, Import, Ledger, MemoryLedger, SegmentRow, SharedLedger};
use crate::runtime::random;
use crate::store::{PutOutcome, PutTag, RetryPolicy, put_idempotent};

/// Rows that go to the ledger, or come from it, at a time.
const PAGE: usize = 1_000;

/// How to rebuild.
#[derive(Debug, Clone, Copy, Default)]
pub struct Options {
    /// Say what would be done, write nothing.
    pub dry_run: bool,
    /// Go on without what is damaged.
    pub skip_damaged: bool,
}

/// What was found and done.
#[derive(Debug, Default, Serialize)]
pub struct Report {
    /// Nothing was written.
    pub dry_run: bool,
    /// The metadata is there now, or would be.
    pub rebuilt: bool,
    pub branches: Vec<RebuiltBranch>,
    /// Parts of history that cannot be had; nothing is done while there are some, unless it is told to go on without.
    pub damaged: Vec<Problem>,
    /// Objects that belong to no branch.
    pub orphans: Orphans,
    pub notes: Vec<String>,
}

/// One branch.
#[derive(Debug, Serialize)]
pub struct RebuiltBranch {
    pub id: String,
    pub name: String,
    pub status: BranchStatus,
    pub head: HeadView,
    pub totals: TotalsView,
    pub epoch: u64,
    /// Absent where nothing is captured into it.
    pub capture: Option<CaptureState>,
    pub bases: usize,
    /// It was in the metadata already.
    pub already: bool,
    /// Segments that are not part of its history.
    pub orphans: Orphans,
}

/// Everything that could be read, and what could not.
struct Everything {
    branches: Vec<Restored>,
    problems: Vec<Problem>,
    notes: Vec<String>,
}

/// The branches of these names with what they were forked from, or all of them.
async fn read(bucket: &Bucket, names: &[&str], now_ms: i64) -> Result<Everything> {
    let wanted = wanted(bucket, names);
    let mut all = Everything { branches: Vec::new(), problems: bucket.problems.clone(), notes: bucket.notes.clone() };
    let mut heads: BTreeMap<String, u64> = BTreeMap::new();
    for known in bucket.branches.iter().filter(|of| wanted.contains(of.document.id.as_str())) {
        if let Some(problem) = lacks_parent(known, &heads) {
            all.problems.push(problem);
            continue;
        }
        let mut read = bucket.read(known, now_ms).await?;
        heads.insert(read.branch.id.clone(), read.branch.head.seq);
        all.problems.append(&mut read.problems);
        all.notes.append(&mut read.notes);
        all.branches.push(read);
    }
    Ok(all)
}

fn wanted<'a>(bucket: &'a Bucket, names: &[&str]) -> BTreeSet<&'a str> {
    let is_named = |of: &Known| names.is_empty() || names.iter().any(|name| *name == of.name || *name == of.document.id);
    let mut wanted = BTreeSet::new();
    // Parents come first, so going back finds each of them after its children.
    for of in bucket.branches.iter().rev() {
        if is_named(of) || wanted.contains(of.document.id.as_str()) {
            wanted.insert(of.document.id.as_str());
            wanted.extend(of.document.parent.as_ref().map(|parent| parent.id.as_str()));
        }
    }
    wanted
}

/// Its parent's seqs between there and the fork will be given to other changes: whatever was read of it then would be wrong.
fn lacks_parent(of: &Known, heads: &BTreeMap<String, u64>) -> Option<Problem> {
    let fork = of.document.parent.as_ref().filter(|_| of.document.deleted_ms.is_none())?;
    match heads.get(&fork.id) {
        Some(head) if *head >= fork.seq => None,
        Some(head) => Some(Problem::new(
            &of.name,
            format!("it was forked at seq:{}, and what is left of the branch it was forked from ends at seq:{head}", fork.seq),
        )),
        None => Some(Problem::new(&of.name, "the branch that it was forked from cannot be had")),
    }
}

/// What of the branches that were asked for is not as it should be.
#[derive(Debug, Default)]
pub struct Remarks {
    /// A part of history cannot be had.
    pub problems: Vec<Problem>,
    pub notes: Vec<String>,
}

/// Metadata in memory, to read from: of these branches, or of all.
pub async fn memory(bucket: &Bucket, names: &[&str]) -> Result<(MemoryLedger, Remarks)> {
    let ledger = MemoryLedger::live();
    let now_ms = ledger.now_ms().await?;
    let mut all = read(bucket, names, now_ms).await?;
    for of in &all.branches {
        import(&ledger, of, &of.branch).await?;
        if let Some(first) = of.orphans.named.first() {
            let (count, name) = (of.orphans.count, &of.branch.name);
            all.notes.push(format!("{name}: {count} objects are not part of its history, such as {}: {}", first.place, first.what));
        }
    }
    Ok((ledger, Remarks { problems: all.problems, notes: all.notes }))
}

/// Makes the metadata anew. `ledger` may be left out for a dry run.
///
/// # Errors
/// `Rejected` where it has other branches, `Fenced` where it is older than the bucket.
pub async fn rebuild(bucket: &Bucket, ledger: Option<&SharedLedger>, options: Options) -> Result<Report> {
    let known = match ledger {
        Some(ledger) => ledger.branches().await?,
        None => Vec::new(),
    };
    refuse_others(bucket, &known)?;
    let memory = MemoryLedger::live();
    let now_ms = match ledger {
        Some(ledger) => ledger.now_ms().await?,
        None => memory.now_ms().await?,
    };
    let mut all = read(bucket, &[], now_ms).await?;
    let mut report = Report { dry_run: options.dry_run, orphans: bucket.orphans.clone(), ..Report::default() };
    let rebuilt = options.skip_damaged || all.problems.is_empty();
    let writing = ledger.filter(|_| rebuilt && !options.dry_run);
    let owner = format!("rebuild-{}", random::id());
    for of in &mut all.branches {
        let already = known.iter().find(|branch| branch.id == of.branch.id);
        let orphans = std::mem::take(&mut of.orphans);
        let row = match (already, writing) {
            (Some(row), _) => {
                check_epoch(row, of)?;
                if let Some(ledger) = writing {
                    again(|| publish(ledger, &bucket.store, &row.id)).await?;
                }
                row.clone()
            }
            (None, Some(ledger)) => make(bucket, ledger, of, &owner).await?,
            (None, None) => {
                import(&memory, of, &of.branch).await?;
                memory.branch(&of.branch.id).await?.unwrap_or_else(|| of.branch.clone())
            }
        };
        report.branches.push(shown(&row, of, already.is_some(), orphans));
    }
    (report.rebuilt, report.damaged, report.notes) = (rebuilt, all.problems, all.notes);
    Ok(report)
}

fn shown(row: &Branch, of: &Restored, already: bool, orphans: Orphans) -> RebuiltBranch {
    RebuiltBranch {
        id: row.id.clone(),
        name: row.name.clone(),
        status: row.status,
        head: HeadView::of(&row.head),
        totals: row.totals.into(),
        epoch: row.epoch,
        capture: of.capture.as_ref().map(|capture| capture.state),
        bases: of.bases.len(),
        already,
        orphans,
    }
}

/// A database that is in use for something else is left alone; one that an earlier run was writing is gone on with.
fn refuse_others(bucket: &Bucket, known: &[Branch]) -> Result<()> {
    let ids: BTreeSet<&str> = bucket.branches.iter().map(|of| of.document.id.as_str()).collect();
    match known.iter().find(|branch| !ids.contains(branch.id.as_str())) {
        None => Ok(()),
        Some(other) => Err(Fault::rejected(format!(
            "the metadata database has branches that are not in {} ({} is one): choose an empty one with --metadata-db, or another --store",
            bucket.store.describe(),
            other.name
        ))),
    }
}

/// Metadata that was fenced is not mended by adding to it: its queue and its positions are of the past.
fn check_epoch(row: &Branch, of: &Restored) -> Result<()> {
    if of.capture.is_none() || row.epoch >= of.branch.epoch {
        return Ok(());
    }
    Err(Fault::fenced(format!(
        "the metadata database is out of date: {} is numbered by other metadata since epoch {}, here it is of epoch {}; drop it and run this again, or choose another --metadata-db",
        row.name, of.branch.epoch, row.epoch
    )))
}

async fn make(bucket: &Bucket, ledger: &SharedLedger, of: &Restored, owner: &str) -> Result<Branch> {
    let mut branch = of.branch.clone();
    if of.capture.is_some() && branch.deleted_ms.is_none() {
        branch.epoch = take_epoch(bucket, of, owner).await?;
    } else if branch.parent.is_some() && of.capture.is_none() && of.taken == branch.epoch {
        // A checkout that was killed has taken one: the next checkout takes the next.
        branch.epoch += 1;
    }
    let begun = !ledger.segments(&branch.id, 0, 1).await?.is_empty();
    let made = import(&**ledger, of, &branch).await?;
    let stored = ledger.branch(&branch.id).await?.ok_or_else(|| Fault::unknown(format!("branch {} is not there", branch.name)))?;
    if !made && stored.epoch != branch.epoch {
        return Err(Fault::fenced(format!(
            "somebody else rebuilds {} into the same database: let it end, drop the database, and run this again",
            branch.name
        )));
    }
    if begun {
        check_rows(&**ledger, of).await?;
    }
    again(|| publish(ledger, &bucket.store, &branch.id)).await?;
    Ok(stored)
}

/// The next number, from the change behind history on.
async fn take_epoch(bucket: &Bucket, of: &Restored, owner: &str) -> Result<u64> {
    let branch = &of.branch;
    let epoch = branch.epoch + 1;
    let key = layout::epoch(&of.project, &branch.id, epoch);
    let after = of.chain.last().map(|last| last.name.key(&of.project, &branch.id));
    let document = EpochDocument { format: documents::FORMAT, owner: owner.to_owned(), starts_at: branch.head.seq + 1, after };
    let body = documents::to_json(&document)?;
    let tag = PutTag { sha256: Sha256::digest(&body).into(), put_id: random::id() };
    let put = put_idempotent(&*bucket.store, &key, body.into(), &tag, &RetryPolicy::default(), &CancellationToken::new()).await?;
    if put.outcome == PutOutcome::Conflict {
        return Err(Fault::fenced(format!(
            "somebody else took epoch {epoch} of {} a moment ago: run this again when that has ended",
            branch.name
        )));
    }
    Ok(epoch)
}

/// Segments, then everything else in one transaction. False when the branch was there.
async fn import(ledger: &dyn Ledger, of: &Restored, branch: &Branch) -> Result<bool> {
    let mut rows = of.rows();
    loop {
        let page: Vec<SegmentRow> = rows.by_ref().take(PAGE).collect();
        if page.is_empty() {
            break;
        }
        again(|| ledger.import_segments(&page)).await?;
    }
    drop(rows);
    let import = Import { branch: branch.clone(), capture: of.capture.clone(), bases: of.bases.clone() };
    again(|| ledger.import_branch(&import)).await
}

/// For what is harmless to repeat.
async fn again<T, F: Future<Output = Result<T>>>(mut call: impl FnMut() -> F) -> Result<T> {
    match call().await {
        Err(fault) if fault.may_heal() => call().await,
        outcome => outcome,
    }
}

/// Rows that an earlier run left are those of this history, or it would be two in one.
async fn check_rows(ledger: &dyn Ledger, of: &Restored) -> Result<()> {
    let mut rows = of.rows().peekable();
    let mut next = 0;
    loop {
        let page = ledger.segments(&of.branch.id, next, PAGE).await?;
        let full = page.len() == PAGE;
        next = page.last().map_or(next, |row| row.last_seq + 1);
        for row in page {
            if rows.next().is_none_or(|ours| ours.key != row.key) {
                let (key, name) = (row.key, &of.branch.name);
                return Err(Fault::rejected(format!(
                    "the metadata database has {key}, which is not in the history of {name}: drop it and run this again"
                )));
            }
        }
        if !full {
            break;
        }
    }
    match rows.next() {
        None => Ok(()),
        Some(row) => Err(Fault::rejected(format!("the metadata database did not take {}: drop it and run this again", row.key))),
    }
}
