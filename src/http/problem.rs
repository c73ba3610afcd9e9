//! Owns: what is answered instead of a result: a status, a code for programs and a sentence for people. Does not own: the sentences.

use std::time::Duration;

use axum::http::StatusCode;
use axum::http::header::{HeaderValue, RETRY_AFTER, WWW_AUTHENTICATE};
use axum::response::{IntoResponse, Response};
use schemars::JsonSchema;
use serde::Serialize;

use crate::fault::{Fault, Kind};

/// A refusal or failure on its way to the client.
#[derive(Debug, Clone)]
pub struct Problem {
    pub status: StatusCode,
    pub code: &'static str,
    pub message: String,
    /// Whole seconds until it may work.
    retry_after: Option<u64>,
}

/// The JSON of every error.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, serde::Deserialize, JsonSchema)]
pub struct ErrorAnswer {
    pub error: ErrorBody,
}

/// What went wrong.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, serde::Deserialize, JsonSchema)]
pub struct ErrorBody {
    /// For programs: one word that does not change.
    pub code: String,
    /// For people: names the thing and the way out.
    pub message: String,
}

impl Problem {
    pub fn new(status: StatusCode, code: &'static str, message: impl Into<String>) -> Self {
        Self { status, code, message: message.into(), retry_after: None }
    }

    /// 400: the request says something that cannot be.
    pub fn bad_request(message: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, "bad_request", message)
    }

    /// 404.
    pub fn not_found(message: impl Into<String>) -> Self {
        Self::new(StatusCode::NOT_FOUND, "not_found", message)
    }

    /// 409: what the thing is now does not allow it.
    pub fn conflict(message: impl Into<String>) -> Self {
        Self::new(StatusCode::CONFLICT, "conflict", message)
    }

    /// 401, with the scheme that is asked for.
    pub(super) fn unauthorized(message: impl Into<String>) -> Self {
        Self::new(StatusCode::UNAUTHORIZED, "unauthorized", message)
    }

    /// 403.
    pub(super) fn forbidden(message: impl Into<String>) -> Self {
        Self::new(StatusCode::FORBIDDEN, "forbidden", message)
    }

    /// 503 with a hint when to come back.
    pub(super) fn busy(message: impl Into<String>) -> Self {
        Self::new(StatusCode::SERVICE_UNAVAILABLE, "busy", message).retry_after(Duration::from_secs(1))
    }

    /// Says when to come back, in whole seconds, at least one.
    #[must_use]
    pub(super) fn retry_after(self, wait: Duration) -> Self {
        let seconds = wait.as_secs() + u64::from(wait.subsec_nanos() > 0);
        Self { retry_after: Some(seconds.max(1)), ..self }
    }
}

impl From<Fault> for Problem {
    /// The word of the kind is the one that the command line prints with `--json`.
    fn from(fault: Fault) -> Self {
        let (status, code) = match fault.kind {
            Kind::Transient => (StatusCode::SERVICE_UNAVAILABLE, "transient"),
            Kind::Unknown => (StatusCode::INTERNAL_SERVER_ERROR, "unknown"),
            Kind::Fenced => (StatusCode::CONFLICT, "fenced"),
            Kind::Missing => (StatusCode::NOT_FOUND, "missing"),
            Kind::Rejected => (StatusCode::CONFLICT, "rejected"),
            Kind::Corrupt => (StatusCode::INTERNAL_SERVER_ERROR, "corrupt"),
            Kind::Config => (StatusCode::BAD_REQUEST, "config"),
            Kind::HistoryLost => (StatusCode::GONE, "historylost"),
            Kind::Cancelled => (StatusCode::SERVICE_UNAVAILABLE, "cancelled"),
        };
        let wait = fault.retry_after.or((status == StatusCode::SERVICE_UNAVAILABLE).then_some(Duration::from_secs(1)));
        let problem = Self::new(status, code, fault.what);
        match wait {
            Some(wait) => problem.retry_after(wait),
            None => problem,
        }
    }
}

impl IntoResponse for Problem {
    fn into_response(self) -> Response {
        let body = ErrorAnswer { error: ErrorBody { code: self.code.to_owned(), message: self.message } };
        let mut response = super::call::json(self.status, &body);
        if let Some(seconds) = self.retry_after {
            response.headers_mut().insert(RETRY_AFTER, HeaderValue::from(seconds));
        }
        if self.status == StatusCode::UNAUTHORIZED {
            response.headers_mut().insert(WWW_AUTHENTICATE, HeaderValue::from_static("Bearer realm=\"argon\""));
        }
        response
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_kind_of_fault_has_a_fitting_status_and_those_that_pass_say_when_to_come_back() {
        for (fault, status, wait) in [
            (Fault::transient("x"), 503, Some("1")),
            (Fault { retry_after: Some(Duration::from_millis(2500)), ..Fault::transient("x") }, 503, Some("3")),
            (Fault::unknown("x"), 500, None),
            (Fault::fenced("x"), 409, None),
            (Fault::missing("x"), 404, None),
            (Fault::rejected("x"), 409, None),
            (Fault::corrupt("x"), 500, None),
            (Fault::config("x"), 400, None),
            (Fault::history_lost("x"), 410, None),
        ] {
            let code = format!("{:?}", fault.kind).to_lowercase();
            let problem = Problem::from(fault);
            assert_eq!(problem.code, code, "the command line's word");
            let response = problem.into_response();
            assert_eq!(response.status().as_u16(), status);
            assert_eq!(response.headers().get(RETRY_AFTER).map(|v| v.to_str().unwrap()), wait);
        }
    }
}
