//! Stub.
use crate::branch::catalogue::Uuid;
use crate::change::ClusterTime;
use crate::config::ReadFrom;
use crate::fault::{Fault, Result};
use bson::{RawDocument, RawDocumentBuf};
use std::time::Duration;
use tokio_util::sync::CancellationToken;

pub struct ChunkLimits {
    pub bytes: u64,
    pub documents: u64,
    pub time: Duration,
}
pub struct ChunkEnd {
    pub read_at: ClusterTime,
    pub until: ClusterTime,
    pub last: Option<RawDocumentBuf>,
    pub done: bool,
    pub documents: u64,
    pub bytes: u64,
    pub fuzzy: bool,
}
impl ChunkEnd {
    pub fn nothing(at: ClusterTime) -> Self {
        Self { read_at: at, until: at, last: None, done: true, documents: 0, bytes: 0, fuzzy: false }
    }
}
pub enum ScanOutcome {
    Chunk(ChunkEnd),
    Gone,
}
pub struct Scan;
impl Scan {
    pub async fn new(_: &mongodb::Database, _: Uuid, _: &str, _: bool, _: ReadFrom) -> Result<Self> {
        Ok(Self)
    }
    pub async fn chunk(
        &mut self,
        _: ClusterTime,
        _: Option<&RawDocument>,
        _: &ChunkLimits,
        _: &CancellationToken,
        _: impl FnMut(&RawDocument) -> Result<()> + Send,
    ) -> Result<ScanOutcome> {
        Err(Fault::rejected("stub"))
    }
    pub async fn estimate(&self) -> Result<(u64, u64)> {
        Ok((0, 0))
    }
}
#[derive(Debug)]
pub struct Rate;
impl Rate {
    pub fn new(_: u64) -> Self {
        Self
    }
    pub async fn take(&self, _: u64) {}
}
