//! Owns: the picture of a load: arrivals, workers and backlog over time, one below the other, as an SVG with its own colours for light and dark.

use std::fmt::Write;

use super::loads::Load;
use super::real;
use super::sim::Second;

/// A line in the picture.
pub(super) struct Run {
    pub name: String,
    pub seconds: Vec<Second>,
}

const WIDTH: f64 = 860.0;
const LEFT: f64 = 64.0;
const RIGHT: f64 = 16.0;
const TOP: f64 = 60.0;
const GAP: f64 = 34.0;
const BOTTOM: f64 = 40.0;
/// More points than this are not seen.
const POINTS: usize = 430;

const STYLE: &str = "\
text{font:12px system-ui,sans-serif;fill:#1f2328}.title{font-size:15px;font-weight:600}.bg{fill:#fff}.grid{stroke:#d0d7de;stroke-width:1}\
path{fill:none;stroke-width:1.8;stroke-linejoin:round}.load{stroke:#57606a}.l0{stroke:#0969da;stroke-width:2.4}.l1{stroke:#bc4c00}.l2{stroke:#8250df}\
@media(prefers-color-scheme:dark){text{fill:#e6edf3}.bg{fill:#0d1117}.grid{stroke:#30363d}.load{stroke:#8b949e}.l0{stroke:#58a6ff}.l1{stroke:#f0883e}.l2{stroke:#bc8cff}}";

/// Where a panel is and what its values mean.
struct Panel {
    title: &'static str,
    top: f64,
    height: f64,
    most: f64,
    /// Few and ten thousand in one picture.
    logarithmic: bool,
    seconds: f64,
}

impl Panel {
    fn x(&self, t: f64) -> f64 {
        LEFT + (WIDTH - LEFT - RIGHT) * t / self.seconds
    }

    fn y(&self, value: f64) -> f64 {
        let share = if self.logarithmic { value.ln_1p() / self.most.ln_1p() } else { value / self.most };
        self.top + self.height * (1.0 - share.min(1.0))
    }

    /// Frame, title and horizontal lines.
    fn frame(&self, out: &mut String, marks: &[f64]) {
        let _ = write!(out, "<text x=\"{LEFT}\" y=\"{:.0}\">{}</text>", self.top - 8.0, self.title);
        for mark in marks.iter().filter(|mark| **mark <= self.most) {
            let y = self.y(*mark);
            let _ = write!(out, "<line class=\"grid\" x1=\"{LEFT}\" x2=\"{:.0}\" y1=\"{y:.1}\" y2=\"{y:.1}\"/>", WIDTH - RIGHT);
            let _ = write!(out, "<text x=\"{:.0}\" y=\"{:.1}\" text-anchor=\"end\">{}</text>", LEFT - 8.0, y + 4.0, count(*mark));
        }
    }

    /// A line of steps: a value holds until the next one.
    fn line(&self, out: &mut String, class: &str, points: impl Iterator<Item = (f64, f64)>) {
        let mut path = String::new();
        let mut last: Option<f64> = None;
        for (t, value) in points {
            let y = self.y(value);
            match last {
                None => _ = write!(path, "M{:.1} {y:.1}", self.x(t)),
                Some(before) if (before - y).abs() < 0.05 => continue,
                Some(_) => _ = write!(path, "H{:.1}V{y:.1}", self.x(t)),
            }
            last = Some(y);
        }
        let _ = write!(out, "<path class=\"{class}\" d=\"{path}H{:.1}\"/>", WIDTH - RIGHT);
    }
}

/// The picture.
pub(super) fn svg(load: &Load, max: u16, runs: &[Run]) -> String {
    let first = runs.first().map(|run| run.seconds.as_slice()).unwrap_or_default();
    let rates = first.iter().map(|second| second.rate);
    let backlog = runs.iter().flat_map(|run| &run.seconds).map(|second| real(second.backlog)).fold(10.0, f64::max);
    let panel = |title, top, height, most, logarithmic| Panel { title, top, height, most, logarithmic, seconds: load.seconds };
    let arrivals = panel("jobs a second that become ready", TOP + 20.0, 80.0, ceiling(rates.fold(1.0, f64::max)), false);
    let workers = panel("workers", arrivals.top + arrivals.height + GAP, 150.0, f64::from(max), false);
    let waiting = panel("jobs that wait (logarithmic)", workers.top + workers.height + GAP, 120.0, backlog * 1.1, true);
    let height = waiting.top + waiting.height + BOTTOM;

    let mut out = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {height}\" role=\"img\"><title>{name}: {says}</title><style>{STYLE}</style>\
         <rect class=\"bg\" width=\"{WIDTH}\" height=\"{height}\"/><text class=\"title\" x=\"{LEFT}\" y=\"24\">{name}: {says}</text>",
        name = load.name,
        says = load.says,
    );
    for (i, run) in runs.iter().enumerate() {
        let x = LEFT + 150.0 * [0.0, 1.0, 2.0][i.min(2)];
        let _ = write!(out, "<path class=\"l{i}\" d=\"M{x:.0} 42h24\"/><text x=\"{:.0}\" y=\"46\">{}</text>", x + 30.0, escape(&run.name));
    }
    arrivals.frame(&mut out, &[0.0, arrivals.most / 2.0, arrivals.most]);
    arrivals.line(&mut out, "load", first.iter().map(|second| (second.at, second.rate)));
    workers.frame(&mut out, &[0.0, 5.0, 10.0, 15.0, 20.0]);
    waiting.frame(&mut out, &[0.0, 10.0, 100.0, 1_000.0, 10_000.0, 100_000.0]);
    // Argon last: on top of the others.
    for (i, run) in runs.iter().enumerate().rev() {
        workers.line(&mut out, &format!("l{i}"), run.seconds.iter().map(|second| (second.at, f64::from(second.target))));
        let every = run.seconds.len().div_ceil(POINTS).max(1);
        let peaks = run.seconds.chunks(every).filter_map(|part| Some((part.first()?.at, real(part.iter().map(|s| s.backlog).max()?))));
        waiting.line(&mut out, &format!("l{i}"), peaks);
    }
    let mut t = 0.0;
    while t <= load.seconds {
        let _ = write!(
            out,
            "<text x=\"{:.0}\" y=\"{:.0}\" text-anchor=\"middle\">{:.0} min</text>",
            waiting.x(t),
            height - BOTTOM + 22.0,
            t / 60.0
        );
        t += if load.seconds > 500.0 { 120.0 } else { 60.0 };
    }
    out.push_str("</svg>\n");
    out
}

/// The next of 1, 2, 5, 10, ... times a power of ten.
fn ceiling(value: f64) -> f64 {
    let unit = 10f64.powf(value.log10().floor());
    [1.0, 2.0, 2.5, 5.0, 10.0].into_iter().map(|n| n * unit).find(|n| *n >= value).unwrap_or(value)
}

fn count(n: f64) -> String {
    if n >= 1_000.0 { format!("{:.0},000", n / 1_000.0) } else { format!("{n:.0}") }
}

fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;")
}

#[cfg(test)]
mod tests {
    use super::super::loads::LOADS;
    use super::*;

    #[test]
    fn the_picture_shows_every_line_in_both_colours() {
        let second = |at, target, backlog| Second { at, rate: 50.0, target, backlog, completed: 0 };
        let run = |name: &str| Run { name: name.to_owned(), seconds: vec![second(1.0, 5, 0), second(2.0, 9, 400), second(3.0, 9, 20)] };
        let svg = svg(&LOADS[0], 20, &[run("argon"), run("like HPA"), run("depth > 1000")]);
        assert!(svg.starts_with("<svg ") && svg.ends_with("</svg>\n"));
        assert_eq!(svg.matches("<path").count(), 3 + 1 + 6);
        assert!(svg.contains("depth &gt; 1000") && svg.contains("prefers-color-scheme:dark"));
        assert!(!svg.contains("NaN") && !svg.contains("inf"));
    }

    #[test]
    #[allow(clippy::float_cmp)] // round numbers
    fn scales_end_at_round_numbers() {
        for (value, wanted) in [(1.0, 1.0), (1.1, 2.0), (23.0, 25.0), (186.0, 200.0), (501.0, 1_000.0)] {
            assert_eq!(ceiling(value), wanted);
        }
    }
}
