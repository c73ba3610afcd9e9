//! What the faulty wrapper does, and what of the twin a real server cannot be made to do.

use std::sync::Arc;

use argon::capture::feed::ChangeFeed;
use argon::capture::{FaultyFeed, FeedFaults};
use argon::fault::Kind;
use bson::RawDocumentBuf;

use crate::contract::{present, read_until};
use crate::sources::{Memory, Source};

/// Reads through faults as ingest does; opening may fail too.
async fn follow(feed: &dyn ChangeFeed, start: &RawDocumentBuf, events: usize) -> Vec<RawDocumentBuf> {
    let (mut seen, mut after) = (Vec::new(), start.clone());
    while seen.len() < events {
        let Ok(mut cursor) = feed.open(Some(&after)).await else { continue };
        while let Ok(reply) = cursor.next().await {
            seen.extend(reply.events().unwrap().map(|e| e.unwrap().to_owned()));
            after = reply.token().unwrap().to_owned();
            if seen.len() >= events {
                break;
            }
        }
    }
    seen
}

#[tokio::test]
async fn whatever_breaks_every_event_comes_once_to_a_reader_that_resumes() {
    for seed in 0..20 {
        let source = Memory::new("set-1");
        source.feed.set_reply_events(1 + usize::try_from(seed % 5).unwrap_or(0));
        let start = source.feed.present();
        for i in 0..20 {
            source.insert("orders", i).await;
            source.transaction("orders", 100 * i..100 * i + 7).await;
        }
        let faults = FeedFaults { seed, refused: 0.3, broken: 0.2, lost: 0.2 };
        let feed = FaultyFeed::new(Arc::new(source.feed.clone()), faults);
        let seen = follow(&feed, &start, source.feed.len()).await;
        assert_eq!(seen, source.feed.history(), "seed {seed}");
        assert!(feed.injected() > 0, "seed {seed} tested nothing");
    }
}

#[tokio::test]
async fn a_script_refuses_breaks_and_hangs() {
    let source = Memory::new("set-1");
    source.feed.set_reply_events(1);
    let start = source.feed.present();
    for i in 0..4 {
        source.insert("orders", i).await;
    }
    let feed = Arc::new(FaultyFeed::new(Arc::new(source.feed.clone()), FeedFaults::default()));
    feed.refuse(2);
    assert_eq!(feed.identity().await.unwrap_err().kind, Kind::Transient);
    assert_eq!(feed.open(Some(&start)).await.err().map(|f| f.kind), Some(Kind::Transient));
    feed.break_after(2);
    let mut cursor = feed.open(Some(&start)).await.unwrap();
    assert!(cursor.next().await.is_ok() && cursor.next().await.is_ok() && cursor.next().await.is_err());
    assert!(cursor.next().await.is_err(), "a broken stream stays broken");
    assert_eq!(feed.injected(), 3);

    feed.hang();
    let reader = tokio::spawn({
        let (feed, start) = (feed.clone(), start.clone());
        async move { read_until(&*feed, &start, 3).await.unwrap().events.len() }
    });
    for _ in 0..100 {
        tokio::task::yield_now().await;
    }
    assert!(!reader.is_finished());
    feed.release();
    assert_eq!(reader.await.unwrap(), 4);
}

#[tokio::test]
async fn a_reader_that_the_oplog_overtakes_learns_it() {
    let source = Memory::new("set-1");
    let (_, mut cursor) = present(&source.feed).await;
    for i in 0..4 {
        source.insert("orders", i).await;
    }
    source.feed.trim(3);
    assert_eq!(cursor.next().await.unwrap_err().kind, Kind::HistoryLost);
    let tokens: Vec<_> = source.feed.history().iter().map(|e| e.get_document("_id").unwrap().to_owned()).collect();
    for (i, token) in tokens.iter().enumerate() {
        let opened = source.feed.open(Some(token)).await.map(|_| ());
        assert_eq!(opened.map_err(|f| f.kind), if i < 3 { Err(Kind::HistoryLost) } else { Ok(()) }, "token {i}");
    }
}

#[tokio::test]
async fn a_token_of_an_event_that_never_was_is_refused() {
    let (source, other) = (Memory::new("set-1"), Memory::new("set-2"));
    source.insert("orders", 1).await;
    other.insert("orders", 1).await;
    let foreign = other.feed.transaction(&vec![bson::doc! { "operationType": "insert" }; 3]).unwrap();
    for token in foreign.into_iter().chain([bson::rawdoc! { "a": 1 }]) {
        assert_eq!(source.feed.open(Some(&token)).await.err().map(|f| f.kind), Some(Kind::HistoryLost));
    }
}
