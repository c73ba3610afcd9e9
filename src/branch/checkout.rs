//! Checking a branch out: its state is restored into a database, and a capture of that database continues the branch.
//!
//! Owns: the order of it, so that one that was killed is run again and ends right. Does not own: restoring (`restore`), the capture (`capture`).
//!
//! SUBTLE: the mark of an incomplete restore stays until the capture exists. Run again before that, everything begins anew; after that, only the mark is
//! taken away. The capture begins at a token that was taken when all had been written, and its first change says which collection goes on under which
//! new UUID (correctness.md 18), and how the catalogue is by then. Nothing expires before that token.

use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use bson::{RawDocumentBuf, doc};
use mongodb::Database;

use super::catalogue::{Catalogue, Kind as CollectionKind, read_catalogue};
use super::documents::{self, EpochDocument};
use super::history::{History, Progress};
use super::layout;
use super::point::Point;
use super::restore::{self, RestoreOptions, RestoreReport};
use crate::capture::feed::ChangeFeed;
use crate::capture::{MongoFeed, put};
use crate::change::{ChangeRef, ClusterTime, Observed, ObservedCollection, Op, token_time};
use crate::fault::{Fault, Kind, Result};
use crate::ledger::{Attach, Branch, Capture, Ends, Ledger, SegmentKind, SegmentRow, Source, same_source};
use crate::runtime::random;
use crate::segment::{BlockBuilder, PackedBlock, SegmentHeader, encode};

/// Where to, and how.
#[derive(Debug, Clone)]
pub struct CheckoutOptions {
    pub restore: RestoreOptions,
    /// How an engine reaches the database.
    pub source: Source,
    /// The branch, and the database with it, goes after this.
    pub ttl: Option<Duration>,
}

/// Restores the head of a branch that nothing is captured into, and starts to capture the database into it. `None` where that was done before.
pub async fn checkout(
    history: &History,
    target: &Database,
    options: &CheckoutOptions,
    progress: Arc<Progress>,
) -> Result<(Capture, Option<RestoreReport>)> {
    let branch = &history.branch;
    if let Some(capture) = &history.capture {
        if capture.source.db == target.name() && same_source(&capture.source.identity, &options.source.identity) {
            if restore::is_incomplete(target).await? {
                restore::complete(target).await?;
            }
            return Ok((capture.clone(), None));
        }
        return Err(Fault::rejected(format!(
            "{} captures the database {} already: fork a branch off it and check that out",
            branch.name, capture.source.db
        )));
    }
    if branch.parent.is_none() {
        return Err(Fault::rejected(format!("{} was not forked from another branch: there is nothing to check out", branch.name)));
    }
    let before = catalogue_at_head(history, options).await?;
    refuse_strangers(&before, target).await?;
    let restored =
        RestoreOptions { at: Point::Head, keep_mark: true, collections: Vec::new(), rename: Vec::new(), ..options.restore.clone() };
    let report = restore::restore(history, target, &restored, progress).await?;
    let capture = attach(history, target, options, &before).await?;
    restore::complete(target).await?;
    Ok((capture, Some(report)))
}

async fn catalogue_at_head(history: &History, options: &CheckoutOptions) -> Result<Catalogue> {
    super::replay::catalogue(history, history.resolve(Point::Head).await?, options.restore.across_gap).await
}

/// The whole database becomes the branch's: what else is in it would be in history without its documents, and go with the branch.
async fn refuse_strangers(before: &Catalogue, target: &Database) -> Result<()> {
    let (now, _) = read_catalogue(target).await?;
    let known = |name: &str| name == restore::MARKER || before.views.contains_key(name) || before.collection_named(name).is_some();
    let names = now.collections.values().map(|c| &c.name).chain(now.views.keys());
    match names.into_iter().find(|name| !known(name)) {
        None => Ok(()),
        Some(stranger) => Err(Fault::rejected(format!(
            "database {:?} has {stranger:?}, which the branch has not: a checkout takes a whole database, choose another --to-db",
            target.name()
        ))),
    }
}

async fn attach(history: &History, target: &Database, options: &CheckoutOptions, before: &Catalogue) -> Result<Capture> {
    let (ledger, store, branch) = (history.ledger(), history.store(), &history.branch);
    let feed = MongoFeed::new(target.client().clone(), target.name());
    let mut cursor = feed.open(None).await.map_err(|f| f.at("opening the change stream"))?;
    let token = cursor.next().await?.token()?.to_owned();
    drop(cursor);
    // What expires from here on is a change of the branch.
    if !options.restore.no_ttl {
        restore::expire(target, before).await?;
    }
    let (catalogue, listed_at) = read_catalogue(target).await?;
    let seq = branch.head.seq + 1;
    let time = token_time(&token)?;
    let seen = observed(&catalogue, before, listed_at);
    let (row, body) = segment(branch, target.name(), seq, time, &token, &seen)?;
    // Always the same object for the branch, so that whoever comes second has it too.
    let epoch = EpochDocument { format: documents::FORMAT, owner: branch.id.clone(), starts_at: seq, after: None };
    let project = layout::project_of(&branch.name);
    put(store, &layout::epoch(project, &branch.id, branch.epoch), documents::to_json(&epoch)?).await?;
    put(store, &row.key, body).await?;
    let capture = Capture::new(&random::id(), branch, options.source.clone(), token, seq + 1);
    let attach =
        Attach { capture: capture.clone(), row, source_db: target.name().to_owned(), drop_db: options.ttl.is_some(), ttl: options.ttl };
    let outcome = match ledger.attach_capture(&attach).await {
        Err(fault) if matches!(fault.kind, Kind::Unknown | Kind::Transient) => ledger.attach_capture(&attach).await,
        outcome => outcome,
    };
    if let Err(fault) = outcome {
        // No row names it; the next try has a token, and so an object, of its own.
        let _ = store.delete(&attach.row.key).await;
        return Err(fault);
    }
    Ok(capture)
}

/// The whole catalogue as it is, each collection with the UUID that it had in history.
fn observed(now: &Catalogue, before: &Catalogue, listed_at: ClusterTime) -> Observed {
    let collections = now.collections.values().filter(|c| c.kind == CollectionKind::Collection).map(|c| ObservedCollection {
        uuid: c.uuid,
        from: before.collection_named(&c.name).map(|c| c.uuid),
        name: c.name.clone(),
        options: c.options.clone(),
        indexes: c.indexes.clone(),
    });
    let views = now.views.values().map(|v| (v.name.clone(), v.options.clone()));
    Observed { collections: collections.collect(), views: views.collect(), whole: true, listed_at, ..Observed::default() }
}

/// The first segment of the branch's own: one change.
fn segment(
    branch: &Branch,
    db: &str,
    seq: u64,
    time: ClusterTime,
    token: &RawDocumentBuf,
    seen: &Observed,
) -> Result<(SegmentRow, Vec<u8>)> {
    let event = seen.to_event(db, time);
    let event = RawDocumentBuf::try_from(&event).map_err(|e| Fault::corrupt(format!("the catalogue is no BSON: {e}")))?;
    let change = ChangeRef { op: Op::Event, coll: "", uuid: None, time, wall_ms: None, txn: None, key: None, body: Some(&event) };
    let raw_bytes = change.raw_bytes();
    let mut builder = BlockBuilder::new(seq);
    builder.push(&change)?;
    let header = SegmentHeader {
        kind: SegmentKind::Changes,
        branch: branch.id.clone(),
        epoch: branch.epoch,
        first_seq: seq,
        last_seq: seq,
        first_time: time,
        last_time: time,
        last_wall_ms: None,
        start_token: token.clone(),
        end_token: token.clone(),
        starts_inside: false,
        ends: Ends::Closed,
        db: db.to_owned(),
        reason: None,
    };
    let encoded = encode(&header, &[PackedBlock::pack(builder.finish())?], &AtomicBool::new(false))?;
    let row = SegmentRow {
        key: layout::segment_l0(layout::project_of(&branch.name), &branch.id, branch.epoch, seq, seq, &encoded.sha256),
        branch: branch.id.clone(),
        kind: SegmentKind::Changes,
        epoch: branch.epoch,
        level: 0,
        first_seq: seq,
        last_seq: seq,
        first_time: time,
        last_time: time,
        last_wall_ms: None,
        starts_inside: false,
        ends: Ends::Closed,
        has_ddl: true,
        holes: encoded.summary.holes,
        raw_bytes,
        stored_bytes: encoded.bytes.len() as u64,
        sha256: layout::hex(&encoded.sha256),
        committed_ms: 0,
        filter: None,
    };
    Ok((row, encoded.bytes.to_vec()))
}

/// The database that a checkout of a branch (`None`: one that is still to be made) would write may not be one that something is captured from, or into which metadata goes.
pub async fn refuse_in_use(ledger: &dyn Ledger, branch: Option<&str>, source: &Source) -> Result<()> {
    let in_use = ledger.captures().await?.into_iter().find(|capture| {
        branch != Some(capture.branch.as_str()) && capture.source.db == source.db && same_source(&capture.source.identity, &source.identity)
    });
    match in_use {
        Some(capture) => Err(Fault::rejected(format!(
            "{} is captured into {}: a checkout would write what that branch takes for its own history; choose another --to-db",
            source.db, capture.branch_name
        ))),
        None => Ok(()),
    }
}

/// A ping, so that a wrong address is told before anything is read.
pub async fn check_target(target: &Database) -> Result<()> {
    let ping = target.run_command(doc! {"ping": 1}).await;
    ping.map(|_| ()).map_err(|e| super::server::fault("reach the target", &e))
}
