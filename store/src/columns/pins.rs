//! Small blobs pinned for a VM, such as the kernel symbols found at its first epoch.
//!
//! ```text
//! key    0  4  number of the VM, big-endian
//!        4  .  name of the pin
//! value  0  4  "VPIN"
//!        4  1  layout version, 1
//!        5  1  codec: 0 as is, 1 one zstd frame
//!        6  4  length of the blob, little-endian, at most 64 MiB
//!       10 32  BLAKE3 of the blob
//!       42  .  payload
//! ```

use super::{Column, VmNumber, expect_header};
use crate::bytes::{Malformed, Put, Reader};
use crate::payload::{self, Codec};
use crate::{Place, StoreError};

const MAGIC: &[u8; 4] = b"VPIN";
const VERSION: u8 = 1;
const CODEC_AT: usize = 5;

/// Largest blob, in bytes.
pub(crate) const MAX_PIN_LEN: usize = 64 << 20;

/// (VM, name) to blob.
pub(crate) struct Pins;

impl Column for Pins {
    const NAME: &'static str = "pins";
    type Key = (VmNumber, String);
    type KeyBytes = Vec<u8>;
    type Value = Vec<u8>;

    fn key((vm, name): &(VmNumber, String)) -> Vec<u8> {
        let mut key = vm.to_be_bytes().to_vec();
        key.put(name.as_bytes());
        key
    }

    fn decode_key(bytes: &[u8]) -> Result<(VmNumber, String), Malformed> {
        let mut reader = Reader::new(bytes);
        let vm = u32::from_be_bytes(reader.array()?);
        let name =
            String::from_utf8(reader.rest().to_vec()).map_err(|_| Malformed::new("the name is not UTF-8"))?;
        Ok((vm, name))
    }

    fn decode(_: &(VmNumber, String), bytes: &[u8]) -> Result<Vec<u8>, Malformed> {
        let mut reader = Reader::new(bytes);
        expect_header(&mut reader, MAGIC, VERSION)?;
        let codec = Codec::from_byte(reader.u8()?)?;
        let len = reader.u32()? as usize;
        let digest = reader.array::<32>()?;
        if len > MAX_PIN_LEN {
            return Err(Malformed::new(format!("it says it has {len} bytes, the limit is {MAX_PIN_LEN}")));
        }
        let blob = payload::decode(codec, reader.rest(), len)?;
        match *blake3::hash(&blob).as_bytes() == digest {
            true => Ok(blob),
            false => Err(Malformed::new("the blob does not have its digest")),
        }
    }

    fn place((vm, name): &(VmNumber, String)) -> Place {
        Place::Pin(*vm, name.clone())
    }
}

/// The value for a blob.
pub(crate) fn encode(blob: &[u8]) -> Result<Vec<u8>, StoreError> {
    if blob.len() > MAX_PIN_LEN {
        return Err(StoreError::TooLarge { what: "a pinned blob", limit: MAX_PIN_LEN as u64 });
    }
    let mut out = MAGIC.to_vec();
    out.put(&[VERSION, 0]);
    out.put(&(blob.len() as u32).to_le_bytes());
    out.put(blake3::hash(blob).as_bytes());
    let codec = payload::encode(blob, &mut out);
    if let Some(byte) = out.get_mut(CODEC_AT) {
        *byte = codec as u8;
    }
    Ok(out)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn blobs_come_back(blob in proptest::collection::vec(any::<u8>(), 0..300), repeat in 1usize..9) {
            let blob = blob.repeat(repeat);
            prop_assert_eq!(Pins::decode(&(1, "x".into()), &encode(&blob).unwrap()).unwrap(), blob);
        }

        #[test]
        fn a_flipped_bit_is_found(bit in 0usize..(42 + 5) * 8) {
            let mut bytes = encode(b"hello").unwrap();
            bytes[bit / 8] ^= 1 << (bit % 8);
            prop_assert!(Pins::decode(&(1, "x".into()), &bytes).is_err());
        }
    }

    #[test]
    fn the_bytes_of_a_pin() {
        let bytes = encode(b"hello").unwrap();
        assert_eq!(bytes[..10], *b"VPIN\x01\x00\x05\0\0\0");
        assert_eq!(bytes[10..42], *blake3::hash(b"hello").as_bytes());
        assert_eq!(bytes[42..], *b"hello");
        let key = (2, "symbols".to_owned());
        assert_eq!(Pins::key(&key), *b"\0\0\0\x02symbols");
        assert_eq!(Pins::decode_key(&Pins::key(&key)).unwrap(), key);
    }

    #[test]
    fn sizes_are_bounded() {
        assert!(encode(&vec![0; MAX_PIN_LEN + 1]).is_err());
        let mut bytes = encode(b"hello").unwrap();
        bytes[6..10].fill(0xff);
        assert!(Pins::decode(&(1, "x".into()), &bytes).unwrap_err().to_string().contains("the limit is"));
    }
}
