use super::*;
use bson::{Binary, Bson, DateTime, Decimal128, Document, Regex, Timestamp, doc, oid::ObjectId, spec::BinarySubtype};
use proptest::prelude::*;
use std::str::FromStr;

fn key(id: impl Into<Bson>) -> CanonicalKey {
    let doc: RawDocumentBuf = (&doc! { "a": 1, "_id": id.into() }).try_into().unwrap();
    let by_value = canonical_key(doc.get("_id").unwrap().unwrap());
    assert_eq!(Some(&by_value), canonical_id(&doc).as_ref());
    by_value
}

fn dec(s: &str) -> Bson {
    Decimal128::from_str(s).unwrap().into()
}

fn dec_bits(bits: u128) -> Bson {
    Decimal128::from_bytes(bits.to_le_bytes()).into()
}

#[test]
fn rule_15_numeric_ids_of_different_types_are_one_key() {
    let two_to_53 = 1i64 << 53;
    let classes: Vec<Vec<Bson>> = vec![
        vec![1.into(), 1i64.into(), 1.0.into(), dec("1"), dec("1.0"), dec("0.1E1"), dec("1.000000000000000000000000000000000")],
        vec![(-1).into(), (-1i64).into(), (-1.0).into(), dec("-1"), dec("-10E-1")],
        vec![0.into(), 0i64.into(), 0.0.into(), (-0.0).into(), dec("0"), dec("-0"), dec("0E+6000"), dec("-0E-6000")],
        vec![f64::NAN.into(), (-f64::NAN).into(), f64::from_bits(0x7FF0_0000_0000_0001).into(), dec("NaN"), dec_bits(0x3F << 122)],
        vec![f64::INFINITY.into(), dec("Infinity")],
        vec![f64::NEG_INFINITY.into(), dec("-Infinity")],
        vec![10.into(), 1e1.into(), dec("1E1"), dec("10")],
        vec![0.5.into(), dec("0.5"), dec("5E-1"), dec("0.50")],
        vec![0.1.into()],
        vec![dec("0.1"), dec("0.10")],
        vec![dec("0.1000000000000000055511151231257827")],
        vec![two_to_53.into(), (two_to_53 as f64).into(), dec("9007199254740992")],
        vec![(two_to_53 + 1).into(), dec("9007199254740993")],
        vec![i64::MAX.into(), dec("9223372036854775807")],
        vec![9_223_372_036_854_775_808.0.into(), dec("9223372036854775808")],
        vec![i64::MIN.into(), (i64::MIN as f64).into(), dec("-9223372036854775808")],
        vec![1e300.into()],
        vec![dec("1E300")],
        vec![5e-324.into()],
        vec![f64::MAX.into()],
        vec![dec("9.999999999999999999999999999999999E6144")],
        vec![dec("1E-6176")],
    ];
    all_classes(&classes);
}

#[test]
fn a_decimal_with_a_coefficient_beyond_the_largest_is_zero() {
    let beyond = dec_bits(10u128.pow(34) | 6176 << 113);
    let large_form = dec_bits(0b11 << 125 | 5);
    assert_eq!(key(beyond), key(0));
    assert_eq!(key(large_form), key(0));
}

#[test]
fn types_that_mongodb_tells_apart_have_different_keys() {
    let oid = ObjectId::from_bytes([1; 12]);
    let bin = |subtype, bytes: &[u8]| Bson::Binary(Binary { subtype, bytes: bytes.to_vec() });
    let re = |p: &str, o: &str| Bson::RegularExpression(Regex { pattern: p.try_into().unwrap(), options: o.try_into().unwrap() });
    let classes: Vec<Vec<Bson>> = vec![
        vec!["a".into(), Bson::Symbol("a".into())],
        vec!["A".into()],
        vec!["".into()],
        vec!["a\0".into()],
        vec![Bson::JavaScriptCode("a".into())],
        vec![Bson::Null],
        vec![Bson::Undefined],
        vec![Bson::MinKey],
        vec![Bson::MaxKey],
        vec![true.into()],
        vec![false.into()],
        vec![1.into()],
        vec![DateTime::from_millis(1).into()],
        vec![DateTime::from_millis(-1).into()],
        vec![Timestamp { time: 0, increment: 1 }.into()],
        vec![Timestamp { time: 1, increment: 0 }.into()],
        vec![oid.into()],
        vec!["010101010101010101010101".into()],
        vec![bin(BinarySubtype::Generic, b"a")],
        vec![bin(BinarySubtype::Md5, b"a")],
        vec![bin(BinarySubtype::BinaryOld, b"a")],
        vec![bin(BinarySubtype::Generic, b"")],
        vec![re("a", "")],
        vec![re("a", "i")],
        vec![re("", "ai")],
        vec![doc! {}.into()],
        vec![Bson::Array(vec![])],
        vec![doc! { "a": 1 }.into(), doc! { "a": 1i64 }.into(), doc! { "a": 1.0 }.into(), doc! { "a": dec("1.0") }.into()],
        vec![doc! { "b": 1 }.into()],
        vec![doc! { "a": 1, "b": 2 }.into(), doc! { "a": 1.0, "b": 2i64 }.into()],
        vec![doc! { "b": 2, "a": 1 }.into()],
        vec![doc! { "a": { "b": [0, f64::NAN] } }.into(), doc! { "a": { "b": [-0.0, dec("NaN")] } }.into()],
        vec![doc! { "a": { "b": [0] } }.into()],
        vec![doc! { "a": { "b": [[0]] } }.into()],
        vec![doc! { "a": { "b": 0 } }.into()],
        vec![doc! { "a": Bson::Null }.into()],
        vec![doc! { "0": 1 }.into()],
        vec![Bson::Array(vec![1.into()])],
        vec![Bson::Array(vec![1.into(), 2.into()])],
        vec![Bson::JavaScriptCodeWithScope(bson::JavaScriptCodeWithScope { code: "a".into(), scope: doc! {} })],
        vec![Bson::JavaScriptCodeWithScope(bson::JavaScriptCodeWithScope { code: "a".into(), scope: doc! { "a": 1 } })],
    ];
    all_classes(&classes);
}

/// All within a class are equal, all of different classes differ, and no key is the start of another.
fn all_classes(classes: &[Vec<Bson>]) {
    for (i, left) in classes.iter().enumerate() {
        for (j, right) in classes.iter().enumerate() {
            for a in left {
                for b in right {
                    let (ka, kb) = (key(a.clone()), key(b.clone()));
                    assert_eq!(ka == kb, i == j, "{a:?} and {b:?}");
                    assert!(i == j || !ka.as_bytes().starts_with(kb.as_bytes()), "{a:?} and {b:?}");
                }
            }
        }
    }
}

#[test]
fn the_byte_form_is_the_documented_one() {
    let cases: Vec<(Bson, Vec<u8>)> = vec![
        (40.into(), vec![0x04, 0x05, 3, 0, 1, 0, 1, 1]),
        ((-0.75).into(), vec![0x04, 0x04, 0xFE, 0xFF, 0, 0, 1, 3]),
        (dec("NaN"), vec![0x04, 0x00]),
        (f64::NEG_INFINITY.into(), vec![0x04, 0x01]),
        (dec("Infinity"), vec![0x04, 0x02]),
        ((-0.0).into(), vec![0x04, 0x03]),
        ("ab".into(), vec![0x05, 2, 0, 0, 0, b'a', b'b']),
        (doc! { "a": true, "b": [Bson::Null] }.into(), vec![6, 1, b'a', 0, 0x0A, 1, 1, b'b', 0, 7, 1, 3, 0, 0]),
        (Bson::Binary(Binary { subtype: BinarySubtype::Md5, bytes: vec![9] }), vec![8, 1, 0, 0, 0, 5, 9]),
        (DateTime::from_millis(-2).into(), vec![0x0B, 0xFE, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF]),
        (Timestamp { time: 1, increment: 2 }.into(), vec![0x0C, 2, 0, 0, 0, 1, 0, 0, 0]),
        (Bson::MaxKey, vec![0x7F]),
    ];
    for (id, bytes) in cases {
        assert_eq!(key(id.clone()).as_bytes(), bytes, "{id:?}");
    }
}

#[test]
fn ids_that_are_not_utf8_or_nested_too_deep_still_have_a_key() {
    let doc = b"\x11\0\0\0\x02_id\0\x03\0\0\0\xFF\xFE\0\0";
    assert_eq!(doc.len(), 0x11, "the length byte above");
    let key = canonical_id(RawDocument::from_bytes(doc).unwrap()).unwrap();
    assert_eq!(key.as_bytes(), [5, 2, 0, 0, 0, 0xFF, 0xFE]);
    let mut deep = vec![5, 0, 0, 0, 0];
    for _ in 0..5_000 {
        let mut outer = Vec::new();
        let at = raw::open(&mut outer);
        raw::put(&mut outer, tag::DOCUMENT, b"_id", &deep);
        raw::close(&mut outer, at);
        deep = outer;
    }
    let key = canonical_id(RawDocument::from_bytes(&deep).unwrap()).unwrap();
    assert_eq!(&key.as_bytes()[..2], [0xFE, tag::DOCUMENT]);
    assert_eq!(canonical_id(RawDocument::from_bytes(&[5u8, 0, 0, 0, 0]).unwrap()), None);
}

proptest! {
    #[test]
    fn longs_equal_their_doubles_exactly_when_the_double_is_exact(n: i64) {
        let double = n as f64;
        #[allow(clippy::cast_possible_truncation)]
        let exact = double < 9_223_372_036_854_775_808.0 && double as i64 == n;
        prop_assert_eq!(key(n) == key(double), exact);
        prop_assert_eq!(key(n), key(dec(&n.to_string())));
    }

    #[test]
    fn shifting_the_exponent_of_a_decimal_keeps_its_key(n in 0u64..1_000_000_000_000, zeros in 0u32..15, exponent in -6000i32..6000) {
        let shifted = u128::from(n) * 10u128.pow(zeros);
        let a = dec(&format!("{n}E{exponent}"));
        let b = dec(&format!("{shifted}E{}", exponent - i32::try_from(zeros).unwrap()));
        prop_assert_eq!(key(a), key(b));
    }

    #[test]
    fn different_doubles_have_different_keys(a: f64, b: f64) {
        prop_assert_eq!(key(a) == key(b), a == b || a.is_nan() && b.is_nan());
    }

    #[test]
    fn short_doubles_equal_their_decimals(n in -1_000_000i32..1_000_000, twos in 0i32..20) {
        let double = f64::from(n) / f64::from(1 << twos);
        prop_assert_eq!(key(double), key(dec(&format!("{double:.20}"))));
    }

    #[test]
    fn damaged_ids_never_panic(at in 4usize..80, to: u8) {
        let id = doc! { "a": dec("1.5"), "b": [1, { "c": "x" }], "d": Bson::JavaScriptCodeWithScope(bson::JavaScriptCodeWithScope { code: "a".into(), scope: doc! { "a": 1 } }) };
        let doc: RawDocumentBuf = (&doc! { "_id": id }).try_into().unwrap();
        let mut bytes = doc.into_bytes();
        if let Some(byte) = bytes.get_mut(at) { *byte = to; }
        if let Ok(doc) = RawDocument::from_bytes(&bytes) { let _ = canonical_id(doc); }
    }
}

#[test]
fn a_document_of_the_driver_and_raw_bytes_agree() {
    let d: Document = doc! { "_id": { "a": 5i64 } };
    assert_eq!(canonical_id(&RawDocumentBuf::try_from(&d).unwrap()), Some(key(doc! { "a": 5 })));
}
