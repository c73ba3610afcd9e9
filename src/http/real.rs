//! Owns: the running engine as handlers see it. Does not own: the engine (`engine::EngineHandle`).

use std::time::Duration;

use super::api::{EngineChecks, EngineView};
use super::health::Check;
use crate::engine::{CaptureRows, EngineFacts, EngineHandle, Pressure};
use crate::fault::{Fault, Kind, Result};
use crate::ledger::{EngineStatus, PoolRow};
use crate::pool::scaler::Decision;
use crate::telemetry::meters::Meters;

/// A heartbeat goes out every few seconds; one that has not come through for so long is worth a word. The lease itself is a setting, and whoever
/// loses it stops by himself.
const BEAT_LATE: Duration = Duration::from_secs(10);

impl EngineView for EngineHandle {
    fn id(&self) -> String {
        self.facts().engine.unwrap_or_default()
    }

    fn status(&self) -> EngineStatus {
        Self::status(self)
    }

    fn decisions(&self) -> Vec<Decision> {
        Self::decisions(self)
    }

    fn scale(&self, target: u16, hold: Option<Duration>) -> Result<PoolRow> {
        // It is the number that is wrong, not the time: 400.
        Self::scale(self, target, hold).map_err(|fault| Fault { kind: Kind::Config, ..fault })
    }

    fn release_pin(&self) -> Result<PoolRow> {
        Ok(Self::release_pin(self))
    }

    fn checks(&self) -> EngineChecks {
        checks(&self.facts())
    }

    fn capture_rows(&self) -> Option<CaptureRows> {
        Self::capture_rows(self)
    }

    fn wake(&self) {
        Self::wake(self);
    }

    fn is_draining(&self) -> bool {
        Self::is_draining(self)
    }

    fn meters(&self) -> &Meters {
        Self::meters(self)
    }

    fn pressure(&self) -> Pressure {
        Self::pressure(self)
    }
}

fn checks(facts: &EngineFacts) -> EngineChecks {
    let workers = if let Some(why) = &facts.sick {
        Check::unhealthy(why.clone())
    } else if facts.draining {
        Check::degraded("stopping: nothing new is taken")
    } else if facts.engine.is_none() {
        Check::degraded("no engine runs in this process at the moment: it is starting, or its lease was lost")
    } else if let Some(age) = facts.heartbeat_age.filter(|age| *age > BEAT_LATE) {
        Check::degraded(format!("the last heartbeat that came through was {} s ago", age.as_secs()))
    } else if facts.workers == 0 {
        Check::degraded("no sync worker runs")
    } else {
        Check::ok()
    };
    EngineChecks { captures: Check::ok(), workers }
}

#[cfg(test)]
mod tests {
    use super::super::health::Condition;
    use super::*;

    #[test]
    fn only_what_cannot_be_mended_is_unhealthy() {
        let well = EngineFacts {
            engine: Some("e1".into()),
            draining: false,
            leads: true,
            heartbeat_age: Some(Duration::from_secs(1)),
            workers: 5,
            target_workers: 5,
            captures: 1,
            sick: None,
            runtime_lag: Duration::ZERO,
        };
        let of = |facts: EngineFacts| checks(&facts).workers.status;
        assert_eq!(of(well.clone()), Condition::Ok);
        assert_eq!(of(EngineFacts { heartbeat_age: Some(Duration::from_secs(60)), ..well.clone() }), Condition::Degraded);
        assert_eq!(of(EngineFacts { draining: true, ..well.clone() }), Condition::Degraded, "SIGTERM: ready is 503, health stays 200");
        assert_eq!(of(EngineFacts { engine: None, heartbeat_age: None, workers: 0, ..well.clone() }), Condition::Degraded);
        assert_eq!(of(EngineFacts { sick: Some("a unit does not come back".into()), ..well }), Condition::Unhealthy);
    }
}
