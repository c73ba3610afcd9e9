//! The devkit against real servers: they start, take the faults asked for, and are gone when their owner is.
#![allow(clippy::unwrap_used)] // helpers of tests are tests

use std::io::{BufRead, BufReader};
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::Duration;

use argon::devkit::process::is_alive;
use argon::devkit::{Auth, Mode, Mongod, MongodOptions, Proxy, Weed};
use argon::runtime::clock;
use aws_sdk_s3::config::Credentials;
use aws_sdk_s3::primitives::ByteStream;
use mongodb::bson::{Document, doc};

/// Set in a re-execution of this test binary, which then is an owner of servers that is about to be killed.
const OWNER: &str = "ARGON_TEST_OWNER";

fn until(what: &str, mut done: impl FnMut() -> bool) {
    let start = clock::now();
    while !done() {
        assert!(start.elapsed() < Duration::from_secs(20), "{what} took more than 20 s");
        std::thread::sleep(Duration::from_millis(10));
    }
}

#[tokio::test]
async fn one_member_is_a_replica_set_with_test_commands() {
    let mongod = Mongod::start(MongodOptions::default()).await.unwrap();
    let client = mongod.client().await.unwrap();
    let mut session = client.start_session().await.unwrap();
    session.start_transaction().await.unwrap();
    client.database("d").collection::<Document>("c").insert_one(doc! { "_id": 1 }).session(&mut session).await.unwrap();
    session.commit_transaction().await.unwrap();
    let status = client.database("admin").run_command(doc! { "getParameter": 1, "enableTestCommands": 1 }).await.unwrap();
    assert!(status.get_bool("enableTestCommands").unwrap());
    let pid = mongod.pid(0).unwrap();
    assert!(is_alive(pid));
    drop(mongod);
    assert!(!is_alive(pid));
}

#[tokio::test]
async fn a_member_that_was_killed_or_frozen_comes_back_with_its_data() {
    let mongod = Mongod::start(MongodOptions::default()).await.unwrap();
    let client = mongod.client().await.unwrap();
    let collection = client.database("d").collection::<Document>("c");
    collection.insert_one(doc! { "_id": 1 }).await.unwrap();
    mongod.kill(0);
    assert_eq!(mongod.primary_index().await, None);
    assert!(mongod.pause(0).is_err(), "a dead member cannot be frozen");
    mongod.restart(0).await.unwrap();
    mongod.wait_primary(Duration::from_secs(30)).await.unwrap();
    assert_eq!(collection.count_documents(doc! {}).await.unwrap(), 1);
    mongod.pause(0).unwrap();
    assert_eq!(mongod.primary_index().await, None);
    mongod.resume(0).unwrap();
    assert_eq!(mongod.wait_primary(Duration::from_secs(30)).await.unwrap(), 0);
}

#[tokio::test]
async fn three_members_elect_a_new_primary_after_a_step_down_and_after_a_kill() {
    let mongod = Mongod::start(MongodOptions::three()).await.unwrap();
    let first = mongod.wait_primary(Duration::from_secs(30)).await.unwrap();
    mongod.step_down(30).await.unwrap();
    let second = mongod.wait_primary(Duration::from_secs(30)).await.unwrap();
    assert_ne!(first, second);
    mongod.kill(second);
    let third = mongod.wait_primary(Duration::from_secs(60)).await.unwrap();
    assert_ne!(second, third);
    let client = mongod.client().await.unwrap();
    client.database("d").collection::<Document>("c").insert_one(doc! { "_id": 1 }).await.unwrap();
}

#[tokio::test]
async fn with_a_user_nobody_else_gets_in() {
    for standalone in [false, true] {
        let auth = Some(Auth { user: "root".to_owned(), password: "secret".to_owned() });
        let mongod = Mongod::start(MongodOptions { auth, standalone, ..Default::default() }).await.unwrap();
        let list = doc! { "listDatabases": 1 };
        mongod.client().await.unwrap().database("admin").run_command(list.clone()).await.unwrap();
        let stranger = mongodb::Client::with_uri_str(format!("mongodb://{}/?directConnection=true", mongod.host(0))).await.unwrap();
        let error = stranger.database("admin").run_command(list).await.unwrap_err();
        assert!(error.to_string().contains("requires authentication"), "{error}");
    }
}

#[tokio::test]
async fn a_standalone_has_no_replica_set() {
    let mongod = Mongod::start(MongodOptions::alone()).await.unwrap();
    let hello = mongod.client().await.unwrap().database("admin").run_command(doc! { "hello": 1 }).await.unwrap();
    assert!(!hello.contains_key("setName"), "{hello}");
}

#[tokio::test]
async fn weed_stores_objects_for_its_credentials_only_and_refuses_a_second_put() {
    let weed = Weed::start().await.unwrap();
    weed.create_bucket("bucket").await.unwrap();
    weed.create_bucket("bucket").await.unwrap();
    let put = |body: &'static [u8]| {
        weed.client().put_object().bucket("bucket").key("k").if_none_match("*").body(ByteStream::from_static(body)).send()
    };
    put(b"one").await.unwrap();
    let refused = put(b"two").await.unwrap_err();
    assert_eq!(refused.raw_response().unwrap().status().as_u16(), 412);
    let got = weed.client().get_object().bucket("bucket").key("k").send().await.unwrap();
    assert_eq!(got.body.collect().await.unwrap().into_bytes().as_ref(), b"one");
    let nobody = weed.client().config().to_builder().credentials_provider(Credentials::new("AKX", "secret", None, None, "test")).build();
    let denied = aws_sdk_s3::Client::from_conf(nobody).list_buckets().send().await.unwrap_err();
    assert_eq!(denied.raw_response().unwrap().status().as_u16(), 403);
    assert_eq!(weed.store_url("bucket", "p/q/"), "s3://bucket/p/q");
    assert_eq!(weed.store_url("bucket", ""), "s3://bucket");
    assert!(weed.env("bucket", "p").contains(&("ARGON_S3_ENDPOINT".to_owned(), weed.endpoint())));
    weed.pause().unwrap();
    let pid = weed.pid().unwrap();
    drop(weed);
    assert!(!is_alive(pid));
}

#[tokio::test]
async fn weed_keeps_its_objects_over_kill_9() {
    let weed = Weed::start().await.unwrap();
    weed.create_bucket("bucket").await.unwrap();
    weed.client().put_object().bucket("bucket").key("k").body(ByteStream::from_static(b"one")).send().await.unwrap();
    weed.kill();
    assert!(weed.client().list_buckets().send().await.is_err());
    weed.restart().await.unwrap();
    let got = weed.client().get_object().bucket("bucket").key("k").send().await.unwrap();
    assert_eq!(got.body.collect().await.unwrap().into_bytes().as_ref(), b"one");
}

#[tokio::test]
async fn behind_a_proxy_an_insert_may_happen_without_an_answer() {
    let mongod = Mongod::start(MongodOptions::default()).await.unwrap();
    let proxy = Proxy::start(mongod.address(0)).await.unwrap();
    let uri = format!("mongodb://{}/?directConnection=true&retryWrites=false", proxy.address());
    let through = mongodb::Client::with_uri_str(uri).await.unwrap().database("d").collection::<Document>("c");
    through.insert_one(doc! { "_id": 1 }).await.unwrap();
    proxy.set_when(Mode::DropAnswer, b"needle", 1);
    through.insert_one(doc! { "_id": "needle" }).await.unwrap_err();
    assert_eq!(proxy.hits(), 1);
    let direct = mongod.client().await.unwrap().database("d").collection::<Document>("c");
    assert_eq!(direct.count_documents(doc! {}).await.unwrap(), 2);
    through.insert_one(doc! { "_id": 3 }).await.unwrap();
}

#[tokio::test]
async fn behind_a_proxy_an_object_may_be_stored_without_an_answer_or_come_back_cut() {
    let weed = Weed::start().await.unwrap();
    weed.create_bucket("bucket").await.unwrap();
    let proxy = Proxy::start(weed.address()).await.unwrap();
    let config = weed.client().config().to_builder().endpoint_url(format!("http://{}", proxy.address())).build();
    let through = aws_sdk_s3::Client::from_conf(config);
    proxy.set_when(Mode::DropAnswer, b"PUT /bucket/k", 1);
    let put = || through.put_object().bucket("bucket").key("k").if_none_match("*").body(ByteStream::from_static(b"one")).send();
    put().await.unwrap_err();
    assert_eq!(put().await.unwrap_err().raw_response().unwrap().status().as_u16(), 412, "the first one landed");
    let get = async || through.get_object().bucket("bucket").key("k").send().await.unwrap().body.collect().await;
    assert_eq!(get().await.unwrap().into_bytes().as_ref(), b"one");
    proxy.set_when(Mode::CutAfter(20), b"GET /bucket/k", 1);
    through.get_object().bucket("bucket").key("k").send().await.unwrap_err();
    assert_eq!(proxy.hits(), 2);
}

/// What the re-executed binary does: own a server until it is killed.
async fn own() {
    let mongod = Mongod::start(MongodOptions::default()).await.unwrap();
    let weed = Weed::start().await.unwrap();
    println!("\nowned {} {}", weed.pid().unwrap(), weed.dir().display());
    println!("\nowned {} {}", mongod.pid(0).unwrap(), mongod.dir().display());
    std::future::pending::<()>().await;
}

#[tokio::test]
async fn servers_and_their_directories_are_gone_after_kill_9_of_their_owner() {
    if std::env::var_os(OWNER).is_some() {
        return own().await;
    }
    let mut owner = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "servers_and_their_directories_are_gone_after_kill_9_of_their_owner", "--nocapture", "--test-threads=1"])
        .env(OWNER, "1")
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let lines = BufReader::new(owner.stdout.take().unwrap()).lines();
    let owned: Vec<(u32, PathBuf)> = lines.filter_map(|line| parse_owned(&line.unwrap())).take(2).collect();
    assert!(owned.iter().all(|(pid, dir)| is_alive(*pid) && dir.exists()), "{owned:?}");
    owner.kill().unwrap();
    owner.wait().unwrap();
    for (pid, dir) in owned {
        until("the end of a server", || !is_alive(pid));
        until("the removal of its directory", || !dir.exists());
    }
}

fn parse_owned(line: &str) -> Option<(u32, PathBuf)> {
    let (pid, dir) = line.strip_prefix("owned ")?.split_once(' ')?;
    Some((pid.parse().ok()?, PathBuf::from(dir)))
}
