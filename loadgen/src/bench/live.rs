//! `bench live`: a fixed rate for a time while the engine follows; how long from a commit in MongoDB to its committed segment.
//!
//! Owns: load and engine side by side, and the report. Does not own how a delay is counted ([`super::delays`]).

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use argon::devkit::workload;
use argon::fault::{Fault, Result};
use argon::runtime::clock;
use argon::runtime::shutdown::Shutdown;
use serde_json::json;

use super::delays::{self, Sighting};
use super::rig::{Line, Rig};
use super::session::Session;
use super::watch::{POLL, Watch};
use super::{ratio, real, say};
use crate::args::{Live, Pace, Rate};
use crate::load::latency::Percentiles;
use crate::load::{self, LoadReport};
use crate::report::Report;

/// After the load: everything must be committed within the batch timeout and a little.
const CATCH_UP_LIMIT: Duration = Duration::from_secs(120);

/// Runs it.
pub(super) async fn run(args: Live) -> Result<Report> {
    let profile = load::profile(&args.shape)?;
    let pace = Pace {
        rate: Rate::PerSecond(args.rate),
        duration: Some(args.duration),
        count: None,
        connections: args.connections,
        batch: 500,
        tick: args.tick,
    };
    let rig = Rig::start(&args.servers).await?;
    workload::prepare(&rig.source(), &profile).await?;
    let line = Line::new(1);
    rig.start_capture(&line).await?;
    let mut session = Session::start(&rig, &line)?;
    session.wait_owned().await?;
    let idle = session.used()?;

    say(&format!("{} operations/s for {:?}", args.rate, args.duration));
    let target = Arc::new(AtomicU64::new(u64::MAX));
    let looking = tokio::spawn(look(session.watch.clone(), target.clone()));
    let load = load::load(&rig.source(), &profile, args.shape.seed, &pace, false, &Shutdown::new()).await?;
    let loaded = session.used()?;
    let ended = clock::now();
    target.store(load.changes, Ordering::Relaxed);
    tokio::time::timeout(CATCH_UP_LIMIT, session.wait_head(load.changes))
        .await
        .unwrap_or_else(|_| Err(Fault::transient(format!("the engine did not catch up within {CATCH_UP_LIMIT:?}"))))?;
    let catch_up = ended.elapsed();
    let sightings = looking.await.map_err(|error| Fault::unknown(format!("the look-out ended unexpectedly: {error}")))??;
    let used = session.used()?;
    let branch = session.watch.branch().await?;
    let segments = session.watch.segments().await?;
    let (jobs, job_ms) = session.job_time().await?;
    session.finish().await?;
    say("reading the segments");
    let delays = delays::measure(&rig.open_store().await?, &segments, &sightings).await?;
    if delays.changes != load.changes {
        return Err(Fault::corrupt(format!("{} changes were written, the segments hold {}", load.changes, delays.changes)));
    }

    let options = json!({ "load": load::options(&args.shape, &pace, &profile), "servers": rig.describe() });
    let mut report = Report::new("bench live", options, args.shape.seed);
    load::lines(&load, &mut report);
    let (commit, visible, under_load) =
        (delays.commit.percentiles(), delays.visible.percentiles(), delays.visible_under_load.percentiles());
    let cores = ratio(loaded.engine_cpu_s - idle.engine_cpu_s, load.elapsed_s);
    report.line("delay, committed", delay(&commit));
    report.line("delay, seen committed", delay(&visible));
    report.line("  before the last batch", delay(&under_load));
    report.line("caught up", format!("{:.0} ms after the load", catch_up.as_secs_f64() * 1000.0));
    report.line(
        "engine",
        format!("{:.1} CPU s, {cores:.3} cores under load, {:.1} MiB at most", used.engine_cpu_s, real(used.peak_rss_bytes) / 1_048_576.0),
    );
    report.line(
        "jobs",
        format!(
            "{jobs} of {:.0} changes, {job_ms:.1} ms each on average, as /workers/stats shows it",
            ratio(real(load.changes), real(jobs))
        ),
    );
    report.line("others", format!("{:.2} cores were taken by other work on this machine", loaded.others_cores));
    report.line(
        "stored",
        format!(
            "{:.1} B of {:.1} B per change in {} segments",
            per_change(branch.totals.stored_bytes, &load),
            per_change(branch.totals.raw_bytes, &load),
            branch.totals.segments
        ),
    );
    report.set("delay_ms", visible);
    report.set("delay_under_load_ms", under_load);
    report.set("commit_delay_ms", commit);
    report.set("jobs", jobs);
    report.set("job_ms", job_ms);
    report.set("catch_up_ms", catch_up.as_secs_f64() * 1000.0);
    report.set("engine_cores", cores);
    report.set("engine_cpu_us_per_change", ratio((loaded.engine_cpu_s - idle.engine_cpu_s) * 1e6, real(load.changes)));
    report.set("changes_per_s", real(load.changes) / load.elapsed_s);
    report.set("used", used);
    report.set("peak_rss_bytes", used.peak_rss_bytes);
    report.set("totals", branch.totals);
    report.set("load", &load);
    if let Some(limit) = args.max_p99 {
        let limit_ms = limit.as_secs_f64() * 1000.0;
        report.limit(visible.p99 <= limit_ms, format!("p99 of the delay {:.0} ms, at most {limit_ms:.0} ms wanted", visible.p99));
    }
    if let Some(limit) = args.max_job {
        let limit_ms = limit.as_secs_f64() * 1000.0;
        report.limit(job_ms <= limit_ms, format!("a job takes {job_ms:.1} ms on average, at most {limit_ms:.0} ms wanted"));
    }
    Ok(report)
}

fn per_change(bytes: u64, load: &LoadReport) -> f64 {
    ratio(real(bytes), real(load.changes))
}

fn delay(Percentiles { p50, p90, p99, max, .. }: &Percentiles) -> String {
    format!("p50 {p50:.0} ms, p90 {p90:.0} ms, p99 {p99:.0} ms, max {max:.0} ms")
}

/// Notes every new head, and when it was seen, until the head is at `target`.
async fn look(watch: Watch, target: Arc<AtomicU64>) -> Result<Vec<Sighting>> {
    let mut sightings = Vec::new();
    let mut last = 0;
    loop {
        let seq = watch.head().await?;
        if seq > last {
            sightings.push(Sighting { seq, wall_ms: clock::wall_ms() });
            last = seq;
        }
        if seq >= target.load(Ordering::Relaxed) {
            return Ok(sightings);
        }
        tokio::time::sleep(POLL).await;
    }
}
