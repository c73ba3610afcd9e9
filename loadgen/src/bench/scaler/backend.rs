//! Owns: how fast the simulated MongoDB and store are. Does not own jobs or workers.

use super::random::Random;

/// What the workers share.
#[derive(Debug, Clone, Copy)]
pub(super) struct Backend {
    /// Seconds of a job that runs alone, on average.
    pub service: f64,
    /// Busy workers at which throughput stops growing; infinite: never.
    pub knee: f64,
    /// How much each worker past the first costs all others: above 0 throughput falls again beyond the knee.
    pub drag: f64,
    pub spread: Spread,
}

/// How the work of jobs differs.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) enum Spread {
    Constant,
    /// Log-normal with this coefficient of variation.
    LogNormal(f64),
    Exponential,
}

impl Spread {
    /// Work of one job in multiples of the average.
    pub(super) fn draw(self, random: &mut Random) -> f64 {
        match self {
            Spread::Constant => 1.0,
            Spread::Exponential => random.exponential(),
            Spread::LogNormal(cv) => {
                let sigma2 = (1.0 + cv * cv).ln();
                (random.normal() * sigma2.sqrt() - sigma2 / 2.0).exp()
            }
        }
    }
}

impl Backend {
    /// Times as long as alone that a job takes among `busy`: a corner at the knee that is rounded as real ones are.
    pub(super) fn slowdown(&self, busy: f64) -> f64 {
        let queueing = (1.0 + (busy / self.knee).powi(4)).sqrt().sqrt();
        queueing * (1.0 + self.drag * busy * (busy - 1.0).max(0.0))
    }

    /// Jobs a second that `workers` finish when all are busy and jobs are `heavier` than usual.
    pub(super) fn throughput(&self, workers: f64, heavier: f64) -> f64 {
        workers / (self.service * heavier * self.slowdown(workers))
    }

    /// Most jobs a second, with up to `max` workers.
    pub(super) fn capacity(&self, max: u16) -> f64 {
        (1..=max).map(|n| self.throughput(f64::from(n), 1.0)).fold(0.0, f64::max)
    }

    /// Fewest workers that finish `rate` jobs a second, or the ones that finish most.
    pub(super) fn needed(&self, rate: f64, heavier: f64, max: u16) -> u16 {
        let at = |n: u16| self.throughput(f64::from(n), heavier);
        (1..=max).find(|&n| at(n) >= rate).unwrap_or_else(|| (1..=max).fold(1, |best, n| if at(n) > at(best) { n } else { best }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn throughput_stops_growing_at_the_knee_or_falls_beyond_it() {
        let flat = Backend { service: 0.1, knee: 10.0, drag: 0.0, spread: Spread::Constant };
        assert!(flat.throughput(20.0, 1.0) < 1.2 * flat.throughput(10.0, 1.0) && flat.throughput(20.0, 1.0) > flat.throughput(10.0, 1.0));
        let falling = Backend { drag: 0.01, knee: f64::INFINITY, ..flat };
        assert!(falling.throughput(20.0, 1.0) < falling.throughput(10.0, 1.0));
        assert_eq!(falling.needed(1e9, 1.0, 20), 10);
        let even = Backend { drag: 0.0, knee: f64::INFINITY, ..flat };
        assert_eq!((even.needed(95.0, 1.0, 20), even.needed(95.0, 2.0, 20)), (10, 19));
    }

    #[test]
    fn work_is_1_on_average() {
        for spread in [Spread::Constant, Spread::LogNormal(0.5), Spread::Exponential] {
            let mut random = Random::new(1, 2);
            let mean = (0..100_000).map(|_| spread.draw(&mut random)).sum::<f64>() / 100_000.0;
            assert!((mean - 1.0).abs() < 0.02, "{spread:?}: {mean}");
        }
    }
}
