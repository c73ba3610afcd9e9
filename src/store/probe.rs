//! Owns: finding out at start, before anything depends on it, whether a store does what the engine needs, in sentences for people.
//! Does not own what follows from it (an engine beside others is refused where `conditional_put` is false).

use std::time::Duration;

use bytes::Bytes;
use sha2::{Digest, Sha256};

use super::{ObjectStore, Put, PutTag};
use crate::fault::{Fault, Result};
use crate::runtime::clock;

/// Keys of probe objects begin with this; what a killed probe leaves behind may be deleted at any time.
const PREFIX: &str = ".argon-probe/";

/// What a probe found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Probe {
    /// A second put of a key was refused, as `If-None-Match: *` asks. Where false, two engines could overwrite each other's objects.
    pub conditional_put: bool,
    /// Time of the first put: connection, credentials and all.
    pub put_latency: Duration,
    /// Time of reading the object whole.
    pub get_latency: Duration,
}

/// Puts, refuses, reads, lists and deletes one small object `.argon-probe/<id>`. `id` is fresh for every probe.
///
/// # Errors
/// The first operation that failed, with what to do about it. The object is deleted also then, if the store lets us.
pub async fn probe(store: &dyn ObjectStore, id: &str) -> Result<Probe> {
    let key = format!("{PREFIX}{id}");
    let found = check(store, &key, id).await;
    let deleted = store.delete(&key).await;
    let found = found?;
    deleted.map_err(|fault| fault.at("the store takes objects but does not delete them"))?;
    match store.head(&key).await? {
        None => Ok(found),
        Some(_) => Err(Fault::rejected(format!("{}: {key} is still there after it was deleted (versioning or a lock?)", store.describe()))),
    }
}

async fn check(store: &dyn ObjectStore, key: &str, id: &str) -> Result<Probe> {
    let name = store.describe();
    // Bytes that transcoding, trimming or compressing on the way would change.
    let body: Bytes = (0..=255u8).chain(id.bytes()).chain(*b"\r\n\0 ").collect();
    let tag = PutTag { sha256: Sha256::digest(&body).into(), put_id: id.to_owned() };

    let begun = clock::now();
    if store.put_new(key, body.clone(), &tag).await.map_err(|fault| fault.at("the store cannot be written"))? == Put::Refused {
        return Err(Fault::rejected(format!("{name}: a new object was refused as present under {key}; is the store a cache of another?")));
    }
    let put_latency = begun.elapsed();
    let conditional_put = match store.put_new(key, body.clone(), &tag).await {
        Ok(second) => second == Put::Refused,
        Err(fault) => return Err(fault.at("a conditional put failed")),
    };

    let begun = clock::now();
    let whole = store.get(key, None).await.map_err(|fault| fault.at("the store cannot be read"))?;
    let get_latency = begun.elapsed();
    let part = store.get(key, Some(7..250)).await.map_err(|fault| fault.at("a range of an object cannot be read"))?;
    if whole != body || part != body.slice(7..250) {
        return Err(Fault::rejected(format!("{name}: what was read is not what was stored; something between changes the bytes")));
    }
    match store.head(key).await.map_err(|fault| fault.at("metadata cannot be read"))? {
        Some(info) if info.size == body.len() as u64 => {}
        other => return Err(Fault::rejected(format!("{name}: metadata of a stored object are wrong: {other:?}"))),
    }
    let listed = store.list(key, None, 10).await.map_err(|fault| fault.at("the store cannot be listed"))?;
    if !listed.iter().any(|info| info.key == key) {
        return Err(Fault::rejected(format!("{name}: a listing does not show an object that was just stored")));
    }
    Ok(Probe { conditional_put, put_latency, get_latency })
}
