//! Every command that the README or a `--help` shows is one that the binary takes.

use std::time::Duration;

use argon::config::VARIABLES;
use argon::devkit::ArgonProcess;
use argon::devkit::engine::run_to_end;
use bson::{Document, doc};

use crate::place::{Place, binary, commands};

/// Words of a shell line: quotes are kept together, comments and redirections cut off.
pub(crate) fn words(line: &str) -> Vec<String> {
    let (mut words, mut word, mut quote) = (Vec::new(), None::<String>, None);
    for c in line.chars() {
        match (c, quote) {
            (c, Some(open)) if c == open => quote = None,
            (c, Some(_)) => word.get_or_insert_default().push(c),
            ('\'' | '"', None) => {
                quote = Some(c);
                word.get_or_insert_default();
            }
            ('#', None) if word.is_none() => break,
            (c, None) if c.is_whitespace() => words.extend(word.take()),
            (c, None) => word.get_or_insert_default().push(c),
        }
    }
    words.extend(word);
    let end = words.iter().position(|word| matches!(word.as_str(), "|" | "&" | "&&" | ">" | ";")).unwrap_or(words.len());
    words.truncate(end);
    words
}

/// Arguments of `argon` in a line, also through cargo or after variables.
pub(crate) fn arguments(line: &str) -> Option<Vec<String>> {
    let words: Vec<String> = words(line.trim_start_matches("$ "));
    let command = words.iter().position(|word| !word.contains('=')).unwrap_or(words.len());
    match words[command..].iter().map(String::as_str).collect::<Vec<_>>()[..] {
        ["argon", ..] => Some(words[command + 1..].to_vec()),
        ["cargo", "run", ..] => {
            let at = words.iter().position(|word| word == "--")?;
            let other = words[..at].windows(2).any(|pair| pair[0] == "--bin" && pair[1] != "argon" || pair[0] == "-p");
            (!other).then(|| words[at + 1..].to_vec())
        }
        _ => None,
    }
}

async fn assert_taken(args: &[String]) {
    let limit = Duration::from_secs(60);
    let help: Vec<String> = args.iter().cloned().chain(["--help".to_owned()]).collect();
    let output = run_to_end(binary(), help, &[], limit).await.unwrap();
    assert_eq!((output.code, output.stderr.as_str()), (0, ""), "argon {}", args.join(" "));
    // Those go on without a server; all others, once parsed, miss it first.
    let runs_alone = matches!(args.first().map(String::as_str), None | Some("demo" | "doctor" | "generate"));
    if matches!(args.first().map(String::as_str), Some("workers" | "scale" | "health")) {
        assert_asks(args).await;
    } else if !runs_alone && !args.iter().any(|arg| arg == "--help" || arg == "--version") {
        let store = [("ARGON_STORE_URL".to_owned(), "memory:".to_owned())];
        let output = run_to_end(binary(), args, &store, limit).await.unwrap();
        // What reads the store alone misses a branch in it.
        let has = |name: &str| args.iter().any(|arg| arg == name);
        let alone = args.first().is_some_and(|first| first == "rebuild") && has("--dry-run") || has("--no-metadata") && !has("--to-db");
        let (code, says) = if alone { (1, "has no branches") } else { (2, "no MongoDB given") };
        assert_eq!((output.code, output.stdout.as_str()), (code, ""), "argon {}: {output:?}", args.join(" "));
        assert!(output.stderr.contains(says), "argon {}: {output:?}", args.join(" "));
    }
}

/// Those ask an engine, and once parsed miss it first: at the socket, or at an address of which no name is known, or the token for it.
async fn assert_asks(args: &[String]) {
    let env = [("ARGON_CONTROL_SOCKET", "/nonexistent/control.sock"), ("HOME", "/nonexistent")];
    let env = env.map(|(name, value)| (name.to_owned(), value.to_owned()));
    let output = run_to_end(binary(), args, &env, Duration::from_secs(60)).await.unwrap();
    assert_eq!(output.stdout, "", "argon {}: {output:?}", args.join(" "));
    let missed = ["/nonexistent/control.sock", "--token-file", "argon.example"].iter().any(|name| output.stderr.contains(name));
    let is_usage = output.stderr.contains("--help") || output.stderr.contains("unexpected");
    assert!(matches!(output.code, 1 | 2) && missed && !is_usage, "argon {}: {output:?}", args.join(" "));
}

#[tokio::test]
async fn the_commands_of_the_readme_and_of_the_documentation_are_taken() {
    let root = std::path::Path::new(env!("CARGO_MANIFEST_DIR"));
    let pages = std::fs::read_dir(root.join("docs")).unwrap().map(|entry| entry.unwrap().path());
    let mut taken = 0;
    for page in pages.filter(|path| path.extension().is_some_and(|ext| ext == "md")).chain([root.join("README.md")]) {
        taken += commands_are_taken(&std::fs::read_to_string(&page).unwrap()).await;
    }
    assert!(taken >= 50, "only {taken} commands were found");
}

async fn commands_are_taken(page: &str) -> usize {
    let (mut fenced, mut shell, mut taken) = (false, false, 0);
    for line in page.lines() {
        if let Some(language) = line.trim_start().strip_prefix("```") {
            (fenced, shell) = (!fenced, matches!(language, "sh" | "console"));
            continue;
        }
        if !fenced || !shell {
            continue;
        }
        if let Some(set) = line.trim().strip_prefix("export ") {
            for word in words(set) {
                let name = word.split('=').next().unwrap_or_default();
                assert!(VARIABLES.contains(&name), "{name} is not a setting");
            }
        }
        if let Some(args) = arguments(line.trim()) {
            assert_taken(&args).await;
            taken += 1;
        }
    }
    assert!(!fenced, "a fence is open");
    taken
}

/// A new user's way, line by line as the README has it, against the shared server and a home of its own.
#[tokio::test]
async fn the_walk_of_the_readme_works() {
    let readme = include_str!("../../README.md");
    let (_, walk) = readme.split_once("## Your own database").unwrap();
    let (walk, _) = walk.split_once("\n## ").unwrap();
    let fenced = walk.split("```").skip(1).step_by(2).flat_map(str::lines);
    let lines: Vec<&str> = fenced.map(str::trim).collect();
    let place = Place::new("readme").await;
    let home = place.dir.path().to_str().unwrap();
    let store = lines.iter().find_map(|line| line.strip_prefix("export ARGON_STORE_URL=")).unwrap();
    let store = words(store)[0].replace("$HOME", home);
    let env = place.env(&[("ARGON_STORE_URL", &store), ("HOME", home)]);
    let source = place.client.database("shop");
    let (mut engine, mut ran) = (None, Vec::new());
    for args in lines.iter().filter_map(|line| arguments(line)) {
        if args == ["run"] {
            let mut process = ArgonProcess::start(binary(), &args, &env).unwrap();
            process.wait_line("capture started here", Duration::from_secs(60)).await.unwrap();
            engine = Some(process);
            // The line is what says that the data comes after the start of the capture.
            source.collection("orders").insert_many((0..20).map(|i| doc! {"_id": i})).await.unwrap();
            place.catch_up_with(&source).await;
        } else {
            let output = run_to_end(binary(), &args, &env, Duration::from_secs(120)).await.unwrap();
            assert_eq!((output.code, output.stderr.as_str()), (0, ""), "argon {}: {output:?}", args.join(" "));
        }
        ran.push(args[0].clone());
    }
    assert_eq!(ran, ["doctor", "capture", "run", "branch", "branch", "restore", "restore", "verify", "verify", "drill"]);
    let copy = place.client.database("shop_copy").collection::<Document>("orders");
    assert_eq!(copy.count_documents(doc! {}).await.unwrap(), 20);
    assert!(place.dir.path().join("argon-store/projects/shop").is_dir());
    place.stop(engine.unwrap()).await;
}

#[tokio::test]
async fn the_examples_of_help_are_taken() {
    let mut taken = 0;
    for command in commands().await {
        let help: Vec<&str> = command.split(' ').chain(["--help"]).collect();
        let help = run_to_end(binary(), help, &[], Duration::from_secs(60)).await.unwrap().stdout;
        let (_, examples) = help.split_once("Example").unwrap();
        for line in examples.lines().filter_map(|line| line.strip_prefix("  argon ")) {
            // What an example does stands behind at least two spaces.
            let args = words(line.split("  ").next().unwrap());
            assert_taken(&args).await;
            taken += 1;
        }
    }
    assert!(taken >= 40, "only {taken} examples were found");
}

#[test]
fn shell_lines_are_cut_into_words() {
    for (line, expected) in [
        ("argon run   # the engine", Some(vec!["run"])),
        ("A=1 B='x y' argon log 'a b' | head", Some(vec!["log", "a b"])),
        ("cargo run --release -- demo", Some(vec!["demo"])),
        ("cargo run -p argon-loadgen -- bench", None),
        ("cargo test --workspace", None),
        ("export A=argon", None),
        ("", None),
    ] {
        assert_eq!(arguments(line), expected.map(|words| words.into_iter().map(str::to_owned).collect()), "{line}");
    }
}

/// The page of settings and the table in code name the same ones.
#[test]
fn the_page_of_settings_names_every_setting_and_no_other() {
    let page = include_str!("../../docs/settings.md");
    let named: std::collections::BTreeSet<&str> = page
        .lines()
        .filter_map(|line| line.strip_prefix("| `")?.split_once('`'))
        .map(|(name, _)| name)
        .filter(|name| name.len() > 3 && name.bytes().all(|b| b.is_ascii_uppercase() || b.is_ascii_digit() || b == b'_'))
        .collect();
    let missing: Vec<_> = VARIABLES.iter().filter(|variable| !named.contains(**variable)).collect();
    let unknown: Vec<_> = named.iter().filter(|name| !VARIABLES.contains(name)).collect();
    assert!(missing.is_empty(), "{missing:?}");
    // Others' variables are told, too.
    let ours = |name: &str| ["ARGON_", "WORKER_", "JOB_"].iter().any(|prefix| name.starts_with(prefix));
    let wrong: Vec<_> = unknown.into_iter().filter(|name| ours(name) && !matches!(**name, "ARGON_MONGOD" | "ARGON_WEED")).collect();
    assert!(wrong.is_empty(), "{wrong:?}");
}
