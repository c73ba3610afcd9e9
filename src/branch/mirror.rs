//! Keeping `branch.json` in step with the metadata, so that the bucket alone says what a branch is (correctness.md 19).
//!
//! Owns: one idempotent write of that object, conditional on its version. Does not own: when it is written (the commands that change a capture,
//! and every engine for what changed without them), the object's form (`documents`).

use sha2::{Digest, Sha256};

use super::documents::{self, BranchDocument};
use super::layout;
use crate::fault::{Fault, Kind, Result};
use crate::ledger::{Base, Branch, Capture, SharedLedger};
use crate::runtime::random;
use crate::store::{Put, PutTag, Store};

/// Others that write at the same time bring the object in step too; more rounds than this mean that something else is wrong.
const ROUNDS: u32 = 8;
/// Reads that come back damaged before the object is taken to be damaged itself.
const DAMAGED_READS: u32 = 3;

/// Brings the object of a branch in step with the metadata. Nothing is written where it is already.
///
/// SUBTLE: the metadata is read after the object. Then a state that changed later is written later, by whoever changed it, and that write either
/// sees ours or is what refuses it: the object never stays behind.
pub async fn publish(ledger: &SharedLedger, store: &Store, branch: &str) -> Result<()> {
    let mut damaged = 0;
    for _ in 0..ROUNDS {
        let Some((row, ..)) = rows(ledger, branch).await? else { return Ok(()) };
        let key = layout::branch_json(layout::project_of(&row.name), &row.id);
        let found = store.head(&key).await?;
        let stored = match &found {
            None => None,
            Some(_) => match documents::read_branch(&key, &store.get(&key, None).await?) {
                Ok(read) => Some(read),
                // Once may be a bad read. What stays damaged is written anew: all of it is in the metadata.
                Err(fault) if fault.kind == Kind::Corrupt => {
                    damaged += 1;
                    if damaged < DAMAGED_READS {
                        continue;
                    }
                    tracing::warn!(error = %fault, "branch.json is damaged and is written anew");
                    None
                }
                Err(fault) => return Err(fault),
            },
        };
        let Some((row, capture, bases)) = rows(ledger, branch).await? else { return Ok(()) };
        if stored.as_ref().is_some_and(|stored| stored.epoch > row.epoch) {
            return Err(Fault::fenced(format!("{key} is written by other metadata: this metadata database is out of date")));
        }
        let wanted = BranchDocument::new(&row, capture.as_ref(), &bases).after(stored.as_ref());
        if stored.as_ref() == Some(&wanted) {
            return Ok(());
        }
        if put(store, &key, &wanted, found.map(|found| found.version)).await? {
            return Ok(());
        }
    }
    Err(Fault::transient(format!("branch.json of {branch} is being changed by others all the time")))
}

/// False when somebody else was faster, or the store did not keep what was sent. `over` is the version of what is there.
async fn put(store: &Store, key: &str, wanted: &BranchDocument, over: Option<Option<String>>) -> Result<bool> {
    let wanted = BranchDocument { version: wanted.version + u64::from(over.is_some()), ..wanted.clone() };
    let body = bytes::Bytes::from(documents::to_json(&wanted)?);
    let tag = PutTag { sha256: Sha256::digest(&body).into(), put_id: random::id() };
    let done = match over {
        None => store.put_new(key, body.clone(), &tag).await?,
        Some(Some(version)) => store.replace(key, body.clone(), &tag, &version).await?,
        Some(None) => return Err(Fault::rejected(format!("{key} has no version in {}: it cannot be changed safely", store.describe()))),
    };
    Ok(done == Put::Stored && (store.verifies_puts() || store.get(key, None).await? == body))
}

async fn rows(ledger: &SharedLedger, branch: &str) -> Result<Option<(Branch, Option<Capture>, Vec<Base>)>> {
    let Some(row) = ledger.branch(branch).await? else { return Ok(None) };
    let (capture, bases) = (ledger.capture_of(branch).await?, ledger.bases(branch).await?);
    Ok(Some((row, capture, bases)))
}
