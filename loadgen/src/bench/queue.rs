//! `bench queue`: claims from queues of different depths, engines that drain them, and the queue that most people write beside them.
//!
//! Owns: the order of the measurements, and the report. Two layers: the ledger alone ([`lane`]), which shows what a claim costs; whole engines
//! ([`engines`]), which show how many jobs they do. Does not own: which settings are measured ([`plan`]), the jobs ([`fill`]), what mongod counts
//! ([`server`]), the plain queue ([`plain`]).
//!
//! One database is filled more and more, since that is the direction in which it can be filled. The deepest queue is compared with a shallow one,
//! claim by claim in turn, twice: both in new databases, so that only the depth differs; and the one that has been filled and emptied for minutes
//! (worn: what was claimed stays in the indexes for as long as MongoDB keeps history) with the shallow one, which is some hundred thousand jobs old.

mod engines;
mod fill;
mod lane;
mod plain;
mod plan;
mod server;
mod table;

use std::time::Duration;

use argon::fault::{Fault, Result};
use argon::ledger::{Ledger, MongoLedger};
use argon::runtime::clock;
use serde::Serialize;
use serde_json::json;

use super::rig::{Line, Rig};
use super::{median, ratio, real, say};
use crate::args::QueueBench;
use crate::load::latency::Percentiles;
use crate::report::Report;
use engines::EnginesFound;
use fill::Queue;
use lane::{Compared, LedgerFound, Looked};
use plain::{Plain, PlainFound};
use plan::{Claims, EngineCell, Plan, WORKERS};

/// Limit of one call of the ledger.
const CALL_LIMIT: Duration = Duration::from_secs(60);
/// Limits, unless others are given.
const MIN_RATIO: f64 = 5.0;
const MIN_RATE: f64 = 5_000.0;
const MAX_CLAIM_RATIO: f64 = 1.5;
const MAX_STATS: Duration = Duration::from_millis(50);

/// Figures of the queue at a depth.
#[derive(Debug, Serialize)]
struct StatsFound {
    depth: u64,
    /// `Ledger::queue_stats`, which the interface answers with.
    stats_ms: Percentiles,
    /// `Ledger::refresh_queue_stats`, once: what the leader does beside it.
    refresh_ms: f64,
}

/// Rows per second of the filling.
#[derive(Debug, Default, Serialize)]
struct Filled {
    rows: u64,
    elapsed_s: f64,
}

/// Everything that was found.
#[derive(Debug, Default)]
struct Found {
    ledger: Vec<LedgerFound>,
    looked: Vec<Looked>,
    stats: Vec<StatsFound>,
    engines: Vec<EnginesFound>,
    plain: Vec<PlainFound>,
    compared: Vec<Compared>,
    filled: Filled,
}

/// Runs it.
pub(super) async fn run(args: QueueBench) -> Result<Report> {
    let plan = Plan::new(&args);
    let start = clock::now();
    let history = ("minSnapshotHistoryWindowInSeconds".to_owned(), args.history.to_string());
    let rig = Rig::start_with(&args.servers, vec![history]).await?;
    let line = Line::new(1);
    let mut found = Found::default();
    let mut queue = queue(&rig, &line, &plan, args.seed).await?;
    let mut plain = Plain::new(&rig.client, plan.others, args.seed).await?;
    for &depth in &plan.depths {
        Box::pin(at_depth(&rig, &line, &plan, depth, &mut queue, &mut plain, &mut found)).await?;
    }
    if let Some((shallow, deep)) = plan.compared {
        say(&format!("claims at {deep} and at {shallow}, in turn"));
        let mut small = self::queue(&rig, &Line::new(2), &plan, args.seed).await?;
        let mut large = self::queue(&rig, &Line::new(3), &plan, args.seed).await?;
        for (queue, worn) in [(&mut large, false), (&mut queue, true)] {
            for claims in [Claims::Few, Claims::Many] {
                let compared = lane::compare((&mut small, shallow), (&mut *queue, deep), claims, plan.claims_compared).await?;
                found.compared.push(Compared { worn, ..compared });
            }
        }
    }
    check(&queue).await?;
    Ok(report(&args, &plan, &rig, &found, start.elapsed()))
}

/// A queue with nothing ready.
async fn queue(rig: &Rig, line: &Line, plan: &Plan, seed: u64) -> Result<Queue> {
    say(&format!("{} dead jobs and {} scheduled ones", plan.others, plan.others));
    let ledger = MongoLedger::over(rig.client.clone(), &line.metadata_db, CALL_LIMIT)?;
    let mut queue = Queue::new(rig.client.database(&line.metadata_db), ledger, seed).await?;
    queue.fill_others(plan.others).await?;
    Ok(queue)
}

async fn at_depth(rig: &Rig, line: &Line, plan: &Plan, depth: u64, queue: &mut Queue, plain: &mut Plain, found: &mut Found) -> Result<()> {
    say(&format!("depth {depth}: the ledger"));
    let start = clock::now();
    found.filled.rows += queue.fill(depth).await?;
    found.filled.elapsed_s += start.elapsed().as_secs_f64();
    let refreshing = clock::now();
    queue.ledger.refresh_queue_stats().await?;
    let refresh_ms = refreshing.elapsed().as_secs_f64() * 1_000.0;
    found.stats.push(StatsFound { depth, stats_ms: lane::stats(&queue.ledger, plan.stats_calls).await?, refresh_ms });
    for cell in plan.ledger(depth) {
        found.ledger.push(lane::measure(rig, queue, cell, plan.cell).await?);
    }
    if plan.compared.is_none_or(|(shallow, deep)| depth == shallow || depth == deep) && depth > 0 {
        for claims in [Claims::Few, Claims::Many] {
            found.looked.push(lane::look(queue, depth, claims).await?);
        }
    }
    for cell in plan.engines(depth) {
        for round in 1..=cell.rounds {
            let EngineCell { workers, processes, .. } = cell;
            say(&format!("depth {depth}: engines, {workers} workers, {processes} processes, round {round} of {}", cell.rounds));
            found.engines.push(Box::pin(engines::measure(rig, line, queue, cell, plan.jobs)).await?);
            if cell.with_plain {
                say(&format!("depth {depth}: the plain queue, {WORKERS} workers"));
                found.plain.push(plain.measure(depth + plan.jobs, WORKERS, true, plan.cell * 2).await?);
                found.plain.push(plain.measure(depth + plan.jobs, WORKERS, false, plan.cell * 2).await?);
            }
        }
    }
    Ok(())
}

/// No job was done twice, or counted and not done.
async fn check(queue: &Queue) -> Result<()> {
    let counted: u64 = queue.ledger.queue_stats().await?.counters.done.values().sum();
    let done = queue.count("done", "finished").await?;
    if counted == done {
        return Ok(());
    }
    Err(Fault::corrupt(format!("{done} jobs are done, {counted} were counted")))
}

/// The headline: one engine with 8 workers at the usual depth, beside the plain queue with as many.
struct Headline {
    jobs_per_s: f64,
    plain_per_s: f64,
    plain_unsafe_per_s: f64,
    /// Round by round.
    ratio: f64,
    ratio_unsafe: f64,
}

impl Headline {
    fn of(found: &Found, plan: &Plan) -> Self {
        let here = |cell: &EngineCell| cell.with_plain && cell.depth == plan.usual;
        let engines: Vec<f64> = found.engines.iter().filter(|f| here(&f.cell)).map(|f| f.jobs_per_s).collect();
        let plain = |majority: bool| -> Vec<f64> {
            let these = found.plain.iter().filter(|f| f.majority == majority && f.depth == plan.usual + plan.jobs);
            these.map(|f| f.jobs_per_s).collect()
        };
        let ratios = |plain: &[f64]| median(engines.iter().zip(plain).map(|(engine, plain)| ratio(*engine, *plain)));
        let (safe, not_safe) = (plain(true), plain(false));
        Self {
            ratio: ratios(&safe),
            ratio_unsafe: ratios(&not_safe),
            jobs_per_s: median(engines),
            plain_per_s: median(safe),
            plain_unsafe_per_s: median(not_safe),
        }
    }
}

fn report(args: &QueueBench, plan: &Plan, rig: &Rig, found: &Found, elapsed: Duration) -> Report {
    let options = json!({
        "depths": plan.depths, "dead": plan.others, "scheduled": plan.others, "jobs": plan.jobs, "cell_s": plan.cell.as_secs_f64(),
        "history_s": args.history, "full": args.full, "quick": args.quick, "servers": rig.describe(),
    });
    let mut report = Report::new("bench queue", options, args.seed);
    let headline = Headline::of(found, plan);
    report.set("jobs_per_s", headline.jobs_per_s);
    report.set("ratio_to_baseline", headline.ratio);
    report.set("ratio_to_baseline_without_majority", headline.ratio_unsafe);
    report.set("baseline_per_s", headline.plain_per_s);
    report.set("baseline_without_majority_per_s", headline.plain_unsafe_per_s);
    report.set("claim_ratio", worst_claim_ratio(found));
    report.set("filled_rows_per_s", ratio(real(found.filled.rows), found.filled.elapsed_s));
    report.set("filled_by", "insert_many of rows as the ledger has written them");
    report.set("elapsed_s", elapsed.as_secs_f64());
    report.set("ledger", &found.ledger);
    report.set("claim_statements", &found.looked);
    report.set("stats", &found.stats);
    report.set("engines", &found.engines);
    report.set("baseline", &found.plain);
    report.set("compared", &found.compared);
    table::write(&mut report, found, &headline, plan);
    report.line("took", format!("{:.0} s", elapsed.as_secs_f64()));
    limits(args, plan, found, &headline, &mut report);
    report
}

fn worst_claim_ratio(found: &Found) -> Option<f64> {
    found.compared.iter().filter(|c| !c.worn).map(|c| c.ratio).max_by(f64::total_cmp)
}

fn limits(args: &QueueBench, plan: &Plan, found: &Found, headline: &Headline, report: &mut Report) {
    let usual = |limit: f64| (!args.quick).then_some(limit);
    if let Some(wanted) = args.min_ratio.or(usual(MIN_RATIO)) {
        let says = format!("{:.1} times the plain queue with {WORKERS} workers, at least {wanted} times wanted", headline.ratio);
        report.limit(headline.ratio >= wanted, says);
    }
    if let Some(wanted) = args.min_rate.or(usual(MIN_RATE)) {
        let says = format!("{:.0} jobs/s with {WORKERS} workers, at least {wanted:.0} wanted", headline.jobs_per_s);
        report.limit(headline.jobs_per_s >= wanted, says);
    }
    if let (Some(wanted), Some((shallow, deep)), Some(ratio)) =
        (args.max_claim_ratio.or(usual(MAX_CLAIM_RATIO)), plan.compared, worst_claim_ratio(found))
    {
        let says = format!("a claim at {deep} costs {ratio:.2} times what it costs at {shallow}, at most {wanted} times wanted");
        report.limit(ratio <= wanted, says);
    }
    if let Some(wanted) = args.max_stats.or((!args.quick).then_some(MAX_STATS)) {
        let wanted = wanted.as_secs_f64() * 1_000.0;
        if let Some(deepest) = found.stats.iter().max_by_key(|found| found.depth) {
            let (depth, p99) = (deepest.depth, deepest.stats_ms.p99);
            report.limit(p99 <= wanted, format!("p99 of the queue's figures {p99:.1} ms at {depth}, at most {wanted:.0} ms wanted"));
        }
        if let Some(deepest) = found.engines.iter().max_by_key(|found| found.cell.depth) {
            let (depth, p50) = (deepest.cell.depth, deepest.endpoint_ms.p50);
            let says = format!(
                "median of GET /workers/queue {p50:.1} ms at {depth} beside an engine at full speed, at most {wanted:.0} ms wanted"
            );
            report.limit(p50 <= wanted, says);
        }
    }
}
