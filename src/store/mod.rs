//! Object stores: where segments live.
//!
//! Owns: the port ([`ObjectStore`]), its adapters (`s3`, `file`, `cloud` for gs:// and az://), a memory twin, a faulty wrapper,
//! opening one from a URL, the start-up probe, and the one way to upload ([`put_idempotent`]).
//! Does not own which keys there are or what objects mean (`branch::layout`, `segment`).
//!
//! Retrying is done in one layer: adapters make one attempt and classify, `put_idempotent` and the callers of reads repeat.

mod cloud;
mod faulty;
mod file;
mod file_walk;
mod key;
mod memory;
mod metered;
mod open;
mod probe;
mod put;
mod s3;
mod s3_fault;

pub use cloud::CloudStore;
pub use faulty::{FaultCounts, FaultPlan, FaultyStore, GetFault, PutFault};
pub use file::FileStore;
pub use key::{MAX_KEY_BYTES, check_key};
pub use memory::MemoryStore;
pub use metered::MeteredStore;
pub use open::{S3Keys, StoreOptions, Switch, install_tls, open};
pub use probe::{Probe, probe};
pub use put::{PutOutcome, PutReport, RetryPolicy, put_idempotent};
pub use s3::S3Store;
pub(crate) use s3::http_client;

use std::ops::Range;
use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;

use crate::fault::{Fault, Result};

/// Largest object a store takes or gives whole; a larger one is read by ranges. Bounds what a hostile answer can make us allocate.
pub const MAX_OBJECT_BYTES: u64 = 1 << 30;

/// A store shared by tasks.
pub type Store = Arc<dyn ObjectStore>;

/// Identifies one put of one content, so that after an unclear outcome a HEAD tells "mine, it landed" from "someone else's".
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PutTag {
    /// SHA-256 of the body.
    pub sha256: [u8; 32],
    /// Fresh for every put call of a job attempt; kept in the object's metadata where the store has metadata.
    pub put_id: String,
}

/// What a conditional put did.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Put {
    /// The object was not there and is now stored durably.
    Stored,
    /// The condition failed: an object is there already (for `replace`: the version has moved on).
    Refused,
}

/// What a store knows of an object.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ObjectInfo {
    /// Full key, prefix of the store URL excluded.
    pub key: String,
    /// Bytes.
    pub size: u64,
    /// From the metadata of our own puts; absent in listings and where the store keeps no metadata.
    pub sha256: Option<[u8; 32]>,
    /// As `sha256`.
    pub put_id: Option<String>,
    /// Opaque version for [`ObjectStore::replace`] (an ETag).
    pub version: Option<String>,
    /// When it was written, by the store's clock, in milliseconds since the epoch; only in listings.
    pub modified_ms: Option<i64>,
}

/// An object store. Keys use `/`, are relative to the prefix of the store's URL, and never begin with one.
///
/// Errors are classified: `Transient` (did not happen), `Unknown` (may have happened), `Missing`, `Rejected` (rights, bucket), `Corrupt`.
#[async_trait]
pub trait ObjectStore: Send + Sync + std::fmt::Debug {
    /// Stores a new object if the key is free (`If-None-Match: *`). Durable when it returns `Stored`.
    async fn put_new(&self, key: &str, body: Bytes, tag: &PutTag) -> Result<Put>;
    /// Overwrites the object at `key` if its version is still `version` (`If-Match`).
    async fn replace(&self, key: &str, body: Bytes, tag: &PutTag, version: &str) -> Result<Put>;
    /// The whole object, or a range of its bytes. A missing object is `Missing`; a range past the end is `Corrupt`.
    async fn get(&self, key: &str, range: Option<Range<u64>>) -> Result<Bytes>;
    /// Metadata of the object, or `None`.
    async fn head(&self, key: &str) -> Result<Option<ObjectInfo>>;
    /// At most `max` (1..=1000) objects under `prefix` that come after the key `after`. Fewer than `max` means the end.
    ///
    /// The order is the store's own and the same in every page: the byte order of keys within a directory (what stands before the
    /// last `/`), and of whole keys in most stores; SeaweedFS compares component by component (`shop/x` before `shop-eu/x`). So `after`
    /// is the last key of the page before, or any key within one directory; who needs an order across directories sorts.
    async fn list(&self, prefix: &str, after: Option<&str>, max: usize) -> Result<Vec<ObjectInfo>>;
    /// Removes the object; absent is fine.
    async fn delete(&self, key: &str) -> Result<()>;
    /// Whether the store itself compares what it stores with a checksum sent along, or there is no wire between.
    /// Where false, an upload is read back before it counts (correctness.md 28).
    fn verifies_puts(&self) -> bool {
        false
    }
    /// Free bytes of what it writes to, where that has an end.
    fn free_bytes(&self) -> Option<u64> {
        None
    }
    /// The URL for messages, without secrets.
    fn describe(&self) -> String;
}

/// Refuses a body larger than [`MAX_OBJECT_BYTES`].
fn check_size(key: &str, size: u64) -> Result<()> {
    if size <= MAX_OBJECT_BYTES {
        return Ok(());
    }
    Err(Fault::rejected(format!("object {key} has {size} bytes; at most {MAX_OBJECT_BYTES} can be handled whole")))
}

/// Length of a range, if it lies in an object of `size` bytes; `Corrupt` otherwise, since ranges come from stored indexes.
fn check_range(key: &str, range: &Range<u64>, size: u64) -> Result<u64> {
    if range.start < range.end && range.end <= size {
        let len = range.end - range.start;
        return check_size(key, len).map(|()| len);
    }
    Err(Fault::corrupt(format!("object {key} has {size} bytes, but the range {}..{} of it was asked for", range.start, range.end)))
}

/// The range of a body that is in memory.
fn slice_range(key: &str, body: Bytes, range: Option<Range<u64>>) -> Result<Bytes> {
    let Some(range) = range else { return Ok(body) };
    check_range(key, &range, body.len() as u64)?;
    let start = usize::try_from(range.start).map_err(|_| Fault::corrupt(format!("object {key}: range beyond memory")))?;
    let end = usize::try_from(range.end).map_err(|_| Fault::corrupt(format!("object {key}: range beyond memory")))?;
    Ok(body.slice(start..end))
}

/// Lower-case hex.
fn hex(bytes: &[u8]) -> String {
    use std::fmt::Write;
    bytes.iter().fold(String::with_capacity(bytes.len() * 2), |mut text, byte| {
        let _ = write!(text, "{byte:02x}"); // writing to a String cannot fail
        text
    })
}

/// A SHA-256 from its hex form, or `None`.
fn unhex(text: &str) -> Option<[u8; 32]> {
    if text.len() != 64 || !text.bytes().all(|b| b.is_ascii_hexdigit()) {
        return None;
    }
    let mut out = [0; 32];
    for (i, byte) in out.iter_mut().enumerate() {
        *byte = u8::from_str_radix(&text[i * 2..i * 2 + 2], 16).ok()?;
    }
    Some(out)
}

/// Checks while it is read that a listing has one of the two orders that stores have; without, paging would lose or repeat keys.
#[derive(Debug)]
struct ListOrder {
    last: Option<String>,
    whole_keys: bool,
    components: bool,
}

impl ListOrder {
    fn after(last: Option<&str>) -> Self {
        Self { last: last.map(str::to_owned), whole_keys: true, components: true }
    }

    /// False when `key` cannot come after the ones before in either order.
    fn follows(&mut self, key: &str) -> bool {
        if let Some(last) = &self.last {
            self.whole_keys &= key > last.as_str();
            self.components &= key.split('/').gt(last.split('/'));
        }
        self.last = Some(key.to_owned());
        self.whole_keys || self.components
    }
}
