//! Owns: the rows of a branch's bases, from `branch.json` and the objects it names.
//! Does not own: whether history may start from one (`line`).
//!
//! A base that was being copied is restarted from its plan, under its own id: its chunks were in the metadata alone, and parts that are in the bucket
//! already do no harm, since their names are their content. Nothing can be restored from it until that copy is complete. Where its manifest is there,
//! the copy had ended and only `branch.json` did not say so yet: it is complete, if the manifest is what the plan led to. (A second copy could not end
//! otherwise: the manifest's key is taken.)

use bson::RawDocumentBuf;
use sha2::{Digest, Sha256};

use super::Problem;
use super::read::object;
use crate::branch::documents::{BaseManifest, BaseRef, BranchDocument};
use crate::branch::layout::{self, hex};
use crate::fault::{Fault, Result};
use crate::ledger::{Base, BaseOrigin, BaseState};
use crate::store::Store;

/// A base and the token at which history goes on behind it, where it says so.
#[derive(Debug)]
pub(super) struct BaseFound {
    pub(super) base: Base,
    pub(super) token: Option<RawDocumentBuf>,
}

/// The bases that `branch.json` names; what of them cannot be used is a problem.
pub(super) async fn bases(store: &Store, project: &str, branch: &BranchDocument, problems: &mut Vec<Problem>) -> Result<Vec<BaseFound>> {
    let mut found = Vec::new();
    for of in &branch.bases {
        let read =
            if of.copying { copying(store, project, &branch.id, of).await? } else { complete(store, project, &branch.id, of).await? };
        match read {
            Ok(base) => found.push(base),
            Err(problem) => problems.push(problem),
        }
    }
    Ok(found)
}

async fn complete(store: &Store, project: &str, branch: &str, of: &BaseRef) -> Result<Result<BaseFound, Problem>> {
    let key = layout::base_manifest(project, branch, of.seq, &of.id);
    let read = manifest(store, &key, Some(&of.sha256), of).await?;
    Ok(read.map(|(manifest, sha256)| found(branch, manifest, sha256, BaseState::Complete)))
}

async fn copying(store: &Store, project: &str, branch: &str, of: &BaseRef) -> Result<Result<BaseFound, Problem>> {
    let key = layout::base_plan(project, branch, of.seq, &of.id);
    let (plan, sha256) = match manifest(store, &key, Some(&of.sha256), of).await? {
        Ok(read) => read,
        Err(problem) => return Ok(Err(problem)),
    };
    let done = layout::base_manifest(project, branch, of.seq, &of.id);
    let ended = match store.head(&done).await.map_err(|f| f.at(format!("object {done}")))? {
        Some(info) => Some((manifest(store, &done, info.sha256.map(|sha256| hex(&sha256)).as_deref(), of).await?, done)),
        None => None,
    };
    Ok(match ended {
        None => Ok(found(branch, plan, sha256, BaseState::Copying)),
        Some((Ok((manifest, sha256)), _)) if follows(&manifest, &plan) => Ok(found(branch, manifest, sha256, BaseState::Complete)),
        Some((Ok(_), key)) => Err(Problem::new(key, "is not the end of the copy that its plan began")),
        Some((Err(problem), _)) => Err(problem),
    })
}

fn follows(manifest: &BaseManifest, plan: &BaseManifest) -> bool {
    let without = BaseManifest { consistent_at: plan.consistent_at, parts: Vec::new(), ..manifest.clone() };
    without == *plan && manifest.consistent_at >= plan.consistent_at
}

async fn manifest(store: &Store, key: &str, known: Option<&str>, of: &BaseRef) -> Result<Result<(BaseManifest, String), Problem>> {
    let parse = |bytes: bytes::Bytes| {
        let sha256 = hex(&Sha256::digest(&bytes));
        if known.is_some_and(|known| known != sha256) {
            return Err(Fault::corrupt(format!("{key}: object has another sha256 than was noted: the catalogue in it cannot be trusted")));
        }
        let read = BaseManifest::from_json(key, &bytes).map_err(|f| Fault::corrupt(f.what))?;
        if (&read.id, read.seq) != (&of.id, of.seq) {
            return Err(Fault::corrupt(format!("{key}: is of base {} at seq:{}", read.id, read.seq)));
        }
        Ok((read, sha256))
    };
    Ok(match object(store, key, parse).await? {
        Some(read) => read.map_err(|fault| Problem::new(key, fault.what)),
        None => Err(Problem::new(key, "is not in the bucket: nothing can be restored from this base")),
    })
}

fn found(branch: &str, manifest: BaseManifest, sha256: String, state: BaseState) -> BaseFound {
    let sum = |of: fn(&crate::branch::documents::BasePart) -> u64| manifest.parts.iter().map(of).sum::<u64>();
    // When it was made is not in the bucket; the listing is from then.
    let at_ms = i64::from(manifest.time.t) * 1_000;
    let base = Base {
        origin: manifest.origin,
        state,
        seq: manifest.seq,
        consistent_at: manifest.consistent_at,
        documents: sum(|p| p.documents),
        raw_bytes: sum(|p| p.raw_bytes),
        stored_bytes: sum(|p| p.stored_bytes),
        objects: manifest.parts.len() as u64,
        created_ms: at_ms,
        finished_ms: (state == BaseState::Complete && manifest.origin != BaseOrigin::Empty).then_some(at_ms),
        ..Base::empty(&manifest.id, branch, manifest.time, sha256)
    };
    let token = (!manifest.token.is_empty()).then_some(manifest.token);
    BaseFound { base, token }
}
