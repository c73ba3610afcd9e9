//! `argon log|get|diff|export`: looking into history without restoring it. Needs no engine.

use std::io::Write;
use std::path::PathBuf;
use std::sync::Arc;

use bson::{Document, RawDocumentBuf};
use serde_json::json;

use crate::branch::history::{History, Progress};
use crate::branch::look::{self, Difference, ExportFormat, ExportOptions, LogOptions, Side};
use crate::branch::point::Point;
use crate::config::{readable, size};
use crate::fault::{Fault, Result};

use super::context::{ReadFrom, branch_named};
use super::restore::{name_and_point, show_progress};
use super::{Context, Exit, Output};

#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  argon log shop/main --limit 20
  argon log shop/main --collection orders --since 2026-11-23T21:00:00Z --until 2026-11-23T22:00:00Z
  argon log shop/main --collection orders --id '{\"$oid\":\"65a0c0ffee00000000000001\"}'

One event a line, oldest first, as extended JSON; transactions are shown whole.")]
pub(crate) struct LogArgs {
    /// project/branch
    branch: String,
    /// Only changes of this collection; may be given several times.
    #[arg(long = "collection", value_name = "C")]
    collections: Vec<String>,
    /// Only changes of this document: extended JSON, or a bare word. Needs one --collection.
    #[arg(long, value_name = "JSON")]
    id: Option<String>,
    /// Changes behind this point.
    #[arg(long, value_name = "POINT")]
    since: Option<Point>,
    /// Changes up to this point.
    #[arg(long, value_name = "POINT")]
    until: Option<Point>,
    /// So many at most.
    #[arg(long, value_name = "N")]
    limit: Option<u64>,
    #[command(flatten)]
    read: ReadFrom,
}

#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  argon get shop/main --collection orders --id 42
  argon get shop/main@seq:81234 --collection orders --id '{\"$oid\":\"65a0c0ffee00000000000001\"}'

Exit code 1 when there was no such document.")]
pub(crate) struct GetArgs {
    /// project/branch, or project/branch@POINT
    branch: String,
    /// Its name at the point.
    #[arg(long, value_name = "C")]
    collection: String,
    /// Extended JSON, or a bare word.
    #[arg(long, value_name = "JSON", allow_hyphen_values = true)]
    id: String,
    /// head, seq:N, an RFC 3339 time, or ts:SECONDS.INC
    #[arg(long, value_name = "POINT")]
    at: Option<Point>,
    #[command(flatten)]
    read: ReadFrom,
}

#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  argon diff shop/main@seq:100 shop/main
  argon diff shop/main shop/dev --stat
  argon diff shop/main@2026-11-23T21:02:52Z shop/main --collection orders --exit-code

What the second has and the first has not is `added`. With --exit-code: 4 when something differs.")]
pub(crate) struct DiffArgs {
    /// project/branch or project/branch@POINT
    a: String,
    /// project/branch or project/branch@POINT
    b: String,
    /// Only this collection or view; may be given several times.
    #[arg(long = "collection", value_name = "C")]
    collections: Vec<String>,
    /// Figures only.
    #[arg(long)]
    stat: bool,
    /// Say by the exit code whether something differs.
    #[arg(long)]
    exit_code: bool,
    #[command(flatten)]
    room: Room,
    #[command(flatten)]
    read: ReadFrom,
}

#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  argon export shop/main --format bson --to dump
  argon export shop/main --at 2026-11-23T21:02:52Z --format jsonl --to files --collection orders

BSON is what mongodump writes: mongorestore reads the directory.")]
pub(crate) struct ExportArgs {
    /// project/branch, or project/branch@POINT
    branch: String,
    /// head, seq:N, an RFC 3339 time, or ts:SECONDS.INC
    #[arg(long, value_name = "POINT")]
    at: Option<Point>,
    /// bson (mongorestore reads it) or jsonl.
    #[arg(id = "export-format", long = "format", value_name = "bson|jsonl")]
    format: ExportFormat,
    /// Directory in which one of the database's name is made.
    #[arg(long, value_name = "DIR")]
    to: PathBuf,
    /// Only this collection or view; may be given several times.
    #[arg(long = "collection", value_name = "C")]
    collections: Vec<String>,
    /// Replace what an earlier export left there.
    #[arg(long)]
    overwrite: bool,
    /// Export without what a recorded gap has lost.
    #[arg(long)]
    across_gap: bool,
    #[command(flatten)]
    room: Room,
    #[command(flatten)]
    read: ReadFrom,
}

/// Memory and disk of a fold.
#[derive(Debug, clap::Args)]
pub(crate) struct Room {
    /// Memory for folding; more spills less to disk.
    #[arg(long, env = "ARGON_MEMORY_BUDGET", default_value = "256MiB", value_name = "SIZE", value_parser = |s: &str| size(s, 32 << 20, 1 << 44))]
    memory_budget: u64,
    /// Where folding spills to.
    #[arg(long, value_name = "DIR")]
    temp_dir: Option<PathBuf>,
}

impl Room {
    fn dir(&self) -> PathBuf {
        self.temp_dir.clone().unwrap_or_else(std::env::temp_dir)
    }
}

async fn open(context: &Context, read: ReadFrom, name: &str) -> Result<History> {
    let (ledger, _) = context.history_ledger(read, &[name]).await?;
    let branch = branch_named(&ledger, name).await?;
    History::open(ledger, context.store().await?, &branch.id).await
}

fn raw(doc: &Document) -> Result<RawDocumentBuf> {
    RawDocumentBuf::try_from(doc).map_err(|e| Fault::corrupt(format!("cannot be shown: {e}")))
}

pub(crate) async fn log(args: LogArgs, context: Context, output: Output) -> Result<Exit> {
    let history = open(&context, args.read, &args.branch).await?;
    let id = args.id.as_deref().map(look::parse_id).transpose()?;
    let options = LogOptions { collections: args.collections, id, since: args.since, until: args.until, limit: args.limit };
    let canonical = output.is_json();
    let mut line = String::new();
    let shown = look::log(&history, &options, |seq, event| {
        line.clear();
        let mut numbered = bson::doc! {"seq": i64::try_from(seq).unwrap_or(i64::MAX)};
        numbered.extend(event);
        look::write_document(&raw(&numbered)?, canonical, &mut line)?;
        // A closed pipe is no error: whoever read has seen enough.
        Ok(writeln!(std::io::stdout(), "{line}").is_ok())
    })
    .await?;
    if shown == 0 {
        output.remark("no such changes");
    }
    Ok(Exit::Done)
}

pub(crate) async fn get(args: GetArgs, context: Context, output: Output) -> Result<Exit> {
    let (name, at) = name_and_point(&args.branch, args.at)?;
    let id = look::parse_id(&args.id)?;
    let history = open(&context, args.read, &name).await?;
    let found = look::get(&history, &args.collection, &id, at).await?;
    let missing = || Fault::missing(format!("there was no document with _id {} in {:?} at {at}", args.id, args.collection));
    let found = found.ok_or_else(missing)?;
    let mut text = String::new();
    look::write_document(&found.doc, output.is_json(), &mut text)?;
    let _ = writeln!(std::io::stdout(), "{text}");
    Ok(Exit::Done)
}

pub(crate) async fn diff(args: DiffArgs, context: Context, output: Output) -> Result<Exit> {
    let (a, at_a) = name_and_point(&args.a, None)?;
    let (b, at_b) = name_and_point(&args.b, None)?;
    let (a, b) = (open(&context, args.read, &a).await?, open(&context, args.read, &b).await?);
    let progress = Arc::new(Progress::default());
    let (stat, json) = (args.stat, output.is_json());
    let shown = tokio::spawn(show_progress(output, progress.clone(), a.branch.head.seq + b.branch.head.seq));
    let sides = (Side { history: &a, at: at_a }, Side { history: &b, at: at_b });
    let each = move |difference: Difference| {
        if stat {
            return Ok(true);
        }
        let line = if json { as_json(&difference)? } else { as_text(&difference)? };
        Ok(writeln!(std::io::stdout(), "{line}").is_ok())
    };
    let outcome = look::diff(sides.0, sides.1, &args.collections, args.room.memory_budget, args.room.dir(), progress, each).await;
    shown.abort();
    let report = outcome?;
    if stat || !json {
        output.print(&report, || {
            let lines = report.collections.iter().map(|(name, n)| {
                let catalogue = if n.catalogue > 0 { format!(", {} in options, indexes or existence", n.catalogue) } else { String::new() };
                format!("{name}: {} added, {} removed, {} changed{catalogue}", n.added, n.removed, n.changed)
            });
            let end = if report.equal {
                format!("{} and {} are equal", report.a, report.b)
            } else {
                format!("{} and {} differ", report.a, report.b)
            };
            lines.chain([end]).collect::<Vec<_>>().join("\n")
        })?;
    }
    Ok(if report.equal || !args.exit_code { Exit::Done } else { Exit::Different })
}

fn as_text(difference: &Difference) -> Result<String> {
    let mut text;
    match difference {
        Difference::Collection { name, what } => text = format!("~ {name}: {what}"),
        Difference::Added { collection, doc } => {
            text = format!("+ {collection} ");
            look::write_document(doc, false, &mut text)?;
        }
        Difference::Removed { collection, doc } => {
            text = format!("- {collection} ");
            look::write_document(doc, false, &mut text)?;
        }
        Difference::Changed { collection, id, fields } => {
            text = format!("! {collection} _id {}", value(id)?);
            for (path, a, b) in fields {
                let shown = |v: &Option<bson::Bson>| v.as_ref().map_or(Ok("nothing".to_owned()), value);
                text.push_str(&format!("\n    {path}: {} -> {}", shown(a)?, shown(b)?));
            }
        }
    }
    Ok(text)
}

fn value(value: &bson::Bson) -> Result<String> {
    let holder = raw(&bson::doc! {"v": value.clone()})?;
    let mut text = String::new();
    if let Ok(Some(value)) = holder.get("v") {
        look::write_value(value, false, &mut text)?;
    }
    Ok(text)
}

/// One object a line, values as canonical extended JSON.
fn as_json(difference: &Difference) -> Result<String> {
    let doc = match difference {
        Difference::Collection { name, what } => bson::doc! {"collection": name, "kind": "catalogue", "what": what},
        Difference::Added { collection, doc } => bson::doc! {"collection": collection, "kind": "added", "document": document(doc)?},
        Difference::Removed { collection, doc } => bson::doc! {"collection": collection, "kind": "removed", "document": document(doc)?},
        Difference::Changed { collection, id, fields } => {
            let fields = fields.iter().map(|(path, a, b)| {
                let mut field = bson::doc! {"path": path};
                field.extend(a.clone().map(|a| ("a".to_owned(), a)));
                field.extend(b.clone().map(|b| ("b".to_owned(), b)));
                field
            });
            bson::doc! {"collection": collection, "kind": "changed", "_id": id.clone(), "fields": fields.collect::<Vec<_>>()}
        }
    };
    let mut text = String::new();
    look::write_document(&raw(&doc)?, true, &mut text)?;
    Ok(text)
}

fn document(doc: &RawDocumentBuf) -> Result<Document> {
    Document::try_from(doc.as_ref()).map_err(|e| Fault::corrupt(format!("cannot be shown: {e}")))
}

pub(crate) async fn export(args: ExportArgs, context: Context, output: Output) -> Result<Exit> {
    let (name, at) = name_and_point(&args.branch, args.at)?;
    let history = open(&context, args.read, &name).await?;
    let options = ExportOptions {
        at,
        format: args.format,
        dir: args.to,
        collections: args.collections,
        overwrite: args.overwrite,
        across_gap: args.across_gap,
        budget: args.room.memory_budget,
        temp_dir: args.room.dir(),
    };
    let progress = Arc::new(Progress::default());
    let shown = tokio::spawn(show_progress(output, progress.clone(), history.branch.head.seq));
    let outcome = look::export(&history, &options, progress).await;
    shown.abort();
    let report = outcome?;
    output.print(&json!(report), || {
        let mut lines = vec![format!(
            "exported {} at seq:{} to {}: {} documents ({}) in {} collections, {} views",
            report.branch,
            report.seq,
            report.dir,
            report.documents,
            readable(report.bytes),
            report.collections.len(),
            report.views.len()
        )];
        lines.extend(report.notes.iter().map(|note| format!("  note: {note}")));
        lines.join("\n")
    })?;
    Ok(Exit::Done)
}
