//! Compressed payloads of packs and page maps.
//!
//! A payload stands behind a header that names its codec and its decompressed length, so that what a decoder
//! allocates is known, and was checked by the caller, before it starts.

use std::cell::RefCell;
use std::io::{self, Cursor};

use zstd::bulk::{Compressor, Decompressor};

use crate::bytes::Malformed;

/// zstd level. Higher levels gained 4-9 % size for half the speed on guest memory.
const LEVEL: i32 = 1;

/// How a payload is stored. One byte in the format.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Codec {
    /// As it is.
    Raw = 0,
    /// One zstd frame.
    Zstd = 1,
}

impl Codec {
    pub(crate) fn from_byte(byte: u8) -> Result<Self, Malformed> {
        match byte {
            0 => Ok(Self::Raw),
            1 => Ok(Self::Zstd),
            other => Err(Malformed::new(format!("codec {other} is unknown to this varve"))),
        }
    }
}

thread_local! {
    static COMPRESSOR: RefCell<Option<Compressor<'static>>> = const { RefCell::new(None) };
    static DECOMPRESSOR: RefCell<Option<Decompressor<'static>>> = const { RefCell::new(None) };
}

/// Appends `payload` to `out`, compressed if that makes it smaller.
pub(crate) fn encode(payload: &[u8], out: &mut Vec<u8>) -> Codec {
    let start = out.len();
    match compress(payload, out) {
        Ok(len) if len < payload.len() => Codec::Zstd,
        _ => {
            out.truncate(start);
            out.extend_from_slice(payload);
            Codec::Raw
        }
    }
}

/// Appends a zstd frame to `out` and returns its length; one that is much longer than the payload is an error.
fn compress(payload: &[u8], out: &mut Vec<u8>) -> io::Result<usize> {
    COMPRESSOR.with_borrow_mut(|slot| {
        let compressor = match slot {
            Some(compressor) => compressor,
            None => slot.insert(Compressor::new(LEVEL)?),
        };
        out.reserve(payload.len());
        let mut end = Cursor::new(out);
        end.set_position(end.get_ref().len() as u64);
        compressor.compress_to_buffer(payload, &mut end)
    })
}

/// The payload in `bytes`, which must be `len` bytes long once decompressed. The caller has bounded `len`.
pub(crate) fn decode(codec: Codec, bytes: &[u8], len: usize) -> Result<Vec<u8>, Malformed> {
    let payload = match codec {
        Codec::Raw if bytes.len() == len => bytes.to_vec(),
        Codec::Raw => return Err(wrong_length(bytes.len(), len)),
        Codec::Zstd => decompress(bytes, len)?,
    };
    match payload.len() == len {
        true => Ok(payload),
        false => Err(wrong_length(payload.len(), len)),
    }
}

fn decompress(bytes: &[u8], len: usize) -> Result<Vec<u8>, Malformed> {
    DECOMPRESSOR.with_borrow_mut(|slot| {
        let failed = |error: io::Error| Malformed::new(format!("zstd: {error}"));
        let decompressor = match slot {
            Some(decompressor) => decompressor,
            None => slot.insert(Decompressor::new().map_err(failed)?),
        };
        let mut payload = Vec::with_capacity(len);
        decompressor.decompress_to_buffer(bytes, &mut payload).map_err(failed)?;
        Ok(payload)
    })
}

fn wrong_length(found: usize, expected: usize) -> Malformed {
    Malformed::new(format!("the payload has {found} bytes, its header says {expected}"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn payloads_come_back(payload in proptest::collection::vec(any::<u8>(), 0..5000), repeat in 1usize..5) {
            let payload = payload.repeat(repeat);
            let mut out = b"header".to_vec();
            let codec = encode(&payload, &mut out);
            prop_assert!(out.len() <= 6 + payload.len());
            prop_assert_eq!(decode(codec, &out[6..], payload.len()).unwrap(), payload);
        }

        #[test]
        fn any_bytes_decode_or_are_malformed(bytes in proptest::collection::vec(any::<u8>(), 0..200), len in 0usize..300) {
            if let Ok(payload) = decode(Codec::Zstd, &bytes, len) {
                prop_assert_eq!(payload.len(), len);
            }
        }
    }

    #[test]
    fn a_frame_of_another_length_is_malformed() {
        let mut out = Vec::new();
        assert_eq!(encode(&[7; 1000], &mut out), Codec::Zstd);
        assert!(decode(Codec::Zstd, &out, 999).is_err());
        assert_eq!(
            decode(Codec::Zstd, &out, 1001).unwrap_err().to_string(),
            "the payload has 1000 bytes, its header says 1001"
        );
        assert!(decode(Codec::Raw, &[1, 2], 3).is_err());
        assert_eq!(Codec::from_byte(9).unwrap_err().to_string(), "codec 9 is unknown to this varve");
    }
}
