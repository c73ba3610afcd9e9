//! Owns: making jobs ready, putting them aside, taking them, marking their start, and reading their payload.
//! Does not own: storing them (`checkpoint`, `enqueue`), finishing them (`commit`, `finish`).

use std::time::Duration;

use bson::{Bson, Document, doc};
use bytes::Bytes;
use futures_util::TryStreamExt;
use mongodb::options::{Acknowledgment, Hint, ReadConcern, UpdateModifications, WriteConcern};

use super::super::{BranchId, ClaimRequest, Job, JobId, JobKind, JobLease, JobState, Pauses, rules};
use super::batch::{Safe, update_many};
use super::classify::fault_of;
use super::indexes::{JOBS_PARKED, JOBS_READY, JOBS_RUNNING, JOBS_SCHEDULED};
use super::rows::{now, text, word, words};
use super::{Inner, millis};
use crate::fault::{Fault, Kind, Result};
use crate::queue::{self, JobEvent, SUSPECT_CRASHES};
use crate::runtime::{clock, random};

/// Rounds of a claim that finds jobs and loses them all to others.
const MAX_ROUNDS: usize = 5;

/// What a claim looks at before it takes a job.
#[derive(Debug, serde::Deserialize)]
struct Candidate {
    #[serde(rename = "_id")]
    id: JobId,
    crashes: u32,
    branch: BranchId,
    sched_key: i64,
}

impl Inner {
    pub(super) async fn promote(&self) -> Result<u64> {
        // Mostly nothing is scheduled, and one entry of an index says so.
        if self.ids(doc! { "state": word(JobState::Scheduled) }, JOBS_SCHEDULED, 1).await?.is_empty() {
            return Ok(0);
        }
        // Server time that is a round trip old only makes a job wait for the next round.
        let now_ms = self.now_ms().await?;
        let due = doc! { "state": word(JobState::Scheduled), "parked": Bson::Null, "run_at_ms": { "$lte": now_ms } };
        let promoted = self.make_ready(due, JOBS_SCHEDULED).await?;
        Ok(promoted + self.unpark().await?)
    }

    /// Jobs that were parked for a branch that is not paused any more, or never was: a claimer may have parked them after the end of a pause,
    /// since it learns of it a little later.
    pub(super) async fn unpark(&self) -> Result<u64> {
        let pauses = self.controls().await?.pauses;
        let held: Vec<&BranchId> = pauses.branches().collect();
        let free = doc! { "state": word(JobState::Scheduled), "parked": true, "branch": { "$nin": held } };
        self.make_ready(free, JOBS_PARKED).await
    }

    /// In chunks, each an update by ids: one that was interrupted has done what it has done.
    async fn make_ready(&self, which: Document, index: &str) -> Result<u64> {
        let mut made = 0;
        for _ in 0..rules::MAX_CHUNKS {
            let ids = self.ids(which.clone(), index, rules::CHUNK).await?;
            if ids.is_empty() {
                break;
            }
            let mut these = which.clone();
            these.insert("_id", doc! { "$in": &ids });
            let ready = doc! { "$set": { "state": word(JobState::Ready) }, "$unset": { "parked": "" } };
            made += self.jobs_coll().update_many(these, ready).hint(Hint::Keys(doc! { "_id": 1 })).await.map_err(fault_of)?.modified_count;
            if ids.len() < rules::CHUNK {
                break;
            }
        }
        Ok(made)
    }

    async fn ids(&self, which: Document, index: &str, limit: usize) -> Result<Vec<JobId>> {
        #[derive(serde::Deserialize)]
        struct Row {
            #[serde(rename = "_id")]
            id: JobId,
        }
        let rows = self.jobs_coll().clone_with_type::<Row>();
        let limit = i64::try_from(limit).unwrap_or(i64::MAX);
        let cursor = rows.find(which).hint(Hint::Name(index.to_owned())).projection(doc! { "_id": 1 }).limit(limit).await;
        let found: Vec<Row> = cursor.map_err(fault_of)?.try_collect().await.map_err(fault_of)?;
        Ok(found.into_iter().map(|row| row.id).collect())
    }

    /// Finds ids, takes them by a guarded update under a fresh token, and reads what the token got. Claimers that meet
    /// share the jobs between them: whoever gets none looks a little further down the queue.
    ///
    /// SUBTLE: not by majority, neither the reads nor the write; waiting for it made small claims take twice as long. A claim that a failover loses
    /// leaves its job ready, and whatever is done under its lease is fenced, since each write that ends a job is by majority and asks for the lease.
    /// So it costs repeated work, as a process does that dies. It also means that lists, which are of the majority, show a claim a moment later.
    pub(super) async fn claim(&self, request: &ClaimRequest) -> Result<Vec<Job>> {
        let kinds = request.pauses.open(&request.kinds);
        if request.limit == 0 || kinds.is_empty() {
            return Ok(Vec::new());
        }
        let (mut lost, mut parked) = (0, 0);
        while lost < MAX_ROUNDS {
            let beyond = parked == rules::MAX_PARKS;
            let found = self.candidates(&kinds, request, lost, beyond).await?;
            if !beyond && found.iter().any(|c| request.pauses.holds_branch(&c.branch)) {
                self.park(&kinds, &request.pauses).await?;
                parked += 1;
                continue;
            }
            if found.is_empty() {
                break;
            }
            let ids: Vec<JobId> = found.into_iter().map(|c| c.id).collect();
            let claimed = self.take(request, &ids).await?;
            if !claimed.is_empty() {
                return Ok(claimed);
            }
            lost += 1;
        }
        Ok(Vec::new())
    }

    /// `beyond`: enough has been put aside for one claim. What lies behind the rest of it, others must not wait for.
    async fn candidates(&self, kinds: &[JobKind], request: &ClaimRequest, round: usize, beyond: bool) -> Result<Vec<Candidate>> {
        let mut ready = doc! { "state": word(JobState::Ready), "kind": { "$in": words(kinds) } };
        if beyond {
            ready.insert("branch", doc! { "$nin": request.pauses.branches().collect::<Vec<_>>() });
        }
        if request.alone {
            let first = self.ready_ids(ready.clone(), 1).await?;
            match first.first() {
                Some(c) if queue::is_suspect(c.crashes) => return Ok(first),
                Some(_) => {}
                None => return Ok(Vec::new()),
            }
        }
        let mut innocent = ready;
        innocent.insert("crashes", doc! { "$lt": SUSPECT_CRASHES });
        // A round that lost everything to others looks at twice as many, and takes a random stretch of them.
        let window = request.limit.saturating_mul(1 << round.min(4));
        let found = self.first_in_line(kinds, innocent, window, request.goes_on).await?;
        let spare = found.len().saturating_sub(request.limit);
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            clippy::cast_precision_loss,
            reason = "a fraction of a small count"
        )]
        let skip = (random::unit() * (spare + 1) as f64) as usize;
        let skip = if round == 0 { 0 } else { skip.min(spare) };
        Ok(found.into_iter().skip(skip).take(request.limit).collect())
    }

    /// From where the queue begins, if that is known and enough lies behind it, or from the very beginning.
    async fn first_in_line(&self, kinds: &[JobKind], filter: Document, window: usize, goes_on: bool) -> Result<Vec<Candidate>> {
        let head = if goes_on { self.heads.of(kinds, clock::now()) } else { None };
        if let Some(key) = head {
            let mut from = filter.clone();
            from.insert("sched_key", doc! { "$gte": key });
            let found = self.ready_ids(from, window).await?;
            if let Some(first) = found.first().filter(|_| found.len() == window) {
                self.heads.found(kinds, first.sched_key, false, clock::now());
                return Ok(found);
            }
        }
        let found = self.ready_ids(filter, window).await?;
        match found.first().filter(|_| found.len() == window) {
            Some(first) => self.heads.found(kinds, first.sched_key, true, clock::now()),
            None => self.heads.forget(kinds),
        }
        Ok(found)
    }

    /// Puts jobs of paused branches aside, those that come first in line: the next claim does not meet them again.
    async fn park(&self, kinds: &[JobKind], pauses: &Pauses) -> Result<()> {
        let ready = doc! { "state": word(JobState::Ready), "kind": { "$in": words(kinds) } };
        let held = self.ready_ids(ready, rules::CHUNK).await?.into_iter().filter(|c| pauses.holds_branch(&c.branch));
        let ids: Vec<JobId> = held.map(|c| c.id).collect();
        let states = words(&queue::states_before(JobEvent::Parked));
        let these = doc! { "_id": { "$in": ids }, "state": { "$in": states } };
        let aside = doc! { "$set": { "state": word(JobState::Scheduled), "parked": true } };
        self.jobs_coll().update_many(these, aside).hint(Hint::Keys(doc! { "_id": 1 })).await.map_err(fault_of)?;
        Ok(())
    }

    pub(super) async fn suspect_waits(&self, kinds: &[JobKind], patience: Duration) -> Result<bool> {
        let ready = doc! { "state": word(JobState::Ready), "kind": { "$in": words(kinds) } };
        let Some(Candidate { id, crashes, .. }) = self.ready_ids(ready, 1).await?.pop() else { return Ok(false) };
        if !queue::is_suspect(crashes) {
            return Ok(false); // the usual case costs one look at an index
        }
        let Some(job) = self.job(&id).await? else { return Ok(false) };
        Ok(queue::suspect_is_due(job.crashes, job.run_at_ms, self.now_ms().await?, patience))
    }

    /// Not by majority: it costs a round trip and no more, and a mark that a failover loses counts in the job's favour.
    pub(super) async fn start_many(&self, leases: &[JobLease]) -> Result<Vec<bool>> {
        let mut claims: Vec<(&str, u32, Vec<&str>)> = Vec::new();
        for lease in leases {
            match claims.iter_mut().find(|(token, attempt, _)| (*token, *attempt) == (lease.token.as_str(), lease.attempt)) {
                Some((.., ids)) => ids.push(&lease.id),
                None => claims.push((&lease.token, lease.attempt, vec![&lease.id])),
            }
        }
        let running = word(JobState::Running);
        let statement = |(token, attempt, ids): (&str, u32, Vec<&str>)| {
            let theirs = doc! { "_id": { "$in": ids }, "state": running.clone(), "lease.token": token, "attempt": attempt };
            let since = doc! { "$ifNull": ["$lease.started_ms", now()] };
            update_many(theirs, doc! { "lease.started": true, "lease.started_ms": since })
        };
        let done = self.update_all("jobs", claims.into_iter().map(statement).collect(), Safe::Primary).await?;
        if done.matched == leases.len() as u64 {
            return Ok(vec![true; leases.len()]);
        }
        let ids: Vec<&str> = leases.iter().map(|lease| lease.id.as_str()).collect();
        let cursor = self.jobs_coll().find(doc! { "_id": { "$in": ids } }).await.map_err(fault_of)?;
        let stored: Vec<Job> = cursor.try_collect().await.map_err(fault_of)?;
        Ok(leases.iter().map(|lease| stored.iter().any(|job| rules::holds(job, lease))).collect())
    }

    pub(super) async fn cancel_requests(&self, engine: &str) -> Result<Vec<JobId>> {
        let asked = doc! { "state": word(JobState::Running), "lease.engine": engine, "cancel_requested": true };
        self.ids(asked, JOBS_RUNNING, rules::CHUNK).await
    }

    /// Looks at all running jobs: as many as there are workers, and a few.
    pub(super) async fn stuck(&self, older_than: Duration, max: usize) -> Result<Vec<Job>> {
        if max == 0 {
            return Ok(Vec::new());
        }
        let before = self.now_ms().await?.saturating_sub(millis(older_than));
        let since = doc! { "$ifNull": ["$lease.started_ms", "$lease.claimed_ms"] };
        let long = doc! { "state": word(JobState::Running), "$expr": { "$lt": [since, before] } };
        let limit = i64::try_from(max).unwrap_or(i64::MAX);
        let cursor = self.jobs_coll().find(long).hint(Hint::Name(JOBS_RUNNING.to_owned())).limit(limit).await.map_err(fault_of)?;
        cursor.try_collect().await.map_err(fault_of)
    }

    /// From the index alone, in the order of claims.
    async fn ready_ids(&self, filter: Document, limit: usize) -> Result<Vec<Candidate>> {
        let batch = u32::try_from(limit).unwrap_or(u32::MAX);
        let limit = i64::try_from(limit).unwrap_or(i64::MAX);
        let cursor = self
            .jobs_coll()
            .clone_with_type::<Candidate>()
            .find(filter)
            .read_concern(ReadConcern::local())
            .hint(Hint::Name(JOBS_READY.to_owned()))
            .sort(doc! { "sched_key": 1, "_id": 1 })
            .projection(doc! { "crashes": 1, "branch": 1, "sched_key": 1 })
            .limit(limit)
            .batch_size(batch) // in one answer, not a first one of 101
            .await
            .map_err(fault_of)?;
        cursor.try_collect().await.map_err(fault_of)
    }

    async fn take(&self, request: &ClaimRequest, ids: &[JobId]) -> Result<Vec<Job>> {
        let token = random::id();
        let guard = doc! { "_id": { "$in": ids }, "state": { "$in": words(&queue::states_before(JobEvent::Claimed)) } };
        let first = ids.get(..request.start.min(ids.len())).unwrap_or_default();
        // The usual cases are constants: the server looks through a list once for every job.
        let started: Bson = match first.len() {
            0 => false.into(),
            n if n == ids.len() => true.into(),
            _ => doc! { "$in": ["$_id", { "$literal": first }] }.into(),
        };
        let lease = doc! {
            "engine": text(&request.engine), "token": text(&token), "claimed_ms": now(),
            "started": started.clone(), "started_ms": { "$cond": [started, now(), "$$REMOVE"] },
        };
        let set = doc! { "state": word(JobState::Running), "attempt": { "$add": ["$attempt", 1] }, "lease": lease };
        let update = UpdateModifications::Pipeline(vec![doc! { "$set": set }]);
        let one = WriteConcern::builder().w(Acknowledgment::Nodes(1)).build();
        match self.jobs_coll().update_many(guard, update).hint(Hint::Keys(doc! { "_id": 1 })).write_concern(one).await {
            Ok(done) if done.matched_count == 0 => Ok(Vec::new()),
            Ok(_) => self.claimed_by(&request.engine, &token).await,
            // An update of many is not retried by the driver. What it did, the token tells.
            Err(e) => {
                let fault = fault_of(e);
                if fault.kind != Kind::Unknown {
                    return Err(fault);
                }
                let claimed = self.claimed_by(&request.engine, &token).await?;
                if claimed.is_empty() { Err(fault) } else { Ok(claimed) }
            }
        }
    }

    /// What an update has just claimed. Asked again when the answer is lost: nobody else knows of these jobs until they are looked for.
    async fn claimed_by(&self, engine: &str, token: &str) -> Result<Vec<Job>> {
        match self.read_claimed(engine, token).await {
            Err(fault) if fault.may_heal() => self.read_claimed(engine, token).await,
            read => read,
        }
    }

    async fn read_claimed(&self, engine: &str, token: &str) -> Result<Vec<Job>> {
        let ours = doc! { "state": word(JobState::Running), "lease.engine": engine, "lease.token": token };
        let cursor = self
            .jobs_coll()
            .find(ours)
            .read_concern(ReadConcern::local())
            .hint(Hint::Name(JOBS_RUNNING.to_owned()))
            .batch_size(u32::try_from(rules::CHUNK).unwrap_or(u32::MAX))
            .await
            .map_err(fault_of)?;
        let mut jobs: Vec<Job> = cursor.try_collect().await.map_err(fault_of)?;
        jobs.sort_by(|a, b| (a.sched_key, &a.id).cmp(&(b.sched_key, &b.id)));
        Ok(jobs)
    }

    /// SUBTLE: read as claims read, from what the primary has. A claim may be ahead of the majority that the checkpoint waits for, and a majority read would
    /// then say that the job does not exist. What is rolled back later is harmless: the commit is fenced by the job, which is gone then.
    pub(super) async fn payload(&self, id: &str) -> Result<Vec<Bytes>> {
        let job = self.jobs_coll().find_one(doc! { "_id": id }).read_concern(ReadConcern::local()).await.map_err(fault_of)?;
        let job = job.ok_or_else(|| Fault::missing(format!("job {id} does not exist")))?;
        let expected = job.sync.map_or(0, |s| s.payload_parts);
        if expected as usize > rules::MAX_PARTS {
            return Err(Fault::corrupt(format!("job {id} says it has {expected} payload parts, at most {} are allowed", rules::MAX_PARTS)));
        }
        let mut parts = Vec::with_capacity(expected as usize);
        let mut cursor = self
            .payloads_coll()
            .find(doc! { "_id": { "$in": payload_ids(id, expected) } })
            .read_concern(ReadConcern::local())
            .sort(doc! { "_id": 1 })
            .await
            .map_err(fault_of)?;
        while let Some(row) = cursor.try_next().await.map_err(fault_of)? {
            let data = row.get_binary("data").map_err(|e| Fault::corrupt(format!("job {id}: payload part {}: {e}", parts.len())))?;
            parts.push(Bytes::copy_from_slice(data.bytes));
        }
        if parts.len() < expected as usize {
            return Err(Fault::missing(format!("job {id}: {} of {expected} payload parts are stored", parts.len())));
        }
        Ok(parts)
    }
}

/// Ids of all payload parts of a job.
pub(super) fn payload_ids(job: &str, parts: u32) -> Vec<Document> {
    (0..i32::try_from(parts).unwrap_or(i32::MAX)).take(rules::MAX_PARTS).map(|part| doc! { "job": job, "part": part }).collect()
}
