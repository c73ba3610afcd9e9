//! Owns: which collections of a database are captured. Pure. Does not own: passing over the others (`capture::select`).

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::fault::{Fault, Result};

/// Patterns of one list.
const MOST: usize = 1_000;
const BUCKETS: &str = "system.buckets.";

/// Names of collections and views, or patterns: `*` is any text, `?` one character.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Selection {
    /// Only these; all, if there are none.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub include: Vec<String>,
    /// Not these.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub exclude: Vec<String>,
}

impl Selection {
    /// Whether nothing is left out.
    pub fn is_all(&self) -> bool {
        self.include.is_empty() && self.exclude.is_empty()
    }

    /// Whether a collection of this name is captured. What is about the whole database has no name, and is.
    pub fn takes(&self, name: &str) -> bool {
        let name = name.strip_prefix(BUCKETS).unwrap_or(name);
        let among = |list: &[String]| list.iter().any(|pattern| fits(pattern.as_bytes(), name.as_bytes()));
        name.is_empty() || (self.include.is_empty() || among(&self.include)) && !among(&self.exclude)
    }

    /// Refuses what can select nothing.
    pub fn check(&self) -> Result<()> {
        for list in [&self.include, &self.exclude] {
            if list.len() > MOST {
                return Err(Fault::config(format!("{} patterns of collections are more than {MOST}", list.len())));
            }
            if let Some(bad) = list.iter().find(|pattern| pattern.is_empty() || pattern.len() > 255 || pattern.contains('\0')) {
                return Err(Fault::config(format!("{bad:?} is no name of a collection, and no pattern of one such as logs_*")));
            }
        }
        Ok(())
    }
}

/// Whether a pattern is the whole of a text. Takes time by the product of their lengths at most.
pub fn fits(pattern: &[u8], text: &[u8]) -> bool {
    let (mut p, mut t) = (0, 0);
    // The last star, and up to where it reaches.
    let mut star: Option<(usize, usize)> = None;
    while t < text.len() {
        match pattern.get(p) {
            Some(b'*') => {
                star = Some((p, t));
                p += 1;
            }
            Some(b'?') => {
                p += 1;
                t += width(text[t]).min(text.len() - t);
            }
            Some(byte) if *byte == text[t] => {
                p += 1;
                t += 1;
            }
            _ => match star {
                Some((at, reached)) => {
                    (p, t) = (at + 1, reached + 1);
                    star = Some((at, reached + 1));
                }
                None => return false,
            },
        }
    }
    pattern[p..].iter().all(|byte| *byte == b'*')
}

/// Bytes of the character that begins with this one.
fn width(first: u8) -> usize {
    match first {
        0xF0.. => 4,
        0xE0.. => 3,
        0xC0.. => 2,
        _ => 1,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn selection(include: &[&str], exclude: &[&str]) -> Selection {
        let owned = |list: &[&str]| list.iter().map(|s| (*s).to_owned()).collect();
        Selection { include: owned(include), exclude: owned(exclude) }
    }

    #[test]
    fn what_is_named_is_taken_unless_it_is_left_out() {
        let all = Selection::default();
        assert!(all.is_all() && all.takes("orders") && all.takes(""));
        let some = selection(&["orders", "log_*", "?"], &["log_debug*", "z"]);
        for (name, taken) in [
            ("orders", true),
            ("orders2", false),
            ("log_", true),
            ("log_web", true),
            ("log_debug_1", false),
            ("a", true),
            ("ä", true),
            ("z", false),
            ("ab", false),
            ("system.buckets.log_1", true),
            ("system.buckets.other", false),
            ("", true),
        ] {
            assert_eq!(some.takes(name), taken, "{name:?}");
        }
        assert!(!selection(&[], &["*"]).takes("x"));
        assert!(selection(&["a[b]*"], &[]).takes("a[b]c"), "brackets are themselves");
        for bad in ["", "a\0"] {
            assert!(selection(&[bad], &[]).check().is_err() && selection(&[], &[bad]).check().is_err());
        }
    }

    /// By the definition.
    fn slow(pattern: &[u8], text: &[u8]) -> bool {
        match (pattern.split_first(), text.split_first()) {
            (None, None) => true,
            (Some((b'*', rest)), _) => slow(rest, text) || text.split_first().is_some_and(|(_, text)| slow(pattern, text)),
            (Some((b'?', rest)), Some((_, text))) => slow(rest, text),
            (Some((a, rest)), Some((b, text))) => a == b && slow(rest, text),
            _ => false,
        }
    }

    proptest! {
        #[test]
        fn patterns_fit_as_they_are_defined(pattern in "[ab*?]{0,8}", text in "[ab]{0,10}") {
            prop_assert_eq!(fits(pattern.as_bytes(), text.as_bytes()), slow(pattern.as_bytes(), text.as_bytes()));
        }
    }
}
