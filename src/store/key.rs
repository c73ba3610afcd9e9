//! Owns: which object keys are allowed, the same in every store, so that what works in the memory twin works in a bucket and in
//! a directory. Does not own the layout of a bucket (`branch::layout`).

use crate::fault::{Fault, Result};

/// Longest key in bytes. S3 allows 1,024 with the URL's prefix.
pub const MAX_KEY_BYTES: usize = 900;
/// Longest path component: the limit of every common file system.
const MAX_COMPONENT_BYTES: usize = 255;
/// First component that the file store keeps for itself.
pub(super) const RESERVED: &str = ".tmp";

/// Refuses a key that some store would fold, escape or walk out of its tree with.
pub fn check_key(key: &str) -> Result<()> {
    let refuse = |why: &str| Err(Fault::rejected(format!("object key {:?} is not allowed: {why}", shorten(key))));
    if key.is_empty() {
        return refuse("it is empty");
    }
    if key.len() > MAX_KEY_BYTES {
        return refuse("it is longer than 900 bytes");
    }
    if key.chars().any(|c| c.is_control() || c == '\\') {
        return refuse("it has a control character or a backslash");
    }
    for part in key.split('/') {
        match part {
            "" => return refuse("it has an empty component (it begins or ends with '/', or has '//')"),
            "." | ".." => return refuse("it has a component '.' or '..'"),
            _ if part.len() > MAX_COMPONENT_BYTES => return refuse("it has a component longer than 255 bytes"),
            _ => {}
        }
    }
    if key.split('/').next() == Some(RESERVED) {
        return refuse("'.tmp' is the file store's own");
    }
    Ok(())
}

/// A listing prefix is the beginning of an allowed key: it may be empty, end anywhere, and end with '/'.
pub(super) fn check_prefix(prefix: &str) -> Result<()> {
    match prefix.strip_suffix('/').unwrap_or(prefix) {
        "" if prefix.is_empty() => Ok(()),
        // A prefix may end inside a component, also one that begins with dots: `a/.` is the beginning of `a/.b`.
        stem => check_key(&format!("{stem}{}", if prefix.ends_with('/') { "/x" } else { "x" })),
    }
}

/// Page sizes are 1..=1000, as S3 has them.
pub(super) fn check_page(max: usize) -> Result<()> {
    if (1..=1000).contains(&max) {
        Ok(())
    } else {
        Err(Fault::rejected(format!("a listing of {max} objects was asked for; 1 to 1000 are possible")))
    }
}

fn shorten(key: &str) -> String {
    key.chars().take(120).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn hostile_keys_are_refused() {
        let long = "a".repeat(256);
        let longer = "a/".repeat(451);
        for key in [
            "", "/", "/a", "a/", "a//b", ".", "..", "../a", "a/../b", "a/..", "a/./b", "a\0b", "a\nb", "a\\b", ".tmp/x", ".tmp", "\u{7f}",
            &long, &longer,
        ] {
            assert!(check_key(key).is_err(), "{key:?}");
        }
    }

    #[test]
    fn ordinary_and_odd_keys_are_allowed() {
        let longest = "a".repeat(255);
        for key in ["a", "projects/p/branches/b/branch.json", "...", "a/.tmp", ".tmpx", "a b", "ä/ß", "%2e%2e/x", "a=b&c", "x+y", &longest]
        {
            assert!(check_key(key).is_ok(), "{key:?}");
        }
    }

    #[test]
    fn a_prefix_may_be_empty_or_end_anywhere() {
        for prefix in ["", "a", "a/", "a/b", "a/.", "."] {
            assert!(check_prefix(prefix).is_ok(), "{prefix:?}");
        }
        for prefix in ["/", "//", "a//", "../", "a/../b", ".tmp/", "a\0"] {
            assert!(check_prefix(prefix).is_err(), "{prefix:?}");
        }
    }

    proptest! {
        #[test]
        fn an_allowed_key_stays_inside_its_tree(key in "[a./\\\\]{0,12}") {
            if check_key(&key).is_ok() {
                let path = std::path::Path::new(&key);
                prop_assert!(path.components().all(|c| matches!(c, std::path::Component::Normal(_))));
            }
        }
    }
}
