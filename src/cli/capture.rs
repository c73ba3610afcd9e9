//! `argon capture start|stop|pause|resume|list`: acts on metadata and bucket, needs no engine.

use std::collections::BTreeSet;
use std::time::Duration;

use clap::Subcommand;
use serde_json::json;

use crate::branch::drill::SCRATCH;
use crate::branch::mirror::publish;
use crate::branch::view::waits_for;
use crate::capture::{StartRequest, Started, set_paused, source, start};
use crate::config::{database_name, readable};
use crate::fault::{Fault, Result};
use crate::http::CaptureView;
use crate::ledger::{BaseState, CaptureState, Selection, SharedLedger, fits, is_experimental};
use crate::store::Store;

use super::context::{branch_named, capture_of};
use super::output::{EXPERIMENTAL, fitted};
use super::{Context, Exit, Output};

/// Stands for the name of the database in the name of a branch.
const DB: &str = "{db}";
/// How often a copy is looked at.
const LOOK: Duration = Duration::from_millis(500);

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Starts to capture a database into a branch. When it returns, every later write is captured.
    #[command(after_help = "Examples:
  argon capture start shop/main --source-db shop
  argon capture start shop/main --source-db shop --source-uri env:SHOP_URI
  argon capture start shop/main --source-db shop --exclude 'log_*' --wait
  argon capture start 'prod/{db}' --source-db shop --source-db 'crm_*'

Documents that are there already are copied by the engine while the database is in use; --wait shows how far that is. Several databases, or a pattern of
names, become a branch each, named by {db}. A stopped capture of the same branch and source goes on where it stopped, if the source still serves that
place, and is read through the --source-uri given now. The source needs a replica set of MongoDB 6.0 or newer.")]
    Start(StartArgs),
    /// Stops a capture; its history stays, and `start` goes on from here while the oplog reaches back.
    #[command(after_help = "Example:\n  argon capture stop shop/main")]
    Stop {
        /// project/branch
        branch: String,
    },
    /// Holds a capture for a while: nobody reads the source, the checkpoint stays. Mind the source's oplog: it must reach back to it.
    #[command(after_help = "Example:\n  argon capture pause shop/main")]
    Pause {
        /// project/branch
        branch: String,
    },
    /// Goes on with a paused capture from its checkpoint.
    #[command(after_help = "Example:\n  argon capture resume shop/main")]
    Resume {
        /// project/branch
        branch: String,
    },
    /// Lists captures with their state.
    #[command(after_help = "Examples:\n  argon capture list\n  argon capture list --json")]
    List,
}

/// `capture start`.
#[derive(Debug, clap::Args)]
pub(crate) struct StartArgs {
    /// project/branch; with {db} for the name of the database, where there may be several
    branch: String,
    /// Database to capture, or a pattern of names such as 'crm_*'; may be given several times.
    #[arg(long, value_name = "DB", value_parser = database_pattern, required = true)]
    source_db: Vec<String>,
    /// Where the source is, if not ARGON_MONGODB_URI: env:NAME, file:PATH, or a URI without password or other secrets.
    #[arg(long, value_name = "REF")]
    source_uri: Option<String>,
    /// Only these collections: names, or patterns with * and ?; may be given several times.
    #[arg(long = "collection", value_name = "C")]
    include: Vec<String>,
    /// Not these collections: names, or patterns with * and ?; may be given several times.
    #[arg(long, value_name = "C")]
    exclude: Vec<String>,
    /// Show how the documents that are there are copied, until that is done. It needs a running engine.
    #[arg(long)]
    wait: bool,
}

/// The name of a database, or a pattern of names.
fn database_pattern(text: &str) -> Result<String, String> {
    if text.contains(['*', '?']) { Ok(text.to_owned()) } else { database_name(text) }
}

pub(crate) async fn run(command: Command, context: Context, output: Output) -> Result<Exit> {
    match command {
        Command::Start(args) => return start_all(args, &context, output).await,
        Command::Stop { branch } => stop(&branch, &context, output).await?,
        Command::Pause { branch } => hold(&branch, true, &context, output).await?,
        Command::Resume { branch } => hold(&branch, false, &context, output).await?,
        Command::List => list(&context, output).await?,
    }
    Ok(Exit::Done)
}

/// One capture for each database. Where there are several, one that cannot be started does not keep the others from it.
async fn start_all(args: StartArgs, context: &Context, output: Output) -> Result<Exit> {
    let request = |db: &str, branch: String| -> Result<StartRequest> {
        Ok(StartRequest {
            branch,
            db: db.to_owned(),
            source_uri: args.source_uri.clone(),
            selection: Selection { include: args.include.clone(), exclude: args.exclude.clone() },
            metadata_uri: context.connection.uri()?.to_string(),
            metadata_db: context.connection.metadata_db.clone(),
        })
    };
    let single = args.source_db.len() == 1 && !args.source_db[0].contains(['*', '?']);
    if single {
        let db = &args.source_db[0];
        let (started, view, text) = begin(&request(db, args.branch.replace(DB, db))?, context).await?;
        output.print(&view, || text)?;
        if args.wait {
            wait_for_base(&started, context, output).await?;
        }
        return Ok(Exit::Done);
    }
    if !args.branch.contains(DB) {
        return Err(Fault::config(format!(
            "several databases become a branch each: name them by {DB}, for example prod/{DB}, not {}",
            args.branch
        )));
    }
    let databases = databases(&args, context).await?;
    let (mut views, mut texts, mut waiting, mut failed) = (Vec::new(), Vec::new(), Vec::new(), false);
    for db in &databases {
        let branch = args.branch.replace(DB, db);
        let one = match request(db, branch.clone()) {
            Ok(request) => begin(&request, context).await,
            Err(fault) => Err(fault),
        };
        match one {
            Ok((started, view, text)) => {
                views.push(view);
                texts.push(text);
                waiting.push(started);
            }
            Err(fault) => {
                failed = true;
                views.push(
                    json!({ "branch": branch, "error": { "code": format!("{:?}", fault.kind).to_lowercase(), "message": fault.what } }),
                );
                texts.push(format!("not started {branch}: {}", fault.what));
            }
        }
    }
    output.print(&json!({ "captures": views }), || texts.join("\n"))?;
    if args.wait {
        for started in &waiting {
            wait_for_base(started, context, output).await?;
        }
    }
    Ok(if failed { Exit::Failed } else { Exit::Done })
}

/// The databases that are named, or fit a pattern; never the server's and Argon's own.
async fn databases(args: &StartArgs, context: &Context) -> Result<Vec<String>> {
    let uri = context.connection.uri()?;
    let client = source::connect(args.source_uri.as_deref(), uri).await.map_err(|f| f.at("source"))?;
    let there = client.list_database_names().await.map_err(|e| Fault::rejected(format!("cannot list the databases of the source: {e}")))?;
    let mut found = BTreeSet::new();
    for pattern in &args.source_db {
        if !pattern.contains(['*', '?']) {
            found.insert(pattern.clone());
            continue;
        }
        let before = found.len();
        let own = |name: &str| database_name(name).is_err() || name == context.connection.metadata_db || name.starts_with(SCRATCH);
        found.extend(there.iter().filter(|name| !own(name) && fits(pattern.as_bytes(), name.as_bytes())).cloned());
        if found.len() == before {
            return Err(Fault::missing(format!("no database of the source fits {pattern:?}")));
        }
    }
    Ok(found.into_iter().collect())
}

/// Until the documents that were there are copied, with a bar on a terminal. Stopping it stops nothing but the looking.
async fn wait_for_base(started: &Started, context: &Context, output: Output) -> Result<()> {
    let Some(base) = started.base.as_ref().filter(|base| base.state == BaseState::Copying) else { return Ok(()) };
    let (ledger, _) = context.ledger().await?;
    let bar = output.progress("copying");
    let mut told = None;
    loop {
        let now = ledger.base(&base.id).await?.ok_or_else(|| Fault::missing("the base is gone: the branch was deleted"))?;
        bar.set_length(now.expected_documents.max(now.documents));
        bar.set_position(now.documents);
        bar.set_message(format!("{} {}", readable(now.raw_bytes), now.reason.as_deref().unwrap_or_default()));
        match now.state {
            BaseState::Copying => {}
            BaseState::Complete => {
                bar.finish_and_clear();
                output.remark(&format!(
                    "copied {} documents ({}) of {}",
                    now.documents,
                    readable(now.raw_bytes),
                    started.capture.source.db
                ));
                return Ok(());
            }
            BaseState::Abandoned => {
                return Err(Fault::transient(format!("the copy was given up: {}", now.reason.unwrap_or_default())));
            }
        }
        if now.reason != told && now.reason.is_some() {
            output.remark(&format!("waiting: {}", now.reason.as_deref().unwrap_or_default()));
            told.clone_from(&now.reason);
        }
        tokio::time::sleep(LOOK).await;
    }
}

/// Starts one; what is printed of it as JSON and as text.
async fn begin(request: &StartRequest, context: &Context) -> Result<(Started, serde_json::Value, String)> {
    let store = context.store().await?;
    let (ledger, facts) = context.prepared_ledger().await?;
    crate::store::probe(&*store, &crate::runtime::random::id()).await?;
    let started = start(&ledger, &store, &facts, request).await?;
    if started.resumed {
        mirror(&ledger, Ok(store), &started.branch.id).await;
    }
    let engines = ledger.engines().await?.len();
    let view = json!({
        "capture": CaptureView::from(started.capture.clone()),
        "resumed": started.resumed,
        "notes": started.notes,
        "uncovered": started.branch.uncovered,
        "experimental": is_experimental(&started.capture.source.identity),
        "engines": engines,
    });
    let mut text = format!(
        "{} {}: every write to {} from now on is captured",
        if started.resumed { "resumed" } else { "started" },
        started.capture.branch_name,
        started.capture.source.db
    );
    for note in &started.notes {
        text += &format!("\n  {note}");
    }
    if is_experimental(&started.capture.source.identity) {
        text += &format!("\n  {EXPERIMENTAL}");
    }
    for name in &started.branch.uncovered {
        text += &format!("\n  not covered: {name}");
    }
    if engines == 0 {
        text += "\n  no engine is running: start one with argon run";
    }
    if started.base.as_ref().is_some_and(|base| base.state == BaseState::Copying) {
        text += "\n  the documents that are there are copied by the engine; argon branch show says how far it is";
    }
    Ok((started, view, text))
}

async fn stop(name: &str, context: &Context, output: Output) -> Result<()> {
    let (ledger, _) = context.ledger().await?;
    let branch = branch_named(&ledger, name).await?;
    let capture = capture_of(&ledger, &branch).await?;
    let capture = capture.ok_or_else(|| Fault::missing(format!("{name} has no capture")))?;
    ledger.set_capture_state(&capture.id, CaptureState::Stopped, Some("stopped by the operator")).await?;
    mirror(&ledger, context.store().await, &branch.id).await;
    let capture = ledger.capture(&capture.id).await?.unwrap_or(capture);
    output.print(&CaptureView::from(capture.clone()), || {
        let uri = capture.source.uri.as_ref().map(|uri| format!(" --source-uri '{uri}'")).unwrap_or_default();
        format!("stopped {name}; argon capture start {name} --source-db {}{uri} goes on from here", capture.source.db)
    })
}

async fn hold(name: &str, paused: bool, context: &Context, output: Output) -> Result<()> {
    let (ledger, _) = context.ledger().await?;
    let branch = branch_named(&ledger, name).await?;
    let capture = capture_of(&ledger, &branch).await?.ok_or_else(|| Fault::missing(format!("{name} has no capture")))?;
    let capture = set_paused(&ledger, capture, paused, "command line").await?;
    mirror(&ledger, context.store().await, &branch.id).await;
    let text = if paused {
        format!("paused {name}; argon capture resume {name} goes on from here")
    } else {
        format!("{name} goes on from change {}", capture.position.next_seq)
    };
    output.print(&CaptureView::from(capture), || text)
}

/// The bucket is told too. What the metadata says counts, and an engine repeats this, so a store that is away fails no command.
async fn mirror(ledger: &SharedLedger, store: Result<Store>, branch: &str) {
    let told = match store {
        Ok(store) => publish(ledger, &store, branch).await,
        Err(fault) => Err(fault),
    };
    if let Err(fault) = told {
        tracing::warn!(error = %fault, "branch.json is not in step with the metadata yet; the next engine writes it");
    }
}

async fn list(context: &Context, output: Output) -> Result<()> {
    let (ledger, _) = context.ledger().await?;
    let mut captures = ledger.captures().await?;
    for capture in captures.iter_mut().filter(|c| c.reason.is_none()) {
        if let Some(branch) = ledger.branch(&capture.branch).await? {
            capture.reason = waits_for(&*ledger, &branch, capture.position.next_seq).await?;
        }
    }
    let views: Vec<_> = captures.iter().cloned().map(CaptureView::from).collect();
    output.print(&json!({ "captures": views }), || {
        let rows: Vec<_> = captures
            .iter()
            .map(|c| {
                vec![
                    c.branch_name.clone(),
                    c.source.db.clone(),
                    state_name(c.state).to_string(),
                    (c.position.next_seq - 1).to_string(),
                    c.owner.clone().unwrap_or_else(|| "-".into()),
                    c.reason.clone().unwrap_or_default(),
                ]
            })
            .collect();
        fitted(&["BRANCH", "DATABASE", "STATE", "QUEUED UP TO", "ENGINE", "REASON"], &rows, output.width())
    })
}

pub(super) fn state_name(state: CaptureState) -> &'static str {
    match state {
        CaptureState::Running => "running",
        CaptureState::Stopped => "stopped",
        CaptureState::Failed => "failed",
        CaptureState::Paused => "paused",
    }
}
