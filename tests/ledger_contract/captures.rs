//! Captures and their checkpoints.

use argon::fault::Kind;
use argon::ledger::*;
use argon::runtime::random;

use crate::bench::{Bench, new_capture, token};

pub(crate) async fn a_capture_is_created_once_and_its_name_is_unique(b: Bench) {
    let new = new_capture("c1", "b1", "shop/main");
    let before = b.ledger.now_ms().await.unwrap();
    b.ledger.create_capture(&new).await.unwrap();
    b.ledger.create_capture(&new).await.unwrap(); // the answer was lost
    for other in [new_capture("c2", "b2", "shop/main"), new_capture("c3", "b1", "shop/other")] {
        let fault = b.ledger.create_capture(&other).await.unwrap_err();
        assert_eq!(fault.kind, Kind::Rejected);
        assert!(fault.what.contains("exists already"), "{}", fault.what);
    }
    b.ledger.create_capture(&new_capture("c4", "b4", "shop/a")).await.unwrap();
    let names: Vec<_> = b.ledger.captures().await.unwrap().into_iter().map(|c| c.branch_name).collect();
    assert_eq!(names, ["shop/a", "shop/main"]);
    let names: Vec<_> = b.ledger.branches().await.unwrap().into_iter().map(|c| c.name).collect();
    assert_eq!(names, ["shop/a", "shop/main"]);

    let capture = b.ledger.capture("c1").await.unwrap().unwrap();
    assert!(capture.checkpoint_ms >= before);
    assert_eq!(capture, Capture { checkpoint_ms: capture.checkpoint_ms, ..new.capture });
    let branch = b.ledger.branch_named("shop/main").await.unwrap().unwrap();
    assert!(branch.created_ms >= before);
    assert_eq!(branch, Branch { created_ms: branch.created_ms, ..new.branch });
    assert_eq!(b.ledger.capture("none").await.unwrap(), None);
    assert_eq!(b.ledger.branch_named("none").await.unwrap(), None);
}

pub(crate) async fn each_owner_gets_the_next_fence(b: Bench) {
    let line = b.line("e1").await;
    assert_eq!(line.fence, 1);
    assert_eq!(b.ledger.own_capture(&line.capture, "e2").await.unwrap(), None, "it is taken");
    assert_eq!(b.ledger.own_capture(&line.capture, "e1").await.unwrap().unwrap().fence, 2, "it is ours");
    b.ledger.release_capture(&line.capture, 1).await.unwrap(); // an old fence frees nothing
    assert_eq!(b.ledger.own_capture(&line.capture, "e2").await.unwrap(), None);
    b.ledger.release_capture(&line.capture, 2).await.unwrap();
    let taken = b.ledger.own_capture(&line.capture, "e2").await.unwrap().unwrap();
    assert_eq!((taken.fence, taken.owner.as_deref()), (3, Some("e2")));
    b.ledger.release_capture(&line.capture, 3).await.unwrap();
    b.ledger.set_capture_state(&line.capture, CaptureState::Stopped, None).await.unwrap();
    assert_eq!(b.ledger.own_capture(&line.capture, "e1").await.unwrap(), None, "it is stopped");
    assert_eq!(b.ledger.own_capture("none", "e1").await.unwrap(), None);
}

pub(crate) async fn a_checkpoint_stores_job_payload_and_position_together(b: Bench) {
    let line = b.line("e1").await;
    let write = line.checkpoint(5);
    assert_eq!(b.ledger.checkpoint(&write).await.unwrap(), Checkpointed::Stored);
    let batch = write.batch.unwrap();
    let capture = b.ledger.capture(&line.capture).await.unwrap().unwrap();
    assert_eq!(capture.position, write.after);
    assert_eq!(capture.last_batch.as_ref(), Some(&batch.spec.batch));
    assert_eq!(capture.queued_bytes, 1_500);
    assert_eq!(b.ledger.position(&line.capture).await.unwrap(), Some((token(5), 6)));
    let job = b.job(&batch.job).await;
    assert_eq!((job.state, job.attempt, job.crashes, job.lease.clone()), (JobState::Ready, 0, 0, None));
    assert_eq!(job.sync.as_ref(), Some(&batch.spec));
    assert_eq!(b.ledger.payload(&batch.job).await.unwrap(), batch.parts);
    assert_eq!(b.ledger.payload("none").await.unwrap_err().kind, Kind::Missing);
}

pub(crate) async fn an_idle_checkpoint_moves_only_the_token(b: Bench) {
    let mut line = b.line("e1").await;
    line.put(3).await;
    let last_batch = b.ledger.capture(&line.capture).await.unwrap().unwrap().last_batch;
    let idle = Checkpoint {
        capture: line.capture.clone(),
        fence: line.fence,
        expected_next_seq: 4,
        after: Position { token: token(99), chain: token(99), next_seq: 4, last_txn: None },
        batch: None,
    };
    for _ in 0..2 {
        assert_eq!(b.ledger.checkpoint(&idle).await.unwrap(), Checkpointed::Stored, "a repeat does no harm");
    }
    let capture = b.ledger.capture(&line.capture).await.unwrap().unwrap();
    assert_eq!((capture.position, capture.last_batch), (idle.after, last_batch));
    assert_eq!(b.ledger.depth().await.unwrap().ready, 1);
}

pub(crate) async fn a_checkpoint_that_contradicts_itself_is_refused(b: Bench) {
    let line = b.line("e1").await;
    let mut writes = vec![line.checkpoint(5), line.checkpoint(5), line.checkpoint(5)];
    writes[0].after.next_seq = 7;
    writes[1].batch.as_mut().unwrap().parts.pop();
    writes[2].batch = None;
    for write in writes {
        assert_eq!(b.ledger.checkpoint(&write).await.unwrap_err().kind, Kind::Rejected);
    }
    let unknown = Checkpoint { capture: "none".to_owned(), ..line.checkpoint(5) };
    assert_eq!(b.ledger.checkpoint(&unknown).await.unwrap_err().kind, Kind::Missing);
}

pub(crate) async fn rule_9_a_checkpoint_whose_answer_was_lost_is_already_stored(b: Bench) {
    let mut line = b.line("e1").await;
    let write = line.checkpoint(5);
    b.faulty.script(LedgerCall::Checkpoint, Mishap::AnswerLost);
    assert_eq!(b.faulty.checkpoint(&write).await.unwrap_err().kind, Kind::Unknown);
    assert_eq!(b.faulty.checkpoint(&write).await.unwrap(), Checkpointed::Already);
    // Also when the capture has been stopped or taken in between: what is stored is stored.
    b.ledger.set_capture_state(&line.capture, CaptureState::Stopped, None).await.unwrap();
    assert_eq!(b.ledger.checkpoint(&write).await.unwrap(), Checkpointed::Already);
    b.ledger.set_capture_state(&line.capture, CaptureState::Running, None).await.unwrap();
    b.ledger.release_capture(&line.capture, line.fence).await.unwrap();
    b.ledger.own_capture(&line.capture, "e2").await.unwrap().unwrap();
    assert_eq!(b.ledger.checkpoint(&write).await.unwrap(), Checkpointed::Already);
    line.next_seq = 6;
    assert_eq!(b.ledger.checkpoint(&line.checkpoint(1)).await.unwrap(), Checkpointed::Fenced, "but the next is not ours to write");
    assert_eq!(b.ledger.depth().await.unwrap().ready, 1, "one job, not two");
    // And one that did not happen is simply stored by the repeat.
    let other = b.line("e1").await;
    let write = other.checkpoint(2);
    b.faulty.script(LedgerCall::Checkpoint, Mishap::Before);
    assert_eq!(b.faulty.checkpoint(&write).await.unwrap_err().kind, Kind::Transient);
    assert_eq!(b.faulty.checkpoint(&write).await.unwrap(), Checkpointed::Stored);
    assert_eq!(b.faulty.injected(), 2);
}

pub(crate) async fn two_owners_of_one_capture_and_one_is_fenced(b: Bench) {
    let line = b.line("e1").await;
    let old = line.checkpoint(3);
    b.ledger.release_capture(&line.capture, line.fence).await.unwrap();
    let fence = b.ledger.own_capture(&line.capture, "e2").await.unwrap().unwrap().fence;
    let new = Checkpoint { fence, ..line.checkpoint(4) };
    let (one, two) = tokio::join!(b.ledger.checkpoint(&old), b.ledger.checkpoint(&new));
    assert_eq!((one.unwrap(), two.unwrap()), (Checkpointed::Fenced, Checkpointed::Stored));
    // The same fence twice (a task that was taken for dead inside one process): the position decides.
    let (mut a, mut c) = (line.checkpoint(1), line.checkpoint(2));
    for w in [&mut a, &mut c] {
        w.fence = fence;
        w.expected_next_seq = 5;
        w.after.next_seq += 4;
        let spec = &mut w.batch.as_mut().unwrap().spec;
        (spec.first_seq, spec.last_seq, spec.batch) = (5, spec.last_seq + 4, random::id());
    }
    let (one, two) = tokio::join!(b.ledger.checkpoint(&a), b.ledger.checkpoint(&c));
    let mut both = [one.unwrap(), two.unwrap()];
    both.sort_by_key(|o| *o == Checkpointed::Fenced);
    assert_eq!(both, [Checkpointed::Stored, Checkpointed::Fenced]);
    assert_eq!(b.ledger.depth().await.unwrap().ready, 2);
}

pub(crate) async fn a_stopped_capture_takes_no_checkpoint(b: Bench) {
    let line = b.line("e1").await;
    b.ledger.set_capture_state(&line.capture, CaptureState::Stopped, Some("maintenance")).await.unwrap();
    assert_eq!(b.ledger.checkpoint(&line.checkpoint(3)).await.unwrap(), Checkpointed::NotRunning);
    assert_eq!(b.ledger.position(&line.capture).await.unwrap(), Some((token(0), 1)));
    assert_eq!(b.ledger.depth().await.unwrap().ready, 0);
}

pub(crate) async fn a_paused_capture_rests_where_it_is(b: Bench) {
    let mut line = b.line("e1").await;
    line.put(2).await;
    b.ledger.set_capture_state(&line.capture, CaptureState::Paused, Some("paused by the operator")).await.unwrap();
    assert_eq!(b.ledger.checkpoint(&line.checkpoint(1)).await.unwrap(), Checkpointed::NotRunning);
    b.ledger.release_capture(&line.capture, line.fence).await.unwrap();
    assert_eq!(b.ledger.own_capture(&line.capture, "e2").await.unwrap(), None);
    let paused = b.ledger.capture(&line.capture).await.unwrap().unwrap();
    assert_eq!((paused.state, paused.reason.as_deref()), (CaptureState::Paused, Some("paused by the operator")));
    assert_eq!(b.branch(&line.branch).await.status, BranchStatus::Active, "nothing is wrong with the branch");
    assert!(!b.ledger.fail_capture(&line.capture, "e1", line.fence, "x").await.unwrap(), "and nobody else stops it");
    b.ledger.set_capture_state(&line.capture, CaptureState::Running, None).await.unwrap();
    let owned = b.ledger.own_capture(&line.capture, "e2").await.unwrap().unwrap();
    assert_eq!((owned.position.next_seq, owned.reason), (3, None));
}

pub(crate) async fn states_and_notes_reach_the_branch(b: Bench) {
    let line = b.line("e1").await;
    let capture = || async { b.ledger.capture(&line.capture).await.unwrap().unwrap() };
    b.ledger.note_capture(&line.capture, line.fence, Some("store_unavailable")).await.unwrap();
    assert_eq!(capture().await.reason.as_deref(), Some("store_unavailable"));
    b.ledger.note_capture(&line.capture, line.fence + 1, None).await.unwrap(); // not ours
    assert_eq!(capture().await.reason.as_deref(), Some("store_unavailable"));
    b.ledger.note_capture(&line.capture, line.fence, None).await.unwrap();
    assert_eq!(capture().await.reason, None);

    b.ledger.set_capture_state(&line.capture, CaptureState::Failed, Some("the oplog has rolled over")).await.unwrap();
    let branch = b.branch(&line.branch).await;
    assert_eq!(branch.status, BranchStatus::Failed);
    assert!(branch.reason.unwrap().contains("rolled over"));
    b.ledger.set_capture_state(&line.capture, CaptureState::Running, None).await.unwrap();
    let branch = b.branch(&line.branch).await;
    assert_eq!((branch.status, branch.reason), (BranchStatus::Active, None));
    assert_eq!(b.ledger.set_capture_state("none", CaptureState::Stopped, None).await.unwrap_err().kind, Kind::Missing);
}

pub(crate) async fn rules_1_and_2_a_branch_stays_as_inexact_as_its_worst_stretch(b: Bench) {
    let line = b.line("e1").await;
    let marks = || async {
        let branch = b.branch(&line.branch).await;
        (branch.fidelity, branch.uncovered)
    };
    let of = |fidelity, uncovered: &[&str]| Coverage { fidelity, uncovered: uncovered.iter().map(|&u| u.to_owned()).collect() };
    let none = Vec::<String>::new();
    let worst = of(Fidelity::OrderMayDiffer, &["a", "b"]);
    b.ledger.note_coverage(&line.capture, line.fence + 1, &worst).await.unwrap(); // not ours
    b.ledger.note_coverage("none", 1, &worst).await.unwrap();
    assert_eq!(marks().await, (Fidelity::Exact, none.clone()));
    b.ledger.note_coverage(&line.capture, line.fence, &of(Fidelity::OrderMayDiffer, &[])).await.unwrap();
    assert_eq!(marks().await, (Fidelity::OrderMayDiffer, none));
    b.ledger.note_coverage(&line.capture, line.fence, &of(Fidelity::Exact, &["a"])).await.unwrap();
    assert_eq!(marks().await, (Fidelity::OrderMayDiffer, vec!["a".to_owned()]));
    for coverage in [worst, Coverage::full()] {
        for _ in 0..2 {
            b.ledger.note_coverage(&line.capture, line.fence, &coverage).await.unwrap();
            assert_eq!(marks().await, (Fidelity::OrderMayDiffer, vec!["a".to_owned(), "b".to_owned()]));
        }
    }
    b.ledger.set_capture_state(&line.capture, CaptureState::Stopped, None).await.unwrap();
    b.ledger.note_coverage(&line.capture, line.fence, &of(Fidelity::Exact, &["c"])).await.unwrap();
    assert_eq!(marks().await.1.len(), 2, "it is stopped: nobody reads");
}

pub(crate) async fn only_the_owner_can_fail_a_capture(b: Bench) {
    let line = b.line("e1").await;
    let state = || async { b.ledger.capture(&line.capture).await.unwrap().unwrap().state };
    b.ledger.release_capture(&line.capture, line.fence).await.unwrap();
    let fence = b.ledger.own_capture(&line.capture, "e2").await.unwrap().unwrap().fence;
    for (engine, stale) in [("e1", line.fence), ("e1", fence), ("e2", line.fence)] {
        assert!(!b.ledger.fail_capture(&line.capture, engine, stale, "the oplog has rolled over").await.unwrap());
        assert_eq!(state().await, CaptureState::Running, "{engine} {stale}");
    }
    assert!(!b.ledger.fail_capture("none", "e2", fence, "x").await.unwrap());
    assert_eq!(b.branch(&line.branch).await.status, BranchStatus::Active);
    b.faulty.script(LedgerCall::FailCapture, Mishap::AnswerLost);
    assert_eq!(b.faulty.fail_capture(&line.capture, "e2", fence, "rolled over").await.unwrap_err().kind, Kind::Unknown);
    assert!(b.faulty.fail_capture(&line.capture, "e2", fence, "rolled over").await.unwrap(), "a repeat after a lost answer");
    assert_eq!(state().await, CaptureState::Failed);
    let branch = b.branch(&line.branch).await;
    assert_eq!(branch.status, BranchStatus::Failed);
    assert!(branch.reason.unwrap().contains("rolled over"));
    // What the operator has decided stands.
    b.ledger.set_capture_state(&line.capture, CaptureState::Stopped, None).await.unwrap();
    assert!(!b.ledger.fail_capture(&line.capture, "e2", fence, "x").await.unwrap());
    assert_eq!(state().await, CaptureState::Stopped);
}

pub(crate) async fn a_source_may_be_reached_in_another_way(b: Bench) {
    let line = b.line("e1").await;
    let before = b.ledger.capture(&line.capture).await.unwrap().unwrap();
    let source = Source { uri: Some("env:OTHER".into()), identity: "rs:rs0:aa".into(), ..before.source.clone() };
    b.ledger.set_capture_source(&line.capture, &source).await.unwrap();
    assert_eq!(b.ledger.capture(&line.capture).await.unwrap().unwrap(), Capture { source: source.clone(), ..before });
    assert_eq!(b.ledger.set_capture_source("none", &source).await.unwrap_err().kind, Kind::Missing);
}
