//! Argon: continuous, compressed, restorable history of MongoDB in an object store.

pub mod branch;
pub mod capture;
pub mod change;
pub mod cli;
pub mod config;
pub mod devkit;
pub mod engine;
pub mod fault;
pub mod ledger;
pub mod pool;
pub mod queue;
pub mod runtime;
pub mod segment;
pub mod store;
pub mod sync;
pub mod telemetry;
