//! The scaler on a plant without chance: fluid jobs, workers, a backend. With chance, and against other rules: `argon-loadgen bench scaler`.

use proptest::prelude::*;

use super::*;

const BOUNDS: (u16, u16, u16) = (1, 20, 5);

/// Workers that do `rate` jobs a second with `service` seconds of work each, of which the backend finishes at most `capacity` a second.
#[derive(Debug, Clone)]
struct Plant {
    scaler: Scaler,
    at: f64,
    arrived: f64,
    done: f64,
    busy: f64,
    backlog: f64,
    errors: f64,
    workers: u16,
}

#[derive(Debug, Clone, Copy)]
struct Second {
    rate: f64,
    service: f64,
    capacity: f64,
    /// Failed share of the attempts.
    failing: f64,
}

const EASY: Second = Second { rate: 0.0, service: 0.1, capacity: f64::INFINITY, failing: 0.0 };

impl Plant {
    fn new(settings: ScalerSettings) -> Self {
        let workers = settings.base;
        let scaler = Scaler::new(settings);
        Self { scaler, at: 0.0, arrived: 0.0, done: 0.0, busy: 0.0, backlog: 0.0, errors: 0.0, workers }
    }

    fn standard() -> Self {
        Self::new(ScalerSettings::new(BOUNDS.0, BOUNDS.1, BOUNDS.2))
    }

    fn measured(&self) -> Measured {
        Measured {
            at: Duration::from_secs_f64(self.at),
            arrived: self.arrived as u64,
            completed: self.done as u64,
            busy: Duration::from_secs_f64(self.busy),
            running: Vec::new(),
            backlog: self.backlog as u64,
            workers: self.workers,
            errors: self.errors as u64,
        }
    }

    /// One second, and a look at its end.
    fn second(&mut self, s: Second) -> Decision {
        self.at += 1.0;
        self.arrived += s.rate;
        self.backlog += s.rate;
        let possible = (f64::from(self.workers) / s.service).min(s.capacity);
        let tried = possible.min(self.backlog);
        let is_short = tried < self.backlog;
        let done = tried * (1.0 - s.failing);
        self.done += done;
        self.errors += tried - done;
        self.arrived += tried - done; // they come back
        self.backlog -= done;
        self.busy += if is_short { f64::from(self.workers) } else { tried * s.service };
        let decision = self.scaler.step(&self.measured());
        if !decision.dry_run {
            self.workers = decision.target;
        }
        decision
    }

    fn run(&mut self, seconds: u32, s: Second) -> Vec<Decision> {
        (0..seconds).map(|_| self.second(s)).collect()
    }
}

fn reversals(decisions: &[Decision]) -> usize {
    let moves: Vec<Direction> = decisions.iter().filter(|d| d.changed).map(|d| d.direction).collect();
    moves.windows(2).filter(|pair| pair[0] != pair[1]).count()
}

#[test]
fn the_size_is_what_the_load_needs_with_some_to_spare() {
    for (rate, service, at_least, at_most, limit) in [
        (0.0, 0.1, 5, 5, None),
        (10.0, 0.1, 5, 5, None),
        (60.0, 0.1, 7, 8, None),
        (100.0, 0.1, 11, 13, None),
        (160.0, 0.1, 17, 20, None),
        (1_000.0, 0.01, 11, 13, None),
        (2.0, 5.0, 11, 15, None),
        (900.0, 0.1, 20, 20, Some(Limit::Max)),
    ] {
        let mut plant = Plant::standard();
        let decisions = plant.run(120, Second { rate, service, ..EASY });
        let last = decisions.last().unwrap();
        assert!((at_least..=at_most).contains(&last.target), "{rate}/s of {service} s: {last:?}");
        assert_eq!(reversals(&decisions), 0, "{rate}/s of {service} s");
        if limit.is_some() {
            assert_eq!(last.limited_by, limit);
        }
    }
}

#[test]
fn more_at_once_and_fewer_only_when_they_have_been_enough_for_a_while() {
    let mut plant = Plant::standard();
    plant.run(60, Second { rate: 20.0, ..EASY });
    let up = plant.run(60, Second { rate: 160.0, ..EASY });
    let first = up.iter().position(|d| d.changed).unwrap();
    assert!(first <= 2 && up.iter().filter(|d| d.changed).count() <= 3);
    let grown = plant.scaler.target();
    assert!(grown >= 17);
    let down = plant.run(60, Second { rate: 20.0, ..EASY });
    let first = down.iter().position(|d| d.changed).unwrap();
    assert!((25..45).contains(&first), "after {first} s");
    assert_eq!((plant.scaler.target(), down[first].reason), (5, Reason::Idle), "the base size, not less");
    assert_eq!(down[5].limited_by, Some(Limit::HoldDown));
}

#[test]
fn a_backlog_is_worked_off_within_its_time() {
    let mut plant = Plant::standard();
    plant.run(30, Second { rate: 20.0, ..EASY });
    plant.backlog += 1_000.0;
    plant.arrived += 1_000.0;
    let decisions = plant.run(25, Second { rate: 20.0, ..EASY });
    let up = decisions.iter().find(|d| d.changed).unwrap();
    assert!(up.reason == Reason::Backlog && (8..=11).contains(&up.target), "two for the load, seven for the backlog: {up:?}");
    assert!(plant.backlog < 50.0, "{}", plant.backlog);
    // A few hundred jobs that these workers do by and by are no reason.
    let mut plant = Plant::standard();
    plant.run(30, Second { rate: 20.0, ..EASY });
    plant.backlog += 200.0;
    plant.arrived += 200.0;
    assert!(plant.run(30, Second { rate: 20.0, ..EASY }).iter().all(|d| !d.changed));
}

#[test]
fn an_even_rise_is_met_before_it_is_there() {
    let mut plant = Plant::standard();
    plant.run(60, Second { rate: 20.0, ..EASY });
    let mut forecasts = 0;
    for i in 0..200 {
        let decision = plant.second(Second { rate: 20.0 + 0.7 * f64::from(i), ..EASY });
        assert!(decision.inputs.forecast_rate >= decision.inputs.arrival_rate);
        forecasts += usize::from(decision.changed && decision.reason == Reason::Forecast);
    }
    assert!(forecasts >= 1);
    assert!(plant.backlog < 20.0, "{}", plant.backlog);
    // A fall is no forecast.
    for i in 0..200 {
        let decision = plant.second(Second { rate: 160.0 - 0.7 * f64::from(i), ..EASY });
        if i > 40 {
            assert!((decision.inputs.forecast_rate - decision.inputs.arrival_rate).abs() < 1e-9);
        }
    }
}

#[test]
fn an_outage_is_waited_out_and_then_worked_off() {
    for (failing, seconds) in [(true, 60), (false, 60), (true, 4)] {
        let mut plant = Plant::standard();
        plant.run(90, Second { rate: 100.0, ..EASY });
        let before = plant.scaler.target();
        for i in 0..seconds {
            // Attempts fail, or hang: either way nothing is done.
            plant.at += 1.0;
            plant.arrived += 100.0;
            plant.backlog += 100.0;
            plant.busy += f64::from(before);
            plant.errors += if failing { 50.0 } else { 0.0 };
            plant.arrived += if failing { 50.0 } else { 0.0 };
            let decision = plant.scaler.step(&plant.measured());
            assert_eq!(decision.target, before, "second {i}: {decision:?}");
            assert_eq!((decision.reason, decision.limited_by), (Reason::Outage, Some(Limit::Outage)));
        }
        let after = plant.run(10, Second { rate: 100.0, ..EASY });
        // A few hundred jobs are done by and by; what was left of a minute needs more.
        assert!(seconds < 60 || after.iter().any(|d| d.changed && d.direction == Direction::Up), "{:?}", after.last());
        assert!(after.iter().all(|d| d.reason != Reason::Errors && d.direction != Direction::Down), "{after:?}");
        plant.run(120, Second { rate: 100.0, ..EASY });
        assert!(plant.backlog < 200.0);
    }
}

#[test]
fn a_backend_that_takes_in_no_more_is_not_pressed() {
    // 60 jobs a second and no more, whoever asks: six workers' worth.
    let overload = Second { rate: 150.0, capacity: 60.0, ..EASY };
    let mut plant = Plant::standard();
    let decisions = plant.run(600, overload);
    assert!(decisions.iter().any(|d| matches!(d.reason, Reason::NoGain | Reason::SlowService)));
    let last = decisions.last().unwrap();
    assert!((5..=9).contains(&last.target), "{last:?}");
    assert_eq!((last.limited_by, last.inputs.congestion_cap), (Some(Limit::Congestion), Some(last.target)));
    let late = decisions.iter().skip(120).filter(|d| d.changed && d.direction == Direction::Up).count();
    assert!(late <= 1, "what has been found out is tried again after five minutes, not before");
    // It takes in more again: so does the pool.
    let after = plant.run(120, Second { rate: 150.0, ..EASY });
    assert!(after.last().unwrap().target >= 16, "{:?}", after.last());
}

#[test]
fn jobs_that_take_longer_make_the_pool_smaller_only_if_fewer_workers_do_as_much() {
    // The backend gets slower for all: a quarter of what it did, however many ask.
    let settings = ScalerSettings::new(2, 10, 10);
    let mut plant = Plant::new(settings.clone());
    plant.run(60, Second { rate: 120.0, ..EASY });
    let slow = plant.run(120, Second { rate: 120.0, capacity: 25.0, service: 0.1, ..EASY });
    assert!(slow.iter().any(|d| d.changed && d.reason == Reason::SlowService), "{:?}", slow.last());
    assert!((2..10).contains(&plant.scaler.target()), "under the base size, {}", plant.scaler.target());
    // It is over: the base size at least.
    plant.run(180, Second { rate: 50.0, ..EASY });
    assert_eq!(plant.scaler.target(), 10);

    // The jobs themselves are heavier: fewer workers do less, so their number is restored.
    let mut plant = Plant::new(settings);
    plant.run(60, Second { rate: 120.0, ..EASY });
    let heavy = plant.run(120, Second { rate: 120.0, service: 0.4, ..EASY });
    assert_eq!(plant.scaler.target(), 10);
    assert!(heavy.iter().filter(|d| d.changed).count() <= 2, "tried once");
}

#[test]
fn failing_attempts_make_the_pool_smaller_and_it_comes_back() {
    let mut plant = Plant::standard();
    plant.run(90, Second { rate: 160.0, ..EASY });
    let before = plant.scaler.target();
    let failing = plant.run(25, Second { rate: 100.0, failing: 0.4, ..EASY });
    let low = plant.scaler.target();
    assert!(failing.iter().any(|d| d.changed && d.reason == Reason::Errors));
    assert!(low < before && low >= before / 2, "{before} to {low}");
    assert!(failing.iter().all(|d| d.direction != Direction::Up));
    plant.run(120, Second { rate: 160.0, ..EASY });
    assert!(plant.scaler.target() >= 17, "{}", plant.scaler.target());
    // A share that has always failed is no sign of anything.
    let mut plant = Plant::standard();
    plant.run(120, Second { rate: 20.0, failing: 0.05, ..EASY });
    let steady = plant.run(60, Second { rate: 140.0, failing: 0.05, ..EASY });
    assert!(steady.iter().all(|d| d.reason != Reason::Errors));
}

#[test]
fn a_pin_is_an_order() {
    for (enabled, dry_run) in [(true, false), (false, false), (true, true)] {
        let mut plant = Plant::new(ScalerSettings { enabled, dry_run, ..ScalerSettings::new(2, 12, 5) });
        plant.run(10, Second { rate: 20.0, ..EASY });
        for (asked, got) in [(3, 3), (0, 2), (99, 12)] {
            assert_eq!(plant.scaler.pin(Duration::ZERO, asked, None), got);
            let decisions = plant.run(20, Second { rate: 200.0, ..EASY });
            assert!(decisions.iter().all(|d| (d.target, d.reason, d.dry_run) == (got, Reason::Pinned, false)));
            assert_eq!(plant.workers, got);
        }
        plant.scaler.release();
        let released = plant.run(60, Second { rate: 20.0, ..EASY });
        assert!(released.iter().all(|d| d.reason != Reason::Pinned));
    }
    let mut plant = Plant::standard();
    plant.run(5, EASY);
    plant.scaler.pin(Duration::from_secs(5), 9, Some(Duration::from_secs(15)));
    assert_eq!(plant.scaler.pinned(), Some((9, Some(Duration::from_secs(15)))));
    let decisions = plant.run(20, EASY);
    assert_eq!(decisions.iter().filter(|d| d.reason == Reason::Pinned).count(), 9, "until it ends");
    assert_eq!(plant.scaler.pinned(), None);
    // One that is over already is none; a pool that was pinned under its base size gets it back.
    plant.scaler.pin(Duration::from_secs(30), 9, Some(Duration::from_secs(30)));
    assert_eq!(plant.scaler.pinned(), None);
    plant.scaler.pin(Duration::from_secs(30), 1, None);
    plant.run(3, EASY);
    plant.scaler.release();
    let back = plant.second(EASY);
    assert_eq!((back.target, back.reason, back.limited_by), (5, Reason::Bounds, Some(Limit::Base)));
}

#[test]
fn switched_off_it_keeps_the_base_size_and_in_a_dry_run_it_only_talks() {
    let mut off = Plant::new(ScalerSettings { enabled: false, ..ScalerSettings::new(1, 20, 5) });
    assert!(off.run(60, Second { rate: 160.0, ..EASY }).iter().all(|d| d.target == 5 && d.reason == Reason::Disabled));
    let mut dry = Plant::new(ScalerSettings { dry_run: true, ..ScalerSettings::new(1, 20, 5) });
    let said = dry.run(60, Second { rate: 160.0, ..EASY });
    assert!(said.iter().all(|d| d.dry_run && d.actual == 5));
    let changes = said.iter().filter(|d| d.changed).count();
    assert!((1..=4).contains(&changes), "it is said once, not each second: {changes}");
    assert!(said.iter().skip(3).all(|d| d.direction == Direction::Up && d.target > 15), "{:?}", said.last());
    assert_eq!(dry.workers, 5);
}

#[test]
fn time_that_stands_still_and_counts_that_go_back_change_nothing() {
    let mut plant = Plant::standard();
    plant.run(60, Second { rate: 100.0, ..EASY });
    let m = plant.measured();
    let before = plant.scaler.target();
    for _ in 0..20 {
        assert!(!plant.scaler.step(&m).changed);
    }
    let at = m.at + Duration::from_secs(1);
    let decision = plant.scaler.step(&Measured { at, workers: before, ..Measured::default() });
    assert_eq!(decision.target, before);
    let earlier = Measured { at: Duration::from_secs(1), ..m };
    assert_eq!(plant.scaler.step(&earlier).target, before);
}

#[test]
fn contradicting_bounds_are_mended() {
    let fields = |s: ScalerSettings| (s.min, s.max, s.base);
    assert_eq!(fields(ScalerSettings::new(0, 0, 0)), (1, 1, 1));
    assert_eq!(fields(ScalerSettings::new(5, 3, 9)), (5, 5, 5));
    assert_eq!(fields(ScalerSettings::new(1, 20, 30)), (1, 20, 20));
}

#[test]
fn a_decision_reads_in_json_as_documented() {
    let mut plant = Plant::standard();
    let decisions = plant.run(4, Second { rate: 160.0, ..EASY });
    let up = serde_json::to_value(decisions.iter().find(|d| d.changed).unwrap()).unwrap();
    assert_eq!((&up["direction"], &up["reason"]), (&"up".into(), &"load".into()));
    assert_eq!((&up["actual"], &up["changed"], &up["dry_run"]), (&5.into(), &true.into(), &false.into()));
    assert_eq!(up["inputs"]["drain_target_ms"], 15_000);
    for name in ["at_ms", "target", "limited_by"] {
        assert!(up.get(name).is_some(), "{name}");
    }
    for name in ["arrival_rate", "forecast_rate", "throughput", "service_time_ms", "utilisation", "error_share", "wanted", "congestion_cap"]
    {
        assert!(up["inputs"].get(name).is_some(), "{name}");
    }
}

/// What may be measured, sense or nonsense.
#[derive(Debug, Clone)]
struct Odd {
    millis: u64,
    arrived: u64,
    completed: u64,
    busy_ms: u64,
    running_ms: Vec<u64>,
    backlog: u64,
    errors: u64,
    goes_back: bool,
    pin: Option<Option<u16>>,
}

fn odd() -> impl Strategy<Value = Odd> {
    let counts = (prop_oneof![Just(0), 0..2_000u64], prop_oneof![Just(0), 0..2_000u64], prop_oneof![Just(0), 0..100u64]);
    let work = (0..30_000u64, proptest::collection::vec(0..100_000u64, 0..4), prop_oneof![Just(0), 0..100_000u64]);
    let pin = prop_oneof![20 => Just(None), 1 => Just(Some(None)), 1 => (0..30u16).prop_map(|n| Some(Some(n)))];
    (prop_oneof![8 => Just(1_000), 1 => 0..5_000u64], counts, work, proptest::bool::weighted(0.05), pin).prop_map(
        |(millis, (arrived, completed, errors), (busy_ms, running_ms, backlog), goes_back, pin)| Odd {
            millis,
            arrived,
            completed,
            busy_ms,
            running_ms,
            backlog,
            errors,
            goes_back,
            pin,
        },
    )
}

proptest! {
    /// Whatever is measured: the bounds, the base size, the pin, the forecast, and the same answers again.
    #[test]
    fn what_always_holds(
        bounds in (1..6u16, 0..20u16, 0..20u16), dry_run in proptest::bool::weighted(0.1), looks in proptest::collection::vec(odd(), 1..200)
    ) {
        let settings = ScalerSettings { dry_run, ..ScalerSettings::new(bounds.0, bounds.0 + bounds.1, bounds.2) };
        let mut scaler = Scaler::new(settings.clone());
        let mut twin = scaler.clone();
        let mut m = Measured { workers: settings.base, ..Measured::default() };
        let mut pinned = None;
        for look in looks {
            m.at += Duration::from_millis(look.millis);
            if look.goes_back {
                m.arrived /= 2;
                m.completed /= 2;
            }
            m.arrived += look.arrived;
            m.completed += look.completed;
            m.busy += Duration::from_millis(look.busy_ms);
            m.running = look.running_ms.into_iter().map(Duration::from_millis).collect();
            m.backlog = look.backlog;
            m.errors += look.errors;
            match look.pin {
                Some(Some(n)) => {
                    pinned = Some(scaler.pin(m.at, n, None));
                    twin.pin(m.at, n, None);
                }
                Some(None) => {
                    pinned = None;
                    scaler.release();
                    twin.release();
                }
                None => {}
            }
            let decision = scaler.step(&m);
            prop_assert_eq!(&decision, &twin.step(&m), "the same calls, the same decisions");
            prop_assert!((settings.min..=settings.max).contains(&decision.target));
            prop_assert!(decision.inputs.forecast_rate >= decision.inputs.arrival_rate);
            prop_assert!(decision.inputs.wanted.is_finite() && decision.inputs.wanted >= 0.0);
            prop_assert!((0.0..=1.0).contains(&decision.inputs.utilisation) && (0.0..=1.0).contains(&decision.inputs.error_share));
            prop_assert!(decision.dry_run || decision.changed == (decision.direction != Direction::Hold));
            match pinned {
                Some(n) => prop_assert_eq!((decision.target, decision.reason), (n, Reason::Pinned)),
                None => prop_assert!(decision.reason != Reason::Pinned),
            }
            // Under the base size only by congestion, or for the look at which what led there ends.
            if decision.direction == Direction::Down && pinned.is_none() && decision.target < settings.base {
                prop_assert!(decision.limited_by == Some(Limit::Congestion) || decision.inputs.congestion_cap.is_some(), "{:?}", decision);
            }
            if !decision.dry_run {
                m.workers = decision.target;
            }
        }
    }

    /// The forecast takes part in what is wanted by adding only.
    #[test]
    fn a_forecast_never_lowers(rates in proptest::collection::vec(0..400u32, 40..80), backlog in 0..10_000u64) {
        let mut plant = Plant::standard();
        for rate in rates {
            plant.second(Second { rate: f64::from(rate), ..EASY });
        }
        let demand = Demand::of(&plant.scaler.history, backlog, Duration::from_secs(15));
        let without = Demand { rise: 0.0, ..demand };
        prop_assert!(demand.rise >= 0.0 && demand.wanted() >= without.wanted() && demand.likely() >= without.likely());
    }

    /// Any constant load, done by the seconds with a little unrest, moves the size in one direction only.
    #[test]
    fn a_constant_load_makes_no_reversal(workers in 0.1..18.0f64, service in 0.01..1.0f64, unrest in 0.0..0.08f64, seed in 0..1_000u32) {
        let mut plant = Plant::standard();
        let mut decisions = Vec::new();
        for i in 0..600u32 {
            // Not random, and without a period that a window could see.
            let wave = (f64::from(i.wrapping_mul(7_919).wrapping_add(seed) % 1_009) / 504.5 - 1.0) * unrest;
            decisions.push(plant.second(Second { rate: workers / service * (1.0 + wave), service, ..EASY }));
        }
        prop_assert_eq!(reversals(&decisions), 0);
        prop_assert!(decisions.iter().skip(60).filter(|d| d.changed).count() <= 2);
    }
}
