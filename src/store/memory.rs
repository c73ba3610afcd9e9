//! Owns: a store in memory, the twin of the real ones in tests and of `memory:` URLs. Versions are content hashes, as ETags are.
//! Does not own: misbehaving (`faulty`).

use std::collections::BTreeMap;
use std::ops::{Bound, Range};

use async_trait::async_trait;
use bytes::Bytes;
use parking_lot::Mutex;
use sha2::{Digest, Sha256};

use super::key::{check_key, check_page, check_prefix};
use super::{ObjectInfo, ObjectStore, Put, PutTag, check_size, hex, slice_range};
use crate::fault::{Fault, Result};
use crate::runtime::clock;

#[derive(Debug, Clone)]
struct Stored {
    body: Bytes,
    tag: PutTag,
    version: String,
    written_ms: i64,
}

impl Stored {
    fn new(body: Bytes, tag: &PutTag) -> Self {
        let version = hex(&Sha256::digest(&body));
        Self { body, tag: tag.clone(), version, written_ms: clock::wall_ms() }
    }
}

/// Objects in a locked map.
#[derive(Debug, Default)]
pub struct MemoryStore {
    objects: Mutex<BTreeMap<String, Stored>>,
}

impl MemoryStore {
    /// An empty store.
    pub fn new() -> Self {
        Self::default()
    }
}

#[async_trait]
impl ObjectStore for MemoryStore {
    async fn put_new(&self, key: &str, body: Bytes, tag: &PutTag) -> Result<Put> {
        check_key(key)?;
        check_size(key, body.len() as u64)?;
        let mut objects = self.objects.lock();
        if objects.contains_key(key) {
            return Ok(Put::Refused);
        }
        objects.insert(key.to_owned(), Stored::new(body, tag));
        Ok(Put::Stored)
    }

    async fn replace(&self, key: &str, body: Bytes, tag: &PutTag, version: &str) -> Result<Put> {
        check_key(key)?;
        check_size(key, body.len() as u64)?;
        let mut objects = self.objects.lock();
        match objects.get_mut(key) {
            Some(stored) if stored.version == version => {
                *stored = Stored::new(body, tag);
                Ok(Put::Stored)
            }
            _ => Ok(Put::Refused),
        }
    }

    async fn get(&self, key: &str, range: Option<Range<u64>>) -> Result<Bytes> {
        check_key(key)?;
        let body = self.objects.lock().get(key).map(|stored| stored.body.clone());
        let body = body.ok_or_else(|| Fault::missing(format!("object {key} is not in {}", self.describe())))?;
        slice_range(key, body, range)
    }

    async fn head(&self, key: &str) -> Result<Option<ObjectInfo>> {
        check_key(key)?;
        Ok(self.objects.lock().get(key).map(|stored| ObjectInfo {
            key: key.to_owned(),
            size: stored.body.len() as u64,
            sha256: Some(stored.tag.sha256),
            put_id: Some(stored.tag.put_id.clone()),
            version: Some(stored.version.clone()),
            modified_ms: None,
        }))
    }

    async fn list(&self, prefix: &str, after: Option<&str>, max: usize) -> Result<Vec<ObjectInfo>> {
        check_prefix(prefix)?;
        check_page(max)?;
        let start = match after {
            Some(after) if after >= prefix => Bound::Excluded(after),
            _ => Bound::Included(prefix),
        };
        let objects = self.objects.lock();
        let page = objects.range::<str, _>((start, Bound::Unbounded)).take_while(|(key, _)| key.starts_with(prefix)).take(max);
        Ok(page
            .map(|(key, stored)| ObjectInfo {
                key: key.clone(),
                size: stored.body.len() as u64,
                sha256: None,
                put_id: None,
                version: None,
                modified_ms: Some(stored.written_ms),
            })
            .collect())
    }

    async fn delete(&self, key: &str) -> Result<()> {
        check_key(key)?;
        self.objects.lock().remove(key);
        Ok(())
    }

    fn verifies_puts(&self) -> bool {
        true
    }

    fn describe(&self) -> String {
        "memory:".to_owned()
    }
}
