use bson::{Bson, RawDocumentBuf, doc, spec::BinarySubtype};

use super::*;

const LISTED: ClusterTime = ClusterTime { t: 10, i: 1 };

fn uuid(n: u8) -> Bson {
    Bson::Binary(bson::Binary { subtype: BinarySubtype::Uuid, bytes: vec![n; 16] })
}

fn event(kind: &str, coll: &str, id: u8, description: Document) -> Document {
    let mut event =
        doc! {"operationType": kind, "clusterTime": bson::Timestamp { time: 11, increment: 1 }, "ns": {"db": "d", "coll": coll}};
    if id > 0 {
        event.insert("collectionUUID", uuid(id));
    }
    event.insert("operationDescription", description);
    event
}

fn early(mut event: Document) -> Document {
    event.insert("clusterTime", bson::Timestamp { time: 10, increment: 1 });
    event
}

fn apply(catalogue: &mut Catalogue, event: &Document) -> Result<Effect> {
    catalogue.apply(&RawDocumentBuf::try_from(event).unwrap())
}

fn fold(events: &[Document]) -> Catalogue {
    let mut catalogue = Catalogue { listed_at: LISTED, ..Catalogue::default() };
    for event in events {
        let effect = apply(&mut catalogue, event).unwrap();
        assert!(!matches!(effect, Effect::Unrecognised(_)), "{event}: {effect:?}");
    }
    catalogue
}

fn create(coll: &str, id: u8, options: Document) -> Document {
    let mut description = options;
    description.insert("idIndex", doc! {"v": 2, "key": {"_id": 1}, "name": "_id_"});
    event("create", coll, id, description)
}

fn index(name: &str) -> Document {
    doc! {"v": 2, "key": {name: 1}, "name": name}
}

#[test]
fn create_keeps_options_and_leaves_the_id_index_out() {
    let catalogue = fold(&[create("a.b", 1, doc! {"capped": true, "size": 4096})]);
    let made = &catalogue.collections[&[1; 16]];
    assert_eq!((made.name.as_str(), &made.options), ("a.b", &doc! {"capped": true, "size": 4096}));
    assert!(made.is_capped() && made.indexes.is_empty());
}

#[test]
fn indexes_come_and_go_in_order_of_creation() {
    let catalogue = fold(&[
        create("c", 1, doc! {}),
        event("createIndexes", "c", 1, doc! {"indexes": [index("x"), index("y")]}),
        event("createIndexes", "c", 1, doc! {"indexes": [index("z")]}),
        event("dropIndexes", "c", 1, doc! {"indexes": [index("x")]}),
        event("createIndexes", "c", 1, doc! {"indexes": [index("x")]}),
    ]);
    let names: Vec<_> = catalogue.collections[&[1; 16]].indexes.iter().map(|i| index_name(i).to_owned()).collect();
    assert_eq!(names, ["y", "z", "x"]);
}

#[test]
fn coll_mod_changes_options_as_the_server_does() {
    let cases = [
        (doc! {}, doc! {"validator": {"x": 1}}, doc! {"validator": {"x": 1}, "validationLevel": "strict", "validationAction": "error"}),
        (doc! {}, doc! {"validationLevel": "moderate"}, doc! {"validationLevel": "moderate", "validationAction": "error"}),
        (doc! {}, doc! {"validationAction": "warn"}, doc! {"validationAction": "warn", "validationLevel": "strict"}),
        (
            doc! {"validator": {"x": 1}, "validationLevel": "off", "validationAction": "error"},
            doc! {"validator": {}},
            doc! {"validationLevel": "off", "validationAction": "error"},
        ),
        (doc! {"changeStreamPreAndPostImages": {"enabled": true}}, doc! {"changeStreamPreAndPostImages": {"enabled": false}}, doc! {}),
        (doc! {}, doc! {"changeStreamPreAndPostImages": {"enabled": true}}, doc! {"changeStreamPreAndPostImages": {"enabled": true}}),
        (
            doc! {"capped": true, "size": 100_096, "max": 50},
            doc! {"cappedSize": 200_000, "cappedMax": 0},
            doc! {"capped": true, "size": 200_192, "max": i32::MAX},
        ),
        (doc! {"expireAfterSeconds": 5}, doc! {"expireAfterSeconds": "off"}, doc! {}),
        (doc! {}, doc! {"expireAfterSeconds": 5}, doc! {"expireAfterSeconds": 5}),
        (doc! {"x": 1}, doc! {}, doc! {"x": 1}),
    ];
    for (before, change, after) in cases {
        let catalogue = fold(&[create("c", 1, before.clone()), event("modify", "c", 1, change.clone())]);
        assert_eq!(catalogue.collections[&[1; 16]].options, after, "{before} changed by {change}");
    }
}

#[test]
fn coll_mod_changes_one_index() {
    let cases = [
        (doc! {"expireAfterSeconds": 100}, doc! {"expireAfterSeconds": 500}, doc! {"expireAfterSeconds": 500}),
        (doc! {}, doc! {"hidden": true}, doc! {"hidden": true}),
        (doc! {"hidden": true}, doc! {"hidden": false}, doc! {}),
        (doc! {}, doc! {"prepareUnique": true}, doc! {"prepareUnique": true}),
        (doc! {"prepareUnique": true}, doc! {"unique": true}, doc! {"unique": true}),
    ];
    for (before, change, after) in cases {
        let with = |extra: &Document| {
            let mut spec = index("i");
            spec.extend(extra.clone());
            spec
        };
        let mut named = doc! {"name": "i"};
        named.extend(change.clone());
        let catalogue = fold(&[
            create("c", 1, doc! {}),
            event("createIndexes", "c", 1, doc! {"indexes": [index("other"), with(&before)]}),
            event("modify", "c", 1, doc! {"index": named}),
        ]);
        assert_eq!(catalogue.collections[&[1; 16]].indexes, [index("other"), with(&after)], "{before} changed by {change}");
    }
}

#[test]
fn rule_16_a_rename_over_a_target_drops_the_target_and_clears_temp() {
    let mut catalogue = fold(&[create("tmp.out", 1, doc! {"temp": true}), create("kept", 2, doc! {})]);
    let rename = event("rename", "tmp.out", 1, doc! {"to": {"db": "d", "coll": "kept"}, "dropTarget": uuid(2)});
    assert_eq!(apply(&mut catalogue, &rename).unwrap(), Effect::Dropped(vec![[2; 16]]));
    assert_eq!(catalogue.collections.len(), 1);
    let renamed = &catalogue.collections[&[1; 16]];
    assert_eq!((renamed.name.as_str(), &renamed.options), ("kept", &doc! {}));
}

#[test]
fn rule_16_drop_database_clears_views_too_and_names_may_return() {
    let mut catalogue = fold(&[
        create("c", 1, doc! {}),
        event("create", "v", 0, doc! {"viewOn": "c", "pipeline": []}),
        event("create", "ts", 0, doc! {"viewOn": "system.buckets.ts", "pipeline": []}),
    ]);
    assert_eq!(catalogue.views["ts"].kind, Kind::Timeseries);
    let effect = apply(&mut catalogue, &event("dropDatabase", "", 0, doc! {})).unwrap();
    assert_eq!(effect, Effect::Dropped(vec![[1; 16]]));
    assert!(catalogue.collections.is_empty() && catalogue.views.is_empty());
    apply(&mut catalogue, &create("c", 2, doc! {})).unwrap();
    assert_eq!(catalogue.collection_named("c").unwrap().uuid, [2; 16]);
}

#[test]
fn views_are_made_changed_and_dropped_by_name() {
    let made = event("create", "v", 0, doc! {"viewOn": "c", "pipeline": [], "collation": {"locale": "fr"}});
    let changed = event("modify", "v", 0, doc! {"viewOn": "d", "pipeline": [{"$match": {}}]});
    let catalogue = fold(&[made.clone(), changed.clone()]);
    assert_eq!(catalogue.views["v"].options, doc! {"viewOn": "d", "pipeline": [{"$match": {}}]});
    let gone = fold(&[made, changed, event("drop", "v", 0, doc! {})]);
    assert!(gone.views.is_empty());
}

#[test]
fn rule_10_events_up_to_the_listing_are_tolerated_and_later_ones_are_not() {
    let wrong = [
        create("c", 1, doc! {}),
        event("drop", "x", 9, doc! {}),
        event("drop", "noview", 0, doc! {}),
        event("createIndexes", "x", 9, doc! {"indexes": [index("i")]}),
        event("dropIndexes", "c", 1, doc! {"indexes": [index("gone")]}),
        event("modify", "x", 9, doc! {"validationLevel": "off"}),
        event("modify", "c", 1, doc! {"index": {"name": "gone", "hidden": true}}),
        event("rename", "x", 9, doc! {"to": {"db": "d", "coll": "y"}}),
        event("rename", "c", 1, doc! {"to": {"db": "d", "coll": "y"}, "dropTarget": uuid(9)}),
    ];
    for event in wrong {
        let mut catalogue = fold(&[create("c", 1, doc! {})]);
        let before = catalogue.clone();
        apply(&mut catalogue, &early(event.clone())).unwrap_or_else(|f| panic!("{event} before the listing: {f}"));
        if event.get_str("operationType").unwrap() != "rename" {
            assert_eq!(catalogue, before, "{event}");
        }
        let fault = apply(&mut before.clone(), &event).unwrap_err();
        assert!(fault.what.contains("ts:11.1"), "{}", fault.what);
    }
}

#[test]
fn rule_10_replaying_what_the_listing_already_holds_ends_at_the_listing() {
    let history = [
        create("a", 1, doc! {}),
        event("createIndexes", "a", 1, doc! {"indexes": [index("x"), index("y")]}),
        event("rename", "a", 1, doc! {"to": {"db": "d", "coll": "b"}}),
        create("a", 2, doc! {"capped": true, "size": 4096}),
        event("rename", "a", 2, doc! {"to": {"db": "d", "coll": "b"}, "dropTarget": uuid(1)}),
        create("a", 3, doc! {}),
        event("createIndexes", "a", 3, doc! {"indexes": [index("x")]}),
        event("modify", "a", 3, doc! {"validator": {"x": 1}}),
        event("create", "v", 0, doc! {"viewOn": "a", "pipeline": []}),
    ];
    let whole = fold(&history);
    for listed in 0..=history.len() {
        let mut catalogue = fold(&history[..listed]);
        for event in &history {
            apply(&mut catalogue, &early(event.clone())).unwrap();
        }
        assert_eq!(catalogue, whole, "listing taken after {listed} events");
    }
}

#[test]
fn unknown_types_and_fields_are_told_not_skipped() {
    let mut catalogue = fold(&[create("c", 1, doc! {}), event("createIndexes", "c", 1, doc! {"indexes": [index("i")]})]);
    let before = catalogue.clone();
    let cases = [
        event("shardCollection", "c", 1, doc! {}),
        event("modify", "c", 1, doc! {"shiny": 1}),
        event("modify", "c", 1, doc! {"validationLevel": "off", "shiny": 1}),
        event("modify", "c", 1, doc! {"index": {"name": "i", "shiny": 1}}),
        event("createIndexes", "c", 1, doc! {}),
        doc! {"x": 1},
    ];
    for event in cases {
        assert!(matches!(apply(&mut catalogue, &event).unwrap(), Effect::Unrecognised(_)), "{event}");
        assert_eq!(catalogue, before, "{event}");
    }
}

#[test]
fn what_newer_servers_send_beside_it_changes_nothing() {
    let mut catalogue = fold(&[create("c", 1, doc! {}), event("create", "v", 0, doc! {"viewOn": "c", "pipeline": []})]);
    let before = catalogue.clone();
    let cases = [
        event("startIndexBuild", "c", 1, doc! {"indexes": [index("i")]}),
        event("abortIndexBuild", "c", 1, doc! {"indexes": [index("i")]}),
        event("endOfTransaction", "", 0, doc! {}),
        create("system.views", 9, doc! {}),
        event("drop", "system.views", 9, doc! {}),
    ];
    for event in cases {
        assert_eq!(apply(&mut catalogue, &event).unwrap(), Effect::None, "{event}");
        assert_eq!(catalogue, before, "{event}");
    }
}
