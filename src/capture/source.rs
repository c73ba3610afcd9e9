//! Owns: where a source's URI comes from. A URI with a password or another secret is never stored: only
//! `env:NAME`, `file:PATH`, or a URI without one.
//! Does not own: connecting (`ledger::connect_client`).

use mongodb::Client;

use crate::engine::SourceOpener;
use crate::fault::{Fault, Result};
use crate::ledger::{ConnectOptions, Source, connect_client, secret_option};

use super::feed::SharedFeed;
use super::mongo::MongoFeed;

/// Most bytes of a file that holds a URI.
const MAX_URI_FILE: u64 = 64 << 10;

/// Checks a reference before it is stored.
pub fn check_reference(reference: &str) -> Result<()> {
    if reference.starts_with("env:") || reference.starts_with("file:") {
        return Ok(());
    }
    let user = reference.split_once("://").and_then(|(_, rest)| rest.split('/').next()).and_then(|host| host.rsplit_once('@'));
    if user.is_some_and(|(user, _)| user.contains(':')) {
        return Err(Fault::config(
            "a source URI with a password is not stored: put it into a variable or file of the engine and pass --source-uri env:NAME or file:PATH",
        ));
    }
    if let Some(option) = secret_option(reference) {
        return Err(Fault::config(format!(
            "a source URI with {option} is not stored, since that option holds a secret: put the URI into a variable or file of the engine and pass --source-uri env:NAME or file:PATH"
        )));
    }
    if reference.contains("://") {
        Ok(())
    } else {
        Err(Fault::config("--source-uri takes env:NAME, file:PATH or a mongodb:// URI without password"))
    }
}

/// The URI behind a reference.
pub fn resolve(reference: Option<&str>, default: &str) -> Result<String> {
    match reference {
        None => Ok(default.to_string()),
        Some(text) => match text.split_once(':') {
            Some(("env", name)) => std::env::var(name).map_err(|_| {
                let what = format!("the source's URI is in the variable {name}, which is not set for this process");
                Fault::config(what).next(format!("export {name}='mongodb://…'"))
            }),
            Some(("file", path)) => from_file(path),
            _ => Ok(text.to_string()),
        },
    }
}

fn from_file(path: &str) -> Result<String> {
    let bad = |e: std::io::Error| Fault::config(format!("the source's URI is in the file {path}, which cannot be read: {e}"));
    let size = std::fs::metadata(path).map_err(bad)?.len();
    if size > MAX_URI_FILE {
        return Err(Fault::config(format!("the file {path} is too large to hold a URI")));
    }
    Ok(std::fs::read_to_string(path).map_err(bad)?.trim().to_string())
}

/// Connects to a source.
pub async fn connect(reference: Option<&str>, default: &str) -> Result<Client> {
    let uri = resolve(reference, default)?;
    connect_client(&uri, &ConnectOptions::default()).await.map_err(|fault| Fault { next: next_of(reference, fault.next), ..fault })
}

/// What to type next is about the metadata's URI, and the source may have one of its own.
fn next_of(reference: Option<&str>, next: Option<String>) -> Option<String> {
    let Some(reference) = reference else { return next };
    let uri = match reference.split_once(':') {
        Some(("env", name)) => format!("\"${name}\""),
        Some(("file", path)) => format!("\"$(cat '{path}')\""),
        // It may hold a password where nobody stores it, as with doctor.
        _ => "'mongodb://…'".to_owned(),
    };
    Some(next?.replace("\"$ARGON_MONGODB_URI\"", &uri))
}

/// Opens feeds of MongoDB sources; `default` is the engine's own URI.
pub struct MongoSources {
    pub default: String,
}

#[async_trait::async_trait]
impl SourceOpener for MongoSources {
    async fn open(&self, source: &Source) -> Result<SharedFeed> {
        let client = connect(source.uri.as_deref(), &self.default).await?;
        Ok(std::sync::Arc::new(MongoFeed::new(client, &source.db)))
    }

    async fn database(&self, source: &Source) -> Result<mongodb::Database> {
        Ok(connect(source.uri.as_deref(), &self.default).await?.database(&source.db))
    }
}

/// Without the URI, which may hold a password.
impl std::fmt::Debug for MongoSources {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("MongoSources")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_to_type_next_is_about_the_source_s_own_uri_and_never_shows_it() {
        let next = || Some("mongosh \"$ARGON_MONGODB_URI\" --eval x".to_owned());
        for (reference, wanted) in [
            (None, "mongosh \"$ARGON_MONGODB_URI\" --eval x"),
            (Some("env:SRC"), "mongosh \"$SRC\" --eval x"),
            (Some("file:/etc/src"), "mongosh \"$(cat '/etc/src')\" --eval x"),
            (Some("mongodb://u:secret@h/"), "mongosh 'mongodb://…' --eval x"),
        ] {
            assert_eq!(next_of(reference, next()).as_deref(), Some(wanted));
        }
        assert_eq!(next_of(Some("env:SRC"), None), None);
    }

    #[test]
    fn a_password_is_never_stored() {
        for good in ["env:SRC", "file:/etc/src", "mongodb://h:1/?replicaSet=r", "mongodb://user@h/?authMechanism=MONGODB-X509"] {
            check_reference(good).unwrap();
        }
        for bad in ["mongodb://u:p@h/", "mongodb+srv://u:p@cluster.example/", "h:27017"] {
            let fault = check_reference(bad).unwrap_err();
            assert!(!fault.what.contains("u:p"), "{fault}");
        }
        for (option, bad) in [
            ("proxyPassword", "mongodb://h/?proxyHost=p&proxyPassword=s3cret"),
            ("tlsCertificateKeyFilePassword", "mongodb://h/?tls=true&tlsCertificateKeyFilePassword=s3cret"),
            ("authMechanismProperties", "mongodb://k@h/?authMechanism=MONGODB-AWS&authMechanismProperties=AWS_SESSION_TOKEN:s3cret"),
        ] {
            let fault = check_reference(bad).unwrap_err();
            assert!(fault.what.contains(option) && fault.what.contains("env:NAME") && !fault.what.contains("s3cret"), "{fault}");
        }
    }

    #[test]
    fn an_unset_variable_is_named() {
        assert!(resolve(Some("env:ARGON_NO_SUCH_VARIABLE"), "x").unwrap_err().what.contains("ARGON_NO_SUCH_VARIABLE"));
        assert_eq!(resolve(None, "mongodb://d").unwrap(), "mongodb://d");
    }
}
