//! Owns: logging, and the one table of metrics (`metrics`). Does not own: what is logged, or the figures.

pub mod metrics;

use std::io::IsTerminal;

use tracing_subscriber::EnvFilter;

/// Logs to standard error: `ARGON_LOG` selects (default `info` for the engine, `warn` for commands), `ARGON_LOG_FORMAT=json` makes one object a line.
pub fn init_logging(engine: bool) {
    let default = if engine { "argon=info,warn" } else { "warn" };
    let filter = match std::env::var("ARGON_LOG") {
        Ok(text) => EnvFilter::try_new(&text).unwrap_or_else(|e| {
            eprintln!("warning: ARGON_LOG={text} is not a log filter ({e}); using {default}");
            EnvFilter::new(default)
        }),
        Err(_) => EnvFilter::new(default),
    };
    // A reader of the log that has gone away is not reported: the report would go the same way, and panic.
    let builder = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).log_internal_errors(false);
    let json = std::env::var("ARGON_LOG_FORMAT").is_ok_and(|f| f.eq_ignore_ascii_case("json"));
    let outcome = if json {
        builder.json().flatten_event(true).with_current_span(false).try_init()
    } else {
        builder.with_ansi(std::io::stderr().is_terminal()).with_target(false).try_init()
    };
    if let Err(e) = outcome {
        eprintln!("warning: logging is not available: {e}");
    }
}
