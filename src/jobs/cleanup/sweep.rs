//! What is in the bucket of a branch that lives and nobody refers to: bases that were given up or cut off, and segments that were uploaded and never committed
//! (correctness.md 21).
//!
//! Owns: the proof that nothing refers to an object, and never will. Does not own: when it is looked for (`engine::keeper`).

use std::collections::BTreeMap;

use super::{PAGE, go_on};
use crate::branch::layout::{self, SegmentName};
use crate::fault::Result;
use crate::jobs::{Parts, Watch};
use crate::ledger::{Branch, JobFilter, JobKind, JobState, SegmentKind, SegmentRow};

/// What bases leave behind that were given up before `before_ms`, and folds and copies that were cut off: objects below a base that no row knows. Ids of bases are never used
/// twice, so what has no row and nobody at work has none for ever.
///
/// SUBTLE: the objects are listed first, then the jobs, then the rows. A base that is begun later is not in the listing, and one that was being made is either still at work
/// or has its row by then.
pub(super) async fn bases(parts: &Parts, branch: &Branch, before_ms: i64, watch: &Watch) -> Result<()> {
    let prefix = layout::bases_prefix(layout::project_of(&branch.name), &branch.id);
    let mut found: BTreeMap<String, Vec<String>> = BTreeMap::new();
    let mut after: Option<String> = None;
    loop {
        let page = parts.store.list(&prefix, after.as_deref(), PAGE).await?;
        after = page.last().map(|object| object.key.clone());
        let is_last = page.len() < PAGE;
        for object in page {
            // One of a fold that nobody waits for any more may be young, and its base yet to come.
            let is_old = object.modified_ms.is_some_and(|at| at <= before_ms);
            if let Some(base) = layout::base_of(&prefix, &object.key).filter(|_| is_old) {
                found.entry(base.to_owned()).or_default().push(object.key);
            }
        }
        if is_last {
            break;
        }
    }
    for state in [JobState::Scheduled, JobState::Ready, JobState::Running] {
        let at_work =
            JobFilter { state: Some(state), kind: Some(JobKind::Snapshot), branch: Some(branch.id.clone()), ..JobFilter::default() };
        if !parts.ledger.jobs(&at_work, 1).await?.is_empty() {
            return Ok(());
        }
    }
    let bases = parts.ledger.bases(&branch.id).await?;
    for (id, keys) in &found {
        let row = bases.iter().find(|base| base.id == *id);
        // Whole as far as the bucket can tell, though no row has it: a rebuild could not use it. That is left to people.
        let is_whole = || keys.iter().any(|key| key.ends_with("/manifest.json"));
        if row.is_some_and(|base| !base.was_given_up_by(before_ms)) || (row.is_none() && is_whole()) {
            continue;
        }
        for key in keys {
            go_on(watch)?;
            parts.store.delete(key).await?;
        }
        tracing::info!(branch = %branch.name, base = %id, objects = keys.len(), "removed what a base that was given up had left");
    }
    for base in bases.iter().filter(|base| base.was_given_up_by(before_ms)) {
        parts.ledger.remove_base(&base.id).await?;
    }
    Ok(())
}

/// Whether somebody else numbers this branch by now: other metadata, which was rebuilt from the bucket, knows what is in use.
pub(super) async fn is_ours(parts: &Parts, branch: &Branch) -> Result<bool> {
    let next = layout::epoch(layout::project_of(&branch.name), &branch.id, branch.epoch + 1);
    Ok(parts.store.head(&next).await?.is_none())
}

/// Segments of changes that were uploaded before `before_ms` (server time; an object of unknown age stays) and are in no row: another attempt of their job
/// has their range.
///
/// SUBTLE: no marker is left for a commit to stumble over, since none can come any more. What is behind the head is committed, all of it, and a job whose range is there has
/// ended for good: a later commit of it is refused. So the head is read first and the rows after it, and what then has no row never gets one. Only where a row of the same
/// epoch has the range: what a rebuild has hidden or could not read is left to people.
pub(super) async fn segments(parts: &Parts, branch: &Branch, before_ms: i64, watch: &Watch) -> Result<u64> {
    let Some(now) = parts.ledger.branch(&branch.id).await? else { return Ok(0) };
    let head = now.head.seq;
    let project = layout::project_of(&branch.name);
    let prefix = layout::segments_l0(project, &branch.id);
    let mut after: Option<String> = None;
    let mut removed = 0;
    loop {
        let page = parts.store.list(&prefix, after.as_deref(), PAGE).await?;
        after = page.last().map(|object| object.key.clone());
        let is_last = page.len() < PAGE;
        let mut found: Vec<(SegmentName, String)> = Vec::new();
        for object in page {
            let name = layout::split_key(&object.key).and_then(|(_, _, rest)| SegmentName::parse(rest));
            let is_old = object.modified_ms.is_some_and(|at| at <= before_ms);
            if let Some(name) = name.filter(|name| is_old && name.last <= head) {
                found.push((name, object.key));
            }
        }
        for (name, key) in unknown(parts, branch, found).await? {
            go_on(watch)?;
            parts.store.delete(&key).await?;
            removed += 1;
            tracing::info!(branch = %branch.name, key, first = name.first, last = name.last, "removed an upload that was never committed");
        }
        if is_last {
            return Ok(removed);
        }
    }
}

/// Those of one page that are in no row and whose range a row has.
async fn unknown(parts: &Parts, branch: &Branch, mut found: Vec<(SegmentName, String)>) -> Result<Vec<(SegmentName, String)>> {
    // A page may hold several epochs: each is in order of its seqs.
    found.sort_unstable();
    let mut orphans = Vec::new();
    for of_epoch in found.chunk_by(|(a, _), (b, _)| a.epoch == b.epoch) {
        let (Some(first), Some(last)) = (of_epoch.first(), of_epoch.iter().map(|(name, _)| name.last).max()) else { continue };
        let rows = rows(parts, branch, first.0.first, last).await?;
        for (name, key) in of_epoch {
            // By last seq, as the rows are: the first that ends at or behind the beginning of this one.
            let at = rows.partition_point(|row| row.last_seq < name.first);
            let over: Vec<&SegmentRow> = rows[at..].iter().take_while(|row| row.first_seq <= name.last).collect();
            let mut same = over.iter().filter(|row| row.epoch == name.epoch).peekable();
            // Below a gap it is the only copy of what happened: a rebuild finds it there.
            let is_held = same.peek().is_some() && same.all(|row| row.kind == SegmentKind::Changes);
            if is_held && over.iter().all(|row| row.key != *key) {
                orphans.push((*name, key.clone()));
            }
        }
    }
    Ok(orphans)
}

/// All rows that hold something of a range.
async fn rows(parts: &Parts, branch: &Branch, first: u64, last: u64) -> Result<Vec<SegmentRow>> {
    let (mut all, mut next): (Vec<SegmentRow>, u64) = (Vec::new(), first);
    loop {
        let page = parts.ledger.segments(&branch.id, next, PAGE).await?;
        let is_last = page.len() < PAGE || page.last().is_some_and(|row| row.first_seq > last);
        next = page.last().map_or(next, |row| row.last_seq + 1);
        all.extend(page.into_iter().take_while(|row| row.first_seq <= last));
        if is_last {
            return Ok(all);
        }
    }
}
