//! `/api/v1/openapi.json`: the interface, described by the table of routes and the handlers' own types.
//!
//! Owns: the form of the document (OpenAPI 3.1, whose schemas are JSON Schema 2020-12). Does not own: anything that it says.

use std::collections::BTreeMap;
use std::sync::OnceLock;

use schemars::generate::SchemaSettings;
use schemars::{JsonSchema, Schema, SchemaGenerator};
use serde::Serialize;
use serde_json::{Map, Value, json};

use super::auth::Scope;
use super::call::{Call, Json, NoBody, NoQuery, Route};
use super::problem::{ErrorAnswer, Problem};
use super::routes;

/// The document as it is served.
#[derive(Debug, Clone, Serialize)]
pub(super) struct Document(pub Value);

impl JsonSchema for Document {
    fn schema_name() -> std::borrow::Cow<'static, str> {
        "OpenApi".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        schemars::json_schema!({
            "type": "object",
            "description": "An OpenAPI 3.1 document.",
            "required": ["openapi", "info", "paths", "components"],
            "properties": {"openapi": {"const": "3.1.0"}, "info": {"type": "object"}, "paths": {"type": "object"}, "components": {"type": "object"}}
        })
    }
}

pub(super) async fn show(_: Call<NoQuery, NoBody>) -> Result<Json<Document>, Problem> {
    Ok(Json(Document(document().clone())))
}

/// The document; made once.
pub fn document() -> &'static Value {
    static DOCUMENT: OnceLock<Value> = OnceLock::new();
    DOCUMENT.get_or_init(|| describe(&routes::table()))
}

fn describe(table: &[Route]) -> Value {
    let settings = SchemaSettings::draft2020_12().with(|s| {
        s.meta_schema = None;
        s.definitions_path = "/components/schemas".into();
    });
    let mut requests = settings.clone().for_deserialize().into_generator();
    let mut answers = settings.for_serialize().into_generator();
    let problem = answers.subschema_for::<ErrorAnswer>();
    let mut paths: BTreeMap<&str, Map<String, Value>> = BTreeMap::new();
    for route in table {
        let operation = operation(route, &mut requests, &mut answers, &problem);
        paths.entry(route.path).or_default().insert(route.method.as_str().to_ascii_lowercase(), operation);
    }
    // A type in both is an enumeration or the like: it reads as it is written, which the test below holds it to.
    let mut schemas = answers.take_definitions(true);
    schemas.extend(requests.take_definitions(true));
    json!({
        "openapi": "3.1.0",
        "info": {
            "title": "Argon",
            "version": env!("CARGO_PKG_VERSION"),
            "description": "Continuous, compressed, restorable history of MongoDB in an object store: the interface of an engine. \
                Scopes of tokens include each other: read, operate, admin.",
            "license": { "name": "MIT OR Apache-2.0" },
        },
        "paths": paths,
        "components": {
            "schemas": schemas,
            "securitySchemes": { "token": { "type": "http", "scheme": "bearer", "description": "ARGON_API_TOKEN, or a line of ARGON_API_TOKENS_FILE." } },
        },
    })
}

fn operation(route: &Route, requests: &mut SchemaGenerator, answers: &mut SchemaGenerator, problem: &Schema) -> Value {
    let types = (route.types)(requests, answers);
    let mut parameters: Vec<Value> = Vec::new();
    if route.path.contains("{id}") {
        parameters.push(json!({ "name": "id", "in": "path", "required": true, "schema": { "type": "string", "minLength": 1 } }));
    }
    parameters.extend(query_parameters(&types.query));
    let mut responses = Map::new();
    for answer in types.answers {
        let content = answer.schema.map_or_else(|| json!({ "type": "string" }), Value::from);
        responses.insert(
            answer.status.to_string(),
            json!({ "description": answer.about, "content": { answer.content_type: { "schema": content } } }),
        );
    }
    for (status, about) in problems(route) {
        let described = json!({ "description": about, "content": { "application/json": { "schema": problem } } });
        responses.entry(status.to_string()).or_insert(described);
    }
    let mut operation = json!({
        "operationId": operation_id(route),
        "summary": route.about,
        "tags": [tag(route.path)],
        "parameters": parameters,
        "responses": responses,
    });
    if let Some(schema) = types.body {
        operation["requestBody"] = json!({ "required": true, "content": { "application/json": { "schema": schema } } });
    }
    operation["security"] = if route.scope == Scope::Public { json!([]) } else { json!([{ "token": [] }]) };
    operation["x-argon-scope"] = json!(route.scope.name());
    operation
}

/// What any route may answer instead.
fn problems(route: &Route) -> Vec<(u16, &'static str)> {
    let mut all = vec![
        (400, "The request says something that cannot be."),
        (408, "The request did not arrive in time."),
        (431, "The head of the request is too large."),
        (500, "A bug, or something is damaged; the message names it."),
        (503, "Not now: Retry-After says when."),
        (504, "Not done in time; it may still happen."),
    ];
    if route.path.starts_with("/api/") {
        all.extend([(403, "The token's scope does not reach."), (429, "Too many requests: Retry-After says when.")]);
    }
    if route.scope > Scope::Public {
        all.extend([
            (401, "No token, or not one of ours."),
            (404, "What it names is not there."),
            (409, "What it names is in a state that does not allow it."),
            (410, "That part of history is gone."),
        ]);
    }
    if route.scope > Scope::Read {
        all.extend([(413, "The body is too large."), (415, "The body is not said to be JSON.")]);
    }
    all
}

/// A parameter for each field of a query type.
fn query_parameters(query: &Schema) -> Vec<Value> {
    let required = query.get("required").and_then(Value::as_array).cloned().unwrap_or_default();
    let properties = query.get("properties").and_then(Value::as_object).cloned().unwrap_or_default();
    let parameter = |(name, mut schema): (String, Value)| {
        let about = schema.as_object_mut().and_then(|s| s.remove("description"));
        let mut parameter = json!({ "name": name, "in": "query", "required": required.contains(&json!(name)), "schema": present(schema) });
        if let Some(about) = about {
            parameter["description"] = about;
        }
        parameter
    };
    properties.into_iter().map(parameter).collect()
}

/// A parameter is there or not; there is no null in a query.
fn present(mut schema: Value) -> Value {
    let Some(object) = schema.as_object_mut() else { return schema };
    if object.get("default") == Some(&Value::Null) {
        object.remove("default");
    }
    if let Some(Value::Array(types)) = object.get_mut("type") {
        types.retain(|t| t != "null");
        if let [one] = types.as_slice() {
            let one = one.clone();
            object.insert("type".into(), one);
        }
    }
    if let Some(Value::Array(any)) = object.get_mut("anyOf") {
        any.retain(|s| s.get("type") != Some(&json!("null")));
        if let [one] = any.as_slice() {
            let one = one.clone();
            object.remove("anyOf");
            if let Value::Object(one) = one {
                object.extend(one);
            }
        }
    }
    schema
}

/// `get_jobs_id_retry`
fn operation_id(route: &Route) -> String {
    let path = route.path.trim_start_matches("/api/v1");
    let words = path.split(|c: char| !c.is_ascii_alphanumeric()).filter(|w| !w.is_empty());
    std::iter::once(route.method.as_str().to_ascii_lowercase()).chain(words.map(str::to_owned)).collect::<Vec<_>>().join("_")
}

fn tag(path: &str) -> &str {
    path.strip_prefix("/api/v1/").and_then(|rest| rest.split(['/', '.']).next()).unwrap_or("process")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_route_is_described_and_every_reference_leads_somewhere() {
        let document = document();
        for route in routes::table() {
            let method = route.method.as_str().to_ascii_lowercase();
            let operation = &document["paths"][route.path][&method];
            assert_eq!(operation["x-argon-scope"], route.scope.name(), "{route:?}");
            assert!(operation["responses"].as_object().unwrap().keys().any(|status| status.starts_with('2')), "{route:?}");
        }
        let mut references = Vec::new();
        collect(document, &mut references);
        assert!(references.len() > 20);
        for reference in references {
            let pointer = reference.strip_prefix('#').unwrap();
            assert!(document.pointer(pointer).is_some(), "{reference} leads nowhere");
        }
    }

    fn collect(value: &Value, found: &mut Vec<String>) {
        match value {
            Value::Object(fields) => {
                if let Some(Value::String(reference)) = fields.get("$ref") {
                    found.push(reference.clone());
                }
                fields.values().for_each(|v| collect(v, found));
            }
            Value::Array(items) => items.iter().for_each(|v| collect(v, found)),
            _ => {}
        }
    }

    #[test]
    fn a_type_of_requests_and_answers_reads_as_it_is_written() {
        let settings = SchemaSettings::draft2020_12().with(|s| {
            s.meta_schema = None;
            s.definitions_path = "/components/schemas".into();
        });
        let (mut requests, mut answers) = (settings.clone().for_deserialize().into_generator(), settings.for_serialize().into_generator());
        for route in routes::table() {
            (route.types)(&mut requests, &mut answers);
        }
        let (requests, answers) = (requests.take_definitions(true), answers.take_definitions(true));
        for (name, schema) in &requests {
            assert!(answers.get(name).is_none_or(|other| other == schema), "{name}");
        }
    }

    #[test]
    fn a_query_has_no_null() {
        let document = document();
        let parameters = document["paths"]["/api/v1/jobs"]["get"]["parameters"].as_array().unwrap();
        let limit = parameters.iter().find(|p| p["name"] == "limit").unwrap();
        assert_eq!((&limit["schema"]["type"], &limit["schema"]["maximum"]), (&json!("integer"), &json!(1000)));
        let state = parameters.iter().find(|p| p["name"] == "state").unwrap();
        assert!(state["schema"]["$ref"].as_str().unwrap().ends_with("JobState"), "{state}");
        assert!(!parameters.iter().any(|p| p.to_string().contains("null")), "{parameters:?}");
    }
}
