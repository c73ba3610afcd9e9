//! Answers held to the OpenAPI document.

use jsonschema::Validator;
use serde_json::{Value, json};

use crate::wire::Reply;

/// Fails unless the document describes this answer of this route.
pub(crate) fn check(method: &str, path: &str, reply: &Reply) {
    let document = argon::http::openapi_document();
    let described = &document["paths"][path][method.to_ascii_lowercase()]["responses"][reply.status.to_string()];
    assert!(described.is_object(), "{method} {path}: status {} is not described: {}", reply.status, reply.text());
    let (content_type, content) = described["content"].as_object().unwrap().iter().next().unwrap();
    assert_eq!(reply.header("content-type"), Some(content_type.as_str()), "{method} {path}");
    if content_type != "application/json" {
        return;
    }
    let validator = validator(&content["schema"]);
    let body = reply.json();
    let errors: Vec<String> = validator.iter_errors(&body).map(|e| format!("{} at {}", e, e.instance_path)).collect();
    assert!(errors.is_empty(), "{method} {path} {}: {errors:?} in {body:#}", reply.status);
}

/// The schema with everything that it may refer to.
fn validator(schema: &Value) -> Validator {
    let mut whole = schema.clone();
    whole["components"] = argon::http::openapi_document()["components"].clone();
    jsonschema::draft202012::new(&whole).unwrap()
}

#[test]
fn an_answer_that_is_not_as_described_is_noticed() {
    let reply = |body: &Value| Reply {
        status: 200,
        headers: vec![("content-type".into(), "application/json".into())],
        body: body.to_string().into_bytes(),
    };
    check("GET", "/ready", &reply(&json!({ "ready": true, "reason": null })));
    for wrong in [json!({ "ready": "yes", "reason": null }), json!({ "reason": null }), json!([])] {
        assert!(std::panic::catch_unwind(|| check("GET", "/ready", &reply(&wrong))).is_err(), "{wrong}");
    }
}

/// The page about the interface names settings and routes that are there.
#[test]
fn the_documentation_names_what_there_is() {
    let page = include_str!("../../docs/api.md");
    let words: Vec<&str> = page.split(|c: char| !c.is_ascii_alphanumeric() && !"_/{}".contains(c)).collect();
    for name in words.iter().filter(|w| w.starts_with("ARGON_")) {
        assert!(argon::config::VARIABLES.contains(name), "{name} is no setting");
    }
    let known = |path: &str| argon::http::table().iter().any(|route| route.path == path) || path == "/api/v1/openapi";
    for path in words.iter().filter(|w| w.starts_with("/api/")) {
        assert!(known(path), "{path} is no route");
    }
    for route in argon::http::table() {
        if route.scope.name() == "public" {
            assert!(page.contains(route.path), "{route:?} is missing among what anyone may see");
        }
    }
}
