//! Load on a database: a seeded workload at a fixed rate or at full speed.
//!
//! Owns: from arguments to writers, the progress line, and the report. Does not own the parts: when operations are due ([`pacing`]),
//! one writer ([`lane`]), latencies ([`latency`]), documents from a file ([`corpus`]).

mod corpus;
mod lane;
pub(crate) mod latency;
mod pacing;

use std::io::{IsTerminal, Write};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use argon::devkit::workload::{self, Profile, Stats, Workload};
use argon::fault::{Fault, Result};
use argon::runtime::shutdown::Shutdown;
use mongodb::options::ClientOptions;
use mongodb::{Client, Database};
use serde::Serialize;
use serde_json::{Value, json};
use tokio::task::JoinSet;

use crate::args::{Pace, ProfileName, Rate, Run, Shape};
use crate::report::Report;
use lane::{Lane, LaneEnd};
use latency::{Latencies, Percentiles};
use pacing::Schedule;

/// Without --duration and --count.
const DEFAULT_DURATION: Duration = Duration::from_secs(10);
/// With --count alone; a month ends a run that hangs.
const NO_DURATION: Duration = Duration::from_secs(30 * 86_400);
const PROGRESS_EVERY: Duration = Duration::from_millis(500);
const SERVER_SELECTION: Duration = Duration::from_secs(10);

/// What a load did.
#[derive(Debug, Serialize)]
pub(crate) struct LoadReport {
    pub elapsed_s: f64,
    pub operations: u64,
    /// Events that the change stream reports of it. A lower bound when a command has failed.
    pub changes: u64,
    pub inserted: u64,
    pub modified: u64,
    pub deleted: u64,
    pub transactions: u64,
    pub sent_bytes: u64,
    /// Operations per second asked for; absent at full speed.
    pub target_rate: Option<u32>,
    /// Operations per second that were answered.
    pub achieved_rate: f64,
    /// Operations that were due and not sent when the time was over.
    pub unsent: u64,
    /// From where latency is counted: `due` or `send`.
    pub latency_from: &'static str,
    pub latency_ms: Percentiles,
    pub failures: u64,
    pub interrupted: bool,
}

/// The `run` command.
pub(crate) async fn run(args: Run, stop: Shutdown) -> Result<Report> {
    let profile = profile(&args.shape)?;
    let db = connect(&args.uri).await?.database(&args.db);
    let load = load(&db, &profile, args.shape.seed, &args.pace, args.keep_going, &stop).await?;
    let options = json!({ "db": args.db, "load": options(&args.shape, &args.pace, &profile) });
    Ok(report(&load, options, args.shape.seed))
}

/// Writes as asked; returns when all replies are there. A failure ends it with an error unless `keep_going`.
pub(crate) async fn load(
    db: &Database,
    profile: &Profile,
    seed: u64,
    pace: &Pace,
    keep_going: bool,
    stop: &Shutdown,
) -> Result<LoadReport> {
    let by_user = stop;
    let stop = by_user.child(); // a failure of one writer stops the others and nobody else
    workload::prepare(db, profile).await?;
    let sent = Arc::new(AtomicU64::new(0));
    let start = lane::now();
    let mut lanes = JoinSet::new();
    for lane in 0..pace.connections {
        let schedule = match pace.rate {
            Rate::Max => None,
            Rate::PerSecond(rate) => Some(Schedule::new(rate, pace.connections, lane, tick_ns(pace))),
        };
        let lane = Lane {
            db: db.clone(),
            workload: Workload::new(seed, lane, profile.clone())?,
            schedule,
            start,
            duration: duration(pace),
            count: pace.count.map_or(u64::MAX, |count| pacing::share(count, pace.connections, lane)),
            batch: u64::from(pace.batch),
            keep_going,
            stop: stop.clone(),
            sent: sent.clone(),
        };
        lanes.spawn(lane.run());
    }
    let progress = tokio::spawn(progress(sent, start, pace.clone()));
    let mut ends = Vec::new();
    while let Some(end) = lanes.join_next().await {
        let end = end.map_err(|error| Fault::unknown(format!("a writer ended unexpectedly: {error}")))?;
        if end.failure.is_some() && !keep_going {
            stop.drain(); // the others finish what they have sent
        }
        ends.push(end);
    }
    progress.abort();
    clear_progress();
    summary(ends, start.elapsed(), pace, keep_going, by_user)
}

fn summary(ends: Vec<LaneEnd>, elapsed: Duration, pace: &Pace, keep_going: bool, stop: &Shutdown) -> Result<LoadReport> {
    let (mut stats, mut latencies, mut unsent, mut failures) = (Stats::default(), Latencies::new(), 0, 0);
    for end in ends {
        if let Some(fault) = end.failure {
            if !keep_going {
                return Err(fault);
            }
            eprintln!("argon-loadgen: {} failed commands, the first: {fault}", end.failures);
        }
        stats += end.stats;
        latencies.merge(&end.latencies);
        unsent += end.unsent;
        failures += end.failures;
    }
    let target_rate = if let Rate::PerSecond(rate) = pace.rate { Some(rate) } else { None };
    Ok(LoadReport {
        elapsed_s: elapsed.as_secs_f64(),
        operations: stats.operations,
        changes: stats.changes,
        inserted: stats.inserted,
        modified: stats.modified,
        deleted: stats.deleted,
        transactions: stats.transactions,
        sent_bytes: stats.sent_bytes,
        target_rate,
        achieved_rate: per_second(stats.operations, elapsed),
        unsent,
        latency_from: if target_rate.is_some() { "due" } else { "send" },
        latency_ms: latencies.percentiles(),
        failures,
        interrupted: stop.is_draining(),
    })
}

/// From the flags to a profile.
pub(crate) fn profile(shape: &Shape) -> Result<Profile> {
    let base = match shape.profile {
        ProfileName::Mixed => Profile::default(),
        ProfileName::Insert => Profile::inserts(400),
        ProfileName::Repeated => Profile::repeated(),
        ProfileName::Everything => Profile::everything(),
    };
    let size = |n: u32| usize::try_from(n).unwrap_or(usize::MAX);
    let profile = Profile {
        insert: shape.insert.unwrap_or(base.insert),
        update: shape.update.unwrap_or(base.update),
        replace: shape.replace.unwrap_or(base.replace),
        delete: shape.delete.unwrap_or(base.delete),
        transaction: shape.transaction.unwrap_or(base.transaction),
        doc_bytes: shape.doc_bytes.map_or(base.doc_bytes, size),
        collections: shape.collections.map_or(base.collections, size),
        keys: shape.keys.map_or(base.keys, size),
        corpus: shape.corpus.as_deref().map(corpus::read).transpose()?,
        ..base
    };
    Workload::new(shape.seed, 0, profile.clone())?; // an impossible profile is refused before anything is connected to
    Ok(profile)
}

/// The options in effect, for the report.
pub(crate) fn options(shape: &Shape, pace: &Pace, profile: &Profile) -> Value {
    let name = clap::ValueEnum::to_possible_value(&shape.profile).map(|value| value.get_name().to_owned());
    json!({
        "profile": name,
        "weights": { "insert": profile.insert, "update": profile.update, "replace": profile.replace, "delete": profile.delete, "transaction": profile.transaction },
        "doc_bytes": profile.doc_bytes,
        "collections": profile.collections,
        "keys": profile.keys,
        "corpus_documents": profile.corpus.as_ref().map(Vec::len),
        "rate": if let Rate::PerSecond(rate) = pace.rate { json!(rate) } else { json!("max") },
        "duration_s": pace.duration.or(pace.count.is_none().then_some(DEFAULT_DURATION)).map(|time| time.as_secs_f64()),
        "count": pace.count,
        "connections": pace.connections,
        "batch": pace.batch,
        "tick_ms": pace.tick.as_secs_f64() * 1000.0,
    })
}

fn report(load: &LoadReport, options: Value, seed: u64) -> Report {
    let mut report = Report::new("run", options, seed);
    lines(load, &mut report);
    report.set("load", load);
    report
}

/// What a person wants to see of a load.
pub(crate) fn lines(load: &LoadReport, report: &mut Report) {
    let rate = load.target_rate.map_or_else(|| "full speed".to_owned(), |rate| format!("{rate}/s asked for"));
    report.line(
        "operations",
        format!("{} in {:.2} s: {:.0}/s ({rate}, {} unsent)", load.operations, load.elapsed_s, load.achieved_rate, load.unsent),
    );
    report.line(
        "changes",
        format!(
            "{} ({} inserted, {} modified, {} deleted, {} transactions)",
            load.changes, load.inserted, load.modified, load.deleted, load.transactions
        ),
    );
    let Percentiles { p50, p90, p99, max, .. } = load.latency_ms;
    report.line(
        &format!("latency from {}", load.latency_from),
        format!("p50 {p50:.1} ms, p90 {p90:.1} ms, p99 {p99:.1} ms, max {max:.1} ms"),
    );
    if load.failures > 0 {
        report.line("failed commands", load.failures.to_string());
    }
    if load.interrupted {
        report.line("ended", "by the user".to_owned());
    }
}

async fn connect(uri: &str) -> Result<Client> {
    argon::store::install_tls();
    let mut options = ClientOptions::parse(uri).await.map_err(|error| Fault::config(format!("--uri: {error}")))?;
    options.server_selection_timeout.get_or_insert(SERVER_SELECTION);
    let client = Client::with_options(options).map_err(|error| Fault::config(format!("--uri: {error}")))?;
    let ping = client.database("admin").run_command(bson::doc! { "ping": 1 }).await;
    ping.map_err(|error| Fault::transient(format!("MongoDB at --uri does not answer: {error}")))?;
    Ok(client)
}

fn duration(pace: &Pace) -> Duration {
    pace.duration.unwrap_or(if pace.count.is_some() { NO_DURATION } else { DEFAULT_DURATION })
}

fn tick_ns(pace: &Pace) -> u64 {
    u64::try_from(pace.tick.as_nanos()).unwrap_or(u64::MAX)
}

/// Operations per second.
#[allow(clippy::cast_precision_loss)] // counts far below 2^52
pub(crate) fn per_second(count: u64, time: Duration) -> f64 {
    count as f64 / time.as_secs_f64().max(1e-9)
}

/// A line that writes over itself, on a terminal only.
async fn progress(sent: Arc<AtomicU64>, start: std::time::Instant, pace: Pace) {
    if !std::io::stderr().is_terminal() {
        return;
    }
    let mut before = 0;
    loop {
        tokio::time::sleep(PROGRESS_EVERY).await;
        let now = sent.load(Ordering::Relaxed);
        let left = match (pace.count, pace.duration) {
            (Some(count), _) => format!("of {count}"),
            (None, _) => format!("of {:.0} s", duration(&pace).as_secs_f64()),
        };
        let rate = per_second(now - before, PROGRESS_EVERY);
        let _ = write!(std::io::stderr(), "\r\x1b[K{now} operations, {:.0} s {left}, {rate:.0}/s", start.elapsed().as_secs_f64());
        before = now;
    }
}

fn clear_progress() {
    if std::io::stderr().is_terminal() {
        let _ = write!(std::io::stderr(), "\r\x1b[K");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shape() -> Shape {
        Shape {
            profile: ProfileName::Mixed,
            insert: None,
            update: None,
            replace: None,
            delete: None,
            transaction: None,
            doc_bytes: None,
            collections: None,
            keys: None,
            corpus: None,
            seed: 1,
        }
    }

    #[test]
    fn weights_change_the_profile_they_are_given_with() {
        let changed = profile(&Shape { update: Some(0), doc_bytes: Some(1000), ..shape() }).unwrap();
        assert_eq!((changed.insert, changed.update, changed.doc_bytes, changed.collections), (40, 0, 1000, 3));
        assert!(profile(&Shape { profile: ProfileName::Repeated, ..shape() }).unwrap().repeated);
    }

    #[test]
    fn an_impossible_profile_is_a_configuration_error() {
        let nothing = Shape { profile: ProfileName::Insert, insert: Some(0), ..shape() };
        assert_eq!(profile(&nothing).unwrap_err().kind, argon::fault::Kind::Config);
    }
}
