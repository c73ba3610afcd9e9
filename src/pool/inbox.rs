//! The queue between the claimer and the workers of one class.
//!
//! Owns: order (first claimed, first run) and who is woken. Does not own: how many jobs may wait (`window`), which is its bound: only the claimer
//! puts jobs in, never more than it has found room for.
//!
//! A queue of its own instead of a channel: what waits can be taken back, when the engine drains or when it has waited too long.

use std::collections::VecDeque;
use std::time::Instant;

use parking_lot::Mutex;
use tokio::sync::Notify;

use super::claim::Claimed;

/// Shared by the claimer and the workers of a class.
#[derive(Debug, Default)]
pub(crate) struct Inbox {
    state: Mutex<State>,
    wake: Notify,
}

#[derive(Debug, Default)]
struct State {
    waiting: VecDeque<Claimed>,
    closed: bool,
}

impl Inbox {
    /// Puts jobs behind those that wait; they come back when it is closed.
    pub(crate) fn push(&self, jobs: Vec<Claimed>) -> Vec<Claimed> {
        let count = jobs.len();
        {
            let mut state = self.state.lock();
            if state.closed {
                return jobs;
            }
            state.waiting.extend(jobs);
        }
        for _ in 0..count {
            self.wake.notify_one();
        }
        Vec::new()
    }

    /// The next job; `None` when there will be none, or when `leave` says so before one is taken.
    pub(crate) async fn take(&self, leave: impl Fn() -> bool) -> Option<Claimed> {
        loop {
            // Registered before the look, so that nothing is missed between the two.
            let woken = self.wake.notified();
            tokio::pin!(woken);
            woken.as_mut().enable();
            if leave() {
                // The call that woke this one may have been for a job.
                self.wake.notify_one();
                return None;
            }
            {
                let mut state = self.state.lock();
                match state.waiting.pop_front() {
                    Some(next) => return Some(next),
                    None if state.closed => return None,
                    None => {}
                }
            }
            woken.await;
        }
    }

    /// Jobs that wait.
    pub(crate) fn len(&self) -> usize {
        self.state.lock().waiting.len()
    }

    /// Takes back what was claimed before `then` and still waits.
    pub(crate) fn take_older(&self, then: Instant) -> Vec<Claimed> {
        let mut state = self.state.lock();
        let old = state.waiting.iter().take_while(|c| c.at < then).count();
        state.waiting.drain(..old).collect()
    }

    /// No more jobs: returns what waits, and workers end when they come to look.
    pub(crate) fn close(&self) -> Vec<Claimed> {
        let waiting = {
            let mut state = self.state.lock();
            state.closed = true;
            state.waiting.drain(..).collect()
        };
        self.wake.notify_waiters();
        waiting
    }

    pub(crate) fn is_closed(&self) -> bool {
        self.state.lock().closed
    }

    /// Everybody who waits looks again whether to leave.
    pub(crate) fn look_again(&self) {
        self.wake.notify_waiters();
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicBool, Ordering};
    use std::time::Duration;

    use super::*;
    use crate::pool::testing::claimed;

    #[tokio::test]
    async fn jobs_come_in_order_and_what_waits_can_be_taken_back() {
        let inbox = Inbox::default();
        assert!(inbox.push(vec![claimed("1"), claimed("2"), claimed("3")]).is_empty());
        assert_eq!(inbox.take(|| false).await.unwrap().job.id, "1");
        assert_eq!(inbox.take_older(crate::runtime::clock::now() - Duration::from_secs(1)).len(), 0);
        assert_eq!(inbox.take_older(crate::runtime::clock::now() + Duration::from_secs(1)).len(), 2);
        inbox.push(vec![claimed("4")]);
        assert_eq!(inbox.close().len(), 1);
        assert!(inbox.take(|| false).await.is_none());
        assert_eq!(inbox.push(vec![claimed("5")]).len(), 1, "too late");
    }

    #[tokio::test]
    async fn who_leaves_passes_the_call_on() {
        let inbox = Arc::new(Inbox::default());
        let leaves = Arc::new(AtomicBool::new(false));
        let first = tokio::spawn({
            let (inbox, leaves) = (inbox.clone(), leaves.clone());
            async move { inbox.take(|| leaves.load(Ordering::SeqCst)).await.is_some() }
        });
        tokio::task::yield_now().await;
        let second = tokio::spawn({
            let inbox = inbox.clone();
            async move { inbox.take(|| false).await.is_some() }
        });
        tokio::task::yield_now().await;
        leaves.store(true, Ordering::SeqCst);
        inbox.push(vec![claimed("1")]); // wakes the first, who is on its way out
        let limit = Duration::from_secs(5);
        assert!(!tokio::time::timeout(limit, first).await.unwrap().unwrap());
        assert!(tokio::time::timeout(limit, second).await.unwrap().unwrap());
    }

    #[tokio::test]
    async fn a_worker_that_waits_can_be_told_to_leave() {
        let inbox = Arc::new(Inbox::default());
        let leaves = Arc::new(AtomicBool::new(false));
        let worker = tokio::spawn({
            let (inbox, leaves) = (inbox.clone(), leaves.clone());
            async move { inbox.take(|| leaves.load(Ordering::SeqCst)).await.is_none() }
        });
        tokio::task::yield_now().await;
        leaves.store(true, Ordering::SeqCst);
        inbox.look_again();
        assert!(tokio::time::timeout(Duration::from_secs(5), worker).await.unwrap().unwrap());
    }
}
