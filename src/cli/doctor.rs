//! `argon doctor`: checks what a capture needs and says what to fix. Changes nothing that stays.

use std::time::Duration;

use bson::doc;
use mongodb::Client;
use serde::Serialize;
use serde_json::json;

use crate::capture::MongoFeed;
use crate::capture::feed::ChangeFeed;
use crate::capture::source;
use crate::config::database_name;
use crate::fault::{Fault, Result};
use crate::ledger::{Fidelity, ServerFacts, server_facts};
use crate::runtime::{clock, random};
use crate::store;

use super::{Context, Exit, Output};

#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  argon doctor
  argon doctor --source-db shop --source-uri env:SHOP_URI --json

Exit code 0 when nothing failed, else 1.")]
pub(crate) struct Args {
    /// Also check this database as a source.
    #[arg(long, value_name = "DB", value_parser = database_name)]
    source_db: Option<String>,
    /// Where the source is, if not ARGON_MONGODB_URI.
    #[arg(long, value_name = "REF")]
    source_uri: Option<String>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
enum Verdict {
    Ok,
    Warning,
    Failed,
}

#[derive(Debug, Serialize)]
struct Check {
    name: &'static str,
    verdict: Verdict,
    detail: String,
}

/// An oplog shorter than this loses history in an ordinary outage.
const SHORT_OPLOG: Duration = Duration::from_secs(24 * 3600);
/// Display and scheduling go by the server; a large skew confuses people reading logs.
const SKEW: i64 = 5_000;

struct Findings(Vec<Check>);

impl Findings {
    fn add(&mut self, name: &'static str, verdict: Verdict, detail: impl Into<String>) {
        self.0.push(Check { name, verdict, detail: detail.into() });
    }

    fn of<T>(&mut self, name: &'static str, outcome: Result<T>, detail: impl FnOnce(&T) -> String) -> Option<T> {
        match outcome {
            Ok(value) => {
                self.add(name, Verdict::Ok, detail(&value));
                Some(value)
            }
            Err(fault) => {
                self.add(name, Verdict::Failed, fault.what);
                None
            }
        }
    }
}

pub(crate) async fn run(args: Args, context: Context, output: Output) -> Result<Exit> {
    let mut found = Findings(Vec::new());
    check_metadata(&context, &mut found).await;
    check_store(&context, &mut found).await;
    check_source(&args, &context, &mut found).await;
    let failed = found.0.iter().any(|c| c.verdict == Verdict::Failed);
    output.print(&json!({ "ok": !failed, "checks": found.0 }), || {
        let lines: Vec<_> = found
            .0
            .iter()
            .map(|c| {
                let mark = match c.verdict {
                    Verdict::Ok => "ok     ",
                    Verdict::Warning => "WARNING",
                    Verdict::Failed => "FAILED ",
                };
                format!("{mark}  {:<18} {}", c.name, c.detail)
            })
            .collect();
        lines.join("\n")
    })?;
    Ok(if failed { Exit::Failed } else { Exit::Done })
}

async fn check_metadata(context: &Context, found: &mut Findings) {
    let Some(ledger) = found.of("metadata server", context.mongo_ledger().await, |_| "reachable, a replica set of 6.0 or newer".into())
    else {
        return;
    };
    let Some(facts) = found.of("version", server_facts(ledger.client()).await, |f| f.version.clone()) else { return };
    describe_server(&facts, found);
    let rights = transaction_works(ledger.client(), &context.connection.metadata_db).await;
    found.of("metadata rights", rights, |()| format!("can write to {} in a transaction", context.connection.metadata_db));
}

fn describe_server(facts: &ServerFacts, found: &mut Findings) {
    match facts.oplog_window() {
        Some(window) => {
            let verdict = if window < SHORT_OPLOG { Verdict::Warning } else { Verdict::Ok };
            let advice = if verdict == Verdict::Warning {
                "; a longer outage of the engine loses history: raise it with replSetResizeOplog (a young server's oplog has simply not filled yet)"
            } else {
                ""
            };
            found.add("oplog window", verdict, format!("reaches back {}{advice}", humantime::format_duration(window)));
        }
        None => {
            found.add("oplog window", Verdict::Warning, "not readable: grant read on the database local to see how long an outage may be")
        }
    }
    let skew = clock::wall_ms() - facts.now_ms;
    let verdict = if skew.abs() > SKEW { Verdict::Warning } else { Verdict::Ok };
    found.add("clock", verdict, format!("this host differs from the server by {} ms; history goes by the server's", skew));
    if !facts.identity_exact {
        found.add(
            "identity",
            Verdict::Warning,
            "the replica set's id is not readable (role clusterMonitor): another set of the same name would not be noticed",
        );
    }
}

/// The one thing that everything else stands on.
async fn transaction_works(client: &Client, db: &str) -> Result<()> {
    let fault = |e: mongodb::error::Error| crate::ledger::classify_mongo_error(&e, crate::ledger::MongoPhase::Run);
    let probe = client.database(db).collection::<bson::Document>("doctor");
    let mut session = client.start_session().await.map_err(fault)?;
    session.start_transaction().await.map_err(fault)?;
    probe.insert_one(doc! { "at": clock::wall_ms() }).session(&mut session).await.map_err(fault)?;
    session.abort_transaction().await.map_err(fault)
}

async fn check_store(context: &Context, found: &mut Findings) {
    let Some(store) = found.of("store", context.store().await, |s| s.describe()) else { return };
    let probed = store::probe(&*store, &random::id()).await;
    let Some(probe) =
        found.of("store access", probed, |p| format!("puts in {} ms, gets in {} ms", p.put_latency.as_millis(), p.get_latency.as_millis()))
    else {
        return;
    };
    if probe.conditional_put {
        found.add("conditional put", Verdict::Ok, "If-None-Match is honoured");
    } else {
        found.add("conditional put", Verdict::Warning, "the store ignores If-None-Match: never run more than one engine on it");
    }
}

async fn check_source(args: &Args, context: &Context, found: &mut Findings) {
    let Some(db) = &args.source_db else { return };
    let default = match context.connection.uri() {
        Ok(uri) => uri,
        Err(fault) => return found.add("source", Verdict::Failed, fault.what),
    };
    let connected = source::connect(args.source_uri.as_deref(), default).await;
    let Some(client) = found.of("source", connected, |_| "reachable, a replica set of 6.0 or newer".into()) else { return };
    if args.source_uri.is_some()
        && let Some(facts) = found.of("source version", server_facts(&client).await, |f| f.version.clone())
    {
        describe_server(&facts, found);
    }
    let opened = match MongoFeed::new(client, db).open(None).await {
        Ok(mut cursor) => cursor.next().await.map(|_| cursor.coverage().fidelity),
        Err(fault) => {
            Err(Fault { what: format!("{} (the user needs the role read on {db}, or changeStream and find)", fault.what), ..fault })
        }
    };
    let fidelity = found.of("change stream", opened, |_| format!("opens on {db}"));
    match fidelity {
        Some(Fidelity::Exact) => found.add("fidelity", Verdict::Ok, "exact: the server sends its own diffs"),
        Some(Fidelity::OrderMayDiffer) => found.add(
            "fidelity",
            Verdict::Warning,
            "the server refuses showRawUpdateDescription: values are exact, the order of fields may differ after updates",
        ),
        None => {}
    }
}
