//! The worker system from the command line: jobs by filter, pauses, captures on hold, workers, scale and status, with an engine and without.

use std::time::Duration;

use argon::devkit::ArgonProcess;
use argon::runtime::clock;
use bson::doc;
use serde_json::{Value, json};

use crate::place::{BRANCH, LIMIT, Place, assert_refused};

/// Polls until `look` has something.
async fn until<T>(what: &str, mut look: impl AsyncFnMut() -> Option<T>) -> T {
    let begun = clock::now();
    loop {
        if let Some(seen) = look().await {
            return seen;
        }
        assert!(begun.elapsed() < LIMIT, "waited {LIMIT:?} for this: {what}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

/// An engine with a socket of its own in the place's directory.
async fn engine(place: &Place, env: &[(&str, &str)]) -> (ArgonProcess, String) {
    let socket = place.dir.path().join("control.sock").display().to_string();
    let env = [env, &[("ARGON_CONTROL_SOCKET", &*socket)]].concat();
    (place.engine_with(&env).await, socket)
}

#[tokio::test]
async fn test_jobs_are_submitted_listed_retried_and_cancelled_by_filter() {
    let place = Place::new("filters").await;
    place.start_capture().await;
    let dead = place.json(&["jobs", "submit", "--count", "3", "--failure-rate", "1", "--retries", "0"]).await;
    assert_eq!((&dead["created"], dead["ids"].as_array().unwrap().len()), (&json!(3), 3));
    let waiting = place.json(&["jobs", "submit", "--count", "5", "--delay", "1h", "--priority", "high"]).await;
    let keyed = ["jobs", "submit", "--delay", "1h", "--unique-key", "nightly"];
    let first = place.json(&keyed).await;
    let again = place.json(&keyed).await;
    assert_eq!((&again["created"], &again["ids"]), (&json!(0), &first["ids"]), "one job with a key");

    let (engine, _socket) = engine(&place, &[]).await;
    let count = async |state: &str| {
        let page = place.json(&["jobs", "list", "--kind", "noop", "--state", state, "--limit", "1000"]).await;
        page["jobs"].as_array().unwrap().len()
    };
    until("three jobs are dead", async || (count("dead").await == 3).then_some(())).await;
    let show = place.ok(&["jobs", "show", dead["ids"][0].as_str().unwrap()]).await;
    assert!(show.contains("noop") && show.contains("dead") && show.contains("attempt 1"), "{show}");
    assert_eq!(place.json(&["jobs", "list", "--error", "no such text"]).await["jobs"], json!([]));

    let dry = place.json(&["jobs", "retry", "--state", "dead", "--kind", "noop", "--dry-run"]).await;
    assert_eq!((&dry["matched"], &dry["changed"], &dry["dry_run"]), (&json!(3), &json!(0), &json!(true)));
    assert_eq!(count("dead").await, 3, "a dry run only looks");
    let retried = place.json(&["jobs", "retry", "--all-dead"]).await;
    assert_eq!(retried["changed"], json!(3));
    until("they are dead again", async || (count("dead").await == 3).then_some(())).await;

    let one = waiting["ids"][0].as_str().unwrap();
    let cancelled = place.json(&["jobs", "cancel", one]).await;
    assert_eq!((&cancelled["outcome"], &cancelled["job"]["state"]), (&json!("cancelled"), &json!("cancelled")));
    let text = place.ok(&["jobs", "cancel", "--state", "scheduled", "--kind", "noop"]).await;
    assert!(text.starts_with("5 jobs are cancelled"), "{text}");
    assert_eq!((count("scheduled").await, count("cancelled").await), (0, 6));

    // A running one stops as soon as its worker looks.
    let long = place.json(&["jobs", "submit", "--duration", "10m"]).await;
    let long = long["ids"][0].as_str().unwrap().to_owned();
    until("it runs", async || (place.json(&["jobs", "show", &long]).await["state"] == json!("running")).then_some(())).await;
    let asked = place.json(&["jobs", "cancel", &long]).await;
    assert_eq!(asked["outcome"], json!("cancel_requested"));
    until("it is cancelled", async || (place.json(&["jobs", "show", &long]).await["state"] == json!("cancelled")).then_some(())).await;

    // What would lose history is not done in passing.
    place.source.collection("a").insert_one(doc! {"_id": 1}).await.unwrap();
    place.catch_up().await;
    let sync = place.json(&["jobs", "list", "--kind", "sync", "--limit", "1"]).await;
    let sync = sync["jobs"][0]["id"].as_str().unwrap();
    assert_refused(&place.argon(&["jobs", "cancel", sync]).await, 1, &[sync, "discard"]);
    assert_refused(&place.argon(&["jobs", "discard", "--state", "dead", "--yes"]).await, 2, &["--kind sync"]);
    let none = place.json(&["jobs", "discard", "--kind", "sync", "--dry-run"]).await;
    assert_eq!((&none["matched"], &none["discarded"]), (&json!(0), &json!(0)));
    place.stop(engine).await;
}

#[tokio::test]
async fn pauses_hold_jobs_and_captures_until_they_are_resumed() {
    let place = Place::new("pauses").await;
    place.start_capture().await;
    let paused = place.json(&["queue", "pause", "--kind", "noop"]).await;
    assert_eq!(paused["pauses"][0]["kind"], json!("noop"));
    place.ok(&["queue", "pause", "--branch", BRANCH]).await;
    let (engine, _socket) = engine(&place, &[]).await;
    let job = place.json(&["jobs", "submit"]).await["ids"][0].as_str().unwrap().to_owned();
    place.source.collection("a").insert_one(doc! {"_id": 1}).await.unwrap();
    // The capture goes on, the branch's jobs are put aside: its job waits although the engine has looked at it.
    until("the job of the branch is parked", async || {
        let jobs = place.json(&["jobs", "list", "--kind", "sync"]).await;
        (jobs["jobs"][0]["parked"] == json!(true)).then_some(())
    })
    .await;
    assert_eq!(place.json(&["jobs", "show", &job]).await["state"], json!("ready"), "its kind is paused");
    let shown = place.ok(&["queue", "show"]).await;
    assert!(shown.contains("kind noop") && shown.contains(BRANCH) && shown.contains("command line"), "{shown}");
    let status = place.ok(&["status"]).await;
    for said in ["jobs are paused: kind noop", "argon queue resume --kind noop", &format!("argon queue resume --branch {BRANCH}")] {
        assert!(status.contains(said), "{said}: {status}");
    }

    place.ok(&["queue", "resume", "--kind", "noop"]).await;
    place.ok(&["queue", "resume", "--branch", BRANCH]).await;
    until("the job is done", async || (place.json(&["jobs", "show", &job]).await["state"] == json!("done")).then_some(())).await;
    place.catch_up().await;
    assert_eq!(place.ok(&["queue", "show"]).await.trim(), "nothing is paused");

    let held = place.json(&["capture", "pause", BRANCH]).await;
    assert_eq!(held["state"], json!("paused"));
    assert_eq!(place.json(&["capture", "pause", BRANCH]).await["state"], json!("paused"), "asking again is harmless");
    until("nobody owns it", async || place.json(&["capture", "list"]).await["captures"][0]["engine"].is_null().then_some(())).await;
    let before = place.json(&["capture", "list"]).await["captures"][0]["queued_seq"].clone();
    place.source.collection("a").insert_one(doc! {"_id": 2}).await.unwrap();
    assert_eq!(place.json(&["capture", "list"]).await["captures"][0]["queued_seq"], before);
    let status = place.ok(&["status"]).await;
    assert!(status.contains(&format!("argon capture resume {BRANCH}")), "{status}");
    assert_eq!(place.json(&["capture", "resume", BRANCH]).await["state"], json!("running"));
    place.catch_up().await;
    place.ok(&["capture", "stop", BRANCH]).await;
    assert_refused(&place.argon(&["capture", "pause", BRANCH]).await, 1, &["stopped", "argon capture start"]);
    place.stop(engine).await;
}

#[tokio::test]
async fn workers_scale_and_status_ask_an_engine_by_socket_and_by_url() {
    let place = Place::new("scale").await;
    place.start_capture().await;
    let token = place.dir.path().join("tokens");
    std::fs::write(&token, "read:reading-token\noperate:operating-token\n").unwrap();
    let [port] = argon::devkit::ports::free().unwrap();
    let address = format!("127.0.0.1:{port}");
    let env = [("ARGON_HTTP_ADDR", address.as_str()), ("ARGON_API_TOKENS_FILE", token.to_str().unwrap())];
    let (engine, socket) = engine(&place, &env).await;
    let by_socket = ["--control-socket", socket.as_str()];

    let shown = place.json(&[&["workers"][..], &by_socket].concat()).await;
    assert_eq!((&shown["summary"]["total_workers"], &shown["engines"][0]["this"]), (&json!(5), &json!(true)), "{shown}");
    let scaled = place.json(&[&["scale", "8"][..], &by_socket].concat()).await;
    assert_eq!((&scaled["target_workers"], &scaled["message"]), (&json!(8), &json!("workers scaled successfully")));
    until("eight workers", async || {
        let shown = place.json(&[&["workers"][..], &by_socket].concat()).await;
        (shown["summary"]["total_workers"] == json!(8)).then_some(())
    })
    .await;
    let text = place.ok(&[&["workers"][..], &by_socket].concat()).await;
    assert!(text.contains("sync-worker-7") && text.contains("PINNED AT") && text.contains("8/8"), "{text}");

    // The same over the network, where a token says what one may do.
    let url = format!("http://{address}");
    let with = |name: &str| {
        let path = place.dir.path().join(name);
        let token = if name == "reader" { "reading-token" } else { "operating-token" };
        std::fs::write(&path, token).unwrap();
        path.display().to_string()
    };
    let (reader, operator) = (with("reader"), with("operator"));
    let by_url = |file: &str| vec!["--api".to_owned(), url.clone(), "--token-file".to_owned(), file.to_owned()];
    let args = |first: &[&str], rest: Vec<String>| first.iter().map(|s| (*s).to_owned()).chain(rest).collect::<Vec<_>>();
    let run = async |args: Vec<String>| place.argon(&args.iter().map(String::as_str).collect::<Vec<_>>()).await;
    assert_eq!(run(args(&["workers"], by_url(&reader))).await.code, 0);
    assert_refused(&run(args(&["scale", "3"], by_url(&reader))).await, 2, &["operate"]);
    assert_refused(&run(args(&["workers", "--api", &url], Vec::new())).await, 2, &["token"]);
    let scaled = run(args(&["scale", "3", "--for", "5m", "--all", "--json"], by_url(&operator))).await;
    let scaled: Value = serde_json::from_str(&scaled.stdout).unwrap();
    assert_eq!((&scaled["target_workers"], &scaled["scope"]), (&json!(3), &json!("all")));
    assert!(scaled["pin"]["until"].is_string(), "{scaled}");
    until("three workers", async || {
        let shown = place.json(&[&["workers"][..], &by_socket].concat()).await;
        (shown["summary"]["total_workers"] == json!(3)).then_some(())
    })
    .await;
    let released = place.json(&[&["scale", "--release", "--all"][..], &by_socket].concat()).await;
    assert!(released["pin"].is_null(), "{released}");
    let outside = place.argon(&["scale", "21"]).await;
    assert_eq!(outside.code, 2, "{outside:?}");
    assert!(outside.stderr.contains("1..=20"), "{outside:?}");

    place.source.collection("a").insert_one(doc! {"_id": 1}).await.unwrap();
    place.catch_up().await;
    let status = place.json(&[&["status"][..], &by_socket].concat()).await;
    assert_eq!((&status["problems"], &status["engines"][0]["alive"]), (&json!([]), &json!(true)), "{status}");
    assert!(status["scaler"]["reason"].is_string() && status["queue"]["completed_jobs"].as_u64().unwrap() >= 1, "{status}");
    let text = place.ok(&[&["status"][..], &by_socket].concat()).await;
    assert!(text.contains("nothing is wrong") && text.contains(BRANCH), "{text}");
    assert!(text.contains("scaler    "), "{text}");
    assert!(text.lines().all(|line| line.chars().count() <= 80), "a screen of 80 columns: {text}");
    assert_eq!(status["health"]["status"], json!("ok"), "{status}");
    // A token that is not one is said, and the rest is shown all the same.
    std::fs::write(place.dir.path().join("wrong"), "wrong-token").unwrap();
    let wrong = place.dir.path().join("wrong").display().to_string();
    let shown = place.ok(&["status", "--api", &url, "--token-file", &wrong]).await;
    assert!(shown.contains("token") && shown.contains(BRANCH), "{shown}");
    assert_refused(&run(args(&["workers"], by_url(&wrong))).await, 2, &["token", "read"]);
    place.stop(engine).await;

    // Without an engine the metadata still says most, and how to get one.
    let status = place.ok(&[&["status"][..], &by_socket].concat()).await;
    assert!(status.contains("no engine runs") && status.contains("argon run"), "{status}");
    assert_refused(&place.argon(&[&["workers"][..], &by_socket].concat()).await, 1, &["control.sock", "argon run"]);
}
