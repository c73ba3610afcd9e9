//! Owns: which of the segments found in the bucket are the history of a branch, and why each of the others is not (correctness.md 20). Pure.
//! Does not own: reading them (`read`), the rows they become (`rows`).
//!
//! A segment follows another when its seqs, its start token and its epoch do. Of all such chains the one that reaches furthest is history: what was
//! committed was put before, and whatever follows on it to the last token was numbered by the same queue, so it is whole even where its commit is not
//! on record.
//!
//! SUBTLE: two segments with the same range and the same tokens are the changes of a batch and the gap that was put when its job was given up. Whichever
//! the metadata had, the changes are what happened, checked by their own checksums: they count, and nothing is lost.

use std::cmp::Reverse;
use std::collections::BTreeMap;

use crate::branch::layout::SegmentName;
use crate::change::ClusterTime;
use crate::ledger::{Ends, SegmentKind, SegmentRow};

/// The first bytes of the SHA-256 of a resume token: tokens themselves may be megabytes.
pub(super) type TokenHash = [u8; 16];

/// Since when somebody numbers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Epoch {
    /// The seq from which on it hides older ones.
    pub(super) starts_at: u64,
    /// What history ended with, where that is on record.
    pub(super) after: Option<SegmentName>,
}

/// By number.
pub(super) type Epochs = BTreeMap<u64, Epoch>;

/// What a segment says of itself, in about 200 bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Found {
    pub(super) name: SegmentName,
    pub(super) kind: SegmentKind,
    pub(super) first_time: ClusterTime,
    pub(super) last_time: ClusterTime,
    pub(super) last_wall_ms: Option<i64>,
    pub(super) starts_inside: bool,
    pub(super) ends: Ends,
    pub(super) has_ddl: bool,
    pub(super) holes: u64,
    pub(super) raw_bytes: u64,
    pub(super) stored_bytes: u64,
    pub(super) sha256: [u8; 32],
    pub(super) start: TokenHash,
    pub(super) end: TokenHash,
}

impl Found {
    pub(super) fn row(&self, project: &str, branch: &str) -> SegmentRow {
        SegmentRow {
            key: self.name.key(project, branch),
            branch: branch.to_owned(),
            kind: self.kind,
            epoch: self.name.epoch,
            level: self.name.level,
            first_seq: self.name.first,
            last_seq: self.name.last,
            first_time: self.first_time,
            last_time: self.last_time,
            last_wall_ms: self.last_wall_ms,
            starts_inside: self.starts_inside,
            ends: self.ends,
            has_ddl: self.has_ddl,
            holes: self.holes,
            raw_bytes: self.raw_bytes,
            stored_bytes: self.stored_bytes,
            sha256: crate::branch::layout::hex(&self.sha256),
            // When it was committed is not in the bucket; it was soon after.
            committed_ms: self.last_wall_ms.unwrap_or(i64::from(self.last_time.t) * 1_000),
            // Lookups ask the object instead.
            filter: None,
        }
    }
}

/// Where history begins.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Start {
    pub(super) seq: u64,
    /// After this the first change comes, where the bucket says so.
    pub(super) token: Option<TokenHash>,
}

/// Why a segment is not used.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) enum Reason {
    /// An epoch that began before its end hides it.
    Hidden(u64),
    /// It lies before the seq at which its own epoch starts.
    BeforeEpoch,
    /// It lies before the first change of the branch.
    BeforeStart,
    /// Its range is another one's.
    Covered,
    /// It would come next, but not behind the token at which history ends.
    OtherToken,
    /// Something before it is missing: history ends at this seq.
    Behind(u64),
}

impl std::fmt::Display for Reason {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Hidden(epoch) => write!(f, "epoch {epoch} numbers these changes anew"),
            Self::BeforeEpoch => f.write_str("it lies before the start of its own epoch"),
            Self::BeforeStart => f.write_str("it lies before the first change of the branch"),
            Self::Covered => f.write_str("its range is another segment's, which history goes on from"),
            Self::OtherToken => f.write_str("it does not go on where history before it ends"),
            Self::Behind(head) => write!(f, "history ends at seq:{head}, what follows it is not in the bucket"),
        }
    }
}

/// The epoch that hides a segment: it begins before its end, or behind another one that ends there too.
fn hidden_by(name: &SegmentName, epochs: &Epochs) -> Option<u64> {
    let hides = |epoch: &Epoch| {
        let beside = |after: &SegmentName| after.last == name.last && after != name && after.level >= name.level;
        epoch.starts_at <= name.last || epoch.after.as_ref().is_some_and(beside)
    };
    let mut later = epochs.range(name.epoch.saturating_add(1)..);
    later.find(|(_, epoch)| hides(epoch)).map(|(n, _)| *n)
}

fn is_candidate(name: &SegmentName, start: Start, epochs: &Epochs) -> bool {
    hidden_by(name, epochs).is_none()
        && name.first >= start.seq
        && epochs.get(&name.epoch).is_none_or(|epoch| name.first >= epoch.starts_at)
}

/// Indexes of the chain, in order.
pub(super) fn choose(found: &[Found], start: Start, epochs: &Epochs) -> Vec<usize> {
    let mut order: Vec<usize> = (0..found.len()).filter(|i| is_candidate(&found[*i].name, start, epochs)).collect();
    order.sort_by_key(|i| found[*i].name.first);
    let beginning_at = |seq: u64| {
        let from = order.partition_point(|i| found[*i].name.first < seq);
        order[from..].iter().copied().take_while(move |i| found[*i].name.first == seq)
    };
    // How far history can go from each, and by which one next: from the end, so that what follows is known.
    let mut reach: Vec<(u64, Option<usize>)> = found.iter().map(|f| (f.name.last, None)).collect();
    for &i in order.iter().rev() {
        let of = &found[i];
        let Some(next) = of.name.last.checked_add(1) else { continue };
        let follows = |j: &usize| found[*j].start == of.end && found[*j].name.epoch >= of.name.epoch;
        if let Some(best) = beginning_at(next).filter(follows).max_by_key(|j| rank(&found[*j], reach[*j].0)) {
            reach[i] = (reach[best].0, Some(best));
        }
    }
    let fits = |i: &usize| start.token.is_none_or(|token| found[*i].start == token);
    let first = beginning_at(start.seq).filter(fits).max_by_key(|i| rank(&found[*i], reach[*i].0));
    std::iter::successors(first, |i| reach[*i].1).collect()
}

/// The greatest counts: what reaches furthest; changes before a gap; the later epoch; what is merged; the gap that loses less; at last anything that is always the same.
fn rank(of: &Found, reach: u64) -> impl Ord + use<> {
    (reach, of.kind == SegmentKind::Changes, of.name.epoch, of.name.level, Reverse(of.last_time), Reverse(of.name.hash))
}

/// Why a segment is not part of history that ends at `head`.
pub(super) fn why_not(name: &SegmentName, start: Start, head: u64, epochs: &Epochs) -> Reason {
    if let Some(epoch) = hidden_by(name, epochs) {
        return Reason::Hidden(epoch);
    }
    match name {
        name if name.first < start.seq => Reason::BeforeStart,
        name if epochs.get(&name.epoch).is_some_and(|epoch| name.first < epoch.starts_at) => Reason::BeforeEpoch,
        name if name.first <= head => Reason::Covered,
        name if name.first == head + 1 => Reason::OtherToken,
        _ => Reason::Behind(head),
    }
}

/// Whether a segment that cannot be read is missed: nothing else has its changes.
pub(super) fn is_missed(name: &SegmentName, start: Start, head: u64, epochs: &Epochs) -> bool {
    name.last > head && is_candidate(name, start, epochs)
}

#[cfg(test)]
#[path = "chain_tests.rs"]
mod tests;
