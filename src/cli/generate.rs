//! `argon generate`: man pages and shell completions, from the one definition of the command line. For whoever packages the binary.

use std::fs;
use std::io::Write;
use std::path::PathBuf;

use clap::CommandFactory;
use clap_complete::Shell;

use crate::fault::{Fault, Result};

use super::{Cli, Exit};

#[derive(Debug, clap::Args)]
#[command(after_help = "Example:
  argon generate target      # target/man/argon*.1, target/completions/{argon.bash,_argon,argon.fish}

Completions of a shell at once:
  source <(argon generate --shell bash)")]
pub(crate) struct Args {
    /// Directory that takes `man` and `completions`.
    #[arg(required_unless_present = "shell", conflicts_with = "shell")]
    dir: Option<PathBuf>,
    /// Prints the completions of one shell instead.
    #[arg(long, value_name = "SHELL")]
    shell: Option<Shell>,
}

pub(crate) fn run(args: &Args) -> Result<Exit> {
    let mut command = Cli::command();
    if let Some(shell) = args.shell {
        let mut text = Vec::new();
        clap_complete::generate(shell, &mut command, "argon", &mut text);
        let _ = std::io::stdout().write_all(&text); // a closed pipe is not an error
        return Ok(Exit::Done);
    }
    let dir = args.dir.clone().unwrap_or_default();
    let (man, completions) = (dir.join("man"), dir.join("completions"));
    let failed = |e: std::io::Error| Fault::rejected(format!("cannot write to {}: {e}", dir.display()));
    for made in [&man, &completions] {
        fs::create_dir_all(made).map_err(failed)?;
    }
    clap_mangen::generate_to(command.clone(), &man).map_err(failed)?;
    for shell in [Shell::Bash, Shell::Zsh, Shell::Fish] {
        clap_complete::generate_to(shell, &mut command, "argon", &completions).map_err(failed)?;
    }
    Ok(Exit::Done)
}
