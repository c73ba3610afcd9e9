//! Owns: what operators wish of all engines, and who leads, as documents. Does not own: obeying.
//!
//! `controls` has a document for each pause, `{_id: "pause/kind/sync", by, at_ms}`, and one for the size of pools, `{_id: "scale", target, until_ms, …}`;
//! `leases` has one for the leader, `{_id: "leader", engine, until_ms}`.

use std::time::Duration;

use bson::{Bson, Document, doc};
use futures_util::TryStreamExt;
use mongodb::options::{ReturnDocument, UpdateModifications};
use mongodb::{ClientSession, Collection};
use serde::Deserialize;

use super::super::{Controls, EngineId, PauseNote, PauseTarget, ScaleWish};
use super::classify::{fault_of, is_duplicate};
use super::rows::{later, now, text};
use super::txn::Halt;
use super::{Inner, millis};
use crate::fault::Result;

const SCALE: &str = "scale";
const LEADER: &str = "leader";

#[derive(Debug, Deserialize)]
struct Row {
    #[serde(rename = "_id")]
    id: String,
    by: String,
    at_ms: i64,
    target: Option<u16>,
    left_ms: Option<i64>,
}

#[derive(Debug, Deserialize)]
struct Leader {
    engine: EngineId,
    left_ms: i64,
}

impl Inner {
    fn controls_coll(&self) -> Collection<Document> {
        self.db.collection("controls")
    }

    fn leases_coll(&self) -> Collection<Leader> {
        self.db.collection("leases")
    }

    pub(super) async fn controls(&self) -> Result<Controls> {
        let left = doc! { "$subtract": ["$until_ms", now()] };
        let cursor = self
            .controls_coll()
            .clone_with_type::<Row>()
            .find(doc! { "_id": { "$gt": "" } })
            .projection(doc! { "by": 1, "at_ms": 1, "target": 1, "left_ms": left })
            .await
            .map_err(fault_of)?;
        let rows: Vec<Row> = cursor.try_collect().await.map_err(fault_of)?;
        let mut controls = Controls::default();
        for row in rows {
            if let Some(target) = pause_target(&row.id) {
                controls.pauses.0.insert(target, PauseNote { by: row.by, at_ms: row.at_ms });
            } else if let (SCALE, Some(target)) = (row.id.as_str(), row.target)
                && row.left_ms.is_none_or(|left| left > 0)
            {
                let left = row.left_ms.map(|left| Duration::from_millis(left.unsigned_abs()));
                controls.scale = Some(ScaleWish { target, left, by: row.by, at_ms: row.at_ms });
            }
        }
        Ok(controls)
    }

    pub(super) async fn set_pause(&self, what: &PauseTarget, paused: bool, by: &str) -> Result<()> {
        let which = doc! { "_id": pause_id(what) };
        if paused {
            // The note of whoever was first stays.
            let set = doc! { "by": { "$ifNull": ["$by", text(by)] }, "at_ms": { "$ifNull": ["$at_ms", now()] } };
            return self.upsert(which, vec![doc! { "$set": set }]).await;
        }
        self.controls_coll().delete_one(which).await.map_err(fault_of)?;
        self.unpark().await?;
        Ok(())
    }

    pub(super) async fn set_scale(&self, target: Option<u16>, hold: Option<Duration>, by: &str) -> Result<()> {
        let which = doc! { "_id": SCALE };
        let Some(target) = target else {
            self.controls_coll().delete_one(which).await.map_err(fault_of)?;
            return Ok(());
        };
        let until = hold.map_or(Bson::Null, |hold| later(millis(hold)));
        let row = doc! { "_id": SCALE, "target": i32::from(target), "until_ms": until, "by": text(by), "at_ms": now() };
        self.upsert(which, vec![doc! { "$replaceWith": row }]).await
    }

    async fn upsert(&self, which: Document, pipeline: Vec<Document>) -> Result<()> {
        let update = UpdateModifications::Pipeline(pipeline);
        match self.controls_coll().update_one(which.clone(), update.clone()).upsert(true).await {
            // Another call has created it at the same moment: now it is there.
            Err(e) if is_duplicate(&e) => self.controls_coll().update_one(which, update).await.map(|_| ()).map_err(fault_of),
            other => other.map(|_| ()).map_err(fault_of),
        }
    }

    /// One statement that takes, renews, or leaves everything as it is.
    pub(super) async fn lead(&self, engine: &str, lease: Duration) -> Result<bool> {
        let runs = doc! { "$gt": ["$until_ms", now()] };
        let free = doc! { "$or": [{ "$eq": ["$engine", text(engine)] }, { "$not": [runs] }] };
        let ours = doc! { "_id": LEADER, "engine": text(engine), "until_ms": later(millis(lease)) };
        let update = UpdateModifications::Pipeline(vec![doc! { "$replaceWith": { "$cond": [free, ours, "$$ROOT"] } }]);
        let stored = self
            .leases_coll()
            .clone_with_type::<Document>()
            .find_one_and_update(doc! { "_id": LEADER }, update)
            .upsert(true)
            .return_document(ReturnDocument::After)
            .await;
        match stored {
            Ok(leader) => Ok(leader.is_some_and(|leader| leader.get_str("engine").is_ok_and(|holder| holder == engine))),
            Err(e) if is_duplicate(&e) => Ok(false), // another was the first at the same moment
            Err(e) => Err(fault_of(e)),
        }
    }

    pub(super) async fn step_down(&self, engine: &str) -> Result<()> {
        self.leases_coll().delete_one(doc! { "_id": LEADER, "engine": engine }).await.map_err(fault_of)?;
        Ok(())
    }

    /// The same as part of the engine's end.
    pub(super) async fn end_leadership(&self, session: &mut ClientSession, engine: &str) -> Result<(), Halt> {
        self.leases_coll().delete_one(doc! { "_id": LEADER, "engine": engine }).session(session).await?;
        Ok(())
    }

    pub(super) async fn leader(&self) -> Result<Option<EngineId>> {
        let left = doc! { "engine": 1, "left_ms": { "$subtract": ["$until_ms", now()] } };
        let leader = self.leases_coll().find_one(doc! { "_id": LEADER }).projection(left).await.map_err(fault_of)?;
        Ok(leader.filter(|leader| leader.left_ms > 0).map(|leader| leader.engine))
    }
}

fn pause_id(what: &PauseTarget) -> String {
    match what {
        PauseTarget::All => "pause/all".to_owned(),
        PauseTarget::Kind(kind) => format!("pause/kind/{kind}"),
        PauseTarget::Branch(branch) => format!("pause/branch/{branch}"),
    }
}

/// What a later version pauses is nothing that this one knows.
fn pause_target(id: &str) -> Option<PauseTarget> {
    let what = id.strip_prefix("pause/")?;
    match what.split_once('/') {
        None if what == "all" => Some(PauseTarget::All),
        Some(("kind", kind)) => kind.parse().ok().map(PauseTarget::Kind),
        Some(("branch", branch)) => Some(PauseTarget::Branch(branch.to_owned())),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ledger::JobKind;

    #[test]
    fn the_id_of_a_pause_says_what_is_paused() {
        let branch = PauseTarget::Branch("a/b".into());
        for what in [PauseTarget::All, PauseTarget::Kind(JobKind::Cleanup), branch] {
            assert_eq!(pause_target(&pause_id(&what)), Some(what));
        }
        for other in ["scale", "pause/", "pause/kind/later", "pause/all/b"] {
            assert_eq!(pause_target(other), None, "{other}");
        }
    }
}
