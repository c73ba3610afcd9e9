//! What every route answers: the documented fields to the letter where the original description gives them, and the OpenAPI document everywhere.

use std::collections::BTreeSet;
use std::time::Duration;

use argon::http::{Check, table};
use argon::ledger::*;
use argon::runtime::random;
use serde_json::{Value, json};

use crate::schema;
use crate::wire::{self, Reply};
use crate::world::{BRANCH, World, until};

/// The fields of `expected` are in `real` with these values; more may be there.
fn assert_has(real: &Value, expected: &Value) {
    match (real, expected) {
        (Value::Object(real), Value::Object(expected)) => {
            for (name, value) in expected {
                assert_has(real.get(name).unwrap_or_else(|| panic!("{name} is missing in {real:?}")), value);
            }
        }
        (Value::Array(real), Value::Array(expected)) => {
            assert!(real.len() >= expected.len(), "{real:?}");
            real.iter().zip(expected).for_each(|(r, e)| assert_has(r, e));
        }
        _ => assert_eq!(real, expected),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn workers_stats_answers_the_documented_fields() {
    let world = World::new().await;
    let reply = world.get("/api/v1/workers/stats").await;
    schema::check("GET", "/api/v1/workers/stats", &reply);
    let stats = reply.json();
    assert_has(
        &stats,
        &json!({
            "workers": [{
                "worker_id": "sync-worker-0", "jobs_processed": 150, "jobs_succeeded": 148, "jobs_failed": 2, "avg_process_time": 45.2,
                "last_active_at": "2025-07-18T03:00:00Z", "is_active": true,
            }],
            "summary": {
                "total_workers": 6, "active_workers": 6, "total_processed": 750, "total_succeeded": 744, "total_failed": 6, "success_rate": 99.2,
            },
        }),
    );
    assert_has(&stats, &json!({ "partial": false, "slots": [{ "worker_id": "cleanup-worker-0", "kind": "cleanup" }] }));
    let rows = stats["workers"].as_array().unwrap();
    assert_eq!(rows.iter().filter(|w| w["engine"] == "engine-2").count(), 1, "workers of all engines: {stats}");
    assert_eq!(rows[1]["busy"], true);
    let engines: Vec<_> = stats["engines"].as_array().unwrap().iter().map(|e| (&e["engine"], &e["this"], &e["alive"])).collect();
    assert_eq!(engines, [(&json!("engine-1"), &json!(true), &json!(true)), (&json!("engine-2"), &json!(false), &json!(true))]);
}

#[tokio::test(flavor = "multi_thread")]
async fn workers_queue_answers_the_documented_fields_and_they_add_up() {
    let world = World::new().await;
    let noops: Vec<_> = (0..15).map(|_| NewJob::new(random::ordered_id(), JobKind::Noop)).collect();
    world.ledger.enqueue(&noops).await.unwrap();
    let later = NewJob { delay: Duration::from_secs(3_600), ..NewJob::new(random::ordered_id(), JobKind::Cleanup) };
    world.ledger.enqueue(&[later]).await.unwrap();
    world.ledger.claim(&ClaimRequest::new("engine-1", &[JobKind::Noop], 5).start(5)).await.unwrap();
    let reply = world.get("/api/v1/workers/queue").await;
    schema::check("GET", "/api/v1/workers/queue", &reply);
    let queue = reply.json();
    assert_has(
        &queue,
        &json!({
            "total_jobs": 18, "pending_jobs": 11, "running_jobs": 5, "completed_jobs": 1, "failed_jobs": 1,
            "jobs_by_type": { "sync": 2, "noop": 15, "cleanup": 1 }, "avg_wait_time": 1.2,
        }),
    );
    assert_has(&queue, &json!({ "scheduled_jobs": 1, "ready_jobs": 10, "cancelled_jobs": 0, "at_least": false }));
}

#[tokio::test(flavor = "multi_thread")]
async fn scale_pins_and_releases_and_nonsense_changes_nothing() {
    let world = World::new().await;
    let reply = world.post("/api/v1/workers/scale", &json!({ "target_workers": 8 })).await;
    schema::check("POST", "/api/v1/workers/scale", &reply);
    assert_has(&reply.json(), &json!({ "message": "workers scaled successfully", "target_workers": 8, "current_workers": 8 }));
    assert_has(&reply.json(), &json!({ "scope": "engine", "engine": "engine-1", "pin": { "target": 8, "until": null } }));
    for body in [
        json!({ "target_workers": 0 }),
        json!({ "target_workers": 21 }),
        json!({ "target_workers": -1 }),
        json!({ "target_workers": 8.5 }),
        json!({ "target_workers": "8" }),
        json!({ "target_workers": null }),
        json!({ "target_workers": 99_999_999_999_999_999_999_u128 as f64 }),
        json!({ "target_workers": 8, "minutes": 0 }),
        json!({ "target_workers": 8, "release": true }),
        json!({ "target_worker": 8 }),
        json!({}),
        json!(8),
    ] {
        let reply = world.post("/api/v1/workers/scale", &body).await;
        assert_eq!(reply.status, 400, "{body}: {}", reply.text());
        schema::check("POST", "/api/v1/workers/scale", &reply);
    }
    let pool = &world.get("/api/v1/scaler").await.json()["pool"];
    assert_has(pool, &json!({ "target": 8, "pin": { "target": 8 } }));
    assert_eq!(world.ledger.controls().await.unwrap().scale, None, "one engine's number is not every engine's");

    world.engine.tell(|status, _| status.pool.max = 10);
    assert_eq!(world.post("/api/v1/workers/scale", &json!({ "target_workers": 11 })).await.status, 400, "the engine's own bounds count");

    let body = json!({ "target_workers": 6, "minutes": 30 });
    let reply = world.post("/api/v1/workers/scale?scope=all", &body).await;
    assert_has(&reply.json(), &json!({ "target_workers": 6, "scope": "all" }));
    assert!(reply.json()["pin"]["until"].is_string());
    let wish = world.ledger.controls().await.unwrap().scale.unwrap();
    assert_eq!((wish.target, wish.by.as_str()), (6, "anonymous"));
    assert!(wish.left.unwrap() <= Duration::from_secs(1_800));

    let reply = world.delete("/api/v1/workers/scale?scope=all").await;
    schema::check("DELETE", "/api/v1/workers/scale", &reply);
    assert_has(&reply.json(), &json!({ "message": "workers released successfully", "pin": null }));
    assert_eq!(world.ledger.controls().await.unwrap().scale, None);
    let reply = world.post("/api/v1/workers/scale", &json!({ "release": true })).await;
    assert_eq!((reply.status, &reply.json()["pin"]), (200, &Value::Null));
    assert_eq!(world.delete("/api/v1/workers/scale?scope=everywhere").await.status, 400);
}

#[tokio::test(flavor = "multi_thread")]
async fn health_answers_the_documented_fields_and_its_status_follows_the_worst_check() {
    let world = World::new().await;
    let reply = world.get("/health").await;
    schema::check("GET", "/health", &reply);
    let health = reply.json();
    let names: Vec<&str> = health["checks"].as_object().unwrap().keys().map(String::as_str).collect();
    assert_eq!(names.into_iter().collect::<BTreeSet<_>>(), BTreeSet::from(["mongodb", "store", "captures", "workers", "runtime"]));
    let ok = json!({ "status": "ok", "reason": null });
    assert_eq!(
        health,
        json!({
            "status": "ok", "version": env!("CARGO_PKG_VERSION"), "uptime_seconds": health["uptime_seconds"],
            "checks": { "mongodb": ok, "store": ok, "captures": ok, "workers": ok, "runtime": ok },
        })
    );
    assert!(health["uptime_seconds"].as_u64().unwrap() < 60);
    assert_eq!(world.get("/ready").await.json(), json!({ "ready": true, "reason": null }));

    world.engine.tell(|_, checks| checks.workers = Check::degraded("one hangs"));
    let reply = world.get("/health").await;
    assert_eq!((reply.status, &reply.json()["status"]), (200, &json!("degraded")));
    assert_eq!(reply.json()["checks"]["workers"], json!({ "status": "degraded", "reason": "one hangs" }));
    world.engine.tell(|_, checks| checks.workers = Check::unhealthy("a unit does not come back"));
    let reply = world.get("/health").await;
    schema::check("GET", "/health", &reply);
    assert_eq!((reply.status, &reply.json()["status"]), (503, &json!("unhealthy")));
    assert_eq!(world.get("/ready").await.status, 503);

    world.engine.tell(|_, checks| checks.workers = Check::ok());
    world.engine.drain();
    let reply = world.get("/ready").await;
    schema::check("GET", "/ready", &reply);
    assert_eq!((reply.status, reply.json()), (503, json!({ "ready": false, "reason": "stopping" })));
    assert_eq!(world.get("/health").await.status, 200, "it is well while it stops");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_capture_that_has_failed_is_seen_by_health() {
    let world = World::new().await;
    world.ledger.set_capture_state(&world.capture, CaptureState::Failed, Some("oplog gone")).await.unwrap();
    until("the check of captures", Duration::from_secs(20), async || {
        let health = world.get("/health").await.json();
        health["status"] == "degraded" && health["checks"]["captures"]["reason"] == "shop/main has failed: oplog gone"
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn metrics_are_prometheus_text_and_tell_what_the_interface_tells() {
    let world = World::new().await;
    world.get("/api/v1/jobs").await;
    world.get("/nowhere").await;
    for addr in [world.addr(), world.metrics_addr()] {
        let reply = wire::send(addr, "GET", "/metrics", None, None).await;
        schema::check("GET", "/metrics", &reply);
        let text = reply.text();
        for line in [
            "argon_workers{state=\"running\"} 5",
            "argon_workers{state=\"busy\"} 1",
            "argon_workers_target 5",
            "argon_jobs{state=\"dead\",kind=\"sync\"} 1",
            "argon_captures_waiting 0",
            "argon_branches{status=\"stalled\"} 1",
            "argon_branch_head{branch=\"shop/main\"} 10",
            "argon_memory_budget_bytes{part=\"limit\"} 268435456",
            "argon_stage_changes_total{stage=\"commit\"} 0",
            "argon_jobs_completed_total{kind=\"sync\"} 1",
            "argon_captures{state=\"running\"} 1",
            "argon_health{check=\"all\"} 1",
            "argon_http_requests_total{route=\"/api/v1/jobs\",status=\"200\"} 1",
            "argon_http_requests_total{route=\"other\",status=\"404\"} 1",
        ] {
            assert!(text.lines().any(|l| l == line), "{line} is missing in\n{text}");
        }
        for line in text.lines().filter(|l| !l.is_empty() && !l.starts_with('#')) {
            let (name, value) = line.rsplit_once(' ').unwrap();
            assert!(name.starts_with("argon_") && value.parse::<f64>().is_ok(), "{line}");
        }
    }
    for path in ["/api/v1/workers/stats", "/api/v1/openapi.json", "/"] {
        assert_eq!(wire::send(world.metrics_addr(), "GET", path, None, None).await.status, 404, "{path}");
    }
    assert_eq!(wire::send(world.metrics_addr(), "GET", "/health", None, None).await.status, 200);
    assert_eq!(wire::send(world.metrics_addr(), "GET", "/ready", None, None).await.status, 200);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_status_page_is_served_to_everybody_with_a_policy_and_holds_nothing() {
    let world = World::new().await;
    let reply = wire::send(world.addr(), "GET", "/", None, None).await;
    schema::check("GET", "/", &reply);
    assert_eq!(reply.status, 200);
    assert!(reply.text().starts_with("<!doctype html>") && !reply.text().contains("shop/main"));
    let policy = reply.header("content-security-policy").unwrap();
    assert!(policy.contains("default-src 'none'") && policy.contains("frame-ancestors 'none'") && !policy.contains("unsafe"), "{policy}");
}

#[tokio::test(flavor = "multi_thread")]
async fn jobs_are_submitted_listed_in_pages_and_shown() {
    let world = World::new().await;
    let reply = world.post("/api/v1/jobs", &json!({ "kind": "noop", "duration_ms": 5, "failure_rate": 0.25, "branch": BRANCH })).await;
    schema::check("POST", "/api/v1/jobs", &reply);
    assert_eq!(reply.status, 201);
    let id = reply.json()["ids"][0].as_str().unwrap().to_owned();
    let reply = world.get(&format!("/api/v1/jobs/{id}")).await;
    schema::check("GET", "/api/v1/jobs/{id}", &reply);
    assert_has(&reply.json(), &json!({ "id": id, "kind": "noop", "state": "ready", "branch": world.branch, "attempt": 0, "sync": null }));
    assert_has(&reply.json()["params"], &json!({ "duration_ms": 5, "failure_rate": 0.25 }));

    let body = json!({ "kind": "noop", "id": random::id(), "unique_key": "nightly" });
    let first = world.post("/api/v1/jobs", &body).await;
    let again = world.post("/api/v1/jobs", &body).await;
    let other = world.post("/api/v1/jobs", &json!({ "kind": "noop", "unique_key": "nightly" })).await;
    assert_eq!([first.status, again.status, other.status], [201, 200, 200]);
    assert_eq!(other.json(), json!({ "ids": [body["id"]], "created": 0 }), "the one that is there");
    schema::check("POST", "/api/v1/jobs", &other);

    assert_eq!(world.post("/api/v1/jobs", &json!({ "kind": "noop", "count": 250 })).await.json()["created"], 250);
    let (mut seen, mut after) = (Vec::new(), String::new());
    loop {
        let reply = world.get(&format!("/api/v1/jobs?kind=noop&state=ready&limit=100{after}")).await;
        schema::check("GET", "/api/v1/jobs", &reply);
        let page = reply.json();
        seen.extend(page["jobs"].as_array().unwrap().iter().map(|j| j["id"].as_str().unwrap().to_owned()));
        let Some(next) = page["next"].as_str() else { break };
        after = format!("&after={next}");
    }
    assert_eq!((seen.len(), seen.iter().collect::<BTreeSet<_>>().len()), (252, 252));

    let dead = world.get(&format!("/api/v1/jobs?state=dead&branch={}", BRANCH.replace('/', "%2F"))).await.json();
    assert_eq!(dead["jobs"].as_array().unwrap().len(), 1);
    assert_has(
        &dead["jobs"][0],
        &json!({ "id": world.dead, "sync": { "first_seq": 11, "last_seq": 20 }, "errors": [{ "error": "told to" }] }),
    );
    for wrong in ["limit=0", "limit=1001", "limit=x", "state=gone", "kind=dance", "colour=red", "limit=1&limit=2"] {
        let reply = world.get(&format!("/api/v1/jobs?{wrong}")).await;
        assert_eq!(reply.status, 400, "{wrong}");
        schema::check("GET", "/api/v1/jobs", &reply);
    }
    for wrong in ["branch=nobody/nothing"] {
        assert_eq!(world.get(&format!("/api/v1/jobs?{wrong}")).await.status, 404);
    }
    for wrong in [
        json!({ "kind": "sync" }),
        json!({ "kind": "noop", "count": 0 }),
        json!({ "kind": "noop", "count": 2, "unique_key": "k" }),
        json!({ "kind": "noop", "failure_rate": 1.5 }),
        json!({ "kind": "noop", "duration_ms": 3_600_001 }),
        json!({ "kind": "noop", "id": "7" }),
        json!({ "kind": "noop", "unique_key": "" }),
    ] {
        let reply = world.post("/api/v1/jobs", &wrong).await;
        assert_eq!(reply.status, 400, "{wrong}");
        schema::check("POST", "/api/v1/jobs", &reply);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_job_is_retried_cancelled_or_discarded_as_its_state_and_kind_allow() {
    let world = World::new().await;
    let dead = world.dead_noop().await;
    let reply = world.post(&format!("/api/v1/jobs/{dead}/retry"), &json!({})).await;
    schema::check("POST", "/api/v1/jobs/{id}/retry", &reply);
    assert_has(&reply.json(), &json!({ "outcome": "retried", "job": { "id": dead, "state": "ready" } }));
    let reply = world.post(&format!("/api/v1/jobs/{dead}/retry"), &json!({})).await;
    assert_eq!((reply.status, reply.code().as_str()), (409, "conflict"));
    schema::check("POST", "/api/v1/jobs/{id}/retry", &reply);

    let reply = world.delete(&format!("/api/v1/jobs/{dead}")).await;
    schema::check("DELETE", "/api/v1/jobs/{id}", &reply);
    assert_has(&reply.json(), &json!({ "outcome": "cancelled", "job": { "state": "cancelled" } }));
    assert_eq!(world.delete(&format!("/api/v1/jobs/{dead}")).await.status, 200, "a repeat is harmless");

    let running = world.post("/api/v1/jobs", &json!({ "kind": "noop" })).await.json()["ids"][0].as_str().unwrap().to_owned();
    world.ledger.claim(&ClaimRequest::new("engine-1", &[JobKind::Noop], 1).start(1)).await.unwrap();
    let reply = world.delete(&format!("/api/v1/jobs/{running}")).await;
    assert_has(
        &reply.json(),
        &json!({ "outcome": "cancel_requested", "job": { "state": "running", "cancel_requested": true, "engine": "engine-1" } }),
    );

    let sync = format!("/api/v1/jobs/{}", world.dead);
    let reply = world.delete(&sync).await;
    assert_eq!((reply.status, reply.code().as_str()), (409, "confirmation_needed"));
    assert!(reply.text().contains("seq:11 to seq:20") && reply.text().contains("confirm=discard"), "{}", reply.text());
    assert_eq!(world.delete(&format!("{sync}?confirm=yes")).await.status, 409);
    assert_eq!(world.get(&sync).await.json()["state"], "dead", "nothing has happened");
    let reply = world.delete(&format!("{sync}?confirm=discard")).await;
    schema::check("DELETE", "/api/v1/jobs/{id}", &reply);
    assert_has(&reply.json(), &json!({ "outcome": "discarded", "job": { "state": "cancelled" } }));
    assert_eq!(world.get(&format!("/api/v1/branches/{}", world.branch)).await.json()["status"], "gap");

    for (method, path) in [("GET", "/api/v1/jobs/none"), ("DELETE", "/api/v1/jobs/none"), ("POST", "/api/v1/jobs/none/retry")] {
        let reply = wire::send(world.addr(), method, path, None, None).await;
        assert_eq!((reply.status, reply.code().as_str()), (404, "not_found"), "{method} {path}");
        schema::check(method, &path.replace("none", "{id}"), &reply);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_bulk_call_says_what_it_would_do_and_then_does_it() {
    let world = World::new().await;
    for _ in 0..3 {
        world.dead_noop().await;
    }
    let dry = world.post("/api/v1/jobs/retry", &json!({ "kind": "noop", "dry_run": true })).await;
    schema::check("POST", "/api/v1/jobs/retry", &dry);
    assert_has(&dry.json(), &json!({ "dry_run": true, "matched": 3, "changed": 0 }));
    let done = world.post("/api/v1/jobs/retry", &json!({ "kind": "noop", "error": "TOLD", "limit": 2 })).await.json();
    assert_has(&done, &json!({ "dry_run": false, "changed": 2, "more": true }));
    let cancelled = world.post("/api/v1/jobs/cancel", &json!({ "kind": "noop" })).await;
    schema::check("POST", "/api/v1/jobs/cancel", &cancelled);
    assert_eq!(cancelled.json()["changed"], 3);
    let sync = world.post("/api/v1/jobs/cancel", &json!({ "kind": "sync" })).await.json();
    assert_has(&sync, &json!({ "changed": 0, "discard": [world.dead] }));
    assert_eq!(world.post("/api/v1/jobs/cancel", &json!({ "limit": 0 })).await.status, 400);
    let everything = world.post("/api/v1/jobs/cancel", &json!({})).await;
    assert_eq!((everything.status, everything.code().as_str()), (409, "confirmation_needed"), "not by leaving something out");
    schema::check("POST", "/api/v1/jobs/cancel", &everything);
    assert_eq!(world.post("/api/v1/jobs/retry", &json!({ "after": "x" })).await.status, 400);
}

#[tokio::test(flavor = "multi_thread")]
async fn branches_are_listed_shown_by_id_and_name_and_add_up() {
    let world = World::new().await;
    let reply = world.get("/api/v1/branches").await;
    schema::check("GET", "/api/v1/branches", &reply);
    assert_has(
        &reply.json(),
        &json!({ "branches": [{ "id": world.branch, "name": BRANCH, "status": "stalled", "head": { "seq": 10 } }], "next": null }),
    );
    for path in [format!("/api/v1/branches/{}", world.branch), "/api/v1/branches/shop%2Fmain".to_owned()] {
        let reply = world.get(&path).await;
        schema::check("GET", "/api/v1/branches/{id}", &reply);
        assert_eq!(reply.json()["name"], BRANCH);
    }
    let reply = world.get(&format!("/api/v1/branches/{}/stats", world.branch)).await;
    schema::check("GET", "/api/v1/branches/{id}/stats", &reply);
    let stats = reply.json();
    assert_has(
        &stats,
        &json!({
            "branch": BRANCH, "changes": 10, "raw_bytes": 1_000, "stored_bytes": 40, "compression_ratio": 25.0, "segments": 1,
            "levels": [{ "level": 0, "segments": 1, "stored_bytes": 40 }],
            "head": { "seq": 10, "cluster_time": { "t": 1_700_000_010, "i": 1 }, "time": "2023-11-14T22:13:20Z" },
            "captured_until": { "t": 1_700_000_010, "i": 0 },
        }),
    );
    assert!(stats["lag_seconds"].as_u64().unwrap() > 0);
    assert_eq!(world.get("/api/v1/branches/nobody%2Fnothing").await.status, 404);
    let reply = world.get("/api/v1/branches/%FF").await;
    assert_eq!((reply.status, reply.code().as_str()), (400, "bad_request"));
    schema::check("GET", "/api/v1/branches/{id}", &reply);
}

#[tokio::test(flavor = "multi_thread")]
async fn captures_are_paused_and_resumed_and_nothing_else() {
    let world = World::new().await;
    let reply = world.get("/api/v1/captures").await;
    schema::check("GET", "/api/v1/captures", &reply);
    assert_has(
        &reply.json(),
        &json!({ "captures": [{ "id": world.capture, "branch": BRANCH, "state": "running", "queued_seq": 20, "engine": "engine-1" }], "next": null }),
    );
    for (id, action, state) in
        [(&*world.capture, "pause", "paused"), ("shop%2Fmain", "pause", "paused"), (&*world.branch, "resume", "running")]
    {
        let reply = world.post(&format!("/api/v1/captures/{id}/{action}"), &json!({})).await;
        schema::check("POST", &format!("/api/v1/captures/{{id}}/{action}"), &reply);
        assert_eq!(reply.json()["state"], state);
    }
    world.ledger.set_capture_state(&world.capture, CaptureState::Stopped, Some("stopped by the operator")).await.unwrap();
    let reply = world.post(&format!("/api/v1/captures/{}/resume", world.capture), &json!({})).await;
    assert_eq!(reply.status, 409);
    assert!(reply.text().contains("argon capture start"), "{}", reply.text());
    assert_eq!(world.post("/api/v1/captures/none/pause", &json!({})).await.status, 404);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_queue_is_paused_by_kind_branch_or_whole() {
    let world = World::new().await;
    for (body, target) in [
        (json!({ "kind": "noop" }), PauseTarget::Kind(JobKind::Noop)),
        (json!({ "branch": BRANCH }), PauseTarget::Branch(world.branch.clone())),
        (json!({ "all": true }), PauseTarget::All),
    ] {
        let reply = world.post("/api/v1/queue/pause", &body).await;
        schema::check("POST", "/api/v1/queue/pause", &reply);
        assert!(world.ledger.pauses().await.unwrap().0.contains_key(&target), "{body}");
        let shown = world.get("/api/v1/queue").await;
        schema::check("GET", "/api/v1/queue", &shown);
        assert_eq!(shown.json()["pauses"].as_array().unwrap().len(), 1);
        assert_eq!(shown.json()["pauses"][0]["by"], "anonymous");
        let reply = world.post("/api/v1/queue/resume", &body).await;
        schema::check("POST", "/api/v1/queue/resume", &reply);
        assert_eq!(reply.json(), json!({ "pauses": [] }));
    }
    for wrong in [json!({}), json!({ "all": false }), json!({ "all": true, "kind": "sync" }), json!({ "kind": "sync", "branch": BRANCH })] {
        assert_eq!(world.post("/api/v1/queue/pause", &wrong).await.status, 400, "{wrong}");
    }
    assert_eq!(world.post("/api/v1/queue/pause", &json!({ "branch": "no/body" })).await.status, 404);
    assert!(world.ledger.pauses().await.unwrap().0.is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn decisions_of_the_scaler_are_shown_newest_first() {
    let world = World::new().await;
    let mut later = argon::http::EngineView::decisions(&*world.engine).remove(0);
    later.at = Duration::from_secs(90);
    later.changed = false;
    world.engine.decide(later);
    let reply = world.get("/api/v1/scaler").await;
    schema::check("GET", "/api/v1/scaler", &reply);
    let times: Vec<_> = reply.json()["decisions"].as_array().unwrap().iter().map(|d| d["at_ms"].clone()).collect();
    assert_eq!(times, [90_000, 60_000]);
    let changed = world.get("/api/v1/scaler?changed=true&limit=5").await.json();
    assert_has(
        &changed,
        &json!({ "engine": "engine-1", "decisions": [{ "reason": "load", "direction": "up", "target": 5, "actual": 4, "time": "2025-07-18T00:54:20Z" }] }),
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn events_are_streamed_until_the_engine_stops() {
    let world = World::new().await;
    let addr = world.addr();
    let reader = tokio::spawn(async move {
        let stream = tokio::net::TcpStream::connect(addr).await.unwrap();
        wire::exchange(stream, &wire::request("GET", "/api/v1/events", None, None), Duration::from_secs(30)).await
    });
    tokio::time::sleep(Duration::from_millis(300)).await;
    world.post("/api/v1/workers/scale", &json!({ "target_workers": 7 })).await;
    world.post("/api/v1/queue/pause", &json!({ "kind": "noop" })).await;
    let mut decision = argon::http::EngineView::decisions(&*world.engine).remove(0);
    tokio::time::sleep(Duration::from_millis(1_200)).await;
    decision.at = Duration::from_secs(90);
    world.engine.decide(decision);
    tokio::time::sleep(Duration::from_millis(1_500)).await;
    world.listeners.stop().await;
    let reply = Reply::parse(&reader.await.unwrap()).unwrap();
    schema::check("GET", "/api/v1/events", &reply);
    let text = reply.text();
    for event in ["event: scale\ndata: {", "event: pauses\ndata: {", "event: status\ndata: {", "event: decision\ndata: {"] {
        assert!(text.contains(event), "{event} is missing in\n{text}");
    }
    assert_eq!(text.matches("event: decision").count(), 1, "what was decided before is not told again: {text}");
}

#[tokio::test(flavor = "multi_thread")]
async fn every_route_of_the_table_has_been_asked_by_these_tests_and_is_served_as_described() {
    let world = World::new().await;
    let document = world.get("/api/v1/openapi.json").await;
    schema::check("GET", "/api/v1/openapi.json", &document);
    assert_eq!(document.json(), *argon::http::openapi_document());
    for route in table() {
        let path = route.path.replace("{id}", "none");
        if path == "/api/v1/events" {
            continue; // it has no end; asked above
        }
        let body = (route.method == "POST").then(|| json!({}));
        let reply = wire::send(world.addr(), route.method.as_str(), &path, None, body.as_ref()).await;
        schema::check(route.method.as_str(), route.path, &reply);
        assert_eq!(reply.header("x-content-type-options"), Some("nosniff"), "{route:?}");
        let other = wire::send(world.addr(), "PATCH", &path, None, None).await;
        assert_eq!((other.status, other.code().as_str()), (405, "method_not_allowed"), "{route:?}");
        assert!(other.header("allow").is_some_and(|allow| allow.contains(route.method.as_str())), "{route:?}: {other:?}");
    }
    let head = wire::send(world.addr(), "HEAD", "/health", None, None).await;
    assert_eq!((head.status, head.body.len()), (200, 0));
    assert_eq!(world.get("/api/v1/nothing").await.code(), "not_found");
}
