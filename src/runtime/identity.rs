//! Who this process is: a fresh id for every start, and what another engine on the same host needs to see that it is dead.
//!
//! SUBTLE: a pid means something only within one boot and one pid namespace; both are part of `boot`, so that two containers
//! with the pid 1 are never taken for each other.

use std::sync::OnceLock;

use rustix::process::{Pid, test_kill_process};

use crate::ledger::EngineBeat;

use super::random;

/// Names this process for as long as it runs: what MongoDB shows of its connections, and the first part of its engine ids.
pub fn process_tag() -> &'static str {
    static TAG: OnceLock<String> = OnceLock::new();
    TAG.get_or_init(|| format!("{}-{}-{}", host(), std::process::id(), &random::id()[..8]))
}

/// The tag of the process that an engine ran in.
pub fn tag_of(engine: &str) -> Option<&str> {
    engine.rsplit_once('-').map(|(tag, _)| tag).filter(|tag| !tag.is_empty())
}

/// The heartbeat document of a new engine in this process.
pub fn this_process() -> EngineBeat {
    let id = format!("{}-{}", process_tag(), &random::id()[..4]);
    EngineBeat { id, boot: boot(), pid: std::process::id(), host: host(), beat_ms: 0, status: None }
}

fn host() -> String {
    rustix::system::uname().nodename().to_string_lossy().into_owned()
}

fn boot() -> String {
    let id = std::fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default();
    let namespace = std::fs::read_link("/proc/self/ns/pid").map(|p| p.to_string_lossy().into_owned()).unwrap_or_default();
    boot_of(&id, &namespace)
}

/// Empty, so that nobody is taken for a neighbour, where either cannot be read: a namespace alone has the same name on every machine.
fn boot_of(id: &str, namespace: &str) -> String {
    match (id.trim(), namespace) {
        ("", _) | (_, "") => String::new(),
        (id, namespace) => format!("{id} {namespace}"),
    }
}

/// True only when `other` ran here, in this boot and namespace, and its process is gone.
pub fn is_known_dead(me: &EngineBeat, other: &EngineBeat) -> bool {
    if me.id == other.id || me.host != other.host || me.boot != other.boot || me.boot.trim().is_empty() {
        return false;
    }
    if other.pid == me.pid {
        return true; // one process has one id: an older one with our pid has ended
    }
    let Some(pid) = i32::try_from(other.pid).ok().and_then(Pid::from_raw) else { return false };
    test_kill_process(pid) == Err(rustix::io::Errno::SRCH)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_cannot_read_the_boot_id_knows_nobody_dead() {
        assert_eq!(boot_of("b1\n", "pid:[4026531836]"), "b1 pid:[4026531836]");
        for (id, namespace) in [("", "pid:[4026531836]"), (" \n", "pid:[4026531836]"), ("b1", "")] {
            let me = EngineBeat { boot: boot_of(id, namespace), ..this_process() };
            let other = EngineBeat { pid: i32::MAX as u32, ..me.clone() };
            assert!(!is_known_dead(&me, &EngineBeat { id: "other".into(), ..other }), "{id:?} {namespace:?}");
        }
    }

    #[test]
    fn engines_of_a_process_have_ids_of_their_own_and_one_tag() {
        let (first, second) = (this_process(), this_process());
        assert_ne!(first.id, second.id);
        assert_eq!([tag_of(&first.id), tag_of(&second.id)], [Some(process_tag()); 2]);
    }

    #[test]
    fn a_dead_pid_counts_only_on_the_same_host_boot_and_namespace() {
        let me = this_process();
        let mut child = std::process::Command::new("true").spawn().unwrap();
        let pid = child.id();
        child.wait().unwrap();
        let dead = EngineBeat { id: "other".into(), pid, ..me.clone() };
        assert!(is_known_dead(&me, &dead));
        assert!(!is_known_dead(&me, &EngineBeat { boot: "elsewhere".into(), ..dead.clone() }));
        assert!(!is_known_dead(&me, &EngineBeat { host: "elsewhere".into(), ..dead.clone() }));
        assert!(!is_known_dead(&me, &EngineBeat { pid: 1, ..dead }));
        assert!(!is_known_dead(&me, &me.clone()));
    }
}
