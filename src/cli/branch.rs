//! `argon branch create|list|show|rename|archive|delete|checkout`: acts on metadata and bucket, needs no engine.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use clap::Subcommand;
use serde_json::json;

use crate::branch::checkout::{self, CheckoutOptions};
use crate::branch::fork::fork;
use crate::branch::history::{History, Progress};
use crate::branch::layout::{BranchName, project_of};
use crate::branch::mirror::publish;
use crate::branch::restore::RestoreOptions;
use crate::branch::view::BranchView;
use crate::capture::source;
use crate::config::{database_name, readable, size};
use crate::fault::{Fault, Result};
use crate::http::CaptureView;
use crate::ledger::{BranchStatus, Fidelity, SharedLedger, Source, same_source, server_facts};

use super::context::{ReadFrom, branch_named};
use super::jobs::confirm;
use super::output::{EXPERIMENTAL, table};
use super::restore::{check_drop, name_and_point, show_progress};
use super::{Context, Exit, Output};

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Makes a branch from any point of another one: a pointer, whatever the size.
    #[command(after_help = "Examples:
  argon branch create shop/dev --from shop/main
  argon branch create shop/before --from shop/main@2026-11-23T21:02:52Z
  argon branch create shop/try --from shop/main --at seq:81234 --ttl 2h")]
    Create {
        /// project/branch, of the project of its parent
        branch: String,
        /// project/branch to fork off, or project/branch@POINT
        #[arg(long, value_name = "BRANCH")]
        from: String,
        /// head, seq:N, an RFC 3339 time, or ts:SECONDS.INC
        #[arg(long, value_name = "POINT")]
        at: Option<crate::branch::point::Point>,
        /// It deletes itself after this.
        #[arg(long, value_name = "TIME", value_parser = humantime::parse_duration)]
        ttl: Option<Duration>,
    },
    /// Lists branches as a tree, with what they hold and how old they are.
    #[command(after_help = "Examples:\n  argon branch list\n  argon branch list --json\n  argon branch list --no-metadata")]
    List {
        /// Also those that are deleted and whose objects are still there.
        #[arg(long)]
        deleted: bool,
        #[command(flatten)]
        read: ReadFrom,
    },
    /// Shows a branch: head, what can be restored, sizes, and what is wrong with it.
    #[command(after_help = "Examples:\n  argon branch show shop/main\n  argon branch show shop/main --no-metadata")]
    Show {
        /// project/branch
        branch: String,
        #[command(flatten)]
        read: ReadFrom,
    },
    /// Gives a branch another name within its project.
    #[command(after_help = "Example:\n  argon branch rename shop/dev shop/old-dev")]
    Rename {
        /// project/branch
        branch: String,
        /// project/branch
        to: String,
    },
    /// Stops its capture for good; everything can still be restored.
    #[command(after_help = "Examples:\n  argon branch archive shop/dev\n  argon branch archive shop/dev --undo")]
    Archive {
        /// project/branch
        branch: String,
        /// Takes it back; its capture has to be started again.
        #[arg(long)]
        undo: bool,
    },
    /// Deletes a branch: its objects go after ARGON_DELETE_GRACE. Refused while others were forked from it.
    #[command(after_help = "Example:\n  argon branch delete shop/dev --yes")]
    Delete {
        /// project/branch
        branch: String,
        /// No question asked.
        #[arg(long)]
        yes: bool,
    },
    /// Restores a branch into a database and captures what is written there into the branch.
    #[command(after_help = "Examples:
  argon branch checkout shop/dev --to-db shop_dev
  argon branch checkout shop/try --from shop/main --to-db shop_try --ttl 2h
  argon branch checkout shop/dev --to-db shop_dev --to-uri env:DEV_URI

With --from the branch is made first. With --ttl branch and database delete themselves after that time. Killed and run again it ends right.")]
    Checkout(Box<CheckoutArgs>),
}

#[derive(Debug, clap::Args)]
pub(crate) struct CheckoutArgs {
    /// project/branch
    branch: String,
    /// Database to write; it must be empty, unless --drop is given.
    #[arg(long, value_name = "DB", value_parser = database_name)]
    to_db: String,
    /// Where the database is, if not ARGON_MONGODB_URI: env:NAME, file:PATH, or a URI without password or other secrets.
    #[arg(long, value_name = "REF")]
    to_uri: Option<String>,
    /// Makes the branch first, forked off this one (project/branch or project/branch@POINT).
    #[arg(long, value_name = "BRANCH")]
    from: Option<String>,
    /// Branch and database go after this.
    #[arg(long, value_name = "TIME", value_parser = humantime::parse_duration)]
    ttl: Option<Duration>,
    /// Drop what is in the way in the target: the name of the database once more, unless --yes is given.
    #[arg(long, value_name = "DB", num_args = 0..=1, default_missing_value = "")]
    drop: Option<String>,
    /// No question asked.
    #[arg(long)]
    yes: bool,
    /// Make TTL indexes without their expiry, so that old documents stay.
    #[arg(long)]
    no_ttl: bool,
    /// Memory for folding.
    #[arg(long, env = "ARGON_MEMORY_BUDGET", default_value = "256MiB", value_name = "SIZE", value_parser = |s: &str| size(s, 32 << 20, 1 << 44))]
    memory_budget: u64,
    /// Where folding spills to.
    #[arg(long, value_name = "DIR")]
    temp_dir: Option<PathBuf>,
}

pub(crate) async fn run(command: Command, context: Context, output: Output) -> Result<Exit> {
    match command {
        Command::Create { branch, from, at, ttl } => {
            let (from, at) = name_and_point(&from, at)?;
            let history = open(&context, &from).await?;
            let made = fork(&history, &branch, at, ttl).await?;
            let view = BranchView::load(&**history.ledger(), &made.id).await?;
            let shown = view.parent.clone().unwrap_or_default();
            output.print(&view, || format!("created {} from {shown}", view.name))?;
        }
        Command::List { deleted, read } => list(&context, deleted, read, output).await?,
        Command::Show { branch, read } => {
            let (ledger, _) = context.history_ledger(read, &[&branch]).await?;
            let branch = branch_named(&ledger, &branch).await?;
            let view = BranchView::load(&*ledger, &branch.id).await?;
            output.print(&view, || show(&view))?;
        }
        Command::Rename { branch, to } => rename(&branch, &to, &context, output).await?,
        Command::Archive { branch, undo } => {
            let (ledger, _) = context.ledger().await?;
            let row = branch_named(&ledger, &branch).await?;
            ledger.archive_branch(&row.id, !undo).await?;
            let text = if undo { format!("{branch} is no longer archived") } else { format!("archived {branch}") };
            changed(&ledger, &context, &row.id, output, text).await?;
        }
        Command::Delete { branch, yes } => {
            let (ledger, _) = context.ledger().await?;
            let row = branch_named(&ledger, &branch).await?;
            confirm(yes, &format!("deleting {branch} removes its history after ARGON_DELETE_GRACE"))?;
            ledger.delete_branch(&row.id).await?;
            changed(&ledger, &context, &row.id, output, format!("deleted {branch}")).await?;
        }
        Command::Checkout(args) => check_out(*args, &context, output).await?,
    }
    Ok(Exit::Done)
}

async fn open(context: &Context, name: &str) -> Result<History> {
    let (ledger, _) = context.ledger().await?;
    let branch = branch_named(&ledger, name).await?;
    History::open(ledger, context.store().await?, &branch.id).await
}

/// The bucket is told, then the branch is shown. What the metadata says counts: a store that is away fails no command.
async fn changed(ledger: &SharedLedger, context: &Context, id: &str, output: Output, text: String) -> Result<()> {
    let told = match context.store().await {
        Ok(store) => publish(ledger, &store, id).await,
        Err(fault) => Err(fault),
    };
    if let Err(fault) = told {
        tracing::warn!(error = %fault, "branch.json is not in step with the metadata yet");
    }
    let view = BranchView::load(&**ledger, id).await?;
    output.print(&view, || text)
}

async fn rename(branch: &str, to: &str, context: &Context, output: Output) -> Result<()> {
    let name = BranchName::parse(to)?;
    let (ledger, _) = context.ledger().await?;
    let row = branch_named(&ledger, branch).await?;
    if name.project() != project_of(&row.name) {
        return Err(Fault::config(format!(
            "{to} is of another project than {branch}: a branch stays in its project, whose name is in its objects' keys"
        )));
    }
    ledger.rename_branch(&row.id, name.as_str()).await?;
    changed(&ledger, context, &row.id, output, format!("renamed {branch} to {to}")).await
}

async fn check_out(args: CheckoutArgs, context: &Context, output: Output) -> Result<()> {
    let (ledger, facts) = context.ledger().await?;
    if let Some(reference) = &args.to_uri {
        source::check_reference(reference)?;
    }
    if let Some(named) = &args.drop {
        check_drop(named, &args.to_db, args.yes)?;
    }
    let client = source::connect(args.to_uri.as_deref(), context.connection.uri()?).await.map_err(|f| f.at("target"))?;
    let target = server_facts(&client).await.map_err(|f| f.at("target"))?;
    if args.to_db == context.connection.metadata_db && same_source(&target.identity, &facts.identity) {
        return Err(Fault::config(format!("{} is Argon's own metadata database; choose another --to-db", args.to_db)));
    }
    let store = context.store().await?;
    let source = Source::new(args.to_uri.clone(), args.to_db.clone(), target.identity);
    // Run again after it was killed, the branch is there already; one that is refused is not made.
    let known = match ledger.branch_named(&args.branch).await? {
        Some(branch) => Some(branch),
        None => ledger.branch(&args.branch).await?,
    };
    checkout::refuse_in_use(&*ledger, known.as_ref().map(|branch| branch.id.as_str()), &source).await?;
    let branch = match (known, &args.from) {
        (Some(branch), _) => branch,
        (None, Some(from)) => {
            let (from, at) = name_and_point(from, None)?;
            let parent = branch_named(&ledger, &from).await?;
            fork(&History::open(ledger.clone(), store.clone(), &parent.id).await?, &args.branch, at, args.ttl).await?
        }
        (None, None) => branch_named(&ledger, &args.branch).await?,
    };
    let history = History::open(ledger.clone(), store.clone(), &branch.id).await?;
    let restore = RestoreOptions {
        drop: args.drop.is_some(),
        no_ttl: args.no_ttl,
        budget: args.memory_budget,
        temp_dir: args.temp_dir.unwrap_or_else(std::env::temp_dir),
        ..RestoreOptions::new(crate::branch::point::Point::Head)
    };
    let options = CheckoutOptions { restore, source, ttl: args.ttl };
    let progress = Arc::new(Progress::default());
    let shown = tokio::spawn(show_progress(output, progress.clone(), history.branch.head.seq));
    let outcome = checkout::checkout(&history, &client.database(&args.to_db), &options, progress).await;
    shown.abort();
    let (capture, report) = outcome?;
    let _ = publish(&ledger, &store, &branch.id).await;
    let view = json!({ "capture": CaptureView::from(capture), "restored": report });
    output.print(&view, || match &report {
        Some(report) => format!(
            "checked out {} to {}: {} documents; what is written there from now on is history of {}",
            branch.name, args.to_db, report.documents, branch.name
        ),
        None => format!("{} is checked out to {} already", branch.name, args.to_db),
    })
}

async fn list(context: &Context, deleted: bool, read: ReadFrom, output: Output) -> Result<()> {
    let (ledger, _) = context.history_ledger(read, &[]).await?;
    let mut views = Vec::new();
    let now_ms = ledger.now_ms().await?;
    for branch in ledger.branches().await?.into_iter().filter(|b| deleted || b.deleted_ms.is_none()) {
        views.push((BranchView::load(&*ledger, &branch.id).await?, branch));
    }
    let json: Vec<&BranchView> = views.iter().map(|(view, _)| view).collect();
    output.print(&json!({ "branches": json }), || {
        let mut children: BTreeMap<Option<&str>, Vec<usize>> = BTreeMap::new();
        let known = |id: &str| views.iter().any(|(view, _)| view.id == id);
        for (n, (_, branch)) in views.iter().enumerate() {
            let parent = branch.parent.as_ref().map(|parent| parent.id.as_str()).filter(|id| known(id));
            children.entry(parent).or_default().push(n);
        }
        let mut rows = Vec::new();
        let mut open: Vec<(usize, usize)> = children.get(&None).into_iter().flatten().rev().map(|n| (*n, 0)).collect();
        while let Some((n, depth)) = open.pop() {
            let (view, branch) = &views[n];
            rows.push(row(view, depth, now_ms.saturating_sub(branch.created_ms)));
            open.extend(children.get(&Some(view.id.as_str())).into_iter().flatten().rev().map(|n| (*n, depth + 1)));
        }
        table(&["BRANCH", "STATUS", "FROM", "HEAD", "CAPTURED UNTIL", "CHANGES", "RAW", "STORED", "SEGMENTS", "AGE"], &rows)
    })
}

/// Days, hours or minutes.
fn age(ms: i64) -> String {
    let minutes = ms.max(0) / 60_000;
    match minutes {
        m if m >= 2 * 1_440 => format!("{} d", m / 1_440),
        m if m >= 120 => format!("{} h", m / 60),
        m => format!("{m} min"),
    }
}

fn row(v: &BranchView, depth: usize, age_ms: i64) -> Vec<String> {
    let from = v.parent.as_ref().and_then(|parent| parent.split_once('@')).map_or("-", |(_, at)| at);
    vec![
        format!("{}{}", "  ".repeat(depth), v.name),
        status_name(v.status).into(),
        from.to_owned(),
        format!("seq:{}", v.head.seq),
        v.captured_until.map_or("-".into(), |t| t.to_string()),
        v.totals.changes.to_string(),
        readable(v.totals.raw_bytes),
        readable(v.totals.stored_bytes),
        v.totals.segments.to_string(),
        age(age_ms),
    ]
}

fn show(v: &BranchView) -> String {
    let mut lines = vec![
        format!("branch         {}", v.name),
        format!("id             {}", v.id),
        format!("from           {}", v.parent.as_deref().unwrap_or("a capture")),
        format!("status         {}{}", status_name(v.status), v.reason.as_ref().map(|r| format!(": {r}")).unwrap_or_default()),
        format!("fidelity       {}", fidelity_name(v.fidelity)),
    ];
    lines.extend(v.expires.iter().map(|at| format!("expires        {at}")));
    if v.experimental {
        lines.push(format!("source         {EXPERIMENTAL}"));
    }
    lines.extend(v.uncovered.iter().map(|what| format!("not covered    {what}")));
    lines.push(match &v.head.time {
        Some(time) => format!("head           seq:{} at {} ({time})", v.head.seq, v.head.cluster_time),
        None => "head           nothing committed yet".into(),
    });
    lines.push(format!("captured until {}", v.captured_until.map_or("-".into(), |t| t.to_string())));
    lines.push(match &v.restorable {
        Some(stretch) => format!("restorable     {} to {}", stretch.from, stretch.to),
        None => "restorable     nothing yet".into(),
    });
    lines.extend(v.earlier.iter().map(|stretch| format!("               {} to {}", stretch.from, stretch.to)));
    if let Some(base) = &v.base {
        lines.push(format!(
            "base copy      {} % of about {} documents ({}); {} so far",
            base.percent,
            base.expected_documents,
            readable(base.expected_bytes),
            readable(base.bytes)
        ));
    }
    if let Some(proven) = &v.proven {
        lines.push(format!("proven         restorable up to seq:{} ({}), {} documents", proven.seq, proven.with, proven.documents));
    }
    let percent = if v.totals.raw_bytes > 0 { 100.0 * v.totals.stored_bytes as f64 / v.totals.raw_bytes as f64 } else { 0.0 };
    lines.push(format!(
        "holds          {} changes, {} raw, {} stored ({percent:.1} %), {} segments",
        v.totals.changes,
        readable(v.totals.raw_bytes),
        readable(v.totals.stored_bytes),
        v.totals.segments
    ));
    lines.join("\n")
}

fn fidelity_name(fidelity: Fidelity) -> &'static str {
    match fidelity {
        Fidelity::Exact => "exact",
        Fidelity::OrderMayDiffer => "order may differ: the server refuses showRawUpdateDescription, or did for a stretch of history",
    }
}

fn status_name(status: BranchStatus) -> &'static str {
    match status {
        BranchStatus::Active => "active",
        BranchStatus::Stalled => "stalled",
        BranchStatus::Gap => "gap",
        BranchStatus::Failed => "failed",
        BranchStatus::Archived => "archived",
        BranchStatus::Deleted => "deleted",
    }
}
