//! Owns: one life of an engine process in a benchmark: spawned, seen to own its capture, seen to commit up to a seq, measured, ended.
//! Does not own load or comparison.

use std::time::{Duration, Instant};

use argon::devkit::ArgonProcess;
use argon::devkit::engine::{CONTROL_SOCKET, cpu_seconds};
use argon::fault::{Fault, Result};
use argon::http::WorkersStats;
use argon::http::client::{Client, Target};
use argon::runtime::clock;
use serde::Serialize;

use super::machine::Machine;
use super::rig::{Line, Rig};
use super::watch::{POLL, Watch};
use super::{ratio, real};

/// Without any progress for this long something is stuck.
const STALL: Duration = Duration::from_secs(90);

/// A running engine and its clock.
#[derive(Debug)]
pub(super) struct Session<'a> {
    rig: &'a Rig,
    line: Line,
    pub watch: Watch,
    engine: ArgonProcess,
    spawned: Instant,
    cpu_before: [f64; 3],
    machine: Machine,
    owned: Option<Duration>,
    first_checkpoint: Option<Duration>,
}

/// What an engine used.
#[derive(Debug, Clone, Copy, Serialize)]
pub(super) struct Used {
    /// CPU seconds of the engine, user and system, since it was spawned.
    pub engine_cpu_s: f64,
    /// Of mongod meanwhile.
    pub mongod_cpu_s: f64,
    /// Of the store's server meanwhile; 0 for a directory.
    pub store_cpu_s: f64,
    /// Of this process meanwhile: looking at the metadata, and the load if it makes one.
    pub own_cpu_s: f64,
    /// Cores that other work on the machine took meanwhile.
    pub others_cores: f64,
    /// Most memory that the engine has had resident (VmHWM).
    pub peak_rss_bytes: u64,
}

/// Moments since the process was spawned.
#[derive(Debug, Clone, Copy)]
pub(super) struct Moments {
    /// The capture was seen to be owned: right before its cursor is opened.
    pub owned: Duration,
    /// The first checkpoint was seen; absent if it was committed already when it was looked for.
    pub first_checkpoint: Option<Duration>,
    /// The head was seen at the seq waited for.
    pub done: Duration,
}

impl<'a> Session<'a> {
    /// Spawns `argon run`.
    pub(super) fn start(rig: &'a Rig, line: &Line) -> Result<Self> {
        let (machine, cpu_before) = (Machine::now(), cpu(rig));
        let spawned = clock::now();
        let engine = rig.start_engine(line)?;
        Ok(Self {
            rig,
            line: line.clone(),
            watch: rig.watch(line),
            engine,
            spawned,
            cpu_before,
            machine,
            owned: None,
            first_checkpoint: None,
        })
    }

    /// Waits until the engine owns its capture.
    pub(super) async fn wait_owned(&mut self) -> Result<Duration> {
        let deadline = clock::now() + STALL;
        loop {
            if let Some(owned) = self.owned {
                return Ok(owned);
            }
            self.look_at_capture().await?;
            self.check_alive()?;
            if clock::now() > deadline {
                return Err(self.stuck("has not taken its capture").await);
            }
            tokio::time::sleep(POLL).await;
        }
    }

    /// Waits until everything up to `seq` is committed.
    pub(super) async fn wait_head(&mut self, seq: u64) -> Result<Moments> {
        let (mut reached, mut moved) = (0, clock::now());
        loop {
            if self.first_checkpoint.is_none() {
                self.look_at_capture().await?;
            }
            let head = self.watch.head().await?;
            if head >= seq {
                let done = self.spawned.elapsed();
                return Ok(Moments { owned: self.owned.unwrap_or(done), first_checkpoint: self.first_checkpoint, done });
            }
            if head > reached {
                (reached, moved) = (head, clock::now());
            }
            self.check_alive()?;
            if moved.elapsed() > STALL {
                return Err(self.stuck(&format!("stopped at seq {reached} of {seq}")).await);
            }
            tokio::time::sleep(POLL).await;
        }
    }

    /// Jobs that the engine's sync workers have done and their mean time in ms, as `/workers/stats` shows them.
    pub(super) async fn job_time(&self) -> Result<(u64, f64)> {
        let client = Client::new(&Target::Socket(self.socket()))?;
        let stats: WorkersStats = client.get("/api/v1/workers/stats").await?;
        let jobs: u64 = stats.workers.iter().map(|worker| worker.jobs_processed).sum();
        let ms: f64 = stats.workers.iter().map(|worker| worker.avg_process_time * real(worker.jobs_processed)).sum();
        Ok((jobs, ratio(ms, real(jobs))))
    }

    /// What it has used so far.
    pub(super) fn used(&self) -> Result<Used> {
        let gone = || Fault::unknown("argon run has ended");
        let now = cpu(self.rig);
        let [mongod_cpu_s, store_cpu_s, own_cpu_s] = [0, 1, 2].map(|i| now[i] - self.cpu_before[i]);
        let engine_cpu_s = self.engine.cpu_seconds().ok_or_else(gone)?;
        let others_cores = self.machine.others_since(engine_cpu_s + mongod_cpu_s + store_cpu_s + own_cpu_s);
        let peak_rss_bytes = self.engine.peak_rss().ok_or_else(gone)?;
        Ok(Used { engine_cpu_s, mongod_cpu_s, store_cpu_s, own_cpu_s, others_cores, peak_rss_bytes })
    }

    /// Its control socket.
    pub(super) fn socket(&self) -> std::path::PathBuf {
        self.engine.dir().join(CONTROL_SOCKET)
    }

    /// Its memory now, in bytes.
    pub(super) fn rss(&self) -> Result<u64> {
        self.engine.rss().ok_or_else(|| Fault::unknown("argon run has ended"))
    }

    /// Ends the engine, verifies the branch; returns how long that took.
    pub(super) async fn finish(mut self) -> Result<Duration> {
        self.rig.stop_engine(&mut self.engine).await?;
        self.rig.verify(&self.line).await
    }

    async fn look_at_capture(&mut self) -> Result<()> {
        let seen = self.watch.capture().await?;
        let now = self.spawned.elapsed();
        if seen.owner.is_some() {
            self.owned.get_or_insert(now);
        }
        if seen.has_checkpoint() {
            self.first_checkpoint.get_or_insert(now);
        }
        Ok(())
    }

    fn check_alive(&mut self) -> Result<()> {
        match self.engine.exited() {
            None => Ok(()),
            Some(exit) => {
                Err(Fault::unknown(format!("argon run ended with exit code {}: {}", exit.code, self.engine.log_tail(3000).trim())))
            }
        }
    }

    async fn stuck(&self, how: &str) -> Fault {
        let errors = self.watch.job_errors(&self.rig.client.database(&self.line.metadata_db)).await;
        Fault::transient(format!("argon run {how} within {STALL:?}{errors}; its log ends with: {}", self.engine.log_tail(3000).trim()))
    }
}

/// CPU seconds of mongod, the store's server and this process.
fn cpu(rig: &Rig) -> [f64; 3] {
    [rig.mongod.pid(0), rig.store_pid(), Some(std::process::id())].map(|pid| pid.and_then(cpu_seconds).unwrap_or(0.0))
}
