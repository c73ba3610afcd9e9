//! Commits and the head.

use std::time::Duration;

use argon::fault::Kind;
use argon::ledger::*;

use crate::bench::{Bench, commit, lease, time, wall};

const MS: Duration = Duration::from_millis(1);

pub(crate) async fn a_commit_does_everything_at_once(b: Bench) {
    let mut line = b.line("e1").await;
    let id = line.put(5).await;
    let job = b.claim("e1", 1).await.remove(0);
    assert_eq!(b.ledger.commit(&[]).await.unwrap(), []);
    let before = b.ledger.now_ms().await.unwrap();
    assert_eq!(b.ledger.commit(&[commit(&job)]).await.unwrap(), [Committed::Now]);
    let branch = b.branch(&line.branch).await;
    assert_eq!(branch.head, Head { seq: 5, time: time(5), wall_ms: Some(wall(5)) });
    assert_eq!(branch.totals, Totals { changes: 5, raw_bytes: 500, stored_bytes: 10, segments: 1 });
    assert_eq!(branch.settled_bytes, 1_500);
    let done = b.job(&id).await;
    assert_eq!((done.state, done.lease.clone(), done.attempt), (JobState::Done, None, 1));
    assert!(done.finished_ms.unwrap() >= before);
    assert_eq!(b.ledger.payload(&id).await.unwrap_err().kind, Kind::Missing);
    let rows = b.ledger.segments(&line.branch, 1, 9).await.unwrap();
    assert!(rows[0].committed_ms >= before);
    assert_eq!(rows, [SegmentRow { committed_ms: rows[0].committed_ms, filter: None, ..commit(&job).segment }]);
}

pub(crate) async fn commits_out_of_order_move_the_head_over_the_prefix_only(b: Bench) {
    let mut line = b.line("e1").await;
    for changes in [2, 3, 1, 4] {
        line.put(changes).await;
        b.pass(2 * MS).await;
    }
    let jobs = b.claim("e1", 9).await;
    let mut heads = Vec::new();
    for n in [3, 1, 0, 2] {
        assert_eq!(b.ledger.commit(&[commit(&jobs[n])]).await.unwrap(), [Committed::Now]);
        heads.push(b.branch(&line.branch).await.head.seq);
    }
    assert_eq!(heads, [0, 0, 5, 10]);
    assert_eq!(b.branch(&line.branch).await.totals.changes, 10);
}

pub(crate) async fn rule_23_commits_side_by_side_lose_no_update(b: Bench) {
    let mut line = b.line("e1").await;
    for _ in 0..40 {
        line.put(2).await;
    }
    let jobs = b.claim("e1", 40).await;
    assert_eq!(jobs.len(), 40);
    let tasks: Vec<_> = (0..8)
        .map(|n| {
            let ledger = b.ledger.clone();
            let mine: Vec<_> = jobs.iter().skip(n).step_by(8).map(commit).collect();
            tokio::spawn(async move {
                for pair in mine.chunks(2) {
                    assert!(ledger.commit(pair).await.unwrap().iter().all(|o| *o == Committed::Now));
                }
            })
        })
        .collect();
    for task in tasks {
        task.await.unwrap();
    }
    let branch = b.branch(&line.branch).await;
    assert_eq!(branch.head.seq, 80, "the head is safe whatever the order");
    assert_eq!(branch.totals, Totals { changes: 80, raw_bytes: 8_000, stored_bytes: 400, segments: 40 });
    assert_eq!(branch.settled_bytes, 40 * 1_500);
}

pub(crate) async fn a_commit_whose_answer_was_lost_is_already_done(b: Bench) {
    let mut line = b.line("e1").await;
    line.put(2).await;
    line.put(3).await;
    let jobs = b.claim("e1", 2).await;
    let commits: Vec<_> = jobs.iter().map(commit).collect();
    b.faulty.script(LedgerCall::Commit, Mishap::AnswerLost);
    assert_eq!(b.faulty.commit(&commits).await.unwrap_err().kind, Kind::Unknown);
    let branch = b.branch(&line.branch).await;
    assert_eq!(b.faulty.commit(&commits).await.unwrap(), [Committed::Already, Committed::Already]);
    assert_eq!(b.branch(&line.branch).await, branch, "nothing is counted twice");
    let mut stranger = commits[0].clone();
    stranger.lease.token = "stranger".to_owned();
    assert_eq!(b.ledger.commit(&[stranger]).await.unwrap(), [Committed::Fenced]);
}

pub(crate) async fn one_fenced_commit_does_not_stop_the_others(b: Bench) {
    let mut line = b.line("e1").await;
    for _ in 0..4 {
        line.put(1).await;
        b.pass(2 * MS).await;
    }
    let jobs = b.claim("e1", 4).await;
    let mut commits: Vec<_> = jobs.iter().map(commit).collect();
    assert_eq!(b.ledger.commit(&commits[..1]).await.unwrap(), [Committed::Now]);
    b.ledger.fail(&lease(&jobs[1]), &Failed::GiveBack { delay: Duration::ZERO, error: None }).await.unwrap();
    commits[3].lease.attempt += 1;
    let outcomes = b.ledger.commit(&commits).await.unwrap();
    assert_eq!(outcomes, [Committed::Already, Committed::Fenced, Committed::Now, Committed::Fenced]);
    let branch = b.branch(&line.branch).await;
    assert_eq!((branch.head.seq, branch.totals.segments), (1, 2));
    assert_eq!(b.job(&jobs[1].id).await.state, JobState::Ready);
    assert_eq!(b.job(&jobs[3].id).await.state, JobState::Running);
}

pub(crate) async fn a_key_that_is_taken_is_fenced(b: Bench) {
    let mut line = b.line("e1").await;
    for _ in 0..3 {
        line.put(1).await;
        b.pass(2 * MS).await;
    }
    let jobs = b.claim("e1", 3).await;
    let mut commits: Vec<_> = jobs.iter().map(commit).collect();
    assert_eq!(b.ledger.commit(&commits[..1]).await.unwrap(), [Committed::Now]);
    commits[1].segment.key = commits[0].segment.key.clone();
    assert_eq!(b.ledger.commit(&commits[1..]).await.unwrap(), [Committed::Fenced, Committed::Now]);
    assert_eq!(b.job(&jobs[1].id).await.state, JobState::Running, "the work is dropped, the job is not");
    assert_eq!(b.ledger.payload(&jobs[1].id).await.unwrap().len(), 2);
    let branch = b.branch(&line.branch).await;
    assert_eq!((branch.head.seq, branch.totals.segments), (1, 2));
    // Within one call it is the caller's mistake.
    let twice = [commits[1].clone(), commits[1].clone()];
    assert_eq!(b.ledger.commit(&twice).await.unwrap_err().kind, Kind::Rejected);
}

pub(crate) async fn a_commit_outside_its_jobs_range_is_refused(b: Bench) {
    let (mut line, mut other) = (b.line("e1").await, b.line("e1").await);
    line.put(2).await;
    b.pass(2 * MS).await;
    other.put(2).await;
    let jobs = b.claim("e1", 2).await;
    let mut wrong = commit(&jobs[0]);
    wrong.segment.last_seq += 1;
    assert_eq!(b.ledger.commit(&[wrong]).await.unwrap(), [Committed::Misfit]);
    let two_branches: Vec<_> = jobs.iter().map(commit).collect();
    assert_eq!(b.ledger.commit(&two_branches).await.unwrap_err().kind, Kind::Rejected);
    assert_eq!(b.ledger.depth().await.unwrap().running, 2, "nothing has happened");
    assert!(b.ledger.segments(&line.branch, 0, 9).await.unwrap().is_empty());
}

pub(crate) async fn a_stale_lease_is_fenced_after_a_rescue(b: Bench) {
    let mut line = b.line("e1").await;
    let id = line.put(2).await;
    b.beat("e1").await;
    let old = b.claim("e1", 1).await.remove(0);
    let rescued =
        b.ledger.rescue("rescuer", crate::bench::silent_for(&*b.ledger, Duration::from_secs(60)).await, &["e1".to_owned()]).await.unwrap();
    assert_eq!((rescued.jobs, rescued.captures), (1, 1));
    assert_eq!(b.ledger.commit(&[commit(&old)]).await.unwrap(), [Committed::Fenced], "it is ready again");
    let new = b.claim("e2", 1).await.remove(0);
    assert_eq!(b.ledger.commit(&[commit(&old)]).await.unwrap(), [Committed::Fenced], "it is another's");
    assert_eq!(b.ledger.commit(&[commit(&new)]).await.unwrap(), [Committed::Now]);
    assert_eq!(b.ledger.commit(&[commit(&old)]).await.unwrap(), [Committed::Fenced], "it was done by another");
    assert_eq!(b.job(&id).await.crashes, 1);
    assert_eq!(b.ledger.checkpoint(&line.checkpoint(1)).await.unwrap(), Checkpointed::Fenced, "a zombie's capture is gone too");
}

pub(crate) async fn segments_are_read_from_a_seq_on(b: Bench) {
    let mut line = b.line("e1").await;
    for _ in 0..5 {
        line.put(2).await;
        b.pass(2 * MS).await;
    }
    let jobs = b.claim("e1", 5).await;
    b.ledger.commit(&jobs.iter().map(commit).collect::<Vec<_>>()).await.unwrap();
    for (from, max, firsts) in [
        (0, 9, vec![1, 3, 5, 7, 9]),
        (1, 2, vec![1, 3]),
        (4, 9, vec![3, 5, 7, 9]),
        (5, 1, vec![5]),
        (10, 9, vec![9]),
        (11, 9, vec![]),
        (1, 0, vec![]),
    ] {
        let rows = b.ledger.segments(&line.branch, from, max).await.unwrap();
        assert_eq!(rows.iter().map(|r| r.first_seq).collect::<Vec<u64>>(), firsts, "from {from}, at most {max}");
        assert!(rows.iter().all(|r| r.filter.is_none()), "a restore reads many rows and needs no filter");
    }
    for (from, max, firsts) in [(0, 9, vec![]), (1, 9, vec![1]), (6, 9, vec![5, 3, 1]), (9, 2, vec![9, 7]), (99, 1, vec![9])] {
        let rows = b.ledger.segments_before(&line.branch, from, max).await.unwrap();
        assert_eq!(rows.iter().map(|r| r.first_seq).collect::<Vec<u64>>(), firsts, "from {from} back, at most {max}");
        assert!(rows.iter().all(|r| r.filter == Some(RowFilter(vec![0x80, 1, 0, 255]))));
    }
    assert!(b.ledger.segments("none", 0, 9).await.unwrap().is_empty());
}

pub(crate) async fn a_commit_that_can_never_be_does_not_stop_the_others(b: Bench) {
    let mut line = b.line("e1").await;
    let (bad, good) = (line.put(2).await, line.put(2).await);
    let jobs = b.claim("e1", 2).await;
    let mut commits: Vec<_> = jobs.iter().map(commit).collect();
    let wrong = commits.iter().position(|c| c.lease.id == bad).unwrap();
    commits[wrong].segment.last_seq += 1;
    let outcomes = b.ledger.commit(&commits).await.unwrap();
    assert_eq!((outcomes[wrong], outcomes[1 - wrong]), (Committed::Misfit, Committed::Now));
    assert_eq!((b.job(&bad).await.state, b.job(&good).await.state), (JobState::Running, JobState::Done));
    assert_eq!(b.ledger.segments(&line.branch, 0, 9).await.unwrap().len(), 1);
    assert_eq!(b.ledger.advance_heads().await.unwrap(), 0, "a hole is no lag");
}
