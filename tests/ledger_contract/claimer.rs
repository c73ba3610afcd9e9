//! The claimer over the memory twin.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use argon::pool::{ClaimSettings, Claimed, Claimer, InWork};
use argon::runtime::link::link;
use argon::runtime::shutdown::Shutdown;
use tokio::sync::Notify;

use crate::bench::Bench;

/// Far more than it takes; without the rule the suspect never comes.
const PATIENCE: Duration = Duration::from_secs(30);

#[tokio::test]
async fn rule_26_a_suspect_gets_its_turn_although_the_queue_is_never_empty() {
    let b = Bench::memory();
    let mut line = b.line("e0").await;
    b.beat("e0").await;
    let suspect = line.put(1).await;
    for n in 0..2 {
        let engine = format!("dies{n}");
        b.beat(&engine).await;
        b.claim(&engine, 1).await;
        b.ledger.rescue("e0", None, &[engine]).await.unwrap();
    }
    line.put(1).await;
    let (out, mut inbox) = link::<Claimed>("claimed", 2);
    let (bell, stop) = (Arc::new(Notify::new()), Shutdown::new());
    let settings = ClaimSettings { engine: "e0".to_owned(), slots: 2 };
    let claimer = Claimer { ledger: b.ledger.clone(), settings, bell: bell.clone(), out, in_work: InWork::default(), stop: stop.clone() };
    let claimer = tokio::spawn(claimer.run());

    let running = Arc::new(AtomicUsize::new(0));
    let mut others = 0;
    let serve = async {
        while let Some(claimed) = inbox.recv().await {
            if claimed.job.id == suspect {
                assert_eq!(running.load(Ordering::SeqCst), 0, "alone");
                return;
            }
            others += 1;
            if others == 10 {
                b.pass(Duration::from_secs(31)).await; // until now the suspect had not waited long enough
            }
            line.put(1).await; // never empty
            running.fetch_add(1, Ordering::SeqCst);
            let (running, bell) = (running.clone(), bell.clone());
            tokio::spawn(async move {
                tokio::task::yield_now().await;
                running.fetch_sub(1, Ordering::SeqCst);
                drop(claimed);
                bell.notify_one();
            });
        }
    };
    tokio::time::timeout(PATIENCE, serve).await.expect("the suspect starves");
    assert!(others >= 10, "patience comes first: {others}");
    stop.drain();
    drop(inbox);
    claimer.await.unwrap();
}
