//! Stands in for the parts of `change` that are being written; goes when they are merged.
use crate::fault::Result;
use bson::RawDocument;
#[derive(Debug)]
pub enum DeltaError {
    UnknownSection(String),
}
pub fn check_delta(diff: &RawDocument) -> Result<(), DeltaError> {
    for e in diff {
        if let Ok((k, _)) = e {
            if !matches!(k.as_str().as_bytes().first(), Some(b'u' | b'i' | b'd' | b's' | b'a' | b'l')) {
                return Err(DeltaError::UnknownSection(k.as_str().into()));
            }
        }
    }
    Ok(())
}
