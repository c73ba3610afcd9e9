//! Owns: what `collMod` does to options and indexes, as mongod 6.0 does it (each line was compared with `listCollections` after the command).
//! Does not own: the other events.

use bson::{Bson, Document};

use super::{Catalogue, Collection, Ddl, Effect, Kind, View, index_name};
use crate::fault::Result;

/// A capped size is rounded up to this.
const CAPPED_STEP: i64 = 256;

pub(super) fn modify(catalogue: &mut Catalogue, event: &Ddl<'_>, tolerant: bool) -> Result<Effect> {
    let change = event.description()?;
    if event.uuid.is_none() {
        return modify_view(catalogue, event, change, tolerant);
    }
    let Some(collection) = catalogue.find(event, tolerant)? else { return Ok(Effect::None) };
    let mut unknown = Vec::new();
    for (field, value) in change {
        let known = match (field.as_str(), value) {
            ("index", Bson::Document(index)) => match modify_index(collection, &index) {
                Some(known) => known,
                None if tolerant => true,
                None => return Err(event.corrupt("changes an index that does not exist")),
            },
            (field, value) => modify_option(collection, field, value),
        };
        if !known {
            unknown.push(field);
        }
    }
    if unknown.is_empty() {
        return Ok(Effect::None);
    }
    Ok(Effect::Unrecognised(format!("collMod of {:?} with unknown fields {}", event.coll, unknown.join(", "))))
}

/// A view's event carries the whole new definition.
fn modify_view(catalogue: &mut Catalogue, event: &Ddl<'_>, options: Document, tolerant: bool) -> Result<Effect> {
    let kind = match catalogue.views.get(event.coll) {
        Some(view) => view.kind,
        None if tolerant => Kind::View,
        None => return Err(event.corrupt("is about a view that does not exist")),
    };
    catalogue.views.insert(event.coll.to_owned(), View { name: event.coll.to_owned(), kind, options });
    Ok(Effect::None)
}

/// False for a field that this version does not know.
fn modify_option(collection: &mut Collection, field: &str, value: Bson) -> bool {
    let options = &mut collection.options;
    match (field, value) {
        ("validator", Bson::Document(validator)) => {
            if validator.is_empty() {
                options.remove("validator");
            } else {
                options.insert("validator", validator);
            }
            fill_validation(options);
        }
        ("validationLevel" | "validationAction", value) => {
            options.insert(field, value);
            fill_validation(options);
        }
        ("changeStreamPreAndPostImages", Bson::Document(images)) => {
            if images.get_bool("enabled").unwrap_or(false) {
                options.insert(field, images);
            } else {
                options.remove(field);
            }
        }
        ("recordPreImages", value) => {
            if truthy(&value) {
                options.insert(field, true);
            } else {
                options.remove(field);
            }
        }
        ("expireAfterSeconds", Bson::String(off)) if off == "off" => {
            options.remove(field);
        }
        ("expireAfterSeconds", seconds) => {
            options.insert(field, seconds);
        }
        ("cappedSize", size) => {
            let Some(size) = integer(&size) else { return false };
            let rounded = size.saturating_add(CAPPED_STEP - 1) / CAPPED_STEP * CAPPED_STEP;
            options.insert("size", compact(rounded));
        }
        ("cappedMax", max) => {
            let Some(max) = integer(&max) else { return false };
            // Zero and below mean no limit, which the server stores as the largest number.
            options.insert("max", if max <= 0 { Bson::Int32(i32::MAX) } else { compact(max) });
        }
        // Buckets of time-series collections are recorded, not restored; their granularity changes nothing that is.
        ("timeseries", _) => {}
        _ => return false,
    }
    true
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

/// `None` when there is no such index, `Some(false)` when a field is unknown.
fn modify_index(collection: &mut Collection, change: &Document) -> Option<bool> {
    let spec = collection.indexes.iter_mut().find(|spec| index_name(spec) == index_name(change))?;
    let mut known = true;
    for (field, value) in change {
        match field.as_str() {
            "name" | "keyPattern" => {}
            "expireAfterSeconds" => {
                spec.insert(field, value);
            }
            "hidden" | "prepareUnique" => set_flag(spec, field, truthy(value)),
            "unique" => {
                set_flag(spec, field, truthy(value));
                spec.remove("prepareUnique");
            }
            _ => known = false,
        }
    }
    Some(known)
}

/// The server stores a set flag and leaves an unset one out.
fn set_flag(spec: &mut Document, field: &str, on: bool) {
    if on {
        spec.insert(field, true);
    } else {
        spec.remove(field);
    }
}

fn truthy(value: &Bson) -> bool {
    match value {
        Bson::Boolean(on) => *on,
        other => integer(other).is_some_and(|n| n != 0),
    }
}

fn integer(value: &Bson) -> Option<i64> {
    match value {
        Bson::Int32(n) => Some(i64::from(*n)),
        Bson::Int64(n) => Some(*n),
        #[allow(clippy::cast_possible_truncation)] // saturates, and the server itself stores an integer
        Bson::Double(n) if n.is_finite() => Some(*n as i64),
        _ => None,
    }
}

fn compact(n: i64) -> Bson {
    i32::try_from(n).map_or(Bson::Int64(n), Bson::Int32)
}
