//! The pool: takes jobs from the queue and runs them on a fixed number of workers.
//!
//! Owns: claiming (`claim`), workers and their statistics (`worker`), the memory budget of jobs in work (`budget`),
//! which attempts are in work (`in_work`), how many workers there shall be (`scaler`).
//! Does not own: what a job does (`sync`), job states (`queue`), the other processes' jobs (`ledger::rescue`).

mod budget;
mod claim;
mod in_work;
mod scaler;
mod worker;

pub use budget::{MemoryBudget, MemoryPermit};
pub use claim::{ClaimSettings, Claimed, Claimer};
pub use in_work::{InWork, InWorkGuard};
pub use scaler::{Decision, Direction, Inputs, Limit, Measured, Reason, Scaler, ScalerSettings};
pub use worker::{Worker, WorkerSettings, WorkerStats};
