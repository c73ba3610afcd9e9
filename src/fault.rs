//! Owns the one error type of the engine: a kind that tells the caller what to do, and a sentence for a person.
//! Does not own classification of driver errors: each adapter (ledger, store, feed) classifies its own, in one place.

use std::time::Duration;

/// What the caller does about a failure.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Kind {
    /// It did not happen and may work later: back off and repeat.
    Transient,
    /// It may have happened: read again before deciding. Unclassified errors are of this kind.
    Unknown,
    /// Somebody else owns this now: drop the work, never repeat the write.
    Fenced,
    /// The thing named is not there.
    Missing,
    /// It will never work as asked (rights, wrong server, refused request): show it to a person.
    Rejected,
    /// Bytes are not what they should be: never use them, name where they are.
    Corrupt,
    /// A setting or argument is wrong: exit code 2.
    Config,
    /// The stream's position is gone for good (oplog rolled over, token refused): a gap.
    HistoryLost,
    /// Stopped on request.
    Cancelled,
}

/// A failure: kind, a full sentence with the name of the thing and the way out, and a hint when to come back.
#[derive(Debug, Clone, thiserror::Error)]
#[error("{what}")]
pub struct Fault {
    /// What the caller does.
    pub kind: Kind,
    /// One line for a person; never contains a password or token.
    pub what: String,
    /// The other side asked to wait this long (Retry-After).
    pub retry_after: Option<Duration>,
    /// What a person at this machine's command line types next. No part of the sentence: logs and other machines have no use for it.
    pub next: Option<String>,
}

/// Result of everything in the engine.
pub type Result<T, E = Fault> = std::result::Result<T, E>;

macro_rules! makers {
    ($($name:ident => $kind:ident),* $(,)?) => {
        impl Fault {
            $(
                #[doc = concat!("A fault of kind [`Kind::", stringify!($kind), "`].")]
                pub fn $name(what: impl Into<String>) -> Self {
                    Self { kind: Kind::$kind, what: what.into(), retry_after: None, next: None }
                }
            )*
        }
    };
}

makers! {
    transient => Transient, unknown => Unknown, fenced => Fenced, missing => Missing, rejected => Rejected,
    corrupt => Corrupt, config => Config, history_lost => HistoryLost, cancelled => Cancelled,
}

impl Fault {
    /// With the command to type next.
    #[must_use]
    pub fn next(self, command: impl Into<String>) -> Self {
        Self { next: Some(command.into()), ..self }
    }

    /// Prefixes the sentence with where it happened; the kind stays.
    #[must_use]
    pub fn at(mut self, place: impl std::fmt::Display) -> Self {
        self.what = format!("{place}: {}", self.what);
        self
    }

    /// Worth repeating after a pause (a repeat must be idempotent when the kind is [`Kind::Unknown`]).
    pub fn may_heal(&self) -> bool {
        matches!(self.kind, Kind::Transient | Kind::Unknown)
    }
}
