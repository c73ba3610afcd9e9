//! Owns: folding history into the state of a database at a point: its catalogue, and per document the last state, each written once.
//! Does not own: reading history (`history`), writing the result (`restore`), DDL itself (`catalogue`).
//!
//! Documents follow the UUID of their collection, so a rename moves nothing and a drop forgets; a collection that is made again under its old
//! UUID (`mongorestore --preserveUUID`) is another one. Memory is bounded by a budget: what does not
//! fit is spilled into hash partitions and replayed at the end, one partition at a time (`table`, `output`).

mod output;
mod settled;
mod sorted;
mod spill;
mod state;
mod table;
#[cfg(test)]
mod tests;

use std::collections::{HashMap, HashSet};
use std::path::PathBuf;

use bson::{RawDocument, RawDocumentBuf};

pub use output::Output;
pub use settled::Settled;
pub use sorted::{Ordered, OrderedItem, OrderedSorter};

use self::output::Fate;
use self::state::of_base;
use self::table::Table;
use super::catalogue::{Catalogue, Effect, Uuid};
use super::point::Bound;
use crate::change::{ChangeRef, ClusterTime, Op, is_passed_over, parse_stored_event};
use crate::fault::{Fault, Result};

/// Bounds of a fold.
#[derive(Debug, Clone)]
pub struct FoldOptions {
    /// Bytes of documents, keys and diffs kept in memory.
    pub budget: u64,
    /// Directory of temporary files.
    pub dir: PathBuf,
    /// Bytes of history to come (sum of `raw_bytes`): chooses the number of partitions.
    pub expected: u64,
    /// Where to stop.
    pub until: Bound,
    /// Leave out changes that do not fit instead of refusing (only across a gap that the user accepted).
    pub tolerant: bool,
}

/// What to do with changes that do not fit.
#[derive(Debug, Clone, Copy, Default)]
pub(in crate::branch) struct Tolerance {
    allowed: bool,
    left_out: u64,
    /// Last seq up to which the base may already hold what a change did (correctness.md 10): documents that came and went while the
    /// capture was started were never seen, so changes of them fit nothing and mean nothing.
    during_base: u64,
}

/// Whether to go on reading.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Flow {
    Continue,
    /// The point has been passed: nothing more is needed.
    Done,
}

/// A document at the point.
#[derive(Debug, Clone, PartialEq)]
pub struct Document {
    /// Index into [`Folded::collections`].
    pub coll: u32,
    /// Grows in the order of insertion.
    pub born: u64,
    pub doc: RawDocumentBuf,
}

/// Takes documents of a base that are final: the collection's UUID and the document.
pub type Sink = Box<dyn FnMut(&Uuid, &RawDocument) -> Result<()> + Send>;

/// Hands on what is final as soon as it is read.
pub struct Early {
    pub settled: Settled,
    pub sink: Sink,
}

impl std::fmt::Debug for Early {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Early").field("settled", &self.settled.bytes()).finish_non_exhaustive()
    }
}

/// Folds changes in order of seq.
#[derive(Debug)]
pub struct Folder {
    catalogue: Catalogue,
    table: Table,
    /// Of the collections that exist.
    index: HashMap<Uuid, u32>,
    /// By index, also of those that are gone.
    uuids: Vec<Uuid>,
    until: Bound,
    last: u64,
    tolerance: Tolerance,
    /// Up to here changes may be in the base already, or be of documents that it never saw.
    base_until: ClusterTime,
    /// Documents of the base so far.
    base_documents: u64,
    /// Documents that are kept, as if no collection were dropped.
    kept: u64,
    /// Collections that could not be read at one time.
    fuzzy: HashSet<Uuid>,
    /// Collections whose documents are wanted; of others nothing is kept, and nothing is checked.
    only: Option<HashSet<Uuid>>,
    early: Option<Early>,
    notes: Vec<String>,
    key: Vec<u8>,
}

/// The state at the point.
#[derive(Debug)]
pub struct Folded {
    pub catalogue: Catalogue,
    /// UUID by collection index. One that was dropped and made again is there once for each life; documents come only of the last.
    pub collections: Vec<Uuid>,
    pub documents: Output,
    /// Last change that is in it; 0 for the base alone.
    pub seq: u64,
    /// What the user should know.
    pub notes: Vec<String>,
    /// How often memory was emptied to disk.
    pub spills: u64,
    /// About how many documents come out: more where collections were dropped.
    pub expected: u64,
}

/// Notes kept; a thousand identical ones help nobody.
const MAX_NOTES: usize = 100;

impl Folder {
    /// Starts from a base; its documents come by [`Self::base_document`].
    pub fn new(base: Catalogue, options: &FoldOptions) -> Self {
        Self {
            base_until: base.listed_at,
            base_documents: 0,
            kept: 0,
            fuzzy: HashSet::new(),
            only: None,
            early: None,
            catalogue: base,
            table: Table::new(options.dir.clone(), options.budget, options.expected),
            index: HashMap::new(),
            uuids: Vec::new(),
            until: options.until,
            last: 0,
            tolerance: Tolerance { allowed: options.tolerant, ..Tolerance::default() },
            notes: Vec::new(),
            key: Vec::new(),
        }
    }

    /// Keeps documents of these collections alone, whatever they are called by and by. For histories in which no collection goes on under another UUID.
    pub fn only(&mut self, collections: HashSet<Uuid>) {
        self.only = Some(collections);
    }

    /// Documents that are final when they are read go there, and do not come out at the end.
    pub fn early(&mut self, early: Early) {
        self.early = Some(early);
    }

    fn is_wanted(&self, uuid: &Uuid) -> bool {
        self.only.as_ref().is_none_or(|only| only.contains(uuid))
    }

    /// The base has everything up to `seq`; its documents were read up to this time (correctness.md 12).
    pub fn base_until(&mut self, seq: u64, time: ClusterTime) {
        self.last = seq;
        self.base_until = self.base_until.max(time);
    }

    /// A document of the base, at the time at which it was read: every change up to then is in it, all later ones come after it. `fuzzy`: some later
    /// ones may be in it too.
    ///
    /// SUBTLE (correctness.md 11): what the same document was before does not matter, it is replaced. A document that the base does not have did not exist when
    /// its place was read, so whatever came before then has ended with its deletion; and changes of documents that were not seen yet fit nothing,
    /// which is tolerated up to the time at which the last part was read (`Tolerance::during_base`), and to no later one.
    pub fn base_document(&mut self, uuid: Uuid, doc: &RawDocument, fuzzy: bool) -> Result<()> {
        if !self.catalogue.collections.contains_key(&uuid) || !self.is_wanted(&uuid) {
            return Ok(()); // dropped by the time that history is at
        }
        if fuzzy {
            self.fuzzy.insert(uuid);
        }
        self.key.clear();
        if !crate::change::write_canonical_id(doc, &mut self.key) {
            return Err(Fault::corrupt("a document of the base has no _id"));
        }
        if let Some(early) = self.early.as_mut().filter(|_| !fuzzy)
            && early.settled.has(&uuid, &self.key)
        {
            return (early.sink)(&uuid, doc);
        }
        let coll = self.index_of(uuid)?;
        self.base_documents += 1;
        self.kept += 1;
        self.table.put(coll, &self.key, of_base(doc, self.base_documents))
    }

    fn index_of(&mut self, uuid: Uuid) -> Result<u32> {
        let next = u32::try_from(self.uuids.len()).map_err(|_| Fault::rejected("more than 2^32 collections in one history"))?;
        Ok(*self.index.entry(uuid).or_insert_with(|| {
            self.uuids.push(uuid);
            next
        }))
    }

    /// Applies one change.
    pub fn apply(&mut self, seq: u64, change: &ChangeRef<'_>) -> Result<Flow> {
        let past = match self.until {
            Bound::Seq(until) => seq > until,
            Bound::Time(until) => change.time > until,
        };
        if past {
            return Ok(Flow::Done);
        }
        if change.time <= self.base_until {
            self.tolerance.during_base = seq;
        }
        if change.op == Op::Event {
            let body = change.body.ok_or_else(|| Fault::corrupt(format!("change seq:{seq} is an event without a body")))?;
            self.event(seq, change, body)?;
        } else {
            self.data(seq, change)?;
        }
        self.last = seq;
        Ok(if self.until == Bound::Seq(seq) { Flow::Done } else { Flow::Continue })
    }

    /// Goes on over a recorded gap that the user has accepted: what it lost is counted and said.
    pub fn gap(&mut self, first: u64, last: u64) {
        let last = if let Bound::Seq(until) = self.until { last.min(until) } else { last };
        self.tolerance.left_out += (last + 1).saturating_sub(first);
        self.notes.push(format!("left out: seq:{first} to seq:{last}, a recorded gap"));
        self.last = last;
    }

    fn event(&mut self, seq: u64, row: &ChangeRef<'_>, body: &RawDocument) -> Result<()> {
        match parse_stored_event(body) {
            Ok(Some(data)) => return self.data(seq, &ChangeRef { time: row.time, txn: row.txn, ..data }),
            Ok(None) => {}
            Err(hole) => return self.refuse(seq, &format!("is a hole: {}", hole.what)),
        }
        match self.catalogue.apply(body) {
            Ok(Effect::None) => {}
            Ok(Effect::Dropped(uuids)) => {
                // SUBTLE: the index goes with the collection. What has been spilled of it is told apart by the index alone, and would come back
                // if the UUID came back under the same one.
                for coll in uuids.iter().filter_map(|uuid| self.index.remove(uuid)) {
                    self.table.drop_collection(coll);
                }
            }
            Ok(Effect::Moved { moved, dropped }) => self.moved(&moved, &dropped),
            Ok(Effect::Unrecognised(what)) => self.refuse(seq, &format!("is {what}"))?,
            Err(fault) => self.refuse(seq, &fault.what)?,
        }
        Ok(())
    }

    /// Documents stay what they are under another UUID.
    fn moved(&mut self, moved: &[(Uuid, Uuid)], dropped: &[Uuid]) {
        for coll in dropped.iter().filter_map(|uuid| self.index.remove(uuid)) {
            self.table.drop_collection(coll);
        }
        let old: Vec<(Option<u32>, Uuid)> = moved.iter().map(|(from, to)| (self.index.remove(from), *to)).collect();
        for (coll, to) in old.into_iter().filter_map(|(coll, to)| Some((coll?, to))) {
            self.index.insert(to, coll);
            if let Some(uuid) = self.uuids.get_mut(coll as usize) {
                *uuid = to;
            }
        }
        if !moved.is_empty() {
            self.base_until = self.catalogue.listed_at;
        }
    }

    fn data(&mut self, seq: u64, change: &ChangeRef<'_>) -> Result<()> {
        if is_passed_over(change.coll) {
            return Ok(());
        }
        let Some(uuid) = change.uuid.or_else(|| self.catalogue.collection_named(change.coll).map(|c| c.uuid)) else {
            return self.refuse(seq, &format!("is about collection {:?}, which does not exist", change.coll));
        };
        if !self.is_wanted(&uuid) {
            return Ok(());
        }
        if !self.catalogue.collections.contains_key(&uuid) {
            // Dropped before the listing, whose create was before the token.
            if change.time <= self.base_until {
                return Ok(());
            }
            return self.refuse(seq, &format!("is about collection {:?}, which does not exist", change.coll));
        }
        if !change.write_document_key(&mut self.key) {
            return self.refuse(seq, "has no _id");
        }
        let coll = self.index_of(uuid)?;
        match change.op {
            Op::Insert => self.kept += 1,
            Op::Delete => self.kept = self.kept.saturating_sub(1),
            _ => {}
        }
        let again = change.time <= self.base_until && self.fuzzy.contains(&uuid);
        match self.table.apply(coll, &self.key, seq, change, again)? {
            Ok(()) => Ok(()),
            Err(misfit) => self.tolerance.misfit(&misfit).map_err(|f| f.at(format!("collection {:?}", change.coll))),
        }
    }

    /// Stops at what cannot be applied, or notes it where the user has accepted that.
    fn refuse(&mut self, seq: u64, why: &str) -> Result<()> {
        let what = format!("change seq:{seq} {why}");
        if !self.tolerance.allowed {
            return Err(Fault::corrupt(what));
        }
        self.tolerance.left_out += 1;
        if self.notes.len() < MAX_NOTES {
            self.notes.push(format!("left out: {what}"));
        }
        Ok(())
    }

    /// The state after the last change applied.
    pub fn finish(self) -> Result<Folded> {
        let alive = |coll: usize, uuid| self.index.get(uuid).is_some_and(|now| *now as usize == coll);
        let fates =
            self.uuids.iter().enumerate().map(|(coll, uuid)| match self.catalogue.collections.get(uuid).filter(|_| alive(coll, uuid)) {
                None => Fate::Gone,
                Some(collection) if collection.is_capped() => Fate::Capped,
                Some(_) => Fate::Plain,
            });
        let (fates, spills) = (fates.collect(), self.table.spills);
        let documents = Output::new(self.table, fates, self.tolerance)?;
        Ok(Folded {
            catalogue: self.catalogue,
            collections: self.uuids,
            documents,
            seq: self.last,
            notes: self.notes,
            spills,
            expected: self.kept,
        })
    }
}
