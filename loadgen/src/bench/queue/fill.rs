//! Owns: a queue of a given depth, quickly. Does not own what is done with it.
//!
//! A million jobs through [`Ledger::enqueue`] take minutes, so rows are inserted as they are. What they look like nobody has to keep in step: one
//! job of each state is made by the ledger itself, and its row is the model of all others, with an id and times of their own.

use std::time::Duration;

use argon::fault::{Fault, Result};
use argon::ledger::{ClaimRequest, Failed, JobKind, Ledger, MongoLedger, NewJob, Priority};
use argon::runtime::random;
use bson::{Bson, Document, doc};
use mongodb::options::Hint;
use mongodb::{Collection, Database};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use tokio::task::JoinSet;

/// Rows of one command.
const GROUP: u64 = 5_000;
/// Commands under way.
const LANES: usize = 2;
/// Ready jobs have been due for up to so long.
const SPAN_MS: i64 = 600_000;
/// When the scheduled ones would be due: not during the benchmark.
const LATER: Duration = Duration::from_secs(30 * 86_400);

/// A queue that is filled.
#[derive(Debug)]
pub(super) struct Queue {
    pub db: Database,
    pub ledger: MongoLedger,
    jobs: Collection<Document>,
    /// One for each priority.
    ready: Vec<Document>,
    dead: Document,
    scheduled: Document,
    rng: StdRng,
    now_ms: i64,
}

impl Queue {
    /// An empty queue in a database of the ledger's.
    pub(super) async fn new(db: Database, ledger: MongoLedger, seed: u64) -> Result<Self> {
        ledger.prepare().await?;
        let jobs = db.collection::<Document>("jobs");
        let mut ready = Vec::new();
        for priority in [Priority::Low, Priority::Normal, Priority::High] {
            ready.push(
                model(&ledger, &jobs, NewJob { priority: Some(priority), ..NewJob::new(random::ordered_id(), JobKind::Noop) }).await?,
            );
        }
        let scheduled = model(&ledger, &jobs, NewJob { delay: LATER, ..NewJob::new(random::ordered_id(), JobKind::Noop) }).await?;
        let dead = dead(&ledger, &jobs).await?;
        jobs.delete_many(doc! {}).await.map_err(failed)?;
        let now_ms = ledger.now_ms().await?;
        Ok(Self { db, ledger, jobs, ready, dead, scheduled, rng: StdRng::seed_from_u64(seed), now_ms })
    }

    /// Dead jobs and scheduled ones, so many each.
    pub(super) async fn fill_others(&mut self, count: u64) -> Result<()> {
        let (dead, scheduled) = (self.dead.clone(), self.scheduled.clone());
        self.insert(count, |_, i| at(&dead, -i)).await?;
        self.insert(count, |_, i| at(&scheduled, i)).await
    }

    /// Ready jobs, until there are so many; most of them of normal priority, due one after the other. Returns how many it has made.
    pub(super) async fn fill(&mut self, depth: u64) -> Result<u64> {
        let missing = depth.saturating_sub(self.count("ready", "ready_in_order").await?);
        self.now_ms = self.ledger.now_ms().await?;
        let ready = self.ready.clone();
        let of = i64::try_from(missing).unwrap_or(i64::MAX).max(1);
        self.insert(missing, |rng, i| {
            let [low, normal, high] = &ready[..] else { return Document::new() };
            let model = match rng.random_range(0..16) {
                0 => low,
                1 => high,
                _ => normal,
            };
            // Ids are in the order of creation, and so is what is due, but for what was delayed a little.
            at(model, SPAN_MS * i / of - SPAN_MS - rng.random_range(0..1_000))
        })
        .await?;
        Ok(missing)
    }

    /// Jobs in a state, over an index that holds nothing else.
    pub(super) async fn count(&self, state: &str, index: &str) -> Result<u64> {
        self.jobs.count_documents(doc! { "state": state }).hint(Hint::Name(index.to_owned())).await.map_err(failed)
    }

    /// `row` gets the number of the job and returns its row, with times that are `now + something`.
    async fn insert(&mut self, count: u64, mut row: impl FnMut(&mut StdRng, i64) -> Document) -> Result<()> {
        let mut lanes = JoinSet::new();
        let (mut next, mut left) = (0, count);
        while left > 0 {
            let take = left.min(GROUP);
            let rows: Vec<Document> = (0..take)
                .map(|_| {
                    next += 1;
                    shifted(row(&mut self.rng, next), self.now_ms)
                })
                .collect();
            left -= take;
            if lanes.len() == LANES {
                joined(lanes.join_next().await)?;
            }
            let jobs = self.jobs.clone();
            lanes.spawn(async move { jobs.insert_many(rows).ordered(false).await.map(drop).map_err(failed) });
        }
        while let Some(ended) = lanes.join_next().await {
            joined(Some(ended))?;
        }
        Ok(())
    }
}

fn joined(ended: Option<Result<Result<()>, tokio::task::JoinError>>) -> Result<()> {
    match ended {
        Some(Ok(done)) => done,
        Some(Err(error)) => Err(Fault::unknown(error.to_string())),
        None => Ok(()),
    }
}

/// The row of a job as the ledger writes it, with times as distances from the moment of its creation.
async fn model(ledger: &MongoLedger, jobs: &Collection<Document>, new: NewJob) -> Result<Document> {
    ledger.enqueue(std::slice::from_ref(&new)).await?;
    stored(jobs, &new.id).await
}

/// The row of a job that has failed for good.
async fn dead(ledger: &MongoLedger, jobs: &Collection<Document>) -> Result<Document> {
    let claimed = ledger.claim(&ClaimRequest::new("bench", &[JobKind::Noop], 1)).await?;
    let lease = claimed.first().and_then(argon::ledger::Job::held).ok_or_else(|| Fault::unknown("a job that is ready was not claimed"))?;
    ledger.fail(&lease, &Failed::Dead { error: "the store refused the object: access denied".to_owned() }).await?;
    stored(jobs, &lease.id).await
}

async fn stored(jobs: &Collection<Document>, id: &str) -> Result<Document> {
    let found = jobs.find_one(doc! { "_id": id }).await.map_err(failed)?;
    let mut row = found.ok_or_else(|| Fault::missing(format!("job {id} has not been stored")))?;
    let created = row.get_i64("created_ms").map_err(|error| Fault::unknown(error.to_string()))?;
    shift(&mut row, -created);
    Ok(row)
}

/// A job of its own, due so many ms after the model, which was due at once.
fn at(model: &Document, ms: i64) -> Document {
    let mut row = model.clone();
    row.insert("_id", random::ordered_id());
    shift(&mut row, ms);
    row
}

fn shifted(mut row: Document, ms: i64) -> Document {
    shift(&mut row, ms);
    row
}

fn shift(row: &mut Document, ms: i64) {
    for field in ["run_at_ms", "sched_key", "created_ms", "finished_ms"] {
        if let Some(Bson::Int64(time)) = row.get_mut(field) {
            *time += ms;
        }
    }
}

#[allow(clippy::needless_pass_by_value)] // the shape of map_err
pub(super) fn failed(error: mongodb::error::Error) -> Fault {
    Fault::unknown(format!("the queue of the benchmark: {error}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_row_is_its_model_with_an_id_and_times_of_its_own() {
        let mut model =
            doc! { "_id": "a", "run_at_ms": 5i64, "sched_key": -59_995i64, "created_ms": 5i64, "finished_ms": null, "attempt": 0 };
        shift(&mut model, -5);
        let row = shifted(at(&model, -100), 1_000);
        assert_ne!(row.get_str("_id").unwrap(), "a");
        let times = ["run_at_ms", "sched_key", "created_ms"].map(|field| row.get_i64(field).unwrap());
        assert_eq!((times, row.get("finished_ms")), ([900, -59_100, 900], Some(&Bson::Null)));
        assert_eq!(row.get_i32("attempt").unwrap(), 0);
    }
}
