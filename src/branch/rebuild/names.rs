//! Owns: which branches a bucket has, as far as their `branch.json` tells: one of each name, parents before children. Pure.
//! Does not own: their history.

use std::collections::{BTreeMap, BTreeSet};

use super::{Known, MAX_DEPTH, Orphans, Problem};
use crate::branch::layout;

/// One branch a name. Two can have one where the bucket was told late: a start or a fork that was refused because the name was taken, and killed
/// before it could take its object back, or a rename whose object was not written.
pub(super) fn settle(known: Vec<Known>, segments: impl Fn(&str) -> u64, orphans: &mut Orphans, notes: &mut Vec<String>) -> Vec<Known> {
    let parents: BTreeSet<String> = known.iter().filter_map(|of| Some(of.document.parent.as_ref()?.id.clone())).collect();
    let is_real = |of: &Known| segments(&of.document.id) > 0 || parents.contains(&of.document.id);
    let mut by_name: BTreeMap<String, Vec<Known>> = BTreeMap::new();
    for of in known {
        by_name.entry(of.name.clone()).or_default().push(of);
    }
    let mut kept = Vec::new();
    for (name, mut all) in by_name {
        // Its own object may be the one that is late where a branch was renamed, so the younger one has the better claim.
        all.sort_by_key(|of| (is_real(of), of.document.version > 1, of.document.created_ms, of.document.id.clone()));
        kept.extend(all.pop());
        for mut other in all {
            let id = other.document.id.clone();
            if is_real(&other) {
                other.name = format!("{name}-{}", id.get(..8).unwrap_or(&id));
                notes.push(format!("two branches are named {name}: {id} is {} from now on", other.name));
                kept.push(other);
            } else {
                let key = layout::branch_json(&other.project, &id);
                orphans.add(key, format!("another branch is named {name} and this one has no history: it was never finished"));
            }
        }
    }
    kept
}

/// Parents before children. One whose parent is not there has no history; of deleted ones nobody asks for it.
pub(super) fn parents_first(known: Vec<Known>, problems: &mut Vec<Problem>) -> Vec<Known> {
    let mut left: BTreeMap<String, Known> = known.into_iter().map(|of| (of.document.id.clone(), of)).collect();
    let (mut sorted, mut done) = (Vec::new(), BTreeSet::new());
    for _ in 0..MAX_DEPTH {
        let ready = |of: &Known| {
            let parent = of.document.parent.as_ref().map(|parent| &parent.id);
            parent.is_none_or(|id| done.contains(id) || (of.document.deleted_ms.is_some() && !left.contains_key(id)))
        };
        let ids: Vec<String> = left.iter().filter(|(_, of)| ready(of)).map(|(id, _)| id.clone()).collect();
        if ids.is_empty() {
            break;
        }
        for id in ids {
            sorted.extend(left.remove(&id));
            done.insert(id);
        }
    }
    for of in left.into_values() {
        let parent = of.document.parent.as_ref().map_or("", |parent| parent.id.as_str());
        problems.push(Problem::new(
            of.name,
            format!("the branch {parent} that it was forked from is not in the bucket: it has no history without"),
        ));
    }
    sorted
}
