//! Owns: a report: lines for a person, one JSON object for a machine, and whether its limits hold. Does not own any figure.

use std::io::Write;

use serde::Serialize;
use serde_json::{Map, Value, json};

/// What a command found.
#[derive(Debug)]
pub(crate) struct Report {
    lines: Vec<(String, String)>,
    tables: Vec<Vec<Vec<String>>>,
    json: Map<String, Value>,
    broken: Vec<String>,
}

impl Report {
    /// Every report repeats how it came about.
    pub(crate) fn new(name: &str, options: Value, seed: u64) -> Self {
        let mut json = Map::new();
        json.insert("report".into(), name.into());
        json.insert("version".into(), env!("CARGO_PKG_VERSION").into());
        json.insert("optimised".into(), (!cfg!(debug_assertions)).into());
        json.insert("cpus".into(), std::thread::available_parallelism().map_or(0, std::num::NonZero::get).into());
        json.insert("seed".into(), seed.into());
        json.insert("options".into(), options.clone());
        let mut report = Self { lines: Vec::new(), tables: Vec::new(), json, broken: Vec::new() };
        report.line("report", format!("{name}, seed {seed}, {}", if cfg!(debug_assertions) { "not optimised" } else { "optimised" }));
        report.line("options", options.to_string());
        report
    }

    /// A line for a person.
    pub(crate) fn line(&mut self, name: &str, value: String) {
        self.lines.push((name.to_owned(), value));
    }

    /// A table for a person; the first row is its head.
    pub(crate) fn table(&mut self, rows: Vec<Vec<String>>) {
        self.tables.push(rows);
    }

    /// A field for a machine.
    pub(crate) fn set<T: Serialize>(&mut self, name: &str, value: T) {
        self.json.insert(name.to_owned(), json!(value));
    }

    /// A limit that the user set.
    pub(crate) fn limit(&mut self, holds: bool, says: String) {
        self.line(if holds { "limit holds" } else { "LIMIT BROKEN" }, says.clone());
        if !holds {
            self.broken.push(says);
        }
    }

    /// Whether all limits hold.
    pub(crate) fn holds(&self) -> bool {
        self.broken.is_empty()
    }

    /// As text or as one JSON object, on stdout.
    pub(crate) fn print(&self, as_json: bool) {
        let mut text = self.text();
        if as_json {
            let mut json = self.json.clone();
            json.insert("limits_broken".into(), json!(self.broken));
            text = Value::Object(json).to_string() + "\n";
        }
        // A reader that has gone away (head) is no failure of the benchmark.
        let _ = std::io::stdout().write_all(text.as_bytes());
    }

    fn text(&self) -> String {
        let mut text = String::new();
        for table in &self.tables {
            text += &aligned(table);
            text.push('\n');
        }
        let width = self.lines.iter().map(|(name, _)| name.chars().count()).max().unwrap_or(0);
        for (name, value) in &self.lines {
            text += &format!("{name:width$}  {value}\n");
        }
        text
    }
}

/// The first column to the left, the others to the right.
fn aligned(rows: &[Vec<String>]) -> String {
    let columns = rows.iter().map(Vec::len).max().unwrap_or(0);
    let width = |i: usize| rows.iter().filter_map(|row| row.get(i)).map(|cell| cell.chars().count()).max().unwrap_or(0);
    let widths: Vec<usize> = (0..columns).map(width).collect();
    let line = |row: &Vec<String>| {
        let cells = row.iter().zip(&widths).enumerate();
        let cells = cells.map(|(i, (cell, &width))| if i == 0 { format!("{cell:<width$}") } else { format!("{cell:>width$}") });
        cells.collect::<Vec<_>>().join("  ").trim_end().to_owned() + "\n"
    };
    rows.iter().map(line).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_report_tells_how_it_came_about_and_what_does_not_hold() {
        let mut report = Report::new("bench x", json!({ "changes": 5 }), 7);
        report.set("ratio_to_ceiling", 0.5);
        report.limit(true, "a".into());
        assert!(report.holds());
        report.limit(false, "ratio 0.5 is below 0.7".into());
        assert!(!report.holds());
        assert_eq!((report.json["seed"].clone(), report.json["options"]["changes"].clone()), (json!(7), json!(5)));
        assert!(report.text().contains("LIMIT BROKEN  ratio 0.5"));
    }

    #[test]
    fn columns_line_up() {
        let rows = vec![vec!["round".to_owned(), "x".to_owned()], vec!["1".to_owned(), "100".to_owned()]];
        assert_eq!(aligned(&rows), "round    x\n1      100\n");
    }
}
