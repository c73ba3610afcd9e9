//! A token bucket per client. Pure: time is passed in.
//!
//! Owns: how many requests a client may make. Does not own: who is a client (`network`), what is answered (429 with Retry-After).
//!
//! Our own and not the governor crate: one bucket is two numbers, the table has a bound and forgets clients that are at rest, and both can be
//! read in a minute; governor brings a concurrent map, a clock of its own and a dozen crates for it.

use std::collections::HashMap;
use std::hash::Hash;
use std::time::{Duration, Instant};

/// Clients remembered. More would be memory given to whoever sends from many addresses.
const MOST: usize = 4_096;

/// Buckets that fill at one rate.
#[derive(Debug)]
pub(super) struct Buckets<K> {
    rate: f64,
    burst: f64,
    clients: HashMap<K, Bucket>,
}

#[derive(Debug, Clone, Copy)]
struct Bucket {
    tokens: f64,
    at: Instant,
}

impl<K: Eq + Hash + Clone> Buckets<K> {
    /// `rate` requests a second, after at most `burst` at once.
    pub(super) fn new(rate: f64, burst: f64) -> Self {
        Self { rate, burst: burst.max(1.0), clients: HashMap::new() }
    }

    /// Takes one request from the client's bucket, or says how long until there is one.
    pub(super) fn take(&mut self, client: &K, now: Instant) -> Result<(), Duration> {
        if !self.clients.contains_key(client) {
            self.make_room(now);
            self.clients.insert(client.clone(), Bucket { tokens: self.burst, at: now });
        }
        let (rate, burst) = (self.rate, self.burst);
        let Some(bucket) = self.clients.get_mut(client) else { return Ok(()) };
        bucket.tokens = filled(*bucket, rate, burst, now);
        bucket.at = now;
        if bucket.tokens >= 1.0 {
            bucket.tokens -= 1.0;
            return Ok(());
        }
        Err(Duration::from_secs_f64((1.0 - bucket.tokens) / rate))
    }

    /// Forgets those whose bucket is full again, which changes nothing for them; if all are busy, the one that has been away longest.
    fn make_room(&mut self, now: Instant) {
        if self.clients.len() < MOST {
            return;
        }
        let (rate, burst) = (self.rate, self.burst);
        self.clients.retain(|_, bucket| filled(*bucket, rate, burst, now) < burst);
        if self.clients.len() >= MOST
            && let Some(oldest) = self.clients.iter().min_by_key(|(_, bucket)| bucket.at).map(|(client, _)| client.clone())
        {
            self.clients.remove(&oldest);
        }
    }
}

fn filled(bucket: Bucket, rate: f64, burst: f64, now: Instant) -> f64 {
    (bucket.tokens + now.saturating_duration_since(bucket.at).as_secs_f64() * rate).min(burst)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::runtime::clock;

    #[test]
    fn a_burst_passes_then_the_rate_and_the_wait_is_said() {
        let (mut buckets, now) = (Buckets::new(10.0, 20.0), clock::now());
        assert!((0..20).all(|_| buckets.take(&"a", now).is_ok()));
        let wait = buckets.take(&"a", now).unwrap_err();
        assert_eq!(wait.as_millis(), 100);
        assert!(buckets.take(&"b", now).is_ok(), "another client has a bucket of its own");
        assert!(buckets.take(&"a", now + wait + Duration::from_millis(1)).is_ok());
        assert_eq!(
            (0..1000).filter(|_| buckets.take(&"a", now + Duration::from_secs(60)).is_ok()).count(),
            20,
            "it never holds more than a burst"
        );
    }

    #[test]
    fn the_table_is_bounded_and_a_busy_client_is_not_forgotten_for_those_at_rest() {
        let (mut buckets, now) = (Buckets::new(1.0, 5.0), clock::now());
        for client in 0..MOST as u64 * 3 {
            let _ = buckets.take(&client, now + Duration::from_millis(client));
            assert!(buckets.clients.len() <= MOST);
        }
        let mut buckets = Buckets::new(1.0, 5.0);
        for client in 0..MOST {
            buckets.take(&client, now).unwrap();
        }
        let later = now + Duration::from_secs(2);
        for _ in 0..5 {
            let _ = buckets.take(&7, later);
        }
        buckets.take(&usize::MAX, later).unwrap();
        assert!(buckets.take(&7, later).is_err(), "its bucket is still empty");
    }
}
