//! Folding the history of a branch into a new base, from the bucket alone, so that restores do not take longer as history grows.
//!
//! Owns: up to where it is folded, and turning the outcome into objects. Does not own: folding (`branch::replay`), when it is due (`engine::keeper`).

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use bson::RawDocumentBuf;

use crate::branch::base::{PART_BYTES, PartBuilder, Place, encode_part};
use crate::branch::catalogue::Uuid;
use crate::branch::documents::{BaseManifest, BasePart};
use crate::branch::fold::{Document, FoldOptions, Folded};
use crate::branch::history::{History, Progress};
use crate::branch::point::{Bound, Point};
use crate::branch::replay;
use crate::change::ClusterTime;
use crate::fault::{Fault, Kind, Result};
use crate::jobs::{Parts, Watch};
use crate::ledger::{Base, BaseOrigin, BaseState};
use crate::runtime::random;

/// Folds up to the end of what can be restored; the branch, if a base was made.
pub(super) async fn run(parts: &Parts, branch: &str, watch: &Watch) -> Result<Option<String>> {
    let Some(row) = parts.ledger.branch(branch).await?.filter(|b| b.deleted_ms.is_none()) else { return Ok(None) };
    let history = History::open(parts.ledger.clone(), parts.store.clone(), &row.id).await?;
    // At a boundary that the metadata knows, and behind what history begins with: else there is nothing to gain.
    let stretches = history.line().stretches(&*parts.ledger).await?;
    let Some(to) = stretches.last().map(|stretch| stretch.to).filter(|to| *to >= history.branch.first_own_seq()) else { return Ok(None) };
    if history.line().bases().iter().any(|based| based.base.seq >= to) {
        return Ok(None);
    }
    let at = history.locate(Point::Seq(to)).await?;
    let Some(time) = at.time.filter(|_| history.base_for(&at).is_some()) else { return Ok(None) };
    let options = FoldOptions {
        budget: parts.fold_memory,
        dir: parts.settings.spill_dir(),
        expected: history.line().raw_bytes(),
        until: Bound::Seq(at.seq),
        tolerant: false,
    };
    let folded = tokio::select! {
        folded = replay::fold(&history, &options, Arc::new(Progress::default())) => folded?,
        () = watch.cancel.cancelled() => return Err(Fault::cancelled("the fold was stopped")),
    };
    let work = Work { parts, watch, history: &history, seq: at.seq, time };
    work.store(folded).await?;
    Ok(Some(row.id))
}

struct Work<'a> {
    parts: &'a Parts,
    watch: &'a Watch,
    history: &'a History,
    seq: u64,
    time: ClusterTime,
}

impl Work<'_> {
    async fn store(&self, mut folded: Folded) -> Result<()> {
        let branch = &self.history.branch;
        let place = Place::of(branch, self.seq, &random::id());
        let mut open: HashMap<u32, PartBuilder> = HashMap::new();
        let mut stored: Vec<BasePart> = Vec::new();
        let uuids = folded.collections.clone();
        let mut catalogue = std::mem::take(&mut folded.catalogue);
        catalogue.listed_at = self.time;
        loop {
            if self.watch.cancel.is_cancelled() {
                return Err(Fault::cancelled("the fold was stopped"));
            }
            // The next documents may have to be read from disk.
            let next = tokio::task::spawn_blocking(move || folded.documents.next_batch().map(|batch| (batch, folded)));
            let (batch, rest) = next.await.map_err(|e| Fault::corrupt(format!("folding panicked: {e}")))??;
            folded = rest;
            let Some(batch) = batch else { break };
            for document in batch {
                self.add(document, &uuids, &mut open, &mut stored, &place).await?;
            }
            // Several collections at a time must not hold a part each in memory.
            if open.values().map(PartBuilder::raw_bytes).sum::<u64>() > 2 * PART_BYTES {
                self.close_all(&mut open, &mut stored, &place).await?;
            }
        }
        self.close_all(&mut open, &mut stored, &place).await?;
        self.finish(&place, catalogue, stored).await
    }

    async fn add(
        &self,
        document: Document,
        uuids: &[Uuid],
        open: &mut HashMap<u32, PartBuilder>,
        stored: &mut Vec<BasePart>,
        place: &Place,
    ) -> Result<()> {
        let Some(uuid) = uuids.get(document.coll as usize) else { return Ok(()) };
        let builder = open.entry(document.coll).or_insert_with(|| PartBuilder::new(*uuid));
        builder.push(&document.doc)?;
        if builder.raw_bytes() >= PART_BYTES
            && let Some(full) = open.remove(&document.coll)
        {
            self.close(full, stored, place).await?;
        }
        Ok(())
    }

    /// In a fixed order, so that those of a capped collection follow each other as they came.
    async fn close_all(&self, open: &mut HashMap<u32, PartBuilder>, stored: &mut Vec<BasePart>, place: &Place) -> Result<()> {
        let mut all: Vec<(u32, PartBuilder)> = open.drain().collect();
        all.sort_by_key(|(coll, _)| *coll);
        for (_, builder) in all {
            self.close(builder, stored, place).await?;
        }
        Ok(())
    }

    async fn close(&self, builder: PartBuilder, stored: &mut Vec<BasePart>, place: &Place) -> Result<()> {
        let Some(part) = builder.finish() else { return Ok(()) };
        let (branch, time) = (self.history.branch.clone(), self.time);
        let encoding = move |cancel: &AtomicBool| encode_part(part, &branch, time, false, cancel);
        let encoded = self.parts.cpu.run_until("encode base", &self.watch.cancel, encoding).await?;
        place.put_part(&self.parts.store, &encoded, &self.watch.cancel).await?;
        stored.push(encoded.part);
        Ok(())
    }

    /// The row comes last: a fold that was cut off leaves objects that nothing refers to.
    async fn finish(&self, place: &Place, catalogue: crate::branch::catalogue::Catalogue, stored: Vec<BasePart>) -> Result<()> {
        let branch = &self.history.branch;
        let manifest = BaseManifest {
            id: place.base.clone(),
            origin: BaseOrigin::Fold,
            seq: self.seq,
            time: self.time,
            consistent_at: self.time,
            db: branch.source_db.clone(),
            token: RawDocumentBuf::new(),
            catalogue,
            parts: stored,
        };
        let sha256 = place.put_manifest(&self.parts.store, &manifest, &self.watch.cancel).await?;
        let sum = |of: fn(&BasePart) -> u64| manifest.parts.iter().map(of).sum::<u64>();
        let base = Base {
            origin: BaseOrigin::Fold,
            state: BaseState::Complete,
            seq: self.seq,
            documents: sum(|p| p.documents),
            raw_bytes: sum(|p| p.raw_bytes),
            stored_bytes: sum(|p| p.stored_bytes),
            objects: manifest.parts.len() as u64,
            ..Base::empty(&manifest.id, &branch.id, self.time, sha256)
        };
        match self.parts.ledger.create_base(&base).await {
            Err(fault) if fault.kind == Kind::Unknown => self.parts.ledger.create_base(&base).await?,
            outcome => outcome?,
        }
        tracing::info!(branch = %branch.name, seq = base.seq, documents = base.documents, bytes = base.raw_bytes, "history folded into a base");
        Ok(())
    }
}
