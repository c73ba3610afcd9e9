//! The database at a point as files: BSON as `mongorestore` reads it, or one JSON document a line.
//!
//! Owns: the files and their names; they appear under their final name when all of them are there. Does not own: folding (`replay`).

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::Ordering;

use bson::{Document, RawDocumentBuf, doc};
use serde::Serialize;

use super::extjson::write_document;
use crate::branch::catalogue::{Catalogue, Kind};
use crate::branch::fold::{FoldOptions, Folded};
use crate::branch::history::{History, Progress};
use crate::branch::layout::hex;
use crate::branch::point::{Bound, Point};
use crate::branch::replay;
use crate::fault::{Fault, Result};

/// What the files hold.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum ExportFormat {
    /// `DB/COLLECTION.bson` and `.metadata.json`, as mongodump writes and mongorestore reads them.
    Bson,
    /// `DB/COLLECTION.jsonl`: canonical extended JSON, one document a line.
    Jsonl,
}

/// What to write and where.
#[derive(Debug, Clone)]
pub struct ExportOptions {
    pub at: Point,
    pub format: ExportFormat,
    pub dir: PathBuf,
    /// Only these; all when empty.
    pub collections: Vec<String>,
    pub overwrite: bool,
    pub across_gap: bool,
    pub budget: u64,
    pub temp_dir: PathBuf,
}

/// What was written.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct ExportReport {
    pub branch: String,
    pub seq: u64,
    pub dir: String,
    /// Collection -> documents.
    pub collections: BTreeMap<String, u64>,
    pub views: Vec<String>,
    pub documents: u64,
    pub bytes: u64,
    pub notes: Vec<String>,
}

pub async fn export(history: &History, options: &ExportOptions, progress: Arc<Progress>) -> Result<ExportReport> {
    let until = history.resolve(options.at).await?;
    let place = options.dir.join(&history.branch.source_db);
    if place.exists() && !options.overwrite {
        return Err(Fault::rejected(format!("{} is there already: give another --to, or --overwrite", place.display())));
    }
    let fold = FoldOptions {
        budget: options.budget / 3,
        dir: options.temp_dir.clone(),
        expected: history.line().raw_bytes(),
        until,
        tolerant: options.across_gap,
    };
    let folded = replay::fold(history, &fold, progress.clone()).await?;
    let Bound::Seq(seq) = until else { return Err(Fault::corrupt("a point that is no seq")) };
    let name = history.branch.name.clone();
    let options = options.clone();
    let writing = tokio::task::spawn_blocking(move || write(folded, &options, &place, &progress));
    let mut report = writing.await.map_err(|e| Fault::corrupt(format!("exporting panicked: {e}")))??;
    (report.branch, report.seq) = (name, seq);
    Ok(report)
}

fn io(doing: &str, path: &Path, e: &std::io::Error) -> Fault {
    Fault::rejected(format!("cannot {doing} {}: {e}", path.display()))
}

fn write(mut folded: Folded, options: &ExportOptions, place: &Path, progress: &Progress) -> Result<ExportReport> {
    fs::create_dir_all(&options.dir).map_err(|e| io("make", &options.dir, &e))?;
    let dir = tempfile::Builder::new().prefix(".argon-export-").tempdir_in(&options.dir).map_err(|e| io("write into", &options.dir, &e))?;
    let wanted = |name: &str| options.collections.is_empty() || options.collections.iter().any(|c| c == name);
    let mut report = ExportReport {
        branch: String::new(),
        seq: 0,
        dir: place.display().to_string(),
        collections: BTreeMap::new(),
        views: Vec::new(),
        documents: 0,
        bytes: 0,
        notes: folded.notes.clone(),
    };
    let names: Vec<Option<String>> = folded
        .collections
        .iter()
        .map(|uuid| folded.catalogue.collections.get(uuid).filter(|c| c.kind == Kind::Collection).map(|c| c.name.clone()))
        .map(|name| name.filter(|name| wanted(name)))
        .collect();
    write_catalogue(&folded.catalogue, options.format, dir.path(), &wanted, &mut report)?;
    while let Some(documents) = folded.documents.next_batch()? {
        let mut by_collection: BTreeMap<u32, Vec<RawDocumentBuf>> = BTreeMap::new();
        for document in documents {
            by_collection.entry(document.coll).or_default().push(document.doc);
        }
        for (coll, docs) in by_collection {
            let Some(Some(name)) = names.get(coll as usize) else { continue };
            append(&dir.path().join(file_name(name, options.format)), &docs, options.format)?;
            let bytes: u64 = docs.iter().map(|doc| doc.as_bytes().len() as u64).sum();
            *report.collections.entry(name.clone()).or_default() += docs.len() as u64;
            report.documents += docs.len() as u64;
            report.bytes += bytes;
            progress.documents.fetch_add(docs.len() as u64, Ordering::Relaxed);
            progress.document_bytes.fetch_add(bytes, Ordering::Relaxed);
        }
    }
    if options.overwrite && place.exists() {
        fs::remove_dir_all(place).map_err(|e| io("replace", place, &e))?;
    }
    let dir = dir.keep();
    fs::rename(&dir, place).map_err(|e| io("rename into place", place, &e))?;
    Ok(report)
}

/// As mongodump escapes names: what a path cannot hold, in percent.
fn file_name(name: &str, format: ExportFormat) -> String {
    let escaped: String = name
        .bytes()
        .map(|b| match b {
            b'/' | b'\\' | b'%' | 0..=31 => format!("%{b:02X}"),
            _ if b.is_ascii() => char::from(b).to_string(),
            _ => format!("%{b:02X}"),
        })
        .collect();
    let ending = match format {
        ExportFormat::Bson => "bson",
        ExportFormat::Jsonl => "jsonl",
    };
    format!("{escaped}.{ending}")
}

fn append(path: &Path, docs: &[RawDocumentBuf], format: ExportFormat) -> Result<()> {
    let file = File::options().create(true).append(true).open(path).map_err(|e| io("write", path, &e))?;
    let mut out = BufWriter::new(file);
    let mut line = String::new();
    for doc in docs {
        let bytes = match format {
            ExportFormat::Bson => doc.as_bytes(),
            ExportFormat::Jsonl => {
                line.clear();
                write_document(doc, true, &mut line)?;
                line.push('\n');
                line.as_bytes()
            }
        };
        out.write_all(bytes).map_err(|e| io("write", path, &e))?;
    }
    out.flush().map_err(|e| io("write", path, &e))
}

/// Files of empty collections too, and what mongorestore makes collections, indexes and views of.
fn write_catalogue(
    catalogue: &Catalogue,
    format: ExportFormat,
    dir: &Path,
    wanted: &dyn Fn(&str) -> bool,
    report: &mut ExportReport,
) -> Result<()> {
    let metadata = |name: &str, kind: &str, uuid: Option<&[u8; 16]>, options: &Document, indexes: &[Document]| -> Result<()> {
        if format != ExportFormat::Bson {
            return Ok(());
        }
        let mut all = if uuid.is_some() { vec![doc! {"v": 2, "key": {"_id": 1}, "name": "_id_"}] } else { Vec::new() };
        all.extend(indexes.iter().cloned());
        let mut meta = doc! {"indexes": all};
        if let Some(uuid) = uuid {
            meta.insert("uuid", hex(uuid));
        }
        meta.extend(doc! {"collectionName": name, "type": kind, "options": options.clone()});
        let raw = RawDocumentBuf::try_from(&meta).map_err(|e| Fault::corrupt(format!("the catalogue is no BSON: {e}")))?;
        let mut text = String::new();
        write_document(&raw, true, &mut text)?;
        let path = dir.join(file_name(name, ExportFormat::Bson).replace(".bson", ".metadata.json"));
        fs::write(&path, text).map_err(|e| io("write", &path, &e))
    };
    for c in catalogue.collections.values().filter(|c| wanted(&c.name)) {
        if c.kind != Kind::Collection {
            report.notes.push(format!("{} is not covered and not exported", c.name));
            continue;
        }
        append(&dir.join(file_name(&c.name, format)), &[], format)?;
        metadata(&c.name, "collection", Some(&c.uuid), &c.options, &c.indexes)?;
        report.collections.insert(c.name.clone(), 0);
    }
    for v in catalogue.views.values().filter(|v| v.kind == Kind::View && wanted(&v.name)) {
        metadata(&v.name, "view", None, &v.options, &[])?;
        report.views.push(v.name.clone());
    }
    Ok(())
}
