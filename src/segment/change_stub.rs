//! Stands in for the parts of `change` that are being written; goes when they are merged.
use bson::RawDocument;
use crate::change::ChangeRef;
use crate::fault::Result;
pub struct CanonicalKey(Vec<u8>);
impl CanonicalKey { pub fn as_bytes(&self) -> &[u8] { &self.0 } }
#[derive(Debug)]
pub enum DeltaError { UnknownSection(String) }
pub fn check_delta(diff: &RawDocument) -> Result<(), DeltaError> {
    for e in diff { if let Ok((k, _)) = e { if !matches!(k.as_str().as_bytes().first(), Some(b'u' | b'i' | b'd' | b's' | b'a' | b'l')) { return Err(DeltaError::UnknownSection(k.as_str().into())); } } }
    Ok(())
}
pub fn operation_type(body: &RawDocument) -> Option<&str> { body.get_str("operationType").ok() }
pub fn parse_stored_event(body: &RawDocument) -> Result<Option<ChangeRef<'_>>> { let _ = body; Err(crate::fault::Fault::corrupt("stub")) }
pub fn write_canonical_id(doc: &RawDocument, out: &mut Vec<u8>) -> bool {
    match doc.get("_id") { Ok(Some(v)) => { out.extend_from_slice(format!("{v:?}").as_bytes()); true } _ => false }
}
pub fn canonical_id(doc: &RawDocument) -> Option<CanonicalKey> { let mut v = vec![]; write_canonical_id(doc, &mut v).then_some(CanonicalKey(v)) }
