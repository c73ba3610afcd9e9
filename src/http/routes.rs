//! The one table of routes. The router of the network, the control socket, authorisation and the OpenAPI document all come from it.
//!
//! Owns: which paths there are, what right each needs, and running a handler within bounds. Does not own: the handlers, who the caller is.
//!
//! | what | bound |
//! |---|---|
//! | body | 1 MiB, within 10 s; 16 MiB of all bodies together |
//! | handlers at work | 64, and 16 of the control socket; more are told to come back |
//! | a handler | 30 s, then the client is told so; the work itself is left to end, since a driver's future must not be dropped half way |

use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::extract::rejection::RawPathParamsRejection;
use axum::extract::{RawPathParams, Request};
use axum::http::header::{CONTENT_LENGTH, CONTENT_TYPE};
use axum::http::{Method, StatusCode};
use axum::response::{IntoResponse, Response};
use axum::routing::{MethodFilter, MethodRouter};
use bytes::{Bytes, BytesMut};
use http_body_util::BodyExt;
use tokio::sync::OwnedSemaphorePermit;

use super::api::Api;
use super::auth::{Caller, Scope};
use super::call::{RawCall, Route, route};
use super::connections::Ticket;
use super::problem::Problem;
use super::{branches, branching, bulk, captures, events, health, jobs, metrics, openapi, page, queue, scaling, workers};
use crate::runtime::clock;

/// Bytes of a body.
pub(super) const BODY_BYTES: usize = 1 << 20;
/// Time for a body to arrive.
const BODY_TIME: Duration = Duration::from_secs(10);
/// Time for an answer.
pub(super) const CALL_TIME: Duration = Duration::from_secs(30);

/// The path of the route that answered, for the metrics: a bounded number of values.
#[derive(Debug, Clone, Copy)]
pub(super) struct RoutePath(pub(super) &'static str);

/// What the metrics' own address serves.
pub const METRICS_PATHS: [&str; 3] = ["/health", "/ready", "/metrics"];

/// The table.
#[rustfmt::skip]
pub fn table() -> Vec<Route> {
    use Scope::{Admin, Operate, Public, Read};
    let get = Method::GET;
    let post = Method::POST;
    let delete = Method::DELETE;
    vec![
        route(get.clone(), "/", Public, "The live status page.", page::show),
        route(get.clone(), "/health", Public, "Whether the engine is well: 200 unless it is unhealthy.", health::health),
        route(get.clone(), "/ready", Public, "Whether to send work here: 200, or 503 with the reason.", health::ready),
        route(get.clone(), "/metrics", Public, "Figures for Prometheus.", metrics::scrape),
        route(get.clone(), "/api/v1/openapi.json", Public, "This document.", openapi::show),
        route(get.clone(), "/api/v1/workers/stats", Read, "What every worker of every engine has done.", workers::stats),
        route(get.clone(), "/api/v1/workers/queue", Read, "The queue in figures.", workers::queue),
        route(post.clone(), "/api/v1/workers/scale", Operate, "Pins the number of sync workers, or releases the pin.", workers::scale),
        route(delete.clone(), "/api/v1/workers/scale", Operate, "Releases the pin.", workers::release),
        route(get.clone(), "/api/v1/scaler", Read, "What the scaler decided, and why.", scaling::show),
        route(get.clone(), "/api/v1/jobs", Read, "Lists jobs in the order of their creation.", jobs::list),
        route(post.clone(), "/api/v1/jobs", Operate, "Submits test jobs.", jobs::submit),
        route(post.clone(), "/api/v1/jobs/retry", Operate, "Runs again what a filter finds: dead jobs unless it names a state.", bulk::retry_many),
        route(post.clone(), "/api/v1/jobs/cancel", Operate, "Cancels what a filter finds, never a sync job.", bulk::cancel_many),
        route(get.clone(), "/api/v1/jobs/{id}", Read, "A job with its errors.", jobs::get),
        route(post.clone(), "/api/v1/jobs/{id}/retry", Operate, "Runs a dead or scheduled job now.", jobs::retry),
        route(delete.clone(), "/api/v1/jobs/{id}", Operate, "Cancels a job. A sync job is discarded: that takes the scope admin and confirm=discard.", jobs::delete),
        route(get.clone(), "/api/v1/queue", Read, "What is paused.", queue::show),
        route(post.clone(), "/api/v1/queue/pause", Operate, "Pauses a kind, a branch or everything. Running jobs go on.", queue::pause),
        route(post.clone(), "/api/v1/queue/resume", Operate, "Ends a pause.", queue::resume),
        route(get.clone(), "/api/v1/branches", Read, "Lists branches by name.", branches::list),
        route(post.clone(), "/api/v1/branches", Operate, "Forks a branch off another one.", branching::create),
        route(get.clone(), "/api/v1/branches/{id}", Read, "A branch, by id or by name (project%2Fbranch).", branches::get),
        route(get.clone(), "/api/v1/branches/{id}/stats", Read, "What a branch adds up to.", branches::stats),
        route(post.clone(), "/api/v1/branches/{id}/archive", Operate, "Archives a branch, which stops its capture, or takes it back.", branching::archive),
        route(delete, "/api/v1/branches/{id}", Admin, "Deletes a branch. That takes confirm=NAME.", branching::delete),
        route(get.clone(), "/api/v1/captures", Read, "Lists captures by the name of their branch.", captures::list),
        route(post.clone(), "/api/v1/captures/{id}/pause", Operate, "Pauses a capture; its checkpoint stays. By its id, or its branch's.", captures::pause),
        route(post, "/api/v1/captures/{id}/resume", Operate, "Goes on with a paused capture.", captures::resume),
        route(get, "/api/v1/events", Read, "What happens, as server-sent events: status each second, decision, job, capture, branch, scale, pauses.", events::stream),
    ]
}

/// The router of `routes`. The caller is expected in the request's extensions; without one, only what is public is there.
pub(super) fn router(api: &Arc<Api>, routes: Vec<Route>) -> Router {
    let mut router = Router::new();
    for route in routes {
        let (api, route) = (api.clone(), Arc::new(route));
        let (path, filter) = (route.path, filter_of(&route.method));
        let handler = move |params: Result<RawPathParams, RawPathParamsRejection>, request: Request| {
            let (api, route) = (api.clone(), route.clone());
            async move {
                let path = RoutePath(route.path);
                let answer = match params {
                    Ok(params) => {
                        let id = params.iter().next().map(|(_, value)| value.to_owned()).unwrap_or_default();
                        serve(&api, &route, id, request).await
                    }
                    Err(_) => Err(Problem::bad_request("the path is no UTF-8")),
                };
                let mut response = answer.unwrap_or_else(IntoResponse::into_response);
                response.extensions_mut().insert(path);
                response
            }
        };
        router = router.route(path, MethodRouter::new().on(filter, handler));
    }
    router
        .fallback(async |request: Request| Problem::not_found(format!("there is no {}; see /api/v1/openapi.json", request.uri().path())))
        .method_not_allowed_fallback(async |request: Request| {
            let said = format!("{} does not take {}", request.uri().path(), request.method());
            Problem::new(StatusCode::METHOD_NOT_ALLOWED, "method_not_allowed", said)
        })
}

/// The three methods of the table.
fn filter_of(method: &Method) -> MethodFilter {
    MethodFilter::try_from(method.clone()).unwrap_or(MethodFilter::GET)
}

async fn serve(api: &Arc<Api>, route: &Arc<Route>, id: String, request: Request) -> Result<Response, Problem> {
    let (mut parts, body) = request.into_parts();
    let caller = parts.extensions.remove::<Caller>().unwrap_or(Caller { scope: Scope::Public, name: "anonymous".into() });
    check_scope(&caller, route)?;
    let (body, _held) = match route.method {
        Method::GET => (Bytes::new(), None),
        _ => {
            let length = parts.headers.get(CONTENT_LENGTH).and_then(|l| l.to_str().ok()?.parse::<u64>().ok());
            let (body, held) = read_body(api, body, length, parts.extensions.get::<Arc<Ticket>>()).await?;
            (body, held)
        }
    };
    let is_local = caller.is_local();
    let call = RawCall {
        api: api.clone(),
        caller,
        id,
        query: parts.uri.query().unwrap_or_default().to_owned(),
        content_type: parts.headers.get(CONTENT_TYPE).and_then(|t| t.to_str().ok()).map(str::to_owned),
        body,
    };
    // What tells that the process lives must not wait for what may hang.
    let place = if route.scope == Scope::Public {
        None
    } else {
        // The control socket has places of its own: whoever operates this engine gets through when the network has taken all others.
        let places = if is_local { &api.local_calls } else { &api.calls };
        let place = places.clone().try_acquire_owned();
        Some(place.map_err(|_| Problem::busy("as many requests are at work as this engine does at once"))?)
    };
    let task = tokio::spawn({
        let route = route.clone();
        async move {
            let _place = place;
            (route.handler)(call).await
        }
    });
    match tokio::time::timeout(CALL_TIME, task).await {
        Ok(Ok(response)) => Ok(response),
        Ok(Err(panic)) => {
            tracing::error!(route = ?route, error = %panic, "a handler panicked");
            Err(Problem::new(
                StatusCode::INTERNAL_SERVER_ERROR,
                "unknown",
                "this request has met a bug; the engine goes on, its log says where",
            ))
        }
        Err(_) => {
            let said = format!("not done after {} s; it may still happen", CALL_TIME.as_secs());
            Err(Problem::new(StatusCode::GATEWAY_TIMEOUT, "timeout", said))
        }
    }
}

fn check_scope(caller: &Caller, route: &Route) -> Result<(), Problem> {
    if caller.scope >= route.scope {
        return Ok(());
    }
    let needed = route.scope.name();
    if caller.scope == Scope::Public {
        return Err(Problem::unauthorized(format!(
            "this takes a token of scope {needed}, and none was sent, or one that is not ours: send Authorization: Bearer TOKEN"
        )));
    }
    Err(Problem::forbidden(format!("this takes the scope {needed}, and the token has {}", caller.scope.name())))
}

/// Memory is taken as bytes arrive, not as they are announced. While a body arrives its connection counts as one without a complete request.
async fn read_body(
    api: &Api,
    body: Body,
    announced: Option<u64>,
    ticket: Option<&Arc<Ticket>>,
) -> Result<(Bytes, Option<OwnedSemaphorePermit>), Problem> {
    let too_large = || {
        let said = format!("a body may have {BODY_BYTES} bytes");
        Problem::new(StatusCode::PAYLOAD_TOO_LARGE, "payload_too_large", said)
    };
    if announced.is_some_and(|length| length > BODY_BYTES as u64) {
        return Err(too_large());
    }
    if let Some(ticket) = ticket {
        ticket.waiting(clock::now());
    }
    let reading = async {
        let (mut body, mut read) = (body, BytesMut::new());
        let mut held: Option<OwnedSemaphorePermit> = None;
        while let Some(frame) = body.frame().await {
            let frame = frame.map_err(|e| Problem::bad_request(format!("the body broke off: {e}")))?;
            let Ok(data) = frame.into_data() else { continue }; // trailers say nothing to us
            if read.len() + data.len() > BODY_BYTES {
                return Err(too_large());
            }
            let bytes = u32::try_from(data.len()).unwrap_or(u32::MAX);
            let permit = api.bodies.clone().try_acquire_many_owned(bytes);
            let permit = permit.map_err(|_| Problem::busy("too many request bodies at once"))?;
            // One for all: a body may come byte by byte.
            match &mut held {
                Some(held) => held.merge(permit),
                None => held = Some(permit),
            }
            read.extend_from_slice(&data);
        }
        Ok((read.freeze(), held))
    };
    let read = tokio::time::timeout(BODY_TIME, reading).await;
    if let Some(ticket) = ticket {
        ticket.busy();
    }
    read.map_err(|_| {
        let said = format!("the body has not arrived within {} s", BODY_TIME.as_secs());
        Problem::new(StatusCode::REQUEST_TIMEOUT, "timeout", said)
    })?
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_line_of_the_table_is_one_of_a_kind_and_says_what_it_does() {
        let table = table();
        for (i, line) in table.iter().enumerate() {
            assert!(!table[i + 1..].iter().any(|other| (other.path, &other.method) == (line.path, &line.method)), "{line:?} twice");
            assert!(line.about.ends_with('.'), "{line:?}");
            assert!([Method::GET, Method::POST, Method::DELETE].contains(&line.method), "{line:?}");
            assert!(line.path.matches('{').count() <= 1 && (line.path.contains('{') == line.path.contains("{id}")), "{line:?}");
            let changes = line.method != Method::GET;
            assert_eq!(
                changes,
                line.scope >= Scope::Operate,
                "{line:?}: what changes something takes a right, what looks takes no more than that"
            );
        }
        for path in METRICS_PATHS {
            assert!(table.iter().any(|line| line.path == path && line.scope == Scope::Public), "{path}");
        }
    }
}
