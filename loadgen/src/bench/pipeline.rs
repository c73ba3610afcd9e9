//! `bench pipeline`: a backlog through the whole engine, against the bare cursor over the same backlog, in turn, in the same run.
//!
//! What is compared: the ceiling runs from the request that opens the cursor to the last event, on a connection that is there. The engine
//! runs from the moment when its capture is owned, right before it opens its cursor, to the moment when the head of the branch is seen
//! at the last change by a majority read: everything is encoded, uploaded, committed. The time from spawning the process to owning the capture is not in the ratio and
//! printed beside it, and so is the ratio that includes it. A ratio is taken within each round, to the faster of the two cursors; the
//! figure is the median of the rounds.

use std::time::Duration;

use argon::fault::{Fault, Result};
use argon::ledger::Totals;
use bson::Document;
use serde::Serialize;
use serde_json::{Map, json};

use super::ceiling::{self, REPLY_EVENTS, Reading};
use super::documents::Documents;
use super::rig::{Line, Rig, SOURCE_DB};
use super::session::{Moments, Session, Used};
use super::{median, ratio, real, say};
use crate::args::Pipeline;
use crate::load::per_second;
use crate::report::Report;

const COLLECTION: &str = "load0";
/// Documents in one insert command.
const INSERT_BATCH: u64 = 2_000;

/// One round.
#[derive(Debug, Serialize)]
struct Round {
    /// Changes per second of the bare cursor, by reply size (`default` is the server's).
    cursor_per_s: Map<String, serde_json::Value>,
    /// The faster one.
    ceiling_per_s: f64,
    /// CPU seconds of the driver in the faster one.
    ceiling_cpu_s: f64,
    /// CPU seconds of mongod in the faster one.
    ceiling_mongod_cpu_s: f64,
    /// Cores that other work on the machine took during the fastest reading.
    ceiling_others_cores: f64,
    engine_per_s: f64,
    ratio_to_ceiling: f64,
    /// The same with the start of the process.
    ratio_with_start_up: f64,
    start_up_ms: f64,
    first_checkpoint_ms: Option<f64>,
    /// From owning the capture to the last commit.
    drain_ms: f64,
    used: Used,
    cpu_us_per_change: f64,
    totals: Totals,
    stored_bytes_per_change: f64,
    raw_bytes_per_change: f64,
    /// Compressed for the queue, which lives for a second.
    queued_bytes_per_change: f64,
    verify_ms: f64,
}

/// Runs it.
pub(super) async fn run(args: Pipeline) -> Result<Report> {
    let rig = Rig::start(&args.servers).await?;
    let lines: Vec<Line> = (1..=args.rounds).map(Line::new).collect();
    // Made before, so that the backlog holds inserts and nothing else.
    rig.source().create_collection(COLLECTION).await.map_err(|error| Fault::unknown(error.to_string()))?;
    for line in &lines {
        rig.start_capture(line).await?;
    }
    let token = ceiling::token(&rig.source()).await?;
    let loading = insert(&rig, &args).await?;

    let mut rounds = Vec::new();
    for line in &lines {
        say(&format!("round {} of {}", rounds.len() + 1, args.rounds));
        let mut readings = Vec::new();
        for events in REPLY_EVENTS {
            readings.push(ceiling::read(&rig.client, rig.mongod.pid(0), SOURCE_DB, &token, args.changes, events).await?);
        }
        rounds.push(Box::pin(round(&rig, line, args.changes, &readings)).await?);
    }
    Ok(report(&args, &rig, loading, &rounds))
}

async fn insert(rig: &Rig, args: &Pipeline) -> Result<Duration> {
    say(&format!("loading {} documents of {} bytes", args.changes, args.doc_bytes));
    let collection = rig.source().collection::<Document>(COLLECTION);
    let mut documents = Documents::new(args.seed, args.doc_bytes, args.content);
    let batch = INSERT_BATCH.min((16 << 20) / u64::from(args.doc_bytes)).max(1);
    let start = argon::runtime::clock::now();
    let mut left = args.changes;
    while left > 0 {
        let take = left.min(batch);
        let chunk: Vec<Document> = documents.by_ref().take(usize::try_from(take).unwrap_or(usize::MAX)).collect();
        collection.insert_many(chunk).ordered(false).await.map_err(|error| Fault::unknown(format!("loading: {error}")))?;
        left -= take;
    }
    Ok(start.elapsed())
}

async fn round(rig: &Rig, line: &Line, changes: u64, readings: &[Reading]) -> Result<Round> {
    let fastest = readings.iter().min_by_key(|reading| reading.elapsed).ok_or_else(|| Fault::unknown("nothing was read"))?;
    let mut session = Session::start(rig, line)?;
    session.wait_owned().await?;
    let Moments { owned, first_checkpoint, done } = session.wait_head(changes).await?;
    let used = session.used()?;
    let branch = session.watch.branch().await?;
    if (branch.head.seq, branch.totals.changes) != (changes, changes) {
        return Err(Fault::corrupt(format!("{changes} changes were written, {} is at {:?}", line.branch, branch.totals)));
    }
    let verified = session.finish().await?;

    let drain = done.saturating_sub(owned);
    let (ceiling_per_s, engine_per_s) = (per_second(changes, fastest.elapsed), per_second(changes, drain));
    let label = |reading: &Reading| reading.reply_events.map_or_else(|| "default".to_owned(), |events| events.to_string());
    Ok(Round {
        cursor_per_s: readings.iter().map(|reading| (label(reading), json!(per_second(changes, reading.elapsed)))).collect(),
        ceiling_per_s,
        ceiling_others_cores: fastest.others,
        ceiling_cpu_s: fastest.cpu_s,
        ceiling_mongod_cpu_s: fastest.mongod_cpu_s,
        engine_per_s,
        ratio_to_ceiling: ratio(engine_per_s, ceiling_per_s),
        ratio_with_start_up: ratio(per_second(changes, done), ceiling_per_s),
        start_up_ms: millis(owned),
        first_checkpoint_ms: first_checkpoint.map(millis),
        drain_ms: millis(drain),
        used,
        cpu_us_per_change: used.engine_cpu_s * 1e6 / real(changes),
        totals: branch.totals,
        stored_bytes_per_change: ratio(real(branch.totals.stored_bytes), real(changes)),
        raw_bytes_per_change: ratio(real(branch.totals.raw_bytes), real(changes)),
        queued_bytes_per_change: ratio(real(branch.settled_bytes), real(changes)),
        verify_ms: millis(verified),
    })
}

fn millis(time: Duration) -> f64 {
    time.as_secs_f64() * 1000.0
}

fn report(args: &Pipeline, rig: &Rig, loading: Duration, rounds: &[Round]) -> Report {
    let options = json!({ "changes": args.changes, "doc_bytes": args.doc_bytes, "content": format!("{:?}", args.content).to_lowercase(), "rounds": args.rounds, "servers": rig.describe() });
    let mut report = Report::new("bench pipeline", options, args.seed);
    let mid = |figure: fn(&Round) -> f64| median(rounds.iter().map(figure));
    let found = mid(|round| round.ratio_to_ceiling);
    report.set("ratio_to_ceiling", found);
    report.set("ratio_with_start_up", mid(|round| round.ratio_with_start_up));
    report.set("ceiling_per_s", mid(|round| round.ceiling_per_s));
    report.set("changes_per_s", mid(|round| round.engine_per_s));
    report.set("start_up_ms", mid(|round| round.start_up_ms));
    report.set("engine_cpu_s", mid(|round| round.used.engine_cpu_s));
    report.set("cpu_us_per_change", mid(|round| round.cpu_us_per_change));
    report.set("peak_rss_bytes", rounds.iter().map(|round| round.used.peak_rss_bytes).max());
    report.set("stored_bytes_per_change", mid(|round| round.stored_bytes_per_change));
    report.set("raw_bytes_per_change", mid(|round| round.raw_bytes_per_change));
    report.set("objects", mid(|round| real(round.totals.segments)));
    report.set("others_cores", mid(|round| round.ceiling_others_cores.max(round.used.others_cores)));
    report.set("load_per_s", per_second(args.changes, loading));
    report.set("rounds", rounds);

    report.table(table(rounds));
    report.line("ratio to ceiling", format!("{found:.3} (with process start {:.3})", mid(|round| round.ratio_with_start_up)));
    report.line(
        "engine",
        format!("{:.0} changes/s, {:.1} CPU us per change", mid(|round| round.engine_per_s), mid(|round| round.cpu_us_per_change)),
    );
    report.line("ceiling", format!("{:.0} changes/s, the bare cursor", mid(|round| round.ceiling_per_s)));
    if let Some(wanted) = args.min_ratio {
        report.limit(found >= wanted, format!("ratio to ceiling {found:.3}, at least {wanted} wanted"));
    }
    report
}

/// A figure of a round: its head, where it is from, its digits.
type Column = (&'static str, fn(&Round) -> f64, usize);

/// A row per round and the medians.
fn table(rounds: &[Round]) -> Vec<Vec<String>> {
    let columns: [Column; 17] = [
        ("cursor/s", |r| r.ceiling_per_s, 0),
        ("engine/s", |r| r.engine_per_s, 0),
        ("ratio", |r| r.ratio_to_ceiling, 3),
        ("with start", |r| r.ratio_with_start_up, 3),
        ("start ms", |r| r.start_up_ms, 0),
        ("1st chkpt ms", |r| r.first_checkpoint_ms.unwrap_or(f64::NAN), 0),
        ("drain ms", |r| r.drain_ms, 0),
        ("CPU s", |r| r.used.engine_cpu_s, 2),
        ("us/change", |r| r.cpu_us_per_change, 2),
        ("mongod CPU s", |r| r.used.mongod_cpu_s, 2),
        ("store CPU s", |r| r.used.store_cpu_s, 2),
        ("peak MiB", |r| real(r.used.peak_rss_bytes) / 1_048_576.0, 0),
        ("stored B/change", |r| r.stored_bytes_per_change, 1),
        ("raw B/change", |r| r.raw_bytes_per_change, 1),
        ("queued B/change", |r| r.queued_bytes_per_change, 1),
        ("others' cores", |r| r.ceiling_others_cores.max(r.used.others_cores), 2),
        ("objects", |r| real(r.totals.segments), 0),
    ];
    let head = std::iter::once("round".to_owned()).chain(columns.iter().map(|(name, ..)| (*name).to_owned())).collect();
    let row = |name: String, value: &dyn Fn(fn(&Round) -> f64) -> f64| {
        std::iter::once(name).chain(columns.iter().map(|(_, figure, digits)| format!("{:.*}", *digits, value(*figure)))).collect()
    };
    let mut rows: Vec<Vec<String>> = vec![head];
    rows.extend(rounds.iter().enumerate().map(|(i, round)| row((i + 1).to_string(), &|figure| figure(round))));
    rows.push(row("median".to_owned(), &|figure| median(rounds.iter().map(figure))));
    rows
}
