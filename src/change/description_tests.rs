use super::*;
use bson::{Bson, Document, bson, doc};
use proptest::prelude::*;

fn raw_of(d: &Document) -> RawDocumentBuf {
    d.try_into().unwrap()
}

fn applied(d: &Document, description: &Document) -> Result<Document, DeltaError> {
    apply_update_description(&raw_of(d), &raw_of(description)).map(|d| Document::try_from(d).unwrap())
}

fn updated(fields: Document) -> Document {
    doc! { "updatedFields": fields, "removedFields": [], "truncatedArrays": [] }
}

#[test]
fn truncation_comes_before_removal_and_update() {
    let d = doc! { "_id": 1, "a": [1, 2, { "x": 1, "y": 2 }, 4], "b": { "c": 1, "d": 2 } };
    let description = doc! {
        "updatedFields": { "a.3": "new", "b.e": 5, "n": { "deep": 1 }, "a.2.x": 9 },
        "removedFields": ["b.c", "a.2.y", "gone"],
        "truncatedArrays": [{ "field": "a", "newSize": 3 }],
    };
    let want = doc! { "_id": 1, "a": [1, 2, { "x": 9 }, "new"], "b": { "d": 2, "e": 5 }, "n": { "deep": 1 } };
    assert_eq!(applied(&d, &description), Ok(want));
}

#[test]
fn a_numeric_step_is_an_index_in_an_array_and_a_name_in_a_document() {
    let d = doc! { "a": [[1]], "o": { "0": 1 } };
    let got = applied(&d, &updated(doc! { "a.0.2": 3, "a.2": "x", "o.0": 2, "o.1": 3 }));
    assert_eq!(got, Ok(doc! { "a": [[1, Bson::Null, 3], Bson::Null, "x"], "o": { "0": 2, "1": 3 } }));
}

#[test]
fn names_with_dots_are_found_where_no_container_stands_in_the_way() {
    let d = doc! { "x.y": 1, "p.q": { "r.s": 1 }, "": { "": 1 } };
    let description = doc! { "updatedFields": { "x.y": 2, "p.q.r.s": 3, "p.q.t": 4, "k.l": 5, ".": 6 }, "removedFields": [] };
    assert_eq!(applied(&d, &description), Ok(doc! { "x.y": 2, "p.q": { "r.s": 3, "t": 4 }, "": { "": 6 }, "k.l": 5 }));
}

#[test]
fn what_nobody_can_tell_is_a_mismatch_unless_the_server_says_it() {
    let d = doc! { "a": { "b": 1 }, "a.b": 2 };
    let plain = updated(doc! { "a.b": 9 });
    assert!(matches!(applied(&d, &plain), Err(DeltaError::Mismatch(_))));
    let mut said = plain.clone();
    said.insert("disambiguatedPaths", doc! { "a.b": ["a.b"] });
    assert_eq!(applied(&d, &said), Ok(doc! { "a": { "b": 1 }, "a.b": 9 }));
    said.insert("disambiguatedPaths", doc! { "a.b": ["a", "b"] });
    assert_eq!(applied(&d, &said), Ok(doc! { "a": { "b": 9 }, "a.b": 2 }));
}

#[test]
fn disambiguated_steps_tell_names_from_indexes() {
    let d = doc! { "a": [1, 2], "o": { "0": 1 } };
    let mut description = updated(doc! { "a.0": 5, "o.0": 6 });
    description.insert("disambiguatedPaths", doc! { "a.0": ["a", 0], "o.0": ["o", "0"] });
    assert_eq!(applied(&d, &description), Ok(doc! { "a": [5, 2], "o": { "0": 6 } }));
    description.insert("disambiguatedPaths", doc! { "a.0": ["a", "0"] });
    assert!(matches!(applied(&d, &description), Err(DeltaError::Mismatch(_))));
}

#[test]
fn what_does_not_fit_is_a_mismatch_and_what_is_unreadable_malformed() {
    let d = doc! { "a": [1], "s": 1 };
    let mismatches = [
        updated(doc! { "a.x": 1 }),
        doc! { "removedFields": ["a.0"] },
        doc! { "truncatedArrays": [{ "field": "s", "newSize": 0 }] },
        doc! { "truncatedArrays": [{ "field": "gone", "newSize": 0 }] },
        doc! { "updatedFields": { "z": 1 }, "disambiguatedPaths": { "z": ["s", "t"] } },
    ];
    let malformed = [
        updated(doc! { "a.900000000": 1 }),
        doc! { "removedFields": [1] },
        doc! { "truncatedArrays": [{ "field": "a" }] },
        doc! { "truncatedArrays": [{ "field": "a", "newSize": -1 }] },
        doc! { "truncatedArrays": [1] },
        doc! { "updatedFields": { "z": 1 }, "disambiguatedPaths": { "z": [] } },
    ];
    for description in &mismatches {
        assert!(matches!(applied(&d, description), Err(DeltaError::Mismatch(_))), "{description}");
    }
    for description in &malformed {
        let got = applied(&d, description);
        assert!(matches!(got, Err(DeltaError::Malformed(_))), "{description}: {got:?}");
    }
    assert!(matches!(applied(&d, &doc! { "newThing": {} }), Err(DeltaError::UnknownSection(_))));
}

#[test]
fn thousands_of_fields_are_updated_in_linear_time() {
    let (mut d, mut fields) = (doc! {}, doc! {});
    for n in 0..50_000 {
        d.insert(format!("f{n}"), bson!({ "x": n }));
        fields.insert(format!("f{n}.x"), n + 1);
    }
    let got = applied(&d, &updated(fields)).unwrap();
    assert_eq!(got.get_document("f49999").unwrap(), &doc! { "x": 50_000 });
}

proptest! {
    #[test]
    fn damaged_descriptions_never_panic(at in 4usize..250, byte: u8) {
        let d = raw_of(&doc! { "a": [1, { "x": [1] }], "b": { "c": 1 } });
        let description = doc! {
            "updatedFields": { "a.0": 1, "a.1.x.4": 2, "b.c": 3 }, "removedFields": ["b.d"],
            "truncatedArrays": [{ "field": "a.1.x", "newSize": 0 }], "disambiguatedPaths": { "a.0": ["a", 0] },
        };
        let mut bytes = raw_of(&description).into_bytes();
        if let Some(slot) = bytes.get_mut(at) { *slot = byte; }
        if let Ok(description) = RawDocument::from_bytes(&bytes) { let _ = apply_update_description(&d, description); }
    }
}

#[test]
fn what_applies_to_no_document_is_found_without_one() {
    let mut empty = updated(doc! { "a": 1 });
    empty.insert("disambiguatedPaths", doc! { "a": [] });
    let bad = [
        doc! { "updatedFields": { "a": 1 }, "shiny": 1 },
        doc! { "updatedFields": 5 },
        doc! { "removedFields": [1] },
        doc! { "truncatedArrays": [{ "field": "a" }] },
        empty,
    ];
    for description in bad {
        assert!(check_update_description(&raw_of(&description)).is_err(), "{description}");
        assert!(applied(&doc! { "a": [1] }, &description).is_err(), "{description}");
    }
    check_update_description(&raw_of(&updated(doc! { "a.b": 1 }))).unwrap();
}
