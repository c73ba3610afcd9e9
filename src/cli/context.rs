//! Owns: connecting to what a command needs, once. Does not own: settings (`config`).

use std::sync::Arc;

use crate::branch::rebuild::{self, Bucket, Remarks};
use crate::config::Connection;
use crate::fault::{Fault, Kind, Result};
use crate::ledger::{Branch, Capture, ConnectOptions, Ledger, MongoLedger, ServerFacts, SharedLedger, server_facts};
use crate::store::{self, Store, StoreOptions};

/// For commands that only read history.
#[derive(Debug, Clone, Copy, Default, clap::Args)]
pub(crate) struct ReadFrom {
    /// Read the store alone and no metadata database; so it is too where no --mongodb-uri is given.
    #[arg(long)]
    no_metadata: bool,
}

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
                "no Argon metadata in database {}: check --metadata-db and the URI; argon capture start creates it, argon rebuild makes it from the bucket",
                self.connection.metadata_db
            ))
            .next("argon capture start shop/main --source-db shop"));
        }
        Ok((Arc::new(ledger), facts))
    }

    /// Whether history is read from the store alone: it is asked for, or no MongoDB is given.
    pub(crate) fn reads_bucket(&self, from: ReadFrom) -> bool {
        from.no_metadata || self.connection.mongodb_uri.is_none()
    }

    /// A ledger to read history from: the metadata database, or what the store alone says of these branches and of what they were forked from (of all,
    /// if none is named). Facts are of the metadata's server. What cannot be had from the store is warned about.
    pub(crate) async fn history_ledger(&self, from: ReadFrom, branches: &[&str]) -> Result<(SharedLedger, Option<ServerFacts>)> {
        if !self.reads_bucket(from) {
            let (ledger, facts) = self.ledger().await?;
            return Ok((ledger, Some(facts)));
        }
        let (ledger, remarks) = self.bucket_ledger(from, branches).await?;
        for problem in remarks.problems {
            super::complain(&format!("warning: {}: {}", problem.place, problem.what));
        }
        Ok((ledger, None))
    }

    /// The store alone, and what cannot be had from it.
    pub(crate) async fn bucket_ledger(&self, from: ReadFrom, branches: &[&str]) -> Result<(SharedLedger, Remarks)> {
        self.read_bucket(branches).await.map_err(|fault| match self.connection.uri() {
            // Who forgot it is told so; who meant it learns why the store is not enough.
            Err(missing) if !from.no_metadata && matches!(fault.kind, Kind::Config | Kind::Missing) => {
                Fault { what: format!("{}; the store alone does not help: {}", missing.what, fault.what), ..missing }
            }
            _ => fault,
        })
    }

    async fn read_bucket(&self, branches: &[&str]) -> Result<(SharedLedger, Remarks)> {
        let bucket = Bucket::open(self.store().await?, Arc::default()).await?;
        let (names, place) = (bucket.names(), bucket.store().describe());
        if names.is_empty() {
            let first = bucket.problems().first().map(|problem| format!(" that can be read ({}: {})", problem.place, problem.what));
            return Err(Fault::missing(format!("{place} has no branches{}", first.unwrap_or_default())));
        }
        if let Some(unknown) = branches.iter().find(|name| !bucket.has(name)) {
            let known = names.iter().take(10).copied().collect::<Vec<_>>().join(", ");
            return Err(Fault::missing(format!("no branch in {place} is named {unknown}; there are: {known}")));
        }
        let (ledger, remarks) = rebuild::memory(&bucket, branches).await?;
        Ok((Arc::new(ledger), remarks))
    }

    /// The same for those who may create it: its collections and indexes are in place afterwards.
    pub(crate) async fn prepared_ledger(&self) -> Result<(SharedLedger, ServerFacts)> {
        let ledger = self.mongo_ledger().await?;
        let facts = server_facts(ledger.client()).await?;
        ledger.prepare().await?;
        Ok((Arc::new(ledger), facts))
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
        "there are none yet: argon capture start creates one".to_owned()
    } else {
        format!("there are: {}", names.join(", "))
    };
    let fault = Fault::missing(format!("no branch is named {name}; {known}"));
    Err(if names.is_empty() { fault.next(format!("argon capture start {name} --source-db DB")) } else { fault.next("argon branch list") })
}

/// The capture that feeds a branch.
pub(crate) async fn capture_of(ledger: &SharedLedger, branch: &Branch) -> Result<Option<Capture>> {
    Ok(ledger.captures().await?.into_iter().find(|c| c.branch == branch.id))
}
