//! The `argon` binary as its users meet it, against real servers: what it refuses and how, what it prints, what comes back.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)] // helpers of tests are tests

mod arguments;
mod bulk;
#[path = "../restore_real/source.rs"]
mod ddl;
mod demo;
mod fidelity;
mod first_minutes;
mod guides;
mod interface;
mod large;
mod place;
mod points;
mod readme;
mod rights;
mod servers;
mod storage;
mod workers;
