//! Taking over from the dead.
//!
//! Owns: who looks, and judging by silence only when this engine may (`streak`). Does not own: what is taken over (`ledger::rescue`).
//!
//! The leader does it for all. Any other engine does so when it knows better: a process of its own host is gone, or somebody has been silent for so
//! long that whoever leads does not rescue.

use std::time::{Duration, Instant};

use super::peers::overdue;
use super::upkeep::Part;
use crate::ledger::{EngineBeat, EngineId};
use crate::runtime::{clock, identity};

/// Dead processes are looked for this often; with the default lease of 15 s a job runs again within 20 s.
const EVERY: Duration = Duration::from_secs(2);
/// An engine that is alone and idle has nobody to rescue.
const EVERY_CALMLY: u32 = 2;
/// What is in the name of engines that have no document any more is looked for when one of them has gone, and this often: five requests.
const LEFT_EVERY: Duration = Duration::from_secs(60);

impl Part {
    pub(super) async fn rescue_loop(self) {
        let (mut times, mut looked, mut known) = (1, clock::now(), Vec::new());
        while self.pause_calmly(EVERY, times).await {
            match self.ledger.engines().await {
                Ok(engines) => {
                    self.peers.seen(&engines);
                    let alone = engines.iter().all(|e| e.id == self.me.id);
                    times = if alone { EVERY_CALMLY } else { 1 };
                    // What a leader does is for all: while one of them works, its rhythms are those of work.
                    if engines.iter().any(works) {
                        self.life.calm.disturb();
                    }
                    let before = std::mem::replace(&mut known, engines.iter().map(|e| e.id.clone()).collect::<Vec<_>>());
                    let gone = before.iter().any(|id| !known.contains(id));
                    let due = match self.leads() {
                        true => !alone || gone || looked.elapsed() >= LEFT_EVERY,
                        false => overdue(&engines, self.lease) || !self.known_dead(engines).is_empty(),
                    };
                    if due {
                        looked = clock::now();
                        self.rescue(clock::now).await;
                    }
                }
                Err(fault) => tracing::debug!(error = %fault, "could not look for other engines"),
            }
        }
    }

    /// SUBTLE: the server's time is read first and the right to judge asked after it, so the verdict is about a moment at which others could be
    /// heard. A call after it that hangs through an outage changes nothing: nobody who beat before that moment is judged, however late it ends.
    pub(super) async fn rescue(&self, now: impl Fn() -> Instant) {
        let (at_ms, engines) = match (self.ledger.now_ms().await, self.ledger.engines().await) {
            (Ok(at_ms), Ok(engines)) => (at_ms, engines),
            (Err(fault), _) | (_, Err(fault)) => {
                tracing::debug!(error = %fault, "could not look for dead processes");
                return;
            }
        };
        self.peers.seen(&engines);
        let lease_ms = i64::try_from(self.lease.as_millis()).unwrap_or(i64::MAX);
        let silent_before_ms = self.streak.lock().may_judge(now()).then(|| at_ms.saturating_sub(lease_ms));
        match self.ledger.rescue(&self.me.id, silent_before_ms, &self.known_dead(engines)).await {
            Ok(rescued) if !rescued.engines.is_empty() => {
                self.life.meters.rescued(rescued.jobs);
                tracing::warn!(engines = ?rescued.engines, jobs = rescued.jobs, captures = rescued.captures, "took over from dead processes");
                self.life.work.notify_one();
            }
            Ok(_) => {}
            Err(fault) => tracing::debug!(error = %fault, "could not look for dead processes"),
        }
    }

    fn known_dead(&self, engines: Vec<EngineBeat>) -> Vec<EngineId> {
        engines.into_iter().filter(|e| identity::is_known_dead(&self.me, e)).map(|e| e.id).collect()
    }
}

/// One of its workers is at a job, as its last heartbeat said.
fn works(engine: &EngineBeat) -> bool {
    engine.status.as_ref().is_some_and(|status| status.workers.iter().any(|worker| worker.busy))
}
