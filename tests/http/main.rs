//! The interface over HTTP on twins: what it answers, to whom, and what it withstands.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)] // helpers of tests are tests

mod access;
mod answers;
mod branching;
mod certificates;
mod control;
mod limits;
mod schema;
mod served;
mod wire;
mod world;
