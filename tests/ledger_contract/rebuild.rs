//! What a rebuild stores: rows as they are, and no second time.

use argon::ledger::*;
use argon::runtime::random;

use crate::bench::{Bench, new_capture, time, token};

fn row(branch: &str, first_seq: u64, last_seq: u64) -> SegmentRow {
    SegmentRow {
        key: format!("projects/shop/{branch}/{first_seq:016x}-{last_seq:016x}"),
        branch: branch.to_owned(),
        kind: SegmentKind::Changes,
        epoch: 3,
        level: 0,
        first_seq,
        last_seq,
        first_time: time(first_seq),
        last_time: time(last_seq),
        last_wall_ms: Some(5),
        starts_inside: false,
        ends: Ends::Closed,
        has_ddl: true,
        holes: 0,
        raw_bytes: 7,
        stored_bytes: 8,
        sha256: "$cd".to_owned(),
        committed_ms: 4_711,
        filter: None,
    }
}

/// A branch with history up to 9, a capture and two bases.
fn import() -> Import {
    let NewCapture { capture, branch, base } = new_capture(&random::id(), &random::id(), &format!("shop/{}", random::id()));
    let id = branch.id.clone();
    let head = Head { seq: 9, time: time(9), wall_ms: Some(1) };
    let totals = Totals { changes: 9, raw_bytes: 14, stored_bytes: 16, segments: 2 };
    let branch = Branch { head, totals, epoch: 4, created_ms: 17, uncovered: vec!["$x".to_owned()], ..branch };
    let position = Position { token: token(9), chain: token(9), next_seq: 10, last_txn: None };
    let capture = Capture { position, checkpoint_ms: 99, ..capture };
    let copy =
        Base { origin: BaseOrigin::Copy, state: BaseState::Copying, seq: 4, ..Base::empty(&random::id(), &id, time(4), "ef".to_owned()) };
    Import { branch, capture: Some(capture), bases: vec![Base { created_ms: 3, ..base }, copy] }
}

pub(crate) async fn rows_are_imported_once_and_as_they_are(bench: Bench) {
    let branch = random::id();
    let rows = [row(&branch, 1, 4), row(&branch, 5, 9)];
    bench.ledger.import_segments(&[]).await.unwrap();
    bench.ledger.import_segments(&rows[..1]).await.unwrap();
    // An earlier run was cut off.
    bench.ledger.import_segments(&rows).await.unwrap();
    bench.ledger.import_segments(&rows).await.unwrap();
    assert_eq!(bench.ledger.segments(&branch, 0, 10).await.unwrap(), rows);
    // A range is taken once, whoever comes second.
    let other = SegmentRow { key: "other".to_owned(), ..rows[1].clone() };
    bench.ledger.import_segments(&[other, row(&branch, 10, 11)]).await.unwrap();
    let found = bench.ledger.segments(&branch, 0, 10).await.unwrap();
    assert_eq!(found, [rows[0].clone(), rows[1].clone(), row(&branch, 10, 11)]);
}

pub(crate) async fn a_branch_is_imported_whole_and_once(bench: Bench) {
    let import = import();
    let id = import.branch.id.clone();
    assert!(bench.ledger.import_branch(&import).await.unwrap());
    let stored = bench.branch(&id).await;
    assert_eq!(stored, import.branch, "times too: they are of long ago");
    assert_eq!(bench.ledger.capture_of(&id).await.unwrap(), import.capture);
    assert_eq!(bench.ledger.bases(&id).await.unwrap(), import.bases);
    let other = Import { branch: Branch { epoch: 9, ..import.branch.clone() }, capture: None, bases: Vec::new() };
    assert!(!bench.ledger.import_branch(&other).await.unwrap(), "it is there");
    assert_eq!(bench.branch(&id).await, stored);
    // The answer of the first one may be lost.
    let second = self::import();
    bench.faulty.script(LedgerCall::Import, Mishap::AnswerLost);
    assert!(bench.faulty.import_branch(&second).await.unwrap_err().may_heal());
    assert!(!bench.faulty.import_branch(&second).await.unwrap());
    assert_eq!(bench.branch(&second.branch.id).await, second.branch);
}

pub(crate) async fn an_imported_branch_says_what_is_wrong_with_it(bench: Bench) {
    let gap = |branch: &str| SegmentRow { kind: SegmentKind::Gap, holes: 3, ..row(branch, 7, 9) };
    let mut lost = import();
    lost.bases[1].state = BaseState::Complete;
    bench.ledger.import_segments(&[gap(&lost.branch.id)]).await.unwrap();
    bench.ledger.import_branch(&lost).await.unwrap();
    let branch = bench.branch(&lost.branch.id).await;
    assert!(branch.status == BranchStatus::Gap && branch.reason.as_ref().unwrap().contains("7 to 9"), "{branch:?}");
    // A later base has what is lost.
    let mut mended = import();
    (mended.bases[1].state, mended.bases[1].seq) = (BaseState::Complete, 9);
    bench.ledger.import_segments(&[gap(&mended.branch.id)]).await.unwrap();
    mended.branch.status = BranchStatus::Gap; // as the bucket said it
    bench.ledger.import_branch(&mended).await.unwrap();
    assert_eq!(bench.branch(&mended.branch.id).await.status, BranchStatus::Active);
    let mut failed = import();
    if let Some(capture) = &mut failed.capture {
        (capture.state, capture.reason) = (CaptureState::Failed, Some("before".to_owned()));
    }
    bench.ledger.import_branch(&failed).await.unwrap();
    let branch = bench.branch(&failed.branch.id).await;
    assert!(branch.status == BranchStatus::Failed && branch.reason.as_ref().unwrap().contains("before"), "{branch:?}");
    for (status, deleted_ms, expected) in
        [(BranchStatus::Archived, None, BranchStatus::Archived), (BranchStatus::Active, Some(5), BranchStatus::Deleted)]
    {
        let mut over = import();
        (over.branch.status, over.branch.deleted_ms) = (status, deleted_ms);
        bench.ledger.import_branch(&over).await.unwrap();
        assert_eq!(bench.branch(&over.branch.id).await.status, expected);
    }
}

pub(crate) async fn an_imported_capture_goes_on_at_its_position(bench: Bench) {
    let import = import();
    let (id, capture) = (import.branch.id.clone(), import.capture.clone().unwrap());
    bench.ledger.import_segments(&[row(&id, 1, 4), row(&id, 5, 9)]).await.unwrap();
    bench.ledger.import_branch(&import).await.unwrap();
    let owned = bench.ledger.own_capture(&capture.id, "e1").await.unwrap().unwrap();
    assert_eq!((owned.fence, owned.position.next_seq), (1, 10));
    let mut line = crate::bench::Line { ledger: bench.ledger.clone(), capture: capture.id, branch: id.clone(), fence: 1, next_seq: 10 };
    line.put(3).await;
    let job = bench.claim("e1", 1).await.remove(0);
    assert_eq!(bench.ledger.commit(&[crate::bench::commit(&job)]).await.unwrap(), [Committed::Now]);
    let branch = bench.branch(&id).await;
    assert_eq!((branch.head.seq, branch.totals.changes, branch.totals.segments), (12, 12, 3));
}

pub(crate) async fn many_rows_are_read_back_page_by_page(bench: Bench) {
    let branch = random::id();
    let rows: Vec<SegmentRow> = (0..2_500u64).map(|n| row(&branch, 2 * n + 1, 2 * n + 2)).collect();
    for page in rows.chunks(1_000) {
        bench.ledger.import_segments(page).await.unwrap();
    }
    let (mut found, mut next) = (Vec::new(), 0);
    loop {
        let page = bench.ledger.segments(&branch, next, 1_000).await.unwrap();
        let Some(last) = page.last() else { break };
        next = last.last_seq + 1;
        found.extend(page);
    }
    assert_eq!(found, rows);
}
