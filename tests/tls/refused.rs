//! TLS and logins that do not work: one line that says what is wrong and what to set, exit code 2 where a file or an option is at fault and 1
//! where the other end is, no secret.

use std::path::PathBuf;

use argon::devkit::{Mongod, MongodOptions, Output, Tls};
use futures_util::future::join_all;

use crate::authority::{Authority, present};
use crate::place::{BRANCH, Place, assert_refused};
use crate::servers::{self, BUCKET, ROOT};

/// Certificates that nobody should take, each with what is said of it. The names are those of the shared servers.
fn strange(own: &Authority) -> Vec<(PathBuf, &'static [&'static str])> {
    vec![
        (own.server("expired", &["127.0.0.1"], |p| p.not_after = rcgen::date_time_ymd(2020, 1, 1)), &["expired", "ago", "renew it"]),
        (own.server("early", &["127.0.0.1"], |p| p.not_before = rcgen::date_time_ymd(2090, 1, 1)), &["not valid yet", "clock"]),
        (
            own.server("elsewhere", &["db.example", "10.0.0.1"], |_| ()),
            &["not for 127.0.0.1 but for db.example or 10.0.0.1", "subjectAltName"],
        ),
        (own.server("nameless", &[], |_| ()), &["not for 127.0.0.1 but for no name", "subjectAltName"]),
        (own.own_identity(), &["authority's certificate as its own", "CA:FALSE"]),
    ]
}

fn assert_no_secret(output: &Output) {
    assert!(!output.stderr.contains("S3CRET") && !output.stderr.contains("PRIVATE KEY"), "{output:?}");
}

#[tokio::test]
async fn mongodb_is_refused_or_refuses_in_one_line_with_the_way_out() {
    let (own, other) = (servers::authority(), Authority::new("other"));
    let mongod = servers::mongod().await;
    let tls = Tls { server: own.server("picky", &["127.0.0.1"], |_| ()), authority: own.file(), client: Some(own.client("devkit")) };
    let (picky, plain) = tokio::join!(
        Mongod::start(MongodOptions { auth: Some(servers::root()), tls: Some(tls), ..MongodOptions::default() }),
        Mongod::start(MongodOptions::default())
    );
    let (picky, plain) = (picky.unwrap(), plain.unwrap());
    let place = Place::at("refused", mongod).await;
    let uri = |host: &str, password: &str, options: &str| {
        format!("mongodb://{}:{password}@{host}/?authSource=admin&replicaSet=argon-devkit{options}", ROOT.0)
    };
    let tls = |ca: &std::path::Path| format!("&tls=true&tlsCAFile={}", ca.display());
    let trusting = tls(&own.file());
    let showing = |pem: &std::path::Path| format!("{trusting}&tlsCertificateKeyFile={}", pem.display());
    let beside = |file: &str| own.file().with_file_name(file);
    let locked =
        own.write("locked", &std::fs::read_to_string(own.client("locked")).unwrap().replace("PRIVATE KEY", "ENCRYPTED PRIVATE KEY"));
    let (host, port) = (mongod.host(0), mongod.address(0).port());
    let mut cases: Vec<(String, i32, &[&str])> = vec![
        (uri(&host, ROOT.1, &tls(&other.file())), 1, &["unknown authority", "tlsCAFile in the URI"]),
        (uri(&host, ROOT.1, "&tls=true"), 1, &["unknown authority", "tlsCAFile in the URI"]),
        (uri(&format!("localhost:{port}"), ROOT.1, &trusting), 1, &["not for localhost but for 127.0.0.1", "subjectAltName"]),
        (uri(&host, ROOT.1, ""), 1, &["hung up without an answer", "tls=true&tlsCAFile=FILE"]),
        (uri(&plain.host(0), ROOT.1, &trusting), 1, &["does not speak TLS", "remove tls=true"]),
        (uri(&picky.host(0), ROOT.1, &trusting), 1, &["wants a certificate", "tlsCertificateKeyFile=FILE"]),
        (uri(&picky.host(0), ROOT.1, &showing(&other.client("stranger"))), 1, &["MongoDB is not reachable", "certificate"]),
        (uri(&host, "wrongS3CRET", &trusting), 1, &["refused the credentials", "authSource"]),
        (uri(&host, ROOT.1, &tls(&beside("absent.pem"))), 2, &["tlsCAFile", "absent.pem", "No such file"]),
        (uri(&host, ROOT.1, &tls(&beside("server.key.pem"))), 2, &["tlsCAFile", "server.key.pem", "no certificate"]),
        (uri(&host, ROOT.1, &showing(&beside("absent.pem"))), 2, &["tlsCertificateKeyFile", "absent.pem", "No such file"]),
        (uri(&host, ROOT.1, &showing(&beside("server.cert.pem"))), 2, &["tlsCertificateKeyFile", "in the same file"]),
        (uri(&host, ROOT.1, &showing(&locked)), 2, &["tlsCertificateKeyFile", "encrypted", "decrypt it"]),
        (
            uri(&host, ROOT.1, &format!("{trusting}&tlsCertificateKeyFilePassword=S3CRET")),
            2,
            &["tlsCertificateKeyFilePassword", "not supported"],
        ),
    ];
    let strange = strange(own);
    cases.extend(strange.iter().map(|(pem, says)| (uri(&present(pem).to_string(), ROOT.1, &trusting), 1, *says)));
    join_all(cases.iter().map(async |(uri, code, says)| {
        let output = place.argon_with(&["branch", "list"], &[("ARGON_MONGODB_URI", uri)]).await;
        assert_no_secret(&output);
        assert_refused(&output, *code, says);
    }))
    .await;
    // The engine and the start of a capture say the same.
    let start = ["capture", "start", BRANCH, "--source-db", place.source.name()];
    for (args, (uri, code, says)) in [(&["run"][..], &cases[0]), (&start, &cases[0]), (&["run"], &cases[7]), (&["run"], &cases[8])] {
        let output = place.argon_with(args, &[("ARGON_MONGODB_URI", uri)]).await;
        assert_no_secret(&output);
        assert_refused(&output, *code, says);
    }
}

#[tokio::test]
async fn s3_is_refused_in_one_line_with_the_way_out() {
    let (own, other) = (servers::authority(), Authority::new("other"));
    let (weed, plain) = (servers::weed().await, servers::plain_weed().await);
    let place = Place::at("stored", servers::mongod().await).await;
    let (trusted, key) = (own.file(), own.file().with_file_name("server.key.pem"));
    let (secure, by_name) = (weed.endpoint(), weed.endpoint().replace("127.0.0.1", "localhost"));
    let (not_secure, beside) = (secure.replace("https", "http"), plain.endpoint().replace("http", "https"));
    let mut cases: Vec<(String, Option<PathBuf>, i32, &[&str])> = vec![
        (secure.clone(), None, 1, &["unknown authority", "AWS_CA_BUNDLE", "this machine's root certificates"]),
        (secure.clone(), Some(other.file()), 1, &["unknown authority", "AWS_CA_BUNDLE"]),
        (secure.clone(), Some(trusted.with_file_name("absent.pem")), 2, &["AWS_CA_BUNDLE", "absent.pem", "No such file"]),
        (secure.clone(), Some(key), 2, &["AWS_CA_BUNDLE", "server.key.pem", "no certificate"]),
        (by_name, Some(trusted.clone()), 1, &["not for localhost but for 127.0.0.1", "ARGON_S3_ENDPOINT"]),
        (not_secure, Some(trusted.clone()), 1, &["the store answered 400", "write https:// into ARGON_S3_ENDPOINT"]),
        (beside, Some(trusted.clone()), 1, &["does not speak TLS", "write http:// into ARGON_S3_ENDPOINT"]),
    ];
    let strange = strange(own);
    cases.extend(strange.iter().map(|(pem, says)| (format!("https://{}", present(pem)), Some(trusted.clone()), 1, *says)));
    let source = place.source.name().to_owned();
    let start = ["capture", "start", BRANCH, "--source-db", &source];
    join_all(cases.iter().map(async |(endpoint, bundle, code, says)| {
        let mut env = weed.env(BUCKET, "refused");
        env.retain(|(name, _)| name != "AWS_CA_BUNDLE");
        env.push(("ARGON_S3_ENDPOINT".to_owned(), endpoint.clone()));
        env.extend(bundle.iter().map(|path| ("AWS_CA_BUNDLE".to_owned(), path.display().to_string())));
        let env: Vec<(&str, &str)> = env.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect();
        for args in [&["run"][..], &start] {
            let output = place.argon_with(args, &env).await;
            assert!(!output.stderr.contains(weed.secret_key()), "{output:?}");
            assert_no_secret(&output);
            assert_refused(&output, *code, says);
        }
    }))
    .await;
    // A server of another make says less to a client without TLS; what it says could be a passing fault, for which an engine waits.
    let present = present(&own.server("fine", &["127.0.0.1"], |_| ()));
    let mut env = weed.env(BUCKET, "refused");
    env.push(("ARGON_S3_ENDPOINT".to_owned(), format!("http://{present}")));
    let place = Place { more: env, ..place };
    assert_refused(&place.argon(&start).await, 1, &["does not answer in HTTP", "write https:// into ARGON_S3_ENDPOINT"]);
    // Wrong credentials over TLS are no matter of TLS; a bundle is nothing to a store without it.
    let mut env = weed.env(BUCKET, "refused");
    env.push(("AWS_SECRET_ACCESS_KEY".to_owned(), "wrongS3CRET".to_owned()));
    let place = Place { more: env, ..place };
    let output = place.argon(&start).await;
    assert_no_secret(&output);
    assert_refused(&output, 1, &["credentials are wrong"]);
    let mut env = plain.env(BUCKET, "refused");
    env.push(("AWS_CA_BUNDLE".to_owned(), trusted.display().to_string()));
    let place = Place { more: env, ..place };
    place.ok(&start).await;
}
