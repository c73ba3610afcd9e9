//! One trace for each job: a span from its claim to the record of its end, and one inside it for each step of a sync job.
//!
//! Owns: the spans, and sending them to a collector where this build can (feature `otel`) and the environment names one. Does not own: the log,
//! which these spans are kept out of.
//!
//! The variables are OpenTelemetry's own (`OTEL_EXPORTER_OTLP_ENDPOINT`, `OTEL_EXPORTER_OTLP_HEADERS`, `OTEL_SERVICE_NAME`, `OTEL_TRACES_SAMPLER`, …),
//! read by its library. Without a collector a span costs the look at a flag.

use tracing::Span;
use tracing::field::Empty;

use crate::ledger::Job;

/// Of the spans, and of nothing else: the log leaves it out.
pub(crate) const TARGET: &str = "job_trace";

/// Either of them names a collector.
const ENDPOINTS: [&str; 2] = ["OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT"];

/// A span inside that of the job. The name is a literal.
macro_rules! step {
    ($name:literal) => {
        tracing::info_span!(target: crate::telemetry::traces::TARGET, $name)
    };
}
pub(crate) use step;

/// A root of its own, from now on.
pub(crate) fn of_job(job: &Job) -> Span {
    let changes = || job.sync.as_ref().map(crate::ledger::SyncSpec::changes);
    tracing::info_span!(
        target: TARGET, parent: None, "job", job = %job.id, kind = %job.kind, branch = %job.branch, attempt = job.attempt,
        changes = changes(), outcome = Empty, error = Empty, otel.status_code = Empty,
    )
}

/// How it ended.
pub(crate) fn ended(span: &Span, outcome: &str, error: Option<&str>) {
    span.record("outcome", outcome);
    if let Some(error) = error {
        span.record("error", error);
        span.record("otel.status_code", "ERROR");
    }
}

/// The collector that the environment names, if any.
pub(crate) fn endpoint() -> Option<&'static str> {
    ENDPOINTS.into_iter().find(|name| std::env::var_os(name).is_some_and(|value| !value.is_empty()))
}

/// Sends what is left when it goes.
#[derive(Debug, Default)]
#[must_use = "traces end with it"]
pub struct Traces {
    #[cfg(feature = "otel")]
    provider: Option<opentelemetry_sdk::trace::SdkTracerProvider>,
}

#[cfg(feature = "otel")]
mod export {
    use std::sync::mpsc;
    use std::time::Duration;

    use opentelemetry::trace::TracerProvider;
    use opentelemetry_sdk::Resource;
    use opentelemetry_sdk::runtime::Tokio;
    use opentelemetry_sdk::trace::SdkTracerProvider;
    use opentelemetry_sdk::trace::span_processor_with_async_runtime::BatchSpanProcessor;
    use tracing::Subscriber;
    use tracing_subscriber::Layer;
    use tracing_subscriber::filter::{LevelFilter, Targets};
    use tracing_subscriber::registry::LookupSpan;

    use super::{TARGET, Traces, endpoint};
    use crate::fault::{Fault, Result};

    /// A collector that does not answer holds up the end of the process no longer.
    const LAST_WORDS: Duration = Duration::from_secs(3);

    impl Traces {
        /// The layer that sends spans, where the environment names a collector. They go in batches, from a task on the runtime that this is called on.
        pub(crate) fn layer<S>() -> Result<(Self, Option<impl Layer<S>>)>
        where
            S: Subscriber + for<'a> LookupSpan<'a>,
        {
            if endpoint().is_none() {
                return Ok((Self::default(), None));
            }
            crate::store::install_tls();
            let exporter = opentelemetry_otlp::SpanExporter::builder().with_http().build();
            let exporter = exporter.map_err(|e| Fault::config(format!("{}: {e}", endpoint().unwrap_or_default())))?;
            let batches = BatchSpanProcessor::builder(exporter, Tokio).build();
            let mut resource = Resource::builder();
            if std::env::var_os("OTEL_SERVICE_NAME").is_none() {
                resource = resource.with_service_name("argon");
            }
            let provider = SdkTracerProvider::builder().with_span_processor(batches).with_resource(resource.build()).build();
            let layer = tracing_opentelemetry::layer().with_tracer(provider.tracer("argon")).with_location(false).with_threads(false);
            let only = Targets::new().with_target(TARGET, LevelFilter::INFO);
            Ok((Self { provider: Some(provider) }, Some(layer.with_filter(only))))
        }
    }

    impl Drop for Traces {
        fn drop(&mut self) {
            let Some(provider) = self.provider.take() else { return };
            // The library waits for its exporter however long it is told to wait.
            let (tx, rx) = mpsc::sync_channel(1);
            std::thread::spawn(move || tx.send(provider.shutdown()));
            let ended = rx.recv_timeout(LAST_WORDS).map_err(|e| e.to_string());
            if let Err(error) = ended.and_then(|sent| sent.map_err(|e| e.to_string())) {
                tracing::warn!(error, "the last traces were not sent");
            }
        }
    }
}
