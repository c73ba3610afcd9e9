use std::collections::BTreeMap;

use bson::{Bson, Document as Doc, RawDocumentBuf, doc, rawdoc, spec::BinarySubtype};
use proptest::prelude::*;

use super::*;
use crate::change::{ClusterTime, write_canonical_id};

/// One change as a test writes it; each becomes one row.
#[derive(Debug, Clone)]
enum Act {
    Create(u8, bool),
    Drop(u8),
    Rename(u8),
    Insert(u8, i32, u16),
    Replace(u8, i32, u16),
    Set(u8, i32, u16),
    Describe(u8, i32, u16),
    Delete(u8, i32),
}

fn uuid(n: u8) -> Uuid {
    [n; 16]
}

fn time(seq: u64) -> ClusterTime {
    ClusterTime { t: 100 + u32::try_from(seq).unwrap(), i: 1 }
}

fn event(kind: &str, n: u8, seq: u64, description: Doc) -> RawDocumentBuf {
    let binary = Bson::Binary(bson::Binary { subtype: BinarySubtype::Uuid, bytes: vec![n; 16] });
    let event = doc! {"operationType": kind, "clusterTime": bson::Timestamp::from(time(seq)), "collectionUUID": binary, "ns": {"db": "d", "coll": format!("c{n}")},
    "operationDescription": description};
    RawDocumentBuf::try_from(&event).unwrap()
}

fn filler(seed: u16) -> String {
    format!("{seed}-").repeat(usize::from(seed % 40))
}

/// Documents, order of the capped ones, catalogue, number of spills.
type Outcome = (State, Vec<(u8, u64)>, Catalogue, u64);

/// Feeds one act to the folder.
fn feed(folder: &mut Folder, seq: u64, act: &Act) -> Result<Flow> {
    let (op, n, key, body) = match act {
        Act::Create(n, capped) => {
            let options = if *capped {
                doc! {"capped": true, "size": 1 << 20}
            } else {
                doc! {}
            };
            (Op::Event, *n, None, Some(event("create", *n, seq, options)))
        }
        Act::Drop(n) => (Op::Event, *n, None, Some(event("drop", *n, seq, doc! {}))),
        Act::Rename(n) => (Op::Event, *n, None, Some(event("rename", *n, seq, doc! {"to": {"db": "d", "coll": format!("r{seq}")}}))),
        Act::Insert(n, id, v) => (Op::Insert, *n, None, Some(rawdoc! {"_id": *id, "v": i32::from(*v), "f": filler(*v)})),
        Act::Replace(n, id, v) => (Op::Replace, *n, None, Some(rawdoc! {"_id": i64::from(*id), "w": i32::from(*v)})),
        Act::Set(n, id, v) => {
            (Op::Update, *n, Some(rawdoc! {"_id": f64::from(*id)}), Some(rawdoc! {"u": {"v": i32::from(*v)}, "i": {"last": filler(*v)}}))
        }
        Act::Describe(n, id, v) => (
            Op::Described,
            *n,
            Some(rawdoc! {"_id": *id}),
            Some(rawdoc! {"updatedFields": {"x": i32::from(*v)}, "removedFields": [], "truncatedArrays": []}),
        ),
        Act::Delete(n, id) => (Op::Delete, *n, Some(rawdoc! {"_id": *id}), None),
    };
    let coll = format!("c{n}");
    let change = ChangeRef {
        op,
        coll: &coll,
        uuid: Some(uuid(n)),
        time: time(seq),
        wall_ms: None,
        txn: None,
        key: key.as_deref(),
        body: body.as_deref(),
    };
    folder.apply(seq, &change)
}

fn options(budget: u64, until: Bound) -> FoldOptions {
    FoldOptions { budget, dir: std::env::temp_dir(), expected: 64 * 1024, until, tolerant: false }
}

const ALL: Bound = Bound::Seq(u64::MAX);

/// Documents by collection and canonical key; capped ones also by their place.
type State = BTreeMap<(u8, Vec<u8>), RawDocumentBuf>;

fn fold(acts: &[Act], options: &FoldOptions) -> Result<Outcome> {
    let mut folder = Folder::new(Catalogue::default(), options);
    for (i, act) in acts.iter().enumerate() {
        if feed(&mut folder, i as u64 + 1, act)? == Flow::Done {
            break;
        }
    }
    let mut folded = folder.finish()?;
    let (mut state, mut order) = (State::new(), Vec::new());
    while let Some(batch) = folded.documents.next_batch()? {
        for document in batch {
            let n = folded.collections[document.coll as usize][0];
            let mut key = Vec::new();
            assert!(write_canonical_id(&document.doc, &mut key));
            if folded.catalogue.collections[&uuid(n)].is_capped() {
                order.push((n, document.born));
            } else {
                assert!(order.is_empty(), "capped documents come last");
            }
            assert!(state.insert((n, key), document.doc).is_none(), "every document comes once");
        }
    }
    Ok((state, order, folded.catalogue, folded.spills))
}

/// Makes acts that fit: turns random ones into what is possible in the state so far.
fn sensible(raw: Vec<(u8, u8, i32, u16)>) -> Vec<Act> {
    let mut alive: BTreeMap<u8, BTreeMap<i32, ()>> = BTreeMap::new();
    let mut acts = Vec::new();
    for (what, n, id, v) in raw {
        let n = n % 4;
        let Some(ids) = alive.get_mut(&n) else {
            alive.insert(n, BTreeMap::new());
            acts.push(Act::Create(n, n == 1));
            continue;
        };
        acts.push(match what {
            // The next act makes it again, under the same UUID.
            0..=3 => {
                alive.remove(&n);
                Act::Drop(n)
            }
            4..=5 => Act::Rename(n),
            _ if !ids.contains_key(&id) => {
                ids.insert(id, ());
                Act::Insert(n, id, v)
            }
            6..=60 => Act::Set(n, id, v),
            61..=90 => Act::Describe(n, id, v),
            91..=140 => Act::Replace(n, id, v),
            _ => {
                ids.remove(&id);
                Act::Delete(n, id)
            }
        });
    }
    acts
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]
    #[test]
    fn a_fold_that_spills_equals_one_that_does_not(raw in proptest::collection::vec((any::<u8>(), 0u8..4, 0i32..30, any::<u16>()), 1..600), budget in 200u64..20_000) {
        let acts = sensible(raw);
        let (in_memory, order, catalogue, spills) = fold(&acts, &options(u64::MAX, ALL)).unwrap();
        prop_assert_eq!(spills, 0);
        let (spilled, spilled_order, spilled_catalogue, _) = fold(&acts, &options(budget, ALL)).unwrap();
        prop_assert_eq!(in_memory, spilled);
        prop_assert!(order.is_sorted());
        prop_assert_eq!(order, spilled_order);
        prop_assert_eq!(catalogue, spilled_catalogue);
    }

    #[test]
    fn a_partition_that_is_too_large_is_split(count in 1i32..120) {
        let mut acts = vec![Act::Create(0, false)];
        acts.extend((0..count).map(|i| Act::Insert(0, i, 39)));
        acts.extend((0..count).map(|i| Act::Set(0, i, 7)));
        // One partition, and a budget of a few documents.
        let few = FoldOptions { expected: 0, ..options(1_000, ALL) };
        prop_assert_eq!(fold(&acts, &few).unwrap().0, fold(&acts, &options(u64::MAX, ALL)).unwrap().0);
    }
}

#[test]
fn the_tiny_budgets_of_these_tests_do_spill() {
    let mut acts = vec![Act::Create(0, false), Act::Create(1, true)];
    acts.extend((0..200).map(|i| Act::Insert(u8::from(i % 2 == 0), i, 39)));
    assert!(fold(&acts, &options(2_000, ALL)).unwrap().3 > 5);
}

#[test]
fn rule_15_numeric_ids_of_different_types_are_one_document() {
    let acts = [Act::Create(0, false), Act::Insert(0, 1, 1), Act::Replace(0, 1, 2), Act::Set(0, 1, 3)];
    for budget in [1, u64::MAX] {
        let (state, ..) = fold(&acts, &options(budget, ALL)).unwrap();
        assert_eq!(state.len(), 1);
        assert!(
            matches!(state.values().next().unwrap().get("_id").unwrap(), Some(bson::RawBsonRef::Int64(1))),
            "the document's own bytes are what counts"
        );
    }
}

#[test]
fn points_cut_by_seq_and_by_time() {
    let acts = [Act::Create(0, false), Act::Insert(0, 1, 1), Act::Insert(0, 2, 1), Act::Delete(0, 1)];
    let count = |until| fold(&acts, &options(u64::MAX, until)).unwrap().0.len();
    let at = |seq| Bound::Time(time(seq));
    assert_eq!([Bound::Seq(0), Bound::Seq(2), Bound::Seq(3), Bound::Seq(4)].map(count), [0, 1, 2, 1]);
    assert_eq!([at(1), at(2), at(3), at(4)].map(count), [0, 1, 2, 1]);
    assert_eq!(count(Bound::Time(time(3).before())), 1);
}

#[test]
fn a_change_that_does_not_fit_is_refused_by_name_and_left_out_only_on_request() {
    let wrong = [Act::Set(0, 9, 1), Act::Replace(0, 9, 1), Act::Delete(0, 9), Act::Describe(0, 9, 1), Act::Insert(7, 1, 1), Act::Drop(7)];
    for act in wrong {
        for budget in [1, u64::MAX] {
            let acts = [Act::Create(0, false), Act::Insert(0, 1, 1), act.clone()];
            let fault = fold(&acts, &options(budget, ALL)).unwrap_err();
            assert!(fault.what.contains("seq:3"), "{act:?}: {}", fault.what);
            let tolerant = FoldOptions { tolerant: true, ..options(budget, ALL) };
            let (state, ..) = fold(&acts, &tolerant).unwrap();
            assert!((1..=2).contains(&state.len()), "{act:?}");
        }
    }
}

#[test]
fn a_gap_that_is_crossed_is_counted_up_to_the_point_and_said() {
    for (until, lost) in [(ALL, 3), (Bound::Seq(5), 3), (Bound::Seq(3), 2)] {
        let mut folder = Folder::new(Catalogue::default(), &FoldOptions { tolerant: true, ..options(u64::MAX, until) });
        feed(&mut folder, 1, &Act::Create(0, false)).unwrap();
        folder.gap(2, 4);
        let folded = folder.finish().unwrap();
        assert_eq!((folded.seq, folded.documents.left_out()), (1 + lost, lost));
        assert_eq!(folded.notes, [format!("left out: seq:2 to seq:{}, a recorded gap", 1 + lost)]);
    }
}

#[test]
fn dropped_collections_leave_nothing_even_after_a_spill() {
    let mut acts = vec![Act::Create(0, false), Act::Create(2, false)];
    acts.extend((0..100).map(|i| Act::Insert(0, i, 39)));
    acts.extend([Act::Insert(2, 1, 1), Act::Drop(0)]);
    for budget in [500, u64::MAX] {
        let (state, _, catalogue, _) = fold(&acts, &options(budget, ALL)).unwrap();
        assert_eq!((state.len(), catalogue.collections.len()), (1, 1));
    }
}

#[test]
fn a_collection_made_again_under_its_old_uuid_has_none_of_its_old_documents() {
    for capped in [false, true] {
        for lives in 1..4 {
            let mut acts = Vec::new();
            for life in 0..=lives {
                acts.push(Act::Create(0, capped));
                acts.extend((0..100).map(|i| Act::Insert(0, 1_000 * life + i, 39)));
                acts.extend((0..50).map(|i| Act::Set(0, 1_000 * life + i, 7)));
                acts.push(Act::Drop(0));
            }
            acts.extend([Act::Create(0, capped), Act::Insert(0, 5, 1), Act::Insert(0, -1, 1), Act::Set(0, 5, 2)]);
            let (state, order, ..) = fold(&acts, &options(u64::MAX, ALL)).unwrap();
            assert_eq!((state.len(), order.len()), (2, if capped { 2 } else { 0 }));
            let (spilled, spilled_order, _, spills) = fold(&acts, &options(500, ALL)).unwrap();
            assert!(spills > 5);
            assert_eq!((spilled, spilled_order), (state, order), "{lives} lives, capped {capped}");
            // What is only in the old life is not there to be changed.
            for lost in [Act::Set(0, 9, 1), Act::Delete(0, 9), Act::Replace(0, 9, 1)] {
                let acts = [&acts[..], &[lost]].concat();
                for budget in [500, u64::MAX] {
                    assert!(fold(&acts, &options(budget, ALL)).unwrap_err().what.contains("does not exist"));
                }
            }
        }
    }
}

#[test]
fn many_changes_of_one_document_are_linear_and_stay_within_the_budget() {
    use super::state::ADDED_UP;
    const CHANGES: u64 = 20_000;
    let mut folder = Folder::new(Catalogue::default(), &options(100_000, ALL));
    feed(&mut folder, 1, &Act::Create(0, false)).unwrap();
    feed(&mut folder, 2, &Act::Insert(0, 1, 1)).unwrap();
    // Fills the budget once, so that all of the changes are diffs on a document in a file.
    for id in 0..2_000 {
        feed(&mut folder, 3 + id, &Act::Insert(0, 2 + i32::try_from(id).unwrap(), 39)).unwrap();
    }
    ADDED_UP.with(|count| count.set(0));
    let mut most = 0;
    for n in 0..CHANGES {
        feed(&mut folder, 3_000 + n, &Act::Set(0, 1, u16::try_from(n % 30_000).unwrap())).unwrap();
        most = most.max(folder.table.in_memory());
    }
    assert!((50_000..=100_000).contains(&most), "{most}");
    let looked = ADDED_UP.with(std::cell::Cell::get);
    assert!(looked <= 2 * CHANGES, "{looked} diffs were added up for {CHANGES} changes");
    let mut folded = folder.finish().unwrap();
    assert!(folded.spills > 10, "{}", folded.spills);
    let mut hot = None;
    while let Some(documents) = folded.documents.next_batch().unwrap() {
        hot = hot.or(documents.into_iter().find(|d| d.doc.get_i32("_id").ok() == Some(1)));
    }
    assert_eq!(hot.unwrap().doc.get_i32("v").unwrap(), i32::try_from(CHANGES - 1).unwrap());
}

#[test]
fn rule_10_what_came_and_went_while_the_capture_was_started_fits_nothing_and_is_left_out() {
    let early = [Act::Set(0, 9, 1), Act::Replace(0, 9, 1), Act::Describe(0, 9, 1), Act::Delete(0, 9)];
    for listed in [5, 4] {
        for budget in [1, u64::MAX] {
            let base = Catalogue { listed_at: time(listed), ..Catalogue::default() };
            let mut folder = Folder::new(base, &options(budget, ALL));
            let acts = [&[Act::Create(0, false)], &early[..], &[Act::Insert(0, 1, 1)]].concat();
            let applied = acts.iter().zip(1..).try_for_each(|(act, seq)| feed(&mut folder, seq, act).map(|_| ()));
            let all = applied.and_then(|()| folder.finish()).and_then(|mut folded| {
                let mut count = 0;
                while let Some(batch) = folded.documents.next_batch()? {
                    count += batch.len();
                }
                Ok((count, folded.documents.left_out()))
            });
            match all {
                Ok(all) => assert_eq!((listed, all), (5, (1, 0))),
                Err(fault) => assert!(listed == 4 && fault.what.contains("seq:5"), "{listed}: {}", fault.what),
            }
        }
    }
}

#[test]
fn changes_in_the_servers_record_of_views_are_left_alone() {
    let mut folder = Folder::new(Catalogue::default(), &options(u64::MAX, ALL));
    let (key, view) = (rawdoc! {"_id": "d.v"}, rawdoc! {"_id": "d.v", "viewOn": "c", "pipeline": []});
    for (seq, op) in (1..).zip([Op::Insert, Op::Update, Op::Replace, Op::Delete]) {
        let change = ChangeRef {
            op,
            coll: "system.views",
            uuid: Some(uuid(9)),
            time: time(seq),
            wall_ms: None,
            txn: None,
            key: Some(&key),
            body: Some(&view),
        };
        assert_eq!(folder.apply(seq, &change).unwrap(), Flow::Continue, "{op:?}");
    }
    let mut folded = folder.finish().unwrap();
    assert_eq!(folded.documents.next_batch().unwrap(), None);
}
