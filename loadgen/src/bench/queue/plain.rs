//! The queue that most people write on MongoDB: every worker takes its next job by one sorted `findOneAndUpdate`, and ends it by one update.
//!
//! Owns: that queue, and its figures. It is what Argon's is compared with: same mongod, as many jobs ready, dead and scheduled, as many workers,
//! a job that does nothing. The server's default write concern, which is majority.

use std::time::Duration;

use argon::fault::{Fault, Result};
use argon::runtime::{clock, random};
use bson::{DateTime, Document, doc};
use mongodb::options::{Acknowledgment, CollectionOptions, WriteConcern};
use mongodb::{Client, Collection, IndexModel};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use serde::Serialize;
use tokio::task::JoinSet;

use super::super::{ratio, real};
use super::fill::failed;
use super::lane::micros;
use super::server::{Counted, PerJob};
use crate::load::latency::{Latencies, Percentiles};

const DB: &str = "plain_queue";
const GROUP: u64 = 5_000;
/// Before anything is measured.
const WARM_UP: Duration = Duration::from_millis(300);

/// What a measurement of the plain queue found.
#[derive(Debug, Serialize)]
pub(super) struct PlainFound {
    /// Jobs that were ready at the beginning.
    pub depth: u64,
    pub workers: usize,
    /// Writes wait for a majority (and so for the journal), as they do when nobody asks for anything else.
    pub majority: bool,
    pub jobs: u64,
    pub jobs_per_s: f64,
    /// `findOneAndUpdate`.
    pub claim_ms: Percentiles,
    /// `updateOne`.
    pub finish_ms: Percentiles,
    pub server: PerJob,
}

/// The plain queue.
#[derive(Debug)]
pub(super) struct Plain {
    jobs: Collection<Document>,
    rng: StdRng,
}

impl Plain {
    /// An empty one with dead and scheduled jobs.
    pub(super) async fn new(client: &Client, others: u64, seed: u64) -> Result<Self> {
        let jobs = client.database(DB).collection("jobs");
        let index = IndexModel::builder().keys(doc! { "state": 1, "priority": -1, "run_at": 1 }).build();
        jobs.create_index(index).await.map_err(failed)?;
        let mut plain = Self { jobs, rng: StdRng::seed_from_u64(seed) };
        plain.insert("dead", others, -600_000).await?;
        plain.insert("scheduled", others, 30 * 86_400_000).await?;
        Ok(plain)
    }

    async fn insert(&mut self, state: &str, count: u64, from_now_ms: i64) -> Result<()> {
        let now = clock::wall_ms();
        let mut left = count;
        while left > 0 {
            let take = left.min(GROUP);
            let rows: Vec<Document> = (0..take)
                .map(|_| {
                    let run_at = now + from_now_ms - self.rng.random_range(0..600_000);
                    // As in Argon's queue: most of them are alike.
                    let priority = [-1, 1].get(self.rng.random_range(0..16)).copied().unwrap_or(0);
                    doc! {
                        "_id": random::ordered_id(), "kind": "noop", "state": state, "priority": priority, "run_at": DateTime::from_millis(run_at),
                        "created_at": DateTime::from_millis(run_at), "attempts": 0, "worker": null, "error": null, "payload": {},
                    }
                })
                .collect();
            left -= take;
            self.jobs.insert_many(rows).ordered(false).await.map_err(failed)?;
        }
        Ok(())
    }

    /// Fills up to `depth`, then lets the workers work for some time.
    pub(super) async fn measure(&mut self, depth: u64, workers: usize, majority: bool, time: Duration) -> Result<PlainFound> {
        let present = self.jobs.count_documents(doc! { "state": "ready" }).await.map_err(failed)?;
        self.insert("ready", depth.saturating_sub(present), 0).await?;
        let concern = if majority { WriteConcern::majority() } else { WriteConcern::builder().w(Acknowledgment::Nodes(1)).build() };
        let options = CollectionOptions::builder().write_concern(concern).build();
        let jobs = self.jobs.client().database(DB).collection_with_options("jobs", options);
        work(&jobs, workers, WARM_UP).await?;
        let db = self.jobs.client().database(DB);
        let before = Counted::now(&db).await?;
        let started = clock::now();
        let found = work(&jobs, workers, time).await?;
        let elapsed = started.elapsed();
        let server = Counted::now(&db).await?.per_job(before, found.jobs);
        Ok(PlainFound {
            depth,
            workers,
            majority,
            jobs: found.jobs,
            jobs_per_s: ratio(real(found.jobs), elapsed.as_secs_f64()),
            claim_ms: found.claim.percentiles(),
            finish_ms: found.finish.percentiles(),
            server,
        })
    }
}

#[derive(Debug)]
struct Times {
    claim: Latencies,
    finish: Latencies,
    jobs: u64,
}

impl Times {
    fn new() -> Self {
        Self { claim: Latencies::new(), finish: Latencies::new(), jobs: 0 }
    }
}

async fn work(jobs: &Collection<Document>, workers: usize, time: Duration) -> Result<Times> {
    let mut tasks = JoinSet::new();
    for n in 0..workers {
        tasks.spawn(worker(jobs.clone(), format!("worker-{n}"), time));
    }
    let mut all = Times::new();
    while let Some(ended) = tasks.join_next().await {
        let times = ended.map_err(|error| Fault::unknown(error.to_string()))??;
        all.claim.merge(&times.claim);
        all.finish.merge(&times.finish);
        all.jobs += times.jobs;
    }
    Ok(all)
}

async fn worker(jobs: Collection<Document>, name: String, time: Duration) -> Result<Times> {
    let (start, mut times) = (clock::now(), Times::new());
    while start.elapsed() < time {
        let at = clock::now();
        let ready = doc! { "state": "ready", "run_at": { "$lte": DateTime::from_millis(clock::wall_ms()) } };
        let taken = doc! { "$set": { "state": "running", "worker": &name, "started_at": DateTime::from_millis(clock::wall_ms()) }, "$inc": { "attempts": 1 } };
        let found = jobs.find_one_and_update(ready, taken).sort(doc! { "priority": -1, "run_at": 1 }).await.map_err(failed)?;
        let Some(job) = found else { return Ok(times) };
        times.claim.record(micros(at), 1);
        let at = clock::now();
        let done = doc! { "$set": { "state": "done", "finished_at": DateTime::from_millis(clock::wall_ms()) } };
        let id = job.get("_id").cloned().unwrap_or(bson::Bson::Null);
        jobs.update_one(doc! { "_id": id, "state": "running", "worker": &name }, done).await.map_err(failed)?;
        times.finish.record(micros(at), 1);
        times.jobs += 1;
    }
    Ok(times)
}
