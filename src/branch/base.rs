//! Owns: the objects of a base: packing documents of one collection into parts, their manifest, and putting both into the bucket.
//! Does not own: where documents come from (`jobs::snapshot`), reading them back (`replay`), the file format (`segment`).

use std::sync::atomic::AtomicBool;

use bson::{RawDocument, RawDocumentBuf};
use sha2::{Digest, Sha256};
use tokio_util::sync::CancellationToken;

use super::catalogue::Uuid;
use super::documents::{BaseManifest, BasePart};
use super::layout::{self, hex};
use crate::change::{ChangeRef, ClusterTime, Op};
use crate::fault::{Fault, Result};
use crate::ledger::{Branch, Ends, SegmentKind};
use crate::runtime::random;
use crate::segment::{BLOCK_BYTES, BlockBuilder, Encoded, PackedBlock, RawBlock, SegmentHeader, encode, verify_encoded};
use crate::store::{PutOutcome, PutTag, RetryPolicy, Store, put_idempotent};

/// Bytes of documents at which a part ends: large enough that a terabyte makes a manifest of some ten megabytes, small enough that a reader holds two.
pub const PART_BYTES: u64 = 16 << 20;

/// Documents of one collection on their way into a part.
#[derive(Debug)]
pub struct PartBuilder {
    uuid: Uuid,
    blocks: Vec<RawBlock>,
    open: BlockBuilder,
    documents: u64,
    raw_bytes: u64,
}

/// A part that is full.
#[derive(Debug)]
pub struct RawPart {
    uuid: Uuid,
    blocks: Vec<RawBlock>,
    documents: u64,
    raw_bytes: u64,
}

/// The object of a part, and what the manifest says of it.
#[derive(Debug)]
pub struct EncodedPart {
    encoded: Encoded,
    pub part: BasePart,
}

impl PartBuilder {
    pub fn new(uuid: Uuid) -> Self {
        Self { uuid, blocks: Vec::new(), open: BlockBuilder::new(1), documents: 0, raw_bytes: 0 }
    }

    pub fn push(&mut self, doc: &RawDocument) -> Result<()> {
        if self.open.encoded_len() >= BLOCK_BYTES {
            self.close();
        }
        let row = ChangeRef {
            op: Op::Insert,
            coll: "",
            uuid: Some(self.uuid),
            time: ClusterTime::default(),
            wall_ms: None,
            txn: None,
            key: None,
            body: Some(doc),
        };
        self.open.push(&row)?;
        self.documents += 1;
        self.raw_bytes += doc.as_bytes().len() as u64;
        Ok(())
    }

    fn close(&mut self) {
        let next = BlockBuilder::new(self.documents + 1);
        let full = std::mem::replace(&mut self.open, next);
        if !full.is_empty() {
            self.blocks.push(full.finish());
        }
    }

    pub fn documents(&self) -> u64 {
        self.documents
    }

    pub fn raw_bytes(&self) -> u64 {
        self.raw_bytes
    }

    /// `None` where there are no documents.
    pub fn finish(mut self) -> Option<RawPart> {
        self.close();
        let Self { uuid, blocks, documents, raw_bytes, .. } = self;
        (documents > 0).then_some(RawPart { uuid, blocks, documents, raw_bytes })
    }
}

/// Compresses and indexes a part, and decodes it back before it leaves. CPU only.
pub fn encode_part(part: RawPart, branch: &Branch, read_at: ClusterTime, fuzzy: bool, cancel: &AtomicBool) -> Result<EncodedPart> {
    use rayon::prelude::*;
    let header = SegmentHeader {
        kind: SegmentKind::Base,
        branch: branch.id.clone(),
        epoch: branch.epoch,
        first_seq: 1,
        last_seq: part.documents,
        first_time: read_at,
        last_time: read_at,
        last_wall_ms: None,
        start_token: RawDocumentBuf::new(),
        end_token: RawDocumentBuf::new(),
        starts_inside: false,
        ends: Ends::Closed,
        db: branch.source_db.clone(),
        reason: None,
    };
    let blocks = part.blocks.into_par_iter().map(PackedBlock::pack).collect::<Result<Vec<_>>>()?;
    let encoded = encode(&header, &blocks, cancel)?;
    verify_encoded(&encoded, &header, &blocks)?;
    let part = BasePart {
        uuid: hex(&part.uuid),
        object: layout::object_hash(&encoded.sha256),
        sha256: hex(&encoded.sha256),
        documents: part.documents,
        raw_bytes: part.raw_bytes,
        stored_bytes: encoded.bytes.len() as u64,
        read_at,
        fuzzy,
    };
    Ok(EncodedPart { encoded, part })
}

/// Where the objects of a base are.
#[derive(Debug, Clone)]
pub struct Place {
    pub project: String,
    pub branch: String,
    pub seq: u64,
    pub base: String,
}

impl Place {
    pub fn of(branch: &Branch, seq: u64, base: &str) -> Self {
        Self { project: layout::project_of(&branch.name).to_owned(), branch: branch.id.clone(), seq, base: base.to_owned() }
    }

    pub fn part(&self, object: &str) -> String {
        layout::base_part(&self.project, &self.branch, self.seq, &self.base, object)
    }

    pub fn plan(&self) -> String {
        layout::base_plan(&self.project, &self.branch, self.seq, &self.base)
    }

    pub fn manifest(&self) -> String {
        layout::base_manifest(&self.project, &self.branch, self.seq, &self.base)
    }

    /// Puts a part; a repeat is harmless.
    pub async fn put_part(&self, store: &Store, part: &EncodedPart, cancel: &CancellationToken) -> Result<()> {
        put(store, &self.part(&part.part.object), part.encoded.bytes.clone(), part.encoded.sha256, cancel).await
    }

    /// Puts the manifest, after everything it names; its SHA-256 in hex.
    pub async fn put_manifest(&self, store: &Store, manifest: &BaseManifest, cancel: &CancellationToken) -> Result<String> {
        self.put_json(store, &self.manifest(), manifest, cancel).await
    }

    /// Puts the plan, before anything is copied.
    pub async fn put_plan(&self, store: &Store, plan: &BaseManifest, cancel: &CancellationToken) -> Result<String> {
        self.put_json(store, &self.plan(), plan, cancel).await
    }

    async fn put_json(&self, store: &Store, key: &str, manifest: &BaseManifest, cancel: &CancellationToken) -> Result<String> {
        let body = manifest.to_json()?;
        let sha256: [u8; 32] = Sha256::digest(&body).into();
        put(store, key, body.into(), sha256, cancel).await?;
        Ok(hex(&sha256))
    }
}

async fn put(store: &Store, key: &str, body: bytes::Bytes, sha256: [u8; 32], cancel: &CancellationToken) -> Result<()> {
    let tag = PutTag { sha256, put_id: random::id() };
    let report = put_idempotent(&**store, key, body, &tag, &RetryPolicy::default(), cancel).await?;
    if report.outcome == PutOutcome::Conflict {
        return Err(Fault::corrupt(format!("{key} in {} holds other bytes: the object is damaged, verify the branch", store.describe())));
    }
    Ok(())
}
