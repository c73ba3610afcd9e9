//! The CPU pool: rayon, fed through a bounded crossbeam channel, so that CPU work never runs on a tokio worker.
//!
//! Owns: the link between async tasks and CPU threads, and turning a panic into a failed unit. Does not own what the units do.
//!
//! SUBTLE: the permit is taken in async code before `try_send` and travels inside the unit until it has run. A channel of the same
//! capacity therefore always has room, an async task never blocks on it, and rayon's own queue is bounded too.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use crossbeam_channel::{Sender, bounded};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, oneshot};
use tokio_util::sync::CancellationToken;

use super::clock;
use super::link::LinkMeter;
use crate::fault::{Fault, Result};

type Unit = Box<dyn FnOnce() + Send>;

/// A handle to the pool; the threads end when the last handle is gone.
#[derive(Clone, Debug)]
pub struct CpuPool {
    units: Sender<Unit>,
    permits: Arc<Semaphore>,
    capacity: usize,
    waits: Option<LinkMeter>,
}

impl CpuPool {
    /// `threads` CPU threads; at most `queued` units wait or run.
    pub fn new(threads: usize, queued: usize) -> Result<Self> {
        let pool = rayon::ThreadPoolBuilder::new()
            .num_threads(threads)
            .thread_name(|i| format!("argon-cpu-{i}"))
            .build()
            .map_err(|e| Fault::transient(format!("cannot start {threads} CPU threads: {e}")))?;
        let (units, inbox) = bounded::<Unit>(queued);
        std::thread::Builder::new()
            .name("argon-cpu-feed".into())
            .spawn(move || {
                for unit in inbox {
                    pool.spawn(unit);
                }
            })
            .map_err(|e| Fault::transient(format!("cannot start a thread: {e}")))?;
        Ok(Self { units, permits: Arc::new(Semaphore::new(queued)), capacity: queued, waits: None })
    }

    /// With a meter for the time in which units wait for room.
    #[must_use]
    pub fn metered(mut self, waits: LinkMeter) -> Self {
        self.waits = Some(waits);
        self
    }

    /// Units that wait or run, and how many there may be.
    pub fn load(&self) -> (usize, usize) {
        (self.capacity.saturating_sub(self.permits.available_permits()), self.capacity)
    }

    async fn permit(&self) -> Option<OwnedSemaphorePermit> {
        if let Ok(permit) = self.permits.clone().try_acquire_owned() {
            return Some(permit);
        }
        let began = clock::now();
        let permit = self.permits.clone().acquire_owned().await.ok();
        if let Some(waits) = &self.waits {
            waits.blocked(began.elapsed());
        }
        permit
    }

    /// Runs one unit on the pool and waits for it. The unit gets a flag that is set when the caller has stopped waiting:
    /// long units look at it once per block. A panic in the unit is a fault of kind [`Unknown`](crate::fault::Kind::Unknown): a failed attempt, counted.
    pub async fn run<T, F>(&self, name: &'static str, unit: F) -> Result<T>
    where
        T: Send + 'static,
        F: FnOnce(&AtomicBool) -> Result<T> + Send + 'static,
    {
        self.run_until(name, &CancellationToken::new(), unit).await
    }

    /// As [`Self::run`], and tells the unit to stop when `cancel` says so. A unit that has begun is waited for all the same: what the caller
    /// holds for it (memory, say) is in use until it has really ended.
    pub async fn run_until<T, F>(&self, name: &'static str, cancel: &CancellationToken, unit: F) -> Result<T>
    where
        T: Send + 'static,
        F: FnOnce(&AtomicBool) -> Result<T> + Send + 'static,
    {
        let gone = || Fault::cancelled(format!("{name}: the CPU pool has stopped"));
        let permit = tokio::select! {
            biased; // a unit that nobody wants any more does not begin, whatever else is ready
            () = cancel.cancelled() => return Err(Fault::cancelled(format!("{name}: stopped before it had begun"))),
            permit = self.permit() => permit.ok_or_else(gone)?,
        };
        let (tx, mut rx) = oneshot::channel();
        let stop = StopOnDrop(Arc::new(AtomicBool::new(false)));
        let flag = stop.0.clone();
        let boxed: Unit = Box::new(move || {
            let outcome = catch_unwind(AssertUnwindSafe(|| unit(&flag)));
            drop(permit);
            // The receiver may have stopped waiting; then the result is nobody's.
            let _ = tx.send(outcome.unwrap_or_else(|panic| Err(panicked(name, &*panic))));
        });
        self.units.try_send(boxed).map_err(|_| gone())?;
        let ended = tokio::select! {
            ended = &mut rx => ended,
            () = cancel.cancelled() => {
                drop(stop);
                rx.await
            }
        };
        ended.map_err(|_| gone())?
    }
}

struct StopOnDrop(Arc<AtomicBool>);

impl Drop for StopOnDrop {
    fn drop(&mut self) {
        self.0.store(true, std::sync::atomic::Ordering::Relaxed);
    }
}

/// A panic's message as a fault; the attempt failed, nothing else did.
pub fn panicked(name: &str, panic: &(dyn std::any::Any + Send)) -> Fault {
    let text = panic.downcast_ref::<&str>().map(|s| (*s).to_string()).or_else(|| panic.downcast_ref::<String>().cloned());
    Fault::unknown(format!("{name} panicked: {}", text.unwrap_or_else(|| "no message".into())))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fault::Kind;

    #[tokio::test]
    async fn a_panic_is_a_failed_unit_and_the_pool_goes_on() {
        let pool = CpuPool::new(1, 2).unwrap();
        let failed = pool.run("encode", |_| -> Result<()> { panic!("bad luck") }).await.unwrap_err();
        assert_eq!(failed.kind, Kind::Unknown);
        assert!(failed.what.contains("bad luck"));
        assert_eq!(pool.run("encode", |_| Ok(7)).await.unwrap(), 7);
    }

    #[tokio::test]
    async fn a_cancelled_unit_is_told_and_waited_for() {
        let pool = CpuPool::new(1, 1).unwrap();
        let cancel = CancellationToken::new();
        let (began, has_begun) = oneshot::channel();
        let unit = move |stop: &AtomicBool| {
            began.send(()).unwrap();
            while !stop.load(std::sync::atomic::Ordering::Relaxed) {
                std::thread::yield_now();
            }
            Err::<(), _>(Fault::cancelled("saw it"))
        };
        let stopper = async {
            has_begun.await.unwrap();
            cancel.cancel();
        };
        let (ended, ()) = tokio::join!(pool.run_until("encode", &cancel, unit), stopper);
        assert_eq!(ended.unwrap_err().what, "saw it");
        assert_eq!(pool.run_until("encode", &cancel, |_| Ok(())).await.unwrap_err().kind, Kind::Cancelled, "it does not even begin");
    }

    #[tokio::test]
    async fn more_callers_than_room_all_get_their_turn() {
        let pool = CpuPool::new(2, 2).unwrap();
        let all = (0..50u64).map(|i| {
            let pool = pool.clone();
            tokio::spawn(async move { pool.run("square", move |_| Ok(i * i)).await })
        });
        let mut sum = 0;
        for task in all.collect::<Vec<_>>() {
            sum += task.await.unwrap().unwrap();
        }
        assert_eq!(sum, (0..50u64).map(|i| i * i).sum::<u64>());
    }
}
