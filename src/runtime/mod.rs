//! Owns: what every stage stands on: clock, randomness, bounded links, the CPU pool, phases of shutdown.
//! Does not own: any stage.

pub mod backoff;
pub mod clock;
pub mod random;
