//! Every command of the guides works, page by page as a reader types it, against a server and homes of their own.
//!
//! `readme` holds all pages to the parser, and walks through the README; here the `sh` blocks of `docs/` are run. What a page takes for granted (a capture
//! that runs, a job that has failed) is made before it.

use std::path::{Path, PathBuf};
use std::time::Duration;

use argon::devkit::engine::run_to_end;
use argon::devkit::{ArgonProcess, Mongod, MongodOptions};
use bson::{Document, doc};
use mongodb::Client;

use crate::place::{LIMIT, binary};
use crate::readme::{arguments, words};

/// A page, and whether it begins before there is a capture.
const PAGES: [(&str, bool); 8] = [
    ("quick-start", true),
    ("backup-and-restore", true),
    ("branches", true),
    ("development-copies", true),
    ("first-minutes", true),
    ("rights", false),
    ("upgrade", false),
    ("runbook", false),
];

/// A reader at a desk.
struct Reader<'a> {
    client: &'a Client,
    home: PathBuf,
    env: Vec<(String, String)>,
    engine: Option<ArgonProcess>,
}

impl<'a> Reader<'a> {
    fn new(mongod: &Mongod, client: &'a Client, home: &Path, page: &str) -> Self {
        let env = [
            ("HOME", home.display().to_string()),
            ("ARGON_MONGODB_URI", mongod.uri()),
            ("SHOP_URI", mongod.uri()),
            ("ARGON_METADATA_DB", format!("argon_{}", page.replace('-', "_"))),
            ("ARGON_STORE_URL", format!("file://{}/argon-store", home.display())),
            ("ARGON_HTTP_ADDR", "127.0.0.1:0".into()),
            ("ARGON_CONTROL_SOCKET", home.join("control.sock").display().to_string()),
            ("WORKER_BATCH_TIMEOUT", "100ms".into()),
            ("JOB_RETRY_COUNT", "0".into()),
        ];
        let env = env.map(|(name, value)| (name.to_owned(), value)).to_vec();
        Self { client, home: home.to_owned(), env, engine: None }
    }

    async fn argon(&self, args: &[String]) -> String {
        let output = run_to_end(binary(), args, &self.env, LIMIT).await.unwrap();
        assert_eq!(output.code, 0, "argon {}: {output:?}", args.join(" "));
        output.stdout
    }

    /// The engine, and what the reader's application does meanwhile.
    async fn run(&mut self) {
        let mut engine = ArgonProcess::start(binary(), ["run"], &self.env).unwrap();
        engine.wait_line("capture started here", LIMIT).await.unwrap();
        self.engine = Some(engine);
        let orders = self.client.database("shop").collection::<Document>("orders");
        orders.insert_many((0..20).map(|i| doc! {"_id": i, "n": i})).await.unwrap();
        let began = argon::runtime::clock::now();
        while run_to_end(binary(), words("verify shop/main --against-db shop"), &self.env, LIMIT).await.unwrap().code != 0 {
            assert!(began.elapsed() < LIMIT, "not all of it was captured");
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }

    /// The id of a job that has failed for good.
    async fn dead_job(&self) -> String {
        self.argon(&words("jobs submit --failure-rate 1")).await;
        let began = argon::runtime::clock::now();
        loop {
            let dead: serde_json::Value = serde_json::from_str(&self.argon(&words("jobs list --state dead --json")).await).unwrap();
            if let Some(id) = dead["jobs"][0]["id"].as_str() {
                return id.to_owned();
            }
            assert!(began.elapsed() < LIMIT, "{dead}");
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    /// Whether it was a command that was run.
    async fn types(&mut self, line: &str, job: &str) -> bool {
        let Some(args) = arguments(line) else { return false };
        let args: Vec<String> = args
            .iter()
            .map(|arg| if arg == "ID" { job.to_owned() } else { arg.replace("$HOME", &self.home.display().to_string()) })
            .collect();
        match args[0].as_str() {
            "run" => self.run().await,
            "demo" => return false, // has tests of its own, and would take its server by pip
            _ => drop(self.argon(&args).await),
        }
        true
    }

    async fn leaves(mut self) {
        if let Some(mut engine) = self.engine.take() {
            assert_eq!(engine.terminate(LIMIT).await.unwrap().code, 0, "{}", engine.log_tail(3_000));
        }
        for db in self.client.list_database_names().await.unwrap() {
            if !["admin", "config", "local"].contains(&db.as_str()) {
                self.client.database(&db).drop().await.unwrap();
            }
        }
    }
}

/// Lines of the blocks that are for a shell.
fn lines(page: &str) -> Vec<String> {
    let blocks = page.split("\n```").skip(1).step_by(2);
    blocks.filter_map(|block| block.strip_prefix("sh\n")).flat_map(str::lines).map(str::to_owned).collect()
}

#[tokio::test]
async fn every_command_of_the_guides_works() {
    let mongod = Mongod::start(MongodOptions { oplog_mb: 1_000, ..MongodOptions::default() }).await.unwrap();
    let client = mongod.client().await.unwrap();
    let mut ran = 0;
    for (page, begins) in PAGES {
        let home = tempfile::tempdir().unwrap();
        let text = std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("docs/{page}.md"))).unwrap();
        let mut reader = Reader::new(&mongod, &client, home.path(), page);
        if !begins {
            reader.argon(&words("capture start shop/main --source-db shop")).await;
            reader.run().await;
        }
        let lines = lines(&text);
        let job = if lines.iter().any(|line| line.contains(" ID")) { reader.dead_job().await } else { String::new() };
        for line in lines {
            ran += u32::from(reader.types(line.trim(), &job).await);
        }
        reader.leaves().await;
    }
    assert!(ran > 60, "only {ran} commands were run");
}

#[test]
fn no_page_with_commands_is_left_out() {
    let docs = std::fs::read_dir(Path::new(env!("CARGO_MANIFEST_DIR")).join("docs")).unwrap().map(|entry| entry.unwrap().path());
    for path in docs.filter(|path| path.extension().is_some_and(|ext| ext == "md")) {
        let name = path.file_stem().unwrap().to_str().unwrap();
        let commands = lines(&std::fs::read_to_string(&path).unwrap()).iter().filter(|line| arguments(line).is_some()).count();
        assert!(commands == 0 || PAGES.iter().any(|(page, _)| *page == name), "{name} has {commands} commands that nobody runs");
    }
}
