//! Starting a capture: token, catalogue, look for documents, bucket objects, metadata, in this order (correctness.md 10).
//!
//! Owns: that order, and what is refused. Does not own: following the stream (`run`), the listing itself (`branch::catalogue`), copying documents
//! that are there (`jobs::snapshot`).
//!
//! SUBTLE: the token comes first. Whatever is written after it is in the stream, so nothing written while `start` runs is lost: a
//! collection that is in the listing already, or a document that came and went, is folded tolerantly.

use sha2::{Digest, Sha256};

use crate::branch::catalogue::{Catalogue, Kind as CollectionKind, read_first_catalogue};
use crate::branch::documents::{self, BaseManifest, BranchDocument, EpochDocument};
use crate::branch::layout::{self, BranchName};
use crate::change::token_time;
use crate::fault::{Fault, Kind, Result};
use crate::jobs::snapshot;
use crate::ledger::{
    Base, BaseOrigin, BaseState, Branch, Capture, CaptureState, NewCapture, Position, Selection, ServerFacts, SharedLedger, Source,
    same_source, server_facts,
};
use crate::runtime::random;
use crate::store::{PutOutcome, PutTag, RetryPolicy, Store, put_idempotent};

use super::feed::ChangeFeed;
use super::mongo::MongoFeed;
use super::notice::uncovered_timeseries;
use super::source;

/// What the operator asked for.
#[derive(Debug, Clone)]
pub struct StartRequest {
    /// `project/branch`.
    pub branch: String,
    pub db: String,
    /// See [`Source::uri`].
    pub source_uri: Option<String>,
    /// Which collections; that of a capture which is started again stays as it is.
    pub selection: Selection,
    pub metadata_uri: String,
    pub metadata_db: String,
}

/// What was started.
#[derive(Debug, Clone)]
pub struct Started {
    pub capture: Capture,
    pub branch: Branch,
    /// What history starts from, where this call made it.
    pub base: Option<Base>,
    /// An existing, stopped capture goes on at its checkpoint.
    pub resumed: bool,
    /// What the operator should know.
    pub notes: Vec<String>,
}

/// Starts a capture, or resumes a stopped one of the same branch and source. When it returns, every later write is captured.
pub async fn start(ledger: &SharedLedger, store: &Store, metadata: &ServerFacts, request: &StartRequest) -> Result<Started> {
    let name = BranchName::parse(&request.branch)?;
    request.selection.check()?;
    if let Some(reference) = &request.source_uri {
        source::check_reference(reference)?;
    }
    let client = source::connect(request.source_uri.as_deref(), &request.metadata_uri).await.map_err(|f| f.at("source"))?;
    let facts = server_facts(&client).await.map_err(|f| f.at("source"))?;
    if request.db == request.metadata_db && same_source(&facts.identity, &metadata.identity) {
        return Err(Fault::config(format!(
            "{} is Argon's own metadata database: capturing it would feed on itself; choose another --source-db or --metadata-db",
            request.db
        )));
    }
    if let Some(branch) = ledger.branch_named(name.as_str()).await? {
        return resume(ledger, branch, request, &facts, &MongoFeed::new(client, &request.db)).await;
    }
    let feed = MongoFeed::new(client.clone(), &request.db);
    let mut cursor = feed.open(None).await.map_err(|f| f.at("opening the change stream"))?;
    let token = cursor.next().await?.token()?.to_owned();
    let mut coverage = cursor.coverage();
    drop(cursor);
    let (mut catalogue, time, documents) = read_first_catalogue(&client.database(&request.db), token_time(&token)?).await?;
    catalogue.retain(&request.selection);

    let source = Source {
        selection: request.selection.clone(),
        ..Source::new(request.source_uri.clone(), request.db.clone(), facts.identity.clone())
    };
    coverage.uncovered.extend(uncovered(&catalogue));
    let now_ms = ledger.now_ms().await?;
    let mut branch = Branch { created_ms: now_ms, ..Branch::new(&random::id(), name.as_str(), &request.db) };
    (branch.fidelity, branch.uncovered) = (coverage.fidelity, coverage.uncovered);
    let capture = Capture { checkpoint_ms: now_ms, ..Capture::new(&random::id(), &branch, source, token.clone(), 1) };
    let origin = if documents { BaseOrigin::Copy } else { BaseOrigin::Empty };
    let manifest = BaseManifest {
        id: random::id(),
        origin,
        seq: 0,
        time,
        consistent_at: time,
        db: request.db.clone(),
        token,
        catalogue,
        parts: Vec::new(),
    };
    let new = write_bucket(store, branch, capture, &manifest).await?;
    create(ledger, &new).await?;
    if documents {
        snapshot::enqueue_copy(ledger, &new.base).await?;
    }
    Ok(Started { capture: new.capture, branch: new.branch, base: Some(new.base), resumed: false, notes: notes(&facts) })
}

/// A lost answer of the creation is told apart from a taken name by our own id.
async fn create(ledger: &SharedLedger, new: &NewCapture) -> Result<()> {
    match ledger.create_capture(new).await {
        // Also where it is said not to have happened: a look costs nothing, and a capture that nobody knows of would be followed.
        Err(fault) if fault.may_heal() => match ledger.capture(&new.capture.id).await? {
            Some(_) => Ok(()),
            None => Err(fault),
        },
        other => other,
    }
}

/// Goes on at the checkpoint, after a look whether the source still serves it.
async fn resume(
    ledger: &SharedLedger,
    branch: Branch,
    request: &StartRequest,
    facts: &ServerFacts,
    feed: &dyn ChangeFeed,
) -> Result<Started> {
    let capture = ledger.capture_of(&branch.id).await?;
    let capture = capture.ok_or_else(|| Fault::rejected(format!("the branch {} exists and has no capture to resume", branch.name)))?;
    let same = same_source(&capture.source.identity, &facts.identity);
    if capture.source.db != request.db || !same {
        let of = if same { String::new() } else { format!(" of another source ({})", capture.source.identity) };
        return Err(Fault::rejected(format!(
            "the branch {} captures the database {}{of}: choose another branch name",
            branch.name, capture.source.db
        )));
    }
    if !request.selection.is_all() && request.selection != capture.source.selection {
        return Err(Fault::rejected(format!(
            "the branch {} captures other collections: history would miss what they hold; choose another branch name",
            branch.name
        )));
    }
    let mut notes = notes(facts);
    match check_position(feed, &capture.position).await {
        // An engine records the gap and makes a new base.
        Err(fault) if fault.kind == Kind::HistoryLost => notes.push(format!("{}: a gap is recorded, and a new base is copied", fault.what)),
        outcome => outcome?,
    }
    let source = Source {
        selection: capture.source.selection.clone(),
        ..Source::new(request.source_uri.clone(), request.db.clone(), known(&capture.source.identity, facts))
    };
    if source.uri != capture.source.uri {
        let name = |uri: &Option<String>| uri.clone().unwrap_or_else(|| "ARGON_MONGODB_URI of the engine".to_string());
        notes.push(format!("the source is read through {} from now on (it was {})", name(&source.uri), name(&capture.source.uri)));
    }
    if source != capture.source {
        ledger.set_capture_source(&capture.id, &source).await?;
        // An engine that follows it has connected already: it must stop here, and whoever takes it next uses the new reference.
        if capture.state == CaptureState::Running && source.uri != capture.source.uri {
            notes.push("engines that follow it use that at their next start or after argon capture stop".to_string());
        }
    }
    if capture.state != CaptureState::Running {
        ledger.set_capture_state(&capture.id, CaptureState::Running, None).await?;
    }
    let capture = ledger.capture(&capture.id).await?.unwrap_or(capture);
    Ok(Started { capture, branch, base: None, resumed: true, notes })
}

/// A position that is gone is told now and not by an engine later: "every write is captured" must be true.
async fn check_position(feed: &dyn ChangeFeed, position: &Position) -> Result<()> {
    let mut cursor = feed.open(Some(&position.token)).await.map_err(|f| f.at("the capture cannot go on at its checkpoint"))?;
    cursor.next().await.map_err(|f| f.at("the capture cannot go on at its checkpoint"))?;
    Ok(())
}

/// The stored identity, or the seen one once it has an id (correctness.md 7).
fn known(stored: &str, facts: &ServerFacts) -> String {
    if facts.identity_exact { facts.identity.clone() } else { stored.to_owned() }
}

fn notes(facts: &ServerFacts) -> Vec<String> {
    if facts.identity_exact {
        return Vec::new();
    }
    vec![format!(
        "the source shows no id to this user ({}), so another deployment of the same name would not be noticed: grant clusterMonitor on admin, or read on local, and run this command again",
        facts.identity
    )]
}

/// The bucket is enough (correctness.md 19): what a rebuild needs is there before the capture exists. Of a base that has to be copied it is the plan.
async fn write_bucket(store: &Store, branch: Branch, capture: Capture, manifest: &BaseManifest) -> Result<NewCapture> {
    let project = layout::project_of(&branch.name).to_owned();
    let body = manifest.to_json()?;
    let mut base = Base::empty(&manifest.id, &branch.id, manifest.time, layout::hex(&Sha256::digest(&body)));
    let mut key = layout::base_manifest(&project, &branch.id, 0, &manifest.id);
    if manifest.origin == BaseOrigin::Copy {
        (base.origin, base.state) = (BaseOrigin::Copy, BaseState::Copying);
        key = layout::base_plan(&project, &branch.id, 0, &manifest.id);
    }
    let epoch = EpochDocument { format: documents::FORMAT, owner: capture.id.clone(), starts_at: 1, after: None };
    let shown = BranchDocument::new(&branch, Some(&capture), std::slice::from_ref(&base));
    let objects = [
        (key, body),
        (layout::epoch(&project, &branch.id, branch.epoch), documents::to_json(&epoch)?),
        (layout::branch_json(&project, &branch.id), documents::to_json(&shown)?),
    ];
    for (key, body) in objects {
        put(store, &key, body).await?;
    }
    Ok(NewCapture { capture, branch, base })
}

/// An object under a key that nobody else can have chosen.
pub(crate) async fn put(store: &Store, key: &str, body: Vec<u8>) -> Result<()> {
    let tag = PutTag { sha256: Sha256::digest(&body).into(), put_id: random::id() };
    let cancel = tokio_util::sync::CancellationToken::new();
    let report = put_idempotent(&**store, key, body.into(), &tag, &RetryPolicy::default(), &cancel).await?;
    if report.outcome == PutOutcome::Conflict {
        return Err(Fault::rejected(format!("{key} exists in {} already: the same id was taken twice, start again", store.describe())));
    }
    Ok(())
}

fn uncovered(catalogue: &Catalogue) -> impl Iterator<Item = String> {
    catalogue.views.values().filter(|v| v.kind == CollectionKind::Timeseries).map(|v| uncovered_timeseries(&v.name))
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use bson::doc;

    use super::super::MemoryFeed;
    use super::*;
    use crate::ledger::{FaultyLedger, Ledger, LedgerCall, LedgerFaults, MemoryLedger, Mishap, Topology};

    #[tokio::test]
    async fn a_checkpoint_that_the_source_no_longer_serves_is_refused() {
        let feed = MemoryFeed::new("shop", "rs:set-1:1");
        let token = feed.present();
        let position = Position { chain: token.clone(), token, next_seq: 1, last_txn: None };
        feed.insert("orders", &doc! { "_id": 1 }).unwrap();
        feed.insert("orders", &doc! { "_id": 2 }).unwrap();
        check_position(&feed, &position).await.unwrap();
        feed.trim(1);
        let fault = check_position(&feed, &position).await.unwrap_err();
        assert!(fault.kind == Kind::HistoryLost && fault.what.contains("cannot go on at its checkpoint"), "{fault}");
    }

    #[tokio::test]
    async fn a_creation_that_is_said_to_have_failed_is_looked_for() {
        // Its answer is lost; it fails; it fails although an earlier try of it has happened.
        for (mishap, made_before, ends) in
            [(Mishap::AnswerLost, false, None), (Mishap::Before, false, Some(Kind::Transient)), (Mishap::Before, true, None)]
        {
            let inner = Arc::new(MemoryLedger::new());
            let faulty = FaultyLedger::new(inner.clone(), LedgerFaults::none());
            faulty.script(LedgerCall::CreateCapture, mishap);
            let source = Source::new(None, "shop".into(), "rs:set-1:1".into());
            let token = MemoryFeed::new("shop", "rs:set-1:1").present();
            let branch = Branch::new("b1", "shop/main", "shop");
            let capture = Capture::new("c1", &branch, source, token, 1);
            let base = Base::empty("base0", "b1", Default::default(), String::new());
            let new = NewCapture { capture, branch, base };
            if made_before {
                inner.create_capture(&new).await.unwrap();
            }
            let ledger: SharedLedger = Arc::new(faulty);
            assert_eq!(create(&ledger, &new).await.err().map(|fault| fault.kind), ends, "{mishap:?} {made_before}");
            assert_eq!(inner.capture(&new.capture.id).await.unwrap().is_some(), ends.is_none());
        }
    }

    #[test]
    fn rule_7_a_source_without_an_id_is_accepted_and_said() {
        let facts = |identity: &str, identity_exact| ServerFacts {
            version: "6.0.5".into(),
            topology: Topology::ReplicaSet { name: "rs0".into() },
            identity: identity.into(),
            identity_exact,
            now_ms: 0,
            hosts: Vec::new(),
            oplog: None,
            max_bson_bytes: 16 << 20,
        };
        let (nameless, exact) = (facts("rs:rs0", false), facts("rs:rs0:aa", true));
        assert!(notes(&nameless).concat().contains("clusterMonitor"));
        assert_eq!(notes(&exact), Vec::<String>::new());
        assert_eq!([known("rs:rs0", &exact), known("rs:rs0:aa", &nameless)], ["rs:rs0:aa", "rs:rs0:aa"]);
    }
}
