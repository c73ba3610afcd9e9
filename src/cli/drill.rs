//! `argon drill`: restores a branch to a random recent point, compares, and drops what it has made. Needs no engine.

use std::path::PathBuf;
use std::sync::Arc;

use crate::branch::drill::{DrillOptions, DrillReport, drill, scratch_name};
use crate::branch::history::{History, Progress};
use crate::capture::source;
use crate::config::{readable, size};
use crate::fault::{Fault, Result};
use crate::runtime::random;

use super::context::branch_named;
use super::restore::{name_and_point, show_progress};
use super::{Context, Exit, Output};

#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  argon drill shop/main
  argon drill shop/main@seq:81234
  argon drill shop/main --to-uri env:SPARE_URI

The copy goes to a database argon_drill_... and is dropped again. It is compared with history, and with the source as it was then, where
the server still knows. What is proven is shown by argon branch show. Exit code 4 when something differs.")]
pub(crate) struct Args {
    /// project/branch, or project/branch@POINT; a random point of the last minutes, if it names none
    branch: String,
    /// Where the copy goes, if not ARGON_DRILL_URI or ARGON_MONGODB_URI: env:NAME, file:PATH or a URI.
    #[arg(long, env = "ARGON_DRILL_URI", value_name = "REF", hide_env_values = true)]
    to_uri: Option<String>,
    /// Memory for folding.
    #[arg(long, env = "ARGON_MEMORY_BUDGET", default_value = "256MiB", value_name = "SIZE", value_parser = |s: &str| size(s, 32 << 20, 1 << 44))]
    memory_budget: u64,
    /// Where folding spills to.
    #[arg(long, value_name = "DIR")]
    temp_dir: Option<PathBuf>,
}

pub(crate) async fn run(args: Args, context: Context, output: Output) -> Result<Exit> {
    let at = args.branch.contains('@');
    let (name, point) = name_and_point(&args.branch, None)?;
    let (ledger, _) = context.ledger().await?;
    let branch = branch_named(&ledger, &name).await?;
    let history = History::open(ledger, context.store().await?, &branch.id).await?;
    let uri = context.connection.uri()?;
    let client = source::connect(args.to_uri.as_deref(), uri).await.map_err(|f| f.at("where the copy goes"))?;
    let source = match &history.capture {
        Some(capture) => {
            let client = source::connect(capture.source.uri.as_deref(), uri).await.map_err(|f| f.at("source"))?;
            Some(client.database(&capture.source.db))
        }
        None => None,
    };
    let scratch = client.database(&scratch_name(&random::id()));
    let options = DrillOptions {
        scratch: scratch.clone(),
        source,
        at: at.then_some(point),
        budget: args.memory_budget,
        temp_dir: args.temp_dir.unwrap_or_else(std::env::temp_dir),
    };
    let progress = Arc::new(Progress::default());
    let shown = tokio::spawn(show_progress(output, progress.clone(), history.branch.totals.changes));
    let outcome = tokio::select! {
        outcome = drill(&history, &options, progress) => outcome,
        _ = tokio::signal::ctrl_c() => {
            let _ = scratch.drop().await;
            Err(Fault::cancelled(format!("stopped; {} is dropped", scratch.name())))
        }
    };
    shown.abort();
    let report = outcome?;
    output.print(&report, || text(&report))?;
    Ok(if report.compared.identical { Exit::Done } else { Exit::Different })
}

fn text(r: &DrillReport) -> String {
    let mut lines: Vec<String> = r.compared.differences.iter().map(|d| format!("DIFFERENT  {}: {}", d.place, d.what)).collect();
    lines.extend(r.compared.notes.iter().map(|n| format!("note: {n}")));
    let (documents, bytes) = (r.documents, readable(r.bytes));
    lines.push(format!("{}: {documents} documents ({bytes}) restored in {:.1} s", r.branch, r.restore_seconds));
    lines.push(format!("compared with {}", r.compared_with));
    lines.push(if r.compared.identical {
        format!("proven restorable: seq:{} ({})", r.seq, r.time)
    } else {
        format!("DIFFERENT: seq:{} ({}) does not come back as it was", r.seq, r.time)
    });
    lines.join("\n")
}
