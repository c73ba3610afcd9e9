//! Owns: logging, the one table of metrics (`metrics`), and what counts all the time (`meters`). Does not own: what is logged, its settings (`config`), or the figures.

pub mod meters;
pub mod metrics;

use std::io::IsTerminal;

use tracing_subscriber::EnvFilter;

use crate::config::{LogFormat, Logging};

/// What is logged unless the settings say otherwise. The HTTP client of the AWS SDK asks its users to report answers that it does not know: what
/// they mean to ours is said by the fault; so is a region or a credential that it looked for in vain.
const ENGINE: &str = "argon=info,aws_smithy_http_client=error,aws_config=error,warn";
const COMMAND: &str = "aws_smithy_http_client=error,aws_config=error,warn";

/// Logs to standard error what the settings select: by default `info` of the engine, `warn` of commands.
pub fn init_logging(engine: bool, settings: &Logging) {
    let filter = EnvFilter::new(settings.filter.as_deref().unwrap_or(if engine { ENGINE } else { COMMAND }));
    // A reader of the log that has gone away is not reported: the report would go the same way, and panic.
    let builder = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).log_internal_errors(false);
    let outcome = match settings.format {
        LogFormat::Json => builder.json().flatten_event(true).with_current_span(false).try_init(),
        LogFormat::Text => builder.with_ansi(std::io::stderr().is_terminal()).with_target(false).try_init(),
    };
    if let Err(e) = outcome {
        eprintln!("warning: logging is not available: {e}");
    }
}
