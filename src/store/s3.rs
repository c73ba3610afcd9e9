//! Owns: the store in an S3 bucket, or in anything that speaks S3: requests, time-outs, metadata, paging.
//! Does not own: what a failure means (`s3_fault`), repeating (the SDK's own retries are off: there is one layer, above), creating buckets.

use std::ops::Range;
use std::path::Path;
use std::time::Duration;

use async_trait::async_trait;
use aws_config::BehaviorVersion;
use aws_sdk_s3::Client;
use aws_sdk_s3::config::retry::RetryConfig;
use aws_sdk_s3::config::timeout::TimeoutConfig;
use aws_sdk_s3::config::{
    Credentials, Region, RequestChecksumCalculation, ResponseChecksumValidation, SharedHttpClient, StalledStreamProtectionConfig,
};
use aws_sdk_s3::error::ProvideErrorMetadata;
use aws_sdk_s3::primitives::ByteStream;
use aws_smithy_http_client::tls::{Provider, TlsContext, TrustStore, rustls_provider::CryptoMode};
use bytes::{Bytes, BytesMut};

use super::key::{check_key, check_page, check_prefix};
use super::s3_fault::{Asked, Verb, classify};
use super::{ListOrder, MAX_OBJECT_BYTES, ObjectInfo, ObjectStore, Put, PutTag, StoreOptions, check_size, hex, unhex};
use crate::fault::{Fault, Kind, Result};
use crate::runtime::tls;

const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// Slowest transfer that is waited for: a mebibyte in this time, beside the time for the operation itself.
const PER_MIB: Duration = Duration::from_secs(1);
const META_SHA256: &str = "sha256";
const META_PUT_ID: &str = "put-id";
/// A buffer is made at once for what the answer announces, up to this; beyond it grows with what really arrives.
const MAX_FIRST_BUFFER: u64 = 16 << 20;

/// A store in a bucket.
pub struct S3Store {
    client: Client,
    bucket: String,
    /// Empty, or ends with `/`.
    prefix: String,
    shown: String,
    checksums: bool,
    timeout: Duration,
}

impl std::fmt::Debug for S3Store {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("S3Store").field("url", &self.shown).finish_non_exhaustive()
    }
}

impl S3Store {
    /// A store in `bucket` under `prefix` (without slashes at its ends, may be empty). Credentials and region come from the SDK's own
    /// chain. Asks the service nothing: whether it works is the probe's business.
    pub async fn open(bucket: &str, prefix: &str, options: &StoreOptions) -> Result<Self> {
        let http = http_client(options.ca_file.as_deref())?;
        let mut loader = aws_config::defaults(BehaviorVersion::v2026_01_12()).http_client(http);
        if let Some(keys) = &options.s3_keys {
            loader = loader.credentials_provider(Credentials::new(&keys.access_key, &keys.secret_key, None, None, "given"));
        }
        let sdk = loader.load().await;
        let endpoint = options.endpoint.clone().or_else(|| sdk.endpoint_url().map(str::to_owned));
        let region = match (sdk.region(), &endpoint) {
            (Some(region), _) => region.clone(),
            (None, Some(_)) => Region::from_static("us-east-1"), // what stores that have no regions expect
            (None, None) => {
                let what = format!(
                    "the region of bucket {bucket} is not known: set AWS_REGION, or ARGON_S3_ENDPOINT where the store is not Amazon's"
                );
                return Err(Fault::config(what).next("export AWS_REGION=eu-central-1"));
            }
        };
        let (own_endpoint, checksums) = (endpoint.is_some(), options.checksums.or(endpoint.is_none()));
        let (on_put, on_get) = match checksums {
            true => (RequestChecksumCalculation::WhenSupported, ResponseChecksumValidation::WhenSupported),
            false => (RequestChecksumCalculation::WhenRequired, ResponseChecksumValidation::WhenRequired),
        };
        let shown = match &endpoint {
            Some(endpoint) => format!("{} at {endpoint}", url(bucket, prefix)),
            None => url(bucket, prefix),
        };
        let mut config = aws_sdk_s3::config::Builder::from(&sdk)
            .region(region)
            .retry_config(RetryConfig::disabled())
            .timeout_config(TimeoutConfig::builder().connect_timeout(CONNECT_TIMEOUT).build())
            .stalled_stream_protection(StalledStreamProtectionConfig::disabled()) // each operation has a time-out of its own
            .request_checksum_calculation(on_put)
            .response_checksum_validation(on_get)
            .force_path_style(options.path_style.or(own_endpoint));
        config.set_endpoint_url(endpoint);
        let prefix = if prefix.is_empty() { String::new() } else { format!("{prefix}/") };
        let client = Client::from_conf(config.build());
        Ok(Self { client, bucket: bucket.to_owned(), prefix, shown, checksums, timeout: options.timeout })
    }

    fn full(&self, key: &str) -> Result<String> {
        check_key(key)?;
        Ok(format!("{}{key}", self.prefix))
    }

    fn asked<'a>(&'a self, verb: Verb, key: &'a str) -> Asked<'a> {
        Asked { verb, key, bucket: &self.bucket, store: &self.shown }
    }

    fn time_for(&self, bytes: u64) -> Duration {
        let mebibytes = u32::try_from(bytes >> 20).unwrap_or(u32::MAX);
        self.timeout.saturating_add(PER_MIB.saturating_mul(mebibytes))
    }

    /// A conditional put: `if_match` a version, or only if nothing is there.
    async fn put(&self, key: &str, body: Bytes, tag: &PutTag, if_match: Option<&str>) -> Result<Put> {
        check_size(key, body.len() as u64)?;
        let (asked, time) = (self.asked(Verb::Put, key), self.time_for(body.len() as u64));
        let mut request = self
            .client
            .put_object()
            .bucket(&self.bucket)
            .key(self.full(key)?)
            .content_type("application/octet-stream")
            .metadata(META_SHA256, hex(&tag.sha256))
            .metadata(META_PUT_ID, &tag.put_id)
            .set_checksum_sha256(self.checksums.then(|| base64(&tag.sha256)))
            .body(ByteStream::from(body));
        request = match if_match {
            Some(version) => request.if_match(version),
            None => request.if_none_match("*"),
        };
        let Ok(sent) = tokio::time::timeout(time, request.send()).await else { return Err(asked.timed_out(time)) };
        let error = match sent {
            Ok(_) => return Ok(Put::Stored),
            Err(error) => error,
        };
        let status = error.raw_response().map(|response| response.status().as_u16());
        match (status, error.code()) {
            // A conflict with another conditional request that is still under way: nobody knows yet who wins, so ask again.
            (Some(409), Some("ConditionalRequestConflict" | "OperationAborted")) => Err(classify(asked, &error)),
            (Some(412 | 409), _) => Ok(Put::Refused),
            (Some(404), Some("NoSuchKey")) if if_match.is_some() => Ok(Put::Refused),
            _ => Err(classify(asked, &error)),
        }
    }

    async fn read_body(&self, key: &str, mut body: ByteStream, announced: Option<u64>, wanted: Option<u64>) -> Result<Bytes> {
        let asked = self.asked(Verb::Get, key);
        let limit = wanted.or(announced).unwrap_or(MAX_OBJECT_BYTES);
        check_size(key, limit)?;
        let mut bytes = BytesMut::with_capacity(usize::try_from(limit.min(MAX_FIRST_BUFFER)).unwrap_or(0));
        while let Some(chunk) = body.try_next().await.map_err(|error| asked.no_answer(&error.to_string(), true))? {
            if (bytes.len() + chunk.len()) as u64 > limit {
                return Err(Fault::corrupt(format!("object {key} in {}: more than the {limit} bytes asked for arrived", self.shown)));
            }
            bytes.extend_from_slice(&chunk);
        }
        match (announced, wanted) {
            (Some(announced), _) if bytes.len() as u64 != announced => Err(asked.no_answer("the answer ended early", true)),
            (_, Some(wanted)) if bytes.len() as u64 != wanted => {
                Err(Fault::corrupt(format!("object {key} in {}: {} bytes arrived where {wanted} were asked for", self.shown, bytes.len())))
            }
            _ => Ok(bytes.freeze()),
        }
    }

    async fn get_within(&self, key: &str, range: Option<Range<u64>>) -> Result<Bytes> {
        let asked = self.asked(Verb::Get, key);
        let header = range.as_ref().map(|range| format!("bytes={}-{}", range.start, range.end - 1));
        let request = self.client.get_object().bucket(&self.bucket).key(self.full(key)?).set_range(header);
        let Ok(sent) = tokio::time::timeout(self.timeout, request.send()).await else { return Err(asked.timed_out(self.timeout)) };
        let output = sent.map_err(|error| classify(asked, &error))?;
        let announced = output.content_length().and_then(|length| u64::try_from(length).ok());
        if let Some(range) = &range {
            let begins = output.content_range().is_some_and(|text| text.starts_with(&format!("bytes {}-", range.start)));
            if !begins && (range.start > 0 || announced != Some(range.end)) {
                return Err(Fault::corrupt(format!("object {key} in {}: the store did not give the range asked for", self.shown)));
            }
        }
        let wanted = range.map(|range| range.end - range.start);
        let time = self.time_for(wanted.or(announced).unwrap_or(MAX_OBJECT_BYTES));
        let read = tokio::time::timeout(time, self.read_body(key, output.body, announced, wanted)).await;
        read.unwrap_or_else(|_| Err(asked.timed_out(time)))
    }
}

#[async_trait]
impl ObjectStore for S3Store {
    async fn put_new(&self, key: &str, body: Bytes, tag: &PutTag) -> Result<Put> {
        self.put(key, body, tag, None).await
    }

    async fn replace(&self, key: &str, body: Bytes, tag: &PutTag, version: &str) -> Result<Put> {
        self.put(key, body, tag, Some(version)).await
    }

    async fn get(&self, key: &str, range: Option<Range<u64>>) -> Result<Bytes> {
        if let Some(range) = &range {
            super::check_range(key, range, u64::MAX)?;
        }
        self.get_within(key, range).await
    }

    async fn head(&self, key: &str) -> Result<Option<ObjectInfo>> {
        let asked = self.asked(Verb::Head, key);
        let request = self.client.head_object().bucket(&self.bucket).key(self.full(key)?);
        let Ok(sent) = tokio::time::timeout(self.timeout, request.send()).await else { return Err(asked.timed_out(self.timeout)) };
        let output = match sent {
            Ok(output) => output,
            Err(error) => {
                let fault = classify(asked, &error);
                return if fault.kind == Kind::Missing { Ok(None) } else { Err(fault) };
            }
        };
        let of = |name: &str| output.metadata().and_then(|all| all.get(name)).map(String::as_str);
        Ok(Some(ObjectInfo {
            key: key.to_owned(),
            size: size_of(output.content_length()),
            sha256: of(META_SHA256).and_then(unhex),
            put_id: of(META_PUT_ID).map(str::to_owned),
            version: output.e_tag().map(str::to_owned),
            modified_ms: None,
        }))
    }

    async fn list(&self, prefix: &str, after: Option<&str>, max: usize) -> Result<Vec<ObjectInfo>> {
        check_prefix(prefix)?;
        check_page(max)?;
        let asked = self.asked(Verb::List, prefix);
        let mut page: Vec<ObjectInfo> = Vec::with_capacity(max);
        let mut order = ListOrder::after(after);
        // A service may give less than it was asked for and say that there is more.
        loop {
            let request = self
                .client
                .list_objects_v2()
                .bucket(&self.bucket)
                .prefix(format!("{}{prefix}", self.prefix))
                .set_start_after(order.last.as_ref().map(|after| format!("{}{after}", self.prefix)))
                .max_keys(i32::try_from(max - page.len()).unwrap_or(1000));
            let Ok(sent) = tokio::time::timeout(self.timeout, request.send()).await else { return Err(asked.timed_out(self.timeout)) };
            let output = sent.map_err(|error| classify(asked, &error))?;
            for object in output.contents() {
                let Some(key) = object.key().and_then(|key| key.strip_prefix(&self.prefix)) else {
                    return Err(Fault::corrupt(format!(
                        "the listing of {prefix:?} in {} has a key outside of it: {:?}",
                        self.shown,
                        object.key()
                    )));
                };
                // Keys that are none of ours (markers of directories, say) are passed over.
                let wanted = key.starts_with(prefix) && check_key(key).is_ok() && page.len() < max;
                if !order.follows(key) {
                    return Err(Fault::corrupt(format!("the listing of {prefix:?} in {} is in no order at {key}", self.shown)));
                }
                if wanted {
                    let modified_ms = object.last_modified().and_then(|at| at.to_millis().ok());
                    let (key, size) = (key.to_owned(), size_of(object.size()));
                    page.push(ObjectInfo { key, size, sha256: None, put_id: None, version: None, modified_ms });
                }
            }
            if page.len() == max || output.is_truncated() != Some(true) || output.contents().is_empty() {
                return Ok(page);
            }
        }
    }

    async fn delete(&self, key: &str) -> Result<()> {
        let asked = self.asked(Verb::Delete, key);
        let request = self.client.delete_object().bucket(&self.bucket).key(self.full(key)?);
        let Ok(sent) = tokio::time::timeout(self.timeout, request.send()).await else { return Err(asked.timed_out(self.timeout)) };
        match sent.map_err(|error| classify(asked, &error)) {
            Err(fault) if fault.kind != Kind::Missing => Err(fault),
            _ => Ok(()),
        }
    }

    fn verifies_puts(&self) -> bool {
        self.checksums
    }

    fn describe(&self) -> String {
        self.shown.clone()
    }
}

/// A client for plain HTTP and HTTPS. `ca_file` replaces this machine's root certificates, as `AWS_CA_BUNDLE` does everywhere: a store with
/// an authority of its own is then trusted by that one alone.
pub(crate) fn http_client(ca_file: Option<&Path>) -> Result<SharedHttpClient> {
    let builder = aws_smithy_http_client::Builder::new().tls_provider(Provider::Rustls(CryptoMode::Ring));
    let Some(path) = ca_file else { return Ok(builder.build_https()) };
    // SUBTLE: one by one and only those that can be used, since the client panics at any other.
    let trusted = tls::authorities(path, tls::S3.authorities)?;
    let trusted = trusted.iter().fold(TrustStore::empty(), |store, certificate| store.with_pem_certificate(pem(certificate)));
    let context = TlsContext::builder().with_trust_store(trusted).build().map_err(|e| Fault::config(format!("TLS: {e}")))?;
    Ok(builder.tls_context(context).build_https())
}

fn pem(certificate: &[u8]) -> String {
    format!("-----BEGIN CERTIFICATE-----\n{}\n-----END CERTIFICATE-----\n", base64(certificate))
}

fn url(bucket: &str, prefix: &str) -> String {
    if prefix.is_empty() { format!("s3://{bucket}") } else { format!("s3://{bucket}/{prefix}") }
}

fn size_of(length: Option<i64>) -> u64 {
    length.and_then(|length| u64::try_from(length).ok()).unwrap_or(0)
}

/// Standard base64 with padding, the form of checksums in S3's headers and of PEM.
fn base64(bytes: &[u8]) -> String {
    const ALPHABET: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut text = String::with_capacity(bytes.len().div_ceil(3) * 4);
    for chunk in bytes.chunks(3) {
        let group = chunk.iter().fold(0u32, |group, &byte| group << 8 | u32::from(byte)) << (8 * (3 - chunk.len()));
        for i in 0..4 {
            let sextet = (group >> (18 - 6 * i) & 63) as usize;
            text.push(if i <= chunk.len() { char::from(ALPHABET[sextet]) } else { '=' });
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use rustls::pki_types::CertificateDer;
    use rustls::pki_types::pem::PemObject;

    use super::*;

    #[test]
    fn base64_has_the_standard_form() {
        for (bytes, text) in
            [("", ""), ("f", "Zg=="), ("fo", "Zm8="), ("foo", "Zm9v"), ("foob", "Zm9vYg=="), ("fooba", "Zm9vYmE="), ("foobar", "Zm9vYmFy")]
        {
            assert_eq!(base64(bytes.as_bytes()), text);
        }
        assert_eq!(base64(&[0xfb, 0xff, 0xbf]), "+/+/");
    }

    #[test]
    fn a_bundle_is_taken_with_what_in_it_cannot_be_used() {
        crate::store::install_tls();
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("bundle.pem");
        let good = rcgen::generate_simple_self_signed(vec!["localhost".into()]).unwrap().cert;
        std::fs::write(&path, format!("# a comment\n{}{}{}", good.pem(), pem(b"not a certificate"), good.pem())).unwrap();
        http_client(Some(&path)).unwrap();
        assert_eq!(CertificateDer::from_pem_slice(pem(good.der()).as_bytes()).unwrap(), *good.der());
        std::fs::write(&path, "nothing").unwrap();
        let fault = http_client(Some(&path)).unwrap_err();
        assert!(fault.kind == Kind::Config && fault.what.starts_with("AWS_CA_BUNDLE /"), "{fault}");
    }
}
