//! The rights that the documentation asks for are enough, on MongoDB and on S3: users and identities with exactly what `docs/rights` gives them. And
//! nothing that the programs say shows a secret, at the finest level of the log.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

use argon::devkit::engine::run_to_end;
use argon::devkit::{ArgonProcess, Auth, Mongod, MongodOptions, Weed, WeedOptions};
use bson::{Document, doc};
use mongodb::Database;
use serde_json::Value;
use tokio::sync::OnceCell;

use crate::place::{LIMIT, binary};

const ROOT: (&str, &str) = ("root", "rootpw");
/// Is in every secret that is planted here.
const PLANTED: &str = "S3CRET";

fn documented(file: &str) -> String {
    std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/rights").join(file)).unwrap()
}

/// SeaweedFS with the documented identities, whose keys are ours.
async fn weed() -> &'static Weed {
    static WEED: OnceCell<Weed> = OnceCell::const_new();
    let start = || async {
        let mut config: Value = serde_json::from_str(&documented("seaweedfs-identity.json").replace("SECRET-KEY", PLANTED)).unwrap();
        let identities = config["identities"].as_array_mut().unwrap().drain(..).collect();
        let weed = Weed::start_with(WeedOptions { identities, ..WeedOptions::default() }).await.unwrap();
        weed.create_bucket("argon").await.unwrap();
        weed
    };
    WEED.get_or_init(start).await
}

/// What a process needs to use the store under `prefix` as one of them: `ARGON` or `READER`.
async fn storage(who: &str, prefix: &str) -> Vec<(String, String)> {
    let keys = [("AWS_ACCESS_KEY_ID", format!("{who}-ACCESS-KEY")), ("AWS_SECRET_ACCESS_KEY", format!("{who}-{PLANTED}"))];
    let keys = keys.map(|(name, value)| (name.to_owned(), value));
    weed().await.env("argon", prefix).into_iter().chain(keys).collect()
}

/// What the policies for S3 allow is what the identities for SeaweedFS do, which the tests here use.
#[test]
fn the_policies_for_s3_and_the_identities_for_seaweedfs_allow_the_same() {
    let identities: Value = serde_json::from_str(&documented("seaweedfs-identity.json")).unwrap();
    for (name, policy) in [("argon", "s3-policy.json"), ("argon-reader", "s3-reader-policy.json")] {
        let policy: Value = serde_json::from_str(&documented(policy)).unwrap();
        let mut allowed = std::collections::BTreeSet::new();
        for statement in policy["Statement"].as_array().unwrap() {
            assert_eq!(statement["Effect"], "Allow");
            let (actions, resource) =
                (&statement["Action"], statement["Resource"].as_str().unwrap().strip_prefix("arn:aws:s3:::").unwrap());
            let actions: Vec<&str> = match actions.as_array() {
                Some(many) => many.iter().filter_map(Value::as_str).collect(),
                None => vec![actions.as_str().unwrap()],
            };
            for action in actions {
                let (word, place) = match action {
                    "s3:GetObject" => ("Read", resource.to_owned()),
                    "s3:PutObject" | "s3:DeleteObject" => ("Write", resource.to_owned()),
                    "s3:ListBucket" => {
                        ("List", format!("{resource}/{}", statement["Condition"]["StringLike"]["s3:prefix"].as_str().unwrap()))
                    }
                    other => panic!("{other} has no counterpart"),
                };
                allowed.insert(format!("{word}:{place}"));
            }
        }
        let identity = identities["identities"].as_array().unwrap().iter().find(|identity| identity["name"] == name).unwrap();
        let wanted: std::collections::BTreeSet<String> =
            identity["actions"].as_array().unwrap().iter().map(|action| action.as_str().unwrap().to_owned()).collect();
        assert_eq!(allowed, wanted, "{name}");
    }
}

async fn server() -> Mongod {
    let auth = Some(Auth { user: ROOT.0.into(), password: ROOT.1.into() });
    Mongod::start(MongodOptions { auth, ..MongodOptions::default() }).await.unwrap()
}

/// Makes the role of a file and a user that has all these roles; the user's URI.
async fn user(server: &Mongod, admin: &Database, name: &str, roles: &[&str]) -> String {
    let mut names = Vec::new();
    for role in roles {
        let command: Document = serde_json::from_str(&documented(&format!("{role}-role.json"))).unwrap();
        names.push(command.get_str("createRole").unwrap().to_owned());
        if let Err(error) = admin.run_command(command).await {
            assert!(error.to_string().contains("already exists"), "{error}");
        }
    }
    admin.run_command(doc! { "createUser": name, "pwd": format!("pw{PLANTED}"), "roles": names }).await.unwrap();
    server.uri().replace(&format!("{}:{}@", ROOT.0, ROOT.1), &format!("{name}:pw{PLANTED}@"))
}

#[tokio::test]
async fn the_demo_passes_with_exactly_its_role_and_identity_and_nowhere_else() {
    let server = server().await;
    let admin = server.client().await.unwrap().database("admin");
    let uri = user(&server, &admin, "demo", &["demo"]).await;
    let demo = async |who: &str, place: &str| {
        let args = ["demo", "--changes", "500", "--mongodb-uri", &uri, "--keep", place, "--log", "trace"];
        run_to_end(binary(), args, &storage(who, "history").await, LIMIT).await.unwrap()
    };
    let output = demo("ARGON", "s3://argon/history/demo").await;
    assert_eq!(output.code, 0, "{output:?}");
    assert!(output.stdout.contains("verified: identical") && !output.stderr.contains(PLANTED), "{output:?}");
    let segments = weed().await.client().list_objects_v2().bucket("argon").prefix("history/demo/projects/demo/").send().await.unwrap();
    assert!(segments.key_count().unwrap_or_default() > 2, "it is there that the demo stores: {segments:?}");
    // The rights are no wider than they are documented.
    for (who, place) in [("ARGON", "s3://argon/elsewhere"), ("READER", "s3://argon/history/demo")] {
        let output = demo(who, place).await;
        assert_eq!(output.code, 1, "{who} {place}: {output:?}");
        assert!(output.stderr.contains("s3:PutObject") && !output.stderr.contains(PLANTED), "{output:?}");
    }
}

#[tokio::test]
async fn capture_restore_checkout_and_drill_pass_with_exactly_their_rights_and_show_no_secret() {
    let server = server().await;
    let client = server.client().await.unwrap();
    let admin = client.database("admin");
    let engine_uri = user(&server, &admin, "engine", &["source", "metadata", "checkout", "drill"]).await;
    let capture_uri = user(&server, &admin, "capture", &["source", "metadata"]).await;
    let restore_uri = user(&server, &admin, "restore", &["metadata", "restore"]).await;
    let dir = tempfile::tempdir().unwrap();
    let (writes, reads) = (storage("ARGON", "history").await, storage("READER", "history").await);
    let env = |uri: &str, storage: &[(String, String)]| {
        let all = [("ARGON_MONGODB_URI", uri), ("WORKER_BATCH_TIMEOUT", "100ms"), ("ARGON_LOG", "trace"), ("ARGON_API_TOKEN", TOKEN)];
        all.map(|(name, value)| (name.to_owned(), value.to_owned())).into_iter().chain(storage.iter().cloned()).collect::<Vec<_>>()
    };
    let said = parking_lot::Mutex::new(String::new());
    let command = async |uri: &str, storage: &[(String, String)], args: &[&str]| {
        let output = run_to_end(binary(), args, &env(uri, storage), LIMIT).await.unwrap();
        *said.lock() += &format!("{}{}", output.stdout, output.stderr);
        output
    };
    let ok = async |uri: &str, storage: &[(String, String)], args: &[&str]| {
        let output = command(uri, storage, args).await;
        assert_eq!(output.code, 0, "argon {}: {}{}", args.join(" "), output.stdout, tail(&output.stderr));
    };
    let orders = client.database("shop").collection::<Document>("orders");
    orders.insert_many((0..50).map(|i| doc! { "_id": i, "at": bson::DateTime::now() })).await.unwrap();
    client
        .database("shop")
        .run_command(doc! { "createIndexes": "orders", "indexes": [{ "key": { "at": 1 }, "name": "at", "expireAfterSeconds": 86_400 }] })
        .await
        .unwrap();

    ok(&capture_uri, &writes, &["doctor", "--source-db", "shop"]).await;
    ok(&capture_uri, &writes, &["capture", "start", "shop/main", "--source-db", "shop"]).await;
    let socket = format!("{}/s", dir.path().display());
    let own = [("ARGON_CONTROL_SOCKET", socket.as_str()), ("ARGON_HTTP_ADDR", "127.0.0.1:0"), ("ARGON_LOG_FORMAT", "json")];
    let own = own.map(|(name, value)| (name.to_owned(), value.to_owned()));
    let mut engine = ArgonProcess::start(binary(), ["run"], &[env(&engine_uri, &writes), own.to_vec()].concat()).unwrap();
    engine.wait_line("capture started here", Duration::from_secs(60)).await.unwrap();
    let log: PathBuf = engine.dir().join("stderr");
    orders.insert_many((50..80).map(|i| doc! { "_id": i })).await.unwrap();
    let proven = async |branch: &str| {
        for _ in 0..600 {
            let output = command(&capture_uri, &reads, &["verify", branch, "--against-db", "shop"]).await;
            if output.code == 0 {
                return;
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        panic!("{branch} is not what its source is: {}", engine.log_tail(4_000));
    };
    proven("shop/main").await;
    ok(&restore_uri, &reads, &["restore", "shop/main", "--to-db", "shop_copy"]).await;
    assert_eq!(client.database("shop_copy").collection::<Document>("orders").count_documents(doc! {}).await.unwrap(), 80);
    ok(&engine_uri, &writes, &["drill", "shop/main"]).await;
    ok(&engine_uri, &writes, &["branch", "create", "shop/try", "--from", "shop/main"]).await;
    ok(&engine_uri, &writes, &["branch", "checkout", "shop/try", "--to-db", "shop_try"]).await;
    assert_eq!(client.database("shop_try").collection::<Document>("orders").count_documents(doc! {}).await.unwrap(), 80);
    let address = listening(&std::fs::read_to_string(&log).unwrap());
    for (header, status) in [("Authorization: Bearer", 200), ("X-Other:", 401)] {
        assert_eq!(ask(&address, "", &format!("{header} {TOKEN}")), status, "{header}");
        assert_eq!(ask(&address, "", &format!("{header} otherS3CRET")), 401, "{header}");
        assert!(ask(&address, "?token=queryS3CRET", &format!("{header} {TOKEN}")) >= 400, "{header}");
    }
    assert_eq!(engine.terminate(LIMIT).await.unwrap().code, 0);
    let (log, said) = (engine.stderr() + &engine.stdout(), said.into_inner());
    let refused = log.lines().chain(said.lines()).find(|line| line.contains("not authorized") || line.contains("Unauthorized"));
    assert_eq!(refused, None);
    assert!(log.contains(r#""level":"TRACE""#) && said.contains("TRACE"), "everything is logged");
    let shown: Vec<&str> = log.lines().chain(said.lines()).filter(|line| line.contains(PLANTED)).collect();
    assert_eq!(shown, [""; 0], "no line shows a secret");
}

const TOKEN: &str = "tokenS3CRET-that-is-long-enough-for-anybody";

fn tail(text: &str) -> &str {
    &text[text.ceil_char_boundary(text.len().saturating_sub(4_000))..]
}

/// Where the engine listens, as its log says.
fn listening(log: &str) -> String {
    let line = log.lines().find(|line| line.contains("API listens")).unwrap_or_else(|| panic!("{}", tail(log)));
    let line: Value = serde_json::from_str(line).unwrap();
    line["url"].as_str().unwrap().strip_prefix("http://").unwrap().to_owned()
}

/// The status of the answer.
fn ask(address: &str, query: &str, header: &str) -> u16 {
    let mut stream = TcpStream::connect(address).unwrap();
    write!(stream, "GET /api/v1/workers/stats{query} HTTP/1.1\r\nHost: x\r\n{header}\r\nConnection: close\r\n\r\n").unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    answer.strip_prefix("HTTP/1.1 ").unwrap_or_else(|| panic!("{answer}"))[..3].parse().unwrap()
}
