//! Owns: reading all of a line's history once: checksums, the chain of tokens, every change decoded, and all of them folded onto the oldest base without
//! writing anything; and every object of the later bases.
//! Does not own: rows and object sizes (`verify`), what folding is (`fold`).

use std::sync::Arc;

use bson::RawDocumentBuf;

use super::{DeepOptions, VerifyReport};
use crate::branch::fold::{Flow, FoldOptions};
use crate::branch::history::{Consumer, Gaps, History, Loaded, Progress, Range};
use crate::branch::point::Bound;
use crate::branch::replay::{Replay, Wish, check_parts};
use crate::change::ChangeRef;
use crate::fault::{Fault, Kind, Result};
use crate::ledger::SegmentKind;

/// Reads everything. It stops at the first object that is damaged: what is behind it is then unknown anyway.
pub(super) async fn check(history: &History, options: &DeepOptions, report: &mut VerifyReport, progress: Arc<Progress>) -> Result<()> {
    for based in history.line().bases().iter().skip(1) {
        match check_parts(history, based).await {
            Ok(_) => {}
            Err(fault) if fault.kind == Kind::Corrupt => report.differs("base", fault.what),
            Err(fault) => return Err(fault),
        }
    }
    let until = Bound::Seq(history.branch.head.seq);
    let fold =
        FoldOptions { budget: options.budget, dir: options.temp_dir.clone(), expected: history.line().raw_bytes(), until, tolerant: false };
    let (mut folding, mut token, mut from) = (Folding::Given, None, 1);
    if let Some(first) = history.line().bases().first() {
        // One that cannot be read is in the report already.
        match history.manifest(first).await {
            Ok(manifest) => {
                token = Some((first.base.seq, manifest.token.clone()));
                let replay = Replay::begin(history, first, manifest, &fold, Wish::default(), progress.clone());
                from = first.base.seq + 1;
                folding = Folding::On(Box::new(replay));
            }
            Err(fault) if fault.kind == Kind::Corrupt => {}
            Err(fault) => return Err(fault),
        }
    }
    let deep = Deep { token, folds_from: from, own: history.line().parts().len() - 1, folding, changes: 0, wrong: Vec::new() };
    let deep = if history.branch.head.seq == 0 {
        deep
    } else {
        match history.read(Range { from_seq: 1, until, gaps: Gaps::Check }, deep, progress).await {
            Ok(deep) => deep,
            Err(fault) if fault.kind == Kind::Corrupt => {
                report.differs("history", fault.what);
                return Ok(());
            }
            Err(fault) => return Err(fault),
        }
    };
    for (place, what) in deep.wrong {
        report.differs(place, what);
    }
    if deep.changes != report.changes {
        report.differs("changes", format!("{} were decoded, rows say {}", deep.changes, report.changes));
    }
    match deep.folding {
        Folding::On(replay) => finish(*replay, report).await,
        Folding::Upto(replay, what) => {
            report.notes.push(format!("folded up to {what}: what is behind it cannot be checked this way"));
            finish(*replay, report).await
        }
        Folding::Given => Ok(()),
    }
}

/// What was spilled meets its document only here.
async fn finish(replay: Replay, report: &mut VerifyReport) -> Result<()> {
    let folded = tokio::task::spawn_blocking(move || {
        let mut folded = replay.finish()?;
        while folded.documents.next_batch()?.is_some() {}
        Ok::<(), Fault>(())
    });
    match folded.await.map_err(|e| Fault::corrupt(format!("folding panicked: {e}")))? {
        Err(fault) if fault.kind == Kind::Corrupt => {
            report.differs("history", fault.what);
            Ok(())
        }
        other => other,
    }
}

/// Where the fold is.
enum Folding {
    On(Box<Replay>),
    /// At a gap or hole, of which the text tells.
    Upto(Box<Replay>, String),
    /// Never begun, or up: the reason is in the report.
    Given,
}

struct Deep {
    /// Seq and token of the base: where the segment behind it starts.
    token: Option<(u64, RawDocumentBuf)>,
    /// Changes before are in the base.
    folds_from: u64,
    /// The part of the line whose changes are counted: the branch's own.
    own: usize,
    folding: Folding,
    changes: u64,
    wrong: Vec<(String, String)>,
}

impl Consumer for Deep {
    fn segment(&mut self, loaded: &Loaded) -> Result<Flow> {
        let row = &loaded.row;
        let (mut raw, mut count, mut next) = (0, 0, row.first_seq);
        if row.kind == SegmentKind::Gap || row.holes > 0 {
            self.stop_folding(loaded);
        }
        loaded.each(|seq, change| {
            if seq != next {
                return Err(Fault::corrupt(format!("row seq:{seq} where seq:{next} was expected")));
            }
            if change.time < row.first_time || change.time > row.last_time {
                return Err(Fault::corrupt(format!("row seq:{seq} is of {}, outside of its segment's times", change.time)));
            }
            next += 1;
            count += 1;
            raw += change.raw_bytes();
            self.fold(loaded, seq, change)?;
            Ok(Flow::Continue)
        })?;
        if loaded.part == self.own {
            self.changes += count;
        }
        let Some(file) = &loaded.file else { return Ok(Flow::Continue) };
        if self.token.as_ref().is_some_and(|(seq, token)| row.first_seq == seq + 1 && *token != file.start_token) {
            self.wrong.push((row.key.clone(), "its start token is not the token of the base".into()));
        }
        // All of a gap is one hole; its object has no rows to count.
        let holes = if row.kind == SegmentKind::Gap { 0 } else { row.holes };
        let said = (count, raw, row.raw_bytes, holes, row.has_ddl);
        let summary = file.summary;
        // Of a segment that goes on behind a fork, or begins before the line, only a part was read.
        let whole = (loaded.first, loaded.last) == (row.first_seq, row.last_seq);
        if whole && said != (summary.changes, summary.raw_bytes, summary.raw_bytes, summary.holes, summary.has_ddl) {
            let what = format!(
                "{count} changes and {raw} bytes, its footer says {summary:?}, its row {} bytes, {holes} holes, DDL {}",
                row.raw_bytes, row.has_ddl
            );
            self.wrong.push((row.key.clone(), what));
        }
        Ok(Flow::Continue)
    }
}

impl Deep {
    fn stop_folding(&mut self, at: &Loaded) {
        let what = if at.row.kind == SegmentKind::Gap { "the gap" } else { "the holes" };
        self.folding = match std::mem::replace(&mut self.folding, Folding::Given) {
            Folding::On(replay) => Folding::Upto(replay, format!("{what} at seq:{}..{}", at.row.first_seq, at.row.last_seq)),
            other => other,
        };
    }

    /// A change that does not fit ends the fold, not the reading.
    fn fold(&mut self, loaded: &Loaded, seq: u64, change: &ChangeRef<'_>) -> Result<()> {
        let Folding::On(replay) = &mut self.folding else { return Ok(()) };
        if seq < self.folds_from {
            return Ok(());
        }
        match replay.apply(loaded.part, seq, change) {
            Ok(_) => Ok(()),
            Err(fault) if fault.kind == Kind::Corrupt => {
                self.wrong.push((loaded.row.key.clone(), fault.what));
                self.folding = Folding::Given;
                Ok(())
            }
            Err(fault) => Err(fault),
        }
    }
}
