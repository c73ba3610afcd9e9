//! The changes of a stretch of history as events, oldest first, transactions whole.
//!
//! Owns: what is chosen and handed out. Does not own: how it is printed (`cli`), finding one document's changes (`find`).

use std::collections::BTreeSet;
use std::sync::Arc;

use bson::{Bson, Document, RawDocument, RawDocumentBuf};
use tokio::sync::mpsc;

use super::find::{Behind, Finder, Sought};
use crate::branch::catalogue::Uuid;
use crate::branch::fold::Flow;
use crate::branch::history::{Consumer, Gaps, History, Loaded, Progress, Range};
use crate::branch::point::{Bound, Point};
use crate::branch::replay;
use crate::change::{ChangeRef, ClusterTime, canonical_id, rebuild_event};
use crate::fault::{Fault, Result};

/// What to show.
#[derive(Debug, Clone, Default)]
pub struct LogOptions {
    /// Only these collections, by their names at the time of the change.
    pub collections: Vec<String>,
    /// Only this document; needs one collection, by its name at the end of the stretch.
    pub id: Option<Bson>,
    /// Changes behind this point; all that is stored if it is not given.
    pub since: Option<Point>,
    /// Changes up to this point; the head if it is not given.
    pub until: Option<Point>,
    /// So many; a transaction that has begun is shown whole.
    pub limit: Option<u64>,
}

/// Hands each event to `each`, with its seq; false ends it. Returns how many there were.
pub async fn log(history: &History, options: &LogOptions, each: impl FnMut(u64, Document) -> Result<bool> + Send) -> Result<u64> {
    let until = match options.until {
        None => history.locate(Point::Head).await?.seq,
        Some(point) => history.locate(point).await?.seq,
    };
    let since = match options.since {
        None => history.line().parts().first().map_or(0, |part| part.first - 1),
        Some(point) => history.locate(point).await?.seq,
    };
    if since >= until {
        return Ok(0);
    }
    let uuid = match &options.id {
        Some(_) => Some(uuid_at(history, options, until).await?),
        None => None,
    };
    match (&options.id, uuid) {
        (Some(id), Some((uuid, name))) => of_document(history, id, uuid, &name, since, until, options.limit, each).await,
        _ => of_range(history, options, since, until, each).await,
    }
}

async fn uuid_at(history: &History, options: &LogOptions, until: u64) -> Result<(Uuid, String)> {
    let [name] = options.collections.as_slice() else {
        return Err(Fault::config("--id needs exactly one --collection"));
    };
    let catalogue = replay::catalogue(history, Bound::Seq(until), true).await?;
    let found = catalogue.collection_named(name);
    let missing = || Fault::rejected(format!("there is no collection {name:?} at seq:{until}: give --until a point at which there was"));
    Ok((found.ok_or_else(missing)?.uuid, name.clone()))
}

#[allow(clippy::too_many_arguments)] // one call, from above
async fn of_document(
    history: &History,
    id: &Bson,
    uuid: Uuid,
    name: &str,
    since: u64,
    until: u64,
    limit: Option<u64>,
    mut each: impl FnMut(u64, Document) -> Result<bool>,
) -> Result<u64> {
    let mut holder = RawDocumentBuf::new();
    holder.append(bson::cstr!("_id"), bson::RawBson::try_from(id.clone()).map_err(|e| Fault::config(format!("--id: {e}")))?);
    let key = canonical_id(&holder).ok_or_else(|| Fault::config("--id is no key"))?;
    let finder = Finder { history, sought: Arc::new(Sought { key, uuid, name: name.to_owned() }) };
    let found = finder.changes(since, until, Behind { base_until: ClusterTime::default(), foreign_from: u64::MAX }, true).await?;
    let mut shown = 0;
    for change in found.newest_first.into_iter().rev() {
        if limit.is_some_and(|limit| shown >= limit) {
            break;
        }
        let row = ChangeRef {
            op: change.op,
            coll: name,
            uuid: Some(uuid),
            time: change.time,
            wall_ms: None,
            txn: None,
            key: Some(&holder),
            body: change.body.as_deref(),
        };
        shown += 1;
        if !each(change.seq, rebuild_event(&row, &history.branch.source_db)?)? {
            break;
        }
    }
    Ok(shown)
}

/// Reads the stretch on one thread and hands out on this one: what is read ahead is bounded by the channel.
async fn of_range(
    history: &History,
    options: &LogOptions,
    since: u64,
    until: u64,
    mut each: impl FnMut(u64, Document) -> Result<bool>,
) -> Result<u64> {
    let (to, mut from) = mpsc::channel::<(u64, Document)>(256);
    let pick = Pick {
        collections: options.collections.iter().cloned().collect(),
        limit: options.limit.unwrap_or(u64::MAX),
        db: history.branch.source_db.clone(),
        shown: 0,
        txn: None,
        to,
    };
    let range = Range { from_seq: since + 1, until: Bound::Seq(until), gaps: Gaps::Cross };
    let reading = history.read(range, pick, Arc::new(Progress::default()));
    tokio::pin!(reading);
    let mut shown = 0;
    loop {
        tokio::select! {
            biased;
            event = from.recv() => match event {
                Some((seq, event)) => {
                    shown += 1;
                    if !each(seq, event)? {
                        return Ok(shown);
                    }
                }
                None => break,
            },
            read = &mut reading => {
                read.map(drop)?;
                while let Ok((seq, event)) = from.try_recv() {
                    shown += 1;
                    if !each(seq, event)? {
                        return Ok(shown);
                    }
                }
                return Ok(shown);
            }
        }
    }
    reading.await.map(drop)?;
    Ok(shown)
}

struct Pick {
    collections: BTreeSet<String>,
    limit: u64,
    db: String,
    shown: u64,
    /// Transaction of the last change that was shown.
    txn: Option<RawDocumentBuf>,
    to: mpsc::Sender<(u64, Document)>,
}

impl Consumer for Pick {
    fn segment(&mut self, loaded: &Loaded) -> Result<Flow> {
        loaded.each(|seq, change| {
            if !self.collections.is_empty() && !self.collections.contains(change.coll) {
                return Ok(Flow::Continue);
            }
            let goes_on = change.txn.is_some_and(|txn| self.txn.as_ref().is_some_and(|last| last.as_bytes() == txn.as_bytes()));
            if self.shown >= self.limit && !goes_on {
                return Ok(Flow::Done);
            }
            self.shown += 1;
            self.txn = change.txn.map(RawDocument::to_owned);
            let event = rebuild_event(change, &self.db)?;
            // The other end is gone when enough has been shown.
            Ok(if self.to.blocking_send((seq, event)).is_ok() { Flow::Continue } else { Flow::Done })
        })
    }
}
