//! Passing over the changes of collections that are not captured. Pure.
//!
//! Owns: what becomes of one change, and of a collection that a rename brings in or takes out. Does not own: the names (`ledger::Selection`).

use std::collections::HashMap;

use bson::RawDocumentBuf;

use crate::change::{ChangeRef, Ddl, Observed, Op, parse_ddl};
use crate::fault::{Fault, Result};
use crate::ledger::Selection;

/// Names whose answer is kept.
const KEPT: usize = 10_000;

/// What becomes of a change.
#[derive(Debug, PartialEq)]
pub(super) enum Judged {
    Take,
    PassOver,
    /// This event stands in its place.
    Instead(RawDocumentBuf),
}

/// The selection of one capture.
#[derive(Debug, Default)]
pub(super) struct Select {
    selection: Selection,
    known: HashMap<String, bool>,
}

impl Select {
    pub(super) fn new(selection: &Selection) -> Self {
        Self { selection: selection.clone(), known: HashMap::new() }
    }

    /// `HistoryLost` for a collection that comes in by a rename: what it held before was never captured, so a gap and a new base have to follow.
    pub(super) fn judge(&mut self, change: &ChangeRef<'_>, op_type: &str, db: &str) -> Result<Judged> {
        if self.selection.is_all() {
            return Ok(Judged::Take);
        }
        let taken = self.takes(change.coll);
        if change.op != Op::Event || op_type != "rename" {
            return Ok(if taken { Judged::Take } else { Judged::PassOver });
        }
        let Some(Ok((event, Ddl::Rename { to, .. }))) = change.body.map(parse_ddl) else { return Ok(Judged::Take) };
        match (taken, self.takes(&to)) {
            (true, true) => Ok(Judged::Take),
            (false, false) => Ok(Judged::PassOver),
            (false, true) => Err(Fault::history_lost(format!(
                "the collection {} was not captured and is called {to} now, which is: its documents have to be copied",
                change.coll
            ))),
            (true, false) => {
                let gone = Observed { dropped: event.uuid.into_iter().collect(), listed_at: change.time, ..Observed::default() };
                let event = RawDocumentBuf::try_from(&gone.to_event(db, change.time));
                event.map(Judged::Instead).map_err(|e| Fault::corrupt(format!("an event that is no BSON: {e}")))
            }
        }
    }

    fn takes(&mut self, name: &str) -> bool {
        if let Some(taken) = self.known.get(name) {
            return *taken;
        }
        if self.known.len() >= KEPT {
            self.known.clear();
        }
        let taken = self.selection.takes(name);
        self.known.insert(name.to_owned(), taken);
        taken
    }
}
