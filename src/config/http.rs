//! Owns: the settings of the interface over HTTP. Does not own: what they do (`http`), the table of variables (`super`).

use std::path::PathBuf;

use clap::Args;

/// Settings of the interface over HTTP (`argon run`).
#[derive(Debug, Clone, PartialEq, Eq, Args)]
#[command(next_help_heading = "HTTP")]
pub struct HttpSettings {
    /// Address of the API, or off. Reachable from other machines only with a token.
    #[arg(long = "http-addr", env = "ARGON_HTTP_ADDR", default_value = "127.0.0.1:8080", value_name = "HOST:PORT|off")]
    pub addr: Option<String>,
    /// A second address that serves only /metrics, /health and /ready, without a token: no load of the API can starve it.
    #[arg(long, env = "ARGON_METRICS_ADDR", value_name = "HOST:PORT")]
    pub metrics_addr: Option<String>,
    /// Unix socket for the command line of this user, or off; default: one per HTTP port in the user's runtime directory.
    #[arg(long, env = "ARGON_CONTROL_SOCKET", value_name = "PATH|off")]
    pub control_socket: Option<PathBuf>,
    /// Token of scope admin. On the command line others of this machine can see it: prefer the variable, or a file.
    #[arg(long, env = "ARGON_API_TOKEN", hide_env_values = true, value_name = "TOKEN")]
    pub api_token: Option<Secret>,
    /// File of tokens, one `scope:token` a line (read, operate, admin); read again when it changes.
    #[arg(long, env = "ARGON_API_TOKENS_FILE", value_name = "PATH")]
    pub api_tokens_file: Option<PathBuf>,
    /// Listen without any token also where other machines reach it.
    #[arg(long, env = "ARGON_ALLOW_UNAUTHENTICATED", default_value = "false", default_missing_value = "true", num_args = 0..=1, require_equals = true, value_name = "true|false", action = clap::ArgAction::Set)]
    pub allow_unauthenticated: bool,
    /// Certificate chain of the API in PEM form; read again when it changes.
    #[arg(long, env = "ARGON_TLS_CERT", value_name = "PATH")]
    pub tls_cert: Option<PathBuf>,
    /// Its private key in PEM form.
    #[arg(long, env = "ARGON_TLS_KEY", value_name = "PATH")]
    pub tls_key: Option<PathBuf>,
    /// Clients must show a certificate of this authority (PEM). What they may do is still a matter of tokens, if there are any.
    #[arg(long, env = "ARGON_TLS_CLIENT_CA", value_name = "PATH")]
    pub tls_client_ca: Option<PathBuf>,
    /// Requests a second that one client may make to the API, after a burst of twice as many; 0: no limit.
    #[arg(long, env = "ARGON_API_RATE", default_value = "50", value_name = "N", value_parser = clap::value_parser!(u32).range(0..=1_000_000))]
    pub api_rate: u32,
    /// Open connections of an address, at most. More: more files, and up to 64 KiB of memory each.
    #[arg(long = "http-max-connections", env = "ARGON_HTTP_MAX_CONNECTIONS", default_value = "512", value_name = "N", value_parser = |s: &str| count(s, 8, 100_000))]
    pub max_connections: usize,
    /// The same for one client; above the 96 that answers and streams can keep busy, so that its /health finds a place.
    #[arg(long = "http-max-connections-per-client", env = "ARGON_HTTP_MAX_CONNECTIONS_PER_CLIENT", default_value = "128", value_name = "N", value_parser = |s: &str| count(s, 4, 100_000))]
    pub max_connections_per_client: usize,
}

impl Default for HttpSettings {
    /// As without any flag or variable.
    fn default() -> Self {
        Self {
            addr: Some("127.0.0.1:8080".into()),
            metrics_addr: None,
            control_socket: None,
            api_token: None,
            api_tokens_file: None,
            allow_unauthenticated: false,
            tls_cert: None,
            tls_key: None,
            tls_client_ca: None,
            api_rate: 50,
            max_connections: 512,
            max_connections_per_client: 128,
        }
    }
}

/// What must not get into a log by way of a `Debug`.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(String);

impl Secret {
    /// The text itself.
    pub fn reveal(&self) -> &str {
        &self.0
    }
}

impl From<&str> for Secret {
    fn from(text: &str) -> Self {
        Self(text.to_owned())
    }
}

impl std::fmt::Debug for Secret {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("***")
    }
}

/// A whole number within bounds.
fn count(text: &str, min: usize, max: usize) -> Result<usize, String> {
    match text.trim().parse::<usize>() {
        Ok(n) if (min..=max).contains(&n) => Ok(n),
        Ok(_) => Err(format!("allowed are {min} to {max}")),
        Err(_) => Err("not a whole number".into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(clap::Parser, Debug)]
    struct Cli {
        #[command(flatten)]
        http: HttpSettings,
    }

    #[test]
    fn defaults_are_those_of_the_flags() {
        use clap::{CommandFactory, FromArgMatches};
        // Not from the environment of whoever runs the tests.
        let parse = |args: &[&str]| {
            let command = Cli::command().mut_args(|arg| arg.env(clap::builder::Resettable::Reset));
            Cli::from_arg_matches(&command.get_matches_from(args)).unwrap().http
        };
        assert_eq!(parse(&["x"]), HttpSettings::default());
        let parsed = parse(&["x", "--allow-unauthenticated", "--api-token", "hush"]);
        assert!(parsed.allow_unauthenticated && !format!("{parsed:?}").contains("hush"));
    }
}
