//! Settings and arguments that are wrong: exit code 2, one line that names the thing and the way out. No server is asked.

use std::ffi::OsString;
use std::time::Duration;

use argon::devkit::Output;
use argon::devkit::engine::run_to_end;

use crate::place::{assert_refused, binary, commands};

const HERE: [(&str, &str); 2] =
    [("ARGON_MONGODB_URI", "mongodb://127.0.0.1:1/?replicaSet=rs0"), ("ARGON_STORE_URL", "file:///nonexistent/a")];

async fn argon(args: &[&str], env: &[(&str, &str)]) -> Output {
    let env: Vec<(String, String)> = env.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
    run_to_end(binary(), args, &env, Duration::from_secs(60)).await.unwrap()
}

#[tokio::test]
async fn a_value_out_of_range_names_variable_value_and_range() {
    for (variable, flag, value, range) in [
        ("WORKER_POOL_SIZE", "--pool-size", "21", "1..=20"),
        ("WORKER_POOL_SIZE", "--pool-size", "0", "1..=20"),
        ("WORKER_POOL_SIZE", "--pool-size", "many", ""),
        ("WORKER_POOL_SIZE", "--pool-size", "", ""),
        ("WORKER_POOL_MIN", "--pool-min", "0", "1..=20"),
        ("WORKER_POOL_MAX", "--pool-max", "21", "1..=20"),
        ("WORKER_AUTOSCALE", "--autoscale", "perhaps", "true, false and dry-run"),
        ("WORKER_SLOTS", "--slots", "cleanup=21", "0 to 20"),
        ("WORKER_SLOTS", "--slots", "sync=3", "WORKER_POOL_SIZE"),
        ("JOB_STUCK_TIMEOUT", "--job-stuck-timeout", "1s", "10s to 7days"),
        ("WORKER_BATCH_SIZE", "--batch-size", "0", "1..=1000000"),
        ("WORKER_BATCH_TIMEOUT", "--batch-timeout", "soon", "5s"),
        ("ARGON_BATCH_MAX_BYTES", "--batch-max-bytes", "1KiB", "64.00 KiB to 64.00 MiB"),
        ("WORKER_PROCESS_TIMEOUT", "--process-timeout", "1ms", "1s to 1day"),
        ("JOB_RETRY_COUNT", "--retry-count", "101", "0..=100"),
        ("JOB_RETRY_DELAY", "--retry-delay", "-1", "such as 5s"),
        ("ARGON_LEASE", "--lease", "1s", "3s to 10m"),
        ("ARGON_MEMORY_BUDGET", "--memory-budget", "1MiB", "32.00 MiB"),
        ("ARGON_METADATA_DB", "--metadata-db", "a.b", "1 to 63 bytes"),
        ("ARGON_METADATA_DB", "--metadata-db", "local", "belongs to MongoDB"),
        ("ARGON_S3_PATH_STYLE", "--s3-path-style", "maybe", "auto, on, off"),
        ("ARGON_LOG", "--log", "verbose", "such as argon=debug,warn"),
        ("ARGON_LOG", "--log", "argon=loud", "such as argon=debug,warn"),
        ("ARGON_LOG_FORMAT", "--log-format", "yaml", "text, json"),
    ] {
        let by_variable = argon(&["run"], &[&HERE[..], &[(variable, value)]].concat()).await;
        assert_refused(&by_variable, 2, &[variable, &format!("'{value}'"), range]);
        if !value.is_empty() {
            let by_flag = argon(&["run", &format!("{flag}={value}")], &HERE).await;
            assert_refused(&by_flag, 2, &[flag, variable, value, range]);
        }
    }
}

#[tokio::test]
async fn sizes_that_contradict_each_other_are_named() {
    for (min, size, max, says) in [
        ("9", "9", "8", ["WORKER_POOL_MIN is 9", "1 to 8"]),
        ("6", "5", "20", ["WORKER_POOL_SIZE is 5", "6 to 20"]),
        ("1", "5", "4", ["WORKER_POOL_SIZE is 5", "1 to 4"]),
    ] {
        let sizes = [("WORKER_POOL_MIN", min), ("WORKER_POOL_SIZE", size), ("WORKER_POOL_MAX", max)];
        assert_refused(&argon(&["run"], &[&HERE[..], &sizes].concat()).await, 2, &says);
    }
}

#[tokio::test]
async fn what_is_not_a_flag_command_or_argument_is_named() {
    for (args, says) in [
        (&["branch", "list", "--nope"][..], &["--nope", "argon branch list --help"][..]),
        (&["run", "--pool-sizes", "3"], &["--pool-sizes", "--pool-size"]),
        (&["brunch", "list"], &["brunch", "branch"]),
        (&["branch", "list", "extra"], &["extra"]),
        (&["capture", "start", "shop/main"], &["--source-db"]),
        (&["restore", "shop/main"], &["--to-db"]),
        (&["jobs", "retry"], &["ID"]),
        (&["jobs", "retry", "x", "--all-dead"], &["--all-dead"]),
        (&["jobs", "list", "--state", "lost"], &["lost", "dead"]),
        (&["jobs", "list", "--limit", "0"], &["--limit", "1..=10000"]),
        (&["jobs", "retry", "x", "--dry-run"], &["--dry-run"]),
        (&["jobs", "cancel"], &["ID"]),
        (&["jobs", "cancel", "--kind", "mail"], &["mail", "sync, compression, notification, cleanup, snapshot, drill, noop"]),
        (&["jobs", "discard", "x", "--kind", "sync"], &["--kind"]),
        (&["jobs", "submit", "--kind", "sync"], &["sync", "noop"]),
        (&["jobs", "submit", "--count", "0"], &["--count", "1..=10000000"]),
        (&["jobs", "submit", "--failure-rate", "1.5"], &["--failure-rate", "0 to 1"]),
        (&["jobs", "submit", "--duration", "2h"], &["--duration", "0ms to 1h"]),
        (&["jobs", "submit", "--duration", "soon"], &["--duration", "50ms"]),
        (&["jobs", "submit", "--delay", "500ms"], &["--delay", "whole seconds"]),
        (&["jobs", "submit", "--delay", "40days"], &["--delay", "31days"]),
        (&["jobs", "submit", "--retries", "101"], &["--retries", "0..=100"]),
        (&["jobs", "submit", "--priority", "urgent"], &["--priority", "low, normal and high"]),
        (&["queue", "pause"], &["--kind", "--branch", "--all"]),
        (&["queue", "resume", "--all", "--kind", "noop"], &["--all"]),
        (&["scale"], &["1..20"]),
        (&["scale", "0"], &["1..=20"]),
        (&["scale", "21"], &["1..=20"]),
        (&["scale", "8", "--release"], &["--release"]),
        (&["scale", "8", "--for", "90s"], &["--for", "whole minutes"]),
        (&["scale", "--release", "--for", "5m"], &["--for"]),
        (&["workers", "--token-file", "x"], &["--api"]),
        (&["workers", "--api", "argon.example:8080"], &["--api argon.example:8080", "https://"]),
        (&["workers", "--api", "http://127.0.0.1:1", "--token-file", "/nonexistent/token"], &["--token-file /nonexistent/token"]),
        (&["verify", "shop/main", "--against-uri", "x"], &["--against-db"]),
        (&["restore", "shop/main", "--to-db", "a", "--at", "yesterday"], &["yesterday", "seq:N", "ts:SECONDS.INC"]),
        (&["restore", "shop/main@yesterday", "--to-db", "a"], &["yesterday", "seq:N", "ts:SECONDS.INC"]),
        (&["restore", "shop/main@seq:1", "--to-db", "a", "--at", "head"], &["shop/main@seq:1", "--at"]),
        (&["restore", "shop/main", "--to-db", "config"], &["--to-db", "config", "belongs to MongoDB"]),
        (&["capture", "start", "shop/main", "--source-db", "admin"], &["--source-db", "admin", "belongs to MongoDB"]),
        (&["capture", "start", "shop/main", "--source-db", "local"], &["--source-db", "local", "belongs to MongoDB"]),
        (&["capture", "start", "shop/main", "--source-db", "config"], &["--source-db", "config", "belongs to MongoDB"]),
    ] {
        assert_refused(&argon(args, &HERE).await, 2, says);
    }
}

#[tokio::test]
async fn nobody_who_listens_is_named_with_the_way_to_one() {
    let dir = tempfile::tempdir().unwrap();
    let (path, port) = (dir.path().join("none.sock"), argon::devkit::ports::free::<1>().unwrap()[0]);
    let socket = path.to_str().unwrap();
    let url = format!("http://127.0.0.1:{port}");
    for command in [&["workers"][..], &["scale", "8"], &["scale", "--release", "--all"]] {
        let output = argon(command, &[("ARGON_CONTROL_SOCKET", socket)]).await;
        assert_refused(&output, 1, &[socket, "argon run"]);
        // The variable of an operator's own machine does not keep him from asking another.
        let output = argon(&[command, &["--api", &url]].concat(), &[("ARGON_CONTROL_SOCKET", socket)]).await;
        assert_refused(&output, 1, &[&url, "argon run"]);
        // No socket in the usual place: which place that is.
        let bare = ["-c", "unset ARGON_CONTROL_SOCKET; exec \"$0\" \"$@\"", binary().to_str().unwrap()];
        let env = [("XDG_RUNTIME_DIR".to_owned(), dir.path().display().to_string())];
        let args = bare.iter().chain(command).map(OsString::from);
        let output = run_to_end(std::path::Path::new("/bin/sh"), args, &env, Duration::from_secs(60)).await.unwrap();
        assert_refused(&output, 1, &[&dir.path().join("argon").display().to_string(), "argon run", "ARGON_CONTROL_SOCKET", "--api"]);
    }
    assert_refused(&argon(&["scale", "8"], &[("ARGON_CONTROL_SOCKET", "off")]).await, 2, &["ARGON_CONTROL_SOCKET is off", "--api"]);
    let output = argon(&["scale", "8", "--json"], &[("ARGON_CONTROL_SOCKET", socket)]).await;
    let error: serde_json::Value = serde_json::from_str(&output.stderr).unwrap();
    assert_eq!((output.code, &error["error"]["code"]), (1, &serde_json::json!("transient")), "{error}");
}

#[tokio::test]
async fn a_missing_or_bad_address_is_a_setting() {
    let store = HERE[1];
    assert_refused(&argon(&["branch", "list"], &[store]).await, 2, &["ARGON_MONGODB_URI", "--mongodb-uri", "mongodb://"]);
    assert_refused(&argon(&["run"], &[HERE[0]]).await, 2, &["ARGON_STORE_URL", "--store", "file:///"]);
    for uri in ["mongodb//h", "postgres://h", "", "mongodb://h:port/", "mongodb://h/?tls=maybe"] {
        assert_refused(&argon(&["branch", "list"], &[("ARGON_MONGODB_URI", uri), store]).await, 2, &["MongoDB URI"]);
    }
    for (url, says) in [
        ("/var/argon", "file:///var/argon"),
        ("var", "no scheme"),
        ("ftp://x/y", "ftp"),
        ("s3://", "bucket"),
        ("file://var", "three slashes"),
        ("file:///nonexistent/a", "/nonexistent"),
        ("s3://key:hunter2@bucket/x", "credentials"),
    ] {
        let output = argon(&["run"], &[HERE[0], ("ARGON_STORE_URL", url)]).await;
        assert_refused(&output, 2, &["store", says]);
        assert!(!output.stderr.contains("hunter2"), "{output:?}");
    }
    let output = argon(&["run"], &[HERE[0], ("ARGON_STORE_URL", "s3://bucket"), ("ARGON_S3_ENDPOINT", "host:9000")]).await;
    assert_refused(&output, 2, &["host:9000", "http://host:port"]);
}

#[tokio::test]
async fn a_usage_error_is_an_object_with_json() {
    let output = argon(&["run", "--json", "--pool-size", "21"], &HERE).await;
    assert_eq!((output.code, output.stdout.as_str()), (2, ""));
    let error: serde_json::Value = serde_json::from_str(&output.stderr).unwrap();
    assert_eq!(error["error"]["code"], "config");
    assert!(error["error"]["message"].as_str().unwrap().contains("1..=20"), "{error}");
}

#[tokio::test]
async fn a_misspelt_variable_is_warned_about_and_a_foreign_one_is_not() {
    let env = [("WORKER_POOL_SZIE", "3"), ("ARGON_STORE_ULR", "x"), ("ARGON_PORT", "tcp://10.0.0.1:80"), ("JOB_NAME", "x")];
    let output = argon(&["jobs", "--help"], &env).await;
    assert_eq!(output.stderr, "", "help is help");
    let output = argon(&["branch", "list"], &env).await;
    assert_eq!(output.code, 2);
    let warnings: Vec<&str> = output.stderr.lines().filter(|line| line.starts_with("warning: ")).collect();
    assert_eq!(warnings.len(), 2, "{output:?}");
    assert!(output.stderr.contains("WORKER_POOL_SZIE") && output.stderr.contains("WORKER_POOL_SIZE"), "{output:?}");
    assert!(output.stderr.contains("ARGON_STORE_ULR") && output.stderr.contains("ARGON_STORE_URL"), "{output:?}");
    assert!(!output.stderr.contains("ARGON_PORT") && !output.stderr.contains("JOB_NAME"), "{output:?}");
}

#[tokio::test]
async fn help_and_version_go_to_stdout_and_every_command_has_examples() {
    let help = argon(&["--help"], &[]).await.stdout;
    assert!(help.contains("Exit codes: 0 done, 1 failed, 2 bad"), "{help}");
    let version = argon(&["--version"], &[]).await;
    assert_eq!((version.code, version.stdout.as_str()), (0, concat!("argon ", env!("CARGO_PKG_VERSION"), "\n")));
    for command in commands().await {
        let args: Vec<&str> = command.split(' ').chain(["--help"]).collect();
        let output = argon(&args, &[]).await;
        assert_eq!((output.code, output.stderr.as_str()), (0, ""), "{command}");
        let (_, examples) = output.stdout.split_once("Example").unwrap_or_else(|| panic!("{command}: {}", output.stdout));
        assert!(examples.contains(&format!("argon {command}")), "{command}: {examples}");
        assert!(output.stdout.contains("--json") && output.stdout.contains("--mongodb-uri"), "{command}");
    }
}

#[tokio::test]
async fn output_on_a_closed_pipe_is_no_panic() {
    let closed = |redirect: &str| format!("exec \"$0\" {redirect}");
    for script in [
        closed("--help | head -c 0"),
        closed("branch list 2>&1 | head -c 0"),
        closed("run --pool-size 21 2>&1 | head -c 0"),
        // A reader that is gone before the first byte.
        "{ sleep 0.2; \"$0\" --help; echo \"code $?\" >&2; } | true".to_owned(),
        "{ sleep 0.2; \"$0\" branch list 2>&1; echo \"code $?\" > code; } | true; read -r x <code; echo \"$x\" >&2".to_owned(),
        "\"$0\" branch list >&- 2>&-; echo \"code $?\" >&2".to_owned(),
    ] {
        let env: Vec<(String, String)> = vec![("ARGON_STORE_URL".into(), "x".into())];
        let shell = std::path::Path::new("/bin/sh");
        let args: [OsString; 3] = ["-c".into(), script.clone().into(), binary().as_os_str().to_owned()];
        let output = run_to_end(shell, args, &env, Duration::from_secs(60)).await.unwrap();
        assert!(!output.stderr.contains("panicked") && !output.stderr.contains("code 101"), "{script}: {output:?}");
    }
}
