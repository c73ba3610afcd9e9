//! Who may do what: tokens and scopes, open listeners, names of servers.

use std::time::Duration;

use argon::config::{HttpSettings, Secret};
use argon::fault::Kind;
use argon::http::{self, Scope, table};
use serde_json::json;

use crate::schema;
use crate::wire::{self, Reply, send};
use crate::world::{World, settings, until};

const TOKENS: [(&str, Scope); 3] =
    [("reader-0123456789", Scope::Read), ("operator-0123456789", Scope::Operate), ("admin-0123456789", Scope::Admin)];

async fn with_tokens() -> World {
    World::with(|settings| {
        let file = settings.control_socket.as_ref().unwrap().with_file_name("tokens");
        std::fs::write(&file, format!("read:{}\noperate:{}\n", TOKENS[0].0, TOKENS[1].0)).unwrap();
        settings.api_tokens_file = Some(file);
        settings.api_token = Some(Secret::from(TOKENS[2].0));
    })
    .await
}

/// Every route against every kind of caller: exactly those whose scope reaches get past.
#[tokio::test(flavor = "multi_thread")]
async fn every_route_asks_for_its_scope_and_for_no_more() {
    let world = with_tokens().await;
    let (mut open, mut asked) = (0, 0);
    for route in table() {
        let path = route.path.replace("{id}", "none");
        if path == "/api/v1/events" {
            continue; // it has no end; below
        }
        let method = route.method.as_str();
        let body = (method == "POST").then(|| json!({}));
        let callers = [(None, Scope::Public), (Some("wrong-token-0123456789"), Scope::Public)];
        for (token, scope) in callers.into_iter().chain(TOKENS.map(|(token, scope)| (Some(token), scope))) {
            let reply = send(world.addr(), method, &path, token, body.as_ref()).await;
            schema::check(method, route.path, &reply);
            let expected = match () {
                () if scope >= route.scope => None,
                () if scope == Scope::Public => Some(401),
                () => Some(403),
            };
            match expected {
                Some(status) => {
                    assert_eq!(reply.status, status, "{route:?} by {token:?}");
                    assert_eq!(reply.header("www-authenticate").is_some(), status == 401, "{route:?} by {token:?}");
                    asked += 1;
                }
                None => {
                    assert!(![401, 403].contains(&reply.status), "{route:?} by {token:?}: {}", reply.text());
                    open += 1;
                }
            }
        }
    }
    assert!(open > 40 && asked > 40, "{open} {asked}");
    assert_eq!(send(world.addr(), "GET", "/api/v1/events", None, None).await.status, 401);
}

#[tokio::test(flavor = "multi_thread")]
async fn discarding_history_takes_admin() {
    let world = with_tokens().await;
    let path = format!("/api/v1/jobs/{}?confirm=discard", world.dead);
    let reply = send(world.addr(), "DELETE", &path, Some(TOKENS[1].0), None).await;
    assert_eq!(reply.status, 403);
    assert!(reply.text().contains("admin"), "{}", reply.text());
    let reply = send(world.addr(), "DELETE", &path, Some(TOKENS[2].0), None).await;
    assert_eq!((reply.status, &reply.json()["outcome"]), (200, &json!("discarded")));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_token_is_one_header_of_one_scheme() {
    let world = with_tokens().await;
    let admin = TOKENS[2].0;
    let ask = async |headers: &str| {
        let bytes = format!("GET /api/v1/jobs HTTP/1.1\r\nHost: x\r\nConnection: close\r\n{headers}\r\n");
        wire::raw(world.addr(), bytes.as_bytes()).await.unwrap().status
    };
    assert_eq!(ask(&format!("Authorization: Bearer {admin}\r\n")).await, 200);
    assert_eq!(ask(&format!("authorization: bearer   {admin}  \r\n")).await, 200);
    for wrong in [
        format!("Authorization: {admin}\r\n"),
        format!("Authorization: Basic {admin}\r\n"),
        format!("Authorization: Bearer {admin}x\r\n"),
        format!("Authorization: Bearer {}\r\n", &admin[..admin.len() - 1]),
        format!("Authorization: Bearer {admin} {admin}\r\n"),
        format!("Authorization: Bearer {admin}\r\nAuthorization: Bearer {admin}\r\n"),
        "Authorization: Bearer\r\n".into(),
        "Authorization:\r\n".into(),
        "Authorization: Bearer \u{e9}\r\n".into(),
    ] {
        assert_eq!(ask(&wrong).await, 401, "{wrong:?}");
    }
    let query = send(world.addr(), "GET", &format!("/api/v1/workers/stats?token={admin}"), None, None).await;
    assert_eq!(query.status, 401, "a token in a URL ends up in logs: it is none");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_changed_file_of_tokens_counts_while_the_engine_runs() {
    let world = with_tokens().await;
    let file = world.dir.path().join("tokens");
    std::fs::write(&file, "read:a-new-token-for-everybody\n").unwrap();
    let status = async |token: &str| send(world.addr(), "GET", "/api/v1/jobs", Some(token), None).await.status;
    until("the new token", Duration::from_secs(20), async || status("a-new-token-for-everybody").await == 200).await;
    assert_eq!(status(TOKENS[0].0).await, 401, "the old one is gone");
    assert_eq!(status(TOKENS[2].0).await, 200, "that of the environment stays");
    std::fs::write(&file, "no colon").unwrap();
    tokio::time::sleep(Duration::from_secs(3)).await;
    assert_eq!(status("a-new-token-for-everybody").await, 200, "a broken file changes nothing");
}

/// Every way to listen where others can reach it, with and without a token.
#[tokio::test(flavor = "multi_thread")]
async fn an_open_listener_on_an_address_that_others_reach_is_refused_with_the_way_out() {
    let world = World::new().await;
    let dir = tempfile::tempdir().unwrap();
    let of = |addr: &str| HttpSettings {
        addr: Some(addr.to_owned()),
        metrics_addr: None,
        control_socket: Some(dir.path().join(format!("{}.sock", argon::runtime::random::id()))),
        ..settings(&dir)
    };
    for addr in ["0.0.0.0:0", "[::]:0"] {
        let error = http::start(&world.api, &of(addr)).await.unwrap_err();
        assert_eq!(error.kind, Kind::Config, "exit code 2: {error}");
        for word in ["ARGON_HTTP_ADDR", "ARGON_API_TOKEN", "ARGON_ALLOW_UNAUTHENTICATED=true", "127.0.0.1"] {
            assert!(error.what.contains(word), "{word} is missing in: {error}");
        }
        http::start(&world.api, &HttpSettings { allow_unauthenticated: true, ..of(addr) }).await.unwrap();
        http::start(&world.api, &HttpSettings { api_token: Some(Secret::from("0123456789abcdef")), ..of(addr) }).await.unwrap();
    }
    http::start(&world.api, &of("localhost:0")).await.unwrap();
    // The metrics' own address may listen anywhere.
    http::start(&world.api, &HttpSettings { metrics_addr: Some("0.0.0.0:0".into()), ..of("127.0.0.1:0") }).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn an_address_that_is_taken_or_is_none_is_said() {
    let world = World::new().await;
    let dir = tempfile::tempdir().unwrap();
    let taken = world.addr().to_string();
    for (addr, said) in [
        (taken.as_str(), "is in use"),
        ("127.0.0.1", "host:port"),
        ("127.0.0.1:99999", "host:port"),
        ("192.0.2.1:0", "not an address of this machine"),
    ] {
        let error = http::start(&world.api, &HttpSettings { addr: Some(addr.to_owned()), ..settings(&dir) }).await.unwrap_err();
        assert!(error.what.contains(said) && error.what.contains(&format!("ARGON_HTTP_ADDR={addr}")), "{error}");
    }
    let error = http::start(&world.api, &HttpSettings { metrics_addr: Some(taken), ..settings(&dir) }).await.unwrap_err();
    assert!(error.what.contains("ARGON_METRICS_ADDR") && error.what.contains("is in use"), "{error}");
    let off = http::start(&world.api, &HttpSettings { addr: Some("off".into()), ..settings(&dir) }).await.unwrap();
    assert!(off.addr.is_none() && off.control().is_some());
}

/// DNS rebinding: a page whose name leads to 127.0.0.1 talks to this listener from the operator's own browser.
#[tokio::test(flavor = "multi_thread")]
async fn an_open_listener_answers_to_no_foreign_name_and_no_foreign_page() {
    let world = World::new().await;
    let ask = async |method: &str, headers: &str| -> Reply {
        let bytes = format!("{method} /api/v1/workers/scale HTTP/1.1\r\nConnection: close\r\n{headers}\r\n");
        wire::raw(world.addr(), bytes.as_bytes()).await.unwrap()
    };
    let port = world.addr().port();
    assert_eq!(ask("DELETE", &format!("Host: localhost:{port}\r\n")).await.status, 200);
    assert_eq!(ask("DELETE", &format!("Host: 127.0.0.1:{port}\r\nOrigin: http://127.0.0.1:{port}\r\n")).await.status, 200);
    for wrong in [
        "Host: evil.example\r\n".to_owned(),
        format!("Host: evil.example:{port}\r\n"),
        format!("Host: localhost:{port}\r\nOrigin: http://evil.example\r\n"),
        format!("Host: localhost:{port}\r\nOrigin: null\r\n"),
    ] {
        let reply = ask("DELETE", &wrong).await;
        assert_eq!((reply.status, reply.code().as_str()), (403, "forbidden"), "{wrong:?}");
    }
    // What a page may send without asking first is no JSON.
    let body = r#"{"target_workers":3}"#;
    let simple = format!("Host: localhost:{port}\r\nContent-Type: text/plain\r\nContent-Length: {}\r\n\r\n{body}", body.len());
    let bytes = format!("POST /api/v1/workers/scale HTTP/1.1\r\nConnection: close\r\n{simple}");
    assert_eq!(wire::raw(world.addr(), bytes.as_bytes()).await.unwrap().status, 415);
    // With a token nothing of this matters: no page has one.
    let world = with_tokens().await;
    let bytes =
        format!("GET /api/v1/jobs HTTP/1.1\r\nHost: argon.example\r\nConnection: close\r\nAuthorization: Bearer {}\r\n\r\n", TOKENS[0].0);
    assert_eq!(wire::raw(world.addr(), bytes.as_bytes()).await.unwrap().status, 200);
}
