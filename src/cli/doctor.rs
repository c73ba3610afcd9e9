//! `argon doctor`: checks what a capture needs and says what to fix. Changes nothing that stays.

use std::path::{Path, PathBuf};
use std::time::Duration;

use bson::doc;
use mongodb::Client as MongoClient;
use serde::Serialize;
use serde_json::json;

use crate::branch::catalogue::read_first_catalogue;
use crate::capture::MongoFeed;
use crate::capture::feed::ChangeFeed;
use crate::capture::source;
use crate::change::{ClusterTime, token_time};
use crate::config::database_name;
use crate::fault::{Fault, Result};
use crate::http::{self, client::Client};
use crate::ledger::{
    Capture, CaptureState, Coverage, Fidelity, Ledger, MissingRights, MongoLedger, OplogShare, ServerFacts, Topology, grant_command,
    missing_rights, oplog_share, same_source, server_facts,
};
use crate::runtime::{clock, random};
use crate::store;

use super::capture::state_name;
use super::output::EXPERIMENTAL;
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
    /// Where an engine would listen.
    #[arg(long, env = "ARGON_HTTP_ADDR", default_value = "127.0.0.1:8080", value_name = "HOST:PORT|off")]
    http_addr: String,
    /// Where it would serve its metrics.
    #[arg(long, env = "ARGON_METRICS_ADDR", value_name = "HOST:PORT")]
    metrics_addr: Option<String>,
    /// Where one that runs is asked whether it is the one that listens there.
    #[arg(long, env = "ARGON_CONTROL_SOCKET", value_name = "PATH|off")]
    control_socket: Option<PathBuf>,
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
    /// What to type about it.
    next: Option<String>,
}

/// An oplog shorter than this loses history in an ordinary outage.
const SHORT_OPLOG: Duration = Duration::from_secs(24 * 3600);
/// Display and scheduling go by the server; a large skew confuses people reading logs.
const SKEW: i64 = 5_000;

struct Findings(Vec<Check>);

impl Findings {
    fn add(&mut self, name: &'static str, verdict: Verdict, detail: impl Into<String>) {
        self.0.push(Check { name, verdict, detail: detail.into(), next: None });
    }

    fn failed(&mut self, name: &'static str, fault: Fault) {
        self.0.push(Check { name, verdict: Verdict::Failed, detail: fault.what, next: fault.next });
    }

    fn of<T>(&mut self, name: &'static str, outcome: Result<T>, detail: impl FnOnce(&T) -> String) -> Option<T> {
        match outcome {
            Ok(value) => {
                self.add(name, Verdict::Ok, detail(&value));
                Some(value)
            }
            Err(fault) => {
                self.failed(name, fault);
                None
            }
        }
    }
}

pub(crate) async fn run(args: Args, context: Context, output: Output) -> Result<Exit> {
    let mut found = Findings(Vec::new());
    let metadata = check_metadata(&args, &context, &mut found).await;
    check_store(&context, &mut found).await;
    check_source(&args, &context, metadata.as_ref(), &mut found).await;
    check_ports(&args, &mut found).await;
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
                let next = c.next.as_ref().map_or_else(String::new, |command| format!("\n{:<28}next: {command}", ""));
                format!("{mark}  {:<18} {}{next}", c.name, c.detail)
            })
            .collect();
        lines.join("\n")
    })?;
    Ok(if failed { Exit::Failed } else { Exit::Done })
}

/// What is known of the metadata once its server has answered.
struct Metadata {
    identity: String,
    /// Captures there are, where they can be read.
    captures: Vec<Capture>,
    /// Its oplog was looked at, as that of a source.
    oplog_seen: bool,
}

async fn check_metadata(args: &Args, context: &Context, found: &mut Findings) -> Option<Metadata> {
    let ledger = found.of("metadata server", context.mongo_ledger().await, |_| "reachable".into())?;
    let facts = found.of("version", server_facts(ledger.client()).await, |f| f.version.clone())?;
    describe_topology("topology", &facts.topology, false, found);
    describe_server(&facts, found);
    let db = &context.connection.metadata_db;
    check_rights(ledger.client(), db, found).await;
    let captures = captures(&ledger).await.unwrap_or_default();
    let oplog_seen = is_read_from(args, &facts, &captures);
    if oplog_seen {
        describe_oplog(&facts, found);
        check_share(ledger.client(), db, &facts, found).await;
    }
    Some(Metadata { identity: facts.identity, captures, oplog_seen })
}

/// Whether the metadata's own server is a source too: then its oplog is what captures depend on. Nobody has said otherwise, before there are any.
fn is_read_from(args: &Args, facts: &ServerFacts, captures: &[Capture]) -> bool {
    let running: Vec<&Capture> = captures.iter().filter(|c| c.state != CaptureState::Stopped).collect();
    let here = running.iter().any(|c| same_source(&c.source.identity, &facts.identity));
    here || args.source_uri.is_none() && (args.source_db.is_some() || running.is_empty())
}

/// What the server says of its user first: a right that is missing shows itself in the middle of the work otherwise.
async fn check_rights(client: &MongoClient, db: &str, found: &mut Findings) {
    match missing_rights(client, db).await {
        Ok(Some(missing)) => return found.failed("metadata rights", lacks(&missing, db)),
        Ok(None) => {}
        Err(fault) => found.add("metadata rights", Verdict::Warning, format!("what the user may do is not known: {}", fault.what)),
    }
    let rights = transaction_works(client, db).await;
    found.of("metadata rights", rights, |()| format!("can write to {db} in a transaction"));
}

fn lacks(missing: &MissingRights, db: &str) -> Fault {
    let MissingRights { user, user_db, actions } = missing;
    let what =
        format!("user {user} lacks {} on {db}: grant readWrite there, or the role of docs/rights/metadata-role.json", actions.join(", "));
    Fault::rejected(what).next(grant_command(user, user_db, "readWrite", db))
}

/// What Argon writes into its metadata goes through the oplog of that cluster, and pushes out what captures of the same cluster still have to read.
async fn check_share(client: &MongoClient, db: &str, facts: &ServerFacts, found: &mut Findings) {
    let share = match oplog_share(client, db).await {
        Ok(Some(share)) => share,
        Ok(None) => return,
        Err(fault) => return found.add("oplog share", Verdict::Warning, format!("not known: {}", fault.what)),
    };
    let (verdict, detail) = judge_share(&share, facts.oplog_window().unwrap_or_default());
    found.add("oplog share", verdict, detail);
}

/// From here on it is worth a warning.
const LARGE_SHARE: f64 = 0.1;

fn judge_share(share: &OplogShare, window: Duration) -> (Verdict, String) {
    let time = |time: Duration| humantime::format_duration(Duration::from_secs(time.as_secs())).to_string();
    let percent = share.argon() * 100.0;
    let what =
        format!("Argon wrote {percent:.0} % of the newest {} entries of the source's own oplog ({})", share.entries, time(share.span));
    if share.argon() < LARGE_SHARE {
        return (Verdict::Ok, what);
    }
    let without = time(share.window_without(window));
    let way_out = "keep the metadata on another cluster (ARGON_MONGODB_URI there, --source-uri for the source), or raise WORKER_BATCH_SIZE";
    let shortens = format!("{what}: at that rate it reaches back {} instead of {without}; {way_out}", time(window));
    (Verdict::Warning, shortens)
}

async fn captures(ledger: &MongoLedger) -> Result<Vec<Capture>> {
    if ledger.is_prepared().await? { ledger.captures().await } else { Ok(Vec::new()) }
}

/// Metadata may live on either; as a source a sharded cluster is an experiment.
fn describe_topology(name: &'static str, topology: &Topology, is_source: bool, found: &mut Findings) {
    match topology {
        Topology::ReplicaSet { name: set } => found.add(name, Verdict::Ok, format!("the replica set {set}")),
        Topology::Sharded if is_source => found.add(name, Verdict::Warning, EXPERIMENTAL),
        Topology::Sharded => found.add(name, Verdict::Ok, "a sharded cluster, through mongos"),
    }
}

fn describe_server(facts: &ServerFacts, found: &mut Findings) {
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

fn describe_oplog(facts: &ServerFacts, found: &mut Findings) {
    match facts.oplog_window() {
        // A mongos has no oplog of its own to look at.
        None if facts.topology == Topology::Sharded => {
            found.add("oplog window", Verdict::Warning, "not readable through mongos: look at the oplog of every shard");
        }
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
}

/// The one thing that everything else stands on.
async fn transaction_works(client: &MongoClient, db: &str) -> Result<()> {
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

/// What is taken by an engine that answers is as it should be.
async fn check_ports(args: &Args, found: &mut Findings) {
    let addresses = [("ARGON_HTTP_ADDR", Some(args.http_addr.as_str())), ("ARGON_METRICS_ADDR", args.metrics_addr.as_deref())];
    for (variable, addr) in addresses {
        let Some(addr) = addr.filter(|addr| *addr != "off") else { continue };
        match http::may_listen(variable, addr).await {
            Ok(()) => found.add("address", Verdict::Ok, format!("{variable}={addr} is free")),
            Err(fault) => match engine_answers(args.control_socket.as_deref()).await {
                true => found.add("address", Verdict::Ok, format!("{variable}={addr}: an engine of this user runs here")),
                false => found.failed("address", fault),
            },
        }
    }
}

async fn engine_answers(socket: Option<&Path>) -> bool {
    match Client::local(socket.filter(|path| path.as_os_str() != "off"), None) {
        Ok(client) => client.health().await.is_ok(),
        Err(_) => false,
    }
}

async fn check_source(args: &Args, context: &Context, metadata: Option<&Metadata>, found: &mut Findings) {
    let Some(db) = &args.source_db else { return };
    let default = match context.connection.uri() {
        Ok(uri) => uri,
        Err(fault) => return found.failed("source", fault),
    };
    let connected = source::connect(args.source_uri.as_deref(), default).await;
    let Some(client) = found.of("source", connected, |_| "reachable".into()) else { return };
    let Some(facts) = found.of("source version", server_facts(&client).await, |f| f.version.clone()) else { return };
    describe_topology("source topology", &facts.topology, true, found);
    // Elsewhere than the metadata, or nothing of it was described.
    let shared = metadata.filter(|m| same_source(&m.identity, &facts.identity));
    if args.source_uri.is_some() && !shared.is_some_and(|m| m.oplog_seen) {
        describe_server(&facts, found);
        describe_oplog(&facts, found);
        if shared.is_some() {
            check_share(&client, &context.connection.metadata_db, &facts, found).await;
        }
    }
    let Some((coverage, now)) = found.of("change stream", look_into_stream(&client, db).await, |_| format!("opens on {db}")) else {
        return;
    };
    describe_coverage(&coverage, found);
    let is_metadata = *db == context.connection.metadata_db && metadata.is_none_or(|m| same_source(&m.identity, &facts.identity));
    let known = metadata.and_then(|m| m.captures.iter().find(|c| c.source.db == *db && same_source(&c.source.identity, &facts.identity)));
    match known {
        _ if is_metadata => found.add(
            "source database",
            Verdict::Failed,
            format!("{db} is Argon's own metadata database: choose another --source-db or --metadata-db"),
        ),
        Some(capture) => {
            found.add("source database", Verdict::Ok, format!("captured into {} ({})", capture.branch_name, state_name(capture.state)))
        }
        None => {
            let first = read_first_catalogue(&client.database(db), now).await;
            found.of("source database", first, |(catalogue, _, documents)| match documents {
                true => format!("{db} has {} collections, whose documents are copied when its capture starts", catalogue.collections.len()),
                false => format!("{db} has no documents yet: there is nothing to copy when its capture starts"),
            });
        }
    }
}

/// Opens a stream; what it sends, and the time it begins at.
async fn look_into_stream(client: &MongoClient, db: &str) -> Result<(Coverage, ClusterTime)> {
    let opened = MongoFeed::new(client.clone(), db).open(None).await;
    let needs = format!("the user needs the role read on {db}, or changeStream and find");
    let mut cursor = opened.map_err(|fault| Fault { what: format!("{} ({needs})", fault.what), ..fault })?;
    let now = token_time(cursor.next().await?.token()?)?;
    Ok((cursor.coverage(), now))
}

fn describe_coverage(coverage: &Coverage, found: &mut Findings) {
    match coverage.fidelity {
        Fidelity::Exact => found.add("fidelity", Verdict::Ok, "exact: the server sends its own diffs"),
        Fidelity::OrderMayDiffer => found.add(
            "fidelity",
            Verdict::Warning,
            "the server refuses showRawUpdateDescription: values are exact, the order of fields may differ after updates",
        ),
    }
    for what in &coverage.uncovered {
        found.add("not covered", Verdict::Warning, what);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn seen(describe: impl FnOnce(&mut Findings)) -> Vec<(&'static str, Verdict, String)> {
        let mut found = Findings(Vec::new());
        describe(&mut found);
        found.0.into_iter().map(|c| (c.name, c.verdict, c.detail)).collect()
    }

    #[test]
    fn rule_8_a_sharded_source_is_called_experimental_and_sharded_metadata_is_not() {
        let set = Topology::ReplicaSet { name: "rs0".into() };
        assert_eq!(seen(|f| describe_topology("t", &set, true, f)), [("t", Verdict::Ok, "the replica set rs0".to_owned())]);
        assert_eq!(seen(|f| describe_topology("t", &Topology::Sharded, true, f)), [("t", Verdict::Warning, EXPERIMENTAL.to_owned())]);
        assert_eq!(seen(|f| describe_topology("t", &Topology::Sharded, false, f))[0].1, Verdict::Ok);
    }

    #[test]
    fn rules_1_and_2_what_a_source_does_not_send_is_shown() {
        assert_eq!(seen(|f| describe_coverage(&Coverage::full(), f)).len(), 1);
        let less = Coverage { fidelity: Fidelity::OrderMayDiffer, uncovered: vec!["x: refused".into()] };
        let told = seen(|f| describe_coverage(&less, f));
        assert!(told.iter().all(|(_, verdict, _)| *verdict == Verdict::Warning), "{told:?}");
        assert_eq!(told[1], ("not covered", Verdict::Warning, "x: refused".to_owned()));
    }

    #[test]
    fn argon_s_share_of_the_oplog_is_told_and_from_a_tenth_on_what_it_costs_and_the_way_out() {
        let share = |argon_bytes| OplogShare { entries: 20_000, bytes: 1_000, argon_bytes, span: Duration::from_secs(90) };
        let day = Duration::from_secs(24 * 3_600);
        assert_eq!(judge_share(&share(99), day).0, Verdict::Ok);
        let (verdict, told) = judge_share(&share(200), day);
        assert_eq!(verdict, Verdict::Warning);
        assert!(told.contains("20 % of the newest 20000 entries") && told.contains("back 1day instead of 1day 6h"), "{told}");
        assert!(told.contains("--source-uri"), "{told}");
    }

    #[test]
    fn the_oplog_of_the_metadata_server_matters_where_a_source_is_read_from_it() {
        let args = |db: Option<&str>, uri: Option<&str>| Args {
            source_db: db.map(str::to_owned),
            source_uri: uri.map(str::to_owned),
            http_addr: "off".into(),
            metrics_addr: None,
            control_socket: None,
        };
        let facts = ServerFacts {
            version: "6.0.5".into(),
            topology: Topology::ReplicaSet { name: "rs0".into() },
            identity: "rs:rs0:aa".into(),
            identity_exact: true,
            now_ms: 0,
            hosts: Vec::new(),
            oplog: None,
            max_bson_bytes: 16 << 20,
        };
        let branch = crate::ledger::Branch::new("b", "p/b", "d");
        let of = |identity: &str| {
            let source = crate::ledger::Source::new(None, "d".into(), identity.into());
            Capture::new("c", &branch, source, bson::rawdoc! {}, 1)
        };
        let (here, elsewhere) = (of("rs:rs0:aa"), of("rs:other:bb"));
        for (args, captures, wanted) in [
            (args(None, None), vec![], true),
            (args(Some("d"), None), vec![], true),
            (args(Some("d"), Some("env:X")), vec![], false),
            (args(Some("d"), Some("env:X")), vec![here.clone()], true),
            (args(None, None), vec![elsewhere.clone()], false),
            (args(None, None), vec![elsewhere.clone(), here], true),
            (args(Some("d"), None), vec![elsewhere], true),
        ] {
            assert_eq!(is_read_from(&args, &facts, &captures), wanted, "{args:?} {captures:?}");
        }
    }
}
