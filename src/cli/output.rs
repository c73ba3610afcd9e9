//! Owns: printing: tables for people, JSON for programs, progress on terminals only. Does not own: what is printed.

use std::io::{IsTerminal, Write};
use std::time::Duration;

use indicatif::{ProgressBar, ProgressStyle};
use serde::Serialize;

use crate::fault::{Fault, Result};

/// Said wherever a capture of a sharded cluster is shown (correctness.md 8).
pub(crate) const EXPERIMENTAL: &str = "experimental: the source is a sharded cluster, and what Argon promises it promises for replica sets";

/// How this invocation prints.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Output {
    json: bool,
}

impl Output {
    pub(crate) fn new(json: bool) -> Self {
        Self { json }
    }

    /// A value as JSON, or what `text` makes of it. A closed pipe is not an error.
    pub(crate) fn print<T: Serialize>(self, value: &T, text: impl FnOnce() -> String) -> Result<()> {
        let line = if self.json { serde_json::to_string(value).map_err(|e| Fault::corrupt(format!("cannot print: {e}")))? } else { text() };
        let _ = writeln!(std::io::stdout(), "{}", line.trim_end());
        Ok(())
    }

    /// A remark for a person; nothing with `--json`.
    pub(crate) fn say(self, text: &str) {
        if !self.json {
            let _ = writeln!(std::io::stdout(), "{text}");
        }
    }

    /// A progress bar on a terminal, hidden elsewhere and with `--json`.
    pub(crate) fn progress(self, what: &'static str) -> ProgressBar {
        if self.json || !std::io::stderr().is_terminal() {
            return ProgressBar::hidden();
        }
        let bar = ProgressBar::new(0);
        let style = ProgressStyle::with_template("{prefix} [{bar:30}] {human_pos}/{human_len} {per_sec} {eta} left {msg}");
        bar.set_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()));
        bar.set_prefix(what);
        bar.enable_steady_tick(Duration::from_millis(200));
        bar
    }
}

/// Rows as aligned columns under a heading.
pub(crate) fn table(heading: &[&str], rows: &[Vec<String>]) -> String {
    let mut widths: Vec<usize> = heading.iter().map(|h| h.chars().count()).collect();
    for row in rows {
        for (width, cell) in widths.iter_mut().zip(row) {
            *width = (*width).max(cell.chars().count());
        }
    }
    let line = |cells: Vec<&str>| {
        let padded = cells.iter().zip(&widths).map(|(cell, width)| format!("{cell:<width$}")).collect::<Vec<_>>();
        padded.join("  ").trim_end().to_string()
    };
    let mut lines = vec![line(heading.to_vec())];
    lines.extend(rows.iter().map(|row| line(row.iter().map(String::as_str).collect())));
    lines.join("\n")
}

#[cfg(test)]
mod tests {
    #[test]
    fn columns_line_up() {
        let text = super::table(&["NAME", "N"], &[vec!["shop/main".into(), "7".into()], vec!["a/b".into(), "12".into()]]);
        assert_eq!(text, "NAME       N\nshop/main  7\na/b        12");
    }
}
