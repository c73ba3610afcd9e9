//! Owns: what every stage stands on: clock, randomness, bounded links, the CPU pool, levels of stopping, process identity,
//! returning memory, what the system says of the process, TLS in words.
//! Does not own: any stage.

pub mod backoff;
pub mod calm;
pub mod clock;
pub mod cpu;
pub mod identity;
pub mod link;
pub mod memory;
pub mod process;
pub mod pulse;
pub mod random;
pub mod shutdown;
pub mod tls;
