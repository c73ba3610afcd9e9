//! The one table of metric names, and the one place that records.
//!
//! Owns: names, kinds, labels, help texts; a recorder of the `metrics` facade that renders Prometheus' text. Does not own: the figures
//! (`meters`, and who calls `set`, `total` or `count`), serving them (`http`).
//!
//! The recorder is an instance, not the process-wide one: several engines in one process (tests, the demo) must not add up, and a macro
//! that names a metric in passing would escape the table.

use std::sync::Arc;
use std::time::Duration;

use metrics::{Counter, Histogram, Key, Metadata, Recorder};
use metrics_exporter_prometheus::{PrometheusBuilder, PrometheusHandle, PrometheusRecorder};
use metrics_util::MetricKindMask;

/// What a metric is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Only grows; its name ends in `_total`.
    Counter,
    /// Goes up and down.
    Gauge,
    /// Seconds, in the buckets of [`BUCKETS`].
    Histogram,
}

/// A label and what it may say.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Label {
    pub name: &'static str,
    /// Every value; empty where users or versions name them.
    pub values: &'static [&'static str],
}

/// A line of the table.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Metric {
    pub name: &'static str,
    pub kind: Kind,
    /// In the order in which values are given.
    pub labels: &'static [Label],
    pub help: &'static str,
}

impl Metric {
    /// `seconds`, `bytes` or nothing, as the name says.
    pub fn unit(&self) -> &'static str {
        let name = self.name.strip_suffix("_total").unwrap_or(self.name);
        ["seconds", "bytes"].into_iter().find(|unit| name.ends_with(unit)).unwrap_or("")
    }
}

macro_rules! labels {
    ($($constant:ident = $name:literal [$($value:literal),*];)*) => {
        $(const $constant: Label = Label { name: $name, values: &[$($value),*] };)*
    };
}

macro_rules! table {
    ($($constant:ident = $kind:ident $name:literal [$($label:ident),*] $help:literal;)*) => {
        $(
            #[doc = $help]
            pub const $constant: Metric = Metric { name: $name, kind: Kind::$kind, labels: &[$($label),*], help: $help };
        )*
        /// Every metric, in the order of the documentation.
        pub const ALL: &[Metric] = &[$($constant),*];
    };
}

labels! {
    VERSION = "version" [];
    CHECK = "check" ["all", "mongodb", "store", "captures", "workers", "runtime"];
    STAGE = "stage" ["ingest", "assemble", "checkpoint", "claim", "encode", "upload", "commit"];
    LINK = "link" ["replies", "batches", "claimed", "cpu", "commits", "marks", "finishes"];
    PART = "part" ["used", "limit"];
    JOB_STATE = "state" ["scheduled", "ready", "running", "dead"];
    KIND = "kind" ["sync", "snapshot", "compression", "notification", "cleanup", "drill", "noop"];
    OUTCOME = "outcome" ["succeeded", "failed", "given_back", "fenced"];
    WORKER_STATE = "state" ["running", "busy"];
    BOUND = "bound" ["min", "max"];
    DIRECTION = "direction" ["up", "down", "hold"];
    REASON = "reason" ["start", "steady", "load", "backlog", "forecast", "idle", "errors", "outage", "no_gain", "slow_service", "restore", "pinned", "disabled", "bounds"];
    OPERATION = "operation" ["put", "replace", "get", "head", "list", "delete"];
    WAY = "direction" ["read", "written"];
    FAULT = "kind" ["transient", "unknown", "missing", "rejected", "corrupt", "other"];
    CAPTURE_STATE = "state" ["running", "stopped", "failed", "paused"];
    BRANCH = "branch" [];
    STATUS = "status" ["active", "stalled", "gap", "failed", "archived", "deleted"];
    ROUTE = "route" [];
    HTTP_STATUS = "status" [];
    WHY = "why" ["full", "dropped", "tls", "slow", "malformed", "broken"];
    LISTENER = "listener" ["api", "metrics"];
}

table! {
    BUILD = Gauge "argon_build_info" [VERSION] "1; the version is a label.";
    UPTIME = Gauge "argon_uptime_seconds" [] "Time since this process started.";
    HEALTH = Gauge "argon_health" [CHECK] "1 ok, 0.5 degraded, 0 unhealthy; check=\"all\" is the whole engine.";
    LEADER = Gauge "argon_leader" [] "1 if this engine leads the maintenance of the metadata.";

    STAGE_SECONDS = Histogram "argon_stage_seconds" [STAGE] "Time that a stage worked on one unit (a reply, a batch, a job, a group of commits).";
    STAGE_CHANGES = Counter "argon_stage_changes_total" [STAGE] "Changes that have passed a stage.";
    STAGE_BYTES = Counter "argon_stage_bytes_total" [STAGE] "Bytes that have passed a stage: replies, events, compressed payload, payload, segments.";
    LINK_DEPTH = Gauge "argon_link_depth" [LINK] "Messages that wait in a link between two stages.";
    LINK_CAPACITY = Gauge "argon_link_capacity" [LINK] "Most messages that a link holds.";
    LINK_BLOCKED = Histogram "argon_link_blocked_seconds" [LINK] "Time that a sender waited for room in a link.";
    MEMORY_BUDGET = Gauge "argon_memory_budget_bytes" [PART] "Bytes of jobs in work, and what they may take (ARGON_MEMORY_BUDGET).";
    QUEUE_PAYLOAD = Gauge "argon_queue_payload_bytes" [PART] "Unprocessed payload of the fullest capture, and where captures wait (ARGON_QUEUE_MAX_BYTES).";

    JOBS = Gauge "argon_jobs" [JOB_STATE, KIND] "Jobs in the queue, of all engines: every engine tells the same figure.";
    JOBS_COMPLETED = Counter "argon_jobs_completed_total" [KIND] "Jobs done, of all engines that ever ran.";
    JOBS_CANCELLED = Counter "argon_jobs_cancelled_total" [KIND] "Jobs cancelled or discarded, of all engines that ever ran.";
    OLDEST_READY = Gauge "argon_oldest_ready_seconds" [KIND] "How long the job that is next in line has waited, of all engines.";
    JOB_WAIT = Histogram "argon_job_wait_seconds" [KIND] "From when a job could run to the begin of its attempt.";
    JOB_RUN = Histogram "argon_job_run_seconds" [KIND] "Time of an attempt.";
    JOB_ATTEMPTS = Counter "argon_job_attempts_total" [KIND, OUTCOME] "Attempts of this engine's workers that ended; given_back: an outage or a stop, which does not count against the job.";
    JOB_RETRIES = Counter "argon_job_retries_total" [KIND] "Failed attempts of this engine after which the job runs again.";
    JOBS_DIED = Counter "argon_jobs_died_total" [KIND] "Jobs that attempts of this engine made dead.";
    JOBS_RESCUED = Counter "argon_jobs_rescued_total" [] "Jobs that this engine took back from processes that died.";
    LEASES_LOST = Counter "argon_leases_lost_total" [] "Times that this process lost its lease and began again as a new engine.";

    WORKERS = Gauge "argon_workers" [WORKER_STATE] "Sync workers of this engine: running, and busy ones among them.";
    WORKERS_TARGET = Gauge "argon_workers_target" [] "Sync workers that the scaler or a pin wants.";
    WORKERS_LIMIT = Gauge "argon_workers_limit" [BOUND] "WORKER_POOL_MIN and WORKER_POOL_MAX.";
    WORKERS_PINNED = Gauge "argon_workers_pinned" [] "1 while an operator holds the number of workers.";
    SCALER_DECISIONS = Counter "argon_scaler_decisions_total" [DIRECTION, REASON] "Decisions of the scaler.";

    STORE_SECONDS = Histogram "argon_store_operation_seconds" [OPERATION] "Time of one operation at the store, failed ones too.";
    STORE_BYTES = Counter "argon_store_bytes_total" [WAY] "Bytes of objects read and written.";
    STORE_ERRORS = Counter "argon_store_errors_total" [OPERATION, FAULT] "Operations at the store that failed.";
    STORE_RETRIES = Counter "argon_store_retries_total" [FAULT] "Uploads of segments that were tried again, by what went wrong.";
    STORE_FREE = Gauge "argon_store_free_bytes" [] "Free bytes of the file system of a file:// store; absent for other stores.";

    CAPTURES = Gauge "argon_captures" [CAPTURE_STATE] "Captures by state, of all engines.";
    CAPTURES_OWNED = Gauge "argon_captures_owned" [] "Captures that this engine follows.";
    CAPTURES_WAITING = Gauge "argon_captures_waiting" [] "Running captures that say what they wait for, of all engines.";
    CAPTURE_READ_DELAY = Gauge "argon_capture_read_delay_seconds" [BRANCH] "Age of the newest change read; 0 when the stream is read to its end.";
    CAPTURE_COMMIT_DELAY = Gauge "argon_capture_commit_delay_seconds" [BRANCH] "Everything older than this is in committed segments.";
    OPLOG_WINDOW = Gauge "argon_oplog_window_seconds" [BRANCH] "Oplog left behind the capture's position: how long it could stand still at the rate of the recent past. Absent where the oplog cannot be read.";
    CAPTURE_RESUMES = Counter "argon_capture_resumes_total" [BRANCH] "Times that this engine opened the change stream again after a break.";
    CAPTURE_GAPS = Counter "argon_capture_gaps_total" [BRANCH] "Gaps that this engine recorded.";

    BRANCHES = Gauge "argon_branches" [STATUS] "Branches by status.";
    BRANCH_STATUS = Gauge "argon_branch_status" [BRANCH, STATUS] "1 for the status that a captured branch has.";
    BRANCH_HEAD = Gauge "argon_branch_head" [BRANCH] "Sequence number of the head.";
    BRANCH_CHANGES = Gauge "argon_branch_changes" [BRANCH] "Changes of the branch's own history.";
    BRANCH_RAW = Gauge "argon_branch_raw_bytes" [BRANCH] "Bytes of its events before compression.";
    BRANCH_STORED = Gauge "argon_branch_stored_bytes" [BRANCH] "Bytes of its segments.";
    BRANCH_SEGMENTS = Gauge "argon_branch_segments" [BRANCH] "Its segments.";
    BRANCH_RESTORABLE = Gauge "argon_branch_restorable_timestamp_seconds" [BRANCH] "Unix time up to which every change is committed.";
    BRANCH_PROVEN = Gauge "argon_branch_proven_timestamp_seconds" [BRANCH] "Unix time of the last drill that succeeded; absent before the first.";

    PROCESS_MEMORY = Gauge "argon_process_resident_memory_bytes" [] "Resident memory of this process.";
    PROCESS_CPU = Counter "argon_process_cpu_seconds_total" [] "CPU time of this process, whole seconds.";
    PROCESS_THREADS = Gauge "argon_process_threads" [] "Threads of this process.";
    PROCESS_FILES = Gauge "argon_process_open_files" [] "Open file descriptors of this process.";
    RUNTIME_LAG = Gauge "argon_runtime_lag_seconds" [] "Worst delay of the async runtime within the last half minute.";
    HTTP_REQUESTS = Counter "argon_http_requests_total" [ROUTE, HTTP_STATUS] "Requests answered, by route of the table and status.";
    HTTP_REFUSED = Counter "argon_http_connections_refused_total" [WHY] "Connections dropped or refused at a cap, or that sent no complete request in time.";
    HTTP_CONNECTIONS = Gauge "argon_http_connections" [LISTENER] "Open connections.";
}

/// Seconds: from a fast claim to a job that has waited for half an hour.
pub const BUCKETS: [f64; 18] =
    [0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0, 900.0, 1800.0];

/// Counters that go on from what the metadata or the system has counted: a zero before that is known would look like a beginning anew.
const KEPT_ELSEWHERE: [Metric; 3] = [JOBS_COMPLETED, JOBS_CANCELLED, PROCESS_CPU];

/// A gauge that has not been set for so long is of something that is gone: a branch, a capture that another engine follows.
const STALE: Duration = Duration::from_secs(60);

/// Recorder and renderer. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Metrics {
    recorder: Arc<PrometheusRecorder>,
    handle: PrometheusHandle,
}

/// The facade asks where a metric comes from; filters by that are not used.
const METADATA: Metadata<'static> = Metadata::new("argon", metrics::Level::INFO, None);

impl Metrics {
    /// Nothing recorded; every name is described.
    pub fn new() -> Self {
        let builder = PrometheusBuilder::new().idle_timeout(MetricKindMask::GAUGE, Some(STALE));
        // An error is an empty list of buckets, which this is not; without it they would be quantiles.
        let builder = builder.set_buckets(&BUCKETS).unwrap_or_else(|_| PrometheusBuilder::new());
        let recorder = builder.build_recorder();
        for metric in ALL {
            match metric.kind {
                Kind::Counter => recorder.describe_counter(metric.name.into(), None, metric.help.into()),
                Kind::Gauge => recorder.describe_gauge(metric.name.into(), None, metric.help.into()),
                Kind::Histogram => recorder.describe_histogram(metric.name.into(), None, metric.help.into()),
            }
        }
        let handle = recorder.handle();
        handle.run_upkeep(); // publishes the descriptions
        let metrics = Self { recorder: Arc::new(recorder), handle };
        let begins = |metric: &&Metric| metric.kind == Kind::Counter && !KEPT_ELSEWHERE.contains(metric);
        ALL.iter().filter(begins).for_each(|metric| metrics.begin(metric, &mut Vec::new()));
        metrics
    }

    /// Counters whose labels are closed sets begin at zero: who looks for an increase does not see a series that begins with one.
    fn begin(&self, metric: &Metric, values: &mut Vec<&'static str>) {
        let Some(label) = metric.labels.get(values.len()) else {
            self.counter(metric, values).absolute(0);
            return;
        };
        for value in label.values {
            values.push(value);
            self.begin(metric, values);
            values.pop();
        }
    }

    /// Sets a gauge.
    pub fn set(&self, metric: &Metric, labels: &[&str], value: f64) {
        debug_assert_eq!(metric.kind, Kind::Gauge);
        self.recorder.register_gauge(&key(metric, labels), &METADATA).set(value);
    }

    /// Sets a counter whose whole value is kept elsewhere; it never goes back.
    pub fn total(&self, metric: &Metric, labels: &[&str], value: u64) {
        self.counter(metric, labels).absolute(value);
    }

    /// Adds one to a counter.
    pub fn count(&self, metric: &Metric, labels: &[&str]) {
        self.counter(metric, labels).increment(1);
    }

    /// A counter to be kept where it is counted often.
    pub fn counter(&self, metric: &Metric, labels: &[&str]) -> Counter {
        debug_assert_eq!(metric.kind, Kind::Counter);
        self.recorder.register_counter(&key(metric, labels), &METADATA)
    }

    /// A histogram to be kept where it is recorded; [`Self::upkeep`] must run now and then, since it keeps every value until somebody renders.
    pub fn histogram(&self, metric: &Metric, labels: &[&str]) -> Histogram {
        debug_assert_eq!(metric.kind, Kind::Histogram);
        self.recorder.register_histogram(&key(metric, labels), &METADATA)
    }

    /// Puts what histograms have taken in into their buckets.
    pub fn upkeep(&self) {
        self.handle.run_upkeep();
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
    let closed = |(label, value): (&Label, &&str)| label.values.is_empty() || label.values.contains(value);
    debug_assert!(metric.labels.iter().zip(labels).all(closed), "{} {labels:?}", metric.name);
    let labels: Vec<metrics::Label> =
        metric.labels.iter().zip(labels).map(|(label, value)| metrics::Label::new(label.name, (*value).to_owned())).collect();
    Key::from_parts(metric.name, labels)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_follow_the_conventions_of_prometheus_and_each_is_used_once() {
        for (i, metric) in ALL.iter().enumerate() {
            let name = metric.name;
            assert!(name.starts_with("argon_") && name.bytes().all(|b| b.is_ascii_lowercase() || b == b'_'), "{name}");
            assert_eq!(metric.kind == Kind::Counter, name.ends_with("_total"), "{name}");
            assert!(metric.kind != Kind::Histogram || metric.unit() == "seconds", "{name}");
            assert!(metric.help.ends_with('.'), "{name}");
            assert!(!ALL[i + 1..].iter().any(|other| other.name == name), "{name}");
        }
    }

    #[test]
    fn what_is_recorded_is_rendered_with_help_type_and_labels() {
        let metrics = Metrics::new();
        metrics.set(&JOBS, &["ready", "sync"], 7.0);
        metrics.total(&JOBS_COMPLETED, &["sync"], 975);
        metrics.total(&JOBS_COMPLETED, &["sync"], 970);
        metrics.count(&HTTP_REQUESTS, &["/health", "200"]);
        metrics.count(&HTTP_REQUESTS, &["/health", "200"]);
        metrics.histogram(&JOB_RUN, &["sync"]).record(0.02);
        metrics.set(&BUILD, &["1\n\"2\\"], 1.0);
        let text = metrics.render();
        for line in [
            "# HELP argon_jobs Jobs in the queue, of all engines: every engine tells the same figure.",
            "# TYPE argon_jobs gauge",
            "argon_jobs{state=\"ready\",kind=\"sync\"} 7",
            "# TYPE argon_jobs_completed_total counter",
            "argon_jobs_completed_total{kind=\"sync\"} 975",
            "argon_http_requests_total{route=\"/health\",status=\"200\"} 2",
            "# TYPE argon_job_run_seconds histogram",
            "argon_job_run_seconds_bucket{kind=\"sync\",le=\"0.01\"} 0",
            "argon_job_run_seconds_bucket{kind=\"sync\",le=\"0.025\"} 1",
            "argon_job_run_seconds_count{kind=\"sync\"} 1",
            "argon_build_info{version=\"1\\n\\\"2\\\\\"} 1",
        ] {
            assert!(text.lines().any(|found| found == line), "{line}\n{text}");
        }
        assert!(!Metrics::new().render().contains("argon_jobs{"), "two recorders do not mix");
    }
}
