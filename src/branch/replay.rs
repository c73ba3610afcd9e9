//! Owns: folding the history of a line up to a change: the documents of the base and the changes behind it, each at its time.
//! Does not own: what a fold is (`fold`), which objects there are and reading them (`history`), what is done with the result.
//!
//! ```text
//! parts of the base ──▶ fetch + check + decode (one ahead) ══ 1 part ══▶ ┐
//! segments (see `history`) ═════════════════════════════════════════════▶ fold, on one blocking thread
//! ```

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use tokio::sync::mpsc;

use super::catalogue::{Catalogue, Effect, Uuid};
use super::documents::BaseManifest;
use super::fold::{Flow, FoldOptions, Folded, Folder};
use super::history::{Consumer, Gaps, History, Loaded, Progress, Range, get, open_object};
use super::layout::{self, unhex};
use super::line::Based;
use super::point::{Bound, Point};
use crate::change::{ChangeRef, ClusterTime, Op};
use crate::fault::{Fault, Result};
use crate::ledger::SegmentKind;
use crate::segment::RawBlock;

/// Parts of a base that are fetched while one is folded: each is about 16 MiB.
const AHEAD: usize = 1;

/// Folds history up to the bound.
pub async fn fold(history: &History, options: &FoldOptions, progress: Arc<Progress>) -> Result<Folded> {
    let at = match options.until {
        Bound::Seq(seq) => history.locate(Point::Seq(seq)).await?,
        Bound::Time(time) => history.seq_at(time).await?,
    };
    let until = if let Bound::Seq(seq) = options.until { seq } else { at.seq };
    let options = FoldOptions { until: Bound::Seq(until), ..options.clone() };
    let based =
        history.base_for(&at).ok_or_else(|| Fault::rejected(format!("seq:{until} is before every base of {}", history.branch.name)))?;
    let from_seq = based.base.seq + 1;
    if !options.tolerant {
        history.refuse_loss(based, until).await?;
    }
    let replay = Replay::begin(history, based, &options, progress.clone()).await?;
    if from_seq > until {
        return finish(replay).await;
    }
    let gaps = if options.tolerant { Gaps::Cross } else { Gaps::Refuse };
    let range = Range { from_seq, until: options.until, gaps };
    finish(history.read(range, replay, progress).await?).await
}

/// The catalogue at a point, from the base and the segments that change it: documents are not read.
pub async fn catalogue(history: &History, until: Bound, tolerant: bool) -> Result<Catalogue> {
    let at = match until {
        Bound::Seq(seq) => history.locate(Point::Seq(seq)).await?,
        Bound::Time(time) => history.seq_at(time).await?,
    };
    let based =
        history.base_for(&at).ok_or_else(|| Fault::rejected(format!("seq:{} is before every base of {}", at.seq, history.branch.name)))?;
    if !tolerant {
        history.refuse_loss(based, at.seq).await?;
    }
    let catalogue = history.manifest(based).await?.catalogue;
    let follow = Follow { catalogue, tolerant };
    if based.base.seq >= at.seq {
        return Ok(follow.catalogue);
    }
    let range = Range { from_seq: based.base.seq + 1, until: Bound::Seq(at.seq), gaps: Gaps::Ddl };
    Ok(history.read(range, follow, Arc::default()).await?.catalogue)
}

/// Follows a catalogue alone.
struct Follow {
    catalogue: Catalogue,
    tolerant: bool,
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
    blocks: Vec<RawBlock>,
}

impl Replay {
    /// Reads the manifest of the base and begins to fetch its parts.
    pub(in crate::branch) async fn begin(history: &History, based: &Based, options: &FoldOptions, progress: Arc<Progress>) -> Result<Self> {
        let manifest = history.manifest(based).await?;
        let times = manifest.parts.iter().map(|part| part.read_at).collect();
        let mut folder = Folder::new(manifest.catalogue.clone(), options);
        folder.base_until(manifest.seq, manifest.consistent_at);
        let (to, from) = mpsc::channel(AHEAD);
        tokio::spawn(feed(history.clone(), based.clone(), manifest, to));
        Ok(Self { folder, base: Parts { of: based.part, times, from, progress } })
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
        let Documents { uuid, fuzzy, key, blocks } = self.from.blocking_recv().ok_or_else(gone)??;
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

async fn load(history: &History, key: String, part: &super::documents::BasePart, branch: &str) -> Result<Documents> {
    let bytes = get(history.store(), &key).await?;
    let (part, branch) = (part.clone(), branch.to_owned());
    let decoding = tokio::task::spawn_blocking(move || decode(key, &part, &branch, bytes));
    decoding.await.map_err(|e| Fault::corrupt(format!("decoding a part of a base panicked: {e}")))?
}

/// Checks an object against its place in the manifest, and decodes it. CPU only.
fn decode(key: String, part: &super::documents::BasePart, branch: &str, bytes: bytes::Bytes) -> Result<Documents> {
    let bad = |what: String| Fault::corrupt(format!("{key}: {what}"));
    let uuid = unhex(&part.uuid).and_then(|bytes| bytes.try_into().ok());
    let uuid: Uuid = uuid.ok_or_else(|| bad(format!("the manifest has {:?} for a collection's UUID", part.uuid)))?;
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
    Ok(Documents { uuid, fuzzy: part.fuzzy, key, blocks })
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
