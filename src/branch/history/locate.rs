//! Owns: what a point means in a line: the seq up to which to read, at the end of a transaction, and the base to start from.
//! Does not own: the text of points and what `captured_until` allows (`point`), boundaries of transactions (`snap`).
//!
//! Every point becomes a seq. A time is looked for in the branch's own part first, then in those it was forked from (correctness.md 18): the clock of
//! another source may differ, and a fork says what is shared by seq.

use super::snap;
use super::{Flow, History};
use crate::branch::line::Based;
use crate::branch::point::{Bound, Known, Point};
use crate::change::ClusterTime;
use crate::fault::{Fault, Result};
use crate::ledger::{BaseOrigin, SegmentKind, SegmentRow};

/// A place in history: everything up to `seq` is before it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Located {
    pub seq: u64,
    /// Cluster time of change `seq`, where there is one and it was looked at.
    pub time: Option<ClusterTime>,
    /// Cluster time of the change after it.
    pub next_time: Option<ClusterTime>,
}

impl History {
    /// What a point is resolved against.
    pub fn known(&self) -> Known {
        Known { head: self.line.head(), captured_until: self.captured_until.unwrap_or_default(), retained_from: 1 }
    }

    /// How far to read for a point, checked against what is known and what can be restored, and snapped down to the end of a transaction
    /// (correctness.md 6).
    pub async fn resolve(&self, point: Point) -> Result<Bound> {
        Ok(Bound::Seq(self.restorable(point).await?.seq))
    }

    /// The same with the times around it.
    pub(in crate::branch) async fn restorable(&self, point: Point) -> Result<Located> {
        let at = self.locate(point).await?;
        match self.base_for(&at) {
            Some(_) => Ok(at),
            None => Err(self.no_base(point).await?),
        }
    }

    /// Where a point is, whether or not it can be restored.
    pub async fn locate(&self, point: Point) -> Result<Located> {
        match point.resolve(&self.known())? {
            Bound::Seq(seq) => self.snapped(seq).await,
            Bound::Time(time) => self.seq_at(time).await,
        }
    }

    async fn snapped(&self, seq: u64) -> Result<Located> {
        let part = &self.line.parts()[self.line.part_of(seq)];
        if seq == part.last && part.branch.id != self.branch.id {
            return Ok(Located { seq, time: Some(part.until), next_time: None }); // forks are at boundaries
        }
        snap::snap(self, seq).await
    }

    /// The last change at or before a time.
    pub(in crate::branch) async fn seq_at(&self, time: ClusterTime) -> Result<Located> {
        for (n, part) in self.line.parts().iter().enumerate().rev() {
            let first = match part.first <= part.last {
                true => self.ledger.segments(&part.branch.id, part.first, 1).await?.into_iter().next(),
                false => None,
            };
            if first.as_ref().is_some_and(|row| row.first_time <= time) {
                return self.seq_in(n, time).await;
            }
            let next_time = first.map(|row| row.first_time);
            match part.branch.parent.as_ref() {
                Some(fork) if fork.time > time => {}
                Some(fork) => return Ok(Located { seq: fork.seq, time: Some(fork.time), next_time }),
                // Before the first change: what was asked for is all that tells whether it is before the base too.
                None => return Ok(Located { seq: part.first - 1, time: Some(time), next_time }),
            }
        }
        Ok(Located { seq: 0, time: None, next_time: None })
    }

    /// Within one part, by halving: times only grow along it.
    async fn seq_in(&self, part: usize, time: ClusterTime) -> Result<Located> {
        let of = &self.line.parts()[part];
        let (mut low, mut high) = (of.first, of.last);
        let mut found: Option<SegmentRow> = None;
        while low <= high {
            let middle = low + (high - low) / 2;
            let row = self.ledger.segments(&of.branch.id, middle, 1).await?.into_iter().next();
            let row = row.ok_or_else(|| Fault::corrupt(format!("no segment of {} holds seq:{middle}", of.branch.name)))?;
            if row.last_time <= time {
                low = row.last_seq + 1;
            } else {
                high = row.first_seq - 1;
                found = Some(row);
            }
        }
        let Some(row) = found else { return Ok(Located { seq: of.last, time: Some(time.min(of.until)), next_time: None }) };
        if row.kind == SegmentKind::Gap && row.first_time <= time {
            let (first, last) = (row.first_time, row.last_time);
            let nearest = self.nearest().await?;
            return Err(Fault::rejected(format!("{time} is inside the gap from {first} to {last} at seq:{}: {nearest}", row.first_seq)));
        }
        if row.first_time > time {
            return Ok(Located { seq: row.first_seq - 1, time: None, next_time: Some(row.first_time) });
        }
        let loaded = self.segment_of(row, part).await?;
        tokio::task::spawn_blocking(move || {
            let mut at = Located { seq: loaded.row.first_seq - 1, time: None, next_time: None };
            loaded.each(|seq, change| {
                if change.time > time {
                    at.next_time = Some(change.time);
                    return Ok(Flow::Done);
                }
                (at.seq, at.time) = (seq, Some(change.time));
                Ok(Flow::Continue)
            })?;
            Ok(at)
        })
        .await
        .map_err(|e| Fault::corrupt(format!("decoding a segment panicked: {e}")))?
    }

    /// The latest base that a fold up to there may start from.
    pub fn base_for(&self, at: &Located) -> Option<&Based> {
        self.line.bases().iter().rev().find(|based| self.is_usable(based, at))
    }

    fn is_usable(&self, based: &Based, at: &Located) -> bool {
        let base = &based.base;
        if at.seq == 0 && at.time.is_some_and(|time| time < base.time) {
            return false;
        }
        if base.seq > at.seq || base.origin == BaseOrigin::Fold || based.part < self.line.part_of(at.seq) {
            return base.seq <= at.seq; // what is not of the last part is consistent before the fork
        }
        if let Some(next) = at.next_time {
            return next > base.consistent_at;
        }
        // At the end of what there is. Where nothing was copied only the catalogue could be of a later moment.
        base.origin == BaseOrigin::Empty
            || at.time.is_some_and(|time| time >= base.consistent_at)
            || self.captured_until.is_some_and(|until| until >= base.consistent_at)
    }

    /// Why a point cannot be restored, and which ones can.
    async fn no_base(&self, point: Point) -> Result<Fault> {
        let stretches = self.line.stretches(&*self.ledger).await?;
        let base = self.line.bases().first().map(|b| b.base.consistent_at);
        let why = match (base, stretches.is_empty()) {
            (None, _) => format!("{point} cannot be restored: the base of {} is still being copied", self.branch.name),
            (Some(base), true) => format!(
                "{point} cannot be restored yet: the base of {} is consistent from {base} on, history is known up to {}",
                self.branch.name,
                self.captured_until.unwrap_or_default()
            ),
            (Some(base), false) => format!("{point} is before the base at {base}: {}", self.nearest().await?),
        };
        Ok(Fault::rejected(why))
    }

    /// What can be restored instead.
    async fn nearest(&self) -> Result<String> {
        let stretches = self.line.stretches(&*self.ledger).await?;
        let list: Vec<String> = stretches.iter().map(|s| format!("{} to seq:{}", s.from, s.to)).collect();
        Ok(if list.is_empty() { "nothing can be restored yet".to_owned() } else { format!("what can be restored is {}", list.join(", ")) })
    }

    /// Refuses a fold from a base to a change that would have to cross what is lost.
    pub(in crate::branch) async fn refuse_loss(&self, based: &Based, until: u64) -> Result<()> {
        let Some(row) = self.line.loss_after(&*self.ledger, based.base.seq).await?.filter(|row| row.first_seq <= until) else {
            return Ok(());
        };
        let (first, last, key) = (row.first_seq, row.last_seq, &row.key);
        let what = match row.kind {
            SegmentKind::Gap => format!("a gap at seq:{first}..{last} ({key})"),
            _ => format!("{} changes at seq:{first}..{last} that this version cannot apply ({key})", row.holes),
        };
        let (name, nearest) = (&self.branch.name, self.nearest().await?);
        Err(Fault::rejected(format!("history of {name} has {what}: {nearest}; --across-gap goes on without what is lost")))
    }
}
