//! What the scaler promises, on the simulator, over many seeds.

use argon::pool::scaler::{Direction, Reason};
use clap::Parser;

use super::loads::Shape;
use super::policies::Argon;
use super::*;

const BOUNDS: Bounds = Bounds { min: 1, base: 5, max: 20 };
/// Twenty workers are worth twenty: nothing is shared.
const EVEN: Backend = Backend { service: 0.05, knee: f64::INFINITY, drag: 0.0, spread: Spread::LogNormal(0.5) };
/// Throughput stops growing at twelve.
const SATURATING: Backend = Backend { knee: 12.0, ..EVEN };

/// Debug builds are slow; `argon-loadgen bench scaler --check --rounds N` does more.
const SEEDS: std::ops::RangeInclusive<u64> = 1..=24;

fn load(name: &str) -> Load {
    LOADS.into_iter().find(|load| load.name == name).unwrap()
}

fn argon(load: &Load, backend: &Backend, seed: u64) -> (Figures, Argon) {
    let mut policy = Argon::new(BOUNDS);
    let trace = sim::run(load, backend, &mut policy, BOUNDS.base, BOUNDS.max, seed);
    (Figures::of(load, backend, BOUNDS, &trace), policy)
}

#[test]
fn a_step_settles_within_10_s_with_at_most_3_decisions_and_2_workers_of_overshoot() {
    let step = Load { seconds: 150.0, ..load("step") };
    for backend in [EVEN, SATURATING, Backend { spread: Spread::Exponential, service: 0.1, ..EVEN }] {
        for seed in SEEDS {
            let (f, _) = argon(&step, &backend, seed);
            assert!(f.settling_s.is_some_and(|s| s <= 10.0), "seed {seed}, {backend:?}: {f:?}");
            assert!(f.decisions <= 3 && f.overshoot.is_some_and(|n| n <= 2), "seed {seed}, {backend:?}: {f:?}");
            // And not by standing at the ceiling: what is there is needed, with some to spare.
            let needed = backend.needed(0.8 * backend.capacity(BOUNDS.max), 1.0, BOUNDS.max);
            assert!((needed..=needed + 4).contains(&f.most_workers), "seed {seed}: {} of {needed}", f.most_workers);
        }
    }
}

#[test]
fn a_constant_load_makes_no_reversal_in_10_minutes() {
    for share in [0.1, 0.3, 0.6, 0.8] {
        let constant = Load { shape: Shape::Constant(share), ..load("constant") };
        for backend in [EVEN, SATURATING, Backend { spread: Spread::Exponential, ..SATURATING }] {
            for seed in SEEDS.take(6) {
                let (f, _) = argon(&constant, &backend, seed);
                assert_eq!(f.reversals, 0, "{share}, seed {seed}, {backend:?}: {f:?}");
            }
        }
    }
}

#[test]
fn a_square_wave_makes_one_reversal_per_edge() {
    let square = load("square");
    let edges = square.phases().len();
    for backend in [EVEN, SATURATING] {
        for seed in SEEDS.take(10) {
            let (f, policy) = argon(&square, &backend, seed);
            assert_eq!(f.reversals, edges - 1, "seed {seed}, {backend:?}: {f:?}"); // the first edge has nothing to reverse
            for phase in square.phases() {
                let moves: Vec<Direction> =
                    policy.decisions.iter().filter(|d| d.changed && phase.holds(d.at.as_secs_f64())).map(|d| d.direction).collect();
                let wanted = if phase.change == loads::Change::Rises { Direction::Up } else { Direction::Down };
                assert!(!moves.is_empty() && moves.iter().all(|m| *m == wanted), "seed {seed}, from {}: {moves:?}", phase.from);
            }
        }
    }
}

#[test]
fn an_outage_is_not_scaled_into() {
    let outage = load("outage");
    for seed in SEEDS.take(6) {
        let (f, policy) = argon(&outage, &SATURATING, seed);
        let during = policy.decisions.iter().filter(|d| (122.0..180.0).contains(&d.at.as_secs_f64()));
        assert!(during.clone().all(|d| !d.changed), "seed {seed}");
        assert!(during.clone().filter(|d| d.reason == Reason::Outage).count() >= 55, "seed {seed}");
        assert!(f.drain_s.is_some_and(|s| s < 1.5 * f.drain_bound_s), "seed {seed}: {f:?}");
    }
}

#[test]
fn a_backend_at_its_end_is_given_the_workers_that_it_can_use() {
    // Throughput falls again beyond 11 workers, and 30 % more is asked for than there is.
    let overload = Load { shape: Shape::Constant(1.3), seconds: 300.0, ..load("constant") };
    let falling = Backend { knee: f64::INFINITY, drag: 0.008, ..EVEN };
    for seed in SEEDS.take(6) {
        let (f, policy) = argon(&overload, &falling, seed);
        let last = policy.decisions.last().unwrap();
        assert!((8..=13).contains(&last.target), "seed {seed}: {last:?}");
        let best = falling.capacity(BOUNDS.max) * overload.seconds;
        assert!(real(f.completed) > 0.9 * best, "seed {seed}: {} of {best}", f.completed);
    }
}

#[test]
fn jobs_that_suddenly_take_minutes_are_no_outage_for_good() {
    // From 50 ms to 30 s a job: at first that looks as if nothing ended any more.
    let rate = 0.3;
    let backend = Backend { spread: Spread::Constant, ..EVEN };
    let share = rate / backend.capacity(BOUNDS.max);
    let slow = Load { shape: Shape::Constant(share), heavier: Some((60.0, 900.0, 600.0)), seconds: 900.0, ..load("constant") };
    for seed in SEEDS.take(3) {
        let (f, policy) = argon(&slow, &backend, seed);
        let late = &policy.decisions[600..];
        let mean = |of: fn(&argon::pool::scaler::Decision) -> f64| late.iter().map(of).sum::<f64>() / real(late.len() as u64);
        let (service, workers) = (mean(|d| d.inputs.service_time.as_secs_f64()), mean(|d| f64::from(d.target)));
        assert!((25.0..36.0).contains(&service) && workers > 9.0, "seed {seed}: {service} s, {workers} workers");
        assert!(late.iter().all(|d| d.inputs.backlog < 20) && !f.unbounded, "seed {seed}: {f:?}");
    }
}

#[test]
fn the_same_seed_gives_the_same_run() {
    let burst = Load { seconds: 120.0, ..load("burst") };
    let text = |seed| serde_json::to_string(&argon(&burst, &SATURATING, seed).0).unwrap();
    assert_eq!(text(7), text(7));
    assert_ne!(text(7), text(8));
}

#[test]
fn the_simulated_queue_is_a_queue() {
    // One worker, exponential work at half of what it can do: the wait of M/M/1 is rho / (mu - lambda).
    let backend = Backend { service: 0.1, knee: f64::INFINITY, drag: 0.0, spread: Spread::Exponential };
    let single = Load { shape: Shape::Constant(0.5), seconds: 20_000.0, ..load("constant") };
    let trace = sim::run(&single, &backend, Rule::Fixed(1).policy(BOUNDS).as_mut(), 1, 1, 3);
    let mean = trace.waits.iter().sum::<f64>() / real(trace.waits.len() as u64);
    assert!((mean - 0.1).abs() < 0.01, "{mean}");
    assert!((trace.worker_seconds - 20_000.0).abs() < 1e-6);
}

#[test]
fn other_rules_do_what_they_are_known_for() {
    let step = load("step");
    let (fixed, _) = one(&step, &SATURATING, Rule::Fixed(5), BOUNDS, 1);
    assert!(fixed.unbounded && fixed.settling_s.is_none());
    let (threshold, _) = one(&step, &SATURATING, Rule::Threshold, BOUNDS, 1);
    let (hpa, _) = one(&step, &SATURATING, Rule::Hpa, BOUNDS, 1);
    let (ours, _) = argon(&step, &SATURATING, 1);
    assert!(threshold.most_backlog > 1_000 && hpa.settling_s > ours.settling_s && threshold.settling_s > ours.settling_s);
    assert!(ours.wait_p99_s < hpa.wait_p99_s && ours.cost() < hpa.cost());
}

#[test]
fn the_page_of_the_scaler_names_every_load_and_rule_and_its_pictures_are_there() {
    let page = include_str!("../../../../docs/scaler.md");
    for load in LOADS {
        assert!(
            page.contains(&format!("| {} |", load.name)) && page.contains(&format!("images/scaler-{}.svg", load.name)),
            "{}",
            load.name
        );
        let picture = Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("../docs/images/scaler-{}.svg", load.name));
        assert!(picture.is_file(), "{}", picture.display());
    }
    for rule in RULES {
        assert!(page.contains(&format!("| {} |", rule.name())), "{}", rule.name());
    }
    // Its commands are ones that the parser takes.
    let commands = page.lines().flat_map(|line| line.split('`')).filter(|code| code.starts_with("argon-loadgen "));
    for command in commands.clone().filter(|command| !command.contains("--help")) {
        crate::args::Cli::try_parse_from(command.split_whitespace()).unwrap();
    }
    assert!(commands.count() >= 3);
    // Its constants are the code's.
    for (name, value) in [("drain_target", 15), ("hold_down", 30)] {
        assert!(page.contains(&format!("{value} s")), "{name}");
    }
    let settings = argon::pool::scaler::ScalerSettings::new(1, 20, 5);
    assert_eq!((settings.drain_target.as_secs(), settings.hold_down.as_secs()), (15, 30));
}
