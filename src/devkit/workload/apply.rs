//! Owns: writing operations to a database in as few commands as their order allows, and counting the changes that come of it.
//! Does not own retrying: an error leaves it open which operations of the call took effect.

use std::collections::{BTreeMap, HashMap, HashSet};

use futures_util::future::join_all;
use mongodb::bson::{Bson, Document, doc, serialize_to_vec};
use mongodb::error::{Error, TRANSIENT_TRANSACTION_ERROR, UNKNOWN_TRANSACTION_COMMIT_RESULT};
use mongodb::{ClientSession, Database};

use super::documents::Modification;
use super::{Operation, Profile};
use crate::fault::{Fault, Result};

/// Statements per command; the driver's own limit for one is 100,000, but a reply should not take seconds.
const COMMAND_STATEMENTS: usize = 1_000;
/// Bytes per command; a server takes 48 MB.
const COMMAND_BYTES: usize = 8 << 20;
const TRANSACTION_TRIES: usize = 20;

/// What was done. Exact as long as every [`apply`] that it counts returned `Ok`: the figures are those of the server's replies, which
/// leave out updates that changed nothing, as the change stream does.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Stats {
    /// Operations given; a transaction is one.
    pub operations: u64,
    /// Events of the types insert, update, replace and delete that the change stream will report.
    pub changes: u64,
    /// Of these, inserts.
    pub inserted: u64,
    /// Of these, updates and replacements (a pipeline that rewrites a whole document is reported as either, as the server likes).
    pub modified: u64,
    /// Of these, deletes.
    pub deleted: u64,
    /// Transactions committed.
    pub transactions: u64,
    /// BSON bytes of statements and documents sent.
    pub sent_bytes: u64,
}

impl std::ops::AddAssign for Stats {
    fn add_assign(&mut self, other: Self) {
        self.operations += other.operations;
        self.changes += other.changes;
        self.inserted += other.inserted;
        self.modified += other.modified;
        self.deleted += other.deleted;
        self.transactions += other.transactions;
        self.sent_bytes += other.sent_bytes;
    }
}

/// Makes the profile's collections, so that no operation makes one and is reported with a `create`. Those that exist are fine.
pub async fn prepare(db: &Database, profile: &Profile) -> Result<()> {
    const NAMESPACE_EXISTS: i32 = 48;
    for i in 0..profile.collections {
        match db.run_command(doc! { "create": Profile::collection(i) }).await {
            Err(error) if code(&error) == Some(NAMESPACE_EXISTS) => {}
            other => drop(other.map_err(|error| fault("create", &error))?),
        }
    }
    Ok(())
}

fn code(error: &Error) -> Option<i32> {
    if let mongodb::error::ErrorKind::Command(command) = error.kind.as_ref() { Some(command.code) } else { None }
}

/// Applies operations. Those on one document keep their order; others may be reordered.
pub async fn apply(db: &Database, operations: &[Operation]) -> Result<Stats> {
    let mut stats = Stats { operations: operations.len() as u64, ..Stats::default() };
    for chunk in operations.chunks(4 * COMMAND_STATEMENTS) {
        let mut rest: Vec<&Operation> = chunk.iter().collect();
        while !rest.is_empty() {
            let pass = Pass::of(&rest);
            for round in rounds(commands(pass.single)?) {
                for more in join_all(round.into_values().map(|commands| in_turn(db, commands))).await {
                    stats += more?;
                }
            }
            for parts in pass.transactions {
                stats += Box::pin(transaction(db, parts)).await?;
            }
            rest = pass.rest;
        }
    }
    Ok(stats)
}

/// What can be sent next: single operations, then transactions. A transaction is a round trip for each of its parts and one more, so
/// operations on other documents do not wait for it: they would be cut into commands of a few statements each.
#[derive(Default)]
struct Pass<'a> {
    single: Vec<&'a Operation>,
    transactions: Vec<&'a [Operation]>,
    /// Of a document that a transaction before them touches, or that one of these does.
    rest: Vec<&'a Operation>,
}

impl<'a> Pass<'a> {
    fn of(operations: &[&'a Operation]) -> Self {
        let mut pass = Self::default();
        // Documents of transactions and of what has to wait: whatever comes later for these has to wait too.
        let mut taken = HashSet::new();
        for &operation in operations {
            if let Operation::Transaction(parts) = operation {
                let documents: Vec<_> = parts.iter().map(document).collect();
                if pass.rest.is_empty() || !documents.iter().any(|d| taken.contains(d)) {
                    pass.transactions.push(parts);
                } else {
                    pass.rest.push(operation);
                }
                taken.extend(documents);
            } else if taken.contains(&document(operation)) {
                pass.rest.push(operation);
            } else {
                pass.single.push(operation);
            }
        }
        pass
    }
}

/// Collection and `_id`.
fn document(operation: &Operation) -> (usize, String) {
    let of = |document: &Document| document.get("_id").cloned().unwrap_or(Bson::Null);
    let (collection, id) = match operation {
        Operation::Insert { collection, document } | Operation::Replace { collection, document } => (*collection, of(document)),
        Operation::Update { collection, id, .. } | Operation::Delete { collection, id } => (*collection, id.clone()),
        Operation::Transaction(_) => (usize::MAX, Bson::Null),
    };
    (collection, format!("{id:?}"))
}

/// Commands of one round by collection: those of one collection follow each other, those of several wait together, since on a
/// majority write concern the wait is most of a command.
fn rounds(commands: Vec<Command>) -> Vec<BTreeMap<usize, Vec<Command>>> {
    let mut rounds: Vec<(usize, BTreeMap<usize, Vec<Command>>)> = Vec::new();
    for command in commands {
        if rounds.last().is_none_or(|(round, _)| *round != command.round) {
            rounds.push((command.round, BTreeMap::new()));
        }
        if let Some((_, by_collection)) = rounds.last_mut() {
            by_collection.entry(command.collection).or_default().push(command);
        }
    }
    rounds.into_iter().map(|(_, by_collection)| by_collection).collect()
}

async fn in_turn(db: &Database, commands: Vec<Command>) -> Result<Stats> {
    let mut stats = Stats::default();
    for command in commands {
        stats += command.run(db).await?;
    }
    Ok(stats)
}

/// The three write commands, in the order in which a round sends them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
enum Verb {
    Insert,
    Update,
    Delete,
}

impl Verb {
    const fn names(self) -> (&'static str, &'static str) {
        match self {
            Self::Insert => ("insert", "documents"),
            Self::Update => ("update", "updates"),
            Self::Delete => ("delete", "deletes"),
        }
    }
}

/// One write command.
#[derive(Debug)]
struct Command {
    /// Rounds follow each other; a document's operations are in rounds in their order.
    round: usize,
    verb: Verb,
    collection: usize,
    statements: Vec<Bson>,
    bytes: usize,
}

impl Command {
    async fn run(self, db: &Database) -> Result<Stats, Fault> {
        let bytes = self.bytes as u64;
        let verb = self.verb;
        let reply = self.send(db, None).await.map_err(|error| fault(verb.names().0, &error))?;
        count(verb, &reply, bytes)
    }

    async fn send(self, db: &Database, session: Option<&mut ClientSession>) -> Result<Document, Error> {
        let (command, list) = self.verb.names();
        let command = doc! { command: Profile::collection(self.collection), list: self.statements, "ordered": true };
        let action = db.run_command(command);
        match session {
            Some(session) => action.session(session).await,
            None => action.await,
        }
    }
}

/// Groups operations by command. SUBTLE: a sequence of mixed operations has runs of one or two of a kind, which would be a round trip
/// each. Order matters only within a document, so each operation goes into the earliest round (of one insert, one update and one
/// delete command per collection) that is not before the previous one of its document; within a command the order is kept anyway.
fn commands<'a>(operations: impl IntoIterator<Item = &'a Operation>) -> Result<Vec<Command>> {
    let mut last: HashMap<(usize, String), usize> = HashMap::new();
    let mut rounds: Vec<((usize, usize), Vec<Bson>)> = Vec::new();
    let mut at: HashMap<(usize, usize), usize> = HashMap::new();
    for operation in operations {
        let (verb, collection, statement) = statement(operation)?;
        let round = last.entry(document(operation)).or_insert(0);
        *round += (3 + verb as usize - *round % 3) % 3;
        let slot = *at.entry((*round, collection)).or_insert_with(|| {
            rounds.push(((*round, collection), Vec::new()));
            rounds.len() - 1
        });
        rounds[slot].1.push(statement);
    }
    rounds.sort_by_key(|(place, _)| *place);
    let mut commands = Vec::new();
    for ((round, collection), statements) in rounds {
        let verb = [Verb::Insert, Verb::Update, Verb::Delete][round % 3];
        let empty = || Command { round, verb, collection, statements: Vec::new(), bytes: 0 };
        split(empty, statements, &mut commands)?;
    }
    Ok(commands)
}

fn split(empty: impl Fn() -> Command, statements: Vec<Bson>, into: &mut Vec<Command>) -> Result<()> {
    let mut command = empty();
    for statement in statements {
        let bytes = statement.as_document().map_or(Ok(0), |document| serialize_to_vec(document).map(|bytes| bytes.len()));
        let bytes = bytes.map_err(|error| Fault::rejected(format!("an operation of the workload is no BSON: {error}")))?;
        if command.statements.len() >= COMMAND_STATEMENTS || (command.bytes + bytes > COMMAND_BYTES && !command.statements.is_empty()) {
            into.push(std::mem::replace(&mut command, empty()));
        }
        command.bytes += bytes;
        command.statements.push(statement);
    }
    into.push(command);
    Ok(())
}

fn statement(operation: &Operation) -> Result<(Verb, usize, Bson)> {
    let id_of = |document: &Document| document.get("_id").cloned().unwrap_or(Bson::Null);
    let (verb, collection, statement) = match operation {
        Operation::Insert { collection, document } => (Verb::Insert, collection, document.clone()),
        Operation::Replace { collection, document } => {
            (Verb::Update, collection, doc! { "q": { "_id": id_of(document) }, "u": document.clone() })
        }
        Operation::Update { collection, id, only_if, update, .. } => {
            let mut query = doc! { "_id": id.clone() };
            query.extend(only_if.clone());
            let update = match update {
                Modification::Pipeline(stages) => Bson::from(stages.clone()),
                Modification::Document(update) => Bson::Document(update.clone()),
            };
            (Verb::Update, collection, doc! { "q": query, "u": update })
        }
        Operation::Delete { collection, id } => (Verb::Delete, collection, doc! { "q": { "_id": id.clone() }, "limit": 1_i32 }),
        Operation::Transaction(_) => return Err(Fault::rejected("a transaction of the workload is inside another one")),
    };
    Ok((verb, *collection, Bson::Document(statement)))
}

/// The changes that a reply tells of. Errors of statements are in replies that say `ok`.
fn count(verb: Verb, reply: &Document, sent_bytes: u64) -> Result<Stats> {
    let number = |name: &str| -> u64 {
        let value = reply.get(name).and_then(|value| value.as_i64().or_else(|| value.as_i32().map(i64::from)));
        value.and_then(|value| u64::try_from(value).ok()).unwrap_or(0)
    };
    for list in ["writeErrors", "writeConcernError"] {
        if let Some(error) = reply.get(list) {
            return Err(Fault::unknown(format!("{} of the workload: {error}", verb.names().0)));
        }
    }
    let mut stats = Stats { sent_bytes, ..Stats::default() };
    match verb {
        Verb::Insert => stats.inserted = number("n"),
        Verb::Update => stats.modified = number("nModified"),
        Verb::Delete => stats.deleted = number("n"),
    }
    stats.changes = stats.inserted + stats.modified + stats.deleted;
    Ok(stats)
}

/// Runs one transaction to its commit, again when the server asks for it.
async fn transaction(db: &Database, parts: &[Operation]) -> Result<Stats> {
    let mut session = db.client().start_session().await.map_err(|error| fault("a session", &error))?;
    let mut tries = 1;
    loop {
        match attempt(db, parts, &mut session).await? {
            Ok(mut stats) => {
                stats.transactions = 1;
                return Ok(stats);
            }
            Err(error) if error.contains_label(TRANSIENT_TRANSACTION_ERROR) && tries < TRANSACTION_TRIES => tries += 1,
            Err(error) => return Err(fault("a transaction", &error)),
        }
    }
}

/// One attempt; the inner error is the driver's, which knows whether another attempt is wanted.
async fn attempt(db: &Database, parts: &[Operation], session: &mut ClientSession) -> Result<Result<Stats, Error>> {
    if let Err(error) = session.start_transaction().await {
        return Ok(Err(error));
    }
    let mut stats = Stats::default();
    for part in parts {
        // One command each, in the order given: that order is the order of the transaction's changes.
        for command in commands(std::slice::from_ref(part))? {
            let (verb, bytes) = (command.verb, command.bytes as u64);
            match command.send(db, Some(session)).await {
                Ok(reply) => stats += count(verb, &reply, bytes)?,
                Err(error) => {
                    let _ = session.abort_transaction().await; // the first error is the one that tells
                    return Ok(Err(error));
                }
            }
        }
    }
    for _ in 0..TRANSACTION_TRIES {
        match session.commit_transaction().await {
            Err(error) if error.contains_label(UNKNOWN_TRANSACTION_COMMIT_RESULT) => {}
            committed => return Ok(committed.map(|()| stats)),
        }
    }
    Err(Fault::unknown("a transaction of the workload may or may not have been committed"))
}

fn fault(what: &str, error: &Error) -> Fault {
    Fault::unknown(format!("{what} of the workload: {error}"))
}

#[cfg(test)]
mod tests {
    use super::super::{Profile, Workload};
    use super::*;

    #[test]
    fn operations_of_one_document_keep_their_order() {
        let operations: Vec<Operation> =
            Workload::new(5, 0, Profile { transaction: 0, keys: 20, ..Profile::everything() }).unwrap().take(3000).collect();
        let sent = commands(&operations).unwrap();
        let sequence = |statements: Vec<(Verb, usize, Bson)>| {
            let mut per_document: HashMap<(usize, String), Vec<(Verb, Bson)>> = HashMap::new();
            for (verb, collection, statement) in statements {
                let document = statement.as_document().unwrap();
                let id = document.get_document("q").unwrap_or(document).get("_id").unwrap().to_string();
                per_document.entry((collection, id)).or_default().push((verb, statement));
            }
            per_document
        };
        let given = operations.iter().map(|operation| statement(operation).unwrap());
        let flat = sent.iter().flat_map(|command| command.statements.iter().map(|sent| (command.verb, command.collection, sent.clone())));
        assert_eq!(sequence(given.collect()), sequence(flat.collect()));
        assert!(sent.len() < 60, "{} commands for 3000 operations", sent.len());
    }

    #[test]
    fn transactions_do_not_hold_up_other_documents_and_the_order_of_each_document_stays() {
        let profile = Profile { keys: 30, ..Profile::everything() };
        let operations: Vec<Operation> = Workload::new(5, 0, profile).unwrap().take(1000).collect();
        let (mut rest, mut passes, mut sent) = (operations.iter().collect::<Vec<_>>(), 0, Vec::new());
        while !rest.is_empty() {
            let pass = Pass::of(&rest);
            assert!(pass.rest.len() < rest.len(), "a pass sends something");
            sent.extend(pass.single.into_iter().map(|operation| vec![operation]));
            sent.extend(pass.transactions.into_iter().map(|parts| parts.iter().collect()));
            (rest, passes) = (pass.rest, passes + 1);
        }
        let given = operations.iter().map(|operation| match operation {
            Operation::Transaction(parts) => parts.iter().collect(),
            single => vec![single],
        });
        let sequence = |groups: Vec<Vec<&Operation>>| {
            let mut per_document: HashMap<_, Vec<String>> = HashMap::new();
            for (of, operation) in groups.into_iter().flatten().map(|operation| (document(operation), operation)) {
                per_document.entry(of).or_default().push(format!("{operation:?}"));
            }
            per_document
        };
        let transactions = operations.iter().filter(|operation| matches!(operation, Operation::Transaction(_))).count();
        assert!(passes < transactions, "{passes} passes for {transactions} transactions");
        assert_eq!(sequence(given.collect()), sequence(sent));
    }

    #[test]
    fn commands_stay_within_count_and_bytes() {
        let profile = Profile { doc_bytes: 1 << 20, ..Profile::inserts(0) };
        let operations: Vec<Operation> = Workload::new(5, 0, profile).unwrap().take(20).collect();
        let commands = commands(&operations).unwrap();
        assert!(commands.len() >= 3 && commands.iter().all(|command| command.bytes <= COMMAND_BYTES), "{}", commands.len());
        assert_eq!(commands.iter().map(|command| command.statements.len()).sum::<usize>(), 20);
    }

    #[test]
    fn errors_inside_a_good_reply_are_errors() {
        assert!(count(Verb::Insert, &doc! { "ok": 1, "n": 0, "writeErrors": [{ "code": 11000 }] }, 0).is_err());
        assert_eq!(count(Verb::Update, &doc! { "ok": 1, "n": 5, "nModified": 3 }, 9).unwrap().changes, 3);
    }
}
