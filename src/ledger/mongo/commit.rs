//! Owns: the transactions that put segments into a branch: commit of jobs, and the gap that replaces a discarded one.
//! Does not own: encoding and upload (`sync`), states of jobs (`queue`).

use async_trait::async_trait;
use bson::{Bson, Document, doc};
use futures_util::TryStreamExt;
use mongodb::ClientSession;
use mongodb::error::Error;
use mongodb::options::{Hint, UpdateModifications};
use serde::Deserialize;

use super::super::rules::{self, Found, Step};
use super::super::status::Tally;
use super::super::{Branch, Committed, Counters, Head, Job, JobKind, JobState, SegmentCommit, SegmentKind, SegmentRow};
use super::Inner;
use super::claim::payload_ids;
use super::classify::{fault_of, is_duplicate};
use super::counters::Writer;
use super::indexes::BRANCHES_BEHIND;
use super::rows::{document, int, now, word, words};
use super::txn::{Body, Halt, Then};
use crate::change::ClusterTime;
use crate::fault::{Fault, Result};
use crate::queue::{self, JobEvent};

/// Segments that one walk of the head reads at a time, and at most: the next commit walks on, or [`Inner::advance_heads`], which finds the branch by
/// its mark `head_behind`.
const WALK_PAGE: usize = 1_000;
const WALK_PAGES: usize = 20;
/// A key that appears while we look for it is looked for again.
const MAX_CLAIM_ROUNDS: usize = 3;

impl Inner {
    pub(super) async fn commit(&self, commits: &[SegmentCommit]) -> Result<Vec<Committed>> {
        rules::check_commits(commits)?;
        if commits.is_empty() {
            return Ok(Vec::new());
        }
        let mut body = CommitTxn { inner: self, commits, look: false, refused: false };
        for _ in 0..MAX_CLAIM_ROUNDS {
            match self.transact(&mut body).await {
                // Some row has the key or the range of one of ours: find out which, and leave that one out.
                Err(_) if std::mem::take(&mut body.refused) => body.look = true,
                outcome => return outcome,
            }
        }
        Err(Fault::transient(format!("branch {}: others keep committing the same segments", commits[0].segment.branch)))
    }

    pub(super) async fn discard_job(&self, id: &str, gap: &SegmentRow) -> Result<bool> {
        let mut body = DiscardTxn { inner: self, id, gap, refused: false };
        match self.transact(&mut body).await {
            Err(_) if body.refused => Ok(false),
            outcome => outcome,
        }
    }

    /// Adds to a branch: rows first, then one write of the branch document with totals and head. Every transaction
    /// that adds a segment goes through here.
    ///
    /// SUBTLE (correctness.md 23): two commits that run side by side do not see each other's rows, so neither may decide alone where the head is.
    /// Both write the branch document; the server lets one of them win, and the other starts again and sees its rows.
    pub(super) async fn add_segments(&self, session: &mut ClientSession, rows: &[&SegmentRow], payload_bytes: u64) -> Result<(), Halt> {
        let Some(first) = rows.first() else { return Ok(()) };
        #[derive(Deserialize)]
        struct Now {
            head: Head,
            now_ms: i64,
        }
        let found: Option<Now> = self
            .branches_coll()
            .clone_with_type()
            .find_one(doc! { "_id": &first.branch })
            .projection(doc! { "head": 1, "now_ms": now() })
            .session(&mut *session)
            .await?;
        let Some(Now { head, now_ms: committed_ms }) = found else {
            return Err(Fault::missing(format!("branch {} does not exist", first.branch)).into());
        };
        let stored: Result<Vec<Document>> = rows.iter().map(|r| document(&SegmentRow { committed_ms, ..(*r).clone() })).collect();
        self.segments_coll().clone_with_type::<Document>().insert_many(stored?).session(&mut *session).await?;

        let (head, behind) = self.walk(session, &first.branch, head).await?;
        let sum = |f: fn(&SegmentRow) -> u64| int(rows.iter().map(|r| f(r)).sum());
        let changes = sum(|r| if r.kind == SegmentKind::Changes { r.last_seq - r.first_seq + 1 } else { 0 });
        let update = doc! {
            "$set": { "head": document(&head)?, "head_behind": behind },
            "$inc": {
                "totals.changes": changes,
                "totals.raw_bytes": sum(|r| r.raw_bytes),
                "totals.stored_bytes": sum(|r| r.stored_bytes),
                "totals.segments": int(rows.len() as u64),
                "settled_bytes": int(payload_bytes),
            },
        };
        self.branches_coll().update_one(doc! { "_id": &first.branch }, update).session(session).await?;
        Ok(())
    }

    /// The head over the contiguous prefix, rows of this transaction included; true when there may be more to walk over.
    async fn walk(&self, session: &mut ClientSession, branch: &str, mut head: Head) -> Result<(Head, bool), Halt> {
        #[derive(Deserialize)]
        struct Row {
            first_seq: u64,
            last_seq: u64,
            last_time: ClusterTime,
            last_wall_ms: Option<i64>,
        }
        for _ in 0..WALK_PAGES {
            let mut cursor = self
                .segments_coll()
                .clone_with_type::<Row>()
                .find(doc! { "branch": branch, "last_seq": { "$gt": int(head.seq) } })
                .sort(doc! { "last_seq": 1 })
                .projection(doc! { "_id": 0, "first_seq": 1, "last_seq": 1, "last_time": 1, "last_wall_ms": 1 })
                .limit(i64::try_from(WALK_PAGE).unwrap_or(i64::MAX))
                .batch_size(u32::try_from(WALK_PAGE + 1).unwrap_or(u32::MAX))
                .session(&mut *session)
                .await?;
            let rows: Vec<Row> = cursor.stream(session).try_collect().await?;
            let page_is_full = rows.len() == WALK_PAGE;
            let steps =
                rows.into_iter().map(|r| Step { first_seq: r.first_seq, last_seq: r.last_seq, time: r.last_time, wall_ms: r.last_wall_ms });
            let (moved, whole) = rules::advance(head, steps);
            head = moved;
            if !whole || !page_is_full {
                return Ok((head, false));
            }
        }
        Ok((head, true))
    }

    pub(super) async fn advance_heads(&self) -> Result<u64> {
        #[derive(Deserialize)]
        struct Row {
            #[serde(rename = "_id")]
            id: String,
        }
        let branches = self.branches_coll().clone_with_type::<Row>();
        let marked = branches.find(doc! { "head_behind": true }).projection(doc! { "_id": 1 });
        let cursor = marked.hint(Hint::Name(BRANCHES_BEHIND.to_owned())).await.map_err(fault_of)?;
        let behind: Vec<Row> = cursor.try_collect().await.map_err(fault_of)?;
        let mut moved = 0;
        for Row { id } in behind {
            while self.transact(&mut WalkTxn { inner: self, branch: &id }).await? {
                moved += 1;
            }
        }
        Ok(moved)
    }

    /// Ends jobs for good in this transaction; their payload goes.
    async fn end_jobs(&self, session: &mut ClientSession, jobs: &[&Job], event: JobEvent) -> Result<(), Halt> {
        let ids: Vec<&str> = jobs.iter().map(|j| j.id.as_str()).collect();
        let Some(state) = jobs.first().and_then(|j| queue::transition(j.state, event)) else { return Ok(()) };
        // `ended` keeps the token of the lease that did it, so that a repeat is recognised.
        let ended = doc! { "$ifNull": ["$lease.token", "$ended"] };
        let set = doc! { "state": word(state), "finished_ms": now(), "ended": ended, "lease": Bson::Null, "parked": "$$REMOVE" };
        let guard = doc! { "_id": { "$in": ids }, "state": { "$in": words(&queue::states_before(event)) } };
        self.jobs_coll()
            .update_many(guard, UpdateModifications::Pipeline(vec![doc! { "$set": set }]))
            .hint(Hint::Keys(doc! { "_id": 1 }))
            .session(&mut *session)
            .await?;
        let payloads: Vec<Document> =
            jobs.iter().flat_map(|j| payload_ids(&j.id, j.sync.as_ref().map_or(0, |s| s.payload_parts))).collect();
        if !payloads.is_empty() {
            self.payloads_coll().delete_many(doc! { "_id": { "$in": payloads } }).session(session).await?;
        }
        Ok(())
    }
}

/// Moves a head as far as one walk goes, and takes its mark when that was the end; false when there was nothing to do.
struct WalkTxn<'a> {
    inner: &'a Inner,
    branch: &'a str,
}

#[async_trait]
impl Body for WalkTxn<'_> {
    type Out = bool;

    async fn run(&mut self, session: &mut ClientSession) -> Result<Then<bool>, Halt> {
        let inner = self.inner;
        let branch: Option<Branch> = inner.branches_coll().find_one(doc! { "_id": self.branch }).session(&mut *session).await?;
        let Some(branch) = branch else { return Ok(Then::Abort(false)) };
        let (head, behind) = inner.walk(session, self.branch, branch.head).await?;
        let set = doc! { "$set": { "head": document(&head)?, "head_behind": behind } };
        let done = inner.branches_coll().update_one(doc! { "_id": self.branch }, set).session(session).await?;
        Ok(if done.modified_count > 0 { Then::Commit(true) } else { Then::Abort(false) })
    }
}

struct CommitTxn<'a> {
    inner: &'a Inner,
    commits: &'a [SegmentCommit],
    /// Look for rows that claim our keys before writing; off at first, since it costs a round trip and is never needed in peace.
    look: bool,
    /// A unique index refused a row.
    refused: bool,
}

/// A job with the token of the lease that ended its last attempt.
#[derive(Deserialize)]
pub(super) struct StoredJob {
    #[serde(flatten)]
    pub(super) job: Job,
    pub(super) ended: Option<String>,
}

#[async_trait]
impl Body for CommitTxn<'_> {
    type Out = Vec<Committed>;

    async fn run(&mut self, session: &mut ClientSession) -> Result<Then<Vec<Committed>>, Halt> {
        let jobs = self.read_jobs(session).await?;
        let taken = if self.look { self.rows_in_the_way(session).await? } else { Vec::new() };
        let mut outcomes = Vec::with_capacity(self.commits.len());
        let mut ours = Vec::with_capacity(self.commits.len());
        let mut settled = 0u64;
        for c in self.commits {
            let stored = jobs.iter().find(|s| s.job.id == c.lease.id);
            let claimed = taken.iter().any(|row| in_the_way(row, &c.segment));
            let found = Found { job: stored.map(|s| &s.job), ended: stored.and_then(|s| s.ended.as_deref()), claimed };
            let outcome = rules::judge(c, &found);
            if let (Committed::Now, Some(stored)) = (outcome, stored) {
                ours.push((&stored.job, &c.segment));
                settled += c.payload_bytes;
            }
            outcomes.push(outcome);
        }
        if ours.is_empty() {
            return Ok(Then::Abort(outcomes));
        }
        let (jobs, rows): (Vec<&Job>, Vec<&SegmentRow>) = ours.into_iter().unzip();
        self.inner.end_jobs(session, &jobs, JobEvent::Committed).await?;
        let added = self.inner.add_segments(session, &rows, settled).await;
        self.refused = refused(&added);
        added?;
        self.count(session, &jobs).await?;
        Ok(Then::Commit(outcomes))
    }
}

impl CommitTxn<'_> {
    /// All leases of a call are of one engine, unless somebody hands us another's: then each is counted for its own.
    async fn count(&self, session: &mut ClientSession, jobs: &[&Job]) -> Result<(), Halt> {
        let mut engines: Vec<&str> = jobs.iter().filter_map(|job| job.lease.as_ref()).map(|lease| lease.engine.as_str()).collect();
        engines.sort_unstable();
        for group in engines.chunk_by(|a, b| a == b) {
            let mut counters = Counters::default();
            counters.count(Tally::Done, JobKind::Sync, group.len() as u64);
            self.inner.count(session, Writer::Commit(group[0]), &counters).await?;
        }
        Ok(())
    }

    async fn read_jobs(&self, session: &mut ClientSession) -> Result<Vec<StoredJob>, Error> {
        let ids: Vec<&str> = self.commits.iter().map(|c| c.lease.id.as_str()).collect();
        let mut cursor = self
            .inner
            .jobs_coll()
            .clone_with_type::<StoredJob>()
            .find(doc! { "_id": { "$in": ids } })
            .batch_size(u32::try_from(rules::MAX_COMMITS + 1).unwrap_or(u32::MAX))
            .session(&mut *session)
            .await?;
        cursor.stream(session).try_collect().await
    }

    async fn rows_in_the_way(&self, session: &mut ClientSession) -> Result<Vec<SegmentRow>, Error> {
        let keys: Vec<&str> = self.commits.iter().map(|c| c.segment.key.as_str()).collect();
        let lasts: Vec<i64> = self.commits.iter().map(|c| int(c.segment.last_seq)).collect();
        let branch = self.commits.first().map_or("", |c| c.segment.branch.as_str());
        let filter = doc! { "$or": [{ "_id": { "$in": keys } }, { "branch": branch, "last_seq": { "$in": lasts } }] };
        let mut cursor = self.inner.segments_coll().find(filter).session(&mut *session).await?;
        cursor.stream(session).try_collect().await
    }
}

/// The two unique indexes of segments, as a rule.
fn in_the_way(row: &SegmentRow, new: &SegmentRow) -> bool {
    row.key == new.key || (row.branch == new.branch && row.last_seq == new.last_seq && row.level == new.level && row.epoch == new.epoch)
}

fn refused(outcome: &Result<(), Halt>) -> bool {
    matches!(outcome, Err(Halt::Driver(e)) if is_duplicate(e))
}

struct DiscardTxn<'a> {
    inner: &'a Inner,
    id: &'a str,
    gap: &'a SegmentRow,
    refused: bool,
}

#[async_trait]
impl Body for DiscardTxn<'_> {
    type Out = bool;

    async fn run(&mut self, session: &mut ClientSession) -> Result<Then<bool>, Halt> {
        let (inner, gap) = (self.inner, self.gap);
        let job: Option<Job> = inner.jobs_coll().find_one(doc! { "_id": self.id }).session(&mut *session).await?;
        let Some(job) = job else { return Ok(Then::Abort(false)) };
        rules::check_gap(&job, gap)?;
        if job.state == JobState::Cancelled {
            let row = inner.segments_coll().find_one(doc! { "_id": &gap.key }).session(session).await?;
            return Ok(Then::Abort(row.is_some())); // our own earlier call
        }
        if queue::transition(job.state, JobEvent::Discarded).is_none() {
            return Ok(Then::Abort(false));
        }
        inner.end_jobs(session, &[&job], JobEvent::Discarded).await?;
        let settled = job.sync.as_ref().map_or(0, |s| s.payload_bytes);
        let added = inner.add_segments(session, &[gap], settled).await;
        self.refused = refused(&added);
        added?;
        inner.settle_status(session, &gap.branch).await?;
        let mut counters = Counters::default();
        counters.count(Tally::Cancelled, JobKind::Sync, 1);
        inner.count(session, Writer::Anybody, &counters).await?;
        Ok(Then::Commit(true))
    }
}
