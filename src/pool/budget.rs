//! One byte budget for all jobs in work: taken after a claim, travels with the job, released when it has ended.
//!
//! Owns: counting. Does not own: how much a job needs ([`cost_of`] is the one estimate).

use std::sync::Arc;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::ledger::Job;

/// Units of the semaphore: its counter has 32 bits a request.
const UNIT: u64 = 1 << 10;

/// Bounds the memory of jobs by configuration, not by load.
#[derive(Debug, Clone)]
pub struct MemoryBudget {
    units: Arc<Semaphore>,
    total: u32,
}

/// Held while a job is in work.
#[derive(Debug)]
pub struct MemoryPermit(#[allow(dead_code)] OwnedSemaphorePermit); // kept for its Drop

impl MemoryBudget {
    /// A budget of `bytes`.
    pub fn new(bytes: u64) -> Self {
        let total = u32::try_from(bytes / UNIT).unwrap_or(u32::MAX).clamp(1, u32::try_from(Semaphore::MAX_PERMITS).unwrap_or(u32::MAX));
        Self { units: Arc::new(Semaphore::new(total as usize)), total }
    }

    /// Waits for `bytes`; more than the whole budget is the whole budget, so that a large job runs alone instead of never.
    pub async fn take(&self, bytes: u64) -> Option<MemoryPermit> {
        let units = u32::try_from(bytes.div_ceil(UNIT)).unwrap_or(u32::MAX).clamp(1, self.total);
        self.units.clone().acquire_many_owned(units).await.ok().map(MemoryPermit)
    }

    /// Bytes there are.
    pub fn limit(&self) -> u64 {
        u64::from(self.total) * UNIT
    }

    /// Bytes in use.
    pub fn used(&self) -> u64 {
        (u64::from(self.total) - self.units.available_permits() as u64) * UNIT
    }
}

/// What a job holds at its peak: the payload, whose frames live on in the segment, the segment, which is about as large, the decoded blocks,
/// and room for what each step needs.
pub(crate) fn cost_of(job: &Job) -> u64 {
    // Jobs of other kinds are bounded by themselves: they would hold this budget for hours.
    job.sync.as_ref().map_or(UNIT, |s| 2 * s.payload_bytes + s.block_bytes + (4 << 20))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_job_larger_than_the_budget_runs_alone() {
        let budget = MemoryBudget::new(1 << 20);
        let small = budget.take(10).await.unwrap();
        let mut large = Box::pin(budget.take(1 << 40));
        assert!(futures_util::poll!(&mut large).is_pending());
        drop(small);
        let large = large.await.unwrap();
        assert_eq!(budget.used(), 1 << 20);
        drop(large);
        assert_eq!(budget.used(), 0);
    }
}
