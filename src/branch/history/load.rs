//! Owns: fetching an object of history, checking it against its row, and decoding it off the async threads.
//! Does not own: which objects those are (`rows`, `branch::base`).

use std::time::Duration;

use bson::RawDocumentBuf;
use bytes::Bytes;
use sha2::{Digest, Sha256};

use super::Gaps;
use super::rows::Wanted;
use crate::branch::fold::Flow;
use crate::branch::layout::hex;
use crate::change::ChangeRef;
use crate::fault::{Fault, Kind, Result};
use crate::ledger::{SegmentKind, SegmentRow};
use crate::runtime::random::jitter;
use crate::segment::{RawBlock, SegmentFile};
use crate::store::Store;

/// Attempts for one object before the whole read fails.
const ATTEMPTS: u32 = 5;

/// A decoded segment.
#[derive(Debug)]
pub struct Loaded {
    pub row: SegmentRow,
    /// What of it is wanted: seqs, both inclusive.
    pub first: u64,
    pub last: u64,
    /// The part of the line it is of.
    pub part: usize,
    /// Absent for what is passed over, such as a gap that is crossed; of one that is checked it has no blocks.
    pub file: Option<Decoded>,
}

/// What was in the object.
#[derive(Debug)]
pub struct Decoded {
    pub start_token: RawDocumentBuf,
    pub end_token: RawDocumentBuf,
    pub blocks: Vec<RawBlock>,
    pub summary: crate::segment::Summary,
}

impl Loaded {
    /// Calls `each` for every change that is wanted; faults name object, block and, from the caller's text, the change.
    pub fn each(&self, mut each: impl FnMut(u64, &ChangeRef<'_>) -> Result<Flow>) -> Result<Flow> {
        let Some(file) = &self.file else { return Ok(Flow::Continue) };
        for (i, block) in file.blocks.iter().enumerate() {
            if block.first_seq > self.last {
                break;
            }
            if block.last_seq() < self.first {
                continue;
            }
            let place = || format!("{}, block {i}", self.row.key);
            for row in block.rows().map_err(|f| f.at(place()))? {
                let (seq, change) = row.map_err(|f| f.at(place()))?;
                if seq < self.first {
                    continue;
                }
                if seq > self.last {
                    return Ok(Flow::Continue);
                }
                if each(seq, &change).map_err(|f| f.at(place()))? == Flow::Done {
                    return Ok(Flow::Done);
                }
            }
        }
        Ok(Flow::Continue)
    }
}

/// Fetches, checks and decodes one segment.
pub(super) async fn load(store: Store, wanted: Wanted, gaps: Gaps) -> Result<Loaded> {
    let Wanted { row, first, last, part } = wanted;
    let is_passed = match gaps {
        Gaps::Check => false,
        Gaps::Ddl => !row.has_ddl,
        Gaps::Refuse | Gaps::Cross => row.kind == SegmentKind::Gap,
    };
    if is_passed {
        return Ok(Loaded { row, first, last, part, file: None });
    }
    let bytes = get(&store, &row.key).await?;
    let decoding = tokio::task::spawn_blocking(move || decode(&row, bytes).map(|file| Loaded { row, first, last, part, file: Some(file) }));
    decoding.await.map_err(|e| Fault::corrupt(format!("decoding a segment panicked: {e}")))?
}

/// Checks object against row, and decodes every block. CPU only.
pub(in crate::branch) fn decode(row: &SegmentRow, bytes: Bytes) -> Result<Decoded> {
    let key = &row.key;
    let bad = |what: String| Err(Fault::corrupt(format!("{key}: {what}")));
    let file = open(key, bytes, row.stored_bytes, &row.sha256)?;
    let header = file.header();
    let said = (header.kind, header.branch.as_str(), header.epoch, header.first_seq, header.last_seq, header.first_time, header.last_time);
    let known = (row.kind, row.branch.as_str(), row.epoch, row.first_seq, row.last_seq, row.first_time, row.last_time);
    if said != known {
        return bad(format!("header says {said:?}, its row says {known:?}"));
    }
    // Boundaries of transactions are found by these.
    let (said, known) = ((header.starts_inside, header.ends), (row.starts_inside, row.ends));
    if said != known {
        return bad(format!("header says (starts inside, ends) {said:?}, its row says {known:?}"));
    }
    let blocks = (0..file.block_count()).map(|i| file.block(i)).collect::<Result<Vec<_>>>()?;
    let mut next = row.first_seq;
    for (i, block) in blocks.iter().enumerate() {
        if block.first_seq != next {
            return bad(format!("block {i} begins at seq:{}, expected seq:{next}", block.first_seq));
        }
        next += u64::from(block.count);
    }
    if row.kind == SegmentKind::Changes && next != row.last_seq + 1 {
        return bad(format!("blocks end at seq:{}, its row says seq:{}", next - 1, row.last_seq));
    }
    let summary = file.footer().summary;
    Ok(Decoded { start_token: header.start_token.clone(), end_token: header.end_token.clone(), blocks, summary })
}

/// An object that has the size and the content that are known of it.
pub(in crate::branch) fn open(key: &str, bytes: Bytes, size: u64, known: &str) -> Result<SegmentFile> {
    if bytes.len() as u64 != size {
        return Err(Fault::corrupt(format!("{key}: object has {} bytes, its row says {size}", bytes.len())));
    }
    let sha256 = hex(&Sha256::digest(&bytes));
    if sha256 != known {
        let other = || Fault::corrupt(format!("{key}: object has sha256 {sha256}, its row says {known}: it is another segment"));
        return Err(SegmentFile::find_damage(key, &bytes).unwrap_or_else(other));
    }
    SegmentFile::parse(key, bytes)
}

/// A whole object, with patience for a store that fails for a moment.
pub(in crate::branch) async fn get(store: &Store, key: &str) -> Result<Bytes> {
    let mut attempt = 1;
    loop {
        match store.get(key, None).await {
            Ok(bytes) => return Ok(bytes),
            Err(fault) if fault.may_heal() && attempt < ATTEMPTS => {
                let pause = fault.retry_after.unwrap_or(Duration::from_millis(100 << attempt));
                tokio::time::sleep(jitter(pause)).await;
                attempt += 1;
            }
            Err(fault) if fault.kind == Kind::Missing => {
                return Err(Fault::corrupt(format!("object {key} is not in {}", store.describe())));
            }
            Err(fault) => return Err(fault.at(format!("object {key}"))),
        }
    }
}
