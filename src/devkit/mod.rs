//! Real servers and real load, for the demo, the tests, the benches and the load generator.
//!
//! Owns: finding or fetching `mongod` and `weed` ([`binaries`]), child processes that are gone when their owner is ([`process`]),
//! a replica set ([`Mongod`]), an S3 service ([`Weed`]), a TCP proxy that misbehaves on request ([`Proxy`]), the real `argon`
//! binary as a child ([`ArgonProcess`]), and the core of load generation ([`workload`]).
//! Does not own anything that a running engine needs.

pub mod audit;
pub mod binaries;
pub mod engine;
pub mod mongod;
pub mod oracle;
pub mod ports;
pub mod process;
pub mod proxy;
pub mod tls;
pub mod weed;
pub mod workload;

pub use engine::{ArgonProcess, Output};
pub use mongod::{Auth, Mongod, MongodOptions};
pub use proxy::{Mode, Proxy};
pub use tls::Tls;
pub use weed::{Weed, WeedOptions};
pub use workload::{Operation, Profile, Stats, Workload};
