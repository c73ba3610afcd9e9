//! `argon status`: one screen. From the metadata; where an engine of this machine answers, its scaler's last word too.

use std::time::Duration;

use serde::Serialize;
use serde_json::Value;

use crate::branch::view::{BranchView, waits_for};
use crate::fault::{Fault, Result};
use crate::http::{CaptureView, Condition, Health, PausesView, Queue};
use crate::ledger::{BranchStatus, CaptureState, EngineBeat, JobKind, SharedLedger};

use super::capture::state_name;
use super::engine::EngineArgs;
use super::output::{table, wrapped};
use super::workers::{short, state_of};
use super::{Context, Exit, Output};

/// An engine that is asked for its scaler's last word may take this long; the rest does not wait for it any longer.
const ASKING: Duration = Duration::from_secs(2);
/// Rows of engines and of branches in the text; `--json` has all.
const ROWS: usize = 20;
/// Where there is no terminal to measure.
const COLUMNS: usize = 80;
/// A running capture that is further behind than this is named: many times what its checkpoints take.
const LATE: Duration = Duration::from_secs(60);

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
    /// What that engine says of its parts.
    health: Option<Health>,
    /// What is wrong, the gravest first.
    problems: Vec<Problem>,
}

#[derive(Debug, Serialize)]
struct Problem {
    what: String,
    /// What to type next.
    next: Option<String>,
}

impl Problem {
    fn new(what: impl Into<String>, next: impl Into<String>) -> Self {
        Self { what: what.into(), next: Some(next.into()) }
    }
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
    /// An operator holds the size.
    pinned: bool,
    busy_workers: usize,
    captures: u32,
}

pub(crate) async fn run(args: Args, context: Context, output: Output) -> Result<Exit> {
    let (ledger, _) = context.ledger().await?;
    let now_ms = ledger.now_ms().await?;
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
    let asked = ask(&args.engine, &beats).await;
    let names = pause_names(&ledger, &pauses).await?;
    let mut status = Status { captures, branches, queue, pauses, engines, scaler: None, health: None, problems: Vec::new() };
    match asked {
        Ok(answer) => (status.scaler, status.health) = answer,
        // Whoever names an engine wants to hear that it does not answer, unless none runs anyway.
        Err(fault) if args.engine.is_named() && status.engines.iter().any(|e| e.alive) => {
            status.problems.push(Problem { what: fault.what, next: None })
        }
        Err(fault) => tracing::debug!(error = %fault, "no engine was asked"),
    }
    problems(&mut status, &names, now_ms);
    output.print(&status, || text(&status, &names, now_ms, output.width().unwrap_or(COLUMNS)))?;
    Ok(Exit::Done)
}

/// The scaler's last word and the health of an engine, if it is one of this metadata: on this machine may run another one's.
async fn ask(engine: &EngineArgs, beats: &[EngineBeat]) -> Result<(Option<Value>, Option<Health>)> {
    let client = engine.client()?;
    let asking = async {
        let scaler: Value = client.get("/api/v1/scaler?limit=1").await?;
        Ok::<_, Fault>((scaler, client.health().await?))
    };
    let late = |_| Fault::transient(format!("the engine has not answered for {} s", ASKING.as_secs()));
    let (scaler, health) = tokio::time::timeout(ASKING, asking).await.map_err(late)??;
    let id = scaler.get("engine").and_then(Value::as_str).unwrap_or_default();
    if !beats.iter().any(|beat| beat.id == id) {
        return Err(Fault::missing(format!("the engine that answers, {id}, works on another metadata database")));
    }
    Ok((scaler.get("decisions").and_then(|d| d.get(0)).cloned(), Some(health)))
}

fn engine_line(beat: &EngineBeat, now_ms: i64) -> EngineLine {
    let status = beat.status.clone().unwrap_or_default();
    EngineLine {
        engine: beat.id.clone(),
        host: beat.host.clone(),
        pid: beat.pid,
        alive: beat.is_heard(now_ms),
        draining: status.draining,
        workers: status.pool.current,
        target_workers: status.pool.target,
        pinned: status.pool.pin.is_some(),
        // Sync workers, as the figures beside it; the other kinds have slots of their own.
        busy_workers: status.workers.iter().filter(|w| w.busy && w.kind.is_none_or(|kind| kind == JobKind::Sync)).count(),
        captures: status.captures,
    }
}

/// The gravest first.
fn problems(status: &mut Status, paused: &[Paused], now_ms: i64) {
    let mut found = std::mem::take(&mut status.problems);
    let lives = status.engines.iter().any(|e| e.alive);
    if !lives {
        let waits = status.queue.pending_jobs;
        found.push(Problem::new(format!("no engine runs: nothing is captured, {waits} jobs wait"), "argon run"));
    }
    for e in status.engines.iter().filter(|e| !e.alive) {
        found.push(Problem {
            what: format!("engine {} (pid {} on {}) is silent: others take over from it", e.engine, e.pid, e.host),
            next: None,
        });
    }
    // Captures have rows of their own, which say more.
    for (name, check) in status.health.iter().flat_map(|health| health.checks.all()).filter(|(name, _)| *name != "captures") {
        if let Some(reason) = check.reason.as_ref().filter(|_| check.status != Condition::Ok) {
            found.push(Problem::new(format!("{name}: {reason}"), "argon doctor"));
        }
    }
    for c in &status.captures {
        let reason = c.reason.as_deref().unwrap_or("no reason is on record");
        let show = format!("argon branch show {}", c.branch);
        match c.state {
            CaptureState::Failed => found.push(Problem::new(format!("the capture of {} has failed: {reason}", c.branch), show)),
            CaptureState::Paused => {
                found.push(Problem::new(format!("the capture of {} is paused", c.branch), format!("argon capture resume {}", c.branch)));
            }
            CaptureState::Running if c.reason.is_some() => {
                found.push(Problem::new(format!("the capture of {} waits: {reason}", c.branch), show));
            }
            CaptureState::Running | CaptureState::Stopped => {}
        }
    }
    for b in &status.branches {
        let said = format!("{}: {}", b.name, b.reason.as_deref().unwrap_or("its status has no reason on record"));
        let capture = status.captures.iter().find(|c| c.branch_id == b.id);
        match b.status {
            BranchStatus::Stalled => found.push(Problem::new(said, format!("argon jobs list --state dead --branch {}", b.name))),
            BranchStatus::Gap => found.push(Problem::new(said, format!("argon branch show {}", b.name))),
            BranchStatus::Failed if capture.is_none_or(|c| c.state != CaptureState::Failed) => {
                found.push(Problem::new(said, format!("argon branch show {}", b.name)));
            }
            BranchStatus::Active | BranchStatus::Archived | BranchStatus::Deleted | BranchStatus::Failed => {
                let behind = lag(b, capture, now_ms).filter(|lag| lives && *lag > LATE.as_secs());
                let told = capture.is_some_and(|c| c.reason.is_some());
                if let Some(lag) = behind.filter(|_| !told) {
                    found.push(Problem::new(format!("{} is {lag} s behind its source", b.name), "argon workers"));
                }
            }
        }
    }
    if status.queue.failed_jobs > 0 {
        found.push(Problem::new(format!("dead jobs: {}", status.queue.failed_jobs), "argon jobs list --state dead"));
    }
    for pause in paused {
        found.push(Problem::new(format!("jobs are paused: {}", pause.what), format!("argon queue resume {}", pause.flag)));
    }
    status.problems = found;
}

/// A pause for people: what, and how `queue resume` calls it.
struct Paused {
    what: String,
    flag: String,
}

async fn pause_names(ledger: &SharedLedger, pauses: &PausesView) -> Result<Vec<Paused>> {
    let mut names = Vec::new();
    for pause in &pauses.pauses {
        let (what, flag) = match (&pause.kind, &pause.branch) {
            (Some(kind), _) => (format!("kind {kind}"), format!("--kind {kind}")),
            (None, Some(id)) => {
                let name = ledger.branch(id).await?.map_or_else(|| id.clone(), |b| b.name);
                (format!("branch {name}"), format!("--branch {name}"))
            }
            (None, None) => ("everything".to_owned(), "--all".to_owned()),
        };
        names.push(Paused { what, flag });
    }
    Ok(names)
}

fn text(status: &Status, paused: &[Paused], now_ms: i64, width: usize) -> String {
    let mut parts = Vec::new();
    let q = &status.queue;
    let least = if q.at_least { "at least " } else { "" };
    parts.push(format!(
        "queue     {least}{} pending, {} running, {} dead, {} done",
        q.pending_jobs, q.running_jobs, q.failed_jobs, q.completed_jobs
    ));
    if q.ready_jobs > 0 {
        parts.push(format!("          oldest ready for {:.1} s", q.oldest_ready_seconds));
    }
    if !paused.is_empty() {
        parts.push(format!("          paused: {}", paused.iter().map(|p| p.what.as_str()).collect::<Vec<_>>().join(", ")));
    }
    if let Some(decision) = &status.scaler {
        parts.push(scaler_line(decision));
    }
    if !status.engines.is_empty() {
        let rows: Vec<_> = status.engines.iter().take(ROWS).map(engine_row).collect();
        parts.push(String::new());
        parts.push(table(&["ENGINE", "STATE", "BUSY", "WORKERS", "WANTED", "CAPTURES"], &rows));
        if status.engines.len() > ROWS {
            parts.push(format!("and {} more: argon workers", status.engines.len() - ROWS));
        }
    }
    if status.branches.is_empty() {
        parts.push("branches  none yet: argon capture start PROJECT/BRANCH --source-db DB".to_owned());
    } else {
        let rows: Vec<_> = status.branches.iter().take(ROWS).map(|b| branch_row(b, status, now_ms)).collect();
        parts.push(String::new());
        parts.push(table(&["BRANCH", "STATUS", "CAPTURE", "LAG", "HEAD", "RESTORABLE TO"], &rows));
        if status.branches.len() > ROWS {
            parts.push(format!("and {} more: argon branch list", status.branches.len() - ROWS));
        }
    }
    parts.push(String::new());
    if status.problems.is_empty() {
        parts.push("nothing is wrong".to_owned());
    }
    for problem in &status.problems {
        parts.push(wrapped(&format!("! {}", problem.what), width));
        // A command stays on one line, so that it can be copied.
        parts.extend(problem.next.as_ref().map(|next| format!("    {next}")));
    }
    parts.join("\n")
}

fn engine_row(e: &EngineLine) -> Vec<String> {
    let wanted = if e.pinned { format!("{} (pinned)", e.target_workers) } else { e.target_workers.to_string() };
    let (busy, workers) = (e.busy_workers.to_string(), e.workers.to_string());
    vec![short(&e.engine), state_of(e.alive, e.draining).to_owned(), busy, workers, wanted, e.captures.to_string()]
}

fn scaler_line(decision: &Value) -> String {
    let word = |name: &str| decision.get(name).and_then(Value::as_str).map(|word| word.replace('_', " "));
    let target = decision.get("target").and_then(Value::as_u64).unwrap_or_default();
    let mut line = format!("scaler    {} at {target}: {}", word("direction").unwrap_or_default(), word("reason").unwrap_or_default());
    if let Some(limit) = word("limited_by") {
        line += &format!(", limited by {limit}");
    }
    if decision.get("dry_run").and_then(Value::as_bool) == Some(true) {
        line += " (dry run: said, not done)";
    }
    line
}

/// Seconds that the committed history of a running capture is behind the server's clock.
fn lag(branch: &BranchView, capture: Option<&CaptureView>, now_ms: i64) -> Option<u64> {
    capture.filter(|c| c.state == CaptureState::Running)?;
    Some(u64::try_from(now_ms / 1_000 - i64::from(branch.captured_until?.t)).unwrap_or_default())
}

fn branch_row(branch: &BranchView, status: &Status, now_ms: i64) -> Vec<String> {
    let capture = status.captures.iter().find(|c| c.branch_id == branch.id);
    vec![
        branch.name.clone(),
        format!("{:?}", branch.status).to_lowercase(),
        capture.map_or("-", |c| state_name(c.state)).to_owned(),
        lag(branch, capture, now_ms).map_or_else(|| "-".to_owned(), |lag| format!("{lag} s")),
        branch.head.seq.to_string(),
        branch.restorable.as_ref().map_or_else(|| "-".to_owned(), |stretch| stretch.to.clone()),
    ]
}
