//! `argon workers` and `argon scale`: ask an engine, over its control socket or its API.

use std::time::Duration;

use crate::fault::Result;
use crate::http::{ScaleAnswer, ScaleRequest, WorkersStats};

use super::engine::EngineArgs;
use super::output::table;
use super::{Exit, Output};

#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  argon workers
  argon workers --api https://argon.example:8080 --token-file ~/.argon-token --json

Shows every engine of the metadata, as the one that answers knows them: itself as it is now, the others by their last heartbeat.")]
pub(crate) struct Args {
    #[command(flatten)]
    engine: EngineArgs,
}

#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  argon scale 8
  argon scale 12 --for 30m
  argon scale 4 --all
  argon scale --release

A pinned number stays until it is released or its time has passed; then load decides again.")]
pub(crate) struct ScaleArgs {
    /// Sync workers, 1 to 20.
    #[arg(required_unless_present = "release", conflicts_with = "release", value_name = "1..20", value_parser = clap::value_parser!(i64).range(1..=20))]
    workers: Option<i64>,
    /// The pin ends by itself after this time, in whole minutes.
    #[arg(long = "for", value_name = "TIME", requires = "workers", value_parser = minutes)]
    hold: Option<u64>,
    /// Every engine, those that start later too.
    #[arg(long)]
    all: bool,
    /// Ends the pin: load decides again.
    #[arg(long, conflicts_with = "hold")]
    release: bool,
    #[command(flatten)]
    engine: EngineArgs,
}

fn minutes(text: &str) -> Result<u64, String> {
    let time =
        humantime::parse_duration(text.trim()).map_err(|_| "not a time: write a number with a unit, such as 30m or 2h".to_owned())?;
    let month = Duration::from_secs(31 * 24 * 3_600);
    if time < Duration::from_secs(60) || time > month || time.subsec_nanos() != 0 || time.as_secs() % 60 != 0 {
        return Err("allowed are whole minutes from 1m to 31days".into());
    }
    Ok(time.as_secs() / 60)
}

pub(crate) async fn run(args: Args, output: Output) -> Result<Exit> {
    let stats: WorkersStats = args.engine.client()?.get("/api/v1/workers/stats").await?;
    output.print(&stats, || text(&stats))?;
    Ok(Exit::Done)
}

pub(crate) async fn scale(args: ScaleArgs, output: Output) -> Result<Exit> {
    let request = ScaleRequest { target_workers: args.workers, minutes: args.hold, release: args.release };
    let path = if args.all { "/api/v1/workers/scale?scope=all" } else { "/api/v1/workers/scale" };
    let answer: ScaleAnswer = args.engine.client()?.post(path, &request).await?;
    output.print(&answer, || {
        let whose = if args.all { "all engines".to_owned() } else { format!("engine {}", answer.engine) };
        match &answer.pin {
            Some(pin) => {
                let until = pin.until.as_ref().map_or_else(|| "until argon scale --release".to_owned(), |at| format!("until {at}"));
                format!("{whose}: {} workers {until} ({} now)", answer.target_workers, answer.current_workers)
            }
            None => format!("{whose}: released, {} workers now", answer.current_workers),
        }
    })?;
    Ok(Exit::Done)
}

fn text(stats: &WorkersStats) -> String {
    let mut engines = Vec::new();
    for e in &stats.engines {
        let state = state_of(e.alive, e.draining);
        let pin = e.pool.pin.as_ref().map_or_else(
            || "-".to_owned(),
            |pin| format!("{}{}", pin.target, pin.until.as_ref().map_or_else(String::new, |at| format!(" until {at}"))),
        );
        let name = if e.this { format!("{} *", short(&e.engine)) } else { short(&e.engine) };
        let busy = stats.workers.iter().filter(|w| w.engine == e.engine && w.busy).count();
        let pool = format!("{}/{}", e.pool.current, e.pool.target);
        engines.push(vec![name, format!("{}:{}", e.host, e.pid), state.to_owned(), pool, busy.to_string(), e.captures.to_string(), pin]);
    }
    let row = |w: &crate::http::Worker| {
        vec![
            w.worker_id.clone(),
            short(&w.engine),
            match (w.is_active, w.busy) {
                (false, _) => "silent",
                (true, true) => "busy",
                (true, false) => "idle",
            }
            .to_owned(),
            w.jobs_processed.to_string(),
            w.jobs_failed.to_string(),
            format!("{:.1}", w.avg_process_time),
            format!("{:.1}", w.p99_process_time),
        ]
    };
    let workers: Vec<_> = stats.workers.iter().chain(&stats.slots).map(row).collect();
    let s = &stats.summary;
    let mut text = table(&["ENGINE", "PROCESS", "STATE", "WORKERS", "BUSY", "CAPTURES", "PINNED AT"], &engines);
    text += "\n\n";
    text += &table(&["WORKER", "ENGINE", "STATE", "JOBS", "FAILED", "AVG MS", "P99 MS"], &workers);
    text += &format!(
        "\n\n{} of {} workers busy, {} jobs, {:.2} % succeeded",
        s.busy_workers, s.total_workers, s.total_processed, s.success_rate
    );
    if stats.partial {
        text += "\nMongoDB did not say in time what the other engines do";
    }
    text
}

/// What an engine does, in a word.
pub(super) fn state_of(alive: bool, draining: bool) -> &'static str {
    match (alive, draining) {
        (false, _) => "silent",
        (true, true) => "draining",
        (true, false) => "running",
    }
}

/// What tells an engine's id from others': its last two parts. The first ones are host and process.
pub(super) fn short(engine: &str) -> String {
    engine.rmatch_indices('-').nth(1).map_or(engine, |(at, _)| &engine[at + 1..]).to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pins_hold_for_whole_minutes() {
        for (text, wanted) in [("30m", Some(30)), ("2h", Some(120)), ("60s", Some(1)), ("90s", None), ("10", None), ("40days", None)] {
            assert_eq!(minutes(text).ok(), wanted, "{text}");
        }
    }

    #[test]
    fn engines_are_told_apart_by_the_end_of_their_id() {
        assert_eq!(short("a-host-4711-0a1b2c3d-7677"), "0a1b2c3d-7677");
        assert_eq!(short("e1"), "e1");
    }
}
