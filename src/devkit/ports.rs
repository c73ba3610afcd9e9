//! Owns: ports for servers on the loopback interface. Does not own the servers.
//!
//! A port that was free when asked may be taken when the server binds it, so whoever starts a server tries again with another one
//! when its log says that the address is in use.

use std::net::{Ipv4Addr, TcpListener};

use crate::fault::{Fault, Result};
use crate::runtime::random;

/// Below Linux's range of ports for outgoing connections (32768 and up): otherwise any client on this machine could take the port
/// of a server that is being restarted.
const FIRST: u16 = 15_000;
const COUNT: u16 = 17_000;

/// `N` different ports that are free on 127.0.0.1 now.
pub fn free<const N: usize>() -> Result<[u16; N]> {
    let mut held = Vec::with_capacity(N); // all held until all are found, so that they differ
    for _ in 0..10_000 {
        if held.len() == N {
            break;
        }
        #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)] // a fraction of COUNT fits
        let port = FIRST + (random::unit() * f64::from(COUNT)) as u16;
        if let Ok(listener) = TcpListener::bind((Ipv4Addr::LOCALHOST, port)) {
            held.push((port, listener));
        }
    }
    let ports: Vec<u16> = held.iter().map(|(port, _)| *port).collect();
    ports.try_into().map_err(|_| Fault::transient(format!("no {N} free ports on 127.0.0.1 between {FIRST} and {}", FIRST + COUNT)))
}

/// The log of a server says that somebody else has its port.
pub(crate) fn taken(log: &str) -> bool {
    ["Address already in use", "address already in use", "SocketException: Address in use"].iter().any(|text| log.contains(text))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ports_are_different_and_can_be_bound() {
        let ports = free::<20>().unwrap();
        let held: Vec<_> = ports.iter().map(|port| TcpListener::bind((Ipv4Addr::LOCALHOST, *port)).unwrap()).collect();
        assert_eq!(held.len(), 20);
    }

    #[test]
    fn both_servers_ways_of_saying_in_use_are_known() {
        assert!(taken(
            r#"{"msg":"Error setting up listener","attr":{"error":{"codeName":"SocketException","errmsg":"Address already in use"}}}"#
        ));
        assert!(taken("listen tcp 127.0.0.1:8333: bind: address already in use"));
        assert!(!taken("Waiting for connections"));
    }
}
