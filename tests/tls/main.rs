//! TLS end to end: the `argon` binary, a MongoDB that asks for TLS and a login, an S3 service with HTTPS, certificates of an authority of the
//! tests' own. The way there and back, and what is said where it does not work.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)] // helpers of tests are tests

mod authority;
mod flow;
#[allow(dead_code)] // the other suite uses the rest
#[path = "../cli/place.rs"]
mod place;
mod refused;
mod servers;
