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

    /// Whether a program reads it.
    pub(crate) fn is_json(self) -> bool {
        self.json
    }

    /// A remark beside the output, which others may read.
    pub(crate) fn remark(self, text: &str) {
        if !self.json {
            let _ = writeln!(std::io::stderr(), "{text}");
        }
    }

    /// A remark for a person; nothing with `--json`.
    pub(crate) fn say(self, text: &str) {
        if !self.json {
            let _ = writeln!(std::io::stdout(), "{text}");
        }
    }

    /// Columns of the terminal; `None` where there is none, so that what a pipe gets is whole.
    pub(crate) fn width(self) -> Option<usize> {
        let size = rustix::termios::tcgetwinsize(std::io::stdout()).ok()?;
        Some(usize::from(size.ws_col)).filter(|columns| *columns > 0)
    }

    /// A count of what is done, where nobody knows how much there is; on a terminal only.
    pub(crate) fn counter(self, what: &'static str) -> ProgressBar {
        let bar = self.progress(what);
        let style = ProgressStyle::with_template("{prefix} {human_pos} {per_sec} {elapsed}");
        bar.set_style(style.unwrap_or_else(|_| ProgressStyle::default_spinner()));
        bar
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

/// A table whose last column, which is prose, is kept within the terminal: cut off, or below its row where next to no room is left. Line breaks in it
/// become spaces.
pub(crate) fn fitted(heading: &[&str], rows: &[Vec<String>], width: Option<usize>) -> String {
    /// Less than this of a sentence says nothing.
    const LEAST: usize = 24;
    let last = heading.len().saturating_sub(1);
    let mut rows: Vec<Vec<String>> = rows.to_vec();
    for prose in rows.iter_mut().filter_map(|row| row.get_mut(last)) {
        *prose = prose.split_whitespace().collect::<Vec<_>>().join(" ");
    }
    let Some(width) = width else { return table(heading, &rows) };
    let short: Vec<Vec<String>> = rows.iter().map(|row| row[..row.len().min(last)].to_vec()).collect();
    let narrow = table(&heading[..last], &short);
    let used = narrow.lines().map(|line| line.chars().count()).max().unwrap_or_default() + 2;
    if width >= used + LEAST {
        for prose in rows.iter_mut().filter_map(|row| row.get_mut(last)) {
            *prose = cut(prose, width - used);
        }
        return table(heading, &rows);
    }
    let mut lines = Vec::new();
    for (i, line) in narrow.lines().enumerate() {
        lines.push(line.to_owned());
        let prose = i.checked_sub(1).and_then(|row| rows[row].get(last)).filter(|prose| !prose.is_empty());
        lines.extend(prose.map(|prose| format!("  {}", cut(prose, width.saturating_sub(2).max(LEAST)))));
    }
    lines.join("\n")
}

fn cut(text: &str, most: usize) -> String {
    if text.chars().count() <= most {
        return text.to_owned();
    }
    text.chars().take(most.saturating_sub(1)).chain(['…']).collect()
}

/// A paragraph within `width` columns, later lines indented by two.
pub(crate) fn wrapped(text: &str, width: usize) -> String {
    let (mut lines, mut line) = (Vec::new(), String::new());
    for word in text.split_whitespace() {
        if !line.trim_start().is_empty() && line.chars().count() + 1 + word.chars().count() > width {
            lines.push(std::mem::replace(&mut line, "  ".to_owned()));
        }
        if !line.trim_start().is_empty() {
            line.push(' ');
        }
        line.push_str(word);
    }
    lines.push(line);
    lines.join("\n")
}

#[cfg(test)]
mod tests {
    use super::{fitted, wrapped};

    #[test]
    fn prose_stays_within_the_terminal() {
        let heading = ["JOB", "LAST ERROR"];
        let rows =
            [vec!["j1".to_owned(), "the store said\nno, and then it said no again".to_owned()], vec!["j2".to_owned(), String::new()]];
        let whole = fitted(&heading, &rows, None);
        assert_eq!(whole, "JOB  LAST ERROR\nj1   the store said no, and then it said no again\nj2");
        assert_eq!(fitted(&heading, &rows, Some(80)), whole);
        assert_eq!(fitted(&heading, &rows, Some(30)), "JOB  LAST ERROR\nj1   the store said no, and t…\nj2");
        assert_eq!(fitted(&heading, &rows, Some(26)), "JOB\nj1\n  the store said no, and …\nj2");
        assert_eq!(fitted(&heading, &[], Some(26)), "JOB");
    }

    #[test]
    fn paragraphs_break_between_words() {
        assert_eq!(wrapped("! one two three four", 10), "! one two\n  three\n  four");
        assert_eq!(wrapped("! argon-without-an-end", 10), "! argon-without-an-end".replacen(" ", "\n  ", 1));
        assert_eq!(wrapped("short", 80), "short");
    }

    #[test]
    fn columns_line_up() {
        let text = super::table(&["NAME", "N"], &[vec!["shop/main".into(), "7".into()], vec!["a/b".into(), "12".into()]]);
        assert_eq!(text, "NAME       N\nshop/main  7\na/b        12");
    }
}
