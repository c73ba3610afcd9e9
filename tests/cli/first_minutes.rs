//! The mistakes of the first ten minutes: each ends in a line with the command to type next, and doctor says the same of those that it can meet.
//!
//! Servers that cannot serve, users without rights and buckets that are not there have tests of their own (`servers`, `storage`); here is what needs none.

use std::net::TcpListener;

use argon::devkit::engine::run_to_end;
use argon::devkit::{Mongod, MongodOptions, Output};
use bson::{Document, doc};

use crate::place::{BRANCH, LIMIT, Place, assert_refused, binary};

fn pairs(env: &[(&str, &str)]) -> Vec<(String, String)> {
    env.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect()
}

#[tokio::test]
async fn what_was_not_given_or_is_not_there_ends_in_what_to_type() {
    let dir = tempfile::tempdir().unwrap();
    let alone = async |env: &[(&str, &str)], args: &[&str]| run_to_end(binary(), args, &pairs(env), LIMIT).await.unwrap();
    let store = format!("file://{}", dir.path().display());
    assert_refused(&alone(&[], &["run"]).await, 2, &["no MongoDB given", "\nnext:  export ARGON_MONGODB_URI='mongodb://"]);
    assert_refused(&alone(&[("ARGON_STORE_URL", &store)], &["run"]).await, 2, &["no MongoDB given", "\nnext:  export ARGON_MONGODB_URI="]);

    let place = Place::new("first").await;
    let uri = ("ARGON_MONGODB_URI", place.uri.as_str());
    let start = ["capture", "start", BRANCH, "--source-db", place.source.name()];
    let no_metadata = "\nnext:  argon capture start shop/main --source-db shop";
    assert_refused(&place.argon(&["branch", "list"]).await, 1, &["no Argon metadata", no_metadata]);
    let output = alone(&[uri], &start).await;
    assert_refused(&output, 2, &["no object store given", "\nnext:  export ARGON_STORE_URL="]);
    let parent = dir.path().join("no parent");
    let below = format!("file://{}/store", parent.display());
    let output = place.argon_with(&start, &[("ARGON_STORE_URL", &below)]).await;
    assert_refused(&output, 2, &["parent directory does not exist", &format!("\nnext:  mkdir -p '{}'", parent.display())]);
    let nowhere = [("ARGON_STORE_URL", "s3://argon/history"), ("AWS_EC2_METADATA_DISABLED", "true")];
    assert_refused(&place.argon_with(&start, &nowhere).await, 2, &["region of bucket argon", "\nnext:  export AWS_REGION="]);
    let output = place.argon_with(&[&start[..], &["--source-uri", "env:SHOP_URI"]].concat(), &[]).await;
    assert_refused(&output, 2, &["SHOP_URI", "not set", "\nnext:  export SHOP_URI="]);

    place.start_capture().await;
    assert_refused(&place.argon(&["branch", "show", "shop/typo"]).await, 1, &[BRANCH, "\nnext:  argon branch list"]);
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let taken = listener.local_addr().unwrap();
    let output = place.argon_with(&["run"], &[("ARGON_HTTP_ADDR", &taken.to_string()), ("ARGON_CONTROL_SOCKET", "off")]).await;
    let next = format!("next:  export ARGON_HTTP_ADDR=127.0.0.1:{}", taken.port().checked_add(1).unwrap_or(8080));
    told_last(&output, 1, &["is in use", &next]);
    drop(listener);
    let output = place.argon_with(&["run"], &[("ARGON_HTTP_ADDR", "0.0.0.0:0"), ("ARGON_CONTROL_SOCKET", "off")]).await;
    told_last(&output, 2, &["no token is set", "next:  export ARGON_API_TOKEN=$(openssl rand -hex 32)"]);
}

/// Of a command that logs: the error and what to type next come last.
fn told_last(output: &Output, code: i32, says: &[&str]) {
    assert_eq!(output.code, code, "{output:?}");
    let mut last: Vec<&str> = output.stderr.lines().rev().take(2).collect();
    last.reverse();
    assert!(last[0].starts_with("error: ") && last[1].starts_with("next:  "), "{output:?}");
    assert!(says.iter().all(|part| last.join("\n").contains(part)), "{says:?}: {output:?}");
}

#[tokio::test]
async fn for_programs_the_next_command_is_a_field() {
    let output = run_to_end(binary(), ["branch", "list", "--json"], &[], LIMIT).await.unwrap();
    let error: serde_json::Value = serde_json::from_str(&output.stderr).unwrap();
    let error = &error["error"];
    assert_eq!(error["code"], "config");
    assert!(error["next"].as_str().unwrap().starts_with("export ARGON_MONGODB_URI="), "{error}");
    assert!(!error["message"].as_str().unwrap().contains("next:"), "{error}");
}

#[tokio::test]
async fn doctor_says_what_to_type_too_and_how_much_of_the_oplog_is_argon_s_own() {
    // Its own: whoever else writes has a share in the oplog.
    let mongod = Mongod::start(MongodOptions::default()).await.unwrap();
    let place = Place::at("check", &mongod).await;
    let doctor = async |env: &[(&str, &str)], args: &[&str]| {
        let output = place.argon_with(&[&["doctor", "--json"], args].concat(), env).await;
        let report: serde_json::Value = serde_json::from_str(&output.stdout).unwrap_or_else(|e| panic!("{e}: {output:?}"));
        report["checks"].as_array().unwrap().clone()
    };
    let next = |checks: &[serde_json::Value], name: &str| {
        let check = checks.iter().find(|check| check["name"] == name).unwrap_or_else(|| panic!("{name} in {checks:?}"));
        check["next"].as_str().unwrap_or_default().to_owned()
    };
    let gone = doctor(&[("ARGON_MONGODB_URI", "mongodb://127.0.0.1:1/?replicaSet=rs0")], &[]).await;
    assert!(next(&gone, "metadata server").starts_with("mongosh "), "{gone:?}");
    let nowhere = doctor(&[("ARGON_STORE_URL", "file:///no/such/parent/store")], &[]).await;
    assert_eq!(next(&nowhere, "store"), "mkdir -p '/no/such/parent'");

    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let taken = listener.local_addr().unwrap();
    let socket = place.dir.path().join("control.sock");
    let here = [("ARGON_CONTROL_SOCKET", socket.to_str().unwrap()), ("ARGON_HTTP_ADDR", &taken.to_string())];
    let busy = doctor(&here, &[]).await;
    assert!(next(&busy, "address").starts_with("export ARGON_HTTP_ADDR=127.0.0.1:"), "{busy:?}");
    drop(listener);
    let free = doctor(&here, &[]).await;
    assert!(free.iter().any(|check| check["name"] == "address" && check["verdict"] == "ok"), "{free:?}");

    // Some of the newest entries of the oplog are what the engine has just written; all of them would be, if nobody else wrote.
    let engine = place.begin().await;
    let rows = (0..5_000).map(|i: i64| doc! {"_id": i, "noise": (0..20).map(|j| (i * 20 + j).wrapping_mul(0x9E37_79B9_7F4A_7C15_u64.cast_signed())).collect::<Vec<_>>()});
    place.source.collection::<Document>("a").insert_many(rows).await.unwrap();
    place.catch_up().await;
    let running = doctor(&[], &[]).await;
    assert!(running.iter().all(|check| check["name"] != "address" || check["verdict"] == "ok"), "{running:?}");
    place.stop(engine).await;
    let shared = doctor(&[], &["--source-db", place.source.name()]).await;
    let share = shared.iter().find(|check| check["name"] == "oplog share").unwrap_or_else(|| panic!("{shared:?}"));
    let detail = share["detail"].as_str().unwrap();
    let percent: u32 = detail.split_once("wrote ").unwrap().1.split_once(" %").unwrap().0.parse().unwrap();
    // The payload goes through the same oplog once more, and what does not compress is about as large there.
    assert!((10..100).contains(&percent) && share["verdict"] == "warning", "{share}");
    assert!(detail.contains("instead of") && detail.contains("another cluster"), "{share}");
    // A metadata database of another name has written nothing, and nothing is said of an oplog that is not read.
    let other = place.argon_with(&["doctor", "--json", "--source-db", place.source.name()], &[("ARGON_METADATA_DB", "quiet")]).await;
    assert!(other.stdout.contains("Argon wrote 0 %"), "{other:?}");
}
