//! Parses, runs a command, maps the outcome to an exit code.

use std::process::ExitCode;

fn main() -> ExitCode {
    argon::cli::main()
}
