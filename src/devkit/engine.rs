//! Owns: the real `argon` binary as a child process: started, watched, killed, measured. Does not own what it does.

use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::process::{Exit, Launch, Process, Workdir, tail};
use crate::fault::{Fault, Result};
use crate::runtime::clock;
use crate::runtime::process::{cpu_of_stat, status_kib};

/// Settings of the owner that a child must not inherit: what is measured or tested is what the caller wrote down.
const SETTINGS: [&str; 4] = ["ARGON_", "WORKER_", "JOB_", "AWS_"];
/// Settings that say where servers come from; those do pass.
const PASSED: [&str; 2] = ["ARGON_MONGOD", "ARGON_WEED"];
/// The control socket of an engine, in its directory.
pub const CONTROL_SOCKET: &str = "control.sock";
/// More output than this of one run is not kept.
const OUTPUT_LIMIT: u64 = 64 << 20;

/// What a command left.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Output {
    /// Exit code; 128 + n after signal n.
    pub code: i32,
    /// Everything on stdout.
    pub stdout: String,
    /// Everything on stderr.
    pub stderr: String,
}

/// A running `argon`. Dropping kills it.
#[derive(Debug)]
pub struct ArgonProcess {
    process: Process,
    dir: Workdir, // after the process: its output goes when it is gone
}

impl ArgonProcess {
    /// Starts `binary`. `env` is all that it sees of Argon's and the AWS SDK's settings.
    pub fn start<A: Into<OsString>>(binary: &Path, args: impl IntoIterator<Item = A>, env: &[(String, String)]) -> Result<Self> {
        let dir = Workdir::new("engine")?;
        let mut launch = Launch::new(binary, args, dir.path().join("stdout"));
        launch.stderr = Some(dir.path().join("stderr"));
        launch.env = env.to_vec();
        // Engines of tests and benchmarks run beside each other, and beside one that somebody uses.
        let socket = dir.path().join(CONTROL_SOCKET).to_string_lossy().into_owned();
        for (name, value) in [("ARGON_HTTP_ADDR", "127.0.0.1:0".to_owned()), ("ARGON_CONTROL_SOCKET", socket)] {
            if !env.iter().any(|(given, _)| given == name) {
                launch.env.push((name.to_owned(), value));
            }
        }
        launch.env_remove = std::env::vars_os().filter_map(|(name, _)| name.into_string().ok()).filter(|name| is_setting(name)).collect();
        launch.dir = Some(dir.path().to_owned());
        Ok(Self { process: Process::start("argon", &launch)?, dir })
    }

    /// Process id.
    pub fn pid(&self) -> u32 {
        self.process.pid()
    }

    /// Where its output is and where it was started.
    pub fn dir(&self) -> &Path {
        self.dir.path()
    }

    /// kill -9; returns when it is gone.
    pub fn kill9(&mut self) {
        self.process.kill();
    }

    /// SIGTERM, then its exit; an error with the end of its log when it has not ended within `limit`.
    pub async fn terminate(&mut self, limit: Duration) -> Result<Exit> {
        if let Some(exit) = self.process.exited() {
            return Ok(exit);
        }
        self.process.terminate()?;
        self.wait(limit).await
    }

    /// Its exit; an error with the end of its log when it has not ended within `limit`.
    pub async fn wait(&mut self, limit: Duration) -> Result<Exit> {
        match self.process.wait(limit).await {
            Some(exit) => Ok(exit),
            None => Err(Fault::transient(format!("argon has not ended within {limit:?}; its log ends with: {}", self.log_tail(1500)))),
        }
    }

    /// How it ended, or `None` while it runs.
    pub fn exited(&mut self) -> Option<Exit> {
        self.process.exited()
    }

    /// Freezes it (SIGSTOP).
    pub fn pause(&mut self) -> Result<()> {
        self.process.pause()
    }

    /// Lets it go on.
    pub fn resume(&mut self) -> Result<()> {
        self.process.resume()
    }

    /// Waits for a line of its output that contains `text`, and returns the line.
    pub async fn wait_line(&mut self, text: &str, limit: Duration) -> Result<String> {
        let deadline = clock::now() + limit;
        loop {
            let ended = self.exited().is_some();
            let output = self.stdout() + &self.stderr();
            if let Some(line) = output.lines().find(|line| line.contains(text)) {
                return Ok(line.to_owned());
            }
            if ended || clock::now() >= deadline {
                let how = if ended { "ended without saying" } else { "did not say in time" };
                return Err(Fault::transient(format!("argon {how} {text:?}; its log ends with: {}", self.log_tail(1500))));
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    /// Its stdout so far.
    pub fn stdout(&self) -> String {
        tail(&self.dir.path().join("stdout"), OUTPUT_LIMIT)
    }

    /// Its stderr so far.
    pub fn stderr(&self) -> String {
        tail(&self.dir.path().join("stderr"), OUTPUT_LIMIT)
    }

    /// The last `bytes` of stdout and of stderr.
    pub fn log_tail(&self, bytes: u64) -> String {
        tail(&self.dir.path().join("stdout"), bytes) + &tail(&self.dir.path().join("stderr"), bytes)
    }

    /// Most memory that it has had resident, in bytes; `None` once it has ended.
    pub fn peak_rss(&self) -> Option<u64> {
        status_kib(&self.proc("status")?, "VmHWM").map(|kib| kib * 1024)
    }

    /// Memory resident now, in bytes; `None` once it has ended.
    pub fn rss(&self) -> Option<u64> {
        status_kib(&self.proc("status")?, "VmRSS").map(|kib| kib * 1024)
    }

    /// Seconds of CPU that it has used, user and system; `None` once it has ended.
    pub fn cpu_seconds(&self) -> Option<f64> {
        cpu_seconds(self.pid())
    }

    fn proc(&self, file: &str) -> Option<String> {
        fs::read_to_string(format!("/proc/{}/{file}", self.pid())).ok()
    }
}

/// Seconds of CPU that a process has used, user and system; `None` if there is none with this id.
pub fn cpu_seconds(pid: u32) -> Option<f64> {
    cpu_of_stat(&fs::read_to_string(format!("/proc/{pid}/stat")).ok()?)
}

/// Runs `argon` to its end and returns what it left; kills it after `limit`, which is an error.
pub async fn run_to_end<A: Into<OsString>>(
    binary: &Path,
    args: impl IntoIterator<Item = A>,
    env: &[(String, String)],
    limit: Duration,
) -> Result<Output> {
    let mut process = ArgonProcess::start(binary, args, env)?;
    let exit = process.wait(limit).await?;
    Ok(Output { code: exit.code, stdout: process.stdout(), stderr: process.stderr() })
}

/// An executable beside the one that runs (or, for a test or bench, in the directory above its own).
pub fn sibling(name: &str) -> Result<PathBuf> {
    let own = std::env::current_exe().map_err(|error| Fault::rejected(format!("this executable cannot be found: {error}")))?;
    let places = own.ancestors().skip(1).take(2).map(|dir| dir.join(name));
    let missing = || Fault::missing(format!("there is no {name} beside {}: build it first (cargo build --bin {name})", own.display()));
    places.into_iter().find(|path| path.is_file()).ok_or_else(missing)
}

fn is_setting(name: &str) -> bool {
    SETTINGS.iter().any(|prefix| name.starts_with(prefix)) && !PASSED.contains(&name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn figures_of_proc_are_read_whatever_the_process_is_called() {
        let stat = "42 (a) b (c) R 1 2 3 4 5 6 7 8 9 10 150 25 0 0 20 0";
        assert_eq!(cpu_of_stat(stat), Some(1.75));
        assert_eq!(cpu_of_stat("42 (a"), None);
        let status = "Name:\tx\nVmHWM:\t    2048 kB\nVmRSS:\t  1024 kB\n";
        assert_eq!((status_kib(status, "VmHWM"), status_kib(status, "VmRSS"), status_kib(status, "VmX")), (Some(2048), Some(1024), None));
    }

    #[test]
    fn only_settings_are_kept_from_a_child() {
        for (name, kept_away) in [("ARGON_LOG", true), ("AWS_PROFILE", true), ("JOB_NAME", true), ("ARGON_MONGOD", false), ("PATH", false)]
        {
            assert_eq!(is_setting(name), kept_away, "{name}");
        }
    }

    #[tokio::test]
    async fn a_command_runs_to_its_end_with_the_variables_given() {
        let env = [("ARGON_LOG".to_owned(), "a b'c".to_owned())];
        let script = "printf %s \"$ARGON_LOG\"; echo wrong >&2; exit 4";
        let output = run_to_end(Path::new("/bin/sh"), ["-c", script], &env, Duration::from_secs(10)).await.unwrap();
        assert_eq!(output, Output { code: 4, stdout: "a b'c".to_owned(), stderr: "wrong\n".to_owned() });
    }

    #[tokio::test]
    async fn one_that_does_not_end_is_killed_and_its_output_is_in_the_error() {
        let error = run_to_end(Path::new("/bin/sh"), ["-c", "echo stuck; sleep 100"], &[], Duration::from_millis(300)).await.unwrap_err();
        assert!(error.what.contains("has not ended") && error.what.contains("stuck"), "{error}");
    }

    #[tokio::test]
    async fn memory_and_cpu_are_those_of_the_process_itself() {
        let script = "i=0; while [ $i -lt 200000 ]; do i=$((i+1)); done; echo done; sleep 100";
        let mut process = ArgonProcess::start(Path::new("/bin/sh"), ["-c", script], &[]).unwrap();
        assert_eq!(process.wait_line("done", Duration::from_secs(30)).await.unwrap(), "done");
        assert!(process.cpu_seconds().unwrap() > 0.0);
        assert!(process.peak_rss().unwrap() >= process.rss().unwrap() && process.rss().unwrap() > 100_000);
        assert_eq!(process.terminate(Duration::from_secs(10)).await.unwrap().code, 143);
        assert!(process.wait_line("never", Duration::from_secs(10)).await.is_err());
        assert_eq!(process.peak_rss(), None);
    }
}
