//! The VMs of the archive.
//!
//! ```text
//! key    .  name: 1 to 64 of A-Z a-z 0-9 . _ -
//! value  0  4  "VMNO"
//!        4  1  layout version, 1
//!        5  4  number of the VM in this archive, little-endian, from 1
//! ```

use super::{Column, VmNumber, expect_header};
use crate::bytes::{Malformed, Put, Reader};
use crate::{Place, StoreError};

const MAGIC: &[u8; 4] = b"VMNO";
const VERSION: u8 = 1;
const MAX_NAME_LEN: usize = 64;

/// Name to number.
pub(crate) struct Vms;

impl Column for Vms {
    const NAME: &'static str = "vms";
    type Key = String;
    type KeyBytes = Vec<u8>;
    type Value = VmNumber;

    fn key(name: &String) -> Vec<u8> {
        name.as_bytes().to_vec()
    }

    fn decode_key(bytes: &[u8]) -> Result<String, Malformed> {
        match std::str::from_utf8(bytes) {
            Ok(name) if check_name(name).is_ok() => Ok(name.to_owned()),
            _ => Err(Malformed::new(format!("{:?} is not a valid name", bytes.escape_ascii().to_string()))),
        }
    }

    fn decode(_: &String, bytes: &[u8]) -> Result<VmNumber, Malformed> {
        let mut reader = Reader::new(bytes);
        expect_header(&mut reader, MAGIC, VERSION)?;
        let number = reader.u32()?;
        reader.finish()?;
        match number {
            0 => Err(Malformed::new("VMs are numbered from 1")),
            number => Ok(number),
        }
    }

    fn place(name: &String) -> Place {
        Place::Vm(name.clone())
    }
}

/// The value for a VM.
pub(crate) fn encode(number: VmNumber) -> Vec<u8> {
    let mut out = MAGIC.to_vec();
    out.put(&[VERSION]);
    out.put(&number.to_le_bytes());
    out
}

/// Refuses names that are not 1 to 64 of `A-Z a-z 0-9 . _ -`.
pub(crate) fn check_name(name: &str) -> Result<(), StoreError> {
    let allowed = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'_' | b'-');
    match (1..=MAX_NAME_LEN).contains(&name.len()) && name.bytes().all(allowed) {
        true => Ok(()),
        false => Err(StoreError::InvalidName { name: name.to_owned() }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_come_back() {
        assert_eq!(encode(7), *b"VMNO\x01\x07\0\0\0");
        assert_eq!(Vms::decode(&"a".into(), &encode(7)).unwrap(), 7);
        assert!(Vms::decode(&"a".into(), &encode(0)).is_err());
        assert!(Vms::decode(&"a".into(), b"VMNO\x02\x07\0\0\0").is_err());
    }

    #[test]
    fn names_are_checked() {
        for name in ["a", "web-1.example_2", &"x".repeat(64)] {
            assert!(check_name(name).is_ok(), "{name}");
        }
        for name in ["", "a b", "ü", "a/b", &"x".repeat(65), "a\n"] {
            assert!(check_name(name).is_err(), "{name:?}");
        }
        assert!(Vms::decode_key(b"a b").is_err());
    }
}
