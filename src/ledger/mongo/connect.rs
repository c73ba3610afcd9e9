//! Owns: connecting, and saying what is wrong with a server that cannot serve. Does not own: facts for `doctor` (`facts`).

use std::sync::Arc;
use std::time::Duration;

use bson::{Document, doc};
use mongodb::error::ErrorKind;
use mongodb::options::{ClientOptions, DatabaseOptions, ReadConcern, ReadPreference, SelectionCriteria, Tls, WriteConcern};
use mongodb::{Client, Database};
use parking_lot::Mutex;

use super::classify::{INITIATE, fault_of, scrub, standalone};
use super::secrets::secret_values;
use super::{Inner, MongoLedger};
use crate::fault::{Fault, Result};
use crate::runtime::{identity, tls};

/// Oldest server that has what we need (expanded events, wall time).
const MIN_VERSION: (u32, u32) = (6, 0);

/// Limits of the connection.
#[derive(Debug, Clone)]
pub struct ConnectOptions {
    /// Shown in the server's logs, unless the URI has another one; the tag of the process follows.
    pub app_name: String,
    /// How long an operation waits for a usable server.
    pub server_selection_timeout: Duration,
    /// How long a TCP connection may take.
    pub connect_timeout: Duration,
    /// Overall limit of one call of the ledger.
    pub deadline: Duration,
    /// Connections per server. Raising it lets more transactions run at once; each costs the server about 1 MB.
    pub pool_size: u32,
}

impl Default for ConnectOptions {
    fn default() -> Self {
        Self {
            app_name: "argon".to_owned(),
            server_selection_timeout: Duration::from_secs(8),
            connect_timeout: Duration::from_secs(5),
            deadline: Duration::from_secs(30),
            pool_size: 32,
        }
    }
}

/// What kind of deployment answers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Topology {
    ReplicaSet { name: String },
    Sharded,
}

impl MongoLedger {
    /// Connects, checks that the server can serve, and fails with one sentence that names what is wrong.
    pub async fn connect(uri: &str, db: &str, options: ConnectOptions) -> Result<Self> {
        let (client, seeds) = client(uri, &options).await?;
        let ledger = Self::over(client, db, options.deadline)?;
        let check = Arc::clone(&ledger.inner);
        ledger.within("connect", async move { check_server(&check.client, Some(&seeds)).await.map(|_| ()) }).await?;
        Ok(ledger)
    }

    /// Over a client that has been checked.
    pub fn over(client: Client, db: &str, deadline: Duration) -> Result<Self> {
        check_name(db)?;
        let db = majority(&client, db);
        Ok(Self { inner: Arc::new(Inner { client, db, rescued: Mutex::default(), heads: super::head::Heads::default() }), deadline })
    }
}

/// A checked client without a ledger: for sources and restore targets.
pub async fn connect_client(uri: &str, options: &ConnectOptions) -> Result<Client> {
    let (client, seeds) = client(uri, options).await?;
    check_server(&client, Some(&seeds)).await?;
    Ok(client)
}

/// A client with the limits of `options`, and the addresses it was given; does not talk to the server yet (except DNS for `mongodb+srv://`).
async fn client(uri: &str, options: &ConnectOptions) -> Result<(Client, String)> {
    // SUBTLE: the driver's message may quote a part of the URI, and a URI that does not parse may have its password anywhere.
    let mut parsed = ClientOptions::parse(uri).await.map_err(|e| match &*e.kind {
        ErrorKind::DnsResolve { .. } => fault_of(e),
        kind => invalid(uri, kind),
    })?;
    check_tls(&parsed)?;
    parsed.app_name = Some(app_name(parsed.app_name.as_deref().unwrap_or(&options.app_name), identity::process_tag()));
    parsed.server_selection_timeout.get_or_insert(options.server_selection_timeout);
    parsed.connect_timeout.get_or_insert(options.connect_timeout);
    parsed.max_pool_size.get_or_insert(options.pool_size);
    parsed.retry_writes = Some(true);
    parsed.retry_reads = Some(true);
    // Wire compression is not even built in: payloads are compressed already, and everything else is small.
    let seeds = parsed.hosts.iter().map(ToString::to_string).collect::<Vec<_>>().join(",");
    let client = Client::with_options(parsed).map_err(|e| invalid(uri, &e.kind))?;
    Ok((client, seeds))
}

/// SUBTLE: before the driver reads these files: it takes one without any authority as it is and trusts nobody then, and does not name one that is
/// not there.
fn check_tls(options: &ClientOptions) -> Result<()> {
    let Some(Tls::Enabled(given)) = &options.tls else { return Ok(()) };
    if let Some(path) = &given.ca_file_path {
        tls::authorities(path, "tlsCAFile")?;
    }
    if let Some(path) = &given.cert_key_file_path {
        tls::check_identity(path, "tlsCertificateKeyFile")?;
    }
    if given.allow_invalid_certificates == Some(true) {
        tracing::warn!(
            "MongoDB's certificate is not checked (tlsInsecure or tlsAllowInvalidCertificates): whoever is in between reads everything"
        );
    }
    Ok(())
}

/// The tag comes last and whole: by it others find what this process has left open (`sessions`).
fn app_name(name: &str, tag: &str) -> String {
    const SERVER_LIMIT: usize = 128;
    let end = SERVER_LIMIT.saturating_sub(tag.len() + 1).min(name.len());
    let end = (0..=end).rev().find(|i| name.is_char_boundary(*i)).unwrap_or(0);
    format!("{} {tag}", &name[..end])
}

fn invalid(uri: &str, kind: &ErrorKind) -> Fault {
    let message = match kind {
        ErrorKind::InvalidArgument { message, .. } if message.contains("cert-key-password") => {
            "tlsCertificateKeyFilePassword is not supported: decrypt the key and let nobody else read its file".to_owned()
        }
        ErrorKind::InvalidArgument { message, .. } => message.clone(),
        other => other.to_string(),
    };
    Fault::config(format!("MongoDB URI is not valid: {}", without(uri, &message)))
        .next("export ARGON_MONGODB_URI='mongodb://127.0.0.1:27017/?replicaSet=rs0'")
}

/// The message, unless it quotes the user part of the URI or a secret among its options.
fn without(uri: &str, message: &str) -> String {
    let after = uri.split_once("://").map_or(uri, |(_, rest)| rest);
    let quotes = after
        .rsplit_once('@')
        .is_some_and(|(user, _)| user.split([':', '@', '/']).filter(|part| part.len() > 2).any(|part| message.contains(part)));
    if quotes || secret_values(uri).any(|value| message.contains(value)) {
        "check scheme, host, options and the escaping of user and password (%40 for @)".to_owned()
    } else {
        scrub(message)
    }
}

fn majority(client: &Client, db: &str) -> Database {
    let options = DatabaseOptions::builder()
        .read_concern(ReadConcern::majority())
        .write_concern(WriteConcern::majority())
        .selection_criteria(SelectionCriteria::ReadPreference(ReadPreference::Primary))
        .build();
    client.database_with_options(db, options)
}

/// The server's own rules, said before the first write trips over them.
fn check_name(db: &str) -> Result<()> {
    let bad = db.is_empty()
        || db.len() > 63
        || db.contains(['/', '\\', '.', ' ', '"', '$', '\0', '*', '<', '>', ':', '|', '?'])
        || matches!(db, "admin" | "local" | "config");
    if bad {
        Err(Fault::config(format!("`{db}` cannot be the metadata database (ARGON_METADATA_DB): choose a plain name such as argon")))
    } else {
        Ok(())
    }
}

/// A replica set or sharded cluster of version 6.0 or newer; what it is.
/// `address` is for the message.
pub(super) async fn check_server(client: &Client, address: Option<&str>) -> Result<(Topology, String)> {
    let admin = client.database("admin");
    let hello = admin.run_command(doc! { "hello": 1 }).await.map_err(fault_of)?;
    let topology = topology(address, &hello)?;
    let build = admin.run_command(doc! { "buildInfo": 1 }).await.map_err(fault_of)?;
    let version = build.get_str("version").unwrap_or("unknown").to_owned();
    check_version(hello.get_str("me").ok().or(address).unwrap_or("the server"), &version)?;
    Ok((topology, version))
}

fn topology(address: Option<&str>, hello: &Document) -> Result<Topology> {
    if hello.get_str("msg").is_ok_and(|m| m == "isdbgrid") {
        return Ok(Topology::Sharded);
    }
    if let Ok(name) = hello.get_str("setName") {
        return Ok(Topology::ReplicaSet { name: name.to_owned() });
    }
    if hello.get_bool("isreplicaset").unwrap_or(false) {
        let at = address.map_or_else(String::new, |a| format!(" at {a}"));
        return Err(Fault::rejected(format!("MongoDB{at} runs with --replSet but the set is not initiated")).next(INITIATE));
    }
    Err(standalone(address))
}

fn check_version(at: &str, version: &str) -> Result<()> {
    if version_of(version).is_some_and(|v| v >= MIN_VERSION) {
        return Ok(());
    }
    Err(Fault::rejected(format!("MongoDB at {at} is version {version}: 6.0 or newer is needed")))
}

fn version_of(version: &str) -> Option<(u32, u32)> {
    let mut parts = version.split(['.', '-']);
    Some((parts.next()?.parse().ok()?, parts.next()?.parse().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fault::Kind;

    #[tokio::test]
    async fn a_bad_uri_is_a_setting_and_its_password_stays_inside() {
        for uri in [
            "mongodb://user:sec/ret@host:1/",
            "mongodb://user:s3cret@host:notaport",
            "postgres://user:s3cret@host",
            "user:s3cret@host",
            "",
            "mongodb://user:s3cret@host/?tls=maybe",
            "mongodb://user:s3cret@host/?authMechanism=s3cret",
            "mongodb://host/?proxyHost=h&proxyPort=s3cret&proxyPassword=s3cret",
            "mongodb://user:s3cret@host/?tls=true&tlsCertificateKeyFilePassword=s3cret",
            "mongodb://user:s3cret@host/?tls=true&tlsCAFile=/nonexistent/ca.pem",
            "mongodb://user:s3cret@host/?tls=true&tlsCertificateKeyFile=/nonexistent/client.pem",
        ] {
            let fault = client(uri, &ConnectOptions::default()).await.unwrap_err();
            assert_eq!(fault.kind, Kind::Config, "{uri}");
            assert!(!fault.what.contains("s3cret") && !fault.what.contains("ret@"), "{}", fault.what);
        }
    }

    #[test]
    fn the_tag_of_the_process_survives_any_name() {
        assert_eq!(app_name("argon", "vm-1-ab"), "argon vm-1-ab");
        let long = app_name(&"ä".repeat(100), "vm-1-ab");
        assert!(long.ends_with("ä vm-1-ab") && (127..=128).contains(&long.len()), "{long}");
    }

    #[test]
    fn versions_compare_as_numbers() {
        assert_eq!(version_of("6.0.5"), Some((6, 0)));
        assert_eq!(version_of("10.1.0-rc2"), Some((10, 1)));
        assert_eq!(version_of("x"), None);
        for new in ["6.0.0", "6.0.5", "6.3.0-rc1", "7.0.12", "10.0.0"] {
            check_version("h:1", new).unwrap();
        }
        for old in ["5.0.31", "5.3.2", "4.4.29", "unknown", ""] {
            let fault = check_version("h:1", old).unwrap_err();
            assert!(fault.kind == Kind::Rejected && fault.what.contains(&format!("h:1 is version {old}: 6.0")), "{}", fault.what);
        }
    }

    #[test]
    fn names_that_cannot_be_a_database_are_settings() {
        for bad in ["", "a.b", "a b", "local", "a/b", &"x".repeat(64)] {
            assert_eq!(check_name(bad).unwrap_err().kind, Kind::Config, "{bad}");
        }
        check_name("argon").unwrap();
    }
}
