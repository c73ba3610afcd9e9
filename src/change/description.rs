//! Owns: the fallback for servers that refuse the raw diff: applying `updateDescription` to raw BSON.
//! Does not own: the exact way (`delta`), or the branch's word that order may differ.
//!
//! Values come out right, field order may not: the description does not say which field was moved to the end. Order of
//! application: `truncatedArrays`, `removedFields`, `updatedFields`. A new field goes to the end, an array grows with nulls.
//!
//! SUBTLE: which field a path means. The server derives paths from its own diff, so every container on a path existed
//! before the update. `disambiguatedPaths` (6.1 on) gives the steps of a path: strings are fields, numbers array elements.
//! Without it a path is resolved against the document: in an array the next step is an index; in a document the shortest run
//! of steps that names an existing container is gone into, and if there is none, what is left is the name of a field, dots
//! and all. Where the document holds both (`a: {b}` and `"a.b"`), nobody can tell: [`DeltaError::Mismatch`]. What remains
//! wrong is a new field with a dot in its name beside a container of the first step's name; the raw diff has no such doubt.

use super::delta::{DeltaError, Digits, index, malformed};
use super::raw::{self, Element, MAX_DEPTH, MAX_DOCUMENT, tag};
use bson::{RawDocument, RawDocumentBuf};
use std::collections::HashMap;

/// Applies an `updateDescription` to the document it was made for: exact in values, not in field order.
pub fn apply_update_description(doc: &RawDocument, description: &RawDocument) -> Result<RawDocumentBuf, DeltaError> {
    let description = Description::read(description.as_bytes())?;
    let mut root = Container::open(doc.as_bytes(), false)?;
    for (path, len) in &description.truncated {
        let array = root.descend(&description.steps(path), Want::Container)?;
        array.truncate(*len)?;
    }
    for path in &description.removed {
        root.descend(&description.steps(path), Want::Parent)?.remove_last()?;
    }
    for element in &description.updated {
        root.descend(&description.steps(element.name), Want::Parent)?.set_last(element)?;
    }
    let mut out = Vec::with_capacity(doc.as_bytes().len());
    root.write(&mut out)?;
    Ok(raw::finish(out)?)
}

/// Checks the structure of an `updateDescription`: what fails here applies to no document.
pub fn check_update_description(description: &RawDocument) -> Result<(), DeltaError> {
    let description = Description::read(description.as_bytes())?;
    let truncated = description.truncated.iter().map(|(path, _)| *path);
    let paths = truncated.chain(description.removed.iter().copied()).chain(description.updated.iter().map(|e| e.name));
    for path in paths {
        match description.disambiguated.get(path).map(Vec::len) {
            Some(0) => return Err(malformed("a path is empty")),
            Some(steps) if steps > MAX_DEPTH + 1 => return Err(malformed("a path is nested too deep")),
            _ => {}
        }
    }
    Ok(())
}

/// The parts of an `updateDescription`.
#[derive(Default)]
struct Description<'a> {
    truncated: Vec<(&'a [u8], usize)>,
    removed: Vec<&'a [u8]>,
    updated: Vec<Element<'a>>,
    disambiguated: HashMap<&'a [u8], Vec<Step<'a>>>,
}

#[derive(Debug, Clone, Copy)]
enum Step<'a> {
    Field(&'a [u8]),
    Index(usize),
}

/// How to get to a place: known steps, or a dotted path that the document has to explain.
#[derive(Clone, Copy)]
enum Path<'d, 'a> {
    Steps(&'d [Step<'a>]),
    Dotted(&'a [u8]),
}

impl<'a> Description<'a> {
    fn read(description: &'a [u8]) -> Result<Self, DeltaError> {
        let mut out = Self::default();
        for part in raw::elements(description)? {
            let part = part?;
            match (part.name, part.tag) {
                (b"truncatedArrays", tag::ARRAY) => {
                    for entry in raw::elements(part.value)? {
                        out.truncated.push(truncation(&entry?)?);
                    }
                }
                (b"removedFields", tag::ARRAY) => {
                    for entry in raw::elements(part.value)? {
                        out.removed.push(path_of(&entry?)?);
                    }
                }
                (b"updatedFields", tag::DOCUMENT) => out.updated = raw::elements(part.value)?.collect::<Result<_, _>>()?,
                (b"disambiguatedPaths", tag::DOCUMENT) => {
                    for entry in raw::elements(part.value)? {
                        let entry = entry?;
                        out.disambiguated.insert(entry.name, steps(&entry)?);
                    }
                }
                (other, _) => return Err(DeltaError::UnknownSection(String::from_utf8_lossy(other).into_owned())),
            }
        }
        Ok(out)
    }

    fn steps(&self, path: &'a [u8]) -> Path<'_, 'a> {
        self.disambiguated.get(path).map_or(Path::Dotted(path), |steps| Path::Steps(steps))
    }
}

/// `{field: path, newSize: length}`
fn truncation<'a>(entry: &Element<'a>) -> Result<(&'a [u8], usize), DeltaError> {
    let field = raw::find(entry.value, b"field")?;
    let len = raw::find(entry.value, b"newSize")?.and_then(|n| n.i32()).and_then(|n| usize::try_from(n).ok());
    match (field, len) {
        (Some(field), Some(len)) => Ok((path_of(&field)?, len)),
        _ => Err(malformed("a truncated array has no field or no newSize")),
    }
}

fn path_of<'a>(e: &Element<'a>) -> Result<&'a [u8], DeltaError> {
    let bytes = if e.tag == tag::STRING { raw::string_bytes(e.value) } else { None };
    bytes.ok_or_else(|| malformed("a path is no string"))
}

fn steps<'a>(entry: &Element<'a>) -> Result<Vec<Step<'a>>, DeltaError> {
    raw::elements(entry.value)?
        .map(|step| {
            let step = step?;
            match step.i32() {
                Some(n) => Ok(Step::Index(usize::try_from(n).map_err(|_| malformed("an array index is negative"))?)),
                None => Ok(Step::Field(path_of(&step)?)),
            }
        })
        .collect()
}

/// A value: as it was, or opened because something inside changes.
enum Node<'a> {
    Raw { tag: u8, value: &'a [u8] },
    Open(Box<Container<'a>>),
}

/// A document or array whose elements can change. Removed elements leave a hole, so that positions in `index` stay.
struct Container<'a> {
    is_array: bool,
    nodes: Vec<Option<(&'a [u8], Node<'a>)>>,
    /// Position by name; documents only.
    index: HashMap<&'a [u8], usize>,
}

enum Want {
    /// The container that holds the last step.
    Parent,
    /// The container that the path names.
    Container,
}

/// A container and what is left of the path in it.
struct Place<'c, 'a> {
    container: &'c mut Container<'a>,
    last: Step<'a>,
}

impl<'a> Container<'a> {
    fn open(bytes: &'a [u8], is_array: bool) -> Result<Self, DeltaError> {
        let mut out = Self { is_array, nodes: Vec::new(), index: HashMap::new() };
        for element in raw::elements(bytes)? {
            let element = element?;
            if !is_array {
                out.index.insert(element.name, out.nodes.len());
            }
            out.nodes.push(Some((element.name, Node::Raw { tag: element.tag, value: element.value })));
        }
        Ok(out)
    }

    fn position(&self, step: Step<'a>) -> Option<usize> {
        let at = match step {
            Step::Field(name) => *self.index.get(name)?,
            Step::Index(at) => at,
        };
        self.nodes.get(at)?.as_ref().map(|_| at)
    }

    /// The container at that step, opened; `None` if there is nothing or no container.
    fn enter(&mut self, step: Step<'a>) -> Result<Option<&mut Self>, DeltaError> {
        let Some(at) = self.position(step) else { return Ok(None) };
        let Some(Some((_, node))) = self.nodes.get_mut(at) else { return Ok(None) };
        if let Node::Raw { tag, value } = *node {
            if tag != tag::DOCUMENT && tag != tag::ARRAY {
                return Ok(None);
            }
            *node = Node::Open(Box::new(Self::open(value, tag == tag::ARRAY)?));
        }
        Ok(if let Node::Open(inner) = node { Some(inner) } else { None })
    }

    fn is_container(&self, step: Step<'a>) -> bool {
        let node = self.position(step).and_then(|at| self.nodes.get(at)?.as_ref());
        matches!(node, Some((_, Node::Open(_) | Node::Raw { tag: tag::DOCUMENT | tag::ARRAY, .. })))
    }

    fn descend(&mut self, path: &Path<'_, 'a>, want: Want) -> Result<Place<'_, 'a>, DeltaError> {
        let mut here = self;
        let mut path = *path;
        for _ in 0..=MAX_DEPTH {
            let (step, rest) = here.next_step(path)?;
            match rest {
                None if matches!(want, Want::Parent) => return Ok(Place { container: here, last: step }),
                None => {
                    let container = here.enter(step)?.ok_or_else(|| missing(step))?;
                    return Ok(Place { container, last: step });
                }
                Some(rest) => {
                    here = here.enter(step)?.ok_or_else(|| missing(step))?;
                    path = rest;
                }
            }
        }
        Err(malformed("a path is nested too deep"))
    }

    /// The next step of a path in this container, and what is left behind it.
    fn next_step<'d>(&self, path: Path<'d, 'a>) -> Result<(Step<'a>, Option<Path<'d, 'a>>), DeltaError> {
        match path {
            Path::Steps([]) => Err(malformed("a path is empty")),
            Path::Steps([step, rest @ ..]) => match (step, self.is_array) {
                (Step::Field(_), true) | (Step::Index(_), false) => Err(missing(*step)),
                _ => Ok((*step, (!rest.is_empty()).then_some(Path::Steps(rest)))),
            },
            Path::Dotted(path) if self.is_array => {
                let (digits, rest) = split(path, path.iter().position(|b| *b == b'.'));
                let at = index(digits).ok_or_else(|| missing(Step::Field(digits)))?;
                Ok((Step::Index(at), rest.map(Path::Dotted)))
            }
            Path::Dotted(path) => {
                let dots = path.iter().enumerate().filter(|(_, b)| **b == b'.').map(|(at, _)| at);
                let literal = Step::Field(path);
                for dot in dots {
                    let (name, rest) = split(path, Some(dot));
                    if !self.is_container(Step::Field(name)) {
                        continue;
                    }
                    if self.position(literal).is_some() {
                        let path = String::from_utf8_lossy(path);
                        return Err(DeltaError::Mismatch(format!("{path} is a field, and a path through other fields too")));
                    }
                    return Ok((Step::Field(name), rest.map(Path::Dotted)));
                }
                Ok((literal, None))
            }
        }
    }

    fn write(&self, out: &mut Vec<u8>) -> Result<(), DeltaError> {
        let start = raw::open(out);
        let mut digits = Digits::default();
        for (at, slot) in self.nodes.iter().enumerate() {
            let Some((name, node)) = slot else {
                if self.is_array {
                    raw::put(out, tag::NULL, digits.of(at), b"");
                }
                continue;
            };
            let name = if self.is_array { digits.of(at) } else { name };
            match node {
                Node::Raw { tag, value } => raw::put(out, *tag, name, value),
                Node::Open(inner) => {
                    raw::put(out, if inner.is_array { tag::ARRAY } else { tag::DOCUMENT }, name, b"");
                    inner.write(out)?;
                }
            }
            if out.len() > MAX_DOCUMENT {
                return Err(malformed("the result is larger than a document may be"));
            }
        }
        raw::close(out, start);
        Ok(())
    }
}

fn split(path: &[u8], dot: Option<usize>) -> (&[u8], Option<&[u8]>) {
    match dot.and_then(|dot| path.split_at_checked(dot)) {
        Some((name, rest)) => (name, rest.get(1..)),
        None => (path, None),
    }
}

fn missing(step: Step<'_>) -> DeltaError {
    DeltaError::Mismatch(match step {
        Step::Field(name) => format!("{} is not what the path says", String::from_utf8_lossy(name)),
        Step::Index(at) => format!("element {at} is not what the path says"),
    })
}

impl<'a> Place<'_, 'a> {
    fn truncate(self, len: usize) -> Result<(), DeltaError> {
        if !self.container.is_array {
            return Err(missing(self.last));
        }
        self.container.nodes.truncate(len);
        Ok(())
    }

    /// Removing what is not there is no error: the server names only what was there, and a second removal changes nothing.
    fn remove_last(self) -> Result<(), DeltaError> {
        if self.container.is_array {
            return Err(missing(self.last));
        }
        let at = self.container.position(self.last);
        if let Some(slot) = at.and_then(|at| self.container.nodes.get_mut(at)) {
            *slot = None;
        }
        Ok(())
    }

    fn set_last(self, element: &Element<'a>) -> Result<(), DeltaError> {
        let container = self.container;
        let node = Node::Raw { tag: element.tag, value: element.value };
        let (name, at) = match self.last {
            Step::Index(at) => {
                // A null costs at least three bytes, so this length cannot be reached within the size of a document.
                if at > MAX_DOCUMENT / 3 {
                    return Err(malformed("an array index is beyond what a document can hold"));
                }
                if container.nodes.len() <= at {
                    container.nodes.resize_with(at + 1, || None);
                }
                (&b""[..], at)
            }
            Step::Field(name) => {
                let at = container.position(self.last).unwrap_or(container.nodes.len());
                if at == container.nodes.len() {
                    container.nodes.push(None);
                    container.index.insert(name, at);
                }
                (name, at)
            }
        };
        if let Some(slot) = container.nodes.get_mut(at) {
            *slot = Some((name, node));
        }
        Ok(())
    }
}

#[cfg(test)]
#[path = "description_tests.rs"]
mod tests;
