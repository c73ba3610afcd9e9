//! Owns: how much of an oplog Argon itself has written, by a look at its newest entries. Does not own: what follows from it (`argon doctor`).

use std::time::Duration;

use bson::{Bson, Document, doc};
use futures_util::TryStreamExt;
use mongodb::options::{Hint, ReadConcern};
use mongodb::{Client, Collection};

use super::classify::fault_of;
use super::facts::is_withheld;
use crate::change::ClusterTime;
use crate::fault::Result;

/// Entries looked at, the newest ones: some ten megabytes, which the server has in memory.
const ENTRIES: i64 = 20_000;
const MAX_TIME: Duration = Duration::from_secs(10);

/// The newest entries of an oplog.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct OplogShare {
    pub entries: u64,
    pub bytes: u64,
    /// Of these, what touches the metadata database.
    pub argon_bytes: u64,
    /// From the oldest of them to the newest.
    pub span: Duration,
}

impl OplogShare {
    /// From 0 to 1.
    #[allow(clippy::cast_precision_loss)] // bytes of some entries
    pub fn argon(&self) -> f64 {
        if self.bytes == 0 { 0.0 } else { self.argon_bytes as f64 / self.bytes as f64 }
    }

    /// How far back an oplog would reach without Argon that reaches back `window` with it, if the share were always the same.
    pub fn window_without(&self, window: Duration) -> Duration {
        Duration::try_from_secs_f64(window.as_secs_f64() / (1.0 - self.argon()).max(0.001)).unwrap_or(Duration::MAX)
    }
}

/// Needs read on `local`; `None` where the user may not, or where there is no oplog (mongos).
pub async fn oplog_share(client: &Client, metadata_db: &str) -> Result<Option<OplogShare>> {
    let oplog: Collection<Document> = client.database("local").collection("oplog.rs");
    let begins = |ns: Bson| doc! { "$eq": [{ "$indexOfBytes": [ns, format!("{metadata_db}.")] }, 0] };
    // What a transaction wrote is in the operations of its entry.
    let inner = doc! { "$map": { "input": { "$ifNull": ["$o.applyOps", []] }, "as": "op", "in": begins("$$op.ns".into()) } };
    let ours = doc! { "$or": [begins(doc! { "$ifNull": ["$ns", ""] }.into()), { "$anyElementTrue": [inner] }] };
    let size = doc! { "$bsonSize": "$$ROOT" };
    let group = doc! {
        "_id": null,
        "entries": { "$sum": 1 },
        "bytes": { "$sum": &size },
        "argon_bytes": { "$sum": { "$cond": [ours, &size, 0] } },
        "first": { "$min": "$ts" },
        "last": { "$max": "$ts" },
    };
    let newest_first = Hint::Keys(doc! { "$natural": -1 });
    let asked = oplog.aggregate([doc! { "$limit": ENTRIES }, doc! { "$group": group }]).hint(newest_first);
    let asked = asked.read_concern(ReadConcern::local()).max_time(MAX_TIME).await;
    let row = match asked {
        Err(error) if is_withheld(&error) => return Ok(None),
        cursor => cursor.map_err(fault_of)?.try_next().await.map_err(fault_of)?,
    };
    Ok(row.as_ref().and_then(read))
}

fn read(row: &Document) -> Option<OplogShare> {
    let number = |name: &str| match row.get(name) {
        Some(Bson::Int32(n)) => u64::try_from(*n).ok(),
        Some(Bson::Int64(n)) => u64::try_from(*n).ok(),
        _ => None,
    };
    let time = |name: &str| row.get_timestamp(name).ok().map(ClusterTime::from);
    let span = Duration::from_secs(time("last")?.t.saturating_sub(time("first")?.t).into());
    Some(OplogShare { entries: number("entries")?, bytes: number("bytes")?, argon_bytes: number("argon_bytes")?, span })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_window_is_as_much_longer_without_argon_as_its_share_says() {
        let share = |argon_bytes| OplogShare { entries: 10, bytes: 1_000, argon_bytes, span: Duration::from_secs(60) };
        let hour = Duration::from_secs(3_600);
        assert_eq!(share(0).window_without(hour), hour);
        assert_eq!(share(500).window_without(hour), 2 * hour);
        assert_eq!(share(1_000).window_without(hour), 1_000 * hour, "nobody else writes: as good as for ever");
        assert!(OplogShare { bytes: 0, argon_bytes: 0, ..share(0) }.argon().abs() < f64::EPSILON);
    }
}
