//! Crashes and faults against the real binary: `argon` is killed, frozen, stopped and cut off, on a real MongoDB and a real S3 service.
//!
//! Every run ends with the faults off: history catches up, the auditor finds every change exactly once and in order, `argon verify --deep` is
//! content, and a restore equals the source by the oracle. Tests wait for events, never for time to pass; the only pauses are the random
//! moments at which faults strike, drawn from a printed seed.
//!
//! The long form, before a release: `ARGON_KILLS=50 cargo test --test crash random_kill_9 -- --nocapture` (`ARGON_SEED=N` repeats a run).
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)] // helpers of tests are tests

mod bases;
mod captures;
mod engines;
mod fleet;
mod kill;
mod load;
mod queue;
mod replica;
mod store;
mod world;
