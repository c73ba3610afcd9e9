//! Argon: continuous, compressed, restorable history of MongoDB in an object store.

pub mod change;
pub mod devkit;
pub mod fault;
pub mod ledger;
pub mod runtime;
pub mod segment;
pub mod store;
