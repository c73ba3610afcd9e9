//! `argon run`: the engine, until SIGTERM or SIGINT.

use std::sync::Arc;
use std::time::Duration;

use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;

use crate::capture::source::MongoSources;
use crate::config::{EngineSettings, HttpSettings};
use crate::engine::{Engine, EngineEnd, EngineHandle};
use crate::fault::{Fault, Result};
use crate::http::{self, Api};
use crate::jobs::KINDS;
use crate::ledger::SharedLedger;
use crate::runtime::shutdown::Shutdown;
use crate::store::{self, MeteredStore, Store};

use super::{Context, Exit};

/// Pause between looks at a store that was away at the start.
const CHECK_AGAIN: Duration = Duration::from_secs(10);
/// After the drain, how long answers that are under way may take.
const LAST_WORDS: Duration = Duration::from_secs(8);

const EXAMPLES: &str = "Example:
  export ARGON_MONGODB_URI='mongodb://127.0.0.1:27017/?replicaSet=rs0' ARGON_STORE_URL=file:///var/lib/argon
  argon capture start shop/main --source-db shop
  argon run

Stops on SIGTERM or Ctrl-C: drains within ARGON_SHUTDOWN_TIMEOUT, then gives its work back. A second signal gives it back at once.
Exit codes: 0 drained, 1 failed, 2 bad configuration, 3 deadline passed.

Tools that the demo, the tests and the benchmarks start, if not from PATH or fetched: ARGON_MONGOD is the path of a mongod, ARGON_WEED that
of SeaweedFS's weed.";

#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Args {
    #[command(flatten)]
    settings: EngineSettings,
    #[command(flatten)]
    http: HttpSettings,
}

pub(crate) async fn run(args: Args, context: Context) -> Result<Exit> {
    args.settings.check()?;
    let uri = context.connection.uri()?.to_string();
    // First of all: process 1 of a container has no default for SIGTERM, and MongoDB may take its time to answer.
    let asked = Shutdown::new();
    let signals = tokio::spawn(watch_signals(asked.clone())?);
    let opened = async {
        let store = context.store().await?;
        let (ledger, _) = context.prepared_ledger().await?;
        let checked = check_store(&store, &ledger).await?;
        Ok::<_, Fault>((store, ledger, checked))
    };
    let (store, ledger, checked) = tokio::select! {
        opened = opened => opened?,
        () = asked.draining() => return Ok(Exit::Done), // nothing is owned yet
    };
    let view = EngineHandle::new(&args.settings, asked.clone());
    let store: Store = Arc::new(MeteredStore::new(store, view.meters().clone()));
    // Before anything is owned: an address that is taken must not cost a lease.
    let api = Api::start(ledger.clone(), store.clone(), Arc::new(view.clone()), CancellationToken::new());
    let listeners = http::start(&api, &args.http).await?;
    let later = (!checked).then(|| tokio::spawn(check_store_later(store.clone(), ledger.clone(), asked.clone())));
    let end = loop {
        // An engine whose lease was lost is over; this process goes on as a new one, with a new identity.
        let stop = asked.child();
        let engine = Engine {
            ledger: ledger.clone(),
            store: store.clone(),
            sources: Arc::new(MongoSources { default: uri.clone() }),
            settings: args.settings.clone(),
            kinds: KINDS,
            view: view.clone(),
            stop,
        };
        match engine.run().await? {
            EngineEnd::LeaseLost if !asked.is_draining() => {
                view.meters().lease_lost();
                tracing::warn!("starting again as a new engine");
            }
            end => break end,
        }
    };
    signals.abort();
    if tokio::time::timeout(LAST_WORDS, listeners.stop()).await.is_err() {
        tracing::warn!("a listener has not ended in time, and is left behind");
    }
    // Only a look that has ended counts: one that hangs must not hold up the exit.
    if let Some(later) = later
        && later.is_finished()
        && let Ok(Some(fault)) = later.await
    {
        return Err(fault);
    }
    Ok(match end {
        EngineEnd::Drained | EngineEnd::LeaseLost => Exit::Done,
        EngineEnd::DeadlinePassed => Exit::DeadlinePassed,
    })
}

/// Refuses a store that ignores If-None-Match while another engine runs. False when it is away: the queue bridges that, so it is no reason to
/// refuse, but it must be asked again.
async fn check_store(store: &Store, ledger: &SharedLedger) -> Result<bool> {
    match store::probe(&**store, &crate::runtime::random::id()).await {
        Ok(probed) if !probed.conditional_put && others_live(ledger).await? => Err(Fault::rejected(format!(
            "{} ignores If-None-Match, so only one engine may use it, and another engine is running",
            store.describe()
        ))),
        Ok(_) => Ok(true),
        Err(fault) if fault.may_heal() => {
            tracing::warn!(error = %fault, store = %store.describe(), "store unavailable, capturing into the queue until it is back");
            Ok(false)
        }
        Err(fault) => Err(fault),
    }
}

/// Asks a store that was away again, until it answers; what would have refused the start drains the engine.
async fn check_store_later(store: Store, ledger: SharedLedger, asked: Shutdown) -> Option<Fault> {
    loop {
        tokio::select! {
            () = tokio::time::sleep(crate::runtime::random::jitter(CHECK_AGAIN)) => {}
            () = asked.draining() => return None,
        }
        match check_store(&store, &ledger).await {
            Ok(true) => return None,
            Ok(false) => {}
            Err(fault) if fault.may_heal() => {}
            Err(fault) => {
                tracing::error!(error = %fault, "the store cannot be used: stopping");
                asked.drain();
                return Some(fault);
            }
        }
    }
}

async fn others_live(ledger: &SharedLedger) -> Result<bool> {
    let me = crate::runtime::identity::this_process();
    Ok(ledger.engines().await?.iter().any(|e| !crate::runtime::identity::is_known_dead(&me, e)))
}

/// The first signal drains, the second aborts.
fn watch_signals(asked: Shutdown) -> Result<impl Future<Output = ()>> {
    let listen = |kind| signal(kind).map_err(|e| Fault::transient(format!("cannot listen for signals: {e}")));
    let (mut term, mut int) = (listen(SignalKind::terminate())?, listen(SignalKind::interrupt())?);
    Ok(async move {
        for level in 0..2 {
            tokio::select! {
                _ = term.recv() => {}
                _ = int.recv() => {}
            }
            if level == 0 { asked.drain() } else { asked.abort() }
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ledger::MemoryLedger;
    use crate::store::{FaultPlan, FaultyStore, MemoryStore};

    #[tokio::test]
    async fn a_store_that_is_away_is_asked_again_and_refuses_no_start() {
        let ledger: SharedLedger = Arc::new(MemoryLedger::live());
        let memory: Store = Arc::new(MemoryStore::new());
        let away = FaultPlan { fail_before: 1.0, ..FaultPlan::default() };
        let faulty: Store = Arc::new(FaultyStore::new(memory.clone(), away));
        assert!(!check_store(&faulty, &ledger).await.unwrap());
        assert!(check_store(&memory, &ledger).await.unwrap());
        let asked = Shutdown::new();
        asked.drain();
        assert!(check_store_later(faulty, ledger, asked).await.is_none(), "a drain ends the asking");
    }
}
