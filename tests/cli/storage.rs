//! Stores that cannot be used, that fill up, and objects that are not what they were: said, never lost, never restored.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use argon::devkit::{Output, Weed, oracle};
use argon::runtime::clock;
use argon::segment::SegmentFile;
use bson::{Document, doc};
use serde_json::Value;

use crate::place::{BRANCH, Place, assert_refused};

#[tokio::test]
async fn a_directory_that_cannot_be_written_is_named() {
    let mut place = Place::new("directory").await;
    let file = place.dir.path().join("file");
    fs::write(&file, "x").unwrap();
    for (path, code) in [
        (file.clone(), 2),                        // a file, not a directory
        (file.join("below"), 2),                  // below a file
        (place.dir.path().join("no/parent/"), 2), // nothing to make it in
        (PathBuf::from("/sys/argon-store"), 1),   // a file system that takes nothing, also from root
        (PathBuf::from("/dev/null"), 2),
    ] {
        let url = format!("file://{}", path.display());
        for args in [&["run"][..], &["capture", "start", BRANCH, "--source-db", "x"]] {
            let output = place.argon_with(args, &[("ARGON_STORE_URL", &url)]).await;
            assert_refused(&output, code, &["store", path.to_string_lossy().trim_end_matches('/')]);
        }
    }
    let Some(mount) = Mount::read_only(place.dir.path()) else {
        // Without the right to mount we are not root, and permissions count.
        let locked = place.dir.path().join("locked");
        fs::create_dir(&locked).unwrap();
        fs::set_permissions(&locked, fs::Permissions::from_mode(0o500)).unwrap();
        place.more = vec![("ARGON_STORE_URL".into(), format!("file://{}", locked.display()))];
        let output = place.argon(&["run"]).await;
        assert!(matches!(output.code, 1 | 2), "{output:?}");
        assert_refused(&output, output.code, &["store", "locked"]);
        return;
    };
    place.more = vec![("ARGON_STORE_URL".into(), format!("file://{}", mount.0.display()))];
    let output = place.argon(&["run"]).await;
    assert!(matches!(output.code, 1 | 2), "{output:?}");
    assert_refused(&output, output.code, &["store", "Read-only"]);
}

/// A small file system of its own; unmounted when dropped.
struct Mount(PathBuf);

impl Mount {
    fn tmpfs(dir: &Path, options: &str) -> Option<Self> {
        let at = dir.join("mount");
        fs::create_dir_all(&at).unwrap();
        let mounted = Command::new("mount").args(["-t", "tmpfs", "-o", options, "tmpfs"]).arg(&at).output();
        mounted.is_ok_and(|output| output.status.success()).then_some(Self(at))
    }

    fn read_only(dir: &Path) -> Option<Self> {
        Self::tmpfs(dir, "size=1m,ro")
    }
}

impl Drop for Mount {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(&self.0).status();
    }
}

#[tokio::test]
async fn buckets_and_keys_that_are_wrong_are_named() {
    let weed = Weed::start().await.unwrap();
    weed.create_bucket("argon").await.unwrap();
    let place = Place::new("bucket").await;
    let env = |bucket: &str, key: &str| -> Vec<(String, String)> {
        let mut env = weed.env(bucket, "history");
        env.iter_mut()
            .filter(|(name, _)| name == "AWS_SECRET_ACCESS_KEY" && !key.is_empty())
            .for_each(|(_, value)| *value = key.to_owned());
        env
    };
    async fn run(place: &Place, env: &[(String, String)], args: &[&str]) -> Output {
        let pairs: Vec<(&str, &str)> = env.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect();
        place.argon_with(args, &pairs).await
    }
    let start = ["capture", "start", BRANCH, "--source-db", place.source.name()];
    for args in [&["run"][..], &start] {
        let output = run(&place, &env("missing-bucket", ""), args).await;
        assert_refused(&output, 1, &["missing-bucket", "bucket"]);
        let output = run(&place, &env("argon", "wrongS3CRET"), args).await;
        assert_refused(&output, 1, &["argon", "credentials are wrong"]);
        assert!(!output.stderr.contains("wrongS3CRET"), "{output:?}");
    }
    let nowhere = ("ARGON_S3_ENDPOINT", "http://127.0.0.1:1");
    let output = run(&place, &[env("argon", ""), vec![(nowhere.0.to_owned(), nowhere.1.to_owned())]].concat(), &start).await;
    assert_refused(&output, 1, &[nowhere.1]);
    let mut without_keys = env("argon", "");
    without_keys.retain(|(name, _)| name != "AWS_SECRET_ACCESS_KEY" && name != "AWS_ACCESS_KEY_ID");
    without_keys.push(("AWS_EC2_METADATA_DISABLED".to_owned(), "true".to_owned()));
    assert_refused(&run(&place, &without_keys, &["run"]).await, 1, &["AWS_ACCESS_KEY_ID"]);
    let doctor = run(&place, &env("missing-bucket", ""), &["doctor"]).await;
    assert!(doctor.code == 1 && doctor.stdout.contains("FAILED   store access"), "{doctor:?}");
    // And with all of it right, the way there and back.
    let place = Place { more: env("argon", ""), ..place };
    let engine = place.begin().await;
    place.source.collection("a").insert_many((0..100).map(|i| doc! {"_id": i})).await.unwrap();
    let head = place.catch_up().await;
    place.stop(engine).await;
    // A store that is away keeps no engine from starting: the queue holds what comes meanwhile.
    let mut engine = place.engine_with(&[nowhere]).await;
    place.source.collection("a").insert_many((100..200).map(|i| doc! {"_id": i})).await.unwrap();
    until("the queue holds it", || async {
        place.json(&["capture", "list"]).await["captures"][0]["queued_seq"].as_u64().is_some_and(|queued| queued >= head + 100)
    })
    .await;
    assert!(engine.stderr().contains("store unavailable"), "{}", engine.log_tail(3_000));
    engine.kill9();
    let engine = place.engine().await;
    place.catch_up().await;
    place.stop(engine).await;
    place.ok(&["verify", BRANCH, "--deep"]).await;
    restored_equals_source(&place, "copy").await;
}

async fn restored_equals_source(place: &Place, suffix: &str) {
    let target = place.database(suffix);
    place.ok(&["restore", BRANCH, "--to-db", target.name()]).await;
    let (ours, theirs) = (oracle::snapshot(&target).await.unwrap(), oracle::snapshot(&place.source).await.unwrap());
    assert_eq!(ours.differences(&theirs), Vec::<String>::new());
}

async fn until<F: Future<Output = bool>>(what: &str, mut done: impl FnMut() -> F) {
    let begun = clock::now();
    while !done().await {
        assert!(begun.elapsed() < Duration::from_secs(60), "{what} took more than a minute");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

/// A disk that is full: the queue in MongoDB holds what the store cannot take, the branch says why, and nothing is missing afterwards.
#[tokio::test]
async fn a_full_disk_holds_up_and_loses_nothing() {
    let mut place = Place::new("full").await;
    let mount = Mount::tmpfs(place.dir.path(), "size=4m");
    let full = mount.is_some();
    if let Some(mount) = &mount {
        place.more = vec![("ARGON_STORE_URL".into(), format!("file://{}/s", mount.0.display()))];
    }
    place.start_capture().await;
    // Where nothing can be mounted, the process may write no file beyond 512 KiB, which fails likewise in the middle of an object.
    let engine = if full { place.engine_with(&[("JOB_RETRY_COUNT", "100")]).await } else { place.limited_engine(1_024).await };
    let ballast = mount.as_ref().map(|mount| {
        let path = mount.0.join("ballast");
        fs::write(&path, vec![1; 3 << 20]).unwrap();
        path
    });
    // Does not compress: about 6 MB in objects.
    let noise = |i: u32| {
        let mut state = u64::from(i) + 1;
        let bytes = (0..60_000).map(|_| {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (state >> 56) as u8
        });
        bson::Binary { subtype: bson::spec::BinarySubtype::Generic, bytes: bytes.collect() }
    };
    place.source.collection("noise").insert_many((0..40).map(|i| doc! {"_id": i, "x": noise(i)})).await.unwrap();
    let jobs = place.client.database(&place.metadata).collection::<Document>("jobs");
    let complains = doc! {"errors.error": {"$regex": if full { "no space left" } else { "arge" }}};
    until("a job that says why", || async { jobs.find_one(complains.clone()).await.unwrap().is_some() }).await;
    let shown = place.json(&["jobs", "list", "--branch", BRANCH]).await;
    assert!(shown.to_string().contains(if full { "no space left" } else { "arge" }), "{shown}");
    // No part of an object is visible: what is there decodes.
    place.ok(&["verify", BRANCH, "--deep"]).await;
    let Some(ballast) = ballast else {
        engine_is_replaced(&place, engine).await;
        return;
    };
    fs::remove_file(ballast).unwrap();
    place.catch_up().await;
    place.stop(engine).await;
    place.ok(&["verify", BRANCH, "--deep"]).await;
    restored_equals_source(&place, "copy").await;
}

async fn engine_is_replaced(place: &Place, mut limited: argon::devkit::ArgonProcess) {
    limited.kill9();
    place.ok(&["jobs", "retry", "--all-dead"]).await;
    let engine = place.engine_with(&[]).await;
    place.catch_up().await;
    place.stop(engine).await;
    place.ok(&["verify", BRANCH, "--deep"]).await;
    restored_equals_source(place, "copy").await;
}

/// Objects of the branch's segments, in order.
async fn segments(place: &Place) -> Vec<(String, PathBuf)> {
    let rows = place.client.database(&place.metadata).collection::<Document>("segments");
    let rows = rows.find(doc! {}).sort(doc! {"first_seq": 1}).await.unwrap();
    let rows: Vec<Document> = futures_util::TryStreamExt::try_collect(rows).await.unwrap();
    rows.iter().map(|row| row.get_str("_id").unwrap().to_owned()).map(|key| (key.clone(), place.objects().join(key))).collect()
}

#[tokio::test]
async fn damage_is_named_by_verify_and_stops_a_restore_before_the_first_write() {
    let place = Place::new("damage").await;
    let engine = place.begin().await;
    for batch in 0..4 {
        place.source.collection("a").insert_many((0..200).map(|i| doc! {"_id": batch * 1_000 + i, "x": "y".repeat(50)})).await.unwrap();
        place.catch_up().await;
    }
    place.stop(engine).await;
    place.ok(&["verify", BRANCH, "--deep"]).await;
    let segments = segments(&place).await;
    assert!(segments.len() >= 3, "{segments:?}");
    let (key, path) = &segments[1];
    let (other_key, other_path) = &segments[2];
    let (good, other) = (fs::read(path).unwrap(), fs::read(other_path).unwrap());
    let manifest = walk(&place.objects()).into_iter().find(|path| path.ends_with("manifest.json")).unwrap();
    let good_manifest = fs::read(&manifest).unwrap();
    let at_middle = good.len() / 2;
    let block_at = SegmentFile::parse(key, good.clone().into()).unwrap().footer().blocks[0].offset;

    let flipped = |at: usize| {
        let mut bytes = good.clone();
        bytes[at] ^= 1;
        bytes
    };
    for (what, shallow, bytes) in [
        ("a bit of a block", false, Some(flipped(usize::try_from(block_at).unwrap() + 9))),
        ("a bit of the magic", false, Some(flipped(0))),
        ("a bit of the end", false, Some(flipped(good.len() - 1))),
        ("truncated", true, Some(good[..at_middle].to_vec())),
        ("empty", true, Some(Vec::new())),
        ("longer", true, Some([good.clone(), vec![0; 9]].concat())),
        ("swapped", false, Some(other.clone())),
        ("missing", true, None),
    ] {
        match &bytes {
            Some(bytes) => fs::write(path, bytes).unwrap(),
            None => fs::remove_file(path).unwrap(),
        }
        if shallow {
            assert_damaged(&place, &[], what, key).await;
        }
        let said = assert_damaged(&place, &["--deep"], what, key).await;
        if what == "a bit of a block" {
            assert!(said.contains(&format!("{key}: block at byte {block_at}: ")), "{what}: {said}");
        }
        let target = place.database("never");
        let output = place.argon(&["restore", BRANCH, "--to-db", target.name()]).await;
        assert_refused(&output, 1, &[key]);
        assert!(target.list_collection_names().await.unwrap().is_empty(), "{what}: something was written");
        fs::write(path, &good).unwrap();
    }
    // Two that changed places.
    fs::write(path, &other).unwrap();
    fs::write(other_path, &good).unwrap();
    assert_damaged(&place, &["--deep"], "changed places", key).await;
    fs::write(path, &good).unwrap();
    fs::write(other_path, &other).unwrap();
    assert_ne!(key, other_key);
    // The base's catalogue.
    for bytes in [&good_manifest[..good_manifest.len() / 2], b"{}"] {
        fs::write(&manifest, bytes).unwrap();
        assert_damaged(&place, &[], "a damaged base", "manifest.json").await;
        let output = place.argon(&["restore", BRANCH, "--to-db", place.database("never").name()]).await;
        assert_refused(&output, 1, &["manifest.json"]);
    }
    fs::remove_file(&manifest).unwrap();
    assert_damaged(&place, &[], "no base", "manifest.json").await;
    fs::write(&manifest, &good_manifest).unwrap();
    // All is well again: the tests above were about the damage.
    place.ok(&["verify", BRANCH, "--deep"]).await;
    restored_equals_source(&place, "copy").await;
}

async fn assert_damaged(place: &Place, more: &[&str], what: &str, names: &str) -> String {
    let output = place.argon(&[&["verify", BRANCH], more].concat()).await;
    assert_eq!(output.code, 4, "{what}: {output:?}");
    assert!(output.stdout.contains(names) && output.stdout.contains("DIFFERENT") && output.stderr.is_empty(), "{what}: {output:?}");
    let json = place.argon(&[&["verify", BRANCH, "--json"], more].concat()).await;
    assert_eq!(json.code, 4, "{what}: {json:?}");
    let report: Value = serde_json::from_str(&json.stdout).unwrap();
    assert!(report["identical"] == false && report["difference_count"].as_u64() >= Some(1), "{what}: {report}");
    output.stdout
}

fn walk(dir: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path());
    entries.flat_map(|path| if path.is_dir() { walk(&path) } else { vec![path] }).collect()
}
