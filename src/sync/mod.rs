//! Sync: a batch in the queue becomes a committed segment: load -> encode -> upload -> commit.
//!
//! Owns: the steps of one sync job (`job`) and grouping commits (`commit`). Does not own: claiming and workers (`pool`), the format (`segment`).

mod commit;
mod gap;
mod job;

pub use commit::{CommitHandle, Committer};
pub use gap::discard;
pub use job::SyncJob;
pub(crate) use job::Targets;
