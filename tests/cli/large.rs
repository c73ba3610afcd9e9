//! Things that are large by themselves, within the memory budget: the engine's peak is printed and bounded.

use argon::devkit::{ArgonProcess, oracle};
use bson::spec::BinarySubtype;
use bson::{Binary, Bson, Document, doc};
use mongodb::error::TRANSIENT_TRANSACTION_ERROR;
use mongodb::options::{InsertManyOptions, WriteConcern};
use mongodb::{ClientSession, Collection};
use rand::rngs::StdRng;
use rand::{RngCore, SeedableRng};

use crate::place::{BRANCH, Place};

/// 200 MiB is promised for a release build; code that is not optimised has fatter stacks and slower drains.
const PEAK: u64 = 256 << 20;
/// Of the large transaction.
const OPERATIONS: i32 = 200_000;
/// The server's limit for a document.
const MAX_DOCUMENT: usize = 16 << 20;

fn assert_peak(engine: &ArgonProcess, what: &str) {
    let peak = engine.peak_rss().unwrap();
    println!("{what}: peak of the engine {} MiB", peak >> 20);
    assert!(peak < PEAK, "{what}: the engine took {} MiB", peak >> 20);
}

async fn comes_back(place: &Place, engine: ArgonProcess, what: &str) {
    assert_peak(&engine, what);
    place.stop(engine).await;
    place.ok(&["verify", BRANCH, "--deep"]).await;
    let target = place.database("copy");
    place.ok(&["restore", BRANCH, "--to-db", target.name()]).await;
    let (ours, theirs) = (oracle::snapshot(&target).await.unwrap(), oracle::snapshot(&place.source).await.unwrap());
    assert_eq!(ours.differences(&theirs), Vec::<String>::new(), "{what}");
}

#[tokio::test]
async fn a_transaction_of_200_000_operations_is_captured_whole() {
    let place = Place::new("txn").await;
    let engine = place.begin().await;
    place.source.create_collection("t").await.unwrap();
    let coll = place.source.collection::<Document>("t");
    let mut session = place.client.start_session().await.unwrap();
    // A cache that is short of room makes the server abort a transaction of this size; whoever writes one begins again.
    while let Err(error) = in_one_transaction(&mut session, &coll).await {
        assert!(error.contains_label(TRANSIENT_TRANSACTION_ERROR), "{error}");
        session.abort_transaction().await.ok();
    }
    let head = place.catch_up().await;
    assert!(head > 200_000, "{head}");
    // A point inside it is before it: whole transaction or nothing.
    let inside = place.json(&["restore", &format!("{BRANCH}@seq:100000"), "--to-db", place.database("inside").name(), "--dry-run"]).await;
    assert_eq!(inside["documents"], 0, "{inside}");
    comes_back(&place, engine, "a transaction of 200,000 operations").await;
}

async fn in_one_transaction(session: &mut ClientSession, coll: &Collection<Document>) -> mongodb::error::Result<()> {
    session.start_transaction().write_concern(WriteConcern::majority()).await?;
    for chunk in 0..OPERATIONS / 10_000 {
        let docs = (0..10_000).map(|i| doc! {"_id": chunk * 10_000 + i, "x": "y".repeat(20)});
        coll.insert_many(docs).with_options(InsertManyOptions::builder().ordered(true).build()).session(&mut *session).await?;
    }
    session.commit_transaction().await
}

/// A document of exactly this size, with bytes that do not compress.
fn document(id: i32, size: usize, seed: u64) -> Document {
    let payload = |n: usize| {
        let mut bytes = vec![0; n];
        StdRng::seed_from_u64(seed).fill_bytes(&mut bytes);
        Bson::Binary(Binary { subtype: BinarySubtype::Generic, bytes })
    };
    let empty = doc! {"_id": id, "n": 0, "x": payload(0)}.to_vec().unwrap().len();
    doc! {"_id": id, "n": 0, "x": payload(size - empty)}
}

#[tokio::test]
async fn a_change_of_a_9_mb_document_and_one_at_the_limit_pass() {
    let place = Place::new("large").await;
    let engine = place.begin().await;
    let coll = place.source.collection::<Document>("big");
    coll.insert_one(document(2, 9 << 20, 2)).await.unwrap();
    place.catch_up().await;
    for i in 0..20 {
        coll.update_one(doc! {"_id": 2}, doc! {"$inc": {"n": 1}, "$set": {"small": i}}).await.unwrap();
    }
    place.catch_up().await;
    assert_peak(&engine, "a change of a 9 MB document");
    let largest = document(1, MAX_DOCUMENT, 1);
    assert_eq!(largest.to_vec().unwrap().len(), MAX_DOCUMENT);
    assert!(coll.insert_one(document(9, MAX_DOCUMENT + 1, 9)).await.is_err(), "one byte more is too large");
    coll.insert_one(largest).await.unwrap();
    place.catch_up().await;
    comes_back(&place, engine, "a document of 16 MB").await;
}

/// A resume token holds the `_id` in hex: these make tokens of 1.2 and of 5.2 MB. Larger ones come only where others follow at once: the server
/// sends the token of the last event twice, in a reply of 16 MB with the document and its key.
#[tokio::test]
async fn documents_with_ids_of_megabytes_are_captured_and_come_back() {
    let place = Place::new("ids").await;
    let engine = place.begin().await;
    let coll = place.source.collection::<Document>("ids");
    for bytes in [600_000, 2_600_000] {
        let id = |letter: &str| doc! {"_id": letter.repeat(bytes)};
        for letter in ["a", "b"] {
            coll.insert_one(id(letter)).await.unwrap();
            place.catch_up().await;
        }
        coll.update_one(id("a"), doc! {"$set": {"n": 1}}).await.unwrap();
        coll.delete_one(id("b")).await.unwrap();
        place.catch_up().await;
    }
    comes_back(&place, engine, "ids of 0.6 and 2.6 MB").await;
}

/// Many at once: ARGON_MEMORY_BUDGET, not the load, decides how many are in work together.
#[tokio::test]
async fn a_burst_of_large_documents_is_bounded_by_the_memory_budget() {
    let place = Place::new("burst").await;
    place.start_capture().await;
    let engine = place.engine_with(&[("ARGON_MEMORY_BUDGET", "64MiB")]).await;
    let coll = place.source.collection::<Document>("big");
    for round in 0..2 {
        coll.insert_many((0..4).map(|i| document(round * 10 + i, 9 << 20, 3))).await.unwrap();
        coll.replace_one(doc! {"_id": round * 10}, document(round * 10, 9 << 20, 4)).await.unwrap();
        coll.insert_one(document(round * 10 + 9, MAX_DOCUMENT - 16_384, 5)).await.unwrap();
    }
    place.catch_up().await;
    comes_back(&place, engine, "a burst of 12 documents of 9 to 16 MB").await;
}
