//! Owns: what every stage stands on: clock, randomness, bounded links, the CPU pool, levels of stopping, process identity.
//! Does not own: any stage.

pub mod backoff;
pub mod clock;
pub mod cpu;
pub mod identity;
pub mod link;
pub mod random;
pub mod shutdown;
