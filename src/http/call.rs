//! What a handler is: a plain function from a request to an answer, and how its types become parsing, JSON and documentation.
//!
//! Owns: [`Route`], reading query and body, writing answers, and the description of both. Does not own: which routes there are (`routes`),
//! listeners (`network`, `control`), who may call (`auth`).
//!
//! A route is made from a function, and query, body and answer are that function's own types, so the documentation cannot say something else
//! than the code does.

use std::sync::Arc;

use axum::body::Body;
use axum::http::header::{CACHE_CONTROL, CONTENT_TYPE, HeaderValue, X_CONTENT_TYPE_OPTIONS};
use axum::http::{Method, StatusCode};
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use futures_util::future::BoxFuture;
use schemars::{JsonSchema, Schema, SchemaGenerator};
use serde::Serialize;
use serde::de::DeserializeOwned;

use super::api::Api;
use super::auth::{Caller, Scope};
use super::problem::Problem;

/// A request as handlers see it.
#[derive(Debug, Clone)]
pub(super) struct Call<Q, B> {
    pub api: Arc<Api>,
    pub caller: Caller,
    /// The `{id}` of the path, decoded; empty where the path has none.
    pub id: String,
    pub query: Q,
    pub body: B,
}

/// A request before its types are known.
#[derive(Debug)]
pub(super) struct RawCall {
    pub api: Arc<Api>,
    pub caller: Caller,
    pub id: String,
    pub query: String,
    pub content_type: Option<String>,
    pub body: Bytes,
}

/// No query parameters.
#[derive(Debug, Clone, Copy, serde::Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct NoQuery {}

/// No body; one that is sent is not looked at.
#[derive(Debug, Clone, Copy)]
pub(super) struct NoBody;

/// A JSON body, or a JSON answer with status 200.
#[derive(Debug, Clone)]
pub(super) struct Json<T>(pub T);

/// What a body can be read as.
pub(super) trait Content: Sized + Send + 'static {
    fn read(content_type: Option<&str>, body: &[u8]) -> Result<Self, Problem>;
    /// Its schema; `None` for no body.
    fn describe(generator: &mut SchemaGenerator) -> Option<Schema>;
}

/// What a handler can answer.
pub(super) trait Answer: Send + 'static {
    fn respond(self) -> Response;
    fn describe(generator: &mut SchemaGenerator) -> Vec<Described>;
}

/// One possible answer.
#[derive(Debug, Clone)]
pub(super) struct Described {
    pub status: u16,
    pub about: &'static str,
    pub content_type: &'static str,
    pub schema: Option<Schema>,
}

/// The types of a route as the documentation needs them. Requests and answers are described by generators of their own, since a field with a
/// default may be left out of the one and is always in the other.
#[derive(Debug)]
pub(super) struct Types {
    pub query: Schema,
    pub body: Option<Schema>,
    pub answers: Vec<Described>,
}

type Handler = Box<dyn Fn(RawCall) -> BoxFuture<'static, Response> + Send + Sync>;

/// A line of the table of routes.
pub struct Route {
    pub method: Method,
    /// With `{id}` where the path has one.
    pub path: &'static str,
    pub scope: Scope,
    /// One line for the documentation.
    pub about: &'static str,
    pub(super) handler: Handler,
    pub(super) types: fn(&mut SchemaGenerator, &mut SchemaGenerator) -> Types,
}

impl std::fmt::Debug for Route {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} {} ({})", self.method, self.path, self.scope.name())
    }
}

/// Makes a route of a handler.
pub(super) fn route<Q, B, A, F, R>(method: Method, path: &'static str, scope: Scope, about: &'static str, handler: F) -> Route
where
    Q: DeserializeOwned + JsonSchema + Send + 'static,
    B: Content,
    A: Answer,
    F: Fn(Call<Q, B>) -> R + Copy + Send + Sync + 'static,
    R: Future<Output = Result<A, Problem>> + Send + 'static,
{
    let run: Handler = Box::new(move |raw| {
        Box::pin(async move {
            let called = match typed(raw) {
                Ok(call) => handler(call).await,
                Err(problem) => Err(problem),
            };
            called.map_or_else(IntoResponse::into_response, Answer::respond)
        })
    });
    Route { method, path, scope, about, handler: run, types: types::<Q, B, A> }
}

fn typed<Q: DeserializeOwned, B: Content>(raw: RawCall) -> Result<Call<Q, B>, Problem> {
    let query = serde_urlencoded::from_str(&raw.query).map_err(|e| Problem::bad_request(format!("query: {e}")))?;
    let body = B::read(raw.content_type.as_deref(), &raw.body)?;
    Ok(Call { api: raw.api, caller: raw.caller, id: raw.id, query, body })
}

fn types<Q: JsonSchema, B: Content, A: Answer>(requests: &mut SchemaGenerator, answers: &mut SchemaGenerator) -> Types {
    Types { query: Q::json_schema(requests), body: B::describe(requests), answers: A::describe(answers) }
}

impl Content for NoBody {
    fn read(_: Option<&str>, _: &[u8]) -> Result<Self, Problem> {
        Ok(Self)
    }

    fn describe(_: &mut SchemaGenerator) -> Option<Schema> {
        None
    }
}

impl<T: DeserializeOwned + JsonSchema + Send + 'static> Content for Json<T> {
    fn read(content_type: Option<&str>, body: &[u8]) -> Result<Self, Problem> {
        check_json(content_type)?;
        // serde reads a struct from an array as well, field by field, which nobody has documented.
        if body.iter().find(|b| !b.is_ascii_whitespace()) != Some(&b'{') {
            return Err(Problem::bad_request("body: a JSON object is expected"));
        }
        let read = serde_json::from_slice(body).map_err(|e| Problem::bad_request(format!("body: {e}")))?;
        Ok(Self(read))
    }

    fn describe(generator: &mut SchemaGenerator) -> Option<Schema> {
        Some(generator.subschema_for::<T>())
    }
}

/// For `deserialize_with` on whole numbers of bodies: in JSON 8.0 is the whole number 8, and some clients write it so.
pub(super) fn whole<'de, D, T>(deserializer: D) -> Result<Option<T>, D::Error>
where
    D: serde::Deserializer<'de>,
    T: TryFrom<i64>,
{
    use serde::de::{Deserialize, Error};
    let Some(number) = Option::<serde_json::Number>::deserialize(deserializer)? else { return Ok(None) };
    #[allow(clippy::cast_possible_truncation)] // has no fraction and is small
    let of_float = |n: f64| (n.fract() == 0.0 && n.abs() < 9e15).then_some(n as i64);
    let read = number.as_i64().or_else(|| number.as_f64().and_then(of_float)).and_then(|n| T::try_from(n).ok());
    read.map(Some).ok_or_else(|| D::Error::custom(format!("{number} is not a whole number that can stand here")))
}

/// A page of a browser can send text/plain to any address without asking; application/json it can not.
fn check_json(content_type: Option<&str>) -> Result<(), Problem> {
    let essence = content_type.map(|t| t.split(';').next().unwrap_or(t).trim().to_ascii_lowercase());
    if essence.as_deref() == Some("application/json") {
        return Ok(());
    }
    Err(Problem::new(StatusCode::UNSUPPORTED_MEDIA_TYPE, "unsupported_media_type", "send the body with Content-Type: application/json"))
}

impl<T: Serialize + JsonSchema + Send + 'static> Answer for Json<T> {
    fn respond(self) -> Response {
        json(StatusCode::OK, &self.0)
    }

    fn describe(generator: &mut SchemaGenerator) -> Vec<Described> {
        vec![described::<T>(generator, StatusCode::OK, "Done, or what was asked for.")]
    }
}

/// JSON that was created by this call (201), or had been there (200).
#[derive(Debug, Clone)]
pub(super) struct Created<T> {
    pub created: bool,
    pub body: T,
}

impl<T: Serialize + JsonSchema + Send + 'static> Answer for Created<T> {
    fn respond(self) -> Response {
        json(if self.created { StatusCode::CREATED } else { StatusCode::OK }, &self.body)
    }

    fn describe(generator: &mut SchemaGenerator) -> Vec<Described> {
        vec![
            described::<T>(generator, StatusCode::CREATED, "Created by this call."),
            described::<T>(generator, StatusCode::OK, "It was there already."),
        ]
    }
}

/// JSON that is an answer either way: 200, or 503 when the thing asked about is not well.
#[derive(Debug, Clone)]
pub(super) struct Verdict<T> {
    pub well: bool,
    pub body: T,
}

impl<T: Serialize + JsonSchema + Send + 'static> Answer for Verdict<T> {
    fn respond(self) -> Response {
        json(if self.well { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE }, &self.body)
    }

    fn describe(generator: &mut SchemaGenerator) -> Vec<Described> {
        vec![described::<T>(generator, StatusCode::OK, "Well."), described::<T>(generator, StatusCode::SERVICE_UNAVAILABLE, "Not well.")]
    }
}

/// Prometheus' text.
#[derive(Debug, Clone)]
pub(super) struct MetricsText(pub String);

const METRICS_TYPE: &str = "text/plain; version=0.0.4; charset=utf-8";

impl Answer for MetricsText {
    fn respond(self) -> Response {
        with_type(StatusCode::OK, METRICS_TYPE, Body::from(self.0))
    }

    fn describe(_: &mut SchemaGenerator) -> Vec<Described> {
        vec![Described { status: 200, about: "Prometheus' text format.", content_type: METRICS_TYPE, schema: None }]
    }
}

/// Server-sent events, as a body that ends when the engine stops.
#[derive(Debug)]
pub(super) struct EventStream(pub Body);

impl Answer for EventStream {
    fn respond(self) -> Response {
        with_type(StatusCode::OK, "text/event-stream", self.0)
    }

    fn describe(_: &mut SchemaGenerator) -> Vec<Described> {
        let about = "Events until the client goes or the engine stops.";
        vec![Described { status: 200, about, content_type: "text/event-stream", schema: None }]
    }
}

fn described<T: JsonSchema>(generator: &mut SchemaGenerator, status: StatusCode, about: &'static str) -> Described {
    let schema = Some(generator.subschema_for::<T>());
    Described { status: status.as_u16(), about, content_type: "application/json", schema }
}

/// A JSON answer.
pub(super) fn json<T: Serialize>(status: StatusCode, value: &T) -> Response {
    match serde_json::to_vec(value) {
        Ok(text) => with_type(status, "application/json", Body::from(text)),
        Err(error) => {
            tracing::error!(%error, "an answer cannot be written as JSON");
            let fallback = r#"{"error":{"code":"unknown","message":"the answer cannot be written as JSON"}}"#;
            with_type(StatusCode::INTERNAL_SERVER_ERROR, "application/json", Body::from(fallback))
        }
    }
}

pub(super) fn with_type(status: StatusCode, content_type: &'static str, body: Body) -> Response {
    let mut response = Response::new(body);
    *response.status_mut() = status;
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static(content_type));
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    headers.insert(X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    response
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, serde::Deserialize, JsonSchema)]
    #[serde(deny_unknown_fields)]
    struct Sample {
        #[allow(dead_code)]
        n: u8,
    }

    #[test]
    fn a_body_must_say_that_it_is_json_and_be_what_the_handler_takes() {
        let read = |kind: Option<&str>, body: &str| Json::<Sample>::read(kind, body.as_bytes()).map(|_| ()).map_err(|p| p.status.as_u16());
        assert_eq!(read(Some("application/json"), r#"{"n":1}"#), Ok(()));
        assert_eq!(read(Some("Application/JSON; charset=utf-8"), r#"{"n":1}"#), Ok(()));
        assert_eq!(read(Some("text/plain"), r#"{"n":1}"#), Err(415));
        assert_eq!(read(None, r#"{"n":1}"#), Err(415));
        for wrong in ["", "{}", r#"{"n":1,"m":2}"#, r#"{"n":256}"#, r#"{"n":"1"}"#, "[1]", r#"{"n":1}x"#, "\u{0}"] {
            assert_eq!(read(Some("application/json"), wrong), Err(400), "{wrong:?}");
        }
    }
}
