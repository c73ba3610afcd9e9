//! Many segments at once, made without a source; and how long it takes to read them.

use std::sync::atomic::AtomicBool;
use std::time::Duration;

use argon::branch::documents::read_branch;
use argon::branch::layout;
use argon::change::{ChangeRef, ClusterTime, Op, token_time};
use argon::ledger::{Ends, SegmentKind};
use argon::runtime::clock;
use argon::segment::{BlockBuilder, PackedBlock, SegmentHeader, encode};
use argon::store::{ObjectInfo, Put, PutTag};
use bson::{RawDocumentBuf, rawdoc};
use futures_util::StreamExt;
use serde_json::json;
use sha2::{Digest, Sha256};

use crate::world::World;

const CHANGES: u64 = 20;

fn token(time: ClusterTime) -> RawDocumentBuf {
    rawdoc! {"_data": format!("82{:08X}{:08X}00", time.t, time.i)}
}

/// A branch with so many segments behind the start of its capture; its name.
pub(crate) async fn segments(world: &World, branch: &str, count: u64) -> String {
    let db = format!("{}_{}", world.name, branch.replace('/', "_"));
    world.client.database(&db).create_collection("orders").await.unwrap();
    world.json(&["capture", "start", branch, "--source-db", &db]).await;
    let shown = world.json(&["branch", "show", branch]).await;
    let id = shown["id"].as_str().unwrap();
    let key = layout::branch_json("shop", id);
    let document = read_branch(&key, &world.store.get(&key, None).await.unwrap()).unwrap();
    let base = &document.bases[0];
    let manifest = layout::base_manifest("shop", id, 0, &base.id);
    let manifest = argon::branch::documents::BaseManifest::from_json("m", &world.store.get(&manifest, None).await.unwrap()).unwrap();
    let first = token_time(&manifest.token).unwrap();
    let uuid = *manifest.catalogue.collections.keys().next().unwrap();
    let at = |n: u64| ClusterTime { t: first.t, i: first.i + 1 + u32::try_from(n).unwrap() };
    let puts = (0..count).map(|n| {
        let start = if n == 0 { manifest.token.clone() } else { token(at(n - 1)) };
        let (key, body) = segment((id, &db, uuid), n, (start, token(at(n))), at(n));
        async move {
            let tag = PutTag { sha256: Sha256::digest(&body).into(), put_id: "test".into() };
            assert_eq!(world.store.put_new(&key, body.into(), &tag).await.unwrap(), Put::Stored);
        }
    });
    futures_util::stream::iter(puts).buffer_unordered(32).collect::<Vec<()>>().await;
    branch.to_owned()
}

type Tokens = (RawDocumentBuf, RawDocumentBuf);

fn segment((branch, db, uuid): (&str, &str, [u8; 16]), n: u64, (start_token, end_token): Tokens, time: ClusterTime) -> (String, Vec<u8>) {
    let (first_seq, last_seq) = (n * CHANGES + 1, (n + 1) * CHANGES);
    let mut builder = BlockBuilder::new(first_seq);
    for seq in first_seq..=last_seq {
        let body = rawdoc! {"_id": i64::try_from(seq).unwrap(), "name": format!("customer {seq}"), "amount": i64::try_from(seq * 7_919 % 10_007).unwrap()};
        let row =
            ChangeRef { op: Op::Insert, coll: "orders", uuid: Some(uuid), time, wall_ms: Some(1), txn: None, key: None, body: Some(&body) };
        builder.push(&row).unwrap();
    }
    let header = SegmentHeader {
        kind: SegmentKind::Changes,
        branch: branch.to_owned(),
        epoch: 1,
        first_seq,
        last_seq,
        first_time: time,
        last_time: time,
        last_wall_ms: Some(1),
        start_token,
        end_token,
        starts_inside: false,
        ends: Ends::Closed,
        db: db.to_owned(),
        reason: None,
    };
    let encoded = encode(&header, &[PackedBlock::pack(builder.finish()).unwrap()], &AtomicBool::new(false)).unwrap();
    (layout::segment_l0("shop", branch, 1, first_seq, last_seq, &encoded.sha256), encoded.bytes.to_vec())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn many_segments_are_read_in_seconds() {
    let count = std::env::var("ARGON_SEGMENTS").ok().and_then(|n| n.parse().ok()).unwrap_or(1_000u64);
    let world = World::new("many").await;
    let begun = clock::now();
    segments(&world, "shop/main", count).await;
    println!("{count} segments put in {:.1?}", begun.elapsed());
    world.drop_metadata().await;
    for (args, what) in [(&["rebuild", "--dry-run"][..], "read"), (&["rebuild"], "rebuilt"), (&["rebuild"], "looked at again")] {
        let begun = clock::now();
        let report = world.json(args).await;
        let took = begun.elapsed();
        println!("{count} segments {what} in {took:.1?}");
        assert_eq!((&report["branches"][0]["totals"]["segments"], &report["branches"][0]["orphans"]["count"]), (&json!(count), &json!(0)));
        // A slow machine in debug mode; what is measured is printed.
        assert!(took < Duration::from_secs(15) + Duration::from_millis(20) * u32::try_from(count).unwrap(), "{took:?}");
    }
    let found: Vec<ObjectInfo> = world.store.list(layout::PROJECTS, None, 10).await.unwrap();
    assert_eq!(found.len(), 10);
}
