//! What is looked up in history is what a restore brings back, and costs less.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use argon::branch::history::Progress;
use argon::branch::look::{Difference, ExportFormat, ExportOptions, LogOptions, Side, diff, export, get, log};
use argon::branch::point::Point;
use bson::{Bson, RawDocumentBuf, doc};
use futures_util::TryStreamExt;
use mongodb::Database;
use parking_lot::Mutex;

use crate::source::{Writer, fill, ids};
use crate::world::{BRANCH, World};

const ROOM: u64 = 64 << 20;

async fn all(db: &Database, coll: &str) -> Vec<RawDocumentBuf> {
    db.collection::<RawDocumentBuf>(coll).find(doc! {}).sort(doc! {"_id": 1}).await.unwrap().try_collect().await.unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_document_at_a_point_is_the_one_that_a_restore_brings() {
    let world = World::new().await;
    let db = world.source();
    fill(&db, 3_000).await;
    let writer = Writer::start(&world.client, "shop", 3_000, 0);
    world.start().await;
    let engine = world.engine(&[]);
    let base = world.bases(BRANCH, 1).await.remove(0);
    writer.stop().await;
    Writer::start(&world.client, "shop", 3_000, 100).stop().await;
    world.caught_up(BRANCH).await;
    let history = world.history(BRANCH).await;
    let head = history.branch.head.seq;
    let first = history.locate(Point::Time(base.consistent_at)).await.unwrap().seq;
    for at in [first, first + (head - first) / 2, head] {
        let then = world.client.database("then");
        then.drop().await.unwrap();
        let seq = world.restore(BRANCH, Point::Seq(at), "then").await.unwrap().seq;
        for coll in ["orders", "mixed", "capped", "collated"] {
            let documents = all(&then, coll).await;
            for document in documents.iter().step_by(documents.len() / 15 + 1) {
                let id = Bson::try_from(document.get("_id").unwrap().unwrap()).unwrap();
                let found = get(&history, coll, &id, Point::Seq(at)).await.unwrap();
                assert_eq!(found.as_ref().map(|f| f.doc.as_bytes()), Some(document.as_bytes()), "{coll} {id} at seq:{seq}: {found:?}");
            }
        }
        // Keys that are not there: deleted, never seen, of another type.
        for id in [Bson::Int32(3_000), Bson::Int32(-5), Bson::String("3".into())] {
            let there = then.collection::<RawDocumentBuf>("orders").find_one(doc! {"_id": id.clone()}).await.unwrap();
            assert_eq!(get(&history, "orders", &id, Point::Seq(at)).await.unwrap().map(|f| f.doc), there, "{id}");
        }
    }
    // 1 under another type is the same key.
    for id in [Bson::Int32(1), Bson::Double(1.0)] {
        assert!(get(&history, "mixed", &id, Point::Head).await.unwrap().is_some());
    }
    assert_eq!(ids().len(), all(&db, "mixed").await.len());
    assert!(get(&history, "never", &Bson::Int32(1), Point::Head).await.unwrap_err().what.contains("never"));
    looked_over(&world, first, head).await;
    engine.drain().await;
}

/// Log, diff and export of the same history.
async fn looked_over(world: &World, first: u64, head: u64) {
    let history = world.history(BRANCH).await;
    let mut seqs = Vec::new();
    let everything = LogOptions::default();
    let shown = log(&history, &everything, |seq, _| {
        seqs.push(seq);
        Ok(true)
    });
    assert_eq!(shown.await.unwrap(), head);
    assert_eq!(seqs, (1..=head).collect::<Vec<_>>());
    // One document by itself, and picked out of everything.
    let of = LogOptions { collections: vec!["mixed".into()], ..LogOptions::default() };
    let (mut picked, mut found) = (Vec::new(), Vec::new());
    let is_one =
        |event: &bson::Document| matches!(event.get_document("documentKey").map(|key| key.get("_id").cloned()), Ok(Some(Bson::Int64(1))));
    log(&history, &of, |seq, event| {
        picked.extend(is_one(&event).then_some(seq));
        Ok(true)
    })
    .await
    .unwrap();
    let one = LogOptions { id: Some(Bson::Int32(1)), ..of };
    log(&history, &one, |seq, _| {
        found.push(seq);
        Ok(true)
    })
    .await
    .unwrap();
    assert!(picked.len() >= 20, "{picked:?}");
    assert_eq!(found, picked);
    // A limit never cuts a transaction, and a closed pipe ends it.
    let mut some = 0;
    log(&history, &LogOptions { limit: Some(1), ..LogOptions::default() }, |_, _| {
        some += 1;
        Ok(true)
    })
    .await
    .unwrap();
    assert!((1..=3).contains(&some), "{some}");
    assert_eq!(log(&history, &LogOptions::default(), |_, _| Ok(false)).await.unwrap(), 1);

    let side = |at| Side { history: &history, at };
    let dir = world.dir.path().to_path_buf();
    let differences = Arc::new(AtomicU64::new(0));
    let seen = differences.clone();
    let report = diff(side(Point::Head), side(Point::Head), &[], ROOM, dir.clone(), Arc::new(Progress::default()), move |_| {
        seen.fetch_add(1, Ordering::Relaxed);
        Ok(true)
    });
    assert!(report.await.unwrap().equal && differences.load(Ordering::Relaxed) == 0);
    let changed = Arc::new(Mutex::new(Vec::new()));
    let seen = changed.clone();
    let only = ["orders".to_owned()];
    let report = diff(side(Point::Seq(first)), side(Point::Head), &only, 1 << 20, dir, Arc::new(Progress::default()), move |d| {
        seen.lock().push(d);
        Ok(true)
    });
    let report = report.await.unwrap();
    let counts = report.collections["orders"];
    assert!(!report.equal && counts.changed > 20 && counts.removed > 3, "{report:?}");
    assert!(
        changed
            .lock()
            .iter()
            .any(|d| matches!(d, Difference::Changed { fields, .. } if fields.iter().any(|(path, ..)| path.starts_with('w'))))
    );
    exported(world).await;
}

async fn exported(world: &World) {
    let history = world.history(BRANCH).await;
    let out = tempfile::tempdir().unwrap();
    for format in [ExportFormat::Bson, ExportFormat::Jsonl] {
        let options = ExportOptions {
            at: Point::Head,
            format,
            dir: out.path().join(format!("{format:?}")),
            collections: Vec::new(),
            overwrite: false,
            across_gap: false,
            budget: ROOM,
            temp_dir: out.path().to_path_buf(),
        };
        let report = export(&history, &options, Arc::new(Progress::default())).await.unwrap();
        assert!(report.views.len() <= 1 && report.documents > 3_000, "{report:?}");
        let again = export(&history, &options, Arc::new(Progress::default())).await.unwrap_err();
        assert!(again.what.contains("--overwrite"), "{again}");
    }
    let bytes = std::fs::read(out.path().join("Bson/shop/capped.bson")).unwrap();
    let mut rest = bytes.as_slice();
    let mut read = Vec::new();
    while let Some(len) = rest.first_chunk::<4>().map(|len| u32::from_le_bytes(*len) as usize) {
        read.push(RawDocumentBuf::from_bytes(rest[..len].to_vec()).unwrap());
        rest = &rest[len..];
    }
    let natural: Vec<RawDocumentBuf> =
        world.source().collection::<RawDocumentBuf>("capped").find(doc! {}).await.unwrap().try_collect().await.unwrap();
    assert_eq!(read, natural, "in the order of insertion");
    let meta = std::fs::read_to_string(out.path().join("Bson/shop/orders.metadata.json")).unwrap();
    let meta: serde_json::Value = serde_json::from_str(&meta).unwrap();
    assert_eq!((&meta["collectionName"], meta["indexes"].as_array().unwrap().len()), (&serde_json::json!("orders"), 3));
    let lines = std::fs::read_to_string(out.path().join("Jsonl/shop/checked.jsonl")).unwrap();
    assert_eq!(lines.lines().count(), 50);
    assert!(lines.lines().all(|line| Bson::try_from(serde_json::from_str::<serde_json::Value>(line).unwrap()).is_ok()));
}
