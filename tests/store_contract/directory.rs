//! What is particular to a directory (correctness.md 22).

use std::fs::File;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use argon::fault::Kind;
use argon::runtime::clock;
use argon::store::{FileStore, Put, Store};
use bytes::Bytes;

use crate::contract::keys;
use crate::{body, tag};

fn store(dir: &Path) -> Store {
    Arc::new(FileStore::open(dir).unwrap())
}

fn temp_files(dir: &Path) -> usize {
    std::fs::read_dir(dir.join(".tmp")).unwrap().flatten().filter(|entry| entry.file_name().to_string_lossy().starts_with("put-")).count()
}

/// The write time of a file that a process left behind `hours` ago.
fn age(path: &Path, hours: u64) {
    let now = Duration::from_millis(u64::try_from(clock::wall_ms()).unwrap());
    let then: SystemTime = UNIX_EPOCH + now - Duration::from_secs(hours * 3600);
    File::options().write(true).open(path).unwrap().set_modified(then).unwrap();
}

#[tokio::test]
async fn rule_22_what_a_killed_writer_left_is_never_seen() {
    let dir = tempfile::tempdir().unwrap();
    let first = store(dir.path());
    first.put_new("a/k", Bytes::from_static(b"whole"), &tag(b"whole", "t")).await.unwrap();
    std::fs::write(dir.path().join(".tmp/put-torn"), b"wh").unwrap();
    let second = store(dir.path());
    assert_eq!(keys(&second, "", 10).await, ["a/k"]);
    assert_eq!(second.get(".tmp/put-torn", None).await.unwrap_err().kind, Kind::Rejected);
    assert_eq!(second.get("put-torn", None).await.unwrap_err().kind, Kind::Missing);
    assert_eq!(temp_files(dir.path()), 1, "young: its writer may live");
}

#[tokio::test]
async fn stale_temporary_files_of_the_dead_are_removed_at_open_and_those_of_the_living_are_not() {
    let dir = tempfile::tempdir().unwrap();
    drop(store(dir.path()));
    for name in ["put-dead", "put-living", "put-young"] {
        std::fs::write(dir.path().join(".tmp").join(name), b"x").unwrap();
    }
    age(&dir.path().join(".tmp/put-dead"), 2);
    age(&dir.path().join(".tmp/put-living"), 2);
    let living = File::open(dir.path().join(".tmp/put-living")).unwrap();
    living.lock().unwrap();
    drop(store(dir.path()));
    let left = |name: &str| dir.path().join(".tmp").join(name).exists();
    assert_eq!((left("put-dead"), left("put-living"), left("put-young")), (false, true, true));
}

#[tokio::test]
async fn every_outcome_leaves_no_temporary_file() {
    let dir = tempfile::tempdir().unwrap();
    let store = store(dir.path());
    let (one, two) = (body(1, 5000), body(2, 5000));
    assert_eq!(store.put_new("k", one.clone(), &tag(&one, "t")).await.unwrap(), Put::Stored);
    assert_eq!(store.put_new("k", two.clone(), &tag(&two, "t")).await.unwrap(), Put::Refused);
    assert_eq!(store.replace("k", two.clone(), &tag(&two, "t"), "old").await.unwrap(), Put::Refused);
    assert_eq!(store.put_new("k/below", two.clone(), &tag(&two, "t")).await.unwrap_err().kind, Kind::Rejected);
    assert_eq!(temp_files(dir.path()), 0);
    assert_eq!(store.get("k", None).await.unwrap(), one);
    assert_eq!(store.get("k/below", None).await.unwrap_err().kind, Kind::Missing);
}

#[tokio::test]
async fn two_processes_worth_of_stores_share_a_directory() {
    let dir = tempfile::tempdir().unwrap();
    let (first, second) = (store(dir.path()), store(dir.path()));
    let (one, two) = (body(1, 100), body(2, 100));
    assert_eq!(first.put_new("x/y/k", one.clone(), &tag(&one, "t")).await.unwrap(), Put::Stored);
    assert_eq!(second.put_new("x/y/k", two.clone(), &tag(&two, "t")).await.unwrap(), Put::Refused);
    // A directory that was known to be there and durable is removed under the store: it is made again.
    std::fs::remove_dir_all(dir.path().join("x")).unwrap();
    assert_eq!(first.put_new("x/y/k", two.clone(), &tag(&two, "t")).await.unwrap(), Put::Stored);
    assert_eq!(second.get("x/y/k", None).await.unwrap(), two);
}

#[tokio::test]
async fn links_pipes_and_foreign_names_are_no_objects() {
    let dir = tempfile::tempdir().unwrap();
    let secret = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(secret.path(), b"secret").unwrap();
    let store = store(dir.path());
    symlink(secret.path(), dir.path().join("link")).unwrap();
    symlink("/", dir.path().join("root")).unwrap();
    rustix::fs::mknodat(rustix::fs::CWD, dir.path().join("pipe"), rustix::fs::FileType::Fifo, rustix::fs::Mode::RUSR, 0).unwrap();
    std::fs::write(dir.path().join("bad\\name"), b"x").unwrap();
    std::fs::create_dir(dir.path().join("lost+found")).unwrap();
    std::fs::write(dir.path().join("k"), b"x").unwrap();
    assert_eq!(keys(&store, "", 10).await, ["k"]);
    for key in ["link", "pipe", "root"] {
        assert_eq!(store.get(key, None).await.unwrap_err().kind, Kind::Missing, "{key}");
        assert_eq!(store.head(key).await.unwrap(), None, "{key}");
        assert_eq!(store.put_new(key, Bytes::new(), &tag(b"", "t")).await.unwrap(), Put::Refused, "{key}");
    }
    assert_eq!(std::fs::read(secret.path()).unwrap(), b"secret");
}

/// Without the lock a replacement that has just compared the version would bring back what a deletion removes meanwhile.
#[tokio::test]
async fn replacements_and_deletions_of_a_key_wait_for_each_other_across_processes() {
    let dir = tempfile::tempdir().unwrap();
    let store = store(dir.path());
    let (one, two) = (body(1, 100), body(2, 100));
    store.put_new("k", one.clone(), &tag(&one, "t")).await.unwrap();
    let version = store.head("k").await.unwrap().unwrap().version.unwrap();
    let hold = || -> Vec<File> {
        let paths = (0..256).map(|i| dir.path().join(format!(".tmp/lock-{i:02x}")));
        let open = |path| File::options().write(true).create(true).truncate(false).open(path).unwrap();
        paths.map(open).inspect(|file| file.lock().unwrap()).collect()
    };
    let moment = Duration::from_millis(100);

    let held = hold();
    let mut replacing = tokio::spawn({
        let (store, two) = (store.clone(), two.clone());
        async move { store.replace("k", two.clone(), &tag(&two, "t"), &version).await }
    });
    assert!(tokio::time::timeout(moment, &mut replacing).await.is_err(), "it waits");
    assert_eq!(store.get("k", None).await.unwrap(), one);
    drop(held);
    assert_eq!(replacing.await.unwrap().unwrap(), Put::Stored);

    let held = hold();
    let mut deleting = tokio::spawn({
        let store = store.clone();
        async move { store.delete("k").await }
    });
    assert!(tokio::time::timeout(moment, &mut deleting).await.is_err(), "it waits");
    assert_eq!(store.get("k", None).await.unwrap(), two);
    drop(held);
    deleting.await.unwrap().unwrap();
    assert_eq!(store.head("k").await.unwrap(), None);
}

#[test]
fn a_relative_directory_is_refused() {
    assert_eq!(FileStore::open(Path::new("some/dir")).unwrap_err().kind, Kind::Config);
}
