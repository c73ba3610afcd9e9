//! `argon jobs list|show|retry|discard`: acts on the metadata, needs no engine.

use std::io::IsTerminal;

use clap::{Subcommand, ValueEnum};
use serde_json::{Value, json};

use crate::branch::point::rfc3339;
use crate::config::readable;
use crate::fault::{Fault, Result};
use crate::ledger::{Job, JobFilter, JobState, SharedLedger};
use crate::sync::discard;

use super::context::branch_named;
use super::output::table;
use super::{Context, Exit, Output};

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Lists jobs, the dead ones first to look for when a branch is stalled.
    #[command(after_help = "Examples:\n  argon jobs list --state dead\n  argon jobs list --branch shop/main --limit 20 --json")]
    List {
        /// Only jobs in this state.
        #[arg(long)]
        state: Option<State>,
        /// Only jobs of this branch.
        #[arg(long, value_name = "BRANCH")]
        branch: Option<String>,
        /// Most jobs to show.
        #[arg(long, default_value = "50", value_parser = clap::value_parser!(u32).range(1..=10_000))]
        limit: u32,
        /// Go on after this job id.
        #[arg(long, value_name = "ID")]
        after: Option<String>,
    },
    /// Shows a job with its error history.
    #[command(after_help = "Example:\n  argon jobs show 0193f0c2-…")]
    Show {
        /// Job id.
        id: String,
    },
    /// Runs a dead or scheduled job again, now.
    #[command(after_help = "Examples:\n  argon jobs retry 0193f0c2-…\n  argon jobs retry --all-dead")]
    Retry {
        /// Job id.
        #[arg(required_unless_present = "all_dead")]
        id: Option<String>,
        /// Every dead job.
        #[arg(long, conflicts_with = "id")]
        all_dead: bool,
    },
    /// Gives up a dead or waiting sync job: history gets a recorded gap, and restores across it are refused unless told otherwise.
    #[command(after_help = "Example:\n  argon jobs discard 0193f0c2-… --yes")]
    Discard {
        /// Job id.
        id: String,
        /// The changes of this job are lost to history for good: say so.
        #[arg(long)]
        yes: bool,
    },
}

#[derive(Debug, Clone, Copy, ValueEnum)]
pub(crate) enum State {
    Scheduled,
    Ready,
    Running,
    Done,
    Dead,
    Cancelled,
}

impl From<State> for JobState {
    fn from(state: State) -> Self {
        match state {
            State::Scheduled => Self::Scheduled,
            State::Ready => Self::Ready,
            State::Running => Self::Running,
            State::Done => Self::Done,
            State::Dead => Self::Dead,
            State::Cancelled => Self::Cancelled,
        }
    }
}

pub(crate) async fn run(command: Command, context: Context, output: Output) -> Result<Exit> {
    let (ledger, _) = context.ledger().await?;
    match command {
        Command::List { state, branch, limit, after } => {
            let branch = match branch {
                Some(name) => Some(branch_named(&ledger, &name).await?.id),
                None => None,
            };
            let filter = JobFilter { state: state.map(Into::into), branch, after, ..JobFilter::default() };
            list(&ledger.jobs(&filter, limit as usize).await?, output)?;
        }
        Command::Show { id } => show(&find(&ledger, &id).await?, output)?,
        Command::Retry { id: Some(id), .. } => {
            let job = find(&ledger, &id).await?;
            if !ledger.retry_job(&job.id).await? {
                return Err(Fault::rejected(format!("job {id} is {}: only dead and scheduled jobs can be retried", state_name(job.state))));
            }
            output.print(&json!({ "retried": 1 }), || format!("job {id} is ready again"))?;
        }
        Command::Retry { .. } => retry_all(&ledger, output).await?,
        Command::Discard { id, yes } => {
            let job = find(&ledger, &id).await?;
            let Some(spec) = &job.sync else { return Err(Fault::rejected(format!("job {id} is not a sync job"))) };
            let range = format!("seq:{} to seq:{} ({} changes)", spec.first_seq, spec.last_seq, spec.last_seq + 1 - spec.first_seq);
            confirm(yes, &format!("discarding job {id} loses {range} of this branch for good"))?;
            if !discard(&ledger, &context.store().await?, &job, &format!("job {id} was discarded by the operator")).await? {
                return Err(Fault::rejected(format!("job {id} is {}: only dead and waiting jobs can be discarded", state_name(job.state))));
            }
            output.print(&json!({ "discarded": id, "first_seq": spec.first_seq, "last_seq": spec.last_seq }), || {
                format!("discarded job {id}: {range} is a recorded gap now")
            })?;
        }
    }
    Ok(Exit::Done)
}

/// Asks on a terminal; elsewhere `--yes` is needed.
pub(super) fn confirm(yes: bool, what: &str) -> Result<()> {
    if yes {
        return Ok(());
    }
    let refuse = || Fault::config(format!("{what}: repeat with --yes"));
    if !std::io::stdin().is_terminal() {
        return Err(refuse());
    }
    eprint!("{what}. Type yes to go on: ");
    let mut answer = String::new();
    std::io::stdin().read_line(&mut answer).map_err(|_| refuse())?;
    if answer.trim() == "yes" { Ok(()) } else { Err(refuse()) }
}

async fn find(ledger: &SharedLedger, id: &str) -> Result<Job> {
    ledger
        .job(id)
        .await?
        .ok_or_else(|| Fault::missing(format!("there is no job {id}: finished jobs are removed after JOB_CLEANUP_INTERVAL")))
}

async fn retry_all(ledger: &SharedLedger, output: Output) -> Result<()> {
    const PAGE: usize = 500;
    let mut filter = JobFilter { state: Some(JobState::Dead), ..JobFilter::default() };
    let mut retried = 0u64;
    loop {
        let page = ledger.jobs(&filter, PAGE).await?;
        filter.after = page.last().map(|j| j.id.clone());
        for job in &page {
            retried += u64::from(ledger.retry_job(&job.id).await?);
        }
        if page.len() < PAGE {
            break;
        }
    }
    output.print(&json!({ "retried": retried }), || format!("{retried} jobs are ready again"))
}

fn list(jobs: &[Job], output: Output) -> Result<()> {
    output.print(&json!({ "jobs": jobs.iter().map(view).collect::<Vec<_>>() }), || {
        let rows: Vec<_> = jobs
            .iter()
            .map(|j| {
                let range = j.sync.as_ref().map(|s| format!("{}..{}", s.first_seq, s.last_seq));
                vec![
                    j.id.clone(),
                    state_name(j.state).into(),
                    range.unwrap_or_default(),
                    j.attempt.to_string(),
                    j.errors.last().map(|e| e.error.clone()).unwrap_or_default(),
                ]
            })
            .collect();
        table(&["JOB", "STATE", "SEQ", "ATTEMPT", "LAST ERROR"], &rows)
    })
}

fn show(job: &Job, output: Output) -> Result<()> {
    output.print(&view(job), || {
        let mut lines = vec![
            format!("job        {}", job.id),
            format!("state      {}", state_name(job.state)),
            format!("branch     {}", job.branch),
            format!("created    {}", rfc3339(job.created_ms)),
            format!("attempts   {}, process deaths {}", job.attempt, job.crashes),
        ];
        if let Some(s) = &job.sync {
            lines.push(format!(
                "changes    seq:{} to seq:{}, {} raw, {} queued",
                s.first_seq,
                s.last_seq,
                readable(s.raw_bytes),
                readable(s.payload_bytes)
            ));
        }
        if let Some(lease) = &job.lease {
            lines.push(format!("running at {} since {}", lease.engine, rfc3339(lease.claimed_ms)));
        }
        lines.push(format!("errors     {}", job.error_count));
        lines.extend(job.errors.iter().map(|e| format!("  {} attempt {} at {}: {}", rfc3339(e.at_ms), e.attempt, e.engine, e.error)));
        lines.join("\n")
    })
}

fn state_name(state: JobState) -> &'static str {
    match state {
        JobState::Scheduled => "scheduled",
        JobState::Ready => "ready",
        JobState::Running => "running",
        JobState::Done => "done",
        JobState::Dead => "dead",
        JobState::Cancelled => "cancelled",
    }
}

/// The object of a job in the interface; tokens stay inside.
fn view(j: &Job) -> Value {
    json!({
        "id": j.id, "kind": j.kind, "state": j.state, "branch": j.branch,
        "created_ms": j.created_ms, "run_at_ms": j.run_at_ms, "finished_ms": j.finished_ms,
        "attempt": j.attempt, "crashes": j.crashes, "error_count": j.error_count, "errors": j.errors,
        "engine": j.lease.as_ref().map(|l| &l.engine),
        "sync": j.sync.as_ref().map(|s| json!({
            "first_seq": s.first_seq, "last_seq": s.last_seq, "raw_bytes": s.raw_bytes, "payload_bytes": s.payload_bytes,
        })),
    })
}
