//! The interface over twins in a process of its own: this test binary, started again.

use std::io::{BufRead, BufReader};
use std::net::SocketAddr;
use std::process::{Child, Command, Stdio};

use crate::world::World;

/// Not a test: what the tests below start as a process, and what the interface is tried by hand with.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "serves until it is killed"]
async fn serve() {
    let token = std::env::var("ARGON_TEST_TOKEN").ok();
    let world = World::with(|settings| settings.api_token = token.as_deref().map(Into::into)).await;
    println!("serving {} {} {}", world.addr(), world.metrics_addr(), world.listeners.control().unwrap().display());
    std::future::pending::<()>().await;
}

/// The interface in a process of its own.
pub(crate) struct Served {
    child: Child,
    #[allow(dead_code)]
    pub(crate) addr: SocketAddr,
    #[allow(dead_code)]
    pub(crate) metrics: SocketAddr,
    #[allow(dead_code)]
    pub(crate) socket: String,
}

impl Served {
    pub(crate) fn start() -> Self {
        let mut command = Command::new(std::env::current_exe().unwrap());
        command.args(["--exact", "served::serve", "--ignored", "--nocapture"]);
        let mut child = command.stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap();
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let line = lines.find_map(|l| l.unwrap().split_once("serving ").map(|(_, rest)| rest.to_owned())).expect("it serves");
        std::thread::spawn(move || lines.count()); // whatever else it prints must not block it
        let mut words = line.split(' ');
        let mut word = || words.next().unwrap().to_owned();
        Self { child, addr: word().parse().unwrap(), metrics: word().parse().unwrap(), socket: word() }
    }

    pub(crate) fn is_alive(&mut self) -> bool {
        self.child.try_wait().unwrap().is_none()
    }

    #[allow(dead_code)] // of the hostile tests
    pub(crate) fn rss(&self) -> u64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.child.id())).unwrap();
        let line = status.lines().find_map(|l| l.strip_prefix("VmRSS:")).unwrap();
        line.trim().trim_end_matches(" kB").parse::<u64>().unwrap() * 1024
    }
}

impl Drop for Served {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
