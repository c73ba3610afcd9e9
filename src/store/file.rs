//! Owns: a store in a directory (`file:///dir`), durable and atomic as correctness.md 22 asks: temporary file in the same tree,
//! fsync, `hard_link` (which fails if the key is taken, where rename would overwrite), fsync of every new directory and of the parent.
//! Does not own: the order of listings (`file_walk`), which keys are allowed (`key`).
//!
//! The tree holds `<key>` files and `.tmp/`: files being written (`put-*`, each locked by its writer, removed at open when older than an
//! hour and unlocked) and locks (`lock-00` to `lock-ff`, by hash of the key, never removed, since removing a lock file that another
//! process waits on would give two of them the lock). The version of an object is the SHA-256 of its content. A key cannot be both an
//! object and the beginning of another (`a` and `a/b`), as everywhere in file systems. Symbolic links are not objects.

use std::collections::{HashMap, HashSet};
use std::fs::{File, OpenOptions};
use std::io::{self, ErrorKind, Read, Seek, SeekFrom, Write};
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, UNIX_EPOCH};

use async_trait::async_trait;
use bytes::Bytes;
use parking_lot::Mutex;
use sha2::{Digest, Sha256};

use super::key::{RESERVED, check_key, check_page, check_prefix};
use super::{ObjectInfo, ObjectStore, Put, PutTag, check_range, check_size, file_walk, hex};
use crate::fault::{Fault, Result};
use crate::runtime::{clock, random};

/// A file being written by a living process is locked; this age spares those of systems without file locks.
const STALE_AFTER: Duration = Duration::from_secs(3600);
/// Directories known to be durable, remembered to save an fsync per level and put. About 200 bytes each.
const MAX_KNOWN_DIRS: usize = 4096;
const HASH_BUFFER: usize = 256 << 10;

/// A store in a local directory.
#[derive(Debug, Clone)]
pub struct FileStore {
    tree: Arc<Tree>,
}

#[derive(Debug)]
struct Tree {
    root: PathBuf,
    known: Mutex<HashSet<PathBuf>>,
    /// Directories that show an object whose name may not survive a crash, since they could not be synced.
    unsynced: Mutex<HashMap<PathBuf, Unsynced>>,
    sync: SyncDir,
}

/// Why a directory is not known to be durable.
#[derive(Debug, Default)]
struct Unsynced {
    /// Names are being added or removed right now, by this many.
    pending: u32,
    /// Syncs that failed and that no later one has mended.
    failed: u32,
}

/// How a directory is made durable; a test may have it fail.
struct SyncDir(Box<DirSync>);

type DirSync = dyn Fn(&Path) -> io::Result<()> + Send + Sync;

impl std::fmt::Debug for SyncDir {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("SyncDir")
    }
}

impl FileStore {
    /// Opens the directory, creating it (but not its parents), and removes what dead processes left behind. Blocking.
    pub fn open(root: &Path) -> Result<Self> {
        if !root.is_absolute() {
            return Err(Fault::config(format!("the store directory {} is not absolute: give the whole path", root.display())));
        }
        match std::fs::create_dir(root) {
            Ok(()) => sync_dir(root.parent().unwrap_or(root)).map_err(|error| io_fault(Step::Prepare, "create", root, &error))?,
            Err(error) if error.kind() == ErrorKind::AlreadyExists && root.is_dir() => {}
            Err(error) if matches!(error.kind(), ErrorKind::AlreadyExists | ErrorKind::NotADirectory) => {
                return Err(Fault::config(format!(
                    "the store directory {} is no directory, or lies below something that is none: correct ARGON_STORE_URL",
                    root.display()
                )));
            }
            Err(error) if error.kind() == ErrorKind::NotFound => {
                return Err(Fault::config(format!(
                    "the store directory {} cannot be created because its parent directory does not exist: create the parent, or mount it",
                    root.display()
                ))
                .next(format!("mkdir -p '{}'", root.parent().unwrap_or(root).display())));
            }
            Err(error) => return Err(io_fault(Step::Prepare, "create", root, &error)),
        }
        let temp = root.join(RESERVED);
        if let Err(error) = std::fs::create_dir(&temp)
            && error.kind() != ErrorKind::AlreadyExists
        {
            return Err(io_fault(Step::Prepare, "create", &temp, &error));
        }
        sweep_stale(&temp)?;
        Ok(Self::over(root, SyncDir(Box::new(sync_dir))))
    }

    fn over(root: &Path, sync: SyncDir) -> Self {
        Self { tree: Arc::new(Tree { root: root.to_owned(), known: Mutex::default(), unsynced: Mutex::default(), sync }) }
    }

    async fn blocking<T: Send + 'static>(&self, work: impl FnOnce(&Tree) -> Result<T> + Send + 'static) -> Result<T> {
        let tree = Arc::clone(&self.tree);
        match tokio::task::spawn_blocking(move || work(&tree)).await {
            Ok(result) => result,
            Err(error) => Err(Fault::unknown(format!("file store {}: the operation did not end: {error}", self.tree.root.display()))),
        }
    }
}

#[async_trait]
impl ObjectStore for FileStore {
    async fn put_new(&self, key: &str, body: Bytes, _tag: &PutTag) -> Result<Put> {
        check_key(key)?;
        check_size(key, body.len() as u64)?;
        let key = key.to_owned();
        self.blocking(move |tree| tree.put_new(&key, &body)).await
    }

    async fn replace(&self, key: &str, body: Bytes, _tag: &PutTag, version: &str) -> Result<Put> {
        check_key(key)?;
        check_size(key, body.len() as u64)?;
        let (key, version) = (key.to_owned(), version.to_owned());
        self.blocking(move |tree| tree.replace(&key, &body, &version)).await
    }

    async fn get(&self, key: &str, range: Option<Range<u64>>) -> Result<Bytes> {
        check_key(key)?;
        let key = key.to_owned();
        self.blocking(move |tree| tree.get(&key, range)).await
    }

    async fn head(&self, key: &str) -> Result<Option<ObjectInfo>> {
        check_key(key)?;
        let key = key.to_owned();
        self.blocking(move |tree| tree.head(&key)).await
    }

    async fn list(&self, prefix: &str, after: Option<&str>, max: usize) -> Result<Vec<ObjectInfo>> {
        check_prefix(prefix)?;
        check_page(max)?;
        let (prefix, after) = (prefix.to_owned(), after.map(str::to_owned));
        self.blocking(move |tree| file_walk::list(&tree.root, &prefix, after.as_deref(), max)).await
    }

    async fn delete(&self, key: &str) -> Result<()> {
        check_key(key)?;
        let key = key.to_owned();
        self.blocking(move |tree| tree.delete(&key)).await
    }

    fn verifies_puts(&self) -> bool {
        true // reading back would read the page cache
    }

    fn free_bytes(&self) -> Option<u64> {
        let at = rustix::fs::statvfs(&self.tree.root).ok()?;
        Some(at.f_bavail.saturating_mul(at.f_frsize))
    }

    fn describe(&self) -> String {
        format!("file://{}", self.tree.root.display())
    }
}

impl Tree {
    fn put_new(&self, key: &str, body: &[u8]) -> Result<Put> {
        let path = self.root.join(key);
        let parent = path.parent().unwrap_or(&self.root);
        self.make_dirs(parent)?;
        if std::fs::symlink_metadata(&path).is_ok() {
            return self.refused(parent);
        }
        let temp = self.write_temp(body)?;
        self.begin(parent);
        let mut linked = std::fs::hard_link(&temp.path, &path);
        if linked.as_ref().is_err_and(|error| error.kind() == ErrorKind::NotFound) {
            // Somebody removed the directory since it became known.
            self.known.lock().clear();
            if let Err(fault) = self.make_dirs(parent) {
                self.end(parent, 0, true);
                return Err(fault);
            }
            linked = std::fs::hard_link(&temp.path, &path);
        }
        match linked {
            Ok(()) => self.settle(parent, Step::Commit).map(|()| Put::Stored),
            Err(error) if error.kind() == ErrorKind::AlreadyExists => self.settle(parent, Step::Prepare).map(|()| Put::Refused),
            Err(error) => {
                self.end(parent, 0, true);
                Err(io_fault(Step::Prepare, "link", &path, &error))
            }
        }
    }

    /// SUBTLE: the caller may adopt the object that is in the way and forget its own copy, but the writer of that object may not yet
    /// have synced the directory, and may never. So the refusal makes durable what it refers to.
    fn refused(&self, parent: &Path) -> Result<Put> {
        self.sync_names(parent, Step::Prepare).map(|()| Put::Refused)
    }

    /// Makes the names durable that are in a directory now.
    fn sync_names(&self, dir: &Path, step: Step) -> Result<()> {
        self.begin(dir);
        self.settle(dir, step)
    }

    /// Before a name is added to a directory or taken from it, so that nobody who looks meanwhile takes what is there for durable.
    fn begin(&self, dir: &Path) {
        self.unsynced.lock().entry(dir.to_owned()).or_default().pending += 1;
    }

    /// Makes the names in a directory durable that were there when it began, and remembers where that has failed. Follows [`Self::begin`].
    fn settle(&self, dir: &Path, step: Step) -> Result<()> {
        let mends = self.unsynced.lock().get(dir).map_or(0, |entry| entry.failed);
        let synced = (self.sync.0)(dir).map_err(|error| io_fault(step, "sync the directory", dir, &error));
        self.end(dir, mends, synced.is_ok());
        synced
    }

    /// One that had begun is over; `mends` failures are mended by its success, those that came after it had begun are not.
    fn end(&self, dir: &Path, mends: u32, well: bool) {
        let mut unsynced = self.unsynced.lock();
        let Some(entry) = unsynced.get_mut(dir) else { return };
        entry.pending = entry.pending.saturating_sub(1);
        entry.failed = if well { entry.failed.saturating_sub(mends) } else { entry.failed.saturating_add(1) };
        if (entry.pending, entry.failed) == (0, 0) {
            unsynced.remove(dir);
        }
    }

    fn replace(&self, key: &str, body: &[u8], version: &str) -> Result<Put> {
        let path = self.root.join(key);
        let parent = path.parent().unwrap_or(&self.root);
        if std::fs::symlink_metadata(&path).is_err() {
            return Ok(Put::Refused);
        }
        let temp = self.write_temp(body)?;
        let _lock = self.lock(key)?;
        match self.head(key)? {
            Some(now) if now.version.as_deref() == Some(version) => {}
            _ => return Ok(Put::Refused),
        }
        self.begin(parent);
        if let Err(error) = std::fs::rename(&temp.path, &path) {
            self.end(parent, 0, true);
            return Err(io_fault(Step::Prepare, "replace", &path, &error));
        }
        self.settle(parent, Step::Commit).map(|()| Put::Stored)
    }

    fn get(&self, key: &str, range: Option<Range<u64>>) -> Result<Bytes> {
        let path = self.root.join(key);
        let Some((mut file, size)) = open_object(&path)? else {
            return Err(Fault::missing(format!("object {key} is not in file://{}", self.root.display())));
        };
        let (start, len) = match &range {
            Some(range) => (range.start, check_range(key, range, size)?),
            None => check_size(key, size).map(|()| (0, size))?,
        };
        let mut body = Vec::with_capacity(usize::try_from(len).unwrap_or(0));
        let read = file.seek(SeekFrom::Start(start)).and_then(|_| file.take(len).read_to_end(&mut body));
        read.map_err(|error| io_fault(Step::Read, "read", &path, &error))?;
        if body.len() as u64 != len {
            return Err(Fault::corrupt(format!("{}: {} bytes could be read where {len} were expected", path.display(), body.len())));
        }
        Ok(Bytes::from(body))
    }

    /// SUBTLE: who looks after an unclear put may adopt what it finds, and then the payload is gone from the queue. So an object is not shown
    /// before its directory has been synced.
    fn head(&self, key: &str) -> Result<Option<ObjectInfo>> {
        let path = self.root.join(key);
        let parent = path.parent().unwrap_or(&self.root);
        if self.unsynced.lock().contains_key(parent) {
            self.sync_names(parent, Step::Prepare)?;
        }
        let Some((mut file, _)) = open_object(&path)? else { return Ok(None) };
        let (mut hash, mut size, mut buffer) = (Sha256::new(), 0, vec![0; HASH_BUFFER]);
        loop {
            let n = file.read(&mut buffer).map_err(|error| io_fault(Step::Read, "read", &path, &error))?;
            if n == 0 {
                break;
            }
            hash.update(&buffer[..n]);
            size += n as u64;
        }
        let sha256: [u8; 32] = hash.finalize().into();
        Ok(Some(ObjectInfo {
            key: key.to_owned(),
            size,
            sha256: Some(sha256),
            put_id: None,
            version: Some(hex(&sha256)),
            modified_ms: None,
        }))
    }

    fn delete(&self, key: &str) -> Result<()> {
        let path = self.root.join(key);
        // Else a replace that has just compared the version would bring the object back.
        let _lock = self.lock(key)?;
        let parent = path.parent().unwrap_or(&self.root);
        if open_object(&path)?.is_none() {
            // An earlier call may have removed it and not been able to sync.
            return if self.unsynced.lock().contains_key(parent) { self.sync_names(parent, Step::Prepare) } else { Ok(()) };
        }
        self.begin(parent);
        match std::fs::remove_file(&path) {
            Ok(()) => self.settle(parent, Step::Commit),
            Err(error) => {
                self.end(parent, 0, true);
                if error.kind() == ErrorKind::NotFound { Ok(()) } else { Err(io_fault(Step::Prepare, "remove", &path, &error)) }
            }
        }
    }

    /// Creates the directories down to `dir` and makes each durable in its parent, also those that another process has just made.
    fn make_dirs(&self, dir: &Path) -> Result<()> {
        let missing: Vec<&Path> = {
            let known = self.known.lock();
            dir.ancestors().take_while(|&d| d != self.root && !known.contains(d)).collect()
        };
        for &dir in missing.iter().rev() {
            let made = match std::fs::create_dir(dir) {
                Err(error) if error.kind() == ErrorKind::AlreadyExists => Ok(()),
                other => other,
            };
            made.and_then(|()| (self.sync.0)(dir.parent().unwrap_or(&self.root)))
                .map_err(|error| io_fault(Step::Prepare, "create the directory", dir, &error))?;
        }
        if !missing.is_empty() {
            let mut known = self.known.lock();
            if known.len() + missing.len() > MAX_KNOWN_DIRS {
                known.clear();
            }
            known.extend(missing.into_iter().map(Path::to_owned));
        }
        Ok(())
    }

    /// A durable file with this content, not yet visible under any key.
    fn write_temp(&self, body: &[u8]) -> Result<Temp> {
        let path = self.root.join(RESERVED).join(format!("put-{}", random::id()));
        let written = OpenOptions::new().write(true).create_new(true).open(&path).and_then(|mut file| {
            let temp = Temp { path: path.clone(), _file: file.try_clone()? };
            let _ = file.try_lock(); // best effort: only the sweep of stale files looks at it
            file.write_all(body)?;
            file.sync_all()?;
            Ok(temp)
        });
        written.map_err(|error| io_fault(Step::Prepare, "write", &path, &error))
    }

    /// Excludes other replaces and deletes of keys with the same hash, in this process and others.
    fn lock(&self, key: &str) -> Result<File> {
        let path = self.root.join(RESERVED).join(format!("lock-{:02x}", Sha256::digest(key)[0]));
        let file = OpenOptions::new().write(true).create(true).truncate(false).open(&path);
        let locked = file.and_then(|file| file.lock().map(|()| file));
        locked.map_err(|error| io_fault(Step::Prepare, "lock", &path, &error))
    }
}

/// A temporary file: gone when dropped (after a link only its second name goes), locked until then.
struct Temp {
    path: PathBuf,
    _file: File,
}

impl Drop for Temp {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.path); // after a rename there is nothing to remove; what stays behind is swept
    }
}

/// The object's file and size; `None` for what is not there or no regular file (opening a pipe would block for ever).
fn open_object(path: &Path) -> Result<Option<(File, u64)>> {
    let opened = match std::fs::symlink_metadata(path) {
        Ok(meta) if meta.is_file() => File::open(path).and_then(|file| file.metadata().map(|meta| Some((file, meta.len())))),
        Ok(_) => Ok(None),
        Err(error) => Err(error),
    };
    match opened {
        Err(error) if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory) => Ok(None),
        other => other.map_err(|error| io_fault(Step::Read, "open", path, &error)),
    }
}

fn sync_dir(path: &Path) -> io::Result<()> {
    File::open(path)?.sync_all()
}

fn sweep_stale(temp: &Path) -> Result<()> {
    let now = Duration::from_millis(u64::try_from(clock::wall_ms()).unwrap_or(0));
    for entry in std::fs::read_dir(temp).map_err(|error| io_fault(Step::Read, "list", temp, &error))?.flatten() {
        if !entry.file_name().to_string_lossy().starts_with("put-") {
            continue;
        }
        let Ok(meta) = entry.metadata() else { continue };
        let written = meta.modified().ok().and_then(|time| time.duration_since(UNIX_EPOCH).ok()).unwrap_or(now);
        let dead = || File::open(entry.path()).is_ok_and(|file| file.try_lock().is_ok());
        if meta.is_file() && now.saturating_sub(written) > STALE_AFTER && dead() {
            let _ = std::fs::remove_file(entry.path()); // the next open tries again
        }
    }
    Ok(())
}

/// Where an operation was when it failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Step {
    /// Nothing was changed by it.
    Read,
    /// A write whose effect is not yet visible.
    Prepare,
    /// The effect is visible but perhaps not durable.
    Commit,
}

/// The one classification of file system errors.
pub(super) fn io_fault(step: Step, verb: &str, path: &Path, error: &io::Error) -> Fault {
    let place = path.display();
    match error.kind() {
        _ if step == Step::Commit => Fault::unknown(format!("cannot {verb} {place}: {error}; the change may or may not survive a crash")),
        ErrorKind::StorageFull | ErrorKind::QuotaExceeded => {
            Fault::transient(format!("cannot {verb} {place}: no space left there ({error}); free some or move the store"))
        }
        ErrorKind::PermissionDenied | ErrorKind::ReadOnlyFilesystem => {
            Fault::rejected(format!("cannot {verb} {place}: {error}; the engine's user needs read and write access to the store directory"))
        }
        ErrorKind::NotADirectory | ErrorKind::IsADirectory | ErrorKind::InvalidFilename | ErrorKind::InvalidInput => {
            Fault::rejected(format!("cannot {verb} {place}: {error}; a key cannot be both an object and a directory, or is too long here"))
        }
        ErrorKind::CrossesDevices | ErrorKind::Unsupported => Fault::rejected(format!(
            "cannot {verb} {place}: {error}; the store directory must be one file system that has hard links and locks"
        )),
        ErrorKind::NotFound => Fault::transient(format!("cannot {verb} {place}: {error}; was the store directory removed or unmounted?")),
        _ => Fault::transient(format!("cannot {verb} {place}: {error}")),
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicBool, Ordering};

    use tokio_util::sync::CancellationToken;

    use super::*;
    use crate::runtime::backoff::Backoff;
    use crate::store::{PutOutcome, RetryPolicy, put_idempotent};

    /// A store in a directory of its own whose syncs of directories fail while the switch is on.
    fn breakable() -> (tempfile::TempDir, FileStore, Arc<AtomicBool>) {
        let dir = tempfile::tempdir().unwrap();
        FileStore::open(dir.path()).unwrap();
        let broken = Arc::new(AtomicBool::new(false));
        let fails = broken.clone();
        let sync = move |path: &Path| if fails.load(Ordering::SeqCst) { Err(io::Error::other("EIO")) } else { sync_dir(path) };
        let store = FileStore::over(dir.path(), SyncDir(Box::new(sync)));
        (dir, store, broken)
    }

    #[tokio::test]
    async fn rule_22_an_object_whose_directory_could_not_be_synced_is_not_adopted_before_it_is() {
        let (dir, store, broken) = breakable();
        let pause = Duration::from_millis(1);
        let policy = RetryPolicy { backoff: Backoff { base: pause, cap: pause }, attempts: 3, ..RetryPolicy::default() };
        let upload = async |key: &str| {
            let body = Bytes::from_static(b"body");
            let tag = PutTag { sha256: Sha256::digest(&body).into(), put_id: "one".to_owned() };
            put_idempotent(&store, key, body, &tag, &policy, &CancellationToken::new()).await
        };
        upload("a/first").await.unwrap(); // makes the directory
        assert!(store.tree.unsynced.lock().is_empty(), "what is durable is not synced again by whoever looks");
        broken.store(true, Ordering::SeqCst);
        let fault = upload("a/second").await.unwrap_err();
        assert!(fault.may_heal() && fault.what.contains("sync"), "{fault}");
        assert!(dir.path().join("a/second").exists(), "it is visible, and must not count");
        assert!(store.head("a/second").await.is_err());
        broken.store(false, Ordering::SeqCst);
        assert_eq!(upload("a/second").await.unwrap().outcome, PutOutcome::Adopted);
        let version = store.head("a/second").await.unwrap().unwrap().version.unwrap();
        let tag = PutTag { sha256: [7; 32], put_id: "two".to_owned() };
        assert_eq!(store.replace("a/second", Bytes::from_static(b"other"), &tag, &version).await.unwrap(), Put::Stored);
        store.delete("a/second").await.unwrap();
        assert!(store.tree.unsynced.lock().is_empty(), "all of it is durable now");
    }

    #[tokio::test]
    async fn rule_22_a_delete_beside_a_put_does_not_hide_that_the_put_was_not_synced() {
        let (dir, store, broken) = breakable();
        let tag = PutTag { sha256: [7; 32], put_id: "one".to_owned() };
        for key in ["a/first", "a/second"] {
            store.put_new(key, Bytes::from_static(b"body"), &tag).await.unwrap();
        }
        let (tree, parent) = (store.tree.clone(), dir.path().join("a"));
        // A put has begun, what it adds is visible, and a delete comes and goes before it syncs.
        tree.begin(&parent);
        store.delete("a/first").await.unwrap();
        store.delete("a/none").await.unwrap();
        broken.store(true, Ordering::SeqCst);
        assert!(tree.settle(&parent, Step::Commit).is_err());
        assert!(store.head("a/second").await.is_err(), "it may not survive a crash");
        // A delete whose sync fails is remembered too, and what mends them makes the directory durable.
        assert_eq!(store.delete("a/second").await.unwrap_err().kind, crate::fault::Kind::Unknown);
        assert!(store.head("a/second").await.is_err());
        assert!(store.delete("a/second").await.is_err(), "it is gone, but may come back");
        broken.store(false, Ordering::SeqCst);
        assert_eq!(store.head("a/second").await.unwrap(), None);
        assert!(tree.unsynced.lock().is_empty());
    }
}
