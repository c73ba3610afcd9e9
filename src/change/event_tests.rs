use super::*;
use crate::fault::Kind;
use bson::{Binary, Bson, DateTime, Timestamp, spec::BinarySubtype};
use proptest::prelude::*;

const UUID: [u8; 16] = [7; 16];

fn uuid() -> Binary {
    Binary { subtype: BinarySubtype::Uuid, bytes: UUID.to_vec() }
}

fn envelope(op: &str) -> Document {
    doc! {
        "_id": { "_data": "826B04CB3E00000006002B" }, "operationType": op, "clusterTime": Timestamp { time: 100, increment: 7 },
        "collectionUUID": uuid(), "wallTime": DateTime::from_millis(1234), "ns": { "db": "shop", "coll": "orders" },
    }
}

fn with(op: &str, rest: Document) -> Document {
    let mut event = envelope(op);
    event.extend(rest);
    event
}

fn raw(d: &Document) -> bson::RawDocumentBuf {
    d.try_into().unwrap()
}

/// Parses and gives owned parts: op, key, body.
fn row(event: &Document) -> (Op, Option<Document>, Option<Document>) {
    let event = raw(event);
    let mut scratch = Scratch::default();
    let view = parse_event(&event, "shop", &mut scratch).unwrap();
    let own = |d: &RawDocument| Document::try_from(d).unwrap();
    (view.change.op, view.change.key.map(own), view.change.body.map(own))
}

fn without_token(mut event: Document) -> Document {
    event.remove("_id");
    event
}

#[test]
fn data_events_become_compact_rows() {
    let full = doc! { "_id": 1, "a": [1, { "b": Bson::Null }] };
    let diff = doc! { "u": { "a": 1 } };
    let description = doc! { "updatedFields": { "a": 1 }, "removedFields": [], "truncatedArrays": [] };
    let key = doc! { "_id": 1 };
    let cases = [
        (with("insert", doc! { "fullDocument": full.clone(), "documentKey": key.clone() }), (Op::Insert, None, Some(full.clone()))),
        (with("replace", doc! { "fullDocument": full.clone(), "documentKey": key.clone() }), (Op::Replace, None, Some(full.clone()))),
        (
            with("update", doc! { "documentKey": key.clone(), "rawUpdateDescription": { "$v": 2, "diff": diff.clone() } }),
            (Op::Update, Some(key.clone()), Some(diff)),
        ),
        (
            with("update", doc! { "documentKey": key.clone(), "updateDescription": description.clone() }),
            (Op::Described, Some(key.clone()), Some(description)),
        ),
        (with("delete", doc! { "documentKey": key.clone() }), (Op::Delete, Some(key), None)),
    ];
    for (event, want) in cases {
        assert_eq!(row(&event), want, "{event}");
    }
}

#[test]
fn columns_are_filled_for_every_kind_of_row() {
    for op in ["insert", "drop", "createIndexes", "somethingNew"] {
        let event = raw(&with(op, doc! { "fullDocument": { "_id": 1 }, "documentKey": { "_id": 1 } }));
        let mut scratch = Scratch::default();
        let view = parse_event(&event, "shop", &mut scratch).unwrap();
        assert_eq!((view.op_type, view.db), (op, "shop"));
        assert_eq!(view.token.get_str("_data").unwrap(), "826B04CB3E00000006002B");
        let c = view.change;
        let want = ("orders", Some(UUID), ClusterTime { t: 100, i: 7 }, Some(1234), true);
        assert_eq!((c.coll, c.uuid, c.time, c.wall_ms, c.txn.is_none()), want);
        assert_eq!(c.op == Op::Insert, op == "insert");
    }
}

#[test]
fn an_insert_keeps_its_key_only_if_it_says_more_than_id() {
    let cases = [
        (doc! { "_id": 1 }, doc! { "_id": 1 }, false),
        (doc! { "_id": 1 }, doc! { "a": 2, "_id": 1 }, false),
        (doc! { "shard": 5, "_id": 1 }, doc! { "_id": 1, "shard": 5 }, true),
        (doc! { "_id": 1, "shard": 5 }, doc! { "_id": 1, "shard": 5 }, true),
        (doc! { "_id": 1i64 }, doc! { "_id": 1 }, true),
        (doc! {}, doc! { "a": 1 }, true),
    ];
    for op in ["insert", "replace"] {
        for (key, full, kept) in &cases {
            let (got, stored, body) = row(&with(op, doc! { "fullDocument": full.clone(), "documentKey": key.clone() }));
            assert_ne!(got, Op::Event);
            assert_eq!(stored, kept.then(|| key.clone()), "{key} {full}");
            assert_eq!(body.as_ref(), Some(full));
        }
    }
}

#[test]
fn transactions_carry_their_identity_and_a_scratch_is_reused() {
    let lsid = doc! { "id": uuid(), "uid": Binary { subtype: BinarySubtype::Generic, bytes: vec![1; 32] } };
    let mut inside = doc! { "txnNumber": 17i64, "lsid": lsid.clone() };
    inside.extend(with("delete", doc! { "documentKey": { "_id": 1 } }));
    let mut ddl = doc! { "txnNumber": 18i64, "lsid": lsid.clone() };
    ddl.extend(with("create", doc! { "operationDescription": { "idIndex": { "v": 2 } } }));
    let mut scratch = Scratch::default();
    for (event, number, op) in [(&inside, 17i64, Op::Delete), (&ddl, 18, Op::Event), (&inside, 17, Op::Delete)] {
        let event = raw(event);
        let view = parse_event(&event, "shop", &mut scratch).unwrap();
        assert_eq!(view.change.op, op);
        let txn = Document::try_from(view.change.txn.unwrap()).unwrap();
        assert_eq!(txn, doc! { "lsid": lsid.clone(), "txnNumber": number });
    }
}

#[test]
fn whatever_is_not_exactly_known_is_kept_whole() {
    let full = doc! { "fullDocument": { "_id": 1 }, "documentKey": { "_id": 1 } };
    let also = |extra: Document| {
        let mut d = full.clone();
        d.extend(extra);
        with("insert", d)
    };
    let update = |rest: Document| with("update", rest);
    let key = doc! { "_id": 1 };
    let mut other_db = with("insert", full.clone());
    other_db.insert("ns", doc! { "db": "other", "coll": "orders" });
    let mut odd_ns = with("insert", full.clone());
    odd_ns.insert("ns", doc! { "db": "shop", "coll": "orders", "x": 1 });
    let mut odd_uuid = with("insert", full.clone());
    odd_uuid.insert("collectionUUID", Binary { subtype: BinarySubtype::Generic, bytes: vec![1; 16] });
    let mut odd_wall = with("insert", full.clone());
    odd_wall.insert("wallTime", 5);
    let events = [
        also(doc! { "splitEvent": { "fragment": 1, "of": 2 } }),
        also(doc! { "txnNumber": 5i64 }),
        also(doc! { "lsid": { "id": 5 } }),
        also(doc! { "txnNumber": 5, "lsid": { "id": 5 } }),
        also(doc! { "updateDescription": {} }),
        other_db,
        odd_ns,
        odd_uuid,
        odd_wall,
        with("insert", doc! { "documentKey": key.clone() }),
        with("insert", doc! { "fullDocument": Bson::Null, "documentKey": key.clone() }),
        with("insert", doc! { "fullDocument": key.clone() }),
        with("delete", doc! { "documentKey": key.clone(), "fullDocument": key.clone() }),
        update(doc! { "documentKey": key.clone() }),
        update(doc! { "documentKey": key.clone(), "rawUpdateDescription": { "$v": 3, "diff": {} } }),
        update(doc! { "documentKey": key.clone(), "rawUpdateDescription": { "$v": 2, "diff": {}, "x": 1 } }),
        update(doc! { "documentKey": key.clone(), "rawUpdateDescription": { "$set": { "a": 1 } } }),
        update(doc! { "documentKey": key.clone(), "rawUpdateDescription": { "$v": 2, "diff": {} }, "updateDescription": {} }),
        update(doc! { "documentKey": key.clone(), "updateDescription": {}, "fullDocument": {} }),
        update(doc! { "updateDescription": {} }),
        with("rename", doc! { "to": { "db": "shop", "coll": "b" } }),
        with("brandNew", full.clone()),
    ];
    for event in events {
        let (op, key, body) = row(&event);
        assert_eq!((op, key), (Op::Event, None), "{event}");
        assert_eq!(body, Some(without_token(event)));
    }
}

#[test]
fn a_field_that_comes_twice_is_kept_whole() {
    let mut bytes = raw(&with("delete", doc! { "documentKey": { "_id": 1 } })).into_bytes();
    let twice = raw(&doc! { "documentKey": { "_id": 2 } }).into_bytes();
    bytes.pop();
    bytes.extend_from_slice(&twice[4..]);
    let len = i32::try_from(bytes.len()).unwrap();
    bytes[..4].copy_from_slice(&len.to_le_bytes());
    let event = RawDocument::from_bytes(&bytes).unwrap();
    let mut scratch = Scratch::default();
    let change = parse_event(event, "shop", &mut scratch).unwrap().change;
    assert_eq!(change.op, Op::Event);
    assert_eq!(
        change.body.unwrap().as_bytes().len(),
        bytes.len() - (1 + 4) - raw(&doc! {"_data": "826B04CB3E00000006002B"}).as_bytes().len()
    );
}

#[test]
fn invalidate_and_drop_database_have_no_collection() {
    for ns in [None, Some(doc! { "db": "shop" })] {
        let mut event = envelope("invalidate");
        event.remove("ns");
        event.remove("collectionUUID");
        if let Some(ns) = &ns {
            event.insert("ns", ns.clone());
        }
        let event = raw(&event);
        let mut scratch = Scratch::default();
        let view = parse_event(&event, "shop", &mut scratch).unwrap();
        assert_eq!((view.db, view.change.coll, view.change.uuid), (if ns.is_some() { "shop" } else { "" }, "", None));
        assert_eq!(view.change.op, Op::Event);
        assert_eq!(parse_stored_event(view.change.body.unwrap()).unwrap().map(|c| c.op), None);
    }
}

#[test]
fn an_event_without_token_type_or_time_is_corrupt() {
    for missing in ["_id", "operationType", "clusterTime"] {
        for op in ["delete", "create"] {
            let mut event = with(op, doc! { "documentKey": { "_id": 1 } });
            event.remove(missing);
            let parsed = |event: &Document| parse_event(&raw(event), "shop", &mut Scratch::default()).map(|_| ()).unwrap_err().kind;
            assert_eq!(parsed(&event), Kind::Corrupt);
            event.insert(missing, Bson::Null);
            assert_eq!(parsed(&event), Kind::Corrupt);
        }
    }
}

#[test]
fn a_data_change_kept_whole_can_be_applied_or_is_a_hole() {
    let key = doc! { "_id": 1 };
    let diff = doc! { "i": { "a": 1 } };
    let cases = [
        (with("insert", doc! { "new": 1, "fullDocument": key.clone(), "documentKey": key.clone() }), Some((Op::Insert, key.clone()))),
        (with("delete", doc! { "new": 1, "documentKey": key.clone() }), Some((Op::Delete, doc! {}))),
        (
            with("update", doc! { "new": 1, "documentKey": key.clone(), "rawUpdateDescription": { "$v": 2, "diff": diff.clone() } }),
            Some((Op::Update, diff.clone())),
        ),
        (
            with(
                "update",
                doc! { "documentKey": key.clone(), "rawUpdateDescription": { "$v": 9, "x": {} }, "updateDescription": { "updatedFields": {} } },
            ),
            Some((Op::Described, doc! { "updatedFields": {} })),
        ),
        (with("update", doc! { "documentKey": key.clone(), "rawUpdateDescription": { "$v": 9, "diff": {} } }), None),
        (with("insert", doc! { "documentKey": key.clone() }), None),
        (with("delete", doc! { "new": 1 }), None),
    ];
    for (event, want) in cases {
        let body = raw(&without_token(event.clone()));
        assert_eq!(operation_type(&body), event.get_str("operationType").ok());
        match (parse_stored_event(&body), want) {
            (Ok(Some(change)), Some((op, inner))) => {
                assert_eq!((change.op, change.coll, change.uuid), (op, "orders", Some(UUID)), "{event}");
                assert_eq!(change.body.map(|b| Document::try_from(b).unwrap()).unwrap_or_default(), inner);
                assert_eq!(change.key.is_some(), op != Op::Insert);
            }
            (Err(fault), None) => assert_eq!(fault.kind, Kind::Corrupt),
            (got, want) => panic!("{event}: {got:?}, wanted {want:?}"),
        }
    }
}

#[test]
fn a_row_reads_as_the_event_it_was() {
    let key = doc! { "_id": 1 };
    let mut in_txn = doc! { "txnNumber": 3i64, "lsid": { "id": 1 } };
    in_txn.extend(with("insert", doc! { "fullDocument": { "_id": 1, "x": 2 }, "documentKey": key.clone() }));
    let events = [
        in_txn,
        with("replace", doc! { "fullDocument": { "_id": 1, "x": 2 }, "documentKey": { "x": 2, "_id": 1 } }),
        with("update", doc! { "documentKey": key.clone(), "rawUpdateDescription": { "$v": 2, "diff": { "d": { "a": false } } } }),
        with("update", doc! { "documentKey": key.clone(), "updateDescription": { "updatedFields": {} } }),
        with("delete", doc! { "documentKey": key }),
        with("drop", doc! {}),
    ];
    for event in events {
        let parsed = raw(&event);
        let mut scratch = Scratch::default();
        let change = parse_event(&parsed, "shop", &mut scratch).unwrap().change;
        let sorted = |d: Document| d.into_iter().collect::<std::collections::BTreeMap<_, _>>();
        assert_eq!(sorted(rebuild_event(&change, "shop").unwrap()), sorted(without_token(event)));
    }
}

proptest! {
    /// Hostile bytes give an answer or an error, never a panic; what parses keeps its size in bounds.
    #[test]
    fn damaged_events_never_panic(at in 0usize..400, to: u8, cut in 0usize..400) {
        let mut event = doc! { "txnNumber": 3i64, "lsid": { "id": uuid() } };
        event.extend(with("update", doc! { "documentKey": { "_id": 1 }, "rawUpdateDescription": { "$v": 2, "diff": { "u": { "a": 1 } } } }));
        let mut bytes = raw(&event).into_bytes();
        if let Some(byte) = bytes.get_mut(at) { *byte = to; }
        if cut < bytes.len() && cut > 4 && to % 2 == 0 {
            bytes.truncate(cut);
            bytes.push(0);
            let len = i32::try_from(bytes.len()).unwrap();
            bytes[..4].copy_from_slice(&len.to_le_bytes());
        }
        if let Ok(event) = RawDocument::from_bytes(&bytes) {
            let mut scratch = Scratch::default();
            if let Ok(view) = parse_event(event, "shop", &mut scratch) {
                prop_assert!(view.change.raw_bytes() <= bytes.len() as u64);
                let _ = rebuild_event(&view.change, "shop");
                if let Some(body) = view.change.body { let _ = parse_stored_event(body); }
            }
        }
    }
}
