//! Benchmarks of the engine as a process of its own, on servers started for them.
//!
//! Owns: which benchmark runs. Does not own: the servers and commands that all share ([`rig`]), what is watched from outside
//! ([`watch`]), the speed of light ([`ceiling`]).

mod ceiling;
mod delays;
mod documents;
mod idle;
mod live;
mod machine;
mod pipeline;
mod queue;
mod repeated;
mod restore;
mod rig;
mod scaler;
mod session;
mod watch;

use argon::fault::Result;

use crate::args::Bench;
use crate::report::Report;

/// Runs one benchmark.
pub(crate) async fn run(bench: Bench) -> Result<Report> {
    match bench {
        Bench::Pipeline(args) => Box::pin(pipeline::run(args)).await,
        Bench::Live(args) => Box::pin(live::run(args)).await,
        Bench::Repeated(args) => Box::pin(repeated::run(args)).await,
        Bench::Restore(args) => Box::pin(restore::run(args)).await,
        Bench::Idle(args) => Box::pin(idle::run(args)).await,
        Bench::Scaler(args) => scaler::run(args).await,
        Bench::Queue(args) => Box::pin(queue::run(args)).await,
    }
}

/// What happens now, for a person who waits; stdout stays free for the report.
fn say(what: &str) {
    eprintln!("bench: {what}");
}

/// The middle one; the mean of the two in the middle of an even number; 0 of none.
fn median(values: impl IntoIterator<Item = f64>) -> f64 {
    let mut values: Vec<f64> = values.into_iter().collect();
    values.sort_by(f64::total_cmp);
    match (values.get(values.len().saturating_sub(1) / 2), values.get(values.len() / 2)) {
        (Some(low), Some(high)) => f64::midpoint(*low, *high),
        _ => 0.0,
    }
}

/// A figure of bytes or counts as a floating point number.
#[allow(clippy::cast_precision_loss)] // far below 2^52
fn real(n: u64) -> f64 {
    n as f64
}

/// `n / of`, or 0 of nothing.
fn ratio(n: f64, of: f64) -> f64 {
    if of > 0.0 { n / of } else { 0.0 }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    #[allow(clippy::float_cmp)] // halves are exact
    fn the_median_is_the_middle_one() {
        for (values, wanted) in [(vec![], 0.0), (vec![5.0], 5.0), (vec![9.0, 1.0, 4.0], 4.0), (vec![4.0, 1.0, 9.0, 2.0], 3.0)] {
            assert_eq!(median(values), wanted);
        }
    }
}
