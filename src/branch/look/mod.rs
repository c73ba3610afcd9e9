//! Looking into history without restoring it: changes, one document as it was, what differs, files that other tools read.
//!
//! Owns: `log`, `get`, `diff`, `export`, and extended JSON in field order. Does not own: reading history (`history`), folding it (`replay`), printing (`cli`).

mod diff;
mod export;
mod extjson;
mod find;
mod get;
mod log;

pub use diff::{DiffReport, Difference, Side, diff};
pub use export::{ExportFormat, ExportOptions, ExportReport, export};
pub use extjson::{parse_id, write_document, write_value};
pub use get::{Found, get};
pub use log::{LogOptions, log};
