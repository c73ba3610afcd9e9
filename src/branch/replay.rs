//! Owns: folding the history of a line up to a change: the documents of the base and the changes behind it, each at its time.
//! Does not own: what a fold is (`fold`), which objects there are and reading them (`history`), what is done with the result.
//!
//! ```text
//! parts of the base ──▶ fetch + check + decode (one ahead) ══ 1 part ══▶ ┐
//! segments (see `history`) ═════════════════════════════════════════════▶ fold, on one blocking thread
//! ```

use std::collections::{HashSet, VecDeque};
use std::sync::Arc;
use std::sync::atomic::Ordering;

use tokio::sync::mpsc;

use super::catalogue::{Catalogue, Effect, Uuid};
use super::documents::{BaseManifest, BasePart};
use super::fold::{Early, Flow, FoldOptions, Folded, Folder, Settled};
use super::history::{Consumer, Gaps, History, Loaded, Located, Progress, Range, get, open_object};
use super::layout::{self, unhex};
use super::line::Based;
use super::point::{Bound, Point};
use crate::change::{ChangeRef, ClusterTime, Op, parse_stored_event};
use crate::fault::{Fault, Result};
use crate::ledger::SegmentKind;
use crate::segment::RawBlock;

/// Parts of a base that are fetched while one is folded: each is about 16 MiB.
const AHEAD: usize = 1;

/// Folds history up to the bound.
pub async fn fold(history: &History, options: &FoldOptions, progress: Arc<Progress>) -> Result<Folded> {
    Start::find(history, options.until, options.tolerant).await?.fold(options, Wish::default(), progress).await
}

/// The catalogue at a point, from the base and the segments that change it: documents are not read.
pub async fn catalogue(history: &History, until: Bound, tolerant: bool) -> Result<Catalogue> {
    Ok(Start::find(history, until, tolerant).await?.catalogue().await?.0)
}

/// Where a fold begins, and where it ends.
pub(in crate::branch) struct Start<'a> {
    history: &'a History,
    pub(in crate::branch) based: &'a Based,
    pub(in crate::branch) manifest: BaseManifest,
    /// The last change that is in it.
    pub(in crate::branch) until: u64,
    tolerant: bool,
}

/// What of a fold is wanted, for one that need not know everything.
#[derive(Debug, Default)]
pub(in crate::branch) struct Wish {
    /// Documents of these collections alone; see [`Folder::only`].
    pub(in crate::branch) only: Option<HashSet<Uuid>>,
    pub(in crate::branch) early: Option<Early>,
}

impl<'a> Start<'a> {
    pub(in crate::branch) async fn find(history: &'a History, until: Bound, tolerant: bool) -> Result<Self> {
        let at = match until {
            Bound::Seq(seq) => history.locate(Point::Seq(seq)).await?,
            Bound::Time(time) => history.seq_at(time).await?,
        };
        let until = if let Bound::Seq(seq) = until { seq } else { at.seq };
        Self::from(history, &at, until, tolerant).await
    }

    /// Where a point is that can be restored.
    pub(in crate::branch) async fn at(history: &'a History, point: Point, tolerant: bool) -> Result<Self> {
        let at = history.restorable(point).await?;
        Self::from(history, &at, at.seq, tolerant).await
    }

    async fn from(history: &'a History, at: &Located, until: u64, tolerant: bool) -> Result<Self> {
        let before = || Fault::rejected(format!("seq:{until} is before every base of {}", history.branch.name));
        let based = history.base_for(at).ok_or_else(before)?;
        if !tolerant {
            history.refuse_loss(based, until).await?;
        }
        Ok(Self { history, based, manifest: history.manifest(based).await?, until, tolerant })
    }

    /// Changes behind the base.
    pub(in crate::branch) fn changes(&self) -> u64 {
        self.until.saturating_sub(self.based.base.seq)
    }

    /// Documents of the base in these collections.
    pub(in crate::branch) fn documents(&self, of: &HashSet<Uuid>) -> u64 {
        self.manifest.parts.iter().filter(|part| uuid_of(part).is_some_and(|uuid| of.contains(&uuid))).map(|part| part.documents).sum()
    }

    fn range(&self, gaps: Gaps) -> Option<Range> {
        let from_seq = self.based.base.seq + 1;
        (from_seq <= self.until).then_some(Range { from_seq, until: Bound::Seq(self.until), gaps })
    }

    fn gaps(&self) -> Gaps {
        if self.tolerant { Gaps::Cross } else { Gaps::Refuse }
    }

    /// The catalogue at the end, and whether collections go on under other UUIDs on the way.
    pub(in crate::branch) async fn catalogue(&self) -> Result<(Catalogue, bool)> {
        let follow = Follow { catalogue: self.manifest.catalogue.clone(), tolerant: self.tolerant, moves: false };
        let follow = match self.range(Gaps::Ddl) {
            Some(range) => self.history.read(range, follow, Arc::default()).await?,
            None => follow,
        };
        Ok((follow.catalogue, follow.moves))
    }

    /// Which documents of the base no change touches: reads all changes once.
    pub(in crate::branch) async fn settled(&self, collections: HashSet<Uuid>, progress: &Progress) -> Result<Settled> {
        let settled = Settled::new(collections, self.changes());
        let scan = Scan { catalogue: self.manifest.catalogue.clone(), settled, key: Vec::new() };
        match self.range(self.gaps()) {
            Some(range) => {
                let read = Arc::new(Progress::default());
                let scan = self.history.read(range, scan, read.clone()).await?;
                progress.stored_bytes.fetch_add(read.stored_bytes.load(Ordering::Relaxed), Ordering::Relaxed);
                Ok(scan.settled)
            }
            None => Ok(scan.settled),
        }
    }

    pub(in crate::branch) async fn fold(&self, options: &FoldOptions, wish: Wish, progress: Arc<Progress>) -> Result<Folded> {
        let options = FoldOptions { until: Bound::Seq(self.until), ..options.clone() };
        let replay = Replay::begin(self.history, self.based, self.manifest.clone(), &options, wish, progress.clone());
        match self.range(self.gaps()) {
            Some(range) => finish(self.history.read(range, replay, progress).await?).await,
            None => finish(replay).await,
        }
    }
}

/// The UUID of the collection that a part is of.
fn uuid_of(part: &BasePart) -> Option<Uuid> {
    unhex(&part.uuid).and_then(|bytes| bytes.try_into().ok())
}

/// Notes what changes touch.
struct Scan {
    catalogue: Catalogue,
    settled: Settled,
    key: Vec<u8>,
}

impl Consumer for Scan {
    fn segment(&mut self, loaded: &Loaded) -> Result<Flow> {
        loaded.each(|seq, change| {
            let data = match change.body.filter(|_| change.op == Op::Event) {
                None => *change,
                Some(body) => match parse_stored_event(body) {
                    Ok(Some(data)) => data,
                    // The fold says what is wrong with a hole, and whether that matters.
                    Err(_) => return Ok(Flow::Continue),
                    Ok(None) => {
                        match self.catalogue.apply(body) {
                            Ok(Effect::Dropped(uuids)) => uuids.iter().for_each(|uuid| self.settled.hold(uuid)),
                            Ok(Effect::Moved { .. }) => self.settled.hold_all(),
                            _ => {}
                        }
                        return Ok(Flow::Continue);
                    }
                },
            };
            if crate::change::is_passed_over(data.coll) {
                return Ok(Flow::Continue);
            }
            let uuid = data.uuid.or_else(|| self.catalogue.collection_named(data.coll).map(|c| c.uuid));
            if let Some(uuid) = uuid {
                if !data.write_document_key(&mut self.key) {
                    return Err(Fault::corrupt(format!("change seq:{seq} has no _id")));
                }
                self.settled.touch(uuid, &self.key);
            }
            Ok(Flow::Continue)
        })
    }
}

/// Follows a catalogue alone.
struct Follow {
    catalogue: Catalogue,
    tolerant: bool,
    moves: bool,
}

impl Consumer for Follow {
    fn segment(&mut self, loaded: &Loaded) -> Result<Flow> {
        loaded.each(|seq, change| {
            let Some(body) = change.body.filter(|_| change.op == Op::Event) else { return Ok(Flow::Continue) };
            if crate::change::operation_type(body).is_some_and(crate::change::is_data) {
                return Ok(Flow::Continue);
            }
            match self.catalogue.apply(body) {
                Ok(Effect::Unrecognised(what)) if !self.tolerant => Err(Fault::corrupt(format!("change seq:{seq} is {what}"))),
                Err(fault) if !self.tolerant => Err(fault.at(format!("change seq:{seq}"))),
                Ok(Effect::Moved { .. }) => {
                    self.moves = true;
                    Ok(Flow::Continue)
                }
                _ => Ok(Flow::Continue),
            }
        })
    }
}

/// The rest of the base may be large: it is not for an async thread.
async fn finish(replay: Replay) -> Result<Folded> {
    let finishing = tokio::task::spawn_blocking(move || replay.finish());
    finishing.await.map_err(|e| Fault::corrupt(format!("folding panicked: {e}")))?
}

/// A fold with its base.
pub(in crate::branch) struct Replay {
    folder: Folder,
    base: Parts,
}

/// The parts of a base that are still to come, in order of time.
struct Parts {
    /// The part of the line that the base is of.
    of: usize,
    times: VecDeque<ClusterTime>,
    from: mpsc::Receiver<Result<Documents>>,
    progress: Arc<Progress>,
}

/// A decoded part.
struct Documents {
    uuid: Uuid,
    fuzzy: bool,
    key: String,
    stored_bytes: u64,
    blocks: Vec<RawBlock>,
}

impl Replay {
    /// Begins to fetch the parts of the base.
    pub(in crate::branch) fn begin(
        history: &History,
        based: &Based,
        mut manifest: BaseManifest,
        options: &FoldOptions,
        wish: Wish,
        progress: Arc<Progress>,
    ) -> Self {
        let mut folder = Folder::new(manifest.catalogue.clone(), options);
        folder.base_until(manifest.seq, manifest.consistent_at);
        if let Some(only) = wish.only {
            manifest.parts.retain(|part| uuid_of(part).is_none_or(|uuid| only.contains(&uuid)));
            folder.only(only);
        }
        if let Some(early) = wish.early {
            folder.early(early);
        }
        let times = manifest.parts.iter().map(|part| part.read_at).collect();
        let (to, from) = mpsc::channel(AHEAD);
        tokio::spawn(feed(history.clone(), based.clone(), manifest, to));
        Self { folder, base: Parts { of: based.part, times, from, progress } }
    }

    /// Applies a change of a part of the line, and before it what of the base was read before it.
    pub(in crate::branch) fn apply(&mut self, part: usize, seq: u64, change: &ChangeRef<'_>) -> Result<Flow> {
        let is_due = |base: &Parts| base.times.front().is_some_and(|read_at| part != base.of || *read_at < change.time);
        while is_due(&self.base) {
            self.base.next_into(&mut self.folder)?;
        }
        self.folder.apply(seq, change)
    }

    pub(in crate::branch) fn gap(&mut self, first: u64, last: u64) {
        self.folder.gap(first, last);
    }

    pub(in crate::branch) fn finish(mut self) -> Result<Folded> {
        while !self.base.times.is_empty() {
            self.base.next_into(&mut self.folder)?;
        }
        self.folder.finish()
    }
}

impl Parts {
    fn next_into(&mut self, folder: &mut Folder) -> Result<()> {
        self.times.pop_front();
        let gone = || Fault::cancelled("the parts of the base are not read any more");
        let Documents { uuid, fuzzy, key, stored_bytes, blocks } = self.from.blocking_recv().ok_or_else(gone)??;
        self.progress.stored_bytes.fetch_add(stored_bytes, Ordering::Relaxed);
        for (i, block) in blocks.iter().enumerate() {
            let place = |fault: Fault| fault.at(format!("{key}, block {i}"));
            for row in block.rows().map_err(place)? {
                let (_, change) = row.map_err(place)?;
                let doc = change.body.filter(|_| change.op == Op::Insert);
                let doc = doc.ok_or_else(|| place(Fault::corrupt("a part of a base holds something else than documents")))?;
                folder.base_document(uuid, doc, fuzzy).map_err(place)?;
            }
            self.progress.base_documents.fetch_add(u64::from(block.count), Ordering::Relaxed);
        }
        Ok(())
    }
}

/// Fetches part after part until the consumer is gone.
async fn feed(history: History, based: Based, manifest: BaseManifest, to: mpsc::Sender<Result<Documents>>) {
    let branch = &history.line().parts()[based.part].branch;
    let project = layout::project_of(&branch.name).to_owned();
    for part in &manifest.parts {
        let key = layout::base_part(&project, &branch.id, manifest.seq, &manifest.id, &part.object);
        let loaded = load(&history, key, part, &branch.id).await;
        let failed = loaded.is_err();
        if to.send(loaded).await.is_err() || failed {
            return;
        }
    }
}

async fn load(history: &History, key: String, part: &BasePart, branch: &str) -> Result<Documents> {
    let bytes = get(history.store(), &key).await?;
    let (part, branch) = (part.clone(), branch.to_owned());
    let decoding = tokio::task::spawn_blocking(move || decode(key, &part, &branch, bytes));
    decoding.await.map_err(|e| Fault::corrupt(format!("decoding a part of a base panicked: {e}")))?
}

/// Checks an object against its place in the manifest, and decodes it. CPU only.
fn decode(key: String, part: &BasePart, branch: &str, bytes: bytes::Bytes) -> Result<Documents> {
    let bad = |what: String| Fault::corrupt(format!("{key}: {what}"));
    let uuid = uuid_of(part).ok_or_else(|| bad(format!("the manifest has {:?} for a collection's UUID", part.uuid)))?;
    let file = open_object(&key, bytes, part.stored_bytes, &part.sha256)?;
    let header = file.header();
    if (header.kind, header.branch.as_str()) != (SegmentKind::Base, branch) {
        return Err(bad(format!(
            "is a segment of kind {:?} of branch {}, expected a part of a base of {branch}",
            header.kind, header.branch
        )));
    }
    if file.footer().collections.iter().any(|(_, found)| *found != Some(uuid)) || file.footer().summary.changes != part.documents {
        return Err(bad(format!("does not hold {} documents of collection {}", part.documents, part.uuid)));
    }
    let blocks = (0..file.block_count()).map(|i| file.block(i)).collect::<Result<Vec<_>>>()?;
    Ok(Documents { uuid, fuzzy: part.fuzzy, key, stored_bytes: part.stored_bytes, blocks })
}

impl Consumer for Replay {
    fn segment(&mut self, loaded: &Loaded) -> Result<Flow> {
        if loaded.row.kind == SegmentKind::Gap {
            self.gap(loaded.first, loaded.last);
        }
        let part = loaded.part;
        loaded.each(|seq, change| self.apply(part, seq, change))
    }
}

/// Reads every object of a base and checks it; the number of documents.
pub(in crate::branch) async fn check_parts(history: &History, based: &Based) -> Result<u64> {
    let manifest = history.manifest(based).await?;
    let branch = &history.line().parts()[based.part].branch;
    let mut documents = 0;
    for part in &manifest.parts {
        let key = layout::base_part(layout::project_of(&branch.name), &branch.id, manifest.seq, &manifest.id, &part.object);
        load(history, key, part, &branch.id).await?;
        documents += part.documents;
    }
    Ok(documents)
}
