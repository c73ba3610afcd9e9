//! Owns: latencies of operations and their percentiles. Does not own from when to when a latency runs.

use hdrhistogram::Histogram;
use serde::Serialize;

/// Longest latency that is told apart: an hour, in microseconds.
const HIGHEST_US: u64 = 3_600_000_000;

/// A histogram of microseconds, three digits exact.
#[derive(Debug, Clone)]
pub(crate) struct Latencies(Option<Histogram<u64>>);

/// Percentiles, in milliseconds.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize)]
pub(crate) struct Percentiles {
    pub count: u64,
    pub mean: f64,
    pub p50: f64,
    pub p90: f64,
    pub p99: f64,
    pub p999: f64,
    pub max: f64,
}

impl Latencies {
    /// Empty.
    pub(crate) fn new() -> Self {
        Self(Histogram::new_with_bounds(1, HIGHEST_US, 3).ok()) // these bounds are valid
    }

    /// `count` operations that took `us` microseconds each.
    pub(crate) fn record(&mut self, us: u64, count: u64) {
        if let Some(histogram) = &mut self.0 {
            histogram.saturating_record_n(us, count);
        }
    }

    /// Adds another one.
    pub(crate) fn merge(&mut self, other: &Self) {
        if let (Some(own), Some(other)) = (&mut self.0, &other.0) {
            let _ = own.add(other); // the same bounds always fit
        }
    }

    /// What it says; zeros when empty.
    pub(crate) fn percentiles(&self) -> Percentiles {
        let Some(histogram) = self.0.as_ref().filter(|histogram| !histogram.is_empty()) else { return Percentiles::default() };
        let at = |quantile: f64| millis(histogram.value_at_quantile(quantile));
        Percentiles {
            count: histogram.len(),
            mean: (histogram.mean() / 1000.0 * 1000.0).round() / 1000.0,
            p50: at(0.5),
            p90: at(0.9),
            p99: at(0.99),
            p999: at(0.999),
            max: millis(histogram.max()),
        }
    }
}

#[allow(clippy::cast_precision_loss)] // an hour at most
fn millis(us: u64) -> f64 {
    us as f64 / 1000.0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_are_those_of_the_values() {
        let mut latencies = Latencies::new();
        for us in 1..=1000 {
            latencies.record(us * 1000, 1);
        }
        let Percentiles { count, p50, p99, max, mean, .. } = latencies.percentiles();
        assert_eq!(count, 1000);
        for (found, wanted) in [(p50, 500.0), (p99, 990.0), (max, 1000.0), (mean, 500.5)] {
            assert!((found - wanted).abs() <= wanted / 500.0, "{found} instead of {wanted}");
        }
    }

    #[test]
    fn merged_histograms_hold_both_and_nothing_is_ever_too_long() {
        let (mut a, mut b) = (Latencies::new(), Latencies::new());
        a.record(0, 2);
        b.record(u64::MAX, 1);
        a.merge(&b);
        let all = a.percentiles();
        assert_eq!(all.count, 3);
        assert!(all.max >= 3_599_000.0 && all.p50 < 0.01, "{all:?}");
        assert_eq!(Latencies::new().percentiles(), Percentiles::default());
    }
}
