//! The durable queue's rules. Pure: state in, decision out.
//!
//! Owns: which job state may follow which ([`transition`]), retry and backoff ([`RetryPolicy`]), the order of claims ([`sched_key`]),
//! what a process death does to its jobs ([`after_crash`]) and the cap of the error history ([`push_error`]).
//! Does not own: where jobs are stored (`ledger`, whose implementations both ask here), or who runs them (`pool`).

mod crash;
mod order;
mod retry;
mod transition;

pub use crate::ledger::Priority;
pub use crash::{AfterCrash, SUSPECT_CRASHES, after_crash, is_suspect, suspect_is_due};
pub use order::{boost_ms, sched_key};
pub use retry::{MAX_ERROR_CHARS, RetryPolicy, clip_error, push_error};
pub use transition::{JobEvent, states_before, transition};
