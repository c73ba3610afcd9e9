//! Owns: TLS in words: what a failed handshake means and what to set about it, and files of certificates, read and checked before a driver does.
//! Does not own connecting: the drivers of MongoDB and S3 do, each with a TLS client of its own.
//!
//! SUBTLE: failures are known by the text that rustls gives them, since that is all that both drivers pass on (MongoDB's keeps the cause of a
//! failed handshake as a sentence in the description of its topology). A text that is not known here is passed on as it is.

use std::path::Path;
use std::time::Duration;

use rustls::RootCertStore;
use rustls::pki_types::pem::{self, PemObject};
use rustls::pki_types::{CertificateDer, PrivateKeyDer};

use crate::fault::{Fault, Result};

/// What rustls says before it says what is wrong with a certificate.
pub const BAD_CERTIFICATE: &str = "invalid peer certificate: ";
/// No file of certificates is larger; whatever is, was named by mistake.
const MAX_FILE: u64 = 16 << 20;

/// Where the settings of one kind of connection are, for sentences.
#[derive(Debug)]
pub struct Settings {
    /// The one that names authorities.
    pub authorities: &'static str,
    /// Who is trusted without it.
    pub default: &'static str,
    /// The one that holds the host's name.
    pub host: &'static str,
    /// What to do about a port at which no TLS is spoken.
    pub plain: &'static str,
    /// What to do about an end that wants a certificate of ours.
    pub client: &'static str,
}

/// Of a MongoDB URI.
pub const MONGODB: Settings = Settings {
    authorities: "tlsCAFile in the URI",
    default: "public authorities only",
    host: "the URI",
    plain: "remove tls=true from the URI, or correct its port",
    client: "name a certificate with its key that it accepts: tlsCertificateKeyFile=FILE in the URI",
};

/// Of an S3 endpoint.
pub const S3: Settings = Settings {
    authorities: "AWS_CA_BUNDLE",
    default: "this machine's root certificates",
    host: "ARGON_S3_ENDPOINT",
    plain: "write http:// into ARGON_S3_ENDPOINT, or correct its port",
    client: "client certificates are not supported for S3",
};

/// Why two ends do not come together over TLS.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Trouble {
    /// What is wrong with the other end, said of it: "its certificate ...".
    pub wrong: String,
    /// What to do.
    pub advice: String,
    /// It stays so until a person does something.
    pub lasts: bool,
}

impl std::fmt::Display for Trouble {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}: {}", self.wrong, self.advice)
    }
}

/// What the text of an error says about TLS, if it does.
pub fn trouble(error: &str, settings: &Settings) -> Option<Trouble> {
    if let Some((_, why)) = error.split_once(BAD_CERTIFICATE) {
        let (wrong, advice) = certificate(why, settings);
        return Some(Trouble { wrong, advice, lasts: true });
    }
    let (wrong, advice, lasts) = if error.contains("corrupt message of type InvalidContentType") {
        ("it does not speak TLS".to_owned(), settings.plain.to_owned(), true)
    } else if error.contains("tls handshake eof") {
        ("it hung up when TLS began".to_owned(), format!("if it does not speak TLS, {}", settings.plain), false)
    } else if let Some((_, alert)) = error.split_once("received fatal alert: ") {
        let alert = alert.split(|c: char| !c.is_alphanumeric()).next().unwrap_or_default();
        let advice = match alert {
            "CertificateRequired" | "BadCertificate" | "UnknownCA" | "CertificateUnknown" | "CertificateExpired" => settings.client,
            _ => "its log says why",
        };
        (format!("it refused the TLS handshake ({alert})"), advice.to_owned(), false)
    } else {
        return None;
    };
    Some(Trouble { wrong, advice, lasts })
}

/// What rustls says of a certificate, and what to do.
fn certificate(why: &str, settings: &Settings) -> (String, String) {
    let Settings { authorities, default, host, .. } = settings;
    if why.starts_with("UnknownIssuer") {
        return (
            "its certificate is signed by an unknown authority".to_owned(),
            format!("name the authority's certificate (PEM) with {authorities}; without it {default} are trusted"),
        );
    }
    if let Some(rest) = why.strip_prefix("certificate not valid for name \"") {
        let (name, rest) = rest.split_once('"').unwrap_or((rest, ""));
        let names = rest.split_once("only valid for ").map_or("no name", |(_, names)| names);
        return (
            format!("its certificate is not for {name} but for {}", plain_names(names)),
            format!("call it by such a name in {host}, or have {name} put into its subjectAltName"),
        );
    }
    if why.starts_with("NotValidForName") {
        return (
            "its certificate is for another host name".to_owned(),
            format!("call it by the certificate's name in {host}, or have this one put into its subjectAltName"),
        );
    }
    let distance = |mark: &str| -> String {
        let seconds = why.split_once(mark).and_then(|(before, _)| before.rsplit('(').next()?.parse::<u64>().ok());
        seconds.map_or_else(String::new, |s| {
            let long = humantime::format_duration(Duration::from_secs(s)).to_string();
            long.split(' ').take(2).fold(String::new(), |text, unit| text + " " + unit)
        })
    };
    if why.starts_with("certificate expired") || why.starts_with("Expired") {
        let ago = distance(" seconds ago");
        let ago = if ago.is_empty() { ago } else { format!("{ago} ago") };
        return (format!("its certificate expired{ago} by this machine's clock"), "renew it there".to_owned());
    }
    if why.starts_with("certificate not valid yet") || why.starts_with("NotValidYet") {
        let (wait, advice) = (distance(" seconds in future"), "set the clock of this machine if it is wrong".to_owned());
        let wait = if wait.is_empty() { wait } else { format!(" for another{wait}") };
        return (format!("its certificate is not valid yet{wait} by this machine's clock"), advice);
    }
    if why.contains("CaUsedAsEndEntity") {
        return (
            "it shows an authority's certificate as its own".to_owned(),
            format!("give it one of its own (CA:FALSE) that the authority has signed, and keep the authority's for {authorities}"),
        );
    }
    if why.contains("UnsupportedCertVersion") {
        return (
            "its certificate is of X.509 version 1".to_owned(),
            "issue it again as version 3, with its name in subjectAltName".to_owned(),
        );
    }
    (format!("its certificate is refused ({})", why.trim_end_matches(['"', ' '])), "issue it again".to_owned())
}

/// `DnsName("a") or IpAddress(::1)` for a person.
fn plain_names(names: &str) -> String {
    names.replace("DnsName(", "").replace("IpAddress(", "").replace([')', '"'], "")
}

/// The authorities in a PEM file, those that can be used: bundles of systems hold some that cannot. `setting` named the file.
///
/// # Errors
/// `Config`: the file cannot be read, or holds none. What is in it is never repeated.
pub fn authorities(path: &Path, setting: &str) -> Result<Vec<CertificateDer<'static>>> {
    let text = read(path, setting)?;
    let found = certificates(&text, path, setting)?;
    let usable = |certificate: &CertificateDer<'static>| RootCertStore::empty().add(certificate.clone()).is_ok();
    let usable: Vec<_> = found.into_iter().filter(usable).collect();
    if usable.is_empty() {
        return Err(bad(path, setting, "none of its certificates can be used as an authority's"));
    }
    Ok(usable)
}

/// Checks a PEM file with a certificate and its private key. `setting` named the file.
///
/// # Errors
/// `Config`: the file cannot be read, or lacks one of them. What is in it is never repeated.
pub fn check_identity(path: &Path, setting: &str) -> Result<()> {
    let text = read(path, setting)?;
    certificates(&text, path, setting)?;
    let heads = |line: &str| line.starts_with("-----BEGIN ") || line.starts_with("Proc-Type");
    if String::from_utf8_lossy(&text).lines().any(|line| heads(line) && line.contains("ENCRYPTED")) {
        return Err(bad(path, setting, "its key is encrypted, which is not supported: decrypt it and let nobody else read the file"));
    }
    PrivateKeyDer::from_pem_slice(&text).map_err(|e| match e {
        pem::Error::NoItemsFound => bad(path, setting, "the certificate's private key must be in the same file"),
        e => bad(path, setting, &format!("its key cannot be read: {}", reason(&e))),
    })?;
    Ok(())
}

fn read(path: &Path, setting: &str) -> Result<Vec<u8>> {
    let size = std::fs::metadata(path).map_err(|e| bad(path, setting, &e.to_string()))?.len();
    if size > MAX_FILE {
        return Err(bad(path, setting, "it is too large to be a file of certificates"));
    }
    std::fs::read(path).map_err(|e| bad(path, setting, &e.to_string()))
}

fn certificates(text: &[u8], path: &Path, setting: &str) -> Result<Vec<CertificateDer<'static>>> {
    let found: Vec<_> = CertificateDer::pem_slice_iter(text)
        .collect::<Result<_, _>>()
        .map_err(|e| bad(path, setting, &format!("its certificates cannot be read: {}", reason(&e))))?;
    if found.is_empty() {
        return Err(bad(path, setting, "it holds no certificate in PEM form (-----BEGIN CERTIFICATE-----)"));
    }
    Ok(found)
}

/// Without the bytes that some of these errors hold: they may be a part of a key.
fn reason(error: &pem::Error) -> &'static str {
    match error {
        pem::Error::MissingSectionEnd { .. } => "a section has no end",
        pem::Error::IllegalSectionStart { .. } => "the first line of a section is damaged",
        pem::Error::Base64Decode(_) => "damaged base64",
        _ => "damaged PEM",
    }
}

fn bad(path: &Path, setting: &str, why: &str) -> Fault {
    Fault::config(format!("{setting} {} cannot be used: {why}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fault::Kind;

    #[test]
    fn what_rustls_says_becomes_what_is_wrong_and_what_to_set() {
        for (error, wrong, advice, lasts) in [
            ("invalid peer certificate: UnknownIssuer", "signed by an unknown authority", "AWS_CA_BUNDLE", true),
            (
                "client error (Connect): invalid peer certificate: certificate not valid for name \"localhost\"; certificate is only valid for DnsName(\"a.example\") or IpAddress(127.0.0.1)",
                "not for localhost but for a.example or 127.0.0.1",
                "in ARGON_S3_ENDPOINT",
                true,
            ),
            (
                "invalid peer certificate: certificate not valid for name \"h\"; certificate is not valid for any names (according to its subjectAltName extension)",
                "not for h but for no name",
                "subjectAltName",
                true,
            ),
            (
                "invalid peer certificate: certificate expired: verification time 1800000000 (UNIX), but certificate is not valid after 1799991000 (9000 seconds ago)",
                "its certificate expired 2h 30m ago by this machine's clock",
                "renew it",
                true,
            ),
            (
                "invalid peer certificate: certificate not valid yet: verification time 1 (UNIX), but certificate is not valid before 61 (60 seconds in future)",
                "not valid yet for another 1m by",
                "clock",
                true,
            ),
            ("invalid peer certificate: Other(OtherError(CaUsedAsEndEntity))", "an authority's certificate", "CA:FALSE", true),
            ("invalid peer certificate: Other(OtherError(UnsupportedCertVersion))", "version 1", "version 3", true),
            ("invalid peer certificate: BadSignature", "refused (BadSignature)", "issue it again", true),
            ("received corrupt message of type InvalidContentType", "does not speak TLS", "write http://", true),
            ("client error (Connect): tls handshake eof", "hung up", "if it does not speak TLS, write http://", false),
            ("received fatal alert: CertificateRequired, labels", "(CertificateRequired)", "client certificates", false),
            ("received fatal alert: HandshakeFailure", "(HandshakeFailure)", "log", false),
        ] {
            let found = trouble(error, &S3).unwrap_or_else(|| panic!("{error}"));
            assert!(found.wrong.contains(wrong) && found.advice.contains(advice) && found.lasts == lasts, "{error}: {found:?}");
        }
        for error in ["connection reset by peer", "Connection refused (os error 111)", "received corrupt message of type Handshake"] {
            assert_eq!(trouble(error, &S3), None, "{error}");
        }
        assert!(trouble("invalid peer certificate: UnknownIssuer", &MONGODB).is_some_and(|t| t.advice.contains("tlsCAFile in the URI")));
    }

    struct Files(tempfile::TempDir);

    impl Files {
        fn write(&self, name: &str, text: &str) -> std::path::PathBuf {
            let path = self.0.path().join(name);
            std::fs::write(&path, text).unwrap();
            path
        }
    }

    #[test]
    fn files_of_authorities_are_checked_and_what_is_in_them_is_not_repeated() {
        let files = Files(tempfile::tempdir().unwrap());
        let pair = rcgen::generate_simple_self_signed(vec!["localhost".into()]).unwrap();
        let (good, key) = (pair.cert.pem(), pair.signing_key.serialize_pem());
        let strange = "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n";
        assert_eq!(authorities(&files.write("a", &good), "X").unwrap().len(), 1);
        assert_eq!(authorities(&files.write("b", &format!("{key}{strange}{good}{good}")), "X").unwrap().len(), 2);
        let cut = &good[..good.len() / 2];
        for (name, text, why) in
            [("empty", "", "no certificate"), ("key", &key, "no certificate"), ("strange", strange, "none of its"), ("cut", cut, "no end")]
        {
            let fault = authorities(&files.write(name, text), "X").unwrap_err();
            assert!(fault.kind == Kind::Config && fault.what.starts_with("X /") && fault.what.contains(why), "{name}: {fault}");
        }
        let fault = authorities(&files.0.path().join("absent"), "X").unwrap_err();
        assert!(fault.kind == Kind::Config && fault.what.contains("absent") && fault.what.contains("No such file"), "{fault}");
        assert!(authorities(files.0.path(), "X").unwrap_err().what.contains("directory"));
    }

    #[test]
    fn an_identity_is_a_certificate_and_a_readable_key() {
        let files = Files(tempfile::tempdir().unwrap());
        let pair = rcgen::generate_simple_self_signed(vec!["localhost".into()]).unwrap();
        let (cert, key) = (pair.cert.pem(), pair.signing_key.serialize_pem());
        check_identity(&files.write("both", &format!("{key}{cert}")), "X").unwrap();
        let locked = format!("{cert}-----BEGIN ENCRYPTED PRIVATE KEY-----\nAAAA\n-----END ENCRYPTED PRIVATE KEY-----\n");
        let damaged = format!("{cert}-----BEGIN PRIVATE KEY-----\ns3cret!!\n-----END PRIVATE KEY-----\n");
        for (name, text, why) in [
            ("cert", &cert, "in the same file"),
            ("key", &key, "no certificate"),
            ("locked", &locked, "encrypted"),
            ("damaged", &damaged, "base64"),
        ] {
            let fault = check_identity(&files.write(name, text), "X").unwrap_err();
            assert!(fault.kind == Kind::Config && fault.what.contains(why) && !fault.what.contains("s3cret"), "{name}: {fault}");
        }
    }
}
