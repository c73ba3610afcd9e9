//! Owns: snapping a seq down to the end of a transaction (correctness.md 6).
//! Does not own: points (`point`), reading (`history`).

use std::sync::Arc;

use bson::{RawDocument, RawDocumentBuf};

use super::{Consumer, Gaps, History, Loaded, Located, Progress, Range};
use crate::branch::fold::Flow;
use crate::branch::point::Bound;
use crate::change::ClusterTime;
use crate::fault::Result;
use crate::ledger::{Ends, SegmentKind, SegmentRow};

/// Reads from the segment that holds the start of the change's transaction to the change after it.
pub(super) async fn snap(history: &History, want: u64) -> Result<Located> {
    let part = history.line.part_of(want);
    let of = &history.line.parts()[part];
    if want < of.first {
        let first = history.ledger.segments(&of.branch.id, of.first, 1).await?.into_iter().next();
        let next_time = first.filter(|row| row.first_seq == of.first && of.first <= of.last).map(|row| row.first_time);
        return Ok(Located { seq: want, time: of.branch.parent.as_ref().map(|fork| fork.time), next_time });
    }
    let mut from = want;
    // Back to a segment that does not start inside a transaction.
    while let Some(row) = history.ledger.segments(&of.branch.id, from, 1).await?.into_iter().next() {
        from = row.first_seq;
        if !row.starts_inside || row.first_seq <= of.first {
            break;
        }
        from -= 1;
    }
    let closed_by_time = history.captured_until.is_some_and(|until| history.branch.head.time <= until);
    let range = Range { from_seq: from.max(of.first), until: Bound::Seq(want.saturating_add(1).min(of.last)), gaps: Gaps::Cross };
    let scan = history.read(range, Scan::new(want), Arc::new(Progress::default())).await?;
    Ok(scan.finish(closed_by_time))
}

/// An end of a transaction, with the times of the changes on both sides of it where they are known.
type Boundary = (u64, Option<ClusterTime>, Option<ClusterTime>);

/// Follows transactions row by row.
#[derive(Debug)]
struct Scan {
    want: u64,
    /// Highest boundary at or before `want` that is known.
    boundary: Option<Boundary>,
    last: Option<(u64, Option<RawDocumentBuf>, ClusterTime)>,
    /// The segment that is read starts in the transaction that a gap before it has cut.
    inside: bool,
    ends: Ends,
    next_time: Option<ClusterTime>,
}

impl Scan {
    fn new(want: u64) -> Self {
        Self { want, boundary: None, last: None, inside: false, ends: Ends::Unknown, next_time: None }
    }

    /// One change: between two changes of different transactions, or beside one that is in none, there is a boundary.
    fn row(&mut self, seq: u64, txn: Option<&RawDocument>, time: ClusterTime) -> Flow {
        let goes_on = match (&self.last, txn) {
            (Some((_, Some(last), _)), Some(txn)) => last.as_bytes() == txn.as_bytes(),
            _ => false,
        };
        let inside = std::mem::take(&mut self.inside);
        if !goes_on && !inside {
            self.boundary = Some((seq - 1, self.last.as_ref().map(|last| last.2), Some(time)));
        }
        if seq > self.want {
            self.next_time = Some(time);
            return Flow::Done;
        }
        self.last = Some((seq, txn.map(RawDocument::to_owned), time));
        Flow::Continue
    }

    /// `closed_by_time`: a token later than the head has been seen, so the head's transaction is over.
    fn finish(self, closed_by_time: bool) -> Located {
        let (last, in_txn, time) = self.last.map_or((0, false, None), |(seq, txn, time)| (seq, txn.is_some(), Some(time)));
        let at_end = self.next_time.is_none();
        let closed = at_end && (!in_txn || self.ends == Ends::Closed || (self.ends != Ends::Open && closed_by_time));
        let (seq, time, next_time) = if closed { (last, time, None) } else { self.boundary.unwrap_or_default() };
        Located { seq: seq.min(self.want), time, next_time }
    }

    /// A gap has no rows to compare: its flags say where boundaries are.
    fn gap(&mut self, row: &SegmentRow) -> Flow {
        if !row.starts_inside {
            self.boundary = Some((row.first_seq - 1, self.last.as_ref().map(|last| last.2), Some(row.first_time)));
        }
        if row.last_seq > self.want {
            self.next_time = Some(row.first_time);
            return Flow::Done;
        }
        if row.ends == Ends::Closed {
            self.boundary = Some((row.last_seq, Some(row.last_time), None));
        }
        // A lost transaction that may be open, as far as the end of history is concerned.
        self.last = Some((row.last_seq, (row.ends != Ends::Closed).then(RawDocumentBuf::new), row.last_time));
        Flow::Continue
    }
}

impl Consumer for Scan {
    fn segment(&mut self, loaded: &Loaded) -> Result<Flow> {
        let row = &loaded.row;
        self.ends = row.ends;
        if row.kind == SegmentKind::Gap {
            return Ok(self.gap(row));
        }
        self.inside = row.starts_inside;
        loaded.each(|seq, change| Ok(self.row(seq, change.txn, change.time)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::branch::testing::Bed;
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

    #[tokio::test]
    async fn rule_6_a_gap_is_no_boundary_where_it_cuts_a_transaction() {
        // Segments by their transactions, kept or lost; `want` and what it snaps to.
        type Segments = &'static [(&'static str, bool, Ends)];
        let cases: [(Segments, &[(u64, u64)]); 5] = [
            // The gap begins inside of a transaction.
            (
                &[(".aa", true, Ends::Open), ("aa", false, Ends::Closed), ("..", true, Ends::Closed)],
                &[(1, 1), (2, 1), (3, 1), (4, 1), (5, 5), (6, 6)],
            ),
            // It ends inside of one, known and unknown.
            (
                &[("..", true, Ends::Closed), (".b", false, Ends::Open), ("b..", true, Ends::Closed)],
                &[(2, 2), (3, 2), (4, 2), (5, 5), (6, 6)],
            ),
            (&[("..", true, Ends::Closed), (".b", false, Ends::Unknown), ("bb.", true, Ends::Closed)], &[(4, 2), (5, 2), (6, 6)]),
            // Not known at first, but the next one begins anew; that one may be open at the end of history.
            (&[("..", true, Ends::Closed), (".b", false, Ends::Unknown), ("c", true, Ends::Unknown)], &[(3, 2), (4, 4), (5, 4)]),
            // Two gaps in a row, and nothing behind them.
            (
                &[("..", true, Ends::Closed), (".b", false, Ends::Open), ("b.c", false, Ends::Unknown)],
                &[(2, 2), (4, 2), (5, 2), (6, 2), (7, 2)],
            ),
        ];
        for (segments, wanted) in cases {
            let mut bed = Bed::new().await;
            for (history, kept, ends) in segments {
                if *kept {
                    bed.add(history, *ends).await;
                } else {
                    bed.lose(history, *ends).await;
                }
            }
            let history = bed.history().await;
            for (want, expected) in wanted {
                assert_eq!(snap(&history, *want).await.unwrap().seq, *expected, "{segments:?} at {want}");
            }
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
