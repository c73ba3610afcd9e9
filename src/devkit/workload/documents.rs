//! Owns: the documents and updates of a workload: made up from a seeded generator, or real ones from a corpus.
//! Does not own which document is changed when ([`super::Workload`]).

use mongodb::bson::oid::ObjectId;
use mongodb::bson::{Bson, DateTime, Document, doc};
use rand::Rng;
use rand::rngs::StdRng;

use super::Profile;

const STATUS: [&str; 5] = ["created", "paid", "packed", "shipped", "delivered"];
const CITIES: [&str; 6] = ["Lisbon", "Oslo", "Kyoto", "Quito", "Accra", "Zürich"];
const WORDS: [&str; 16] = [
    "amber", "basin", "cedar", "delta", "ember", "fjord", "grove", "harbor", "island", "jetty", "knoll", "lagoon", "meadow", "north",
    "orchard", "pine",
];
/// Times in documents are made up too, so that a seed repeats them: 2024-01-01.
const EPOCH_MS: i64 = 1_704_067_200_000;

/// What an update does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum UpdateKind {
    /// `$set` of top-level fields.
    Set,
    /// `$set` of `a.b` and `a.b.c`.
    SetNested,
    /// `$inc`, also nested.
    Inc,
    /// `$push`, sometimes with `$slice`.
    Push,
    /// `$unset`, every second time of a field that is set again.
    Unset,
    /// `$set` of an array's element or of a field in it.
    SetElement,
    /// A pipeline that puts a field first and so changes nothing but the order.
    Reorder,
    /// A pipeline that sets fields by expressions.
    Compute,
    /// The repeated profile's next status and counter.
    Cycle,
}

impl UpdateKind {
    /// Those that [`Maker::update`] draws from.
    pub const ALL: [Self; 8] =
        [Self::Set, Self::SetNested, Self::Inc, Self::Push, Self::Unset, Self::SetElement, Self::Reorder, Self::Compute];
}

/// The part of an update that says what becomes of the document.
#[derive(Debug, Clone, PartialEq)]
pub enum Modification {
    /// Update operators.
    Document(Document),
    /// Aggregation stages.
    Pipeline(Vec<Document>),
}

/// The `_id` with this number of this lane: an integer, or with `mixed` one of every kind that a server takes.
pub fn id(lane: u32, number: u64, mixed: bool) -> Bson {
    let whole = (i64::from(lane) << 40) | (i64::try_from(number).unwrap_or(i64::MAX) & ((1 << 40) - 1));
    let kind = if mixed { number % 8 } else { 0 };
    match kind {
        0 => Bson::Int64(whole),
        1 => Bson::String(format!("key-{whole:012x}")),
        2 => {
            let mut bytes = [0xab; 12];
            bytes[4..].copy_from_slice(&whole.to_be_bytes());
            Bson::ObjectId(ObjectId::from_bytes(bytes))
        }
        3 => Bson::Document(doc! { "lane": i64::from(lane), "n": whole }),
        #[allow(clippy::cast_precision_loss)] // 2^51 at most
        4 => Bson::Double(whole as f64 + 0.5),
        5 => Bson::DateTime(DateTime::from_millis(whole)),
        6 => Bson::Binary(mongodb::bson::Binary {
            subtype: mongodb::bson::spec::BinarySubtype::Generic,
            bytes: whole.to_be_bytes().to_vec(),
        }),
        _ => Bson::Timestamp(mongodb::bson::Timestamp {
            time: lane.saturating_add(1),
            increment: u32::try_from(number & 0xffff_ffff).unwrap_or(0),
        }),
    }
}

/// Makes documents and updates of one workload.
#[derive(Debug)]
pub struct Maker {
    lane: u32,
    mixed_ids: bool,
    doc_bytes: usize,
    corpus: Vec<Document>,
    /// Before the name of every field that updates touch: real documents may have fields of these names and other types.
    prefix: &'static str,
}

impl Maker {
    /// For this profile and lane.
    pub fn new(profile: &Profile, lane: u32) -> Self {
        let corpus = profile.corpus.clone().unwrap_or_default();
        let prefix = if corpus.is_empty() { "" } else { "load_" };
        Self { lane, mixed_ids: profile.mixed_ids, doc_bytes: profile.doc_bytes, corpus, prefix }
    }

    /// The document with this number; other calls for the same number give other content under the same `_id`.
    pub fn document(&self, rng: &mut StdRng, number: u64) -> Document {
        let mut document = doc! { "_id": id(self.lane, number, self.mixed_ids) };
        if self.corpus.is_empty() {
            self.make_up(&mut document, rng, number);
            return document;
        }
        // Any of them, in turn for inserts: a corpus keeps its own mix.
        let at = usize::try_from(number % self.corpus.len() as u64).unwrap_or(0);
        document.extend(self.corpus[at].iter().filter(|(name, _)| *name != "_id").map(|(name, value)| (name.clone(), value.clone())));
        document
    }

    fn make_up(&self, document: &mut Document, rng: &mut StdRng, number: u64) {
        let at = DateTime::from_millis(EPOCH_MS + i64::try_from(number).unwrap_or(0).saturating_mul(37));
        let lines: Vec<Bson> = (0..rng.random_range(1..=3)).map(|_| Bson::Document(line(rng))).collect();
        document.insert("status", STATUS[0]);
        document.insert("customer", rng.random_range(1..50_000_i32));
        document.insert("at", at);
        document.insert("place", doc! { "city": pick(rng, &CITIES), "geo": { "lat": round(rng, 90.0), "lon": round(rng, 180.0) } });
        document.insert("lines", lines);
        document.insert("count", 0_i32);
        document.insert("total", round(rng, 900.0));
        if rng.random_bool(0.5) {
            document.insert("note", words(rng, 24));
        }
        // About what is there already; exactness costs an encoding of each document.
        let missing = self.doc_bytes.saturating_sub(300);
        if missing > 0 {
            document.insert("text", words(rng, missing));
        }
    }

    /// An update of any kind: kind, conditions beside the `_id`, update.
    pub fn update(&self, rng: &mut StdRng, step: u32) -> (UpdateKind, Document, Modification) {
        let kind = UpdateKind::ALL[rng.random_range(0..UpdateKind::ALL.len())];
        let mut only_if = Document::new();
        let at = DateTime::from_millis(EPOCH_MS + i64::from(step) * 1000);
        let update = match kind {
            UpdateKind::Set => {
                doc! { "$set": { self.name("status"): pick(rng, &STATUS), self.name("customer"): rng.random_range(1..50_000_i32), self.name("changed"): at } }
            }
            UpdateKind::SetNested => {
                doc! { "$set": { self.name("place.city"): pick(rng, &CITIES), self.name("place.geo.lat"): round(rng, 90.0) } }
            }
            UpdateKind::Inc => doc! { "$inc": { self.name("count"): 1_i32, self.name("place.visits"): 1_i64 } },
            UpdateKind::Push if rng.random_bool(0.3) => {
                doc! { "$push": { self.name("lines"): { "$each": [line(rng), line(rng)], "$slice": -6_i32 } } }
            }
            UpdateKind::Push => doc! { "$push": { self.name("lines"): line(rng) } },
            UpdateKind::Unset if rng.random_bool(0.5) => {
                doc! { "$set": { self.name("note"): words(rng, 24) }, "$unset": { self.name("place.geo.lon"): "" } }
            }
            UpdateKind::Unset => doc! { "$unset": { self.name("note"): "", self.name("changed"): "" } },
            UpdateKind::SetElement => {
                // Without the condition, a document without the array would get a document with a field "0" instead.
                only_if = doc! { self.name("lines.0"): { "$exists": true } };
                if rng.random_bool(0.5) {
                    doc! { "$set": { self.name("lines.0"): line(rng) } }
                } else {
                    doc! { "$set": { self.name("lines.0.pieces"): rng.random_range(1..100_i32) } }
                }
            }
            UpdateKind::Reorder => return (kind, only_if, self.reorder(rng)),
            UpdateKind::Compute | UpdateKind::Cycle => return (UpdateKind::Compute, only_if, self.compute(rng)),
        };
        (kind, only_if, Modification::Document(update))
    }

    fn reorder(&self, rng: &mut StdRng) -> Modification {
        let first = self.name(pick(rng, &["count", "status", "total", "lines", "place"]));
        let front = doc! { "_id": "$_id", &first: format!("${first}") };
        Modification::Pipeline(vec![doc! { "$replaceWith": { "$mergeObjects": [front, "$$ROOT"] } }])
    }

    fn compute(&self, rng: &mut StdRng) -> Modification {
        let (total, count) = (self.name("total"), self.name("count"));
        let of = |name: &str, absent: i32| doc! { "$ifNull": [format!("${name}"), absent] };
        Modification::Pipeline(vec![doc! { "$set": {
            &total: { "$round": [{ "$add": [of(&total, 1), round(rng, 10.0)] }, 2] },
            &count: { "$add": [of(&count, 0), 1_i32] },
            self.name("place.label"): { "$concat": [{ "$ifNull": [format!("${}", self.name("place.city")), "?"] }, "-", pick(rng, &WORDS)] },
        } }])
    }

    /// The repeated profile: the next status and one more of a counter, which always changes something.
    pub fn cycle(&self, step: u32) -> (UpdateKind, Modification) {
        let status = STATUS[step as usize % STATUS.len()];
        let update = doc! { "$set": { self.name("status"): status }, "$inc": { self.name("count"): 1_i32 } };
        (UpdateKind::Cycle, Modification::Document(update))
    }

    fn name(&self, path: &str) -> String {
        format!("{}{path}", self.prefix)
    }
}

fn line(rng: &mut StdRng) -> Document {
    doc! { "sku": format!("{}-{:03}", pick(rng, &WORDS), rng.random_range(0..1000)), "pieces": rng.random_range(1..10_i32), "price": round(rng, 200.0) }
}

fn pick<'a>(rng: &mut StdRng, from: &[&'a str]) -> &'a str {
    from[rng.random_range(0..from.len())]
}

/// A price or a coordinate: two decimals, as real ones have.
fn round(rng: &mut StdRng, below: f64) -> f64 {
    (rng.random_range(0.0..below) * 100.0).round() / 100.0
}

fn words(rng: &mut StdRng, bytes: usize) -> String {
    let mut text = String::with_capacity(bytes + 8);
    while text.len() < bytes {
        text.push_str(pick(rng, &WORDS));
        text.push(' ');
    }
    text.truncate(bytes); // the words are ASCII
    text
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use rand::SeedableRng;

    use super::*;

    #[test]
    fn documents_have_about_the_size_asked_for() {
        let rng = &mut StdRng::seed_from_u64(1);
        for asked in [400, 1000, 20_000] {
            let maker = Maker::new(&Profile::inserts(asked), 0);
            let sizes: usize = (0..100).map(|number| mongodb::bson::serialize_to_vec(&maker.document(rng, number)).unwrap().len()).sum();
            let mean = sizes / 100;
            assert!(mean.abs_diff(asked) < 80, "{asked}: {mean}");
        }
    }

    #[test]
    fn ids_are_unique_over_lanes_and_numbers_of_every_kind() {
        let all: HashSet<String> = (0..3).flat_map(|lane| (0..800).map(move |number| format!("{:?}", id(lane, number, true)))).collect();
        assert_eq!(all.len(), 2400);
    }

    #[test]
    fn a_corpus_keeps_its_documents_but_for_the_id() {
        let corpus = vec![doc! { "_id": 9, "status": 5, "x": 1 }, doc! { "y": 2 }];
        let maker = Maker::new(&Profile { corpus: Some(corpus), ..Profile::default() }, 0);
        let rng = &mut StdRng::seed_from_u64(1);
        assert_eq!(maker.document(rng, 2), doc! { "_id": 2_i64, "status": 5, "x": 1 });
        assert_eq!(maker.document(rng, 3), doc! { "_id": 3_i64, "y": 2 });
        for step in 0..200 {
            let (_, _, update) = maker.update(rng, step);
            assert!(!format!("{update:?}").contains("\"status\""), "updates keep off the corpus's own fields: {update:?}");
        }
    }
}
