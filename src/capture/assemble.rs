//! Assemble: (state, change | tick, now) -> maybe a batch. Pure: `now` is passed in, nothing is awaited.
//!
//! Owns: when a batch closes, sequence numbers, the token and transaction flags of a batch (correctness.md 3 and 6).
//! Does not own: reading (`ingest`), compressing and storing (`checkpoint`).
//!
//! SUBTLE: the token of a batch. A reply's `postBatchResumeToken` lies behind *all* its events; a batch that ends inside a reply must carry
//! the `_id` of its own last change, or the rest of the reply is lost at a resume. So a full batch is closed only when the next
//! event is at hand (its own last token was kept), or at the end of the reply (then the reply's token is the right one).
//!
//! SUBTLE: large tokens. A token holds the `_id` of its change in hex, so that an `_id` of some MiB makes a token that no document of the
//! metadata can hold. A batch does not end there: it goes on to a change, or to the end of a reply, whose token is shorter.

use std::time::{Duration, Instant};

use bson::{RawDocument, RawDocumentBuf};

use crate::change::{ChangeRef, ClusterTime, Observed, Op, Scratch, parse_event, token_time};
use crate::fault::{Fault, Result};
use crate::ledger::{Ends, Position, START_ANEW, Selection};
use crate::segment::{BLOCK_BYTES, BlockBuilder, RawBlock};

use super::batch::Batch;
use super::feed::Reply;
use super::notice::{Notice, Notices};
use super::select::{Judged, Select};

/// When batches close.
#[derive(Debug, Clone, Copy)]
pub struct AssemblePolicy {
    /// Changes at which a batch may close.
    pub batch_size: u64,
    /// Time after which it closes whatever it holds.
    pub batch_timeout: Duration,
    /// Encoded bytes at which it closes in any case.
    pub max_bytes: u64,
}

/// Above this rate of closes a batch lingers, so that fast streams become tens of jobs a second and not a thousand.
const CLOSES_PER_SECOND: f64 = 20.0;
/// How long it lingers.
const LINGER: Duration = Duration::from_millis(100);
/// A token-only checkpoint moves the stream where metadata lives on the same cluster: at most this often.
pub(crate) const IDLE_TOKEN_EVERY: Duration = Duration::from_secs(10);

/// The longest resume token (bytes) at which a batch may end: the capture's document holds it twice, as position and as chain, a job holds it
/// beside the one before, and a document of MongoDB ends at 16 MiB.
const MAX_END_TOKEN: usize = 7 << 20;
/// How far a batch may outgrow its limit (bytes) because nothing with a shorter token comes: a few of the largest changes.
const TOKEN_SLACK: u64 = 32 << 20;

fn can_end_at(token: &RawDocument) -> bool {
    token.as_bytes().len() <= MAX_END_TOKEN
}

/// Whether the open batch should close.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Due {
    /// There is nothing to close.
    Empty,
    /// Close it.
    Now,
    /// Look again then.
    At(Instant),
}

#[derive(Debug)]
struct Open {
    builder: BlockBuilder,
    blocks: Vec<RawBlock>,
    block_bytes: u64,
    first_seq: u64,
    first_time: ClusterTime,
    last_time: ClusterTime,
    last_wall_ms: Option<i64>,
    starts_inside: bool,
    raw_bytes: u64,
    opened: Instant,
    /// Resumes after the last change held.
    end_token: RawDocumentBuf,
}

impl Open {
    fn bytes(&self) -> u64 {
        self.block_bytes + self.builder.encoded_len() as u64
    }
}

/// What a comparison of catalogues has found, and up to which change it had looked.
#[derive(Debug, Clone, PartialEq)]
pub struct Seen {
    pub observed: Observed,
    pub as_of: u64,
}

/// The state of one capture between replies.
#[derive(Debug)]
pub struct Assembler {
    db: String,
    policy: AssemblePolicy,
    next_seq: u64,
    /// End token of the last closed batch.
    chain: RawDocumentBuf,
    last_txn: Option<RawDocumentBuf>,
    open: Option<Open>,
    rate: Rate,
    scratch: Scratch,
    idle: IdleToken,
    notices: Notices,
    select: Select,
    /// The last change that is not of a document.
    last_event: u64,
    last_time: Option<ClusterTime>,
}

impl Assembler {
    /// Goes on at a stored position.
    pub fn new(db: &str, policy: AssemblePolicy, position: &Position, now: Instant) -> Self {
        Self {
            db: db.to_string(),
            policy,
            next_seq: position.next_seq,
            chain: position.chain.clone(),
            last_txn: position.last_txn.clone(),
            open: None,
            rate: Rate::new(now),
            scratch: Scratch::default(),
            idle: IdleToken { token: None, stored: now },
            notices: Notices::default(),
            select: Select::default(),
            last_event: 0,
            last_time: None,
        }
    }

    /// The same, for some of the collections.
    #[must_use]
    pub fn selecting(self, selection: &Selection) -> Self {
        Self { select: Select::new(selection), ..self }
    }

    /// The number of the next change.
    pub fn next_seq(&self) -> u64 {
        self.next_seq
    }

    /// Takes in a whole reply; returns the batches that had to close inside it.
    pub fn feed(&mut self, reply: &Reply, now: Instant) -> Result<Vec<Batch>> {
        let mut closed = Vec::new();
        let mut taken = 0u64;
        let mut previous: Option<&RawDocument> = None;
        for event in reply.events()? {
            let event = event?;
            let mut scratch = std::mem::take(&mut self.scratch);
            let outcome = self.push(event, previous, now, &mut scratch, &mut closed);
            self.scratch = scratch;
            outcome?;
            previous = Some(event);
            taken += 1;
        }
        let token = reply.token()?;
        match &mut self.open {
            Some(open) => open.end_token = token.to_owned(),
            None => self.idle.token = Some(token.to_owned()),
        }
        self.rate.add(taken, now);
        Ok(closed)
    }

    /// `previous` is the event before this one in the same reply: the last change of a batch that has to close here.
    fn push(
        &mut self,
        event: &RawDocument,
        previous: Option<&RawDocument>,
        now: Instant,
        scratch: &mut Scratch,
        closed: &mut Vec<Batch>,
    ) -> Result<()> {
        let view = parse_event(event, &self.db, scratch)?;
        let mut change = view.change;
        let instead;
        match self.select.judge(&change, view.op_type, &self.db)? {
            Judged::Take => {}
            Judged::PassOver => return Ok(()),
            Judged::Instead(event) => {
                instead = event;
                change = ChangeRef { coll: "", uuid: None, key: None, body: Some(&instead), ..change };
            }
        }
        self.notices.look(self.next_seq, view.op_type, &change);
        let inside = match (change.txn, &self.last_txn) {
            (Some(a), Some(b)) => a.as_bytes() == b.as_bytes(),
            _ => false,
        };
        if let Some(open) = &mut self.open
            && open.bytes() >= self.policy.max_bytes
        {
            if let Some(previous) = previous {
                open.end_token = token_of(previous)?.to_owned();
            }
            if can_end_at(&open.end_token) {
                closed.extend(self.close_with(Some(inside)));
            } else if open.bytes() >= self.policy.max_bytes + TOKEN_SLACK {
                return Err(no_end(open.first_seq, self.next_seq - 1));
            }
        }
        let seq = self.next_seq;
        let open = self.open.get_or_insert_with(|| Open {
            builder: BlockBuilder::new(seq),
            blocks: Vec::new(),
            block_bytes: 0,
            first_seq: seq,
            first_time: change.time,
            last_time: change.time,
            last_wall_ms: change.wall_ms,
            starts_inside: inside,
            raw_bytes: 0,
            opened: now,
            end_token: RawDocumentBuf::new(),
        });
        if open.builder.encoded_len() >= BLOCK_BYTES {
            let full = std::mem::replace(&mut open.builder, BlockBuilder::new(seq)).finish();
            open.block_bytes += full.bytes.len() as u64;
            open.blocks.push(full);
        }
        open.builder.push(&change)?;
        if change.op == Op::Event {
            self.last_event = seq;
        }
        self.last_time = Some(change.time);
        open.raw_bytes += change.raw_bytes();
        open.last_time = change.time;
        open.last_wall_ms = change.wall_ms.or(open.last_wall_ms);
        self.next_seq += 1;
        if !inside {
            self.last_txn = change.txn.map(ToOwned::to_owned);
        }
        Ok(())
    }

    /// Whether to close, given whether a checkpoint is in flight: while one is, the batch grows, so that a slow MongoDB gets
    /// fewer and larger transactions instead of a longer queue of small ones.
    pub fn due(&self, now: Instant, in_flight: bool) -> Due {
        let Some(open) = &self.open else { return Due::Empty };
        if !can_end_at(&open.end_token) {
            return Due::At(now + LINGER); // a shorter token comes with the next change, or with the server's own next one
        }
        if open.bytes() >= self.policy.max_bytes {
            return Due::Now;
        }
        let count = self.next_seq - open.first_seq;
        let fast = self.rate.per_second() / self.policy.batch_size as f64 > CLOSES_PER_SECOND;
        let linger = if fast || in_flight { LINGER } else { Duration::ZERO };
        let at = if count >= self.policy.batch_size {
            open.opened + linger.min(self.policy.batch_timeout)
        } else {
            open.opened + self.policy.batch_timeout
        };
        if now >= at { Due::Now } else { Due::At(at) }
    }

    /// Whether the open batch has reached its size and can be closed: no more replies are taken until it is gone.
    pub fn is_full(&self) -> bool {
        self.open.as_ref().is_some_and(|open| open.bytes() >= self.policy.max_bytes && can_end_at(&open.end_token))
    }

    /// What must be told of the changes that were taken in since the last call.
    pub fn take_notices(&mut self) -> Vec<Notice> {
        self.notices.take()
    }

    /// Closes the open batch at the end of the last reply. One that cannot end there stays open: if it is never stored, it is read again.
    pub fn close(&mut self) -> Option<Batch> {
        self.open.as_ref().filter(|open| can_end_at(&open.end_token))?;
        self.close_with(None)
    }

    fn close_with(&mut self, next_is_inside: Option<bool>) -> Option<Batch> {
        let open = self.open.take()?;
        let ends = match (&self.last_txn, next_is_inside) {
            (None, _) | (_, Some(false)) => Ends::Closed,
            (_, Some(true)) => Ends::Open,
            // The token's time is exclusive: past the transaction's time nothing of it can follow.
            (Some(_), None) if token_time(&open.end_token).is_ok_and(|t| t > open.last_time) => Ends::Closed,
            (Some(_), None) => Ends::Unknown,
        };
        let mut blocks = open.blocks;
        blocks.push(open.builder.finish());
        let start_token = std::mem::replace(&mut self.chain, open.end_token.clone());
        self.idle.token = None;
        Some(Batch {
            blocks,
            first_seq: open.first_seq,
            last_seq: self.next_seq - 1,
            first_time: open.first_time,
            last_time: open.last_time,
            last_wall_ms: open.last_wall_ms,
            start_token,
            end_token: open.end_token,
            starts_inside: open.starts_inside,
            ends,
            last_txn: self.last_txn.clone(),
            raw_bytes: open.raw_bytes,
        })
    }

    /// What a comparison has found becomes a change of its own, in a batch of its own between the others. `Err` gives it back where it cannot be now: something is
    /// held, or a transaction may go on. `Ok(None)`: events that came behind `as_of` have overtaken it.
    pub fn inject(&mut self, seen: Seen) -> Result<Option<Batch>, Seen> {
        if self.last_event > seen.as_of {
            return Ok(None);
        }
        let token = self.idle.token.as_ref().filter(|token| can_end_at(token)).unwrap_or(&self.chain);
        let (Ok(reached), Ok(stored)) = (token_time(token), token_time(&self.chain)) else { return Ok(None) };
        // The token's time is exclusive: past the transaction's time nothing of it can follow.
        let inside = self.last_txn.is_some() && self.last_time.unwrap_or(stored) >= reached;
        if self.open.is_some() || inside {
            return Err(seen);
        }
        let (end_token, seq) = (token.clone(), self.next_seq);
        // Nothing that comes can be earlier, nothing that came was later.
        let time = reached.max(seen.observed.listed_at);
        let event = RawDocumentBuf::try_from(&seen.observed.to_event(&self.db, time));
        let Ok(event) = event else { return Ok(None) };
        let change = ChangeRef { op: Op::Event, coll: "", uuid: None, time, wall_ms: None, txn: None, key: None, body: Some(&event) };
        let mut builder = BlockBuilder::new(seq);
        if builder.push(&change).is_err() {
            return Ok(None); // a catalogue larger than a change may be: the next base has it
        }
        (self.next_seq, self.last_event, self.last_txn, self.last_time) = (seq + 1, seq, None, Some(time));
        self.idle.token = None;
        Ok(Some(Batch {
            blocks: vec![builder.finish()],
            first_seq: seq,
            last_seq: seq,
            first_time: time,
            last_time: time,
            last_wall_ms: None,
            start_token: std::mem::replace(&mut self.chain, end_token.clone()),
            end_token,
            starts_inside: false,
            ends: Ends::Closed,
            last_txn: None,
            raw_bytes: change.raw_bytes(),
        }))
    }

    /// A token-only position to store, when nothing is pending and the last one is old enough.
    pub fn idle_position(&mut self, now: Instant) -> Option<Position> {
        if self.open.is_some() || now.duration_since(self.idle.stored) < IDLE_TOKEN_EVERY {
            return None;
        }
        let token = self.idle.token.take().filter(|token| can_end_at(token))?;
        self.idle.stored = now;
        Some(Position { token, chain: self.chain.clone(), next_seq: self.next_seq, last_txn: self.last_txn.clone() })
    }
}

/// Of the kind that fails a capture for good: whoever reads these changes again meets the same tokens.
fn no_end(first: u64, last: u64) -> Fault {
    Fault::corrupt(format!(
        "changes {first} to {last} have resume tokens of more than {} MiB each, since a token holds the _id of its document: no checkpoint can be stored behind them, history ends there. To go on: {START_ANEW}, and keep such documents out of it",
        MAX_END_TOKEN >> 20
    ))
}

fn token_of(event: &RawDocument) -> Result<&RawDocument> {
    event.get_document("_id").map_err(|e| Fault::corrupt(format!("change event without a resume token: {e}")))
}

#[derive(Debug)]
struct IdleToken {
    token: Option<RawDocumentBuf>,
    stored: Instant,
}

/// Changes per second over about the last half second.
#[derive(Debug)]
struct Rate {
    since: Instant,
    count: u64,
    smoothed: f64,
}

impl Rate {
    const WINDOW: Duration = Duration::from_millis(250);

    fn new(now: Instant) -> Self {
        Self { since: now, count: 0, smoothed: 0.0 }
    }

    fn add(&mut self, count: u64, now: Instant) {
        self.count += count;
        let elapsed = now.duration_since(self.since);
        if elapsed >= Self::WINDOW {
            let latest = self.count as f64 / elapsed.as_secs_f64();
            self.smoothed = if self.smoothed == 0.0 { latest } else { (self.smoothed + latest) / 2.0 };
            self.since = now;
            self.count = 0;
        }
    }

    fn per_second(&self) -> f64 {
        self.smoothed
    }
}

#[cfg(test)]
#[path = "assemble_tests.rs"]
mod tests;
