//! Owns: comparing a restored copy with history at its point, and with the source as it was then, where the server still knows.
//! Does not own: making the copy (`drill`, `restore`), comparing with a database in use (`live`).

use std::sync::Arc;

use mongodb::Database;

use super::VerifyReport;
use super::capped::Capped;
use super::catalogues::{compare_catalogues, covered};
use super::hash::add;
use super::live::{AgainstOptions, compare_hashes, counted, fold_at, hash_kept, nothing, read_live, scan_at};
use crate::branch::catalogue::Catalogue;
use crate::branch::history::History;
use crate::branch::point::Bound;
use crate::change::ClusterTime;
use crate::fault::Result;
use crate::ledger::{Fidelity, Selection};

/// The source at a time.
#[derive(Debug, Clone)]
pub struct Then<'a> {
    pub db: &'a Database,
    pub time: ClusterTime,
}

/// What was compared.
#[derive(Debug, Clone)]
pub struct Compared {
    pub report: VerifyReport,
    /// Collections that were compared with the source itself, and of how many that could have been.
    pub with_source: usize,
    pub collections: usize,
}

/// Compares the copy in `options.db`, made without expiry, with history up to `seq`, and history with the source.
pub async fn compare_copy(history: &History, seq: u64, options: &AgainstOptions, source: Option<Then<'_>>) -> Result<Compared> {
    let sorted = history.branch.fidelity == Fidelity::OrderMayDiffer;
    let mut report = VerifyReport::new(&history.branch.name);
    report.at = Some(format!("seq:{seq}"));
    let mut folded = fold_at(history, Bound::Seq(seq), options, Arc::default()).await?;
    without_expiry(&mut folded.catalogue);
    let catalogue = folded.catalogue.clone();
    let mut copy = read_live(&options.db, sorted, &Selection::default()).await?;
    copy.take_uuids_by_name(&catalogue);
    compare_catalogues(&copy.catalogue, &catalogue, &mut report);
    let ours = hash_kept(folded, sorted, Capped::of(&catalogue), Arc::default()).await?;
    report.documents = ours.values().map(|sums| counted(sums)).sum();
    compare_hashes(&copy, &ours, &mut report);

    let comparable: Vec<_> = catalogue.collections.values().filter(|c| covered(c) && !c.is_capped()).collect();
    let mut with_source = 0;
    if let Some(then) = source {
        for collection in &comparable {
            let (mut theirs, mut key) = (nothing(), Vec::new());
            // It may be gone, renamed, or changed in its options since: then history is all that there is to compare with.
            let read = scan_at(then.db, &collection.name, &collection.uuid, then.time, |doc| {
                add(&mut theirs, doc, sorted, &mut key);
            })
            .await?;
            if !read {
                continue;
            }
            with_source += 1;
            let none = nothing();
            let mine = ours.get(&collection.uuid).unwrap_or(&none);
            if *mine != theirs {
                let (a, b) = (counted(&theirs), counted(mine));
                report.differs(&collection.name, format!("documents differ: {a} in the source at {}, {b} in history", then.time));
            }
        }
    }
    Ok(Compared { report, with_source, collections: comparable.len() })
}

fn without_expiry(catalogue: &mut Catalogue) {
    for collection in catalogue.collections.values_mut() {
        collection.options.remove("expireAfterSeconds");
        for index in &mut collection.indexes {
            index.remove("expireAfterSeconds");
        }
    }
}
