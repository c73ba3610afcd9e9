//! `bench restore`: base copy, restore, replay, looking up documents and forking, each beside what the same machine can do at most.
//!
//! What is compared: the ceiling is parallel unordered `insert_many` of the same documents by the same driver into the same server, measured before and after.
//! A restore is the whole life of an `argon restore` process, start and majority writes included. A replay restores a collection whose documents were each changed
//! many times, to the end of history; beside it stands the same kind of change applied one by one. Documents are looked up and branches made in this process, each with
//! everything that a command does after it has connected.

use std::time::{Duration, Instant};

use argon::branch::fork::fork;
use argon::branch::history::History;
use argon::branch::look;
use argon::branch::point::Point;
use argon::change::ClusterTime;
use argon::devkit::ArgonProcess;
use argon::fault::{Fault, Result};
use argon::ledger::{
    Base, BaseOrigin, BaseState, Branch, ConnectOptions, Ends, Head, Import, Ledger, MongoLedger, SegmentKind, SegmentRow, SharedLedger,
};
use argon::runtime::clock;
use argon::store::Store;
use bson::{Bson, Document, doc};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use serde_json::json;

use super::documents::Documents;
use super::rig::{Line, Rig};
use super::{ratio, real, say};
use crate::args::{Content, Restore};
use crate::load::per_second;
use crate::report::Report;

/// Documents that are copied and restored.
const STILL: &str = "load0";
/// Documents that are changed again and again.
const CHANGED: &str = "load1";
/// Connections that insert at a time, as many as a restore uses.
const WRITERS: usize = 4;
const INSERT_BATCH: usize = 2_000;
/// Changes of one command of the load, and how many are applied one by one for comparison.
const UPDATE_BATCH: u64 = 1_000;
const ONE_BY_ONE: u64 = 10_000;
/// Longest wait for anything.
const LIMIT: Duration = Duration::from_secs(3_600);
const POLL: Duration = Duration::from_millis(50);

/// A restore that has ended.
struct Restored {
    took: Duration,
    peak_rss: u64,
}

/// Runs it.
pub(super) async fn run(args: Restore) -> Result<Report> {
    let rig = Rig::start(&args.servers).await?;
    let line = Line::new(1);
    let mut report = Report::new("bench restore", options(&args, &rig), args.seed);

    say(&format!("loading {} documents of {} bytes, and {} to be changed", args.documents, args.doc_bytes, args.keys));
    let db = rig.source();
    insert(&rig, db.name(), STILL, &args).await?;
    fill_keys(&rig, args.keys).await?;
    say("the ceiling: insert_many");
    let before = insert(&rig, "ceiling", STILL, &args).await?;

    say("base copy");
    rig.start_capture(&line).await?;
    let ledger = ledger(&rig, &line).await?;
    let mut engine = rig.start_engine(&line)?;
    let base = base(&ledger, &mut engine).await?;
    let store = rig.open_store().await?;
    usable(&ledger, &store, &line, &mut engine).await?;
    let copied = Duration::from_millis(u64::try_from(base.finished_ms.unwrap_or(base.created_ms) - base.created_ms).unwrap_or(0));

    say("restore");
    let still = restore(&rig, &line, "back", STILL).await?;
    let after = insert(&rig, "ceiling", STILL, &args).await?;
    let ceiling_s = before.min(after);
    let (ceiling, restored) = (per_second(args.documents, ceiling_s), per_second(args.documents, still.took));
    let found = ratio(restored, ceiling);
    let mib = |n: u64, time: Duration| ratio(real(n * u64::from(args.doc_bytes)) / 1_048_576.0, time.as_secs_f64());
    let base_per_s = ratio(real(base.documents), copied.as_secs_f64());
    report.set("base_documents_per_s", base_per_s);
    report.set("base_mib_per_s", ratio(real(base.raw_bytes) / 1_048_576.0, copied.as_secs_f64()));
    report.set("base_stored_bytes", base.stored_bytes);
    report.set("restore_documents_per_s", restored);
    report.set("restore_mib_per_s", mib(args.documents, still.took));
    report.set("ceiling_documents_per_s", ceiling);
    report.set("ratio_to_ceiling", found);
    report.set("restore_peak_rss_bytes", still.peak_rss);
    report.line("base copy", format!("{base_per_s:.0} documents/s, {:.2} of the ceiling", ratio(base_per_s, ceiling)));
    report.line("restore", format!("{restored:.0} documents/s ({:.0} MiB/s), {found:.2} of the ceiling", mib(args.documents, still.took)));
    report.line(
        "ceiling",
        format!("{ceiling:.0} documents/s: insert_many, {WRITERS} writers ({:.1} and {:.1} s)", before.as_secs_f64(), after.as_secs_f64()),
    );

    let one_by_one = one_by_one(&rig, &args).await?;
    say(&format!("{} changes", args.changes));
    change(&rig, &args).await?;
    let head = committed(&ledger, &mut engine, ONE_BY_ONE.min(args.changes) + args.changes).await?;
    let engine_rss = engine.peak_rss().unwrap_or(0);
    say("replay");
    let replayed = restore(&rig, &line, "replayed", CHANGED).await?;
    let replay = per_second(head, replayed.took);
    report.set("replay_changes_per_s", replay);
    report.set("one_by_one_per_s", one_by_one);
    report.set("replay_ratio_to_one_by_one", ratio(replay, one_by_one));
    report.set("replay_peak_rss_bytes", replayed.peak_rss);
    report.set("engine_peak_rss_bytes", engine_rss);
    report.line(
        "replay",
        format!("{replay:.0} changes/s onto {} documents, {:.1} times as fast as one by one", args.keys, ratio(replay, one_by_one)),
    );
    let peak = still.peak_rss.max(replayed.peak_rss);
    report
        .line("memory", format!("restores {:.0} MiB, engine {:.0} MiB at most", real(peak) / 1_048_576.0, real(engine_rss) / 1_048_576.0));

    say("looking up documents");
    let gets = gets(&ledger, &store, &line, &args, head).await?;
    let get_p99 = quantiles(&mut report, "get", gets);
    rig.stop_engine(&mut engine).await?;

    say("branches");
    let mut worst = Duration::ZERO;
    for segments in [1, args.segments] {
        let (made, writes) = forks(&rig, &store, segments, args.branches).await?;
        worst = worst.max(quantiles(&mut report, &format!("branch_of_{segments}_segments"), made));
        quantiles(&mut report, "one_majority_insert", writes);
    }
    limits(&mut report, &args, found, ratio(replay, one_by_one), peak.max(engine_rss), get_p99, worst);
    Ok(report)
}

fn options(args: &Restore, rig: &Rig) -> serde_json::Value {
    json!({
        "documents": args.documents, "doc_bytes": args.doc_bytes, "changes": args.changes, "keys": args.keys, "in_turn": args.in_turn, "gets": args.gets,
        "branches": args.branches, "segments": args.segments, "servers": rig.describe(),
    })
}

fn limits(report: &mut Report, args: &Restore, found: f64, replay: f64, peak: u64, get: Duration, branch: Duration) {
    if !args.check {
        return;
    }
    report.limit(found >= 0.7, format!("restore is {found:.2} of insert_many, at least 0.7 wanted"));
    report.limit(replay >= 10.0, format!("replay is {replay:.1} times as fast as one by one, at least 10 wanted"));
    report.limit(peak <= 256 << 20, format!("{} MiB at most, 256 allowed", peak >> 20));
    report.limit(get < Duration::from_millis(200), format!("get takes {get:.1?} (p99), less than 200 ms wanted"));
    report.limit(branch < Duration::from_millis(10), format!("a branch takes {branch:.1?} (p99), less than 10 ms wanted"));
}

/// p50, p99 and the slowest into the report; the p99.
fn quantiles(report: &mut Report, name: &str, mut times: Vec<Duration>) -> Duration {
    times.sort();
    let at = |share: f64| {
        #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss, clippy::cast_precision_loss)] // a rank in a short list
        let i = ((times.len() as f64 * share).ceil() as usize).saturating_sub(1);
        times.get(i).copied().unwrap_or_default()
    };
    let (p50, p99, max) = (at(0.5), at(0.99), at(1.0));
    let ms = |time: Duration| time.as_secs_f64() * 1_000.0;
    report.set(&format!("{name}_ms"), json!({ "p50": ms(p50), "p99": ms(p99), "max": ms(max), "count": times.len() }));
    report.line(name, format!("p50 {p50:.1?}, p99 {p99:.1?}, at most {max:.1?} of {}", times.len()));
    p99
}

fn failed(doing: &str) -> impl Fn(mongodb::error::Error) -> Fault {
    move |error| Fault::unknown(format!("{doing}: {error}"))
}

async fn ledger(rig: &Rig, line: &Line) -> Result<SharedLedger> {
    let ledger = MongoLedger::connect(&rig.mongod.uri(), &line.metadata_db, ConnectOptions::default()).await?;
    ledger.prepare().await?;
    Ok(std::sync::Arc::new(ledger))
}

/// The same documents into a database, in parallel.
async fn insert(rig: &Rig, db: &str, collection: &str, args: &Restore) -> Result<Duration> {
    let db = rig.client.database(db);
    db.collection::<Document>(collection).drop().await.map_err(failed("drop"))?;
    // Made by one thread and sent by several: making them is no part of what the server can do, so they wait in a channel when it is the slow side.
    let (to, from) = async_channel(WRITERS * 2);
    let (count, bytes, seed) = (args.documents, args.doc_bytes, args.seed);
    let making = tokio::task::spawn_blocking(move || {
        let mut documents = Documents::new(seed, bytes, Content::Records);
        let mut left = count;
        while left > 0 {
            let take = left.min(INSERT_BATCH as u64);
            let chunk: Vec<Document> = documents.by_ref().take(usize::try_from(take).unwrap_or(INSERT_BATCH)).collect();
            if to.send(chunk).is_err() {
                return;
            }
            left -= take;
        }
    });
    let start = clock::now();
    let writers: Vec<_> = (0..WRITERS)
        .map(|_| {
            let (from, into) = (from.clone(), db.collection::<Document>(collection));
            tokio::spawn(async move {
                while let Some(chunk) = next(&from).await {
                    into.insert_many(chunk).ordered(false).await.map_err(failed("insert_many"))?;
                }
                Ok::<_, Fault>(())
            })
        })
        .collect();
    for writer in writers {
        writer.await.map_err(|e| Fault::unknown(e.to_string()))??;
    }
    let took = start.elapsed();
    making.await.map_err(|e| Fault::unknown(e.to_string()))?;
    Ok(took)
}

type Chunks = std::sync::Arc<tokio::sync::Mutex<tokio::sync::mpsc::Receiver<Vec<Document>>>>;

/// A sender for a thread, a receiver for several tasks.
fn async_channel(capacity: usize) -> (Blocking, Chunks) {
    let (to, from) = tokio::sync::mpsc::channel(capacity);
    (Blocking(to), std::sync::Arc::new(tokio::sync::Mutex::new(from)))
}

struct Blocking(tokio::sync::mpsc::Sender<Vec<Document>>);

impl Blocking {
    fn send(&self, chunk: Vec<Document>) -> std::result::Result<(), ()> {
        self.0.blocking_send(chunk).map_err(|_| ())
    }
}

async fn next(from: &Chunks) -> Option<Vec<Document>> {
    from.lock().await.recv().await
}

async fn fill_keys(rig: &Rig, keys: u64) -> Result<()> {
    let into = rig.source().collection::<Document>(CHANGED);
    let mut next = 0;
    while next < keys {
        let end = (next + INSERT_BATCH as u64).min(keys);
        let chunk = (next..end).map(|n| doc! { "_id": id(n), "n": 0_i64, "name": format!("document {n}"), "tags": ["a", "b"] });
        into.insert_many(chunk).ordered(false).await.map_err(failed("loading"))?;
        next = end;
    }
    Ok(())
}

fn id(n: u64) -> i64 {
    i64::try_from(n).unwrap_or(i64::MAX)
}

/// One statement of an update command.
fn statement(rng: &mut StdRng, args: &Restore, n: u64) -> Document {
    let keys = args.keys.max(1);
    let key = if args.in_turn { n % keys } else { rng.random_range(0..keys) };
    doc! { "q": { "_id": id(key) }, "u": { "$set": { "n": id(n) + 1 } } }
}

async fn change(rig: &Rig, args: &Restore) -> Result<()> {
    let (db, mut rng) = (rig.source(), StdRng::seed_from_u64(args.seed));
    let mut done = 0;
    while done < args.changes {
        let end = (done + UPDATE_BATCH).min(args.changes);
        let updates: Vec<Document> = (done..end).map(|n| statement(&mut rng, args, n)).collect();
        db.run_command(doc! { "update": CHANGED, "updates": updates, "ordered": false }).await.map_err(failed("updating"))?;
        done = end;
    }
    Ok(())
}

/// Changes a second, each a command of its own, one after the other.
async fn one_by_one(rig: &Rig, args: &Restore) -> Result<f64> {
    say("changes one by one");
    let (db, mut rng) = (rig.source(), StdRng::seed_from_u64(args.seed + 1));
    let count = ONE_BY_ONE.min(args.changes);
    let start = clock::now();
    for n in 0..count {
        let update = statement(&mut rng, args, n + args.changes);
        db.run_command(doc! { "update": CHANGED, "updates": [update] }).await.map_err(failed("updating"))?;
    }
    Ok(per_second(count, start.elapsed()))
}

async fn base(ledger: &SharedLedger, engine: &mut ArgonProcess) -> Result<Base> {
    let start = clock::now();
    loop {
        alive(engine, start)?;
        if let Some(base) = ledger.bases_in(BaseState::Complete).await?.into_iter().find(|base| base.origin == BaseOrigin::Copy) {
            return Ok(base);
        }
        tokio::time::sleep(POLL).await;
    }
}

/// A base can be restored once the stream has passed the time at which it was read; on a quiet database that takes some seconds.
async fn usable(ledger: &SharedLedger, store: &Store, line: &Line, engine: &mut ArgonProcess) -> Result<()> {
    let start = clock::now();
    loop {
        alive(engine, start)?;
        let history = History::open(ledger.clone(), store.clone(), &line.branch).await?;
        if !history.line().stretches(&**ledger).await?.is_empty() {
            return Ok(());
        }
        tokio::time::sleep(POLL).await;
    }
}

/// Waits until so many changes are committed; the head.
async fn committed(ledger: &SharedLedger, engine: &mut ArgonProcess, changes: u64) -> Result<u64> {
    let start = clock::now();
    loop {
        alive(engine, start)?;
        let head = ledger.branches().await?.first().map_or(0, |branch| branch.head.seq);
        if head >= changes {
            return Ok(head);
        }
        tokio::time::sleep(POLL).await;
    }
}

fn alive(engine: &mut ArgonProcess, since: Instant) -> Result<()> {
    if engine.exited().is_some() || since.elapsed() > LIMIT {
        return Err(Fault::unknown(format!("the engine has ended or does not go on: {}", engine.log_tail(2_000))));
    }
    Ok(())
}

/// `argon restore` of one collection, as a process.
async fn restore(rig: &Rig, line: &Line, db: &str, collection: &str) -> Result<Restored> {
    let start = clock::now();
    let mut process = rig.start_command(line, &["restore", &line.branch, "--to-db", db, "--collection", collection])?;
    let mut peak_rss = 0;
    while process.exited().is_none() {
        peak_rss = process.peak_rss().unwrap_or(0).max(peak_rss);
        if start.elapsed() > LIMIT {
            return Err(Fault::unknown("the restore does not end"));
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    let took = start.elapsed();
    let exit = process.wait(LIMIT).await?;
    if exit.code != 0 {
        return Err(Fault::unknown(format!("argon restore ended with exit code {}: {}", exit.code, process.log_tail(2_000))));
    }
    Ok(Restored { took, peak_rss })
}

/// Documents at random points of history, each found from the beginning.
async fn gets(ledger: &SharedLedger, store: &Store, line: &Line, args: &Restore, head: u64) -> Result<Vec<Duration>> {
    let mut rng = StdRng::seed_from_u64(args.seed);
    // Points before the base can be used are refused.
    let first = {
        let history = History::open(ledger.clone(), store.clone(), &line.branch).await?;
        let stretch = history.line().stretches(&**ledger).await?.into_iter().next();
        let from = stretch.ok_or_else(|| Fault::unknown("nothing can be restored"))?.from;
        history.locate(from).await?.seq
    };
    let mut times = Vec::new();
    for _ in 0..args.gets {
        let (key, at) = (id(rng.random_range(0..args.keys.max(1))), rng.random_range(first.min(head)..=head));
        let start = clock::now();
        let history = History::open(ledger.clone(), store.clone(), &line.branch).await?;
        let found = look::get(&history, CHANGED, &Bson::Int64(key), Point::Seq(at)).await?;
        times.push(start.elapsed());
        if found.is_none() {
            return Err(Fault::corrupt(format!("document {key} is not there at seq:{at}")));
        }
    }
    Ok(times)
}

/// Forks of a branch of so many segments, whose objects nobody looks at.
async fn forks(rig: &Rig, store: &Store, segments: u64, count: u32) -> Result<(Vec<Duration>, Vec<Duration>)> {
    let line = Line { branch: "bench/wide".into(), metadata_db: format!("argon_bench_wide_{segments}") };
    let ledger = ledger(rig, &line).await?;
    let parent = format!("wide-{segments}");
    let time = ClusterTime { t: 1, i: 1 };
    let row = |n: u64| SegmentRow {
        key: format!("projects/bench/branches/{parent}/segments/L0/1-{n:016x}"),
        branch: parent.clone(),
        kind: SegmentKind::Changes,
        epoch: 1,
        level: 0,
        first_seq: n * 100 + 1,
        last_seq: n * 100 + 100,
        first_time: time,
        last_time: time,
        last_wall_ms: None,
        starts_inside: false,
        ends: Ends::Closed,
        has_ddl: false,
        holes: 0,
        raw_bytes: 1,
        stored_bytes: 1,
        sha256: String::new(),
        committed_ms: 0,
        filter: None,
    };
    let mut next = 0;
    while next < segments {
        let end = (next + 1_000).min(segments);
        ledger.import_segments(&(next..end).map(row).collect::<Vec<_>>()).await?;
        next = end;
    }
    let mut branch = Branch::new(&parent, &line.branch, "wide");
    branch.head = Head { seq: segments * 100, time, wall_ms: None };
    let base = Base::empty("wide-base", &parent, time, String::new());
    ledger.import_branch(&Import { branch, capture: None, bases: vec![base] }).await?;
    // What a single durable write costs here, in turn with the forks.
    let light = rig.client.database(&line.metadata_db).collection::<Document>("light");
    let (mut times, mut writes) = (Vec::new(), Vec::new());
    for n in 0..count {
        let start = clock::now();
        light.insert_one(doc! { "_id": n }).await.map_err(failed("insert"))?;
        writes.push(start.elapsed());
        let start = clock::now();
        let history = History::open(ledger.clone(), store.clone(), &line.branch).await?;
        fork(&history, &format!("bench/fork-{segments}-{n}"), Point::Head, None).await?;
        times.push(start.elapsed());
    }
    Ok((times, writes))
}
