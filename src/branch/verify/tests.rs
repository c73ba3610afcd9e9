//! What is compared, each by damaging it; and a healthy branch that is written to meanwhile.

use super::*;
use crate::branch::testing::Bed;
use crate::ledger::Ends;

async fn verify(history: &History, bed: &Bed, deep: bool) -> VerifyReport {
    structure(history, &*bed.ledger, deep, Arc::default()).await.unwrap()
}

#[tokio::test]
async fn a_healthy_branch_is_identical_while_segments_are_committed() {
    let mut bed = Bed::new().await;
    bed.add("..", Ends::Closed).await;
    let late = bed.queue("...", Ends::Closed).await;
    bed.add(".", Ends::Closed).await;
    let history = bed.history().await;
    assert_eq!((history.branch.head.seq, history.branch.totals.segments), (2, 2), "one is committed ahead of the head");
    for deep in [false, true] {
        let report = verify(&history, &bed, deep).await;
        assert_eq!((report.differences, report.changes), (vec![], 2));
    }
    bed.commit(&late).await;
    bed.add("....", Ends::Closed).await;
    for deep in [false, true] {
        let report = verify(&history, &bed, deep).await;
        assert_eq!((report.differences, report.changes), (vec![], 2), "what came after it was opened is not its business");
    }
    assert_eq!(verify(&bed.history().await, &bed, true).await.changes, 10);
}

#[tokio::test]
async fn more_segments_than_a_page_are_all_looked_at() {
    let mut bed = Bed::new().await;
    for _ in 0..=PAGE {
        bed.add(".", Ends::Closed).await;
    }
    let history = bed.history().await;
    bed.add(".", Ends::Closed).await;
    let report = verify(&history, &bed, false).await;
    assert_eq!((report.differences, report.segments), (vec![], PAGE as u64 + 1));
}
