//! Owns: counting what a store is asked for: time, bytes and failures of every operation. Does not own: the store.

use std::ops::Range;

use async_trait::async_trait;
use bytes::Bytes;

use super::{ObjectInfo, ObjectStore, Put, PutTag, Store};
use crate::fault::{Kind, Result};
use crate::runtime::clock;
use crate::telemetry::meters::{Meters, Operation};
use crate::telemetry::metrics::STORE_ERRORS;

/// A store whose operations are counted.
#[derive(Debug)]
pub struct MeteredStore {
    inner: Store,
    meters: Meters,
}

impl MeteredStore {
    pub fn new(inner: Store, meters: Meters) -> Self {
        Self { inner, meters }
    }

    async fn count<T>(&self, operation: Operation, asked: impl Future<Output = Result<T>>) -> Result<T> {
        let began = clock::now();
        let answer = asked.await;
        self.meters.asked_store(operation, began.elapsed());
        if let Err(fault) = &answer {
            self.meters.metrics().count(&STORE_ERRORS, &[operation.name(), word(fault.kind)]);
        }
        answer
    }
}

/// As the label has it.
fn word(kind: Kind) -> &'static str {
    match kind {
        Kind::Transient => "transient",
        Kind::Unknown => "unknown",
        Kind::Missing => "missing",
        Kind::Rejected => "rejected",
        Kind::Corrupt => "corrupt",
        Kind::Fenced | Kind::Config | Kind::HistoryLost | Kind::Cancelled => "other",
    }
}

#[async_trait]
impl ObjectStore for MeteredStore {
    async fn put_new(&self, key: &str, body: Bytes, tag: &PutTag) -> Result<Put> {
        let bytes = body.len() as u64;
        let put = self.count(Operation::Put, self.inner.put_new(key, body, tag)).await?;
        self.meters.written_bytes(if put == Put::Stored { bytes } else { 0 });
        Ok(put)
    }

    async fn replace(&self, key: &str, body: Bytes, tag: &PutTag, version: &str) -> Result<Put> {
        let bytes = body.len() as u64;
        let put = self.count(Operation::Replace, self.inner.replace(key, body, tag, version)).await?;
        self.meters.written_bytes(if put == Put::Stored { bytes } else { 0 });
        Ok(put)
    }

    async fn get(&self, key: &str, range: Option<Range<u64>>) -> Result<Bytes> {
        let body = self.count(Operation::Get, self.inner.get(key, range)).await?;
        self.meters.read_bytes(body.len() as u64);
        Ok(body)
    }

    async fn head(&self, key: &str) -> Result<Option<ObjectInfo>> {
        self.count(Operation::Head, self.inner.head(key)).await
    }

    async fn list(&self, prefix: &str, after: Option<&str>, max: usize) -> Result<Vec<ObjectInfo>> {
        self.count(Operation::List, self.inner.list(prefix, after, max)).await
    }

    async fn delete(&self, key: &str) -> Result<()> {
        self.count(Operation::Delete, self.inner.delete(key)).await
    }

    fn verifies_puts(&self) -> bool {
        self.inner.verifies_puts()
    }

    fn free_bytes(&self) -> Option<u64> {
        self.inner.free_bytes()
    }

    fn describe(&self) -> String {
        self.inner.describe()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::super::{FaultPlan, FaultyStore, MemoryStore};
    use super::*;

    #[tokio::test]
    async fn operations_bytes_and_failures_are_counted() {
        let meters = Meters::default();
        let memory: Store = Arc::new(MemoryStore::new());
        let store = MeteredStore::new(memory.clone(), meters.clone());
        let tag = PutTag { sha256: [0; 32], put_id: "p".into() };
        assert_eq!(store.put_new("a", Bytes::from_static(b"12345"), &tag).await.unwrap(), Put::Stored);
        assert_eq!(store.put_new("a", Bytes::from_static(b"12345"), &tag).await.unwrap(), Put::Refused);
        assert_eq!(store.get("a", Some(1..3)).await.unwrap().len(), 2);
        assert!(store.get("b", None).await.is_err());
        let away: Store = Arc::new(FaultyStore::new(memory, FaultPlan { fail_before: 1.0, ..FaultPlan::default() }));
        assert!(MeteredStore::new(away, meters.clone()).list("", None, 1).await.is_err());
        let text = meters.metrics().render();
        for line in [
            "argon_store_operation_seconds_count{operation=\"put\"} 2",
            "argon_store_operation_seconds_count{operation=\"get\"} 2",
            "argon_store_bytes_total{direction=\"written\"} 5",
            "argon_store_bytes_total{direction=\"read\"} 2",
            "argon_store_errors_total{operation=\"get\",kind=\"missing\"} 1",
            "argon_store_errors_total{operation=\"list\",kind=\"transient\"} 1",
        ] {
            assert!(text.lines().any(|found| found == line), "{line}\n{text}");
        }
    }
}
