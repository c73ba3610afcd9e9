//! `argon queue show|pause|resume`: acts on the metadata; every engine obeys within a second or two.

use clap::Subcommand;

use crate::branch::point::rfc3339;
use crate::fault::Result;
use crate::http::PausesView;
use crate::ledger::{JobKind, PauseTarget, SharedLedger};

use super::context::branch_named;
use super::output::table;
use super::{Context, Exit, Output};

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Shows what is paused.
    #[command(after_help = "Example:\n  argon queue show")]
    Show,
    /// Stops the taking of jobs; running ones end, captures go on and fill the queue up to ARGON_QUEUE_MAX_BYTES.
    #[command(after_help = "Examples:\n  argon queue pause --branch shop/main\n  argon queue pause --kind noop\n  argon queue pause --all")]
    Pause(What),
    /// Ends a pause.
    #[command(after_help = "Examples:\n  argon queue resume --branch shop/main\n  argon queue resume --all")]
    Resume(What),
}

/// Exactly one of these.
#[derive(Debug, Clone, clap::Args)]
#[group(required = true, multiple = false)]
pub(crate) struct What {
    /// A kind of job: sync, snapshot, compression, notification, cleanup, drill, noop.
    #[arg(long, value_name = "KIND")]
    kind: Option<JobKind>,
    /// The jobs of a branch.
    #[arg(long, value_name = "BRANCH")]
    branch: Option<String>,
    /// Every job.
    #[arg(long)]
    all: bool,
}

pub(crate) async fn run(command: Command, context: Context, output: Output) -> Result<Exit> {
    let (ledger, _) = context.ledger().await?;
    match command {
        Command::Show => {}
        Command::Pause(what) => ledger.set_pause(&target(&ledger, &what).await?, true, "command line").await?,
        Command::Resume(what) => ledger.set_pause(&target(&ledger, &what).await?, false, "command line").await?,
    }
    show(&ledger, output).await?;
    Ok(Exit::Done)
}

async fn target(ledger: &SharedLedger, what: &What) -> Result<PauseTarget> {
    Ok(match (what.kind, &what.branch) {
        (Some(kind), _) => PauseTarget::Kind(kind),
        (None, Some(name)) => PauseTarget::Branch(branch_named(ledger, name).await?.id),
        (None, None) => PauseTarget::All,
    })
}

async fn show(ledger: &SharedLedger, output: Output) -> Result<()> {
    let view = PausesView::from(ledger.pauses().await?);
    let mut rows = Vec::new();
    for pause in &view.pauses {
        let what = match (&pause.kind, &pause.branch) {
            (Some(kind), _) => format!("kind {kind}"),
            (None, Some(id)) => format!("branch {}", ledger.branch(id).await?.map_or_else(|| id.clone(), |b| b.name)),
            (None, None) => "everything".to_owned(),
        };
        rows.push(vec![what, rfc3339(pause.at_ms), pause.by.clone()]);
    }
    output.print(&view, || if rows.is_empty() { "nothing is paused".to_owned() } else { table(&["PAUSED", "SINCE", "BY"], &rows) })
}
