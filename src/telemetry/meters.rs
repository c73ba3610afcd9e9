//! What the parts of a running process count, cheap enough to be counted always: handles that are kept where something happens.
//!
//! Owns: one [`Meters`] per process, its figures by stage, link, kind of job, operation of the store and capture. Does not own: names (`metrics`),
//! what others compute when somebody asks (`http::metrics`).
//!
//! Stages, links and captures are read by the status page too, so their sums are kept here; the recorder of the facade only takes in.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use metrics::{Counter, Histogram};
use parking_lot::Mutex;

use super::metrics::{self as names, Metric, Metrics};
use crate::ledger::{Failed, JobKind};
use crate::runtime::clock;
use crate::runtime::link::LinkMeter;

/// A closed set of words that a label takes.
macro_rules! words {
    ($(#[$doc:meta])* $name:ident { $($variant:ident = $word:literal),* $(,)? }) => {
        $(#[$doc])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq)]
        pub enum $name { $($variant),* }

        impl $name {
            pub const ALL: &[Self] = &[$(Self::$variant),*];

            pub const fn name(self) -> &'static str {
                match self { $(Self::$variant => $word),* }
            }
        }
    };
}

words! {
    /// The stages of the dataflow, in its order.
    Stage {
        Ingest = "ingest", Assemble = "assemble", Checkpoint = "checkpoint", Claim = "claim",
        Encode = "encode", Upload = "upload", Commit = "commit",
    }
}

words! {
    /// The links between stages; the table in the crate's documentation has their capacities.
    LinkName {
        Replies = "replies", Batches = "batches", Claimed = "claimed", Cpu = "cpu",
        Commits = "commits", Marks = "marks", Finishes = "finishes",
    }
}

words! {
    /// How an attempt ended.
    Outcome { Succeeded = "succeeded", Failed = "failed", GivenBack = "given_back", Fenced = "fenced" }
}

words! {
    /// What a store is asked for.
    Operation { Put = "put", Replace = "replace", Get = "get", Head = "head", List = "list", Delete = "delete" }
}

/// The figures of one process; cheap to clone.
#[derive(Debug, Clone)]
pub struct Meters(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    metrics: Metrics,
    stages: Vec<StageMeter>,
    links: Vec<LinkMeter>,
    kinds: Vec<KindMeter>,
    operations: Vec<Histogram>,
    read: Counter,
    written: Counter,
    /// After transient and after unknown outcomes.
    store_retries: [Counter; 2],
    rescued: Counter,
    leases_lost: Counter,
    captures: Mutex<BTreeMap<String, Arc<CaptureMeter>>>,
}

impl Meters {
    pub fn new(metrics: Metrics) -> Self {
        let stage = |stage: &Stage| StageMeter::new(&metrics, *stage);
        let link = |link: &LinkName| LinkMeter::new(link.name(), metrics.histogram(&names::LINK_BLOCKED, &[link.name()]));
        let operation = |operation: &Operation| metrics.histogram(&names::STORE_SECONDS, &[operation.name()]);
        Self(Arc::new(Inner {
            stages: Stage::ALL.iter().map(stage).collect(),
            links: LinkName::ALL.iter().map(link).collect(),
            kinds: JobKind::ALL.iter().map(|kind| KindMeter::new(&metrics, *kind)).collect(),
            operations: Operation::ALL.iter().map(operation).collect(),
            read: metrics.counter(&names::STORE_BYTES, &["read"]),
            written: metrics.counter(&names::STORE_BYTES, &["written"]),
            store_retries: ["transient", "unknown"].map(|kind| metrics.counter(&names::STORE_RETRIES, &[kind])),
            rescued: metrics.counter(&names::JOBS_RESCUED, &[]),
            leases_lost: metrics.counter(&names::LEASES_LOST, &[]),
            captures: Mutex::default(),
            metrics,
        }))
    }

    pub fn metrics(&self) -> &Metrics {
        &self.0.metrics
    }

    pub fn stage(&self, stage: Stage) -> &StageMeter {
        &self.0.stages[stage as usize]
    }

    pub fn link(&self, link: LinkName) -> &LinkMeter {
        &self.0.links[link as usize]
    }

    pub(crate) fn kind(&self, kind: JobKind) -> Option<&KindMeter> {
        self.0.kinds.iter().find(|meter| meter.kind == kind)
    }

    /// An operation at the store has ended.
    pub(crate) fn asked_store(&self, operation: Operation, spent: Duration) {
        self.0.operations[operation as usize].record(spent);
    }

    pub(crate) fn read_bytes(&self, bytes: u64) {
        self.0.read.increment(bytes);
    }

    pub(crate) fn written_bytes(&self, bytes: u64) {
        self.0.written.increment(bytes);
    }

    /// `unknown` of them after an attempt that may have happened.
    pub(crate) fn retried_uploads(&self, times: u32, unknown: u32) {
        let unknown = unknown.min(times);
        for (counter, times) in self.0.store_retries.iter().zip([times - unknown, unknown]) {
            counter.increment(times.into());
        }
    }

    pub(crate) fn rescued(&self, jobs: u64) {
        self.0.rescued.increment(jobs);
    }

    /// A gap of a capture is on record.
    pub(crate) fn gap(&self, branch: &str) {
        self.0.metrics.count(&names::CAPTURE_GAPS, &[branch]);
    }

    pub(crate) fn lease_lost(&self) {
        self.0.leases_lost.increment(1);
    }

    /// The meter of a capture that begins to be followed here.
    pub(crate) fn capture(&self, branch: &str) -> CaptureGuard {
        let meter = Arc::new(CaptureMeter::new(&self.0.metrics, branch));
        self.0.captures.lock().insert(branch.to_owned(), meter.clone());
        CaptureGuard { of: self.clone(), branch: branch.to_owned(), meter }
    }

    /// Those that are followed here, by the names of their branches.
    pub fn captures(&self) -> Vec<(String, Arc<CaptureMeter>)> {
        self.0.captures.lock().iter().map(|(name, meter)| (name.clone(), meter.clone())).collect()
    }

    /// Must run every few seconds: histograms keep single values until then.
    pub fn upkeep(&self) {
        self.0.metrics.upkeep();
    }
}

impl Default for Meters {
    fn default() -> Self {
        Self::new(Metrics::new())
    }
}

/// One stage.
#[derive(Debug)]
pub struct StageMeter {
    units: AtomicU64,
    changes: AtomicU64,
    bytes: AtomicU64,
    busy_us: AtomicU64,
    seconds: Histogram,
    changes_total: Counter,
    bytes_total: Counter,
}

/// What a stage has done so far.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct StageFigures {
    pub units: u64,
    pub changes: u64,
    pub bytes: u64,
    pub busy: Duration,
}

impl StageMeter {
    fn new(metrics: &Metrics, stage: Stage) -> Self {
        let counter = |metric: &Metric| metrics.counter(metric, &[stage.name()]);
        Self {
            units: AtomicU64::new(0),
            changes: AtomicU64::new(0),
            bytes: AtomicU64::new(0),
            busy_us: AtomicU64::new(0),
            seconds: metrics.histogram(&names::STAGE_SECONDS, &[stage.name()]),
            changes_total: counter(&names::STAGE_CHANGES),
            bytes_total: counter(&names::STAGE_BYTES),
        }
    }

    /// A unit has passed.
    pub(crate) fn done(&self, spent: Duration, changes: u64, bytes: u64) {
        self.units.fetch_add(1, Ordering::Relaxed);
        self.changes.fetch_add(changes, Ordering::Relaxed);
        self.bytes.fetch_add(bytes, Ordering::Relaxed);
        self.busy_us.fetch_add(u64::try_from(spent.as_micros()).unwrap_or(u64::MAX), Ordering::Relaxed);
        self.seconds.record(spent);
        self.changes_total.increment(changes);
        self.bytes_total.increment(bytes);
    }

    /// Changes have passed of which the unit is counted elsewhere.
    pub(crate) fn passed(&self, changes: u64) {
        self.changes.fetch_add(changes, Ordering::Relaxed);
        self.changes_total.increment(changes);
    }

    pub fn read(&self) -> StageFigures {
        let of = |figure: &AtomicU64| figure.load(Ordering::Relaxed);
        StageFigures {
            units: of(&self.units),
            changes: of(&self.changes),
            bytes: of(&self.bytes),
            busy: Duration::from_micros(of(&self.busy_us)),
        }
    }
}

/// Jobs of one kind.
#[derive(Debug)]
pub(crate) struct KindMeter {
    kind: JobKind,
    pub(crate) wait: Histogram,
    pub(crate) run: Histogram,
    retries: Counter,
    died: Counter,
    outcomes: Vec<Counter>,
}

impl KindMeter {
    fn new(metrics: &Metrics, kind: JobKind) -> Self {
        let name = kind.name();
        Self {
            kind,
            wait: metrics.histogram(&names::JOB_WAIT, &[name]),
            run: metrics.histogram(&names::JOB_RUN, &[name]),
            retries: metrics.counter(&names::JOB_RETRIES, &[name]),
            died: metrics.counter(&names::JOBS_DIED, &[name]),
            outcomes: Outcome::ALL.iter().map(|outcome| metrics.counter(&names::JOB_ATTEMPTS, &[name, outcome.name()])).collect(),
        }
    }

    pub(crate) fn ended(&self, outcome: Outcome) {
        self.outcomes[outcome as usize].increment(1);
    }

    /// An attempt has ended with a fault, and this becomes of its job.
    pub(crate) fn failed(&self, how: &Failed) {
        match how {
            Failed::GiveBack { .. } => self.ended(Outcome::GivenBack),
            Failed::Retry { .. } => {
                self.ended(Outcome::Failed);
                self.retries.increment(1);
            }
            Failed::Dead { .. } => {
                self.ended(Outcome::Failed);
                self.died.increment(1);
            }
            Failed::Cancelled => {}
        }
    }
}

/// A capture that this process follows.
#[derive(Debug)]
pub struct CaptureMeter {
    read_delay_ms: AtomicU64,
    /// The last reply, and the last look at the oplog.
    replied: Mutex<Instant>,
    looked: Mutex<Instant>,
    /// Seconds of the cluster time up to which it has read; 0: not known.
    position_s: AtomicU64,
    /// Unknown: [`UNKNOWN`].
    oplog_s: AtomicU64,
    resumes: Counter,
}

const UNKNOWN: u64 = u64::MAX;
/// A source that has not answered for so long is away.
const SILENCE: Duration = Duration::from_secs(5);
/// Time within which somebody looks at the oplog.
const LOOKS: Duration = Duration::from_secs(120);

impl CaptureMeter {
    fn new(metrics: &Metrics, branch: &str) -> Self {
        let counter = |metric: &Metric| metrics.counter(metric, &[branch]);
        counter(&names::CAPTURE_GAPS).absolute(0); // there from the beginning, so that the first gap is an increase
        Self {
            read_delay_ms: AtomicU64::new(0),
            replied: Mutex::new(clock::now()),
            looked: Mutex::new(clock::now()),
            position_s: AtomicU64::new(0),
            oplog_s: AtomicU64::new(UNKNOWN),
            resumes: counter(&names::CAPTURE_RESUMES),
        }
    }

    /// It has read up to this second of the source's time, and the newest change read is so old; zero when the stream has been read to its end.
    pub(crate) fn is_at(&self, second: u32, delay: Duration) {
        self.position_s.store(u64::from(second), Ordering::Relaxed);
        *self.replied.lock() = clock::now();
        self.read_delay_ms.store(u64::try_from(delay.as_millis()).unwrap_or(u64::MAX), Ordering::Relaxed);
    }

    pub(crate) fn has_oplog(&self, left: Option<Duration>) {
        self.oplog_s.store(left.map_or(UNKNOWN, |left| left.as_secs()), Ordering::Relaxed);
        *self.looked.lock() = clock::now();
    }

    pub(crate) fn resumed(&self) {
        self.resumes.increment(1);
    }

    pub(crate) fn position(&self) -> u64 {
        self.position_s.load(Ordering::Relaxed)
    }

    /// It grows while nothing is heard of the source, which answers every second.
    pub fn read_delay(&self) -> Duration {
        let silent = self.replied.lock().elapsed();
        let since = if silent > SILENCE { silent } else { Duration::ZERO };
        Duration::from_millis(self.read_delay_ms.load(Ordering::Relaxed)) + since
    }

    /// Oplog left behind its position; `None` where it cannot be read.
    pub fn oplog(&self) -> Option<Duration> {
        let seconds = self.oplog_s.load(Ordering::Relaxed);
        // It shrinks while nobody can look.
        let old = self.looked.lock().elapsed();
        let since = if old > LOOKS { old } else { Duration::ZERO };
        (seconds != UNKNOWN).then(|| Duration::from_secs(seconds).saturating_sub(since))
    }
}

/// Lives as long as the capture is followed here.
#[derive(Debug)]
pub(crate) struct CaptureGuard {
    of: Meters,
    branch: String,
    pub(crate) meter: Arc<CaptureMeter>,
}

impl Drop for CaptureGuard {
    fn drop(&mut self) {
        let mut captures = self.of.0.captures.lock();
        if captures.get(&self.branch).is_some_and(|known| Arc::ptr_eq(known, &self.meter)) {
            captures.remove(&self.branch);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_words_are_those_of_the_table() {
        let of = |metric: &Metric, n: usize| metric.labels[n].values.to_vec();
        assert_eq!(Stage::ALL.iter().map(|s| s.name()).collect::<Vec<_>>(), of(&names::STAGE_SECONDS, 0));
        assert_eq!(LinkName::ALL.iter().map(|l| l.name()).collect::<Vec<_>>(), of(&names::LINK_DEPTH, 0));
        assert_eq!(Operation::ALL.iter().map(|o| o.name()).collect::<Vec<_>>(), of(&names::STORE_SECONDS, 0));
        assert_eq!(Outcome::ALL.iter().map(|o| o.name()).collect::<Vec<_>>(), of(&names::JOB_ATTEMPTS, 1));
        let kinds = of(&names::JOB_RUN, 0);
        assert!(JobKind::ALL.iter().all(|kind| kinds.contains(&kind.name())) && kinds.len() == JobKind::ALL.len());
    }

    #[test]
    fn what_a_stage_has_done_is_read_and_rendered_alike() {
        let meters = Meters::default();
        meters.stage(Stage::Encode).done(Duration::from_millis(20), 100, 4_096);
        meters.stage(Stage::Encode).done(Duration::from_millis(30), 1, 4);
        let read = meters.stage(Stage::Encode).read();
        assert_eq!(read, StageFigures { units: 2, changes: 101, bytes: 4_100, busy: Duration::from_millis(50) });
        let text = meters.metrics().render();
        for line in [
            "argon_stage_seconds_count{stage=\"encode\"} 2",
            "argon_stage_seconds_sum{stage=\"encode\"} 0.05",
            "argon_stage_changes_total{stage=\"encode\"} 101",
            "argon_stage_bytes_total{stage=\"encode\"} 4100",
        ] {
            assert!(text.lines().any(|found| found == line), "{line}\n{text}");
        }
    }

    #[test]
    fn a_capture_that_was_begun_again_outlives_the_one_before() {
        let meters = Meters::default();
        let first = meters.capture("shop/main");
        let second = meters.capture("shop/main");
        drop(first);
        second.meter.has_oplog(Some(Duration::from_secs(7)));
        assert_eq!(meters.captures()[0].1.oplog(), Some(Duration::from_secs(7)));
        drop(second);
        assert!(meters.captures().is_empty());
    }
}
