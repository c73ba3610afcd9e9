//! One suite for every change feed: the memory twin, the faulty wrapper without faults, and a real server. What the engine
//! builds on (order, resuming after any token, fresh tokens while nothing happens, lost history, identity) is the same in all of them.
#![allow(clippy::unwrap_used, clippy::panic, clippy::expect_used)] // helpers of tests are tests

mod contract;
mod misbehaviour;
mod sources;

use argon::devkit::{Mongod, MongodOptions};
use contract::{
    a_quiet_source_gives_fresh_tokens, a_reply_cut_inside_a_transaction_resumes_inside_it, lost_tokens_are_history_lost,
    resuming_after_any_token_gives_exactly_the_rest, rule_7_another_deployment_has_another_identity,
};
use sources::{Memory, Real, Source};

async fn whole_suite(source: &dyn Source, other: &dyn Source) {
    resuming_after_any_token_gives_exactly_the_rest(source).await;
    a_reply_cut_inside_a_transaction_resumes_inside_it(source).await;
    a_quiet_source_gives_fresh_tokens(source).await;
    rule_7_another_deployment_has_another_identity(source, other).await;
    lost_tokens_are_history_lost(source).await;
}

#[tokio::test]
async fn the_memory_twin_keeps_the_contract() {
    for reply_events in [1, 2, 3, 7, 1_000] {
        let (source, other) = (Memory::new("set-1"), Memory::new("set-2"));
        source.feed.set_reply_events(reply_events);
        whole_suite(&source, &other).await;
    }
}

#[tokio::test]
async fn the_faulty_wrapper_without_faults_keeps_the_contract() {
    let source = Memory::new("set-1").wrapped();
    whole_suite(&source, &Memory::new("set-2")).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_real_server_keeps_the_contract() {
    let start = || Mongod::start(MongodOptions { oplog_mb: 16, ..MongodOptions::default() });
    let (one, two) = tokio::join!(start(), start());
    let (source, other) = (Real::new(one.unwrap()).await, Real::new(two.unwrap()).await);
    whole_suite(&source, &other).await;
}
