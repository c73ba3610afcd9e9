//! Owns: what the index says about a block: times, collections, DDL, holes, key filter. One pass over its rows.
//! Does not own: the judgement of a diff or of an event (`change`).

use std::collections::{BTreeMap, HashSet};

use super::{RawBlock, filter};
use crate::change::{ChangeRef, ClusterTime, Op, check_delta, operation_type, parse_stored_event, write_canonical_id};
use crate::fault::Result;

/// What one pass over a block found.
#[derive(Debug)]
pub(super) struct Scan {
    pub(super) first_time: ClusterTime,
    pub(super) last_time: ClusterTime,
    pub(super) has_ddl: bool,
    pub(super) holes: u32,
    pub(super) raw_bytes: u64,
    /// Collections that have a row, in order of name and UUID.
    pub(super) collections: Vec<(String, Option<[u8; 16]>)>,
    pub(super) filter: Vec<u8>,
}

/// What a row means for the index.
enum Meaning {
    /// A data change whose key is in the scratch buffer.
    Keyed { hole: bool },
    /// A data change that does not name its document: the filter cannot speak for this block.
    Keyless { hole: bool },
    /// Anything else.
    Ddl,
}

/// Reads every row, which also proves that the block is well formed.
pub(super) fn scan(block: &RawBlock) -> Result<Scan> {
    let mut rows = block.rows()?;
    let mut seen = vec![false; rows.collections().len()];
    let (mut canonical, mut scratch) = (Vec::new(), Vec::new());
    let mut hashes = Some(Vec::with_capacity(block.count as usize));
    let (mut first_time, mut last_time) = (ClusterTime { t: u32::MAX, i: u32::MAX }, ClusterTime::default());
    let (mut has_ddl, mut holes, mut raw_bytes) = (false, 0, 0);
    // Bodies that are holes, by where they lie: a body that comes again is judged once.
    let mut bad = HashSet::new();
    while let Some(step) = rows.step()? {
        let change = step.change;
        seen[step.collection as usize] = true;
        first_time = first_time.min(change.time);
        last_time = last_time.max(change.time);
        raw_bytes += change.raw_bytes();
        if change.key.is_some() && !step.new_key && !step.new_body && change.op != Op::Event {
            holes += u32::from(change.body.is_some_and(|body| bad.contains(&body.as_bytes().as_ptr())));
            continue;
        }
        canonical.clear();
        let meaning = meaning(&change, &mut canonical);
        let (Meaning::Keyed { hole } | Meaning::Keyless { hole }) = meaning else {
            has_ddl = true;
            continue;
        };
        holes += u32::from(hole);
        if hole {
            bad.extend(change.body.map(|body| body.as_bytes().as_ptr()));
        }
        if let Meaning::Keyless { .. } = meaning {
            hashes = None;
        } else if let Some(hashes) = &mut hashes {
            hashes.push(filter::key_hash(&mut scratch, change.coll, change.uuid.as_ref(), &canonical));
        }
    }
    let used = rows.collections().iter().zip(&seen).filter(|(_, seen)| **seen);
    let used: BTreeMap<_, ()> = used.map(|(&(name, uuid), _)| ((name.to_owned(), uuid), ())).collect();
    Ok(Scan {
        first_time,
        last_time,
        has_ddl,
        holes,
        raw_bytes,
        collections: used.into_keys().collect(),
        filter: hashes.map(filter::build).unwrap_or_default(),
    })
}

fn meaning(change: &ChangeRef<'_>, canonical: &mut Vec<u8>) -> Meaning {
    let (mut row, mut hole) = (*change, false);
    if change.op == Op::Event {
        let Some(body) = change.body else { return Meaning::Ddl };
        if !matches!(operation_type(body), Some("insert" | "update" | "replace" | "delete")) {
            return Meaning::Ddl;
        }
        // A data event with fields we do not know, kept whole: what can be applied is, the rest is a hole.
        match parse_stored_event(body) {
            Ok(Some(inner)) => row = inner,
            Ok(None) => return Meaning::Ddl,
            Err(_) => return Meaning::Keyless { hole: true },
        }
    }
    if row.op == Op::Update {
        // Malformed counts like unknown: what cannot be applied must show now, not at a restore.
        hole = row.body.is_none_or(|diff| check_delta(diff).is_err());
    }
    let document = row.key.or(if matches!(row.op, Op::Insert | Op::Replace) { row.body } else { None });
    if document.is_some_and(|d| write_canonical_id(d, canonical)) { Meaning::Keyed { hole } } else { Meaning::Keyless { hole } }
}
