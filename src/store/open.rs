//! Owns: from the value of `ARGON_STORE_URL` to a store, and the process-wide TLS provider. Does not own whether it works (`probe`).

use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;

use super::key::check_key;
use super::{CloudStore, FileStore, MemoryStore, S3Store, Store};
use crate::fault::{Fault, Result};

const FORMS: &str = "allowed are s3://bucket/prefix, gs://bucket/prefix, az://container/prefix and file:///absolute/directory";

/// A setting that is decided by circumstances unless given.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Switch {
    /// As fits the store.
    #[default]
    Auto,
    /// Always.
    On,
    /// Never.
    Off,
}

impl Switch {
    /// The decision, given what `auto` means here.
    pub fn or(self, auto: bool) -> bool {
        match self {
            Self::Auto => auto,
            Self::On => true,
            Self::Off => false,
        }
    }
}

impl FromStr for Switch {
    type Err = Fault;

    fn from_str(text: &str) -> Result<Self> {
        match text {
            "auto" => Ok(Self::Auto),
            "on" | "true" => Ok(Self::On),
            "off" | "false" => Ok(Self::Off),
            _ => Err(Fault::config(format!("{text:?} is not one of auto, on, off"))),
        }
    }
}

/// Keys of a store that somebody has just started (devkit, tests). The engine's settings never fill this: its credentials come from the
/// SDK's chain.
#[derive(Clone, PartialEq, Eq)]
pub struct S3Keys {
    /// Access key id.
    pub access_key: String,
    /// Secret access key.
    pub secret_key: String,
}

impl std::fmt::Debug for S3Keys {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("S3Keys(..)")
    }
}

/// How to reach a store.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StoreOptions {
    /// `http://` or `https://` address of a store that speaks S3 but is not AWS.
    pub endpoint: Option<String>,
    /// Bucket in the path instead of the host name; auto: where an endpoint is set.
    pub path_style: Switch,
    /// Checksums with every put and get; auto: where no endpoint is set, since the SDK's new ones break some stores. Without them every
    /// upload is read back.
    pub checksums: Switch,
    /// Time for one operation beside the time for its bytes (one second per MiB).
    pub timeout: Duration,
    /// PEM file of the authorities that an S3 service's certificate may come from; `None`: this machine's root certificates.
    pub ca_file: Option<PathBuf>,
    /// See [`S3Keys`].
    pub s3_keys: Option<S3Keys>,
}

impl Default for StoreOptions {
    fn default() -> Self {
        Self {
            endpoint: None,
            path_style: Switch::Auto,
            checksums: Switch::Auto,
            timeout: Duration::from_secs(30),
            ca_file: None,
            s3_keys: None,
        }
    }
}

/// Makes ring the TLS provider of the process. Idempotent; `open` does it, other users of rustls without a provider of their own may.
pub fn install_tls() {
    // An error means that there is one already, which is as good.
    let _ = rustls::crypto::ring::default_provider().install_default();
}

/// What a URL says.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Place<'a> {
    Memory,
    File(PathBuf),
    Bucket { scheme: &'a str, bucket: &'a str, prefix: &'a str },
}

/// Opens the store at `url`: `s3://`, `gs://`, `az://`, `file:///`, or `memory:` (lost at exit, for tests).
///
/// # Errors
/// `Config` for a URL or option that cannot work, naming it and what is allowed; for directories also what the file system says.
pub async fn open(url: &str, options: &StoreOptions) -> Result<Store> {
    let place = parse(url)?;
    check_endpoint(options.endpoint.as_deref())?;
    Ok(match place {
        Place::Memory => Arc::new(MemoryStore::new()),
        Place::File(path) => {
            let opened = tokio::task::spawn_blocking(move || FileStore::open(&path)).await;
            Arc::new(opened.map_err(|error| Fault::unknown(format!("opening {url}: {error}")))??)
        }
        Place::Bucket { scheme: "s3", bucket, prefix } => {
            install_tls();
            Arc::new(S3Store::open(bucket, prefix, options).await?)
        }
        Place::Bucket { scheme, bucket, prefix } => {
            install_tls();
            Arc::new(CloudStore::open(scheme, bucket, prefix, options)?)
        }
    })
}

fn parse(url: &str) -> Result<Place<'_>> {
    let bad = |why: &str| Fault::config(format!("store URL {:?}: {why}; {FORMS}", without_secrets(url)));
    if url == "memory:" {
        return Ok(Place::Memory);
    }
    if let Some(path) = url.strip_prefix("file:") {
        return parse_file(url, path);
    }
    let Some((scheme, rest)) = url.split_once("://") else {
        return Err(match Path::new(url) {
            path if path.is_absolute() => bad(&format!("a directory is written file://{url}")),
            _ => bad("it has no scheme"),
        });
    };
    if !matches!(scheme, "s3" | "gs" | "az") {
        return Err(bad(&format!("the scheme {scheme:?} is not known")));
    }
    let (bucket, prefix) = rest.split_once('/').unwrap_or((rest, ""));
    if bucket.contains('@') {
        return Err(bad("credentials do not belong into it (for s3:// they come from AWS_ACCESS_KEY_ID, a profile or a role)"));
    }
    if !(3..=63).contains(&bucket.len()) || !bucket.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'-' | b'_')) {
        return Err(bad(&format!("{bucket:?} is no name of a bucket (3 to 63 letters, digits, '-', '.', '_')")));
    }
    if rest.contains(['?', '#']) {
        return Err(bad("options after '?' or '#' are not understood (the endpoint is ARGON_S3_ENDPOINT)"));
    }
    let prefix = prefix.strip_suffix('/').unwrap_or(prefix);
    if !prefix.is_empty() {
        check_key(prefix).map_err(|fault| bad(&format!("the prefix is not allowed: {}", fault.what)))?;
    }
    Ok(Place::Bucket { scheme, bucket, prefix })
}

fn parse_file<'a>(url: &str, path: &str) -> Result<Place<'a>> {
    let bad = |why: String| Fault::config(format!("store URL {url:?}: {why}; {FORMS}"));
    let directory = match path.strip_prefix("//") {
        Some(rest) => rest.strip_prefix("localhost").filter(|rest| rest.starts_with('/')).unwrap_or(rest),
        None => path,
    };
    if !directory.starts_with('/') {
        return Err(bad(format!(
            "the directory {directory:?} is relative to nothing; write the whole path, file:///... with three slashes"
        )));
    }
    if directory.contains('%') {
        return Err(bad("'%' is not decoded and not allowed: use a directory without it".to_owned()));
    }
    if directory.contains('\0') || directory.split('/').any(|part| part == "..") {
        return Err(bad("the directory has a '..' or a NUL".to_owned()));
    }
    match directory.trim_end_matches('/') {
        "" => Err(bad("the root directory cannot be a store".to_owned())),
        directory => Ok(Place::File(PathBuf::from(directory))),
    }
}

fn check_endpoint(endpoint: Option<&str>) -> Result<()> {
    let Some(endpoint) = endpoint else { return Ok(()) };
    let bad = |why: &str| {
        Err(Fault::config(format!("endpoint {:?}: {why}; write http://host:port or https://host:port", without_secrets(endpoint))))
    };
    let Some(host) = endpoint.strip_prefix("http://").or_else(|| endpoint.strip_prefix("https://")) else {
        return bad("it has no http:// or https://");
    };
    if host.contains('@') {
        return bad("credentials do not belong into it");
    }
    if host.trim_end_matches('/').is_empty() || host.contains([' ', '?', '#']) || host.chars().any(char::is_control) {
        return bad("it names no host");
    }
    Ok(())
}

/// A URL with what stands before an `@` left out, for messages.
fn without_secrets(url: &str) -> String {
    match (url.split_once("://"), url.rfind('@')) {
        (Some((scheme, _)), Some(at)) if at > scheme.len() => format!("{scheme}://...{}", &url[at..]),
        _ => url.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fault::Kind;

    #[test]
    fn urls_name_a_place() {
        let bucket = |scheme, bucket, prefix| Place::Bucket { scheme, bucket, prefix };
        for (url, place) in [
            ("memory:", Place::Memory),
            ("file:///var/argon", Place::File("/var/argon".into())),
            ("file:///var/argon/", Place::File("/var/argon".into())),
            ("file:/var/argon", Place::File("/var/argon".into())),
            ("file://localhost/var/argon", Place::File("/var/argon".into())),
            ("s3://shop", bucket("s3", "shop", "")),
            ("s3://shop/", bucket("s3", "shop", "")),
            ("s3://shop/a/b", bucket("s3", "shop", "a/b")),
            ("s3://shop/a/b/", bucket("s3", "shop", "a/b")),
            ("gs://shop.example/a", bucket("gs", "shop.example", "a")),
            ("az://backups/a", bucket("az", "backups", "a")),
        ] {
            assert_eq!(parse(url).unwrap(), place, "{url}");
        }
    }

    #[test]
    fn bad_urls_are_named_with_what_is_allowed() {
        for url in [
            "",
            "s3:",
            "s3://",
            "s3:///x",
            "s3://ab",
            "s3://a b c/x",
            "s3://shop//x",
            "s3://shop/../x",
            "s3://shop/x?y=1",
            "S3://shop",
            "http://shop/x",
            "/var/argon",
            "var/argon",
            "file://var/argon",
            "file:var",
            "file://",
            "file:///",
            "file:///a/../b",
            "file:///a%20b",
            "memory:x",
        ] {
            let fault = parse(url).unwrap_err();
            assert_eq!(fault.kind, Kind::Config, "{url}");
            assert!(fault.what.contains(&format!("{url:?}")) && fault.what.contains("file:///absolute/directory"), "{}", fault.what);
        }
        assert!(parse("/var/argon").unwrap_err().what.contains("file:///var/argon"));
        assert!(parse("file://var/argon").unwrap_err().what.contains("three slashes"));
    }

    #[test]
    fn secrets_in_urls_are_refused_and_not_repeated() {
        let fault = parse("s3://AKIA:hunter2@shop/x").unwrap_err();
        assert!(fault.kind == Kind::Config && !fault.what.contains("hunter2"), "{}", fault.what);
        let fault = check_endpoint(Some("http://u:hunter2@host")).unwrap_err();
        assert!(fault.kind == Kind::Config && !fault.what.contains("hunter2"), "{}", fault.what);
        let keys = S3Keys { access_key: "a".into(), secret_key: "hunter2".into() };
        assert!(!format!("{keys:?}").contains("hunter2"));
    }

    #[test]
    fn endpoints_need_a_scheme_and_a_host() {
        for endpoint in ["", "host:1", "ftp://host", "http://", "https:///", "http://a b"] {
            assert!(check_endpoint(Some(endpoint)).is_err(), "{endpoint}");
        }
        assert!(check_endpoint(None).is_ok() && check_endpoint(Some("http://127.0.0.1:8333")).is_ok());
    }

    #[tokio::test]
    async fn a_directory_whose_parent_is_missing_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let fault = open(&format!("file://{}/no/such", dir.path().display()), &StoreOptions::default()).await.unwrap_err();
        assert!(fault.kind == Kind::Config && fault.what.contains("/no/such"), "{}", fault.what);
        assert!(open(&format!("file://{}/new", dir.path().display()), &StoreOptions::default()).await.is_ok());
    }
}
