//! Owns: what `doctor` and the identity check of a source want to know of a deployment (correctness.md 7).
//! Does not own: judging them, except whether two identities can be the same source.

use std::time::Duration;

use bson::{Bson, Document, doc};
use mongodb::error::Error;
use mongodb::options::ReadConcern;
use mongodb::{Client, Collection};

use super::classify::{code, fault_of};
use super::connect::{Topology, check_server};
use crate::change::ClusterTime;
use crate::fault::Result;

/// Start of the identity of a sharded cluster.
const SHARDED: &str = "sharded:";

/// A deployment as its primary (or mongos) shows it.
#[derive(Debug, Clone, PartialEq)]
pub struct ServerFacts {
    pub version: String,
    pub topology: Topology,
    /// `rs:NAME:ID`, `sharded:ID`, or without the id where the user may not read it. Compare with [`same_source`].
    pub identity: String,
    /// The identity has an id, so a different cluster of the same name is noticed.
    pub identity_exact: bool,
    /// Wall clock of the server in ms since the epoch.
    pub now_ms: i64,
    /// Members of the replica set, as they call themselves.
    pub hosts: Vec<String>,
    /// Oldest and newest entry of the oplog, where the user may read it.
    pub oplog: Option<(ClusterTime, ClusterTime)>,
    /// Largest document it takes.
    pub max_bson_bytes: i64,
}

impl ServerFacts {
    /// How long a capture may stand still before its position is gone, at the rate of the recent past.
    pub fn oplog_window(&self) -> Option<Duration> {
        self.oplog.map(|(first, last)| Duration::from_secs(u64::from(last.t.saturating_sub(first.t))))
    }
}

/// Whether a stored identity and a seen one can be the same source. Where one of them lacks the id, the name decides:
/// a right that was granted or taken away must not look like another cluster.
pub fn same_source(stored: &str, seen: &str) -> bool {
    let parts = |s: &str| {
        let mut it = s.splitn(3, ':').map(str::to_owned);
        (it.next(), it.next(), it.next())
    };
    let ((kind_a, name_a, id_a), (kind_b, name_b, id_b)) = (parts(stored), parts(seen));
    kind_a == kind_b && name_a == name_b && (id_a.is_none() || id_b.is_none() || id_a == id_b)
}

/// Whether an identity tells one deployment from another of the same name.
pub fn has_id(identity: &str) -> bool {
    identity.splitn(3, ':').count() == 3
}

/// Whether a source of this identity is a sharded cluster: the promises are for replica sets (correctness.md 8).
pub fn is_experimental(identity: &str) -> bool {
    identity.starts_with(SHARDED)
}

/// Reads the facts. What the user may not read is left out; only a server that cannot serve at all is an error.
pub async fn server_facts(client: &Client) -> Result<ServerFacts> {
    let (topology, version) = check_server(client, None).await?;
    let hello = client.database("admin").run_command(doc! { "hello": 1 }).await.map_err(fault_of)?;
    let id = match &topology {
        Topology::ReplicaSet { .. } => replica_set_id(client).await?,
        Topology::Sharded => cluster_id(client).await?,
    };
    let name = match &topology {
        Topology::ReplicaSet { name } => format!("rs:{}", name.replace(':', "_")),
        Topology::Sharded => format!("{SHARDED}cluster"),
    };
    let oplog = match &topology {
        Topology::ReplicaSet { .. } => oplog_bounds(client).await,
        Topology::Sharded => None,
    };
    Ok(ServerFacts {
        version,
        topology,
        identity_exact: id.is_some(),
        identity: id.map_or(name.clone(), |id| format!("{name}:{id}")),
        now_ms: hello.get_datetime("localTime").map_or(0, |t| t.timestamp_millis()),
        hosts: hello.get_array("hosts").map_or_else(|_| Vec::new(), |all| all.iter().filter_map(Bson::as_str).map(str::to_owned).collect()),
        oplog,
        max_bson_bytes: hello.get_i32("maxBsonObjectSize").map_or(16 << 20, i64::from),
    })
}

/// Needs the right `replSetGetConfig` (role clusterMonitor), or else read on `local`.
///
/// SUBTLE: only who may not read it has no id. Without one the name alone decides whether this is the known source, so a failure of the moment
/// that looked the same would let in another set of that name just then.
async fn replica_set_id(client: &Client) -> Result<Option<String>> {
    let of = |config: &Document| config.get_document("settings").ok()?.get_object_id("replicaSetId").ok().map(|id| id.to_hex());
    match client.database("admin").run_command(doc! { "replSetGetConfig": 1 }).await {
        Ok(reply) => return Ok(reply.get_document("config").ok().and_then(of)),
        Err(error) if is_withheld(&error) => {}
        Err(error) => return Err(fault_of(error).at("reading the id of the replica set")),
    }
    let stored: Collection<Document> = client.database("local").collection("system.replset");
    readable(stored.find_one(doc! {}).read_concern(ReadConcern::local()).await, "the id of the replica set")
        .map(|row| row.as_ref().and_then(of))
}

/// Needs read on `config`.
async fn cluster_id(client: &Client) -> Result<Option<String>> {
    let version: Collection<Document> = client.database("config").collection("version");
    let row = readable(version.find_one(doc! {}).await, "the id of the cluster")?;
    Ok(row.and_then(|row| row.get_object_id("clusterId").ok().map(|id| id.to_hex())))
}

/// What the user may not read is as if it were not there.
fn readable(found: Result<Option<Document>, Error>, what: &str) -> Result<Option<Document>> {
    match found {
        Err(error) if is_withheld(&error) => Ok(None),
        found => found.map_err(|error| fault_of(error).at(format!("reading {what}"))),
    }
}

/// The user has no right to it (13), or a hosted service does not offer it to anybody: unknown or unsupported commands, and Atlas in its own words.
pub(super) fn is_withheld(error: &Error) -> bool {
    match code(error) {
        Some(13 | 59 | 115) => true,
        Some(8000) => error.to_string().to_ascii_lowercase().replace('_', " ").contains("not allowed"),
        _ => false,
    }
}

/// Needs read on `local`.
async fn oplog_bounds(client: &Client) -> Option<(ClusterTime, ClusterTime)> {
    Some((oplog_end(client, 1).await.ok()??, oplog_end(client, -1).await.ok()??))
}

/// The time of the oldest entry (1) or the newest (-1). Needs read on `local`.
async fn oplog_end(client: &Client, direction: i32) -> Result<Option<ClusterTime>, Error> {
    let oplog: Collection<Document> = client.database("local").collection("oplog.rs");
    let first = oplog.find_one(doc! {}).sort(doc! { "$natural": direction }).projection(doc! { "ts": 1 });
    let entry = first.read_concern(ReadConcern::local()).await?;
    Ok(entry.and_then(|entry| entry.get_timestamp("ts").ok().map(ClusterTime::from)))
}

/// The time of the oldest entry of the oplog; `None` where the user may not read it, or where there is none (mongos).
pub async fn oldest_in_oplog(client: &Client) -> Result<Option<ClusterTime>> {
    match oplog_end(client, 1).await {
        Err(error) if is_withheld(&error) => Ok(None),
        answer => answer.map_err(fault_of),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rule_8_a_sharded_source_is_experimental() {
        for (identity, experimental) in
            [("sharded:cluster:aa", true), ("sharded:cluster", true), ("rs:sharded:aa", false), ("rs:rs0", false)]
        {
            assert_eq!(is_experimental(identity), experimental, "{identity}");
        }
    }

    #[test]
    fn rule_7_another_cluster_of_the_same_name_is_another_source() {
        for (stored, seen, same) in [
            ("rs:rs0:aa", "rs:rs0:aa", true),
            ("rs:rs0:aa", "rs:rs0:bb", false),
            ("rs:rs0", "rs:rs0:bb", true),
            ("rs:rs0:aa", "rs:rs0", true),
            ("rs:rs0", "rs:rs1", false),
            ("rs:cluster", "sharded:cluster", false),
        ] {
            assert_eq!(same_source(stored, seen), same, "{stored} {seen}");
        }
    }
}
