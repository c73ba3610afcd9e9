//! Every setting once: name, unit, default, range, what raising it costs. Flags and environment variables are this one table.
//!
//! Owns: parsing and ranges. Does not own: what a setting does (the stage that takes it).
//! AWS credentials are not settings of Argon: they come from the SDK's own chain. `AWS_CA_BUNDLE` is read here because the SDK for Rust does not.

mod bases;
mod http;

use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::Args;
use tracing_subscriber::EnvFilter;
use tracing_subscriber::filter::LevelFilter;

use crate::fault::{Fault, Result};
use crate::store::Switch;

pub use bases::{BaseSettings, ReadFrom};
pub use http::{HttpSettings, Secret};

/// Where metadata and objects live: taken by every command.
#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "Connection")]
pub struct Connection {
    /// MongoDB of the metadata, and of sources that name no other. A replica set. With TLS: &tls=true&tlsCAFile=FILE, and
    /// &tlsCertificateKeyFile=FILE where it wants a certificate.
    #[arg(long = "mongodb-uri", env = "ARGON_MONGODB_URI", global = true, hide_env_values = true, value_name = "URI")]
    pub mongodb_uri: Option<String>,
    /// Database of the metadata; it can never be captured.
    #[arg(long = "metadata-db", env = "ARGON_METADATA_DB", global = true, default_value = "argon", value_name = "DB", value_parser = database_name)]
    pub metadata_db: String,
    /// Object store: s3://bucket/prefix, file:///dir, gs://bucket/prefix, az://container/prefix.
    #[arg(long = "store", env = "ARGON_STORE_URL", global = true, value_name = "URL")]
    pub store: Option<String>,
    /// Endpoint of an S3-compatible store, for example http://127.0.0.1:9000.
    #[arg(long = "s3-endpoint", env = "ARGON_S3_ENDPOINT", global = true, value_name = "URL")]
    pub s3_endpoint: Option<String>,
    /// Bucket in the path instead of the host name; auto: on where an endpoint is set.
    #[arg(long, env = "ARGON_S3_PATH_STYLE", global = true, default_value = "auto", value_name = "auto|on|off")]
    pub s3_path_style: Switch,
    /// Checksums of the SDK on every request; auto: off where an endpoint is set, since some stores refuse them.
    #[arg(long, env = "ARGON_S3_CHECKSUMS", global = true, default_value = "auto", value_name = "auto|on|off")]
    pub s3_checksums: Switch,
    /// PEM file of the authorities whose certificates an https:// endpoint may show, instead of this machine's root certificates. The AWS
    /// tools' own variable, read once at start.
    #[arg(long, env = "AWS_CA_BUNDLE", global = true, value_name = "FILE", value_parser = |s: &str| Ok::<_, String>(PathBuf::from(s)))]
    pub s3_ca_file: Option<PathBuf>,
}

impl Connection {
    /// The metadata server's URI, or what to type.
    pub fn uri(&self) -> Result<&str> {
        self.mongodb_uri.as_deref().ok_or_else(|| {
            Fault::config("no MongoDB given: set ARGON_MONGODB_URI or pass --mongodb-uri")
                .next("export ARGON_MONGODB_URI='mongodb://127.0.0.1:27017/?replicaSet=rs0'")
        })
    }

    /// The file of authorities; a variable that is set to nothing is none, as the AWS tools have it.
    pub fn s3_ca_file(&self) -> Option<&Path> {
        self.s3_ca_file.as_deref().filter(|path| !path.as_os_str().is_empty())
    }

    /// The store's URL, or what to type.
    pub fn store_url(&self) -> Result<&str> {
        self.store.as_deref().ok_or_else(|| {
            Fault::config(
                "no object store given: set ARGON_STORE_URL or pass --store: file:///a/directory, s3://bucket/prefix, gs:// or az://",
            )
            .next("export ARGON_STORE_URL=\"file://$HOME/argon-store\"")
        })
    }
}

/// What is logged to standard error: taken by every command.
#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "Logging")]
pub struct Logging {
    /// What is logged: LEVEL or TARGET=LEVEL, several with commas between. argon=info,warn for `run` if not given, warn for other commands.
    #[arg(long = "log", env = "ARGON_LOG", global = true, value_name = "FILTER", value_parser = log_filter)]
    pub filter: Option<String>,
    /// Lines for people, or one JSON object a line.
    #[arg(
        long = "log-format",
        env = "ARGON_LOG_FORMAT",
        global = true,
        default_value = "text",
        value_name = "text|json",
        ignore_case = true
    )]
    pub format: LogFormat,
}

/// How a log line looks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum LogFormat {
    /// For people.
    Text,
    /// One object a line.
    Json,
}

/// Settings of the engine (`argon run`).
#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "Engine")]
pub struct EngineSettings {
    /// Sync workers at the start and when idle. More: more segments in flight, more memory, more load on MongoDB and the store.
    #[arg(long = "pool-size", env = "WORKER_POOL_SIZE", default_value = "5", value_name = "1..20", value_parser = clap::value_parser!(u16).range(1..=20))]
    pub pool_size: u16,
    /// Sync workers that are never gone below, whatever is congested.
    #[arg(long = "pool-min", env = "WORKER_POOL_MIN", default_value = "1", value_name = "1..20", value_parser = clap::value_parser!(u16).range(1..=20))]
    pub pool_min: u16,
    /// Sync workers that are never gone beyond, whatever the load.
    #[arg(long = "pool-max", env = "WORKER_POOL_MAX", default_value = "20", value_name = "1..20", value_parser = clap::value_parser!(u16).range(1..=20))]
    pub pool_max: u16,
    /// Whether the number of sync workers follows the load. false: there are WORKER_POOL_SIZE, or as many as an operator asks for; dry-run: so too,
    /// and what would have been done is shown.
    #[arg(long = "autoscale", env = "WORKER_AUTOSCALE", default_value = "true", value_name = "true|false|dry-run", value_parser = autoscale)]
    pub autoscale: Autoscale,
    /// Workers for the other kinds of jobs, each 0..20; a kind that is not named keeps its default. More: more of them at once.
    #[arg(long = "slots", env = "WORKER_SLOTS", default_value = "compression=2,notification=1,cleanup=1,snapshot=2", value_name = "KIND=N,..", value_parser = slots)]
    pub slots: Slots,
    /// Changes at which a batch may close (not a cap: batches grow under load). More: fewer, larger jobs, later.
    #[arg(long = "batch-size", env = "WORKER_BATCH_SIZE", default_value = "100", value_name = "CHANGES", value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    pub batch_size: u32,
    /// Time after which a batch closes whatever it holds.
    #[arg(long = "batch-timeout", env = "WORKER_BATCH_TIMEOUT", default_value = "5s", value_name = "TIME", value_parser = |s: &str| time(s, 10, 600_000))]
    pub batch_timeout: Duration,
    /// Size at which a batch closes in any case. More: better compression, more memory.
    #[arg(long = "batch-max-bytes", env = "ARGON_BATCH_MAX_BYTES", default_value = "4MiB", value_name = "SIZE", value_parser = |s: &str| size(s, 64 << 10, 64 << 20))]
    pub batch_max_bytes: u64,
    /// Longest time one attempt of a job may take.
    #[arg(long = "process-timeout", env = "WORKER_PROCESS_TIMEOUT", default_value = "5m", value_name = "TIME", value_parser = |s: &str| time(s, 1_000, 86_400_000))]
    pub process_timeout: Duration,
    /// Repeats after the first failed attempt of a job; then it is dead.
    #[arg(long = "retry-count", env = "JOB_RETRY_COUNT", default_value = "3", value_name = "N", value_parser = clap::value_parser!(u32).range(0..=100))]
    pub retry_count: u32,
    /// First delay before a repeat, in seconds or as 30s; doubles with each, with full jitter.
    #[arg(long = "retry-delay", env = "JOB_RETRY_DELAY", default_value = "30", value_name = "TIME", value_parser = |s: &str| time(s, 10, 86_400_000))]
    pub retry_delay: Duration,
    /// Longest delay before a repeat.
    #[arg(long = "retry-max-delay", env = "JOB_RETRY_MAX_DELAY", default_value = "10m", value_name = "TIME", value_parser = |s: &str| time(s, 10, 86_400_000))]
    pub retry_max_delay: Duration,
    /// How long finished jobs are kept.
    #[arg(long = "job-cleanup-interval", env = "JOB_CLEANUP_INTERVAL", default_value = "24h", value_name = "TIME", value_parser = |s: &str| time(s, 1_000, 31_536_000_000))]
    pub job_cleanup: Duration,
    /// Hard limit of a running job: after it the job is taken from its process although that lives, and the attempt counts. More: a job that hangs
    /// in a way that nothing else notices holds its branch longer. Never less than a minute more than --process-timeout.
    #[arg(long = "job-stuck-timeout", env = "JOB_STUCK_TIMEOUT", default_value = "10m", value_name = "TIME", value_parser = |s: &str| time(s, 10_000, 604_800_000))]
    pub job_stuck: Duration,
    /// Time without a heartbeat after which this process counts as dead and others take over.
    #[arg(long = "lease", env = "ARGON_LEASE", default_value = "15s", value_name = "TIME", value_parser = |s: &str| time(s, 3_000, 600_000))]
    pub lease: Duration,
    /// Unprocessed payload in the queue at which capture waits. More: longer outages of the store are bridged by the queue.
    #[arg(long = "queue-max-bytes", env = "ARGON_QUEUE_MAX_BYTES", default_value = "1GiB", value_name = "SIZE", value_parser = |s: &str| size(s, 16 << 20, 1 << 44))]
    pub queue_max_bytes: u64,
    /// Memory for jobs in work, and for folding when a database is restored.
    #[arg(long = "memory-budget", env = "ARGON_MEMORY_BUDGET", default_value = "256MiB", value_name = "SIZE", value_parser = |s: &str| size(s, 32 << 20, 1 << 44))]
    pub memory_budget: u64,
    /// How long a stop may take before leases are given back.
    #[arg(long = "shutdown-timeout", env = "ARGON_SHUTDOWN_TIMEOUT", default_value = "30s", value_name = "TIME", value_parser = |s: &str| time(s, 1_000, 3_600_000))]
    pub shutdown_timeout: Duration,
    #[command(flatten)]
    pub bases: BaseSettings,
}

impl EngineSettings {
    /// What no single setting can tell: whether they fit together.
    pub fn check(&self) -> Result<()> {
        let (min, size, max) = (self.pool_min, self.pool_size, self.pool_max);
        if min > max {
            return Err(Fault::config(format!("WORKER_POOL_MIN is {min}: allowed are 1 to {max}, the value of WORKER_POOL_MAX")));
        }
        if !(min..=max).contains(&size) {
            return Err(Fault::config(format!(
                "WORKER_POOL_SIZE is {size}: allowed are {min} to {max}, the values of WORKER_POOL_MIN and WORKER_POOL_MAX"
            )));
        }
        Ok(())
    }

    /// `JOB_STUCK_TIMEOUT` as it is applied: a worker that ends an overdue attempt by itself comes first, whatever the two settings say.
    pub fn stuck_after(&self) -> Duration {
        self.job_stuck.max(self.process_timeout + Duration::from_secs(60))
    }
}

/// Whether the number of sync workers follows the load.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Autoscale {
    On,
    Off,
    /// Decides and shows, changes nothing.
    DryRun,
}

fn autoscale(text: &str) -> Result<Autoscale, String> {
    match text.trim() {
        "true" | "on" => Ok(Autoscale::On),
        "false" | "off" => Ok(Autoscale::Off),
        "dry-run" => Ok(Autoscale::DryRun),
        _ => Err("allowed are true, false and dry-run".into()),
    }
}

/// Workers of the classes that are not sized by the load.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Slots {
    pub compression: u16,
    pub notification: u16,
    pub cleanup: u16,
    pub snapshot: u16,
}

impl Default for Slots {
    fn default() -> Self {
        Self { compression: 2, notification: 1, cleanup: 1, snapshot: 2 }
    }
}

/// Most workers of one of these classes.
const MAX_SLOTS: u16 = 20;

/// `compression=2,notification=1,cleanup=1,snapshot=2`
fn slots(text: &str) -> Result<Slots, String> {
    let mut slots = Slots::default();
    for part in text.split(',').map(str::trim).filter(|part| !part.is_empty()) {
        let (kind, count) = part.split_once('=').map_or((part, ""), |(kind, count)| (kind.trim(), count.trim()));
        let slot = match kind {
            "compression" => &mut slots.compression,
            "notification" => &mut slots.notification,
            "cleanup" => &mut slots.cleanup,
            "snapshot" => &mut slots.snapshot,
            "drill" => return Err("drill jobs run on the snapshot workers".into()),
            "sync" | "noop" => return Err(format!("{kind} jobs run on the sync workers, whose number is WORKER_POOL_SIZE")),
            _ => return Err(format!("{kind} is not one of compression, notification, cleanup, snapshot")),
        };
        *slot = match count.parse() {
            Ok(n) if n <= MAX_SLOTS => n,
            _ => return Err(format!("{kind} has '{count}': allowed are 0 to {MAX_SLOTS}")),
        };
    }
    Ok(slots)
}

/// Names of all variables, for the near-miss warning and the test that holds the documentation to this table.
pub const VARIABLES: &[&str] = &[
    "ARGON_MONGODB_URI",
    "ARGON_METADATA_DB",
    "ARGON_STORE_URL",
    "ARGON_S3_ENDPOINT",
    "ARGON_S3_PATH_STYLE",
    "ARGON_S3_CHECKSUMS",
    "AWS_CA_BUNDLE",
    "WORKER_POOL_SIZE",
    "WORKER_POOL_MIN",
    "WORKER_POOL_MAX",
    "WORKER_AUTOSCALE",
    "WORKER_SLOTS",
    "WORKER_BATCH_SIZE",
    "WORKER_BATCH_TIMEOUT",
    "ARGON_BATCH_MAX_BYTES",
    "WORKER_PROCESS_TIMEOUT",
    "JOB_RETRY_COUNT",
    "JOB_RETRY_DELAY",
    "JOB_RETRY_MAX_DELAY",
    "JOB_CLEANUP_INTERVAL",
    "JOB_STUCK_TIMEOUT",
    "ARGON_LEASE",
    "ARGON_QUEUE_MAX_BYTES",
    "ARGON_MEMORY_BUDGET",
    "ARGON_SHUTDOWN_TIMEOUT",
    "ARGON_BASE_INTERVAL",
    "ARGON_BASE_RATE",
    "ARGON_BASE_READERS",
    "ARGON_BASE_READ_FROM",
    "ARGON_CATALOGUE_INTERVAL",
    "ARGON_DRILL_INTERVAL",
    "ARGON_DRILL_URI",
    "ARGON_DELETE_GRACE",
    "ARGON_TEMP_DIR",
    "ARGON_HTTP_ADDR",
    "ARGON_METRICS_ADDR",
    "ARGON_CONTROL_SOCKET",
    "ARGON_API_TOKEN",
    "ARGON_API_TOKENS_FILE",
    "ARGON_ALLOW_UNAUTHENTICATED",
    "ARGON_TLS_CERT",
    "ARGON_TLS_KEY",
    "ARGON_TLS_CLIENT_CA",
    "ARGON_API_RATE",
    "ARGON_HTTP_MAX_CONNECTIONS",
    "ARGON_HTTP_MAX_CONNECTIONS_PER_CLIENT",
    "ARGON_LOG",
    "ARGON_LOG_FORMAT",
    "ARGON_MONGOD",
    "ARGON_WEED",
];

/// Variables that look like a misspelling of ours: `(given, probably meant)`. Others are none of our business: Kubernetes
/// injects `ARGON_PORT` for a Service, Jenkins sets `JOB_NAME`.
pub fn near_misses(given: impl Iterator<Item = String>) -> Vec<(String, &'static str)> {
    given
        .filter(|name| !VARIABLES.contains(&name.as_str()))
        .filter_map(|name| {
            let close = VARIABLES.iter().find(|known| distance(&name, known) <= 2)?;
            Some((name, *close))
        })
        .collect()
}

/// Edit distance, giving up early on names of very different length.
fn distance(a: &str, b: &str) -> usize {
    if a.len().abs_diff(b.len()) > 2 {
        return usize::MAX;
    }
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, ca) in a.bytes().enumerate() {
        let mut corner = i;
        row[0] = i + 1;
        for (j, cb) in b.bytes().enumerate() {
            let next = (corner + usize::from(ca != cb)).min(row[j] + 1).min(row[j + 1] + 1);
            corner = row[j + 1];
            row[j + 1] = next;
        }
    }
    row[b.len()]
}

/// A log filter. A bare word that is no level would select a target of that name, which hides everything else without a word.
fn log_filter(text: &str) -> Result<String, String> {
    let is_level = |word: &str| !word.is_empty() && word.parse::<LevelFilter>().is_ok();
    let fits = |part: &&str| part.split_once('=').map_or_else(|| is_level(part), |(target, _)| !target.is_empty());
    let parts: Vec<&str> = text.split(',').map(str::trim).collect();
    let filter = parts.join(",");
    if parts.iter().all(fits) && EnvFilter::try_new(&filter).is_ok() {
        return Ok(filter);
    }
    Err("allowed are off, error, warn, info, debug, trace, or TARGET=LEVEL, with commas between, such as argon=debug,warn".into())
}

/// A duration: `5s`, `24h`, `250ms`, or bare seconds; bounds in milliseconds.
fn time(text: &str, min_ms: u64, max_ms: u64) -> Result<Duration, String> {
    let parsed = match text.trim().parse::<u64>() {
        Ok(seconds) => Some(Duration::from_secs(seconds)),
        Err(_) => humantime::parse_duration(text.trim()).ok(),
    };
    let (min, max) = (Duration::from_millis(min_ms), Duration::from_millis(max_ms));
    match parsed {
        Some(t) if t >= min && t <= max => Ok(t),
        Some(_) => Err(format!("allowed are {} to {}", humantime::format_duration(min), humantime::format_duration(max))),
        None => Err("not a time: write seconds or a number with a unit, such as 5s, 10m, 24h".into()),
    }
}

/// A size in bytes: `4MiB`, `1GiB`, `1048576`.
pub fn size(text: &str, min: u64, max: u64) -> Result<u64, String> {
    const UNITS: [(&str, u64); 9] = [
        ("KiB", 1 << 10),
        ("MiB", 1 << 20),
        ("GiB", 1 << 30),
        ("TiB", 1 << 40),
        ("kB", 1_000),
        ("MB", 1_000_000),
        ("GB", 1_000_000_000),
        ("B", 1),
        ("", 1),
    ];
    let text = text.trim();
    let digits = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let unit = UNITS.iter().find(|(name, _)| *name == text[digits..].trim()).map(|(_, n)| *n);
    let parsed = text[..digits].parse::<u64>().ok().zip(unit).and_then(|(n, unit)| n.checked_mul(unit));
    match parsed {
        Some(n) if (min..=max).contains(&n) => Ok(n),
        Some(_) => Err(format!("allowed are {} to {}", readable(min), readable(max))),
        None => Err("not a size: write bytes or a number with KiB, MiB or GiB".into()),
    }
}

/// Bytes for a person.
pub fn readable(bytes: u64) -> String {
    indicatif::BinaryBytes(bytes).to_string()
}

/// A database name as MongoDB allows it.
pub fn database_name(text: &str) -> Result<String, String> {
    let bad = |c: char| matches!(c, '/' | '\\' | '.' | '"' | '*' | '<' | '>' | ':' | '|' | '?' | '$' | ' ' | '\0');
    if text.is_empty() || text.len() > 63 || text.contains(bad) {
        return Err("a database name has 1 to 63 bytes and none of / \\ . \" * < > : | ? $ or space".into());
    }
    if matches!(text, "admin" | "config" | "local") {
        return Err(format!("{text} belongs to MongoDB itself"));
    }
    Ok(text.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(clap::Parser, Debug)]
    struct Cli {
        #[command(flatten)]
        connection: Connection,
        #[command(flatten)]
        logging: Logging,
        #[command(flatten)]
        engine: EngineSettings,
        #[command(flatten)]
        http: HttpSettings,
    }

    #[test]
    fn every_flag_with_a_variable_is_in_the_table_of_variables() {
        use clap::CommandFactory;
        for arg in Cli::command().get_arguments() {
            if let Some(env) = arg.get_env() {
                assert!(VARIABLES.contains(&env.to_str().unwrap()), "{env:?} is missing in VARIABLES");
            }
        }
    }

    #[test]
    fn values_out_of_range_name_the_allowed_range() {
        use clap::Parser;
        let error = Cli::try_parse_from(["x", "--pool-size", "21"]).unwrap_err().to_string();
        assert!(error.contains("21") && error.contains("1..=20"), "{error}");
        let error = Cli::try_parse_from(["x", "--batch-max-bytes", "1KiB"]).unwrap_err().to_string();
        assert!(error.contains("64.00 KiB"), "{error}");
    }

    #[test]
    fn settings_that_do_not_fit_together_are_refused_with_variable_value_and_range() {
        use clap::Parser;
        let check = |args: &[&str]| Cli::try_parse_from([&["x"], args].concat()).unwrap().engine.check().map_err(|fault| fault.what);
        assert_eq!(check(&[]), Ok(()));
        assert_eq!(check(&["--pool-size", "7", "--pool-min", "7", "--pool-max", "7", "--autoscale", "false"]), Ok(()));
        for (args, words) in [
            (["--pool-min", "9", "--pool-max", "8"], ["WORKER_POOL_MIN is 9", "1 to 8"]),
            (["--pool-min", "6", "--pool-size", "5"], ["WORKER_POOL_SIZE is 5", "6 to 20"]),
            (["--pool-max", "4", "--pool-size", "5"], ["WORKER_POOL_SIZE is 5", "1 to 4"]),
        ] {
            let error = check(&args).unwrap_err();
            assert!(words.iter().all(|word| error.contains(word)), "{error}");
        }
    }

    #[test]
    fn slots_are_named_by_kind_and_others_keep_their_default() {
        assert_eq!(slots("compression=2,notification=1,cleanup=1,snapshot=2"), Ok(Slots::default()));
        assert_eq!(slots(" compression = 5 , "), Ok(Slots { compression: 5, ..Slots::default() }));
        assert_eq!(slots("cleanup=0"), Ok(Slots { cleanup: 0, ..Slots::default() }));
        for (text, word) in [("sync=3", "WORKER_POOL_SIZE"), ("mail=1", "mail"), ("cleanup=21", "0 to 20"), ("cleanup", "0 to 20")] {
            let error = slots(text).unwrap_err();
            assert!(error.contains(word), "{error}");
        }
    }

    #[test]
    fn a_job_is_stuck_only_after_its_attempt_would_be_overdue() {
        use clap::Parser;
        let after = |args: &[&str]| Cli::try_parse_from([&["x"], args].concat()).unwrap().engine.stuck_after();
        assert_eq!(after(&[]), Duration::from_secs(600));
        assert_eq!(after(&["--job-stuck-timeout", "7m"]), Duration::from_secs(420));
        assert_eq!(after(&["--process-timeout", "20m"]), Duration::from_secs(1_260));
        assert!(Cli::try_parse_from(["x", "--job-stuck-timeout", "5s"]).unwrap_err().to_string().contains("10s to 7days"));
    }

    #[test]
    fn times_and_sizes_read_as_people_write_them() {
        assert_eq!(time("30", 0, 100_000), Ok(Duration::from_secs(30)));
        assert_eq!(time("250ms", 0, 100_000), Ok(Duration::from_millis(250)));
        assert!(time("soon", 0, 1).is_err());
        assert_eq!(size("4MiB", 0, 1 << 30), Ok(4 << 20));
        assert_eq!(size("18446744073709551615GiB", 0, u64::MAX).ok(), None);
    }

    #[test]
    fn a_log_filter_is_a_level_or_names_one_for_each_target() {
        for good in ["info", "WARN", "off", "argon=debug,warn", "argon[span]=debug"] {
            assert_eq!(log_filter(good), Ok(good.to_owned()));
        }
        assert_eq!(log_filter("argon::capture=trace, info"), Ok("argon::capture=trace,info".to_owned()));
        for bad in ["", "verbose", "argon", "argon=loud", "=debug", "info,", "debug;warn"] {
            assert!(log_filter(bad).is_err_and(|why| why.contains("argon=debug,warn")), "{bad:?}");
        }
    }

    #[test]
    fn a_misspelt_variable_is_noticed_and_a_foreign_one_is_not() {
        let given = ["WORKER_POOL_SZIE", "ARGON_PORT", "JOB_NAME", "ARGON_STORE_URL"].map(String::from);
        assert_eq!(near_misses(given.into_iter()), vec![("WORKER_POOL_SZIE".to_string(), "WORKER_POOL_SIZE")]);
    }
}
