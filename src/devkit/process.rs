//! Owns: child processes and directories that are gone when their owner is, however it ends: return, panic, kill -9, out of memory.
//! Does not own what is run or when it is ready.
//!
//! SUBTLE: nothing in this process can clean up after its own kill -9, and asking the kernel (PR_SET_PDEATHSIG) takes unsafe code
//! and follows the thread, not the process. So every child is started by a tiny `sh` whose stdin is a pipe that only the owner
//! holds open (the standard library opens pipes close-on-exec). When the owner ends, the kernel closes the pipe, `read` in the
//! shell returns, and the shell kills the child. The shell is in a process group of its own, so that Ctrl-C on the owner's
//! terminal does not take the shell away before its child.

use std::ffi::{OsStr, OsString};
use std::fs::{self, File};
use std::io::{BufRead, BufReader, Read, Seek, SeekFrom};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};

use crate::fault::{Fault, Result};
use crate::runtime::clock;

/// Runs `"$@"` with its output in files `$1` and `$2`, says its pid, and exits as it does; kills it when stdin closes.
/// The child gets /dev/null as stdin and must not hold the pipe; the killer is a shell of its own because `wait` and `read` both block.
const SUPERVISE: &str = r#"
out=$1 err=$2; shift 2
exec 3<&0
"$@" </dev/null 3<&- >>"$out" 2>>"$err" &
pid=$!
echo "$pid"
exec >/dev/null 2>&1
(read -r _ <&3; kill -9 "$pid") &
killer=$!
exec 3<&-
wait "$pid"; code=$?
kill -9 "$killer"
exit "$code"
"#;

/// Removes what its arguments name when stdin closes; some more times because servers in it may still be dying.
const SWEEP: &str = r#"
read -r _
for _ in 1 2 3 4 5 6 7 8 9 10; do sleep 0.2; rm -rf -- "$@"; done
"#;

/// A temporary directory that also goes away when the owner is killed.
#[derive(Debug)]
pub struct Workdir {
    dir: Option<tempfile::TempDir>,
    path: PathBuf,
    extras: Vec<PathBuf>,
    sweeper: Child,
}

impl Workdir {
    /// Makes `<TMPDIR>/argon-<name>-XXXXXX`.
    pub fn new(name: &str) -> Result<Self> {
        Self::with_extras(name, Vec::new())
    }

    /// The same, and `extras`, files that a server leaves elsewhere, go with it.
    pub fn with_extras(name: &str, extras: Vec<PathBuf>) -> Result<Self> {
        let fault = |error: std::io::Error| Fault::transient(format!("no temporary directory for {name}: {error}"));
        let dir = tempfile::Builder::new().prefix(&format!("argon-{name}-")).tempdir().map_err(fault)?;
        let sweeper = shell(SWEEP).arg(dir.path()).args(&extras).stdout(Stdio::null()).stderr(Stdio::null()).spawn().map_err(fault)?;
        Ok(Self { path: dir.path().to_owned(), dir: Some(dir), extras, sweeper })
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Leaves the directory on disk for a person to look at, and says where it is.
    pub fn keep(mut self) -> PathBuf {
        if let Some(dir) = self.dir.take() {
            let _path = dir.keep();
        }
        self.path.clone()
    }
}

impl Drop for Workdir {
    fn drop(&mut self) {
        // Killed before the directory goes, so that it never removes a directory of the same name made by somebody else.
        let _ = self.sweeper.kill();
        let _ = self.sweeper.wait();
        drop(self.dir.take());
        for extra in &self.extras {
            let _ = fs::remove_file(extra);
        }
    }
}

/// `sh -c script sh`, detached from the terminal, its stdin a pipe held by us.
fn shell(script: &str) -> Command {
    let mut command = Command::new("/bin/sh");
    command.args(["-c", script, "sh"]).stdin(Stdio::piped()).process_group(0);
    command
}

/// What to run.
#[derive(Debug, Clone, Default)]
pub struct Launch {
    /// The executable.
    pub program: PathBuf,
    /// Its arguments.
    pub args: Vec<OsString>,
    /// Variables set on top of (or instead of) the owner's.
    pub env: Vec<(String, String)>,
    /// Variables of the owner that it must not see.
    pub env_remove: Vec<String>,
    /// File that stdout is appended to; stderr too unless `stderr` is given.
    pub log: PathBuf,
    /// File that stderr is appended to.
    pub stderr: Option<PathBuf>,
    /// Directory it starts in.
    pub dir: Option<PathBuf>,
}

impl Launch {
    /// A launch of `program` with `args`, output in `log`.
    pub fn new<A: Into<OsString>>(program: impl Into<PathBuf>, args: impl IntoIterator<Item = A>, log: impl Into<PathBuf>) -> Self {
        let args = args.into_iter().map(Into::into).collect();
        Self { program: program.into(), args, log: log.into(), ..Self::default() }
    }
}

/// How a process ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Exit {
    /// Exit code; 128 + n after signal n, as shells say it.
    pub code: i32,
}

/// A running child. Dropping kills it at once and waits until it is gone.
#[derive(Debug)]
pub struct Process {
    name: String,
    shell: Child,
    /// The owner's end of the pipe; closing it is what kills.
    hold: Option<ChildStdin>,
    pid: Pid,
    log: PathBuf,
    exit: Option<Exit>,
}

impl Process {
    /// Starts it. Returns when it has been forked, not when it is ready; a program that cannot be executed exits with 126 or 127.
    pub fn start(name: &str, launch: &Launch) -> Result<Self> {
        let fault = |error: std::io::Error| Fault::rejected(format!("cannot start {name} ({}): {error}", launch.program.display()));
        let stderr: &OsStr = launch.stderr.as_ref().unwrap_or(&launch.log).as_os_str();
        let mut command = shell(SUPERVISE);
        command.arg(&launch.log).arg(stderr).arg(&launch.program).args(&launch.args);
        command.stdout(Stdio::piped()).stderr(Stdio::null());
        for name in &launch.env_remove {
            command.env_remove(name);
        }
        command.envs(launch.env.iter().map(|(name, value)| (name, value)));
        if let Some(dir) = &launch.dir {
            command.current_dir(dir);
        }
        let mut shell = command.spawn().map_err(fault)?;
        let hold = shell.stdin.take();
        let mut line = String::new();
        if let Some(stdout) = shell.stdout.take() {
            BufReader::new(stdout).read_line(&mut line).map_err(fault)?;
        }
        let pid = line.trim().parse().ok().and_then(Pid::from_raw);
        let pid = pid.ok_or_else(|| fault(std::io::Error::other("its supervising shell did not say a pid")))?;
        Ok(Self { name: name.to_owned(), shell, hold, pid, log: launch.log.clone(), exit: None })
    }

    /// Its process id. May be somebody else's once the process has ended.
    pub fn pid(&self) -> u32 {
        self.pid.as_raw_nonzero().get().unsigned_abs()
    }

    /// How it ended, or `None` while it runs.
    pub fn exited(&mut self) -> Option<Exit> {
        if self.exit.is_none()
            && let Ok(Some(status)) = self.shell.try_wait()
        {
            self.exit = Some(exit_of(status));
        }
        self.exit
    }

    /// Waits for its end, at most `limit`; `None` when it still runs then.
    pub async fn wait(&mut self, limit: Duration) -> Option<Exit> {
        let deadline = clock::now() + limit;
        loop {
            let exit = self.exited();
            if exit.is_some() || clock::now() >= deadline {
                return exit;
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    /// kill -9; returns when it is gone.
    pub fn kill(&mut self) {
        drop(self.hold.take());
        if self.exit.is_none()
            && let Ok(status) = self.shell.wait()
        {
            self.exit = Some(exit_of(status));
        }
    }

    /// SIGTERM.
    pub fn terminate(&mut self) -> Result<()> {
        self.signal(Signal::TERM)
    }

    /// Freezes it (SIGSTOP): it keeps its connections and answers nothing.
    pub fn pause(&mut self) -> Result<()> {
        self.signal(Signal::STOP)
    }

    /// Lets a frozen one go on.
    pub fn resume(&mut self) -> Result<()> {
        self.signal(Signal::CONT)
    }

    /// Sends any signal.
    pub fn signal(&mut self, signal: Signal) -> Result<()> {
        // The shell has not been waited for, so it has not exited, so it has not let the pid go (but for an instant).
        if let Some(exit) = self.exited() {
            return Err(Fault::missing(format!("{} has ended with code {}", self.name, exit.code)));
        }
        kill_process(self.pid, signal).map_err(|error| Fault::missing(format!("cannot signal {}: {error}", self.name)))
    }

    /// The file with its output.
    pub fn log(&self) -> &Path {
        &self.log
    }

    /// The last `bytes` of its output.
    pub fn log_tail(&self, bytes: u64) -> String {
        tail(&self.log, bytes)
    }

    /// A fault that says that it `did` (an end of a sentence), with the end of its log.
    pub fn failed(&mut self, did: &str) -> Fault {
        let ended = self.exited().map(|exit| format!(" and has ended with code {}", exit.code)).unwrap_or_default();
        Fault::rejected(format!("{} {did}{ended}; its log ends with: {}", self.name, self.log_tail(1500).trim()))
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.kill();
    }
}

fn exit_of(status: std::process::ExitStatus) -> Exit {
    Exit { code: status.code().unwrap_or_else(|| 128 + status.signal().unwrap_or(0)) }
}

/// The last `bytes` of a file as text; what cannot be read is empty.
pub fn tail(path: &Path, bytes: u64) -> String {
    let read = || -> std::io::Result<Vec<u8>> {
        let mut file = File::open(path)?;
        let size = file.metadata()?.len();
        file.seek(SeekFrom::Start(size.saturating_sub(bytes)))?;
        let mut content = Vec::new();
        file.take(bytes).read_to_end(&mut content)?;
        Ok(content)
    };
    String::from_utf8_lossy(&read().unwrap_or_default()).into_owned()
}

/// A process with this id exists and is not a zombie.
pub fn is_alive(pid: u32) -> bool {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    stat.rsplit_once(") ").is_some_and(|(_, fields)| !fields.starts_with(['Z', 'X']))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sh(dir: &Workdir, script: &str) -> Process {
        Process::start("test", &Launch::new("/bin/sh", ["-c", script], dir.path().join("log"))).unwrap()
    }

    #[tokio::test]
    async fn the_exit_code_and_the_output_come_through() {
        let dir = Workdir::new("test").unwrap();
        let mut process = sh(&dir, "echo out; echo err >&2; exit 7");
        assert_eq!(process.wait(Duration::from_secs(10)).await, Some(Exit { code: 7 }));
        assert_eq!(process.log_tail(100), "out\nerr\n");
        assert!(process.failed("did not start").what.contains("code 7"));
        assert!(process.terminate().is_err());
    }

    #[tokio::test]
    async fn a_program_that_does_not_exist_ends_with_127_and_a_reason() {
        let dir = Workdir::new("test").unwrap();
        let mut process = Process::start("nothing", &Launch::new("/nowhere/nothing", ["x"], dir.path().join("log"))).unwrap();
        assert_eq!(process.wait(Duration::from_secs(10)).await, Some(Exit { code: 127 }));
        assert!(process.log_tail(200).contains("/nowhere/nothing"), "{}", process.log_tail(200));
    }

    #[tokio::test]
    async fn dropping_kills_even_what_ignores_sigterm_or_is_frozen() {
        let dir = Workdir::new("test").unwrap();
        let mut process = sh(&dir, "trap '' TERM; echo ready; while :; do sleep 0.01; done");
        while process.log_tail(10).is_empty() {
            assert_eq!(process.wait(Duration::from_millis(5)).await, None);
        }
        process.terminate().unwrap();
        assert_eq!(process.wait(Duration::from_millis(50)).await, None);
        process.pause().unwrap();
        let pid = process.pid();
        assert!(is_alive(pid));
        drop(process);
        assert!(!is_alive(pid));
    }

    #[tokio::test]
    async fn sigterm_reaches_the_child_and_its_code_is_seen() {
        let dir = Workdir::new("test").unwrap();
        let mut process = sh(&dir, "trap 'exit 3' TERM; echo ready; while :; do sleep 0.01; done");
        while process.log_tail(10).is_empty() {
            assert_eq!(process.wait(Duration::from_millis(5)).await, None);
        }
        process.terminate().unwrap();
        assert_eq!(process.wait(Duration::from_secs(10)).await, Some(Exit { code: 3 }));
    }

    #[test]
    fn a_killed_process_says_so() {
        let dir = Workdir::new("test").unwrap();
        let mut process = sh(&dir, "sleep 100");
        process.kill();
        assert_eq!(process.exited(), Some(Exit { code: 137 }));
    }

    #[test]
    fn working_directories_go_with_their_owner_unless_kept() {
        let dir = Workdir::new("test").unwrap();
        let path = dir.path().to_owned();
        fs::write(path.join("file"), "x").unwrap();
        drop(dir);
        assert!(!path.exists());
        let kept = Workdir::new("test").unwrap().keep();
        assert!(kept.exists());
        fs::remove_dir_all(kept).unwrap();
    }

    #[test]
    fn the_tail_of_a_file_is_bounded_and_a_missing_one_is_empty() {
        let dir = Workdir::new("test").unwrap();
        let path = dir.path().join("f");
        fs::write(&path, "0123456789").unwrap();
        assert_eq!(tail(&path, 3), "789");
        assert_eq!(tail(&path, 100), "0123456789");
        assert_eq!(tail(&dir.path().join("absent"), 100), "");
    }
}
