//! Owns: the servers that all tests share: MongoDB with TLS and a login, S3 with HTTPS, and S3 without. They end with the process.

use argon::devkit::{Auth, Mongod, MongodOptions, Tls, Weed, WeedOptions};
use tokio::sync::OnceCell;

use crate::authority::Authority;

pub(crate) const BUCKET: &str = "argon";
/// Root of the shared MongoDB.
pub(crate) const ROOT: (&str, &str) = ("root", "rootS3CRET");

/// What signs the certificates of the shared servers.
pub(crate) fn authority() -> &'static Authority {
    static AUTHORITY: std::sync::OnceLock<Authority> = std::sync::OnceLock::new();
    AUTHORITY.get_or_init(|| Authority::new("own"))
}

fn tls() -> Tls {
    let server = authority().server("server", &["127.0.0.1"], |_| ());
    Tls { server, authority: authority().file(), client: None }
}

pub(crate) fn root() -> Auth {
    Auth { user: ROOT.0.to_owned(), password: ROOT.1.to_owned() }
}

/// Asks for TLS and a login, and for no certificate of its clients.
pub(crate) async fn mongod() -> &'static Mongod {
    static MONGOD: OnceCell<Mongod> = OnceCell::const_new();
    let start = || async {
        // The TTL monitor would delete between taking two hashes.
        let params = vec![("ttlMonitorEnabled".to_owned(), "false".to_owned())];
        Mongod::start(MongodOptions { params, auth: Some(root()), tls: Some(tls()), ..MongodOptions::default() }).await.unwrap()
    };
    MONGOD.get_or_init(start).await
}

pub(crate) async fn weed() -> &'static Weed {
    static WEED: OnceCell<Weed> = OnceCell::const_new();
    WEED.get_or_init(|| with_bucket(Some(tls()))).await
}

pub(crate) async fn plain_weed() -> &'static Weed {
    static WEED: OnceCell<Weed> = OnceCell::const_new();
    WEED.get_or_init(|| with_bucket(None)).await
}

async fn with_bucket(tls: Option<Tls>) -> Weed {
    let weed = Weed::start_with(WeedOptions { tls, ..WeedOptions::default() }).await.unwrap();
    weed.create_bucket(BUCKET).await.unwrap();
    weed
}
