//! What happens to branches besides their growth: forks, names, archive, deletion, captures that are attached, gaps of a capture.

use std::time::Duration;

use argon::fault::Kind;
use argon::ledger::*;
use argon::runtime::random;
use bson::rawdoc;

use crate::bench::{Bench, lease, new_capture, time, token};

fn fork_of(parent: &str, seq: u64) -> Branch {
    let id = random::id();
    let parent = Some(Parent { id: parent.to_owned(), seq, time: time(seq) });
    Branch { parent, head: Head { seq, time: time(seq), wall_ms: None }, ..Branch::new(&id, &format!("shop/$fork-{id}"), "db") }
}

fn gap(branch: &str, seq: u64) -> SegmentRow {
    SegmentRow {
        key: format!("gaps/{branch}/{seq}"),
        branch: branch.to_owned(),
        kind: SegmentKind::Gap,
        epoch: 1,
        level: 0,
        first_seq: seq,
        last_seq: seq,
        first_time: time(seq),
        last_time: time(seq + 10),
        last_wall_ms: None,
        starts_inside: false,
        ends: Ends::Closed,
        has_ddl: false,
        holes: 1,
        raw_bytes: 0,
        stored_bytes: 9,
        sha256: String::new(),
        committed_ms: 0,
        filter: None,
    }
}

pub(crate) async fn a_fork_is_made_once_and_its_parent_stays(bench: Bench) {
    let parent = bench.line("e").await.branch;
    let fork = fork_of(&parent, 0);
    bench.ledger.create_branch(&fork, Some(Duration::from_secs(60))).await.unwrap();
    bench.ledger.create_branch(&fork, Some(Duration::from_secs(60))).await.unwrap();
    let stored = bench.branch(&fork.id).await;
    assert_eq!((&stored.name, &stored.parent, stored.head), (&fork.name, &fork.parent, fork.head));
    let lives = stored.expires_ms.unwrap() - stored.created_ms;
    assert_eq!(lives, 60_000, "both by the server's clock");
    let taken = Branch { name: fork.name.clone(), ..fork_of(&parent, 0) };
    assert_eq!(bench.ledger.create_branch(&taken, None).await.unwrap_err().kind, Kind::Rejected);
    let orphan = fork_of("nobody", 0);
    assert!(bench.ledger.create_branch(&orphan, None).await.is_err());
    assert_eq!(bench.ledger.children(&parent, 10).await.unwrap().iter().map(|b| &b.id).collect::<Vec<_>>(), [&fork.id]);

    // Rule 23: a parent with children is not deleted, and of a deleted one nothing is forked.
    let refused = bench.ledger.delete_branch(&parent).await.unwrap_err();
    assert!(refused.kind == Kind::Rejected && refused.what.contains(&fork.name), "{refused}");
    assert!(bench.ledger.delete_branch(&fork.id).await.unwrap());
    assert!(!bench.ledger.delete_branch(&fork.id).await.unwrap(), "it is deleted already");
    assert!(bench.ledger.delete_branch(&parent).await.unwrap());
    assert_eq!(bench.ledger.create_branch(&fork_of(&parent, 0), None).await.unwrap_err().kind, Kind::Rejected);
}

/// Rule 23: one of the two happens, never both.
pub(crate) async fn rule_23_a_fork_and_the_deletion_of_its_parent_exclude_each_other(bench: Bench) {
    for _ in 0..8 {
        let parent = bench.line("e").await.branch;
        let fork = fork_of(&parent, 0);
        let (forked, deleted) = tokio::join!(bench.ledger.create_branch(&fork, None), bench.ledger.delete_branch(&parent));
        assert!(forked.is_ok() != deleted.is_ok(), "{forked:?} {deleted:?}");
    }
}

pub(crate) async fn names_move_and_are_free_after_a_deletion(bench: Bench) {
    let line = bench.line("e").await;
    let (name, other) = (format!("shop/{}", random::id()), bench.line("e").await.branch);
    bench.ledger.rename_branch(&line.branch, &name).await.unwrap();
    bench.ledger.rename_branch(&line.branch, &name).await.unwrap();
    assert_eq!(bench.ledger.branch_named(&name).await.unwrap().unwrap().id, line.branch);
    assert_eq!(bench.ledger.capture_of(&line.branch).await.unwrap().unwrap().branch_name, name);
    assert_eq!(bench.ledger.rename_branch(&other, &name).await.unwrap_err().kind, Kind::Rejected);
    assert_eq!(bench.ledger.rename_branch("nobody", "shop/x").await.unwrap_err().kind, Kind::Missing);
    assert!(bench.ledger.delete_branch(&line.branch).await.unwrap());
    let gone = bench.branch(&line.branch).await;
    assert!(gone.status == BranchStatus::Deleted && gone.deleted_ms.is_some() && gone.name != name);
    assert_eq!(bench.ledger.capture_of(&line.branch).await.unwrap().unwrap().state, CaptureState::Stopped);
    bench.ledger.rename_branch(&other, &name).await.unwrap();
}

pub(crate) async fn an_archive_stops_the_capture_and_can_be_taken_back(bench: Bench) {
    let line = bench.line("e").await;
    bench.ledger.archive_branch(&line.branch, true).await.unwrap();
    assert_eq!(bench.branch(&line.branch).await.status, BranchStatus::Archived);
    assert_ne!(bench.ledger.capture_of(&line.branch).await.unwrap().unwrap().state, CaptureState::Running);
    assert_eq!(bench.ledger.own_capture(&line.capture, "e").await.unwrap(), None);
    bench.ledger.archive_branch(&line.branch, false).await.unwrap();
    assert_eq!(bench.branch(&line.branch).await.status, BranchStatus::Active);
    assert_eq!(bench.ledger.archive_branch("nobody", true).await.unwrap_err().kind, Kind::Missing);
}

pub(crate) async fn what_is_due_is_found_and_a_deleted_branch_is_removed_whole(bench: Bench) {
    let mut line = bench.line("e").await;
    line.put(5).await;
    let short = fork_of(&line.branch, 0);
    bench.ledger.create_branch(&short, Some(Duration::from_millis(1))).await.unwrap();
    let due = async |now: i64, deleted: i64| {
        let mut ids: Vec<_> = bench.ledger.branches_due(now, deleted).await.unwrap().into_iter().map(|b| b.id).collect();
        ids.sort();
        ids
    };
    let now = bench.ledger.now_ms().await.unwrap();
    assert_eq!(due(0, 0).await, Vec::<String>::new());
    assert_eq!(due(now + 1_000, 0).await, std::slice::from_ref(&short.id));
    assert_eq!(bench.ledger.purge_branch(&short.id).await.unwrap_err().kind, Kind::Rejected, "it is not deleted");
    bench.ledger.delete_branch(&short.id).await.unwrap();
    assert_eq!(due(i64::MAX, 0).await, Vec::<String>::new());
    assert_eq!(due(0, now + 100_000).await, std::slice::from_ref(&short.id));
    while !bench.ledger.purge_branch(&short.id).await.unwrap() {}

    bench.ledger.delete_branch(&line.branch).await.unwrap();
    while !bench.ledger.purge_branch(&line.branch).await.unwrap() {}
    assert_eq!(bench.ledger.branch(&line.branch).await.unwrap(), None);
    assert_eq!(bench.ledger.capture_of(&line.branch).await.unwrap(), None);
    assert_eq!(bench.ledger.bases(&line.branch).await.unwrap(), []);
    let jobs = JobFilter { branch: Some(line.branch.clone()), ..JobFilter::default() };
    assert_eq!(bench.ledger.jobs(&jobs, 10).await.unwrap(), []);
    assert!(bench.ledger.purge_branch(&line.branch).await.unwrap(), "a repeat is harmless");
}

pub(crate) async fn rule_18_a_capture_is_attached_right_behind_the_fork(bench: Bench) {
    let parent = bench.line("e").await.branch;
    let fork = fork_of(&parent, 7);
    bench.ledger.create_branch(&fork, None).await.unwrap();
    let capture = new_capture(&random::id(), &fork.id, &fork.name).capture;
    let capture = Capture { position: Position { next_seq: 9, ..capture.position.clone() }, ..capture };
    let row = SegmentRow { kind: SegmentKind::Changes, holes: 0, has_ddl: true, ..gap(&fork.id, 8) };
    let attach =
        Attach { capture: capture.clone(), row: row.clone(), source_db: "$copy".into(), drop_db: true, ttl: Some(Duration::from_secs(5)) };
    // The branch has moved on, or the segment does not begin where it ends.
    let late = Attach { row: SegmentRow { first_seq: 9, last_seq: 9, ..row.clone() }, ..attach.clone() };
    assert_eq!(bench.ledger.attach_capture(&late).await.unwrap_err().kind, Kind::Rejected);
    bench.ledger.attach_capture(&attach).await.unwrap();
    bench.ledger.attach_capture(&attach).await.unwrap(); // its answer may have been lost
    let stored = bench.branch(&fork.id).await;
    assert_eq!((stored.head.seq, stored.source_db.as_str(), stored.drop_db), (8, "$copy", true));
    assert!(stored.expires_ms.is_some());
    assert_eq!(bench.ledger.segments(&fork.id, 0, 5).await.unwrap().len(), 1);
    assert_eq!(bench.ledger.ddl_segments(&fork.id, 8, 5).await.unwrap().len(), 1);
    assert_eq!(bench.ledger.ddl_segments(&fork.id, 9, 5).await.unwrap(), []);
    let second = Attach { capture: Capture { id: random::id(), ..capture }, ..attach };
    assert_eq!(bench.ledger.attach_capture(&second).await.unwrap_err().kind, Kind::Rejected, "it has one");
}

pub(crate) async fn a_gap_of_a_capture_moves_position_head_and_status_together(bench: Bench) {
    let line = bench.line("e").await;
    let fence = bench.ledger.capture(&line.capture).await.unwrap().unwrap().fence;
    let after = Position { token: token(50), chain: token(50), next_seq: 2, last_txn: None };
    let write = CaptureGap { capture: line.capture.clone(), fence, expected_next_seq: 1, after: after.clone(), row: gap(&line.branch, 1) };
    let stale = CaptureGap { fence: fence + 1, ..write.clone() };
    assert_eq!(bench.ledger.record_gap(&stale).await.unwrap(), Checkpointed::Fenced);
    assert_eq!(bench.ledger.record_gap(&write).await.unwrap(), Checkpointed::Stored);
    assert_eq!(bench.ledger.record_gap(&write).await.unwrap(), Checkpointed::Already);
    let branch = bench.branch(&line.branch).await;
    assert_eq!((branch.head.seq, branch.status, branch.totals.changes), (1, BranchStatus::Gap, 0));
    assert_eq!(bench.ledger.capture(&line.capture).await.unwrap().unwrap().position, after);
    assert_eq!(bench.ledger.losses(&line.branch, 0, 5).await.unwrap().len(), 1);
    assert_eq!(bench.ledger.losses(&line.branch, 2, 5).await.unwrap(), []);
    assert_eq!(bench.ledger.ddl_segments("other", 0, 5).await.unwrap(), []);
    bench.ledger.set_capture_state(&line.capture, CaptureState::Stopped, None).await.unwrap();
    let next = CaptureGap { expected_next_seq: 2, after: Position { next_seq: 3, ..after }, row: gap(&line.branch, 2), ..write };
    assert_eq!(bench.ledger.record_gap(&next).await.unwrap(), Checkpointed::NotRunning);
    // What a later base has is not missed any more.
    let base = Base { seq: 1, ..Base::empty(&random::id(), &line.branch, time(60), "ab".into()) };
    bench.ledger.create_base(&base).await.unwrap();
    assert_eq!(bench.branch(&line.branch).await.status, BranchStatus::Active);
}

pub(crate) async fn a_job_that_gets_on_is_none_that_kills_its_process(bench: Bench) {
    bench.beat("e").await;
    let new = NewJob::new(random::ordered_id(), JobKind::Snapshot);
    bench.ledger.enqueue(std::slice::from_ref(&new)).await.unwrap();
    for death in 1..=2 {
        let mut jobs = bench.claim_with(&ClaimRequest::new("e", &[JobKind::Snapshot], 1).alone(true).start(1)).await;
        assert_eq!(jobs.len(), 1, "death {death}");
        bench.start(&mut jobs[0]).await;
        bench.ledger.rescue("other", None, &["e".to_owned()]).await.unwrap();
        bench.beat("e").await;
        assert_eq!(bench.job(&new.id).await.crashes, death);
    }
    let jobs = bench.claim_with(&ClaimRequest::new("e", &[JobKind::Snapshot], 1).alone(true).start(1)).await;
    assert!(bench.ledger.touch(&lease(&jobs[0]), false).await.unwrap());
    assert_eq!(bench.job(&new.id).await.crashes, 2, "it lives, and that is all");
    assert!(bench.ledger.touch(&lease(&jobs[0]), true).await.unwrap());
    assert_eq!(bench.job(&new.id).await.crashes, 0);
    let stale = JobLease { token: "another".into(), ..lease(&jobs[0]) };
    assert!(!bench.ledger.touch(&stale, true).await.unwrap());
}

pub(crate) async fn what_is_proven_only_rises(bench: Bench) {
    let branch = bench.line("e").await.branch;
    let proven = |seq| Proven { seq, time: time(seq), at_ms: 5, with: "$history".into(), documents: 3 };
    for (noted, stands) in [(5, 5), (4, 5), (5, 5), (9, 9)] {
        bench.ledger.note_proven(&branch, &proven(noted)).await.unwrap();
        assert_eq!(bench.branch(&branch).await.proven, Some(proven(stands)));
    }
}

fn chunk(base: &str, uuid: &str, n: u32, documents: u64) -> BaseChunk {
    BaseChunk {
        id: chunk_id(base, uuid, n),
        base: base.to_owned(),
        uuid: uuid.to_owned(),
        n,
        read_at: time(u64::from(n) + 10),
        until: time(u64::from(n) + 20),
        fuzzy: false,
        last: Some(rawdoc! {"_id": {"$a": i64::from(n)}}),
        done: false,
        object: Some(format!("o{n}")),
        sha256: "ab".to_owned(),
        documents,
        raw_bytes: documents * 100,
        stored_bytes: documents * 10,
    }
}

pub(crate) async fn stretches_of_a_base_are_stored_once_and_add_up(bench: Bench) {
    let branch = bench.line("e").await.branch;
    let base =
        Base { origin: BaseOrigin::Copy, state: BaseState::Copying, seq: 4, ..Base::empty(&random::id(), &branch, time(5), "ab".into()) };
    bench.ledger.create_base(&base).await.unwrap();
    bench.ledger.create_base(&base).await.unwrap();
    let stored = async || bench.ledger.base(&base.id).await.unwrap().unwrap();
    assert!(stored().await.created_ms > 0);
    let of = |n, documents| chunk(&base.id, "aa", n, documents);
    assert!(bench.ledger.add_chunks(&[of(0, 3)]).await.unwrap());
    assert!(bench.ledger.add_chunks(&[of(0, 3)]).await.unwrap(), "our own earlier call");
    assert!(!bench.ledger.add_chunks(&[of(0, 4)]).await.unwrap(), "somebody else was faster");
    assert!(!bench.ledger.add_chunks(&[of(1, 4), of(0, 4)]).await.unwrap(), "all or none");
    assert!(bench.ledger.add_chunks(&[of(1, 4), of(2, 5)]).await.unwrap());
    assert!(bench.ledger.add_chunks(&[chunk(&base.id, "bb", 0, 1)]).await.unwrap());
    let now = stored().await;
    assert_eq!((now.documents, now.raw_bytes, now.stored_bytes, now.objects), (13, 1_300, 130, 4));
    assert_eq!(now.consistent_at, time(22), "the latest");
    assert_eq!(bench.ledger.last_chunk(&base.id, "aa").await.unwrap(), Some(of(2, 5)));
    assert_eq!(bench.ledger.last_chunk(&base.id, "cc").await.unwrap(), None);
    let mut ids = Vec::new();
    let mut after: Option<String> = None;
    loop {
        let page = bench.ledger.chunks(&base.id, after.as_deref(), 3).await.unwrap();
        ids.extend(page.iter().map(|chunk| (chunk.uuid.clone(), chunk.n)));
        after = page.last().map(|chunk| chunk.id.clone());
        if page.len() < 3 {
            break;
        }
    }
    assert_eq!(ids, [("aa".into(), 0), ("aa".into(), 1), ("aa".into(), 2), ("bb".into(), 0)]);

    bench.ledger.note_base(&base.id, Some((20, 2_000)), Some("$waits")).await.unwrap();
    let now = stored().await;
    assert_eq!((now.expected_documents, now.expected_bytes, now.reason.as_deref()), (20, 2_000, Some("$waits")));
    let done = Base { documents: 13, objects: 4, consistent_at: time(22), sha256: "cd".into(), ..now };
    assert!(bench.ledger.finish_base(&done).await.unwrap());
    assert!(bench.ledger.finish_base(&done).await.unwrap(), "our own earlier call");
    let now = stored().await;
    assert!(now.state == BaseState::Complete && now.reason.is_none() && now.finished_ms.is_some() && now.sha256 == "cd");
    assert!(!bench.ledger.abandon_base(&base.id, "late").await.unwrap());
    assert!(!bench.ledger.add_chunks(&[of(3, 1)]).await.unwrap(), "it is not being made any more");
    bench.ledger.remove_chunks(&base.id).await.unwrap();
    assert_eq!(bench.ledger.chunks(&base.id, None, 10).await.unwrap(), []);
}

pub(crate) async fn a_base_that_is_given_up_stays_so(bench: Bench) {
    let branch = bench.line("e").await.branch;
    let base = Base { origin: BaseOrigin::Copy, state: BaseState::Copying, ..Base::empty(&random::id(), &branch, time(5), "ab".into()) };
    bench.ledger.create_base(&base).await.unwrap();
    let copying = bench.ledger.bases_in(BaseState::Copying).await.unwrap();
    assert!(copying.iter().any(|one| one.id == base.id));
    assert!(bench.ledger.abandon_base(&base.id, "$lost").await.unwrap());
    let now = bench.ledger.base(&base.id).await.unwrap().unwrap();
    assert_eq!((now.state, now.reason.as_deref()), (BaseState::Abandoned, Some("$lost")));
    assert!(!bench.ledger.finish_base(&base).await.unwrap());
    assert!(!bench.ledger.abandon_base(&base.id, "again").await.unwrap());
    assert!(!bench.ledger.bases_in(BaseState::Copying).await.unwrap().iter().any(|one| one.id == base.id));
    assert!(bench.ledger.remove_base(&base.id).await.unwrap() && bench.ledger.remove_base(&base.id).await.unwrap());
    assert_eq!(bench.ledger.base(&base.id).await.unwrap(), None);
    let first = bench.ledger.bases(&branch).await.unwrap().remove(0);
    assert!(!bench.ledger.remove_base(&first.id).await.unwrap(), "it is in use");
}
