//! Owns: which certificates a server of the devkit shows, and whom it trusts. Does not own making them: a test signs what it needs.

use std::fmt::Write;
use std::path::{Path, PathBuf};

/// TLS of a server; without it a server speaks none, with it nothing else. All files are PEM.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tls {
    /// The server's certificate and its private key in one file; valid for 127.0.0.1, and for both ends of a connection: members of a
    /// replica set show it to each other.
    pub server: PathBuf,
    /// The authority that signed it.
    pub authority: PathBuf,
    /// Certificate and key of the devkit's own clients; the server then wants one from everybody.
    pub client: Option<PathBuf>,
}

impl Tls {
    pub(super) fn mongod_args(&self) -> Vec<String> {
        let (server, authority) = (self.server.display().to_string(), self.authority.display().to_string());
        let mut args =
            ["--tlsMode", "requireTLS", "--tlsCertificateKeyFile", &server, "--tlsCAFile", &authority].map(str::to_owned).to_vec();
        if self.client.is_none() {
            args.push("--tlsAllowConnectionsWithoutCertificates".to_owned());
        }
        args
    }

    /// Options of a URI, beginning with `&`.
    pub(super) fn uri_options(&self) -> String {
        let client = self.client.iter().map(|path| format!("&tlsCertificateKeyFile={}", escaped(path)));
        format!("&tls=true&tlsCAFile={}", escaped(&self.authority)) + &client.collect::<String>()
    }
}

fn escaped(path: &Path) -> String {
    path.to_string_lossy().bytes().fold(String::new(), |mut text, byte| {
        match byte {
            b'/' | b'-' | b'_' | b'.' => text.push(char::from(byte)),
            byte if byte.is_ascii_alphanumeric() => text.push(char::from(byte)),
            byte => _ = write!(text, "%{byte:02X}"),
        }
        text
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_certificate_is_wanted_from_clients_only_where_the_devkit_has_one() {
        let tls = Tls { server: "s".into(), authority: "/a b/c".into(), client: None };
        assert!(tls.mongod_args().contains(&"--tlsAllowConnectionsWithoutCertificates".to_owned()));
        assert_eq!(tls.uri_options(), "&tls=true&tlsCAFile=/a%20b/c");
        let both = Tls { client: Some("x&y".into()), ..tls };
        assert!(!both.mongod_args().contains(&"--tlsAllowConnectionsWithoutCertificates".to_owned()));
        assert!(both.uri_options().ends_with("&tlsCertificateKeyFile=x%26y"));
    }
}
