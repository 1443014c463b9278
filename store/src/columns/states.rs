//! The state of a domain that is not in its memory: vCPU contexts, device state, its configuration. What the bytes mean is
//! their source's matter; the epoch's record holds their digest.
//!
//! ```text
//! key    0  4  number of the VM, big-endian
//!        4  8  number of the epoch, big-endian
//! value        a blob of at most 64 MiB ([`blob`]) that begins with "VSTA"
//! ```

use super::{Column, EpochKey, blob, decode_epoch_key, epoch_key};
use crate::bytes::Malformed;
use crate::{Place, StoreError};

const MAGIC: &[u8; 4] = b"VSTA";

/// (VM, epoch) to state.
pub(crate) struct States;

impl Column for States {
    const NAME: &'static str = "states";
    type Key = EpochKey;
    type KeyBytes = [u8; 12];
    type Value = Vec<u8>;

    fn key(key: &EpochKey) -> [u8; 12] {
        epoch_key(key)
    }

    fn decode_key(bytes: &[u8]) -> Result<EpochKey, Malformed> {
        decode_epoch_key(bytes)
    }

    fn decode(_: &EpochKey, bytes: &[u8]) -> Result<Vec<u8>, Malformed> {
        blob::decode(MAGIC, bytes)
    }

    fn place((vm, epoch): &EpochKey) -> Place {
        Place::State(*vm, *epoch)
    }
}

/// The value for a state.
pub(crate) fn encode(state: &[u8]) -> Result<Vec<u8>, StoreError> {
    blob::encode(MAGIC, state, "the state of the domain")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_bytes_of_a_state() {
        let bytes = encode(b"hello").unwrap();
        assert_eq!(bytes[..10], *b"VSTA\x01\x00\x05\0\0\0");
        assert_eq!(States::decode(&(1, 2), &bytes).unwrap(), b"hello");
        assert_eq!(States::key(&(1, 2)), *b"\0\0\0\x01\0\0\0\0\0\0\0\x02");
    }
}
