use super::*;
use bson::{Bson, Document, bson, doc};
use proptest::prelude::*;

fn raw_of(d: &Document) -> RawDocumentBuf {
    d.try_into().unwrap()
}

fn applied(doc: &Document, diff: &Document) -> Result<Document, DeltaError> {
    assert_eq!(check_delta(&raw_of(diff)), Ok(()), "{diff}");
    apply_delta(&raw_of(doc), &raw_of(diff)).map(|d| Document::try_from(d).unwrap())
}

#[test]
fn each_section_does_what_the_server_does() {
    let d = doc! { "_id": 1, "a": 1, "b": { "x": 1, "y": 2 }, "c": [1, { "z": 1 }, [2]] };
    let cases = [
        (doc! { "d": { "a": false } }, doc! { "_id": 1, "b": { "x": 1, "y": 2 }, "c": [1, { "z": 1 }, [2]] }),
        (doc! { "u": { "a": "new" } }, doc! { "_id": 1, "a": "new", "b": { "x": 1, "y": 2 }, "c": [1, { "z": 1 }, [2]] }),
        (
            doc! { "u": { "n": 1 }, "i": { "m": 2 } },
            doc! { "_id": 1, "a": 1, "b": { "x": 1, "y": 2 }, "c": [1, { "z": 1 }, [2]], "n": 1, "m": 2 },
        ),
        (doc! { "i": { "b": 0, "a": 5 } }, doc! { "_id": 1, "c": [1, { "z": 1 }, [2]], "b": 0, "a": 5 }),
        (
            doc! { "sb": { "d": { "x": false }, "i": { "w": 1 } } },
            doc! { "_id": 1, "a": 1, "b": { "y": 2, "w": 1 }, "c": [1, { "z": 1 }, [2]] },
        ),
        (doc! { "sc": { "a": true, "l": 1 } }, doc! { "_id": 1, "a": 1, "b": { "x": 1, "y": 2 }, "c": [1] }),
        (doc! { "sc": { "a": true, "l": 0 } }, doc! { "_id": 1, "a": 1, "b": { "x": 1, "y": 2 }, "c": [] }),
        (
            doc! { "sc": { "a": true, "l": 5, "u0": "x", "s1": { "u": { "z": 2 } }, "s2": { "a": true, "u2": 3 } } },
            doc! { "_id": 1, "a": 1, "b": { "x": 1, "y": 2 }, "c": ["x", { "z": 2 }, [2, Bson::Null, 3], Bson::Null, Bson::Null] },
        ),
        (doc! { "sc": { "a": true, "u12": 9 } }, {
            let mut c = vec![bson!(1), bson!({ "z": 1 }), bson!([2])];
            c.resize(12, Bson::Null);
            c.push(9.into());
            doc! { "_id": 1, "a": 1, "b": { "x": 1, "y": 2 }, "c": c }
        }),
        (
            doc! { "d": { "a": false, "gone": false }, "u": { "_id": 2 }, "i": { "q": 1 }, "sb": { "u": { "x": 7 } }, "sc": { "a": true, "u0": 8 } },
            doc! { "_id": 2, "b": { "x": 7, "y": 2 }, "c": [8, { "z": 1 }, [2]], "q": 1 },
        ),
    ];
    for (diff, want) in cases {
        assert_eq!(applied(&d, &diff), Ok(want), "{diff}");
    }
}

#[test]
fn names_with_dots_dollars_and_nothing_are_names() {
    let d = doc! { "": 1, "a.b": 2, "$c": 3, "s": { "": { "": 1 } }, "d": 4 };
    let diff =
        doc! { "d": { "a.b": false }, "u": { "": 9 }, "i": { "a": 1 }, "s$c": { "a": true, "u0": 1 }, "ss": { "s": { "u": { "": 2 } } } };
    let mut with_array = d;
    with_array.insert("$c", bson!([3]));
    assert_eq!(applied(&with_array, &diff), Ok(doc! { "": 9, "$c": [1], "s": { "": { "": 2 } }, "d": 4, "a": 1 }));
}

#[test]
fn a_diff_for_another_state_is_a_mismatch_or_what_a_secondary_makes_of_it() {
    let cases = [
        (doc! { "a": 1 }, doc! { "sa": { "u": { "x": 1 } } }, doc! { "a": Bson::Null }),
        (doc! { "a": [1] }, doc! { "sa": { "u": { "x": 1 } } }, doc! { "a": Bson::Null }),
        (doc! { "a": { "x": 1 } }, doc! { "sa": { "a": true, "u0": 1 } }, doc! { "a": Bson::Null }),
        (doc! { "b": 1 }, doc! { "sa": { "u": { "x": 1 } } }, doc! { "b": 1 }),
        (doc! { "a": [] }, doc! { "sa": { "a": true, "s1": { "u": { "x": 1 } } } }, doc! { "a": [Bson::Null, Bson::Null] }),
        (doc! { "a": [5] }, doc! { "sa": { "a": true, "s0": { "u": { "x": 1 } } } }, doc! { "a": [Bson::Null] }),
    ];
    for (d, diff, tolerant) in cases {
        assert!(matches!(applied(&d, &diff), Err(DeltaError::Mismatch(_))), "{d} {diff}");
        let got = apply_delta_tolerant(&raw_of(&d), &raw_of(&diff)).unwrap();
        assert_eq!(Document::try_from(got).unwrap(), tolerant);
    }
}

#[test]
fn unknown_sections_and_broken_structure_are_told_apart() {
    let unknown = [
        doc! { "b": { "x": { "o": 1 } } },
        doc! { "x": {} },
        doc! { "dd": {} },
        doc! { "sa": { "b": {} } },
        doc! { "sa": { "a": true, "b0": 1 } },
    ];
    let broken = [
        doc! {},
        doc! { "u": 1 },
        doc! { "u": {}, "d": {} },
        doc! { "sa": { "u": {} }, "u": {} },
        doc! { "u": { "a": 1 }, "i": { "a": 1 } },
        doc! { "d": { "a": false }, "sa": { "u": { "x": 1 } } },
        doc! { "sa": 1 },
        doc! { "sa": {} },
        doc! { "sa": { "a": false } },
        doc! { "sa": { "a": true, "l": -1 } },
        doc! { "sa": { "a": true, "l": 1i64 } },
        doc! { "sa": { "a": true, "l": 2, "u2": 1 } },
        doc! { "sa": { "a": true, "u2": 1, "u1": 1 } },
        doc! { "sa": { "a": true, "u1": 1, "s1": { "u": {} } } },
        doc! { "sa": { "a": true, "u": 1 } },
        doc! { "sa": { "a": true, "u01": 1 } },
        doc! { "sa": { "a": true, "u-1": 1 } },
        doc! { "sa": { "a": true, "u99999999999999999999": 1 } },
        doc! { "sa": { "a": true, "s0": 1 } },
    ];
    let target = raw_of(&doc! { "a": [1, 2, 3] });
    for diff in &unknown {
        assert!(matches!(check_delta(&raw_of(diff)), Err(DeltaError::UnknownSection(_))), "{diff}");
        assert!(matches!(apply_delta(&target, &raw_of(diff)), Err(DeltaError::UnknownSection(_) | DeltaError::Mismatch(_))), "{diff}");
    }
    for diff in &broken {
        assert!(matches!(check_delta(&raw_of(diff)), Err(DeltaError::Malformed(_))), "{diff}");
        let got = apply_delta(&target, &raw_of(diff));
        assert!(matches!(got, Err(DeltaError::Malformed(_) | DeltaError::Mismatch(_))), "{diff}: {got:?}");
    }
}

#[test]
fn a_hostile_diff_cannot_exhaust_stack_or_memory() {
    let big = raw_of(&doc! { "sa": { "a": true, "u900000000": 1 } });
    assert!(matches!(apply_delta(&raw_of(&doc! { "a": [] }), &big), Err(DeltaError::Malformed(_))));
    let longer = raw_of(&doc! { "sa": { "a": true, "l": i32::MAX } });
    assert!(matches!(apply_delta(&raw_of(&doc! { "a": [] }), &longer), Err(DeltaError::Malformed(_))));
    let (mut doc, mut diff) = (raw_of(&doc! {}).into_bytes(), raw_of(&doc! { "i": { "x": 1 } }).into_bytes());
    for _ in 0..3_000 {
        for (bytes, name) in [(&mut doc, b"a".as_slice()), (&mut diff, b"sa")] {
            let mut outer = Vec::new();
            let at = raw::open(&mut outer);
            raw::put(&mut outer, tag::DOCUMENT, name, bytes);
            raw::close(&mut outer, at);
            *bytes = outer;
        }
    }
    let (doc, diff) = (RawDocument::from_bytes(&doc).unwrap(), RawDocument::from_bytes(&diff).unwrap());
    assert!(matches!(apply_delta(doc, diff), Err(DeltaError::Malformed(_))));
    assert!(matches!(check_delta(diff), Err(DeltaError::Malformed(_))));
}

#[test]
fn a_16_mb_document_with_many_fields_is_patched_in_linear_time() {
    let mut d = doc! {};
    let mut updates = doc! {};
    let mut removed = doc! {};
    for n in 0..200_000 {
        d.insert(format!("field{n}"), "x".repeat(50));
        if n % 2 == 0 {
            updates.insert(format!("field{n}"), "y".repeat(50));
        } else if n % 5 == 0 {
            removed.insert(format!("field{n}"), false);
        }
    }
    let (d, diff) = (raw_of(&d), raw_of(&doc! { "d": removed, "u": updates }));
    let out = apply_delta(&d, &diff).unwrap();
    assert_eq!(out.iter().count(), 180_000);
    assert_eq!(out.get_str("field4").unwrap(), "y".repeat(50));
}

/// A document, and another one made from it, with the diff that leads from one to the other.
fn value() -> impl Strategy<Value = Bson> {
    let leaf = prop_oneof![any::<i32>().prop_map(Bson::Int32), "[a-c]{0,3}".prop_map(Bson::String), Just(Bson::Null)];
    leaf.prop_recursive(3, 30, 5, |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..5).prop_map(Bson::Array),
            prop::collection::vec(("[abs.$]{0,2}", inner), 0..5).prop_map(|f| Bson::Document(f.into_iter().collect())),
        ]
    })
}

fn document() -> impl Strategy<Value = Document> {
    prop::collection::vec(("[abdisul.$]{0,2}", value()), 0..8).prop_map(|f| f.into_iter().collect())
}

/// A diff by the book: removed, changed in place, moved or new to the end, sub-diffs where both sides are containers.
fn diff_of(from: &Document, to: &Document) -> Option<Document> {
    // Fields of `to` that keep their relative order from the start may stay in place, the rest is (re)inserted.
    let mut stay = Vec::new();
    let mut order = from.keys();
    for name in to.keys() {
        if from.contains_key(name) && order.any(|k| k == name) {
            stay.push(name);
        } else {
            break;
        }
    }
    let (mut d, mut u, mut i, mut s) = (doc! {}, doc! {}, doc! {}, doc! {});
    for name in from.keys().filter(|n| !to.contains_key(*n)) {
        d.insert(name, false);
    }
    for (name, new) in to {
        match from.get(name) {
            Some(old) if stay.contains(&name) => match (old, new) {
                (old, new) if old == new => {}
                (Bson::Document(old), Bson::Document(new)) => {
                    s.insert(format!("s{name}"), diff_of(old, new)?);
                }
                (Bson::Array(old), Bson::Array(new)) => {
                    s.insert(format!("s{name}"), array_diff_of(old, new)?);
                }
                _ => {
                    u.insert(name, new.clone());
                }
            },
            _ => {
                i.insert(name, new.clone());
            }
        }
    }
    let mut out = doc! {};
    for (name, section) in [("d", d), ("u", u), ("i", i)] {
        if !section.is_empty() {
            out.insert(name, section);
        }
    }
    out.extend(s);
    (!out.is_empty()).then_some(out)
}

fn array_diff_of(old: &[Bson], new: &[Bson]) -> Option<Document> {
    let mut out = doc! { "a": true };
    if new.len() < old.len() {
        out.insert("l", i32::try_from(new.len()).unwrap());
    }
    for (n, value) in new.iter().enumerate() {
        match (old.get(n), value) {
            (Some(old), new) if old == new => {}
            (Some(Bson::Document(old)), Bson::Document(new)) => {
                out.insert(format!("s{n}"), diff_of(old, new)?);
            }
            (None, Bson::Null) if n + 1 < new.len() => {}
            _ => {
                out.insert(format!("u{n}"), value.clone());
            }
        }
    }
    Some(out)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2_000))]
    #[test]
    fn a_diff_leads_from_one_document_to_the_other(from in document(), to in document()) {
        if let Some(diff) = diff_of(&from, &to) {
            let got = apply_delta(&raw_of(&from), &raw_of(&diff)).unwrap();
            prop_assert_eq!(&got, &raw_of(&to), "{}", diff);
        }
    }

    #[test]
    fn damaged_diffs_and_documents_never_panic(from in document(), to in document(), at in 0usize..300, byte: u8, which: bool) {
        let diff = diff_of(&from, &to).unwrap_or_else(|| doc! { "u": { "a": 1 } });
        let (mut doc, mut diff) = (raw_of(&from).into_bytes(), raw_of(&diff).into_bytes());
        if let Some(slot) = if which { doc.get_mut(at) } else { diff.get_mut(at) } { *slot = byte; }
        if let (Ok(doc), Ok(diff)) = (RawDocument::from_bytes(&doc), RawDocument::from_bytes(&diff)) {
            let checked = check_delta(diff);
            let applied = apply_delta(doc, diff);
            if let Err(DeltaError::UnknownSection(_)) = applied { prop_assert!(checked.is_err()); }
            let _ = apply_delta_tolerant(doc, diff);
        }
    }
}
