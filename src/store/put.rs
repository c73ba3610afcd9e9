//! Owns: the one way to upload an object so that it is there exactly once with the right bytes, whatever the store answers
//! (correctness.md 20, 21, 28). Does not own what is uploaded, or giving up on a job (`queue`).

use std::time::Duration;

use bytes::Bytes;
use sha2::{Digest, Sha256};
use tokio_util::sync::CancellationToken;

use super::{ObjectInfo, ObjectStore, Put, PutTag};
use crate::fault::{Fault, Kind, Result};
use crate::runtime::backoff::Backoff;
use crate::runtime::random;

/// How long to go on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RetryPolicy {
    /// Pauses between attempts.
    pub backoff: Backoff,
    /// Attempts in all, at least 1.
    pub attempts: u32,
    /// A store that asks to wait longer than this (Retry-After) is given up at once; the fault carries its wish.
    pub max_retry_after: Duration,
    /// Time for all of it, attempts under way and pauses included: a store that takes connections and never answers must not
    /// keep the caller longer. Must leave room for one honest transfer of the largest body.
    pub time: Duration,
}

impl Default for RetryPolicy {
    /// Six attempts, within about ten seconds where the store answers at once and never longer than two minutes; what lasts longer is an
    /// outage, and the queue's business.
    fn default() -> Self {
        let backoff = Backoff { base: Duration::from_millis(200), cap: Duration::from_secs(5) };
        Self { backoff, attempts: 6, max_retry_after: Duration::from_secs(60), time: Duration::from_secs(120) }
    }
}

/// How an upload ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PutOutcome {
    /// Our put was acknowledged.
    Stored,
    /// The object is there with our put id or our very bytes: an earlier put landed although its answer did not, or somebody uploaded the same.
    Adopted,
    /// Other bytes are under the key: someone else's. Ours are not stored.
    Conflict,
}

/// Outcome and what it took, for metrics.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PutReport {
    /// How it ended.
    pub outcome: PutOutcome,
    /// Conditional puts sent, at least 1.
    pub attempts: u32,
    /// Answers that left open whether the put had happened.
    pub unclear: u32,
    /// Objects found damaged on reading back and written again.
    pub repaired: u32,
}

/// Uploads `body` to `key` unless something else is there. Safe to repeat, and to drop at any moment.
///
/// Where the store does not check what it stores ([`ObjectStore::verifies_puts`]), the object is read back and compared before this returns.
///
/// # Errors
/// The last fault when the attempts or the time are used up (`Unknown` if any of them may have happened), `Cancelled`, or at once what
/// cannot heal.
pub async fn put_idempotent(
    store: &dyn ObjectStore,
    key: &str,
    body: Bytes,
    tag: &PutTag,
    policy: &RetryPolicy,
    cancel: &CancellationToken,
) -> Result<PutReport> {
    let upload = Upload { store, key, body, tag };
    let mut report = PutReport { outcome: PutOutcome::Stored, attempts: 0, unclear: 0, repaired: 0 };
    let over = tokio::time::sleep(policy.time);
    tokio::pin!(over);
    loop {
        report.attempts += 1;
        let step = tokio::select! {
            biased;
            () = cancel.cancelled() => Err(cancelled(key)),
            step = upload.attempt(&mut report) => step,
            () = &mut over => {
                // The attempt under way may have happened.
                let fault = Fault::unknown(format!("{} has not taken {key} within {}", store.describe(), humantime::format_duration(policy.time)));
                return Err(as_whole(fault, &report));
            }
        };
        let fault = match step {
            Ok(outcome) => return Ok(PutReport { outcome, ..report }),
            Err(fault) => fault,
        };
        let wished = fault.retry_after.unwrap_or_default();
        if !fault.may_heal() || report.attempts >= policy.attempts || wished > policy.max_retry_after {
            return Err(as_whole(fault, &report));
        }
        let pause = wished + policy.backoff.delay(report.attempts, random::unit());
        tracing::debug!(key, attempt = report.attempts, pause_ms = pause.as_millis(), error = %fault, "upload will be repeated");
        tokio::select! {
            biased;
            () = cancel.cancelled() => return Err(cancelled(key)),
            () = &mut over => return Err(as_whole(fault, &report)),
            () = tokio::time::sleep(pause) => {}
        }
    }
}

fn cancelled(key: &str) -> Fault {
    Fault::cancelled(format!("the upload of {key} was stopped; it may have happened"))
}

/// The whole upload may have happened if any of its attempts may.
fn as_whole(mut fault: Fault, report: &PutReport) -> Fault {
    if report.unclear > 0 && fault.kind == Kind::Transient {
        fault.kind = Kind::Unknown;
    }
    if report.attempts > 1 { fault.at(format!("after {} attempts", report.attempts)) } else { fault }
}

struct Upload<'a> {
    store: &'a dyn ObjectStore,
    key: &'a str,
    body: Bytes,
    tag: &'a PutTag,
}

impl Upload<'_> {
    /// One conditional put, and a look at what is there where its answer does not say.
    async fn attempt(&self, report: &mut PutReport) -> Result<PutOutcome> {
        let unclear = match self.store.put_new(self.key, self.body.clone(), self.tag).await {
            Ok(Put::Stored) => {
                // Unknown until it has been read: the fault of a failed look must not claim that nothing happened.
                return self.confirm(PutOutcome::Stored, None, report).await.inspect_err(|_| report.unclear += 1);
            }
            Ok(Put::Refused) => None,
            Err(fault) if fault.kind == Kind::Unknown => {
                report.unclear += 1;
                Some(fault)
            }
            Err(fault) => return Err(fault),
        };
        match self.store.head(self.key).await? {
            Some(found) if self.is_ours(&found).await? => self.confirm(PutOutcome::Adopted, Some(found), report).await,
            Some(_) => Ok(PutOutcome::Conflict),
            // Either it did not happen, or what was in the way is gone again: a repeat is right in both cases.
            None => {
                Err(unclear.unwrap_or_else(|| Fault::transient(format!("object {} was refused as present but is not there", self.key))))
            }
        }
    }

    async fn is_ours(&self, found: &ObjectInfo) -> Result<bool> {
        if found.put_id.as_ref() == Some(&self.tag.put_id) {
            return Ok(true);
        }
        match found.sha256 {
            // Whatever its length: what was cut off on the way says so of itself, and is mended like what was altered.
            Some(sha256) => Ok(sha256 == self.tag.sha256),
            None if found.size != self.body.len() as u64 => Ok(false),
            None => self.matches().await,
        }
    }

    /// Reads the object and compares its bytes with ours.
    async fn matches(&self) -> Result<bool> {
        let stored = self.store.get(self.key, None).await.map_err(|mut fault| {
            if fault.kind == Kind::Missing {
                fault.kind = Kind::Transient; // it was there a moment ago: look again
            }
            fault
        })?;
        Ok(stored.len() == self.body.len() && self.tag.sha256 == <[u8; 32]>::from(Sha256::digest(&stored)))
    }

    /// Makes sure that what carries our name holds our bytes, where the store has not done so.
    ///
    /// SUBTLE: an upload that was altered on the way carries our put id and hash in its metadata, so only its bytes can tell. Nothing
    /// refers to it yet, and it is replaced only if it still is that very version: bytes of somebody else are never overwritten.
    async fn confirm(&self, outcome: PutOutcome, found: Option<ObjectInfo>, report: &mut PutReport) -> Result<PutOutcome> {
        let whole = found.as_ref().is_none_or(|found| found.size == self.body.len() as u64);
        // What another attempt put there may have been sent when nothing was checked, and died before it had read it back.
        let another = found.as_ref().is_some_and(|found| found.put_id.as_ref() != Some(&self.tag.put_id));
        if whole && (self.store.verifies_puts() && !another || self.matches().await?) {
            return Ok(outcome);
        }
        let found = match found {
            Some(found) => Some(found),
            None => self.store.head(self.key).await?,
        };
        let damaged = |why: &str| Fault::unknown(format!("object {} does not hold the bytes that were sent: {why}", self.key));
        let Some(version) = found.and_then(|found| found.version) else { return Err(damaged("it has no version")) };
        match self.store.replace(self.key, self.body.clone(), self.tag, &version).await? {
            Put::Stored if self.store.verifies_puts() || self.matches().await? => {
                report.repaired += 1;
                Ok(outcome)
            }
            Put::Stored => Err(damaged("also after it was sent again")),
            Put::Refused => Err(damaged("and it is being changed by someone else")),
        }
    }
}
