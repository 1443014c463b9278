//! Small blobs pinned for a VM, such as the kernel symbols found at its first epoch.
//!
//! ```text
//! key    0  4  number of the VM, big-endian
//!        4  .  name of the pin
//! value        a blob of at most 64 MiB ([`blob`]) that begins with "VPIN"
//! ```

use super::{Column, VmNumber, blob};
use crate::bytes::{Malformed, Put, Reader};
use crate::{Place, StoreError};

const MAGIC: &[u8; 4] = b"VPIN";

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
        blob::decode(MAGIC, bytes)
    }

    fn place((vm, name): &(VmNumber, String)) -> Place {
        Place::Pin(*vm, name.clone())
    }
}

/// The value for a blob.
pub(crate) fn encode(blob: &[u8]) -> Result<Vec<u8>, StoreError> {
    blob::encode(MAGIC, blob, "a pinned blob")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_bytes_of_a_pin() {
        assert_eq!(encode(b"hello").unwrap()[..10], *b"VPIN\x01\x00\x05\0\0\0");
        let key = (2, "symbols".to_owned());
        assert_eq!(Pins::key(&key), *b"\0\0\0\x02symbols");
        assert_eq!(Pins::decode_key(&Pins::key(&key)).unwrap(), key);
    }
}
