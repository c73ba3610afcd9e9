//! Finding the changes of one document without reading the rest: rows from the newest on, the end of each object by a ranged read, the blocks whose key
//! filter says "maybe" by another (the format's footer is made for it).
//!
//! Owns: which bytes are read. Does not own: what the changes come to (`get`), reading history whole (`history`).

use std::collections::VecDeque;
use std::sync::Arc;

use bson::RawDocumentBuf;
use futures_util::stream::{self, StreamExt};
use tokio_util::task::AbortOnDropHandle;

use crate::branch::catalogue::Uuid;
use crate::branch::documents::{BaseManifest, BasePart};
use crate::branch::history::History;
use crate::branch::layout;
use crate::branch::line::Based;
use crate::branch::object::Object;
use crate::change::{CanonicalKey, ClusterTime, Ddl, Op, canonical_id, parse_ddl, parse_stored_event};
use crate::fault::{Fault, Result};
use crate::ledger::{RowFilter, SegmentKind, SegmentRow};
use crate::segment::{RawBlock, may_contain_document};
use crate::store::Store;

/// Objects that are looked at together, each by a task of its own: decoding takes about as long as fetching.
const TOGETHER: usize = 32;
/// Rows per page.
const PAGE: usize = 500;
/// Changes of one document that are kept; a document that changes more often between two whole states is restored, not looked up.
const MAX_CHANGES: usize = 1_000_000;

/// A change of the document.
#[derive(Debug, Clone)]
pub(super) struct Change {
    pub(super) seq: u64,
    pub(super) time: ClusterTime,
    pub(super) op: Op,
    pub(super) body: Option<RawDocumentBuf>,
}

/// What was found of a document.
#[derive(Debug, Default)]
pub(super) struct Changes {
    /// From the newest on.
    pub(super) newest_first: Vec<Change>,
    /// The last of them needs nothing before it: it is a whole state, or the end of one, or the collection begins there.
    pub(super) complete: bool,
    /// The UUID under which the base knows the collection.
    pub(super) uuid: Uuid,
}

/// What a base may have of later changes.
#[derive(Debug, Clone, Copy)]
pub(super) struct Behind {
    /// Changes up to this time may be in it.
    pub(super) base_until: ClusterTime,
    /// From this seq on they are of another part of the line than the base is: none of them is in it, whatever its time.
    pub(super) foreign_from: u64,
}

impl Behind {
    pub(super) fn is_later(self, change: &Change, time: ClusterTime) -> bool {
        change.seq >= self.foreign_from || change.time > time
    }
}

/// The document that is looked for.
#[derive(Debug, Clone)]
pub(super) struct Finder<'a> {
    pub(super) history: &'a History,
    pub(super) sought: Arc<Sought>,
}

/// What names it.
#[derive(Debug)]
pub(super) struct Sought {
    pub(super) key: CanonicalKey,
    pub(super) uuid: Uuid,
    pub(super) name: String,
}

impl Finder<'_> {
    /// Changes up to `until` and behind `after`, as far back as they are needed: up to a whole state that the base cannot have.
    pub(super) async fn changes(&self, after: u64, until: u64, behind: Behind, all: bool) -> Result<Changes> {
        let mut found = Changes { uuid: self.sought.uuid, ..Changes::default() };
        let mut rows = Backwards { history: self.history, page: VecDeque::new(), next: until, after };
        // Those that nobody waits for any more are stopped.
        let mut flying: VecDeque<AbortOnDropHandle<Result<Vec<Event>>>> = VecDeque::new();
        let mut is_last = false;
        loop {
            while !is_last && flying.len() < TOGETHER {
                match rows.next().await? {
                    Some((row, _)) if !self.sought.may_be_in(&row) => {}
                    Some((row, last)) => {
                        let task = tokio::spawn(self.sought.clone().look(self.history.store().clone(), row, last));
                        flying.push_back(AbortOnDropHandle::new(task));
                    }
                    None => is_last = true,
                }
            }
            let Some(task) = flying.pop_front() else { return Ok(found) };
            let events = task.await.map_err(|e| Fault::corrupt(format!("looking into a segment panicked: {e}")))??;
            for event in events.into_iter().filter(|event| event.seq() > after).rev() {
                match event {
                    Event::Begins(_) => {
                        found.complete = true;
                        return Ok(found);
                    }
                    // What was looked at under this UUID is looked at again under the one before.
                    Event::Moved(seq, from) => {
                        let Sought { key, name, .. } = &*self.sought;
                        let sought = Arc::new(Sought { key: key.clone(), uuid: from, name: name.clone() });
                        let before = Finder { history: self.history, sought };
                        let more = Box::pin(before.changes(after, seq - 1, behind, all)).await?;
                        found.newest_first.extend(more.newest_first);
                        return Ok(Changes { newest_first: found.newest_first, ..more });
                    }
                    Event::Change(change) => {
                        let whole =
                            matches!(change.op, Op::Insert | Op::Replace | Op::Delete) && behind.is_later(&change, behind.base_until);
                        found.newest_first.push(change);
                        if found.newest_first.len() > MAX_CHANGES {
                            return Err(Fault::rejected(format!(
                                "this document changed more than {MAX_CHANGES} times: restore its collection instead"
                            )));
                        }
                        if whole && !all {
                            found.complete = true;
                            return Ok(found);
                        }
                    }
                }
            }
        }
    }
}

impl Sought {
    /// What changes the catalogue is always looked at.
    fn may_be_in(&self, row: &SegmentRow) -> bool {
        let may = |filter: &RowFilter| may_contain_document(&filter.0, &self.name, &self.uuid, self.key.as_bytes());
        row.has_ddl || row.filter.as_ref().is_none_or(may)
    }

    /// What one segment has of the document, in order.
    async fn look(self: Arc<Self>, store: Store, row: SegmentRow, last: u64) -> Result<Vec<Event>> {
        let mut events = Vec::new();
        let object = Object::open(&store, &row.key, row.stored_bytes).await?;
        for (i, entry) in object.footer.blocks.iter().enumerate() {
            let may = entry.may_contain(&object.footer, &self.name, Some(&self.uuid), &self.key);
            if (may || entry.has_ddl) && entry.first_seq <= last {
                let block = object.block(&store, i).await?;
                self.rows_of(&block, &row.key, last, &mut events)?;
            }
        }
        Ok(events)
    }

    fn rows_of(&self, block: &RawBlock, object: &str, last: u64, events: &mut Vec<Event>) -> Result<()> {
        let uuid = self.uuid;
        let mut key = Vec::new();
        for row in block.rows().map_err(|f| f.at(object))? {
            let (seq, change) = row.map_err(|f| f.at(object))?;
            if seq > last {
                break;
            }
            let mut change = change;
            if change.op == Op::Event {
                let Some(body) = change.body else { continue };
                match parse_stored_event(body) {
                    Ok(Some(data)) => change = crate::change::ChangeRef { time: change.time, txn: change.txn, ..data },
                    Ok(None) => {
                        events.extend(ddl(seq, body, uuid));
                        continue;
                    }
                    Err(fault) => return Err(fault.at(format!("{object}, seq:{seq}"))),
                }
            }
            let ours = change.uuid.map_or(change.coll == self.name, |found| found == uuid);
            if ours && change.write_document_key(&mut key) && key == self.key.as_bytes() {
                let body = change.body.map(bson::RawDocument::to_owned);
                events.push(Event::Change(Change { seq, time: change.time, op: change.op, body }));
            }
        }
        Ok(())
    }
}

impl Finder<'_> {
    /// The document as the base has it, and when it was read.
    pub(super) async fn in_base(&self, based: &Based, manifest: &BaseManifest) -> Result<Option<(RawDocumentBuf, ClusterTime)>> {
        let branch = &self.history.line().parts()[based.part].branch;
        let of = layout::hex(&self.sought.uuid);
        let parts = manifest.parts.iter().filter(|part| part.uuid == of);
        let place =
            |part: &BasePart| layout::base_part(layout::project_of(&branch.name), &branch.id, manifest.seq, &manifest.id, &part.object);
        let looks = parts.map(|part| self.look_in_part(place(part), part));
        let mut looks = stream::iter(looks).buffered(TOGETHER);
        let mut found = None;
        while let Some(one) = looks.next().await {
            found = one?.or(found); // the later part counts
        }
        Ok(found)
    }

    async fn look_in_part(&self, key: String, part: &BasePart) -> Result<Option<(RawDocumentBuf, ClusterTime)>> {
        let store = self.history.store();
        let object = Object::open(store, &key, part.stored_bytes).await?;
        for (i, entry) in object.footer.blocks.iter().enumerate() {
            if !entry.may_contain(&object.footer, "", Some(&self.sought.uuid), &self.sought.key) {
                continue;
            }
            let block = object.block(store, i).await?;
            for row in block.rows().map_err(|f| f.at(&key))? {
                let (_, change) = row.map_err(|f| f.at(&key))?;
                if let Some(doc) = change.body
                    && canonical_id(doc).is_some_and(|id| id.as_bytes() == self.sought.key.as_bytes())
                {
                    return Ok(Some((doc.to_owned(), part.read_at)));
                }
            }
        }
        Ok(None)
    }
}

/// What matters to a document.
enum Event {
    Change(Change),
    /// Its collection was made, or made anew, here: nothing before it counts.
    Begins(u64),
    /// Its collection was another one before.
    Moved(u64, Uuid),
}

impl Event {
    fn seq(&self) -> u64 {
        match self {
            Self::Change(change) => change.seq,
            Self::Begins(seq) | Self::Moved(seq, _) => *seq,
        }
    }
}

fn ddl(seq: u64, body: &bson::RawDocument, uuid: Uuid) -> Option<Event> {
    let (event, ddl) = parse_ddl(body).ok()?;
    match ddl {
        Ddl::Create(_) | Ddl::Drop if event.uuid == Some(uuid) => Some(Event::Begins(seq)),
        Ddl::Rename { lost, .. } if lost == Some(uuid) => Some(Event::Begins(seq)),
        Ddl::DropDatabase => Some(Event::Begins(seq)),
        Ddl::Observed(seen) => {
            let from = seen.collections.iter().find(|c| c.uuid == uuid)?.from?;
            Some(Event::Moved(seq, from))
        }
        _ => None,
    }
}

/// The rows of a line from a seq on backwards, each with the last seq that is wanted of it.
struct Backwards<'a> {
    history: &'a History,
    page: VecDeque<SegmentRow>,
    /// The last seq that is still wanted.
    next: u64,
    after: u64,
}

impl Backwards<'_> {
    async fn next(&mut self) -> Result<Option<(SegmentRow, u64)>> {
        while self.next > self.after {
            let part = &self.history.line().parts()[self.history.line().part_of(self.next)];
            if self.page.front().is_none_or(|row| row.branch != part.branch.id) {
                self.page = self.history.ledger().segments_before(&part.branch.id, self.next, PAGE).await?.into();
            }
            // One that ends before is of what lies behind a hole in history.
            let Some(row) = self.page.pop_front().filter(|row| row.last_seq >= self.next) else {
                return Err(Fault::corrupt(format!("no segment of {} holds seq:{}", part.branch.name, self.next)));
            };
            let last = row.last_seq.min(self.next);
            self.next = row.first_seq.max(part.first) - 1;
            if row.kind != SegmentKind::Gap {
                return Ok(Some((row, last)));
            }
        }
        Ok(None)
    }
}

#[cfg(test)]
mod tests {
    use bson::Bson;

    use super::super::get;
    use super::*;
    use crate::branch::point::Point;
    use crate::branch::testing::{Bed, Change as Made, ID, NAME};
    use crate::ledger::{Ends, Ledger};
    use crate::store::MeteredStore;
    use crate::telemetry::meters::Meters;

    /// Ids that do not compress to nothing: a block of so many is too large to be without a filter.
    fn id(n: i32) -> i32 {
        n.wrapping_mul(7_919).wrapping_add(13) % 1_000_003
    }

    #[tokio::test]
    async fn the_filter_beside_a_row_saves_reading_its_object_and_hides_no_document() {
        let mut bed = Bed::new().await;
        for batch in 0..4 {
            let inserts: Vec<_> = (batch * 1_500..(batch + 1) * 1_500).map(|n| Made { txn: '.', op: Op::Insert, id: id(n) }).collect();
            let job = bed.queue_changes(&inserts, Ends::Closed).await;
            bed.commit(&job).await;
        }
        // An update of a document of the first segment, too few changes for a filter.
        let job = bed.queue_changes(&[Made { txn: '.', op: Op::Update, id: id(3) }], Ends::Closed).await;
        bed.commit(&job).await;
        let rows = bed.ledger.segments_before(ID, u64::MAX - 1, 9).await.unwrap();
        assert_eq!(rows.iter().map(|row| row.filter.is_some()).collect::<Vec<_>>(), [false, true, true, true, true]);

        let meters = Meters::default();
        let store: Store = Arc::new(MeteredStore::new(bed.store.clone(), meters.clone()));
        let history = History::open(bed.ledger.clone(), store, NAME).await.unwrap();
        let reads = || {
            let text = meters.metrics().render();
            let line = text.lines().find_map(|line| line.strip_prefix("argon_store_operation_seconds_count{operation=\"get\"} "));
            line.map_or(0, |count| count.parse::<u64>().unwrap())
        };
        for n in (0..6_000).step_by(7).chain([3]) {
            // A key is the same whatever number it is written as.
            for key in [Bson::Int32(id(n)), Bson::Int64(id(n).into()), Bson::Double(id(n).into())] {
                let found = get(&history, "c", &key, Point::Head).await.unwrap();
                assert_eq!(
                    found.unwrap_or_else(|| panic!("{n}")).seq,
                    if n == 3 { 6_001 } else { u64::try_from(n).unwrap() + 1 },
                    "{n} as {key}"
                );
            }
        }
        let (before, absent) = (reads(), 300);
        for n in 0..absent {
            assert_eq!(get(&history, "c", &Bson::Int32(2_000_000 + n), Point::Head).await.unwrap(), None);
        }
        // Without filters all five objects would be read, each in one request at least, and the manifest.
        let each = f64::from(u32::try_from(reads() - before).unwrap()) / f64::from(absent);
        assert!(each < 5.0, "{each} reads");
    }
}
