//! The checker: reads the source's history, the rows and the objects, and nothing of what the engine says about itself except its rows. Events are
//! compared as the source has them, not as the engine's parser reads them.

use argon::branch::layout;
use argon::devkit::audit::difference;
use argon::ledger::*;
use argon::segment::SegmentFile;
use argon::store::ObjectStore;
use sha2::{Digest, Sha256};

use crate::world::{BRANCH, DB, PROJECT, World};

impl World {
    /// Every change of the source is in exactly one committed segment, in order; nothing is left over anywhere.
    pub(crate) fn check(&self) {
        self.runtime.block_on(self.check_segments());
        let (branch, capture) = (self.branch(), self.capture());
        let depth = self.runtime.block_on(self.ledger.depth()).unwrap();
        assert_eq!(depth, QueueDepth::default(), "jobs are left: {:?}", self.jobs(JobState::Dead));
        assert_eq!(self.ledger.payload_count(), 0, "payloads are left");
        assert_eq!(branch.status, BranchStatus::Active, "{:?}", branch.reason);
        assert_eq!(branch.head.seq, self.feed.len() as u64);
        assert_eq!(branch.totals.changes, branch.head.seq);
        assert_eq!(branch.settled_bytes, capture.queued_bytes, "bytes went into the queue and did not come out, or twice");
        assert_eq!(capture.position.next_seq, branch.head.seq + 1);
    }

    async fn check_segments(&self) {
        let rows = self.ledger.segments(BRANCH, 0, usize::MAX).await.unwrap();
        let history = self.feed.history();
        let txns: Vec<Option<i64>> = history.iter().map(|e| e.get_i64("txnNumber").ok()).collect();
        let joined = |seq: u64| {
            let at = |seq: u64| usize::try_from(seq).ok().and_then(|n| n.checked_sub(1)).and_then(|n| txns.get(n)).copied().flatten();
            at(seq).is_some() && at(seq) == at(seq + 1)
        };
        let (mut next_seq, mut chain, mut events) = (1, self.start.clone(), history.iter());
        for r in &rows {
            assert_eq!(r.first_seq, next_seq, "{}", r.key);
            let bytes = self.store.get(&r.key, None).await.unwrap();
            assert_eq!(layout::hex(&Sha256::digest(&bytes)), r.sha256, "{} is not what was committed", r.key);
            let file = SegmentFile::parse(&r.key, bytes).unwrap();
            let header = file.header();
            assert_eq!((header.first_seq, header.last_seq, header.ends), (r.first_seq, r.last_seq, r.ends));
            assert_eq!(header.start_token, chain, "{} does not chain", r.key);
            assert_eq!(header.starts_inside, joined(r.first_seq - 1), "{}", r.key);
            match header.ends {
                Ends::Closed => assert!(!joined(r.last_seq), "{}", r.key),
                Ends::Open => assert!(joined(r.last_seq), "{}", r.key),
                Ends::Unknown => {}
            }
            for i in 0..file.block_count() {
                let block = file.block(i).unwrap();
                for stored in block.rows().unwrap() {
                    let (seq, change) = stored.unwrap();
                    assert_eq!(seq, next_seq);
                    next_seq += 1;
                    let event = events.next().expect("a change that the source does not have");
                    assert_eq!(difference(event, &change, DB).unwrap(), None, "seq {seq}");
                }
            }
            assert_eq!(r.last_seq + 1, next_seq, "{}", r.key);
            chain = header.end_token.clone();
        }
        assert!(events.next().is_none(), "the source has more than {} changes", next_seq - 1);
        let mut keys: Vec<String> = rows.into_iter().map(|r| r.key).collect();
        keys.sort();
        assert_eq!(self.objects().await, keys, "objects without a row, or rows without an object");
    }

    pub(crate) async fn objects(&self) -> Vec<String> {
        let prefix = format!("{}segments/", layout::branch_prefix(PROJECT, BRANCH));
        let mut all: Vec<String> = Vec::new();
        loop {
            let page = self.store.list(&prefix, all.last().map(String::as_str), 1_000).await.unwrap();
            let last = page.len() < 1_000;
            all.extend(page.into_iter().map(|o| o.key));
            if last {
                return all;
            }
        }
    }
}
