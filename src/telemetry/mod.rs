//! Owns: logging, the one table of metrics (`metrics`), what counts all the time (`meters`), and traces of jobs (`traces`).
//! Does not own: what is logged, its settings (`config`), or the figures.

pub mod meters;
pub mod metrics;
pub mod traces;

use std::io::IsTerminal;

use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{EnvFilter, Layer};

use self::traces::Traces;
use crate::config::{LogFormat, Logging};
use crate::fault::Result;

/// What is logged unless the settings say otherwise. The HTTP client of the AWS SDK asks its users to report answers that it does not know: what
/// they mean to ours is said by the fault; so is a region or a credential that it looked for in vain.
const ENGINE: &str = "argon=info,aws_smithy_http_client=error,aws_config=error,warn";
const COMMAND: &str = "aws_smithy_http_client=error,aws_config=error,warn";

/// Logs to standard error what the settings select: by default `info` of the engine, `warn` of commands. An engine sends traces too, where it can and
/// the environment names a collector: until what is returned goes.
pub fn init(engine: bool, settings: &Logging) -> Result<Traces> {
    let mut filter = EnvFilter::new(settings.filter.as_deref().unwrap_or(if engine { ENGINE } else { COMMAND }));
    if let Ok(directive) = format!("{}=off", traces::TARGET).parse() {
        filter = filter.add_directive(directive);
    }
    // A reader of the log that has gone away is not reported: the report would go the same way, and panic.
    let layer = tracing_subscriber::fmt::layer().with_writer(std::io::stderr).log_internal_errors(false);
    let log = match settings.format {
        LogFormat::Json => layer.json().flatten_event(true).with_current_span(false).boxed(),
        LogFormat::Text => layer.with_ansi(std::io::stderr().is_terminal()).with_target(false).boxed(),
    };
    let (traces, outcome) = start(engine, log.with_filter(filter))?;
    if let Err(e) = outcome {
        eprintln!("warning: logging is not available: {e}");
    }
    if engine
        && cfg!(not(feature = "otel"))
        && let Some(variable) = traces::endpoint()
    {
        tracing::warn!("{variable} is set, and this build sends no traces: build it with --features otel");
    }
    Ok(traces)
}

type Started = std::result::Result<(), tracing_subscriber::util::TryInitError>;

#[cfg(feature = "otel")]
fn start(engine: bool, log: impl Layer<tracing_subscriber::Registry> + Send + Sync) -> Result<(Traces, Started)> {
    let (traces, layer) = if engine { Traces::layer()? } else { (Traces::default(), None) };
    Ok((traces, tracing_subscriber::registry().with(log).with(layer).try_init()))
}

#[cfg(not(feature = "otel"))]
#[allow(clippy::unnecessary_wraps)] // as the other one
fn start(_: bool, log: impl Layer<tracing_subscriber::Registry> + Send + Sync) -> Result<(Traces, Started)> {
    Ok((Traces::default(), tracing_subscriber::registry().with(log).try_init()))
}
