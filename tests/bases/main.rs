//! Bases, branches and checkouts against a real server, with whole engines inside this process on a directory store.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)] // helpers of tests are tests

mod branches;
mod compare;
mod copies;
mod damage;
mod drill;
mod gaps;
mod look;
mod oracle;
mod select;
mod source;
mod world;
