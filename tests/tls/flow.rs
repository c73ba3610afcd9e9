//! The way there and back over TLS: captured, verified, restored; logins by password and by certificate.

use std::time::Duration;

use argon::devkit::{Mongod, MongodOptions, Tls, audit, oracle};
use argon::store::{self, S3Keys, StoreOptions};
use bson::{Document, doc};

use crate::authority::{Authority, client_subject};
use crate::place::{BRANCH, Place};
use crate::servers::{self, BUCKET};

/// Escaped in the URI, so that it is also seen that messages do not show it decoded.
const PASSWORD: &str = "pass/S3CRET@1";
const ESCAPED: &str = "pass%2FS3CRET%401";

fn role(role: &str, db: &str) -> Document {
    doc! {"role": role, "db": db}
}

/// Least rights of an engine that also restores: metadata, source, target.
fn roles(place: &Place, target: &str) -> Vec<Document> {
    vec![role("readWrite", &place.metadata), role("readWrite", place.source.name()), role("dbAdmin", target), role("readWrite", target)]
}

async fn load(place: &Place, first: i32) {
    let orders = place.source.collection("orders");
    orders.insert_many((first..first + 300).map(|i| doc! {"_id": i, "text": "x".repeat(200)})).await.unwrap();
    orders.update_many(doc! {"_id": {"$mod": [3, 0]}}, doc! {"$inc": {"n": 1}}).await.unwrap();
    orders.delete_many(doc! {"_id": {"$mod": [50, 7]}}).await.unwrap();
}

#[tokio::test]
async fn captured_verified_and_restored_over_tls_with_a_password_and_no_secret_is_shown() {
    let (mongod, weed) = (servers::mongod().await, servers::weed().await);
    assert!(weed.endpoint().starts_with("https://") && mongod.uri().contains("tls=true"));
    let mut place = Place::at("flow", mongod).await;
    let target = place.database("back");
    let create = doc! {"createUser": "engine", "pwd": PASSWORD, "roles": roles(&place, target.name())};
    place.client.database("admin").run_command(create).await.unwrap();
    place.uri = mongod.uri().replace(&format!("{}:{}@", servers::ROOT.0, servers::ROOT.1), &format!("engine:{ESCAPED}@"));
    assert_ne!(place.uri, mongod.uri());
    place.more = weed.env(BUCKET, "flow");
    place.more.push(("ARGON_LOG".to_owned(), "debug".to_owned()));
    let run = async |args: &[&str], code: i32| {
        let output = place.argon(args).await;
        assert_eq!(output.code, code, "argon {args:?}: {output:?}");
        output.stdout + &output.stderr
    };

    let mut said = run(&["doctor", "--source-db", place.source.name()], 0).await;
    assert!(!said.contains("FAILED"), "{said}");
    said += &run(&["capture", "start", BRANCH, "--source-db", place.source.name()], 0).await;
    let mut engine = place.engine().await;
    load(&place, 0).await;
    place.catch_up().await;
    // What a killed engine leaves is taken up again over new connections.
    engine.kill9();
    said += &(engine.stdout() + &engine.stderr());
    load(&place, 1_000).await;
    let engine = place.engine().await;
    place.catch_up().await;
    said += &run(&["branch", "show", BRANCH], 0).await;
    said += &run(&["verify", BRANCH, "--deep"], 0).await;
    said += &run(&["restore", BRANCH, "--to-db", target.name()], 0).await;
    let (ours, theirs) = (oracle::snapshot(&target).await.unwrap(), oracle::snapshot(&place.source).await.unwrap());
    assert_eq!(ours.differences(&theirs), Vec::<String>::new());
    assert!(theirs.hashes.contains_key("orders"), "{theirs:?}");
    // As root: reading a live catalogue asks for indexes by UUID, which no role of a database allows.
    let compare = ["verify", BRANCH, "--against-db", place.source.name()];
    let compared = place.argon_with(&compare, &[("ARGON_MONGODB_URI", &mongod.uri())]).await;
    assert_eq!(compared.code, 0, "{compared:?}");
    said += &(compared.stdout + &compared.stderr);
    said += &place.stop(engine).await;

    let s3_keys = Some(S3Keys { access_key: weed.access_key().to_owned(), secret_key: weed.secret_key().to_owned() });
    let ca_file = Some(servers::authority().file());
    let options = StoreOptions { endpoint: Some(weed.endpoint()), ca_file, s3_keys, ..StoreOptions::default() };
    let store = store::open(&weed.store_url(BUCKET, "flow"), &options).await.unwrap();
    let subject = audit::Subject { client: &place.client, metadata_db: &place.metadata, branch: BRANCH, store };
    let audit = audit::audit(&subject).await.unwrap();
    assert!(audit.problems.is_empty() && audit.changes > 600, "{:?}", audit.problems);
    for secret in [PASSWORD, ESCAPED, "S3CRET", weed.secret_key(), "PRIVATE KEY"] {
        assert_eq!(said.lines().find(|line| line.contains(secret)), None);
    }
    assert!(said.contains("DEBUG"), "the logs are those of level debug");
}

#[tokio::test]
async fn a_client_certificate_is_a_login_and_a_source_that_is_not_trusted_is_waited_for_in_sight() {
    let authority = Authority::new("x509");
    let tls = Tls {
        server: authority.server("server", &["127.0.0.1"], |_| ()),
        authority: authority.file(),
        client: Some(authority.client("devkit")),
    };
    let options = MongodOptions { auth: Some(servers::root()), tls: Some(tls), ..MongodOptions::default() };
    let mongod = Mongod::start(options).await.unwrap();
    let mut place = Place::at("x509", &mongod).await;
    let (target, engine_pem) = (place.database("back"), authority.client("engine"));
    let external = place.client.database("$external");
    external.run_command(doc! {"createUser": client_subject("engine"), "roles": roles(&place, target.name())}).await.unwrap();
    let uri = |pem: &std::path::Path, ca: &std::path::Path| {
        let files = format!("tlsCAFile={}&tlsCertificateKeyFile={}", ca.display(), pem.display());
        format!("mongodb://{}/?replicaSet=argon-devkit&authMechanism=MONGODB-X509&tls=true&{files}", mongod.host(0))
    };
    place.uri = uri(&engine_pem, &authority.file());
    let stranger = uri(&authority.client("stranger"), &authority.file());
    let output = place.argon_with(&["branch", "list"], &[("ARGON_MONGODB_URI", &stranger)]).await;
    assert_eq!(output.code, 1, "{output:?}");
    assert!(output.stderr.lines().count() == 2 && output.stderr.contains("refused the credentials"), "{output:?}");

    // The source by a reference of its own; a URI with files and without a password may be stored as it is.
    let start = ["capture", "start", BRANCH, "--source-db", place.source.name(), "--source-uri", "env:SOURCE"];
    let source = ("SOURCE", place.uri.clone());
    let started = place.argon_with(&start, &[(source.0, &source.1)]).await;
    assert_eq!(started.code, 0, "{started:?}");
    let other = Authority::new("other");
    let distrusting = uri(&engine_pem, &other.file());
    let mut engine = argon::devkit::ArgonProcess::start(crate::place::binary(), ["run"], &place.env(&[("SOURCE", &distrusting)])).unwrap();
    let line = engine.wait_line("the capture cannot start", Duration::from_secs(60)).await.unwrap();
    assert!(line.contains("unknown authority") && line.contains("tlsCAFile"), "{line}");
    let capture = place.json(&["capture", "list"]).await["captures"][0].clone();
    assert!(capture["state"] == "running" && capture["reason"].as_str().is_some_and(|why| why.contains("tlsCAFile")), "{capture}");
    engine.terminate(Duration::from_secs(60)).await.unwrap();

    let engine = place.engine_with(&[(source.0, &source.1)]).await;
    load(&place, 0).await;
    place.catch_up().await;
    place.stop(engine).await;
    place.ok(&["verify", BRANCH, "--deep"]).await;
    place.ok(&["restore", BRANCH, "--to-db", target.name()]).await;
    let (ours, theirs) = (oracle::snapshot(&target).await.unwrap(), oracle::snapshot(&place.source).await.unwrap());
    assert_eq!(ours.differences(&theirs), Vec::<String>::new());
}
