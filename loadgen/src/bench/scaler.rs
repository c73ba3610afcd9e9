//! `bench scaler`: rules for the number of workers on simulated loads, jobs, workers and a backend, on a fake clock.
//!
//! Owns: which loads and rules are run, medians over seeds, the table, the limits. Does not own: the simulation (`sim`, `backend`, `loads`), the
//! rules (`policies`; Argon's own is the engine's), a run on a real engine (`live`), how a run is judged (`figures`), the plot (`plot`).

mod backend;
mod figures;
mod live;
mod loads;
mod plot;
mod policies;
mod random;
mod sim;
#[cfg(test)]
mod tests;

use std::path::Path;

use argon::fault::{Fault, Result};
use serde::Serialize;
use serde_json::json;

use backend::{Backend, Spread};
use figures::Figures;
use loads::{LOADS, Load};
use policies::{Bounds, RULES, Rule};

use super::{median, real};
use crate::args::{ScalerBench, SpreadName};
use crate::report::Report;

/// A load under a rule.
#[derive(Debug, Serialize)]
struct Cell {
    load: &'static str,
    policy: String,
    /// One per seed.
    runs: Vec<Figures>,
}

/// Runs it.
pub(super) async fn run(args: ScalerBench) -> Result<Report> {
    if args.live {
        return measure(args).await;
    }
    // Seconds of computing, on a thread that nobody waits for after Ctrl-C.
    let (done, outcome) = tokio::sync::oneshot::channel();
    std::thread::spawn(move || done.send(simulate(&args)));
    outcome.await.map_err(|_| Fault::unknown("the simulation ended without a result"))?
}

fn simulate(args: &ScalerBench) -> Result<Report> {
    let bounds = bounds(args)?;
    let backend = backend(args);
    let loads = loads(args, LOADS.iter().map(|load| load.name).collect());
    let mut cells = Vec::new();
    for load in &loads {
        for rule in RULES {
            let runs = seeds(args).map(|seed| one(load, &backend, rule, bounds, seed).0).collect();
            cells.push(Cell { load: load.name, policy: rule.name(), runs });
        }
        if let Some(dir) = &args.plot {
            draw(dir, load, &backend, bounds, args.seed)?;
        }
    }
    Ok(report(args, bounds, &backend, &loads, &cells))
}

/// On a real engine: every second takes one. Simulated beside it, with the same load on workers that share nothing.
async fn measure(args: ScalerBench) -> Result<Report> {
    let bounds = bounds(&args)?;
    let backend = Backend { knee: f64::INFINITY, drag: 0.0, spread: Spread::Constant, ..backend(&args) };
    let loads = loads(&args, vec!["step"]);
    let mut cells = Vec::new();
    for load in &loads {
        let trace = Box::pin(live::run(&args.servers, load, &backend, bounds)).await?;
        let (figures, simulated) = one(load, &backend, Rule::Argon, bounds, args.seed);
        if let Some(dir) = &args.plot {
            let measured = plot::Run { name: "measured".to_owned(), seconds: trace.seconds.clone() };
            let simulated = plot::Run { name: "simulated".to_owned(), seconds: simulated.seconds };
            write_plot(dir, &format!("scaler-live-{}.svg", load.name), &plot::svg(load, bounds.max, &[measured, simulated]))?;
        }
        let measured = Figures::of(load, &backend, bounds, &trace);
        cells.push(Cell { load: load.name, policy: "argon, measured".to_owned(), runs: vec![measured] });
        cells.push(Cell { load: load.name, policy: "argon, simulated".to_owned(), runs: vec![figures] });
    }
    let mut report = report(&args, bounds, &backend, &loads, &cells);
    report.set("servers", args.servers.settings.iter().map(|(name, value)| format!("{name}={value}")).collect::<Vec<_>>());
    Ok(report)
}

/// The loads that are named, or else these.
fn loads(args: &ScalerBench, usual: Vec<&str>) -> Vec<Load> {
    let is_wanted = |name: &str| if args.loads.is_empty() { usual.contains(&name) } else { args.loads.iter().any(|wanted| wanted == name) };
    let at_most = args.seconds.map_or(f64::INFINITY, f64::from);
    LOADS.into_iter().filter(|load| is_wanted(load.name)).map(|load| Load { seconds: load.seconds.min(at_most), ..load }).collect()
}

fn bounds(args: &ScalerBench) -> Result<Bounds> {
    let bounds = Bounds { min: args.min, base: args.base, max: args.max };
    if bounds.min <= bounds.base && bounds.base <= bounds.max {
        Ok(bounds)
    } else {
        Err(Fault::config("--min, --base and --max: each may be no larger than the next"))
    }
}

fn seeds(args: &ScalerBench) -> impl Iterator<Item = u64> + use<> {
    let first = args.seed;
    (0..u64::from(args.rounds)).map(move |i| first.wrapping_add(i))
}

fn backend(args: &ScalerBench) -> Backend {
    let spread = match args.spread {
        SpreadName::Constant => Spread::Constant,
        SpreadName::Normal => Spread::LogNormal(0.5),
        SpreadName::Exponential => Spread::Exponential,
    };
    let knee = if args.knee == 0 { f64::INFINITY } else { f64::from(args.knee) };
    Backend { service: args.service.as_secs_f64(), knee, drag: args.drag, spread }
}

/// One run.
fn one(load: &Load, backend: &Backend, rule: Rule, bounds: Bounds, seed: u64) -> (Figures, sim::Trace) {
    let trace = sim::run(load, backend, rule.policy(bounds).as_mut(), rule.first(bounds), bounds.max, seed);
    (Figures::of(load, backend, bounds, &trace), trace)
}

fn draw(dir: &Path, load: &Load, backend: &Backend, bounds: Bounds, seed: u64) -> Result<()> {
    let runs: Vec<plot::Run> = [Rule::Argon, Rule::Hpa, Rule::Threshold]
        .into_iter()
        .map(|rule| plot::Run { name: rule.name(), seconds: one(load, backend, rule, bounds, seed).1.seconds })
        .collect();
    write_plot(dir, &format!("scaler-{}.svg", load.name), &plot::svg(load, bounds.max, &runs))
}

fn write_plot(dir: &Path, name: &str, svg: &str) -> Result<()> {
    let path = dir.join(name);
    std::fs::write(&path, svg).map_err(|error| Fault::config(format!("--plot {}: {error}", path.display())))
}

fn report(args: &ScalerBench, bounds: Bounds, backend: &Backend, loads: &[Load], cells: &[Cell]) -> Report {
    let options = json!({
        "loads": loads.iter().map(|load| load.name).collect::<Vec<_>>(), "rounds": if args.live { 1 } else { args.rounds },
        "service_ms": backend.service * 1000.0, "spread": format!("{:?}", args.spread).to_lowercase(),
        "knee": backend.knee.is_finite().then_some(backend.knee), "drag": backend.drag, "live": args.live,
        "min": bounds.min, "base": bounds.base, "max": bounds.max,
    });
    let mut report = Report::new("bench scaler", options, args.seed);
    report.set("capacity_per_s", backend.capacity(bounds.max));
    report.set("cells", cells);
    report.table(table(cells));
    for load in loads {
        report.line(load.name, load.says.to_owned());
    }
    report.line("capacity", format!("{:.0} jobs/s with at most {} workers", backend.capacity(bounds.max), bounds.max));
    if !args.live {
        let last = args.seed.saturating_add(u64::from(args.rounds) - 1);
        report.line("figures", format!("medians of {} runs, seeds {} to {last}", args.rounds, args.seed));
    }
    if args.check {
        check(&mut report, cells);
    }
    report
}

/// What the scaler promises, on every seed.
fn check(report: &mut Report, cells: &[Cell]) {
    type Promise = (&'static str, &'static str, fn(&Figures) -> bool);
    let promises: [Promise; 3] = [
        ("step", "a step settles within 10 s with at most 3 decisions and 2 workers of overshoot", |f| {
            f.settling_s.is_some_and(|s| s <= 10.0) && f.decisions <= 3 && f.overshoot.is_some_and(|n| n <= 2)
        }),
        ("constant", "a constant load makes no reversal", |f| f.reversals == 0),
        // Seven edges; at the first one there is nothing to reverse.
        ("square", "a square wave makes one reversal per edge", |f| f.reversals == 6),
    ];
    for (load, says, holds) in promises {
        let runs: Vec<&Figures> =
            cells.iter().filter(|cell| cell.load == load && cell.policy.starts_with("argon")).flat_map(|cell| &cell.runs).collect();
        if !runs.is_empty() {
            let held = runs.iter().filter(|run| holds(run)).count();
            report.limit(held == runs.len(), format!("{says}: {held} of {} runs", runs.len()));
        }
    }
}

/// A column: its head, its figure, its digits.
type Column = (&'static str, fn(&Figures) -> Option<f64>, usize);

#[allow(clippy::cast_precision_loss)] // counts of decisions
const COLUMNS: [Column; 8] = [
    ("settles s", |f| f.settling_s, 0),
    ("overshoot", |f| f.overshoot.map(f64::from), 0),
    ("decisions", |f| Some(f.decisions as f64), 0),
    ("reversals", |f| Some(f.reversals as f64), 0),
    ("drains s", |f| f.drain_s, 0),
    ("bound s", |f| (f.drain_bound_s > 0.0).then_some(f.drain_bound_s), 0),
    ("worker-s / oracle", |f| Some(f.cost()), 2),
    ("wait p99 s", |f| f.wait_p99_s, 2),
];

fn table(cells: &[Cell]) -> Vec<Vec<String>> {
    let head = ["load", "policy"].into_iter().chain(COLUMNS.iter().map(|(name, ..)| *name)).map(str::to_owned).collect();
    let row = |cell: &Cell| {
        let figures = COLUMNS.iter().map(|(_, figure, digits)| {
            // One run without a figure counts as worse than any; where most have none, so has the median.
            let values: Vec<f64> = cell.runs.iter().map(|run| figure(run).unwrap_or(f64::INFINITY)).collect();
            let middle = median(values);
            if middle.is_finite() { format!("{middle:.digits$}") } else { "-".to_owned() }
        });
        [cell.load.to_owned(), cell.policy.clone()].into_iter().chain(figures).collect()
    };
    std::iter::once(head).chain(cells.iter().map(row)).collect()
}
