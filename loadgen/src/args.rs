//! Owns: every flag, its range and its help. Does not own what a flag does.

use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Parser, Subcommand, ValueEnum};

const RUN_EXAMPLES: &str = "\
Examples:
  argon-loadgen run --uri mongodb://127.0.0.1:27017/?replicaSet=rs0 --db shop --rate 500 --duration 10m
  argon-loadgen run --uri $URI --db shop --profile insert --doc-bytes 1000 --rate max --count 1000000
  argon-loadgen run --uri $URI --db shop --insert 1 --update 9 --delete 0 --replace 0 --transaction 0 --duration 30s
  argon-loadgen run --uri $URI --db films --corpus movies.jsonl --rate 2000 --duration 1m --json

How latency is counted: at a fixed rate every operation has a moment at which it is due, whatever the server does, and its latency
runs from that moment to the reply of the command that carried it. With --rate max it runs from sending.";

const BENCH_EXAMPLES: &str = "\
Examples:
  argon-loadgen bench pipeline
  argon-loadgen bench pipeline --store s3 --doc-bytes 1000 --changes 2000000 --rounds 1
  argon-loadgen bench live --rate 10000 --duration 60s --store s3
  argon-loadgen bench repeated --json
  argon-loadgen bench restore --documents 1000000 --changes 1000000 --keys 100000 --store s3 --check
  argon-loadgen bench idle --check
  argon-loadgen bench queue --depths 0,1000,100000 --jobs 50000
  argon-loadgen bench scaler --load step --load burst --plot .

Everything is started for the benchmark and gone afterwards: mongod, the store, the engine. No account, nothing to install.";

/// Loads a MongoDB database, and measures Argon.
#[derive(Debug, Parser)]
#[command(name = "argon-loadgen", version, about, propagate_version = true)]
pub(crate) struct Cli {
    /// Prints the report as one JSON object on stdout.
    #[arg(long, global = true)]
    pub json: bool,
    #[command(subcommand)]
    pub command: Command,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Writes to a database: a seeded mix of operations, at a fixed rate or at full speed.
    #[command(after_help = RUN_EXAMPLES)]
    Run(Run),
    /// Measures the engine on servers that it starts itself.
    #[command(subcommand, after_help = BENCH_EXAMPLES)]
    Bench(Bench),
}

/// `run`.
#[derive(Debug, Args)]
pub(crate) struct Run {
    /// Server to write to. Transactions need a replica set.
    #[arg(long, env = "ARGON_MONGODB_URI", hide_env_values = true, value_name = "URI")]
    pub uri: String,
    /// Database to write to; collections load0, load1, ... in it.
    #[arg(long, default_value = "load", value_name = "DB", value_parser = argon::config::database_name)]
    pub db: String,
    #[command(flatten)]
    pub shape: Shape,
    #[command(flatten)]
    pub pace: Pace,
    /// Goes on after a failed command; operations of that command may or may not have taken effect.
    #[arg(long)]
    pub keep_going: bool,
}

/// What is written.
#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "Operations")]
pub(crate) struct Shape {
    /// Start from this mix; the weights below change it.
    #[arg(long, value_enum, default_value = "mixed")]
    pub profile: ProfileName,
    /// Weight of inserts.
    #[arg(long, value_name = "N")]
    pub insert: Option<u32>,
    /// Weight of updates: $set, $inc, $push, $unset, array elements, pipelines.
    #[arg(long, value_name = "N")]
    pub update: Option<u32>,
    /// Weight of replacements.
    #[arg(long, value_name = "N")]
    pub replace: Option<u32>,
    /// Weight of deletes.
    #[arg(long, value_name = "N")]
    pub delete: Option<u32>,
    /// Weight of transactions of 2 to 5 operations over the collections.
    #[arg(long, value_name = "N")]
    pub transaction: Option<u32>,
    /// Approximate size of a document [default: that of the profile, 400].
    #[arg(long, value_name = "BYTES", value_parser = clap::value_parser!(u32).range(1..=15_728_640))]
    pub doc_bytes: Option<u32>,
    /// Number of collections.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=10_000))]
    pub collections: Option<u32>,
    /// Documents per collection and connection that are changed again.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=100_000_000))]
    pub keys: Option<u32>,
    /// Documents to insert, in turn, one extended JSON object per line.
    #[arg(long, value_name = "FILE")]
    pub corpus: Option<PathBuf>,
    /// The same seed, connections and options give the same operations.
    #[arg(long, default_value_t = 1, value_name = "N")]
    pub seed: u64,
}

/// A mix of operations.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum ProfileName {
    /// 40 % inserts, 40 % updates of all kinds, replacements, deletes, transactions; 3 collections.
    Mixed,
    /// Inserts only, one collection.
    Insert,
    /// 300 documents that get the same updates over and over.
    Repeated,
    /// Every kind of operation, update and _id on few documents.
    Everything,
}

/// How fast and how long.
#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "Pace")]
pub(crate) struct Pace {
    /// Operations per second, or max.
    #[arg(long, default_value = "max", value_name = "N|max", value_parser = rate)]
    pub rate: Rate,
    /// How long; with --count too, whichever ends first [default: 10s without --count].
    #[arg(long, value_name = "TIME", value_parser = duration)]
    pub duration: Option<Duration>,
    /// How many operations.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..=1_000_000_000_000))]
    pub count: Option<u64>,
    /// Writers, each on documents of its own.
    #[arg(long, default_value_t = 2, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=1_000))]
    pub connections: u32,
    /// Most operations that one writer sends together; what is due together goes together.
    #[arg(long, default_value_t = 500, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=10_000))]
    pub batch: u32,
    /// Operations become due in bursts this far apart, so that many a second need few commands; 0s spreads them evenly.
    #[arg(long, default_value = "5ms", value_name = "TIME", value_parser = |s: &str| humantime::parse_duration(s).map_err(|e| e.to_string()))]
    pub tick: Duration,
}

/// Operations per second.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Rate {
    PerSecond(u32),
    Max,
}

/// What the documents of a backlog are like.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Content {
    /// A few fields and an array of order lines: names repeat, values are small.
    Records,
    /// A few fields and one long text of random syllables, which compresses badly and slowly.
    Text,
}

/// What the engine stores to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum StoreKind {
    /// A temporary directory (file://).
    File,
    /// SeaweedFS on this machine (s3://).
    S3,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Bench {
    /// Drains a backlog through the whole engine, and compares with the bare cursor that reads it.
    Pipeline(Pipeline),
    /// A fixed rate for a time: how long from a commit in MongoDB to its committed segment.
    Live(Live),
    /// The same updates over and over: stored bytes as a share of raw bytes.
    Repeated(Repeated),
    /// An engine with a capture and nothing to do: requests to MongoDB, CPU and memory.
    Idle(Idle),
    /// Simulates how the number of workers follows the load, and compares with other rules.
    Scaler(ScalerBench),
    /// Copies, restores, replays, looks up and forks, and compares with parallel inserts of the same documents.
    Restore(Restore),
    /// Claims and drains no-op jobs from queues of up to a million, and compares with the queue that most people write.
    Queue(QueueBench),
}

/// What all benchmarks start.
#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "Servers")]
pub(crate) struct Servers {
    /// Where the engine stores.
    #[arg(long, value_enum, default_value = "file")]
    pub store: StoreKind,
    /// The engine [default: argon beside this program].
    #[arg(long, value_name = "PATH")]
    pub argon: Option<PathBuf>,
    /// A setting for the engine, as its variable, for example WORKER_POOL_SIZE=2; may be given again.
    #[arg(long = "setting", value_name = "NAME=VALUE", value_parser = setting)]
    pub settings: Vec<(String, String)>,
}

/// `bench pipeline`.
#[derive(Debug, Args)]
pub(crate) struct Pipeline {
    /// Inserts in the backlog.
    #[arg(long, default_value_t = 200_000, value_name = "N", value_parser = clap::value_parser!(u64).range(1..=1_000_000_000))]
    pub changes: u64,
    /// BSON size of each document, exactly.
    #[arg(long, default_value_t = 200, value_name = "BYTES", value_parser = clap::value_parser!(u32).range(150..=8_388_608))]
    pub doc_bytes: u32,
    /// What the documents are like; it decides how much work and how many bytes compression takes.
    #[arg(long, value_enum, default_value = "records")]
    pub content: Content,
    /// How often each is measured, in turn.
    #[arg(long, default_value_t = 3, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=50))]
    pub rounds: u32,
    /// Ends with exit code 1 if the ratio to the ceiling is lower.
    #[arg(long, value_name = "RATIO")]
    pub min_ratio: Option<f64>,
    /// Seed of the documents.
    #[arg(long, default_value_t = 1, value_name = "N")]
    pub seed: u64,
    #[command(flatten)]
    pub servers: Servers,
}

/// `bench restore`.
#[derive(Debug, Args)]
pub(crate) struct Restore {
    /// Documents that are copied and restored.
    #[arg(long, default_value_t = 200_000, value_name = "N", value_parser = clap::value_parser!(u64).range(1..=1_000_000_000))]
    pub documents: u64,
    /// BSON size of each of them, exactly.
    #[arg(long, default_value_t = 200, value_name = "BYTES", value_parser = clap::value_parser!(u32).range(150..=8_388_608))]
    pub doc_bytes: u32,
    /// Changes that are replayed.
    #[arg(long, default_value_t = 200_000, value_name = "N", value_parser = clap::value_parser!(u64).range(1..=1_000_000_000))]
    pub changes: u64,
    /// Documents that they are made to.
    #[arg(long, default_value_t = 20_000, value_name = "N", value_parser = clap::value_parser!(u64).range(1..=1_000_000_000))]
    pub keys: u64,
    /// Change them in turn, each as often as the others: with millions of them a server whose cache holds few takes hours for a random order.
    #[arg(long)]
    pub in_turn: bool,
    /// Documents that are looked up, each at a random point.
    #[arg(long, default_value_t = 200, value_name = "N")]
    pub gets: u32,
    /// Branches that are made.
    #[arg(long, default_value_t = 300, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=100_000))]
    pub branches: u32,
    /// Segments of a branch that is forked, beside one of a single segment.
    #[arg(long, default_value_t = 100_000, value_name = "N", value_parser = clap::value_parser!(u64).range(2..=10_000_000))]
    pub segments: u64,
    /// Ends with exit code 1 unless a restore reaches 0.7 of the ceiling, a replay 10 times one by one, within 256 MiB, a document is found in 200 ms
    /// and a branch is made in 10 ms (99th percentiles).
    #[arg(long)]
    pub check: bool,
    /// Seed of documents and changes.
    #[arg(long, default_value_t = 1, value_name = "N")]
    pub seed: u64,
    #[command(flatten)]
    pub servers: Servers,
}

/// `bench idle`.
#[derive(Debug, Args)]
pub(crate) struct Idle {
    /// How long it is watched, and mongod alone as long before.
    #[arg(long, default_value = "60s", value_name = "TIME", value_parser = duration)]
    pub duration: Duration,
    /// How often its metrics are read meanwhile.
    #[arg(long, default_value = "15s", value_name = "TIME", value_parser = duration)]
    pub scrape: Duration,
    /// Ends with exit code 1 unless there are fewer than 5 requests a second, under 1 % of a core and under 60 MiB.
    #[arg(long)]
    pub check: bool,
    #[command(flatten)]
    pub servers: Servers,
}

/// `bench live`.
#[derive(Debug, Args)]
pub(crate) struct Live {
    /// Operations per second.
    #[arg(long, default_value_t = 10_000, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=10_000_000))]
    pub rate: u32,
    /// Operations become due in bursts this far apart: 10,000 single commands a second are more than a small server answers.
    #[arg(long, default_value = "20ms", value_name = "TIME", value_parser = |s: &str| humantime::parse_duration(s).map_err(|e| e.to_string()))]
    pub tick: Duration,
    /// For how long.
    #[arg(long, default_value = "60s", value_name = "TIME", value_parser = duration)]
    pub duration: Duration,
    /// Writers.
    #[arg(long, default_value_t = 8, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=1_000))]
    pub connections: u32,
    #[command(flatten)]
    pub shape: Shape,
    /// Ends with exit code 1 if the 99th percentile of the delay is higher.
    #[arg(long, value_name = "TIME", value_parser = duration)]
    pub max_p99: Option<Duration>,
    /// Ends with exit code 1 if the jobs take longer on average, as the engine's own figures say.
    #[arg(long, value_name = "TIME", value_parser = duration)]
    pub max_job: Option<Duration>,
    #[command(flatten)]
    pub servers: Servers,
}

/// `bench repeated`.
#[derive(Debug, Args)]
pub(crate) struct Repeated {
    /// Operations.
    #[arg(long, default_value_t = 200_000, value_name = "N", value_parser = clap::value_parser!(u64).range(1..=1_000_000_000))]
    pub count: u64,
    /// Operations per second, or max.
    #[arg(long, default_value = "max", value_name = "N|max", value_parser = rate)]
    pub rate: Rate,
    /// Writers, each with 300 documents of its own.
    #[arg(long, default_value_t = 1, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=1_000))]
    pub connections: u32,
    /// Runs the engine during the load, so that segments are as small as the rate makes them, instead of after it.
    #[arg(long)]
    pub live: bool,
    /// Size of the documents that are updated.
    #[arg(long, default_value_t = 400, value_name = "BYTES", value_parser = clap::value_parser!(u32).range(1..=15_728_640))]
    pub doc_bytes: u32,
    /// Ends with exit code 1 if more is stored, in percent of the raw bytes [default: 5, none with --live].
    #[arg(long, value_name = "PERCENT")]
    pub max_percent: Option<f64>,
    /// Seed of the operations.
    #[arg(long, default_value_t = 1, value_name = "N")]
    pub seed: u64,
    #[command(flatten)]
    pub servers: Servers,
}

/// `bench scaler`.
#[derive(Debug, Args)]
pub(crate) struct ScalerBench {
    /// Only this load: step, ramp, square, sine, burst, heavier, outage or constant; may be given again.
    #[arg(long = "load", value_name = "NAME", value_parser = ["step", "ramp", "square", "sine", "burst", "heavier", "outage", "constant"])]
    pub loads: Vec<String>,
    /// Runs of each load under each rule, with a seed each; figures are medians.
    #[arg(long, default_value_t = 20, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=10_000))]
    pub rounds: u32,
    /// The first seed.
    #[arg(long, default_value_t = 1, value_name = "N")]
    pub seed: u64,
    /// How long a job takes that runs alone, on average.
    #[arg(long, default_value = "50ms", value_name = "TIME", value_parser = duration)]
    pub service: Duration,
    /// How the work of jobs differs.
    #[arg(long, value_enum, default_value = "normal")]
    pub spread: SpreadName,
    /// Busy workers at which the throughput of the backend stops growing; 0: it never does.
    #[arg(long, default_value_t = 12, value_name = "N", value_parser = clap::value_parser!(u16).range(0..=1_000))]
    pub knee: u16,
    /// What each busy worker costs all others: above 0, throughput falls again when there are too many.
    #[arg(long, default_value_t = 0.0, value_name = "SHARE", value_parser = share)]
    pub drag: f64,
    /// Fewest workers.
    #[arg(long, default_value_t = 1, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=1_000))]
    pub min: u16,
    /// Workers at start and when idle.
    #[arg(long, default_value_t = 5, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=1_000))]
    pub base: u16,
    /// Most workers.
    #[arg(long, default_value_t = 20, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=1_000))]
    pub max: u16,
    /// Draws a picture of each load with the first seed into this directory.
    #[arg(long, value_name = "DIR")]
    pub plot: Option<PathBuf>,
    /// Ends with exit code 1 unless, with every seed, a step settles within 10 s with 3 decisions and 2 workers of overshoot at most, a
    /// constant load makes no reversal and a square wave one per edge.
    #[arg(long)]
    pub check: bool,
    /// Runs the loads (only step, unless others are named) with noop jobs on a real engine, in real time.
    #[arg(long)]
    pub live: bool,
    /// Ends each load after this many seconds, if it is not over before.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(60..=86_400))]
    pub seconds: Option<u32>,
    #[command(flatten)]
    pub servers: Servers,
}

/// How the work of jobs differs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum SpreadName {
    /// Not at all.
    Constant,
    /// Log-normally, with a deviation of half the average.
    Normal,
    /// Exponentially: a few jobs take several times the average.
    Exponential,
}

fn share(text: &str) -> Result<f64, String> {
    text.parse().ok().filter(|share| (0.0..=1.0).contains(share)).ok_or_else(|| "allowed are 0 to 1".into())
}

/// `bench queue`. What is not given depends on --quick and --full.
#[derive(Debug, Args)]
pub(crate) struct QueueBench {
    /// Every depth with every number of workers and processes: about half an hour.
    #[arg(long, conflicts_with = "quick")]
    pub full: bool,
    /// Small depths, seconds, no limits: to see that it works.
    #[arg(long)]
    pub quick: bool,
    /// Jobs that are ready; at 0 they are made while they are done [default: 0,1000,10000,100000,1000000].
    #[arg(long, value_name = "N,..", value_delimiter = ',', value_parser = clap::value_parser!(u64).range(0..=10_000_000))]
    pub depths: Vec<u64>,
    /// Dead jobs that lie in the same queue, and as many scheduled ones [default: 100000].
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(0..=10_000_000))]
    pub others: Option<u64>,
    /// Jobs that the engines do in each measurement [default: 30000].
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..=10_000_000))]
    pub jobs: Option<u64>,
    /// How long the ledger alone is measured in each setting, and the plain queue twice as long [default: 2s].
    #[arg(long, value_name = "TIME", value_parser = duration)]
    pub cell: Option<Duration>,
    /// How often the engine and the plain queue are compared, in turn; figures are medians [default: 3].
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=50))]
    pub rounds: Option<u32>,
    /// How long mongod keeps what was, in seconds: MongoDB's own default.
    #[arg(long, default_value_t = 300, value_name = "SECONDS", value_parser = clap::value_parser!(u32).range(0..=86_400))]
    pub history: u32,
    /// Ends with exit code 1 if an engine with 8 workers is fewer times as fast as the plain queue with 8 workers [default: 5].
    #[arg(long, value_name = "RATIO")]
    pub min_ratio: Option<f64>,
    /// Ends with exit code 1 if an engine with 8 workers does fewer jobs per second [default: 5000].
    #[arg(long, value_name = "N")]
    pub min_rate: Option<f64>,
    /// Ends with exit code 1 if a claim from the deepest queue costs more than this many times what it costs at 1,000 [default: 1.5].
    #[arg(long, value_name = "RATIO")]
    pub max_claim_ratio: Option<f64>,
    /// Ends with exit code 1 if at the largest depth the queue's figures take longer: the 99th percentile of the ledger's, the median of the
    /// interface's beside an engine at full speed [default: 50ms].
    #[arg(long, value_name = "TIME", value_parser = duration)]
    pub max_stats: Option<Duration>,
    /// Seed of the order in which the jobs are due.
    #[arg(long, default_value_t = 1, value_name = "N")]
    pub seed: u64,
    #[command(flatten)]
    pub servers: Servers,
}

fn rate(text: &str) -> Result<Rate, String> {
    match text.parse::<u32>() {
        Ok(n @ 1..=10_000_000) => Ok(Rate::PerSecond(n)),
        Err(_) if text == "max" => Ok(Rate::Max),
        _ => Err("allowed are 1 to 10000000 operations per second, or max".into()),
    }
}

fn duration(text: &str) -> Result<Duration, String> {
    let parsed = text.parse().map(Duration::from_secs).ok().or_else(|| humantime::parse_duration(text).ok());
    match parsed {
        Some(time) if (Duration::from_millis(1)..=Duration::from_secs(30 * 86_400)).contains(&time) => Ok(time),
        Some(_) => Err("allowed are 1ms to 30days".into()),
        None => Err("not a time: write seconds or a number with a unit, such as 30s, 10m".into()),
    }
}

fn setting(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((name, value)) if !name.is_empty() => Ok((name.to_owned(), value.to_owned())),
        _ => Err("write NAME=VALUE".into()),
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_table_of_flags_is_sound() {
        Cli::command().debug_assert();
    }

    #[test]
    fn rates_and_times_read_as_people_write_them() {
        for (text, wanted) in
            [("max", Some(Rate::Max)), ("1", Some(Rate::PerSecond(1))), ("0", None), ("-1", None), ("fast", None), ("10000001", None)]
        {
            assert_eq!(rate(text).ok(), wanted, "{text}");
        }
        for (text, wanted) in
            [("30", Some(30_000)), ("250ms", Some(250)), ("2m", Some(120_000)), ("0s", None), ("", None), ("90days", None)]
        {
            assert_eq!(duration(text).ok(), wanted.map(Duration::from_millis), "{text}");
        }
    }

    #[test]
    fn bad_arguments_are_refused_by_name() {
        let refused = |args: &[&str]| Cli::try_parse_from([&["argon-loadgen"], args].concat()).unwrap_err().to_string();
        for (args, word) in [
            (&["run", "--db", "x", "--uri", "u", "--rate", "quick"][..], "--rate"),
            (&["run", "--uri", "u", "--db", "a.b"], "--db"),
            (&["run", "--uri", "u", "--bogus"], "--bogus"),
            (&["bench", "pipeline", "--doc-bytes", "10"], "--doc-bytes"),
            (&["bench", "live", "--duration", "never"], "--duration"),
            (&["bench", "repeated", "--setting", "x"], "--setting"),
            (&["bench", "scaler", "--load", "x"], "--load"),
            (&["bench", "scaler", "--drag", "2"], "--drag"),
        ] {
            let said = refused(args);
            assert!(said.contains(word), "{said}");
        }
    }
}
