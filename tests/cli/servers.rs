//! MongoDB servers that cannot serve, and what a working one is not asked to do: one line, exit code 1 (2 where an argument is at fault), nothing written.

use std::time::Duration;

use argon::devkit::{Auth, Mongod, MongodOptions};
use bson::{Document, doc};
use futures_util::StreamExt;

use crate::place::{BRANCH, Place, assert_refused};

const COMMANDS: [&[&str]; 10] = [
    &["run"],
    &["capture", "start", BRANCH, "--source-db", "shop"],
    &["capture", "list"],
    &["branch", "list"],
    &["jobs", "list"],
    &["jobs", "submit"],
    &["queue", "pause", "--all"],
    &["status"],
    &["verify", BRANCH],
    &["restore", BRANCH, "--to-db", "copy"],
];

#[tokio::test]
async fn a_standalone_server_is_named_with_the_way_out() {
    let alone = Mongod::start(MongodOptions::alone()).await.unwrap();
    let place = Place::at("alone", &alone).await;
    for args in COMMANDS {
        let output = place.argon(args).await;
        assert_refused(&output, 1, &[&alone.host(0), "standalone", "--replSet", "\nnext:  mongosh --eval 'rs.initiate()'"]);
    }
    let doctor = place.argon(&["doctor", "--json"]).await;
    assert_eq!(doctor.code, 1, "{doctor:?}");
    assert!(doctor.stdout.contains("standalone") && doctor.stdout.contains(r#""ok":false"#), "{doctor:?}");
    assert!(doctor.stdout.contains(r#""next":"mongosh --eval 'rs.initiate()'""#), "{doctor:?}");
    let kept = place.client.list_database_names().await.unwrap();
    assert!(!kept.contains(&place.metadata), "nothing is written: {kept:?}");
}

#[tokio::test]
async fn a_server_that_does_not_answer_is_named() {
    let place = Place::new("silent").await;
    // The second may have another process's port by chance, but no mongod that speaks MongoDB's protocol under that name.
    for (uri, says) in [
        (
            "mongodb://127.0.0.1:1/?replicaSet=rs0",
            &["127.0.0.1:1", "Connection refused", "is mongod running", "\nnext:  mongosh \"$ARGON_MONGODB_URI\""][..],
        ),
        ("mongodb://no-such-host.invalid:27017/", &["no-such-host.invalid"][..]),
    ] {
        let output = place.argon_with(&["branch", "list"], &[("ARGON_MONGODB_URI", uri)]).await;
        assert_refused(&output, 1, &["not reachable"]);
        assert_refused(&output, 1, says);
    }
    let wrong_set = place.uri.replace("replicaSet=argon-devkit", "replicaSet=other");
    assert_ne!(wrong_set, place.uri);
    let output = place.argon_with(&["branch", "list"], &[("ARGON_MONGODB_URI", &wrong_set)]).await;
    assert_refused(&output, 1, &["not reachable", "other", "replicaSet in the URI"]);
    let output = place.argon_with(&["run"], &[("ARGON_MONGODB_URI", "mongodb://127.0.0.1:1/?replicaSet=rs0")]).await;
    assert_refused(&output, 1, &["127.0.0.1:1"]);
}

/// Users and roles of one server with authentication.
struct Guarded {
    mongod: Mongod,
    place: Place,
}

impl Guarded {
    async fn start() -> Self {
        let auth = Auth { user: "root".into(), password: "rootpw".into() };
        let mongod = Mongod::start(MongodOptions { auth: Some(auth), ..MongodOptions::default() }).await.unwrap();
        let place = Place::at("guarded", &mongod).await;
        Self { mongod, place }
    }

    /// A user; its URI.
    async fn user(&self, name: &str, password: &str, roles: Vec<Document>) -> String {
        let admin = self.place.client.database("admin");
        admin.run_command(doc! {"createUser": name, "pwd": password, "roles": roles}).await.unwrap();
        self.uri(name, password)
    }

    fn uri(&self, name: &str, password: &str) -> String {
        self.mongod.uri().replace("root:rootpw", &format!("{name}:{password}"))
    }
}

#[tokio::test]
async fn credentials_and_rights_that_are_missing_are_named_and_passwords_never_shown() {
    let guarded = Guarded::start().await;
    let place = &guarded.place;
    let (metadata, source) = (place.metadata.as_str(), place.source.name());
    let role = |role: &str, db: &str| doc! {"role": role, "db": db};
    let reader = guarded.user("reader", "readerS3CRET", vec![role("read", source), role("read", metadata)]).await;
    let writer = guarded.user("writer", "writerS3CRET", vec![role("readWrite", metadata)]).await;
    let wrong = guarded.uri("writer", "wrongS3CRET");
    let nobody = guarded.mongod.uri().replace("root:rootpw@", "");
    let start = ["capture", "start", BRANCH, "--source-db", source];
    let lost = ["capture", "start", BRANCH, "--source-db", source, "--source-uri", "env:SOURCE"];
    let login = &["refused the credentials", "authSource", "\nnext:  mongosh"][..];
    let grant_read = format!("[{{role: \"read\", db: \"{source}\"}}])'");
    for (uri, args, says) in [
        (&wrong, &["branch", "list"][..], login),
        (&wrong, &["run"], login),
        (&nobody, &["branch", "list"], &["login", "user and password", "\nnext:  export ARGON_MONGODB_URI"]),
        (&reader, &["branch", "list"], &["no Argon metadata in database", metadata]),
        (&reader, &["run"], &["may not run", metadata, "grant", "\nnext:  mongosh", "role: \"readWrite\""]),
        (&writer, &start, &["may not run", source, "grant", "\nnext:  mongosh", &grant_read]),
    ] {
        let output = place.argon_with(args, &[("ARGON_MONGODB_URI", uri), ("ARGON_LOG", "debug")]).await;
        assert_eq!((output.code, output.stdout.as_str()), (1, ""), "{output:?}");
        assert!(!output.stderr.contains("S3CRET"), "{output:?}");
        let at = output.stderr.rfind("error: ").unwrap_or_else(|| panic!("{output:?}"));
        let told = &output.stderr[at..];
        assert!(says.iter().all(|part| told.contains(part)), "{says:?}: {told}");
        let quiet = place.argon_with(args, &[("ARGON_MONGODB_URI", uri)]).await;
        assert_refused(&quiet, 1, says);
    }
    // The metadata may be read and written, the source wants another login.
    let output = place.argon_with(&lost, &[("ARGON_MONGODB_URI", &writer), ("SOURCE", &wrong)]).await;
    assert_refused(&output, 1, &["source", "refused the credentials"]);
    let output = place.argon_with(&lost, &[("ARGON_MONGODB_URI", &writer)]).await;
    assert_refused(&output, 2, &["SOURCE", "not set"]);
    let doctor = place.argon_with(&["doctor", "--source-db", source], &[("ARGON_MONGODB_URI", &writer)]).await;
    assert_eq!(doctor.code, 1, "{doctor:?}");
    assert!(doctor.stdout.contains("FAILED   change stream") && doctor.stdout.contains(source), "{doctor:?}");
    assert!(doctor.stdout.contains("next: mongosh"), "{doctor:?}");
    // All but one of what the engine does there: found before the engine meets it.
    let actions = ["find", "insert", "update", "createIndex", "listCollections", "listIndexes"];
    let most = doc! {"resource": {"db": metadata, "collection": ""}, "actions": actions.to_vec()};
    let made = doc! {"createRole": "most", "privileges": [most], "roles": []};
    place.client.database("admin").run_command(made).await.unwrap();
    let half = guarded.user("half", "halfS3CRET", vec![role("most", "admin")]).await;
    let doctor = place.argon_with(&["doctor"], &[("ARGON_MONGODB_URI", &half)]).await;
    let says = format!("user half lacks remove on {metadata}");
    let grant = format!(r#"grantRolesToUser("half", [{{role: "readWrite", db: "{metadata}"}}])"#);
    assert!(doctor.code == 1 && doctor.stdout.contains(&says) && doctor.stdout.contains(&grant), "{doctor:?}");
    let branches = place.client.database(metadata).collection::<Document>("branches");
    assert_eq!(branches.count_documents(doc! {}).await.unwrap(), 0, "none of these made a branch");
}

#[tokio::test]
async fn a_user_with_the_least_rights_is_enough_and_planted_secrets_never_appear() {
    let guarded = Guarded::start().await;
    let place = &guarded.place;
    let role = |role: &str, db: &str| doc! {"role": role, "db": db};
    let engine = guarded.user("engine", "engineS3CRET", vec![role("readWrite", &place.metadata)]).await;
    let source = guarded.user("source", "sourceS3CRET", vec![role("read", place.source.name())]).await;
    let file = place.dir.path().join("source-uri");
    std::fs::write(&file, format!("{source}\n")).unwrap();
    let reference = format!("file:{}", file.display());
    let env = [("ARGON_MONGODB_URI", engine.as_str()), ("ARGON_LOG", "debug"), ("WORKER_BATCH_TIMEOUT", "50ms")];

    let mut said = String::new();
    let plain = ["capture", "start", BRANCH, "--source-db", place.source.name(), "--source-uri", &source];
    let refused = place.argon_with(&plain, &env).await;
    assert_eq!(refused.code, 2, "{refused:?}");
    assert!(refused.stderr.contains("env:NAME or file:PATH"), "{refused:?}");
    said += &refused.stderr;
    // A collection that exists and is empty is listed with its indexes.
    place.source.collection::<Document>("a").create_index(mongodb::IndexModel::builder().keys(doc! {"n": 1}).build()).await.unwrap();
    let started = place
        .argon_with(&["capture", "start", BRANCH, "--source-db", place.source.name(), "--source-uri", &reference, "--json"], &env)
        .await;
    assert_eq!(started.code, 0, "{started:?}");
    let mut process = place.engine_with(&env).await;
    place.source.collection("a").insert_many((0..500).map(|i| doc! {"_id": i})).await.unwrap();
    place.catch_up().await;
    let against = ["verify", BRANCH, "--against-db", place.source.name(), "--against-uri", &reference];
    for args in
        [&["branch", "show", BRANCH][..], &["capture", "list", "--json"], &["doctor", "--json"], &["verify", BRANCH, "--deep"], &against]
    {
        let output = place.argon_with(args, &env).await;
        assert_eq!(output.code, 0, "{output:?}");
        said += &(output.stdout + &output.stderr);
    }
    // An outage makes the driver and the engine say what they were connected to.
    guarded.mongod.kill(0);
    process.wait_line("not reachable", Duration::from_secs(60)).await.unwrap();
    let exit = process.terminate(Duration::from_secs(60)).await.unwrap();
    assert!(matches!(exit.code, 0 | 3), "{exit:?}: {}", process.log_tail(3_000));
    said += &(started.stdout + &started.stderr + &process.stdout() + &process.stderr());
    assert!(said.contains("debug") || said.contains("DEBUG"), "the logs are those of level debug");
    let shown = said.lines().find(|line| line.contains("S3CRET"));
    assert_eq!(shown, None);

    guarded.mongod.restart(0).await.unwrap();
    guarded.mongod.wait_primary(Duration::from_secs(60)).await.unwrap();
    let metadata = place.client.database(&place.metadata);
    let mut collections = metadata.list_collection_names().await.unwrap();
    collections.sort();
    assert_eq!(
        collections,
        [
            "base_chunks",
            "bases",
            "branches",
            "captures",
            "controls",
            "counters",
            "engines",
            "job_payloads",
            "jobs",
            "leases",
            "segments",
            "stats"
        ],
        "what is written, and nothing else"
    );
    for collection in &collections {
        let rows = metadata.collection::<Document>(collection);
        let mut rows = rows.find(doc! {}).await.unwrap();
        while let Some(row) = rows.next().await {
            assert!(!row.as_ref().unwrap().to_string().contains("S3CRET"), "{collection}: {row:?}");
        }
    }
}

#[tokio::test]
async fn what_may_not_be_captured_is_refused_and_left_alone() {
    let place = Place::new("taboo").await;
    let output = place.argon(&["capture", "start", BRANCH, "--source-db", &place.metadata]).await;
    assert_refused(&output, 2, &[&place.metadata, "metadata database", "--source-db"]);
    // The same server under another name is the same server.
    let alias = place.uri.replace("127.0.0.1", "localhost");
    let other = ["capture", "start", BRANCH, "--source-db", &place.metadata, "--source-uri", "env:ALIAS"];
    assert_refused(&place.argon_with(&other, &[("ALIAS", &alias)]).await, 2, &[&place.metadata, "metadata database"]);
    for name in ["noslash", "a/b/c", "/b", "a/", "a/B C", "a/.."] {
        let output = place.argon(&["capture", "start", name, "--source-db", "empty_one"]).await;
        assert_refused(&output, 2, &[name, "project/branch"]);
    }
    let branches: serde_json::Value = place.json(&["branch", "list"]).await;
    assert_eq!(branches["branches"], serde_json::json!([]), "nothing was begun");
}

#[tokio::test]
async fn doctor_says_whether_a_database_can_be_captured() {
    let place = Place::new("doctor").await;
    let source = place.source.name();
    let doctor = async |db: &str| place.argon(&["doctor", "--source-db", db]).await;
    let told = |output: &argon::devkit::Output, code: i32, says: &[&str]| {
        assert_eq!(output.code, code, "{output:?}");
        for part in says {
            assert!(output.stdout.contains(part), "{part:?} is not said: {output:?}");
        }
    };
    told(&doctor(source).await, 0, &["the replica set argon-devkit", "has no documents yet"]);
    place.source.collection("orders").insert_one(doc! {"_id": 1}).await.unwrap();
    told(&doctor(source).await, 0, &["has 1 collections, whose documents are copied when its capture starts"]);
    told(&doctor(&place.metadata).await, 1, &["FAILED   source database", &place.metadata, "metadata database"]);
    place.source.collection::<Document>("orders").drop().await.unwrap();
    place.start_capture().await;
    place.source.collection("orders").insert_one(doc! {"_id": 1}).await.unwrap();
    told(&doctor(source).await, 0, &["captured into shop/main (running)"]);
}

#[tokio::test]
async fn names_and_ids_that_are_not_there_are_named_with_those_that_are() {
    let place = Place::new("names").await;
    let none = place.argon(&["branch", "show", BRANCH]).await;
    assert_refused(&none, 1, &[&place.metadata, "capture start"]);
    place.start_capture().await;
    for args in [
        &["branch", "show", "shop/typo"][..],
        &["verify", "shop/typo"],
        &["restore", "shop/typo", "--to-db", "copy"],
        &["restore", "shop/typo@seq:3", "--to-db", "copy"],
        &["capture", "stop", "shop/typo"],
        &["capture", "pause", "shop/typo"],
        &["jobs", "list", "--branch", "shop/typo"],
        &["jobs", "cancel", "--branch", "shop/typo"],
        &["jobs", "submit", "--branch", "shop/typo"],
        &["queue", "pause", "--branch", "shop/typo"],
    ] {
        assert_refused(&place.argon(args).await, 1, &["shop/typo", BRANCH]);
    }
    for args in
        [&["jobs", "show", "nope"][..], &["jobs", "retry", "nope"], &["jobs", "cancel", "nope"], &["jobs", "discard", "nope", "--yes"]]
    {
        assert_refused(&place.argon(args).await, 1, &["no job nope"]);
    }
    // The same branch for another database, and the same database again.
    let other = place.argon(&["capture", "start", BRANCH, "--source-db", "another"]).await;
    assert_refused(&other, 1, &[BRANCH, place.source.name(), "another branch name"]);
    let again = place.json(&["capture", "start", BRANCH, "--source-db", place.source.name()]).await;
    assert_eq!(again["resumed"], true);
}
