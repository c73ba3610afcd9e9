//! Owns: what the tests stand on: one replica set for all of them, and per test a place of its own (databases, store, branch).
//! Does not own: what is expected.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use argon::devkit::engine::run_to_end;
use argon::devkit::{ArgonProcess, Mongod, MongodOptions, Output, audit};
use argon::runtime::clock;
use argon::store::{Store, StoreOptions};
use bson::{Document, Timestamp, doc};
use mongodb::{Client, Database};
use serde_json::Value;
use tempfile::TempDir;
use tokio::sync::OnceCell;

/// No command here takes longer, even on a busy machine.
pub(crate) const LIMIT: Duration = Duration::from_secs(120);
pub(crate) const BRANCH: &str = "shop/main";

pub(crate) fn binary() -> &'static Path {
    Path::new(env!("CARGO_BIN_EXE_argon"))
}

/// Every command that the binary's own help lists, `capture start` and the like included.
pub(crate) async fn commands() -> Vec<String> {
    let listed = async |args: &[&str]| {
        let output = run_to_end(binary(), args, &[], LIMIT).await.unwrap();
        let (_, rest) = output.stdout.split_once("Commands:\n").unwrap_or_default();
        let rows = rest.lines().take_while(|line| !line.is_empty()).filter(|line| line.starts_with("  ") && !line.starts_with("   "));
        let names = rows.filter_map(|line| line.split_whitespace().next()).filter(|name| *name != "help");
        names.map(str::to_owned).collect::<Vec<_>>()
    };
    let mut all = Vec::new();
    for first in listed(&["--help"]).await {
        let below = listed(&[&first, "--help"]).await;
        all.extend(below.iter().map(|second| format!("{first} {second}")));
        if below.is_empty() {
            all.push(first);
        }
    }
    assert!(all.len() >= 24 && all.iter().any(|c| c == "queue pause") && all.iter().any(|c| c == "scale"), "{all:?}");
    all
}

/// The server that all tests share; it goes when this process ends.
pub(crate) async fn mongod() -> &'static Mongod {
    static MONGOD: OnceCell<Mongod> = OnceCell::const_new();
    let start = || async {
        // The TTL monitor would delete between taking two hashes.
        let params = vec![("ttlMonitorEnabled".to_owned(), "false".to_owned())];
        Mongod::start(MongodOptions { params, oplog_mb: 2_000, cache_gb: 2.0, ..MongodOptions::default() }).await.unwrap()
    };
    MONGOD.get_or_init(start).await
}

/// Names that no other test uses, and a directory for objects.
pub(crate) struct Place {
    pub(crate) uri: String,
    pub(crate) client: Client,
    pub(crate) metadata: String,
    pub(crate) source: Database,
    pub(crate) dir: TempDir,
    /// Set on top of the place's own variables.
    pub(crate) more: Vec<(String, String)>,
}

impl Place {
    pub(crate) async fn new(name: &str) -> Self {
        Self::at(name, mongod().await).await
    }

    pub(crate) async fn at(name: &str, mongod: &Mongod) -> Self {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let n = COUNT.fetch_add(1, Ordering::Relaxed);
        let client = mongod.client().await.unwrap();
        Self {
            uri: mongod.uri(),
            source: client.database(&format!("{name}{n}")),
            client,
            metadata: format!("meta_{name}{n}"),
            dir: tempfile::tempdir().unwrap(),
            more: Vec::new(),
        }
    }

    pub(crate) fn objects(&self) -> PathBuf {
        self.dir.path().join("store")
    }

    pub(crate) fn store_url(&self) -> String {
        format!("file://{}", self.objects().display())
    }

    pub(crate) fn database(&self, suffix: &str) -> Database {
        self.client.database(&format!("{}_{suffix}", self.source.name()))
    }

    /// The variables of this place; later ones win.
    pub(crate) fn env(&self, more: &[(&str, &str)]) -> Vec<(String, String)> {
        let own = [
            ("ARGON_MONGODB_URI", self.uri.as_str()),
            ("ARGON_METADATA_DB", self.metadata.as_str()),
            ("ARGON_STORE_URL", &self.store_url()),
            ("WORKER_BATCH_TIMEOUT", "100ms"),
            ("JOB_RETRY_DELAY", "500ms"),
        ]
        .map(|(name, value)| (name.to_owned(), value.to_owned()));
        let more = more.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned()));
        own.into_iter().chain(self.more.iter().cloned()).chain(more).collect()
    }

    pub(crate) async fn argon(&self, args: &[&str]) -> Output {
        self.argon_with(args, &[]).await
    }

    pub(crate) async fn argon_with(&self, args: &[&str], env: &[(&str, &str)]) -> Output {
        run_to_end(binary(), args, &self.env(env), LIMIT).await.unwrap()
    }

    /// Runs a command that must succeed.
    pub(crate) async fn ok(&self, args: &[&str]) -> String {
        let output = self.argon(args).await;
        assert!(output.stderr.is_empty(), "argon {}: {output:?}", args.join(" "));
        assert_eq!(output.code, 0, "argon {}: {output:?}", args.join(" "));
        output.stdout
    }

    /// The same with `--json`.
    pub(crate) async fn json(&self, args: &[&str]) -> Value {
        let text = self.ok(&[args, &["--json"]].concat()).await;
        assert_eq!(text.trim_end().lines().count(), 1, "argon {}: {text}", args.join(" "));
        serde_json::from_str(&text).unwrap_or_else(|error| panic!("argon {}: {error}: {text}", args.join(" ")))
    }

    pub(crate) async fn start_capture(&self) {
        self.ok(&["capture", "start", BRANCH, "--source-db", self.source.name()]).await;
    }

    /// An engine that has taken the capture.
    pub(crate) async fn engine(&self) -> ArgonProcess {
        self.engine_with(&[]).await
    }

    pub(crate) async fn engine_with(&self, env: &[(&str, &str)]) -> ArgonProcess {
        let mut engine = ArgonProcess::start(binary(), ["run"], &self.env(env)).unwrap();
        engine.wait_line("capture started here", LIMIT).await.unwrap();
        engine
    }

    /// An engine that may write no file of more than `blocks` of 512 bytes.
    pub(crate) async fn limited_engine(&self, blocks: u32) -> ArgonProcess {
        let script = format!("ulimit -f {blocks}; trap '' XFSZ; exec \"$0\" run");
        let args = ["-c".into(), script.into(), binary().as_os_str().to_owned()];
        let env = self.env(&[("JOB_RETRY_COUNT", "100")]);
        let mut engine = ArgonProcess::start(Path::new("/bin/sh"), args, &env).unwrap();
        engine.wait_line("capture started here", LIMIT).await.unwrap();
        engine
    }

    /// Capture and engine.
    pub(crate) async fn begin(&self) -> ArgonProcess {
        self.start_capture().await;
        self.engine().await
    }

    /// Ends an engine as an operator does.
    pub(crate) async fn stop(&self, mut engine: ArgonProcess) -> String {
        let exit = engine.terminate(LIMIT).await.unwrap();
        assert_eq!(exit.code, 0, "{}", engine.log_tail(3_000));
        engine.stdout() + &engine.stderr()
    }

    pub(crate) async fn branch(&self) -> Document {
        let branches = self.client.database(&self.metadata).collection::<Document>("branches");
        branches.find_one(doc! {"name": BRANCH}).await.unwrap().unwrap()
    }

    /// Writes a marker into the source and waits until it is committed: then so is all that was written before it.
    pub(crate) async fn catch_up(&self) -> u64 {
        self.catch_up_with(&self.source).await
    }

    /// The same for a capture of another database.
    pub(crate) async fn catch_up_with(&self, source: &Database) -> u64 {
        let due = self.mark_in(source).await;
        let begun = clock::now();
        loop {
            let branch = self.branch().await;
            let head = branch.get_document("head").unwrap();
            let time = head.get_document("time").unwrap();
            if (number(time, "t"), number(time, "i")) >= (due.time.into(), due.increment.into()) {
                return number(head, "seq");
            }
            assert!(begun.elapsed() < LIMIT, "not captured in {LIMIT:?}: {branch}");
            tokio::time::sleep(Duration::from_millis(25)).await;
        }
    }

    /// The time of a write that comes after all earlier ones.
    pub(crate) async fn mark(&self) -> Timestamp {
        self.mark_in(&self.source).await
    }

    async fn mark_in(&self, source: &Database) -> Timestamp {
        let marks = source.collection::<Document>("zz_marks");
        marks.update_one(doc! {"_id": 1}, doc! {"$inc": {"n": 1}}).upsert(true).await.unwrap();
        let oplog = self.client.database("local").collection::<Document>("oplog.rs");
        let ns = format!("{}.zz_marks", source.name());
        let last = oplog.find_one(doc! {"ns": ns}).sort(doc! {"$natural": -1}).await.unwrap().unwrap();
        last.get_timestamp("ts").unwrap()
    }

    pub(crate) async fn store(&self) -> Store {
        argon::store::open(&self.store_url(), &StoreOptions::default()).await.unwrap()
    }

    /// Every change of the server is in the bucket exactly once and in order.
    pub(crate) async fn assert_audit_is_clean(&self) -> u64 {
        let subject = audit::Subject { client: &self.client, metadata_db: &self.metadata, branch: BRANCH, store: self.store().await };
        let audit = audit::audit(&subject).await.unwrap();
        assert!(audit.problems.is_empty(), "{:?}", audit.problems);
        audit.changes
    }
}

fn number(row: &Document, name: &str) -> u64 {
    let value = row.get(name).and_then(|n| n.as_i64().or(n.as_i32().map(i64::from)));
    value.and_then(|n| u64::try_from(n).ok()).unwrap_or_else(|| panic!("{name} of {row}"))
}

/// One line on stderr that begins with `error:` and says all of `says`, nothing on stdout, this exit code.
pub(crate) fn assert_refused(output: &Output, code: i32, says: &[&str]) {
    assert_eq!(output.code, code, "{output:?}");
    assert_eq!(output.stdout, "", "{output:?}");
    let lines: Vec<&str> = output.stderr.lines().collect();
    let is_told = match lines[..] {
        [line] => line.starts_with("error: "),
        [line, next] => line.starts_with("error: ") && next.starts_with("next:  "),
        _ => false,
    };
    assert!(is_told, "neither one line nor one and what to type next: {output:?}");
    for part in says {
        assert!(output.stderr.contains(part), "{part:?} is not said: {output:?}");
    }
    assert!(lines[0].len() < 400, "too long for one line: {output:?}");
}
