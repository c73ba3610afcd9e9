//! Owns: the servers of a benchmark and the `argon` commands against them. Does not own what is measured.

use std::ffi::OsString;
use std::path::PathBuf;
use std::time::Duration;

use argon::devkit::process::Workdir;
use argon::devkit::{ArgonProcess, Mongod, MongodOptions, Weed, engine};
use argon::fault::{Fault, Result};
use argon::runtime::clock;
use argon::store::{self, S3Keys, Store, StoreOptions};
use mongodb::{Client, Database};
use serde_json::{Value, json};

use super::say;
use super::watch::Watch;
use crate::args::{Servers, StoreKind};

/// The captured database.
pub(super) const SOURCE_DB: &str = "bench";
const BUCKET: &str = "argon-bench";
/// Room for a few million changes and what the engine itself writes.
const OPLOG_MB: u32 = 8_192;
const CACHE_GB: f32 = 1.0;
const COMMAND_LIMIT: Duration = Duration::from_secs(120);
const VERIFY_LIMIT: Duration = Duration::from_secs(1_800);
const STOP_LIMIT: Duration = Duration::from_secs(60);

/// Running servers; gone when dropped.
#[derive(Debug)]
pub(super) struct Rig {
    pub mongod: Mongod,
    /// A client that has been used: connecting is not what is measured.
    pub client: Client,
    weed: Option<Weed>,
    dir: Workdir,
    argon: PathBuf,
    settings: Vec<(String, String)>,
}

/// One capture with a metadata database of its own.
#[derive(Debug, Clone)]
pub(super) struct Line {
    pub branch: String,
    pub metadata_db: String,
}

impl Line {
    /// Number `n`.
    pub(super) fn new(n: u32) -> Self {
        Self { branch: format!("bench/r{n}"), metadata_db: format!("argon_bench_{n}") }
    }
}

impl Rig {
    /// Starts mongod and the store.
    pub(super) async fn start(servers: &Servers) -> Result<Self> {
        Self::start_with(servers, Vec::new()).await
    }

    /// The same, with parameters for mongod.
    pub(super) async fn start_with(servers: &Servers, params: Vec<(String, String)>) -> Result<Self> {
        store::install_tls();
        let argon = match &servers.argon {
            Some(path) if path.is_file() => path.clone(),
            Some(path) => return Err(Fault::config(format!("--argon {}: there is no such file", path.display()))),
            None => engine::sibling("argon").map_err(|fault| Fault::config(format!("{}, or name it with --argon", fault.what)))?,
        };
        say("starting mongod");
        let mongod = Mongod::start(MongodOptions { oplog_mb: OPLOG_MB, cache_gb: CACHE_GB, params, ..MongodOptions::default() }).await?;
        let client = mongod.client().await?;
        let weed = match servers.store {
            StoreKind::File => None,
            StoreKind::S3 => {
                say("starting SeaweedFS");
                let weed = Weed::start().await?;
                weed.create_bucket(BUCKET).await?;
                Some(weed)
            }
        };
        Ok(Self { mongod, client, weed, dir: Workdir::new("bench-store")?, argon, settings: servers.settings.clone() })
    }

    /// The source database.
    pub(super) fn source(&self) -> Database {
        self.client.database(SOURCE_DB)
    }

    /// What to watch of a line.
    pub(super) fn watch(&self, line: &Line) -> Watch {
        Watch::new(&self.client.database(&line.metadata_db), &line.branch)
    }

    /// Process id of the store's server, if it has one.
    pub(super) fn store_pid(&self) -> Option<u32> {
        self.weed.as_ref().and_then(Weed::pid)
    }

    /// The store, as the engine uses it.
    pub(super) async fn open_store(&self) -> Result<Store> {
        let s3_keys =
            self.weed.as_ref().map(|weed| S3Keys { access_key: weed.access_key().to_owned(), secret_key: weed.secret_key().to_owned() });
        let options = StoreOptions { endpoint: self.weed.as_ref().map(Weed::endpoint), s3_keys, ..StoreOptions::default() };
        store::open(&self.store_url(), &options).await
    }

    /// What the report says of the servers.
    pub(super) fn describe(&self) -> Value {
        json!({
            "store": if self.weed.is_some() { "s3" } else { "file" },
            "settings": self.settings.iter().map(|(name, value)| format!("{name}={value}")).collect::<Vec<_>>(),
        })
    }

    /// `argon capture start`: when it returns, everything written from then on belongs to the branch.
    pub(super) async fn start_capture(&self, line: &Line) -> Result<()> {
        self.start_capture_with(line, &[]).await
    }

    /// The same with options.
    pub(super) async fn start_capture_with(&self, line: &Line, options: &[&str]) -> Result<()> {
        let args = ["capture", "start", &line.branch, "--source-db", SOURCE_DB, "--json"];
        self.command(line, args.iter().chain(options), COMMAND_LIMIT).await.map(drop)
    }

    /// `argon run`.
    pub(super) fn start_engine(&self, line: &Line) -> Result<ArgonProcess> {
        self.start_engine_with(line, &[])
    }

    /// The same with settings of the benchmark, over which those of the command line go.
    pub(super) fn start_engine_with(&self, line: &Line, settings: &[(String, String)]) -> Result<ArgonProcess> {
        let given = self.env(line);
        let own = settings.iter().filter(|(name, _)| given.iter().all(|(known, _)| known != name));
        let env: Vec<(String, String)> = own.chain(&given).cloned().collect();
        ArgonProcess::start(&self.argon, ["run"], &env)
    }

    /// A command, as a process that can be watched.
    pub(super) fn start_command(&self, line: &Line, args: &[&str]) -> Result<ArgonProcess> {
        ArgonProcess::start(&self.argon, args.iter().copied(), &self.env(line))
    }

    /// SIGTERM; a drain that does not end well is an error.
    pub(super) async fn stop_engine(&self, engine: &mut ArgonProcess) -> Result<()> {
        let exit = engine.terminate(STOP_LIMIT).await?;
        if exit.code == 0 {
            return Ok(());
        }
        Err(Fault::unknown(format!("argon run ended with exit code {} after SIGTERM: {}", exit.code, engine.log_tail(2000))))
    }

    /// `argon verify`; returns how long it took.
    pub(super) async fn verify(&self, line: &Line) -> Result<Duration> {
        let start = clock::now();
        self.command(line, ["verify", &line.branch, "--json"], VERIFY_LIMIT).await?;
        Ok(start.elapsed())
    }

    async fn command<A: Into<OsString>>(&self, line: &Line, args: impl IntoIterator<Item = A>, limit: Duration) -> Result<String> {
        let args: Vec<OsString> = args.into_iter().map(Into::into).collect();
        let name = args.iter().map(|arg| arg.to_string_lossy()).collect::<Vec<_>>().join(" ");
        let output = engine::run_to_end(&self.argon, args, &self.env(line), limit).await?;
        match output.code {
            0 => Ok(output.stdout),
            4 => Err(Fault::corrupt(format!("argon {name} found a difference: {} {}", output.stdout.trim(), output.stderr.trim()))),
            code => {
                Err(Fault::unknown(format!("argon {name} ended with exit code {code}: {} {}", output.stdout.trim(), output.stderr.trim())))
            }
        }
    }

    fn store_url(&self) -> String {
        match &self.weed {
            Some(weed) => weed.store_url(BUCKET, "bench"),
            None => format!("file://{}", self.dir.path().display()),
        }
    }

    fn env(&self, line: &Line) -> Vec<(String, String)> {
        let own = [
            ("ARGON_MONGODB_URI", self.mongod.uri()),
            ("ARGON_METADATA_DB", line.metadata_db.clone()),
            ("ARGON_STORE_URL", self.store_url()),
        ];
        let own = own.map(|(name, value)| (name.to_owned(), value));
        let weed = self.weed.as_ref().map(|weed| weed.env(BUCKET, "bench")).unwrap_or_default();
        own.into_iter().chain(weed).chain(self.settings.iter().cloned()).collect()
    }
}
