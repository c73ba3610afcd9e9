//! Owns: what `collMod` does to options and indexes, as mongod 6.0 does it (each line was compared with `listCollections` after the command).
//! Does not own: which changes there are (`change`), the other events.

use bson::{Bson, Document};

use super::{Catalogue, Collection, Effect, index_name, misfit};
use crate::change::{DdlEvent, IndexOption, Modification};
use crate::fault::Result;

/// A capped size is rounded up to this.
const CAPPED_STEP: i64 = 256;

pub(super) fn modify(catalogue: &mut Catalogue, event: &DdlEvent<'_>, changes: Vec<Modification>, tolerant: bool) -> Result<Effect> {
    let Some(collection) = catalogue.find(event, tolerant)? else { return Ok(Effect::None) };
    for change in changes {
        match change {
            Modification::Index { name, options } => {
                if !modify_index(collection, &name, options) && !tolerant {
                    return Err(misfit(event, "changes an index that does not exist"));
                }
            }
            option => modify_option(&mut collection.options, option),
        }
    }
    Ok(Effect::None)
}

fn modify_option(options: &mut Document, change: Modification) {
    match change {
        Modification::Validator(validator) => {
            if validator.is_empty() {
                options.remove("validator");
            } else {
                options.insert("validator", validator);
            }
            fill_validation(options);
        }
        Modification::ValidationLevel(level) => {
            options.insert("validationLevel", level);
            fill_validation(options);
        }
        Modification::ValidationAction(action) => {
            options.insert("validationAction", action);
            fill_validation(options);
        }
        Modification::ChangeStreamPreAndPostImages(images) => {
            if images.get_bool("enabled").unwrap_or(false) {
                options.insert("changeStreamPreAndPostImages", images);
            } else {
                options.remove("changeStreamPreAndPostImages");
            }
        }
        Modification::RecordPreImages(on) => set_flag(options, "recordPreImages", on),
        Modification::ExpireAfterSeconds(Some(seconds)) => {
            options.insert("expireAfterSeconds", seconds);
        }
        Modification::ExpireAfterSeconds(None) => {
            options.remove("expireAfterSeconds");
        }
        Modification::CappedSize(size) => {
            let rounded = size.saturating_add(CAPPED_STEP - 1) / CAPPED_STEP * CAPPED_STEP;
            options.insert("size", compact(rounded));
        }
        // Zero and below mean no limit, which the server stores as the largest number.
        Modification::CappedMax(max) => {
            options.insert("max", if max <= 0 { Bson::Int32(i32::MAX) } else { compact(max) });
        }
        // Buckets of time-series collections are recorded, not restored; their granularity changes nothing that is.
        Modification::Timeseries | Modification::Index { .. } => {}
    }
}

/// The server writes both defaults down as soon as one of the three is touched.
fn fill_validation(options: &mut Document) {
    if !options.contains_key("validationLevel") {
        options.insert("validationLevel", "strict");
    }
    if !options.contains_key("validationAction") {
        options.insert("validationAction", "error");
    }
}

/// False when there is no such index.
fn modify_index(collection: &mut Collection, name: &str, options: Vec<IndexOption>) -> bool {
    let Some(spec) = collection.indexes.iter_mut().find(|spec| index_name(spec) == name) else { return false };
    for option in options {
        match option {
            IndexOption::ExpireAfterSeconds(seconds) => {
                spec.insert("expireAfterSeconds", seconds);
            }
            IndexOption::Hidden(on) => set_flag(spec, "hidden", on),
            IndexOption::PrepareUnique(on) => set_flag(spec, "prepareUnique", on),
            IndexOption::Unique(on) => {
                set_flag(spec, "unique", on);
                spec.remove("prepareUnique");
            }
        }
    }
    true
}

/// The server stores a set flag and leaves an unset one out.
fn set_flag(spec: &mut Document, field: &str, on: bool) {
    if on {
        spec.insert(field, true);
    } else {
        spec.remove(field);
    }
}

fn compact(n: i64) -> Bson {
    i32::try_from(n).map_or(Bson::Int64(n), Bson::Int32)
}
