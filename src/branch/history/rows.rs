//! Owns: the rows of a stretch of a line, page by page and part by part, checked to be dense and of epochs that do not go back (correctness.md 20).
//! Does not own: what is in their objects (`load`).

use std::collections::VecDeque;

use super::{Gaps, History};
use crate::fault::{Fault, Result};
use crate::ledger::{SegmentKind, SegmentRow};

/// Rows per page of the ledger.
const PAGE: usize = 500;

/// A row and what of it is wanted.
#[derive(Debug, Clone)]
pub(super) struct Wanted {
    pub(super) row: SegmentRow,
    /// Seqs, both inclusive: a segment may begin before the stretch, or go on behind a fork.
    pub(super) first: u64,
    pub(super) last: u64,
    /// The part of the line it is of.
    pub(super) part: usize,
}

pub(super) struct Rows<'a> {
    history: &'a History,
    until: u64,
    gaps: Gaps,
    page: VecDeque<SegmentRow>,
    next_seq: u64,
    part: usize,
    epoch: u64,
    /// Nothing of the part has been read: its first segment may begin before.
    first: bool,
}

impl<'a> Rows<'a> {
    pub(super) fn new(history: &'a History, from_seq: u64, until: u64, gaps: Gaps) -> Self {
        let next_seq = from_seq.max(1);
        let part = history.line.part_of(next_seq);
        Self { history, until: until.min(history.line.head()), gaps, page: VecDeque::new(), next_seq, part, epoch: 0, first: true }
    }

    pub(super) async fn next(&mut self) -> Result<Option<Wanted>> {
        if self.gaps == Gaps::Ddl {
            return self.next_ddl().await;
        }
        if self.next_seq > self.until {
            return Ok(None);
        }
        let part = self.history.line.part_of(self.next_seq);
        if part != self.part {
            (self.part, self.epoch, self.first) = (part, 0, false);
            self.page.clear();
        }
        let of = &self.history.line.parts()[part];
        if self.page.is_empty() {
            self.page = self.history.ledger.segments(&of.branch.id, self.next_seq, PAGE).await?.into();
        }
        let name = &of.branch.name;
        let hole = |what: String| Err(Fault::corrupt(format!("history of {name} is not dense: {what}")));
        let Some(row) = self.page.pop_front() else {
            return hole(format!("no segment holds seq:{}, but it should go on to seq:{}", self.next_seq, of.last));
        };
        let fits = if self.first { row.first_seq <= self.next_seq } else { row.first_seq == self.next_seq };
        if !fits || row.last_seq < row.first_seq || row.last_seq < self.next_seq {
            return hole(format!("after seq:{} comes {} with seq:{}..{}", self.next_seq - 1, row.key, row.first_seq, row.last_seq));
        }
        if row.epoch < self.epoch {
            return hole(format!("{} is of epoch {}, after epoch {}", row.key, row.epoch, self.epoch));
        }
        self.check_whole(name, &row)?;
        let (first, last) = (self.next_seq, row.last_seq.min(of.last).min(self.until));
        (self.next_seq, self.epoch, self.first) = (row.last_seq.min(of.last) + 1, row.epoch, false);
        Ok(Some(Wanted { row, first, last, part }))
    }

    /// Those that change the catalogue alone, so there is nothing to say of what is between them.
    async fn next_ddl(&mut self) -> Result<Option<Wanted>> {
        while self.next_seq <= self.until {
            let part = self.history.line.part_of(self.next_seq);
            let of = &self.history.line.parts()[part];
            if part != self.part || self.first {
                (self.part, self.first) = (part, false);
                self.page.clear();
            }
            if self.page.is_empty() {
                self.page = self.history.ledger.ddl_segments(&of.branch.id, self.next_seq, PAGE).await?.into();
            }
            match self.page.pop_front().filter(|row| row.first_seq <= of.last) {
                Some(row) => {
                    let (first, last) = (self.next_seq.max(row.first_seq), row.last_seq.min(of.last).min(self.until));
                    if first > self.until {
                        return Ok(None);
                    }
                    self.next_seq = row.last_seq.min(of.last) + 1;
                    return Ok(Some(Wanted { row, first, last, part }));
                }
                None => self.next_seq = of.last.max(self.next_seq) + 1,
            }
        }
        Ok(None)
    }

    /// Refuses what is lost, where that is not accepted.
    fn check_whole(&self, name: &str, row: &SegmentRow) -> Result<()> {
        if self.gaps != Gaps::Refuse || row.holes == 0 {
            return Ok(());
        }
        if row.kind == SegmentKind::Gap {
            let (first, last) = (row.first_seq, row.last_seq);
            return Err(Fault::rejected(format!(
                "history of {name} has a gap at seq:{first}..{last} ({}); --across-gap goes on without it",
                row.key
            )));
        }
        let (holes, key) = (row.holes, &row.key);
        Err(Fault::rejected(format!("{key} has {holes} changes that this version cannot apply; --across-gap goes on without them")))
    }
}
