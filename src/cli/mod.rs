//! The command line: one file per command.
//!
//! Owns: arguments, what is printed, exit codes. Does not own: what the commands do (the rest of the library).

mod branch;
mod capture;
mod context;
mod demo;
mod doctor;
mod drill;
mod engine;
mod generate;
mod health;
mod jobs;
mod jobs_many;
mod look;
mod output;
mod queue;
mod rebuild;
mod restore;
mod run;
mod status;
mod usage;
mod verify;
mod workers;

use std::ffi::OsString;
use std::io::Write;
use std::process::ExitCode;

use clap::{Parser, Subcommand};

use crate::config::{self, Connection, Logging};
use crate::fault::{Fault, Kind};
use crate::telemetry;

pub(crate) use context::Context;
pub(crate) use output::Output;

/// How a command ended. The numbers are part of the interface (design: exit codes).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Exit {
    /// Done; for `run`: drained.
    Done,
    /// Failed.
    Failed,
    /// Bad configuration or arguments.
    BadConfig,
    /// The stop's deadline passed before everything was drained.
    DeadlinePassed,
    /// Verification found a difference.
    Different,
}

impl Exit {
    fn code(self) -> u8 {
        match self {
            Self::Done => 0,
            Self::Failed => 1,
            Self::BadConfig => 2,
            Self::DeadlinePassed => 3,
            Self::Different => 4,
        }
    }
}

/// Continuous, compressed, restorable history of MongoDB in an object store.
#[derive(Debug, Parser)]
#[command(
    name = "argon",
    version,
    max_term_width = 110,
    after_help = "See it work, with nothing to install first:\n  argon demo\n\nExit codes: 0 done, 1 failed, 2 bad configuration or arguments, 3 the stop's deadline passed, 4 verification found a difference."
)]
pub struct Cli {
    #[command(flatten)]
    connection: Connection,
    #[command(flatten)]
    logging: Logging,
    /// Print JSON: the object that the REST API returns.
    #[arg(long, global = true)]
    json: bool,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Captures a live load, restores it, compares: needs no server and no account.
    Demo(demo::Args),
    /// The engine: captures, workers, API, until SIGTERM.
    Run(Box<run::Args>),
    /// Checks MongoDB, rights, oplog window, store and clock, and says what to fix.
    Doctor(doctor::Args),
    /// Start, stop, pause, resume and list captures.
    #[command(subcommand)]
    Capture(capture::Command),
    /// Make, list, show, rename, archive, delete and check out branches.
    #[command(subcommand)]
    Branch(branch::Command),
    /// Proves that a branch's history is whole, or names what is not.
    Verify(verify::Args),
    /// Writes a branch's database as it was at a point.
    Restore(restore::Args),
    /// Makes the metadata anew from the bucket alone.
    Rebuild(rebuild::Args),
    /// Proves that a branch can be restored, by doing it.
    Drill(drill::Args),
    /// Shows the changes of a document, a collection or a stretch of time.
    Log(look::LogArgs),
    /// Shows one document as it was, without a restore.
    Get(look::GetArgs),
    /// Shows what differs between two points, of one branch or of two.
    Diff(look::DiffArgs),
    /// Writes the database as it was into files.
    Export(look::ExportArgs),
    /// One screen: captures, queue, workers, branches, and what is wrong.
    Status(status::Args),
    /// List, show, retry, cancel, discard and submit jobs.
    #[command(subcommand)]
    Jobs(jobs::Command),
    /// Pause and resume the queue, a kind of job or a branch.
    #[command(subcommand)]
    Queue(queue::Command),
    /// Whether an engine is well; asks an engine. For health checks, too.
    Health(health::Args),
    /// Shows the workers of all engines; asks an engine.
    Workers(workers::Args),
    /// Pins the number of sync workers of an engine, or of all; asks an engine.
    Scale(workers::ScaleArgs),
    /// Writes man pages and shell completions.
    Generate(generate::Args),
}

impl Command {
    /// Whether it holds parts of history in memory.
    fn folds(&self) -> bool {
        matches!(
            self,
            Self::Restore(_) | Self::Verify(_) | Self::Drill(_) | Self::Diff(_) | Self::Export(_) | Self::Branch(_) | Self::Demo(_)
        )
    }
}

/// Runs the command line of this process.
pub fn main() -> ExitCode {
    let cli = match Cli::try_parse_from(std::env::args_os()) {
        Ok(cli) => cli,
        Err(error) => {
            let json = std::env::args_os().any(|arg| arg == "--json");
            return ExitCode::from(usage::explain(&error, json).code());
        }
    };
    let json = cli.json;
    let engine = matches!(cli.command, Command::Run(_));
    if engine {
        crate::runtime::memory::begin_with_fixed_sizes();
    } else if cli.command.folds() {
        crate::runtime::memory::begin_with_small_sizes();
    }
    let failed = |fault| ExitCode::from(report(&fault, json).code());
    let runtime = match tokio::runtime::Builder::new_multi_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(e) => return failed(Fault::transient(format!("cannot start threads: {e}"))),
    };
    let traces = {
        let _tasks = runtime.enter(); // traces are sent by a task
        match telemetry::init(engine, &cli.logging) {
            Ok(traces) => traces,
            Err(fault) => return failed(fault),
        }
    };
    for (given, meant) in config::near_misses(std::env::vars_os().filter_map(|(k, _): (OsString, _)| k.into_string().ok())) {
        complain(&format!("warning: {given} is not a setting of Argon; did you mean {meant}?"));
    }
    let exit = match runtime.block_on(dispatch(cli)) {
        Ok(exit) => exit,
        Err(fault) => report(&fault, json),
    };
    drop(traces);
    // SUBTLE: left as it is, not shut down. Abandoned blocking work (a hung disk) must not keep the process, and the driver's own tasks
    // panic now and then when a runtime is taken apart under them, which prints a second, wrong error.
    std::mem::forget(runtime);
    ExitCode::from(exit.code())
}

async fn dispatch(cli: Cli) -> Result<Exit, Fault> {
    let output = Output::new(cli.json);
    let context = Context::new(cli.connection);
    // Boxed: the futures of commands are large and only one of them runs.
    match cli.command {
        Command::Demo(args) => Box::pin(demo::run(args, context, output)).await,
        Command::Run(args) => Box::pin(run::run(*args, context)).await,
        Command::Doctor(args) => Box::pin(doctor::run(args, context, output)).await,
        Command::Capture(command) => Box::pin(capture::run(command, context, output)).await,
        Command::Branch(command) => Box::pin(branch::run(command, context, output)).await,
        Command::Verify(args) => Box::pin(verify::run(args, context, output)).await,
        Command::Restore(args) => Box::pin(restore::run(args, context, output)).await,
        Command::Rebuild(args) => Box::pin(rebuild::run(args, context, output)).await,
        Command::Drill(args) => Box::pin(drill::run(args, context, output)).await,
        Command::Log(args) => Box::pin(look::log(args, context, output)).await,
        Command::Get(args) => Box::pin(look::get(args, context, output)).await,
        Command::Diff(args) => Box::pin(look::diff(args, context, output)).await,
        Command::Export(args) => Box::pin(look::export(args, context, output)).await,
        Command::Status(args) => Box::pin(status::run(args, context, output)).await,
        Command::Jobs(command) => Box::pin(jobs::run(command, context, output)).await,
        Command::Queue(command) => Box::pin(queue::run(command, context, output)).await,
        Command::Health(args) => Box::pin(health::run(args, output)).await,
        Command::Generate(args) => generate::run(&args),
        Command::Workers(args) => Box::pin(workers::run(args, output)).await,
        Command::Scale(args) => Box::pin(workers::scale(args, output)).await,
    }
}

/// A line on stderr. A closed pipe is not an error (`eprintln!` would panic).
fn complain(line: &str) {
    let _ = writeln!(std::io::stderr(), "{line}");
}

/// A line for a person and one with what to type next, or an object for a program.
fn report(fault: &Fault, json: bool) -> Exit {
    if json {
        let code = format!("{:?}", fault.kind).to_lowercase();
        complain(&serde_json::json!({ "error": { "code": code, "message": fault.what, "next": fault.next } }).to_string());
    } else {
        complain(&format!("error: {}", fault.what));
        if let Some(command) = &fault.next {
            complain(&format!("next:  {command}"));
        }
    }
    if fault.kind == Kind::Config { Exit::BadConfig } else { Exit::Failed }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    #[test]
    fn the_help_of_run_is_the_table_of_settings() {
        let mut command = super::Cli::command();
        command.build();
        let help = command.find_subcommand_mut("run").unwrap().render_long_help().to_string();
        let missing: Vec<_> = crate::config::VARIABLES.iter().filter(|variable| !help.contains(**variable)).collect();
        assert!(missing.is_empty(), "{missing:?} in {help}");
    }

    #[test]
    fn the_command_line_is_consistent_and_every_command_shows_an_example() {
        let mut command = super::Cli::command();
        command.clone().debug_assert();
        command.build();
        fn check(command: &clap::Command, path: &str) {
            if command.get_name() == "help" {
                return;
            }
            let path = format!("{path} {}", command.get_name());
            if command.get_subcommands().next().is_none() {
                let after = command.get_after_help().map(ToString::to_string).unwrap_or_default();
                assert!(after.contains("argon "), "{path} has no example in --help");
            }
            command.get_subcommands().for_each(|sub| check(sub, &path));
        }
        command.get_subcommands().for_each(|sub| check(sub, "argon"));
    }
}
