//! Three engines on the same metadata: killed, frozen past their lease, stopped; captures spread and move.

use std::collections::BTreeMap;
use std::time::Duration;

use argon::devkit::Mode;
use argon::ledger::{Capture, CaptureState, JobKind, JobState, MAX_ENQUEUE, NewJob};
use argon::runtime::{clock, random};
use futures_util::TryStreamExt;
use mongodb::bson::{Document, doc, rawdoc};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

use crate::kill::{RECOVERY, number, revive};
use crate::load::{Load, Mix};
use crate::world::{Engine, LIMIT, World, drain, until};

/// What design and runbook promise; seen are one to four seconds.
const RERUN: Duration = Duration::from_secs(20);
const HANDED_OVER: Duration = Duration::from_secs(5);

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn three_engines_lose_nothing_to_kills_freezes_and_stops() {
    let faults = number("ARGON_KILLS").unwrap_or(6);
    let seed = number("ARGON_SEED").unwrap_or_else(|| u64::from_str_radix(&random::id()[..8], 16).unwrap());
    println!("three_engines_lose_nothing_to_kills_freezes_and_stops: ARGON_KILLS={faults} ARGON_SEED={seed}");
    let mut rng = StdRng::seed_from_u64(seed);
    let mut world = World::new("fleet").await;
    let proxy = world.proxied().await;
    proxy.set(Mode::Delay(Duration::from_millis(30)));
    let settings = [("WORKER_BATCH_SIZE", "20")];
    world.start_capture().await;
    let mut engines: Vec<Engine> = (0..3).map(|_| world.engine(&settings)).collect();
    let load = Load::start(&world.source(), Mix { seed, ddl: true, tolerant: false }).await;
    world.progress(100).await;

    let (mut kills, mut freezes, mut stops, mut hits) = (0u64, 0u64, 0u64, 0u64);
    let (mut slowest_rerun, mut slowest_hand_over) = (Duration::ZERO, Duration::ZERO);
    // Kills are what is counted; a third of the strikes freezes or stops instead. At least one of each, and one that hits an engine with something in its name.
    while kills < faults || freezes == 0 || stops == 0 || hits == 0 {
        tokio::time::sleep(Duration::from_millis(rng.random_range(100..2_000))).await;
        for engine in &mut engines {
            assert_eq!(engine.exited(), None, "nothing else may end an engine: {}", engine.log_tail(3_000));
        }
        let victim = rng.random_range(0..engines.len());
        let strike = if kills >= faults { rng.random_range(0..2) } else { rng.random_range(0..6) };
        match strike {
            0 => {
                freezes += 1;
                engines[victim].pause().unwrap();
                // Past the lease: the others have taken everything when it wakes up, and it must find out by itself.
                let began = clock::now();
                let name = tag(&engines[victim]);
                hits += u64::from(!freed(&world, &name).await);
                until("the others have taken what the frozen engine had", || async { freed(&world, &name).await.then_some(()) }).await;
                slowest_rerun = slowest_rerun.max(began.elapsed());
                engines[victim].resume().unwrap();
            }
            1 => {
                stops += 1;
                let owned = owns(&world, &tag(&engines[victim])).await;
                let began = clock::now();
                drain(&mut engines[victim]).await;
                if owned {
                    until("another engine follows the capture", || async { world.capture().await.owner }).await;
                    slowest_hand_over = slowest_hand_over.max(began.elapsed());
                }
                engines[victim] = world.engine(&settings);
            }
            _ => {
                kills += 1;
                let name = tag(&engines[victim]);
                engines[victim].kill9();
                let began = clock::now();
                hits += u64::from(!freed(&world, &name).await);
                until("nothing is in the name of the dead engine", || async { freed(&world, &name).await.then_some(()) }).await;
                slowest_rerun = slowest_rerun.max(began.elapsed());
                engines[victim] = world.engine(&settings);
            }
        }
    }
    let written = load.stop().await;
    proxy.set(Mode::Pass);
    let healed = clock::now();
    let condemned = revive(&world).await;
    world.caught_up().await;
    assert!(healed.elapsed() < RECOVERY, "with the faults off it took {:.0?} to commit everything, seed {seed}", healed.elapsed());
    let checked = world.check().await;
    println!(
        "three engines: {kills} kills, {freezes} freezes ({hits} of those held jobs or the capture), {stops} stops, {} changes ({written} acknowledged) in {} segments, {} orphans, {condemned} condemned; \
         taken from the dead within {slowest_rerun:.1?}, handed over within {slowest_hand_over:.1?}, seed {seed}",
        checked.audit.changes, checked.audit.segments, checked.audit.orphans,
    );
    assert!(checked.audit.changes >= written, "the server acknowledged {written} changes");
    assert!(hits > 0, "there was something to take over, seed {seed}");
    assert!(slowest_rerun < RERUN && slowest_hand_over < HANDED_OVER, "{slowest_rerun:?}, {slowest_hand_over:?}, seed {seed}");
    for engine in &mut engines {
        drain(engine).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn captures_spread_over_engines_move_when_one_ends_and_survive_a_rolling_restart() {
    let world = World::new("spread").await;
    let databases: Vec<String> = (0..3).map(|n| format!("spread_{n}")).collect();
    for db in &databases {
        world.json(&["capture", "start", &format!("crash/{db}"), "--source-db", db]).await;
    }
    let mut engines: Vec<Engine> = (0..3).map(|_| world.engine(&[])).collect();
    until("each engine follows one capture", || async { spread(&world).await.filter(|by| by.len() == 3) }).await;

    // Writes go on in each of them all the time; every one must arrive, in order, whatever happens to the engines.
    let mut written = 0i64;
    let mut write = async || {
        written += 1;
        for db in &databases {
            world.client.database(db).collection::<Document>("c").insert_one(doc! { "_id": written }).await.unwrap();
        }
        written
    };
    write().await;
    engines[0].kill9();
    until("two engines follow three captures", || async { spread(&world).await.filter(|by| by.len() == 2 && total(by) == 3) }).await;
    write().await;
    engines[0] = world.engine(&[]);
    until("the engine that has joined gets its share", || async { spread(&world).await.filter(|by| by.len() == 3) }).await;

    // A rolling restart: one after the other, and the captures are followed all the time.
    for engine in &mut engines {
        write().await;
        let began = clock::now();
        drain(engine).await;
        until("every capture is followed", || async { spread(&world).await.filter(|by| total(by) == 3) }).await;
        assert!(began.elapsed() < HANDED_OVER, "the captures were free for {:?}", began.elapsed());
        *engine = world.engine(&[]);
        let name = tag(engine);
        until("the new engine lives", || async { world.ledger.engines().await.ok()?.iter().any(|e| e.id.contains(&name)).then_some(()) })
            .await;
    }
    let last = write().await;
    for db in &databases {
        let name = format!("crash/{db}");
        let head = until("every insert is committed", || async {
            let branch = world.ledger.branch_named(&name).await.ok()??;
            // The first insert creates the collection, which is a change too.
            (branch.head.seq > u64::try_from(last).unwrap()).then_some(branch.head.seq)
        })
        .await;
        assert_eq!(head, u64::try_from(last).unwrap() + 1, "{name}: nothing twice");
        let verified = world.argon(&["verify", &name, "--deep"]).await;
        assert_eq!(verified.code, 0, "{verified:?}");
    }
    for engine in &mut engines {
        drain(engine).await;
    }
}

/// The outage lasts ten seconds here, and a thousand of the jobs need the store; `ARGON_OUTAGE=60 ARGON_SYNC_JOBS=20000` is the long form.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn twenty_thousand_jobs_and_a_store_that_is_away_cost_no_attempt_and_no_memory() {
    const JOBS: usize = 20_000;
    let copies = number("ARGON_SYNC_JOBS").unwrap_or(1_000);
    const PEAK: u64 = 256 << 20;
    let outage = Duration::from_secs(number("ARGON_OUTAGE").unwrap_or(10));
    let mut world = World::new("backlog").await;
    let proxy = world.proxied().await;
    world.start_capture().await;
    proxy.set(Mode::Refuse);
    let params = rawdoc! { "duration_ms": 0i64 };
    let new = |_| NewJob { params: Some(params.clone()), ..NewJob::new(random::ordered_id(), JobKind::Noop) };
    let jobs: Vec<NewJob> = (0..JOBS).map(new).collect();
    for chunk in jobs.chunks(MAX_ENQUEUE) {
        world.ledger.enqueue(chunk).await.unwrap();
    }
    // No retry at all: an outage that used up attempts would make dead jobs.
    let mut engine = world.engine(&[("JOB_RETRY_COUNT", "0")]);
    let began = clock::now();
    // The first job is a small one.
    world.source().collection("first").insert_one(doc! { "_id": 1 }).await.unwrap();
    copy_sync_job(&world, copies).await;
    let load = Load::start(&world.source(), Mix { seed: 9, ddl: false, tolerant: false }).await;
    let queued = until("a first look at the checkpoint", || world.queued()).await;
    until("the outage has lasted", || async { (began.elapsed() >= outage).then_some(()) }).await;
    until("capture goes on meanwhile", || async { world.queued().await.filter(|now| *now > queued + 300) }).await;
    assert_eq!(world.head().await, Some(0), "nothing is committed without a store");
    let stats = until("the other jobs are done although the store is away", || async {
        let stats = world.ledger.queue_stats().await.ok()?;
        (stats.counters.done.get(&JobKind::Noop) == Some(&(JOBS as u64))).then_some(stats)
    })
    .await;
    assert_eq!(stats.counters.failed.values().sum::<u64>() + stats.counters.dead.values().sum::<u64>(), 0, "{stats:?}");
    let jobs = world.metadata().collection::<Document>("jobs");
    let tried = doc! { "kind": "sync", "error_count": { "$gt": 0 } };
    until("a sync job was tried without a store", || async { jobs.find_one(tried.clone()).await.ok()?.map(drop) }).await;
    load.stop().await;
    proxy.set(Mode::Pass);
    let began = clock::now();
    let branches = world.metadata().collection::<Document>("branches");
    // In the order of their creation, more or less; one after the other, since looking at all of them each time takes longer than the work.
    for n in 0..copies {
        let this = doc! { "name": format!("copies/c{n}"), "head.seq": { "$gt": 0 } };
        until("the next copy is committed", || async { branches.find_one(this.clone()).await.ok()?.map(drop) }).await;
    }
    let drained = began.elapsed();
    let healed = clock::now();
    world.check().await;
    assert!(healed.elapsed() < RECOVERY, "it took {:?} to catch up", healed.elapsed());
    let synced = world.ledger.jobs(&argon::ledger::JobFilter { kind: Some(JobKind::Sync), ..Default::default() }, 100_000).await.unwrap();
    let tried = synced.iter().filter(|job| job.error_count > 0).count();
    for job in &synced {
        assert!(job.state == JobState::Done && job.attempt == 1 && job.crashes == 0, "{job:?}");
    }
    // What failed in the outage is no reason to work with fewer.
    let log = engine.stderr();
    assert!(!log.contains("reason=Errors") && !log.contains("reason=NoGain"), "{log}");
    let peak = engine.peak_rss().unwrap();
    println!(
        "{JOBS} jobs and {} sync jobs, {tried} of which were tried in {outage:?} without a store: peak memory {} MiB; {copies} copies committed {drained:.1?} \
         after it, everything {:.1?}",
        synced.len(),
        peak >> 20,
        began.elapsed()
    );
    assert!(peak < PEAK, "{peak} bytes");
    drain(&mut engine).await;
}

/// So many sync jobs more, written as they are: the first one of the capture again, each with its payload for a branch of its own.
async fn copy_sync_job(world: &World, copies: u64) {
    let metadata = world.metadata();
    let [branches, jobs, payloads] = ["branches", "jobs", "job_payloads"].map(|name| metadata.collection::<Document>(name));
    let first =
        until("the capture has a job", || async { jobs.find_one(doc! { "kind": "sync", "sync.first_seq": 1i64 }).await.ok()? }).await;
    let of = doc! { "_id.job": first.get_str("_id").unwrap() };
    let parts: Vec<Document> = payloads.find(of).await.unwrap().try_collect().await.unwrap();
    let branch = branches.find_one(doc! { "_id": first.get_str("branch").unwrap() }).await.unwrap().expect("its branch");
    let mut left = 0..copies;
    while !left.is_empty() {
        let (mut new_branches, mut new_payloads, mut new_jobs) = (Vec::new(), Vec::new(), Vec::new());
        for n in left.by_ref().take(1_000) {
            let (job_id, branch_id) = (random::ordered_id(), random::id());
            let mut branch = branch.clone();
            branch.extend(doc! { "_id": &branch_id, "name": format!("copies/c{n}") });
            new_branches.push(branch);
            new_payloads.extend(parts.iter().map(|part| {
                let mut part = part.clone();
                part.get_document_mut("_id").unwrap().insert("job", &job_id);
                part
            }));
            let mut job = first.clone();
            job.extend(doc! {
                "_id": job_id, "branch": branch_id, "state": "ready", "attempt": 0, "crashes": 0, "errors": [], "error_count": 0,
                "lease": null, "ended": null, "finished_ms": null,
            });
            new_jobs.push(job);
        }
        branches.insert_many(new_branches).await.unwrap();
        payloads.insert_many(new_payloads).await.unwrap();
        jobs.insert_many(new_jobs).await.unwrap();
    }
}

/// Part of the id of an engine: its process id.
fn tag(engine: &Engine) -> String {
    format!("-{}-", engine.pid())
}

/// Nothing is in this engine's name any more: no job, no capture.
async fn freed(world: &World, tag: &str) -> bool {
    let running = world.jobs(Some(JobState::Running)).await;
    !running.iter().any(|j| j.lease.as_ref().is_some_and(|l| l.engine.contains(tag))) && !owns(world, tag).await
}

async fn owns(world: &World, tag: &str) -> bool {
    world.capture().await.owner.is_some_and(|owner| owner.contains(tag))
}

/// Captures by the engine that follows them; errors are none.
async fn spread(world: &World) -> Option<BTreeMap<String, Vec<Capture>>> {
    let mut by: BTreeMap<String, Vec<Capture>> = BTreeMap::new();
    for capture in world.ledger.captures().await.ok()? {
        assert_eq!(capture.state, CaptureState::Running, "{capture:?}");
        if let Some(owner) = capture.owner.clone() {
            by.entry(owner).or_default().push(capture);
        }
    }
    Some(by)
}

fn total(by: &BTreeMap<String, Vec<Capture>>) -> usize {
    by.values().map(Vec::len).sum()
}

/// The limit of the waits here is far above every promise that is checked.
const _: () = assert!(LIMIT.as_secs() > RERUN.as_secs());
