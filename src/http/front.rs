//! What stands before the routes on a network listener: whether a request is one that may be answered, who asks, and how often.
//!
//! Owns: framing rules beyond hyper's, Host and Origin, authentication, the rate limit, counting answers. Does not own: connections
//! (`network`), scopes of routes (`routes`).

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use axum::Router;
use axum::body::Body;
use axum::http::header::{AUTHORIZATION, CONNECTION, HOST, HeaderValue, ORIGIN, SERVER};
use axum::http::{HeaderMap, Method, Request, Version, uri::Authority};
use axum::response::{IntoResponse, Response};
use parking_lot::Mutex;
use tower_service::Service;

use super::auth::{Caller, Scope, Tokens};
use super::connections::client_of;
use super::limit::Buckets;
use super::problem::Problem;
use super::routes::RoutePath;
use crate::runtime::clock;
use crate::telemetry::metrics::{HTTP_REQUESTS, Metrics};

/// Who a bucket belongs to: an address, and a token there. Somebody who guesses tokens empties a bucket of his own.
type Client = (IpAddr, String);

/// Everything a request passes before it reaches a route.
#[derive(Debug)]
pub(super) struct Front {
    router: Router,
    metrics: Metrics,
    /// `None`: nobody is asked, and only public routes are there.
    tokens: Option<Arc<Tokens>>,
    limit: Option<Mutex<Buckets<Client>>>,
    /// Nobody has to show a token: then no page of a browser may speak for him either.
    guard: Option<Guard>,
}

/// What an unauthenticated listener asks of Host and Origin.
#[derive(Debug, Clone, Copy)]
struct Guard {
    bound: SocketAddr,
    /// Clients show a certificate for a name; a browser does that for any page.
    trusted: bool,
}

impl Front {
    /// For the API. `trusted` clients have shown a certificate.
    pub(super) fn api(router: Router, metrics: Metrics, tokens: Arc<Tokens>, rate: u32, bound: SocketAddr, trusted: bool) -> Self {
        let guard = tokens.is_open().then_some(Guard { bound, trusted });
        let limit = (rate > 0).then(|| Mutex::new(Buckets::new(f64::from(rate), f64::from(rate) * 2.0)));
        Self { router, metrics, tokens: Some(tokens), limit, guard }
    }

    /// For metrics and health only.
    pub(super) fn public(router: Router, metrics: Metrics) -> Self {
        Self { router, metrics, tokens: None, limit: None, guard: None }
    }

    /// The answer to a request.
    pub(super) async fn answer(&self, peer: IpAddr, mut request: Request<Body>) -> Response {
        let mut response = match self.admit(peer, &request) {
            Ok(caller) => {
                request.extensions_mut().insert(caller);
                match self.router.clone().call(request).await {
                    Ok(response) => response,
                    Err(never) => match never {},
                }
            }
            Err(problem) => {
                let mut response = problem.into_response();
                // What follows on this connection is not worth a guess.
                response.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
                response
            }
        };
        let route = response.extensions().get::<RoutePath>().map_or("other", |path| path.0);
        self.metrics.count(&HTTP_REQUESTS, &[route, response.status().as_str()]);
        response.headers_mut().insert(SERVER, HeaderValue::from_static("argon"));
        response
    }

    fn admit(&self, peer: IpAddr, request: &Request<Body>) -> Result<Caller, Problem> {
        check_framing(request)?;
        if let Some(guard) = self.guard {
            guard.check(request)?;
        }
        let api = request.uri().path().starts_with("/api/");
        let caller = self.caller(request.headers());
        if api && let Some(limit) = &self.limit {
            let name = caller.as_ref().map(|c| c.name.clone()).unwrap_or_default();
            let taken = limit.lock().take(&(client_of(peer), name), clock::now());
            taken.map_err(|wait| {
                let status = axum::http::StatusCode::TOO_MANY_REQUESTS;
                Problem::new(status, "too_many_requests", "more requests than ARGON_API_RATE allows a client: come back later")
                    .retry_after(wait)
            })?;
        }
        // What anyone may see is not refused to somebody who shows a wrong token; everything else is (`routes`).
        Ok(caller.unwrap_or_else(anonymous))
    }

    fn caller(&self, headers: &HeaderMap) -> Option<Caller> {
        let Some(tokens) = &self.tokens else { return Some(anonymous()) };
        let mut given = headers.get_all(AUTHORIZATION).iter();
        match (given.next(), given.next()) {
            (None, _) => tokens.caller(None),
            (Some(one), None) => tokens.caller(Some(one.to_str().unwrap_or_default())),
            (Some(_), Some(_)) => None,
        }
    }
}

fn anonymous() -> Caller {
    Caller { scope: Scope::Public, name: "anonymous".into() }
}

/// What hyper lets pass although it has no one meaning.
fn check_framing(request: &Request<Body>) -> Result<(), Problem> {
    if request.method() == Method::CONNECT {
        return Err(Problem::new(axum::http::StatusCode::METHOD_NOT_ALLOWED, "method_not_allowed", "this is no proxy"));
    }
    if !request.uri().path().starts_with('/') {
        return Err(Problem::bad_request("the target of a request is a path that begins with /"));
    }
    let hosts = request.headers().get_all(HOST).iter().count();
    if hosts > 1 || hosts == 0 && request.version() > Version::HTTP_10 {
        return Err(Problem::bad_request("a request has exactly one Host header"));
    }
    // Where both are given they name one server, else somebody on the way may have understood another one than we do.
    if let (Some(authority), Some(host)) = (request.uri().authority(), host_of(request))
        && !authority.as_str().eq_ignore_ascii_case(host)
    {
        return Err(Problem::bad_request("target and Host header name different servers"));
    }
    Ok(())
}

fn host_of(request: &Request<Body>) -> Option<&str> {
    request.headers().get(HOST)?.to_str().ok()
}

impl Guard {
    /// A name that somebody else controls may lead to 127.0.0.1 (DNS rebinding), and a page in the operator's browser then talks to this listener as
    /// if it were its own server. The name it uses is in Host, and a page's own address is in Origin: both must be ours.
    fn check(self, request: &Request<Body>) -> Result<(), Problem> {
        let refused = |what: &str| {
            Err(Problem::forbidden(format!(
                "{what}: without a token this listener answers to localhost and its own address only, and to no page of another server; set ARGON_API_TOKEN"
            )))
        };
        // On an address that others reach, names cannot be known: that was allowed with ARGON_ALLOW_UNAUTHENTICATED.
        let loopback = self.bound.ip().to_canonical().is_loopback();
        if loopback
            && !self.trusted
            && let Some(host) = host_of(request)
            && !self.is_ours(host)
        {
            return refused("this Host is not ours");
        }
        let own = host_of(request).unwrap_or_default();
        match request.headers().get(ORIGIN).map(|o| o.to_str().unwrap_or_default()) {
            Some(origin) if origin.split_once("://").is_none_or(|(_, rest)| !rest.eq_ignore_ascii_case(own)) => {
                refused("this Origin is not ours")
            }
            _ => Ok(()),
        }
    }

    fn is_ours(self, host: &str) -> bool {
        let Ok(authority) = host.parse::<Authority>() else { return false };
        let name = authority.host().trim_start_matches('[').trim_end_matches(']');
        name.eq_ignore_ascii_case("localhost") || name.parse::<IpAddr>().is_ok_and(|ip| ip.to_canonical().is_loopback())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request(version: Version, target: &str, headers: &[(&'static str, &str)]) -> Request<Body> {
        let mut request = Request::builder().version(version).uri(target).body(Body::empty()).unwrap();
        for (name, value) in headers {
            request.headers_mut().append(*name, value.parse().unwrap());
        }
        request
    }

    #[test]
    fn a_request_names_one_server() {
        let status = |version, target: &str, headers: &[(&'static str, &str)]| {
            check_framing(&request(version, target, headers)).map_err(|p| p.status.as_u16())
        };
        assert_eq!(status(Version::HTTP_11, "/health", &[("host", "a")]), Ok(()));
        assert_eq!(status(Version::HTTP_10, "/health", &[]), Ok(()));
        assert_eq!(status(Version::HTTP_11, "/health", &[]), Err(400));
        assert_eq!(status(Version::HTTP_11, "/health", &[("host", "a"), ("host", "a")]), Err(400));
        assert_eq!(status(Version::HTTP_11, "http://a/health", &[("host", "a")]), Ok(()));
        assert_eq!(status(Version::HTTP_11, "http://b/health", &[("host", "a")]), Err(400));
        assert_eq!(status(Version::HTTP_11, "*", &[("host", "a")]), Err(400));
    }

    #[test]
    fn an_open_listener_answers_to_its_own_names_and_to_no_foreign_page() {
        let guard = Guard { bound: "127.0.0.1:8080".parse().unwrap(), trusted: false };
        let fine = |headers: &[(&'static str, &str)]| guard.check(&request(Version::HTTP_11, "/", headers)).is_ok();
        for host in ["127.0.0.1:8080", "localhost:8080", "LocalHost", "[::1]:8080", "127.0.0.2"] {
            assert!(fine(&[("host", host)]), "{host}");
        }
        for host in ["evil.example:8080", "10.0.0.1:8080", "localhost.evil.example", "", "127.0.0.1.evil.example", "user@evil.example"] {
            assert!(!fine(&[("host", host)]), "{host}");
        }
        assert!(fine(&[("host", "localhost:8080"), ("origin", "http://localhost:8080")]));
        for origin in ["http://evil.example", "null", "http://localhost:9090", "http://localhost:8080.evil.example"] {
            assert!(!fine(&[("host", "localhost:8080"), ("origin", origin)]), "{origin}");
        }
        let told = Guard { bound: "0.0.0.0:8080".parse().unwrap(), trusted: false };
        assert!(told.check(&request(Version::HTTP_11, "/", &[("host", "argon.example")])).is_ok());
        assert!(told.check(&request(Version::HTTP_11, "/", &[("host", "argon.example"), ("origin", "http://evil.example")])).is_err());
    }
}
