//! `argon jobs list|show|retry|cancel|discard|submit`: acts on the metadata, needs no engine.
//!
//! Owns: the arguments, and what is done to one job. Does not own: many at once (`jobs_many`).

use std::io::IsTerminal;
use std::time::Duration;

use clap::Subcommand;

use crate::branch::point::rfc3339;
use crate::config::readable;
use crate::fault::{Fault, Result};
use crate::http::{JobChange, JobOutcome, JobView, JobsPage, NewJobRequest, SubmitKind, Submitted};
use crate::ledger::{Bulk, Cancelled, Job, JobFilter, JobKind, JobState, MAX_ENQUEUE, Priority, SharedLedger};
use crate::sync::discard;

use super::context::branch_named;
use super::output::fitted;
use super::{Context, Exit, Output, jobs_many};

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Lists jobs in the order of their creation.
    #[command(
        after_help = "Examples:\n  argon jobs list --state dead\n  argon jobs list --branch shop/main --limit 20 --json\n  argon jobs list --error 'access denied'"
    )]
    List {
        #[command(flatten)]
        filter: FilterArgs,
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
    /// Runs dead or scheduled jobs again, now.
    #[command(
        after_help = "Examples:\n  argon jobs retry 0193f0c2-…\n  argon jobs retry --all-dead\n  argon jobs retry --state dead --error timeout --dry-run"
    )]
    Retry {
        /// Job id.
        #[arg(required_unless_present_any = ["all_dead", "state", "kind", "branch", "engine", "error"], conflicts_with_all = ["all_dead", "state", "kind", "branch", "engine", "error", "dry_run"])]
        id: Option<String>,
        /// Every dead job.
        #[arg(long, conflicts_with = "state")]
        all_dead: bool,
        #[command(flatten)]
        bulk: BulkArgs,
    },
    /// Cancels jobs: waiting and dead ones at once, running ones as soon as their worker looks. Sync jobs are never cancelled, see discard.
    #[command(
        after_help = "Examples:\n  argon jobs cancel 0193f0c2-…\n  argon jobs cancel --kind noop --dry-run\n  argon jobs cancel --kind noop"
    )]
    Cancel {
        /// Job id.
        #[arg(required_unless_present_any = ["state", "kind", "branch", "engine", "error"], conflicts_with_all = ["state", "kind", "branch", "engine", "error", "dry_run"])]
        id: Option<String>,
        #[command(flatten)]
        bulk: BulkArgs,
    },
    /// Gives up dead or waiting sync jobs: history gets a recorded gap, and restores across it are refused unless told otherwise.
    #[command(
        after_help = "Examples:\n  argon jobs discard 0193f0c2-… --yes\n  argon jobs discard --kind sync --state dead --branch shop/main --dry-run"
    )]
    Discard {
        /// Job id.
        #[arg(required_unless_present_any = ["state", "kind", "branch", "engine", "error"], conflicts_with_all = ["state", "kind", "branch", "engine", "error", "dry_run"])]
        id: Option<String>,
        #[command(flatten)]
        bulk: BulkArgs,
        /// The changes of these jobs are lost to history for good: say so.
        #[arg(long)]
        yes: bool,
    },
    /// Puts test jobs into the queue: they do nothing for a while, and fail as often as asked.
    #[command(
        after_help = "Examples:\n  argon jobs submit --count 100 --duration 50ms\n  argon jobs submit --count 20 --failure-rate 0.2 --priority high"
    )]
    Submit(SubmitArgs),
}

/// Which jobs.
#[derive(Debug, Clone, Default, clap::Args)]
pub(crate) struct FilterArgs {
    /// Only jobs in this state: scheduled, ready, running, done, dead, cancelled.
    #[arg(long, value_name = "STATE")]
    pub(super) state: Option<JobState>,
    /// Only jobs of this kind: sync, snapshot, compression, notification, cleanup, drill, noop.
    #[arg(long, value_name = "KIND")]
    pub(super) kind: Option<JobKind>,
    /// Only jobs of this branch.
    #[arg(long, value_name = "BRANCH")]
    branch: Option<String>,
    /// Only jobs that run at this engine.
    #[arg(long, value_name = "ID")]
    engine: Option<String>,
    /// Only jobs whose last error has this text in it.
    #[arg(long, value_name = "TEXT")]
    error: Option<String>,
}

impl FilterArgs {
    pub(super) async fn read(self, ledger: &SharedLedger, after: Option<String>) -> Result<JobFilter> {
        let branch = match self.branch {
            Some(name) => Some(branch_named(ledger, &name).await?.id),
            None => None,
        };
        Ok(JobFilter { state: self.state, kind: self.kind, branch, engine: self.engine, error: self.error, after })
    }
}

/// Many jobs at once.
#[derive(Debug, Clone, clap::Args)]
pub(crate) struct BulkArgs {
    #[command(flatten)]
    pub(super) filter: FilterArgs,
    /// Only say what would be done.
    #[arg(long)]
    pub(super) dry_run: bool,
    /// Stop after so many.
    #[arg(long, default_value = "1000000", value_name = "N", value_parser = clap::value_parser!(u64).range(1..=100_000_000))]
    pub(super) limit: u64,
}

#[derive(Debug, clap::Args)]
pub(crate) struct SubmitArgs {
    /// Kind of the jobs; noop is the only one that can be submitted.
    #[arg(long, default_value = "noop", value_parser = ["noop"])]
    kind: String,
    /// How many.
    #[arg(long, default_value = "1", value_name = "N", value_parser = clap::value_parser!(u64).range(1..=10_000_000))]
    count: u64,
    /// How long each takes, at most an hour.
    #[arg(long, default_value = "0s", value_name = "TIME", value_parser = duration)]
    duration: Duration,
    /// Share of the attempts that fail, 0 to 1.
    #[arg(long, value_name = "SHARE", value_parser = share)]
    failure_rate: Option<f64>,
    /// low, normal or high.
    #[arg(long, value_name = "PRIORITY", value_parser = priority)]
    priority: Option<Priority>,
    /// Not before this time has passed, in whole seconds, at most 31 days.
    #[arg(long, default_value = "0s", value_name = "TIME", value_parser = delay)]
    delay: Duration,
    /// At most one job with this key waits or runs.
    #[arg(long, value_name = "KEY")]
    unique_key: Option<String>,
    /// Attempts after the first, instead of JOB_RETRY_COUNT.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(0..=100))]
    retries: Option<u32>,
    /// The branch that the jobs belong to: they pause with it.
    #[arg(long, value_name = "BRANCH")]
    branch: Option<String>,
}

fn word(priority: Priority) -> &'static str {
    match priority {
        Priority::Low => "low",
        Priority::Normal => "normal",
        Priority::High => "high",
    }
}

fn priority(text: &str) -> Result<Priority, String> {
    match text {
        "low" => Ok(Priority::Low),
        "normal" => Ok(Priority::Normal),
        "high" => Ok(Priority::High),
        _ => Err("allowed are low, normal and high".into()),
    }
}

fn share(text: &str) -> Result<f64, String> {
    text.parse().ok().filter(|share| (0.0..=1.0).contains(share)).ok_or_else(|| "allowed are 0 to 1, such as 0.1".to_owned())
}

fn duration(text: &str) -> Result<Duration, String> {
    let most = Duration::from_secs(3_600);
    let time =
        humantime::parse_duration(text.trim()).map_err(|_| "not a time: write a number with a unit, such as 50ms or 10s".to_owned())?;
    if time > most || !time.subsec_nanos().is_multiple_of(1_000_000) {
        return Err("allowed are 0ms to 1h, in whole milliseconds".into());
    }
    Ok(time)
}

fn delay(text: &str) -> Result<Duration, String> {
    let most = Duration::from_secs(31 * 24 * 3_600);
    let time =
        humantime::parse_duration(text.trim()).map_err(|_| "not a time: write a number with a unit, such as 30s or 2h".to_owned())?;
    if time > most || time.subsec_nanos() > 0 {
        return Err("allowed are 0s to 31days, in whole seconds".into());
    }
    Ok(time)
}

pub(crate) async fn run(command: Command, context: Context, output: Output) -> Result<Exit> {
    let (ledger, _) = context.ledger().await?;
    match command {
        Command::List { filter, limit, after } => {
            let filter = filter.read(&ledger, after).await?;
            list(ledger.jobs(&filter, limit as usize).await?, limit as usize, output)?;
        }
        Command::Show { id } => show(&find(&ledger, &id).await?, output)?,
        Command::Retry { id: Some(id), .. } => {
            let job = find(&ledger, &id).await?;
            if !ledger.retry_job(&job.id).await? {
                return Err(Fault::rejected(format!("job {id} is {}: only dead and scheduled jobs can be retried", job.state)));
            }
            changed(&ledger, &id, JobOutcome::Retried, output, &format!("job {id} is ready again")).await?;
        }
        Command::Retry { id: None, all_dead, mut bulk } => {
            if all_dead {
                bulk.filter.state = Some(JobState::Dead);
            }
            jobs_many::many(&ledger, Bulk::Retry, bulk, output).await?;
        }
        Command::Cancel { id: Some(id), .. } => cancel(&ledger, &id, output).await?,
        Command::Cancel { id: None, bulk } => jobs_many::many(&ledger, Bulk::Cancel, bulk, output).await?,
        Command::Discard { id: Some(id), yes, .. } => {
            let job = find(&ledger, &id).await?;
            let lost = range(&job)?;
            confirm(yes, &format!("discarding job {id} loses {lost} of this branch for good"))?;
            give_up(&ledger, &context, &job).await?;
            changed(&ledger, &id, JobOutcome::Discarded, output, &format!("discarded job {id}: {lost} is a recorded gap now")).await?;
        }
        Command::Discard { id: None, bulk, yes } => jobs_many::discard_many(&ledger, &context, bulk, yes, output).await?,
        Command::Submit(args) => submit(&ledger, args, output).await?,
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

/// What a discard of this job loses.
fn range(job: &Job) -> Result<String> {
    let Some(spec) = &job.sync else {
        return Err(Fault::rejected(format!("job {} is not a sync job: argon jobs cancel {}", job.id, job.id)));
    };
    Ok(format!("seq:{} to seq:{} ({} changes)", spec.first_seq, spec.last_seq, spec.last_seq + 1 - spec.first_seq))
}

async fn give_up(ledger: &SharedLedger, context: &Context, job: &Job) -> Result<()> {
    if discard(ledger, &context.store().await?, job, &reason(job)).await? {
        return Ok(());
    }
    Err(Fault::rejected(format!("job {} is {}: only dead and waiting jobs can be discarded", job.id, job.state)))
}

pub(super) fn reason(job: &Job) -> String {
    format!("job {} was discarded by the operator", job.id)
}

async fn cancel(ledger: &SharedLedger, id: &str, output: Output) -> Result<()> {
    let job = find(ledger, id).await?;
    if job.kind == JobKind::Sync {
        return Err(Fault::rejected(format!("job {id} is a sync job: its changes would be lost; argon jobs discard {id} records that")));
    }
    let (outcome, said) = match ledger.cancel_job(&job.id).await? {
        Cancelled::Now | Cancelled::Already => (JobOutcome::Cancelled, format!("job {id} is cancelled")),
        Cancelled::Requested => (JobOutcome::CancelRequested, format!("job {id} runs; its worker has been asked to stop")),
        Cancelled::TooLate => return Err(Fault::rejected(format!("job {id} is done"))),
    };
    changed(ledger, id, outcome, output, &said).await
}

/// Prints what the interface over HTTP answers.
async fn changed(ledger: &SharedLedger, id: &str, outcome: JobOutcome, output: Output, said: &str) -> Result<()> {
    let job = JobView::from(find(ledger, id).await?);
    output.print(&JobChange { outcome, job }, || said.to_owned())
}

async fn submit(ledger: &SharedLedger, args: SubmitArgs, output: Output) -> Result<()> {
    let branch = match &args.branch {
        Some(name) => Some(branch_named(ledger, name).await?.id),
        None => None,
    };
    if args.count > 1 && args.unique_key.is_some() {
        return Err(Fault::config("--count: several jobs cannot share a --unique-key"));
    }
    let bar = output.progress("submitting");
    bar.set_length(args.count);
    let mut all = Submitted { ids: Vec::new(), created: 0 };
    let mut left = args.count;
    while left > 0 {
        let count = left.min(MAX_ENQUEUE as u64);
        let request = NewJobRequest {
            kind: SubmitKind::Noop,
            delay_seconds: Some(args.delay.as_secs()),
            priority: args.priority,
            unique_key: args.unique_key.clone(),
            retries: args.retries,
            duration_ms: Some(u64::try_from(args.duration.as_millis()).unwrap_or(u64::MAX)),
            failure_rate: args.failure_rate,
            count: u32::try_from(count).ok(),
            ..NewJobRequest::default()
        };
        let jobs = request.jobs(branch.clone())?;
        let stored = Submitted::new(&jobs, ledger.enqueue(&jobs).await?);
        all.created += stored.created;
        all.ids.extend(stored.ids.into_iter().take(MAX_ENQUEUE.saturating_sub(all.ids.len())));
        left -= count;
        bar.inc(count);
    }
    bar.finish_and_clear();
    output.print(&all, || match (all.created, all.ids.first()) {
        (0, Some(id)) => format!("job {id} has this key already"),
        (1, Some(id)) => format!("submitted job {id}"),
        (n, _) => format!("submitted {}", jobs_many::jobs(n)),
    })
}

fn list(jobs: Vec<Job>, limit: usize, output: Output) -> Result<()> {
    let next = (jobs.len() == limit).then(|| jobs.last().map(|job| job.id.clone())).flatten();
    let page = JobsPage { jobs: jobs.into_iter().map(Into::into).collect(), next };
    output.print(&page, || {
        let rows: Vec<_> = page.jobs.iter().map(row).collect();
        let mut text = fitted(&["JOB", "KIND", "STATE", "SEQ", "TRY", "LAST ERROR"], &rows, output.width());
        if let Some(next) = &page.next {
            text += &format!("\nthere may be more: --after {next}");
        }
        text
    })
}

fn row(job: &JobView) -> Vec<String> {
    let state = match (job.state, job.parked, job.cancel_requested) {
        (JobState::Scheduled, true, _) => "parked".to_owned(),
        (JobState::Running, _, true) => "stopping".to_owned(),
        (state, ..) => state.to_string(),
    };
    let range = job.sync.as_ref().map(|s| format!("{}..{}", s.first_seq, s.last_seq));
    let error = job.errors.last().map(|e| e.error.clone());
    vec![job.id.clone(), job.kind.to_string(), state, range.unwrap_or_default(), job.attempt.to_string(), error.unwrap_or_default()]
}

fn show(job: &Job, output: Output) -> Result<()> {
    output.print(&JobView::from(job.clone()), || {
        let mut lines = vec![
            format!("job        {} ({})", job.id, job.kind),
            format!("state      {}", job.state),
            format!("branch     {}", job.branch_id().unwrap_or("-")),
            format!("priority   {}", word(job.priority)),
            format!("created    {}", rfc3339(job.created_ms)),
            format!("attempts   {}, process deaths {}", job.attempt, job.crashes),
        ];
        if let Some(retries) = job.retries {
            lines.push(format!("retries    {retries} at most"));
        }
        if let Some(key) = &job.unique_key {
            lines.push(format!("unique key {key}"));
        }
        if let Some(s) = &job.sync {
            lines.push(format!(
                "changes    seq:{} to seq:{}, {} raw, {} queued",
                s.first_seq,
                s.last_seq,
                readable(s.raw_bytes),
                readable(s.payload_bytes)
            ));
        }
        if job.state == JobState::Scheduled {
            lines.push(if job.parked {
                "waits      until its branch is no longer paused".into()
            } else {
                format!("waits      until {}", rfc3339(job.run_at_ms))
            });
        }
        if let Some(lease) = &job.lease {
            lines.push(format!("running at {} since {}", lease.engine, rfc3339(lease.claimed_ms)));
        }
        if job.state == JobState::Running && job.cancel_requested {
            lines.push("stopping   its worker has been asked to stop".to_owned());
        }
        if let Some(at) = job.finished_ms {
            lines.push(format!("ended      {}", rfc3339(at)));
        }
        lines.push(format!("errors     {}", job.error_count));
        lines.extend(job.errors.iter().map(|e| format!("  {} attempt {} at {}: {}", rfc3339(e.at_ms), e.attempt, e.engine, e.error)));
        lines.join("\n")
    })
}
