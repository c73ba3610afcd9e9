//! Owns: the canonical key, one byte string for all `_id` values that MongoDB treats as the same key.
//! Does not own: the document's own bytes (those are what is written) or what keys are used for (fold, spill, key filter).
//!
//! # Byte form (fixed in segment format v1: the key filter hashes it)
//!
//! A value is one class byte and a payload; every form ends by itself. Integers are little-endian.
//!
//! | class | value | payload |
//! |---|---|---|
//! | `01` | MinKey | - |
//! | `02` | undefined | - |
//! | `03` | null | - |
//! | `04` | double, int32, int64, Decimal128 | see below |
//! | `05` | string, symbol | length u32, bytes |
//! | `06` | document | per field `01`, name, `00`, value; then `00` |
//! | `07` | array | per element `01`, value; then `00` (the names of the elements do not count) |
//! | `08` | binary | length u32, subtype, bytes |
//! | `09` | ObjectId | 12 bytes |
//! | `0A` | boolean | `00` or `01` |
//! | `0B` | date | i64 milliseconds |
//! | `0C` | timestamp | 8 bytes as in BSON |
//! | `0D` | regular expression | pattern, `00`, options, `00` |
//! | `0E` | DBPointer | length u32, namespace, 12 bytes |
//! | `0F` | JavaScript | length u32, bytes |
//! | `10` | JavaScript with scope | length u32, code, then the scope as a value of class `06` |
//! | `7F` | MaxKey | - |
//! | `FE` | what is nested beyond 256 levels or is no BSON | type byte, length u32, bytes as they are |
//!
//! Numbers are compared by exact value, whatever their type. Payload: `00` NaN (all of them), `01` -infinity, `02` +infinity,
//! `03` zero (-0 too, and every zero of Decimal128), `04` negative or `05` positive: then x i16, y i16, length u8, and that
//! many bytes of n without leading zeros, where the absolute value is n * 2^x * 5^y and n is divisible neither by 2 nor by 5.
//! Factors are unique, so this is one form per value for binary and for decimal floating point. A Decimal128 whose
//! coefficient is beyond 10^34 - 1 is zero, as the format says.
//!
//! # Collations
//!
//! Strings are compared by bytes. In a collection with a default collation the server compares `_id` by that collation, so
//! that `"a"` and `"A"` may be one key for it. History needs no collation nevertheless: the server refuses an insert of the
//! second while the first is there, refuses any update or replacement that changes the bytes of a string in `_id`, and names
//! a document in events by the bytes that are stored, also when it was found by another spelling. So every event names
//! exactly the bytes that it means. (Numbers are different: an update may turn `_id: 1` into `_id: 1.0`.)

use super::raw::{self, Element, MAX_DEPTH, tag};
use bson::raw::{RawBsonRef, cstr};
use bson::{RawDocument, RawDocumentBuf};

/// The canonical form of an `_id`. Equal exactly if MongoDB calls the ids one key; the order of keys means nothing.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct CanonicalKey(Box<[u8]>);

impl CanonicalKey {
    /// The bytes described in the head of this file.
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }
}

/// The canonical key of a value of `_id`.
pub fn canonical_key(id: RawBsonRef<'_>) -> CanonicalKey {
    let mut holder = RawDocumentBuf::new();
    holder.append(cstr!(""), id);
    let mut out = Vec::with_capacity(16);
    if let Some(Ok(element)) = raw::elements(holder.as_bytes()).ok().and_then(|mut e| e.next()) {
        write_element(&element, &mut out);
    }
    CanonicalKey(out.into_boxed_slice())
}

/// The canonical key of a document, by its top-level `_id`; `None` if it has none or is no BSON up to there.
/// Unlike [`canonical_key`] this also reads strings that are not UTF-8.
pub fn canonical_id(doc: &RawDocument) -> Option<CanonicalKey> {
    let mut out = Vec::with_capacity(16);
    write_canonical_id(doc, &mut out).then(|| CanonicalKey(out.into_boxed_slice()))
}

/// `{_id}` alone, byte for byte: a string in it need not be UTF-8.
pub fn id_document(doc: &RawDocument) -> Option<bson::RawDocumentBuf> {
    let id = raw::find(doc.as_bytes(), b"_id").ok()??;
    let mut out = Vec::with_capacity(id.whole.len() + 5);
    let at = raw::open(&mut out);
    out.extend_from_slice(id.whole);
    raw::close(&mut out, at);
    raw::finish(out).ok()
}

/// As [`canonical_id`], appended to `out`, for loops that reuse a buffer; false if there is no `_id` (then nothing is written).
pub fn write_canonical_id(doc: &RawDocument, out: &mut Vec<u8>) -> bool {
    let Ok(Some(id)) = raw::find(doc.as_bytes(), b"_id") else { return false };
    write_element(&id, out);
    true
}

fn write_element(element: &Element<'_>, out: &mut Vec<u8>) {
    let at = out.len();
    if write_value(element.tag, element.value, 0, out).is_none() {
        out.truncate(at);
        out.extend_from_slice(&[0xFE, element.tag]);
        write_sized(element.value, out);
    }
}

/// `None` if the value is nested too deep or is no BSON inside; `out` then holds part of it.
fn write_value(tag: u8, value: &[u8], depth: usize, out: &mut Vec<u8>) -> Option<()> {
    match tag {
        tag::MIN_KEY => out.push(0x01),
        tag::UNDEFINED => out.push(0x02),
        tag::NULL => out.push(0x03),
        tag::DOUBLE | tag::INT32 | tag::INT64 | tag::DECIMAL128 => write_number(tag, value, out)?,
        tag::STRING | tag::SYMBOL => {
            out.push(0x05);
            write_sized(raw::string_bytes(value)?, out);
        }
        tag::DOCUMENT => write_nested(0x06, value, depth, out)?,
        tag::ARRAY => write_nested(0x07, value, depth, out)?,
        tag::BINARY => plain(0x08, value, out),
        tag::OBJECT_ID => plain(0x09, value, out),
        tag::BOOL => out.extend_from_slice(&[0x0A, u8::from(*value.first()? != 0)]),
        tag::DATE => plain(0x0B, value, out),
        tag::TIMESTAMP => plain(0x0C, value, out),
        tag::REGEX => plain(0x0D, value, out),
        tag::DB_POINTER => {
            let (namespace, id) = value.split_at_checked(value.len().checked_sub(12)?)?;
            out.push(0x0E);
            write_sized(raw::string_bytes(namespace)?, out);
            out.extend_from_slice(id);
        }
        tag::CODE => {
            out.push(0x0F);
            write_sized(raw::string_bytes(value)?, out);
        }
        tag::CODE_WITH_SCOPE => write_code_with_scope(value, depth, out)?,
        tag::MAX_KEY => out.push(0x7F),
        _ => return None,
    }
    Some(())
}

fn plain(class: u8, value: &[u8], out: &mut Vec<u8>) {
    out.push(class);
    out.extend_from_slice(value);
}

/// Values are at most as long as their document, so the length fits.
fn write_sized(bytes: &[u8], out: &mut Vec<u8>) {
    out.extend_from_slice(&u32::try_from(bytes.len()).unwrap_or(u32::MAX).to_le_bytes());
    out.extend_from_slice(bytes);
}

fn write_nested(class: u8, doc: &[u8], depth: usize, out: &mut Vec<u8>) -> Option<()> {
    if depth >= MAX_DEPTH {
        return None;
    }
    out.push(class);
    for element in raw::elements(doc).ok()? {
        let element = element.ok()?;
        out.push(0x01);
        if class == 0x06 {
            out.extend_from_slice(element.name);
            out.push(0);
        }
        write_value(element.tag, element.value, depth + 1, out)?;
    }
    out.push(0x00);
    Some(())
}

/// Total length, code as a string, scope as a document.
fn write_code_with_scope(value: &[u8], depth: usize, out: &mut Vec<u8>) -> Option<()> {
    let rest = value.get(4..)?;
    let len = usize::try_from(u32::from_le_bytes(*rest.first_chunk::<4>()?)).ok()?;
    let (code, scope) = rest.split_at_checked(len.checked_add(4)?)?;
    out.push(0x10);
    write_sized(raw::string_bytes(code)?, out);
    write_nested(0x06, scope, depth, out)
}

/// A number taken apart.
enum Parts {
    Nan,
    Infinite {
        negative: bool,
    },
    /// `coefficient * 2^twos * 5^fives`; the coefficient may be zero and may hold factors 2 and 5.
    Finite {
        negative: bool,
        coefficient: u128,
        twos: i16,
        fives: i16,
    },
}

fn write_number(tag: u8, value: &[u8], out: &mut Vec<u8>) -> Option<()> {
    let parts = match tag {
        tag::INT32 => integer(i32::from_le_bytes(value.try_into().ok()?).into()),
        tag::INT64 => integer(i64::from_le_bytes(value.try_into().ok()?)),
        tag::DOUBLE => double(u64::from_le_bytes(value.try_into().ok()?)),
        _ => decimal(u128::from_le_bytes(value.try_into().ok()?)),
    };
    out.push(0x04);
    match parts {
        Parts::Nan => out.push(0x00),
        Parts::Infinite { negative } => out.push(if negative { 0x01 } else { 0x02 }),
        Parts::Finite { coefficient: 0, .. } => out.push(0x03),
        Parts::Finite { negative, mut coefficient, mut twos, mut fives } => {
            // At most 113 and 48 factors: the exponents stay far inside i16.
            let zeros = coefficient.trailing_zeros();
            coefficient >>= zeros;
            twos += i16::try_from(zeros).ok()?;
            while coefficient % 5 == 0 {
                coefficient /= 5;
                fives += 1;
            }
            out.push(if negative { 0x04 } else { 0x05 });
            out.extend_from_slice(&twos.to_le_bytes());
            out.extend_from_slice(&fives.to_le_bytes());
            let bytes = coefficient.to_le_bytes();
            let len = 16 - coefficient.leading_zeros() / 8;
            out.push(u8::try_from(len).ok()?);
            out.extend_from_slice(bytes.get(..len as usize)?);
        }
    }
    Some(())
}

fn integer(n: i64) -> Parts {
    Parts::Finite { negative: n < 0, coefficient: n.unsigned_abs().into(), twos: 0, fives: 0 }
}

/// IEEE 754 binary64: sign, 11 bits of exponent, 52 of fraction.
fn double(bits: u64) -> Parts {
    let negative = bits >> 63 == 1;
    let fraction = bits & ((1 << 52) - 1);
    #[allow(clippy::cast_possible_truncation)] // masked to 11 bits
    let exponent = (bits >> 52 & 0x7FF) as i16;
    match exponent {
        0x7FF if fraction != 0 => Parts::Nan,
        0x7FF => Parts::Infinite { negative },
        0 => Parts::Finite { negative, coefficient: fraction.into(), twos: -1074, fives: 0 },
        _ => Parts::Finite { negative, coefficient: (fraction | 1 << 52).into(), twos: exponent - 1075, fives: 0 },
    }
}

/// IEEE 754 decimal128 in the binary integer encoding.
fn decimal(bits: u128) -> Parts {
    const LARGEST: u128 = 10u128.pow(34) - 1;
    let negative = bits >> 127 == 1;
    if bits >> 122 & 0x1F == 0x1F {
        return Parts::Nan;
    }
    if bits >> 122 & 0x1F == 0x1E {
        return Parts::Infinite { negative };
    }
    // With the two top bits set, the coefficient starts with an implied 100 in binary and is beyond the largest legal one.
    let large = bits >> 125 & 0b11 == 0b11;
    let coefficient = bits & ((1 << 113) - 1);
    let coefficient = if large || coefficient > LARGEST { 0 } else { coefficient };
    #[allow(clippy::cast_possible_truncation)] // masked to 14 bits
    let exponent = (bits >> 113 & 0x3FFF) as i16 - 6176;
    Parts::Finite { negative, coefficient, twos: exponent, fives: exponent }
}

#[cfg(test)]
#[path = "canonical_tests.rs"]
mod tests;
