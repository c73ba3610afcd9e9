//! `argon jobs retry|cancel|discard` by a filter: many jobs at once, with progress.
//!
//! Owns: going through them in steps, and what is said of them. Does not own: arguments and single jobs (`jobs`).

use serde::Serialize;

use crate::fault::{Fault, Result};
use crate::http::BulkAnswer;
use crate::ledger::{BULK_SAMPLE, Bulk, BulkOutcome, Job, JobFilter, JobKind, JobState, SharedLedger};
use crate::sync::discard;

use super::jobs::{BulkArgs, FilterArgs, confirm, reason};
use super::{Context, Output};

/// Jobs of one call to the ledger: progress is shown, and an interrupt heeded, between calls.
const STEP: usize = 1_000;

pub(super) async fn many(ledger: &SharedLedger, action: Bulk, args: BulkArgs, output: Output) -> Result<()> {
    possible(action, &args.filter)?;
    let filter = args.filter.read(ledger, None).await?;
    let most = usize::try_from(args.limit).unwrap_or(usize::MAX);
    let total = if args.dry_run {
        ledger.bulk(action, &filter, most, true).await?
    } else {
        let bar = output.counter(match action {
            Bulk::Retry => "retrying",
            Bulk::Cancel => "cancelling",
        });
        let total = in_steps(ledger, action, &filter, most, |done| bar.inc(done)).await;
        bar.finish_and_clear();
        total?
    };
    output.print(&BulkAnswer::new(total.clone(), args.dry_run), || summary(action, &total, args.dry_run))
}

/// A state in which nothing can be done is a mistake, and "0 jobs" would hide it.
fn possible(action: Bulk, filter: &FilterArgs) -> Result<()> {
    let Some(state) = filter.state else { return Ok(()) };
    match action {
        Bulk::Retry if !matches!(state, JobState::Dead | JobState::Scheduled) => {
            Err(Fault::config(format!("--state {state}: only dead and scheduled jobs can be retried")))
        }
        Bulk::Cancel if matches!(state, JobState::Done | JobState::Cancelled) => {
            Err(Fault::config(format!("--state {state}: those jobs have ended, there is nothing to cancel")))
        }
        Bulk::Retry | Bulk::Cancel => Ok(()),
    }
}

/// Some at a time, so that a person sees it move; `moved` is told how many each time. What can be changed leaves the filter with its step; what
/// cannot (its unique key is taken, it is a sync job) stays and is met again, so each step looks further by that, and the last one counts it.
async fn in_steps(ledger: &SharedLedger, action: Bulk, filter: &JobFilter, most: usize, moved: impl Fn(u64)) -> Result<BulkOutcome> {
    let mut total = BulkOutcome::default();
    let (mut left, mut stay) = (most, 0);
    loop {
        let asked = left.saturating_sub(stay).min(STEP.max(stay)).saturating_add(stay);
        let step = ledger.bulk(action, filter, asked, false).await?;
        let gone = step.changed + step.requested;
        moved(gone);
        let stays = usize::try_from(step.matched.saturating_sub(gone)).unwrap_or(usize::MAX);
        left = left.saturating_sub(usize::try_from(gone).unwrap_or(usize::MAX));
        total.changed += step.changed;
        total.requested += step.requested;
        for id in step.sample {
            if total.sample.len() < BULK_SAMPLE && !total.sample.contains(&id) {
                total.sample.push(id);
            }
        }
        total.matched = total.changed + total.requested + stays as u64;
        (total.hindered, total.discard, total.more) = (step.hindered, step.discard, step.more);
        // A step that has met fewer than it asked for ended at its time: with nothing done, another would end there too.
        let in_vain = gone == 0 && step.matched < asked as u64;
        if !step.more || in_vain || left.saturating_sub(stays) == 0 {
            return Ok(total);
        }
        stay = stays;
    }
}

fn summary(action: Bulk, total: &BulkOutcome, dry_run: bool) -> String {
    let verb = match action {
        Bulk::Retry => "ready again",
        Bulk::Cancel => "cancelled",
    };
    let mut text = if dry_run {
        let matched = total.matched - total.discard.len() as u64;
        let least = if total.more { "at least " } else { "" };
        let mut text = format!("{least}{} would be {verb}", jobs(matched));
        let named: Vec<&str> = total.sample.iter().filter(|id| !total.discard.contains(id)).take(3).map(String::as_str).collect();
        if !named.is_empty() {
            text += &format!(", such as {}", named.join(", "));
        }
        text
    } else {
        let is = if total.changed == 1 { "is" } else { "are" };
        format!("{} {is} {verb}", jobs(total.changed))
    };
    if total.requested > 0 {
        text += &format!("; {} at work asked to stop", jobs(total.requested));
    }
    if total.hindered > 0 {
        text += &format!("; left as they are, since another job has their unique key: {}", total.hindered);
    }
    if !total.discard.is_empty() {
        text += &format!(
            "\n{} of kind sync left as they are: argon jobs discard gives them up, and records what is lost with them",
            jobs(total.discard.len() as u64)
        );
    }
    if total.more && !dry_run {
        text += "\nthere may be more: the same command goes on, --limit says how many at once";
    }
    text
}

pub(super) fn jobs(n: u64) -> String {
    if n == 1 { "1 job".to_owned() } else { format!("{n} jobs") }
}

/// Each leaves a gap of its own, with its own bounds (correctness.md 25).
pub(super) async fn discard_many(ledger: &SharedLedger, context: &Context, args: BulkArgs, yes: bool, output: Output) -> Result<()> {
    if args.filter.kind != Some(JobKind::Sync) {
        return Err(Fault::config("discarding many jobs loses history: name them with --kind sync, and see --dry-run"));
    }
    let mut filter = args.filter.read(ledger, None).await?;
    filter.state = filter.state.or(Some(JobState::Dead));
    let (mut jobs, most) = (Vec::new(), usize::try_from(args.limit).unwrap_or(usize::MAX));
    while jobs.len() < most {
        let page = ledger.jobs(&filter, STEP.min(most - jobs.len())).await?;
        let Some(last) = page.last() else { break };
        filter.after = Some(last.id.clone());
        jobs.extend(page);
    }
    let changes =
        |jobs: &[Job]| jobs.iter().filter_map(|job| job.sync.as_ref()).map(|spec| spec.last_seq + 1 - spec.first_seq).sum::<u64>();
    let (found, lost) = (jobs.len(), changes(&jobs));
    if args.dry_run || jobs.is_empty() {
        let view = DiscardMany { dry_run: args.dry_run, matched: found, discarded: 0, changes: lost, jobs: ids(&jobs) };
        return output.print(&view, || format!("{} with {lost} changes would be discarded", self::jobs(found as u64)));
    }
    confirm(yes, &format!("discarding {} loses {lost} changes for good", self::jobs(found as u64)))?;
    let bar = output.progress("discarding");
    bar.set_length(found as u64);
    let store = context.store().await?;
    let mut gone = Vec::new();
    for job in jobs {
        // One that has been retried or committed meanwhile is no longer ours to give up, and no reason to leave the others.
        if discard(ledger, &store, &job, &reason(&job)).await.inspect_err(|_| bar.finish_and_clear())? {
            gone.push(job);
        }
        bar.inc(1);
    }
    bar.finish_and_clear();
    let view = DiscardMany { dry_run: false, matched: found, discarded: gone.len(), changes: changes(&gone), jobs: ids(&gone) };
    output.print(&view, || {
        let mut text = format!("discarded {}: {} changes are recorded gaps now", self::jobs(gone.len() as u64), view.changes);
        if gone.len() < found {
            text += &format!("; {} had moved on and stay", found - gone.len());
        }
        text
    })
}

/// What `jobs discard` by filter did, or would do.
#[derive(Debug, Serialize)]
struct DiscardMany {
    dry_run: bool,
    matched: usize,
    discarded: usize,
    /// Changes that these jobs hold.
    changes: u64,
    jobs: Vec<String>,
}

fn ids(jobs: &[Job]) -> Vec<String> {
    jobs.iter().map(|job| job.id.clone()).collect()
}
