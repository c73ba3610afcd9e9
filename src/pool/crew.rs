//! The crew: the tasks of all workers.
//!
//! Owns: starting workers, seeing them end. Does not own: who starts and who stops (`class`), how many there shall be (`scaler`, operators).

use std::panic::resume_unwind;
use std::sync::Arc;

use tokio::sync::Notify;
use tokio::task::{JoinError, JoinSet};

use super::class::Class;
use super::worker::Worker;

/// The stage: ends when every inbox is closed and every worker has ended.
#[derive(Debug)]
pub(crate) struct Crew {
    /// One for each class.
    pub template: Vec<Worker>,
    /// Rung when a target has changed, and when inboxes are closed.
    pub changed: Arc<Notify>,
}

impl Crew {
    pub(crate) async fn run(self) {
        let mut tasks = JoinSet::new();
        while !self.template.iter().all(|worker| worker.class.inbox.is_closed()) {
            for worker in &self.template {
                adjust(worker, &mut tasks);
            }
            tokio::select! {
                () = self.changed.notified() => {}
                Some(ended) = tasks.join_next() => check(ended),
            }
        }
        // What they hand on to ends when they have ended.
        drop(self.template);
        while let Some(ended) = tasks.join_next().await {
            check(ended);
        }
    }
}

fn adjust(worker: &Worker, tasks: &mut JoinSet<()>) {
    let class: &Class = &worker.class;
    if class.kinds.is_empty() {
        return;
    }
    for cell in class.adjust() {
        tracing::debug!(worker = %cell.name, "worker started");
        tasks.spawn(worker.clone().run(cell));
    }
}

/// A job that panics is a failed attempt; a worker that does is a bug, and takes the engine with it.
fn check(ended: Result<(), JoinError>) {
    if let Err(Ok(panic)) = ended.map_err(JoinError::try_into_panic) {
        resume_unwind(panic);
    }
}
