//! `GET /`: the live status page, one file that is part of the binary.
//!
//! Owns: serving it, with a policy under which a browser runs this script and no other. Does not own: the page (`page/index.html`), what it shows
//! (the rest of the API, which it asks with the token of whoever looks).

use std::sync::LazyLock;

use axum::body::Body;
use axum::http::header::{CONTENT_SECURITY_POLICY, REFERRER_POLICY, X_FRAME_OPTIONS};
use axum::http::{HeaderValue, StatusCode};
use axum::response::Response;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use schemars::SchemaGenerator;
use sha2::{Digest, Sha256};

use super::call::{Answer, Call, Described, NoBody, NoQuery, with_type};
use super::problem::Problem;

const PAGE: &str = include_str!("page/index.html");
const TYPE: &str = "text/html; charset=utf-8";

/// Nothing from elsewhere, and of what is inside only the one script and the one style sheet, by their hashes.
static POLICY: LazyLock<Option<HeaderValue>> = LazyLock::new(|| {
    let hash = |tag| inside(PAGE, tag).map(|text| STANDARD.encode(Sha256::digest(text)));
    let (script, style) = (hash("script")?, hash("style")?);
    let policy = format!(
        "default-src 'none'; script-src 'sha256-{script}'; style-src 'sha256-{style}'; connect-src 'self'; img-src data:; \
         base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    );
    HeaderValue::from_str(&policy).ok()
});

/// What stands between `<tag>` and `</tag>`, if that is there exactly once.
fn inside<'a>(page: &'a str, tag: &str) -> Option<&'a str> {
    let (open, close) = (format!("<{tag}>"), format!("</{tag}>"));
    let (_, rest) = page.split_once(&open)?;
    let (text, after) = rest.split_once(&close)?;
    (!after.contains(&open) && !text.contains(&open)).then_some(text)
}

/// The page.
#[derive(Debug)]
pub(super) struct Html;

impl Answer for Html {
    fn respond(self) -> Response {
        let mut response = with_type(StatusCode::OK, TYPE, Body::from(PAGE));
        let headers = response.headers_mut();
        if let Some(policy) = &*POLICY {
            headers.insert(CONTENT_SECURITY_POLICY, policy.clone());
        }
        headers.insert(REFERRER_POLICY, HeaderValue::from_static("no-referrer"));
        headers.insert(X_FRAME_OPTIONS, HeaderValue::from_static("DENY"));
        response
    }

    fn describe(_: &mut SchemaGenerator) -> Vec<Described> {
        vec![Described { status: 200, about: "The page.", content_type: TYPE, schema: None }]
    }
}

/// The page holds nothing of anybody: what it shows it asks for.
pub(super) async fn show(_: Call<NoQuery, NoBody>) -> Result<Html, Problem> {
    Ok(Html)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_browser_may_run_this_script_and_load_nothing_from_elsewhere() {
        let policy = POLICY.as_ref().unwrap().to_str().unwrap();
        assert!(policy.starts_with("default-src 'none'; script-src 'sha256-"), "{policy}");
        for foreign in
            ["src=\"http", "href=\"http", "url(http", "@import", "//cdn", "onclick=", "onload=", "style=\"", "innerHTML", "eval("]
        {
            assert!(!PAGE.contains(foreign), "{foreign}");
        }
        assert_eq!(inside("<a>x</a>", "a"), Some("x"));
        assert_eq!(inside("<a>x</a><a>y</a>", "a"), None, "a second one would have no hash");
        assert!(PAGE.len() < 256 << 10, "it is in every binary");
    }
}
