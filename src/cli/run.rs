//! `argon run`: the engine, until SIGTERM or SIGINT.

use std::sync::Arc;

use tokio::signal::unix::{SignalKind, signal};

use crate::capture::source::MongoSources;
use crate::config::EngineSettings;
use crate::engine::{Engine, EngineEnd};
use crate::fault::{Fault, Result};
use crate::runtime::shutdown::Shutdown;
use crate::store::{self, Store};

use super::{Context, Exit};

const EXAMPLES: &str = "Example:
  export ARGON_MONGODB_URI='mongodb://127.0.0.1:27017/?replicaSet=rs0' ARGON_STORE_URL=file:///var/lib/argon
  argon capture start shop/main --source-db shop
  argon run

Stops on SIGTERM or Ctrl-C: drains within ARGON_SHUTDOWN_TIMEOUT, then gives its work back. A second signal gives it back at once.
Exit codes: 0 drained, 1 failed, 2 bad configuration, 3 deadline passed.";

#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Args {
    #[command(flatten)]
    settings: EngineSettings,
}

pub(crate) async fn run(args: Args, context: Context) -> Result<Exit> {
    let uri = context.connection.uri()?.to_string();
    let store = context.store().await?;
    let (ledger, _) = context.ledger().await?;
    if !conditional_put(&store).await? && others_live(&ledger).await? {
        return Err(Fault::rejected(format!(
            "{} ignores If-None-Match, so only one engine may use it, and another engine is running",
            store.describe()
        )));
    }
    let asked = Shutdown::new();
    let signals = tokio::spawn(watch_signals(asked.clone())?);
    let end = loop {
        // An engine whose lease was lost is over; this process goes on as a new one, with a new identity.
        let stop = asked.child();
        let engine = Engine {
            ledger: ledger.clone(),
            store: store.clone(),
            sources: Arc::new(MongoSources { default: uri.clone() }),
            settings: args.settings.clone(),
            stop,
        };
        match engine.run().await? {
            EngineEnd::LeaseLost if !asked.is_draining() => tracing::warn!("starting again as a new engine"),
            end => break end,
        }
    };
    signals.abort();
    Ok(match end {
        EngineEnd::Drained | EngineEnd::LeaseLost => Exit::Done,
        EngineEnd::DeadlinePassed => Exit::DeadlinePassed,
    })
}

/// Whether the store honours If-None-Match. A store that is away only now is no reason to refuse: the queue bridges it.
async fn conditional_put(store: &Store) -> Result<bool> {
    match store::probe(&**store, &crate::runtime::random::id()).await {
        Ok(probed) => Ok(probed.conditional_put),
        Err(fault) if fault.may_heal() => {
            tracing::warn!(error = %fault, store = %store.describe(), "store unavailable, capturing into the queue until it is back");
            Ok(true)
        }
        Err(fault) => Err(fault),
    }
}

async fn others_live(ledger: &crate::ledger::SharedLedger) -> Result<bool> {
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
    use crate::fault::Kind;
    use crate::store::{FaultPlan, FaultyStore, MemoryStore};

    #[tokio::test]
    async fn an_engine_starts_while_the_store_is_away() {
        let away = FaultPlan { fail_before: 1.0, ..FaultPlan::default() };
        let store: Store = Arc::new(FaultyStore::new(Arc::new(MemoryStore::new()), away));
        assert!(store::probe(&*store, "x").await.is_err_and(|f| f.may_heal() && f.kind != Kind::Rejected));
        assert!(conditional_put(&store).await.unwrap());
    }
}
