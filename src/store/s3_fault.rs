//! Owns: the one classification of what S3, or anything that speaks like it, answers when it does not do as asked. Pure.
//! Does not own: refused conditions, which are answers and no faults (`s3`), or repeating.

use std::error::Error;
use std::io::ErrorKind;
use std::time::Duration;

use aws_sdk_s3::config::http::HttpResponse;
use aws_sdk_s3::error::{ProvideErrorMetadata, SdkError};

use crate::fault::{Fault, Kind};

/// What was asked, for the classification and for its sentence.
#[derive(Debug, Clone, Copy)]
pub(super) struct Asked<'a> {
    pub verb: Verb,
    pub key: &'a str,
    pub bucket: &'a str,
    /// URL and endpoint of the store.
    pub store: &'a str,
}

/// Which request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Verb {
    Get,
    Head,
    List,
    Put,
    Delete,
}

impl Verb {
    fn writes(self) -> bool {
        matches!(self, Self::Put | Self::Delete)
    }
}

/// An answer of the service.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Answer<'a> {
    pub status: u16,
    pub code: &'a str,
    pub message: &'a str,
    pub retry_after: Option<Duration>,
}

/// The one classification: nothing else in the S3 adapter decides a kind.
pub(super) fn classify<E>(asked: Asked<'_>, error: &SdkError<E, HttpResponse>) -> Fault
where
    E: ProvideErrorMetadata + Error + 'static,
{
    match error {
        SdkError::ConstructionFailure(_) => asked.no_answer(&chain(error), false),
        SdkError::TimeoutError(_) => asked.no_answer(&chain(error), true),
        SdkError::DispatchFailure(_) => asked.no_answer(&chain(error), !never_sent(error)),
        _ => {
            let Some(response) = error.raw_response() else { return asked.no_answer(&chain(error), true) };
            let wait = response.headers().get("retry-after").and_then(|text| text.trim().parse().ok()).map(Duration::from_secs);
            asked.answered(Answer {
                status: response.status().as_u16(),
                code: error.code().unwrap_or(""),
                message: error.message().unwrap_or(""),
                retry_after: wait,
            })
        }
    }
}

impl Asked<'_> {
    fn what(&self) -> String {
        let (key, store) = (self.key, self.store);
        match self.verb {
            Verb::Get => format!("reading {key} from {store}"),
            Verb::Head => format!("looking for {key} in {store}"),
            Verb::List => format!("listing {key:?} in {store}"),
            Verb::Put => format!("storing {key} in {store}"),
            Verb::Delete => format!("deleting {key} from {store}"),
        }
    }

    /// No complete answer came within the time allowed.
    pub(super) fn timed_out(&self, after: Duration) -> Fault {
        self.no_answer(&format!("no answer within {} s", after.as_secs_f64().round()), true)
    }

    /// A fault of the connection, the credentials or the time allowed. `sent`: the request may have reached the service.
    pub(super) fn no_answer(&self, why: &str, sent: bool) -> Fault {
        let what = self.what();
        if why.contains("no providers in chain") || why.contains("provider was not enabled") {
            return Fault::rejected(format!(
                "{what}: no AWS credentials were found; set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, a profile, or a role of the machine"
            ));
        }
        if why.contains("invalid peer certificate") {
            return Fault::rejected(format!(
                "{what}: {why}; the endpoint's certificate is not trusted by this machine's root certificates"
            ));
        }
        if sent && self.verb.writes() {
            return Fault::unknown(format!("{what}: {why}; it may have happened"));
        }
        Fault::transient(format!("{what}: {why}"))
    }

    /// A complete answer that is not success. HEAD answers carry no code.
    pub(super) fn answered(&self, answer: Answer<'_>) -> Fault {
        let Answer { status, code, message, retry_after } = answer;
        let told = match (code, message) {
            ("", "") => format!("the store answered {status}"),
            ("", text) => format!("the store answered {status}: {text}"),
            (code, text) => format!("the store answered {status} {code}: {text}"),
        };
        let (kind, advice) = self.judge(status, code);
        let mut what = format!("{}: {told}", self.what());
        if !advice.is_empty() {
            what = format!("{what}; {}", advice.replace("BUCKET", self.bucket));
        }
        Fault { kind, what, retry_after }
    }

    fn judge(&self, status: u16, code: &str) -> (Kind, &'static str) {
        match (status, code) {
            (_, "NoSuchBucket") => (Kind::Rejected, "bucket BUCKET does not exist: create it, or correct ARGON_STORE_URL"),
            (_, "SignatureDoesNotMatch" | "InvalidAccessKeyId" | "InvalidToken" | "ExpiredToken") => {
                (Kind::Rejected, "the AWS credentials are wrong or have expired for this endpoint: correct them and restart")
            }
            (_, "RequestTimeTooSkewed") => (Kind::Rejected, "the clock of this machine is wrong: set it"),
            (
                301 | 307 | 400,
                "PermanentRedirect" | "AuthorizationHeaderMalformed" | "TemporaryRedirect" | "IllegalLocationConstraintException",
            )
            | (301 | 307, _) => (Kind::Rejected, "bucket BUCKET is in another region: set AWS_REGION to it"),
            // The body did not arrive, or not as it was sent: nothing was stored.
            (
                400,
                "RequestTimeout"
                | "BadDigest"
                | "InvalidDigest"
                | "IncompleteBody"
                | "XAmzContentSHA256Mismatch"
                | "XAmzContentChecksumMismatch",
            ) => (Kind::Transient, ""),
            (401 | 403, _) => (
                Kind::Rejected,
                "the credentials need s3:GetObject, s3:PutObject, s3:DeleteObject on the objects and s3:ListBucket on bucket BUCKET",
            ),
            (404, _) if self.verb == Verb::List => (Kind::Rejected, "bucket BUCKET does not exist: create it, or correct ARGON_STORE_URL"),
            // No object can be missing for a put: what answers is not the bucket, an ingress whose backend is away for instance.
            (404, _) if self.verb == Verb::Put => {
                (Kind::Rejected, "there is no bucket BUCKET behind this endpoint now: check the endpoint, its path and the bucket's name")
            }
            (404, _) => (Kind::Missing, ""),
            (409 | 429, _) => (Kind::Transient, ""),
            (412, _) => (Kind::Transient, ""),
            (416, _) => (Kind::Corrupt, "the object is shorter than its index says"),
            (501, _) => (Kind::Rejected, "the store does not know conditional puts (If-None-Match)"),
            (408 | 500..=599, _) if self.verb.writes() => (Kind::Unknown, "it may have happened"),
            (408 | 500..=599, _) => (Kind::Transient, ""),
            (400..=499, _) => (Kind::Rejected, ""),
            _ if self.verb.writes() => (Kind::Unknown, "it may have happened"),
            _ => (Kind::Transient, ""),
        }
    }
}

/// Whether the request failed before a byte of it was sent: no connection, no name, no credentials.
fn never_sent(error: &(dyn Error + 'static)) -> bool {
    let mut source = Some(error);
    while let Some(error) = source {
        if let Some(io) = error.downcast_ref::<std::io::Error>()
            && matches!(io.kind(), ErrorKind::ConnectionRefused | ErrorKind::HostUnreachable | ErrorKind::NetworkUnreachable)
        {
            return true;
        }
        let text = error.to_string();
        if text.contains("(Connect)") || text.starts_with("HTTP connect") || text.contains("dns error") || text.contains("credential") {
            return true;
        }
        source = error.source();
    }
    false
}

/// The whole chain of causes in one line, each sentence once.
fn chain(error: &(dyn Error + 'static)) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(error) = source {
        let next = error.to_string();
        if !text.contains(&next) {
            text = format!("{text}: {next}");
        }
        source = error.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn asked(verb: Verb) -> Asked<'static> {
        Asked { verb, key: "k", bucket: "shop", store: "s3://shop" }
    }

    #[test]
    fn answers_are_classified_by_what_the_caller_must_do() {
        use Kind::{Corrupt, Missing, Rejected, Transient, Unknown};
        use Verb::{Delete, Get, Head, List, Put};
        for (verb, status, code, kind) in [
            (Put, 500, "InternalError", Unknown),
            (Put, 503, "SlowDown", Unknown),
            (Delete, 500, "", Unknown),
            (Put, 429, "", Transient),
            (Put, 409, "ConditionalRequestConflict", Transient),
            (Put, 409, "OperationAborted", Transient),
            (Put, 400, "BadDigest", Transient),
            (Put, 400, "RequestTimeout", Transient),
            (Put, 400, "InvalidArgument", Rejected),
            (Put, 501, "NotImplemented", Rejected),
            (Put, 404, "NoSuchBucket", Rejected),
            (Put, 404, "", Rejected),
            (Put, 404, "NoSuchKey", Rejected),
            (Put, 404, "NotFound", Rejected),
            (Delete, 404, "", Missing),
            (Put, 403, "AccessDenied", Rejected),
            (Put, 403, "SignatureDoesNotMatch", Rejected),
            (Put, 301, "PermanentRedirect", Rejected),
            (Put, 200, "", Unknown),
            (Get, 500, "", Transient),
            (Get, 503, "SlowDown", Transient),
            (Get, 404, "NoSuchKey", Missing),
            (Get, 404, "NoSuchBucket", Rejected),
            (Get, 416, "InvalidRange", Corrupt),
            (Head, 403, "", Rejected),
            (Head, 404, "", Missing),
            (List, 404, "", Rejected),
            (List, 403, "RequestTimeTooSkewed", Rejected),
        ] {
            let fault = asked(verb).answered(Answer { status, code, ..Answer::default() });
            assert_eq!(fault.kind, kind, "{verb:?} {status} {code}");
        }
    }

    #[test]
    fn sentences_name_the_bucket_and_the_way_out() {
        let fault = asked(Verb::Put).answered(Answer { status: 404, code: "NoSuchBucket", message: "gone", retry_after: None });
        assert_eq!(
            fault.what,
            "storing k in s3://shop: the store answered 404 NoSuchBucket: gone; bucket shop does not exist: create it, or correct ARGON_STORE_URL"
        );
        let nowhere = asked(Verb::Put).answered(Answer { status: 404, ..Answer::default() });
        assert!(nowhere.what.contains("no bucket shop behind this endpoint"), "{nowhere}");
        assert!(asked(Verb::Put).no_answer("no providers in chain provided credentials", false).what.contains("AWS_ACCESS_KEY_ID"));
    }

    #[test]
    fn a_wish_to_wait_is_passed_on() {
        let wait = Some(Duration::from_secs(7));
        let fault = asked(Verb::Get).answered(Answer { status: 503, code: "SlowDown", message: "", retry_after: wait });
        assert_eq!(fault.retry_after, wait);
    }

    #[test]
    fn silence_after_sending_is_unknown_for_writes_only() {
        for (verb, sent, kind) in [
            (Verb::Put, true, Kind::Unknown),
            (Verb::Delete, true, Kind::Unknown),
            (Verb::Put, false, Kind::Transient),
            (Verb::Get, true, Kind::Transient),
            (Verb::List, true, Kind::Transient),
        ] {
            assert_eq!(asked(verb).no_answer("connection reset", sent).kind, kind, "{verb:?} sent {sent}");
        }
    }

    #[test]
    fn refused_and_failing_connects_were_never_sent() {
        let refused = std::io::Error::from(ErrorKind::ConnectionRefused);
        let reset = std::io::Error::from(ErrorKind::ConnectionReset);
        assert!(never_sent(&refused));
        assert!(!never_sent(&reset));
    }
}
