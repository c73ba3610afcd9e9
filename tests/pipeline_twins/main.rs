//! The whole engine over memory twins of source, metadata and store, which fail, lose answers, damage bytes; engines that are killed at any moment. At the end
//! every change is in exactly one committed segment, in order, whatever happened.
#![allow(clippy::unwrap_used, clippy::panic, clippy::expect_used)] // helpers of tests are tests

mod captures;
mod check;
mod crashes;
mod engines;
mod pool;
mod rules;
mod world;
