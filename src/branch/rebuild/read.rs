//! Owns: reading what is in the bucket with patience: listings by pages, objects many at a time, of a segment as little as is needed.
//! Does not own: what it means (`chain`, `rows`).

use std::time::Duration;

use bson::RawDocument;
use bytes::Bytes;
use futures_util::{StreamExt, TryStreamExt, stream};
use sha2::{Digest, Sha256};
use tokio::sync::Semaphore;

use super::chain::{Found, TokenHash};
use super::rows::Goes;
use crate::branch::layout::{SegmentName, object_hash, unhex};
use crate::fault::{Fault, Kind, Result};
use crate::ledger::{Ends, SegmentKind};
use crate::runtime::random::jitter;
use crate::segment::{SegmentFile, SegmentHeader, Summary, TAIL_BYTES, TailResult, tail_bytes};
use crate::store::{ObjectInfo, Store};

/// Objects of a page of a listing.
const PAGE: usize = 1_000;
/// Objects that are read at a time: hides the latency of a store that is far away.
pub(super) const AT_A_TIME: usize = 32;
/// Objects up to this size come whole: one request instead of three.
const WHOLE: u64 = 256 << 10;
/// Larger ones that have to come whole do so one after the other.
static LARGE: Semaphore = Semaphore::const_new(1);
/// Attempts for one object before the whole read fails.
const ATTEMPTS: u32 = 5;
/// Reads that come back damaged before the object is taken to be damaged itself.
const DAMAGED_READS: u32 = 3;

/// Repeats a read while it may heal, and a few times where it came back damaged.
pub(super) async fn patient<T, F: Future<Output = Result<T>>>(mut read: impl FnMut() -> F) -> Result<T> {
    let (mut attempt, mut damaged) = (1, 1);
    loop {
        let fault = match read().await {
            Ok(read) => return Ok(read),
            Err(fault) => fault,
        };
        match fault.kind {
            _ if fault.may_heal() && attempt < ATTEMPTS => {
                tokio::time::sleep(jitter(fault.retry_after.unwrap_or(Duration::from_millis(100 << attempt)))).await;
                attempt += 1;
            }
            Kind::Corrupt if damaged < DAMAGED_READS => damaged += 1,
            _ => return Err(fault),
        }
    }
}

/// Every object under a prefix, page by page.
pub(super) async fn each_page<F: Future<Output = Result<()>>>(
    store: &Store,
    prefix: &str,
    mut page_of: impl FnMut(Vec<ObjectInfo>) -> F,
) -> Result<()> {
    let mut after: Option<String> = None;
    loop {
        let page = patient(|| store.list(prefix, after.as_deref(), PAGE)).await?;
        let full = page.len() == PAGE;
        after = page.last().map(|object| object.key.clone());
        page_of(page).await?;
        if !full {
            return Ok(());
        }
    }
}

/// Runs a read for each, [`AT_A_TIME`] at a time on all threads; answers in order.
pub(super) async fn each<T: Send + 'static>(
    reads: impl IntoIterator<Item = impl Future<Output = Result<T>> + Send + 'static>,
) -> Result<Vec<T>> {
    let tasks =
        stream::iter(reads).map(|read| async { tokio::spawn(read).await.map_err(|e| Fault::corrupt(format!("a read panicked: {e}")))? });
    tasks.buffered(AT_A_TIME).try_collect().await
}

/// An object, or what is wrong with it; `None` where it is gone.
pub(super) async fn object<T>(store: &Store, key: &str, parse: impl Fn(Bytes) -> Result<T>) -> Result<Option<Result<T>>> {
    let read = patient(|| async { parse(store.get(key, None).await?) }).await;
    match read {
        Ok(parsed) => Ok(Some(Ok(parsed))),
        Err(fault) if fault.kind == Kind::Missing => Ok(None),
        // Of another version: as good as damaged to this one, and said so. What the store refuses is not the object's fault.
        Err(fault) if fault.kind == Kind::Corrupt => Ok(Some(Err(fault))),
        Err(fault) => Err(fault.at(format!("object {key}"))),
    }
}

/// What a segment says; `None` where it is gone, the fault where it cannot be believed.
pub(super) async fn segment(store: Store, key: String, size: u64, name: SegmentName, branch: String) -> Result<Option<Result<Found>>> {
    let read = patient(|| async {
        let (header, summary, sha256) = match size {
            size if size <= WHOLE => whole(&store, &key).await?,
            _ => match ends(&store, &key, size, &name).await? {
                Some(read) => read,
                None => {
                    let _one = LARGE.acquire().await.map_err(|e| Fault::cancelled(e.to_string()))?;
                    whole(&store, &key).await?
                }
            },
        };
        check(&header, &sha256, &name, &branch).map_err(|what| Fault::corrupt(format!("{key}: {what}")))?;
        Ok(found(&header, summary, sha256, name, size))
    });
    match read.await {
        Ok(found) => Ok(Some(Ok(found))),
        Err(fault) if fault.kind == Kind::Missing => Ok(None),
        Err(fault) if fault.kind == Kind::Corrupt => Ok(Some(Err(fault))),
        Err(fault) => Err(fault.at(format!("object {key}"))),
    }
}

type Said = (SegmentHeader, Summary, [u8; 32]);

/// Every byte is read, and checked.
async fn whole(store: &Store, key: &str) -> Result<Said> {
    let bytes = store.get(key, None).await?;
    let object = key.to_owned();
    let parse = move || {
        let sha256 = Sha256::digest(&bytes).into();
        let file = SegmentFile::parse(&object, bytes)?;
        Ok((file.header().clone(), file.footer().summary, sha256))
    };
    tokio::task::spawn_blocking(parse).await.map_err(|e| Fault::corrupt(format!("decoding a segment panicked: {e}")))?
}

/// Header and footer alone, where the store knows the SHA-256 of the whole; `None` where the whole must be read.
async fn ends(store: &Store, key: &str, size: u64, name: &SegmentName) -> Result<Option<Said>> {
    let head = store.head(key).await?.ok_or_else(|| Fault::missing(format!("object {key} is gone")))?;
    let Some(sha256) = head.sha256.filter(|_| head.size == size) else { return Ok(None) };
    if unhex(&object_hash(&sha256)).as_deref() != Some(&name.hash[..]) {
        return Err(Fault::corrupt(format!("{key}: was put with another sha256 than its key says")));
    }
    let start = store.get(key, Some(0..TAIL_BYTES.min(size))).await?;
    let tail = store.get(key, Some(size.saturating_sub(tail_bytes(size))..size)).await?;
    let footer = match crate::segment::Footer::from_tail(key, size, &tail) {
        Ok(TailResult::Footer(footer)) => footer,
        Ok(TailResult::NeedMore(from)) => match crate::segment::Footer::from_tail(key, size, &store.get(key, Some(from..size)).await?)? {
            TailResult::Footer(footer) => footer,
            TailResult::NeedMore(_) => return Ok(None),
        },
        Err(_) => return Ok(None), // the whole tells where the damage is
    };
    Ok(SegmentHeader::read(key, &start).ok().map(|(header, _)| (header, footer.summary, sha256)))
}

/// The header, the key and the content name each other.
fn check(header: &SegmentHeader, sha256: &[u8; 32], name: &SegmentName, branch: &str) -> Result<(), String> {
    let said = (header.branch.as_str(), header.epoch, header.first_seq, header.last_seq);
    let known = (branch, name.epoch, name.first, name.last);
    if said != known {
        return Err(format!("header says (branch, epoch, first, last) {said:?}, its place says {known:?}"));
    }
    if header.kind == SegmentKind::Base {
        return Err("is a part of a base, not of history".into());
    }
    if sha256[..name.hash.len()] != name.hash {
        return Err("holds other bytes than its key says".into());
    }
    Ok(())
}

fn found(header: &SegmentHeader, summary: Summary, sha256: [u8; 32], name: SegmentName, stored_bytes: u64) -> Found {
    let gap = header.kind == SegmentKind::Gap;
    Found {
        name,
        kind: header.kind,
        first_time: header.first_time,
        last_time: header.last_time,
        last_wall_ms: header.last_wall_ms,
        starts_inside: header.starts_inside,
        ends: header.ends,
        has_ddl: summary.has_ddl,
        // All of a gap is lost.
        holes: if gap { (name.last - name.first).saturating_add(1) } else { summary.holes },
        raw_bytes: summary.raw_bytes,
        stored_bytes,
        sha256,
        start: token_hash(&header.start_token),
        end: token_hash(&header.end_token),
    }
}

pub(super) fn token_hash(token: &RawDocument) -> TokenHash {
    let digest = Sha256::digest(token.as_bytes());
    std::array::from_fn(|i| digest[i])
}

/// Where history goes on: the end token of its last segment, and the transaction that it may end inside of.
pub(super) async fn end_of(store: &Store, key: &str) -> Result<Goes> {
    let read = patient(|| async {
        let bytes = store.get(key, None).await?;
        let object = key.to_owned();
        let reading = tokio::task::spawn_blocking(move || goes(&object, bytes));
        reading.await.map_err(|e| Fault::corrupt(format!("decoding a segment panicked: {e}")))?
    });
    read.await.map_err(|f| f.at(format!("object {key}")))
}

fn goes(object: &str, bytes: Bytes) -> Result<Goes> {
    let file = SegmentFile::parse(object, bytes)?;
    let header = file.header();
    let mut last_txn = None;
    // Of what a gap has lost nobody knows the transaction.
    if header.ends != Ends::Closed && file.block_count() > 0 {
        for row in file.block(file.block_count() - 1)?.rows()? {
            last_txn = row?.1.txn.map(RawDocument::to_owned);
        }
    }
    Ok(Goes { token: header.end_token.clone(), last_txn })
}

#[cfg(test)]
#[path = "read_tests.rs"]
mod tests;
