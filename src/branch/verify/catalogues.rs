//! Owns: comparing the catalogue of a live database with that of history. Pure.
//! Does not own: documents (`hash`, `live`).

use std::collections::BTreeSet;

use bson::{Bson, Document};

use super::VerifyReport;
use crate::branch::catalogue::{Catalogue, Collection, Kind, Uuid, View};
use crate::branch::{layout, restore};

/// What is compared at all.
pub(super) fn covered(collection: &Collection) -> bool {
    collection.kind == Kind::Collection && collection.name != restore::MARKER
}

/// Options, indexes and views; collections by UUID, so that one recreated under its name does not pass for the old one.
pub(super) fn compare_catalogues(live: &Catalogue, ours: &Catalogue, report: &mut VerifyReport) {
    let uuids: BTreeSet<&Uuid> = live.collections.keys().chain(ours.collections.keys()).collect();
    for uuid in uuids {
        let (a, b) = (live.collections.get(uuid).filter(|c| covered(c)), ours.collections.get(uuid).filter(|c| covered(c)));
        let (a, b) = match (a, b) {
            (Some(a), Some(b)) => (a, b),
            (Some(a), None) => {
                report.differs(&a.name, format!("is in the database, not in history (uuid {})", layout::hex(uuid)));
                continue;
            }
            (None, Some(b)) => {
                report.differs(&b.name, format!("is in history, not in the database (uuid {})", layout::hex(uuid)));
                continue;
            }
            (None, None) => continue,
        };
        if a.name != b.name {
            report.differs(&a.name, format!("is called {:?} in history", b.name));
        }
        if !same_fields(&a.options, &b.options) {
            report.differs(&a.name, format!("options {} in the database, {} in history", a.options, b.options));
        }
        let same_indexes = a.indexes.len() == b.indexes.len() && a.indexes.iter().zip(&b.indexes).all(|(a, b)| same_fields(a, b));
        if !same_indexes {
            report.differs(&a.name, format!("indexes {:?} in the database, {:?} in history", shown(&a.indexes), shown(&b.indexes)));
        }
    }
    let names: BTreeSet<&String> = live.views.keys().chain(ours.views.keys()).collect();
    for name in names {
        match (live.views.get(name), ours.views.get(name)) {
            // Whichever side it is on: history may know of it, and a restore does not make it.
            (Some(a), _) | (_, Some(a)) if a.kind == Kind::Timeseries => {
                report.notes.push(format!("time-series collection {name} is not covered"))
            }
            (Some(a), Some(b)) if same_fields(&a.options, &b.options) => {}
            (a, b) => {
                let shown = |view: Option<&View>| view.map_or_else(|| "nothing".to_owned(), |v| v.options.to_string());
                report.differs(name, format!("view {} in the database, {} in history", shown(a), shown(b)));
            }
        }
    }
}

fn shown(specs: &[Document]) -> Vec<String> {
    specs.iter().map(ToString::to_string).collect()
}

/// Equal up to the order of the top-level fields and the type of numbers there: a listing prints both as it likes. Values are compared by bytes.
pub(in crate::branch) fn same_fields(a: &Document, b: &Document) -> bool {
    let number = |value: &Bson| match value {
        Bson::Int32(n) => Some(f64::from(*n)),
        #[allow(clippy::cast_precision_loss)] // sizes and seconds
        Bson::Int64(n) => Some(*n as f64),
        Bson::Double(n) => Some(*n),
        _ => None,
    };
    let bytes = |value: &Bson| bson::doc! {"v": value.clone()}.to_vec().ok();
    a.len() == b.len()
        && a.iter().all(|(name, x)| {
            b.get(name).is_some_and(|y| match (number(x), number(y)) {
                (Some(x), Some(y)) => x.total_cmp(&y).is_eq(),
                _ => bytes(x) == bytes(y),
            })
        })
}

#[cfg(test)]
mod tests {
    use super::*;
    use bson::doc;

    #[test]
    fn options_are_compared_by_value_and_nested_order() {
        assert!(same_fields(&doc! {"a": 1, "b": {"x": 1, "y": 1}}, &doc! {"b": {"x": 1, "y": 1}, "a": 1_i64}));
        assert!(!same_fields(&doc! {"key": {"x": 1, "y": 1}}, &doc! {"key": {"y": 1, "x": 1}}));
        assert!(!same_fields(&doc! {"a": 1}, &doc! {}));
    }
}
