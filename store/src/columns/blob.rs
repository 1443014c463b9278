//! Blobs of bytes as columns hold them: with a digest, compressed when that helps.
//!
//! ```text
//! 0  4  letters that name the column
//! 4  1  layout version, 1
//! 5  1  codec: 0 as is, 1 one zstd frame
//! 6  4  length of the blob, little-endian, at most 64 MiB
//! 10 32 BLAKE3 of the blob
//! 42 .  payload
//! ```

use super::expect_header;
use crate::StoreError;
use crate::bytes::{Malformed, Put, Reader};
use crate::payload::{self, Codec};

const VERSION: u8 = 1;
const CODEC_AT: usize = 5;

/// Largest blob, in bytes.
pub(crate) const MAX_LEN: usize = 64 << 20;

/// The value for a blob; `what` is what an error calls it.
pub(crate) fn encode(magic: &[u8; 4], blob: &[u8], what: &'static str) -> Result<Vec<u8>, StoreError> {
    if blob.len() > MAX_LEN {
        return Err(StoreError::TooLarge { what, limit: MAX_LEN as u64 });
    }
    let mut out = magic.to_vec();
    out.put(&[VERSION, 0]);
    out.put(&(blob.len() as u32).to_le_bytes());
    out.put(blake3::hash(blob).as_bytes());
    let codec = payload::encode(blob, &mut out);
    if let Some(byte) = out.get_mut(CODEC_AT) {
        *byte = codec as u8;
    }
    Ok(out)
}

/// The blob in a value.
pub(crate) fn decode(magic: &[u8; 4], bytes: &[u8]) -> Result<Vec<u8>, Malformed> {
    let mut reader = Reader::new(bytes);
    expect_header(&mut reader, magic, VERSION)?;
    let codec = Codec::from_byte(reader.u8()?)?;
    let len = reader.u32()? as usize;
    let digest = reader.array::<32>()?;
    if len > MAX_LEN {
        return Err(Malformed::new(format!("it says it has {len} bytes, the limit is {MAX_LEN}")));
    }
    let blob = payload::decode(codec, reader.rest(), len)?;
    match *blake3::hash(&blob).as_bytes() == digest {
        true => Ok(blob),
        false => Err(Malformed::new("the blob does not have its digest")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const MAGIC: &[u8; 4] = b"TEST";

    fn encoded(blob: &[u8]) -> Vec<u8> {
        encode(MAGIC, blob, "a test").unwrap()
    }

    proptest! {
        #[test]
        fn blobs_come_back(blob in proptest::collection::vec(any::<u8>(), 0..300), repeat in 1usize..9) {
            let blob = blob.repeat(repeat);
            prop_assert_eq!(decode(MAGIC, &encoded(&blob)).unwrap(), blob);
        }

        #[test]
        fn a_flipped_bit_is_found(bit in 0usize..(42 + 5) * 8) {
            let mut bytes = encoded(b"hello");
            bytes[bit / 8] ^= 1 << (bit % 8);
            prop_assert!(decode(MAGIC, &bytes).is_err());
        }
    }

    #[test]
    fn the_bytes_of_a_blob() {
        let bytes = encoded(b"hello");
        assert_eq!(bytes[..10], *b"TEST\x01\x00\x05\0\0\0");
        assert_eq!(bytes[10..42], *blake3::hash(b"hello").as_bytes());
        assert_eq!(bytes[42..], *b"hello");
    }

    #[test]
    fn sizes_are_bounded() {
        assert!(encode(MAGIC, &vec![0; MAX_LEN + 1], "a test").is_err());
        let mut bytes = encoded(b"hello");
        bytes[6..10].fill(0xff);
        assert!(decode(MAGIC, &bytes).unwrap_err().to_string().contains("the limit is"));
    }
}
