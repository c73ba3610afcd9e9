//! The rights that the documentation asks for are enough: users with exactly the roles of `docs/rights`, and nothing else.

use std::path::Path;
use std::time::Duration;

use argon::devkit::engine::run_to_end;
use argon::devkit::{ArgonProcess, Auth, Mongod, MongodOptions};
use bson::{Document, doc};
use mongodb::Database;

use crate::place::{LIMIT, binary};

const ROOT: (&str, &str) = ("root", "rootpw");

async fn server() -> Mongod {
    let auth = Some(Auth { user: ROOT.0.into(), password: ROOT.1.into() });
    Mongod::start(MongodOptions { auth, ..MongodOptions::default() }).await.unwrap()
}

/// Makes the role of a file and a user that has all these roles; the user's URI.
async fn user(server: &Mongod, admin: &Database, name: &str, roles: &[&str]) -> String {
    let mut names = Vec::new();
    for role in roles {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/rights").join(format!("{role}-role.json"));
        let command: Document = serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap();
        names.push(command.get_str("createRole").unwrap().to_owned());
        if let Err(error) = admin.run_command(command).await {
            assert!(error.to_string().contains("already exists"), "{error}");
        }
    }
    admin.run_command(doc! { "createUser": name, "pwd": "secret", "roles": names }).await.unwrap();
    server.uri().replace(&format!("{}:{}@", ROOT.0, ROOT.1), &format!("{name}:secret@"))
}

#[tokio::test]
async fn the_demo_passes_with_exactly_its_role() {
    let server = server().await;
    let admin = server.client().await.unwrap().database("admin");
    let uri = user(&server, &admin, "demo", &["demo"]).await;
    let output = run_to_end(binary(), ["demo", "--changes", "500", "--mongodb-uri", &uri], &[], LIMIT).await.unwrap();
    assert_eq!(output.code, 0, "{output:?}");
    assert!(output.stdout.contains("verified: identical"), "{output:?}");
}

#[tokio::test]
async fn capture_restore_checkout_and_drill_pass_with_exactly_their_roles() {
    let server = server().await;
    let client = server.client().await.unwrap();
    let admin = client.database("admin");
    let engine_uri = user(&server, &admin, "engine", &["source", "metadata", "checkout", "drill"]).await;
    let capture_uri = user(&server, &admin, "capture", &["source", "metadata"]).await;
    let restore_uri = user(&server, &admin, "restore", &["metadata", "restore"]).await;
    let dir = tempfile::tempdir().unwrap();
    let store = format!("file://{}/store", dir.path().display());
    let env = |uri: &str| {
        let all = [("ARGON_MONGODB_URI", uri), ("ARGON_STORE_URL", &store), ("WORKER_BATCH_TIMEOUT", "100ms")];
        all.map(|(name, value)| (name.to_owned(), value.to_owned())).to_vec()
    };
    let ok = async |uri: &str, args: &[&str]| {
        let output = run_to_end(binary(), args, &env(uri), LIMIT).await.unwrap();
        assert_eq!(output.code, 0, "argon {}: {output:?}", args.join(" "));
        output.stdout
    };
    let orders = client.database("shop").collection::<Document>("orders");
    orders.insert_many((0..50).map(|i| doc! { "_id": i, "at": bson::DateTime::now() })).await.unwrap();
    client
        .database("shop")
        .run_command(doc! { "createIndexes": "orders", "indexes": [{ "key": { "at": 1 }, "name": "at", "expireAfterSeconds": 86_400 }] })
        .await
        .unwrap();

    ok(&capture_uri, &["doctor", "--source-db", "shop"]).await;
    ok(&capture_uri, &["capture", "start", "shop/main", "--source-db", "shop"]).await;
    let mut engine = ArgonProcess::start(
        binary(),
        ["run"],
        &[
            env(&engine_uri),
            vec![("ARGON_CONTROL_SOCKET".into(), format!("{}/s", dir.path().display())), ("ARGON_HTTP_ADDR".into(), "127.0.0.1:0".into())],
        ]
        .concat(),
    )
    .unwrap();
    engine.wait_line("capture started here", Duration::from_secs(60)).await.unwrap();
    orders.insert_many((50..80).map(|i| doc! { "_id": i })).await.unwrap();
    let proven = async |branch: &str| {
        for _ in 0..600 {
            let output = run_to_end(binary(), ["verify", branch, "--against-db", "shop"], &env(&capture_uri), LIMIT).await.unwrap();
            if output.code == 0 {
                return;
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        panic!("{branch} is not what its source is: {}", engine.log_tail(4_000));
    };
    proven("shop/main").await;
    ok(&restore_uri, &["restore", "shop/main", "--to-db", "shop_copy"]).await;
    assert_eq!(client.database("shop_copy").collection::<Document>("orders").count_documents(doc! {}).await.unwrap(), 80);
    ok(&engine_uri, &["drill", "shop/main"]).await;
    ok(&engine_uri, &["branch", "create", "shop/try", "--from", "shop/main"]).await;
    ok(&engine_uri, &["branch", "checkout", "shop/try", "--to-db", "shop_try"]).await;
    assert_eq!(client.database("shop_try").collection::<Document>("orders").count_documents(doc! {}).await.unwrap(), 80);
    let log = engine.log_tail(100_000);
    assert!(!log.contains("not authorized") && !log.contains("Unauthorized"), "{log}");
    assert_eq!(engine.terminate(LIMIT).await.unwrap().code, 0);
}
