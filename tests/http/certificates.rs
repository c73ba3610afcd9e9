//! TLS of the API with an authority of its own, and clients that show certificates.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use argon::config::{HttpSettings, Secret};
use argon::http::client::{Client, Target};
use argon::http::{JobsPage, WorkersStats};
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::{ClientConfig, RootCertStore};
use tokio::net::TcpStream;

use crate::wire::{self, Reply, exchange};
use crate::world::{World, until};

/// An authority, and what it has signed, as PEM.
struct Authority {
    issuer: CertifiedIssuer<'static, KeyPair>,
}

impl Authority {
    fn new() -> Self {
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.distinguished_name.push(rcgen::DnType::CommonName, format!("authority {}", argon::runtime::random::id()));
        let issuer = CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap();
        Self { issuer }
    }

    fn pem(&self) -> String {
        self.issuer.pem()
    }

    /// Certificate and key for a name.
    fn sign(&self, name: &str) -> (String, String) {
        let key = KeyPair::generate().unwrap();
        let params = CertificateParams::new(vec![name.to_owned(), "127.0.0.1".to_owned()]).unwrap();
        let certificate = params.signed_by(&key, &self.issuer).unwrap();
        (certificate.pem(), key.serialize_pem())
    }
}

/// Writes into the directory of the control socket, and gives the paths.
fn write(settings: &HttpSettings, files: &[(&str, &str)]) -> Vec<PathBuf> {
    let beside = |name: &str| settings.control_socket.as_ref().unwrap().with_file_name(name);
    files
        .iter()
        .map(|(name, text)| {
            std::fs::write(beside(name), text).unwrap();
            beside(name)
        })
        .collect()
}

fn trust(authority: &Authority) -> RootCertStore {
    let mut roots = RootCertStore::empty();
    roots.add(CertificateDer::from_pem_slice(authority.pem().as_bytes()).unwrap()).unwrap();
    roots
}

/// A request over TLS: the answer, or that there is none.
async fn ask(world: &World, authority: &Authority, identity: Option<&(String, String)>, path: &str) -> Result<Reply, String> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let builder = ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions().unwrap();
    let builder = builder.with_root_certificates(trust(authority));
    let config = match identity {
        None => builder.with_no_client_auth(),
        Some((certificate, key)) => {
            let chain = vec![CertificateDer::from_pem_slice(certificate.as_bytes()).unwrap()];
            builder.with_client_auth_cert(chain, PrivateKeyDer::from_pem_slice(key.as_bytes()).unwrap()).unwrap()
        }
    };
    let connector = tokio_rustls::TlsConnector::from(Arc::new(config));
    let stream = TcpStream::connect(world.addr()).await.map_err(|e| e.to_string())?;
    let name = ServerName::try_from("localhost").unwrap();
    let stream = connector.connect(name, stream).await.map_err(|e| e.to_string())?;
    let read = exchange(stream, &wire::request("GET", path, None, None), Duration::from_secs(20)).await;
    Reply::parse(&read).ok_or_else(|| format!("no answer: {} bytes", read.len()))
}

#[tokio::test(flavor = "multi_thread")]
async fn the_api_speaks_tls_with_a_certificate_of_an_own_authority_and_reads_a_new_one() {
    let (authority, other) = (Authority::new(), Authority::new());
    let (certificate, key) = authority.sign("localhost");
    let world = World::with(|settings| {
        let mut files = write(settings, &[("cert.pem", &certificate), ("key.pem", &key)]).into_iter();
        (settings.tls_cert, settings.tls_key) = (files.next(), files.next());
    })
    .await;
    assert_eq!(ask(&world, &authority, None, "/health").await.unwrap().status, 200);
    let error = ask(&world, &other, None, "/health").await.unwrap_err();
    assert!(error.contains("certificate"), "{error}");
    let plain = wire::raw(world.addr(), &wire::request("GET", "/health", None, None)).await;
    assert!(plain.is_none_or(|reply| reply.status != 200), "nothing is answered in plain text");
    let metrics = wire::send(world.metrics_addr(), "GET", "/health", None, None).await;
    assert_eq!(metrics.status, 200, "the metrics' own address is plain");

    // A renewed certificate, of another authority so that it can be told apart, counts without a restart; half of a pair changes nothing.
    let (certificate, key) = other.sign("localhost");
    std::fs::write(world.dir.path().join("cert.pem"), certificate).unwrap();
    tokio::time::sleep(Duration::from_secs(3)).await;
    assert_eq!(ask(&world, &authority, None, "/health").await.unwrap().status, 200);
    std::fs::write(world.dir.path().join("key.pem"), key).unwrap();
    until("the new certificate", Duration::from_secs(20), async || ask(&world, &other, None, "/health").await.is_ok()).await;
    assert!(ask(&world, &authority, None, "/health").await.is_err());
}

#[tokio::test(flavor = "multi_thread")]
async fn with_an_authority_for_clients_only_its_clients_get_in() {
    let (servers, clients, strangers) = (Authority::new(), Authority::new(), Authority::new());
    let (certificate, key) = servers.sign("localhost");
    let world = World::with(|settings| {
        let mut files = write(settings, &[("cert.pem", &certificate), ("key.pem", &key), ("clients.pem", &clients.pem())]).into_iter();
        (settings.tls_cert, settings.tls_key, settings.tls_client_ca) = (files.next(), files.next(), files.next());
        // Reachable from anywhere and without a token: whoever gets in has shown a certificate.
        settings.addr = Some("0.0.0.0:0".into());
    })
    .await;
    let mine = clients.sign("operator");
    assert_eq!(ask(&world, &servers, Some(&mine), "/api/v1/jobs").await.unwrap().status, 200);
    for identity in [None, Some(strangers.sign("operator"))] {
        assert!(ask(&world, &servers, identity.as_ref(), "/health").await.is_err(), "not even health");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_client_of_the_command_line_asks_over_tls_with_a_token() {
    let (authority, other) = (Authority::new(), Authority::new());
    let (certificate, key) = authority.sign("localhost");
    let world = World::with(|settings| {
        let mut files = write(
            settings,
            &[
                ("cert.pem", &certificate),
                ("key.pem", &key),
                ("ca.pem", &authority.pem()),
                ("other.pem", &other.pem()),
                ("token", "an-admin-of-all\n"),
                ("wrong", "somebody-else"),
            ],
        )
        .into_iter();
        (settings.tls_cert, settings.tls_key) = (files.next(), files.next());
        settings.api_token = Some(Secret::from("an-admin-of-all"));
    })
    .await;
    let client = |token: &str, ca: &str| {
        let url = format!("https://localhost:{}/", world.addr().port());
        Client::new(&Target::Url { url, token_file: Some(world.dir.path().join(token)), ca_file: Some(world.dir.path().join(ca)) }).unwrap()
    };
    let stats: WorkersStats = client("token", "ca.pem").get("/api/v1/workers/stats").await.unwrap();
    assert_eq!(stats.summary.total_workers, 6);
    let error = client("wrong", "ca.pem").get::<JobsPage>("/api/v1/jobs").await.unwrap_err();
    assert!(error.kind == argon::fault::Kind::Config && error.what.contains("token"), "{error}");
    let error = client("token", "other.pem").get::<JobsPage>("/api/v1/jobs").await.unwrap_err();
    assert!(error.what.contains("cannot be reached") && error.what.to_lowercase().contains("certificate"), "{error}");
}
