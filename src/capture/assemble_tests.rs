use bson::{Document, doc};
use proptest::prelude::*;

use super::super::feed::ChangeFeed;
use super::super::memory::MemoryFeed;
use super::*;
use crate::runtime::clock;

const DB: &str = "shop";
const POLICY: AssemblePolicy = AssemblePolicy { batch_size: 100, batch_timeout: Duration::from_secs(5), max_bytes: 4 << 20 };
const MS: Duration = Duration::from_millis(1);

fn insert(id: i32, text: usize) -> Document {
    let full = doc! { "_id": id, "text": noise(id, text) };
    doc! { "operationType": "insert", "fullDocument": full, "ns": { "db": DB, "coll": "orders" }, "documentKey": { "_id": id } }
}

/// Text of which no two are alike: equal documents would be stored once.
fn noise(seed: i32, len: usize) -> String {
    let mut state = u64::from(seed.unsigned_abs()) + 1;
    let letter = |state: &mut u64| {
        *state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        char::from(b'a' + u8::try_from((*state >> 33) % 26).unwrap())
    };
    (0..len).map(|_| letter(&mut state)).collect()
}

fn position(token: RawDocumentBuf) -> Position {
    Position { chain: token.clone(), token, next_seq: 1, last_txn: None }
}

/// The position that a checkpoint of the batch stores.
fn after(batch: &Batch) -> Position {
    Position {
        token: batch.end_token.clone(),
        chain: batch.end_token.clone(),
        next_seq: batch.last_seq + 1,
        last_txn: batch.last_txn.clone(),
    }
}

fn block_on<T>(future: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap().block_on(future)
}

/// Replies after a token until the history is at its end and one that is empty.
fn replies(feed: &MemoryFeed, after: &RawDocument) -> Vec<Reply> {
    feed.set_quiet(Duration::ZERO);
    block_on(async {
        let (mut all, mut after) = (Vec::new(), after.to_owned());
        let mut cursor = feed.open(Some(&after)).await.unwrap();
        loop {
            match cursor.next().await {
                Ok(reply) => {
                    let empty = reply.is_empty();
                    after = reply.token().unwrap().to_owned();
                    all.push(reply);
                    if empty {
                        return all;
                    }
                }
                Err(_) => cursor = feed.open(Some(&after)).await.unwrap(),
            }
        }
    })
}

/// A change as far as two changes of a test can differ.
type Row = (u64, ClusterTime, Option<Vec<u8>>, Option<Vec<u8>>, Option<Vec<u8>>);

fn rows(batch: &Batch) -> Vec<Row> {
    let bytes = |d: Option<&RawDocument>| d.map(|d| d.as_bytes().to_vec());
    let row = |row: Result<(u64, crate::change::ChangeRef<'_>)>| {
        let (seq, c) = row.unwrap();
        (seq, c.time, bytes(c.txn), bytes(c.key), bytes(c.body))
    };
    batch.blocks.iter().flat_map(|b| b.rows().unwrap().map(row).collect::<Vec<_>>()).collect()
}

/// What the history should become, by the parser alone.
fn expected(feed: &MemoryFeed) -> Vec<Row> {
    let bytes = |d: Option<&RawDocument>| d.map(|d| d.as_bytes().to_vec());
    let (mut scratch, mut seq) = (Scratch::default(), 0);
    let all = feed.history();
    let row = |event: &RawDocumentBuf| {
        let c = parse_event(event, DB, &mut scratch).unwrap().change;
        seq += 1;
        (seq, c.time, bytes(c.txn), bytes(c.key), bytes(c.body))
    };
    all.iter().map(row).collect()
}

fn token_at(feed: &MemoryFeed, seq: u64) -> RawDocumentBuf {
    token_of(&feed.history()[usize::try_from(seq).unwrap() - 1]).unwrap().to_owned()
}

fn assembler(feed_start: &RawDocumentBuf, policy: AssemblePolicy, now: Instant) -> Assembler {
    Assembler::new(DB, policy, &position(feed_start.clone()), now)
}

#[test]
fn rule_3_a_batch_cut_inside_a_reply_carries_the_token_of_its_last_change() {
    let feed = MemoryFeed::new(DB, "set-1");
    let start = feed.present();
    for id in 0..1_000 {
        feed.push(&insert(id, 100)).unwrap();
    }
    let all = expected(&feed);
    let now = clock::now();
    // About 100 changes of about 130 bytes.
    let policy = AssemblePolicy { max_bytes: 13_000, ..POLICY };
    let mut assembler = assembler(&start, policy, now);
    let replies = replies(&feed, &start);
    assert_eq!(replies[0].events().unwrap().count(), 1_000);
    let closed = assembler.feed(&replies[0], now).unwrap();
    assert!((5..20).contains(&closed.len()), "{} batches", closed.len());
    for batch in &closed {
        assert_eq!(batch.end_token, token_at(&feed, batch.last_seq), "the token of its own last change, not the reply's");
        assert_ne!(&*batch.end_token, replies[0].token().unwrap());
        // A crash right after this checkpoint: what follows is exactly the rest.
        let mut rest = Assembler::new(DB, POLICY, &after(batch), now);
        for reply in self::replies(&feed, &batch.end_token) {
            assert!(rest.feed(&reply, now).unwrap().is_empty());
        }
        let rest = rest.close().unwrap();
        assert_eq!(rows(&rest), all[usize::try_from(batch.last_seq).unwrap()..]);
    }
    let last = assembler.close().unwrap();
    assert_eq!(&*last.end_token, replies[0].token().unwrap(), "the last batch ends where the reply ends");
    assert_eq!(last.last_seq, 1_000);
}

#[test]
fn a_batch_that_is_full_at_the_end_of_a_reply_ends_with_the_token_of_that_reply() {
    let feed = MemoryFeed::new(DB, "set-1");
    let start = feed.present();
    let now = clock::now();
    let mut assembler = assembler(&start, AssemblePolicy { max_bytes: 1, ..POLICY }, now);
    feed.push(&insert(1, 10)).unwrap();
    feed.tick();
    let first = replies(&feed, &start).swap_remove(0);
    assert!(assembler.feed(&first, now).unwrap().is_empty());
    assert!(assembler.is_full());
    assert_eq!(assembler.due(now, true), Due::Now, "full does not wait for the checkpoint in flight");
    feed.push(&insert(2, 10)).unwrap();
    let second = replies(&feed, first.token().unwrap()).swap_remove(0);
    let closed = assembler.feed(&second, now).unwrap();
    assert_eq!(closed.len(), 1);
    assert_eq!(&*closed[0].end_token, first.token().unwrap());
    assert_ne!(&*closed[0].end_token, &*token_at(&feed, 1), "this test is about a high-water token");
}

/// One reply with `count` small inserts after `token`; returns it.
fn reply_of(feed: &MemoryFeed, count: usize) -> Reply {
    let from = feed.present();
    let base = i32::try_from(feed.len()).unwrap();
    for id in 0..i32::try_from(count).unwrap() {
        feed.push(&insert(base + id, 10)).unwrap();
    }
    feed.set_reply_events(count.max(1));
    replies(feed, &from).swap_remove(0)
}

#[test]
fn when_a_batch_is_due() {
    struct Case {
        what: &'static str,
        count: usize,
        max_bytes: u64,
        /// Replies of 1,000 in each of the 20 windows of 250 ms before: 4,000 changes/s.
        load: bool,
        in_flight: bool,
        timeout: Duration,
        /// After this time since it was opened, and not before.
        due_after: Duration,
    }
    let base = Case { what: "", count: 99, max_bytes: 4 << 20, load: false, in_flight: false, timeout: 5_000 * MS, due_after: 5_000 * MS };
    let cases = [
        Case { what: "too few: the time-out", ..base },
        Case { what: "too few, also with a checkpoint in flight", in_flight: true, ..base },
        Case { what: "too few, also under load", load: true, ..base },
        Case { what: "enough: at once", count: 100, due_after: Duration::ZERO, ..base },
        Case { what: "enough, a checkpoint in flight: lingers", count: 100, in_flight: true, due_after: 100 * MS, ..base },
        Case { what: "enough under load: lingers", count: 100, load: true, due_after: 100 * MS, ..base },
        Case { what: "lingers no longer than the time-out", count: 100, load: true, timeout: 30 * MS, due_after: 30 * MS, ..base },
        Case { what: "full: at once, whatever else", count: 100, max_bytes: 1, in_flight: true, due_after: Duration::ZERO, ..base },
        Case { what: "full with few changes", count: 20, max_bytes: 1, due_after: Duration::ZERO, ..base },
    ];
    for case in cases {
        let feed = MemoryFeed::new(DB, "set-1");
        let start = clock::now();
        let policy = AssemblePolicy { batch_size: 100, batch_timeout: case.timeout, max_bytes: case.max_bytes };
        let mut assembler = assembler(&feed.present(), policy, start);
        assert_eq!(assembler.due(start, false), Due::Empty);
        let mut now = start;
        for _ in 0..if case.load { 20 } else { 0 } {
            now += 250 * MS;
            assembler.feed(&reply_of(&feed, 1_000), now).unwrap();
            assembler.close();
        }
        now += MS;
        assembler.feed(&reply_of(&feed, case.count), now).unwrap();
        let at = now + case.due_after;
        if case.due_after > Duration::ZERO {
            assert_eq!(assembler.due(at - MS, case.in_flight), Due::At(at), "{}", case.what);
        }
        assert_eq!(assembler.due(at, case.in_flight), Due::Now, "{}", case.what);
        assert_eq!(assembler.is_full(), case.max_bytes == 1, "{}", case.what);
    }
}

#[test]
fn fast_means_more_than_twenty_closes_a_second() {
    // 100 changes a batch: the border lies at 2,000 changes/s.
    for (per_second, lingers) in [(1_900, false), (2_200, true), (10_000, true)] {
        let feed = MemoryFeed::new(DB, "set-1");
        let mut now = clock::now();
        let mut assembler = assembler(&feed.present(), POLICY, now);
        for _ in 0..8 {
            now += 250 * MS;
            assembler.feed(&reply_of(&feed, per_second / 4), now).unwrap();
            assembler.close();
        }
        assembler.feed(&reply_of(&feed, 100), now).unwrap();
        assert_eq!(matches!(assembler.due(now, false), Due::At(_)), lingers, "{per_second} changes/s");
    }
}

#[test]
fn an_idle_token_is_stored_only_when_nothing_is_held_and_at_most_every_ten_seconds() {
    let feed = MemoryFeed::new(DB, "set-1");
    let start = feed.present();
    let began = clock::now();
    let mut assembler = assembler(&start, POLICY, began);
    let quiet = |feed: &MemoryFeed| replies(feed, &feed.present()).pop().unwrap();
    let second = |n: u64| began + Duration::from_secs(n);
    assert!(assembler.idle_position(second(60)).is_none(), "no token has come yet");

    let first = quiet(&feed);
    assembler.feed(&first, second(60)).unwrap();
    let stored = assembler.idle_position(second(60)).unwrap();
    assert_eq!((&*stored.token, &stored.chain, stored.next_seq), (first.token().unwrap(), &start, 1), "seq and chain stay");
    assert!(assembler.idle_position(second(80)).is_none(), "it is not stored twice");

    assembler.feed(&quiet(&feed), second(61)).unwrap();
    assert!(assembler.idle_position(second(69)).is_none(), "too early");
    assembler.feed(&reply_of(&feed, 1), second(69)).unwrap();
    let after_change = quiet(&feed);
    assembler.feed(&after_change, second(70)).unwrap();
    assert!(assembler.idle_position(second(90)).is_none(), "a change is held: this token would lose it");

    let batch = assembler.close().unwrap();
    assert_eq!(&*batch.end_token, after_change.token().unwrap(), "the batch has the newest token itself");
    assert!(assembler.idle_position(second(90)).is_none(), "and what came before it is not stored after it");
    let last = quiet(&feed);
    assembler.feed(&last, second(91)).unwrap();
    let stored = assembler.idle_position(second(91)).unwrap();
    assert_eq!((&*stored.token, &stored.chain, stored.next_seq), (last.token().unwrap(), &batch.end_token, 2));
}

/// Longer than a token at which a batch may end.
const LONG: usize = 8 << 20;

/// A reply with inserts from `first` on; for each, and for the reply itself, by how much its token is longer than others.
fn reply_with_tokens(first: u32, longer: &[usize], end: usize, text: usize) -> Reply {
    let token = |n: u32, longer: usize| doc! { "_data": format!("82{:08X}{n:08X}46{}", 1_700_000_000, "0".repeat(longer)) };
    let event = |(n, longer): (u32, &usize)| {
        let mut event = doc! { "_id": token(n, *longer), "clusterTime": bson::Timestamp { time: 1_700_000_000, increment: n } };
        let full = doc! { "_id": n, "text": "x".repeat(text) };
        let ns = doc! { "db": DB, "coll": "orders" };
        event.extend(doc! { "operationType": "insert", "fullDocument": full, "ns": ns, "documentKey": { "_id": n } });
        RawDocumentBuf::try_from(&event).unwrap()
    };
    let mut events = bson::RawArrayBuf::new();
    (first..).zip(longer).map(event).for_each(|event| events.push(event));
    let last = first + u32::try_from(longer.len()).unwrap();
    let end = RawDocumentBuf::try_from(&token(last, end)).unwrap();
    Reply::new(bson::rawdoc! { "cursor": { "nextBatch": events, "postBatchResumeToken": end } })
}

#[test]
fn a_batch_does_not_end_at_a_token_that_no_document_can_hold() {
    /// Replies: lengths of the tokens of their events, and of their own.
    type Replies = &'static [(&'static [usize], usize)];
    // Every change would be a batch of its own. Last seqs of the batches, and whether the last one can be closed.
    let cases: [(Replies, &[u64], bool); 7] = [
        (&[(&[0, 0, 0], 0)], &[1, 2, 3], true),
        (&[(&[0, LONG, 0, 0], 0)], &[1, 3, 4], true),
        (&[(&[LONG, LONG, 0, 0], 0)], &[3, 4], true),
        (&[(&[0, LONG], 0)], &[1, 2], true),
        (&[(&[0, LONG], LONG)], &[1], false),
        (&[(&[0, LONG], LONG), (&[], 0)], &[1, 2], true),
        (&[(&[0, LONG], LONG), (&[0, 0], 0)], &[1, 3, 4], true),
    ];
    for (replies, ends, closable) in cases {
        let now = clock::now();
        let start = MemoryFeed::new(DB, "set-1").present();
        let mut assembler = assembler(&start, AssemblePolicy { max_bytes: 1, ..POLICY }, now);
        let (mut batches, mut next) = (Vec::new(), 1);
        for (events, end) in replies {
            batches.extend(assembler.feed(&reply_with_tokens(next, events, *end, 10), now).unwrap());
            next += u32::try_from(events.len()).unwrap();
        }
        assert_eq!(assembler.is_full(), closable, "replies are taken while it cannot be closed");
        assert_eq!(assembler.due(now, false) == Due::Now, closable);
        assert!(assembler.idle_position(now + IDLE_TOKEN_EVERY).is_none());
        batches.extend(assembler.close());
        assert_eq!(batches.iter().map(|b| b.last_seq).collect::<Vec<_>>(), ends);
        let mut chain = start;
        for batch in &batches {
            assert_eq!(batch.start_token, chain);
            assert!(batch.end_token.as_bytes().len() < 1_000);
            chain = batch.end_token.clone();
        }
    }
}

#[test]
fn where_no_shorter_token_comes_the_capture_fails_with_one_line_instead_of_growing() {
    let now = clock::now();
    let mut assembler = assembler(&MemoryFeed::new(DB, "set-1").present(), POLICY, now);
    // Changes of 8 MiB: the batch is full with the first and may hold a few more.
    let fed = |n| assembler.feed(&reply_with_tokens(n, &[LONG], LONG, 8 << 20), now);
    let (n, fault) = (1..20).map(fed).zip(1..).find_map(|(fed, n)| fed.err().map(|fault| (n, fault))).unwrap();
    assert_eq!((n, fault.kind), (6, crate::fault::Kind::Corrupt));
    assert!(fault.what.contains("changes 1 to 5") && fault.what.contains("_id") && !fault.what.contains('\n'), "{fault}");
}

#[test]
fn a_damaged_event_is_a_fault_and_never_a_panic() {
    let now = clock::now();
    let start = MemoryFeed::new(DB, "set-1").present();
    let broken = [
        bson::rawdoc! {},
        bson::rawdoc! { "cursor": {} },
        bson::rawdoc! { "cursor": { "nextBatch": [1], "postBatchResumeToken": {} } },
        bson::rawdoc! { "cursor": { "nextBatch": [{}], "postBatchResumeToken": {} } },
        bson::rawdoc! { "cursor": { "nextBatch": [{ "_id": 1 }], "postBatchResumeToken": {} } },
        bson::rawdoc! { "cursor": { "nextBatch": [] } },
    ];
    for reply in broken {
        assert!(assembler(&start, POLICY, now).feed(&Reply::new(reply.clone()), now).is_err(), "{reply:?}");
    }
}

/// Part of a random history.
#[derive(Debug, Clone)]
enum Step {
    Inserts(u8),
    Transaction(u8),
    /// The clock goes on: the next reply that reaches the end has a high-water token.
    Tick,
    DropDatabase,
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        4 => (1..6u8).prop_map(Step::Inserts),
        4 => (1..9u8).prop_map(Step::Transaction),
        2 => Just(Step::Tick),
        1 => Just(Step::DropDatabase),
    ];
    prop::collection::vec(step, 1..12)
}

fn write(feed: &MemoryFeed, steps: &[Step]) {
    let mut id = i32::try_from(feed.len()).unwrap();
    for step in steps {
        match step {
            Step::Inserts(n) => {
                for _ in 0..*n {
                    id += 1;
                    feed.push(&insert(id, 20)).unwrap();
                }
            }
            Step::Transaction(n) => {
                let all: Vec<Document> = (0..*n).map(|n| insert(id + 1 + i32::from(n), 20)).collect();
                id += i32::from(*n);
                feed.transaction(&all).unwrap();
            }
            Step::Tick => feed.tick(),
            Step::DropDatabase => {
                feed.drop(None).unwrap();
            }
        }
    }
}

/// Which transaction a change is in, by position in the history; an independent view: the events' own fields.
fn transactions(feed: &MemoryFeed) -> Vec<Option<i64>> {
    feed.history().iter().map(|e| e.get_i64("txnNumber").ok()).collect()
}

/// Checks one batch against the model: the flags of correctness.md 6.
fn check_flags(batch: &Batch, txns: &[Option<i64>]) -> Result<(), TestCaseError> {
    let at = |seq: u64| usize::try_from(seq).ok().and_then(|n| n.checked_sub(1)).and_then(|n| txns.get(n)).copied().flatten();
    let joined = |a: u64| at(a).is_some() && at(a) == at(a + 1);
    prop_assert_eq!(batch.starts_inside, joined(batch.first_seq - 1), "starts_inside of {}..{}", batch.first_seq, batch.last_seq);
    let goes_on = joined(batch.last_seq);
    match batch.ends {
        Ends::Closed => prop_assert!(!goes_on, "{}..{} is called closed", batch.first_seq, batch.last_seq),
        Ends::Open => prop_assert!(goes_on, "{}..{} is called open", batch.first_seq, batch.last_seq),
        Ends::Unknown => {
            // Only what cannot be known: the last change is in a transaction, and the token does not lie behind its time.
            prop_assert!(at(batch.last_seq).is_some());
            prop_assert!(token_time(&batch.end_token).unwrap() <= batch.last_time);
        }
    }
    Ok(())
}

/// Checks that batches are one history: dense, chained, exactly once.
fn check_history(batches: &[Batch], start: &RawDocumentBuf, feed: &MemoryFeed) -> Result<(), TestCaseError> {
    let (mut next_seq, mut chain, mut seen) = (1, start.clone(), Vec::new());
    let txns = transactions(feed);
    for batch in batches {
        prop_assert_eq!(batch.first_seq, next_seq);
        prop_assert_eq!(&batch.start_token, &chain, "each starts where the one before ended");
        prop_assert_eq!(batch.count(), rows(batch).len() as u64);
        prop_assert_eq!(batch.first_time, rows(batch)[0].1);
        prop_assert_eq!(batch.last_time, rows(batch).last().unwrap().1);
        check_flags(batch, &txns)?;
        (next_seq, chain) = (batch.last_seq + 1, batch.end_token.clone());
        seen.extend(rows(batch));
    }
    prop_assert_eq!(seen, expected(feed));
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    /// Every cut: `max_bytes` so small that batches close anywhere inside replies, and closes between replies at will.
    #[test]
    fn rule_6_flags_are_right_wherever_a_history_is_cut(
        history in steps(), reply_events in 1..12usize, max_bytes in 1..900u64, closes in prop::collection::vec(any::<bool>(), 100),
    ) {
        let feed = MemoryFeed::new(DB, "set-1");
        feed.set_reply_events(reply_events);
        let start = feed.present();
        write(&feed, &history);
        let now = clock::now();
        let mut assembler = assembler(&start, AssemblePolicy { max_bytes, ..POLICY }, now);
        let mut batches = Vec::new();
        for (reply, close) in replies(&feed, &start).iter().zip(closes.iter().cycle()) {
            batches.extend(assembler.feed(reply, now).unwrap());
            if *close {
                batches.extend(assembler.close());
            }
        }
        batches.extend(assembler.close());
        check_history(&batches, &start, &feed)?;
    }

    /// Crashes: what is not stored is lost, and the next assembler starts at the last stored position, which may be a batch's or an idle one.
    #[test]
    fn a_history_is_the_same_however_often_it_is_interrupted(
        histories in prop::collection::vec(steps(), 1..4), reply_events in 1..12usize, max_bytes in 1..900u64,
        // Per reply: close after it; store an idle token; crash, having stored this share of the closed batches.
        events in prop::collection::vec((any::<bool>(), any::<bool>(), prop::option::weighted(0.2, 0..4usize)), 120),
    ) {
        let feed = MemoryFeed::new(DB, "set-1");
        feed.set_reply_events(reply_events);
        let start = feed.present();
        let policy = AssemblePolicy { max_bytes, ..POLICY };
        let mut now = clock::now();
        let mut stored = position(start.clone());
        let mut batches: Vec<Batch> = Vec::new();
        let mut events = events.into_iter();
        for history in &histories {
            write(&feed, history);
            'opened: loop {
                let mut assembler = Assembler::new(DB, policy, &stored, now);
                for reply in replies(&feed, &stored.token) {
                    now += IDLE_TOKEN_EVERY;
                    let (close, idle, crash) = events.next().unwrap_or((true, false, None));
                    let mut closed = assembler.feed(&reply, now).unwrap();
                    closed.extend(if close { assembler.close() } else { None });
                    closed.truncate(crash.unwrap_or(usize::MAX));
                    if let Some(last) = closed.last() {
                        stored = after(last);
                    }
                    batches.extend(closed);
                    if crash.is_some() {
                        continue 'opened;
                    }
                    if idle && let Some(position) = assembler.idle_position(now) {
                        prop_assert_eq!(position.next_seq, stored.next_seq, "an idle token leaves seq alone");
                        stored = position;
                    }
                }
                if let Some(last) = assembler.close() {
                    stored = after(&last);
                    batches.push(last);
                }
                break;
            }
        }
        check_history(&batches, &start, &feed)?;
    }
}
