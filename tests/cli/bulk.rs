//! Many jobs at once from the command line: more than one step, some that stay as they are, and history given up by filter. No engine runs but to
//! make the jobs.

use std::time::Duration;

use argon::runtime::clock;
use bson::{Document, doc};
use mongodb::Collection;
use serde_json::json;

use crate::place::{BRANCH, LIMIT, Place, assert_refused};

fn jobs(place: &Place) -> Collection<Document> {
    place.client.database(&place.metadata).collection("jobs")
}

async fn count(place: &Place, state: &str) -> u64 {
    jobs(place).count_documents(doc! {"state": state}).await.unwrap()
}

/// As if their last attempts had failed with this.
async fn kill(place: &Place, which: Document, error: &str) {
    let failed = doc! {"attempt": 4, "at_ms": 1_700_000_000_000_i64, "engine": "e1", "error": error};
    let dead = doc! {"$set": {"state": "dead", "error_count": 1, "errors": [failed]}};
    jobs(place).update_many(which, dead).await.unwrap();
}

#[tokio::test]
async fn what_cannot_be_retried_holds_up_none_of_thousands_that_can() {
    let place = Place::new("thousands").await;
    place.start_capture().await;
    let keyed = ["jobs", "submit", "--delay", "1h", "--unique-key", "nightly"];
    place.ok(&keyed).await;
    kill(&place, doc! {}, "timeout").await;
    place.ok(&keyed).await;
    assert_eq!(place.ok(&["jobs", "submit", "--count", "3500", "--delay", "1h", "--priority", "low"]).await.trim(), "submitted 3500 jobs");
    kill(&place, doc! {"state": "scheduled", "unique_key": null}, "access\ndenied").await;

    let dry = place.json(&["jobs", "retry", "--all-dead", "--error", "denied", "--dry-run"]).await;
    assert_eq!((&dry["matched"], &dry["changed"], &dry["more"]), (&json!(3_500), &json!(0), &json!(false)));
    let text = place.ok(&["jobs", "retry", "--all-dead", "--dry-run"]).await;
    assert!(text.starts_with("3501 jobs would be ready again, such as "), "{text}");
    let some = place.json(&["jobs", "retry", "--error", "denied", "--limit", "1200"]).await;
    assert_eq!((&some["matched"], &some["changed"], &some["more"]), (&json!(1_200), &json!(1_200), &json!(true)), "{some}");
    // The one whose key is taken comes first in its state, and is met by every step.
    let rest = place.json(&["jobs", "retry", "--all-dead"]).await;
    assert_eq!((&rest["matched"], &rest["changed"], &rest["hindered"]), (&json!(2_301), &json!(2_300), &json!(1)), "{rest}");
    assert_eq!((count(&place, "dead").await, count(&place, "ready").await), (1, 3_500));
    let text = place.ok(&["jobs", "retry", "--all-dead"]).await;
    assert_eq!(text.trim(), "0 jobs are ready again; left as they are, since another job has their unique key: 1");

    // Running ones are asked, however many there are.
    jobs(&place).update_many(doc! {"state": "ready"}, doc! {"$set": {"state": "running"}}).await.unwrap();
    let asked = place.json(&["jobs", "cancel", "--state", "running"]).await;
    assert_eq!((&asked["requested"], &asked["changed"]), (&json!(3_500), &json!(0)), "{asked}");
    let all = place.ok(&["jobs", "cancel", "--kind", "noop"]).await;
    assert_eq!(all.trim(), "2 jobs are cancelled", "the dead one and the one that waits");

    assert_refused(&place.argon(&["jobs", "retry", "--state", "done"]).await, 2, &["--state done", "dead and scheduled"]);
    assert_refused(&place.argon(&["jobs", "cancel", "--state", "cancelled"]).await, 2, &["--state cancelled"]);
    // One line a job, whatever its error looks like.
    let list = place.ok(&["jobs", "list", "--state", "cancelled"]).await;
    assert_eq!(list.lines().count(), 3, "{list}");
    assert!(list.contains("stopping") || place.ok(&["jobs", "list", "--limit", "5"]).await.contains("stopping"));
}

#[tokio::test]
async fn rule_25_waiting_sync_jobs_are_given_up_by_filter_only_when_that_is_meant() {
    let place = Place::new("giveup").await;
    place.start_capture().await;
    place.ok(&["queue", "pause", "--kind", "sync"]).await;
    let engine = place.engine().await;
    for n in 1..=3_u32 {
        place.source.collection("a").insert_one(doc! {"_id": i64::from(n)}).await.unwrap();
        let begun = clock::now();
        while count(&place, "ready").await < u64::from(n) {
            assert!(begun.elapsed() < LIMIT, "job {n} has not come");
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }
    place.stop(engine).await;

    let which = ["jobs", "discard", "--kind", "sync", "--state", "ready", "--branch", BRANCH];
    let with = |more: &[&'static str]| [&which[..], more].concat();
    let dry = place.json(&with(&["--dry-run"])).await;
    assert_eq!((&dry["matched"], &dry["discarded"], &dry["changes"]), (&json!(3), &json!(0), &json!(4)), "{dry}");
    assert_refused(&place.argon(&which).await, 2, &["3 jobs", "4 changes", "--yes"]);
    assert_eq!(count(&place, "ready").await, 3, "nothing is lost by asking");
    let cancel = place.ok(&["jobs", "cancel", "--kind", "sync"]).await;
    assert!(cancel.starts_with("0 jobs are cancelled\n3 jobs of kind sync left as they are: argon jobs discard"), "{cancel}");
    let one = place.json(&with(&["--yes", "--limit", "1"])).await;
    assert_eq!((&one["matched"], &one["discarded"]), (&json!(1), &json!(1)), "{one}");
    let text = place.ok(&with(&["--yes"])).await;
    assert!(text.starts_with("discarded 2 jobs: ") && text.contains("recorded gaps"), "{text}");

    let status = place.json(&["status"]).await;
    assert_eq!(status["branches"][0]["status"], json!("gap"), "{status}");
    let next: Vec<&str> = status["problems"].as_array().unwrap().iter().filter_map(|p| p["next"].as_str()).collect();
    assert_eq!(next, ["argon run", "argon branch show shop/main", "argon queue resume --kind sync"], "{status}");
}
