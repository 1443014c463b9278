//! Digests by pack: which pages a pack holds, without decompressing it.
//!
//! ```text
//! key    8  pack number, big-endian
//! value  n × 32  BLAKE3 of the page in each slot
//! ```

use super::{Column, decode_u64_key};
use crate::bytes::Malformed;
use crate::page::PACK_PAGES;
use crate::{Digest, PageId, Place};

/// Pack number to the digests of its pages.
pub(crate) struct Digests;

/// The digests of one pack, in slot order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct PackDigests(Vec<[u8; 32]>);

impl PackDigests {
    pub(crate) fn iter(&self) -> impl ExactSizeIterator<Item = Digest> + '_ {
        self.0.iter().map(|digest| Digest(*digest))
    }

    pub(crate) fn len(&self) -> usize {
        self.0.len()
    }

    pub(crate) fn get(&self, slot: usize) -> Option<Digest> {
        self.0.get(slot).map(|digest| Digest(*digest))
    }

    /// The digest of a page, which must be in this pack.
    pub(crate) fn of(&self, id: PageId) -> Option<Digest> {
        id.location().and_then(|(_, slot)| self.get(slot))
    }
}

impl Column for Digests {
    const NAME: &'static str = "digests";
    type Key = u64;
    type KeyBytes = [u8; 8];
    type Value = PackDigests;

    fn key(number: &u64) -> [u8; 8] {
        number.to_be_bytes()
    }

    fn decode_key(bytes: &[u8]) -> Result<u64, Malformed> {
        decode_u64_key(bytes)
    }

    fn decode(_: &u64, bytes: &[u8]) -> Result<PackDigests, Malformed> {
        match bytes.as_chunks::<32>() {
            (digests, []) if (1..=PACK_PAGES).contains(&digests.len()) => Ok(PackDigests(digests.to_vec())),
            _ => Err(Malformed::new(format!("{} bytes are not 1 to {PACK_PAGES} digests", bytes.len()))),
        }
    }

    fn place(number: &u64) -> Place {
        Place::Digests(*number)
    }
}

/// The value for a pack whose pages have these digests.
pub(crate) fn encode(digests: &[Digest]) -> Vec<u8> {
    digests.iter().flat_map(|digest| digest.0).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn digests_come_back_in_slot_order() {
        let digests = [Digest([1; 32]), Digest([2; 32])];
        let bytes = encode(&digests);
        assert_eq!(bytes, [[1; 32], [2; 32]].concat());
        let value = Digests::decode(&1, &bytes).unwrap();
        assert_eq!(value.iter().collect::<Vec<_>>(), digests);
        assert_eq!((value.get(1), value.get(2)), (Some(digests[1]), None));
        assert_eq!(value.of(PageId::new(1, 1).unwrap()), Some(digests[1]));
        assert_eq!(value.of(PageId::ZERO), None);
    }

    #[test]
    fn other_lengths_are_malformed() {
        for len in [0, 31, 33, 65 * 32] {
            assert!(Digests::decode(&1, &vec![0; len]).is_err(), "{len}");
        }
    }
}
