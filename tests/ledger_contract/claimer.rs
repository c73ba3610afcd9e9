//! The claimer on a ledger whose answers are lost.

use std::sync::Arc;
use std::time::Duration;

use argon::ledger::{LedgerCall, Mishap};
use argon::pool::{ClaimSettings, Claimer};
use argon::runtime::link::link;
use argon::runtime::shutdown::Shutdown;
use tokio::sync::Notify;

use crate::bench::Bench;

#[tokio::test]
async fn a_claim_whose_answer_was_lost_is_found_and_runs_once() {
    let bench = Bench::memory();
    bench.beat("engine").await;
    let mut line = bench.line("engine").await;
    let (first, second) = (line.put(10).await, line.put(10).await);
    bench.faulty.script(LedgerCall::Claim, Mishap::AnswerLost);
    let (out, mut claimed) = link("claimed", 4);
    let (stop, bell) = (Shutdown::new(), Arc::new(Notify::new()));
    let settings = ClaimSettings { engine: "engine".to_owned(), slots: 4 };
    let claimer = Claimer { ledger: bench.faulty.clone(), settings, bell, out, stop: stop.clone() };
    let running = tokio::spawn(claimer.run());
    let mut seen = Vec::new();
    for _ in 0..2 {
        let job = tokio::time::timeout(Duration::from_secs(20), claimed.recv()).await.expect("the strays are found").unwrap();
        seen.push(job);
    }
    // While they are in work, later looks leave them alone.
    let more = tokio::time::timeout(Duration::from_millis(2_500), claimed.recv()).await;
    assert!(more.is_err(), "{more:?}");
    let mut ids: Vec<_> = seen.iter().map(|c| c.job.id.clone()).collect();
    ids.sort();
    assert_eq!(ids, [first, second]);
    assert_eq!((seen[0].job.attempt, bench.faulty.injected()), (1, 1));
    stop.drain();
    running.await.unwrap();
}
