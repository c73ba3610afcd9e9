//! What happens in the source database: DDL and documents of every kind, in stages.

use std::str::FromStr;

use bson::oid::ObjectId;
use bson::spec::BinarySubtype;
use bson::{Binary, Bson, DateTime, Decimal128, Document, JavaScriptCodeWithScope, Regex, Timestamp, doc};
use mongodb::{Client, Database};

#[derive(Debug, Clone, Copy)]
pub(crate) enum Stage {
    Types,
    Names,
    Options,
    Indexes,
    CollMod,
    Renames,
    Capped,
    Views,
    Updates,
    DropDatabase,
    Recreate,
}

pub(crate) const STAGES: [Stage; 11] = [
    Stage::Types,
    Stage::Names,
    Stage::Options,
    Stage::Indexes,
    Stage::CollMod,
    Stage::Renames,
    Stage::Capped,
    Stage::Views,
    Stage::Updates,
    Stage::DropDatabase,
    Stage::Recreate,
];

pub(crate) async fn run(client: &Client, db: &Database, stage: Stage) {
    match stage {
        Stage::Types => types(db).await,
        Stage::Names => names(db).await,
        Stage::Options => options(db).await,
        Stage::Indexes => indexes(db).await,
        Stage::CollMod => coll_mod(db).await,
        Stage::Renames => renames(client, db).await,
        Stage::Capped => capped(db).await,
        Stage::Views => views(db).await,
        Stage::Updates => updates(db).await,
        Stage::DropDatabase => db.drop().await.unwrap(),
        Stage::Recreate => {
            names(db).await;
            indexes(db).await;
        }
    }
}

async fn command(db: &Database, command: Document) {
    let shown = command.to_string();
    let reply = db.run_command(command).await.unwrap_or_else(|e| panic!("{shown}: {e}"));
    assert!(!reply.contains_key("writeErrors"), "{shown}: {reply}");
}

fn values() -> Vec<Bson> {
    let uuid = |subtype| Bson::Binary(Binary { subtype, bytes: (0..16).collect() });
    vec![
        Bson::Int32(7),
        Bson::Int64(1 << 40),
        Bson::Double(0.1),
        Bson::Double(-0.0),
        Bson::Double(f64::NAN),
        Bson::Double(f64::NEG_INFINITY),
        Bson::Decimal128(Decimal128::from_str("1.50").unwrap()),
        Bson::Decimal128(Decimal128::from_str("NaN").unwrap()),
        Bson::Decimal128(Decimal128::from_str("-1E+6000").unwrap()),
        Bson::String("grün \u{0} 漢字 🦀".into()),
        Bson::Document(doc! {"b": 1, "a": {"$gt": 1, "x.y": 2}}),
        Bson::Boolean(true),
        Bson::Null,
        Bson::DateTime(DateTime::from_millis(i64::MAX)),
        Bson::DateTime(DateTime::from_millis(i64::MIN)),
        Bson::ObjectId(ObjectId::from_bytes([9; 12])),
        Bson::Binary(Binary { subtype: BinarySubtype::Generic, bytes: vec![] }),
        uuid(BinarySubtype::BinaryOld),
        uuid(BinarySubtype::Uuid),
        uuid(BinarySubtype::UserDefined(0x80)),
        Bson::JavaScriptCode("function() { return 1 }".into()),
        Bson::JavaScriptCodeWithScope(JavaScriptCodeWithScope { code: "f".into(), scope: doc! {"x": 1} }),
        Bson::Symbol("symbol".into()),
        Bson::Timestamp(Timestamp { time: 5, increment: 6 }),
        Bson::MinKey,
        Bson::MaxKey,
    ]
}

/// Every type as a value and, where the server allows it, as an id.
async fn types(db: &Database) {
    let regex = Bson::RegularExpression(Regex { pattern: "^a".try_into().unwrap(), options: "ix".try_into().unwrap() });
    let as_values = values().into_iter().chain([regex, Bson::Undefined, Bson::Array(values())]);
    let docs = (0_i32..).zip(as_values).map(|(i, value)| doc! {"_id": i, "z": 1, "v": value.clone(), "a": [value]});
    db.collection("values").insert_many(docs).await.unwrap();
    // One NaN only: those of all types are one id (correctness.md 15).
    let id = |v: &Bson| {
        !matches!(v, Bson::Document(d) if d.to_string().contains('$')) && !matches!(v, Bson::Decimal128(d) if d.to_string() == "NaN")
    };
    let as_ids = values().into_iter().filter(id);
    let docs: Vec<Document> = as_ids.map(|id| doc! {"_id": id, "v": 1}).chain([doc! {"_id": {"b": 1_i64, "a": 2.0}, "v": 1}]).collect();
    db.collection("ids").insert_many(docs).await.unwrap();
    // Documents that an insert alters: the source gets them by an update.
    let zero = Timestamp { time: 0, increment: 0 };
    for document in [doc! {"_id": 1, "t": zero, "$x": {"a.b": 1}, "n": [zero]}, doc! {"_id": 2, "deep": {"t": zero}}] {
        let update = doc! {"q": {"_id": document.get("_id")}, "u": [{"$replaceWith": {"$literal": document}}], "upsert": true};
        command(db, doc! {"update": "zero", "updates": [update]}).await;
    }
    let zeros = db.collection::<Document>("zero").count_documents(doc! {"t": zero}).await.unwrap();
    assert_eq!(zeros, 1, "the source has what the test is about");
    // An id may change its numeric type; field order is history too.
    db.collection("order").insert_one(doc! {"_id": 1, "a": 1, "b": 2, "c": 3}).await.unwrap();
    db.collection("order").replace_one(doc! {"_id": 1}, doc! {"_id": 1_i64, "c": 3, "a": 1}).await.unwrap();
    command(db, doc! {"update": "order", "updates": [{"q": {"_id": 1}, "u": [{"$replaceWith": {"_id": 1_i64, "a": 9, "c": 3}}]}]}).await;
}

async fn names(db: &Database) {
    let long = "l".repeat(200);
    for name in ["users", "projects", "a.b", "größe 漢字 🦀", "with space", "captures", "0", long.as_str()] {
        db.collection(name).insert_many((0..5).map(|i| doc! {"_id": i, "name": name})).await.unwrap();
    }
    db.collection("system.js").insert_one(doc! {"_id": "f", "value": Bson::JavaScriptCode("function() {}".into())}).await.unwrap();
}

async fn options(db: &Database) {
    command(db, doc! {"create": "validated", "validator": {"x": {"$gt": 1}}, "validationLevel": "moderate", "validationAction": "warn"})
        .await;
    command(db, doc! {"create": "strict", "validator": {"$jsonSchema": {"required": ["must"]}}}).await;
    command(db, doc! {"insert": "strict", "documents": [{"_id": 1, "breaks": "the rule"}], "bypassDocumentValidation": true}).await;
    command(db, doc! {"create": "collated", "collation": {"locale": "de", "strength": 2}}).await;
    db.collection("collated").insert_many(["b", "A", "ä"].map(|id| doc! {"_id": id, "s": id})).await.unwrap();
    command(
        db,
        doc! {"createIndexes": "collated", "indexes": [
            {"key": {"s": 1}, "name": "inherits"},
            {"key": {"s": -1}, "name": "simple", "collation": {"locale": "simple"}},
            {"key": {"t": 1}, "name": "french", "collation": {"locale": "fr"}},
        ]},
    )
    .await;
    command(db, doc! {"create": "images", "changeStreamPreAndPostImages": {"enabled": true}}).await;
    command(db, doc! {"create": "engine", "storageEngine": {"wiredTiger": {"configString": "block_compressor=zstd"}}}).await;
    command(
        db,
        doc! {"create": "clustered", "clusteredIndex": {"key": {"_id": 1}, "unique": true, "name": "by id"}, "expireAfterSeconds": 5},
    )
    .await;
    let old = DateTime::from_millis(0);
    db.collection("clustered").insert_many([doc! {"_id": old}, doc! {"_id": 2}]).await.unwrap();
    command(db, doc! {"create": "empty"}).await;
}

async fn indexes(db: &Database) {
    let docs = (0..20).map(|i| {
        doc! {"_id": i, "e": i, "t": DateTime::from_millis(0), "x": "der Hund", "y": "läuft", "loc": {"type": "Point", "coordinates": [i, i]}, "flat": [i, 1],
            "h": i, "p": i, "q": i, "any": {"thing": i}}
    });
    db.collection("indexed").insert_many(docs).await.unwrap();
    command(
        db,
        doc! {"createIndexes": "indexed", "indexes": [
            {"key": {"e": 1, "_id": -1}, "name": "e_1", "unique": true, "sparse": true},
            {"key": {"t": 1}, "name": "ttl", "expireAfterSeconds": 100},
            {"key": {"x": "text", "y": "text"}, "name": "words", "weights": {"x": 3}, "default_language": "german"},
            {"key": {"loc": "2dsphere"}, "name": "sphere"},
            {"key": {"flat": "2d"}, "name": "flat", "min": -200, "max": 200},
            {"key": {"$**": 1}, "name": "wild", "wildcardProjection": {"any": 1}},
            {"key": {"h": "hashed"}, "name": "hashed"},
            {"key": {"p": 1}, "name": "partial", "partialFilterExpression": {"p": {"$gt": 5}}},
            {"key": {"q": 1}, "name": "hidden", "hidden": true},
            {"key": {"x": 1}, "name": "collated", "collation": {"locale": "de", "strength": 1}},
        ]},
    )
    .await;
    command(db, doc! {"createIndexes": "made_by_index", "indexes": [{"key": {"a": 1}, "name": "a"}]}).await;
    command(db, doc! {"dropIndexes": "indexed", "index": ["flat"]}).await;
    // Uniqueness holds at the end, not on the way.
    let unique = db.collection::<Document>("swapped");
    command(db, doc! {"createIndexes": "swapped", "indexes": [{"key": {"u": 1}, "name": "u", "unique": true}]}).await;
    unique.insert_many([doc! {"_id": 1, "u": "a"}, doc! {"_id": 2, "u": "b"}]).await.unwrap();
    for (id, u) in [(1, "c"), (2, "a"), (1, "b")] {
        unique.update_one(doc! {"_id": id}, doc! {"$set": {"u": u}}).await.unwrap();
    }
}

async fn coll_mod(db: &Database) {
    for change in [
        doc! {"collMod": "indexed", "index": {"name": "ttl", "expireAfterSeconds": 500}},
        doc! {"collMod": "indexed", "index": {"name": "e_1", "hidden": true}},
        doc! {"collMod": "indexed", "index": {"name": "hidden", "hidden": false}},
        doc! {"collMod": "indexed", "index": {"name": "partial", "prepareUnique": true}},
        doc! {"collMod": "indexed", "index": {"name": "partial", "unique": true}},
        doc! {"collMod": "validated", "validator": {}},
        doc! {"collMod": "empty", "validator": {"z": {"$exists": true}}},
        doc! {"collMod": "users", "validationLevel": "off"},
        doc! {"collMod": "images", "changeStreamPreAndPostImages": {"enabled": false}},
        doc! {"collMod": "projects", "changeStreamPreAndPostImages": {"enabled": true}},
        doc! {"collMod": "clustered", "expireAfterSeconds": 900},
        doc! {"collMod": "users"},
    ] {
        command(db, change).await;
    }
}

async fn renames(client: &Client, db: &Database) {
    let admin = client.database("admin");
    let full = |name: &str| format!("{}.{name}", db.name());
    let rename = |from: &str, to: &str, over: bool| doc! {"renameCollection": full(from), "to": full(to), "dropTarget": over};
    command(&admin, rename("users", "people", false)).await;
    command(&admin, rename("a.b", "projects", true)).await;
    db.collection("users").insert_one(doc! {"_id": "another collection under the old name"}).await.unwrap();
    // Swap two by a third name.
    for (from, to) in [("indexed", "swap"), ("values", "indexed"), ("swap", "values")] {
        command(&admin, rename(from, to, false)).await;
    }
    db.collection::<Document>("values").update_one(doc! {"_id": 1}, doc! {"$set": {"after": "the swap"}}).await.unwrap();
    // To another database and back, and through $out over an existing collection.
    command(&admin, doc! {"renameCollection": full("captures"), "to": "elsewhere.captures"}).await;
    command(&admin, doc! {"renameCollection": "elsewhere.captures", "to": full("returned")}).await;
    command(db, doc! {"aggregate": "ids", "pipeline": [{"$out": "outed"}], "cursor": {}}).await;
    command(db, doc! {"aggregate": "people", "pipeline": [{"$out": "outed"}], "cursor": {}}).await;
    db.collection::<Document>("ids").drop().await.unwrap();
}

async fn capped(db: &Database) {
    command(db, doc! {"create": "ring", "capped": true, "size": 100_000, "max": 30}).await;
    let ring = db.collection::<Document>("ring");
    for i in (0..70).rev() {
        ring.insert_one(doc! {"_id": i, "s": "x".repeat(1_000)}).await.unwrap();
    }
    ring.update_one(doc! {"_id": 3}, doc! {"$set": {"s": "y".repeat(1_000)}}).await.unwrap();
    command(db, doc! {"collMod": "ring", "cappedSize": 200_000, "cappedMax": 40}).await;
    db.collection("turns").insert_many((0..40).rev().map(|i| doc! {"_id": i})).await.unwrap();
    command(db, doc! {"convertToCapped": "turns", "size": 8_192}).await;
    command(db, doc! {"cloneCollectionAsCapped": "people", "toCollection": "cloned", "size": 8_192}).await;
}

async fn views(db: &Database) {
    command(db, doc! {"create": "view", "viewOn": "people", "pipeline": [{"$match": {"name": "users"}}], "collation": {"locale": "fr"}})
        .await;
    command(db, doc! {"create": "a view on a view", "viewOn": "view", "pipeline": [], "collation": {"locale": "fr"}}).await;
    command(db, doc! {"create": "changed", "viewOn": "people", "pipeline": []}).await;
    command(db, doc! {"collMod": "changed", "viewOn": "nothing", "pipeline": [{"$project": {"b": 1, "a": 1}}]}).await;
    command(db, doc! {"create": "gone", "viewOn": "people", "pipeline": []}).await;
    command(db, doc! {"drop": "gone"}).await;
}

/// Updates of every shape on some hundred documents, and deletes.
async fn updates(db: &Database) {
    let coll = db.collection::<Document>("updated");
    coll.insert_many(
        (0..300).map(
            |i| doc! {"_id": i, "n": i, "list": [1, 2, {"x": 3}], "in": {"a": 1, "b": {"c": [0, 0, 0, 0, 0]}}, "pad": "p".repeat(200)},
        ),
    )
    .await
    .unwrap();
    for update in [
        doc! {"q": {"n": {"$mod": [2, 0]}}, "u": {"$set": {"in.b.c.7": "gap", "new": 1}}, "multi": true},
        doc! {"q": {"n": {"$mod": [3, 0]}}, "u": {"$unset": {"in.a": 1}, "$push": {"list": {"$each": ["y"], "$position": 0}}}, "multi": true},
        doc! {"q": {"n": {"$mod": [5, 0]}}, "u": [{"$replaceWith": {"_id": "$_id", "pad": "$pad", "n": "$n", "list": "$list"}}], "multi": true},
        doc! {"q": {"n": {"$mod": [7, 0]}}, "u": [{"$set": {"list": {"$slice": ["$list", 1]}}}], "multi": true},
        doc! {"q": {"n": 11}, "u": [{"$replaceWith": {"$setField": {"field": "dot.ted", "input": "$$ROOT", "value": 1}}}]},
        doc! {"q": {"n": 13}, "u": {"_id": 13, "n": 13, "whole": "replaced"}},
        doc! {"q": {"_id": 1_000}, "u": {"$set": {"n": "upserted"}}, "upsert": true},
    ] {
        command(db, doc! {"update": "updated", "updates": [update]}).await;
    }
    coll.delete_many(doc! {"n": {"$mod": [4, 1]}}).await.unwrap();
    coll.insert_one(doc! {"_id": 5.0, "again": "with another type of id"}).await.unwrap();
}
