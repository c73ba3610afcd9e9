//! Owns: what is said about arguments and variables that do not parse: one line that names flag, variable, value and what is allowed.
//! Does not own: parsing (clap), ranges (`config`).

use clap::error::{ContextKind, ContextValue, ErrorKind};
use clap::{Command, CommandFactory};

use super::{Cli, Exit, report};
use crate::fault::Fault;
use crate::ledger::scrub;

/// Prints help and version as they are, and errors as every other error of a command.
pub(super) fn explain(error: &clap::Error, json: bool) -> Exit {
    use ErrorKind::{DisplayHelp, DisplayHelpOnMissingArgumentOrSubcommand, DisplayVersion};
    match error.kind() {
        DisplayHelp | DisplayVersion => {
            let _ = error.print(); // a closed pipe is no error
            Exit::Done
        }
        DisplayHelpOnMissingArgumentOrSubcommand => {
            let _ = error.print();
            Exit::BadConfig
        }
        _ => report(&Fault::config(sentence(error)), json),
    }
}

/// clap's paragraphs as one line, with the variable of the flag.
fn sentence(error: &clap::Error) -> String {
    let rendered = error.render().to_string();
    let text = rendered.strip_prefix("error: ").unwrap_or(&rendered);
    let (mut said, mut usage) = (Vec::new(), None);
    for line in text.lines().map(str::trim) {
        if let Some(rest) = line.strip_prefix("Usage: ") {
            usage = Some(rest);
        } else if usage.is_none() && !line.is_empty() && !line.starts_with("For more information") {
            said.push(line.replace("tip: ", "- "));
        }
    }
    let mut line = said.join(" ");
    if let Some(ContextValue::String(arg)) = error.get(ContextKind::InvalidArg)
        && let Some(variable) = variable_of(&Cli::command(), arg.split([' ', '=', '[']).next().unwrap_or(arg))
    {
        line = line.replace(&format!("'{arg}'"), &format!("{variable} ({arg})"));
    }
    if let Some(usage) = usage {
        let command: Vec<&str> = usage.split(' ').take_while(|word| !word.starts_with(['[', '<', '-'])).collect();
        line += &format!("; see {} --help", command.join(" "));
    }
    scrub(&line)
}

/// The variable behind a flag, in whatever command it is.
fn variable_of(command: &Command, flag: &str) -> Option<String> {
    let long = flag.strip_prefix("--")?;
    let own = command.get_arguments().find(|arg| arg.get_long() == Some(long) && arg.get_env().is_some());
    own.and_then(|arg| Some(arg.get_env()?.to_string_lossy().into_owned()))
        .or_else(|| command.get_subcommands().find_map(|sub| variable_of(sub, flag)))
}
