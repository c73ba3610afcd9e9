//! Owns: the line of a branch: its own history and that of the branches it was forked from, as one sequence of seqs, with the bases that a fold of it may
//! start from, and the stretches of it that can be restored. Reads metadata only.
//! Does not own: points (`history::locate`), objects (`history`).
//!
//! A child's own changes start right behind the fork (correctness.md 18), so seqs are unambiguous along a line, and what is shared is read where it is.

use super::point::{Point, captured_until};
use crate::change::{ClusterTime, token_time};
use crate::fault::{Fault, Result};
use crate::ledger::{Base, BaseOrigin, BaseState, Branch, Capture, Ends, Ledger, SegmentRow};

/// Forks of forks; more are a cycle or a mistake.
const MAX_DEPTH: usize = 1_000;

/// What one branch holds of a line.
#[derive(Debug, Clone)]
pub struct Part {
    pub branch: Branch,
    /// First seq of it; the branch's own.
    pub first: u64,
    /// Last seq: the fork of the next part, or the head. Below `first` where there is none.
    pub last: u64,
    /// Every change of its source up to this time is in it or after its end.
    pub until: ClusterTime,
}

/// A base and the part it is of.
#[derive(Debug, Clone)]
pub struct Based {
    pub base: Base,
    pub part: usize,
}

/// A line as it was when it was read.
#[derive(Debug, Clone)]
pub struct Line {
    /// From the oldest ancestor to the branch itself; never empty.
    parts: Vec<Part>,
    /// That can be used at some point of the line, by part and seq.
    bases: Vec<Based>,
    pub capture: Option<Capture>,
    /// Every change up to this time is committed.
    pub captured_until: Option<ClusterTime>,
}

/// A stretch that can be restored without crossing a loss.
#[derive(Debug, Clone, PartialEq)]
pub struct Stretch {
    pub from: Point,
    /// At the end of a transaction.
    pub to: u64,
    /// What ends it, where it is not the head.
    pub loss: Option<SegmentRow>,
}

impl Line {
    /// Of a branch by name or id.
    pub async fn open(ledger: &dyn Ledger, name: &str) -> Result<Self> {
        let missing = || Fault::missing(format!("there is no branch {name:?}"));
        let branch = match ledger.branch_named(name).await? {
            Some(branch) => branch,
            None => ledger.branch(name).await?.ok_or_else(missing)?,
        };
        // Whatever moves on between these looks: a head that is older than the position only makes less known.
        let (capture, bases) = tokio::try_join!(ledger.capture_of(&branch.id), ledger.bases(&branch.id))?;
        let position = match &capture {
            Some(c) => Some((token_time(&c.position.token)?, c.position.next_seq)),
            None => None,
        };
        let forked = branch.parent.as_ref().map(|parent| parent.time);
        let captured_until = captured_until(position, branch.head.seq, branch.head.time, None).max(forked);
        let mut line = Self { parts: Vec::new(), bases: Vec::new(), capture, captured_until };
        line.climb(ledger, branch, bases).await?;
        Ok(line)
    }

    /// Collects the parts, from the branch up to the one without a parent.
    async fn climb(&mut self, ledger: &dyn Ledger, branch: Branch, own: Vec<Base>) -> Result<()> {
        let (mut last, mut until) = (branch.head.seq, self.captured_until.unwrap_or_default());
        let mut next = Some(branch);
        while let Some(branch) = next.take() {
            if self.parts.len() >= MAX_DEPTH {
                return Err(Fault::corrupt(format!("branch {} has more than {MAX_DEPTH} ancestors", branch.name)));
            }
            let parent = branch.parent.clone();
            self.parts.push(Part { first: branch.first_own_seq(), last, until, branch });
            if let Some(parent) = parent {
                let found = ledger.branch(&parent.id).await?;
                next = Some(found.ok_or_else(|| Fault::corrupt(format!("branch {} is gone, a branch was forked from it", parent.id)))?);
                (last, until) = (parent.seq, parent.time);
            }
        }
        self.parts.reverse();
        let mut own = Some(own);
        for (n, part) in self.parts.iter().enumerate() {
            let usable = |base: &Base| base.state == BaseState::Complete && base.seq <= part.last && base.seq + 1 >= part.first;
            // A child goes on where it was forked: what of its ancestor became restorable later is not in its line.
            let in_time = |base: &Base| n + 1 == self.parts.len() || base.consistent_at <= part.until;
            let is_own = n + 1 == self.parts.len();
            let bases = match own.take_if(|_| is_own) {
                Some(own) => own,
                None => ledger.bases(&part.branch.id).await?,
            };
            self.bases.extend(bases.into_iter().filter(|b| usable(b) && in_time(b)).map(|base| Based { base, part: n }));
        }
        Ok(())
    }

    pub fn parts(&self) -> &[Part] {
        &self.parts
    }

    /// The branch itself.
    pub fn own(&self) -> &Part {
        // Never empty, since `open` is the only way to make one.
        &self.parts[self.parts.len() - 1]
    }

    pub fn bases(&self) -> &[Based] {
        &self.bases
    }

    /// Last seq of the line.
    pub fn head(&self) -> u64 {
        self.own().last
    }

    /// The part that holds a change; for 0 the first one.
    pub fn part_of(&self, seq: u64) -> usize {
        self.parts.iter().rposition(|part| part.first <= seq.max(1)).unwrap_or(0)
    }

    /// Bytes of history and of the bases: what a fold may have to hold.
    pub fn raw_bytes(&self) -> u64 {
        let bases = self.bases.iter().map(|b| b.base.raw_bytes).max().unwrap_or(0);
        self.parts.iter().map(|part| part.branch.totals.raw_bytes).sum::<u64>() + bases
    }

    /// The first segment at or after `seq` of which something is lost.
    pub async fn loss_after(&self, ledger: &dyn Ledger, seq: u64) -> Result<Option<SegmentRow>> {
        for part in self.parts.iter().filter(|part| part.last > seq && part.first <= part.last) {
            let lost = ledger.losses(&part.branch.id, part.first.max(seq + 1), 1).await?.into_iter().next();
            if let Some(row) = lost.filter(|row| row.first_seq <= part.last) {
                return Ok(Some(row));
            }
        }
        Ok(None)
    }

    /// What can be restored, from the oldest on.
    pub async fn stretches(&self, ledger: &dyn Ledger) -> Result<Vec<Stretch>> {
        let mut all: Vec<Stretch> = Vec::new();
        for based in &self.bases {
            let base = &based.base;
            // A base inside a stretch begins no other one: most branches have one stretch and many bases.
            if all.last().is_some_and(|last| last.loss.as_ref().is_none_or(|loss| base.seq < loss.first_seq)) {
                continue;
            }
            let loss = self.loss_after(ledger, base.seq).await?;
            let known = if based.part + 1 < self.parts.len() { Some(self.parts[based.part].until) } else { self.captured_until };
            if base.origin == BaseOrigin::Copy && known.is_none_or(|known| known < base.consistent_at) {
                continue;
            }
            let to = match &loss {
                Some(row) => self.boundary(ledger, row.first_seq - 1, !row.starts_inside).await?,
                None => {
                    let closed = self.captured_until.is_some_and(|until| until >= self.own().branch.head.time);
                    self.boundary(ledger, self.head(), closed).await?
                }
            };
            let from = match base.origin {
                BaseOrigin::Empty => Point::Seq(u64::from(to > 0)),
                BaseOrigin::Fold => Point::Seq(base.seq),
                BaseOrigin::Copy => Point::Time(base.consistent_at),
            };
            // The loss came while it was being read: no point of it is whole.
            let lost_at_once = base.origin == BaseOrigin::Copy && loss.as_ref().is_some_and(|row| row.first_time <= base.consistent_at);
            if lost_at_once || all.last().is_some_and(|last| last.to == to && last.loss == loss) {
                continue;
            }
            all.push(Stretch { from, to, loss });
        }
        Ok(all)
    }

    /// The last end of a transaction at or before `end` that rows prove, or `end` itself where it is `closed` (correctness.md 6). Without reading
    /// objects it may be a segment short of what a restore finds, never past it.
    async fn boundary(&self, ledger: &dyn Ledger, mut end: u64, mut closed: bool) -> Result<u64> {
        while end > 0 && !closed {
            let part = &self.parts[self.part_of(end)];
            if part.last == end && end != self.head() {
                break; // a fork is at a boundary
            }
            let Some(row) = ledger.segments(&part.branch.id, end, 1).await?.into_iter().next() else { break };
            if row.last_seq == end && row.ends == Ends::Closed {
                break;
            }
            // What is before a segment that does not start inside a transaction is closed.
            closed = !row.starts_inside;
            end = row.first_seq.saturating_sub(1).min(end);
        }
        Ok(end)
    }
}
