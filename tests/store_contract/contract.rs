//! What every store promises.

use argon::fault::Kind;
use argon::store::{Put, Store, probe};
use bytes::Bytes;
use futures_util::future::join_all;

use crate::{body, tag};

/// Runs every check, each under keys of its own.
pub(crate) async fn all(store: Store) {
    println!("contract: {}", store.describe());
    a_key_is_taken_once(&store).await;
    bodies_come_back_whole_and_in_ranges(&store).await;
    a_replacement_needs_the_present_version(&store).await;
    listings_are_in_order_and_paged(&store).await;
    deleting_is_idempotent_and_frees_the_key(&store).await;
    hostile_keys_are_refused_everywhere(&store).await;
    of_many_puts_at_once_one_wins(&store).await;
    of_many_replacements_at_once_one_wins(&store).await;
    a_probe_is_content(&store).await;
}

async fn put(store: &Store, key: &str, body: &Bytes) -> Put {
    store.put_new(key, body.clone(), &tag(body, key)).await.unwrap()
}

async fn a_key_is_taken_once(store: &Store) {
    let (first, second) = (body(1, 1000), body(2, 1000));
    assert_eq!(store.head("once/k").await.unwrap(), None);
    assert_eq!(store.get("once/k", None).await.unwrap_err().kind, Kind::Missing);
    assert_eq!(put(store, "once/k", &first).await, Put::Stored);
    assert_eq!(put(store, "once/k", &second).await, Put::Refused);
    assert_eq!(put(store, "once/k", &first).await, Put::Refused);
    assert_eq!(store.get("once/k", None).await.unwrap(), first);
    let info = store.head("once/k").await.unwrap().unwrap();
    assert_eq!((info.key.as_str(), info.size), ("once/k", 1000));
    assert!(info.version.is_some());
    assert_eq!(info.sha256, Some(tag(&first, "").sha256));
    assert!(info.put_id.is_none_or(|id| id == "once/k"));
}

async fn bodies_come_back_whole_and_in_ranges(store: &Store) {
    for len in [0, 1, 70_000, 5 << 20] {
        let (key, sent) = (format!("ranges/{len}"), body(len as u64 + 7, len));
        assert_eq!(put(store, &key, &sent).await, Put::Stored);
        assert_eq!(store.get(&key, None).await.unwrap(), sent, "{len} bytes");
        let size = len as u64;
        for (start, end) in [(0, 1), (0, size), (size / 2, size), (size.saturating_sub(1), size), (size / 3, size / 2)] {
            if start < end && end <= size {
                let part = store.get(&key, Some(start..end)).await.unwrap();
                assert_eq!(part, sent.slice(usize::try_from(start).unwrap()..usize::try_from(end).unwrap()), "{start}..{end} of {len}");
            }
        }
        #[allow(clippy::reversed_empty_ranges)] // an index that is damaged may ask for one
        for range in [0..size + 1, size..size + 1, size + 5..size + 9, size..size, 2..1] {
            let fault = store.get(&key, Some(range.clone())).await.unwrap_err();
            assert_eq!(fault.kind, Kind::Corrupt, "{range:?} of {len}: {fault}");
        }
    }
    assert_eq!(store.get("ranges/none", Some(0..1)).await.unwrap_err().kind, Kind::Missing);
}

async fn a_replacement_needs_the_present_version(store: &Store) {
    let (one, two, three) = (body(1, 100), body(2, 200), body(3, 300));
    assert_eq!(store.replace("replace/k", one.clone(), &tag(&one, "a"), "\"0\"").await.unwrap(), Put::Refused);
    assert_eq!(store.head("replace/k").await.unwrap(), None);
    put(store, "replace/k", &one).await;
    let first = store.head("replace/k").await.unwrap().unwrap().version.unwrap();
    assert_eq!(store.replace("replace/k", two.clone(), &tag(&two, "b"), &first).await.unwrap(), Put::Stored);
    let now = store.head("replace/k").await.unwrap().unwrap();
    assert_eq!((now.size, now.sha256), (200, Some(tag(&two, "").sha256)));
    assert_ne!(now.version.as_ref(), Some(&first));
    assert_eq!(store.replace("replace/k", three.clone(), &tag(&three, "c"), &first).await.unwrap(), Put::Refused);
    assert_eq!(store.get("replace/k", None).await.unwrap(), two);
}

/// Keys whose order shows whether a store sorts whole keys or path components.
const ODD: [&str; 17] =
    ["a-b", "a/b", "a/b-c", "a/c/d", "a/c/e", "a0", "a b", "a.b", "b+c", "b=c&d", "b%2Fc", "ä/ö", "z", "Z", "a/c-/x", "0/.hidden", "0/..x"];

async fn listings_are_in_order_and_paged(store: &Store) {
    for key in ODD {
        assert_eq!(put(store, &format!("list/{key}"), &body(3, key.len())).await, Put::Stored);
    }
    let mut whole: Vec<String> = ODD.iter().map(|key| format!("list/{key}")).collect();
    whole.sort_unstable();
    let mut by_component = whole.clone();
    by_component.sort_by(|a, b| a.split('/').cmp(b.split('/')));
    let expected = keys(store, "list/", 1000).await;
    assert!(expected == whole || expected == by_component, "{expected:?}");
    for page in [1, 2, 3, 7, expected.len()] {
        assert_eq!(keys(store, "list/", page).await, expected, "pages of {page}");
    }
    for prefix in ["list/a", "list/a/", "list/a/c", "list/b", "list/0/.", "list/none", "list/ä"] {
        let under: Vec<&String> = expected.iter().filter(|key| key.starts_with(prefix)).collect();
        assert_eq!(keys(store, prefix, 2).await.iter().collect::<Vec<_>>(), under, "{prefix}");
    }
    for (i, after) in expected.iter().enumerate() {
        let beyond = store.list("list/", Some(after), 2).await.unwrap();
        assert!(beyond.iter().map(|info| &info.key).eq(expected[i + 1..].iter().take(2)), "after {after}");
    }
    let between = store.list("list/a/", Some("list/a/bb"), 1).await.unwrap();
    assert_eq!(between.len(), 1, "`after` need not exist");
    assert!(between[0].key.starts_with("list/a/c"), "{between:?}");
    let one = store.list("list/z", None, 10).await.unwrap();
    assert_eq!((one.len(), one[0].size), (1, 1));
    for max in [0, 1001] {
        assert_eq!(store.list("list/", None, max).await.unwrap_err().kind, Kind::Rejected);
    }
}

/// All keys under a prefix, asked for in pages.
pub(crate) async fn keys(store: &Store, prefix: &str, page: usize) -> Vec<String> {
    let mut keys: Vec<String> = Vec::new();
    loop {
        let part = store.list(prefix, keys.last().map(String::as_str), page).await.unwrap();
        let last = part.len() < page;
        keys.extend(part.into_iter().map(|info| info.key));
        if last {
            return keys;
        }
    }
}

async fn deleting_is_idempotent_and_frees_the_key(store: &Store) {
    let (first, second) = (body(1, 10), body(2, 10));
    store.delete("delete/none").await.unwrap();
    put(store, "delete/k", &first).await;
    store.delete("delete/k").await.unwrap();
    store.delete("delete/k").await.unwrap();
    assert_eq!(store.get("delete/k", None).await.unwrap_err().kind, Kind::Missing);
    assert!(keys(store, "delete/", 10).await.is_empty());
    assert_eq!(put(store, "delete/k", &second).await, Put::Stored);
    assert_eq!(store.get("delete/k", None).await.unwrap(), second);
}

async fn hostile_keys_are_refused_everywhere(store: &Store) {
    let long = format!("x/{}", "a".repeat(256));
    for key in ["", "/etc/passwd", "../x", "a/../../x", "a//b", "a/", "a\0b", "a\nb", "a\\b", ".tmp/x", ".", long.as_str()] {
        let body = Bytes::from_static(b"x");
        let kinds = [
            store.put_new(key, body.clone(), &tag(&body, "t")).await.unwrap_err().kind,
            store.replace(key, body.clone(), &tag(&body, "t"), "v").await.unwrap_err().kind,
            store.get(key, None).await.unwrap_err().kind,
            store.head(key).await.unwrap_err().kind,
            store.delete(key).await.unwrap_err().kind,
        ];
        assert_eq!(kinds, [Kind::Rejected; 5], "{key:?}");
    }
    assert_eq!(store.list("../", None, 10).await.unwrap_err().kind, Kind::Rejected);
}

async fn of_many_puts_at_once_one_wins(store: &Store) {
    for round in 0..5 {
        let key = format!("race/{round}/k");
        let bodies: Vec<Bytes> = (0..16).map(|i| body(100 + i, 20_000)).collect();
        let tasks = bodies.iter().map(|body| {
            let (store, key, body) = (store.clone(), key.clone(), body.clone());
            tokio::spawn(async move { store.put_new(&key, body.clone(), &tag(&body, "racer")).await })
        });
        let mut winners = Vec::new();
        for (i, joined) in join_all(tasks).await.into_iter().enumerate() {
            match joined.unwrap() {
                Ok(Put::Stored) => winners.push(i),
                Ok(Put::Refused) => {}
                Err(fault) => assert_eq!(fault.kind, Kind::Transient, "{fault}"), // "ask again" is allowed while another is under way
            }
        }
        assert_eq!(winners.len(), 1, "round {round}: {winners:?}");
        assert_eq!(store.get(&key, None).await.unwrap(), bodies[winners[0]]);
    }
}

async fn of_many_replacements_at_once_one_wins(store: &Store) {
    put(store, "swap/k", &body(1, 100)).await;
    let version = store.head("swap/k").await.unwrap().unwrap().version.unwrap();
    let tasks = (0..8).map(|i| {
        let (store, version, body) = (store.clone(), version.clone(), body(200 + i, 100));
        tokio::spawn(async move { store.replace("swap/k", body.clone(), &tag(&body, "racer"), &version).await })
    });
    let outcomes: Vec<_> = join_all(tasks).await.into_iter().map(Result::unwrap).collect();
    let stored: Vec<u64> = (0u64..).zip(&outcomes).filter(|(_, outcome)| matches!(outcome, Ok(Put::Stored))).map(|(i, _)| i).collect();
    assert_eq!(stored.len(), 1, "{outcomes:?}");
    assert_eq!(store.get("swap/k", None).await.unwrap(), body(200 + stored[0], 100));
}

async fn a_probe_is_content(store: &Store) {
    let found = probe(store.as_ref(), "one").await.unwrap();
    assert!(found.conditional_put);
    assert!(keys(store, ".argon-probe/", 10).await.is_empty(), "a probe leaves nothing behind");
}
