//! Bounded links between async stages, with depth, capacity and blocked time.
//!
//! Owns: the wrapper around `tokio::sync::mpsc` and the figures of a link. Does not own: capacities (the table of links in the crate's
//! documentation gives each with its reason) nor the link into the CPU pool (`runtime::cpu`).

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Weak};
use std::time::Duration;

use metrics::Histogram;
use parking_lot::Mutex;
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
    meter: Option<LinkMeter>,
}

/// Figures of all links of one name, those that are gone included.
#[derive(Debug, Clone)]
pub struct LinkMeter(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    name: &'static str,
    blocked_us: AtomicU64,
    blocked: Histogram,
    live: Mutex<Vec<Weak<LinkStats>>>,
}

/// What [`LinkMeter::read`] tells.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LinkFigures {
    pub depth: u64,
    pub capacity: u64,
    /// Time that senders have waited for room, in all.
    pub blocked: Duration,
}

impl LinkMeter {
    /// `blocked` takes every wait for room.
    pub fn new(name: &'static str, blocked: Histogram) -> Self {
        Self(Arc::new(Shared { name, blocked_us: AtomicU64::new(0), blocked, live: Mutex::default() }))
    }

    /// A link of `capacity` messages that counts here.
    pub fn link<T>(&self, capacity: usize) -> (LinkTx<T>, LinkRx<T>) {
        let (tx, rx) = make(self.0.name, capacity, Some(self.clone()));
        let mut live = self.0.live.lock();
        live.retain(|link| link.strong_count() > 0);
        live.push(Arc::downgrade(&tx.stats));
        drop(live);
        (tx, rx)
    }

    /// A sender has waited for room.
    pub fn blocked(&self, waited: Duration) {
        self.0.blocked_us.fetch_add(u64::try_from(waited.as_micros()).unwrap_or(u64::MAX), Ordering::Relaxed);
        self.0.blocked.record(waited);
    }

    /// As it is now.
    pub fn read(&self) -> LinkFigures {
        let live: Vec<Arc<LinkStats>> = self.0.live.lock().iter().filter_map(Weak::upgrade).collect();
        LinkFigures {
            depth: live.iter().map(|link| link.depth()).sum(),
            capacity: live.iter().map(|link| link.capacity as u64).sum(),
            blocked: Duration::from_micros(self.0.blocked_us.load(Ordering::Relaxed)),
        }
    }
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

/// A link of `capacity` messages that counts for itself alone.
pub fn link<T>(name: &'static str, capacity: usize) -> (LinkTx<T>, LinkRx<T>) {
    make(name, capacity, None)
}

fn make<T>(name: &'static str, capacity: usize, meter: Option<LinkMeter>) -> (LinkTx<T>, LinkRx<T>) {
    let (tx, rx) = mpsc::channel(capacity);
    let zero = || AtomicU64::new(0);
    let stats = Arc::new(LinkStats { name, capacity, sent: zero(), received: zero(), blocked_us: zero(), meter });
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
                let waited = began.elapsed();
                self.stats.blocked_us.fetch_add(u64::try_from(waited.as_micros()).unwrap_or(u64::MAX), Ordering::Relaxed);
                if let Some(meter) = &self.stats.meter {
                    meter.blocked(waited);
                }
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

    #[tokio::test]
    async fn links_of_one_name_add_up_and_what_is_gone_is_no_capacity() {
        let meter = LinkMeter::new("test", Histogram::noop());
        let (tx, mut rx) = meter.link::<u8>(1);
        let (other, _open) = meter.link::<u8>(4);
        tx.send(1).await.unwrap();
        other.send(1).await.unwrap();
        assert_eq!((meter.read().depth, meter.read().capacity), (2, 5));
        let waiting = tokio::spawn(async move { tx.send(2).await });
        tokio::task::yield_now().await;
        assert_eq!((rx.recv().await, rx.recv().await), (Some(1), Some(2)));
        waiting.await.unwrap().unwrap();
        drop(rx);
        let read = meter.read();
        assert_eq!((read.depth, read.capacity), (1, 4));
        assert!(read.blocked > Duration::ZERO, "what has been waited stays");
    }
}
