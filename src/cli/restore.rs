//! `argon restore`: writes a branch's database as it was at a point. Needs no engine.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use crate::branch::history::{History, Progress};
use crate::branch::point::Point;
use crate::branch::restore::{RestoreOptions, RestoreReport, restore};
use crate::capture::source;
use crate::config::{database_name, readable, size};
use crate::fault::{Fault, Result};
use crate::ledger::{same_source, server_facts};

use super::context::ReadFrom;
use super::jobs::confirm;
use super::{Context, Exit, Output};

#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  argon restore shop/main --to-db shop_copy
  argon restore shop/main --to-db shop_copy --at seq:81234
  argon restore shop/main@ts:1795467772.11 --to-db shop --to-uri env:OTHER_URI
  argon restore shop/main --to-db shop --drop shop
  argon restore shop/main --to-db shop --at seq:81234 --collection orders --rename orders=then
  argon restore shop/main --to-db shop_copy --collection orders --collection customers
  argon restore shop/main --to-db shop_copy --no-metadata

The target's collections of the same names must be empty or absent, unless --drop is given; other collections are left alone.
With --no-metadata, or without ARGON_MONGODB_URI and with --to-uri, everything is read from the store alone.")]
pub(crate) struct Args {
    /// project/branch, or project/branch@POINT
    branch: String,
    /// Database to write.
    #[arg(long, value_name = "DB", value_parser = database_name)]
    to_db: String,
    /// Where to, if not ARGON_MONGODB_URI: env:NAME, file:PATH or a URI.
    #[arg(long, value_name = "REF")]
    to_uri: Option<String>,
    /// head, seq:N, an RFC 3339 time, or ts:SECONDS.INC
    #[arg(long, value_name = "POINT")]
    at: Option<Point>,
    /// Only this collection or view, by its name at the point; may be given several times. All, if not given.
    #[arg(long = "collection", value_name = "C")]
    collections: Vec<String>,
    /// Another name in the target, by what it is called at the point; may be given several times.
    #[arg(long, value_name = "A=B", value_parser = rename)]
    rename: Vec<(String, String)>,
    /// Drop what is in the way in the target: the name of the database once more, unless --yes is given.
    #[arg(long, value_name = "DB", num_args = 0..=1, default_missing_value = "")]
    drop: Option<String>,
    /// No question asked.
    #[arg(long)]
    yes: bool,
    /// Restore without what a recorded gap has lost.
    #[arg(long)]
    across_gap: bool,
    /// Make TTL indexes without their expiry, so that old documents stay.
    #[arg(long)]
    no_ttl: bool,
    /// Say what would be written, write nothing.
    #[arg(long)]
    dry_run: bool,
    /// Memory for folding; more spills less to disk.
    #[arg(long, env = "ARGON_MEMORY_BUDGET", default_value = "256MiB", value_name = "SIZE", value_parser = |s: &str| size(s, 32 << 20, 1 << 44))]
    memory_budget: u64,
    /// Where folding spills to.
    #[arg(long, value_name = "DIR")]
    temp_dir: Option<PathBuf>,
    #[command(flatten)]
    read: ReadFrom,
}

/// `project/branch@POINT` as a name and a point.
pub(super) fn name_and_point(text: &str, at: Option<Point>) -> Result<(String, Point)> {
    match text.split_once('@') {
        None => Ok((text.to_string(), at.unwrap_or(Point::Head))),
        Some(_) if at.is_some() => Err(Fault::config(format!("{text} names a point already: leave out --at"))),
        Some((name, point)) => Ok((name.to_string(), point.parse()?)),
    }
}

pub(crate) async fn run(args: Args, context: Context, output: Output) -> Result<Exit> {
    let (name, at) = name_and_point(&args.branch, args.at)?;
    // Read from the store alone, the target has to be named; who named nothing is told what is missing.
    let default = if args.to_uri.is_some() { context.connection.uri().unwrap_or_default() } else { context.connection.uri()? };
    let (ledger, facts) = context.history_ledger(args.read, &[&name]).await?;
    let client = source::connect(args.to_uri.as_deref(), default).await.map_err(|f| f.at("target"))?;
    let target = server_facts(&client).await.map_err(|f| f.at("target"))?;
    if args.to_db == context.connection.metadata_db && facts.is_some_and(|facts| same_source(&target.identity, &facts.identity)) {
        return Err(Fault::config(format!("{} is Argon's own metadata database; choose another --to-db", args.to_db)));
    }
    if let Some(named) = args.drop.as_deref().filter(|_| !args.dry_run) {
        check_drop(named, &args.to_db, args.yes)?;
    }
    super::context::branch_named(&ledger, &name).await?;
    let store = context.store().await?;
    let history = History::open(ledger, store, &name).await?;
    let options = RestoreOptions {
        collections: args.collections,
        drop: args.drop.is_some(),
        across_gap: args.across_gap,
        no_ttl: args.no_ttl,
        dry_run: args.dry_run,
        budget: args.memory_budget,
        temp_dir: args.temp_dir.unwrap_or_else(std::env::temp_dir),
        rename: args.rename,
        ..RestoreOptions::new(at)
    };
    let progress = Arc::new(Progress::default());
    let shown = tokio::spawn(show_progress(output, progress.clone(), history.branch.totals.changes));
    let outcome = restore(&history, &client.database(&args.to_db), &options, progress).await;
    shown.abort();
    let report = outcome?;
    output.print(&report, || text(&report))?;
    Ok(Exit::Done)
}

/// The name of the database repeated is consent, and so is `--yes`; on a terminal it is asked for.
pub(super) fn check_drop(named: &str, db: &str, yes: bool) -> Result<()> {
    match named {
        named if named == db => Ok(()),
        "" => confirm(yes, &format!("--drop deletes the collections of {db} that this branch also has")),
        other => Err(Fault::config(format!("--drop {other} is not the database that is written, which is {db}"))),
    }
}

/// `a=b`; a name may hold anything but the first `=`.
pub(super) fn rename(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((from, to)) if !from.is_empty() && !to.is_empty() && !to.contains('\0') && !to.starts_with("system.") => {
            Ok((from.to_owned(), to.to_owned()))
        }
        _ => Err("write OLD=NEW, two names of collections".into()),
    }
}

/// Reading first, then writing: one bar each, on a terminal only.
pub(super) async fn show_progress(output: Output, progress: Arc<Progress>, changes: u64) {
    let bar = output.progress("reading");
    bar.set_length(changes);
    let mut writing = false;
    loop {
        let documents = progress.documents.load(Ordering::Relaxed);
        if documents > 0 && !writing {
            writing = true;
            bar.set_prefix("writing");
            bar.unset_length();
        }
        if writing {
            let expected = progress.expected_documents.load(Ordering::Relaxed);
            if expected > 0 {
                bar.set_length(expected.max(documents));
            }
            bar.set_position(documents);
            bar.set_message(readable(progress.document_bytes.load(Ordering::Relaxed)));
        } else {
            bar.set_position(progress.changes.load(Ordering::Relaxed));
            bar.set_message(readable(progress.stored_bytes.load(Ordering::Relaxed)));
        }
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
}

fn text(r: &RestoreReport) -> String {
    let did = if r.dry_run { "would restore" } else { "restored" };
    let mut lines = vec![format!(
        "{did} {} at seq:{} to {}: {} documents ({}) in {} collections, {} views",
        r.branch,
        r.seq,
        r.db,
        r.documents,
        readable(r.bytes),
        r.collections.len(),
        r.views.len()
    )];
    lines.extend(r.collections.iter().map(|c| format!("  {}: {} documents, {} indexes", c.name, c.documents, c.indexes)));
    lines.extend(r.views.iter().map(|v| format!("  {v}: view")));
    if r.left_out > 0 {
        lines.push(format!("  left out: {} changes in or behind a gap", r.left_out));
    }
    if let Some(seconds) = r.estimated_seconds {
        lines.push(format!(
            "  reads {} from the store, takes about {}",
            readable(r.read_bytes),
            humantime::format_duration(Duration::from_secs(seconds))
        ));
    }
    if !r.ttl.is_empty() {
        lines.push(format!("  these expire documents from now on (--no-ttl restores without): {}", r.ttl.join(", ")));
    }
    lines.extend(r.notes.iter().map(|n| format!("  note: {n}")));
    lines.join("\n")
}
