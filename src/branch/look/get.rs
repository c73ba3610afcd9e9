//! One document as it was at a point, from the blocks that can hold it alone.
//!
//! Owns: putting its changes together. Does not own: finding them (`find`).

use std::pin::pin;
use std::sync::Arc;

use bson::{Bson, RawDocumentBuf};

use super::find::{Behind, Change, Finder, Sought};
use crate::branch::history::History;
use crate::branch::point::Point;
use crate::branch::replay::Start;
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
    let start = Start::at(history, at, false).await?;
    let (catalogue, _) = start.catalogue().await?;
    let missing = || Fault::rejected(format!("there was no collection {collection:?} at {at}"));
    let uuid = catalogue.collection_named(collection).ok_or_else(missing)?.uuid;
    let mut holder = RawDocumentBuf::new();
    let raw = bson::RawBson::try_from(id.clone()).map_err(|e| Fault::config(format!("--id: {e}")))?;
    holder.append(bson::cstr!("_id"), raw);
    let key = canonical_id(&holder).ok_or_else(|| Fault::config("--id is no key"))?;
    let (based, manifest, until) = (start.based, &start.manifest, start.until);
    // Times behind a fork are of a cluster whose clock may differ: all of that is behind the base.
    let foreign_from = history.line().parts().get(based.part + 1).map_or(u64::MAX, |part| part.first);
    let behind = Behind { base_until: based.base.consistent_at, foreign_from };
    let finder = |uuid| Finder { history, sought: Arc::new(Sought { key: key.clone(), uuid, name: collection.to_owned() }) };
    let finding = finder(uuid);
    // The base is asked at the same time: most documents that changed lately are in it too.
    let (mut in_base, mut asked) = (pin!(finding.in_base(based, manifest)), None);
    let mut changes = pin!(finding.changes(based.base.seq, until, behind, false));
    let found = loop {
        tokio::select! {
            found = &mut changes => break found?,
            base = &mut in_base, if asked.is_none() => asked = Some(base),
        }
    };
    let base = match asked {
        _ if found.complete => None,
        Some(base) if found.uuid == uuid => base?,
        None if found.uuid == uuid => in_base.await?,
        _ => finder(found.uuid).in_base(based, manifest).await?,
    };
    let fuzzy = catalogue.collection_named(collection).is_some_and(|c| c.is_capped());
    Ok(fold(base, found.newest_first, found.complete, behind, fuzzy)?.map(|(doc, seq)| Found { doc, seq, at: until }))
}

/// The same rules as those of a fold (see `fold::Folder::base_document`). `complete`: the first change needs nothing before it.
fn fold(
    base: Option<(RawDocumentBuf, ClusterTime)>,
    newest_first: Vec<Change>,
    complete: bool,
    behind: Behind,
    fuzzy: bool,
) -> Result<Option<(RawDocumentBuf, u64)>> {
    let read_at = base.as_ref().map(|(_, at)| *at);
    let mut state = base.map(|(doc, _)| (doc, 0));
    for (n, change) in newest_first.into_iter().rev().enumerate() {
        let is_start = complete && n == 0;
        if read_at.is_some_and(|read_at| !behind.is_later(&change, read_at)) {
            continue; // it is in the base
        }
        let misfit = |what: &str| {
            let fault = Fault::corrupt(format!("change seq:{} {what}", change.seq));
            if behind.is_later(&change, behind.base_until) { Err(fault) } else { Ok(()) }
        };
        let body = || change.body.clone().ok_or_else(|| Fault::corrupt(format!("change seq:{} has no body", change.seq)));
        match (change.op, state.take()) {
            (Op::Insert, _) | (Op::Replace, Some(_)) => state = Some((body()?, change.seq)),
            (Op::Replace, None) if is_start => state = Some((body()?, change.seq)),
            (Op::Delete, None) if is_start => {}
            (Op::Replace, None) => misfit("replaces a document that does not exist")?,
            (Op::Delete, Some(_)) => {}
            (Op::Delete, None) => misfit("deletes a document that does not exist")?,
            (Op::Update | Op::Described, None) => misfit("updates a document that does not exist")?,
            (Op::Update | Op::Described, Some((doc, seq))) => {
                let diff = body()?;
                let applied = match change.op {
                    Op::Described => apply_update_description(&doc, &diff),
                    _ if fuzzy && !behind.is_later(&change, behind.base_until) => apply_delta_tolerant(&doc, &diff),
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
