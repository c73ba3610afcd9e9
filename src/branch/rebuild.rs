//! The way back from the bucket alone (correctness.md 19, 20): branches, their history, their bases and where their captures go on.
//!
//! Owns: finding the branches of a bucket and reading what belongs to each. Does not own: which segments are history (`chain`), the metadata that is made of
//! it (`import`), or the objects' forms (`documents`, `segment`).
//!
//! ```text
//! listing ──▶ branch.json of each ──▶ per branch: epochs, segments (header and footer), bases ──▶ chain ──▶ rows ──▶ MongoDB, or memory
//! ```
//!
//! Nothing here writes to the bucket but `import`. Memory is about 200 bytes a segment.

mod bases;
mod chain;
mod import;
mod names;
mod read;
mod rows;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, HashSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use parking_lot::Mutex;
use serde::Serialize;

use super::documents::{self, BranchDocument};
use super::layout::{self, SegmentName};
use crate::fault::{Fault, Result};
use crate::ledger::{Base, Branch, BranchStatus, Capture, SegmentKind, SegmentRow};
use crate::store::Store;
use chain::{Epoch, Epochs, Found, Start, choose, is_missed, why_not};
use read::{each, each_page, end_of, object, token_hash};
use rows::Goes;

pub use import::{Options, RebuiltBranch, Remarks, Report, memory, rebuild};

/// Problems and orphans that are named; the count goes on.
const NAMED: usize = 100;
/// Forks of forks; more are a cycle.
const MAX_DEPTH: usize = 1_000;

/// Something that is damaged or missing, so that a part of history cannot be had.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Problem {
    /// The object or the branch.
    pub place: String,
    pub what: String,
}

impl Problem {
    fn new(place: impl Into<String>, what: impl Into<String>) -> Self {
        let (place, what) = (place.into(), what.into());
        // Most faults name their object already.
        let what = what.strip_prefix(&format!("{place}: ")).map_or(what.clone(), str::to_owned);
        Self { place, what }
    }
}

/// Objects that are not part of any history.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Orphans {
    pub count: u64,
    /// The first hundred.
    pub named: Vec<Problem>,
}

impl Orphans {
    fn add(&mut self, place: impl Into<String>, why: impl std::fmt::Display) {
        self.count += 1;
        if self.named.len() < NAMED {
            self.named.push(Problem::new(place, why.to_string()));
        }
    }
}

/// Figures of a running read, for a progress bar.
#[derive(Debug, Default)]
pub struct Progress {
    /// Segments that the listing has shown.
    pub listed: AtomicU64,
    pub read: AtomicU64,
}

/// A bucket whose branches are known.
#[derive(Debug)]
pub struct Bucket {
    store: Store,
    /// Parents before children.
    branches: Vec<Known>,
    problems: Vec<Problem>,
    orphans: Orphans,
    notes: Vec<String>,
    progress: Arc<Progress>,
}

/// A branch and the name that it goes by.
#[derive(Debug, Clone)]
struct Known {
    document: BranchDocument,
    project: String,
    name: String,
}

/// A branch with its history.
#[derive(Debug)]
struct Restored {
    project: String,
    branch: Branch,
    capture: Option<Capture>,
    bases: Vec<Base>,
    chain: Vec<Found>,
    /// The highest epoch that was taken.
    taken: u64,
    orphans: Orphans,
    problems: Vec<Problem>,
    notes: Vec<String>,
}

impl Restored {
    fn rows(&self) -> impl Iterator<Item = SegmentRow> + '_ {
        self.chain.iter().map(|found| found.row(&self.project, &self.branch.id))
    }
}

/// What the listing shows of a branch.
#[derive(Debug, Default)]
struct Listed {
    project: String,
    has_document: bool,
    segments: u64,
    objects: u64,
}

impl Bucket {
    /// Lists everything and reads every `branch.json`.
    pub async fn open(store: Store, progress: Arc<Progress>) -> Result<Self> {
        let mut bucket =
            Self { store, branches: Vec::new(), problems: Vec::new(), orphans: Orphans::default(), notes: Vec::new(), progress };
        let listed = bucket.list().await?;
        let mut documents = Vec::new();
        for (id, of) in &listed {
            if of.has_document {
                documents.push((id.clone(), of.project.clone()));
            } else {
                let prefix = layout::branch_prefix(&of.project, id);
                bucket.orphans.add(prefix, format!("{} objects without a branch.json: it was deleted, or never finished", of.objects));
            }
        }
        let store = bucket.store.clone();
        let reads = documents.into_iter().map(|(id, project)| document(store.clone(), id, project));
        let mut known = Vec::new();
        for read in each(reads.collect::<Vec<_>>()).await?.into_iter().flatten() {
            match read {
                Ok(of) => known.push(of),
                Err(problem) => bucket.problems.push(problem),
            }
        }
        let segments = |id: &str| listed.get(id).map_or(0, |of| of.segments);
        let sorted = names::settle(known, segments, &mut bucket.orphans, &mut bucket.notes);
        bucket.branches = names::parents_first(sorted, &mut bucket.problems);
        Ok(bucket)
    }

    async fn list(&mut self) -> Result<BTreeMap<String, Listed>> {
        let mut branches: BTreeMap<String, Listed> = BTreeMap::new();
        let mut foreign = Orphans::default();
        let (seen, progress) = (Mutex::new((&mut branches, &mut foreign)), self.progress.clone());
        each_page(&self.store, layout::PROJECTS, |page| {
            let (branches, foreign) = &mut *seen.lock();
            for object in page {
                let Some((project, id, rest)) = layout::split_key(&object.key) else {
                    foreign.add(object.key, "is none of Argon's");
                    continue;
                };
                let of = branches.entry(id.to_owned()).or_insert_with(|| Listed { project: project.to_owned(), ..Listed::default() });
                of.objects += 1;
                of.has_document |= rest == "branch.json";
                if SegmentName::parse(rest).is_some() {
                    of.segments += 1;
                    progress.listed.fetch_add(1, Ordering::Relaxed);
                }
            }
            std::future::ready(Ok(()))
        })
        .await?;
        self.orphans = foreign;
        Ok(branches)
    }

    /// Names of the branches that are not deleted.
    pub fn names(&self) -> Vec<&str> {
        self.branches.iter().filter(|of| of.document.deleted_ms.is_none()).map(|of| of.name.as_str()).collect()
    }

    /// Whether a branch has this name or id.
    pub fn has(&self, name: &str) -> bool {
        self.branches.iter().any(|of| of.name == name || of.document.id == name)
    }

    /// What cannot be read, before any history was looked at.
    pub fn problems(&self) -> &[Problem] {
        &self.problems
    }

    pub fn store(&self) -> &Store {
        &self.store
    }

    async fn read(&self, of: &Known, now_ms: i64) -> Result<Restored> {
        let (store, project, document) = (&self.store, of.project.as_str(), &of.document);
        let (mut problems, mut notes, mut orphans) = (Vec::new(), Vec::new(), Orphans::default());
        let mut epochs = epochs(store, project, document, &mut problems).await?;
        let bases = bases::bases(store, project, document, &mut problems).await?;
        let (found, broken) = self.segments(project, &document.id, &mut orphans).await?;
        epochs.guess(&found);
        let own = document.parent.as_ref().map_or(1, |parent| parent.seq.saturating_add(1));
        let begins = bases.iter().find(|base| base.base.seq + 1 == own).and_then(|base| base.token.clone());
        let seq = own.max(document.retained_from);
        // Where earlier history is gone, that token is of a time before.
        let start = Start { seq, token: begins.as_ref().filter(|_| seq == own).map(|token| token_hash(token)) };
        let chain = history(of, found, start, &epochs.known, &mut orphans);
        let branch = rows::branch(document, &of.name, &chain, epochs.taken);
        let head = branch.head.seq;
        for (name, fault) in broken {
            let key = name.key(project, &document.id);
            if is_missed(&name, start, head, &epochs.known) {
                problems.push(Problem::new(key, format!("{}; history of {} ends before it, at seq:{head}", fault.what, of.name)));
            } else {
                orphans.add(key, format!("{}; nothing of it is needed", fault.what));
            }
        }
        let (bases, gone) = rows::kept(bases, head);
        notes.extend(gone.iter().map(|base| format!("{}: the base at seq:{} is not used, history ends at seq:{head}", of.name, base.seq)));
        let goes = match chain.last() {
            Some(last) => Some(end_of(store, &last.name.key(project, &document.id)).await?),
            None => begins.map(|token| Goes { token, last_txn: None }),
        };
        let capture = match (&document.capture, goes) {
            (Some(capture), Some(goes)) => Some(rows::capture(capture, &branch, goes, now_ms)),
            (Some(_), None) => {
                let what = "its capture cannot go on: the bucket does not say where it began; start one into another branch";
                problems.push(Problem::new(&of.name, what));
                None
            }
            (None, _) => None,
        };
        if document.deleted_ms.is_some() {
            (problems, orphans, notes) = Default::default(); // nobody wants it back, and what is being removed is partly gone
        }
        Ok(Restored { project: project.to_owned(), branch, capture, bases, chain, taken: epochs.taken, orphans, problems, notes })
    }

    /// Header and footer of every segment; beside them those that cannot be believed.
    async fn segments(&self, project: &str, id: &str, orphans: &mut Orphans) -> Result<(Vec<Found>, Vec<(SegmentName, Fault)>)> {
        let (mut found, mut broken) = (Vec::new(), Vec::new());
        let prefix = layout::segments(project, id);
        let mut names = Vec::new();
        {
            let names = Mutex::new((&mut names, orphans));
            each_page(&self.store, &prefix, |page| {
                let (names, orphans) = &mut *names.lock();
                for object in page {
                    match layout::split_key(&object.key).and_then(|(.., rest)| SegmentName::parse(rest)) {
                        Some(name) => names.push((name, object.size)),
                        None => orphans.add(object.key, "is no segment of Argon's"),
                    }
                }
                std::future::ready(Ok(()))
            })
            .await?;
        }
        for page in names.chunks(1_000) {
            let reads = page.iter().map(|(name, size)| {
                let (store, key, progress) = (self.store.clone(), name.key(project, id), self.progress.clone());
                let (name, size, id) = (*name, *size, id.to_owned());
                async move {
                    let read = read::segment(store, key, size, name, id).await;
                    progress.read.fetch_add(1, Ordering::Relaxed);
                    read.map(|read| (name, read))
                }
            });
            for (name, read) in each(reads.collect::<Vec<_>>()).await? {
                match read {
                    Some(Ok(of)) => found.push(of),
                    Some(Err(fault)) => broken.push((name, fault)),
                    None => {} // removed meanwhile
                }
            }
        }
        Ok((found, broken))
    }
}

/// The segments that are history; the others are orphans.
///
/// SUBTLE: a gap at the very end counts only where `branch.json` knows that history has one, or a base stands behind it. One that was put and then refused
/// by the metadata looks the same, and asking the source again loses nothing: what it no longer has becomes a gap anew.
fn history(of: &Known, found: Vec<Found>, start: Start, epochs: &Epochs, orphans: &mut Orphans) -> Vec<Found> {
    let mut chosen = choose(&found, start, epochs);
    let mut left: BTreeMap<usize, &str> = BTreeMap::new();
    let knows = |gap: &Found| of.document.status == BranchStatus::Gap || of.document.bases.iter().any(|base| base.seq >= gap.name.last);
    while let Some(last) = chosen.pop_if(|last| found[*last].kind == SegmentKind::Gap && !knows(&found[*last])) {
        left.insert(last, "a gap at the end that the branch does not know of: the source is asked again");
    }
    // A checkout puts its one change before the capture exists: without one it did not finish, and the next one begins anew.
    if of.document.capture.is_none()
        && chosen.len() == 1
        && let Some(only) = chosen.pop_if(|only| is_checkout(&found[*only]))
    {
        left.insert(only, "the checkout that put it did not finish");
    }
    let chain: Vec<Found> = chosen.iter().map(|i| found[*i]).collect();
    let head = rows::head(&of.document, &chain).seq;
    let used: HashSet<usize> = chosen.into_iter().collect();
    for (i, other) in found.iter().enumerate().filter(|(i, _)| !used.contains(i)) {
        let key = other.name.key(&of.project, &of.document.id);
        match left.get(&i) {
            Some(why) => orphans.add(key, why),
            None => orphans.add(key, why_not(&other.name, start, head, epochs)),
        }
    }
    chain
}

fn is_checkout(of: &Found) -> bool {
    of.name.first == of.name.last && of.start == of.end && of.has_ddl
}

async fn document(store: Store, id: String, project: String) -> Result<Option<Result<Known, Problem>>> {
    let key = layout::branch_json(&project, &id);
    let parse = |bytes: bytes::Bytes| {
        let document = documents::read_branch(&key, &bytes).map_err(|f| Fault::corrupt(f.what))?;
        // The name of a deleted branch has its id behind it, so that its own is free again.
        let is_name = document.deleted_ms.is_some() || layout::BranchName::parse(&document.name).is_ok();
        if document.id != id || layout::project_of(&document.name) != project || !is_name {
            return Err(Fault::corrupt(format!("{key}: is of branch {} ({})", document.id, document.name)));
        }
        let name = document.name.clone();
        Ok(Known { document, project: project.clone(), name })
    };
    Ok(object(&store, &key, parse).await?.map(|read| read.map_err(|fault| Problem::new(&key, fault.what))))
}

/// Who numbers a branch from which seq on.
#[derive(Debug, Default)]
struct Numbered {
    known: Epochs,
    /// Taken, but the object does not say from where on.
    unread: Vec<u64>,
    /// The highest; 0 where there is none.
    taken: u64,
}

impl Numbered {
    /// An epoch that cannot be read began where its first segment does, at the latest.
    fn guess(&mut self, found: &[Found]) {
        for epoch in std::mem::take(&mut self.unread) {
            let first = found.iter().filter(|of| of.name.epoch == epoch).map(|of| of.name.first).min();
            self.known.extend(first.map(|starts_at| (epoch, Epoch { starts_at, after: None })));
        }
    }
}

async fn epochs(store: &Store, project: &str, of: &BranchDocument, problems: &mut Vec<Problem>) -> Result<Numbered> {
    let prefix = layout::epochs(project, &of.id);
    let keys = Mutex::new(Vec::new());
    each_page(store, &prefix, |page| {
        keys.lock().extend(page.into_iter().map(|object| object.key));
        std::future::ready(Ok(()))
    })
    .await?;
    let mut epochs = Numbered::default();
    for key in keys.into_inner() {
        let Some(n) = key.strip_prefix(&prefix).and_then(|n| n.parse().ok()) else { continue };
        match object(store, &key, |bytes| documents::read_epoch(&key, &bytes).map_err(|f| Fault::corrupt(f.what))).await? {
            Some(Ok(epoch)) => {
                let after = epoch.after.as_deref().and_then(layout::split_key).and_then(|(.., rest)| SegmentName::parse(rest));
                epochs.known.insert(n, Epoch { starts_at: epoch.starts_at, after });
            }
            Some(Err(fault)) => {
                problems.push(Problem::new(&key, format!("{}; from which change on it numbers is not known", fault.what)));
                epochs.unread.push(n);
            }
            None => continue,
        }
        epochs.taken = epochs.taken.max(n);
    }
    Ok(epochs)
}
