//! Owns: stores in Google Cloud Storage (`gs://`) and Azure Blob Storage (`az://`), through the object_store crate.
//! Does not own: repeating (the crate's retries are off), S3 and directories, which have adapters of their own.
//!
//! Credentials come from the environment as the crate reads it (`GOOGLE_*`, `AZURE_*`, application default credentials). The answers
//! of these services have checksums of their own, but puts send none: uploads are read back ([`ObjectStore::verifies_puts`]).

use std::error::Error as StdError;
use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use futures_util::TryStreamExt;
use object_store::azure::MicrosoftAzureBuilder;
use object_store::client::{HttpError, HttpErrorKind};
use object_store::gcp::GoogleCloudStorageBuilder;
use object_store::path::Path;
use object_store::{
    Attribute, Attributes, BackoffConfig, ClientOptions, Error, GetOptions, GetRange, ObjectStoreExt, PutMode, PutOptions, PutPayload,
    RetryConfig, UpdateVersion,
};

use super::key::{check_key, check_page, check_prefix};
use super::{ListOrder, ObjectInfo, ObjectStore, Put, PutTag, StoreOptions, check_range, check_size, hex, unhex};
use crate::fault::{Fault, Result};

/// Names of Azure's metadata must be identifiers, so the put id has no dash here.
const META_SHA256: &str = "sha256";
const META_PUT_ID: &str = "putid";
/// Time of a whole request, body included: 30 s and a second per MiB up to 128 MiB.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(158);
/// Characters of an answer that an error tells.
const MOST_SAID: usize = 600;

/// A store behind the object_store crate.
#[derive(Debug)]
pub struct CloudStore {
    inner: Arc<dyn object_store::ObjectStore>,
    /// Empty, or ends with `/`.
    prefix: String,
    shown: String,
}

impl CloudStore {
    /// The store of scheme `gs` or `az`; everything but bucket and prefix is read from the environment.
    pub fn open(scheme: &str, bucket: &str, prefix: &str, options: &StoreOptions) -> Result<Self> {
        let shown = if prefix.is_empty() { format!("{scheme}://{bucket}") } else { format!("{scheme}://{bucket}/{prefix}") };
        let retry = RetryConfig { backoff: BackoffConfig::default(), max_retries: 0, retry_timeout: Duration::ZERO };
        let plain_http = options.endpoint.as_deref().is_some_and(|endpoint| endpoint.starts_with("http://"));
        let client =
            ClientOptions::new().with_timeout(REQUEST_TIMEOUT).with_connect_timeout(Duration::from_secs(5)).with_allow_http(plain_http);
        let configured = |error: Error| Fault::config(format!("{shown} cannot be opened: {error}"));
        let inner: Arc<dyn object_store::ObjectStore> = match scheme {
            "gs" => {
                let mut builder =
                    GoogleCloudStorageBuilder::from_env().with_bucket_name(bucket).with_retry(retry).with_client_options(client);
                if let Some(endpoint) = &options.endpoint {
                    builder = builder.with_base_url(endpoint);
                }
                Arc::new(builder.build().map_err(configured)?)
            }
            "az" => {
                let mut builder =
                    MicrosoftAzureBuilder::from_env().with_container_name(bucket).with_retry(retry).with_client_options(client);
                if let Some(endpoint) = &options.endpoint {
                    builder = builder.with_endpoint(endpoint.clone());
                }
                Arc::new(builder.build().map_err(configured)?)
            }
            _ => return Err(Fault::config(format!("{shown}: the scheme {scheme:?} is not gs or az"))),
        };
        Ok(Self::over(inner, prefix, shown))
    }

    /// A store over any implementation of the crate's trait; `prefix` has no slashes at its ends and may be empty.
    pub fn over(inner: Arc<dyn object_store::ObjectStore>, prefix: &str, shown: String) -> Self {
        let prefix = if prefix.is_empty() { String::new() } else { format!("{prefix}/") };
        Self { inner, prefix, shown }
    }

    fn path(&self, key: &str) -> Result<Path> {
        check_key(key)?;
        Path::parse(format!("{}{key}", self.prefix)).map_err(|error| Fault::rejected(format!("object key {key:?} is not allowed: {error}")))
    }

    async fn put(&self, key: &str, body: Bytes, tag: &PutTag, mode: PutMode) -> Result<Put> {
        check_size(key, body.len() as u64)?;
        let mut attributes = Attributes::new();
        attributes.insert(Attribute::Metadata(META_SHA256.into()), hex(&tag.sha256).into());
        attributes.insert(Attribute::Metadata(META_PUT_ID.into()), tag.put_id.clone().into());
        let options = PutOptions { mode, attributes, ..PutOptions::default() };
        match self.inner.put_opts(&self.path(key)?, PutPayload::from_bytes(body), options).await {
            Ok(_) => Ok(Put::Stored),
            Err(Error::AlreadyExists { .. } | Error::Precondition { .. }) => Ok(Put::Refused),
            Err(error) => Err(self.classify(true, key, &error)),
        }
    }

    /// The one classification of what the crate reports.
    fn classify(&self, writes: bool, key: &str, error: &Error) -> Fault {
        let full = error.to_string();
        let said = one_line(&full);
        let what = format!("{} in {}: {said}", if writes { format!("writing {key}") } else { format!("reading {key}") }, self.shown);
        let healing = |what: String| if writes { Fault::unknown(format!("{what}; it may have happened")) } else { Fault::transient(what) };
        match error {
            Error::NotFound { .. }
                if ["NoSuchBucket", "ContainerNotFound", "bucket does not exist"].iter().any(|sign| full.contains(sign)) =>
            {
                Fault::rejected(format!("{what}; create the bucket or correct ARGON_STORE_URL")).next(self.make_bucket())
            }
            // No object can be missing for a write: what answers is not the bucket.
            Error::NotFound { .. } if writes => Fault::rejected(format!(
                "{what}; there is no such bucket behind this endpoint now: check the endpoint and the bucket's name"
            )),
            Error::NotFound { .. } => Fault::missing(what),
            Error::PermissionDenied { .. } | Error::Unauthenticated { .. } => {
                Fault::rejected(format!("{what}; the credentials need to read, write, list and delete objects there"))
            }
            Error::InvalidPath { .. }
            | Error::NotSupported { .. }
            | Error::NotImplemented { .. }
            | Error::UnknownConfigurationKey { .. } => Fault::rejected(what),
            // The crate keeps its error type to itself; the kind of the transport's failure and the status in the text are what can be had.
            error if transport(error) == Some(HttpErrorKind::Connect) => Fault::transient(what),
            _ => match status(&full) {
                Some(429) => Fault::transient(what),
                Some(416) => Fault::corrupt(what),
                Some(400..=407 | 409..=499) => Fault::rejected(what),
                _ => healing(what),
            },
        }
    }

    fn make_bucket(&self) -> String {
        let (scheme, rest) = self.shown.split_once("://").unwrap_or_default();
        let bucket = rest.split('/').next().unwrap_or_default();
        match scheme {
            "az" => format!("az storage container create --name {bucket}"),
            _ => format!("gcloud storage buckets create gs://{bucket}"),
        }
    }

    async fn fetch(&self, key: &str, options: GetOptions) -> Result<object_store::GetResult, Error> {
        let path = self.path(key).map_err(|fault| Error::Generic { store: "key", source: fault.what.into() })?;
        self.inner.get_opts(&path, options).await
    }
}

/// The crate quotes whole answers: of one in XML, its code and message are what a person reads.
fn one_line(text: &str) -> String {
    let (before, xml) = text.split_once("<?xml").unwrap_or((text, ""));
    let of = |tag: &str| Some(xml.split_once(&format!("<{tag}>"))?.1.split_once(&format!("</{tag}>"))?.0);
    let words = [Some(before), of("Code"), of("Message")].into_iter().flatten().flat_map(str::split_whitespace);
    let line = words.collect::<Vec<_>>().join(" ");
    match line.char_indices().nth(MOST_SAID) {
        Some((end, _)) => format!("{}…", &line[..end]),
        None => line,
    }
}

#[async_trait]
impl ObjectStore for CloudStore {
    async fn put_new(&self, key: &str, body: Bytes, tag: &PutTag) -> Result<Put> {
        self.put(key, body, tag, PutMode::Create).await
    }

    async fn replace(&self, key: &str, body: Bytes, tag: &PutTag, version: &str) -> Result<Put> {
        self.put(key, body, tag, PutMode::Update(parse_version(version))).await
    }

    async fn get(&self, key: &str, range: Option<Range<u64>>) -> Result<Bytes> {
        check_key(key)?;
        if let Some(range) = &range {
            check_range(key, range, u64::MAX)?;
        }
        let options = GetOptions { range: range.clone().map(GetRange::Bounded), ..GetOptions::default() };
        let result = match self.fetch(key, options).await {
            Ok(result) => result,
            Err(error) => {
                let fault = self.classify(false, key, &error);
                // A range that begins past the end is an error of the crate's own, without a status.
                return match (range, fault.may_heal()) {
                    (Some(range), true) => match self.head(key).await? {
                        Some(info) => Err(check_range(key, &range, info.size).err().unwrap_or(fault)),
                        None => Err(Fault::missing(fault.what)),
                    },
                    _ => Err(fault),
                };
            }
        };
        let (size, given) = (result.meta.size, result.range.clone());
        match &range {
            Some(range) => {
                check_range(key, range, size)?;
                if given != *range {
                    return Err(Fault::corrupt(format!("object {key} in {}: the store did not give the range asked for", self.shown)));
                }
            }
            None => check_size(key, size)?,
        }
        let body = result.bytes().await.map_err(|error| self.classify(false, key, &error))?;
        if body.len() as u64 != given.end - given.start {
            return Err(Fault::transient(format!("object {key} in {}: the answer ended early", self.shown)));
        }
        Ok(body)
    }

    async fn head(&self, key: &str) -> Result<Option<ObjectInfo>> {
        check_key(key)?;
        match self.fetch(key, GetOptions { head: true, ..GetOptions::default() }).await {
            Ok(result) => {
                let of =
                    |name: &'static str| result.attributes.get(&Attribute::Metadata(name.into())).map(|value| value.as_ref().to_owned());
                Ok(Some(ObjectInfo {
                    key: key.to_owned(),
                    size: result.meta.size,
                    sha256: of(META_SHA256).as_deref().and_then(unhex),
                    put_id: of(META_PUT_ID),
                    version: Some(show_version(result.meta.e_tag.as_deref(), result.meta.version.as_deref())),
                    modified_ms: None,
                }))
            }
            Err(Error::NotFound { .. }) => Ok(None),
            Err(error) => Err(self.classify(false, key, &error)),
        }
    }

    async fn list(&self, prefix: &str, after: Option<&str>, max: usize) -> Result<Vec<ObjectInfo>> {
        check_prefix(prefix)?;
        check_page(max)?;
        // The crate lists directories; the rest of the prefix is compared here.
        let full = format!("{}{prefix}", self.prefix);
        let directory = full.rfind('/').map(|slash| Path::parse(&full[..slash])).transpose();
        let directory = directory.map_err(|error| Fault::rejected(format!("prefix {prefix:?} is not allowed: {error}")))?;
        let mut stream = match after {
            Some(after) => self.inner.list_with_offset(directory.as_ref(), &Path::from(format!("{}{after}", self.prefix))),
            None => self.inner.list(directory.as_ref()),
        };
        let mut page: Vec<ObjectInfo> = Vec::new();
        let mut order = ListOrder::after(after);
        while let Some(meta) = stream.try_next().await.map_err(|error| self.classify(false, prefix, &error))? {
            let Some(key) = meta.location.as_ref().strip_prefix(&self.prefix) else { continue };
            if after.is_some_and(|after| key <= after) {
                continue;
            }
            if !order.follows(key) {
                return Err(Fault::corrupt(format!("the listing of {prefix:?} in {} is in no order at {key}", self.shown)));
            }
            if !key.starts_with(prefix) || check_key(key).is_err() {
                continue;
            }
            page.push(ObjectInfo {
                key: key.to_owned(),
                size: meta.size,
                sha256: None,
                put_id: None,
                version: None,
                modified_ms: Some(meta.last_modified.timestamp_millis()),
            });
            if page.len() == max {
                break;
            }
        }
        Ok(page)
    }

    async fn delete(&self, key: &str) -> Result<()> {
        match self.inner.delete(&self.path(key)?).await {
            Ok(()) | Err(Error::NotFound { .. }) => Ok(()),
            Err(error) => Err(self.classify(true, key, &error)),
        }
    }

    fn describe(&self) -> String {
        self.shown.clone()
    }
}

/// One service compares ETags, the other generations: both are kept.
fn show_version(e_tag: Option<&str>, version: Option<&str>) -> String {
    format!("{}\n{}", e_tag.unwrap_or(""), version.unwrap_or(""))
}

fn parse_version(text: &str) -> UpdateVersion {
    let some = |part: &str| (!part.is_empty()).then(|| part.to_owned());
    let (e_tag, version) = text.split_once('\n').unwrap_or((text, ""));
    UpdateVersion { e_tag: some(e_tag), version: some(version) }
}

fn transport(error: &Error) -> Option<HttpErrorKind> {
    let mut source: Option<&(dyn StdError + 'static)> = Some(error);
    while let Some(error) = source {
        if let Some(http) = error.downcast_ref::<HttpError>() {
            return Some(http.kind());
        }
        source = error.source();
    }
    None
}

fn status(text: &str) -> Option<u16> {
    let (_, rest) = text.split_once("status code: ")?;
    rest.get(..3)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fault::Kind;
    use object_store::memory::InMemory;

    #[test]
    fn what_the_service_says_is_one_line_and_a_bucket_that_is_missing_comes_with_the_command_that_makes_it() {
        let xml = "Server returned non-2xx status code: 404 Not Found: <?xml version='1.0'?>\n<Error>\n <Code>ContainerNotFound</Code>\n <Message>The container\ndoes not exist.</Message>\n</Error>";
        assert_eq!(one_line(xml), "Server returned non-2xx status code: 404 Not Found: ContainerNotFound The container does not exist.");
        assert_eq!(one_line(&"é".repeat(MOST_SAID + 1)).chars().count(), MOST_SAID + 1);
        let missing = Error::NotFound { path: "k".to_owned(), source: format!("{} {xml}", "k".repeat(MOST_SAID)).into() };
        for (shown, next) in
            [("az://shop/x", "az storage container create --name shop"), ("gs://shop", "gcloud storage buckets create gs://shop")]
        {
            let fault = CloudStore::over(Arc::new(InMemory::new()), "", shown.to_owned()).classify(false, "k", &missing);
            assert_eq!((fault.kind, fault.next.as_deref()), (Kind::Rejected, Some(next)), "{fault}");
            assert!(!fault.what.contains('\n'), "{fault}");
        }
    }

    #[test]
    fn failures_are_classified_like_those_of_s3() {
        let store = CloudStore::over(Arc::new(InMemory::new()), "", "gs://shop".to_owned());
        let generic = |text: &str| Error::Generic { store: "GCS", source: text.to_owned().into() };
        let not_found = |text: &str| Error::NotFound { path: "k".to_owned(), source: text.to_owned().into() };
        let denied = Error::PermissionDenied { path: "k".to_owned(), source: "no".into() };
        let refused =
            Error::Generic { store: "GCS", source: Box::new(HttpError::new(HttpErrorKind::Connect, std::io::Error::other("refused"))) };
        let broken =
            Error::Generic { store: "GCS", source: Box::new(HttpError::new(HttpErrorKind::Interrupted, std::io::Error::other("reset"))) };
        for (error, on_write, on_read) in [
            (generic("Server returned non-2xx status code: 503 Service Unavailable: "), Kind::Unknown, Kind::Transient),
            (generic("Server returned non-2xx status code: 429 Too Many Requests: "), Kind::Transient, Kind::Transient),
            (generic("Server returned non-2xx status code: 400 Bad Request: "), Kind::Rejected, Kind::Rejected),
            (generic("something new"), Kind::Unknown, Kind::Transient),
            (not_found("NoSuchKey"), Kind::Rejected, Kind::Missing),
            (not_found("404 page not found"), Kind::Rejected, Kind::Missing),
            (not_found("NoSuchBucket"), Kind::Rejected, Kind::Rejected),
            (denied, Kind::Rejected, Kind::Rejected),
            (refused, Kind::Transient, Kind::Transient),
            (broken, Kind::Unknown, Kind::Transient),
        ] {
            assert_eq!(store.classify(true, "k", &error).kind, on_write, "{error}");
            assert_eq!(store.classify(false, "k", &error).kind, on_read, "{error}");
        }
    }

    #[test]
    fn versions_survive_their_text_form() {
        for (e_tag, version) in [(Some("\"a\""), None), (None, Some("17")), (Some("\"a\""), Some("17"))] {
            let parsed = parse_version(&show_version(e_tag, version));
            assert_eq!((parsed.e_tag.as_deref(), parsed.version.as_deref()), (e_tag, version));
        }
    }
}
