//! Owns: what of passing changes must be told, once each: events that this version cannot apply. Pure.
//! Does not own: telling it (`run`).

use std::collections::BTreeSet;

use crate::change::{ChangeRef, Op, is_data, parse_ddl};

/// Something to tell.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Notice {
    /// History keeps the event whole, but no restore crosses it by itself: the first of its type.
    Unknown { op_type: String, seq: u64, why: String },
}

/// What has been told, and what is still to be.
#[derive(Debug, Default)]
pub(super) struct Notices {
    /// A server knows a few dozen types.
    types: BTreeSet<String>,
    fresh: Vec<Notice>,
}

impl Notices {
    /// Looks at a change; of data changes, which are nearly all, not beyond their kind.
    pub(super) fn look(&mut self, seq: u64, op_type: &str, change: &ChangeRef<'_>) {
        if change.op != Op::Event || is_data(op_type) {
            return;
        }
        let Some(Err(why)) = change.body.map(parse_ddl) else { return };
        if self.types.insert(op_type.to_owned()) {
            self.fresh.push(Notice::Unknown { op_type: op_type.to_owned(), seq, why });
        }
    }

    /// What is new since the last call.
    pub(super) fn take(&mut self) -> Vec<Notice> {
        std::mem::take(&mut self.fresh)
    }
}

#[cfg(test)]
mod tests {
    use bson::{Document, RawDocumentBuf, doc};

    use super::*;
    use crate::change::{Scratch, parse_event};

    /// Shows an event of `shop` as the assembler does.
    fn look(notices: &mut Notices, seq: u64, fields: &Document) {
        let mut event = doc! {"_id": {"_data": "8265000000000000010000"}, "clusterTime": bson::Timestamp { time: 1, increment: 1 }};
        event.extend(fields.clone());
        let event = RawDocumentBuf::try_from(&event).unwrap();
        let mut scratch = Scratch::default();
        let view = parse_event(&event, "shop", &mut scratch).unwrap();
        notices.look(seq, view.op_type, &view.change);
    }

    #[test]
    fn a_type_that_cannot_be_applied_is_told_once() {
        let mut notices = Notices::default();
        let ns = doc! {"db": "shop", "coll": "c"};
        let event = |op_type: &str| doc! {"operationType": op_type, "ns": ns.clone()};
        for op_type in ["startIndexBuild", "drop", "endOfTransaction", "insert", "delete", "invalidate"] {
            look(&mut notices, 1, &event(op_type));
            assert_eq!(notices.take(), [], "{op_type}");
        }
        look(&mut notices, 2, &event("shiny"));
        look(&mut notices, 3, &event("shiny"));
        look(&mut notices, 4, &event("shinier"));
        let told: Vec<_> = notices.take().into_iter().map(|Notice::Unknown { op_type, seq, .. }| (op_type, seq)).collect();
        assert_eq!(told, [("shiny".to_owned(), 2), ("shinier".to_owned(), 4)]);
        look(&mut notices, 5, &event("shiny"));
        assert_eq!(notices.take(), []);
    }
}
