//! Owns: walking the elements of a BSON document as bytes, with every length checked, and writing elements back.
//! Does not own: what the elements mean.
//!
//! Values are cut out, not decoded: what is only moved from one document to another stays as the server wrote it, down to
//! strings that are not UTF-8 and numbers that print alike. A nested document is checked when somebody walks it.

use bson::{RawDocument, RawDocumentBuf};

/// Type bytes of BSON that the change parts look at.
pub(super) mod tag {
    pub(in crate::change) const DOUBLE: u8 = 0x01;
    pub(in crate::change) const STRING: u8 = 0x02;
    pub(in crate::change) const DOCUMENT: u8 = 0x03;
    pub(in crate::change) const ARRAY: u8 = 0x04;
    pub(in crate::change) const BINARY: u8 = 0x05;
    pub(in crate::change) const UNDEFINED: u8 = 0x06;
    pub(in crate::change) const OBJECT_ID: u8 = 0x07;
    pub(in crate::change) const BOOL: u8 = 0x08;
    pub(in crate::change) const DATE: u8 = 0x09;
    pub(in crate::change) const NULL: u8 = 0x0A;
    pub(in crate::change) const REGEX: u8 = 0x0B;
    pub(in crate::change) const DB_POINTER: u8 = 0x0C;
    pub(in crate::change) const CODE: u8 = 0x0D;
    pub(in crate::change) const SYMBOL: u8 = 0x0E;
    pub(in crate::change) const CODE_WITH_SCOPE: u8 = 0x0F;
    pub(in crate::change) const INT32: u8 = 0x10;
    pub(in crate::change) const TIMESTAMP: u8 = 0x11;
    pub(in crate::change) const INT64: u8 = 0x12;
    pub(in crate::change) const DECIMAL128: u8 = 0x13;
    pub(in crate::change) const MAX_KEY: u8 = 0x7F;
    pub(in crate::change) const MIN_KEY: u8 = 0xFF;
}

/// Deepest nesting that is followed. The server stops at 200; more is hostile and would cost stack.
pub(super) const MAX_DEPTH: usize = 256;

/// Largest document a server stores: 16 MiB and 16 KiB of room for its own fields.
pub(super) const MAX_DOCUMENT: usize = 16 * 1024 * 1024 + 16 * 1024;

/// The bytes are no BSON; the number is the offset in the document that was walked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Malformed(pub(super) usize);

/// One element, cut out of its document.
#[derive(Debug, Clone, Copy)]
pub(super) struct Element<'a> {
    pub(super) tag: u8,
    /// Without the terminating zero; not necessarily UTF-8.
    pub(super) name: &'a [u8],
    pub(super) value: &'a [u8],
    /// Type byte, name, zero and value.
    pub(super) whole: &'a [u8],
}

impl<'a> Element<'a> {
    pub(super) fn document(&self) -> Option<&'a RawDocument> {
        if self.tag == tag::DOCUMENT { RawDocument::from_bytes(self.value).ok() } else { None }
    }

    pub(super) fn str(&self) -> Option<&'a str> {
        if self.tag != tag::STRING {
            return None;
        }
        std::str::from_utf8(string_bytes(self.value)?).ok()
    }

    pub(super) fn i32(&self) -> Option<i32> {
        if self.tag == tag::INT32 { Some(i32::from_le_bytes(self.value.try_into().ok()?)) } else { None }
    }
}

/// The content of a string value: behind its length, without the terminating zero.
pub(super) fn string_bytes(value: &[u8]) -> Option<&[u8]> {
    value.get(4..value.len().checked_sub(1)?)
}

/// Walks the elements of a document; fused after the first error.
#[derive(Debug, Clone)]
pub(super) struct Elements<'a> {
    doc: &'a [u8],
    at: usize,
}

/// Starts a walk; the length in the document must be the length of the slice.
pub(super) fn elements(doc: &[u8]) -> Result<Elements<'_>, Malformed> {
    let stated = doc.first_chunk::<4>().map(|b| u32::from_le_bytes(*b) as usize);
    if doc.len() < 5 || stated != Some(doc.len()) || doc.last() != Some(&0) {
        return Err(Malformed(0));
    }
    Ok(Elements { doc, at: 4 })
}

impl<'a> Elements<'a> {
    fn cut(&self) -> Option<Element<'a>> {
        let rest = self.doc.get(self.at..self.doc.len() - 1)?;
        let tag = *rest.first()?;
        let name_len = zero(rest.get(1..)?)?;
        let name = rest.get(1..1 + name_len)?;
        let start = 2 + name_len;
        let len = value_len(tag, rest.get(start..)?)?;
        let whole = rest.get(..start.checked_add(len)?)?;
        Some(Element { tag, name, value: whole.get(start..)?, whole })
    }
}

impl<'a> Iterator for Elements<'a> {
    type Item = Result<Element<'a>, Malformed>;

    fn next(&mut self) -> Option<Self::Item> {
        let end = self.doc.len() - 1;
        if self.at >= end {
            return None;
        }
        let Some(element) = self.cut() else {
            let bad = Malformed(self.at);
            self.at = end;
            return Some(Err(bad));
        };
        self.at += element.whole.len();
        Some(Ok(element))
    }
}

/// Position of the first zero. Names are most of what a walk looks at, so they are looked at eight bytes at a time: in
/// `word - LOW & !word & HIGH` the lowest bit set is the high bit of the first zero byte.
fn zero(bytes: &[u8]) -> Option<usize> {
    const LOW: u64 = 0x0101_0101_0101_0101;
    const HIGH: u64 = LOW << 7;
    let (words, tail) = bytes.as_chunks::<8>();
    for (n, word) in words.iter().enumerate() {
        let word = u64::from_le_bytes(*word);
        let found = word.wrapping_sub(LOW) & !word & HIGH;
        if found != 0 {
            return Some(n * 8 + found.trailing_zeros() as usize / 8);
        }
    }
    tail.iter().position(|b| *b == 0).map(|at| words.len() * 8 + at)
}

/// Length of the value at the start of `rest`; strings must end in a zero, documents in a zero at the stated length.
fn value_len(tag: u8, rest: &[u8]) -> Option<usize> {
    let stated = || rest.first_chunk::<4>().map(|b| u32::from_le_bytes(*b) as usize);
    let ends_in_zero = |len: usize| (rest.get(len.checked_sub(1)?) == Some(&0)).then_some(len);
    let string = || stated().filter(|n| *n >= 1).and_then(|n| ends_in_zero(n.checked_add(4)?));
    Some(match tag {
        tag::DOUBLE | tag::DATE | tag::TIMESTAMP | tag::INT64 => 8,
        tag::STRING | tag::CODE | tag::SYMBOL => string()?,
        tag::DOCUMENT | tag::ARRAY => stated().filter(|n| *n >= 5).and_then(ends_in_zero)?,
        tag::BINARY => stated()?.checked_add(5)?,
        tag::UNDEFINED | tag::NULL | tag::MAX_KEY | tag::MIN_KEY => 0,
        tag::OBJECT_ID => 12,
        tag::BOOL => 1,
        tag::REGEX => {
            let pattern = rest.iter().position(|b| *b == 0)? + 1;
            pattern + rest.get(pattern..)?.iter().position(|b| *b == 0)? + 1
        }
        tag::DB_POINTER => string()?.checked_add(12)?,
        tag::CODE_WITH_SCOPE => stated().filter(|n| *n >= 14).and_then(ends_in_zero)?,
        tag::INT32 => 4,
        tag::DECIMAL128 => 16,
        _ => return None,
    })
}

/// The top-level element of that name.
pub(super) fn find<'a>(doc: &'a [u8], name: &[u8]) -> Result<Option<Element<'a>>, Malformed> {
    for element in elements(doc)? {
        let element = element?;
        if element.name == name {
            return Ok(Some(element));
        }
    }
    Ok(None)
}

/// Opens a document in `out`; returns where, for [`close`].
pub(super) fn open(out: &mut Vec<u8>) -> usize {
    let at = out.len();
    out.extend_from_slice(&[0; 4]);
    at
}

/// Ends the document opened at `at` and writes its length. A length beyond `i32` cannot come from documents of legal size.
pub(super) fn close(out: &mut Vec<u8>, at: usize) {
    out.push(0);
    let len = i32::try_from(out.len() - at).unwrap_or(i32::MAX);
    if let Some(slot) = out.get_mut(at..at + 4) {
        slot.copy_from_slice(&len.to_le_bytes());
    }
}

/// Appends an element under a name of its own.
pub(super) fn put(out: &mut Vec<u8>, tag: u8, name: &[u8], value: &[u8]) {
    out.push(tag);
    out.extend_from_slice(name);
    out.push(0);
    out.extend_from_slice(value);
}

/// Turns finished bytes into a document.
pub(super) fn finish(out: Vec<u8>) -> Result<RawDocumentBuf, Malformed> {
    RawDocumentBuf::from_bytes(out).map_err(|_| Malformed(0))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn the_first_zero_is_found(bytes in prop::collection::vec(prop_oneof![Just(0u8), Just(1), Just(0x80), Just(0xFF), any::<u8>()], 0..40)) {
            prop_assert_eq!(zero(&bytes), bytes.iter().position(|b| *b == 0));
        }

        #[test]
        fn a_walk_over_any_bytes_ends_and_stays_inside(mut bytes in prop::collection::vec(any::<u8>(), 5..80)) {
            let len = u32::try_from(bytes.len()).unwrap();
            bytes[..4].copy_from_slice(&len.to_le_bytes());
            *bytes.last_mut().unwrap() = 0;
            let walked: usize = elements(&bytes).unwrap().flatten().map(|e| e.whole.len()).sum();
            prop_assert!(walked <= bytes.len() - 5);
        }
    }
}
