//! Owns: what of passing changes must be told, once each: events that this version cannot apply, and collections that it does not restore. Pure.
//! Does not own: telling it (`run`), what there was when the capture began (`start`).

use std::collections::BTreeSet;

use crate::change::{BUCKETS, ChangeRef, Ddl, Op, is_data, is_on_buckets, parse_ddl};

/// Something to tell.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Notice {
    /// History keeps the event whole, but no restore crosses it by itself: the first of its type.
    Unknown { op_type: String, seq: u64, why: String },
    /// The branch does not cover this time-series collection (correctness.md 2).
    Timeseries(String),
}

/// How a time-series collection is listed among what a branch does not cover.
pub(super) fn uncovered_timeseries(name: &str) -> String {
    format!("{name}: time-series, recorded but not restored by this version")
}

/// What has been told, and what is still to be.
#[derive(Debug, Default)]
pub(super) struct Notices {
    /// A server knows a few dozen types.
    types: BTreeSet<String>,
    /// Names of time-series collections, as the branch has them too.
    timeseries: BTreeSet<String>,
    fresh: Vec<Notice>,
}

impl Notices {
    /// Looks at a change; of data changes, which are nearly all, not beyond the name of their collection.
    pub(super) fn look(&mut self, seq: u64, op_type: &str, change: &ChangeRef<'_>) {
        // One that was there before the capture, or was made while an older version captured, is known by its buckets alone.
        if let Some(name) = change.coll.strip_prefix(BUCKETS) {
            self.timeseries(name);
        }
        if change.op != Op::Event || is_data(op_type) {
            return;
        }
        match change.body.map(parse_ddl) {
            Some(Ok((event, Ddl::Create(options)))) if event.uuid.is_none() && is_on_buckets(&options) => self.timeseries(event.coll),
            Some(Err(why)) if !self.types.contains(op_type) => {
                self.types.insert(op_type.to_owned());
                self.fresh.push(Notice::Unknown { op_type: op_type.to_owned(), seq, why });
            }
            _ => {}
        }
    }

    fn timeseries(&mut self, name: &str) {
        if !self.timeseries.contains(name) {
            self.timeseries.insert(name.to_owned());
            self.fresh.push(Notice::Timeseries(name.to_owned()));
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
        let why = |op_type: &str| format!("an event of unknown type {op_type:?}");
        let unknown = |op_type: &str, seq| Notice::Unknown { op_type: op_type.to_owned(), seq, why: why(op_type) };
        assert_eq!(notices.take(), [unknown("shiny", 2), unknown("shinier", 4)]);
        look(&mut notices, 5, &event("shiny"));
        assert_eq!(notices.take(), []);
    }

    #[test]
    fn a_time_series_collection_is_told_once_whatever_shows_it() {
        let mut notices = Notices::default();
        let event = |op_type: &str, coll: &str, description: Document| {
            doc! {"operationType": op_type, "ns": {"db": "shop", "coll": coll}, "operationDescription": description}
        };
        let told = |notices: &mut Notices, event: &Document| {
            look(notices, 1, event);
            notices.take()
        };
        let series = |name: &str| vec![Notice::Timeseries(name.into())];
        for other in
            [event("create", "v", doc! {"viewOn": "a", "pipeline": []}), event("create", "system.js", doc! {}), event("drop", "v", doc! {})]
        {
            assert_eq!(told(&mut notices, &other), [], "{other}");
        }
        let view = event("create", "weather", doc! {"viewOn": "system.buckets.weather", "pipeline": []});
        let buckets = event("create", "system.buckets.weather", doc! {"timeseries": {"timeField": "t"}});
        assert_eq!(told(&mut notices, &view), series("weather"));
        assert_eq!(told(&mut notices, &view), []);
        assert_eq!(told(&mut notices, &buckets), []);
        let id = doc! {"_id": 1};
        let ns = doc! {"db": "shop", "coll": "system.buckets.older"};
        let bucket = doc! {"operationType": "insert", "fullDocument": id.clone(), "ns": ns, "documentKey": id};
        assert_eq!(told(&mut notices, &bucket), series("older"));
        assert_eq!(told(&mut notices, &bucket), []);
    }
}
