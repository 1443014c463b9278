//! Packs: up to 64 pages under one compression frame.
//!
//! ```text
//! key    8  pack number, big-endian, from 1
//! value  0  4  "VPAK"
//!        4  1  layout version, 1
//!        5  1  codec of the payload: 0 as is, 1 one zstd frame
//!        6  1  flags, 0 (room for encryption)
//!        7  1  n, number of slots, 1 to 64
//!        8  4  length of the payload once decompressed, little-endian
//!       12  n  kind of each slot: 0 a whole page (room for deltas and pruned slots)
//!     12+n  .  payload: the pages in slot order
//! ```

use varve_formats::PAGE_SIZE;

use super::{Column, decode_u64_key, expect_header};
use crate::bytes::{Malformed, Put, Reader};
use crate::hash::Page;
use crate::page::PACK_PAGES;
use crate::payload::{self, Codec};
use crate::{Place, StoreError};

const MAGIC: &[u8; 4] = b"VPAK";
const VERSION: u8 = 1;
const HEADER_LEN: usize = 12;
const CODEC_AT: usize = 5;
const WHOLE_PAGE: u8 = 0;

/// Pack number to pack.
pub(crate) struct Packs;

impl Column for Packs {
    const NAME: &'static str = "packs";
    type Key = u64;
    type KeyBytes = [u8; 8];
    type Value = Pack;

    fn key(number: &u64) -> [u8; 8] {
        number.to_be_bytes()
    }

    fn decode_key(bytes: &[u8]) -> Result<u64, Malformed> {
        decode_u64_key(bytes)
    }

    fn decode(_: &u64, bytes: &[u8]) -> Result<Pack, Malformed> {
        Pack::decode(bytes)
    }

    fn place(number: &u64) -> Place {
        Place::Pack(*number)
    }
}

/// The decompressed pages of a pack.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Pack {
    payload: Vec<u8>,
}

impl Pack {
    /// The pages in slot order.
    pub(crate) fn pages(&self) -> &[Page] {
        self.payload.as_chunks().0
    }

    /// Bytes this pack takes in memory.
    pub(crate) fn size(&self) -> usize {
        self.payload.len()
    }

    /// The bytes of a pack with these pages, 1 to 64 of them.
    pub(crate) fn encode(pages: &[Page]) -> Result<Vec<u8>, StoreError> {
        let limit = PACK_PAGES as u64;
        if pages.len() > PACK_PAGES || pages.is_empty() {
            return Err(StoreError::TooLarge { what: "a pack", limit });
        }
        let payload = pages.as_flattened();
        let mut out = Vec::with_capacity(HEADER_LEN + pages.len() + payload.len() / 2);
        out.put(MAGIC);
        out.put(&[VERSION, 0, 0, pages.len() as u8]);
        out.put(&(payload.len() as u32).to_le_bytes());
        out.resize(HEADER_LEN + pages.len(), WHOLE_PAGE);
        let codec = payload::encode(payload, &mut out);
        if let Some(byte) = out.get_mut(CODEC_AT) {
            *byte = codec as u8;
        }
        Ok(out)
    }

    /// The pages in `bytes`.
    pub(crate) fn decode(bytes: &[u8]) -> Result<Self, Malformed> {
        let mut reader = Reader::new(bytes);
        expect_header(&mut reader, MAGIC, VERSION)?;
        let codec = Codec::from_byte(reader.u8()?)?;
        let flags = reader.u8()?;
        if flags != 0 {
            return Err(Malformed::new(format!("flags {flags:#04x} are unknown to this varve")));
        }
        let count = usize::from(reader.u8()?);
        if count == 0 || count > PACK_PAGES {
            return Err(Malformed::new(format!(
                "it says it has {count} slots (1 to {PACK_PAGES} are possible)"
            )));
        }
        let len = reader.u32()? as usize;
        if let Some(kind) = reader.take(count)?.iter().find(|kind| **kind != WHOLE_PAGE) {
            return Err(Malformed::new(format!("slot kind {kind} is unknown to this varve")));
        }
        if len != count * PAGE_SIZE {
            return Err(Malformed::new(format!("it says {count} slots decompress to {len} bytes")));
        }
        Ok(Self { payload: payload::decode(codec, reader.rest(), len)? })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn pages(seeds: &[u8]) -> Vec<Page> {
        seeds.iter().map(|seed| std::array::from_fn(|at| (at / 64) as u8 ^ seed)).collect()
    }

    fn noise(count: usize) -> Vec<Page> {
        let mut pages = vec![[0; PAGE_SIZE]; count];
        blake3::Hasher::new().finalize_xof().fill(pages.as_flattened_mut());
        pages
    }

    proptest! {
        #[test]
        fn packs_come_back(seeds in proptest::collection::vec(any::<u8>(), 1..=64)) {
            let pages = pages(&seeds);
            let bytes = Pack::encode(&pages).unwrap();
            let pack = Pack::decode(&bytes).unwrap();
            prop_assert_eq!(pack.pages(), &pages[..]);
        }

        #[test]
        fn damaged_packs_are_pages_or_malformed(at in 0usize..200, value: u8, len in 0usize..200) {
            let mut bytes = Pack::encode(&pages(&[1, 2, 3])).unwrap();
            if let Some(byte) = bytes.get_mut(at) {
                *byte = value;
            }
            if let Ok(pack) = Pack::decode(&bytes) {
                prop_assert_eq!(pack.pages().len(), 3);
            }
            let cut = len.min(bytes.len() - 1);
            prop_assert!(Pack::decode(&bytes[..cut]).is_err());
        }
    }

    #[test]
    fn incompressible_pages_are_kept_as_they_are() {
        let pages = noise(64);
        let bytes = Pack::encode(&pages).unwrap();
        assert_eq!((bytes[CODEC_AT], bytes.len()), (0, 12 + 64 + 64 * PAGE_SIZE));
        assert_eq!(Pack::decode(&bytes).unwrap().pages(), pages);
    }

    #[test]
    fn the_bytes_of_a_pack() {
        let bytes = Pack::encode(&noise(2)).unwrap();
        assert_eq!(bytes[..14], *b"VPAK\x01\x00\x00\x02\x00\x20\x00\x00\x00\x00");
        assert_eq!(bytes[14..], *noise(2).as_flattened());
        assert_eq!(Packs::key(&0x0102), [0, 0, 0, 0, 0, 0, 1, 2]);
    }

    #[test]
    fn what_a_later_varve_may_write_is_refused_by_name() {
        let bytes = Pack::encode(&pages(&[1])).unwrap();
        let refused = |at: usize, value: u8| {
            let mut bytes = bytes.clone();
            bytes[at] = value;
            Pack::decode(&bytes).unwrap_err().to_string()
        };
        assert_eq!(refused(0, b'X'), "it does not begin with VPAK");
        assert_eq!(refused(4, 2), "layout version 2 is unknown to this varve");
        assert_eq!(refused(5, 2), "codec 2 is unknown to this varve");
        assert_eq!(refused(6, 1), "flags 0x01 are unknown to this varve");
        assert_eq!(refused(7, 65), "it says it has 65 slots (1 to 64 are possible)");
        assert_eq!(refused(8, 1), "it says 1 slots decompress to 4097 bytes");
        assert_eq!(refused(12, 1), "slot kind 1 is unknown to this varve");
    }

    #[test]
    fn only_1_to_64_pages_make_a_pack() {
        assert!(Pack::encode(&[]).is_err());
        assert!(Pack::encode(&noise(65)).is_err());
    }
}
