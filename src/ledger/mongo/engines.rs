//! Owns: heartbeats and the rescue of what dead processes held. Does not own: how often (`queue`'s callers), or who is known to be dead.

use async_trait::async_trait;
use bson::{Bson, Document, doc};
use futures_util::TryStreamExt;
use mongodb::ClientSession;
use mongodb::options::{Hint, UpdateModifications};

use super::super::status::Tally;
use super::super::{Counters, EngineBeat, EngineId, Job, JobId, JobState, Rescued};
use super::Inner;
use super::classify::fault_of;
use super::counters::Writer;
use super::finish::unless_wanted;
use super::indexes::JOBS_RUNNING;
use super::rows::{literal, now, text, with_error, word};
use super::txn::{Body, Halt, Then};
use crate::fault::Result;
use crate::queue::{self, AfterCrash};

impl Inner {
    pub(super) async fn heartbeat(&self, beat: &EngineBeat, first: bool) -> Result<bool> {
        let merged = doc! { "$mergeObjects": [literal(beat)?, { "beat_ms": now() }] };
        let update = UpdateModifications::Pipeline(vec![doc! { "$replaceWith": merged }]);
        // Only the first may create the document: a later one that finds none has been taken for dead.
        let done = self.engines_coll().update_one(doc! { "_id": &beat.id }, update).upsert(first).await.map_err(fault_of)?;
        Ok(done.matched_count > 0 || done.upserted_id.is_some())
    }

    pub(super) async fn engines(&self) -> Result<Vec<EngineBeat>> {
        let cursor = self.engines_coll().find(doc! {}).sort(doc! { "_id": 1 }).await.map_err(fault_of)?;
        cursor.try_collect().await.map_err(fault_of)
    }

    pub(super) async fn retire(&self, engine: &str) -> Result<()> {
        self.transact(&mut RetireTxn { inner: self, engine }).await
    }

    pub(super) async fn rescue(&self, by: &str, silent_before_ms: Option<i64>, known_dead: &[EngineId]) -> Result<Rescued> {
        self.end_late_transactions().await;
        // Owners before engines: a process has a document before it owns anything, so an owner that is not in the later
        // list has left. The other order would take a process that has just started for one that is gone.
        let owners = self.owners().await?;
        let engines = self.engines().await?;
        let mut out = Rescued::default();
        for engine in engines.iter().filter(|e| e.id != by) {
            let gone = match silent_before_ms {
                _ if known_dead.contains(&engine.id) => Gone::Known,
                Some(cutoff_ms) if engine.beat_ms < cutoff_ms => Gone::Silent { cutoff_ms },
                _ => continue,
            };
            self.end_transactions_of(&engine.id).await;
            let mut body = RescueTxn { inner: self, engine: &engine.id, gone };
            if let Some((jobs, captures)) = self.transact(&mut body).await? {
                self.remember_rescued(&engine.id);
                out.engines.push(engine.id.clone());
                out.jobs += jobs;
                out.captures += captures;
            }
        }
        for owner in owners.iter().filter(|o| *o != by && !engines.iter().any(|e| e.id == **o)) {
            let gone = Gone::Left { died: known_dead.contains(owner) };
            self.end_transactions_of(owner).await;
            let mut body = RescueTxn { inner: self, engine: owner, gone };
            if let Some((jobs, captures)) = self.transact(&mut body).await? {
                out.jobs += jobs;
                out.captures += captures;
            }
        }
        Ok(out)
    }

    /// Everybody who holds a job or a capture, or has counted something that is not part of the total yet.
    async fn owners(&self) -> Result<Vec<EngineId>> {
        let running = doc! { "state": word(JobState::Running) };
        let mut found = self.jobs_coll().distinct("lease.engine", running).await.map_err(fault_of)?;
        found.extend(self.captures_coll().distinct("owner", doc! { "owner": { "$gt": "" } }).await.map_err(fault_of)?);
        found.extend(self.counted().await?);
        let mut owners: Vec<EngineId> = found.iter().filter_map(|b| b.as_str().map(str::to_owned)).collect();
        owners.sort();
        owners.dedup();
        Ok(owners)
    }
}

/// How we know that a process is gone.
#[derive(Debug, Clone, Copy)]
enum Gone {
    /// The caller has proof.
    Known,
    /// No heartbeat since then.
    Silent { cutoff_ms: i64 },
    /// It has no document any more, but something is still in its name.
    Left { died: bool },
}

/// Takes everything from one process, in one transaction with the removal of its document.
///
/// SUBTLE: the condition on the heartbeat is part of the delete. A heartbeat that comes while we look either is seen here
/// or conflicts with the delete, so a process that was only slow keeps its jobs, or learns at once that it has lost them.
struct RescueTxn<'a> {
    inner: &'a Inner,
    engine: &'a str,
    gone: Gone,
}

#[async_trait]
impl Body for RescueTxn<'_> {
    type Out = Option<(u64, u64)>;

    async fn run(&mut self, session: &mut ClientSession) -> Result<Then<Option<(u64, u64)>>, Halt> {
        let (inner, engine) = (self.inner, self.engine);
        let died = match self.gone {
            Gone::Left { died } => {
                if inner.engines_coll().find_one(doc! { "_id": engine }).session(&mut *session).await?.is_some() {
                    return Ok(Then::Abort(None));
                }
                died
            }
            Gone::Known | Gone::Silent { .. } => {
                let mut stale = doc! { "_id": engine };
                if let Gone::Silent { cutoff_ms } = self.gone {
                    stale.insert("beat_ms", doc! { "$lt": cutoff_ms });
                }
                if inner.engines_coll().delete_one(stale).session(&mut *session).await?.deleted_count == 0 {
                    return Ok(Then::Abort(None));
                }
                true
            }
        };
        let jobs = self.take_jobs(session, died).await?;
        // The next fence now, not when somebody takes it: a zombie learns at its next checkpoint.
        let free = doc! { "$set": { "owner": Bson::Null }, "$inc": { "fence": 1i64 } };
        let freed = inner.captures_coll().update_many(doc! { "owner": engine }, free).session(&mut *session).await?;
        inner.end_leadership(session, engine).await?;
        inner.fold_counters(session, engine).await?;
        Ok(Then::Commit(Some((jobs, freed.modified_count))))
    }
}

/// The orderly end of an engine.
struct RetireTxn<'a> {
    inner: &'a Inner,
    engine: &'a str,
}

#[async_trait]
impl Body for RetireTxn<'_> {
    type Out = ();

    async fn run(&mut self, session: &mut ClientSession) -> Result<Then<()>, Halt> {
        self.inner.engines_coll().delete_one(doc! { "_id": self.engine }).session(&mut *session).await?;
        self.inner.end_leadership(session, self.engine).await?;
        self.inner.fold_counters(session, self.engine).await?;
        Ok(Then::Commit(()))
    }
}

impl RescueTxn<'_> {
    async fn take_jobs(&self, session: &mut ClientSession, died: bool) -> Result<u64, Halt> {
        let held = doc! { "state": word(JobState::Running), "lease.engine": self.engine };
        let mut cursor = self.inner.jobs_coll().find(held).hint(Hint::Name(JOBS_RUNNING.to_owned())).session(&mut *session).await?;
        let jobs: Vec<Job> = cursor.stream(&mut *session).try_collect().await?;
        let had_started = |job: &&Job| job.lease.as_ref().is_some_and(|l| l.started);
        let (started, waiting): (Vec<&Job>, Vec<&Job>) = jobs.iter().partition(had_started);
        let alone = started.len() == 1;
        let ids = |jobs: &[&Job]| jobs.iter().map(|j| j.id.clone()).collect::<Vec<_>>();
        let (mut again, mut dead) = (Vec::new(), Vec::new());
        for job in started.iter().copied().filter(|_| died) {
            match queue::after_crash(job.crashes, alone) {
                AfterCrash::Dead { crashes } => dead.push((job, crashes)),
                AfterCrash::Requeue { .. } => again.push(job),
            }
        }
        let spared = if died { ids(&waiting) } else { ids(&jobs.iter().collect::<Vec<_>>()) };
        let without = if died { "the process died before it had begun this job" } else { "the process had left while running this job" };
        self.update_jobs(session, &ids(&again), requeue(self.engine, "the process died while running this job", 1)).await?;
        self.update_jobs(session, &spared, requeue(self.engine, without, 0)).await?;
        let mut counters = Counters::default();
        for (job, crashes) in dead {
            self.update_jobs(session, std::slice::from_ref(&job.id), condemn(self.engine, crashes)).await?;
            if !job.cancel_requested {
                counters.count(Tally::Dead, job.kind, 1);
                self.inner.settle_status(session, &job.branch).await?;
            }
        }
        for job in jobs.iter().filter(|job| job.cancel_requested) {
            counters.count(Tally::Cancelled, job.kind, 1);
        }
        self.inner.count(session, Writer::Anybody, &counters).await?;
        Ok(jobs.len() as u64)
    }

    async fn update_jobs(&self, session: &mut ClientSession, ids: &[JobId], set: Document) -> Result<(), Halt> {
        if ids.is_empty() {
            return Ok(());
        }
        let update = UpdateModifications::Pipeline(vec![doc! { "$set": set }, unless_wanted()]);
        let hint = Hint::Keys(doc! { "_id": 1 });
        self.inner.jobs_coll().update_many(doc! { "_id": { "$in": ids } }, update).hint(hint).session(session).await?;
        Ok(())
    }
}

/// Back to `ready`; the attempt does not count, but it is in the history.
fn requeue(engine: &str, what: &str, crashes: i64) -> Document {
    let mut set = with_error(text(engine), what);
    set.extend(doc! {
        "state": word(JobState::Ready),
        "lease": Bson::Null,
        "attempt": { "$subtract": ["$attempt", 1] },
        "crashes": { "$add": ["$crashes", crashes] },
    });
    set
}

fn condemn(engine: &str, crashes: u32) -> Document {
    let what = format!("crash_loop: {crashes} processes died while running this job, the last one with it alone");
    let mut set = with_error(text(engine), &what);
    set.extend(doc! { "state": word(JobState::Dead), "lease": Bson::Null, "crashes": crashes, "finished_ms": now() });
    set
}
