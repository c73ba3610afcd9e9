//! Owns: what the index says about a block: times, collections, DDL, holes, key filter. One pass over its rows.
//! Does not own: the judgement of a diff or of an event (`change`).

use std::collections::{BTreeMap, HashSet};

use bson::RawDocument;

use super::{RawBlock, filter};
use crate::change::{ChangeRef, ClusterTime, Op, is_data, is_passed_over, operation_type, parse_ddl, parse_stored_event};
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

/// What a row means for the index. A hole is what a fold could not apply: it is asked for by the same functions.
enum Meaning {
    /// A data change whose key is in the scratch buffer.
    Keyed { hole: bool },
    /// A data change that does not name its document: the filter cannot speak for this block.
    Keyless { hole: bool },
    /// Anything else.
    Ddl { hole: bool },
}

/// Reads every row, which also proves that the block is well formed.
pub(super) fn scan(block: &RawBlock) -> Result<Scan> {
    let mut rows = block.rows()?;
    let mut seen = vec![false; rows.collections().len()];
    let (mut canonical, mut scratch) = (Vec::new(), Vec::new());
    let mut hashes = Some(Vec::with_capacity(block.count as usize));
    let (mut first_time, mut last_time) = (ClusterTime { t: u32::MAX, i: u32::MAX }, ClusterTime::default());
    let (mut has_ddl, mut holes, mut raw_bytes) = (false, 0, 0);
    // Bodies that are holes and keys that name nothing, by where they lie: what comes again is judged once.
    let mut bad = HashSet::new();
    while let Some(step) = rows.step()? {
        let change = step.change;
        seen[step.collection as usize] = true;
        first_time = first_time.min(change.time);
        last_time = last_time.max(change.time);
        raw_bytes += change.raw_bytes();
        if change.key.is_some() && !step.new_key && !step.new_body && change.op != Op::Event {
            let is_bad = |part: Option<&RawDocument>| part.is_some_and(|part| bad.contains(&part.as_bytes().as_ptr()));
            holes += u32::from(is_bad(change.body) || is_bad(change.key));
            continue;
        }
        let meaning = meaning(&change, &mut canonical);
        let (Meaning::Keyed { hole } | Meaning::Keyless { hole } | Meaning::Ddl { hole }) = meaning;
        holes += u32::from(hole);
        if let Meaning::Ddl { .. } = meaning {
            has_ddl = true;
            continue;
        }
        if hole {
            let part = if let Meaning::Keyless { .. } = meaning { change.key } else { change.body };
            bad.extend(part.map(|part| part.as_bytes().as_ptr()));
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
    let mut row = *change;
    if change.op == Op::Event {
        let Some(body) = change.body else { return Meaning::Ddl { hole: true } };
        // A data event with fields we do not know, kept whole: what can be applied is, the rest is a hole.
        match parse_stored_event(body) {
            Ok(Some(inner)) => row = inner,
            Ok(None) => return Meaning::Ddl { hole: parse_ddl(body).is_err() },
            Err(_) if operation_type(body).is_some_and(is_data) => return Meaning::Keyless { hole: true },
            Err(_) => return Meaning::Ddl { hole: true },
        }
    }
    let passed_over = is_passed_over(row.coll);
    let hole = !passed_over && !row.is_applicable();
    if row.write_document_key(canonical) { Meaning::Keyed { hole } } else { Meaning::Keyless { hole: !passed_over } }
}
