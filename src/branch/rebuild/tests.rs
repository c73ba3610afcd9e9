//! Branches in memory, lost and found again; the choice of the chain is in `chain_tests`.

use std::sync::Arc;

use bson::rawdoc;

use super::*;
use crate::branch::documents::{BranchDocument, EpochDocument};
use crate::branch::history::History;
use crate::branch::point::Point;
use crate::branch::testing::{Bed, ID, NAME, PROJECT};
use crate::branch::view::BranchView;
use crate::fault::Kind;
use crate::ledger::*;
use crate::store::ObjectStore;

async fn open(bed: &Bed) -> Bucket {
    Bucket::open(bed.store.clone(), Arc::default()).await.unwrap()
}

/// What must be the same before and after, in the words of the metadata.
async fn state(ledger: &dyn Ledger) -> (Branch, Vec<SegmentRow>, Vec<Base>) {
    let mut branch = ledger.branch(ID).await.unwrap().unwrap();
    (branch.epoch, branch.settled_bytes, branch.created_ms) = (0, 0, 0);
    let mut rows = ledger.segments(ID, 0, 10_000).await.unwrap();
    rows.iter_mut().for_each(|row| row.committed_ms = 0);
    let mut bases = ledger.bases(ID).await.unwrap();
    for base in &mut bases {
        (base.created_ms, base.finished_ms) = (0, None);
    }
    (branch, rows, bases)
}

async fn rebuilt(bed: &Bed) -> (SharedLedger, Report) {
    let ledger: SharedLedger = Arc::new(MemoryLedger::new());
    let report = rebuild(&open(bed).await, Some(&ledger), Options::default()).await.unwrap();
    assert!(report.rebuilt, "{report:?}");
    (ledger, report)
}

fn key_of(row: &SegmentRow) -> String {
    row.key.clone()
}

#[tokio::test]
async fn the_metadata_is_the_same_again_and_the_next_epoch_is_taken() {
    let mut bed = Bed::new().await;
    bed.add("..aa", Ends::Closed).await;
    bed.lose("bb.", Ends::Closed).await;
    bed.add(".cc", Ends::Unknown).await;
    let before = state(&*bed.ledger).await;
    let (ledger, report) = rebuilt(&bed).await;
    assert_eq!(state(&*ledger).await, before);
    assert_eq!(report.branches[0].orphans, Orphans::default());
    assert_eq!((before.0.status, before.0.head.seq, before.0.totals.segments), (BranchStatus::Gap, 10, 3));

    let (old, new) = (bed.ledger.capture_of(ID).await.unwrap().unwrap(), ledger.capture_of(ID).await.unwrap().unwrap());
    assert_eq!((new.id, new.source, new.state, new.fence, new.queued_bytes), (old.id, old.source, CaptureState::Running, 0, 0));
    assert_eq!((&new.position.token, &new.position.chain, new.position.next_seq), (&old.position.chain, &old.position.chain, 11));
    assert_eq!(new.position.last_txn, Some(rawdoc! {"lsid": "c", "txnNumber": 1_i64}), "history may end inside of it");

    assert_eq!(ledger.branch(ID).await.unwrap().unwrap().epoch, 2);
    let epoch: EpochDocument = documents::read_epoch("e", &bed.get(&layout::epoch(PROJECT, ID, 2)).await).unwrap();
    assert_eq!(epoch.starts_at, 11);
    let shown: BranchDocument = documents::read_branch("b", &bed.get(&layout::branch_json(PROJECT, ID)).await).unwrap();
    assert_eq!(shown.epoch, 2);
    // The old metadata must not write it back.
    let old: SharedLedger = bed.ledger.clone();
    let store: Store = bed.store.clone();
    assert_eq!(crate::branch::mirror::publish(&old, &store, ID).await.unwrap_err().kind, Kind::Fenced);
}

#[tokio::test]
async fn a_dry_run_says_the_same_and_writes_nothing() {
    let mut bed = Bed::new().await;
    bed.add("....", Ends::Closed).await;
    let objects = bed.store.list("", None, 1_000).await.unwrap();
    let report = rebuild(&open(&bed).await, None, Options { dry_run: true, ..Options::default() }).await.unwrap();
    assert!(report.rebuilt && report.dry_run);
    assert_eq!((report.branches[0].head.seq, report.branches[0].totals.changes, report.branches[0].epoch), (4, 4, 1));
    assert_eq!(bed.store.list("", None, 1_000).await.unwrap(), objects);
}

#[tokio::test]
async fn what_was_put_and_not_committed_is_history_and_what_lies_behind_a_hole_is_not() {
    let mut bed = Bed::new().await;
    bed.add("..", Ends::Closed).await;
    let (hole, behind) = (bed.queue("..", Ends::Closed).await, bed.queue("..", Ends::Closed).await);
    bed.commit(&behind).await;
    assert_eq!(bed.ledger.branch(ID).await.unwrap().unwrap().head.seq, 2);
    let (ledger, report) = rebuilt(&bed).await;
    assert_eq!(ledger.branch(ID).await.unwrap().unwrap().head.seq, 2);
    assert_eq!(ledger.capture_of(ID).await.unwrap().unwrap().position.next_seq, 3, "the source is asked for both again");
    let orphan = &report.branches[0].orphans.named[0];
    assert!(orphan.place.contains("-0000000000000005-") && orphan.what.contains("history ends at seq:2"), "{orphan:?}");
    // From now on epoch 2 numbers from 3: what the old metadata puts there comes too late.
    bed.commit(&hole).await;
    let (ledger, report) = rebuilt(&bed).await;
    assert_eq!(ledger.branch(ID).await.unwrap().unwrap().head.seq, 2);
    assert!(report.branches[0].orphans.count == 2 && report.branches[0].orphans.named[0].what.contains("epoch 2"), "{report:?}");
}

#[tokio::test]
async fn a_gap_at_the_end_counts_where_the_branch_knows_of_it() {
    let mut bed = Bed::new().await;
    bed.add("..", Ends::Closed).await;
    bed.lose("..", Ends::Closed).await;
    let (ledger, report) = rebuilt(&bed).await;
    assert_eq!(ledger.branch(ID).await.unwrap().unwrap().head.seq, 2, "it may never have been recorded");
    assert!(report.branches[0].orphans.named[0].what.contains("asked again"), "{report:?}");
    let mut bed = Bed::new().await;
    bed.add("..", Ends::Closed).await;
    bed.lose("..", Ends::Closed).await;
    let (old, store): (SharedLedger, Store) = (bed.ledger.clone(), bed.store.clone());
    crate::branch::mirror::publish(&old, &store, ID).await.unwrap();
    let before = state(&*bed.ledger).await;
    let (ledger, _) = rebuilt(&bed).await;
    assert_eq!(state(&*ledger).await, before);
    assert_eq!((before.0.status, before.0.head.seq), (BranchStatus::Gap, 4));
}

#[tokio::test]
async fn a_run_that_was_killed_anywhere_is_run_again_and_ends_the_same() {
    for mishap in [Mishap::Before, Mishap::AnswerLost] {
        // How often it goes wrong in a row; each call is tried twice.
        for times in [1, 2] {
            let mut bed = Bed::new().await;
            bed.add("..", Ends::Closed).await;
            bed.add("..", Ends::Closed).await;
            let before = state(&*bed.ledger).await;
            let inner: SharedLedger = Arc::new(MemoryLedger::new());
            let faulty = FaultyLedger::new(inner.clone(), LedgerFaults::none());
            (0..times).for_each(|_| faulty.script(LedgerCall::Import, mishap));
            let faulty: SharedLedger = Arc::new(faulty);
            let first = rebuild(&open(&bed).await, Some(&faulty), Options::default()).await;
            assert_eq!(first.is_ok(), times == 1, "{first:?}");
            let report = rebuild(&open(&bed).await, Some(&inner), Options::default()).await.unwrap();
            assert!(report.rebuilt);
            assert_eq!(state(&*inner).await, before);
            // Again, on what is whole: nothing changes.
            let epoch = inner.branch(ID).await.unwrap().unwrap().epoch;
            let report = rebuild(&open(&bed).await, Some(&inner), Options::default()).await.unwrap();
            assert!(report.branches[0].already && report.branches[0].epoch == epoch);
            assert_eq!(bed.store.head(&layout::epoch(PROJECT, ID, epoch + 1)).await.unwrap(), None);
        }
    }
}

#[tokio::test]
async fn other_metadata_is_left_alone_and_older_metadata_is_told_so() {
    let mut bed = Bed::new().await;
    bed.add("..", Ends::Closed).await;
    let other: SharedLedger = Arc::new(MemoryLedger::new());
    let import = Import { branch: Branch::new("x", "other/main", "d"), capture: None, bases: Vec::new() };
    assert!(other.import_branch(&import).await.unwrap());
    let fault = rebuild(&open(&bed).await, Some(&other), Options::default()).await.unwrap_err();
    assert!(fault.kind == Kind::Rejected && fault.what.contains("other/main"), "{fault}");
    assert_eq!(bed.store.head(&layout::epoch(PROJECT, ID, 2)).await.unwrap(), None, "nothing was taken");
    rebuilt(&bed).await;
    let old: SharedLedger = bed.ledger.clone();
    let fault = rebuild(&open(&bed).await, Some(&old), Options::default()).await.unwrap_err();
    assert!(fault.kind == Kind::Fenced && fault.what.contains("epoch 2"), "{fault}");
    // A rest of another history is not mixed in.
    let mut row = bed.rows().await.remove(0);
    (row.key, row.last_seq) = ("stray".into(), 1);
    let mixed: SharedLedger = Arc::new(MemoryLedger::new());
    mixed.import_segments(&[row]).await.unwrap();
    let fault = rebuild(&open(&bed).await, Some(&mixed), Options::default()).await.unwrap_err();
    assert!(fault.kind == Kind::Rejected && fault.what.contains("stray"), "{fault}");
}

#[tokio::test]
async fn what_is_damaged_is_named_and_nothing_is_made_without_consent() {
    for (what, head) in [("segment", 2), ("header", 2), ("branch", 0), ("epoch", 6), ("base", 6), ("other", 2)] {
        let mut bed = Bed::new().await;
        for _ in 0..3 {
            bed.add("..", Ends::Closed).await;
        }
        let second = key_of(&bed.rows().await[1]);
        let key = match what {
            "branch" => layout::branch_json(PROJECT, ID),
            "epoch" => layout::epoch(PROJECT, ID, 1),
            "base" => layout::base_manifest(PROJECT, ID, 0, "base0"),
            _ => second.clone(),
        };
        let mut body = bed.get(&key).await;
        match what {
            "other" => body = bed.get(&key_of(&bed.rows().await[2])).await, // whole, and another one
            "header" => body[20] ^= 1,
            _ => drop(body.split_off(body.len() / 2)),
        }
        bed.put(&key, body).await;
        let ledger: SharedLedger = Arc::new(MemoryLedger::new());
        let report = rebuild(&open(&bed).await, Some(&ledger), Options::default()).await.unwrap();
        assert!(!report.rebuilt && report.damaged[0].place == key, "{what}: {report:?}");
        assert_eq!(ledger.branches().await.unwrap(), []);
        assert_eq!(bed.store.head(&layout::epoch(PROJECT, ID, 2)).await.unwrap(), None);
        let report = rebuild(&open(&bed).await, Some(&ledger), Options { skip_damaged: true, ..Options::default() }).await.unwrap();
        assert!(report.rebuilt);
        let found = ledger.branch(ID).await.unwrap().map_or(0, |branch| branch.head.seq);
        assert_eq!(found, head, "{what}");
    }
}

#[tokio::test]
async fn a_missing_segment_ends_history_and_a_damaged_one_behind_the_end_is_no_matter() {
    let mut bed = Bed::new().await;
    for _ in 0..4 {
        bed.add("..", Ends::Closed).await;
    }
    let rows = bed.rows().await;
    bed.store.delete(&rows[1].key).await.unwrap();
    let mut body = bed.get(&rows[0].key).await;
    body.truncate(10);
    // A damaged copy of what is there under another name, and things that are none of ours.
    let name = SegmentName::parse(layout::split_key(&rows[0].key).unwrap().2).unwrap();
    bed.put(&SegmentName { hash: [9; 16], ..name }.key(PROJECT, ID), body).await;
    for foreign in ["segments/L0/readme.txt", "segments/old/x"] {
        bed.put(&format!("{}{foreign}", layout::branch_prefix(PROJECT, ID)), vec![1]).await;
    }
    bed.put("projects/notes.txt", vec![1]).await;
    bed.put("projects/test/branches/gone/segments/L0/x", vec![1]).await;
    let (ledger, report) = rebuilt(&bed).await;
    assert_eq!(ledger.branch(ID).await.unwrap().unwrap().head.seq, 2);
    let of = &report.branches[0].orphans;
    assert_eq!(of.count, 5, "{of:?}");
    assert!(of.named.iter().any(|orphan| orphan.what.contains("nothing of it is needed")), "{of:?}");
    let places: Vec<&str> = report.orphans.named.iter().map(|orphan| orphan.place.as_str()).collect();
    assert_eq!(places, ["projects/notes.txt", "projects/test/branches/gone/"]);
}

#[tokio::test]
async fn history_is_read_from_the_bucket_alone_up_to_what_it_knows() {
    let mut bed = Bed::new().await;
    bed.add("....", Ends::Closed).await;
    let (ledger, remarks) = memory(&open(&bed).await, &[NAME]).await.unwrap();
    assert!(remarks.problems.is_empty() && remarks.notes.is_empty(), "{remarks:?}");
    let history = History::open(Arc::new(ledger), bed.store.clone(), NAME).await.unwrap();
    let known = bed.history().await;
    for point in ["head", "seq:3", "ts:103.1", "ts:103.9"] {
        let point: Point = point.parse().unwrap();
        assert_eq!(history.resolve(point).await.unwrap(), known.resolve(point).await.unwrap(), "{point}");
    }
    // The end token is of the second of the last change, so that very time may still have more (rule 5).
    assert!(history.resolve("ts:104.1".parse().unwrap()).await.is_err());
    assert_eq!(bed.store.head(&layout::epoch(PROJECT, ID, 2)).await.unwrap(), None, "reading takes nothing");
}

#[tokio::test]
async fn forks_come_with_what_they_share_and_not_without() {
    let mut bed = Bed::new().await;
    bed.add("....", Ends::Closed).await;
    bed.add("....", Ends::Closed).await;
    let child = crate::branch::fork::fork(&bed.history().await, "test/dev", Point::Seq(6), None).await.unwrap();
    let grandchild = History::open(bed.ledger.clone(), bed.store.clone(), "test/dev").await.unwrap();
    crate::branch::fork::fork(&grandchild, "test/try", Point::Head, None).await.unwrap();
    let (ledger, report) = rebuilt(&bed).await;
    let names: Vec<&str> = report.branches.iter().map(|of| of.name.as_str()).collect();
    assert_eq!(names.len(), 3);
    assert_eq!(names[0], NAME, "parents first: {names:?}");
    for name in [NAME, "test/dev", "test/try"] {
        let (was, is) = (BranchView::load(&*bed.ledger, name).await.unwrap(), BranchView::load(&*ledger, name).await.unwrap());
        assert_eq!((was.head, was.parent, was.restorable, was.totals), (is.head, is.parent, is.restorable, is.totals), "{name}");
    }
    assert_eq!(ledger.branch(&child.id).await.unwrap().unwrap().epoch, 1, "nothing is captured into it");
    // Reading one of them reads its line and no more.
    let (some, _) = memory(&open(&bed).await, &["test/dev"]).await.unwrap();
    let found: Vec<String> = some.branches().await.unwrap().into_iter().map(|branch| branch.name).collect();
    assert_eq!(found, ["test/dev", NAME]);
    // Without what is before the fork, its numbers will be those of other changes: the forks are left out.
    bed.store.delete(&bed.rows().await[1].key).await.unwrap();
    let fresh: SharedLedger = Arc::new(MemoryLedger::new());
    let report = rebuild(&open(&bed).await, Some(&fresh), Options { skip_damaged: true, ..Options::default() }).await.unwrap();
    assert_eq!(report.branches.len(), 1, "{report:?}");
    assert!(report.damaged[0].what.contains("forked at seq:6") && report.damaged[0].what.contains("ends at seq:4"), "{report:?}");
}

#[tokio::test]
async fn two_of_a_name_become_two_names_or_one_where_one_was_never_finished() {
    let mut bed = Bed::new().await;
    bed.add("..", Ends::Closed).await;
    let mut late: BranchDocument = documents::read_branch("b", &bed.get(&layout::branch_json(PROJECT, ID)).await).unwrap();
    late.id = "b2-was-refused".into();
    let key = layout::branch_json(PROJECT, &late.id);
    bed.put(&key, documents::to_json(&late).unwrap()).await;
    let (_, report) = rebuilt(&bed).await;
    assert_eq!(report.branches.len(), 1);
    assert!(report.orphans.named[0].place == key && report.orphans.named[0].what.contains("never finished"), "{report:?}");
    // Something was forked from it: it is real, and keeps its history under another name.
    let parent = Some(Parent { id: late.id.clone(), seq: 0, time: Default::default() });
    let child = BranchDocument { id: "b3".into(), name: "test/dev".into(), parent, capture: None, bases: Vec::new(), ..late.clone() };
    bed.put(&layout::branch_json(PROJECT, "b3"), documents::to_json(&child).unwrap()).await;
    let report = rebuild(&open(&bed).await, None, Options { dry_run: true, skip_damaged: true }).await.unwrap();
    let mut names: Vec<&str> = report.branches.iter().map(|of| of.name.as_str()).collect();
    names.sort_unstable();
    assert_eq!(names, ["test/dev", "test/main", "test/main-b2-was-r"]);
    assert_eq!(report.notes.len(), 1, "{report:?}");
}

#[tokio::test]
async fn a_deleted_branch_stays_deleted_and_is_no_trouble_half_removed() {
    let mut bed = Bed::new().await;
    for _ in 0..3 {
        bed.add("..", Ends::Closed).await;
    }
    bed.ledger.delete_branch(ID).await.unwrap();
    let (old, store): (SharedLedger, Store) = (bed.ledger.clone(), bed.store.clone());
    crate::branch::mirror::publish(&old, &store, ID).await.unwrap();
    bed.store.delete(&bed.rows().await[0].key).await.unwrap();
    bed.store.delete(&layout::base_manifest(PROJECT, ID, 0, "base0")).await.unwrap();
    let (ledger, _) = rebuilt(&bed).await;
    let branch = ledger.branch(ID).await.unwrap().unwrap();
    assert!(branch.status == BranchStatus::Deleted && branch.deleted_ms.is_some(), "{branch:?}");
    assert_eq!(ledger.branch_named(NAME).await.unwrap(), None, "its name is free");
    assert!(open(&bed).await.names().is_empty());
}

#[tokio::test]
async fn a_base_that_was_being_copied_is_copied_again_and_one_that_was_finished_counts() {
    let mut bed = Bed::new().await;
    bed.add("..", Ends::Closed).await;
    let manifest = bed.get(&layout::base_manifest(PROJECT, ID, 0, "base0")).await;
    let mut plan = documents::BaseManifest::from_json("m", &manifest).unwrap();
    (plan.id, plan.origin) = ("copy1".into(), BaseOrigin::Copy);
    let body = plan.to_json().unwrap();
    use sha2::{Digest, Sha256};
    let sha256 = layout::hex(&Sha256::digest(&body));
    bed.put(&layout::base_plan(PROJECT, ID, 0, "copy1"), body).await;
    let base = Base { origin: BaseOrigin::Copy, state: BaseState::Copying, documents: 7, ..Base::empty("copy1", ID, plan.time, sha256) };
    bed.ledger.create_base(&base).await.unwrap();
    let (old, store): (SharedLedger, Store) = (bed.ledger.clone(), bed.store.clone());
    crate::branch::mirror::publish(&old, &store, ID).await.unwrap();
    let (ledger, _) = rebuilt(&bed).await;
    let found = ledger.base("copy1").await.unwrap().unwrap();
    assert_eq!((found.state, found.documents, found.sha256), (BaseState::Copying, 0, base.sha256.clone()), "its chunks are gone");
    // The copy had ended, and the object did not say so yet.
    let ended = documents::BaseManifest { consistent_at: crate::change::ClusterTime { t: 102, i: 1 }, ..plan.clone() };
    bed.put(&layout::base_manifest(PROJECT, ID, 0, "copy1"), ended.to_json().unwrap()).await;
    let report = rebuild(&open(&bed).await, None, Options { dry_run: true, ..Options::default() }).await.unwrap();
    assert!(report.rebuilt);
    let (memory, _) = memory(&open(&bed).await, &[]).await.unwrap();
    let found = memory.base("copy1").await.unwrap().unwrap();
    assert_eq!((found.state, found.consistent_at), (BaseState::Complete, ended.consistent_at));
    // A manifest of something else is not taken for it.
    let other = documents::BaseManifest { db: "other".into(), ..ended };
    bed.put(&layout::base_manifest(PROJECT, ID, 0, "copy1"), other.to_json().unwrap()).await;
    let report = rebuild(&open(&bed).await, None, Options { dry_run: true, ..Options::default() }).await.unwrap();
    assert!(!report.rebuilt && report.damaged[0].what.contains("its plan"), "{report:?}");
}
