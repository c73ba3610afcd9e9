//! Owns: which engine a command asks: that of this machine by its control socket, or another by URL. Does not own: the asking (`http::client`).

use std::path::PathBuf;

use crate::fault::{Fault, Result};
use crate::http::client::{Client, Target};

/// Which engine.
#[derive(Debug, Clone, clap::Args)]
#[command(next_help_heading = "Engine to ask")]
pub(crate) struct EngineArgs {
    /// URL of an engine's API; without it the engine of this user on this machine is asked by its control socket.
    #[arg(long, value_name = "URL")]
    api: Option<String>,
    /// File that holds a token for --api.
    #[arg(long, value_name = "PATH", requires = "api")]
    token_file: Option<PathBuf>,
    /// Authority that has signed the certificate of --api, in PEM form.
    #[arg(long, value_name = "PATH", requires = "api")]
    api_ca: Option<PathBuf>,
    /// Control socket of the engine, where several run on this machine. --api goes before it.
    #[arg(long, env = "ARGON_CONTROL_SOCKET", value_name = "PATH")]
    control_socket: Option<PathBuf>,
}

impl EngineArgs {
    /// The operator has said which engine, so one that does not answer is an error.
    pub(crate) fn is_named(&self) -> bool {
        self.api.is_some() || self.control_socket.is_some()
    }

    pub(crate) fn client(&self) -> Result<Client> {
        match &self.api {
            Some(url) => Client::new(&Target::Url { url: url.clone(), token_file: self.token_file.clone(), ca_file: self.api_ca.clone() }),
            None if self.control_socket.as_deref().is_some_and(|path| path.as_os_str() == "off") => {
                Err(Fault::config("ARGON_CONTROL_SOCKET is off: name an engine with --api, or a socket with --control-socket"))
            }
            None => Client::local(self.control_socket.as_deref(), None),
        }
    }
}
