//! Owns: the state of one document while history is folded, and what one change does to it. Pure.
//! Does not own: where states are kept (`table`, `spill`).

use bson::{RawDocument, RawDocumentBuf};

use crate::change::{ChangeRef, Op, apply_delta, apply_delta_tolerant, apply_update_description};
use crate::fault::Result as FaultResult;

/// What is known of a document at some point of the fold.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Entry {
    /// The whole document.
    Put(Put),
    /// It is gone. Kept only where an older state may be in a spill file.
    Deleted {
        seq: u64,
        /// The state in the spill file must be a document: false when this one was inserted since.
        expects: bool,
    },
    /// Diffs on a state that is in a spill file.
    Deltas(Deltas),
}

#[derive(Debug, Clone, PartialEq)]
pub(super) struct Put {
    pub(super) doc: RawDocumentBuf,
    /// The order of a capped collection: that of a base, then that of inserts. `None`: that of the state in the spill file.
    pub(super) born: Option<u64>,
    /// Seq of the last change in it.
    pub(super) seq: u64,
}

/// How a diff is applied.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Form {
    /// The server's own diff.
    Raw,
    /// The same on a document that may hold it already: a capped collection while it was copied.
    Again,
    /// `updateDescription`.
    Described,
}

impl Form {
    fn of(change: &ChangeRef<'_>, again: bool) -> Self {
        match change.op {
            Op::Described => Self::Described,
            _ if again => Self::Again,
            _ => Self::Raw,
        }
    }
}

/// Where the first change of history stands among documents in the order of their insertion: those of a base are before it.
const FIRST_CHANGE: u64 = 1 << 63;

/// A document of a base: `n` counts them.
pub(super) fn of_base(doc: &RawDocument, n: u64) -> Entry {
    Entry::Put(Put { doc: doc.to_owned(), born: Some(n & !FIRST_CHANGE), seq: 0 })
}

#[derive(Debug, Clone, PartialEq)]
pub(super) struct Delta {
    pub(super) seq: u64,
    pub(super) form: Form,
    pub(super) diff: RawDocumentBuf,
}

/// Diffs in order. Their bytes are kept beside them: a document that changes a million times must not be added up a million times.
#[derive(Debug, Clone, PartialEq, Default)]
pub(super) struct Deltas {
    list: Vec<Delta>,
    bytes: u64,
}

impl Deltas {
    pub(super) fn push(&mut self, delta: Delta) {
        self.bytes += delta.cost();
        self.list.push(delta);
    }

    pub(super) fn as_slice(&self) -> &[Delta] {
        &self.list
    }
}

impl FromIterator<Delta> for Deltas {
    fn from_iter<T: IntoIterator<Item = Delta>>(deltas: T) -> Self {
        let mut all = Self::default();
        deltas.into_iter().for_each(|delta| all.push(delta));
        all
    }
}

impl Delta {
    /// Bytes of memory: the diff and what holds it.
    pub(super) fn cost(&self) -> u64 {
        #[cfg(test)]
        ADDED_UP.with(|count| count.set(count.get() + 1));
        self.diff.as_bytes().len() as u64 + 48
    }
}

#[cfg(test)]
thread_local! {
    /// How often the size of a diff was looked at: what shows that a fold is linear without a clock.
    pub(super) static ADDED_UP: std::cell::Cell<u64> = const { std::cell::Cell::new(0) };
}

/// A change that does not fit the state: history is incomplete or damaged.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Misfit {
    pub(super) seq: u64,
    pub(super) why: String,
}

fn misfit<T>(seq: u64, why: impl Into<String>) -> Result<T, Misfit> {
    Err(Misfit { seq, why: why.into() })
}

impl Entry {
    /// Bytes of memory this state is charged with, beside its key.
    pub(super) fn cost(&self) -> u64 {
        match self {
            Self::Put(put) => put.doc.as_bytes().len() as u64,
            Self::Deleted { .. } => 0,
            Self::Deltas(deltas) => deltas.bytes,
        }
    }
}

/// Applies a change to the state in memory; with `spilled` an absent one may be in a spill file. `None` afterwards means that
/// nothing needs to be remembered. A misfit leaves the state as it was.
pub(super) fn step(state: &mut Option<Entry>, seq: u64, change: &ChangeRef<'_>, spilled: bool, again: bool) -> Result<(), Misfit> {
    let body = || change.body.map_or_else(|| misfit(seq, "has no body"), Ok);
    let after = match (change.op, &mut *state) {
        (Op::Insert, _) => Some(Entry::Put(Put { doc: body()?.to_owned(), born: Some(FIRST_CHANGE | seq), seq })),
        (Op::Replace, Some(Entry::Put(put))) => {
            put.doc = body()?.to_owned();
            put.seq = seq;
            return Ok(());
        }
        (Op::Replace, before) if spilled && !matches!(before, Some(Entry::Deleted { .. })) => {
            Some(Entry::Put(Put { doc: body()?.to_owned(), born: None, seq }))
        }
        (Op::Replace, _) => return misfit(seq, "replaces a document that does not exist"),
        (Op::Update | Op::Described, Some(Entry::Put(put))) => return apply_diff(put, seq, Form::of(change, again), body()?),
        (Op::Update | Op::Described, before) if spilled && !matches!(before, Some(Entry::Deleted { .. })) => {
            let delta = Delta { seq, form: Form::of(change, again), diff: body()?.to_owned() };
            match before {
                Some(Entry::Deltas(deltas)) => {
                    deltas.push(delta);
                    return Ok(());
                }
                _ => Some(Entry::Deltas(Deltas::from_iter([delta]))),
            }
        }
        (Op::Update | Op::Described, _) => return misfit(seq, "updates a document that does not exist"),
        (Op::Delete, Some(Entry::Put(put))) => spilled.then_some(Entry::Deleted { seq, expects: put.born.is_none() }),
        (Op::Delete, Some(Entry::Deltas(_))) => Some(Entry::Deleted { seq, expects: true }),
        (Op::Delete, None) if spilled => Some(Entry::Deleted { seq, expects: true }),
        (Op::Delete, _) => return misfit(seq, "deletes a document that does not exist"),
        (Op::Event, _) => return misfit(seq, "is not a change of a document"),
    };
    *state = after;
    Ok(())
}

/// Puts a later state from a spill file on top of the earlier ones; only whole documents remain. `on_misfit` decides whether to go on
/// without the change that does not fit.
pub(super) fn merge(state: &mut Option<Put>, later: Entry, on_misfit: &mut dyn FnMut(Misfit) -> FaultResult<()>) -> FaultResult<()> {
    let mut report = |misfit| on_misfit(misfit);
    let absent = |report: &mut dyn FnMut(Misfit) -> FaultResult<()>, seq, what: &str| {
        report(Misfit { seq, why: format!("{what} a document that does not exist") })
    };
    match later {
        Entry::Put(mut put) => {
            if put.born.is_none() {
                match state {
                    Some(old) => put.born = old.born,
                    None => absent(&mut report, put.seq, "replaces")?,
                }
            }
            *state = Some(put);
        }
        Entry::Deleted { seq, expects } => {
            if state.take().is_none() && expects {
                absent(&mut report, seq, "deletes")?;
            }
        }
        Entry::Deltas(deltas) => {
            for delta in deltas.list {
                let Some(put) = state else {
                    absent(&mut report, delta.seq, "updates")?;
                    continue;
                };
                if let Err(misfit) = apply_diff(put, delta.seq, delta.form, &delta.diff) {
                    report(misfit)?;
                }
            }
        }
    }
    Ok(())
}

fn apply_diff(put: &mut Put, seq: u64, form: Form, diff: &RawDocument) -> Result<(), Misfit> {
    let applied = match form {
        Form::Raw => apply_delta(&put.doc, diff),
        Form::Again => apply_delta_tolerant(&put.doc, diff),
        Form::Described => apply_update_description(&put.doc, diff),
    };
    match applied {
        Ok(doc) => {
            put.doc = doc;
            put.seq = seq;
            Ok(())
        }
        Err(e) => misfit(seq, format!("is an update that cannot be applied: {e}")),
    }
}
