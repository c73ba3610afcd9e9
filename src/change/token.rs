//! Owns: resume tokens, and the cluster time inside one.
//! Does not own: where tokens are kept (`ledger`, `segment`) or how a stream is opened (`capture`).
//!
//! A token is opaque except for its start: `_data` is an order-preserving key whose first field is the cluster time, type
//! byte `0x82`, then seconds and increment, big-endian. `_typeBits` may stand beside `_data`, so a token is always kept and
//! sent whole. `_data` is a hex string from feature compatibility 4.2 on, and BinData before.

use super::ClusterTime;
use super::raw::{self, tag};
use crate::fault::{Fault, Result};
use bson::{RawDocument, RawDocumentBuf};

/// Type byte of a timestamp in the server's order-preserving keys.
const TIMESTAMP_KEY: u8 = 0x82;

/// A resume token whose cluster time can be read.
#[derive(Debug, Clone, PartialEq)]
pub struct Token {
    raw: RawDocumentBuf,
    time: ClusterTime,
}

impl Token {
    /// Takes a token as the server sent it; `Corrupt` if no cluster time can be read from it.
    pub fn new(raw: RawDocumentBuf) -> Result<Self> {
        let time = token_time(&raw)?;
        Ok(Self { raw, time })
    }

    /// Cluster time of the token. Exclusive for high-water tokens: changes of this very time may still come.
    pub fn time(&self) -> ClusterTime {
        self.time
    }

    /// The document to send as `startAfter`.
    pub fn as_raw(&self) -> &RawDocument {
        &self.raw
    }

    /// Gives the document back.
    pub fn into_raw(self) -> RawDocumentBuf {
        self.raw
    }
}

/// The cluster time inside a resume token; `Corrupt` if there is none.
pub fn token_time(token: &RawDocument) -> Result<ClusterTime> {
    data_time(token.as_bytes()).ok_or_else(|| Fault::corrupt("a resume token holds no cluster time: it is not one of MongoDB's tokens"))
}

fn data_time(token: &[u8]) -> Option<ClusterTime> {
    let data = raw::find(token, b"_data").ok()??;
    let mut head = [0u8; 9];
    match data.tag {
        tag::STRING => {
            let digits = raw::string_bytes(data.value)?.get(..18)?;
            for (byte, pair) in head.iter_mut().zip(digits.chunks_exact(2)) {
                *byte = hex(*pair.first()?)? << 4 | hex(*pair.get(1)?)?;
            }
        }
        tag::BINARY => head.copy_from_slice(data.value.get(5..14)?),
        _ => return None,
    }
    let [TIMESTAMP_KEY, t0, t1, t2, t3, i0, i1, i2, i3] = head else { return None };
    Some(ClusterTime { t: u32::from_be_bytes([t0, t1, t2, t3]), i: u32::from_be_bytes([i0, i1, i2, i3]) })
}

fn hex(digit: u8) -> Option<u8> {
    match digit {
        b'0'..=b'9' => Some(digit - b'0'),
        b'a'..=b'f' => Some(digit - b'a' + 10),
        b'A'..=b'F' => Some(digit - b'A' + 10),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use bson::{Binary, rawdoc, spec::BinarySubtype};

    const DATA: &str = "826B04CB3E00000006002B042C0100296E5A1004";

    #[test]
    fn time_is_read_from_hex_and_from_binary() {
        let want = ClusterTime { t: 0x6B04_CB3E, i: 6 };
        let bytes = vec![0x82, 0x6B, 0x04, 0xCB, 0x3E, 0, 0, 0, 6, 0, 0x2B];
        let tokens = [
            rawdoc! { "_data": DATA },
            rawdoc! { "_data": DATA.to_lowercase() },
            rawdoc! { "_typeBits": 1, "_data": DATA },
            rawdoc! { "_data": Binary { subtype: BinarySubtype::Generic, bytes } },
        ];
        for token in tokens {
            assert_eq!(token_time(&token).unwrap(), want);
            let kept = Token::new(token.clone()).unwrap();
            assert_eq!((kept.time(), kept.as_raw()), (want, token.as_ref()));
            assert_eq!(kept.into_raw(), token);
        }
    }

    #[test]
    fn whatever_is_no_token_is_refused() {
        let short = Binary { subtype: BinarySubtype::Generic, bytes: vec![0x82, 1, 2, 3] };
        let strange = [
            rawdoc! {},
            rawdoc! { "_data": "" },
            rawdoc! { "_data": &DATA[..17] },
            rawdoc! { "_data": "806B04CB3E00000006" },
            rawdoc! { "_data": "82ZB04CB3E00000006" },
            rawdoc! { "_data": "826B04CB3E0000000é" },
            rawdoc! { "_data": 5 },
            rawdoc! { "_data": short },
        ];
        for token in strange {
            assert_eq!(token_time(&token).unwrap_err().kind, crate::fault::Kind::Corrupt, "{token:?}");
        }
    }
}
