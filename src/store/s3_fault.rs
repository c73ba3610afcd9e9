//! Owns: the one classification of what S3, or anything that speaks like it, answers when it does not do as asked. Pure.
//! Does not own: refused conditions, which are answers and no faults (`s3`), or repeating.

use std::error::Error;
use std::io::ErrorKind;
use std::time::Duration;

use aws_sdk_s3::config::http::HttpResponse;
use aws_sdk_s3::error::{ProvideErrorMetadata, SdkError};

use crate::fault::{Fault, Kind};
use crate::runtime::tls;

const SPEAKS_TLS: &str = "if it speaks TLS, write https:// into ARGON_S3_ENDPOINT (and name an authority of your own with AWS_CA_BUNDLE)";

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

const NO_BUCKET: &str = "bucket BUCKET does not exist: create it, or correct ARGON_STORE_URL";

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
            let said = error
                .message()
                .or_else(|| std::str::from_utf8(response.body().bytes()?).ok().filter(|text| !text.trim_start().starts_with('<')));
            let wait = response.headers().get("retry-after").and_then(|text| text.trim().parse().ok()).map(Duration::from_secs);
            asked.answered(Answer {
                status: response.status().as_u16(),
                code: error.code().unwrap_or(""),
                message: said.and_then(|text| text.lines().map(str::trim).find(|line| !line.is_empty())).map_or("", cut),
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
            ))
            .next("export AWS_ACCESS_KEY_ID=… AWS_SECRET_ACCESS_KEY=…");
        }
        // Behind a handshake the same words are those of a connection that broke.
        if let Some(trouble) = tls::trouble(why, &tls::S3).filter(|_| !sent) {
            let kind = if trouble.lasts { Kind::Rejected } else { Kind::Transient };
            return Fault { kind, what: format!("{what}: {trouble}"), retry_after: None, next: None };
        }
        // An alert of TLS looks like this, and any other garbage too.
        let why = match why.contains("invalid HTTP version") && self.is_plain() {
            true => format!("it does not answer in HTTP; {SPEAKS_TLS}"),
            false => why.to_owned(),
        };
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
        let (kind, advice) = match (status, code) {
            (400, "") if self.is_plain() => (Kind::Rejected, SPEAKS_TLS),
            (200..=299, "") if !self.verb.writes() => (Kind::Transient, "that is no answer of S3: check the endpoint"),
            _ => self.judge(status, code),
        };
        let mut what = format!("{}: {told}", self.what());
        if !advice.is_empty() {
            what = format!("{what}; {}", advice.replace("BUCKET", self.bucket));
        }
        let fault = Fault { kind, what, retry_after, next: None };
        match advice.starts_with(NO_BUCKET) {
            true => fault.next(self.make_bucket()),
            false => fault,
        }
    }

    /// Where the endpoint is not Amazon's it goes with the command.
    fn make_bucket(&self) -> String {
        let endpoint = self.store.split_once(" at ").map_or_else(String::new, |(_, endpoint)| format!(" --endpoint-url {endpoint}"));
        format!("aws s3 mb s3://{}{endpoint}", self.bucket)
    }

    fn is_plain(&self) -> bool {
        self.store.contains(" at http://")
    }

    fn judge(&self, status: u16, code: &str) -> (Kind, &'static str) {
        match (status, code) {
            (_, "NoSuchBucket") => (Kind::Rejected, NO_BUCKET),
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
            (404, _) if self.verb == Verb::List => (Kind::Rejected, NO_BUCKET),
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

/// Longest part of an answer in another form than S3's that is passed on.
const MAX_SAID: usize = 160;

fn cut(text: &str) -> &str {
    let end = (0..=MAX_SAID.min(text.len())).rev().find(|end| text.is_char_boundary(*end));
    text.get(..end.unwrap_or(0)).unwrap_or_default()
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
        assert_eq!(fault.next.as_deref(), Some("aws s3 mb s3://shop"));
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
    fn trouble_with_tls_is_said_with_the_setting_that_ends_it() {
        let at = |store: &'static str| Asked { verb: Verb::Put, key: "k", bucket: "shop", store };
        let (secure, plain) = (at("s3://shop at https://h:1"), at("s3://shop at http://h:1"));
        let prefix = "dispatch failure: io error: client error (Connect): TLS handshake failed: ";
        for (why, kind, says) in [
            ("invalid peer certificate: UnknownIssuer", Kind::Rejected, "AWS_CA_BUNDLE"),
            ("received corrupt message of type InvalidContentType", Kind::Rejected, "write http:// into ARGON_S3_ENDPOINT"),
            ("tls handshake eof", Kind::Transient, "write http:// into ARGON_S3_ENDPOINT"),
        ] {
            let fault = secure.no_answer(&format!("{prefix}{why}"), false);
            assert!(fault.kind == kind && fault.what.contains(says) && !fault.what.contains("dispatch"), "{fault}");
            assert_eq!(secure.no_answer(why, true).kind, Kind::Unknown, "a connection that worked before: {why}");
        }
        let told = "Client sent an HTTP request to an HTTPS server.";
        let answer = Answer { status: 400, message: told, ..Answer::default() };
        let fault = plain.answered(answer);
        assert!(fault.kind == Kind::Rejected && fault.what.contains(told) && fault.what.contains("write https://"), "{fault}");
        assert!(!secure.answered(answer).what.contains("write https://"));
        let alert = plain.no_answer("dispatch failure: other: invalid HTTP version parsed", true);
        assert!(alert.kind == Kind::Unknown && alert.what.contains("write https://"), "{alert}");
    }

    #[test]
    fn what_is_no_answer_of_s3_is_passed_on_in_one_short_line() {
        let answer = Answer { status: 200, message: cut("It looks like you are trying to access MongoDB over HTTP"), ..Answer::default() };
        let fault = asked(Verb::List).answered(answer);
        assert!(fault.kind == Kind::Transient && fault.what.contains("MongoDB over HTTP; that is no answer of S3"), "{fault}");
        assert_eq!(cut(&"ä".repeat(200)).len(), MAX_SAID);
    }

    #[test]
    fn refused_and_failing_connects_were_never_sent() {
        let refused = std::io::Error::from(ErrorKind::ConnectionRefused);
        let reset = std::io::Error::from(ErrorKind::ConnectionReset);
        assert!(never_sent(&refused));
        assert!(!never_sent(&reset));
    }
}
