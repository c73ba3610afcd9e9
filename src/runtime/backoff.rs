//! Owns: how long to wait before a repeat. Pure: the attempt and a random fraction go in, a pause comes out.
//! Does not own: whether to repeat at all (the caller's policy), or sleeping.

use std::time::Duration;

/// Exponential back-off with full jitter: a uniform pause between nothing and an exponentially growing ceiling, so that
/// callers that failed together do not come back together.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Backoff {
    /// Ceiling of the pause after the first failure.
    pub base: Duration,
    /// The ceiling never grows beyond this.
    pub cap: Duration,
}

impl Backoff {
    /// The longest pause after `attempt` failures (counted from 1).
    pub fn ceiling(&self, attempt: u32) -> Duration {
        let doublings = attempt.saturating_sub(1).min(31);
        self.base.saturating_mul(1 << doublings).min(self.cap)
    }

    /// The pause after `attempt` failures (counted from 1); `unit_random` is a fraction in `0.0..1.0`, values outside are clamped.
    pub fn delay(&self, attempt: u32, unit_random: f64) -> Duration {
        let unit = if unit_random.is_nan() { 1.0 } else { unit_random.clamp(0.0, 1.0) };
        self.ceiling(attempt).mul_f64(unit)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const B: Backoff = Backoff { base: Duration::from_millis(100), cap: Duration::from_secs(10) };

    #[test]
    fn the_ceiling_doubles_until_the_cap() {
        let ceilings: Vec<u128> = (0..=9).map(|attempt| B.ceiling(attempt).as_millis()).collect();
        assert_eq!(ceilings, [100, 100, 200, 400, 800, 1600, 3200, 6400, 10_000, 10_000]);
    }

    #[test]
    fn odd_fractions_never_panic() {
        assert_eq!(B.delay(1, -1.0), Duration::ZERO);
        assert_eq!(B.delay(1, f64::NAN), Duration::from_millis(100));
        assert_eq!(B.delay(u32::MAX, f64::INFINITY), Duration::from_secs(10));
    }

    proptest! {
        #[test]
        fn a_pause_lies_between_nothing_and_the_cap(base in 0u64..10_000, cap in 0u64..100_000, attempt: u32, unit in 0.0f64..1.0) {
            let backoff = Backoff { base: Duration::from_millis(base), cap: Duration::from_millis(cap) };
            prop_assert!(backoff.delay(attempt, unit) <= backoff.cap);
            prop_assert!(backoff.ceiling(attempt) <= backoff.ceiling(attempt.saturating_add(1)));
        }
    }
}
