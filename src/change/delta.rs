//! Owns: the server's own diff of an update (`$v: 2`), applied to raw BSON so that the result is what the server stored,
//! byte for byte; and the check of a diff's structure without a document.
//! Does not own: `updateDescription` (`description`), or which diff belongs to which document (`branch`).
//!
//! # The diff
//!
//! Of a document: sections `d` (fields removed; the values say nothing), `u` (new values in place), `i` (fields that go to
//! the end; one that exists is taken from its place first), then any number of `s<field>` (a diff of that field's document
//! or array), in this order, each of the first three at most once. Of an array: `a: true`, perhaps `l` (new length), then
//! `u<index>` (value) and `s<index>` (diff) in ascending order. An array grows with nulls up to the index named. Elements of
//! an array that is touched get their position as name. No field occurs in two sections.
//!
//! A field of `u` that is missing is appended, before those of `i`. A diff of something missing, or of another type, says
//! that the document is not the one the diff was made for: [`DeltaError::Mismatch`], or, for [`apply_delta_tolerant`], what
//! a secondary does when it applies an operation twice: nothing if it is missing, null if it has another type.
//!
//! Time is linear in document and diff, but for a sort of the names in the diff.

use super::raw::{self, Element, MAX_DEPTH, MAX_DOCUMENT, Malformed, tag};
use crate::fault::Fault;
use bson::{RawDocument, RawDocumentBuf};

/// Why a diff cannot be applied.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum DeltaError {
    /// A section that this version does not know: the update is a hole, for this document only.
    #[error("the diff has a section \"{0}\" that this version does not know")]
    UnknownSection(String),
    /// Diff or document are not what their format says.
    #[error("the diff cannot be read: {0}")]
    Malformed(String),
    /// The diff was made for another state of the document.
    #[error("the diff does not fit the document: {0}")]
    Mismatch(String),
}

impl From<DeltaError> for Fault {
    fn from(error: DeltaError) -> Self {
        Self::corrupt(error.to_string())
    }
}

impl From<Malformed> for DeltaError {
    fn from(bad: Malformed) -> Self {
        Self::Malformed(format!("no BSON at byte {} of a document", bad.0))
    }
}

pub(super) fn malformed(what: impl Into<String>) -> DeltaError {
    DeltaError::Malformed(what.into())
}

/// Applies a diff to the document it was made for.
pub fn apply_delta(doc: &RawDocument, diff: &RawDocument) -> Result<RawDocumentBuf, DeltaError> {
    apply(doc, diff, false)
}

/// As [`apply_delta`], but tolerates a document that may hold this update already, as a secondary does: for copies that
/// were not read at one point in time (capped collections), where later diffs of the same log make it right again.
pub fn apply_delta_tolerant(doc: &RawDocument, diff: &RawDocument) -> Result<RawDocumentBuf, DeltaError> {
    apply(doc, diff, true)
}

/// Checks the structure of a diff; `Ok` means that it applies to the document it was made for.
pub fn check_delta(diff: &RawDocument) -> Result<(), DeltaError> {
    check(diff.as_bytes(), 0)
}

fn apply(doc: &RawDocument, diff: &RawDocument, tolerant: bool) -> Result<RawDocumentBuf, DeltaError> {
    let mut out = Vec::with_capacity(doc.as_bytes().len() + diff.as_bytes().len());
    let patch = Patch { tolerant };
    let DiffKind::Document = kind(diff.as_bytes())? else { return Err(malformed("the diff of a document is one of an array")) };
    patch.document(doc.as_bytes(), diff.as_bytes(), 0, &mut out)?;
    bounded(&out)?;
    Ok(raw::finish(out)?)
}

fn bounded(out: &[u8]) -> Result<(), DeltaError> {
    if out.len() > MAX_DOCUMENT { Err(malformed("the result is larger than a document may be")) } else { Ok(()) }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum DiffKind {
    Document,
    Array,
}

/// The first field tells: `a` is no section of a document's diff. An empty diff is never written.
fn kind(diff: &[u8]) -> Result<DiffKind, DeltaError> {
    let first = raw::elements(diff)?.next().ok_or_else(|| malformed("a diff is empty"))??;
    Ok(if first.name == b"a" { DiffKind::Array } else { DiffKind::Document })
}

/// What a diff does to one field.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Action {
    Delete,
    Update,
    Insert,
    Sub(DiffKind),
}

struct Change<'a> {
    action: Action,
    name: &'a [u8],
    /// New value, or the diff.
    value: Element<'a>,
    /// An update or sub-diff that found its field.
    met: bool,
}

/// Sections of a document's diff, in the order that they must have.
const SECTIONS: [(&[u8], Action); 3] = [(b"d", Action::Delete), (b"u", Action::Update), (b"i", Action::Insert)];

/// The changes in the diff's order, and their indexes sorted by name; a name that occurs twice is refused.
fn read_document_diff(diff: &[u8]) -> Result<(Vec<Change<'_>>, Vec<usize>), DeltaError> {
    let mut changes = Vec::new();
    let mut next_section = 0;
    for section in raw::elements(diff)? {
        let section = section?;
        if let Some(at) = SECTIONS.iter().position(|(name, _)| *name == section.name) {
            if at < next_section || section.tag != tag::DOCUMENT {
                return Err(malformed(format!("section {} stands in a wrong place or is no document", name_of(section.name))));
            }
            next_section = at + 1;
            let action = SECTIONS[at].1;
            for value in raw::elements(section.value)? {
                let value = value?;
                changes.push(Change { action, name: value.name, value, met: false });
            }
        } else if let Some((b's', name)) = section.name.split_first() {
            if section.tag != tag::DOCUMENT {
                return Err(malformed(format!("the diff of field {} is no document", name_of(name))));
            }
            next_section = SECTIONS.len();
            changes.push(Change { action: Action::Sub(kind(section.value)?), name, value: section, met: false });
        } else {
            return Err(DeltaError::UnknownSection(name_of(section.name)));
        }
    }
    let mut by_name: Vec<usize> = (0..changes.len()).collect();
    let name = |i: &usize| changes.get(*i).map_or(&b""[..], |c| c.name);
    by_name.sort_unstable_by(|a, b| name(a).cmp(name(b)));
    if let Some([twice, _]) = by_name.array_windows().find(|[a, b]| name(a) == name(b)) {
        return Err(malformed(format!("field {} is changed twice", name_of(name(twice)))));
    }
    Ok((changes, by_name))
}

/// An array's diff: new length, and the changes by ascending index.
struct ArrayDiff<'a> {
    len: Option<usize>,
    changes: Vec<(usize, Action, Element<'a>)>,
}

fn read_array_diff(diff: &[u8]) -> Result<ArrayDiff<'_>, DeltaError> {
    let mut out = ArrayDiff { len: None, changes: Vec::new() };
    for (n, element) in raw::elements(diff)?.enumerate() {
        let element = element?;
        match element.name {
            b"a" if n == 0 => {
                if element.tag != tag::BOOL || element.value != [1] {
                    return Err(malformed("the mark of an array's diff is not true"));
                }
            }
            b"l" if n == 1 => {
                let len = element.i32().and_then(|len| usize::try_from(len).ok());
                out.len = Some(len.ok_or_else(|| malformed("the new length of an array is no length"))?);
            }
            [section @ (b'u' | b's'), digits @ ..] => {
                let at = index(digits).ok_or_else(|| malformed(format!("{} names no index", name_of(element.name))))?;
                if out.changes.last().is_some_and(|(last, ..)| *last >= at) || out.len.is_some_and(|len| at >= len) {
                    return Err(malformed(format!("{} is out of order or beyond the new length", name_of(element.name))));
                }
                let action = match (section, element.tag) {
                    (b'u', _) => Action::Update,
                    (_, tag::DOCUMENT) => Action::Sub(kind(element.value)?),
                    _ => return Err(malformed(format!("the diff {} is no document", name_of(element.name)))),
                };
                out.changes.push((at, action, element));
            }
            other => return Err(DeltaError::UnknownSection(name_of(other))),
        }
    }
    Ok(out)
}

/// A decimal index as the server writes it: no sign, no leading zero.
pub(super) fn index(digits: &[u8]) -> Option<usize> {
    if digits.is_empty() || digits.len() > 9 || digits.len() > 1 && digits.first() == Some(&b'0') {
        return None;
    }
    digits.iter().try_fold(0, |n, d| d.is_ascii_digit().then(|| n * 10 + usize::from(d - b'0')))
}

fn name_of(name: &[u8]) -> String {
    String::from_utf8_lossy(name.get(..name.len().min(100)).unwrap_or_default()).into_owned()
}

fn check(diff: &[u8], depth: usize) -> Result<(), DeltaError> {
    if depth >= MAX_DEPTH {
        return Err(malformed("nested too deep"));
    }
    match kind(diff)? {
        DiffKind::Document => {
            let (changes, _) = read_document_diff(diff)?;
            changes.iter().filter(|c| matches!(c.action, Action::Sub(_))).try_for_each(|c| check(c.value.value, depth + 1))
        }
        DiffKind::Array => {
            let diff = read_array_diff(diff)?;
            diff.changes.iter().filter(|c| matches!(c.1, Action::Sub(_))).try_for_each(|c| check(c.2.value, depth + 1))
        }
    }
}

struct Patch {
    tolerant: bool,
}

impl Patch {
    fn document(&self, doc: &[u8], diff: &[u8], depth: usize, out: &mut Vec<u8>) -> Result<(), DeltaError> {
        if depth >= MAX_DEPTH {
            return Err(malformed("nested too deep"));
        }
        let (mut changes, by_name) = read_document_diff(diff)?;
        let start = raw::open(out);
        for element in raw::elements(doc)? {
            let element = element?;
            let found = by_name.binary_search_by(|i| changes.get(*i).map_or(&b""[..], |c| c.name).cmp(element.name));
            let Some(change) = found.ok().and_then(|at| by_name.get(at)).and_then(|i| changes.get_mut(*i)) else {
                out.extend_from_slice(element.whole);
                continue;
            };
            change.met = true;
            match change.action {
                Action::Delete | Action::Insert => {}
                Action::Update => out.extend_from_slice(change.value.whole),
                Action::Sub(kind) => self.sub(&element, kind, element.name, change.value.value, depth, out)?,
            }
        }
        for change in &changes {
            match change.action {
                Action::Update if !change.met => out.extend_from_slice(change.value.whole),
                Action::Insert => out.extend_from_slice(change.value.whole),
                Action::Sub(_) if !change.met && !self.tolerant => {
                    return Err(DeltaError::Mismatch(format!("field {} is missing", name_of(change.name))));
                }
                _ => {}
            }
        }
        raw::close(out, start);
        Ok(())
    }

    fn array(&self, array: &[u8], diff: &[u8], depth: usize, out: &mut Vec<u8>) -> Result<(), DeltaError> {
        if depth >= MAX_DEPTH {
            return Err(malformed("nested too deep"));
        }
        let diff = read_array_diff(diff)?;
        let start = raw::open(out);
        let mut digits = Digits::default();
        let mut old = raw::elements(array)?;
        let mut changes = diff.changes.iter().peekable();
        let mut at = 0;
        // Old elements first, and then what the diff says beyond them.
        loop {
            if diff.len.is_some_and(|len| at >= len) {
                break;
            }
            let element = old.next().transpose()?;
            let change = changes.next_if(|(index, ..)| *index == at);
            if element.is_none() && change.is_none() && changes.peek().is_none() && diff.len.is_none() {
                break;
            }
            let name = digits.of(at);
            match (change, element) {
                (Some((_, Action::Sub(kind), sub)), Some(element)) => self.sub(&element, *kind, name, sub.value, depth, out)?,
                (Some((_, Action::Sub(_), _)), None) if !self.tolerant => {
                    return Err(DeltaError::Mismatch(format!("element {at} of an array is missing")));
                }
                (Some((_, Action::Sub(_), _)), None) | (None, None) => raw::put(out, tag::NULL, name, b""),
                (Some((_, _, new)), _) => raw::put(out, new.tag, name, new.value),
                (None, Some(element)) => raw::put(out, element.tag, name, element.value),
            }
            bounded(out)?;
            at += 1;
        }
        raw::close(out, start);
        Ok(())
    }

    /// Applies a diff inside a field or element.
    fn sub(&self, old: &Element<'_>, kind: DiffKind, name: &[u8], diff: &[u8], depth: usize, out: &mut Vec<u8>) -> Result<(), DeltaError> {
        match (kind, old.tag) {
            (DiffKind::Document, tag::DOCUMENT) => {
                raw::put(out, tag::DOCUMENT, name, b"");
                self.document(old.value, diff, depth + 1, out)
            }
            (DiffKind::Array, tag::ARRAY) => {
                raw::put(out, tag::ARRAY, name, b"");
                self.array(old.value, diff, depth + 1, out)
            }
            _ if self.tolerant => {
                raw::put(out, tag::NULL, name, b"");
                Ok(())
            }
            _ => Err(DeltaError::Mismatch(format!("field {} is neither document nor array as the diff says", name_of(name)))),
        }
    }
}

/// Writes positions in an array as names, without an allocation each.
#[derive(Default)]
pub(super) struct Digits([u8; 20]);

impl Digits {
    pub(super) fn of(&mut self, mut n: usize) -> &[u8] {
        let mut start = self.0.len();
        loop {
            start -= 1;
            if let Some(slot) = self.0.get_mut(start) {
                *slot = b'0' + u8::try_from(n % 10).unwrap_or(0);
            }
            n /= 10;
            if n == 0 {
                break;
            }
        }
        self.0.get(start..).unwrap_or_default()
    }
}

#[cfg(test)]
#[path = "delta_tests.rs"]
mod tests;
