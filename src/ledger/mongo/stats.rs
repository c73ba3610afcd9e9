//! Owns: figures of the queue. None costs more than some ten thousand keys of an index, except the refresh, which one engine does in the background.
//! Does not own: lifetime figures (`counters`).

use std::collections::BTreeMap;

use bson::{Document, doc};
use futures_util::TryStreamExt;
use mongodb::Collection;
use mongodb::options::{Hint, UpdateModifications};
use serde::{Deserialize, Serialize};

use super::super::rules;
use super::super::{JobKind, JobState, QueueDepth, QueueStats, StateCount};
use super::Inner;
use super::classify::fault_of;
use super::indexes::{JOBS_DEAD, JOBS_READY, JOBS_RUNNING, JOBS_SCHEDULED};
use super::rows::{int, literal, now, word};
use crate::fault::Result;

const REFRESHED: &str = "queue";

/// Figures of the last refresh: states that had more than can be counted at once.
#[derive(Debug, Default, Serialize, Deserialize)]
struct Refreshed {
    #[serde(default)]
    as_of_ms: i64,
    counts: BTreeMap<JobState, BTreeMap<JobKind, u64>>,
}

#[derive(Debug, Deserialize)]
struct Group {
    #[serde(rename = "_id")]
    kind: JobKind,
    n: u64,
}

/// The states that are counted, each with an index that has nothing else and the kind in it.
const COUNTED: [(JobState, &str); 4] =
    [(JobState::Scheduled, JOBS_SCHEDULED), (JobState::Ready, JOBS_READY), (JobState::Running, JOBS_RUNNING), (JobState::Dead, JOBS_DEAD)];

impl Inner {
    fn stats_coll(&self) -> Collection<Refreshed> {
        self.db.collection("stats")
    }

    /// Counts over the partial index of each state, which holds nothing else and is not fetched from.
    pub(super) async fn depth(&self) -> Result<QueueDepth> {
        let [scheduled, ready, running, dead] = COUNTED;
        let (scheduled, ready, running, dead) =
            tokio::try_join!(self.bounded(scheduled), self.bounded(ready), self.bounded(running), self.bounded(dead))?;
        Ok(QueueDepth { scheduled, ready, running, dead })
    }

    async fn bounded(&self, (state, index): (JobState, &str)) -> Result<u64> {
        let hint = Hint::Name(index.to_owned());
        let of = doc! { "state": word(state) };
        self.jobs_coll().count_documents(of).hint(hint).limit(rules::DEPTH_LIMIT + 1).await.map_err(fault_of)
    }

    pub(super) async fn queue_stats(&self) -> Result<QueueStats> {
        let [scheduled, ready, running, dead] = COUNTED.map(|counted| self.by_kind(counted, Some(rules::DEPTH_LIMIT + 1)));
        let (scheduled, ready, running, dead, counters) = tokio::try_join!(scheduled, ready, running, dead, self.counters())?;
        let deep = [&scheduled, &ready, &running, &dead].into_iter().any(is_deep);
        let refreshed = if deep { self.refreshed().await? } else { Refreshed::default() };
        let count = |state: JobState, by_kind: BTreeMap<JobKind, u64>| match (is_deep(&by_kind), refreshed.counts.get(&state)) {
            (false, _) => StateCount { by_kind, ..StateCount::default() },
            (true, Some(whole)) => StateCount { by_kind: whole.clone(), as_of_ms: Some(refreshed.as_of_ms), at_least: false },
            (true, None) => StateCount { by_kind, as_of_ms: None, at_least: true },
        };
        // What was counted of a deep one may lack a kind.
        let kinds = if is_deep(&ready) { JobKind::ALL.to_vec() } else { ready.keys().copied().collect() };
        let oldest_ready = self.oldest_ready(kinds).await?;
        Ok(QueueStats {
            scheduled: count(JobState::Scheduled, scheduled),
            ready: count(JobState::Ready, ready),
            running: count(JobState::Running, running),
            dead: count(JobState::Dead, dead),
            counters,
            oldest_ready,
        })
    }

    /// From the index alone. Without a limit it walks over the whole of it.
    async fn by_kind(&self, (state, index): (JobState, &str), limit: Option<u64>) -> Result<BTreeMap<JobKind, u64>> {
        let mut stages = vec![doc! { "$match": { "state": word(state) } }];
        if let Some(limit) = limit {
            // From the end: at the beginning of the ready ones lies what has been claimed in the last minutes, and would be walked over.
            stages.extend((state == JobState::Ready).then(|| doc! { "$sort": { "kind": -1, "sched_key": -1 } }));
            stages.push(doc! { "$limit": int(limit) });
        }
        stages.push(doc! { "$group": { "_id": "$kind", "n": { "$sum": 1 } } });
        let cursor = self.jobs_coll().aggregate(stages).hint(Hint::Name(index.to_owned())).with_type::<Group>().await.map_err(fault_of)?;
        let groups: Vec<Group> = cursor.try_collect().await.map_err(fault_of)?;
        Ok(groups.into_iter().map(|group| (group.kind, group.n)).collect())
    }

    /// One seek of an index for each of these kinds.
    async fn oldest_ready(&self, kinds: Vec<JobKind>) -> Result<BTreeMap<JobKind, std::time::Duration>> {
        #[derive(Deserialize)]
        struct First {
            run_at_ms: i64,
            now_ms: i64,
        }
        let first = |kind: JobKind| async move {
            let of = doc! { "state": word(JobState::Ready), "kind": word(kind) };
            let jobs = self.jobs_coll().clone_with_type::<First>();
            let first = jobs.find_one(of).hint(Hint::Name(JOBS_READY.to_owned()));
            let first = first.sort(doc! { "sched_key": 1, "_id": 1 }).projection(doc! { "run_at_ms": 1, "now_ms": now() });
            let found = first.await.map_err(fault_of)?;
            Ok::<_, crate::fault::Fault>(found.map(|first| (kind, rules::waited(first.run_at_ms, first.now_ms))))
        };
        let all = futures_util::future::try_join_all(kinds.into_iter().map(first)).await?;
        Ok(all.into_iter().flatten().collect())
    }

    async fn refreshed(&self) -> Result<Refreshed> {
        Ok(self.stats_coll().find_one(doc! { "_id": REFRESHED }).await.map_err(fault_of)?.unwrap_or_default())
    }

    pub(super) async fn refresh_queue_stats(&self) -> Result<()> {
        let mut counts = BTreeMap::new();
        for counted in COUNTED {
            // One after the other: nobody waits for it, and the server has other work.
            if is_deep(&self.by_kind(counted, Some(rules::DEPTH_LIMIT + 1)).await?) {
                counts.insert(counted.0, self.by_kind(counted, None).await?);
            }
        }
        let row = Refreshed { as_of_ms: 0, counts };
        let merged = doc! { "$mergeObjects": [literal(&row)?, { "_id": REFRESHED, "as_of_ms": now() }] };
        let update = UpdateModifications::Pipeline(vec![doc! { "$replaceWith": merged }]);
        let stats = self.stats_coll().clone_with_type::<Document>();
        stats.update_one(doc! { "_id": REFRESHED }, update).upsert(true).await.map_err(fault_of)?;
        Ok(())
    }
}

fn is_deep(by_kind: &BTreeMap<JobKind, u64>) -> bool {
    by_kind.values().sum::<u64>() > rules::DEPTH_LIMIT
}
