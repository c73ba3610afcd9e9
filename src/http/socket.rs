//! The file of the control socket.
//!
//! Owns: where it is, whose it is, replacing one that was left behind. Does not own: what is served on it (`control`).

use std::fs;
use std::os::unix::fs::{DirBuilderExt, FileTypeExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};

use crate::fault::{Fault, Result};

/// A path of a Unix socket has at most so many bytes (Linux: 108 with the final zero); ours has a longer one beside it.
const MOST_PATH: usize = 107 - INNER.len();
/// What is beside the socket: a directory that nobody else can enter, and in it the socket between guard and tiny_http.
const PRIVATE: &str = ".d";
const INNER: &str = ".d/inner";

/// Where the socket of the engine with this HTTP port is, if `ARGON_CONTROL_SOCKET` does not say it.
pub fn default_path(port: u16) -> PathBuf {
    runtime_dir().join(format!("control-{port}.sock"))
}

/// The user's own directory for such things.
pub fn runtime_dir() -> PathBuf {
    let uid = rustix::process::getuid().as_raw();
    let given = std::env::var_os("XDG_RUNTIME_DIR").map(PathBuf::from).filter(|dir| dir.is_absolute() && dir.is_dir());
    let usual = || Some(PathBuf::from(format!("/run/user/{uid}"))).filter(|dir| dir.is_dir());
    match given.or_else(usual) {
        Some(dir) => dir.join("argon"),
        None => std::env::temp_dir().join(format!("argon-{uid}")),
    }
}

/// A path that is ours: whoever holds the lock beside it owns it, and a dead process holds none.
#[derive(Debug)]
pub(super) struct Place {
    path: PathBuf,
    _lock: fs::File,
}

impl Place {
    /// Takes the path. `own_dir`: its directory is ours to make.
    pub(super) fn take(path: &Path, own_dir: bool) -> Result<Self> {
        if path.as_os_str().len() > MOST_PATH {
            return Err(bad(path, &format!("the path has more than {MOST_PATH} bytes")));
        }
        if own_dir && let Some(dir) = path.parent() {
            make_private(dir)?;
        }
        let lock = lock(path)?;
        match fs::symlink_metadata(path) {
            Ok(found) if !found.file_type().is_socket() => return Err(bad(path, &"there is something else, which is not a socket")),
            Ok(_) if UnixStream::connect(path).is_ok() => return Err(bad(path, &"another program serves it")),
            _ => {}
        }
        Ok(Self { path: path.to_owned(), _lock: lock })
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// The socket of the path itself, and one that only this process knows of. Both are made where nobody else can enter: at no moment could
    /// anybody open the first before its mode is 0600, whatever the umask. A socket that was left behind is replaced in the same instant.
    pub(super) fn bind(&self) -> Result<(UnixListener, UnixListener, PathBuf)> {
        let dir = beside(&self.path, PRIVATE);
        let bound = (|| {
            self.clear()?;
            fs::DirBuilder::new().mode(0o700).create(&dir)?;
            let (inner, outer) = (beside(&self.path, INNER), dir.join("new"));
            let inside = UnixListener::bind(&inner)?;
            let listener = UnixListener::bind(&outer)?;
            fs::set_permissions(&outer, fs::Permissions::from_mode(0o600))?;
            fs::rename(&outer, &self.path)?;
            Ok::<_, std::io::Error>((listener, inside, inner))
        })();
        bound.map_err(|e| bad(&self.path, &e))
    }

    /// Removes the private directory, with what a process that was killed has left in it.
    fn clear(&self) -> std::io::Result<()> {
        let dir = beside(&self.path, PRIVATE);
        for name in ["inner", "new"] {
            let _ = fs::remove_file(dir.join(name));
        }
        match fs::remove_dir(&dir) {
            Err(e) if e.kind() != std::io::ErrorKind::NotFound => Err(e),
            _ => Ok(()),
        }
    }

    /// Removes everything but the lock, which may be the next one's already.
    pub(super) fn remove(&self) {
        let _ = fs::remove_file(&self.path);
        let _ = self.clear();
    }
}

fn bad(path: &Path, why: &dyn std::fmt::Display) -> Fault {
    Fault::config(format!("control socket {}: {why}; set ARGON_CONTROL_SOCKET", path.display()))
}

fn beside(path: &Path, suffix: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(suffix);
    name.into()
}

/// Makes the directory for sockets, or sees that it is one that nobody else can write to: under /tmp somebody else may have been first.
fn make_private(dir: &Path) -> Result<()> {
    let bad = |why: String| Fault::config(format!("the directory {} of the control socket {why}; set ARGON_CONTROL_SOCKET", dir.display()));
    match fs::DirBuilder::new().mode(0o700).create(dir) {
        Ok(()) => return Ok(()),
        Err(e) if e.kind() == std::io::ErrorKind::AlreadyExists => {}
        Err(e) => return Err(bad(format!("cannot be made: {e}"))),
    }
    let found = fs::symlink_metadata(dir).map_err(|e| bad(format!("cannot be read: {e}")))?;
    if !found.is_dir() || found.uid() != rustix::process::getuid().as_raw() || found.mode() & 0o077 != 0 {
        return Err(bad("is not a directory that is this user's alone (mode 0700)".into()));
    }
    Ok(())
}

fn lock(path: &Path) -> Result<fs::File> {
    let file = fs::OpenOptions::new().write(true).create(true).truncate(false).mode(0o600).open(beside(path, ".lock"));
    let file = file.map_err(|e| bad(path, &e))?;
    match rustix::fs::flock(&file, rustix::fs::FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => Ok(file),
        Err(rustix::io::Errno::WOULDBLOCK) => Err(bad(path, &"another engine of this machine has it")),
        Err(e) => Err(bad(path, &e)),
    }
}
