//! Owns: listing a directory tree in key order, page by page. Does not own the tree (`file`).
//!
//! Key order is the byte order of whole keys, so a directory sorts as its name with a `/`: `a-b` < `a/b` < `a0`.
//! A page costs one reading of each directory on its way, so listing all of a directory of n objects reads n/page times n entries:
//! fine for a sweep, not for a hot path.

use std::collections::BinaryHeap;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::time::UNIX_EPOCH;

use super::ObjectInfo;
use super::file::{Step, io_fault};
use super::key::{MAX_KEY_BYTES, RESERVED, check_key};
use crate::fault::Result;

/// At most `max` objects under `prefix` after `after`, in key order.
pub(super) fn list(root: &Path, prefix: &str, after: Option<&str>, max: usize) -> Result<Vec<ObjectInfo>> {
    loop {
        let mut walk = Walk { prefix, after, max, page: Vec::new(), vanished: false };
        let start = prefix.rfind('/').map_or("", |slash| &prefix[..=slash]);
        walk.directory(&root.join(start), start)?;
        // A short page means the end of the listing; one that is short because a file went away meanwhile must not say so.
        if walk.page.len() == max || !walk.vanished {
            return Ok(walk.page);
        }
    }
}

struct Walk<'a> {
    prefix: &'a str,
    after: Option<&'a str>,
    max: usize,
    page: Vec<ObjectInfo>,
    vanished: bool,
}

impl Walk<'_> {
    /// Visits a directory whose objects' keys begin with `base` (empty, or ending with `/`).
    fn directory(&mut self, path: &Path, base: &str) -> Result<()> {
        let room = self.max - self.page.len();
        let mut names: Vec<String> = Vec::new();
        // The smallest `room` files suffice, so a directory of millions does not fill memory.
        let mut files: BinaryHeap<String> = BinaryHeap::new();
        let entries = match std::fs::read_dir(path) {
            Ok(entries) => entries,
            Err(error) if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory) => return Ok(()),
            Err(error) => return Err(io_fault(Step::Read, "list", path, &error)),
        };
        for entry in entries {
            let entry = entry.map_err(|error| io_fault(Step::Read, "list", path, &error))?;
            let Ok(name) = entry.file_name().into_string() else { continue }; // no key of ours
            if base.is_empty() && (name == RESERVED || name == "lost+found") {
                continue;
            }
            let kind = match entry.file_type() {
                Ok(kind) => kind,
                Err(error) if error.kind() == ErrorKind::NotFound => continue,
                Err(error) => return Err(io_fault(Step::Read, "list", &entry.path(), &error)),
            };
            if kind.is_dir() {
                let key = format!("{base}{name}/");
                if key.len() < MAX_KEY_BYTES && self.may_hold(&key) {
                    names.push(format!("{name}/"));
                }
            } else if kind.is_file() && self.wants(&format!("{base}{name}")) {
                files.push(name);
                if files.len() > room {
                    files.pop();
                }
            }
        }
        names.extend(files);
        names.sort_unstable();
        for name in names {
            if self.page.len() == self.max {
                break;
            }
            let key = format!("{base}{name}");
            if name.ends_with('/') { self.directory(&path.join(&name), &key)? } else { self.file(path.join(&name), key)? }
        }
        Ok(())
    }

    fn file(&mut self, path: PathBuf, key: String) -> Result<()> {
        match std::fs::symlink_metadata(&path) {
            Ok(meta) => {
                let since = meta.modified().ok().and_then(|at| at.duration_since(UNIX_EPOCH).ok());
                let modified_ms = since.and_then(|since| i64::try_from(since.as_millis()).ok());
                self.page.push(ObjectInfo { key, size: meta.len(), sha256: None, put_id: None, version: None, modified_ms });
                Ok(())
            }
            Err(error) if error.kind() == ErrorKind::NotFound => {
                self.vanished = true;
                Ok(())
            }
            Err(error) => Err(io_fault(Step::Read, "list", &path, &error)),
        }
    }

    fn wants(&self, key: &str) -> bool {
        key.starts_with(self.prefix) && self.after.is_none_or(|after| key > after) && check_key(key).is_ok()
    }

    /// Whether a directory (its key ends with `/`) may hold objects of the page.
    fn may_hold(&self, dir: &str) -> bool {
        (dir.starts_with(self.prefix) || self.prefix.starts_with(dir))
            && self.after.is_none_or(|after| dir > after || after.starts_with(dir))
    }
}
