//! Owns: documents from a file of JSON lines (extended JSON, relaxed or canonical). Does not own what becomes of them.

use std::fs::File;
use std::io::{BufRead, BufReader, Read};
use std::path::Path;

use argon::fault::{Fault, Result};
use bson::Document;

/// Longest line: a document of 16 MB is at most about five times that in canonical extended JSON.
const MAX_LINE: u64 = 80 << 20;
/// The corpus is held in memory.
const MAX_FILE: u64 = 2 << 30;

/// Reads the whole file. Empty lines are skipped; anything else that is no object is an error that names its line.
pub(super) fn read(path: &Path) -> Result<Vec<Document>> {
    let wrong = |what: String| Fault::config(format!("corpus {}: {what}", path.display()));
    let file = File::open(path).map_err(|error| wrong(error.to_string()))?;
    if file.metadata().map_err(|error| wrong(error.to_string()))?.len() > MAX_FILE {
        return Err(wrong("at most 2 GiB fit".into()));
    }
    let documents = parse(BufReader::new(file)).map_err(wrong)?;
    if documents.is_empty() { Err(wrong("it holds no document".into())) } else { Ok(documents) }
}

fn parse(mut lines: impl BufRead) -> Result<Vec<Document>, String> {
    let mut documents = Vec::new();
    let mut line = String::new();
    for number in 1_u64.. {
        line.clear();
        let length = lines.by_ref().take(MAX_LINE).read_line(&mut line).map_err(|error| format!("line {number}: {error}"))?;
        if length == 0 {
            break;
        }
        if length as u64 == MAX_LINE {
            return Err(format!("line {number} is longer than {MAX_LINE} bytes"));
        }
        if !line.trim().is_empty() {
            documents.push(serde_json::from_str(&line).map_err(|error| format!("line {number} is no document in JSON: {error}"))?);
        }
    }
    Ok(documents)
}

#[cfg(test)]
mod tests {
    use bson::{Bson, oid::ObjectId};

    use super::*;

    #[test]
    fn extended_json_keeps_its_types() {
        let text = br#"
            {"_id": {"$oid": "573a1390f29313caabcd42e8"}, "year": 1903, "big": {"$numberLong": "7"}, "at": {"$date": "2024-01-01T00:00:00Z"}, "cast": ["a", {"b": 1.5}]}

            {"x": null}"#;
        let documents = parse(&text[..]).unwrap();
        assert_eq!(documents.len(), 2);
        let film = &documents[0];
        assert_eq!(film.get_object_id("_id").unwrap(), ObjectId::parse_str("573a1390f29313caabcd42e8").unwrap());
        assert_eq!((film.get("big"), film.get("year")), (Some(&Bson::Int64(7)), Some(&Bson::Int32(1903))));
        assert_eq!(film.get_datetime("at").unwrap().timestamp_millis(), 1_704_067_200_000);
        assert_eq!(film.get_array("cast").unwrap().len(), 2);
        assert_eq!(documents[1].get("x"), Some(&Bson::Null));
    }

    #[test]
    fn what_is_no_document_is_named_by_line() {
        for (text, line) in [("{}\n[1]\n", "line 2"), ("{\"a\": }", "line 1"), ("\n\n3", "line 3")] {
            let error = parse(text.as_bytes()).unwrap_err();
            assert!(error.contains(line), "{error}");
        }
        assert!(parse(&b"\xff\xfe"[..]).is_err());
    }

    #[test]
    fn a_missing_and_an_empty_file_are_refused_in_words() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("c.jsonl");
        assert!(read(&path).unwrap_err().what.contains("c.jsonl"));
        std::fs::write(&path, "\n").unwrap();
        assert!(read(&path).unwrap_err().what.contains("no document"));
    }
}
