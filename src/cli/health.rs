//! `argon health`: whether an engine is well, for people and for health checks of containers.

use crate::fault::Result;
use crate::http::{Condition, Health};

use super::engine::EngineArgs;
use super::output::table;
use super::{Exit, Output};

#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  argon health
  argon health --json
  argon health --api https://argon.example:8080

Exit codes: 0 ok or degraded (it heals by itself, or somebody has to look), 1 unhealthy or no answer: the process should be started anew.")]
pub(crate) struct Args {
    #[command(flatten)]
    engine: EngineArgs,
}

pub(crate) async fn run(args: Args, output: Output) -> Result<Exit> {
    let health = args.engine.client()?.health().await?;
    output.print(&health, || text(&health))?;
    Ok(if health.status == Condition::Unhealthy { Exit::Failed } else { Exit::Done })
}

fn text(health: &Health) -> String {
    let row = |(name, check): (&str, &crate::http::Check)| {
        vec![name.to_owned(), word(check.status).to_owned(), check.reason.clone().unwrap_or_default()]
    };
    let rows: Vec<Vec<String>> = health.checks.all().into_iter().map(row).collect();
    format!(
        "{} (version {}, up {} s)\n{}",
        word(health.status),
        health.version,
        health.uptime_seconds,
        table(&["CHECK", "STATUS", "REASON"], &rows)
    )
}

fn word(condition: Condition) -> &'static str {
    match condition {
        Condition::Ok => "ok",
        Condition::Degraded => "degraded",
        Condition::Unhealthy => "unhealthy",
    }
}
