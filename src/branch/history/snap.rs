//! Owns: snapping a seq down to the end of a transaction (correctness.md 6).
//! Does not own: points (`point`), reading (`history`).

use std::sync::Arc;

use bson::{RawDocument, RawDocumentBuf};

use super::{Consumer, History, Loaded, Progress, Range};
use crate::branch::fold::Flow;
use crate::branch::point::Bound;
use crate::change::ClusterTime;
use crate::fault::Result;
use crate::ledger::Ends;

/// A boundary at or before what was asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Snapped {
    pub(super) seq: u64,
    /// Time of the change after what was asked for, if there is one.
    pub(super) next_time: Option<ClusterTime>,
}

/// Reads from the segment that holds the start of the change's transaction to the change after it.
pub(super) async fn snap(history: &History, want: u64) -> Result<Snapped> {
    if want == 0 {
        let first = history.ledger.segments(&history.branch.id, 1, 1).await?.into_iter().next();
        return Ok(Snapped { seq: 0, next_time: first.filter(|row| row.first_seq == 1).map(|row| row.first_time) });
    }
    let mut from = want;
    // Back to a segment that does not start inside a transaction.
    while let Some(row) = history.ledger.segments(&history.branch.id, from, 1).await?.into_iter().next() {
        from = row.first_seq;
        if !row.starts_inside || row.first_seq <= 1 {
            break;
        }
        from -= 1;
    }
    let closed_by_time = history.captured_until.is_some_and(|until| history.branch.head.time <= until);
    let range = Range { from_seq: from.max(1), until: Bound::Seq(want.saturating_add(1)), across_gap: true };
    let scan = history.read(range, Scan::new(want), Arc::new(Progress::default())).await?;
    Ok(scan.finish(closed_by_time))
}

/// Follows transactions row by row.
#[derive(Debug)]
struct Scan {
    want: u64,
    /// Highest boundary at or before `want` that is known.
    boundary: Option<u64>,
    last: Option<(u64, Option<RawDocumentBuf>)>,
    ends: Ends,
    next_time: Option<ClusterTime>,
}

impl Scan {
    fn new(want: u64) -> Self {
        Self { want, boundary: None, last: None, ends: Ends::Unknown, next_time: None }
    }

    /// One change: between two changes of different transactions, or beside one that is in none, there is a boundary.
    fn row(&mut self, seq: u64, txn: Option<&RawDocument>, time: ClusterTime) -> Flow {
        let goes_on = match (&self.last, txn) {
            (Some((_, Some(last))), Some(txn)) => last.as_bytes() == txn.as_bytes(),
            _ => false,
        };
        if !goes_on {
            self.boundary = Some(seq - 1);
        }
        if seq > self.want {
            self.next_time = Some(time);
            return Flow::Done;
        }
        self.last = Some((seq, txn.map(RawDocument::to_owned)));
        Flow::Continue
    }

    /// `closed_by_time`: a token later than the head has been seen, so the head's transaction is over.
    fn finish(self, closed_by_time: bool) -> Snapped {
        let (last, in_txn) = self.last.map_or((0, false), |(seq, txn)| (seq, txn.is_some()));
        let at_end = self.next_time.is_none();
        let closed = at_end && (!in_txn || self.ends == Ends::Closed || (self.ends != Ends::Open && closed_by_time));
        let seq = if closed { last } else { self.boundary.unwrap_or(0) };
        Snapped { seq: seq.min(self.want), next_time: self.next_time }
    }
}

impl Consumer for Scan {
    fn segment(&mut self, loaded: &Loaded) -> Result<Flow> {
        self.ends = loaded.row.ends;
        if loaded.file.is_none() {
            // A gap has no rows; what is after it starts anew.
            let (first, last) = (loaded.row.first_seq, loaded.row.last_seq);
            self.boundary = Some(if last <= self.want { last } else { first - 1 });
            if last > self.want {
                self.next_time = Some(loaded.row.first_time);
                return Ok(Flow::Done);
            }
            self.last = Some((last, None));
            return Ok(Flow::Continue);
        }
        loaded.each(|seq, change| Ok(self.row(seq, change.txn, change.time)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use bson::rawdoc;

    /// Transactions by letter, `.` for changes outside of one.
    fn snapped(history: &str, want: u64, ends: Ends, closed_by_time: bool) -> u64 {
        let mut scan = Scan { ends, ..Scan::new(want) };
        for (i, letter) in history.chars().enumerate() {
            let txn = (letter != '.').then(|| rawdoc! {"lsid": letter.to_string(), "txnNumber": 1_i64});
            if scan.row(i as u64 + 1, txn.as_deref(), ClusterTime { t: 1, i: 1 }) == Flow::Done {
                break;
            }
        }
        scan.finish(closed_by_time).seq
    }

    #[test]
    fn rule_6_a_seq_snaps_down_to_the_end_of_a_transaction() {
        let cases = [
            ("....", 2, 2),
            ("aabb.", 1, 0),
            ("aabb.", 2, 2),
            ("aabb.", 3, 2),
            ("aabb.", 4, 4),
            (".aaa.", 3, 1),
            (".aaa.", 4, 4),
            ("aaaa", 3, 0),
        ];
        for (history, want, expected) in cases {
            assert_eq!(snapped(history, want, Ends::Unknown, false), expected, "{history} at {want}");
        }
    }

    #[test]
    fn rule_6_the_end_of_history_counts_only_if_the_transaction_is_known_to_be_over() {
        let cases = [
            ("..", Ends::Unknown, false, 2),
            (".aa", Ends::Unknown, false, 1),
            (".aa", Ends::Unknown, true, 3),
            (".aa", Ends::Closed, false, 3),
            (".aa", Ends::Open, true, 1),
            ("aa", Ends::Open, true, 0),
        ];
        for (history, ends, by_time, expected) in cases {
            assert_eq!(snapped(history, history.len() as u64, ends, by_time), expected, "{history} {ends:?} {by_time}");
        }
    }
}
