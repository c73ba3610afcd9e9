//! The commands of this binary that the README shows are ones that its parser takes.

use clap::Parser;

use crate::args::Cli;

/// Text in backticks, fences left out.
fn inline(line: &str) -> impl Iterator<Item = &str> {
    line.split('`').skip(1).step_by(2)
}

#[test]
fn the_commands_of_the_readme_are_taken() {
    let (mut taken, mut heading) = (0, "");
    for line in include_str!("../../README.md").lines().filter(|line| !line.starts_with("```")) {
        for code in inline(line) {
            // A table has the command in its heading and the flags of each run in the rows.
            let command = match code {
                code if code.starts_with("argon-loadgen ") => code.to_owned(),
                code if line.starts_with("| `--") => format!("{heading} {code}"),
                _ => continue,
            };
            if line.starts_with("| `argon-loadgen") {
                heading = code;
            }
            if let Err(error) = Cli::try_parse_from(command.split_whitespace()) {
                panic!("{command}: {error}");
            }
            taken += 1;
        }
    }
    assert!(taken >= 3, "only {taken} commands were found");
}
