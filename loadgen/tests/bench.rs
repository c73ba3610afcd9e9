//! The real thing, small: servers, the `argon` binary and the load generator, started by the tests.
//!
//! `argon` is looked for beside `argon-loadgen`, where `cargo test --workspace` (or `cargo build --workspace`) puts both.
#![allow(clippy::unwrap_used)] // helpers of tests are tests

use std::path::PathBuf;
use std::process::{Command, Output};

use argon::devkit::{Mongod, MongodOptions};
use mongodb::bson::{Document, doc};
use serde_json::Value;

fn loadgen(args: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_argon-loadgen")).args(args).output().unwrap()
}

fn report(args: &[&str]) -> Value {
    let argon = PathBuf::from(env!("CARGO_BIN_EXE_argon-loadgen")).with_file_name("argon");
    assert!(argon.is_file(), "{} is missing: run cargo test --workspace, or cargo build --workspace first", argon.display());
    let output = loadgen(args);
    assert!(output.status.success(), "{args:?}: {}", String::from_utf8_lossy(&output.stderr));
    serde_json::from_slice(&output.stdout).unwrap()
}

#[test]
fn a_small_backlog_goes_through_the_whole_engine_and_every_figure_is_there() {
    let report = report(&["bench", "pipeline", "--changes", "5000", "--rounds", "1", "--json"]);
    let figure = |name: &str| report[name].as_f64().unwrap_or_else(|| panic!("{name} in {report}"));
    for name in ["ratio_to_ceiling", "ratio_with_start_up", "ceiling_per_s", "changes_per_s", "start_up_ms", "engine_cpu_s"] {
        assert!(figure(name) > 0.0, "{name} in {report}");
    }
    assert!(figure("ratio_with_start_up") < figure("ratio_to_ceiling"));
    let round = &report["rounds"][0];
    assert_eq!(round["totals"]["changes"], 5000);
    assert_eq!(figure("objects"), round["totals"]["segments"].as_f64().unwrap());
    // The document alone has 200 bytes; the event has its key, name and time beside it, less what Argon leaves out.
    assert!((200.0..400.0).contains(&figure("raw_bytes_per_change")), "{report}");
    assert!((20.0..200.0).contains(&figure("stored_bytes_per_change")), "{report}");
    assert!((10e6..400e6).contains(&figure("peak_rss_bytes")), "{report}");
    assert_eq!((&report["seed"], &report["options"]["doc_bytes"]), (&Value::from(1), &Value::from(200)));
}

#[test]
fn every_change_of_a_live_load_has_a_delay() {
    let report = report(&["bench", "live", "--rate", "500", "--duration", "2s", "--json"]);
    let changes = report["load"]["changes"].as_u64().unwrap();
    assert!(changes > 500, "{report}");
    for delays in ["delay_ms", "commit_delay_ms"] {
        assert_eq!(report[delays]["count"].as_u64(), Some(changes), "{report}");
    }
    assert!(report["delay_ms"]["p99"].as_f64().unwrap() >= report["commit_delay_ms"]["p50"].as_f64().unwrap(), "{report}");
    assert_eq!(report["totals"]["changes"].as_u64(), Some(changes));
}

#[test]
fn a_small_queue_is_claimed_and_drained_by_the_ledger_by_engines_and_by_the_plain_queue() {
    let report = report(&["bench", "queue", "--quick", "--json"]);
    let figure = |row: &Value, name: &str| row[name].as_f64().unwrap_or_else(|| panic!("{name} in {report}"));
    for name in ["jobs_per_s", "ratio_to_baseline", "baseline_per_s", "claim_ratio", "filled_rows_per_s"] {
        assert!(figure(&report, name) > 0.0, "{name} in {report}");
    }
    let rows = |name: &str| report[name].as_array().unwrap_or_else(|| panic!("{name} in {report}"));
    for row in rows("ledger") {
        assert!(figure(&row["claim_ms"], "p99") > 0.0 && figure(row, "jobs_per_s") > 0.0, "{row}");
        // A claim looks at a key, and at another one for the job itself, and its end at one more.
        assert!((2.0..20.0).contains(&figure(&row["server"], "keys_examined_per_job")), "{row}");
    }
    // The first search of a claim needs no document and no key but those that it returns.
    for look in rows("claim_statements") {
        let explained = &look["explained"];
        assert_eq!((&explained["docs_examined"], &explained["keys_examined"]), (&Value::from(0), &explained["returned"]), "{look}");
        assert!(figure(explained, "returned") > 0.0 && !look["statements"].as_array().unwrap().is_empty(), "{look}");
    }
    for row in rows("engines") {
        assert!(figure(row, "jobs") > 0.0 && figure(row, "jobs_per_s") > 0.0, "{row}");
        assert_eq!(row["endpoint_ms"]["count"], 20, "{row}");
        assert_eq!(row["delay_ms"].is_object(), row["cell"]["depth"] == 0, "{row}");
    }
    assert_eq!(rows("stats").len(), report["options"]["depths"].as_array().unwrap().len());
    assert_eq!(rows("baseline").len(), 2);
}

#[test]
fn a_limit_that_does_not_hold_is_exit_code_1_and_bad_arguments_2() {
    let output = loadgen(&["bench", "repeated", "--count", "500", "--max-percent", "0.001"]);
    let text = String::from_utf8_lossy(&output.stdout);
    assert_eq!(output.status.code(), Some(1), "{text} {}", String::from_utf8_lossy(&output.stderr));
    assert!(text.contains("LIMIT BROKEN"), "{text}");

    for (args, word) in [
        (&["bench", "live", "--rate", "0"][..], "--rate"),
        (&["bench", "pipeline", "--argon", "/nowhere/argon"], "/nowhere/argon"),
        (&["bench", "queue", "--quick", "--full"], "--full"),
        (&["run", "--uri", "mongodb://127.0.0.1:1/?serverSelectionTimeoutMS=200", "--corpus", "/nowhere.jsonl"], "/nowhere.jsonl"),
        (&["run", "--uri", "not a uri"], "--uri"),
    ] {
        let output = loadgen(args);
        let said = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(2), "{args:?}: {said}");
        assert!(said.contains(word), "{said}");
    }
    let output = loadgen(&["run", "--uri", "mongodb://127.0.0.1:1/?serverSelectionTimeoutMS=200"]);
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.code() == Some(1) && said.lines().count() == 1 && said.contains("--uri"), "{said}");
}

#[tokio::test]
async fn a_load_writes_what_it_reports() {
    let mongod = Mongod::start(MongodOptions::default()).await.unwrap();
    let dir = std::env::temp_dir().join(format!("argon-loadgen-corpus-{}.jsonl", std::process::id()));
    std::fs::write(&dir, "{\"title\":\"a\",\"year\":{\"$numberLong\":\"1903\"}}\n{\"title\":\"b\"}\n").unwrap();
    let uri = mongod.uri();
    let common = ["--count", "3000", "--json", "--uri", &uri];
    let inserts = report(&[&["run", "--db", "a", "--profile", "insert", "--rate", "20000"], &common[..]].concat());
    let films = report(&[&["run", "--db", "b", "--profile", "insert", "--corpus", dir.to_str().unwrap()], &common[..]].concat());
    let mixed = report(&[&["run", "--db", "c", "--insert", "50", "--connections", "3"], &common[..]].concat());
    std::fs::remove_file(&dir).unwrap();

    let client = mongod.client().await.unwrap();
    for (db, report) in [("a", &inserts), ("b", &films), ("c", &mixed)] {
        let load = &report["load"];
        let mut found = 0;
        for name in client.database(db).list_collection_names().await.unwrap() {
            found += client.database(db).collection::<Document>(&name).count_documents(doc! {}).await.unwrap();
        }
        let alive = load["inserted"].as_u64().unwrap() - load["deleted"].as_u64().unwrap();
        assert_eq!((found, load["operations"].as_u64()), (alive, Some(3000)), "{report}");
        assert_eq!(load["latency_ms"]["count"], 3000, "{report}");
    }
    assert_eq!((&inserts["load"]["latency_from"], &mixed["load"]["latency_from"]), (&Value::from("due"), &Value::from("send")));
    let years = client.database("b").collection::<Document>("load0").count_documents(doc! { "year": { "$type": "long" } }).await.unwrap();
    assert_eq!(years, 1500);
}

#[tokio::test]
async fn an_interrupted_load_ends_in_order_and_reports_what_it_did() {
    let mongod = Mongod::start(MongodOptions::default()).await.unwrap();
    let args = ["run", "--uri", &mongod.uri(), "--db", "a", "--rate", "200", "--duration", "10m", "--json"];
    let mut child = Command::new(env!("CARGO_BIN_EXE_argon-loadgen")).args(args).stdout(std::process::Stdio::piped()).spawn().unwrap();
    let loaded = mongod.client().await.unwrap().database("a").collection::<Document>("load0");
    while loaded.estimated_document_count().await.unwrap() < 20 {
        assert_eq!(child.try_wait().unwrap(), None, "it ended by itself");
        tokio::time::sleep(std::time::Duration::from_millis(20)).await;
    }
    rustix::process::kill_process(rustix::process::Pid::from_child(&child), rustix::process::Signal::INT).unwrap();
    let output = child.wait_with_output().unwrap();
    let report: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!((output.status.code(), &report["load"]["interrupted"]), (Some(0), &Value::from(true)));
    assert!(report["load"]["operations"].as_u64().unwrap() >= 20, "{report}");
}
