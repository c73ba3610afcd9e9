//! Owns: what of the figures a person sees, and in which units. Does not own the figures.

use super::super::{ratio, real};
use super::engines::EnginesFound;
use super::lane::{Compared, LedgerFound, Looked};
use super::plain::PlainFound;
use super::plan::{Claims, Plan, WORKERS};
use super::{Found, Headline, StatsFound};
use crate::report::Report;

/// A figure of a row: its head, where it is from.
type Column<T> = (&'static str, fn(&T) -> String);

const LEDGER: [Column<LedgerFound>; 16] = [
    ("ledger alone: depth", |f| f.cell.depth.to_string()),
    ("workers", |f| f.cell.workers.to_string()),
    ("claimers", |f| f.cell.claimers.to_string()),
    ("asked", |f| f.asked.to_string()),
    ("got", |f| fixed(f.jobs_per_claim, 1)),
    ("jobs/s", |f| fixed(f.jobs_per_s, 0)),
    ("claim p50 ms", |f| fixed(f.claim_ms.p50, 2)),
    ("p99 ms", |f| fixed(f.claim_ms.p99, 2)),
    ("us/job", |f| fixed(ratio(f.claim_ms.mean * 1e3, f.jobs_per_claim), 0)),
    ("mark p50 ms", |f| if f.start_ms.count > 0 { fixed(f.start_ms.p50, 2) } else { "-".to_owned() }),
    ("end p50 ms", |f| fixed(f.finish_ms.p50, 2)),
    ("p99 ms", |f| fixed(f.finish_ms.p99, 2)),
    ("empty", |f| f.empty_claims.to_string()),
    ("conflicts/1000", |f| fixed(f.server.write_conflicts_per_1000_jobs, 1)),
    ("keys/job", |f| fixed(f.server.keys_examined_per_job, 2)),
    ("docs/job", |f| fixed(f.server.docs_examined_per_job, 2)),
];

const ENGINES: [Column<EnginesFound>; 15] = [
    ("engines: depth", |f| f.cell.depth.to_string()),
    ("workers", |f| f.cell.workers.to_string()),
    ("processes", |f| f.cell.processes.to_string()),
    ("jobs", |f| f.jobs.to_string()),
    ("jobs/s", |f| fixed(f.jobs_per_s, 0)),
    ("engine us/job", |f| fixed(f.engine_cpu_us_per_job, 0)),
    ("mongod us/job", |f| fixed(f.mongod_cpu_us_per_job, 0)),
    ("peak MiB", |f| fixed(real(f.peak_rss_bytes) / 1_048_576.0, 0)),
    ("conflicts/1000", |f| fixed(f.server.write_conflicts_per_1000_jobs, 1)),
    ("aborts/1000", |f| fixed(f.server.aborted_transactions_per_1000_jobs, 1)),
    ("keys/job", |f| fixed(f.server.keys_examined_per_job, 2)),
    ("docs/job", |f| fixed(f.server.docs_examined_per_job, 2)),
    ("endpoint p50 ms", |f| fixed(f.endpoint_ms.p50, 1)),
    ("max ms", |f| fixed(f.endpoint_ms.max, 1)),
    ("others' cores", |f| fixed(f.others_cores, 2)),
];

const PLAIN: [Column<PlainFound>; 10] = [
    ("plain queue: depth", |f| f.depth.to_string()),
    ("workers", |f| f.workers.to_string()),
    ("writes", |f| if f.majority { "majority".to_owned() } else { "w:1".to_owned() }),
    ("jobs/s", |f| fixed(f.jobs_per_s, 0)),
    ("claim p50 ms", |f| fixed(f.claim_ms.p50, 2)),
    ("p99 ms", |f| fixed(f.claim_ms.p99, 2)),
    ("end p50 ms", |f| fixed(f.finish_ms.p50, 2)),
    ("conflicts/1000", |f| fixed(f.server.write_conflicts_per_1000_jobs, 1)),
    ("keys/job", |f| fixed(f.server.keys_examined_per_job, 2)),
    ("docs/job", |f| fixed(f.server.docs_examined_per_job, 2)),
];

const STATS: [Column<StatsFound>; 5] = [
    ("queue's figures: depth", |f| f.depth.to_string()),
    ("p50 ms", |f| fixed(f.stats_ms.p50, 1)),
    ("p99 ms", |f| fixed(f.stats_ms.p99, 1)),
    ("max ms", |f| fixed(f.stats_ms.max, 1)),
    ("refresh ms", |f| fixed(f.refresh_ms, 0)),
];

const COMPARED: [Column<Compared>; 9] = [
    ("claims in turn: depth", |f| f.deep.to_string()),
    ("claims", |f| name(f.claims)),
    ("queue", |f| if f.worn { "worn".to_owned() } else { "new".to_owned() }),
    ("p50 ms", |f| fixed(f.deep_claim_ms.p50, 2)),
    ("p99 ms", |f| fixed(f.deep_claim_ms.p99, 2)),
    ("p50 ms at", |f| fixed(f.shallow_claim_ms.p50, 2)),
    ("depth", |f| f.shallow.to_string()),
    ("ratio", |f| fixed(f.ratio, 2)),
    ("of means", |f| fixed(f.ratio_of_means, 2)),
];

pub(super) fn write(report: &mut Report, found: &Found, headline: &Headline, plan: &Plan) {
    report.table(table(&LEDGER, &found.ledger));
    report.table(table(&COMPARED, &found.compared));
    report.table(statements(&found.looked));
    report.table(table(&STATS, &found.stats));
    report.table(table(&ENGINES, &found.engines));
    report.table(table(&PLAIN, &found.plain));
    let Headline { jobs_per_s, plain_per_s, plain_unsafe_per_s, ratio: times, ratio_unsafe } = headline;
    report.line("engine", format!("{jobs_per_s:.0} jobs/s, one process, {WORKERS} workers, depth {}", plan.usual));
    report.line("plain queue", format!("{plain_per_s:.0} jobs/s, {WORKERS} workers ({plain_unsafe_per_s:.0} without majority)"));
    report.line("ratio to plain", format!("{times:.2} ({ratio_unsafe:.2} to that without majority)"));
    for explained in found.looked.iter().filter_map(|looked| Some((looked, looked.explained.as_ref()?))) {
        let (Looked { depth, claims, .. }, told) = explained;
        report.line(
            "search of a claim",
            format!(
                "depth {depth}, {}: {} keys and {} documents examined for {} jobs, {}",
                name(*claims),
                told.keys_examined,
                told.docs_examined,
                told.returned,
                told.stages.join(" < ")
            ),
        );
    }
    for found in found.engines.iter().filter_map(|f| Some((f, f.delay_ms?))) {
        let (engines, delay) = found;
        report.line(
            "made and done",
            format!(
                "{:.0} jobs/s made, {:.0} done; from creation to end p50 {:.0} ms, p99 {:.0} ms",
                engines.enqueued_per_s.unwrap_or_default(),
                engines.jobs_per_s,
                delay.p50,
                delay.p99
            ),
        );
    }
    let per_s = ratio(real(found.filled.rows), found.filled.elapsed_s);
    report.line("filled", format!("{} rows by insert_many of rows as the ledger writes them, {per_s:.0} rows/s", found.filled.rows));
}

fn table<T>(columns: &[Column<T>], found: &[T]) -> Vec<Vec<String>> {
    let head = columns.iter().map(|(head, _)| (*head).to_owned()).collect();
    let rows = found.iter().map(|one| columns.iter().map(|(_, figure)| figure(one)).collect());
    std::iter::once(head).chain(rows).collect()
}

fn statements(looked: &[Looked]) -> Vec<Vec<String>> {
    let head = ["statement of a claim", "depth", "claims", "keys", "docs", "found", "keys written", "ms", "plan"];
    let row = |one: &Looked, s: &super::server::Statement| {
        let numbers = [s.keys_examined, s.docs_examined, s.found, s.keys_written, s.ms].map(|n| n.to_string());
        [s.statement.clone(), one.depth.to_string(), name(one.claims)].into_iter().chain(numbers).chain([s.plan.clone()]).collect()
    };
    let rows = looked.iter().flat_map(|one| one.statements.iter().map(move |statement| row(one, statement)));
    std::iter::once(head.map(str::to_owned).to_vec()).chain(rows).collect()
}

fn name(claims: Claims) -> String {
    match claims {
        Claims::Few => "few".to_owned(),
        Claims::Many => "many".to_owned(),
    }
}

fn fixed(n: f64, digits: usize) -> String {
    format!("{n:.digits$}")
}
