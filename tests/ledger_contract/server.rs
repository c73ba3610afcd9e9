//! What only a real server shows: query plans, lost answers inside transactions, refusals at connect.

use std::time::Duration;

use argon::devkit::{Auth, Mongod, MongodOptions};
use argon::fault::{Fault, Kind};
use argon::ledger::*;
use argon::runtime::random;
use bson::{Document, doc};
use futures_util::TryStreamExt;
use mongodb::{Client, Collection};

use crate::bench::{Bench, beat, commit, lease, segment, server};
use crate::queue::new_job;

fn fresh() -> String {
    format!("argon_{}", random::id().replace('-', ""))
}

async fn connect(uri: &str, db: &str) -> Result<MongoLedger, Fault> {
    let options = ConnectOptions { server_selection_timeout: Duration::from_secs(3), ..ConnectOptions::default() };
    MongoLedger::connect(uri, db, options).await
}

/// Uses every call on a hot path, with other states and branches around, and looks at the plans that the server really ran.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_hot_query_scans_a_collection() {
    let mongod = server().await;
    let db = fresh();
    let ledger = connect(&mongod.uri(), &db).await.unwrap();
    let client = ledger.client().clone();
    ledger.prepare().await.unwrap();
    let b = Bench::over(std::sync::Arc::new(ledger), None);
    let mut lines = [b.line("e1").await, b.line("e1").await];
    b.beat("e1").await;
    for line in &mut lines {
        for _ in 0..30 {
            line.put(1).await;
        }
    }
    client.database(&db).run_command(doc! { "profile": 2 }).await.unwrap();
    for line in &mut lines {
        line.put(1).await;
    }
    let jobs = b.claim("e1", 5).await;
    b.ledger.claim(&ClaimRequest::new("e1", &[JobKind::Sync], 1).alone(true)).await.unwrap();
    b.ledger.suspect_waits(&[JobKind::Sync], Duration::ZERO).await.unwrap();
    operate_the_queue(&b, &lines[1]).await;
    b.ledger.payload(&jobs[0].id).await.unwrap();
    b.ledger.commit(&[commit(&jobs[0])]).await.unwrap();
    b.ledger.commit(&[commit(&jobs[0])]).await.unwrap();
    b.ledger.fail(&lease(&jobs[1]), &Failed::Retry { delay: Duration::ZERO, error: "x".to_owned() }).await.unwrap();
    b.ledger.promote().await.unwrap();
    b.ledger.fail(&lease(&jobs[2]), &Failed::Dead { error: "x".to_owned() }).await.unwrap();
    b.ledger.discard_job(&jobs[2].id, &segment(&jobs[2], SegmentKind::Gap)).await.unwrap();
    b.ledger.depth().await.unwrap();
    b.ledger.sweep_jobs(Duration::ZERO, 10).await.unwrap();
    b.ledger.segments(&lines[0].branch, 1, 10).await.unwrap();
    b.ledger.position(&lines[0].capture).await.unwrap();
    b.ledger.jobs(&JobFilter { branch: Some(lines[1].branch.clone()), ..JobFilter::default() }, 3).await.unwrap();
    b.ledger.heartbeat(&crate::bench::beat("e1"), false).await.unwrap();
    b.ledger.own_capture(&lines[0].capture, "e1").await.unwrap();
    b.ledger.branch_named("shop/x").await.unwrap();
    b.ledger.rescue("rescuer", crate::bench::silent_for(&*b.ledger, Duration::from_secs(60)).await, &["e1".to_owned()]).await.unwrap();
    b.ledger.retire("e1").await.unwrap();
    client.database(&db).run_command(doc! { "profile": 0 }).await.unwrap();

    let profile: Collection<Document> = client.database(&db).collection("system.profile");
    let ran: Vec<Document> = profile.find(doc! { "planSummary": { "$exists": true } }).await.unwrap().try_collect().await.unwrap();
    let plans: Vec<(String, String)> = ran
        .iter()
        .map(|d| {
            (d.get_str("ns").unwrap().to_owned(), format!("{} {}", d.get_str("planSummary").unwrap(), d.get_document("command").unwrap()))
        })
        .collect();
    // The list of engines is read whole, and has as many documents as there are processes.
    let scans: Vec<_> = plans.iter().filter(|(ns, plan)| plan.contains("COLLSCAN") && !ns.ends_with(".engines")).collect();
    assert!(scans.is_empty(), "{scans:#?}");
    for coll in ["jobs", "job_payloads", "segments", "branches", "captures", "counters", "controls"] {
        assert!(plans.iter().any(|(ns, _)| ns.ends_with(&format!(".{coll}"))), "{coll} was not seen by the profiler");
    }
    for index in ["sched_key", "run_at_ms", "parked", "unique_key", "lease.token", "finished_ms", "last_seq"] {
        assert!(plans.iter().any(|(_, plan)| plan.starts_with("IXSCAN") && plan.contains(index)), "no plan used {index}");
    }
    // A page of waiting jobs sorts the ids of the index: nothing else has ids in another order than it wants them.
    let by_id = |d: &Document| d.get_document("command").is_ok_and(|c| c.get_document("sort").is_ok_and(|s| *s == doc! { "_id": 1 }));
    let sorted: Vec<_> =
        ran.iter().filter(|d| d.get_str("ns").unwrap().ends_with(".jobs") && d.contains_key("hasSortStage") && !by_id(d)).collect();
    assert!(sorted.is_empty(), "a claim sorts in memory: {sorted:#?}");
}

/// Everything that the queue does besides, with a paused branch, taken keys, and jobs in every state.
async fn operate_the_queue(b: &Bench, held: &crate::bench::Line) {
    let keyed = || NewJob { unique_key: Some("k".to_owned()), ..new_job(JobKind::Noop) };
    let later = || NewJob { delay: Duration::from_millis(1), ..new_job(JobKind::Noop) };
    b.put_noops(40).await;
    let outcomes = b.ledger.enqueue(&[keyed(), keyed(), later()]).await.unwrap();
    assert!(matches!(outcomes[1], Enqueued::Duplicate { .. }));
    b.ledger.set_pause(&PauseTarget::Branch(held.branch.clone()), true, "me").await.unwrap();
    let request = ClaimRequest::new("e1", &JobKind::ALL, 50).start(5).pauses(b.ledger.pauses().await.unwrap());
    let jobs = b.claim_with(&request).await;
    assert!(b.ledger.depth().await.unwrap().scheduled > 10, "a branch's jobs are parked");
    b.ledger.promote().await.unwrap();
    b.ledger.start_many(&jobs.iter().map(lease).collect::<Vec<_>>()).await.unwrap();
    let noops = b.claim_kind("e1", JobKind::Noop, 10).await;
    b.ledger.cancel_job(&noops[0].id).await.unwrap();
    b.ledger.cancel_requests("e1").await.unwrap();
    b.ledger.stuck(Duration::from_secs(60), 10).await.unwrap();
    b.ledger.fail(&lease(&noops[0]), &Failed::Cancelled).await.unwrap();
    b.ledger.fail(&lease(&noops[1]), &Failed::GiveBack { delay: Duration::ZERO, error: None }).await.unwrap();
    b.ledger.fail(&lease(&noops[2]), &Failed::Dead { error: "x".to_owned() }).await.unwrap();
    b.finish("e1", &noops[3..]).await;
    b.finish("e1", &noops[2..4]).await;
    for state in JobState::ALL {
        b.ledger.jobs(&JobFilter { state: Some(state), ..JobFilter::default() }, 3).await.unwrap();
    }
    b.ledger.jobs(&JobFilter { engine: Some("e1".to_owned()), ..JobFilter::default() }, 3).await.unwrap();
    b.ledger.bulk(Bulk::Retry, &JobFilter::default(), 10, false).await.unwrap();
    b.ledger.bulk(Bulk::Cancel, &JobFilter { kind: Some(JobKind::Noop), ..JobFilter::default() }, 10, false).await.unwrap();
    b.ledger.queue_stats().await.unwrap();
    b.ledger.refresh_queue_stats().await.unwrap();
    b.ledger.set_pause(&PauseTarget::Branch(held.branch.clone()), false, "me").await.unwrap();
    b.ledger.lead("e1", Duration::from_secs(60)).await.unwrap();
    b.ledger.leader().await.unwrap();
}

/// Keys and documents that the server looked at for a claim of ten jobs, all its statements together.
async fn cost_of_a_claim(ledger: &MongoLedger, db: &str, request: &ClaimRequest) -> (i64, i64) {
    let database = ledger.client().database(db);
    let profile: Collection<Document> = database.collection("system.profile");
    profile.drop().await.unwrap();
    database.run_command(doc! { "profile": 2 }).await.unwrap();
    let jobs = ledger.claim(request).await.unwrap();
    database.run_command(doc! { "profile": 0 }).await.unwrap();
    ledger.set_scale(None, None, "").await.unwrap(); // a majority has it now
    assert_eq!(jobs.len(), 10);
    let ran: Vec<Document> = profile.find(doc! { "ns": format!("{db}.jobs") }).await.unwrap().try_collect().await.unwrap();
    assert!(ran.len() >= 3, "find, update, find: {ran:#?}");
    let sum = |field: &str| ran.iter().map(|d| d.get_i32(field).map_or_else(|_| d.get_i64(field).unwrap_or(0), i64::from)).sum::<i64>();
    assert!(ran.iter().all(|d| !d.contains_key("hasSortStage")), "{ran:#?}");
    (sum("keysExamined"), sum("docsExamined"))
}

/// A job of some state as it is stored, so that a deep queue is there in a moment.
fn row(n: usize, state: JobState, parked: bool) -> Document {
    let ms = 1_700_000_000_000i64 + i64::try_from(n).unwrap();
    let mut row = doc! {
        "_id": format!("{state}-{parked}-{n:07}"), "kind": "noop", "branch": "", "state": state.name(), "priority": "normal",
        "run_at_ms": ms, "sched_key": ms - 60_000, "created_ms": ms, "finished_ms": null, "attempt": 0, "crashes": 0,
        "lease": null, "errors": [], "error_count": 0, "sync": null,
    };
    match state {
        JobState::Scheduled if parked => row.extend(doc! { "parked": true, "branch": "paused" }),
        JobState::Scheduled => row.extend(doc! { "run_at_ms": 4_000_000_000_000i64 + i64::try_from(n).unwrap() }),
        JobState::Dead => row.extend(doc! { "finished_ms": ms }),
        _ => {}
    }
    row
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_claim_and_a_figure_cost_does_not_grow_with_the_queue() {
    let db = fresh();
    let ledger = connect(&server().await.uri(), &db).await.unwrap();
    ledger.prepare().await.unwrap();
    let jobs: Collection<Document> = ledger.client().database(&db).collection("jobs");
    let fill = async |rows: Vec<Document>| {
        for part in rows.chunks(5_000) {
            jobs.insert_many(part).await.unwrap();
        }
    };
    let request = ClaimRequest::new("e1", &JobKind::ALL, 10);
    fill((0..100).map(|n| row(n, JobState::Ready, false)).collect()).await;
    let shallow = cost_of_a_claim(&ledger, &db, &request).await;
    assert!(shallow.0 <= 50 && shallow.1 <= 20, "ten jobs are found, taken and read: {shallow:?}");
    ledger.set_pause(&PauseTarget::Branch("paused".to_owned()), true, "me").await.unwrap();
    fill((100..20_000).map(|n| row(n, JobState::Ready, false)).collect()).await;
    for (state, parked) in [(JobState::Dead, false), (JobState::Scheduled, false), (JobState::Scheduled, true)] {
        fill((0..4_000).map(|n| row(n, state, parked)).collect()).await;
    }
    let paused = request.clone().pauses(ledger.pauses().await.unwrap());
    for request in [&request, &request.clone().start(10), &paused] {
        assert_eq!(cost_of_a_claim(&ledger, &db, request).await, shallow, "{request:?}");
    }
    // Promotion walks over nothing that is not due, and over nothing that is parked.
    let database = ledger.client().database(&db);
    database.collection::<Document>("system.profile").drop().await.unwrap();
    database.run_command(doc! { "profile": 2 }).await.unwrap();
    assert_eq!(ledger.promote().await.unwrap(), 0);
    database.run_command(doc! { "profile": 0 }).await.unwrap();
    let ran: Vec<Document> =
        database.collection("system.profile").find(doc! { "ns": format!("{db}.jobs") }).await.unwrap().try_collect().await.unwrap();
    assert!(ran.len() >= 2 && ran.iter().all(|d| d.get_i32("keysExamined").unwrap_or(0) < 10), "{ran:#?}");

    // More than can be counted at once: a bound, then the figure of the background.
    let stats = ledger.queue_stats().await.unwrap();
    assert_eq!((stats.ready.total(), stats.ready.at_least, stats.ready.as_of_ms), (10_001, true, None));
    assert_eq!((stats.scheduled.total(), stats.scheduled.at_least, stats.dead.total()), (8_000, false, 4_000));
    ledger.refresh_queue_stats().await.unwrap();
    let stats = ledger.queue_stats().await.unwrap();
    assert_eq!((stats.ready.total(), stats.ready.at_least), (19_960, false));
    assert!(stats.ready.as_of_ms.unwrap() > 1_700_000_000_000);
    assert_eq!(stats.scheduled.as_of_ms, None, "what can be counted is");
    // Waiting for long is more than being preferred.
    let old = doc! { "$set": { "priority": "low", "run_at_ms": 1i64, "sched_key": 1i64 } };
    jobs.update_one(doc! { "_id": "ready-false-0019999" }, old).await.unwrap();
    ledger.enqueue(&[NewJob { priority: Some(Priority::High), ..new_job(JobKind::Noop) }]).await.unwrap();
    let first = ledger.claim(&ClaimRequest::new("e1", &JobKind::ALL, 1)).await.unwrap();
    assert_eq!(first[0].id, "ready-false-0019999");
    assert_eq!(first[0].priority, Priority::Low);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_resumed_branch_with_many_jobs_comes_back_by_and_by() {
    let db = fresh();
    let ledger = connect(&server().await.uri(), &db).await.unwrap();
    ledger.prepare().await.unwrap();
    let jobs: Collection<Document> = ledger.client().database(&db).collection("jobs");
    let rows: Vec<Document> = (0..22_000).map(|n| row(n, JobState::Scheduled, true)).collect();
    for part in rows.chunks(5_000) {
        jobs.insert_many(part).await.unwrap();
    }
    let branch = PauseTarget::Branch("paused".to_owned());
    ledger.set_pause(&branch, true, "me").await.unwrap();
    assert_eq!(ledger.promote().await.unwrap(), 0);
    ledger.set_pause(&branch, false, "me").await.unwrap();
    assert_eq!(jobs.count_documents(doc! { "state": "ready" }).await.unwrap(), 20_000);
    assert_eq!(ledger.promote().await.unwrap(), 2_000, "the rest is the leader's");
    assert_eq!(jobs.count_documents(doc! { "parked": { "$exists": true } }).await.unwrap(), 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_paused_branch_with_many_jobs_in_front_holds_nobody_up() {
    let db = fresh();
    let ledger = connect(&server().await.uri(), &db).await.unwrap();
    ledger.prepare().await.unwrap();
    let jobs: Collection<Document> = ledger.client().database(&db).collection("jobs");
    let mut rows: Vec<Document> = (0..12_000).map(|n| row(n, JobState::Ready, false)).collect();
    rows.iter_mut().for_each(|row| row.extend(doc! { "branch": "paused" }));
    rows.push(row(12_000, JobState::Ready, false));
    for part in rows.chunks(5_000) {
        jobs.insert_many(part).await.unwrap();
    }
    ledger.set_pause(&PauseTarget::Branch("paused".to_owned()), true, "me").await.unwrap();
    let request = ClaimRequest::new("e1", &JobKind::ALL, 10).pauses(ledger.pauses().await.unwrap());
    let claimed = ledger.claim(&request).await.unwrap();
    assert_eq!(claimed.iter().map(|j| j.id.as_str()).collect::<Vec<_>>(), ["ready-false-0012000"], "beyond what one claim puts aside");
    assert!(ledger.claim(&request).await.unwrap().is_empty());
    assert_eq!(jobs.count_documents(doc! { "parked": true }).await.unwrap(), 12_000, "the next one puts the rest aside");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn rows_and_indexes_of_an_earlier_version_are_taken_over() {
    let db = fresh();
    let ledger = connect(&server().await.uri(), &db).await.unwrap();
    let jobs: Collection<Document> = ledger.client().database(&db).collection("jobs");
    let mut old = row(1, JobState::Ready, false);
    old.remove("priority");
    jobs.insert_one(old).await.unwrap();
    let index = mongodb::IndexModel::builder()
        .keys(doc! { "state": 1, "kind": 1, "sched_key": 1, "_id": 1, "crashes": 1 })
        .options(
            mongodb::options::IndexOptions::builder().name("ready".to_owned()).partial_filter_expression(doc! { "state": "ready" }).build(),
        )
        .build();
    jobs.create_index(index).await.unwrap();
    ledger.prepare().await.unwrap();
    let names = jobs.list_index_names().await.unwrap();
    assert!(!names.contains(&"ready".to_owned()) && names.len() == 9, "{names:?}");
    let job = ledger.claim(&ClaimRequest::new("e1", &[JobKind::Noop], 9)).await.unwrap().remove(0);
    assert_eq!(job.priority, Priority::Normal);
    let end = Finish { lease: lease(&job), kind: job.kind };
    assert_eq!(ledger.finish("e1", &[end]).await.unwrap(), [Finished::Now]);
}

async fn fail_command(client: &Client, times: i32, data: Document) {
    let mut data = data;
    data.insert("appName", format!("argon {}", argon::runtime::identity::process_tag()));
    let point = doc! { "configureFailPoint": "failCommand", "mode": { "times": times }, "data": data };
    client.database("admin").run_command(point).await.unwrap();
}

/// Turns the fail point off; how often it was entered.
async fn entered(client: &Client) -> i64 {
    let off = doc! { "configureFailPoint": "failCommand", "mode": "off" };
    let reply = client.database("admin").run_command(off).await.unwrap();
    reply.get_i64("count").or_else(|_| reply.get_i32("count").map(i64::from)).unwrap()
}

/// The answer of a commit is lost on the wire, conflicts abort the transaction, the server says it is not primary: the outcome is found out.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn answers_lost_inside_a_transaction_are_found_out() {
    let mongod = Mongod::start(MongodOptions::default()).await.unwrap();
    let ledger = connect(&mongod.uri(), &fresh()).await.unwrap();
    ledger.prepare().await.unwrap();
    let admin = mongod.client().await.unwrap();
    let b = Bench::over(std::sync::Arc::new(ledger), None);
    let mut line = b.line("e1").await;
    let faults = [
        doc! { "failCommands": ["commitTransaction"], "closeConnection": true },
        doc! { "failCommands": ["commitTransaction"], "errorCode": 10107, "errorLabels": ["RetryableWriteError"] },
        doc! { "failCommands": ["commitTransaction"], "writeConcernError": { "code": 64, "errmsg": "waiting for replication timed out" } },
        doc! { "failCommands": ["update"], "errorCode": 112, "errorLabels": ["TransientTransactionError"] },
        doc! { "failCommands": ["insert"], "closeConnection": true },
    ];
    let mut stored = 0;
    for fault in faults {
        for times in [1, 3] {
            let seen = entered(&admin).await;
            fail_command(&admin, times, fault.clone()).await;
            let write = line.checkpoint(1);
            let outcome = b.ledger.checkpoint(&write).await.unwrap();
            assert!(entered(&admin).await > seen, "{fault} did not happen");
            assert!(matches!(outcome, Checkpointed::Stored | Checkpointed::Already), "{fault}: {outcome:?}");
            line.next_seq += 1;
            stored += 1;
            assert_eq!(b.ledger.depth().await.unwrap().ready, stored, "{fault}: exactly one job");
        }
    }
    // A claim whose answer is lost finds by its token what it got.
    fail_command(&admin, 1, doc! { "failCommands": ["update"], "closeConnection": true }).await;
    let claimed = match b.ledger.claim(&ClaimRequest::new("e1", &[JobKind::Sync], 4)).await {
        Ok(jobs) => jobs.len() as u64,
        Err(fault) => {
            assert_eq!(fault.kind, Kind::Unknown, "{fault}");
            0
        }
    };
    b.settle().await;
    assert_eq!(b.ledger.depth().await.unwrap().running, claimed);
    // A group of ends whose answer is lost is found out inside the call, and is counted once.
    b.put_noops(20).await;
    let noops = b.claim_kind("e1", JobKind::Noop, 20).await;
    for (part, fault) in [
        doc! { "failCommands": ["commitTransaction"], "closeConnection": true },
        doc! { "failCommands": ["update"], "errorCode": 112, "errorLabels": ["TransientTransactionError"] },
        doc! { "failCommands": ["update"], "closeConnection": true },
        doc! { "failCommands": ["commitTransaction"], "writeConcernError": { "code": 64, "errmsg": "waiting for replication timed out" } },
    ]
    .into_iter()
    .enumerate()
    {
        let seen = entered(&admin).await;
        fail_command(&admin, 2, fault.clone()).await;
        let outcomes = b.finish("e1", &noops[5 * part..5 * part + 5]).await;
        assert!(entered(&admin).await > seen, "{fault} did not happen");
        assert!(outcomes.iter().all(|o| matches!(o, Finished::Now | Finished::Already)), "{fault}: {outcomes:?}");
    }
    assert_eq!(b.ledger.queue_stats().await.unwrap().counters.done[&JobKind::Noop], 20);
    // An enqueue has no transaction and no retry of the driver: the caller repeats it, and the ids tell.
    fail_command(&admin, 1, doc! { "failCommands": ["update"], "closeConnection": true }).await;
    let new = [new_job(JobKind::Noop), new_job(JobKind::Noop)];
    assert!(b.ledger.enqueue(&new).await.unwrap_err().may_heal());
    assert_eq!(b.ledger.enqueue(&new).await.unwrap(), [Enqueued::Stored, Enqueued::Stored]);
    assert_eq!(b.ledger.enqueue(&new).await.unwrap(), [Enqueued::Already, Enqueued::Already]);
    // Not safe on a majority within the time: nobody knows.
    fail_command(
        &admin,
        1,
        doc! { "failCommands": ["update"], "writeConcernError": { "code": 64, "errmsg": "waiting for replication timed out" } },
    )
    .await;
    let new = [new_job(JobKind::Noop)];
    assert_eq!(b.ledger.enqueue(&new).await.unwrap_err().kind, Kind::Unknown);
    assert_eq!(b.ledger.enqueue(&new).await.unwrap(), [Enqueued::Already]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_cannot_serve_is_named_with_the_way_out() {
    let alone = Mongod::start(MongodOptions::alone()).await.unwrap();
    let fault = connect(&alone.uri(), "argon").await.unwrap_err();
    assert_eq!(fault.kind, Kind::Rejected);
    assert!(fault.what.contains("is a standalone") && fault.next.as_ref().is_some_and(|next| next.contains("rs.initiate()")), "{fault:?}");
    assert!(fault.what.contains(&alone.host(0)), "{fault}");
    let address = alone.host(0);
    drop(alone);
    let fault = connect(&format!("mongodb://user:s3cret@{address}/"), "argon").await.unwrap_err();
    assert_eq!(fault.kind, Kind::Transient);
    assert!(fault.what.contains(&address) && !fault.what.contains("s3cret") && !fault.what.contains('\n'), "{fault}");
    assert_eq!(connect(&format!("mongodb://{address}/"), "admin").await.unwrap_err().kind, Kind::Config);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn missing_rights_and_wrong_passwords_are_named() {
    let auth = Auth { user: "root".to_owned(), password: "s3cret".to_owned() };
    let mongod = Mongod::start(MongodOptions { auth: Some(auth), ..MongodOptions::default() }).await.unwrap();
    let uri = mongod.uri();
    let fault = connect(&uri.replace("s3cret", "wr0ng"), "argon").await.unwrap_err();
    assert_eq!(fault.kind, Kind::Rejected, "{fault}");
    assert!(fault.what.contains("credentials") && !fault.what.contains("wr0ng"), "{fault}");

    let admin = mongod.client().await.unwrap();
    let reader = doc! { "createUser": "reader", "pwd": "pw12345", "roles": [{ "role": "read", "db": "argon" }] };
    admin.database("admin").run_command(reader).await.unwrap();
    let uri = uri.replace("root:s3cret", "reader:pw12345");
    let ledger = connect(&uri, "argon").await.unwrap();
    let fault = ledger.prepare().await.unwrap_err();
    assert_eq!(fault.kind, Kind::Rejected);
    assert!(fault.what.contains("may not run `create` on database argon"), "{fault}");

    let full = server_facts(&admin).await.unwrap();
    assert!(full.identity_exact && full.version.starts_with("6."), "{full:?}");
    assert!(full.oplog_window().is_some() && full.now_ms > 1_600_000_000_000);
    let few = server_facts(ledger.client()).await.unwrap();
    assert!(!few.identity_exact && few.oplog.is_none(), "{few:?}");
    assert!(same_source(&full.identity, &few.identity));
}

/// A source that does not show its id is known by its name alone, so only a missing right may mean that it does not.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn rule_7_only_a_missing_right_hides_the_id_of_a_source() {
    let mongod = Mongod::start(MongodOptions::default()).await.unwrap();
    let ledger = connect(&mongod.uri(), &fresh()).await.unwrap();
    let admin = mongod.client().await.unwrap();
    let whole = server_facts(ledger.client()).await.unwrap();
    assert!(whole.identity_exact, "{whole:?}");
    for (commands, exact) in [(&["replSetGetConfig"][..], true), (&["replSetGetConfig", "find"], false)] {
        fail_command(&admin, 10, doc! { "failCommands": commands, "errorCode": 13 }).await;
        let facts = server_facts(ledger.client()).await.unwrap();
        entered(&admin).await;
        assert_eq!(facts.identity_exact, exact, "{commands:?}");
        assert!(same_source(&whole.identity, &facts.identity));
    }
    for fault in [doc! { "errorCode": 10107 }, doc! { "errorCode": 11600 }, doc! { "closeConnection": true }] {
        let mut data = doc! { "failCommands": ["replSetGetConfig"] };
        data.extend(fault.clone());
        // A client of its own: what says that it shuts down is left alone by its driver for a while.
        let ledger = connect(&mongod.uri(), "argon").await.unwrap();
        fail_command(&admin, 10, data).await;
        let seen = server_facts(ledger.client()).await.map(|facts| facts.identity);
        entered(&admin).await;
        assert!(seen.as_ref().is_err_and(|e| e.may_heal() && e.what.contains("the id of the replica set")), "{fault}: {seen:?}");
    }
    assert_eq!(server_facts(ledger.client()).await.unwrap().identity, whole.identity, "and it is seen again");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_dead_process_left_open_is_ended_with_the_rights_of_a_plain_user() {
    let auth = Some(Auth { user: "root".to_owned(), password: "secret".to_owned() });
    let mongod = Mongod::start(MongodOptions { auth, ..MongodOptions::default() }).await.unwrap();
    let admin = mongod.client().await.unwrap().database("admin");
    let roles = vec![doc! { "role": "readWrite", "db": "argon" }];
    admin.run_command(doc! { "createUser": "plain", "pwd": "plain", "roles": roles }).await.unwrap();
    let uri = mongod.uri().replace("root:secret@", "plain:plain@");
    let ledger = MongoLedger::connect(&uri, "argon", ConnectOptions::default()).await.unwrap();
    ledger.prepare().await.unwrap();
    let dead = "elsewhere-1-aa-01".to_owned();
    assert!(ledger.heartbeat(&beat(&dead), true).await.unwrap());

    // What would be there if it had been killed in a transaction that has written its document.
    let left = Client::with_uri_str(format!("{uri}&appName=argon%20elsewhere-1-aa")).await.unwrap();
    let mut session = left.start_session().await.unwrap();
    session.start_transaction().await.unwrap();
    let engines = left.database("argon").collection::<Document>("engines");
    let done = engines.update_one(doc! { "_id": &dead }, doc! { "$set": { "x": 1 } }).session(&mut session).await.unwrap();
    assert_eq!(done.modified_count, 1);

    let rescued = ledger
        .rescue("rescuer", crate::bench::silent_for(&ledger, Duration::from_secs(3_600)).await, std::slice::from_ref(&dead))
        .await
        .unwrap();
    assert_eq!(rescued.engines, [dead]);
    assert!(session.commit_transaction().await.is_err(), "it is over");

    // A statement that was still on its way when its sessions were killed.
    let mut late = left.start_session().await.unwrap();
    late.start_transaction().await.unwrap();
    engines.insert_one(doc! { "_id": "late" }).session(&mut late).await.unwrap();
    ledger.rescue("rescuer", None, &[]).await.unwrap();
    assert!(late.commit_transaction().await.is_err(), "the next round ends it too");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_head_that_lags_moves_on_without_another_commit() {
    let db = fresh();
    let ledger = connect(&server().await.uri(), &db).await.unwrap();
    let branches = ledger.client().database(&db).collection::<Document>("branches");
    ledger.prepare().await.unwrap();
    let b = Bench::over(std::sync::Arc::new(ledger), None);
    let mut line = b.line("e1").await;
    for _ in 0..4 {
        line.put(2).await;
    }
    let jobs = b.claim("e1", 4).await;
    let commits: Vec<_> = jobs.iter().filter(|j| j.sync.as_ref().unwrap().first_seq != 7).map(commit).collect();
    b.ledger.commit(&commits).await.unwrap();
    let whole = b.branch(&line.branch).await;
    assert_eq!(whole.head.seq, 6);
    // What a walk leaves that had too much to read.
    let early = doc! { "$set": { "head.seq": 2i64, "head_behind": true } };
    branches.update_one(doc! { "_id": &line.branch }, early).await.unwrap();
    assert!(b.ledger.advance_heads().await.unwrap() > 0);
    assert_eq!(b.branch(&line.branch).await, whole);
    assert_eq!(b.ledger.advance_heads().await.unwrap(), 0);
}

/// Claims read what the primary has, so a job can be in work before the transaction that stored it is known to a majority.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_job_that_is_claimed_before_a_majority_has_it_comes_with_its_payload() {
    let mongod = Mongod::start(MongodOptions::default()).await.unwrap();
    let ledger = connect(&mongod.uri(), &fresh()).await.unwrap();
    ledger.prepare().await.unwrap();
    let admin = mongod.client().await.unwrap().database("admin");
    let b = Bench::over(std::sync::Arc::new(ledger), None);
    let line = b.line("e1").await;
    // Without its journal a set of one has no majority.
    let pause = |mode: &str| doc! { "configureFailPoint": "pauseJournalFlusherBeforeFlush", "mode": mode };
    admin.run_command(pause("alwaysOn")).await.unwrap();
    let (writer, write) = (b.ledger.clone(), line.checkpoint(5));
    let stored = tokio::spawn(async move { writer.checkpoint(&write).await });
    let claim = ClaimRequest::new("e1", &[JobKind::Sync], 1);
    let mut claimed = Vec::new();
    for _ in 0..500 {
        claimed = b.ledger.claim(&claim).await.unwrap();
        if !claimed.is_empty() {
            break;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    let payload = b.ledger.payload(&claimed[0].id).await;
    let early = !stored.is_finished();
    admin.run_command(pause("off")).await.unwrap();
    assert_eq!(payload.unwrap().iter().map(|part| part.len()).collect::<Vec<_>>(), [1_000, 500]);
    assert!(early, "the checkpoint was durable already: this proves nothing");
    assert_eq!(stored.await.unwrap().unwrap(), Checkpointed::Stored);
    assert_eq!(b.ledger.commit(&[commit(&claimed[0])]).await.unwrap(), [Committed::Now]);
}
