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
    b.ledger.claim("e1", &[JobKind::Sync], 1, true).await.unwrap();
    b.ledger.suspect_waits(&[JobKind::Sync], Duration::ZERO).await.unwrap();
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
    for coll in ["jobs", "job_payloads", "segments", "branches", "captures"] {
        assert!(plans.iter().any(|(ns, _)| ns.ends_with(&format!(".{coll}"))), "{coll} was not seen by the profiler");
    }
    for index in ["sched_key", "run_at_ms", "lease.token", "lease.engine", "finished_ms", "last_seq"] {
        assert!(plans.iter().any(|(_, plan)| plan.starts_with("IXSCAN") && plan.contains(index)), "no plan used {index}");
    }
    let sorted: Vec<_> = ran.iter().filter(|d| d.get_str("ns").unwrap().ends_with(".jobs") && d.contains_key("hasSortStage")).collect();
    assert!(sorted.is_empty(), "a claim sorts in memory: {sorted:#?}");
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
    let claimed = match b.ledger.claim("e1", &[JobKind::Sync], 4, false).await {
        Ok(jobs) => jobs.len() as u64,
        Err(fault) => {
            assert_eq!(fault.kind, Kind::Unknown, "{fault}");
            0
        }
    };
    assert_eq!(b.ledger.depth().await.unwrap().running, claimed);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_cannot_serve_is_named_with_the_way_out() {
    let alone = Mongod::start(MongodOptions::alone()).await.unwrap();
    let fault = connect(&alone.uri(), "argon").await.unwrap_err();
    assert_eq!(fault.kind, Kind::Rejected);
    assert!(fault.what.contains("is a standalone") && fault.what.contains("rs.initiate()"), "{fault}");
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
    let early = doc! { "$set": { "head.seq": 2i64 } };
    branches.update_one(doc! { "_id": &line.branch }, early).await.unwrap();
    assert!(b.ledger.advance_heads().await.unwrap() > 0);
    assert_eq!(b.branch(&line.branch).await, whole);
    assert_eq!(b.ledger.advance_heads().await.unwrap(), 0);
}
