//! Reading parts of a segment: its end first, then single blocks.
//!
//! Owns: the ranged reads of one object. Does not own: which objects and blocks those are (`look`, `rebuild`), whole objects (`history::load`).

use std::time::Duration;

use bytes::Bytes;

use crate::fault::{Fault, Kind, Result};
use crate::runtime::random::jitter;
use crate::segment::{Footer, RawBlock, TailResult, tail_bytes};
use crate::store::Store;

/// An object of which the end has been read.
pub(in crate::branch) struct Object {
    key: String,
    size: u64,
    /// The last bytes, all of them where it is small.
    tail: Bytes,
    pub(in crate::branch) footer: Footer,
}

impl Object {
    pub(in crate::branch) async fn open(store: &Store, key: &str, size: u64) -> Result<Self> {
        let mut from = size.saturating_sub(tail_bytes(size));
        loop {
            let tail = range(store, key, from, size).await?;
            match Footer::from_tail(key, size, &tail)? {
                TailResult::Footer(footer) => return Ok(Self { key: key.to_owned(), size, tail, footer }),
                TailResult::NeedMore(at) => from = at,
            }
        }
    }

    pub(in crate::branch) async fn block(&self, store: &Store, i: usize) -> Result<RawBlock> {
        let entry = self.footer.blocks.get(i).ok_or_else(|| Fault::corrupt(format!("{}: no block {i}", self.key)))?;
        let (start, end) = (entry.offset, entry.offset + u64::from(entry.stored_len));
        let before = self.size - self.tail.len() as u64;
        let stored = match start.checked_sub(before).and_then(|at| usize::try_from(at).ok()) {
            Some(at) => self.tail.slice(at..at + entry.stored_len as usize),
            None => range(store, &self.key, start, end).await?,
        };
        entry.decode(&self.key, &stored)
    }
}

/// Bytes of an object, with patience for a store that fails for a moment.
pub(in crate::branch) async fn range(store: &Store, key: &str, from: u64, to: u64) -> Result<Bytes> {
    let mut tries = 0;
    loop {
        tries += 1;
        match store.get(key, Some(from..to)).await {
            Err(fault) if fault.may_heal() && tries < 5 => {
                tokio::time::sleep(jitter(Duration::from_millis(100 << tries))).await;
            }
            Err(fault) if fault.kind == Kind::Missing => {
                return Err(Fault::corrupt(format!("object {key} is not in {}", store.describe())));
            }
            outcome => return outcome,
        }
    }
}
