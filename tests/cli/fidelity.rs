//! What comes back is what went in, through the engine as a process: documents of every kind, DDL of every kind.

use std::str::FromStr;

use argon::devkit::oracle;
use bson::oid::ObjectId;
use bson::spec::BinarySubtype;
use bson::{Binary, Bson, DateTime, DbPointer, Decimal128, Document, JavaScriptCodeWithScope, RawDocumentBuf, Regex, Timestamp, doc};
use mongodb::Database;

use crate::ddl::{self, STAGES, Stage};
use crate::place::{BRANCH, Place};

/// By dbHash, options, indexes and views.
async fn assert_same(a: &Database, b: &Database, when: &str) {
    let (x, y) = (oracle::snapshot(a).await.unwrap(), oracle::snapshot(b).await.unwrap());
    assert_eq!(x.differences(&y), Vec::<String>::new(), "{when}");
}

#[tokio::test]
async fn every_kind_of_ddl_and_document_comes_back() {
    let place = Place::new("ddl").await;
    // A collection from before the capture is in the first catalogue.
    place.source.run_command(doc! {"create": "early", "validator": {"x": {"$type": "int"}}}).await.unwrap();
    let mut engine = place.begin().await;
    let mut points = Vec::new();
    for stage in STAGES {
        ddl::run(&place.client, &place.source, stage).await;
        if matches!(stage, Stage::Views | Stage::DropDatabase | Stage::Recreate) {
            let head = place.catch_up().await;
            let target = place.database(&format!("{stage:?}"));
            let report = place.json(&["restore", BRANCH, "--to-db", target.name()]).await;
            assert_eq!(report["seq"], head, "{report}");
            assert_same(&place.source, &target, &format!("after {stage:?}")).await;
            points.push((head, target));
        }
        if matches!(stage, Stage::Renames | Stage::DropDatabase) {
            // The stream goes on where it was, also from behind an invalidation.
            engine.kill9();
            engine = place.engine().await;
        }
    }
    // The same points from the whole history.
    for (head, then) in &points {
        let again = place.database(&format!("at{head}"));
        place.ok(&["restore", &format!("{BRANCH}@seq:{head}"), "--to-db", again.name()]).await;
        assert_same(then, &again, &format!("seq:{head} restored later")).await;
    }
    place.ok(&["verify", BRANCH, "--deep"]).await;
    place.ok(&["verify", BRANCH, "--against-db", place.source.name()]).await;
    place.stop(engine).await;
    assert!(place.assert_audit_is_clean().await > 500);
}

/// Every BSON type and the values of each that go wrong most easily.
fn values() -> Vec<Bson> {
    let binary = |subtype| Bson::Binary(Binary { subtype, bytes: (0..16).collect() });
    let decimal = |text| Bson::Decimal128(Decimal128::from_str(text).unwrap());
    let date = |ms| Bson::DateTime(DateTime::from_millis(ms));
    let regex = Regex { pattern: "^a/\\d".try_into().unwrap(), options: "imsx".try_into().unwrap() };
    let mut values = vec![
        Bson::Double(f64::NAN),
        Bson::Double(-f64::NAN),
        Bson::Double(f64::from_bits(0x7ff0_0000_0000_0001)), // a NaN with a payload
        Bson::Double(-0.0),
        Bson::Double(0.0),
        Bson::Double(f64::MIN_POSITIVE / 2.0),
        Bson::Double(f64::INFINITY),
        Bson::Double(f64::NEG_INFINITY),
        Bson::Int32(i32::MIN),
        Bson::Int64(i64::MAX),
        Bson::Int64(7),
        Bson::Boolean(false),
        Bson::Null,
        Bson::Undefined,
        Bson::MinKey,
        Bson::MaxKey,
        Bson::Symbol("symbol".into()),
        Bson::JavaScriptCode("function() { return \u{0} }".into()),
        Bson::JavaScriptCodeWithScope(JavaScriptCodeWithScope { code: "f".into(), scope: doc! {"x": 1, "y": {"z": Bson::MinKey}} }),
        Bson::RegularExpression(regex),
        Bson::ObjectId(ObjectId::from_bytes([0xff; 12])),
        Bson::Timestamp(Timestamp { time: 0, increment: 1 }),
        Bson::Timestamp(Timestamp { time: u32::MAX, increment: u32::MAX }),
        Bson::String(String::new()),
        Bson::String("nul \u{0} 漢字 🦀 \u{202e}".into()),
        Bson::Document(doc! {}),
        Bson::Document(doc! {"": 1, "a.b": 2, "$c": 3, "ä": {"": {"": []}}}),
        Bson::Array(vec![]),
        Bson::Array(vec![Bson::Null, Bson::Array(vec![Bson::Undefined, Bson::Double(f64::NAN)])]),
    ];
    values.extend(
        ["NaN", "-NaN", "Infinity", "-Infinity", "-0", "0E-6176", "0E+6111", "1.50", "1.5", "9.999999999999999999999999999999999E+6144"]
            .map(decimal),
    );
    values.extend([i64::MIN, i64::MAX, -1, 0, -62_135_596_800_001, 253_402_300_800_000].map(date));
    let kinds = [
        BinarySubtype::Generic,
        BinarySubtype::Function,
        BinarySubtype::BinaryOld,
        BinarySubtype::UuidOld,
        BinarySubtype::Uuid,
        BinarySubtype::Md5,
    ];
    values.extend(kinds.map(binary));
    values.extend([BinarySubtype::Encrypted, BinarySubtype::UserDefined(0x80), BinarySubtype::UserDefined(0xff)].map(binary));
    values
}

/// The one type that the library cannot build: `{p: DBPointer("db.c", ObjectId(..))}`.
fn with_db_pointer(id: i32) -> RawDocumentBuf {
    let mut bytes = vec![0; 4];
    bytes.extend(b"\x10_id\0");
    bytes.extend(id.to_le_bytes());
    bytes.extend(b"\x0cp\0\x05\0\0\0db.c\0");
    bytes.extend([7; 12]);
    bytes.push(0);
    let len = u32::try_from(bytes.len()).unwrap();
    bytes[..4].copy_from_slice(&len.to_le_bytes());
    RawDocumentBuf::from_bytes(bytes).unwrap()
}

/// All documents as bytes, in the order of `$natural` of neither side: by their own bytes.
async fn all_bytes(db: &Database, name: &str) -> Vec<Vec<u8>> {
    let found = db.collection::<RawDocumentBuf>(name).find(doc! {}).await.unwrap();
    let found: Vec<RawDocumentBuf> = futures_util::TryStreamExt::try_collect(found).await.unwrap();
    let mut all: Vec<Vec<u8>> = found.into_iter().map(RawDocumentBuf::into_bytes).collect();
    all.sort();
    all
}

#[tokio::test]
async fn every_type_and_id_comes_back_by_bytes() {
    let place = Place::new("types").await;
    let engine = place.begin().await;
    let db = &place.source;
    let docs: Vec<Document> =
        (0..).zip(values()).map(|(i, v): (i32, _)| doc! {"z": 1, "_id": i, "v": v.clone(), "a": [v.clone(), {"n": v}]}).collect();
    db.collection::<Document>("values").insert_many(&docs).await.unwrap();
    db.collection::<RawDocumentBuf>("values").insert_many([with_db_pointer(-1), with_db_pointer(-2)]).await.unwrap();
    assert!(matches!(Bson::try_from(with_db_pointer(1).get("p").unwrap().unwrap().to_owned()), Ok(Bson::DbPointer(DbPointer { .. }))));
    // As ids, each in a collection of its own, since many of them are one key.
    for (i, id) in (0..).zip(values()) {
        if matches!(id, Bson::Array(_) | Bson::RegularExpression(_) | Bson::Undefined) || matches!(&id, Bson::Document(d) if d.len() > 1) {
            continue; // the server refuses these
        }
        let ids = db.collection::<Document>(&format!("ids{}", i % 8));
        if ids.insert_one(doc! {"_id": id.clone(), "n": 0}).await.is_err() {
            continue; // the same key as one before it: 0 and -0, all NaNs
        }
        ids.update_one(doc! {"_id": id.clone()}, doc! {"$set": {"n": 1, "by": i}}).await.unwrap();
        if i % 3 == 0 {
            ids.delete_one(doc! {"_id": id.clone()}).await.unwrap();
            ids.insert_one(doc! {"b": 1, "_id": id, "a": 2}).await.unwrap();
        }
    }
    // Updates that only a diff of bytes gets right: types, order, NaN payloads, -0.
    let values_ = db.collection::<Document>("values");
    values_
        .update_many(doc! {"_id": {"$mod": [3, 0]}}, vec![doc! {"$replaceWith": {"_id": "$_id", "a": "$a", "v": "$v", "late": -0.0}}])
        .await
        .unwrap();
    values_
        .update_many(doc! {"_id": {"$mod": [3, 1]}}, doc! {"$set": {"v": f64::NAN, "a.1.n": Bson::MinKey}, "$unset": {"z": 1}})
        .await
        .unwrap();
    // A top-level Timestamp(0,0) is kept only by an update; an insert would make it now.
    let zero = doc! {"_id": 1, "t": Timestamp { time: 0, increment: 0 }, "in": {"t": Timestamp { time: 0, increment: 0 }}};
    let update = doc! {"q": {"_id": 1}, "u": [{"$replaceWith": {"$literal": zero.clone()}}], "upsert": true};
    db.run_command(doc! {"update": "zero", "updates": [update]}).await.unwrap();
    assert_eq!(db.collection::<Document>("zero").find_one(doc! {}).await.unwrap(), Some(zero));

    place.catch_up().await;
    let target = place.database("copy");
    place.ok(&["restore", BRANCH, "--to-db", target.name()]).await;
    assert_same(db, &target, "types").await;
    let mut documents = 0;
    for name in db.list_collection_names().await.unwrap() {
        let (theirs, ours) = (all_bytes(db, &name).await, all_bytes(&target, &name).await);
        assert_eq!(theirs, ours, "{name}");
        documents += theirs.len();
    }
    assert!(documents > 80, "{documents}");
    place.ok(&["verify", BRANCH, "--deep"]).await;
    place.ok(&["verify", BRANCH, "--against-db", db.name()]).await;
    place.stop(engine).await;
    place.assert_audit_is_clean().await;
}

#[tokio::test]
async fn names_and_shapes_at_the_limits_come_back_by_bytes() {
    let place = Place::new("limits").await;
    let engine = place.begin().await;
    let db = &place.source;
    // The longest namespace that 6.0 takes is 255 bytes.
    let longest = "n".repeat(255 - db.name().len() - 1);
    let unicode = "漢".repeat((255 - db.name().len() - 1) / 3);
    assert!(db.create_collection(format!("{longest}n")).await.is_err(), "one more is too long");
    for name in ["users", "jobs", "a.b", "a.b.c", "größe 🦀", "with space", "0", "captures", "fs.files", "_", "'\"", &longest, &unicode]
    {
        let coll = db.collection::<Document>(name);
        coll.insert_many((0..3).map(|i| doc! {"_id": i, "name": name})).await.unwrap_or_else(|e| panic!("{name}: {e}"));
        coll.update_one(doc! {"_id": 1}, doc! {"$set": {"changed": true}}).await.unwrap();
    }
    db.collection::<Document>("system.js").insert_one(doc! {"_id": "f", "value": Bson::JavaScriptCode("f".into())}).await.unwrap();
    // 2,000 fields, and their order turned round.
    let wide = |i: i32| -> Document {
        std::iter::once(("_id".to_owned(), Bson::Int32(i))).chain((0..2_000).map(|n| (format!("field{n}"), Bson::Int32(n)))).collect()
    };
    let coll = db.collection::<Document>("wide");
    coll.insert_many((0..5).map(wide)).await.unwrap();
    coll.update_one(doc! {"_id": 1}, doc! {"$set": {"field1999": 0, "new": 1}, "$unset": {"field0": 1}}).await.unwrap();
    let turned: Document = std::iter::once(("_id".to_owned(), Bson::Int32(2)))
        .chain((0..2_000).rev().map(|n| (format!("field{n}"), Bson::Int32(n))))
        .collect();
    let update = doc! {"q": {"_id": 2}, "u": [{"$replaceWith": {"$literal": turned}}]};
    db.run_command(doc! {"update": "wide", "updates": [update]}).await.unwrap();
    // 100 levels deep.
    let deep = (0..95).fold(doc! {"x": 1}, |inner, _| doc! {"d": inner});
    db.collection::<Document>("deep").insert_one(doc! {"_id": 1, "d": deep}).await.unwrap();

    place.catch_up().await;
    let target = place.database("c");
    // The longest name does not fit into a database with a longer name: said, and nothing half-way.
    let refused = place.argon(&["restore", BRANCH, "--to-db", target.name()]).await;
    assert!(refused.code == 1 && refused.stderr.contains("255") && refused.stderr.contains("shorter name"), "{refused:?}");
    assert!(target.list_collection_names().await.unwrap().is_empty());
    let target = place.client.database(&format!("x{}", &db.name()[1..]));
    place.ok(&["restore", BRANCH, "--to-db", target.name()]).await;
    assert_same(db, &target, "limits").await;
    for name in ["wide", "deep", "system.js", "a.b", &longest] {
        assert_eq!(all_bytes(db, name).await, all_bytes(&target, name).await, "{name}");
    }
    // Once more over what is there: system.js can be emptied, not dropped.
    target.collection::<Document>("system.js").insert_one(doc! {"_id": "other", "value": 1}).await.unwrap();
    place.ok(&["restore", BRANCH, "--to-db", target.name(), "--drop", target.name(), "--yes"]).await;
    assert_same(db, &target, "limits, over what was there").await;
    place.ok(&["verify", BRANCH, "--deep"]).await;
    place.ok(&["verify", BRANCH, "--against-db", db.name()]).await;
    place.stop(engine).await;
    place.assert_audit_is_clean().await;
}
