//! Owns: authorities and what they sign, as files, and a server that shows any certificate. Does not own real servers (`servers`).

use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use argon::devkit::process::Workdir;
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, DistinguishedName, DnType, IsCa, KeyPair};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::{ServerConfig, ServerConnection};

/// An authority with a directory for what it signs.
pub(crate) struct Authority {
    issuer: CertifiedIssuer<'static, KeyPair>,
    dir: Workdir,
}

impl Authority {
    pub(crate) fn new(name: &str) -> Self {
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.distinguished_name = subject("authorities", name);
        let issuer = CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap();
        let own = Self { issuer, dir: Workdir::new("authority").unwrap() };
        own.write("authority", &own.issuer.pem());
        own
    }

    /// Its own certificate.
    pub(crate) fn file(&self) -> PathBuf {
        self.dir.path().join("authority.pem")
    }

    /// Its own certificate and key: what no server should show.
    pub(crate) fn own_identity(&self) -> PathBuf {
        self.write("authority-and-key", &(self.issuer.pem() + &self.issuer.key().serialize_pem()))
    }

    /// Certificate and key, in one file, of a server called by these names or addresses.
    pub(crate) fn server(&self, file: &str, names: &[&str], change: impl FnOnce(&mut CertificateParams)) -> PathBuf {
        self.sign(file, "servers", names, change)
    }

    /// The same of a client. MongoDB takes whoever has its own O and OU for a member of the set.
    pub(crate) fn client(&self, name: &str) -> PathBuf {
        self.sign(name, "people", &[], |_| ())
    }

    fn sign(&self, file: &str, unit: &str, names: &[&str], change: impl FnOnce(&mut CertificateParams)) -> PathBuf {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::new(names.iter().map(|name| (*name).to_owned()).collect::<Vec<_>>()).unwrap();
        params.distinguished_name = subject(unit, file);
        change(&mut params);
        let certificate = params.signed_by(&key, &self.issuer).unwrap();
        self.write(&format!("{file}.cert"), &certificate.pem());
        self.write(&format!("{file}.key"), &key.serialize_pem());
        self.write(file, &(certificate.pem() + &key.serialize_pem()))
    }

    pub(crate) fn write(&self, name: &str, text: &str) -> PathBuf {
        let path = self.dir.path().join(format!("{name}.pem"));
        std::fs::write(&path, text).unwrap();
        path
    }
}

fn subject(unit: &str, name: &str) -> DistinguishedName {
    let mut subject = DistinguishedName::new();
    subject.push(DnType::OrganizationName, "Argon");
    subject.push(DnType::OrganizationalUnitName, unit);
    subject.push(DnType::CommonName, name);
    subject
}

/// How MongoDB writes the subject of [`Authority::client`].
pub(crate) fn client_subject(name: &str) -> String {
    format!("CN={name},OU=people,O=Argon")
}

/// A server on loopback that shows the certificate of this file and says nothing else. It ends with the process.
pub(crate) fn present(identity: &Path) -> SocketAddr {
    let chain = CertificateDer::pem_file_iter(identity).unwrap().collect::<Result<Vec<_>, _>>().unwrap();
    let key = PrivateKeyDer::from_pem_file(identity).unwrap();
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let builder = ServerConfig::builder_with_provider(provider).with_safe_default_protocol_versions().unwrap();
    let config = Arc::new(builder.with_no_client_auth().with_single_cert(chain, key).unwrap());
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    std::thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            let config = config.clone();
            std::thread::spawn(move || shake_hands(stream, config));
        }
    });
    address
}

/// Clients that like the certificate get no answer.
fn shake_hands(mut stream: TcpStream, config: Arc<ServerConfig>) {
    let _ = stream.set_read_timeout(Some(Duration::from_secs(10)));
    if let Ok(mut connection) = ServerConnection::new(config) {
        let _ = connection.complete_io(&mut stream);
    }
}
