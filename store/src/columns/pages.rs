//! The index of pages: which pack and slot holds the page with a digest.
//!
//! ```text
//! key   32  BLAKE3 of the page
//! value  8  page id, big-endian: pack number × 64 + slot
//! ```

use super::Column;
use crate::bytes::{Malformed, Reader};
use crate::{Digest, PageId, Place};

/// Digest to page.
pub(crate) struct Pages;

impl Column for Pages {
    const NAME: &'static str = "pages";
    type Key = Digest;
    type KeyBytes = [u8; 32];
    type Value = PageId;

    fn key(digest: &Digest) -> [u8; 32] {
        digest.0
    }

    fn decode_key(bytes: &[u8]) -> Result<Digest, Malformed> {
        let mut reader = Reader::new(bytes);
        let digest = Digest(reader.array()?);
        reader.finish()?;
        Ok(digest)
    }

    fn decode(_: &Digest, bytes: &[u8]) -> Result<PageId, Malformed> {
        let mut reader = Reader::new(bytes);
        let raw = u64::from_be_bytes(reader.array()?);
        reader.finish()?;
        match PageId::from_raw(raw) {
            Some(id) if id.is_stored() => Ok(id),
            _ => Err(Malformed::new(format!("{raw:#x} is not the id of a stored page"))),
        }
    }

    fn place(digest: &Digest) -> Place {
        Place::Index(*digest)
    }
}

/// The value for a stored page.
pub(crate) fn encode(id: PageId) -> [u8; 8] {
    id.get().to_be_bytes()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_come_back() {
        let (digest, id) = (Digest([7; 32]), PageId::new(3, 5).unwrap());
        assert_eq!(encode(id), [0, 0, 0, 0, 0, 0, 0, 3 * 64 + 5]);
        assert_eq!(Pages::decode(&digest, &encode(id)).unwrap(), id);
        assert_eq!(Pages::decode_key(&Pages::key(&digest)).unwrap(), digest);
    }

    #[test]
    fn what_names_no_stored_page_is_malformed() {
        for bytes in [&[0; 8][..], &[0xff; 8], &[0, 0, 0, 0, 0, 0, 0, 63], &[0; 7], &[0; 9]] {
            assert!(Pages::decode(&Digest::ZERO, bytes).is_err(), "{bytes:x?}");
        }
        assert!(Pages::decode_key(&[0; 31]).is_err());
    }
}
