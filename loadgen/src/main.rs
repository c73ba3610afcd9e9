//! The load generator and the benchmarks that need servers.
//!
//! Owns: parsing, running a command until it ends or the user stops it, and the exit code: 0 done, 1 failed or a limit not held,
//! 2 bad arguments, 4 a verification found a difference, 130 a benchmark that was interrupted (a load ends orderly and with 0).
//! Does not own what operations look like, servers or the engine: those are `argon::devkit`'s and the `argon` binary's.

mod args;
mod bench;
mod load;
#[cfg(test)]
mod readme_tests;
mod report;

use std::process::ExitCode;

use argon::fault::{Fault, Kind};
use argon::runtime::shutdown::Shutdown;
use clap::Parser;
use tokio::signal::unix::{SignalKind, signal};

use args::{Cli, Command};
use report::Report;

fn main() -> ExitCode {
    let cli = Cli::parse();
    let runtime = match tokio::runtime::Builder::new_multi_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => return failed(&Fault::transient(format!("cannot start threads: {error}"))),
    };
    let json = cli.json;
    match runtime.block_on(Box::pin(perform(cli.command))) {
        Ok(report) => {
            report.print(json);
            if report.holds() { ExitCode::SUCCESS } else { ExitCode::from(1) }
        }
        Err(fault) => failed(&fault),
    }
}

async fn perform(command: Command) -> Result<Report, Fault> {
    let stop = Shutdown::new();
    listen(stop.clone())?;
    match command {
        Command::Run(run) => load::run(run, stop).await,
        Command::Bench(bench) => {
            // Servers and engines end with the future that owns them.
            tokio::select! {
                done = bench::run(bench) => done,
                () = stop.draining() => Err(Fault::cancelled("interrupted")),
            }
        }
    }
}

/// The first Ctrl-C or SIGTERM asks for an orderly end, the second one does not wait for it.
fn listen(stop: Shutdown) -> Result<(), Fault> {
    let refused = |error: std::io::Error| Fault::transient(format!("signals cannot be listened to: {error}"));
    let mut interrupt = signal(SignalKind::interrupt()).map_err(refused)?;
    let mut terminate = signal(SignalKind::terminate()).map_err(refused)?;
    tokio::spawn(async move {
        for _ in 0..2 {
            tokio::select! {
                _ = interrupt.recv() => {}
                _ = terminate.recv() => {}
            }
            if stop.is_draining() {
                std::process::exit(130);
            }
            stop.drain();
        }
    });
    Ok(())
}

fn failed(fault: &Fault) -> ExitCode {
    eprintln!("argon-loadgen: {}", fault.what.trim_end());
    ExitCode::from(match fault.kind {
        Kind::Config => 2,
        Kind::Corrupt => 4,
        Kind::Cancelled => 130,
        _ => 1,
    })
}
