//! Branches are forked, archived and deleted over HTTP, with the refusals that the command line has too.

use serde_json::json;

use crate::schema;
use crate::world::{BRANCH, World};

#[tokio::test(flavor = "multi_thread")]
async fn branches_are_made_archived_and_deleted() {
    let world = World::new().await;
    let project = BRANCH.split('/').next().unwrap();
    let name = format!("{project}/try");
    let made = world.post("/api/v1/branches", &json!({ "name": name, "from": BRANCH, "ttl_seconds": 3_600 })).await;
    schema::check("POST", "/api/v1/branches", &made);
    assert_eq!(made.status, 201, "{}", made.json());
    let branch = made.json();
    assert_eq!((branch["name"].as_str(), branch["status"].as_str()), (Some(name.as_str()), Some("active")));
    assert!(branch["expires"].is_string() && branch["parent"].as_str().unwrap().starts_with(BRANCH), "{branch}");
    let id = branch["id"].as_str().unwrap().to_owned();
    let path = format!("/api/v1/branches/{id}");
    assert_eq!(world.get(&path).await.json()["head"]["seq"], branch["head"]["seq"]);

    for (body, status) in [
        (json!({ "name": name, "from": BRANCH }), 409),
        (json!({ "name": "other/try", "from": BRANCH }), 409),
        (json!({ "name": format!("{project}/x"), "from": "nobody/knows" }), 404),
        (json!({ "name": format!("{project}/x"), "from": BRANCH, "at": "yesterday" }), 400),
        (json!({ "name": format!("{project}/x"), "from": BRANCH, "at": "seq:99999999" }), 409),
        (json!({ "name": "no slash", "from": BRANCH }), 409),
        (json!({ "name": format!("{project}/.x"), "from": BRANCH }), 400),
        (json!({ "name": format!("{project}/x"), "from": BRANCH, "ttl_seconds": 0 }), 400),
        (json!({ "name": format!("{project}/x"), "from": BRANCH, "typo": 1 }), 400),
    ] {
        let refused = world.post("/api/v1/branches", &body).await;
        schema::check("POST", "/api/v1/branches", &refused);
        assert_eq!(refused.status, status, "{body}: {}", refused.json());
    }

    let archived = world.post(&format!("{path}/archive"), &json!({})).await;
    schema::check("POST", "/api/v1/branches/{id}/archive", &archived);
    assert_eq!(archived.json()["status"], "archived");
    let back = world.post(&format!("{path}/archive?undo=true"), &json!({})).await;
    assert_eq!(back.json()["status"], "active");

    // A parent stays as long as it has children, and nothing goes without its name said twice.
    let parent = BRANCH.replace('/', "%2F");
    let refused = world.delete(&format!("/api/v1/branches/{parent}?confirm={parent}")).await;
    assert_eq!(refused.status, 409);
    assert!(refused.json()["error"]["message"].as_str().unwrap().contains(&name), "{}", refused.json());
    for unconfirmed in [path.clone(), format!("{path}?confirm={project}/other")] {
        let refused = world.delete(&unconfirmed).await;
        schema::check("DELETE", "/api/v1/branches/{id}", &refused);
        assert_eq!(refused.json()["error"]["code"], "confirmation_needed");
    }
    let deleted = world.delete(&format!("{path}?confirm={}", name.replace('/', "%2F"))).await;
    schema::check("DELETE", "/api/v1/branches/{id}", &deleted);
    assert_eq!(deleted.json()["status"], "deleted");
    assert_eq!(world.post("/api/v1/branches", &json!({ "name": name, "from": BRANCH })).await.status, 201, "its name is free again");
}
