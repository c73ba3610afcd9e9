//! Owns: a real S3 service for demo, tests and benches: SeaweedFS on loopback ports, with credentials made up for the run.
//! Does not own where the binary comes from ([`super::binaries`]) or that it dies with its owner ([`super::process`]).

use std::fs;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::Duration;

use aws_sdk_s3::Client;
use aws_sdk_s3::config::retry::RetryConfig;
use aws_sdk_s3::config::timeout::TimeoutConfig;
use aws_sdk_s3::config::{BehaviorVersion, Credentials, Region, StalledStreamProtectionConfig};
use aws_sdk_s3::error::{ProvideErrorMetadata, SdkError};
use parking_lot::Mutex;

use super::process::{Launch, Process, Workdir};
use super::tls::Tls;
use super::{binaries, ports};
use crate::fault::{Fault, Result};
use crate::runtime::{clock, random};
use crate::store::http_client;

const REGION: &str = "us-east-1";
/// A fresh one answers after 3.5 s; one that was killed needs 13 to 23 s to come back.
const START_LIMIT: Duration = Duration::from_secs(90);
const POLL: Duration = Duration::from_millis(25);

/// Its ports: HTTP and gRPC of each of its four parts.
#[derive(Debug, Clone, Copy)]
struct Ports {
    master: [u16; 2],
    volume: [u16; 2],
    filer: [u16; 2],
    s3: [u16; 2],
}

impl Ports {
    fn free() -> Result<Self> {
        let [a, b, c, d, e, f, g, h] = ports::free()?;
        Ok(Self { master: [a, b], volume: [c, d], filer: [e, f], s3: [g, h] })
    }

    fn parts(&self) -> [(&'static str, [u16; 2]); 4] {
        [("master", self.master), ("volume", self.volume), ("filer", self.filer), ("s3", self.s3)]
    }

    /// Sockets that it makes outside of every directory that it can be told, and leaves behind.
    fn sockets(&self) -> Vec<PathBuf> {
        let grpc = self.parts().map(|(part, [_, port])| PathBuf::from(format!("/tmp/seaweedfs-{part}-grpc-{port}.sock")));
        let http =
            [("filer", self.filer), ("s3", self.s3)].map(|(part, [port, _])| PathBuf::from(format!("/tmp/seaweedfs-{part}-{port}.sock")));
        grpc.into_iter().chain(http).collect()
    }

    fn args(&self) -> Vec<String> {
        let of = |(part, [http, grpc]): (&str, [u16; 2])| [format!("-{part}.port={http}"), format!("-{part}.port.grpc={grpc}")];
        self.parts().into_iter().flat_map(of).collect()
    }
}

/// How it differs from one for anybody with its keys.
#[derive(Debug, Clone, Default)]
pub struct WeedOptions {
    /// Its endpoint speaks HTTPS and nothing else. It asks no client for a certificate.
    pub tls: Option<Tls>,
    /// Identities beside its own, which may do everything: rows of `identities` in SeaweedFS's own configuration.
    pub identities: Vec<serde_json::Value>,
}

/// A running S3 service. Dropping kills it and removes its data.
#[derive(Debug)]
pub struct Weed {
    process: Mutex<Option<Process>>,
    binary: PathBuf,
    ports: Ports,
    access_key: String,
    secret_key: String,
    client: Client,
    tls: Option<Tls>,
    dir: Workdir, // after the process: its data goes when it is gone
}

impl Weed {
    /// Starts it; returns when it has taken, given back and removed an object (about 3.5 s, most of it waiting for itself).
    pub async fn start() -> Result<Self> {
        Self::start_with(WeedOptions::default()).await
    }

    /// The same with options.
    pub async fn start_with(options: WeedOptions) -> Result<Self> {
        let WeedOptions { tls, identities } = options;
        let binary = tokio::task::spawn_blocking(binaries::weed).await.map_err(|error| Fault::unknown(error.to_string()))??;
        let deadline = clock::now() + START_LIMIT;
        loop {
            let ports = Ports::free()?;
            let access_key = format!("AK{}", &random::id().replace('-', "")[..18]);
            let secret_key = random::id().replace('-', "");
            let client = s3_client(&endpoint(ports, tls.as_ref()), &access_key, &secret_key, tls.as_ref())?;
            let dir = Workdir::with_extras("weed", ports.sockets())?;
            let weed =
                Self { process: Mutex::new(None), binary: binary.clone(), ports, access_key, secret_key, client, tls: tls.clone(), dir };
            weed.write_config(&identities)?;
            match weed.launch().await {
                Err(_) if ports::taken(&weed.log_tail(100_000)) && clock::now() < deadline => continue,
                Err(fault) => return Err(fault),
                Ok(()) => return Ok(weed),
            }
        }
    }

    /// `http://127.0.0.1:PORT` or `https://127.0.0.1:PORT`, for path-style addressing.
    pub fn endpoint(&self) -> String {
        endpoint(self.ports, self.tls.as_ref())
    }

    /// The address of the endpoint, for a [`super::Proxy`] in front of it.
    pub fn address(&self) -> SocketAddr {
        (Ipv4Addr::LOCALHOST, self.ports.s3[0]).into()
    }

    /// Made up for this run.
    pub fn access_key(&self) -> &str {
        &self.access_key
    }

    /// Made up for this run.
    pub fn secret_key(&self) -> &str {
        &self.secret_key
    }

    /// Any region is accepted; signatures name this one.
    pub fn region(&self) -> &'static str {
        REGION
    }

    /// A plain S3 client without retries, for preparing and auditing buckets.
    pub fn client(&self) -> &Client {
        &self.client
    }

    /// The directory with data and log.
    pub fn dir(&self) -> &Path {
        self.dir.path()
    }

    /// Process id, while it runs.
    pub fn pid(&self) -> Option<u32> {
        self.process.lock().as_ref().map(Process::pid)
    }

    /// The end of its log.
    pub fn log_tail(&self, bytes: u64) -> String {
        super::process::tail(&self.dir.path().join("log"), bytes)
    }

    /// Makes a bucket; one that exists is fine.
    pub async fn create_bucket(&self, name: &str) -> Result<()> {
        match self.client.create_bucket().bucket(name).send().await {
            Ok(_) => Ok(()),
            Err(error) if error.as_service_error().is_some_and(|error| error.is_bucket_already_owned_by_you()) => Ok(()),
            Err(error) => Err(Fault::unknown(format!("cannot create bucket {name}: {}", reason(&error)))),
        }
    }

    /// `s3://bucket/prefix`, or `s3://bucket` for an empty prefix.
    pub fn store_url(&self, bucket: &str, prefix: &str) -> String {
        format!("s3://{bucket}/{}", prefix.trim_matches('/')).trim_end_matches('/').to_owned()
    }

    /// Variables that make a child process use `store_url(bucket, prefix)` here.
    pub fn env(&self, bucket: &str, prefix: &str) -> Vec<(String, String)> {
        let pairs = [
            ("AWS_ACCESS_KEY_ID", self.access_key.clone()),
            ("AWS_SECRET_ACCESS_KEY", self.secret_key.clone()),
            ("AWS_REGION", REGION.to_owned()),
            ("ARGON_S3_ENDPOINT", self.endpoint()),
            ("ARGON_STORE_URL", self.store_url(bucket, prefix)),
        ];
        let authority = self.tls.iter().map(|tls| ("AWS_CA_BUNDLE", tls.authority.display().to_string()));
        pairs.into_iter().chain(authority).map(|(name, value)| (name.to_owned(), value)).collect()
    }

    /// kill -9; the data stay.
    pub fn kill(&self) {
        if let Some(mut process) = self.process.lock().take() {
            process.kill();
        }
    }

    /// Starts it again on its ports and data; after a kill this takes 13 to 23 s.
    pub async fn restart(&self) -> Result<()> {
        self.kill();
        self.launch().await
    }

    /// Freezes it (SIGSTOP).
    pub fn pause(&self) -> Result<()> {
        self.with_process(Process::pause)
    }

    /// Lets it go on.
    pub fn resume(&self) -> Result<()> {
        self.with_process(Process::resume)
    }

    fn with_process(&self, act: impl FnOnce(&mut Process) -> Result<()>) -> Result<()> {
        act(self.process.lock().as_mut().ok_or_else(|| Fault::missing("the devkit's weed is not running"))?)
    }

    /// Without a configuration file every credential would do.
    fn write_config(&self, others: &[serde_json::Value]) -> Result<()> {
        let own = serde_json::json!({
            "name": "devkit",
            "credentials": [{ "accessKey": self.access_key, "secretKey": self.secret_key }],
            "actions": ["Admin", "Read", "Write", "List", "Tagging"],
        });
        let identities = [&[own], others].concat();
        let config = serde_json::json!({ "identities": identities });
        let write = || fs::write(self.dir.path().join("s3.json"), config.to_string()).and_then(|()| fs::create_dir_all(self.data()));
        write().map_err(|error| Fault::transient(format!("cannot write in {}: {error}", self.dir.path().display())))
    }

    fn data(&self) -> PathBuf {
        self.dir.path().join("data")
    }

    async fn launch(&self) -> Result<()> {
        let mut args: Vec<String> =
            ["-logtostderr=true", "server", "-s3", "-ip=127.0.0.1", "-ip.bind=127.0.0.1"].map(str::to_owned).to_vec();
        args.push(format!("-dir={}", self.data().display()));
        args.push(format!("-s3.config={}", self.dir.path().join("s3.json").display()));
        args.extend(["-volume.max=200", "-master.volumeSizeLimitMB=64", "-master.telemetry=false"].map(str::to_owned));
        args.extend(["-s3.port.iceberg=0", "-s3.port.lance=0"].map(str::to_owned)); // services with fixed ports that nobody needs
        if let Some(tls) = &self.tls {
            args.extend([format!("-s3.cert.file={}", tls.server.display()), format!("-s3.key.file={}", tls.server.display())]);
        }
        args.extend(self.ports.args());
        let process = Process::start("weed", &Launch::new(&self.binary, args, self.dir.path().join("log")))?;
        *self.process.lock() = Some(process);
        let deadline = clock::now() + START_LIMIT;
        loop {
            let tried = Box::pin(self.probe()).await;
            let late = clock::now() >= deadline;
            if self.judge(tried, late)? {
                return Ok(());
            }
            tokio::time::sleep(POLL).await;
        }
    }

    /// Whether it is ready, after a probe; a process that has ended, or is late, never will be.
    fn judge(&self, tried: Result<()>, late: bool) -> Result<bool> {
        let mut slot = self.process.lock();
        let process = slot.as_mut().ok_or_else(|| Fault::missing("weed was killed while it started"))?;
        match tried {
            _ if process.exited().is_some() => Err(process.failed("did not start")),
            Ok(()) => Ok(true),
            Err(fault) if late => Err(process.failed(&format!("was not ready in time ({fault})"))),
            Err(_) => Ok(false),
        }
    }

    /// Puts, reads and removes an object: it answers requests long before it can store anything. That our made-up credentials work
    /// shows too that it is ours and not another one on a port that was taken meanwhile.
    async fn probe(&self) -> Result<()> {
        const BUCKET: &str = "argon-devkit-probe";
        self.create_bucket(BUCKET).await?;
        let body = aws_sdk_s3::primitives::ByteStream::from_static(b"probe");
        self.client.put_object().bucket(BUCKET).key("probe").body(body).send().await.map_err(|error| Fault::transient(reason(&error)))?;
        self.client.get_object().bucket(BUCKET).key("probe").send().await.map_err(|error| Fault::transient(reason(&error)))?;
        self.client.delete_object().bucket(BUCKET).key("probe").send().await.map_err(|error| Fault::transient(reason(&error)))?;
        self.client.delete_bucket().bucket(BUCKET).send().await.map_err(|error| Fault::transient(reason(&error))).map(drop)
    }
}

fn endpoint(ports: Ports, tls: Option<&Tls>) -> String {
    format!("{}://127.0.0.1:{}", if tls.is_some() { "https" } else { "http" }, ports.s3[0])
}

/// One line: what the service said, or why it could not be asked.
fn reason<E: ProvideErrorMetadata>(error: &SdkError<E>) -> String {
    match error.as_service_error() {
        Some(said) => format!("{} ({})", said.message().unwrap_or("no message"), said.code().unwrap_or("no code")),
        None => error.to_string(),
    }
}

fn s3_client(endpoint: &str, access_key: &str, secret_key: &str, tls: Option<&Tls>) -> Result<Client> {
    let http = match tls {
        None => aws_smithy_http_client::Builder::new().build_http(),
        Some(tls) => http_client(Some(&tls.authority))?,
    };
    let timeouts =
        TimeoutConfig::builder().connect_timeout(Duration::from_secs(2)).operation_attempt_timeout(Duration::from_secs(20)).build();
    let config = aws_sdk_s3::Config::builder()
        .behavior_version(BehaviorVersion::v2026_01_12())
        .region(Region::from_static(REGION))
        .credentials_provider(Credentials::new(access_key, secret_key, None, None, "devkit"))
        .endpoint_url(endpoint)
        .force_path_style(true)
        .retry_config(RetryConfig::disabled())
        .timeout_config(timeouts)
        .stalled_stream_protection(StalledStreamProtectionConfig::disabled())
        .http_client(http);
    Ok(Client::from_conf(config.build()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_part_has_ports_of_its_own() {
        let ports = Ports::free().unwrap();
        let mut all: Vec<u16> = ports.parts().into_iter().flat_map(|(_, pair)| pair).collect();
        all.sort_unstable();
        all.dedup();
        assert_eq!(all.len(), 8);
        assert!(ports.args().contains(&format!("-s3.port.grpc={}", ports.s3[1])));
    }
}
