//! How many connections there are, of whom, and which goes when there are too many.
//!
//! Owns: the caps. Does not own: accepting and serving (`network`).
//!
//! At a cap the oldest connection that has not sent a complete request goes, so that whoever holds a thousand connections open and sends
//! nothing keeps nobody out: a client that is served sends its request at once, and is by then not the oldest of those. One that is being
//! answered is never dropped for another, nor one that has only just come: in a flood every connection would be the oldest before its request
//! is read, so accepting waits until the oldest has had its moment, and has been looked at (on a busy machine a moment may pass without that).

use std::collections::{BTreeMap, HashMap};
use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use tokio_util::sync::CancellationToken;

/// Time that every connection has for its request, whoever else is waiting. Longer: a flood is let in more slowly, cap / moment a second.
const MOMENT: Duration = Duration::from_millis(100);

/// Pause before it is seen whether the oldest has been looked at.
const SOON: Duration = Duration::from_millis(1);

/// Most connections of a listener.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Caps {
    pub total: usize,
    pub per_client: usize,
}

/// The connections of one listener.
#[derive(Debug)]
pub(super) struct Connections {
    caps: Caps,
    table: Mutex<Table>,
}

#[derive(Debug, Default)]
struct Table {
    next: u64,
    open: HashMap<u64, Open>,
    /// Connections without a complete request, in the order in which their wait began.
    waiting: BTreeMap<u64, Waiting>,
    clients: HashMap<IpAddr, usize>,
}

#[derive(Debug, Clone, Copy)]
struct Waiting {
    id: u64,
    since: Instant,
    /// What it has sent so far has been read, and is no complete request.
    looked_at: bool,
}

#[derive(Debug)]
struct Open {
    client: IpAddr,
    /// Its key in `waiting`.
    waits: Option<u64>,
    gone: CancellationToken,
}

/// What became of somebody who knocked.
#[derive(Debug)]
pub(super) enum Admission {
    /// Come in; another had to go for it where `dropped`.
    In { ticket: Ticket, dropped: bool },
    /// Whoever would have to go has only just come: ask again after this time.
    Later(Duration),
    /// Everybody is being answered at this moment.
    Full,
}

/// A place; given back on drop.
#[derive(Debug)]
pub(super) struct Ticket {
    connections: Arc<Connections>,
    id: u64,
    /// The place is needed: close at once.
    pub(super) gone: CancellationToken,
}

impl Connections {
    pub(super) fn new(caps: Caps) -> Arc<Self> {
        Arc::new(Self { caps, table: Mutex::default() })
    }

    /// A place for a client.
    pub(super) fn admit(self: &Arc<Self>, peer: IpAddr, now: Instant) -> Admission {
        let client = client_of(peer);
        let mut table = self.table.lock();
        let of_client = table.clients.get(&client).copied().unwrap_or_default();
        let oldest = if of_client >= self.caps.per_client {
            Some(table.oldest(|open| open.client == client))
        } else if table.open.len() >= self.caps.total {
            Some(table.oldest(|_| true))
        } else {
            None
        };
        let dropped = match oldest {
            None => false,
            Some(None) => return Admission::Full,
            Some(Some(oldest)) => {
                let left = MOMENT.saturating_sub(now.saturating_duration_since(oldest.since));
                if !left.is_zero() || !oldest.looked_at {
                    return Admission::Later(left.max(SOON));
                }
                if let Some(open) = table.remove(oldest.id) {
                    open.gone.cancel();
                }
                true
            }
        };
        let gone = CancellationToken::new();
        let id = table.add(client, gone.clone(), now);
        Admission::In { ticket: Ticket { connections: self.clone(), id, gone }, dropped }
    }

    /// Open now.
    pub(super) fn open(&self) -> usize {
        self.table.lock().open.len()
    }
}

impl Table {
    fn add(&mut self, client: IpAddr, gone: CancellationToken, now: Instant) -> u64 {
        let id = self.number();
        *self.clients.entry(client).or_default() += 1;
        self.waiting.insert(id, Waiting { id, since: now, looked_at: false });
        self.open.insert(id, Open { client, waits: Some(id), gone });
        id
    }

    fn number(&mut self) -> u64 {
        self.next += 1;
        self.next
    }

    fn oldest(&self, of: impl Fn(&Open) -> bool) -> Option<Waiting> {
        self.waiting.values().copied().find(|one| self.open.get(&one.id).is_some_and(&of))
    }

    fn remove(&mut self, id: u64) -> Option<Open> {
        let open = self.open.remove(&id)?;
        if let Some(place) = open.waits {
            self.waiting.remove(&place);
        }
        if let Some(n) = self.clients.get_mut(&open.client) {
            *n -= 1;
            if *n == 0 {
                self.clients.remove(&open.client);
            }
        }
        Some(open)
    }
}

impl Ticket {
    /// What it had sent has been read for the first time.
    pub(super) fn looked_at(&self) {
        let mut table = self.connections.table.lock();
        if let Some(place) = table.open.get(&self.id).and_then(|open| open.waits)
            && let Some(waiting) = table.waiting.get_mut(&place)
        {
            waiting.looked_at = true;
        }
    }

    /// It has sent a complete request, which is being answered.
    pub(super) fn busy(&self) {
        let mut table = self.connections.table.lock();
        if let Some(place) = table.open.get_mut(&self.id).and_then(|open| open.waits.take()) {
            table.waiting.remove(&place);
        }
    }

    /// It has its answer.
    pub(super) fn waiting(&self, now: Instant) {
        let mut table = self.connections.table.lock();
        let place = table.number();
        let Some(open) = table.open.get_mut(&self.id) else { return };
        if open.waits.is_none() {
            open.waits = Some(place);
            table.waiting.insert(place, Waiting { id: self.id, since: now, looked_at: true });
        }
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        self.connections.table.lock().remove(self.id);
    }
}

/// Who counts as one client: an address of IPv4, a network of IPv6 (whoever has one address there has 2^64).
pub(super) fn client_of(peer: IpAddr) -> IpAddr {
    match peer.to_canonical() {
        IpAddr::V4(v4) => v4.into(),
        IpAddr::V6(v6) => {
            let mut segments = v6.segments();
            segments[4..].fill(0);
            std::net::Ipv6Addr::from(segments).into()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::runtime::clock;

    fn ip(n: u8) -> IpAddr {
        [10, 0, 0, n].into()
    }

    /// Somebody who comes after everybody before has had his moment.
    fn enter(connections: &Arc<Connections>, client: u8) -> Option<(Ticket, bool)> {
        match connections.admit(ip(client), clock::now() + MOMENT) {
            Admission::In { ticket, dropped } => {
                connections.table.lock().waiting.values_mut().for_each(|w| (w.since, w.looked_at) = (clock::now(), true));
                Some((ticket, dropped))
            }
            Admission::Full => None,
            Admission::Later(wait) => panic!("{wait:?}"),
        }
    }

    #[test]
    fn whoever_has_only_just_come_does_not_go() {
        let connections = Connections::new(Caps { total: 1, per_client: 1 });
        let now = clock::now();
        let Admission::In { ticket: first, .. } = connections.admit(ip(1), now) else { panic!() };
        let soon = Duration::from_millis(20);
        assert!(matches!(connections.admit(ip(2), now + soon), Admission::Later(wait) if wait == MOMENT - soon));
        assert!(matches!(connections.admit(ip(2), now + MOMENT), Admission::Later(SOON)), "nobody has looked at it");
        assert!(!first.gone.is_cancelled());
        first.looked_at();
        assert!(matches!(connections.admit(ip(2), now + MOMENT), Admission::In { dropped: true, .. }));
        assert!(first.gone.is_cancelled());
    }

    #[test]
    fn at_the_cap_of_a_client_its_own_oldest_idle_connection_goes() {
        let connections = Connections::new(Caps { total: 10, per_client: 2 });
        let (other, _) = enter(&connections, 2).unwrap();
        let (first, _) = enter(&connections, 1).unwrap();
        let (second, dropped) = enter(&connections, 1).unwrap();
        assert!(!dropped);
        let (third, dropped) = enter(&connections, 1).unwrap();
        assert!(dropped && first.gone.is_cancelled() && !second.gone.is_cancelled() && !other.gone.is_cancelled());
        drop(first); // it was counted out already
        second.busy();
        third.busy();
        assert!(enter(&connections, 1).is_none(), "whoever is being answered stays");
        third.waiting(clock::now());
        let (_fourth, dropped) = enter(&connections, 1).unwrap();
        assert!(dropped && third.gone.is_cancelled());
        assert_eq!(connections.open(), 3);
    }

    #[test]
    fn at_the_total_cap_the_oldest_of_all_goes_and_an_answered_one_counts_as_young() {
        let connections = Connections::new(Caps { total: 3, per_client: 3 });
        let all: Vec<_> = (1..=3).map(|n| enter(&connections, n).unwrap().0).collect();
        all[0].busy();
        all[0].waiting(clock::now());
        let (_new, dropped) = enter(&connections, 9).unwrap();
        assert!(dropped && all[1].gone.is_cancelled() && !all[0].gone.is_cancelled());
        drop(all);
        assert_eq!(connections.open(), 1);
        assert!(connections.table.lock().waiting.len() == 1 && connections.table.lock().clients.len() == 1);
    }

    #[test]
    fn a_network_of_ipv6_is_one_client() {
        let client = |text: &str| client_of(text.parse().unwrap());
        assert_eq!(client("2001:db8:1:2::1"), client("2001:db8:1:2:ffff::9"));
        assert_ne!(client("2001:db8:1:2::1"), client("2001:db8:1:3::1"));
        assert_eq!(client("::ffff:10.0.0.1"), ip(1));
    }
}
