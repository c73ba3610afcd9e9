//! Owns: what operators wish of all engines at once: pauses and the size of every pool. Every engine polls them.
//! Does not own: obeying (`pool`, `engine`), except that a claim leaves out what is paused.

use std::collections::BTreeMap;
use std::time::Duration;

use super::{BranchId, JobKind};

/// What is paused.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum PauseTarget {
    /// Every kind.
    All,
    Kind(JobKind),
    /// The jobs of one branch. Its capture goes on: that has a state of its own.
    Branch(BranchId),
}

/// Who paused it, and when by server time.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PauseNote {
    pub by: String,
    pub at_ms: i64,
}

/// All pauses. Running jobs are not touched by any.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Pauses(pub BTreeMap<PauseTarget, PauseNote>);

impl Pauses {
    /// Whether jobs of this kind may be claimed.
    pub fn allows(&self, kind: JobKind) -> bool {
        !self.0.contains_key(&PauseTarget::All) && !self.0.contains_key(&PauseTarget::Kind(kind))
    }

    /// The kinds among these that may be claimed.
    pub fn open(&self, kinds: &[JobKind]) -> Vec<JobKind> {
        kinds.iter().copied().filter(|kind| self.allows(*kind)).collect()
    }

    /// The paused branches.
    pub fn branches(&self) -> impl Iterator<Item = &BranchId> {
        self.0.keys().filter_map(|target| match target {
            PauseTarget::Branch(id) => Some(id),
            PauseTarget::All | PauseTarget::Kind(_) => None,
        })
    }

    /// Whether this branch's jobs are held.
    pub fn holds_branch(&self, branch: &str) -> bool {
        self.branches().any(|id| id == branch)
    }
}

/// The size that every pool shall have. A wish is told from an older one by `at_ms`: an engine acts when it sees a new one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ScaleWish {
    pub target: u16,
    /// How long it still holds; `None` until it is released.
    pub left: Option<Duration>,
    pub by: String,
    pub at_ms: i64,
}

/// Everything that engines poll, in one read. A wish whose time is over is not in it.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Controls {
    pub pauses: Pauses,
    pub scale: Option<ScaleWish>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pause_holds_its_kind_or_all_or_a_branch() {
        let note = || PauseNote { by: "me".into(), at_ms: 1 };
        let mut pauses = Pauses::default();
        assert_eq!(pauses.open(&JobKind::ALL), JobKind::ALL);
        pauses.0.insert(PauseTarget::Kind(JobKind::Noop), note());
        pauses.0.insert(PauseTarget::Branch("b1".into()), note());
        assert_eq!(pauses.open(&[JobKind::Noop, JobKind::Sync]), [JobKind::Sync]);
        assert!(pauses.holds_branch("b1") && !pauses.holds_branch("b2") && !pauses.holds_branch(""));
        pauses.0.insert(PauseTarget::All, note());
        assert!(pauses.open(&JobKind::ALL).is_empty());
    }
}
