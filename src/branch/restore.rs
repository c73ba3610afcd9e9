//! Owns: restoring a branch at a point into a database: folding, checking the target, writing, comparing counts.
//! Does not own: history (`history`), its folding (`fold`), the writes themselves (`write`), what the target holds and the marker (`target`).
//!
//! Where something is dropped for it the fold ends before the first write, so that damage or a gap leaves the target untouched; into an empty target documents go as soon
//! as they are known to be final. While a restore is incomplete the target holds a
//! marker document ([`MARKER`]); a restore that was killed is run again and then drops what it had begun, never half and ok.

mod indexes;
mod target;
mod write;

use std::collections::{BTreeMap, HashSet};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use bson::{Document as Doc, doc};
use futures_util::stream::{self, TryStreamExt};
use mongodb::Database;
use serde::Serialize;

use super::catalogue::{Catalogue, Collection, Kind, Uuid, View};
use super::fold::{Early, FoldOptions, Folded};
use super::history::{History, Progress};
use super::point::{Bound, Point};
pub(crate) use super::replay::fold;
use super::replay::{Start, Wish};
use super::server;
use crate::fault::{Fault, Result};
use crate::runtime::clock;
pub use target::MARKER;

/// What to restore and how.
#[derive(Debug, Clone)]
pub struct RestoreOptions {
    pub at: Point,
    /// Only these collections and views; all when empty.
    pub collections: Vec<String>,
    /// Drop what is in the way in the target.
    pub drop: bool,
    /// Go on without what a recorded gap or hole has lost.
    pub across_gap: bool,
    /// Make TTL indexes without their expiry.
    pub no_ttl: bool,
    /// Fold and check, write nothing.
    pub dry_run: bool,
    /// Bytes of memory for the fold; writers take about 64 MiB beside it.
    pub budget: u64,
    /// Where the fold spills.
    pub temp_dir: PathBuf,
    /// Parallel writers.
    pub writers: usize,
    /// Other names in the target: what it is called in history, what it is to be called.
    pub rename: Vec<(String, String)>,
    /// Whether documents are written before the fold has ended; `None`: where it pays.
    pub early: Option<bool>,
    /// Leave the mark of an incomplete restore, and let nothing expire: the caller has more to do ([`expire`]) and takes the mark away ([`complete`]).
    pub keep_mark: bool,
}

impl RestoreOptions {
    /// The whole database at a point, into an empty one.
    pub fn new(at: Point) -> Self {
        Self {
            at,
            collections: Vec::new(),
            drop: false,
            across_gap: false,
            no_ttl: false,
            dry_run: false,
            budget: 256 << 20,
            temp_dir: std::env::temp_dir(),
            writers: WRITERS,
            rename: Vec::new(),
            early: None,
            keep_mark: false,
        }
    }
}

/// Writers of a restore: two keep a server busy with whom they share two cores, four one that has more.
pub const WRITERS: usize = 4;
/// Indexes of so many collections are built at a time.
const INDEX_BUILDS: usize = 4;
/// What a server takes while a restore writes, for an estimate; measured on two cores with everything on them.
const WRITE_RATE: u64 = 20 << 20;

/// What was restored.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct RestoreReport {
    pub branch: String,
    pub at: String,
    /// Last change that is in it.
    pub seq: u64,
    pub db: String,
    pub dry_run: bool,
    pub collections: Vec<RestoredCollection>,
    pub views: Vec<String>,
    pub documents: u64,
    pub bytes: u64,
    /// `collection.index` of indexes that expire documents, and clustered collections that do.
    pub ttl: Vec<String>,
    /// Changes left out because a gap or hole was crossed.
    pub left_out: u64,
    /// Bytes of objects read from the store.
    pub read_bytes: u64,
    /// Of a dry run: about how long a restore takes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub estimated_seconds: Option<u64>,
    pub notes: Vec<String>,
}

/// One collection of a report.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct RestoredCollection {
    pub name: String,
    pub documents: u64,
    pub bytes: u64,
    /// Without `_id_`.
    pub indexes: usize,
}

/// Collections and views to be written, by name.
#[derive(Debug)]
struct Wanted {
    collections: Vec<Collection>,
    views: Vec<View>,
    notes: Vec<String>,
}

/// Restores. The report comes only when everything is in the target and counted.
pub async fn restore(history: &History, target: &Database, options: &RestoreOptions, progress: Arc<Progress>) -> Result<RestoreReport> {
    Box::pin(run(history, target, options, progress)).await
}

async fn run(history: &History, target: &Database, options: &RestoreOptions, progress: Arc<Progress>) -> Result<RestoreReport> {
    let began = clock::now();
    let start = Start::at(history, options.at, options.across_gap).await?;
    let (catalogue, moves) = start.catalogue().await?;
    let mut wanted = Wanted::choose(&catalogue, &options.collections)?;
    wanted.rename(&options.rename)?;
    let mut report = RestoreReport::begin(history, target, options, &wanted);
    let plan = target::check(target, &wanted, options.drop).await?;
    let mut work = Restoring { history, target, options, start, wanted, progress: progress.clone() };
    let counted = if options.dry_run {
        let folded = work.fold(Wish { only: work.only(moves), early: None }).await?;
        report.told_by(&folded);
        report.notes.extend(plan.describe());
        write::count(folded, &work.wanted.collections).await?
    } else if work.may_write_early(moves, &plan) {
        work.write_early(&mut report).await?
    } else {
        // What is in the way goes only when all of history has been read and is sound.
        let folded = work.fold(Wish { only: work.only(moves), early: None }).await?;
        report.told_by(&folded);
        progress.expected_documents.store(folded.expected, Ordering::Relaxed);
        let plan = target::check(target, &work.wanted, options.drop).await?;
        work.begin(&plan, &report).await?;
        work.writing().finish(Ok(folded)).await?
    };
    report.read_bytes = progress.stored_bytes.load(Ordering::Relaxed);
    report.fill(&work.wanted.collections, &counted);
    if options.dry_run {
        report.estimated_seconds = Some(began.elapsed().as_secs() + report.bytes / WRITE_RATE + 1);
    } else {
        work.complete(&counted, &mut report).await?;
    }
    Ok(report)
}

/// A restore at work.
struct Restoring<'a> {
    history: &'a History,
    target: &'a Database,
    options: &'a RestoreOptions,
    start: Start<'a>,
    wanted: Wanted,
    progress: Arc<Progress>,
}

impl Restoring<'_> {
    /// The collections whose documents are wanted, if they are known by one UUID all the way.
    fn only(&self, moves: bool) -> Option<HashSet<Uuid>> {
        (!moves).then(|| self.wanted.collections.iter().map(|c| c.uuid).collect())
    }

    async fn fold(&self, wish: Wish) -> Result<Folded> {
        let held = wish.early.as_ref().map_or(0, |early| early.settled.bytes());
        let fold_options = FoldOptions {
            budget: fold_share(self.options.budget).saturating_sub(held).max(MIN_FOLD),
            dir: self.options.temp_dir.clone(),
            expected: self.history.line().raw_bytes(),
            until: Bound::Seq(0), // the start knows
            tolerant: self.options.across_gap,
        };
        self.start.fold(&fold_options, wish, self.progress.clone()).await
    }

    /// Documents that nothing touches go to the target while the rest is read: worth reading the changes twice where most documents are of that kind. Not where
    /// something of somebody is dropped for it, since damage is found on the way.
    fn may_write_early(&self, moves: bool, plan: &target::Plan) -> bool {
        let documents = self.only(moves).map_or(0, |only| self.start.documents(&only));
        !moves && !plan.replaces() && self.options.early.unwrap_or(self.start.changes() <= documents / 2)
    }

    async fn write_early(&self, report: &mut RestoreReport) -> Result<write::Counted> {
        let only: HashSet<Uuid> = self.wanted.collections.iter().map(|c| c.uuid).collect();
        let plain = self.wanted.collections.iter().filter(|c| !c.is_capped()).map(|c| c.uuid).collect();
        self.progress.expected_documents.store(self.start.documents(&only), Ordering::Relaxed);
        let settled = self.start.settled(plain, &self.progress).await?;
        // That took a while: what somebody has put there meanwhile is not to be dropped.
        let plan = target::check(self.target, &self.wanted, self.options.drop).await?;
        if plan.replaces() {
            return Err(Fault::rejected(format!("somebody writes to {:?} while it is restored: run it again", self.target.name())));
        }
        self.begin(&plan, report).await?;
        let writing = self.writing();
        let early = Early { settled, sink: writing.sink() };
        let folded = self.fold(Wish { only: Some(only), early: Some(early) }).await;
        if let Ok(folded) = &folded {
            report.told_by(folded);
            // Those that went early are written or about to be.
            let written = self.progress.documents.load(Ordering::Relaxed);
            self.progress.expected_documents.fetch_max(written + folded.expected, Ordering::Relaxed);
        }
        writing.finish(folded).await
    }

    fn writing(&self) -> write::Writing {
        write::Writing::start(&self.wanted.collections, self.target, self.options.writers, self.progress.clone())
    }

    /// Marks the target, drops what is in the way, and makes the collections.
    async fn begin(&self, plan: &target::Plan, report: &RestoreReport) -> Result<()> {
        plan.begin(self.target, &self.wanted, report).await?;
        for collection in self.wanted.collections.iter().filter(|collection| !plan.keeps_empty(&collection.name)) {
            create(self.target, &collection.name, indexes::create_options(collection)).await?;
        }
        Ok(())
    }

    /// Counts, indexes, views, and the mark goes.
    async fn complete(&mut self, counted: &write::Counted, report: &mut RestoreReport) -> Result<()> {
        let (target, wanted) = (self.target, &self.wanted);
        for collection in &wanted.collections {
            let expected = counted.by_name.get(&collection.name).map_or(0, |c| c.0);
            report.notes.extend(compare_count(target, collection, expected).await?);
        }
        // Collected: a lazy iterator over borrows makes the future less general than a job's handler needs.
        let without_ttl = self.options.no_ttl || self.options.keep_mark;
        let builds: Vec<_> = wanted.collections.iter().map(|collection| Ok(indexes::build(target, collection, without_ttl))).collect();
        stream::iter(builds).try_buffer_unordered(INDEX_BUILDS).try_collect::<()>().await?;
        for view in views_in_order(&wanted.views) {
            create(target, &view.name, view.options.clone()).await?;
        }
        if !self.options.keep_mark {
            complete(target).await?;
        }
        Ok(())
    }
}

/// Takes away the mark of an incomplete restore.
pub async fn complete(target: &Database) -> Result<()> {
    target::end(target).await
}

/// Lets the documents of a restore that kept its mark expire, as history says; may be repeated.
pub async fn expire(target: &Database, catalogue: &Catalogue) -> Result<()> {
    for collection in Wanted::choose(catalogue, &[])?.collections {
        indexes::expire(target, &collection).await?;
    }
    Ok(())
}

/// Whether a restore into this database is incomplete.
pub async fn is_incomplete(target: &Database) -> Result<bool> {
    target::is_marked(target).await
}

/// Least memory of a fold.
const MIN_FOLD: u64 = 4 << 20;

/// Beside the fold there are two decoded segments or parts, objects in flight and batches on their way to the writers.
fn fold_share(budget: u64) -> u64 {
    budget / 3
}

impl Wanted {
    /// Gives other names to what is written; views that stand on a renamed collection go with it.
    fn rename(&mut self, rename: &[(String, String)]) -> Result<()> {
        let to = |name: &str| rename.iter().find(|(from, _)| from == name).map(|(_, to)| to.clone());
        if let Some((unknown, _)) = rename.iter().find(|(from, _)| !self.names().any(|name| name == from)) {
            return Err(Fault::rejected(format!("--rename: there is no collection or view {unknown:?} in what is restored")));
        }
        for collection in &mut self.collections {
            collection.name = to(&collection.name).unwrap_or_else(|| collection.name.clone());
        }
        for view in &mut self.views {
            view.name = to(&view.name).unwrap_or_else(|| view.name.clone());
            if let Some(on) = view.options.get_str("viewOn").ok().and_then(to) {
                view.options.insert("viewOn", on);
            }
            if view.options.to_string().contains("$lookup") && !rename.is_empty() {
                self.notes.push(format!("view {}: names inside its pipeline are as they were", view.name));
            }
        }
        let mut names: Vec<&str> = self.names().collect();
        names.sort_unstable();
        match names.windows(2).find(|pair| pair[0] == pair[1]) {
            Some(pair) => Err(Fault::rejected(format!("--rename: two would be called {:?}", pair[0]))),
            None => Ok(()),
        }
    }

    /// What of the catalogue is restored; what is not is told.
    fn choose(catalogue: &Catalogue, only: &[String]) -> Result<Self> {
        let mut wanted = Self { collections: Vec::new(), views: Vec::new(), notes: Vec::new() };
        let mut by_name: BTreeMap<&str, &Collection> = BTreeMap::new();
        for collection in catalogue.collections.values() {
            if by_name.insert(&collection.name, collection).is_some() {
                return Err(Fault::corrupt(format!("two collections are called {:?} at this point", collection.name)));
            }
        }
        let selected = |name: &str| only.is_empty() || only.iter().any(|o| o == name);
        if let Some(unknown) = only.iter().find(|name| !by_name.contains_key(name.as_str()) && !catalogue.views.contains_key(*name)) {
            return Err(Fault::rejected(format!("there is no collection or view {unknown:?} at this point")));
        }
        for (name, collection) in by_name {
            if !selected(name) || collection.kind == Kind::Timeseries {
                continue;
            }
            if name == MARKER {
                return Err(Fault::rejected(format!("collection {MARKER} is used by restore itself: name the others with --collection")));
            }
            if collection.options.get_bool("temp").unwrap_or(false) {
                wanted.notes.push(format!("temporary collection {name} of a command that was running is left out"));
                continue;
            }
            wanted.collections.push(collection.clone());
        }
        for view in catalogue.views.values().filter(|v| selected(&v.name)) {
            if view.kind == Kind::Timeseries {
                wanted.notes.push(format!("time-series collection {} is not covered and not restored", view.name));
            } else {
                wanted.views.push(view.clone());
            }
        }
        Ok(wanted)
    }
}

impl RestoreReport {
    fn begin(history: &History, target: &Database, options: &RestoreOptions, wanted: &Wanted) -> Self {
        Self {
            branch: history.branch.name.clone(),
            at: options.at.to_string(),
            seq: 0,
            db: target.name().to_owned(),
            dry_run: options.dry_run,
            collections: Vec::new(),
            views: wanted.views.iter().map(|v| v.name.clone()).collect(),
            documents: 0,
            bytes: 0,
            ttl: indexes::ttl_names(&wanted.collections),
            left_out: 0,
            read_bytes: 0,
            estimated_seconds: None,
            notes: wanted.notes.clone(),
        }
    }

    /// What only the fold knows.
    fn told_by(&mut self, folded: &Folded) {
        self.seq = folded.seq;
        self.notes.extend(folded.notes.iter().cloned());
    }

    fn fill(&mut self, collections: &[Collection], counted: &write::Counted) {
        for collection in collections {
            let (documents, bytes) = counted.by_name.get(&collection.name).copied().unwrap_or_default();
            let (name, indexes) = (collection.name.clone(), collection.indexes.len());
            self.collections.push(RestoredCollection { name, documents, bytes, indexes });
            self.documents += documents;
            self.bytes += bytes;
        }
        self.left_out = counted.left_out;
        if counted.left_out > 0 {
            self.notes.push(format!("{} changes were left out", counted.left_out));
        }
    }
}

async fn create(target: &Database, name: &str, options: Doc) -> Result<()> {
    let mut command = doc! {"create": name};
    command.extend(options);
    command.insert("writeConcern", doc! {"w": "majority"});
    target.run_command(command).await.map_err(|e| server::fault(&format!("create {name:?}"), &e))?;
    Ok(())
}

/// A view may stand on another one; the server checks cycles and depth, not presence, so any order works, but this one reads better.
fn views_in_order(views: &[View]) -> Vec<&View> {
    let on_view = |view: &View| view.options.get_str("viewOn").is_ok_and(|on| views.iter().any(|v| v.name == on));
    let (later, first): (Vec<_>, Vec<_>) = views.iter().partition(|v| on_view(v));
    first.into_iter().chain(later).collect()
}

/// The cheap count first; an exact one before anything is called wrong.
async fn compare_count(target: &Database, collection: &Collection, expected: u64) -> Result<Option<String>> {
    let name = &collection.name;
    let fault = |e| server::fault(&format!("count {name:?}"), &e);
    let reply = target.run_command(doc! {"count": name}).await.map_err(fault)?;
    let cheap = reply.get_i32("n").map(i64::from).or_else(|_| reply.get_i64("n")).unwrap_or(-1);
    if u64::try_from(cheap) == Ok(expected) {
        return Ok(None);
    }
    let found = target.collection::<Doc>(name).count_documents(doc! {}).await.map_err(fault)?;
    if found == expected {
        return Ok(None);
    }
    let what = format!("collection {name:?} has {found} documents in the target, {expected} were written");
    if collection.is_capped() {
        return Ok(Some(format!("{what}: the server evicted the oldest to keep the capped size")));
    }
    Err(Fault::corrupt(format!("{what}: is somebody else writing there? the restore is incomplete")))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn collection(name: &str, n: u8, options: Doc) -> Collection {
        let kind = if name.starts_with("system.buckets.") { Kind::Timeseries } else { Kind::Collection };
        Collection { name: name.into(), uuid: [n; 16], kind, options, indexes: vec![] }
    }

    fn catalogue() -> Catalogue {
        let collections = [
            collection("b", 1, doc! {}),
            collection("a", 2, doc! {}),
            collection("tmp.agg_out.1", 3, doc! {"temp": true}),
            collection("system.buckets.ts", 4, doc! {}),
        ];
        let view = |name: &str, kind| (name.to_owned(), View { name: name.into(), kind, options: doc! {} });
        Catalogue {
            collections: collections.into_iter().map(|c| (c.uuid, c)).collect(),
            views: [view("v", Kind::View), view("ts", Kind::Timeseries)].into(),
            ..Catalogue::default()
        }
    }

    #[test]
    fn what_is_not_restored_is_told() {
        let wanted = Wanted::choose(&catalogue(), &[]).unwrap();
        let names: Vec<_> = wanted.collections.iter().map(|c| c.name.as_str()).collect();
        assert_eq!(names, ["a", "b"]);
        assert_eq!(wanted.views.len(), 1);
        assert!(wanted.notes.iter().any(|n| n.contains("time-series collection ts")), "{:?}", wanted.notes);
        assert!(wanted.notes.iter().any(|n| n.contains("tmp.agg_out.1")), "{:?}", wanted.notes);
    }

    #[test]
    fn a_filter_takes_collections_and_views_and_refuses_unknown_names() {
        let wanted = Wanted::choose(&catalogue(), &["a".into(), "v".into()]).unwrap();
        assert_eq!((wanted.collections.len(), wanted.views.len()), (1, 1));
        assert!(Wanted::choose(&catalogue(), &["nope".into()]).unwrap_err().what.contains("nope"));
        let mut marked = catalogue();
        marked.collections.insert([9; 16], collection(MARKER, 9, doc! {}));
        assert!(Wanted::choose(&marked, &[]).unwrap_err().what.contains("name the others with --collection"));
        assert_eq!(Wanted::choose(&marked, &["a".into()]).unwrap().collections.len(), 1);
    }

    #[test]
    fn a_name_that_two_collections_claim_is_an_error() {
        let mut catalogue = catalogue();
        catalogue.collections.insert([9; 16], collection("a", 9, doc! {}));
        assert!(Wanted::choose(&catalogue, &[]).is_err());
    }
}
