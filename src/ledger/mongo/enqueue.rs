//! Owns: storing jobs of kinds other than sync. Does not own: what makes a new job acceptable (`rules`).

use bson::{Bson, Document, doc};

use super::super::rules;
use super::super::{Enqueued, Job, JobId, JobState, NewJob};
use super::batch::{Safe, Updated};
use super::classify::fault_of;
use super::indexes::JOBS_UNIQUE;
use super::rows::{literal, now, schedule, words};
use super::{Inner, millis};
use crate::fault::{Fault, Result};
use mongodb::options::Hint;

/// Bytes of params in one command: far below the 16 MB that a command may have.
const MAX_BYTES: usize = 4 << 20;
/// A holder of a unique key that is gone when it is looked for makes room: the job is stored in the next round.
const MAX_ROUNDS: usize = 5;
/// A unique index refused the write.
const DUPLICATE: i32 = 11_000;
/// States in which a job holds its unique key; the partial index says the same.
pub(super) const ALIVE: [JobState; 3] = [JobState::Scheduled, JobState::Ready, JobState::Running];

impl Inner {
    pub(super) async fn enqueue(&self, jobs: &[NewJob]) -> Result<Vec<Enqueued>> {
        rules::check_new(jobs)?;
        let mut outcomes: Vec<Option<Enqueued>> = vec![None; jobs.len()];
        for _ in 0..MAX_ROUNDS {
            let open: Vec<usize> = (0..jobs.len()).filter(|i| outcomes[*i].is_none()).collect();
            for part in parts(jobs, &open) {
                let statements: Result<Vec<Document>> = part.iter().map(|i| upsert(&jobs[*i])).collect();
                let done = self.update_all("jobs", statements?, Safe::Majority).await?;
                for (at, i) in part.iter().enumerate() {
                    outcomes[*i] = self.outcome(&jobs[*i], at, &done).await?;
                }
            }
            if outcomes.iter().all(Option::is_some) {
                break;
            }
        }
        let all: Option<Vec<Enqueued>> = outcomes.into_iter().collect();
        all.ok_or_else(|| Fault::transient("other jobs with the same unique key keep coming and going"))
    }

    /// Of the statement at a place of its command; `None` when it has to be tried again.
    async fn outcome(&self, new: &NewJob, at: usize, done: &Updated) -> Result<Option<Enqueued>> {
        if done.upserted.iter().any(|u| u.index == at) {
            return Ok(Some(Enqueued::Stored));
        }
        match done.errors.iter().find(|e| e.index == at) {
            None => Ok(Some(Enqueued::Already)),
            Some(refused) if refused.code == DUPLICATE => self.in_the_way(new).await,
            Some(refused) => Err(Fault::unknown(format!("job {}: MongoDB: {} (code {})", new.id, refused.errmsg, refused.code))),
        }
    }

    async fn in_the_way(&self, new: &NewJob) -> Result<Option<Enqueued>> {
        if self.job(&new.id).await?.is_some() {
            return Ok(Some(Enqueued::Already)); // the same call at the same moment
        }
        let Some(key) = &new.unique_key else { return Ok(None) };
        Ok(self.holder_of(key).await?.map(|job| Enqueued::Duplicate { job }))
    }

    /// The job that has a unique key now.
    async fn holder_of(&self, key: &str) -> Result<Option<JobId>> {
        let holder = doc! { "unique_key": key, "state": { "$in": words(&ALIVE) } };
        let found: Option<Job> = self.jobs_coll().find_one(holder).hint(Hint::Name(JOBS_UNIQUE.to_owned())).await.map_err(fault_of)?;
        Ok(found.map(|job| job.id))
    }
}

/// The open jobs, in commands of bounded size.
fn parts(jobs: &[NewJob], open: &[usize]) -> Vec<Vec<usize>> {
    let mut parts: Vec<Vec<usize>> = Vec::new();
    let mut bytes = usize::MAX;
    for i in open {
        let size = jobs[*i].params.as_ref().map_or(0, |params| params.as_bytes().len());
        if bytes.saturating_add(size) > MAX_BYTES {
            parts.push(Vec::new());
            bytes = 0;
        }
        bytes += size;
        if let Some(part) = parts.last_mut() {
            part.push(*i);
        }
    }
    parts
}

/// The job by pipeline upsert: an insert cannot use the server's clock (correctness.md 27). A job that is there stays as it is.
fn upsert(new: &NewJob) -> Result<Document> {
    let row = rules::new_row(new);
    let mut times = schedule(row.priority, millis(new.delay));
    times.insert("created_ms", now());
    let merged: Bson = doc! { "$mergeObjects": [literal(&row)?, times] }.into();
    let absent = doc! { "$eq": [{ "$type": "$state" }, "missing"] };
    let pipeline = vec![doc! { "$replaceWith": { "$cond": [absent, merged, "$$ROOT"] } }];
    Ok(doc! { "q": { "_id": &new.id }, "u": pipeline, "upsert": true })
}
