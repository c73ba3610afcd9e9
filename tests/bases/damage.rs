//! Every kind of damage to the objects of a base is found by `verify --deep`, and by a restore before it says that it is done.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use argon::branch::point::Point;
use argon::branch::verify::{DeepOptions, structure};
use argon::fault::Kind;
use bson::doc;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

use crate::world::{BRANCH, World};

fn objects(dir: &Path, extension: &str) -> Vec<PathBuf> {
    let mut found: Vec<PathBuf> =
        std::fs::read_dir(dir).unwrap().map(|f| f.unwrap().path()).filter(|f| f.extension().is_some_and(|e| e == extension)).collect();
    found.sort();
    found
}

/// Both say which object it is.
async fn found(world: &World, object: &Path, what: &str) {
    let name = object.file_name().unwrap().to_str().unwrap();
    let deep = DeepOptions { budget: 1 << 20, temp_dir: world.dir.path().to_path_buf() };
    let report = structure(&world.history(BRANCH).await, &*world.ledger, Some(&deep), Arc::default()).await.unwrap();
    assert!(!report.identical, "{what} is not found by verify");
    assert!(report.differences.iter().any(|d| d.what.contains(name) || d.place.contains(name)), "{what}: {:?}", report.differences);
    let fault = world.restore(BRANCH, Point::Head, "damaged").await.unwrap_err();
    assert!(fault.kind == Kind::Corrupt && fault.what.contains(name), "{what}: {fault}");
}

#[tokio::test(flavor = "multi_thread")]
async fn damage_to_a_base_is_found_by_verify_and_by_restore() {
    let world = World::new().await;
    let db = world.source();
    for coll in ["a", "b"] {
        db.collection(coll).insert_many((0..300).map(|n| doc! {"_id": n, "in": coll, "pad": format!("{n:x}").repeat(40)})).await.unwrap();
    }
    let id = world.start().await.branch.id;
    let engine = world.engine(&[]);
    world.bases(BRANCH, 1).await;
    db.collection("a").insert_one(doc! {"_id": "later"}).await.unwrap();
    world.caught_up(BRANCH).await;
    engine.drain().await;
    world.verify(BRANCH).await;

    let bases = world.dir.path().join(format!("projects/test/branches/{id}/bases"));
    let base = std::fs::read_dir(bases).unwrap().next().unwrap().unwrap().path();
    let parts = objects(&base, "seg");
    assert_eq!(parts.len(), 2);
    let mut rng = StdRng::seed_from_u64(30);
    let whole = std::fs::read(&parts[0]).unwrap();
    for n in 0..25 {
        let (byte, bit) = (rng.random_range(0..whole.len()), rng.random_range(0..8));
        let mut flipped = whole.clone();
        flipped[byte] ^= 1 << bit;
        std::fs::write(&parts[0], flipped).unwrap();
        found(&world, &parts[0], &format!("flip {n} of byte {byte}, bit {bit}")).await;
    }
    for length in [0, 1, whole.len() / 2, whole.len() - 1] {
        std::fs::write(&parts[0], &whole[..length]).unwrap();
        found(&world, &parts[0], &format!("cut to {length} bytes")).await;
    }
    std::fs::write(&parts[0], [&whole[..], b"x"].concat()).unwrap();
    found(&world, &parts[0], "a byte more").await;
    // Whole, and of another collection.
    std::fs::write(&parts[0], std::fs::read(&parts[1]).unwrap()).unwrap();
    found(&world, &parts[0], "swapped").await;
    std::fs::remove_file(&parts[0]).unwrap();
    found(&world, &parts[0], "missing").await;
    std::fs::write(&parts[0], &whole).unwrap();

    let manifest = base.join("manifest.json");
    let text = std::fs::read(&manifest).unwrap();
    for damaged in [text[..text.len() / 2].to_vec(), String::from_utf8(text.clone()).unwrap().replace("300", "299").into_bytes()] {
        std::fs::write(&manifest, damaged).unwrap();
        found(&world, &manifest, "a damaged manifest").await;
    }
    std::fs::remove_file(&manifest).unwrap();
    found(&world, &manifest, "no manifest").await;
    std::fs::write(&manifest, &text).unwrap();
    world.verify(BRANCH).await;
    assert_eq!(world.restore(BRANCH, Point::Head, "whole").await.unwrap().documents, 601);
}
