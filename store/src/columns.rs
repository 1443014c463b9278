//! The typed columns of the archive, one file each.
//!
//! RocksDB is reached through these only. A column states how its keys and values look in bytes; `docs/archive-format.md`
//! shows the same in one place, and a test in each file holds the bytes still.

pub(crate) mod blob;
pub(crate) mod digests;
pub(crate) mod epochs;
pub(crate) mod manifests;
pub(crate) mod meta;
pub(crate) mod packs;
pub(crate) mod pages;
pub(crate) mod pins;
pub(crate) mod states;
pub(crate) mod vms;

use crate::Place;
use crate::bytes::{Malformed, Reader};

/// A column family with its encodings.
pub(crate) trait Column {
    /// Name of the column family.
    const NAME: &'static str;
    /// What an entry is found by.
    type Key;
    /// The key's bytes. Their order is the order of the column.
    type KeyBytes: AsRef<[u8]>;
    /// What an entry holds.
    type Value;

    fn key(key: &Self::Key) -> Self::KeyBytes;
    fn decode_key(bytes: &[u8]) -> Result<Self::Key, Malformed>;
    fn decode(key: &Self::Key, bytes: &[u8]) -> Result<Self::Value, Malformed>;
    fn place(key: &Self::Key) -> Place;
}

/// The number of a VM within the archive.
pub(crate) type VmNumber = u32;

/// `(vm, epoch)` as twelve big-endian bytes, so that the epochs of a VM lie together in order.
pub(crate) type EpochKey = (VmNumber, u64);

fn epoch_key((vm, epoch): &EpochKey) -> [u8; 12] {
    let mut bytes = [0; 12];
    let (head, tail) = bytes.split_at_mut(4);
    head.copy_from_slice(&vm.to_be_bytes());
    tail.copy_from_slice(&epoch.to_be_bytes());
    bytes
}

fn decode_epoch_key(bytes: &[u8]) -> Result<EpochKey, Malformed> {
    let mut reader = Reader::new(bytes);
    let key = (u32::from_be_bytes(reader.array()?), u64::from_be_bytes(reader.array()?));
    reader.finish()?;
    Ok(key)
}

fn decode_u64_key(bytes: &[u8]) -> Result<u64, Malformed> {
    let mut reader = Reader::new(bytes);
    let key = u64::from_be_bytes(reader.array()?);
    reader.finish()?;
    Ok(key)
}

/// Takes a four-byte magic and a version byte off the front.
fn expect_header(reader: &mut Reader<'_>, magic: &[u8; 4], version: u8) -> Result<(), Malformed> {
    if reader.array::<4>()? != *magic {
        return Err(Malformed::new(format!("it does not begin with {}", magic.escape_ascii())));
    }
    match reader.u8()? {
        found if found == version => Ok(()),
        found => Err(Malformed::new(format!("layout version {found} is unknown to this varve"))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn epoch_keys_sort_as_numbers(a: (u32, u64), b: (u32, u64)) {
            prop_assert_eq!(epoch_key(&a).cmp(&epoch_key(&b)), a.cmp(&b));
            prop_assert_eq!(decode_epoch_key(&epoch_key(&a)).unwrap(), a);
        }
    }

    #[test]
    fn keys_of_other_lengths_are_malformed() {
        assert!(decode_epoch_key(&[0; 11]).is_err());
        assert!(decode_epoch_key(&[0; 13]).is_err());
        assert!(decode_u64_key(&[0; 7]).is_err());
        assert!(decode_u64_key(&[0; 9]).is_err());
    }
}
