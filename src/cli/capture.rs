//! `argon capture start|stop|pause|resume|list`: acts on metadata and bucket, needs no engine.

use clap::Subcommand;
use serde_json::json;

use crate::branch::mirror::publish;
use crate::branch::view::waits_for;
use crate::capture::{StartRequest, set_paused, start};
use crate::config::database_name;
use crate::fault::{Fault, Result};
use crate::http::CaptureView;
use crate::ledger::{CaptureState, SharedLedger, is_experimental};
use crate::store::Store;

use super::context::{branch_named, capture_of};
use super::output::{EXPERIMENTAL, fitted};
use super::{Context, Exit, Output};

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Starts to capture a database into a branch. When it returns, every later write is captured.
    #[command(after_help = "Examples:
  argon capture start shop/main --source-db shop
  argon capture start shop/main --source-db shop --source-uri env:SHOP_URI

A stopped capture of the same branch and source goes on where it stopped, if the source still serves that place, and is read through the
--source-uri given now. The source needs a replica set of MongoDB 6.0 or newer.")]
    Start {
        /// project/branch
        branch: String,
        /// Database to capture.
        #[arg(long, value_name = "DB", value_parser = database_name)]
        source_db: String,
        /// Where the source is, if not ARGON_MONGODB_URI: env:NAME, file:PATH, or a URI without password or other secrets.
        #[arg(long, value_name = "REF")]
        source_uri: Option<String>,
    },
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

pub(crate) async fn run(command: Command, context: Context, output: Output) -> Result<Exit> {
    match command {
        Command::Start { branch, source_db, source_uri } => {
            let request = StartRequest {
                branch,
                db: source_db,
                source_uri,
                metadata_uri: context.connection.uri()?.to_string(),
                metadata_db: context.connection.metadata_db.clone(),
            };
            begin(&request, &context, output).await?;
        }
        Command::Stop { branch } => stop(&branch, &context, output).await?,
        Command::Pause { branch } => hold(&branch, true, &context, output).await?,
        Command::Resume { branch } => hold(&branch, false, &context, output).await?,
        Command::List => list(&context, output).await?,
    }
    Ok(Exit::Done)
}

async fn begin(request: &StartRequest, context: &Context, output: Output) -> Result<()> {
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
    output.print(&view, || {
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
        text
    })
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
        format!("stopped {name}; argon capture start {name} --source-db {} goes on from here", capture.source.db)
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
