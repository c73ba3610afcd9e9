//! Owns: Extended JSON v2 of raw BSON in field order, and the reading of an `_id` that a person types.
//! Does not own: what is shown.
//!
//! Our own, since `serde_json::Value` sorts fields, and whether it does is a feature of the whole build.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use bson::raw::{RawBsonRef, RawJavaScriptCodeWithScopeRef};
use bson::{Bson, RawDocument};

use crate::branch::point::rfc3339;
use crate::fault::{Fault, Result};

/// Deepest nesting that is written; the server's own limit is 200.
const MAX_DEPTH: usize = 256;

/// Writes a document. `canonical` keeps every type; relaxed is easier on the eye.
pub fn write_document(doc: &RawDocument, canonical: bool, out: &mut String) -> Result<()> {
    Writer { canonical, out }.document(doc, 0)
}

/// Writes one value.
pub fn write_value(value: RawBsonRef<'_>, canonical: bool, out: &mut String) -> Result<()> {
    Writer { canonical, out }.value(value, 0)
}

/// An `_id` as typed: extended JSON, or a bare word, which is a string.
pub fn parse_id(text: &str) -> Result<Bson> {
    // Not by way of a `serde_json::Value`: the order of fields is part of a key.
    match serde_json::from_str::<Bson>(text) {
        Ok(id) => Ok(id),
        // What begins like JSON is meant as such.
        Err(e) if text.starts_with(['{', '[', '"']) => Err(Fault::config(format!("--id {text} is not JSON: {e}"))),
        Err(_) => Ok(Bson::String(text.to_owned())),
    }
}

struct Writer<'a> {
    canonical: bool,
    out: &'a mut String,
}

fn damaged(e: impl std::fmt::Display) -> Fault {
    Fault::corrupt(format!("a document is damaged: {e}"))
}

impl Writer<'_> {
    fn document(&mut self, doc: &RawDocument, depth: usize) -> Result<()> {
        self.out.push('{');
        for (i, element) in doc.iter().enumerate() {
            let (name, value) = element.map_err(damaged)?;
            if i > 0 {
                self.out.push(',');
            }
            self.text(name.as_str())?;
            self.out.push(':');
            self.value(value, depth + 1)?;
        }
        self.out.push('}');
        Ok(())
    }

    fn text(&mut self, text: &str) -> Result<()> {
        self.out.push_str(&serde_json::to_string(text).map_err(damaged)?);
        Ok(())
    }

    /// `{"$name":"value"}`
    fn tagged(&mut self, name: &str, value: &str) -> Result<()> {
        self.out.push_str(&format!("{{\"{name}\":"));
        self.text(value)?;
        self.out.push('}');
        Ok(())
    }

    fn value(&mut self, value: RawBsonRef<'_>, depth: usize) -> Result<()> {
        if depth > MAX_DEPTH {
            return Err(damaged("it is nested too deeply"));
        }
        match value {
            RawBsonRef::Document(inner) => self.document(inner, depth)?,
            RawBsonRef::Array(items) => {
                self.out.push('[');
                for (i, item) in items.into_iter().enumerate() {
                    if i > 0 {
                        self.out.push(',');
                    }
                    self.value(item.map_err(damaged)?, depth + 1)?;
                }
                self.out.push(']');
            }
            RawBsonRef::String(text) => self.text(text)?,
            RawBsonRef::Boolean(on) => self.out.push_str(if on { "true" } else { "false" }),
            RawBsonRef::Null => self.out.push_str("null"),
            RawBsonRef::Int32(n) => self.number("$numberInt", n.to_string())?,
            RawBsonRef::Int64(n) => self.number("$numberLong", n.to_string())?,
            RawBsonRef::Double(n) => self.double(n)?,
            RawBsonRef::Decimal128(n) => self.tagged("$numberDecimal", &n.to_string())?,
            RawBsonRef::ObjectId(id) => self.tagged("$oid", &id.to_hex())?,
            RawBsonRef::Symbol(text) => self.tagged("$symbol", text)?,
            RawBsonRef::JavaScriptCode(code) => self.tagged("$code", code)?,
            RawBsonRef::JavaScriptCodeWithScope(code) => self.code(code, depth)?,
            RawBsonRef::DateTime(at) => self.date(at.timestamp_millis())?,
            RawBsonRef::Timestamp(ts) => {
                self.out.push_str(&format!("{{\"$timestamp\":{{\"t\":{},\"i\":{}}}}}", ts.time, ts.increment));
            }
            RawBsonRef::RegularExpression(regex) => {
                self.out.push_str("{\"$regularExpression\":{\"pattern\":");
                self.text(regex.pattern.as_str())?;
                self.out.push_str(",\"options\":");
                self.text(regex.options.as_str())?;
                self.out.push_str("}}");
            }
            RawBsonRef::Binary(binary) => {
                let subtype = u8::from(binary.subtype);
                let encoded = STANDARD.encode(binary.bytes);
                self.out.push_str(&format!("{{\"$binary\":{{\"base64\":\"{encoded}\",\"subType\":\"{subtype:02x}\"}}}}"));
            }
            RawBsonRef::MinKey => self.out.push_str("{\"$minKey\":1}"),
            RawBsonRef::MaxKey => self.out.push_str("{\"$maxKey\":1}"),
            RawBsonRef::Undefined => self.out.push_str("{\"$undefined\":true}"),
            RawBsonRef::DbPointer(pointer) => {
                let pointer = Bson::try_from(RawBsonRef::DbPointer(pointer)).map_err(damaged)?;
                self.out.push_str(&pointer.into_canonical_extjson().to_string());
            }
        }
        Ok(())
    }

    fn number(&mut self, name: &str, digits: String) -> Result<()> {
        if self.canonical {
            return self.tagged(name, &digits);
        }
        self.out.push_str(&digits);
        Ok(())
    }

    fn double(&mut self, n: f64) -> Result<()> {
        let text = match n {
            n if n.is_nan() => "NaN".to_owned(),
            n if n.is_infinite() => if n > 0.0 { "Infinity" } else { "-Infinity" }.to_owned(),
            n => format!("{n:?}"),
        };
        if self.canonical || !n.is_finite() {
            return self.tagged("$numberDouble", &text);
        }
        self.out.push_str(&text);
        Ok(())
    }

    fn date(&mut self, ms: i64) -> Result<()> {
        const YEAR_10000_MS: i64 = 253_402_300_800_000;
        if self.canonical || !(0..YEAR_10000_MS).contains(&ms) {
            self.out.push_str(&format!("{{\"$date\":{{\"$numberLong\":\"{ms}\"}}}}"));
            return Ok(());
        }
        let seconds = rfc3339(ms);
        let text = if ms % 1_000 == 0 { seconds } else { format!("{}.{:03}Z", seconds.trim_end_matches('Z'), ms % 1_000) };
        self.tagged("$date", &text)
    }

    fn code(&mut self, code: RawJavaScriptCodeWithScopeRef<'_>, depth: usize) -> Result<()> {
        self.out.push_str("{\"$code\":");
        self.text(code.code)?;
        self.out.push_str(",\"$scope\":");
        self.document(code.scope, depth + 1)?;
        self.out.push('}');
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::str::FromStr;

    use bson::{Document, RawDocumentBuf, doc, oid::ObjectId, spec::BinarySubtype};
    use proptest::prelude::*;

    use super::*;

    fn shown(doc: &Document, canonical: bool) -> String {
        let mut out = String::new();
        write_document(&RawDocumentBuf::try_from(doc).unwrap(), canonical, &mut out).unwrap();
        out
    }

    fn every_type() -> Document {
        doc! {
            "z": 1, "a": 2_i64, "d": 0.1, "nan": f64::NAN, "inf": f64::NEG_INFINITY, "zero": -0.0, "s": "grün \u{0}\"\\\n",
            "o": {"y": 1, "x": [1, "two", null]}, "t": true, "dec": Bson::Decimal128(bson::Decimal128::from_str("1.50").unwrap()),
            "id": ObjectId::from_bytes([1; 12]), "sym": Bson::Symbol("s".into()), "code": Bson::JavaScriptCode("f()".into()),
            "scoped": bson::JavaScriptCodeWithScope { code: "g()".into(), scope: doc! {"k": 1_i64} },
            "date": bson::DateTime::from_millis(1_795_467_772_011), "late": bson::DateTime::from_millis(i64::MAX),
            "ts": bson::Timestamp { time: 5, increment: 6 }, "min": Bson::MinKey, "max": Bson::MaxKey, "undef": Bson::Undefined,
            "re": Bson::RegularExpression(bson::Regex { pattern: "^a".try_into().unwrap(), options: "ix".try_into().unwrap() }),
            "bin": bson::Binary { subtype: BinarySubtype::Uuid, bytes: (0..16).collect() }, "null": null,
        }
    }

    #[test]
    fn every_type_comes_back_from_its_canonical_form() {
        let doc = every_type();
        let text = shown(&doc, true);
        assert!(text.find("\"z\":").unwrap() < text.find("\"a\":").unwrap(), "fields stay in order: {text}");
        let back: Bson = serde_json::from_str(&text).unwrap();
        let back = back.as_document().unwrap();
        for (field, value) in &doc {
            assert_eq!(format!("{:?}", back.get(field)), format!("{:?}", Some(value)), "{field}");
        }
    }

    #[test]
    fn the_relaxed_form_is_plain_where_nothing_is_lost() {
        let text =
            shown(&doc! {"n": 1, "l": 2_i64, "d": 1.0, "at": bson::DateTime::from_millis(1_795_467_772_000), "nan": f64::NAN}, false);
        assert_eq!(text, r#"{"n":1,"l":2,"d":1.0,"at":{"$date":"2026-11-23T21:02:52Z"},"nan":{"$numberDouble":"NaN"}}"#);
    }

    #[test]
    fn an_id_is_extended_json_or_a_bare_word() {
        let oid = ObjectId::from_bytes([7; 12]);
        let cases = [
            ("42", Bson::Int32(42)),
            ("\"k\"", Bson::String("k".into())),
            ("k-1", Bson::String("k-1".into())),
            ("null", Bson::Null),
            (r#"{"$numberLong":"5"}"#, Bson::Int64(5)),
            (r#"{"a":1}"#, Bson::Document(doc! {"a": 1})),
            (r#"{"b":1,"a":{"$numberLong":"2"}}"#, Bson::Document(doc! {"b": 1, "a": 2_i64})),
            ("-7", Bson::Int64(-7)), // the same key
            ("3000000000", Bson::Int64(3_000_000_000)),
            ("1.5", Bson::Double(1.5)),
        ];
        for (text, id) in cases {
            // Documents that differ in order alone are equal, their texts are not.
            assert_eq!(format!("{:?}", parse_id(text).unwrap()), format!("{id:?}"), "{text}");
        }
        assert_eq!(parse_id(&format!(r#"{{"$oid":"{oid}"}}"#)).unwrap(), Bson::ObjectId(oid));
        for text in ["{", "[1", "\"open", r#"{"$oid":"no"}"#] {
            assert!(parse_id(text).is_err(), "{text}");
        }
    }

    proptest! {
        #[test]
        fn no_text_makes_the_parser_panic(text in "\\PC*") {
            let _ = parse_id(&text);
        }
    }
}
