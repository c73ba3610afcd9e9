//! `argon branch list|show`: acts on the metadata, needs no engine.

use clap::Subcommand;
use serde_json::json;

use crate::branch::view::BranchView;
use crate::config::readable;
use crate::fault::Result;
use crate::ledger::{BranchStatus, Fidelity};

use super::context::branch_named;
use super::output::{EXPERIMENTAL, table};
use super::{Context, Exit, Output};

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Lists branches with what they hold.
    #[command(after_help = "Examples:\n  argon branch list\n  argon branch list --json")]
    List,
    /// Shows a branch: head, what can be restored, sizes, and what is wrong with it.
    #[command(after_help = "Example:\n  argon branch show shop/main")]
    Show {
        /// project/branch
        branch: String,
    },
}

pub(crate) async fn run(command: Command, context: Context, output: Output) -> Result<Exit> {
    let (ledger, _) = context.ledger().await?;
    match command {
        Command::List => {
            let mut views = Vec::new();
            for branch in ledger.branches().await? {
                views.push(BranchView::load(&*ledger, &branch.id).await?);
            }
            output.print(&json!({ "branches": views }), || {
                let rows: Vec<_> = views.iter().map(row).collect();
                table(&["BRANCH", "STATUS", "HEAD", "CAPTURED UNTIL", "CHANGES", "RAW", "STORED", "SEGMENTS"], &rows)
            })?;
        }
        Command::Show { branch } => {
            let branch = branch_named(&ledger, &branch).await?;
            let view = BranchView::load(&*ledger, &branch.id).await?;
            output.print(&view, || show(&view))?;
        }
    }
    Ok(Exit::Done)
}

fn row(v: &BranchView) -> Vec<String> {
    vec![
        v.name.clone(),
        status_name(v.status).into(),
        format!("seq:{}", v.head.seq),
        v.captured_until.map_or("-".into(), |t| t.to_string()),
        v.totals.changes.to_string(),
        readable(v.totals.raw_bytes),
        readable(v.totals.stored_bytes),
        v.totals.segments.to_string(),
    ]
}

fn show(v: &BranchView) -> String {
    let mut lines = vec![
        format!("branch         {}", v.name),
        format!("id             {}", v.id),
        format!("status         {}{}", status_name(v.status), v.reason.as_ref().map(|r| format!(": {r}")).unwrap_or_default()),
        format!("fidelity       {}", fidelity_name(v.fidelity)),
    ];
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
