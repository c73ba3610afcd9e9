//! The one table of metric names, and the one place that records.
//!
//! Owns: names, kinds, help texts; a recorder of the `metrics` facade that renders Prometheus' text. Does not own: the figures (who calls
//! `set`, `total` or `count`), serving them (`http`).
//!
//! The recorder is an instance, not the process-wide one: several engines in one process (tests, the demo) must not add up, and a macro
//! that names a metric in passing would escape the table.

use std::sync::Arc;

use metrics::{Key, Label, Level, Metadata, Recorder};
use metrics_exporter_prometheus::{PrometheusBuilder, PrometheusHandle, PrometheusRecorder};

/// What a metric is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Only grows; its name ends in `_total`.
    Counter,
    /// Goes up and down.
    Gauge,
}

/// A line of the table.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Metric {
    pub name: &'static str,
    pub kind: Kind,
    /// Names of its labels, in the order in which values are given.
    pub labels: &'static [&'static str],
    pub help: &'static str,
}

macro_rules! table {
    ($($constant:ident = $kind:ident $name:literal [$($label:literal),*] $help:literal;)*) => {
        $(
            #[doc = $help]
            pub const $constant: Metric = Metric { name: $name, kind: Kind::$kind, labels: &[$($label),*], help: $help };
        )*
        /// Every metric, in the order of the documentation.
        pub const ALL: &[Metric] = &[$($constant),*];
    };
}

table! {
    BUILD = Gauge "argon_build_info" ["version"] "1; the version is a label.";
    UPTIME = Gauge "argon_uptime_seconds" [] "Time since this process started.";
    HEALTH = Gauge "argon_health" ["check"] "1 ok, 0.5 degraded, 0 unhealthy; check=\"all\" is the whole engine.";
    WORKERS = Gauge "argon_workers" ["state"] "Sync workers of this engine: running, and busy ones among them.";
    WORKERS_TARGET = Gauge "argon_workers_target" [] "Sync workers that the scaler or a pin wants.";
    WORKERS_PINNED = Gauge "argon_workers_pinned" [] "1 while an operator holds the number of workers.";
    JOBS = Gauge "argon_jobs" ["state"] "Jobs in the queue by state, of all engines.";
    JOBS_COMPLETED = Counter "argon_jobs_completed_total" ["kind"] "Jobs done, of all engines that ever ran.";
    JOBS_FAILED = Counter "argon_job_attempts_failed_total" [] "Attempts of this engine's workers that failed.";
    JOBS_PROCESSED = Counter "argon_job_attempts_total" [] "Attempts of this engine's workers that ended.";
    OLDEST_READY = Gauge "argon_oldest_ready_seconds" [] "How long the oldest ready job has waited.";
    CAPTURES = Gauge "argon_captures" ["state"] "Captures by state, of all engines.";
    CAPTURES_OWNED = Gauge "argon_captures_owned" [] "Captures that this engine follows.";
    HTTP_REQUESTS = Counter "argon_http_requests_total" ["route", "status"] "Requests answered, by route of the table and status.";
    HTTP_REFUSED = Counter "argon_http_connections_refused_total" ["why"] "Connections dropped or refused at a cap, or that sent no complete request in time.";
    HTTP_CONNECTIONS = Gauge "argon_http_connections" ["listener"] "Open connections.";
    RUNTIME_LAG = Gauge "argon_runtime_lag_seconds" [] "Worst delay of the async runtime within the last half minute.";
}

/// Recorder and renderer. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Metrics {
    recorder: Arc<PrometheusRecorder>,
    handle: PrometheusHandle,
}

/// The facade asks where a metric comes from; filters by that are not used.
const METADATA: Metadata<'static> = Metadata::new("argon", Level::INFO, None);

impl Metrics {
    /// Nothing recorded; every name is described.
    pub fn new() -> Self {
        let recorder = PrometheusBuilder::new().build_recorder();
        for metric in ALL {
            match metric.kind {
                Kind::Counter => recorder.describe_counter(metric.name.into(), None, metric.help.into()),
                Kind::Gauge => recorder.describe_gauge(metric.name.into(), None, metric.help.into()),
            }
        }
        let handle = recorder.handle();
        handle.run_upkeep(); // publishes the descriptions
        Self { recorder: Arc::new(recorder), handle }
    }

    /// Sets a gauge.
    pub fn set(&self, metric: &Metric, labels: &[&str], value: f64) {
        debug_assert_eq!(metric.kind, Kind::Gauge);
        self.recorder.register_gauge(&key(metric, labels), &METADATA).set(value);
    }

    /// Sets a counter whose whole value is kept elsewhere; it never goes back.
    pub fn total(&self, metric: &Metric, labels: &[&str], value: u64) {
        debug_assert_eq!(metric.kind, Kind::Counter);
        self.recorder.register_counter(&key(metric, labels), &METADATA).absolute(value);
    }

    /// Adds one to a counter.
    pub fn count(&self, metric: &Metric, labels: &[&str]) {
        debug_assert_eq!(metric.kind, Kind::Counter);
        self.recorder.register_counter(&key(metric, labels), &METADATA).increment(1);
    }

    /// Prometheus' text format.
    pub fn render(&self) -> String {
        self.handle.render()
    }
}

impl Default for Metrics {
    fn default() -> Self {
        Self::new()
    }
}

fn key(metric: &Metric, labels: &[&str]) -> Key {
    debug_assert_eq!(metric.labels.len(), labels.len(), "{}", metric.name);
    let labels: Vec<Label> = metric.labels.iter().zip(labels).map(|(name, value)| Label::new(*name, (*value).to_owned())).collect();
    Key::from_parts(metric.name, labels)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_follow_the_conventions_of_prometheus_and_each_is_used_once() {
        for (i, metric) in ALL.iter().enumerate() {
            assert!(
                metric.name.starts_with("argon_") && metric.name.bytes().all(|b| b.is_ascii_lowercase() || b == b'_'),
                "{}",
                metric.name
            );
            assert_eq!(metric.kind == Kind::Counter, metric.name.ends_with("_total"), "{}", metric.name);
            assert!(metric.help.ends_with('.'), "{}", metric.name);
            assert!(!ALL[i + 1..].iter().any(|other| other.name == metric.name), "{}", metric.name);
        }
    }

    #[test]
    fn what_is_recorded_is_rendered_with_help_type_and_labels() {
        let metrics = Metrics::new();
        metrics.set(&JOBS, &["ready"], 7.0);
        metrics.total(&JOBS_COMPLETED, &["sync"], 975);
        metrics.total(&JOBS_COMPLETED, &["sync"], 970);
        metrics.count(&HTTP_REQUESTS, &["/health", "200"]);
        metrics.count(&HTTP_REQUESTS, &["/health", "200"]);
        let text = metrics.render();
        for line in [
            "# TYPE argon_jobs gauge",
            "argon_jobs{state=\"ready\"} 7",
            "# TYPE argon_jobs_completed_total counter",
            "argon_jobs_completed_total{kind=\"sync\"} 975",
            "argon_http_requests_total{route=\"/health\",status=\"200\"} 2",
            "# HELP argon_jobs Jobs in the queue by state, of all engines.",
        ] {
            assert!(text.lines().any(|l| l == line), "{line} is missing in\n{text}");
        }
        assert!(!Metrics::new().render().contains("argon_jobs{"), "two recorders do not mix");
    }
}
