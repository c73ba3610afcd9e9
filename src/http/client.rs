//! The command line's way to an engine: its control socket, or `--api URL` with a token.
//!
//! Owns: finding the engine, sending, turning an answer back into a value or a [`Fault`]. Does not own: what is asked (`cli`).

use std::path::{Path, PathBuf};
use std::time::Duration;

use reqwest::{Certificate, Method, StatusCode};
use serde::Serialize;
use serde::de::DeserializeOwned;

use super::control;
use super::problem::ErrorAnswer;
use crate::fault::{Fault, Kind, Result};
use crate::store::install_tls;

/// Longer than the engine itself takes to give up.
const TIME: Duration = Duration::from_secs(40);
const CONNECT_TIME: Duration = Duration::from_secs(5);
/// More than any answer is.
const MOST_BYTES: usize = 64 << 20;

/// Which engine to ask.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Target {
    /// The control socket at this path.
    Socket(PathBuf),
    /// Another machine's, with the file that holds a token and, where it is not a public one, its authority's certificate.
    Url { url: String, token_file: Option<PathBuf>, ca_file: Option<PathBuf> },
}

/// An engine that can be asked.
#[derive(Debug, Clone)]
pub struct Client {
    http: reqwest::Client,
    base: String,
    token: Option<String>,
    place: String,
}

impl Client {
    /// Prepares; connects with the first request.
    pub fn new(target: &Target) -> Result<Self> {
        install_tls();
        let builder = reqwest::Client::builder().timeout(TIME).connect_timeout(CONNECT_TIME).pool_max_idle_per_host(0).no_proxy();
        let build = |builder: reqwest::ClientBuilder| builder.build().map_err(|e| Fault::unknown(format!("no HTTP client: {}", whole(&e))));
        match target {
            Target::Socket(path) => Ok(Self {
                http: build(builder.unix_socket(path.as_path()))?,
                base: "http://localhost".into(),
                token: None,
                place: format!("the engine at {}", path.display()),
            }),
            Target::Url { url, token_file, ca_file } => {
                let base = url.trim_end_matches('/').to_owned();
                if !base.starts_with("https://") && !base.starts_with("http://") {
                    return Err(Fault::config(format!("--api {url}: give a URL such as https://argon.example:8080")));
                }
                let builder = match ca_file {
                    Some(path) => builder.tls_certs_only(authority(path)?),
                    None => builder,
                };
                let token = token_file.as_deref().map(token_of).transpose()?;
                Ok(Self { http: build(builder)?, place: format!("the engine at {base}"), base, token })
            }
        }
    }

    /// The engine of this machine and user: at the socket that is given, at that of the HTTP port that is given, or the only one there is.
    pub fn local(socket: Option<&Path>, port: Option<u16>) -> Result<Self> {
        let path = match (socket, port) {
            (Some(path), _) => path.to_owned(),
            (None, Some(port)) if control::default_path(port).exists() => control::default_path(port),
            _ => only_socket(&control::runtime_dir())?,
        };
        Self::new(&Target::Socket(path))
    }

    /// Asks for something.
    pub async fn get<A: DeserializeOwned>(&self, path: &str) -> Result<A> {
        self.send::<(), A>(Method::GET, path, None).await
    }

    /// Asks for something to be done.
    pub async fn post<B: Serialize, A: DeserializeOwned>(&self, path: &str, body: &B) -> Result<A> {
        self.send(Method::POST, path, Some(body)).await
    }

    /// Asks for something to be undone or removed.
    pub async fn delete<A: DeserializeOwned>(&self, path: &str) -> Result<A> {
        self.send::<(), A>(Method::DELETE, path, None).await
    }

    /// Health, which is an answer also when it is 503.
    pub async fn health(&self) -> Result<super::Health> {
        let (_, body) = self.exchange::<()>(Method::GET, "/health", None).await?;
        self.read(&body)
    }

    async fn send<B: Serialize, A: DeserializeOwned>(&self, method: Method, path: &str, body: Option<&B>) -> Result<A> {
        let (status, body) = self.exchange(method, path, body).await?;
        if status.is_success() { self.read(&body) } else { Err(self.refused(status, &body)) }
    }

    async fn exchange<B: Serialize>(&self, method: Method, path: &str, body: Option<&B>) -> Result<(StatusCode, Vec<u8>)> {
        let mut request = self.http.request(method, format!("{}{path}", self.base));
        if let Some(token) = &self.token {
            request = request.header("authorization", format!("Bearer {token}"));
        }
        if let Some(body) = body {
            let text = serde_json::to_vec(body).map_err(|e| Fault::config(e.to_string()))?;
            request = request.header("content-type", "application/json").body(text);
        }
        let mut response = request.send().await.map_err(|e| self.failed(&e))?;
        let (status, mut read) = (response.status(), Vec::new());
        while let Some(chunk) = response.chunk().await.map_err(|e| self.failed(&e))? {
            if read.len() + chunk.len() > MOST_BYTES {
                return Err(Fault::corrupt(format!("{} sends more than {MOST_BYTES} bytes", self.place)));
            }
            read.extend_from_slice(&chunk);
        }
        Ok((status, read))
    }

    fn read<A: DeserializeOwned>(&self, body: &[u8]) -> Result<A> {
        serde_json::from_slice(body)
            .map_err(|e| Fault::corrupt(format!("{} gave an answer that this version does not read: {e}", self.place)))
    }

    fn failed(&self, error: &reqwest::Error) -> Fault {
        if error.is_connect() {
            let why = root(error);
            return Fault::transient(format!(
                "{} cannot be reached: {why}; start one with argon run, or name another with ARGON_CONTROL_SOCKET or --api",
                self.place
            ));
        }
        Fault::unknown(format!("{} did not answer: {}", self.place, whole(error)))
    }

    /// The fault that the engine told, with its kind where there is one of this name.
    fn refused(&self, status: StatusCode, body: &[u8]) -> Fault {
        let told = serde_json::from_slice::<ErrorAnswer>(body).map(|answer| answer.error);
        let Ok(error) = told else { return Fault::unknown(format!("{} answered {status}", self.place)) };
        let kind = match status.as_u16() {
            400 | 401 | 403 | 415 => Kind::Config,
            404 => Kind::Missing,
            409 => Kind::Rejected,
            429 | 503 => Kind::Transient,
            _ => Kind::Unknown,
        };
        Fault { kind, what: error.message, retry_after: None, next: None }
    }
}

/// An error with its causes, which reqwest keeps to itself.
fn whole(error: &reqwest::Error) -> String {
    let mut text = error.to_string();
    let mut cause = std::error::Error::source(error);
    while let Some(one) = cause {
        text = format!("{text}: {one}");
        cause = one.source();
    }
    text
}

/// The cause of all: the layers above repeat the URL and say nothing more.
fn root(error: &reqwest::Error) -> String {
    let mut one: &dyn std::error::Error = error;
    while let Some(cause) = one.source() {
        one = cause;
    }
    one.to_string()
}

fn token_of(path: &Path) -> Result<String> {
    let text = std::fs::read_to_string(path).map_err(|e| Fault::config(format!("--token-file {}: {e}", path.display())))?;
    let token = text.trim();
    if token.is_empty() || token.chars().any(|c| !c.is_ascii_graphic()) {
        return Err(Fault::config(format!(
            "--token-file {}: it holds no token, which is one line of letters, digits and punctuation",
            path.display()
        )));
    }
    Ok(token.to_owned())
}

fn authority(path: &Path) -> Result<Vec<Certificate>> {
    let bad = |e: &dyn std::fmt::Display| Fault::config(format!("--api-ca {}: {e}", path.display()));
    let text = std::fs::read(path).map_err(|e| bad(&e))?;
    let found = Certificate::from_pem_bundle(&text).map_err(|e| bad(&e))?;
    if found.is_empty() { Err(bad(&"it holds no certificate in PEM form")) } else { Ok(found) }
}

/// The one socket in the directory that somebody serves.
fn only_socket(dir: &Path) -> Result<PathBuf> {
    let entries = std::fs::read_dir(dir).into_iter().flatten().flatten().map(|entry| entry.path());
    let mut served: Vec<PathBuf> = entries
        .filter(|path| path.extension().is_some_and(|e| e == "sock") && std::os::unix::net::UnixStream::connect(path).is_ok())
        .collect();
    served.sort();
    match served.as_slice() {
        [one] => Ok(one.clone()),
        [] => Err(Fault::missing(format!(
            "no engine of this user runs on this machine (no socket in {}): start one with argon run, or name one with ARGON_CONTROL_SOCKET or --api",
            dir.display()
        ))),
        many => {
            let names: Vec<_> = many.iter().map(|p| p.display().to_string()).collect();
            Err(Fault::config(format!("several engines run on this machine: set ARGON_CONTROL_SOCKET to one of {}", names.join(", "))))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_served_socket_is_an_engine_and_two_are_a_question() {
        let dir = tempfile::tempdir().unwrap();
        assert!(only_socket(dir.path()).unwrap_err().what.contains("argon run"));
        let stale = dir.path().join("control-1.sock");
        drop(std::os::unix::net::UnixListener::bind(&stale).unwrap());
        assert_eq!(only_socket(dir.path()).unwrap_err().kind, Kind::Missing);
        let one = dir.path().join("control-2.sock");
        let _one = std::os::unix::net::UnixListener::bind(&one).unwrap();
        assert_eq!(only_socket(dir.path()).unwrap(), one);
        let _two = std::os::unix::net::UnixListener::bind(dir.path().join("control-3.sock")).unwrap();
        let error = only_socket(dir.path()).unwrap_err();
        assert!(error.kind == Kind::Config && error.what.contains("control-2.sock") && error.what.contains("control-3.sock"), "{error}");
    }

    #[test]
    fn what_cannot_be_asked_is_said_before() {
        let url =
            |url: &str, token_file: Option<PathBuf>| Client::new(&Target::Url { url: url.into(), token_file, ca_file: None }).map(|_| ());
        assert!(url("argon.example:8080", None).unwrap_err().what.contains("--api"));
        assert!(url("https://argon.example", Some("/nonexistent/token".into())).unwrap_err().what.contains("/nonexistent/token"));
        assert!(url("https://argon.example/", None).is_ok());
    }
}
