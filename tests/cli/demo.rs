//! `argon demo`, the first command anybody runs: its end, and that nothing of it is left.

use std::fs;
use std::path::Path;
use std::time::Duration;

use argon::devkit::engine::run_to_end;
use serde_json::Value;

use crate::place::{binary, mongod};

const LIMIT: Duration = Duration::from_secs(120);

/// Processes that name the directory in their arguments or stand in it.
fn processes_of(dir: &Path) -> Vec<String> {
    let dir = dir.to_string_lossy();
    let all = fs::read_dir("/proc").unwrap().flatten().filter(|entry| entry.file_name().to_string_lossy().parse::<u32>().is_ok());
    let told = all.map(|entry| {
        let arguments = fs::read(entry.path().join("cmdline")).unwrap_or_default();
        let at = fs::read_link(entry.path().join("cwd")).unwrap_or_default();
        format!("{} at {}", String::from_utf8_lossy(&arguments).replace('\0', " "), at.display())
    });
    told.filter(|line| line.contains(&*dir)).collect()
}

fn assert_nothing_is_left(dir: &Path) {
    assert_eq!(processes_of(dir), Vec::<String>::new());
    let left: Vec<_> = fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path()).collect();
    assert!(left.is_empty(), "{left:?}");
}

#[tokio::test]
async fn the_demo_with_a_server_of_its_own_verifies_and_leaves_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let env = [("TMPDIR".to_owned(), dir.path().to_str().unwrap().to_owned())];
    let output = run_to_end(binary(), ["demo", "--changes", "2000", "--json"], &env, LIMIT).await.unwrap();
    assert_eq!((output.code, output.stderr.as_str()), (0, ""), "{output:?}");
    let report: Value = serde_json::from_str(&output.stdout).unwrap();
    assert_eq!((&report["verified"], &report["differences"]), (&"identical".into(), &Value::Array(vec![])), "{report}");
    assert!(report["changes"].as_u64().unwrap() >= 2_000 && report["documents"].as_u64().unwrap() > 0, "{report}");
    assert_nothing_is_left(dir.path());
}

#[tokio::test]
async fn the_demo_on_a_given_server_says_so_and_leaves_its_databases_clean() {
    let server = mongod().await;
    let dir = tempfile::tempdir().unwrap();
    let env = [("TMPDIR".to_owned(), dir.path().to_str().unwrap().to_owned())];
    let uri = server.uri();
    let output = run_to_end(binary(), ["demo", "--changes", "500", "--mongodb-uri", &uri], &env, LIMIT).await.unwrap();
    assert_eq!((output.code, output.stderr.as_str()), (0, ""), "{output:?}");
    assert_eq!(output.stdout.lines().last(), Some("verified: identical"), "{output:?}");
    assert_nothing_is_left(dir.path());
    let names = server.client().await.unwrap().list_database_names().await.unwrap();
    assert!(
        !names.iter().any(|name| name.starts_with("argon_demo_") || name.starts_with("shop_") && name.ends_with("_restored")),
        "{names:?}"
    );
}
