//! Owns: the keys of objects in the bucket. Pure.
//! Does not own: what the objects hold (`documents`, `segment`) or the prefix of the store's URL (`store`).
//!
//! Keys are a function of branch, epoch, range and content, so that a repeated put is harmless and a listing is in order of
//! history within an epoch (sequence numbers are 16 hex digits).

use crate::fault::{Fault, Result};

/// Longest project or branch part of a name, in bytes.
pub const MAX_NAME_PART: usize = 100;
/// Hex digits of the content hash in a key: 128 bits, enough to be determined by content.
const HASH_DIGITS: usize = 32;

/// `project/branch`, checked.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct BranchName {
    name: String,
    slash: usize,
}

impl BranchName {
    /// Takes `project/branch`: two parts of ASCII letters, digits, `.`, `_`, `-`, neither beginning with a dot.
    pub fn parse(name: &str) -> Result<Self> {
        let bad = |why: &str| Err(Fault::config(format!("branch name {name:?} {why}: use project/branch, for example shop/main")));
        let Some((project, branch)) = name.split_once('/') else { return bad("has no slash") };
        for part in [project, branch] {
            if part.is_empty() {
                return bad("has an empty part");
            }
            if part.len() > MAX_NAME_PART {
                return bad("has a part of more than 100 characters");
            }
            if part.starts_with('.') || !part.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b'-')) {
                return bad("may only hold letters, digits, '.', '_' and '-', no part beginning with a dot");
            }
        }
        Ok(Self { name: name.to_owned(), slash: project.len() })
    }

    /// The part that is in object keys.
    pub fn project(&self) -> &str {
        &self.name[..self.slash]
    }

    /// The part after the slash.
    pub fn branch(&self) -> &str {
        &self.name[self.slash + 1..]
    }

    /// Both parts.
    pub fn as_str(&self) -> &str {
        &self.name
    }
}

/// The project part of a stored name (names are checked where they enter).
pub fn project_of(name: &str) -> &str {
    name.split_once('/').map_or(name, |(project, _)| project)
}

/// Everything of a branch is below this.
pub fn branch_prefix(project: &str, branch_id: &str) -> String {
    format!("projects/{project}/branches/{branch_id}/")
}

/// Identity, source and state of the branch.
pub fn branch_json(project: &str, branch_id: &str) -> String {
    format!("{}branch.json", branch_prefix(project, branch_id))
}

/// Who numbers from which seq on (correctness.md 20).
pub fn epoch(project: &str, branch_id: &str, n: u64) -> String {
    format!("{}epoch/{n}", branch_prefix(project, branch_id))
}

/// A fresh segment.
pub fn segment_l0(project: &str, branch_id: &str, epoch: u64, first: u64, last: u64, sha256: &[u8; 32]) -> String {
    let hash = object_hash(sha256);
    format!("{}{epoch}-{first:016x}-{last:016x}-{hash}.seg", segments_l0(project, branch_id))
}

/// Below this are the bases of a branch.
pub fn bases_prefix(project: &str, branch_id: &str) -> String {
    format!("{}bases/", branch_prefix(project, branch_id))
}

/// The id of the base that an object below [`bases_prefix`] is of.
pub fn base_of<'a>(prefix: &str, key: &'a str) -> Option<&'a str> {
    let (place, _) = key.strip_prefix(prefix)?.split_once('/')?;
    place.split_once('-').map(|(_, id)| id)
}

/// Below this are the manifest and the objects of a base.
pub fn base_prefix(project: &str, branch_id: &str, seq: u64, base_id: &str) -> String {
    format!("{}bases/{seq:016x}-{base_id}/", branch_prefix(project, branch_id))
}

/// The manifest of a base, written last.
pub fn base_manifest(project: &str, branch_id: &str, seq: u64, base_id: &str) -> String {
    format!("{}manifest.json", base_prefix(project, branch_id, seq, base_id))
}

/// What a base copies and from where, written before its first part.
pub fn base_plan(project: &str, branch_id: &str, seq: u64, base_id: &str) -> String {
    format!("{}plan.json", base_prefix(project, branch_id, seq, base_id))
}

/// Documents of a base; `object` is [`object_hash`].
pub fn base_part(project: &str, branch_id: &str, seq: u64, base_id: &str, object: &str) -> String {
    format!("{}{object}.seg", base_prefix(project, branch_id, seq, base_id))
}

/// The part of a key that names content.
pub fn object_hash(sha256: &[u8; 32]) -> String {
    hex(sha256)[..HASH_DIGITS].to_owned()
}

/// Below this are the fresh segments of a branch.
pub fn segments_l0(project: &str, branch_id: &str) -> String {
    format!("{}segments/L0/", branch_prefix(project, branch_id))
}

/// Below this is everything.
pub const PROJECTS: &str = "projects/";

/// Below this are the segments of a branch, of every level.
pub fn segments(project: &str, branch_id: &str) -> String {
    format!("{}segments/", branch_prefix(project, branch_id))
}

/// Below this is who numbers a branch.
pub fn epochs(project: &str, branch_id: &str) -> String {
    format!("{}epoch/", branch_prefix(project, branch_id))
}

/// Project, id of the branch and the rest of a key, if it is of a branch.
pub fn split_key(key: &str) -> Option<(&str, &str, &str)> {
    let (project, rest) = key.strip_prefix(PROJECTS)?.split_once('/')?;
    let (id, rest) = rest.strip_prefix("branches/")?.split_once('/')?;
    (!project.is_empty() && !id.is_empty()).then_some((project, id, rest))
}

/// What the key of a segment says.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SegmentName {
    pub level: u32,
    pub epoch: u64,
    pub first: u64,
    pub last: u64,
    /// The part of its SHA-256 that is in the key.
    pub hash: [u8; HASH_DIGITS / 2],
}

impl SegmentName {
    /// From the key without what is before `segments/`; `None` for anything that no version has written.
    pub fn parse(rest: &str) -> Option<Self> {
        let (level, name) = rest.strip_prefix("segments/L")?.split_once('/')?;
        let mut parts = name.strip_suffix(".seg")?.splitn(4, '-');
        let (epoch, first, last, hash) = (parts.next()?, parts.next()?, parts.next()?, parts.next()?);
        let range = |text: &str| u64::from_str_radix(text, 16).ok();
        let hash = unhex(hash)?.try_into().ok()?;
        let name = Self { level: level.parse().ok()?, epoch: epoch.parse().ok()?, first: range(first)?, last: range(last)?, hash };
        // One text for one name: signs, capitals and leading zeros are none of ours.
        (name.first <= name.last && name.text() == rest).then_some(name)
    }

    fn text(&self) -> String {
        let Self { level, epoch, first, last, hash } = self;
        format!("segments/L{level}/{epoch}-{first:016x}-{last:016x}-{}.seg", hex(hash))
    }

    pub fn key(&self, project: &str, branch_id: &str) -> String {
        format!("{}{}", branch_prefix(project, branch_id), self.text())
    }
}

/// Lower-case hexadecimal.
pub fn hex(bytes: &[u8]) -> String {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    bytes.iter().flat_map(|b| [DIGITS[usize::from(b >> 4)] as char, DIGITS[usize::from(b & 15)] as char]).collect()
}

/// Bytes of lower-case hexadecimal; `None` for anything else.
pub fn unhex(text: &str) -> Option<Vec<u8>> {
    let digit = |b: u8| match b {
        b'0'..=b'9' => Some(b - b'0'),
        b'a'..=b'f' => Some(b - b'a' + 10),
        _ => None,
    };
    let (pairs, rest) = text.as_bytes().as_chunks::<2>();
    if !rest.is_empty() {
        return None;
    }
    pairs.iter().map(|[high, low]| Some(digit(*high)? << 4 | digit(*low)?)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn keys_are_those_of_the_documented_layout() {
        let sha = [0xab; 32];
        let under = "projects/shop/branches/b1/";
        assert_eq!(branch_json("shop", "b1"), format!("{under}branch.json"));
        assert_eq!(epoch("shop", "b1", 3), format!("{under}epoch/3"));
        assert_eq!(
            segment_l0("shop", "b1", 3, 1, 255, &sha),
            format!("{under}segments/L0/3-0000000000000001-00000000000000ff-{}.seg", "ab".repeat(16))
        );
        let key = segment_l0("shop", "b1", 3, 1, 255, &sha);
        let (project, id, rest) = split_key(&key).unwrap();
        let name = SegmentName::parse(rest).unwrap();
        assert_eq!((project, id, name.level, name.epoch, name.first, name.last), ("shop", "b1", 0, 3, 1, 255));
        assert_eq!((name.hash, name.key(project, id)), ([0xab; 16], key));
        assert_eq!(base_manifest("shop", "b1", 0, "x-y"), format!("{under}bases/0000000000000000-x-y/manifest.json"));
    }

    #[test]
    fn what_is_no_segment_of_ours_is_not_taken_for_one() {
        let good = format!("segments/L0/3-{:016x}-{:016x}-{}.seg", 1, 2, "ab".repeat(16));
        assert!(SegmentName::parse(&good).is_some());
        for (what, bad) in [
            ("backwards", good.replace("0000000000000001", "0000000000000003")),
            ("capitals", good.replace("abab", "ABAB")),
            ("sign", good.replace("L0/3", "L0/+3")),
            ("zeros", good.replace("L0/3", "L0/03")),
            ("short", good.replace("0000000000000001", "1")),
            ("hash", good.replace("abab", "ab")),
            ("name", good.replace(".seg", ".seg.tmp")),
            ("place", good.replace("segments/L0", "segments/x")),
            ("deeper", good.replace("L0/", "L0/x/")),
        ] {
            assert_eq!(SegmentName::parse(&bad), None, "{what}: {bad}");
        }
        for bad in ["", "projects/", "projects/p/branches/b", "projects//branches/b/x", "projects/p/b/x", "other/p/branches/b/x"] {
            assert_eq!(split_key(bad), None, "{bad}");
        }
    }

    #[test]
    fn names_are_checked() {
        for good in ["shop/main", "a/b", "A-1_x.y/0"] {
            let name = BranchName::parse(good).unwrap();
            assert_eq!(format!("{}/{}", name.project(), name.branch()), good);
        }
        let long = format!("{}/x", "p".repeat(MAX_NAME_PART + 1));
        for bad in ["", "main", "/main", "shop/", "a/b/c", "../x", "a/..", "a b/c", "ä/b", "a/.hidden", long.as_str()] {
            assert!(BranchName::parse(bad).is_err(), "{bad:?}");
        }
    }

    proptest! {
        #[test]
        fn no_text_makes_the_parser_panic(text in "\\PC*") {
            let _ = (BranchName::parse(&text), unhex(&text), split_key(&text), SegmentName::parse(&text));
        }

        #[test]
        fn hex_round_trips(bytes: Vec<u8>) {
            prop_assert_eq!(unhex(&hex(&bytes)), Some(bytes));
        }
    }
}
