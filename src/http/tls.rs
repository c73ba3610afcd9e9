//! TLS of the API.
//!
//! Owns: certificate, key and the authority of clients, read from files and again when they change. Does not own: accepting (`network`).

use std::path::{Path, PathBuf};
use std::sync::Arc;

use parking_lot::RwLock;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::WebPkiClientVerifier;
use rustls::{RootCertStore, ServerConfig};
use tokio_rustls::TlsAcceptor;

use crate::config::HttpSettings;
use crate::fault::{Fault, Result};

/// Where TLS comes from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Files {
    cert: PathBuf,
    key: PathBuf,
    client_ca: Option<PathBuf>,
}

/// TLS as it is now.
#[derive(Debug)]
pub(super) struct Tls {
    files: Files,
    config: RwLock<Arc<ServerConfig>>,
}

impl Files {
    /// `None` without TLS. Half of it is a mistake: it would be plain text where encryption was meant.
    pub(super) fn of(settings: &HttpSettings) -> Result<Option<Self>> {
        match (&settings.tls_cert, &settings.tls_key, &settings.tls_client_ca) {
            (None, None, None) => Ok(None),
            (Some(cert), Some(key), client_ca) => Ok(Some(Self { cert: cert.clone(), key: key.clone(), client_ca: client_ca.clone() })),
            (Some(_), None, _) => Err(Fault::config("ARGON_TLS_CERT needs ARGON_TLS_KEY, the certificate's private key")),
            (None, Some(_), _) => Err(Fault::config("ARGON_TLS_KEY needs ARGON_TLS_CERT, the key's certificate")),
            (None, None, Some(_)) => Err(Fault::config("ARGON_TLS_CLIENT_CA needs ARGON_TLS_CERT and ARGON_TLS_KEY")),
        }
    }
}

impl Files {
    pub(super) fn all(&self) -> Vec<PathBuf> {
        [&self.cert, &self.key].into_iter().chain(&self.client_ca).cloned().collect()
    }
}

impl Tls {
    pub(super) fn load(files: Files) -> Result<Self> {
        let config = RwLock::new(Arc::new(read(&files)?));
        Ok(Self { files, config })
    }

    /// Every client has shown a certificate of an authority that the operator names.
    pub(super) fn knows_clients(&self) -> bool {
        self.files.client_ca.is_some()
    }

    /// For one more connection.
    pub(super) fn acceptor(&self) -> TlsAcceptor {
        TlsAcceptor::from(self.config.read().clone())
    }

    /// For connections from now on. What cannot be read changes nothing: a certificate is replaced in two steps, and between them it does not fit.
    pub(super) fn read_again(&self) {
        match read(&self.files) {
            Ok(config) => {
                *self.config.write() = Arc::new(config);
                tracing::info!(cert = %self.files.cert.display(), "certificate read again");
            }
            Err(fault) => tracing::error!(error = %fault, "the certificate stays as it was"),
        }
    }
}

fn read(files: &Files) -> Result<ServerConfig> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let chain = certificates("ARGON_TLS_CERT", &files.cert)?;
    let key = PrivateKeyDer::from_pem_file(&files.key).map_err(|e| at("ARGON_TLS_KEY", &files.key, &e))?;
    let builder = ServerConfig::builder_with_provider(provider.clone());
    let builder = builder.with_safe_default_protocol_versions().map_err(|e| Fault::config(format!("TLS: {e}")))?;
    let builder = match &files.client_ca {
        None => builder.with_no_client_auth(),
        Some(path) => {
            let mut roots = RootCertStore::empty();
            for certificate in certificates("ARGON_TLS_CLIENT_CA", path)? {
                roots.add(certificate).map_err(|e| at("ARGON_TLS_CLIENT_CA", path, &e))?;
            }
            let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider).build();
            builder.with_client_cert_verifier(verifier.map_err(|e| at("ARGON_TLS_CLIENT_CA", path, &e))?)
        }
    };
    let mut config = builder.with_single_cert(chain, key).map_err(|e| {
        let (cert, key) = (files.cert.display(), files.key.display());
        Fault::config(format!("ARGON_TLS_CERT {cert} and ARGON_TLS_KEY {key} cannot be used together: {e}"))
    })?;
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    Ok(config)
}

fn certificates(variable: &str, path: &Path) -> Result<Vec<CertificateDer<'static>>> {
    let found = CertificateDer::pem_file_iter(path).and_then(Iterator::collect::<Result<Vec<_>, _>>);
    let found = found.map_err(|e| at(variable, path, &e))?;
    if found.is_empty() {
        return Err(at(variable, path, &"it holds no certificate in PEM form"));
    }
    Ok(found)
}

fn at(variable: &str, path: &Path, error: &dyn std::fmt::Display) -> Fault {
    Fault::config(format!("{variable} {}: {error}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn half_of_a_configuration_is_refused() {
        let some = || Some(PathBuf::from("x"));
        for (cert, key, ca) in [(some(), None, None), (None, some(), None), (None, None, some()), (some(), None, some())] {
            let settings = HttpSettings { tls_cert: cert, tls_key: key, tls_client_ca: ca, ..HttpSettings::default() };
            let error = Files::of(&settings).unwrap_err();
            assert!(error.kind == crate::fault::Kind::Config && error.what.contains("ARGON_TLS_"), "{error}");
        }
        assert_eq!(Files::of(&HttpSettings::default()).unwrap(), None);
    }

    #[test]
    fn errors_name_variable_and_file() {
        let dir = tempfile::tempdir().unwrap();
        let pair = rcgen::generate_simple_self_signed(vec!["localhost".into()]).unwrap();
        let other = rcgen::generate_simple_self_signed(vec!["localhost".into()]).unwrap();
        let write = |name: &str, text: &str| {
            let path = dir.path().join(name);
            std::fs::write(&path, text).unwrap();
            path
        };
        let (cert, key) = (write("cert.pem", &pair.cert.pem()), write("key.pem", &pair.signing_key.serialize_pem()));
        let (strange, empty) = (write("strange.pem", &other.signing_key.serialize_pem()), write("empty.pem", ""));
        let absent = dir.path().join("absent.pem");
        let fine = Files { cert: cert.clone(), key: key.clone(), client_ca: Some(cert.clone()) };
        assert!(Tls::load(fine.clone()).is_ok());
        for (files, said) in [
            (Files { cert: absent.clone(), ..fine.clone() }, ["ARGON_TLS_CERT", "absent.pem"]),
            (Files { cert: empty.clone(), ..fine.clone() }, ["ARGON_TLS_CERT", "empty.pem"]),
            (Files { key: empty.clone(), ..fine.clone() }, ["ARGON_TLS_KEY", "empty.pem"]),
            (Files { key: strange, ..fine.clone() }, ["cert.pem", "strange.pem"]),
            (Files { client_ca: Some(empty), ..fine.clone() }, ["ARGON_TLS_CLIENT_CA", "empty.pem"]),
            (Files { client_ca: Some(absent), ..fine }, ["ARGON_TLS_CLIENT_CA", "absent.pem"]),
        ] {
            let error = Tls::load(files).unwrap_err();
            assert!(said.iter().all(|word| error.what.contains(word)), "{error}");
            assert_eq!(error.kind, crate::fault::Kind::Config);
        }
    }
}
