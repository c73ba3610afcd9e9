//! Copying a database that is in use into a base: chunk by chunk, each a snapshot read, resumable at every chunk (correctness.md 10 to 13).
//!
//! Owns: the order (plan, chunks, manifest, metadata), how many collections are read at a time, and what ends a copy that has lost its sense.
//! Does not own: one chunk (`capture::scan`), the objects (`branch::base`), when a base is due (`engine::keeper`).

use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use bson::RawDocumentBuf;
use futures_util::stream::{self, TryStreamExt};
use mongodb::Database;

use crate::branch::base::{PART_BYTES, PartBuilder, Place, RawPart, encode_part};
use crate::branch::catalogue::{Collection, Kind, read_catalogue};
use crate::branch::documents::{BaseManifest, BasePart};
use crate::branch::layout::hex;
use crate::capture::scan::{ChunkEnd, ChunkLimits, Rate, Scan, ScanOutcome};
use crate::fault::{Fault, Kind as FaultKind, Result};
use crate::jobs::{Parts, Watch};
use crate::ledger::{Base, BaseChunk, BaseOrigin, BaseState, Branch, Capture, CaptureState, chunk_id, same_source, server_facts};
use crate::runtime::random;
use sha2::{Digest, Sha256};

/// Documents and time at which a chunk ends: a snapshot must not become older than the server keeps it (300 s as a rule).
const CHUNK_DOCUMENTS: u64 = 500_000;
const CHUNK_TIME: std::time::Duration = std::time::Duration::from_secs(30);
/// Chunks per page of the ledger.
const PAGE: usize = 1_000;
/// What a copy with a rate reads at once, in seconds of it.
const STEP_SECONDS: u64 = 2;

/// Copies a base as its plan says; the branch, if something has changed.
pub(super) async fn run(parts: &Parts, base: &str, watch: &Watch) -> Result<Option<String>> {
    let Some(base) = parts.ledger.base(base).await?.filter(|base| base.state == BaseState::Copying) else { return Ok(None) };
    let Some(copy) = Copy::prepare(parts, base, watch).await? else { return Ok(None) };
    copy.run().await?;
    Ok(Some(copy.branch.id))
}

/// Plans a base behind everything that history has lost, and copies it. One that is under way and late enough is gone on with. Where nothing is lost there is one
/// only if there is no other, or if it is wanted `anew`: history has everything, and lacks what was there before it.
pub(super) async fn run_new(parts: &Parts, branch: &str, anew: bool, watch: &Watch) -> Result<Option<String>> {
    let ledger = &parts.ledger;
    let (Some(row), Some(capture)) = (ledger.branch(branch).await?, ledger.capture_of(branch).await?) else { return Ok(None) };
    if row.deleted_ms.is_some() || capture.state != CaptureState::Running {
        return Ok(None);
    }
    let bases = ledger.bases(branch).await?;
    let newest = bases.iter().filter(|base| base.state != BaseState::Abandoned).map(|base| base.seq).max();
    let seq = match last_loss(parts, &row, newest.unwrap_or(0)).await? {
        Some(lost) => {
            for base in bases.iter().filter(|base| base.state == BaseState::Copying && base.seq < lost) {
                ledger.abandon_base(&base.id, &format!("changes up to seq:{lost} were lost while it was made")).await?;
            }
            lost
        }
        None => match bases.iter().rfind(|base| base.state == BaseState::Copying && base.origin == BaseOrigin::Copy) {
            Some(base) => return run(parts, &base.id, watch).await,
            None if anew || (newest.is_none() && row.parent.is_none()) => row.head.seq,
            None => return Ok(None),
        },
    };
    let base = plan(parts, &row, &capture, seq, watch).await?;
    run(parts, &base.id, watch).await
}

/// Last seq of what is lost behind a base.
async fn last_loss(parts: &Parts, branch: &Branch, after: u64) -> Result<Option<u64>> {
    let (mut from, mut last) = (after + 1, None);
    loop {
        let page = parts.ledger.losses(&branch.id, from, PAGE).await?;
        let Some(row) = page.last() else { return Ok(last) };
        last = Some(row.last_seq);
        from = row.last_seq + 1;
        if page.len() < PAGE {
            return Ok(last);
        }
    }
}

/// The listing is taken now, after everything that was lost; changes behind the loss are folded onto it tolerantly up to its time.
async fn plan(parts: &Parts, branch: &Branch, capture: &Capture, seq: u64, watch: &Watch) -> Result<Base> {
    let db = source(parts, capture).await?;
    let (mut catalogue, time) = read_catalogue(&db).await?;
    catalogue.retain(&capture.source.selection);
    let plan = BaseManifest {
        id: random::id(),
        origin: BaseOrigin::Copy,
        seq,
        time,
        consistent_at: time,
        db: branch.source_db.clone(),
        token: RawDocumentBuf::new(),
        catalogue,
        parts: Vec::new(),
    };
    let sha256 = Place::of(branch, seq, &plan.id).put_plan(&parts.store, &plan, &watch.cancel).await?;
    let base = Base { origin: BaseOrigin::Copy, state: BaseState::Copying, seq, ..Base::empty(&plan.id, &branch.id, time, sha256) };
    parts.ledger.create_base(&base).await?;
    Ok(base)
}

/// The database, if it still is where the capture was started.
async fn source(parts: &Parts, capture: &Capture) -> Result<Database> {
    let db = parts.sources.database(&capture.source).await.map_err(|f| f.at("source"))?;
    let seen = server_facts(db.client()).await.map_err(|f| f.at("source"))?.identity;
    if !same_source(&capture.source.identity, &seen) {
        return Err(Fault::transient(format!("the source is another deployment now ({seen}): nothing is copied from it")));
    }
    Ok(db)
}

struct Copy<'a> {
    parts: &'a Parts,
    watch: &'a Watch,
    base: Base,
    branch: Branch,
    plan: BaseManifest,
    db: Database,
    place: Place,
    rate: Arc<Rate>,
}

impl<'a> Copy<'a> {
    /// `None` when it has lost its sense.
    async fn prepare(parts: &'a Parts, base: Base, watch: &'a Watch) -> Result<Option<Self>> {
        let ledger = &parts.ledger;
        let (branch, capture) = (ledger.branch(&base.branch).await?, ledger.capture_of(&base.branch).await?);
        let (Some(branch), Some(capture)) = (branch.filter(|b| b.deleted_ms.is_none()), capture) else {
            ledger.abandon_base(&base.id, "the branch is gone").await?;
            return Ok(None);
        };
        let place = Place::of(&branch, base.seq, &base.id);
        let key = place.plan();
        let bytes = parts.store.get(&key, None).await.map_err(|f| f.at(format!("object {key}")))?;
        if hex(&Sha256::digest(&bytes)) != base.sha256 {
            return Err(Fault::corrupt(format!("{key} is not the plan that was made: the catalogue in it cannot be trusted")));
        }
        let plan = BaseManifest::from_json(&key, &bytes)?;
        let db = match source(parts, &capture).await {
            Ok(db) => db,
            Err(fault) => {
                let _ = ledger.note_base(&base.id, None, Some(&fault.what)).await;
                // Rights and addresses are mended by people: the job waits, in sight.
                return Err(if fault.kind == FaultKind::Rejected { Fault { kind: FaultKind::Transient, ..fault } } else { fault });
            }
        };
        let rate = Arc::new(Rate::new(parts.settings.base_rate));
        Ok(Some(Self { parts, watch, base, branch, plan, db, place, rate }))
    }

    async fn run(&self) -> Result<()> {
        self.estimate().await?;
        let wanted: Vec<&Collection> = self.plan.catalogue.collections.values().filter(|c| is_copied(c)).collect();
        let readers = usize::from(self.parts.settings.base_readers.max(1));
        stream::iter(wanted.into_iter().map(Ok)).try_for_each_concurrent(readers, |collection| self.collection(collection)).await?;
        self.finish().await
    }

    /// What there is, for those who watch; asked once.
    async fn estimate(&self) -> Result<()> {
        let mut sum = (self.base.expected_documents, self.base.expected_bytes);
        if sum == (0, 0) {
            for collection in self.plan.catalogue.collections.values().filter(|c| is_copied(c)) {
                let mut scan = self.scan(collection).await?;
                let (documents, bytes) = scan.estimate().await.unwrap_or_default();
                sum = (sum.0 + documents, sum.1 + bytes);
            }
        }
        self.parts.ledger.note_base(&self.base.id, Some(sum), None).await
    }

    async fn scan(&self, collection: &Collection) -> Result<Scan> {
        let read = self.parts.settings.base_read_from;
        Scan::new(&self.db, collection.uuid, &collection.name, collection.is_capped(), read).await
    }

    /// Goes on behind the last chunk that is on record.
    async fn collection(&self, collection: &Collection) -> Result<()> {
        let uuid = hex(&collection.uuid);
        let mut last = self.parts.ledger.last_chunk(&self.base.id, &uuid).await?;
        if last.as_ref().is_some_and(|chunk| chunk.done) {
            return Ok(());
        }
        let mut scan = self.scan(collection).await?;
        while !last.as_ref().is_some_and(|chunk| chunk.done) {
            let n = last.as_ref().map_or(0, |chunk| chunk.n + 1);
            let after = last.as_ref().and_then(|chunk| chunk.last.clone());
            let chunks = self.chunk(&mut scan, collection, n, after).await?;
            last = Some(self.record(&chunks, &uuid).await?);
            // After it is on record: what is waited for is not lost when the process dies meanwhile.
            self.pause(chunks.iter().map(|chunk| chunk.raw_bytes).sum()).await;
        }
        Ok(())
    }

    /// As long as the rate wants after so many bytes.
    async fn pause(&self, bytes: u64) {
        self.watch.progressed();
        tokio::select! {
            () = self.rate.take(bytes) => {}
            () = self.watch.cancel.cancelled() => {}
        }
    }

    /// One stretch, or a whole capped collection: that cannot be gone on with later, so its parts are put on record together.
    async fn chunk(&self, scan: &mut Scan, collection: &Collection, n: u32, after: Option<RawDocumentBuf>) -> Result<Vec<BaseChunk>> {
        // A slow copy reads in small steps, so that it neither bursts nor has much to lose.
        let bytes = match self.parts.settings.base_rate {
            0 => PART_BYTES,
            rate => rate.saturating_mul(STEP_SECONDS).clamp(1 << 20, PART_BYTES),
        };
        let limits = ChunkLimits { bytes, documents: CHUNK_DOCUMENTS, time: CHUNK_TIME };
        let mut chunks = Vec::new();
        let mut after = after;
        loop {
            if self.watch.cancel.is_cancelled() {
                return Err(Fault::cancelled("the copy was stopped; it goes on from here"));
            }
            let mut builder = PartBuilder::new(collection.uuid);
            let read = scan.chunk(self.base.time, after.as_deref(), &limits, &self.watch.cancel, |doc| builder.push(doc)).await;
            let end = match read.map_err(|f| f.at(format!("copying {:?}", collection.name)))? {
                ScanOutcome::Chunk(end) => end,
                // A capped collection begins anew, with everything that was read of it.
                ScanOutcome::Again => {
                    if collection.is_capped() {
                        chunks.clear();
                    }
                    continue;
                }
                // What was read of it before goes with its drop, which is in the stream: before that the base has a part of it alone, so it is consistent
                // only from there on.
                ScanOutcome::Gone(at) => {
                    builder = PartBuilder::new(collection.uuid);
                    ChunkEnd::nothing(at)
                }
            };
            let part = match builder.finish() {
                Some(part) => Some(self.store_part(part, &end).await?),
                None => None,
            };
            let n = n + u32::try_from(chunks.len()).unwrap_or(u32::MAX);
            chunks.push(self.row(n, collection, &end, part));
            if end.done || !end.fuzzy {
                return Ok(chunks);
            }
            self.pause(end.bytes).await;
            after = end.last;
        }
    }

    async fn store_part(&self, part: RawPart, end: &ChunkEnd) -> Result<BasePart> {
        let (branch, read_at, fuzzy) = (self.branch.clone(), end.read_at, end.fuzzy);
        let encoding = move |cancel: &AtomicBool| encode_part(part, &branch, read_at, fuzzy, cancel);
        let encoded = self.parts.cpu.run_until("encode base", &self.watch.cancel, encoding).await?;
        self.place.put_part(&self.parts.store, &encoded, &self.watch.cancel).await?;
        Ok(encoded.part)
    }

    fn row(&self, n: u32, collection: &Collection, end: &ChunkEnd, part: Option<BasePart>) -> BaseChunk {
        let uuid = hex(&collection.uuid);
        let (documents, raw_bytes, stored_bytes) = part.as_ref().map_or((0, 0, 0), |p| (p.documents, p.raw_bytes, p.stored_bytes));
        BaseChunk {
            id: chunk_id(&self.base.id, &uuid, n),
            base: self.base.id.clone(),
            uuid,
            n,
            read_at: end.read_at,
            until: end.until,
            fuzzy: end.fuzzy,
            last: end.last.clone(),
            done: end.done,
            sha256: part.as_ref().map(|p| p.sha256.clone()).unwrap_or_default(),
            object: part.map(|p| p.object),
            documents,
            raw_bytes,
            stored_bytes,
        }
    }

    /// Puts chunks on record, or learns which other ones are; the last of them.
    async fn record(&self, chunks: &[BaseChunk], uuid: &str) -> Result<BaseChunk> {
        let ledger = &self.parts.ledger;
        let stored = match ledger.add_chunks(chunks).await {
            // A repeat tells.
            Err(fault) if fault.kind == FaultKind::Unknown => ledger.add_chunks(chunks).await?,
            outcome => outcome?,
        };
        if let Some(last) = chunks.last().filter(|_| stored) {
            return Ok(last.clone());
        }
        match ledger.base(&self.base.id).await? {
            Some(base) if base.state == BaseState::Copying => {}
            _ => return Err(Fault::fenced("this base is not being made any more")),
        }
        let other = ledger.last_chunk(&self.base.id, uuid).await?;
        other.ok_or_else(|| Fault::unknown("a part of the base could not be put on record"))
    }

    /// Every chunk is there: the manifest, then the metadata.
    async fn finish(&self) -> Result<()> {
        let ledger = &self.parts.ledger;
        let mut chunks = Vec::new();
        loop {
            let page = ledger.chunks(&self.base.id, chunks.last().map(|c: &BaseChunk| c.id.as_str()), PAGE).await?;
            let full = page.len() == PAGE;
            chunks.extend(page);
            if !full {
                break;
            }
        }
        let consistent_at = chunks.iter().map(|c| c.until).max().unwrap_or(self.base.time).max(self.base.time);
        let manifest = BaseManifest { consistent_at, parts: parts_in_order(chunks), ..self.plan.clone() };
        let sha256 = self.place.put_manifest(&self.parts.store, &manifest, &self.watch.cancel).await?;
        let sum = |of: fn(&BasePart) -> u64| manifest.parts.iter().map(of).sum::<u64>();
        let base = Base {
            consistent_at,
            sha256,
            documents: sum(|p| p.documents),
            raw_bytes: sum(|p| p.raw_bytes),
            stored_bytes: sum(|p| p.stored_bytes),
            objects: manifest.parts.len() as u64,
            ..self.base.clone()
        };
        if !ledger.finish_base(&base).await? {
            return Err(Fault::fenced("this base was given up while it was finished"));
        }
        ledger.remove_chunks(&base.id).await?;
        tracing::info!(branch = %self.branch.name, documents = base.documents, bytes = base.raw_bytes, %consistent_at, "base complete");
        Ok(())
    }
}

/// Of the catalogue only what is restored.
fn is_copied(collection: &Collection) -> bool {
    collection.kind == Kind::Collection
}

/// By time, then collection, then place in it: the order in which they are folded.
fn parts_in_order(chunks: Vec<BaseChunk>) -> Vec<BasePart> {
    let mut chunks: Vec<BaseChunk> = chunks.into_iter().filter(|c| c.object.is_some()).collect();
    chunks.sort_by(|a, b| (a.read_at, &a.uuid, a.n).cmp(&(b.read_at, &b.uuid, b.n)));
    let part = |c: BaseChunk| {
        let object = c.object?;
        Some(BasePart {
            uuid: c.uuid,
            object,
            sha256: c.sha256,
            documents: c.documents,
            raw_bytes: c.raw_bytes,
            stored_bytes: c.stored_bytes,
            read_at: c.read_at,
            fuzzy: c.fuzzy,
        })
    };
    chunks.into_iter().filter_map(part).collect()
}
