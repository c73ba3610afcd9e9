//! Owns: noticing that files have changed. Does not own: what is done then (`auth`, `tls`).

use std::path::PathBuf;
use std::time::{Duration, SystemTime};

/// Time between looks.
pub(super) const LOOK_AGAIN: Duration = Duration::from_secs(2);

/// Files and how they were at the last look.
#[derive(Debug)]
pub(super) struct Watched {
    files: Vec<PathBuf>,
    seen: Vec<Option<Mark>>,
}

/// Size too: an editor may write twice within one tick of the file system's clock. A replaced file (a renewed certificate, a secret mounted
/// anew by Kubernetes through a changed link) shows in the inode.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Mark {
    changed: Option<SystemTime>,
    size: u64,
    inode: u64,
}

impl Watched {
    pub(super) fn new(files: impl IntoIterator<Item = PathBuf>) -> Self {
        let files: Vec<PathBuf> = files.into_iter().collect();
        let seen = look(&files);
        Self { files, seen }
    }

    /// True once after each change.
    pub(super) fn has_changed(&mut self) -> bool {
        let now = look(&self.files);
        let changed = now != self.seen;
        self.seen = now;
        changed
    }
}

fn look(files: &[PathBuf]) -> Vec<Option<Mark>> {
    use std::os::unix::fs::MetadataExt;
    let mark = |file: &PathBuf| {
        let metadata = std::fs::metadata(file).ok()?;
        Some(Mark { changed: metadata.modified().ok(), size: metadata.len(), inode: metadata.ino() })
    };
    files.iter().map(mark).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_change_a_replacement_and_a_removal_are_each_noticed_once() {
        let dir = tempfile::tempdir().unwrap();
        let (file, new) = (dir.path().join("a"), dir.path().join("b"));
        std::fs::write(&file, "one").unwrap();
        let mut watched = Watched::new([file.clone()]);
        assert!(!watched.has_changed());
        std::fs::write(&file, "three").unwrap();
        assert_eq!([watched.has_changed(), watched.has_changed()], [true, false]);
        std::fs::write(&new, "eerht").unwrap();
        std::fs::rename(&new, &file).unwrap();
        assert_eq!([watched.has_changed(), watched.has_changed()], [true, false]);
        std::fs::remove_file(&file).unwrap();
        assert_eq!([watched.has_changed(), watched.has_changed()], [true, false]);
    }
}
