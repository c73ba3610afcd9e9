//! Owns: the documents of the backlog: made up, seeded, of an exact size. Does not own inserting them.
//!
//! A few fields of a small order, then order lines as far as they fit, then a text of random syllables that fills up: neither constant
//! bytes nor noise. zstd shrinks the text to about half and the lines to about a fifth.

use bson::oid::ObjectId;
use bson::{DateTime, Document, doc};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

use crate::args::Content;

const STATUS: [&str; 5] = ["created", "paid", "packed", "shipped", "delivered"];
const SYLLABLES: &[u8; 64] = b"bacedifogukalemipotusabetirodunavewizoyagehijokumaliperosutaveno";
/// 2024-01-01, so that a seed repeats a document.
const EPOCH_MS: i64 = 1_704_067_200_000;

/// An endless sequence of documents.
#[derive(Debug)]
pub(super) struct Documents {
    rng: StdRng,
    seed: u64,
    bytes: usize,
    content: Content,
    next: u32,
}

impl Documents {
    /// Documents of `bytes` BSON bytes each.
    pub(super) fn new(seed: u64, bytes: u32, content: Content) -> Self {
        Self { rng: StdRng::seed_from_u64(seed), seed, bytes: usize::try_from(bytes).unwrap_or(usize::MAX), content, next: 0 }
    }

    fn id(&self) -> ObjectId {
        let mut bytes = [0; 12];
        bytes[..8].copy_from_slice(&self.seed.to_be_bytes());
        bytes[8..].copy_from_slice(&self.next.to_be_bytes());
        ObjectId::from_bytes(bytes)
    }
}

impl Iterator for Documents {
    type Item = Document;

    fn next(&mut self) -> Option<Document> {
        let mut document = doc! {
            "_id": self.id(),
            "status": STATUS[self.rng.random_range(0..STATUS.len())],
            "customer": self.rng.random_range(1..50_000_i32),
            "at": DateTime::from_millis(EPOCH_MS + i64::from(self.next) * 37),
            "total": f64::from(self.rng.random_range(100..90_000_i32)) / 100.0,
        };
        self.next = self.next.wrapping_add(1);
        // A line takes 52 to 65 bytes; a good part of a text stays.
        let lines = if self.content == Content::Records { self.bytes.saturating_sub(220) / 72 } else { 0 };
        if lines > 0 {
            document.insert("lines", (0..lines).map(|_| line(&mut self.rng)).collect::<Vec<_>>());
        }
        // Type, name, length and two zero bytes of a string field named text: 11 bytes beside the text itself.
        let used = bson::serialize_to_vec(&document).map_or(0, |bytes| bytes.len()) + 11;
        document.insert("text", text(&mut self.rng, self.bytes.saturating_sub(used)));
        Some(document)
    }
}

fn line(rng: &mut StdRng) -> Document {
    doc! {
        "sku": format!("{}-{:05}", text(rng, 4), rng.random_range(0..5_000)),
        "pieces": rng.random_range(1..10_i32),
        "price": f64::from(rng.random_range(100..20_000_i32)) / 100.0,
    }
}

fn text(rng: &mut StdRng, length: usize) -> String {
    let mut text = String::with_capacity(length + 2);
    while text.len() < length {
        let at = rng.random_range(0..SYLLABLES.len() / 2) * 2;
        text.extend(SYLLABLES[at..at + 2].iter().map(|byte| char::from(*byte)));
        if rng.random_ratio(1, 4) {
            text.push(' ');
        }
    }
    text.truncate(length);
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_document_has_the_size_asked_for_and_an_id_of_its_own() {
        for (bytes, content) in
            [(150, Content::Records), (200, Content::Text), (1000, Content::Text), (1000, Content::Records), (8000, Content::Records)]
        {
            let made: Vec<Document> = Documents::new(3, bytes, content).take(500).collect();
            let ids: std::collections::HashSet<_> = made.iter().map(|document| document.get_object_id("_id").unwrap()).collect();
            assert_eq!(ids.len(), 500);
            for document in &made {
                assert_eq!(bson::serialize_to_vec(document).unwrap().len(), usize::try_from(bytes).unwrap());
            }
        }
    }

    #[test]
    fn a_seed_repeats_its_documents() {
        let taken = |seed| Documents::new(seed, 200, Content::Records).take(20).collect::<Vec<_>>();
        assert_eq!(taken(1), taken(1));
        assert_ne!(taken(1), taken(2));
    }
}
