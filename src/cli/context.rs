//! Owns: connecting to what a command needs, once. Does not own: settings (`config`).

use std::sync::Arc;

use crate::config::Connection;
use crate::fault::{Fault, Result};
use crate::ledger::{Branch, Capture, ConnectOptions, Ledger, MongoLedger, ServerFacts, SharedLedger, server_facts};
use crate::store::{self, Store, StoreOptions};

/// What commands share.
pub(crate) struct Context {
    pub(crate) connection: Connection,
}

impl Context {
    pub(crate) fn new(connection: Connection) -> Self {
        Self { connection }
    }

    /// The ledger of a metadata database that exists, and facts of its server. Writes nothing: a mistyped name must not become a database,
    /// and a user who may only read can read.
    pub(crate) async fn ledger(&self) -> Result<(SharedLedger, ServerFacts)> {
        let ledger = self.mongo_ledger().await?;
        let facts = server_facts(ledger.client()).await?;
        if !ledger.is_prepared().await? {
            return Err(Fault::missing(format!(
                "no Argon metadata in database {}: check --metadata-db and the URI; argon capture start creates it",
                self.connection.metadata_db
            )));
        }
        Ok((Arc::new(ledger), facts))
    }

    /// The same for those who may create it: its collections and indexes are in place afterwards.
    pub(crate) async fn prepared_ledger(&self) -> Result<(SharedLedger, ServerFacts)> {
        let ledger = self.mongo_ledger().await?;
        let facts = server_facts(ledger.client()).await?;
        ledger.prepare().await?;
        Ok((Arc::new(ledger), facts))
    }

    /// What is needed to read the history of a branch.
    pub(crate) async fn history_ledger(&self, _branch: &str) -> Result<SharedLedger> {
        Ok(self.ledger().await?.0)
    }

    /// The ledger as it is.
    pub(crate) async fn mongo_ledger(&self) -> Result<MongoLedger> {
        MongoLedger::connect(self.connection.uri()?, &self.connection.metadata_db, ConnectOptions::default()).await
    }

    pub(crate) async fn store(&self) -> Result<Store> {
        store::open(self.connection.store_url()?, &self.store_options()).await
    }

    pub(crate) fn store_options(&self) -> StoreOptions {
        StoreOptions {
            endpoint: self.connection.s3_endpoint.clone(),
            path_style: self.connection.s3_path_style,
            checksums: self.connection.s3_checksums,
            ca_file: self.connection.s3_ca_file().map(Into::into),
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
