//! `bench repeated`: a few hundred documents that get the same updates over and over, through the whole engine.
//!
//! Owns: the share of the raw bytes that is stored. `raw` are the server's event bytes without token and envelope, `stored` the bytes of
//! the segment objects, both from the totals of the branch. The share depends on how many changes a segment holds: here they are as
//! large as they get; with `--live` they are what the rate makes them, and their own head and first documents weigh more.

use argon::devkit::workload::{self, Profile};
use argon::fault::{Fault, Result};
use argon::runtime::shutdown::Shutdown;
use serde_json::json;

use super::rig::{Line, Rig};
use super::session::Session;
use super::{ratio, real, say};
use crate::args::{Pace, Repeated};
use crate::load;
use crate::report::Report;

/// Percent of the raw bytes.
const DEFAULT_LIMIT: f64 = 5.0;

/// Runs it.
pub(super) async fn run(args: Repeated) -> Result<Report> {
    let profile = Profile { doc_bytes: usize::try_from(args.doc_bytes).unwrap_or(usize::MAX), ..Profile::repeated() };
    let tick = std::time::Duration::from_millis(5);
    let pace = Pace { rate: args.rate, duration: None, count: Some(args.count), connections: args.connections, batch: 500, tick };
    let rig = Rig::start(&args.servers).await?;
    workload::prepare(&rig.source(), &profile).await?;
    let line = Line::new(1);
    rig.start_capture(&line).await?;
    let mut live = None;
    if args.live {
        let mut session = Session::start(&rig, &line)?;
        session.wait_owned().await?;
        live = Some(session);
    }
    say(&format!("{} operations", args.count));
    let load = load::load(&rig.source(), &profile, args.seed, &pace, false, &Shutdown::new()).await?;
    let mut session = match live {
        Some(session) => session,
        None => Session::start(&rig, &line)?,
    };
    session.wait_head(load.changes).await?;
    let used = session.used()?;
    let totals = session.watch.branch().await?.totals;
    if totals.changes != load.changes {
        return Err(Fault::corrupt(format!("{} changes were written, the branch has {}", load.changes, totals.changes)));
    }
    session.finish().await?;

    let options = json!({ "count": args.count, "connections": args.connections, "live": args.live, "rate": load.target_rate, "doc_bytes": args.doc_bytes, "keys": profile.keys, "servers": rig.describe() });
    let mut report = Report::new("bench repeated", options, args.seed);
    let percent = ratio(real(totals.stored_bytes), real(totals.raw_bytes)) * 100.0;
    load::lines(&load, &mut report);
    report.line("raw", format!("{} B, {:.1} B per change", totals.raw_bytes, ratio(real(totals.raw_bytes), real(totals.changes))));
    report.line(
        "stored",
        format!(
            "{} B in {} segments, {:.2} B per change",
            totals.stored_bytes,
            totals.segments,
            ratio(real(totals.stored_bytes), real(totals.changes))
        ),
    );
    report.line("stored / raw", format!("{percent:.2} %"));
    report.set("stored_percent", percent);
    report.set("totals", totals);
    report.set("used", used);
    report.set("load", &load);
    if let Some(limit) = args.max_percent.or((!args.live).then_some(DEFAULT_LIMIT)) {
        report.limit(percent <= limit, format!("{percent:.2} % stored, at most {limit} % wanted"));
    }
    Ok(report)
}
