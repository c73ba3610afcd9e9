//! What is particular to S3: what a real service refuses, and answers that a real service gives only on bad days.

use std::ops::Range;
use std::time::Duration;

use argon::devkit::Weed;
use argon::fault::{Fault, Kind, Result};
use argon::store::{FaultPlan, FaultyStore, ObjectInfo, ObjectStore, Put, PutTag, S3Keys, Store, StoreOptions, Switch, open, probe};
use bytes::Bytes;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;

use crate::{body, options, tag};

pub(crate) async fn checksums_refuse_what_was_altered_on_the_way(store: &dyn ObjectStore) {
    let wrong = PutTag { sha256: [7; 32], put_id: "t".to_owned() };
    let fault = store.put_new("altered/k", body(1, 1000), &wrong).await.unwrap_err();
    assert!(fault.may_heal() || fault.kind == Kind::Rejected, "{fault}");
    assert_eq!(store.head("altered/k").await.unwrap(), None, "nothing is stored");
}

pub(crate) async fn metadata_of_a_put_come_back(store: &dyn ObjectStore) {
    let sent = body(1, 1000);
    assert_eq!(store.put_new("meta/k", sent.clone(), &tag(&sent, "my put id")).await.unwrap(), Put::Stored);
    let info = store.head("meta/k").await.unwrap().unwrap();
    assert_eq!((info.sha256, info.put_id.as_deref()), (Some(tag(&sent, "").sha256), Some("my put id")));
}

pub(crate) async fn faults_of_a_real_service_say_what_to_do(weed: &Weed) {
    // SeaweedFS makes a missing bucket on the first put of an administrator, so reading tells.
    let nowhere = open("s3://no-such-bucket", &options(weed, Switch::Auto)).await.unwrap();
    let fault = nowhere.list("", None, 10).await.unwrap_err();
    assert_eq!(fault.kind, Kind::Rejected, "{fault}");
    assert!(fault.what.contains("bucket no-such-bucket does not exist: create it"), "{fault}");

    let keys = |access: &str, secret: &str| Some(S3Keys { access_key: access.to_owned(), secret_key: secret.to_owned() });
    for s3_keys in [keys(weed.access_key(), "wrong"), keys("wrong", weed.secret_key())] {
        let stranger = open("s3://shop", &StoreOptions { s3_keys, ..options(weed, Switch::Auto) }).await.unwrap();
        let fault = probe(stranger.as_ref(), "p").await.unwrap_err();
        assert_eq!(fault.kind, Kind::Rejected, "{fault}");
        assert!(fault.what.contains("credentials are wrong"), "{fault}");
        assert!(!fault.what.contains(weed.secret_key()), "{fault}");
    }
}

/// A service that reads a request and gives every connection the same answer; `None`: it closes without one.
async fn canned(answer: Option<String>) -> Store {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let endpoint = format!("http://{}", listener.local_addr().unwrap());
    tokio::spawn(async move {
        loop {
            let (mut socket, _) = listener.accept().await.unwrap();
            let answer = answer.clone();
            tokio::spawn(async move {
                let mut request = vec![0; 64 << 10];
                let _ = socket.read(&mut request).await;
                match answer {
                    Some(answer) if answer.is_empty() => std::future::pending().await,
                    Some(answer) => drop(socket.write_all(answer.as_bytes()).await),
                    None => {}
                }
            });
        }
    });
    at(&endpoint).await
}

async fn at(endpoint: &str) -> Store {
    let s3_keys = Some(S3Keys { access_key: "a".to_owned(), secret_key: "s".to_owned() });
    let timeout = Duration::from_millis(300);
    open("s3://shop", &StoreOptions { endpoint: Some(endpoint.to_owned()), s3_keys, timeout, ..StoreOptions::default() }).await.unwrap()
}

fn http(status: &str, headers: &str, body: &str) -> Option<String> {
    Some(format!("HTTP/1.1 {status}\r\ncontent-length: {}\r\nconnection: close\r\n{headers}\r\n{body}", body.len()))
}

async fn put_fault(store: &Store) -> Fault {
    store.put_new("k", Bytes::from_static(b"x"), &tag(b"x", "t")).await.unwrap_err()
}

async fn get_fault(store: &Store) -> Fault {
    store.get("k", None).await.unwrap_err()
}

#[tokio::test]
async fn nobody_at_the_address_means_that_it_did_not_happen() {
    let free = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let store = at(&format!("http://{}", free.local_addr().unwrap())).await;
    drop(free);
    let fault = put_fault(&store).await;
    assert_eq!(fault.kind, Kind::Transient, "{fault}");
    assert!(fault.what.contains("refused"), "{fault}");
    let unnamed = at("http://no-such-host.invalid").await;
    assert_eq!(put_fault(&unnamed).await.kind, Kind::Transient);
}

#[tokio::test]
async fn silence_and_broken_connections_leave_a_put_unknown() {
    for (what, answer) in [("closed", None), ("silent", Some(String::new())), ("garbage", Some("what?\r\n\r\n".to_owned()))] {
        let store = canned(answer).await;
        let (put, get) = (put_fault(&store).await, get_fault(&store).await);
        assert_eq!((put.kind, get.kind), (Kind::Unknown, Kind::Transient), "{what}: {put}; {get}");
        assert_eq!(store.delete("k").await.unwrap_err().kind, Kind::Unknown, "{what}");
    }
}

#[tokio::test]
async fn answers_of_bad_days_are_classified() {
    let error = |code: &str| format!("<?xml version=\"1.0\"?><Error><Code>{code}</Code><Message>m</Message></Error>");
    for (answer, put, get) in [
        (http("503 Slow Down", "retry-after: 7\r\n", &error("SlowDown")), Kind::Unknown, Kind::Transient),
        (http("500 Internal Server Error", "", "<html>not XML"), Kind::Unknown, Kind::Transient),
        (http("429 Too Many Requests", "retry-after: 7\r\n", ""), Kind::Transient, Kind::Transient),
        (http("409 Conflict", "", &error("ConditionalRequestConflict")), Kind::Transient, Kind::Transient),
        (http("404 Not Found", "", "default backend - 404"), Kind::Rejected, Kind::Missing),
        (http("403 Forbidden", "", &error("AccessDenied")), Kind::Rejected, Kind::Rejected),
        (http("501 Not Implemented", "", &error("NotImplemented")), Kind::Rejected, Kind::Rejected),
    ] {
        let store = canned(answer.clone()).await;
        let (on_put, on_get) = (put_fault(&store).await, get_fault(&store).await);
        assert_eq!((on_put.kind, on_get.kind), (put, get), "{on_put}; {on_get}");
        let wait = answer.unwrap().contains("retry-after").then_some(Duration::from_secs(7));
        assert_eq!((on_put.retry_after, on_get.retry_after), (wait, wait), "{on_put}");
    }
    for status in ["412 Precondition Failed", "409 Conflict"] {
        let store = canned(http(status, "", &error("Other"))).await;
        assert_eq!(store.put_new("k", Bytes::new(), &tag(b"", "t")).await.unwrap(), Put::Refused, "{status}");
    }
}

#[tokio::test]
async fn a_probe_of_a_bucket_that_does_not_exist_says_so() {
    let error = "<Error><Code>NoSuchBucket</Code><Message>The specified bucket does not exist</Message></Error>";
    let fault = probe(canned(http("404 Not Found", "", error)).await.as_ref(), "p").await.unwrap_err();
    assert_eq!(fault.kind, Kind::Rejected);
    assert!(fault.what.contains("bucket shop does not exist: create it, or correct ARGON_STORE_URL"), "{fault}");
}

/// A store that takes every put, as some services do that do not know If-None-Match.
#[derive(Debug)]
struct Careless(Store);

#[async_trait::async_trait]
impl ObjectStore for Careless {
    async fn put_new(&self, key: &str, body: Bytes, tag: &PutTag) -> Result<Put> {
        self.0.delete(key).await?;
        self.0.put_new(key, body, tag).await
    }
    async fn replace(&self, key: &str, body: Bytes, tag: &PutTag, version: &str) -> Result<Put> {
        self.0.replace(key, body, tag, version).await
    }
    async fn get(&self, key: &str, range: Option<Range<u64>>) -> Result<Bytes> {
        self.0.get(key, range).await
    }
    async fn head(&self, key: &str) -> Result<Option<ObjectInfo>> {
        self.0.head(key).await
    }
    async fn list(&self, prefix: &str, after: Option<&str>, max: usize) -> Result<Vec<ObjectInfo>> {
        self.0.list(prefix, after, max).await
    }
    async fn delete(&self, key: &str) -> Result<()> {
        self.0.delete(key).await
    }
    fn describe(&self) -> String {
        "careless:".to_owned()
    }
}

#[tokio::test]
async fn a_probe_finds_a_store_that_ignores_the_condition() {
    let careless = Careless(open("memory:", &StoreOptions::default()).await.unwrap());
    assert!(!probe(&careless, "p").await.unwrap().conditional_put);
}

#[tokio::test]
async fn a_probe_notices_bytes_that_change_on_the_way_and_cleans_up() {
    let inner = open("memory:", &StoreOptions::default()).await.unwrap();
    let liar = FaultyStore::new(inner.clone(), FaultPlan { wrong_body: 1.0, ..FaultPlan::default() });
    let fault = probe(&liar, "p").await.unwrap_err();
    assert!(fault.kind == Kind::Rejected && fault.what.contains("changes the bytes"), "{fault}");
    assert!(inner.list("", None, 10).await.unwrap().is_empty());
}

/// Runs itself again without the environment, since credentials and region come from there.
#[tokio::test]
async fn without_credentials_or_region_it_says_what_to_set() {
    const CHILD: &str = "ARGON_TEST_WITHOUT_CREDENTIALS";
    if std::env::var_os(CHILD).is_some() {
        let endpoint = Some("http://127.0.0.1:9".to_owned());
        let store = open("s3://shop", &StoreOptions { endpoint, ..StoreOptions::default() }).await.unwrap();
        println!("{}", probe(store.as_ref(), "p").await.unwrap_err());
        println!("{}", open("s3://shop", &StoreOptions::default()).await.unwrap_err());
        return;
    }
    let nowhere = tempfile::tempdir().unwrap();
    let child = std::process::Command::new(std::env::current_exe().unwrap())
        .args(["service::without_credentials_or_region_it_says_what_to_set", "--exact", "--nocapture"])
        .env_clear()
        .envs([(CHILD, "1"), ("AWS_EC2_METADATA_DISABLED", "true"), ("HOME", nowhere.path().to_str().unwrap())])
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&child.stdout);
    assert!(said.contains("no AWS credentials were found; set AWS_ACCESS_KEY_ID"), "{said}");
    assert!(said.contains("set AWS_REGION"), "{said}");
}

#[tokio::test]
async fn bodies_that_are_not_what_was_asked_for_are_never_used() {
    let cut = Some("HTTP/1.1 200 OK\r\ncontent-length: 100\r\n\r\nonly this".to_owned());
    assert_eq!(get_fault(&canned(cut).await).await.kind, Kind::Transient);
    let whole = canned(http("200 OK", "", "0123456789")).await;
    assert_eq!(whole.get("k", Some(2..12)).await.unwrap_err().kind, Kind::Corrupt, "the range was ignored");
    let other = canned(http("206 Partial Content", "content-range: bytes 3-6/10\r\n", "3456")).await;
    assert_eq!(other.get("k", Some(2..6)).await.unwrap_err().kind, Kind::Corrupt, "another range");
    let short = canned(http("206 Partial Content", "content-range: bytes 8-9/10\r\n", "89")).await;
    assert_eq!(short.get("k", Some(8..12)).await.unwrap_err().kind, Kind::Corrupt, "past the end");
    let huge = Some("HTTP/1.1 200 OK\r\ncontent-length: 99999999999999\r\n\r\nx".to_owned());
    assert_eq!(get_fault(&canned(huge).await).await.kind, Kind::Rejected, "nothing is allocated for an absurd length");
}
