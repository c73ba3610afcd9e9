//! Owns: an engine in memory for tests of the interface: it does nothing and says what it is told to. Does not own: anything real.

use std::time::Duration;

use parking_lot::Mutex;

use super::api::{EngineChecks, EngineView};
use crate::engine::Pressure;
use crate::fault::{Fault, Result};
use crate::ledger::{Attempts, EngineStatus, JobKind, PinRow, PoolRow, SlotRow, WorkerRow};
use crate::pool::scaler::{Decision, Direction, Inputs, Reason};
use crate::runtime::clock;
use crate::telemetry::meters::Meters;

/// The twin of a running engine.
#[derive(Debug)]
pub struct TwinEngine {
    id: String,
    state: Mutex<State>,
    meters: Meters,
}

#[derive(Debug)]
struct State {
    status: EngineStatus,
    decisions: Vec<Decision>,
    checks: EngineChecks,
    draining: bool,
}

impl TwinEngine {
    /// Five workers as in the original description, one slot, one decision.
    pub fn new(id: &str) -> Self {
        let row = |i: u64| WorkerRow {
            name: format!("sync-worker-{i}"),
            kind: Some(JobKind::Sync),
            processed: 150,
            succeeded: 149 - u64::from(i == 0),
            failed: 1 + u64::from(i == 0),
            avg_ms: 45.23,
            p50_ms: 41.0,
            p99_ms: 97.5,
            last_active_ms: Some(1_752_807_600_000),
            busy: i == 1,
            job: (i == 1).then(|| "0193f0c2-0000-7000-8000-000000000001".to_owned()),
        };
        let mut workers: Vec<_> = (0..5).map(row).collect();
        workers.push(WorkerRow { name: "cleanup-worker-0".into(), kind: Some(JobKind::Cleanup), ..WorkerRow::default() });
        let status = EngineStatus {
            version: env!("CARGO_PKG_VERSION").into(),
            started_ms: 1_752_800_000_000,
            pool: PoolRow { target: 5, current: 5, min: 1, max: 20, pin: None },
            workers,
            slots: vec![SlotRow { kind: JobKind::Cleanup, capacity: 1, busy: 0 }],
            sync_attempts: Attempts { succeeded: 744, failed: 6, ..Attempts::default() },
            captures: 1,
            avg_wait_ms: 1_200.0,
            ..EngineStatus::default()
        };
        let decision = Decision {
            at: Duration::from_secs(60),
            target: 5,
            actual: 4,
            changed: true,
            direction: Direction::Up,
            reason: Reason::Load,
            limited_by: None,
            inputs: Inputs::default(),
            dry_run: false,
        };
        let state = State { status, decisions: vec![decision], checks: EngineChecks::default(), draining: false };
        Self { id: id.into(), state: Mutex::new(state), meters: Meters::default() }
    }

    /// Changes what it says.
    pub fn tell(&self, change: impl FnOnce(&mut EngineStatus, &mut EngineChecks)) {
        let mut state = self.state.lock();
        let State { status, checks, .. } = &mut *state;
        change(status, checks);
    }

    /// One more decision.
    pub fn decide(&self, decision: Decision) {
        self.state.lock().decisions.push(decision);
    }

    /// It is stopping from now on.
    pub fn drain(&self) {
        let mut state = self.state.lock();
        state.draining = true;
        state.status.draining = true;
    }
}

impl EngineView for TwinEngine {
    fn id(&self) -> String {
        self.id.clone()
    }

    fn status(&self) -> EngineStatus {
        self.state.lock().status.clone()
    }

    fn decisions(&self) -> Vec<Decision> {
        self.state.lock().decisions.clone()
    }

    fn scale(&self, target: u16, hold: Option<Duration>) -> Result<PoolRow> {
        let pool = &mut self.state.lock().status.pool;
        if !(pool.min..=pool.max).contains(&target) {
            return Err(Fault::config(format!("{target} workers: WORKER_POOL_MIN and WORKER_POOL_MAX allow {} to {}", pool.min, pool.max)));
        }
        let until_ms = hold.map(|hold| clock::wall_ms() + i64::try_from(hold.as_millis()).unwrap_or(i64::MAX));
        *pool = PoolRow { target, current: target, pin: Some(PinRow { target, until_ms }), ..pool.clone() };
        Ok(pool.clone())
    }

    fn release_pin(&self) -> Result<PoolRow> {
        let pool = &mut self.state.lock().status.pool;
        pool.pin = None;
        Ok(pool.clone())
    }

    fn checks(&self) -> EngineChecks {
        self.state.lock().checks.clone()
    }

    fn wake(&self) {}

    fn is_draining(&self) -> bool {
        self.state.lock().draining
    }

    fn meters(&self) -> &Meters {
        &self.meters
    }

    fn pressure(&self) -> Pressure {
        Pressure {
            memory_used: 12 << 20,
            memory_limit: 256 << 20,
            claimed: 1,
            claimed_limit: 10,
            cpu: 1,
            cpu_limit: 4,
            queue_limit: 1 << 30,
            leads: true,
        }
    }
}
