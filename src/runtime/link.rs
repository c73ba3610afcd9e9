//! Bounded links between async stages, with depth, capacity and blocked time.
//!
//! Owns: the wrapper around `tokio::sync::mpsc` and the figures of a link. Does not own: capacities (the table of links in the crate's
//! documentation gives each with its reason) nor the link into the CPU pool (`runtime::cpu`).

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use tokio::sync::mpsc;

use super::clock;

/// Figures of one link, shared by both ends.
#[derive(Debug)]
pub struct LinkStats {
    /// Name as in the table of links.
    pub name: &'static str,
    /// Most messages it holds.
    pub capacity: usize,
    sent: AtomicU64,
    received: AtomicU64,
    blocked_us: AtomicU64,
}

impl LinkStats {
    /// Messages waiting now (may lag by one).
    pub fn depth(&self) -> u64 {
        let received = self.received.load(Ordering::Relaxed);
        self.sent.load(Ordering::Relaxed).saturating_sub(received)
    }

    /// Microseconds that senders have waited for room.
    pub fn blocked_us(&self) -> u64 {
        self.blocked_us.load(Ordering::Relaxed)
    }
}

/// Sending end.
#[derive(Debug)]
pub struct LinkTx<T> {
    tx: mpsc::Sender<T>,
    stats: Arc<LinkStats>,
}

impl<T> Clone for LinkTx<T> {
    fn clone(&self) -> Self {
        Self { tx: self.tx.clone(), stats: self.stats.clone() }
    }
}

/// Receiving end.
#[derive(Debug)]
pub struct LinkRx<T> {
    rx: mpsc::Receiver<T>,
    stats: Arc<LinkStats>,
}

/// A link of `capacity` messages.
pub fn link<T>(name: &'static str, capacity: usize) -> (LinkTx<T>, LinkRx<T>) {
    let (tx, rx) = mpsc::channel(capacity);
    let stats = Arc::new(LinkStats { name, capacity, sent: AtomicU64::new(0), received: AtomicU64::new(0), blocked_us: AtomicU64::new(0) });
    (LinkTx { tx, stats: stats.clone() }, LinkRx { rx, stats })
}

impl<T> LinkTx<T> {
    /// Waits for room; the message comes back when the other end is gone. The clock runs only after a try has failed.
    pub async fn send(&self, message: T) -> Result<(), T> {
        let outcome = match self.tx.try_send(message) {
            Ok(()) => Ok(()),
            Err(mpsc::error::TrySendError::Closed(message)) => Err(message),
            Err(mpsc::error::TrySendError::Full(message)) => {
                let began = clock::now();
                let sent = self.tx.send(message).await.map_err(|e| e.0);
                let waited = u64::try_from(began.elapsed().as_micros()).unwrap_or(u64::MAX);
                self.stats.blocked_us.fetch_add(waited, Ordering::Relaxed);
                sent
            }
        };
        if outcome.is_ok() {
            self.stats.sent.fetch_add(1, Ordering::Relaxed);
        }
        outcome
    }

    /// Figures of this link.
    pub fn stats(&self) -> Arc<LinkStats> {
        self.stats.clone()
    }

    /// Waits until the receiving end is gone.
    pub async fn closed(&self) {
        self.tx.closed().await;
    }
}

impl<T> LinkRx<T> {
    /// The next message, or `None` when every sender is gone and the link is empty.
    pub async fn recv(&mut self) -> Option<T> {
        let message = self.rx.recv().await;
        if message.is_some() {
            self.stats.received.fetch_add(1, Ordering::Relaxed);
        }
        message
    }

    /// A message that is there already.
    pub fn try_recv(&mut self) -> Option<T> {
        let message = self.rx.try_recv().ok();
        if message.is_some() {
            self.stats.received.fetch_add(1, Ordering::Relaxed);
        }
        message
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn depth_counts_waiting_messages_and_blocked_time_only_when_full() {
        let (tx, mut rx) = link::<u8>("test", 1);
        tx.send(1).await.unwrap();
        assert_eq!(tx.stats().depth(), 1);
        assert_eq!(tx.stats().blocked_us(), 0);
        let second = tokio::spawn({
            let tx = tx.clone();
            async move { tx.send(2).await }
        });
        assert_eq!(rx.recv().await, Some(1));
        assert_eq!(rx.recv().await, Some(2));
        second.await.unwrap().unwrap();
        assert_eq!(tx.stats().depth(), 0);
        drop(rx);
        assert_eq!(tx.send(3).await, Err(3));
    }
}
