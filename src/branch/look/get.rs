//! One document as it was at a point, from the blocks that can hold it alone.
//!
//! Owns: putting its changes together. Does not own: finding them (`find`).

use bson::{Bson, RawDocumentBuf};

use super::find::{Change, Finder};
use crate::branch::history::History;
use crate::branch::point::{Bound, Point};
use crate::branch::replay;
use crate::change::{ClusterTime, Op, apply_delta, apply_delta_tolerant, apply_update_description, canonical_id};
use crate::fault::{Fault, Result};

/// A document and where it comes from.
#[derive(Debug, Clone, PartialEq)]
pub struct Found {
    pub doc: RawDocumentBuf,
    /// The change that made it what it is; 0: the base.
    pub seq: u64,
    /// Up to which change was looked.
    pub at: u64,
}

/// `None` where there was no such document; `Rejected` where there was no such collection.
pub async fn get(history: &History, collection: &str, id: &Bson, at: Point) -> Result<Option<Found>> {
    let until = history.resolve(at).await?;
    let catalogue = replay::catalogue(history, until, false).await?;
    let missing = || Fault::rejected(format!("there was no collection {collection:?} at {at}"));
    let uuid = catalogue.collection_named(collection).ok_or_else(missing)?.uuid;
    let Bound::Seq(until) = until else { return Err(Fault::corrupt("a point that is no seq")) };
    let at = history.locate(Point::Seq(until)).await?;
    let based =
        history.base_for(&at).ok_or_else(|| Fault::rejected(format!("seq:{until} is before every base of {}", history.branch.name)))?;
    let mut holder = RawDocumentBuf::new();
    let raw = bson::RawBson::try_from(id.clone()).map_err(|e| Fault::config(format!("--id: {e}")))?;
    holder.append(bson::cstr!("_id"), raw);
    let key = canonical_id(&holder).ok_or_else(|| Fault::config("--id is no key"))?;
    let finder = Finder { history, key, uuid, name: collection };
    let base_until = based.base.consistent_at;
    let found = finder.changes(based.base.seq, until, base_until, false).await?;
    let base = if found.complete { None } else { finder.in_base(based, found.uuid).await? };
    let fuzzy = catalogue.collection_named(collection).is_some_and(|c| c.is_capped());
    Ok(fold(base, found.newest_first, base_until, fuzzy)?.map(|(doc, seq)| Found { doc, seq, at: until }))
}

/// The same rules as those of a fold (see `fold::Folder::base_document`).
fn fold(
    base: Option<(RawDocumentBuf, ClusterTime)>,
    newest_first: Vec<Change>,
    base_until: ClusterTime,
    fuzzy: bool,
) -> Result<Option<(RawDocumentBuf, u64)>> {
    let read_at = base.as_ref().map(|(_, at)| *at);
    let mut state = base.map(|(doc, _)| (doc, 0));
    for change in newest_first.into_iter().rev() {
        if read_at.is_some_and(|read_at| change.time <= read_at) {
            continue; // it is in the base
        }
        let misfit = |what: &str| {
            let fault = Fault::corrupt(format!("change seq:{} {what}", change.seq));
            if change.time <= base_until { Ok(()) } else { Err(fault) }
        };
        let body = || change.body.clone().ok_or_else(|| Fault::corrupt(format!("change seq:{} has no body", change.seq)));
        match (change.op, state.take()) {
            (Op::Insert, _) | (Op::Replace, Some(_)) => state = Some((body()?, change.seq)),
            (Op::Replace, None) => misfit("replaces a document that does not exist")?,
            (Op::Delete, Some(_)) => {}
            (Op::Delete, None) => misfit("deletes a document that does not exist")?,
            (Op::Update | Op::Described, None) => misfit("updates a document that does not exist")?,
            (Op::Update | Op::Described, Some((doc, seq))) => {
                let diff = body()?;
                let applied = match change.op {
                    Op::Described => apply_update_description(&doc, &diff),
                    _ if fuzzy && change.time <= base_until => apply_delta_tolerant(&doc, &diff),
                    _ => apply_delta(&doc, &diff),
                };
                state = match applied {
                    Ok(doc) => Some((doc, change.seq)),
                    Err(e) => {
                        misfit(&format!("is an update that cannot be applied: {e}"))?;
                        Some((doc, seq))
                    }
                };
            }
            (Op::Event, before) => state = before,
        }
    }
    Ok(state)
}
