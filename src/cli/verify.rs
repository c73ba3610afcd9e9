//! `argon verify`: proves that a branch's history is whole, or names what is not. Needs no engine, except to catch up for `--against-db`.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use crate::branch::history::{History, Progress};
use crate::branch::rebuild::Remarks;
use crate::branch::verify::{AgainstOptions, DeepOptions, VerifyReport, against, structure};
use crate::capture::source;
use crate::config::{database_name, readable, size};
use crate::fault::Result;

use super::context::{ReadFrom, branch_named};
use super::restore::show_progress;
use super::{Context, Exit, Output};

#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  argon verify shop/main                       dense sequence, every object there
  argon verify shop/main --deep                every byte read, every checksum, every change decoded and folded
  argon verify shop/main --deep --no-metadata  the same of what the store alone holds
  argon verify shop/main --against-db shop     the folded history against the live database at one moment
  argon verify shop/main --against-db copy     its head against another database, such as a restored copy

Exit code 0 when nothing differs, 4 when something does.")]
pub(crate) struct Args {
    /// project/branch
    branch: String,
    /// Read every object, decode and fold every change.
    #[arg(long)]
    deep: bool,
    /// Compare with this live database at one cluster time.
    #[arg(long, value_name = "DB", value_parser = database_name)]
    against_db: Option<String>,
    /// Where that database is, if not ARGON_MONGODB_URI: env:NAME, file:PATH or a URI.
    #[arg(long, value_name = "REF", requires = "against_db")]
    against_uri: Option<String>,
    /// How long to wait until history has caught up with the moment of comparison.
    #[arg(long, default_value = "2m", value_name = "TIME", value_parser = humantime::parse_duration)]
    wait: Duration,
    /// Memory for folding.
    #[arg(long, env = "ARGON_MEMORY_BUDGET", default_value = "256MiB", value_name = "SIZE", value_parser = |s: &str| size(s, 32 << 20, 1 << 44))]
    memory_budget: u64,
    /// Where folding spills to.
    #[arg(long, value_name = "DIR")]
    temp_dir: Option<PathBuf>,
    #[command(flatten)]
    read: ReadFrom,
}

pub(crate) async fn run(args: Args, context: Context, output: Output) -> Result<Exit> {
    let from_bucket = context.reads_bucket(args.read);
    let (ledger, remarks) = if from_bucket {
        context.bucket_ledger(args.read, &[&args.branch]).await?
    } else {
        (context.ledger().await?.0, Remarks::default())
    };
    let branch = branch_named(&ledger, &args.branch).await?;
    let store = context.store().await?;
    let progress = Arc::new(Progress::default());
    let shown = tokio::spawn(show_progress(output, progress.clone(), branch.totals.changes));
    let outcome = async {
        let history = History::open(ledger.clone(), store.clone(), &args.branch).await?;
        let temp_dir = args.temp_dir.clone().unwrap_or_else(std::env::temp_dir);
        let deep = args.deep.then(|| DeepOptions { budget: args.memory_budget, temp_dir: temp_dir.clone() });
        let mut report = structure(&history, &*ledger, deep.as_ref(), progress.clone()).await?;
        if from_bucket {
            report.notes.push("read from the store alone: history is what chains there, up to the last segment of it".into());
        }
        report.notes.extend(remarks.notes);
        for problem in remarks.problems {
            report.differs(problem.place, problem.what);
        }
        if let Some(db) = &args.against_db
            && report.identical
        {
            let default =
                if args.against_uri.is_some() { context.connection.uri().unwrap_or_default() } else { context.connection.uri()? };
            let client = source::connect(args.against_uri.as_deref(), default).await.map_err(|f| f.at("--against-db"))?;
            let options = AgainstOptions { db: client.database(db), patience: args.wait, budget: args.memory_budget, temp_dir };
            let live = against(ledger.clone(), store.clone(), &args.branch, &options, progress.clone()).await?;
            let notes = report.notes.into_iter().chain(live.notes).collect();
            report = VerifyReport { segments: report.segments, changes: report.changes, stored_bytes: report.stored_bytes, notes, ..live };
        }
        Ok(report)
    };
    let outcome: Result<VerifyReport> = outcome.await;
    shown.abort();
    let report = outcome?;
    output.print(&report, || text(&report, &args))?;
    Ok(if report.identical { Exit::Done } else { Exit::Different })
}

fn text(r: &VerifyReport, args: &Args) -> String {
    let mut lines: Vec<String> = r.differences.iter().map(|d| format!("DIFFERENT  {}: {}", d.place, d.what)).collect();
    if r.difference_count > r.differences.len() as u64 {
        lines.push(format!("... and {} more", r.difference_count - r.differences.len() as u64));
    }
    lines.extend(r.notes.iter().map(|n| format!("note: {n}")));
    lines.push(format!("{}: {} changes in {} segments, {}", r.branch, r.changes, r.segments, readable(r.stored_bytes)));
    if let (Some(db), Some(at)) = (&args.against_db, &r.at) {
        lines.push(format!("compared with {db} at {at}: {} documents", r.documents));
    }
    let depth = if args.deep { "every byte read" } else { "structure only: --deep reads every byte" };
    lines.push(if r.identical {
        format!("verified: identical ({depth})")
    } else {
        format!("verified: DIFFERENT ({} differences)", r.difference_count)
    });
    lines.join("\n")
}
