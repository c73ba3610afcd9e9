//! `bench idle`: an engine that leads, has one capture and nothing to do, and is scraped: what it costs itself and its MongoDB.
//!
//! Owns: requests a second by name, CPU and memory. Does not own: why it asks (`argon::runtime::calm`).
//!
//! All commands that mongod has counted since the engine became idle, the driver's monitoring included, less what the same mongod counted as long
//! before the engine began: its own work and this program's.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use argon::fault::{Fault, Result};
use argon::runtime::clock;
use bson::{Bson, Document, doc};
use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;

use super::rig::{Line, Rig, SOURCE_DB};
use super::session::Session;
use super::{real, say};
use crate::args::Idle;
use crate::report::Report;

/// An engine counts as idle after ten seconds (`argon::runtime::calm`); a few more, for what has begun before.
const SETTLE: Duration = Duration::from_secs(20);
const MIB: f64 = 1_048_576.0;

/// Runs it.
pub(super) async fn run(args: Idle) -> Result<Report> {
    let rig = Rig::start(&args.servers).await?;
    let written = rig.source().collection("idle").insert_one(doc! { "_id": 1 }).await;
    written.map_err(|e| Fault::unknown(format!("insert: {e}")))?;
    say(&format!("{:?} without an engine", args.duration));
    let baseline = counted(&rig, args.duration).await?;

    let line = Line::new(1);
    let mut session = Session::start(&rig, &line)?;
    rig.start_capture_with(&line, &["--wait"]).await?;
    session.wait_owned().await?;
    say(&format!("{SETTLE:?} to settle, then {:?}", args.duration));
    tokio::time::sleep(SETTLE).await;
    let before = session.used()?;
    let scraping = tokio::spawn(scrape(session.socket(), args.scrape));
    let with_engine = counted(&rig, args.duration).await?;
    scraping.abort();
    let (used, rss) = (session.used()?, session.rss()?);
    session.finish().await?;

    let seconds = args.duration.as_secs_f64();
    let mut rates: Vec<(String, f64)> = with_engine
        .into_iter()
        .map(|(name, n)| (real(n.saturating_sub(baseline.get(&name).copied().unwrap_or_default())) / seconds, name))
        .filter_map(|(rate, name)| (rate > 0.0).then_some((name, rate)))
        .collect();
    rates.sort_by(|a, b| b.1.total_cmp(&a.1));
    let requests: f64 = rates.iter().map(|(_, rate)| rate).sum();
    let cpu_percent = (used.engine_cpu_s - before.engine_cpu_s) / seconds * 100.0;
    let rss_mib = real(rss) / MIB;

    let options =
        json!({ "duration_s": seconds, "scrape_s": args.scrape.as_secs_f64(), "source_db": SOURCE_DB, "servers": rig.describe() });
    let mut report = Report::new("bench idle", options, 0);
    report.table(
        [vec!["command".into(), "a second".into()]]
            .into_iter()
            .chain(rates.iter().map(|(name, rate)| vec![name.clone(), format!("{rate:.2}")]))
            .collect(),
    );
    report.line("requests", format!("{requests:.2} a second"));
    report.line("CPU", format!("{cpu_percent:.2} % of a core"));
    report.line("memory", format!("{rss_mib:.1} MiB"));
    report.set("requests_per_s", requests);
    report.set("by_command", rates.into_iter().collect::<BTreeMap<_, _>>());
    report.set("cpu_percent", cpu_percent);
    report.set("rss_bytes", rss);
    if args.check {
        report.limit(requests < 5.0, format!("{requests:.2} requests a second, fewer than 5 wanted"));
        report.limit(cpu_percent < 1.0, format!("{cpu_percent:.2} % of a core, less than 1 wanted"));
        report.limit(rss_mib < 60.0, format!("{rss_mib:.1} MiB, less than 60 wanted"));
    }
    Ok(report)
}

/// As Prometheus does, over the control socket.
async fn scrape(socket: PathBuf, every: Duration) {
    let mut tick = tokio::time::interval(every);
    loop {
        tick.tick().await;
        let asked = async {
            let mut stream = UnixStream::connect(&socket).await?;
            stream.write_all(b"GET /metrics HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n").await?;
            let mut page = Vec::new();
            stream.read_to_end(&mut page).await?;
            std::io::Result::Ok(page.len())
        };
        match asked.await {
            Ok(bytes) if bytes > 10_000 => {}
            seen => say(&format!("the metrics were not served: {seen:?}")),
        }
    }
}

/// Commands that mongod answers in that time, by name.
async fn counted(rig: &Rig, time: Duration) -> Result<BTreeMap<String, u64>> {
    let (before, began) = (commands(rig).await?, clock::now());
    tokio::time::sleep(time.saturating_sub(began.elapsed())).await;
    let after = commands(rig).await?;
    Ok(after.into_iter().map(|(name, n)| (name.clone(), n - before.get(&name).copied().unwrap_or_default())).collect())
}

async fn commands(rig: &Rig) -> Result<BTreeMap<String, u64>> {
    let asked = rig.client.database("admin").run_command(doc! { "serverStatus": 1, "repl": 0, "wiredTiger": 0 }).await;
    let status = asked.map_err(|e| Fault::unknown(format!("serverStatus: {e}")))?;
    let commands = status.get_document("metrics").and_then(|metrics| metrics.get_document("commands"));
    let commands = commands.map_err(|_| Fault::unknown("serverStatus tells of no commands"))?;
    let total = |of: &Document| match of.get("total") {
        Some(Bson::Int64(n)) => u64::try_from(*n).ok(),
        Some(Bson::Int32(n)) => u64::try_from(*n).ok(),
        _ => None,
    };
    Ok(commands.iter().filter_map(|(name, of)| Some((name.clone(), total(of.as_document()?)?))).collect())
}
