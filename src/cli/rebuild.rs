//! `argon rebuild`: makes the metadata anew from the bucket alone. Needs no engine.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use crate::branch::rebuild::{Bucket, Options, Orphans, Progress, Report, rebuild};
use crate::config::readable;
use crate::fault::{Fault, Result};
use crate::ledger::{Ledger, SharedLedger};

use super::output::table;
use super::{Context, Exit, Output};

/// Orphans that are named for a person; --json names a hundred of each branch.
const SHOWN: usize = 5;

#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  argon rebuild --dry-run
  argon rebuild
  argon rebuild --metadata-db argon2 --json

The metadata database must be new, or one that an earlier rebuild did not finish: run again, it goes on. From then on other metadata of the same bucket
is out of date: what it still puts there is not history, and its engines refuse to start captures.
Captures go on where the bucket ends; what the oplog no longer has becomes a recorded gap. Exit code 1, and nothing is written, while something that
history needs is damaged.")]
pub(crate) struct Args {
    /// Say what would be made, write nothing. Needs no MongoDB.
    #[arg(long)]
    dry_run: bool,
    /// Go on without what is damaged: history ends before it, and what is behind it is lost for good.
    #[arg(long)]
    skip_damaged: bool,
}

pub(crate) async fn run(args: Args, context: Context, output: Output) -> Result<Exit> {
    let options = Options { dry_run: args.dry_run, skip_damaged: args.skip_damaged };
    let ledger = ledger(&context, options).await?;
    let progress = Arc::new(Progress::default());
    let shown = tokio::spawn(show_progress(output, progress.clone()));
    let outcome = async {
        let bucket = Bucket::open(context.store().await?, progress.clone()).await?;
        if bucket.names().is_empty() && bucket.problems().is_empty() {
            return Err(Fault::missing(format!("{} has no branches: check --store", bucket.store().describe())));
        }
        rebuild(&bucket, ledger.as_ref(), options).await
    };
    let outcome = outcome.await;
    shown.abort();
    let report = outcome?;
    output.print(&report, || text(&report))?;
    Ok(if report.rebuilt { Exit::Done } else { Exit::Failed })
}

/// A dry run makes no database, and does without one.
async fn ledger(context: &Context, options: Options) -> Result<Option<SharedLedger>> {
    if !options.dry_run {
        return Ok(Some(context.prepared_ledger().await?.0));
    }
    if context.connection.mongodb_uri.is_none() {
        context.connection.store_url()?;
        return Ok(None);
    }
    let ledger = context.mongo_ledger().await?;
    Ok(if ledger.is_prepared().await? { Some(Arc::new(ledger) as Arc<dyn Ledger>) } else { None })
}

async fn show_progress(output: Output, progress: Arc<Progress>) {
    let bar = output.progress("reading");
    loop {
        bar.set_length(progress.listed.load(Ordering::Relaxed));
        bar.set_position(progress.read.load(Ordering::Relaxed));
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
}

fn text(r: &Report) -> String {
    let rows: Vec<Vec<String>> = r.branches.iter().filter(|of| of.status != crate::ledger::BranchStatus::Deleted).map(row).collect();
    let mut lines = vec![table(&["BRANCH", "STATUS", "HEAD", "CHANGES", "RAW", "STORED", "SEGMENTS", "BASES", "EPOCH", "ORPHANS"], &rows)];
    let deleted = r.branches.len() - rows.len();
    if deleted > 0 {
        lines.push(format!("{deleted} deleted branches whose objects are still there"));
    }
    for of in &r.branches {
        orphans(&of.name, &of.orphans, &mut lines);
    }
    orphans("no branch", &r.orphans, &mut lines);
    lines.extend(r.notes.iter().map(|note| format!("note: {note}")));
    lines.extend(r.damaged.iter().map(|of| format!("DAMAGED  {}: {}", of.place, of.what)));
    lines.push(match (r.rebuilt, r.dry_run) {
        (false, _) => "nothing is made: mend what is damaged, or go on without it for good by --skip-damaged".into(),
        (true, true) => "this is what would be made".into(),
        (true, false) => "rebuilt: argon run goes on with it".into(),
    });
    lines.join("\n")
}

fn row(of: &crate::branch::rebuild::RebuiltBranch) -> Vec<String> {
    let status = serde_json::to_value(of.status).ok().and_then(|status| status.as_str().map(str::to_owned)).unwrap_or_default();
    vec![
        of.name.clone(),
        status,
        format!("seq:{}", of.head.seq),
        of.totals.changes.to_string(),
        readable(of.totals.raw_bytes),
        readable(of.totals.stored_bytes),
        of.totals.segments.to_string(),
        of.bases.to_string(),
        of.epoch.to_string(),
        of.orphans.count.to_string(),
    ]
}

fn orphans(of: &str, orphans: &Orphans, lines: &mut Vec<String>) {
    lines.extend(orphans.named.iter().take(SHOWN).map(|orphan| format!("not used ({of}): {}: {}", orphan.place, orphan.what)));
    let more = orphans.count.saturating_sub(SHOWN as u64);
    if more > 0 {
        lines.push(format!("not used ({of}): {more} more, --json names them"));
    }
}
