//! Owns: what an error of the mongodb driver means to a caller, for ledger and feed alike.
//! Does not own: retrying.

use std::io;

use mongodb::error::{Error, ErrorKind, TRANSIENT_TRANSACTION_ERROR, UNKNOWN_TRANSACTION_COMMIT_RESULT, WriteFailure};

use super::secrets::mask;
use crate::fault::{Fault, Kind};
use crate::runtime::tls::{self, Trouble};

/// Longest message of a driver error that is passed on.
const MAX_MESSAGE: usize = 400;

/// The way out when a history has ended.
pub(crate) const START_ANEW: &str = "start a capture of the database into another branch, which copies what is there";

/// What was being done when the error came.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Phase {
    /// Opening a change stream: errors about the resume token mean that the position is lost.
    Open,
    /// Reading an open change stream.
    Read,
    /// Anything else.
    Run,
}

/// The fault of a driver error. One line, without secrets; what is not recognised is [`Kind::Unknown`].
pub fn classify(error: &Error, phase: Phase) -> Fault {
    let message = message(error);
    let commit_open = error.contains_label(UNKNOWN_TRANSACTION_COMMIT_RESULT);
    if let Some(fault) = code(error).and_then(|code| by_code(code, &message, phase)) {
        return open_if(commit_open, fault);
    }
    let kind = match &*error.kind {
        // The labels say it for whole transactions: the first did not happen, of the second nobody knows.
        _ if commit_open => Kind::Unknown,
        _ if error.contains_label(TRANSIENT_TRANSACTION_ERROR) => Kind::Transient,
        ErrorKind::ServerSelection { .. } => return selection(&error.kind.to_string()),
        ErrorKind::DnsResolve { .. } | ErrorKind::ConnectionPoolCleared { .. } => Kind::Transient,
        ErrorKind::Io(e) => return network(e, &message),
        ErrorKind::Authentication { .. } => return authentication(error, &message),
        ErrorKind::SessionsNotSupported => return standalone(None),
        ErrorKind::InvalidArgument { .. } | ErrorKind::IncompatibleServer { .. } => Kind::Rejected,
        ErrorKind::InvalidTlsConfig { .. } => Kind::Config,
        ErrorKind::Bson(_) => Kind::Corrupt,
        ErrorKind::Shutdown => Kind::Cancelled,
        _ => Kind::Unknown,
    };
    fault(kind, format!("MongoDB: {message}"))
}

/// SUBTLE: the code is about the last try alone. A commit that was lost on its way and then met a server that is no primary any more may have
/// happened, and only the label says so.
fn open_if(commit_open: bool, fault: Fault) -> Fault {
    if commit_open && fault.kind == Kind::Transient { Fault { kind: Kind::Unknown, ..fault } } else { fault }
}

/// The fault of an error outside the opening of a stream.
pub(super) fn fault_of(error: Error) -> Fault {
    classify(&error, Phase::Run)
}

/// What a set of one member needs, in the shell of MongoDB.
pub(super) const INITIATE: &str = "mongosh --eval 'rs.initiate()'";
/// Whether the URI works at all.
const TRY_URI: &str = "mongosh \"$ARGON_MONGODB_URI\" --eval 'db.hello()'";

/// A standalone server can do neither change streams nor transactions.
pub(super) fn standalone(address: Option<&str>) -> Fault {
    let at = address.map_or_else(String::new, |a| format!(" at {a}"));
    Fault::rejected(format!(
        "MongoDB{at} is a standalone: change streams and transactions need a replica set: start it with --replSet rs0 (or replication.replSetName in mongod.conf), once more with its data, then initiate the set"
    ))
    .next(INITIATE)
}

/// The server's code of an error, of whatever shape.
pub(crate) fn code(error: &Error) -> Option<i32> {
    match &*error.kind {
        ErrorKind::Command(e) => Some(e.code),
        ErrorKind::Write(WriteFailure::WriteError(e)) => Some(e.code),
        ErrorKind::InsertMany(e) => e.write_errors.as_ref().and_then(|w| w.first()).map(|w| w.code),
        _ => None,
    }
}

/// A unique index refused the write.
pub(super) fn is_duplicate(error: &Error) -> bool {
    code(error) == Some(11000)
}

fn by_code(code: i32, message: &str, phase: Phase) -> Option<Fault> {
    let kind = match code {
        286 | 280 | 464 | 136 => return Some(history_lost(code, message)),
        260 | 50811 if phase == Phase::Open => return Some(history_lost(code, message)),
        10334 if phase != Phase::Run => return Some(too_large(code, message)),
        13 => return Some(unauthorized(message)),
        18 => return Some(refused_login(message)),
        8000 if message.to_ascii_lowercase().contains("auth") => return Some(refused_login(message)),
        20 if message.contains("replica set") => return Some(standalone(None)),
        40573 => return Some(standalone(None)),
        // NotWritablePrimary and its kin are said before anything is done; an operation that was interrupted
        // by a step down (189, 11600, 11602, 91) may have been done in part and stays unknown.
        10107 | 13435 | 13436 | 10058 => Kind::Transient,
        // Write conflict, lock timeout, no primary found, out of disk: nothing was written.
        112 | 24 | 133 | 14031 => Kind::Transient,
        // Duplicate key; bad or unknown commands, options (31123: not through mongos) and values; too large.
        11000 | 2 | 9 | 59 | 72 | 40415 | 40324 | 31123 | 10334 | 17280 | 85 | 86 => Kind::Rejected,
        _ => return None,
    };
    Some(fault(kind, format!("MongoDB: {message} (code {code})")))
}

/// The way out is the same whatever the server calls it.
fn history_lost(code: i32, message: &str) -> Fault {
    Fault::history_lost(format!(
        "MongoDB: {message} (code {code}); the changes after the checkpoint cannot be read any more, history has a gap there; a larger oplog bridges longer stops. If the capture has stopped: {START_ANEW}"
    ))
}

/// Reading again meets the same event for ever, so the stream ends here as if its history were lost.
fn too_large(code: i32, message: &str) -> Fault {
    Fault::history_lost(format!(
        "MongoDB: {message} (code {code}); a change makes an event of more than the 16 MB that a change stream can send, and the stream cannot be read past it, history has a gap there; keep documents and updates below about 8 MB. If the capture has stopped: {START_ANEW}"
    ))
}

fn network(error: &io::Error, message: &str) -> Fault {
    use io::ErrorKind as E;
    let trouble = tls::trouble(message, &tls::MONGODB);
    let kind = match error.kind() {
        // No connection, so nothing was sent.
        E::ConnectionRefused | E::HostUnreachable | E::NetworkUnreachable | E::AddrNotAvailable | E::NotFound => Kind::Transient,
        // Certificates are looked at before anything is sent; alerts and damaged records may come later too.
        _ if message.contains(tls::BAD_CERTIFICATE) => Kind::Transient,
        _ => Kind::Unknown,
    };
    fault(kind, trouble.map_or_else(|| format!("MongoDB: {message}"), |trouble| format!("MongoDB: {trouble}")))
}

/// The driver describes the whole topology; a person needs each server and what is wrong with it. Of a kind that heals also where only a
/// person can mend it, a certificate say: an engine that runs meets that as an outage and goes on when it is mended.
fn selection(message: &str) -> Fault {
    let servers: Vec<Server<'_>> = message.split("Address: ").skip(1).filter_map(Server::of).collect();
    let set = message.split_once("Set Name: ").and_then(|(_, rest)| rest.split([',', ' ', '}']).next());
    let troubles: Vec<Trouble> = servers.iter().filter_map(Server::trouble).collect();
    let hint = if let Some(first) = troubles.first() {
        format!("; {}", first.advice)
    } else if message.contains("Ghost") {
        "; a member runs with --replSet but the set is not initiated".to_owned()
    } else if let (Some(set), true) = (set, servers.is_empty()) {
        format!(
            "; no server that answers calls its set {set}: check replicaSet in the URI, or, where mongod runs without --replSet, start it with one and initiate the set"
        )
    } else if !servers.is_empty() && servers.iter().all(|server| server.error.is_some()) {
        "; is mongod running there, and are host and port in the URI right?".to_owned()
    } else if set.is_some() && !message.contains("RsPrimary") {
        "; no primary is known".to_owned()
    } else {
        String::new()
    };
    let what = if servers.is_empty() { "no server of the URI can be used".to_owned() } else { joined(&servers) };
    // The way out must not fall behind the end of the line, however many servers there are.
    let what: String = what.chars().take(MAX_MESSAGE.saturating_sub(hint.len() + 40)).collect();
    let fault = Fault::transient(scrub(&format!("MongoDB is not reachable: {what}{hint}")));
    match (troubles.is_empty(), message.contains("Ghost")) {
        (false, _) => fault, // an option of the URI, which the advice has named
        (true, true) => fault.next(INITIATE),
        (true, false) => fault.next(TRY_URI),
    }
}

/// One server in the driver's description of the topology.
struct Server<'a> {
    address: &'a str,
    kind: &'a str,
    error: Option<&'a str>,
}

impl<'a> Server<'a> {
    /// Of what follows `Address: `.
    fn of(text: &'a str) -> Option<Self> {
        let (address, rest) = text.split_once(", Type: ")?;
        let kind = rest.split([',', ' ']).next()?;
        let error = rest.split_once("Error: Kind: ").map(|(_, error)| error.split_once(", labels:").map_or(error, |(error, _)| error));
        Some(Self { address, kind, error })
    }

    /// What TLS, or the lack of it, has to do with its error.
    fn trouble(&self) -> Option<Trouble> {
        let error = self.error?;
        tls::trouble(error, &tls::MONGODB).or_else(|| {
            let (wrong, advice) = if error.contains("without sending TLS close_notify") {
                let advice = "if it wants a certificate of its clients, name one with its key: tlsCertificateKeyFile=FILE in the URI";
                ("it hung up after the TLS handshake", advice)
            } else if error.contains("unexpected end of file") {
                ("it hung up without an answer", "if it wants TLS, add tls=true&tlsCAFile=FILE to the URI")
            } else {
                return None;
            };
            Some(Trouble { wrong: wrong.to_owned(), advice: advice.to_owned(), lasts: false })
        })
    }

    fn state(&self) -> String {
        self.trouble().map_or_else(|| self.error.unwrap_or(self.kind).to_owned(), |trouble| trouble.wrong)
    }
}

/// `127.0.0.1:1, 127.0.0.1:2: I/O error: Connection refused; 127.0.0.1:3: RsSecondary`.
fn joined(servers: &[Server<'_>]) -> String {
    let mut groups: Vec<(Vec<&str>, String)> = Vec::new();
    for server in servers {
        let state = server.state();
        match groups.iter_mut().find(|(_, other)| *other == state) {
            Some((addresses, _)) => addresses.push(server.address),
            None => groups.push((vec![server.address], state)),
        }
    }
    let said: Vec<String> = groups.into_iter().map(|(addresses, state)| format!("{}: {state}", addresses.join(", "))).collect();
    said.join("; ")
}

/// SUBTLE: the driver reports every failure of a login as one of authentication. Only a refusal by the server is final; a server
/// that dies in the middle of a login is an outage.
fn authentication(error: &Error, message: &str) -> Fault {
    let mut cause = std::error::Error::source(error);
    while let Some(e) = cause {
        if let Some(inner) = e.downcast_ref::<Error>()
            && matches!(&*inner.kind, ErrorKind::Io(_) | ErrorKind::ConnectionPoolCleared { .. })
        {
            return Fault::transient(format!("MongoDB: {message}"));
        }
        cause = e.source();
    }
    refused_login(message)
}

fn refused_login(message: &str) -> Fault {
    Fault::rejected(format!("MongoDB refused the credentials (check user, password and authSource): {message}")).next(TRY_URI)
}

/// Names the right: the server says `not authorized on DB to execute command { NAME: ...`.
fn unauthorized(message: &str) -> Fault {
    let db = message.split_once("not authorized on ").and_then(|(_, rest)| rest.split_whitespace().next());
    let command = message.split_once("execute command { ").and_then(|(_, rest)| rest.split(':').next());
    let what = match (db, command) {
        // What a restore writes as it was takes a right of its own.
        (Some(db), Some(command)) if message.contains("bypassDocumentValidation: true") => {
            format!("the user may not run `{command}` with bypassDocumentValidation on database {db}: grant both there")
        }
        (Some(db), Some(command)) if message.contains("capped: true") => {
            format!("the user may not run `{command}` of a capped collection on database {db}: grant it and convertToCapped there")
        }
        (Some(db), Some(command)) => format!("the user may not run `{command}` on database {db}: grant a role that allows it there"),
        _ if message.contains("requires authentication") => {
            return Fault::rejected("MongoDB: the server wants a login: put user and password into the URI")
                .next("export ARGON_MONGODB_URI='mongodb://USER:PASSWORD@HOST:27017/?replicaSet=rs0&authSource=admin'");
        }
        _ => format!("a right is missing: {message}"),
    };
    let fault = Fault::rejected(format!("MongoDB: {what}"));
    match (db, command) {
        (Some(db), Some(command)) => fault.next(grant(db, command, message.contains("bypassDocumentValidation: true"))),
        _ => fault,
    }
}

/// The built-in role that has the right; `docs/rights` has smaller ones. `bypasses`: it is for writing documents that their validator would refuse.
fn grant(db: &str, command: &str, bypasses: bool) -> String {
    let reads = ["aggregate", "find", "count", "listCollections", "listIndexes", "collStats", "getMore", "distinct"];
    let (role, db) = match db {
        "admin" => ("clusterMonitor", "admin"),
        db if bypasses || command == "collMod" => ("dbAdmin", db),
        db if db == "local" || reads.contains(&command) => ("read", db),
        db => ("readWrite", db),
    };
    super::rights::grant_command("USER", "admin", role, db)
}

fn fault(kind: Kind, what: String) -> Fault {
    Fault { kind, what, retry_after: None, next: None }
}

/// The message alone: the driver's own `Display` adds labels and the server's whole response.
fn message(error: &Error) -> String {
    let text = match &*error.kind {
        ErrorKind::Command(e) => format!("{}: {}", e.code_name, e.message),
        ErrorKind::Write(WriteFailure::WriteError(e)) => e.message.clone(),
        ErrorKind::Write(WriteFailure::WriteConcernError(e)) => format!("not yet replicated to a majority: {}", e.message),
        ErrorKind::InsertMany(e) => match e.write_errors.as_ref().and_then(|w| w.first()) {
            Some(first) => first.message.clone(),
            None => "insert was not acknowledged by a majority".to_owned(),
        },
        kind => kind.to_string(),
    };
    scrub(&text)
}

/// One line of bounded length, with the user part and the secret options of every URI blanked out.
pub(crate) fn scrub(text: &str) -> String {
    let text = mask(text);
    let mut out = String::new();
    let mut rest = text.as_str();
    while let Some((before, after)) = rest.split_once("://") {
        out.push_str(before);
        out.push_str("://");
        // Up to the last @ of the word: an unescaped password may hold one itself, or a slash.
        let end = after.find(|c: char| c.is_whitespace() || matches!(c, '"' | '\'' | ',' | '`')).unwrap_or(after.len());
        let (word, tail) = after.split_at(end);
        match word.rsplit_once('@') {
            Some((_, host)) => {
                out.push_str("***@");
                out.push_str(host);
            }
            None => out.push_str(word),
        }
        rest = tail;
    }
    out.push_str(rest);
    out.chars().map(|c| if c.is_control() { ' ' } else { c }).take(MAX_MESSAGE).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_mean_what_the_facts_say() {
        let run = |code, text: &str| by_code(code, text, Phase::Run).map(|f| f.kind);
        for code in [286, 280, 464, 136] {
            assert_eq!(run(code, "x"), Some(Kind::HistoryLost), "{code}");
        }
        assert!(by_code(286, "x", Phase::Run).is_some_and(|f| f.what.contains(START_ANEW)));
        for code in [260, 50811] {
            assert_eq!(run(code, "x"), None, "{code} is about the token only at open");
            assert_eq!(by_code(code, "x", Phase::Open).map(|f| f.kind), Some(Kind::HistoryLost), "{code}");
        }
        for phase in [Phase::Open, Phase::Read, Phase::Run] {
            let kind = |code| by_code(code, "x", phase).map(|f| f.kind);
            for code in [286, 280, 464, 136] {
                assert_eq!(kind(code), Some(Kind::HistoryLost), "{code} in {phase:?}");
            }
            for code in [13, 18] {
                assert_eq!(kind(code), Some(Kind::Rejected), "{code} in {phase:?}: an operator can put it right");
            }
            for code in [6, 7, 89, 91, 189, 211, 11600, 11602, 43, 237, 50] {
                assert!(kind(code).is_none_or(|kind| kind == Kind::Transient), "{code} in {phase:?} is reopened after");
            }
        }
        for phase in [Phase::Read, Phase::Run] {
            assert_eq!([260, 50811].map(|code| by_code(code, "x", phase).is_none()), [true, true]);
        }
        assert_eq!(run(10107, "not primary"), Some(Kind::Transient));
        for interrupted in [189, 11600, 11602, 91] {
            assert_eq!(run(interrupted, "stepping down"), None, "{interrupted} may have been done in part");
        }
        assert_eq!(run(11000, "E11000"), Some(Kind::Rejected));
    }

    #[test]
    fn a_commit_whose_repeat_met_no_primary_may_have_happened() {
        for code in [10107, 13435, 13436, 10058, 112, 24, 133, 14031] {
            let said = || by_code(code, "x", Phase::Run).unwrap();
            assert_eq!((open_if(false, said()).kind, open_if(true, said()).kind), (Kind::Transient, Kind::Unknown), "{code}");
        }
        for code in [286, 280, 13, 11000] {
            let said = || by_code(code, "x", Phase::Run).unwrap();
            assert_eq!(open_if(true, said()).kind, said().kind, "{code} says it for good");
        }
    }

    #[test]
    fn an_event_that_cannot_be_sent_ends_the_stream_and_says_what_to_do() {
        for phase in [Phase::Open, Phase::Read] {
            let fault = by_code(10334, "BSONObjectTooLarge", phase).unwrap();
            assert!(fault.kind == Kind::HistoryLost && fault.what.contains("16 MB") && fault.what.contains(START_ANEW), "{fault}");
        }
        assert_eq!(by_code(10334, "BSONObjectTooLarge", Phase::Run).map(|f| f.kind), Some(Kind::Rejected), "a write that is too large");
    }

    #[test]
    fn a_missing_right_is_named() {
        let fault = unauthorized("Unauthorized: not authorized on argon to execute command { insert: \"jobs\", ordered: true }");
        assert_eq!(fault.kind, Kind::Rejected);
        assert!(fault.what.contains("`insert` on database argon"), "{}", fault.what);
        let role = |db: &str, command: &str| {
            let next = unauthorized(&format!("not authorized on {db} to execute command {{ {command} }}")).next.unwrap();
            next.split_once("role: \"").unwrap().1.split('"').next().unwrap().to_owned()
        };
        for (db, command, wanted) in [
            ("argon", "insert: \"jobs\"", "readWrite"),
            ("copy", "insert: \"a\", bypassDocumentValidation: true", "dbAdmin"),
            ("copy", "collMod: \"a\"", "dbAdmin"),
            ("shop", "aggregate: 1", "read"),
            ("local", "find: \"oplog.rs\"", "read"),
            ("admin", "replSetGetConfig: 1", "clusterMonitor"),
        ] {
            assert_eq!(role(db, command), wanted, "{db} {command}");
        }
    }

    #[test]
    fn passwords_and_line_breaks_never_get_out() {
        for (text, expected) in [
            ("bad mongodb://u:p@ss/w@h:1/db here", "bad mongodb://***@h:1/db here"),
            ("a\nmongodb+srv://u:secret@h \"mongodb://x:secret@y\"", "a mongodb+srv://***@h \"mongodb://***@y\""),
            ("mongodb://h:1", "mongodb://h:1"),
            ("at mongodb://u:p@h/?proxyPassword=secret", "at mongodb://***@h/?proxyPassword=***"),
        ] {
            assert_eq!(scrub(text), expected);
        }
        assert_eq!(scrub(&"x".repeat(9_999)).len(), MAX_MESSAGE);
    }

    #[test]
    fn an_unreachable_server_is_named_with_its_reason() {
        let refused = "Server selection timeout: No available servers. Topology: { Type: ReplicaSetNoPrimary, Set Name: rs0, Servers: [ { Address: 127.0.0.1:1, Type: Unknown, Error: Kind: I/O error: Connection refused (os error 111), labels: {\"RetryableError\"}, source: None, server response: None } ] }";
        let what = selection(refused).what;
        assert!(what.contains("127.0.0.1:1: I/O error: Connection refused (os error 111); is mongod running"), "{what}");
        assert_eq!(selection(refused).next.as_deref(), Some(TRY_URI));
        let none =
            "Server selection timeout: No available servers. Topology: { Type: ReplicaSetNoPrimary, Set Name: wrong, Servers: [  ] }";
        assert!(selection(none).what.contains("calls its set wrong: check replicaSet"), "{}", selection(none).what);
        let secondary = "Topology: { Type: ReplicaSetNoPrimary, Set Name: rs0, Servers: [ { Address: h:1, Type: RsSecondary, Average RTT: 1ms }, { Address: h:2, Type: Unknown } ] }";
        let what = selection(secondary).what;
        assert!(what.contains("h:1: RsSecondary; h:2: Unknown; no primary"), "{what}");
        assert!(selection("an unknown form").what.contains("not reachable"));
    }

    #[test]
    fn trouble_with_tls_is_said_with_the_option_that_ends_it() {
        let topology = |errors: &[&str]| {
            let server = |(i, error)| {
                format!(
                    "{{ Address: h:{i}, Type: Unknown, Error: Kind: I/O error: {error}, labels: {{\"RetryableError\"}}, source: None, server response: None }}"
                )
            };
            let servers: Vec<String> = errors.iter().enumerate().map(server).collect();
            format!(
                "Server selection timeout: No available servers. Topology: {{ Type: ReplicaSetNoPrimary, Set Name: rs0, Servers: [ {} ] }}",
                servers.join(", ")
            )
        };
        let unknown = "invalid peer certificate: UnknownIssuer";
        let named = "invalid peer certificate: certificate not valid for name \"h\"; certificate is only valid for DnsName(\"a\"), DnsName(\"b\") or IpAddress(::1)";
        let eof = "peer closed connection without sending TLS close_notify: https://docs.rs/rustls/latest/rustls/manual/_03_howto/index.html#unexpected-eof";
        for (errors, says) in [
            (&[unknown, unknown][..], &["h:0, h:1: its certificate is signed by an unknown authority; name", "tlsCAFile in the URI"][..]),
            (&[unknown, "Connection refused (os error 111)"], &["h:0: its certificate", "h:1: I/O error: Connection refused", "tlsCAFile"]),
            (&[named; 3], &["not for h but for a, b or ::1; call it", "subjectAltName"]),
            (&["unexpected end of file"], &["add tls=true&tlsCAFile=FILE to the URI"]),
            (&["tls handshake eof"], &["if it does not speak TLS, remove tls=true"]),
            (&[eof], &["after the TLS handshake", "tlsCertificateKeyFile=FILE"]),
        ] {
            let fault = selection(&topology(errors));
            assert!(fault.kind == Kind::Transient && says.iter().all(|part| fault.what.contains(part)), "{says:?}: {fault}");
        }
        let long = selection(&topology(&[&"x".repeat(300), "tls handshake eof"])).what;
        assert!(long.ends_with("correct its port") && long.len() <= MAX_MESSAGE, "{long}");
    }

    #[test]
    fn a_refused_connection_did_not_happen_and_a_reset_may_have() {
        let kind = |kind: io::ErrorKind| network(&io::Error::from(kind), "x").kind;
        assert_eq!(kind(io::ErrorKind::ConnectionRefused), Kind::Transient);
        assert_eq!(kind(io::ErrorKind::ConnectionReset), Kind::Unknown);
        assert_eq!(kind(io::ErrorKind::UnexpectedEof), Kind::Unknown);
        let handshake = network(&io::Error::from(io::ErrorKind::InvalidData), "I/O error: invalid peer certificate: UnknownIssuer");
        assert!(handshake.kind == Kind::Transient && handshake.what.contains("tlsCAFile"), "{handshake}");
    }
}
