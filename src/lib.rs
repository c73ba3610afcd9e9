//! Argon: continuous, compressed, restorable history of MongoDB in an object store.

pub mod branch;
pub mod change;
pub mod devkit;
pub mod fault;
pub mod ledger;
pub mod queue;
pub mod runtime;
pub mod segment;
pub mod store;
