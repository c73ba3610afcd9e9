//! Owns: connecting to what a command needs, once. Does not own: settings (`config`).

use std::sync::Arc;

use crate::config::{Connection, Switch};
use crate::fault::{Fault, Result};
use crate::ledger::{Branch, Capture, ConnectOptions, MongoLedger, ServerFacts, SharedLedger, server_facts};
use crate::store::{self, Store, StoreOptions};

/// What commands share.
pub(crate) struct Context {
    pub(crate) connection: Connection,
}

impl Context {
    pub(crate) fn new(connection: Connection) -> Self {
        Self { connection }
    }

    /// The ledger with its collections and indexes in place, and facts of its server.
    pub(crate) async fn ledger(&self) -> Result<(SharedLedger, ServerFacts)> {
        let ledger = self.mongo_ledger().await?;
        let facts = server_facts(ledger.client()).await?;
        let ledger: SharedLedger = Arc::new(ledger);
        ledger.prepare().await?;
        Ok((ledger, facts))
    }

    /// The ledger as it is.
    pub(crate) async fn mongo_ledger(&self) -> Result<MongoLedger> {
        MongoLedger::connect(self.connection.uri()?, &self.connection.metadata_db, ConnectOptions::default()).await
    }

    pub(crate) async fn store(&self) -> Result<Store> {
        store::open(self.connection.store_url()?, &self.store_options()).await
    }

    pub(crate) fn store_options(&self) -> StoreOptions {
        let switch = |s: Switch| match s {
            Switch::Auto => store::Switch::Auto,
            Switch::On => store::Switch::On,
            Switch::Off => store::Switch::Off,
        };
        StoreOptions {
            endpoint: self.connection.s3_endpoint.clone(),
            path_style: switch(self.connection.s3_path_style),
            checksums: switch(self.connection.s3_checksums),
            ..StoreOptions::default()
        }
    }
}

/// The branch of this name, or which names there are.
pub(crate) async fn branch_named(ledger: &SharedLedger, name: &str) -> Result<Branch> {
    if let Some(branch) = ledger.branch_named(name).await? {
        return Ok(branch);
    }
    let names: Vec<String> = ledger.branches().await?.into_iter().take(10).map(|b| b.name).collect();
    let known = if names.is_empty() {
        "there are none yet: argon capture start creates one".to_string()
    } else {
        format!("there are: {}", names.join(", "))
    };
    Err(Fault::missing(format!("no branch is named {name}; {known}")))
}

/// The capture that feeds a branch.
pub(crate) async fn capture_of(ledger: &SharedLedger, branch: &Branch) -> Result<Option<Capture>> {
    Ok(ledger.captures().await?.into_iter().find(|c| c.branch == branch.id))
}
