//! What every feed must do.

use std::time::Duration;

use argon::capture::feed::{ChangeFeed, FeedCursor};
use argon::change::token_time;
use argon::fault::{Fault, Kind};
use bson::{RawDocument, RawDocumentBuf};

use crate::sources::Source;

/// A test that waits longer than this for an event hangs.
const PATIENCE: Duration = Duration::from_secs(60);

/// The events that came, and after how many of them which reply token.
#[derive(Default)]
pub(crate) struct Read {
    pub(crate) events: Vec<RawDocumentBuf>,
    pub(crate) replies: Vec<(usize, RawDocumentBuf)>,
}

fn id(event: &RawDocument) -> RawDocumentBuf {
    event.get_document("_id").unwrap().to_owned()
}

fn is_last(event: &RawDocument, last: i32) -> bool {
    event.get_document("documentKey").is_ok_and(|key| key.get_i32("_id").is_ok_and(|n| n == last))
}

/// Reads as ingest does (reopens after the last reply's token when the stream closes) until the insert of `last` has come.
pub(crate) async fn read_until(feed: &dyn ChangeFeed, after: &RawDocument, last: i32) -> Result<Read, Fault> {
    tokio::time::timeout(PATIENCE, read(feed, after, last)).await.expect("the history does not end as it should")
}

async fn read(feed: &dyn ChangeFeed, after: &RawDocument, last: i32) -> Result<Read, Fault> {
    let mut all = Read::default();
    let mut after = after.to_owned();
    let mut cursor = feed.open(Some(&after)).await?;
    loop {
        let reply = match cursor.next().await {
            Ok(reply) => reply,
            Err(fault) if fault.may_heal() => {
                cursor = feed.open(Some(&after)).await?;
                continue;
            }
            Err(fault) => return Err(fault),
        };
        all.events.extend(reply.events().unwrap().map(|e| e.unwrap().to_owned()));
        after = reply.token().unwrap().to_owned();
        all.replies.push((all.events.len(), after.clone()));
        if all.events.last().is_some_and(|e| is_last(e, last)) {
            return Ok(all);
        }
    }
}

pub(crate) async fn present(feed: &dyn ChangeFeed) -> (RawDocumentBuf, Box<dyn FeedCursor>) {
    let mut cursor = feed.open(None).await.unwrap();
    let token = cursor.next().await.unwrap().token().unwrap().to_owned();
    (token, cursor)
}

/// Opened after each token of a history (of events, also inside a transaction; of replies; of drop, dropDatabase and invalidate), the stream gives what came
/// after it: everything, in order, once.
pub(crate) async fn resuming_after_any_token_gives_exactly_the_rest(source: &dyn Source) {
    let feed = source.feed();
    let (start, _) = present(&*feed).await;
    for id in 0..3 {
        source.insert("orders", id).await;
    }
    source.elsewhere().await;
    source.update("orders", 1).await;
    source.transaction("orders", 100..105).await;
    source.delete("orders", 0).await;
    source.drop(Some("orders")).await;
    source.insert("orders", 3).await;
    source.transaction("other", 105..107).await;
    source.drop(None).await;
    source.insert("orders", 4).await;
    source.drop(None).await;
    source.insert("orders", 5).await;

    let whole = read_until(&*feed, &start, 5).await.unwrap();
    let kinds: Vec<&str> = whole.events.iter().map(|e| e.get_str("operationType").unwrap()).collect();
    // A real server tells of the collections that appear and vanish by the way too.
    let told: Vec<&str> = kinds.iter().copied().filter(|k| *k != "create" && *k != "drop").collect();
    let inserts = ["insert"; 5];
    let expected: Vec<&str> = [&inserts[..3], &["update"], &inserts, &["delete"], &inserts[..3]]
        .concat()
        .into_iter()
        .chain(["dropDatabase", "invalidate", "insert", "dropDatabase", "invalidate", "insert"])
        .collect();
    assert_eq!(told, expected);
    assert!(kinds.contains(&"drop"));

    let ids: Vec<RawDocumentBuf> = whole.events.iter().map(|e| id(e)).collect();
    let of_events = ids.iter().cloned().enumerate().map(|(i, token)| (i + 1, token));
    let of_replies = whole.replies.iter().cloned();
    for (seen, token) in of_events.chain(of_replies).chain([(0, start)]) {
        if seen == ids.len() {
            continue; // nothing follows
        }
        let rest = read_until(&*feed, &token, 5).await.unwrap();
        let rest: Vec<RawDocumentBuf> = rest.events.iter().map(|e| id(e)).collect();
        assert_eq!(rest, ids[seen..], "after {seen} events ({})", kinds.get(seen.wrapping_sub(1)).unwrap_or(&"start"));
    }
    let times: Vec<_> = ids.iter().map(|t| token_time(t).unwrap()).collect();
    assert!(times.is_sorted(), "tokens carry times in order");
}

/// A transaction larger than a reply: the token of the reply lies inside it.
pub(crate) async fn a_reply_cut_inside_a_transaction_resumes_inside_it(source: &dyn Source) {
    let feed = source.feed();
    let (start, _) = present(&*feed).await;
    source.transaction("large", 10_000..14_500).await;
    source.insert("large", 6).await;
    let whole = read_until(&*feed, &start, 6).await.unwrap();
    let ids: Vec<RawDocumentBuf> = whole.events.iter().map(|e| id(e)).collect();
    let begin = whole.events.iter().position(|e| e.get_i64("txnNumber").is_ok()).unwrap();
    let inside: Vec<_> = whole.replies.iter().filter(|(seen, _)| *seen > begin && *seen < begin + 4_500).collect();
    assert!(!inside.is_empty(), "no reply ends inside");
    // The first, one in the middle, the last.
    for (seen, token) in [inside[0], inside[inside.len() / 2], inside[inside.len() - 1]] {
        let rest = read_until(&*feed, token, 6).await.unwrap();
        assert!(rest.events.iter().map(|e| id(e)).eq(ids[*seen..].iter().cloned()), "after {seen} events");
    }
}

pub(crate) async fn a_quiet_source_gives_fresh_tokens(source: &dyn Source) {
    let feed = source.feed();
    let (start, mut cursor) = present(&*feed).await;
    let mut latest = start.clone();
    for _ in 0..2 {
        source.elsewhere().await;
        let before = token_time(&latest).unwrap();
        let fresh = async {
            loop {
                let reply = cursor.next().await.unwrap();
                assert!(reply.is_empty(), "nothing happened here");
                let token = reply.token().unwrap().to_owned();
                if token_time(&token).unwrap() > before {
                    return token;
                }
            }
        };
        latest = tokio::time::timeout(PATIENCE, fresh).await.expect("the token stands still");
    }
    source.insert("orders", 7).await;
    for token in [start, latest] {
        let rest = read_until(&*feed, &token, 7).await.unwrap();
        let inserts = rest.events.iter().filter(|e| e.get_str("operationType").is_ok_and(|t| t == "insert")).count();
        assert_eq!(inserts, 1, "a fresh token misses nothing and repeats nothing");
    }
}

pub(crate) async fn lost_tokens_are_history_lost(source: &dyn Source) {
    let feed = source.feed();
    let (high_water, _) = present(&*feed).await;
    source.insert("orders", 8).await;
    source.insert("orders", 9).await;
    let read = read_until(&*feed, &high_water, 9).await.unwrap();
    let of_event = id(read.events.iter().find(|e| is_last(e, 8)).unwrap());
    source.lose(&of_event).await;
    for lost in [high_water, of_event] {
        let fault = feed.open(Some(&lost)).await.err().expect("a lost token was accepted");
        assert_eq!(fault.kind, Kind::HistoryLost, "{fault}");
    }
    // The present is not lost.
    let (now, _) = present(&*feed).await;
    source.insert("orders", 10).await;
    assert!(!read_until(&*feed, &now, 10).await.unwrap().events.is_empty());
}

pub(crate) async fn rule_7_another_deployment_has_another_identity(source: &dyn Source, other: &dyn Source) {
    let (one, two) = (source.feed().identity().await.unwrap(), other.feed().identity().await.unwrap());
    assert_ne!(one, two);
    assert_eq!(one, source.feed().identity().await.unwrap(), "and it stays the same");
    // A high-water token does not tell, as long as its time is not behind this oplog: that is why identities are compared.
    for _ in 0..100 {
        other.elsewhere().await;
    }
    let (foreign, _) = present(&*other.feed()).await;
    assert!(source.feed().open(Some(&foreign)).await.is_ok());
}
