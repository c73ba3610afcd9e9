//! Owns: comparing a branch with a live database at one cluster time: options, indexes, views, and documents by hash.
//! Does not own: structure (`verify`), folding (`fold`), the hashes (`hash`), comparing catalogues (`catalogues`).
//!
//! Each side adds up a 128-bit hash per document into hash buckets per collection, in any order; where a bucket differs a second pass over it
//! names documents. Memory is a few KiB a collection, whatever its size.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use bson::{Bson, RawDocument, rawdoc};
use mongodb::Database;

use super::VerifyReport;
use super::capped::Capped;
use super::catalogues::{compare_catalogues, covered};
use super::hash::{BUCKETS, Hashes, Sums, add, bucket, hash};
use crate::branch::catalogue::{Catalogue, Uuid, read_catalogue};
use crate::branch::fold::{FoldOptions, Folded};
use crate::branch::history::{History, Progress};
use crate::branch::point::{Bound, Point};
use crate::branch::restore;
use crate::branch::server::{self, SNAPSHOT_TOO_OLD, SNAPSHOT_UNAVAILABLE};
use crate::change::ClusterTime;
use crate::fault::{self, Fault, Result};
use crate::ledger::{Fidelity, Ledger, Selection, SharedLedger, same_source, server_facts};
use crate::runtime::clock;
use crate::store::Store;

/// Documents named per collection, and buckets looked into for them.
const NAMED: usize = 10;
/// Collections whose documents are named.
const NAMED_COLLECTIONS: usize = 5;
/// Documents of a collection's differing buckets held in the second pass; what is beyond is named only in part.
const MAX_SUSPECTS: usize = 1_000_000;
/// A listing that changes while documents are read is taken again.
const ATTEMPTS: u32 = 3;
/// How often the position is looked at while waiting for the capture.
const POLL: Duration = Duration::from_millis(200);

/// What to compare with, and how long to wait.
#[derive(Debug, Clone)]
pub struct AgainstOptions {
    pub db: Database,
    /// How long the capture may take to reach the time of the comparison.
    pub patience: Duration,
    pub budget: u64,
    pub temp_dir: PathBuf,
}

/// The live side at its time.
pub(super) struct Live {
    pub(super) catalogue: Catalogue,
    time: ClusterTime,
    hashes: Hashes,
    /// Collections that were read as they were at some moment between `time` and `until`.
    later: BTreeSet<Uuid>,
    until: ClusterTime,
}

/// Compares branch `name` with the live database: with its source at one cluster time, collections by UUID; with any other database, such as
/// a restored copy, as it is now against the head, collections by name.
pub async fn against(
    ledger: SharedLedger,
    store: Store,
    name: &str,
    options: &AgainstOptions,
    progress: Arc<Progress>,
) -> Result<VerifyReport> {
    let history = History::open(ledger.clone(), store.clone(), name).await?;
    let sorted = history.branch.fidelity == Fidelity::OrderMayDiffer;
    let is_source = is_source(&*ledger, &history, &options.db).await?;
    let all = Selection::default();
    let selection = history.capture.as_ref().filter(|_| is_source).map_or(&all, |capture| &capture.source.selection);
    let mut live = read_live(&options.db, sorted, selection).await?;
    let history = if is_source { wait_for(ledger.clone(), store.clone(), name, live.time, options.patience).await? } else { history };
    let mut report = VerifyReport::new(&history.branch.name);
    report.at = Some(if is_source { live.time.to_string() } else { Point::Head.to_string() });
    if sorted {
        report.notes.push("compared without regard to field order, which this branch does not know".into());
    }
    if !is_source {
        report.notes.push(format!("{} is not the database that was captured: collections are matched by name", options.db.name()));
    }
    let compared = async {
        let until = history.resolve(if is_source { Point::Time(live.time) } else { Point::Head }).await?;
        let folded = fold_at(&history, until, options, progress.clone()).await?;
        if !is_source {
            live.take_uuids_by_name(&folded.catalogue);
        }
        compare_catalogues(&live.catalogue, &folded.catalogue, &mut report);
        let ours = hash_fold(folded, sorted, progress).await?;
        report.documents = ours.values().flatten().map(|(count, _)| count).sum();
        let written = live.written_meanwhile(&ours);
        if is_source && !written.is_empty() {
            let history = wait_for(ledger, store, name, live.until, options.patience).await?;
            let until = history.resolve(Point::Time(live.until)).await?;
            let folded = fold_at(&history, until, options, Arc::default()).await?;
            live.judge_later(written, &ours, &hash_fold(folded, sorted, Arc::default()).await?, &mut report);
        }
        let suspects = compare_hashes(&live, &ours, &mut report);
        if !suspects.is_empty() {
            name_documents(&history, &live, until, suspects, sorted, options, &mut report).await?;
        }
        Ok::<(), Fault>(())
    };
    match compared.await {
        // History that cannot be folded is what verification is there to find.
        Err(fault) if fault.kind == fault::Kind::Corrupt => report.differs("history", fault.what),
        outcome => outcome?,
    }
    Ok(report)
}

/// Whether this is the very database that the branch captures.
async fn is_source(ledger: &dyn Ledger, history: &History, db: &Database) -> Result<bool> {
    let Some(capture) = ledger.capture_of(&history.branch.id).await? else { return Ok(false) };
    Ok(capture.source.db == db.name() && same_source(&capture.source.identity, &server_facts(db.client()).await?.identity))
}

impl Live {
    /// Collections that could not be read at the time of the comparison and differ from history at that time.
    fn written_meanwhile(&self, ours: &Hashes) -> Vec<Uuid> {
        let differs = |uuid: &&Uuid| self.hashes.get(*uuid) != Some(ours.get(*uuid).unwrap_or(&nothing()));
        self.later.iter().filter(differs).copied().collect()
    }

    /// Such a collection was read at a moment between `time` (of `ours`) and `until` (of `later`). It is equal at one of them, or history
    /// stood still and it is different, or it was being written to and there is nothing to compare it with.
    fn judge_later(&mut self, collections: Vec<Uuid>, ours: &Hashes, later: &Hashes, report: &mut VerifyReport) {
        for uuid in collections {
            let name = self.catalogue.collections.get(&uuid).map_or("?", |c| c.name.as_str());
            if self.hashes.get(&uuid) == Some(later.get(&uuid).unwrap_or(&nothing())) {
                report.notes.push(format!("{name} cannot be read at a time (capped): compared at {}", self.until));
            } else if ours.get(&uuid) != later.get(&uuid) {
                report.notes.push(format!("{name} is not comparable: it cannot be read at a time (capped) and was written to meanwhile"));
            } else {
                continue;
            }
            self.hashes.remove(&uuid);
        }
    }

    /// Collections of another database have other UUIDs: where history has one of the same name, its UUID counts.
    pub(super) fn take_uuids_by_name(&mut self, ours: &Catalogue) {
        let by_name: HashMap<&str, Uuid> = ours.collections.values().map(|c| (c.name.as_str(), c.uuid)).collect();
        for (old, mut collection) in std::mem::take(&mut self.catalogue.collections) {
            let uuid = by_name.get(collection.name.as_str()).copied().unwrap_or(old);
            collection.uuid = uuid;
            if self.later.remove(&old) {
                self.later.insert(uuid);
            }
            if let Some(hashes) = self.hashes.remove(&old) {
                self.hashes.insert(uuid, hashes);
            }
            self.catalogue.collections.insert(uuid, collection);
        }
    }
}

pub(super) async fn fold_at(history: &History, until: Bound, options: &AgainstOptions, progress: Arc<Progress>) -> Result<Folded> {
    let fold =
        FoldOptions { budget: options.budget, dir: options.temp_dir.clone(), expected: history.line().raw_bytes(), until, tolerant: false };
    restore::fold(history, &fold, progress).await
}

/// Waits until every change up to `time` is committed.
async fn wait_for(ledger: SharedLedger, store: Store, name: &str, time: ClusterTime, patience: Duration) -> Result<History> {
    let begun = clock::now();
    loop {
        let history = History::open(ledger.clone(), store.clone(), name).await?;
        if history.captured_until.is_some_and(|until| until >= time) {
            return Ok(history);
        }
        if begun.elapsed() >= patience {
            let until = history.captured_until.map_or_else(|| "nothing".to_owned(), |until| until.to_string());
            return Err(Fault::transient(format!(
                "{name} is captured up to {until}, the comparison needs {time}: is an engine running? (waited {} s)",
                patience.as_secs()
            )));
        }
        tokio::time::sleep(POLL).await;
    }
}

/// Lists, reads all documents at the time of the listing, lists again: the catalogue must not have changed in between.
pub(super) async fn read_live(db: &Database, sorted: bool, selection: &Selection) -> Result<Live> {
    for _ in 0..ATTEMPTS {
        let (mut catalogue, time) = read_catalogue(db).await?;
        catalogue.retain(selection);
        let (mut hashes, mut later) = (Hashes::new(), BTreeSet::new());
        for collection in catalogue.collections.values().filter(|c| covered(c)) {
            let mut sums = nothing();
            let mut key = Vec::new();
            let at_time = scan(db, &collection.name, time, |doc| {
                add(&mut sums, doc, sorted, &mut key);
            })
            .await?;
            if !at_time {
                later.insert(collection.uuid);
            }
            hashes.insert(collection.uuid, sums);
        }
        let (mut again, until) = read_catalogue(db).await?;
        again.retain(selection);
        if again.collections == catalogue.collections && again.views == catalogue.views {
            return Ok(Live { catalogue, time, hashes, later, until });
        }
    }
    Err(Fault::transient(format!("collections of {:?} kept changing while they were read: compare again later", db.name())))
}

/// Reads a collection as of `time`; false when the server cannot do that for it and the present was read.
async fn scan(db: &Database, name: &str, time: ClusterTime, mut each: impl FnMut(&RawDocument)) -> Result<bool> {
    let at_time = rawdoc! {"level": "snapshot", "atClusterTime": bson::Timestamp::from(time)};
    let mut find = rawdoc! {"find": name, "readConcern": at_time};
    let mut is_at_time = true;
    let fault = |e: mongodb::error::Error| match server::code(&e) {
        Some(SNAPSHOT_TOO_OLD) => Fault::rejected(format!(
            "reading {name:?} took longer than the server keeps snapshots: raise minSnapshotHistoryWindowInSeconds on the source"
        )),
        _ => server::fault(&format!("read {name:?}"), &e),
    };
    let mut cursor = loop {
        match db.run_raw_cursor_command(find).await {
            Ok(cursor) => break cursor,
            Err(e) if is_at_time && server::code(&e) == Some(SNAPSHOT_UNAVAILABLE) => {
                is_at_time = false;
                find = rawdoc! {"find": name, "readConcern": {"level": "majority"}};
            }
            Err(e) => return Err(fault(e)),
        }
    };
    while cursor.advance().await.map_err(fault)? {
        each(cursor.current());
    }
    Ok(is_at_time)
}

/// Reads a collection as it was at `time`; false where the server cannot: it is gone, was renamed or changed, or that is too long ago.
pub(super) async fn scan_at(db: &Database, name: &str, uuid: &Uuid, time: ClusterTime, mut each: impl FnMut(&RawDocument)) -> Result<bool> {
    const CANNOT: [i32; 4] = [SNAPSHOT_TOO_OLD, SNAPSHOT_UNAVAILABLE, server::NAMESPACE_NOT_FOUND, server::COLLECTION_UUID_MISMATCH];
    let uuid = bson::Binary { subtype: bson::spec::BinarySubtype::Uuid, bytes: uuid.to_vec() };
    let concern = rawdoc! {"level": "snapshot", "atClusterTime": bson::Timestamp::from(time)};
    let fault = |e: mongodb::error::Error| match server::code(&e) {
        Some(code) if CANNOT.contains(&code) => Ok(false),
        _ => Err(server::fault(&format!("read {name:?} at {time}"), &e)),
    };
    let mut cursor = match db.run_raw_cursor_command(rawdoc! {"find": name, "collectionUUID": uuid, "readConcern": concern}).await {
        Ok(cursor) => cursor,
        Err(e) => return fault(e),
    };
    loop {
        match cursor.advance().await {
            Ok(true) => each(cursor.current()),
            Ok(false) => return Ok(true),
            Err(e) => return fault(e),
        }
    }
}

/// Documents of a collection.
pub(super) fn counted(sums: &[(u64, u128)]) -> u64 {
    sums.iter().map(|(count, _)| count).sum()
}

/// A collection without documents.
pub(super) fn nothing() -> Sums {
    vec![(0, 0); BUCKETS]
}

pub(super) async fn hash_fold(folded: Folded, sorted: bool, progress: Arc<Progress>) -> Result<Hashes> {
    hash_kept(folded, sorted, BTreeMap::new(), progress).await
}

/// The same of what these collections would keep.
pub(super) async fn hash_kept(
    mut folded: Folded,
    sorted: bool,
    mut capped: BTreeMap<Uuid, Capped>,
    progress: Arc<Progress>,
) -> Result<Hashes> {
    blocking(move || {
        let (mut hashes, mut key) = (Hashes::new(), Vec::new());
        while let Some(documents) = folded.documents.next_batch()? {
            for document in documents {
                let Some(uuid) = folded.collections.get(document.coll as usize) else { continue };
                let added = add(hashes.entry(*uuid).or_insert_with(nothing), &document.doc, sorted, &mut key);
                if let Some(capped) = capped.get_mut(uuid) {
                    capped.saw(added, document.doc.as_bytes().len() as u64);
                }
                progress.documents.fetch_add(1, Ordering::Relaxed);
            }
        }
        capped.iter().for_each(|(uuid, capped)| capped.evict(uuid, &mut hashes));
        Ok(hashes)
    })
    .await
}

async fn blocking<T: Send + 'static>(work: impl FnOnce() -> Result<T> + Send + 'static) -> Result<T> {
    tokio::task::spawn_blocking(work).await.map_err(|e| Fault::corrupt(format!("folding panicked: {e}")))?
}

/// Differing buckets per collection.
pub(super) type Buckets = BTreeMap<Uuid, BTreeSet<usize>>;

/// Reports collections whose documents differ; returns differing buckets of the first few.
pub(super) fn compare_hashes(live: &Live, ours: &Hashes, report: &mut VerifyReport) -> Buckets {
    let mut suspects = BTreeMap::new();
    let none = nothing();
    for (uuid, theirs) in &live.hashes {
        let mine = ours.get(uuid).unwrap_or(&none);
        let differing: BTreeSet<usize> = (0..BUCKETS).filter(|i| theirs[*i] != mine[*i]).take(NAMED).collect();
        if differing.is_empty() {
            continue;
        }
        let name = live.catalogue.collections.get(uuid).map_or("?", |c| c.name.as_str());
        report.differs(name, format!("documents differ: {} in the database, {} in history", counted(theirs), counted(mine)));
        if suspects.len() < NAMED_COLLECTIONS {
            suspects.insert(*uuid, differing);
        }
    }
    suspects
}

/// Id as text and hash, by canonical key.
type Suspects = HashMap<Vec<u8>, (String, u128)>;

fn note_suspect(into: &mut Suspects, doc: &RawDocument, wanted: &BTreeSet<usize>, sorted: bool, key: &mut Vec<u8>) {
    if wanted.contains(&bucket(doc, key)) && into.len() < MAX_SUSPECTS {
        let id = doc.get("_id").ok().flatten().and_then(|id| Bson::try_from(id).ok()).map_or_else(|| "?".to_owned(), |id| id.to_string());
        into.insert(key.clone(), (id, hash(doc, sorted)));
    }
}

/// The second pass: reads the differing buckets on both sides and names documents.
async fn name_documents(
    history: &History,
    live: &Live,
    until: Bound,
    suspects: Buckets,
    sorted: bool,
    options: &AgainstOptions,
    report: &mut VerifyReport,
) -> Result<()> {
    let mut folded = fold_at(history, until, options, Arc::new(Progress::default())).await?;
    let wanted = suspects.clone();
    let mut ours: BTreeMap<Uuid, Suspects> = blocking(move || {
        let (mut ours, mut key) = (BTreeMap::new(), Vec::new());
        while let Some(documents) = folded.documents.next_batch()? {
            for document in documents {
                let Some(uuid) = folded.collections.get(document.coll as usize) else { continue };
                if let Some(buckets) = wanted.get(uuid) {
                    note_suspect(ours.entry(*uuid).or_default(), &document.doc, buckets, sorted, &mut key);
                }
            }
        }
        Ok(ours)
    })
    .await?;
    for (uuid, buckets) in suspects {
        let Some(collection) = live.catalogue.collections.get(&uuid) else { continue };
        let (mut theirs, mut key) = (Suspects::new(), Vec::new());
        scan(&options.db, &collection.name, live.time, |doc| note_suspect(&mut theirs, doc, &buckets, sorted, &mut key)).await?;
        let mut mine = ours.remove(&uuid).unwrap_or_default();
        let mut named = Vec::new();
        for (key, (id, hash)) in theirs {
            match mine.remove(&key) {
                Some((_, same)) if same == hash => {}
                Some(_) => named.push(format!("_id {id} differs")),
                None => named.push(format!("_id {id} is only in the database")),
            }
        }
        named.extend(mine.into_values().map(|(id, _)| format!("_id {id} is only in history")));
        named.sort();
        for what in named.into_iter().take(NAMED) {
            report.differs(&collection.name, what);
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_collection_read_at_no_time_is_different_only_if_history_stood_still() {
        let sums = |n: u64| vec![(n, u128::from(n)); BUCKETS];
        let live = |n| Live {
            catalogue: Catalogue::default(),
            time: ClusterTime { t: 1, i: 1 },
            hashes: [([1; 16], sums(n))].into(),
            later: [[1; 16]].into(),
            until: ClusterTime { t: 2, i: 1 },
        };
        // In the database, in history before and after it was read; whether it is compared further, and what is said.
        for (seen, before, after, compared, said) in
            [(5, 4, 5, false, "compared at ts:2.1"), (5, 4, 7, false, "not comparable"), (5, 4, 4, true, ""), (5, 5, 5, true, "")]
        {
            let (mut live, mut report) = (live(seen), VerifyReport::new("b"));
            let (ours, later) = ([([1; 16], sums(before))].into(), [([1; 16], sums(after))].into());
            let written = live.written_meanwhile(&ours);
            live.judge_later(written, &ours, &later, &mut report);
            assert_eq!(live.hashes.contains_key(&[1; 16]), compared, "{seen} {before} {after}");
            assert!(report.identical && report.notes.len() == usize::from(!compared), "{report:?}");
            assert!(report.notes.iter().all(|note| note.contains(said)), "{report:?}");
            let suspects = compare_hashes(&live, &ours, &mut report);
            assert_eq!(suspects.is_empty(), !compared || seen == before);
        }
    }
}
