//! Owns: temporary files of length-prefixed records in compressed chunks: appending, and reading back in order.
//! Does not own: what is in a record beyond a state (`state`) and its key; when to spill (`table`).
//!
//! The files have no name (they vanish with the process), so a killed restore leaves nothing behind.

use std::fs::File;
use std::io::{Read, Seek, SeekFrom, Write};
use std::path::Path;

use bson::RawDocumentBuf;

use super::state::{Delta, Entry, Form, Put};
use crate::fault::{Fault, Result};

/// Raw bytes at which a chunk is compressed and written. A record may make it larger.
pub(super) const CHUNK: usize = 1 << 20;
/// Temporary data is written once and read once: the fastest level.
const LEVEL: i32 = 1;
/// No record can be larger than what one partition may hold in memory; a guard against a damaged file.
const MAX_CHUNK: u64 = 1 << 36;

/// A state on its way to or from a file.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Record {
    /// Index of the collection within the fold.
    pub(super) coll: u32,
    pub(super) key: Box<[u8]>,
    pub(super) entry: Entry,
}

/// An append-only temporary file.
#[derive(Debug)]
pub(super) struct SpillFile {
    file: File,
    pending: Vec<u8>,
}

impl SpillFile {
    pub(super) fn create(dir: &Path) -> Result<Self> {
        let file = tempfile::tempfile_in(dir).map_err(|e| io_fault(&format!("create a temporary file in {}", dir.display()), &e))?;
        Ok(Self { file, pending: Vec::new() })
    }

    /// Appends a state: one record, or several where the diffs of a hot document would make a record as large as the whole budget.
    pub(super) fn push(&mut self, coll: u32, key: &[u8], entry: &Entry) -> Result<()> {
        let Entry::Deltas(deltas) = entry else {
            encode(coll, key, entry, &mut self.pending);
            return self.flush_full();
        };
        let mut rest = deltas.as_slice();
        while !rest.is_empty() {
            let (mut count, mut bytes) = (0, 0);
            while let Some(delta) = rest.get(count)
                && bytes < CHUNK
            {
                bytes += delta.diff.as_bytes().len();
                count += 1;
            }
            let (now, later) = rest.split_at(count);
            encode_deltas(coll, key, now, &mut self.pending);
            self.flush_full()?;
            rest = later;
        }
        Ok(())
    }

    fn flush_full(&mut self) -> Result<()> {
        if self.pending.len() >= CHUNK { self.flush() } else { Ok(()) }
    }

    /// Writes what is pending, so that it does not stay in memory.
    pub(super) fn flush(&mut self) -> Result<()> {
        if self.pending.is_empty() {
            return Ok(());
        }
        let packed = zstd::bulk::compress(&self.pending, LEVEL).map_err(|e| io_fault("compress temporary data", &e))?;
        let head = [(packed.len() as u64).to_le_bytes(), (self.pending.len() as u64).to_le_bytes()].concat();
        self.file.write_all(&head).and_then(|()| self.file.write_all(&packed)).map_err(|e| io_fault("write temporary data", &e))?;
        self.pending = Vec::new();
        Ok(())
    }

    /// Reads from the start; the file can be read again afterwards.
    pub(super) fn read(&mut self) -> Result<SpillReader<&mut File>> {
        self.flush()?;
        self.file.seek(SeekFrom::Start(0)).map_err(|e| io_fault("read temporary data", &e))?;
        Ok(SpillReader { file: &mut self.file, chunk: Vec::new(), at: 0 })
    }

    /// Reads from the start and owns the file.
    pub(super) fn into_reader(mut self) -> Result<SpillReader<File>> {
        self.flush()?;
        self.file.seek(SeekFrom::Start(0)).map_err(|e| io_fault("read temporary data", &e))?;
        Ok(SpillReader { file: self.file, chunk: Vec::new(), at: 0 })
    }
}

/// Streams the records of a file, one chunk in memory.
#[derive(Debug)]
pub(super) struct SpillReader<F> {
    file: F,
    chunk: Vec<u8>,
    at: usize,
}

impl<F: Read> SpillReader<F> {
    pub(super) fn next(&mut self) -> Result<Option<Record>> {
        next_record(&mut self.file, &mut self.chunk, &mut self.at)
    }
}

fn next_record<F: Read>(file: &mut F, chunk: &mut Vec<u8>, at: &mut usize) -> Result<Option<Record>> {
    if *at == chunk.len() {
        let mut head = [0; 16];
        match file.read(&mut head[..1]).map_err(|e| io_fault("read temporary data", &e))? {
            0 => return Ok(None),
            _ => file.read_exact(&mut head[1..]).map_err(|e| io_fault("read temporary data", &e))?,
        }
        let (packed, raw) = head.split_at(8);
        let (packed, raw) = (number(packed).ok_or_else(damaged)?, number(raw).ok_or_else(damaged)?);
        if packed > MAX_CHUNK || raw > MAX_CHUNK {
            return Err(damaged());
        }
        let mut bytes = Vec::new();
        let read = Read::take(&mut *file, packed).read_to_end(&mut bytes).map_err(|e| io_fault("read temporary data", &e))?;
        if read as u64 != packed {
            return Err(damaged());
        }
        *chunk = zstd::bulk::decompress(&bytes, usize::try_from(raw).map_err(|_| damaged())?).map_err(|_| damaged())?;
        *at = 0;
    }
    let mut bytes = &chunk[*at..];
    let record = decode(&mut bytes).ok_or_else(damaged)?;
    *at = chunk.len() - bytes.len();
    Ok(Some(record))
}

const PUT: u8 = 0;
const PUT_UNBORN: u8 = 1;
const DELETED: u8 = 2;
const DELTAS: u8 = 3;

fn encode(coll: u32, key: &[u8], entry: &Entry, out: &mut Vec<u8>) {
    match entry {
        Entry::Put(put) => {
            encode_key(coll, key, out);
            out.push(if put.born.is_some() { PUT } else { PUT_UNBORN });
            out.extend(put.born.unwrap_or(0).to_le_bytes());
            out.extend(put.seq.to_le_bytes());
            out.extend(put.doc.as_bytes());
        }
        Entry::Deleted { seq, expects } => {
            encode_key(coll, key, out);
            out.push(DELETED);
            out.push(u8::from(*expects));
            out.extend(seq.to_le_bytes());
        }
        Entry::Deltas(deltas) => encode_deltas(coll, key, deltas.as_slice(), out),
    }
}

fn encode_key(coll: u32, key: &[u8], out: &mut Vec<u8>) {
    out.extend(coll.to_le_bytes());
    out.extend((key.len() as u64).to_le_bytes());
    out.extend(key);
}

fn encode_deltas(coll: u32, key: &[u8], deltas: &[Delta], out: &mut Vec<u8>) {
    encode_key(coll, key, out);
    out.push(DELTAS);
    out.extend((deltas.len() as u64).to_le_bytes());
    for delta in deltas {
        out.extend(delta.seq.to_le_bytes());
        out.push(match delta.form {
            Form::Raw => 0,
            Form::Described => 1,
            Form::Again => 2,
        });
        out.extend(delta.diff.as_bytes());
    }
}

fn decode(from: &mut &[u8]) -> Option<Record> {
    let coll = u32::from_le_bytes(take(from, 4)?.try_into().ok()?);
    let len = usize::try_from(number(take(from, 8)?)?).ok()?;
    let key = take(from, len)?.into();
    let entry = match take(from, 1)?[0] {
        tag @ (PUT | PUT_UNBORN) => {
            let (born, seq) = (number(take(from, 8)?)?, number(take(from, 8)?)?);
            Entry::Put(Put { doc: document(from)?, born: (tag == PUT).then_some(born), seq })
        }
        DELETED => Entry::Deleted { expects: take(from, 1)?[0] == 1, seq: number(take(from, 8)?)? },
        DELTAS => {
            let count = number(take(from, 8)?)?;
            let mut deltas = Vec::new();
            for _ in 0..count {
                let seq = number(take(from, 8)?)?;
                let form = match take(from, 1)?[0] {
                    0 => Form::Raw,
                    1 => Form::Described,
                    2 => Form::Again,
                    _ => return None,
                };
                deltas.push(Delta { seq, form, diff: document(from)? });
            }
            Entry::Deltas(deltas.into_iter().collect())
        }
        _ => return None,
    };
    Some(Record { coll, key, entry })
}

fn take<'a>(from: &mut &'a [u8], len: usize) -> Option<&'a [u8]> {
    let (taken, rest) = from.split_at_checked(len)?;
    *from = rest;
    Some(taken)
}

fn number(bytes: &[u8]) -> Option<u64> {
    Some(u64::from_le_bytes(bytes.try_into().ok()?))
}

fn document(from: &mut &[u8]) -> Option<RawDocumentBuf> {
    let len = u32::from_le_bytes(from.get(..4)?.try_into().ok()?);
    let bytes = take(from, usize::try_from(len).ok()?)?;
    RawDocumentBuf::from_bytes(bytes.to_vec()).ok()
}

fn damaged() -> Fault {
    Fault::corrupt("temporary data of the fold is damaged: check the disk of the temporary directory")
}

fn io_fault(doing: &str, error: &std::io::Error) -> Fault {
    Fault::rejected(format!("cannot {doing}: {error}"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use bson::rawdoc;

    #[test]
    fn records_come_back_in_order_across_chunks_and_twice() {
        let dir = tempfile::tempdir().unwrap();
        let mut file = SpillFile::create(dir.path()).unwrap();
        let big = rawdoc! {"_id": 1, "s": "x".repeat(CHUNK / 2)};
        let mut records = Vec::new();
        for i in 0..10u32 {
            let entry = match i % 4 {
                0 => Entry::Put(Put { doc: big.clone(), born: Some(u64::from(i)), seq: 9 }),
                1 => Entry::Put(Put { doc: rawdoc! {}, born: None, seq: 3 }),
                2 => Entry::Deleted { seq: 8, expects: i > 3 },
                _ => Entry::Deltas(
                    (0..3)
                        .map(|_| Delta {
                            seq: 1,
                            form: if i > 3 { Form::Described } else { Form::Again },
                            diff: rawdoc! {"d": {"x": false}},
                        })
                        .collect(),
                ),
            };
            records.push(Record { coll: i, key: vec![0; i as usize].into(), entry });
        }
        for record in &records {
            file.push(record.coll, &record.key, &record.entry).unwrap();
        }
        for _ in 0..2 {
            let mut reader = file.read().unwrap();
            for record in &records {
                assert_eq!(reader.next().unwrap().as_ref(), Some(record));
            }
            assert_eq!(reader.next().unwrap(), None);
        }
        let mut reader = file.into_reader().unwrap();
        assert_eq!(reader.next().unwrap().as_ref(), Some(&records[0]));
    }

    #[test]
    fn the_diffs_of_a_hot_document_become_records_of_a_bounded_size() {
        let dir = tempfile::tempdir().unwrap();
        let mut file = SpillFile::create(dir.path()).unwrap();
        let diff = rawdoc! {"u": {"v": "x".repeat(10_000)}};
        let all: Vec<_> = (0..1_000).map(|seq| Delta { seq, form: Form::Raw, diff: diff.clone() }).collect();
        file.push(3, b"k", &Entry::Deltas(all.iter().cloned().collect())).unwrap();
        let mut reader = file.read().unwrap();
        let (mut back, mut records) = (Vec::new(), 0);
        while let Some(record) = reader.next().unwrap() {
            assert!(reader.chunk.len() < 2 * CHUNK, "a chunk of {} bytes", reader.chunk.len());
            let Record { coll: 3, entry: Entry::Deltas(deltas), .. } = record else { panic!("{record:?}") };
            back.extend_from_slice(deltas.as_slice());
            records += 1;
        }
        assert_eq!((back, records), (all, 10));
    }

    #[test]
    fn a_missing_directory_is_named() {
        let fault = SpillFile::create(Path::new("/nonexistent/here")).unwrap_err();
        assert!(fault.what.contains("/nonexistent/here"), "{}", fault.what);
    }
}
