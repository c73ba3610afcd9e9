//! One suite that every store passes, twin and real; then what is particular to each, and uploads under faults.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)] // helpers of tests are tests

mod contract;
mod directory;
mod service;
mod uploads;

use std::sync::Arc;

use argon::devkit::Weed;
use argon::store::{CloudStore, FaultPlan, FaultyStore, FileStore, MemoryStore, PutTag, S3Keys, Store, StoreOptions, Switch, open};
use bytes::Bytes;
use sha2::{Digest, Sha256};

fn tag(body: &[u8], put_id: &str) -> PutTag {
    PutTag { sha256: Sha256::digest(body).into(), put_id: put_id.to_owned() }
}

/// `len` bytes that differ by `seed`.
fn body(seed: u64, len: usize) -> Bytes {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state.to_le_bytes()[3]
    };
    std::iter::repeat_with(next).take(len).collect()
}

fn options(weed: &Weed, checksums: Switch) -> StoreOptions {
    let keys = S3Keys { access_key: weed.access_key().to_owned(), secret_key: weed.secret_key().to_owned() };
    StoreOptions { endpoint: Some(weed.endpoint()), checksums, s3_keys: Some(keys), ..StoreOptions::default() }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_memory_twin_passes_the_contract() {
    contract::all(Arc::new(MemoryStore::new())).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_wrapper_without_faults_passes_the_contract() {
    contract::all(Arc::new(FaultyStore::new(Arc::new(MemoryStore::new()), FaultPlan::default()))).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn rule_22_a_directory_passes_the_contract() {
    let dir = tempfile::tempdir().unwrap();
    contract::all(Arc::new(FileStore::open(dir.path()).unwrap())).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cloud_store_passes_the_contract() {
    for prefix in ["", "some/prefix"] {
        let inner = Arc::new(object_store::memory::InMemory::new());
        contract::all(Arc::new(CloudStore::over(inner, prefix, "gs://shop".to_owned()))).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn seaweedfs_passes_the_contract() {
    let weed = Weed::start().await.unwrap();
    weed.create_bucket("shop").await.unwrap();
    let plain: Store = open("s3://shop", &options(&weed, Switch::Auto)).await.unwrap();
    contract::all(Arc::clone(&plain)).await;
    let checked = open("s3://shop/some/prefix", &options(&weed, Switch::On)).await.unwrap();
    contract::all(Arc::clone(&checked)).await;
    assert!(checked.verifies_puts() && !plain.verifies_puts());

    service::checksums_refuse_what_was_altered_on_the_way(checked.as_ref()).await;
    service::metadata_of_a_put_come_back(plain.as_ref()).await;
    service::faults_of_a_real_service_say_what_to_do(&weed).await;
    uploads::faults_never_lose_or_damage_an_object(plain, 200).await;
}
