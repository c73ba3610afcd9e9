//! Owns: making jobs ready, taking them, and reading their payload. Does not own: finishing them (`commit`, `jobs`).

use std::time::Duration;

use bson::{Document, doc};
use bytes::Bytes;
use futures_util::TryStreamExt;
use mongodb::options::{Acknowledgment, Hint, UpdateModifications, WriteConcern};

use super::super::{Job, JobKind, JobLease, JobState, rules};
use super::Inner;
use super::classify::fault_of;
use super::rows::{held_by, now, text, word, words};
use crate::fault::{Fault, Kind, Result};
use crate::queue::{self, JobEvent, SUSPECT_CRASHES};
use crate::runtime::random;

/// Rounds of a claim that finds jobs and loses them all to others.
const MAX_ROUNDS: usize = 5;

impl Inner {
    pub(super) async fn promote(&self) -> Result<u64> {
        // Server time that is a round trip old only makes a job wait for the next round.
        let now_ms = self.now_ms().await?;
        let due = doc! { "state": word(JobState::Scheduled), "run_at_ms": { "$lte": now_ms } };
        let ready = doc! { "$set": { "state": word(JobState::Ready) } };
        let done = self.jobs_coll().update_many(due, ready).await.map_err(fault_of)?;
        Ok(done.modified_count)
    }

    /// Finds ids, takes them by a guarded update under a fresh token, and reads what the token got. Claimers that meet
    /// share the jobs between them: whoever gets none looks a little further down the queue.
    pub(super) async fn claim(&self, engine: &str, kinds: &[JobKind], limit: usize, alone: bool) -> Result<Vec<Job>> {
        if limit == 0 || kinds.is_empty() {
            return Ok(Vec::new());
        }
        for round in 0..MAX_ROUNDS {
            let ids = self.candidates(kinds, limit, alone, round).await?;
            if ids.is_empty() {
                return Ok(Vec::new());
            }
            let claimed = self.take(engine, &ids).await?;
            if !claimed.is_empty() {
                return Ok(claimed);
            }
        }
        Ok(Vec::new())
    }

    async fn candidates(&self, kinds: &[JobKind], limit: usize, alone: bool, round: usize) -> Result<Vec<String>> {
        let ready = doc! { "state": word(JobState::Ready), "kind": { "$in": words(kinds) } };
        if alone {
            let first = self.ready_ids(ready.clone(), 1).await?;
            match first.first() {
                Some((id, crashes)) if queue::is_suspect(*crashes) => return Ok(vec![id.clone()]),
                Some(_) => {}
                None => return Ok(Vec::new()),
            }
        }
        let mut innocent = ready;
        innocent.insert("crashes", doc! { "$lt": SUSPECT_CRASHES });
        // A round that lost everything to others looks at twice as many, and takes a random stretch of them.
        let window = limit.saturating_mul(1 << round.min(4));
        let found = self.ready_ids(innocent, window).await?;
        let spare = found.len().saturating_sub(limit);
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            clippy::cast_precision_loss,
            reason = "a fraction of a small count"
        )]
        let skip = (random::unit() * (spare + 1) as f64) as usize;
        let skip = if round == 0 { 0 } else { skip.min(spare) };
        Ok(found.into_iter().skip(skip).take(limit).map(|(id, _)| id).collect())
    }

    pub(super) async fn suspect_waits(&self, kinds: &[JobKind], patience: Duration) -> Result<bool> {
        let ready = doc! { "state": word(JobState::Ready), "kind": { "$in": words(kinds) } };
        let Some((id, crashes)) = self.ready_ids(ready, 1).await?.pop() else { return Ok(false) };
        if !queue::is_suspect(crashes) {
            return Ok(false); // the usual case costs one look at an index
        }
        let Some(job) = self.job(&id).await? else { return Ok(false) };
        Ok(queue::suspect_is_due(job.crashes, job.run_at_ms, self.now_ms().await?, patience))
    }

    /// Not by majority: it costs a round trip and no more, and a mark that a failover loses counts in the job's favour.
    pub(super) async fn start(&self, lease: &JobLease) -> Result<bool> {
        let started = doc! { "$set": { "lease.started": true } };
        let one = WriteConcern::builder().w(Acknowledgment::Nodes(1)).build();
        let done = self.jobs_coll().update_one(held_by(lease), started).write_concern(one).await.map_err(fault_of)?;
        Ok(done.matched_count > 0)
    }

    async fn ready_ids(&self, filter: Document, limit: usize) -> Result<Vec<(String, u32)>> {
        #[derive(serde::Deserialize)]
        struct Candidate {
            #[serde(rename = "_id")]
            id: String,
            crashes: u32,
        }
        let limit = i64::try_from(limit).unwrap_or(i64::MAX);
        let cursor = self
            .jobs_coll()
            .clone_with_type::<Candidate>()
            .find(filter)
            .sort(doc! { "sched_key": 1, "_id": 1 })
            .projection(doc! { "crashes": 1 })
            .limit(limit)
            .await
            .map_err(fault_of)?;
        let found: Vec<Candidate> = cursor.try_collect().await.map_err(fault_of)?;
        Ok(found.into_iter().map(|c| (c.id, c.crashes)).collect())
    }

    async fn take(&self, engine: &str, ids: &[String]) -> Result<Vec<Job>> {
        let token = random::id();
        let guard = doc! { "_id": { "$in": ids }, "state": { "$in": words(&queue::states_before(JobEvent::Claimed)) } };
        let lease = doc! { "engine": text(engine), "token": text(&token), "claimed_ms": now(), "started": false };
        let set = doc! { "state": word(JobState::Running), "attempt": { "$add": ["$attempt", 1] }, "lease": lease };
        let update = UpdateModifications::Pipeline(vec![doc! { "$set": set }]);
        match self.jobs_coll().update_many(guard, update).hint(Hint::Keys(doc! { "_id": 1 })).await {
            Ok(done) if done.matched_count == 0 => Ok(Vec::new()),
            Ok(_) => self.claimed_by(&token).await,
            // An update of many is not retried by the driver. What it did, the token tells.
            Err(e) => {
                let fault = fault_of(e);
                if fault.kind != Kind::Unknown {
                    return Err(fault);
                }
                let claimed = self.claimed_by(&token).await?;
                if claimed.is_empty() { Err(fault) } else { Ok(claimed) }
            }
        }
    }

    async fn claimed_by(&self, token: &str) -> Result<Vec<Job>> {
        let ours = doc! { "state": word(JobState::Running), "lease.token": token };
        let cursor = self.jobs_coll().find(ours).await.map_err(fault_of)?;
        let mut jobs: Vec<Job> = cursor.try_collect().await.map_err(fault_of)?;
        jobs.sort_by(|a, b| (a.sched_key, &a.id).cmp(&(b.sched_key, &b.id)));
        Ok(jobs)
    }

    pub(super) async fn payload(&self, id: &str) -> Result<Vec<Bytes>> {
        let job = self.job(id).await?.ok_or_else(|| Fault::missing(format!("job {id} does not exist")))?;
        let expected = job.sync.map_or(0, |s| s.payload_parts);
        if expected as usize > rules::MAX_PARTS {
            return Err(Fault::corrupt(format!("job {id} says it has {expected} payload parts, at most {} are allowed", rules::MAX_PARTS)));
        }
        let mut parts = Vec::with_capacity(expected as usize);
        let mut cursor = self
            .payloads_coll()
            .find(doc! { "_id": { "$in": payload_ids(id, expected) } })
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
