//! What is compared, each by damaging it; and a healthy branch that is written to meanwhile.

use super::*;
use crate::branch::documents::BaseManifest;
use crate::branch::history::decode;
use crate::branch::layout;
use crate::branch::testing::{Bed, Change, ID, PROJECT};
use crate::change::{ClusterTime, Op};
use crate::fault::Kind;
use crate::ledger::Ends;
use crate::store::ObjectStore;

async fn verify(history: &History, bed: &Bed, deep: bool) -> VerifyReport {
    let deep = deep.then(|| DeepOptions { budget: 1 << 20, temp_dir: std::env::temp_dir() });
    structure(history, &*bed.ledger, deep.as_ref(), Arc::default()).await.unwrap()
}

/// What both depths say of the branch as it is now.
async fn said(bed: &Bed) -> [Vec<String>; 2] {
    let history = bed.history().await;
    let lines = |report: VerifyReport| report.differences.into_iter().map(|d| format!("{}: {}", d.place, d.what)).collect();
    [lines(verify(&history, bed, false).await), lines(verify(&history, bed, true).await)]
}

async fn assert_said(bed: &Bed, what: &str, parts: &[&str]) {
    for lines in said(bed).await {
        assert!(lines.iter().any(|line| parts.iter().all(|part| line.contains(part))), "{what}: {parts:?} not in {lines:#?}");
    }
}

#[tokio::test]
async fn a_healthy_branch_is_identical_while_segments_are_committed() {
    let mut bed = Bed::new().await;
    bed.add("..", Ends::Closed).await;
    let late = bed.queue("...", Ends::Closed).await;
    bed.add(".", Ends::Closed).await;
    let history = bed.history().await;
    assert_eq!((history.branch.head.seq, history.branch.totals.segments), (2, 2), "one is committed ahead of the head");
    for deep in [false, true] {
        let report = verify(&history, &bed, deep).await;
        assert_eq!((report.differences, report.changes), (vec![], 2));
    }
    bed.commit(&late).await;
    bed.add("....", Ends::Closed).await;
    for deep in [false, true] {
        let report = verify(&history, &bed, deep).await;
        assert_eq!((report.differences, report.changes), (vec![], 2), "what came after it was opened is not its business");
    }
    assert_eq!(verify(&bed.history().await, &bed, true).await.changes, 10);
}

#[tokio::test]
async fn more_segments_than_a_page_are_all_looked_at() {
    let mut bed = Bed::new().await;
    for _ in 0..=PAGE {
        bed.add(".", Ends::Closed).await;
    }
    let history = bed.history().await;
    bed.add(".", Ends::Closed).await;
    let report = verify(&history, &bed, false).await;
    assert_eq!((report.differences, report.segments), (vec![], PAGE as u64 + 1));
}

#[tokio::test]
async fn the_branchs_own_objects_are_read_and_each_of_their_facts_compared() {
    let mut bed = Bed::new().await;
    bed.add("..", Ends::Closed).await;
    assert_eq!(said(&bed).await, [Vec::<String>::new(), vec![]]);
    let (branch, epoch) = (layout::branch_json(PROJECT, ID), layout::epoch(PROJECT, ID, 1));
    let good = String::from_utf8(bed.get(&branch).await).unwrap();
    for (field, other) in [
        ("\"id\": \"b1\"", "\"id\": \"b2\""),
        ("\"name\": \"test/main\"", "\"name\": \"test/other\""),
        ("\"epoch\": 1", "\"epoch\": 2"),
        ("\"retained_from\": 1", "\"retained_from\": 2"),
        ("\"id\": \"base0\"", "\"id\": \"base1\""),
        ("\"seq\": 0", "\"seq\": 1"),
        ("\"db\": \"d\"", "\"db\": \"e\""),
        ("\"identity\": \"rs:r:1\"", "\"identity\": \"rs:r:2\""),
        ("\"id\": \"c1\"", "\"id\": \"c2\""),
        ("\"sha256\": \"", "\"sha256\": \"0"),
        ("\"format\": 2", "\"format\": 7"),
        ("{", "["),
    ] {
        assert!(good.contains(field), "{field} is not in {good}");
        bed.put(&branch, good.replacen(field, other, 1).into_bytes()).await;
        assert_said(&bed, field, &[&branch]).await;
    }
    bed.store.delete(&branch).await.unwrap();
    assert_said(&bed, "no branch.json", &[&branch, "is not in"]).await;
    bed.put(&branch, good.into_bytes()).await;

    let good = bed.get(&epoch).await;
    for damaged in [good[1..].to_vec(), String::from_utf8(good.clone()).unwrap().replace("\"starts_at\": 1", "\"starts_at\": 2").into()] {
        bed.put(&epoch, damaged).await;
        assert_said(&bed, "epoch", &[&epoch]).await;
    }
    bed.store.delete(&epoch).await.unwrap();
    assert_said(&bed, "no epoch", &[&epoch, "is not in"]).await;
    bed.put(&epoch, good.clone()).await;
    let later = layout::epoch(PROJECT, ID, 2);
    bed.put(&later, good).await;
    assert_said(&bed, "another's epoch", &[&later]).await;
    bed.store.delete(&later).await.unwrap();
    assert_eq!(said(&bed).await, [Vec::<String>::new(), vec![]]);
}

#[tokio::test]
async fn one_digit_of_the_bases_catalogue_is_noticed_and_not_restored() {
    let bed = Bed::new().await;
    let key = layout::base_manifest(PROJECT, ID, 0, "base0");
    let history = bed.history().await;
    let good = history.manifest(&history.line().bases()[0]).await.unwrap();
    // The number in the validator: 1 becomes 2, and everything about the manifest is as valid as before.
    let text = String::from_utf8(bed.get(&key).await).unwrap();
    let flipped = text.replacen("2467740001000000", "2467740002000000", 1);
    assert_ne!(flipped, text);
    let read = BaseManifest::from_json(&key, flipped.as_bytes()).unwrap();
    assert!(read.id == good.id && read.time == good.time && read.catalogue != good.catalogue);
    bed.put(&key, flipped.into_bytes()).await;
    assert_said(&bed, "a digit", &["base: ", &key, "sha256"]).await;
    assert_eq!(history.manifest(&history.line().bases()[0]).await.unwrap_err().kind, Kind::Corrupt);
}

#[tokio::test]
async fn the_object_of_a_gap_is_looked_at_too() {
    let mut bed = Bed::new().await;
    bed.add("..", Ends::Closed).await;
    bed.lose(".a", Ends::Open).await;
    bed.add("a.", Ends::Closed).await;
    assert_eq!(said(&bed).await, [Vec::<String>::new(), vec![]]);
    let key = bed.rows().await[1].key.clone();
    let good = bed.get(&key).await;
    bed.store.delete(&key).await.unwrap();
    assert_said(&bed, "missing", &[&key]).await;
    let mut flipped = good.clone();
    flipped[good.len() / 2] ^= 1;
    bed.put(&key, flipped).await;
    let [_, deep] = said(&bed).await;
    assert!(deep.iter().any(|line| line.contains(&key)), "{deep:?}");
}

#[tokio::test]
async fn history_must_go_on_from_the_bases_token() {
    let mut bed = Bed::with_base(|base| base.token = bson::rawdoc! {"_data": "82000000640000000200"}).await;
    bed.add("..", Ends::Closed).await;
    let [_, deep] = said(&bed).await;
    assert_eq!(deep.len(), 1, "{deep:?}");
    assert!(deep[0].contains("is not the token of the base"), "{deep:?}");
}

#[tokio::test]
async fn a_base_of_another_database_or_time_is_noticed() {
    for edit in [|base: &mut BaseManifest| base.db = "e".into(), |base: &mut BaseManifest| base.time = ClusterTime { t: 99, i: 1 }] {
        let bed = Bed::with_base(edit).await;
        assert_said(&bed, "another base", &["base: manifest is of"]).await;
    }
}

#[tokio::test]
async fn flags_of_a_row_are_compared_with_the_objects_header() {
    let mut bed = Bed::new().await;
    bed.add(".a", Ends::Open).await;
    let row = bed.rows().await.remove(0);
    let bytes = bytes::Bytes::from(bed.get(&row.key).await);
    decode(&row, bytes.clone()).unwrap();
    for wrong in [SegmentRow { starts_inside: true, ..row.clone() }, SegmentRow { ends: Ends::Closed, ..row.clone() }] {
        let fault = decode(&wrong, bytes.clone()).unwrap_err();
        assert!(fault.kind == Kind::Corrupt && fault.what.contains("starts inside"), "{fault}");
    }
}

#[tokio::test]
async fn a_history_that_does_not_fold_is_found_by_the_deep_check() {
    let change = |op, id| Change { txn: '.', op, id };
    for wrong in [change(Op::Update, 9), change(Op::Delete, 9), change(Op::Replace, 9)] {
        let mut bed = Bed::new().await;
        bed.add("..", Ends::Closed).await;
        let job = bed.queue_changes(&[change(Op::Update, 1), wrong, change(Op::Delete, 2)], Ends::Closed).await;
        bed.commit(&job).await;
        let [shallow, deep] = said(&bed).await;
        assert_eq!((shallow.len(), deep.len()), (0, 1), "{deep:?}");
        assert!(deep[0].contains("seq:4"), "{deep:?}");
    }
}
