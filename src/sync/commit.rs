//! Commit: commits that wait together go together, one transaction per branch.
//!
//! Owns: grouping. Does not own: the transaction (`ledger`), what a lost lease means (`pool`).
//! There is no timer: while one transaction is in flight the next group gathers, so an idle engine commits at once and a
//! busy one in groups.

use tokio::sync::oneshot;

use crate::fault::{Fault, Result};
use crate::ledger::{Committed, SegmentCommit, SharedLedger};
use crate::runtime::clock;
use crate::runtime::link::{LinkRx, LinkTx};
use crate::telemetry::meters::{LinkName, Meters, Stage};

/// Waiting commits: every worker has at most one, so this never fills.
const WAITING: usize = 64;
/// Commits of one transaction: keeps it far below the server's limits of time and size.
const GROUP: usize = 32;

type Answer = oneshot::Sender<Result<Committed>>;

/// Hands commits to the committer.
#[derive(Debug, Clone)]
pub struct CommitHandle(LinkTx<(SegmentCommit, Answer)>);

impl CommitHandle {
    /// Commits and waits for the outcome. `Unknown` outcomes may be repeated: the ledger recognises its own commit.
    pub async fn commit(&self, commit: SegmentCommit) -> Result<Committed> {
        let (tx, rx) = oneshot::channel();
        let gone = || Fault::cancelled("the committer has stopped");
        self.0.send((commit, tx)).await.map_err(|_| gone())?;
        rx.await.map_err(|_| gone())?
    }
}

/// The stage; ends when the last handle is gone.
#[derive(Debug)]
pub struct Committer {
    ledger: SharedLedger,
    inbox: LinkRx<(SegmentCommit, Answer)>,
    meters: Meters,
}

impl Committer {
    /// A committer and its handle.
    pub fn new(ledger: SharedLedger, meters: &Meters) -> (Self, CommitHandle) {
        let (tx, inbox) = meters.link(LinkName::Commits).link(WAITING);
        (Self { ledger, inbox, meters: meters.clone() }, CommitHandle(tx))
    }

    /// Serves until every handle is gone.
    pub async fn run(mut self) {
        let mut waiting: Vec<(SegmentCommit, Answer)> = Vec::new();
        loop {
            if waiting.is_empty() {
                match self.inbox.recv().await {
                    Some(first) => waiting.push(first),
                    None => return,
                }
            }
            while waiting.len() < WAITING
                && let Some(next) = self.inbox.try_recv()
            {
                waiting.push(next);
            }
            // Whoever has stopped waiting has given its lease back, or lost it.
            waiting.retain(|(_, answer)| !answer.is_closed());
            let group = take_group(&mut waiting);
            if !group.is_empty() {
                self.step(group).await;
            }
        }
    }

    async fn step(&self, group: Vec<(SegmentCommit, Answer)>) {
        let (commits, answers): (Vec<_>, Vec<_>) = group.into_iter().unzip();
        let began = clock::now();
        let outcome = self.ledger.commit(&commits).await;
        let now = |(commit, one): (&SegmentCommit, &Committed)| {
            if *one == Committed::Now { commit.segment.changes() } else { 0 }
        };
        let changes = outcome.as_ref().map_or(0, |all| commits.iter().zip(all).map(now).sum());
        self.meters.stage(Stage::Commit).done(began.elapsed(), changes, 0);
        for (i, answer) in answers.into_iter().enumerate() {
            let one = match &outcome {
                Ok(all) => all.get(i).copied().ok_or_else(|| Fault::unknown("the ledger answered fewer commits than asked")),
                Err(fault) => Err(fault.clone()),
            };
            // A worker that has stopped waiting gave its lease back; nobody needs the answer.
            let _ = answer.send(one);
        }
    }
}

/// The commits of the first one's branch, in order of arrival. Two attempts of one job go one after the other: the ledger refuses a call that
/// has both.
fn take_group(waiting: &mut Vec<(SegmentCommit, Answer)>) -> Vec<(SegmentCommit, Answer)> {
    let Some(branch) = waiting.first().map(|(c, _)| c.segment.branch.clone()) else { return Vec::new() };
    let mut group: Vec<(SegmentCommit, Answer)> = Vec::new();
    let mut rest = Vec::new();
    for item in waiting.drain(..) {
        let again = group.iter().any(|(c, _)| c.lease.id == item.0.lease.id || c.segment.key == item.0.segment.key);
        let fits = item.0.segment.branch == branch && group.len() < GROUP && !again;
        if fits { group.push(item) } else { rest.push(item) }
    }
    *waiting = rest;
    group
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ledger::{Ends, JobLease, SegmentKind, SegmentRow};

    fn commit(branch: &str, job: &str, attempt: u32) -> (SegmentCommit, Answer) {
        let segment = SegmentRow {
            key: format!("{branch}/{job}"),
            branch: branch.to_owned(),
            kind: SegmentKind::Changes,
            epoch: 1,
            level: 0,
            first_seq: 1,
            last_seq: 1,
            first_time: Default::default(),
            last_time: Default::default(),
            last_wall_ms: None,
            starts_inside: false,
            ends: Ends::Closed,
            has_ddl: false,
            holes: 0,
            raw_bytes: 1,
            stored_bytes: 1,
            sha256: String::new(),
            committed_ms: 0,
            filter: None,
        };
        let lease = JobLease { id: job.to_owned(), token: format!("{job}-{attempt}"), attempt };
        (SegmentCommit { lease, segment, payload_bytes: 1 }, oneshot::channel().0)
    }

    #[test]
    fn a_group_has_one_branch_and_each_job_once() {
        let mut waiting = vec![commit("a", "1", 1), commit("b", "2", 1), commit("a", "3", 1), commit("a", "1", 2)];
        let mut groups = Vec::new();
        while !waiting.is_empty() {
            groups.push(take_group(&mut waiting).into_iter().map(|(c, _)| c.lease.token).collect::<Vec<_>>());
        }
        assert_eq!(groups, [vec!["1-1", "3-1"], vec!["2-1"], vec!["1-2"]]);
    }
}
