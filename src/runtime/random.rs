//! The one place that draws ambient randomness: identities and jitter. Everything that a test repeats takes a seeded generator instead.
#![allow(clippy::disallowed_methods)]

use std::time::Duration;

use rand::Rng;

/// A fresh random identity.
pub fn id() -> String {
    uuid::Uuid::new_v4().to_string()
}

/// A fresh identity that sorts by creation.
pub fn ordered_id() -> String {
    uuid::Uuid::now_v7().to_string()
}

/// A fraction in `0.0..1.0` for jitter.
pub fn unit() -> f64 {
    rand::rng().random_range(0.0..1.0)
}

/// `base` scaled by a factor in `0.75..1.25`, so that processes do not beat in step.
pub fn jitter(base: Duration) -> Duration {
    base.mul_f64(0.75 + unit() / 2.0)
}
