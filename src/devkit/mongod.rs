//! Owns: real MongoDB servers for demo, tests and benches: one standalone, or a replica set of one or three members on loopback ports.
//! Does not own where the binary comes from ([`super::binaries`]) or that it dies with its owner ([`super::process`]).

use std::fs;
use std::net::{Ipv4Addr, SocketAddr};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use futures_util::future::join_all;
use mongodb::bson::{Document, doc};
use mongodb::options::ClientOptions;
use mongodb::{Client, Database};
use parking_lot::Mutex;

use super::process::{Launch, Process, Workdir};
use super::tls::Tls;
use super::{binaries, ports};
use crate::fault::{Fault, Result};
use crate::runtime::{clock, random};

const SET: &str = "argon-devkit";
/// A busy machine of two cores, everything on it, needs about 2 s; six servers starting at once have been seen to need 15 s.
const START_LIMIT: Duration = Duration::from_secs(60);
const POLL: Duration = Duration::from_millis(10);

/// Root user of servers that ask who is there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Auth {
    /// Name; letters and digits, since it goes into the URI as it is.
    pub user: String,
    /// Password; letters and digits too.
    pub password: String,
}

/// Which servers to start.
#[derive(Debug, Clone)]
pub struct MongodOptions {
    /// 1 or 3.
    pub members: usize,
    /// No replica set: one server without an oplog (a source that Argon refuses).
    pub standalone: bool,
    /// `--oplogSize` in MB; 16 rolls over in under a minute of writes.
    pub oplog_mb: u32,
    /// `--wiredTigerCacheSizeGB`, at least 0.25.
    pub cache_gb: f32,
    /// `--setParameter` pairs, on top of enableTestCommands=1 and minSnapshotHistoryWindowInSeconds=3600, which they may override.
    pub params: Vec<(String, String)>,
    /// Keyfile and a root user.
    pub auth: Option<Auth>,
    /// TLS and nothing else, also between the members.
    pub tls: Option<Tls>,
}

impl Default for MongodOptions {
    fn default() -> Self {
        Self { members: 1, standalone: false, oplog_mb: 512, cache_gb: 0.25, params: Vec::new(), auth: None, tls: None }
    }
}

impl MongodOptions {
    /// A replica set of three, which elects anew within about 4 s.
    pub fn three() -> Self {
        Self { members: 3, ..Self::default() }
    }

    /// One server that is no replica set.
    pub fn alone() -> Self {
        Self { standalone: true, ..Self::default() }
    }

    fn check(&self) -> Result<()> {
        let count_fits = matches!((self.standalone, self.members), (true, 1) | (false, 1 | 3));
        if !count_fits {
            return Err(Fault::config(format!("a mongod of the devkit has 1 or 3 members (standalone: 1), not {}", self.members)));
        }
        let plain = |text: &str| !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_alphanumeric());
        if self.auth.as_ref().is_some_and(|auth| !plain(&auth.user) || !plain(&auth.password)) {
            return Err(Fault::config("user and password of a devkit mongod are letters and digits"));
        }
        Ok(())
    }

    fn params(&self) -> Vec<(String, String)> {
        let defaults = [
            ("enableTestCommands", "1"),
            ("minSnapshotHistoryWindowInSeconds", "3600"),
            ("diagnosticDataCollectionEnabled", "false"), // a file write each second that nobody reads
        ];
        let kept = defaults.iter().filter(|(name, _)| self.params.iter().all(|(own, _)| own != name));
        kept.map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).chain(self.params.iter().cloned()).collect()
    }

    fn args(&self, port: u16, dbpath: &str, keyfile: &str) -> Vec<String> {
        let mut args: Vec<String> = ["--bind_ip", "127.0.0.1", "--nounixsocket", "--port"].map(str::to_owned).to_vec();
        args.extend([port.to_string(), "--dbpath".to_owned(), dbpath.to_owned()]);
        args.extend(["--wiredTigerCacheSizeGB".to_owned(), self.cache_gb.to_string()]);
        if !self.standalone {
            args.extend(["--replSet".to_owned(), SET.to_owned(), "--oplogSize".to_owned(), self.oplog_mb.to_string()]);
        }
        match (&self.auth, self.standalone) {
            (Some(_), true) => args.push("--auth".to_owned()),
            (Some(_), false) => args.extend(["--keyFile".to_owned(), keyfile.to_owned()]),
            (None, _) => {}
        }
        args.extend(self.tls.iter().flat_map(Tls::mongod_args));
        args.extend(self.params().into_iter().flat_map(|(name, value)| ["--setParameter".to_owned(), format!("{name}={value}")]));
        args
    }
}

#[derive(Debug)]
struct Member {
    port: u16,
    starts: u32,
    process: Option<Process>,
}

/// Running MongoDB servers. Dropping kills them and removes their data.
#[derive(Debug)]
pub struct Mongod {
    options: MongodOptions,
    binary: PathBuf,
    members: Vec<Mutex<Member>>,
    dir: Workdir, // after the members: their data goes when they are gone
}

impl Mongod {
    /// Starts the servers and, unless standalone, initiates the set; returns when there is a primary and all others are secondaries.
    pub async fn start(options: MongodOptions) -> Result<Self> {
        options.check()?;
        let binary = tokio::task::spawn_blocking(binaries::mongod).await.map_err(|error| Fault::unknown(error.to_string()))??;
        let dir = Workdir::new("mongod")?;
        let member = || Mutex::new(Member { port: 0, starts: 0, process: None });
        let members = (0..options.members).map(|_| member()).collect();
        let mongod = Self { options, binary, members, dir };
        mongod.write_keyfile()?;
        for started in join_all((0..mongod.members.len()).map(|i| mongod.start_member(i, true))).await {
            started?;
        }
        if !mongod.options.standalone {
            mongod.initiate().await?;
        }
        mongod.create_user().await?;
        Ok(mongod)
    }

    /// URI for drivers: all members and the set's name, with user, password and the files of TLS if there are any.
    pub fn uri(&self) -> String {
        let hosts: Vec<String> = (0..self.members.len()).map(|i| self.host(i)).collect();
        let tail = if self.options.standalone { "directConnection=true".to_owned() } else { format!("replicaSet={SET}") };
        self.uri_of(&hosts.join(","), &tail, true)
    }

    /// URI of one member alone.
    pub fn member_uri(&self, i: usize) -> String {
        self.uri_of(&self.host(i), "directConnection=true", true)
    }

    /// `127.0.0.1:PORT` of a member.
    pub fn host(&self, i: usize) -> String {
        format!("127.0.0.1:{}", self.members[i].lock().port)
    }

    /// The address of a member, for a [`super::Proxy`] in front of it.
    pub fn address(&self, i: usize) -> SocketAddr {
        (Ipv4Addr::LOCALHOST, self.members[i].lock().port).into()
    }

    /// How many members there are.
    pub fn members(&self) -> usize {
        self.members.len()
    }

    /// The directory with data and logs.
    pub fn dir(&self) -> &Path {
        self.dir.path()
    }

    /// Process id of a member that runs.
    pub fn pid(&self, i: usize) -> Option<u32> {
        self.members[i].lock().process.as_ref().map(Process::pid)
    }

    /// The end of a member's log.
    pub fn log_tail(&self, i: usize, bytes: u64) -> String {
        self.members[i].lock().process.as_ref().map(|process| process.log_tail(bytes)).unwrap_or_default()
    }

    /// A new client of the set.
    pub async fn client(&self) -> Result<Client> {
        connect(&self.uri()).await
    }

    /// A new client of one member alone.
    pub async fn member_client(&self, i: usize) -> Result<Client> {
        connect(&self.member_uri(i)).await
    }

    /// kill -9 of a member; its data stay.
    pub fn kill(&self, i: usize) {
        if let Some(mut process) = self.members[i].lock().process.take() {
            process.kill();
        }
    }

    /// Starts a member again on its port and data, killing it first if it runs. Returns when it accepts connections, which is before it is primary or secondary.
    pub async fn restart(&self, i: usize) -> Result<()> {
        self.kill(i);
        self.start_member(i, false).await
    }

    /// Freezes a member (SIGSTOP).
    pub fn pause(&self, i: usize) -> Result<()> {
        self.with_process(i, Process::pause)
    }

    /// Lets a frozen member go on.
    pub fn resume(&self, i: usize) -> Result<()> {
        self.with_process(i, Process::resume)
    }

    /// Asks the primary to step down for `secs`. A set of one has no primary for that time.
    pub async fn step_down(&self, secs: u32) -> Result<()> {
        let primary = self.wait_primary(START_LIMIT).await?;
        let admin = self.member_client(primary).await?.database("admin");
        let command = doc! { "replSetStepDown": i64::from(secs), "secondaryCatchUpPeriodSecs": i64::from(secs.min(1)), "force": true };
        run(&admin, command).await.map(drop)
    }

    /// Which member says that it is primary, if one does.
    pub async fn primary_index(&self) -> Option<usize> {
        self.hellos().await.iter().position(|hello| flag(hello, "isWritablePrimary"))
    }

    /// Waits for a primary.
    pub async fn wait_primary(&self, limit: Duration) -> Result<usize> {
        let deadline = clock::now() + limit;
        loop {
            if let Some(i) = self.primary_index().await {
                return Ok(i);
            }
            if clock::now() >= deadline {
                return Err(self.late("there is no primary"));
            }
            tokio::time::sleep(POLL).await;
        }
    }

    fn uri_of(&self, hosts: &str, tail: &str, with_user: bool) -> String {
        let tls = self.options.tls.as_ref().map(Tls::uri_options).unwrap_or_default();
        match self.options.auth.as_ref().filter(|_| with_user) {
            Some(Auth { user, password }) => format!("mongodb://{user}:{password}@{hosts}/?authSource=admin&{tail}{tls}"),
            None => format!("mongodb://{hosts}/?{tail}{tls}"),
        }
    }

    fn late(&self, what: &str) -> Fault {
        let logs: Vec<String> = (0..self.members.len()).map(|i| format!("member {i}: {}", self.log_tail(i, 800).trim())).collect();
        Fault::transient(format!("mongod: {what} in time; {}", logs.join("; ")))
    }

    fn with_process(&self, i: usize, act: impl FnOnce(&mut Process) -> Result<()>) -> Result<()> {
        let mut member = self.members[i].lock();
        act(member.process.as_mut().ok_or_else(|| Fault::missing(format!("member {i} of the devkit's mongod is not running")))?)
    }

    fn keyfile(&self) -> PathBuf {
        self.dir.path().join("keyfile")
    }

    fn write_keyfile(&self) -> Result<()> {
        let fault = |error: std::io::Error| Fault::transient(format!("cannot write {}: {error}", self.keyfile().display()));
        fs::write(self.keyfile(), random::id().replace('-', "")).map_err(fault)?;
        fs::set_permissions(self.keyfile(), fs::Permissions::from_mode(0o600)).map_err(fault)
    }

    /// Starts a member and waits until it listens; `first`: on a port to be found.
    async fn start_member(&self, i: usize, first: bool) -> Result<()> {
        let deadline = clock::now() + START_LIMIT;
        let dbpath = self.dir.path().join(format!("member{i}"));
        fs::create_dir_all(&dbpath).map_err(|error| Fault::transient(format!("cannot make {}: {error}", dbpath.display())))?;
        loop {
            let (port, log) = {
                let mut member = self.members[i].lock();
                if first {
                    [member.port] = ports::free()?;
                }
                member.starts += 1;
                (member.port, self.dir.path().join(format!("member{i}-{}.log", member.starts)))
            };
            let args = self.options.args(port, &dbpath.to_string_lossy(), &self.keyfile().to_string_lossy());
            let mut process = Process::start("mongod", &Launch::new(&self.binary, args, log))?;
            let listens = listens(&mut process, deadline).await;
            match listens {
                Ok(()) => {
                    self.members[i].lock().process = Some(process);
                    return Ok(());
                }
                Err(_) if ports::taken(&process.log_tail(20_000)) && clock::now() < deadline => continue,
                Err(fault) => return Err(fault),
            }
        }
    }

    async fn initiate(&self) -> Result<()> {
        let hosts = (0..self.members.len()).map(|i| doc! { "_id": i as i64, "host": self.host(i) });
        let config = doc! {
            "_id": SET,
            "members": hosts.collect::<Vec<_>>(),
            "settings": { "electionTimeoutMillis": 2000, "heartbeatIntervalMillis": 500 },
        };
        let admin = connect(&self.uri_of(&self.host(0), "directConnection=true", false)).await?.database("admin");
        run(&admin, doc! { "replSetInitiate": config }).await?;
        let deadline = clock::now() + START_LIMIT;
        loop {
            let hellos = self.hellos().await;
            let settled = hellos.iter().all(|hello| flag(hello, "isWritablePrimary") || flag(hello, "secondary"));
            if settled && hellos.iter().any(|hello| flag(hello, "isWritablePrimary")) {
                return Ok(());
            }
            if clock::now() >= deadline {
                return Err(self.late("the replica set was not ready"));
            }
            tokio::time::sleep(POLL).await;
        }
    }

    /// The first user may be made from the same machine without authentication.
    async fn create_user(&self) -> Result<()> {
        let Some(Auth { user, password }) = &self.options.auth else { return Ok(()) };
        let primary = if self.options.standalone { 0 } else { self.wait_primary(START_LIMIT).await? };
        let admin = connect(&self.uri_of(&self.host(primary), "directConnection=true", false)).await?.database("admin");
        let command = doc! { "createUser": user, "pwd": password, "roles": ["root"], "writeConcern": { "w": "majority" } };
        let command = if self.options.standalone { without(command, "writeConcern") } else { command };
        run(&admin, command).await.map(drop)
    }

    /// What every member says of itself; a member that does not answer within about a second says nothing.
    async fn hellos(&self) -> Vec<Document> {
        let ask = |i: usize| {
            let uri = self.uri_of(&self.host(i), "directConnection=true", false);
            // Spawned, because dropping a driver's future midway leaves the driver in an odd state.
            tokio::spawn(async move { hello(&uri).await })
        };
        let asked = join_all((0..self.members.len()).map(|i| tokio::time::timeout(Duration::from_secs(2), ask(i)))).await;
        asked.into_iter().map(|answer| answer.ok().and_then(|joined| joined.ok()).flatten().unwrap_or_default()).collect()
    }
}

fn flag(hello: &Document, name: &str) -> bool {
    hello.get_bool(name).unwrap_or(false)
}

fn without(mut command: Document, name: &str) -> Document {
    command.remove(name);
    command
}

/// Waits until the server says that it accepts connections. Its own log, not a connection: another server may have the port.
async fn listens(process: &mut Process, deadline: std::time::Instant) -> Result<()> {
    loop {
        let ended = process.exited().is_some();
        if process.log_tail(1 << 20).contains("\"msg\":\"Waiting for connections\"") && !ended {
            return Ok(());
        }
        if ended {
            return Err(process.failed("did not start"));
        }
        if clock::now() >= deadline {
            return Err(process.failed("did not accept connections in time"));
        }
        tokio::time::sleep(POLL).await;
    }
}

async fn hello(uri: &str) -> Option<Document> {
    let mut options = ClientOptions::parse(uri).await.ok()?;
    options.server_selection_timeout = Some(Duration::from_secs(1));
    options.connect_timeout = Some(Duration::from_secs(1));
    let admin = Client::with_options(options).ok()?.database("admin");
    admin.run_command(doc! { "hello": 1 }).await.ok()
}

async fn connect(uri: &str) -> Result<Client> {
    let mut options = ClientOptions::parse(uri).await.map_err(|error| Fault::config(error.to_string()))?;
    options.server_selection_timeout = Some(Duration::from_secs(20));
    Client::with_options(options).map_err(|error| Fault::config(error.to_string()))
}

async fn run(db: &Database, command: Document) -> Result<Document> {
    let name = command.keys().next().cloned().unwrap_or_default();
    db.run_command(command).await.map_err(|error| Fault::unknown(format!("{name} on a devkit mongod: {error}")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn own_parameters_override_the_defaults() {
        let own =
            vec![("minSnapshotHistoryWindowInSeconds".to_owned(), "5".to_owned()), ("ttlMonitorEnabled".to_owned(), "false".to_owned())];
        let params = MongodOptions { params: own, ..Default::default() }.params();
        let values: Vec<&str> = params.iter().filter(|(name, _)| name.starts_with("minSnap")).map(|(_, value)| value.as_str()).collect();
        assert_eq!(values, ["5"]);
        assert!(params.contains(&("enableTestCommands".to_owned(), "1".to_owned())));
    }

    #[test]
    fn a_set_has_one_or_three_members_and_a_standalone_one() {
        for (members, standalone, fine) in
            [(1, false, true), (3, false, true), (2, false, false), (0, false, false), (1, true, true), (3, true, false)]
        {
            assert_eq!(MongodOptions { members, standalone, ..Default::default() }.check().is_ok(), fine, "{members} {standalone}");
        }
    }

    #[test]
    fn every_server_listens_on_loopback_only_and_a_standalone_has_no_oplog() {
        for options in [MongodOptions::default(), MongodOptions::three(), MongodOptions::alone()] {
            let args = options.args(1, "d", "k").join(" ");
            assert!(args.contains("--bind_ip 127.0.0.1") && args.contains("--nounixsocket"), "{args}");
            assert_eq!(args.contains("--replSet"), !options.standalone);
        }
    }
}
