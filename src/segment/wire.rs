//! Owns: bounded reading and writing of the format's integers and documents. Does not own any layout.

use bson::RawDocument;

use crate::fault::{Fault, Result};

/// Longest LEB128 form of a u64.
pub(super) const MAX_VARINT: usize = 10;

/// Appends `value` as LEB128: seven bits a byte, low bits first, high bit set on all but the last.
#[inline]
pub(super) fn put_varint(out: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        out.push((value & 0x7f) as u8 | 0x80);
        value >>= 7;
    }
    out.push((value & 0x7f) as u8);
}

/// Maps small positive and negative differences to small numbers: 0, -1, 1, -2 become 0, 1, 2, 3.
#[inline]
pub(super) fn zigzag(value: i64) -> u64 {
    ((value << 1) ^ (value >> 63)).cast_unsigned()
}

/// The inverse of [`zigzag`].
#[inline]
pub(super) fn unzigzag(value: u64) -> i64 {
    (value >> 1).cast_signed() ^ -(value & 1).cast_signed()
}

/// Reads within `pos..end` of `bytes`; offsets in its faults count from the start of `bytes`.
#[derive(Debug, Clone)]
pub(super) struct Cursor<'a> {
    bytes: &'a [u8],
    pos: usize,
    end: usize,
    what: &'static str,
}

impl<'a> Cursor<'a> {
    /// All of `bytes`, called `what` in faults.
    pub(super) fn new(bytes: &'a [u8], what: &'static str) -> Self {
        Self { bytes, pos: 0, end: bytes.len(), what }
    }

    /// Cuts the next `len` bytes off as a cursor of their own.
    pub(super) fn section(&mut self, len: usize, what: &'static str) -> Result<Self> {
        if len > self.left() {
            return Err(self.fault(&format!("section `{what}` of {len} bytes runs past the end")));
        }
        let start = self.pos;
        self.pos += len;
        Ok(Self { bytes: self.bytes, pos: start, end: self.pos, what })
    }

    pub(super) fn left(&self) -> usize {
        self.end - self.pos
    }

    pub(super) fn position(&self) -> usize {
        self.pos
    }

    pub(super) fn is_empty(&self) -> bool {
        self.pos == self.end
    }

    #[cold]
    pub(super) fn fault(&self, why: &str) -> Fault {
        Fault::corrupt(format!("{} at byte {}: {why}", self.what, self.pos))
    }

    #[inline]
    pub(super) fn take(&mut self, len: usize) -> Result<&'a [u8]> {
        if len > self.left() {
            return Err(self.fault(&format!("{len} bytes expected, {} left", self.left())));
        }
        let slice = &self.bytes[self.pos..self.pos + len];
        self.pos += len;
        Ok(slice)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N]> {
        let mut array = [0; N];
        array.copy_from_slice(self.take(N)?);
        Ok(array)
    }

    #[inline]
    pub(super) fn u8(&mut self) -> Result<u8> {
        if self.pos == self.end {
            return Err(self.fault("one more byte expected"));
        }
        let byte = self.bytes[self.pos];
        self.pos += 1;
        Ok(byte)
    }

    pub(super) fn u32(&mut self) -> Result<u32> {
        Ok(u32::from_le_bytes(self.array()?))
    }

    pub(super) fn u64(&mut self) -> Result<u64> {
        Ok(u64::from_le_bytes(self.array()?))
    }

    pub(super) fn uuid(&mut self) -> Result<[u8; 16]> {
        self.array()
    }

    /// A `u32` used as a length or count on this machine.
    pub(super) fn len32(&mut self) -> Result<usize> {
        Ok(self.u32()? as usize)
    }

    /// Bytes that must be zero in this version.
    pub(super) fn zeros(&mut self, len: usize) -> Result<()> {
        if self.take(len)?.iter().any(|&b| b != 0) {
            return Err(self.fault("reserved bytes are not zero"));
        }
        Ok(())
    }

    #[inline]
    pub(super) fn varint(&mut self) -> Result<u64> {
        let first = self.u8()?;
        if first < 0x80 {
            return Ok(u64::from(first));
        }
        let mut value = u64::from(first & 0x7f);
        for n in 1..MAX_VARINT {
            let byte = self.u8()?;
            if n == MAX_VARINT - 1 && byte > 1 {
                break;
            }
            value |= u64::from(byte & 0x7f) << (7 * n);
            if byte < 0x80 {
                return Ok(value);
            }
        }
        Err(self.fault("varint does not fit 64 bits"))
    }

    /// A whole BSON document: its length and terminator are checked, its elements are not.
    #[inline]
    pub(super) fn doc(&mut self) -> Result<&'a RawDocument> {
        let rest = &self.bytes[self.pos..self.end];
        let Some(head) = rest.first_chunk::<4>() else {
            return Err(self.fault("a document is expected"));
        };
        let len = i32::from_le_bytes(*head);
        let Some(slice) = usize::try_from(len).ok().and_then(|len| rest.get(..len)) else {
            return Err(self.fault(&format!("document length {len} does not fit the {} bytes left", rest.len())));
        };
        let doc = RawDocument::from_bytes(slice).map_err(|e| self.fault(&e.to_string()))?;
        self.pos += slice.len();
        Ok(doc)
    }

    /// UTF-8 of `len` bytes.
    pub(super) fn text(&mut self, len: usize) -> Result<&'a str> {
        let bytes = self.take(len)?;
        std::str::from_utf8(bytes).map_err(|_| self.fault("a name is not UTF-8"))
    }

    /// Nothing may be left over.
    pub(super) fn finish(&self) -> Result<()> {
        if self.is_empty() { Ok(()) } else { Err(self.fault(&format!("{} bytes left over", self.left()))) }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn varint_and_zigzag_come_back(value in any::<i64>()) {
            let mut out = Vec::new();
            put_varint(&mut out, zigzag(value));
            prop_assert!(out.len() <= MAX_VARINT);
            let mut cursor = Cursor::new(&out, "test");
            prop_assert_eq!(unzigzag(cursor.varint().unwrap()), value);
            cursor.finish().unwrap();
        }
    }

    #[test]
    fn small_differences_take_one_byte() {
        for value in -64..=63 {
            assert!(zigzag(value) < 0x80, "{value}");
        }
    }

    #[test]
    fn varint_over_64_bits_is_refused() {
        for bytes in [&[0xff; 11][..], &[0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x02][..], &[0x80][..], &[][..]] {
            assert!(Cursor::new(bytes, "test").varint().is_err(), "{bytes:?}");
        }
        let most = [0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x01];
        assert_eq!(Cursor::new(&most, "test").varint().unwrap(), u64::MAX);
    }

    #[test]
    fn documents_that_lie_about_their_length_are_refused() {
        for bytes in [&[4, 0, 0, 0][..], &[5, 0, 0, 0, 1], &[6, 0, 0, 0, 0], &[0xff, 0xff, 0xff, 0xff, 0], &[0, 0, 0, 0x80, 0], &[5, 0, 0]]
        {
            let fault = Cursor::new(bytes, "test").doc().unwrap_err();
            assert_eq!(fault.kind, crate::fault::Kind::Corrupt);
            assert!(fault.what.contains("at byte 0"), "{}", fault.what);
        }
    }
}
