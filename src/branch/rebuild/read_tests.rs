//! Segments too large to come whole, and stores that fail now and then.

use std::sync::Arc;

use bson::rawdoc;

use super::*;
use crate::branch::testing::{ID, PROJECT};
use crate::store::{MemoryStore, ObjectStore, PutTag};

/// A segment of some hundred KiB that does not compress.
fn large(branch: &str, bytes: usize) -> (SegmentName, Vec<u8>) {
    use rand::{RngCore, SeedableRng};
    let mut noise = vec![0; bytes];
    rand::rngs::SmallRng::seed_from_u64(7).fill_bytes(&mut noise);
    let body = rawdoc! {"_id": 1, "b": bson::Binary { subtype: bson::spec::BinarySubtype::Generic, bytes: noise }};
    let time = crate::change::ClusterTime { t: 101, i: 1 };
    let op = crate::change::Op::Insert;
    let row = crate::change::ChangeRef { op, coll: "c", uuid: Some([7; 16]), time, wall_ms: None, txn: None, key: None, body: Some(&body) };
    let mut builder = crate::segment::BlockBuilder::new(1);
    builder.push(&row).unwrap();
    let header = crate::segment::SegmentHeader {
        kind: SegmentKind::Changes,
        branch: branch.to_owned(),
        epoch: 1,
        first_seq: 1,
        last_seq: 1,
        first_time: time,
        last_time: time,
        last_wall_ms: Some(9),
        start_token: rawdoc! {"_data": "a"},
        end_token: rawdoc! {"_data": "b"},
        starts_inside: false,
        ends: Ends::Closed,
        db: "d".into(),
        reason: None,
    };
    let block = crate::segment::PackedBlock::pack(builder.finish()).unwrap();
    let encoded = crate::segment::encode(&header, &[block], &Default::default()).unwrap();
    let hash = std::array::from_fn(|i| encoded.sha256[i]);
    (SegmentName { level: 0, epoch: 1, first: 1, last: 1, hash }, encoded.bytes.to_vec())
}

#[tokio::test]
async fn of_a_large_segment_only_the_ends_are_read_and_a_lie_is_found() {
    let (name, body) = large(ID, 700 << 10);
    let key = name.key(PROJECT, ID);
    let memory = Arc::new(MemoryStore::new());
    let put = async |body: &[u8], sha256: [u8; 32]| {
        memory.delete(&key).await.unwrap();
        let tag = PutTag { sha256, put_id: "t".into() };
        memory.put_new(&key, body.to_vec().into(), &tag).await.unwrap();
    };
    let sha256: [u8; 32] = Sha256::digest(&body).into();
    let store: Store = memory.clone();
    let read = async |size: usize| segment(store.clone(), key.clone(), size as u64, name, ID.into()).await.unwrap();
    put(&body, sha256).await;
    let found = read(body.len()).await.unwrap().unwrap();
    assert_eq!(
        (found.sha256, found.stored_bytes, found.kind, found.last_wall_ms),
        (sha256, body.len() as u64, SegmentKind::Changes, Some(9))
    );
    assert_eq!((found.start, found.end), (token_hash(&rawdoc! {"_data": "a"}), token_hash(&rawdoc! {"_data": "b"})));
    assert!(found.raw_bytes > 700 << 10);
    // Damaged at either end, which makes it read whole; put as something else; of another branch.
    for at in [30, body.len() - 30] {
        let mut bad = body.clone();
        bad[at] ^= 1;
        put(&bad, sha256).await;
        let fault = read(bad.len()).await.unwrap().unwrap_err();
        assert!(fault.kind == Kind::Corrupt && fault.what.contains(&key), "{fault}");
    }
    put(&body, [1; 32]).await;
    assert!(read(body.len()).await.unwrap().unwrap_err().what.contains("another sha256"));
    put(&body, sha256).await;
    let other = segment(store.clone(), key.clone(), body.len() as u64, name, "b2".into()).await.unwrap();
    assert!(other.unwrap().unwrap_err().what.contains("its place says"));
    memory.delete(&key).await.unwrap();
    assert!(read(body.len()).await.is_none(), "removed meanwhile");
}

#[tokio::test]
async fn a_store_that_fails_now_and_then_only_takes_longer() {
    use super::super::{Bucket, Options, rebuild};
    use crate::branch::testing::Bed;
    use crate::store::{FaultPlan, FaultyStore};
    let mut bed = Bed::new().await;
    for _ in 0..20 {
        bed.add("..", Ends::Closed).await;
    }
    let plan = FaultPlan { seed: 3, fail_before: 0.1, wrong_body: 0.05, truncated: 0.05, ..FaultPlan::default() };
    let faulty = Arc::new(FaultyStore::new(bed.store.clone(), plan));
    let bucket = Bucket::open(faulty.clone(), Arc::default()).await.unwrap();
    let report = rebuild(&bucket, None, Options { dry_run: true, ..Options::default() }).await.unwrap();
    assert!(report.rebuilt && report.branches[0].head.seq == 40, "{report:?}");
    let counts = faulty.counts();
    assert!(counts.failed > 0 && counts.damaged_reads > 0, "{counts:?}");
    // One that is away is no damage: it is said, and nothing is concluded from it.
    let gone: Store = Arc::new(FaultyStore::new(bed.store.clone(), FaultPlan { fail_before: 1.0, ..FaultPlan::default() }));
    assert!(Bucket::open(gone, Arc::default()).await.unwrap_err().may_heal());
}
