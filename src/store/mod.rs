//! Object stores: where segments live.
//!
//! Owns: the port ([`ObjectStore`]), its adapters (`s3`, `file`, `cloud` for gs:// and az://), a memory twin, a faulty wrapper,
//! opening one from a URL, and the start-up probe. Does not own keys or what objects mean (`branch::layout`, `segment`).
//!
//! Retrying is not done here, except by nobody: adapters make one attempt and classify, callers repeat (one layer).

use std::ops::Range;
use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;

use crate::fault::Result;

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
    /// At most `max` (1..=1000) objects under `prefix` with keys greater than `after`, in key order. Fewer than `max` means the end.
    async fn list(&self, prefix: &str, after: Option<&str>, max: usize) -> Result<Vec<ObjectInfo>>;
    /// Removes the object; absent is fine.
    async fn delete(&self, key: &str) -> Result<()>;
    /// The URL for messages, without secrets.
    fn describe(&self) -> String;
}
