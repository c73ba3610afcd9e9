//! Owns: what a listing of a database has that its folded catalogue has not, and the other way round (correctness.md 14). Pure.
//! Does not own: listing (`read`), when it is compared (`engine::compare`), what `verify` says of differences.

use super::{Catalogue, Collection, Kind};
use crate::branch::verify::same_fields;
use crate::change::{ClusterTime, MARKER, Observed, ObservedCollection};

/// What makes `ours` into `live`, which was listed at `listed_at`. Time-series collections are left out: their views and buckets belong together.
pub fn differ(live: &Catalogue, ours: &Catalogue, listed_at: ClusterTime) -> Observed {
    let is_compared = |c: &&Collection| c.kind == Kind::Collection && c.name != MARKER;
    let same = |a: &Collection, b: &Collection| {
        a.name == b.name
            && same_fields(&a.options, &b.options)
            && a.indexes.len() == b.indexes.len()
            && a.indexes.iter().all(|index| b.indexes.iter().any(|known| same_fields(index, known)))
    };
    let changed = |c: &&Collection| ours.collections.get(&c.uuid).is_none_or(|known| !same(c, known));
    let collections = live.collections.values().filter(is_compared).filter(changed).map(|c| ObservedCollection {
        uuid: c.uuid,
        from: None,
        name: c.name.clone(),
        options: c.options.clone(),
        indexes: c.indexes.clone(),
    });
    let views = live.views.values().filter(|view| view.kind == Kind::View);
    let views = views.filter(|v| ours.views.get(&v.name).is_none_or(|known| !same_fields(&v.options, &known.options)));
    let gone = ours.collections.values().filter(is_compared).filter(|c| !live.collections.contains_key(&c.uuid));
    let gone_views = ours.views.values().filter(|view| view.kind == Kind::View && !live.views.contains_key(&view.name));
    Observed {
        collections: collections.collect(),
        views: views.map(|v| (v.name.clone(), v.options.clone())).collect(),
        dropped: gone.map(|c| c.uuid).collect(),
        dropped_views: gone_views.map(|v| v.name.clone()).collect(),
        whole: false,
        listed_at,
    }
}

#[cfg(test)]
mod tests {
    use super::super::{Uuid, View};
    use super::*;
    use bson::{Document, RawDocumentBuf, doc};

    fn collection(n: u8, name: &str, options: Document, indexes: Vec<Document>) -> (Uuid, Collection) {
        ([n; 16], Collection { name: name.into(), uuid: [n; 16], kind: Kind::Collection, options, indexes })
    }

    fn view(name: &str, on: &str) -> (String, View) {
        (name.into(), View { name: name.into(), kind: Kind::View, options: doc! {"viewOn": on, "pipeline": []} })
    }

    fn index(name: &str) -> Document {
        doc! {"v": 2, "key": {name: 1}, "name": name}
    }

    #[test]
    fn what_is_found_makes_the_one_into_the_other() {
        let ours = Catalogue {
            collections: [
                collection(1, "same", doc! {"capped": true, "size": 4096}, vec![index("a"), index("b")]),
                collection(2, "indexed", doc! {}, vec![index("a")]),
                collection(3, "old", doc! {}, vec![]),
                collection(4, "gone", doc! {}, vec![]),
                collection(5, "checked", doc! {"validator": {"a": 1}}, vec![]),
            ]
            .into(),
            views: [view("v", "same"), view("w", "same"), view("x", "same")].into(),
            listed_at: ClusterTime::default(),
        };
        let live = Catalogue {
            collections: [
                // Order of indexes and types of numbers are the listing's own.
                collection(1, "same", doc! {"size": 4096_i64, "capped": true}, vec![index("b"), index("a")]),
                collection(2, "indexed", doc! {}, vec![index("a"), index("c")]),
                collection(3, "renamed", doc! {}, vec![]),
                collection(5, "checked", doc! {"validator": {"a": 2}}, vec![]),
                collection(6, "new", doc! {}, vec![index("n")]),
                collection(7, MARKER, doc! {}, vec![]),
            ]
            .into(),
            views: [view("v", "same"), view("w", "renamed"), view("y", "same")].into(),
            listed_at: ClusterTime { t: 9, i: 1 },
        };
        assert!(differ(&ours, &ours, live.listed_at).is_empty());
        let found = differ(&live, &ours, live.listed_at);
        let names: Vec<&str> = found.collections.iter().map(|c| c.name.as_str()).collect();
        assert_eq!(names, ["indexed", "renamed", "checked", "new"]);
        assert_eq!((found.dropped.as_slice(), found.dropped_views.as_slice()), ([[4; 16]].as_slice(), ["x".to_owned()].as_slice()));
        let mut folded = ours;
        folded.apply(&RawDocumentBuf::try_from(&found.to_event("d", live.listed_at)).unwrap()).unwrap();
        assert!(differ(&live, &folded, live.listed_at).is_empty(), "{folded:?}");
    }
}
