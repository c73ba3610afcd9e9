//! `argon status`: one screen. From the metadata; where an engine of this machine answers, its scaler's last word too.

use std::time::Duration;

use serde::Serialize;
use serde_json::Value;

use crate::branch::view::{BranchView, waits_for};
use crate::fault::Result;
use crate::http::{CaptureView, PausesView, Queue};
use crate::ledger::{BranchStatus, CaptureState, EngineBeat, SharedLedger};

use super::engine::EngineArgs;
use super::output::table;
use super::workers::{is_nobody, short};
use super::{Context, Exit, Output};

/// A heartbeat that is older, by the server's clock, belongs to an engine that hangs or has died.
const SILENT: Duration = Duration::from_secs(15);
/// An engine that is asked for its scaler's last word may take this long; the rest does not wait for it any longer.
const ASKING: Duration = Duration::from_secs(2);
/// Rows of captures and branches in the text; `--json` has all.
const ROWS: usize = 20;

#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  argon status
  argon status --json

Reads the metadata, so it works without an engine. What is wrong comes last, each with the next command to type.")]
pub(crate) struct Args {
    #[command(flatten)]
    engine: EngineArgs,
}

/// The object of `--json`.
#[derive(Debug, Serialize)]
struct Status {
    captures: Vec<CaptureView>,
    branches: Vec<BranchView>,
    queue: Queue,
    pauses: PausesView,
    engines: Vec<EngineLine>,
    /// The newest decision of the scaler of the engine that answered, if one did.
    scaler: Option<Value>,
    /// What is wrong, each with what to do.
    problems: Vec<String>,
}

#[derive(Debug, Serialize)]
struct EngineLine {
    engine: String,
    host: String,
    pid: u32,
    alive: bool,
    draining: bool,
    workers: u16,
    target_workers: u16,
    busy_workers: usize,
    captures: u32,
}

pub(crate) async fn run(args: Args, context: Context, output: Output) -> Result<Exit> {
    let (ledger, _) = context.ledger().await?;
    let now_ms = ledger.now_ms().await?;
    let scaler = last_decision(&args.engine).await;
    let mut captures = Vec::new();
    for mut capture in ledger.captures().await? {
        if capture.reason.is_none()
            && let Some(branch) = ledger.branch(&capture.branch).await?
        {
            capture.reason = waits_for(&*ledger, &branch, capture.position.next_seq).await?;
        }
        captures.push(CaptureView::from(capture));
    }
    let mut branches = Vec::new();
    for branch in ledger.branches().await? {
        branches.push(BranchView::load(&*ledger, &branch.id).await?);
    }
    let beats = ledger.engines().await?;
    let wait = beats.iter().filter_map(|beat| beat.status.as_ref()).map(|s| s.avg_wait_ms).fold(0.0, f64::max);
    let engines: Vec<EngineLine> = beats.iter().map(|beat| engine_line(beat, now_ms)).collect();
    let queue = Queue::new(&ledger.queue_stats().await?, wait);
    let pauses = PausesView::from(ledger.pauses().await?);
    let mut status = Status { captures, branches, queue, pauses, engines, scaler, problems: Vec::new() };
    status.problems = problems(&status);
    let names = pause_names(&ledger, &status.pauses).await?;
    output.print(&status, || text(&status, &names, now_ms))?;
    Ok(Exit::Done)
}

/// Nobody to ask is no failure here.
async fn last_decision(engine: &EngineArgs) -> Option<Value> {
    let client = match engine.client() {
        Ok(client) => client,
        Err(fault) => {
            if !is_nobody(&fault) {
                tracing::debug!(error = %fault, "could not ask an engine");
            }
            return None;
        }
    };
    let asked = tokio::time::timeout(ASKING, client.get::<Value>("/api/v1/scaler?limit=1")).await;
    asked.ok()?.ok()?.get("decisions")?.get(0).cloned()
}

fn engine_line(beat: &EngineBeat, now_ms: i64) -> EngineLine {
    let status = beat.status.clone().unwrap_or_default();
    EngineLine {
        engine: beat.id.clone(),
        host: beat.host.clone(),
        pid: beat.pid,
        alive: now_ms.saturating_sub(beat.beat_ms) < i64::try_from(SILENT.as_millis()).unwrap_or(i64::MAX),
        draining: status.draining,
        workers: status.pool.current,
        target_workers: status.pool.target,
        busy_workers: status.workers.iter().filter(|w| w.busy).count(),
        captures: status.captures,
    }
}

/// The gravest first.
fn problems(status: &Status) -> Vec<String> {
    let mut found = Vec::new();
    if !status.engines.iter().any(|e| e.alive) {
        let waits = status.queue.pending_jobs;
        found.push(format!("no engine runs ({waits} jobs wait): argon run"));
    }
    for e in status.engines.iter().filter(|e| !e.alive) {
        found.push(format!("engine {} (pid {} on {}) is silent: others take over from it", e.engine, e.pid, e.host));
    }
    for c in &status.captures {
        let reason = c.reason.as_deref().unwrap_or("no reason is on record");
        match c.state {
            CaptureState::Failed => found.push(format!("the capture of {} has failed: {reason}", c.branch)),
            CaptureState::Paused => found.push(format!("the capture of {} is paused: argon capture resume {}", c.branch, c.branch)),
            CaptureState::Running if c.reason.is_some() => found.push(format!("the capture of {} waits: {reason}", c.branch)),
            CaptureState::Running | CaptureState::Stopped => {}
        }
    }
    for b in status.branches.iter().filter(|b| !matches!(b.status, BranchStatus::Active | BranchStatus::Archived)) {
        found.push(format!("{}: {}", b.name, b.reason.as_deref().unwrap_or("its status has no reason on record")));
    }
    if status.queue.failed_jobs > 0 {
        found.push(format!("{} dead jobs: argon jobs list --state dead, then argon jobs retry", status.queue.failed_jobs));
    }
    if !status.pauses.pauses.is_empty() {
        found.push("something is paused: argon queue show".to_owned());
    }
    found
}

async fn pause_names(ledger: &SharedLedger, pauses: &PausesView) -> Result<Vec<String>> {
    let mut names = Vec::new();
    for pause in &pauses.pauses {
        names.push(match (&pause.kind, &pause.branch) {
            (Some(kind), _) => kind.to_string(),
            (None, Some(id)) => ledger.branch(id).await?.map_or_else(|| id.clone(), |b| b.name),
            (None, None) => "everything".to_owned(),
        });
    }
    Ok(names)
}

fn text(status: &Status, paused: &[String], now_ms: i64) -> String {
    let mut parts = Vec::new();
    let q = &status.queue;
    let mut line = format!(
        "queue     {} pending, {} running, {} dead, {} done; oldest ready for {:.1} s",
        q.pending_jobs, q.running_jobs, q.failed_jobs, q.completed_jobs, q.oldest_ready_seconds
    );
    if !paused.is_empty() {
        line += &format!("; paused: {}", paused.join(", "));
    }
    parts.push(line);
    for e in &status.engines {
        let state = match (e.alive, e.draining) {
            (false, _) => "silent",
            (true, true) => "draining",
            (true, false) => "running",
        };
        parts.push(format!(
            "engine    {} {state}: {} of {} workers busy, {} wanted, {} captures",
            short(&e.engine),
            e.busy_workers,
            e.workers,
            e.target_workers,
            e.captures
        ));
    }
    if let Some(decision) = &status.scaler {
        let word = |name: &str| decision.get(name).and_then(Value::as_str).unwrap_or("-").replace('_', " ");
        parts.push(format!("scaler    {}: {}", word("direction"), word("reason")));
    }
    if status.branches.is_empty() {
        parts.push("branches  none yet: argon capture start PROJECT/BRANCH --source-db DB".to_owned());
    } else {
        let rows: Vec<_> = status.branches.iter().take(ROWS).map(|b| branch_row(b, status, now_ms)).collect();
        parts.push(String::new());
        parts.push(table(&["BRANCH", "STATUS", "CAPTURE", "HEAD", "RESTORABLE TO", "LAG"], &rows));
        if status.branches.len() > ROWS {
            parts.push(format!("and {} more: argon branch list", status.branches.len() - ROWS));
        }
    }
    parts.push(String::new());
    if status.problems.is_empty() {
        parts.push("nothing is wrong".to_owned());
    }
    parts.extend(status.problems.iter().map(|p| format!("! {p}")));
    parts.join("\n")
}

fn branch_row(branch: &BranchView, status: &Status, now_ms: i64) -> Vec<String> {
    let capture = status.captures.iter().find(|c| c.branch_id == branch.id);
    let state = capture.map_or_else(|| "-".to_owned(), |c| format!("{:?}", c.state).to_lowercase());
    let lag = match (capture.map(|c| c.state), branch.captured_until) {
        (Some(CaptureState::Running), Some(until)) => format!("{} s", (now_ms / 1_000 - i64::from(until.t)).max(0)),
        _ => "-".to_owned(),
    };
    vec![
        branch.name.clone(),
        format!("{:?}", branch.status).to_lowercase(),
        state,
        branch.head.seq.to_string(),
        branch.restorable.to.clone(),
        lag,
    ]
}
