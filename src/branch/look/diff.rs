//! What differs between two points, of one branch or of two: documents, options, indexes, views.
//!
//! Owns: the comparison, in bounded memory: both sides are sorted by collection and key, on disk where they do not fit, and merged. Does not own: folding (`replay`).

use std::cmp::Ordering;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::path::PathBuf;
use std::sync::Arc;

use bson::{Bson, Document, RawDocumentBuf};
use serde::Serialize;

use crate::branch::catalogue::{Catalogue, Kind, Uuid};
use crate::branch::fold::{FoldOptions, Ordered, OrderedSorter};
use crate::branch::history::{History, Progress};
use crate::branch::point::Point;
use crate::branch::replay;
use crate::change::write_canonical_id;
use crate::fault::{Fault, Result};

/// One side.
#[derive(Debug, Clone, Copy)]
pub struct Side<'a> {
    pub history: &'a History,
    pub at: Point,
}

/// One thing that differs.
#[derive(Debug, Clone, PartialEq)]
pub enum Difference {
    Collection {
        name: String,
        what: String,
    },
    Added {
        collection: String,
        doc: RawDocumentBuf,
    },
    Removed {
        collection: String,
        doc: RawDocumentBuf,
    },
    /// Paths with the values on both sides; absent where there is none.
    Changed {
        collection: String,
        id: Bson,
        fields: Vec<(String, Option<Bson>, Option<Bson>)>,
    },
}

/// Figures by collection.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct DiffReport {
    pub a: String,
    pub b: String,
    pub equal: bool,
    pub collections: BTreeMap<String, Counts>,
}

/// Documents of a collection that differ, and other things (options, indexes, the collection itself).
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct Counts {
    pub added: u64,
    pub removed: u64,
    pub changed: u64,
    pub catalogue: u64,
}

/// Memory and disk.
struct Limits {
    budget: u64,
    temp_dir: PathBuf,
}

/// Hands each difference to `each`; false ends it early.
pub async fn diff(
    a: Side<'_>,
    b: Side<'_>,
    only: &[String],
    budget: u64,
    temp_dir: PathBuf,
    progress: Arc<Progress>,
    each: impl FnMut(Difference) -> Result<bool> + Send + 'static,
) -> Result<DiffReport> {
    let limits = Limits { budget, temp_dir };
    // One after the other: each may take the whole budget.
    let (one, first) = sorted(a, only, &limits, progress.clone()).await?;
    let (other, second) = sorted(b, only, &limits, progress).await?;
    let name = |side: Side<'_>| format!("{}@{}", side.history.branch.name, side.at);
    let report = DiffReport { a: name(a), b: name(b), equal: true, collections: BTreeMap::new() };
    let only: Vec<String> = only.to_vec();
    let merging = tokio::task::spawn_blocking(move || {
        let mut merge = Merge { report, each };
        if merge.catalogues(&one, &other, &only)? {
            merge.documents(first, second)?;
        }
        merge.report.equal = merge.report.collections.is_empty();
        Ok::<DiffReport, Fault>(merge.report)
    });
    merging.await.map_err(|e| Fault::corrupt(format!("comparing panicked: {e}")))?
}

/// Documents of one side by name of collection and key.
struct SortedSide {
    documents: Ordered,
    /// By the index that orders them.
    names: Vec<String>,
}

async fn sorted(side: Side<'_>, only: &[String], limits: &Limits, progress: Arc<Progress>) -> Result<(Catalogue, SortedSide)> {
    let until = side.history.resolve(side.at).await?;
    let fold = FoldOptions {
        budget: limits.budget / 3,
        dir: limits.temp_dir.clone(),
        expected: side.history.line().raw_bytes(),
        until,
        tolerant: false,
    };
    let mut folded = replay::fold(side.history, &fold, progress).await?;
    let (only, budget, dir) = (only.to_vec(), limits.budget / 8, limits.temp_dir.clone());
    let sorting = tokio::task::spawn_blocking(move || {
        let wanted = |name: &str| only.is_empty() || only.iter().any(|o| o == name);
        let of: HashMap<Uuid, String> = folded.catalogue.collections.values().map(|c| (c.uuid, c.name.clone())).collect();
        let names: BTreeSet<String> = of.values().filter(|name| wanted(name)).cloned().collect();
        let names: Vec<String> = names.into_iter().collect();
        let rank = |uuid: &Uuid| of.get(uuid).and_then(|name| names.binary_search(name).ok()).and_then(|n| u32::try_from(n).ok());
        let ranks: Vec<Option<u32>> = folded.collections.iter().map(rank).collect();
        let mut sorter = OrderedSorter::new(&dir, budget);
        let mut key = Vec::new();
        while let Some(documents) = folded.documents.next_batch()? {
            for document in documents {
                let Some(Some(rank)) = ranks.get(document.coll as usize) else { continue };
                key.clear();
                write_canonical_id(&document.doc, &mut key);
                sorter.push(*rank, &key, document.doc)?;
            }
        }
        Ok::<_, Fault>((folded.catalogue, SortedSide { documents: sorter.finish()?, names }))
    });
    sorting.await.map_err(|e| Fault::corrupt(format!("sorting panicked: {e}")))?
}

struct Merge<F> {
    report: DiffReport,
    each: F,
}

impl<F: FnMut(Difference) -> Result<bool>> Merge<F> {
    fn count(&mut self, collection: &str) -> &mut Counts {
        self.report.collections.entry(collection.to_owned()).or_default()
    }

    /// False when enough was shown.
    fn catalogues(&mut self, a: &Catalogue, b: &Catalogue, only: &[String]) -> Result<bool> {
        let shown = |catalogue: &Catalogue| -> BTreeMap<String, Vec<(&'static str, String)>> {
            let collections = catalogue.collections.values().filter(|c| c.kind == Kind::Collection).map(|c| {
                let indexes: Vec<String> = c.indexes.iter().map(ToString::to_string).collect();
                (c.name.clone(), vec![("options", c.options.to_string()), ("indexes", indexes.join(", "))])
            });
            let views = catalogue.views.values().filter(|v| v.kind == Kind::View);
            collections.chain(views.map(|v| (v.name.clone(), vec![("view", v.options.to_string())]))).collect()
        };
        let (a, b) = (shown(a), shown(b));
        let names: BTreeSet<&String> = a.keys().chain(b.keys()).collect();
        for name in names.into_iter().filter(|name| only.is_empty() || only.contains(name)) {
            let whats: Vec<String> = match (a.get(name), b.get(name)) {
                (Some(_), None) => vec!["is only in the first".to_owned()],
                (None, Some(_)) => vec!["is only in the second".to_owned()],
                (Some(x), Some(y)) => {
                    let differ = x.iter().zip(y).filter(|(x, y)| x != y);
                    differ.map(|((what, x), (_, y))| format!("{what}: {x} and {y}")).collect()
                }
                (None, None) => continue,
            };
            for what in whats {
                self.count(name).catalogue += 1;
                if !(self.each)(Difference::Collection { name: name.clone(), what })? {
                    return Ok(false);
                }
            }
        }
        Ok(true)
    }

    fn documents(&mut self, mut a: SortedSide, mut b: SortedSide) -> Result<()> {
        let (mut x, mut y) = (a.documents.next()?, b.documents.next()?);
        loop {
            let order = match (&x, &y) {
                (None, None) => return Ok(()),
                (Some(_), None) => Ordering::Less,
                (None, Some(_)) => Ordering::Greater,
                (Some(x), Some(y)) => {
                    let (m, n) = (a.names.get(x.coll as usize), b.names.get(y.coll as usize));
                    m.cmp(&n).then_with(|| x.key.cmp(&y.key))
                }
            };
            let go_on = match order {
                Ordering::Less => {
                    let Some(item) = x.take() else { return Ok(()) };
                    x = a.documents.next()?;
                    let collection = a.names.get(item.coll as usize).cloned().unwrap_or_default();
                    self.count(&collection).removed += 1;
                    (self.each)(Difference::Removed { collection, doc: item.doc })?
                }
                Ordering::Greater => {
                    let Some(item) = y.take() else { return Ok(()) };
                    y = b.documents.next()?;
                    let collection = b.names.get(item.coll as usize).cloned().unwrap_or_default();
                    self.count(&collection).added += 1;
                    (self.each)(Difference::Added { collection, doc: item.doc })?
                }
                Ordering::Equal => {
                    let (Some(one), Some(other)) = (x.take(), y.take()) else { return Ok(()) };
                    (x, y) = (a.documents.next()?, b.documents.next()?);
                    if one.doc.as_bytes() == other.doc.as_bytes() {
                        continue;
                    }
                    let collection = a.names.get(one.coll as usize).cloned().unwrap_or_default();
                    self.count(&collection).changed += 1;
                    (self.each)(changed(collection, &one.doc, &other.doc)?)?
                }
            };
            if !go_on {
                return Ok(());
            }
        }
    }
}

fn changed(collection: String, a: &RawDocumentBuf, b: &RawDocumentBuf) -> Result<Difference> {
    let read = |doc: &RawDocumentBuf| Document::try_from(doc.as_ref()).map_err(|e| Fault::corrupt(format!("a document is no BSON: {e}")));
    let (a, b) = (read(a)?, read(b)?);
    let id = b.get("_id").cloned().unwrap_or(Bson::Null);
    let mut fields = Vec::new();
    compare("", &a, &b, &mut fields);
    if fields.is_empty() {
        let order = |doc: &Document| Some(Bson::Array(doc.keys().cloned().map(Bson::String).collect()));
        fields.push(("(order of fields)".to_owned(), order(&a), order(&b)));
    }
    Ok(Difference::Changed { collection, id, fields })
}

/// Paths whose values differ, in the order of the first, then those that only the second has.
fn compare(path: &str, a: &Document, b: &Document, out: &mut Vec<(String, Option<Bson>, Option<Bson>)>) {
    let at = |name: &str| if path.is_empty() { name.to_owned() } else { format!("{path}.{name}") };
    for (name, x) in a {
        match (x, b.get(name)) {
            (Bson::Document(x), Some(Bson::Document(y))) if !x.is_empty() || !y.is_empty() => compare(&at(name), x, y, out),
            (x, Some(y)) if same(x, y) => {}
            (x, y) => out.push((at(name), Some(x.clone()), y.cloned())),
        }
    }
    out.extend(b.iter().filter(|(name, _)| !a.contains_key(name)).map(|(name, y)| (at(name), None, Some(y.clone()))));
}

/// By bytes: NaN is NaN, and 1 is not 1.0.
fn same(a: &Bson, b: &Bson) -> bool {
    let bytes = |value: &Bson| bson::doc! {"v": value.clone()}.to_vec().ok();
    bytes(a) == bytes(b)
}

#[cfg(test)]
mod tests {
    use bson::doc;

    use super::*;

    #[test]
    fn fields_that_differ_are_named_by_their_path() {
        let a = doc! {"_id": 1, "same": f64::NAN, "n": 1, "o": {"x": 1, "gone": true}, "list": [1, 2]};
        let b = doc! {"_id": 1, "same": f64::NAN, "n": 1_i64, "o": {"x": 2}, "list": [1], "new": 1};
        let mut out = Vec::new();
        compare("", &a, &b, &mut out);
        let paths: Vec<&str> = out.iter().map(|(path, ..)| path.as_str()).collect();
        assert_eq!(paths, ["n", "o.x", "o.gone", "list", "new"]);
        assert_eq!(out[2], ("o.gone".to_owned(), Some(Bson::Boolean(true)), None));
        assert_eq!(out[4], ("new".to_owned(), None, Some(Bson::Int32(1))));
    }

    #[test]
    fn another_order_of_fields_is_a_change() {
        let raw = |doc: Document| RawDocumentBuf::try_from(&doc).unwrap();
        let change = changed("c".into(), &raw(doc! {"_id": 1, "a": 1, "b": 2}), &raw(doc! {"_id": 1, "b": 2, "a": 1})).unwrap();
        let Difference::Changed { fields, .. } = change else { panic!("{change:?}") };
        assert_eq!(fields[0].0, "(order of fields)");
    }
}
