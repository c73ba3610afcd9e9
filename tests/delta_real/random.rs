//! Random documents, values and updates of every kind that MongoDB 6.0 knows, and a table of ids.

use std::str::FromStr;

use bson::oid::ObjectId;
use bson::spec::BinarySubtype;
use bson::{Binary, Bson, DateTime, Decimal128, Document, JavaScriptCodeWithScope, Regex, Timestamp, doc};
use rand::rngs::SmallRng;
use rand::seq::IndexedRandom;
use rand::{Rng, SeedableRng};

/// Ids 0..DOCUMENTS: the first is flat with 2,000 fields, the last third has dotted, dollar and empty names.
pub(crate) const DOCUMENTS: i32 = 12;

const NAMES: [&str; 10] = ["a", "b", "c", "d", "arr", "0", "1", "é漢", "i", "long_name"];
const ODD_NAMES: [&str; 14] = ["a", "b", "arr", "0", "", "x.y", "$d", "a.b", ".", "$", "s", "u", "l", "é.ü"];

pub(crate) struct Random(SmallRng);

impl Random {
    pub(crate) fn new(seed: u64) -> Self {
        Self(SmallRng::seed_from_u64(seed))
    }

    pub(crate) fn id(&mut self) -> i32 {
        // The document of 2,000 fields now and then: its bytes cost time.
        if self.0.random_bool(0.03) { 0 } else { self.0.random_range(1..DOCUMENTS) }
    }

    pub(crate) fn reset(&mut self) -> bool {
        self.0.random_bool(0.02)
    }

    fn odd(id: i32) -> bool {
        id >= DOCUMENTS * 2 / 3
    }

    fn name(&mut self, odd: bool) -> &'static str {
        let names: &[&str] = if odd { &ODD_NAMES } else { &NAMES };
        names.choose(&mut self.0).copied().unwrap_or("a")
    }

    pub(crate) fn document(&mut self, id: i32) -> Document {
        let mut out = doc! { "_id": id };
        if id == 0 {
            for n in 0..2_000 {
                out.insert(format!("f{n}"), self.leaf());
            }
            return out;
        }
        // A filler makes the diff smaller than the document, so that pipelines and replacements send diffs too.
        if self.0.random_bool(0.5) {
            out.insert("filler", "f".repeat(3_000));
        }
        for _ in 0..self.0.random_range(3..9) {
            let (name, value) = (self.name(Self::odd(id)), self.value(3, Self::odd(id)));
            if !name.starts_with('$') {
                out.insert(name, value);
            }
        }
        if !out.contains_key("filler") {
            out.insert("filler", "f".repeat(3_000));
        }
        out
    }

    fn value(&mut self, depth: u32, odd: bool) -> Bson {
        match self.0.random_range(0..10) {
            0..=3 if depth > 0 => {
                let len = self.0.random_range(0..5);
                Bson::Document((0..len).map(|_| (self.name(odd).to_owned(), self.value(depth - 1, odd))).collect())
            }
            4..=6 if depth > 0 => {
                let len = self.0.random_range(0..6);
                Bson::Array((0..len).map(|_| self.value(depth - 1, odd)).collect())
            }
            _ => self.leaf(),
        }
    }

    fn leaf(&mut self) -> Bson {
        let r = &mut self.0;
        match r.random_range(0..22) {
            0..=3 => Bson::Int32(r.random_range(-5..5)),
            4 => Bson::Int64(r.random()),
            5 => Bson::Double(*[0.5, -0.0, f64::NAN, f64::INFINITY, 1e300, 5e-324].choose(r).unwrap()),
            6 => Bson::Decimal128(Decimal128::from_str(["1.50", "NaN", "-0E+10", "Infinity", "1E-6176"].choose(r).unwrap()).unwrap()),
            7 | 8 => Bson::String("ab漢\0x".chars().take(r.random_range(0..6)).collect()),
            9 => Bson::Boolean(r.random()),
            10 => Bson::Null,
            11 => Bson::DateTime(DateTime::from_millis(*[0, -1, i64::MAX, i64::MIN, 1_700_000_000_000].choose(r).unwrap())),
            12 => Bson::ObjectId(ObjectId::from_bytes(r.random())),
            13 => Bson::Binary(Binary {
                subtype: *[BinarySubtype::Generic, BinarySubtype::BinaryOld, BinarySubtype::Uuid, BinarySubtype::UserDefined(0x80)]
                    .choose(r)
                    .unwrap(),
                bytes: vec![1; 16],
            }),
            14 => Bson::RegularExpression(Regex { pattern: "^a.*".try_into().unwrap(), options: "im".try_into().unwrap() }),
            15 => Bson::JavaScriptCode("function() {}".into()),
            16 => Bson::JavaScriptCodeWithScope(JavaScriptCodeWithScope { code: "f".into(), scope: doc! { "x": 1 } }),
            17 => Bson::Symbol("sym".into()),
            18 => Bson::MinKey,
            19 => Bson::MaxKey,
            20 => Bson::Timestamp(Timestamp { time: 5, increment: r.random_range(0..3) }),
            _ => Bson::Undefined,
        }
    }

    /// A dotted path, mostly one that leads somewhere.
    fn path(&mut self, document: &Document, wide: bool) -> String {
        if wide {
            return format!("f{}", self.0.random_range(0..2_100));
        }
        let mut path = String::new();
        let mut here = Some(Bson::Document(document.clone()));
        loop {
            let step = match &here {
                Some(Bson::Document(d)) if !d.is_empty() && self.0.random_bool(0.85) => {
                    let names: Vec<&String> = d.keys().filter(|n| *n != "_id" && *n != "filler").collect();
                    names.choose(&mut self.0).map_or_else(|| "a".to_owned(), |n| (*n).clone())
                }
                Some(Bson::Array(items)) => self.0.random_range(0..items.len() + 3).to_string(),
                _ => self.name(false).to_owned(),
            };
            here = match &here {
                Some(Bson::Document(d)) => d.get(&step).cloned(),
                Some(Bson::Array(items)) => step.parse().ok().and_then(|n: usize| items.get(n).cloned()),
                _ => None,
            };
            if !path.is_empty() {
                path.push('.');
            }
            path.push_str(&step);
            let inside = matches!(here, Some(Bson::Document(_) | Bson::Array(_)));
            if !self.0.random_bool(if inside { 0.7 } else { 0.1 }) || path.len() > 60 {
                return path;
            }
        }
    }

    /// An update command on one document; the server may refuse it.
    pub(crate) fn update(&mut self, coll: &str, id: i32, document: &Document) -> Document {
        let mut statement = doc! { "q": { "_id": id } };
        match self.0.random_range(0..10) {
            0..=5 => {
                let (update, filters) = self.operators(document, id);
                statement.insert("u", update);
                if let Some(filters) = filters {
                    statement.insert("arrayFilters", filters);
                }
            }
            6..=8 => {
                statement.insert("u", self.pipeline(document, id));
            }
            _ => {
                statement.insert("u", self.replacement(document, id));
            }
        }
        doc! { "update": coll, "updates": [statement] }
    }

    fn operators(&mut self, document: &Document, id: i32) -> (Document, Option<Vec<Document>>) {
        let (mut out, mut filters) = (doc! {}, None);
        for _ in 0..self.0.random_range(1..4) {
            let path = self.path(document, id == 0);
            let value = self.value(2, Self::odd(id));
            let number = self.0.random_range(-3i32..4);
            let (operator, argument): (&str, Bson) = match self.0.random_range(0..18) {
                0..=2 => ("$set", value),
                3 | 4 => ("$unset", "".into()),
                5 => ("$inc", number.into()),
                6 => ("$mul", 1.5.into()),
                7 => ("$min", value),
                8 => ("$max", value),
                9 => ("$rename", self.path(document, id == 0).into()),
                10 => ("$currentDate", true.into()),
                11 => ("$bit", doc! { "xor": number }.into()),
                12 => {
                    let each: Vec<Bson> = (0..3).map(|_| self.value(1, Self::odd(id))).collect();
                    let mut push = doc! { "$each": each };
                    if self.0.random() {
                        push.insert("$position", number);
                    }
                    if self.0.random() {
                        push.insert("$slice", number * 2);
                    }
                    if self.0.random() {
                        push.insert("$sort", if self.0.random() { 1 } else { -1 });
                    }
                    ("$push", push.into())
                }
                13 => ("$pop", if number < 0 { -1 } else { 1 }.into()),
                14 => ("$pull", doc! { "$gte": number }.into()),
                15 => ("$pullAll", vec![Bson::Int32(number), Bson::Null, value].into()),
                16 => ("$addToSet", doc! { "$each": [value, number] }.into()),
                _ => {
                    filters = Some(vec![doc! { "e": { "$exists": true, "$ne": number } }]);
                    let inner = out.entry("$set".to_owned()).or_insert_with(|| doc! {}.into());
                    if let Bson::Document(inner) = inner {
                        inner.insert(format!("{path}.$[e]"), value.clone());
                    }
                    continue;
                }
            };
            if let Bson::Document(inner) = out.entry(operator.to_owned()).or_insert_with(|| doc! {}.into()) {
                inner.insert(path, argument);
            }
        }
        (out, filters)
    }

    fn pipeline(&mut self, document: &Document, id: i32) -> Vec<Document> {
        let path = self.path(document, id == 0);
        let field = format!("${path}");
        let value = doc! { "$literal": self.value(2, Self::odd(id)) };
        let name = doc! { "$literal": self.name(Self::odd(id)) };
        (0..self.0.random_range(1..3))
            .map(|_| match self.0.random_range(0..11) {
                0 => doc! { "$set": { &path: value.clone() } },
                1 => doc! { "$unset": [&path] },
                2 => doc! { "$replaceWith": { "$setField": { "field": name.clone(), "input": "$$ROOT", "value": value.clone() } } },
                3 => doc! { "$replaceWith": { "$unsetField": { "field": name.clone(), "input": "$$ROOT" } } },
                4 => doc! { "$set": { &path: { "$slice": [&field, self.0.random_range(1..3)] } } },
                5 => doc! { "$set": { &path: { "$concatArrays": [&field, [1, value.clone()]] } } },
                6 => doc! { "$set": { &path: { "$reverseArray": &field } } },
                7 => doc! { "$set": { &path: { "$map": { "input": &field, "in": { "$ifNull": ["$$this", 5] } } } } },
                8 => doc! { "$replaceWith": { "$mergeObjects": ["$$ROOT", { "$literal": { "zz": 1 } }, { "$arrayToObject": [[["k", 1]]] }] } },
                9 => doc! { "$set": { &path: { "$setField": { "field": name.clone(), "input": &field, "value": value.clone() } } } },
                _ => doc! { "$replaceWith": { "$literal": self.replacement(document, id) } },
            })
            .collect()
    }

    /// The document again, some fields dropped, changed or in another place, at any depth.
    fn replacement(&mut self, document: &Document, id: i32) -> Document {
        let mut out = self.shuffled(document, Self::odd(id), 0);
        out.remove("_id");
        let mut whole = doc! { "_id": id };
        whole.extend(out.into_iter().filter(|(name, _)| !name.starts_with('$')));
        whole
    }

    fn shuffled(&mut self, document: &Document, odd: bool, depth: u32) -> Document {
        let mut fields: Vec<(String, Bson)> = document.clone().into_iter().collect();
        if self.0.random_bool(0.4) && fields.len() > 1 {
            let (from, to) = (self.0.random_range(0..fields.len()), self.0.random_range(0..fields.len()));
            let moved = fields.remove(from);
            fields.insert(to, moved);
        }
        if self.0.random_bool(0.3) && !fields.is_empty() {
            fields.remove(self.0.random_range(0..fields.len()));
        }
        if self.0.random_bool(0.3) {
            let at = self.0.random_range(0..=fields.len());
            let new = (self.name(odd).to_owned(), self.value(1, odd));
            if fields.iter().all(|(name, _)| *name != new.0) {
                fields.insert(at, new);
            }
        }
        fields.into_iter().map(|(name, value)| (name, self.changed(value, odd, depth))).collect()
    }

    fn changed(&mut self, value: Bson, odd: bool, depth: u32) -> Bson {
        match value {
            Bson::Document(d) if depth < 4 => Bson::Document(self.shuffled(&d, odd, depth + 1)),
            Bson::Array(mut items) if depth < 4 => {
                match self.0.random_range(0..6) {
                    0 => items.truncate(self.0.random_range(0..=items.len())),
                    1 => items.push(self.leaf()),
                    2 if !items.is_empty() => {
                        items.remove(0);
                    }
                    _ => {}
                }
                Bson::Array(items.into_iter().map(|item| self.changed(item, odd, depth + 1)).collect())
            }
            other if self.0.random_bool(0.9) => other,
            Bson::String(s) if s.len() > 100 => Bson::String(s),
            _ => self.leaf(),
        }
    }
}

/// Ids of every type that may be one, and numbers where types, precision and signs meet; also inside documents.
pub(crate) fn ids() -> Vec<Bson> {
    let dec = |s: &str| Bson::Decimal128(Decimal128::from_str(s).unwrap());
    let bits = |b: u128| Bson::Decimal128(Decimal128::from_bytes(b.to_le_bytes()));
    let bin = |subtype, bytes: &[u8]| Bson::Binary(Binary { subtype, bytes: bytes.to_vec() });
    let two53 = 1i64 << 53;
    let mut ids: Vec<Bson> = vec![
        1.into(),
        1i64.into(),
        1.0.into(),
        dec("1"),
        dec("1.0"),
        dec("10E-1"),
        (-1).into(),
        dec("-1.00"),
        0.into(),
        (-0.0).into(),
        dec("0"),
        dec("-0"),
        dec("-0E+6000"),
        bits(10u128.pow(34) | 6176 << 113),
        bits(0b11 << 125 | 5),
        f64::NAN.into(),
        (-f64::NAN).into(),
        dec("NaN"),
        dec("-NaN"),
        f64::INFINITY.into(),
        dec("Infinity"),
        f64::NEG_INFINITY.into(),
        dec("-Infinity"),
        0.1.into(),
        dec("0.1"),
        dec("0.1000000000000000055511151231257827"),
        dec("0.1000000000000000055511151231257828"),
        0.5.into(),
        dec("0.50"),
        1e300.into(),
        dec("1E300"),
        dec("1.000000000000000052504760255204420E300"),
        5e-324.into(),
        dec("4.940656458412465441765687928682214E-324"),
        f64::MAX.into(),
        dec("1E6144"),
        dec("1E-6176"),
        dec("0.1E-6175"),
        dec("12345678901234567890123456789012.50"),
        dec("12345678901234567890123456789012.5"),
        two53.into(),
        (two53 as f64).into(),
        (two53 + 1).into(),
        dec("9007199254740993"),
        ((two53 + 2) as f64).into(),
        (two53 + 2).into(),
        i64::MAX.into(),
        (i64::MAX as f64).into(),
        dec("9223372036854775807"),
        dec("9223372036854775808"),
        i64::MIN.into(),
        (i64::MIN as f64).into(),
        (i64::MAX - 1).into(),
        1e22.into(),
        dec("1E22"),
        1e23.into(),
        dec("1E23"),
        dec("99999999999999991611392"),
    ];
    ids.extend([
        "a".into(),
        Bson::Symbol("a".into()),
        "A".into(),
        "".into(),
        "a\0".into(),
        "é".into(),
        "e\u{301}".into(),
        Bson::JavaScriptCode("a".into()),
        Bson::Null,
        Bson::MinKey,
        Bson::MaxKey,
        true.into(),
        false.into(),
        DateTime::from_millis(1).into(),
        DateTime::from_millis(0).into(),
        Timestamp { time: 0, increment: 1 }.into(),
        Timestamp { time: 1, increment: 0 }.into(),
        ObjectId::from_bytes([1; 12]).into(),
        bin(BinarySubtype::Generic, b"a"),
        bin(BinarySubtype::Md5, b"a"),
        bin(BinarySubtype::BinaryOld, b"a"),
        bin(BinarySubtype::Generic, b""),
        Bson::JavaScriptCodeWithScope(JavaScriptCodeWithScope { code: "a".into(), scope: doc! {} }),
        Bson::JavaScriptCodeWithScope(JavaScriptCodeWithScope { code: "a".into(), scope: doc! { "x": 1 } }),
        Bson::JavaScriptCodeWithScope(JavaScriptCodeWithScope { code: "a".into(), scope: doc! { "x": 1i64 } }),
    ]);
    let re = |options: &str| Bson::RegularExpression(Regex { pattern: "a".try_into().unwrap(), options: options.try_into().unwrap() });
    let documents = [
        doc! {},
        doc! { "a": 1 },
        doc! { "a": 1i64 },
        doc! { "a": dec("1.0") },
        doc! { "b": 1 },
        doc! { "a": 1, "b": 2 },
        doc! { "b": 2, "a": 1 },
        doc! { "a": { "b": [0, f64::NAN] } },
        doc! { "a": { "b": [-0.0, dec("NaN")] } },
        doc! { "a": { "b": { "0": 0, "1": f64::NAN } } },
        doc! { "a": Bson::Null },
        doc! { "a": Bson::Undefined },
        doc! { "a": re("") },
        doc! { "a": re("i") },
        doc! { "a": [] },
        doc! { "a": {} },
        doc! { "a": "x" },
        doc! { "a": Bson::Symbol("x".into()) },
        doc! { "": 1 },
        doc! { "a": [[1]] },
        doc! { "a": [[1.0]] },
        doc! { "a": [1] },
    ];
    ids.extend(documents.map(Bson::Document));
    ids
}
